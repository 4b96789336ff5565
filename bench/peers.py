"""The same photographs through this package and through what people would use instead, in turn, on one machine.

    python bench/peers.py [--quick] [--fresh] [--skip authors-vitl metrics ...]    ->  bench/results/peers.jsonl

    authors-vits   the authors' published pipeline (full-size networks in eager PyTorch, 20 random crops, ViT-S depth)
    authors-vitl   the same with their default depth network, ViT-L: half a minute an image
    tilings        the small bundle on 20 random crops against the grid: time saved, and what it does to the scores
    metrics        no-reference metrics of IQA-PyTorch (random weights: timing only), and BRISQUE, NIQE and PIQE

Full-size networks are those of untrained.py, with weights of a fixed seed: the arithmetic, and so the time, is that of
trained ones; what engines make of the same networks is measured by engines.py. Each subject runs in a process of its
own; those that need other packages in an environment of their own, made once under --work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import peer_metrics
import untrained
from pictures import photographs
from pipeline import drift
from subjects import Subject, SubjectError, main_or_subject, own_command
from timer import Ledger, compare, parsed, parser, show

from dgiqa import spec, speed
from dgiqa.bundle import load_bundle
from dgiqa.machine import preparing_threads, usable_cores
from dgiqa.speed import Setting

SMALL, STREAM = "small, one at a time", "small, a stream"
GROUPS = ("authors-vits", "authors-vitl", "tilings", "metrics")


@dataclass(frozen=True)
class Entry:
    """One line of a comparison. request: what its subject is asked; warm: whether to ask once before timing.

    images: per sample, so that quick ones are timed over more than one, and streams are streams.
    """

    name: str
    command: tuple[str, ...]
    request: str = "score"
    warm: bool = True
    images: int = 1
    note: str = ""


def main() -> None:
    options = _options()
    ledger = Ledger(options.out, fresh=options.fresh)
    paths = _pictures(options.work, options.images, (320, 240) if options.quick else (1024, 768))
    for group in GROUPS:
        if group in options.skip:
            continue
        line = ledger.case(
            {"part": group, "quick": options.quick, "images": options.images}, partial(_measured, group, paths, options)
        )
        show(group, line)


def _measured(group: str, paths: list[str], options: Any) -> dict[str, Any]:
    """The group's line."""
    if group == "tilings":
        return tilings(paths)
    if group.startswith("authors"):
        entries, pairs = authors(group.removeprefix("authors-"), options.quick), 2 if group.endswith("vitl") else 5
    else:
        entries, pairs = peer_entries(options.work), 3
    return measure_group(entries, paths, 2 if options.quick else pairs, options.seconds)


# ---- the groups; the first entry is the baseline ----


def authors(encoder: str, quick: bool) -> list[Entry]:
    """The published pipeline, and the default settings of this package."""
    command = tuple(own_command(__file__, {"encoder": encoder, "quick": quick}))
    return [Entry(f"authors' pipeline, {encoder}", command, warm=encoder != "vitl"), *_small()]


def peer_entries(work: Path) -> list[Entry]:
    """Other no-reference metrics. Those with random weights have no accuracy here: their times are what is compared."""
    entries = _small()[:1]
    for name, (environment, note) in peer_metrics.METRICS.items():
        python = environment(work)
        command = (str(python), "-W", "ignore", peer_metrics.__file__, "--serve", name)
        entries.append(Entry(name, command, warm=name not in peer_metrics.SLOW, note=note))
    return entries


def tilings(paths: Sequence[str]) -> dict[str, Any]:
    """Random crops against the grid on the small bundle: ms per image, and the scores beside each other.

    The differences between two seeds of random crops say how much of a difference from the grid is the crops' own.
    """
    tiles = {"official:20": "20 random crops", "official:20:7": "20 other random crops", "grid": "grid"}
    scores: dict[str, list[float]] = {name: [] for name in tiles.values()}
    with ExitStack() as stack:
        setting = _default()
        subjects = {
            name: stack.enter_context(Subject(list(_runtime(name, "small", setting, tiling=tiling).command)))
            for tiling, name in tiles.items()
        }

        def ask(name: str) -> float:
            answer = subjects[name].ask("score", paths=[paths[len(scores[name]) % len(paths)]])
            scores[name].append(answer["scores"][0])
            return float(answer["ms"])

        calls = {name: partial(ask, name) for name in subjects}
        results = compare(calls, pairs=len(paths), warmup=0, clock="own", threads=setting.threads)
    return {
        "rows": [result.as_dict() for result in results],
        "grid against random crops": drift(scores["grid"], scores["20 random crops"]),
        "random crops against others": drift(scores["20 other random crops"], scores["20 random crops"]),
    }


