"""The default model's two networks become the bundle that ships in the wheel.

python export/small_bundle.py --quality weights.safetensors --depth small_depth.safetensors --out dgiqa/bundles/small
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from dgiqa.errors import DgiqaError

sys.path.append(str(Path(__file__).parent.parent))  # for recipes/

GOLDEN_SEEDS = (11, 12, 13, 14)  # scenes rendered without any photograph, so that they are ours to pass on
GOLDEN_DISTORTIONS = (("gaussian_blur", 3), ("jpeg", 4), ("white_noise", 3))  # each of the first scene
GOLDEN_HEIGHT, GOLDEN_WIDTH = 240, 320


def golden_images() -> list[Any]:
    """Rendered scenes and degraded copies of the first, uint8 [240,320,3]."""
    from recipes.small.distortions import distort
    from recipes.small.scenes import render

    scenes = [render(seed, (), GOLDEN_HEIGHT, GOLDEN_WIDTH)[0] for seed in GOLDEN_SEEDS]
    return [*scenes, *(distort(scenes[0], kind, level, 0) for kind, level in GOLDEN_DISTORTIONS)]


def main(arguments: list[str] | None = None) -> int:
    """Parse, build, print; 0 if the bundle was written, 1 if not."""
    parser = argparse.ArgumentParser(description="Build the bundle of the default model.")
    parser.add_argument("--quality", required=True, type=Path, help="weights of recipes.small.train_small")
    parser.add_argument("--depth", required=True, type=Path, help="weights of recipes.small.train_depth")
    parser.add_argument("--out", required=True, type=Path, help="the bundle's directory; its name is the bundle's")
    parser.add_argument("--card", type=Path, help="JSON object of figures for the manifest's model card")
    parser.add_argument("--overwrite", action="store_true", help="replace a bundle that is there")
    options = parser.parse_args(arguments)
    from dgiqa.nn.bundling import build_bundle
    from dgiqa.nn.checkpoints import load_dgiqa
    from dgiqa.nn.depth import SMALL_PREPROCESS, load_small_depth
    from dgiqa.nn.network import SMALL

    try:
        bundle = build_bundle(
            options.out,
            quality=load_dgiqa(options.quality, SMALL),
            depth=load_small_depth(str(options.depth)),
            preprocess=SMALL_PREPROCESS,
            name=options.out.name,
            title="DGIQA's architecture with small numbers, trained on synthetic distortions; not the paper's weights",
            licence="Apache-2.0",
            source="trained by this project; see docs/model-card.md",
            golden=golden_images(),
            model_card=json.loads(options.card.read_text()) if options.card else None,
            overwrite=options.overwrite,
        )
    except DgiqaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    size = sum(entry["bytes"] for entry in bundle.manifest["files"].values())
    print(f"{bundle.path}: {bundle.id}, {size / 1e6:.1f} MB, parity {bundle.manifest['parity']['score']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
