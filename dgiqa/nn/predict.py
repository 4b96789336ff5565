"""A network or a scorer predicts pictures' scores, and predictions are held against opinions: SROCC and friends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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

Predict = Callable[[Sequence[Path]], NDArray[np.floating]]  # picture files -> scores f [n], higher = better


def model_predictor(
    model: nn.Module, network: DepthNetwork, cache_dir: str | Path, tiling: str = TEST_TILING
) -> Predict:
    """A torch network as a predictor: mean over tiles, on the device where the network is, with cached depth.

    tiling: "grid", or "official:20" for the authors' random crops. Leaves the network in evaluation mode.
    """
    model.eval()
    device = next(model.parameters()).device

    @torch.inference_mode()
    def predict(paths: Sequence[Path]) -> NDArray[np.floating]:
        scores = np.empty(len(paths))
        for i, path in enumerate(watched(paths, len(paths), "scored")):
            rgb, depth = working_pair(path, network, cache_dir)
            fed = forward.tiles(rgb, depth, tiling, Preprocess(), TILE_BATCH)
            pairs = ([torch.from_numpy(array).to(device) for array in feeds.values()] for feeds in fed)
            scores[i] = torch.cat([model(*pair).float() for pair in pairs]).mean().item()
        return scores

    return predict


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
