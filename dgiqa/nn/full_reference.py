"""DGIQA-FR: score the difference between the features that one DGIQA gives a picture and its reference.

Source: arXiv 2505.24002, appendix C.3: the shared network's features after the dilated stack, their difference, a
linear layer, a sigmoid. The text available to us does not say whether the difference is signed; signed is the default.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dgiqa.errors import DgiqaError
from dgiqa.full_reference import DIFFERENCES, TOP, FullReference
from dgiqa.nn.datasets import DepthNetwork, IQADataset, Record, Sample, working_pair
from dgiqa.nn.network import DGIQA, DGIQAConfig

STEEP = 2.0  # factor of the difference of logits, at the start
REFERENCE_FOLDERS = (".", "images", "reference_images", "refimgs", "ref_imgs", "src_imgs", "references")


@dataclass(frozen=True)
class DGIQAFRConfig(DGIQAConfig):
    """DGIQA's sizes, and the difference: "signed" (reference - picture) or "absolute" (of the maps, then averaged)."""

    difference: str = "signed"


class DGIQAFR(DGIQA):
    """DGIQA with another last layer, for the difference from a reference; without one it scores as DGIQA does."""

    config: DGIQAFRConfig

    def __init__(self, config: DGIQAFRConfig | None = None) -> None:
        config = config or DGIQAFRConfig()
        if config.difference not in DIFFERENCES:
            raise ValueError(f"difference is {config.difference!r}; it can be {' or '.join(DIFFERENCES)}")
        if config.difference == "absolute" and config.statistics:
            raise ValueError("an absolute difference is of maps, and this network's last layer reads more; take signed")
        super().__init__(config)
        self.fc_reference = nn.Linear(self.fc.in_features, 1)
        nn.init.normal_(self.fc_reference.weight, std=0.02)
        nn.init.constant_(self.fc_reference.bias, TOP)

    def forward(self, rgb: Tensor, depth: Tensor, *reference: Tensor) -> Tensor:
        """Score f32 [N] of rgb and depth; with the reference's two, f32 [N,2]: full-reference score, then score."""
        features = self.features(rgb, depth)
        if not reference:
            return self.score(features)
        return torch.stack([self.compared(features, self.features(*reference)), self.score(features)], 1)

    def compared(self, features: Tensor, reference: Tensor) -> Tensor:
        """`features` of both -> f32 [N] in [0, 1]."""
        apart = reference - features
        if self.config.difference == "absolute":
            apart = self._pooled(apart.abs())
        return torch.sigmoid(self.fc_reference(apart).reshape(-1).float())

    def score(self, features: Tensor) -> Tensor:
        return super().score(self._pooled(features) if self.config.difference == "absolute" else features)

    def pool(self, stacked: Tensor) -> Tensor:
        """The dilated stack's maps [N,C,7,7] -> features: means f32 [N,C], or for an absolute difference, whose
        magnitude is taken before the mean, all values f32 [N,49C]."""
        return stacked.flatten(1) if self.config.difference == "absolute" else super().pool(stacked)

    def _pooled(self, maps: Tensor) -> Tensor:
        return maps.unflatten(1, (self.fc.in_features, -1)).mean(2)

    def head(self, features: int) -> FullReference:
        """The last layer for a manifest. features: the number that `features` gives."""
        weights, bias = self.fc_reference.weight.detach().double().reshape(-1), self.fc_reference.bias.item()
        return FullReference(tuple(weights.tolist()), bias, self.config.difference, features // len(weights))


def with_reference(network: DGIQA, difference: str = "signed") -> DGIQAFR:
    """A DGIQAFR with a network's weights, which at first scores the difference of logits; a DGIQAFR is kept itself."""
    if isinstance(network, DGIQAFR):
        return network
    sizes = {name: getattr(network.config, name) for name in DGIQAConfig.__dataclass_fields__}
    made = DGIQAFR(DGIQAFRConfig(**sizes, difference=difference))
    state = network.state_dict()
    weight = state["fc.weight"].abs() if difference == "absolute" else state["fc.weight"]
    made.load_state_dict(state | {"fc_reference.weight": -STEEP * weight}, strict=False)
    return made


def reference_files(dataset: IQADataset, root: Path) -> dict[str, Path]:
    """Name of each reference picture of the dataset -> its file. Raises DgiqaError, which names missing ones.

    Files are looked for in REFERENCE_FOLDERS under `root`; case does not matter, and names need no suffix.
    """
    root = root if root.is_dir() else root.parent
    files = [path for folder in REFERENCE_FOLDERS for path in sorted((root / folder).glob("*")) if path.is_file()]
    by_name = {name: path for path in reversed(files) for name in (path.stem.lower(), path.name.lower())}
    wanted = sorted({record.reference or "" for record in dataset.records})
    found = {name: by_name[key] for name in wanted if (key := Path(name).name.lower()) in by_name}
    if missing := [name or "pictures without a reference" for name in wanted if name not in found]:
        raise DgiqaError(
            f"{dataset.name} lacks {len(missing)} of {len(wanted)} references in {root}: {', '.join(missing[:3])}; "
            f"put them into one of {', '.join(REFERENCE_FOLDERS[1:])}"
        )
    return found


def beside(record: Record, references: Mapping[str, Path], network: DepthNetwork, cache_dir: str | Path) -> Sample:
    """A record with its reference as one sample: rgb uint8 [H,W,6] and depth uint8 [H,W,2], the picture first.

    references: name of a reference -> its file, see `reference_files`.
    """
    original = references[record.reference or ""]
    pairs = [working_pair(path, network, cache_dir) for path in (record.path, original)]
    if pairs[0][0].shape != pairs[1][0].shape:
        raise DgiqaError(f"{record.path} and its reference {original} have different shapes; take it out of the list")
    rgb, depth = zip(*pairs, strict=True)
    return Sample(np.concatenate(rgb, 2), np.stack(depth, 2), record.score)
