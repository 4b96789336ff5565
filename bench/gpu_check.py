"""Run everything that needs an NVIDIA GPU once, in order, on a machine that has one: under ten minutes.

    python bench/gpu_check.py [--json bench/results/gpu_check.json] [--bundle small] [--calls 10000] [--calib DIR]
                              [--only STEP ...] [--minutes 10]

Steps are independent: if one fails, its error is recorded and the others go on. A step's findings are written at once,
so that they are kept if it fails, hangs or ends the process; --only runs steps whose names contain a word. If a step
lacks something (a GPU, a package, the built kernels), that is its error. Exit code 0 if every step passed, else 1.

    device memory                       allocation, copies, graph replay, and nothing left after all calls
    images in place                     golden images on the GPU, our kernels there, the networks on the CPU
    onnxruntime-cuda fp32, fp16, int8   the bundle's networks against ONNX Runtime on the CPU, times; arrays that stay
                                        on the GPU, by a captured graph
    scores onnxruntime-cuda             golden images through the whole pipeline, as in `dgiqa-rt verify`
    tensorrt fp32, fp16, int8           build, layer types, parity, times; device arrays; nothing left after all calls
    scores tensorrt                     as above, by an engine built for it
"""

import gc
import importlib.util
import os
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stamp import command_line, environment_stamp, write_json

from dgiqa import spec
from dgiqa.bundle import Bundle, load_bundle, load_golden
from dgiqa.errors import BackendError, EngineError
from dgiqa.image import decode
from dgiqa.machine import gpu_present, installed_wheels
from dgiqa.on_device import DeviceScorer
from dgiqa.parity import BUDGETS, verify_bundle
from dgiqa.runtime import cuda
from dgiqa.runtime.backends import CUDA, TENSORRT, choose
from dgiqa.runtime.kernels import Kernels
from dgiqa.runtime.ort import OrtSession
from dgiqa.runtime.session import Session, open_session
from dgiqa.timing import wall_ms

PRECISIONS = ("fp32", "fp16", "int8")
BATCHES = (1, 8, 32)  # tiles
LEAK_MB = 64  # of device memory, which the driver may keep for itself between two readings
TIMED_RUNS = 50

Feeds = Mapping[str, NDArray[Any]]
Arrays = dict[str, cuda.DeviceArray]
Record = dict[str, Any]
Note = Callable[[str, Any], None]


