"""Find zero bytes in place of a WebP, AVIF or HEIC picture's data: decoders turn any bytes into some picture."""

import re
import struct

from dgiqa.errors import ImageError

LEAST = 64  # zero bytes in a row; coded photographs have at most 11
_OF_FLAT = 2e-4  # zero bytes per pixel in flat areas of lossy WebP: twice as many as in white and black pictures
_METADATA = re.compile(rb"II\*\0|MM\0\*")


def check_webp(data: bytes, pixels: int) -> None:
    """Raise ImageError if a chunk of the picture holds a longer run of zero bytes than an encoder writes.

    A lossless graphic with less than two bits per pixel may have one zero bit for each pixel.
    """
    at, flat = 12, LEAST + int(pixels * _OF_FLAT)
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, at)
        if kind in (b"VP8 ", b"VP8L", b"ALPH", b"ANMF"):
            graphic = kind != b"VP8 " and size * 8 < pixels * 2
            _check(data, at + 8, min(at + 8 + size, len(data)), max(flat, pixels // 8) if graphic else flat)
        at += 8 + size + size % 2


def check_heif(data: bytes) -> None:
    """Check the coded data of AVIF and HEIC in the same way, up to EXIF, which has its own zero bytes."""
    start = data.find(b"mdat")
    if start < 4:
        return
    size = int.from_bytes(data[start - 4 : start], "big")
    if size == 1:
        size = int.from_bytes(data[start + 4 : start + 12], "big")
    end = min(start - 4 + size, len(data)) if size else len(data)
    metadata = _METADATA.search(data, start, end)
    _check(data, start + (12 if size >> 32 else 4), metadata.start() if metadata else end, LEAST)


def _check(data: bytes, start: int, end: int, most: int) -> None:
    if (at := data.find(bytes(most + 1), start, end)) >= 0:
        raise lost(at)


def lost(at: int) -> ImageError:
    """The error for zero bytes that no encoder wrote."""
    return ImageError(f"damaged: zero bytes from {at:,} on in place of the picture's data; fetch or copy it again")
