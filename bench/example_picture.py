"""Pictures and their scores as one picture: `python bench/example_picture.py docs/examples.png [FOLDER]`."""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
from matplotlib import pyplot
from PIL import Image

from dgiqa import Failure, Scorer

COLUMNS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent.parent / "examples")
    options = parser.parse_args()
    matplotlib.use("Agg")
    paths = sorted(options.folder.glob("*.jpg"), key=lambda path: path.stem)
    with Scorer("small") as scorer:
        rows = list(scorer.score_many(paths))
    figure, axes = pyplot.subplots(-(-len(paths) // COLUMNS), COLUMNS, figsize=(12, 5.6), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, path, row in zip(axes.flat, paths, rows, strict=False):
        if isinstance(row, Failure):
            raise SystemExit(f"{path}: {row.message}")
        axis.imshow(Image.open(path))
        axis.set_title(
            f"{row.value:.2f}", fontsize=18, fontweight="bold", color=matplotlib.colormaps["brg"](0.5 + row.value / 2)
        )
        axis.text(0.5, -0.03, path.stem, transform=axis.transAxes, ha="center", va="top", fontsize=10)
    figure.tight_layout()
    figure.savefig(options.out, dpi=80)


if __name__ == "__main__":
    main()
