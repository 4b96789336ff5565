"""DGIQA's export twin: the same function of the same weights, without computing values that nothing reads.

    image ─► backbone ─► maps ─► bridges, only at the pixels that the resizing to 7x7 reads ─► tokens [N,49,C]
    depth ─► backbone ─► maps ─► bridges ──────────────────────────────────────────────────► tokens [N,49,C]
    ─► Depth-CAR, batch first ─► dilated convolutions ─► mean ─► score

Enlarged by a factor r, one of the 7x7 cells covers r x r pixels of a map, and bilinear resizing (align_corners=False)
takes the mean of the 2 x 2 pixels in its middle. So at stride 4 the bridge's 3x3 convolution is needed at 196 of 3,136
pixels, and the layers before it at 784; at stride 8 the convolution is needed at 196 of 784.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from dgiqa.nn.backbones import STRIDES, feature_maps
from dgiqa.nn.deploy_layers import linear, scaled_projections, with_pooled_shortcuts
from dgiqa.nn.deploy_swin import WindowOrderSwin, is_foldable_swin
from dgiqa.nn.network import DGIQA, TCB, CrossAttention, softened


class TwinDGIQA(DGIQA):
    """rgb, depth f32 [N,3,S,S] -> score f32 [N], equal to `DGIQA` in eval mode; for export only.

    network: a DGIQA whose maps are 1, 2, 4 and 8 times the smallest one, see `has_twin`. fold: see `WindowOrderSwin`.
    """

    def __init__(self, network: DGIQA, fold: bool = False) -> None:
        nn.Module.__init__(self)  # DGIQA's would make weights
        self.config = config = network.config
        self.branches = nn.ModuleList([Branch(network, network.backbone, "", fold)])
        self.attentions = nn.ModuleList()
        if config.depth_car:
            self.branches.append(Branch(network, network.depth_backbone, "_depth", fold))
            cross, refine = network.depth_guided_cross_attention, network.refinement_attention
            self.attentions.extend([TokenAttention(cross), TokenAttention(refine)])
        self.dilated = network.dilated_stack if config.dilated else nn.Identity()
        self.fc = network.fc
        if config.reasons:
            self.fc_reasons = network.fc_reasons
        self.cells = config.image_size // STRIDES[-1]

    def score(self, features: Tensor) -> Tensor:
        return torch.sigmoid(self.fc(features).reshape(-1))

    def maps(self, image: Tensor, suffix: str = "") -> list[Tensor]:
        """As `DGIQA.maps`, but for a folded Swin, tokens [N,T,C] in their own order."""
        return self._half(suffix).maps(image if suffix else softened(image, self.config.soften))

    def _fuse(self, maps: list[Tensor], suffix: str) -> Tensor:
        """As `DGIQA._fuse`, but returns tokens [N,T,C]."""
        return self._half(suffix).tokens(maps)

    def _half(self, suffix: str) -> "Branch":
        return cast(Branch, self.branches[1 if suffix else 0])

    def join(self, tokens: Tensor, guide: Tensor | None) -> Tensor:
        """As `DGIQA.join`, but of tokens: RGB's and, with Depth-CAR, depth's, [N,T,C] -> f32 [N,C]."""
        if guide is not None:
            tokens = self.attentions[0](guide, tokens)
            tokens = self.attentions[1](tokens, tokens)
        return self.dilated(_to_map(tokens, self.cells)).mean((2, 3))


def has_twin(network: DGIQA) -> bool:
    """Whether the network's map sizes are powers of two apart, so that resizing reads the middle of each cell.

    A Swin's twin returns only the tokens that the bridges read, and in their own order, so heads that read whole maps
    rule it out.
    """
    config = network.config
    whole = config.reasons or config.statistics
    fits = config.image_size % STRIDES[-1] == 0 and not (whole and is_foldable_swin(network.backbone))
    return config.tcb and fits


class Branch(nn.Module):
    """One image through its backbone and bridges: [N,3,S,S] -> tokens of the smallest map [N,T,C]."""

    def __init__(self, network: DGIQA, backbone: nn.Module, suffix: str, fold: bool) -> None:
        super().__init__()
        cells = network.config.image_size // STRIDES[-1]
        bridges = [getattr(network, f"tcb{level}{suffix}") for level in range(1, 5)]
        ratios = [STRIDES[-1] // stride for stride in STRIDES]
        if is_foldable_swin(backbone):
            orders = [
                cell_order(cells, ratio) if ratio >= 4 else torch.arange((cells * ratio) ** 2) for ratio in ratios
            ]
            self.backbone: nn.Module = WindowOrderSwin(backbone, orders, fold)
            self.bridges = nn.ModuleList(
                CellBridge(bridge) if ratio >= 4 else TokenBridge(bridge, cells, ratio)
                for bridge, ratio in zip(bridges, ratios, strict=True)
            )
        else:
            self.backbone = with_pooled_shortcuts(backbone)
            self.bridges = nn.ModuleList(
                MapBridge(bridge, cells, ratio) for bridge, ratio in zip(bridges, ratios, strict=True)
            )

    def maps(self, image: Tensor) -> list[Tensor]:
        """The backbone's four maps: [N,C,H,W], or for a folded Swin tokens [N,T,C] in their own order."""
        return (
            self.backbone(image) if isinstance(self.backbone, WindowOrderSwin) else feature_maps(self.backbone, image)
        )

    def tokens(self, maps: list[Tensor]) -> Tensor:
        """The maps through their bridges: tokens [N,T,C]."""
        bridged = [bridge(m) for bridge, m in zip(self.bridges, maps, strict=True)]
        return (
            torch.cat(bridged, 2) if isinstance(self.backbone, WindowOrderSwin) else _to_tokens(torch.cat(bridged, 1))
        )


