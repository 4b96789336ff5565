"""bench/engines.py: engines in processes of their own take turns, and one that computes something else shows."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
import untrained
from subjects import Subject

import engines
from dgiqa import spec
from dgiqa.builder.precision import load_model, to_half
from dgiqa.bundle import Bundle


@pytest.fixture
def subjects(tiny_bundle: Bundle, tmp_path: Path) -> Iterator[dict[str, Subject]]:
    """The tiny bundle's quality network as the baseline, as itself, and rounded to float16."""
    exact, rounded = tiny_bundle.file(spec.QUALITY_FILE), tmp_path / "rounded.onnx"
    rounded.write_bytes(to_half(load_model(exact)).SerializeToString())
    with ExitStack() as stack:
        started = {}
        for name, path in ((engines.BASELINE, exact), ("same", exact), ("rounded", rounded)):
            engine = json.dumps({"path": str(path), "backend": "onnxruntime", "precision": "fp32"})
            started[name] = stack.enter_context(Subject([sys.executable, engines.__file__, "--serve", engine]))
        yield started


def test_engines_take_turns_and_are_compared_with_the_baseline(
    subjects: dict[str, Subject], tiny_bundle: Bundle
) -> None:
    (case, feeds), *more = engines.cases("small", "quality", [2, 20], tiny_bundle.preprocess)
    assert [case["batch"], *(case["batch"] for case, _ in more)] == [2, 20]
    assert {len(array) for array in more[0][1].values()} == {20}
    found = engines.measured(lambda: subjects, feeds, Namespace(quick=True, seconds=None))["results"]
    by_name = {row["name"]: row for row in found}
    assert list(by_name) == list(subjects)
    assert all(row["samples"] == 3 and row["ms"]["median"] > 0 for row in found)
    assert by_name["same"]["max_difference"] == 0
    assert by_name["rounded"]["max_difference"] > 0


def test_depth_is_measured_at_the_sizes_that_its_network_sees(tiny_bundle: Bundle) -> None:
    shapes = [feeds[spec.DEPTH_INPUT].shape for _, feeds in engines.cases("full", "depth", [], spec.Preprocess())]
    assert shapes == [(1, 3, 518, 518), (1, 3, 518, 686)]


def test_untrained_networks_are_the_same_every_time_and_their_scores_differ(
    photos: dict[str, NDArray[np.uint8]],
) -> None:
    torch = pytest.importorskip("torch")
    first, again = (untrained.modules("small")[spec.QUALITY_FILE] for _ in range(2))
    crops = [photo[:224, :224] for photo in photos.values()]
    tiles = torch.from_numpy(np.stack(crops).transpose(0, 3, 1, 2).astype("f") / 128 - 1)
    with torch.no_grad():
        scores = first(tiles, tiles.flip(0))
        assert torch.equal(scores, again(tiles, tiles.flip(0)))
    assert scores.std() > 0.01
