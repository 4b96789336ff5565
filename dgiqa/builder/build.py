"""Build a bundle's engine for this machine: write the precision into the graph, compile, prove, and only then keep it.

    ONNX fp32 -> fp16 or int8 ONNX -> (TensorRT) plan -> layer types read back -> golden images scored -> cache

The precision is in the file, never in a builder flag. An engine is not kept if too few layers have the precision, or if
its scores are further from the bundle's own than the budget allows.
"""

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgiqa import machine, preprocess, spec
from dgiqa.builder import plan as tensorrt_plan
from dgiqa.builder.plan import USUAL, PlanOptions
from dgiqa.bundle import Bundle, load_bundle
from dgiqa.errors import BackendError, EngineError, ParityError
from dgiqa.forward import open_stages
from dgiqa.parity import certify
from dgiqa.runtime import backends, cuda, engines, ov, trt
from dgiqa.runtime.engines import Engine
from dgiqa.store import locked, sha256_of

BATCH = (1, 8, 32)  # tiles a run: fewest, usual (a Scorer's batch), most
IMAGES = 4  # of one size per run of the depth network, at most
WORKSPACE = 4 << 30  # bytes
FP8_FROM = (8, 9)  # compute capability of the first GPUs that multiply E4M3
ASPECTS = (1.0, 4 / 3, 16 / 9)  # of images; 518 pixels give depth inputs of 518x518, 518x686 and 518x924
# Speed of int8 against fp32 on two cores: 0.5 to 0.9 times on a Zen 3 without VNNI, 0.7 to 0.9 on a Xeon with VNNI.
SLOW_INT8 = "ONNX Runtime runs int8 slower than fp32 on CPUs; OpenVINO runs the same file faster: --backend openvino"

Progress = Callable[[str], None]
Shape = tuple[int, ...]


def build(
    bundle: str | Path | Bundle = "small",
    *,
    backend: str = "auto",
    precision: str = "fp16",
    batch: tuple[int, int, int] = BATCH,
    buckets: Sequence[tuple[int, int]] = (),
    workspace: int = WORKSPACE,
    timing_cache: Path | None = None,
    plugins: Sequence[Path] = (),
    plan: PlanOptions = USUAL,
    calibration: Sequence[Path] | None = None,
    device: int | None = None,
    force: bool = False,
    progress: Progress = lambda line: None,
) -> Engine:
    """Build an engine of this bundle for this machine, prove it on the golden images, and keep it in the cache.

    precision: one of spec.PRECISIONS. For ONNX Runtime and OpenVINO, fp32 and bf16 run the bundle's own files, and only
    the proof is kept. calibration: images, or folders of them, for int8 and fp8 (500 or more are advised), by default
    the bundle's own golden images.
    TensorRT only: batch, tiles a run (fewest, usual, most); buckets, (height, width) of further depth inputs that the
    plan takes, apart from square, 4:3 and 16:9 images in both orientations; workspace in bytes; timing_cache, a file of
    measured kernels; plugins, libraries that implement operators; plan, where else it runs, see PlanOptions.
    device: the GPU's ordinal, for backends that run on one.
    force: build it even if it exists. progress: gets a line about each step.
    Raises ValueError for invalid arguments, BackendError if the backend is missing, EngineError if the engine cannot be
    built, ParityError if it lacks the precision or its scores are over budget. After an error nothing is left behind.
    """
    bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
    check_batch(batch)
    check_buckets(buckets, bundle.preprocess)
    backend = _available(backend, precision)
    _check_plugins(plugins, backend)
    if precision == "int8" and backend == backends.ONNXRUNTIME:
        progress(SLOW_INT8)
    elif precision == "int8" and backend == backends.OPENVINO and machine.lacks_vnni():
        progress(backends.PLAIN_INT8)
    profile: dict[str, Any] = {}
    if calibration is not None and precision in spec.EIGHT_BITS:
        profile["calibration"] = _digest(calibration)
    if plan.chosen and backend != backends.TENSORRT:
        raise ValueError(f"{', '.join(plan.chosen)} of a plan: for TensorRT only, and this is for {backend}; leave out")
    if backend == backends.TENSORRT:
        profile |= {"plan": plan.chosen} if plan.chosen else {}
        profile["batch"] = list(batch)
        profile["images"] = IMAGES
        if bundle.preprocess.depth_lower_bound:
            profile["depth"] = [list(size) for size in dict.fromkeys([*depth_buckets(bundle.preprocess), *buckets])]
    key = engines.engine_key(bundle, backend, precision, profile=profile, plugins=plugins, device=device)
    _check_fp8(key)
    target = engines.directory(key)
    before = _created(target)
    if before and not force and (kept := _kept(target, bundle, progress)):
        return kept  # before locking, so that a read-only cache will do
    with _named_failures(target), locked(target):
        quicker = _created(target) and (not force or _created(target) != before)  # another process
        if quicker and (kept := _kept(target, bundle, progress)):
            return kept
        with engines.scratch(key) as folder:
            progress(f"building {target.name}")
            order = _Order(bundle, key, folder, calibration, workspace, timing_cache, device, progress)
            files, evidence = _made(order, plugins)
            progress("scoring the golden images")
            with open_stages(bundle, engine=Engine(folder, key, files, {}), device=device) as stages:
                certificate = certify(bundle, stages)
            return engines.store(folder, key, files, certificate | evidence | _sizes(bundle, files))


