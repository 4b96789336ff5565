"""Depth Anything, a DINOv2 transformer with a dense-prediction head: image -> relative inverse depth.

V1 and V2 are one network with the same names and shapes, but their heads read different blocks of the transformer.
Sources: Yang et al., "Depth Anything", arXiv 2401.10891, and "Depth Anything V2", arXiv 2406.09414; Oquab et al.,
"DINOv2", arXiv 2304.07193; Ranftl et al., "Vision Transformers for Dense Prediction", arXiv 2103.13413. Module names
follow the published checkpoints (`pretrained.*`, `depth_head.*`), so that those load key for key. Nothing here depends
on the values of height and width in Python, so that one exported graph serves every image size.
"""

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgiqa.nn.backbones import transformer_block

PATCH = 14  # pixels per token and side
NATIVE_GRID = 37  # the position embedding was trained on 518 / 14 tokens a side
GRID_OFFSET = 0.1  # added to the grid's size before computing its scale; the published weights were trained with it
HEAD_CHANNELS = 32  # width of the last convolution


@dataclass(frozen=True)
class DepthAnythingConfig:
    """Sizes of one Depth Anything network: `features` and `channels` belong to the head, the rest to the encoder.

    reads: the four blocks whose tokens the head reads, counted from 0; empty: the last four, as in V1.
    """

    width: int
    blocks: int
    heads: int
    features: int
    channels: tuple[int, int, int, int]
    reads: tuple[int, ...] = ()


ENCODERS = {
    "vits": DepthAnythingConfig(384, 12, 6, 64, (48, 96, 192, 384)),
    "vitb": DepthAnythingConfig(768, 12, 12, 128, (96, 192, 384, 768)),
    "vitl": DepthAnythingConfig(1024, 24, 16, 256, (256, 512, 1024, 1024)),
}
V2_READS = {12: (2, 5, 8, 11), 24: (4, 11, 17, 23)}  # by the number of blocks


class DepthAnything(nn.Module):
    """image f32 [N,3,h,w], ImageNet-normalised -> relative inverse depth f32 [N,h,w], at least 0, larger = nearer.

    config: "vits", "vitb", "vitl", or other sizes. Raises ValueError unless h and w are multiples of 14.
    """

    def __init__(self, config: str | DepthAnythingConfig = "vits") -> None:
        super().__init__()
        self.config = _config_of(config)
        self.pretrained = VisionTransformer(self.config)
        self.depth_head = DenseHead(self.config)

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        if height % PATCH or width % PATCH:
            raise ValueError(f"image is {height}x{width} pixels; both sides must be multiples of {PATCH}, resize first")
        maps = self.pretrained(image, self.config.reads or range(self.config.blocks - 4, self.config.blocks))
        return F.relu(self.depth_head(maps)).squeeze(1)


class VisionTransformer(nn.Module):
    """DINOv2 with 14-pixel patches, one class token and layer scale; some blocks' tokens come out as maps."""

    def __init__(self, config: DepthAnythingConfig) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + NATIVE_GRID**2, config.width))
        self.mask_token = nn.Parameter(torch.zeros(1, config.width))  # only pretraining used it; checkpoints have it
        self.patch_embed = nn.Sequential(OrderedDict(proj=nn.Conv2d(3, config.width, PATCH, PATCH)))
        self.blocks = nn.ModuleList(transformer_block(config.width, config.heads, 1.0) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)

    def forward(self, image: Tensor, reads: Collection[int]) -> list[Tensor]:
        """[N,3,h,w] -> the normalised patch tokens of the blocks numbered in `reads`, each a map [N,C,h/14,w/14]."""
        patches = self.patch_embed(image)  # [N,C,r,c]
        n, _, rows, columns = patches.shape
        x = torch.cat([self.cls_token.expand(n, -1, -1), patches.flatten(2).mT], 1)
        x = x + resize_position_embedding(self.pos_embed, rows, columns)
        maps = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in reads:
                maps.append(self.norm(x[:, 1:]).mT.unflatten(2, (rows, columns)))
        return maps


