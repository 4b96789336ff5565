"""Packets of an opened container -> the decoded pictures that are due, in order of time.

A group of pictures is held back, compressed, until it is known whether a sample falls into it. A picture that goes into
the decoder and does not come out is a Picture with an error. Time goes on steadily where a container's clock jumps.
"""

import heapq
import logging
import math
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from PIL import Image

from dgiqa.errors import ImageError
from dgiqa.image import jpeg
from dgiqa.image.zeros import LEAST
from dgiqa.video import sei
from dgiqa.video.sampling import Ticks
from dgiqa.video.source import ONLY_LOGGING, Opened, import_av, reason_of
from dgiqa.video.whole import unseen

HELD_BYTES = 64 << 20  # most compressed data held back to see whether a group of pictures is needed
B_FRAMES = ("h264", "hevc")
SEEK_AHEAD_S = 10.0  # for a sample so far ahead the file is not read, but sought
SHORT_S = 1.0  # a stream that ends so much before its declared end was truncated
JUMP_S = 10.0  # FFmpeg's dts_delta_threshold: a clock that steps further has jumped
BACK_S = 0.1  # ... and so has one that goes back by more than this
STUCK = 25  # packets in a row whose time does not advance


@dataclass(eq=False)
class Picture:
    """One decoded picture before sampling: a PyAV frame or an array uint8 [H,W,3], or an error."""

    time_s: float
    number: int | None
    image: Any = None
    error: str = ""
    note: str = ""


class Clock:
    """Makes times of packets go on steadily where the container's clock jumps or goes back, as FFmpeg's program does.

    A step forward by more than JUMP_S is a jump only in containers that are known for it (MPEG-TS, HLS). Elsewhere the
    video has a gap.
    """

    def __init__(self, opened: Opened) -> None:
        base = opened.stream.time_base
        self.tick_s = float(base) if base else 0.0
        self.forward_s = JUMP_S if opened.jumps else math.inf
        self.frame_s = 1 / opened.rate if opened.rate else 0.04
        self.jumped_s = 0.0  # all jumps together
        self.stuck = 0
        self._last: tuple[float, float] | None = None  # time of the packet before, and when it ends
        self._offset = 0  # ticks

    def correct(self, packet: Any) -> float:
        """Move a packet's times by the jumps so far. Returns the seconds that the clock jumped here, mostly 0."""
        jump = 0.0
        if packet.dts is not None and self.tick_s:
            now_s = (packet.dts + self._offset) * self.tick_s
            if self._last is not None:
                last_s, next_s = self._last
                if abs(now_s - next_s) > self.forward_s or now_s + BACK_S < last_s:
                    jump = now_s - next_s
                    self.jumped_s += abs(jump)
                    self._offset -= round(jump / self.tick_s)
                    now_s = (packet.dts + self._offset) * self.tick_s
                self.stuck = self.stuck + 1 if now_s <= last_s else 0
            length_s = (packet.duration or 0) * self.tick_s
            self._last = (now_s, now_s + (length_s or self.frame_s))
        for name in ("pts", "dts") if self._offset else ():
            if (ticks := getattr(packet, name)) is not None:
                setattr(packet, name, ticks + self._offset)
        return jump

    def restart(self) -> None:
        """After a seek the next packet may have any time."""
        self._last = None


class Numbers:
    """The index of a picture in its file: how many pictures come before it in order of time, decoded or not."""

    def __init__(self) -> None:
        self._ahead: list[tuple[int, bool]] = []  # times of packets, and whether each may be a second field
        self._passed = 0
        self.fields = False  # whether pictures are interlaced, so that two packets may be one picture

    def add(self, pts: int, *, second_field: bool) -> None:
        """Add a packet that holds a picture."""
        heapq.heappush(self._ahead, (pts, second_field))

    def of(self, pts: int) -> int:
        """The number of the picture at this time. Times are asked for in order."""
        while self._ahead and self._ahead[0][0] < pts:
            self._pass()
        number = self._passed
        if self._ahead and self._ahead[0][0] == pts:
            self._pass()
        return number

    def _pass(self) -> None:
        self._passed += not (heapq.heappop(self._ahead)[1] and self.fields)