class Room:
    """Shared by the steps: a bundle, its networks as ONNX in each precision, inputs, and their outputs on the CPU."""

    def __init__(self, bundle: Bundle, folder: Path, calls: int, calibration: Sequence[Path] | None) -> None:
        self.bundle, self.folder, self.calls, self._calibration = bundle, folder, calls, calibration
        generator = np.random.default_rng(0)
        p = bundle.preprocess
        side = -(-max(p.depth_lower_bound, 4 * p.depth_multiple) // p.depth_multiple) * p.depth_multiple
        self.depth_shapes = tuple((1, 3, side, side + more * p.depth_multiple) for more in (0, 2, 4))
        tiles = generator.standard_normal((2, 8, 3, p.tile, p.tile)).astype(np.float32)
        self.feeds: dict[str, Feeds] = {
            spec.DEPTH_FILE: {spec.DEPTH_INPUT: generator.standard_normal(self.depth_shapes[1]).astype(np.float32)},
            spec.QUALITY_FILE: {spec.QUALITY_RGB: tiles[0], spec.QUALITY_DEPTH: tiles[1]},
        }
        self.files, self.expected = cache(self._files), cache(self._expected)

    def _files(self, precision: str) -> dict[str, Path]:
        if precision == "fp32":
            return {name: self.bundle.file(name) for name in self.feeds}
        from dgiqa.builder.quantize import quantize_bundle

        out = self.folder / precision
        return dict(quantize_bundle(self.bundle, precision, out, calibration=self._calibration, rest="fp16").files)

    def _expected(self, name: str) -> dict[str, NDArray[Any]]:
        return OrtSession(self.bundle.file(name)).run(self.feeds[name])

    def shapes(self, name: str) -> dict[str, tuple[tuple[int, ...], ...]]:
        if name == spec.DEPTH_FILE:
            return {spec.DEPTH_INPUT: self.depth_shapes}
        tile = self.bundle.preprocess.tile
        return dict.fromkeys(self.feeds[name], tuple((n, 3, tile, tile) for n in BATCHES))

    def compare(self, name: str, session: Session, precision: str) -> Record:
        """Largest difference from fp32 on the CPU and the median time of a run. EngineError above the budget."""
        got, feeds = session.run(self.feeds[name]), self.feeds[name]
        key, wanted = next(iter(self.expected(name).items()))
        scale = 1.0 if name == spec.QUALITY_FILE else float(np.ptp(wanted))  # of a depth map: share of its range
        difference = float(np.abs(got[key].astype(np.float64) - wanted).max() / scale)
        times = [wall_ms(lambda: session.run(feeds)) for _ in range(TIMED_RUNS)]
        record = {"backend": session.backend, "difference": difference, "run_ms": median(times)}
        # Tiles of noise err more than the mean score of a photograph, for which the budget is.
        if not difference <= 10 * BUDGETS[precision]:
            raise EngineError(f"{name} in {precision} differs by {difference:.2e}, wanted 10 x {BUDGETS[precision]:g}")
        return record


def onnxruntime_cuda(room: Room, precision: str, note: Note) -> None:
    """Both networks on the CUDA provider, and between arrays that stay on the GPU, by a captured graph."""
    need_gpu()
    choose(CUDA)  # before minutes of quantising for nothing
    files = room.files(precision)
    for name, path in files.items():
        note(name, room.compare(name, open_session(path, CUDA, precision=precision), precision))
    graph = OrtSession(files[spec.QUALITY_FILE], device="cuda", cuda_graph=True)
    note("graph", {"difference": _bound(room, spec.QUALITY_FILE, graph)})


def device_memory(room: Room, note: Note) -> None:
    """Device memory (runtime/cuda.py) on the real driver."""
    need_gpu()
    context = cuda.Context()
    note("gpu", context.gpu)
    version = int(cuda.driver("cuDriverGetVersion"))
    note("driver", f"{version // 1000}.{version % 1000 // 10}")
    lane, data = cuda.Lane(context), np.random.default_rng(1).standard_normal(1 << 20).astype(np.float32)
    source, between, target = (lane.empty(data.shape, data.dtype) for _ in range(3))

    def twice() -> None:
        lane.copy(between.pointer, source.pointer, source.nbytes)
        lane.copy(target.pointer, between.pointer, between.nbytes)

    with lane.current():
        for turn in range(4):  # plain, recorded, replayed
            lane.put(source, np.roll(data, turn))
            lane.replay(twice, twice)
            np.testing.assert_array_equal(lane.numpy(target), np.roll(data, turn))
        if not lane.graphs[twice]:
            raise BackendError("two copies on a stream were not recorded as a graph")
        context.check_home(target.pointer)
        note("calls", room.calls)
        note("lost_mb", _lost_mb(lambda: _one_round(lane, data), room.calls))
        lane.close()


def images_in_place(room: Room, note: Note, kernels: Kernels | None = None) -> None:
    """Golden images on the GPU, prepared there by our kernels, with networks that run on the CPU."""
    need_gpu()
    kernels = kernels or _real_kernels()
    note("kernels", str(kernels.path))
    context = cuda.Context()
    depth, quality = (_OnHost(room.bundle.file(name)) for name in (spec.DEPTH_FILE, spec.QUALITY_FILE))
    lanes = [cuda.Lane(context, keep=2, record=False) for _ in range(2)]
    scorer = DeviceScorer(depth, quality, room.bundle.preprocess, kernels=kernels, lanes=lanes)
    found = []
    for golden in load_golden(room.bundle):
        rgb = decode((room.bundle.path / golden.file).read_bytes())
        for image, stream in _placed(context, rgb):
            got = scorer.score(image, golden.tiling, stream=stream)
            found.append(abs(float(got.tile_scores.mean(dtype=np.float64)) - golden.score))
            note("images", len(found))
            note("difference", max(found))
            note("milliseconds", got.timings_ms["device"])
    scorer.close()
    if not max(found) <= BUDGETS["fp32"]:
        raise EngineError(f"scores of images on the GPU differ by {max(found):.2e}, wanted {BUDGETS['fp32']:g}")


def scores(room: Room, backend: str, note: Note) -> None:
    """Score the golden images end to end: with a built engine for TensorRT, the bundle's files for ONNX Runtime."""
    from dgiqa.builder.build import build
    from dgiqa.scorer import Scorer

    need_gpu()
    choose(backend)
    os.environ["XDG_CACHE_HOME"] = str(room.folder / "cache")  # leaves this user's own engines alone
    engine = build(room.bundle, backend=TENSORRT, precision="fp16") if backend == TENSORRT else None
    with Scorer(room.bundle, backend=backend, engine=engine) as scorer:
        report = verify_bundle(room.bundle, scorer)
    note("backend", report.backend)
    note("difference", report.max_difference)
    note("share_of_budget", report.share)
    if not report.passed:
        raise EngineError(f"{report.backend} differs by {report.max_difference:.2e}, wanted {report.tolerance:g}")


def tensorrt(room: Room, precision: str, note: Note) -> None:
    """Both networks: build, read the layers' types back, compare, and run on device arrays with the caller's stream."""
    from dgiqa.builder.plan import build_plan
    from dgiqa.runtime.trt import TrtSession, identity

    need_gpu()
    note("on", identity())
    context = cuda.Context()
    for name, path in room.files(precision).items():
        plan = room.folder / f"{precision}-{Path(name).stem}.plan"
        shapes, timing = room.shapes(name), room.folder / "timing.cache"
        started = time.monotonic()
        types = build_plan(path, plan, shapes=[shapes], context=context, timing_cache=timing)
        record: Record = {"build_s": time.monotonic() - started, "megabytes": plan.stat().st_size / 1e6}
        note(name, record := record | {"types": dict(types)})
        with closing(TrtSession(plan)) as session:
            layers = session.layer_precisions()
            note(name, record := record | {"layers": dict(layers)})
            if not layers[precision] and "unknown" not in layers:
                raise EngineError(f"{name} was built from {precision}, and no layer of the engine is: {dict(layers)}")
            note(name, record := record | room.compare(name, session, precision))
            note(name, record := record | {"bound": _bound(room, name, session)})
            calls = room.calls if name == spec.QUALITY_FILE and precision == "fp16" else 200
            feeds = {key: array[:1] for key, array in room.feeds[name].items()}
            note(name, record | {"lost_mb": _lost_mb(lambda s=session, f=feeds: s.run(f), calls)})


def need_gpu() -> None:
    if not gpu_present():
        raise BackendError("no NVIDIA GPU here; run this on a machine that has one")


def run_steps(
    steps: Mapping[str, Callable[[Note], None]], keep: Callable[[dict[str, Record]], None], minutes: float = 10
) -> dict[str, Record]:
    """Run steps. Return each one's findings, with "ok" and "seconds"; an error becomes its finding.

    keep: called with all findings so far, before and after every step and whenever a step notes something. minutes: no
    step begins later than this.
    """
    started = time.monotonic()
    found: dict[str, Record] = {name: {"ok": False, "error": "not begun"} for name in steps}
    for name, step in steps.items():
        if time.monotonic() - started > 60 * minutes:
            found[name] = {"ok": False, "error": f"not begun within {minutes:g} minutes; --only {name!r} runs it"}
            continue
        begun = time.monotonic()
        found[name] = {"ok": False, "error": "begun, and the process ended or was stopped in it"}
        keep(found)

        def note(key: str, value: Any, name: str = name) -> None:
            found[name][key] = value
            keep(found)

        found[name] |= _outcome(step, note)
        found[name]["seconds"] = round(time.monotonic() - begun, 2)
        keep(found)
        verdict = "ok" if found[name]["ok"] else found[name]["error"]
        print(f"{name}: {verdict} ({found[name]['seconds']} s)", flush=True)
    keep(found)
    return found


def _outcome(step: Callable[[Note], None], note: Note) -> Record:
    try:
        step(note)
    except Exception as error:  # whatever happens in one step, the others go on
        lines = traceback.format_exc().splitlines()
        return {"ok": False, "error": f"{type(error).__name__}: {error}", "at": lines[-3:-1]}
    return {"ok": True, "error": ""}


def steps_of(room: Room) -> dict[str, Callable[[Note], None]]:
    """The steps in order of cost, so that as many as possible are done if time runs out."""

    def both(precisions: Sequence[str], step: Callable[..., None], label: str) -> dict[str, Callable[[Note], None]]:
        return {f"{label} {p}": lambda note, p=p: step(room, p, note) for p in precisions}  # type: ignore[misc]

    return {
        "device memory": lambda note: device_memory(room, note),
        "images in place": lambda note: images_in_place(room, note),
        **both(PRECISIONS, onnxruntime_cuda, "onnxruntime-cuda"),
        **both([CUDA], scores, "scores"),
        **both(PRECISIONS, tensorrt, "tensorrt"),
        **both([TENSORRT], scores, "scores"),
    }


class _OnHost:
    """A network in ONNX Runtime on the CPU, between arrays on the GPU."""

    def __init__(self, path: Path) -> None:
        self._session = OrtSession(path)
        self.backend = self._session.backend

    def bind(self, feeds: Mapping[str, cuda.DeviceArray], outputs: Any, lane: cuda.Lane) -> "_HostBound":
        return _HostBound(self._session, dict(feeds), dict(outputs or {}), lane)


class _HostBound:
    def __init__(self, session: OrtSession, feeds: Arrays, given: Arrays, lane: cuda.Lane) -> None:
        self._session, self._feeds, self._lane = session, feeds, lane
        found = session.run({name: np.zeros(feed.shape, feed.dtype) for name, feed in feeds.items()})
        fresh = {name: lane.empty(a.shape, a.dtype) for name, a in found.items() if name not in given}
        self.arrays = {**feeds, **fresh, **given}

    def put(self) -> None:
        for name, array in self._session.run({n: self._lane.numpy(a) for n, a in self._feeds.items()}).items():
            self._lane.put(self.arrays[name], array)


def _real_kernels() -> Kernels:
    kernels = Kernels()
    if kernels.emulated:
        raise BackendError(f"{kernels.path} emulates the kernels on a CPU; set DGIQA_KERNELS to a CUDA build of it")
    return kernels


def _placed(context: cuda.Context, rgb: NDArray[np.uint8]) -> Iterator[tuple[Any, Any]]:
    """A picture on the GPU, and the stream to score it on: our array, and PyTorch's if that is installed."""
    lane = cuda.Lane(context)
    with lane.current():
        image = lane.empty(rgb.shape, np.uint8)
        lane.put(image, rgb)
    yield image, None
    if importlib.util.find_spec("torch"):
        import torch

        if torch.cuda.is_available():
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                tensor = torch.from_numpy(rgb).cuda(non_blocking=True)
            yield tensor, stream
            yield torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1))).cuda().permute(1, 2, 0), None


