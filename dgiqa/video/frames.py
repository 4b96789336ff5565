"""A video (file, address, pipe, raw frames) -> the sampled frames, upright RGB with their timestamps, one at a time.

    packets -> (groups of pictures that nothing is sampled from are dropped undecoded) -> decoder -> pictures
            -> due by time, or evenly spread over a scene -> RGB

PyAV decodes. A frame that cannot be decoded is a Frame with an error, and reading goes on; what ends the reading early
is one as well. Memory does not depend on the length: at most one group of compressed pictures is held, and, when
sampling by scenes, twice as many pictures as are wanted of each.
"""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from dgiqa.errors import ImageError
from dgiqa.video import colour, sampling
from dgiqa.video.decoding import Decoding, Picture, import_av, reason_of, stalled
from dgiqa.video.sampling import Sampling, SceneCuts, ScenePicks, Ticks

if TYPE_CHECKING:
    from av.container import InputContainer

UInt8 = NDArray[np.uint8]
VideoSource = str | Path | BinaryIO

STDIN = "-"
MAX_RATE = 1000.0  # frames per second; above it is a clock's rate
ATTACHED_PICTURE = 0x400  # FFmpeg's AV_DISPOSITION_ATTACHED_PIC
TIMEOUT_S = 10.0  # an address that sends nothing for so long has stalled
_ADDRESS = re.compile(r"(https?|rtsps?|rtmps?|srt|udp|rtp|tcp)://", re.IGNORECASE)
_ALWAYS_LIVE = re.compile(r"(rtsps?|rtmps?|srt|udp|rtp|tcp)://", re.IGNORECASE)
# What a file or an address may make FFmpeg open in its turn: a playlist from the network reaches no local file.
_LOCAL_PROTOCOLS = "file,crypto,data"
_NETWORK_PROTOCOLS = "http,https,tcp,udp,tls,rtp,rtsp,rtsps,rtmp,rtmps,srt,crypto,data,httpproxy"


