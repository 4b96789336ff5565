"""A twin of timm's Swin that keeps tokens in window order, with the same weights and a third fewer operators.

    image ─► patches ─► tokens [N*L,C], window by window ─┬─► block ─► gather ─► block (shifted) ─► ... ─► next stage
                                                          └─► one gather: the tokens that the consumer asks for

The reference rolls, partitions, reverses and rolls back in every block. Attention is the only part of a block that
looks at other tokens, and only at those in the same window. So the residual stream can stay sorted by windows, and all
that remains is one gather where the windows change.

A shifted block adds a bias per head and a mask per window to its scores. There are two ways to write that:

    apart    q [N*windows,heads,T,D]   + bias [1,heads,T,T] + mask [N*windows,1,T,T], repeated for each image
    folded   q [N,windows*heads,T,D]   + one constant [1,windows*heads,T,T]

OpenVINO runs the first, with its transposes, as one kernel. Fused attention takes the second: TensorRT, ONNX's
Attention and torch's SDPA each add one mask, which they broadcast over the batch.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgiqa.nn.deploy_layers import scaled_projections


def is_foldable_swin(backbone: Any) -> bool:
    """Whether `backbone` is timm's Swin with maps that its windows tile, so that nothing is padded."""
    stages = [stage for name, stage in backbone.named_children() if name.startswith("layers_")]
    if not stages or not hasattr(backbone, "patch_embed"):
        return False
    blocks = [block for stage in stages for block in getattr(stage, "blocks", ())]
    return bool(blocks) and all(
        hasattr(block, "input_resolution")
        and all(side % window == 0 for side, window in zip(block.input_resolution, block.window_size, strict=True))
        for block in blocks
    )


class WindowOrderSwin(nn.Module):
    """image [N,3,H,W] -> for each stage its tokens at the positions asked for, [N,P,C].

    backbone: a Swin for which `is_foldable_swin` is true. positions: for each stage the raster indices (y * width + x)
    of the tokens to return, in that order; a token may occur several times or not at all. fold: whether shifted windows
    become heads.
    """

    def __init__(self, backbone: Any, positions: Sequence[Tensor], fold: bool = False) -> None:
        super().__init__()
        self.patches = backbone.patch_embed.proj
        self.patch_norm = backbone.patch_embed.norm
        stages = [stage for name, stage in backbone.named_children() if name.startswith("layers_")]
        self.stages = nn.ModuleList()
        order: Tensor | None = None  # the stream's: raster index of the token at each position; None: raster order
        for reference, wanted in zip(stages, positions, strict=True):
            stage = Stage(reference, order, wanted, fold)
            self.stages.append(stage)
            order = stage.order

    def forward(self, image: Tensor) -> list[Tensor]:
        x = self.patch_norm(self.patches(image).flatten(2).mT)  # [N,L,C]
        maps = []
        for stage in self.stages:
            x, tokens = stage(x)
            maps.append(tokens)
        return maps


