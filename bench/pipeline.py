"""What a whole score costs, stage by stage, for every way of running a bundle; and how far each drifts from fp32.

    python bench/pipeline.py [--bundle small ...] [--quick] [--fresh]     ->  bench/results/pipeline.jsonl

Every setting (backend, precision, batch, threads, workers) runs in a process of its own, all of them take turns, and
ratios are taken round by round against ONNX Runtime in fp32 with the default batch. Per setting:

    one     one image after the other: ms, and ms per stage
    many    32 images through score_many: images/s
    stream  the same images again and again (--stream of them): images/s and memory; for engines, not their variations
    drift   largest and mean |score difference|, and SROCC, against the fp32 reference on the same 32 photographs

and once: the time from starting `dgiqa-rt score` to the first row, beside `import torch, timm`.
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
from pictures import photographs
from startup import startup
from subjects import Subject, main_or_subject, own_command, peak_mb, resident_mb
from timer import Ledger, Result, compare, parsed, parser, show

from dgiqa import metrics, speed
from dgiqa.bundle import Bundle, load_bundle
from dgiqa.machine import usable_cores
from dgiqa.report.files import writer_for
from dgiqa.runtime.backends import backends
from dgiqa.score import Score
from dgiqa.scorer import Scorer
from dgiqa.speed import Setting
from dgiqa.timing import spread

Turns = tuple[Result, list[dict[str, Any]]]  # times that were measured in turn, and what was answered

IMAGES = 32
STREAM = 200


def main() -> None:
    options = _options()
    ledger = Ledger(options.out, fresh=options.fresh)
    for name in options.bundle:
        bundle = load_bundle(name)
        ledger.case(
            {"part": "startup", "bundle": bundle.id}, partial(startup, name, *((1, False) if options.quick else ()))
        )
        settings = groups(bundle, options.quick)
        reference = partial(reference_scores, bundle, settings["engines"][0], options.images)
        expected = ledger.case({"part": "reference", "bundle": bundle.id, "images": options.images}, reference)[
            "scores"
        ]
        for group, members in settings.items():
            key = {"part": "settings", "bundle": bundle.id, "group": group, "images": options.images}
            stream = options.stream if group == "engines" else 0
            work = partial(measure_group, name, members, expected, stream=stream, seconds=options.seconds)
            show(f"{bundle.id}: {group}", ledger.case(key, work))


def groups(bundle: Bundle, quick: bool) -> dict[str, list[Setting]]:
    """What is compared with what. The first of each group is the baseline: all cores, batches of the scorer's choice.

    engines: every engine that runs here, ONNX Runtime in fp32 first. The others change one thing of that baseline, and
    of the engine that comes last: the most reduced precision.
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
    """What every setting's scores are compared with: the bundle's own fp32 files, one image after the other."""
    return {"scores": speed.reference_scores(bundle, setting, photographs(images)), "setting": asdict(setting)}


def measure_group(
    bundle: str, settings: Sequence[Setting], reference: Sequence[float], *, stream: int, seconds: float
) -> dict[str, Any]:
    """Start a process per setting and let them take turns. stream: its length; 0 leaves it out."""
    images = len(reference)
    with ExitStack() as stack:
        subjects = {}
        for setting in settings:
            started = Subject(own_command(__file__, {"bundle": bundle, **asdict(setting)}))
            subjects[json.dumps(asdict(setting))] = stack.enter_context(started)
        for each in subjects.values():
            each.ask("load", images=images)
        one = _turns(subjects, "one", seconds)
        many = _turns(subjects, "many", seconds)
        rows = [
            _row(setting, subject, one[name], many[name], (images, stream))
            for setting, (name, subject) in zip(settings, subjects.items(), strict=True)
        ]
    for row in rows:
        row["drift"] = drift(row.pop("scores"), reference)
    return {"rows": rows}


