"""Evaluation trains on one part and tests on the other, says what the paper says beside it, and draws densities."""

from __future__ import annotations

import argparse
import csv
import pickle
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("scipy")
pytest.importorskip("matplotlib")
# ruff: noqa: E402 - the skips come before what needs them

from dgiqa.errors import DgiqaError
from dgiqa.image import decode
from dgiqa.nn import datasets, evaluate, plots, predict, train
from dgiqa.nn.checkpoints import load_dgiqa
from dgiqa.nn.datasets import DepthNetwork, IQADataset, load_dataset
from dgiqa.preprocess import cut_tiles, grid_windows, working_image
from dgiqa.spec import Preprocess

GREEN = DepthNetwork("green", lambda rgb: np.ascontiguousarray(rgb[..., 1]))


def write(path: Path, level: int, height: int = 230, width: int = 240) -> Path:
    """A noisy grey picture whose mean is `level`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(level).integers(-9, 10, (height, width, 3))
    cv2.imwrite(str(path), np.clip(level + noise, 0, 255).astype(np.uint8))
    return path


@pytest.fixture
def dataset(tmp_path) -> IQADataset:
    """12 pictures of four references; the score is the brightness."""
    lines = ["image,score,reference"]
    for i in range(12):
        write(tmp_path / "data" / f"{i:02}.png", 20 + 18 * i)
        lines.append(f"{i:02}.png,{i},r{i % 4}")
    (tmp_path / "data" / "labels.csv").write_text("\n".join(lines) + "\n")
    return load_dataset("csv", tmp_path / "data")


def brightness(paths):
    return np.array([decode(path.read_bytes()).mean() / 255 for path in paths])


class Mean(torch.nn.Module):
    """The score is a tile's mean, and each call is counted."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.calls = 0

    def forward(self, rgb, depth):
        self.calls += 1
        return torch.sigmoid(self.weight * (rgb + depth).mean((1, 2, 3)))


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_perfect_predictor_scores_one_on_every_seed(dataset):
    result = evaluate.evaluate(brightness, dataset, range(4))
    assert len(result.rows) == 4
    mean, median = result.summary().values()
    assert mean["srocc"] == pytest.approx(1)
    assert median["krocc"] == pytest.approx(1)
    assert mean["plcc"] > 0.999
    assert mean["rmse"] > mean["rmse_logistic"]
    upside_down = evaluate.evaluate(lambda paths: -brightness(paths), dataset, [0])
    assert upside_down.summary()["mean"]["srocc"] == pytest.approx(-1)


def test_each_seed_is_scored_on_its_test_part_only(dataset):
    """A predictor that is wrong on one reference is wrong exactly in the seeds that test it."""
    wrong = {r.path for r in dataset.records if r.reference == "r0"}
    result = evaluate.evaluate(lambda paths: [(-1 if p in wrong else 1) * brightness([p])[0] for p in paths], dataset)
    tested = [any(r.reference == "r0" for r in datasets.random_split(dataset, seed)[1].records) for seed in range(10)]
    assert [row["srocc"] < 0 for row in result.rows] == tested
    assert 0 < sum(tested) < 10


def test_the_protocol_trains_and_tests_on_disjoint_references(dataset):
    parts = {}

    def fit(training, seed):
        parts[seed] = {r.reference for r in training.records}

        def predict(paths):
            tested = {r.reference for r in dataset.records if r.path in set(paths)}
            assert tested
            assert tested.isdisjoint(parts[seed])
            return brightness(paths)

        return predict

    result = evaluate.run_protocol(fit, dataset, range(3))
    assert len(result.rows) == len(parts) == 3


def test_cross_dataset_uses_every_picture_and_finds_the_papers_figures(dataset):
    seen = []

    def predict(paths):
        seen.extend(paths)
        return brightness(paths)

    renamed = IQADataset("clive", dataset.records, 0, 1)
    assert evaluate.evaluate_cross(predict, renamed, "koniq10k").paper == (0.808, 0.834)
    assert len(seen) == 12
    assert evaluate.evaluate_cross(brightness, renamed, "koniq10k", "tcb").paper == (0.806, 0.828)
    assert evaluate.evaluate_cross(brightness, renamed).paper is None
    assert evaluate.evaluate(brightness, renamed, [0]).paper == (0.891, 0.910)


