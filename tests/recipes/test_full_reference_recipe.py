"""The recipe of the full-reference score: groups of pairs that can be stopped, their labels, and a head that learns."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("av")

from dgiqa.errors import WeightsError  # noqa: E402
from dgiqa.metrics import srocc  # noqa: E402
from dgiqa.nn.checkpoints import load_dgiqa  # noqa: E402
from dgiqa.nn.network import DGIQA, SMALL  # noqa: E402
from dgiqa.nn.weights import save_weights  # noqa: E402
from recipes.full_reference import learn, pairs  # noqa: E402
from recipes.small import working  # noqa: E402


def pictures(folder: Path, count: int, side: int = 140) -> list[Path]:
    paths = []
    for number in range(count):
        rough = np.random.default_rng(number).integers(0, 255, (7, 8, 3), np.uint8)
        paths.append(folder / f"{number}.png")
        cv2.imwrite(str(paths[-1]), cv2.resize(rough, (side, side + number), interpolation=cv2.INTER_CUBIC))
    return paths


@pytest.fixture
def quick(monkeypatch):
    """PSNR in SSIMULACRA 2's place, no depth network, small squares, and nothing that takes long."""
    monkeypatch.setattr(
        pairs, "ssimulacra2", lambda a, b: float(np.clip(100 - np.abs(a.astype(int) - b).mean() * 4, -50, 99))
    )
    monkeypatch.setattr(working, "Depth", lambda file: lambda rgb: rgb[..., 1])
    monkeypatch.setattr(pairs, "SIDE", 96)


def test_a_group_is_the_reference_and_worse_pictures_and_the_same_for_one_seed(tmp_path, quick):
    paths = pictures(tmp_path, 3)
    made = pairs.group(paths, 5, 1)
    assert len(made) == 1 + pairs.WORSE
    assert made[0][1] == "none"
    assert {rgb.shape for rgb, _, _ in made} == {(96, 96, 3)}
    assert all(not np.array_equal(rgb, made[0][0]) for rgb, _, much in made[1:] if much != 1)
    again = pairs.group(paths, 5, 1)
    assert all(np.array_equal(a[0], b[0]) and a[1:] == b[1:] for a, b in zip(made, again, strict=True))
    turns = [pairs.group(paths, 5, number)[0][0] for number in range(3)]
    assert len({turn.tobytes() for turn in turns}) == 3, "each picture takes its turn"


def test_pairs_go_on_where_they_were_stopped(tmp_path, quick, monkeypatch):
    pictures(tmp_path, 3)
    line = ["--pictures", str(tmp_path), "--depth", "none", "--groups", "21", "--out"]
    monkeypatch.setattr(pairs, "WORSE", 2)
    assert pairs.main([*line, str(tmp_path / "whole")]) == 0
    group, calls = pairs.group, []

    def stopped(*arguments):
        calls.append(arguments[2])
        if len(calls) == 21:
            raise KeyboardInterrupt
        return group(*arguments)

    monkeypatch.setattr(pairs, "group", stopped)
    with pytest.raises(KeyboardInterrupt):
        pairs.main([*line, str(tmp_path / "parts")])
    assert pairs.main([*line, str(tmp_path / "parts")]) == 0
    assert calls[-1] == 20
    assert calls.count(5) == 1, "nothing is made twice"
    whole, parts = (working.load(tmp_path / name) for name in ("whole", "parts"))
    assert np.array_equal(whole[0], parts[0])
    assert all(np.array_equal(whole[2][name], parts[2][name]) for name in whole[2])


def test_labels_follow_people_and_the_metric():
    kinds = [kind for kind in ("jpeg", "jpeg2000", "color_diffusion") for _ in range(5)]
    levels = np.array([1, 2, 3, 4, 5] * 3, float)
    measured = np.array([62, 55, 40, -30, -57, 65, 49, 48, -17, -47, 94, 82, 79, 74, 59], float)
    what = np.array([*kinds, "hevc", "hevc", "color_diffusion"])
    found = learn.labels(what, np.append(levels, (20, 50, 2)), np.append(measured, (95, -90, 70)))
    assert ((found > 0) & (found <= 1)).all()
    assert found[0] == pytest.approx(0.92, abs=0.03), "JPEG's are what people said"
    assert found[14] < 0.8, "people mind colours that run more than the metric does"
    assert (found[15], found[16]) == (pytest.approx(1, abs=0.01), pytest.approx(0.06, abs=0.05))
    assert found[17] < found[11], "within a kind and level the metric tells them apart"


def test_a_head_learns_how_close_pictures_are(tmp_path, quick, monkeypatch):
    pictures(tmp_path, 4)
    line = ["--pictures", str(tmp_path), "--depth", "none", "--groups", "8", "--out", str(tmp_path / "pairs")]
    assert pairs.main(line) == 0
    torch.manual_seed(0)
    start = DGIQA(dataclasses.replace(SMALL, tcb_channels=(4, 4, 4, 4), dilated_channels=8, heads=2))
    save_weights(start, tmp_path / "start.safetensors")
    wanted = np.linspace(0.1, 0.9, 8 * pairs.WORSE)
    monkeypatch.setattr(learn, "labels", lambda what, much, measured: wanted[np.argsort(np.argsort(measured))])
    out = tmp_path / "out.safetensors"
    options = ["--weights", str(tmp_path / "start.safetensors"), "--pairs", str(tmp_path / "pairs"), "--out", str(out)]
    assert learn.main([*options, "--epochs", "12", "--channels", "4"]) == 0
    network = load_dgiqa(out)
    assert network.config.compared == 4
    for name, value in start.state_dict().items():
        assert torch.equal(network.state_dict()[name], value), f"{name} is as it was"
    joined = learn.with_comparison(load_dgiqa(tmp_path / "start.safetensors"), network.state_dict())
    assert joined.config == network.config
    assert all(torch.equal(value, joined.state_dict()[name]) for name, value in network.state_dict().items())
    with pytest.raises(WeightsError, match="another"):
        learn.with_comparison(DGIQA(start.config), network.state_dict())
    kept, shapes = learn.stored_maps(network, tmp_path / "pairs")
    labels = dict(np.load(tmp_path / "pairs/labels.npz"))
    measured = labels["ssimulacra2"][labels["what"] != "none"]
    with torch.inference_mode():
        found = learn.scores(network, kept, shapes, range(8)).numpy()
    assert srocc(found, measured) > 0.5
