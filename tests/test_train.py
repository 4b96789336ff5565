"""Training promises: RGB and depth augmented as one, the paper's loss, and a kill that costs nothing."""

from __future__ import annotations

import csv
import dataclasses
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from waiting import PATIENCE_S, until

torch = pytest.importorskip("torch")
# ruff: noqa: E402 - the skip comes before what needs torch

from dgiqa.errors import DgiqaError
from dgiqa.nn import train as trainer
from dgiqa.nn.datasets import Sample
from dgiqa.nn.train import CropBatches, TrainConfig, learning_rate, losses, normalise, train

CONFIG = TrainConfig(
    epochs=4,
    batch=4,
    crop=16,
    lr=1e-2,
    seed=3,
    ema=0.9,
    checkpoint_steps=3,
    device="cpu",
)


class Pictures:
    """20 pictures of different sizes whose depth is a copy of their red channel."""

    def __init__(self, stands_after: float = math.inf) -> None:
        rng = np.random.default_rng(0)
        self.left = stands_after
        self.images = [rng.integers(0, 256, (20 + i % 3, 24 + i % 5, 3), np.uint8) for i in range(20)]

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Sample:
        self.left -= 1
        if self.left < 0:
            time.sleep(PATIENCE_S)  # until it is killed
        image = self.images[index]
        return Sample(image, image[..., 0], (index % 4) / 4)


