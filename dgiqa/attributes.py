"""Pixels become measured attributes, and attributes become a note where the model was not made for such a picture.

The attributes can be measured without a model: sharpness, noise, brightness, contrast, colour, blocks. They explain the
score and are no part of it. They cost a few milliseconds at any size: those that need the picture's own pixels look at
512 x 512 of them, and the rest look at the picture reduced by area.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np

from dgiqa.dtypes import Float64, UInt8

SHORT_SIDE = 336  # of the reduced picture, pixels, as for the default model
PATCH = 256  # side of each of the four parts that are looked at in the picture's own pixels; a multiple of 8
CLIPPED = 3  # levels from either end of 0..255
FLAT, WEAK, STRONG = 3, 40, 60  # levels between a pixel's neighbours: at most, below, at least

# bench/notes.py counts how many photographs of a folder get a note that they should not.
UNIFORM = 0.04  # contrast: what a covered lens and a wall leave, noise included
GREY = 4.0  # mean distance of a pixel's channels, levels: JPEG leaves up to 2 in a grey picture
TEXT = {"palette": 0.65, "dominant": 0.3, "edges": 0.12, "framed": 0.05}  # all of them above
# (all of these above, texture below): a picture full of edges, the same after strong compression, sparse lines.
GRAPHICS = (
    ({"palette": 0.5, "framed": 0.5, "edges": 0.01}, 0.25),
    ({"palette": 0.5, "framed": 0.35, "edges": 0.01}, 0.12),
    ({"palette": 0.6, "framed": 0.9, "edges": 0.0005}, 0.04),
)
FEW = {"palette": 0.98, "flat": 0.9}  # of eight colours, as test charts are
ONE_COLOUR = 0.7  # share of the commonest one: with more, it may be a night sky


@dataclass(frozen=True)
class Attributes:
    """Measurements of one picture.

    width, height: pixels. sharpness: natural logarithm of the standard deviation of the Laplacian of the reduced
    picture's brightness, levels of 255; ordinary photographs have 1.5 to 4. noise: its standard deviation, from second
    differences, levels (Immerkaer 1996, by the median). brightness: mean, 0..1. dark_clipped,
    bright_clipped: share of pixels at the ends, 0..1. contrast: between the 1st and 99th percentile of brightness,
    0..1. colourfulness: Hasler and Suesstrunk 2003; 0 is grey, above 80 is garish. blockiness: how much larger steps
    are across the borders of 8 x 8 blocks than elsewhere; 0 is none, JPEG at quality 20 gives about 1. entropy: of
    brightness, bits, 0..8. flat: share of pixels whose neighbours are all alike, 0..1. greyscale: whether it has no
    colour. palette: share of the eight commonest colours; dominant: of the commonest one; edges: share of pixels at
    strong steps; framed: share of those with a flat place next to them; texture: share of pixels with weak steps, all
    0..1.
    """

    width: int
    height: int
    sharpness: float
    noise: float
    brightness: float
    dark_clipped: float
    bright_clipped: float
    contrast: float
    colourfulness: float
    blockiness: float
    entropy: float
    flat: float
    greyscale: bool
    palette: float
    dominant: float
    edges: float
    framed: float
    texture: float

    def as_dict(self) -> dict[str, float | int | bool]:
        """Rounded to four decimals, ready for JSON."""
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items()}


def measure(rgb: UInt8, reduced: UInt8 | None = None) -> Attributes:
    """The attributes of a picture, uint8 [H,W,3] RGB.

    reduced: the picture reduced by area to a short side of SHORT_SIDE, if it exists already: making it takes long.
    """
    height, width = rgb.shape[:2]
    small = _reduced(rgb) if reduced is None else reduced
    grey = np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), np.uint8)
    levels = _histogram([grey])
    low, high = np.searchsorted(levels.cumsum(), (0.01, 0.99))
    colourfulness, apart = _colour(small)
    native: dict[str, Any] = _native(rgb)
    return Attributes(
        width=width,
        height=height,
        sharpness=math.log(max(cv2.meanStdDev(cv2.Laplacian(grey, cv2.CV_16S))[1].item(), 1e-3)),
        brightness=float(levels @ np.arange(256)) / 255,
        dark_clipped=float(levels[:CLIPPED].sum()),
        bright_clipped=float(levels[256 - CLIPPED :].sum()),
        contrast=float(high - low) / 255,
        entropy=float(-(levels * np.log2(np.maximum(levels, 1e-12))).sum()),
        colourfulness=colourfulness,
        greyscale=bool(apart < GREY),
        **native,
    )


def kind_of(a: Attributes) -> str:
    """The kind of picture that the model was not made for: "uniform", "text", "graphics", "greyscale"; "" for others.

    Greyscale photographs are scored like any other; they get a note because the missing colour is not judged.
    """
    if a.contrast < UNIFORM:
        return "uniform"
    if _above(a, TEXT):
        return "text"
    if any(_above(a, least) and a.texture < most for least, most in GRAPHICS):
        return "graphics"
    if _above(a, FEW) and a.dominant < ONE_COLOUR:
        return "graphics"
    return "greyscale" if a.greyscale else ""


NOTES = {
    "uniform": "almost uniform, nothing to judge",
    "text": "looks like text, scores are for photographs",
    "graphics": "looks like a screenshot or drawing, scores are for photographs",
    "greyscale": "greyscale",
}


def note_of(a: Attributes, others: Sequence[str] = ()) -> str:
    """One line about what the score does not cover; "" if there is nothing to say.

    others: notes from elsewhere (decoding, bars), which come first.
    """
    kind = kind_of(a)
    return "; ".join([*others, *([NOTES[kind]] if kind else [])])


def _above(a: Attributes, least: Mapping[str, float]) -> bool:
    return all(getattr(a, name) > value for name, value in least.items())


def _reduced(rgb: UInt8) -> UInt8:
    """The picture reduced by area to a short side of SHORT_SIDE, never enlarged: uint8 [h,w,3]."""
    height, width = rgb.shape[:2]
    scale = SHORT_SIDE / min(height, width)
    if scale >= 1:
        return rgb
    size = (round(width * scale), round(height * scale))
    return np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)


def _histogram(pictures: Sequence[UInt8]) -> Float64:
    """Share of each level in uint8 [h,w] pictures: f64 [256]."""
    counts = np.sum([cv2.calcHist([picture], [0], None, [256], [0, 256]) for picture in pictures], 0, np.float64)
    return np.asarray(counts.ravel() / counts.sum())  # [256,1] in older versions


def _colour(rgb: UInt8) -> tuple[float, float]:
    """(colourfulness, mean distance of the channels in levels)"""
    r, g, b = (rgb[::2, ::2, i].astype(np.float32) for i in range(3))  # a quarter of them is enough
    rg, yb = r - g, (r + g) / 2 - b
    spread, offset = math.hypot(rg.std(), yb.std()), math.hypot(rg.mean(), yb.mean())
    return spread + 0.3 * offset, float(np.abs(rg).mean() + np.abs(yb).mean())


def _native(rgb: UInt8) -> dict[str, float]:
    """Attributes that need the picture's own pixels."""
    pieces = _parts(rgb)
    parts = [np.asarray(cv2.cvtColor(piece, cv2.COLOR_RGB2GRAY), np.uint8) for piece in pieces]
    ranges = [np.asarray(cv2.morphologyEx(grey, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))) for grey in parts]
    steps = _histogram(ranges)
    edges = float(steps[STRONG:].sum())
    framed = sum(map(_framed, ranges)) / sum(r.size for r in ranges)
    colours = _colour_shares(pieces)
    return {
        "noise": _noise(parts),
        "blockiness": _blockiness(parts),
        "flat": float(steps[0]),
        "palette": float(colours.sum()),
        "dominant": float(colours[0]),
        "edges": edges,
        "framed": framed / edges if edges else 0.0,
        "texture": float(steps[FLAT + 1 : WEAK].sum()),
    }


