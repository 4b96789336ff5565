"""Labels to a bundle, by command and by call: verified, self-contained, on the labels' scale, for engines as well."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from command import run_here
from numpy.typing import NDArray
from typer.testing import CliRunner

pytest.importorskip("scipy")
pytest.importorskip("onnx")

from dgiqa import spec
from dgiqa.builder.quantize import quantize_bundle
from dgiqa.bundle import Bundle, load_bundle
from dgiqa.calibrate import calibrated, gather, layer_of, look, plain, write_calibrated
from dgiqa.calibrate.adapt import Layer, with_layer
from dgiqa.calibrate.labels import LabelError, read_labels
from dgiqa.cli import app
from dgiqa.errors import BackendError, BundleError, DgiqaError
from dgiqa.full_reference import FullReference
from dgiqa.parity import verify_bundle
from dgiqa.runtime.ort import OrtSession
from dgiqa.scorer import Scorer

Photos = dict[str, NDArray[np.uint8]]
COUNT = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, photos: Photos, telling_bundle: Bundle) -> Path:
    """Pictures with labels 1..5 that rise with the tiny network's score, bent, and one that is none."""
    root = tmp_path_factory.mktemp("labelled")
    sources, random = list(photos.values()), np.random.default_rng(0)
    for i in range(COUNT):
        photo = sources[i % len(sources)]
        y, x = random.integers(0, 200), random.integers(0, 100)
        part = photo[y : y + 100, x : x + 130].astype(float)
        picture = np.clip((part - 128) * random.uniform(0.2, 2) + random.uniform(60, 200), 0, 255).astype(np.uint8)
        cv2.imwrite(str(root / f"{i:02}.png"), picture)
    with Scorer(telling_bundle) as scorer:
        scores = np.array([scorer.score(root / f"{i:02}.png").value for i in range(COUNT)])
    ranks = scores.argsort().argsort() / (COUNT - 1)
    labels = np.clip(1 + 4 * ranks**2 + random.normal(0, 0.2, COUNT), 1, 5)
    with (root / "labels.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "score"])
        writer.writerows((f"{i:02}.png", f"{label:.2f}") for i, label in enumerate(labels))
        writer.writerow(["missing.png", "3"])
    return root


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, telling_bundle: Bundle) -> Bundle:
    return telling_bundle


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgiqa.calibrate.fit.RESAMPLES", 50)


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["calibrate", *map(str, arguments)])
    if isinstance(result.exception, DgiqaError):
        raise result.exception
    return result.exit_code, result.output


@pytest.mark.parametrize("adapt", [False, True])
def test_a_calibrated_bundle_stands_alone_and_verifies(adapt: bool, folder: Path, base: Bundle, tmp_path: Path) -> None:
    code, output = run(
        folder / "labels.csv", "--bundle", base.path, "--out", tmp_path / "a", "--name", "ours", "--recall", 0.9,
        *(["--adapt"] if adapt else []),
    )  # fmt: skip
    assert code == 0, output
    assert f"{COUNT} labels, pictures left out: 1" in output
    assert "no threshold chosen" not in output
    assert re.search(r"left out: .*missing\.png", output)
    shutil.move(tmp_path / "a" / "ours", tmp_path / "elsewhere")
    made = load_bundle(tmp_path / "elsewhere")
    with Scorer(made, gate="own", features=True) as scorer, Scorer(base) as before:
        report = verify_bundle(made, scorer)
        scores = [scorer.score(folder / f"{i:02}.png") for i in range(COUNT)]
        old = [before.score(folder / f"{i:02}.png").value for i in range(COUNT)]
    assert report.passed
    labels = read_labels(folder / "labels.csv").values[:COUNT]
    new = np.array([score.value for score in scores])
    assert np.sqrt(np.mean((new - labels) ** 2)) < 0.6 * np.sqrt(np.mean((np.array(old) - labels) ** 2))
    assert scores[0].features is not None
    passing = {i for i in range(COUNT) if scores[i].verdict == "pass"}
    assert 0 < len(passing) < COUNT
    assert (made.meaning.range, made.meaning.kind) == ((1.0, 5.0), "own labels")
    assert made.meaning.reasons == base.meaning.reasons
    assert ("upload" in made.meaning.presets) is not adapt
    assert made.manifest["files"][spec.DEPTH_FILE] == base.manifest["files"][spec.DEPTH_FILE]
    assert (made.manifest["files"][spec.QUALITY_FILE]["sha256"] != base.manifest["files"][spec.QUALITY_FILE]["sha256"]) is adapt  # fmt: skip  # noqa: E501


