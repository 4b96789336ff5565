"""Compile an ONNX file whose precision is in its graph into a TensorRT plan.

One code path serves TensorRT 11 and 10 from 10.12 on: networks are strongly typed, so the engine computes in the types
that the graph names, and there is no flag that could be ignored. A plan runs on the GPU and the TensorRT it was built
for. Checked with NVIDIA's own builder on a CPU (TensorRT-RTX, of the TensorRT 11 generation).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgiqa.errors import EngineError
from dgiqa.runtime import cuda
from dgiqa.runtime.trt import Shape, as_shape, import_tensorrt, load_plugins, logger
from dgiqa.store import replacing

if TYPE_CHECKING:
    import tensorrt as trt

HARDWARE = ("ampere+", "same")
Profile = Mapping[str, tuple[Shape, Shape, Shape]]  # input -> smallest, usual and largest shape


@dataclass(frozen=True)
class PlanOptions:
    """Where else a plan runs, which costs speed, and how hard TensorRT looks for fast kernels.

    version_compatible: with other TensorRTs of this major version, too; the plan holds a runtime for that.
    exclude_lean_runtime: leave that runtime out, if `tensorrt_lean` is installed anyway. hardware: "ampere+", every GPU
    of compute capability 8.0 and later; "same", every GPU of the same capability. level: effort, 0 to 5; 3 is usual.
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
        """The options that differ from the defaults, for an engine's key."""
        return {name: value for name, value in vars(self).items() if value != getattr(PlanOptions, name)}


USUAL = PlanOptions()


def build_plan(
    onnx: Path,
    plan: Path,
    *,
    shapes: Sequence[Profile],
    context: cuda.Context | None = None,
    workspace: int = 4 << 30,
    timing_cache: Path | None = None,
    plugins: Sequence[Path] = (),
    options: PlanOptions = USUAL,
    progress: Callable[[str], None] = lambda message: None,
) -> Counter[str]:
    """Compile an ONNX file for this machine's GPU and write the plan. Return the network's layers per output type.

    shapes: input -> smallest, usual and largest shape, for every input with a dynamic axis; each mapping is tuned on
    its own. context: the GPU to build for, by default the first. workspace: bytes the engine may use in addition to
    weights and activations. timing_cache: measured kernels, read and extended. plugins: libraries that implement
    operators, whose function bodies in the file are then left out. progress: gets a line per step.
    Raises BackendError without TensorRT, EngineError if the file or the shapes are refused; then nothing is written.
    """
    trt, log, monitor = import_tensorrt(), logger(), monitor_of(progress)
    if not onnx.is_file():
        raise EngineError(f"{onnx} is missing; wanted an ONNX file")
    if timing_cache is not None and timing_cache.is_dir():  # before minutes of building, not after them
        raise EngineError(f"{timing_cache} is a folder, wanted a file for measured kernels")

    def compiled() -> Counter[str]:
        with context.current() if context else nullcontext():
            served, builder = load_plugins(tuple(plugins)), trt.Builder(log)
            # 10.x needs the flag; 11 types every network strongly and accepts it
            network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
            progress(f"reading {onnx.name}")
            parser = trt.OnnxParser(network, log)  # must live on: it holds the weights
            if not (parser.parse(without_bodies(onnx, served)) if served else parser.parse_from_file(str(onnx))):
                reasons = "; ".join(_parser_error(parser.get_error(i)) for i in range(parser.num_errors))
                raise EngineError(f"TensorRT cannot take {onnx.name}: {reasons or log.text()}")
            config = _config(builder, network, shapes, options)
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
            config.progress_monitor = monitor  # TensorRT does not keep it alive
            measured = None if timing_cache is None else _read_timing(config, timing_cache)
            progress(f"compiling {network.num_layers} layers")
            serialized = builder.build_serialized_network(network, config)
            if monitor.error is not None:
                raise monitor.error
            if serialized is None:
                raise EngineError(f"TensorRT {trt.__version__} did not compile {onnx.name}: {log.text()}")
            _write(plan, serialized)
            if timing_cache is not None and measured is not None:
                _write(timing_cache, measured.serialize())
            layers = [layer for layer in map(network.get_layer, range(network.num_layers)) if layer.num_outputs]
            types = [layer.get_output(0).dtype.name for layer in layers]
            return Counter({"FLOAT": "fp32", "HALF": "fp16"}.get(name, name.lower()) for name in types)

    # Python handles a signal wherever the main thread is; inside a callback TensorRT would swallow the exception.
    with ThreadPoolExecutor(1, "tensorrt") as worker:
        try:
            return worker.submit(compiled).result()
        except BaseException as error:
            monitor.error = monitor.error or error  # the build ends at its next step
            raise


