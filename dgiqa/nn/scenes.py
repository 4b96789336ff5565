"""A seed and a few photographs become a rendered picture, uint8 [H,W,3], and its exact inverse depth, f32 [H,W].

A pinhole camera looks at a ground plane, a room or a landscape, and at clutter standing on the ground or hanging in
the air. Every surface carries a crop of a photograph or a procedural texture. Rays are cast in numpy at twice the
resolution; textures are read from mip pyramids, so that the pictures are sharp and free of aliasing at every distance
and can serve as pristine references as well as depth ground truth.

World axes: x right, y up, z forward, metres; the camera stands at (0, height, 0). A ray is
`right * x + down * y + forward` with x and y in units of the focal length, so that the distance along it is the depth.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]  # f32 arrays; numpy's stubs widen every product with a Python float to f64
Image = NDArray[np.uint8]
Vector = tuple[float, float, float]
Planes = tuple[Array, Array, Array]  # three arrays of one shape: the x, y and z parts of vectors
Random = np.random.Generator

SUPERSAMPLE = 2  # rays per pixel along each axis
TEXTURE_SIDE = 384  # pixels
MAX_TEXTURE_SIDE = 1024  # a loaded photograph's longest side, pixels
MIN_TEXTURE_SIDE = 300  # smaller pictures are icons and previews, not photographs
FAR = 1e-4  # inverse depth of the sky as a share of the nearest point's
NEAR_PLANE = 0.2  # metres; nothing is rendered closer
SHADOW_EXTENT = 24.0  # metres of ground, in x and in z, that the shadow map covers
SHADOW_SIDE = 768  # pixels of the shadow map


@dataclass(frozen=True)
class Camera:
    """A pinhole camera: metres, radians; `focal` in image heights."""

    height: float = 1.5
    pitch: float = 0.1
    roll: float = 0.0
    focal: float = 1.0

    def axes(self) -> tuple[Vector, Vector, Vector]:
        """Right, down and forward as world vectors; a positive pitch looks at the ground."""
        cos_p, sin_p, cos_r, sin_r = np.cos(self.pitch), np.sin(self.pitch), np.cos(self.roll), np.sin(self.roll)
        down = np.array([0.0, -cos_p, -sin_p])
        right = np.array([1.0, 0.0, 0.0])
        rolled_right, rolled_down = cos_r * right + sin_r * down, cos_r * down - sin_r * right
        return _vector(rolled_right), _vector(rolled_down), (0.0, float(-sin_p), float(cos_p))

    def rays(self, height: int, width: int) -> Planes:
        """World directions f32 [height,width] x 3 whose component along the viewing direction is 1."""
        y = (np.arange(height, dtype=np.float32)[:, None] + 0.5 - height / 2) / (height * self.focal)
        x = (np.arange(width, dtype=np.float32)[None, :] + 0.5 - width / 2) / (height * self.focal)
        right, down, forward = self.axes()
        x_part, y_part, z_part = (
            np.float32(r) * x + np.float32(d) * y + np.float32(f) for r, d, f in zip(right, down, forward, strict=True)
        )
        return x_part, y_part, z_part


@dataclass(frozen=True)
class Hits:
    """Where rays meet a surface; all f32 arrays of the rays' shape.

    depth: along the viewing direction in metres, inf where the ray misses. normal: unit vectors. u, v: position on the
    surface in metres.
    """

    depth: Array
    normal: Planes
    u: Array
    v: Array


@dataclass(frozen=True)
class Material:
    """A mip pyramid f32 [s,s,3] in [0, 1] laid on the surface at `density` texels a metre, under a finer grain."""

    pyramid: list[Array]
    density: float
    grain: float = 0.1
    tint: Vector = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Thing:
    """Something to hit: `cast(origin, rays) -> Hits`, inside the sphere `center`, `radius` (metres)."""

    cast: Callable[[Vector, Planes], Hits]
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
    haze: tuple[float, Array] | None = (
        None  # distance in metres over which the air takes 63 % of the colour; its colour
    )


def load_textures(folder: str | Path) -> list[Image]:
    """Every picture under the folder, uint8 [h,w,3] RGB, in the order of their paths, at most 1024 pixels long.

    Links to the same file count once; pictures with a side below 300 pixels (icons, previews) are left out. Raises
    ValueError when nothing remains.
    """
    suffixes = {".jpg", ".jpeg", ".png"}
    paths = {p.resolve() for p in Path(folder).rglob("*") if p.suffix.lower() in suffixes and p.is_file()}
    pictures = (cv2.imread(str(path), cv2.IMREAD_COLOR) for path in sorted(paths))
    kept = [_shrink(p[..., ::-1]) for p in pictures if p is not None and min(p.shape[:2]) >= MIN_TEXTURE_SIDE]
    if not kept:
        raise ValueError(
            f"{folder} holds no jpg or png picture of at least {MIN_TEXTURE_SIDE} pixels; name a folder that does"
        )
    return kept


def render(seed: int, textures: Sequence[Image], height: int = 384, width: int = 512) -> tuple[Image, Array]:
    """A random scene: rgb uint8 [H,W,3] and its exact inverse depth f32 [H,W] in (0, 1].

    Larger is nearer and the nearest point has 1. The same seed, textures and size give the same picture.
    textures: uint8 [h,w,3] RGB; may be empty (procedural textures only).
    """
    rng = np.random.default_rng([seed, 1])
    colour, inverse = trace(_random_scene(rng, textures, height), height, width)
    return _develop(rng, colour), inverse


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
    near = _nearest(1 / depth)
    return cv2.resize(colour, (width, height), interpolation=cv2.INTER_AREA), np.maximum(near / near.max(), FAR)


def dead_leaves(seed: int, textures: Sequence[Image], height: int = 384, width: int = 512) -> tuple[Image, Array]:
    """Textured shapes that cover each other, as a picture uint8 [H,W,3] and its inverse depth f32 [H,W] in (0, 1].

    Sizes follow a power law, which gives the statistics of natural images (the dead leaves model with exponent 3, as in
    Lee, Mumford and Huang 2001). Inverse depth is constant on a shape; the last one drawn is the nearest.
    """
    rng = np.random.default_rng([seed, 2])
    high, wide = height * SUPERSAMPLE, width * SUPERSAMPLE
    skins = [_texture_image(rng, textures) for _ in range(8)]
    colour = _cover(rng, skins[0], high, wide)
    inverse = np.full((high, wide), 0.04, np.float32)
    count = int(rng.integers(150, 500))
    radii = _power_law(rng, 0.015 * high, 0.45 * high, count)
    # Large shapes tend to lie behind small ones: the reverse would bury every detail.
    order = np.argsort(-np.log(radii) + rng.normal(0, 0.9, count))
    for rank, radius in enumerate(radii[order]):
        value = 0.06 + 0.94 * (rank + 1) / count
        _drop_leaf(rng, colour, inverse, skins[int(rng.integers(8))], radius=float(radius), value=value)
    small = cv2.resize(colour, (width, height), interpolation=cv2.INTER_AREA)
    near = _nearest(inverse)
    return _develop(rng, small), near / near.max()


# --- Surfaces: what a ray meets ---------------------------------------------------------------------------------------


def plane(axis: int, offset: float) -> Callable[[Vector, Planes], Hits]:
    """An infinite plane, seen from both sides: coordinate `axis` (0 x, 1 y, 2 z) equals `offset` metres."""

    def cast(origin: Vector, rays: Planes) -> Hits:
        with np.errstate(divide="ignore"):
            depth = np.float32(offset - origin[axis]) / rays[axis]
        depth = np.where(depth > 0, np.minimum(depth, 1e4), np.inf).astype(np.float32)
        u_axis, v_axis = [(2, 1), (0, 2), (0, 1)][axis]
        near = np.where(np.isfinite(depth), depth, 0)
        flat = np.zeros_like(depth)
        unit = np.full_like(depth, np.sign(origin[axis] - offset) or 1.0)
        x, y, z = (unit if k == axis else flat for k in range(3))
        return Hits(depth, (x, y, z), origin[u_axis] + near * rays[u_axis], origin[v_axis] + near * rays[v_axis])

    return cast


def sphere(center: Vector, radius: float) -> Callable[[Vector, Planes], Hits]:
    """A sphere; u and v are arc lengths along the equator and the meridian."""

    def cast(origin: Vector, rays: Planes) -> Hits:
        ox, oy, oz = (np.float32(o - c) for o, c in zip(origin, center, strict=True))
        a = _dot(rays, rays)
        b = ox * rays[0] + oy * rays[1] + oz * rays[2]
        discriminant = b * b - a * (ox * ox + oy * oy + oz * oz - np.float32(radius) ** 2)
        met = (discriminant > 0) & (b < 0)
        depth = (-b - np.sqrt(np.maximum(discriminant, 0))) / a
        nx, ny, nz = ((o + depth * r) / np.float32(radius) for o, r in zip((ox, oy, oz), rays, strict=True))
        longitude, latitude = np.arctan2(nx, -nz), np.arcsin(np.clip(ny, -1, 1))
        return Hits(np.where(met, depth, np.inf), (nx, ny, nz), longitude * radius, latitude * radius)

    return cast


def box(center: Vector, half: Vector, rotation: NDArray[np.float64]) -> Callable[[Vector, Planes], Hits]:
    """A box of half sides `half` metres; `rotation` [3,3] turns its axes into the world's (columns are its axes)."""
    turn = rotation.astype(np.float32)

    def cast(origin: Vector, rays: Planes) -> Hits:
        start = (np.array(origin) - np.array(center)) @ rotation
        local = [turn[0, k] * rays[0] + turn[1, k] * rays[1] + turn[2, k] * rays[2] for k in range(3)]
        safe = [np.where(np.abs(r) < 1e-6, np.float32(1e-6), r) for r in local]
        enter = [(-np.sign(r) * np.float32(h) - np.float32(o)) / r for r, h, o in zip(safe, half, start, strict=True)]
        leave = [(np.sign(r) * np.float32(h) - np.float32(o)) / r for r, h, o in zip(safe, half, start, strict=True)]
        depth = np.maximum(np.maximum(enter[0], enter[1]), enter[2])
        met = (depth < np.minimum(np.minimum(leave[0], leave[1]), leave[2])) & (depth > 0)
        face = np.where(depth == enter[0], 0, np.where(depth == enter[1], 1, 2))
        x, y, z = (np.float32(o) + depth * r for o, r in zip(start, local, strict=True))
        side = -np.sign(np.choose(face, local))
        nx, ny, nz = (side * turn[k][face] for k in range(3))
        shift = face * np.float32(0.37)  # so that the faces do not show the same piece of texture
        u = np.where(face == 0, z, x) + shift
        return Hits(np.where(met, depth, np.inf), (nx, ny, nz), u, np.where(face == 1, z, y) + shift)

    return cast


