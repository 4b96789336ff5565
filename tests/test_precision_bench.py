"""bench/precision.py: the pictures are the same every time, scores are kept, and the table says what was met."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

from dgiqa import spec
from dgiqa.bundle import Bundle

BENCH = Path(__file__).parent.parent / "bench"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    for package in ("onnx", "onnxruntime", "skimage", "sklearn"):
        pytest.importorskip(package)
    sys.path.insert(0, str(BENCH))
    try:
        import precision
    finally:
        sys.path.remove(str(BENCH))
    return precision


def test_pictures_differ_from_each_other_and_not_from_run_to_run(bench: ModuleType) -> None:
    first, again = (list(bench.pictures(4)) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(max(picture.shape[:2]) == bench.SIDE for picture in first)
    assert len({picture.tobytes() for picture in first}) == 4


def test_scores_that_are_kept_are_not_computed_again(bench: ModuleType, tiny_bundle: Bundle, tmp_path: Path) -> None:
    files = {file: tiny_bundle.file(file) for file in (spec.DEPTH_FILE, spec.QUALITY_FILE)}
    options = Namespace(work=tmp_path)
    first = bench.engine_scores(tiny_bundle, files, ("onnxruntime", "fp32"), 2, options)
    (kept,) = tmp_path.iterdir()
    assert json.loads(kept.read_text()) == first.tolist()
    assert bench.scores(lambda: pytest.fail("computed again"), 2, kept).tolist() == first.tolist()


def test_a_run_that_was_interrupted_keeps_what_it_has_and_the_next_goes_on(bench: ModuleType, tmp_path: Path) -> None:
    kept, seen = tmp_path / "scores.json", list[float]()

    def score(picture: NDArray[np.uint8]) -> float:
        if len(seen) == interrupted:
            raise KeyboardInterrupt
        seen.append(float(picture.mean()))
        return seen[-1]

    interrupted = 1
    with pytest.raises(KeyboardInterrupt):
        bench.scores(lambda: score, 3, kept)
    interrupted = 9
    assert bench.scores(lambda: score, 3, kept).tolist() == seen
    assert seen == [float(picture.mean()) for picture in bench.pictures(3)]


def test_differences_are_those_of_the_scores(bench: ModuleType) -> None:
    found = bench.compared(np.array([0.1, 0.2, 0.3]), np.array([0.1, 0.25, 0.2]))
    assert found["max_difference"] == pytest.approx(0.1)
    assert found["mean_difference"] == pytest.approx(0.05)
    assert found["srocc"] == pytest.approx(0.5)
