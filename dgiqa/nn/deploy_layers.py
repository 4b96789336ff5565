"""Shared by the export twins: layers whose weights are folded together."""

import copy

from torch import Tensor, nn


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A layer with these weights [out,in] and bias [out]."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
    layer.weight.data.copy_(weight)
    layer.bias.data.copy_(bias)
    return layer.requires_grad_(False)


def scaled_projections(weight: Tensor, bias: Tensor, heads: int) -> nn.ModuleList:
    """Split an attention's packed weights [3*C,C] and bias [3*C] into query, key and value layers, and fold the scale
    of the scores, 1 / sqrt(C / heads), into the query's."""
    (query, key, value), biases = weight.chunk(3), bias.chunk(3)
    scale = (len(query) // heads) ** -0.5
    return nn.ModuleList([linear(query * scale, biases[0] * scale), linear(key, biases[1]), linear(value, biases[2])])


def with_pooled_shortcuts(backbone: nn.Module) -> nn.Module:
    """Replace each mean of 2 x 2 pixels and the 1x1 convolution after it by one 2x2 convolution of stride 2.

    The backbone is changed in place and returned. This takes four times the arithmetic, but saves a pass over memory.
    """
    for parent in backbone.modules():
        if not isinstance(parent, nn.Sequential) or len(parent) < 2:
            continue
        pool, convolution = parent[0], parent[1]
        if _halves(pool) and isinstance(convolution, nn.Conv2d) and convolution.kernel_size == (1, 1):
            parent[0], parent[1] = nn.Identity(), _pooling(convolution)
    return backbone


def _halves(pool: nn.Module) -> bool:
    if not isinstance(pool, nn.AvgPool2d):
        return False
    return {pool.kernel_size, pool.stride} <= {2, (2, 2)} and pool.padding in (0, (0, 0)) and not pool.ceil_mode


def _pooling(convolution: nn.Conv2d) -> nn.Conv2d:
    """The 1x1 convolution as a 2x2 one that takes the mean of the pixels first."""
    made = copy.deepcopy(convolution).requires_grad_(False)
    made.kernel_size = made.stride = (2, 2)
    made.weight.data = (convolution.weight / 4).expand(-1, -1, 2, 2).contiguous()
    return made
