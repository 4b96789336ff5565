"""GlintIQA in plain PyTorch: scores tiles on the scale of the labels, without depth.

Source: Wang et al., "No-Reference Image Quality Assessment with Global-Local Progressive Integration and
Semantic-Aligned Quality Transfer", arXiv 2408.03885, and its authors' code, which is followed where the two differ.
Module names follow their checkpoints, so that those load.

    rgb ─┬─► ViT-S/16, blocks 7 to 10 ─────────────► four global maps ─────────────────┐
         └─► ResNet-50, stages 1 to 3 ─► patches ─► channel attention ─► local map ─► four times: join, channel
                                                                        attention, 3x3 convolution ─► mean ─► score
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgiqa.nn.backbones import import_timm, transformer_block
from dgiqa.spec import QUALITY_RGB, Preprocess

EXPANSION = 4  # of a bottleneck: channels out per channel inside
# Training settings of the authors' code. Samples are unresized pictures; labels are on their own scale.
TRAINING: dict[str, Any] = {
    **{"epochs": 300, "batch": 32, "lr": 1e-5, "lr_min": 0.0, "t_max_steps": 30, "lr_rises": True},
    **{"optimizer": "adam", "weight_decay": 1e-5, "grad_clip": 0.0, "loss": "l1", "consistency": 0.0},
}


@dataclass(frozen=True)
class GlintIQAConfig:
    """Sizes of the network. The defaults are its authors' 41.2 M parameters on which a score depends.

    width, heads, patch: of the vision transformer. reads: its four blocks whose tokens are read, counted from 0; those
    after the last are left out. frozen_blocks: the number that does not learn, with the patches' embedding.
    stem: channels after the local half's first layer. stages: bottlenecks in its three stages.
    """

    width: int = 384
    heads: int = 6
    patch: int = 16
    reads: tuple[int, int, int, int] = (6, 7, 8, 9)
    frozen_blocks: int = 5
    stem: int = 64
    stages: tuple[int, int, int] = (3, 4, 6)
    dropout: float = 0.5
    image_size: int = 224

    @property
    def grid(self) -> int:
        """Tokens along a side."""
        return self.image_size // self.patch


class GlintIQA(nn.Module):
    """rgb f32 [N,3,224,224], in -1..1 -> score f32 [N] on the labels' own scale, where either end may be the better."""

    inputs: ClassVar[tuple[str, ...]] = (QUALITY_RGB,)
    # Tiles of the unresized picture. The authors draw 25 at random; a grid sees every pixel.
    preprocess: ClassVar[Preprocess] = Preprocess(1, 0, 1, short_side=0, tile=224, normalisation="half")

    def __init__(self, config: GlintIQAConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or GlintIQAConfig()
        tokens, width = config.grid**2, config.width
        self.vgfe = nn.ModuleDict({"backbone": VisionTransformer(config)})
        patches = {  # as many of each map as the transformer has tokens
            f"patch_embed{level + 1}": Patches(EXPANSION * config.stem << level, width, config.patch // 4 >> level)
            for level in range(3)
        }
        self.clfe = nn.ModuleDict({"backbone": ResNet(config.stem, config.stages), **patches})
        self.local_cwsa = ChannelAttention(tokens, config.dropout)
        self.local_projection = nn.Linear(3 * width, width)
        for step in range(1, 5):
            self.add_module(f"cwsa{step}", ChannelAttention(tokens, config.dropout))
            self.add_module(f"siem{step}", SpatialInteraction(width, config.grid))
        layers = (nn.Linear(width, width), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(width, 1))
        self.quality_head = nn.Sequential(OrderedDict(layers=nn.Sequential(*layers), flat=nn.Flatten(0)))

    def forward(self, rgb: Tensor) -> Tensor:
        return self.score(self.features(rgb))

    def features(self, rgb: Tensor) -> Tensor:
        """The head's input, the mean over the tokens: f32 [N,C]."""
        maps = enumerate(self.clfe["backbone"](rgb), 1)
        local = torch.cat([self.clfe[f"patch_embed{level}"](m) for level, m in maps], 2)  # [N,T,3C]
        fused = self.local_projection(self.local_cwsa(local.mT).mT)
        for step, tokens in enumerate(self.vgfe["backbone"](rgb), 1):
            joined = torch.cat([tokens, fused], 2).mT  # [N,2C,T]
            fused = getattr(self, f"siem{step}")(getattr(self, f"cwsa{step}")(joined))
        return self.pool(fused)

    def pool(self, tokens: Tensor) -> Tensor:
        """Tokens [N,T,C] after the last step -> features f32 [N,C]."""
        return tokens.mean(1)

    def score(self, features: Tensor) -> Tensor:
        """`features` -> score f32 [N]."""
        return self.quality_head(features)

    def freeze(self) -> "GlintIQA":
        """Freeze the layers that its authors do not train, but not batch normalisation's statistics. Returns itself."""
        transformer: Any = self.vgfe["backbone"]
        local: Any = self.clfe["backbone"]
        still = [transformer.patch_embed, *transformer.blocks[: self.config.frozen_blocks]]
        for module in (*still, local.conv1, local.bn1, local.layer1, local.layer2):
            module.requires_grad_(False)
        return self


class VisionTransformer(nn.Module):
    """ViT with a class token, up to the last block that is read; outputs leave the class token out."""

    def __init__(self, config: GlintIQAConfig) -> None:
        super().__init__()
        self.reads = config.reads
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.grid**2, config.width))
        self.patch_embed = Patches(3, config.width, config.patch)
        self.blocks = nn.ModuleList(transformer_block(config.width, config.heads) for _ in range(max(config.reads) + 1))
        for parameter in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, rgb: Tensor) -> list[Tensor]:
        x = self.patch_embed(rgb)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1) + self.pos_embed
        read = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in self.reads:
                read.append(x[:, 1:])
        return read


