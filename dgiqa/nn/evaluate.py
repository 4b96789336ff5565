"""Evaluate a scorer on labelled or paired pictures as the paper does: a line next to its figures, a CSV and a PNG.

    python -m dgiqa.nn.evaluate test     --dataset csiq --root DIR --out DIR        a bundle or weights, 10 test parts
    python -m dgiqa.nn.evaluate protocol --dataset csiq --root DIR --out DIR        train and test for each seed
    python -m dgiqa.nn.evaluate cross    --source koniq10k --dataset clive ...      trained elsewhere, all pictures
    python -m dgiqa.nn.evaluate density  --set lol --root DIR --out DIR             good against degraded pictures
    python -m dgiqa.nn.evaluate tsne     --dataset csv --root FILE --out DIR        features in a plane
    python -m dgiqa.nn.evaluate crops    --dataset csv --root FILE --out DIR        SROCC and PLCC by number of crops
    python -m dgiqa.nn.evaluate consistency --dataset csv --root FILE --out DIR     SROCC and PLCC by that loss's weight

Paper: arXiv 2505.24002, tables 2 to 5, section 5.2, figures 2, 6, 11 and 14.
"""

import argparse
import csv
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from dgiqa.dtypes import Float64, Floating
from dgiqa.errors import DgiqaError
from dgiqa.image import decode
from dgiqa.metrics import histogram_overlap, overlap, srocc
from dgiqa.nn import datasets, plots, train
from dgiqa.nn.checkpoints import load_dgiqa
from dgiqa.nn.commands import exit_code, watched
from dgiqa.nn.datasets import IQADataset, Samples
from dgiqa.nn.predict import METRICS, TEST_TILING, Predict, model_predictor, scores_of
from dgiqa.nn.train import ABLATIONS, TrainConfig
from dgiqa.score import Failure, Score
from dgiqa.scorer import Scorer
from dgiqa.sources.inputs import IMAGE_SUFFIXES
from dgiqa.store import replacing

# SROCC and PLCC (raw), mean over seeds, as the paper prints them, by (left out, trained on, tested on)
PAPER = {
    (None, "live", "live"): (0.982, 0.981),  # table 2: trained and tested on parts of the same set
    (None, "csiq", "csiq"): (0.971, 0.976),
    (None, "tid2013", "tid2013"): (0.934, 0.940),
    (None, "kadid10k", "kadid10k"): (0.943, 0.945),
    (None, "clive", "clive"): (0.891, 0.910),
    (None, "koniq10k", "koniq10k"): (0.934, 0.942),
    (None, "flive", "flive"): (0.591, 0.685),
    (None, "koniq10k", "clive"): (0.808, 0.834),  # table 3
    (None, "koniq10k", "flive"): (0.462, 0.515),
    (None, "flive", "koniq10k"): (0.769, 0.797),
    (None, "kadid10k", "live"): (0.932, 0.909),
    (None, "kadid10k", "tid2013"): (0.724, 0.733),
    (None, "tid2013", "live"): (0.931, 0.922),
    ("depth_car", "clive", "clive"): (0.877, 0.902),  # tables 4 and 5
    ("dilated", "clive", "clive"): (0.888, 0.907),
    ("tcb", "clive", "clive"): (0.890, 0.907),
    ("depth_car", "koniq10k", "clive"): (0.783, 0.816),
    ("dilated", "koniq10k", "clive"): (0.804, 0.830),
    ("tcb", "koniq10k", "clive"): (0.806, 0.828),
    ("depth_car", "koniq10k", "flive"): (0.427, 0.489),
    ("dilated", "koniq10k", "flive"): (0.431, 0.490),
    ("tcb", "koniq10k", "flive"): (0.457, 0.509),
}
COUNTS, CROP_DRAWS = (1, 2, 3, 5, 10, 15, 20, 25, 30, 40, 50), 20  # numbers of crops, and draws for each
NEIGHBOURS = 10  # in a plane of features
TILING_HELP = "grid, or official:20 for the authors' random crops; default: %(default)s"
SPLIT_HELP = "80:20 by seed, or as published (KonIQ-10k, LIVE-FB, a CSV's split column); default: %(default)s"

