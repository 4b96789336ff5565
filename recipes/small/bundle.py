"""The two trained networks become the bundle that ships in the wheel, proved against PyTorch file by file.

    python -m recipes.small.bundle --quality weights.safetensors --depth small_depth.safetensors \\
        --out dgiqa/bundles/small

`--meaning` names a JSON file of `recipes.small.meaning`: thresholds of reasons, presets and the interval of the score.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dgiqa.errors import DgiqaError
from dgiqa.meaning import Meaning, Reason
from recipes.small.reasons import REASONS

GOLDEN_SEEDS = (11, 12, 13, 14)  # scenes rendered without any photograph, so that we may distribute them
GOLDEN_DISTORTIONS = (("gaussian_blur", 3), ("jpeg", 4), ("white_noise", 3))  # each applied to the first scene
GOLDEN_HEIGHT, GOLDEN_WIDTH = 240, 320
WITH_BIQ = (
    "Apache-2.0 for what this project made. The weights were fitted to BIQ2021's opinions, which its authors offer for "
    "training and benchmarking without a licence text, and start from EfficientNet-Lite0 (Apache-2.0)"
)


def golden_images() -> list[Any]:
    """Rendered scenes and degraded copies of the first, uint8 [240,320,3]."""
    from recipes.small.distortions import distort
    from recipes.small.scenes import render

    scenes = [render(seed, (), GOLDEN_HEIGHT, GOLDEN_WIDTH)[0] for seed in GOLDEN_SEEDS]
    return [*scenes, *(distort(scenes[0], kind, level, 0) for kind, level in GOLDEN_DISTORTIONS)]


def meaning_of(path: Path | None, reasons: int) -> Meaning:
    """The Meaning in the file that `recipes.small.meaning` wrote; without a file, every threshold is 0.5.

    reasons: how many of `reasons.REASONS` the network gives.
    """
    found = json.loads(path.read_text()) if path else {}
    thresholds = found.get("thresholds", {})
    return Meaning(
        reasons=tuple(Reason(name, thresholds.get(name, 0.5)) for name in REASONS[:reasons]),
        presets=found.get("presets", {}),
        kind="mos",
        interval=found.get("interval"),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, build, print; 0 if the bundle was written, 1 if not."""
    parser = argparse.ArgumentParser(
        "python -m recipes.small.bundle", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quality", required=True, type=Path, help="weights of recipes.small.learn")
    parser.add_argument("--depth", required=True, type=Path, help="weights of the depth network")
    parser.add_argument("--out", required=True, type=Path, help="the bundle's directory, named like the bundle")
    parser.add_argument("--meaning", type=Path, help="JSON of recipes.small.meaning")
    parser.add_argument("--card", type=Path, help="JSON object of figures for the manifest's model card")
    parser.add_argument("--licence", default=WITH_BIQ, help="default: %(default)s")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    o = parser.parse_args(arguments)
    from dgiqa.nn.bundling import build_bundle
    from dgiqa.nn.checkpoints import load_dgiqa, load_small_depth
    from dgiqa.nn.depth import SMALL_PREPROCESS

    try:
        quality = load_dgiqa(o.quality)
        bundle = build_bundle(
            o.out,
            quality=quality,
            depth=load_small_depth(str(o.depth)),
            preprocess=SMALL_PREPROCESS,
            name=o.out.name,
            title="A small version of DGIQA's architecture, trained on people's opinions; not the paper's weights",
            licence=o.licence,
            source="trained by this project; see docs/model-card.md",
            meaning=meaning_of(o.meaning, quality.config.reasons),
            golden=golden_images(),
            model_card=json.loads(o.card.read_text()) if o.card else None,
            overwrite=o.overwrite,
        )
    except DgiqaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    size = sum(entry["bytes"] for entry in bundle.manifest["files"].values())
    print(f"{bundle.path}: {bundle.id}, {size / 1e6:.1f} MB, parity {bundle.manifest['parity']['score']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
