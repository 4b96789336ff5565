"""Turn two PyTorch networks into a bundle: export them, and compare with PyTorch file by file and score by score.

quality, depth ─► ONNX files ─► draft bundle ─► Scorer ──┐
golden images ──────────────► PyTorch reference ─────────┴─► compare ─► bundle with parity numbers
"""

import copy
import importlib.metadata
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch import nn

from dgiqa import spec
from dgiqa.bundle import Bundle, write_bundle
from dgiqa.dtypes import UInt8
from dgiqa.errors import BundleError, WeightsError
from dgiqa.meaning import WORDS, Meaning, Reason
from dgiqa.nn.checkpoints import load_weights
from dgiqa.nn.deploy import Attention
from dgiqa.nn.depth import SmallDepth
from dgiqa.nn.full_reference import DGIQAFR
from dgiqa.nn.network import DGIQA
from dgiqa.nn.onnx_export import PHOTOGRAPHS, Export, ExportError, export_depth, export_quality, photographs
from dgiqa.nn.reference import TorchScorer, decode
from dgiqa.nn.systems import system_of, takes
from dgiqa.parity import beside, golden_files, verify_bundle
from dgiqa.scorer import Scorer
from dgiqa.spec import Preprocess

GOLDEN_TILING = "grid"
GOLDEN_SIDE = 320  # longest side of a golden image made here, pixels: the PNG stays near 100 kB
UNSTATED = "not stated by the authors; ask them before you pass these weights on"
PACKAGES = ("torch", "timm", "onnx", "onnxsim", "onnxruntime")  # a manifest records their versions


