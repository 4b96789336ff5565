"""Measure a whole score's cost, stage by stage, for every way of running a bundle, and its drift from fp32.

    python bench/pipeline.py [--bundle small ...] [--quick] [--fresh]     ->  bench/results/pipeline.jsonl

Every setting (backend, precision, batch, threads, workers) runs in its own process, all take turns, and ratios are
computed round by round against ONNX Runtime in fp32 with the default batch. Per setting:

    one     one image after the other: ms, and ms per stage
    many    32 images through score_many: images/s
    stream  the same images again and again (--stream of them): images/s and memory; for engines, not their variations
    drift   largest and mean |score difference|, and SROCC, against the fp32 reference on the same 32 photographs

and once: the time from starting `dgiqa-rt score` to the first row, compared with `import torch, timm`.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import scoring
from pictures import photographs, saved
from timer import compare, in_turn, parsed, parser, show

from dgiqa import metrics, speed
from dgiqa.bundle import Bundle, load_bundle
from dgiqa.machine import usable_cores
from dgiqa.runtime.backends import backends
from dgiqa.speed import Setting
from dgiqa.timing import spread

IMAGES = 32
STREAM = 200
PEERS = "import torch, timm"
# As in a program that uses them, with timm through the import that also works with a CPU build of torch.
IMPORT_PEERS = "from dgiqa.nn.backbones import import_timm; import_timm()"


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--bundle", nargs="+", default=["small"], help="names or folders of bundles")
    made.add_argument("--images", type=int, help=f"photographs scored together  [default: {IMAGES}, quick 4]")
    made.add_argument("--stream", type=int, help=f"length of the stream, 0 = none  [default: {STREAM}, quick 8]")
    made.add_argument("--seconds", type=float, help="of each group's two comparisons  [default: 8, quick 1]")
    quick = {"images": 4, "stream": 8, "seconds": 1.0}
    options = parsed(made, "pipeline.jsonl", {"images": IMAGES, "stream": STREAM, "seconds": 8.0}, quick)
    for name in options.bundle:
        bundle = load_bundle(name)
        case, how = options.ledger.case, (1, False) if options.quick else ()
        case({"part": "startup", "bundle": bundle.id}, partial(startup, name, *how))
        settings = groups(bundle, options.quick)
        key = {"part": "reference", "bundle": bundle.id, "images": options.images}
        expected = case(key, partial(reference_scores, bundle, settings["engines"][0], options.images))["scores"]
        for group, members in settings.items():
            stream = options.stream if group == "engines" else 0
            work = partial(measure_group, name, members, expected, stream=stream, seconds=options.seconds)
            show(f"{bundle.id}: {group}", case(key | {"part": "settings", "group": group}, work))


def startup(bundle: str, runs: int = 7, peers: bool = True) -> dict[str, Any]:
    """Time from process start to the first row, against the imports of peers.

    Wall ms and peak resident MB of whole processes, taken in turn; ratios are against the import (peers=True)."""
    peaks: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder, "photo.jpg")
        photo.write_bytes(photographs(1)[0])
        ours = [sys.executable, "-m", "dgiqa", "score", "--bundle", bundle, str(photo)]
        commands = {"dgiqa-rt score photo.jpg": ours}
        if peers and find_spec("torch") and find_spec("timm"):
            commands = {PEERS: [sys.executable, "-c", IMPORT_PEERS], **commands}
        calls = {name: partial(_run, name, command, peaks) for name, command in commands.items()}
        results = compare(calls, pairs=runs, warmup=1)
    return {"rows": [result.as_dict() | {"peak_mb": round(peaks[result.name], 1)} for result in results]}


def _run(name: str, command: list[str], peaks: dict[str, float]) -> None:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}")
    peaks[name] = max(peaks.get(name, 0.0), usage.ru_maxrss / 1024)


def groups(bundle: Bundle, quick: bool) -> dict[str, list[Setting]]:
    """The groups of settings to compare. The first of each is the baseline: all cores, the scorer's own batches.

    engines: every engine that runs here, ONNX Runtime in fp32 first. The other groups change one setting of that
    baseline, and of the last engine, which has the lowest precision.
    """
    engines, missing = speed.candidates(bundle, backends())
    for item in missing:
        print(f"not measured: {item.backend} {item.precision}: {item.fix}", file=sys.stderr)
    compared = {"engines": engines}
    base, cores = engines[0], usable_cores()
    for engine in dict.fromkeys((base,) if quick else (base, engines[-1])):
        label = f"{engine.backend} {engine.precision}"
        compared[f"batch, {label}"] = [engine, *(replace(engine, batch=n) for n in ((1,) if quick else (1, 4, 8, 32)))]
        if quick:
            continue
        compared[f"parallel, {label}"] = [engine, *(replace(engine, parallel=n) for n in range(1, cores + 1))]
        others = (n for n in (1, 2, 3, 4) if n != engine.workers)
        compared[f"workers, {label}"] = [engine, *(replace(engine, workers=n) for n in others)]
        if cores > 1:
            fewer = sorted({1, max(1, cores // 2)} - {cores})
            compared[f"threads, {label}"] = [engine, *(replace(engine, threads=n) for n in fewer)]
    return compared


def reference_scores(bundle: Bundle, setting: Setting, images: int) -> dict[str, Any]:
    """The scores to compare every setting's with: by the bundle's own fp32 files, one image after the other."""
    return {"scores": speed.reference_scores(bundle, setting, photographs(images)), "setting": asdict(setting)}


def measure_group(
    bundle: str, settings: Sequence[Setting], reference: Sequence[float], *, stream: int, seconds: float
) -> dict[str, Any]:
    """Start a process per setting and time them in turn. stream: its length; 0 leaves it out."""
    images, rows = len(reference), []
    with ExitStack() as stack:
        paths = saved(Path(stack.enter_context(tempfile.TemporaryDirectory())), images)
        subjects = {json.dumps(asdict(s)): stack.enter_context(scoring.start(bundle, s)) for s in settings}
        each = {name: cycle(paths) for name in subjects}
        asks = {name: lambda s=s, p=each[name]: s.ask("score", paths=[next(p)]) for name, s in subjects.items()}
        ones, of_one = in_turn(asks, pairs=50, seconds=seconds)
        asks = {name: partial(s.ask, "stream", paths=paths, lengths=[images]) for name, s in subjects.items()}
        many, of_many = in_turn(asks, pairs=50, seconds=seconds)
        for setting, one, all_of_them in zip(settings, ones, many, strict=True):
            subject, answers = subjects[one.name], of_one[one.name]
            stages = {n: spread([a["stages"][n] for a in answers]).as_dict() for n in answers[0]["stages"]}
            row = {"setting": asdict(setting), "backend": subject.ready["backend"]}
            row["one"] = one.as_dict() | {"stages": stages}
            rate, ratio = round(1e3 / all_of_them.ms.median, 3), all_of_them.ratio.as_dict()
            row["many"] = {"images_per_second": rate, "ratio": ratio}
            if stream:
                lengths = [n * stream // 10 for n in range(1, 11)] if stream >= 10 else list(range(1, stream + 1))
                found = subject.ask("stream", paths=paths, lengths=lengths)
                resident = [each["resident_mb"] for each in found["rows"]]
                speed = round(1e3 / found["ms"], 3)
                row["stream"] = {"images": stream, "images_per_second": speed, "resident_mb": resident}
            row["peak_mb"] = subject.ask("memory")["peak_mb"]
            rows.append(row | {"drift": drift(of_many[one.name][-1]["scores"], reference)})
    return {"rows": rows}


def drift(scores: Sequence[float], reference: Sequence[float]) -> dict[str, float]:
    """Largest and mean |difference|, and the rank correlation, of scores with their references."""
    difference = np.abs(np.asarray(scores) - np.asarray(reference))
    return {
        "largest": float(difference.max()),
        "mean": float(difference.mean()),
        "srocc": metrics.srocc(scores, reference) if len(scores) > 1 else 1.0,
    }


if __name__ == "__main__":
    main()
