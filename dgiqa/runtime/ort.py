"""ONNX Runtime runs an ONNX file, on the CPU or on an NVIDIA GPU through its CUDA provider."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dgiqa.errors import BackendError, BundleError
from dgiqa.machine import onnxruntime_wheels, usable_cores
from dgiqa.runtime import cuda
from dgiqa.runtime.backends import CUDA, INSTALL, ONNXRUNTIME

_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
# It rounds biases to int32 behind Q/DQ, in steps that float16 cannot hold: in int8 files whose rest is fp16, depths
# moved by 36 % of their range (onnxruntime 1.31). Time is the same without it.
# The other two take a Clip or Relu away that quantisation does anyway. With our symmetric types it never does, and they
# fail on the type of fp8 files (onnxruntime 1.32).
_DISABLED = ["WeightBiasQuantization", "ClipQuantRewrite", "ReluQuantRewrite"]
NO_GRAPH = ("gpu_graph_id", "-1")  # of a run, where the session records: else it would replay one's old addresses
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# What onnxruntime says of a file from the future: its opset, its file format, an operator without a kernel; and, up to
# 1.31, of layers in fp8, which it takes for int8.
_TOO_NEW = re.compile(
    r"Current official support for domain.*|Unsupported model IR version.*|Could not find an impl.*"
    r"|Type 'tensor\(float8.*is invalid"
)


class Opened:
    """A file that ONNX Runtime has opened: what it takes and gives, whatever computes it.

    options, providers: as InferenceSession takes them. Raises BackendError if onnxruntime is too old for the file,
    BundleError if it is missing or no model.
    """

    backend: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    recordable = False  # as part of a CUDA graph: each run waits

    def __init__(self, ort: Any, source: str | Path | bytes, options: Any, **providers: Any) -> None:
        in_memory = isinstance(source, bytes)
        label = "the given bytes" if in_memory else str(source)
        if not in_memory and not Path(label).is_file():
            raise BundleError(f"{label} is missing; wanted an ONNX file")
        try:
            self._session = ort.InferenceSession(source if in_memory else label, options, **providers)
        except Exception as error:  # onnxruntime's exception classes share no public base
            raise _explain(label, ort.__version__, error) from error
        self._ort, self._specs = ort, {node.name: node for node in self._session.get_inputs()}
        self.inputs = tuple(self._specs)
        self.outputs = tuple(node.name for node in self._session.get_outputs())

    @property
    def most_at_once(self) -> int:
        """The largest batch that makes sense: a free first axis takes any, and a few fill a GPU."""
        return 1 if isinstance(self._specs[self.inputs[0]].shape[0], int) else 8

    def check(self, feeds: Mapping[str, Any], kind: Any = np.ndarray) -> None:
        """ValueError for wrong names, dtypes or shapes, and for arrays of another kind."""
        if feeds.keys() != self._specs.keys():
            raise ValueError(f"got inputs {sorted(feeds)}, wanted {sorted(self._specs)}")
        for name, array in feeds.items():
            _check_input(self._specs[name], array, kind)

    def sizes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """The sizes of named dimensions, for inputs of these shapes."""
        named = (zip(self._specs[name].shape, shape, strict=True) for name, shape in shapes.items())
        return {d: n for each in named for d, n in each if isinstance(d, str)}


class OrtSession(Opened):
    """ONNX Runtime on the CPU, or with device="cuda" on an NVIDIA GPU (not yet run on one: tested against a stand-in).

    source: an ONNX file or its bytes (one that stands alone). threads: of one run on the CPU, by default all
    usable cores. gpu: the GPU's ordinal. cuda_graph: what `bind` makes runs by a CUDA graph that is captured once; all
    of the network must be on the GPU for that. `run` has numpy arrays; with `bind` nothing comes to the host.
    Raises BackendError if onnxruntime is missing, too old for the file, or would not run on the device asked for;
    BundleError if the file is not a model.
    """

    def __init__(
        self,
        source: str | Path | bytes,
        *,
        threads: int | None = None,
        device: Literal["cpu", "cuda"] = "cpu",
        gpu: int = 0,
        cuda_graph: bool = False,
    ) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        if cuda_graph and device != "cuda":
            raise ValueError(f'cuda_graph needs device="cuda", got {device!r}')
        ort = _import_onnxruntime()
        options = _options(ort, threads or usable_cores())
        providers = _cuda_provider(ort, gpu, cuda_graph) if device == "cuda" else [_PROVIDERS["cpu"]]
        super().__init__(ort, source, options, providers=providers, disabled_optimizers=_DISABLED)
        _check_providers(self._session.get_providers(), device)
        self.backend = f"onnxruntime-{device} {ort.__version__}"
        self._kind, self.device, self._graph = device, gpu, cuda_graph
        self._graphs = itertools.count(1)

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Every output by name. ValueError for wrong names, dtypes or shapes, BackendError if the engine fails."""
        self.check(feeds)
        options = self._ort.RunOptions() if self._graph else None
        if options:
            options.add_run_config_entry(*NO_GRAPH)
        try:
            return dict(zip(self.outputs, self._session.run(None, dict(feeds), options), strict=True))
        except Exception as error:
            shapes = {name: array.shape for name, array in feeds.items()}
            raise BackendError(f"{self.backend} failed on inputs of shape {shapes}: {error}") from error

    def bind(self, feeds: Mapping[str, Any], outputs: Mapping[str, Any] | None, lane: cuda.Lane) -> OrtBound:
        """The network between fixed arrays on the GPU. An output that is not given gets a fresh array.

        lane: whose work comes before a run and after it. ValueError as in run, BackendError on a CPU, without
        cuda-python, or outside of the device's primary context, which is where ONNX Runtime computes.
        """
        if self._kind == "cpu":
            raise BackendError(f"{self.backend} has no arrays on a GPU; choose --backend onnxruntime-cuda")
        if not lane.context.primary:
            fix = "use the primary one (PyCUDA: import pycuda.autoprimaryctx)"
            raise BackendError(f"ONNX Runtime computes in the GPU's primary context, and another one is current; {fix}")
        arrays = {name: cuda.as_device_array(feed, lane.handle) for name, feed in feeds.items()}
        self.check(arrays, cuda.DeviceArray)
        sizes = self.sizes({name: array.shape for name, array in arrays.items()})
        for node in self._session.get_outputs():
            if node.name in (outputs or {}):
                arrays[node.name] = cuda.as_device_array((outputs or {})[node.name])
            else:
                shape = tuple(size if isinstance(size, int) else sizes.get(size, 0) for size in node.shape)
                if not all(shape):
                    raise ValueError(f"output {node.name!r} has shape {node.shape}, which no input decides; give it")
                arrays[node.name] = lane.empty(shape, _DTYPES[node.type])
        return OrtBound(self, lane, arrays)

    # What follows is for this module: the steps that runs and bindings have in common.

    def place(self, bind: Any, name: str, array: cuda.DeviceArray) -> None:
        bind(name, self._kind, self.device, array.dtype.type, list(array.shape), array.pointer)

    def bound(self, arrays: Mapping[str, cuda.DeviceArray]) -> tuple[Any, Any]:
        """ONNX Runtime's binding of these arrays, and the options of its runs."""
        binding, options = self._session.io_binding(), self._ort.RunOptions()
        for name, array in arrays.items():
            self.place(binding.bind_input if name in self.inputs else binding.bind_output, name, array)
        if self._graph:  # each set of addresses has a graph of its own
            options.add_run_config_entry(NO_GRAPH[0], str(next(self._graphs)))
        return binding, options

    def execute(self, binding: Any, options: Any) -> None:
        try:
            self._session.run_with_iobinding(binding, options)
        except Exception as error:
            raise BackendError(f"{self.backend} failed: {error}") from error


