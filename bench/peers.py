"""Score the same photographs with this package and with other tools, in turn, on one machine.

    python bench/peers.py [--quick] [--fresh] [--skip authors-vitl metrics ...]    ->  bench/results/peers.jsonl

    authors-vits   the authors' published pipeline (full-size networks in eager PyTorch, 20 random crops, ViT-S depth)
    authors-vitl   the same with their default depth network, ViT-L: half a minute an image
    tilings        the small bundle on 20 random crops against the grid: time saved, and how far scores move
    metrics        no-reference metrics of IQA-PyTorch (random weights: timing only), and BRISQUE, NIQE and PIQE

Full-size networks are those of untrained.py, with weights of a fixed seed: their arithmetic, and so their time, equals
that of trained ones; engines.py times the same networks in other engines. Each subject runs in its own process, and
those that need other packages in their own environment, made once under --work.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import peer_metrics
import scoring
import untrained
from pictures import saved
from pipeline import drift
from subjects import Served, Subject, SubjectError, main_or_subject, own_command, timed
from timer import in_turn, parsed, parser, show

from dgiqa import spec
from dgiqa.bundle import load_bundle
from dgiqa.machine import usable_cores

SMALL, STREAM = "small, one at a time", "small, a stream"
CORES = {"OMP_NUM_THREADS": str(usable_cores())}  # every subject may use as many as this process
GROUPS = ("authors-vits", "authors-vitl", "tilings", "metrics")


@dataclass(frozen=True)
class Entry:
    """One row of a comparison. request: to its subject; warm: whether to ask once before timing.

    images: per sample, so that quick subjects are timed over several, and streams are streams.
    """

    name: str
    command: tuple[str, ...]
    request: str = "score"
    warm: bool = True
    images: int = 1
    note: str = ""


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--work", type=Path, default=Path("data/peers"), help="environments and exports  [%(default)s]")
    made.add_argument("--skip", nargs="*", default=[], choices=GROUPS, help="groups to leave out")
    made.add_argument("--images", type=int, help="photographs  [default: 32, quick 3]")
    made.add_argument("--seconds", type=float, default=100.0, help="begin no round of a group after this long")
    options = parsed(made, "peers.jsonl", {"images": 32}, {"images": 3})
    options.work = options.work.resolve()
    size = (320, 240) if options.quick else (1024, 768)
    paths = saved(options.work / f"pictures-{size[0]}x{size[1]}", options.images, size)
    for group in GROUPS:
        if group in options.skip:
            continue
        key = {"part": group, "quick": options.quick, "images": options.images}
        show(group, options.ledger.case(key, partial(_measured, group, paths, options)))


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
    return [Entry(f"authors' pipeline, {encoder}", command, warm=encoder != "vitl"), *small()]


def small() -> list[Entry]:
    return [of_bundle(SMALL, "small"), of_bundle(STREAM, "small", "stream", 32)]


def peer_entries(work: Path) -> list[Entry]:
    """Other no-reference metrics. For those with random weights only times are compared."""
    entries = small()[:1]
    for name, (environment, note) in peer_metrics.METRICS.items():
        python = environment(work)
        command = (str(python), "-W", "ignore", peer_metrics.__file__, "--serve", name)
        entries.append(Entry(name, command, warm=name not in peer_metrics.SLOW, note=note))
    return entries


def tilings(paths: Sequence[str]) -> dict[str, Any]:
    """Random crops against the grid on the small bundle: ms per image, and differences of scores.

    The differences between two seeds of random crops show how much of a difference from the grid is due to the crops.
    """
    tiles = {"official:20": "20 random crops", "official:20:7": "20 other random crops", "grid": "grid"}
    with ExitStack() as stack:
        setting = scoring.default()
        subjects = {n: stack.enter_context(scoring.start("small", setting, tiling)) for tiling, n in tiles.items()}
        each = {name: iter(paths) for name in subjects}
        asks = {name: lambda s=s, p=each[name]: s.ask("score", paths=[next(p)]) for name, s in subjects.items()}
        results, answers = in_turn(asks, pairs=len(paths), warmup=0, threads=setting.threads)
    scores = {name: [answer["scores"][0] for answer in found] for name, found in answers.items()}
    return {
        "rows": [result.as_dict() for result in results],
        "grid against random crops": drift(scores["grid"], scores["20 random crops"]),
        "random crops against others": drift(scores["20 other random crops"], scores["20 random crops"]),
    }


def measure_group(entries: Sequence[Entry], paths: Sequence[str], pairs: int, seconds: float) -> dict[str, Any]:
    """Start the subjects and time them in turn; a row of a subject that cannot run says why instead of a time."""
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        subjects: dict[tuple[str, ...], Subject] = {}
        ready = []
        for entry in entries:
            try:
                if entry.command not in subjects:
                    subjects[entry.command] = stack.enter_context(Subject(list(entry.command), CORES))
                if entry.warm:
                    _asked(subjects[entry.command], entry, paths[:1])
            except SubjectError as error:
                rows.append({"name": entry.name, "unavailable": str(error), "note": entry.note})
                continue
            ready.append(entry)

        if not ready:
            return {"rows": rows}
        asks = {e.name: partial(_asked, subjects[e.command], e, paths) for e in ready}
        results, _ = in_turn(asks, pairs=pairs, warmup=0, seconds=seconds)
    return {"rows": rows + [result.as_dict() | {"note": e.note} for e, result in zip(ready, results, strict=True)]}


def _asked(subject: Subject, entry: Entry, paths: Sequence[str]) -> dict[str, Any]:
    paths = paths[: entry.images]
    return subject.ask(entry.request, paths=paths, **({"lengths": [len(paths)]} if entry.request == "stream" else {}))


def of_bundle(name: str, bundle: str, request: str = "score", images: int = 8) -> Entry:
    """A bundle with default options."""
    return Entry(name, tuple(scoring.command(bundle, scoring.default())), request, images=images)


# ---- in a subject's process ----


def subject(options: dict[str, Any]) -> Served:
    """The published pipeline: paths -> mean ms per image, scores."""
    import torch

    from dgiqa.nn.reference import TorchScorer, decode

    torch.set_num_threads(usable_cores())
    networks = untrained.modules("small" if options["quick"] else "full")
    quality, depth = networks[spec.QUALITY_FILE], networks[spec.DEPTH_FILE]
    if options["encoder"] == "vitl":
        from dgiqa.nn.depth_anything import DepthAnything

        depth = DepthAnything("vitl").eval()
    scorer = TorchScorer(depth, quality, load_bundle("small").preprocess if options["quick"] else None)

    def one(data: bytes) -> float:
        return scorer.score(decode(data), "official:20").value

    return {"score": lambda paths: timed(paths, one)}, {"backend": f"torch {torch.__version__}"}


# ---- the command line ----


if __name__ == "__main__":
    main_or_subject(main, subject)
