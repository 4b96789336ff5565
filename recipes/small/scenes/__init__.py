"""A seed and a few photographs become a rendered picture, uint8 [H,W,3], and its exact inverse depth, f32 [H,W].

A pinhole camera looks at a landscape, a street, a room, a table top or a person close by. Every surface has paint,
a crop of a photograph or a procedural pattern. The pictures are sharp and free of aliasing, so that they can serve as
pristine references as well as depth ground truth.

    layouts ─► furniture ─► geometry, outlines, textures        a scene from a seed
    tracing ─► developing                                       a scene becomes a picture
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recipes.small.scenes.developing import defocus, develop
from recipes.small.scenes.geometry import (
    Array,
    Camera,
    Hits,
    billboard,
    box,
    cylinder,
    ellipsoid,
    plane,
    ridge,
    sphere,
    tube,
)
from recipes.small.scenes.layouts import random_scene
from recipes.small.scenes.textures import Image, Material, load_textures
from recipes.small.scenes.tracing import FAR, Scene, Thing, trace

__all__ = [
    "FAR",
    "Camera",
    "Hits",
    "Material",
    "Scene",
    "Thing",
    "billboard",
    "box",
    "cylinder",
    "ellipsoid",
    "load_textures",
    "plane",
    "random_scene",
    "render",
    "ridge",
    "sphere",
    "trace",
    "tube",
]


def render(seed: int, textures: Sequence[Image], height: int = 384, width: int = 512) -> tuple[Image, Array]:
    """A random scene: rgb uint8 [H,W,3] and its exact inverse depth f32 [H,W] in (0, 1].

    Larger is nearer and the nearest point has 1. The same seed, textures and size give the same picture.
    textures: uint8 [h,w,3] RGB; may be empty (paint and procedural patterns only).
    """
    rng = np.random.default_rng([seed, 1])
    scene = random_scene(rng, textures, height)
    colour, inverse = trace(scene, height, width)
    if scene.aperture:
        colour = defocus(colour, inverse, float(rng.uniform(0.4, 0.9)), scene.aperture)
    return develop(rng, colour), inverse
