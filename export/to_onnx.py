"""Export PyTorch networks to ONNX files, which are compared with PyTorch on photographs before they are kept.

python export/to_onnx.py --quality dgiqa_koniq.pth --depth depth_anything_vits14.pth --out build
python export/to_onnx.py --quality random:0 --depth vits --out build        # untrained, for measuring speed
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dgiqa.errors import DgiqaError

if TYPE_CHECKING:
    from dgiqa.nn.onnx_export import Export


def main(arguments: list[str] | None = None) -> int:
    """Parse, export, print a table. Return 0 if all was written, 1 if not."""
    parser = argparse.ArgumentParser(description="Export the networks to ONNX.")
    parser.add_argument("--quality", metavar="FILE|random:SEED", help="DGIQA weights, or an untrained network")
    parser.add_argument("--depth", metavar="FILE|vits|vitb|vitl|small", help="depth weights, or an untrained network")
    parser.add_argument("--out", required=True, type=Path, help="directory to write quality.onnx and depth.onnx into")
    parser.add_argument("--config", choices=("full", "small"), default="full", help="sizes of an untrained DGIQA")
    parser.add_argument("--photos", type=Path, help="folder of photographs to compare on (default: scikit-image's)")
    parser.add_argument(
        "--attention",
        choices=("standard", "folded", "op"),
        help="window attention with windows folded into heads, as TensorRT fuses it (the default); as standard "
        "operators otherwise; or as one ai.dgiqa operator for hosts with a kernel",
    )
    options = parser.parse_args(arguments)
    if not (options.quality or options.depth):
        parser.error("nothing to export; give --quality, --depth or both")
    from dgiqa.nn.onnx_export import export_networks

    try:
        written = export_networks(**vars(options))
    except (DgiqaError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(written))
    return 0


def table(exports: list[Export]) -> str:
    """One line per file: nodes, size, and the share of the allowed difference from PyTorch that is used."""
    lines = [f"{'file':<14}{'nodes':>7}{'bytes':>15}  {'graph':<11}difference from PyTorch"]
    for export in exports:
        graph = "simplified" if export.simplified else "exporter's"
        used = f"{export.difference:.2e} of the {export.unit}, {export.share:.2%} of the tolerance"
        lines.append(f"{export.path.name:<14}{export.nodes:>7}{export.size_bytes:>15,}  {graph:<11}{used}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
