"""Measure how fast each engine runs each network on this CPU, as ratios against eager PyTorch fp32 in the same run.

    python bench/engines.py [--only full/quality] [--batches 1 8 20] [--seconds 60] [--skip-int8]

The networks are those of untrained.py (weights of a fixed seed; fp16 is left out, as CPUs compute it in fp32). Each
engine runs in its own process, and all take turns, so that other load on the machine affects all of them. The outputs
for photographs show how far each engine is from PyTorch. Figures are added to the JSON lines file case by case, and a
stopped run goes on.
"""

import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import untrained
from numpy.typing import NDArray
from subjects import Served, Subject, SubjectError, main_or_subject, own_command
from timer import in_turn, parsed, parser, show

from dgiqa import forward, preprocess, spec
from dgiqa.bundle import Bundle
from dgiqa.image import decode
from dgiqa.machine import usable_cores
from dgiqa.runtime.backends import ONNXRUNTIME, OPENVINO, backends
from dgiqa.runtime.session import open_session

NETWORKS = {"quality": spec.QUALITY_FILE, "depth": spec.DEPTH_FILE}
DEPTH_SIZES = {"full": ((518, 518), (518, 686)), "small": ((256, 256), (256, 352))}
PHOTOGRAPHS = ("astronaut.jpg", "chelsea.jpg", "coffee.jpg")
BASELINE = "torch eager fp32"
QUIET = 0.1  # share of the time in which threads wait for a core; 0.02 on an idle machine

Feeds = dict[str, NDArray[np.float32]]
Run = Callable[[Feeds], NDArray[Any]]


def engines(bundle: Bundle, file: str, work: Path, *, int8: bool) -> dict[str, dict[str, Any]]:
    """Name -> the facts with which its process can run this file of the bundle; the baseline first."""
    found: dict[str, dict[str, Any]] = {BASELINE: {"size": bundle.path.name, "file": file}}
    for precision in ("fp32", "bf16", "int8") if int8 else ("fp32", "bf16"):
        path = untrained.files(bundle, precision, work)[file]
        for backend in (ONNXRUNTIME, OPENVINO):
            if backend in backends() and _offers(backend, precision):
                found[f"{backend} {precision}"] = {"path": str(path), "backend": backend, "precision": precision}
    return found


def cases(size: str, network: str, batches: list[int], p: spec.Preprocess) -> Iterator[tuple[dict[str, Any], Feeds]]:
    """(the case, its inputs): real tiles in batches, or a photograph at the depth network's sizes."""
    if network == "depth":
        for height, width in DEPTH_SIZES[size]:
            sized = cv2.resize(_photographs()[0], (width, height), interpolation=cv2.INTER_AREA)
            image = preprocess.depth_input(np.asarray(sized, np.uint8), p)
            yield {"size": size, "network": network, "input": f"{height}x{width}"}, {spec.DEPTH_INPUT: image}
        return
    tiles = _tiles(p, depth=size in DEPTH_SIZES)
    for batch in batches:
        chosen = {name: each[np.arange(batch) % len(each)] for name, each in tiles.items()}
        yield {"size": size, "network": network, "batch": batch}, chosen


def measured(start: Callable[[], Mapping[str, Subject]], feeds: Feeds, options: Namespace) -> dict[str, Any]:
    """Times, taken in turn, of the subjects that `start` gives, and how far their outputs are from the baseline's.

    waited: the share of the time in which a thread waited for a core; above QUIET, the machine had other load.
    """
    subjects = start()
    with tempfile.TemporaryDirectory() as folder:
        inputs = f"{folder}/feeds.npz"
        np.savez(inputs, **feeds)  # type: ignore[arg-type]
        facts = _differences(subjects, inputs, Path(folder), unit=spec.QUALITY_RGB in feeds)
        asks = {name: partial(subject.ask, "run", inputs=inputs) for name, subject in subjects.items()}
        pairs, before = 3 if options.quick else 40, (time.monotonic(), _waited_s())
        results, _ = in_turn(asks, pairs=pairs, threads=usable_cores(), seconds=options.seconds, facts=facts)
    waited = (_waited_s() - before[1]) / (time.monotonic() - before[0])
    if waited > QUIET:
        busy = f"threads waited for a core {waited:.0%} of the time; measure again with --fresh"
        print(f"  the machine was busy: {busy}", file=sys.stderr, flush=True)
    return {"results": [result.as_dict() for result in results], "waited": round(waited, 3)}


