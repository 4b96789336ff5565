"""A further network is one description: a toy goes from training to a bundle to scores by registering itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
# ruff: noqa: E402 - the skips come before what needs them

from torch import Tensor, nn

from dgiqa.errors import WeightsError
from dgiqa.nn import train
from dgiqa.nn.bundling import import_weights
from dgiqa.nn.checkpoints import load_weights
from dgiqa.nn.fitting import network_of, saved_config
from dgiqa.nn.systems import SYSTEMS, System
from dgiqa.nn.weights import read_tensors
from dgiqa.parity import verify_bundle
from dgiqa.scorer import Scorer
from dgiqa.spec import QUALITY_RGB, Preprocess


@dataclass(frozen=True)
class ToyConfig:
    channels: int = 4
    image_size: int = 64


class Toy(nn.Module):
    """rgb f32 [N,3,64,64] -> score f32 [N] on the labels' scale; unlike GlintIQA it wants pictures reduced."""

    inputs: ClassVar[tuple[str, ...]] = (QUALITY_RGB,)
    preprocess: ClassVar[Preprocess] = Preprocess(1, 0, 1, short_side=72, tile=64)

    def __init__(self, config: ToyConfig | None = None) -> None:
        super().__init__()
        self.config = config or ToyConfig()
        self.toy = nn.Conv2d(3, self.config.channels, 8, 8)
        self.last = nn.Linear(self.config.channels, 1)

    def forward(self, rgb: Tensor) -> Tensor:
        return self.last(torch.relu(self.toy(rgb)).mean((2, 3))).flatten()


def load_toy(path: str | Path) -> nn.Module:
    tensors, metadata = read_tensors(path)
    sizes = saved_config(metadata, ToyConfig)
    return network_of(lambda: Toy(sizes), tensors, path, "Toy")


def test_a_toy_network_is_trained_imported_proved_and_scores(tmp_path: Path, monkeypatch: Any, photos: Any) -> None:
    lines = ["image,score"]
    for i, photo in enumerate(photos.values()):
        cv2.imwrite(str(tmp_path / f"{i}.png"), photo[:80, :90])
        lines.append(f"{i}.png,{1 + i}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    data = ["--dataset", "csv", "--root", str(tmp_path / "labels.csv"), "--worst", "1", "--best", "5", "--split", "all"]
    run = [*data, "--network", "toy", "--batch", "2", "--crop", "64", "--device", "cpu", "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit):
        train.main(run)  # nobody knows it yet
    monkeypatch.setitem(SYSTEMS, "toy", System("Toy", Toy, load_toy, ("toy.",), {"epochs": 1, "consistency": 0.0}))
    assert train.main(run) == 0
    weights = tmp_path / "run" / "weights.safetensors"
    assert isinstance(load_weights(weights), Toy)
    with pytest.raises(ValueError, match="holds Toy: give no depth network"):
        import_weights(weights, None, tmp_path / "b", name="toy")
    bundle = import_weights(weights, None, tmp_path / "b", name="toy", scale=(-5, 5))
    with Scorer(bundle) as scorer:
        assert verify_bundle(bundle, scorer).passed
        score = scorer.score(photos["coffee"])
    assert 0 <= score.value <= 1
    assert np.ptp(score.tile_scores) > 0


def test_a_file_of_no_known_network_is_refused(tmp_path: Path) -> None:
    torch.save({"toy.weight": torch.zeros(3)}, tmp_path / "toy.pth")
    with pytest.raises(WeightsError, match="wanted one of DGIQA, DGIQA-FR, GlintIQA"):
        load_weights(tmp_path / "toy.pth")