def build_bundle(
    target: str | Path,
    *,
    quality: nn.Module,
    depth: nn.Module | None,
    preprocess: Preprocess,
    name: str,
    title: str,
    licence: str,
    source: str,
    origins: Mapping[str, Mapping[str, str]] | None = None,
    meaning: Meaning | None = None,
    golden: Sequence[UInt8] | None = None,
    photos: Sequence[UInt8] | None = None,
    model_card: Mapping[str, Any] | None = None,
    created: str | None = None,
    attention: Attention | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Export networks and write them as a bundle whose golden scores are PyTorch's.

    quality, depth: networks as in `export_quality` and `export_depth`; depth is None if the quality network takes only
    the image. golden: uint8 [H,W,3] RGB images, stored in the bundle with their scores (grid tiles). photos: images to
    compare the exports on. Both are scikit-image's unless given. licence, source, origins, meaning, created, overwrite:
    as in `dgiqa.bundle.write_bundle`. attention: "op" keeps window attention as one operator, which a TensorRT plugin
    can take; everywhere else its function runs.
    Raises ValueError unless meaning names as many reasons as the quality network has; BundleError if `target` exists
    and is not to be overwritten; ExportError if a file or a whole score differs from PyTorch. Then `target` is left as
    it was.
    """
    if Path(target).exists() and not overwrite:  # write_bundle would raise this, too, but minutes later
        raise BundleError(f"{target} exists; choose another place or ask to overwrite it")
    config: Any = getattr(quality, "config", None)
    named, columns = len(meaning.reasons) if meaning else 0, getattr(config, "reasons", 0)
    if named != columns:
        raise ValueError(f"the quality network has {columns} reasons, and {named} are named; name each of them")
    if (depth is None) == (spec.QUALITY_DEPTH in takes(quality)):
        what = "takes no depth image" if depth is not None else "takes a depth image, and there is no depth network"
        raise ValueError(f"the quality network {what}; give both or neither")
    quality = copy.deepcopy(quality).cpu().float().eval()
    depth = None if depth is None else copy.deepcopy(depth).cpu().float().eval()
    pictures = photos or photographs()

    reference = TorchScorer(depth, quality, preprocess, (meaning or Meaning()).mapped)

    def truth(data: bytes) -> Any:
        return reference.score(decode(data), GOLDEN_TILING)

    def near(data: bytes) -> float | None:
        return reference.near(*beside(data), GOLDEN_TILING) if isinstance(quality, DGIQAFR) else None

    with tempfile.TemporaryDirectory() as scratch:
        exports = {}
        if depth is not None:
            file = Path(scratch, spec.DEPTH_FILE)
            exports[spec.DEPTH_FILE] = export_depth(depth, file, preprocess=preprocess, photos=pictures)
        file = Path(scratch, spec.QUALITY_FILE)
        exports[spec.QUALITY_FILE] = export_quality(
            quality, file, tile=preprocess.tile, photos=pictures, attention=attention
        )
        features = _features(exports[spec.QUALITY_FILE].path)
        golden_pngs = [_png(image) for image in golden or [_small(picture, preprocess) for picture in pictures[:4]]]
        files = {
            **{file: export.path for file, export in exports.items()},
            **golden_files(golden_pngs, truth, near=near),
        }
        arguments: dict[str, Any] = {
            "name": name,
            "title": title,
            "files": files,
            "licence": licence,
            "source": source,
            "origins": {**({} if golden or photos else _golden_origins()), **(origins or {})},
            "preprocess": preprocess,
            "meaning": meaning,
            "features": features,
            "full_reference": quality.head(features) if isinstance(quality, DGIQAFR) else None,
            "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
            "model_card": model_card,
            "created": created,
        }
        draft = write_bundle(Path(scratch, "draft"), **arguments)
        parity = {**{file: _parity(export) for file, export in exports.items()}, "score": _score_parity(draft)}
        return write_bundle(target, **arguments, parity=parity, overwrite=overwrite)


def import_weights(
    quality: str | Path,
    depth: str | Path | None,
    target: str | Path,
    *,
    name: str,
    title: str | None = None,
    licence: str | None = None,
    photos: str | Path | None = None,
    attention: Attention | None = None,
    depth_version: str | None = None,
    scale: tuple[float, float] | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Turn checkpoints into a bundle directory: the authors' or your own quality weights, and a depth network.

    quality: DGIQA, or GlintIQA, which takes no depth network and needs a scale.
    depth: Depth Anything, prepared as the authors do, or this project's small depth network, prepared as `small` is.
    depth_version: "v1" or "v2", if Depth Anything's file does not name it, see `checkpoints.load_depth_anything`.
    licence: of the quality weights; DGIQA's authors state none. photos: a folder of photographs to compare on and to
    take the golden images from, instead of scikit-image's. attention: as in `build_bundle`. scale: (worst, best) label
    of GlintIQA's training data; these become 0 and 1.
    Raises WeightsError if a file does not hold the right network, ExportError if the exported networks differ from
    PyTorch, ValueError for arguments that do not belong to the network.
    """
    quality_net = load_weights(quality)
    common: dict[str, Any] = {"name": name, "photos": None if photos is None else photographs(photos)}
    common |= {"attention": attention, "overwrite": overwrite}
    if system := system_of(quality_net):
        if depth is not None or scale is None:
            what = f"{quality} holds {system.title}"
            raise ValueError(f"{what}: give no depth network, and its labels' scale, such as 1:5")
        alone: Any = quality_net
        return build_bundle(
            target,
            quality=alone,
            depth=None,
            preprocess=replace(alone.preprocess, tile=alone.config.image_size),
            meaning=Meaning(range=scale, raw=True),
            title=title or f"{system.title} ({Path(quality).name})",
            licence=licence or UNSTATED,
            source=f"{system.title}, {Path(quality).name}",
            **common,
        )
    if not isinstance(quality_net, DGIQA):
        raise WeightsError(
            f"{quality} is not a quality network, it looks like a depth network; wanted DGIQA or GlintIQA"
        )
    if depth is None or scale is not None:
        raise ValueError(f"{quality} holds DGIQA: give a depth network, and no scale, as its scores are in 0..1")
    depth_net = load_weights(depth, depth_version)
    if isinstance(depth_net, DGIQA) or system_of(depth_net):
        held = type(depth_net).__name__
        raise WeightsError(f"{depth} holds {held}, wanted a depth network: Depth Anything or the small one")
    small = isinstance(depth_net, SmallDepth)
    reads = getattr(depth_net.config, "reads", ())
    kind = "small depth network" if small else f"Depth Anything {'V2' if reads else 'V1'}"
    depth_licence = "Apache-2.0" if small else "Apache-2.0, as its repository states"
    depth_origin = {"licence": depth_licence, "source": f"{kind}, {Path(depth).name}"}
    reasons = tuple(Reason(name) for name in list(WORDS)[: quality_net.config.reasons])
    return build_bundle(
        target,
        quality=quality_net,
        depth=depth_net,
        preprocess=getattr(depth_net, "preprocess", Preprocess()),
        meaning=Meaning(reasons=reasons),
        title=title or f"DGIQA ({Path(quality).name}) with {kind} ({Path(depth).name})",
        licence=licence or UNSTATED,
        source=f"DGIQA, {Path(quality).name}",
        origins={spec.DEPTH_FILE: depth_origin},
        **common,
    )


def _score_parity(draft: Bundle) -> dict[str, Any]:
    """Score the golden images with the runtime itself. Return how far its scores are from PyTorch's."""
    with Scorer(draft) as scorer:
        report = verify_bundle(draft, scorer)
    if not report.passed:
        raise ExportError(
            f"scores of whole images differ from PyTorch by {report.max_difference:.3g}, "
            f"allowed {report.tolerance:g}; nothing was written"
        )
    return {
        "unit": "score",
        "max_difference": report.max_difference,
        "tolerance": report.tolerance,
        "images": len(report.rows),
        "backend": report.backend,
    }


def _parity(export: Export) -> dict[str, Any]:
    """The manifest's record of one exported file."""
    return {
        "unit": export.unit,
        "max_difference": export.difference,
        "tolerance": export.tolerance,
        "cases": export.differences,
        "nodes": export.nodes,
        "simplified": export.simplified,
    }


def _golden_origins() -> dict[str, dict[str, str]]:
    """Licence and source of the golden images made from scikit-image's photographs."""
    return {
        f"golden/{number:02}.png": {"licence": licence, "source": f"scikit-image: {name}, reduced"}
        for number, (name, licence) in enumerate(PHOTOGRAPHS.items(), 1)
    }


def _features(path: Path) -> int:
    """The number of features that the exported network gives for each tile; 0 for none."""
    import onnx

    outputs = {o.name: o for o in onnx.load(path, load_external_data=False).graph.output}
    found = outputs.get(spec.QUALITY_FEATURES)
    return int(found.type.tensor_type.shape.dim[1].dim_value) if found else 0


def _small(image: UInt8, p: Preprocess) -> UInt8:
    """Shrink so that the longer side is at most GOLDEN_SIDE or, if images are not resized, the shorter side a tile."""
    scale = GOLDEN_SIDE / max(image.shape[:2])
    if not p.short_side:
        scale = max(scale, p.tile / min(image.shape[:2]))
    scale = min(1, scale)
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def _png(image: UInt8) -> bytes:
    done, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    assert done
    return data.tobytes()