def drift(scores: Sequence[float], reference: Sequence[float]) -> dict[str, float]:
    """Largest and mean |difference|, and the rank correlation, of scores with their references."""
    difference = np.abs(np.asarray(scores) - np.asarray(reference))
    return {
        "largest": float(difference.max()),
        "mean": float(difference.mean()),
        "srocc": metrics.srocc(scores, reference) if len(scores) > 1 else 1.0,
    }


def _turns(subjects: Mapping[str, Subject], request: str, seconds: float) -> dict[str, Turns]:
    """Ask all in turn: the times that they measured themselves, and their answers."""
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in subjects}

    def ask(name: str) -> float:
        answers[name].append(subjects[name].ask(request, number=len(answers[name])))
        return float(answers[name][-1]["ms"])

    calls = {name: partial(ask, name) for name in subjects}
    results = compare(calls, pairs=50, warmup=1, seconds=seconds, clock="own")
    return {result.name: (result, answers[result.name][1:]) for result in results}  # the first is the warm-up


def _row(setting: Setting, subject: Subject, one: Turns, many: Turns, sizes: tuple[int, int]) -> dict[str, Any]:
    """Everything about one setting. sizes: photographs scored together, length of the stream."""
    images, stream = sizes
    per_image = spread([answer["ms"] / images for answer in many[1]])
    more = {"stream": subject.ask("stream", images=stream)} if stream else {}
    stages = {name: spread([answer["stages"][name] for answer in one[1]]).as_dict() for name in one[1][0]["stages"]}
    return {
        "setting": asdict(setting),
        "backend": subject.ready["backend"],
        "one": one[0].as_dict() | {"stages": stages},
        "many": {"images_per_second": round(1e3 / per_image.median, 3), "ratio": many[0].ratio.as_dict()},
        "scores": many[1][-1]["scores"],
        "peak_mb": round(subject.ask("memory")["peak_mb"], 1),
    } | more


# ---- in the subject's process ----


def subject(options: dict[str, Any]) -> tuple[dict[str, Callable[..., dict[str, Any]]], dict[str, Any]]:
    """A scorer with one setting, and what it can be asked."""
    setting = Setting(**{name: value for name, value in options.items() if name != "bundle"})
    bundle = load_bundle(options["bundle"])
    scorer = setting.open(bundle)
    pictures: list[bytes] = []

    def load(images: int) -> dict[str, Any]:
        pictures[:] = photographs(images)
        return {}

    def one(number: int) -> dict[str, Any]:
        started = time.perf_counter()
        score = scorer.score(pictures[number % len(pictures)])
        scored = time.perf_counter()
        _write([score])
        stages = score.timings_ms | {"output": (time.perf_counter() - scored) * 1e3}
        return {"ms": (scored - started) * 1e3, "stages": stages}

    def many(number: int) -> dict[str, Any]:
        started = time.perf_counter()
        scores = list(_scored(scorer, pictures, setting.workers))
        _write(scores)
        return {"ms": (time.perf_counter() - started) * 1e3, "scores": [score.value for score in scores]}

    def stream(images: int) -> dict[str, Any]:
        endless = (pictures[i % len(pictures)] for i in range(images))
        resident, started = [], time.perf_counter()
        for done, _ in enumerate(_scored(scorer, endless, setting.workers), 1):
            if done % max(1, images // 10) == 0:
                resident.append(round(resident_mb(), 1))
        seconds = time.perf_counter() - started
        return {"images": images, "images_per_second": round(images / seconds, 3), "resident_mb": resident}

    handlers = {"load": load, "one": one, "many": many, "stream": stream}
    handlers |= {"memory": lambda: {"peak_mb": peak_mb()}}
    return handlers, {"backend": scorer.backend}


def _scored(scorer: Scorer, pictures: Iterable[bytes], workers: int) -> Iterator[Score]:
    for score in scorer.score_many(pictures, on_error="raise", workers=workers):
        assert isinstance(score, Score)
        yield score


def _write(scores: Iterable[Score]) -> None:
    writer = writer_for("jsonl", io.StringIO())
    for score in scores:
        writer.write(score.as_row())


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
    main_or_subject(main, subject)