def cylinder(center: Vector, radius: float, half_height: float) -> Callable[[Vector, Planes], Hits]:
    """An upright cylinder with its lid and bottom; u is the arc length, v the height."""

    def cast(origin: Vector, rays: Planes) -> Hits:
        ox, oy, oz = (np.float32(o - c) for o, c in zip(origin, center, strict=True))
        a = rays[0] ** 2 + rays[2] ** 2
        b = ox * rays[0] + oz * rays[2]
        discriminant = b * b - a * (ox * ox + oz * oz - np.float32(radius) ** 2)
        side = (-b - np.sqrt(np.maximum(discriminant, 0))) / a
        y = oy + side * rays[1]
        on_side = (discriminant > 0) & (b < 0) & (np.abs(y) < half_height)
        lid_y = np.float32(np.sign(oy) * half_height)
        with np.errstate(divide="ignore", invalid="ignore"):
            lid = (lid_y - oy) / rays[1]
            lid_x, lid_z = ox + lid * rays[0], oz + lid * rays[2]
            on_lid = (lid > 0) & (lid_x**2 + lid_z**2 < radius**2) & (np.abs(oy) > half_height)
        depth = np.where(on_lid, lid, np.where(on_side, side, np.inf)).astype(np.float32)
        x, z = (np.where(on_lid, 0, (o + side * r) / radius) for o, r in ((ox, rays[0]), (oz, rays[2])))
        u = np.where(on_lid, lid_x, np.arctan2(x, -z) * radius)
        normal = (x, np.where(on_lid, np.sign(lid_y), 0).astype(np.float32), z)
        return Hits(depth, normal, u, np.where(on_lid, lid_z, y))

    return cast


