"""Depth Anything becomes an export twin: the same function of the same weights with fewer, larger operators.

The attention's scale is in the query's weights and LayerScale in those of the layer before it. The head's 1x1
convolutions come before the enlargement, where there are a quarter of the pixels: bilinear weights sum to one, so that
the bias commutes, too.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgiqa.nn.deploy_layers import linear
from dgiqa.nn.depth_anything import PATCH, DenseHead, DepthAnything, FusionBlock, _upsample


class TwinDepthAnything(DepthAnything):
    """image f32 [N,3,h,w] -> depth f32 [N,h,w]: what `DepthAnything` computes in eval mode, for export only.

    network: becomes part of the twin, and is no longer what it was.
    """

    def __init__(self, network: DepthAnything) -> None:
        nn.Module.__init__(self)  # the reference's own would make weights
        self.config, self.pretrained = network.config, network.pretrained
        self.pretrained.blocks = nn.ModuleList(Block(block) for block in network.pretrained.blocks)
        self.depth_head = Head(network.depth_head)  # type: ignore[assignment]


class Block(nn.Module):
    """The encoder's block, [N,T,C] -> [N,T,C]."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.heads = block.attn.num_heads
        weight, bias = block.attn.qkv.weight, block.attn.qkv.bias
        scale = torch.ones_like(bias)
        scale[: bias.shape[0] // 3] = (bias.shape[0] // 3 // self.heads) ** -0.5  # of the scores, in the query
        self.qkv = linear(weight * scale[:, None], bias * scale)
        self.proj = _scaled(block.attn.proj, block.ls1.gamma)
        self.fc1, self.fc2 = block.mlp.fc1, _scaled(block.mlp.fc2, block.ls2.gamma)

    def forward(self, x: Tensor) -> Tensor:
        n, length, channels = x.shape
        x = x.flatten(0, 1)
        qkv = self.qkv(self.norm1(x)).reshape(n, length, 3, self.heads, channels // self.heads)
        q, k, v = (y.squeeze(0) for y in qkv.permute(2, 0, 3, 1, 4).split(1))  # [N,heads,T,C/heads]
        x = x + self.proj(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).reshape(-1, channels))
        return (x + self.fc2(F.gelu(self.fc1(self.norm2(x))))).reshape(n, length, channels)


class Head(nn.Module):
    """`DenseHead` with every 1x1 convolution before the enlargement that it follows in the reference."""

    def __init__(self, head: DenseHead) -> None:
        super().__init__()
        self.projects, self.resize_layers, self.scratch = head.projects, head.resize_layers, head.scratch

    def forward(self, maps: list[Tensor]) -> Tensor:
        rows, columns = maps[0].shape[-2:]
        levels = [
            self.scratch[f"layer{level}_rn"](resize(project(x)))
            for level, (x, project, resize) in enumerate(zip(maps, self.projects, self.resize_layers, strict=True), 1)
        ]
        sizes = [(8 * rows, 8 * columns), *(x.shape[-2:] for x in levels[:3])]
        x = None
        for number in (4, 3, 2, 1):
            x = _refined(
                cast(FusionBlock, self.scratch[f"refinenet{number}"]), x, levels[number - 1], sizes[number - 1]
            )
        x = _upsample(self.scratch["output_conv1"](x), (PATCH * rows, PATCH * columns))
        return self.scratch["output_conv2"](x)


def _refined(block: FusionBlock, x: Tensor | None, level: Tensor, size: tuple[int, int]) -> Tensor:
    """`FusionBlock`; at the deepest level, where there is no `x`, only its second half."""
    x = level if x is None else x + block.resConfUnit1(level)
    return _upsample(block.out_conv(block.resConfUnit2(x)), size)


def _scaled(layer: nn.Linear, gamma: Tensor) -> nn.Linear:
    """The layer and the LayerScale after it in one."""
    return linear(layer.weight * gamma[:, None], layer.bias * gamma)
