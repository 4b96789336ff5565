"""Depth Anything's export twin: the same function of the same weights with fewer, larger operators.

The attention's scale is folded into the query's weights, and LayerScale into the weights of the layer before it. The
head's 1x1 convolutions come before the enlargement, where there are a quarter of the pixels: bilinear weights sum to
one, so that the bias commutes, too.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgiqa.nn.deploy_layers import linear
from dgiqa.nn.depth_anything import DepthAnything, FusionBlock, _upsample


class TwinDepthAnything(DepthAnything):
    """image f32 [N,3,h,w] -> depth f32 [N,h,w], equal to `DepthAnything` in eval mode; for export only.

    network: becomes part of the twin, which changes it.
    """

    def __init__(self, network: DepthAnything) -> None:
        nn.Module.__init__(self)  # DepthAnything's would make weights
        self.config, self.pretrained = network.config, network.pretrained
        self.pretrained.blocks = nn.ModuleList(Block(block) for block in network.pretrained.blocks)
        self.depth_head = network.depth_head
        for level in range(1, 5):
            block = cast(FusionBlock, network.depth_head.scratch[f"refinenet{level}"])
            self.depth_head.scratch[f"refinenet{level}"] = EarlyFusion(block)


class Block(nn.Module):
    """The encoder's block, [N,T,C] -> [N,T,C]."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.heads = block.attn.num_heads
        weight, bias = block.attn.qkv.weight, block.attn.qkv.bias
        scale = torch.ones_like(bias)
        scale[: bias.shape[0] // 3] = (bias.shape[0] // 3 // self.heads) ** -0.5  # the scale of the scores
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


class EarlyFusion(FusionBlock):
    """`FusionBlock` with its 1x1 convolution before the enlargement; in the reference it comes after."""

    def __init__(self, block: FusionBlock) -> None:
        nn.Module.__init__(self)
        self.resConfUnit1, self.resConfUnit2, self.out_conv = block.resConfUnit1, block.resConfUnit2, block.out_conv

    def enlarged(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return _upsample(self.out_conv(x), size)


def _scaled(layer: nn.Linear, gamma: Tensor) -> nn.Linear:
    """A layer with the LayerScale after it folded in."""
    return linear(layer.weight * gamma[:, None], layer.bias * gamma)
