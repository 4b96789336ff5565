"""Rename Depth Anything's weights in any layout to the published names, and find the blocks that its head reads.

The authors' names (`pretrained.*`, `depth_head.*`) stay. Those of Hugging Face's transformers (`backbone.*`, `neck.*`,
`head.*`) are renamed; its three attention projections become one. V1 and V2 have the same names and shapes, so only
other data in or next to a file can show its version.
"""

import contextlib
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from dgiqa.errors import WeightsError
from dgiqa.nn.depth_anything import V2_READS
from dgiqa.nn.weights import renamed

VERSIONS = ("v1", "v2")
TRANSFORMERS = "neck.fusion_stage."  # a prefix that only transformers' names have
_STAGE, _REFINE = r"neck\.fusion_stage\.layers\.", "depth_head.scratch.refinenet"
_RENAMES = (
    *((rf"neck\.convs\.{n}\.", f"depth_head.scratch.layer{n + 1}_rn.") for n in range(4)),
    *((rf"{_STAGE}{n}\.projection\.", f"{_REFINE}{4 - n}.out_conv.") for n in range(4)),  # the deepest is the first
    *(
        (rf"{_STAGE}{n}\.residual_layer([12])\.convolution([12])", rf"{_REFINE}{4 - n}.resConfUnit\1.conv\2")
        for n in range(4)
    ),
    (r"backbone\.embeddings\.patch_embeddings\.projection\.", r"pretrained.patch_embed.proj."),
    (r"backbone\.embeddings\.position_embeddings", r"pretrained.pos_embed"),
    (r"backbone\.embeddings\.", r"pretrained."),
    (r"backbone\.layernorm\.", r"pretrained.norm."),
    (r"backbone\.encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"pretrained.blocks.\1.attn.proj."),
    (r"backbone\.encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1", r"pretrained.blocks.\1.ls\2.gamma"),
    (r"backbone\.encoder\.layer\.(\d+)\.", r"pretrained.blocks.\1."),
    (r"neck\.reassemble_stage\.layers\.(\d)\.projection\.", r"depth_head.projects.\1."),
    (r"neck\.reassemble_stage\.layers\.(\d)\.resize\.", r"depth_head.resize_layers.\1."),
    (r"head\.conv1\.", r"depth_head.scratch.output_conv1."),
    (r"head\.conv2\.", r"depth_head.scratch.output_conv2.0."),
    (r"head\.conv3\.", r"depth_head.scratch.output_conv2.2."),
)
_QKV = re.compile(r"backbone\.encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)")


def published_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under the authors' names, whichever of the two layouts they come in."""
    if not any(name.startswith(TRANSFORMERS) for name in tensors):
        return dict(tensors)
    named = {renamed(name, _RENAMES): value for name, value in tensors.items() if not _QKV.fullmatch(name)}
    for block, _, kind in {match.groups() for name in tensors if (match := _QKV.fullmatch(name))}:
        parts = [
            f"backbone.encoder.layer.{block}.attention.attention.{part}.{kind}" for part in ("query", "key", "value")
        ]
        if all(part in tensors for part in parts):  # else the name stays missing, and an error names it later
            named[f"pretrained.blocks.{block}.attn.qkv.{kind}"] = torch.cat([tensors[part] for part in parts])
    return named


def blocks_read(path: Path, blocks: int, version: str | None) -> tuple[int, ...]:
    """Numbers of the blocks that the head of this file's network reads; empty for the last four, as in V1.

    version: "v1" or "v2", if the user gives it. Otherwise it follows from the config.json that transformers saves next
    to the file, or else from the names of the file and of the archive in it, if they agree.
    Raises WeightsError if it follows from nothing, or two names contradict each other; ValueError for another version.
    """
    if version not in (None, *VERSIONS):
        raise ValueError(f"version is {version!r}, wanted one of {', '.join(VERSIONS)}")
    if version is None and (read := _configured(path, blocks)):
        return read
    told = {version} if version else {_version_in(path.name), _version_in(_archive_name(path))} - {None}
    if len(told) != 1:
        found = "calls itself both V1 and V2" if told else "does not say whether it is V1 or V2"
        raise WeightsError(
            f"{path} {found} of Depth Anything, which are different networks with the same names and shapes; "
            "say which it is: --depth-version v1 or --depth-version v2"
        )
    if told == {"v1"}:
        return ()
    if blocks not in V2_READS:
        raise WeightsError(f"{path} has {blocks} blocks; Depth Anything V2 is known with {sorted(V2_READS)}")
    return V2_READS[blocks]


def _configured(path: Path, blocks: int) -> tuple[int, ...]:
    """The blocks named by a config.json next to the file. Transformers counts from 1, as 0 is the embedding."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        encoder = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))["backbone_config"]
        read = tuple(index - 1 for index in encoder["out_indices"])
        if len(read) == 4 and all(type(index) is int and 0 <= index < blocks for index in read):
            return read
    return ()


def _version_in(name: str) -> str | None:
    """The version in a name: V2's contain "v2", "da2" or "anything2", V1's "v1" or the "14" of the published files."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    if re.search(r"v2|da2|anything2", plain):
        return "v2"
    return "v1" if re.search(r"anythingv1|dav1|depthanythingvit[sbl]14", plain) else None


def _archive_name(path: Path) -> str:
    """The file's name when torch.save wrote it, which later renaming does not change; empty if there is none."""
    with contextlib.suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        return archive.namelist()[0].partition("/")[0]
    return ""
