"""A picture becomes a map of its quality: where it is low, and whether near or far things are the worse.

    picture ─► tiles at twice the usual size, overlapping ─► each one's score ─► weighted means ─► map
                                              depth image ─► map by quantiles of depth ─► near and far

A score is a mean over few large tiles. The map asks the same networks about smaller parts: the picture is seen at ZOOM
times its working size where it has the pixels, and tiles lie STRIDES to a tile's side. What it says is relative: parts
are compared with each other, since networks are used to see pictures smaller.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dgiqa import forward, preprocess, spec
from dgiqa.forward import Stages
from dgiqa.image.sources import Source, name_of, open_source

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]

ZOOM = 2  # times the working size
STRIDES = 3  # tiles begin this often along a tile's side
MAX_TILES = 400  # of one picture; before there are more they lie further apart
QUANTILES = 4  # of depth, each a quarter of the picture
SIDE = 720  # longest side of a picture that is shown, pixels
LEGEND = 26  # pixels below it


@dataclass(frozen=True, eq=False)
class Explanation:
    """Quality over a picture.

    source, bundle: as in Score. value: mean of the map, which is not the picture's score. map: f32 [rows,columns] in
    [0, 1], cells of equal size over the whole picture. windows: int32 [n,2], top-left (y, x) of the tiles in pixels of
    the image as decoded, which are `side` (height, width) large; tile_scores: f32 [n]. by_depth: mean of the map in
    each quarter of the picture by depth, the farthest first; None where the model has no depth or the picture none.
    picture: uint8 [H,W,3] as the networks saw it.
    """

    source: str
    bundle: str
    value: float
    map: Float32
    windows: NDArray[np.int32]
    side: tuple[float, float]
    tile_scores: Float32
    by_depth: tuple[float, ...] | None
    picture: UInt8 = field(repr=False)

    @property
    def lowest(self) -> list[tuple[int, int, float]]:
        """The three tiles that are lowest: (y, x, score)."""
        order = np.argsort(self.tile_scores)[:3]
        return [(int(self.windows[i][0]), int(self.windows[i][1]), float(self.tile_scores[i])) for i in order]

    @property
    def near_and_far(self) -> str:
        """What depth has to do with it, in words; empty where that is not known."""
        if self.by_depth is None:
            return ""
        far, near = self.by_depth[0], self.by_depth[-1]
        which = "near" if near < far else "far"
        return f"what is {which} is the worse: nearest quarter {near:.3f}, farthest {far:.3f}"

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON; without the picture."""
        facts = {"path": self.source, "bundle": self.bundle, "value": round(self.value, 6)}
        tiles = [{"y": y, "x": x, "score": round(score, 6)} for y, x, score in self.lowest]
        shown = {"side": [round(length, 1) for length in self.side], "lowest": tiles}
        return (
            facts
            | shown
            | {
                "by_depth": None if self.by_depth is None else [round(mean, 6) for mean in self.by_depth],
                "map": np.round(self.map.astype(float), 4).tolist(),
            }
        )

    def drawn(self) -> UInt8:
        """The picture beside the picture under its map, uint8 [h,w,3] RGB; dark is low, the scale is below."""
        height, width = self.picture.shape[:2]
        scale = min(1.0, SIDE / max(height, width))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        shown = np.asarray(cv2.resize(self.picture, size, interpolation=cv2.INTER_AREA), np.uint8)
        low, high = float(self.map.min()), float(self.map.max())
        level = (self.map - low) / max(high - low, 1e-6)
        fine = np.asarray(cv2.resize(level, size, interpolation=cv2.INTER_CUBIC)).clip(0, 1)
        colours = cv2.applyColorMap((255 * fine).astype(np.uint8), cv2.COLORMAP_VIRIDIS)[..., ::-1]
        grey = cv2.cvtColor(shown, cv2.COLOR_RGB2GRAY)[..., None]
        overlaid = (0.45 * grey + 0.55 * colours).astype(np.uint8)
        both = np.concatenate([shown, np.full((size[1], 6, 3), 255, np.uint8), overlaid], 1)
        return np.concatenate([both, _legend(both.shape[1], low, high)], 0)


