"""Clean photographs become pairs with worse versions of themselves: the differences of both, and SSIMULACRA 2.

    python -m recipes.full_reference.pairs --pictures CLEAN --out pairs.npz --groups 700

A group is a reference and worse versions of it. Every second one has one of thirty distortion types at one of five
levels; the others were saved by a codec, shrunk, or distorted twice.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dgiqa.full_reference import differences
from dgiqa.nn.datasets import read_rgb
from dgiqa.store import replacing
from recipes.small import encoding
from recipes.small.chains import shrink
from recipes.small.distortions import LEVELS, TYPES, distort
from recipes.small.working import reduce

Bytes = NDArray[np.uint8]
SIDE = 512  # of the square that is distorted and measured, pixels
WORSE = 7  # worse pictures of a group
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
    """A square part of a photograph, SIDE wide, reduced by a random factor if the photograph is larger."""
    height, width = rgb.shape[:2]
    side = int(rng.integers(SIDE, min(height, width) + 1)) if min(height, width) > SIDE else min(height, width)
    y, x = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
    return reduce(np.ascontiguousarray(rgb[y : y + side, x : x + side]), SIDE, SIDE)


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
    """The pictures of one group as (picture, distortion, amount), the reference first. All paths take turns."""
    rng = np.random.default_rng([seed, 1, number])
    turn, place = divmod(number, len(paths))
    reference = square(read_rgb(paths[np.random.default_rng([seed, turn]).permutation(len(paths))[place]]), rng)
    made = (worse(reference, KINDS[rng.choice(len(KINDS), p=SHARES)], rng) for _ in range(WORSE))
    return [(reference, "none", 0.0), *made]


def ssimulacra2(reference: Bytes, rgb: Bytes) -> float:
    """SSIMULACRA 2: 100 for the same picture, 90 without visible loss, 50 medium, below 0 unusable."""
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
    parser.add_argument("--out", type=Path, required=True, help="an .npz; a run that was stopped goes on")
    parser.add_argument("--groups", type=int, default=700)
    parser.add_argument("--seed", type=int, default=0)
    o = parser.parse_args(arguments)
    cv2.setNumThreads(1)
    paths = [p for given in o.pictures for p in photographs(given)]
    found: dict[str, list[Any]] = (
        {name: list(values) for name, values in np.load(o.out).items()} if o.out.exists() else {}
    )
    for number in range(len(found.get("what", ())) // WORSE, o.groups):
        (reference, _, _), *made = group(paths, o.seed, number)
        for picture, what, much in made:
            row = {"what": what, "much": much, "ssimulacra2": ssimulacra2(reference, picture)}
            for name, value in (row | {"apart": differences(picture, reference)}).items():
                found.setdefault(name, []).append(value)
        if number % 20 == 19 or number == o.groups - 1:
            arrays: dict[str, Any] = {name: np.array(values) for name, values in found.items()}
            with replacing(o.out) as partial, partial.open("wb") as file:
                np.savez(file, **arrays)
            print(number + 1, flush=True)
    return 0


def photographs(given: Path) -> list[Path]:
    if given.is_file():
        return [Path(line) for line in given.read_text().splitlines() if line]
    return sorted(p for p in given.rglob("*") if p.suffix.lower() in (".png", ".jpg", ".webp"))


if __name__ == "__main__":
    sys.exit(main())