@dataclass(frozen=True)
class _Order:
    """The engine to build, and the folder to build it in."""

    bundle: Bundle
    key: dict[str, Any]
    folder: Path
    calibration: Sequence[Path] | None
    workspace: int
    timing_cache: Path | None
    device: int | None
    progress: Progress


def depth_buckets(p: spec.Preprocess) -> list[tuple[int, int]]:
    """(height, width) of the depth network's input for images of ASPECTS, landscape and portrait."""
    unit = 1000 * p.depth_lower_bound  # a picture's short side, so large that rounding the long side moves no bucket
    lying = [preprocess.depth_size(unit, round(unit * aspect), p) for aspect in ASPECTS]
    return [*lying, *((width, height) for height, width in lying[1:])]


def _available(backend: str, precision: str) -> str:
    """The backend to build for. Without TensorRT, one sentence says what to install and what would work instead."""
    try:
        return backends.choose(backend, precision)
    except BackendError as error:
        if backend != backends.TENSORRT or precision == "bf16":  # only OpenVINO runs bf16, and the error says so
            raise
        where = "" if machine.gpu_present() or "pip install" not in str(error) else " on a machine with an NVIDIA GPU"
        instead = "--backend onnxruntime builds and proves the same precision for ONNX Runtime on this CPU"
        raise BackendError(f"{error}{where}, or {instead}") from error


@contextlib.contextmanager
def _named_failures(target: Path) -> Iterator[None]:
    """Turn an OSError into an EngineError that says where: the system's own message often names no file."""
    try:
        yield
    except ParityError as error:
        raise ParityError(f"{error}; nothing was kept") from error
    except OSError as error:
        what = f"{target.name} was not built in {target.parent} ({error}), and nothing was kept"
        raise EngineError(f"{what}; make room there, or set XDG_CACHE_HOME to another folder") from error


def _check_fp8(key: Mapping[str, Any]) -> None:
    """BackendError for fp8 on a GPU without fp8 arithmetic."""
    if key["precision"] == "fp8" and tuple(map(int, key["compute_capability"].split("."))) < FP8_FROM:
        wanted = ".".join(map(str, FP8_FROM))
        where = f"{key['device']} has compute capability {key['compute_capability']}"
        raise BackendError(
            f"{where}, and fp8 needs {wanted} or later (Ada, Hopper, Blackwell); choose --int8 or --fp16"
        )


