"""A seed and a few photographs become a picture of textured shapes that cover each other, and its inverse depth."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from dgiqa.nn.scenes.developing import develop
from dgiqa.nn.scenes.geometry import Array
from dgiqa.nn.scenes.textures import Image, Random, power_law, texture_image
from dgiqa.nn.scenes.tracing import SUPERSAMPLE, nearest


def dead_leaves(seed: int, textures: Sequence[Image], height: int = 384, width: int = 512) -> tuple[Image, Array]:
    """Textured shapes that cover each other, as a picture uint8 [H,W,3] and its inverse depth f32 [H,W] in (0, 1].

    Sizes follow a power law, which gives the statistics of natural images (the dead leaves model with exponent 3, as in
    Lee, Mumford and Huang 2001). Inverse depth is constant on a shape; the last one drawn is the nearest.
    """
    rng = np.random.default_rng([seed, 2])
    high, wide = height * SUPERSAMPLE, width * SUPERSAMPLE
    skins = [texture_image(rng, textures) for _ in range(8)]
    colour = _cover(rng, skins[0], high, wide)
    inverse = np.full((high, wide), 0.04, np.float32)
    count = int(rng.integers(150, 500))
    radii = power_law(rng, 0.015 * high, 0.45 * high, count)
    # Large shapes tend to lie behind small ones: the reverse would bury every detail.
    order = np.argsort(-np.log(radii) + rng.normal(0, 0.9, count))
    for rank, radius in enumerate(radii[order]):
        value = 0.06 + 0.94 * (rank + 1) / count
        _drop_leaf(rng, colour, inverse, skins[int(rng.integers(8))], radius=float(radius), value=value)
    small = cv2.resize(colour, (width, height), interpolation=cv2.INTER_AREA)
    near = nearest(inverse)
    return develop(rng, small), near / near.max()


def _drop_leaf(rng: Random, colour: Array, inverse: Array, skin: Array, *, radius: float, value: float) -> None:
    """Draw one shape of `radius` rays over what is there, softly lit, at inverse depth `value` (in place)."""
    high, wide = inverse.shape
    cy, cx = rng.uniform(0, high), rng.uniform(0, wide)
    reach = int(radius * 1.6) + 2
    top, left = max(0, int(cy) - reach), max(0, int(cx) - reach)
    bottom, right = min(high, int(cy) + reach), min(wide, int(cx) + reach)
    if bottom - top < 2 or right - left < 2:
        return
    y, x = np.mgrid[top:bottom, left:right].astype(np.float32)
    angle, squeeze = rng.uniform(0, np.pi), rng.uniform(0.45, 1)
    u = ((x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)) / np.float32(radius)
    v = ((y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)) / np.float32(radius * squeeze)
    distance = _leaf_distance(rng, u.astype(np.float32), v.astype(np.float32))
    inside = distance < 1
    piece = _cover(rng, skin, bottom - top, right - left)
    light = np.float32(rng.uniform(0.6, 1.15)) * (
        1 + np.float32(rng.uniform(-0.25, 0.25)) * u + np.float32(rng.uniform(-0.25, 0.25)) * v
    )
    tint = rng.uniform(0.75, 1.25, 3).astype(np.float32)
    colour[top:bottom, left:right][inside] = piece[inside] * light[inside, None] * tint
    inverse[top:bottom, left:right][inside] = value


def _leaf_distance(rng: Random, u: Array, v: Array) -> Array:
    """Below 1 inside a random shape about the origin: an ellipse, a rectangle, a polygon or a wobbly leaf."""
    kind = int(rng.integers(4))
    if kind == 0:
        return np.hypot(u, v)
    if kind == 1:
        return np.maximum(np.abs(u), np.abs(v)) * np.float32(1.2)
    angle, distance = np.arctan2(v, u), np.hypot(u, v)
    if kind == 2:
        sector = np.float32(2 * np.pi / int(rng.integers(3, 7)))
        return distance * np.cos((angle % sector) - sector / 2) / np.cos(sector / 2) * np.float32(0.9)
    wobble = sum(rng.normal(0, 0.1) * np.cos(k * angle + rng.uniform(0, 6)) for k in range(2, 7))
    return distance / (0.9 + wobble)


def _cover(rng: Random, skin: Array, high: int, wide: int) -> Array:
    """A random piece [high,wide,3] of a texture mirrored without end, about two rays to a texel."""
    scale = np.float32(rng.uniform(0.45, 0.8))
    y, x = (np.arange(n, dtype=np.float32) * scale + np.float32(rng.uniform(0, 1000)) for n in (high, wide))
    rows, columns = (
        np.abs(p / (2 * s) - np.round(p / (2 * s))) * 2 * s - 0.5 for p, s in zip((y, x), skin.shape[:2], strict=True)
    )
    column, row = (grid.astype(np.float32) for grid in np.meshgrid(columns, rows))
    return cv2.remap(skin, column, row, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