def _bound(room: Room, name: str, session: Any) -> float:
    """Largest difference between a run on host arrays and one on device arrays, bound once and run four times."""
    feeds = room.feeds[name]
    host = session.run(feeds)
    lane = cuda.Lane(getattr(session, "context", None) or cuda.Context(session.device))
    with lane.current():
        placed = {key: lane.empty(array.shape, array.dtype) for key, array in feeds.items()}
        bound = session.bind(placed, None, lane)
        for _ in range(4):
            for key, array in feeds.items():
                lane.put(placed[key], array)
            getattr(bound, "run", bound.put)()
        found = max(float(np.abs(lane.numpy(bound.arrays[key]) - array).max()) for key, array in host.items())
    if found > 1e-6:
        raise EngineError(f"{name} between bound arrays differs by {found:.2e} from host arrays, wanted 1e-6")
    return found


def _one_round(lane: cuda.Lane, data: NDArray[Any]) -> None:
    lane.put(lane.empty((1 << 18,), np.float32), data[: 1 << 18])
    lane.sync()


def _lost_mb(call: Callable[[], object], calls: int) -> float:
    """Device memory lost over `calls` calls, after a few calls to settle. BackendError above LEAK_MB."""
    for _ in range(20):
        call()
    before = _free_memory()
    for _ in range(calls):
        call()
    gc.collect()
    lost = (before - _free_memory()) / 1e6
    if lost > LEAK_MB:
        raise BackendError(f"{lost:.0f} MB of device memory are gone after all calls, wanted at most {LEAK_MB}")
    return lost


