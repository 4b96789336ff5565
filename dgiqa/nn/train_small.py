"""Shards of `dgiqa.nn.synthesis` become the default model's quality network.

    python -m dgiqa.nn.train_small --data data/synthetic --out runs/small [--minutes M] [--without depth_car]

A tenth of the reference pictures is kept for validation. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dgiqa.metrics import srocc
from dgiqa.nn.datasets import Sample
from dgiqa.nn.synthesis import SyntheticPictures
from dgiqa.nn.train import ABLATIONS, TrainConfig, build_network, normalise, train
from dgiqa.spec import TILE

VALIDATION_EVERY = 10  # one reference picture in so many is never trained on
VALIDATION_SAMPLES = 500

# From scratch, so the rates are those of training, not of fine-tuning. Half a group of levels per batch row keeps
# pairs of one picture and type together, which the ranking loss needs.
CONFIG = TrainConfig(
    epochs=12,
    batch=40,
    lr=2e-3,
    lr_min=2e-5,
    t_max_share=1.0,
    warmup_steps=100,
    weight_decay=2e-2,
    consistency=0.25,
    consistency_share=0.2,
    rank_weight=1.0,
    rank_margin=0.02,
    group_size=5,
    ema=0.998,
    precision="bf16",
    checkpoint_steps=100,
)


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


def validator(samples: Subset) -> Callable[[nn.Module], dict[str, float]]:
    """A function that gives a model's SROCC on the centre crops of the samples."""

    def validate(model: nn.Module) -> dict[str, float]:
        predicted = []
        for start in range(0, len(samples), 50):
            batch = [samples[i] for i in range(start, min(start + 50, len(samples)))]
            rgb = torch.stack([torch.from_numpy(_centre(s.rgb)) for s in batch])
            depth = torch.stack([torch.from_numpy(_centre(s.depth)) for s in batch])
            images = normalise(rgb, depth, channels_last=True)
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                predicted.append(model(*images).float().numpy())
        wanted = np.array([samples[i].score for i in range(len(samples))])
        return {"srocc": srocc(np.concatenate(predicted), wanted)}

    return validate


def _centre(image: np.ndarray) -> np.ndarray:
    y, x = (image.shape[0] - TILE) // 2, (image.shape[1] - TILE) // 2
    return np.ascontiguousarray(image[y : y + TILE, x : x + TILE])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of shards with depth images")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, checkpoint and curves")
    parser.add_argument("--epochs", type=int, default=CONFIG.epochs)
    parser.add_argument("--minutes", type=float, help="stop after this long; the same command goes on from there")
    parser.add_argument("--threads", type=int, help="torch threads (default: all cores)")
    parser.add_argument("--without", choices=ABLATIONS, help="leave out one part of the network")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    pictures = SyntheticPictures(options.data)
    training, validation = split(pictures)
    print(f"{len(training)} pictures to learn from, {len(validation)} to validate on", flush=True)
    torch.manual_seed(CONFIG.seed)
    weights = train(
        build_network("small", options.without),
        training,
        dataclasses.replace(CONFIG, epochs=options.epochs),
        options.out,
        validation=validator(validation),
        minutes=options.minutes,
    )
    pictures.scale.save(options.out / "label-scale.json")
    print(weights)


if __name__ == "__main__":
    main()