def _differences(subjects: Mapping[str, Subject], inputs: str, folder: Path, *, unit: bool) -> dict[str, Any]:
    """Name -> the largest and mean |difference| from the baseline: of scores, or relative to the depth's range."""
    outputs = {}
    for number, (name, subject) in enumerate(subjects.items()):
        try:
            subject.ask("run", inputs=inputs, output=f"{folder}/{number}.npy")
        except SubjectError as error:
            raise SubjectError(f"{name}: {error}") from error
        outputs[name] = np.load(f"{folder}/{number}.npy")
    wanted = outputs[BASELINE]
    off = {name: np.abs(got - wanted) / (1 if unit else np.ptp(wanted)) for name, got in outputs.items()}
    return {n: {"max_difference": float(o.max()), "mean_difference": float(o.mean())} for n, o in off.items()}


# ---- in a subject's process ----


def subject(engine: Mapping[str, Any]) -> Served:
    """Answer "run": run the inputs of an npz file through one engine, and return its own milliseconds."""
    run = _session(**engine) if "path" in engine else _eager(**engine)

    @cache
    def feeds(path: str) -> Feeds:
        return dict(np.load(path))

    def timed(inputs: str, output: str | None = None) -> dict[str, Any]:
        arrays = feeds(inputs)
        started = time.perf_counter()
        made = run(arrays)
        ms = (time.perf_counter() - started) * 1e3
        if output is not None:
            np.save(output, made)
        return {"ms": ms}

    return {"run": timed}, {}


def _session(path: str, backend: str, precision: str) -> Run:
    session = open_session(path, backend, precision=precision)
    return lambda feeds: session.run(feeds)[session.outputs[0]]


def _eager(size: str, file: str) -> Run:
    import torch

    torch.set_num_threads(usable_cores())
    network = untrained.modules(size)[file]

    def run(feeds: Feeds) -> NDArray[Any]:
        with torch.inference_mode():
            return np.asarray(network(*map(torch.from_numpy, feeds.values())))

    return run


# ---- inputs ----


def _photographs() -> list[NDArray[np.uint8]]:
    return [decode((untrained.EXAMPLES / name).read_bytes()) for name in PHOTOGRAPHS]


def _tiles(p: spec.Preprocess, *, depth: bool) -> Feeds:
    """Tiles of the photographs, f32 [n,3,224,224]; with `depth`, also their brightness in place of depth."""
    found: list[Feeds] = []
    for photo in _photographs():
        rgb = preprocess.working_image(photo, p)
        near = np.ascontiguousarray(rgb.max(axis=2)) if depth else None
        found += forward.tiles(rgb, near, "grid", p)
    return {name: np.concatenate([feeds[name] for feeds in found]) for name in found[0]}


def _waited_s() -> float:
    """Seconds since the machine started in which a thread waited for a core; 0 if Linux does not report it."""
    try:
        return int(Path("/proc/pressure/cpu").read_text().split("total=")[1].split()[0]) / 1e6
    except OSError:
        return 0.0


def _offers(backend: str, precision: str) -> bool:
    if precision != "bf16" or backend != OPENVINO:
        return precision != "bf16"
    from dgiqa.runtime.ov import cpu_precisions

    return precision in cpu_precisions()


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--only", nargs="+", metavar="SIZE/NETWORK", help="of full/quality full/depth small/quality ...")
    made.add_argument("--batches", nargs="+", type=int, default=[1, 8, 20], help="tiles a run of the quality network")
    made.add_argument("--seconds", type=float, default=60.0, help="begin no round of a case after this long")
    made.add_argument("--work", type=Path, default=untrained.WORK, help="where networks are kept")
    made.add_argument("--skip-int8", action="store_true", help="quantising the full networks takes half an hour, once")
    options = parsed(made, "engines.jsonl")
    everything = [f"{size}/quality" for size in untrained.SIZES] + [f"{size}/depth" for size in DEPTH_SIZES]
    options.only = options.only or (["small/quality"] if options.quick else everything)
    if unknown := set(options.only) - set(everything):
        made.error(f"--only: got {', '.join(unknown)}, wanted some of {', '.join(everything)}")
    for wanted in options.only:
        size, network = wanted.split("/")
        bundle = untrained.bundle(size, options.work)
        with ExitStack() as stack:
            subjects = cache(partial(_started, stack, bundle, NETWORKS[network], options))  # once something is measured
            for case, feeds in cases(size, network, options.batches, bundle.preprocess):
                line = options.ledger.case(case, partial(measured, subjects, feeds, options))
                show(str(case), {"rows": line["results"]})


def _started(stack: ExitStack, bundle: Bundle, file: str, options: Namespace) -> dict[str, Subject]:
    found = engines(bundle, file, options.work, int8=not options.skip_int8)
    return {name: stack.enter_context(Subject(own_command(__file__, engine))) for name, engine in found.items()}


if __name__ == "__main__":
    main_or_subject(main, subject)
