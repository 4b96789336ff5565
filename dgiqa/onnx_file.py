"""Refuse a file that is not ONNX or not self-contained, without the onnx package.

A file's hash does not cover weights in other files, and older versions of onnxruntime follow their paths out of the
folder. OpenVINO goes by contents, not by name: a file named .onnx that holds OpenVINO's XML loads its weights from the
file next to it. No file made here is of either kind, so both are refused.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path

from dgiqa.errors import BundleError

_FIRST = 1 << 3  # the byte that starts a model's first field, the number of its format

# Messages that may hold tensors, by field number, as onnx.proto numbers them.
_HOLDERS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # of a tensor
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


def check_stands_alone(path: Path) -> None:
    """Raise BundleError if a file is not well-formed ONNX or keeps weights in other files, OSError if it is missing."""
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            elsewhere = _names_other_files(data)
    except ValueError as error:  # an empty file cannot be mapped
        raise BundleError(f"{path} is not an ONNX file ({error}); copy or rebuild the bundle") from error
    if elsewhere:
        fix = "save it as one file: onnx.save(onnx.load(path), path)"
        raise BundleError(f"{path} keeps weights in other files, which no hash here covers; {fix}")


def _names_other_files(data: mmap.mmap) -> bool:
    if data[0] != _FIRST:
        raise ValueError(f"it starts with {data[:8]!r}")
    pending = [("model", 0, len(data))]
    while pending:
        message, start, end = pending.pop()
        for number, wire, value, position in _fields(data, start, end):
            if message == "tensor" and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value)):
                return True
            if wire == _BYTES and (inner := _HOLDERS[message].get(number)):
                pending.append((inner, position, position + value))
    return False


def _fields(data: mmap.mmap, position: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(number, wire type, value, start of its contents) of every field; the value of a bytes field is their number."""
    while position < end:
        tag, position = _varint(data, position, end)
        wire, value = tag & 7, 0
        if wire in (_VARINT, _BYTES):
            value, position = _varint(data, position, end)
        elif wire not in (_FIXED64, _FIXED32):
            raise ValueError(f"byte {position} starts a field of wire type {wire}")
        length = {_VARINT: 0, _FIXED64: 8, _BYTES: value, _FIXED32: 4}[wire]
        if position + length > end:
            raise ValueError(f"the field at byte {position} ends after its message")
        yield tag >> 3, wire, value, position
        position += length


def _varint(data: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    """(value, position after it)."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            raise ValueError("it ends within a number")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError(f"the number before byte {position} has more than ten bytes")
