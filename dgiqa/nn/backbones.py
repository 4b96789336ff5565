"""A timm model name becomes four feature maps, [N,C,H,W], at strides 4, 8, 16 and 32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

FULL_BACKBONE = "swin_tiny_patch4_window7_224"
STRIDES = (4, 8, 16, 32)

_declared: list[torch.library.Library] = []  # a Library undoes its declarations when it is collected


def import_timm() -> Any:
    """Import timm, also where torchvision (which timm imports) is broken beside a CPU build of torch.

    torchvision's published wheel is built for CUDA; beside a CPU torch its native library does not load and the first
    import dies on the missing `torchvision::nms`. Nothing here calls these ops, so a bare declaration is enough.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)
    import timm

    return timm


def create_backbone(name: str, image_size: int = 224, options: Mapping[str, Any] | None = None) -> Any:
    """A timm `features_only` model, untrained, that returns its maps at strides 4, 8, 16 and 32.

    name: any timm model that has maps at those strides.
    image_size: input side in pixels; only models that fix it (Swin) are told.
    options: further keyword arguments of `timm.create_model`.
    Raises ValueError when the model lacks one of the four maps.
    """
    timm = import_timm()
    arguments: dict[str, Any] = {"pretrained": False, "features_only": True, **(options or {})}
    if "swin" in name:
        arguments["img_size"] = image_size
    model = timm.create_model(name, **arguments)
    reductions = model.feature_info.reduction()
    if not set(STRIDES) <= set(reductions):
        raise ValueError(f"{name} has feature maps at strides {reductions}; DGIQA needs {STRIDES}")
    if len(reductions) == len(STRIDES):
        return model
    return timm.create_model(name, out_indices=[reductions.index(stride) for stride in STRIDES], **arguments)


def feature_maps(backbone: Any, image: Tensor) -> list[Tensor]:
    """image [N,3,H,W] -> four maps [N,C,H/s,W/s], channels first whatever layout the model uses inside."""
    maps = backbone(image)
    channels = backbone.feature_info.channels()
    return [m if m.shape[1] == c else m.permute(0, 3, 1, 2) for m, c in zip(maps, channels, strict=True)]
