"""Each public dataset, laid out on disk as it is distributed, becomes the right records; damage is named."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from random import Random

import cv2
import numpy as np
import pytest
from damage import damaged

from dgiqa.errors import DgiqaError, ImageError
from dgiqa.nn.datasets import (
    CSIQ_TYPES,
    LIVE_FOLDERS,
    DepthNetwork,
    IQADataset,
    Record,
    Samples,
    cached_rgb_and_depth,
    fill_depth_cache,
    load_csv,
    load_dataset,
    official_split,
    plain,
    random_split,
    with_depth,
)
from dgiqa.spec import Preprocess

PIXEL = cv2.imencode(".bmp", np.zeros((2, 2, 3), np.uint8))[1].tobytes()


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PIXEL)


def cells(names: list[str], column: bool) -> np.ndarray:
    """A MATLAB cell array of strings."""
    array = np.empty((len(names), 1) if column else (1, len(names)), object)
    array.flat = names
    return array


def make_live(root: Path) -> None:
    savemat = pytest.importorskip("scipy.io").savemat
    names, references, dmos, copies = [], [], [], []
    for folder, count in LIVE_FOLDERS:
        pairs = [(f"ref{i % 29}.bmp", f"img{i}.bmp") for i in range(1, count + 1)]
        touch(root / folder, *(image for _, image in pairs))
        (root / folder / "info.txt").write_text("".join(f"{r} {i} 0.5\n" for r, i in pairs))
        names += [f"{folder}/{image}" for _, image in pairs]
        references += [reference for reference, _ in pairs]
        copies += [int(i % 6 == 0) for i in range(1, count + 1)]
        dmos += [0.0 if i % 6 == 0 else -3 + 115 * i / (count + 1) for i in range(1, count + 1)]
    touch(root / "refimgs", *set(references))
    savemat(root / "refnames_all.mat", {"refnames_all": cells(references, column=False)})
    savemat(root / "dmos_realigned.mat", {"dmos_new": np.array([dmos]), "orgs": np.array([copies])})


def make_csiq(root: Path) -> None:
    names = [
        f"{ref}.{kind}.{level}.png"
        for ref in ("1600", "trolley", "Boston")
        for kind in CSIQ_TYPES.values()
        for level in (1, 2)
    ]
    for name in names:  # the folder is "awgn" where the file says AWGN
        touch(root / "dst_imgs" / name.split(".")[1].lower(), name)
    touch(root / "src_imgs", "1600.png", "trolley.png", "Boston.png")
    (root / "csiq_label.txt").write_text("".join(f"{name} {i / len(names):.3f}\n" for i, name in enumerate(names)))


def make_tid2013(root: Path) -> None:
    files = ["I01_01_1.bmp", "i01_01_2.bmp", "I01_02_1.BMP", "I02_01_1.bmp", "i25_24_5.bmp"]
    touch(root / "distorted_images", *files)
    touch(root / "reference_images", "I01.BMP", "I02.BMP", "i25.bmp")
    listed = ["i01_01_1.bmp", "I01_01_2.bmp", "i01_02_1.bmp", "I02_01_1.bmp", "I25_24_5.bmp"]
    scores = [5.5, 4.5, 0.24, 7.21, 3.0]
    (root / "mos_with_names.txt").write_text("".join(f"{m} {n}\n" for m, n in zip(scores, listed, strict=True)))
    (root / "mos.txt").write_text("".join(f"{m}\n" for m in scores))


def make_kadid10k(root: Path) -> None:
    names = [(f"I{r:02}_{t:02}_{v:02}.png", f"I{r:02}.png") for r in range(1, 11) for t in (1, 25) for v in (1, 5)]
    touch(root / "images", *(n for pair in names for n in pair))
    lines = [f"{d},{r},{4.93 if d.endswith('1.png') else 1.0},0.5" for d, r in names]
    (root / "dmos.csv").write_text("dist_img,ref_img,dmos,var\n" + "\n".join(lines) + "\n")


def make_clive(root: Path) -> None:
    savemat = pytest.importorskip("scipy.io").savemat
    training = [f"t{i}.bmp" for i in range(1, 8)]
    names = ["3.bmp", "4.JPG", "10.bmp", "1146.JPG"]
    touch(root / "Images", *names)
    touch(root / "Images" / "trainingImages", *training)
    (root / "Data").mkdir()
    savemat(root / "Data" / "AllImages_release.mat", {"AllImages_release": cells(training + names, column=True)})
    mos = np.array([[99.0] * 7 + [3.42, 50, 60, 92.43]])
    savemat(root / "Data" / "AllMOS_release.mat", {"AllMOS_release": mos})
    savemat(root / "Data" / "AllStdDev_release.mat", {"AllStdDev_release": mos})


def make_koniq10k(root: Path) -> None:
    names = [f"{10000 + i}.jpg" for i in range(10)]
    touch(root / "1024x768", *names)
    touch(root / "512x384", *names)
    head = "image_name,c1,c2,c3,c4,c5,c_total,MOS,SD,MOS_zscore\n"
    rows = [f'"{n}",0,0,25,73,7,105,3.8,0.55,{10 * i + 3.91}' for i, n in enumerate(names)]
    (root / "koniq10k_scores_and_distributions.csv").write_text(head + "\n".join(rows) + "\n")
    sets = ["training"] * 7 + ["validation"] + ["test"] * 2
    rows = [f"{n},0,0,1,2,3,{10 * i + 3.91},1,{s}" for i, (n, s) in enumerate(zip(names, sets, strict=True))]
    (root / "koniq10k_distributions_sets.csv").write_text(
        "image_name,c1,c2,c3,c4,c5,MOS,SD,set\n" + "\n".join(rows) + "\n"
    )


def make_flive(root: Path) -> None:
    names = [
        "voc_emotic_ava/AVA__100991.jpg",
        "voc_emotic_ava/JPEGImages__2010_005647.jpg",
        "voc_emotic_ava/EMOTIC__0yp3ixisn6pvw3uoph.jpg",
        "blur_dataset/out_of_focus0027.JPG",
        "EE371R/cj23478+019.jpg",
    ]
    touch(root / "database", *names)
    (root / "database/blur_dataset/out_of_focus0027.JPG").rename(root / "database/blur_dataset/out_of_focus0027.jpg")
    rows = [f"{n},{m}" for n, m in zip(names, (72.1, 94.33, 0.0, 50, 70), strict=True)]
    (root / "labels_image.csv").write_text("name,mos\n" + "\n".join(rows) + "\n")
    (root / "labels640.csv").write_text(f"name_image,mos_image\n{names[1]},94.33\n")
    padded = [f"{n},{n == names[2]}" for n in names if n != names[1]]
    (root / "labels=640_padded.csv").write_text("name_image,is_valid\n" + "\n".join(padded) + "\n")


def make_biq2021(root: Path) -> None:
    touch(root / "Images", "ss01 (1).jpg", "ss02 (1014).JPG", "ss03 (7805).jpg")
    (root / "Train (Images and MOS).csv").write_text(
        "Image Name,MOS,,\nss01 (1).jpg,0.8471,,\nss02 (1014).jpg,0.25,,\n"
    )
    (root / "Test (Images and MOS).csv").write_text("Image Name,MOS\nss03 (7805).jpg,0.7321\n")


MAKERS = {
    "live": make_live,
    "csiq": make_csiq,
    "tid2013": make_tid2013,
    "kadid10k": make_kadid10k,
    "clive": make_clive,
    "koniq10k": make_koniq10k,
    "flive": make_flive,
    "biq2021": make_biq2021,
}


@pytest.fixture
def made(tmp_path):
    def make(name: str) -> IQADataset:
        MAKERS[name](tmp_path)
        return load_dataset(name, tmp_path)

    return make


def scores(dataset: IQADataset) -> dict[str, float]:
    return {r.name: r.score for r in dataset.records}


@pytest.mark.parametrize("name", MAKERS)
def test_every_record_is_a_file_with_a_score_between_0_and_1(made, name):
    dataset = made(name)
    assert all(r.path.is_file() for r in dataset.records)
    assert len({r.path for r in dataset.records}) == len({r.name for r in dataset.records}) == len(dataset.records)
    assert 0 <= dataset.scores.min() < dataset.scores.max() <= 1


def test_live_leaves_out_reference_copies_and_turns_dmos_round(made):
    dataset = made("live")
    assert len(dataset.records) == 982 - sum(count // 6 for _, count in LIVE_FOLDERS)
    first, last = dataset.records[0], dataset.records[-1]
    assert (first.name, first.reference) == ("jp2k/img1.bmp", "ref1.bmp")
    assert first.path.name == "img1.bmp"
    assert last.name == "fastfading/img173.bmp"
    assert first.score > 0.98
    assert last.score < 0.02


def test_live_takes_the_releases_own_dmos_too(made, tmp_path):
    scipy_io = pytest.importorskip("scipy.io")
    wanted = made("live")
    arrays = scipy_io.loadmat(tmp_path / "dmos_realigned.mat")
    (tmp_path / "dmos_realigned.mat").unlink()
    scipy_io.savemat(tmp_path / "dmos.mat", {"dmos": arrays["dmos_new"], "orgs": arrays["orgs"]})
    assert load_dataset("LIVE", tmp_path) == wanted


@pytest.mark.parametrize("layout", ["dst_imgs_all", "dst_imgs"])
def test_csiq_is_read_flat_or_by_type(made, tmp_path, layout):
    by_type = made("csiq")
    assert len(by_type.records) == 36
    assert by_type.records[0].score == 1
    assert {r.reference for r in by_type.records} == {"1600", "trolley", "boston"}
    files = [r.path.rename(tmp_path / r.path.name) for r in by_type.records]
    shutil.rmtree(tmp_path / "dst_imgs")
    (tmp_path / layout).mkdir()
    for file in files:
        file.rename(tmp_path / layout / file.name)
    np.testing.assert_array_equal(load_dataset("csiq", tmp_path).scores, by_type.scores)


def test_csiq_workbook_is_read_or_openpyxl_is_asked_for(made, tmp_path, monkeypatch):
    wanted = made("csiq")
    lines = [line.split() for line in (tmp_path / "csiq_label.txt").read_text().splitlines()]
    (tmp_path / "csiq_label.txt").unlink()
    (tmp_path / "csiq.DMOS.xlsx").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(DgiqaError, match=r"pip install openpyxl.*csiq_label.txt"):
        load_dataset("csiq", tmp_path)
    monkeypatch.setitem(sys.modules, "openpyxl", _Workbook(lines))
    assert scores(load_dataset("csiq", tmp_path)) == pytest.approx(scores(wanted))


def test_a_csiq_workbook_of_another_kind_is_refused(made, tmp_path, monkeypatch):
    made("csiq")
    (tmp_path / "csiq_label.txt").unlink()
    (tmp_path / "csiq.DMOS.xlsx").write_bytes(b"")
    book = _Workbook([["1600.AWGN.1.png", "0.1"]])
    monkeypatch.setitem(sys.modules, "openpyxl", book)
    book.iter_rows = lambda values_only: iter([("image", "dst_type", "dst_lev", "dmos"), ("a", "glare", 1.0, 0.1)])
    with pytest.raises(DgiqaError, match=r"the distortions \['glare'\]; known are noise, blur"):
        load_dataset("csiq", tmp_path)
    book.clear()
    with pytest.raises(DgiqaError, match="no sheet all_by_image with dmos, dst_lev, dst_type, image"):
        load_dataset("csiq", tmp_path)


class _Workbook(dict):
    """What openpyxl shows of csiq.DMOS.xlsx: a header in the fourth row, fourth column; numbers are floats."""

    def __init__(self, lines: list[list[str]]) -> None:
        types = {token: name for name, token in CSIQ_TYPES.items()}
        rows = [(None,) * 9] * 3 + [(*(None,) * 3, "image", "dst_idx", "dst_type", "dst_lev", "dmos_std", "dmos")]
        for name, dmos in lines:
            image, token, level, _ = name.split(".")
            picture = 1600.0 if image == "1600" else image
            rows.append((*(None,) * 3, picture, 1.0, types[token], float(level), 0.1, float(dmos)))
        self["all_by_image"] = self
        self.iter_rows = lambda values_only: iter([*rows, (None,) * 9])

    def load_workbook(self, path, **options):
        return self

    def close(self):
        pass


def test_tid2013_ignores_the_mixed_case_of_its_names(made):
    dataset = made("tid2013")
    assert [r.reference for r in dataset.records] == ["i01", "i01", "i01", "i02", "i25"]
    assert [r.path.name for r in dataset.records][:3] == ["I01_01_1.bmp", "i01_01_2.bmp", "I01_02_1.BMP"]
    np.testing.assert_allclose(dataset.scores, np.array([5.5, 4.5, 0.24, 7.21, 3.0]) / 9)


def test_kadid10k_dmos_is_higher_better(made):
    dataset = made("kadid10k")
    assert len(dataset.records) == 40
    assert scores(dataset)["I01_01_01.png"] == pytest.approx(3.93 / 4)
    assert scores(dataset)["I01_25_05.png"] == 0
    assert dataset.records[0].reference == "i01.png"


def test_clive_leaves_out_the_training_images(made, tmp_path):
    dataset = made("clive")
    assert scores(dataset) == pytest.approx({"3.bmp": 0.0342, "4.JPG": 0.5, "10.bmp": 0.6, "1146.JPG": 0.9243})
    (tmp_path / "Images").rename(tmp_path / "inner")
    (tmp_path / "Images").mkdir()
    (tmp_path / "inner").rename(tmp_path / "Images" / "Images")
    assert scores(load_dataset("LIVE Challenge", tmp_path)) == scores(dataset)


def test_biq2021_keeps_its_split_and_cuts_no_validation_part(made):
    train, validation, test = official_split(made("biq2021"))
    assert [r.score for r in train.records] == [0.8471, 0.25]
    assert train.records[1].path.name == "ss02 (1014).JPG"  # named .jpg in the list
    assert not validation.records
    assert [r.name for r in test.records] == ["ss03 (7805).jpg"]


def test_koniq10k_has_an_official_split_and_prefers_the_large_pictures(made, tmp_path):
    dataset = made("koniq10k")
    assert dataset.records[0].path.parent.name == "1024x768"
    assert dataset.records[1].score == pytest.approx(0.1391)
    assert [len(part.records) for part in official_split(dataset)] == [7, 1, 2]
    (tmp_path / "koniq10k_scores_and_distributions.csv").unlink()
    assert load_dataset("KonIQ-10k", tmp_path) == dataset
    MAKERS["koniq10k"](tmp_path)
    (tmp_path / "koniq10k_distributions_sets.csv").unlink()
    with pytest.raises(DgiqaError, match="no official split"):
        official_split(load_dataset("koniq", tmp_path))


def test_flive_names_have_folders_and_an_official_split(made):
    dataset = made("flive")
    assert dataset.records[1].score == pytest.approx(0.9433)
    train, validation, test = official_split(dataset)
    assert [len(train.records), len(validation.records), len(test.records)] == [3, 1, 1]
    assert test.records[0].name == "voc_emotic_ava/JPEGImages__2010_005647.jpg"


def test_a_csv_gives_any_folder_records(tmp_path):
    touch(tmp_path, "a/one.png", "two.png", "three.png")
    (tmp_path / "labels.csv").write_text(
        "image,score,reference,split\na/one.png,5,x,training\ntwo.png,1,x,val\nthree.png,3,,test\n"
    )
    dataset = load_dataset("csv", tmp_path)
    assert [(r.score, r.reference, r.split) for r in dataset.records] == [
        (1.0, "x", "train"),
        (0.0, "x", "validation"),
        (0.5, None, "test"),
    ]
    lower_better = load_csv(tmp_path / "labels.csv", worst=5, best=0)
    assert [r.score for r in lower_better.records] == pytest.approx([0, 0.8, 0.4])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,mark\na.png,1\n", "columns image, mark.*wanted the columns image, score"),
        ("image,score\na.png,1\nb.png,1\n", "all 2 scores are 1.0"),
        ("image,score,split\na.png,1,dev\nb.png,2,test\n", r"\['dev'\]"),
        ("image,score\na.png,1\nnowhere.png,2\n", "2 pictures wanted.*1 there; missing nowhere.png"),
        ("image,score\na.png,good\nb.png,2\n", "labels.csv has the score 'good'; wanted a finite number"),
        ("image,score\na.png,nan\nb.png,2\n", "the score 'nan'; wanted a finite number"),
        ("image,score\na.png,1\nb.png\n", "row 2 ends before image, score"),
    ],
)
def test_a_wrong_csv_says_what_is_wrong(tmp_path, text, message):
    touch(tmp_path, "a.png", "b.png")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DgiqaError, match=message):
        load_dataset("csv", tmp_path)


def test_names_match_however_their_accents_are_written(tmp_path):
    """An archive from macOS writes e and its accent apart, the list writes one letter."""
    touch(tmp_path, "caf\u0065\u0301.png", "two.png")
    (tmp_path / "labels.csv").write_text("image,score\ncaf\u00e9.png,1\ntwo.png,2\n", encoding="utf-8")
    assert load_dataset("csv", tmp_path).records[0].path.is_file()
    (tmp_path / "labels.csv").write_bytes("image,score\ncafé.png,1\n".encode("latin-1"))
    with pytest.raises(DgiqaError, match=r"labels\.csv is not UTF-8 text"):
        load_dataset("csv", tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "text", "message"),
    [
        ("tid2013", "mos_with_names.txt", "5.5 i01_01_1.bmp\n4.5\n", "a line with only '4.5'"),
        ("tid2013", "mos_with_names.txt", "5.5 i01.bmp\n", r"missing i01\.bmp"),
        ("csiq", "csiq_label.txt", "1600.AWGN.1.png x\n", "csiq_label.txt has the score 'x'"),
        ("csiq", "csiq_label.txt", "1600 0.1\n", "lists '1600'; wanted names such as"),
        ("kadid10k", "dmos.csv", "dist_img,ref_img,dmos\nI99_9_9.png,I01.png,3\n", r"missing I99_9_9\.png"),
        ("kadid10k", "dmos.csv", "dist_img,ref_img,mos\nI01_01_01.png,I01.png,3\n", "wanted the columns .*dmos"),
        ("koniq10k", "koniq10k_distributions_sets.csv", "image_name,MOS,set\n10000.jpg,50,dev\n", r"\['dev'\]"),
        ("clive", "Data/AllMOS_release.mat", "no MATLAB file", "is not a MATLAB file with AllMOS_release .*https://"),
        ("live", "refnames_all.mat", "", "is not a MATLAB file with refnames_all .*https://"),
    ],
)
def test_damaged_labels_name_the_file_and_what_was_wanted(tmp_path, name, file, text, message):
    MAKERS[name](tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(DgiqaError, match=message):
        load_dataset(name, tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,score\na.png," + "1" * 200_000, "is not a CSV from line 2 on"),
        ("score,image\n1,a.png\n2", "row 2 ends before image, score"),
        ("image,score\n" + "n" * 300 + "/a.png,1\nb.png,2", "2 pictures wanted"),
        ("image,score\na.png,-1e308\nb.png,1e308", "too far apart for a number"),
    ],
    ids=["a long field", "a short row", "a long name", "a wide range"],
)
def test_a_csv_that_no_program_wrote_is_refused(tmp_path, text, message):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DgiqaError, match=message):
        load_dataset("csv", tmp_path)


def test_labels_that_cannot_be_read_are_named(tmp_path):
    make_kadid10k(tmp_path)
    (tmp_path / "dmos.csv").unlink()
    (tmp_path / "dmos.csv").symlink_to(tmp_path / "images" / "no.csv")
    with pytest.raises(DgiqaError, match=r"dmos\.csv"):
        load_dataset("kadid10k", tmp_path)
    (tmp_path / "labels.csv").mkdir()
    with pytest.raises(DgiqaError, match=r"labels\.csv cannot be read \(Is a directory\)"):
        load_dataset("csv", tmp_path)


@pytest.mark.parametrize("name", ["csiq", "tid2013", "kadid10k", "koniq10k", "flive"])
def test_damaged_labels_are_a_dgiqa_error_whatever_is_damaged(made, tmp_path, name):
    made(name)
    path = next(tmp_path.rglob(Path(LABELS[name]).name))
    whole, random = path.read_bytes(), Random(3)
    for _ in range(60):
        path.write_bytes(damaged(whole, random))
        with contextlib.suppress(DgiqaError):  # anything else fails the test
            load_dataset(name, tmp_path)


def test_a_damaged_workbook_is_no_workbook(made, tmp_path, monkeypatch):
    class Broken:
        @staticmethod
        def load_workbook(*arguments, **options):
            raise KeyError("xl/workbook.xml")

    made("csiq")
    (tmp_path / "csiq_label.txt").unlink()
    (tmp_path / "csiq.DMOS.xlsx").write_bytes(b"PK")
    monkeypatch.setitem(sys.modules, "openpyxl", Broken())
    with pytest.raises(DgiqaError, match="is not an Excel workbook"):
        load_dataset("csiq", tmp_path)


def test_a_matlab_file_without_its_array_is_named(made, tmp_path):
    made("live")
    pytest.importorskip("scipy.io").savemat(tmp_path / "dmos_realigned.mat", {"orgs": np.zeros(3)})
    with pytest.raises(
        DgiqaError, match=r"dmos_realigned.mat is not a MATLAB file with dmos_new and orgs \('dmos_new'\)"
    ):
        load_dataset("live", tmp_path)


LABELS = {
    "live": "refnames_all.mat",
    "csiq": "csiq_label.txt",
    "tid2013": "mos_with_names.txt",
    "kadid10k": "dmos.csv",
    "clive": "Data/AllMOS_release.mat",
    "koniq10k": "koniq10k_scores_and_distributions.csv",
    "flive": "labels_image.csv",
    "biq2021": "Test (Images and MOS).csv",
}


@pytest.mark.parametrize("name", MAKERS)
def test_half_unpacked_says_what_is_missing_where_and_where_to_get_it(made, tmp_path, name):
    records = made(name).records
    records[2].path.unlink()
    total, there = len(records), len(records) - 1
    with pytest.raises(
        DgiqaError, match=f"{name}: {total} pictures wanted in .*, {there} there; missing .*https://"
    ) as e:
        load_dataset(name, tmp_path)
    assert records[2].name.lower() in str(e.value).lower()
    assert str(tmp_path) in str(e.value)


@pytest.mark.parametrize("name", MAKERS)
def test_missing_labels_and_folders_say_what_was_looked_for_and_found(made, tmp_path, name):
    made(name)
    (tmp_path / LABELS[name]).unlink()
    (tmp_path / "koniq10k_distributions_sets.csv").unlink(missing_ok=True)
    with pytest.raises(
        DgiqaError, match=f"{name}: .*{re.escape(Path(LABELS[name]).name)}.* was looked for in .*there is .*https:"
    ):
        load_dataset(name, tmp_path)
    with pytest.raises(DgiqaError, match=f"{name} was looked for in .*nowhere.*https://"):
        load_dataset(name, tmp_path / "nowhere")
    with pytest.raises(DgiqaError, match=r"nope\.csv: no such file; wanted a CSV"):
        load_dataset("csv", tmp_path / "nope.csv")


def test_missing_picture_folder_is_named(tmp_path):
    make_kadid10k(tmp_path)
    (tmp_path / "images").rename(tmp_path / "kadid10k")
    with pytest.raises(DgiqaError, match=r"images/ or distorted_images/ was looked for in .*dmos.csv, kadid10k"):
        load_dataset("kadid10k", tmp_path)


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="live, csiq, tid2013, kadid10k, clive, koniq10k, flive, biq2021, csv"):
        load_dataset("spaq", tmp_path)


@pytest.mark.parametrize("name", ["live", "csiq", "tid2013", "kadid10k"])
def test_no_reference_is_in_both_parts(made, name):
    dataset = made(name)
    seen = set()
    for seed in range(10):
        train, test = random_split(dataset, seed)
        references = [{r.reference for r in part.records} for part in (train, test)]
        assert references[0].isdisjoint(references[1])
        assert len(train.records) + len(test.records) == len(dataset.records)
        assert len(references[0]) == int(0.8 * len(references[0] | references[1]))
        seen.add(frozenset(references[1]))
    assert len(seen) > 1


def test_authentic_pictures_are_split_one_by_one(made):
    train, test = random_split(made("koniq10k"), seed=0)
    assert (len(train.records), len(test.records)) == (8, 2)


def test_a_split_depends_on_neither_record_order_nor_hash_seed(made, tmp_path):
    dataset = made("kadid10k")
    shuffled = IQADataset(dataset.name, dataset.records[::-1], dataset.worst, dataset.best)
    wanted = sorted(r.name for r in random_split(dataset, 5)[1].records)
    assert sorted(r.name for r in random_split(shuffled, 5)[1].records) == wanted
    code = (
        "import sys; from dgiqa.nn.datasets import *; "
        "print(*sorted(r.name for r in random_split(load_dataset('kadid10k', sys.argv[1]), 5)[1].records))"
    )
    root = str(Path(__file__).parents[1])
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": root}
        ran = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], env=environment, capture_output=True, text=True, check=True
        )
        assert ran.stdout.split() == wanted


def picture(path: Path, seed: int, height: int = 240, width: int = 300) -> Path:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    cv2.imwrite(str(path), image)
    return path


class Counted:
    """A depth network that is the green channel and counts its calls."""

    def __init__(self, name: str = "green") -> None:
        self.calls = 0
        self.network = DepthNetwork(name, self.depth)

    def depth(self, rgb):
        self.calls += 1
        return np.ascontiguousarray(rgb[..., 1])


def test_depth_is_computed_once_per_content_and_network(tmp_path):
    counted, other, cache = Counted(), Counted("other"), tmp_path / "cache"
    path = picture(tmp_path / "a.png", 0)
    shutil.copy(path, tmp_path / "copy.png")
    _, first = cached_rgb_and_depth(path, counted.network, cache)
    np.testing.assert_array_equal(first, cv2.imread(str(path))[..., 1])
    np.testing.assert_array_equal(cached_rgb_and_depth(tmp_path / "copy.png", counted.network, cache)[1], first)
    assert counted.calls == 1
    cached_rgb_and_depth(path, other.network, cache)
    assert other.calls == 1
    cached_rgb_and_depth(picture(path, 1), counted.network, cache)  # same name, other content
    assert counted.calls == 2
    assert len(list(cache.iterdir())) == 3


def test_a_damaged_depth_file_is_made_again(tmp_path):
    counted, path = Counted(), picture(tmp_path / "a.png", 0)
    _, wanted = cached_rgb_and_depth(path, counted.network, tmp_path / "cache")
    file = next((tmp_path / "cache").iterdir())
    file.write_bytes(file.read_bytes()[:20])
    np.testing.assert_array_equal(cached_rgb_and_depth(path, counted.network, tmp_path / "cache")[1], wanted)
    assert counted.calls == 2


def test_samples_have_rgb_and_depth_of_one_size(tmp_path):
    counted, cache = Counted(), tmp_path / "cache"
    records = [
        Record("a", picture(tmp_path / "a.png", 0), 0.5, "r1"),
        Record("b", picture(tmp_path / "b.png", 1, 768, 1024), 0.25, "r1"),
        Record("c", picture(tmp_path / "c.png", 2), 0.1, "r1"),
        Record("d", picture(tmp_path / "d.png", 3), 0.0),
    ]
    assert fill_depth_cache(records, counted.network, cache) == 4
    samples = Samples(records, partial(with_depth, network=counted.network, cache_dir=cache))
    assert counted.calls == 4
    assert samples[0].rgb.shape == (384, 480, 3)
    assert samples[1].rgb.shape == (384, 512, 3)
    for sample in (samples[i] for i in range(4)):
        assert sample.depth.shape == sample.rgb.shape[:2]
        assert np.abs(sample.depth.astype(int) - sample.rgb[..., 1]).max() <= 1
    assert counted.calls == 4


@pytest.mark.parametrize(("ends", "label"), [((1.0, 5.0), 4.0), ((100.0, 0.0), 25.0)])
def test_without_depth_a_sample_has_its_label_as_it_was_given(tmp_path, ends, label):
    sample = plain(Record("a", picture(tmp_path / "a.png", 0), 0.75), ends, Preprocess())
    assert sample.rgb.shape == (384, 480, 3)
    assert not sample.depth.any()
    assert sample.depth.shape == sample.rgb.shape[:2]
    assert sample.score == label


def test_pictures_that_cannot_be_read_are_named_together_before_training_starts(tmp_path, capsys):
    counted, cache = Counted(), tmp_path / "cache"
    records = [Record(name, picture(tmp_path / name, i), 0.5) for i, name in enumerate(("a.png", "b.png", "c.png"))]
    records[0].path.write_bytes(b"no picture")
    records[1].path.unlink()
    with pytest.raises(
        ImageError, match=r"2 of 3 pictures cannot be read: .*a\.png: .*b\.png: No such file.*take them out"
    ):
        fill_depth_cache(records, counted.network, cache)
    assert counted.calls == 1, "the readable one was not made"
    assert "depth images: 3, 1 of them new" in capsys.readouterr().err
    assert fill_depth_cache(records[2:], counted.network, cache) == 0
    assert capsys.readouterr().err == "", "nothing was done, so there is nothing to tell"
    with pytest.raises(ImageError, match=r"a\.png"):
        with_depth(records[0], counted.network, cache)
