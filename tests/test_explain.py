"""Maps of quality: cells are weighted means of tiles, planted faults are found, depth is split by quantiles."""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from command import run_here
from numpy.typing import NDArray

from dgiqa.bundle import Bundle
from dgiqa.errors import ImageError
from dgiqa.explain import (
    GAP,
    LEGEND,
    MAX_TILES,
    Explanation,
    _deciding,
    by_depth,
    cam_map,
    flat,
    overlapping,
    quality_map,
)
from dgiqa.scorer import Scorer
from dgiqa.spec import Preprocess

pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("size", [(64, 64), (64, 65), (100, 300), (640, 4000), (65, 2000)])
def test_tiles_overlap_and_reach_every_edge(size: tuple[int, int]) -> None:
    windows = overlapping(*size, 64)
    assert windows.min() == 0
    assert tuple(windows.max(0) + 64) == size
    assert len({tuple(window) for window in windows.tolist()}) == len(windows)
    assert len(windows) <= max(MAX_TILES, -(-size[0] // 64) * -(-size[1] // 64))
    seen = np.zeros(size, bool)
    for y, x in windows:
        seen[y : y + 64, x : x + 64] = True
    assert seen.all()


def test_the_map_is_low_where_tiles_are_and_constant_where_they_agree() -> None:
    windows = overlapping(192, 192, 64)
    assert np.allclose(quality_map((192, 192), windows, np.full(len(windows), 0.7, np.float32), 64), 0.7)
    scores = np.where((windows < 64).all(1), 0.2, 0.8).astype(np.float32)
    found = quality_map((192, 192), windows, scores, 64)
    assert np.unravel_index(found.argmin(), found.shape) < (6, 6)
    assert found[-4:, -4:].min() > 0.75
    assert found[:3, :3].max() < 0.45


def test_quarters_of_the_picture_by_depth_begin_with_the_farthest() -> None:
    quality = np.tile(np.array([0.1, 0.2, 0.3, 0.4], np.float32), (4, 1))
    near = np.repeat(np.array([[0, 80, 160, 255]], np.uint8), 4, 0)
    assert by_depth(quality, near) == pytest.approx((0.1, 0.2, 0.3, 0.4))
    assert by_depth(quality, near[:, ::-1]) == pytest.approx((0.4, 0.3, 0.2, 0.1))
    assert by_depth(quality, np.full((4, 4), 9, np.uint8)) is None


def test_a_tile_that_shows_nothing_is_flat_and_a_blurred_one_is_not(photos: dict[str, NDArray[np.uint8]]) -> None:
    """A clear sky scores low, and is not what is wrong with a picture."""
    picture = cv2.resize(photos["coffee"], (192, 192), interpolation=cv2.INTER_AREA)
    picture[:64, :64] = 200
    picture[128:, 128:] = cv2.GaussianBlur(picture[128:, 128:], (0, 0), 6)
    windows = np.array([(y, x) for y in (0, 64, 128) for x in (0, 64, 128)], np.int32)
    assert flat(picture, windows, 64).tolist() == [True] + [False] * 8
    assert not flat(np.zeros_like(picture), windows, 64).any(), "all alike"


def test_flat_tiles_are_named_last(tiny_bundle: Bundle, photos: dict[str, NDArray[np.uint8]]) -> None:
    with Scorer(tiny_bundle) as scorer:
        found = scorer.explain(photos["coffee"])
    first = found.lowest[0]
    flat = (found.windows == (first.y, first.x)).all(1)
    other = replace(found, flat=flat).lowest[0]
    assert (other.y, other.x) != (first.y, first.x)
    assert other.score == pytest.approx(float(found.tile_scores[~flat].min()))


@pytest.mark.slow
def test_planted_blur_is_found_by_the_default_model(photos: dict[str, NDArray[np.uint8]]) -> None:
    """A quarter of the picture is blurred: the lowest tile lies in it."""
    hits = 0
    with Scorer() as scorer:
        for number, photo in enumerate(photos.values()):
            height, width = (side // 2 for side in photo.shape[:2])
            y, x = (number % 2) * height, (number // 2) * width
            planted = photo.copy()
            planted[y : y + height, x : x + width] = cv2.GaussianBlur(planted[y : y + height, x : x + width], (0, 0), 6)
            found = scorer.explain(planted)
            lowest = found.lowest[0]
            middle = lowest.y + found.side[0] / 2, lowest.x + found.side[1] / 2
            hits += y <= middle[0] <= y + height and x <= middle[1] <= x + width
    assert hits >= 3


def test_an_explanation_has_what_it_says(tiny_bundle: Bundle, photos: dict[str, NDArray[np.uint8]]) -> None:
    with Scorer(tiny_bundle) as scorer:
        found = scorer.explain(photos["coffee"][::2, ::2], name="coffee")
        score = scorer.score(photos["coffee"][::2, ::2])
        with pytest.raises(ImageError):
            scorer.explain(b"no picture")
    assert found.source == "coffee"
    assert found.lowest[0].score == pytest.approx(float(found.tile_scores.min()))
    assert (found.cam, found.cam_flat) == (None, None)
    assert found.by_depth is not None
    assert found.score == pytest.approx(score.value)
    corners = {(round(y), round(x)) for y, x, *_ in score.windows_original}
    assert {(tile.y, tile.x) for tile in found.deciding} == corners
    for far, near, told in ((0.6, 0.5, "the near parts are worse"), (0.5, 0.6, "the far parts"), (0.5, 0.509, "")):
        assert replace(found, by_depth=(far, 0.5, near)).near_and_far.startswith(told)
        assert bool(told) == bool(replace(found, by_depth=(far, 0.5, near)).near_and_far)
    assert found.note == score.note
    drawn = found.drawn()
    assert drawn.dtype == np.uint8
    assert drawn.shape[1] == 2 * min(720, found.picture.shape[1]) + 6
    json.dumps(found.as_dict(), allow_nan=False)


def test_boxes_colours_and_scale_lie_where_they_belong() -> None:
    """A grey picture, half as large as decoded: one low tile, and a map that rises from left to right."""
    found = Explanation(
        **{"source": "a", "bundle": "b", "height": 600, "width": 800, "score": 0.5, "value": 0.5},
        **{"windows": np.array([[200, 400]], np.int32), "side": (200.0, 200.0), "flat": np.array([False])},
        **{"tile_scores": np.array([0.25], np.float32), "deciding": (), "deciding_side": (200.0, 200.0)},
        **{"by_depth": None, "cam": None, "cam_flat": None, "picture": np.full((300, 400, 3), 90, np.uint8)},
        map=np.tile(np.linspace(0.2, 0.8, 8, dtype=np.float32), (6, 1)),
    )
    boxed, quality = found.panels().values()
    assert boxed.shape == quality.shape == (300 + LEGEND, 400, 3)
    assert (boxed[[100, 198], 230:290] == 255).all()
    assert (boxed[130:190, [200, 298]] == 255).all()
    assert (boxed[106:122, 206:250] == 255).any(), "the tile's score"
    assert (boxed[[50, 150, 250], [100, 260, 350]] == 90).all()
    dark, bright = np.array([68, 1, 84]), np.array([253, 231, 37])  # the ends of viridis
    for column, colour in ((0, dark), (200, np.array([33, 145, 140])), (-1, bright)):
        assert quality[150, column] == pytest.approx(0.45 * 90 + 0.55 * colour, abs=3)
    scale = quality[-LEGEND:]
    assert scale[LEGEND // 2, 60] == pytest.approx(dark, abs=3)
    assert scale[LEGEND // 2, -61] == pytest.approx(bright, abs=3)
    assert (boxed[-LEGEND:] == 255).all()
    assert (scale[[0, -1], 61:-61] == 255).all()
    drawn = found.drawn()
    assert drawn.shape == (300 + 2 * LEGEND, 2 * 400 + GAP, 3)
    assert np.array_equal(drawn[LEGEND:, :400], boxed)
    assert np.array_equal(drawn[LEGEND:, -400:], quality)
    three = replace(found, cam=found.map).drawn()
    assert (three[len(drawn) :, -400:] == 255).all(), "there is no fourth"


@pytest.mark.parametrize("level", [0.0, 0.02, 0.5, 1.0])
def test_an_even_map_has_even_colours_and_a_scale_within_the_scores(tiny_bundle: Bundle, level: float) -> None:
    with Scorer(tiny_bundle) as scorer:
        found = scorer.explain(np.zeros((64, 64, 3), np.uint8))
    assert "uniform" in found.note
    values = np.clip(level + np.linspace(-0.001, 0.001, 12, dtype=np.float32).reshape(3, 4), 0, 1)
    even = replace(found, map=values)
    low, high = even._ends()
    assert 0 <= low <= values.min()
    assert values.max() <= high <= 1
    assert high - low == pytest.approx(0.1)
    colours = even.panels()["quality"][:-LEGEND].reshape(-1, 3).astype(int)
    assert np.ptp(colours, axis=0).max() < 10
    rising = replace(found, map=np.linspace(0.2, 0.8, 12, dtype=np.float32).reshape(3, 4))
    assert rising._ends() == pytest.approx((0.2, 0.8))


def test_without_the_tile_that_decides_most_the_score_rises_by_its_pull() -> None:
    scores = np.array([0.5, 0.1, 0.9], np.float32)
    tiles = _deciding(np.array([[0, 0], [0, 9], [0, 18]]), scores)
    assert [tile.x for tile in tiles] == [9, 0, 18]
    assert tiles[0].pull == pytest.approx(0.7 - 0.5)
    assert tiles[2].pull == pytest.approx(0.3 - 0.5)
    assert _deciding(np.zeros((1, 2), int), scores[:1])[0].pull == 0


def test_the_lowest_tiles_are_not_three_times_the_same_place(tiny_bundle: Bundle, photos: dict) -> None:
    with Scorer(tiny_bundle) as scorer:
        found = scorer.explain(photos["coffee"])
    for one, other in itertools.combinations(found.lowest, 2):
        assert max(abs(one.y - other.y) / found.side[0], abs(one.x - other.x) / found.side[1]) >= 0.5


class Cam:
    """Logits of a tile: the brightness of each place, and what the network does at that place of any tile."""

    def __init__(self, pattern: NDArray[np.float32]) -> None:
        self.pattern = pattern

    def logits(self, feeds: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        return feeds["rgb"].mean(1).reshape(-1, 8, 8, 8, 8).mean((2, 4)) + self.pattern


@pytest.mark.parametrize("size", [(64, 64), (91, 301)])
def test_the_map_of_places_shows_the_picture_and_not_where_in_a_tile_a_place_lies(size: tuple[int, int]) -> None:
    rgb = np.zeros((*size, 3), np.uint8)
    rgb[:, size[1] // 2 :] = 255
    p = replace(Preprocess(), tile=64)
    plain = cam_map(Cam(np.zeros((8, 8), np.float32)), rgb, None, p)  # type: ignore[arg-type]
    assert plain.shape == (size[0] // 8, (size[1] - 64) // 8 + 8)
    assert plain[:, -1].min() > plain[:, 0].max() + 2, "bright is right"
    lattice = np.zeros((8, 8), np.float32)
    lattice[3] = lattice[:, 4] = 9
    found = cam_map(Cam(lattice), rgb, None, p)  # type: ignore[arg-type]
    if size != (64, 64):  # in a single tile nothing tells them apart
        assert np.ptp(found - plain) < 2


@pytest.mark.slow
def test_the_default_model_shows_where_its_logits_come_from(photos: dict[str, NDArray[np.uint8]]) -> None:
    pytest.importorskip("onnx")
    with Scorer() as scorer:
        found = scorer.explain(photos["coffee"], cam=True)
        score = scorer.score(photos["coffee"])
    assert found.cam is not None
    assert found.cam_flat is not None
    assert not np.allclose(found.cam, found.cam_flat)
    logits = np.log(score.tile_scores / (1 - score.tile_scores))
    assert found.cam.mean() == pytest.approx(logits.mean(), abs=0.5)
    assert list(found.panels())[2:] == ["Grad-CAM", "Grad-CAM without depth"]


def test_a_model_without_depth_maps_the_picture_and_says_nothing_of_near(
    rgb_bundle: Bundle, photos: dict[str, NDArray[np.uint8]]
) -> None:
    with Scorer(rgb_bundle) as scorer:
        found = scorer.explain(photos["rocket"])
    assert found.by_depth is None
    assert found.near_and_far == ""
    assert found.picture.shape == photos["rocket"].shape


def test_the_command_draws_a_picture_and_a_page(bundle_dir: Path, tmp_path: Path, photos: dict) -> None:
    cv2.imwrite(str(tmp_path / "a&b.png"), photos["coffee"][::3, ::3, ::-1])
    for name in ("map.png", "map.html"):
        done = run_here("explain", tmp_path / "a&b.png", "-o", tmp_path / name, "--bundle", bundle_dir)
        assert done.returncode == 0, done.stderr
        assert b"lowest tile at x" in done.stdout
    assert cv2.imread(str(tmp_path / "map.png")) is not None
    page = (tmp_path / "map.html").read_text()
    assert "a&amp;b.png" in page
    assert "http" not in page
    done = run_here("explain", tmp_path / "a&b.png", "--json", "--bundle", bundle_dir)
    assert json.loads(done.stdout)["by_depth"] is not None
    assert run_here("explain", tmp_path / "a&b.png", "-o", tmp_path / "map.svg").returncode == 2
    unseen = run_here("explain", tmp_path / "a&b.png", "--gradcam")
    assert (unseen.returncode, b"give -o FILE or --json" in unseen.stderr) == (2, True)


def test_what_is_no_picture_is_named(bundle_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture at all")
    for name in ("notes.txt", "missing.png", "."):
        path = tmp_path / name
        done = run_here("explain", path, "--bundle", bundle_dir)
        assert done.returncode == 1
        assert done.stderr.count(os.fsencode(path)) == 1, done.stderr
