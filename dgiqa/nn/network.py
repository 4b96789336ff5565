"""DGIQA in plain PyTorch: the definition that exported files, engines and kernels must match.

Source: Ramesh et al., "DGIQA: Depth-guided Feature Attention and Refinement for Generalizable Image Quality
Assessment", arXiv 2505.24002, section 3. Module names follow the published checkpoints, so that those load.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgiqa.nn.backbones import FULL_BACKBONE, create_backbone, feature_maps


@dataclass(frozen=True)
class DGIQAConfig:
    """Sizes of the network. The defaults are the paper's 102.88 M parameters; `SMALL` is the shipped default model.

    depth_backbone, depth_backbone_options: the depth half's, if it differs; None: the same as the RGB half's.
    reasons: outputs of a second head, one per kind of fault; the paper's network has none. The head reads statistics of
        the RGB half's maps, because the last features say how good a picture is, but no longer why.
    statistics: the last layer also reads these statistics, after the paper's features. When a score is fitted to new
        labels (`calibrate.adapt`), they hold facts about pictures that the paper's few features lack.
    soften: weight of both neighbours, in rows and in columns, with which the RGB half first smooths its tile; 0: not
        at all. A network that learned from tiles reduced twice then sees similar tiles.
    The three switches at the end are the paper's ablations (tables 4 and 5).
    """

    backbone: str = FULL_BACKBONE
    backbone_options: Mapping[str, Any] = field(default_factory=dict)
    depth_backbone: str | None = None
    depth_backbone_options: Mapping[str, Any] = field(default_factory=dict)
    tcb_channels: tuple[int, int, int, int] = (64, 128, 256, 512)
    reduction: int = 16
    heads: int = 16
    dilated_channels: int = 1024
    dilations: tuple[int, int] = (2, 4)
    dropout: float = 0.1
    image_size: int = 224
    reasons: int = 0
    statistics: bool = False
    soften: float = 0.0
    tcb: bool = True
    depth_car: bool = True
    dilated: bool = True


FULL = DGIQAConfig()
# Lite0 can start from ImageNet's weights (`backbones.load_lite`). A depth image has few details: a narrow network that
# starts from random weights reads it, for a sixth of the time.
SMALL = DGIQAConfig(
    backbone="tf_efficientnet_lite0",
    backbone_options={"last_block": False},
    depth_backbone="resnet10t",
    depth_backbone_options={"channels": (12, 24, 40, 64), "stem_type": "deep", "stem_width": 8},
    tcb_channels=(12, 20, 32, 64),
    reduction=4,
    heads=4,
    dilated_channels=96,
)


class TCB(nn.Module):
    """Transformer-CNN bridge (section 3.3): 1x1 conv, per-pixel channel gate, 3x3 conv, BN, ReLU.

    The gate has no global pooling: it is a full-resolution map, unlike squeeze-and-excitation.
    """

    def __init__(self, in_channels: int, out_channels: int, reduction: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 1)
        self.attention = nn.Sequential(
            nn.Conv2d(out_channels, out_channels // reduction, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels // reduction, out_channels, 1),
            nn.Sigmoid(),
        )
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:  # [N,Cin,H,W] -> [N,Cout,H,W]
        x = self.conv1(x)
        x = x * self.attention(x)
        return self.drop(self.relu(self.norm(self.conv2(x))))


def _feed_forward(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class CrossAttention(nn.Module):
    """Depth-guided cross-attention (section 3.4): query = depth, key = value = RGB, residual on the depth query."""

    suffix = ""  # of the parts' names in checkpoints

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.add_module(f"multihead_attn{self.suffix}", nn.MultiheadAttention(width, heads, dropout=dropout))
        self.add_module(f"norm1{self.suffix}", nn.LayerNorm(width))
        self.add_module(f"norm2{self.suffix}", nn.LayerNorm(width))
        self.add_module(f"fc{self.suffix}", _feed_forward(width))
        self.dropout = nn.Dropout(dropout)

    def parts(self) -> list[Any]:
        """Attention, both normalisations, feed-forward."""
        return [getattr(self, f"{name}{self.suffix}") for name in ("multihead_attn", "norm1", "norm2", "fc")]

    def forward(self, depth: Tensor, rgb: Tensor) -> Tensor:  # [T,N,C], [T,N,C] -> [T,N,C]
        attention, norm1, norm2, feed_forward = self.parts()
        attended, _ = attention(depth, rgb, rgb, need_weights=False)
        x = norm1(depth + self.dropout(attended))
        return norm2(x + self.dropout(feed_forward(x)))


class SelfAttention(CrossAttention):
    """Refinement (section 3.4): the same block, with the cross-attention's output as query, key and value."""

    suffix = "_spatial"


