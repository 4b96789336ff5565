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

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import scoring
from pictures import photographs, saved
from startup import startup
from subjects import Subject
from timer import in_turn, parsed, parser, show

from dgiqa import metrics, speed
from dgiqa.bundle import Bundle, load_bundle
from dgiqa.machine import usable_cores
from dgiqa.runtime.backends import backends
from dgiqa.speed import Setting
from dgiqa.timing import spread

IMAGES = 32
STREAM = 200


def main() -> None:
    options = _options()
    for name in options.bundle:
        bundle = load_bundle(name)
        options.ledger.case(
            {"part": "startup", "bundle": bundle.id}, partial(startup, name, *((1, False) if options.quick else ()))
        )
        settings = groups(bundle, options.quick)
        reference = partial(reference_scores, bundle, settings["engines"][0], options.images)
        expected = options.ledger.case({"part": "reference", "bundle": bundle.id, "images": options.images}, reference)[
            "scores"
        ]
        for group, members in settings.items():
            key = {"part": "settings", "bundle": bundle.id, "group": group, "images": options.images}
            stream = options.stream if group == "engines" else 0
            work = partial(measure_group, name, members, expected, stream=stream, seconds=options.seconds)
            show(f"{bundle.id}: {group}", options.ledger.case(key, work))


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
        compared[f"workers, {label}"] = [
            engine,
            *(replace(engine, workers=n) for n in (1, 2, 3, 4) if n != engine.workers),
        ]
        if cores > 1:
            compared[f"threads, {label}"] = [engine, *(replace(engine, threads=n) for n in _fewer(cores))]
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
        asks = {name: partial(_next, subject, cycle(paths)) for name, subject in subjects.items()}
        ones, of_one = in_turn(asks, pairs=50, seconds=seconds)
        asks = {name: partial(s.ask, "stream", paths=paths, lengths=[images]) for name, s in subjects.items()}
        many, of_many = in_turn(asks, pairs=50, seconds=seconds)
        for setting, one, all_of_them in zip(settings, ones, many, strict=True):
            subject, answers = subjects[one.name], of_one[one.name]
            stages = {n: spread([a["stages"][n] for a in answers]).as_dict() for n in answers[0]["stages"]}
            row = {
                "setting": asdict(setting),
                "backend": subject.ready["backend"],
                "one": one.as_dict() | {"stages": stages},
                "many": {
                    "images_per_second": round(1e3 / all_of_them.ms.median, 3),
                    "ratio": all_of_them.ratio.as_dict(),
                },
            }
            if stream:
                lengths = [n * stream // 10 for n in range(1, 11)] if stream >= 10 else list(range(1, stream + 1))
                found = subject.ask("stream", paths=paths, lengths=lengths)
                resident = [each["resident_mb"] for each in found["rows"]]
                speed = round(1e3 / found["ms"], 3)
                row["stream"] = {"images": stream, "images_per_second": speed, "resident_mb": resident}
            row |= {
                "peak_mb": subject.ask("memory")["peak_mb"],
                "drift": drift(of_many[one.name][-1]["scores"], reference),
            }
            rows.append(row)
    return {"rows": rows}


def _next(subject: Subject, paths: Iterator[str]) -> dict[str, Any]:
    return subject.ask("score", paths=[next(paths)])


def drift(scores: Sequence[float], reference: Sequence[float]) -> dict[str, float]:
    """Largest and mean |difference|, and the rank correlation, of scores with their references."""
    difference = np.abs(np.asarray(scores) - np.asarray(reference))
    return {
        "largest": float(difference.max()),
        "mean": float(difference.mean()),
        "srocc": metrics.srocc(scores, reference) if len(scores) > 1 else 1.0,
    }


# ---- the command line ----


def _fewer(cores: int) -> list[int]:
    return sorted({1, max(1, cores // 2)} - {cores})


def _options() -> Any:
    made = parser(__doc__)
    made.add_argument("--bundle", nargs="+", default=["small"], help="names or folders of bundles")
    made.add_argument("--images", type=int, help=f"photographs scored together  [default: {IMAGES}, quick 4]")
    made.add_argument("--stream", type=int, help=f"length of the stream, 0 = none  [default: {STREAM}, quick 8]")
    made.add_argument("--seconds", type=float, help="of each group's two comparisons  [default: 8, quick 1]")
    options = parsed(made, "pipeline.jsonl")
    defaults = (4, 8, 1.0) if options.quick else (IMAGES, STREAM, 8.0)
    for name, value in zip(("images", "stream", "seconds"), defaults, strict=True):
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


if __name__ == "__main__":
    main()
