"""Windows and tiles: the grid covers every pixel, the random crops are the authors', tiles are normalised exactly."""

from __future__ import annotations

import random

import numpy as np
import pytest
from skimage import data

from dgiqa import preprocess as pp
from dgiqa.spec import IMAGENET_MEAN, IMAGENET_STD, Preprocess

TILE = 224
SIZES = [(h, w) for h in (224, 225, 300, 383, 384, 447, 448, 449) for w in (224, 231, 384, 512, 683, 900, 1345)]
SIZES += [(w, h) for h, w in SIZES]


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((224, 224), [(0, 0)]),
        ((384, 384), [(0, 0), (0, 160), (160, 0), (160, 160)]),
        ((384, 512), [(0, 0), (0, 144), (0, 288), (160, 0), (160, 144), (160, 288)]),
        ((384, 683), [(0, 0), (0, 153), (0, 306), (0, 459), (160, 0), (160, 153), (160, 306), (160, 459)]),
        ((512, 384), [(0, 0), (0, 160), (144, 0), (144, 160), (288, 0), (288, 160)]),
    ],
)
def test_grid_of_usual_photographs(size: tuple[int, int], wanted: list[tuple[int, int]]) -> None:
    windows = pp.grid_windows(*size, TILE)
    assert windows.dtype == np.int32
    np.testing.assert_array_equal(windows, wanted)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_grid_covers_every_pixel_with_the_fewest_tiles(height: int, width: int) -> None:
    windows = pp.grid_windows(height, width, TILE)
    seen = np.zeros((height, width), bool)
    for y, x in windows:
        assert 0 <= y <= height - TILE
        assert 0 <= x <= width - TILE
        seen[y : y + TILE, x : x + TILE] = True
    assert seen.all()
    assert len(windows) == -(-height // TILE) * -(-width // TILE)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_grid_is_row_major_unique_and_evenly_spaced(height: int, width: int) -> None:
    windows = [tuple(window) for window in pp.grid_windows(height, width, TILE).tolist()]
    assert windows == sorted(set(windows))
    for axis in (0, 1):
        steps = np.diff(sorted({window[axis] for window in windows}))
        assert len(steps) == 0 or steps.max() - steps.min() <= 1


def test_grid_is_the_same_for_small_tiles_of_every_size() -> None:
    for side in range(5, 60):
        starts = sorted({int(x) for _, x in pp.grid_windows(5, side, 5)})
        covered = {pixel for start in starts for pixel in range(start, start + 5)}
        assert covered == set(range(side))


@pytest.mark.parametrize("size", [(223, 500), (500, 223), (1, 1)])
@pytest.mark.parametrize("tiling", ["grid", "official:5"])
def test_images_smaller_than_a_tile_are_refused(size: tuple[int, int], tiling: str) -> None:
    with pytest.raises(ValueError, match="smaller than a tile of 224"):
        pp.windows_for(tiling, *size, TILE)


def authors_crops(height: int, width: int, count: int, seed: int) -> list[tuple[int, int]]:
    """The order of draws in the authors' script, from Python's global generator."""
    random.seed(seed)
    crops = []
    for _ in range(count):
        x = random.randint(0, width - TILE)
        y = random.randint(0, height - TILE)
        crops.append((y, x))
    return crops


@pytest.mark.parametrize("size", [(384, 512), (384, 384), (683, 384), (384, 224), (224, 224)])
@pytest.mark.parametrize("seed", [42, 0, 7])
def test_official_windows_are_the_authors_draws(size: tuple[int, int], seed: int) -> None:
    state = random.getstate()
    wanted = authors_crops(*size, 20, seed)
    random.setstate(state)
    windows = pp.official_windows(*size, TILE, 20, seed)
    assert windows.dtype == np.int32
    np.testing.assert_array_equal(windows, wanted)
    assert random.getstate() == state, "official_windows touched the global generator"


def test_official_windows_of_koniq_photographs_are_fixed() -> None:
    np.testing.assert_array_equal(
        pp.official_windows(384, 512, TILE, 5), [(6, 57), (62, 140), (35, 114), (139, 52), (151, 44)]
    )


def test_tilings_by_name() -> None:
    np.testing.assert_array_equal(pp.windows_for("grid", 384, 512, TILE), pp.grid_windows(384, 512, TILE))
    for name, count, seed in (("official:20", 20, 42), ("official:3:0", 3, 0), ("official:1:123456", 1, 123456)):
        wanted = pp.official_windows(384, 512, TILE, count, seed)
        np.testing.assert_array_equal(pp.windows_for(name, 384, 512, TILE), wanted)


# What the authors' script cuts with each of these versions of albumentations: the working size (height, width) that
# SmallestMaxSize(384) gave an image of the named size, and its first three crops as (x, y), seed 42.
RECORDED: dict[str, dict[str, tuple[tuple[int, int], list[tuple[int, int]]]]] = {
    "official-1.3": {  # 1.3.1
        "400x600": ((384, 576), [(52, 139), (44, 151), (216, 8)]),
        "768x1024": ((384, 512), [(52, 139), (44, 151), (216, 8)]),
        "700x451": ((596, 384), [(26, 346), (139, 44), (151, 216)]),
        "512x512": ((384, 384), [(26, 139), (22, 151), (108, 8)]),
        "80x100": ((384, 480), [(52, 139), (44, 151), (216, 8)]),
        "300x2000": ((384, 2560), [(419, 139), (356, 151), (1728, 8)]),
        "480x640": ((384, 512), [(52, 139), (44, 151), (216, 8)]),
        "1080x1920": ((384, 683), [(377, 26), (346, 139), (44, 151)]),
    },
    "official-1.4.1": {  # 1.4.3
        "400x600": ((384, 576), [(114, 35), (52, 139), (44, 151)]),
        "768x1024": ((384, 512), [(114, 35), (52, 139), (44, 151)]),
        "700x451": ((596, 384), [(57, 71), (26, 346), (139, 44)]),
        "512x512": ((384, 384), [(57, 35), (26, 139), (22, 151)]),
        "80x100": ((384, 480), [(114, 35), (52, 139), (44, 151)]),
        "300x2000": ((384, 2560), [(914, 35), (419, 139), (356, 151)]),
        "480x640": ((384, 512), [(114, 35), (52, 139), (44, 151)]),
        "1080x1920": ((384, 683), [(114, 35), (377, 26), (346, 139)]),
    },
    "official-1.4.4": {  # 1.4.8
        "400x600": ((384, 576), [(71, 26), (346, 139), (44, 151)]),
        "768x1024": ((384, 512), [(71, 26), (279, 22), (216, 8)]),
        "700x451": ((596, 384), [(35, 52), (139, 44), (151, 216)]),
        "512x512": ((384, 384), [(35, 26), (139, 22), (151, 108)]),
        "80x100": ((384, 480), [(71, 26), (44, 151), (216, 8)]),
        "300x2000": ((384, 2560), [(571, 26), (2233, 22), (1728, 8)]),
        "480x640": ((384, 512), [(71, 26), (279, 22), (216, 8)]),
        "1080x1920": ((384, 683), [(71, 26), (346, 139), (44, 151)]),
    },
    "official-1.4.10": {  # 1.4.14
        "400x600": ((384, 576), [(52, 139), (44, 151), (216, 8)]),
        "768x1024": ((384, 512), [(52, 139), (44, 151), (216, 8)]),
        "700x451": ((596, 384), [(26, 346), (139, 44), (151, 216)]),
        "512x512": ((384, 384), [(26, 139), (22, 151), (108, 8)]),
        "80x100": ((384, 480), [(52, 139), (44, 151), (216, 8)]),
        "300x2000": ((384, 2560), [(419, 139), (356, 151), (1728, 8)]),
        "480x640": ((384, 512), [(52, 139), (44, 151), (216, 8)]),
        "1080x1920": ((384, 683), [(52, 139), (44, 151), (216, 8)]),
    },
    "official-1.4.15": {  # 1.4.20
        "400x600": ((384, 576), [(140, 62), (114, 35), (52, 139)]),
        "768x1024": ((384, 512), [(140, 62), (114, 35), (52, 139)]),
        "700x451": ((596, 384), [(70, 125), (57, 71), (26, 346)]),
        "512x512": ((384, 384), [(70, 62), (57, 35), (26, 139)]),
        "80x100": ((384, 480), [(140, 62), (114, 35), (52, 139)]),
        "300x2000": ((384, 2560), [(1126, 62), (914, 35), (419, 139)]),
        "480x640": ((384, 512), [(140, 62), (114, 35), (52, 139)]),
        "1080x1920": ((384, 683), [(379, 70), (125, 57), (71, 26)]),
    },
    "official": {  # 2.0.8
        "400x600": ((384, 576), [(327, 28), (12, 70), (125, 57)]),
        "768x1024": ((384, 512), [(57, 6), (140, 62), (114, 35)]),
        "700x451": ((596, 384), [(28, 12), (70, 125), (57, 71)]),
        "512x512": ((384, 384), [(28, 6), (70, 62), (57, 35)]),
        "80x100": ((384, 480), [(57, 6), (140, 62), (114, 35)]),
        "300x2000": ((384, 2560), [(456, 6), (1126, 62), (914, 35)]),
        "480x640": ((384, 512), [(57, 6), (140, 62), (114, 35)]),
        "1080x1920": ((384, 683), [(327, 28), (12, 70), (125, 57)]),
    },
}


@pytest.mark.parametrize("family", RECORDED)
def test_official_windows_are_those_recorded_from_the_authors_script(family: str) -> None:
    pytest.importorskip("torch", reason="the reference is in torch")
    from dgiqa.nn.reference import _windows

    for shape, (size, xy) in RECORDED[family].items():
        height, width = map(int, shape.split("x"))
        assert pp.working_size(height, width, Preprocess()) == size
        wanted = [(y, x) for x, y in xy]
        np.testing.assert_array_equal(pp.windows_for(f"{family}:3", *size, TILE), wanted, err_msg=shape)
        np.testing.assert_array_equal(_windows(f"{family}:3", *size, TILE), wanted, err_msg=shape)


BAD_NAMES = ["", "Grid", " grid", "grid:3", "20", "official", "official:", "official:0", "official:1001", "official:-3"]
BAD_NAMES += ["official-1.2:5", "official-:5", "Official:5"]
BAD_NAMES += ["official:5:", "official:5:x", "official:5:1:2", "official:2.5", "official:٣", "official:" + "9" * 20]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_other_names_are_refused_with_what_is_allowed(name: str) -> None:
    with pytest.raises(ValueError, match=r'allowed are "grid", "official:COUNT" and "official:COUNT:SEED"'):
        pp.windows_for(name, 384, 512, TILE)


def normalised(image: np.ndarray) -> np.ndarray:
    """albumentations.Normalize in float32: (x - 255 mean) / (255 std)."""
    mean = np.array(IMAGENET_MEAN, np.float32) * 255
    scale = np.reciprocal(np.array(IMAGENET_STD, np.float32) * 255)
    return (image.astype(np.float32) - mean) * scale


@pytest.mark.parametrize("tiling", ["grid", "official:9"])
def test_tiles_are_the_normalised_windows_of_both_images(tiling: str) -> None:
    rgb = pp.working_image(data.coffee(), Preprocess())
    depth = np.ascontiguousarray(rgb[::-1, :, 1])
    windows = pp.windows_for(tiling, *depth.shape, TILE)
    rgb_tiles, depth_tiles = pp.cut_tiles(rgb, depth, windows, TILE)
    wanted_rgb, wanted_depth = normalised(rgb), normalised(np.stack([depth] * 3, axis=-1))
    for result in (rgb_tiles, depth_tiles):
        assert result.shape == (len(windows), 3, TILE, TILE)
        assert result.dtype == np.float32
        assert result.flags.c_contiguous
    for i, (y, x) in enumerate(windows):
        window = np.s_[y : y + TILE, x : x + TILE]
        np.testing.assert_allclose(rgb_tiles[i].transpose(1, 2, 0), wanted_rgb[window], atol=1e-6, rtol=0)
        np.testing.assert_allclose(depth_tiles[i].transpose(1, 2, 0), wanted_depth[window], atol=1e-6, rtol=0)


def test_every_level_is_normalised_to_float64_accuracy() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    rgb_tiles, depth_tiles = pp.cut_tiles(np.stack([levels] * 3, axis=-1), levels, np.zeros((1, 2), np.int32), 16)
    for c, (mean, std) in enumerate(zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)):
        np.testing.assert_allclose(rgb_tiles[0, c], (levels / 255 - mean) / std, rtol=1e-7, atol=1e-9)
    np.testing.assert_array_equal(depth_tiles, rgb_tiles)


def test_no_windows_give_no_tiles() -> None:
    rgb_tiles, depth_tiles = pp.cut_tiles(
        np.zeros((30, 40, 3), np.uint8), np.zeros((30, 40), np.uint8), np.zeros((0, 2), np.int32), 16
    )
    assert rgb_tiles.shape == depth_tiles.shape == (0, 3, 16, 16)


@pytest.mark.parametrize("window", [(-1, 0), (0, -1), (15, 0), (0, 25)])
def test_windows_outside_the_image_are_refused(window: tuple[int, int]) -> None:
    rgb, depth = np.zeros((30, 40, 3), np.uint8), np.zeros((30, 40), np.uint8)
    with pytest.raises(ValueError, match="leave the image of 30 x 40"):
        pp.cut_tiles(rgb, depth, np.array([(0, 0), window], np.int32), 16)


def test_images_of_two_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="same size"):
        pp.cut_tiles(np.zeros((30, 40, 3), np.uint8), np.zeros((30, 41), np.uint8), np.zeros((1, 2), np.int32), 16)
