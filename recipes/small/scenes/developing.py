"""A traced picture f32 [H,W,3] becomes a photograph uint8 [H,W,3]: focus, exposure, tint, rounding."""

from __future__ import annotations

import cv2
import numpy as np

from recipes.small.scenes.geometry import Array
from recipes.small.scenes.textures import Image, Random


def defocus(colour: Array, inverse: Array, focus: float, aperture: float) -> Array:
    """Blur everything behind the plane of inverse depth `focus` (1 is the nearest point), f32 [H,W,3].

    aperture: radius of the blur at infinity, picture heights. Sharp pixels give the blurred ones no colour, so that
    edges in front stay clean.
    """
    result = colour
    behind = np.clip(1 - inverse / np.float32(focus), 0, 1)
    for share in (0.25, 0.5, 0.75):
        sigma = aperture * share * colour.shape[0]
        weight = np.clip((behind - np.float32(share - 0.25)) * 8, 0, 1)
        blurred = cv2.GaussianBlur(colour * weight[..., None], (0, 0), sigma)
        blurred /= cv2.GaussianBlur(weight, (0, 0), sigma)[..., None] + np.float32(1e-4)
        result = result + weight[..., None] * (blurred - result)
    return result


def develop(rng: Random, colour: Array) -> Image:
    """A traced picture f32 [H,W,3] exposed, tinted and rounded like a photograph: uint8 [H,W,3]."""
    low, high = np.percentile(colour[::4, ::4].mean(2), (1, 99))
    black, white = rng.uniform(0, 0.1), rng.uniform(0.75, 1.0)
    colour = black + (colour - low) / max(high - low, 1e-3) * (white - black)
    grey = colour.mean(2, keepdims=True)
    colour = grey + (colour - grey) * np.float32(rng.uniform(0.7, 1.35))
    colour = np.clip(colour, 0, 1)
    median = float(np.clip(np.median(colour[::4, ::4]), 0.05, 0.95))
    gamma = np.clip(np.log(rng.uniform(0.28, 0.58)) / np.log(median), 0.5, 1.7)
    colour = colour ** np.float32(gamma) * rng.uniform(0.93, 1.07, 3).astype(np.float32)
    y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in colour.shape[:2])
    vignette = 1 - np.float32(rng.uniform(0, 0.12)) * (x[None, :] ** 2 + y[:, None] ** 2)
    # Half a step of dither keeps skies free of banding.
    dither = rng.random(colour.shape, np.float32) - 0.5
    return np.clip(np.rint(colour * vignette[..., None] * 255 + dither), 0, 255).astype(np.uint8)
