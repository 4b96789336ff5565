"""Image bytes -> RGB -> depth network input -> depth image -> tiles: the authors' recipe in numpy, OpenCV and Pillow.

    decode ───► rgb u8 [H,W,3] ──► depth_input ──► (depth network) ──► depth_image u8 [h,w]
                     │                                                    │
                     └─► working_image u8 [h,w,3] ──► cut_tiles ◄─────────┘
                                                          ▲
                                     windows_for ─────────┘

This file is the definition: whatever does the same work elsewhere answers to it. Every step takes the bundle's
`spec.Preprocess`, whose version says how it resizes; a change that gives other network inputs for the same bytes is a
new version. Nothing here keeps or changes global state, so every function may run in several threads at once.
"""

from __future__ import annotations

import io
import math
import random
import re
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dgiqa.errors import DgiqaError, ImageError
from dgiqa.spec import IMAGENET_MEAN, IMAGENET_STD, Preprocess

UInt8 = NDArray[np.uint8]
Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]

MAX_PIXELS = 200_000_000  # refused before decoding; 200 megapixels are 600 MB as RGB, today's largest phone sensor
MAX_ASPECT = 32  # long side / short side. At short side 384 this is 110 tiles
# A vision transformer's attention grows with the square of its input: 2 Mpx are 10,700 tokens of 14 x 14, some 3 GB
# of attention weights for ViT-S where they are not fused. The paper's 518 pixels reach this at 7.8:1.
MAX_DEPTH_PIXELS = 2**21
MAX_CROPS = 1000  # official:COUNT. 1000 tiles are 1.2 GB of network input

# What is opened, by first bytes: (format, Pillow plugin, pattern). Anything else never reaches a parser.
_FORMATS = (
    ("JPEG", "JpegImagePlugin", rb"\xff\xd8\xff"),
    ("PNG", "PngImagePlugin", rb"\x89PNG\r\n\x1a\n"),
    ("WEBP", "WebPImagePlugin", rb"RIFF....WEBP"),
    ("BMP", "BmpImagePlugin", rb"BM"),
    ("GIF", "GifImagePlugin", rb"GIF8[79]a"),
    ("TIFF", "TiffImagePlugin", rb"II[*+]\0|MM\0[*+]"),
    ("PPM", "PpmImagePlugin", rb"P[1-6][\s#]"),
    ("JPEG2000", "Jpeg2KImagePlugin", rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n"),
    ("AVIF", "AvifImagePlugin", rb"....ftyp(avi[fs]|m(if|sf)1.{4,64}avi[fs])"),
)
# Often met under an image's name; named so that the message can say what the file really is.
_FOREIGN = (
    ("a HEIC photograph", rb"....ftyp(hei|hev|mif1|msf1)"),
    ("a PDF document", rb"%PDF"),
    ("an SVG drawing", rb"(<\?xml[^>]*>)?\s*<svg"),
    ("a web page", rb"\s*<(!doctype html|html)"),
)
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Network input of every uint8 level, one table per channel. Three look-ups take 0.6x the time of the arithmetic.
_NORMALISED = tuple(
    ((np.arange(256) / 255 - mean) / std).astype(np.float32)
    for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)
)
_BLOCK_ROWS = 32  # of a depth map at full size: stay in the cache between the steps of its arithmetic
_BAND = 4  # rows of a cubic resize in one matrix product: 2 and 8 are as fast for some sizes and slower for others
_GROUP = 16  # rows of it before they are narrowed: 16 to 256 take the same time, all at once a fifth more
_SPARSE = 8  # from so many lines per result on, half of them are not read, and picking the others pays
_MOST_PRODUCTS = 2**18  # in one matrix product. OpenBLAS gives larger ones to threads of its own, which then spin


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> UInt8:
    """Decode an image file's bytes into upright RGB, uint8 [H,W,3].

    JPEG, PNG, WebP, BMP, GIF, TIFF, PPM, JPEG 2000 and AVIF; the first frame or page of several. EXIF orientation is
    applied, transparency is laid over white, 16-bit files keep their high byte, colour profiles are ignored. Ordinary
    photographs give the very pixels of `cv2.imread`, which the authors used. The array may be read-only.

    Raises ImageError for anything else: empty, unknown, damaged, truncated, or more than `max_pixels` pixels by its
    header (checked before any pixel is decoded, in place of Pillow's process-wide limit).
    A process that sets Pillow's ImageFile.LOAD_TRUNCATED_IMAGES gets truncated files filled with grey, too.
    """
    kind, image = _open(data)
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            f"{kind} of {width} x {height} = {width * height:,} pixels, limit {max_pixels:,}; "
            "shrink it, or raise max_pixels if you trust its source"
        )
    try:
        image.load()
        return as_rgb(_pixels(_upright(image), kind))
    except ImageError as error:
        raise ImageError(f"{kind}: {error}") from error
    except Exception as error:  # Pillow's decoders raise many types on damaged data
        raise ImageError(
            f"truncated or damaged {kind}, {len(data)} bytes ({type(error).__name__}: {error}); fetch or save it again"
        ) from error


