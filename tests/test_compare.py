"""Pictures beside their references: paired tiles, the full-reference layer, rows, folders and CSVs of pairs."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from command import run_here
from numpy.typing import NDArray

from dgiqa import full_reference
from dgiqa.bundle import Bundle, load_bundle, write_bundle
from dgiqa.errors import BundleError, ImageError
from dgiqa.full_reference import KEY, WEIGHTS, FullReference, differences, likeness, parse_full_reference
from dgiqa.preprocess import working_image
from dgiqa.report.rows import columns
from dgiqa.scorer import Scorer

pytest.importorskip("onnxruntime")
Photos = dict[str, NDArray[np.uint8]]
HEAD = FullReference(tuple(np.linspace(-2, 1, 8).tolist()), 4.0)


def close(head: FullReference, features: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    return float(head.score(features, reference)[0])


def test_the_layer_is_a_sigmoid_of_the_weighted_difference() -> None:
    picture, reference = np.array([[1.0, 2.0]], np.float32), np.array([[2.0, 5.0]], np.float32)
    assert close(FullReference((-0.5, -1.0), 2.0), picture, reference) == pytest.approx(1 / (1 + np.exp(1.5)))
    assert close(FullReference((-0.5, -1.0), 2.0), reference, picture) == pytest.approx(1 / (1 + np.exp(-5.5)))
    absolute = FullReference((-0.5, -1.0), 2.0, "absolute")
    assert close(absolute, picture, reference) == close(absolute, reference, picture)


def test_maps_are_averaged_after_the_difference_was_taken() -> None:
    maps, other = np.array([[0, 1, 2, 3, 4, 5]], np.float32), np.array([[1, 0, 2, 3, 5, 4]], np.float32)
    head = FullReference((-1.0, -3.0), 0.0, "absolute", cells=3)
    assert close(head, maps, other) == pytest.approx(1 / (1 + np.exp(2 / 3 + 2)))
    assert close(FullReference((-1.0, -3.0), 0.0, cells=3), maps, other) == pytest.approx(0.5), "differences cancel"


@pytest.mark.parametrize("difference", ["signed", "absolute"])
def test_it_goes_through_a_manifest(difference: str) -> None:
    head = FullReference((0.1, -3.0, 2.0), 1.5, difference, 4)
    assert parse_full_reference(json.loads(json.dumps(head.as_manifest()))) == head
    assert parse_full_reference({}) is None


@pytest.mark.parametrize(
    "change",
    [
        {"difference": "relative"},
        {"difference": ["signed"]},
        {"cells": 0},
        {"cells": True},
        {"weights": []},
        {"weights": [float("nan")]},
        {"weights": ["1"]},
        {"bias": None},
        {"bias": True},
    ],
)
def test_a_malformed_entry_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="full_reference is malformed"):
        parse_full_reference({KEY: HEAD.as_manifest()[KEY] | change})


@pytest.fixture(scope="module")
def comparing(telling_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle that gives features, with the layer that compares them."""
    files = {network.file: telling_bundle.file(network.file) for network in telling_bundle.networks}
    return write_bundle(
        tmp_path_factory.mktemp("comparing") / "comparing",
        name="comparing",
        title="for tests",
        licence="none",
        source="tests",
        files=files,  # type: ignore[arg-type]
        preprocess=telling_bundle.preprocess,
        meaning=telling_bundle.meaning,
        features=8,
        full_reference=HEAD,
    )


