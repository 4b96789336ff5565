"""Read a TIFF file's tags: which page is the picture, and how its pixels are to be read."""

import io
from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from dgiqa.dtypes import Array
from dgiqa.errors import ImageError
from dgiqa.image import jpeg, png
from dgiqa.image.raw import RawError

MAX_PAGES = 100  # in which to look for one that is not a reduced copy

_REDUCED, _WIDTH, _HEIGHT, _BITS, _MEANING, _ORIENTATION = 254, 256, 257, 258, 262, 274
_SAMPLES, _PLANAR, _SUB_IFDS, _FORMAT, _DNG = 277, 284, 330, 339, 50706
_OLD_KIND, _COMPRESSION, _TABLES = 255, 259, 347
_FILL_ORDER, _PALETTE, _PROFILE = 266, 320, 34675
_PIECES = ((273, 279), (324, 325))  # starts and sizes in bytes, of strips and of tiles
_CFA, _LINEAR_RAW = 32803, 34892
_JPEG, _DEFLATE = 7, frozenset({8, 32946})
# Compressions that neither Pillow nor OpenCV reads, by TIFF's numbers
_UNREAD = {34661: "JBIG", 34712: "JPEG 2000", 34887: "LERC", 34933: "PNG", 34934: "JPEG XR", 22610: "JPEG XR"}
_UNREAD |= {33003: "JPEG 2000", 33004: "JPEG 2000", 33005: "JPEG 2000", 50001: "WebP", 50002: "JPEG XL"}
_SPARE = 1 << 26  # bytes that the tiles of a small picture may hold beyond it
_TYPES = {2: "signed", 3: "float", 5: "complex", 6: "complex"}


class Page(NamedTuple):
    """number: of the page that is the picture. opencv: OpenCV reads it, as Pillow gets such pixels wrong. inverted:
    white is zero. pieces: first and last byte, exclusive, of its strips or tiles.
    compression: of these, by TIFF's numbers. tables: JPEG's, which all pieces share. profile: the ICC profile.
    palette: all reds, all greens, all blues, if only 8 of their 16 bits are used, which Pillow takes for black.
    """

    number: int
    width: int
    height: int
    channels: int
    bits: int
    planar: bool
    opencv: bool
    inverted: bool
    orientation: int
    compression: int
    pieces: tuple[tuple[int, int], ...]
    tables: bytes
    profile: bytes
    palette: bytes


def page_of(data: bytes) -> Page:
    """The first page that is no reduced copy, neither by its tags nor by its size.

    Raises RawError for raw photographs, and ImageError for pixels that are not read or have no white level.
    """
    first: Any = None
    found: tuple[int, Any] | None = None
    for number, tags in enumerate(_pages(data)):
        first = tags if first is None else first
        _refuse_raw(tags, first)
        if int(_one(tags, _REDUCED, 0)) & 5 or _one(tags, _OLD_KIND, 1) == 2:  # a copy or a mask
            continue
        if found is None or _is_copy(found[1], tags):
            found = number, tags
    if found is None:
        raise ImageError("only reduced copies in it, as in raw photographs; develop it, or save the picture itself")
    return _page(*found)


def _is_copy(tags: Any, of: Any) -> bool:
    """Whether a page looks like a thumbnail of a later one: at most half as wide, with the same aspect."""
    (width, height), (w, h) = ((int(_one(t, _WIDTH, 0)), int(_one(t, _HEIGHT, 0))) for t in (tags, of))
    return w >= 2 * width and h >= 2 * height and abs(width * h - height * w) <= max(w, h)


def read(data: bytes, page: Page) -> Array:
    """Read the page with OpenCV: [H,W] or [H,W,3 or 4] as RGB(A), uint8, uint16 (10 to 14 bits scaled to it) or float.

    OpenCV turns TIFFs upright whatever its flags are.
    """
    packed = np.frombuffer(data, np.uint8)
    try:
        # Of separate planes, only the conversion to 8 bits is right: OpenCV 5.0 leaves others partly unwritten
        flags = cv2.IMREAD_COLOR if page.planar else cv2.IMREAD_UNCHANGED
        if page.number:
            levels = cv2.imdecodemulti(packed, flags, range=(page.number, page.number + 1))[1][0]
        else:
            levels = cv2.imdecode(packed, flags)
    except (cv2.error, TypeError, IndexError):
        levels = None
    size = (page.width, page.height) if page.orientation in (5, 6, 7, 8) else (page.height, page.width)
    if levels is None or levels.shape[:2] != size:
        raise ImageError(
            f"{page.bits}-bit samples, damaged or laid out as OpenCV cannot read; save as 8 or 16 bits per channel"
        )
    if levels.ndim == 3 and levels.shape[2] >= 3:
        levels = levels[..., [2, 1, 0, *range(3, levels.shape[2])]]
    return np.asarray(np.iinfo(levels.dtype).max - levels if page.inverted else levels)


