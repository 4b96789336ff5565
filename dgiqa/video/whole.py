"""Finds what FFmpeg's demuxers skip silently: the rest of a file after damage or a cut, and a second recording.

Files are chains of parts that state their own length. Where a chain breaks, a demuxer looks for a part that it knows,
or stops as if that were the end.
"""

import mmap
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

_LOST = 1024  # so many zero bytes in a row are in no stream without a container
_BARE = ("h264", "hevc", "mpegvideo", "m4v", "dv")
# Units that belong before a picture, by the byte after their start code
_HEADERS = {
    "h264": re.compile(rb"[\x06-\x09\x26-\x29\x46-\x49\x66-\x69]"),
    "hevc": re.compile(rb"[\x40-\x47\x4e]"),
    "mpegvideo": re.compile(rb"[\0\xb2\xb3\xb5\xb8]"),
}
_TS = 188  # bytes of a packet
_TS_AT_A_TIME = 1 << 18  # packets, 49 MB
_MARKS = {"flv": b"FLV\x01", "nut": b"nut/multimedia container\0"}  # the beginning of a recording
_FLV_HEADER = (b"\x01\0\0\0\x09\0\0\0\0", b"\x04\0\0\0\x09\0\0\0\0", b"\x05\0\0\0\x09\0\0\0\0")  # video, sound, both
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_FIELDS = (0, 1, 2, 4)  # bytes that ASF's numbers have
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")

Part = Callable[[Any, int], int]  # bytes of a file, where a part begins -> its length, 0 where none begins


def unseen(path: str | os.PathLike[str], container: str, counted: int | None = None) -> str:
    """What a file hides that was read to its end, or "". container: FFmpeg's name of the format.

    counted: the number in the file of the stream of MPEG-TS or ASF whose packets are counted.
    """
    if not os.path.getsize(path):
        return ""
    name = container.split(",", maxsplit=1)[0]  # the usual one of several
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if (at := _second_recording(data, name)) is not None:
            return f"another recording begins at byte {at:,}, which was not read: split it there"
        at = _break(data, name)
        if at is None and counted is not None and name in _COUNTS:
            at = _COUNTS[name](data, counted)
    return "" if at is None else f"damaged or cut off at byte {at:,}, so that not all of it was read"


def _second_recording(data: mmap.mmap, name: str) -> int | None:
    if name == "mov":
        return _second_movie(data)
    if name == "asf":
        return next((at for at, _ in _chain(data, _asf) if at and data[at : at + 16] == _ASF), None)
    mark = _MARKS.get(name, b"")
    at = data.find(mark, len(mark)) if mark else -1
    while name == "flv" and at >= 0 and data[at + 4 : at + 13] not in _FLV_HEADER:
        at = data.find(mark, at + 1)
    return at if at >= 0 else None


def _second_movie(data: mmap.mmap) -> int | None:
    """The place of a second `ftyp` or `moov` in MP4 or QuickTime; None in fragmented files: FFmpeg reads them whole."""
    types: list[bytes] = []
    for at, _ in _chain(data, _box):
        kind = data[at + 4 : at + 8]
        if kind == b"moof":
            return None
        if kind in (b"ftyp", b"moov") and kind in types:
            return at
        types.append(kind)
    return None


def _break(data: mmap.mmap, name: str) -> int | None:
    """The place where the chain of parts breaks, or where zero bytes replaced data."""
    if name in _BARE and (at := data.find(bytes(_LOST))) >= 0:
        return at
    if name in _HEADERS:
        last = data.rfind(b"\0\0\1")
        return last if _HEADERS[name].match(data, last + 3) else None
    if name == "mpegts":  # FFmpeg reports anything missing before its end
        rest = len(data) % _TS
        return len(data) - rest if rest and data[0] == data[_TS] == ord("G") else None
    for at, length in _chain(data, _PARTS[name]) if name in _PARTS else ():
        if not length or at + length > len(data):
            return at or None  # not even its first part: FFmpeg knows another layout
    return None