def _config(
    builder: trt.Builder, network: trt.INetworkDefinition, profiles: Sequence[Profile], options: PlanOptions
) -> trt.IBuilderConfig:
    import tensorrt as trt

    config, levels = builder.create_builder_config(), trt.HardwareCompatibilityLevel
    config.clear_flag(trt.BuilderFlag.TF32)  # fp32 in the graph is fp32 in the engine
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else layer_precisions sees only names
    config.builder_optimization_level = options.level
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.exclude_lean_runtime:
        config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
    kept = {"": levels.NONE, "ampere+": levels.AMPERE_PLUS, "same": levels.SAME_COMPUTE_CAPABILITY}
    config.hardware_compatibility_level = kept[options.hardware]
    inputs = {tensor.name: as_shape(tensor.shape) for tensor in map(network.get_input, range(network.num_inputs))}
    dynamic = {name for name, shape in inputs.items() if -1 in shape}
    for shapes in profiles:
        if not dynamic <= shapes.keys() <= inputs.keys():
            got = f"got shapes of {sorted(shapes)}, wanted those of {sorted(dynamic)}"
            raise EngineError(f"{got} (of {sorted(inputs)})")
        profile = builder.create_optimization_profile()
        for name, three in shapes.items():  # a fixed axis keeps its size, whatever was asked for
            fixed = [[a if n == -1 else n for a, n in zip(shape, inputs[name], strict=True)] for shape in three]
            profile.set_shape(name, *map(trt.Dims, fixed))
        if dynamic and config.add_optimization_profile(profile) < 0:
            wanted = "smallest <= usual <= largest on each axis"
            raise EngineError(f"TensorRT refuses the shapes {dict(shapes)}; wanted {wanted}")
    return config


def monitor_of(tell: Callable[[str], None], interval: float = 0.5) -> Any:
    """A monitor that reports TensorRT's steps, one in `interval` seconds at most. Setting `error` ends the build."""
    import tensorrt as trt

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.error: BaseException | None = None
            self.told, self.steps = time.monotonic(), dict[str, int]()

        def phase_start(self, phase_name: str, parent_phase: str, num_steps: Any) -> None:
            self.steps[phase_name] = int(num_steps)

        def phase_finish(self, phase_name: str) -> None:
            pass  # TensorRT requires the method

        def step_complete(self, phase_name: str, step: Any) -> bool:
            if self.error is None and time.monotonic() - self.told >= interval:
                self.told = time.monotonic()
                try:
                    tell(f"{phase_name} {int(step) + 1}/{self.steps.get(phase_name, '?')}")
                except BaseException as error:  # it must not pass through TensorRT; build_plan raises it again
                    self.error = error
            return self.error is None

    return Monitor()


def _parser_error(error: trt.ParserError) -> str:
    node = f"node {error.node_name() or error.node()!r} ({error.node_operator()}): " if error.node_operator() else ""
    return node + " ".join(error.desc().split())


def without_bodies(path: Path, served: frozenset[str]) -> bytes:
    """The model without the function bodies of operators that a plugin implements: the parser would use the body."""
    import onnx

    model = onnx.load(path)
    for function in [function for function in model.functions if function.name in served]:
        model.functions.remove(function)
    return bytes(model.SerializeToString())


def _read_timing(config: trt.IBuilderConfig, path: Path) -> trt.ITimingCache:
    """The timing cache in a file; an empty one if the file is missing or of another GPU or version."""
    timing = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if timing is None or not config.set_timing_cache(timing, False):
        timing = config.create_timing_cache(b"")
        config.set_timing_cache(timing, False)
    return timing


def _write(path: Path, data: trt.IHostMemory) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_bytes(memoryview(data))
