"""A path, an address, a pipe or an open file -> a container that PyAV has opened, checked before anything is decoded.

What a source may make FFmpeg open in turn is limited: a playlist on disk may name only files of its own folder, a file
that is no playlist none at all, and formats that draw text or join other files are refused.
"""

from __future__ import annotations

import codecs
import errno
import glob
import io
import os
import re
import select
import stat
import time
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from dgiqa.errors import ImageError
from dgiqa.extras import load

if TYPE_CHECKING:
    from av.container import InputContainer

VideoSource = str | Path | BinaryIO

STDIN = "-"
TIMEOUT_S = 10.0  # an address that sends nothing for so long has stalled
MAX_PIXELS = 40_000_000  # of a frame, by default; 8K has 33 million, and some twenty frames are held
MAX_RATE = 1000.0  # frames per second; a higher one is a clock's rate
ATTACHED_PICTURE = 0x400  # FFmpeg's AV_DISPOSITION_ATTACHED_PIC
INDEXED = ("mov", "matroska", "avi", "asf", "ogg", "nut")  # not mpegts, mpeg, flv or streams without a container
# Decoders that paint over damage. With a single thread they log it in the thread that asks for the picture.
ONLY_LOGGING = frozenset({"ffv1", "wmv1", "wmv2", "msmpeg4", "msmpeg4v1", "msmpeg4v2"})
PLAYLIST_BYTES = 1 << 20  # a playlist of ten hours has 200 kB
_ADDRESS = re.compile(r"(https?|rtsps?|rtmps?|srt|udp|rtp|tcp)://", re.IGNORECASE)
_ALWAYS_LIVE = re.compile(r"(rtsps?|rtmps?|srt|udp|rtp|tcp)://", re.IGNORECASE)
_LOCAL_PROTOCOLS = "file,crypto,data"
_NETWORK_PROTOCOLS = "http,https,tcp,udp,tls,rtp,rtsp,rtsps,rtmp,rtmps,srt,crypto,data,httpproxy"
# Formats of FFmpeg that draw text as pictures, and those that name other files
_TEXT = {"tty", "bin", "xbin", "adf", "idf", "mca", "txd"}
_JOINING = {"concat", "concatf", "lavfi", "vobsub", "imf", "webm_dash_manifest", "dash", "tedcaptions"}
_FETCHING = {"hls", "sdp", "rtsp", "rtp", "sap"}  # refused from a local file or a pipe, but not from an address


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
            raise ValueError(
                f"{text!r} does not describe raw frames; write WIDTHxHEIGHT@RATE[:rgb24|yuv420p]: 1280x720@25"
            )
        width, height, divisor = int(match[1]), int(match[2]), int(match[4] or 1)
        rate = float(match[3]) / divisor if divisor else 0.0
        layout: Any = match[5] or "rgb24"
        if not (width and height and rate) or (layout == "yuv420p" and (width % 2 or height % 2)):
            raise ValueError(f"{text!r}: sizes and rate must be above 0, and sizes even for yuv420p")
        return cls(width, height, rate, layout)


