"""The RGB half -> the whole small network: what is copied, that RGB features get through, that it learns."""

import contextlib
import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from dgiqa.nn.checkpoints import load_dgiqa
from dgiqa.nn.network import DGIQA, SMALL
from dgiqa.nn.train import build_network, fast_precision
from recipes.small.distortions import TYPES
from recipes.small.synthesis import PRISTINE
from recipes.small.train_small import FIRST, WithTypes, grow, learn, main, validator


class Pictures:
    """Noisy and clean squares: a distortion type that one look tells apart."""

    def __init__(self, count: int = 64) -> None:
        rng = np.random.default_rng(0)
        self.kinds = np.arange(count) % 2
        self.groups = np.arange(count) * (len(TYPES) + 1) + self.kinds
        base = np.full((120, 120, 3), 128.0)
        self.rgb = [np.clip(base + rng.normal(0, 40 * k, base.shape), 0, 255).astype(np.uint8) for k in self.kinds]

    def __len__(self) -> int:
        return len(self.rgb)

    def __getitem__(self, index: int):
        from dgiqa.nn.datasets import Sample

        return Sample(self.rgb[index], self.rgb[index][..., 0], 1.0 - self.kinds[index], int(self.groups[index]))


@pytest.fixture(scope="module")
def rgb_half() -> DGIQA:
    torch.manual_seed(0)
    return build_network("small", "depth_car").eval()


def test_both_branches_start_as_the_rgb_half(rgb_half):
    whole = grow(rgb_half).state_dict()
    half = rgb_half.state_dict()
    for name, tensor in half.items():
        torch.testing.assert_close(whole[name], tensor, rtol=0, atol=0)
        if name.startswith("backbone."):
            torch.testing.assert_close(whole[f"depth_{name}"], tensor, rtol=0, atol=0)
    assert whole.keys() == DGIQA(SMALL).state_dict().keys()


def test_rgb_features_get_through_depth_car_at_the_start(rgb_half):
    """Without that, the score hardly depends on the picture, and the first hundreds of steps learn nothing."""

    def share_of_rgb(model: DGIQA) -> float:
        rgb = torch.randn(2, 4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            by_rgb = model.features(rgb[0], rgb[0][:1].expand(4, -1, -1, -1)).std(0).mean()
            by_depth = model.features(rgb[0][:1].expand(4, -1, -1, -1), rgb[1]).std(0).mean()
        return float(by_rgb / by_depth)

    torch.manual_seed(0)
    assert share_of_rgb(grow(rgb_half).eval()) > 2 * share_of_rgb(build_network("small").eval())


def test_an_ablation_grows_from_the_same_half(rgb_half):
    without = grow(rgb_half, "depth_car")
    assert without.state_dict().keys() == rgb_half.state_dict().keys()


def test_a_network_learns_types_and_scores(tmp_path):
    torch.manual_seed(0)
    config = dataclasses.replace(FIRST, epochs=12, precision=fast_precision(torch.device("cpu")))
    model = learn(build_network("small", "depth_car"), Pictures(), config, tmp_path)
    assert model.state_dict().keys() == build_network("small", "depth_car").state_dict().keys()
    curves = list(csv.DictReader((tmp_path / "losses.csv").open()))
    assert float(curves[-1]["classes"]) < 0.8 * float(curves[0]["classes"])
    noisy, clean = Pictures().rgb[1], Pictures().rgb[0]
    images = torch.stack(
        [torch.from_numpy(x[:112, :112]).permute(2, 0, 1).float() / 255 - 0.45 for x in (noisy, clean)]
    )
    model.train()  # twelve steps are too few for running statistics
    with torch.no_grad():
        bad, good = model(images.repeat(8, 1, 1, 1) * 4.4, images.repeat(8, 1, 1, 1)).reshape(8, 2).mean(0)
    assert good > bad


def test_types_are_told_in_training_only():
    model = WithTypes(build_network("small", "depth_car"))
    image = torch.zeros(2, 3, 64, 64)
    score, logits = model.train()(image, image)
    assert (score.shape, logits.shape) == ((2,), (2, len(TYPES) + 1))
    assert model.eval()(image, image).shape == (2,)


def write_shards(folder: Path) -> None:
    """Ten reference pictures, one distortion type each."""
    rng = np.random.default_rng(0)
    for seed in range(10):
        rgb = rng.integers(0, 256, (6, 230, 230, 3), np.uint8)
        kind, level = np.array([PRISTINE] + [seed] * 5, np.int16), np.arange(6, dtype=np.int16)
        np.savez(folder / f"{seed:06d}.npz", rgb=rgb, kind=kind, level=level, measured=-rng.random((5, 4)))
        np.save(folder / f"{seed:06d}.depth.npy", rgb[..., 0])


def test_the_stages_stop_and_go_on(tmp_path, capsys):
    write_shards(tmp_path)
    out = tmp_path / "run"
    command = ["--data", str(tmp_path), "--out", str(out), "--first-epochs", "2", "--epochs", "1"]
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--minutes", "1e-6"])
    assert stopped.value.code == 0
    assert "54 pictures to learn from, 6 to validate on" in capsys.readouterr().out
    assert not (out / "rgb-half.safetensors").exists()
    assert main(command) == 0
    assert load_dgiqa(out / "rgb-half.safetensors").config == dataclasses.replace(SMALL, depth_car=False)
    assert load_dgiqa(out / "weights.safetensors").config == SMALL
    assert (out / "label-scale.json").exists()
    steps = [row["step"] for row in csv.DictReader((out / "rgb-half" / "losses.csv").open())]
    assert steps == ["1", "2"]


def test_validation_happens_where_the_model_is(monkeypatch):
    """A model on a GPU gets its pictures there: "meta" stands for one, its results come back as they may."""
    monkeypatch.setattr(torch, "autocast", lambda device, *_, **__: contextlib.nullcontext(seen.append(device)))
    seen = []

    class Elsewhere(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1, device="meta"))

        def forward(self, rgb, depth):
            seen.extend((rgb.device.type, depth.device.type))
            return torch.arange(len(rgb))

    pictures = Pictures(6)
    pictures.rgb = [np.zeros((240, 240, 3), np.uint8)] * 6
    assert set(validator(pictures)(Elsewhere())) == {"srocc"}
    assert seen == ["meta"] * 3


def test_a_folder_without_shards_is_one_line(tmp_path, capsys):
    assert main(["--data", str(tmp_path), "--out", str(tmp_path / "run")]) == 1
    assert "no .npz shards in" in capsys.readouterr().err


@pytest.mark.parametrize("has", [{"amx_bf16": True}, {"avx512_bf16": True}, {"avx2": True}, {}])
def test_bf16_is_used_where_the_hardware_has_it(monkeypatch, has):
    """On a CPU with AVX2 alone, a step of either network took three times as long in bf16 as in fp32."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    assert fast_precision(torch.device("cpu")) == ("fp32" if has.keys() <= {"avx2"} else "bf16")
    assert fast_precision(torch.device("cuda")) == "bf16"