class Tiny(torch.nn.Module):
    """A network with everything that has state in training: batch statistics and dropout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(6, 8, 3, 2), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Dropout2d(0.5)
        )
        self.head = torch.nn.Linear(8, 1)

    def forward(self, rgb, depth):
        return torch.sigmoid(self.head(self.body(torch.cat([rgb, depth], 1)).mean((2, 3)))).reshape(-1)


def run_to_the_end(out: str, stands_after: str, minutes: str = "999", workers: str = "0") -> None:
    """What other processes run (see the end of this file)."""
    torch.set_num_threads(1)
    judged = lambda model: {"srocc": float(next(model.parameters()).sum())}  # noqa: E731
    config = dataclasses.replace(CONFIG, workers=int(workers))
    train(Tiny(), Pictures(float(stands_after)), config, out, validation=judged, minutes=float(minutes))


def rows(path: Path) -> list[list[str]]:
    """A curve without its times."""
    with open(path, newline="") as file:
        head, *others = csv.reader(file)
    kept = [column for column, name in enumerate(head) if name != "seconds"]
    return [[row[column] for column in kept] for row in (head, *others)]


def start(out: Path, stands_after: float = math.inf) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, __file__, str(out), str(stands_after)], env=environment())


def environment() -> dict[str, str]:
    root = str(Path(__file__).parents[1])
    return {**os.environ, "PYTHONPATH": root + os.pathsep + os.environ.get("PYTHONPATH", "")}


@pytest.mark.slow
def test_a_killed_and_resumed_run_ends_in_the_same_curve_and_weights(tmp_path):
    assert start(tmp_path / "whole").wait() == 0
    process = start(tmp_path / "killed", stands_after=42)
    losses_file = tmp_path / "killed" / "losses.csv"
    until(lambda: losses_file.exists() and len(losses_file.read_bytes().splitlines()) > 7)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert len(rows(losses_file)) < 21
    with open(losses_file, "a") as file:
        file.write("19,3,half a li")  # what a kill in the middle of a write leaves
    assert start(tmp_path / "killed").wait() == 0
    assert len(rows(losses_file)) == 21
    for name in ("losses.csv", "validation.csv"):
        assert rows(tmp_path / "killed" / name) == rows(tmp_path / "whole" / name)
    for name in ("weights.safetensors", "best.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_out_of_time_leaves_weights_and_a_run_that_goes_on(tmp_path):
    path = train(Tiny(), Pictures(), CONFIG, tmp_path, minutes=0)
    assert path.exists()
    assert len(rows(tmp_path / "losses.csv")) == 2
    train(Tiny(), Pictures(), CONFIG, tmp_path)
    assert [row[0] for row in rows(tmp_path / "losses.csv")[1:]] == [str(i) for i in range(1, 21)]


def test_the_mean_of_the_weights_is_what_is_judged_and_saved(tmp_path):
    from safetensors.torch import load_file

    saved = []
    for ema in (0.0, 0.9):
        judged: list[torch.Tensor] = []
        config, out = dataclasses.replace(CONFIG, epochs=2, ema=ema), tmp_path / str(ema)
        seen = lambda model, judged=judged: judged.append(model.head.weight.clone()) or {"srocc": 0.5}  # noqa: E731
        train(Tiny(), Pictures(), config, out, validation=seen)
        saved.append(load_file(out / "weights.safetensors")["head.weight"])
        assert torch.equal(saved[-1], judged[-1])
    assert not torch.equal(*saved)


def test_a_run_says_how_it_ends(tmp_path, capsys):
    train(Tiny(), Pictures(), dataclasses.replace(CONFIG, epochs=1), tmp_path, validation=lambda model: {"srocc": 0.5})
    assert "step 5/5, epoch 1.00, loss " in capsys.readouterr().err
    assert (tmp_path / "validation.csv").read_text().split() == ["step,srocc", "5,0.5"]


def test_resuming_with_another_configuration_is_refused_and_named(tmp_path):
    train(Tiny(), Pictures(), CONFIG, tmp_path, minutes=0)
    with pytest.raises(DgiqaError, match=r"lr was 0.01, now 0.02"):
        train(Tiny(), Pictures(), dataclasses.replace(CONFIG, lr=0.02), tmp_path)
    train(Tiny(), Pictures(), dataclasses.replace(CONFIG, lr=0.02), tmp_path, resume=False, minutes=0)


def test_resuming_with_another_network_is_refused(tmp_path):
    train(Tiny(), Pictures(), CONFIG, tmp_path, minutes=0)
    with pytest.raises(DgiqaError, match="another network"):
        train(torch.nn.Sequential(torch.nn.Linear(2, 2)), Pictures(), CONFIG, tmp_path)


def test_rgb_and_depth_are_cropped_and_flipped_together():
    batches = CropBatches(Pictures(), dataclasses.replace(CONFIG, flip=0.5))
    for step in range(len(batches)):
        rgb, depth, _ = batches[step]
        assert torch.equal(rgb[..., 0], depth)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_flips_turn_the_crop_and_nothing_else(flip):
    pictures = Pictures()
    pictures.images = [image[:16, :16] for image in pictures.images]  # one possible crop
    config = dataclasses.replace(CONFIG, flip=flip)
    batches = CropBatches(pictures, config)
    rgb, _, _ = batches[0]
    wanted = pictures.images[batches._plan(0)[0][0]]
    assert np.array_equal(rgb[0], wanted[::-1, ::-1] if flip else wanted)


@pytest.mark.parametrize(("draw", "axis"), [((0, 0, 0, 1), 1), ((0, 0, 1, 0), 0)])
def test_each_flip_has_its_own_draw(draw, axis):
    picture = Pictures()[0]
    rgb, depth = trainer.cut_crop(picture, np.float32([*draw]) * 0.9, 16, 0.5)
    assert np.array_equal(rgb, np.flip(picture.rgb[:16, :16], axis))
    assert np.array_equal(depth, np.flip(picture.depth[:16, :16], axis))


def test_crops_reach_every_position():
    pictures = Pictures()
    pictures.images = [np.arange(18 * 17, dtype=np.uint16).astype(np.uint8).reshape(18, 17, 1).repeat(3, 2)] * 20
    batches = CropBatches(pictures, dataclasses.replace(CONFIG, flip=0.0, epochs=10))
    corners = {int(v) for step in range(len(batches)) for v in batches[step][1][:, 0, 0]}
    assert corners == {0, 1, 17, 18, 34, 35}


def test_a_batch_depends_on_seed_epoch_and_index_only():
    first, second = CropBatches(Pictures(), CONFIG), CropBatches(Pictures(), CONFIG)
    second[17], second[2]
    assert all(torch.equal(a, b) for a, b in zip(first[9], second[9], strict=True))
    other = CropBatches(Pictures(), dataclasses.replace(CONFIG, seed=4))
    assert not torch.equal(first[9][0], other[9][0])
    assert not torch.equal(first[0][0], first[5][0]), "epochs repeat each other"


@pytest.mark.slow
def test_workers_change_nothing(tmp_path):
    # In processes of their own: workers are forked, and a fork of a process in which other tests left threads of
    # OpenVINO running was seen to die of a segmentation fault.
    for workers in ("0", "2"):
        subprocess.run(
            [sys.executable, __file__, str(tmp_path / workers), "inf", "999", workers], env=environment(), check=True
        )
    assert rows(tmp_path / "0" / "losses.csv") == rows(tmp_path / "2" / "losses.csv")


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_two_processes_train_one_network_and_go_on_together(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for minutes in ("0", "999"):
        launch = [*command, __file__, str(tmp_path), "inf", minutes]
        # gloo was seen aborting a process on its way out; the same command then goes on from the checkpoint.
        if subprocess.run(launch, env=environment(), check=False).returncode:
            subprocess.run(launch, env=environment(), check=True)
    curve = rows(tmp_path / "losses.csv")[1:]
    assert [row[0] for row in curve] == [str(step) for step in range(1, 9)]  # 20 samples, 2 x 4 per step, 4 epochs
    assert all(math.isfinite(float(row[3])) for row in curve)
    assert len(rows(tmp_path / "validation.csv")) == 5
    with pytest.raises(DgiqaError, match="processes was 2, now 1"):
        train(Tiny(), Pictures(), CONFIG, tmp_path)


def test_each_process_takes_its_own_part_of_every_step():
    parts = [CropBatches(Pictures(), CONFIG, rank, world=2) for rank in range(2)]
    assert len(parts[0]) == len(parts[1]) == 4 * 2
    seen = [tuple(np.asarray(row).ravel()[:9]) for part in parts for step in range(2) for row in part[step][0]]
    assert len(set(seen)) == 16


def test_an_epoch_sees_every_sample_once_in_an_order_of_its_own():
    batches = CropBatches(Pictures(), CONFIG)
    first, second = (batches._plan(epoch)[0].tolist() for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second


def test_learning_rate_reaches_its_minimum_at_half_of_the_steps():
    config = TrainConfig(lr=1.0, lr_min=0.1)
    assert learning_rate(config, 0, 100) == 1.0
    assert learning_rate(config, 25, 100) == pytest.approx(0.55)
    assert learning_rate(config, 50, 100) == learning_rate(config, 99, 100) == pytest.approx(0.1)
    rising = dataclasses.replace(config, lr_rises=True)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=0.1)
    for step in range(100):
        assert learning_rate(rising, step, 100) == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert learning_rate(TrainConfig(lr=1.0, warmup_steps=9), 0, 100) == pytest.approx(0.1)


def batch_of(count: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    rgb = torch.randint(0, 256, (count, 16, 16, 3), generator=generator, dtype=torch.uint8)
    depth = torch.randint(0, 256, (count, 16, 16), generator=generator, dtype=torch.uint8)
    return rgb, depth, torch.rand(count, generator=generator)


def test_the_loss_is_the_papers():
    model = Tiny().eval()
    rgb, depth, score = batch_of(4)
    total, mse, consistency = losses(model, (rgb, depth, score), TrainConfig(consistency=0.7)).tolist()
    predicted = model(*normalise(rgb, depth))
    mirror = model(*normalise(rgb.flip(2), depth.flip(2)))
    assert mse == pytest.approx(((predicted - score) ** 2).mean().item(), rel=1e-5)
    assert consistency == pytest.approx(((predicted - mirror) ** 2).mean().item(), rel=1e-3)
    assert total == pytest.approx(mse + 0.7 * consistency, rel=1e-6)
    alone = losses(model, (rgb, depth, score), TrainConfig(consistency=0.0)).tolist()
    assert alone == pytest.approx([mse, mse, 0], rel=1e-6)


def test_normalise_is_the_inference_preprocessing():
    rgb, depth, _ = batch_of(2)
    images, depths = normalise(rgb, depth)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(images.permute(0, 2, 3, 1), (rgb.numpy() / 255 - mean) / std, atol=1e-5)
    np.testing.assert_allclose(depths.permute(0, 2, 3, 1), (depth.numpy()[..., None] / 255 - mean) / std, atol=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains(tmp_path, precision):
    config = dataclasses.replace(CONFIG, epochs=1, precision=precision)
    train(Tiny(), Pictures(), config, tmp_path)
    assert all(math.isfinite(float(row[3])) for row in rows(tmp_path / "losses.csv")[1:])


def test_the_network_learns(tmp_path):
    """Brightness is the score: 30 epochs bring the loss far below the scores' variance of 0.078."""

    class Grey(Pictures):
        def __getitem__(self, index: int) -> Sample:
            grey = np.full((20, 20, 3), 60 * (index % 4), np.uint8)
            return Sample(grey, grey[..., 0], (index % 4) / 4)

    config = dataclasses.replace(CONFIG, epochs=30, lr=3e-2, consistency=0.1)
    train(Tiny(), Grey(), config, tmp_path)
    assert np.mean([float(row[4]) for row in rows(tmp_path / "losses.csv")[-20:]]) < 0.03


