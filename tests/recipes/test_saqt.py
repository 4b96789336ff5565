"""Semantic-aligned quality transfer: matches, labels, the guard, a run that is killed, and pictures made on the fly."""

from __future__ import annotations

import csv
import functools
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from dgiqa.errors import DgiqaError  # noqa: E402
from dgiqa.nn.backbones import import_timm  # noqa: E402
from dgiqa.nn.datasets import load_dataset, random_split  # noqa: E402
from dgiqa.nn.systems import SYSTEMS, System  # noqa: E402
from dgiqa.nn.weights import save_weights  # noqa: E402
from dgiqa.spec import QUALITY_RGB, Preprocess  # noqa: E402
from recipes.saqt import match, train  # noqa: E402
from recipes.small.distortions import KADID_TYPES  # noqa: E402

REFERENCES = 5


def scene(number: int, height: int = 96, width: int = 128) -> np.ndarray:
    rng = np.random.default_rng(number)
    rough = cv2.resize(rng.integers(0, 255, (5, 6, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(number % 5):
        corner, size = rng.integers(0, 60, 2), rng.integers(10, 40, 2)
        cv2.rectangle(rough, corner.tolist(), (corner + size).tolist(), rng.integers(0, 255, 3).tolist(), -1)
    return rough


def score(reference: int, kind: int, level: int) -> float:
    return round(4.9 - 0.6 * level - 0.02 * kind - 0.01 * reference, 2)


@pytest.fixture(scope="module")
def kadid(tmp_path_factory) -> Path:
    """KADID-10k's layout with five references and all types and levels; the pictures of one reference are alike."""
    root = tmp_path_factory.mktemp("kadid")
    (root / "images").mkdir()
    rows = ["dist_img,ref_img,dmos,var"]
    for n in range(1, REFERENCES + 1):
        reference = cv2.imencode(".png", scene(n))[1].tobytes()
        (root / f"images/I{n:02}.png").write_bytes(reference)
        for kind in range(1, 26):
            for level in range(1, 6):
                name = f"I{n:02}_{kind:02}_{level:02}.png"
                (root / "images" / name).write_bytes(reference)
                rows.append(f"{name},I{n:02}.png,{score(n, kind, level)},1")
    (root / "dmos.csv").write_text("\n".join(rows))
    return root


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    """Each reference once more, larger and brighter, and others; one file is no picture."""
    folder = tmp_path_factory.mktemp("pristine")
    (folder / "sub").mkdir()
    for n in range(1, REFERENCES + 1):
        larger = cv2.resize(scene(n), (256, 192), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"like{n}.png"), np.clip(larger * 1.02 + 2, 0, 255).astype(np.uint8))
    for n in range(6, 12):
        cv2.imwrite(str(folder / f"sub/other{n}.jpg"), scene(n))
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n....")
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_extractor():
    """Making the network and reading its weights takes longer than the pictures."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(match, "extractor", functools.cache(match.extractor))
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A ResNet-50 that was never trained, with torchvision's names."""
    torch.manual_seed(0)
    network = import_timm().create_model("resnet50.tv_in1k", pretrained=False)
    path = tmp_path_factory.mktemp("resnet") / "resnet50.pth"
    torch.save(network.state_dict(), path)
    return path


def command(kadid: Path, pristine: Path, weights: Path, out: Path, *more: str) -> list[str]:
    found = [
        "--pictures",
        pristine,
        "--root",
        kadid,
        "--out",
        out,
        "--features",
        "resnet50",
        "--weights",
        weights,
        *more,
    ]
    return [str(value) for value in found]


def rows_of(out: Path) -> dict[str, dict[str, str]]:
    with (out / "matches.csv").open(newline="") as stream:
        return {row["source_image"]: row for row in csv.DictReader(stream)}


@pytest.fixture(scope="module")
def matched(kadid, pristine, weights, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("saqt")
    assert match.main(command(kadid, pristine, weights, out)) == 0
    return out


def test_a_picture_takes_the_reference_that_shows_the_same_and_all_its_scores(matched):
    rows = rows_of(matched)
    assert [rows[f"like{n}.png"]["target_reference"] for n in range(1, 6)] == [f"i{n:02}.png" for n in range(1, 6)]
    assert "sub/other7.jpg" in rows
    assert "broken.png" in rows["broken.png"]["error"]
    assert not rows["broken.png"]["target_reference"]
    facts = json.loads((matched / "statistics.json").read_text())
    assert (facts["pictures"], facts["matched"], len(facts["refused"])) == (12, 11, 1)
    assert sum(facts["taken"].values()) == 11
    samples = train.Transferred(matched, None, matched)
    assert len(samples) == 11 * 125
    numbers = [n for n, (path, _) in enumerate(samples.pictures) if path.name == "like3.png"]
    first = 125 * numbers[0]
    got = {
        (kind, level): samples[first + i].score for i, (kind, level, _) in enumerate(samples.pictures[numbers[0]][1])
    }
    wanted = (score(3, 10, 4) - 1) / 4
    assert got[KADID_TYPES[9], 4] == pytest.approx(wanted)
    assert train.Transferred(matched, None, matched, 9.0)[first].score == pytest.approx(9 * samples[first].score)


def test_references_of_the_test_part_lend_nothing_and_pictures_of_them_are_left_out(kadid, pristine, weights, tmp_path):
    out = tmp_path / "guarded"
    assert match.main(command(kadid, pristine, weights, out, "--split", "random", "--seed", "3")) == 0
    test = {record.reference for record in random_split(load_dataset("kadid10k", kadid), 3)[1].records}
    rows = rows_of(out)
    assert test
    assert test.isdisjoint({row["target_reference"] for row in rows.values()})
    with (out / "labels.csv").open() as stream:
        assert test.isdisjoint({row["reference"] for row in csv.DictReader(stream)})
    for name in test:
        row = rows[f"like{int(name[1:3])}.png"]
        assert not row["target_reference"]
        assert f"{name} of the test part" in row["error"]
    other = command(kadid, pristine, weights, out, "--split", "random", "--seed", "4")
    assert match.main(other) == 1, "another split must not go on in the same folder"


def test_a_run_that_is_killed_goes_on_to_the_same_rows(kadid, pristine, weights, matched, tmp_path):
    out, seen = tmp_path / "killed", []
    file, row = out / "matches.csv", match._row

    def ends(*arguments):
        if len(seen) == 8:
            seen.append(file.read_bytes())  # what a kill would leave: whatever has reached the file, and nothing else
            raise KeyboardInterrupt
        seen.append(b"")
        return row(*arguments)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(match, "CHUNK", 2)
        patched.setattr(match, "_row", ends)
        assert match.main(command(kadid, pristine, weights, out)) == 130
    before = seen[-1]
    assert 4 < before.count(b"\n") < 13
    file.write_bytes(before + b"sub/other9.jp")  # and in the middle of a line
    assert match.main(command(kadid, pristine, weights, out)) == 0
    assert file.read_bytes() == (matched / "matches.csv").read_bytes()
    assert (out / "labels.csv").read_bytes() == (matched / "labels.csv").read_bytes()
    (pristine / "aaa.png").write_bytes((pristine / "like1.png").read_bytes())
    try:
        assert match.main(command(kadid, pristine, weights, out)) == 1, "other pictures"
    finally:
        (pristine / "aaa.png").unlink()


def test_a_csv_with_types_and_levels_serves_as_well_as_kadid(kadid, tmp_path):
    lines = [
        "image,score,reference,type,level",
        "I01_01_02.png,3,I01.png,gaussian_blur,2",
        "I01_10_04.png,2,I01.png,10,4",
    ]
    table = kadid / "images/some.csv"
    table.write_text("\n".join(lines))
    found = match.judged(load_dataset("csv", table), table)
    assert found == {"I01.png": {("gaussian_blur", 2): 1.0, ("jpeg", 4): 0.0}}
    table.write_text("\n".join([*lines, "I01_10_05.png,2,I01.png,unheard,5"]))
    with pytest.raises(DgiqaError, match="unheard"):
        match.judged(load_dataset("csv", table), table)
    table.unlink()


def test_features_have_length_one_and_their_weights_must_fit(weights, tmp_path):
    features = match.extractor("resnet50", weights)
    found = features(scene(1, 900, 1300))
    assert found.shape == (2048,)
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-5)
    with pytest.raises(DgiqaError, match="no resnet101"):
        match.extractor("resnet101", weights)
    with pytest.raises(DgiqaError, match="needs its ImageNet weights"):
        match.extractor("resnet50")
    assert match.fitting(scene(1, 900, 1300)).shape[0] == match.SIDE


def test_the_nearest_is_the_exact_one():
    rng = np.random.default_rng(0)
    known, asked = (
        v / np.linalg.norm(v, axis=1, keepdims=True) for v in (rng.normal(size=(81, 32)), rng.normal(size=(50, 32)))
    )
    index = match.Index([str(n) for n in range(81)], known, [True] * 81)
    assert [index.nearest(row)[0] for row in asked] == [str(n) for n in (asked @ known.T).argmax(1)]


def test_pictures_are_distorted_as_kadid_does():
    rgb = np.full((64, 64, 3), 100, np.uint8)
    assert [int(train.as_judged(rgb, "mean_shift", level, 0)[0, 0, 0]) for level in range(1, 6)] == [
        138,
        120,
        100,
        80,
        62,
    ]
    textured = scene(4)
    spread = [train.as_judged(textured, "contrast_change", level, 0).std() for level in range(1, 6)]
    assert spread == sorted(spread, reverse=True)
    assert spread[2] == pytest.approx(textured.std(), rel=0.01)
    assert np.array_equal(train.as_judged(textured, "gaussian_blur", 1, 0), textured)
    for kind in KADID_TYPES:
        assert train.as_judged(textured, kind, 5, 1).shape == textured.shape


def learning(data: Path, out: Path, network: str, *more: str) -> list[str]:
    line = f"--data {data} --network {network} --out {out} --epochs 1 --batch 4 --crop 96 --device cpu --workers 0"
    return [*line.split(), "--minutes", "0.0005", *more]


def test_a_network_learns_from_what_was_matched(matched, tmp_path):
    cache = ["--depth-cache", str(tmp_path / "depth")]
    assert train.main(learning(matched, tmp_path / "run", "small", *cache)) == 0
    assert (tmp_path / "run/weights.safetensors").exists()


def test_a_further_network_needs_no_line_here(matched, tmp_path, monkeypatch):
    class Mean(torch.nn.Module):
        inputs, preprocess, config = (QUALITY_RGB,), Preprocess(), None

        def __init__(self):
            super().__init__()
            self.last = torch.nn.Linear(3, 1)

        def forward(self, rgb):
            return self.last(rgb.mean((2, 3))).flatten()

    monkeypatch.setitem(SYSTEMS, "mean", System("Mean", Mean, lambda path: Mean(), ("last.",), {"consistency": 0.0}))
    assert train.main(learning(matched, tmp_path / "run", "mean")) == 0
    assert (tmp_path / "run/weights.safetensors").exists()


def test_the_bench_sees_what_a_killed_match_leaves(script, tmp_path, monkeypatch):
    bench = script("bench/saqt.py")
    looks, now = tmp_path / "looks", [0.0]

    def look(seconds):
        now[0] += seconds
        with looks.open("a") as stream:
            stream.write(".")
        time.sleep(0.002)

    looks.touch()
    monkeypatch.setattr(bench, "time", SimpleNamespace(sleep=look, monotonic=lambda: now[0]))
    stub = f"""
import sys, time, pathlib
out = pathlib.Path(sys.argv[2]); out.mkdir(exist_ok=True); (out / "labels.csv").write_text("a")
file = out / "matches.csv"; done = file.read_bytes().count(b"\\n") if file.exists() else 0
looks = pathlib.Path({str(looks)!r})
for row in range(done, 41):  # one whenever somebody looked, and none any more where it is killed
    seen = looks.stat().st_size
    with file.open("a") as stream: stream.write(f"{{row}}\\n")
    while looks.stat().st_size < seen + 2 or (out.name, done, row) == ("killed", 0, 20): time.sleep(0.001)
"""
    found = bench.measure([sys.executable, "-c", stub], tmp_path, 40)
    assert (found["rows"], found["same_bytes"]) == (40, True)
    assert 16 <= found["killed_at"] < 40
    assert 0 < found["matches_per_s"] <= 1 / bench.EVERY_S
    assert 0 < min(found["mb_by_quarter"]) < 100


def test_the_speed_of_a_match_waits_for_a_tick_of_the_clock(script):
    bench = script("bench/saqt.py")
    seen = [bench.Seen(1, 10.0, 0.5, 0.01), bench.Seen(41, 10.0, 2.5, 0.01)]
    assert bench.speed(seen) == {"matches_per_s": 20, "matches_per_cpu_s": None}
    assert bench.speed([*seen, bench.Seen(101, 10.0, 5.5, 0.51)]) == {"matches_per_s": 20, "matches_per_cpu_s": 200}
    assert bench.speed(seen[:1]) == {"matches_per_s": None, "matches_per_cpu_s": None}


def test_what_cannot_be_matched_is_an_error(kadid, weights, tmp_path):
    (tmp_path / "none").mkdir()
    assert match.main(command(kadid, tmp_path / "none", weights, tmp_path / "out")) == 1
    save_weights(
        import_timm().create_model("resnet50.tv_in1k", pretrained=False, num_classes=3), tmp_path / "w.safetensors"
    )
    assert match.main(command(tmp_path, tmp_path / "none", weights, tmp_path / "out")) == 1