class DenseHead(nn.Module):
    """Four maps [N,C,r,c], shallow to deep -> one channel [N,1,14r,14c], fused from the deepest upwards."""

    def __init__(self, config: DepthAnythingConfig) -> None:
        super().__init__()
        first, second, _, fourth = config.channels
        self.projects = nn.ModuleList(nn.Conv2d(config.width, channels, 1) for channels in config.channels)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(first, first, 4, 4),
                nn.ConvTranspose2d(second, second, 2, 2),
                nn.Identity(),
                nn.Conv2d(fourth, fourth, 3, 2, padding=1),
            ]
        )
        self.scratch = nn.ModuleDict()  # the checkpoints' name for everything after the resizing
        for level, channels in enumerate(config.channels, 1):
            self.scratch[f"layer{level}_rn"] = _conv3x3(channels, config.features, bias=False)
            self.scratch[f"refinenet{level}"] = FusionBlock(config.features)
        self.scratch["output_conv1"] = _conv3x3(config.features, config.features // 2)
        last = nn.Conv2d(HEAD_CHANNELS, 1, 1)
        nn.init.constant_(last.bias, 1.0)  # type: ignore[arg-type]  # untrained depths below 0 would all become 0
        self.scratch["output_conv2"] = nn.Sequential(
            _conv3x3(config.features // 2, HEAD_CHANNELS), nn.ReLU(), last, nn.ReLU()
        )

    def forward(self, maps: list[Tensor]) -> Tensor:
        rows, columns = maps[0].shape[-2:]
        levels = [
            self.scratch[f"layer{level}_rn"](resize(project(x)))
            for level, (x, project, resize) in enumerate(zip(maps, self.projects, self.resize_layers, strict=True), 1)
        ]
        sizes = [(8 * rows, 8 * columns), *(x.shape[-2:] for x in levels[:3])]  # to which each level is resized
        x = None
        for level in (4, 3, 2, 1):
            x = self.scratch[f"refinenet{level}"](x, levels[level - 1], sizes[level - 1])
        x = _upsample(self.scratch["output_conv1"](x), (PATCH * rows, PATCH * columns))
        return self.scratch["output_conv2"](x)


class FusionBlock(nn.Module):
    """The deeper map plus a residual of the level's own map, refined and resized to the next level's size.

    The deepest level has no map before it; its resConfUnit1 is unused and exists because checkpoints have it.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.resConfUnit1 = ResidualUnit(features)
        self.resConfUnit2 = ResidualUnit(features)
        self.out_conv = nn.Conv2d(features, features, 1)

    def forward(self, x: Tensor | None, level: Tensor, size: tuple[int, int]) -> Tensor:
        x = level if x is None else x + self.resConfUnit1(level)
        return self.enlarged(self.resConfUnit2(x), size)

    def enlarged(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return self.out_conv(_upsample(x, size))


class ResidualUnit(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(features, features)
        self.conv2 = _conv3x3(features, features)

    def forward(self, x: Tensor) -> Tensor:  # [N,C,H,W] -> [N,C,H,W]
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


def resize_position_embedding(embedding: Tensor, rows: int, columns: int) -> Tensor:
    """[1,1+37*37,C] -> [1,1+rows*columns,C]: bicubic, except on the native grid, where it is not changed.

    The same as `F.interpolate(scale_factor=((rows + 0.1) / 37, (columns + 0.1) / 37), mode="bicubic")`, written as
    two matrix products with weights made from tensors, because a scale factor made from a symbolic size cannot be
    exported.
    """
    counts = [torch.ones(n, device=embedding.device).sum() for n in (rows, columns)]  # sizes as tensors, for export
    native = (counts[0] == NATIVE_GRID) & (counts[1] == NATIVE_GRID)
    offset = torch.where(native, 0.0, GRID_OFFSET)
    down, across = (_cubic_weights(n, c + offset) for n, c in zip((rows, columns), counts, strict=True))
    channels = embedding.shape[-1]
    grid = embedding[0, 1:].reshape(NATIVE_GRID, NATIVE_GRID * channels)
    grid = across @ (down @ grid).reshape(-1, NATIVE_GRID, channels)  # [rows,columns,C]
    return torch.cat([embedding[:, :1], grid.reshape(1, -1, channels)], 1)


def _cubic_weights(count: int, size: Tensor) -> Tensor:
    """Weights [count,37] of Keys' cubic convolution with a = -0.75, edges repeated; `size` target cells span them."""
    source = (torch.arange(count, device=size.device) + 0.5) * NATIVE_GRID / size - 0.5
    taps = source.floor()[:, None] + torch.arange(-1, 3, device=size.device)  # [count,4]
    x = (source[:, None] - taps).abs()
    weights = torch.where(x <= 1, (1.25 * x - 2.25) * x * x + 1, ((-0.75 * x + 3.75) * x - 6) * x + 3)
    cells = torch.arange(NATIVE_GRID, device=size.device)
    hits = taps.clamp(0, NATIVE_GRID - 1)[..., None] == cells  # [count,4,37]
    return (weights[..., None] * hits).sum(1)


def _upsample(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def _conv3x3(in_channels: int, out_channels: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)


def _config_of(config: str | DepthAnythingConfig) -> DepthAnythingConfig:
    if isinstance(config, DepthAnythingConfig):
        if config.heads < 1 or config.width % config.heads:  # no tensor's shape shows it
            raise ValueError(f"heads is {config.heads}, wanted a divisor of the width {config.width}")
        if not all(0 <= block < config.blocks for block in config.reads) or len(config.reads) not in (0, 4):
            raise ValueError(f"reads is {config.reads}, wanted four of {config.blocks} blocks, or none")
        return config
    if config not in ENCODERS:
        raise ValueError(f"unknown encoder {config!r}; Depth Anything comes as {', '.join(ENCODERS)}")
    return ENCODERS[config]
