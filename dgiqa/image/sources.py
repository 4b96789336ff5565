"""Open an image given in any form: first its header, then its pixels, once there is room for them in memory."""

import os
import stat
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from dgiqa.dtypes import Array
from dgiqa.errors import ImageError
from dgiqa.image import MAX_PIXELS, Decoded, Opened, Stop, of_pillow, open_image
from dgiqa.image.arrays import as_rgb, check_shape
from dgiqa.image.kinds import HEAD, identify

Source = str | Path | bytes | Array | BinaryIO | Image.Image

MAX_BYTES = 1 << 30  # larger encoded images are refused unread
TIMEOUT_S = 60.0  # for decoding one image; 200 megapixels take 3 s as JPEG
_POLL_S = 0.1


class GivenUpError(ImageError):
    """An image was not decoded in time. rest: its decoding, which goes on until it finishes."""

    def __init__(self, text: str, rest: Future[Decoded]) -> None:
        super().__init__(text)
        self.rest = rest

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageError, (str(self),)  # another process cannot wait for the rest


class Room:
    """Memory that pictures being prepared share. A picture that needs more than all of it is prepared by itself."""

    def __init__(self, total: int) -> None:
        self._total, self._taken = total, 0
        self._change = threading.Condition()

    @contextmanager
    def hold(self, amount: int, stop: Stop | None = None) -> Iterator[None]:
        """Wait for `amount` bytes and hold them; if a decoding is given up, until it has ended.

        Raises CancelledError once `stop` is true.
        """
        with self._change:
            while self._taken and self._taken + amount > self._total:
                if stop is not None and stop():
                    raise CancelledError
                self._change.wait(_POLL_S)
            self._taken += amount
        rest: Future[Any] | None = None
        try:
            yield
        except GivenUpError as error:
            rest = error.rest
            rest.add_done_callback(lambda _: self._free(amount))
            raise
        finally:
            if rest is None:
                self._free(amount)

    def _free(self, amount: int) -> None:
        with self._change:
            self._taken -= amount
            self._change.notify_all()


def decode_within(opened: Opened, timeout_s: float, stop: Stop | None = None) -> Decoded:
    """Run `opened.decode` in its own thread, as decoders in C heed neither a clock nor an interrupt.

    An image that came as pixels is converted in the caller's thread. Raises the errors of `decode`, GivenUpError after
    `timeout_s` seconds, and CancelledError once `stop` is true.
    """
    if not opened.kind:
        return opened.decode(stop)
    done, given_up = Future[Decoded](), threading.Event()

    def run() -> None:
        try:
            done.set_result(opened.decode(given_up.is_set))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="dgiqa-decode", daemon=True).start()
    until = time.monotonic() + timeout_s
    try:
        while wait([done], min(_POLL_S, timeout_s)).not_done:
            if stop is not None and stop():
                raise CancelledError
            if time.monotonic() >= until:
                fix = "save it again or shrink it, or raise decode_timeout_s (--decode-timeout)"
                raise GivenUpError(f"{opened.kind}: not decoded within {timeout_s:g} s; {fix}", done)
    finally:
        given_up.set()
    return done.result()


def open_source(source: Source, max_pixels: int = MAX_PIXELS, max_memory: int | None = None) -> Opened:
    """Read the header of an image: a path, encoded bytes, an open binary file, an array (see `as_rgb`) or Pillow image.

    A file that is at its end is read again from its beginning. Limits and errors as `open_image`.
    """
    if isinstance(source, np.ndarray):
        array = source
        check_shape(array.shape)
        return Opened("", array.shape[1], array.shape[0], 0, b"", lambda stop: Decoded(as_rgb(array)))
    if isinstance(source, Image.Image):
        picture = source
        memory = 7 * picture.width * picture.height
        return Opened("", picture.width, picture.height, memory, b"", lambda stop: of_pillow(picture, max_pixels))
    return open_image(_read(source), max_pixels, max_memory)


def name_of(source: object) -> str:
    """The name of a source, for its score."""
    if isinstance(source, str | os.PathLike):
        return os.fsdecode(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return "<bytes>"
    if isinstance(source, np.ndarray):
        return "<array>"
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "") or "<image>")
    if hasattr(source, "__dlpack__") or hasattr(source, "__cuda_array_interface__"):
        return "<device>"
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else "<stream>"


def _read(source: Any) -> bytes:
    if isinstance(source, str | os.PathLike):
        return _read_file(os.fsdecode(source))
    data = _read_stream(source) if hasattr(source, "read") else _as_bytes(source)
    if len(data) > MAX_BYTES:
        raise ImageError(f"more than {MAX_BYTES} bytes; wanted one encoded image")
    return data


def _as_bytes(data: Any) -> bytes:
    if not isinstance(data, bytes | bytearray | memoryview):
        wanted = "wanted a path, bytes, an array, a Pillow image or a file opened in binary mode"
        raise ImageError(f"got {type(data).__name__}, {wanted}")
    return bytes(data)


def _read_stream(stream: Any) -> bytes:
    """Read a stream from its position on. One at its end was scored or saved before, and is rewound."""
    try:
        head = read_fully(stream, HEAD)
        if not head and _rewound(stream):
            head = read_fully(stream, HEAD)
        if len(head) == HEAD:
            identify(head)  # before the rest is read
        return head + read_fully(stream, MAX_BYTES + 1 - HEAD)
    except ImageError:
        raise
    except Exception as error:  # a broken connection, a closed file, or any other error
        raise ImageError(f"the stream cannot be read: {str(error) or type(error).__name__}") from error


def read_fully(stream: Any, size: int) -> bytes:
    """Read `size` bytes, or fewer at the end: sockets and pipes give them in pieces."""
    pieces, missing = list[bytes](), size
    while missing > 0 and (piece := _as_bytes(stream.read(missing))):
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


def _rewound(stream: Any) -> bool:
    try:
        if not stream.tell():
            return False
        stream.seek(0)
    except (AttributeError, OSError, ValueError) as error:
        raise ImageError("the stream is at its end and cannot be rewound; give its bytes, or open it again") from error
    return True


def _read_file(path: str | Path) -> bytes:
    """Read a regular file's bytes. Other files are refused: a pipe could block for ever, a device never end."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            pipe = ", or - and the image on standard input" if stat.S_ISFIFO(status.st_mode) else ""
            raise ImageError(f"{path} is {kind}; wanted an image file{pipe}")
        if status.st_size > MAX_BYTES:
            raise ImageError(f"{path} has {status.st_size} bytes, wanted an image of at most {MAX_BYTES}")
        with open(path, "rb") as stream:
            head = stream.read(HEAD)
            identify(head)  # before the rest is read
            return head + stream.read(MAX_BYTES)
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a path with a NUL character
        raise ImageError(f"{path!r} is not a path: {error}") from error