@dataclass(frozen=True)
class Raw:
    """Frames without a container: width x height pixels at `rate` frames per second, "rgb24" or "yuv420p".

    yuv420p is BT.709 from 720 lines on, else BT.601, in limited range.
    """

    width: int
    height: int
    rate: float
    layout: Literal["rgb24", "yuv420p"] = "rgb24"

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame."""
        luma = self.width * self.height
        return 3 * luma if self.layout == "rgb24" else luma * 3 // 2

    @classmethod
    def parse(cls, text: str) -> Raw:
        """WIDTHxHEIGHT@RATE[:LAYOUT], as in 1280x720@25 or 1920x1080@30000/1001:yuv420p. Raises ValueError."""
        match = re.fullmatch(r"(\d{1,5})x(\d{1,5})@(\d+(?:\.\d+)?)(?:/(\d+))?(?::(rgb24|yuv420p))?", text)
        if not match:
            raise ValueError(f"{text!r} describes no raw frames; write WIDTHxHEIGHT@RATE[:rgb24|yuv420p]: 1280x720@25")
        width, height, rate = int(match[1]), int(match[2]), float(match[3]) / int(match[4] or 1)
        layout: Any = match[5] or "rgb24"
        if not (width and height and rate) or (layout == "yuv420p" and (width % 2 or height % 2)):
            raise ValueError(f"{text!r}: sizes and rate must be above 0, and sizes even for yuv420p")
        return cls(width, height, rate, layout)


@dataclass(frozen=True, eq=False)
class Frame:
    """One sampled frame, or why there is none.

    time_s: seconds from the video's beginning, by the stream's own timestamps. number: counted from 0; after a seek,
    estimated from the mean frame rate. scene: counted from 0. rgb: uint8 [H,W,3], upright, None with an error.
    thumb: luma, uint8 [36,64], not upright. note: what to know about the picture (interlaced, tone-mapped).
    """

    source: str
    time_s: float
    number: int | None
    rgb: UInt8 | None = field(default=None, repr=False)
    thumb: UInt8 | None = field(default=None, repr=False)
    scene: int = 0
    error: str = ""
    note: str = ""


class RefusedError(ImageError):
    """A source that trying again would not help: it has no video, wants a password, or is sampled in a wrong way."""


class Video:
    """An opened video. A context manager; frames are read once.

    source: a path, an http(s), HLS, RTSP, RTMP, SRT or UDP address, "-" (a container on standard input) or an open
    binary file, which need not seek. raw: it holds frames without a container. name: what frames call their source.
    timeout_s: an address that sends nothing for so long is given up. decoder: "cpu", or "nvdec" (dgiqa.video.nvdec).
    Raises ImageError if there is no video in it, BackendError if a decoder is missing.

    duration_s, rate, width, height: as declared, None where unknown. live: whether it ends is not known.
    codec, colour: names for people.
    """

    def __init__(
        self,
        source: VideoSource,
        *,
        raw: Raw | None = None,
        name: str | None = None,
        timeout_s: float = TIMEOUT_S,
        decoder: str = "cpu",
        deinterlace: bool = False,
    ) -> None:
        if decoder not in ("cpu", "nvdec"):
            raise ValueError(f"decoder is {decoder!r}; choose cpu or nvdec")
        self.name = name or name_of(source)
        self.deinterlace = deinterlace
        self.decoder = decoder
        self.duration_s: float | None = None
        self.rate: float | None = None
        self.width = self.height = 0
        self.codec = ""
        self.live = False
        self.timeout_s = timeout_s
        self._source = source
        self._raw = raw
        self._rotation: int | None = None  # of the last frame, degrees
        self._turn: colour.Turn | None = None
        self._container: InputContainer | None = None
        self._pipe: BinaryIO | _Descriptor | None = None
        if raw:
            self._open_raw(raw)
        else:
            self._open_container(timeout_s)

    def frames(self, wanted: Sampling, stop: threading.Event | None = None) -> Iterator[Frame]:
        """The frames to score, in order of time; ends early once `stop` is set."""
        try:
            ticks = wanted.ticks(self.duration_s or None, self.rate)
        except ValueError as error:
            raise RefusedError(f"{self.name}: {error}") from error
        pictures = self._pictures(ticks, wanted)
        sampled = self._per_scene if wanted.per_scene else self._by_time
        none = True
        for frame in sampled(pictures, ticks, wanted, stop):
            none = False
            yield frame
        if none and not (stop and stop.is_set()):
            yield Frame(self.name, wanted.start, None, error=self._nothing_in(wanted))

    def close(self) -> None:
        """Release the file or the connection."""
        if self._container is not None:
            self._container.close()
        if self._pipe is not None and self._pipe is not self._source:
            self._pipe.close()

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _open_raw(self, raw: Raw) -> None:
        self.width, self.height, self.rate, self.codec = raw.width, raw.height, raw.rate, f"raw {raw.layout}"
        self._pipe = _binary(self._source)
        if isinstance(self._source, str | Path) and str(self._source) != STDIN:
            size = os.path.getsize(self._source)
            self.duration_s = size // raw.frame_bytes / raw.rate if os.path.isfile(self._source) else None

    def _open_container(self, timeout_s: float) -> None:
        av = import_av()
        file, options = _for_ffmpeg(self._source)
        self._pipe = None if isinstance(file, str) else file
        started = time.monotonic()
        try:
            self._container = container = av.open(
                file, container_options=options, timeout=(timeout_s, timeout_s), metadata_errors="replace"
            )
        except (av.FFmpegError, ValueError, OSError) as error:
            raise self._unopened(error, waited_s=time.monotonic() - started) from error
        self._stream = stream = self._video_stream(container)
        self.origin_s = (container.start_time or 0) / 1e6
        self.duration_s = self._declared_duration()
        # An address that does not say how long it is has no end that could be waited for
        self.live = is_address(self._source) and self.duration_s is None
        stream.thread_type = "SLICE" if self.live else "AUTO"  # frame threads delay a live picture
        # The decoder stops at the first error instead of painting over it: a made-up picture is not the video's quality
        stream.codec_context.options = {"err_detect": "explode"}
        self.rate = _rate(stream)
        self.width, self.height, self.codec = stream.width, stream.height, stream.codec_context.name

    def _video_stream(self, container: InputContainer) -> Any:
        """The stream with moving pictures; the cover of a piece of music is none."""
        stream: Any = container.streams.best("video")
        if stream is not None and not _is_cover(stream):
            return stream
        kinds = sorted({"a cover" if _is_cover(s) else s.type for s in container.streams}) or ["nothing"]
        container.close()
        raise RefusedError(f"{self.name} has no video in it, only {' and '.join(kinds)}; name a file with pictures")

    def _unopened(self, error: Exception, waited_s: float) -> ImageError:
        """What could not be opened, why, and what to do."""
        what = f"{self.name} cannot be opened as a video"
        if _is_empty(self._source, self._pipe):
            return ImageError(f"{what}: it is empty (0 bytes)")
        if not is_address(self._source):
            return ImageError(f"{what}: {reason_of(error, None)}; it is none, or damaged or truncated")
        if type(error).__name__ in ("HTTPUnauthorizedError", "HTTPForbiddenError"):
            fix = "write user and password into the address: scheme://USER:PASSWORD@HOST/..."
            return RefusedError(f"{what}: {reason_of(error, None)}; {fix}")
        if waited_s >= self.timeout_s:  # FFmpeg gives half an answer for one that makes no sense
            return ImageError(f"{what}: {stalled(self.timeout_s)}")
        fix = "it is none, or damaged" if "InvalidData" in type(error).__name__ else "check the address and its server"
        return ImageError(f"{what}: {reason_of(error, None)}; {fix}")

    def _declared_duration(self) -> float | None:
        """Seconds of the video stream; of the file where only that is said."""
        stream, container = self._stream, self._container
        if stream.duration and stream.time_base:
            return float(stream.duration * stream.time_base)
        if container is None or not container.duration:
            return None
        # Matroska's is when it ends, which is not how long it is in a recording that begins at 100 s
        begins_s = self.origin_s if "matroska" in container.format.name else 0.0
        return max(container.duration / 1e6 - begins_s, 0.0) or None

    def _pictures(self, ticks: Ticks, wanted: Sampling) -> Iterator[Picture]:
        if self._raw:
            return self._raw_pictures(self._raw, ticks)
        if self.decoder == "nvdec":
            from dgiqa.video import nvdec

            return nvdec.pictures(self._source, self)
        return Decoding(self, ticks, wanted.end).pictures()

    def _nothing_in(self, wanted: Sampling) -> str:
        """Why nothing was sampled: a gate must not pass because nothing was looked at."""
        length = "" if self.duration_s is None else f", the video is {self.duration_s:.2f} s long"
        stretch = (
            f"from {wanted.start:g} s on" if math.isinf(wanted.end) else f"from {wanted.start:g} to {wanted.end:g} s"
        )
        return f"there is no frame {stretch}{length}; begin earlier or end later"

    def _by_time(
        self, pictures: Iterator[Picture], ticks: Ticks, wanted: Sampling, stop: threading.Event | None
    ) -> Iterator[Frame]:
        """Every picture that is due."""
        cuts = SceneCuts()
        for picture in pictures:
            if picture.time_s > wanted.end or ticks.over or (stop and stop.is_set()):
                return
            if ticks.due(picture.time_s):
                yield self._frame(picture, cuts)

    def _per_scene(
        self, pictures: Iterator[Picture], ticks: Ticks, wanted: Sampling, stop: threading.Event | None
    ) -> Iterator[Frame]:
        """Every picture is looked at; those of a scene are chosen when it ends."""
        cuts, picks = SceneCuts(), ScenePicks[tuple[Picture, UInt8]](wanted.per_scene or 1)
        scene = 0
        for picture in pictures:
            if picture.time_s > wanted.end or (stop and stop.is_set()):
                break
            if not ticks.due(picture.time_s):
                continue
            if picture.error:
                yield Frame(self.name, picture.time_s, picture.number, scene=scene, error=picture.error)
                continue
            thumb = self._thumb(picture.image)
            if cuts.scene_of(thumb) != scene:
                yield from (self._converted(p, t, scene) for p, t in picks.take())
                scene = cuts.scene
            picks.add((picture, thumb))
        yield from (self._converted(p, t, scene) for p, t in picks.take())

    def _frame(self, picture: Picture, cuts: SceneCuts) -> Frame:
        if picture.error:
            return Frame(self.name, picture.time_s, picture.number, scene=cuts.scene, error=picture.error)
        thumb = self._thumb(picture.image)
        return self._converted(picture, thumb, cuts.scene_of(thumb))

    def _thumb(self, image: Any) -> UInt8:
        return sampling.thumbnail(image) if isinstance(image, np.ndarray) else colour.luma_thumbnail(image)

    def _converted(self, picture: Picture, thumb: UInt8, scene: int) -> Frame:
        image, note = picture.image, ""
        try:
            if not isinstance(image, np.ndarray):
                note = colour.notes(image, deinterlace=self.deinterlace)
                turn = picture.turn or self._turn_of(image)
                image = colour.to_rgb(image, deinterlace=self.deinterlace, turn=turn)
        except (ImageError, ValueError, OSError) as error:  # FFmpeg's errors are OSErrors or ValueErrors
            return Frame(self.name, picture.time_s, picture.number, scene=scene, error=str(error), note=note)
        return Frame(self.name, picture.time_s, picture.number, image, thumb, scene, note=note)

    def _turn_of(self, frame: Any) -> colour.Turn | None:
        """A frame's own orientation, looked up again only when its rotation changes."""
        if self._rotation != frame.rotation:
            self._rotation, self._turn = frame.rotation, colour.turn_of(frame)
        return self._turn

    def _raw_pictures(self, raw: Raw, ticks: Ticks) -> Iterator[Picture]:
        assert self._pipe is not None
        made = None
        if raw.layout == "yuv420p":
            import_av()
            made = colour.Planes(raw.width, raw.height)
        number = 0
        while True:
            data = _read_exactly(self._pipe, raw.frame_bytes)
            time_s = number / raw.rate
            if len(data) < raw.frame_bytes:
                if data or not number:
                    got = f"{len(data)} bytes where a frame of {raw.frame_bytes} was due"
                    yield Picture(max(time_s, ticks.target), number, error=f"the raw stream ends with {got}")
                return
            if time_s + sampling.ROUNDING_S >= ticks.target:
                levels = np.frombuffer(data, np.uint8)
                shape = (-1, raw.width) if made else (raw.height, raw.width, 3)
                yield Picture(time_s, number, made.frame(levels.reshape(shape)) if made else levels.reshape(shape))
            number += 1


