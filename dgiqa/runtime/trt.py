"""Open a TensorRT plan as a session: {name: array} -> {name: array}. Also name the versions and GPU that bind a plan.

Everything rests on Bound, the network between arrays at fixed addresses on the device. `run` copies into and out of
one; `bind` makes one from the caller's arrays. Not yet run on a GPU: checked against stand-ins that do the work of a
stream as late as they may. `builder.plan` builds plans.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import queue
import re
import sys
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dgiqa.dtypes import Array
from dgiqa.errors import BackendError, EngineError
from dgiqa.extras import install
from dgiqa.runtime import cuda
from dgiqa.runtime.cuda import DeviceArray, Lane
from dgiqa.runtime.inputs import Input, check

if TYPE_CHECKING:
    import tensorrt as trt

Shape = tuple[int, ...]
OLDEST = (10, 12)  # the first with strong typing in full
STREAMS = 2  # runs that can be under way at once
KEPT = 4  # shapes whose arrays and graphs each stream keeps
ALIGNMENT = 256  # bytes, required of the address of every input and output
# The inspector's words for a tensor ("Half", "Row major linear FP16 format"), and parts of kernels' names, such as
# sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc_... or ..._i8i8_i8i32_f32_...: narrowest type first.
_TOLD = {
    "fp8": re.compile(r"fp8|float8|e4m3", re.IGNORECASE),
    "int8": re.compile(r"\bint8|i8i8|_imma|_int8", re.IGNORECASE),
    "bf16": re.compile(r"bf16|bfloat16", re.IGNORECASE),
    "fp16": re.compile(r"\bhalf|fp16|\bfloat16|f16f16|_f16_|hgemm|h(16)?816", re.IGNORECASE),
    "fp32": re.compile(r"\bfloat\b|fp32|\bfloat32|f32f32|sgemm|scudnn", re.IGNORECASE),
}


class TrtSession:
    """A TensorRT plan, ready to run from any thread.

    plan: a file written by build_plan (loading a plan runs its code: only load your own). plugins: libraries it needs.
    device: the GPU's ordinal. graphs: record a CUDA graph when shapes come for the second time. The session uses the
    CUDA context that is current when it is opened, if that is on the device, else the device's primary one.
    Raises BackendError without TensorRT or a GPU, EngineError for a plan that does not load here.
    """

    engine: trt.ICudaEngine | None = None

    def __init__(
        self, plan: str | Path, *, plugins: Sequence[Path] = (), device: int | None = None, graphs: bool = True
    ) -> None:
        trt = import_tensorrt()
        self.backend, self.graphs = f"tensorrt {trt.__version__}", graphs
        self.context = cuda.Context(device)
        self._free: queue.LifoQueue[Lane] = queue.LifoQueue()
        for _ in range(STREAMS):
            self._free.put(Lane(self.context, keep=KEPT, record=graphs))
        with self.context.current():
            self.engine = engine = load_plan(Path(plan), plugins)
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self.dtypes = {name: _dtype(engine, name) for name in names}
        self.inputs = tuple(n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT)
        self.outputs = tuple(n for n in names if n not in self.inputs)
        shapes = {n: as_shape(engine.get_tensor_shape(n)) for n in self.inputs}
        self._inputs = {n: Input(self.dtypes[n], tuple(None if d < 0 else d for d in s)) for n, s in shapes.items()}
        self._profiles = [
            {name: _limits(engine, name, i) for name in self.inputs}
            for i in range(max(1, engine.num_optimization_profiles))
        ]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Every output by name. ValueError for wrong names, dtypes or shapes, BackendError if the engine fails."""
        lane = self._free.get()
        try:
            check(self._opened(), feeds)
            shapes = {name: feeds[name].shape for name in self.inputs}
            with lane.current():
                bound: Bound = lane.recent(tuple(shapes.values()), lambda: Bound(self, lane, shapes, {}))
                for name, array in feeds.items():
                    lane.put(bound.arrays[name], array)
                bound.run()
                return {name: lane.numpy(bound.arrays[name]) for name in self.outputs}
        finally:
            self._free.put(lane)

    def bind(self, feeds: Mapping[str, Any], outputs: Mapping[str, Any] | None, lane: Lane) -> Bound:
        """The network between fixed arrays on the device. An output that is not given gets a new array.

        lane: where it runs; networks may share a lane, one after the other. ValueError as in run, and for addresses
        that are not aligned to 256 bytes.
        """
        with lane.current():
            given = {name: lane.take(array) for name, array in (*feeds.items(), *(outputs or {}).items())}
            check(self._opened(), {name: given[name] for name in feeds}, DeviceArray)
            return Bound(self, lane, {name: given[name].shape for name in self.inputs}, given)

    @property
    def most_at_once(self) -> int:
        """The largest batch of any profile."""
        return max(limits[self.inputs[0]][1][0] for limits in self._profiles)

    def layer_precisions(self) -> Counter[str]:
        """The number of layers per precision: "fp32", "fp16", "int8", ..., "other" for layers without such a tensor.

        A layer counts under the narrowest type it reads or writes, else its weights' type, else the type in its
        kernel's name; "unknown" if TensorRT shows none of these.
        """
        import tensorrt as trt

        engine, inputs = self.engine, self._opened()
        assert engine is not None
        with self.context.current():
            execution, inspector = execution_of(engine), engine.create_engine_inspector()
            for name in (name for name, wanted in inputs.items() if None in wanted.shape):
                execution.set_input_shape(name, as_shape(engine.get_tensor_profile_shape(name, 0)[1]))
            inspector.execution_context = execution  # it shows types only if it has one whose shapes are set
            told = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
            del inspector, execution
        return Counter(map(_layer_precision, told["Layers"]))

    def profile_for(self, shapes: Mapping[str, Shape]) -> int:
        """The first profile that takes these shapes together. ValueError if there is none."""
        for profile, limits in enumerate(self._profiles):
            sides = [side for name, shape in shapes.items() for side in zip(shape, *limits[name], strict=True)]
            if all(low <= size <= high for size, low, high in sides):
                return profile
        takes = [f"{name!r} {low} to {high}" for each in self._profiles for name, (low, high) in each.items()]
        got = f"got shapes {dict(shapes)}; this plan takes {', or '.join(takes)}"
        raise ValueError(f"{got}; build one for it: dgiqa-rt build with --batch or --depth")

    def expect(self, done: Any, what: str) -> None:
        """BackendError, in TensorRT's own words, unless `done`."""
        if not done:
            raise BackendError(f"{self.backend} {what}: {logger().text()}")

    def close(self) -> None:
        """Wait for runs under way and release all memory, the engine's as well. Further runs raise ValueError."""
        if self.engine is None or sys.is_finalizing():
            return
        lanes = [self._free.get() for _ in range(STREAMS)]
        with suppress(BackendError), self.context.current():  # its owner may have destroyed the context with all in it
            for lane in lanes:
                lane.close()
            self.engine = None  # after its execution contexts, and in the CUDA context that it was made in
        for lane in lanes:
            self._free.put(lane)

    __del__ = close

    def _opened(self) -> dict[str, Input]:
        if self.engine is None:
            raise ValueError("the session is closed; open it again")
        return self._inputs


