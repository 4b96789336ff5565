"""Everything that needs an NVIDIA GPU, run once in order on a machine that has one: under ten minutes.

    python bench/gpu_check.py [--json bench/results/gpu_check.json] [--bundle small] [--calls 10000] [--calib DIR]

Each step stands alone: one that fails is recorded with its error and the others go on. Exit code 0 if every step
passed, 1 otherwise. A machine without a GPU gives a record of what is missing, step by step.

    onnxruntime-cuda fp32, fp16, int8   the bundle's networks against ONNX Runtime on the CPU, times
    device memory                       allocation, copies, events, graph replay, and nothing left after all calls
    tensorrt fp32, fp16, int8           build, layer types, parity, times; device arrays; nothing left after all calls
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgiqa import spec
from dgiqa.backends import cuda
from dgiqa.backends.ort import OrtSession
from dgiqa.bundle import Bundle, load_bundle
from dgiqa.errors import BackendError, EngineError
from dgiqa.files import replacing
from dgiqa.parity import BUDGETS
from dgiqa.sessions import CUDA, Session, gpu_present, open_session

sys.path.insert(0, str(Path(__file__).parent))
from stamp import environment_stamp

PRECISIONS = ("fp32", "fp16", "int8")
BATCHES = (1, 8, 32)  # tiles
LEAK_MB = 64  # of device memory: what the driver may keep for itself between two looks
TIMED_RUNS = 50

Feeds = Mapping[str, NDArray[Any]]
Record = dict[str, Any]


class Room:
    """What the steps share: a bundle, its networks in each precision as ONNX, inputs, and what they give on the CPU."""

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
        self._files: dict[str, dict[str, Path]] = {"fp32": {name: bundle.file(name) for name in self.feeds}}
        self._expected: dict[str, dict[str, NDArray[Any]]] = {}

    def files(self, precision: str) -> dict[str, Path]:
        if precision not in self._files:
            from dgiqa.quantize import quantize_bundle

            out = self.folder / precision
            made = quantize_bundle(self.bundle, precision, out, calibration=self._calibration, rest="fp16")
            self._files[precision] = dict(made.files)
        return self._files[precision]

    def expected(self, name: str) -> dict[str, NDArray[Any]]:
        if name not in self._expected:
            self._expected[name] = OrtSession(self.bundle.file(name)).run(self.feeds[name])
        return self._expected[name]

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
        times = [_seconds(lambda: session.run(feeds)) for _ in range(TIMED_RUNS)]
        record = {"backend": session.backend, "difference": difference, "run_ms": 1e3 * median(times)}
        # Noise is no photograph: tiles of it err more than an image's mean score, for which the budget is.
        if not difference <= 10 * BUDGETS[precision]:
            raise EngineError(f"{name} in {precision} differs by {difference:.2e}, wanted 10 x {BUDGETS[precision]:g}")
        return record


def onnxruntime_cuda(room: Room, precision: str) -> Record:
    """Both networks on the CUDA provider."""
    need_gpu()
    return {
        name: room.compare(name, open_session(path, CUDA, precision=precision), precision)
        for name, path in room.files(precision).items()
    }


def device_memory(room: Room) -> Record:
    """The room where device memory lives, on the real driver."""
    need_gpu()
    context = cuda.Context()
    data = np.random.default_rng(1).standard_normal(1 << 20).astype(np.float32)
    with context.current(), cuda.Stream(context) as stream, cuda.PinnedBuffer(context, data.nbytes) as pinned:
        handle = int(stream)
        source, target = (cuda.empty(context, data.shape, data.dtype, handle) for _ in range(2))

        def round_trip() -> None:
            cuda.copy_in(source.pointer, pinned, data.nbytes, handle)
            cuda.copy_within(target.pointer, source.pointer, data.nbytes, handle)

        view = pinned.array(data.shape, data.dtype)
        view[:] = data
        round_trip()
        np.testing.assert_array_equal(target.numpy(), data)
        with cuda.Graph(stream, round_trip) as graph:
            view[:] = data[::-1]
            graph.launch(handle)
            np.testing.assert_array_equal(target.numpy(), data[::-1])
        guest = cuda.as_device_array(target)
        cuda.check_home(guest, context)
        lost = _lost_mb(lambda: _one_round(context, pinned, handle), room.calls)
    return {"gpu": context.gpu, "driver": cuda.driver_version(), "calls": room.calls, "lost_mb": _check_lost(lost)}


def tensorrt(room: Room, precision: str) -> Record:
    """Both networks: build, read the layers' types back, compare, and run on device arrays with the caller's stream."""
    from dgiqa.backends.plan import build_plan, identity, layer_precisions
    from dgiqa.backends.trt import TrtSession

    need_gpu()
    record: Record = {"on": identity()}
    for name, path in room.files(precision).items():
        plan = room.folder / f"{precision}-{Path(name).stem}.plan"
        info = build_plan(path, plan, shapes=room.shapes(name), timing_cache=room.folder / "timing.cache")
        layers = layer_precisions(plan)
        record[name] = {"build_s": info.seconds, "megabytes": info.bytes / 1e6, "layers": dict(layers)}
        if not layers[precision]:
            raise EngineError(f"{name} was built from {precision}, and no layer of the engine is: {dict(layers)}")
        with TrtSession(plan) as session:
            record[name] |= room.compare(name, session, precision)
            record[name]["in_place"] = _in_place(room, name, session)
            calls = room.calls if name == spec.QUALITY_FILE and precision == "fp16" else 200
            feeds = {key: array[:1] for key, array in room.feeds[name].items()}
            record[name]["lost_mb"] = _check_lost(_lost_mb(lambda s=session, f=feeds: s.run(f), calls))
    return record


def need_gpu() -> None:
    if not gpu_present():
        raise BackendError("no NVIDIA GPU here; run this on a machine that has one")


def run_steps(steps: Mapping[str, Callable[[], Record]]) -> dict[str, Record]:
    """Each step's findings, with "ok" and "seconds"; an error becomes its finding."""
    found = {}
    for name, step in steps.items():
        started = time.monotonic()
        try:
            found[name] = {"ok": True, **step()}
        except Exception as error:  # whatever one step meets, the others go on
            lines = traceback.format_exc().splitlines()
            found[name] = {"ok": False, "error": f"{type(error).__name__}: {error}", "at": lines[-3:-1]}
        found[name]["seconds"] = round(time.monotonic() - started, 2)
        verdict = "ok" if found[name]["ok"] else found[name]["error"]
        print(f"{name}: {verdict} ({found[name]['seconds']} s)", flush=True)
    return found


