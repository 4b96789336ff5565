"""Distorts the pictures of `recipes.saqt.match` while training reads them; a network learns their labels.

    python -m recipes.saqt.train --data data/saqt --network glintiqa --out runs/saqt
    python -m dgiqa.nn.train --network glintiqa --dataset kadid10k --root KADID --weights runs/saqt/weights.safetensors

No distorted picture is stored: 50,000 pictures would become 6.25 million, 3.7 TB as the method's authors keep them. An
epoch has every picture once with each type and level of its reference, at the size that the network sees, and with one
seed per type. Types are KADID-10k's, at KADID's strengths where `recipes.small.distortions` has others.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dgiqa.errors import DgiqaError
from dgiqa.nn.commands import exit_code
from dgiqa.nn.datasets import DepthNetwork, Sample, bundle_depth, read_rgb, working_pair
from dgiqa.nn.systems import SYSTEMS
from dgiqa.nn.train import add_config_options, add_network_options, config_from, first_network, train
from recipes.saqt.match import ODD_NAMES, fitting
from recipes.small.distortions import KADID_TYPES, distort

Bytes = NDArray[np.uint8]
BEST = 9.0  # the best label for GlintIQA's authors, and for all SYSTEMS here; DGIQA learns 0..1
KADID_STRENGTHS = {  # strengths of the levels there, where they differ from those here
    "gaussian_blur": (0.1, 0.5, 1, 2, 5),
    "motion_blur": (1, 2, 4, 6, 10),
    "color_saturation_2": (1, 2, 3, 6, 9),
    "contrast_change": (-0.3, -0.15, 0, 0.4, 0.6),  # share of contrast lost; below 0, gained
}
KADID_SHIFTS = (0.15, 0.08, 0, -0.08, -0.15)  # of mean_shift


def as_judged(rgb: Bytes, kind: str, level: int, seed: int) -> Bytes:
    """The picture u8 [H,W,3] with a distortion of KADID's, at KADID's strength."""
    if kind == "mean_shift":
        return np.rint(np.clip(rgb + 255 * KADID_SHIFTS[level - 1], 0, 255)).astype(np.uint8)
    strength = KADID_STRENGTHS[kind][level - 1] if kind in KADID_STRENGTHS else None
    return distort(rgb, kind, level, seed, strength=strength)


class Transferred:
    """`Sample`s of all matched pictures, types and levels: rgb uint8 [H,W,3], depth uint8 [H,W], label * best.

    depth: the network for the pristine picture's depth, kept in `cache`; None gives zeros, for networks without depth.
    """

    def __init__(self, data: Path, depth: DepthNetwork | None, cache: Path, best: float = 1.0, seed: int = 0) -> None:
        labels: dict[str, list[tuple[str, int, float]]] = {}
        with (data / "labels.csv").open(newline="") as stream:
            for row in csv.DictReader(stream):
                labels.setdefault(row["reference"], []).append((row["type"], int(row["level"]), float(row["score"])))
        folder = Path(json.loads((data / "statistics.json").read_text())["pictures_folder"])
        with (data / "matches.csv").open(newline="", encoding="utf-8", errors=ODD_NAMES) as stream:
            matched = [(folder / r["source_image"], r["target_reference"]) for r in csv.DictReader(stream)]
        self.pictures = [(path, labels[reference]) for path, reference in matched if reference]
        self.ends = np.cumsum([len(cells) for _, cells in self.pictures])  # of each picture's samples
        self.depth, self.cache, self.best, self.seed = depth, cache, best, seed

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> Sample:
        number = int(np.searchsorted(self.ends, index, "right"))
        path, cells = self.pictures[number]
        kind, level, score = cells[index - self.ends[number]]  # from the end of this picture's samples
        if self.depth:
            rgb, depth = working_pair(path, self.depth, self.cache)
        else:
            rgb = fitting(read_rgb(path))
            depth = np.broadcast_to(np.uint8(0), rgb.shape[:2])
        seed = int(np.random.default_rng([self.seed, number, KADID_TYPES.index(kind)]).integers(2**31))
        return Sample(as_judged(rgb, kind, level, seed), depth, score * self.best)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m recipes.saqt.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder of recipes.saqt.match")
    add_network_options(parser, (*SYSTEMS, "full", "small"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--depth", default="small", help="bundle whose depth network is used; default: %(default)s")
    parser.add_argument("--depth-cache", type=Path, default=Path("runs/depth"), help="default: %(default)s")
    parser.add_argument("--minutes", type=float, help="stop after this long; the same command goes on later")
    add_config_options(parser)
    parser.set_defaults(network="glintiqa")
    if system := SYSTEMS.get(parser.parse_known_args(arguments)[0].network):
        parser.set_defaults(**{**system.training, "epochs": 50, "batch": 128})
    return exit_code(lambda: _run(parser.parse_args(arguments)))


def _run(o: argparse.Namespace) -> None:
    config = config_from(o)
    torch.manual_seed(config.seed)
    alone = o.network in SYSTEMS
    samples = Transferred(
        o.data, None if alone else bundle_depth(o.depth), o.depth_cache, BEST if alone else 1.0, config.seed
    )
    if not samples.pictures:
        raise DgiqaError(f"{o.data} has no matched picture; run recipes.saqt.match first")
    print(f"{len(samples.pictures)} pictures, {len(samples)} samples an epoch", file=sys.stderr)
    print(train(first_network(o), samples, config, o.out, minutes=o.minutes))


if __name__ == "__main__":
    sys.exit(main())