# Natural distortions (section 5.2): glob patterns of the good and the degraded pictures in each public set
NATURAL = {
    "lol": (("**/high/*.png",), ("**/low/*.png",)),
    "flare7k": (("**/test_data/*/gt/*",), ("**/test_data/*/input/*",)),
    "ihaze": (("**/GT/*",), ("**/hazy/*",)),
    "gopro": (("**/sharp/*.png",), ("**/blur/*.png",)),
    "d2g": ((), ()),  # scene folders of several exposures: the brightest is good, the darkest degraded
}


@dataclass(frozen=True)
class Result:
    """Metrics of one experiment. rows: one dict of `METRICS` per seed; paper: its SROCC and PLCC, if it has them."""

    name: str
    rows: tuple[dict[str, float], ...]
    paper: tuple[float, float] | None = None

    def summary(self) -> dict[str, dict[str, float]]:
        """Mean over the seeds, which the paper reports, and median, which many other works report."""
        table = np.array([[row[key] for key in METRICS] for row in self.rows])
        found = {"mean": table.mean(0), "median": np.median(table, 0)}
        return {kind: dict(zip(METRICS, values.tolist(), strict=True)) for kind, values in found.items()}


@dataclass(frozen=True)
class Separation:
    """Separation of good from degraded pictures by their scores (section 5.2). good, degraded: scores f64 [n] and [m].

    overlap: of two fitted Gaussians, 0..1, lower is better; histogram: the same of the histograms; ordered: share of
    all (good, degraded) pairs in which the good picture scores higher; ties count half.
    """

    name: str
    good: Float64
    degraded: Float64
    overlap: float
    histogram: float
    ordered: float


def evaluate(predictor: Any, dataset: IQADataset, seeds: Iterable[int] = range(10), official: bool = False) -> Result:
    """Test a trained predictor on the test part of each seed's 80:20 split; every picture is scored once.

    predictor: a `Scorer`, or files -> scores f [n]. Nothing is trained, so the weights' training data should be known
    not to be in the test parts, if the figures are to be compared with those of other works.
    official: use the published test part instead, which is the same for every seed: one row.
    """
    tests = [_parts(dataset, seed, official)[1] for seed in ((0,) if official else seeds)]
    used = {r.name: r.path for test in tests for r in test.records}
    predicted = dict(zip(used, _predict(predictor)(list(used.values())), strict=True))
    rows = [scores_of(np.array([predicted[r.name] for r in test.records]), test.scores) for test in tests]
    return _line(dataset.name, rows, (None, dataset.name, dataset.name), official)


def _parts(dataset: IQADataset, seed: int, official: bool) -> tuple[IQADataset, IQADataset]:
    """Training and test part, by the seed or as published."""
    if official:
        training, _, test = datasets.official_split(dataset)
        return training, test
    return datasets.random_split(dataset, seed)


def _line(
    name: str, rows: Sequence[dict[str, float]], paper: tuple[str | None, str, str], official: bool = False
) -> Result:
    """A line of the tables. paper: the key of its figures, shown only for random splits, which the paper used."""
    name += ", official split" if official else ""
    if paper[0] is not None:
        name += f"{',' if official else ''} without {paper[0]}"
    return Result(name, tuple(rows), None if official else PAPER.get(paper))


def evaluate_cross(
    predictor: Any, dataset: IQADataset, source: str | None = None, without: str | None = None
) -> Result:
    """Test a predictor that was trained on all of `source` on all of the dataset (table 3). without: an ablation."""
    row = scores_of(_predict(predictor)(_paths(dataset)), dataset.scores)
    name = dataset.name if source is None else f"{source} -> {dataset.name}"
    trained = source if source != dataset.name or without else None  # table 2 is about parts of one set
    return _line(name, [row], (without, trained or "", dataset.name))


