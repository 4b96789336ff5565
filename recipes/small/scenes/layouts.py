"""A seed becomes a scene: a landscape, a street, a room, a table top or something close by.

Anything that must not give depth away varies independently: the camera's height and direction, how textured and how
bright a surface is, whether there is a sky, and what is where in the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from recipes.small.scenes.furniture import INDOORS, OUTDOORS, Place, cabinet, person, plant, shelf, ware
from recipes.small.scenes.geometry import (
    Array,
    Camera,
    Planes,
    billboard,
    box,
    cylinder,
    dot,
    ellipsoid,
    plane,
    ridge,
    rotation,
    sphere,
    vector,
)
from recipes.small.scenes.outlines import OUTLINES
from recipes.small.scenes.textures import Image, Material, Random, mip_pyramid, noise, read, texture_image
from recipes.small.scenes.tracing import Scene, Thing

KINDS = {"outdoor": 0.3, "room": 0.4, "table": 0.15, "close": 0.15}  # how often


@dataclass(frozen=True)
class Kit:
    """The parts of a scene: its random numbers, its few textures, and how fine they are.

    pixels: texels a metre at depth 1 that make a texel a little smaller than a pixel.
    """

    rng: Random
    skins: list[list[Array]]
    pixels: float

    def material(self, distance: float) -> Material:
        """One of the textures in its own shade, about a texel a pixel at `distance` metres."""
        rng = self.rng
        tint = vector(rng.uniform(0.4, 1.2) * rng.uniform(0.88, 1.12, 3))
        gloss = float(rng.uniform(0.1, 0.8)) if rng.random() < 0.25 else 0.0
        density = float(self.pixels / distance * rng.uniform(0.5, 1.2))
        return Material(
            self.skins[int(rng.integers(len(self.skins)))], density, float(rng.uniform(0, 0.25)), tint, gloss
        )

    def place(self, x: float, z: float, *, y: float = 0.0, yaw: float | None = None, scale: float = 1.0) -> Place:
        """A place for a piece of furniture with three to six materials, turned randomly unless `yaw` is given."""
        turn = float(self.rng.uniform(-np.pi, np.pi)) if yaw is None else yaw
        materials = [self.material(float(np.hypot(x, z))) for _ in range(int(self.rng.integers(3, 7)))]
        return Place((x, y, z), turn, scale, materials)


def random_scene(rng: Random, textures: Sequence[Image], height: int) -> Scene:
    """A random scene with its camera and contents. height: of the picture, pixels."""
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    pitch, stand = {
        "outdoor": (rng.normal(0.06, 0.1), rng.uniform(0.5, 3.0)),
        "room": (rng.normal(0.14, 0.13), rng.uniform(0.5, 1.9)),
        "table": (rng.uniform(0.05, 0.95), rng.uniform(0.25, 0.8)),
        "close": (rng.normal(0.05, 0.12), rng.uniform(0.9, 1.7)),
    }[kind]
    camera = Camera(
        height=float(stand),
        pitch=float(np.clip(pitch, -0.2, 0.95)),
        roll=float(rng.normal(0, 0.03)),
        focal=float(np.exp(rng.uniform(np.log(0.75), np.log(2.1)))),
        yaw=float(rng.normal(0, 0.3)),
    )
    kit = Kit(rng, [mip_pyramid(texture_image(rng, textures)) for _ in range(9)], height * camera.focal * 1.2)
    azimuth, elevation = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 1.3)
    flat = np.cos(elevation)
    sun = vector(np.array([flat * np.cos(azimuth), np.sin(elevation), -abs(flat * np.sin(azimuth))]))
    scene = Scene(camera, sun=sun, ambient=float(rng.uniform(0.35, 0.65)))
    scene.things.append(Thing(plane(1, 0.0), kit.material(float(rng.uniform(1.5, 4.0)))))
    {"outdoor": _outdoors, "room": _room, "table": _table_top, "close": _close_by}[kind](kit, scene)
    return scene


def _room(kit: Kit, scene: Scene) -> None:
    """Walls, things along them, something in the middle, and clutter."""
    rng = kit.rng
    back = _walls(kit, scene, rng.uniform((2.5, -5, 1.0), (9, -1.0, 5)), float(rng.uniform(0.9, 2.6)))
    reach = back * 0.85
    if rng.random() < 0.75:
        x, z, _ = _ground_point(rng, scene.camera, reach, narrow=0.35)
        maker = INDOORS[int(rng.integers(len(INDOORS)))]
        scene.things += maker(rng, kit.place(x, z, yaw=float(rng.normal(0, 0.5)), scale=float(rng.uniform(0.8, 1.25))))
    for _ in range(int(rng.integers(0, 4))):
        x, z, _ = _ground_point(rng, scene.camera, reach)
        scene.things += INDOORS[int(rng.integers(len(INDOORS)))](rng, kit.place(x, z))
    for _ in range(int(rng.choice([0, 2, 5, 12]))):
        scene.things.append(_clutter(kit, scene.camera, back))


def _walls(kit: Kit, scene: Scene, sides: Array, headroom: float) -> float:
    """A room with a back, a left and a right wall at `sides` metres; returns the distance of the back wall."""
    rng = kit.rng
    back, left, right = (float(v) for v in sides)
    top = scene.camera.height + headroom
    scene.ambient = float(rng.uniform(0.45, 0.85))
    scene.corners = [(1, 0.0), (2, back), (0, left), (0, right)]
    for axis, offset, distance in ((2, back, back), (0, left, 3.0), (0, right, 3.0)):
        scene.things.append(Thing(plane(axis, offset), kit.material(distance)))
    if rng.random() < 0.6:  # photographs seldom show a ceiling, and hardly ever a near one
        scene.things.append(Thing(plane(1, top), kit.material(2)))
        scene.corners.append((1, top))
    if rng.random() < 0.6:
        spot = vector(rng.uniform((left, top * 0.7, 0), (right, top, back)))
        scene.lamp = (spot, float(rng.uniform(0.4, 1.2) * back))
    for _ in range(int(rng.integers(0, 5))):
        half = rng.uniform(0.15, 0.9, 2)
        center = vector((rng.uniform(left + half[0], right), rng.uniform(0.8, max(top, 1.0)), back - 0.04))
        cast = box(center, vector((*half, 0.04)), np.eye(3))
        scene.things.append(Thing(cast, kit.material(back), center, float(np.hypot(*half)) + 0.1))
    x = left if rng.random() < 0.7 else right
    while x < right:
        x += float(rng.uniform(0.6, 2.2))
        maker = (shelf, shelf, cabinet, plant)[int(rng.integers(4))]
        scene.things += maker(rng, kit.place(x, back - 0.4, yaw=0.0, scale=float(rng.uniform(0.8, 1.2))))
    return back


def _table_top(kit: Kit, scene: Scene) -> None:
    """Small things close by: on a table whose edge is visible, or on a ground that reaches to a wall or far away."""
    rng = kit.rng
    scene.span = 5.0
    reach = float(rng.uniform(0.8, 2.2))
    if rng.random() < 0.3:
        _landscape(kit, scene)
    else:
        back = float(rng.uniform(1.1, 2.5) * reach)
        _walls(kit, scene, np.array([back, -rng.uniform(0.6, 3), rng.uniform(0.6, 3)]), float(rng.uniform(0.9, 2.2)))
    if rng.random() < 0.4:
        floor = -float(rng.uniform(0.4, 0.8))
        scene.things[0] = Thing(plane(1, floor), kit.material(2.0))
        half = (float(rng.uniform(0.5, 1.5)), 0.03, reach * 0.55)
        board = kit.material(1.0)
        scene.things.append(Thing(box((0, -0.03, half[2]), half, rotation(0, float(rng.normal(0, 0.1)), 0)), board))
    for _ in range(int(rng.integers(1, 4))):
        x, z, _ = _ground_point(rng, scene.camera, reach, narrow=0.45)
        maker = (ware, ware, ware, plant)[int(rng.integers(4))]
        scene.things += maker(rng, kit.place(x, z, scale=float(rng.uniform(0.3, 0.9))))
    for _ in range(int(rng.integers(0, 8))):
        scene.things.append(_clutter(kit, scene.camera, reach))


def _close_by(kit: Kit, scene: Scene) -> None:
    """A person or thing that fills the picture in front of a room or a landscape, which is most often blurred."""
    rng, camera = kit.rng, scene.camera
    if rng.random() < 0.5:
        _room(kit, scene)
    else:
        _outdoors(kit, scene)
    away = float(rng.uniform(0.6, 1.6))
    scene.things = [t for t in scene.things if not np.isfinite(t.radius) or t.center[2] - t.radius > away * 1.3]
    _, down, forward = (np.array(a) for a in camera.axes())
    x, y, z = np.array([0, camera.height, 0]) + away * forward + rng.uniform(-0.1, 0.3) * away / camera.focal * down
    if rng.random() < 0.45:
        scene.things += person(rng, kit.place(x, z, y=y - float(rng.uniform(1.2, 1.6)), yaw=float(rng.normal(0, 0.5))))
    else:
        size = away / camera.focal * float(rng.uniform(0.12, 0.35))
        for _ in range(int(rng.integers(1, 12))):
            center = vector(np.array([x, y, z]) + rng.normal(0, 0.7 * size, 3))
            half = vector(size * rng.uniform(0.15, 1, 3))
            cast = ellipsoid(center, half, rotation(*rng.uniform(-np.pi, np.pi, 3)))
            scene.things.append(Thing(cast, kit.material(away), center, max(half)))
    if rng.random() < 0.75:
        scene.aperture = float(rng.uniform(0.004, 0.035))


def _outdoors(kit: Kit, scene: Scene) -> None:
    """A landscape or a street, the things in it, and clutter."""
    rng = kit.rng
    reach = _landscape(kit, scene)
    if rng.random() < 0.4:
        _street(kit, scene)
    for _ in range(int(rng.integers(0, 7))):
        x, z, distance = _ground_point(rng, scene.camera, reach)
        maker = OUTDOORS[int(rng.integers(len(OUTDOORS)))]
        scene.things += maker(rng, kit.place(x, z, scale=float(rng.uniform(0.8, 1.3) * max(1, distance / 20))))
    for _ in range(int(rng.choice([0, 4, 10, 20]))):
        scene.things.append(_clutter(kit, scene.camera, reach))


def _street(kit: Kit, scene: Scene) -> None:
    """Houses on one side or both."""
    rng = kit.rng
    for side in ((-1,), (1,), (-1, 1))[int(rng.integers(3))]:
        x, z = side * float(rng.uniform(3, 12)), float(rng.uniform(3, 15))
        while z < 70:
            half = vector(rng.uniform((2, 1.5, 2), (5, 9, 8)))
            center = (x + side * half[0] + float(rng.normal(0, 0.5)), half[1], z + half[2])
            skin = kit.material(max(6.0, z))
            scene.things.append(Thing(box(center, half, np.eye(3)), skin, center, float(np.linalg.norm(half))))
            z += 2 * half[2] + float(rng.choice([0.0, 2.0, 8.0]))


def _landscape(kit: Kit, scene: Scene) -> float:
    """Sky, haze and perhaps hills and a line of trees; returns the depth in metres up to which there is clutter."""
    rng = kit.rng
    tint = rng.uniform((0.65, 0.72, 0.8), (0.85, 0.88, 1.0)).astype(np.float32)
    if rng.random() < 0.25:  # dusk, dawn or a dull day
        tint = rng.uniform((0.25, 0.2, 0.2), (1.0, 0.8, 0.7)).astype(np.float32)
    scene.sky = _sky(rng, tint)
    if rng.random() < 0.6:
        scene.haze = (float(np.exp(rng.uniform(np.log(25), np.log(400)))), tint)
    x = np.linspace(0, 1, 768)
    if rng.random() < 0.6:
        distance = float(rng.uniform(90, 300))
        profile = distance * rng.uniform(0.02, 0.3) * (0.4 + noise(rng, (1, 768), 2.2)[0])
        scene.things.append(Thing(ridge(distance, profile.astype(np.float32)), kit.material(distance)))
    if rng.random() < 0.5:
        distance = float(rng.uniform(18, 60))
        rough = 0.55 + 0.45 * noise(rng, (1, 768), 1.2)[0] + 0.05 * np.sin(x * rng.uniform(60, 200))
        profile = (distance * rng.uniform(0.05, 0.25) * rough).astype(np.float32)
        scene.things.append(Thing(ridge(distance, profile), kit.material(distance)))
    return float(rng.uniform(6, 35))


def _clutter(kit: Kit, camera: Camera, reach: float) -> Thing:
    """One thing somewhere in view, up to `reach` metres away, large enough to be seen."""
    rng = kit.rng
    x, z, distance = _ground_point(rng, camera, reach)
    size = float(np.clip(np.exp(rng.normal(np.log(0.1 * distance), 0.5)), 0.03, 3.0))  # half height, metres
    material = kit.material(distance)
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
        turn = rotation(*rng.uniform(-np.pi, np.pi, 3)) if floats else rotation(0, float(rng.uniform(-np.pi, np.pi)), 0)
        return Thing(box(center, half, turn), material, center, float(np.linalg.norm(half)), min(half[0], half[2]))
    outline = OUTLINES[int(rng.integers(len(OUTLINES)))](rng)
    high = size * float(rng.uniform(1.0, 1.8))
    wide = high * outline.shape[1] / outline.shape[0] * float(rng.uniform(0.8, 1.25))
    center = (x, high + lift, z)
    yaw = float(rng.normal(0, 0.5))
    return Thing(
        billboard(center, (wide, high), yaw, outline), material, center, float(np.hypot(wide, high)), wide * 0.5
    )


def _ground_point(rng: Random, camera: Camera, reach: float, narrow: float = 0.65) -> tuple[float, float, float]:
    """A point x, z on the ground that the camera sees within `reach` metres, and its depth; all in metres.

    narrow: how far from the picture's middle it may be to either side, picture heights.
    """
    right, down, forward = camera.axes()
    px, py = rng.uniform(-narrow, narrow) / camera.focal, rng.uniform(-0.25, 0.6) / camera.focal
    ray = [px * r + py * d + f for r, d, f in zip(right, down, forward, strict=True)]
    distance = camera.height / -ray[1] if ray[1] < -1e-3 else np.inf
    if distance > reach:
        distance = float(reach * rng.uniform(0.4, 0.97))
    return float(ray[0] * distance), float(max(ray[2] * distance, 0.3)), float(distance)


def _sky(rng: Random, tint: Array) -> Callable[[Planes], Array]:
    """A gradient from the horizon's tint to the zenith's blue, most often with clouds on a plane high above."""
    zenith = rng.uniform((0.2, 0.35, 0.6), (0.5, 0.65, 0.95)).astype(np.float32)
    if rng.random() < 0.3:  # an even grey, or the horizon's tint but darker
        zenith = (tint * rng.uniform(0.15, 1.1)).astype(np.float32)
    cover = float(rng.uniform(0.35, 0.75)) if rng.random() < 0.75 else 2.0
    clouds = noise(rng, (512, 512), 1.7)[..., None]
    shift = float(rng.uniform(0, 500))

    def paint(rays: Planes) -> Array:
        rise = np.clip(rays[1] / np.sqrt(dot(rays, rays)), 0.02, 1)
        blend = np.clip(rise * 1.8, 0, 1)[..., None] ** np.float32(0.7)
        colour = tint * (1 - blend) + zenith * blend
        flat = [(r / (rise + 0.08) * 130 + shift).ravel() for r in (rays[0], rays[2])]
        density = read(clouds, flat[0], flat[1]).reshape(*rise.shape, 1)
        opacity = np.clip((density - np.float32(cover)) * 3.5, 0, 1) * np.clip(rise * 8, 0, 1)[..., None]
        white = np.float32(1.02) - 0.25 * np.clip(density - np.float32(cover), 0, 1)
        return (colour * (1 - opacity) + white * opacity).astype(np.float32)

    return paint
