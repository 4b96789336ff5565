"""An encoded video compared with its master: the same frames of both, found by time, and the drop of each.

    both ─► thumbnails of the first seconds, and of the last ─► offset, and how it drifts
    encoded ─► sampled frames ─┐
    master ──► frame nearest to each one's time ─► Comparison ─► rows, and the mean drop with its interval

Both are decoded and converted alike, with black bars kept. An encoded frame of another size is resized to its master's.
"""

import math
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import cv2
import numpy as np

from dgiqa.compare import compare
from dgiqa.dtypes import UInt8
from dgiqa.errors import DgiqaError, ImageError
from dgiqa.forward import Stages
from dgiqa.report.rows import Row, clock, row_of
from dgiqa.video.frames import Frame, Video
from dgiqa.video.sampling import Sampling, difference
from dgiqa.video.source import Reading, VideoSource, name_of

LOOK_S = 6.0  # seconds at each end of both videos that the offset is found from
MAX_OFFSET_S = 2.0
SURE = 0.8  # an offset must reduce the difference to this share; in still pictures none does
Z95 = 1.96

Thumbs = list[tuple[float, UInt8]]  # time, luma uint8 [36,64]
_opened = partial(Video, reading=Reading(bars="keep"))


@dataclass(frozen=True)
class Alignment:
    """Where an encoded video's frames are in its master. offset_s: to add to their times; drift: the seconds by which
    it grows per second."""

    offset_s: float = 0.0
    drift: float = 0.0

    def master_s(self, time_s: float) -> float:
        """The master's time for an encoded frame's time."""
        return time_s + self.offset_s + self.drift * time_s

    def __str__(self) -> str:
        drift = f", drifting by {1000 * self.drift:+.1f} ms a second" if self.drift else ""
        return f"{self.offset_s:+.3f} s{drift}"


@dataclass
class Lost:
    """Sums over the pairs of a run. drops: of each frame, in order; full_reference: of those that have one."""

    total: int | None = None
    failed: int = 0
    drops: list[float] = field(default_factory=list)
    full_reference: list[float] = field(default_factory=list)

    @property
    def scored(self) -> int:
        """Frames that were compared."""
        return len(self.drops)

    @property
    def mean(self) -> float | None:
        """Mean drop."""
        return float(np.mean(self.drops)) if self.drops else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Ends of the mean drop's 95 % interval over frames; None for fewer than two."""
        if len(self.drops) < 2:
            return None
        mean, half = float(np.mean(self.drops)), Z95 * float(np.std(self.drops, ddof=1)) / math.sqrt(len(self.drops))
        return mean - half, mean + half

    def add(self, row: Row) -> None:
        """Count one row."""
        if row["drop"] is None:
            self.failed += 1
            return
        self.drops.append(row["drop"])
        if row["full_reference"] is not None:
            self.full_reference.append(row["full_reference"])

    def progress(self) -> tuple[float | None, list[str]]:
        """No share, as it is not known, and a text for the progress line."""
        return None, [f"{self.scored} frames compared"]

    def as_dict(self, *, complete: bool) -> dict[str, Any]:
        """Ready for JSON."""
        near = float(np.mean(self.full_reference)) if self.full_reference else None
        facts = {"complete": complete, "scored": self.scored, "failed": self.failed, "mean_drop": self.mean}
        return facts | {"drop_interval_95": self.interval, "mean_full_reference": near}


def compare_videos(
    stages: Stages,
    encoded: VideoSource,
    master: VideoSource,
    sampling: Sampling | None = None,
    *,
    alignment: Alignment | None = None,
) -> Generator[Row]:
    """A row (`report.rows`, kind "pair") per sampled frame of the encoded video and its master's.

    alignment: by default `align` finds it. A frame that is missing in either video is a row with an error.
    Raises ImageError if one of them is no video, BackendError without PyAV.
    """
    name, original = name_of(encoded), name_of(master)
    found = align(encoded, master) if alignment is None else alignment
    with _opened(encoded) as video, _opened(master) as source:
        nearest = _Nearest(source.frames(Sampling(every=0)), source.opened.frame_s)
        for frame in video.frames(sampling or Sampling()):
            wanted = found.master_s(frame.time_s)
            try:
                if frame.rgb is None:
                    raise ImageError(frame.error)
                beside = nearest.at(wanted)
                if beside is None or beside.rgb is None:
                    why = beside.error if beside is not None else "it has no frame there"
                    raise ImageError(f"{original} at {clock(max(wanted, 0))} ({wanted:.3f} s): {why}")
                row = _compared(stages, frame.rgb, beside.rgb, name, original)
            except DgiqaError as error:
                row = row_of("pair", path=name, reference=original, status="error", error=str(error), **stages.origin)
            yield row | {"time_s": round(frame.time_s, 6)}


