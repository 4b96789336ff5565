"""Bytes of an image file, or an array -> upright RGB, uint8 [H,W,3].

Nothing here keeps or changes global state, so every function may run in several threads at once.
"""

from __future__ import annotations

import io
import re
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dgiqa.errors import ImageError

UInt8 = NDArray[np.uint8]

MAX_PIXELS = 200_000_000  # refused before decoding; 200 megapixels are 600 MB as RGB, today's largest phone sensor

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