class Bound:
    """Inputs and outputs at fixed addresses on the device, by name, and the network between them: see TrtSession.bind.

    It computes in the scratch memory of its lane, which all work on the lane shares.
    """

    def __init__(
        self, session: TrtSession, lane: Lane, shapes: Mapping[str, Shape], given: Mapping[str, DeviceArray]
    ) -> None:
        assert session.engine is not None
        profile = session.profile_for(shapes)  # before memory is taken
        self._session, self._lane, self._at = session, lane, 0
        self._execution = execution = execution_of(session.engine)
        if profile:
            session.expect(execution.set_optimization_profile_async(profile, lane.handle), "refused a profile")
        for name, shape in shapes.items():
            session.expect(execution.set_input_shape(name, shape), f"refused shape {shape} of {name!r}")
        if odd := given.keys() - session.dtypes.keys():
            raise ValueError(f"got arrays for {sorted(odd)}, wanted outputs of {session.outputs}")
        self.arrays: dict[str, DeviceArray] = {}
        for name, dtype in session.dtypes.items():
            shape = as_shape(execution.get_tensor_shape(name))
            self.arrays[name] = array = given[name] if name in given else lane.empty(shape, dtype)
            if (array.dtype, array.shape) != (dtype, shape):
                raise ValueError(f"{name!r} is {array.dtype} {array.shape}, wanted {dtype} {shape}")
            if array.pointer % ALIGNMENT:
                raise ValueError(f"{name!r} is at an address that is not a multiple of {ALIGNMENT}; copy it first")
            session.expect(execution.set_tensor_address(name, array.pointer), f"refused the address of {name!r}")
        self._need = int(execution.update_device_memory_size_for_shapes())
        lane.scratch(self._need)  # it may move, so this comes before any recording

    def run(self) -> None:
        """Enqueue one run on the lane: run it the first time, record it the second, then replay it."""
        self._lane.replay(self, self.put)

    def put(self) -> None:
        """Enqueue one plain run on the lane, which a graph of the caller's may record.

        TensorRT must have run once before it is recorded.
        """
        if self._at != self._lane.at:  # a larger run came, and the memory moved
            self._execution.set_device_memory(self._lane.at, self._need)
            self._at = self._lane.at
        self._session.expect(self._execution.execute_async_v3(self._lane.handle), "did not run")

    def __del__(self) -> None:
        if not sys.is_finalizing():
            with suppress(BackendError, AttributeError), self._lane.current():  # as in close; or never made
                try:
                    self._lane.sync()
                finally:  # also where the lane was closed before
                    self._lane.graphs.pop(self, None)
                    del self._execution


