"""The authors' DGIQA and Depth Anything checkpoints become one bundle directory.

python export/import_weights.py --quality dgiqa_koniq.pth --depth depth_anything_vits14.pth --name koniq --out bundles
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dgiqa.errors import DgiqaError


def main(arguments: list[str] | None = None) -> int:
    """Parse, build, print; 0 if the bundle was written, 1 if not."""
    parser = argparse.ArgumentParser(description="Turn the authors' checkpoints into a bundle.")
    parser.add_argument("--quality", required=True, type=Path, help="DGIQA or GlintIQA weights (.pth or .safetensors)")
    parser.add_argument("--depth", type=Path, help="Depth Anything weights; GlintIQA has none")
    parser.add_argument("--scale", type=float, nargs=2, metavar=("WORST", "BEST"), help="GlintIQA: ends of its labels")
    parser.add_argument(
        "--depth-version", choices=("v1", "v2"), help="which they are, where neither file nor names tell"
    )
    parser.add_argument("--name", required=True, help="the bundle's name; it becomes the directory OUT/NAME")
    parser.add_argument("--out", required=True, type=Path, help="directory that holds bundles")
    parser.add_argument("--title", help="one line that says what the bundle is")
    parser.add_argument("--licence", help="licence of the DGIQA weights")
    parser.add_argument("--photos", type=Path, help="folder of photographs to compare on (default: scikit-image's)")
    parser.add_argument("--overwrite", action="store_true", help="replace a bundle of that name")
    options = parser.parse_args(arguments)
    from dgiqa.nn.bundling import import_weights

    try:
        bundle = import_weights(
            options.quality,
            options.depth,
            options.out / options.name,
            name=options.name,
            title=options.title,
            licence=options.licence,
            photos=options.photos,
            depth_version=options.depth_version,
            scale=options.scale and tuple(options.scale),
            overwrite=options.overwrite,
        )
    except (DgiqaError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    parity = bundle.manifest["parity"]["score"]
    print(f"{bundle.path}: {bundle.id}")
    print(f"largest difference from PyTorch: {parity['max_difference']:.2e} of a score ({parity['images']} images)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
