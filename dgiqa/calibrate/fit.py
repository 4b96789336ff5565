"""Scores and labels become a strictly increasing map between them, a threshold, and figures about both.

All labels are f64 [n] in [0, 1]. A picture's score is the mean over its tiles, and the map applies to every tile, so
that it is fitted as it is used: the mean of a piecewise linear function is linear in the values at its knots.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from dgiqa import metrics
from dgiqa.dtypes import Bool, Float64, Floating, Index
from dgiqa.meaning import Meaning

Knots = tuple[tuple[float, float], ...]

MOST_KNOTS = 12
FOLDS = 5
SMOOTHING = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # weight of the map's bends against the labels
LEAST_SLOPE = 0.02  # the slope where the labels do not rise, so that scores stay in order
RESAMPLES = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Point:
    """The effect of a threshold: pictures that score at least as much pass.

    precision: share of good ones among those that pass; recall: share of the good ones that pass; passed: of all.
    """

    threshold: float
    precision: float
    recall: float
    passed: float

    def as_dict(self) -> dict[str, float]:
        return {name: round(value, 4) for name, value in asdict(self).items()}


def fit_map(tiles: Sequence[Floating], labels: Float64) -> Knots:
    """A map of tile scores (f32 [tiles] per picture) whose means are nearest to the labels: its knots.

    It rises strictly from score 0 to 1; cross-validation decides how smooth it is. Needs scipy.
    """
    x = _knots_at(tiles)
    # How much every knot's value counts in every picture's mean: f64 [n, knots]
    basis = np.array([[np.interp(scores, x, hat).mean() for hat in np.eye(len(x))] for scores in tiles])
    bends = _bends(x)

    def predict(train: Index, test: Index, strength: float) -> Float64:
        return basis[test] @ _rising(basis[train], labels[train], bends, x, strength)

    best = min(SMOOTHING, key=lambda s: metrics.rmse(cross_validated(labels, lambda a, b: predict(a, b, s)), labels))
    y = _rising(basis, labels, bends, x, best)
    return tuple(zip(x.tolist(), y.tolist(), strict=True))


def map_out_of_fold(tiles: Sequence[Floating], labels: Float64) -> Float64:
    """Scores of every picture by a map that was fitted to the others: f64 [n]."""

    def predict(train: Index, test: Index) -> Float64:
        meaning = Meaning(knots=fit_map([tiles[i] for i in train], labels[train]))
        return np.array([meaning.mapped(np.asarray(tiles[i], np.float32)).mean(dtype=np.float64) for i in test])

    return cross_validated(labels, predict)


def cross_validated(labels: Float64, predict: Callable[[Index, Index], Float64]) -> Float64:
    """predict(indices to fit to, indices to predict) for every fold -> predictions f64 [n,...], as it gives them.

    Folds are the same every time, and each has good and bad pictures.
    """
    order = np.argsort(labels + np.random.default_rng(0).uniform(0, 1e-9, len(labels)))
    fold = np.empty(len(labels), np.intp)
    fold[order] = np.arange(len(labels)) % FOLDS
    parts = [predict(np.flatnonzero(fold != number), np.flatnonzero(fold == number)) for number in range(FOLDS)]
    return np.concatenate(parts)[np.argsort(np.argsort(fold, kind="stable"), kind="stable")]


def srocc_interval(scores: Float64, labels: Float64) -> tuple[float, float]:
    """The interval that holds SROCC in CONFIDENCE of resamples of the pictures."""
    draws = np.random.default_rng(0).integers(0, len(labels), (RESAMPLES, len(labels)))
    found = np.array([metrics.srocc(scores[draw], labels[draw]) for draw in draws])
    low, high = np.nanquantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def labels_needed(n: int, interval: tuple[float, float], half_width: float) -> int:
    """About how many labels bring the interval to +- half_width: it narrows with their square root."""
    low, high = interval
    return math.ceil(n * ((high - low) / 2 / half_width) ** 2)


def spread(predicted: Float64, labels: Float64, share: float = 0.8) -> float:
    """Half the width of the interval around predictions that holds that share of labels."""
    return float(np.quantile(np.abs(predicted - labels), share))


def curve(scores: Float64, good: Bool) -> list[Point]:
    """Precision and recall at every threshold that separates these pictures, the lowest threshold first."""
    order = np.argsort(-scores, kind="stable")
    hits, thresholds = np.cumsum(good[order]), scores[order]
    last = np.append(np.diff(thresholds) < 0, True)  # the last of pictures that score the same
    points = [
        Point(float(thresholds[i]), hits[i] / (i + 1), hits[i] / good.sum(), (i + 1) / len(scores))
        for i in np.flatnonzero(last)
    ]
    return points[::-1]


def threshold_for(points: Sequence[Point], *, precision: float | None = None, recall: float | None = None) -> Point:
    """The lowest threshold with that precision, or the highest with that recall. Raises ValueError if there is none."""
    if (precision is None) == (recall is None):
        raise ValueError("give a precision or a recall, and not both")
    if precision is not None:
        found = [p for p in points if p.precision >= precision]
        if not found:
            best = max(points, key=lambda p: p.precision)
            raise ValueError(
                f"no threshold has a precision of {precision:g}; the highest is {best.precision:.2f}, at "
                f"{best.threshold:.3f}, where {best.recall:.0%} of the good pictures pass"
            )
        return found[0]
    assert recall is not None
    return [p for p in points if p.recall >= recall][-1]


def _knots_at(tiles: Sequence[Floating]) -> Float64:
    """Where the map may bend: 0, 1, and quantiles of the pictures' scores, fewer where there are few pictures."""
    means = np.array([np.mean(each, dtype=np.float64) for each in tiles])
    count = int(np.clip(len(means) // 5, 3, MOST_KNOTS))
    inner = np.quantile(means, np.linspace(0.02, 0.98, count))
    kept = [0.0]
    for x in inner:
        if kept[-1] + 0.02 < x < 0.98:
            kept.append(float(x))
    return np.array([*kept, 1.0])


def _bends(x: Float64) -> Float64:
    """Changes of slope between neighbouring pieces: f64 [knots - 2, knots]."""
    h = np.diff(x)
    rows = np.zeros((max(len(x) - 2, 0), len(x)))
    for i in range(len(rows)):
        rows[i, i : i + 3] = 1 / h[i], -1 / h[i] - 1 / h[i + 1], 1 / h[i + 1]
        rows[i] *= math.sqrt((h[i] + h[i + 1]) / 2)
    return rows


def _rising(basis: Float64, labels: Float64, bends: Float64, x: Float64, strength: float) -> Float64:
    """Values at the knots: least squares, rising from at least 0 to at most 1."""
    from scipy.optimize import nnls

    steps = np.tril(np.ones((len(x), len(x))))  # values are running sums of steps, none of them negative
    rows = np.concatenate([basis @ steps / math.sqrt(len(labels)), math.sqrt(strength) * (bends @ steps)])
    slack = np.zeros((len(rows), 1))
    whole = 1e3 * np.ones((1, len(x) + 1))  # all steps and the slack above them are 1 together
    wanted = np.concatenate([labels / math.sqrt(len(labels)), np.zeros(len(bends)), [1e3]])
    found, _ = nnls(np.concatenate([np.concatenate([rows, slack], 1), whole]), wanted, maxiter=1000)
    values: Float64 = np.cumsum(found[:-1])
    return np.clip((1 - LEAST_SLOPE) * values + LEAST_SLOPE * x, 0, 1)
