"""Read a JPEG 2000 file's header, and find zero bytes in place of its data."""

import re
import struct
from typing import NamedTuple

import numpy as np

from dgiqa.dtypes import UInt8
from dgiqa.errors import ImageError
from dgiqa.image import zeros

_SPACES = frozenset({12, 16, 17, 18})  # CMYK, sRGB, grey, sYCC
_LAGS = 64  # the longest period of a drawing, pixels
_SAME = 0.02  # share of edges that differ a period on: 0.003 in periodic drawings, 0.07 or more in damaged photographs


class Header(NamedTuple):
    """start: of the codestream's first segment. bits: of each component. steps: pixels from one of its samples to the
    next, across and down. converted: whether components are not grey, RGB or alpha. palette: whether they are indices.
    ordered: whether the file says which component is which.
    """

    start: int
    width: int
    height: int
    bits: tuple[int, ...]
    steps: tuple[tuple[int, int], ...]
    converted: bool
    palette: bool
    ordered: bool

    @property
    def plain(self) -> bool:
        """Whether it is grey or RGB, with 8 bits and every pixel in each component: there is nothing to convert."""
        return self.bits in ((8,), (8, 8, 8)) and set(self.steps) == {(1, 1)} and not (self.converted or self.ordered)


def header(data: bytes) -> Header:
    """Read the header. Raises ImageError for colours and channels that Pillow would take for others."""
    start = data.find(b"\xff\x4f\xff\x51") + 2
    right, bottom, left, top, tile = struct.unpack_from(">5I", data, start + 6)
    width = right - left
    count = int.from_bytes(data[start + 38 : start + 40], "big")
    each = [data[at : at + 3] for at in range(start + 40, start + 40 + 3 * count, 3)]
    steps = tuple((c[1], c[2]) for c in each)
    if any(width % across or min(tile, width) % across or left % across for across, _ in steps):
        raise ImageError("colours with fewer samples, in a picture or tiles of odd width; convert it to PNG or JPEG")
    _check_channels(data[:start])
    head, bits = data[:start], tuple(1 + (c[0] & 0x7F) for c in each)
    converted = re.search(rb"colr\x01..\0\0\0[^\x10\x11]|pclr", head, re.DOTALL) is not None
    return Header(start, width, bottom - top, bits, steps, converted, b"pclr" in head, b"cdef" in head)


def _check_channels(head: bytes) -> None:
    """Raise ImageError unless channels are colours in order, then alpha, in a supported colour space."""
    space = re.search(rb"colr\x01..(.{4})", head, re.DOTALL)
    if space and (number := int.from_bytes(space[1], "big")) not in _SPACES:
        raise ImageError(f"colours in JPEG 2000's space number {number}, which is not read; convert it to sRGB")
    at = head.find(b"cdef")
    count = int.from_bytes(head[at + 4 : at + 6], "big") if at >= 0 else 0
    for channel, kind, colour in struct.iter_unpack(">3H", head[at + 6 : at + 6 + 6 * count]):
        if kind > 1 or (kind == 0 and colour != channel + 1):
            raise ImageError("channels that are neither colours in order nor plain alpha; convert it to PNG or JPEG")
    at = head.find(b"cmap")
    columns = head[at + 4 : at - 4 + int.from_bytes(head[at - 4 : at], "big")] if at >= 4 else b""
    if any(column != (0, 1, i) for i, column in enumerate(struct.iter_unpack(">HBB", columns))):
        raise ImageError("a palette whose columns are not red, green and blue; convert it to PNG or JPEG")


def longest_zeros(data: bytes, header: Header) -> int | None:
    """The position of a longer run of zero bytes than flat areas give, or None. Searches each tile-part by itself."""
    at, most = header.start, zeros.LEAST
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] not in (0x90, 0xD9):
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0x52:
            most = zeros.LEAST + _flat(data[at:end], header)
        at = end
    while data[at : at + 2] == b"\xff\x90":
        size = int.from_bytes(data[at + 6 : at + 10], "big")
        end = min(at + size, len(data)) if size >= 14 else len(data)
        if (found := data.find(bytes(most + 1), at, end)) >= 0:
            return found
        at = end
    return at if data[at : at + 2] == bytes(2) else None


def is_periodic(rgb: UInt8) -> bool:
    """Whether uint8 [H,W,3] is a periodic drawing, the only kind of picture that is coded with long runs of zeros."""
    levels = rgb[..., 1].astype(np.int16)
    edges = np.abs(np.diff(levels, axis=0))[:, :-1] + np.abs(np.diff(levels, axis=1))[:-1]
    for across in (edges, edges.T):
        for lag in range(1, min(_LAGS, len(across) // 2)):
            before, after = across[:-lag], across[lag:]
            if np.abs(before - after).sum() <= _SAME * (before.sum() + after.sum()):
                return True
    return False


def _flat(coding: bytes, header: Header) -> int:
    """The longest run of zero bytes that flat areas may give: a byte per empty packet, a bit per empty block.

    coding: the segment that says how pixels are coded (COD), from its marker on.
    """
    if len(coding) < 14:
        return 0
    layers, levels = int.from_bytes(coding[6:8], "big"), coding[9]
    block = coding[10] + coding[11] + 4  # the logarithm of its pixels; so are precincts' sizes
    sizes = coding[14 : 15 + levels] if coding[4] & 1 else b"\xff"
    smallest = min((each & 15) + (each >> 4) for each in sizes or b"\xff")
    pixels = header.width * header.height
    packets = (levels + 1) * (1 + (pixels >> smallest))
    return layers * len(header.bits) * (packets + (pixels >> block) // 8)
