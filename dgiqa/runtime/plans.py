"""TensorRT, its plans and its plugins: found, loaded, and asked what is in them."""

from __future__ import annotations

import json
import re
from collections import Counter, deque
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgiqa.errors import BackendError, EngineError
from dgiqa.runtime import cuda

if TYPE_CHECKING:
    import tensorrt as trt

Shape = tuple[int, ...]
OLDEST = (10, 12)  # the first with strong typing in full
INSTALL = 'pip install "dgiqa-rt[tensorrt]", or take --backend onnxruntime'
# TensorRT's DataType names, in ours. Types that are not computed in (indices, conditions) keep their own.
PRECISIONS = {"FLOAT": "fp32", "HALF": "fp16", "INT8": "int8", "BF16": "bf16", "FP8": "fp8"}
# The engine inspector describes a tensor in words ("Half", "Row major linear FP16 format"): narrowest first.
_WORDS = {
    "fp8": re.compile(r"\bfp8|float8", re.IGNORECASE),
    "int8": re.compile(r"\bint8", re.IGNORECASE),
    "bf16": re.compile(r"\bbf16|bfloat16", re.IGNORECASE),
    "fp16": re.compile(r"\bhalf|\bfp16|\bfloat16", re.IGNORECASE),
    "fp32": re.compile(r"\bfloat\b|\bfp32|\bfloat32", re.IGNORECASE),
}


def identity() -> dict[str, str]:
    """A plan built here is bound to these: tensorrt (version), gpu (name), compute_capability. BackendError without."""
    trt = import_tensorrt()
    context = cuda.Context()
    return {
        "tensorrt": str(trt.__version__),
        "gpu": context.gpu,
        "compute_capability": context.compute_capability,
    }


def layer_precisions(plan: Path | trt.ICudaEngine, *, plugins: Sequence[Path] = ()) -> Counter[str]:
    """Layers of an engine per precision ("fp32", "fp16", "int8", ...; "other" for layers that hold no such tensor).

    A layer counts under the narrowest type it reads or writes. Loading a plan needs its GPU. Raises BackendError
    without TensorRT, EngineError for a plan that does not load here or was built without details of its layers.
    """
    import_tensorrt()
    import tensorrt as trt

    engine = load_plan(plan, plugins, Log()) if isinstance(plan, Path) else plan
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    layers = json.loads(text)["Layers"]
    if not all(isinstance(layer, dict) for layer in layers):
        raise EngineError("got an engine without details of its layers, wanted one built by dgiqa-rt; build it again")
    return Counter(map(_layer_precision, layers))


class Log:
    """The last warnings and errors of TensorRT, for error messages."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=8)

    def add(self, line: str) -> None:
        self._lines.append(" ".join(line.split()))

    def text(self) -> str:
        return " | ".join(self._lines) or "it gave no reason"


def as_shape(dimensions: trt.Dims) -> Shape:
    """TensorRT's dimensions as a tuple."""
    return tuple(dimensions[axis] for axis in range(len(dimensions)))


def import_tensorrt() -> Any:
    """The module. BackendError where it is missing or too old."""
    try:
        import tensorrt as trt
    except (ImportError, OSError) as error:
        raise BackendError(f"TensorRT cannot be imported ({error}); {INSTALL}") from error
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
            raise EngineError(
                f"{library} is no plugin library that TensorRT {trt.__version__} can load; build it again"
            )
    return frozenset(creator.name for creator in registry.all_creators)


def load_plan(plan: Path, plugins: Sequence[Path], log: Log) -> trt.ICudaEngine:
    """The engine of a plan. EngineError where it is missing or does not load here."""
    import tensorrt as trt

    if not plan.is_file():
        raise EngineError(f"{plan} is missing; build it: dgiqa-rt build")
    load_plugins(tuple(plugins))
    engine = trt.Runtime(logger_of(log)).deserialize_cuda_engine(plan.read_bytes())
    if engine is None:
        raise EngineError(f"TensorRT {trt.__version__} cannot load {plan.name} ({log.text()}); build it again here")
    return engine


def _layer_precision(layer: dict[str, Any]) -> str:
    tensors = [*layer.get("Inputs", []), *layer.get("Outputs", [])]
    words = " ".join(str(value) for tensor in tensors for key, value in tensor.items() if "datatype" in key.lower())
    return next((name for name, pattern in _WORDS.items() if pattern.search(words)), "other")