def test_a_comparison_is_that_of_the_paired_tiles(comparing: Bundle, photos: Photos) -> None:
    photo, worse = photos["coffee"], photos["coffee"] // 2
    assert load_bundle(comparing.path).full_reference == HEAD
    with Scorer(comparing, features=True) as scorer:
        found, alone = scorer.compare(worse, photo, name="worse"), [scorer.score(p) for p in (worse, photo)]
    assert (found.score.source, found.reference.source) == ("worse", "<array>")
    assert [found.score.value, found.reference.value] == pytest.approx([s.value for s in alone], abs=1e-6)
    drops = alone[1].tile_scores - alone[0].tile_scores
    assert found.drop == pytest.approx(float(drops.mean()), abs=1e-6)
    assert found.drop_error == pytest.approx(float(drops.std(ddof=1)) / len(drops) ** 0.5, abs=1e-6)
    features = [s.tile_features for s in alone]
    assert found.full_reference == pytest.approx(float(HEAD.score(features[0], features[1]).mean()), abs=1e-6)  # type: ignore[arg-type]
    row = found.as_row(max_drop=0.0)
    assert tuple(row) == columns("pair")
    assert row["verdict"] == ("pass" if found.drop <= 0 else "fail")
    assert row["reference_score"] == round(found.reference.value, 6)


def test_a_picture_beside_itself_loses_nothing(comparing: Bundle, photos: Photos) -> None:
    with Scorer(comparing) as scorer:
        found = scorer.compare(photos["rocket"], photos["rocket"])
    assert (found.drop, found.drop_error) == (0, 0)
    assert found.full_reference == pytest.approx(1 / (1 + np.exp(-4)), abs=1e-6)


def test_sizes_that_differ_are_refused(comparing: Bundle, photos: Photos) -> None:
    with Scorer(comparing) as scorer, pytest.raises(ImageError, match=r"a is 100 x 90, its reference 120 x 90"):
        scorer.compare(photos["coffee"][:90, :100], photos["coffee"][:90, :120], name="a")


def test_a_model_without_that_layer_says_how_alike_the_pictures_are_at_their_own_size(
    tiny_bundle: Bundle, photos: Photos
) -> None:
    photo = photos["coffee"]
    fine = cv2.GaussianBlur(photo, (0, 0), 2)
    with Scorer(tiny_bundle) as scorer:
        found = scorer.compare(fine, photo)
        p = scorer.bundle.preprocess
    assert found.full_reference == pytest.approx(likeness(fine, photo))
    seen = likeness(working_image(fine, p), working_image(photo, p))
    assert likeness(fine, photo) < seen - 0.3, "detail that the model does not see counts"
    assert found.tile_full_reference is None


