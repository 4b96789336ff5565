"""Develop a camera's raw photograph into pixels, by LibRaw through rawpy, if that is installed."""

import io
from collections.abc import Callable
from typing import Any

from dgiqa.dtypes import UInt8
from dgiqa.errors import ImageError
from dgiqa.extras import load

NOTE = "developed from a raw photograph with the camera's white balance"
BYTES_PER_PIXEL = 25  # of LibRaw's mosaic, its four planes of 16 bits, and its result


class RawError(Exception):
    """A file turned out to be a raw photograph. The error's text is its format."""


def open_raw(kind: str, data: bytes) -> tuple[int, int, Callable[[], UInt8]]:
    """(width, height, a function that develops it into upright sRGB, uint8 [H,W,3]).

    Raises ImageError if rawpy is missing, or LibRaw cannot read the file.
    """
    what, otherwise = f"a camera's raw photograph ({kind})", "develop it to JPEG, PNG or TIFF"
    rawpy = load("rawpy", what, "rawpy", "raw", kind=ImageError, instead=otherwise)

    def opened() -> Any:
        try:
            return rawpy.imread(io.BytesIO(data))
        except Exception as error:  # LibRaw's, each of its own type
            raise ImageError(f"{what} that cannot be read ({type(error).__name__}: {error}); {otherwise}") from error

    def develop() -> UInt8:
        with opened() as photograph:
            found: UInt8 = photograph.postprocess(use_camera_wb=True, output_bps=8)
        return found

    with opened() as photograph:
        return photograph.sizes.width, photograph.sizes.height, develop
