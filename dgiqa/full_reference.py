"""Score a picture against its reference: by the last layer of DGIQA-FR, or by a model of the eye.

DGIQA-FR (arXiv 2505.24002, appendix C.3): the shared network's features of both after the dilated stack, their
difference, a linear layer, a sigmoid. The layer has a few hundred numbers, so it is kept in the manifest, in full
precision, and the same networks serve pictures with and without a reference:

    "full_reference": {"difference": "signed", "cells": 1, "bias": 4.0, "weights": [...]}

`likeness` serves every other model. It needs no network: pictures of four sizes are normalised by their surroundings,
as eyes do (Laparra et al., Human Vision and Electronic Imaging 2016), and the remaining differences are weighted.
`recipes.full_reference` found the weights.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from dgiqa.dtypes import Float32, Float64, UInt8
from dgiqa.errors import BundleError
from dgiqa.meaning import number, require

DIFFERENCES = ("signed", "absolute")
MAX_WEIGHTS = 1 << 16
KEY = "full_reference"  # in a manifest

TOP = 4.0  # the sigmoid's largest argument: a picture compared with itself scores 0.982
OPPONENT = np.array([[0.299, 0.587, 0.114], [0.5, -0.4187, -0.0813], [-0.1687, -0.3313, 0.5]], np.float32)
TILE, TILES = 512, 16  # side in pixels, and the most tiles of a picture: all of 2048 x 2048
SURROUNDINGS = 2.5  # standard deviation of the surroundings, in pixels of each size
MASKING = 0.05  # contrast from which on the surroundings begin to hide a difference
WEIGHTS = np.array(  # [size,channel,kind] of `differences`
    [
        [[4.019, 0.736, 0.957], [0, 0, 0], [0, 0, 0]],
        [[2.101, 0, 3.824], [5.53, 0, 0], [0, 0, 0]],
        [[1.236, 2.776, 0.207], [0.499, 0, 1.453], [0, 0, 0.044]],
        [[1.004, 4.875, 0], [0.551, 0, 0.137], [0, 0, 3.505]],
    ]
)


@dataclass(frozen=True)
class FullReference:
    """sigmoid(weights . difference + bias), where the difference is reference - picture or its magnitude.

    weights: one per channel. cells: the number of consecutive features that form one channel's map, which is averaged
    after taking the difference; 1 if the network averages itself.
    """

    weights: tuple[float, ...]
    bias: float
    difference: str = "signed"
    cells: int = 1

    def score(self, picture: Float32, reference: Float32) -> Float32:
        """Features of both, f32 [n, channels * cells] -> f32 [n] in [0, 1]; identical features give the highest."""
        wanted = len(self.weights) * self.cells
        if picture.shape != reference.shape or picture.shape[1] != wanted:
            shapes = f"{list(picture.shape)} and {list(reference.shape)}"
            raise BundleError(f"got features of {shapes}, wanted {wanted} of each tile; export the model again")
        apart = reference.astype(np.float64) - picture
        apart = np.abs(apart) if self.difference == "absolute" else apart
        pooled = apart.reshape(len(apart), len(self.weights), self.cells).mean(2)
        return np.asarray(1 / (1 + np.exp(-(pooled @ np.array(self.weights) + self.bias))), np.float32)

    def as_manifest(self) -> dict[str, Any]:
        """The entry for a manifest."""
        facts = {"difference": self.difference, "cells": self.cells, "bias": self.bias}
        return {KEY: facts | {"weights": list(self.weights)}}


def likeness(picture: UInt8, reference: UInt8) -> float:
    """How alike two pictures look, uint8 [H,W,3] each, in [0, 0.982]; 0.982 only if they are equal.

    For pictures of more than 4 megapixels, TILES evenly spread tiles are compared.
    """
    return float(1 / (1 + np.exp((WEIGHTS * differences(picture, reference)).sum() - TOP)))


def differences(picture: UInt8, reference: UInt8) -> Float64:
    """Differences of two pictures, uint8 [H,W,3] each: f64 [sizes,channels,kinds]. All are 0 for equal pictures.

    Sizes are full, a half, a quarter and an eighth. Channels are luma and two of colour, which are 0 at full size. The
    three kinds are the mean difference of the local means, and the 4-norms of the differences of local contrast, on a
    logarithmic scale, and of detail, relative to the contrast around it.
    """
    parts = [_apart(picture[part], reference[part]) for part in _tiles(picture.shape[0], picture.shape[1])]
    found = np.mean(parts, 0)
    found[..., 1:] **= 0.25
    return np.asarray(found)


def _tiles(height: int, width: int) -> list[tuple[slice, slice]]:
    """At most TILES evenly spread tiles; a picture no larger than one is a single tile."""
    rows, columns = (max(1, math.ceil(side / TILE)) for side in (height, width))
    while rows * columns > TILES:
        rows, columns = (rows - 1, columns) if rows > columns else (rows, columns - 1)
    corners = (np.linspace(0, max(0, side - TILE), n).astype(int) for side, n in ((height, rows), (width, columns)))
    return [(slice(y, y + TILE), slice(x, x + TILE)) for y, x in itertools.product(*corners)]


def _apart(picture: UInt8, reference: UInt8) -> Float64:
    """The `differences` of a tile, before the fourth roots."""
    both = [np.asarray(image @ (OPPONENT.T / 255), np.float32) for image in (picture, reference)]
    found = np.zeros(WEIGHTS.shape)
    for halved, into in enumerate(found):
        if halved:
            size = [max(1, round(side / 2)) for side in both[0].shape[1::-1]]
            both = [np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.float32) for image in both]
        (mean, contrast, detail), (mean0, contrast0, detail0) = (_seen(x if halved else x[..., 0]) for x in both)
        far = np.abs(mean - mean0), (contrast - contrast0) ** 4, (detail - detail0) ** 4
        into[: 3 if halved else 1] = np.stack([each.mean((0, 1), dtype=np.float64) for each in far], -1)
    return found


def _seen(image: Float32) -> tuple[Float32, Float32, Float32]:
    """Local mean, logarithm of local contrast, and detail relative to that contrast; all have the image's shape."""
    mean = cv2.GaussianBlur(image, (0, 0), SURROUNDINGS)
    contrast = cv2.GaussianBlur(np.abs(image - mean), (0, 0), SURROUNDINGS)
    return mean, np.log(contrast + 0.02), (image - mean) / (contrast + MASKING)


def parse_full_reference(manifest: Mapping[str, Any]) -> FullReference | None:
    """The entry in a manifest, or None if there is none. Raises ValueError if it is malformed."""
    if KEY not in manifest:
        return None
    try:
        entry = manifest[KEY]
        weights, cells, difference = tuple(map(number, entry["weights"])), entry["cells"], entry["difference"]
        require(difference in list(DIFFERENCES), f"difference {difference!r:.40}")
        require(type(cells) is int and 1 <= cells <= MAX_WEIGHTS, f"cells {cells!r:.40}")
        require(1 <= len(weights) <= MAX_WEIGHTS, f"{len(weights)} weights")
        return FullReference(weights, number(entry["bias"]), difference, cells)
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the manifest's {KEY} is malformed ({error!r:.200})") from error