def test_of_a_large_picture_tiles_are_looked_at_that_are_spread_over_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_reference, "TILE", 32)
    monkeypatch.setattr(full_reference, "TILES", 6)
    picture = np.random.default_rng(0).integers(0, 255, (64, 300, 3), np.uint8)
    seen = np.zeros(picture.shape[:2], int)
    for part in full_reference._tiles(64, 300):
        assert seen[part].shape == (32, 32)
        seen[part] += 1
    assert (seen[:, 0].min(), seen[:, -1].min(), seen.max(), seen.sum()) == (1, 1, 1, 6 * 32 * 32)
    assert len(full_reference._tiles(20, 90)) == 3, "all of a picture that has no more"
    assert likeness(picture[:1, :1], picture[:1, :1]) == pytest.approx(0.982, abs=1e-3), "one pixel"
    spoilt = picture.copy()
    spoilt[:, 150:] //= 2
    apart = differences(spoilt, picture)
    assert 0.3 < apart[1, 0, 0] / differences(picture // 2, picture)[1, 0, 0] < 0.7


def test_likeness_falls_with_every_fault_and_is_highest_for_equal_pictures(photos: Photos) -> None:
    photo = photos["coffee"][100:356, 100:484]
    noise = np.random.default_rng(0).normal(size=photo.shape)
    top = 1 / (1 + np.exp(-4))
    assert likeness(photo, photo) == pytest.approx(top)
    worse = {
        "blur": [cv2.GaussianBlur(photo, (0, 0), sigma) for sigma in (0.7, 1.5, 4)],
        "noise": [np.clip(photo + sigma * noise, 0, 255).astype(np.uint8) for sigma in (4, 15, 50)],
        "darkness": [(photo * share).astype(np.uint8) for share in (0.9, 0.6, 0.2)],
        "colour": [photo // step * step for step in (8, 40, 100)],
    }
    for kind, pictures in worse.items():
        found = [top, *(likeness(picture, photo) for picture in pictures), 0]
        assert np.diff(found).max() < 0, kind
    assert likeness(photo[:, ::-1], photo) < 0.2


def test_what_is_changed_less_than_eyes_see_changes_next_to_nothing(photos: Photos) -> None:
    photo = photos["coffee"]
    assert likeness(photo ^ np.uint8(1), photo) > 0.95


@pytest.mark.parametrize("shape", [(24, 25), (224, 224), (227, 1001)])
def test_every_size_has_its_differences(shape: tuple[int, int]) -> None:
    made = np.random.default_rng(0).integers(0, 255, (2, *shape, 3), np.uint8)
    found = differences(made[0], made[1])
    assert found.shape == WEIGHTS.shape == (4, 3, 3)
    assert (found[1:] > 0).all()
    assert (found[0, 0] > 0).all()
    assert (found[0, 1:] == 0).all(), "colour is seen at half the size"
    assert (differences(made[0], made[0]) == 0).all()


def test_features_of_another_width_are_an_error(comparing: Bundle, photos: Photos, tmp_path: Path) -> None:
    files = {network.file: comparing.file(network.file) for network in comparing.networks}
    arguments = {"name": "x", "title": "x", "licence": "none", "source": "tests", "preprocess": comparing.preprocess}
    head = FullReference((1.0, 2.0), 0.0)
    wrong = write_bundle(tmp_path / "x", files=files, full_reference=head, **arguments)  # type: ignore[arg-type]
    with Scorer(wrong) as scorer, pytest.raises(BundleError, match="wanted 2 of each tile"):
        scorer.compare(photos["coffee"], photos["coffee"])


@pytest.fixture
def folders(photos: Photos, encode: Callable[..., bytes], tmp_path: Path) -> Path:
    for folder in ("originals", "encoded"):
        (tmp_path / folder).mkdir()
    for name in ("coffee", "rocket"):
        photo = photos[name][::4, ::4]
        (tmp_path / "originals" / f"{name}.png").write_bytes(encode(photo))
        (tmp_path / "encoded" / f"{name}.jpg").write_bytes(encode(photo, "JPEG", quality=10))
    (tmp_path / "encoded" / "alone.png").write_bytes(encode(photo))
    (tmp_path / "pairs.csv").write_text(
        "image,reference\nencoded/coffee.jpg,originals/coffee.png\nencoded/no.jpg,originals/coffee.png\n,a.png\n"
    )
    (tmp_path / "empty.csv").touch()
    (tmp_path / "hollow").mkdir()
    return tmp_path


def rows_of(*arguments: object) -> tuple[int, list[dict[str, object]]]:
    done = run_here("compare", *arguments, "--format", "jsonl")
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_two_folders_are_matched_by_name(folders: Path, comparing: Bundle) -> None:
    code, rows = rows_of(folders / "encoded", folders / "originals", "--bundle", comparing.path)
    assert code == 3
    by_name = {Path(str(row["path"])).name: row for row in rows}
    assert "no picture is called alone" in str(by_name["alone.png"]["error"])
    assert Path(str(by_name["coffee.jpg"]["reference"])).name == "coffee.png"
    assert by_name["rocket.jpg"]["full_reference"] is not None


def test_subfolders_are_matched_by_their_names_too(folders: Path, comparing: Bundle) -> None:
    for folder in ("encoded", "originals"):
        (folders / "all" / folder).mkdir(parents=True)
        (folders / folder).rename(folders / "all" / folder / "day")
    places = folders / "all" / "encoded", folders / "all" / "originals"
    code, rows = rows_of(places[0], places[1] / "day", "--bundle", comparing.path)
    assert (code, [row["error"] for row in rows]) == (3, ["a folder without images; -r looks in its subfolders too"])
    done = run_here("compare", places[0] / "day", places[1], "--bundle", comparing.path)
    assert done.returncode == 2
    assert b"without images" in done.stderr
    code, rows = rows_of(*places, "-r", "--bundle", comparing.path)
    references = {Path(str(row["path"])).name: row["reference"] for row in rows}
    assert references["coffee.jpg"] == str(places[1] / "day" / "coffee.png")
    assert references["alone.png"] is None


def test_a_csv_of_pairs_and_a_gate(folders: Path, comparing: Bundle) -> None:
    code, rows = rows_of(folders / "pairs.csv", "--bundle", comparing.path)
    assert code == 3
    assert [row["status"] for row in rows] == ["ok", "error", "error"]
    assert str(rows[2]["path"]).endswith("pairs.csv, pair 3")
    assert rows[2]["error"] == "the CSV row lacks the image or the reference"
    drop = float(str(rows[0]["drop"]))
    pair = (folders / "encoded" / "coffee.jpg", folders / "originals" / "coffee.png")
    pair = pair if drop > 0 else pair[::-1]
    lost = run_here("compare", *pair, "--bundle", comparing.path, "--max-drop", abs(drop) / 2, "-q")
    assert (lost.returncode, json.loads(lost.stdout)["verdict"]) == (4, "fail")
    assert lost.stderr.startswith(b"1 of 1 picture lost more than")
    shown = run_here("compare", *pair, "--bundle", comparing.path, "--format", "table").stdout.decode().splitlines()
    assert shown[0].split()[2:] == ["drop", "full_reference", "pair"]
    assert float(shown[1].split()[-2]) == pytest.approx(float(str(rows[0]["full_reference"])), abs=1e-2)
    near = float(str(rows[0]["full_reference"]))
    for limit, wanted in ((near - 0.01, (0, "pass")), (near + 0.01, (4, "fail"))):
        code, rows = rows_of(*pair, "--bundle", comparing.path, "--fail-under", limit)
        assert (code, rows[0]["verdict"]) == wanted


def test_a_run_ends_with_a_line_about_it(folders: Path, comparing: Bundle) -> None:
    command = ("compare", folders / "pairs.csv", "--bundle", comparing.path, "-o", folders / "drops.csv")
    done = run_here(*command)
    told = rf"1 compared, 2 failed; mean drop [+-]0\.\d{{4}}; written to {re.escape(str(folders / 'drops.csv'))}\n"
    assert re.fullmatch(told, done.stderr.decode())
    assert run_here(*command, "--quiet").stderr == b""


def test_pairs_go_into_a_database(folders: Path, comparing: Bundle) -> None:
    pair = (folders / "encoded" / "coffee.jpg", folders / "originals" / "coffee.png")
    done = run_here("compare", *pair, "--bundle", comparing.path, "-o", folders / "drops.sqlite")
    assert done.returncode == 0, done.stderr
    with contextlib.closing(sqlite3.connect(folders / "drops.sqlite")) as database:
        (drop,) = database.execute('SELECT "drop" FROM scores').fetchone()
    assert drop == rows_of(*pair, "--bundle", comparing.path)[1][0]["drop"]


NO_PAIRS = [
    (["a.png"], "has no REFERENCE"),
    (["{}/encoded", "a.png"], "REFERENCE: a.png: no such file or folder"),
    (["gone", "{}/originals"], "IMAGE: gone: no such file or folder"),
    (["{}/encoded", "{}/pairs.csv"], "two pictures or two folders"),
    (["{}/none.csv"], "none.csv"),
    (["{}/encoded", "{}/hollow"], "REFERENCE: {}/hollow: a folder without images; -r"),
    (["{}/empty.csv"], "columns none, as it is empty"),
]


@pytest.mark.parametrize(("arguments", "message"), NO_PAIRS)
def test_arguments_that_name_no_pairs_are_usage_errors(arguments: list[str], message: str, folders: Path) -> None:
    done = run_here("compare", *(argument.format(folders) for argument in arguments))
    assert done.returncode == 2
    assert message.format(folders) in done.stderr.decode().replace("\n", " ")
