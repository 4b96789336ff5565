"""NVIDIA ModelOpt places the Q/DQ of an int8 network where TensorRT likes it: fp32 ONNX -> int8 Q/DQ ONNX, on the CPU.

It needs packages that clash with ours when its own extra brings them, so the extra `modelopt` names them one by one. It
rewrites its input file, so it gets a copy; it holds what it calibrates on in memory, so it gets few images.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgiqa.builder.calibrate import network_feeds
from dgiqa.builder.precision import import_onnx, load_model, weighted_layers
from dgiqa.errors import BackendError, EngineError
from dgiqa.extras import install
from dgiqa.runtime.ort import OrtSession
from dgiqa.spec import Preprocess


def modelopt_int8(
    models: Mapping[str, Any],
    layers: Mapping[str, frozenset[str]],
    photographs: Iterator[NDArray[np.uint8]],
    p: Preprocess,
) -> dict[str, Any]:
    """Quantise fp32 models to int8 with float32 elsewhere: {file: onnx.ModelProto}, as given.

    layers: the weighted layers that may be quantised, by file. photographs: uint8 [H,W,3] RGB, kept in memory.
    Raises what `check_modelopt` does, and EngineError if ModelOpt fails.
    """
    quantize = check_modelopt()
    sessions = {file: OrtSession(model.SerializeToString()) for file, model in models.items()}
    feeds: dict[str, list[dict[str, NDArray[Any]]]] = {file: [] for file in models}
    for rgb in photographs:
        for file, feed in network_feeds(rgb, sessions, p):
            feeds[file].append(feed)
    return {
        file: _quantised(quantize, model, feeds[file], weighted_layers(model).keys() - layers[file])
        for file, model in models.items()
    }


def check_modelopt() -> Callable[..., None]:
    """ModelOpt's own function. BackendError if it is not installed."""
    import_onnx()
    try:
        from modelopt.onnx.quantization import quantize  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise BackendError(
            f"ModelOpt cannot be imported ({error}); {install('modelopt')}, or use the builtin method"
        ) from error
    return quantize  # type: ignore[no-any-return]


class _Reader:
    """What ModelOpt and ONNX Runtime ask for data: one run's inputs at a time, None at the end, and again."""

    def __init__(self, feeds: list[dict[str, NDArray[Any]]]) -> None:
        self._feeds = feeds
        self.rewind()

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self._left, None)

    def get_first(self) -> dict[str, NDArray[Any]]:
        return self._feeds[0]

    def rewind(self) -> None:
        self._left = iter(self._feeds)


def _quantised(quantize: Callable[..., None], model: Any, feeds: list[dict[str, NDArray[Any]]], skip: set[str]) -> Any:
    chatter = io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder, "given.onnx"), Path(folder, "made.onnx")
        given.write_bytes(model.SerializeToString())
        try:
            with contextlib.redirect_stdout(chatter), contextlib.redirect_stderr(chatter):
                quantize(
                    str(given),
                    quantize_mode="int8",
                    calibration_data_reader=_Reader(feeds),
                    calibration_method="max",
                    calibration_eps=["cpu"],  # its CUDA session can crash where cuDNN is another than it was built for
                    nodes_to_exclude=sorted(skip) or None,
                    high_precision_dtype="fp32",
                    dq_only=True,  # stores weights as int8 instead of fp32 and a QuantizeLinear
                    output_path=str(made),
                    log_level="ERROR",
                )
        except Exception as error:  # whatever it raises, the file it was to write is not there
            raise EngineError(
                f"ModelOpt failed ({error}); use the builtin method. {chatter.getvalue()[-300:]}"
            ) from error
        return load_model(made)