def _made(order: _Order, plugins: Sequence[Path]) -> tuple[dict[str, Path], dict[str, Any]]:
    """(network -> its file in order.folder, without those whose own file runs; the layer types found in the files).

    ParityError unless most layers of each file have the precision, and some layers compiled from it do, too.
    """
    for plugin in plugins:
        shutil.copyfile(plugin, order.folder / plugin.name)
    onnx, report = _typed(order)
    made = {name: path for name, path in onnx.items() if path.parent == order.folder}
    precision, types, layers = order.key["precision"], dict[str, dict[str, int]](), dict[str, dict[str, int]]()
    if made:
        from dgiqa.builder.precision import check_precision

        types = {name: dict(check_precision(path, precision)) for name, path in made.items()}
    if order.key["engine"] == backends.TENSORRT:
        made, layers = _planned(order, onnx)
    elif order.key["engine"] == backends.OPENVINO:
        compiled = {name: ov.OvSession(path, precision=precision, cache=False) for name, path in onnx.items()}
        layers = {name: dict(opened.layer_precisions()) for name, opened in compiled.items()}
        precision = "fp32" if precision == "fp16" else precision  # on a CPU only the weights are fp16
    for name, counts in layers.items():
        shown = sum(count for kind, count in counts.items() if kind not in ("unknown", "other"))
        if not counts.get(precision) and (shown or "unknown" not in counts):
            raise ParityError(f"asked for {precision}, and the engine of {name} has {counts}")
    return made, {"types": types, "layers": layers, "quantisation": report}


def _typed(order: _Order) -> tuple[dict[str, Path], dict[str, Any]]:
    """(network -> ONNX file in the precision, the bundle's own for fp32 and bf16; the quantiser's report)."""
    if order.key["precision"] not in spec.QUANTIZED:
        return {network.file: order.bundle.file(network.file) for network in order.bundle.networks}, {}
    from dgiqa.builder.quantize import quantize_bundle

    made = quantize_bundle(
        order.bundle,
        order.key["precision"],
        order.folder,
        calibration=order.calibration,
        rest="fp16" if order.key["engine"] in (backends.TENSORRT, backends.CUDA, backends.RTX) else "fp32",
        progress=order.progress,
    )
    return dict(made.files), dict(made.report)


def _planned(order: _Order, onnx: Mapping[str, Path]) -> tuple[dict[str, Path], dict[str, dict[str, int]]]:
    """(network -> plan, network -> layers per precision as TensorRT's inspector reads them from the plan)."""
    plans, layers = {}, {}
    context = cuda.Context(order.device)  # the builder works in its own thread, where no context is current
    libraries = [order.folder / plugin for plugin in order.key["plugins"]]
    for name, path in onnx.items():
        plans[name] = order.folder / f"{Path(name).stem}.plan"
        order.progress(f"building the {Path(name).stem} plan for {order.key['device']}; this takes minutes")
        typed = tensorrt_plan.build_plan(
            path,
            plans[name],
            context=context,
            shapes=_shapes(next(n for n in order.bundle.networks if n.file == name), order.key["profile"]),
            workspace=order.workspace,
            timing_cache=order.timing_cache,
            plugins=libraries,
            options=PlanOptions(**order.key["profile"].get("plan", {})),
            progress=order.progress,
        )
        opened = trt.TrtSession(plans[name], plugins=libraries, device=order.device)
        layers[name] = dict(opened.layer_precisions())
        opened.close()
        if not typed.get(order.key["precision"]):
            raise ParityError(f"asked for {order.key['precision']}, and the network of {name} has {dict(typed)}")
    return plans, layers


