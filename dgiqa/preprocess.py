"""RGB -> depth network input -> depth image -> tiles: the authors' recipe in numpy and OpenCV.

    (image) ──► rgb u8 [H,W,3] ──► depth_input ──► (depth network) ──► depth_image u8 [h,w]
                     │                                                    │
                     └─► working_image u8 [h,w,3] ──► cut_tiles ◄─────────┘
                                                          ▲
                                     windows_for ─────────┘

This file is the definition, which every other implementation of the same steps must match. Every step takes the
bundle's `spec.Preprocess`, whose version says how it resizes; a change that gives other network inputs for the same
bytes is a new version. Nothing here keeps or changes global state, so every function may run in several threads.
"""

import math
import random
import re
from collections.abc import Sequence

import cv2
import numpy as np

from dgiqa.dtypes import Float32, Int32, UInt8
from dgiqa.errors import DgiqaError, ImageError
from dgiqa.resize import resize_cubic
from dgiqa.spec import IMAGENET_MEAN, IMAGENET_STD, NORMALISATIONS, TILE, Preprocess

NOT_FINITE = "the depth network returned NaN or infinity; check its file and precision: dgiqa-rt verify"
MAX_ASPECT = 32  # long side / short side. At short side 384 this is 110 tiles
# A vision transformer's attention grows with the square of its input: 2 Mpx are 10,700 tokens of 14 x 14, about 3 GB
# of attention weights for ViT-S if they are not fused. The paper's 518 pixels reach this at 7.8:1.
MAX_DEPTH_PIXELS = 2**21
MAX_CROPS = 1000  # official:COUNT. 1000 tiles are 1.2 GB of network input
# The authors seed Python's generator, then let albumentations transform the image, and then draw their crops. Before
# 1.4.21 albumentations consumes some of the generator's 32-bit words: first version with a count -> the count. Recorded
# from all 33 releases from 1.3.0 to 2.0.8, on eight image shapes each.
OFFICIAL = {
    **{"official-1.3": 8, "official-1.4.1": 6, "official-1.4.4": 7, "official-1.4.10": 9, "official-1.4.15": 3},
    **{"official-1.4.21": 0, "official": 0},
}

# Network input for every uint8 level, one table per channel. Three look-ups take 0.6x the time of the arithmetic.
_NORMALISED = {
    name: tuple(((np.arange(256) / 255 - m) / s).astype(np.float32) for m, s in zip(mean, std, strict=True))
    for name, (mean, std) in NORMALISATIONS.items()
}
_BLOCK_ROWS = 32  # of a full-size depth map: they stay in the CPU's cache between the steps of its arithmetic


def check_size(height: int, width: int, p: Preprocess) -> None:
    """Raise ImageError if an image is too small, or so long and thin that its resized copies would exhaust memory."""
    depth = MAX_DEPTH_PIXELS / p.depth_lower_bound**2 if p.depth_lower_bound else MAX_ASPECT
    _check_aspect(height, width, min(MAX_ASPECT, depth))
    working_size(height, width, p)


def depth_size(height: int, width: int, p: Preprocess) -> tuple[int, int]:
    """Height and width of the depth network's input for an image of this size. Raises ImageError as `check_size`."""
    check_size(height, width, p)
    scale = max(p.depth_lower_bound / height, p.depth_lower_bound / width)
    h, w = (_to_multiple(scale * side, p.depth_lower_bound, p.depth_multiple) for side in (height, width))
    return h, w


def depth_input(rgb: UInt8, p: Preprocess) -> Float32:
    """Resize and normalise rgb [H,W,3] for the depth network: f32 [1,3,h,w].

    The aspect is kept; the shorter of h and w is `p.depth_lower_bound`, and both are multiples of `p.depth_multiple`.
    Normalised with ImageNet's statistics. Version 1 is Depth Anything's own transform: cubic without antialiasing,
    overshoot not clipped. Version 2 reduces by area to uint8, or works as version 1 if a side grows. Raises ImageError
    if the image is too long and thin (`check_size`).
    """
    height, width = rgb.shape[:2]
    h, w = depth_size(height, width, p)
    result = np.empty((1, 3, h, w), np.float32)
    if reduces((height, width), (h, w), p):
        channels = cv2.split(cv2.resize(rgb, (w, h), interpolation=cv2.INTER_AREA))
        for channel, table, plane in zip(channels, _NORMALISED["imagenet"], result[0], strict=True):
            cv2.LUT(channel, table, dst=plane)
        return result
    resized = resize_cubic(rgb, h, w)
    for c, (mean, std) in enumerate(zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)):
        # Scaled while converting to float32, then shifted: within 5e-7 of float64 throughout, and five times as fast
        np.multiply(resized[..., c], 1 / (255 * std), out=result[0, c], casting="same_kind")
        result[0, c] -= np.float32(mean / std)
    return result


