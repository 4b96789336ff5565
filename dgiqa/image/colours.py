"""Convert a picture's own colours to sRGB, as browsers and viewers show them: ICC profiles, wide primaries, HDR."""

import io
import re
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import cv2
import numpy as np
from PIL import Image

from dgiqa.dtypes import Array, Float32, Float64, UInt8
from dgiqa.errors import ImageError
from dgiqa.hdr import HDR, srgb_levels, tone_map
from dgiqa.image.arrays import to_uint8
from dgiqa.image.png import Colours, Gamma

MAX_PROFILE = 1 << 24  # bytes; printers' profiles are the largest, with about 3 MB
_SAME = 0.05  # a difference of powers (libpng's limit) or matrices that is ignored
_CLOSE = 2  # levels: a profile that moves no colour further is sRGB, written another way
_SDR = frozenset({1, 2, 6, 13, 14, 15})  # transfers that sRGB screens show unchanged
_POWERS = {4: 2.2, 5: 2.8, 8: 1.0}  # transfers that are a power of the level
# White, red, green, blue in CIE x and y, by their numbers in H.273; sRGB's are 1, and 2 is "not said"
_PRIMARIES: dict[int, tuple[float, ...]] = {
    4: (0.310, 0.316, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (0.3127, 0.3290, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (0.3127, 0.3290, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    7: (0.3127, 0.3290, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    9: (0.3127, 0.3290, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    22: (0.3127, 0.3290, 0.630, 0.340, 0.295, 0.605, 0.155, 0.077),
}
_SRGB = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
_NAMES = {9: "BT.2020", 11: "DCI-P3", 12: "Display P3"}
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_SCREEN = 2.2  # the screen's power, which browsers assume for a picture that gives its own power but no primaries

ToSrgb = Callable[[Any], UInt8]


def conversion(
    meant: Colours | Gamma | None, profile: bytes | None = None, mode: str = "RGB"
) -> tuple[ToSrgb | None, str, bool]:
    """(a function from levels of these colours to sRGB, uint8 [H,W,3]; a note on it; whether it is HDR).

    meant: of RGB, uint8 or uint16 [H,W,3]. profile: without these, an ICC profile, of levels that Pillow calls `mode`:
    [H,W] for "L", [H,W,3] for "RGB", or an image of it. (None, "", False) if there is nothing to convert. Raises
    ImageError if their appearance is not defined.
    """
    if isinstance(meant, Gamma):
        return (*_from_gamma(meant), False)
    if meant is None:
        return (*_from_profile(profile, mode), False)
    if name := HDR.get(meant.transfer):
        if meant.primaries not in (9, 2):
            raise ImageError(f"{name} with primaries number {meant.primaries}; convert it to an SDR image in sRGB")
        return partial(tone_map, transfer=meant.transfer), f"{name} tone-mapped to SDR", True
    if meant.transfer not in _SDR and meant.transfer not in _POWERS:
        raise ImageError(f"colours with transfer number {meant.transfer}, which few programs show; convert it to sRGB")
    power = _POWERS.get(meant.transfer)
    matrix = _to_srgb(_PRIMARIES[meant.primaries]) if meant.primaries in _PRIMARIES else None
    if power is None and matrix is None:
        return None, "", False
    name = _NAMES.get(meant.primaries, f"primaries number {meant.primaries}" if matrix is not None else "")
    curve = "" if power is None else "linear light" if power == 1 else f"gamma {power}"
    note = f"converted from {' and '.join(filter(None, [name, curve]))} to sRGB"
    return _through_light(power, matrix), note, False


def _from_gamma(meant: Gamma) -> tuple[ToSrgb | None, str]:
    """The conversion that browsers use for PNGs with a gAMA chunk: through light if there is cHRM, else by a power."""
    power, matrix = 1 / meant.exponent, None
    if meant.chromaticities is not None:
        matrix = _to_srgb(meant.chromaticities)
        matrix = None if np.abs(matrix - np.eye(3)).max() < _SAME else matrix
    if matrix is not None:
        return _through_light(power, matrix), f"converted from its own primaries and gamma {power:.3g} to sRGB"
    if abs(power / _SCREEN - 1) < _SAME:  # as near as libpng takes for the same
        return None, ""

    def convert(levels: Array) -> UInt8:
        most = np.iinfo(levels.dtype).max
        table = np.rint(255 * (np.arange(most + 1) / most) ** (power / _SCREEN)).astype(np.uint8)
        return np.asarray(table[levels])

    return convert, f"converted from gamma {power:.3g} to sRGB"


def _through_light(power: float | None, matrix: Float32 | None) -> ToSrgb:
    """Convert by way of linear light. power: light is this power of the level; None: sRGB's curve."""

    def convert(levels: Array) -> UInt8:
        light = _light_of(np.iinfo(levels.dtype).max, power)[levels]
        light = light if matrix is None else cv2.transform(light, matrix)
        return np.asarray(srgb_levels()[(np.clip(light, 0, 1) * 4095 + 0.5).astype(np.uint16)])

    return convert


def _to_srgb(chromaticities: tuple[float, ...]) -> Float32:
    """The matrix from linear light in these primaries to sRGB's, which keeps white white (Bradford): f32 [3,3]."""
    own, srgb = _to_xyz(chromaticities), _to_xyz(_SRGB)
    white, target = _BRADFORD @ own.sum(axis=1), _BRADFORD @ srgb.sum(axis=1)
    adapted = np.linalg.inv(_BRADFORD) @ np.diag(target / white) @ _BRADFORD
    return np.asarray(np.linalg.inv(srgb) @ adapted @ own, np.float32)


def _to_xyz(chromaticities: tuple[float, ...]) -> Float64:
    """The matrix from linear RGB to XYZ, where white has luminance 1: f64 [3,3]. ImageError for primaries on a line."""
    x, y = np.array(chromaticities[::2]), np.array(chromaticities[1::2])
    xyz = np.stack([x, y, 1 - x - y]) / np.maximum(y, 1e-4)
    try:
        return np.asarray(xyz[:, 1:] * np.linalg.solve(xyz[:, 1:], xyz[:, 0]))
    except np.linalg.LinAlgError as error:
        raise ImageError("primaries that span no colours; save it in sRGB") from error


def _from_profile(profile: bytes | None, mode: str) -> tuple[ToSrgb | None, str]:
    """None without a profile or if it is sRGB anyway, so that ordinary photographs keep their exact pixels.

    A profile that cannot be used is ignored, with a note.
    """
    if not profile:
        return None, ""
    if len(profile) > MAX_PROFILE:
        return None, "its colour profile is too large and ignored"
    return _transform(bytes(profile), mode)


@lru_cache(32)
def _transform(profile: bytes, mode: str) -> tuple[ToSrgb | None, str]:
    try:
        from PIL import ImageCms

        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}.get(mode) != space:
            return None, f"its colour profile is for {space} and ignored"
        target: Any = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(source, target, mode, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC)
        name = re.sub(r"\s+", " ", ImageCms.getProfileDescription(source)).strip("\0 ")[:60] or "an unnamed profile"
        samples = _samples(mode)
        moved = np.asarray(ImageCms.applyTransform(samples, transform), np.int16)
        if np.abs(moved - np.asarray(samples.convert("RGB"), np.int16)).max() <= _CLOSE:
            return None, ""

        def convert(levels: Array | Image.Image) -> UInt8:
            if not isinstance(levels, Image.Image):
                packed = np.ascontiguousarray(to_uint8(levels))
                levels = Image.frombuffer(mode, packed.shape[1::-1], packed, "raw", mode, 0, 1)
            return np.asarray(transform.apply(levels))

        return convert, f"converted from {name} to sRGB"
    except Exception as error:  # ImportError, PyCMSError, OSError, ...: profiles are damaged in many ways
        return None, f"its colour profile cannot be read and is ignored ({type(error).__name__})"


def _samples(mode: str) -> Image.Image:
    """Colours from all over the cube, and every grey."""
    grey = np.arange(256, dtype=np.uint8)
    if mode == "L":
        return Image.fromarray(grey[None])
    channels = 4 if mode == "CMYK" else 3
    steps = np.linspace(0, 255, 9 if channels == 3 else 5).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(*[steps] * channels), axis=-1).reshape(1, -1, channels)
    values = np.concatenate([cube, np.repeat(grey[None, :, None], channels, axis=2)], axis=1)
    return Image.frombytes(mode, (values.shape[1], 1), np.ascontiguousarray(values).tobytes())


@lru_cache(4)
def _light_of(most: int, power: float | None) -> Float32:
    """The light of every level up to `most`: f32 [most + 1]. power: as in `_through_light`."""
    level = np.arange(most + 1) / most
    srgb = np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)
    return np.asarray(srgb if power is None else level**power, np.float32)
