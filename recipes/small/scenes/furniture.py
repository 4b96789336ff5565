"""A seed becomes a piece of furniture, a machine, a plant or a person: a list of things that belong together.

Every function takes (rng, place) and builds around the place's foot, in its own axes: x along its front, y up, z away.
Sizes are real ones, so that how large something looks says how near it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recipes.small.scenes.geometry import Vector, billboard, box, cylinder, ellipsoid, rotation, tube, vector
from recipes.small.scenes.outlines import wheel
from recipes.small.scenes.textures import Material, Random
from recipes.small.scenes.tracing import Thing

Point = Sequence[float] | NDArray[np.float64]


@dataclass(frozen=True)
class Place:
    """A piece's place: its foot, its turn about the vertical in radians, metres per unit, its materials."""

    foot: Vector
    yaw: float
    scale: float
    materials: Sequence[Material]

    def at(self, point: Point) -> Vector:
        """A point in the piece's axes as a world point."""
        return vector(np.array(self.foot) + self.scale * (rotation(0, self.yaw, 0) @ np.array(point)))

    def skin(self, rng: Random) -> Material:
        """One of the piece's few materials."""
        return self.materials[int(rng.integers(len(self.materials)))]

    def block(self, skin: Material, center: Point, half: Point, foot: float = 0.0) -> Thing:
        """A box along the piece's axes."""
        size = vector(self.scale * np.array(half))
        middle = self.at(center)
        cast = box(middle, size, rotation(0, self.yaw, 0))
        return Thing(cast, skin, middle, float(np.linalg.norm(size)), foot * self.scale)

    def bar(self, skin: Material, start: Point, end: Point, radius: float, foot: float = 0.0) -> Thing:
        """A round bar."""
        first, last = self.at(start), self.at(end)
        middle = vector((np.array(first) + last) / 2)
        reach = float(np.linalg.norm(np.array(last) - first)) / 2 + radius * self.scale
        return Thing(tube(first, last, radius * self.scale), skin, middle, reach, foot * self.scale)

    def lump(self, skin: Material, center: Point, half: Point, turn: Vector = (0, 0, 0), foot: float = 0.0) -> Thing:
        """An ellipsoid, turned in the piece's axes."""
        middle, size = self.at(center), vector(self.scale * np.array(half))
        cast = ellipsoid(middle, size, rotation(0, self.yaw, 0) @ rotation(*turn))
        return Thing(cast, skin, middle, max(size), foot * self.scale)

    def drum(self, skin: Material, center: Point, radius: float, half_height: float, foot: float = 0.0) -> Thing:
        """An upright cylinder."""
        middle, r, h = self.at(center), radius * self.scale, half_height * self.scale
        return Thing(cylinder(middle, r, h), skin, middle, float(np.hypot(r, h)), foot * self.scale)

    def disc(self, rng: Random, skin: Material, center: Point, radius: float, foot: float = 0.0) -> Thing:
        """A wheel upright in the piece's x-y plane."""
        middle, r = self.at(center), radius * self.scale
        cast = billboard(middle, (r, r), -self.yaw, wheel(rng))
        return Thing(cast, skin, middle, r * 1.42, foot * self.scale)


