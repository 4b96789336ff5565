"""Zero bytes in place of a WebP, AVIF, HEIC or JPEG 2000 picture's data: decoders make some picture of any bytes."""

from __future__ import annotations

import re
import struct

from dgiqa.errors import ImageError

LEAST = 64  # zero bytes in a row; coded photographs have 11 at most
_OF_FLAT = 2e-4  # bytes per pixel that lossy WebP has of flat areas: measured half of it, of white and black pictures
_METADATA = re.compile(rb"II\*\0|MM\0\*")


def check_webp(data: bytes, pixels: int) -> None:
    """Raise ImageError if a chunk of the picture holds more zero bytes in a row than its encoder writes.

    Without loss, a graphic of so few levels that two bits are enough for a pixel may have one zero bit for each.
    """
    at, flat = 12, LEAST + int(pixels * _OF_FLAT)
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, at)
        if kind in (b"VP8 ", b"VP8L", b"ALPH", b"ANMF"):
            graphic = kind != b"VP8 " and size * 8 < pixels * 2
            _check(data, at + 8, min(at + 8 + size, len(data)), max(flat, pixels // 8) if graphic else flat)
        at += 8 + size + size % 2


def check_heif(data: bytes) -> None:
    """The same for the coded data of AVIF and HEIC, up to where EXIF begins, which has zero bytes of its own."""
    start = data.find(b"mdat")
    if start < 4:
        return
    size = int.from_bytes(data[start - 4 : start], "big")
    if size == 1:
        size = int.from_bytes(data[start + 4 : start + 12], "big")
    end = min(start - 4 + size, len(data)) if size else len(data)
    metadata = _METADATA.search(data, start, end)
    _check(data, start + (12 if size >> 32 else 4), metadata.start() if metadata else end, LEAST)


def check_jp2(data: bytes) -> None:
    """The same for JPEG 2000, tile-part by tile-part."""
    at = data.find(b"\xff\x4f\xff\x51") + 2  # the start of the codestream, and its first marker
    most = LEAST + _flat_jp2(data, at)
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] not in (0x90, 0xD9):
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    while data[at : at + 2] == b"\xff\x90":
        size = int.from_bytes(data[at + 6 : at + 10], "big")
        end = min(at + size, len(data)) if size >= 14 else len(data)
        _check(data, at, end, most)
        at = end
    if data[at : at + 2] == bytes(2):
        raise ImageError(f"damaged: zero bytes from {at:,} on in place of the picture's data; fetch or copy it again")


def is_plain_jp2(data: bytes) -> bool:
    """Whether it is grey or RGB, with 8 bits and all pixels in every component: nothing to convert."""
    at = data.find(b"\xff\x4f\xff\x51") + 2
    count = int.from_bytes(data[at + 38 : at + 40], "big")
    each = data[at + 40 : at + 40 + 3 * count]
    converted = re.search(rb"colr\x01..\0\0\0[^\x10\x11]|pclr|cdef", data[:at], re.DOTALL)
    return count in (1, 3) and each == b"\x07\1\1" * count and not converted


def _flat_jp2(data: bytes, siz: int) -> int:
    """Zero bytes in a row that JPEG 2000 may have of flat areas: one for a packet, one bit for a block, both empty."""
    width, height, left, top = (int(value) for value in struct.unpack_from(">4I", data, siz + 6))
    components = int.from_bytes(data[siz + 38 : siz + 40], "big")
    at = siz
    while at + 14 <= len(data) and data[at : at + 2] not in (b"\xff\x52", b"\xff\x90"):
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    if data[at : at + 2] != b"\xff\x52" or at + 14 > len(data):
        return 0
    layers, levels = int.from_bytes(data[at + 6 : at + 8], "big"), data[at + 9]
    block = data[at + 10] + data[at + 11] + 4  # the logarithm of its pixels; so are precincts' sizes
    sizes = data[at + 14 : at + 15 + levels] if data[at + 4] & 1 else b"\xff"
    smallest = min((each & 15) + (each >> 4) for each in sizes or b"\xff")
    pixels = (width - left) * (height - top)
    packets = (levels + 1) * (1 + (pixels >> smallest))
    return layers * components * (packets + (pixels >> block) // 8)


def _check(data: bytes, start: int, end: int, most: int) -> None:
    if (at := data.find(bytes(most + 1), start, end)) >= 0:
        raise ImageError(f"damaged: zero bytes from {at:,} on in place of the picture's data; fetch or copy it again")
