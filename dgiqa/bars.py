"""Pictures -> the black bars around them (letterbox, pillarbox): how many rows and columns show no picture.

A bar is black to its outer edge, ends at a straight border, and has a counterpart on the opposite side. A night sky, an
object on a black ground and a dark scene do not look like that, so their pixels stay.
"""

import cv2
import numpy as np

from dgiqa.dtypes import Bool, UInt8

Bars = tuple[int, int, int, int]  # rows at the top and the bottom, columns at the left and the right

NONE: Bars = (0, 0, 0, 0)
BLACK = 24  # of 255: no level in a bar is above this, except a few that coding left there
RINGING = 16  # rows next to the border into which coding spreads the picture
LIGHT = 40  # of 255: a level above this belongs to the picture
BORDER = 0.4  # least share of a line just inside the border that is light
SPECKS = 0.05  # most of a line just outside the border that is light
BORDER_ROWS = 4  # lines within which light begins: a soft edge, or rows lost to chroma subsampling
LEAST = 0.01  # of the side: anything narrower is an edge, not a bar
UNEVEN = 0.5  # the narrower bar of a pair is at least this share of the wider


def find(rgb: UInt8) -> Bars:
    """The black bars of a picture, uint8 [H,W,3]: (top, bottom, left, right) in pixels, all 0 where there are none."""
    return find_in(light(rgb))


def light(rgb: UInt8) -> UInt8:
    """The highest channel of each pixel: uint8 [H,W] of rgb [H,W,3]. Bars are black in all of them."""
    red, green, blue = cv2.split(rgb)
    return np.asarray(cv2.max(cv2.max(red, green), blue))


def find_in(levels: UInt8) -> Bars:
    """`find` for the levels that `light` gives, uint8 [H,W]; for several pictures, pass their maximum."""
    top, bottom = _pair(levels)
    left, right = _pair(levels[top : len(levels) - bottom].T)
    if not (top or bottom):  # columns beside a picture may hide its rows
        top, bottom = _pair(levels[:, left : levels.shape[1] - right])
    return (top, bottom, left, right)


def crop(picture: UInt8, bars: Bars) -> UInt8:
    """The picture [H,W,...] without its bars, a view."""
    top, bottom, left, right = bars
    return picture[top : len(picture) - bottom, left : picture.shape[1] - right]


def is_dark_at_edges(levels: UInt8) -> bool:
    """Whether two opposite edges of uint8 [H,W] are black, so that there could be bars."""
    pairs = ((levels[:1], levels[-1:]), (levels.T[:1], levels.T[-1:]))
    return any(_is_black(a).all() and _is_black(b).all() for a, b in pairs)


class Tracker:
    """The bars of a video, from its pictures in order.

    Within a scene they only shrink: what was once light is no bar. A dark scene keeps the bars of the one before.
    """

    def __init__(self) -> None:
        self.bars = NONE
        self._scene: int | None = None
        self._seen: UInt8 | None = None  # the lightest level of each pixel since the scene began

    def add(self, rgb: UInt8, scene: int) -> bool:
        """Look at the next picture, uint8 [H,W,3]. False while it is too dark to tell whether there are bars."""
        levels = light(rgb)
        if self._seen is None or self._scene != scene or self._seen.shape != levels.shape:
            if self._seen is not None and self._seen.shape != levels.shape:
                self.bars = NONE
            self._scene, self._seen = scene, levels
        else:
            self._seen = np.asarray(cv2.max(self._seen, levels))
        if not is_dark_at_edges(self._seen):
            self.bars = NONE
            return True
        found = find_in(self._seen)
        if found == NONE and _still_black(self._seen, self.bars):
            return self.bars != NONE
        self.bars = found
        return found != NONE


def _pair(levels: UInt8) -> tuple[int, int]:
    """Rows of the bars at the top and the bottom of uint8 [H,W]; 0 and 0 unless there are two alike."""
    height = len(levels)
    if not height or not levels.shape[1]:
        return 0, 0
    first, last = _bar(levels), _bar(levels[::-1])
    if min(first, last) < max(2, LEAST * height) or first + last >= height:
        return 0, 0
    return (first, last) if min(first, last) >= UNEVEN * max(first, last) else (0, 0)


def _bar(levels: UInt8) -> int:
    """Rows of the bar at the top of uint8 [H,W]; 0 without a straight border where it ends."""
    black = _is_black(levels)
    rows = 0 if black.all() else int(np.argmin(black))
    if not rows:
        return 0
    lit = (levels[rows : rows + RINGING + BORDER_ROWS] > LIGHT).mean(axis=1)
    begin = int(np.argmax(lit > SPECKS))  # the first line with more light than coding spreads
    return rows + begin if begin <= RINGING and lit[begin : begin + BORDER_ROWS].max() >= BORDER else 0


def _is_black(levels: UInt8) -> Bool:
    """Which rows of uint8 [H,W] are black, up to one pixel in a hundred: bool [H]."""
    return np.asarray((levels > BLACK).mean(axis=1) <= 0.01)


def _still_black(levels: UInt8, bars: Bars) -> bool:
    top, bottom, left, right = bars
    height, width = levels.shape
    sides = (levels[:top], levels[height - bottom :], levels[:, :left].T, levels[:, width - right :].T)
    return all(_is_black(side).mean() > 0.9 for side in sides if side.size)
