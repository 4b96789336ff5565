"""What a JPEG file's markers say before it is decoded: whether it is whole, and whether it would take for ever.

libjpeg fills in what is missing and only warns, which Pillow does not pass on. So zeroed sectors, missing scans and
padding are looked for here, in one pass that never looks at a byte of a scan in Python.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from dgiqa.errors import ImageError

END = b"\xff\xd9"
MAX_SCANS = 500  # each is as much work as the whole picture; encoders make about ten
MAX_METADATA = 1 << 25  # bytes before the first scan. Pillow takes time with the square of it
MAX_FILL = 1 << 16  # bytes of padding before a marker
ZEROS = 64  # zero bytes in a row that no encoder writes where they mean values
TAIL = 32  # bytes: some blocks, of which one will be seen to change

_MARKER = re.compile(rb"\xff+([^\xff\0])")
_AFTER_SCAN = re.compile(rb"\xff[^\0\xd0-\xd7\xff]")
_NO_LIMIT = 1 << 31
_SOF = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
_HUFFMAN = frozenset({0xC0, 0xC1, 0xC2})


@dataclass
class _Frame:
    """What the segments so far have said. blocks: per component, 8 x 8 blocks in an MCU. left: bits of every
    coefficient that no scan has brought yet, per component."""

    kind: int = 0
    width: int = 0
    height: int = 0
    blocks: dict[int, int] = field(default_factory=dict)
    left: dict[int, list[int]] = field(default_factory=dict)
    zero_symbol: dict[int, tuple[int, int]] = field(default_factory=dict)  # table -> what all zero bits mean, bits
    scans: int = 0
    doubtful: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Scans:
    """ended: there is an end marker. complete: every bit of every coefficient has had its scan.

    doubtful: first and last byte, exclusive, of scans with runs of zero bytes: a flat area, or a lost sector.
    """

    ended: bool
    complete: bool
    doubtful: tuple[tuple[int, int], ...] = ()


def inspect(data: bytes) -> Scans:
    """Walk over a JPEG file's segments. Raises ImageError where what was saved is not there any more."""
    frame, at = _Frame(), 2
    while marker := _MARKER.search(data, at):
        if marker.end() - at > MAX_FILL:
            raise ImageError(f"{marker.end() - at:,} bytes of padding between two markers; save it again")
        code, at = marker[1][0], marker.end()
        if code == END[1]:
            return Scans(True, _complete(frame), tuple(frame.doubtful))
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
    return Scans(False, _complete(frame))


def _table(code: int, segment: bytes, frame: _Frame) -> None:
    if code in _SOF and len(segment) >= 6:
        frame.kind, count = code, segment[5]
        frame.height, frame.width = int.from_bytes(segment[1:3], "big"), int.from_bytes(segment[3:5], "big")
        parts = [segment[6 + 3 * i : 9 + 3 * i] for i in range(count)]
        frame.blocks = {p[0]: (p[1] >> 4) * (p[1] & 15) for p in parts if len(p) == 3}
        frame.left = {component: [14] * 64 for component in frame.blocks}
    elif code == 0xC4:
        while len(segment) >= 17:
            counts, table = segment[1:17], segment[0]
            bits = next((i + 1 for i, n in enumerate(counts) if n), 0)
            if bits and len(segment) > 17:  # codes are given in order: the first is all zeros
                frame.zero_symbol[table] = (segment[17], bits)
            segment = segment[17 + sum(counts) :]


def _scan(data: bytes, at: int, header: bytes, frame: _Frame) -> int:
    """Note a scan, and return where it ends."""
    frame.scans += 1
    if frame.scans > MAX_SCANS:
        raise ImageError(f"more than {MAX_SCANS} scans, each as much work as a whole picture; save it again")
    found = _AFTER_SCAN.search(data, at)
    end = found.start() if found else len(data)
    count = header[0] if header else 0
    if len(header) >= 4 + 2 * count:
        components = {header[1 + 2 * i]: header[2 + 2 * i] for i in range(count)}
        first, last, low = header[-3], header[-2], header[-1] & 15
        for left in (frame.left[c] for c in components if c in frame.left):
            left[first : last + 1] = [low] * len(left[first : last + 1])
        most = _most_zeros(frame, components, first, header[-1] >> 4)
        if most < end - at and (zeros := data.find(bytes(most + 1), at, end)) >= 0:
            raise ImageError(
                f"damaged: zero bytes from {zeros:,} on in place of the picture's data; fetch or copy it again"
            )
        refines_dc = frame.kind == 0xC2 and not first and header[-1] >> 4  # a bit for each block, whatever they are
        if not refines_dc and data.find(bytes(ZEROS), at, end) >= 0:
            frame.doubtful.append((at, end))
    return end


def with_longer_scans(data: bytes, scans: Sequence[tuple[int, int]]) -> bytes:
    """The file with more data behind these scans: nobody reads it, unless a scan's own was not enough."""
    for _, end in sorted(scans, reverse=True):
        data = data[:end] + b"\x55" * 64 + data[end:]
    return data


def with_another_end(data: bytes, scan: tuple[int, int], *, head: bool = False) -> bytes:
    """The file with other data in a scan's last bytes, or first: everybody reads them, unless it was over before."""
    start, end = (scan[0], min(scan[1], scan[0] + TAIL)) if head else (max(scan[0], scan[1] - TAIL), scan[1])
    start -= data[start - 1] == 0xFF  # never between an escape and its zero
    end += data[end - 1] == 0xFF and head
    return data[:start] + bytes((value ^ 0x5A) & 0xFE or 0x5A for value in data[start:end]) + data[end:]


def _most_zeros(frame: _Frame, components: dict[int, int], first: int, refines: int) -> int:
    """Zero bytes in a row that an encoder may have written in a scan.

    components: their tables, as the scan's header gives them. first: its first coefficient. refines: the bit that it
    makes finer, 0 for none. A flat picture is written in zero bits where they mean "as before" and "nothing more": then
    there are as many as it has blocks. Elsewhere they mean values, of which no picture has hundreds alike.
    """
    if frame.kind not in _HUFFMAN:
        return _NO_LIMIT
    progressive = frame.kind == 0xC2
    if progressive and refines:
        return _NO_LIMIT if first else ZEROS + _mcus(frame) * sum(frame.blocks.get(c, 1) for c in components) // 8
    if progressive and first:  # "nothing more" is said once for a whole row of blocks
        return ZEROS
    bits = 0
    for component, tables in components.items():
        used = (tables >> 4,) if progressive else (tables >> 4, 16 + (tables & 15))
        meant = [frame.zero_symbol.get(table, (-1, 1)) for table in used]
        if any(symbol for symbol, _ in meant):
            return ZEROS
        bits += frame.blocks.get(component, 1) * sum(n for _, n in meant)
    return ZEROS + _mcus(frame) * bits // 8


def _mcus(frame: _Frame) -> int:
    """At most: a picture of one component has blocks of 8 x 8 whatever its sampling says."""
    return -(-frame.width // 8) * -(-frame.height // 8)


def _complete(frame: _Frame) -> bool:
    if frame.kind != 0xC2:
        return frame.scans > 0
    return all(not any(left) for left in frame.left.values())
