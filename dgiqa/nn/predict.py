"""A network or a scorer predicts pictures' scores, and predictions are held against opinions: SROCC and friends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dgiqa import forward
from dgiqa.metrics import krocc, logistic_mapped, plcc, rmse, srocc
from dgiqa.nn.commands import watched
from dgiqa.nn.datasets import DepthNetwork, working_pair
from dgiqa.spec import Preprocess

METRICS = ("srocc", "plcc", "plcc_logistic", "krocc", "rmse", "rmse_logistic")
TEST_TILING = "grid"
TILE_BATCH = 64

T = TypeVar("T")
Arrays = Iterable[NDArray[Any]]
Predict = Callable[[Sequence[Path]], NDArray[np.floating]]  # picture files -> scores f [n], higher = better


def model_predictor(
    model: nn.Module, network: DepthNetwork, cache_dir: str | Path, tiling: str = TEST_TILING
) -> Predict:
    """A torch network as a predictor: mean over tiles, on the device where the network is, with cached depth.

    tiling: "grid", or "official:20" for the authors' random crops. Leaves the network in evaluation mode.
    """

    def tiles(path: Path) -> Iterable[Arrays]:
        fed = forward.tiles(*working_pair(path, network, cache_dir), tiling, Preprocess(), TILE_BATCH)
        return (feeds.values() for feeds in fed)

    return lambda paths: mean_scores(model, paths, tiles)


@torch.inference_mode()
def mean_scores(
    model: nn.Module, items: Sequence[T], tiles: Callable[[T], Iterable[Arrays]], output: int | None = None
) -> NDArray[np.float64]:
    """Mean over the tiles of a network's scores of each item: f64 [n]. Leaves the network in evaluation mode.

    tiles: an item's, in batches of the network's inputs, f32 [b,3,S,S] each. output: which column is the score, where
    there are several.
    """
    model.eval()
    device = next(model.parameters()).device
    scores = np.empty(len(items))
    for i, item in enumerate(watched(items, len(items), "scored")):
        fed = ([torch.from_numpy(array).to(device) for array in arrays] for arrays in tiles(item))
        found = torch.cat([model(*each).float() for each in fed])
        scores[i] = (found if output is None else found[:, output]).mean().item()
    return scores


def scores_of(predicted: NDArray[Any], wanted: NDArray[Any]) -> dict[str, float]:
    """Predicted and wanted scores f [n] -> METRICS; the logistic is fitted to these very scores, as is usual."""
    mapped = logistic_mapped(predicted, wanted)
    values = (
        srocc(predicted, wanted),
        plcc(predicted, wanted),
        plcc(mapped, wanted),
        krocc(predicted, wanted),
        rmse(predicted, wanted),
        rmse(mapped, wanted),
    )
    return dict(zip(METRICS, values, strict=True))
