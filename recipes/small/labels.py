"""A distorted picture and its pristine original become a pseudo-MOS: what an ensemble of full-reference metrics says.

No metric of the ensemble has learned weights: MDSI (Nafchi 2016), HaarPSI (Reisenhofer 2018), multi-scale colour GMSD
(Zhang 2017) and DSS (Balanov 2015), all from the `piq` package. FSIM (Zhang 2011), VSI (Zhang 2014) and MS-SSIM (Wang
2003), which take five times as long, stay out of the ensemble, as an independent check of it. The recipe:

1. every metric is turned so that higher is better;
2. each metric is rank-normalised: replaced by the share of a reference set that scores lower, a set in which every
   (distortion type, level) weighs the same, so that neither one metric's scale nor one type's frequency rules;
3. the mean over metrics is rank-normalised once more, which spreads the labels evenly over [0, 1];
4. the five levels of one distortion of one picture are put in order (isotonic regression); the pristine picture is 1.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

Float = npt.NDArray[np.float64]

METRICS = ("mdsi", "haarpsi", "gmsd", "dss")
CHECK_METRICS = ("fsim", "vsi", "ms_ssim")
KNOTS = 257  # of each stored rank curve
LEVEL_GAP = 0.005  # smallest difference between the labels of neighbouring levels


def full_reference(
    reference: npt.NDArray[np.uint8], distorted: npt.NDArray[np.uint8], metrics: Sequence[str] = METRICS
) -> Float:
    """Score distorted [n,H,W,3] against reference [H,W,3], both uint8 RGB: float [n,len(metrics)], higher = better.

    Raises ValueError when the shapes disagree or a side is under 161 pixels, the least that MS-SSIM's scales need.
    """
    if distorted.shape[1:] != reference.shape or min(reference.shape[:2]) < 161:
        raise ValueError(f"got {distorted.shape} against {reference.shape}; wanted equal sizes of at least 161 x 161")
    x, y = _to_tensor(distorted), _to_tensor(reference[None]).expand(len(distorted), -1, -1, -1)
    with torch.inference_mode():
        return np.stack([_measure(name, x, y).double().numpy() for name in metrics], 1)


def _to_tensor(images: npt.NDArray[np.uint8]) -> torch.Tensor:  # uint8 [n,H,W,3] -> f32 [n,3,H,W] in [0, 1]
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def _measure(name: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # f32 [n,3,H,W] each -> [n]
    from dgiqa.nn.backbones import import_timm

    import_timm()  # piq imports torchvision, which may need its ops declared
    import piq

    measures: dict[str, Callable[..., torch.Tensor]] = {
        "mdsi": lambda *images, **options: -piq.mdsi(*images, **options),
        "haarpsi": piq.haarpsi,
        "gmsd": lambda *images, **options: -piq.multi_scale_gmsd(*images, chromatic=True, **options),
        "dss": piq.dss,
        "fsim": piq.fsim,
        "vsi": piq.vsi,
        "ms_ssim": piq.multi_scale_ssim,
    }
    if name not in measures:
        raise ValueError(f"got metric {name!r}; wanted one of {tuple(measures)}")
    return measures[name](x, y, reduction="none", data_range=1.0)


@dataclass(frozen=True)
class LabelScale:
    """Rank curves: what value of a metric beats which share of the reference set.

    curves: [K,KNOTS], the metric values at evenly spaced ranks, one row per metric.
    mean_curve: [KNOTS], the same for the mean of the ranks.
    """

    curves: Float
    mean_curve: Float

    def __call__(self, values: Float) -> Float:  # [n,K] -> [n] in [0, 1], higher = better
        ranks = np.stack([_rank(curve, column) for curve, column in zip(self.curves, values.T, strict=True)])
        return _rank(self.mean_curve, ranks.mean(0))

    def save(self, path: Path) -> None:
        path.write_text(json.dumps({"curves": self.curves.tolist(), "mean_curve": self.mean_curve.tolist()}))

    @staticmethod
    def load(path: Path) -> LabelScale:
        stored = json.loads(path.read_text())
        return LabelScale(np.asarray(stored["curves"]), np.asarray(stored["mean_curve"]))


def fit_scale(values: Float, cells: npt.NDArray[np.int64]) -> LabelScale:
    """Rank curves of metric values [n,K] in which every cell (distortion type and level; int [n]) weighs the same."""
    weights = 1 / np.bincount(cells)[cells]
    curves = np.stack([_weighted_quantiles(column, weights) for column in values.T])
    ranks = np.stack([_rank(curve, column) for curve, column in zip(curves, values.T, strict=True)])
    return LabelScale(curves, _weighted_quantiles(ranks.mean(0), weights))


def order_levels(labels: Float) -> Float:
    """Labels [..., levels] of rising severity, made strictly falling: isotonic regression, then the least gap."""
    ordered = np.apply_along_axis(_falling, -1, labels)
    gaps = LEVEL_GAP * np.arange(labels.shape[-1] - 1, -1, -1)
    # Shift, clip and shift back keeps neighbours at least a gap apart without leaving [0, 1].
    ordered = np.maximum(ordered, gaps)
    for level in range(1, labels.shape[-1]):
        ordered[..., level] = np.minimum(ordered[..., level], ordered[..., level - 1] - LEVEL_GAP)
    return ordered


def _falling(labels: Float) -> Float:
    """Pool adjacent violators: the closest non-increasing sequence in least squares."""
    pools: list[tuple[float, int]] = []
    for label in labels:
        mean, size = float(label), 1
        while pools and pools[-1][0] < mean:
            previous, count = pools.pop()
            mean, size = (mean * size + previous * count) / (size + count), size + count
        pools.append((mean, size))
    return np.repeat([mean for mean, _ in pools], [size for _, size in pools])


def _rank(curve: Float, values: Float) -> Float:
    """Share of the curve below each value; inside a flat stretch of the curve, the stretch's middle."""
    grid = np.linspace(0, 1, len(curve))
    low = np.interp(values, curve, grid, left=0, right=1)
    high = 1 - np.interp(-values, -curve[::-1], grid, left=0, right=1)
    return (low + high) / 2


def _weighted_quantiles(values: Float, weights: Float) -> Float:
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(weights[order])
    return np.interp(np.linspace(0, cumulative[-1], KNOTS), cumulative - weights[order] / 2, values[order])
