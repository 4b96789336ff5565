"""Rays f32 [H,W] x 3 meet surfaces: the places, distances and normals.

World axes: x right, y up, z forward, metres; the camera is at (0, height, 0). A ray is
`right * x + down * y + forward` with x and y in units of the focal length, so that the distance along it is the depth.
A surface is a function `cast(origin, rays) -> Hits`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]  # f32 arrays; numpy's stubs widen every product with a Python float to f64
Vector = tuple[float, float, float]
Planes = tuple[Array, Array, Array]  # three arrays of one shape: the x, y and z parts of vectors


@dataclass(frozen=True)
class Camera:
    """A pinhole camera: metres, radians; `focal` in image heights."""

    height: float = 1.5
    pitch: float = 0.1
    roll: float = 0.0
    focal: float = 1.0
    yaw: float = 0.0

    def axes(self) -> tuple[Vector, Vector, Vector]:
        """Right, down and forward as world vectors; a positive pitch looks at the ground, a positive yaw right."""
        cos_p, sin_p, cos_r, sin_r = np.cos(self.pitch), np.sin(self.pitch), np.cos(self.roll), np.sin(self.roll)
        down = np.array([0.0, -cos_p, -sin_p])
        right = np.array([1.0, 0.0, 0.0])
        rolled_right, rolled_down = cos_r * right + sin_r * down, cos_r * down - sin_r * right
        turn = rotation(0.0, self.yaw, 0.0)
        return vector(turn @ rolled_right), vector(turn @ rolled_down), vector(turn @ (0.0, -sin_p, cos_p))

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


Surface = Callable[[Vector, Planes], Hits]


def plane(axis: int, offset: float) -> Surface:
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


def sphere(center: Vector, radius: float) -> Surface:
    """A sphere; u and v are arc lengths along the equator and the meridian."""
    return ellipsoid(center, (radius, radius, radius), np.eye(3))


def ellipsoid(center: Vector, half: Vector, turn: NDArray[np.float64]) -> Surface:
    """An ellipsoid of half axes `half` metres along the columns of the rotation `turn` [3,3]."""
    squeeze = (turn / np.array(half)).astype(np.float32)  # world -> the unit sphere's coordinates, as columns
    mean = np.float32(np.prod(half) ** (1 / 3))

    def cast(origin: Vector, rays: Planes) -> Hits:
        start = (np.array(origin) - np.array(center)).astype(np.float32) @ squeeze
        local = [squeeze[0, k] * rays[0] + squeeze[1, k] * rays[1] + squeeze[2, k] * rays[2] for k in range(3)]
        a, b = dot(local, local), dot(local, start)
        discriminant = b * b - a * (start @ start - 1)
        met = (discriminant > 0) & (b < 0)
        depth = (-b - np.sqrt(np.maximum(discriminant, 0))) / a
        point = [o + depth * r for o, r in zip(start, local, strict=True)]
        raw = [dot(point, squeeze[k]) for k in range(3)]
        length = np.sqrt(np.maximum(dot(raw, raw), np.float32(1e-12)))
        nx, ny, nz = (r / length for r in raw)
        longitude, latitude = np.arctan2(point[0], -point[2]), np.arcsin(np.clip(point[1], -1, 1))
        return Hits(np.where(met, depth, np.inf), (nx, ny, nz), longitude * mean, latitude * mean)

    return cast


def box(center: Vector, half: Vector, rotation: NDArray[np.float64]) -> Surface:
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


def cylinder(center: Vector, radius: float, half_height: float) -> Surface:
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


def tube(start: Vector, end: Vector, radius: float) -> Surface:
    """A round bar from `start` to `end` with half spheres at both ends, all in metres; v runs along it."""
    first, last = np.array(start), np.array(end)
    length = float(np.linalg.norm(last - first))
    along = (last - first) / max(length, 1e-6)
    caps = sphere(start, radius), sphere(end, radius)
    across = np.cross(along, (0.3, 0.8, 0.5) if abs(along[1]) < 0.9 else (1.0, 0.0, 0.2))

    def cast(origin: Vector, rays: Planes) -> Hits:
        offset = np.array(origin) - first
        ray_along, start_along = dot(rays, vector(along)), np.float32(offset @ along)
        flat = [r - ray_along * np.float32(d) for r, d in zip(rays, along, strict=True)]
        base = (offset - start_along * along).astype(np.float32)
        a = np.maximum(dot(flat, flat), np.float32(1e-9))
        b = dot(flat, base)
        discriminant = b * b - a * (base @ base - np.float32(radius) ** 2)
        side = (-b - np.sqrt(np.maximum(discriminant, 0))) / a
        v = start_along + side * ray_along
        on_side = (discriminant > 0) & (b < 0) & (v > 0) & (v < length)
        one, two = (cap(origin, rays) for cap in caps)
        depth = np.where(on_side, side, np.minimum(one.depth, two.depth))
        centers = [np.where(one.depth < two.depth, o, t) for o, t in zip(first, last, strict=True)]
        point = [np.float32(o) + np.where(np.isfinite(depth), depth, 0) * r for o, r in zip(origin, rays, strict=True)]
        axis = [
            np.where(on_side, np.float32(f) + v * np.float32(d), c)
            for f, d, c in zip(first, along, centers, strict=True)
        ]
        nx, ny, nz = ((p - q).astype(np.float32) / np.float32(radius) for p, q in zip(point, axis, strict=True))
        u = np.arcsin(np.clip(dot((nx, ny, nz), vector(across)), -1, 1)) * radius
        return Hits(depth.astype(np.float32), (nx, ny, nz), u.astype(np.float32), v)

    return cast


def billboard(center: Vector, half: tuple[float, float], yaw: float, outline: Array) -> Surface:
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


def ridge(distance: float, profile: Array) -> Surface:
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


def rotation(pitch: float, yaw: float, roll: float) -> NDArray[np.float64]:
    """[3,3], turning about x, then z, then y."""
    turns = [cv2.Rodrigues(np.array(axis, np.float64))[0] for axis in ((pitch, 0, 0), (0, 0, roll), (0, yaw, 0))]
    return turns[2] @ turns[1] @ turns[0]


def vector(values: Sequence[float] | NDArray[np.floating]) -> Vector:
    x, y, z = (float(v) for v in values)
    return x, y, z


def dot(a: Sequence[Array], b: Sequence[Array] | Vector) -> Array:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