def depth_image(depth: Float32, height: int, width: int, p: Preprocess) -> UInt8:
    """Turn the depth network's f32 [1,h,w] for an image of height x width into uint8 of its working size.

    0 is the farthest, 255 the nearest. Version 1 makes it at the image's own size (`stretched`), then resizes it like
    the image; version 2 makes it at the working size. A constant depth gives zeros. Raises DgiqaError if the depth is
    not finite, ImageError as `working_size` does.
    """
    size = (height, width) if p.version == 1 else working_size(height, width, p)
    return working_image(stretched(depth, *size), p)


def stretched(depth: Float32, height: int, width: int) -> UInt8:
    """Resize the depth network's f32 [1,h,w] to an image of any size, uint8 [height,width].

    Bilinear (half-pixel centres), then min-max per image, times 255, truncated. A constant depth gives zeros. Raises
    DgiqaError if the depth is not finite.
    """
    if not np.isfinite(depth).all():
        raise DgiqaError(NOT_FINITE)
    if depth.min() == depth.max():  # resized, it may differ by rounding, and min-max would blow that up
        return np.zeros((height, width), np.uint8)
    full = np.asarray(cv2.resize(depth[0], (width, height), interpolation=cv2.INTER_LINEAR))
    low, high = (np.float32(value) for value in cv2.minMaxLoc(full)[:2])
    result = np.empty(full.shape, np.uint8)
    for y in range(0, height, _BLOCK_ROWS):  # does not write to `full`
        block = full[y : y + _BLOCK_ROWS] - low
        block /= high - low + np.float32(1e-8)
        block *= np.float32(255)
        result[y : y + _BLOCK_ROWS] = block
    return result


def working_size(height: int, width: int, p: Preprocess) -> tuple[int, int]:
    """Height and width of the working image, from which tiles are cut.

    The longer side is rounded half to even, as albumentations.SmallestMaxSize does. Raises ImageError if that side is
    more than MAX_ASPECT times the shorter one, or if the image is not resized and has a side shorter than a tile.
    """
    _check_aspect(height, width, MAX_ASPECT)
    shorter = min(height, width)
    if not p.short_side and shorter < p.tile:
        fix = f"and this model looks at tiles of {p.tile} x {p.tile} of the image as it is; enlarge it"
        raise ImageError(f"got an image of {width} x {height}, {fix}")
    scale = (p.short_side or shorter) / shorter
    return round(height * scale), round(width * scale)


def working_image(rgb: UInt8, p: Preprocess) -> UInt8:
    """Resize uint8 [H,W,3] or [H,W] so that its shorter side is `p.short_side` pixels; the same array if it is.

    Version 1 is bilinear without antialiasing. Version 2 reduces by area and enlarges bilinearly. Raises ImageError as
    `working_size` does.
    """
    height, width = rgb.shape[:2]
    h, w = working_size(height, width, p)
    if (h, w) == (height, width):
        return rgb
    method = cv2.INTER_AREA if reduces((height, width), (h, w), p) else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(rgb, (w, h), interpolation=method), np.uint8)


