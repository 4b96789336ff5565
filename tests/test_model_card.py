"""The model card: its figures on scores whose answer is known, its gates with a sabotaged model, and one quick run."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

if find_spec("piq") is None:  # found, not imported: that takes seconds, and torchvision may need its ops declared
    pytest.skip("piq is not installed: pip install '.[train]'", allow_module_level=True)
sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import classic_metrics
import model_card
from model_card import OURS, WITHOUT_DEPTH, Evaluation, Model, Picture

from recipes.small.distortions import TYPES

Float = NDArray[np.float64]
METRICS = ("mdsi", "haarpsi", "gmsd", "dss", "fsim", "vsi", "ms_ssim")


def synthetic_test(scores: Float, labels: Float, **others: Float) -> Evaluation:
    """A test set of those scores and labels [P,30,6], whose full-reference metrics are the labels."""
    pictures = tuple(Picture(f"p{i}", np.zeros((8, 8, 3), np.uint8)) for i in range(len(labels)))
    measured = dict.fromkeys(METRICS, labels[..., 1:])
    return Evaluation(pictures, TYPES, labels, measured, {OURS: scores, **others})


@pytest.fixture
def labels() -> Float:
    """Labels [5,30,6] that fall with the level; the first level of a mild type is above the last of a strong one."""
    rng = np.random.default_rng(0)
    falling = 1 - np.cumsum(rng.uniform(0.02, 0.18, (5, 30, 6)), axis=-1)
    return np.concatenate([np.ones((5, 30, 1)), falling[..., 1:]], axis=-1)


def gates(test: Evaluation, depth: tuple[float, float] | None = (0.8, 0.6)) -> dict[str, model_card.Gate]:
    figures = {name: model_card.figures_of(scores, test) for name, scores in test.scores.items()}
    return {gate.measure: gate for gate in model_card.gates_of(figures, depth)}


def peers(rng: np.random.Generator) -> dict[str, Float]:
    return {name: rng.random((5, 30, 6)) for name in classic_metrics.PEERS}


def test_order_counts_neighbours_and_whole_rows_and_no_tie() -> None:
    assert model_card.in_order(np.array([[5.0, 4, 3, 2, 1]])) == (1, 1)
    assert model_card.in_order(np.array([[5.0, 4, 3, 2, 1], [5, 4, 4, 2, 1]])) == (7 / 8, 1 / 2)
    assert model_card.in_order(np.array([[1.0, 2, 3, 4, 5]])) == (0, 0)


def test_overlap_tells_separated_from_mixed_scores() -> None:
    rng = np.random.default_rng(1)
    separated = np.column_stack([rng.normal(0.9, 0.01, 20), rng.normal(0.3, 0.05, (20, 5))])
    mixed = rng.normal(0.5, 0.1, (200, 6))
    clear, none = model_card.separation(separated), model_card.separation(mixed)
    assert clear is not None
    assert clear["all_levels"] < 0.01
    assert none is not None
    assert none["all_levels"] > 0.85
    assert model_card.separation(separated[:1]) is None


def test_a_model_that_agrees_with_the_labels_passes_every_gate(labels: Float) -> None:
    rng = np.random.default_rng(2)
    sharp = labels.copy()
    sharp[..., 0] = 1.5 + rng.normal(0, 0.01, (5, 1))  # pristine pictures stand clear
    assert all(gate.met for gate in gates(synthetic_test(sharp, labels, **peers(rng))).values())


@pytest.mark.parametrize("sabotage", ["shuffled", "reversed", "constant for six types", "one picture out of order"])
def test_a_sabotaged_model_fails_its_gate(labels: Float, sabotage: str) -> None:
    rng = np.random.default_rng(3)
    scores = labels.copy()
    failing = "SROCC against pseudo-MOS"
    if sabotage == "shuffled":
        scores = rng.permuted(scores.reshape(-1)).reshape(scores.shape)
    elif sabotage == "reversed":
        scores = -scores
    elif sabotage == "constant for six types":
        scores[:, :6] = scores[:, :6].mean(-1, keepdims=True)
        failing = "KADID types (of 25) with neighbouring levels in order >= 90 % of the time"
    else:
        scores[0, :6, 2] = scores[0, :6, 1]  # a tie in one of five pictures: 80 % of rows, 95 % of neighbours
        failing = "KADID types (of 25) with all five levels in order >= 90 % of the time"
    found = gates(synthetic_test(scores, labels, **peers(rng)))
    assert not found[failing].met
    assert found[failing].value is not None


def test_what_was_not_measured_is_never_called_met(labels: Float) -> None:
    found = gates(synthetic_test(labels, labels), depth=None)
    for name in classic_metrics.PEERS:
        assert found[f"SROCC ahead of {name}"] == model_card.Gate(f"SROCC ahead of {name}", ">= 0.15", None, False)
    assert not found['depth: rank correlation ahead of "lower is nearer"'].met


def test_a_peer_as_good_as_the_model_fails_the_margin_and_unscored_pictures_are_counted(labels: Float) -> None:
    peer = labels.copy()
    peer[0, 0, 1] = np.nan
    test = synthetic_test(labels, labels, NIQE=peer)
    assert model_card.figures_of(peer, test)["unscored"] == 1
    assert not gates(test)["SROCC ahead of NIQE"].met


def test_labels_are_one_for_pristine_and_fall_with_the_level() -> None:
    values = np.random.default_rng(4).normal(size=(3, 4, 5, 2)) - np.arange(5)[:, None]
    labels = model_card.pseudo_mos(values)
    assert labels.shape == (3, 4, 6)
    assert (labels[..., 0] == 1).all()
    assert (np.diff(labels, axis=-1) < 0).all()


def test_failures_are_the_largest_rank_errors_at_most_two_of_a_type(labels: Float) -> None:
    scores = labels.copy()
    scores[2, 7, 3] = 9.0  # ranked best of all
    test = synthetic_test(scores, labels)
    chosen = model_card.failures_of(test)
    assert chosen[0] == (2, 7, 3)
    assert model_card.rank_errors(test)[2, 7, 2] > 0
    assert max(np.bincount([kind for _, kind, _ in chosen])) <= 2


def test_kept_values_are_computed_once_per_pixels(tmp_path: Path) -> None:
    calls = []

    def compute() -> dict[str, Float]:
        calls.append(1)
        return {"values": np.arange(3.0)}

    for _ in range(2):
        assert model_card.kept(tmp_path / "x.npz", compute)["values"].tolist() == [0, 1, 2]
    assert len(calls) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["x.npz"]


def test_a_quick_run_writes_the_whole_card(tmp_path: Path) -> None:
    seen = []

    def score(images: NDArray[np.uint8]) -> Float:
        seen.append(images.shape)
        return np.linspace(0.9, 0.1, len(images))

    model = Model("fake@000000000000", score)
    record = model_card.build_card(model, score, tmp_path / "docs", tmp_path, tmp_path / "work", quick=True)
    assert seen == [(16, 176, 176, 3)] * 2
    assert {file.name for file in (tmp_path / "docs").iterdir()} == {"model-card.md", "model-card.png", "failures.jpg"}
    text = (tmp_path / "docs" / "model-card.md").read_text(encoding="utf-8")
    assert "fake@000000000000" in text
    assert "A quick run" in text
    assert "not trained on human opinion" in text
    assert "Not measured: BRISQUE, NIQE, PIQE." in text
    assert "nan" not in text.lower()
    stored = json.loads((tmp_path / "model-card.json").read_text())
    assert stored["figures"][OURS]["types"]["jpeg"]["levels_in_order"] == 1
    assert stored["figures"][WITHOUT_DEPTH]["srocc"] == record["figures"][OURS]["srocc"]
    assert 0 < len(stored["failures"]) <= 6


def test_the_card_in_the_docs_says_what_its_json_says(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    model_card.main(["--text-only", "--results", str(root / "bench" / "results"), "--out", str(tmp_path)])
    written = (tmp_path / "model-card.md").read_text(encoding="utf-8")
    assert written == (root / "docs" / "model-card.md").read_text(encoding="utf-8"), "run the bench with --text-only"


def test_the_card_says_plainly_what_depth_is_worth(tmp_path: Path) -> None:
    results = Path(model_card.RESULTS) / "model-card.json"
    record = json.loads(results.read_text())
    assert "hardly worth a second backbone" in model_card.card_text(record)
    assert "about as good as the guess" in model_card.card_text(record)
    record["figures"][OURS]["srocc"] += 0.05
    record["depth"]["rank_correlation"] = 0.6
    text = model_card.card_text(record)
    assert "That is a gain" in text
    assert "worse than the guess" in text
    del record["figures"][WITHOUT_DEPTH]
    assert "Is depth earning" not in model_card.card_text(record)
