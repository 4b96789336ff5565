"""Read a JPEG file's markers before decoding: whether it is complete, and whether decoding would take for ever.

libjpeg fills in missing data and only warns. `pixels` turns its warnings into errors. Zeroed sectors, missing scans and
padding are found before that, in one pass that does not look at a scan's bytes in Python.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simplejpeg

from dgiqa.dtypes import UInt8
from dgiqa.errors import ImageError
from dgiqa.image import zeros

END = b"\xff\xd9"
MAX_SCANS = 500  # encoders make about ten
MAX_WORK = 4_000_000_000  # pixels times scans, each of which is as much work as the whole picture: about 20 s
MAX_METADATA = 1 << 25  # bytes before the first scan; Pillow's time grows with the square
MAX_FILL = 1 << 16  # bytes of padding before a marker

_MARKER = re.compile(rb"\xff+([^\xff\0])")
_AFTER_SCAN = re.compile(rb"\xff[^\0\xd0-\xd7\xff]")
_NO_LIMIT = 1 << 31
_SPACES = {1: "GRAY", 3: "RGB", 4: "CMYK"}
# The samplings that TurboJPEG decodes: luma samples per chroma sample, across and down, equal for both chromas
_SAMPLINGS = frozenset({(1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (1, 4)})
_SOF = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
_ARITHMETIC = 0xC9  # and above
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_HUFFMAN = frozenset({0xC0, 0xC1, 0xC2})
_HARMLESS = re.compile("JFIF|Adobe|ICC|Invalid SOS parameters for sequential")  # libjpeg's warnings about odd headers


@dataclass
class Scans:
    """The facts in the segments read so far. ended: there is an end marker.

    sampling: per component, 8 x 8 blocks in an MCU across and down. left: per component, the number of bits of each
    coefficient that no scan has brought yet. zero_symbol: per table, the meaning of the all-zero code, and its length.
    """

    ended: bool = False
    kind: int = 0
    bits: int = 0
    width: int = 0
    height: int = 0
    sampling: dict[int, tuple[int, int]] = field(default_factory=dict)
    left: dict[int, list[int]] = field(default_factory=dict)
    zero_symbol: dict[int, tuple[int, int]] = field(default_factory=dict)
    scans: int = 0

    @property
    def components(self) -> int:
        """The number of components: 1 for grey, 3 for colour, 4 for ink."""
        return len(self.sampling)

    @property
    def complete(self) -> bool:
        """Whether the scans have brought every bit of every coefficient."""
        if self.kind not in _PROGRESSIVE:
            return self.scans > 0
        return not any(map(any, self.left.values()))

    @property
    def plain(self) -> bool:
        """Whether it has 8 bits, Huffman codes and a usual sampling, as nearly all files do."""
        luma, *chroma = [*self.sampling.values()] or [(1, 1)]
        ratios = {(luma[0] / c[0], luma[1] / c[1]) for c in chroma[:2]}
        usual = len(ratios) < 2 and ratios <= _SAMPLINGS and (self.components < 4 or chroma[2] == luma)
        return self.kind in _HUFFMAN and self.bits == 8 and self.components in _SPACES and usual

    @property
    def mcus(self) -> int:
        """The largest possible number of MCUs: with one component they are 8 x 8, whatever its sampling is."""
        return -(-self.width // 8) * -(-self.height // 8)

    def blocks(self, component: int) -> int:
        """The number of a component's 8 x 8 blocks in an MCU."""
        across, down = self.sampling.get(component, (1, 1))
        return across * down


def inspect(data: bytes) -> Scans:
    """Walk over a JPEG file's segments. Raises ImageError if saved data are missing, or there is too much to decode."""
    frame, at = Scans(), 2
    while marker := _MARKER.search(data, at):
        if marker.end() - at > MAX_FILL:
            raise ImageError(f"{marker.end() - at:,} bytes of padding between two markers; save it again")
        code, at = marker[1][0], marker.end()
        if code == END[1]:
            frame.ended = True
            return frame
        if 0xD0 <= code <= 0xD8 or code == 0x01:
            continue
        length = int.from_bytes(data[at : at + 2], "big")
        segment, at = data[at + 2 : at + length], at + max(length, 2)
        if code == 0xDA:
            at = _scan(data, at, segment, frame)
        else:
            _table(code, segment, frame)
        if not frame.scans and at > MAX_METADATA:
            raise ImageError(f"more than {MAX_METADATA:,} bytes before the picture; save it without its metadata")
    return frame


