"""The recipe of the full-reference score: groups of pairs that can be stopped, their labels, and what is learnt."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("av")

from dgiqa.full_reference import differences
from recipes.full_reference import learn, pairs


def pictures(folder: Path, count: int, side: int = 140) -> list[Path]:
    paths = []
    for number in range(count):
        rough = np.random.default_rng(number).integers(0, 255, (7, 8, 3), np.uint8)
        paths.append(folder / f"{number}.png")
        cv2.imwrite(str(paths[-1]), cv2.resize(rough, (side, side + number), interpolation=cv2.INTER_CUBIC))
    return paths


@pytest.fixture
def quick(monkeypatch):
    """PSNR in SSIMULACRA 2's place, small squares, and nothing that takes long."""
    monkeypatch.setattr(
        pairs, "ssimulacra2", lambda a, b: float(np.clip(100 - np.abs(a.astype(int) - b).mean() * 4, -50, 99))
    )
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
    line = ["--pictures", str(tmp_path), "--groups", "21", "--out"]
    monkeypatch.setattr(pairs, "WORSE", 2)
    assert pairs.main([*line, str(tmp_path / "whole.npz")]) == 0
    group, calls = pairs.group, []

    def stopped(*arguments):
        calls.append(arguments[2])
        if len(calls) == 21:
            raise KeyboardInterrupt
        return group(*arguments)

    monkeypatch.setattr(pairs, "group", stopped)
    with pytest.raises(KeyboardInterrupt):
        pairs.main([*line, str(tmp_path / "parts.npz")])
    assert pairs.main([*line, str(tmp_path / "parts.npz")]) == 0
    assert calls[-1] == 20
    assert calls.count(5) == 1, "nothing is made twice"
    whole, parts = (np.load(tmp_path / name) for name in ("whole.npz", "parts.npz"))
    assert whole["apart"].shape == (42, *differences(*2 * [np.zeros((99, 99, 3), np.uint8)]).shape)
    assert all(np.array_equal(whole[name], parts[name]) for name in whole)


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


def test_weights_are_found_where_a_difference_tells_and_nowhere_below_nothing():
    rng = np.random.default_rng(0)
    apart = rng.gamma(1, 1, (400, 4)) * (1, 5, 0.1, 1)
    true = np.array([1.5, 0.2, 8, 0])
    found = learn.fitted(apart, 1 / (1 + np.exp(apart @ true - learn.TOP)))
    assert found == pytest.approx(true, rel=0.05, abs=0.02)
    assert (learn.fitted(apart, rng.random(400)) >= 0).all()


def test_pairs_become_weights(tmp_path, quick, capsys):
    pictures(tmp_path, 4)
    out = tmp_path / "pairs.npz"
    assert pairs.main(["--pictures", str(tmp_path), "--groups", "11", "--out", str(out)]) == 0
    labels = dict(np.load(out))
    codecs = np.flatnonzero(labels["what"] == "jpeg")
    assert learn.main(["--pairs", str(out)]) == 0, codecs
    said = capsys.readouterr().out
    assert float(said.split("SROCC ")[1].split(",")[0]) > 0.4
