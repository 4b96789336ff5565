"""Read PBM, PGM and PPM, binary and plain, with NumPy: Pillow reads headers, comments and odd whites byte by byte."""

import re
from typing import NamedTuple

import numpy as np

from dgiqa.dtypes import Array
from dgiqa.errors import ImageError

MAX_HEADER = 1 << 16  # bytes, comments included
_GAP = rb"(?:\s|#[^\r\n]*[\r\n])+"
_HEADER = re.compile(rb"P([1-6])" + _GAP + rb"(\d{1,9})" + _GAP + rb"(\d{1,9})")
_WHITE = re.compile(_GAP + rb"(\d{1,5})")
_COMMENT = re.compile(rb"#[^\r\n]*")


class Header(NamedTuple):
    """number: 1 to 6, for P1 to P6. white: the greatest level. start: byte at which the pixels begin."""

    number: int
    width: int
    height: int
    white: int
    start: int


def header(data: bytes) -> Header:
    """Read the header. Raises ImageError if it cannot be read."""
    head = data[:MAX_HEADER]
    found = _HEADER.match(head)
    if not found:
        raise ImageError(f"starts like PPM, but its header cannot be read in the first {len(head):,} bytes")
    number, width, height, white, end = int(found[1]), int(found[2]), int(found[3]), 1, found.end()
    if number not in (1, 4):
        level = _WHITE.match(head, end)
        if not level or not 1 <= int(level[1]) <= 65535:
            raise ImageError("starts like PPM, but its header gives no white level from 1 to 65535")
        white, end = int(level[1]), level.end()
    if not width or not height:
        raise ImageError(f"starts like PPM, but its header says {width} x {height} pixels")
    return Header(number, width, height, white, end + (number > 3))


def pixels(data: bytes, h: Header) -> Array:
    """Levels [H,W] or [H,W,3]: uint8, or uint16 over 0..65535 if white is more than 255."""
    shape = (h.height, h.width, 3) if h.number in (3, 6) else (h.height, h.width)
    count = int(np.prod(shape))
    levels = _plain(data, h, count) if h.number < 4 else _binary(data, h, count)
    if len(levels) < count:
        raise ImageError(f"truncated: {len(levels):,} of {count:,} values are there; fetch or save it again")
    levels = levels[:count].reshape(shape)
    if h.number in (1, 4):
        return ((1 - levels) * 255).astype(np.uint8)  # 1 is black
    if levels.max() > h.white:
        raise ImageError(f"damaged: a level of {levels.max()}, its white is {h.white}; fetch or save it again")
    if h.white in (255, 65535):
        return levels.astype(np.uint8 if h.white == 255 else np.uint16)
    full = 255 if h.white < 256 else 65535
    return np.rint(levels * (full / h.white)).astype(np.uint8 if full == 255 else np.uint16)


def _binary(data: bytes, h: Header, count: int) -> Array:
    if h.number == 4:
        rows = np.frombuffer(data, np.uint8, offset=h.start)[: h.height * -(-h.width // 8)]
        whole = rows[: len(rows) // -(-h.width // 8) * -(-h.width // 8)].reshape(-1, -(-h.width // 8))
        return np.asarray(np.unpackbits(whole, axis=1)[:, : h.width]).ravel()
    kind = np.dtype(np.uint8 if h.white < 256 else ">u2")
    there = max(0, (len(data) - h.start) // kind.itemsize)
    return np.frombuffer(data, kind, count=min(count, there), offset=min(h.start, len(data)))


def _plain(data: bytes, h: Header, count: int) -> Array:
    text = _COMMENT.sub(b"", data[h.start :])
    if h.number == 1:  # digits need no gaps between them
        digits = np.frombuffer(text, np.uint8)
        digits = digits[(digits != 32) & ((digits < 9) | (digits > 13))][:count]
        levels = digits.astype(np.int64) - 48
    else:
        try:
            levels = np.array(text.split(None, count)[:count], np.int64)
        except (ValueError, OverflowError) as error:
            raise ImageError(f"damaged: {error}; fetch or save it again") from error
    if len(levels) and (levels.min() < 0 or (h.number == 1 and levels.max() > 1)):
        raise ImageError("damaged: an impossible level; fetch or save it again")
    return np.asarray(levels)
