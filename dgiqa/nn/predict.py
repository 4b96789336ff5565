"""Predict pictures' scores with a network, and compare predictions with opinions: SROCC and friends."""

import functools
from collections.abc import Callable, Sequence
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
Predict = Callable[[Sequence[Path]], Floating]  # picture files -> scores f [n], higher = better


def model_predictor(
    model: nn.Module, network: DepthNetwork, cache_dir: str | Path, tiling: str = TEST_TILING
) -> Predict:
    """A torch network as a predictor: the mean over tiles, on the network's device, with cached depth.

    tiling: "grid", or "official:20" for the authors' random crops. Leaves the network in evaluation mode.
    """
    read = functools.partial(working_pair, network=network, cache_dir=cache_dir)
    return functools.partial(predictor(read, Preprocess(), tiling, TILE_BATCH), model)


def predictor(
    read: Callable[[T], Sequence[Any]],
    p: Preprocess,
    tiling: str = TEST_TILING,
    batch: int = forward.BATCH,
    output: int | None = None,
) -> Callable[[nn.Module, Sequence[T]], Float64]:
    """A function (network, items) -> f64 [n], the mean of each item's tile scores; it leaves the network in eval mode.

    read: item -> its working image uint8 [H,W,3] and depth image [H,W], or for a picture and its reference [H,W,6] and
    [H,W,2]; these begin a `Sample`. batch: tiles at a time. output: the column of the score, if there are several.
    """

    @torch.inference_mode()
    def predict(model: nn.Module, items: Sequence[T]) -> Float64:
        model.eval()
        device, sees_depth = next(model.parameters()).device, spec.QUALITY_DEPTH in takes(model)
        scores = np.empty(len(items))
        for i, item in enumerate(watched(items, len(items), "scored")):
            rgb, depth = read(item)[:2]
            count = rgb.shape[2] // 3  # pictures
            pictures = map(np.ascontiguousarray, np.split(rgb, count, 2))
            planes = map(np.ascontiguousarray, np.moveaxis(np.atleast_3d(depth), 2, 0))
            depths = planes if sees_depth else [None] * count
            cut = [forward.tiles(*pair, tiling, p, batch) for pair in zip(pictures, depths, strict=True)]
            found = []
            for each in zip(*cut, strict=True):  # a batch of the picture's tiles, and of its reference's
                arrays = (torch.from_numpy(array).to(device) for feeds in each for array in feeds.values())
                found.append(model(*arrays).float())
            tiles = torch.cat(found)
            scores[i] = (tiles if output is None else tiles[:, output]).mean().item()
        return scores

    return predict


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
