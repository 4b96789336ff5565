"""Compare two lists of scores: SROCC, KROCC, PLCC, RMSE, and how much two densities overlap.

Predicted and wanted scores are f [n], n >= 2, finite, in any unit; both must rise with quality (flip DMOS first).
Only KROCC and the logistic fit need scipy.
Paper (arXiv 2505.24002): SROCC and raw PLCC in section 4.2, density separation in 5.2.
"""

import math
import warnings
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from dgiqa.dtypes import Float64
from dgiqa.extras import load


def srocc(predicted: ArrayLike, wanted: ArrayLike) -> float:
    """Spearman's rank correlation in [-1, 1], ties at their mean rank; NaN if one list is constant."""
    x, y = _pair(predicted, wanted)
    return _correlation(ranks(x), ranks(y))


def plcc(predicted: ArrayLike, wanted: ArrayLike) -> float:
    """Pearson's correlation in [-1, 1], without any mapping; NaN when one list is constant."""
    return _correlation(*_pair(predicted, wanted))


def rmse(predicted: ArrayLike, wanted: ArrayLike) -> float:
    """Root of the mean squared difference, in the unit of the scores."""
    x, y = _pair(predicted, wanted)
    return float(np.sqrt(np.mean((x - y) ** 2)))


def krocc(predicted: ArrayLike, wanted: ArrayLike) -> float:
    """Kendall's tau-b in [-1, 1], which accounts for ties; NaN when one list is constant. ImportError without scipy."""
    x, y = _pair(predicted, wanted)
    stats = load("scipy.stats", "Kendall's tau", "scipy", "calibrate", kind=ImportError)
    return float(stats.kendalltau(x, y).statistic)


def logistic4(x: ArrayLike, top: float, bottom: float, centre: float, width: float) -> Float64:
    """VQEG's curve (top - bottom) / (1 + exp(-(x - centre) / |width|)) + bottom."""
    slope = (np.asarray(x, np.float64) - centre) / max(abs(width), 1e-12)
    return (top - bottom) / (1 + np.exp(-np.clip(slope, -500, 500))) + bottom


def logistic_mapped(predicted: ArrayLike, wanted: ArrayLike) -> Float64:
    """Predictions f64 [n] on the scale of the wanted scores, by `logistic4` fitted to these pairs by least squares.

    Take plcc or rmse of the result to compare with works that map first; DGIQA's own PLCC is raw. If the fit does not
    converge or has fewer than four pairs, the best straight line is used. Raises ImportError without scipy.
    """
    optimize = load("scipy.optimize", "the logistic fit", "scipy", "calibrate", kind=ImportError)
    x, y = _pair(predicted, wanted)
    start = (y.max(), y.min(), x.mean(), max(x.std() / 4, 1e-6))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optimize.OptimizeWarning)  # an unknown covariance: it is not used
            fitted, _ = optimize.curve_fit(logistic4, x, y, p0=start, maxfev=20_000)
    except (RuntimeError, TypeError):  # scipy gives up, or has fewer points than parameters
        centred = x - x.mean()
        slope = float(centred @ y) / max(float(centred @ centred), 1e-300)
        line: Float64 = centred * slope + float(y.mean())
        return line
    return logistic4(x, *fitted)


def overlap(first: ArrayLike, second: ArrayLike) -> float:
    """Area under the lower of two Gaussians fitted to two score lists f [n] and f [m], in [0, 1] (paper 5.2).

    0 = the two kinds of images can be separated without error, 1 = not at all. The paper prints no formula; this is
    the usual overlapping coefficient, exact up to the error function.
    """
    a, b = (NormalDist(values.mean(), max(values.std(), 1e-9)) for values in map(_checked, (first, second)))
    return min(a.overlap(b), 1.0)


def histogram_overlap(first: ArrayLike, second: ArrayLike, bins: int = 20) -> float:
    """Shared area of the two lists' histograms over their joint range, in [0, 1]: `overlap` without the Gaussians."""
    a, b = (_checked(scores) for scores in (first, second))
    span = min(a.min(), b.min()), max(a.max(), b.max())
    shares = [np.histogram(scores, bins, span)[0] / len(scores) for scores in (a, b)]
    return float(np.minimum(*shares).sum())


def ranks(scores: ArrayLike) -> Float64:
    """Ranks f64 [n] from 1, equal scores at their mean rank."""
    _, inverse, counts = np.unique(np.asarray(scores), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean_rank: Float64 = (last - (counts - 1) / 2)[inverse]
    return mean_rank


def _pair(predicted: ArrayLike, wanted: ArrayLike) -> tuple[Float64, Float64]:
    x, y = _checked(predicted), _checked(wanted)
    if len(x) != len(y):
        raise ValueError(f"got {len(x)} predicted and {len(y)} wanted scores; they must be pairs")
    return x, y


def _checked(scores: ArrayLike) -> Float64:
    values = np.asarray(scores, np.float64).ravel()
    if len(values) < 2 or not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise ValueError(f"got {len(values)} scores, {bad} of them NaN or infinite; wanted two or more finite ones")
    return values


def _correlation(x: Float64, y: Float64) -> float:
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip((x / np.linalg.norm(x)) @ (y / np.linalg.norm(y)), -1, 1))