def test_the_map_keeps_presets_where_they_were(folder: Path, base: Bundle, tmp_path: Path) -> None:
    _, output = run(folder / "labels.csv", "--bundle", base.path, "--out", tmp_path, "--name", "ours")
    assert "no threshold chosen; give --recall or --precision" in output
    made = load_bundle(tmp_path / "ours")
    x, y = np.array(made.meaning.knots).T
    assert made.meaning.presets == pytest.approx({k: np.interp(v, x, y) for k, v in base.meaning.presets.items()}, abs=1e-6)  # fmt: skip  # noqa: E501
    again = tmp_path / "again"
    run(folder / "labels.csv", "--bundle", tmp_path / "ours", "--out", again, "--name", "twice")
    twice = load_bundle(again / "twice")  # a calibrated bundle calibrated again: its own map does not count twice
    assert np.array(twice.meaning.knots) == pytest.approx(np.array(made.meaning.knots), abs=1e-6)
    assert twice.meaning.presets == pytest.approx(made.meaning.presets, abs=1e-6)
    with Scorer(twice) as scorer:
        assert verify_bundle(twice, scorer).passed


def test_engines_are_built_from_it(folder: Path, base: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run(folder / "labels.csv", "--bundle", base.path, "--out", tmp_path, "--name", "ours")
    made = load_bundle(tmp_path / "ours")
    with Scorer(made, backend="onnxruntime", precision="fp16", build=True) as scorer:
        assert verify_bundle(made, scorer).passed
        assert scorer.score(folder / "00.png").reasons.keys() == {"blur", "noise", "dark"}


def test_an_adapted_network_is_quantised_as_any_other(folder: Path, base: Bundle, tmp_path: Path) -> None:
    run(folder / "labels.csv", "--bundle", base.path, "--out", tmp_path, "--name", "ours", "--adapt")
    files = quantize_bundle(load_bundle(tmp_path / "ours"), "fp16", tmp_path / "fp16", budget=0.1).files
    assert OrtSession(files[spec.QUALITY_FILE]).outputs == ("score", "reasons", "features")


def test_the_report_and_the_curve_are_json(folder: Path, base: Bundle, tmp_path: Path) -> None:
    code, output = run(
        folder / "labels.csv", "--bundle", base.path, "--out", tmp_path, "--name", "o", "--json",
        "--precision", 0.8, "--good", 3, "--curve", tmp_path / "c.json",
    )  # fmt: skip
    assert code == 0
    report = json.loads(output[output.index("{") :])
    assert (report["labels"], report["failed"], report["method"], report["range"]) == (COUNT, 1, "map", [1, 5])
    assert report["srocc_interval"][0] < report["after"]["srocc"] <= report["srocc_interval"][1]
    assert report["labels_for_half_width"]["0.02"] > report["labels_for_half_width"]["0.05"]
    assert report["threshold"]["precision"] >= 0.8
    curve = json.loads((tmp_path / "c.json").read_text())["curve"]
    assert curve == report["curve"]
    own = load_bundle(tmp_path / "o").meaning.presets["own"]
    assert own == pytest.approx(report["threshold"]["threshold"], abs=1e-4)


def test_the_curve_is_drawn(folder: Path, base: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run(folder / "labels.csv", "--bundle", base.path, "--out", tmp_path, "--name", "o", "--curve", tmp_path / "c.png")
    assert cv2.imread(str(tmp_path / "c.png")) is not None


def test_good_and_bad_make_a_chance(folder: Path, base: Bundle, tmp_path: Path) -> None:
    rows = list(csv.reader((folder / "labels.csv").open()))[1 : COUNT + 1]
    words = "".join(f"{name},{'good' if float(label) > 2 else 'bad'}\n" for name, label in rows)
    (tmp_path / "words.csv").write_text(words)
    run(tmp_path / "words.csv", "--images", folder, "--bundle", base.path, "--out", tmp_path, "--name", "o")
    made = load_bundle(tmp_path / "o")
    assert (made.meaning.kind, made.meaning.interval) == ("good or bad", None)


def test_what_cannot_be_calibrated_says_why(folder: Path, base: Bundle, tiny_bundle: Bundle, tmp_path: Path) -> None:
    arguments = ("--images", folder, "--out", tmp_path, "--name", "o")
    rows = (folder / "labels.csv").read_text().splitlines()
    (tmp_path / "few.csv").write_text("\n".join(rows[:10]))
    with pytest.raises(LabelError, match="wanted 20 or more"):
        run(tmp_path / "few.csv", "--bundle", base.path, *arguments)
    turned = [f"{n},{6 - float(s)}" for n, s in (row.split(",") for row in rows[1:])]
    (tmp_path / "turned.csv").write_text("\n".join(turned))
    with pytest.raises(LabelError, match="--lower-is-better"):
        run(tmp_path / "turned.csv", "--bundle", base.path, *arguments)
    assert run(tmp_path / "turned.csv", "--bundle", base.path, *arguments, "--lower-is-better")[0] == 0
    with pytest.raises(LabelError, match="--adapt"):
        run(folder / "labels.csv", "--bundle", tiny_bundle.path, "--adapt", "--out", tmp_path, "--name", "p")
    code, output = run(folder / "labels.csv", "--bundle", base.path, *arguments, "--good", "1.5", "--recall", "0.5")
    assert code == 2
    assert "exists" in output
    code, output = run(folder / "labels.csv", "--bundle", base.path, "--out", tmp_path, "--name", "q", "--good", "1", "--recall", "0.5")  # fmt: skip  # noqa: E501
    assert (code, "count as good" in output) == (2, True)
    code, output = run(folder / "labels.csv", "--bundle", base.path, "--good", "9")
    assert (code, "from 1 to 5" in output) == (2, True)
    assert not (tmp_path / "q").exists()


@pytest.mark.parametrize(("lacking", "options"), [("scipy.optimize", []), ("onnx", ["--adapt"])])
def test_what_is_not_installed_is_said_before_pictures_are_scored(
    lacking: str, options: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, lacking, None)
    monkeypatch.setattr("dgiqa.calibrate.look", lambda *_: pytest.fail("pictures are scored"))
    with pytest.raises(BackendError, match=rf"needs {lacking.partition('.')[0]}"):
        run(folder / "labels.csv", *options)


def test_an_adapted_file_computes_its_layer(base: Bundle, folder: Path, tmp_path: Path) -> None:
    labels = read_labels(folder / "labels.csv")
    with Scorer(plain(base), features=True) as scorer:
        study = gather(labels, look(scorer, labels, folder))
    shipped = layer_of(base, study)
    result = calibrated(study, adapt_from=shipped)
    assert result.layer is not None
    layer = replace(result.layer, weight=result.layer.weight + 0.3 * np.random.default_rng(0).normal(size=8))
    result = replace(result, layer=layer)
    head = FullReference(tuple(np.linspace(-2, 1, 8).tolist()), 4.0)
    comparing = replace(base, full_reference=head)
    made = write_calibrated(comparing, result, tmp_path / "o", name="o", source="tests")
    assert made.full_reference == head
    told = run_here("models", env={"DGIQA_BUNDLES": str(tmp_path)}).stdout.decode()
    assert f"calibration: last layer fitted again to {len(study.labels.values)} labels, SROCC " in told
    with Scorer(made) as scorer:
        for image, seen in zip(study.labels.images, study.pictures, strict=True):
            np.testing.assert_allclose(scorer.score(folder / image).tile_scores, layer.tile_scores(seen), atol=1e-5)


def test_only_a_linear_last_layer_is_changed(base: Bundle, tmp_path: Path) -> None:
    import onnx

    layer = Layer(np.zeros(8), 0.0)
    model = onnx.load(str(base.file(spec.QUALITY_FILE)))
    next(node for node in model.graph.node if node.op_type == "Sigmoid").op_type = "HardSigmoid"
    onnx.save(model, str(tmp_path / "other.onnx"))
    with pytest.raises(BundleError, match="linear layer"):
        with_layer(tmp_path / "other.onnx", layer)
    with pytest.raises(BundleError, match="wanted 9"):
        with_layer(base.file(spec.QUALITY_FILE), replace(layer, weight=np.zeros(9)))
