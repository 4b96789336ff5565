"""Black bars are found to the pixel where there are some, and nowhere else."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from dgiqa import bars

UInt8 = NDArray[np.uint8]


def boxed(photo: UInt8, widths: bars.Bars, level: int = 0) -> UInt8:
    top, bottom, left, right = widths
    return np.pad(photo, ((top, bottom), (left, right), (0, 0)), constant_values=level)


@pytest.fixture
def photo(photos: dict[str, UInt8]) -> UInt8:
    return np.ascontiguousarray(cv2.resize(photos["coffee"], (320, 180), interpolation=cv2.INTER_AREA))


@pytest.mark.parametrize(
    "widths", [(0, 0, 0, 0), (40, 40, 0, 0), (0, 0, 60, 60), (22, 20, 0, 0), (30, 30, 50, 50), (0, 0, 61, 59)]
)
@pytest.mark.parametrize("quality", [None, 90, 30])
def test_bars_are_found_to_the_pixel(photo: UInt8, widths: bars.Bars, quality: int | None) -> None:
    """Coding blurs the border by a pixel or two at most."""
    picture = boxed(photo, widths, level=2)
    if quality:
        ok, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
        assert ok
        picture = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
    assert bars.find(picture) == pytest.approx(widths, abs=0 if quality is None else 2)
    assert bars.crop(picture, widths).shape == photo.shape


def test_what_is_dark_is_no_bar(photo: UInt8) -> None:
    night = np.zeros((200, 300, 3), np.uint8)
    skyline = night.copy()
    skyline[120:] = 90
    moon = np.ascontiguousarray(cv2.circle(night.copy(), (150, 100), 60, (230, 230, 220), -1))
    grainy = np.clip(np.random.default_rng(0).normal(4, 3, (200, 300, 3)), 0, 255).astype(np.uint8)
    dim = boxed(photo // 16, (20, 20, 0, 0))
    uneven = boxed(photo, (5, 60, 0, 0))
    narrow = boxed(photo, (1, 1, 2, 2))
    grey = boxed(photo, (40, 40, 0, 0), level=60)
    for picture in (night, skyline, moon, grainy, dim, uneven, narrow, grey):
        assert bars.find(picture) == bars.NONE


def test_photographs_have_none(photos: dict[str, UInt8]) -> None:
    assert {bars.find(p) for p in photos.values()} == {bars.NONE}


def test_sizes_of_a_few_pixels_have_none() -> None:
    for shape in ((1, 1), (1, 40), (40, 1), (3, 3)):
        for level in (0, 255):
            assert bars.find(np.full((*shape, 3), level, np.uint8)) == bars.NONE


def test_a_tracker_waits_for_light_keeps_bars_in_the_dark_and_gives_up_what_was_light(photo: UInt8) -> None:
    box = (30, 30, 0, 0)
    tracker = bars.Tracker()
    dark, bright = boxed(photo // 16, box), boxed(photo, box)
    assert not tracker.add(dark, 0)
    assert tracker.add(bright, 0)
    assert tracker.bars == box
    assert tracker.add(dark, 1)  # a dark scene keeps the bars of the one before
    assert tracker.bars == box
    assert tracker.add(boxed(photo, (30, 30, 40, 40))[:, 40:-40], 1)
    full = np.ascontiguousarray(cv2.resize(photo, (320, 240)))
    assert tracker.add(full, 1)
    assert tracker.bars == bars.NONE
    tracker.add(bright, 1)  # of the same scene, which was light there
    assert tracker.bars == bars.NONE
    tracker.add(bright, 2)
    assert tracker.bars == box
    assert not tracker.add(np.zeros((90, 120, 3), np.uint8), 3)  # another size
    assert tracker.bars == bars.NONE
