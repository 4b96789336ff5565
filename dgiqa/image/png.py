"""Read a PNG file's chunks: the colours it is meant in, and whether all rows are there."""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from dgiqa.errors import ImageError

MAX_CHUNKS = 250_000  # Pillow handles each of them in Python
_CRITICAL = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})
_GAMMAS = (0.01, 100)  # libpng ignores others
_PIECE = 1 << 20  # bytes inflated at a time
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


class Colours(NamedTuple):
    """Primaries, transfer, matrix and full range as numbers of ITU-T H.273."""

    primaries: int
    transfer: int
    matrix: int
    full: int


def chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(type, start, end) of every chunk's contents. Raises ImageError if there are too many."""
    at = 8
    for _ in range(MAX_CHUNKS):
        if at + 8 > len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, at)
        yield kind, at + 8, min(at + 8 + length, len(data))
        at += 12 + length
        if kind == b"IEND":
            return
    raise ImageError(f"more than {MAX_CHUNKS:,} chunks; save it again")


class Gamma(NamedTuple):
    """Light is the level to the power 1 / exponent. chromaticities: x and y of white, red, green, blue, or None."""

    exponent: float
    chromaticities: tuple[float, ...] | None


def colours(data: bytes) -> Colours | Gamma | None:
    """The colours by the chunks before the pixels: cICP first, then a profile (None), then gAMA and cHRM.

    Raises ImageError if a necessary chunk is missing or unknown.
    """
    exponent, chromaticities, profile, palette = 0.0, None, False, data[25:26] != b"\3"
    for kind, start, end in chunks(data):
        body = data[start:end]
        if kind[:1].isupper() and kind not in _CRITICAL:  # Apple's CgBI, for one: blue first, and no zlib
            raise ImageError(f"PNG: with a chunk {kind!r}, without which its pixels mean nothing; save it again")
        if kind == b"cICP" and len(body) == 4:
            return Colours(*body)
        if kind == b"gAMA" and len(body) == 4:
            exponent = int.from_bytes(body, "big") / 100_000
        elif kind == b"cHRM" and len(body) == 32:
            chromaticities = tuple(value / 100_000 for value in struct.unpack(">8I", body))
        elif kind == b"IDAT":
            if not palette:
                raise ImageError("PNG: damaged: its palette is missing; fetch or save it again")
            break
        palette = palette or kind == b"PLTE"
        profile = profile or kind in (b"iCCP", b"sRGB")
    return Gamma(exponent, chromaticities) if _GAMMAS[0] <= exponent <= _GAMMAS[1] and not profile else None


def check_sums(data: bytes) -> None:
    """Raise ImageError if the pixels have a wrong checksum, which Pillow does not check."""
    view = memoryview(data)
    for kind, start, end in chunks(data):
        stored = data[end : end + 4]
        if kind == b"IDAT" and len(stored) == 4 and zlib.crc32(view[start - 4 : end]) != int.from_bytes(stored, "big"):
            raise ImageError(f"damaged: wrong checksum of the data up to byte {end:,}; fetch or copy it again")


def check_rows(data: bytes) -> None:
    """Raise ImageError unless the pixels' stream holds all rows. It inflates the stream again: for doubtful files."""
    wanted = _inflated_size(data)
    found = inflated(b"".join(data[start:end] for kind, start, end in chunks(data) if kind == b"IDAT"), wanted)
    if found < wanted:
        raise ImageError(f"truncated: its pixels end after {100 * found // wanted} %; fetch or save it again")


def inflated(data: bytes, most: int) -> int:
    """The number of bytes that zlib makes of the data; it stops soon after `most`.

    Raises ImageError if the data are damaged or do not match the checksum at their end, if there is one.
    """
    inflate, rest, found = zlib.decompressobj(), data, 0
    try:
        while not inflate.eof and found <= most:
            piece = inflate.decompress(rest, _PIECE)
            found, rest = found + len(piece), inflate.unconsumed_tail
            if not (piece or rest):
                break
    except zlib.error as error:
        raise ImageError(f"damaged: {error}; fetch or copy it again") from error
    return found


def _inflated_size(data: bytes) -> int:
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    bits = depth * _CHANNELS.get(colour, 1)

    def size(w: int, h: int) -> int:
        return h * (1 + -(-w * bits // 8)) if w else 0

    if not interlaced:
        return size(width, height)
    return sum(size(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in _PASSES)
