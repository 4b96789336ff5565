"""Open a network's file as a session: {name: array} -> {name: array}, whichever engine runs it.

If you ask for a backend, you get that backend or a BackendError. "auto" picks the one that suits the machine and the
file; `.backend` names it. The engines are in `ort`, `ov`, `rtx` and `trt`, which load their libraries when used.
"""

import ctypes
import os
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakSet

from dgiqa import machine
from dgiqa.dtypes import Array
from dgiqa.runtime import ort, ov, rtx, trt
from dgiqa.runtime.backends import CUDA, OPENVINO, RTX, TENSORRT, choose

_OPENED: WeakSet[Any] = WeakSet()  # sessions of this process and, in a fork, of its parent


class Session(Protocol):
    """The common interface of all engines. `run` may be called from several threads."""

    backend: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]: ...


def open_session(
    path: str | Path,
    backend: str = "auto",
    *,
    precision: str = "fp32",
    threads: int | None = None,
    parallel: int = 1,
    plugins: Sequence[Path] = (),
    device: int | None = None,
    graphs: bool | None = None,
) -> Session:
    """Open an ONNX file, or for "tensorrt" a plan, with `backend`: "auto" or one of BACKENDS.

    precision: one of spec.PRECISIONS. fp16 and int8 are in the file; bf16 is how OpenVINO runs an fp32 file.
    threads: on the CPU, by default all usable cores. parallel: the number of simultaneous calls of `run`, which share
    the threads. plugins: libraries that a plan needs. device: the GPU's ordinal, for GPU backends. graphs: whether GPU
    backends record CUDA graphs; by default only TensorRT does.
    Raises ValueError for an unknown backend or precision, BackendError for one that is not installed or cannot run
    the file, BundleError if the file is not a model.
    """
    chosen = choose(backend, precision, path)
    on_cpu = chosen not in (CUDA, RTX, TENSORRT)
    if device is not None and on_cpu:
        raise ValueError(f"device {device} names a GPU, and {chosen} runs on the CPU; leave it out")
    if graphs and on_cpu:
        raise ValueError(f"a GPU records graphs, and {chosen} runs on the CPU; leave them out")
    session: Session
    if chosen == TENSORRT:
        session = trt.TrtSession(Path(path), plugins=plugins, device=device, graphs=graphs is not False)
    elif chosen == OPENVINO:
        session = ov.OvSession(path, precision=precision, threads=threads, streams=parallel)
    elif chosen == RTX:
        session = rtx.RtxSession(path, device=device, graphs=bool(graphs))
    else:
        each = max(1, (machine.usable_cores() if threads is None else threads) // parallel)
        on_gpu: dict[str, Any] = {"device": "cuda", "gpu": device or 0, "cuda_graph": bool(graphs)}
        session = ort.OrtSession(path, threads=each, **(on_gpu if chosen == CUDA else {}))
    _OPENED.add(session)
    return session


def identity(backend: str, device: int | None = None) -> dict[str, str]:
    """What binds an engine: {"engine": name, "version": in full, "device": its name[, "compute_capability"]}.

    Raises BackendError if the backend is missing.
    """
    choose(backend)
    if backend == TENSORRT:
        return {"engine": backend, **trt.identity(device)}
    if backend == RTX:
        version = rtx.plugin_version()
    elif backend == OPENVINO:
        version = metadata.version("openvino")
    else:
        version = ort.onnxruntime_version()
    if backend not in (CUDA, RTX):
        return {"engine": backend, "version": version, "device": machine.cpu_name()}
    name, capability = machine.gpu(device or 0)
    return {"engine": backend, "version": version, "device": name, "compute_capability": capability}


def _keep_in_child() -> None:
    """Never destroy a session that a fork inherited: destroying it waits for threads that only the parent has."""
    for session in _OPENED:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_in_child)
