"""A picture and its reference become a full-reference score: by the last layer of DGIQA-FR, or by what eyes would see.

DGIQA-FR (arXiv 2505.24002, appendix C.3): the shared network's features of both after the dilated stack, their
difference, a linear layer, a sigmoid. The layer has a few hundred numbers, so it stands in the manifest, in full
precision, and the same networks serve pictures with and without a reference:

    "full_reference": {"difference": "signed", "cells": 1, "bias": 4.0, "weights": [...]}

`likeness` serves every other model. It needs no network: pictures of four sizes are normalised by their surroundings,
as eyes do (Laparra et al., Human Vision and Electronic Imaging 2016), and what is then left of the difference is
weighed. `recipes.full_reference` found the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dgiqa.errors import BundleError
from dgiqa.meaning import number

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]

DIFFERENCES = ("signed", "absolute")
MAX_WEIGHTS = 1 << 16
KEY = "full_reference"  # in a manifest

TOP = 4.0  # of the sigmoid: a picture beside itself scores 0.982
OPPONENT = np.array([[0.299, 0.587, 0.114], [0.5, -0.4187, -0.0813], [-0.1687, -0.3313, 0.5]], np.float32)
SURROUNDINGS = 2.5  # standard deviation of what is near, pixels of each size
MASKING = 0.05  # contrast at which a difference begins to hide in what is near
WEIGHTS = np.array(  # [size,channel,kind] of `differences`
    [
        [[8.702, 0.942, 3.489], [0, 0.229, 0], [1.4, 0, 0]],
        [[0.147, 1.172, 2.27], [0, 0, 0], [0, 0, 0]],
        [[0, 3.298, 0], [0, 0, 0.986], [0, 0.654, 1.447]],
        [[0, 1.814, 0], [0, 0, 0], [0, 0.547, 1.527]],
    ]
)


@dataclass(frozen=True)
class FullReference:
    """sigmoid(weights . difference + bias), the difference being reference - picture or its magnitude.

    weights: one per channel. cells: how many neighbouring features are one channel's map, which is averaged after the
    difference was taken; 1 where the network averages itself.
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
        """The manifest's entry."""
        facts = {"difference": self.difference, "cells": self.cells, "bias": self.bias}
        return {KEY: facts | {"weights": list(self.weights)}}


def likeness(picture: UInt8, reference: UInt8) -> float:
    """How close two pictures look, uint8 [H,W,3] each, in [0, 0.982]; the latter only where they are equal."""
    return float(1 / (1 + np.exp((WEIGHTS * differences(picture, reference)).sum() - TOP)))


def differences(picture: UInt8, reference: UInt8) -> NDArray[np.float64]:
    """What sets two pictures apart, uint8 [H,W,3] each -> f64 [sizes,channels,3]. All are 0 for equal pictures.

    Sizes are the whole, a half, a quarter and an eighth; channels are luma and two of colour; the kinds are the mean
    difference of what is near, and the 4-norms of the differences of contrast, on a logarithmic scale, and of detail,
    by the contrast around it.
    """
    both = [np.asarray(image @ (OPPONENT.T / 255), np.float32) for image in (picture, reference)]
    found = []
    for _ in range(len(WEIGHTS)):
        (mean, contrast, detail), (mean0, contrast0, detail0) = map(_seen, both)
        far = np.stack([_norm4(contrast - contrast0), _norm4(detail - detail0)], 1)
        found.append(np.column_stack([np.abs(mean - mean0).mean((0, 1)), far]))
        both = [
            np.asarray(cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), np.float32)
            for image in both
        ]
    return np.asarray(found, np.float64)


def _seen(image: Float32) -> tuple[Float32, Float32, Float32]:
    """Mean of what is near, logarithm of its contrast, and detail by that contrast, all [H,W,3]."""
    mean = cv2.GaussianBlur(image, (0, 0), SURROUNDINGS)
    contrast = cv2.GaussianBlur(np.abs(image - mean), (0, 0), SURROUNDINGS)
    return mean, np.log(contrast + 0.02), (image - mean) / (contrast + MASKING)


def _norm4(apart: Float32) -> NDArray[np.float64]:
    """Fourth root of the mean fourth power over [H,W]: the worst places count most."""
    return np.asarray(((apart * apart) ** 2).mean((0, 1), dtype=np.float64) ** 0.25)


def parse_full_reference(manifest: Mapping[str, Any]) -> FullReference | None:
    """The entry in a manifest, None where there is none. BundleError for one that does not hold what it should."""
    if KEY not in manifest:
        return None
    try:
        entry = manifest[KEY]
        weights, cells = tuple(map(number, entry["weights"])), entry["cells"]
        if entry["difference"] not in list(DIFFERENCES) or type(cells) is not int or not 1 <= cells <= MAX_WEIGHTS:
            raise ValueError(f"difference {entry['difference']!r:.40}, cells {cells!r:.40}")
        if not 1 <= len(weights) <= MAX_WEIGHTS:
            raise ValueError(f"{len(weights)} weights")
        return FullReference(weights, number(entry["bias"]), entry["difference"], cells)
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"the manifest's {KEY} is malformed ({error!r:.200})") from error