def identity(device: int | None = None) -> dict[str, str]:
    """What binds a plan: version, device (name), compute_capability. BackendError without TensorRT."""
    version, context = str(import_tensorrt().__version__), cuda.Context(device)
    return {"version": version, "device": context.gpu, "compute_capability": context.compute_capability}


def import_tensorrt() -> Any:
    """The module, or the lean runtime for version-compatible plans under its name. BackendError: missing or too old."""
    try:
        if "tensorrt" not in sys.modules and not importlib.util.find_spec("tensorrt"):
            with suppress(ModuleNotFoundError):  # it has everything that a run needs
                sys.modules["tensorrt"] = importlib.import_module("tensorrt_lean")
        trt = importlib.import_module("tensorrt")
    except (ImportError, OSError) as error:
        instead = f"{install('tensorrt')}, or take --backend onnxruntime"
        raise BackendError(f"TensorRT cannot be imported ({error}); {instead}") from error
    if tuple(map(int, str(trt.__version__).split(".")[:2])) < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        raise BackendError(f"got TensorRT {trt.__version__}, wanted {wanted} or newer; pip install -U tensorrt")
    return trt


@cache
def logger() -> Any:
    """TensorRT's logger. `text()` returns, and forgets, its last warnings and errors, for error messages.

    There is one per process: while any object that knows a logger lives, TensorRT ignores every other logger.
    """
    import tensorrt as trt

    kept = (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING)
    lines: deque[str] = deque(maxlen=8)

    class Logger(trt.ILogger):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            if severity in kept:
                lines.append(" ".join(msg.split()))

        def text(self) -> str:
            told = " | ".join(lines) or "it gave no reason"
            lines.clear()
            return told

    return Logger()


@cache
def load_plugins(libraries: tuple[Path, ...]) -> frozenset[str]:
    """Load each library once per process. Return the names of the operators that all plugins together implement."""
    if not libraries:
        return frozenset()
    import tensorrt as trt

    registry = trt.get_plugin_registry()
    for library in libraries:
        if not library.is_file() or registry.load_library(str(library)) is None:
            raise EngineError(f"{library} is not a plugin library for TensorRT {trt.__version__}; build it again")
    return frozenset(creator.name for creator in registry.all_creators)


def load_plan(plan: Path, plugins: Sequence[Path]) -> trt.ICudaEngine:
    """The engine of a plan. EngineError if the plan is missing or does not load here."""
    import tensorrt as trt

    if not plan.is_file():
        raise EngineError(f"{plan} is missing; build it: dgiqa-rt build")
    load_plugins(tuple(plugins))
    runtime = trt.Runtime(logger())
    runtime.engine_host_code_allowed = True  # version-compatible plans need it; engines are verified before this
    engine = runtime.deserialize_cuda_engine(plan.read_bytes())
    if engine is None:
        raise EngineError(
            f"TensorRT {trt.__version__} cannot load {plan.name} ({logger().text()}); build it again here"
        )
    return engine


def execution_of(engine: trt.ICudaEngine) -> trt.IExecutionContext:
    """An execution context without scratch memory. BackendError if TensorRT cannot make one."""
    import tensorrt as trt

    execution = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    if execution is None:
        raise BackendError(f"TensorRT {trt.__version__} made no execution context: {logger().text()}")
    execution.nvtx_verbosity = trt.ProfilingVerbosity.NONE  # else it is as detailed as the plan's layer information
    return execution


def as_shape(dimensions: trt.Dims) -> Shape:
    """TensorRT's dimensions as a tuple."""
    return tuple(dimensions[axis] for axis in range(len(dimensions)))


def _layer_precision(layer: dict[str, Any]) -> str:
    tensors = [*layer.get("Inputs", []), *layer.get("Outputs", [])]
    words = " ".join(str(value) for tensor in tensors for key, value in tensor.items() if "datatype" in key.lower())
    weights = [part.get("Type", "") for part in (layer.get("Weights"), layer.get("Bias")) if isinstance(part, dict)]
    for text in (words, " ".join(weights), str(layer.get("TacticName", ""))):
        for precision, told in _TOLD.items():
            if told.search(text):
                return precision
    return "unknown" if "N/A" in words else "other"


def _dtype(engine: trt.ICudaEngine, name: str) -> np.dtype[Any]:
    import tensorrt as trt

    try:
        dtype: np.dtype[Any] = np.dtype(trt.nptype(engine.get_tensor_dtype(name)))
    except TypeError as error:
        raise EngineError(f"{name!r} is of a type that numpy lacks; keep such inside the network") from error
    return dtype


def _limits(engine: trt.ICudaEngine, name: str, profile: int) -> tuple[Shape, Shape]:
    """Smallest and largest shape of an input; an input with a fixed shape need not be in a profile."""
    if -1 not in (shape := as_shape(engine.get_tensor_shape(name))):
        return shape, shape
    low, _, high = engine.get_tensor_profile_shape(name, profile)
    return as_shape(low), as_shape(high)
