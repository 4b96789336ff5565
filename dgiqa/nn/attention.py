"""Attention over 49 tokens: its definition in plain torch, the ops that kernels implement, and networks that use them.

    network ─► with_attention_op ─► the same network on torch.ops.dgiqa.window_attention and .cross_attention

The ops run anywhere: without a native library they run the definitions in this file. Once `load_kernels` has loaded
one, its kernels (float16; CUDA, or the same source on emulated warps on a CPU) take over. Their contract is
engines/attention.h.
"""

import copy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgiqa.errors import BackendError
from dgiqa.nn.deploy_layers import linear

WINDOW = 7
TOKENS = WINDOW * WINDOW
HEAD_DIMS = (32, 64)  # supported by the kernels; narrower heads are padded with zeros
SHIFTS = (0, 3)
MASKED = -100.0  # added to logits across a seam of a shifted map


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *, scale: float) -> Tensor:
    """softmax(scale q k^T + bias) v: q, k, v [..., T, D]; bias broadcasts to [..., T, T]; returns [..., T, D]."""
    logits = (q * scale) @ k.mT
    return (logits if bias is None else logits + bias).softmax(-1) @ v


def window_attention(qkv: Tensor, bias: Tensor, qkv_bias: Tensor, shift: int, scale: float) -> Tensor:
    """Shifted-window attention (Swin, arXiv 2103.14030, section 3.2) as timm computes it; kernels must match this.

    qkv: [B,H,W,3C], a linear layer's output with q, k and v one after the other, heads in order within each.
    bias: [heads,49,49], added to the logits. qkv_bias: [3C], the linear layer's bias, which is its output for a padded
    token. shift: windows are cut from the map rolled by -shift, then padded below and on the right to multiples of 7.
    Padded tokens are attended to. Where rolling joined two ends of the map, -100 is added to logits across the seam.
    Returns [B,H,W,C] in the order of qkv.
    """
    B, H, W, C3 = qkv.shape
    heads = bias.shape[0]
    rows, columns = -(-H // WINDOW), -(-W // WINDOW)
    x = torch.roll(qkv, (-shift, -shift), (1, 2))
    padded = qkv_bias.to(qkv.dtype).expand(B, rows * WINDOW, columns * WINDOW, C3).clone()
    padded[:, :H, :W] = x
    windows = padded.view(B, rows, WINDOW, columns, WINDOW, 3, heads, -1).permute(5, 0, 1, 3, 6, 2, 4, 7)
    q, k, v = windows.reshape(3, B, rows * columns, heads, TOKENS, -1).unbind()  # each [B,windows,heads,49,D]
    mask = seam_mask(rows, columns, shift).to(qkv)[:, None]  # [windows,1,49,49]
    out = attention(q, k, v, bias.to(qkv.dtype) + mask, scale=scale)
    out = out.view(B, rows, columns, heads, WINDOW, WINDOW, -1).permute(0, 1, 4, 2, 5, 3, 6)
    out = out.reshape(B, rows * WINDOW, columns * WINDOW, C3 // 3)[:, :H, :W]
    return torch.roll(out, (shift, shift), (1, 2)).contiguous()


def seam_mask(rows: int, columns: int, shift: int) -> Tensor:
    """f32 [rows*columns,49,49]: 0, or -100 between tokens of one window that come from different ends of the map."""
    y, x = (_region(size, shift) for size in (rows, columns))
    region = (3 * y[:, None] + x[None, :]).view(rows, WINDOW, columns, WINDOW).transpose(1, 2).reshape(-1, TOKENS)
    return torch.where(region[:, :, None] == region[:, None, :], 0.0, MASKED)


def cross_attention(q: Tensor, kv: Tensor, heads: int, scale: float) -> Tensor:
    """The attention between the projections of `torch.nn.MultiheadAttention` (DGIQA's section 3.4).

    q: [49,N,C]; kv: [49,N,2C], keys, then values. Returns [49,N,C].
    """
    tokens, N, C = q.shape
    split = [x.reshape(tokens, N, heads, C // heads).permute(1, 2, 0, 3) for x in (q, *kv.chunk(2, -1))]
    return attention(*split, scale=scale).permute(2, 0, 1, 3).reshape(tokens, N, C)


def pack_bias(bias: Tensor, scale: float) -> Tensor:
    """Divide a bias by scale and order it as a warp's lanes hold the logits: [heads,49,49] -> [heads,4,7,32,4].

    Row 16 a + 8 c + l and column 8 b + 2 m + d are at [a, b, 4 l + m, 2 c + d]; rows and columns from 49 on are zeros.
    """
    padded = F.pad(bias / scale, (0, 56 - TOKENS, 0, 64 - TOKENS))
    return padded.view(-1, 4, 2, 8, 7, 4, 2).permute(0, 1, 4, 3, 5, 2, 6).reshape(-1, 4, 7, 32, 4).contiguous()


def unpack_bias(packed: Tensor, scale: float) -> Tensor:
    """The inverse of `pack_bias`: [heads,4,7,32,4] -> [heads,49,49]."""
    rows = packed.view(-1, 4, 7, 8, 4, 2, 2).permute(0, 1, 5, 3, 2, 4, 6)
    return rows.reshape(-1, 64, 56)[:, :TOKENS, :TOKENS] * scale


def load_kernels(library: str | Path) -> None:
    """Let the kernels of a built libdgiqa_torch.so run the ops in this process: float16, on CUDA and CPU.

    Raises BackendError if the library cannot be loaded.
    """
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        raise BackendError(
            f"cannot load {library}: {error}. Build it: cmake -S . -B build && cmake --build build"
        ) from error


def with_attention_op(network: nn.Module, *, cross: bool = True) -> nn.Module:
    """A copy of a network in eval mode whose Swin blocks, and with `cross` its Depth-CAR blocks, call the ops.

    It computes the same: heads of 60 are padded to 64 by zero rows in their projections. For inference only.
    Raises ValueError if there is nothing to replace, or the ops cannot express a block.
    """
    network = copy.deepcopy(network).eval()
    replaced = 0
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            fused = _fused(child, cross)
            if fused is not None:
                setattr(parent, name, fused)
                replaced += 1
    if not replaced:
        raise ValueError(
            f"{type(network).__name__} has neither Swin blocks nor Depth-CAR; there is no attention to fuse"
        )
    return network


class FusedSwinBlock(nn.Module):
    """A timm SwinTransformerBlock whose attention is one op. x [B,H,W,C] -> [B,H,W,C]."""

    bias: Tensor
    qkv_bias: Tensor

    def __init__(self, block: Any) -> None:
        super().__init__()
        attn = block.attn
        head_dim = attn.qkv.out_features // 3 // attn.num_heads
        if tuple(block.window_size) != (WINDOW, WINDOW) or head_dim not in HEAD_DIMS:
            raise ValueError(
                f"a Swin block has windows of {block.window_size} and heads of {head_dim}; wanted 7x7, 32 or 64"
            )
        if block.shift_size[0] != block.shift_size[1] or block.shift_size[0] not in SHIFTS:
            raise ValueError(f"a Swin block is shifted by {block.shift_size}; wanted 0 or 3 in both directions")
        self.shift, self.scale = int(block.shift_size[0]), float(attn.scale)
        self.norm1, self.qkv, self.proj, self.norm2, self.mlp = block.norm1, attn.qkv, attn.proj, block.norm2, block.mlp
        with torch.no_grad():
            self.register_buffer("bias", pack_bias(attn._get_rel_pos_bias()[0], self.scale))
            none = torch.zeros(attn.qkv.out_features).to(attn.qkv.weight)
            self.register_buffer("qkv_bias", none if attn.qkv.bias is None else attn.qkv.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(x))
        x = x + self.proj(torch.ops.dgiqa.window_attention(qkv, self.bias, self.qkv_bias, self.shift, self.scale))
        return x + self.mlp(self.norm2(x))


class FusedCrossAttention(nn.Module):
    """An nn.MultiheadAttention with heads padded to a kernel's width, whose attention is one op."""

    def __init__(self, mha: nn.MultiheadAttention) -> None:
        super().__init__()
        width, self.heads = mha.embed_dim, mha.num_heads
        head_dim = width // self.heads
        padded = next((d for d in HEAD_DIMS if d >= head_dim), None)
        if padded is None or mha.batch_first or mha.in_proj_weight is None or mha.in_proj_bias is None:
            raise ValueError(
                f"attention with heads of {head_dim} needs one biased projection, tokens first, heads up to 64"
            )
        self.scale = head_dim**-0.5
        weight, bias = (_pad_heads(p, 3 * self.heads, padded) for p in (mha.in_proj_weight, mha.in_proj_bias))
        wide = self.heads * padded
        self.q = linear(weight[:wide], bias[:wide])
        self.kv = linear(weight[wide:], bias[wide:])
        self.out = linear(_pad_heads(mha.out_proj.weight.mT, self.heads, padded).mT, mha.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False) -> tuple[Tensor, None]:
        """query, key [49,N,C], value the same tensor as key -> ([49,N,C], None)."""
        if need_weights or value is not key:
            raise ValueError("fused attention gives no weights, and takes its values from its keys")
        return self.out(torch.ops.dgiqa.cross_attention(self.q(query), self.kv(key), self.heads, self.scale)), None


def _fused(module: nn.Module, cross: bool) -> nn.Module | None:
    if type(module).__name__ == "SwinTransformerBlock":
        return FusedSwinBlock(module)
    if cross and isinstance(module, nn.MultiheadAttention):
        return FusedCrossAttention(module)
    return None


def _pad_heads(rows: Tensor, heads: int, to: int) -> Tensor:
    """Add zeros after each head's D rows: [heads*D, ...] -> [heads*to, ...]."""
    split = rows.reshape(heads, -1, *rows.shape[1:])
    padding = split.new_zeros(heads, to - split.shape[1], *rows.shape[1:])
    return torch.cat([split, padding], 1).flatten(0, 1)


def _region(windows: int, shift: int) -> Tensor:
    """The end of the map that each position of a rolled, padded axis belongs to: [7*windows]."""
    place = torch.arange(WINDOW * windows)
    return (place >= WINDOW * (windows - 1)).int() + (place >= WINDOW * windows - shift).int()


def _window_attention_packed(qkv: Tensor, bias: Tensor, qkv_bias: Tensor, shift: int, scale: float) -> Tensor:
    return window_attention(qkv, unpack_bias(bias, scale), qkv_bias, shift, scale)


def _window_attention_shape(qkv: Tensor, bias: Tensor, qkv_bias: Tensor, shift: int, scale: float) -> Tensor:
    return qkv.new_empty(*qkv.shape[:-1], qkv.shape[-1] // 3)


def _cross_attention_shape(q: Tensor, kv: Tensor, heads: int, scale: float) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


_ops = torch.library.Library("dgiqa", "DEF")  # a Library undoes its declarations when it is collected
_ops.define("window_attention(Tensor qkv, Tensor bias, Tensor qkv_bias, int shift, float scale) -> Tensor")
_ops.define("cross_attention(Tensor q, Tensor kv, int heads, float scale) -> Tensor")
_ops.impl("window_attention", _window_attention_packed, "CompositeExplicitAutograd")
_ops.impl("cross_attention", cross_attention, "CompositeExplicitAutograd")
torch.library.register_fake("dgiqa::window_attention", _window_attention_shape)
torch.library.register_fake("dgiqa::cross_attention", _cross_attention_shape)