def align(encoded: VideoSource, master: VideoSource) -> Alignment:
    """The offset between two videos, from thumbnails of their first LOOK_S seconds, and its drift, from their last."""
    with _opened(encoded) as video, _opened(master) as source:
        lengths = [v.opened.duration_s for v in (video, source)]
        step = max(video.opened.frame_s, source.opened.frame_s) or 0.04
    offset = offset_of(_thumbs(encoded, 0, LOOK_S), _thumbs(master, 0, LOOK_S + MAX_OFFSET_S), step)
    if None in lengths or min(lengths) < 3 * LOOK_S:  # type: ignore[type-var,operator]
        return Alignment(offset)
    late = min(lengths) - LOOK_S - MAX_OFFSET_S  # type: ignore[type-var,operator]
    there = _thumbs(master, max(0.0, late - MAX_OFFSET_S), late + LOOK_S + MAX_OFFSET_S)
    after = offset_of(_thumbs(encoded, late, late + LOOK_S), there, step, near=offset)
    moved = after - offset
    return Alignment(offset, 0.0 if abs(moved) <= step else moved / late)


def offset_of(encoded: Thumbs, master: Thumbs, step: float, near: float = 0.0) -> float:
    """Seconds to add to the encoded frames' times, at most MAX_OFFSET_S from `near`, so that their thumbnails match the
    master's. It is `near` if no other is clearly closer, as in a still picture. step: seconds of a frame."""
    if not encoded or not master:
        return near
    times = np.array([time for time, _ in master])
    half = 0.5 * step
    count = math.floor(MAX_OFFSET_S / half)
    lags = sorted((near + half * i for i in range(-count, count + 1)), key=lambda lag: abs(lag - near))
    costs = {}
    for lag in lags:
        pairs = [
            difference(thumb, master[index][1])
            for time, thumb in encoded
            if abs(times[index := int(np.abs(times - time - lag).argmin())] - time - lag) <= half
        ]
        if len(pairs) >= max(2, len(encoded) // 3):
            costs[lag] = float(np.mean(pairs))
    if not costs:
        return near
    best = min(costs, key=costs.__getitem__)
    # Neighbouring lags may pick the same frames: the middle of those that do is the offset.
    same = [lag for lag in costs if abs(lag - best) <= step and costs[lag] <= costs[best] + 1e-9]
    return float(np.mean(same)) if costs[best] < SURE * costs.get(near, math.inf) else near


class _Nearest:
    """The frame of a video that is nearest to a time; times are asked for in order."""

    def __init__(self, frames: Iterator[Frame], frame_s: float) -> None:
        self._frames = frames
        self._within = max(1.5 * frame_s, 0.05)
        self._last: Frame | None = None
        self._next: Frame | None = None

    def at(self, time_s: float) -> Frame | None:
        """The nearest frame; None if it is more than a frame and a half (at least 0.05 s) away."""
        while self._next is None or self._next.time_s < time_s:
            following = next(self._frames, None)
            if following is None:
                break
            self._last, self._next = self._next, following
        there = [frame for frame in (self._last, self._next) if frame is not None]
        best = min(there, key=lambda frame: abs(frame.time_s - time_s), default=None)
        return best if best is not None and abs(best.time_s - time_s) <= self._within else None


def _compared(stages: Stages, picture: UInt8, reference: UInt8, name: str, original: str) -> Row:
    note = ""
    if picture.shape != reference.shape:
        note = f"{picture.shape[1]} x {picture.shape[0]} enlarged or reduced to its master's size"
        size = reference.shape[1], reference.shape[0]
        method = cv2.INTER_AREA if reference.size < picture.size else cv2.INTER_CUBIC
        picture = np.asarray(cv2.resize(picture, size, interpolation=method), np.uint8)
    row = compare(stages, picture, reference, name=name, reference_name=original).as_row()
    return row | {"note": "; ".join(filter(None, (row["note"], note))) or None}


def _thumbs(source: VideoSource, start_s: float, end_s: float) -> Thumbs:
    with _opened(source) as video, closing(video.frames(Sampling(every=0, start=start_s, end=end_s))) as frames:  # type: ignore[type-var]
        return [(frame.time_s, frame.thumb) for frame in frames if frame.thumb is not None]
