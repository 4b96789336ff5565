"""Maps rise and find the labels' scale, thresholds keep what they promise, layers move as far as labels carry them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy")

from dgiqa import metrics
from dgiqa.calibrate import adapt, fit
from dgiqa.calibrate.adapt import Layer, Seen, fit_layer
from dgiqa.calibrate.labels import LabelError, read_labels
from dgiqa.meaning import Meaning


def tiles(n: int, seed: int = 0) -> list[np.ndarray]:
    """Tile scores of n pictures, which agree within a picture."""
    random = np.random.default_rng(seed)
    return [
        np.clip(random.normal(centre, 0.03, random.integers(1, 9)), 0.01, 0.99).astype(np.float32)
        for centre in random.uniform(0.2, 0.8, n)
    ]


def means(of: list[np.ndarray]) -> np.ndarray:
    return np.array([each.mean(dtype=np.float64) for each in of])


def bent(scores: np.ndarray) -> np.ndarray:
    """Some other scale: an S that starts late."""
    return 0.1 + 0.8 / (1 + np.exp(-12 * (scores - 0.6)))


@pytest.mark.parametrize("n", [20, 60, 400])
def test_a_map_finds_another_scale_and_rises_strictly(n: int) -> None:
    scores = tiles(n)
    labels = np.clip(bent(means(scores)) + np.random.default_rng(1).normal(0, 0.05, n), 0, 1)
    meaning = Meaning(knots=fit.fit_map(scores, labels))
    parsed = Meaning(knots=tuple(meaning.knots))
    everywhere = parsed.mapped(np.linspace(0, 1, 1001).astype(np.float32))
    assert (np.diff(everywhere) > 0).all()
    assert 0 <= everywhere[0] < everywhere[-1] <= 1
    fresh = tiles(300, seed=2)
    mapped = np.array([parsed.mapped(each).mean() for each in fresh])
    before, after = metrics.rmse(means(fresh), bent(means(fresh))), metrics.rmse(mapped, bent(means(fresh)))
    assert after < {20: 0.08, 60: 0.05, 400: 0.02}[n] < before
    assert metrics.srocc(mapped, means(fresh)) > 0.998


def test_a_map_of_labels_that_say_nothing_is_nearly_flat_and_still_rises() -> None:
    scores = tiles(80)
    labels = np.random.default_rng(3).uniform(0.3, 0.7, 80)
    y = np.array(fit.fit_map(scores, labels))[:, 1]
    assert (np.diff(y) > 0).all()
    assert np.ptp(y) < 0.35


def test_good_and_bad_become_the_chance_of_good() -> None:
    scores = tiles(600)
    chance = 1 / (1 + np.exp(-14 * (means(scores) - 0.5)))
    labels = (np.random.default_rng(4).uniform(size=600) < chance).astype(float)
    meaning = Meaning(knots=fit.fit_map(scores, labels))
    mapped = np.array([meaning.mapped(each).mean() for each in scores])
    assert metrics.rmse(mapped, chance) < 0.08


def test_the_interval_holds_its_share_and_narrows_with_labels() -> None:
    random = np.random.default_rng(5)
    scores = random.uniform(size=200)
    labels = scores + random.normal(0, 0.2, 200)
    few, many = fit.srocc_interval(scores[:50], labels[:50]), fit.srocc_interval(scores, labels)
    assert few[0] < metrics.srocc(scores[:50], labels[:50]) < few[1]
    assert np.ptp(many) < 0.7 * np.ptp(few)
    needed = fit.labels_needed(50, few, float(np.ptp(few)) / 4)
    assert needed == 200
    assert fit.spread(scores, labels) == pytest.approx(0.2 * 1.28, rel=0.2)


def test_thresholds_keep_the_precision_or_recall_that_was_wanted() -> None:
    random = np.random.default_rng(6)
    scores = random.uniform(size=400)
    good = random.uniform(size=400) < scores
    points = fit.curve(scores, good)
    assert [p.threshold for p in points] == sorted(p.threshold for p in points)
    assert (points[0].recall, points[0].passed) == (1, 1)
    for wanted in (0.6, 0.8):
        chosen = fit.threshold_for(points, precision=wanted)
        passing = scores >= chosen.threshold
        assert good[passing].mean() == pytest.approx(chosen.precision)
        assert chosen.precision >= wanted
    chosen = fit.threshold_for(points, recall=0.95)
    passing = scores >= chosen.threshold
    assert (good & passing).sum() / good.sum() == pytest.approx(chosen.recall)
    assert chosen.recall >= 0.95
    assert not any(p.recall >= 0.95 for p in points if p.threshold > chosen.threshold)
    with pytest.raises(ValueError, match="the highest is"):
        fit.threshold_for(fit.curve(scores, scores < 0.5), precision=0.99)
    with pytest.raises(ValueError, match="not both"):
        fit.threshold_for(points, recall=0.5, precision=0.5)


def test_pictures_with_one_score_share_one_threshold() -> None:
    points = fit.curve(np.array([0.2, 0.5, 0.5, 0.9]), np.array([False, True, False, True]))
    assert [(p.threshold, p.passed) for p in points] == [(0.2, 1.0), (0.5, 0.75), (0.9, 0.25)]


WEIGHTS = np.random.default_rng(7).normal(0, 0.4, 24)


SHIPPED = Layer(WEIGHTS, 0.0)


def seen(n: int, seed: int = 0) -> list[Seen]:
    """Pictures by a network of 24 features whose shipped layer is SHIPPED."""
    random = np.random.default_rng(seed)
    found = []
    for centre in random.normal(size=(n, 24)):
        features = (centre + random.normal(0, 0.2, (4, 24))).astype(np.float32)
        found.append(Seen((1 / (1 + np.exp(-features @ WEIGHTS))).astype(np.float32), features))
    return found


def opinion(pictures: list[Seen], weights: np.ndarray, noise: float = 0.0, seed: int = 1) -> np.ndarray:
    logits = np.array([p.features.mean(0) @ weights for p in pictures]) + 0.3
    logits += np.random.default_rng(seed).normal(0, noise, len(pictures))
    return 1 / (1 + np.exp(-logits))


def test_a_layer_learns_what_the_shipped_one_does_not_see() -> None:
    other = WEIGHTS + 0.5 * np.random.default_rng(8).normal(size=24)
    pictures, fresh = seen(300), seen(300, seed=9)
    layer = fit_layer(pictures, opinion(pictures, other, 0.3), SHIPPED)
    wanted = opinion(fresh, other)
    before = metrics.srocc([p.scores.mean() for p in fresh], wanted)
    assert metrics.srocc([layer.score(p) for p in fresh], wanted) > max(0.97, before + 0.05)
    assert np.isfinite(layer.strength)


def test_a_layer_that_is_right_already_is_left_alone() -> None:
    pictures, fresh = seen(40), seen(200, seed=9)
    layer = fit_layer(pictures, opinion(pictures, 2 * WEIGHTS, 0.8), SHIPPED)
    assert layer.weight @ WEIGHTS / (WEIGHTS @ WEIGHTS) == pytest.approx(2, rel=0.35)
    found = metrics.srocc([layer.score(p) for p in fresh], opinion(fresh, WEIGHTS))
    assert found > 0.95


def test_labels_of_good_and_bad_are_learnt_and_perfect_ones_do_no_harm() -> None:
    pictures = seen(200)
    labels = (opinion(pictures, WEIGHTS) > 0.5).astype(float)
    layer = fit_layer(pictures, labels, SHIPPED)
    scores = np.array([layer.score(p) for p in pictures])
    assert np.isfinite(layer.weight).all()
    assert scores[labels == 1].mean() > 0.8
    assert scores[labels == 0].mean() < 0.2


def test_what_is_told_of_a_layer_is_of_pictures_it_has_not_seen() -> None:
    pictures = seen(60)
    labels = np.random.default_rng(10).uniform(size=60)  # nothing to learn
    assert abs(metrics.srocc(adapt.adapted_out_of_fold(pictures, labels, SHIPPED), labels)) < 0.35


def test_a_constant_feature_does_not_matter() -> None:
    pictures = [Seen(p.scores, np.concatenate([p.features, np.full((4, 1), 7, np.float32)], 1)) for p in seen(60)]
    layer = fit_layer(pictures, opinion(pictures, np.append(WEIGHTS, 0)), Layer(np.append(WEIGHTS, 0), 0.0))
    assert layer.weight[-1] == 0


def table(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "values", "scale", "binary"),
    [
        ("image,score\na,1\nb,5\nc,3\n", [0, 1, 0.5], (1, 5), False),
        ("\ufeffa,0.25\nb,0.5\n", [0.25, 0.5], (0, 1), False),
        ("a,20\nb,90\n", [0.2, 0.9], (0, 100), False),
        ("id,MOS,image\n1,7,a\n2,10,b\n", [0.7, 1], (0, 10), False),
        ("a;good\nb;Bad\n", [1, 0], (0, 1), True),
        ("image\tkeep?\na\tyes\nb\tno\n", [1, 0], (0, 1), True),
        ("a,1\nb,0\n", [1, 0], (0, 1), True),
        ("a,1\nb,3\na,2\n\n", [0.125, 0.5], (1, 5), False),
    ],
)
def test_tables_are_read_as_people_write_them(
    text: str, values: list[float], scale: tuple[float, float], binary: bool, tmp_path: Path
) -> None:
    labels = read_labels(table(tmp_path, text))
    assert labels.values == pytest.approx(values)
    assert (labels.range, labels.binary) == (scale, binary)
    assert labels.images[:2] == ("a", "b")


def test_the_scale_can_be_given_and_turned(tmp_path: Path) -> None:
    path = table(tmp_path, "a,2\nb,8\n")
    assert read_labels(path, (0, 20)).values == pytest.approx([0.1, 0.4])
    turned = read_labels(path, lower_is_better=True)
    assert turned.values == pytest.approx([0.8, 0.2])
    assert [turned.own(v) for v in turned.values] == pytest.approx([2, 8])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no labels"),
        ("image,score\n", "no labels"),
        ("a,1\nb\n", "row 2: got 1 cells"),
        ("a,1\nb,two\n", "row 2: 'two' is not a label"),
        ("a,1\nb,nan\n", "row 2"),
        ("a,good\nb,0.5\n", "mixes"),
        ("a,-7\nb,2\n", "--range"),
        ("a,3\nb,3\n", "one label for all"),
    ],
)
def test_what_is_no_table_of_labels_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(LabelError, match=message):
        read_labels(table(tmp_path, text))