@dataclass(frozen=True)
class Reading:
    """How sources are read.

    raw: frames without a container. live: open a source again after it ended, newest frame wins; None asks the source.
    timeout_s: an address that sends nothing for so long has stalled. attempts: how often a live source is tried in a
    row without a frame before it is given up. waits_s: seconds before each further attempt; the last one repeats.
    deinterlace: frames marked as interlaced, spatially. bars: "crop" scores a picture without the black bars around it,
    "keep" with them. max_pixels: larger frames are refused before they are decoded; None takes the scorer's limit, at
    most MAX_PIXELS. streams: files read side by side; live sources are all read.
    decoder: "nvdec" decodes local files on the GPU that the networks run on, and their pictures stay there: bars="keep"
    copies none to the host, "crop" copies each scored one, to find its bars. With `Reuse` they are copied to the host
    and handled like the CPU's.
    Raises ValueError for invalid values.
    """

    raw: Raw | None = None
    live: bool | None = None
    timeout_s: float = TIMEOUT_S
    attempts: int = 10
    waits_s: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
    deinterlace: bool = False
    bars: Literal["crop", "keep"] = "crop"
    max_pixels: int | None = None
    streams: int = 2
    decoder: Literal["cpu", "nvdec"] = "cpu"

    def __post_init__(self) -> None:
        for name, known in (("bars", ("crop", "keep")), ("decoder", ("cpu", "nvdec"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose {' or '.join(known)}")
        for name in ("streams", "timeout_s", "attempts"):
            if not (isinstance(value := getattr(self, name), Real) and float(value) > 0):
                raise ValueError(f"{name} is {value!r}, wanted a number above 0")


class RefusedError(ImageError):
    """A source for which no retry helps: it has no video, needs a password, or cannot be sampled in this way."""


@dataclass(frozen=True)
class Opened:
    """A source that can be read, once.

    container, stream, decoder: PyAV's; None for frames without a container. pipe: the stream that bytes are read from,
    unless FFmpeg reads them. origin_s: the container's time that counts as 0. duration_s, rate, width, height: as
    declared, None or 0 where unknown. codec: its name. live: whether its end is unknown. indexed: whether seeking is
    exact. path: of a regular file, else "".
    """

    name: str
    codec: str
    width: int
    height: int
    rate: float | None
    duration_s: float | None
    timeout_s: float
    container: Any = None
    stream: Any = None
    decoder: Any = None
    pipe: Any = None
    origin_s: float = 0.0
    live: bool = False
    indexed: bool = False
    path: str = ""

    @property
    def format(self) -> str:
        """FFmpeg's name, or list of names, of the container; "" without one."""
        return str(self.container.format.name) if self.container is not None else ""

    @property
    def frame_s(self) -> float:
        """Seconds that a whole frame lasts, as FFmpeg guesses from the codec; 0 if it has no guess."""
        rate = self.stream.guessed_rate if self.stream is not None else None
        return float(1 / rate) if rate else 0.0

    @property
    def jumps(self) -> bool:
        """Whether times in such a container may jump, according to FFmpeg: MPEG-TS, HLS."""
        return self.container is not None and bool(int(self.container.format.flags) & AVFMT_TS_DISCONT)

    def close(self, kept: object = None) -> None:
        """Release the file or the connection, except `kept`, which is the caller's."""
        if self.container is not None:
            # End decoding threads here, without Python's lock. PyAV would hold it, but a thread that logs needs it.
            self.decoder.flush_buffers()
            self.container.close()
        if self.pipe is not None and self.pipe is not kept:
            self.pipe.close()


AVFMT_TS_DISCONT = 0x200
UNALIGNED = 1  # FFmpeg's AV_CODEC_FLAG_UNALIGNED: columns that a stream crops on the left are left out, too


def open_raw(source: VideoSource, raw: Raw, name: str, reading: Reading) -> Opened:
    """Frames without a container. Raises ImageError if they are too large or cannot be read."""
    _check_size(name, raw.width, raw.height, reading)
    path = _file(source)
    length_s = os.path.getsize(path) // raw.frame_bytes / raw.rate if path else None
    what = name, f"raw {raw.layout}", raw.width, raw.height, raw.rate, length_s, reading.timeout_s
    return Opened(*what, pipe=_binary(source), path=path)


def open_container(source: VideoSource, name: str, reading: Reading) -> Opened:
    """A container with a video in it.

    Raises ImageError if there is none, it cannot be decoded here, or its frames are too large, BackendError without
    PyAV.
    """
    av = import_av()
    file, options = _for_ffmpeg(source)
    pipe = None if isinstance(file, str) else file
    # PyAV 19 reads metadata that are not UTF-8 by itself
    older = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "replace"}
    started, timeout_s = time.monotonic(), reading.timeout_s
    try:
        container = av.open(file, container_options=options, timeout=(timeout_s, timeout_s), **older)
    except (av.FFmpegError, ValueError, OSError, RuntimeError) as error:
        stall_s = timeout_s if time.monotonic() - started >= timeout_s else None
        raise _unopened(error, source, name, pipe, stall_s) from error
    try:
        stream = _video_stream(container, name)
        _check_size(name, stream.width, stream.height, reading)
        context = _decoder(stream)
    except ImageError:
        container.close()
        raise
    # A decoder stops at an error instead of painting over it: a made-up picture is not the video's quality. H.264's is
    # exempt: it marks the pictures that it painted over, and would also stop at messages (SEI) that cameras get wrong.
    detect = "crccheck+explode" + ("+bitstream+buffer" if context.name in ONLY_LOGGING else "")
    explode = {} if context.name in ("h264", "tiff") else {"err_detect": detect}  # tiff stops at tags it does not know
    context.options = {"max_pixels": str(2 * (reading.max_pixels or MAX_PIXELS))} | explode
    context.flags |= UNALIGNED
    origin_s = (container.start_time or 0) / 1e6
    duration_s, path = _declared_duration(container, stream, origin_s), _file(source)
    if container.format.name == "avi" and path:
        with open(path, "rb") as head:
            if head.read(8)[4:] == b"\xff" * 4:  # written into a pipe: nothing in its header is its length
                duration_s = None
    # An address without a length has no end to wait for.
    live = is_address(source) and duration_s is None
    context.thread_type = "SLICE" if live else "AUTO"  # frame threads delay a live picture
    if context.name in ONLY_LOGGING:
        context.thread_count = 1
    return Opened(
        name=name,
        codec=stream.codec_context.name,
        width=stream.width,
        height=stream.height,
        rate=_rate(stream),
        duration_s=duration_s,
        timeout_s=timeout_s,
        container=container,
        stream=stream,
        decoder=context,
        pipe=pipe,
        origin_s=origin_s,
        live=live,
        indexed=bool(path) and any(n in INDEXED for n in container.format.name.split(",")),
        path=path,
    )


def _decoder(stream: Any) -> Any:
    """PyAV's decoder for a stream, or libvpx's for transparent pictures: FFmpeg's own decoders leave alpha out."""
    context = stream.codec_context
    other = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(context.name)
    if other is None or ("alpha_mode", "1") not in ((key.lower(), value) for key, value in stream.metadata.items()):
        return context
    try:
        decoder = import_av().CodecContext.create(other, "r")
    except ValueError as error:
        raise RefusedError(f"transparent {context.name}, which needs FFmpeg with {other}; save it as ProRes") from error
    decoder.colorspace, decoder.color_range = context.colorspace, context.color_range
    return decoder


def import_av() -> Any:
    """PyAV. Raises BackendError, which says how to get it."""
    return load("av", "video", "PyAV", "video")


def reason_of(error: Exception, timeout_s: float | None) -> str:
    """FFmpeg's reason in a few words. A timeout shows as an interrupted read."""
    text = getattr(error, "strerror", None) or str(error)
    if type(error).__name__ in ("ExitError", "TimeoutError") or "mmediate exit" in text:
        return stalled(timeout_s)
    return f"{text} ({type(error).__name__})"


def stalled(timeout_s: float | None) -> str:
    """The message for a timeout."""
    waited = f" for {timeout_s:g} s" if timeout_s else ""
    return f"nothing arrived{waited}; the source has stalled"


def is_address(source: object) -> bool:
    """Whether a source is reached over the network."""
    return isinstance(source, str) and _ADDRESS.match(source) is not None


def is_live(source: object) -> bool:
    """Whether an address is probably live, by its scheme. It is certain once the opened source states no length."""
    return isinstance(source, str) and _ALWAYS_LIVE.match(source) is not None


def name_of(source: VideoSource) -> str:
    """The name of a source in its rows; a password in an address is left out."""
    if isinstance(source, str | Path):
        return re.sub(r"(?<=://)[^/?#]*:[^/?#]*@", "***@", str(source))
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else "<stream>"


def _open_at_once(path: str, flags: int) -> int:
    """As `os.open`, but a named pipe without a writer is given up after TIMEOUT_S."""
    if not hasattr(os, "mkfifo") or not stat.S_ISFIFO(os.stat(path).st_mode):
        return os.open(path, flags)
    number = os.open(path, flags | os.O_NONBLOCK)
    if not select.select([number], [], [], TIMEOUT_S)[0]:
        os.close(number)
        raise OSError(errno.ETIMEDOUT, f"nothing writes into this pipe for {TIMEOUT_S:g} s", path)
    os.set_blocking(number, True)
    return number


def _from_here(stream: Any) -> Any:
    """An open file from its position on; one at its end was read before and is rewound."""
    if isinstance(stream, io.TextIOBase):
        raise ImageError("the file was opened in text mode; open it in binary mode: open(path, 'rb')")
    if not hasattr(stream, "read"):
        wanted = "wanted a path, an address, bytes or a file opened in binary mode"
        raise ImageError(f"got {type(stream).__name__}, {wanted}")
    try:
        at = stream.tell()
        end = stream.seek(0, os.SEEK_END)
        stream.seek(0 if at == end else at)
    except (AttributeError, OSError, ValueError):  # it cannot seek
        return stream
    return stream if at in (0, end) else _Rest(stream, at)


class _Rest:
    """The rest of a file after a place, as a file of its own."""

    def __init__(self, stream: Any, begin: int) -> None:
        self._stream, self._begin = stream, begin
        self.read = stream.read

    def tell(self) -> int:
        return int(self._stream.tell()) - self._begin

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self._stream.seek(offset + (self._begin if whence == os.SEEK_SET else 0), whence)) - self._begin

    def close(self) -> None:
        """It is not ours."""


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


def _video_stream(container: InputContainer, name: str) -> Any:
    """The stream with moving pictures; a cover of music does not count."""
    stream: Any = container.streams.best("video")
    if stream is None or _is_cover(stream):
        kinds = sorted({"a cover" if _is_cover(s) else s.type for s in container.streams}) or ["nothing"]
        raise RefusedError(f"{name} has no video in it, only {' and '.join(kinds)}; name a file with pictures")
    if stream.codec_context is None:
        raise RefusedError(f"{name}: its video is encrypted, or FFmpeg has no decoder for it; convert it to H.264")
    if container.format.name == "image2" and not stream.width:  # believed by its suffix
        raise RefusedError(f"{name} is neither a video nor an image, whatever its suffix says")
    return stream


def _check_size(name: str, width: int, height: int, reading: Reading) -> None:
    limit = reading.max_pixels or MAX_PIXELS
    if width * height > limit:
        fix = "raise max_pixels (--max-pixels)"
        raise RefusedError(f"{name}: a frame of {width} x {height}, limit {limit:,} pixels; {fix}")


def _unopened(error: Exception, source: VideoSource, name: str, pipe: object, stall_s: float | None) -> ImageError:
    """The error for a source that could not be opened. stall_s: seconds without data, None if some came."""
    what = f"{name} cannot be opened as a video"
    path = _file(source)
    if (isinstance(pipe, _Descriptor) and not pipe.arrived) or (path and not os.path.getsize(path)):
        return ImageError(f"{what}: it is empty (0 bytes)")
    if not is_address(source):
        return ImageError(f"{what}: {reason_of(error, None)}; it is not a video, or it is damaged or truncated")
    if type(error).__name__ in ("HTTPUnauthorizedError", "HTTPForbiddenError"):
        fix = "write user and password into the address: scheme://USER:PASSWORD@HOST/..."
        return RefusedError(f"{what}: {reason_of(error, None)}; {fix}")
    if stall_s is not None:  # FFmpeg takes half an answer for a senseless one
        return ImageError(f"{what}: {stalled(stall_s)}")
    fix = (
        "it is not a video, or it is damaged"
        if "InvalidData" in type(error).__name__
        else "check the address and its server"
    )
    return ImageError(f"{what}: {reason_of(error, None)}; {fix}")


def _declared_duration(container: Any, stream: Any, origin_s: float) -> float | None:
    """Seconds of the video stream, or of the file if only that is declared."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if not container.duration:
        return None
    # Matroska declares the time of the end, which is not the length of a recording that begins at 100 s.
    begins_s = origin_s if "matroska" in container.format.name else 0.0
    return max(container.duration / 1e6 - begins_s, 0.0) or None


def _rate(stream: Any) -> float | None:
    """Frames per second. A "measured" rate that equals the ticks of the stream's clock was not measured."""
    measured, guessed = stream.average_rate, stream.guessed_rate
    rate = guessed if guessed and (not measured or measured * stream.time_base == 1) else measured
    return float(rate) if rate and rate <= MAX_RATE else None


def _is_cover(stream: Any) -> bool:
    """Whether a video stream is a single attached picture."""
    disposition = getattr(stream, "disposition", None)
    return disposition is not None and bool(disposition.value & ATTACHED_PICTURE)


def _file(source: VideoSource) -> str:
    """The path of a regular file, else ""."""
    return str(source) if isinstance(source, str | Path) and str(source) != STDIN and os.path.isfile(source) else ""


def _for_ffmpeg(source: VideoSource) -> tuple[Any, dict[str, str]]:
    """(what PyAV opens, its options). A path is never taken for one of FFmpeg's many address schemes."""
    if isinstance(source, str) and is_address(source):
        # TCP loses nothing on the way; a server without it is asked for UDP.
        rtsp = {"rtsp_flags": "prefer_tcp"} if source.lower().startswith("rtsp") else {}
        formats = _formats_without(frozenset(_TEXT | {"concat", "concatf", "lavfi"}))
        return source, {"protocol_whitelist": _NETWORK_PROTOCOLS, "format_whitelist": formats, **rtsp}
    binary = _binary(source)
    local = {"protocol_whitelist": _LOCAL_PROTOCOLS, "pattern_type": "none"}
    if not (path := _file(source)):  # a pipe, which can be read once
        formats = _formats_without(frozenset(_TEXT | _JOINING | _FETCHING))
        return binary, local | {"protocol_whitelist": "crypto,data", "format_whitelist": formats}
    binary.close()
    is_playlist = _check_playlist(Path(path), Path(os.path.realpath(path)).parent, set())
    formats = _formats_without(frozenset(_TEXT | _JOINING | (_FETCHING - {"hls"} if is_playlist else _FETCHING)))
    return f"file:{path}", local | {"format_whitelist": formats}


@lru_cache(4)
def _formats_without(refused: frozenset[str]) -> str:
    """The list of formats that FFmpeg may take a source for."""
    return ",".join(sorted(set(import_av().formats_available) - refused))


def _check_playlist(path: Path, folder: Path, seen: set[str]) -> bool:
    """Whether a file is an HLS playlist. Raises RefusedError if it, or one that it names, names a file elsewhere."""
    if not path.is_file():
        return False  # FFmpeg reports it
    with open(path, "rb") as file:
        head = file.read(7)
        if head.startswith(codecs.BOM_UTF8):
            head = (head + file.read(3))[3:]
            if head == b"#EXTM3U":
                raise RefusedError(f"{path}: a playlist with a byte order mark, which HLS forbids; save it without one")
        if head != b"#EXTM3U":
            return False
        text = file.read(PLAYLIST_BYTES + 1).decode("utf-8", "surrogateescape")
    if len(text) > PLAYLIST_BYTES:
        raise RefusedError(f"{path}: a playlist above {PLAYLIST_BYTES} bytes; name the video file instead")
    lines = [line.strip() for line in text.splitlines()]
    named = [line for line in lines if line and not line.startswith("#")]
    named += [uri for line in lines if line.startswith("#") for uri in re.findall(r'URI\s*=\s*"?([^",]*)', line, re.I)]
    for uri in named:
        if uri.lower().startswith("data:") or not uri:
            continue
        target = os.path.realpath(path.parent / uri.replace("\0", ""))
        plain = not re.match(r"[a-z][a-z0-9+.-]*:", uri, re.IGNORECASE) and not ("?" in uri and ".." in uri)
        if not plain or not Path(target).is_relative_to(folder):
            raise RefusedError(f"{path} names {uri!r}, which is not in its folder; name that video itself")
        if "#EXT-X-STREAM-INF" not in text and not os.path.exists(target):
            raise RefusedError(f"{path} names {uri!r}, which is missing; fetch the whole video")
        if target not in seen:
            seen.add(target)
            _check_playlist(Path(target), folder, seen)
    return True


def _binary(source: VideoSource) -> Any:
    if isinstance(source, str) and source == STDIN:
        return _Descriptor(0)
    if not isinstance(source, str | Path):
        return _from_here(source)
    if os.path.isdir(source):
        raise ImageError(f"{source} is a folder; name a video file, or with -r a folder whose subfolders hold videos")
    try:
        return open(source, "rb", opener=_open_at_once)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and glob.has_magic(str(source)):
            raise ImageError(f"{source}: no file matches this glob") from error
        raise ImageError(f"{source} cannot be read: {error.strerror or error}") from error
