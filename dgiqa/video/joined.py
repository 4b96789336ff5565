"""A file of several recordings, one behind the other -> where the second begins, if FFmpeg reads the first alone.

MPEG-TS and PS, Matroska and streams without a container may be joined so, and are read to their end.
"""

from __future__ import annotations

import mmap
import os

_MARKS = {  # what a recording begins with
    "flv": b"FLV\x01",
    "asf": bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"),
    "nut": b"nut/multimedia container\0",
}
_FLV_HEADER = (b"\x01\0\0\0\x09\0\0\0\0", b"\x04\0\0\0\x09\0\0\0\0", b"\x05\0\0\0\x09\0\0\0\0")  # video, sound, both


def second_recording(path: str | os.PathLike[str], container: str) -> int | None:
    """Byte at which another recording begins, None if there is none. container: FFmpeg's name of the format."""
    names = container.split(",")
    if not os.path.getsize(path):
        return None
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if "mov" in names:
            return _second_movie(data)
        mark = next((_MARKS[name] for name in names if name in _MARKS), None)
        at = -1 if mark is None else data.find(mark, len(mark))
        while mark is not None and "flv" in names and at >= 0 and data[at + 4 : at + 13] not in _FLV_HEADER:
            at = data.find(mark, at + 1)
        return at if at >= 0 else None


def _second_movie(data: mmap.mmap) -> int | None:
    """Where the second `ftyp` of MP4 or QuickTime is, unless it is in fragments, of which FFmpeg reads all."""
    at, types = 0, []
    while at + 16 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if kind == b"moof" or size < 8:
            return None
        if kind in (b"ftyp", b"moov") and kind in types:
            return at
        types.append(kind)
        at += size
    return None
