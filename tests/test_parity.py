"""The sweep over distorted golden images sees what an engine does to scores, and forgives nothing over its budget."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from dgiqa.bundle import Bundle, load_bundle
from dgiqa.parity import BUDGETS, DISTORTIONS, ParityRow, compare, sweep, verify_bundle
from dgiqa.runtime.backends import backends
from dgiqa.score import Score
from dgiqa.scorer import Scorer

pytest.importorskip("onnxruntime")


class Off:
    """A scorer whose scores are moved by `error(number of the call)`."""

    def __init__(self, scorer: Scorer, error, precision: str = "fp32") -> None:  # type: ignore[no-untyped-def]
        self.bundle, self.backend, self.precision = scorer.bundle, "off", precision
        self._scorer, self._error, self._calls = scorer, error, 0

    def score(self, source, **options) -> Score:  # type: ignore[no-untyped-def]
        self._calls += 1
        score = self._scorer.score(source, **options)
        return replace(score, value=score.value + self._error(self._calls))


@pytest.fixture
def reference(tiny_bundle: Bundle) -> Scorer:
    return Scorer(tiny_bundle, backend="onnxruntime", threads=1)


def test_an_engine_that_agrees_passes_with_all_images(reference: Scorer) -> None:
    swept = sweep(reference, reference)
    assert swept.passed
    assert swept.images == 4 * len(DISTORTIONS)
    assert (swept.max_difference, swept.mean_difference, swept.share) == (0, 0, 0)
    assert swept.srocc == pytest.approx(1)
    assert swept.tolerance == BUDGETS["fp32"]
    json.dumps(swept.as_dict(), allow_nan=False)


def test_the_distortions_change_every_picture() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    made = {name: distort(picture) for name, distort in DISTORTIONS.items()}
    assert all(image.shape == picture.shape and image.dtype == np.uint8 for image in made.values())
    assert len({image.tobytes() for image in made.values()}) == len(DISTORTIONS)
    again = {name: distort(picture).tobytes() for name, distort in DISTORTIONS.items()}
    assert again == {name: image.tobytes() for name, image in made.items()}
    for name, share in (("dark 0.5", 0.5), ("dark 0.2", 0.2)):
        np.testing.assert_allclose(made[name], share * picture, atol=0.5)
    for kind, less, more in (("blur", "1.5", "4"), ("noise", "10", "40"), ("jpeg", "30", "8")):
        away = [np.abs(made[f"{kind} {much}"].astype(float) - picture).mean() for much in (less, more)]
        assert away[0] < away[1], kind


def test_one_image_over_budget_fails_and_is_named_first(reference: Scorer) -> None:
    swept = sweep(Off(reference, lambda call: 3e-4 if call == 12 else 5e-5), reference)  # type: ignore[arg-type]
    assert not swept.passed
    assert swept.max_difference == pytest.approx(3e-4)
    assert swept.share == pytest.approx(3)
    assert (swept.worst[0].file, swept.worst[0].distortion) == ("golden/02.png", list(DISTORTIONS)[2])
    assert [row.difference for row in swept.worst] == sorted((row.difference for row in swept.worst), reverse=True)


@pytest.mark.parametrize(("precision", "passes"), [("fp32", False), ("fp16", True), ("int8", True)])
def test_each_precision_has_its_budget(reference: Scorer, precision: str, passes: bool) -> None:
    swept = sweep(Off(reference, lambda call: 1e-3, precision), reference)  # type: ignore[arg-type]
    assert swept.passed is passes
    assert swept.tolerance == BUDGETS[precision]


def test_a_score_that_is_nan_fails(reference: Scorer) -> None:
    swept = sweep(Off(reference, lambda call: math.nan if call == 5 else 0.0), reference)  # type: ignore[arg-type]
    assert not swept.passed
    json.dumps(swept.as_dict(), allow_nan=False)


def test_an_order_turned_round_shows_in_srocc(reference: Scorer) -> None:
    class Turned(Off):
        def score(self, source, **options) -> Score:  # type: ignore[no-untyped-def]
            score = self._scorer.score(source, **options)
            return replace(score, value=1 - score.value)

    assert sweep(Turned(reference, None), reference).srocc == pytest.approx(-1)  # type: ignore[arg-type]


def test_tiles_decide_in_fp32_only() -> None:
    row = ParityRow("golden/01.png", "grid", 0.5, 0.5, 0.0, 3e-2)
    assert not compare("b@0", "e", [row], 2e-2).passed
    reduced = compare("b@0", "e", [row], 2e-2, tiles=False)
    assert reduced.passed
    assert (reduced.max_difference, reduced.max_tile_difference) == (0, 3e-2)
    other_tiling = replace(row, tile_difference=math.inf)
    assert not compare("b@0", "e", [other_tiling], 2e-2, tiles=False).passed


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime-cuda"])
def test_every_backend_here_scores_the_default_bundle_alike(backend: str, need_gpu: Callable[..., None]) -> None:
    if backend == "onnxruntime-cuda":
        need_gpu(backend)
    if backend not in backends():
        pytest.skip(f"{backend} is not available here")
    bundle = load_bundle("small")
    with Scorer(bundle, backend=backend) as scorer:
        report = verify_bundle(bundle, scorer)
    assert report.passed
    assert 0 < report.max_difference < 1e-4
