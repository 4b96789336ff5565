"""Labelled pictures for networks that see tiles of them without depth: samples, predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import nn

from dgiqa import forward
from dgiqa.nn.datasets import Record, Sample, read_rgb
from dgiqa.nn.predict import Arrays, mean_scores
from dgiqa.preprocess import working_image
from dgiqa.spec import Preprocess

TILING = "official:25"  # as many random crops as GlintIQA's authors draw


class PlainSamples:
    """Records as `Sample`s: the working image, an empty depth image, and the label on its own scale.

    ends: the labels that became a record's score of 0 and of 1; labels beyond them count as the ends.
    """

    def __init__(self, records: Sequence[Record], ends: tuple[float, float], p: Preprocess) -> None:
        self.records, self.ends, self.p = records, ends, p

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        record, (worst, best) = self.records[index], self.ends
        rgb = working_image(read_rgb(record.path), self.p)
        return Sample(rgb, np.broadcast_to(np.uint8(0), rgb.shape[:2]), worst + record.score * (best - worst))


def plain_predictor(ends: tuple[float, float]) -> Callable[[nn.Module, Sequence[Record]], NDArray[np.floating]]:
    """(model, records) -> f64 [n], 0 at the worst label and 1 at the best; mean over TILING's tiles."""
    worst, best = ends

    def predict(model: nn.Module, records: Sequence[Record]) -> NDArray[np.floating]:
        p = cast(Any, model).preprocess

        def tiles(record: Record) -> Iterable[Arrays]:
            rgb = working_image(read_rgb(record.path), p)
            return (feeds.values() for feeds in forward.tiles(rgb, None, TILING, p))

        return (mean_scores(model, records, tiles) - worst) / (best - worst)

    return predict