def _missing(data: mmap.mmap, pid: int) -> int | None:
    """The place where packets of a stream in MPEG-TS are missing, by their counter.

    Where recordings were joined, all counters start again, the one of the program table (stream 0) at 0.
    """
    count, begin = len(data) // _TS, 0
    while begin < count and data[0] == data[_TS] == ord("G"):
        length = min(count - begin, _TS_AT_A_TIME)
        heads = np.frombuffer(data, np.uint8, length * _TS, begin * _TS).reshape(-1, _TS)[:, :6].astype(np.int32)
        if (lost := heads[:, 0] != ord("G")).any():
            return (begin + int(lost.argmax())) * _TS
        pids = (heads[:, 1] & 31) << 8 | heads[:, 2]
        told = (heads[:, 3] & 32 > 0) & (heads[:, 4] > 0) & (heads[:, 5] & 128 > 0)  # that its counter jumps
        anew = np.flatnonzero((pids == 0) & (heads[:, 3] & 15 == 0))
        of = np.flatnonzero((pids == pid) & (heads[:, 3] & 16 > 0))  # those with a payload are counted
        steps = np.diff(heads[of, 3]) & 15
        for i in np.flatnonzero((steps > 1) & ~told[of[1:]]):
            if not ((anew > of[i]) & (anew < of[i + 1])).any():
                return (begin + int(of[i]) + 1) * _TS
        begin += int(of[-1]) if len(of) > 1 and length == _TS_AT_A_TIME else length
    return None


def _lost_of_asf(data: mmap.mmap, stream: int) -> int | None:
    """The place where packets of ASF are missing, by their count in the header and the pieces of objects (pictures)."""
    begin, size = next(((at, size) for at, size in _chain(data, _asf) if data[at : at + 16] == _ASF_DATA), (0, 0))
    header = data.find(_ASF_PROPERTIES, 0, begin)
    length, end = _little(data, header + 92), min(begin + size, len(data))
    due: tuple[int, int] | None = None
    for at in range(begin + 50, end, length) if length else ():
        for of, number, place, follows in _pieces_of_asf(data[at : at + length]):
            if not of or (of == stream and (number, place) != (due or (number, 0))):
                return at
            due = follows if of == stream else due
    counted = int.from_bytes(data[header + 56 : header + 64], "little")
    live = data[header + 88] & 1  # its header was written before its packets
    return end if (due and due[1]) or (not live and counted * length > end - begin) else None


def _pieces_of_asf(packet: bytes) -> Iterator[tuple[int, int, int, tuple[int, int] | None]]:
    """(stream, object, place in it, object and place of the next piece) for each piece in a packet.

    Streams are counted from 1; 0 marks a packet that is too short.
    """
    at = 0

    def field(kind: int) -> int:
        """The next number, whose length two bits give."""
        nonlocal at
        begin, at = at, at + _FIELDS[kind & 3]
        return int.from_bytes(packet[begin:at], "little")

    corrects = field(1)  # by so many bytes, as a rule
    at = 1 + (corrects & 15) if corrects & 128 else 0
    lengths, kinds = field(1), field(1)
    _, _, padding = field(lengths >> 5), field(lengths >> 1), field(lengths >> 3)
    at += 6  # times
    several = field(1) if lengths & 1 else 1
    for _ in range(several & 63):
        stream, number, place, beside = field(1) & 127, field(kinds >> 4), field(kinds >> 2), field(kinds)
        whole = int.from_bytes(packet[at : at + 4], "little")
        at += beside
        after = place + (field(several >> 6) if lengths & 1 else len(packet) - padding - at)
        at += after - place
        follows = (number, after) if after < whole else ((number + 1) % (1 << 8 * _FIELDS[kinds >> 4 & 3]), 0)
        yield stream, number, place, follows if beside >= 8 else None
    if at > len(packet):
        yield 0, 0, 0, None


def _chain(data: mmap.mmap, part: Part) -> Iterator[tuple[int, int]]:
    """The place and length of each part; the last one may have no length, or reach beyond the end."""
    at, length = 0, 1
    while length and at < len(data):
        try:
            length = part(data, at)
        except IndexError:  # it ends within its header
            length = 0
        yield at, length
        at += length


def _box(data: mmap.mmap, at: int) -> int:
    size = int.from_bytes(data[at : at + 4], "big")
    size = int.from_bytes(data[at + 8 : at + 16], "big") if size == 1 else size
    return size if size >= 8 else 0


def _riff(data: mmap.mmap, at: int) -> int:
    """The chunks of AVI, also those in lists. Bytes after the last are ignored. AVI from a pipe has no list lengths."""
    name, size, whole = data[at : at + 4], _little(data, at + 4), _little(data, 4)
    length = 8 + size
    if not name.strip().isalnum():
        return 0 if at < 8 + whole else len(data) - at
    if name == b"RIFF" or (name == b"LIST" and (not size or at + length <= len(data))):
        return 12
    if at + length == len(data) < 8 + whole:  # cut between two chunks
        return length + 1
    return length + (length % 2 and at + length < len(data) and not data[at + length : at + length + 4].isalnum())


