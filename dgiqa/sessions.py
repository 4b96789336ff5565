"""An ONNX file becomes a session: {name: array} -> {name: array}. The only room that knows an engine exists.

Asked for a backend, you get that backend or a BackendError; "auto" takes the first one available, and `.backend` says
which that was.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dgiqa.errors import BackendError, BundleError

ONNXRUNTIME = "onnxruntime"
BACKENDS = (ONNXRUNTIME,)  # in the order "auto" tries them
_INSTALL = {ONNXRUNTIME: 'pip install "dgiqa-rt[cpu]"'}
_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
_CPU = "CPUExecutionProvider"
# What onnxruntime says of a file from the future: its opset, its file format, an operator without a kernel.
_TOO_NEW = re.compile(r"Current official support for domain.*|Unsupported model IR version.*|Could not find an impl.*")


class Session(Protocol):
    """What every engine looks like from outside. `run` may be called from several threads."""

    backend: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]: ...


def backends() -> list[str]:
    """The backends installed here, best first. Looks without importing them."""
    return [name for name in BACKENDS if importlib.util.find_spec(name) is not None]


def open_session(path: str | Path, backend: str = "auto", *, threads: int | None = None) -> Session:
    """Open an ONNX file with `backend` ("auto" or one of BACKENDS); threads as in OrtSession.

    Raises ValueError for an unknown backend, BackendError for one that is not installed or cannot run the file.
    """
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"unknown backend {backend!r}; choose auto or one of: {', '.join(BACKENDS)}")
    wanted = BACKENDS if backend == "auto" else (backend,)
    available = [name for name in backends() if name in wanted]
    if not available:
        fixes = " or ".join(_INSTALL[name] for name in wanted)
        raise BackendError(f"backend {backend!r} needs {' or '.join(wanted)}, which is not installed; {fixes}")
    return OrtSession(path, threads=threads)


def usable_cores() -> int:
    """Cores this process may use: its affinity mask, and the container's CPU quota where there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup v2 here, or a quota of "max"
        return cores


class OrtSession:
    """ONNX Runtime on the CPU.

    source: an ONNX file or its bytes (external data is not used). threads: of one run, by default all usable cores.
    Raises BackendError if onnxruntime is missing or too old for the file, BundleError if the file is not a model.
    """

    backend: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __init__(self, source: str | Path | bytes, *, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        ort = _import_onnxruntime()
        label = "the given bytes" if isinstance(source, bytes) else str(source)
        if not isinstance(source, bytes) and not Path(source).is_file():
            raise BundleError(f"{label} is missing; wanted an ONNX file")
        try:
            model = source if isinstance(source, bytes) else str(source)
            self._session = ort.InferenceSession(model, _options(ort, threads or usable_cores()), providers=[_CPU])
        except Exception as error:  # onnxruntime's exception classes share no public base
            raise _explain(label, ort.__version__, error) from error
        if (providers := self._session.get_providers()) != [_CPU]:
            raise BackendError(f"asked onnxruntime for {_CPU}, got {providers}; install one onnxruntime wheel only")
        self.backend = f"onnxruntime-cpu {ort.__version__}"
        self._specs = {node.name: node for node in self._session.get_inputs()}
        self.inputs = tuple(self._specs)
        self.outputs = tuple(node.name for node in self._session.get_outputs())

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Every output by name. ValueError for wrong names, dtypes or shapes, BackendError if the engine fails."""
        if feeds.keys() != self._specs.keys():
            raise ValueError(f"got inputs {sorted(feeds)}, wanted {sorted(self._specs)}")
        for name, array in feeds.items():
            _check_input(self._specs[name], array)
        try:
            return dict(zip(self.outputs, self._session.run(None, dict(feeds)), strict=True))
        except Exception as error:
            shapes = {name: array.shape for name, array in feeds.items()}
            raise BackendError(f"{self.backend} failed on inputs of shape {shapes}: {error}") from error


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise BackendError(f"onnxruntime cannot be imported ({error}); {_INSTALL[ONNXRUNTIME]}") from error
    if not hasattr(ort, "InferenceSession"):  # uninstalling one of two onnxruntime wheels leaves an empty folder
        raise BackendError(f"onnxruntime is installed without its library; {_INSTALL[ONNXRUNTIME]} --force-reinstall")
    return ort


def _options(ort: Any, threads: int) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    # 300 runs of the small networks with shapes that change every time: arena alone holds 199 MB resident from the
    # 30th run on; arena with memory patterns 262 MB, no arena 123-158 MB up and down and 10-15 % slower.
    options.enable_cpu_mem_arena = True
    options.enable_mem_pattern = False
    # Threads that spin between runs took 172 ms of CPU per image in a stream of 24, sleeping ones 95 ms: two sessions'
    # pools and the decoding threads share the cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _explain(label: str, version: str, error: Exception) -> BackendError | BundleError:
    """Why the file did not open, in our words."""
    text = " ".join(str(error).split())
    if too_new := _TOO_NEW.search(text):
        reason = too_new[0].rstrip(". ")
        return BackendError(f"{label} needs a newer onnxruntime than {version} ({reason}); pip install -U onnxruntime")
    return BundleError(f"onnxruntime {version} cannot read {label} as a model ({text}); copy or rebuild the bundle")


def _check_input(node: Any, array: NDArray[Any]) -> None:
    """Names of dimensions match any size; numbers must match."""
    wanted = _DTYPES.get(node.type)
    if not isinstance(array, np.ndarray) or wanted is None or array.dtype != wanted:
        got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"input {node.name!r} is {got}, wanted {node.type}")
    fits = len(array.shape) == len(node.shape) and all(
        not isinstance(want, int) or want == have for want, have in zip(node.shape, array.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"input {node.name!r} has shape {list(array.shape)}, wanted {node.shape}")
