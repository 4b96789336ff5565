"""Human labels for pictures that nobody judged: those of the KADID-10k picture whose content is most like theirs.

    python -m recipes.small.transfer --kadid DIR --data data/synthetic
    python -m recipes.small.train_small --labels human --data data/synthetic --out runs/human

For users who have KADID-10k. People mind a distortion more on a face than on grass, so each pristine picture of a
synthetic set takes over, type by type and level by level, the opinion scores of the KADID reference next to it in the
features of an ImageNet ResNet (semantic-aligned quality transfer of GlintIQA, Wang and Zhang, arXiv 2408.03885: cosine
similarity of globally averaged features, the nearest one, no metric involved).

Writes SEED.human.npy, f64 [n], beside each SEED.npz, and transfer.csv with what was matched to what. Without a label
(NaN) stay the five types that KADID lacks, and `UNLIKE`, whose levels do not mean there what they mean here.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dgiqa.errors import DgiqaError
from dgiqa.nn.backbones import import_timm
from dgiqa.nn.commands import exit_code, watched
from dgiqa.nn.datasets import IQADataset, find_pictures, load_kadid10k, read_rgb
from dgiqa.nn.train import device_of
from dgiqa.nn.weights import read_tensors
from dgiqa.store import replacing
from recipes.small.distortions import KADID_TYPES, LEVELS
from recipes.small.synthesis import PRISTINE
from recipes.small.train_depth import normalise

Float = NDArray[np.float64]
Features = Callable[[NDArray[np.uint8]], Float]  # picture uint8 [H,W,3] -> f64 [D], length 1

NETWORK = "resnet101.tv_in1k"
# KADID goes from brighter over unchanged to darker, and from more contrast to less; here levels only grow.
UNLIKE = ("mean_shift", "contrast_change")
REFERENCE_FOLDERS = ("reference_images", "ref_imgs", "images")
PRISTINE_LABEL = 1.0


def resnet_features(weights: Path | None = None) -> Features:
    """Globally averaged features of an ImageNet ResNet-101. weights: its checkpoint; None lets timm download one.

    Raises WeightsError for a file that holds something else.
    """
    network = import_timm().create_model(NETWORK, pretrained=weights is None, num_classes=0)
    if weights is not None:
        tensors = {name: value for name, value in read_tensors(weights)[0].items() if not name.startswith("fc.")}
        try:
            network.load_state_dict(tensors)
        except RuntimeError as error:
            raise DgiqaError(f"{weights} is no ResNet-101 in torchvision's or timm's names: {error}") from error
    return _features_of(network.to(device_of("auto")).eval())


def _features_of(network: nn.Module) -> Features:
    device = next(network.parameters()).device

    @torch.inference_mode()
    def features(rgb: NDArray[np.uint8]) -> Float:
        image = normalise(torch.from_numpy(rgb[None].copy()).to(device))
        values: Float = network(image)[0].double().cpu().numpy()
        return values / max(float(np.linalg.norm(values)), 1e-12)

    return features


def human_scores(kadid: IQADataset) -> dict[str, Float]:
    """Reference -> its scores in [0, 1], f64 [25,5]. Raises DgiqaError when one of its 125 pictures has none."""
    scores: dict[str, Float] = {}
    for record in kadid.records:
        table = scores.setdefault(str(record.reference), np.full((len(KADID_TYPES), LEVELS), np.nan))
        kind, level = (int(part) for part in Path(record.name).stem.split("_")[1:3])
        table[kind - 1, level - 1] = record.score
    gaps = sorted(name for name, table in scores.items() if np.isnan(table).any())
    if gaps:
        raise DgiqaError(f"kadid10k: {', '.join(gaps[:3])} lack scores; wanted 25 types at 5 levels each in dmos.csv")
    return scores


def transferred(kinds: NDArray[np.integer], levels: NDArray[np.integer], scores: Float) -> Float:
    """Types int [n] (PRISTINE or an index of `TYPES`), levels int [n] and scores f64 [25,5] -> labels f64 [n]."""
    known = [*scores, *([np.full(LEVELS, np.nan)] * (int(kinds.max()) + 1))]
    for kind in UNLIKE:
        known[KADID_TYPES.index(kind)] = np.full(LEVELS, np.nan)
    return np.array(
        [
            PRISTINE_LABEL if kind == PRISTINE else known[kind][level - 1]
            for kind, level in zip(kinds, levels, strict=True)
        ]
    )


def transfer(kadid_root: Path, data: Path, features: Features) -> list[tuple[str, str, float]]:
    """Label all shards of a folder; (shard, KADID reference, similarity) of each."""
    kadid = load_kadid10k(kadid_root)
    scores = human_scores(kadid)
    names = sorted(scores)
    folder = next((kadid_root / n for n in REFERENCE_FOLDERS if (kadid_root / n).is_dir()), kadid_root)
    paths = find_pictures("kadid10k", folder, names)
    known = np.stack([features(read_rgb(path)) for path in watched(paths, len(paths), "KADID-10k's references")])
    shards = sorted(data.glob("[0-9]*.npz"))
    if not shards:
        raise DgiqaError(f"no .npz shards in {data}; make some with: python -m recipes.small.synthesis --out {data}")
    matched = []
    for shard in watched(shards, len(shards), "labelled"):
        with np.load(shard, allow_pickle=False) as held:
            similarity = known @ features(held["rgb"][0])
            best = int(similarity.argmax())
            labels = transferred(held["kind"], held["level"], scores[names[best]])
        with replacing(shard.with_suffix(".human.npy")) as unfinished, unfinished.open("wb") as file:
            np.save(file, labels)
        matched.append((shard.stem, names[best], float(similarity[best])))
    return matched


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m recipes.small.transfer", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kadid", type=Path, required=True, help="KADID-10k's folder")
    parser.add_argument("--data", type=Path, required=True, help="folder of shards that recipes.small.synthesis wrote")
    parser.add_argument("--resnet", type=Path, help="checkpoint of an ImageNet ResNet-101; default: timm's, a download")
    options = parser.parse_args(arguments)
    return exit_code(lambda: _label(options))


def _label(options: argparse.Namespace) -> None:
    matched = transfer(options.kadid, options.data, resnet_features(options.resnet))
    with replacing(options.data / "transfer.csv") as partial, partial.open("w", newline="") as file:
        csv.writer(file).writerows([("shard", "kadid_reference", "cosine_similarity"), *matched])
    median = float(np.median([similarity for _, _, similarity in matched]))
    references = len({reference for _, reference, _ in matched})
    print(
        f"{len(matched)} pictures took labels from {references} of KADID's references; median similarity {median:.3f}"
    )


if __name__ == "__main__":
    sys.exit(main())
