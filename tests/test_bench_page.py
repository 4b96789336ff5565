"""The page: every figure on it is one that a bench wrote, and plots show who is ahead."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
pytest.importorskip("matplotlib")
import page
import plots
from peers import SMALL, STREAM
from pipeline import PEERS
from stamp import environment_stamp
from timer import Ledger

ENGINES = {"torch": 1000, "openvino fp32": 640, "openvino bf16": 200, "openvino int8": 231}


def accuracy() -> dict[str, Any]:
    """bench/precision.py's record: bf16 is over its budget."""
    moved = {"openvino fp32": 1e-6, "openvino bf16": 0.0777, "openvino int8": 0.0033}
    figures = {"mean_difference": 1e-7, "srocc": 0.9987, "size_ratio": 0.26, "spread": 0.1234, "images": 200}
    rows = [
        {"bundle": bundle, "backend": engine.split()[0], "precision": engine.split()[1], "max_difference": most}
        | figures
        | {"met": most < 0.02, "commit": "0" * 40, "machine": "a machine"}
        for bundle in ("small", "untrained-full")
        for engine, most in moved.items()
    ]
    return {"environment": environment_stamp(), "side": 512, "rows": rows}


def spread(median: float) -> dict[str, float]:
    return {"p10": median * 0.9, "median": median, "p90": median * 1.1}


def row(name: str, ms: float, ratio: float, **more: Any) -> dict[str, Any]:
    return {"name": name, "ms": spread(ms), "ratio": spread(ratio), "samples": 5, "note": "", "first_ms": None, **more}


def setting_row(precision: str, ms: float, rate: float, drift: float) -> dict[str, Any]:
    stages = {
        name: spread(ms / 7) for name in ("decode", "depth_input", "depth", "depth_image", "tiles", "quality", "output")
    }
    return {
        "setting": {"backend": "openvino", "precision": precision, "batch": 8, "threads": 2, "workers": 2},
        "one": {"ms": spread(ms), "ratio": spread(1.0), "stages": stages},
        "many": {"images_per_second": rate, "ratio": spread(1.0)},
        "stream": {"images": 10, "images_per_second": rate, "resident_mb": [100.0]},
        "drift": {"largest": drift, "mean": drift / 2, "srocc": 0.999},
        "peak_mb": 210.0,
    }


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Results as the benches write them, with figures that are easy to find again."""
    folder = tmp_path / "results"
    peers, pipeline, scale, alone = (Ledger(folder / f"{name}.jsonl") for name in page.BENCHES)
    small = [row(SMALL, 51.0, 60.0), row(STREAM, 43.0, 77.0)]
    peers.case({"part": "authors-vits", "images": 32}, lambda: {"rows": [row("authors", 4321, 1.0), *small]})
    peers.case({"part": "authors-vitl", "images": 32}, lambda: {"rows": [row("authors", 34567, 1.0), *small]})
    broken = {"name": "TOPIQ-NR", "unavailable": "ImportError: facexlib", "note": ""}
    peers.case({"part": "metrics", "images": 32}, lambda: {"rows": [row(SMALL, 51, 1.0), broken]})
    pipeline.case(
        {"part": "startup"}, lambda: {"rows": [row(PEERS, 2000, 1, peak_mb=400), row("ours", 400, 5, peak_mb=180)]}
    )
    key = {"part": "settings", "bundle": "small@1", "group": "engines", "images": 32}
    rows = [setting_row("fp32", 70, 20.0, 0.0), setting_row("bf16", 35, 41.5, 0.004)]
    pipeline.case(key, lambda: {"rows": rows})
    scale.case({"axis": "sizes"}, lambda: {"rows": [{"megapixels": 24.0, "ms": spread(812.0), "peak_mb": 555.0}]})
    scale.case(
        {"axis": "images"},
        lambda: {"rows": [{"bundle": "tiny", "images": 10_000, "ms_per_image": 1.5, "resident_mb": 99.0}]},
    )
    of_engines = [row(name, ms, 1000 / ms, baseline="torch", max_difference=1e-3) for name, ms in ENGINES.items()]
    alone.case({"size": "full", "network": "quality", "batch": 8}, lambda: {"results": of_engines})
    (folder / "precision.json").write_text(json.dumps(accuracy()))
    attempt = {"what": "one copy fewer", "predicted": "3 %", "measured": "2 %", "verdict": "kept"}
    (folder / page.TRIED).write_text(json.dumps([attempt]))
    return folder


def made(results: Path, docs: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "argv", ["page.py", "--results", str(results), "--docs", str(docs)])
    page.main()
    return (docs / "performance.md").read_text(encoding="utf-8")


def test_every_figure_finds_its_place(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = made(results, tmp_path / "docs", monkeypatch)
    assert "4,321 [3,889, 4,753]" in text  # the authors' pipeline
    assert "| TOPIQ-NR | not measured |" in text
    assert "ImportError: facexlib" in text
    assert "| 41.5 |" in text  # images/s of bf16
    assert "| tiny | 10,000 | 1.50 | 99 |" in text
    assert "one copy fewer | 3 % | 2 % | kept |" in text
    assert f"| openvino bf16, batch 8, 2 threads, 2 workers |{' 5.0 |' * 7}" in text  # ms of each stage
    assert "cores of" in text  # the machine
    assert "| quality, full | 8 tiles [1] | 1000 ms | 1.56x (1e-03) | 5.00x (1e-03) | 4.33x (1e-03) |" in text
    assert "| full | OpenVINO | bf16 | 7.8e-02 | 1.0e-07 | 0.9987 | 0.26 | **no** |" in text
    assert "standard deviation is 0.123" in text
    for name in (plots.PARETO, plots.STAGES, plots.SCALE):
        assert f"({name})" in text
        assert (tmp_path / "docs" / name).read_bytes().startswith(b"\x89PNG")


def test_what_was_not_measured_is_said(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (results / "scale.jsonl").unlink()
    text = made(results, tmp_path / "docs", monkeypatch)
    assert "## How cost grows\n\nNot measured yet." in text
    assert plots.SCALE not in text
    for path in results.glob("*.jsonl"):
        path.unlink()
    with pytest.raises(SystemExit, match="holds no results"):
        made(results, tmp_path / "docs", monkeypatch)


def test_the_last_measurement_of_a_case_counts(results: Path) -> None:
    line = {
        "case": {"axis": "sizes"},
        "stamp": json.loads((results / "scale.jsonl").read_text().splitlines()[0])["stamp_id"],
    }
    with (results / "scale.jsonl").open("a") as stream:
        stream.write(json.dumps(line | {"rows": []}) + "\n")
    found, machines = page.load(results)
    assert [line["rows"] for line in found["scale"] if line["case"] == {"axis": "sizes"}] == [[]]
    assert len(machines) == 1


def test_the_front_is_what_nothing_beats_in_both_respects() -> None:
    points = [(0.0, 10.0), (0.01, 30.0), (0.005, 8.0), (0.02, 25.0), (0.0, 9.0)]
    assert plots.front(points) == [(0.0, 10.0), (0.01, 30.0)]


def test_the_page_says_how_the_default_models_time_has_changed(tmp_path):
    from page import versions

    assert versions(tmp_path) == ""
    record = {"other": "abc1234", "ratio": {"512x512": 1.08, "1024x768": 0.82}, "mean_ratio": 0.95}
    (tmp_path / "versions.json").write_text(json.dumps(record))
    assert "0.95 times" in versions(tmp_path)
    assert "1.08 at 512x512, 0.82 at 1024x768" in versions(tmp_path)
