"""Human labels of KADID-10k reach the pictures whose content is alike, type by type and level by level."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")
# ruff: noqa: E402 - the skips come before what needs them

from dgiqa.errors import DgiqaError
from recipes.small import transfer
from recipes.small.distortions import KADID_TYPES, LEVELS, TYPES
from recipes.small.synthesis import PRISTINE, SyntheticPictures

RED, BLUE = (220, 30, 30), (30, 30, 220)
JPEG, HAZE, SHIFT = (TYPES.index(name) for name in ("jpeg", "haze", "mean_shift"))


def mean_colour(rgb):
    """Content as the mean colour: f64 [3], length 1."""
    values = rgb.reshape(-1, 3).mean(0)
    return values / np.linalg.norm(values)


def dmos(reference: int, kind: int, level: int) -> float:
    return 4.9 - 0.5 * level - 0.02 * kind - 0.3 * reference


@pytest.fixture
def kadid(tmp_path) -> Path:
    """Two references, a red and a blue one, with all of their 125 pictures."""
    root = tmp_path / "kadid10k"
    (root / "images").mkdir(parents=True)
    lines = ["dist_img,ref_img,dmos,var"]
    for reference, colour in enumerate((RED, BLUE), 1):
        picture = cv2.imencode(".png", np.full((8, 8, 3), colour[::-1], np.uint8))[1].tobytes()
        (root / "images" / f"I{reference:02}.png").write_bytes(picture)
        for kind in range(1, 26):
            for level in range(1, 6):
                name = f"I{reference:02}_{kind:02}_{level:02}.png"
                (root / "images" / name).write_bytes(picture)
                lines.append(f"{name},I{reference:02}.png,{dmos(reference, kind, level)},0.1")
    (root / "dmos.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def data(tmp_path) -> Path:
    """A blue and a red picture with a KADID type, a natural one, and one that KADID orders otherwise."""
    folder = tmp_path / "data"
    folder.mkdir()
    kinds = np.array([PRISTINE] + [kind for kind in (JPEG, SHIFT, HAZE) for _ in range(LEVELS)], np.int16)
    levels = np.array([0, *list(range(1, LEVELS + 1)) * 3], np.int16)
    for seed, colour in enumerate((BLUE, RED)):
        rgb = np.full((16, 8, 8, 3), colour, np.uint8)
        np.savez(folder / f"{seed:06d}.npz", rgb=rgb, kind=kinds, level=levels, measured=np.zeros((15, 4)))
        np.save(folder / f"{seed:06d}.depth.npy", rgb[..., 0])
    return folder


def test_each_picture_takes_the_scores_of_the_reference_most_like_it(kadid, data):
    matched = transfer.transfer(kadid, data, mean_colour)
    assert [row[:2] for row in matched] == [("000000", "i02.png"), ("000001", "i01.png")]
    assert all(row[2] > 0.999 for row in matched)
    for seed, reference in ((0, 2), (1, 1)):
        labels = np.load(data / f"{seed:06d}.human.npy")
        assert labels[0] == 1
        wanted = [(dmos(reference, JPEG + 1, level) - 1) / 4 for level in range(1, 6)]
        np.testing.assert_allclose(labels[1:6], wanted)
        assert np.isnan(labels[6:]).all(), "types without a counterpart got a label"


def test_training_reads_human_labels_in_order_and_nothing_else(kadid, data):
    with pytest.raises(
        DgiqaError, match=r"000000\.human\.npy is missing; make it with: python -m recipes\.small\.transfer"
    ):
        SyntheticPictures(data, human=True)
    transfer.transfer(kadid, data, mean_colour)
    swapped = np.load(data / "000000.human.npy")
    swapped[[1, 2]] = swapped[[2, 1]]  # people did not always find the next level worse
    np.save(data / "000000.human.npy", swapped)
    pictures = SyntheticPictures(data, human=True)
    assert len(pictures) == len(pictures.groups) == len(pictures.score) == len(pictures.depth) == 12
    assert set(pictures.kind) == {PRISTINE, JPEG}
    assert (np.diff(pictures.score.reshape(2, 6)) < 0).all()
    assert pictures[7].score == pytest.approx((dmos(1, JPEG + 1, 1) - 1) / 4)
    assert pictures[7].rgb[0, 0].tolist() == list(RED)
    assert len(SyntheticPictures(data)) == 32


def test_missing_scores_and_shards_are_named(kadid, data, tmp_path):
    lines = (kadid / "dmos.csv").read_text().splitlines()
    (kadid / "dmos.csv").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(DgiqaError, match=r"i02\.png lack scores; wanted 25 types at 5 levels"):
        transfer.transfer(kadid, data, mean_colour)
    (kadid / "dmos.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(DgiqaError, match=r"no \.npz shards"):
        transfer.transfer(kadid, tmp_path, mean_colour)
    (kadid / "images" / "I01.png").unlink()
    with pytest.raises(DgiqaError, match=r"1 there; missing i01\.png"):
        transfer.transfer(kadid, data, mean_colour)


def test_types_left_out_are_kadids():
    assert set(transfer.UNLIKE) < set(KADID_TYPES)


@pytest.mark.slow
def test_the_command_runs_with_a_resnets_own_file(kadid, data, tmp_path, capsys):
    """Random weights in torchvision's names stand for the trained ones, which are a download."""
    from dgiqa.nn.backbones import import_timm

    torch.manual_seed(0)
    network = import_timm().create_model("resnet101", num_classes=10)
    torch.save(network.state_dict(), tmp_path / "resnet101.pth")
    command = ["--kadid", str(kadid), "--data", str(data), "--resnet"]
    assert transfer.main([*command, str(tmp_path / "resnet101.pth")]) == 0
    with open(data / "transfer.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["shard"] for row in rows] == ["000000", "000001"]
    assert all(0 < float(row["cosine_similarity"]) <= 1.0001 for row in rows)
    assert "2 pictures took labels from" in capsys.readouterr().out
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    assert transfer.main([*command, str(tmp_path / "other.pth")]) == 1
    assert "is no ResNet-101" in capsys.readouterr().err
