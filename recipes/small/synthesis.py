"""Pristine pictures become a training set: distorted pictures, full-reference measurements, depth images.

    python -m recipes.small.synthesis --pictures DIR --out data/synthetic
    python -m recipes.small.synthesis --depth small_depth.safetensors --out data/synthetic

The first command writes one .npz file per reference picture, the second adds what the depth network sees in each
distorted picture. Files appear whole or not at all, so a run that was stopped goes on where it was.
`SyntheticPictures` reads such a folder as a map-style dataset for `dgiqa.nn.train`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from dgiqa.errors import DgiqaError
from dgiqa.nn.commands import exit_code
from dgiqa.nn.datasets import Sample, read_rgb
from dgiqa.nn.depth import SMALL_PREPROCESS, load_small_depth
from dgiqa.preprocess import depth_input, stretched
from dgiqa.store import replacing
from recipes.small.distortions import LEVELS, TYPES, distort
from recipes.small.labels import LabelScale, fit_scale, full_reference, order_levels
from recipes.small.scenes import load_textures, render

Image = npt.NDArray[np.uint8]

HEIGHT, WIDTH = 288, 384
REFERENCES = 649  # with 40 distorted pictures each: the 26,609 that the default model saw, 12 GB in memory
MAX_PHOTOGRAPH_SIDE = 2560  # pixels
RENDERED_SHARE = 0.1  # of the reference pictures; the others are cut from photographs
CUTS = 20  # tries to find a crop that can stand as pristine, before the sharpest of them is taken
LEAST_SHARPNESS = 10.0  # standard deviation of the Laplacian of the grey picture, in grey levels
LEAST_DETAIL = 0.3  # share of the picture where the standard deviation of 16 x 16 pixels is over FLAT
FLAT = 6.0  # grey levels
LEAST_CHROMA = 6.0  # mean distance from grey in Lab
PRISTINE = -1  # stands for the distortion type of an untouched picture


@dataclass(frozen=True)
class Reference:
    """A pristine picture uint8 [288,384,3] with relative inverse depth f32 [288,384] in [0, 1], or None if unknown."""

    rgb: Image
    inverse_depth: npt.NDArray[np.float32] | None


def make_reference(seed: int, pictures: Path) -> Reference:
    """The picture of that seed: a rendered scene, or a crop of one of the folder's photographs."""
    rng = np.random.default_rng([seed, 0])
    if rng.random() < RENDERED_SHARE:
        rgb, depth = render(seed, _textures(pictures), HEIGHT * 4 // 3, WIDTH * 4 // 3)
        size = (WIDTH, HEIGHT)
        return Reference(
            cv2.resize(rgb, size, interpolation=cv2.INTER_AREA).astype(np.uint8),
            cv2.resize(depth, size, interpolation=cv2.INTER_NEAREST).astype(np.float32),
        )
    photographs = _photographs(pictures)
    photograph = photographs[seed % len(photographs)]
    crops = []
    for _ in range(CUTS):
        crops.append(_cut(photograph, rng))
        if looks_pristine(crops[-1]):
            return Reference(crops[-1], None)
    return Reference(max(crops, key=lambda crop: _sharpness(crop)[0]), None)


def looks_pristine(rgb: Image) -> bool:
    """Whether a picture uint8 [H,W,3] is sharp somewhere, has detail in a good part of it, and colour.

    An out-of-focus background labelled as pristine would teach that blur is good, and the metrics hardly see a
    distortion of what is smooth: with such crops, type and level of a distortion explain much less of the labels.
    Without colour it would teach that a lost one is none.
    """
    sharpness, detail = _sharpness(rgb)
    return sharpness >= LEAST_SHARPNESS and detail >= LEAST_DETAIL and _chroma(rgb) >= LEAST_CHROMA


def _sharpness(rgb: Image) -> tuple[float, float]:
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32)
    mean = cv2.blur(grey, (16, 16))
    deviation = np.sqrt(np.maximum(cv2.blur(grey * grey, (16, 16)) - mean * mean, 0))
    return float(cv2.Laplacian(grey, cv2.CV_32F).std()), float((deviation > FLAT).mean())


def _chroma(rgb: Image) -> float:
    lab = cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
    return float(np.hypot(lab[..., 1], lab[..., 2]).mean())


