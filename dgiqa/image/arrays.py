"""Convert an array of levels to RGB, uint8 [H,W,3]."""

from collections.abc import Callable

import numpy as np

from dgiqa.dtypes import Array, UInt8
from dgiqa.errors import ImageError

BAND = 1 << 20  # pixels that are converted at a time, so that copies of a large image stay small

# EXIF's orientation -> a function from an upright array to its view with rows and columns as stored
AS_STORED: dict[int, Callable[[UInt8], UInt8]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}
_SIDEWAYS = frozenset({5, 6, 7, 8})


def as_rgb(array: Array) -> UInt8:
    """Turn an image array into RGB uint8 [H,W,3]; an array that already is is returned itself.

    Shapes: [H,W], [H,W,1], [H,W,3] in RGB order, or [H,W,4] with alpha, laid over white. Types: uint8; uint16 in
    0..65535 (the high byte is kept, as image decoders do); float in 0..1 (rounded). Raises ImageError for others, and
    for uint16 that holds 8, 10 or 12 bits.
    """
    if not isinstance(array, np.ndarray):
        raise ImageError(f"got {type(array).__name__}, wanted a numpy array: np.asarray(image)")
    check_shape(array.shape)
    check_levels(array)
    return rgb_of(array)


def rgb_of(array: Array) -> UInt8:
    """Convert as `as_rgb` does, but a checked array or a part of one."""
    levels = to_uint8(array)
    if levels.ndim == 2 or levels.shape[2] == 1:
        return np.repeat(levels.reshape(*levels.shape[:2], 1), 3, axis=2)
    return np.ascontiguousarray(levels if levels.shape[2] == 3 else over_white(levels))


def check_shape(shape: tuple[int, ...]) -> None:
    """Raise ImageError unless this is the shape of one image."""
    wanted = "wanted [H,W], [H,W,1], [H,W,3] or [H,W,4]"
    if len(shape) == 3 and shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4):
        raise ImageError(f"got an array of shape {shape}, {wanted}; channels come last: array.transpose(1, 2, 0)")
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)):
        raise ImageError(f"got an array of shape {shape}, {wanted}; pass one image at a time")
    if 0 in shape:
        raise ImageError(f"got an empty array of shape {shape}, {wanted} with at least one pixel")


def check_levels(array: Array) -> None:
    """Raise ImageError unless the type and values define black and white."""
    if array.dtype == np.uint8:
        return
    if array.dtype == bool:
        raise ImageError(
            "got bool values, wanted uint8, uint16 or float in 0..1; of a mask: array.astype(np.uint8) * 255"
        )
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:  # either byte order
        _check_depth(int(array.max()))
        return
    if array.dtype.kind in "iu":
        low, high = int(array.min()), int(array.max())
        fix = "array.astype(np.uint8)" if low >= 0 and high <= 255 else "scale it to 0..255 and make it uint8"
        raise ImageError(f"got {array.dtype} values from {low} to {high}, wanted uint8, uint16 or float in 0..1; {fix}")
    if array.dtype.kind != "f":
        raise ImageError(f"got {array.dtype} values, wanted uint8, uint16 or float in 0..1")
    least, most = float(array.min()), float(array.max())
    if not (least >= 0 and most <= 1):  # also true for NaN
        raise ImageError(f"got floats from {least:g} to {most:g}, wanted 0..1 without NaN; divide by the white level")


def over_white(rgba: UInt8) -> UInt8:
    """Composite uint8 [H,W,4] over white, rounded to nearest."""
    if rgba[..., 3].min() == 255:
        return rgba[..., :3]
    alpha = rgba[..., 3:].astype(np.uint16)
    return ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def upright(size: tuple[int, int], orientation: int, rows_of: Callable[[int, int], UInt8]) -> UInt8:
    """Join an image's bands and turn it upright by EXIF's orientation: uint8 [H,W,3].

    size: height and width as stored. rows_of: gives the rows from one number up to another, uint8 [n,width,3].
    """
    height, width = size
    whole = rows_of(0, height) if height * width <= BAND else None
    turn = AS_STORED.get(orientation)
    if whole is not None and turn is None:
        return whole
    out = np.empty((width, height, 3) if orientation in _SIDEWAYS else (height, width, 3), np.uint8)
    stored = out if turn is None else turn(out)
    step = max(1, BAND // width)
    for top in range(0, height, step):
        bottom = min(top + step, height)
        stored[top:bottom] = rows_of(top, bottom) if whole is None else whole[top:bottom]
    return out


def _check_depth(high: int) -> None:
    """Raise ImageError if the upper bits are unused: a file of fewer bits is likelier than so dark a picture."""
    for bits in (8, 10, 12):
        if 0 < high < 1 << bits:
            fix = "array.astype(np.uint8)" if bits == 8 else f"array << {16 - bits}"
            raise ImageError(
                f"16-bit values of at most {high} of 65535: nearly black, or {bits}-bit levels, which must be scaled "
                f"up first ({fix}); a picture that truly is so dark can be given as 8 bits per channel"
            )


def to_uint8(array: Array) -> UInt8:
    """Convert levels of a type that `as_rgb` takes to 8 bits."""
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind == "u":
        return (array >> 8).astype(np.uint8)
    return np.rint(array * np.float32(255)).astype(np.uint8)