def as_rgb(array: NDArray[Any]) -> UInt8:
    """Turn an image array into RGB uint8 [H,W,3]; one that already is so is returned itself.

    Shapes: [H,W], [H,W,1], [H,W,3] in RGB order, or [H,W,4] with alpha, laid over white. Types: uint8; uint16 in
    0..65535 (the high byte is kept, as image decoders do); float in 0..1 (rounded). Raises ImageError for others.
    """
    if not isinstance(array, np.ndarray):
        raise ImageError(f"got {type(array).__name__}, wanted a numpy array: np.asarray(image)")
    _check_image_shape(array.shape)
    levels = _to_uint8(array)
    if levels.ndim == 2 or levels.shape[2] == 1:
        return np.repeat(levels.reshape(*levels.shape[:2], 1), 3, axis=2)
    return np.ascontiguousarray(levels if levels.shape[2] == 3 else _over_white(levels))


def check_size(height: int, width: int, p: Preprocess) -> None:
    """Raise ImageError if an image is so long and thin that its resized copies would exhaust memory."""
    _check_aspect(height, width, min(MAX_ASPECT, MAX_DEPTH_PIXELS / p.depth_lower_bound**2))


def depth_size(height: int, width: int, p: Preprocess) -> tuple[int, int]:
    """Height and width of the depth network's input for an image of these. Raises ImageError as `check_size` does."""
    check_size(height, width, p)
    scale = max(p.depth_lower_bound / height, p.depth_lower_bound / width)
    h, w = (_to_multiple(scale * side, p.depth_lower_bound, p.depth_multiple) for side in (height, width))
    return h, w


def depth_input(rgb: UInt8, p: Preprocess) -> Float32:
    """Resize and normalise rgb [H,W,3] for the depth network: f32 [1,3,h,w].

    The shorter of h and w is `p.depth_lower_bound`, aspect kept, both multiples of `p.depth_multiple`; ImageNet
    statistics. Version 1 is Depth Anything's own transform: cubic without antialiasing, overshoot not clipped. Version
    2 reduces by area to uint8, and is as version 1 where a side grows. Raises ImageError if the image is too long and
    thin (`check_size`).
    """
    height, width = rgb.shape[:2]
    h, w = depth_size(height, width, p)
    result = np.empty((1, 3, h, w), np.float32)
    if reduces((height, width), (h, w), p):
        for channel, table, plane in zip(cv2.split(_resize_area(rgb, h, w)), _NORMALISED, result[0], strict=True):
            cv2.LUT(channel, table, dst=plane)
        return result
    resized = _resize_cubic(rgb, h, w)
    for c, (mean, std) in enumerate(zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)):
        # Scaled on the way into float32, then shifted: 5e-7 from all of it in float64, and five times as fast
        np.multiply(resized[..., c], 1 / (255 * std), out=result[0, c], casting="same_kind")
        result[0, c] -= np.float32(mean / std)
    return result