def _little(data: mmap.mmap, at: int) -> int:
    """The length at this place, 0 if it is not known."""
    size = int.from_bytes(data[at : at + 4], "little")
    return 0 if size == (1 << 32) - 1 else size


def _flv(data: mmap.mmap, at: int) -> int:
    """Tags of sound, pictures and metadata, each followed by its length."""
    if not at:
        return int.from_bytes(data[5:9], "big") + 4
    return 15 + int.from_bytes(data[at + 1 : at + 4], "big") if data[at] & 31 in (8, 9, 18) else 0


def _asf(data: mmap.mmap, at: int) -> int:
    size = int.from_bytes(data[at + 16 : at + 24], "little")
    if size <= 50 and data[at : at + 16] == _ASF_DATA:  # written into a pipe: as long as packets begin alike
        length = _little(data, data.find(_ASF_PROPERTIES, 0, at) + 92) or 1
        firsts = data[at + 50 :: length]
        return 50 + length * (len(firsts) - len(firsts.lstrip(firsts[:1])))
    return size if size >= 24 else len(data) - at if at and at + 24 > len(data) else 0  # FFmpeg's rest in a pipe


def _matroska(data: mmap.mmap, at: int) -> int:
    """Elements, also those in segments and clusters. A length of all ones is unknown: the element is the rest."""
    first = at + 9 - data[at].bit_length()  # behind the identifier
    bytes_ = 9 - data[first].bit_length() if first < len(data) and data[at] >= 16 else 9
    size = int.from_bytes(data[first : first + bytes_], "big") & ((1 << 7 * bytes_) - 1)
    known = size != (1 << 7 * bytes_) - 1
    length = first + bytes_ - at + size if known else len(data) - at
    inside = data[at:first] in (b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75") and at + length <= len(data)
    return 0 if bytes_ > 8 else first + bytes_ - at if inside else length


def _ogg(data: mmap.mmap, at: int) -> int:
    segments = data[at + 26] if data[at : at + 4] == b"OggS" and at + 27 <= len(data) else -1
    return 27 + segments + sum(data[at + 27 : at + 27 + segments]) if segments >= 0 else 0


def _program_stream(data: mmap.mmap, at: int) -> int:
    """Packs and packets of MPEG, and its end code."""
    code = data[at + 3] if data[at : at + 3] == b"\0\0\1" else 0
    if code == 0xBA:
        return 14 + (data[at + 13] & 7) if data[at + 4] >> 6 == 1 else 12
    length = int.from_bytes(data[at + 4 : at + 6], "big")
    if 0xE0 <= code < 0xF0 and not length:  # not stated
        return len(data) - at
    return 4 if code == 0xB9 else 6 + length if code > 0xB9 else 0


def _mxf(data: mmap.mmap, at: int) -> int:
    first = data[at + 16] if data[at : at + 4] == b"\x06\x0e\x2b\x34" and at + 16 < len(data) else 0xFF
    count = first & 0x7F if first & 0x80 else 0
    size = int.from_bytes(data[at + 17 : at + 17 + count], "big") if count else first
    return 17 + count + size if count <= 8 else 0


def _y4m(data: mmap.mmap, at: int) -> int:
    """The first two frames say how long each is."""
    first = data.find(b"\nFRAME") + 1
    second = data.find(b"FRAME", first + 5)
    return first if not at else (second if second > 0 else len(data)) - first


_PARTS: dict[str, Part] = {"matroska": _matroska, "ogg": _ogg, "mpeg": _program_stream, "mxf": _mxf, "asf": _asf}
_PARTS |= {"avi": _riff, "flv": _flv, "yuv4mpegpipe": _y4m}
_PARTS["ivf"] = lambda data, at: 12 + int.from_bytes(data[at : at + 4], "little") if at else 32
_PARTS["dv"] = lambda data, at: 120_000 + 24_000 * (data[at + 3] >> 7) if data[at : at + 2] == b"\x1f\x07" else 0
_COUNTS = {"mpegts": _missing, "asf": _lost_of_asf}  # a file and the number of a stream -> where packets are missing