def test_the_official_test_part_is_scored_once_and_training_sees_the_official_rest(dataset):
    marked = [
        replace(r, split=("train", "validation", "test")[min(i // 6, 1) + (i > 8)])
        for i, r in enumerate(dataset.records)
    ]
    published = IQADataset("koniq10k", tuple(marked), 0, 1)
    scored = []

    def predict(paths):
        scored.extend(paths)
        return brightness(paths)

    result = evaluate.evaluate(predict, published, range(5), official=True)
    assert (result.name, len(result.rows), result.paper) == ("koniq10k, official split", 1, None)
    assert scored == [r.path for r in published.part("test").records]
    trained = []
    fit = lambda training, seed: trained.append(training) or brightness  # noqa: E731
    assert len(evaluate.run_protocol(fit, published, range(2), official=True).rows) == 2
    ablated = evaluate.run_protocol(fit, published, range(1), "tcb", official=True)
    assert (ablated.name, ablated.paper) == ("koniq10k, official split, without tcb", None)
    del trained[2:]
    assert [part.records for part in trained] == [published.part("train").records] * 2
    assert train._parts(published, "official", 0, True) == (published.part("train"), published.part("validation"))
    without_validation = IQADataset("csv", tuple(r for r in marked if r.split != "validation"), 0, 1)
    training, held_back = train._parts(without_validation, "official", 0, True)
    assert {r.split for r in (*training.records, *held_back.records)} == {"train"}
    assert held_back.records
    with pytest.raises(DgiqaError, match="no official split"):
        evaluate.evaluate(predict, dataset, official=True)
    no_test = IQADataset("csv", tuple(replace(r, split="train") for r in marked), 0, 1)
    with pytest.raises(DgiqaError, match="no official split"):
        evaluate.evaluate(predict, no_test, official=True)


def test_the_model_predictor_is_the_mean_over_the_grids_tiles(dataset, tmp_path):
    model, path = Mean(), write(tmp_path / "wide.png", 90, 300, 500)
    predicted = predict.model_predictor(model, GREEN, tmp_path / "cache")([path, dataset.records[0].path])
    rgb = working_image(decode(path.read_bytes()), Preprocess())
    depth = working_image(GREEN.depth(decode(path.read_bytes())), Preprocess())
    windows = grid_windows(*depth.shape, 224)
    tiles = [torch.from_numpy(t) for t in cut_tiles(rgb, depth, windows, 224)]
    assert len(windows) > 1
    assert predicted[0] == pytest.approx(Mean()(*tiles).mean().item(), abs=1e-6)
    assert predicted.shape == (2,)


def test_a_picture_that_cannot_be_scored_is_an_error(dataset):
    class Scorer:
        def score_many(self, sources, *, on_error):
            assert on_error == "raise"
            for source in sources:
                yield type("Score", (), {"value": float(brightness([source])[0])})

    assert evaluate.evaluate(Scorer(), dataset, [0]).summary()["mean"]["srocc"] == pytest.approx(1)
    dataset.records[0].path.write_bytes(b"no picture")
    with pytest.raises(DgiqaError):
        evaluate.evaluate(Scorer(), dataset)


def test_a_bundle_scores_and_gives_the_depth_that_inference_sees(dataset, tiny_bundle, tmp_path):
    """Its depth network in training is the one that its scorer runs, and the scorer is a predictor."""
    pytest.importorskip("onnxruntime")
    from dgiqa.preprocess import depth_input, stretched
    from dgiqa.runtime.session import open_session
    from dgiqa.scorer import Scorer

    rgb = decode(dataset.records[0].path.read_bytes())
    raw = open_session(tiny_bundle.file("depth.onnx")).run({"image": depth_input(rgb, tiny_bundle.preprocess)})
    network = pickle.loads(pickle.dumps(datasets.bundle_depth(str(tiny_bundle.path))))  # as loader processes get it
    assert np.array_equal(network.depth(rgb), stretched(raw["depth"], *rgb.shape[:2]))
    with Scorer(tiny_bundle) as scorer:
        wanted = [scorer.score(record.path).value for record in dataset.records]
        result = evaluate.evaluate_cross(scorer, dataset)
    assert result.rows[0] == pytest.approx(predict.scores_of(np.array(wanted), dataset.scores), nan_ok=True)


def test_tables_go_beside_the_papers_figures_into_csv_and_png(dataset, tmp_path):
    results = [
        evaluate.evaluate(brightness, IQADataset("csiq", dataset.records, 0, 1), range(2)),
        evaluate.evaluate_cross(brightness, dataset),
    ]
    evaluate.write_results(results, tmp_path / "out")
    rows = table(tmp_path / "out" / "results.csv")
    assert [row["seed"] for row in rows] == ["0", "1", "mean", "median", "0", "mean", "median"]
    assert rows[2]["paper_srocc"] == "0.971"
    assert rows[5]["paper_srocc"] == ""
    assert cv2.imread(str(tmp_path / "out" / "results.png")).shape[2] == 3
    text = evaluate.format_table([*results, replace(results[0], name="a name that is longer than all others are")])
    assert (
        len({line.index(word) for line in text.splitlines() for word in ("mean", "median") if f" {word} " in line}) == 1
    )
    assert "0.971/0.976" in text
    assert text.count("mean") == text.count("median") == 3


def test_separation_of_light_and_dark(tmp_path):
    good = [write(tmp_path / "good" / f"{i}.png", 150 + i) for i in range(8)]
    degraded = [write(tmp_path / "bad" / f"{i}.png", 60 + i) for i in range(6)]
    apart = evaluate.separate(brightness, good, degraded, "light")
    assert (len(apart.good), len(apart.degraded), apart.ordered) == (8, 6, 1.0)
    assert apart.overlap < 0.01
    assert apart.histogram == 0
    same = evaluate.separate(brightness, good, good, "same")
    assert same.overlap == same.histogram == pytest.approx(1)
    assert same.ordered == 0.5
    evaluate.write_separations([apart, same], tmp_path / "out")
    assert [row["set"] for row in table(tmp_path / "out" / "density.csv")] == ["light", "same"]
    assert len(table(tmp_path / "out" / "scores.csv")) == 30
    assert cv2.imread(str(tmp_path / "out" / "light.png")).std() > 1


LAYOUTS = {
    "lol": [f"{part}/{{}}/{i}.png" for part in ("our485", "eval15") for i in (1, 22)],
    "flare7k": [f"test_data/{kind}/{{}}/x_{i:06}.png" for kind in ("real", "synthetic") for i in range(2)],
    "ihaze": [f"{{}}/{i:02}_indoor_{{}}.jpg" for i in range(1, 5)],
    "gopro": [f"{part}/GOPR0372_07_00/{{}}/{i:06}.png" for part in ("train", "test") for i in (47, 48)],
}
KINDS = {"lol": ("high", "low"), "flare7k": ("gt", "input"), "ihaze": ("GT", "hazy"), "gopro": ("sharp", "blur")}


@pytest.mark.parametrize("name", LAYOUTS)
def test_natural_sets_are_found_in_their_layout(tmp_path, name):
    for i, pattern in enumerate(LAYOUTS[name]):
        for kind, level in zip(KINDS[name], (180, 50), strict=True):
            write(tmp_path / pattern.format(kind, kind), level + i, 8, 8)
    write(tmp_path / "train/GOPR0372_07_00/blur_gamma/000047.png", 9, 8, 8)
    good, degraded = evaluate.natural_pictures(name, tmp_path)
    assert len(good) == len(degraded) == 4
    assert brightness(good).min() > brightness(degraded).max()
    degraded[0].unlink()
    with pytest.raises(DgiqaError, match=f"{name}: 4 good and 3 degraded pictures in .*unpack"):
        evaluate.natural_pictures(name, tmp_path)


def test_d2g_takes_the_ends_of_each_scenes_exposures(tmp_path):
    for scene in range(3):
        for step in range(4):
            write(tmp_path / f"scene{scene}" / f"{step}.png", 30 + 50 * ((step + scene) % 4), 8, 8)
    good, degraded = evaluate.natural_pictures("d2g", tmp_path)
    assert len(good) == len(degraded) == 3
    assert brightness(good).min() > 0.6
    assert brightness(degraded).max() < 0.2


def test_missing_natural_sets_and_folders_are_named(tmp_path):
    with pytest.raises(DgiqaError, match="lol: 0 good and 0 degraded"):
        evaluate.natural_pictures("lol", tmp_path)
    with pytest.raises(ValueError, match="lol, flare7k, ihaze, gopro, d2g"):
        evaluate.natural_pictures("sots", tmp_path)
    with pytest.raises(DgiqaError, match=r"0 pictures in .*nowhere"):
        evaluate.folder_pictures(tmp_path / "nowhere")


def test_a_csv_whose_lower_scores_are_better_is_turned_round_by_its_ends(dataset):
    parser = argparse.ArgumentParser()
    train.add_data_options(parser)
    folder = str(dataset.records[0].path.parent)

    def load(*options):
        return train.chosen_dataset(parser.parse_args([*options, "--root", folder]))

    assert load("--dataset", "csv").records == dataset.records
    turned = load("--dataset", "csv", "--worst", "22", "--best", "0")
    assert turned.scores == pytest.approx(1 - np.arange(12) / 22)
    with pytest.raises(ValueError, match="--best given for live, whose scale is known"):
        load("--dataset", "live", "--best", "0")


def test_ablations_are_switches_of_the_same_network():
    full = set(train.build_network("small").state_dict())
    for without, gone in (("depth_car", "depth_backbone"), ("dilated", "dilated_stack")):
        left = set(train.build_network("small", without).state_dict())
        assert left < full
        assert any(name.startswith(gone) for name in full - left)


def test_without_bridges_both_halves_have_maps_of_one_width():
    """The small network's depth half is narrower, so that the RGB half's architecture stands in for it."""
    full, left = train.build_network("small"), train.build_network("small", "tcb")
    assert left.config == replace(full.config, tcb=False, depth_backbone=None, depth_backbone_options={})
    rest = [{name for name in model.state_dict() if not name.startswith("depth_backbone")} for model in (full, left)]
    assert rest[1] < rest[0]
    assert all(name.startswith("tcb") for name in rest[0] - rest[1])


def test_pictures_that_are_held_back_get_their_depth_with_the_rest(dataset, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(train, "_with_depth", lambda options, whole: seen.append({r.name for r in whole.records}))
    data = ["--dataset", "csv", "--root", str(tmp_path / "data"), "--depth-cache", str(tmp_path / "cache")]
    for more in ([], ["--validate"]):
        assert train.main([*data, "--out", str(tmp_path / "trained"), *more]) == 0
    assert seen[0] == seen[1] < {record.name for record in dataset.records}


@pytest.mark.slow
def test_the_commands_train_evaluate_and_draw(dataset, tmp_path, monkeypatch, capsys):
    """End to end on a dozen pictures: what each command leaves behind."""
    torch.set_num_threads(1)
    monkeypatch.setattr(datasets, "bundle_depth", lambda name: GREEN)
    data = ["--dataset", "csv", "--root", str(tmp_path / "data"), "--depth-cache", str(tmp_path / "cache")]
    short = ["--network", "small", "--epochs", "1", "--batch", "4", "--crop", "96", "--device", "cpu"]
    out = tmp_path / "trained"
    assert train.main([*data, "--out", str(out), *short, "--validate"]) == 0
    assert set(table(out / "validation.csv")[0]) == {"step", *predict.METRICS}
    assert load_dgiqa(out / "weights.safetensors").config == train.SMALL
    assert train.main([*data, "--out", str(out), *short, "--lr", "1"]) == 1
    assert "lr was 0.0001, now 1.0" in capsys.readouterr().err

    weights = ["--weights", str(out / "weights.safetensors")]
    crops = ["--tiling", "official:2", "--device", "cpu"]
    assert evaluate.main(["test", *data, *weights, *crops, "--seeds", "2", "--out", str(tmp_path / "t")]) == 0
    assert len(table(tmp_path / "t" / "results.csv")) == 4
    assert evaluate.main(["cross", *data, *weights, "--source", "live", "--out", str(tmp_path / "c")]) == 0
    assert table(tmp_path / "c" / "results.csv")[0]["experiment"] == "live -> data"
    protocol = ["protocol", *data, *short, "--without", "tcb", "--seeds", "1", "--out", str(tmp_path / "p")]
    assert evaluate.main(protocol) == 0
    assert not load_dgiqa(tmp_path / "p" / "seed0" / "weights.safetensors").config.tcb
    weighted = ["consistency", *data, *short, "--seeds", "1", "--lambdas", "0", "1", "--out", str(tmp_path / "l")]
    assert evaluate.main(weighted) == 0
    assert [row["weight of the consistency loss"] for row in table(tmp_path / "l" / "curve.csv")] == ["0.0", "1.0"]
    assert "consistency" in (tmp_path / "l" / "lambda0" / "seed0" / train.LOSSES).read_text().splitlines()[0]
    for kind, level in (("good", 180), ("bad", 50)):
        for i in range(3):
            write(tmp_path / kind / f"{i}.png", level + i)
    folders = ["--good", str(tmp_path / "good"), "--degraded", str(tmp_path / "bad")]
    cache = ["--depth-cache", str(tmp_path / "cache")]
    assert evaluate.main(["density", *folders, *weights, *cache, "--out", str(tmp_path / "d")]) == 0
    assert (tmp_path / "d" / "density.png").exists()
    assert evaluate.main(["density", *weights, "--out", str(tmp_path / "e")]) == 1
    assert "--good and --degraded" in capsys.readouterr().err


def test_the_small_network_starts_from_a_wheels_weights(monkeypatch):
    loaded = []
    monkeypatch.setattr(train, "load_lite", lambda source, backbone: loaded.append((source, backbone)))
    model = train.build_network("small", pretrained=True)
    assert loaded == [(train.LITE, model.backbone)]
    train.build_network("small")
    assert len(loaded) == 1


def test_fewer_crops_are_drawn_from_the_most_and_the_grid_stands_beside_them(dataset, tmp_path, tiny_bundle, capsys):
    data = ["--dataset", "csv", "--root", str(tmp_path / "data"), "--bundle", str(tiny_bundle.path)]
    assert evaluate.main(["crops", *data, "--counts", "1", "4", "--out", str(tmp_path / "k")]) == 0
    rows = table(tmp_path / "k" / "curve.csv")
    assert len(rows) == 2 * evaluate.CROP_DRAWS + 1
    assert rows[-1]["random crops"] == "grid"
    *_, fewest, most, grid = capsys.readouterr().out.splitlines()
    assert fewest.startswith("random crops 1: SROCC ")
    assert most.endswith("+- 0.0000")
    assert grid.startswith(f"random crops grid: SROCC {float(rows[-1]['srocc']):.4f}")
    assert np.ptp([float(row["plcc"]) for row in rows if row["random crops"] == "4"]) < 1e-6  # all, in another order
    assert cv2.imread(str(tmp_path / "k" / "curve.png")).std() > 1
    tiles = np.arange(12.0).reshape(3, 4)
    some = evaluate._some(tiles, 2, np.random.default_rng(0))
    assert ((some > tiles.min(1)) & (some < tiles.max(1))).all()


def test_features_lie_in_a_plane_beside_those_of_another_set(dataset, tmp_path, telling_bundle, capsys):
    pytest.importorskip("sklearn")
    data = ["--dataset", "csv", "--root", str(tmp_path / "data"), "--bundle", str(telling_bundle.path)]
    lines = (tmp_path / "data" / "labels.csv").read_text().splitlines()
    (tmp_path / "data" / "some.csv").write_text("\n".join(lines[:7]) + "\n")
    also = ["--worst", "0", "--best", "20", "--also", "csv", str(tmp_path / "data" / "some.csv")]
    assert evaluate.main(["tsne", *data, *also, "--out", str(tmp_path / "s")]) == 0
    rows = table(tmp_path / "s" / "tsne.csv")
    assert [row["set"] for row in rows] == ["1: data"] * 12 + ["2: some"] * 6
    assert [row["score"] for row in rows[:6]] == [row["score"] for row in rows[12:]], "one scale for both"
    assert capsys.readouterr().out.startswith("1: data: 12 pictures, SROCC of opinion with that of neighbours ")
    line = np.linspace((0, 0), (1, 1), 40)
    assert evaluate._near(line, np.arange(40.0)) > 0.95
    assert cv2.imread(str(tmp_path / "s" / "tsne.png")).std() > 1


def test_what_lies_apart_in_features_lies_apart_in_the_plane():
    pytest.importorskip("sklearn")
    features = np.random.default_rng(0).normal(size=(40, 6)) + 9 * (np.arange(40) % 2)[:, None]
    places = plots.embedded(features)
    assert np.array_equal(places, plots.embedded(features))
    middles = [places[i::2].mean(0) for i in (0, 1)]
    spread = max(np.linalg.norm(places[i::2] - middles[i], axis=1).mean() for i in (0, 1))
    assert np.linalg.norm(middles[0] - middles[1]) > 2 * spread