@pytest.mark.parametrize(
    ("change", "message"),
    [({"precision": "int8"}, "fp32, bf16, fp16"), ({"batch": 0}, "at least 1")],
)
def test_wrong_values_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_samples_that_cannot_be_cropped_are_refused_with_their_shapes():
    with pytest.raises(DgiqaError, match=r"\(20, 24, 3\).*at least 64"):
        trainer.cut_crop(Pictures()[0], np.zeros(4, np.float32), 64, 0.5)


class Diverging(Tiny):
    """Its scores are NaN from the fourth batch on, or in the fourth batch only."""

    def __init__(self, once: bool = False) -> None:
        super().__init__()
        self.batches, self.once = 0, once

    def forward(self, rgb, depth):
        self.batches += self.training
        spoiled = self.batches == 4 if self.once else self.batches >= 4
        return super().forward(rgb, depth) * (math.nan if spoiled else 1)


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    for once in (False, True):
        with pytest.raises(DgiqaError, match=r"loss of step 4 is not finite .*holds the last good state.*smaller lr"):
            train(Diverging(once), Pictures(), CONFIG, tmp_path, resume=False)
        state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
        assert state["step"] == 3
        assert all(value.isfinite().all() for value in state["model"].values())
    assert rows(tmp_path / "losses.csv")[4][3] == "nan", "the curve does not show it"
    rarely = dataclasses.replace(CONFIG, checkpoint_steps=9)
    with pytest.raises(DgiqaError, match="nothing is kept"):
        train(Diverging(), Pictures(), rarely, tmp_path / "at-once")


