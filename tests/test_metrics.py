"""The metrics agree with scipy, ties included, and two densities overlap by as much as they do."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from dgiqa.metrics import histogram_overlap, krocc, logistic4, logistic_mapped, overlap, plcc, ranks, rmse, srocc

stats = pytest.importorskip("scipy.stats")


def pairs(kind: str, n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=n)
    y = x + rng.normal(size=n)
    if kind == "ties":
        x, y = np.round(x), np.round(2 * y)
    if kind == "ties in one":
        y = np.sign(y)
    if kind == "reversed":
        y = -y
    return x, y


@pytest.mark.parametrize("kind", ["no ties", "ties", "ties in one", "reversed"])
@pytest.mark.parametrize("n", [2, 3, 10, 201])
def test_correlations_are_scipys(kind, n):
    x, y = pairs(kind, n)
    x[0] += np.ptp(x) == 0
    y[0] += np.ptp(y) == 0
    np.testing.assert_array_equal(ranks(x), stats.rankdata(x))
    assert srocc(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert krocc(x, y) == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-12)
    assert plcc(x, y) == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)


def test_krocc_is_fast_and_exact_for_the_largest_dataset():
    x, y = pairs("no ties", 39810)
    assert krocc(x, y) == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-12)


def test_perfect_and_constant_predictions():
    x = np.arange(5.0)
    for metric in (srocc, krocc, plcc):
        assert metric(x, x) == pytest.approx(1, abs=1e-12)
        assert metric(x, -x) == pytest.approx(-1, abs=1e-12)
        assert math.isnan(metric(np.ones(5), x))


def test_rmse_is_in_the_scores_unit():
    assert rmse([0, 3], [4, 0]) == pytest.approx(math.sqrt(12.5))


@pytest.mark.parametrize("metric", [srocc, krocc, plcc, rmse])
@pytest.mark.parametrize(("x", "y"), [([1], [1]), ([1, 2], [1, 2, 3]), ([1, math.nan], [1, 2])])
def test_what_is_not_pairs_of_numbers_is_refused(metric, x, y):
    with pytest.raises(ValueError, match="got"):
        metric(x, y)


def test_the_logistic_undoes_a_logistic():
    rng = np.random.default_rng(1)
    quality = rng.uniform(1, 5, 300)
    predicted = 0.5 + 0.1 * np.log((quality - 0.99) / (5.01 - quality))
    mapped = logistic_mapped(predicted, quality)
    assert plcc(predicted, quality) < 0.99
    assert plcc(mapped, quality) == pytest.approx(1, abs=1e-6)
    assert rmse(mapped, quality) < 1e-3


@pytest.mark.parametrize("kind", ["no ties", "ties", "reversed"])
def test_mapping_never_lowers_plcc_or_raises_rmse(kind):
    x, y = pairs(kind)
    mapped = logistic_mapped(x, y)
    assert plcc(mapped, y) >= abs(plcc(x, y)) - 1e-3
    assert rmse(mapped, y) <= np.std(y)
    assert np.isfinite(logistic_mapped(np.ones(9), np.arange(9.0))).all()
    np.testing.assert_allclose(logistic_mapped([1, 2, 3], [2, 4, 6]), [2, 4, 6])
    np.testing.assert_allclose(logistic_mapped([1, 1, 1], [2, 4, 6]), [4, 4, 4])


def test_logistic4_runs_from_bottom_to_top():
    np.testing.assert_allclose(logistic4([-1e9, 3, 1e9], 5, 1, 3, -0.5), [1, 3, 5])


@pytest.mark.parametrize(
    ("means", "deviations"),
    [((0, 1), (1, 1)), ((0, 0), (1, 3)), ((0.2, 0.9), (0.1, 0.3)), ((5, -2), (2, 0.5)), ((0, 0), (1, 1))],
)
def test_overlap_is_the_integral_of_the_lower_density(means, deviations):
    samples = [m + s * np.array([-1.0, 1.0]) for m, s in zip(means, deviations, strict=True)]
    x = np.linspace(-15, 20, 700_001)
    lower = np.minimum(*(stats.norm.pdf(x, m, s) for m, s in zip(means, deviations, strict=True)))
    assert overlap(*samples) == pytest.approx(lower.sum() * (x[1] - x[0]), abs=1e-5)
    assert overlap(*samples[::-1]) == pytest.approx(overlap(*samples), abs=1e-12)


def test_overlap_of_the_same_and_of_distant_scores():
    scores = np.random.default_rng(0).normal(size=50)
    for measure in (overlap, histogram_overlap):
        assert measure(scores, scores) == pytest.approx(1)
        assert measure(scores, scores + 50) == pytest.approx(0, abs=1e-9)
    assert overlap([0.5, 0.5], [0.5, 0.5]) == 1
    assert overlap([0.5, 0.5], [0.6, 0.6]) == 0


def test_histogram_overlap_of_halves():
    assert histogram_overlap([0, 0, 1, 1], [1, 1, 1, 1]) == 0.5


def test_metrics_load_neither_torch_nor_scipy():
    code = "import sys, dgiqa.metrics; sys.exit(bool({'torch', 'scipy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
