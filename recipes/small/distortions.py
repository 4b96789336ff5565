"""Makes a picture worse: thirty distortion types at five levels of growing severity.

The first 25 types are those of KADID-10k (Lin et al., QoMEX 2019) in its order. The last five imitate the paper's test
of natural distortions (section 5.2), which KADID lacks: haze, low light, lens flare, and blur of a scene with depth, by
camera motion and by defocus.

Two promises hold for every type, because labels and ranking losses build on them:
- The result depends only on (image, kind, level, seed, depth).
- One seed fixes angles, places, colours and noise fields for all levels, and the level scales or extends them, so that
  the levels of one picture differ only in severity. The tests measure that the error rises with the level.

This is a reimplementation, not KADID's MATLAB code. Level parameters are KADID's where its levels are visible and
ordered; it differs here:
    gaussian_blur, motion_blur       KADID's level 1 (sigma 0.1, length 1) changes no pixel: ours starts visible and
                                     the steps to KADID's level 5 are more even
    color_saturation_2               KADID's factor 1 at level 1 is the identity: ours starts at 1.4
    color_saturation_1               KADID's .4 .2 .1 0 -.4 kept: their distance from 1 grows, so they are ordered
    color_shift                      the whole green channel moves, not only near edges
    denoise                          non-local means replaces DnCNN (a classical method without network weights),
                                     after the noise of white_noise
    mean_shift                       KADID goes +.15 .08 0 -.08 -.15: our magnitude grows, the sign comes from the seed
    contrast_change                  KADID goes +.3 .15 0 -.4 -.6: ours only loses contrast, more at each level
    brighten, darken                 a power of Lab lightness instead of a spline, through KADID's middle: lightness 50
                                     becomes 55 60 70 85 95 and 47.5 45 40 30 10
    jitter                           one warp that reaches as far as KADID's repeated ones
    quantization                     KADID's counts, evenly spaced instead of at Otsu's thresholds
    non_eccentricity_patch,          KADID's counts, on a grid so that squares never overlap; the squares (16 and 32
    color_block                      pixels in a 512 x 384 picture) grow with the picture
Nothing but numpy, cv2 and Pillow is used.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Effect = Callable[[Array, float, Generator, Array], Array]

LEVELS = 5
REFERENCE_AREA = 512 * 384  # pixels of a KADID picture: patches and blocks grow and shrink with the picture's area


def distort(
    image: Bytes, kind: str, level: int, seed: int, depth: Array | None = None, *, strength: float | None = None
) -> Bytes:
    """Return `image` (uint8 [H,W,3] RGB) with one distortion, same shape and dtype.

    kind: one of `TYPES`. level: 1 (mildest) to 5. seed: non-negative; draws everything random.
    depth: f32 [H,W] in [0,1], larger = nearer; only haze, depth_motion_blur and depth_defocus use it. None stands
    for a ground plane: the top row is the farthest, the bottom row the nearest.
    strength: replaces the level's, in the units of `EFFECTS`.
    Raises ValueError for an unknown kind or level, arrays of another shape or dtype, and a depth that is not finite.
    """
    _check(image, kind, level, depth)
    effect, strengths = EFFECTS[kind]
    rng = np.random.default_rng([seed, TYPES.index(kind)])
    near = _ground_plane(image.shape[:2]) if depth is None else np.clip(depth, 0, 1).astype(np.float32)
    return _to_bytes(effect(_to_unit(image), strengths[level - 1] if strength is None else strength, rng, near))


def _check(image: Bytes, kind: str, level: int, depth: Array | None) -> None:
    if kind not in EFFECTS:
        raise ValueError(f"unknown distortion {kind!r}; wanted one of {', '.join(TYPES)}")
    if level not in range(1, LEVELS + 1):
        raise ValueError(f"got level {level}; wanted an integer from 1 to {LEVELS}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"got an image of {image.dtype} {list(image.shape)}; wanted uint8 [H,W,3], not empty")
    if depth is not None and depth.shape != image.shape[:2]:
        raise ValueError(f"got depth {list(depth.shape)}; wanted [H,W] of the image, {list(image.shape[:2])}")
    if depth is not None and not np.isfinite(depth).all():
        raise ValueError("got a depth with NaN or infinity; wanted finite values in [0,1], fill the holes first")


# Every effect below: (image f32 [H,W,3] in [0,1], strength, generator, depth f32 [H,W]) -> f32 [H,W,3], clipped later.

# ---- blurs ----


def _gaussian_blur(image: Array, sigma: float, rng: Generator, depth: Array) -> Array:
    return cv2.GaussianBlur(image, (0, 0), sigma)


def _lens_blur(image: Array, radius: float, rng: Generator, depth: Array) -> Array:
    return cv2.filter2D(image, -1, _disc_kernel(radius))


def _motion_blur(image: Array, length: float, rng: Generator, depth: Array) -> Array:
    return cv2.filter2D(image, -1, _line_kernel(length, rng.uniform(0, math.pi)))


# ---- colour ----


def _color_diffusion(image: Array, sigma: float, rng: Generator, depth: Array) -> Array:
    """Blur a and b of Lab: colours run across edges, lightness stays."""
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2Lab)
    lab[..., 1:] = cv2.GaussianBlur(lab[..., 1:], (0, 0), sigma)
    return cv2.cvtColor(lab, cv2.COLOR_Lab2RGB)


def _color_shift(image: Array, pixels: float, rng: Generator, depth: Array) -> Array:
    """Move the green channel against the other two."""
    angle = rng.uniform(0, 2 * math.pi)
    move = np.array([[1, 0, pixels * math.cos(angle)], [0, 1, pixels * math.sin(angle)]], np.float32)
    shifted = image.copy()
    size = (image.shape[1], image.shape[0])
    shifted[..., 1] = cv2.warpAffine(image[..., 1], move, size, borderMode=cv2.BORDER_REFLECT_101)
    return shifted


def _color_quantization(image: Array, colors: float, rng: Generator, depth: Array) -> Array:
    """Map to a median-cut palette of every fourth pixel: ten times faster than a palette of all pixels."""
    pixels = _to_bytes(image)
    palette = Image.fromarray(pixels[::4, ::4]).quantize(int(colors), Image.Quantize.MEDIANCUT)
    mapped = Image.fromarray(pixels).quantize(palette=palette, dither=Image.Dither.NONE)
    return _to_unit(np.asarray(mapped.convert("RGB")))


def _color_saturation_1(image: Array, factor: float, rng: Generator, depth: Array) -> Array:
    """Scale S of HSV: with hue and value kept, every channel moves along the line to the largest one."""
    value = image.max(axis=2, keepdims=True)
    return value - np.float32(factor) * (value - image)


def _color_saturation_2(image: Array, factor: float, rng: Generator, depth: Array) -> Array:
    """Scale a and b of Lab."""
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2Lab)
    lab[..., 1:] *= factor
    return cv2.cvtColor(lab, cv2.COLOR_Lab2RGB)


# ---- compression ----


def _jpeg2000(image: Array, ratio: float, rng: Generator, depth: Array) -> Array:
    resolutions = min(6, int(math.log2(min(image.shape[:2]))) + 1)  # OpenJPEG refuses more than the picture can halve
    options = {"quality_mode": "rates", "quality_layers": [ratio], "irreversible": True, "num_resolutions": resolutions}
    return _recode(image, "JPEG2000", options)


def _jpeg(image: Array, quality: float, rng: Generator, depth: Array) -> Array:
    return _recode(image, "JPEG", {"quality": int(quality)})


# ---- noise ----


def _white_noise(image: Array, variance: float, rng: Generator, depth: Array) -> Array:
    return image + _normal(rng, image.shape, variance)


def _white_noise_color(image: Array, variance: float, rng: Generator, depth: Array) -> Array:
    """White noise added to the components Y, Cb and Cr."""
    ycc = cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb)
    return cv2.cvtColor(ycc + _normal(rng, image.shape, variance), cv2.COLOR_YCrCb2RGB)


def _impulse_noise(image: Array, density: float, rng: Generator, depth: Array) -> Array:
    """Salt and pepper: that share of all values becomes 0 or 1."""
    draw = rng.random(image.shape, np.float32)
    salted = np.where(draw < density, np.float32(0), image)
    return np.where(draw > 1 - density, np.float32(1), salted)


def _multiplicative_noise(image: Array, variance: float, rng: Generator, depth: Array) -> Array:
    return image + image * _normal(rng, image.shape, variance)


def _denoise(image: Array, variance: float, rng: Generator, depth: Array) -> Array:
    """White noise, then non-local means as strong as the noise: flat patches and lost texture remain."""
    noisy = _to_bytes(image + _normal(rng, image.shape, variance))
    strength = 255 * math.sqrt(variance)
    return _to_unit(cv2.fastNlMeansDenoising(noisy, None, strength, templateWindowSize=3, searchWindowSize=7))


# ---- brightness ----


def _brighten(image: Array, middle: float, rng: Generator, depth: Array) -> Array:
    return _curve_lightness(image, lambda lightness: 1 - (1 - lightness) ** -math.log2(1 - middle))


def _darken(image: Array, middle: float, rng: Generator, depth: Array) -> Array:
    return _curve_lightness(image, lambda lightness: lightness ** -math.log2(middle))


def _mean_shift(image: Array, magnitude: float, rng: Generator, depth: Array) -> Array:
    return image + np.float32(magnitude * rng.choice([-1, 1]))


# ---- space ----


def _jitter(image: Array, pixels: float, rng: Generator, depth: Array) -> Array:
    """Move every pixel by its own random vector of that standard deviation."""
    offset = pixels * rng.standard_normal((*image.shape[:2], 2), np.float32)
    return _warp(image, offset[..., 0], offset[..., 1])


def _non_eccentricity_patch(image: Array, count: float, rng: Generator, depth: Array) -> Array:
    """Replace square patches by pixels from a quarter to a whole patch away, in both directions."""
    (height, width), size = image.shape[:2], _scaled_size(16, image.shape)
    cells = _grid_cells(image.shape, size, rng)
    moves = rng.integers(-(-size // 4), size + 1, (len(cells), 2)) * rng.choice([-1, 1], (len(cells), 2))
    moved = image.copy()
    for (y, x), (dy, dx) in zip(cells[: int(count)], moves, strict=False):
        rows = np.clip(np.arange(y, y + size) + dy, 0, height - 1)[: height - y]
        columns = np.clip(np.arange(x, x + size) + dx, 0, width - 1)[: width - x]
        moved[y : y + size, x : x + size] = image[rows[:, None], columns]
    return moved


def _pixelate(image: Array, scale: float, rng: Generator, depth: Array) -> Array:
    height, width = image.shape[:2]
    small = (max(1, round(width * scale)), max(1, round(height * scale)))
    coarse = cv2.resize(image, small, interpolation=cv2.INTER_NEAREST_EXACT)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def _quantization(image: Array, steps: float, rng: Generator, depth: Array) -> Array:
    top = np.float32(steps - 1)
    return np.rint(image * top) / top


def _color_block(image: Array, count: float, rng: Generator, depth: Array) -> Array:
    """Cover squares with one random colour each."""
    size, covered = _scaled_size(32, image.shape), image.copy()
    cells = _grid_cells(image.shape, size, rng)
    colors = rng.random((len(cells), 3), np.float32)
    for (y, x), color in zip(cells[: int(count)], colors, strict=False):
        covered[y : y + size, x : x + size] = color
    return covered


# ---- sharpness and contrast ----


def _high_sharpen(image: Array, amount: float, rng: Generator, depth: Array) -> Array:
    """Unsharp mask of radius 3 on luma."""
    luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    detail = luma - cv2.GaussianBlur(luma, (0, 0), 3)
    return image + np.float32(amount) * detail[..., None]


def _contrast_change(image: Array, loss: float, rng: Generator, depth: Array) -> Array:
    return image + np.float32(loss) * (image.mean() - image)


# ---- nature ----


def _haze(image: Array, beta: float, rng: Generator, depth: Array) -> Array:
    """Koschmieder: I t + A (1 - t), t = exp(-beta distance); the nearest pixel is at 0.1 of the farthest distance."""
    airlight = (rng.uniform(0.75, 0.95) + np.array([-0.02, 0, 0.02])).astype(np.float32)
    transmission = np.exp(np.float32(-beta) * (1 - np.float32(0.9) * depth))[..., None]
    return airlight + (image - airlight) * transmission


def _low_light(image: Array, exposure: float, rng: Generator, depth: Array) -> Array:
    """That share of the light reaches a sensor of 500 electrons at white with shot and read noise."""
    light = np.float32(exposure) * _to_linear(image)
    noise = rng.standard_normal(image.shape, np.float32) * np.sqrt(light / 500 + np.float32(0.003**2))
    return _from_linear(light + noise)


def _lens_flare(image: Array, strength: float, rng: Generator, depth: Array) -> Array:
    """Glow, streaks and ghosts of a lamp in the upper half, added in linear light."""
    height, width = image.shape[:2]
    source = rng.uniform((0.1, 0.05), (0.9, 0.45)) * (width, height)
    flare = _glow_and_streaks(height, width, source, rng) + _ghosts(height, width, source, rng)
    return _from_linear(_to_linear(image) + np.float32(strength) * flare)


def _depth_motion_blur(image: Array, length: float, rng: Generator, depth: Array) -> Array:
    """Camera translation: a pixel smears over `length` * depth pixels, so the farthest one stays sharp.

    Each pass averages two copies half as far apart as the pass before; four passes make a 16-sample box.
    """
    angle = rng.uniform(0, math.pi)
    blurred = image
    for divisor in (4, 8, 16, 32):
        dx = depth * np.float32(length / divisor * math.cos(angle))
        dy = depth * np.float32(length / divisor * math.sin(angle))
        blurred = (_warp(blurred, dx, dy) + _warp(blurred, -dx, -dy)) * np.float32(0.5)
    return blurred


def _depth_defocus(image: Array, radius: float, rng: Generator, depth: Array) -> Array:
    """Blur by a disc whose radius grows with the distance to a focal plane in the nearer third, up to `radius`."""
    focus = rng.uniform(0.7, 1.0)
    reach = np.abs(depth - np.float32(focus)) / np.float32(max(focus, 1 - focus))
    layers = 4
    position = reach * np.float32(layers)
    mixed = np.zeros_like(image)
    for i in range(layers + 1):
        layer = image if i == 0 else cv2.filter2D(image, -1, _disc_kernel(radius * i / layers))
        mixed += layer * np.clip(1 - np.abs(position - i), 0, 1)[..., None]
    return mixed


# ---- parts of the effects ----


def _ground_plane(shape: tuple[int, ...]) -> Array:  # -> f32 [H,W], 0 at the top, 1 at the bottom
    return np.repeat(np.linspace(0, 1, shape[0], dtype=np.float32)[:, None], shape[1], axis=1)


def _to_bytes(unit: Array) -> Bytes:
    return np.rint(np.clip(unit, 0, 1) * 255).astype(np.uint8)


def _to_unit(image: Bytes) -> Array:
    return image.astype(np.float32) / np.float32(255)


def _to_linear(srgb: Array) -> Array:
    return np.asarray(srgb, np.float32) ** np.float32(2.2)


def _from_linear(light: Array) -> Array:
    return np.clip(light, 0, 1).astype(np.float32) ** np.float32(1 / 2.2)


def _normal(rng: Generator, shape: tuple[int, ...], variance: float) -> Array:
    return np.float32(math.sqrt(variance)) * rng.standard_normal(shape, np.float32)


def _disc_kernel(radius: float) -> Array:
    """Disc with an anti-aliased rim, f32 [k,k], sum 1."""
    axis = np.arange(-math.ceil(radius), math.ceil(radius) + 1)
    kernel = np.clip(radius + 0.5 - np.hypot(axis[:, None], axis), 0, 1).astype(np.float32)
    return np.asarray(kernel / kernel.sum(), np.float32)


def _line_kernel(length: float, angle: float) -> Array:
    """Line of `length` pixels through the centre, each point spread over its four neighbours, f32 [k,k], sum 1."""
    half = math.ceil((length - 1) / 2) + 1
    kernel = np.zeros((2 * half + 1, 2 * half + 1), np.float32)
    along = np.linspace(-(length - 1) / 2, (length - 1) / 2, 8 * math.ceil(length))
    x, y = half + along * math.cos(angle), half + along * math.sin(angle)
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
        weight = (1 - np.abs(x - left - dx)) * (1 - np.abs(y - top - dy))
        np.add.at(kernel, (top + dy, left + dx), weight)
    return np.asarray(kernel / kernel.sum(), np.float32)


def _recode(image: Array, file_format: str, options: dict[str, object]) -> Array:
    buffer = io.BytesIO()
    Image.fromarray(_to_bytes(image)).save(buffer, file_format, **options)
    return _to_unit(np.asarray(Image.open(buffer).convert("RGB")))


def _curve_lightness(image: Array, curve: Callable[[Array], Array]) -> Array:
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2Lab)
    lab[..., 0] = 100 * curve(np.clip(lab[..., 0] / 100, 0, 1))
    return cv2.cvtColor(lab, cv2.COLOR_Lab2RGB)


def _warp(image: Array, dx: Array, dy: Array) -> Array:
    """Read each pixel at its own offset (dx, dy f32 [H,W], pixels)."""
    x = dx + np.arange(image.shape[1], dtype=np.float32)
    y = dy + np.arange(image.shape[0], dtype=np.float32)[:, None]
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def _grid_cells(shape: tuple[int, ...], size: int, rng: Generator) -> NDArray[np.int64]:
    """Corners (y, x) of the cells of a grid in random order, int64 [n,2]: any first k of them never overlap."""
    rows, columns = max(1, shape[0] // size), max(1, shape[1] // size)
    order = rng.permutation(rows * columns)
    return np.stack(np.divmod(order, columns), axis=1) * size


def _scaled_size(pixels: int, shape: tuple[int, ...]) -> int:
    """Side of a square that covers the same share of this picture as `pixels` does of a KADID picture."""
    return max(1, round(pixels * math.sqrt(shape[0] * shape[1] / REFERENCE_AREA)))


def _glow_and_streaks(height: int, width: int, source: NDArray[np.float64], rng: Generator) -> Array:  # -> [H,W,3]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    dx, dy = (x - np.float32(source[0])) / max(height, width), (y - np.float32(source[1])) / max(height, width)
    distance = np.sqrt(dx * dx + dy * dy)
    angle = np.arctan2(dy, dx)
    glow = 1 / (1 + (distance * 18) ** 2) + np.float32(0.35) * np.exp(-distance * 4)
    spokes = np.cos(angle * rng.integers(2, 5) + rng.uniform(0, math.pi)) ** 80
    streaks = np.float32(0.8) * spokes * np.exp(-distance * 6)
    tint = np.array([1, rng.uniform(0.85, 1), rng.uniform(0.6, 0.9)], np.float32)
    return (glow + streaks)[..., None] * tint


def _ghosts(height: int, width: int, source: NDArray[np.float64], rng: Generator) -> Array:  # -> f32 [H,W,3]
    """Soft discs on the line from the lamp through the centre of the picture: reflections between lens elements."""
    ghosts = np.zeros((height, width, 3), np.float32)
    centre = np.array([width, height]) / 2
    for along in rng.uniform(0.4, 2.2, 5):
        x, y = (source + (centre - source) * along).astype(int).tolist()
        radius = max(1, int(rng.uniform(0.02, 0.08) * max(height, width)))
        disc = np.zeros_like(ghosts)
        cv2.circle(disc, (x, y), radius, rng.uniform(0.02, 0.25, 3).tolist(), -1)
        ghosts += disc
    return cv2.GaussianBlur(ghosts, (0, 0), 1.5)


# name: (effect, its strength at levels 1..5)
EFFECTS: dict[str, tuple[Effect, tuple[float, float, float, float, float]]] = {
    "gaussian_blur": (_gaussian_blur, (0.5, 1, 1.7, 2.8, 5)),  # sigma, pixels
    "lens_blur": (_lens_blur, (1, 2, 4, 6, 8)),  # radius, pixels
    "motion_blur": (_motion_blur, (2, 3, 4.5, 7, 11)),  # length, pixels
    "color_diffusion": (_color_diffusion, (1, 3, 6, 8, 12)),  # sigma, pixels
    "color_shift": (_color_shift, (1, 3, 6, 8, 12)),  # pixels
    "color_quantization": (_color_quantization, (64, 48, 32, 16, 8)),  # colours
    "color_saturation_1": (_color_saturation_1, (0.4, 0.2, 0.1, 0, -0.4)),  # factor on S
    "color_saturation_2": (_color_saturation_2, (1.4, 2, 3, 6, 9)),  # factor on a and b
    "jpeg2000": (_jpeg2000, (16, 32, 45, 120, 400)),  # compression ratio
    "jpeg": (_jpeg, (43, 36, 24, 7, 4)),  # quality
    "white_noise": (_white_noise, (0.001, 0.002, 0.003, 0.005, 0.01)),  # variance
    "white_noise_color": (_white_noise_color, (0.0001, 0.0005, 0.001, 0.002, 0.003)),  # variance
    "impulse_noise": (_impulse_noise, (0.001, 0.005, 0.01, 0.02, 0.03)),  # share of 0, and of 1
    "multiplicative_noise": (_multiplicative_noise, (0.001, 0.005, 0.01, 0.02, 0.05)),  # variance
    "denoise": (_denoise, (0.001, 0.002, 0.003, 0.005, 0.01)),  # variance of the noise removed
    "brighten": (_brighten, (0.55, 0.6, 0.7, 0.85, 0.95)),  # what lightness 0.5 becomes
    "darken": (_darken, (0.475, 0.45, 0.4, 0.3, 0.1)),  # what lightness 0.5 becomes
    "mean_shift": (_mean_shift, (0.03, 0.06, 0.1, 0.14, 0.2)),  # of full range
    "jitter": (_jitter, (0.1, 0.25, 0.5, 1.1, 2.2)),  # pixels
    "non_eccentricity_patch": (_non_eccentricity_patch, (20, 40, 60, 80, 100)),  # patches
    "pixelate": (_pixelate, (0.89, 0.78, 0.7, 0.57, 0.29)),  # scale of the coarse picture
    "quantization": (_quantization, (20, 16, 13, 10, 7)),  # values per channel
    "color_block": (_color_block, (2, 4, 6, 8, 10)),  # blocks
    "high_sharpen": (_high_sharpen, (1, 2, 3, 6, 12)),  # amount
    "contrast_change": (_contrast_change, (0.15, 0.3, 0.45, 0.6, 0.75)),  # share of contrast lost
    "haze": (_haze, (0.3, 0.6, 1.0, 1.7, 3.0)),  # extinction per largest distance
    "low_light": (_low_light, (0.55, 0.35, 0.2, 0.1, 0.05)),  # exposure
    "lens_flare": (_lens_flare, (0.1, 0.25, 0.5, 0.9, 1.6)),  # lamp
    "depth_motion_blur": (_depth_motion_blur, (3, 6, 10, 16, 26)),  # pixels at the nearest point
    "depth_defocus": (_depth_defocus, (1.5, 3, 5, 8, 12)),  # radius, pixels, at the farthest point from focus
}
TYPES = tuple(EFFECTS)
KADID_TYPES = TYPES[:25]
