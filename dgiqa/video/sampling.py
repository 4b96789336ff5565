"""Times and thumbnails -> which frames of a video are scored, and where its scenes change. No decoder is needed."""

import math
import re
from dataclasses import dataclass
from numbers import Real
from typing import Generic, TypeVar

import cv2
import numpy as np

from dgiqa.dtypes import UInt8

T = TypeVar("T")

THUMB = (64, 36)  # width, height of the luma thumbnails that frames are compared by
EVERY_S = 1.0  # seconds between scored frames, by default
# Containers round timestamps: Matroska to a millisecond. A frame that is early by this much is still the one asked for.
ROUNDING_S = 1e-3
MAX_PER_SCENE = 32  # twice as many decoded frames are held until a scene ends
# A cut: many thumbnail pixels change and so does the distribution of luma. A pan changes only the first of them, a
# flash mostly the second.
CUT_DIFFERENCE = 14.0  # mean |difference| of thumbnails, of 255
CUT_HISTOGRAM = 0.25  # half the L1 distance of 16-bin luma histograms: the share of pixels that changed bin


@dataclass(frozen=True)
class Sampling:
    """Choice of the frames to score. At most one of the first three is given; none means every EVERY_S seconds.

    every: seconds between frames, 0 for all frames. count: frames spread evenly over the whole, whose length must be
    known. per_scene: frames of each scene, spread evenly. start, end: seconds from the video's beginning.
    Raises ValueError for invalid values.
    """

    every: float | None = None
    count: int | None = None
    per_scene: int | None = None
    start: float = 0.0
    end: float = math.inf

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not isinstance(value, Real):
                raise ValueError(f"{name} is {value!r}, wanted a number; times are in seconds")
        if sum(x is not None for x in (self.every, self.count, self.per_scene)) > 1:
            raise ValueError("give only one of every, count and per_scene")
        if self.every is not None and not 0 <= self.every < math.inf:
            raise ValueError(f"every is {self.every:g} s, wanted 0 (all frames) or more")
        if self.count is not None and self.count < 1:
            raise ValueError(f"got {self.count} frames, wanted at least 1")
        if self.per_scene is not None and not 1 <= self.per_scene <= MAX_PER_SCENE:
            raise ValueError(f"got {self.per_scene} frames of each scene, wanted 1 to {MAX_PER_SCENE}")
        if not 0 <= self.start < self.end:
            raise ValueError(
                f"from {self.start:g} s to {self.end:g} s is not a stretch of time, wanted 0 <= start < end"
            )

    def ticks(self, duration_s: float | None, rate: float | None = None) -> "Ticks":
        """The times at which frames are due; for a count, the ones nearest to the middles of equal parts.

        rate: frames per second, if known. Raises ValueError if `count` is wanted over an unknown or empty length.
        """
        if self.count is not None:
            end = min(self.end, math.inf if duration_s is None else duration_s)
            if math.isinf(end):
                raise ValueError("this source does not say how long it is; sample by time, or give an end")
            if end <= self.start:
                raise ValueError(
                    f"it ends at {end:.2f} s, the first frame is wanted at {self.start:g} s; begin earlier"
                )
            step = (end - self.start) / self.count
            half_a_frame = 0.5 / rate if rate else 0.0
            return Ticks(self.start + max(0.0, step / 2 - half_a_frame), step, self.count)
        every = EVERY_S if self.every is None else self.every
        return Ticks(self.start, 0.0 if self.per_scene else every)


class Ticks:
    """Due times start, start + step, ...: the first frame at or after each is taken, once. Step 0 takes every frame."""

    def __init__(self, start: float, step: float, count: float = math.inf) -> None:
        self.start = start
        self.step = step
        self.left = count
        self.target = start or -math.inf  # nothing before this time is of interest; some files begin before 0

    @property
    def over(self) -> bool:
        """Whether no further frame will be due."""
        return self.left <= 0

    def due(self, time_s: float) -> bool:
        """Whether the frame at this time is to be taken; if so, the next one is due a step later."""
        if self.over or time_s + ROUNDING_S < self.target:
            return False
        self.left -= 1
        if self.step:
            # A time on the grid, not one step after the frame: rounding and dropped frames must not add up.
            passed = max(0, math.floor((time_s + ROUNDING_S - self.start) / self.step)) + 1
            self.target = self.start + passed * self.step
        return True


class SceneCuts:
    """Numbers scenes from 0 by comparing each thumbnail, uint8 [36,64], with the one before."""

    def __init__(self) -> None:
        self.scene = 0
        self._last: UInt8 | None = None

    def scene_of(self, thumb: UInt8) -> int:
        """The scene that the next frame belongs to."""
        if self._last is not None and is_cut(self._last, thumb):
            self.scene += 1
        self._last = thumb
        return self.scene


class ScenePicks(Generic[T]):
    """Evenly spread items of a scene whose length is not known yet, holding at most twice as many as wanted."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self._kept: list[T] = []
        self._stride, self._seen = 1, 0

    def add(self, item: T) -> None:
        """Add the scene's next item."""
        if self._seen % self._stride == 0:
            if len(self._kept) == 2 * self.wanted:
                self._kept = self._kept[::2]
                self._stride *= 2
            if self._seen % self._stride == 0:
                self._kept.append(item)
        self._seen += 1

    def take(self) -> list[T]:
        """At most `wanted` items from the middles of equal parts of the scene, in order; begins the next scene."""
        kept, self._kept, self._stride, self._seen = self._kept, [], 1, 0
        n = min(self.wanted, len(kept))
        return [kept[int((i + 0.5) * len(kept) / n)] for i in range(n)]


def thumbnail(rgb: UInt8) -> UInt8:
    """The luma thumbnail of rgb [H,W,3], uint8 [36,64], averaged over areas."""
    return np.asarray(cv2.cvtColor(cv2.resize(rgb, THUMB, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY))


def difference(a: UInt8, b: UInt8) -> float:
    """Mean |a - b| of two thumbnails, 0..255."""
    return float(cv2.absdiff(a, b).mean())


def is_cut(before: UInt8, after: UInt8) -> bool:
    """Whether a scene changes between two thumbnails uint8 [36,64]."""
    if difference(before, after) < CUT_DIFFERENCE:
        return False
    counts = [np.bincount(x.ravel() >> 4, minlength=16) / x.size for x in (before, after)]
    return float(np.abs(counts[0] - counts[1]).sum()) / 2 >= CUT_HISTOGRAM


def seconds(text: str) -> float:
    """A time as people write it: "12", "1.5s", "250ms", "2min", "1h", "01:02:03.5" -> seconds, f >= 0.

    Raises ValueError for anything else.
    """
    units = {"": 1.0, "s": 1.0, "ms": 1e-3, "m": 60.0, "min": 60.0, "h": 3600.0}
    if match := re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)", text.strip().lower()):
        if match[2] in units:
            return float(match[1]) * units[match[2]]
    elif match := re.fullmatch(r"(?:(\d+):)?([0-5]?\d):([0-5]?\d(?:\.\d*)?)", text.strip()):
        return int(match[1] or 0) * 3600 + int(match[2]) * 60 + float(match[3])
    raise ValueError(f"{text!r} is not a time; write 1.5s, 250ms, 2min or 01:02:03.5")