def run_protocol(
    fit: Callable[[IQADataset, int], Any],
    dataset: IQADataset,
    seeds: Iterable[int],
    without: str | None = None,
    official: bool = False,
) -> Result:
    """The paper's protocol (4.2): for each seed split 80:20, train on one part, test on the other (tables 2 and 4).

    fit: (training part, seed) -> predictor as for `evaluate`. It never sees the test part.
    official: use the published parts for every seed; the runs then differ in first weights and batches.
    """
    rows = []
    for seed in seeds:
        training, test = _parts(dataset, seed, official)
        rows.append(scores_of(_predict(fit(training, seed))(_paths(test)), test.scores))
    return _line(dataset.name, rows, (without, dataset.name, dataset.name), official)


def separate(predictor: Any, good: Sequence[Path], degraded: Sequence[Path], name: str = "") -> Separation:
    """Score both kinds of pictures and measure how far their densities overlap (section 5.2)."""
    predict = _predict(predictor)
    a, b = (np.asarray(predict(paths), np.float64) for paths in (good, degraded))
    ordered = float((np.sign(a[:, None] - b[None]) + 1).mean() / 2)
    return Separation(name, a, b, overlap(a, b), histogram_overlap(a, b), ordered)


def natural_pictures(name: str, root: Path) -> tuple[list[Path], list[Path]]:
    """Good and degraded pictures of a public set, one of `NATURAL`. Raises DgiqaError if they are missing.

    lol: our485/ and eval15/ with low/ and high/; flare7k: test_data/{real,synthetic}/{gt,input}/; ihaze: GT/ and
    hazy/; gopro: {train,test}/*/{sharp,blur}/; d2g: a folder per scene with several exposures. The paper does not say
    which of these pictures it used; we use all.
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
    """The pictures in a folder, sorted. Raises DgiqaError if there are fewer than two."""
    found = sorted(path for path in folder.iterdir() if _is_picture(path)) if folder.is_dir() else []
    if len(found) < 2:
        raise DgiqaError(
            f"{len(found)} pictures in {folder}; wanted a folder with two or more {', '.join(IMAGE_SUFFIXES)}"
        )
    return found


def format_table(results: Sequence[Result]) -> str:
    """A table with a mean and a median line for each result, and the paper's SROCC and PLCC next to the mean."""
    wide = max(len(result.name) for result in results)
    head = f"{'':{wide}}{'seeds':>7}  {'':7}" + "".join(f"{key:>14}" for key in METRICS) + f"{'paper srocc/plcc':>20}"
    lines = [head]
    for result in results:
        for kind, values in result.summary().items():
            paper = f"{result.paper[0]:.3f}/{result.paper[1]:.3f}" if result.paper and kind == "mean" else ""
            numbers = "".join(f"{values[key]:14.4f}" for key in METRICS)
            lines.append(f"{result.name:{wide}}{len(result.rows):7}  {kind:7}{numbers}{paper:>20}".rstrip())
    return "\n".join(lines)


def write_results(results: Sequence[Result], out: Path) -> None:
    """Write results.csv (a line per seed, then mean and median) and results.png (SROCC bars, the paper's as a mark)."""
    lines: list[tuple[Any, ...]] = [("experiment", "seed", *METRICS, "paper_srocc", "paper_plcc")]
    for result in results:
        rows = [*enumerate(result.rows), *result.summary().items()]
        paper = result.paper or ("", "")
        lines += [(result.name, seed, *(f"{row[key]:.6f}" for key in METRICS), *paper) for seed, row in rows]
    _write_csv(out / "results.csv", lines)
    plots.draw_results(results, out / "results.png")