class OrtBound:
    """Inputs and outputs at fixed places on the GPU, by name, and the network between them. Made by OrtSession.bind."""

    def __init__(self, session: OrtSession, lane: cuda.Lane, arrays: dict[str, cuda.DeviceArray]) -> None:
        self.arrays, self._session, self._lane = arrays, session, lane
        self._binding, self._options = session.bound(arrays)

    def put(self) -> None:
        """Run, on ONNX Runtime's own stream: after what is on the lane, and done when this returns."""
        self._lane.sync()
        self._session.execute(self._binding, self._options)

    def close(self) -> None:
        self._binding = None


def onnxruntime_version() -> str:
    """The version of the library that would run. BackendError if it does not import."""
    return str(_import_onnxruntime().__version__)


def _import_onnxruntime() -> Any:
    """onnxruntime, without its telemetry: from 1.29 on it marks the machine and reports to Microsoft when imported."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise BackendError(f"onnxruntime cannot be imported ({error}); {INSTALL[ONNXRUNTIME]}") from error
    if not hasattr(ort, "InferenceSession"):  # uninstalling one of two onnxruntime wheels leaves an empty folder
        raise BackendError(f"onnxruntime is installed without its library; {INSTALL[ONNXRUNTIME]} --force-reinstall")
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


def _cuda_provider(ort: Any, gpu: int, graph: bool) -> list[Any]:
    """The CUDA provider and what is set for it; shape arithmetic may stay on the CPU, so that provider follows."""
    if _PROVIDERS["cuda"] not in ort.get_available_providers():
        raise BackendError(f"the installed onnxruntime has no CUDA provider{_clash()}; {INSTALL[CUDA]}")
    if hasattr(ort, "preload_dlls"):  # finds CUDA and cuDNN in the wheels beside it
        with contextlib.redirect_stdout(None):  # it prints what it does not find; the session says it better
            ort.preload_dlls()
    settings = {
        "device_id": str(gpu),
        "use_tf32": "0",  # it would round fp32 factors to 10 bits
        "enable_cuda_graph": str(int(graph)),
        # By default every new input size is benchmarked exhaustively, and depth inputs come in many sizes.
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    return [(_PROVIDERS["cuda"], settings), _PROVIDERS["cpu"]]


def _check_providers(got: list[str], device: str) -> None:
    """onnxruntime falls back to the CPU with only a log line."""
    wanted = _PROVIDERS[device]
    if device == "cpu" and got != [wanted]:
        raise BackendError(f"asked onnxruntime for {wanted}, got {got}; install one onnxruntime wheel only")
    if got[:1] != [wanted]:
        fix = "dgiqa-rt doctor shows the driver and the wheels; CUDA 13 and cuDNN 9 must be installed"
        raise BackendError(f"asked onnxruntime for {wanted}, got {got}{_clash()}; {fix}")


def _clash() -> str:
    """ " (...)" about two wheels in one folder, or nothing."""
    wheels = onnxruntime_wheels()
    if len(wheels) < 2:
        return ""
    named = " and ".join(f"{name} {version}" for name, version in wheels.items())
    return f" ({named} install the same folder, and the last one installed won; uninstall all, then install one)"


def _explain(label: str, version: str, error: Exception) -> BackendError | BundleError:
    """Why the file did not open, in our words."""
    text = " ".join(str(error).split())
    if too_new := _TOO_NEW.search(text):
        reason = too_new[0].rstrip(". ")
        return BackendError(f"{label} needs a newer onnxruntime than {version} ({reason}); pip install -U onnxruntime")
    return BundleError(f"onnxruntime {version} cannot read {label} as a model ({text}); copy or rebuild the bundle")


def _check_input(node: Any, array: Any, kind: Any) -> None:
    """Names of dimensions match any size; numbers must match."""
    wanted = _DTYPES.get(node.type)
    if not isinstance(array, kind) or wanted is None or array.dtype != wanted:
        got = array.dtype if isinstance(array, kind) else type(array).__name__
        raise ValueError(f"input {node.name!r} is {got}, wanted {node.type}")
    fits = len(array.shape) == len(node.shape) and all(
        not isinstance(want, int) or want == have for want, have in zip(node.shape, array.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"input {node.name!r} has shape {list(array.shape)}, wanted {node.shape}")
