"""The Open Inference Protocol, version 2: tensors of a request -> images, scores -> tensors of the answer.

JSON, with the binary extension that Triton's clients use: a header says how long the JSON document is, and the tensors
follow it. The names are those of the Triton repository that `triton` writes, so one client works with both.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dgiqa._version import __version__
from dgiqa.dtypes import Array
from dgiqa.report.rows import to_json
from dgiqa.serve.intake import document, from_base64, malformed

LENGTH = "Inference-Header-Content-Length"
SERVER = {"name": "dgiqa-rt", "version": __version__, "extensions": ["binary_tensor_data"]}
ENCODED, PIXELS = "IMAGE", "PIXELS"
INPUTS: list[dict[str, Any]] = [
    {"name": ENCODED, "datatype": "BYTES", "shape": [-1]},
    {"name": PIXELS, "datatype": "UINT8", "shape": [-1, -1, -1, 3]},  # or FP32, 0 to 1
]
OUTPUTS: list[dict[str, Any]] = [
    {"name": "SCORE", "datatype": "FP32", "shape": [-1]},
    {"name": "STD_ERROR", "datatype": "FP32", "shape": [-1]},
    {"name": "ROW", "datatype": "BYTES", "shape": [-1]},
]
_TYPES = {"UINT8": np.uint8, "FP32": np.float32}


def parsed(headers: Mapping[str, str], body: bytes, most: int) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    """(the request's document, its images as pairs (name, encoded bytes or pixels [H,W,3])), at most `most` of them.

    Raises RefusedError for anything that the protocol does not know.
    """
    text = headers.get(LENGTH, str(len(body)))
    if not text.isdecimal() or int(text) > len(body):
        raise malformed(f"{LENGTH} is {text[:20]!r}, wanted at most the body's {len(body)} bytes")
    asked = document(body[: int(text)])
    inputs = asked.get("inputs") if isinstance(asked, dict) else None
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise malformed(f'"inputs" must hold one tensor, {ENCODED} or {PIXELS}')
    (tensor,) = inputs
    shape, kind = tensor.get("shape"), tensor.get("datatype")
    if not isinstance(shape, list) or not all(type(n) is int and n > 0 for n in shape):
        raise malformed(f"a shape is a list of positive integers, got {str(shape)[:80]}")
    parameters = tensor.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise malformed("parameters must be an object")
    size = parameters.get("binary_data_size")
    binary = None if size is None else body[int(text) :]
    if binary is not None and len(binary) != size:
        raise malformed(f"binary_data_size is {str(size)[:20]}, and {len(binary)} bytes follow the document")
    if tensor.get("name") == ENCODED and kind == "BYTES" and len(shape) <= 2:
        images: Any = _encoded(tensor.get("data"), binary, math.prod(shape), most)
    elif tensor.get("name") == PIXELS and kind in _TYPES and len(shape) in (3, 4) and shape[-1] == 3:
        images = _pixels(tensor.get("data"), binary, shape, _TYPES[kind])
    else:
        raise malformed(f"got {str(tensor.get('name'))[:40]!r} of {str(kind)[:20]}, {shape}; wanted one of {INPUTS}")
    if not 0 < len(images) <= most:
        raise malformed(f"{len(images)} images, wanted 1 to {most}")
    _outputs(asked)  # before anything is scored
    return asked, [(f"{tensor['name']}[{i}]", image) for i, image in enumerate(images)]


def column(output: str, rows: Sequence[dict[str, Any]]) -> list[Any]:
    """The values of an output, one of OUTPUTS, for rows; None for a number that a row lacks."""
    return [to_json(row) if output == "ROW" else row[output.lower()] for row in rows]


def answer(asked: dict[str, Any], model: str, rows: Sequence[dict[str, Any]]) -> tuple[dict[str, str], bytes]:
    """(headers, body) of the answer to a request, from a row per image. A row without a score is NaN, or null."""
    outputs, tail = [], bytearray()
    for output, binary in _outputs(asked):
        tensor: dict[str, Any] = {"name": output["name"], "datatype": output["datatype"], "shape": [len(rows)]}
        values = column(output["name"], rows)
        if binary:
            if output["datatype"] == "FP32":
                packed = np.array(values, "<f4").tobytes()  # None becomes NaN
            else:
                packed = b"".join(struct.pack("<I", len(text)) + text for text in map(str.encode, values))
            tensor["parameters"] = {"binary_data_size": len(packed)}
            tail += packed
        else:
            tensor["data"] = values
        outputs.append(tensor)
    identity = {"id": asked["id"]} if isinstance(asked.get("id"), str) else {}
    head = to_json({"model_name": model, "model_version": "1", **identity, "outputs": outputs}).encode()
    if not tail:
        return {"Content-Type": "application/json"}, head
    return {"Content-Type": "application/octet-stream", LENGTH: str(len(head))}, head + bytes(tail)


def _outputs(asked: dict[str, Any]) -> list[tuple[dict[str, Any], bool]]:
    """(output, whether in binary) for each output that is asked for, or for all if none is named."""
    default = _flag(asked, "binary_data_output", False)
    wanted = asked.get("outputs") or OUTPUTS
    known = {output["name"]: output for output in OUTPUTS}
    try:
        return [(known[each["name"]], _flag(each, "binary_data", default)) for each in wanted]
    except (KeyError, TypeError) as error:
        raise malformed(f"outputs are {', '.join(map(str, known))}") from error


def _flag(holder: dict[str, Any], name: str, default: bool) -> bool:
    parameters = holder.get("parameters") or {}
    return bool(parameters.get(name, default)) if isinstance(parameters, dict) else default


def _encoded(data: Any, binary: bytes | None, count: int, most: int) -> list[bytes]:
    """Elements of a BYTES tensor: in binary each follows its length, in JSON each is base64."""
    if binary is None:
        if not isinstance(data, list) or len(data) != count:
            raise malformed(
                f"the data do not match a shape of {count} elements; BYTES in JSON are a list of base64 texts"
            )
        return [from_base64(text) for text in data]
    found: list[bytes] = []
    at = 0
    while at + 4 <= len(binary) and len(found) < min(count, most):
        (length,) = struct.unpack_from("<I", binary, at)
        found.append(binary[at + 4 : at + 4 + length])
        at += 4 + length
    if at != len(binary) or len(found) != count:
        raise malformed(f"a BYTES tensor of {count} elements (at most {most}) that are not in its {len(binary)} bytes")
    return found


def _pixels(data: Any, binary: bytes | None, shape: list[int], kind: type[Any]) -> Array:
    """Pixels [N,H,W,3]; a single picture may leave out N."""
    try:
        flat = np.asarray(data, np.float64).ravel() if binary is None else np.frombuffer(binary, kind)
        if binary is None and kind is np.uint8 and not ((flat >= 0) & (flat <= 255) & (flat == flat.round())).all():
            raise ValueError("UINT8 values are whole numbers from 0 to 255")
        return flat.astype(kind, copy=False).reshape([1] * (4 - len(shape)) + shape)
    except (ValueError, TypeError, OverflowError) as error:
        raise malformed(f"pixels do not fit their shape {shape}: {str(error)[:200]}") from error
