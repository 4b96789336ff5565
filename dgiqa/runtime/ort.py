"""ONNX Runtime runs an ONNX file, on the CPU or on an NVIDIA GPU through its CUDA provider."""

import contextlib
import itertools
import os
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dgiqa.dtypes import Array
from dgiqa.errors import BackendError, BundleError
from dgiqa.machine import onnxruntime_wheels, usable_cores
from dgiqa.runtime import cuda
from dgiqa.runtime.backends import CUDA, INSTALL, ONNXRUNTIME
from dgiqa.runtime.inputs import Input, check

_DTYPES = {f"tensor({name})": np.dtype(kind) for name, kind in (("float", "f4"), ("float16", "f2"), ("uint8", "u1"))}
# The first rounds biases to int32 behind Q/DQ, in steps that float16 cannot hold: in int8 files whose other layers are
# fp16, depths moved by 36 % of their range (onnxruntime 1.31). Runs are as fast without it.
# The other two remove a Clip or Relu if the quantisation clips as well. With our symmetric types it never does, and
# they fail on the type of fp8 files (onnxruntime 1.32).
_DISABLED = ["WeightBiasQuantization", "ClipQuantRewrite", "ReluQuantRewrite"]
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# onnxruntime's errors for a file too new for it: its opset, its file format, an operator without a kernel, and, up to
# 1.31, layers in fp8, which it takes for int8.
_TOO_NEW = re.compile(
    r"Current official support for domain.*|Unsupported model IR version.*|Could not find an impl.*"
    r"|Type 'tensor\(float8.*is invalid"
)


class Opened:
    """A file that ONNX Runtime has opened, with its inputs and outputs, whichever provider runs it.

    options, providers: arguments of InferenceSession. Raises BackendError if onnxruntime is too old for the file,
    BundleError if the file is missing or not a model.
    """

    backend: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    recordable = False  # in a CUDA graph: each run waits
    graphs: Iterator[int] | None = None  # numbers for the CUDA graphs, if each `bind` captures one

    def __init__(self, ort: Any, source: str | Path | bytes, options: Any, **providers: Any) -> None:
        in_memory = isinstance(source, bytes)
        label = "the given bytes" if in_memory else str(source)
        if not in_memory and not Path(label).is_file():
            raise BundleError(f"{label} is missing; wanted an ONNX file")
        try:
            self._session = ort.InferenceSession(source if in_memory else label, options, **providers)
        except Exception as error:  # onnxruntime's exception classes share no public base
            raise _explain(label, ort.__version__, error) from error
        nodes = self._session.get_inputs()
        self._ort, self._inputs = ort, {n.name: Input(_DTYPES.get(n.type), tuple(n.shape)) for n in nodes}
        self.inputs = tuple(self._inputs)
        self.outputs = tuple(node.name for node in self._session.get_outputs())

    @property
    def most_at_once(self) -> int:
        """The largest useful batch: 1 if the first axis is fixed, else 8, as a few items fill a GPU."""
        return 1 if isinstance(self._inputs[self.inputs[0]].shape[0], int) else 8

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Every output by name. ValueError for wrong names, dtypes or shapes, BackendError if the engine fails."""
        check(self._inputs, feeds)
        try:
            # addresses change from run to run, and a graph would replay those of its first run
            found = self._session.run(None, dict(feeds), self.run_options(-1))
        except Exception as error:
            shapes = {name: array.shape for name, array in feeds.items()}
            raise BackendError(f"{self.backend} failed on inputs of shape {shapes}: {error}") from error
        return dict(zip(self.outputs, found, strict=True))

    def run_options(self, graph: int) -> Any:
        """Options of a run that uses the graph of this number, if the session records graphs; -1: no graph."""
        options = self._ort.RunOptions()
        if self.graphs:
            options.add_run_config_entry("gpu_graph_id", str(graph))
        return options

    def placed(
        self, feeds: Mapping[str, Any], outputs: Mapping[str, Any] | None, lane: cuda.Lane
    ) -> dict[str, cuda.DeviceArray]:
        """Inputs and outputs on the GPU, by name; outputs that are not given are new arrays. ValueError as in run."""
        arrays = {name: lane.take(array) for name, array in (*feeds.items(), *(outputs or {}).items())}
        check(self._inputs, {name: arrays[name] for name in feeds}, cuda.DeviceArray)
        named = (zip(self._inputs[name].shape, arrays[name].shape, strict=True) for name in self.inputs)
        sizes = {name: size for pairs in named for name, size in pairs if isinstance(name, str)}
        for node in self._session.get_outputs():
            shape, dtype = tuple(d if isinstance(d, int) else sizes.get(d, 0) for d in node.shape), _DTYPES[node.type]
            if node.name not in arrays and not all(shape):
                raise ValueError(f"output {node.name!r} has shape {node.shape}, which no input decides; give it")
            array = arrays[node.name] = arrays.get(node.name) or lane.empty(shape, dtype)
            if array.dtype != dtype or (all(shape) and array.shape != shape):
                raise ValueError(f"output {node.name!r} is {array.dtype} {array.shape}, wanted {node.type} {shape}")
        return arrays


class OrtSession(Opened):
    """ONNX Runtime on the CPU, or with device="cuda" on an NVIDIA GPU (not yet run on one: tested against a stand-in).

    source: an ONNX file, or the bytes of one without external data. threads: for one run on the CPU, by default all
    usable cores. gpu: the GPU's ordinal. cuda_graph: `bind` records a CUDA graph, then replays it, for which the whole
    network must be on the GPU. `run` takes and returns numpy arrays; with `bind` nothing is copied to the host.
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
        self._kind, self.device, self.graphs = device, gpu, itertools.count(1) if cuda_graph else None

    def bind(self, feeds: Mapping[str, Any], outputs: Mapping[str, Any] | None, lane: cuda.Lane) -> "OrtBound":
        """The network between fixed arrays on the GPU. An output that is not given gets a new array.

        lane: a run waits for its work, and is done before later work. ValueError as in run. BackendError on a CPU,
        without cuda-python, or outside the device's primary context, in which ONNX Runtime computes.
        """
        if self._kind == "cpu":
            raise BackendError(f"{self.backend} has no arrays on a GPU; choose --backend onnxruntime-cuda")
        if not lane.context.primary:
            fix = "use the primary one (PyCUDA: import pycuda.autoprimaryctx)"
            raise BackendError(f"ONNX Runtime computes in the GPU's primary context, and another one is current; {fix}")
        arrays, binding = self.placed(feeds, outputs, lane), self._session.io_binding()
        for name, array in arrays.items():
            self.place(binding.bind_input if name in self.inputs else binding.bind_output, name, array)
        return OrtBound(self, lane, arrays, binding)

    def place(self, bind: Any, name: str, array: cuda.DeviceArray) -> None:
        """Give ONNX Runtime's binding an array's address."""
        bind(name, self._kind, self.device, array.dtype.type, list(array.shape), array.pointer)


