"""An ONNX file whose precision is in its graph becomes a TensorRT plan, and a plan an engine.

One code path for TensorRT 10.12 and newer and 11: networks are strongly typed, so the engine computes in the types that
the graph names, and there is no flag that could be ignored. Plans run on the GPU, and with the TensorRT, they were
built for.

Checked with NVIDIA's own builder on a CPU (TensorRT-RTX, of the TensorRT 11 generation); not yet run on a GPU.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgiqa.errors import EngineError
from dgiqa.runtime import cuda
from dgiqa.runtime.plans import PRECISIONS, Log, Shape, as_shape, import_tensorrt, load_plugins, logger_of
from dgiqa.store import replacing

if TYPE_CHECKING:
    import tensorrt as trt

Profile = Mapping[str, tuple[Shape, Shape, Shape]]  # input -> smallest, usual and largest shape


@dataclass(frozen=True)
class PlanInfo:
    """A built plan. precisions: layers of the typed network per output type, e.g. {"fp16": 1827, "int64": 3969}."""

    layers: int
    precisions: Counter[str]
    bytes: int
    seconds: float


HARDWARE = ("ampere+", "same")


@dataclass(frozen=True)
class PlanOptions:
    """Where else a plan runs, and how long is looked for its kernels. Each of the first three costs speed.

    version_compatible: with other TensorRTs of this major version, too; a runtime for that is in the plan.
    exclude_lean_runtime: leave that out, where `tensorrt_lean` is installed anyway. hardware: "ampere+", every GPU of
    compute capability 8.0 and later; "same", every GPU of the same capability. level: 0 to 5, of effort; 3 is usual.
    """

    version_compatible: bool = False
    exclude_lean_runtime: bool = False
    hardware: str = ""
    level: int = 3

    def __post_init__(self) -> None:
        if self.hardware not in ("", *HARDWARE):
            raise ValueError(f"hardware is {self.hardware!r}; choose one of: {', '.join(HARDWARE)}")
        if not 0 <= self.level <= 5:
            raise ValueError(f"optimisation level is {self.level}, wanted 0 to 5")
        if self.exclude_lean_runtime and not self.version_compatible:
            raise ValueError("only a version-compatible plan has a lean runtime in it; leave exclude_lean_runtime out")

    @property
    def chosen(self) -> dict[str, Any]:
        """What differs from the defaults, for an engine's key."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) != field.default}


USUAL = PlanOptions()


def build_plan(
    onnx: Path,
    plan: Path,
    *,
    shapes: Profile | Sequence[Profile],
    context: cuda.Context | None = None,
    workspace: int = 4 << 30,
    timing_cache: Path | None = None,
    plugins: Sequence[Path] = (),
    options: PlanOptions = USUAL,
    progress: Callable[[str], None] = lambda message: None,
) -> PlanInfo:
    """Compile an ONNX file for the GPU of this machine and write the plan.

    shapes: input -> smallest, usual and largest shape, for every input with a dynamic axis; or several of these, each
    of which is tuned for itself. context: of the GPU to build for, by default the first one's. workspace: bytes the
    engine may use beside weights and activations. timing_cache: measured kernels, read and extended. plugins: libraries
    that serve operators; the bodies that those carry in the file are then left out. options: where else it runs.
    progress: gets a line per step.
    Raises BackendError without TensorRT, EngineError when the file or the shapes are refused; then nothing is written.
    """
    trt, log, started = import_tensorrt(), Log(), time.monotonic()
    if timing_cache is not None:  # before minutes of building, not after them
        timing_cache.parent.mkdir(parents=True, exist_ok=True)
        if timing_cache.is_dir():
            raise EngineError(f"{timing_cache} is a folder, wanted a file for measured kernels")
    monitor = monitor_of(progress)

    def compiled() -> PlanInfo:
        with nullcontext() if context is None else context.current():
            builder, network, parser = _parsed(onnx, load_plugins(tuple(plugins)), log, monitor)
            config = _config(builder, network, [shapes] if isinstance(shapes, Mapping) else shapes, options)
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
            config.progress_monitor = monitor  # TensorRT does not keep it alive
            measured = None if timing_cache is None else _read_timing(config, timing_cache)
            monitor.tell(f"compiling {network.num_layers} layers")
            serialized = builder.build_serialized_network(network, config)
            del parser  # which holds the weights until then
            if monitor.error is not None:
                raise monitor.error
            if serialized is None:
                raise EngineError(f"TensorRT {trt.__version__} did not compile {onnx.name}: {log.text()}")
            data = memoryview(serialized)
            _write(plan, data)
            if timing_cache is not None and measured is not None:
                _write(timing_cache, memoryview(measured.serialize()))
            return PlanInfo(network.num_layers, _graph_precisions(network), data.nbytes, time.monotonic() - started)

    # Python raises what a signal means in the main thread, wherever that is: inside a callback, TensorRT swallows it.
    with ThreadPoolExecutor(1, "tensorrt") as worker:
        try:
            return worker.submit(compiled).result()
        except BaseException as error:
            monitor.stop(error)
            raise