def machine(rng: Random, place: Place) -> list[Thing]:
    """Two wheels, a frame of bars and lumps between them, bars across: a bicycle, a motorcycle, a cart."""
    base, radius = float(rng.uniform(0.5, 0.8)), float(rng.uniform(0.24, 0.36))
    tyre = place.skin(rng)
    parts = [place.disc(rng, tyre, (s * base, radius, 0), radius, foot=0.2) for s in (-1, 1)]
    knots = rng.uniform((-base, 0.25, -0.1), (base, 0.95, 0.1), (7, 3))
    knots[:2] = [(-base, radius, 0), (base, radius, 0)]
    for a, b in [(0, 2), (1, 3), (2, 3), *rng.integers(0, 7, (int(rng.integers(3, 10)), 2))]:
        parts.append(place.bar(place.skin(rng), knots[a], knots[b], float(rng.uniform(0.012, 0.05)), foot=0.06))
    for _ in range(int(rng.integers(0, 6))):
        center = rng.uniform((-0.6 * base, 0.3, -0.05), (0.6 * base, 0.85, 0.05))
        half = rng.uniform((0.08, 0.05, 0.05), (0.35, 0.16, 0.14))
        parts.append(place.lump(place.skin(rng), center, half, (0, 0, float(rng.normal(0, 0.3))), foot=0.15))
    for x in rng.uniform(-base, base, int(rng.integers(0, 3))):
        y = float(rng.uniform(0.8, 1.1))
        parts.append(place.bar(place.skin(rng), (x, y, -0.3), (x, y, 0.3), 0.018))
    if rng.random() < 0.6:
        engine = (float(rng.uniform(-0.2, 0.2)), float(rng.uniform(0.3, 0.5)), 0.0)
        parts.append(place.block(place.skin(rng), engine, rng.uniform((0.1, 0.1, 0.08), (0.25, 0.22, 0.15)), foot=0.15))
    return parts


def table(rng: Random, place: Place) -> list[Thing]:
    """A top on four legs, perhaps with things on it; with a back it is a chair, long and low it is a bench."""
    half_x, high, half_z = (float(v) for v in rng.uniform((0.2, 0.38, 0.2), (0.8, 0.8, 0.45)))
    skin, leg = place.skin(rng), place.skin(rng)
    thick = float(rng.uniform(0.012, 0.04))
    parts = [place.block(skin, (0, high, 0), (half_x, thick, half_z), foot=min(half_x, half_z))]
    width = float(rng.uniform(0.015, 0.04))
    for x, z in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
        corner = (x * (half_x - width), high / 2, z * (half_z - width))
        parts.append(place.block(leg, corner, (width, high / 2, width), foot=width))
    if rng.random() < 0.4:
        top = float(rng.uniform(0.3, 0.6))
        for x in np.linspace(-1, 1, int(rng.integers(2, 6))):
            foot = (x * (half_x - width), high + top / 2, half_z - width)
            parts.append(place.block(leg, foot, (width, top / 2, width)))
        parts.append(place.block(skin, (0, high + top * 0.8, half_z), (half_x, top * 0.2, thick)))
    else:
        parts += _ware(rng, place, high + thick, (half_x * 0.85, half_z * 0.85), int(rng.integers(0, 6)))
    return parts


def shelf(rng: Random, place: Place) -> list[Thing]:
    """A shelf: uprights and boards, full of boxes, cans and balls."""
    half_x, high, half_z = (float(v) for v in rng.uniform((0.35, 0.8, 0.15), (1.3, 2.2, 0.3)))
    skin = place.skin(rng)
    parts = [place.block(skin, (s * half_x, high / 2, 0), (0.02, high / 2, half_z), foot=half_z) for s in (-1, 1)]
    if rng.random() < 0.5:
        parts.append(place.block(place.skin(rng), (0, high / 2, half_z), (half_x, high / 2, 0.01)))
    step = float(rng.uniform(0.28, 0.5))
    for y in np.arange(0.05, high, step):
        parts.append(place.block(skin, (0, y, 0), (half_x, 0.015, half_z), foot=half_z))
        parts += _ware(
            rng, place, float(y) + 0.015, (half_x * 0.9, half_z * 0.7), int(rng.integers(1, 7)), tallest=step * 0.45
        )
    return parts


def cabinet(rng: Random, place: Place) -> list[Thing]:
    """A closed box with doors and handles, and things on it."""
    half_x, half_y, half_z = (float(v) for v in rng.uniform((0.25, 0.35, 0.2), (0.9, 1.05, 0.4)))
    parts = [place.block(place.skin(rng), (0, half_y, 0), (half_x, half_y, half_z), foot=half_z)]
    door, count = place.skin(rng), int(rng.integers(1, 4))
    for k in range(count):
        x = half_x * ((2 * k + 1) / count - 1)
        parts.append(place.block(door, (x, half_y, -half_z), (half_x / count * 0.94, half_y * 0.94, 0.012)))
        handle = (x + half_x / count * 0.7, half_y * 1.2, -half_z - 0.03)
        parts.append(place.bar(place.skin(rng), handle, (handle[0], half_y * 0.95, handle[2]), 0.012))
    return parts + _ware(rng, place, 2 * half_y, (half_x * 0.85, half_z * 0.8), int(rng.integers(0, 4)))


