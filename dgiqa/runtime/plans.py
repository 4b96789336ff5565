"""TensorRT, its plans and its plugins: found, loaded, and asked what is in them."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import sys
from collections import Counter, deque
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgiqa.errors import BackendError, EngineError
from dgiqa.extras import install
from dgiqa.runtime import cuda

if TYPE_CHECKING:
    import tensorrt as trt

Shape = tuple[int, ...]
OLDEST = (10, 12)  # the first with strong typing in full
# TensorRT's DataType names, in ours. Types that are not computed in (indices, conditions) keep their own.
PRECISIONS = {"FLOAT": "fp32", "HALF": "fp16", "INT8": "int8", "BF16": "bf16", "FP8": "fp8"}
# The inspector's words for a tensor ("Half", "Row major linear FP16 format"), and parts of kernels' names, such as
# sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc_... or ..._i8i8_i8i32_f32_...: narrowest first.
_TOLD = {
    "fp8": re.compile(r"fp8|float8|e4m3", re.IGNORECASE),
    "int8": re.compile(r"\bint8|i8i8|_imma|_int8", re.IGNORECASE),
    "bf16": re.compile(r"bf16|bfloat16", re.IGNORECASE),
    "fp16": re.compile(r"\bhalf|fp16|\bfloat16|f16f16|_f16_|hgemm|h(16)?816", re.IGNORECASE),
    "fp32": re.compile(r"\bfloat\b|fp32|\bfloat32|f32f32|sgemm|scudnn", re.IGNORECASE),
}


def identity(device: int | None = None) -> dict[str, str]:
    """A plan built here is bound to these: version, gpu (name), compute_capability. BackendError without TensorRT."""
    version, context = str(import_tensorrt().__version__), cuda.Context(device)
    return {"version": version, "gpu": context.gpu, "compute_capability": context.compute_capability}


class Log:
    """The last warnings and errors of TensorRT, for error messages."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=8)

    def add(self, line: str) -> None:
        self._lines.append(" ".join(line.split()))

    def text(self) -> str:
        return " | ".join(self._lines) or "it gave no reason"


def import_tensorrt() -> Any:
    """The module; or the small runtime of version-compatible plans under its name. BackendError: missing or too old."""
    try:
        try:
            trt = importlib.import_module("tensorrt")
        except ModuleNotFoundError:
            if importlib.util.find_spec("tensorrt_lean") is None:
                raise
            sys.modules["tensorrt"] = trt = importlib.import_module("tensorrt_lean")  # it has all that running takes
    except (ImportError, OSError) as error:
        raise BackendError(
            f"TensorRT cannot be imported ({error}); {install('tensorrt')}, or take --backend onnxruntime"
        ) from error
    if tuple(int(part) for part in str(trt.__version__).split(".")[:2]) < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        raise BackendError(f"got TensorRT {trt.__version__}, wanted {wanted} or newer; pip install -U tensorrt")
    return trt


def logger_of(log: Log) -> trt.ILogger:
    """TensorRT's logger for warnings and errors."""
    import tensorrt as trt

    kept = (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING)

    class Logger(trt.ILogger):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            if severity in kept:
                log.add(msg)

    return Logger()


@cache
def load_plugins(libraries: tuple[Path, ...]) -> frozenset[str]:
    """Load each library once per process; the names of the operators that all plugins together serve."""
    if not libraries:
        return frozenset()
    import tensorrt as trt

    registry = trt.get_plugin_registry()
    for library in libraries:
        if not library.is_file() or registry.load_library(str(library)) is None:
            reads = f"TensorRT {trt.__version__} can load"
            raise EngineError(f"{library} is no plugin library that {reads}; build it again")
    return frozenset(creator.name for creator in registry.all_creators)


def load_plan(plan: Path, plugins: Sequence[Path], log: Log) -> trt.ICudaEngine:
    """The engine of a plan. EngineError where it is missing or does not load here."""
    import tensorrt as trt

    if not plan.is_file():
        raise EngineError(f"{plan} is missing; build it: dgiqa-rt build")
    load_plugins(tuple(plugins))
    runtime = trt.Runtime(logger_of(log))
    runtime.engine_host_code_allowed = True  # of version-compatible plans; engines are verified before they come here
    engine = runtime.deserialize_cuda_engine(plan.read_bytes())
    if engine is None:
        raise EngineError(f"TensorRT {trt.__version__} cannot load {plan.name} ({log.text()}); build it again here")
    return engine


def execution_of(engine: trt.ICudaEngine, log: Log) -> trt.IExecutionContext:
    """An execution context without memory to compute in. BackendError where TensorRT makes none."""
    import tensorrt as trt

    execution = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    if execution is None:
        raise BackendError(f"TensorRT {trt.__version__} made no execution context: {log.text()}")
    execution.nvtx_verbosity = trt.ProfilingVerbosity.NONE  # or it is as detailed as what the plan tells of itself
    return execution


def as_shape(dimensions: trt.Dims) -> Shape:
    """TensorRT's dimensions as a tuple."""
    return tuple(dimensions[axis] for axis in range(len(dimensions)))


def layer_precisions(plan: Path, *, plugins: Sequence[Path] = ()) -> Counter[str]:
    """Layers of an engine per precision: "fp32", "fp16", "int8", ..., "other" for layers that hold no such tensor.

    A layer counts under the narrowest type it reads or writes, else that of its weights, else what the name of its
    kernel says; "unknown" is what shows none of them. Loading a plan needs its GPU. Raises BackendError without
    TensorRT, EngineError for a plan that does not load here or was built without details of its layers.
    """
    layers = layers_of(plan, plugins=plugins)
    if not all(isinstance(layer, dict) for layer in layers):
        raise EngineError("got an engine without details of its layers, wanted one built by dgiqa-rt; build it again")
    return Counter(map(_layer_precision, layers))


def layers_of(plan: Path, *, plugins: Sequence[Path] = ()) -> list[Any]:
    """What TensorRT's inspector tells of each layer, at the usual shapes: without any it shows no types."""
    import_tensorrt()
    import tensorrt as trt

    engine = load_plan(plan, plugins, log := Log())
    execution = execution_of(engine, log)
    for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT and -1 in as_shape(engine.get_tensor_shape(name)):
            execution.set_input_shape(name, as_shape(engine.get_tensor_profile_shape(name, 0)[1]))
    inspector = engine.create_engine_inspector()
    inspector.execution_context = execution
    return list(json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))["Layers"])


def _layer_precision(layer: dict[str, Any]) -> str:
    tensors = [*layer.get("Inputs", []), *layer.get("Outputs", [])]
    words = " ".join(str(value) for tensor in tensors for key, value in tensor.items() if "datatype" in key.lower())
    weights = [part.get("Type", "") for part in (layer.get("Weights"), layer.get("Bias")) if isinstance(part, dict)]
    for text in (words, " ".join(weights), str(layer.get("TacticName", ""))):
        for precision, told in _TOLD.items():
            if told.search(text):
                return precision
    return "unknown" if "N/A" in words else "other"
