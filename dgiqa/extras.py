"""The extras of this package: what each is for, and the command that installs it."""

from __future__ import annotations

import importlib
from typing import Any

from dgiqa.errors import BackendError

# As in pyproject.toml, without those for working on the project itself.
EXTRAS = {
    "cpu": "ONNX Runtime, for the CPU",
    "gpu": "ONNX Runtime, for NVIDIA GPUs; never together with cpu",
    "openvino": "OpenVINO, faster for large networks on x86",
    "tensorrt": "TensorRT, for NVIDIA's data-centre GPUs",
    "rtx": "TensorRT for RTX, for NVIDIA's desktop GPUs",
    "cuda": "pictures that lie on NVIDIA GPUs; gpu, tensorrt and rtx bring it",
    "nvml": "the names of NVIDIA GPUs; gpu, tensorrt and rtx bring it",
    "pycuda": "PyCUDA's arrays and streams beside TensorRT",
    "build": "fp16 and int8 files",
    "calibrate": "own labels",
    "video": "videos, their curve and their Parquet files",
    "heic": "HEIC photographs",
    "raw": "raw photographs of cameras",
    "table": "Parquet, in and out",
    "serve": "the server, with OpenVINO to run the networks",
    "s3": "s3:// addresses",
    "gs": "gs:// addresses",
    "az": "az:// addresses",
    "hf": "hf:// addresses",
    "ray": "sets scored by a Ray cluster",
    "torch": "the networks in PyTorch",
    "export": "own weights",
    "train": "training",
}


def install(*extras: str) -> str:
    """The command that installs these extras: pip install "dgiqa-rt[cpu,torch]"."""
    assert set(extras) <= EXTRAS.keys(), extras
    return f'pip install "dgiqa-rt[{",".join(extras)}]"'


def needs(what: str, package: str, *extras: str, error: ImportError | None = None) -> str:
    """The sentence of an error: WHAT needs PACKAGE (why it cannot be imported); the command that installs it."""
    why = f" ({error})" if error else ""
    return f"{what} needs {package}{why}; {install(*extras)}"


def load(
    module: str, what: str, package: str, *extras: str, kind: type[Exception] = BackendError, instead: str = ""
) -> Any:
    """A module of an optional package. Raises `kind` with the sentence of `needs`, and what to do instead."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise kind(needs(what, package, *extras, error=error) + (f", or {instead}" if instead else "")) from error
