"""The share of a picture's quality that is left after a distortion, as people judge it: r in [0, 1].

People judged KADID-10k's 25 distortion types at five levels (Lin et al., QoMEX 2019). `HUMAN` holds their mean opinion
of each type and level, as the share of an untouched picture's. Full-reference metrics (MDSI and HaarPSI, neither
learned) say how a picture differs from its type's mean, and how much a mixture costs:

    single distortion:  r = HUMAN[type, level] + (f(picture) - mean of f over the type and level)
    mixture:            r = the smaller of f(mixture) + 0.1 and its worst part, less a little for every further part

with f the monotone map from the mean rank of both metrics to HUMAN. `label` turns r into a mean opinion score.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

UNTOUCHED = 4.65  # opinion of KADID's best stimuli; its scale is 1..5
FLOOR = 0.08  # mean opinion score of a picture without any quality left
# Mean opinion (1..5) per level of KADID-10k's types. Where our levels differ (see `distortions`), the row is
# interpolated between KADID's.
HUMAN_OPINION = {
    "gaussian_blur": (4.0, 3.3, 2.6, 1.9, 1.4),
    "lens_blur": (3.86, 2.65, 1.76, 1.44, 1.30),
    "motion_blur": (4.1, 3.4, 2.85, 2.18, 1.67),
    "color_diffusion": (4.50, 2.60, 1.76, 1.61, 1.39),
    "color_shift": (4.23, 2.55, 1.92, 1.85, 1.75),
    "color_quantization": (4.11, 3.97, 3.72, 3.20, 2.42),
    "color_saturation_1": (2.9, 2.6, 2.4, 2.26, 2.03),
    "color_saturation_2": (4.4, 3.33, 2.65, 1.82, 1.52),
    "jpeg2000": (4.55, 4.20, 3.87, 2.44, 1.39),
    "jpeg": (4.34, 4.25, 3.87, 1.95, 1.35),
    "white_noise": (3.89, 3.39, 3.05, 2.71, 2.30),
    "white_noise_color": (4.47, 3.68, 3.17, 2.69, 2.38),
    "impulse_noise": (3.58, 2.93, 2.61, 2.31, 2.13),
    "multiplicative_noise": (4.40, 3.58, 3.08, 2.64, 2.12),
    "denoise": (3.67, 2.73, 2.20, 1.65, 1.47),
    "brighten": (4.51, 4.29, 3.63, 2.70, 1.81),
    "darken": (4.60, 4.53, 4.23, 3.53, 2.22),
    "mean_shift": (4.50, 4.40, 4.20, 3.90, 3.40),
    "jitter": (4.42, 4.09, 3.24, 1.85, 1.34),
    "non_eccentricity_patch": (4.33, 3.94, 3.77, 3.46, 3.26),
    "pixelate": (3.89, 3.10, 2.90, 2.79, 1.50),
    "quantization": (4.17, 3.93, 3.69, 3.37, 2.80),
    "color_block": (2.69, 2.36, 2.30, 2.13, 2.04),
    "high_sharpen": (3.58, 2.64, 2.14, 1.61, 1.34),
    "contrast_change": (4.25, 4.2, 4.0, 3.3, 2.4),
    # KADID lacks these types; they are set to the values of its blurs, darkening and noise at an equal loss.
    "haze": (4.0, 3.4, 2.8, 2.1, 1.5),
    "low_light": (4.0, 3.4, 2.6, 1.8, 1.2),
    "lens_flare": (4.2, 3.7, 3.0, 2.3, 1.7),
    "depth_motion_blur": (3.6, 2.8, 2.2, 1.7, 1.4),
    "depth_defocus": (4.0, 3.3, 2.7, 2.2, 1.9),
}
HUMAN = {kind: tuple((v - 1) / (UNTOUCHED - 1) for v in row) for kind, row in HUMAN_OPINION.items()}


@dataclass(frozen=True)
class Scale:
    """The map f. curves: ranks [K] of each metric; shares: those left at evenly spaced mean ranks; cells: f's means."""

    curves: Float
    shares: Float
    cells: dict[str, list[float]]

    def __call__(self, values: Float) -> Float:  # metric values [n,2] -> share left [n]
        grid = np.linspace(0, 1, self.curves.shape[1])
        rank = np.mean([np.interp(v, c, grid) for v, c in zip(values.T, self.curves, strict=True)], axis=0)
        return np.asarray(np.interp(rank, np.linspace(0, 1, len(self.shares)), self.shares))

    def single(self, kind: str, level: int, values: Float) -> float:
        return float(np.clip(HUMAN[kind][level - 1] + self(values[None])[0] - self.cells[kind][level - 1], 0.02, 1))

    def save(self, path: Path) -> None:
        path.write_text(
            json.dumps({"curves": self.curves.tolist(), "shares": self.shares.tolist(), "cells": self.cells})
        )

    @staticmethod
    def load(path: Path) -> Scale:
        stored = json.loads(path.read_text())
        return Scale(np.array(stored["curves"]), np.array(stored["shares"]), stored["cells"])


def fit(values: Float, kinds: list[tuple[str, int]]) -> Scale:
    """The scale from metric values [n,2] of distortions (type, level) [n]; level 0 is untouched but recoded."""
    from scipy.optimize import isotonic_regression

    curves = np.quantile(values, np.linspace(0, 1, 257), axis=0).T + np.arange(257) * 1e-9
    grid = np.linspace(0, 1, 257)
    rank = np.mean([np.interp(v, c, grid) for v, c in zip(values.T, curves, strict=True)], axis=0)
    human = np.array([HUMAN[k][level - 1] if level else 1.0 for k, level in kinds])
    order = np.argsort(rank, kind="stable")
    steps = isotonic_regression(human[order]).x
    knots = np.linspace(0, 1, 33)
    shares = np.interp(knots, rank[order], steps)
    shares = np.convolve(np.pad(shares, 2, mode="edge"), np.ones(5) / 5, "valid")
    shares[-1] = 1.0
    whole = Scale(curves, shares, {})
    found = whole(values)
    cells = {
        k: [
            float(np.mean([f for f, (kk, ll) in zip(found, kinds, strict=True) if kk == k and ll == level]))
            for level in range(1, 6)
        ]
        for k in HUMAN
    }
    return Scale(curves, shares, cells)


def label(opinion: float, share: float) -> float:
    """The mean opinion score of a picture whose original has `opinion`, with `share` of the quality left."""
    return FLOOR + (opinion - FLOOR) * share if opinion > FLOOR else opinion
