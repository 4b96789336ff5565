"""Opinions become presets, an interval and thresholds; the card's measures run on a few pictures."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("av")

from dgiqa.bundle import Bundle, load_bundle
from dgiqa.nn.network import DGIQA, SMALL
from dgiqa.nn.weights import save_weights
from dgiqa.spec import DEPTH_FILE
from recipes.small import depth_car, meaning, measures, peers
from recipes.small.bundle import meaning_of
from recipes.small.reasons import REASONS


@pytest.fixture
def biq(tmp_path: Path) -> Path:
    """A BIQ2021 of thirty photographs and ten test photographs; every third is grey."""
    root, rng = tmp_path / "biq", np.random.default_rng(0)
    (root / "Images").mkdir(parents=True)
    for title, count in (("Train", 30), ("Test", 10)):
        with (root / f"{title} (Images and MOS).csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("Image Name", "MOS"))
            for n in range(count):
                rgb = rng.integers(0, 255, (64, 64, 1 if n % 3 == 0 else 3), np.uint8)
                Image.fromarray(np.broadcast_to(rgb, (64, 64, 3))).save(root / "Images" / f"{title}{n}.jpg")
                rows.writerow((f"{title}{n}.jpg", f"{0.2 + 0.7 * n / count:.3f}"))
    return root


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    folder = tmp_path / "clean"
    folder.mkdir()
    ramp = np.add.outer(np.arange(96), np.arange(128)).astype(np.uint8)
    Image.fromarray(np.stack([ramp, ramp[::-1], ramp[:, ::-1]], -1)).save(folder / "ramp.png")
    return folder


def test_presets_keep_their_promises_and_rise():
    rng = np.random.default_rng(0)
    wanted = rng.uniform(0.1, 0.9, 2000)
    found = wanted + rng.normal(0, 0.1, 2000)
    presets = meaning.presets_of(found, wanted, np.zeros(10))
    fair, good = wanted >= measures.FAIR, wanted >= measures.GOOD
    assert list(presets) == ["upload", "archive", "curation"]
    assert list(presets.values()) == sorted(presets.values())
    assert (found[good] >= presets["upload"]).mean() >= 0.98
    assert (found[good] >= presets["upload"] + 0.02).mean() < 0.98
    assert fair[found >= presets["archive"]].mean() >= 0.95
    assert good[found >= presets["curation"]].mean() >= 0.9
    assert good[found >= presets["curation"] - 0.02].mean() < 0.9


def test_upload_rises_where_the_worst_would_pass_but_keeps_what_is_good():
    rng = np.random.default_rng(0)
    wanted = rng.uniform(0.1, 0.9, 2000)
    found = wanted + rng.normal(0, 0.1, 2000)
    good = found[wanted >= measures.GOOD]

    def upload(worst: float) -> float:
        return meaning.presets_of(found, wanted, np.full(10, worst))["upload"]

    assert upload(upload(0)) == pytest.approx(upload(0) + 0.01)
    assert (good >= upload(1)).mean() == pytest.approx(0.95, abs=0.01)


def test_a_share_that_no_score_reaches_gives_the_highest_threshold_there_is():
    rng = np.random.default_rng(1)
    presets = meaning.presets_of(rng.uniform(0, 1, 500), rng.uniform(0, 1, 500), np.zeros(10))
    assert 0.8 < presets["curation"] < 1


@pytest.mark.parametrize(
    ("probability", "truth", "threshold"),
    [
        ((0.9, 0.8, 0.3, 0.1), (1, 1, 0, 0), 0.55),
        ((0.9, 0.8, 0.6, 0.3, 0.1), (1, 1, 0.5, 0, 0), 0.55),
        ((0.9, 0.5, 0.5, 0.1), (0, 1, 1, 0), 0.3),
        ((0.9, 0.1), (0, 0), 1.0),
        ((0.9, 0.8, 0.7, 0.6, 0.1), (0, 0, 0, 1, 1), 1.0),  # right less than half of the time wherever it lies
    ],
)
def test_the_best_f1(probability, truth, threshold):
    assert meaning.best_f1(np.array(probability), np.array(truth, float)) == pytest.approx(threshold)


def test_average_precision_leaves_out_what_is_undecided():
    found = measures.average_precision(np.array([0.9, 0.8, 0.7, 0.6]), np.array([1, 0.5, 0, 1]))
    assert found == pytest.approx((1 + 2 / 3) / 2)


def test_recall_and_precision_of_what_is_told():
    told = np.array([True, True, True, False, False])
    found = measures._found_and_right(told, np.array([1, 0.5, 0, 1, 0]))
    assert found == {"recall": 0.5, "precision": 0.5}


def test_meaning_goes_into_a_manifest(biq: Path, clean: Path, telling_bundle: Bundle, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(meaning, "FEWEST", 3)
    monkeypatch.setattr(measures, "BAD", ("gaussian_blur",))
    out = tmp_path / "meaning.json"
    command = f"--bundle {telling_bundle.path} --biq {biq} --clean {clean} --most 1 --rounds 1 --out {out}"
    assert meaning.main(command.split()) == 0
    stored = json.loads(out.read_text())
    assert stored["thresholds"].keys() == {"blur", "noise", "dark"}
    assert stored["evidence"]["opinions"] == 30  # of the training part only
    told = meaning_of(out, len(REASONS))
    assert told.presets == stored["presets"]
    assert 0 < told.interval < 1


def test_measures_of_opinions_count_what_passes(biq: Path, clean: Path, telling_bundle: Bundle, tmp_path: Path):
    out = tmp_path / "card.json"
    out.write_text('{"saves": "of another model"}')
    command = f"--bundle {telling_bundle.path} --biq {biq} --clean {clean} --only opinions --out {out}"
    assert measures.main(command.split()) == 0
    stored = json.loads(out.read_text())
    assert "saves" not in stored
    assert stored["presets"] == dict(telling_bundle.meaning.presets)
    passes = stored["opinions"]["passes"]
    assert {name: passes[name]["pictures"] for name in ("good", "fair", "bad")} == {"good": 2, "fair": 3, "bad": 5}
    assert passes["good, black and white"]["pictures"] == 1
    curve = passes["good"]["curve"]
    assert len(curve) == 101
    assert curve[0] == 1
    assert curve == sorted(curve, reverse=True)
    assert np.sum(stored["opinions"]["joint"]) == 10


def test_fine_faults_are_made_at_full_size_and_the_middle_is_cut_out_of_what_they_leave(telling_bundle: Bundle):
    seen = []

    class Judge:
        scorer = SimpleNamespace(bundle=telling_bundle)

        def __call__(self, pictures):
            seen.append([a.copy() for a in pictures])
            return np.array([a.std() for a in seen[-1]])

    large = np.random.default_rng(2).integers(0, 256, (560, 700, 3), np.uint8)
    found = measures.details(Judge(), [large])
    assert (found["short_side"], found["seen_at"]) == (560, telling_bundle.preprocess.short_side)
    for whole, square in zip(seen[::2], seen[1::2], strict=True):
        assert np.array_equal(square[0], whole[0][24:536, 94:606])
    blurs = [found["rows"][name]["whole"] for name in ("none", "blur, sigma 1", "blur, sigma 2", "blur, sigma 4")]
    assert blurs == sorted(blurs, reverse=True)
    assert found["rows"]["enlarged 4 times"]["whole"] < blurs[0] / 2


def test_lists_of_numbers_stand_on_one_line():
    value = {"a": [1, 2.5, -3e-7], "b": {"c": [[1, 2], [3, 4]], "d": ["x", "y"]}}
    text = measures.as_json(value)
    assert json.loads(text) == value
    assert '"a": [ 1, 2.5, -3e-07 ]' in text


def test_correlations_of_peers_have_an_interval_around_them():
    wanted = np.linspace(0, 1, 50)
    found = peers.correlations(wanted + np.random.default_rng(0).normal(0, 0.2, 50), wanted)
    assert found["pictures"] == 50
    assert found["interval"][0] < found["srocc"] < found["interval"][1]


def test_a_frame_of_a_photograph_has_nearly_one_score_by_three_decoders(photos, monkeypatch):
    pytest.importorskip("imageio_ffmpeg")
    monkeypatch.setattr(measures, "DECODED", {"libx264": {"crf": "23"}})
    found = measures.decoders(measures.Judge("small"), [photos["chelsea"], photos["coffee"]])
    assert found["libx264"]["frames"] == 2
    assert found["libx264"]["furthest"] <= 0.02


def test_networks_with_and_without_depth_car_answer_the_same_questions(biq: Path, clean: Path, tmp_path, monkeypatch):
    monkeypatch.setattr(depth_car, "NATURAL", ("haze",))
    monkeypatch.setattr(depth_car, "KADID_TYPES", ("jpeg", "white_noise"))
    files = {}
    for name, has_car in (("with", True), ("without", False)):
        network = DGIQA(dataclasses.replace(SMALL, reasons=len(REASONS), depth_car=has_car))
        save_weights(network, files.setdefault(name, tmp_path / f"{name}.safetensors"))
    asked: list[tuple[bool, int]] = []

    def darkness(network: DGIQA, pictures, index) -> np.ndarray:
        asked.append((network.config.depth_car, len(index)))
        return np.array([-float(pictures.rgb[0][i].mean()) for i in index])

    monkeypatch.setattr(depth_car, "predict", darkness)
    out = tmp_path / "found.json"
    roots = [
        "--root",
        str(biq),
        "--clean",
        str(clean),
        "--depth",
        str(load_bundle("small").file(DEPTH_FILE)),
        "--out",
        str(out),
    ]
    depth_car.main([*roots, "--with", str(files["with"]), "--without", str(files["without"])])
    found = json.loads(out.read_text())
    assert asked == [(True, 10), (True, 5), (True, 10), (False, 10), (False, 5), (False, 10)]
    assert found["pictures"] == {"opinions": 10, "natural": 5, "kadid": 10}
    assert found["with"] == found["without"]
    assert found["with"][0]["natural"] > 0.7  # haze brightens, and the worse it is the lower is this score