def depth_image(depth: Float32, height: int, width: int, p: Preprocess) -> UInt8:
    """Turn the depth network's f32 [1,h,w] for an image of height x width into uint8 of its working size.

    0 is the farthest, 255 the nearest. Version 1 makes it at the image's own size (`stretched`) and then resizes it as
    the image; version 2 makes it at the working size. A constant depth gives zeros. Raises DgiqaError if the depth is
    not finite, ImageError as `working_size`.
    """
    if p.version == 1:
        return resize_short_side(stretched(depth, height, width), p.short_side)
    return stretched(depth, *working_size(height, width, p))


def stretched(depth: Float32, height: int, width: int) -> UInt8:
    """The depth network's f32 [1,h,w] as an image of any size, uint8 [height,width].

    Bilinear (half-pixel centres), then min-max per image, times 255, truncated. A constant depth gives zeros. Raises
    DgiqaError if the depth is not finite.
    """
    if not np.isfinite(depth).all():
        raise DgiqaError("the depth network returned NaN or infinity; check its file and precision: dgiqa-rt verify")
    if depth.min() == depth.max():  # resized, it may differ by rounding, and min-max would blow that up
        return np.zeros((height, width), np.uint8)
    full = np.asarray(cv2.resize(depth[0], (width, height), interpolation=cv2.INTER_LINEAR))
    low, high = (np.float32(value) for value in cv2.minMaxLoc(full)[:2])
    result = np.empty(full.shape, np.uint8)
    for y in range(0, height, _BLOCK_ROWS):  # while they are in the cache, and without writing to `full`
        block = full[y : y + _BLOCK_ROWS] - low
        block /= high - low + np.float32(1e-8)
        block *= np.float32(255)
        result[y : y + _BLOCK_ROWS] = block
    return result


def working_size(height: int, width: int, p: Preprocess) -> tuple[int, int]:
    """Height and width of the working image, which tiles are cut from. Raises ImageError as `short_size` does."""
    return short_size(height, width, p.short_side)


def working_image(rgb: UInt8, p: Preprocess) -> UInt8:
    """Resize rgb uint8 [H,W,3] so that its shorter side is `p.short_side` pixels; the image itself if it is so.

    Version 1 is bilinear without antialiasing. Version 2 reduces by area and enlarges bilinearly. Raises ImageError as
    `working_size` does.
    """
    height, width = rgb.shape[:2]
    h, w = working_size(height, width, p)
    if (h, w) != (height, width) and reduces((height, width), (h, w), p):
        return _resize_area(rgb, h, w)
    return resize_short_side(rgb, p.short_side)


def short_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width of `resize_short_side`'s result for an image of these. Raises ImageError as it does."""
    _check_aspect(height, width, MAX_ASPECT)
    scale = short_side / min(height, width)
    return round(height * scale), round(width * scale)


def resize_short_side(image: UInt8, short_side: int) -> UInt8:
    """Resize uint8 [H,W] or [H,W,3] bilinearly, up or down, so that its shorter side is `short_side` pixels.

    The longer side is rounded half to even, as albumentations.SmallestMaxSize does. Raises ImageError if the image is
    longer than MAX_ASPECT times its width.
    """
    height, width = image.shape[:2]
    h, w = short_size(height, width, short_side)
    if (h, w) == (height, width):
        return image
    return np.asarray(cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR), np.uint8)


