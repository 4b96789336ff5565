"""Networks of both sizes with weights of a fixed seed: as PyTorch modules, as a bundle, and as fp16 and int8 files.

    full     the published ones: DGIQA with two Swin backbones, Depth Anything ViT-S
    small    those of the default bundle
    glintiqa GlintIQA as published, without a depth network

Training does not change how long a network takes. Untrained scores and depths hardly differ from one photograph to the
next, by less than float16 can distinguish near 0.5, or near the depth's 1. So the last layers are made steep: scores
and depths then spread as trained ones do, and an engine's errors show. GlintIQA's labels have their own scale, which is
chosen to do the same.
Exports and files are made once and kept in a folder; delete it to make them again.
"""

import hashlib
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from stamp import ROOT, write_json

from dgiqa import spec
from dgiqa.builder.quantize import quantize_bundle
from dgiqa.bundle import MANIFEST, Bundle, load_bundle
from dgiqa.meaning import Meaning
from dgiqa.store import user_cache

SIZES = ("full", "small", "glintiqa")
WORK = user_cache() / "bench" / "untrained"
EXAMPLES = ROOT / "examples"  # photographs to calibrate on
NAME = "untrained-"  # followed by the size: the bundles' names
SEED = 0
STEEPNESS = {"full": 40, "small": 200}  # times the quality network's initial last weights
DEPTH_STEEPNESS = 40
GLINTIQA_RANGE = (-0.1, 0.25)  # photographs score -0.01 to 0.09, their tiles -0.03 to 0.2
REPORT = "report.json"


def modules(size: str) -> dict[str, Any]:
    """{spec.DEPTH_FILE, spec.QUALITY_FILE -> the PyTorch network in eval mode}, the same every time."""
    import torch

    from dgiqa.nn.depth import SmallDepth
    from dgiqa.nn.depth_anything import DepthAnything
    from dgiqa.nn.glintiqa import GlintIQA
    from dgiqa.nn.network import DGIQA, FULL, SMALL
    from dgiqa.nn.onnx_export import untrained

    torch.manual_seed(SEED)
    if size == "glintiqa":
        return {spec.QUALITY_FILE: untrained(GlintIQA()).eval()}
    quality = untrained(DGIQA(FULL if size == "full" else SMALL)).eval()
    depth = untrained(DepthAnything("vits") if size == "full" else SmallDepth()).eval()
    with torch.no_grad():
        # Noise scores 0.5: far from there, where the sigmoid is flat, a steep layer would spread nothing.
        noise = torch.randn(2, 1, 3, spec.TILE, spec.TILE)
        weight, bias = quality.get_parameter("fc.weight"), quality.get_parameter("fc.bias")
        bias.copy_((bias - quality(noise[0], noise[1]).logit()) * STEEPNESS[size])
        weight.mul_(STEEPNESS[size])
        last = "depth_head.scratch.output_conv2.2.weight" if size == "full" else "head.weight"
        depth.get_parameter(last).mul_(DEPTH_STEEPNESS)
    return {spec.DEPTH_FILE: depth, spec.QUALITY_FILE: quality}


def bundle(size: str, work: Path) -> Bundle:
    """The networks as a bundle in work/<size>; if it is missing, exporting and comparing takes minutes."""
    target = work / size
    if not (target / MANIFEST).is_file():
        from dgiqa.nn.bundling import build_bundle

        networks = modules(size)
        quality: Any = networks[spec.QUALITY_FILE]
        p = load_bundle("small").preprocess if size == "small" else getattr(quality, "preprocess", spec.Preprocess())
        build_bundle(
            target,
            quality=quality,
            depth=networks.get(spec.DEPTH_FILE),
            preprocess=p,
            meaning=Meaning(range=GLINTIQA_RANGE, raw=True) if size == "glintiqa" else None,
            name=f"{NAME}{size}",
            title="untrained, for measuring",
            licence="Apache-2.0",
            source="random weights",
        )
    return load_bundle(target)


def files(source: Bundle, precision: str, work: Path, calibration: Sequence[Path] | None = None) -> dict[str, Path]:
    """A bundle's own files, or for "fp16" and "int8" those that `builder.quantize` makes from them, kept under `work`.

    calibration: images and folders; None: EXAMPLES for untrained networks, else the bundle's golden images. Layers are
    left out as in `dgiqa-rt build`: half an hour for the full size. report.json next to the files says how they were
    made. Raises ParityError if they are over their budget.
    """
    if precision not in spec.QUANTIZED:
        return {network.file: source.file(network.file) for network in source.networks}
    calibration = calibration or ([EXAMPLES] if source.name.startswith(NAME) else None)
    on = hashlib.sha256(str(calibration).encode()).hexdigest()[:8] if calibration else "golden"
    out = work / f"{source.id}-{precision}-{spec.QUANTIZER_VERSION}-{on}"
    if not (out / REPORT).is_file():
        say = partial(print, file=sys.stderr, flush=True)
        made = quantize_bundle(source, precision, out, calibration=calibration, progress=say)
        write_json(out / REPORT, made.report)
    return {network.file: out / network.file for network in source.networks}