class _Descriptor:
    """Standard input by its number: a thread blocked in a buffered reader would hold up the interpreter's end."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.arrived = 0  # bytes so far

    def read(self, size: int) -> bytes:
        data = os.read(self.number, size)
        self.arrived += len(data)
        return data

    def close(self) -> None:
        """It is not ours."""


def is_address(source: object) -> bool:
    """Whether a source is reached over the network."""
    return isinstance(source, str) and _ADDRESS.match(source) is not None


def is_live(source: object) -> bool:
    """Whether an address is mostly live by its scheme; that it is shows when it is opened and says no length."""
    return isinstance(source, str) and _ALWAYS_LIVE.match(source) is not None


def name_of(source: VideoSource) -> str:
    """What rows call a source; a password in an address is left out."""
    if isinstance(source, str | Path):
        return re.sub(r"(?<=://)[^/?#]*:[^/?#]*@", "***@", str(source))
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else "<stream>"


def _rate(stream: Any) -> float | None:
    """Frames per second. A measured rate that is no more than the ticks of the stream's clock was not measured."""
    measured, guessed = stream.average_rate, stream.guessed_rate
    rate = guessed if guessed and (not measured or measured * stream.time_base == 1) else measured
    return float(rate) if rate and rate <= MAX_RATE else None


