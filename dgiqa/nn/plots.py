"""Figures of the paper, drawn from weights or scores at hand."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def grad_cam(network: Any, *tiles: Tensor) -> NDArray[np.float32]:
    """Grad-CAM (arXiv 1610.02391) of the maps that a DGIQA or GlintIQA averages: f32 [N,h,w], before its ReLU.

    tiles: what the network takes, f32 [N,3,S,S] each. The gradient is that of the score before its sigmoid.
    """
    seen: list[Tensor] = []
    pooled = network.pool

    def pool(maps: Tensor) -> Tensor:
        maps.retain_grad()
        seen.append(maps)
        return pooled(maps)

    network.pool = pool
    try:
        features = network.features(*(each.requires_grad_() for each in tiles))
    finally:
        del network.pool
    last = network.fc if hasattr(network, "fc") else network.quality_head
    last(features).sum().backward()
    maps, gradient = seen[0], seen[0].grad
    assert gradient is not None
    if maps.ndim == 3:  # tokens [N,T,C]
        side = round(maps.shape[1] ** 0.5)
        return np.asarray((maps * gradient).sum(2).unflatten(1, (side, side)).detach())
    return np.asarray((gradient.mean((2, 3), keepdim=True) * maps).sum(1).detach())
