"""Fits the head of the reasons to chains again, while the rest of the network stays as it is.

    python -m recipes.small.tell --weights MEAN --root BIQ2021 --opinions data/opinions --out TOLD
    python -m recipes.small.tell --weights MEAN --pictures CLEAN --out TOLD                    (without BIQ2021)

A step of `learn` sees few pictures of each fault, at scales that differ from those of scoring. Here chains of thousands
of photographs go through preprocessing and backbone once, as in scoring, and the head then learns from all of them in a
minute. After that the last layer reads this head's inputs, too, with weights of 0, so that `dgiqa-rt calibrate --adapt`
can weight them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import count, repeat
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from dgiqa.nn.commands import watched
from dgiqa.nn.datasets import read_rgb
from dgiqa.nn.depth import SMALL_PREPROCESS
from dgiqa.nn.network import DGIQA, fault_head, statistics, with_statistics
from dgiqa.nn.weights import save_weights
from dgiqa.preprocess import working_image
from dgiqa.spec import TILE
from recipes.small.chains import clean_photographs, group, judged_photographs
from recipes.small.distortions import TYPES
from recipes.small.learn import network_from, to_input
from recipes.small.measures import average_precision, reason_pictures, saved_chains
from recipes.small.reasons import REASONS, WHY

CLEAN = 0.6  # above this opinion a photograph hardly has a fault of its own, which its chain would not name
HELD_OUT = 10  # one photograph of so many


def tile(rgb: NDArray[np.uint8], corner: int) -> NDArray[np.uint8]:
    """One of the four corner tiles u8 [S,S,3] of a picture u8 [H,W,3], as it is scored."""
    small = working_image(rgb, SMALL_PREPROCESS)
    y, x = (corner // 2) * (small.shape[0] - TILE), (corner % 2) * (small.shape[1] - TILE)
    return small[y : y + TILE, x : x + TILE]


@torch.inference_mode()
def seen(network: DGIQA, tiles: NDArray[np.uint8]) -> Tensor:
    """The head's inputs f32 [n,C] for tiles u8 [n,S,S,3]."""
    with torch.autocast("cpu", torch.bfloat16):
        maps = network.maps(to_input(tiles, tiles[..., 0])[0])
    return statistics([m.float() for m in maps])


def gather(weights: Path, paths: Sequence[Path], workers: int) -> tuple[Tensor, NDArray[np.float32], NDArray[np.int64]]:
    """For a chain of each photograph: the head's inputs f32 [n,C], reasons f32 [n,K], the photograph's number [n]."""
    values, wanted, source = [], [], []
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        chains = pool.map(_seen, repeat(weights), count(), paths, chunksize=4)
        for number, (found, reasons) in enumerate(watched(chains, len(paths), "photographs")):
            values.append(torch.from_numpy(found))
            wanted.append(reasons)
            source += [number] * len(reasons)
    return torch.cat(values), np.concatenate(wanted).astype(np.float32), np.array(source)


@cache
def _opened(weights: Path) -> DGIQA:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    network = network_from(weights, "").eval()
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _seen(weights: Path, number: int, path: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    network = _opened(weights)
    tiles, reasons = chain_of(number, path)
    return seen(network, tiles).numpy(), reasons


def chain_of(number: int, path: Path) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """A tile of each picture in a photograph's chain, u8 [n,S,S,3], and the reasons f [n,K].

    Every second chain has one distortion, whose reason is drawn evenly: half of the reasons are rare in mixtures.
    """
    rgb, rng = read_rgb(path), np.random.default_rng(number)
    if number % 2:
        pictures, reasons = reason_pictures([rgb], number, rounds=1)
    else:
        wanted = REASONS[rng.integers(len(REASONS))]
        types = [kind for kind in TYPES if WHY.get(kind) == wanted]
        pictures, reasons = saved_chains([group("single", rgb, rng, types)], rng)
    return np.stack([tile(picture, int(rng.integers(4))) for picture in pictures]), reasons


def fit(values: Tensor, wanted: Tensor, epochs: int = 30, seed: int = 0) -> nn.Sequential:
    """A head fitted to inputs f32 [n,C] and reasons f32 [n,K]: 1 is present, 0 absent, 0.5 undecided."""
    torch.manual_seed(seed)
    head = fault_head(values.shape[1] // 2, wanted.shape[1])
    with torch.no_grad():  # each column has mean 0 and deviation 1 before the first linear layer
        plain = F.layer_norm(values, values.shape[1:])
        deviation, mean = torch.std_mean(plain, 0)
        head[0].load_state_dict({"weight": 1 / (deviation + 1e-5), "bias": -mean / (deviation + 1e-5)})
    head[0].requires_grad_(False)
    optimiser = torch.optim.AdamW([p for p in head.parameters() if p.requires_grad], lr=2e-3, weight_decay=0.3)
    steps = epochs * len(values) // 128
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=max(2, steps))
    for _ in watched(range(max(2, steps)), max(2, steps), "steps"):
        index = torch.randint(len(values), (128,))
        x = F.dropout(head[0](values[index]), 0.2)
        loss = F.binary_cross_entropy_with_logits(head[1:](x), wanted[index])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
    return head.eval()


def precision(head: nn.Module, values: Tensor, wanted: NDArray[np.float32]) -> dict[str, float]:
    """Average precision of every reason that occurs."""
    with torch.inference_mode():
        told = torch.sigmoid(head(values)).numpy()
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
    parser.add_argument("--root", type=Path, help="folder of BIQ2021")
    parser.add_argument("--opinions", type=Path, help="working pictures of its opinions")
    parser.add_argument("--pictures", type=Path, help="instead of both: a folder of clean photographs")
    parser.add_argument("--count", type=int, default=13000, help="chains of photographs; default: %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="processes that prepare pictures; default: %(default)s")
    parser.add_argument("--out", type=Path, required=True)
    o = parser.parse_args(arguments)
    if (o.root and o.opinions and not o.pictures) == (o.pictures is not None):
        parser.error("give --root and --opinions, or --pictures")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    network = network_from(o.weights, "").eval()
    judged = judged_photographs(o.root, o.opinions) if o.root else clean_photographs(o.pictures, 1.0)
    sources = [source for source in judged if source[1] > CLEAN]
    order = np.random.default_rng(11).permutation(max(o.count, len(sources)))[: o.count]
    values, wanted, source = gather(o.weights, [sources[i % len(sources)][0] for i in order], o.workers)
    held_out = source % HELD_OUT == 0
    head = fit(values[~held_out], torch.from_numpy(wanted[~held_out]))
    found = precision(head, values[held_out], wanted[held_out])
    print(found, "mean", round(float(np.mean(list(found.values()))), 3))
    network.fc_reasons = head
    save_weights(network if network.config.statistics else with_statistics(network), o.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