class OrtBound:
    """Inputs and outputs at fixed places on the GPU, by name, and the network between them: see OrtSession.bind."""

    def __init__(self, session: Opened, lane: cuda.Lane, arrays: dict[str, cuda.DeviceArray], binding: Any) -> None:
        self.arrays, self._backend, self._lane = arrays, session.backend, lane
        options = session.run_options(next(session.graphs or iter([-1])))  # each set of addresses has its own graph
        self._compute = partial(session._session.run_with_iobinding, binding, options)

    def put(self) -> None:
        """Run on ONNX Runtime's own stream: wait for the lane first, and return when the run is done."""
        self._lane.sync()
        try:
            self._compute()
        except Exception as error:
            raise BackendError(f"{self._backend} failed: {error}") from error


def onnxruntime_version() -> str:
    """The version of the installed onnxruntime. BackendError if it cannot be imported."""
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
    # 300 runs of the small networks with shapes that change every time: with the arena only, 199 MB are resident from
    # the 30th run on; with arena and memory patterns, 262 MB; without an arena, 123 to 158 MB, and 10-15 % slower.
    options.enable_cpu_mem_arena = True
    options.enable_mem_pattern = False
    # Threads that spin between runs took 172 ms of CPU per image in a stream of 24 images, sleeping ones 95 ms: two
    # sessions' pools and the decoding threads share the cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _cuda_provider(ort: Any, gpu: int, graph: bool) -> list[Any]:
    """The CUDA provider with its settings, then the CPU provider: shape arithmetic may stay on the CPU."""
    if _PROVIDERS["cuda"] not in ort.get_available_providers():
        raise BackendError(f"the installed onnxruntime has no CUDA provider{_clash()}; {INSTALL[CUDA]}")
    if hasattr(ort, "preload_dlls"):  # finds CUDA and cuDNN in NVIDIA's wheels
        with contextlib.redirect_stdout(None):  # it prints what it does not find; the session's error says it better
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
    """BackendError unless it runs on this device: onnxruntime falls back to the CPU with only a log line."""
    wanted = _PROVIDERS[device]
    if device == "cpu" and got != [wanted]:
        raise BackendError(f"asked onnxruntime for {wanted}, got {got}; install one onnxruntime wheel only")
    if got[:1] != [wanted]:
        fix = "dgiqa-rt doctor shows the driver and the wheels; CUDA 13 and cuDNN 9 must be installed"
        raise BackendError(f"asked onnxruntime for {wanted}, got {got}{_clash()}; {fix}")


def _clash() -> str:
    """ " (...)" about two wheels in one folder, or an empty string."""
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
