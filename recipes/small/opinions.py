"""BIQ2021's training photographs become working pictures with the mean opinion of thirty people.

    python -m recipes.small.opinions --root BIQ2021 --depth depth.onnx --out data/opinions

A run that was stopped starts from the beginning: it takes two minutes in all.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from dgiqa.nn.commands import watched
from dgiqa.nn.datasets import TRAIN, load_dataset, read_rgb
from recipes.small import working


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m recipes.small.opinions", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True, help="folder of BIQ2021")
    parser.add_argument("--depth", type=Path, required=True, help="depth network, ONNX")
    parser.add_argument("--out", type=Path, required=True)
    o = parser.parse_args(arguments)
    cv2.setNumThreads(1)
    records = load_dataset("biq2021", o.root).part(TRAIN).records
    rgb, depth = working.create(o.out, len(records))
    network = working.Depth(o.depth)
    for i, record in enumerate(watched(records, len(records), "photographs")):
        rgb[i] = working.square(read_rgb(record.path))
        depth[i] = network(rgb[i])
    names, scores = [r.name for r in records], [r.score for r in records]
    working.save_labels(o.out, {"mos": np.array(scores, np.float32), "name": np.array(names)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