def _free_memory() -> int:
    """Free bytes of the device's memory."""
    with cuda.Context().current():
        return int(cuda.driver("cuMemGetInfo")[0])


def main(arguments: list[str] | None = None) -> int:
    parser = command_line(__doc__)
    parser.add_argument("--json", type=Path, default=Path("bench/results/gpu_check.json"))
    parser.add_argument("--bundle", default="small")
    parser.add_argument("--calls", type=int, default=10_000, help="of each check that nothing is left behind")
    parser.add_argument("--calib", type=Path, action="append", help="pictures to calibrate int8 on")
    parser.add_argument("--only", action="append", metavar="WORD", help="steps whose names hold it; repeatable")
    parser.add_argument("--minutes", type=float, default=10, help="no step begins later than this")
    options = parser.parse_args(arguments)
    head = {"environment": environment_stamp(), "packages": _gpu_packages()}

    def keep(found: dict[str, Record]) -> None:
        well = all(step["ok"] for step in found.values())
        write_json(options.json, {**head, "bundle": room.bundle.id, "ok": well, "steps": found})

    with tempfile.TemporaryDirectory() as folder:
        room = Room(load_bundle(options.bundle), Path(folder), options.calls, options.calib)
        every = steps_of(room)
        steps = {name: every[name] for name in every if any(word in name for word in options.only or [""])}
        if not steps:
            parser.error(f"no step holds {' or '.join(options.only)}; there are {', '.join(every)}")
        found = run_steps(steps, keep, options.minutes)
    return 0 if all(step["ok"] for step in found.values()) else 1


def _gpu_packages() -> dict[str, str]:
    """The installed packages for GPUs: name -> version."""
    wanted = re.compile(r"onnx|onnxruntime.*|tensorrt.*|torch|cuda-.*|nvidia-.*|pycuda|cupy.*")
    return {name: version for name, version in sorted(installed_wheels().items()) if wanted.fullmatch(name)}


if __name__ == "__main__":
    sys.exit(main())