def measure_group(entries: Sequence[Entry], paths: Sequence[str], pairs: int, seconds: float) -> dict[str, Any]:
    """Start the subjects, let them take turns; those that cannot run say why instead of a time."""
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        subjects: dict[tuple[str, ...], Subject] = {}
        ready = []
        for entry in entries:
            try:
                if entry.command not in subjects:
                    subjects[entry.command] = stack.enter_context(Subject(list(entry.command), _threads()))
                if entry.warm:
                    subjects[entry.command].ask(entry.request, paths=paths[:1])
            except SubjectError as error:
                rows.append({"name": entry.name, "unavailable": str(error), "note": entry.note})
                continue
            ready.append(entry)

        def ask(entry: Entry) -> float:
            return float(subjects[entry.command].ask(entry.request, paths=paths[: entry.images])["ms"])

        if not ready:
            return {"rows": rows}
        calls = {entry.name: partial(ask, entry) for entry in ready}
        results = compare(calls, pairs=pairs, warmup=0, clock="own", seconds=seconds)
    return {"rows": rows + [result.as_dict() | {"note": e.note} for e, result in zip(ready, results, strict=True)]}


def _runtime(name: str, bundle: str, setting: Setting, request: str = "score", tiling: str = "grid") -> Entry:
    options = {"bundle": bundle, "tiling": tiling, **asdict(setting)}
    return Entry(name, tuple(own_command(__file__, options)), request, images=32 if request == "many" else 8)


def _small() -> list[Entry]:
    """The small bundle as it is used without any option."""
    return [_runtime(SMALL, "small", _default()), _runtime(STREAM, "small", _default(), "many")]


def _default() -> Setting:
    cores = usable_cores()
    return Setting("auto", threads=cores, workers=preparing_threads(cores))


# ---- in a subject's process ----


def subject(options: dict[str, Any]) -> tuple[dict[str, Callable[..., dict[str, Any]]], dict[str, Any]]:
    """What answers "score" (paths -> mean ms per image, scores) and, for bundles, "many"."""
    return _runtime_subject(options) if "bundle" in options else _torch_subject(options)


def _runtime_subject(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    names = ("backend", "precision", "batch", "threads", "workers")
    setting = Setting(**{name: options[name] for name in names})
    scorer = setting.open(load_bundle(options["bundle"]))
    scorer.tiling = options["tiling"]

    def score(paths: list[str]) -> dict[str, Any]:
        return peer_metrics.timed(paths, lambda data: scorer.score(data).value)

    def many(paths: list[str]) -> dict[str, Any]:
        started = time.perf_counter()
        scores = speed.stream(scorer, [Path(path).read_bytes() for path in paths], setting.workers)
        return {"ms": (time.perf_counter() - started) * 1e3 / len(paths), "scores": scores}

    return {"score": score, "many": many}, {"backend": scorer.backend}


def _torch_subject(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    import torch

    from dgiqa.nn.reference import decode, score_reference

    torch.set_num_threads(usable_cores())
    networks = untrained.modules("small" if options["quick"] else "full")
    quality, depth = networks[spec.QUALITY_FILE], networks[spec.DEPTH_FILE]
    if options["encoder"] == "vitl":
        from dgiqa.nn.depth_anything import DepthAnything

        depth = DepthAnything("vitl").eval()
    p = load_bundle("small").preprocess if options["quick"] else spec.Preprocess()

    def one(data: bytes) -> float:
        return score_reference(decode(data), depth, quality, p, "official:20")[0]

    return {"score": lambda paths: peer_metrics.timed(paths, one)}, {"backend": f"torch {torch.__version__}"}


# ---- the command line ----


def _threads() -> dict[str, str]:
    """Every subject may use the cores that we may."""
    return {"OMP_NUM_THREADS": str(usable_cores())}


def _pictures(work: Path, count: int, size: tuple[int, int]) -> list[str]:
    folder = work / f"pictures-{size[0]}x{size[1]}"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:03}.jpg" for number in range(count)]
    for path, data in zip(paths, photographs(count, size), strict=True):
        path.write_bytes(data)
    return [str(path) for path in paths]


def _options() -> Any:
    made = parser(__doc__)
    made.add_argument("--work", type=Path, default=Path("data/peers"), help="environments and exports  [%(default)s]")
    made.add_argument("--skip", nargs="*", default=[], choices=GROUPS, help="groups to leave out")
    made.add_argument("--images", type=int, help="photographs  [default: 32, quick 3]")
    made.add_argument("--seconds", type=float, default=100.0, help="begin no round of a group after this long")
    options = parsed(made, "peers.jsonl")
    options.images = options.images or (3 if options.quick else 32)
    options.work = options.work.resolve()
    return options


if __name__ == "__main__":
    main_or_subject(main, subject)
