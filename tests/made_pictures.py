"""Pictures for tests, and their bytes in any format that Pillow writes."""

from __future__ import annotations

import functools
import io
from typing import Any

import numpy as np
from PIL import Image
from skimage import data


def encode(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@functools.cache
def pixels(name: str) -> np.ndarray:
    """Reading the package's file takes as long as most tests."""
    return np.asarray(getattr(data, name)())


def photo(name: str = "astronaut") -> Image.Image:
    return Image.fromarray(pixels(name))


def pattern(height: int, width: int) -> np.ndarray:
    """uint8 [H,W,3] from integers alone, so that no decoder or data set is part of it."""
    y, x, c = np.ogrid[:height, :width, :3]
    return ((x * x + 3 * x * y + 7 * y * (c + 1) + 50 * c) // 16 % 256).astype(np.uint8)
