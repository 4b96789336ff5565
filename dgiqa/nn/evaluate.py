"""A scorer and labelled or paired pictures become the paper's tables: a line beside its figures, a CSV and a PNG.

    python -m dgiqa.nn.evaluate test     --dataset csiq --root DIR --out DIR        a bundle or weights, 10 test parts
    python -m dgiqa.nn.evaluate protocol --dataset csiq --root DIR --out DIR        train and test for each seed
    python -m dgiqa.nn.evaluate cross    --source koniq10k --dataset clive ...      trained elsewhere, all pictures
    python -m dgiqa.nn.evaluate density  --set lol --root DIR --out DIR             good against degraded pictures

Paper: arXiv 2505.24002, tables 2 to 5 and section 5.2.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dgiqa.errors import DgiqaError
from dgiqa.extras import load
from dgiqa.metrics import histogram_overlap, overlap
from dgiqa.nn.checkpoints import load_dgiqa
from dgiqa.nn.commands import exit_code, watched
from dgiqa.nn.datasets import (
    IQADataset,
    RecordSamples,
    bundle_depth,
    fill_depth_cache,
    official_split,
    random_split,
)
from dgiqa.nn.predict import METRICS, TEST_TILING, Predict, model_predictor, scores_of
from dgiqa.nn.train import (
    ABLATIONS,
    add_config_options,
    add_data_options,
    add_network_options,
    build_network,
    chosen_dataset,
    config_from,
    device_of,
    train,
)
from dgiqa.store import replacing

# SROCC and PLCC (raw), mean over seeds, as the paper prints them.
PAPER_SINGLE = {  # table 2: trained and tested on parts of the same set
    "live": (0.982, 0.981),
    "csiq": (0.971, 0.976),
    "tid2013": (0.934, 0.940),
    "kadid10k": (0.943, 0.945),
    "clive": (0.891, 0.910),
    "koniq10k": (0.934, 0.942),
    "flive": (0.591, 0.685),
}
PAPER_CROSS = {  # table 3: (trained on, tested on)
    ("koniq10k", "clive"): (0.808, 0.834),
    ("koniq10k", "flive"): (0.462, 0.515),
    ("flive", "koniq10k"): (0.769, 0.797),
    ("kadid10k", "live"): (0.932, 0.909),
    ("kadid10k", "tid2013"): (0.724, 0.733),
    ("tid2013", "live"): (0.931, 0.922),
}
PAPER_ABLATION = {  # tables 4 and 5: (left out, trained on, tested on)
    ("depth_car", "clive", "clive"): (0.877, 0.902),
    ("dilated", "clive", "clive"): (0.888, 0.907),
    ("tcb", "clive", "clive"): (0.890, 0.907),
    ("depth_car", "koniq10k", "clive"): (0.783, 0.816),
    ("dilated", "koniq10k", "clive"): (0.804, 0.830),
    ("tcb", "koniq10k", "clive"): (0.806, 0.828),
    ("depth_car", "koniq10k", "flive"): (0.427, 0.489),
    ("dilated", "koniq10k", "flive"): (0.431, 0.490),
    ("tcb", "koniq10k", "flive"): (0.457, 0.509),
}
TILING_HELP = "grid, or official:20 for the authors' random crops; default: %(default)s"
SPLIT_HELP = "80:20 by seed, or as published (KonIQ-10k, LIVE-FB, a CSV's split column); default: %(default)s"

# Natural distortions (section 5.2): where the good and the degraded pictures of each public set lie, as glob patterns.
NATURAL = {
    "lol": (("**/high/*.png",), ("**/low/*.png",)),
    "flare7k": (("**/test_data/*/gt/*",), ("**/test_data/*/input/*",)),
    "ihaze": (("**/GT/*",), ("**/hazy/*",)),
    "gopro": (("**/sharp/*.png",), ("**/blur/*.png",)),
    "d2g": ((), ()),  # scene folders of several exposures: the brightest is good, the darkest degraded
}
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


@dataclass(frozen=True)
class Result:
    """Metrics of one experiment. rows: one dict of `METRICS` per seed; paper: its SROCC and PLCC, where it has them."""

    name: str
    rows: tuple[dict[str, float], ...]
    paper: tuple[float, float] | None = None

    def mean(self) -> dict[str, float]:
        """Mean over the seeds, as the paper reports."""
        return {key: float(np.mean([row[key] for row in self.rows])) for key in METRICS}

    def median(self) -> dict[str, float]:
        """Median over the seeds, as many other works report."""
        return {key: float(np.median([row[key] for row in self.rows])) for key in METRICS}


@dataclass(frozen=True)
class Separation:
    """Separation of good from degraded pictures by their scores (section 5.2). good, degraded: scores f64 [n] and [m].

    overlap: of two fitted Gaussians, 0..1, lower is better; histogram: the same of the histograms; ordered: share of
    all (good, degraded) pairs in which the good picture scores higher, ties counting half.
    """

    name: str
    good: NDArray[np.float64]
    degraded: NDArray[np.float64]
    overlap: float
    histogram: float
    ordered: float


def evaluate(predictor: Any, dataset: IQADataset, seeds: Iterable[int] = range(10), official: bool = False) -> Result:
    """A ready predictor on the test part of each seed's 80:20 split; every picture is scored once.

    predictor: a `Scorer`, or files -> scores f [n]. Nothing is trained: meant for weights whose training data are
    known not to be in the test parts, and to set our figures beside those of other works.
    official: on the published test part instead, which is the same for every seed: one row.
    """
    tests = [_parts(dataset, seed, official)[1] for seed in ((0,) if official else seeds)]
    used = {r.name: r.path for test in tests for r in test.records}
    predicted = dict(zip(used, _predict(predictor)(list(used.values())), strict=True))
    rows = [scores_of(np.array([predicted[r.name] for r in test.records]), test.scores) for test in tests]
    return _single(dataset, rows, official)


def _parts(dataset: IQADataset, seed: int, official: bool) -> tuple[IQADataset, IQADataset]:
    """Training and test part: the seed's, or the published ones."""
    if official:
        training, _, test = official_split(dataset)
        return training, test
    return random_split(dataset, seed)


