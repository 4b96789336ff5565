"""A scene with its camera and lights becomes colour f32 [H,W,3] and exact inverse depth f32 [H,W].

Rays are cast in numpy at twice the resolution; textures are read from mip pyramids, so that the pictures are sharp and
free of aliasing at every distance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from recipes.small.scenes.geometry import Array, Camera, Hits, Planes, Surface, Vector, dot
from recipes.small.scenes.textures import Material, grain_pyramid, read, read_pyramid

SUPERSAMPLE = 2  # rays per pixel along each axis
FAR = 1e-4  # inverse depth of the sky as a share of the nearest point's
NEAR_PLANE = 0.2  # metres; nothing is rendered closer
SHADOW_SIDE = 768  # pixels of the shadow map


@dataclass(frozen=True)
class Thing:
    """Something to hit: `cast(origin, rays) -> Hits`, inside the sphere `center`, `radius` (metres)."""

    cast: Surface
    material: Material
    center: Vector = (0.0, 0.0, 0.0)
    radius: float = np.inf
    foot: float = 0.0  # radius of its shadow on the ground, metres; 0 casts none


@dataclass
class Scene:
    """What `trace` renders. The sky is painted by `sky(rays) -> [H,W,3]` wherever no thing is hit."""

    camera: Camera
    things: list[Thing] = field(default_factory=list)
    sky: Callable[[Planes], Array] = lambda rays: np.full((*rays[0].shape, 3), 0.8, np.float32)
    sun: Vector = (0.4, 0.8, -0.45)
    ambient: float = 0.5
    # Distance in metres over which the air takes 63 % of the colour; its colour.
    haze: tuple[float, Array] | None = None
    lamp: tuple[Vector, float] | None = None  # its place; the distance in metres at which its light has halved
    corners: list[tuple[int, float]] = field(default_factory=list)  # walls (axis, offset) that darken things near them
    aperture: float = 0.0  # radius of the blur at infinity, picture heights
    span: float = 24.0  # metres of ground, in x and in z, that the shadow map covers


def trace(scene: Scene, height: int, width: int) -> tuple[Array, Array]:
    """Cast the rays of a scene: colour f32 [H,W,3], about [0, 1], and inverse depth f32 [H,W] in (0, 1]."""
    rays = scene.camera.rays(height * SUPERSAMPLE, width * SUPERSAMPLE)
    origin = (0.0, scene.camera.height, 0.0)
    depth = np.full(rays[0].shape, np.inf, np.float32)
    owner = np.full(rays[0].shape, -1, np.int16)
    hits: list[tuple[int, tuple[slice, slice], Hits]] = []
    for index, thing in enumerate(scene.things):
        window = _window(scene.camera, thing, *rays[0].shape)
        if rays[0][window].size == 0:
            continue
        hit = thing.cast(origin, _cut(rays, window))
        nearer = (hit.depth < depth[window]) & (hit.depth > NEAR_PLANE)
        depth[window][nearer] = hit.depth[nearer]
        owner[window][nearer] = index
        hits.append((index, window, hit))
    # The sky is smooth: one ray a pixel is enough.
    colour = scene.sky(_cut(rays, (slice(None, None, SUPERSAMPLE), slice(None, None, SUPERSAMPLE))))
    colour = cv2.resize(colour, rays[0].shape[::-1], interpolation=cv2.INTER_LINEAR)
    shadow = _shadow_map(scene)
    resolution = rays[0].shape[0] * scene.camera.focal
    for index, window, hit in hits:
        visible = owner[window] == index
        if visible.any():
            colour[window][visible] = _shade(
                scene,
                scene.things[index],
                rays=_cut(rays, window),
                resolution=resolution,
                hit=hit,
                visible=visible,
                shadow=shadow,
            )
    near = nearest(1 / depth)
    return cv2.resize(colour, (width, height), interpolation=cv2.INTER_AREA), np.maximum(near / near.max(), FAR)


def _shade(
    scene: Scene, thing: Thing, *, rays: Planes, resolution: float, hit: Hits, visible: NDArray[np.bool_], shadow: Array
) -> Array:
    """The colour f32 [n,3] of the n visible pixels of a thing: texture, grain, sun, ambient light, shadow, haze.

    resolution: rays per unit of x or y at depth 1.
    """
    depth = hit.depth[visible]
    normal, view = _cut(hit.normal, visible), _cut(rays, visible)
    length = np.sqrt(dot(view, view))
    facing = np.clip(np.abs(dot(normal, view)) / length, 0.02, 1)
    # A ray's footprint on the surface, metres; power 1 takes a slanted one's long axis (blur), 0 the short (aliasing).
    footprint = depth / np.float32(resolution) * facing**-0.6
    material = thing.material
    u, v = hit.u[visible], hit.v[visible]
    colour = read_pyramid(material.pyramid, u * material.density, v * material.density, footprint * material.density)
    colour *= np.array(material.tint, np.float32)
    if material.grain:
        density = material.density * 3.7  # finer than the texture, so that magnified surfaces stay sharp
        grain = read_pyramid(grain_pyramid(), u * density, v * density, footprint * density)
        # The same grain enlarged 60 times hides that the texture repeats.
        stains = read_pyramid(grain_pyramid(), u * density / 60, v * density / 60, footprint * density / 60)
        colour = colour * (1 + material.grain * 2 * (grain - 0.5) + 0.7 * (stains - 0.5))
    point = depth * view[0], scene.camera.height + depth * view[1], depth * view[2]
    light = _light(scene, normal, point, _read_shadow(scene, shadow, point))
    colour = colour * light[:, None]
    if material.gloss:
        half = [n / length - s for n, s in zip(view, scene.sun, strict=True)]  # the mirror between view and sun
        shine = np.clip(-dot(normal, half) / np.sqrt(np.maximum(dot(half, half), 1e-6)), 0, 1) ** 40
        colour = colour + np.float32(material.gloss) * (shine * light)[:, None]
    if scene.haze:
        share = np.exp(-depth / np.float32(scene.haze[0]))[:, None]
        colour = colour * share + scene.haze[1] * (1 - share)
    return colour.astype(np.float32)


def _light(scene: Scene, normal: Planes, point: Planes, shade: Array) -> Array:
    """The light f32 [n] on n points with unit normals: sun, sky or the room's walls, a lamp, dark corners."""
    x, y, z = point
    # 1 on the ground, 0 some way above it, where the shadow map does not apply.
    ground = np.exp(-np.abs(y) * np.float32(144 / scene.span))
    light = np.maximum(dot(normal, scene.sun), 0) * (1 - scene.ambient) * (1 - ground * shade[:, 0])
    light = light + scene.ambient * (1 - 0.7 * ground * shade[:, 1]) * (0.85 + 0.15 * normal[1])
    if scene.lamp:
        (lx, ly, lz), reach = scene.lamp
        light = light * 1.8 / (1 + ((x - lx) ** 2 + (y - ly) ** 2 + (z - lz) ** 2) / np.float32(reach) ** 2)
    for axis, offset in scene.corners:
        near = np.exp(-np.abs(point[axis] - np.float32(offset)) * np.float32(72 / scene.span))
        light = light * (1 - 0.45 * near * (1 - np.abs(normal[axis])))
    return light.astype(np.float32)