def billboard(
    center: Vector, half: tuple[float, float], yaw: float, outline: Array
) -> Callable[[Vector, Planes], Hits]:
    """An upright sheet of half width and half height `half` metres, cut along `outline` f32 [h,w] (solid above 0.5)."""
    rows, columns = outline.shape
    tangent, facing = (np.cos(yaw), 0.0, np.sin(yaw)), (np.sin(yaw), 0.0, -np.cos(yaw))

    def cast(origin: Vector, rays: Planes) -> Hits:
        start = [o - c for o, c in zip(origin, center, strict=True)]
        toward = np.float32(facing[0]) * rays[0] + np.float32(facing[2]) * rays[2]
        toward = np.where(np.abs(toward) < 1e-6, np.float32(1e-6), toward)
        depth = np.float32(-(start[0] * facing[0] + start[2] * facing[2])) / toward
        u = (start[0] + depth * rays[0]) * np.float32(tangent[0]) + (start[2] + depth * rays[2]) * np.float32(
            tangent[2]
        )
        v = np.float32(start[1]) + depth * rays[1]
        column = ((u / np.float32(half[0]) + 1) / 2 * columns - 0.5).astype(np.float32)
        row = ((1 - v / np.float32(half[1])) / 2 * rows - 0.5).astype(np.float32)
        solid = cv2.remap(outline, column, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0) > 0.5
        # A bent normal makes the flat sheet look round under the sun.
        bend = np.clip(u / np.float32(half[0]), -1, 1) * np.float32(0.8)
        flat = np.sqrt(1 - bend**2)
        x, z = (
            np.float32(f) * flat + np.float32(t) * bend for f, t in ((facing[0], tangent[0]), (facing[2], tangent[2]))
        )
        return Hits(np.where(solid & (depth > 0), depth, np.inf), (x, np.zeros_like(x), z), u, v)

    return cast


def ridge(distance: float, profile: Array) -> Callable[[Vector, Planes], Hits]:
    """A far silhouette at z = distance metres.

    profile: f32 [n], its height in metres over x from -1.5 to 1.5 distances.
    """
    upright = plane(2, distance)

    def cast(origin: Vector, rays: Planes) -> Hits:
        hit = upright(origin, rays)
        top = np.interp(hit.u / distance, np.linspace(-1.5, 1.5, len(profile)), profile).astype(np.float32)
        lit = np.gradient(profile) / (3 * distance / len(profile))
        slope = np.interp(hit.u / distance, np.linspace(-1.5, 1.5, len(profile)), lit).astype(np.float32)
        normal = (-slope * 0.4, np.full_like(slope, 0.6), np.full_like(slope, -0.7))
        return Hits(np.where(hit.v < top, hit.depth, np.inf), normal, hit.u, hit.v)

    return cast


# --- Shading ----------------------------------------------------------------------------------------------------------


def _shade(
    scene: Scene, thing: Thing, *, rays: Planes, resolution: float, hit: Hits, visible: NDArray[np.bool_], shadow: Array
) -> Array:
    """The colour f32 [n,3] of the n visible pixels of a thing: texture, grain, sun, ambient light, shadow, haze.

    resolution: rays per unit of x or y at depth 1.
    """
    depth = hit.depth[visible]
    normal = tuple(n[visible] for n in hit.normal)
    view = tuple(r[visible] for r in rays)
    length = np.sqrt(_dot(view, view))
    facing = np.clip(np.abs(_dot(normal, view)) / length, 0.02, 1)
    # A ray's footprint on the surface, metres; power 1 takes a slanted one's long axis (blur), 0 the short (aliasing).
    footprint = depth / np.float32(resolution) * facing**-0.6
    material = thing.material
    u, v = hit.u[visible], hit.v[visible]
    colour = _read_pyramid(material.pyramid, u * material.density, v * material.density, footprint * material.density)
    colour *= np.array(material.tint, np.float32)
    if material.grain:
        density = material.density * 3.7  # finer than the texture, so that magnified surfaces stay sharp
        grain = _read_pyramid(_grain_pyramid(), u * density, v * density, footprint * density)
        # The same grain enlarged 60 times hides that the texture repeats.
        stains = _read_pyramid(_grain_pyramid(), u * density / 60, v * density / 60, footprint * density / 60)
        colour = colour * (1 + material.grain * 2 * (grain - 0.5) + 0.7 * (stains - 0.5))
    light = np.maximum(_dot(normal, scene.sun), 0) * (1 - scene.ambient)
    x, y, z = depth * view[0], scene.camera.height + depth * view[1], depth * view[2]
    ground = np.exp(-np.maximum(y, 0) * 6)  # 1 on the ground, 0 half a metre above it
    shade = _read_shadow(shadow, x, z)
    light = light * (1 - ground * shade[:, 0]) + scene.ambient * (1 - 0.7 * ground * shade[:, 1]) * (
        0.85 + 0.15 * normal[1]
    )
    colour = colour * light[:, None]
    if scene.haze:
        share = np.exp(-depth / np.float32(scene.haze[0]))[:, None]
        colour = colour * share + scene.haze[1] * (1 - share)
    return colour.astype(np.float32)


