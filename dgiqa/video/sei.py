"""HEVC packets -> the same without supplemental messages (SEI) that are cut short.

IP cameras write such messages. FFmpeg's decoder, when it is set to stop at errors, refuses the whole picture for them,
although no pixel depends on them.
"""

from collections.abc import Iterator
from typing import Any

PREFIX, SUFFIX = 39, 40  # nal_unit_type of SEI


def without_damage(packet: Any, context: Any) -> Any:
    """A PyAV packet of HEVC, copied without its damaged SEI; the packet itself if there is none."""
    data, config = bytes(packet), context.extradata or b""
    in_lengths = len(config) > 22 and config[0] == 1  # else start codes separate units (Annex B)
    units = list(_units(data, (config[21] & 3) + 1 if in_lengths else 0))
    bad = [(start, end) for start, payload, end in units if end - payload > 2 and _is_damaged(data[payload:end])]
    if not bad:
        return packet
    ends = [0, *(end for _, end in bad)]
    copy = type(packet)(b"".join(data[a:b] for a, b in zip(ends, [*(start for start, _ in bad), None], strict=True)))
    for name in ("pts", "dts", "duration", "time_base", "stream"):
        setattr(copy, name, getattr(packet, name))
    copy.is_keyframe = packet.is_keyframe
    return copy


def _units(data: bytes, length_bytes: int) -> Iterator[tuple[int, int, int]]:
    """(start with its length or start code, start of the unit, end) of every NAL unit."""
    if length_bytes:
        start = 0
        while start + length_bytes <= len(data):
            payload = start + length_bytes
            end = min(payload + int.from_bytes(data[start:payload], "big"), len(data))
            yield start, payload, end
            start = end
        return
    start = data.find(b"\0\0\1")
    while start >= 0:
        following = data.find(b"\0\0\1", start + 3)
        yield start, start + 3, len(data) if following < 0 else following
        start = following


def _is_damaged(unit: bytes) -> bool:
    """Whether a unit is SEI whose messages claim to be longer than it is."""
    if (unit[0] >> 1) & 0x3F not in (PREFIX, SUFFIX):
        return False
    body = unit[2:].replace(b"\0\0\3", b"\0\0").rstrip(b"\0")  # without emulation prevention
    position, end = 0, len(body) - 1  # the last byte holds the stop bit
    while position < end:
        for _ in ("type", "size"):
            value = 0
            while position < len(body) and body[position] == 0xFF:
                value, position = value + 255, position + 1
            if position >= len(body):
                return True
            value, position = value + body[position], position + 1
        position += value
        if position > end:
            return True
    return False