def boxes(rng: Random, place: Place) -> list[Thing]:
    """A pile of cartons."""
    parts, y = [], 0.0
    for _ in range(int(rng.integers(1, 5))):
        half = rng.uniform((0.12, 0.08, 0.12), (0.45, 0.3, 0.4))
        slide = rng.normal(0, 0.05, 2)
        foot = float(min(half[0], half[2])) if y == 0 else 0.0
        parts.append(place.block(place.skin(rng), (slide[0], y + half[1], slide[1]), half, foot=foot))
        y += 2 * float(half[1])
    return parts


def person(rng: Random, place: Place) -> list[Thing]:
    """A standing person with a head, hair, a body, arms and legs."""
    coat, trousers, skin, hair = (place.skin(rng) for _ in range(4))
    lean, stride = rng.normal(0, 0.04, 2), float(rng.uniform(0.05, 0.2))
    parts = [
        place.lump(skin, (lean[0], 1.6, lean[1]), (0.085, 0.12, 0.1)),
        place.lump(hair, (lean[0], 1.66, lean[1] + 0.03), (0.095, 0.09, 0.1)),
        place.bar(skin, (lean[0], 1.4, 0), (lean[0], 1.55, 0), 0.05),
        place.lump(coat, (lean[0] / 2, 1.2, 0), (float(rng.uniform(0.19, 0.26)), 0.3, 0.14)),
        place.lump(coat, (0, 0.98, 0), (0.19, 0.2, 0.13)),
    ]
    for side in (-1, 1):
        knee = (side * 0.11, 0.5, float(rng.normal(0, 0.08)))
        parts.append(place.bar(trousers, (side * 0.09, 0.92, 0), knee, 0.085))
        parts.append(place.bar(trousers, knee, (side * stride, 0.06, 0), 0.065, foot=0.12))
        elbow = (side * float(rng.uniform(0.27, 0.4)), float(rng.uniform(1.05, 1.3)), float(rng.normal(0, 0.1)))
        hand = (side * float(rng.uniform(0.1, 0.5)), float(rng.uniform(0.8, 1.5)), float(rng.uniform(-0.3, 0.1)))
        parts.append(place.bar(coat, (side * 0.2, 1.38, 0), elbow, 0.055))
        parts.append(place.bar(coat, elbow, hand, 0.045))
    return parts


def plant(rng: Random, place: Place) -> list[Thing]:
    """Long bent leaves out of a pot."""
    pot, leaf = place.skin(rng), place.skin(rng)
    high, wide = float(rng.uniform(0.1, 0.2)), float(rng.uniform(0.12, 0.22))
    parts = [place.drum(pot, (0, high, 0), wide, high, foot=wide)]
    for _ in range(int(rng.integers(5, 14))):
        angle, spread, rise = rng.uniform((0, 0.1, 0.25), (2 * np.pi, 0.9, 1.1))
        thick = float(rng.uniform(0.015, 0.045))
        s = np.linspace(0, 1, 4)[:, None]
        out = np.array([np.cos(angle), 0, np.sin(angle)]) * spread
        bend = [(0, 2 * high, 0)] + s * out + np.array([0, 1, 0]) * (s - 0.4 * s**2) * rise
        parts += [place.bar(leaf, bend[k], bend[k + 1], thick * (1 - 0.3 * k)) for k in range(3)]
    return parts