def _cut(photograph: Image, rng: np.random.Generator) -> Image:
    """A crop between 1.1x the output size and the whole photograph, area-averaged to that size, maybe mirrored."""
    height, width = photograph.shape[:2]
    largest = min(height / HEIGHT, width / WIDTH)
    scale = float(np.exp(rng.uniform(np.log(min(1.1, largest)), np.log(largest))))
    h, w = int(HEIGHT * scale), int(WIDTH * scale)
    y, x = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
    crop = cv2.resize(photograph[y : y + h, x : x + w], (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(crop[:, ::-1] if rng.random() < 0.5 else crop).astype(np.uint8)


def make_shard(seed: int, *, pictures: Path, out: Path, kinds_per_reference: int) -> None:
    """Write out/SEED.npz: all levels of some distortion types of the seed's picture, and the picture itself (row 0)."""
    target = out / f"{seed:06d}.npz"
    if target.exists():
        return
    reference = make_reference(seed, pictures)
    chosen = np.random.default_rng([seed, 1]).permutation(len(TYPES))[:kinds_per_reference]
    images, kinds, levels, measured = [reference.rgb], [PRISTINE], [0], []
    for kind in sorted(chosen.tolist()):
        steps = [
            distort(reference.rgb, TYPES[kind], level, seed, reference.inverse_depth) for level in range(1, LEVELS + 1)
        ]
        measured.append(full_reference(reference.rgb, np.stack(steps)))
        images += steps
        kinds += [kind] * LEVELS
        levels += range(1, LEVELS + 1)
    arrays: dict[str, Any] = {
        "rgb": np.stack(images),
        "kind": np.asarray(kinds, np.int16),
        "level": np.asarray(levels, np.int16),
        "measured": np.concatenate(measured),  # [n - 1,K]: every row but the pristine one
    }
    with replacing(target) as unfinished, unfinished.open("wb") as file:
        np.savez(file, **arrays)


def add_depth(shard: Path, *, weights: Path) -> None:
    """Write SEED.depth.npy beside SEED.npz: the depth image uint8 [n,288,384] of each of its pictures."""
    target = shard.with_suffix(".depth.npy")
    if target.exists():
        return
    network = _depth_network(weights)
    depth = np.stack([_depth_image(network, rgb) for rgb in np.load(shard, allow_pickle=False)["rgb"]])
    with replacing(target) as unfinished, unfinished.open("wb") as file:
        np.save(file, depth)


class SyntheticPictures:
    """The shards of a folder as samples: rgb, depth image, pseudo-MOS in [0, 1], group (picture and distortion type).

    folder: what `python -m recipes.small.synthesis` wrote.
    scale: rank curves to label with; fitted on these very pictures when None.
    human: take the labels that `recipes.small.transfer` wrote instead, and only the pictures that have one.
    Raises DgiqaError when the folder holds no shards, or lacks depth images or human labels.
    """

    def __init__(self, folder: Path, scale: LabelScale | None = None, human: bool = False) -> None:
        files = sorted(folder.glob("[0-9]*.npz"))
        if not files:
            raise DgiqaError(
                f"no .npz shards in {folder}; make some with: python -m recipes.small.synthesis --out {folder}"
            )
        shards = [dict(np.load(file, allow_pickle=False)) for file in files]
        self.rgb: list[Image] = [image for shard in shards for image in shard["rgb"]]
        depth_files = [
            _beside(file, ".depth.npy", "python -m recipes.small.synthesis --depth WEIGHTS") for file in files
        ]
        self.depth: list[Image] = [image for file in depth_files for image in np.load(file, allow_pickle=False)]
        self.kind = np.concatenate([shard["kind"] for shard in shards]).astype(np.int64)
        self.level = np.concatenate([shard["level"] for shard in shards]).astype(np.int64)
        self.picture = np.repeat(np.arange(len(shards)), [len(shard["rgb"]) for shard in shards])
        self.measured = np.concatenate([shard["measured"] for shard in shards])  # distorted pictures only, in order
        distorted = self.kind != PRISTINE
        cells = self.kind[distorted] * LEVELS + self.level[distorted] - 1
        self.scale = scale or fit_scale(self.measured, cells)
        self.score = np.ones(len(self.kind))
        self.score[distorted] = order_levels(self.scale(self.measured).reshape(-1, LEVELS)).reshape(-1)
        if human:
            self._relabel(files)
        self.groups = self.picture * (len(TYPES) + 1) + self.kind + 1  # modulo len(TYPES) + 1: 0 pristine, 1.. the type

    def _relabel(self, files: Sequence[Path]) -> None:
        """Human labels, levels in order; what has none is left out."""
        human_files = [_beside(file, ".human.npy", "python -m recipes.small.transfer --kadid DIR") for file in files]
        labels = np.concatenate([np.load(file, allow_pickle=False) for file in human_files])
        kept = np.flatnonzero(np.isfinite(labels))
        self.rgb, self.depth = [self.rgb[i] for i in kept], [self.depth[i] for i in kept]
        self.kind, self.level, self.picture = self.kind[kept], self.level[kept], self.picture[kept]
        self.score = labels[kept]
        distorted = self.kind != PRISTINE
        self.score[distorted] = order_levels(self.score[distorted].reshape(-1, LEVELS)).reshape(-1)

    def __len__(self) -> int:
        return len(self.rgb)

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.rgb[index], self.depth[index], float(self.score[index]), int(self.groups[index]))


def _beside(shard: Path, suffix: str, command: str) -> Path:
    path = shard.with_suffix(suffix)
    if not path.exists():
        raise DgiqaError(f"{path} is missing; make it with: {command}, on the folder {shard.parent}")
    return path


@cache  # once per worker process
def _photographs(folder: Path) -> Sequence[Image]:
    return [_shrink(read_rgb(path)) for path in photographs_in(folder)]


def photographs_in(folder: Path) -> list[Path]:
    """The photographs of a folder, sorted. Raises DgiqaError when there is none."""
    found = folder.iterdir() if folder.is_dir() else ()
    paths = sorted(path for path in found if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
    if not paths:
        raise DgiqaError(
            f"no .jpg or .png in {folder}; gather some with: python -m recipes.small.photographs --out {folder}"
        )
    return paths


def _shrink(photograph: Image) -> Image:
    scale = MAX_PHOTOGRAPH_SIDE / max(photograph.shape)
    if scale >= 1:
        return photograph
    return cv2.resize(photograph, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA).astype(np.uint8)


@cache
def _textures(folder: Path) -> Sequence[Image]:
    return load_textures(folder)


@cache
def _depth_network(weights: Path) -> nn.Module:
    return load_small_depth(str(weights)).eval()


def _depth_image(network: nn.Module, rgb: Image) -> Image:  # uint8 [H,W,3] -> uint8 [H,W]
    with torch.inference_mode():
        depth = network(torch.from_numpy(depth_input(rgb, SMALL_PREPROCESS))).numpy()
    return stretched(depth, *rgb.shape[:2])


def _run(task: Callable[[Any], None], items: Sequence[Any], processes: int) -> None:
    started = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(processes, initializer=_one_thread) as pool:
        for done, _ in enumerate(pool.imap_unordered(task, items), 1):
            if done % 10 == 0 or done == len(items):
                print(f"{done}/{len(items)}, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def _one_thread() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the first one ends the others
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m recipes.small.synthesis", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=Path, help="folder of pristine photographs: make shards from them")
    parser.add_argument("--depth", type=Path, help="weights of the small depth network: add depth images to the shards")
    parser.add_argument("--out", type=Path, required=True, help="folder of the shards; what is there is kept")
    parser.add_argument(
        "--references", type=int, default=REFERENCES, help="number of pristine pictures; default: %(default)s"
    )
    parser.add_argument(
        "--kinds", type=int, default=8, help="distortion types per picture, five levels each; default: %(default)s"
    )
    parser.add_argument("--first-seed", type=int, default=0, help="of the pictures: more of them, later")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="default: one for each core")
    options = parser.parse_args(arguments)
    if options.pictures is None and options.depth is None:
        parser.error("give --pictures to make shards, --depth to add depth images, or both")
    return exit_code(lambda: _make(options))


def _make(options: argparse.Namespace) -> None:
    if options.depth is not None:
        load_small_depth(str(options.depth))  # a wrong file is found before hours of work
    if options.pictures is not None:
        photographs_in(options.pictures)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.pictures is not None:
        make = partial(make_shard, pictures=options.pictures, out=options.out, kinds_per_reference=options.kinds)
        _run(make, range(options.first_seed, options.first_seed + options.references), options.processes)
    if options.depth is not None:
        shards = sorted(options.out.glob("[0-9]*.npz"))
        if not shards:
            raise DgiqaError(f"no .npz shards in {options.out}; make them first, with --pictures")
        _run(partial(add_depth, weights=options.depth), shards, options.processes)


if __name__ == "__main__":
    sys.exit(main())
