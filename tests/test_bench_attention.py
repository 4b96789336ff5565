"""bench/attention.py: the three ways, the table that it puts into its page, and a run of it on a CPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import attention as bench
import graph


def line(backend: str, ways: dict[str, float]) -> dict:
    rows = [{"name": way, "ms": {"median": 20.0}, "ratio": {"median": ratio}} for way, ratio in ways.items()]
    return {
        "case": {"backend": backend, "tiles": 8},
        "stamp": "a",
        "rows": rows,
        "difference": {"plain": 0.0, "folded": 1e-7},
    }


def test_the_table_has_a_place_for_what_was_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "machine_line", lambda stamp: "a chip")
    lines = [
        {"stamp_id": "a"},
        line("openvino", {"plain": 1.0, "folded": 0.9}),
        line("tensorrt", {"plain": 1.0, "folded": 1.2, "plugin": 1.1}),
    ]
    made = bench.table(lines)
    assert "| openvino | 8 tiles | 20 | 0.90x |  | 1.0e-07 |" in made
    assert "| tensorrt | 8 tiles | 20 | 1.20x | 1.10x | 1.0e-07 |" in made


def test_the_page_in_the_repository_has_a_place_for_the_table() -> None:
    text = bench.DOCS.read_text(encoding="utf-8")
    assert text.count(bench.BEGIN) == text.count(bench.END) == 1


def test_the_ways_are_those_of_the_exporter() -> None:
    pytest.importorskip("torch")
    from dgiqa.nn.deploy import ATTENTIONS

    assert set(bench.WAYS.values()) == set(ATTENTIONS)


@pytest.mark.slow
def test_one_command_compares_plain_and_folded_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    page, out = tmp_path / "page.md", tmp_path / "out.jsonl"
    page.write_text(bench.BEGIN + bench.END, encoding="utf-8")
    arguments = ["--size", "narrow", "--work", str(tmp_path), "--docs", str(page), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["attention.py", *arguments, "--tiles", "1", "--seconds", "1"])
    monkeypatch.setattr(bench, "backends", lambda: ["onnxruntime"])
    assert bench.main() == 0
    text = page.read_text(encoding="utf-8")
    assert "| onnxruntime | 1 tiles |" in text
    assert "x |" in text