def check_pieces(data: bytes, page: Page) -> None:
    """Raise ImageError if compressed data are damaged: libtiff stops reading too early to notice."""
    left = _SPARE + 4 * page.width * page.height * page.channels * -(-page.bits // 8)  # bytes; tiles overlap the edges
    for start, end in page.pieces:
        piece = data[start:end]
        if page.compression == _JPEG:
            whole = page.tables[:-2] + piece[2:] if page.tables else piece
            scans = jpeg.inspect(whole)
            left -= scans.width * scans.height * scans.components
            if scans.plain and left >= 0:
                jpeg.pixels(whole, scans.components, eighth=True)
        elif page.compression in _DEFLATE:
            left -= png.inflated(piece, left)
        if left < 0:
            raise ImageError("damaged: its strips or tiles hold more than the picture; save it again")


def _pages(data: bytes) -> Iterator[Any]:
    if data.startswith(b"MM\0+"):
        raise ImageError(
            "a BigTIFF with the high byte first, which Pillow does not read; save it with the low one first"
        )
    file = io.BytesIO(data)
    seen: set[int] = set()
    try:
        header = file.read(8)
        if header[2] == 43:
            header += file.read(8)
        pages = ImageFileDirectory_v2(header)
        at = pages.next
        while at and at not in seen and len(seen) < MAX_PAGES:
            seen.add(at)
            tags = ImageFileDirectory_v2(header)
            file.seek(at)
            tags.load(file)
            yield tags
            at = tags.next
    except Exception as error:  # struct.error, SyntaxError, OSError, ...: damaged headers raise many types
        raise ImageError(
            f"starts like TIFF, but its header cannot be read, {len(data)} bytes ({type(error).__name__}: {error})"
        ) from error


def _one(tags: Any, tag: int, default: Any) -> Any:
    value = tags.get(tag, default)
    return (value[0] if value else default) if isinstance(value, tuple) else value


def _refuse_raw(tags: Any, first: Any) -> None:
    mosaic = _one(tags, _MEANING, 0) in (_CFA, _LINEAR_RAW)
    thumbnail = int(_one(first, _REDUCED, 0)) & 1 and _SUB_IFDS in first  # NEF, ARW, PEF, DNG
    if mosaic or _DNG in first or thumbnail:
        maker = str(_one(first, 271, "")).strip("\0 ")
        raise RawError("DNG" if _DNG in first else maker.title() or "TIFF")


def _page(number: int, tags: Any) -> Page:
    bits, kind = _all(tags, _BITS) or (1,), _one(tags, _FORMAT, 1)
    samples, meaning = int(_one(tags, _SAMPLES, 1)), int(_one(tags, _MEANING, 1))
    planes = _one(tags, _PLANAR, 1) == 2
    if kind in (2, 5, 6) or (kind == 3 and bits[0] not in (32, 64)):
        raise ImageError(f"{_TYPES[kind]} {bits[0]}-bit samples; save as unsigned 8 or 16 bits per channel")
    if kind not in (1, 3, 4):
        raise ImageError(f"samples of unknown type {kind}; save as unsigned 8 or 16 bits per channel")
    if kind != 3 and bits[0] in (24, 32, 64):
        raise ImageError(
            f"{bits[0]}-bit integer samples, whose white level is not known; save as 8 or 16 bits per channel"
        )
    if len(set(bits)) > 1:
        raise ImageError(f"{', '.join(map(str, bits))} bits per sample; save as 8 or 16 bits per channel")
    deep = kind == 3 and (samples > 1 or bits[0] == 64)
    odd = bits[0] not in (1, 2, 4, 8, 16, 32, 64)
    inverted = meaning == 0 and samples == 1 and bits[0] > 8
    if kind == 3 and inverted:
        raise ImageError("float samples whose white is zero; save as unsigned 8 or 16 bits per channel")
    planar = planes and samples > 1 and (deep or odd or bits[0] == 16)
    if planar and (samples, int(bits[0]), kind) != (3, 16, 1):
        raise ImageError(f"{samples} planes of {bits[0]} bits; save it with its channels side by side (contiguous)")
    compression, palette = int(_one(tags, _COMPRESSION, 1)), tags.get(_PALETTE, ())
    if compression in _UNREAD:
        raise ImageError(f"compressed as {_UNREAD[compression]}, which is not read; save it with LZW, Deflate or none")
    checked = (compression == _JPEG or compression in _DEFLATE) and _one(tags, _FILL_ORDER, 1) == 1
    opencv = deep or odd or planar or (bits[0] == 16 and inverted)
    return Page(
        number,
        int(_one(tags, _WIDTH, 0)),
        int(_one(tags, _HEIGHT, 0)),
        samples,
        int(bits[0]),
        planar,
        opencv,
        inverted,
        int(_one(tags, _ORIENTATION, 1)),
        compression,
        tuple(_pieces(tags)) if checked else (),
        bytes(tags.get(_TABLES, b"")),
        bytes(tags.get(_PROFILE, b"")),
        bytes(palette) if meaning == 3 and 0 < max(palette, default=0) < 256 else b"",
    )


def _pieces(tags: Any) -> Iterator[tuple[int, int]]:
    for starts, counts in _PIECES:
        for start, count in zip(_all(tags, starts), _all(tags, counts), strict=False):
            yield int(start), int(start) + int(count)


def _all(tags: Any, tag: int) -> tuple[Any, ...]:
    value = tags.get(tag, ())
    return value if isinstance(value, tuple) else (value,)
