"""Turn torch tensors into arguments of the C function, for tests that call a built library with ctypes."""

from __future__ import annotations

import ctypes
from typing import Any


class Stride(ctypes.Structure):
    _fields_ = [("batch", ctypes.c_int64), ("token", ctypes.c_int64)]


class Arguments(ctypes.Structure):
    """dgiqa_attention of engines/attention.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "out")),
        *((name, Stride) for name in ("q_stride", "k_stride", "v_stride", "out_stride")),
        *((name, ctypes.c_void_p) for name in ("bias", "pad_k", "pad_v")),
        *((n, ctypes.c_int32) for n in ("batch", "height", "width", "heads", "head_dim", "shift", "split")),
        ("scale", ctypes.c_float),
    ]


def arguments(inputs: tuple[Any, Any, Any], out: Any, *, shift: int, scale: float) -> Arguments:
    """inputs: qkv [B,H,W,3C], packed bias [heads,4,7,32,4], qkv_bias [3C]; out [B,H,W,C]; all float16 and dense."""
    qkv, bias, qkv_bias = inputs
    batch, height, width, channels = out.shape
    q, padding, tokens = qkv.data_ptr(), qkv_bias.data_ptr(), height * width
    rows, results = Stride(3 * channels * tokens, 3 * channels), Stride(channels * tokens, channels)
    return Arguments(
        *(q, q + 2 * channels, q + 4 * channels, out.data_ptr(), rows, rows, rows, results),
        *(bias.data_ptr(), padding + 2 * channels, padding + 4 * channels),
        *(batch, height, width, bias.shape[0], channels // bias.shape[0], shift, 0, scale),
    )