class Stage(nn.Module):
    """Tokens of the stage before, [N,L,C] -> this stage's, [N,L',C'], and those to return, [N,P,C']."""

    wanted: Tensor | None
    mask: Tensor | None

    def __init__(self, stage: Any, order: Tensor | None, wanted: Tensor, fold: bool) -> None:
        super().__init__()
        first = stage.blocks[0]
        height, width = first.input_resolution
        orders = [window_order(height, width, block.window_size, block.shift_size) for block in stage.blocks]
        self.merge = None
        if hasattr(stage.downsample, "reduction"):
            self.merge = Merge(stage.downsample)
            source = _places(_merged(orders[0], width), order)
        else:
            source = _places(orders[0], order)
        gathers = [source] + [_places(b, a) for a, b in pairwise(orders)]
        self.blocks = nn.ModuleList(Block(block, fold) for block in stage.blocks)
        for number, places in enumerate(gathers):
            self.register_buffer(f"gather{number}", _unless_identity(places), persistent=False)
        masks = [b.attn_mask for b in stage.blocks if b.attn_mask is not None and not fold]  # [windows,T,T], all alike
        self.register_buffer("mask", masks[0][:, None] if masks else None, persistent=False)
        self.order = orders[-1]
        self.register_buffer("wanted", _unless_identity(_places(wanted, self.order)), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mask = None if self.mask is None else self.mask.repeat(x.shape[0], 1, 1, 1)  # [N*windows,1,T,T]
        for number, block in enumerate(self.blocks):
            places = getattr(self, f"gather{number}")
            if places is not None:
                x = x.index_select(1, places)
            if number == 0 and self.merge is not None:
                x = self.merge(x)
            x = block(x.flatten(0, 1), mask).reshape(x.shape)
        return x, x if self.wanted is None else x.index_select(1, self.wanted)


class Merge(nn.Module):
    """Merge four neighbours, which follow one another, into one token of twice the width: [N,4L,C] -> [N,L,2C]."""

    def __init__(self, merging: Any) -> None:
        super().__init__()
        self.norm, self.reduction = merging.norm, merging.reduction

    def forward(self, x: Tensor) -> Tensor:
        n, length, channels = x.shape
        return self.reduction(self.norm(x.reshape(-1, 4 * channels))).reshape(n, length // 4, -1)


class Block(nn.Module):
    """Pre-norm window attention and feed-forward on tokens in window order, [N*L,C] -> [N*L,C].

    mask: [N*windows,1,T,T], added to the scores where windows are shifted; other blocks ignore it, and folded ones have
    it in their bias.
    On two axes a linear layer exports as Gemm, which adds its bias as well.
    """

    def __init__(self, block: Any, fold: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.attention = WindowAttention(block, fold)
        self.shifted = block.attn_mask is not None
        self.fc1, self.fc2 = block.mlp.fc1, block.mlp.fc2

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.attention(self.norm1(x), mask if self.shifted else None)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class WindowAttention(nn.Module):
    """Attention inside windows whose tokens follow one another, [N*L,C] -> [N*L,C].

    Query, key and value are three products: sharing one costs a transpose of five axes and a copy to split it.
    """

    bias: Tensor

    def __init__(self, block: Any, fold: bool) -> None:
        super().__init__()
        attention = block.attn
        self.heads, self.tokens = attention.num_heads, block.window_area
        self.projections = scaled_projections(attention.qkv.weight, attention.qkv.bias, self.heads)
        self.proj = attention.proj
        bias = attention._get_rel_pos_bias().detach()  # [1,heads,T,T]
        self.windows = 1  # windows that are heads
        if fold and block.attn_mask is not None:
            self.windows = len(block.attn_mask)
            bias = (bias + block.attn_mask[:, None]).flatten(0, 1)[None]
        self.register_buffer("bias", bias, persistent=False)  # [1,windows*heads,T,T]

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (self._by_head(projection(x)) for projection in self.projections)
        scores = q @ k.mT + self.bias
        y = (scores if mask is None else scores + mask).softmax(-1) @ v
        if self.windows > 1:
            y = y.unflatten(1, (self.windows, self.heads))
        return self.proj(y.transpose(-3, -2).reshape(x.shape))

    def _by_head(self, x: Tensor) -> Tensor:
        """[N*L,C] -> [N*L/(windows*T),windows*heads,T,C/heads]."""
        width = x.shape[1] // self.heads
        if self.windows == 1:
            return x.reshape(-1, self.tokens, self.heads, width).transpose(1, 2)
        return x.reshape(-1, self.windows, self.tokens, self.heads, width).transpose(2, 3).flatten(1, 2)


def window_order(height: int, width: int, window: tuple[int, int], shift: tuple[int, int]) -> Tensor:
    """Raster index of the token at each position once a map is cut into (shifted) windows, [height*width]."""
    raster = torch.arange(height * width).reshape(height, width)
    rolled = raster.roll((-shift[0], -shift[1]), (0, 1))
    rows, columns = window
    return rolled.unflatten(0, (-1, rows)).unflatten(2, (-1, columns)).transpose(1, 2).flatten()


def _merged(order: Tensor, width: int) -> Tensor:
    """Raster indices, in a map twice as wide, of the four tokens that become each token of `order`, [4*L]."""
    y, x = order // width * 2, order % width * 2
    corners = [(y + dy) * 2 * width + x + dx for dx in (0, 1) for dy in (0, 1)]  # timm concatenates columns first
    return torch.stack(corners, 1).flatten()


def _places(wanted: Tensor, order: Tensor | None) -> Tensor:
    """The positions of the tokens with raster indices `wanted` in a stream of the given order."""
    return wanted if order is None else order.argsort()[wanted]


def _unless_identity(places: Tensor) -> Tensor | None:
    return None if torch.equal(places, torch.arange(len(places))) else places
