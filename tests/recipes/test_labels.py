"""Full-reference metrics: higher is better, and they fall with severity."""

import numpy as np
import pytest
import skimage.data

pytest.importorskip("torch", reason="the metrics are PyTorch's")

from recipes.small.distortions import LEVELS, distort
from recipes.small.labels import METRICS, full_reference


@pytest.fixture(scope="module")
def photograph():
    return np.ascontiguousarray(skimage.data.coffee()[100:292, 100:356])


def test_every_metric_falls_as_blur_rises(photograph):
    blurred = np.stack([distort(photograph, "gaussian_blur", level, 0) for level in range(1, LEVELS + 1)])
    values = full_reference(photograph, blurred)
    assert values.shape == (LEVELS, len(METRICS))
    assert (np.diff(values, axis=0) < 0).all()


def test_the_pristine_picture_beats_every_distorted_one(photograph):
    pair = np.stack([photograph, distort(photograph, "jpeg", 1, 0)])
    pristine, coded = full_reference(photograph, pair)
    assert (pristine > coded).all()


def test_pictures_that_cannot_be_compared_are_refused(photograph):
    with pytest.raises(ValueError, match="equal sizes"):
        full_reference(photograph, np.zeros((1, 192, 255, 3), np.uint8))


def test_an_unknown_metric_is_named(photograph):
    with pytest.raises(ValueError, match="psnr_hvs"):
        full_reference(photograph, photograph[None], ("psnr_hvs",))