def _single(dataset: IQADataset, rows: Sequence[dict[str, float]], official: bool) -> Result:
    """A line of table 2; the paper's figures stand beside random splits only, which are what it reports."""
    if official:
        return Result(f"{dataset.name}, official split", tuple(rows))
    return Result(dataset.name, tuple(rows), PAPER_SINGLE.get(dataset.name))


def evaluate_cross(
    predictor: Any, dataset: IQADataset, source: str | None = None, without: str | None = None
) -> Result:
    """A predictor trained on all of `source`, on all of the dataset (table 3). without: what an ablation leaves out."""
    row = scores_of(_predict(predictor)(_paths(dataset)), dataset.scores)
    name = dataset.name if source is None else f"{source} -> {dataset.name}"
    if without is None:
        return Result(name, (row,), PAPER_CROSS.get((source or "", dataset.name)))
    return Result(f"{name} without {without}", (row,), PAPER_ABLATION.get((without, source or "", dataset.name)))


def run_protocol(
    fit: Callable[[IQADataset, int], Any],
    dataset: IQADataset,
    seeds: Iterable[int],
    without: str | None = None,
    official: bool = False,
) -> Result:
    """The paper's protocol (4.2): for each seed split 80:20, train on one part, test on the other (tables 2 and 4).

    fit: (training part, seed) -> predictor as for `evaluate`. It never sees the test part.
    official: the published parts for every seed, which then differ in their networks' first weights and batches.
    """
    rows = []
    for seed in seeds:
        training, test = _parts(dataset, seed, official)
        rows.append(scores_of(_predict(fit(training, seed))(_paths(test)), test.scores))
    if without is None:
        return _single(dataset, rows, official)
    if official:
        return Result(f"{dataset.name}, official split, without {without}", tuple(rows))
    paper = PAPER_ABLATION.get((without, dataset.name, dataset.name))
    return Result(f"{dataset.name} without {without}", tuple(rows), paper)


def separate(predictor: Any, good: Sequence[Path], degraded: Sequence[Path], name: str = "") -> Separation:
    """Score both kinds of pictures and measure how far their densities overlap (section 5.2)."""
    predict = _predict(predictor)
    a, b = (np.asarray(predict(paths), np.float64) for paths in (good, degraded))
    ordered = float((np.sign(a[:, None] - b[None]) + 1).mean() / 2)
    return Separation(name, a, b, overlap(a, b), histogram_overlap(a, b), ordered)