def _is_cover(stream: Any) -> bool:
    """Whether a video stream is a single attached picture."""
    disposition = getattr(stream, "disposition", None)
    return disposition is not None and bool(disposition.value & ATTACHED_PICTURE)


def _is_empty(source: VideoSource, pipe: object) -> bool:
    if isinstance(pipe, _Descriptor):
        return not pipe.arrived
    return isinstance(source, str | Path) and os.path.isfile(source) and not os.path.getsize(source)


def _for_ffmpeg(source: VideoSource) -> tuple[Any, dict[str, str]]:
    """What PyAV opens, and with which options. A path is never taken for one of FFmpeg's many address schemes."""
    if isinstance(source, str) and is_address(source):
        # Over TCP nothing is lost on the way; a server that cannot do that is asked for UDP
        rtsp = {"rtsp_flags": "prefer_tcp"} if source.lower().startswith("rtsp") else {}
        return source, {"protocol_whitelist": _NETWORK_PROTOCOLS, **rtsp}
    binary = _binary(source)
    if isinstance(source, str | Path) and str(source) != STDIN:
        binary.close()
        return f"file:{source}", {"protocol_whitelist": _LOCAL_PROTOCOLS}
    return binary, {"protocol_whitelist": _LOCAL_PROTOCOLS}


def _binary(source: VideoSource) -> BinaryIO | _Descriptor:
    if isinstance(source, str) and source == STDIN:
        return _Descriptor(0)
    if not isinstance(source, str | Path):
        return source
    if os.path.isdir(source):
        raise ImageError(f"{source} is a folder; name a video file")
    try:
        return open(source, "rb")
    except OSError as error:
        raise ImageError(f"{source} cannot be read: {error.strerror or error}") from error


def _read_exactly(pipe: Any, size: int) -> bytes:
    """That many bytes, or fewer at the end: a pipe gives them in pieces."""
    data = bytearray()
    while len(data) < size:
        piece = pipe.read(size - len(data))
        if not piece:
            break
        data += piece
    return bytes(data)
