"""Distortions: deterministic, of every type, ordered by level, and where they follow depth on the right side of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from skimage import data
from skimage.metrics import structural_similarity

from recipes.small.distortions import KADID_TYPES, LEVELS, TYPES, distort

Bytes = NDArray[np.uint8]

PHOTOS = {"astronaut": data.astronaut, "coffee": data.coffee, "chelsea": data.chelsea}
# These have nothing to draw: another seed gives the same picture.
SEEDLESS = {
    "gaussian_blur",
    "lens_blur",
    "color_diffusion",
    "color_quantization",
    "color_saturation_1",
    "color_saturation_2",
    "jpeg2000",
    "jpeg",
    "brighten",
    "darken",
    "pixelate",
    "quantization",
    "high_sharpen",
    "contrast_change",
}


@pytest.fixture(scope="module", params=PHOTOS)
def photo(request: pytest.FixtureRequest) -> Bytes:
    return small(PHOTOS[request.param]())


@pytest.fixture(scope="module")
def coffee() -> Bytes:
    return small(data.coffee())


@pytest.fixture(scope="module")
def noise() -> Bytes:
    """The same statistics everywhere, so that only depth can make one half differ from the other."""
    grain = np.random.default_rng(0).integers(0, 256, (128, 128, 3)).astype(np.uint8)
    return np.asarray(cv2.GaussianBlur(grain, (0, 0), 1), np.uint8)


def small(image: Bytes) -> Bytes:
    return np.asarray(cv2.resize(image, (192, 144), interpolation=cv2.INTER_AREA), np.uint8)


def error(image: Bytes, reference: Bytes) -> float:
    return float(np.abs(image.astype(float) - reference).mean())


def dissimilarity(image: Bytes, reference: Bytes) -> float:
    grey, grey_reference = (cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in (image, reference))
    return 1 - float(structural_similarity(grey, grey_reference))


def near_left(shape: tuple[int, ...]) -> NDArray[np.float32]:
    depth = np.zeros(shape[:2], np.float32)
    depth[:, : shape[1] // 2] = 1
    return depth


def halves(kind: str, image: Bytes, level: int = 4) -> tuple[float, float]:
    """Error in the inner part of the near left half and of the far right half."""
    worse, width = distort(image, kind, level, 5, near_left(image.shape)), image.shape[1]
    margin = width // 8  # blur reads across the border between the halves
    near, far = slice(margin, width // 2 - margin), slice(width // 2 + margin, width - margin)
    return error(worse[:, near], image[:, near]), error(worse[:, far], image[:, far])


def test_there_are_kadids_25_types_and_five_more() -> None:
    assert (len(TYPES), len(set(TYPES)), LEVELS) == (30, 30, 5)
    assert TYPES[:25] == KADID_TYPES
    assert (TYPES[0], TYPES[9], TYPES[24], TYPES[25]) == ("gaussian_blur", "jpeg", "contrast_change", "haze")


@pytest.mark.parametrize("kind", TYPES)
def test_levels_are_ordered_and_the_first_is_visible(kind: str, photo: Bytes) -> None:
    for seed in (0, 1):
        worse = [distort(photo, kind, level, seed) for level in range(1, LEVELS + 1)]
        errors = [error(picture, photo) for picture in worse]
        assert errors[0] > 0.1  # grey levels; a change of rounding alone stays far below
        assert np.all(np.diff(errors) > 0), errors
        if not kind.startswith("color_"):  # structure is compared in grey, which sees next to nothing of colour
            losses = [dissimilarity(picture, photo) for picture in worse]
            assert np.all(np.diff(losses) > 0), losses


@pytest.mark.parametrize("kind", TYPES)
def test_same_arguments_give_the_same_bytes_and_leave_the_input_alone(kind: str, coffee: Bytes) -> None:
    image, depth = coffee.copy(), near_left(coffee.shape)
    first, second = distort(image, kind, 3, 11, depth), distort(image, kind, 3, 11, depth)
    assert first.dtype == np.uint8
    assert first.shape == coffee.shape
    assert np.array_equal(first, second)
    assert np.array_equal(image, coffee)
    assert np.array_equal(depth, near_left(coffee.shape))


@pytest.mark.parametrize("kind", TYPES)
def test_another_seed_gives_another_picture_of_every_random_type(kind: str, coffee: Bytes) -> None:
    pictures = {distort(coffee, kind, 3, seed).tobytes() for seed in range(4)}
    assert (len(pictures) == 1) == (kind in SEEDLESS)


@pytest.mark.parametrize("kind", ["impulse_noise", "color_block", "non_eccentricity_patch"])
def test_a_level_keeps_what_the_level_below_it_spoiled(kind: str, coffee: Bytes) -> None:
    for level in range(1, LEVELS):
        mild, strong = distort(coffee, kind, level, 3), distort(coffee, kind, level + 1, 3)
        spoiled = mild != coffee
        assert np.array_equal(strong[spoiled], mild[spoiled])


def test_noise_of_one_seed_is_one_field_scaled(coffee: Bytes) -> None:
    grey = np.full_like(coffee, 128)
    mild, strong = (distort(grey, "white_noise", level, 3).astype(float) - 128 for level in (1, 5))
    assert np.corrcoef(mild.ravel(), strong.ravel())[0, 1] > 0.99
    assert strong.std() / mild.std() == pytest.approx(10**0.5, rel=0.02)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("shape", [(57, 301), (301, 57), (1, 1), (5, 7)])
def test_odd_sizes_keep_their_shape(kind: str, shape: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3)).astype(np.uint8)
    for level in (1, LEVELS):
        assert distort(image, kind, level, 2).shape == image.shape


@pytest.mark.parametrize("kind", TYPES)
def test_flat_pictures_do_not_crash(kind: str) -> None:
    for value in (0, 128, 255):
        assert distort(np.full((40, 60, 3), value, np.uint8), kind, LEVELS, 0).dtype == np.uint8


def test_views_are_as_good_as_copies(coffee: Bytes) -> None:
    mirrored = coffee[:, ::-1]
    for kind in TYPES:
        assert np.array_equal(distort(mirrored, kind, 2, 4), distort(mirrored.copy(), kind, 2, 4)), kind


def test_haze_hides_the_far_half_more(coffee: Bytes) -> None:
    grey = np.full_like(coffee, 30)
    near, far = halves("haze", grey)
    assert 0 < near < far / 2


def test_haze_is_koschmieders_law() -> None:
    """Two pictures under the same haze: their difference is scaled by t = exp(-beta distance), airlight cancels."""
    dark, light = (np.full((8, 8, 3), value, np.uint8) for value in (50, 150))
    far = np.zeros((8, 8), np.float32)
    kept = [
        distort(light, "haze", level, 1, far).astype(int) - distort(dark, "haze", level, 1, far) for level in (1, 5)
    ]
    assert kept[0].mean() == pytest.approx(100 * np.exp(-0.3), abs=1)
    assert kept[1].mean() == pytest.approx(100 * np.exp(-3.0), abs=1)


def test_camera_motion_blurs_near_and_spares_far(noise: Bytes) -> None:
    near, far = halves("depth_motion_blur", noise)
    assert near > 5
    assert far == 0


def test_defocus_blurs_away_from_a_near_focal_plane(noise: Bytes) -> None:
    near, far = halves("depth_defocus", noise)
    assert far > near


def test_without_depth_the_top_is_far(coffee: Bytes) -> None:
    ramp = np.repeat(np.linspace(0, 1, coffee.shape[0], dtype=np.float32)[:, None], coffee.shape[1], axis=1)
    for kind in ("haze", "depth_motion_blur", "depth_defocus"):
        assert np.array_equal(distort(coffee, kind, 3, 9), distort(coffee, kind, 3, 9, ramp))


def test_low_light_is_dark_and_its_noise_follows_the_signal() -> None:
    dark, light = (distort(np.full((64, 64, 3), value, np.uint8), "low_light", 3, 0) / 255 for value in (60, 220))
    assert light.mean() < 0.6 * 220 / 255
    assert (light**2.2).std() > 2 * (dark**2.2).std()  # in linear light, where shot noise grows with the signal


def test_lens_flare_only_adds_light(coffee: Bytes) -> None:
    assert (distort(coffee, "lens_flare", 3, 4).astype(int) - coffee).min() >= -1  # rounding


def test_wrong_arguments_say_what_was_wanted(coffee: Bytes) -> None:
    with pytest.raises(ValueError, match=r"unknown distortion 'fog'.*haze"):
        distort(coffee, "fog", 1, 0)
    for level in (0, 6):
        with pytest.raises(ValueError, match=rf"got level {level}.*1 to 5"):
            distort(coffee, "haze", level, 0)
    images: list[Any] = [coffee[..., 0], coffee.astype(np.float32), np.zeros((0, 4, 3), np.uint8)]
    for image in images:
        with pytest.raises(ValueError, match=r"wanted uint8 \[H,W,3\]"):
            distort(image, "haze", 1, 0)
    with pytest.raises(ValueError, match=r"got depth \[3, 3\].*\[144, 192\]"):
        distort(coffee, "haze", 1, 0, np.zeros((3, 3), np.float32))
    with pytest.raises(ValueError, match="NaN"):
        distort(coffee, "haze", 1, 0, np.full((144, 192), np.nan, np.float32))


def test_torch_is_never_loaded() -> None:
    code = "import sys, recipes.small.distortions; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