def _shapes(network: spec.Network, profile: Mapping[str, Any]) -> list[dict[str, tuple[Shape, Shape, Shape]]]:
    """Smallest, usual and largest shape of each input of a network, for each profile it is tuned for.

    Landscape and portrait have a profile each: a common one would have to hold squares of their long side.
    """

    def sized(shape: tuple[int | str, ...], tiles: int) -> Shape:
        return tuple(tiles if side == "n" else int(side) for side in shape)

    if network.file == spec.QUALITY_FILE:
        low, usual, high = profile["batch"]
        shapes = network.inputs.items()
        return [{name: (sized(shape, low), sized(shape, usual), sized(shape, high)) for name, shape in shapes}]
    sizes = [tuple(size) for size in profile["depth"]]
    made: list[dict[str, tuple[Shape, Shape, Shape]]] = []
    for group in ([s for s in sizes if s[0] <= s[1]], [s for s in sizes if s[0] > s[1]]):
        if group:
            low, high = (tuple(map(extreme, zip(*group, strict=True))) for extreme in (min, max))
            usual = group[min(1, len(group) - 1)]  # 4:3, if there is one
            made.append({spec.DEPTH_INPUT: ((1, 3, *low), (1, 3, *usual), (profile["images"], 3, *high))})
    return made


def _sizes(bundle: Bundle, files: Mapping[str, Path]) -> dict[str, float]:
    """The networks' size in bytes, and as a share of the bundle's fp32 files."""
    names = [network.file for network in bundle.networks]
    full = sum(bundle.file(name).stat().st_size for name in names)
    used = sum((files.get(name) or bundle.file(name)).stat().st_size for name in names)
    return {"bytes": used, "share_of_fp32_bytes": round(used / full, 4)}


def _created(target: Path) -> str:
    """When the engine in this place was built; empty if there is none."""
    return next((engine.created for engine in engines.list_engines() if engine.path == target), "")


def _kept(target: Path, bundle: Bundle, progress: Progress) -> Engine | None:
    """The engine in this place, or None if it is damaged."""
    try:
        kept = engines.load(target, bundle)
    except EngineError as error:
        progress(f"a damaged engine is replaced: {error}")
        return None
    progress(f"{target.name} is there already; --force builds it again")
    return kept


def _digest(paths: Sequence[Path]) -> str:
    """One hash of the contents of files and folders, whatever their names and order."""
    files = (file for path in paths for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
    return hashlib.sha256("".join(sorted(map(sha256_of, files))).encode()).hexdigest()


def check_batch(batch: Sequence[int]) -> None:
    """ValueError for numbers of tiles (fewest, usual, most) with which a plan could not score images."""
    if len(batch) != 3 or not 1 == batch[0] <= batch[1] <= batch[2] or batch[2] < BATCH[1]:
        why = f"images leave single tiles over, and {BATCH[1]} are scored at once"
        got = ",".join(map(str, batch))
        raise ValueError(f"batch is {got}, wanted fewest,usual,most tiles a run, such as 1,8,32: {why}")


def check_buckets(buckets: Sequence[tuple[int, int]], p: spec.Preprocess) -> None:
    """ValueError for a (height, width) that the depth network's input never has."""
    if not p.depth_lower_bound:
        if buckets:
            raise ValueError("got sizes of depth inputs for a model without a depth network; leave them out")
        return
    short, _ = preprocess.depth_size(p.depth_lower_bound, p.depth_lower_bound, p)
    for height, width in buckets:
        if min(height, width) != short or height % p.depth_multiple or width % p.depth_multiple:
            raise ValueError(
                f"depth inputs of {height}x{width}: one side is {short}, the other a larger multiple of "
                f"{p.depth_multiple}"
            )


def _check_plugins(plugins: Sequence[Path], backend: str) -> None:
    if plugins and backend != backends.TENSORRT:
        raise ValueError(f"plugins serve TensorRT, and this is for {backend}; leave them out, or --backend tensorrt")
    if len({path.name for path in plugins}) < len(plugins):
        raise ValueError(f"two plugins have one name: {', '.join(map(str, plugins))}; rename one")
