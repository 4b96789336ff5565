"""Draw pictures with their scores, verdicts and reasons: `python docs/example_picture.py docs/examples.png`."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot
from PIL import Image

from dgiqa import Failure, Score, Scorer
from dgiqa.bundle import load_bundle
from dgiqa.meaning import words

COLUMNS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent.parent / "examples")
    parser.add_argument("--bundle", default="small")
    parser.add_argument("--preset", default="upload", help="which decides the verdict, where the bundle has it")
    options = parser.parse_args()
    matplotlib.use("Agg")
    paths = sorted(options.folder.glob("*.jpg"), key=lambda path: path.stem)
    gate = load_bundle(options.bundle).meaning.presets.get(options.preset)
    with Scorer(options.bundle, gate=gate) as scorer:
        rows = list(scorer.score_many(paths))
    figure, axes = pyplot.subplots(-(-len(paths) // COLUMNS), COLUMNS, figsize=(14, 6.4), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, path, row in zip(axes.flat, paths, rows, strict=False):
        if isinstance(row, Failure):
            raise SystemExit(f"{path}: {row.message}")
        axis.imshow(Image.open(path))
        colour = matplotlib.colormaps["brg"](0.5 + row.value / 2)
        axis.set_title(f"{row.value:.2f}", fontsize=18, fontweight="bold", color=colour)
        below(axis, path.stem, 5, "black")
        below(axis, told(row), 19, "dimgrey")
    figure.subplots_adjust(left=0.01, right=0.99, top=0.93, bottom=0.1, hspace=0.45, wspace=0.05)
    figure.savefig(options.out, dpi=80)


def below(axis: Any, text: str, points: int, color: str) -> None:
    """Draw a line of text this many points below a picture."""
    place = {"xycoords": "axes fraction", "xytext": (0, -points), "textcoords": "offset points"}
    axis.annotate(text, (0.5, 0), ha="center", va="top", fontsize=10, color=color, **place)


def told(row: Score) -> str:
    """Verdict and up to three reasons."""
    return ": ".join(part for part in (row.verdict, textwrap.fill(words(row.faults[:3]), 34)) if part)


if __name__ == "__main__":
    main()
