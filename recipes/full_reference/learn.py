"""Fits the weights of `dgiqa.full_reference.likeness` to pairs that a metric and people judged.

    python -m recipes.full_reference.learn --pairs pairs.npz

A label is partly people's opinion of the same type and level in KADID-10k, and otherwise SSIMULACRA 2 of the picture,
mapped onto the same scale by people's opinions of JPEG and JPEG 2000 in KADID-10k. Codecs, small pictures and mixtures
have only the metric. No weight is below 0: a difference never brings two pictures closer.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression, minimize
from scipy.special import expit

from dgiqa.full_reference import TOP
from dgiqa.metrics import srocc
from recipes.full_reference.pairs import WORSE
from recipes.small.scale import HUMAN

Float = NDArray[np.float64]
HELD_OUT = 10  # one group of so many is never trained on
HUMAN_SHARE = 0.3
CODECS = ("jpeg", "jpeg2000")
SPARSE = 3e-4  # loss per unit of weight, which removes redundant differences


def labels(what: NDArray[np.str_], level: Float, measured: Float) -> Float:
    """The share of quality left of each picture, 0..1, from its distortion and SSIMULACRA 2 [n]."""
    cells = {(kind, n): (what == kind) & (level == n) for kind in HUMAN for n in range(1, 6)}
    known = [cell for cell in cells if cell[0] in CODECS and cells[cell].any()]
    at, share = np.array(sorted((np.median(measured[cells[cell]]), HUMAN[cell[0]][cell[1] - 1]) for cell in known)).T
    found = np.interp(measured, [-150, *at, 90], [0.02, *isotonic_regression(share).x, 1])
    result = found.copy()
    for (kind, n), cell in cells.items():
        if cell.any():
            human = HUMAN[kind][n - 1] + found[cell] - found[cell].mean()
            result[cell] = HUMAN_SHARE * human + (1 - HUMAN_SHARE) * found[cell]
    return np.clip(result, 0.02, 1)


def fitted(apart: Float, wanted: Float) -> Float:
    """Weights [k] >= 0 of differences [n,k], so that sigmoid(TOP - sum) is near the labels [n]."""
    scale = apart.std(0) + 1e-9
    x = np.minimum(apart, np.quantile(apart, 0.998, axis=0)) / scale

    def loss(weights: Float) -> tuple[float, Float]:
        share = expit(TOP - x @ weights)
        error = share - wanted
        slope = -2 * (error * share * (1 - share)) @ x / len(x)
        return float(np.mean(error**2) + SPARSE * weights.sum()), slope + SPARSE

    start = np.full(x.shape[1], 1 / x.shape[1])
    bounds = [(0, None)] * len(start)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 2000})
    return np.asarray(found.x / scale)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m recipes.full_reference.learn",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pairs", type=Path, required=True, help="the file of recipes.full_reference.pairs")
    o = parser.parse_args(arguments)
    found = dict(np.load(o.pairs))
    wanted = labels(found["what"], found["much"], found["ssimulacra2"])
    apart = found["apart"].reshape(len(wanted), -1).astype(np.float64)
    held = np.arange(len(wanted)) // WORSE % HELD_OUT == 0
    weights = fitted(apart[~held], wanted[~held])
    now = expit(TOP - apart[held] @ weights)
    print("weights", np.array2string(weights.reshape(found["apart"].shape[1:]), separator=", ", precision=3))
    metric = srocc(now, found["ssimulacra2"][held])
    print(f"held out: SROCC {srocc(now, wanted[held]):.4f}, {metric:.4f} with the metric;", end=" ")
    print(f"RMSE {np.sqrt(np.mean((now - wanted[held]) ** 2)):.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
