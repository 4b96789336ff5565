"""Shards of `recipes.small.synthesis` become the default model's quality network.

    python -m recipes.small.train_small --data data/synthetic --out runs/small [--minutes M] [--without depth_car]

Three stages, because the whole network learns nothing for its first 800 steps when it starts from random weights:

1. The RGB half alone, on small crops: 500 crops a second on two cores instead of 100.
2. The whole network starts from it: both backbones and their bridges are copies of the RGB half's, Depth-CAR lets RGB
   features through.
3. The whole network once more on crops of a tile's size, which is what it sees in use: validation SROCC 0.882 -> 0.899.

All learn by `dgiqa.nn.train` to score and, from the same features, to tell the distortion types apart: a class label
says more than a score does. A tenth of the reference pictures is kept for validation. A run that was stopped goes on
where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dgiqa.metrics import srocc
from dgiqa.nn.checkpoints import load_dgiqa
from dgiqa.nn.commands import exit_code
from dgiqa.nn.datasets import Sample
from dgiqa.nn.network import DGIQA
from dgiqa.nn.train import (
    ABLATIONS,
    SampleDataset,
    TrainConfig,
    build_network,
    device_of,
    fast_precision,
    normalise,
    train,
)
from dgiqa.nn.weights import read_tensors, save_weights
from dgiqa.spec import TILE
from recipes.small.distortions import TYPES
from recipes.small.synthesis import SyntheticPictures

VALIDATION_EVERY = 10  # one reference picture in so many is never trained on
VALIDATION_SAMPLES = 500

EVERY_STAGE = TrainConfig(t_max_share=1.0, warmup_steps=50, weight_decay=2e-2, ema=0.998, precision="bf16")
FIRST = dataclasses.replace(
    EVERY_STAGE, epochs=40, batch=60, crop=112, lr=2e-3, lr_min=2e-5, consistency=0.0, class_weight=0.15
)
# The ranking loss needs pairs of one picture and type, so all five levels stay together in a batch.
SECOND = dataclasses.replace(
    EVERY_STAGE,
    epochs=10,
    batch=40,
    crop=160,
    lr=5e-4,  # twice that first undoes what the RGB half has learnt
    lr_min=1e-5,
    consistency=0.25,
    consistency_share=0.2,
    rank_weight=1.0,
    rank_margin=0.02,
    class_weight=0.1,
    group_size=5,
    checkpoint_steps=100,
)
LAST = dataclasses.replace(SECOND, epochs=1, crop=TILE, lr=2e-4, consistency=0.0, ema=0.995)


class Subset:
    """The pictures of some references, with the `groups` array that grouped batches need."""

    def __init__(self, pictures: SyntheticPictures, indices: Sequence[int]) -> None:
        self.pictures, self.indices = pictures, indices
        self.groups = pictures.groups[np.asarray(indices)]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.pictures[self.indices[index]]


def split(pictures: SyntheticPictures) -> tuple[Subset, Subset]:
    """Training and validation samples with no reference picture in common."""
    held_out = pictures.picture % VALIDATION_EVERY == VALIDATION_EVERY - 1
    chosen = np.random.default_rng(0).permutation(np.flatnonzero(held_out))[:VALIDATION_SAMPLES]
    return Subset(pictures, np.flatnonzero(~held_out).tolist()), Subset(pictures, np.sort(chosen).tolist())


class WithTypes(nn.Module):
    """A network that also tells distortion types, from the features it scores with.

    rgb, depth f32 [N,3,S,S] -> score f32 [N]; in training (score, logits f32 [N,types + 1]), class 0 being pristine.
    """

    def __init__(self, network: DGIQA) -> None:
        super().__init__()
        self.network = network
        self.classify = nn.Linear(network.fc.in_features, len(TYPES) + 1)

    def forward(self, rgb: Tensor, depth: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        features = self.network.features(rgb, depth)
        score = self.network.score(features)
        return (score, self.classify(features)) if self.training else score


def learn(network: DGIQA, samples: SampleDataset, config: TrainConfig, out: Path, **options: Any) -> DGIQA:
    """The network after `dgiqa.nn.train.train` with distortion types as second target, in evaluation mode.

    out: folder of checkpoint and curves. options: `train`'s.
    """
    weights, _ = read_tensors(train(WithTypes(network), samples, config, out, **options))
    network.load_state_dict({name: weights[f"network.{name}"] for name in network.state_dict()})
    return network.eval()


@torch.no_grad()
def grow(rgb_half: DGIQA, without: str | None = None) -> DGIQA:
    """The whole network, started from its RGB half: every part that the half has, and the depth branch as its copy."""
    model = build_network("small", without)
    state = rgb_half.state_dict()
    for name, tensor in rgb_half.state_dict().items():
        if name.startswith(("backbone.", "tcb")):
            part, rest = name.split(".", 1)
            state["depth_backbone." + rest if part == "backbone" else f"{part}_depth.{rest}"] = tensor
    wanted = model.state_dict()
    model.load_state_dict({name: state[name] for name in wanted if name in state}, strict=False)
    if model.config.depth_car:
        _let_rgb_through(model)
    return model


def _let_rgb_through(model: DGIQA) -> None:
    """Depth-CAR at the start: the mean RGB feature plus a faint depth query, hardly touched by what follows."""
    cross, refine = model.depth_guided_cross_attention, model.refinement_attention
    attention = cross.multihead_attn
    width = attention.embed_dim
    attention.in_proj_weight[2 * width :] = torch.eye(width)
    attention.out_proj.weight.copy_(torch.eye(width))
    for last in (cross.fc[2], refine.fc_spatial[2], refine.multihead_attn_spatial.out_proj):
        last.get_parameter("weight").mul_(0.1)
    if model.config.tcb:
        for level in range(1, 5):
            getattr(model, f"tcb{level}_depth").norm.weight.mul_(0.2)


def validator(samples: Subset) -> Callable[[nn.Module], dict[str, float]]:
    """A function that gives a model's SROCC on the centre crops of the samples."""

    def validate(model: nn.Module) -> dict[str, float]:
        predicted = []
        for start in range(0, len(samples), 50):
            batch = [samples[i] for i in range(start, min(start + 50, len(samples)))]
            rgb = torch.stack([torch.from_numpy(_centre(s.rgb)) for s in batch])
            depth = torch.stack([torch.from_numpy(_centre(s.depth)) for s in batch])
            device = next(model.parameters()).device
            images = normalise(rgb.to(device), depth.to(device), channels_last=True)
            fast = fast_precision(device) == "bf16"
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=fast):
                predicted.append(model(*images).float().cpu().numpy())
        wanted = np.array([samples[i].score for i in range(len(samples))])
        return {"srocc": srocc(np.concatenate(predicted), wanted)}

    return validate


