"""Score an image in plain PyTorch: the authors' pipeline, step by step, slow and obvious.

Everything that is exported, optimised or rewritten must match this file. Its arithmetic is written independently of
`dgiqa.preprocess`, so that a slip in either shows; only the layout of the deterministic grid is shared, because that is
a convention and not arithmetic. Source: section 4.2 of the paper and the authors' inference script.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from dgiqa.bundle import Bundle, load_golden
from dgiqa.dtypes import Float32, Float64, UInt8
from dgiqa.errors import ImageError, WeightsError
from dgiqa.nn.checkpoints import load_weights
from dgiqa.parity import TOLERANCE
from dgiqa.preprocess import grid_windows
from dgiqa.spec import IMAGENET_MEAN, IMAGENET_STD, Preprocess

OFFICIAL_SEED = 42
# 32-bit words that versions of albumentations consume of the seeded generator before the authors draw their crops
TAKEN = {"": 0, "-1.4.21": 0, "-1.4.15": 3, "-1.4.10": 9, "-1.4.4": 7, "-1.4.1": 6, "-1.3": 8}


@dataclass(frozen=True, eq=False)
class TorchScore:
    """One image's score in PyTorch. value: mean of tile_scores f32 [n]; tiling: the tiling's name.

    reasons: number of each reason of the network -> mean probability over the tiles.
    """

    value: float
    tile_scores: Float32
    tiling: str
    reasons: dict[str, float] = field(default_factory=dict)


class TorchScorer:
    """Two networks in eval mode that score photographs: the truth for golden scores and `parity.sweep`.

    depth_net: f32 [1,3,h,w] -> f32 [1,h,w], or None. quality_net: two f32 [n,3,tile,tile], or one, -> f32 [n].
    mapped: the bundle's mapping of tile scores.
    """

    def __init__(
        self,
        depth_net: nn.Module | None,
        quality_net: nn.Module,
        preprocess: Preprocess | None = None,
        mapped: Callable[[Float32], Float32] = lambda scores: scores,
    ) -> None:
        self.backend = f"PyTorch {torch.__version__}"
        self._depth, self._p, self._mapped = depth_net, preprocess or Preprocess(), mapped
        self._quality: Any = quality_net

    def score(self, source: UInt8, tiling: str | NDArray[np.integer] = "grid") -> TorchScore:
        """Score uint8 [H,W,3] RGB.

        tiling: "official:COUNT" or "official:COUNT:SEED" (the authors' random crops), "grid", or windows (y, x) int
        [n,2]. Raises ValueError for other tilings.
        """
        with torch.no_grad():
            both = self._fed(source, tiling)
            if not getattr(getattr(self._quality, "config", None), "reasons", 0):
                scores, reasons = self._quality(*both), {}
            else:
                features, faults = self._quality.features_and_faults(*both)
                scores, found = self._quality.score(features), torch.sigmoid(faults).double().mean(0)
                reasons = {str(column): p for column, p in enumerate(found.tolist())}
        tile_scores = self._mapped(scores.numpy())
        return TorchScore(float(tile_scores.mean(dtype=np.float64)), tile_scores, str(tiling), reasons)

    def near(self, picture: UInt8, reference: UInt8, tiling: str = "grid") -> float:
        """Full-reference score of two pictures, uint8 [H,W,3] each; the quality network must be a DGIQA-FR."""
        with torch.no_grad():
            both = [self._fed(source, tiling) for source in (picture, reference)]
            return float(self._quality(*both[0], *both[1])[:, 0].double().mean())

    def _fed(self, rgb: UInt8, tiling: str | NDArray[np.integer]) -> tuple[Tensor, ...]:
        if self._depth is None:
            return network_tiles(rgb, None, self._p, tiling)
        depth = depth_image(self._depth(depth_input(rgb, self._p)), rgb.shape[0], rgb.shape[1], self._p)
        return network_tiles(rgb, depth, self._p, tiling)


def open_reference(
    bundle: Bundle, quality: str | Path, depth: str | Path | None, depth_version: str | None = None
) -> TorchScorer:
    """Load the PyTorch networks that a bundle was made from, from their checkpoints.

    quality, depth, depth_version: as `checkpoints.load_weights` takes them. depth: None if the bundle has no depth
    network.
    Raises WeightsError if a file cannot be loaded, or if the two do not reproduce the first golden score.
    """
    depth_net = load_weights(depth, depth_version) if depth else None
    scorer = TorchScorer(depth_net, load_weights(quality), bundle.preprocess, bundle.meaning.mapped)
    golden = load_golden(bundle)[0]
    try:
        got = scorer.score(decode((bundle.path / golden.file).read_bytes()), golden.tiling).value
    except (RuntimeError, TypeError, ValueError) as error:  # the two are swapped, or take inputs of other sizes
        raise WeightsError(f"{quality} and {depth} do not run as the networks of {bundle.id}: {error}") from error
    if not abs(got - golden.score) <= TOLERANCE:
        raise WeightsError(
            f"{quality} and {depth} score {golden.file} {got:.6f}, and {bundle.id} was made from weights that score it "
            f"{golden.score:.6f}; give the files that it was made from"
        )
    return scorer


def decode(data: bytes) -> UInt8:
    """Decode an image file's bytes to uint8 [H,W,3] RGB, as the authors do. Raises ImageError."""
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if bgr is None:
        raise ImageError(f"OpenCV cannot decode these {len(data)} bytes; wanted a photograph")
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def depth_input(rgb: UInt8, p: Preprocess) -> Tensor:
    """uint8 [H,W,3] -> f32 [1,3,h,w]: resized so that no side is below the bound, and normalised as for ImageNet.

    Version 1 is cubic in float64; version 2 averages areas, to uint8, unless a side grows.
    """
    height, width = rgb.shape[:2]
    scale = max(p.depth_lower_bound / height, p.depth_lower_bound / width)
    sides = []
    for side in (width, height):
        size = round(side * scale / p.depth_multiple) * p.depth_multiple
        if size < p.depth_lower_bound:
            size = math.ceil(side * scale / p.depth_multiple) * p.depth_multiple
        sides.append(size)
    if p.version == 2 and sides[0] <= width and sides[1] <= height:
        resized = cv2.resize(rgb, sides, interpolation=cv2.INTER_AREA) / 255.0
    else:
        resized = cv2.resize(rgb / 255.0, sides, interpolation=cv2.INTER_CUBIC)
    return _normalised(np.asarray(resized))[None]


def depth_image(depth: Tensor, height: int, width: int, p: Preprocess) -> UInt8:
    """f32 [1,h,w] -> uint8: bilinear to the photograph's height x width, minimum to 0, maximum to 255, truncated.

    Version 2 resizes to the working size directly.
    """
    if p.version == 2:
        width, height = _short_side_size(height, width, p.short_side)
    full = F.interpolate(depth[None], (height, width), mode="bilinear", align_corners=False)[0, 0].numpy()
    return ((full - full.min()) / (full.max() - full.min() + 1e-8) * 255).astype(np.uint8)


def network_tiles(
    rgb: UInt8, depth: UInt8 | None, p: Preprocess, tiling: str | NDArray[np.integer]
) -> tuple[Tensor, ...]:
    """rgb uint8 [H,W,3] and its `depth_image` -> the quality network's two inputs, f32 [n,3,tile,tile] each.

    Without a depth image, only the first. A short side of 0 does not resize the image.
    """
    average = p.version == 2 and min(rgb.shape[:2]) >= p.short_side
    method = cv2.INTER_AREA if average else cv2.INTER_LINEAR
    side = p.short_side or min(rgb.shape[:2])
    images = [_short_side(rgb, side, method)]
    if depth is not None:
        images.append(_short_side(np.repeat(depth[..., None], 3, 2), side))
    planes = [_normalised(image / 255.0, p.normalisation) for image in images]
    height, width = planes[0].shape[1:]
    windows = _windows(tiling, height, width, p.tile) if isinstance(tiling, str) else tiling.tolist()
    return tuple(torch.stack([plane[:, y : y + p.tile, x : x + p.tile] for y, x in windows]) for plane in planes)


def _short_side(image: UInt8, size: int, method: int = cv2.INTER_LINEAR) -> UInt8:
    """Resize so that the shorter side has `size` pixels."""
    height, width = image.shape[:2]
    if min(height, width) == size:
        return image
    return np.asarray(cv2.resize(image, _short_side_size(height, width, size), interpolation=method), np.uint8)


def _short_side_size(height: int, width: int, size: int) -> tuple[int, int]:
    """(width, height), the shorter of which is `size`; Python's rounding of halves to even is part of the recipe."""
    scale = size / min(height, width)
    return round(width * scale), round(height * scale)


def _normalised(image: Float64, how: str = "imagenet") -> Tensor:
    """f64 [H,W,3] in [0, 1] -> f32 [3,H,W], computed in float64: normalised by ImageNet's statistics, or to -1..1."""
    if how == "half":
        return torch.from_numpy(2 * image - 1).permute(2, 0, 1).float()
    return torch.from_numpy((image - IMAGENET_MEAN) / IMAGENET_STD).permute(2, 0, 1).float()


def _windows(tiling: str, height: int, width: int, tile: int) -> list[list[int]]:
    """Windows (y, x) for a tiling's name; x is drawn before y."""
    name, *numbers = tiling.split(":")
    if tiling == "grid":
        return grid_windows(height, width, tile).tolist()
    family = name.removeprefix("official")
    if family == name or family not in TAKEN or len(numbers) not in (1, 2):
        raise ValueError(f"unknown tiling {tiling!r}; choose grid, official:COUNT or official:COUNT:SEED")
    count, seed = int(numbers[0]), int(numbers[1]) if len(numbers) == 2 else OFFICIAL_SEED
    generator = random.Random(seed)
    generator.getrandbits(32 * TAKEN[family])
    drawn = [(generator.randint(0, width - tile), generator.randint(0, height - tile)) for _ in range(count)]
    return [[y, x] for x, y in drawn]