class Decoding:
    """Packets of one container -> pictures, without those that no sample needs.

    ticks: only this object moves them. end_s: no later picture is given.
    """

    def __init__(self, opened: Opened, ticks: Ticks, end_s: float) -> None:
        self.opened = opened
        self.stream = opened.stream
        self.ticks = ticks
        self.end_s = end_s
        # AVI, ASF and MXF without an index store no times of pictures. Those that FFmpeg makes up for the B-frames of
        # H.264 and HEVC go back and forth, but are right as a set, so each picture takes the lowest that is left.
        self.made_up = opened.format in ("avi", "mxf", "asf") and opened.codec in B_FRAMES
        self.seekable = opened.indexed
        self.length_s = opened.duration_s or math.inf
        self.origin_s = opened.origin_s
        self.clock = Clock(opened)
        self.numbers: Numbers | None = None if self.made_up else Numbers()
        self.sent: list[int] = []  # timestamps that went into the decoder and have not come out
        self.second: set[int] = set()  # the ones among `sent` that belong to second fields
        self.before: Any = None  # the packet before, as (time, whether it may be a second field)
        self.floor: int | None = None  # timestamp of the first key frame since the decoder was empty
        self.packets = 0
        self.number: int | None = 0  # of the next frame, if packets do not give it
        self.last_s = -1.0
        self.step_s = 1 / 25  # between the last two pictures, for those without timestamps
        self.damage = ""
        self.note = ""

    def pictures(self) -> Iterator[Picture]:
        """The pictures that are due, up to the end asked for, with errors; the last is an error if it ended early."""
        for picture in self._all():
            if picture.time_s > self.end_s:
                return
            if self.ticks.due(picture.time_s):
                picture.note, self.note = self.note, ""
                yield picture
            if self.ticks.over:
                return

    def _all(self) -> Iterator[Picture]:
        av = import_av()
        if self.seekable and self.ticks.target > 0:
            self._seek(self.ticks.target)
        ended = ""
        try:
            yield from self._decoded()
        except (av.FFmpegError, OSError, ValueError) as error:
            ended = f"reading stopped: {reason_of(error, self.opened.timeout_s)}{self._hint()}"
        yield from self._lost(None)
        if not ended and self.clock.stuck > STUCK:
            ended = f"the timestamps stand still after {max(self.last_s, 0.0):.2f} s, so the rest was not read"
        if not ended and not self.opened.live and self._short():
            ended = (
                f"the video ends at {max(self.last_s, 0.0):.2f} s of {self.opened.duration_s:.2f} s: it is truncated"
            )
        if not ended and self.opened.path and not self.ticks.over and self.last_s <= self.end_s:
            ended = unseen(self.opened.path, self.opened.format, None if self.clock.jumped_s else self.stream.id)
            if not ended and self.opened.format == "gif":
                ended = _damage_of_gif(self.opened.path)
        if not ended and not self.packets:
            ended = "there is no frame in it"
        if ended:
            yield Picture(max(self.last_s, self.ticks.target, 0.0), None, error=ended)

    def _decoded(self) -> Iterator[Picture]:
        """Decode packets, one group of pictures after the other.

        A picture needs the earlier ones of its group, and none of another group. So packets wait until one of their
        group reaches the sample that is due (then all are decoded) or the next group begins (then none are). For 1080p
        with groups of 2 s, a frame every 5 s takes 0.46x of the time of decoding all, every 10 s 0.25x.
        """
        held: list[Any] = []
        holding, size = True, 0
        position = -1.0
        for packet in self._packets():
            time_s = self._time(self._stamp(packet))
            skippable = time_s is not None and not self.opened.live
            if packet.is_keyframe and skippable:
                assert time_s is not None
                if held and time_s <= self.ticks.target:
                    self._forget(held)
                    held, size = [], 0
                far = self.ticks.target - time_s > SEEK_AHEAD_S and self.ticks.target < self.length_s
                if far and self.seekable and time_s > position and not held:
                    position = time_s
                    if self._seek(self.ticks.target):
                        continue
                holding = True
            self._count(packet)
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

    def _packets(self) -> Iterator[Any]:
        """The demuxer's packets, with times that go on steadily."""
        for packet in self.opened.container.demux(self.stream):
            if packet.size == 0:  # the end
                return
            if not self.made_up and (jump := self.clock.correct(packet)):
                self.note = f"the file's clock jumps by {jump:+.2f} s here; time goes on"
            yield packet

    def _count(self, packet: Any) -> None:
        """Count a packet for the numbers of pictures. In H.264 it may be the second field of the packet before."""
        if packet.pts is None:
            self.numbers = None
        second = False
        if self.opened.codec == "h264" and packet.pts is not None:
            length_s = (packet.duration or 0) * self.clock.tick_s
            short = 0 < length_s < 0.75 * self.opened.frame_s
            follows = self.before is not None and packet.pts == self.before[0] + packet.duration
            second = short and follows and not self.before[1]
            self.before = (packet.pts, second)
            if second:
                self.second.add(packet.pts)
        hidden = self.opened.codec == "vp8" and packet.size and not bytes(packet)[0] & 0x10
        if self.numbers is not None and not packet.is_discard and not hidden:
            self.numbers.add(packet.pts, second_field=second)

    def _decode(self, packet: Any) -> Iterator[Picture]:
        """Decode one packet; None decodes what the decoder still holds."""
        av = import_av()
        if packet is not None:
            self.packets += 1
            if self.opened.codec == "webp" and bytes(packet)[30:34] == b"ANIM":
                yield self._next(None, None, "FFmpeg cannot read animated WebP; save it as WebM, APNG or GIF")
                return
            self._expect(packet)
            if self.opened.codec == "hevc":
                packet = sei.without_damage(packet, self.opened.decoder)
        try:
            if packet is not None and _zeroed(bytes(packet), self.opened.codec):
                raise av.InvalidDataError(0, "zero bytes in place of its data")
            with _said(self.opened.codec) as said:
                frames = self.opened.decoder.decode(packet)
        except av.FFmpegError as error:
            self.damage = f"a damaged packet: {error.strerror or error}"
            if self.made_up and self.sent:
                yield self._next(heapq.heappop(self.sent), None, self.damage)
            elif packet is not None and packet.pts is None:  # a stream without times: no other check would miss it
                yield self._next(None, None, self.damage)
            return
        for frame in frames:
            pts = self.sent[0] if self.made_up and self.sent else frame.pts
            if frame.interlaced_frame and self.numbers is not None:
                self.numbers.fields = True
            if pts is not None:
                yield from self._lost(pts)
            if frame.key_frame:
                self.damage = ""
            damage = "the decoder marked this frame as corrupt: a damaged packet" if frame.is_corrupt else ""
            damage = f"a damaged packet: {said[0][2].strip()}" if said else damage
            yield self._next(pts, None if damage else frame, damage)

    def _stamp(self, packet: Any) -> Any:
        """A packet's time in the container's ticks. In AVI, as a set, decoding times begin at 0, the others at 1."""
        by_dts = packet.pts is None or (self.opened.format == "avi" and self.made_up and packet.dts is not None)
        return packet.dts if by_dts else packet.pts

    def _expect(self, packet: Any) -> None:
        """Remember which timestamps must come out, except those that need pictures before the first key frame."""
        if packet.pts is None or packet.is_discard or self.opened.codec == "vp8":  # VP8 has packets that are not shown
            return
        stamp = self._stamp(packet)
        if self.floor is None and packet.is_keyframe:
            self.floor = stamp
        if self.floor is not None and stamp >= self.floor:
            heapq.heappush(self.sent, stamp)

    def _lost(self, until: int | None) -> Iterator[Picture]:
        """The timestamps before `until` that went in and never came out."""
        while self.sent and (until is None or self.sent[0] <= until):
            pts = heapq.heappop(self.sent)
            second = pts in self.second and self.numbers is not None and self.numbers.fields
            self.second.discard(pts)
            if pts != until and not (second and not self.damage):
                yield self._next(pts, None, self.damage or "the decoder gave no picture for this packet")

    def _flush(self) -> None:
        """Drop everything inside the decoder."""
        self.opened.decoder.flush_buffers()
        self.sent.clear()
        self.second.clear()
        self.floor, self.damage = None, ""

    def _next(self, pts: int | None, frame: Any, error: str) -> Picture:
        if self.opened.container.start_time is None and not self.opened.live and self.last_s < 0 and pts is not None:
            self.origin_s = float(pts * self.stream.time_base)  # for a stream without a container
        time_s = self._time(pts)
        if time_s is None:
            time_s = self._guessed_time()
        elif self.last_s >= 0:
            self.step_s = max(time_s - self.last_s, 0.0) or self.step_s
        self.last_s = max(self.last_s, time_s)
        return Picture(time_s, self._numbered(pts, time_s), frame, error)

    def _numbered(self, pts: int | None, time_s: float) -> int | None:
        """A picture's index. After a seek it is estimated from time and rate, and then counted on."""
        if self.number is None:
            self.number = round(time_s * self.opened.rate) if self.opened.rate else None
        elif self.numbers is not None and pts is not None:
            self.number = self.numbers.of(pts)
        number = self.number
        self.number = None if number is None else number + 1
        return number

    def _guessed_time(self) -> float:
        """Seconds of a picture without a timestamp. RTSP's first one has none, and comes before FFmpeg's start time."""
        step_s = 1 / self.opened.rate if self.opened.rate else self.step_s
        if self.last_s >= 0:
            return self.last_s + step_s
        if self.opened.format == "rtsp" and self.stream.start_time is not None:
            self.origin_s -= step_s
        return 0.0

    def _forget(self, held: list[Any]) -> None:
        """Drop a whole group of pictures that nothing is sampled from."""
        in_decoder = len(self.sent)
        self._flush()
        self.packets += len(held)
        if self.number is not None:
            self.number += len(held) + in_decoder
        self.last_s = max([self.last_s, *(self._time(p.pts) or 0.0 for p in held[-1:])])

    def _seek(self, time_s: float) -> bool:
        av = import_av()
        try:
            self.opened.container.seek(int((time_s + self.origin_s) * 1e6), backward=True)
        except av.FFmpegError:
            self.seekable = False
            return False
        self._flush()
        self.clock.restart()
        self.number, self.numbers = None, None
        return True

    def _time(self, pts: int | None) -> float | None:
        if pts is None or self.stream.time_base is None:
            return None
        return float(pts * self.stream.time_base) - self.origin_s

    def _hint(self) -> str:
        """A hint: from a pipe, or a server without range requests, an MP4 needs its index at the beginning."""
        if self.last_s >= 0 or self.seekable or "mp4" not in self.opened.format:
            return ""
        where = "in a pipe" if self.opened.pipe is not None else "from a server without range requests"
        return f"; an MP4 {where} needs its index first: ffmpeg -i in.mp4 -c copy -movflags +faststart out.mp4"

    def _short(self) -> bool:
        """Whether the demuxer ended well before the declared end, and the sampling did not end it."""
        declared = self.opened.duration_s
        if declared is None or self.clock.jumped_s or self.ticks.over or self.end_s < declared:
            return False
        return declared - self.last_s > max(SHORT_S, 0.02 * declared, 2 / (self.opened.rate or 25.0))