def _dilated_stack(in_channels: int, channels: int, dilations: tuple[int, int]) -> nn.Sequential:
    """Section 3.5: two dilated 3x3 convolutions that keep the map's size."""
    layers: list[nn.Module] = []
    for dilation in dilations:
        layers += [
            nn.Conv2d(in_channels, channels, 3, padding=dilation, dilation=dilation),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        ]
        in_channels = channels
    return nn.Sequential(*layers)


class DGIQA(nn.Module):
    """rgb, depth f32 [N,3,224,224], ImageNet-normalised -> score f32 [N] in [0, 1], higher = better (section 3)."""

    def __init__(self, config: DGIQAConfig = FULL) -> None:
        super().__init__()
        self.config = config
        self.backbone = create_backbone(config.backbone, config.image_size, config.backbone_options)
        widths = tuple(self.backbone.feature_info.channels())
        halves = {"": widths}  # suffix of a half's modules -> channels of its four maps
        if config.depth_car:
            self.depth_backbone = _depth_backbone(config)
            halves["_depth"] = tuple(self.depth_backbone.feature_info.channels())
        if config.tcb:
            for level, out_channels in enumerate(config.tcb_channels, 1):
                for suffix, channels in halves.items():
                    tcb = TCB(channels[level - 1], out_channels, config.reduction, config.dropout)
                    self.add_module(f"tcb{level}{suffix}", tcb)
            widths = config.tcb_channels
        elif len(set(halves.values())) > 1:
            raise ValueError(f"without bridges both halves need maps of one width, got {halves}; leave tcb on")
        width = sum(widths)
        if config.depth_car:
            self.depth_guided_cross_attention = CrossAttention(width, config.heads, config.dropout)
            self.refinement_attention = SelfAttention(width, config.heads, config.dropout)
        if config.dilated:
            self.dilated_stack = _dilated_stack(width, config.dilated_channels, config.dilations)
            width = config.dilated_channels
        seen = sum(halves[""])
        self.fc = nn.Linear(width + 2 * seen * config.statistics, 1)
        if config.reasons:
            self.fc_reasons = fault_head(seen, config.reasons)

    def forward(self, rgb: Tensor, depth: Tensor) -> Tensor:
        return self.score(self.features(rgb, depth))

    def score(self, features: Tensor) -> Tensor:
        """`features` -> score f32 [N] in [0, 1]."""
        logit = self.fc(features).reshape(-1)
        return torch.sigmoid(logit.float())  # under autocast bfloat16 would step by 0.004 near 1

    def features(self, rgb: Tensor, depth: Tensor) -> Tensor:
        """The last layer's input, f32 [N,C]: the score is the sigmoid of a linear function of it."""
        return self.features_and_faults(rgb, depth)[0]

    def features_and_faults(self, rgb: Tensor, depth: Tensor) -> tuple[Tensor, Tensor | None]:
        """`features` f32 [N,C], and the logit of each kind of fault, f32 [N,K], or None if config.reasons is 0."""
        maps = self.maps(rgb)
        guide = self._fuse(self.maps(depth, "_depth"), "_depth") if self.config.depth_car else None
        features = self.join(self._fuse(maps, ""), guide)
        if not (self.config.reasons or self.config.statistics):
            return features, None
        about = statistics(maps)
        faults = self.fc_reasons(about).float() if self.config.reasons else None
        return torch.cat([features, about], 1) if self.config.statistics else features, faults

    def maps(self, image: Tensor, suffix: str = "") -> list[Tensor]:
        """The four maps of one backbone, RGB's ("") or the depth image's ("_depth")."""
        if suffix:
            return feature_maps(self.depth_backbone, image)
        return feature_maps(self.backbone, softened(image, self.config.soften))

    def join(self, fused: Tensor, guide: Tensor | None) -> Tensor:
        """Run the part after both branches: [N,C,7,7] of RGB and, with Depth-CAR, of depth -> f32 [N,C]."""
        if guide is not None:
            n, c, h, w = fused.shape
            tokens = self.depth_guided_cross_attention(_to_tokens(guide), _to_tokens(fused))  # [49,N,C]
            tokens = self.refinement_attention(tokens, tokens)
            fused = tokens.permute(1, 2, 0).reshape(n, c, h, w)
        if self.config.dilated:
            fused = self.dilated_stack(fused)
        return self.pool(fused)

    def pool(self, stacked: Tensor) -> Tensor:
        """Maps [N,C,7,7] after the dilated stack -> features f32 [N,C]."""
        return stacked.mean((2, 3))

    def _fuse(self, maps: list[Tensor], suffix: str) -> Tensor:
        """Pass four maps through their bridges, resize them bilinearly to the smallest, and join: [N,sum C,7,7]."""
        if self.config.tcb:
            maps = [getattr(self, f"tcb{level}{suffix}")(m) for level, m in enumerate(maps, 1)]
        size = maps[-1].shape[-2:]
        return torch.cat([F.interpolate(m, size=size, mode="bilinear", align_corners=False) for m in maps], 1)


