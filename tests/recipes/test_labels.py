"""Full-reference metrics -> pseudo-MOS: higher is better, no metric rules, levels are in order."""

import numpy as np
import pytest
import skimage.data

from recipes.small.distortions import LEVELS, distort
from recipes.small.labels import (
    CHECK_METRICS,
    LEVEL_GAP,
    METRICS,
    LabelScale,
    fit_scale,
    full_reference,
    order_levels,
)


@pytest.fixture(scope="module")
def photograph():
    return np.ascontiguousarray(skimage.data.coffee()[100:292, 100:356])


def test_every_metric_falls_as_blur_rises(photograph):
    blurred = np.stack([distort(photograph, "gaussian_blur", level, 0) for level in range(1, LEVELS + 1)])
    values = full_reference(photograph, blurred, (*METRICS, *CHECK_METRICS))
    assert values.shape == (LEVELS, len(METRICS) + len(CHECK_METRICS))
    assert (np.diff(values, axis=0) < 0).all()


def test_the_pristine_picture_beats_every_distorted_one(photograph):
    pair = np.stack([photograph, distort(photograph, "jpeg", 1, 0)])
    pristine, coded = full_reference(photograph, pair)
    assert (pristine > coded).all()


@pytest.mark.parametrize(("shape", "message"), [((1, 192, 255, 3), "equal sizes"), ((1, 160, 160, 3), "at least 161")])
def test_pictures_that_cannot_be_compared_are_refused(photograph, shape, message):
    reference = np.zeros(shape[1:], np.uint8) if "161" in message else photograph
    with pytest.raises(ValueError, match=message):
        full_reference(reference, np.zeros(shape, np.uint8))


def test_an_unknown_metric_is_named(photograph):
    with pytest.raises(ValueError, match="psnr_hvs"):
        full_reference(photograph, photograph[None], ("psnr_hvs",))


def test_the_scale_of_a_metric_does_not_matter():
    rng = np.random.default_rng(0)
    quality = rng.random(400)
    values = np.stack([quality + rng.normal(0, 0.05, 400), quality + rng.normal(0, 0.05, 400)], 1)
    cells = rng.integers(0, 20, 400)
    stretched = np.stack([np.exp(5 * values[:, 0]), values[:, 1]], 1)
    labels, same = fit_scale(values, cells)(values), fit_scale(stretched, cells)(stretched)
    np.testing.assert_allclose(labels, same, atol=0.02)  # between two knots the curves are straight


def test_labels_spread_evenly_and_follow_quality():
    rng = np.random.default_rng(1)
    quality = rng.random(1000)
    values = np.stack([quality, quality**3], 1)
    labels = fit_scale(values, np.zeros(1000, np.int64))(values)
    np.testing.assert_allclose(np.sort(labels), (np.arange(1000) + 0.5) / 1000, atol=0.01)
    assert (np.argsort(labels, kind="stable") == np.argsort(quality)).mean() > 0.99


def test_a_frequent_distortion_weighs_no_more_than_a_rare_one():
    good, bad = np.full((900, 1), 0.9) + np.arange(900)[:, None] * 1e-5, np.full((100, 1), 0.1)
    bad = bad + np.arange(100)[:, None] * 1e-5
    values, cells = np.concatenate([good, bad]), np.repeat([0, 1], [900, 100])
    labels = fit_scale(values, cells)(values)
    assert labels[:900].min() > 0.49
    assert labels[900:].max() < 0.51


def test_a_stored_scale_gives_the_same_labels(tmp_path):
    values = np.random.default_rng(2).random((50, 3))
    scale = fit_scale(values, np.zeros(50, np.int64))
    scale.save(tmp_path / "scale.json")
    np.testing.assert_array_equal(LabelScale.load(tmp_path / "scale.json")(values), scale(values))


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        ([0.9, 0.7, 0.5, 0.3, 0.1], [0.9, 0.7, 0.5, 0.3, 0.1]),
        ([0.9, 0.4, 0.6, 0.3, 0.1], [0.9, 0.5, 0.5 - LEVEL_GAP, 0.3, 0.1]),
    ],
)
def test_levels_are_put_in_order(labels, wanted):
    np.testing.assert_allclose(order_levels(np.array(labels)), wanted)


def test_any_labels_end_up_falling_inside_the_range():
    ordered = order_levels(np.random.default_rng(3).random((500, LEVELS)))
    assert (np.diff(ordered, axis=-1) <= -LEVEL_GAP + 1e-12).all()
    assert 0 <= ordered.min() <= ordered.max() <= 1
    assert (np.diff(order_levels(np.zeros((1, LEVELS)))) < 0).all()