def natural_pictures(name: str, root: Path) -> tuple[list[Path], list[Path]]:
    """Good and degraded pictures of a public set, one of `NATURAL`. Raises DgiqaError when they are not there.

    lol: our485/ and eval15/ with low/ and high/; flare7k: test_data/{real,synthetic}/{gt,input}/; ihaze: GT/ and
    hazy/; gopro: {train,test}/*/{sharp,blur}/; d2g: a folder per scene with several exposures. Which of them the
    paper took it does not say; ours are all.
    """
    if name not in NATURAL:
        raise ValueError(f"no set is called {name!r}; there are {', '.join(NATURAL)}")
    if name == "d2g":
        good, degraded = _exposures(root)
    else:
        good, degraded = (sorted({p for g in globs for p in root.glob(g) if _is_picture(p)}) for globs in NATURAL[name])
    if len(good) < 2 or len(good) != len(degraded):
        wanted = (
            "scene folders with two or more exposures" if name == "d2g" else " and ".join(g[0] for g in NATURAL[name])
        )
        raise DgiqaError(
            f"{name}: {len(good)} good and {len(degraded)} degraded pictures in {root}; wanted as many of both, "
            f"two or more, as {wanted}; unpack the set fully"
        )
    return good, degraded


def folder_pictures(folder: Path) -> list[Path]:
    """The pictures in a folder, sorted. Raises DgiqaError when there are fewer than two."""
    found = sorted(path for path in folder.iterdir() if _is_picture(path)) if folder.is_dir() else []
    if len(found) < 2:
        raise DgiqaError(f"{len(found)} pictures in {folder}; wanted a folder with two or more {', '.join(PICTURES)}")
    return found


def format_table(results: Sequence[Result]) -> str:
    """Mean and median lines of each result, the paper's SROCC and PLCC beside the mean."""
    wide = max(len(result.name) for result in results)
    head = f"{'':{wide}}{'seeds':>7}  {'':7}" + "".join(f"{key:>14}" for key in METRICS) + f"{'paper srocc/plcc':>20}"
    lines = [head]
    for result in results:
        for kind, values in (("mean", result.mean()), ("median", result.median())):
            paper = f"{result.paper[0]:.3f}/{result.paper[1]:.3f}" if result.paper and kind == "mean" else ""
            numbers = "".join(f"{values[key]:14.4f}" for key in METRICS)
            lines.append(f"{result.name:{wide}}{len(result.rows):7}  {kind:7}{numbers}{paper:>20}".rstrip())
    return "\n".join(lines)


def write_results(results: Sequence[Result], out: Path) -> None:
    """results.csv (a line per seed, then mean and median) and results.png (SROCC bars, the paper's as a mark)."""
    out.mkdir(parents=True, exist_ok=True)
    lines: list[tuple[Any, ...]] = [("experiment", "seed", *METRICS, "paper_srocc", "paper_plcc")]
    for result in results:
        rows = [*enumerate(result.rows), ("mean", result.mean()), ("median", result.median())]
        paper = result.paper or ("", "")
        lines += [(result.name, seed, *(f"{row[key]:.6f}" for key in METRICS), *paper) for seed, row in rows]
    _write_csv(out / "results.csv", lines)
    _plot_results(results, out / "results.png")


def write_separations(separations: Sequence[Separation], out: Path) -> None:
    """density.csv (a line per set), scores.csv (a line per picture) and <name>.png (both densities) for each set."""
    out.mkdir(parents=True, exist_ok=True)
    head = ("set", "good", "degraded", "overlap", "histogram_overlap", "ordered")
    numbers = [(s.name, len(s.good), len(s.degraded), s.overlap, s.histogram, s.ordered) for s in separations]
    _write_csv(out / "density.csv", [head, *numbers])
    kinds = [(s.name, kind, score) for s in separations for kind in ("good", "degraded") for score in getattr(s, kind)]
    _write_csv(out / "scores.csv", [("set", "kind", "score"), *kinds])
    for separation in separations:
        plot_separation(separation, out / f"{separation.name or 'density'}.png")


