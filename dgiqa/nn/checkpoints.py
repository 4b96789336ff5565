"""Load the weight files of every network in this project, in eval mode."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dgiqa.errors import WeightsError
from dgiqa.nn.depth import SmallDepth, SmallDepthConfig
from dgiqa.nn.depth_anything import ENCODERS, DepthAnything, DepthAnythingConfig
from dgiqa.nn.depth_layouts import blocks_read, published_names
from dgiqa.nn.fitting import looks_like, network_of, saved_config
from dgiqa.nn.full_reference import DGIQAFR, DGIQAFRConfig
from dgiqa.nn.glintiqa import TRAINING, GlintIQA, GlintIQAConfig
from dgiqa.nn.network import DGIQA, FULL, DGIQAConfig
from dgiqa.nn.systems import SYSTEMS, System
from dgiqa.nn.weights import file_in, read_tensors, renamed


def load_dgiqa(path: str | Path, config: DGIQAConfig | None = None) -> DGIQA:
    """Load DGIQA weights, the authors' .pth or this package's safetensors, into a network in eval mode.

    config: sizes of the network; None takes those saved in the file, else the paper's.
    Stages of a Swin may have the names of any timm since 0.9 or of the original Swin; a wrapper around the weights,
    "module." prefixes and stored constants (attention masks, position indices) are accepted.
    Raises WeightsError, which names the tensors that are missing, unexpected or of another shape.
    """
    tensors, metadata = read_tensors(path)
    sizes = config or saved_config(metadata, DGIQAConfig) or FULL
    return network_of(lambda: DGIQA(sizes), tensors, path, "DGIQA")


def load_dgiqa_fr(path: str | Path) -> DGIQAFR:
    """Load DGIQA-FR weights of this package, whose file holds their sizes. Raises WeightsError."""
    tensors, metadata = read_tensors(path)
    if (sizes := saved_config(metadata, DGIQAFRConfig)) is None:
        raise WeightsError(f"{path} does not say its sizes; save it again with save_weights")
    return network_of(lambda: DGIQAFR(sizes), tensors, path, "DGIQA-FR")


def load_depth_anything(path: str | Path, version: str | None = None) -> DepthAnything:
    """Load Depth Anything V1 or V2 weights: the authors' .pth, transformers' files, or this package's safetensors.

    Sizes follow from the shapes. version: "v1" or "v2"; their files have the same names and shapes, but the networks
    read different blocks. By default it is found in or next to the file, see `depth_layouts`.
    Raises WeightsError, also if the version cannot be found.
    """
    read, metadata = read_tensors(path)
    tensors = published_names(read)
    sizes = saved_config(metadata, DepthAnythingConfig)
    if sizes is None:
        sizes = ENCODERS[_encoder_of(tensors, path)]
        sizes = replace(sizes, reads=blocks_read(file_in(path), sizes.blocks, version))
    return network_of(lambda: DepthAnything(sizes), tensors, path, "Depth Anything")


def load_glintiqa(path: str | Path, config: GlintIQAConfig | None = None) -> GlintIQA:
    """Load GlintIQA weights, its authors' checkpoints or this package's safetensors, into a network in eval mode.

    Names from their code before and after its refactoring are accepted; layers on which no score depends (the last
    blocks and the classifier of the transformer) are dropped. config: as in `load_dgiqa`. Raises WeightsError.
    """
    read, metadata = read_tensors(path)
    sizes = config or saved_config(metadata, GlintIQAConfig) or GlintIQAConfig()
    tensors = {name: value for name, value in _of_glintiqa(read).items() if not _is_unused(name, max(sizes.reads))}
    return network_of(lambda: GlintIQA(sizes), tensors, path, "GlintIQA")


def load_small_depth(path: str | Path) -> SmallDepth:
    """Load a file of `save_small_depth` as a network in eval mode. Raises WeightsError for any other file."""
    tensors, metadata = read_tensors(path)
    if metadata.get("model") != "small_depth":
        held = metadata.get("model", "no named model")
        raise WeightsError(f"{path} holds {held}, not small_depth; train one with python -m recipes.small.train_depth")
    if (sizes := saved_config(metadata, SmallDepthConfig)) is None:
        raise WeightsError(f"{path} does not say its sizes; save it again with save_small_depth")
    return network_of(lambda: SmallDepth(sizes), tensors, path, "small depth")


def load_weights(path: str | Path, depth_version: str | None = None) -> nn.Module:
    """Load the network that a file holds, in eval mode: DGIQA, DGIQA-FR, one of SYSTEMS or a depth network.

    depth_version: Depth Anything's version, see `load_depth_anything`.
    Raises WeightsError if it is none of them.
    """
    loaders: dict[str, Any] = {
        "DGIQA": load_dgiqa,
        "DGIQA-FR": load_dgiqa_fr,
        **{system.title: system.load for system in SYSTEMS.values()},
        "Depth Anything": lambda file: load_depth_anything(file, depth_version),
        "small depth": load_small_depth,
    }
    tensors, _ = read_tensors(path)
    kind = looks_like(tensors)
    if kind not in loaders:
        raise WeightsError(f"{path} looks like {kind}; wanted one of {', '.join(loaders)}")
    return loaders[kind](str(path))


_BEFORE_REFACTORING = (
    (r"transformer\.", "vgfe.backbone."),
    (r"cnn\.", "clfe.backbone."),
    (r"patch_embed(\d)\.", r"clfe.patch_embed\1."),
    (r"att_cnn\.", "local_cwsa."),
    (r"proj\.", "local_projection."),
    (r"fusion(\d)\.", r"cwsa\1."),
    (r"conv(\d)\.", r"siem\1.conv."),
    (r"out\.", "quality_head.layers."),
)


def _of_glintiqa(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names that the authors' code has had since its refactoring."""
    if not any(name.startswith("fusion1.") for name in tensors):
        return dict(tensors)
    return {renamed(name, _BEFORE_REFACTORING): value for name, value in tensors.items()}


def _is_unused(name: str, last_block: int) -> bool:
    """Whether this is a layer of the transformer on which no score depends."""
    block = re.match(r"vgfe\.backbone\.blocks\.(\d+)\.", name)
    behind = block is not None and int(block[1]) > last_block
    return behind or re.match(r"vgfe\.backbone\.(norm|head|fc_norm)\.", name) is not None


def _encoder_of(tensors: Mapping[str, Tensor], path: str | Path) -> str:
    token = tensors.get("pretrained.cls_token")
    widths = {config.width: name for name, config in ENCODERS.items()}
    if token is None:
        raise WeightsError(
            f"{path} is not Depth Anything, it looks like {looks_like(tensors)} (pretrained.cls_token is missing)"
        )
    if token.shape[-1] not in widths:
        known = ", ".join(f"{name} ({width})" for width, name in widths.items())
        raise WeightsError(f"{path} has an encoder {token.shape[-1]} wide; known are {known}")
    return widths[token.shape[-1]]


SYSTEMS["glintiqa"] = System("GlintIQA", GlintIQA, load_glintiqa, ("siem1.", "fusion1."), TRAINING)
