"""Kernels and their baselines, as calls without arguments that take their inputs in turn.

Every function `..._calls` returns {name: call}; its calls compute the same from the same inputs, which tests check on
the CPU in float32. The best honest baseline of window attention is SDPA with bias and mask added up once, in the
activations' type (cuDNN is silently wrong for a float32 mask with float16 activations). On an image-ordered map it has
to separate the windows and join them again; on tokens in window order, as the export twin keeps them, it moves as many
bytes as our kernel, and its mask is read once for all images.
"""

import ctypes
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from roofline import HEADS, TOKENS, WIDTH
from torch import Tensor
from torch.nn import functional

from dgiqa.nn.attention import TOKENS as WINDOW_TOKENS
from dgiqa.nn.attention import WINDOW, attention, cross_attention, pack_bias, seam_mask
from dgiqa.on_device import DeviceScorer
from dgiqa.preprocess import depth_size, windows_for, working_size
from dgiqa.runtime.cuda import DeviceArray, Lane
from dgiqa.runtime.kernels import DepthMap, Image, Kernels, normalised_levels
from dgiqa.spec import IMAGENET_MEAN, IMAGENET_STD, Preprocess

Call = Callable[[], Any]
OURS = "ours"
WITHOUT_GRAPHS = {"max-autotune": "max-autotune-no-cudagraphs"}  # torch.compile's modes; the timer records graphs


