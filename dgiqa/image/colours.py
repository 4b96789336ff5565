"""A picture's own colours -> sRGB, as browsers and viewers show them: ICC profiles, wide primaries, HDR."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dgiqa.errors import ImageError
from dgiqa.hdr import HLG, PQ, srgb_levels
from dgiqa.image.png import Colours

UInt8 = NDArray[np.uint8]
Convert = Callable[[Image.Image], Image.Image]

MAX_PROFILE = 1 << 24  # bytes; printers' are the largest, with some 3 MB
_CLOSE = 2  # levels: a profile that moves no colour further is sRGB, written another way
_TRANSFERS = {PQ: "PQ", HLG: "HLG"}
_SDR = frozenset({1, 2, 6, 13, 14, 15})  # transfers that sRGB screens show as they are
# Linear light of other primaries (by their numbers in H.273) -> of sRGB's
_TO_SRGB = {
    9: np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32),
    12: np.array([[1.2249, -0.2247, 0], [-0.0420, 1.0419, 0], [-0.0197, -0.0786, 1.0979]], np.float32),
}
_NAMES = {9: "BT.2020", 12: "Display P3"}


def hdr_of(colours: Colours | None) -> str:
    """Either "PQ", "HLG", or "" for SDR. Raises ImageError for HDR whose primaries are not BT.2020."""
    if colours is None or colours.transfer not in _TRANSFERS:
        return ""
    name = _TRANSFERS[colours.transfer]
    if colours.primaries not in (9, 2):
        raise ImageError(f"HDR ({name}) with primaries number {colours.primaries}; convert it to an SDR image in sRGB")
    return name


def from_primaries(colours: Colours | None) -> tuple[Callable[[UInt8], UInt8] | None, str]:
    """uint8 RGB of these primaries -> sRGB, as a function, and a note on it; (None, "") where nothing is to be done."""
    if colours is None or colours.primaries not in _TO_SRGB or colours.transfer not in _SDR:
        return None, ""
    matrix = _TO_SRGB[colours.primaries]

    def convert(rgb: UInt8) -> UInt8:
        light = cv2.transform(_linear()[rgb], matrix)
        return np.asarray(srgb_levels()[(np.clip(light, 0, 1) * 4095 + 0.5).astype(np.uint16)])

    return convert, f"converted from {_NAMES[colours.primaries]} to sRGB"


def from_profile(profile: bytes | None, mode: str) -> tuple[Convert | None, str]:
    """A function from Pillow images of a mode with this ICC profile to sRGB, and a note on it.

    mode: "RGB", "L" or "CMYK". (None, "") without a profile or where it is sRGB anyway, so that ordinary photographs
    keep their very pixels; a profile that cannot be used is ignored, with a note.
    """
    if not profile:
        return None, ""
    if len(profile) > MAX_PROFILE:
        return None, "its colour profile is too large and ignored"
    return _transform(bytes(profile), mode)


@lru_cache(32)
def _transform(profile: bytes, mode: str) -> tuple[Convert | None, str]:
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
        return transform.apply, f"converted from {name} to sRGB"
    except Exception as error:  # ImportError, PyCMSError, OSError, ...: profiles are damaged in many ways
        return None, f"its colour profile cannot be read and is ignored ({type(error).__name__})"


def _samples(mode: str) -> Image.Image:
    """Colours all over the cube, and every grey."""
    grey = np.arange(256, dtype=np.uint8)
    if mode == "L":
        return Image.fromarray(grey[None])
    channels = 4 if mode == "CMYK" else 3
    steps = np.linspace(0, 255, 9 if channels == 3 else 5).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(*[steps] * channels), axis=-1).reshape(1, -1, channels)
    values = np.concatenate([cube, np.repeat(grey[None, :, None], channels, axis=2)], axis=1)
    return Image.frombytes(mode, (values.shape[1], 1), np.ascontiguousarray(values).tobytes())


@lru_cache(1)
def _linear() -> NDArray[np.float32]:
    """Light of every sRGB level: f32 [256]."""
    level = np.arange(256) / 255
    return np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4).astype(np.float32)
