"""Attributes move as the pixels do, and notes name what is no photograph."""

from __future__ import annotations

from dataclasses import fields

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dgiqa.attributes import NOTES, SHORT_SIDE, Attributes, kind_of, measure, note_of

Photo = NDArray[np.uint8]
SENTENCE = "the quick brown fox jumps over the lazy dog and runs away from all of them"
WORDS = SENTENCE.split()


@pytest.fixture(scope="module")
def photo(photos: dict[str, Photo]) -> Photo:
    return photos["coffee"]


def noisy(rgb: Photo, sd: float) -> Photo:
    return np.clip(rgb + np.random.default_rng(0).normal(0, sd, rgb.shape), 0, 255).round().astype(np.uint8)


def jpeg(rgb: Photo, quality: int) -> Photo:
    data = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])


def drawn(kind: str) -> Photo:
    image = Image.new("RGB", (1000, 700), "white" if kind != "dark window" else (32, 34, 40))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(18)
    ink = "black" if kind != "dark window" else (220, 220, 220)
    if kind in ("page", "dark window"):
        for line in range(24):
            draw.text((30, 20 + 27 * line), " ".join(WORDS[(line * 5 + i) % len(WORDS)] for i in range(16)), ink, font)
    if kind == "dark window":
        draw.rectangle((0, 0, 1000, 40), (60, 90, 200))
    if kind == "chart":
        draw.line([(80, 20), (80, 650), (980, 650)], "black", 2)
        for i in range(9):
            draw.rectangle((120 + 95 * i, 600 - 60 * (i % 5), 180 + 95 * i, 648), (40 * i % 256, 120, 200), "black")
            draw.text((130 + 95 * i, 660), WORDS[i], "black", font)
    if kind == "drawing":
        for i in range(40):
            x, y, r = (i * 397) % 1000, (i * 211) % 700, 20 + (i * 37) % 120
            draw.ellipse((x - r, y - r, x + r, y + r), (i * 53 % 256, i * 91 % 256, i * 17 % 256), "black", 3)
    return np.asarray(image)


def test_each_attribute_answers_to_its_own_fault(photo: Photo) -> None:
    plain = measure(photo)
    assert measure(cv2.GaussianBlur(photo, (0, 0), 4)).sharpness < plain.sharpness - 0.5
    for sd in (5, 15):
        assert measure(noisy(np.full_like(photo, 128), sd)).noise == pytest.approx(0.669 * sd, rel=0.1)  # of the luma
    assert measure((photo * 0.2).astype(np.uint8)).brightness == pytest.approx(0.2 * plain.brightness, rel=0.05)
    assert measure(np.clip(photo * 8.0, 0, 255).astype(np.uint8)).bright_clipped > plain.bright_clipped + 0.2
    assert measure((photo // 4 + 96).astype(np.uint8)).contrast < 0.3 * plain.contrast
    assert measure(jpeg(photo, 10)).blockiness > plain.blockiness + 0.5
    grey = np.repeat(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)[..., None], 3, 2)
    assert (measure(grey).greyscale, plain.greyscale) == (True, False)
    assert measure(grey).colourfulness < 1 < plain.colourfulness
    assert plain.entropy > measure(drawn("chart")).entropy


def test_noise_is_that_of_the_pixels_not_of_the_subject() -> None:
    steps = np.zeros((256, 256, 3), np.uint8)
    steps[:, 128:] = 200
    assert measure(steps).noise == 0
    assert measure(noisy(steps, 8)).noise > 2


@pytest.mark.parametrize("kind", ["page", "dark window", "chart", "drawing"])
@pytest.mark.parametrize("stored", ["as it is", "jpeg 85", "jpeg 60", "smaller"])
def test_what_is_drawn_is_told_from_photographs(kind: str, stored: str) -> None:
    picture = drawn(kind)
    if stored.startswith("jpeg"):
        picture = jpeg(picture, int(stored[-2:]))
    if stored == "smaller":
        picture = np.asarray(cv2.resize(picture, None, fx=0.7, fy=0.7, interpolation=cv2.INTER_AREA), np.uint8)
    assert kind_of(measure(picture)) in ("text", "graphics")


def test_a_test_chart_is_no_photograph() -> None:
    bars = np.kron(np.arange(8), np.ones((480, 80))).astype(np.uint8)
    chart = np.stack([255 * (bars >> shift & 1) for shift in range(3)], axis=-1).astype(np.uint8)
    assert kind_of(measure(chart)) == "graphics"


@pytest.mark.parametrize("fault", ["none", "blur", "noise", "jpeg 8", "dark", "bright", "small", "tall"])
def test_photographs_get_no_note(photos: dict[str, Photo], fault: str) -> None:
    for name in ("astronaut", "coffee", "chelsea"):
        changed = {
            "none": lambda p: p,
            "blur": lambda p: cv2.GaussianBlur(p, (0, 0), 6),
            "noise": lambda p: noisy(p, 40),
            "jpeg 8": lambda p: jpeg(p, 8),
            "dark": lambda p: (p * 0.25).astype(np.uint8),
            "bright": lambda p: np.clip(p * 2.0, 0, 255).astype(np.uint8),
            "small": lambda p: np.ascontiguousarray(p[::4, ::4]),
            "tall": lambda p: cv2.resize(p, (300, 1400)),
        }[fault](photos[name])
        assert note_of(measure(changed)) == "", name


def test_what_has_nothing_in_it_is_uniform() -> None:
    covered = noisy(np.full((480, 640, 3), 6, np.uint8), 5)
    for picture in (np.zeros((64, 64, 3), np.uint8), np.full((9, 300, 3), 255, np.uint8), covered):
        assert kind_of(measure(picture)) == "uniform"


def test_grey_photographs_are_named_so_after_jpeg_as_well(photo: Photo) -> None:
    grey = np.repeat(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)[..., None], 3, 2)
    assert note_of(measure(jpeg(grey, 50))) == NOTES["greyscale"]
    assert note_of(measure(grey), ["bars left out"]) == "bars left out; greyscale"


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (7, 3), (40, 2000), (3000, 40), (520, 100)])
def test_any_size_is_measured(shape: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    found = measure(picture)
    assert (found.height, found.width) == shape
    assert all(np.isfinite(getattr(found, field.name)) for field in fields(Attributes))
    assert set(found.as_dict()) == {field.name for field in fields(Attributes)}


def test_a_reduced_picture_at_hand_gives_the_same(photo: Photo) -> None:
    large = cv2.resize(photo, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
    scale = SHORT_SIDE / min(large.shape[:2])
    size = (round(large.shape[1] * scale), SHORT_SIDE)
    assert measure(large, cv2.resize(large, size, interpolation=cv2.INTER_AREA)) == measure(large)
