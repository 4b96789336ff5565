"""The scaling bench: every axis gives a row per point on the tiny bundle, and a leak would show."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import scale

from dgiqa import Scorer, load_bundle


@pytest.mark.slow
def test_cost_is_measured_along_every_axis(bundle_dir: Path) -> None:
    bundle = str(bundle_dir)
    sizes = scale.sizes(bundle, (0.02, 2.0))["rows"]
    assert [row["megapixels"] for row in sizes] == [0.02, 2.0]
    assert sizes[0]["ms"]["p10"] < sizes[1]["ms"]["p10"]
    assert "decode" in sizes[1]["stages"]
    tiles = scale.tiles(bundle, (1, 32))["rows"]
    assert [row["tiles"] for row in tiles] == [1, 32]
    batches = scale.batches(bundle, (1, 64))["rows"]
    assert [row["batch"] for row in batches] == [1, 64]
    assert batches[0]["resident_mb"] <= batches[1]["resident_mb"]


@pytest.mark.slow
def test_processes_score_all_their_images_side_by_side(bundle_dir: Path) -> None:
    rows = scale.processes(str(bundle_dir), 8)["rows"]
    assert rows[0]["processes"] == 1
    assert all(row["images_per_second"] > 0 for row in rows)
    assert rows[0]["peak_mb"] < rows[-1]["peak_mb"]


def test_a_long_run_is_read_at_each_length() -> None:
    rows = scale.images({"tiny": 100})["rows"]
    assert [(row["bundle"], row["images"]) for row in rows] == [("tiny", 10), ("tiny", 100)]
    assert rows[1]["resident_mb"] < 2 * rows[0]["resident_mb"]


def test_the_bundle_of_a_few_operators_scores(tmp_path: Path) -> None:
    with Scorer(load_bundle(scale.tiny_bundle(tmp_path / "tiny")), backend="onnxruntime") as scorer:
        picture = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
        scores = [scorer.score(picture).value, scorer.score(255 - picture).value]
    assert all(0 < score < 1 for score in scores)
    assert scores[0] != pytest.approx(scores[1], abs=1e-6)