def write_separations(separations: Sequence[Separation], out: Path) -> None:
    """Write density.csv (a line per set), scores.csv (a line per picture) and, per set, <name>.png (both densities)."""
    head = ("set", "good", "degraded", "overlap", "histogram_overlap", "ordered")
    numbers = [(s.name, len(s.good), len(s.degraded), s.overlap, s.histogram, s.ordered) for s in separations]
    _write_csv(out / "density.csv", [head, *numbers])
    kinds = [(s.name, kind, score) for s in separations for kind in ("good", "degraded") for score in getattr(s, kind)]
    _write_csv(out / "scores.csv", [("set", "kind", "score"), *kinds])
    for separation in separations:
        plots.draw_separation(separation, out / f"{separation.name or 'density'}.png")


def main(arguments: list[str] | None = None) -> int:
    """Run `python -m dgiqa.nn.evaluate`: see the top of the file."""
    options = _parser().parse_args(arguments)
    return exit_code(lambda: options.command(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dgiqa.nn.evaluate", description="The paper's tables and figures.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    test = commands.add_parser("test", help="a bundle or weights on the test parts of several splits")
    cross = commands.add_parser("cross", help="a bundle or weights trained on one dataset, on all of another")
    protocol = commands.add_parser("protocol", help="train and test for each seed")
    density = commands.add_parser("density", help="scores of good and degraded pictures as two densities")
    tsne = commands.add_parser("tsne", help="features of pictures in a plane, coloured by score, by t-SNE")
    crops = commands.add_parser("crops", help="SROCC and PLCC by the number of random crops")
    consistency = commands.add_parser("consistency", help="SROCC and PLCC by the weight of the consistency loss")
    functions = {test: _test, cross: _cross, protocol: _protocol, density: _density}
    for command, function in (functions | {tsne: _tsne, crops: _crops, consistency: _consistency}).items():
        command.set_defaults(command=function)
        command.add_argument("--out", required=True, type=Path, help="folder for CSV and PNG")
    for command in (test, cross, density, tsne, crops):
        command.add_argument("--bundle", default="small", help="the scoring bundle; default: %(default)s")
    for command in (test, cross, density):
        command.add_argument("--weights", type=Path, help="a checkpoint instead, run in torch with --depth's depth")
        command.add_argument("--device", default="auto", help="where --weights run; auto takes CUDA when there is one")
    tsne.add_argument("--also", nargs=2, action="append", default=[], metavar=("DATASET", "ROOT"), help="another set")
    crops.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="numbers of crops; default: %(default)s")
    consistency.add_argument("--lambdas", type=float, nargs="+", default=[0, 0.1, 0.25, 0.5, 1, 2], help="weights")
    for command in (test, cross, tsne, crops, protocol, consistency):
        train.add_data_options(command)
    for command in (test, protocol, consistency):
        command.add_argument("--seeds", type=int, default=10, help="number of 80:20 splits; default: %(default)s")
        command.add_argument("--split", default="random", choices=("random", "official"), help=SPLIT_HELP)
    for command in (test, cross, protocol, density, consistency):
        command.add_argument("--tiling", default=TEST_TILING, help=TILING_HELP)
    cross.add_argument("--source", required=True, help="the dataset that the weights were trained on")
    cross.add_argument("--without", choices=ABLATIONS, help="the part that the weights' network lacks")
    for command in (protocol, consistency):
        train.add_network_options(command)
        train.add_config_options(command)
    density.add_argument("--set", choices=tuple(NATURAL), help="a public set, in --root")
    density.add_argument("--root", type=Path, help="its folder")
    density.add_argument("--good", type=Path, help="instead: a folder of good pictures")
    density.add_argument("--degraded", type=Path, help="and one of degraded pictures")
    density.add_argument("--depth", default="small", help="bundle whose depth network is used with --weights")
    density.add_argument("--depth-cache", type=Path, default=Path("runs/depth"), help="default: %(default)s")
    return parser


def _test(options: argparse.Namespace) -> None:
    dataset = train.chosen_dataset(options)
    official = options.split == "official"
    _report([evaluate(_chosen(options), dataset, range(options.seeds), official)], options.out)


def _cross(options: argparse.Namespace) -> None:
    dataset = train.chosen_dataset(options)
    _report([evaluate_cross(_chosen(options), dataset, options.source, options.without)], options.out)


def _protocol(options: argparse.Namespace) -> None:
    _report([_trained(options, train.config_from(options), options.out)], options.out)


def _consistency(options: argparse.Namespace) -> None:
    """Run the protocol once for each weight of the loss, each in its own folder."""
    config = train.config_from(options)
    rows = []
    for weight in options.lambdas:
        changed = dataclasses.replace(config, consistency=weight)
        rows.append(_trained(options, changed, options.out / f"lambda{weight:g}").rows)
    _curve(options.lambdas, rows, options.out, "weight of the consistency loss")


def _trained(options: argparse.Namespace, config: TrainConfig, out: Path) -> Result:
    """Train and test for each seed; each seed has its folder, so a killed run goes on where it was."""
    dataset = train.chosen_dataset(options)
    network = datasets.bundle_depth(options.depth)
    datasets.fill_depth_cache(dataset.records, network, options.depth_cache)
    official = options.split == "official"

    def fit(training: IQADataset, seed: int) -> Predict:
        print(f"seed {seed} of {options.seeds}: {len(training.records)} pictures", file=sys.stderr, flush=True)
        torch.manual_seed(config.seed + seed)
        model = train.first_network(options)
        read = functools.partial(datasets.with_depth, network=network, cache_dir=options.depth_cache)
        # With the published parts, the seeds' trainings differ only in batches and crops.
        seeded = dataclasses.replace(config, seed=config.seed + seed) if official else config
        weights = train.train(model, Samples(training.records, read), seeded, out / f"seed{seed}")
        trained = load_dgiqa(weights).to(next(model.parameters()).device)
        return model_predictor(trained, network, options.depth_cache, options.tiling)

    return run_protocol(fit, dataset, range(options.seeds), options.without, official)


def _tsne(options: argparse.Namespace) -> None:
    scale = {"worst": options.worst, "best": options.best}  # tables are on one scale, if one is given
    loaded = [train.chosen_dataset(options)]
    for name, root in options.also:
        is_table = name == "csv"
        loaded.append(datasets.load_csv(Path(root), **scale) if is_table else datasets.load_dataset(name, Path(root)))
    with Scorer(options.bundle, features=True) as scorer:
        features = [[score.features for score in _scores(scorer, _paths(dataset))] for dataset in loaded]
    known = [each for rows in features for each in rows if each is not None]
    if len(known) < sum(map(len, features)):
        raise DgiqaError(f"{options.bundle} gives no features, and t-SNE needs some; import its weights again")
    places = plots.embedded(np.stack(known))
    names = [f"{number}: {dataset.name}" for number, dataset in enumerate(loaded, 1)]
    ends = np.cumsum([len(rows) for rows in features])[:-1]
    sets = list(zip(names, np.split(places, ends), [dataset.scores for dataset in loaded], strict=True))
    points = [(name, *place, score) for name, found, scores in sets for place, score in zip(found, scores, strict=True)]
    _write_csv(options.out / "tsne.csv", [("set", "x", "y", "score"), *points])
    plots.draw_embedding(sets, options.out / "tsne.png")
    for name, found, scores in sets:
        print(f"{name}: {len(found)} pictures, SROCC of opinion with that of neighbours {_near(found, scores):.3f}")


def _near(places: Floating, scores: Floating) -> float:
    """How well places f [n,2] predict scores [n]: SROCC of scores with the mean of the NEIGHBOURS nearest others."""
    apart = np.linalg.norm(places[:, None] - places[None], axis=2)
    nearest = np.argsort(apart, axis=1)[:, 1 : 1 + NEIGHBOURS]
    return srocc(scores[nearest].mean(1), scores)


def _crops(options: argparse.Namespace) -> None:
    """Score every picture once with the most crops, from which smaller numbers are drawn, and once with the grid."""
    dataset = train.chosen_dataset(options)
    with Scorer(options.bundle, tiling=f"official:{max(options.counts)}") as scorer:
        tiles = np.stack([score.tile_scores for score in _scores(scorer, _paths(dataset))])
    draws = np.random.default_rng(0)
    rows = [
        [scores_of(_some(tiles, count, draws), dataset.scores) for _ in range(CROP_DRAWS)] for count in options.counts
    ]
    with Scorer(options.bundle, tiling="grid") as scorer:
        values = np.array([score.value for score in _scores(scorer, _paths(dataset))])
    _curve(options.counts, rows, options.out, "random crops", {"grid": scores_of(values, dataset.scores)})


def _scores(scorer: Scorer, paths: Sequence[Path]) -> Iterator[Score]:
    """The scores of pictures, in order. A picture that cannot be scored raises an error here."""
    scores = scorer.score_many(paths, on_error="raise")
    return watched((score for score in scores if not isinstance(score, Failure)), len(paths), "scored")


def _some(tiles: Floating, count: int, draws: np.random.Generator) -> Floating:
    """Mean f [n] of `count` of each picture's tiles f [n,tiles], drawn for each picture by itself."""
    return draws.permuted(tiles, axis=1)[:, :count].mean(1)


def _curve(
    values: Sequence[float],
    rows: Sequence[Sequence[dict[str, float]]],
    out: Path,
    what: str,
    levels: Mapping[str, dict[str, float]] = MappingProxyType({}),
) -> None:
    """Write curve.csv and curve.png of metrics by a value, and print a line for each value.

    rows: for each value, metrics of each seed or draw. levels: metrics of methods without such a value, by name.
    """
    found = [*zip(values, rows, strict=True), *((name, [row]) for name, row in levels.items())]
    lines = [(value, *(row[key] for key in METRICS)) for value, each in found for row in each]
    _write_csv(out / "curve.csv", [(what, *METRICS), *lines])
    keys = ("srocc", "plcc")
    for value, each in found:
        spread = (
            f"{key.upper()} {np.mean(v):.4f} +- {np.std(v):.4f}" for key in keys for v in [[r[key] for r in each]]
        )
        print(f"{what} {value}:", *spread)
    curves = {key.upper(): [[row[key] for row in each] for each in rows] for key in keys}
    straight = {f"{key.upper()}, {name}": row[key] for key in keys for name, row in levels.items()}
    plots.draw_curves(values, curves, out / "curve.png", what, straight)


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
        model = load_dgiqa(options.weights).to(train.device_of(options.device))
        return model_predictor(model, datasets.bundle_depth(options.depth), options.depth_cache, options.tiling)
    return Scorer(options.bundle, tiling=options.tiling)


def _predict(predictor: Any) -> Predict:
    """A predictor of either kind as a function of files."""
    if not hasattr(predictor, "score_many"):
        return predictor
    return lambda paths: np.array([score.value for score in _scores(predictor, paths)])


def _paths(dataset: IQADataset) -> list[Path]:
    return [record.path for record in dataset.records]


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _exposures(root: Path) -> tuple[list[Path], list[Path]]:
    """The brightest and the darkest picture of each scene folder with two or more."""
    ends = []
    for folder in sorted({path.parent for path in root.glob("**/*") if _is_picture(path)}):
        pictures = sorted(path for path in folder.iterdir() if _is_picture(path))
        if len(pictures) > 1:
            by_light = sorted(pictures, key=lambda path: float(decode(path.read_bytes()).mean()))
            ends.append((by_light[-1], by_light[0]))
    return [good for good, _ in ends], [degraded for _, degraded in ends]


def _write_csv(path: Path, lines: Iterable[Sequence[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, open(partial, "w", newline="") as file:
        csv.writer(file).writerows(lines)


if __name__ == "__main__":
    sys.exit(main())