def _centre(image: np.ndarray) -> np.ndarray:
    y, x = (image.shape[0] - TILE) // 2, (image.shape[1] - TILE) // 2
    return np.ascontiguousarray(image[y : y + TILE, x : x + TILE])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m recipes.small.train_small", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of shards with depth images")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, checkpoint and curves")
    parser.add_argument(
        "--first-epochs", type=int, default=FIRST.epochs, help="epochs of the first stage; default: %(default)s"
    )
    parser.add_argument(
        "--epochs", type=int, default=SECOND.epochs, help="epochs of the second stage; default: %(default)s"
    )
    parser.add_argument("--minutes", type=float, help="stop after this long; the same command goes on from there")
    parser.add_argument("--threads", type=int, help="torch threads (default: all cores)")
    parser.add_argument(
        "--labels",
        choices=("metrics", "human"),
        default="metrics",
        help="pseudo-MOS, or what recipes.small.transfer took over from KADID-10k; default: %(default)s",
    )
    parser.add_argument(
        "--precision",
        choices=("auto", "bf16", "fp32"),
        default="auto",
        help="auto: bf16 (as the shipped weights were trained) where the hardware computes in it, else fp32",
    )
    parser.add_argument("--without", choices=ABLATIONS, help="leave out one part of the network")
    options = parser.parse_args(arguments)
    return exit_code(lambda: _train(options))


def _train(options: argparse.Namespace) -> None:
    if options.threads:
        torch.set_num_threads(options.threads)
    deadline = time.monotonic() + 60 * options.minutes if options.minutes else math.inf
    pictures = SyntheticPictures(options.data, human=options.labels == "human")
    training, validation = split(pictures)
    print(f"{len(training)} pictures to learn from, {len(validation)} to validate on", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)

    def stage(network: DGIQA, config: TrainConfig, name: str) -> Path:
        """Weights OUT/NAME.safetensors, from checkpoint and curves in OUT/NAME. Leaves the program at the deadline."""
        target: Path = options.out / f"{name}.safetensors"
        if not target.exists():
            minutes = None if deadline == math.inf else (deadline - time.monotonic()) / 60
            folder = options.out / name
            learn(network, training, config, folder, validation=validator(validation), minutes=minutes)
            if time.monotonic() > deadline:
                print(f"stopped after {options.minutes:g} minutes; the same command goes on from there", flush=True)
                raise SystemExit(0)
            save_weights(network, target)
        return target

    precision = fast_precision(device_of("auto")) if options.precision == "auto" else options.precision
    first = dataclasses.replace(FIRST, epochs=options.first_epochs, precision=precision)
    second = dataclasses.replace(SECOND, epochs=options.epochs, precision=precision)
    last = dataclasses.replace(LAST, precision=precision)
    torch.manual_seed(0)  # of what starts from random weights
    half = stage(build_network("small", "depth_car"), first, "rgb-half")
    whole = stage(grow(load_dgiqa(half), options.without), second, "whole")
    weights = stage(load_dgiqa(whole), last, "weights")
    if options.labels == "metrics":
        pictures.scale.save(options.out / "label-scale.json")
    print(weights)


if __name__ == "__main__":
    sys.exit(main())