def _parsed(
    onnx: Path, served: frozenset[str], log: Log, monitor: Any
) -> tuple[trt.Builder, trt.INetworkDefinition, trt.OnnxParser]:
    """The file as a network, whose weights are the parser's."""
    import tensorrt as trt

    if not onnx.is_file():
        raise EngineError(f"{onnx} is missing; wanted an ONNX file")
    builder = trt.Builder(logger := logger_of(log))
    # 10.x needs the flag; 11 types every network strongly and accepts it
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    monitor.tell(f"reading {onnx.name}")
    parser = trt.OnnxParser(network, logger)
    if not (parser.parse(without_bodies(onnx, served)) if served else parser.parse_from_file(str(onnx))):
        reasons = [_parser_error(parser.get_error(i)) for i in range(parser.num_errors)]
        raise EngineError(f"TensorRT cannot take {onnx.name}: {'; '.join(reasons) or log.text()}")
    return builder, network, parser


def _config(
    builder: trt.Builder, network: trt.INetworkDefinition, profiles: Sequence[Profile], options: PlanOptions
) -> trt.IBuilderConfig:
    import tensorrt as trt

    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # fp32 in the graph is fp32 in the engine
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or layer_precisions could read names only
    config.builder_optimization_level = options.level
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.exclude_lean_runtime:
        config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
    levels = trt.HardwareCompatibilityLevel
    if options.hardware:
        kept = {"ampere+": levels.AMPERE_PLUS, "same": levels.SAME_COMPUTE_CAPABILITY}
        config.hardware_compatibility_level = kept[options.hardware]
    for shapes in profiles:
        _set_profile(builder, network, config, shapes)
    return config


def monitor_of(progress: Callable[[str], None], interval: float = 0.5) -> Any:
    """TensorRT's phases and steps -> messages, one in `interval` seconds at most; what the callback raises stops it.

    It has `tell`, `stop(error)`, which lets the build end at its next step, and the `error` that it ends with.
    """
    import tensorrt as trt

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.tell = progress
            self.error: BaseException | None = None
            self._phases: dict[str, list[int]] = {}
            self._told, self._lock = time.monotonic(), threading.Lock()  # steps come from several threads

        def stop(self, error: BaseException) -> None:
            with self._lock:
                self.error = self.error or error

        def phase_start(self, phase_name: str, parent_phase: str, num_steps: Any) -> None:
            with self._lock:
                self._phases[phase_name] = [0, int(num_steps)]

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                self._phases.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: Any) -> bool:
            with self._lock:
                if phase_name in self._phases:
                    self._phases[phase_name][0] = int(step) + 1
                if self.error is None and time.monotonic() - self._told >= interval:
                    self._told = time.monotonic()
                    try:
                        progress(" > ".join(f"{name} {done}/{steps}" for name, (done, steps) in self._phases.items()))
                    except BaseException as error:  # it must not pass through TensorRT; build_plan raises it again
                        self.error = error
                return self.error is None

    return Monitor()


def _parser_error(error: trt.ParserError) -> str:
    description = " ".join(error.desc().split())
    if not error.node_operator():
        return description
    return f"node {error.node_name() or error.node()!r} ({error.node_operator()}): {description}"


def without_bodies(path: Path, served: frozenset[str]) -> bytes:
    """The model without the function bodies of operators that a plugin serves: the parser would take the body."""
    import onnx

    model = onnx.load(path)
    kept = [function for function in model.functions if function.name not in served]
    del model.functions[:]
    model.functions.extend(kept)
    return bytes(model.SerializeToString())


def _set_profile(
    builder: trt.Builder,
    network: trt.INetworkDefinition,
    config: trt.IBuilderConfig,
    shapes: Profile,
) -> None:
    import tensorrt as trt

    inputs = {tensor.name: tensor for tensor in map(network.get_input, range(network.num_inputs))}
    dynamic = {name for name, tensor in inputs.items() if -1 in as_shape(tensor.shape)}
    if not dynamic <= shapes.keys() <= inputs.keys():
        raise EngineError(f"got shapes of {sorted(shapes)}, wanted those of {sorted(dynamic)} (of {sorted(inputs)})")
    profile = builder.create_optimization_profile()
    for name, three in shapes.items():
        fixed = as_shape(inputs[name].shape)  # an axis of one size keeps it, whatever was asked for
        low, usual, high = (
            trt.Dims([asked if size == -1 else size for asked, size in zip(shape, fixed, strict=True)])
            for shape in three
        )
        profile.set_shape(name, low, usual, high)
    if dynamic and config.add_optimization_profile(profile) < 0:
        raise EngineError(
            f"TensorRT refuses the shapes {dict(shapes)}; wanted smallest <= usual <= largest on each axis"
        )


def _read_timing(config: trt.IBuilderConfig, path: Path) -> trt.ITimingCache:
    """Kernels measured before. A file of another GPU or version is started afresh."""
    timing = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if timing is None or not config.set_timing_cache(timing, False):
        timing = config.create_timing_cache(b"")
        config.set_timing_cache(timing, False)
    return timing


def _graph_precisions(network: trt.INetworkDefinition) -> Counter[str]:
    layers = map(network.get_layer, range(network.num_layers))
    names = [layer.get_output(0).dtype.name for layer in layers if layer.num_outputs]
    return Counter(PRECISIONS.get(name, name.lower()) for name in names)


def _write(path: Path, data: memoryview) -> None:
    with replacing(path) as partial:
        partial.write_bytes(data)
