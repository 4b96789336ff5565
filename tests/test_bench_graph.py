"""bench/graph.py: what it feeds, which files it exports, and the table that it puts into its page."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import graph


def line(median: float, stamp: str = "a") -> dict:
    rows = [
        {"name": name, "ms": {"median": 20.0}, "ratio": {"median": median}} for name in (graph.REFERENCE, graph.TWIN)
    ]
    case = {"network": "vits", "backend": "onnxruntime", "size": [518, 686]}
    return {"case": case, "stamp": stamp, "rows": rows, "nodes": {graph.REFERENCE: 1261, graph.TWIN: 875}}


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
    page = tmp_path / "graph.md"
    page.write_text(f"before\n{graph.BEGIN}old\n{graph.END}after\n", encoding="utf-8")
    for _ in range(2):  # again over its own table
        graph.write_table(page, [stamp("a"), line(1.0), stamp("b"), line(1.25, "b")])
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
        graph.write_table(page, [])


def test_the_page_in_the_repository_has_a_place_for_the_table() -> None:
    text = graph.DOCS.read_text(encoding="utf-8")
    assert text.count(graph.BEGIN) == text.count(graph.END) == 1


def test_networks_are_fed_what_they_take() -> None:
    assert {array.shape for array in graph.inputs(3).values()} == {(3, 3, 224, 224)}
    assert {array.shape for array in graph.inputs((28, 42)).values()} == {(1, 3, 28, 42)}
    assert set(graph.SIZES) == set(graph.NAMES)