class _Loud:
    """FFmpeg logs errors inside the `with` block. Its level is the process's, so threads that overlap share one change.

    What other threads' decoders log meanwhile goes to the logger "libav", which prints nothing unless it is asked to.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._level = threading.Lock(), 0, None
        logging.getLogger("libav").addHandler(logging.NullHandler())

    def __enter__(self) -> None:
        log = import_av().logging
        with self._lock:
            if not self._inside:
                self._level = log.get_level()
                log.set_level(log.ERROR)
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                import_av().logging.set_level(self._level)


_LOUD = _Loud()


@contextmanager
def _said(codec: str) -> Iterator[list[tuple[int, str, str]]]:
    """FFmpeg's log of errors meanwhile, as (level, name, message), for codecs that report damage in no other way."""
    if codec not in ONLY_LOGGING:
        yield []
        return
    with _LOUD, import_av().logging.Capture() as said:  # of this thread: such decoders run in it
        yield said


def _damage_of_gif(path: str) -> str:
    """Pillow's error for a GIF that it cannot read to its end, where FFmpeg shows something; "" for others."""
    number = 0
    try:
        with Image.open(path) as image:
            while True:
                image.seek(number)
                image.load()
                number += 1
    except EOFError:
        return ""
    except Exception as error:  # Pillow raises many types on damaged data
        return f"damaged from picture {number} on: {error}"


def _zeroed(packet: bytes, codec: str) -> bool:
    """Whether zero bytes replaced a packet's data. Decoders take them for pixels.

    H.264 and HEVC write three of them in a row only before a start code and at a packet's end.
    """
    at = packet.find(bytes(LEAST))
    if at < 0:
        return False
    if codec in B_FRAMES:
        return re.search(rb"\0{%d}[^\0\1]" % LEAST, packet[at:]) is not None
    if codec != "mjpeg":
        return False
    try:
        jpeg.inspect(packet)
    except ImageError:
        return True
    return False
