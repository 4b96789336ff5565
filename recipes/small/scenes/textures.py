"""A seed and a few photographs become surfaces' textures: mip pyramids f32 [s,s,3] in [0, 1], and their reading."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from recipes.small.scenes.geometry import Array, Vector

Image = NDArray[np.uint8]
Random = np.random.Generator

TEXTURE_SIDE = 384  # pixels
MAX_TEXTURE_SIDE = 1024  # a loaded photograph's longest side, pixels
MIN_TEXTURE_SIDE = 300  # smaller pictures are icons and previews, not photographs


@dataclass(frozen=True)
class Material:
    """A mip pyramid f32 [s,s,3] in [0, 1] laid on the surface at `density` texels a metre, under a finer grain."""

    pyramid: list[Array]
    density: float
    grain: float = 0.1
    tint: Vector = (1.0, 1.0, 1.0)
    gloss: float = 0.0  # how much of the light a highlight mirrors


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


def texture_image(rng: Random, textures: Sequence[Image]) -> Array:
    """A nearly even coat of paint, a crop of a photograph (if there are any) or a procedural pattern, recoloured.

    Almost half of all surfaces are paint, so that depth is not learnt as the amount of detail.
    """
    kind = rng.random()
    if kind < 0.45:
        return _paint(rng)
    if textures and kind < 0.82:
        image = _photograph_crop(rng, textures[int(rng.integers(len(textures)))])
    else:
        image = PATTERNS[int(rng.integers(len(PATTERNS)))](rng)
    mean, deviation = (s.ravel().astype(np.float32) for s in cv2.meanStdDev(image))
    contrast = np.float32(np.clip(rng.uniform(0.05, 0.26) / max(float(deviation.mean()), 0.04), 0.2, 2.0))
    grey = rng.uniform(0.2, 0.8) * (mean / max(float(mean.mean()), 0.05)) ** np.float32(rng.uniform(0, 1.2))
    image = (image - mean) * contrast + grey.astype(np.float32)
    return np.clip(image, 0.02, 1).astype(np.float32)


def _paint(rng: Random) -> Array:
    """One colour with faint stains."""
    stain = noise(rng, (TEXTURE_SIDE, TEXTURE_SIDE), float(rng.uniform(0.5, 1.6)))[..., None] - np.float32(0.5)
    return np.clip(_colour(rng) * (1 + np.float32(rng.uniform(0.02, 0.35)) * stain), 0.02, 1).astype(np.float32)


def _colour(rng: Random) -> Array:
    """A colour f32 [3]: most often a grey, a brown or a beige, now and then a loud one."""
    warmth = np.array([1, 0, -1], np.float32) * np.float32(rng.normal(0.1, 0.15))
    loud = rng.uniform(-1, 1, 3).astype(np.float32) * np.float32(0.75 if rng.random() < 0.25 else 0.08)
    return np.clip(np.float32(rng.uniform(0.06, 0.95)) * (1 + warmth + loud), 0.02, 1).astype(np.float32)


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
    """Two random colours, blended by share f32 [s,s] in [0, 1]: f32 [s,s,3]."""
    first, second = _colour(rng), _colour(rng)
    return first + share[..., None] * (second - first)


def _worn(rng: Random, share: Array) -> Array:
    """A two-coloured pattern with the stains of an old surface."""
    side = share.shape[0]
    stain = noise(rng, (side, side), 1.3)[..., None]
    return _two_colours(rng, share) * (1 - np.float32(rng.uniform(0.1, 0.5)) * stain)


def _grid(side: int = TEXTURE_SIDE) -> tuple[Array, Array]:
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    return y, x


def _clouded(rng: Random) -> Array:
    return _two_colours(rng, noise(rng, (TEXTURE_SIDE, TEXTURE_SIDE), float(rng.uniform(0.6, 1.6))))


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
    warp = noise(rng, (TEXTURE_SIDE, TEXTURE_SIDE), 2.0) * rng.uniform(40, 120)
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
    for radius in -np.sort(-power_law(rng, 3, 60, 700)):
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


def _windows(rng: Random) -> Array:
    """Rows of dark panes in a light wall, or the other way round."""
    y, x = _grid()
    (high, wide), frame = rng.uniform(28, 90, 2), float(rng.uniform(0.12, 0.35))
    down, across = y / np.float32(high) % 1, x / np.float32(wide) % 1
    inside = (np.abs(down - 0.5) < 0.5 - frame) & (np.abs(across - 0.5) < 0.5 - frame)
    bar = np.abs(across - 0.5) < rng.uniform(0, 0.05)
    return _worn(rng, (inside & ~bar).astype(np.float32))


PATTERNS: tuple[Callable[[Random], Array], ...] = (
    _clouded,
    _bricks,
    _checks,
    _stripes,
    _wood,
    _text,
    _pebbles,
    _windows,
)


def noise(rng: Random, shape: tuple[int, int], slope: float) -> Array:
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


def power_law(rng: Random, low: float, high: float, count: int) -> NDArray[np.float64]:
    """Radii between low and high with a density proportional to r^-3."""
    share = rng.random(count)
    return (low**-2 - share * (low**-2 - high**-2)) ** -0.5


def mip_pyramid(texture: Array) -> list[Array]:
    """A texture and its halvings down to a few texels."""
    levels = [texture]
    while min(levels[-1].shape[:2]) > 4:
        high, wide = levels[-1].shape[:2]
        smaller = cv2.resize(levels[-1], (wide // 2, high // 2), interpolation=cv2.INTER_AREA)
        levels.append(smaller.reshape(high // 2, wide // 2, -1))
    return levels


@functools.lru_cache(maxsize=1)
def grain_pyramid() -> list[Array]:
    """The fine grain that all materials share, f32 [s,s,1] in [0, 1]."""
    return mip_pyramid(noise(np.random.default_rng(7), (512, 512), 0.35)[..., None])


def read_pyramid(pyramid: list[Array], u: Array, v: Array, footprint: Array) -> Array:
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
            fine = read(pyramid[index], u_fine, v_fine)
            coarse = read(pyramid[index + 1], u_fine * 0.5, v_fine * 0.5)
            coarse -= fine
            coarse *= blend[chosen, None]
            fine += coarse
            result[chosen] = fine
    return result


def read(texture: Array, u: Array, v: Array) -> Array:
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


def _shrink(picture: Image) -> Image:
    """At most MAX_TEXTURE_SIDE pixels long, area-averaged."""
    scale = MAX_TEXTURE_SIDE / max(picture.shape[:2])
    if scale >= 1:
        return np.ascontiguousarray(picture)
    size = (round(picture.shape[1] * scale), round(picture.shape[0] * scale))
    return cv2.resize(np.ascontiguousarray(picture), size, interpolation=cv2.INTER_AREA)