def _shadow_map(scene: Scene) -> Array:
    """Darkness f32 [s,s,2] in [0, 1] of the ground from above: shadows of the sun, and darkness close under things."""
    scale = SHADOW_SIDE / scene.span
    cast, contact = (np.zeros((SHADOW_SIDE, SHADOW_SIDE), np.float32) for _ in range(2))
    shear = np.array([scene.sun[0], scene.sun[2]]) / max(scene.sun[1], 0.15)
    for thing in scene.things:
        if thing.foot <= 0:
            continue
        base = np.array([thing.center[0] + scene.span / 2, thing.center[2]])
        tip = base - shear * thing.center[1] * 2
        start, end = (tuple(round(float(c * scale)) for c in point) for point in (base, tip))
        cv2.line(cast, start, end, 1.0, max(1, int(thing.foot * 2 * scale)), cv2.LINE_AA)
        height = max(thing.center[1] - thing.radius, 0)
        strength = float(np.exp(-height / max(thing.foot, 0.05)))
        cv2.circle(contact, start, max(1, int(thing.foot * 1.15 * scale)), strength, -1, cv2.LINE_AA)
    return np.dstack([cv2.GaussianBlur(cast, (0, 0), 1.5), cv2.GaussianBlur(contact, (0, 0), 3.0)])


def _read_shadow(scene: Scene, shadow: Array, point: Planes) -> Array:
    """The shadow map at n points in metres -> f32 [n,2]; there are no shadows outside the map."""
    side, scale = np.float32(SHADOW_SIDE), np.float32(SHADOW_SIDE / scene.span)
    u = np.clip((point[0] + np.float32(scene.span / 2)) * scale, 0, side)
    return read(shadow, u, np.clip(point[2] * scale, 0, side))


def _window(camera: Camera, thing: Thing, rows: int, columns: int) -> tuple[slice, slice]:
    """The part of the picture that a thing's bounding sphere can cover, as slices; all if it reaches the camera."""
    offset = np.array(thing.center) - (0, camera.height, 0)
    x, y, z = (float(offset @ np.array(axis)) for axis in camera.axes())
    if not np.isfinite(thing.radius) or z - thing.radius < NEAR_PLANE:
        return slice(0, rows), slice(0, columns)
    spans = []
    for middle, size in ((y, rows), (x, columns)):
        edges = [(middle + s * thing.radius) / (z + d * thing.radius) for s in (-1, 1) for d in (-1, 1)]
        low, high = (value * rows * camera.focal + size / 2 for value in (min(edges), max(edges)))
        spans.append(slice(int(np.clip(low - 1, 0, size)), int(np.clip(high + 2, 0, size))))
    return spans[0], spans[1]


def nearest(inverse: Array) -> Array:
    """Inverse depth per ray -> per pixel: its nearest ray's."""
    rows = np.maximum.reduce([inverse[k::SUPERSAMPLE] for k in range(SUPERSAMPLE)])
    return np.maximum.reduce([rows[:, k::SUPERSAMPLE] for k in range(SUPERSAMPLE)])


def _cut(planes: Planes, window: tuple[slice, slice] | NDArray[np.bool_]) -> Planes:
    return planes[0][window], planes[1][window], planes[2][window]
