"""Measure the gain from your own labels: SROCC and RMSE of a bundle's scores on pictures whose labels were not used.

    python bench/calibrate.py BUNDLE LABELS.csv IMAGES [--sizes 50 200 1000] [--repeats 10]

For each number, labels are drawn at random, fitted (the map, and the last layer) and judged on all other pictures; the
result is the median and the 10th to 90th percentile over the draws. "before" is the unchanged bundle. --test TEST.csv
--test-images DIR judge on another set instead, which shows how far labels of one set help on pictures from elsewhere.
"""

from pathlib import Path
from typing import Any

import numpy as np
from stamp import command_line, write_json

from dgiqa import metrics, spec
from dgiqa.bundle import load_bundle
from dgiqa.calibrate import Study, gather, look, plain
from dgiqa.calibrate.adapt import Layer, Seen, fit_layer, shipped_layer
from dgiqa.calibrate.fit import fit_map
from dgiqa.calibrate.labels import Labels, read_labels
from dgiqa.meaning import Meaning
from dgiqa.scorer import Scorer

WAYS = ("before", "map", "adapt")


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("bundle")
    parser.add_argument("labels", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--test", type=Path, help="labels of another set to judge on")
    parser.add_argument("--test-images", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[50, 200, 1000])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--most", type=int, default=2500, help="pictures of a set that are scored, drawn at random")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args()
    train = study(options.bundle, options.labels, options.images, options.most)
    test = options.test and study(options.bundle, options.test, options.test_images, options.most)
    adaptable = train.pictures[0].features.shape[1] > 0
    shipped = shipped_layer(load_bundle(options.bundle).file(spec.QUALITY_FILE)) if adaptable else None
    rows = [row for size in options.sizes for row in figures(train, test, shipped, size, options.repeats)]
    print(f"{'labels':>7} {'way':<7} {'SROCC':>22} {'RMSE':>22}")
    for row in rows:
        print(f"{row['labels']:>7} {row['way']:<7} {shown(row['srocc']):>22} {shown(row['rmse']):>22}")
    if options.json:
        write_json(options.json, {"bundle": load_bundle(options.bundle).id, "rows": rows})


def study(bundle: str, table: Path, images: Path, most: int) -> Study:
    """The bundle's tile scores and features of the labelled pictures."""
    labels = read_labels(table)
    drawn = np.sort(np.random.default_rng(0).permutation(len(labels.images))[:most])
    labels = Labels(tuple(labels.images[i] for i in drawn), labels.values[drawn], labels.range, labels.binary)
    with Scorer(plain(load_bundle(bundle)), features=True) as scorer:
        found = gather(labels, look(scorer, labels, images))
    print(f"{table}: {len(found.pictures)} pictures, {len(found.failures)} left out", flush=True)
    return found


def figures(train: Study, test: Study | None, shipped: Layer | None, size: int, repeats: int) -> list[dict[str, Any]]:
    """Rows of SROCC and RMSE (median, 10th and 90th percentile over the draws) for `size` labels."""
    count = len(train.pictures)
    if size > count - (0 if test else 100):
        print(f"{size} labels of {count} leave too few to judge on; left out")
        return []
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for repeat in range(repeats):
        order = np.random.default_rng(repeat).permutation(count)
        fitted = [train.pictures[i] for i in order[:size]]
        values = train.labels.values[order[:size]]
        judged = test.pictures if test else [train.pictures[i] for i in order[size:]]
        wanted = test.labels.values if test else train.labels.values[order[size:]]
        for way, scores in scored(fitted, values, judged, shipped).items():
            found[way].append((metrics.srocc(scores, wanted), metrics.rmse(scores, wanted)))
    return [
        {"labels": size, "way": way, "srocc": spread([a for a, _ in pairs]), "rmse": spread([b for _, b in pairs])}
        for way, pairs in found.items()
        if pairs
    ]


def scored(fitted: list[Seen], values: np.ndarray, judged: list[Seen], shipped: Layer | None) -> dict[str, np.ndarray]:
    """Scores of the judged pictures: the bundle's own, through a map, and by a new last layer."""
    meaning = Meaning(knots=fit_map([seen.scores for seen in fitted], values))
    scores = {
        "before": np.array([seen.scores.mean(dtype=np.float64) for seen in judged]),
        "map": np.array([meaning.mapped(seen.scores).mean(dtype=np.float64) for seen in judged]),
    }
    if shipped:
        layer = fit_layer(fitted, values, shipped)
        scores["adapt"] = np.array([layer.score(seen) for seen in judged])
    return scores


def spread(values: list[float]) -> list[float]:
    return [round(float(q), 4) for q in np.quantile(values, [0.5, 0.1, 0.9])]


def shown(figure: list[float]) -> str:
    return "{:.3f} ({:.3f}..{:.3f})".format(*figure)


if __name__ == "__main__":
    main()
