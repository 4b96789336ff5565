"""Rendered scenes: the same picture for the same seed, and depth that agrees with geometry worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage.data import astronaut, coffee

from recipes.small import scenes
from recipes.small.scenes import (
    FAR,
    Camera,
    Material,
    Scene,
    Thing,
    billboard,
    box,
    cylinder,
    ellipsoid,
    plane,
    sphere,
    tube,
)
from recipes.small.scenes.developing import defocus
from recipes.small.scenes.furniture import INDOORS, OUTDOORS, Place, cabinet, shelf, ware
from recipes.small.scenes.geometry import rotation
from recipes.small.scenes.textures import mip_pyramid

SIZE = (48, 64)
LEVEL = Camera(height=1.5, pitch=0.0, focal=1.0)
PAINT = Material([np.full((s, s, 3), 0.5, np.float32) for s in (8, 4, 2)], density=10)


@pytest.fixture(scope="module")
def textures() -> list[np.ndarray]:
    return [astronaut(), coffee()]


def inverse_depth(*things: Thing, camera: Camera = LEVEL, size: tuple[int, int] = SIZE) -> np.ndarray:
    return scenes.trace(Scene(camera, list(things)), *size)[1]


def thing(cast, center=(0.0, 0.0, 0.0), radius=np.inf) -> Thing:
    return Thing(cast, PAINT, center, radius)


def test_a_seed_is_a_picture(textures):
    first, again, other = (scenes.render(seed, textures, *SIZE) for seed in (3, 3, 4))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("seed", range(4))
def test_pictures_are_bytes_and_depth_is_in_range(seed, textures):
    rgb, inverse = scenes.render(seed, textures, *SIZE)
    assert rgb.shape == (*SIZE, 3)
    assert rgb.dtype == np.uint8
    assert rgb.std() > 15
    assert inverse.shape == SIZE
    assert inverse.dtype == np.float32
    assert inverse.min() > 0
    assert inverse.max() == 1


def test_no_photographs_are_needed():
    assert scenes.render(1, [], *SIZE)[0].std() > 15


def test_ground_depth_is_that_of_the_plane():
    camera = Camera(height=2.0, pitch=0.5, roll=0.1, focal=1.3)
    inverse = inverse_depth(thing(plane(1, 0.0)), camera=camera)
    _, y, _ = (p.astype(np.float64) for p in camera.rays(SIZE[0] * 2, SIZE[1] * 2))
    expected = np.maximum(-y / camera.height, 0).reshape(SIZE[0], 2, SIZE[1], 2).max((1, 3))
    np.testing.assert_allclose(inverse, np.maximum(expected / expected.max(), FAR), rtol=1e-4)


def test_sphere_depth_is_the_quadratic_root():
    center, radius = np.array([0.4, 1.2, 4.0]), 0.9
    inverse = inverse_depth(thing(sphere(tuple(center), radius), tuple(center), radius))
    rays = np.stack(LEVEL.rays(SIZE[0] * 2, SIZE[1] * 2), -1).astype(np.float64)
    offset = np.array([0, LEVEL.height, 0]) - center
    a, b, c = (rays**2).sum(-1), rays @ offset, offset @ offset - radius**2
    depth = np.where(b * b > a * c, (-b - np.sqrt(np.maximum(b * b - a * c, 0))) / a, np.inf)
    expected = (1 / depth).reshape(SIZE[0], 2, SIZE[1], 2).max((1, 3))
    np.testing.assert_allclose(inverse, np.maximum(expected / expected.max(), FAR), rtol=2e-3)


@pytest.mark.parametrize(
    ("cast", "front"),
    [
        (box((0, 1.5, 4.0), (0.8, 0.8, 1.0), np.eye(3)), 3.0),
        (cylinder((0, 1.5, 4.0), 0.7, 0.9), 3.3),
        (billboard((0, 1.5, 4.0), (0.8, 0.8), 0.0, np.ones((8, 8), np.float32)), 4.0),
        (sphere((0, 1.5, 4.0), 0.5), 3.5),
        (ellipsoid((0, 1.5, 4.0), (0.3, 0.6, 0.9), rotation(0, np.pi / 2, 0)), 3.7),
        (tube((-0.5, 1.5, 4.0), (0.5, 1.5, 4.0), 0.25), 3.75),
        (tube((0, 1.5, 4.0), (0, 1.5, 4.5), 0.25), 3.75),
    ],
    ids=["box", "cylinder", "billboard", "sphere", "ellipsoid", "bar", "bar's end"],
)
def test_a_thing_stands_where_it_was_put(cast, front):
    inverse = inverse_depth(thing(cast), thing(plane(2, 6.0)))  # the wall behind fixes the scale
    middle, wall = inverse[SIZE[0] // 2, SIZE[1] // 2], inverse[0, 0]
    assert middle / wall == pytest.approx(6.0 / front, rel=2e-3)


def test_nearer_is_larger():
    near, far = (box((x, 1.5, z), (0.4, 0.4, 0.4), np.eye(3)) for x, z in ((-0.7, 3.0), (0.9, 5.0)))
    inverse = inverse_depth(thing(near), thing(far))
    row = inverse[SIZE[0] // 2]
    assert row[: SIZE[1] // 2].max() > row[SIZE[1] // 2 :].max() > row[0] == pytest.approx(FAR)


def test_a_turned_box_shows_its_edge():
    quarter = rotation(0, np.pi / 4, 0)
    inverse = inverse_depth(thing(box((0, 1.5, 4.0), (1.0, 1.0, 1.0), quarter)), thing(plane(2, 8.0)))
    assert inverse[SIZE[0] // 2, SIZE[1] // 2] / inverse[0, 0] == pytest.approx(8 / (4 - np.sqrt(2)), rel=1e-2)


def test_a_camera_turned_right_sees_what_stands_on_the_right():
    target = thing(box((3.0, 1.5, 3.0), (0.3, 0.3, 0.3), np.eye(3)), (3.0, 1.5, 3.0), 0.6)
    assert inverse_depth(target, thing(plane(1, 0.0)))[0].max() == np.float32(FAR)
    turned = inverse_depth(target, camera=replace(LEVEL, yaw=np.pi / 4))
    assert turned[SIZE[0] // 2, SIZE[1] // 2] > 0.9


def test_normals_are_unit_vectors_that_face_the_viewer():
    rays = LEVEL.rays(*SIZE)
    middle = (0.1, 1.4, 4.0)
    turn = rotation(0.4, 0.7, 0.2)
    shapes = (
        sphere(middle, 0.8),
        ellipsoid(middle, (0.4, 0.8, 1.1), turn),
        tube((-0.5, 1.2, 4.0), (0.6, 1.9, 3.5), 0.4),
        box(middle, (0.8, 0.4, 0.5), turn),
        cylinder(middle, 0.6, 0.7),
    )
    for cast in shapes:
        hit = cast((0.0, LEVEL.height, 0.0), rays)
        met = np.isfinite(hit.depth)
        normal, ray = (np.stack([part[met] for part in parts]) for parts in (hit.normal, rays))
        assert met.sum() > 20
        np.testing.assert_allclose((normal**2).sum(0), 1, atol=1e-3)
        assert ((normal * ray).sum(0) < 1e-3).all()


@pytest.mark.parametrize("maker", sorted({*INDOORS, *OUTDOORS, shelf, cabinet, ware}, key=lambda m: m.__name__))
def test_furniture_is_seen_where_it_stands(maker):
    """No part is lost far off, and scale and place move the whole: twice as large and as far away looks the same."""
    near, far = (
        Scene(
            Camera(height=1.5 * s, pitch=0.2), maker(np.random.default_rng(4), Place((0, 0, 4.0 * s), 0.3, s, [PAINT]))
        )
        for s in (1.0, 2.0)
    )
    first, second = (scenes.trace(scene, *SIZE)[1] for scene in (near, far))
    assert (first > FAR).sum() > 20
    assert (np.abs(first - second) < 0.01).mean() > 0.98


def test_only_what_lies_behind_the_focus_is_blurred():
    rng = np.random.default_rng(0)
    colour = rng.random((64, 96, 3), np.float32)
    inverse = np.full((64, 96), 0.05, np.float32)
    inverse[:, :48] = 1
    blurred = defocus(colour, inverse, 0.8, 0.05)
    np.testing.assert_array_equal(blurred[:, :48], colour[:, :48])
    assert blurred[:, 52:].std() < 0.5 * colour[:, 52:].std()
    assert blurred[:, 52:].mean() == pytest.approx(colour[:, 52:].mean(), abs=0.03)


@pytest.mark.parametrize("seed", range(3))
def test_bounding_windows_cut_nothing_off(seed, textures):
    scene = scenes.random_scene(np.random.default_rng(seed), textures, SIZE[0])
    _, windowed = scenes.trace(scene, *SIZE)
    scene.things = [replace(t, radius=np.inf) for t in scene.things]
    _, whole = scenes.trace(scene, *SIZE)
    np.testing.assert_array_equal(windowed, whole)


def test_far_checks_fade_to_grey_instead_of_aliasing():
    y, x = np.mgrid[0:256, 0:256] // 4
    checks = np.repeat(((x + y) % 2).astype(np.float32)[..., None], 3, 2)
    material = Material(mip_pyramid(checks), density=100, grain=0)
    scene = Scene(LEVEL, [Thing(plane(1, 0.0), material)], ambient=0.5)
    colour, _ = scenes.trace(scene, 96, 128)
    stained = cv2.GaussianBlur(colour[..., 0], (0, 0), 4)
    horizon = (colour[..., 0] - stained)[54:62]
    assert horizon.std() < 0.02
    assert (colour[..., 0] - stained)[84:94].std() > 3 * horizon.std()


def test_load_textures_reads_photographs_once(tmp_path: Path):
    picture = np.zeros((400, 2048, 3), np.uint8)
    picture[..., 2] = 200  # OpenCV writes BGR: this is red
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    cv2.imwrite(str(tmp_path / "icon.png"), picture[:64, :64])
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("no picture")
    (loaded,) = scenes.load_textures(tmp_path)
    assert loaded.shape == (200, 1024, 3)
    assert loaded[0, 0].tolist() == [200, 0, 0]


def test_load_textures_wants_at_least_one(tmp_path: Path):
    with pytest.raises(ValueError, match="no jpg or png"):
        scenes.load_textures(tmp_path)
