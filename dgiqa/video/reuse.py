"""Which frames of a video may take over the depth image, and the tile scores, of an earlier one; checked as it goes.

Depth is taken over while the luma thumbnail stays close to the one of the frame that the depth was computed for. A
tile's score is taken over while its own pixels, too, stay close to those it was computed from. Every few reuses a frame
is computed both ways: the difference of the two scores, the drift, is reported. If it is above its bound, one depth
image serves half as many frames from there on.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import cv2
import numpy as np

from dgiqa.dtypes import Bool, Float32, Int32, UInt8
from dgiqa.video.frames import Frame
from dgiqa.video.sampling import difference, is_cut

Plan = Literal["fresh", "reuse", "audit"]

MOVED = 2.0  # mean |luma difference| of thumbnails, of 255, up to which the depth image is taken over
LONGEST = 64  # most frames that one depth image serves in addition to its own
CLEAN_AUDITS = 4  # in a row, before a shortened interval is doubled again
BLOCK = 32  # pixels of the working image: a tile differs as much as its worst block
TILE_CHANGED = 4.0  # mean |difference| of a block's levels, of 255, up to which a tile's score is taken over
DETAIL_CHANGED = 0.04  # relative change of a tile's mean gradient up to which its score is taken over


@dataclass(frozen=True)
class Reuse:
    """Settings of reuse: what may be taken over, and how closely that is watched.

    tiles: take over tile scores, too, not only depth. audit: compute every audit-th reused frame both ways. drift:
    bound of |score with reuse - score without|, in score units. moved: see MOVED.
    """

    tiles: bool = False
    audit: int = 16
    drift: float = 0.01
    moved: float = MOVED

    def __post_init__(self) -> None:
        if self.audit < 1 or self.drift <= 0 or self.moved < 0:
            raise ValueError(f"audit must be at least 1 and drift above 0, got {self.audit} and {self.drift:g}")


@dataclass
class Drift:
    """Results of a run's audits. drifts are signed: score with reuse minus score without."""

    audits: int = 0
    total: float = 0.0
    largest: float = 0.0
    tightened: int = 0

    def add(self, drift: float) -> None:
        """Count one audit."""
        self.audits += 1
        self.total += abs(drift)
        self.largest = max(self.largest, abs(drift))

    @property
    def mean(self) -> float | None:
        """Mean |drift|; None without an audit."""
        return self.total / self.audits if self.audits else None


class DepthKeeper:
    """Decides for each frame of one source, in order, whether an earlier frame's depth image serves it.

    tiles: the state of its tiles. anchor: the last job whose depth was computed.
    """

    def __init__(self, reuse: Reuse, drift: Drift) -> None:
        self.reuse, self.drift = reuse, drift
        self.tiles = TileKeeper()
        self.anchor: Any = None
        self.limit = LONGEST
        self._thumb: UInt8 | None = None  # of the last frame whose depth was computed; its picture's shape
        self._size: tuple[int, ...] = ()
        self._served = self._reused = self._clean = 0

    def plan(self, frame: Frame) -> Plan:
        """Decide about the next frame. fresh: compute depth; reuse: take over the last one; audit: both."""
        assert frame.rgb is not None
        assert frame.thumb is not None
        found: Plan = "fresh"
        if self._fits(frame.rgb.shape, frame.thumb) and self._served < self.limit:
            self._served += 1
            self._reused += 1
            if self._reused % self.reuse.audit:
                return "reuse"
            found = "audit"
        self._thumb, self._size, self._served = frame.thumb, frame.rgb.shape, 0
        return found

    def audited(self, drift: float) -> None:
        """Enter the result of an audit; it may come some frames later."""
        self.drift.add(drift)
        self._clean = 0 if abs(drift) > self.reuse.drift else self._clean + 1
        if not self._clean:
            self.limit = max(1, self.limit // 2)
            self.drift.tightened += 1
        elif self._clean % CLEAN_AUDITS == 0:
            self.limit = min(LONGEST, self.limit * 2)

    def _fits(self, shape: tuple[int, ...], thumb: UInt8) -> bool:
        if self._thumb is None or shape != self._size:
            return False
        return difference(self._thumb, thumb) <= self.reuse.moved and not is_cut(self._thumb, thumb)


@dataclass
class TileKeeper:
    """The network's last outputs for each tile of one source, and the pixels that they were computed from.

    known: the network's outputs by name, scores f32 [n] and others f32 [n,columns].
    """

    known: dict[str, Float32] = field(default_factory=dict)
    _pixels: list[UInt8] = field(default_factory=list)

    def unchanged(self, rgb: UInt8, windows: Int32, tile: int) -> Bool:
        """The windows that still show what their scores were computed from: bool [n]. rgb: [h,w,3], working."""
        if len(self._pixels) != len(windows):
            return np.zeros(len(windows), bool)
        cuts = [rgb[y : y + tile, x : x + tile] for y, x in windows.tolist()]
        return np.array([_same(now, before) for now, before in zip(cuts, self._pixels, strict=True)])

    def keep(self, rgb: UInt8, windows: Int32, tile: int, which: Bool) -> None:
        """Remember the pixels of the windows that are about to be computed, bool [n]."""
        if len(self._pixels) != len(windows):
            self._pixels = [np.zeros((0, 0, 3), np.uint8)] * len(windows)
        for i in np.flatnonzero(which).tolist():
            y, x = windows[i].tolist()
            self._pixels[i] = rgb[y : y + tile, x : x + tile].copy()


def _same(now: UInt8, before: UInt8) -> bool:
    """Whether a tile [t,t,3] looks the same: block by block, and in how much detail there is (blur, noise)."""
    if now.shape != before.shape:
        return False
    blocks = max(1, now.shape[0] // BLOCK)
    means = cv2.resize(cv2.absdiff(now, before), (blocks, blocks), interpolation=cv2.INTER_AREA)
    if float(means.mean(axis=2).max()) > TILE_CHANGED:
        return False
    detail = _gradient(before)
    return abs(_gradient(now) - detail) <= DETAIL_CHANGED * max(detail, 1.0)


def _gradient(pixels: UInt8) -> float:
    """Mean |horizontal difference| of neighbouring levels."""
    return float(cv2.absdiff(pixels[:, 1:], pixels[:, :-1]).mean())
