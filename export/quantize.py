"""Write a bundle's networks as fp16, int8 or fp8 ONNX files, which are kept only if scores stay within their budget.

python export/quantize.py --fp16 --out build/fp16
python export/quantize.py --int8 --calib photographs/ --rest fp16 --out build/int8 --bundle koniq
python export/quantize.py --fp8 --calib photographs/ --out build/fp8  # NVIDIA GPUs of compute capability 8.9 and later
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dgiqa.errors import DgiqaError


def main(arguments: list[str] | None = None) -> int:
    """Parse, quantise, print the parts left out and how far scores moved. Return 0, or 1 if nothing was written."""
    parser = argparse.ArgumentParser(description="Write a bundle's networks in a lower precision.")
    precision = parser.add_mutually_exclusive_group(required=True)
    precision.add_argument("--fp16", dest="precision", action="store_const", const="fp16")
    precision.add_argument("--int8", dest="precision", action="store_const", const="int8")
    precision.add_argument("--fp8", dest="precision", action="store_const", const="fp8")
    parser.add_argument("--bundle", default="small", help="a bundle's name or its directory")
    parser.add_argument("--calib", type=Path, nargs="+", help="folder of photographs, 500 if you have them")
    parser.add_argument("--rest", choices=("fp32", "fp16"), help="of an int8 file: fp16 for GPUs [fp32]")
    parser.add_argument("--out", required=True, type=Path, help="directory to write quality.onnx and depth.onnx into")
    options = vars(parser.parse_args(arguments))
    options["calibration"] = options.pop("calib")
    if (rest := options.pop("rest")) is not None:
        if options["precision"] != "int8":
            parser.error("--rest: of int8 files only; leave out, or give --int8")
        options["rest"] = rest
    try:
        from dgiqa.builder.quantize import quantize_bundle, sensitivity_table

        made = quantize_bundle(**options, progress=lambda line: print(line, file=sys.stderr))
    except (DgiqaError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if made.report["parts"]:
        print(sensitivity_table(made.report) + "\n")
    print(summary(made.report))
    return 0


def summary(report: Mapping[str, Any]) -> str:
    """One line per file, the share of the allowed difference that is used, and a description of the images."""
    lines = [f"{'file':<14}{'bytes':>12}{'of fp32':>9}  layers"]
    for file, facts in report["files"].items():
        layers = ", ".join(f"{count} {kind}" for kind, count in facts["layers"].items())
        lines.append(f"{file:<14}{facts['bytes']:>12,}{facts['size_ratio']:>9.1%}  {layers}")
    error, budget = report["error"], report["budget"]
    used = f"{error['max'] / budget:.0%} of the budget" if budget else "nothing is allowed"
    lines.append(f"scores of {error['images']} images move by up to {error['max']:.1e}, {used}")
    lines.append(f"measured on {report['calibration']}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