def window_attention_calls(
    stage: int, tiles: int, shifted: bool, *, device: str, dtype: torch.dtype, sets: int = 1, mode: str = "default"
) -> dict[str, Call]:
    """One Swin-T stage's attention on `sets` random inputs: ours, SDPA (compiled and eager), timm's math path.

    "SDPA, windows folded" takes and returns the same numbers in window order, [B,windows*49,3C].
    """
    side = int(TOKENS[stage - 1] ** 0.5)
    heads, width = HEADS[stage - 1], WIDTH << (stage - 1)
    shift, scale = (WINDOW // 2 if shifted else 0), 32**-0.5
    generator = torch.Generator(device).manual_seed(stage)
    random = lambda *shape: torch.randn(*shape, device=device, dtype=dtype, generator=generator)  # noqa: E731
    inputs = [random(tiles, side, side, 3 * width) for _ in range(sets)]
    bias, qkv_bias = random(heads, WINDOW_TOKENS, WINDOW_TOKENS), random(3 * width)
    packed, mask = pack_bias(bias, scale), window_mask(bias, side // WINDOW, shift, tiles)
    addend = folded_mask(bias, side // WINDOW, shift)
    in_order = [by_window(torch.roll(x, (-shift, -shift), (1, 2))) for x in inputs]
    compiled = torch.compile(windows_apart, mode=WITHOUT_GRAPHS.get(mode, mode), dynamic=False)
    return {
        "SDPA, mask precomputed, compiled": turn(inputs, lambda x: compiled(x, mask, heads, shift, sdpa)),
        "SDPA, mask precomputed, eager": turn(inputs, lambda x: windows_apart(x, mask, heads, shift, sdpa)),
        "math path, eager": turn(inputs, lambda x: windows_apart(x, mask, heads, shift, math_path)),
        "SDPA, windows folded": turn(in_order, lambda x: windows_folded(x, addend, heads)),
        OURS: turn(inputs, lambda x: torch.ops.dgiqa.window_attention(x, packed, qkv_bias, shift, scale)),
    }


def by_window(x: Tensor) -> Tensor:
    """[B,H,W,C] -> [B,H*W,C], window by window."""
    B, H, W, C = x.shape
    return x.view(B, H // WINDOW, WINDOW, W // WINDOW, WINDOW, C).transpose(2, 3).reshape(B, H * W, C)


def folded_mask(bias: Tensor, rows: int, shift: int) -> Tensor:
    """Bias and seam mask added up once for all images: [1, windows * heads, 49, 49]."""
    return (bias + seam_mask(rows, rows, shift).to(bias)[:, None]).flatten(0, 1)[None]


def windows_folded(qkv: Tensor, mask: Tensor, heads: int) -> Tensor:
    """Attention of tokens in window order, all windows' heads on one axis: [B,windows*49,3C] -> [B,windows*49,C]."""
    B, length, C3 = qkv.shape
    windows = length // WINDOW_TOKENS
    q, k, v = qkv.view(B, windows, WINDOW_TOKENS, 3, heads, -1).permute(3, 0, 1, 4, 2, 5).flatten(2, 3).unbind()
    out = sdpa(q, k, v, mask).unflatten(1, (windows, heads))
    return out.transpose(2, 3).reshape(B, length, C3 // 3)


def window_mask(bias: Tensor, rows: int, shift: int, tiles: int) -> Tensor:
    """Bias and seam mask added up: [heads,49,49], or for shifted windows [tiles * windows, heads, 49, 49]."""
    if not shift:
        return bias
    mask = bias + seam_mask(rows, rows, shift).to(bias)[:, None]
    return mask.expand(tiles, -1, -1, -1, -1).reshape(-1, *mask.shape[1:])


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def math_path(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return attention(q, k, v, mask, scale=q.shape[-1] ** -0.5)


def windows_apart(
    qkv: Tensor, mask: Tensor, heads: int, shift: int, attend: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """Roll, partition, attend, reverse, roll back: [B,H,W,3C] -> [B,H,W,C], H and W multiples of 7."""
    B, H, W, C3 = qkv.shape
    x = torch.roll(qkv, (-shift, -shift), (1, 2)) if shift else qkv
    x = x.view(B, H // WINDOW, WINDOW, W // WINDOW, WINDOW, 3, heads, -1).permute(5, 0, 1, 3, 6, 2, 4, 7)
    q, k, v = x.reshape(3, -1, heads, WINDOW_TOKENS, C3 // 3 // heads).unbind()
    out = attend(q, k, v, mask).contiguous()
    out = out.view(B, H // WINDOW, W // WINDOW, heads, WINDOW, WINDOW, -1).permute(0, 1, 4, 2, 5, 3, 6)
    out = out.reshape(B, H, W, C3 // 3)
    return torch.roll(out, (shift, shift), (1, 2)) if shift else out


def depth_car_calls(tiles: int, *, device: str, dtype: torch.dtype, sets: int = 1) -> dict[str, Call]:
    """One 49 x 49 attention of Depth-CAR, 16 heads of 60: ours and SDPA at 64, SDPA at the network's own 60."""
    heads, scale = 16, 60**-0.5
    generator = torch.Generator(device).manual_seed(0)
    plain = [
        tuple(
            torch.randn(WINDOW_TOKENS, tiles, heads, 60, device=device, dtype=dtype, generator=generator) for _ in "qkv"
        )
        for _ in range(sets)
    ]
    padded = [tuple(functional.pad(part, (0, 4)) for part in qkv) for qkv in plain]
    packed = [(q.flatten(2), torch.cat([k.flatten(2), v.flatten(2)], 2)) for q, k, v in padded]

    def fused(qkv: tuple[Tensor, ...]) -> Tensor:
        out = functional.scaled_dot_product_attention(*(part.permute(1, 2, 0, 3) for part in qkv), scale=scale)
        return out.permute(2, 0, 1, 3)[..., :60]

    def whole(out: Tensor) -> Tensor:
        return out.unflatten(2, (heads, -1))[..., :60]

    return {
        "SDPA, heads padded to 64": turn(padded, fused),
        "SDPA, heads of 60": turn(plain, fused),
        "math path, eager": turn(packed, lambda x: whole(cross_attention(*x, heads, scale))),
        OURS: turn(packed, lambda x: whole(torch.ops.dgiqa.cross_attention(*x, heads, scale))),
    }


def preprocess_calls(height: int, width: int, *, device: str, kernels: Kernels, sets: int = 1) -> dict[str, Call]:
    """One uint8 image and one depth map -> network inputs, grid tiles, float32: our kernels and torch operations.

    Torch resizes in float and writes every full-size map, so its depth levels differ by one here and there.
    """
    ours = KernelRun(kernels, (height, width), device, Preprocess())
    generator = torch.Generator(device).manual_seed(0)
    inputs = [
        (
            torch.randint(0, 256, (height, width, 3), device=device, dtype=torch.uint8, generator=generator),
            torch.rand(*ours.depth, device=device, generator=generator),
        )
        for _ in range(sets)
    ]
    # Made beforehand: a copy from the host cannot be captured
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return {
        "torch operations": turn(inputs, lambda x: torch_preprocess(*x, mean, std, ours)),
        OURS: turn(inputs, lambda x: ours(*x)),
    }


def torch_preprocess(
    image: Tensor, depth: Tensor, mean: Tensor, std: Tensor, sizes: "KernelRun"
) -> tuple[Tensor, Tensor, Tensor]:
    """Network inputs by torch operations: depth input [1,3,h,w], rgb and depth tiles [n,3,tile,tile]."""
    rgb = image.permute(2, 0, 1)[None].float()
    resized = functional.interpolate(rgb, depth.shape, mode="bicubic", align_corners=False)
    depth_input = (resized / 255 - mean) / std
    full = functional.interpolate(depth[None, None], image.shape[:2], mode="bilinear", align_corners=False)
    low, high = full.aminmax()
    near = ((full - low) / (high - low + 1e-8) * 255).floor()
    small = [functional.interpolate(x, sizes.short, mode="bilinear", align_corners=False).round() for x in (rgb, near)]
    maps = [((x / 255 - mean) / std)[0] for x in (small[0], small[1].expand(-1, 3, -1, -1))]
    tile, corners = sizes.tile, sizes.windows.tolist()
    cut = [torch.stack([m[:, y : y + tile, x : x + tile] for y, x in corners]) for m in maps]
    return depth_input, cut[0], cut[1]


class KernelRun:
    """The three kernels on torch's current stream, into fixed outputs, for images of one size."""

    def __init__(self, kernels: Kernels, size: tuple[int, int], device: str, p: Preprocess) -> None:
        self.kernels, self.size, self.tile = kernels, size, p.tile
        self.depth, self.short = depth_size(*size, p), working_size(*size, p)
        self.windows = windows_for("grid", *self.short, p.tile)
        n = len(self.windows)
        self.depth_in = torch.empty(1, 3, *self.depth, device=device)
        self.rgb, self.near = torch.empty(2, n, 3, p.tile, p.tile, device=device)
        self.range = torch.zeros(3, dtype=torch.int32, device=device)
        self.levels = torch.from_numpy(normalised_levels()).to(device)

    def __call__(self, image: Tensor, depth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        stream = torch.cuda.current_stream().cuda_stream if image.is_cuda else 0
        source = Image(image.data_ptr(), *self.size, (3 * self.size[1], 3, 1))
        described = DepthMap(depth.data_ptr(), self.depth, self.size, self.range.data_ptr())
        self.kernels.depth_input(source, self.depth, self.depth_in.data_ptr(), stream=stream)
        self.kernels.depth_range(described, stream)
        out, levels = (self.rgb.data_ptr(), self.near.data_ptr()), self.levels.data_ptr()
        self.kernels.tiles(
            source, described, self.short, self.windows, tile=self.tile, levels=levels, out=out, stream=stream
        )
        return self.depth_in, self.rgb, self.near


class Unlaunched(Kernels):
    """Kernels that are called and never launched."""

    def __init__(self) -> None:
        pass

    def _call(self, name: str, params: ctypes.Structure, stream: int) -> None:
        ctypes.addressof(params)


class NoDevice(Lane):
    """A lane, networks and an image that do nothing, so that only this package's own work remains."""

    def __init__(self, height: int, width: int) -> None:
        interface = {"version": 3, "shape": (height, width, 3), "typestr": "|u1", "data": (256, False), "stream": None}
        self.__cuda_array_interface__ = interface | {"strides": None}
        self.handle = self.at = 0
        self._keep, self._record, self._kept, self.graphs = 1, False, OrderedDict(), WeakKeyDictionary()
        self.current = nullcontext  # type: ignore[assignment]

    def empty(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        return DeviceArray(256, shape, np.dtype(dtype))

    def numpy(self, array: DeviceArray) -> np.ndarray[Any, Any]:
        return np.zeros(array.shape, array.dtype)

    def bind(self, feeds: Any, outputs: Any, lane: Any) -> "NoDevice":
        self.arrays = dict(feeds) | (outputs or {"score": DeviceArray(256, (len(feeds),), np.dtype(np.float32))})
        return self

    def _nothing(self, *arguments: Any) -> None:
        pass

    copy = follow = put = sync = close = _nothing  # type: ignore[assignment]


def device_path_call(height: int, width: int) -> Call:
    """Score one image on the device path, without a device."""
    nowhere: Any = NoDevice(height, width)
    scorer = DeviceScorer(nowhere, nowhere, Preprocess(), kernels=Unlaunched(), lanes=[nowhere])
    return lambda: scorer.score(nowhere)


def turn(inputs: list[Any], call: Callable[[Any], Any]) -> Call:
    """A call that takes the inputs in turn, again and again."""
    endless: Iterator[Any] = itertools.cycle(inputs)
    return lambda: call(next(endless))