def softened(image: Tensor, neighbour: float) -> Tensor:
    """Replace each pixel of f32 [N,3,H,W] by a weighted mean of its 3 x 3 pixels; neighbour: `DGIQAConfig.soften`."""
    if not neighbour:
        return image
    row = image.new_tensor((neighbour, 1 - 2 * neighbour, neighbour))
    return F.conv2d(image, torch.outer(row, row).expand(3, 1, 3, 3), padding=1, groups=3)


def with_statistics(network: DGIQA) -> DGIQA:
    """The same network with `statistics` in its last layer, weighted by 0."""
    made = DGIQA(replace(network.config, statistics=True))
    state = network.state_dict()
    weight = state["fc.weight"]
    state["fc.weight"] = F.pad(weight, (0, made.fc.in_features - weight.shape[1]))
    made.load_state_dict(state)
    return made.train(network.training)


def statistics(maps: Sequence[Tensor]) -> Tensor:
    """Mean and mean absolute deviation of each channel of maps [N,C,H,W]: [N,2 sum C]. Squares would overflow fp16."""
    means = [m.mean((2, 3), keepdim=True) for m in maps]
    deviations = [(m - mean).abs().mean((2, 3)) for m, mean in zip(maps, means, strict=True)]
    return torch.cat([*(mean.flatten(1) for mean in means), *deviations], 1)


def fault_head(channels: int, faults: int) -> nn.Sequential:
    """A head from the `statistics` of maps with this many channels to the logit of each kind of fault."""
    return nn.Sequential(nn.LayerNorm(2 * channels), nn.Linear(2 * channels, 40), nn.ReLU(), nn.Linear(40, faults))


def _depth_backbone(config: DGIQAConfig) -> Any:
    if config.depth_backbone is None:
        if config.depth_backbone_options:
            raise ValueError("depth_backbone_options need depth_backbone; name it, also where it is the RGB half's")
        return create_backbone(config.backbone, config.image_size, config.backbone_options)
    return create_backbone(config.depth_backbone, config.image_size, config.depth_backbone_options)


def _to_tokens(x: Tensor) -> Tensor:  # [N,C,H,W] -> [H*W,N,C]
    return x.flatten(2).permute(2, 0, 1)
