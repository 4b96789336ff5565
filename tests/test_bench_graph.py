"""bench/graph.py: what it feeds, which files it exports, and the tables that it puts into its page."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import graph
import timer


def line(case: dict, ratios: dict[str, float], stamp: str = "a", **more: object) -> dict:
    rows = [{"name": name, "ms": {"median": 20.0}, "ratio": {"median": ratio}} for name, ratio in ratios.items()]
    return {"case": case, "stamp": stamp, "rows": rows, **more}


def twins(ratio: float, stamp: str = "a") -> dict:
    case = {"network": "vits", "backend": "onnxruntime", "size": [518, 686]}
    counts = {graph.REFERENCE: 1261, graph.TWIN: 875}
    return line(case, {graph.REFERENCE: 1.0, graph.TWIN: ratio}, stamp, nodes=counts)


def attention(backend: str, ratios: dict[str, float]) -> dict:
    case = {"network": "attention", "backend": backend, "size": 8, "ways": [*ratios]}
    return line(case, ratios, difference={"plain": 0.0, "folded": 1e-7})


def stamp(name: str) -> dict:
    versions = {"onnxruntime": "1", "openvino": None, "torch": None}
    facts = {
        "cores": 2,
        "cpu": f"chip {name}",
        "cpu_features": [],
        "gpu": None,
        "commit": "0" * 40,
        "date": "2026-01-01",
    }
    return {"stamp_id": name, "versions": versions, **facts}


def test_the_page_gets_the_last_figure_of_every_case(tmp_path: Path) -> None:
    page, (begin, end) = tmp_path / "graph.md", graph.marks("twins")
    page.write_text(f"before\n{begin}old\n{end}after\n", encoding="utf-8")
    for _ in range(2):  # again over its own table
        made = graph.tables([stamp("a"), twins(1.0), stamp("b"), twins(1.25, "b")])["twins"]
        graph.put_between(page, begin, end, made)
    text = page.read_text(encoding="utf-8")
    assert "| Depth Anything ViT-S | 518x686 | onnxruntime | 20 | 1.25x |  | 1,261 to 875 |" in text
    assert text.count("518x686") == 1
    assert "chip b" in text
    assert "chip a" not in text
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    page.write_text("no marks", encoding="utf-8")
    with pytest.raises(ValueError, match="no place for the table"):
        graph.put_between(page, begin, end, "")


def test_the_table_of_attention_has_a_place_for_what_was_not_run() -> None:
    lines = [
        stamp("a"),
        twins(1.0),
        attention("openvino", {"plain": 1.0, "folded": 0.9}),
        attention("tensorrt", {"plain": 1.0, "folded": 1.2, "plugin": 1.1}),
    ]
    made = graph.tables(lines)["attention"]
    assert "| openvino | 8 tiles | 20 | 0.90x |  | 1.0e-07 |" in made
    assert "| tensorrt | 8 tiles | 20 | 1.20x | 1.10x | 1.0e-07 |" in made
    assert "ViT-S" not in made


def test_the_page_in_the_repository_is_that_of_its_results() -> None:
    text = graph.DOCS.read_text(encoding="utf-8")
    for name, made in graph.tables(timer.lines(timer.RESULTS / "graph.jsonl")).items():
        begin, end = graph.marks(name)
        assert f"{begin}\n{made}\n{end}" in text


def test_networks_are_fed_what_they_take() -> None:
    assert {array.shape for array in graph.inputs(3).values()} == {(3, 3, 224, 224)}
    assert {array.shape for array in graph.inputs((28, 42)).values()} == {(1, 3, 28, 42)}
    assert set(graph.SIZES) == {*graph.NAMES, "attention", "narrow"}


def test_the_ways_are_those_of_the_exporter() -> None:
    pytest.importorskip("torch")
    from dgiqa.nn.deploy import ATTENTIONS

    assert {how["attention"] for how in graph.ATTENTION.values()} == set(ATTENTIONS)


@pytest.mark.slow
def test_one_command_compares_plain_and_folded_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    page, out = tmp_path / "page.md", tmp_path / "out.jsonl"
    page.write_text("".join(mark for name in ("twins", "attention") for mark in graph.marks(name)), encoding="utf-8")
    arguments = ["--only", "narrow", "--work", str(tmp_path), "--docs", str(page), "--out", str(out), "--seconds", "1"]
    monkeypatch.setattr(sys, "argv", ["graph.py", *arguments])
    monkeypatch.setattr(graph, "backends", lambda: ["onnxruntime"])
    assert graph.main() == 0
    (found,) = (line for line in timer.lines(out) if "case" in line)
    assert found["case"]["ways"] == ["plain", "folded"]
    assert [row["clock"] for row in found["rows"]] == ["own", "own"]
    assert found["difference"]["folded"] < 1e-4
    assert "| engine | one run |" in page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_twins_are_compared_with_the_network_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    out = tmp_path / "out.jsonl"
    arguments = ["--only", "small", "--quick", "--work", str(tmp_path), "--out", str(out), "--seconds", "1"]
    monkeypatch.setattr(sys, "argv", ["graph.py", *arguments])
    assert graph.main() == 0
    for found in (line for line in timer.lines(out) if "case" in line):
        assert found["nodes"][graph.TWIN] < found["nodes"][graph.REFERENCE]
        assert found["difference"][graph.TWIN] < 1e-4
