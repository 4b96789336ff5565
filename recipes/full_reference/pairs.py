"""Clean photographs become groups of pictures: each photograph, and worse ones of it that metrics have measured.

    python -m recipes.full_reference.pairs --pictures CLEAN --depth depth.onnx --out data/pairs --groups 600

The first picture of a group is the reference. One in two others has one of thirty distortion types at one of five
levels, the rest were saved by a codec, shrunk, or spoilt twice. Metrics look at the pictures as they are, and the
stored ones are as large as training wants them (`recipes.small.working`). `--metrics` names further ones, for tests.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dgiqa.nn.datasets import read_rgb
from recipes.small import encoding, working
from recipes.small.chains import shrink
from recipes.small.distortions import LEVELS, TYPES, distort

Bytes = NDArray[np.uint8]
SIDE = 512  # of the square that is distorted and measured, pixels
WORSE = 7  # pictures of a group beside the reference
KINDS = ("single", "codec", "small", "mixture")
SHARES = (0.5, 0.32, 0.08, 0.1)
CODECS = {  # the best and the worst quality
    "jpeg": (97, 4),
    "webp": (97, 1),
    "avif": (92, 4),
    "jp2": (6, 300),
    "h264": (15, 50),
    "hevc": (15, 50),
}


def square(rgb: Bytes, rng: np.random.Generator) -> Bytes:
    """A square part of a photograph, SIDE wide, reduced by a random factor where there is more."""
    height, width = rgb.shape[:2]
    side = int(rng.integers(SIDE, min(height, width) + 1)) if min(height, width) > SIDE else min(height, width)
    y, x = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
    return working.reduce(np.ascontiguousarray(rgb[y : y + side, x : x + side]), SIDE, SIDE)


def worse(rgb: Bytes, kind: str, rng: np.random.Generator) -> tuple[Bytes, str, float]:
    """(picture, what was done, how much) for one of KINDS; how much is the level, quality or factor."""
    if kind == "single":
        name, level = TYPES[rng.integers(len(TYPES))], int(rng.integers(1, LEVELS + 1))
        return distort(rgb, name, level, int(rng.integers(2**31))), name, level
    if kind == "codec":
        name = list(CODECS)[rng.integers(len(CODECS))]
        best, worst = CODECS[name]
        share = rng.random()
        quality = best * (worst / best) ** share if name == "jp2" else best + (worst - best) * share
        return encoding.save(rgb, name, quality, full_chroma=bool(rng.random() < 0.3)), name, quality
    if kind == "small":
        factor = float(np.exp(rng.uniform(np.log(0.15), np.log(0.9))))
        return shrink(rgb, factor, rng), "small", factor
    first, second = rng.choice(len(TYPES), 2, replace=False)
    once = distort(rgb, TYPES[first], int(rng.integers(1, 4)), int(rng.integers(2**31)))
    return distort(once, TYPES[second], int(rng.integers(1, 4)), int(rng.integers(2**31))), "mixture", 0.0


def group(paths: Sequence[Path], seed: int, number: int) -> list[tuple[Bytes, str, float]]:
    """Pictures of one group: (picture, what was done, how much), the reference first. All paths take their turn."""
    rng = np.random.default_rng([seed, 1, number])
    turn, place = divmod(number, len(paths))
    reference = square(read_rgb(paths[np.random.default_rng([seed, turn]).permutation(len(paths))[place]]), rng)
    made = (worse(reference, KINDS[rng.choice(len(KINDS), p=SHARES)], rng) for _ in range(WORSE))
    return [(reference, "none", 0.0), *made]


def ssimulacra2(reference: Bytes, rgb: Bytes) -> float:
    """SSIMULACRA 2: 100 for the same picture, 90 no visible loss, 50 medium, below 0 beyond use."""
    from ssimulacra2 import compute_ssimulacra2
    from ssimulacra2 import ssimulacra2 as module

    module.ndimage = SimpleNamespace(gaussian_filter=_blurred)  # the same to 1e-12, three times as fast
    files = [io.BytesIO(), io.BytesIO()]
    for file, image in zip(files, (reference, rgb), strict=True):
        Image.fromarray(image).save(file, "BMP")
    return float(compute_ssimulacra2(*files))


def _blurred(image: NDArray[np.float64], sigma: float, truncate: float, **_: object) -> NDArray[np.float64]:
    kernel = cv2.getGaussianKernel(2 * int(truncate * sigma + 0.5) + 1, sigma, cv2.CV_64F)
    return cv2.sepFilter2D(image, -1, kernel, kernel, borderType=cv2.BORDER_REFLECT)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m recipes.full_reference.pairs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pictures", type=Path, required=True, nargs="+", help="folders, or files of one path a line")
    parser.add_argument("--depth", type=Path, required=True, help="the bundle's depth.onnx")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--groups", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    o = parser.parse_args(arguments)
    cv2.setNumThreads(1)
    paths = [p for given in o.pictures for p in photographs(given)]
    network, found, done = working.Depth(o.depth), {}, 0
    if (o.out / "labels.npz").exists():  # of a run that was stopped
        rgb, depth, labels = working.load(o.out, "r+")
        found = {name: list(values) for name, values in labels.items()}
        done = len(found["source"]) // (1 + WORSE)
    else:
        rgb, depth = working.create(o.out, (1 + WORSE) * o.groups)
    for number in range(done, o.groups):
        made = group(paths, o.seed, number)
        for n, (picture, what, much) in enumerate(made):
            at = (1 + WORSE) * number + n
            rgb[at] = working.square(picture)
            depth[at] = network(rgb[at])
            row = {
                "source": number,
                "what": what,
                "much": much,
                "ssimulacra2": ssimulacra2(made[0][0], picture) if n else 100.0,
            }
            for name, value in row.items():
                found.setdefault(name, []).append(value)
        if number % 20 == 19 or number == o.groups - 1:
            working.save_labels(o.out, {name: np.array(values) for name, values in found.items()})
            print(number + 1, flush=True)
    return 0


def photographs(given: Path) -> list[Path]:
    if given.is_file():
        return [Path(line) for line in given.read_text().splitlines() if line]
    return sorted(p for p in given.rglob("*") if p.suffix.lower() in (".png", ".jpg", ".webp"))


if __name__ == "__main__":
    sys.exit(main())