def grid_windows(height: int, width: int, tile: int) -> Int32:
    """Top-left corners (y, x) of the fewest evenly spaced tiles that cover every pixel: int32 [n,2], row by row.

    The outermost tiles touch the edges. Raises ValueError if a side is shorter than `tile`.
    """
    _check_tile_fits(height, width, tile)
    ys, xs = (np.linspace(0, side - tile, -(-side // tile)).round().astype(np.int32) for side in (height, width))
    return np.stack(np.meshgrid(ys, xs, indexing="ij"), axis=-1).reshape(-1, 2)


def official_windows(height: int, width: int, tile: int, count: int, seed: int = 42) -> Int32:
    """The authors' `count` random crops as corners (y, x), int32 [count,2], as their script draws them.

    It seeds Python's generator and draws x, then y. Raises ValueError if a side is shorter than `tile`.
    """
    _check_tile_fits(height, width, tile)
    draw = random.Random(seed).randint
    xy = [(draw(0, width - tile), draw(0, height - tile)) for _ in range(count)]
    return np.array(xy, np.int32).reshape(-1, 2)[:, ::-1].copy()


def windows_for(tiles: str, height: int, width: int, tile: int) -> Int32:
    """Windows int32 [n,2] for a tiling's name: "grid", "official:COUNT" or "official:COUNT:SEED" (seed 42 if unsaid).

    Raises ValueError if the name is not one of these or COUNT is not in 1..MAX_CROPS.
    """
    if tiles == "grid":
        return grid_windows(height, width, tile)
    match = re.fullmatch(r"official:([0-9]{1,9})(?::([0-9]{1,18}))?", tiles)
    if match is None or not 1 <= int(match[1]) <= MAX_CROPS:
        raise ValueError(
            f'tiles={tiles!r}; allowed are "grid", "official:COUNT" and "official:COUNT:SEED" '
            f"with COUNT from 1 to {MAX_CROPS}, for example official:20"
        )
    return official_windows(height, width, tile, int(match[1]), int(match[2] or 42))


def cut_tiles(
    rgb: UInt8, depth: UInt8, windows: Int32, tile: int, out: tuple[Float32, Float32] | None = None
) -> tuple[Float32, Float32]:
    """Cut the same windows (y, x) from rgb uint8 [H,W,3] and depth uint8 [H,W]: two f32 [n,3,tile,tile].

    Both are normalised with ImageNet's RGB statistics; the depth image's three channels are equal before that. out: two
    such arrays, C-contiguous, to fill and return. Raises ValueError if sizes differ or a window leaves the image.
    """
    if rgb.shape[:2] != depth.shape:
        raise ValueError(f"rgb is {rgb.shape[:2]} and depth {depth.shape}; resize both to the same size first")
    height, width = depth.shape
    if len(windows) and (windows.min() < 0 or (windows.max(axis=0) + tile > (height, width)).any()):
        raise ValueError(f"windows of {tile} pixels leave the image of {height} x {width}")
    shape = (len(windows), 3, tile, tile)
    out = out or (np.empty(shape, np.float32), np.empty(shape, np.float32))
    if any(array.shape != shape or array.dtype != np.float32 or not array.flags.c_contiguous for array in out):
        raise ValueError(f"wanted two C-contiguous float32 arrays of {shape} to fill, got {[a.shape for a in out]}")
    _fill_tiles(cv2.split(rgb), windows, out[0])
    _fill_tiles([depth] * 3, windows, out[1])
    return out


def reduces(size: tuple[int, int], target: tuple[int, int], p: Preprocess) -> bool:
    """Whether an image of `size` is averaged over areas to become `target`, both (height, width).

    Where a side grows OpenCV's INTER_AREA would not average.
    """
    return p.version != 1 and target[0] <= size[0] and target[1] <= size[1]


def _resize_area(rgb: UInt8, height: int, width: int) -> UInt8:
    return np.asarray(cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _resize_cubic(rgb: UInt8, height: int, width: int) -> NDArray[np.float64]:
    """`cv2.resize(rgb.astype(float64), INTER_CUBIC)` to within 1e-11 of a level: f64 [height,width,3].

    Downwards, lines are added up first: OpenCV narrows all of them before, at its slowest. Band by band of results, the
    few lines that it reads are multiplied with OpenCV's own weights: half the time from 1080 lines to 256 or 518, 0.64x
    from 768 to 518. float32 would take 0.85x of that and move the network's input by 1e-6; OpenCV's own float32 by 5e-4
    between machines, as Intel's part of it has finer weights than other builds and than the authors' float64.
    """
    if len(rgb) <= height:
        return np.asarray(cv2.resize(rgb.astype(np.float64), (width, height), interpolation=cv2.INTER_CUBIC))
    rows, starts, weights = _cubic_bands(len(rgb), height)
    lines = rgb.reshape(len(rgb), -1)
    tall, result = np.empty((_GROUP, lines.shape[1])), np.empty((height, width, 3))
    for top in range(0, height, _GROUP):
        into = result[top : top + _GROUP]
        for y in range(0, len(into), _BAND):
            band = (top + y) // _BAND
            part: Any = rows[starts[band] :][: weights.shape[2]]
            if part[-1] - part[0] < len(part):  # neighbours: a view instead of a copy
                part = slice(part[0], part[-1] + 1)
            _product(weights[band], lines[part], tall[y : y + _BAND])
        blended = tall[: len(into)].reshape(len(into), -1, 3)
        cv2.resize(blended, (width, len(into)), dst=into, interpolation=cv2.INTER_CUBIC)  # keeping the height is exact
    return result


def _cubic_bands(source: int, target: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """How OpenCV makes `target` lines of more than `target` by cubic interpolation, _BAND results at a time.

    Returns the lines that are read, ascending (for most sizes, all); for every band, which of these is its first, [n];
    and the weights of that and the following ones, f64 [n,_BAND,span].
    """
    first = np.floor((np.arange(target) + 0.5) * (source / target) - 0.5).astype(np.intp) - 1
    taps = np.clip(first[:, None] + np.arange(4), 0, source - 1)
    # Four impulse trains, resized: neighbours never share one. No formula of ours could follow OpenCV's rounding
    impulses = np.eye(4)[np.arange(source) % 4]
    answers = np.asarray(cv2.resize(impulses[None], (target, 1), interpolation=cv2.INTER_CUBIC))[0]
    rows = np.unique(taps) if source > _SPARSE * target else np.arange(source)
    places = np.searchsorted(rows, taps)
    starts = np.repeat(places[::_BAND, 0], _BAND)[:target]
    span = int((places[:, 3] - starts).max()) + 1
    starts = np.minimum(starts, len(rows) - span)
    weights = np.zeros((-(-target // _BAND) * _BAND, span))
    np.put_along_axis(weights[:target], places - starts[:, None], np.take_along_axis(answers, taps % 4, axis=1), axis=1)
    return rows, starts[::_BAND], weights.reshape(-1, _BAND, span)


def _product(weights: NDArray[np.float64], lines: UInt8, out: NDArray[np.float64]) -> None:
    """weights [m,k] @ lines [k,n] -> out [m,n], in pieces that no BLAS spreads over threads."""
    step = max(1, _MOST_PRODUCTS // weights.size)
    for x in range(0, lines.shape[1], step):
        np.matmul(weights, lines[:, x : x + step].astype(np.float64), out=out[:, x : x + step])


def _fill_tiles(channels: Sequence[UInt8], windows: Int32, tiles: Float32) -> None:
    """Normalise the windows of three uint8 [H,W] channels into f32 [n,3,tile,tile].

    Looked up tile by tile: one look-up of the whole picture, copied from, takes 1.3x the time, and more memory.
    """
    side = tiles.shape[-1]
    for into, (y, x) in zip(tiles, windows.tolist(), strict=True):
        for plane, channel, table in zip(into, channels, _NORMALISED, strict=True):
            cv2.LUT(channel[y : y + side, x : x + side], table, dst=plane)


def _open(data: bytes) -> tuple[str, Image.Image]:
    """Identify the format by its first bytes and read the header only.

    The plugin is called directly, not through Image.open: that one enforces Pillow's process-wide pixel limit, which
    could only be changed for every other user of Pillow in this process, too.
    """
    kind, plugin = _identify(data)
    try:
        import_module(f"PIL.{plugin}")
        factory = Image.OPEN[kind][0]
    except (ImportError, KeyError) as error:
        raise ImageError(f"this Pillow was built without {kind}; install a newer one, or convert the file") from error
    try:
        return kind, factory(io.BytesIO(data), "")
    except Exception as error:  # SyntaxError, struct.error, OSError, ...: plugins raise many types on damaged headers
        raise ImageError(
            f"starts like {kind}, but its header cannot be read, {len(data)} bytes ({type(error).__name__}: {error})"
        ) from error


def _identify(data: bytes) -> tuple[str, str]:
    """(format, plugin) by the first bytes, or ImageError that says what the data looks like."""
    if not data:
        raise ImageError("empty file: 0 bytes")
    head = bytes(data[:256])
    for kind, plugin, pattern in _FORMATS:
        if re.match(pattern, head, re.DOTALL):
            return kind, plugin
    known = ", ".join(kind for kind, _, _ in _FORMATS)
    for name, pattern in _FOREIGN:
        if re.match(pattern, head, re.DOTALL | re.IGNORECASE):
            raise ImageError(f"this is {name}; readable are {known}")
    raise ImageError(f"not an image: starts with {head[:16]!r}; readable are {known}")


def _upright(image: Image.Image) -> Image.Image:
    """Undo the camera's rotation. Read after load(): TIFFs are turned, and their tag dropped, by newer Pillows."""
    try:
        method = _UPRIGHT.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # damaged metadata must not cost the picture
        return image
    return image if method is None else image.transpose(method)


def _pixels(image: Image.Image, kind: str) -> NDArray[Any]:
    """A loaded Pillow image of any mode as an array that `as_rgb` takes."""
    if image.mode == "F" or image.mode.startswith("I;16"):
        return np.asarray(image)
    if image.mode == "I":
        if kind == "TIFF":
            raise ImageError("32-bit integer pixels, whose white level is not known; save as 8 or 16 bits per channel")
        return np.asarray(image).astype(np.uint16)  # 16-bit PGM and, in older Pillows, PNG
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return np.asarray(image)
    alpha = "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa")
    try:
        return np.asarray(image.convert("RGBA" if alpha else "RGB"))
    except ValueError as error:  # CIE Lab, for one
        raise ImageError(f"{image.mode} pixels have no defined way to RGB; save as RGB") from error


def _check_image_shape(shape: tuple[int, ...]) -> None:
    wanted = "wanted [H,W], [H,W,1], [H,W,3] or [H,W,4]"
    if len(shape) == 3 and shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4):
        raise ImageError(f"got an array of shape {shape}, {wanted}; channels come last: array.transpose(1, 2, 0)")
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)):
        raise ImageError(f"got an array of shape {shape}, {wanted}; pass one image at a time")
    if 0 in shape:
        raise ImageError(f"got an empty array of shape {shape}, {wanted} with at least one pixel")


def _to_uint8(array: NDArray[Any]) -> UInt8:
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:  # either byte order
        return (array >> 8).astype(np.uint8)
    if array.dtype.kind != "f":
        raise ImageError(f"got {array.dtype} values, wanted uint8, uint16 or float in 0..1; try array.astype(np.uint8)")
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):  # also true for NaN
        raise ImageError(f"got floats from {low:g} to {high:g}, wanted 0..1 without NaN; divide by the white level")
    return np.rint(array * np.float32(255)).astype(np.uint8)


def _over_white(rgba: UInt8) -> UInt8:
    """Composite uint8 [H,W,4] over white, rounded to nearest."""
    if rgba[..., 3].min() == 255:
        return rgba[..., :3]
    alpha = rgba[..., 3:].astype(np.uint16)
    return ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


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
    """The nearest multiple (ties to even), or the next above where that would fall below the bound."""
    nearest = round(side / multiple) * multiple
    return nearest if nearest >= lower_bound else math.ceil(side / multiple) * multiple
