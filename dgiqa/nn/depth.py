"""A depth network small enough for one CPU core: image f32 [n,3,h,w] -> relative inverse depth f32 [n,h,w].

Its interface is Depth Anything's (larger = nearer, never negative, no unit). Inside it has narrow dense convolutions,
down to stride 32 and back up to stride 2: they run near a CPU's peak, and depthwise ones do not. A pixel's position
says much about its depth (the ground is low, the sky high), so the network is given coordinates, and the average of the
whole picture is added where the map is smallest.
"""

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgiqa.nn.weights import save_weights
from dgiqa.spec import Preprocess

STRIDE = 32  # height and width are multiples of this
# Cheap sizes that lose nothing on 400 photographs with opinions that training never saw: a short side of 336 cuts a 4:3
# photograph into four tiles where 384 cuts it into six, and depth is seen at 192 pixels instead of 256.
SMALL_PREPROCESS = Preprocess(version=2, depth_lower_bound=192, depth_multiple=STRIDE, short_side=336)


@dataclass(frozen=True)
class SmallDepthConfig:
    """widths: channels at strides 2, 4, 8, 16 and 32. decoder: channels at strides 16, 8 and 4 on the way up.

    blocks: residual blocks at strides 4, 8, 16 and 32. Most are at the smallest map, where one costs a twentieth of
    the whole and sees far enough to distinguish a wall from a floor.
    """

    widths: tuple[int, int, int, int, int] = (16, 32, 64, 96, 128)
    decoder: tuple[int, int, int] = (64, 48, 32)
    blocks: tuple[int, int, int, int] = (1, 1, 2, 3)


class SmallDepth(nn.Module):
    """image f32 [n,3,h,w], ImageNet-normalised, h and w multiples of 32 -> inverse depth f32 [n,h,w] >= 0."""

    preprocess: ClassVar[Preprocess] = SMALL_PREPROCESS

    def __init__(self, config: SmallDepthConfig | None = None) -> None:
        super().__init__()
        self.config = config or SmallDepthConfig()
        w2, *widths = self.config.widths
        self.stem = _convolution(5, w2, stride=2)
        self.stages = nn.ModuleList()
        previous = w2
        for width, count in zip(widths, self.config.blocks, strict=True):
            residuals = (Residual(width) for _ in range(count))
            self.stages.append(nn.Sequential(_convolution(previous, width, stride=2), *residuals))
            previous = width
        self.context = nn.Conv2d(previous, previous, 1)
        self.laterals, self.merges = nn.ModuleList(), nn.ModuleList()
        for width, skip in zip(self.config.decoder, widths[-2::-1], strict=True):
            self.laterals.append(nn.Conv2d(skip, width, 1))
            self.merges.append(nn.ModuleList([nn.Conv2d(previous, width, 1, bias=False), _convolution(width, width)]))
            previous = width
        self.head = nn.Conv2d(previous, 4, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        x = self.stem(torch.cat([image, _coordinates(image)], 1))
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        x = x + self.context(x.mean((2, 3), keepdim=True))
        for skip, lateral, merge in zip(maps[-2::-1], self.laterals, self.merges, strict=True):
            narrow, blend = cast(nn.ModuleList, merge)
            # Narrowing before enlarging gives the same result for a quarter of the work: both are linear.
            x = blend(F.relu(lateral(skip) + F.interpolate(narrow(x), size=skip.shape[-2:], mode="bilinear")))
        fine = F.pixel_shuffle(self.head(x), 2)  # [n,1,h/2,w/2]
        full = F.interpolate(fine.float(), size=(height, width), mode="bilinear")
        return F.softplus(full).squeeze(1)


class Residual(nn.Module):
    """Two 3x3 convolutions added to the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _convolution(channels, channels)
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))


def save_small_depth(model: SmallDepth, path: str) -> None:
    """Write the weights and the config to a safetensors file, all or nothing."""
    save_weights(model, path, {"model": "small_depth"})


def _convolution(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def _coordinates(image: Tensor) -> Tensor:
    """y and x of pixels from -1 to 1, [n,2,h,w]; made from the size at run time, so that they export dynamically."""
    n, _, height, width = image.shape
    y = torch.arange(height, dtype=image.dtype, device=image.device) * (2 / (height - 1)) - 1
    x = torch.arange(width, dtype=image.dtype, device=image.device) * (2 / (width - 1)) - 1
    return torch.stack([y[:, None].expand(height, width), x[None, :].expand(height, width)]).expand(n, 2, height, width)