def test_fp16_survives_a_batch_that_its_loss_scaler_skips(tmp_path):
    train(Diverging(once=True), Pictures(), dataclasses.replace(CONFIG, epochs=1, precision="fp16"), tmp_path)
    assert len(rows(tmp_path / "losses.csv")) == 6


def test_a_full_disk_leaves_the_last_checkpoint_and_says_what_to_do(tmp_path, monkeypatch):
    train(Tiny(), Pictures(), CONFIG, tmp_path, minutes=0)
    kept = (tmp_path / "checkpoint.pt").read_bytes()

    def save(state, path):
        path.write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc] file write failed\nand a stack")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", save)
        with pytest.raises(DgiqaError, match=r"checkpoint\.pt could not be written .*file write failed\); make room"):
            train(Tiny(), Pictures(), CONFIG, tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == kept
    assert not list(tmp_path.glob("*partial*"))
    train(Tiny(), Pictures(), CONFIG, tmp_path)
    assert [row[0] for row in rows(tmp_path / "losses.csv")[1:]] == [str(i) for i in range(1, 21)]


@pytest.mark.parametrize("damage", ["cut short", "other content", "empty"])
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    train(Tiny(), Pictures(), CONFIG, tmp_path, minutes=0)
    path = tmp_path / "checkpoint.pt"
    if damage == "other content":
        torch.save({"model": {}}, path)
    else:
        path.write_bytes(path.read_bytes()[:2000] if damage == "cut short" else b"")
    with pytest.raises(DgiqaError, match=r"checkpoint\.pt is not a checkpoint .*remove it to start again"):
        train(Tiny(), Pictures(), CONFIG, tmp_path)


def test_help_says_what_every_option_means(capsys):
    with pytest.raises(SystemExit):
        trainer.main(["--help"])
    words = " ".join(capsys.readouterr().out.split())
    for part in ("--lr LR peak learning rate; ours", "--grad-clip GRAD_CLIP largest gradient norm", "T_max"):
        assert part in words
    assert set(trainer._field_help()) == {field.name for field in dataclasses.fields(TrainConfig)}


if __name__ == "__main__":
    run_to_the_end(*sys.argv[1:])
