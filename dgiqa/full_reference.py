"""Features of a picture and of its reference become a full-reference score: the last layer of DGIQA-FR, in numpy.

Paper (arXiv 2505.24002), appendix C.3: the shared network's features of both after the dilated stack, their difference,
a linear layer, a sigmoid. The layer has a few hundred numbers, so it stands in the manifest, in full precision, and the
same networks serve pictures with and without a reference:

    "full_reference": {"difference": "signed", "cells": 1, "bias": 4.0, "weights": [...]}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgiqa.errors import BundleError
from dgiqa.meaning import number

Float32 = NDArray[np.float32]

DIFFERENCES = ("signed", "absolute")
MAX_WEIGHTS = 1 << 16
KEY = "full_reference"  # in a manifest


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
