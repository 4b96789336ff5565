"""A picture becomes a map of its quality: where it is low, and whether near or far things are worse.

    picture ─► tiles at twice the usual size, overlapping ─► each one's score ─► weighted means ─► map
                                              depth image ─► map by quantiles of depth ─► near and far
            ─► the score's own tiles ─► their scores ─────────────────────► the tiles that decide
            ─► tiles at the usual size ─► the last layer, place by place ─► Grad-CAM, with depth and without

A score is a mean over few large tiles. The map asks the same networks about smaller parts: they see the picture at ZOOM
times its working size where it has the pixels, with STRIDES tiles starting along a tile's side. The map is relative: it
compares parts with each other, since the networks are used to smaller pictures. Grad-CAM shows which places of the
picture, as it is scored, its logit comes from (see `last_layer`). Each place sees far around itself, so it is coarser.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np

from dgiqa import forward, preprocess, spec
from dgiqa.dtypes import Array, Bool, Float32, Float64, Int32, UInt8
from dgiqa.errors import ImageError
from dgiqa.forward import Stages
from dgiqa.image.sources import Source, name_of
from dgiqa.last_layer import CamSession
from dgiqa.work import Work

ZOOM = 2  # times the working size
STRIDES = 3  # tiles begin this often along a tile's side
MAX_TILES = 400  # of one picture; larger pictures get longer strides
QUANTILES = 4  # of depth, each a quarter of the picture
SIDE = 720  # longest side of a picture that is shown, pixels
LEGEND = 26  # pixels below it
GAP = 6  # pixels between drawings
LOWEST = 3  # how many tiles of the map are named
LEAST_SPAN = 0.1  # of score that the map's colours span: a uniform picture looks uniform
LEAST_APART = 0.01  # of score between near and far, to say which is worse
FLAT = 0.25  # of the median tile's contrast: below it there is nothing to judge
COARSE = 16  # pixels that are averaged before contrast is measured, so that blur does not lower it
CAM_CELL = 8  # pixels of the working image
CAM_ROUNDS = 20  # in which the picture's logits are separated from those of a tile's places
FONT = cv2.FONT_HERSHEY_SIMPLEX


@dataclass(frozen=True)
class Tile:
    """A tile of the picture as decoded. y, x: its upper left corner; score: in [0, 1].

    pull: by how much the picture's score would rise without it; 0 for tiles of the map.
    """

    y: int
    x: int
    score: float
    pull: float = 0.0


@dataclass(frozen=True, eq=False)
class Explanation:
    """Quality over a picture.

    source, bundle, height, width, score: as in Score. value: mean of the map, which is not the picture's score.
    map: f32 [rows,columns] in [0, 1], cells of equal size over the whole picture. windows: int32 [n,2], top-left (y, x)
    of the map's tiles in pixels of the image as decoded; side: their (height, width); tile_scores: f32 [n];
    flat: bool [n], tiles that show next to nothing, such as a clear sky, whose scores mean little.
    deciding: the score's own tiles, `deciding_side` large, the one that lowers it most first. by_depth: mean of the map
    in each quarter of the picture by depth, the farthest first; None where the model has no depth or the picture none.
    cam: f32 [rows,columns], logit of each place of the working image, or None if it was not asked for; cam_flat: the
    same with all of the picture equally far, None without depth. picture: uint8 [H,W,3] as the networks saw it. note:
    the score's own, "" without one.
    """

    source: str
    bundle: str
    height: int
    width: int
    score: float
    value: float
    map: Float32
    windows: Int32
    side: tuple[float, float]
    tile_scores: Float32
    flat: Bool
    deciding: tuple[Tile, ...]
    deciding_side: tuple[float, float]
    by_depth: tuple[float, ...] | None
    cam: Float32 | None
    cam_flat: Float32 | None
    picture: UInt8 = field(repr=False)
    note: str = ""

    @property
    def lowest(self) -> list[Tile]:
        """The three lowest tiles of the map, flat ones last; none overlaps another by half a side both ways."""
        found: list[int] = []
        for i in np.lexsort((self.tile_scores, self.flat)):
            apart = np.abs(self.windows[found] - self.windows[i]) >= np.array(self.side) / 2
            if len(found) < LOWEST and apart.any(1).all():
                found.append(int(i))
        return [_tile(self.windows[i], self.tile_scores[i]) for i in found]

    @property
    def near_and_far(self) -> str:
        """Whether the near or the far quarter is worse, in words; empty where depth is not known, or where they
        hardly differ."""
        far, near = (self.by_depth[0], self.by_depth[-1]) if self.by_depth else (0.0, 0.0)
        if abs(near - far) < LEAST_APART:
            return ""
        which = "near" if near < far else "far"
        return f"the {which} parts are worse: nearest quarter {near:.3f}, farthest {far:.3f}"

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON; without the picture."""
        maps = {"map": self.map, "cam": self.cam, "cam_flat": self.cam_flat}
        return {
            "path": self.source,
            "bundle": self.bundle,
            "score": round(self.score, 6),
            "value": round(self.value, 6),
            "side": [round(length, 1) for length in self.side],
            "lowest": [{"y": t.y, "x": t.x, "score": round(t.score, 6)} for t in self.lowest],
            "deciding_side": [round(length, 1) for length in self.deciding_side],
            "deciding": [
                {"y": t.y, "x": t.x, "score": round(t.score, 6), "pull": round(t.pull, 6)} for t in self.deciding
            ],
            "note": self.note or None,
            "by_depth": None if self.by_depth is None else [round(mean, 6) for mean in self.by_depth],
            **{name: None if map_ is None else np.round(map_.astype(float), 4).tolist() for name, map_ in maps.items()},
        }

    def panels(self) -> dict[str, UInt8]:
        """Title -> drawing of a part of the explanation, uint8 [h,w,3] RGB: dark is low, the scale is below."""
        scale = min(1.0, SIDE / max(self.picture.shape[:2]))
        size = [max(1, round(side * scale)) for side in self.picture.shape[1::-1]]
        shown = np.asarray(cv2.resize(self.picture, size, interpolation=cv2.INTER_AREA), np.uint8)
        boxed = _boxed(shown, self.lowest, self.side, shown.shape[0] / self.height)
        drawn = {
            "the picture, with the lowest tiles of the map": boxed,
            "quality": _overlaid(shown, self.map, self._ends()),
        }
        cams = {"Grad-CAM": self.cam, "Grad-CAM without depth": self.cam_flat}
        known = {name: cam for name, cam in cams.items() if cam is not None}
        ends = [min(cam.min() for cam in known.values()), max(cam.max() for cam in known.values())] if known else []
        return drawn | {name: _overlaid(shown, cam, ends) for name, cam in known.items()}

    def _ends(self) -> tuple[float, float]:
        """The scores at the ends of the map's scale."""
        low, high = float(self.map.min()), float(self.map.max())
        lacking = max(0.0, LEAST_SPAN - (high - low))
        low = max(0.0, min(low - lacking / 2, 1 - LEAST_SPAN))
        return low, max(high, low + LEAST_SPAN)

    def drawn(self) -> UInt8:
        """`panels` side by side, two in a row, uint8 [h,w,3] RGB."""
        panels = []
        for name, panel in self.panels().items():  # all are of one size
            panels.append(_widened(panel, top=LEGEND, right=GAP))
            cv2.putText(panels[-1], name, (2, LEGEND - 8), FONT, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
        panels += [np.full_like(panels[0], 255)] * (len(panels) % 2)
        rows = [np.concatenate(panels[i : i + 2], 1) for i in range(0, len(panels), 2)]
        return np.concatenate(rows, 0)[:, :-GAP]


def explain(stages: Stages, source: Source, *, name: str | None = None, cam: CamSession | None = None) -> Explanation:
    """Map the quality of a picture. cam: a session of the bundle's quality network, where Grad-CAM is wanted, too.

    Raises ImageError if there is no picture in the source, BackendError if a network fails.
    """
    work = stages.prepare(source, name or name_of(source), look=True, keep=True)
    if (rgb := work.pixels) is None:
        raise ImageError("the picture is on a GPU; copy it to the host to have it explained")
    p, size = stages.p, np.array(rgb.shape[:2])
    finer = _finer(work, rgb, p)
    stages.run([work, finer])
    score, _ = stages.finish(work), stages.pooled(finer.tile_scores)  # BackendError for what is not finite
    quality = quality_map((finer.rgb.shape[0], finer.rgb.shape[1]), finer.windows, finer.tile_scores, p.tile)
    scale, own_scale = size / finer.rgb.shape[:2], size / work.rgb.shape[:2]
    cams = [work.depth] if work.depth is None else [work.depth, np.full_like(work.depth, round(work.depth.mean()))]
    maps = [] if cam is None else [cam_map(cam, work.rgb, near, p) for near in cams]
    return Explanation(
        source=work.source,
        bundle=stages.bundle.id,
        height=work.height,
        width=work.width,
        score=score.value,
        value=float(quality.mean(dtype=np.float64)),
        map=quality,
        windows=np.round(finer.windows * scale).astype(np.int32),
        side=_sides(p.tile * scale),
        tile_scores=finer.tile_scores,
        flat=flat(finer.rgb, finer.windows, p.tile),
        deciding=_deciding(np.round(work.windows * own_scale).astype(int), work.tile_scores),
        deciding_side=_sides(p.tile * own_scale),
        by_depth=None if finer.depth is None else by_depth(quality, finer.depth),
        cam=maps[0] if maps else None,
        cam_flat=maps[1] if maps[1:] else None,
        picture=finer.rgb,
        note=score.note,
    )


def _finer(work: Work, rgb: UInt8, p: spec.Preprocess) -> Work:
    """The same picture at ZOOM times its working size, as far as it has pixels for it, with overlapping windows."""
    short = p.short_side and max(p.short_side, min(ZOOM * p.short_side, work.height, work.width))
    working = preprocess.working_image(rgb, replace(p, short_side=short))
    depth = None if work.depth is None else np.asarray(cv2.resize(work.depth, working.shape[1::-1]), np.uint8)
    windows = overlapping(working.shape[0], working.shape[1], p.tile)
    scores = np.full(len(windows), np.nan, np.float32)
    return replace(work, rgb=working, depth=depth, windows=windows, tile_scores=scores, timings_ms={}, extra={})


def cam_map(cam: CamSession, rgb: UInt8, near: UInt8 | None, p: spec.Preprocess) -> Float32:
    """Return the logit of each place of a working image, f32 [rows,columns], in cells of CAM_CELL pixels.

    Convolutions see zeros beyond a tile. With a dilation of 4 they cause nine tenths of the differences within a tile.
    So each logit is taken as the picture's own at that point plus the tile's at that place. The latter, except for its
    mean, is left out. Overlapping tiles separate the two, and their middles count more than their edges.
    """
    windows = overlapping(rgb.shape[0], rgb.shape[1], p.tile)
    places = np.concatenate([cam.logits(feeds) for feeds in forward.tiles(rgb, near, windows, p)])
    side, corners = p.tile // CAM_CELL, windows // CAM_CELL
    inward = _inward((np.arange(side) + 0.5) / side - 0.5)
    weight, there = np.outer(inward, inward), [np.s_[y : y + side, x : x + side] for y, x in corners]
    found, lattice = np.zeros(0), np.zeros(places.shape[1:])
    for _ in range(CAM_ROUNDS):
        total, count = np.zeros((2, *(corners.max(0) + side)))
        for at, logits in zip(there, places - lattice, strict=True):
            total[at] += weight * cv2.resize(logits, (side, side))
            count[at] += weight
        found = total / count
        seen = [cv2.resize(found[at], lattice.shape[::-1], interpolation=cv2.INTER_AREA) for at in there]
        lattice = (places - seen).mean(0)
        lattice -= lattice.mean()
    return found.astype(np.float32)


def overlapping(height: int, width: int, tile: int) -> Int32:
    """Top-left corners (y, x) of overlapping tiles that touch all edges, int32 [n,2].

    At most MAX_TILES, or as few as cover the picture where those are more.
    """
    stride = tile / STRIDES
    rest = np.array([height, width]) - tile
    while np.prod(counts := 1 + np.ceil(rest / stride).astype(int)) > MAX_TILES and stride < tile:
        stride = min(1.25 * stride, tile)
    ys, xs = (np.linspace(0, most, count).round().astype(np.int32) for most, count in zip(rest, counts, strict=True))
    return np.stack(np.meshgrid(ys, xs, indexing="ij"), axis=-1).reshape(-1, 2)


def flat(rgb: UInt8, windows: Int32, tile: int) -> Bool:
    """Which windows (y, x) of a picture have next to no contrast compared with the others, bool [n]."""
    grey, side = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), max(2, tile // COARSE)
    parts = (grey[y : y + tile, x : x + tile] for y, x in windows)
    contrast = np.array([cv2.resize(part, (side, side), interpolation=cv2.INTER_AREA).std() for part in parts])
    return np.asarray(contrast < FLAT * np.median(contrast))


def quality_map(size: tuple[int, int], windows: Int32, scores: Float32, tile: int) -> Float32:
    """Scores f32 [n] of windows (y, x) in a picture of `size` -> f32 [rows,columns], cells of about a sixth of a tile.

    A cell is the mean of the tiles over it, each weighing less the further away its middle is.
    """
    cell = tile / (2 * STRIDES)
    rows, columns = (max(1, round(side / cell)) for side in size)
    y, x = ((np.arange(count) + 0.5) * side / count for count, side in ((rows, size[0]), (columns, size[1])))
    middles = windows + tile / 2

    wy, wx = (_inward((at[None] - middles[:, i, None]) / tile) for i, at in enumerate((y, x)))  # [n,cells]
    total = np.einsum("nr,nc->rc", wy, wx)
    return np.asarray(np.einsum("n,nr,nc->rc", scores.astype(np.float64), wy, wx) / total, np.float32)


def _inward(apart: Array) -> Float64:
    """Weight of a place by its distance from a tile's middle, in sides of the tile: falls to nearly 0 at its edge."""
    return np.asarray(np.clip(1 - 2 * np.abs(apart), 1e-3, None) ** 2)


def by_depth(quality: Float32, near: UInt8) -> tuple[float, ...] | None:
    """Mean of the map in each of QUANTILES parts of a picture by its depth image, the farthest first.

    None for a picture of a single depth, or of too few cells.
    """
    depth = np.asarray(cv2.resize(near, quality.shape[::-1], interpolation=cv2.INTER_AREA), np.float32)
    order = np.argsort(depth.ravel(), kind="stable")
    if np.ptp(depth) < 1 or len(order) < QUANTILES:
        return None
    return tuple(float(quality.ravel()[part].mean()) for part in np.array_split(order, QUANTILES))


def _sides(lengths: Float64) -> tuple[float, float]:
    return float(lengths[0]), float(lengths[1])


def _deciding(corners: Array, scores: Float32) -> tuple[Tile, ...]:
    """The score's tiles, the one that lowers it most first: without it the score is the mean of the others."""
    mean, n = float(scores.mean(dtype=np.float64)), len(scores)
    pulls = (mean - scores.astype(np.float64)) / (n - 1) if n > 1 else np.zeros(1)
    order = np.argsort(-pulls, kind="stable")
    return tuple(_tile(corners[i], scores[i], pulls[i]) for i in order)


def _tile(corner: Array, score: Any, pull: Any = 0.0) -> Tile:
    return Tile(int(corner[0]), int(corner[1]), float(score), float(pull))


def _boxed(shown: UInt8, tiles: list[Tile], side: tuple[float, float], scale: float) -> UInt8:
    """The picture with the tiles' outlines and scores, and room below, where other panels have a scale."""
    drawn = shown.copy()
    for tile in tiles:
        top, left = int(tile.y * scale), int(tile.x * scale)
        bottom, right = (int((at + n) * scale) - 2 for at, n in zip((tile.y, tile.x), side, strict=True))
        for colour, width in (((0, 0, 0), 4), ((255, 255, 255), 2)):
            cv2.rectangle(drawn, (left, top), (right, bottom), colour, width)
            cv2.putText(drawn, f"{tile.score:.2f}", (left + 6, top + 20), FONT, 0.5, colour, width, cv2.LINE_AA)
    return _widened(drawn, bottom=LEGEND)


def _overlaid(shown: UInt8, values: Float32, ends: Sequence[float] = ()) -> UInt8:
    """The grey picture under the colours of a map, with its scale. ends: of the scale, by default the map's own."""
    low, high = map(float, ends or (values.min(), values.max()))
    level = (values - low) / max(high - low, 1e-6)
    fine = np.asarray(cv2.resize(level, shown.shape[1::-1], interpolation=cv2.INTER_CUBIC)).clip(0, 1)
    colours = cv2.applyColorMap((255 * fine).astype(np.uint8), cv2.COLORMAP_VIRIDIS)[..., ::-1]
    grey = cv2.cvtColor(shown, cv2.COLOR_RGB2GRAY)[..., None]
    overlaid = _widened((0.45 * grey + 0.55 * colours).astype(np.uint8), bottom=LEGEND)
    strip = overlaid[-LEGEND:]  # the scale: its ends, and the colours between them
    left, right = 60, strip.shape[1] - 60
    if right > left:
        ramp = np.linspace(0, 255, right - left).astype(np.uint8)[None]
        strip[6:-6, left:right] = cv2.applyColorMap(np.repeat(ramp, LEGEND - 12, 0), cv2.COLORMAP_VIRIDIS)[..., ::-1]
    for text, at in ((f"{low:.2f}", left - 48), (f"{high:.2f}", right + 8)):
        cv2.putText(strip, text, (max(0, at), LEGEND - 8), FONT, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return overlaid


def _widened(picture: UInt8, *, top: int = 0, bottom: int = 0, right: int = 0) -> UInt8:
    """The picture with white margins."""
    widened = cv2.copyMakeBorder(picture, top, bottom, 0, right, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    return np.asarray(widened, np.uint8)