def _read_pyramid(pyramid: list[Array], u: Array, v: Array, footprint: Array) -> Array:
    """Trilinear texture reading: u, v, footprint f32 [n] in texels of the finest level -> f32 [n,channels]."""
    top = len(pyramid) - 1
    level = np.clip(np.log2(np.maximum(footprint, 1e-6)), 0, top - 1e-3)
    floor = level.astype(np.int8)
    blend = level - floor
    result = np.empty((len(u), pyramid[0].shape[2]), np.float32)
    for index in range(int(floor.min(initial=0)), int(floor.max(initial=-1)) + 1):
        chosen = np.flatnonzero(floor == index)
        if len(chosen):
            u_fine, v_fine = u[chosen] * 0.5**index, v[chosen] * 0.5**index
            fine = _read(pyramid[index], u_fine, v_fine)
            coarse = _read(pyramid[index + 1], u_fine * 0.5, v_fine * 0.5)
            coarse -= fine
            coarse *= blend[chosen, None]
            fine += coarse
            result[chosen] = fine
    return result


def _read(texture: Array, u: Array, v: Array) -> Array:
    """Bilinear reading at texel coordinates u, v f32 [n], the texture mirrored without end -> f32 [n,channels]."""
    columns = 1024  # cv2.remap takes images, not lists, and no side above 32767
    count = len(u)
    rows = -(-count // columns)
    maps = []
    for position, side in ((u, texture.shape[1]), (v, texture.shape[0])):
        padded = np.zeros(rows * columns, np.float32)
        folded = position / np.float32(2 * side)
        padded[:count] = np.abs(folded - np.round(folded)) * np.float32(2 * side) - 0.5
        maps.append(padded.reshape(rows, columns))
    read = cv2.remap(texture, maps[0], maps[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return read.reshape(rows * columns, -1)[:count]


def _shadow_map(scene: Scene) -> Array:
    """Darkness f32 [s,s,2] in [0, 1] of the ground from above: shadows of the sun, and the dark close under things."""
    scale = SHADOW_SIDE / SHADOW_EXTENT
    cast, contact = (np.zeros((SHADOW_SIDE, SHADOW_SIDE), np.float32) for _ in range(2))
    shear = np.array([scene.sun[0], scene.sun[2]]) / max(scene.sun[1], 0.15)
    for thing in scene.things:
        if thing.foot <= 0:
            continue
        base = np.array([thing.center[0] + SHADOW_EXTENT / 2, thing.center[2]])
        tip = base - shear * thing.center[1] * 2
        start, end = (tuple(round(float(c * scale)) for c in point) for point in (base, tip))
        cv2.line(cast, start, end, 1.0, max(1, int(thing.foot * 2 * scale)), cv2.LINE_AA)
        height = max(thing.center[1] - thing.radius, 0)
        strength = float(np.exp(-height / max(thing.foot, 0.05)))
        cv2.circle(contact, start, max(1, int(thing.foot * 1.15 * scale)), strength, -1, cv2.LINE_AA)
    return np.dstack([cv2.GaussianBlur(cast, (0, 0), 1.5), cv2.GaussianBlur(contact, (0, 0), 3.0)])


def _read_shadow(shadow: Array, x: Array, z: Array) -> Array:
    """Shadow map at ground positions x, z f32 [n] metres -> f32 [n,2]; nothing is shadowed outside of the map."""
    side, scale = np.float32(SHADOW_SIDE), np.float32(SHADOW_SIDE / SHADOW_EXTENT)
    u = np.clip((x + np.float32(SHADOW_EXTENT / 2)) * scale, 0, side)
    return _read(shadow, u, np.clip(z * scale, 0, side))


def _develop(rng: Random, colour: Array) -> Image:
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


# --- Random scenes ----------------------------------------------------------------------------------------------------


def _random_scene(rng: Random, textures: Sequence[Image], height: int) -> Scene:
    """A landscape, a room or a table top, its camera and its clutter.

    height: of the picture, pixels; it sets how fine textures are.
    """
    kind = str(rng.choice(["outdoor", "room", "table"], p=[0.45, 0.37, 0.18]))
    pitch = {"outdoor": rng.normal(0.08, 0.08), "room": rng.normal(0.12, 0.1), "table": rng.uniform(0.3, 0.95)}[kind]
    camera = Camera(
        height=float(rng.uniform(0.6, 2.4)),
        pitch=float(np.clip(pitch, -0.12, 0.95)),
        roll=float(rng.normal(0, 0.025)),
        focal=float(rng.uniform(0.8, 1.7)),
    )
    skins = [_pyramid(_texture_image(rng, textures)) for _ in range(6)]
    azimuth, elevation = rng.uniform(0, 2 * np.pi), rng.uniform(0.35, 1.2)
    flat = np.cos(elevation)
    sun = _vector(np.array([flat * np.cos(azimuth), np.sin(elevation), -abs(flat * np.sin(azimuth))]))
    scene = Scene(camera, sun=sun, ambient=float(rng.uniform(0.35, 0.65)))
    pixels = height * camera.focal * 1.2  # texels a metre at depth 1 that make a texel a little smaller than a pixel
    scene.things.append(Thing(plane(1, 0.0), _material(rng, skins, pixels / rng.uniform(1.5, 4.0))))
    furnish = _furnish_room if kind == "room" else _furnish_table if kind == "table" else _furnish_landscape
    reach = furnish(rng, scene, skins, pixels)
    for _ in range(int(rng.integers(3, 26))):
        scene.things.append(_clutter(rng, scene, skins, pixels, reach))
    return scene


def _furnish_room(rng: Random, scene: Scene, skins: list[list[Array]], pixels: float) -> float:
    """Walls, most often a ceiling, and pictures on the back wall; returns the depth of the room in metres."""
    back, left, right = (float(v) for v in rng.uniform((2.5, -5, 1.2), (9, -1.2, 5)))
    top = scene.camera.height + float(rng.uniform(0.6, 2.0))
    scene.ambient = float(rng.uniform(0.6, 0.8))
    for axis, offset, distance in ((2, back, back), (0, left, 3.0), (0, right, 3.0)):
        material = _material(rng, skins, pixels / distance * rng.uniform(0.6, 1.2))
        scene.things.append(Thing(plane(axis, offset), material))
    if rng.random() < 0.85:
        scene.things.append(Thing(plane(1, top), _material(rng, skins, pixels / 2)))
    for _ in range(int(rng.integers(0, 5))):
        half = rng.uniform(0.15, 0.9, 2)
        center = (rng.uniform(left + half[0], right), rng.uniform(0.8, top), back - 0.04)
        material = _material(rng, skins, pixels / back)
        scene.things.append(
            Thing(
                box(_vector(center), (*half, 0.04), np.eye(3)), material, _vector(center), float(np.hypot(*half)) + 0.1
            )
        )
    return back


def _furnish_table(rng: Random, scene: Scene, skins: list[list[Array]], pixels: float) -> float:
    """A landscape behind, the clutter within reach; returns how far that is in metres."""
    _furnish_landscape(rng, scene, skins, pixels)
    return float(rng.uniform(2.5, 5))


def _furnish_landscape(rng: Random, scene: Scene, skins: list[list[Array]], pixels: float) -> float:
    """Sky, haze and perhaps hills and a line of trees; returns the depth in metres up to which clutter stands."""
    tint = rng.uniform((0.65, 0.72, 0.8), (0.85, 0.88, 1.0)).astype(np.float32)
    scene.sky = _sky(rng, tint)
    if rng.random() < 0.6:
        scene.haze = (float(np.exp(rng.uniform(np.log(25), np.log(400)))), tint)
    x = np.linspace(0, 1, 768)
    if rng.random() < 0.6:
        distance = float(rng.uniform(90, 300))
        profile = distance * rng.uniform(0.02, 0.16) * (0.4 + _noise(rng, (1, 768), 2.2)[0])
        scene.things.append(
            Thing(ridge(distance, profile.astype(np.float32)), _material(rng, skins, pixels / distance))
        )
    if rng.random() < 0.5:
        distance = float(rng.uniform(18, 60))
        rough = 0.55 + 0.45 * _noise(rng, (1, 768), 1.2)[0] + 0.05 * np.sin(x * rng.uniform(60, 200))
        profile = (distance * rng.uniform(0.05, 0.18) * rough).astype(np.float32)
        scene.things.append(Thing(ridge(distance, profile), _material(rng, skins, pixels / distance)))
    return float(rng.uniform(8, 35))


def _clutter(rng: Random, scene: Scene, skins: list[list[Array]], pixels: float, reach: float) -> Thing:
    """One thing somewhere in view, up to `reach` metres away, of a size that is seen."""
    camera = scene.camera
    x, z, distance = _ground_point(rng, camera, reach)
    size = float(np.clip(np.exp(rng.normal(np.log(0.1 * distance), 0.5)), 0.03, 3.0))  # half height, metres
    material = _material(rng, skins, pixels / distance * rng.uniform(0.6, 1.1))
    floats = rng.random() < 0.12
    lift = float(rng.uniform(0.0, 1.2) * camera.height) if floats else 0.0
    center = (x, size + lift, z)
    shape = str(rng.choice(["box", "sphere", "cylinder", "sheet"], p=[0.3, 0.13, 0.17, 0.4]))
    if shape == "sphere":
        return Thing(sphere(center, size), material, center, size, size * 0.9)
    if shape == "cylinder":
        radius = size * float(np.exp(rng.uniform(np.log(0.06), np.log(1.2))))
        return Thing(cylinder(center, radius, size), material, center, float(np.hypot(radius, size)), radius)
    if shape == "box":
        half = (size * float(rng.uniform(0.3, 1.6)), size, size * float(rng.uniform(0.2, 1.2)))
        rotation = (
            _rotation(*rng.uniform(-np.pi, np.pi, 3)) if floats else _rotation(0, float(rng.uniform(-np.pi, np.pi)), 0)
        )
        return Thing(box(center, half, rotation), material, center, float(np.linalg.norm(half)), min(half[0], half[2]))
    outline = OUTLINES[int(rng.integers(len(OUTLINES)))](rng)
    high = size * float(rng.uniform(1.0, 1.8))
    wide = high * outline.shape[1] / outline.shape[0] * float(rng.uniform(0.8, 1.25))
    center = (x, high + lift, z)
    yaw = float(rng.normal(0, 0.5))
    return Thing(
        billboard(center, (wide, high), yaw, outline), material, center, float(np.hypot(wide, high)), wide * 0.5
    )


def _ground_point(rng: Random, camera: Camera, reach: float) -> tuple[float, float, float]:
    """A point x, z on the ground that the camera sees within `reach` metres, and its depth; all in metres."""
    right, down, forward = camera.axes()
    px, py = rng.uniform(-0.65, 0.65) / camera.focal, rng.uniform(-0.25, 0.6) / camera.focal
    ray = [px * r + py * d + f for r, d, f in zip(right, down, forward, strict=True)]
    distance = camera.height / -ray[1] if ray[1] < -1e-3 else np.inf
    if distance > reach:
        distance = float(reach * rng.uniform(0.4, 0.97))
    return float(ray[0] * distance), float(max(ray[2] * distance, 0.3)), float(distance)


def _material(rng: Random, skins: list[list[Array]], density: float) -> Material:
    """One of the scene's textures at `density` texels a metre, in a shade of its own."""
    pyramid = skins[int(rng.integers(len(skins)))]
    tint = _vector(rng.uniform(0.55, 1.15) * rng.uniform(0.85, 1.15, 3))
    return Material(pyramid, float(density), float(rng.uniform(0.05, 0.3)), tint)


def _sky(rng: Random, tint: Array) -> Callable[[Planes], Array]:
    """A gradient from the horizon's tint to the zenith's blue, most often with clouds on a plane high above."""
    zenith = rng.uniform((0.2, 0.35, 0.6), (0.5, 0.65, 0.95)).astype(np.float32)
    cover = float(rng.uniform(0.35, 0.75)) if rng.random() < 0.75 else 2.0
    clouds = _noise(rng, (512, 512), 1.7)[..., None]
    shift = float(rng.uniform(0, 500))

    def paint(rays: Planes) -> Array:
        rise = np.clip(rays[1] / np.sqrt(_dot(rays, rays)), 0.02, 1)
        blend = np.clip(rise * 1.8, 0, 1)[..., None] ** np.float32(0.7)
        colour = tint * (1 - blend) + zenith * blend
        flat = [(r / (rise + 0.08) * 130 + shift).ravel() for r in (rays[0], rays[2])]
        density = _read(clouds, flat[0], flat[1]).reshape(*rise.shape, 1)
        opacity = np.clip((density - np.float32(cover)) * 3.5, 0, 1) * np.clip(rise * 8, 0, 1)[..., None]
        white = np.float32(1.02) - 0.25 * np.clip(density - np.float32(cover), 0, 1)
        return (colour * (1 - opacity) + white * opacity).astype(np.float32)

    return paint


# --- Outlines: f32 [h,w], solid above 0.5 -----------------------------------------------------------------------------


def _blob(rng: Random) -> Array:
    """A leafy lump: a circle whose radius wobbles, frayed by noise."""
    y, x = np.mgrid[-1:1:256j, -1:1:256j].astype(np.float32)
    angle = np.arctan2(y, x)
    radius = 0.72 + sum(rng.normal(0, 0.09) * np.cos(k * angle + rng.uniform(0, 6)) for k in range(1, 6))
    fray = rng.uniform(0, 0.5) * (_noise(rng, (256, 256), 1.3) - 0.5)
    return np.clip((radius - np.hypot(x, y) + fray) * 12 + 0.5, 0, 1).astype(np.float32)


def _tree(rng: Random) -> Array:
    """A trunk, boughs and a frayed crown with holes."""
    canvas = np.zeros((320, 224), np.float32)
    y, x = np.mgrid[0:320, 0:224].astype(np.float32)
    crown = np.zeros_like(canvas)
    for _ in range(int(rng.integers(3, 8))):
        cx, cy, r = rng.uniform(60, 164), rng.uniform(60, 170), rng.uniform(30, 60)
        crown = np.maximum(crown, 1 - np.hypot(x - cx, y - cy) / r)
    leaves = (crown + (_noise(rng, canvas.shape, 1.0) - 0.5) * rng.uniform(0.5, 1.3)) * 6
    canvas[crown > 0] = np.clip(leaves[crown > 0], 0, 1)
    cv2.line(canvas, (112, 319), (112 + int(rng.integers(-12, 13)), 110), 1.0, int(rng.integers(6, 20)), cv2.LINE_AA)
    for _ in range(4):
        end = (int(rng.integers(50, 175)), int(rng.integers(60, 150)))
        cv2.line(canvas, (112, int(rng.integers(170, 230))), end, 1.0, int(rng.integers(2, 7)), cv2.LINE_AA)
    return canvas


def _person(rng: Random) -> Array:
    """Head, body, arms and legs in some pose."""
    canvas = np.zeros((320, 144), np.float32)
    cv2.ellipse(canvas, (72, 34), (20, 28), 0, 0, 360, 1.0, -1, cv2.LINE_AA)
    body = np.array(
        [[72 - 34, 72], [72 + 34, 72], [72 + int(rng.integers(18, 32)), 190], [72 - int(rng.integers(18, 32)), 190]]
    )
    cv2.fillPoly(canvas, [body], 1.0, cv2.LINE_AA)
    cv2.line(canvas, (72, 50), (72, 80), 1.0, 18)
    for side in (-1, 1):
        foot = (72 + side * int(rng.integers(8, 44)), 312)
        cv2.line(canvas, (72 + side * 14, 180), foot, 1.0, 22, cv2.LINE_AA)
        hand = (72 + side * int(rng.integers(30, 62)), int(rng.integers(60, 210)))
        elbow = (72 + side * int(rng.integers(40, 60)), 130)
        cv2.line(canvas, (72 + side * 28, 80), elbow, 1.0, 14, cv2.LINE_AA)
        cv2.line(canvas, elbow, hand, 1.0, 13, cv2.LINE_AA)
    return canvas


def _fence(rng: Random) -> Array:
    """Pales and rails."""
    canvas = np.zeros((192, 448), np.float32)
    step, wide = int(rng.integers(18, 60)), float(rng.uniform(0.15, 0.6))
    for left in range(4, 448 - step, step):
        canvas[int(rng.integers(0, 10)) :, left : left + max(4, int(step * wide))] = 1
    for _ in range(int(rng.integers(1, 4))):
        top = int(rng.integers(10, 170))
        canvas[top : top + int(rng.integers(5, 16))] = 1
    return canvas


def _frame(rng: Random) -> Array:
    """Wheels, tubes and struts: the thin see-through structures of bicycles, chairs and machines."""
    canvas = np.zeros((256, 384), np.float32)
    hubs = [(int(rng.integers(65, 130)), 186), (int(rng.integers(255, 320)), 186)]
    thick = int(rng.integers(4, 12))
    for hub in hubs:
        radius = int(rng.integers(45, 62))
        cv2.circle(canvas, hub, radius, 1.0, thick, cv2.LINE_AA)
        for angle in np.arange(0, np.pi, np.pi / int(rng.integers(3, 9))):
            reach = (np.array([np.cos(angle), np.sin(angle)]) * radius).astype(int)
            cv2.line(
                canvas,
                (hub[0] - reach[0], hub[1] - reach[1]),
                (hub[0] + reach[0], hub[1] + reach[1]),
                1.0,
                3,
                cv2.LINE_AA,
            )
    knots = [*hubs, *((int(x), int(y)) for x, y in rng.integers((60, 20), (330, 170), (6, 2)))]
    for _ in range(int(rng.integers(7, 14))):
        a, b = rng.choice(len(knots), 2, replace=False)
        cv2.line(canvas, knots[a], knots[b], 1.0, int(rng.integers(4, 16)), cv2.LINE_AA)
    lump = np.array(knots[2:6]) + rng.integers(-15, 16, (4, 2))
    cv2.fillPoly(canvas, [cv2.convexHull(lump.astype(np.int32))], 1.0, cv2.LINE_AA)
    return canvas


def _grass(rng: Random) -> Array:
    """A tuft of bent blades."""
    canvas = np.zeros((224, 288), np.float32)
    for _ in range(int(rng.integers(15, 60))):
        foot, tip = rng.uniform(60, 230), rng.uniform(20, 268)
        s = np.linspace(0, 1, 9)
        blade = np.stack([foot + (tip - foot) * s**2, 223 - s * rng.uniform(70, 210)], 1).astype(np.int32)
        cv2.polylines(canvas, [blade], False, 1.0, int(rng.integers(3, 9)), cv2.LINE_AA)
    return canvas


OUTLINES: tuple[Callable[[Random], Array], ...] = (_blob, _tree, _person, _fence, _frame, _grass)


# --- Textures: f32 [s,s,3] in [0, 1] ----------------------------------------------------------------------------------


def _texture_image(rng: Random, textures: Sequence[Image]) -> Array:
    """A crop of a photograph (three times in four, where there are any) or a procedural texture, recoloured."""
    if textures and rng.random() < 0.72:
        image = _photograph_crop(rng, textures[int(rng.integers(len(textures)))])
    else:
        image = PATTERNS[int(rng.integers(len(PATTERNS)))](rng)
    mean, deviation = (s.ravel().astype(np.float32) for s in cv2.meanStdDev(image))
    contrast = np.float32(np.clip(rng.uniform(0.12, 0.26) / max(float(deviation.mean()), 0.04), 0.6, 2.0))
    grey = rng.uniform(0.25, 0.75) * (mean / max(float(mean.mean()), 0.05)) ** np.float32(rng.uniform(0, 1.3))
    image = (image - mean) * contrast + grey.astype(np.float32)
    return np.clip(image, 0.02, 1).astype(np.float32)


def _photograph_crop(rng: Random, photograph: Image) -> Array:
    """The sharpest of four random crops, f32 [s,s,3]: the others are often the blurred background."""
    side = min(TEXTURE_SIDE, *photograph.shape[:2])
    best, best_detail = photograph[:side, :side], -1.0
    for _ in range(4):
        y, x = (int(rng.integers(0, n - side + 1)) for n in photograph.shape[:2])
        crop = photograph[y : y + side, x : x + side]
        detail = float(cv2.Laplacian(np.ascontiguousarray(crop[::2, ::2, 1]), cv2.CV_32F).var())
        if detail > best_detail:
            best, best_detail = crop, detail
    return np.ascontiguousarray(np.rot90(best, int(rng.integers(4)))).astype(np.float32) / 255


def _two_colours(rng: Random, share: Array) -> Array:
    """share f32 [s,s] in [0, 1] blends two random colours: f32 [s,s,3]."""
    first, second = rng.uniform(0.1, 0.95, (2, 3)).astype(np.float32)
    return first + share[..., None] * (second - first)


def _worn(rng: Random, share: Array) -> Array:
    """A two-coloured pattern with the stains of an old surface."""
    side = share.shape[0]
    stain = _noise(rng, (side, side), 1.3)[..., None]
    return _two_colours(rng, share) * (1 - np.float32(rng.uniform(0.1, 0.5)) * stain)


def _grid(side: int = TEXTURE_SIDE) -> tuple[Array, Array]:
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    return y, x


def _clouded(rng: Random) -> Array:
    return _two_colours(rng, _noise(rng, (TEXTURE_SIDE, TEXTURE_SIDE), float(rng.uniform(0.6, 1.6))))


def _bricks(rng: Random) -> Array:
    y, x = _grid()
    high, wide = float(rng.uniform(20, 48)), float(rng.uniform(48, 128))
    row = np.floor(y / high)
    across = x / wide + 0.5 * (row % 2)
    tone = rng.random((64, 64), np.float32)[row.astype(int) % 64, np.floor(across).astype(int) % 64]
    edge = np.minimum((y % high), (across % 1) * wide) < rng.uniform(2, 5)
    return _worn(rng, np.where(edge, 1, 0.5 * tone).astype(np.float32))


def _checks(rng: Random) -> Array:
    y, x = _grid()
    step = float(rng.uniform(16, 80))
    return _worn(rng, ((np.floor(x / step) + np.floor(y / step)) % 2).astype(np.float32))


def _stripes(rng: Random) -> Array:
    y, x = _grid()
    angle, step = rng.uniform(0, np.pi), rng.uniform(10, 60)
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * np.float32(2 * np.pi / step))
    return _worn(rng, np.clip(wave * 4 + rng.uniform(-3, 3), 0, 1).astype(np.float32))


def _wood(rng: Random) -> Array:
    y, x = _grid()
    warp = _noise(rng, (TEXTURE_SIDE, TEXTURE_SIDE), 2.0) * rng.uniform(40, 120)
    rings = 0.5 + 0.5 * np.sin((np.hypot(x * 0.15, y - rng.uniform(-200, 600)) + warp) / np.float32(rng.uniform(2, 6)))
    fibre = cv2.GaussianBlur(rng.random(x.shape, np.float32), (0, 0), sigmaX=12, sigmaY=0.6)
    return _two_colours(rng, np.clip(0.6 * rings + (fibre - 0.5) * 3 + 0.2, 0, 1).astype(np.float32))


def _text(rng: Random) -> Array:
    page = np.zeros((TEXTURE_SIDE, TEXTURE_SIDE), np.uint8)
    scale = float(rng.uniform(0.45, 1.1))
    for line in range(int(26 * scale), TEXTURE_SIDE, int(34 * scale)):
        letters = "".join(chr(c) for c in rng.choice([*range(97, 123), *range(65, 91), 32, 32, 32, 46], 40))
        cv2.putText(
            page,
            letters,
            (int(rng.integers(-40, 8)), line),
            cv2.FONT_HERSHEY_DUPLEX,
            scale,
            255,
            1 + int(scale > 0.8),
            cv2.LINE_AA,
        )
    return _worn(rng, page.astype(np.float32) / 255)


def _pebbles(rng: Random) -> Array:
    canvas = np.full((TEXTURE_SIDE, TEXTURE_SIDE, 3), 0.4, np.float32)
    palette = rng.uniform(0.1, 0.95, (12, 3))
    for radius in -np.sort(-_power_law(rng, 3, 60, 700)):
        x, y = (int(v) for v in rng.integers(0, TEXTURE_SIDE, 2))
        colour = tuple(float(c) for c in palette[int(rng.integers(12))] * rng.uniform(0.8, 1.1))
        cv2.ellipse(
            canvas,
            (x, y),
            (int(radius), int(radius * rng.uniform(0.5, 1)) + 1),
            int(rng.integers(180)),
            0,
            360,
            colour,
            -1,
            cv2.LINE_AA,
        )
    return canvas


PATTERNS: tuple[Callable[[Random], Array], ...] = (_clouded, _bricks, _checks, _stripes, _wood, _text, _pebbles)


def _noise(rng: Random, shape: tuple[int, int], slope: float) -> Array:
    """Noise f32 `shape` in [0, 1] whose amplitude falls by `slope` powers of two with every octave."""
    total = np.zeros(shape, np.float32)
    longest = max(shape)
    cells = 3
    while cells < longest:
        grid = tuple(max(1, cells * n // longest) for n in shape)
        layer = rng.standard_normal(grid, np.float32)
        interpolation = cv2.INTER_CUBIC if cells < longest // 2 else cv2.INTER_LINEAR
        total += cv2.resize(layer, shape[::-1], interpolation=interpolation) * np.float32(cells**-slope)
        cells *= 2
    low, high = np.percentile(total, (1, 99))
    return np.clip((total - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)


def _pyramid(texture: Array) -> list[Array]:
    """A texture and its halvings down to a few texels."""
    levels = [texture]
    while min(levels[-1].shape[:2]) > 4:
        high, wide = levels[-1].shape[:2]
        smaller = cv2.resize(levels[-1], (wide // 2, high // 2), interpolation=cv2.INTER_AREA)
        levels.append(smaller.reshape(high // 2, wide // 2, -1))
    return levels


@functools.lru_cache(maxsize=1)
def _grain_pyramid() -> list[Array]:
    """The fine grain all materials share, f32 [s,s,1] in [0, 1]."""
    return _pyramid(_noise(np.random.default_rng(7), (512, 512), 0.35)[..., None])


# --- Dead leaves ------------------------------------------------------------------------------------------------------


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


def _power_law(rng: Random, low: float, high: float, count: int) -> NDArray[np.float64]:
    """Radii between low and high with a density proportional to r^-3."""
    share = rng.random(count)
    return (low**-2 - share * (low**-2 - high**-2)) ** -0.5


# --- Geometry ---------------------------------------------------------------------------------------------------------


def _window(camera: Camera, thing: Thing, rows: int, columns: int) -> tuple[slice, slice]:
    """The part of the picture a thing's bounding sphere can cover, as slices; everything when it reaches the camera."""
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


def _nearest(inverse: Array) -> Array:
    """Inverse depth per ray -> per pixel: that of its nearest ray."""
    rows = np.maximum.reduce([inverse[k::SUPERSAMPLE] for k in range(SUPERSAMPLE)])
    return np.maximum.reduce([rows[:, k::SUPERSAMPLE] for k in range(SUPERSAMPLE)])


def _cut(planes: Planes, window: tuple[slice, slice]) -> Planes:
    return planes[0][window], planes[1][window], planes[2][window]


def _dot(a: Sequence[Array], b: Sequence[Array] | Vector) -> Array:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _rotation(pitch: float, yaw: float, roll: float) -> NDArray[np.float64]:
    """[3,3], turning about x, then z, then y."""
    turns = [cv2.Rodrigues(np.array(axis, np.float64))[0] for axis in ((pitch, 0, 0), (0, 0, roll), (0, yaw, 0))]
    return turns[2] @ turns[1] @ turns[0]


def _vector(values: Sequence[float] | NDArray[np.floating]) -> Vector:
    x, y, z = (float(v) for v in values)
    return x, y, z


def _shrink(picture: Image) -> Image:
    """At most MAX_TEXTURE_SIDE pixels long, area-averaged."""
    scale = MAX_TEXTURE_SIDE / max(picture.shape[:2])
    if scale >= 1:
        return np.ascontiguousarray(picture)
    size = (round(picture.shape[1] * scale), round(picture.shape[0] * scale))
    return cv2.resize(np.ascontiguousarray(picture), size, interpolation=cv2.INTER_AREA)