def steps_of(room: Room) -> dict[str, Callable[[], Record]]:
    """In order of what is worth knowing first, should time run out."""
    steps: dict[str, Callable[[], Record]] = {
        f"onnxruntime-cuda {p}": lambda p=p: onnxruntime_cuda(room, p)  # type: ignore[misc]
        for p in PRECISIONS
    }
    steps["device memory"] = lambda: device_memory(room)
    return steps | {f"tensorrt {p}": lambda p=p: tensorrt(room, p) for p in PRECISIONS}  # type: ignore[misc]


def _in_place(room: Room, name: str, session: Any) -> float:
    """Largest difference between host arrays and the same arrays on the device, on a stream of the caller's."""
    context = cuda.Context()
    feeds = room.feeds[name]
    host = session.run(feeds)
    with context.current(), cuda.Stream(context) as stream:
        placed, pinned = {}, []
        for key, array in feeds.items():
            pinned.append(cuda.PinnedBuffer(context, array.nbytes))
            pinned[-1].array(array.shape, array.dtype)[:] = array
            placed[key] = cuda.empty(context, array.shape, array.dtype, int(stream))
            cuda.copy_in(placed[key].pointer, pinned[-1], array.nbytes, int(stream))
        for _ in range(4):  # plain, recorded, replayed
            device = session.run(placed, stream=stream, device=True)
        differences = [float(np.abs(array.numpy() - host[key]).max()) for key, array in device.items()]
    if max(differences) > 1e-6:
        raise EngineError(f"{name} on device arrays differs by {max(differences):.2e} from host arrays, wanted 1e-6")
    return max(differences)


def _one_round(context: cuda.Context, pinned: cuda.PinnedBuffer, stream: int) -> None:
    array = cuda.empty(context, (1 << 18,), np.float32, stream)
    cuda.copy_in(array.pointer, pinned, array.nbytes, stream)
    cuda.synchronize(stream)


def _lost_mb(call: Callable[[], object], calls: int) -> float:
    """Device memory that is gone after `calls` calls, after some to settle."""
    for _ in range(20):
        call()
    before = cuda.free_memory()
    for _ in range(calls):
        call()
    gc.collect()
    return (before - cuda.free_memory()) / 1e6


def _check_lost(megabytes: float) -> float:
    if megabytes > LEAK_MB:
        raise BackendError(f"{megabytes:.0f} MB of device memory are gone after all calls, wanted at most {LEAK_MB}")
    return megabytes


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("bench/results/gpu_check.json"))
    parser.add_argument("--bundle", default="small")
    parser.add_argument("--calls", type=int, default=10_000, help="of each check that nothing is left behind")
    parser.add_argument("--calib", type=Path, action="append", help="pictures to calibrate int8 on")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        room = Room(load_bundle(options.bundle), Path(folder), options.calls, options.calib)
        found = run_steps(steps_of(room))
    ok = all(step["ok"] for step in found.values())
    record = {"environment": environment_stamp(), "bundle": room.bundle.id, "ok": ok, "steps": found}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    with replacing(options.json) as partial:
        partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