class MapBridge(nn.Module):
    """A TCB and the resizing after it: [N,Cin,r*c,r*c] -> [N,Cout,c,c] for r = 1, 2, 4 or 8 times `cells` c."""

    def __init__(self, bridge: TCB, cells: int, ratio: int) -> None:
        super().__init__()
        self.conv1, self.gate = bridge.conv1, bridge.attention
        self.cells, self.ratio = cells, ratio
        self.conv2 = fuse_conv_bn_eval(bridge.conv2, bridge.norm)
        if ratio >= 4:  # inside a cell of 4 x 4 pixels or more, the two in the middle have all their neighbours
            self.conv2.padding = (0, 0)

    def forward(self, x: Tensor) -> Tensor:
        if self.ratio == 8:  # the pixels that are read depend only on the middle 4 x 4 of each cell's 8 x 8
            n, c = x.shape[:2]
            x = x.reshape(n, c, self.cells, 8, self.cells, 8)[:, :, :, 2:6, :, 2:6]
            x = x.reshape(n, c, 4 * self.cells, 4 * self.cells)
        x = self.conv1(x)
        x = F.relu(self.conv2(x * self.gate(x)))
        if self.ratio == 1:
            return x
        return F.avg_pool2d(x, 2, min(self.ratio, 4))


class TokenBridge(nn.Module):
    """`MapBridge` for tokens in raster order: [N,(r*c)**2,Cin] -> [N,c*c,Cout]."""

    def __init__(self, bridge: TCB, cells: int, ratio: int) -> None:
        super().__init__()
        self.bridge = MapBridge(bridge, cells, ratio)

    def forward(self, x: Tensor) -> Tensor:
        return _to_tokens(self.bridge(_to_map(x, self.bridge.cells * self.bridge.ratio)))


class CellBridge(nn.Module):
    """A TCB and the resizing after it for tokens that come cell by cell, 4 x 4 each: [N,16*T,Cin] -> [N,T,Cout].

    The 3x3 convolution at the 2 x 2 middle pixels of 4 x 4 is one matrix product, [16*C] -> [4*C]. It takes 1.8 times
    the arithmetic of the convolution at these four pixels, and a ninth of the whole map's at stride 4.
    """

    def __init__(self, bridge: TCB) -> None:
        super().__init__()
        squeeze, _, excite, _ = bridge.attention
        self.conv1, self.squeeze, self.excite = map(_pointwise, (bridge.conv1, squeeze, excite))
        fused: Any = fuse_conv_bn_eval(bridge.conv2, bridge.norm)
        weight = fused.weight  # [C,C,3,3]
        spread = weight.new_zeros(2, 2, weight.shape[0], 4, 4, weight.shape[1])
        for y in (0, 1):
            for x in (0, 1):
                spread[y, x, :, y : y + 3, x : x + 3] = weight.permute(0, 2, 3, 1)
        self.conv2 = linear(spread.flatten(3).flatten(0, 2), fused.bias.repeat(4))

    def forward(self, x: Tensor) -> Tensor:
        n, length, channels = x.shape
        x = self.conv1(x.reshape(-1, channels))
        x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(x))))
        x = F.relu(self.conv2(x.reshape(n * (length // 16), -1)))
        return x.reshape(n, length // 16, 4, -1).mean(2)


class TokenAttention(nn.Module):
    """Depth-CAR's blocks, batch first: query [N,T,C], key = value [N,T,C] -> [N,T,C]."""

    def __init__(self, block: CrossAttention) -> None:
        super().__init__()
        attention, self.norm1, self.norm2, (self.fc1, _, self.fc2) = block.parts()
        self.heads, self.proj = attention.num_heads, attention.out_proj
        self.projections = scaled_projections(attention.in_proj_weight, attention.in_proj_bias, self.heads)

    def forward(self, query: Tensor, other: Tensor) -> Tensor:
        n, length, channels = query.shape
        flat, other = query.reshape(-1, channels), other.reshape(-1, channels)
        q, k, v = (
            project(x).reshape(n, length, self.heads, channels // self.heads).transpose(1, 2)
            for project, x in zip(self.projections, (flat, other, other), strict=True)
        )
        attended = ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).reshape(-1, channels)
        x = self.norm1(flat + self.proj(attended))
        x = self.norm2(x + self.fc2(F.gelu(self.fc1(x))))
        return x.reshape(n, length, channels)


def cell_order(cells: int, ratio: int) -> Tensor:
    """Raster indices of the middle 4 x 4 pixels of each cell of ratio x ratio pixels, cell by cell, [cells**2 * 16]."""
    first = (ratio - 4) // 2
    steps = torch.arange(cells)[:, None] * ratio + first + torch.arange(4)  # [cells,4]
    raster = steps[:, None, :, None] * (cells * ratio) + steps[None, :, None, :]  # [cells,cells,4,4]
    return raster.flatten()


def _pointwise(convolution: Any) -> nn.Linear:
    """A 1x1 convolution of maps as a linear layer on tokens."""
    return linear(convolution.weight.flatten(1), convolution.bias)


def _to_tokens(x: Tensor) -> Tensor:  # [N,C,H,W] -> [N,H*W,C]
    return x.flatten(2).mT


def _to_map(x: Tensor, height: int) -> Tensor:  # [N,H*W,C] -> [N,C,H,W]
    return x.mT.unflatten(2, (height, -1))