def pixels(data: bytes, components: int, *, eighth: bool = False) -> UInt8:
    """The pixels of a plain JPEG with this many components: uint8 [H,W,3], [H,W,1] for grey or [H,W,4] for ink.

    eighth: decode to an eighth of width and height, for a check only. Raises ImageError if libjpeg warns that data are
    missing, or that they do not end with the picture.
    """
    how: dict[str, Any] = {"colorspace": _SPACES[components], "fastdct": False, "fastupsample": False}
    if eighth:
        how |= {"min_factor": 8.0, "min_height": 1, "min_width": 1}
    try:
        return np.asarray(simplejpeg.decode_jpeg(data, strict=True, **how))
    except ValueError as error:
        if not _HARMLESS.search(str(error)):
            raise ImageError(f"damaged: {error}; fetch or copy it again") from error
        return np.asarray(simplejpeg.decode_jpeg(data, strict=False, **how))


def _table(code: int, segment: bytes, frame: Scans) -> None:
    if code in _SOF and len(segment) >= 6:
        frame.kind, frame.bits, count = code, segment[0], segment[5]
        frame.height, frame.width = int.from_bytes(segment[1:3], "big"), int.from_bytes(segment[3:5], "big")
        parts = [segment[6 + 3 * i : 9 + 3 * i] for i in range(count)]
        frame.sampling = {p[0]: (p[1] >> 4 or 1, p[1] & 15 or 1) for p in parts if len(p) == 3}
        frame.left = {component: [14] * 64 for component in frame.sampling}
    elif code == 0xC4:
        while len(segment) >= 17:
            counts, table = segment[1:17], segment[0]
            bits = next((i + 1 for i, n in enumerate(counts) if n), 0)
            if bits and len(segment) > 17:  # codes are given in order: the first is all zeros
                frame.zero_symbol[table] = (segment[17], bits)
            segment = segment[17 + sum(counts) :]


def _scan(data: bytes, at: int, header: bytes, frame: Scans) -> int:
    """Record a scan, and return its end."""
    frame.scans += 1
    if frame.scans > MAX_SCANS:
        raise ImageError(f"more than {MAX_SCANS} scans, each as much work as a whole picture; save it again")
    if frame.scans * frame.width * frame.height > MAX_WORK:
        raise ImageError(f"{frame.scans} scans of {frame.width} x {frame.height} pixels, too much work; save it again")
    found = _AFTER_SCAN.search(data, at)
    end = found.start() if found else len(data)
    count = header[0] if header else 0
    if len(header) >= 4 + 2 * count:
        components = {header[1 + 2 * i]: header[2 + 2 * i] for i in range(count)}
        first, last, low = header[-3], header[-2], header[-1] & 15
        for left in (frame.left[c] for c in components if c in frame.left):
            left[first : last + 1] = [low] * len(left[first : last + 1])
        most = _most_zeros(frame, components, first, header[-1] >> 4)
        if most < end - at and (first_zero := data.find(bytes(most + 1), at, end)) >= 0:
            raise zeros.lost(first_zero)
    return end


def _most_zeros(frame: Scans, components: dict[int, int], first: int, refines: int) -> int:
    """The longest run of zero bytes that an encoder may write in a scan.

    components: component -> its tables in the scan's header. first: the scan's first coefficient. refines: the bit that
    the scan refines, 0 for none. Where zero bits mean "as before" and "nothing more", a flat picture consists of them,
    as many as it has blocks. Elsewhere they mean values, of which no picture has hundreds alike in a row.
    """
    if frame.kind not in _HUFFMAN:
        return zeros.LEAST if frame.kind >= _ARITHMETIC else _NO_LIMIT
    progressive = frame.kind == 0xC2
    if progressive and refines:
        return _NO_LIMIT if first else zeros.LEAST + frame.mcus * sum(map(frame.blocks, components)) // 8
    if progressive and first:  # one "nothing more" covers a whole row of blocks
        return zeros.LEAST
    bits = 0
    for component, tables in components.items():
        used = (tables >> 4,) if progressive else (tables >> 4, 16 + (tables & 15))
        meant = [frame.zero_symbol.get(table, (-1, 1)) for table in used]
        if any(symbol for symbol, _ in meant):
            return zeros.LEAST
        bits += frame.blocks(component) * sum(n for _, n in meant)
    return zeros.LEAST + frame.mcus * bits // 8