def lamp(rng: Random, place: Place) -> list[Thing]:
    """A shade or a sign on a pole."""
    high = float(rng.uniform(1.0, 2.4))
    parts = [place.bar(place.skin(rng), (0, 0, 0), (0, high, 0), float(rng.uniform(0.012, 0.04)), foot=0.08)]
    if rng.random() < 0.5:
        return [*parts, place.drum(place.skin(rng), (0, high, 0), float(rng.uniform(0.1, 0.25)), 0.14)]
    return [*parts, place.block(place.skin(rng), (0, high, 0), rng.uniform((0.1, 0.1, 0.01), (0.4, 0.3, 0.03)))]


def car(rng: Random, place: Place) -> list[Thing]:
    """A rounded body, a cabin with dark panes and four wheels."""
    body, glass, tyre = (place.skin(rng) for _ in range(3))
    long, wide = float(rng.uniform(1.6, 2.3)), float(rng.uniform(0.75, 0.9))
    parts = [
        place.block(body, (0, 0.62, 0), (long, 0.32, wide), foot=wide),
        place.lump(body, (0, 0.75, 0), (long * 1.05, 0.3, wide)),
        place.block(glass, (float(rng.uniform(-0.3, 0.3)), 1.15, 0), (long * 0.5, 0.26, wide * 0.85)),
        place.block(body, (0, 1.43, 0), (long * 0.45, 0.03, wide * 0.85)),
    ]
    for x in (-0.62, 0.62):
        parts += [place.disc(rng, tyre, (x * long, 0.33, z * wide * 1.03), 0.34) for z in (-1, 1)]
    return parts


def trunk(rng: Random, place: Place) -> list[Thing]:
    """A bare tree: a trunk and forked boughs."""
    skin, thick, high = place.skin(rng), float(rng.uniform(0.06, 0.3)), float(rng.uniform(1.2, 3.0))
    fork = np.array([rng.normal(0, 0.15), high, rng.normal(0, 0.15)])
    parts = [place.bar(skin, (0, -0.1, 0), fork, thick, foot=thick)]
    for _ in range(int(rng.integers(3, 8))):
        start = fork * float(rng.uniform(0.6, 1))
        tip = start + rng.normal((0, 1.1, 0), (0.9, 0.5, 0.9))
        parts.append(place.bar(skin, start, tip, thick * float(rng.uniform(0.2, 0.6))))
        parts.append(place.bar(skin, tip, tip + rng.normal((0, 0.6, 0), 0.5), thick * 0.2))
    return parts


def ware(rng: Random, place: Place) -> list[Thing]:
    """Cups, cans, books and fruit as they stand on a table, half a metre around the place."""
    return _ware(rng, place, 0.0, (0.5, 0.5), int(rng.integers(2, 9)))


INDOORS: tuple[Callable[[Random, Place], list[Thing]], ...] = (
    machine,
    table,
    table,
    cabinet,
    boxes,
    person,
    plant,
    lamp,
)
OUTDOORS: tuple[Callable[[Random, Place], list[Thing]], ...] = (machine, car, person, trunk, trunk, lamp, boxes, plant)


def _ware(
    rng: Random, place: Place, y: float, half: tuple[float, float], count: int, *, tallest: float = 0.2
) -> list[Thing]:
    """`count` small things at height y, up to `half` from the middle in x and z."""
    parts = []
    for _ in range(count):
        x, z = (float(v) for v in rng.uniform(-1, 1, 2) * half)
        rise = float(rng.uniform(0.2, 1) * tallest)
        wide = float(rng.uniform(0.3, 0.9) * min(tallest, rise * 2))
        skin, shape, foot = place.skin(rng), rng.random(), wide if y == 0 else 0.0
        if shape < 0.5:
            parts.append(place.block(skin, (x, y + rise, z), (wide, rise, wide * float(rng.uniform(0.3, 1))), foot))
        elif shape < 0.8:
            parts.append(place.drum(skin, (x, y + rise, z), wide * 0.7, rise, foot))
        else:
            parts.append(place.lump(skin, (x, y + wide, z), (wide, wide, wide), foot=foot))
    return parts
