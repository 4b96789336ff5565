"""The head that tells reasons, fitted anew to chains while the rest of the network stays as it is.

    python -m recipes.small.tell --weights runs/small/weights.safetensors --chains data/chains --out told.safetensors

A step of `learn` sees few pictures of each fault, and most of its time goes into the backbone. Here every picture goes
through the backbone once for each of a few places, and the head then learns from all of them in a minute.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from dgiqa.nn.backbones import feature_maps
from dgiqa.nn.commands import watched
from dgiqa.nn.network import DGIQA, fault_head, statistics
from dgiqa.nn.weights import save_weights
from dgiqa.spec import TILE
from recipes.small import working
from recipes.small.learn import CHAIN_VALIDATION, SIDES, Pictures, Place, network_from, to_input
from recipes.small.measures import average_precision
from recipes.small.reasons import REASONS

PLACES = 3  # of every picture


def seen(network: DGIQA, pictures: Pictures, places: int, seed: int = 0) -> Tensor:
    """What the head reads of every picture at some places: f32 [n,places,C]."""
    rng, found = np.random.default_rng(seed), []
    blank = np.zeros((places, TILE, TILE), np.uint8)
    with torch.inference_mode():
        for index in watched(range(len(pictures.labels["label"])), len(pictures.labels["label"]), "pictures"):
            sides = rng.integers(SIDES[0], SIDES[1] + 1, places)
            corners = [rng.integers(0, working.SIDE - side + 1, 2) for side in sides]
            crops = [
                pictures.crop(index, Place(int(y), int(x), int(side)))[0]
                for side, (y, x) in zip(sides, corners, strict=True)
            ]
            with torch.autocast("cpu", torch.bfloat16):
                maps = feature_maps(network.backbone, to_input(np.stack(crops), blank)[0])
            found.append(statistics([m.float() for m in maps]))
    return torch.stack(found)


def fit(values: Tensor, wanted: Tensor, epochs: int = 40, seed: int = 0) -> nn.Sequential:
    """A head for values f32 [n,places,C] and reasons f32 [n,K]: 1 is there, 0 is not, 0.5 undecided."""
    torch.manual_seed(seed)
    head = fault_head(values.shape[2] // 2, wanted.shape[1])
    with torch.no_grad():  # each column has mean 0 and deviation 1 before the first linear layer
        plain = F.layer_norm(values.flatten(0, 1), values.shape[2:])
        deviation, mean = torch.std_mean(plain, 0)
        head[0].load_state_dict({"weight": 1 / (deviation + 1e-5), "bias": -mean / (deviation + 1e-5)})
    head[0].requires_grad_(False)
    optimiser = torch.optim.AdamW([p for p in head.parameters() if p.requires_grad], lr=2e-3, weight_decay=0.05)
    steps = epochs * len(values) // 128
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=max(2, steps))
    for _ in watched(range(max(2, steps)), max(2, steps), "steps"):
        index = torch.randint(len(values), (128,))
        place = torch.randint(values.shape[1], (128,))
        x = F.dropout(head[0](values[index, place]), 0.2)
        loss = F.binary_cross_entropy_with_logits(head[1:](x), wanted[index])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
    return head.eval()


def precision(head: nn.Module, values: Tensor, wanted: NDArray[np.float32]) -> dict[str, float]:
    """Average precision of every reason that occurs."""
    with torch.inference_mode():
        told = torch.sigmoid(head(values)).mean(1).numpy()
    return {
        name: round(average_precision(told[:, k], wanted[:, k]), 3)
        for k, name in enumerate(REASONS)
        if (wanted[:, k] == 1).any()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m recipes.small.tell", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--chains", type=Path, nargs="+", required=True)
    parser.add_argument("--places", type=int, default=PLACES)
    parser.add_argument("--out", type=Path, required=True)
    o = parser.parse_args(arguments)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    network, pictures = network_from(o.weights, "").eval(), Pictures(*o.chains)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    values, wanted = seen(network, pictures, o.places), pictures.labels["reasons"]
    held_out = pictures.labels["source"] % CHAIN_VALIDATION == 0
    head = fit(values[~held_out], torch.from_numpy(wanted[~held_out]))
    found = precision(head, values[held_out], wanted[held_out])
    print(found, "mean", round(float(np.mean(list(found.values()))), 3))
    network.fc_reasons = head
    save_weights(network, o.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