def explain(stages: Stages, source: Source, *, name: str | None = None) -> Explanation:
    """Map the quality of a picture. Raises ImageError if there is none in it, BackendError if a network fails."""
    opened = open_source(source, stages.max_pixels, stages.max_memory)
    preprocess.check_size(opened.height, opened.width, stages.p)
    with stages.room.hold(opened.memory, lambda: False):
        rgb = opened.decode(lambda: False).rgb
    height, width = rgb.shape[:2]
    p, networks = _closer(stages.p, height, width), stages.networks
    working = preprocess.working_image(rgb, p)
    near = None
    if networks.depth is not None:
        prepared = preprocess.depth_input(rgb, p)
        near = forward.depth_image_from(prepared, (height, width), networks.depth, p, turn=networks.turn)
    windows = overlapping(working.shape[0], working.shape[1], p.tile)
    scores = []
    for feeds in forward.tiles(working, near, windows, p, networks.batch):
        with networks.turn:
            scores.append(networks.quality.run(feeds)[spec.QUALITY_OUTPUT])
    tile_scores = networks.mapped(np.concatenate(scores))
    stages.pooled(tile_scores)  # BackendError for what is not finite
    quality = quality_map(working.shape[:2], windows, tile_scores, p.tile)  # type: ignore[arg-type]
    scale = np.array([height / working.shape[0], width / working.shape[1]])
    return Explanation(
        source=name or name_of(source),
        bundle=stages.bundle.id,
        value=float(quality.mean(dtype=np.float64)),
        map=quality,
        windows=np.round(windows * scale).astype(np.int32),
        side=(p.tile * float(scale[0]), p.tile * float(scale[1])),
        tile_scores=tile_scores,
        by_depth=None if near is None else by_depth(quality, near),
        picture=working,
    )


def overlapping(height: int, width: int, tile: int) -> NDArray[np.int32]:
    """Top-left corners (y, x) of overlapping tiles that touch all edges, int32 [n,2].

    At most MAX_TILES, or as few as cover the picture where those are more.
    """
    stride = tile / STRIDES
    while math.prod(counts := _counts(height, width, tile, stride)) > MAX_TILES and stride < tile:
        stride = min(1.25 * stride, tile)
    ys, xs = (
        np.linspace(0, side - tile, count).round().astype(np.int32)
        for side, count in zip((height, width), counts, strict=True)
    )
    return np.stack(np.meshgrid(ys, xs, indexing="ij"), axis=-1).reshape(-1, 2)


def _counts(height: int, width: int, tile: int, stride: float) -> tuple[int, int]:
    """How many tiles down and across."""
    rows, columns = (1 + math.ceil((side - tile) / stride) for side in (height, width))
    return rows, columns


def quality_map(size: tuple[int, int], windows: NDArray[np.int32], scores: Float32, tile: int) -> Float32:
    """Scores f32 [n] of windows (y, x) in a picture of `size` -> f32 [rows,columns], cells of about a sixth of a tile.

    A cell is the mean of the tiles over it, each weighing less the further away its middle is.
    """
    cell = tile / (2 * STRIDES)
    rows, columns = (max(1, round(side / cell)) for side in size)
    y, x = ((np.arange(count) + 0.5) * side / count for count, side in ((rows, size[0]), (columns, size[1])))
    middles = windows + tile / 2

    def weights(at: NDArray[Any], middle: NDArray[Any]) -> NDArray[Any]:  # [cells], [n] -> [n,cells]
        near = 1 - np.abs(at[None] - middle[:, None]) / (tile / 2)
        return np.asarray(np.clip(near, 1e-3, None) ** 2)

    wy, wx = weights(y, middles[:, 0]), weights(x, middles[:, 1])
    total = np.einsum("nr,nc->rc", wy, wx)
    return np.asarray(np.einsum("n,nr,nc->rc", scores.astype(np.float64), wy, wx) / total, np.float32)


def by_depth(quality: Float32, near: UInt8) -> tuple[float, ...] | None:
    """Mean of the map in each of QUANTILES parts of a picture by its depth image, the farthest first.

    None for a picture of one depth, or of too few.
    """
    depth = np.asarray(cv2.resize(near, quality.shape[::-1], interpolation=cv2.INTER_AREA), np.float32)
    order = np.argsort(depth.ravel(), kind="stable")
    if np.ptp(depth) < 1 or len(order) < QUANTILES:
        return None
    return tuple(float(quality.ravel()[part].mean()) for part in np.array_split(order, QUANTILES))


def _closer(p: spec.Preprocess, height: int, width: int) -> spec.Preprocess:
    """The preprocessing with a working size of up to ZOOM times, as far as the picture has pixels for it."""
    if not p.short_side:
        return p
    return replace(p, short_side=max(p.short_side, min(ZOOM * p.short_side, height, width)))


def _legend(width: int, low: float, high: float) -> UInt8:
    """A white strip with the scale of the map: its ends, and the colours between them."""
    strip = np.full((LEGEND, width, 3), 255, np.uint8)
    left, right = width // 2 + 60, width - 60
    if right > left:
        ramp = np.linspace(0, 255, right - left).astype(np.uint8)[None]
        strip[6:-6, left:right] = cv2.applyColorMap(np.repeat(ramp, LEGEND - 12, 0), cv2.COLORMAP_VIRIDIS)[..., ::-1]
    for text, at in ((f"{low:.2f}", left - 48), (f"{high:.2f}", right + 8)):
        cv2.putText(strip, text, (max(0, at), LEGEND - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return strip