def plot_separation(separation: Separation, path: Path) -> None:
    """Histograms of both kinds of scores with the fitted Gaussians whose common area is the overlap."""
    figure, axes = _figure()
    span = np.linspace(0, 1, 4001)  # scores may lie within a hundredth
    ends = (*separation.good, *separation.degraded)
    bins = np.linspace(min(ends), max(*ends, min(ends) + 1e-3), 21)  # as `histogram_overlap` counts
    for scores, label, colour in ((separation.good, "good", "C0"), (separation.degraded, "degraded", "C3")):
        deviation = max(float(scores.std()), 1e-3)
        density = np.exp(-(((span - scores.mean()) / deviation) ** 2) / 2) / (deviation * math.sqrt(2 * math.pi))
        axes.hist(scores, bins=bins, density=True, alpha=0.3, color=colour)
        axes.plot(span, density, color=colour, label=f"{label}, n = {len(scores)}")
    axes.set(xlabel="score", ylabel="density", xlim=(0, 1))
    axes.set_title(f"{separation.name}: overlap {100 * separation.overlap:.1f} %")
    axes.legend()
    _save(figure, path)


def main(arguments: list[str] | None = None) -> int:
    """`python -m dgiqa.nn.evaluate`: see the top of the file."""
    options = _parser().parse_args(arguments)
    return exit_code(lambda: options.command(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dgiqa.nn.evaluate", description="The paper's tables.")
    commands = parser.add_subparsers(required=True, metavar="test|protocol|cross|density")
    test = commands.add_parser("test", help="a bundle or weights on the test parts of several splits")
    cross = commands.add_parser("cross", help="a bundle or weights trained on one dataset, on all of another")
    protocol = commands.add_parser("protocol", help="train and test for each seed")
    density = commands.add_parser("density", help="scores of good and degraded pictures as two densities")
    for command, function in ((test, _test), (cross, _cross), (protocol, _protocol), (density, _density)):
        command.set_defaults(command=function)
        command.add_argument("--out", required=True, type=Path, help="folder for CSV and PNG")
    for command in (test, cross, density):
        command.add_argument("--bundle", default="small", help="what scores; default: %(default)s")
        command.add_argument("--weights", type=Path, help="a checkpoint instead, run in torch with --depth's depth")
        command.add_argument("--device", default="auto", help="where --weights run; auto takes CUDA when there is one")
    for command in (test, cross):
        add_data_options(command)
    for command in (test, protocol):
        command.add_argument("--seeds", type=int, default=10, help="number of 80:20 splits; default: %(default)s")
        command.add_argument("--split", default="random", choices=("random", "official"), help=SPLIT_HELP)
    for command in (test, cross, protocol, density):
        command.add_argument("--tiling", default=TEST_TILING, help=TILING_HELP)
    cross.add_argument("--source", required=True, help="the dataset that the weights were trained on")
    cross.add_argument("--without", choices=ABLATIONS, help="what the weights' network lacks")
    add_data_options(protocol)
    add_network_options(protocol)
    add_config_options(protocol)
    density.add_argument("--set", choices=tuple(NATURAL), help="a public set, in --root")
    density.add_argument("--root", type=Path, help="its folder")
    density.add_argument("--good", type=Path, help="instead: a folder of good pictures")
    density.add_argument("--degraded", type=Path, help="and one of degraded pictures")
    density.add_argument("--depth", default="small", help="bundle whose depth network is used with --weights")
    density.add_argument("--depth-cache", type=Path, default=Path("runs/depth"), help="default: %(default)s")
    return parser


def _test(options: argparse.Namespace) -> None:
    dataset = chosen_dataset(options)
    official = options.split == "official"
    _report([evaluate(_chosen(options), dataset, range(options.seeds), official)], options.out)


def _cross(options: argparse.Namespace) -> None:
    dataset = chosen_dataset(options)
    _report([evaluate_cross(_chosen(options), dataset, options.source, options.without)], options.out)


def _protocol(options: argparse.Namespace) -> None:
    """Train and test for each seed; each seed has its folder, so a killed run goes on where it was."""
    dataset = chosen_dataset(options)
    network = bundle_depth(options.depth)
    fill_depth_cache(dataset.records, network, options.depth_cache)
    config, official = config_from(options), options.split == "official"

    def fit(training: IQADataset, seed: int) -> Predict:
        print(f"seed {seed} of {options.seeds}: {len(training.records)} pictures", file=sys.stderr, flush=True)
        torch.manual_seed(config.seed + seed)
        if options.weights:
            model: nn.Module = load_dgiqa(options.weights)
        else:
            model = build_network(options.network, options.without, options.pretrained)
        samples = RecordSamples(training.records, network, options.depth_cache)
        # With the published parts, a seed's batches and crops are all that its training has of its own.
        seeded = dataclasses.replace(config, seed=config.seed + seed) if official else config
        weights = train(model, samples, seeded, options.out / f"seed{seed}")
        trained = load_dgiqa(weights).to(next(model.parameters()).device)
        return model_predictor(trained, network, options.depth_cache, options.tiling)

    _report([run_protocol(fit, dataset, range(options.seeds), options.without, official)], options.out)


def _density(options: argparse.Namespace) -> None:
    if options.set and options.root:
        name, (good, degraded) = options.set, natural_pictures(options.set, options.root)
    elif options.good and options.degraded:
        name, good, degraded = "density", folder_pictures(options.good), folder_pictures(options.degraded)
    else:
        raise ValueError("no pictures asked for; give --set and --root, or --good and --degraded")
    found = separate(_chosen(options), good, degraded, name)
    write_separations([found], options.out)
    numbers = f"overlap {found.overlap:.1%}, histograms {found.histogram:.1%}, in order {found.ordered:.1%}"
    print(f"{name}: {len(good)} good, {len(degraded)} degraded: {numbers}")


def _report(results: Sequence[Result], out: Path) -> None:
    write_results(results, out)
    print(format_table(results))


def _chosen(options: argparse.Namespace) -> Any:
    if options.weights:
        model = load_dgiqa(options.weights).to(device_of(options.device))
        return model_predictor(model, bundle_depth(options.depth), options.depth_cache, options.tiling)
    from dgiqa.scorer import Scorer

    return Scorer(options.bundle, tiling=options.tiling)


def _predict(predictor: Any) -> Predict:
    """Whatever scores pictures as a function of files; one that it cannot score is an error here, not a gap."""
    if not hasattr(predictor, "score_many"):
        return predictor

    def predict(paths: Sequence[Path]) -> NDArray[np.floating]:
        scores = predictor.score_many(paths, on_error="raise")
        return np.array([score.value for score in watched(scores, len(paths), "scored")])

    return predict


def _paths(dataset: IQADataset) -> list[Path]:
    return [record.path for record in dataset.records]


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURES


def _exposures(root: Path) -> tuple[list[Path], list[Path]]:
    """The brightest and the darkest picture of each scene folder that has two or more."""
    from dgiqa.image import decode

    ends = []
    for folder in sorted({path.parent for path in root.glob("**/*") if _is_picture(path)}):
        pictures = sorted(path for path in folder.iterdir() if _is_picture(path))
        if len(pictures) > 1:
            by_light = sorted(pictures, key=lambda path: float(decode(path.read_bytes()).mean()))
            ends.append((by_light[-1], by_light[0]))
    return [good for good, _ in ends], [degraded for _, degraded in ends]


def _write_csv(path: Path, lines: Iterable[Sequence[Any]]) -> None:
    with replacing(path) as partial, open(partial, "w", newline="") as file:
        csv.writer(file).writerows(lines)


def _plot_results(results: Sequence[Result], path: Path) -> None:
    figure, axes = _figure(2 + 0.5 * len(results))
    means = [result.mean()["srocc"] for result in results]
    spread = [np.std([row["srocc"] for row in result.rows]) for result in results]
    axes.barh(range(len(results)), means, xerr=spread, color="C0", label="here, mean and deviation over seeds")
    paper = [(result.paper[0], i) for i, result in enumerate(results) if result.paper]
    if paper:
        axes.plot(*zip(*paper, strict=True), "k|", markersize=20, markeredgewidth=2, label="paper")
    lowest = min(0.0, *(mean - 1.1 * deviation for mean, deviation in zip(means, spread, strict=True)))
    axes.set(xlabel="SROCC", xlim=(lowest, 1), yticks=range(len(results)))
    axes.set_yticklabels([result.name for result in results])
    axes.invert_yaxis()  # in the order of the table
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    _save(figure, path)


def _figure(inches: float = 4) -> tuple[Any, Any]:
    figure = load("matplotlib.figure", "a plot", "matplotlib", "train").Figure(
        figsize=(7, inches), layout="constrained"
    )
    return figure, figure.subplots()


def _save(figure: Any, path: Path) -> None:
    with replacing(path) as partial:
        figure.savefig(partial, dpi=120, format="png")


if __name__ == "__main__":
    sys.exit(main())