class Patches(nn.Module):
    """Turn a map into one token per patch: [N,C,H,W] -> [N,(H/k)(W/k),D]."""

    def __init__(self, channels: int, width: int, side: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, side, side)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).mT


class ResNet(nn.Module):
    """ResNet with bottlenecks up to its third stage: maps at strides 4, 8 and 16."""

    def __init__(self, stem: int, stages: tuple[int, int, int]) -> None:
        super().__init__()
        import_timm()
        from timm.models.resnet import Bottleneck

        self.conv1 = nn.Conv2d(3, stem, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        channels = stem
        for level, count in enumerate(stages):
            inside, stride = stem << level, 2 if level else 1
            out = EXPANSION * inside
            shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
            blocks = [Bottleneck(channels, inside, stride, shortcut)]
            blocks += [Bottleneck(out, inside) for _ in range(count - 1)]
            self.add_module(f"layer{level + 1}", nn.Sequential(*blocks))
            channels = out

    def forward(self, rgb: Tensor) -> list[Tensor]:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(rgb))), 3, 2, 1)
        maps = []
        for level in (1, 2, 3):
            x = getattr(self, f"layer{level}")(x)
            maps.append(x)
        return maps


class ChannelAttention(nn.Module):
    """CWSA: attention between channels, each a vector over the tokens: [N,C,T] -> [N,C,T].

    Queries and keys have length 1. The result is transposed and then reshaped as if it were not, as in MANIQA; trained
    weights expect that.
    """

    def __init__(self, tokens: int, dropout: float) -> None:
        super().__init__()
        self.c_q, self.c_k, self.c_v = (nn.Linear(tokens, tokens) for _ in range(3))
        self.norm = nn.LayerNorm(tokens)
        self.drop = nn.Dropout(dropout)
        self.scale = tokens**-0.5

    def forward(self, x: Tensor) -> Tensor:
        q, k = F.normalize(self.c_q(x), dim=-1), F.normalize(self.c_k(x), dim=-1)
        attended = (q @ k.mT * self.scale).softmax(-1) @ self.c_v(x)
        return x + self.norm(self.drop(attended.mT.reshape(x.shape)))


class SpatialInteraction(nn.Module):
    """SIEM: a 3x3 convolution over the tokens' grid halves the channels: [N,2C,T] -> [N,T,C]."""

    def __init__(self, width: int, grid: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2 * width, width, 3, padding=1, bias=False)
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.unflatten(2, (self.grid, self.grid))).flatten(2).mT
