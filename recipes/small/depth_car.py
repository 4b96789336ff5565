"""Measures Depth-CAR's benefit by runs of `learn` with no other difference, on pictures that none of them saw.

    for seed in 0 1 2; do
        L="python -m recipes.small.learn --opinions data/opinions --judged 32 --pairs 0 --same 0 --steps 300"
        $L --seed $seed --out runs/with-$seed
        $L --seed $seed --out runs/without-$seed --no-depth-car
    done
    python -m recipes.small.depth_car --root BIQ2021 --clean FOLDER --depth depth.onnx \\
        --with runs/with-?/weights.safetensors --without runs/without-?/weights.safetensors \\
        --out bench/results/depth-car.json

Three questions, as the paper asks them: people's opinions of the test photographs (section 5.1), simulations of natural
distortions (section 5.2), and another set, for which only the mean opinion of each type and level is known (KADID-10k).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from dgiqa.metrics import srocc
from dgiqa.nn.commands import watched
from dgiqa.nn.datasets import TEST, load_dataset, read_rgb
from dgiqa.nn.network import DGIQA
from recipes.small import working
from recipes.small.distortions import KADID_TYPES, LEVELS, TYPES, distort
from recipes.small.learn import Pictures, network_from, predict
from recipes.small.measures import as_json, read
from recipes.small.scale import HUMAN

NATURAL = tuple(kind for kind in TYPES if kind not in KADID_TYPES)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m recipes.small.depth_car", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True, help="folder of BIQ2021")
    parser.add_argument("--clean", type=Path, required=True, help="clean photographs, to be distorted")
    parser.add_argument("--depth", type=Path, required=True, help="depth network, ONNX")
    parser.add_argument("--with", type=Path, nargs="+", required=True, dest="with_car", help="weights with Depth-CAR")
    parser.add_argument("--without", type=Path, nargs="+", required=True, help="weights of the same seeds without it")
    parser.add_argument("--most", type=int, default=8, help="clean pictures to use; default: %(default)s")
    parser.add_argument("--out", type=Path, required=True)
    o = parser.parse_args(arguments)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    depth, clean = working.Depth(o.depth), read(o.clean, o.most)
    records = load_dataset("biq2021", o.root).part(TEST).records
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        judged = _seen((read_rgb(record.path) for record in records), len(records), depth, folder / "judged")
        natural, human = _distorted(clean, NATURAL, depth, folder / "natural")
        kadid, means = _distorted(clean, KADID_TYPES, depth, folder / "kadid")
        result: dict[str, Any] = {}
        for name, files in (("with", o.with_car), ("without", o.without)):
            result[name] = []
            for file in files:
                network = network_from(file, "").eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
                row = {
                    "opinions": srocc(_scores(network, judged), np.array([record.score for record in records])),
                    "natural": srocc(_scores(network, natural), human),
                    "kadid": srocc(_scores(network, kadid), means),
                }
                print(name, file, {key: round(value, 4) for key, value in row.items()}, flush=True)
                result[name].append(row)
    result["pictures"] = {"opinions": len(records), "natural": len(human), "kadid": len(means)}
    o.out.write_text(as_json(result))
    return 0


def _seen(pictures: Iterable[NDArray[np.uint8]], count: int, depth: working.Depth, folder: Path) -> Pictures:
    rgb, near = working.create(folder, count)
    for n, picture in enumerate(watched(pictures, count, "pictures")):
        rgb[n] = working.square(picture)
        near[n] = depth(rgb[n])
    working.save_labels(folder, {"number": np.arange(count)})
    return Pictures(folder)


def _distorted(
    clean: Sequence[NDArray[np.uint8]], kinds: Sequence[str], depth: working.Depth, folder: Path
) -> tuple[Pictures, NDArray[np.float64]]:
    """Every picture with every type at every level, and the mean share of quality left of each, by people."""
    cells = [(kind, level, n) for kind in kinds for level in range(1, LEVELS + 1) for n in range(len(clean))]
    made = (distort(clean[n], kind, level, n) for kind, level, n in cells)
    return _seen(made, len(cells), depth, folder), np.array([HUMAN[kind][level - 1] for kind, level, _ in cells])


def _scores(network: DGIQA, pictures: Pictures) -> NDArray[np.float32]:
    return predict(network, pictures, np.arange(int(pictures.starts[-1])))


if __name__ == "__main__":
    sys.exit(main())
