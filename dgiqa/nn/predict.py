"""Predict pictures' scores with a network, and compare predictions with opinions: SROCC and friends."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from dgiqa import forward, spec
from dgiqa.dtypes import Array, Float64, Floating
from dgiqa.metrics import krocc, logistic_mapped, plcc, rmse, srocc
from dgiqa.nn.commands import watched
from dgiqa.nn.datasets import DepthNetwork, working_pair
from dgiqa.nn.systems import takes
from dgiqa.spec import Preprocess

METRICS = ("srocc", "plcc", "plcc_logistic", "krocc", "rmse", "rmse_logistic")
TEST_TILING = "grid"
TILE_BATCH = 64

T = TypeVar("T")
Arrays = Iterable[Array]
Predict = Callable[[Sequence[Path]], Floating]  # picture files -> scores f [n], higher = better


def model_predictor(
    model: nn.Module, network: DepthNetwork, cache_dir: str | Path, tiling: str = TEST_TILING
) -> Predict:
    """A torch network as a predictor: the mean over tiles, on the network's device, with cached depth.

    tiling: "grid", or "official:20" for the authors' random crops. Leaves the network in evaluation mode.
    """

    def read(path: Path) -> Sequence[Any]:
        return working_pair(path, network, cache_dir)

    predict = predictor(read, Preprocess(), tiling, TILE_BATCH)
    return lambda paths: predict(model, paths)


def predictor(
    read: Callable[[T], Sequence[Any]],
    p: Preprocess,
    tiling: str = TEST_TILING,
    batch: int = forward.BATCH,
    output: int | None = None,
) -> Callable[[nn.Module, Sequence[T]], Float64]:
    """A function (network, items) -> f64 [n] that gives the `mean_scores` of items.

    read: item -> its working image uint8 [H,W,3] and depth image [H,W], or for a picture and its reference [H,W,6] and
    [H,W,2]; these begin a `Sample`. batch: tiles at a time. output: as in `mean_scores`.
    """

    def predict(model: nn.Module, items: Sequence[T]) -> Float64:
        sees_depth = spec.QUALITY_DEPTH in takes(model)

        def tiles(item: T) -> Iterator[list[Array]]:
            rgb, depth = read(item)[:2]
            count = rgb.shape[2] // 3  # pictures
            pictures = map(np.ascontiguousarray, np.split(rgb, count, 2))
            planes = map(np.ascontiguousarray, np.moveaxis(np.atleast_3d(depth), 2, 0))
            depths = planes if sees_depth else [None] * count
            cut = [forward.tiles(*pair, tiling, p, batch) for pair in zip(pictures, depths, strict=True)]
            return ([array for feeds in each for array in feeds.values()] for each in zip(*cut, strict=True))

        return mean_scores(model, items, tiles, output)

    return predict


@torch.inference_mode()
def mean_scores(
    model: nn.Module, items: Sequence[T], tiles: Callable[[T], Iterable[Arrays]], output: int | None = None
) -> Float64:
    """Mean over the tiles of a network's scores of each item: f64 [n]. Leaves the network in evaluation mode.

    tiles: gives an item's tiles, in batches of the network's inputs, f32 [b,3,S,S] each. output: the column of the
    score, if there are several.
    """
    model.eval()
    device = next(model.parameters()).device
    scores = np.empty(len(items))
    for i, item in enumerate(watched(items, len(items), "scored")):
        fed = ([torch.from_numpy(array).to(device) for array in arrays] for arrays in tiles(item))
        found = torch.cat([model(*each).float() for each in fed])
        scores[i] = (found if output is None else found[:, output]).mean().item()
    return scores


def scores_of(predicted: Array, wanted: Array) -> dict[str, float]:
    """Predicted and wanted scores f [n] -> METRICS; the logistic is fitted to these same scores, as is usual."""
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