def _framed(ranges: UInt8) -> int:
    """Pixels at strong steps with a flat place within four pixels."""
    beside = np.asarray(cv2.dilate((ranges <= FLAT).view(np.uint8), np.ones((9, 9), np.uint8)))
    return int(np.count_nonzero((ranges >= STRONG).view(np.uint8) & beside))


def _parts(rgb: UInt8) -> list[UInt8]:
    """The picture, or four parts of a larger one, around a quarter and three quarters of each side; on whole blocks."""
    height, width = rgb.shape[:2]
    if max(height, width) <= 2 * PATCH:
        return [rgb]

    def starts(side: int) -> list[int]:
        if side <= 2 * PATCH:
            return [0, max(0, side - PATCH) // 8 * 8][: 1 + (side > PATCH)]
        return [max(0, side * k // 4 - PATCH // 2) // 8 * 8 for k in (1, 3)]

    return [np.ascontiguousarray(rgb[y : y + PATCH, x : x + PATCH]) for y in starts(height) for x in starts(width)]


def _colour_shares(parts: Sequence[UInt8]) -> Float64:
    """Shares of the eight commonest colours in steps of 8 levels, commonest first: f64 [8], or fewer."""
    thinned = [rgb[::2, ::2] >> 3 for rgb in parts]  # a quarter of the pixels is enough
    r, g, b = (np.concatenate([rgb[..., i].ravel() for rgb in thinned]).astype(np.uint16) for i in range(3))
    counts = np.bincount(r << 10 | g << 5 | b)  # OpenCV's histogram of three channels takes three times as long
    return np.asarray(np.sort(counts[counts > 0])[:-9:-1] / len(r))


_SECOND = np.array([1, -2, 1], np.float32)  # differences, along both axes


def _noise(parts: Sequence[UInt8]) -> float:
    """The noise's deviation: the median of |second differences| is the noise's own if less than half is texture."""
    found = [cv2.convertScaleAbs(cv2.sepFilter2D(grey, cv2.CV_16S, _SECOND, _SECOND))[1:-1, 1:-1] for grey in parts]
    inner = [np.ascontiguousarray(each) for each in found if each.size]
    median = np.searchsorted(_histogram(inner).cumsum(), 0.5) if inner else 0
    return float(median) / 0.6745 / 6


def _blockiness(parts: Sequence[UInt8]) -> float:
    """Mean step across borders of 8 x 8 blocks over the mean step elsewhere, less 1, at least 0."""
    across, elsewhere = [], []
    for grey in parts:
        for lines in (grey, grey.T):
            steps = np.abs(np.diff(lines.astype(np.int16), axis=0)).mean(1)  # step i is between lines i and i + 1
            border = np.arange(len(steps)) % 8 == 7
            across.append(steps[border])
            elsewhere.append(steps[~border])
    borders, others = np.concatenate(across), np.concatenate(elsewhere)
    if not borders.size or not others.size or not others.mean() > 0:
        return 0.0
    return max(0.0, float(borders.mean() / others.mean()) - 1)
