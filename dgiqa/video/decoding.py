"""Packets of an opened container -> decoded pictures in order of time, leaving out what no sample needs.

A group of pictures is held back, compressed, until it is known whether a sample falls into it. What went into the
decoder and did not come out is a Picture with an error.
"""

from __future__ import annotations

import heapq
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgiqa.errors import BackendError
from dgiqa.video.colour import Turn
from dgiqa.video.sampling import Ticks

if TYPE_CHECKING:
    from dgiqa.video.frames import Video

HELD_BYTES = 64 << 20  # most compressed data held back to see whether a group of pictures is needed
B_FRAMES = ("h264", "hevc")
INDEXED = ("mov", "matroska", "avi", "asf", "ogg", "nut")  # not mpegts, mpeg, flv or streams without a container
SEEK_AHEAD_S = 10.0  # a sample so far ahead is sought, not read up to
SHORT_S = 1.0  # a stream that ends so much before its declared end was truncated


@dataclass(eq=False)
class Picture:
    """One decoded picture before sampling: a PyAV frame or an array uint8 [H,W,3], or an error.

    turn: as `colour.turn_of` gives it, where the image does not carry it.
    """

    time_s: float
    number: int | None
    image: Any = None
    error: str = ""
    turn: Turn | None = None


class Decoding:
    """Packets of one container -> pictures, leaving out what no sample needs."""

    def __init__(self, video: Video, ticks: Ticks, end_s: float) -> None:
        self.video = video
        self.stream = video._stream
        self.container = video._container
        self.ticks = ticks
        self.end_s = end_s
        # AVI stores no timestamps, and those that FFmpeg makes up for the B-frames of H.264 and HEVC go back and forth:
        # as a set they are right, so that each picture takes the lowest that is left
        self.made_up = self.container is not None and self.container.format.name == "avi" and video.codec in B_FRAMES
        self.seekable = isinstance(video._source, str | Path) and os.path.isfile(video._source) and self._indexed()
        self.length_s = video.duration_s or math.inf
        self.sent: list[int] = []  # timestamps that went into the decoder and have not come out
        self.floor: int | None = None  # timestamp of the first key frame since the decoder was empty
        self.packets = 0
        self.number: int | None = 0  # of the next frame
        self.last_s = -1.0
        self.step_s = 1 / 25  # between the last two pictures, for those without timestamps
        self.damage = ""

    def _indexed(self) -> bool:
        """Whether seeking is exact. Elsewhere FFmpeg guesses and may land behind the group that is sought."""
        names = self.container.format.name.split(",") if self.container is not None else []
        return any(name in INDEXED for name in names)

    def pictures(self) -> Iterator[Picture]:
        av = import_av()
        if self.seekable and self.ticks.target > 0:
            self._seek(self.ticks.target)
        ended = ""
        try:
            yield from self._decoded()
        except (av.FFmpegError, OSError, ValueError) as error:
            ended = f"reading stopped: {reason_of(error, self.video.timeout_s)}{self._hint()}"
        yield from self._lost(None)
        if not ended and not self.video.live and self._short():
            ended = f"the video ends at {max(self.last_s, 0.0):.2f} s of {self.video.duration_s:.2f} s: it is truncated"
        if not ended and self.last_s < 0 and not self.packets:
            ended = "there is no frame in it"
        if ended:
            yield Picture(max(self.last_s, self.ticks.target), None, error=ended)

    def _decoded(self) -> Iterator[Picture]:
        """Everything from the demuxer, group of pictures by group of pictures."""
        assert self.container is not None
        held: list[Any] = []
        holding, size = True, 0
        position = -1.0
        for packet in self.container.demux(self.stream):
            if packet.size == 0:  # the end
                break
            time_s = self._time(packet.pts if packet.pts is not None else packet.dts)
            skippable = time_s is not None and not self.video.live
            if packet.is_keyframe and skippable:
                assert time_s is not None
                if held and time_s <= self.ticks.target:
                    self._forget(held)
                    held, size = [], 0
                far = self.ticks.target - time_s > SEEK_AHEAD_S and self.ticks.target < self.length_s
                if far and self.seekable and time_s > position and not held:
                    position = time_s
                    self._seek(self.ticks.target)
                    continue
                holding = True
            held.append(packet)
            size += packet.size
            if not skippable or time_s > self.ticks.target or size > HELD_BYTES:  # type: ignore[operator]
                holding = False
            if not holding:
                for waiting in held:
                    yield from self._decode(waiting)
                held, size = [], 0
            if time_s is not None and packet.dts is not None:
                dts_s = self._time(packet.dts)
                if self.ticks.over or (dts_s is not None and dts_s > self.end_s):
                    break
        for packet in (*held, None):
            yield from self._decode(packet)

    def _decode(self, packet: Any) -> Iterator[Picture]:
        """One packet, or None for what the decoder still holds."""
        av = import_av()
        if packet is not None:
            self.packets += 1
            self._expect(packet)
        try:
            frames = self.stream.codec_context.decode(packet)
        except av.FFmpegError as error:
            self.damage = f"a damaged packet: {error.strerror or error}"
            if self.made_up and self.sent:
                yield self._next(heapq.heappop(self.sent), None, self.damage)
            return
        for frame in frames:
            pts = self.sent[0] if self.made_up and self.sent else frame.pts
            if pts is not None:
                yield from self._lost(pts)
            if frame.key_frame:
                self.damage = ""
            if frame.is_corrupt:
                yield self._next(pts, None, "the decoder marked this frame as corrupt")
            else:
                yield self._next(pts, frame, "")

    def _expect(self, packet: Any) -> None:
        """Remember which timestamps must come out. Not those that need what is before the first key frame."""
        if packet.pts is None or packet.is_discard or self.video.codec == "vp8":  # which has packets never shown
            return
        if self.floor is None and packet.is_keyframe:
            self.floor = packet.pts
        if self.floor is not None and packet.pts >= self.floor:
            heapq.heappush(self.sent, packet.pts)

    def _lost(self, until: int | None) -> Iterator[Picture]:
        """The timestamps before `until` that went in and never came out."""
        while self.sent and (until is None or self.sent[0] <= until):
            pts = heapq.heappop(self.sent)
            if pts != until:
                yield self._next(pts, None, self.damage or "the decoder gave no picture for this packet")

    def _flush(self) -> None:
        """Forget what is inside the decoder."""
        self.stream.codec_context.flush_buffers()
        self.sent.clear()
        self.floor, self.damage = None, ""

    def _next(self, pts: int | None, frame: Any, error: str) -> Picture:
        time_s = self._time(pts)
        if time_s is None:
            time_s = self._guessed_time()
        elif self.last_s >= 0:
            self.step_s = max(time_s - self.last_s, 0.0) or self.step_s
        if self.number is None:
            self.number = round(time_s * self.video.rate) if self.video.rate else None
        number = self.number
        self.number = None if number is None else number + 1
        self.last_s = max(self.last_s, time_s)
        return Picture(time_s, number, frame, error)

    def _guessed_time(self) -> float:
        """Seconds of a picture without a timestamp. RTSP's first one has none, and comes before FFmpeg's start time."""
        step_s = 1 / self.video.rate if self.video.rate else self.step_s
        if self.last_s >= 0:
            return self.last_s + step_s
        assert self.container is not None
        if self.container.format.name == "rtsp" and self.stream.start_time is not None:
            self.video.origin_s -= step_s
        return 0.0

    def _forget(self, held: list[Any]) -> None:
        """A whole group of pictures that nothing is sampled from."""
        in_decoder = len(self.sent)
        self._flush()
        self.packets += len(held)
        if self.number is not None:
            self.number += len(held) + in_decoder
        self.last_s = max([self.last_s, *(self._time(p.pts) or 0.0 for p in held[-1:])])

    def _seek(self, time_s: float) -> None:
        av = import_av()
        assert self.container is not None
        try:
            self.container.seek(int((time_s + self.video.origin_s) * 1e6), backward=True)
        except av.FFmpegError:
            self.seekable = False
            return
        self._flush()
        self.number = None

    def _time(self, pts: int | None) -> float | None:
        if pts is None or self.stream.time_base is None:
            return None
        return float(pts * self.stream.time_base) - self.video.origin_s

    def _hint(self) -> str:
        """An MP4 is read from a pipe, or a server that gives no parts, only if its index stands at its beginning."""
        if self.last_s >= 0 or self.seekable or self.container is None or "mp4" not in self.container.format.name:
            return ""
        where = "in a pipe" if self.video._pipe is not None else "from a server without range requests"
        return f"; an MP4 {where} needs its index first: ffmpeg -i in.mp4 -c copy -movflags +faststart out.mp4"

    def _short(self) -> bool:
        """Whether the demuxer ended well before the declared end, and the sampling did not end it."""
        declared = self.video.duration_s
        if declared is None or self.ticks.over or self.end_s < declared:
            return False
        return declared - self.last_s > max(SHORT_S, 0.02 * declared, 2 / (self.video.rate or 25.0))


def import_av() -> Any:
    """PyAV, or BackendError that says how to get it."""
    try:
        import av
    except ImportError as error:
        raise BackendError(f'video needs PyAV ({error}); pip install "dgiqa-rt[video]"') from error
    return av


def reason_of(error: Exception, timeout_s: float | None) -> str:
    """FFmpeg's reason in a few words. An interrupted read is how a timeout shows."""
    text = getattr(error, "strerror", None) or str(error)
    if type(error).__name__ in ("ExitError", "TimeoutError") or "mmediate exit" in text:
        return stalled(timeout_s)
    return f"{text} ({type(error).__name__})"


def stalled(timeout_s: float | None) -> str:
    """What a timeout means."""
    waited = f" for {timeout_s:g} s" if timeout_s else ""
    return f"nothing arrived{waited}; the source has stalled"