def grid_windows(height: int, width: int, tile: int) -> Int32:
    """Top-left corners (y, x) of the fewest evenly spaced tiles that cover every pixel: int32 [n,2], row by row.

    The outermost tiles touch the edges. Raises ValueError if a side is shorter than `tile`.
    """
    _check_tile_fits(height, width, tile)
    ys, xs = (np.linspace(0, side - tile, -(-side // tile)).round().astype(np.int32) for side in (height, width))
    return np.stack(np.meshgrid(ys, xs, indexing="ij"), axis=-1).reshape(-1, 2)


def official_windows(  # noqa: PLR0917 - what a tiling's name says
    height: int, width: int, tile: int, count: int, seed: int = 42, family: str = "official"
) -> Int32:
    """The authors' `count` random crops as corners (y, x), int32 [count,2], as their script draws them.

    It seeds Python's generator, of which albumentations consumes OFFICIAL[family] words, and draws x, then y.
    Raises ValueError if a side is shorter than `tile`.
    """
    _check_tile_fits(height, width, tile)
    generator = random.Random(seed)
    for _ in range(OFFICIAL[family]):
        generator.getrandbits(32)
    draw = generator.randint
    xy = [(draw(0, width - tile), draw(0, height - tile)) for _ in range(count)]
    return np.array(xy, np.int32).reshape(-1, 2)[:, ::-1].copy()


def windows_for(tiling: str, height: int, width: int, tile: int) -> Int32:
    """Windows int32 [n,2] for a tiling's name: "grid", "official:COUNT" or "official:COUNT:SEED" (by default seed 42).

    "official" may be any key of OFFICIAL. Raises ValueError for another name, or if COUNT is not in 1..MAX_CROPS.
    """
    if tiling == "grid":
        return grid_windows(height, width, tile)
    match = re.fullmatch(r"([a-z0-9.-]+):([0-9]{1,9})(?::([0-9]{1,18}))?", tiling)
    if match is None or match[1] not in OFFICIAL or not 1 <= int(match[2]) <= MAX_CROPS:
        raise ValueError(
            f'the tiling is {tiling!r}; allowed are "grid", "official:COUNT" and "official:COUNT:SEED" '
            f"with COUNT from 1 to {MAX_CROPS}, for example official:20, and instead of official one of "
            + ", ".join(sorted(OFFICIAL.keys() - {"official"}))
        )
    return official_windows(height, width, tile, int(match[2]), int(match[3] or 42), match[1])


def check_tiling(tiling: str, tile: int = TILE) -> None:
    """Raise ValueError, which lists the tilings, unless `tiling` is among them."""
    windows_for(tiling, tile, tile, tile)


def cut_tiles(
    rgb: UInt8,
    depth: UInt8 | None,
    windows: Int32,
    tile: int,
    out: tuple[Float32, ...] | None = None,
    *,
    normalisation: str = "imagenet",
) -> tuple[Float32, ...]:
    """Cut the same windows (y, x) from rgb uint8 [H,W,3] and depth uint8 [H,W], if there is one: f32 [n,3,tile,tile].

    Both are normalised with the same statistics (NORMALISATIONS); the depth image first becomes three equal channels.
    out: one or two such arrays, C-contiguous, to fill and return. Raises ValueError if sizes differ or a window leaves
    the image.
    """
    images = (rgb,) if depth is None else (rgb, depth)
    height, width = rgb.shape[:2]
    if depth is not None and depth.shape != (height, width):
        raise ValueError(f"rgb is {rgb.shape[:2]} and depth {depth.shape}; resize both to the same size first")
    if len(windows) and (windows.min() < 0 or (windows.max(axis=0) + tile > (height, width)).any()):
        raise ValueError(f"windows of {tile} pixels leave the image of {height} x {width}")
    shape = (len(windows), 3, tile, tile)
    out = out or tuple(np.empty(shape, np.float32) for _ in images)
    misfit = [a for a in out if a.shape != shape or a.dtype != np.float32 or not a.flags.c_contiguous]
    if misfit or len(out) != len(images):
        wanted = f"wanted {'one' if depth is None else 'two'} C-contiguous float32 arrays of {shape} to fill"
        raise ValueError(f"{wanted}, got {[a.shape for a in out]}")
    for image, into in zip(images, out, strict=True):
        _fill_tiles(cv2.split(image) if image.ndim == 3 else [image] * 3, windows, into, _NORMALISED[normalisation])
    return out


def reduces(size: tuple[int, int], target: tuple[int, int], p: Preprocess) -> bool:
    """Whether an image of `size` is reduced to `target` by averaging over areas; both are (height, width).

    If a side grows, OpenCV's INTER_AREA does not average.
    """
    return p.version != 1 and target[0] <= size[0] and target[1] <= size[1]


def _fill_tiles(channels: Sequence[UInt8], windows: Int32, tiles: Float32, tables: Sequence[Float32]) -> None:
    """Normalise the windows of three uint8 [H,W] channels into f32 [n,3,tile,tile].

    Each tile is looked up by itself: looking up the whole picture and copying takes 1.3x the time, and more memory.
    """
    side = tiles.shape[-1]
    for into, (y, x) in zip(tiles, windows.tolist(), strict=True):
        for plane, channel, table in zip(into, channels, tables, strict=True):
            cv2.LUT(channel[y : y + side, x : x + side], table, dst=plane)


def _check_aspect(height: int, width: int, limit: float) -> None:
    if min(height, width) < 1:
        raise ImageError(f"got an image of {width} x {height}, wanted at least one pixel")
    if max(height, width) > limit * min(height, width):
        ratio = max(height, width) / min(height, width)
        raise ImageError(f"{width} x {height} is {ratio:.1f} times as long as wide, limit {limit:.1f}; crop it")


def _check_tile_fits(height: int, width: int, tile: int) -> None:
    if min(height, width) < tile:
        raise ValueError(f"image of {height} x {width} is smaller than a tile of {tile}; resize it first")


def _to_multiple(side: float, lower_bound: int, multiple: int) -> int:
    """The nearest multiple (ties to even), or the next one above if that is below the bound."""
    nearest = round(side / multiple) * multiple
    return nearest if nearest >= lower_bound else math.ceil(side / multiple) * multiple
