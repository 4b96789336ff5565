"""The kernels' C functions (engines/preprocess.h) as Python functions on plain pointers. Nothing here owns memory.

The library is the file $DGIQA_KERNELS, else the one in the wheel dgiqa-rt-kernels (its hash must match), else the one
in this package or under the interpreter's lib folder, where `cmake --install` puts it. An emulated library runs the
same source on host memory; `Kernels.emulated` is then true.
"""

import ctypes
import importlib.util
import json
import os
import sys
from collections.abc import Iterable
from ctypes import c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgiqa.dtypes import Float32, Int32
from dgiqa.errors import BackendError
from dgiqa.runtime import cuda
from dgiqa.spec import IMAGENET_MEAN, IMAGENET_STD
from dgiqa.store import sha256_of

LIBRARY = "libdgiqa_kernels.so"
ABI = 3  # DGIQA_PREPROCESS_ABI of engines/preprocess.h
RANGE_WORDS = 3  # uint32 words in a depth map's range
WHEEL = "dgiqa_rt_kernels"  # built by engines/pyproject.toml
_BUILD = "pip wheel ./engines --no-deps -w dist && pip install dist/dgiqa_rt_kernels-*.whl"
# FFmpeg's number of a matrix -> V to red, U to blue, U and V from green, in 1/65536 for limited range
_YCBCR = {
    1: (117489, 138438, 13975, 34925),  # BT.709
    4: (104448, 132798, 24759, 53109),  # FCC
    5: (104597, 132201, 25675, 53279),  # BT.601
    7: (117579, 136230, 16907, 35559),  # SMPTE 240M
    9: (110013, 140363, 12277, 42626),  # BT.2020
}
_FLOAT_TYPES = {np.dtype(np.float32): 0, np.dtype(np.float16): 1}
_U8 = 2
_STATUS = {
    1: "an argument is out of range: a size, a pointer, or a window outside the image",
    2: "a pointer or stride is not aligned",
    3: "the image has more rows than one launch takes",
    4: "CUDA refused the launch; is the library built for this GPU, and the stream one of this context?",
}


@dataclass(frozen=True)
class Image:
    """uint8 [height,width,3] RGB in the kernels' memory. strides: bytes per row, pixel and channel; may be negative."""

    pointer: int
    height: int
    width: int
    strides: tuple[int, int, int]


@dataclass(frozen=True)
class Nv12:
    """A decoder's picture in the kernels' memory: luma uint8 [height,width], chroma [height/2,width/2,2], both even.

    strides: bytes per row of luma and of chroma. matrix: FFmpeg's number of it, see `video.colour.matrix_number`.
    full: levels 0 to 255 instead of 16 to 235. owner: keeps the memory alive.
    """

    luma: int
    chroma: int
    height: int
    width: int
    strides: tuple[int, int]
    matrix: int
    full: bool = False
    owner: Any = None


@dataclass(frozen=True)
class DepthMap:
    """f32 [*map_size] for a depth image of `size`, both (height, width); range_pointer: uint32 [3], see depth_range."""

    pointer: int
    map_size: tuple[int, int]
    size: tuple[int, int]
    range_pointer: int


class Kernels:
    """A loaded library. path: the file, by default the one the module docstring names. Calls only enqueue on `stream`.

    Raises BackendError if there is no library, it cannot be loaded, or its functions are of another version.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = find() if path is None else Path(path)
        try:
            self._library = ctypes.CDLL(str(self.path))
            abi = int(self._library.dgiqa_preprocess_abi())
        except (OSError, AttributeError) as error:
            raise BackendError(f"{self.path} is not a library of kernels ({error}); build it: {_BUILD}") from error
        if abi != ABI:
            raise BackendError(f"{self.path} speaks version {abi}, this package {ABI}; build it again: {_BUILD}")
        for name in ("dgiqa_nv12", "dgiqa_depth_input", "dgiqa_reduce", "dgiqa_depth_range", "dgiqa_tiles"):
            getattr(self._library, name).argtypes = [c_void_p, c_void_p]
        self.emulated = bool(self._library.dgiqa_preprocess_emulated())

    def nv12(self, picture: Nv12, out: int, *, stream: int = 0) -> None:
        """Write RGB, bit-equal to `video.colour.to_rgb`, to `out`, uint8 [height,width,3].

        The exception: colours so far out of range that FFmpeg's 32-bit integers overflow are right here.
        """
        coefficients = _rgb_coefficients(picture.matrix, picture.full)
        size = (picture.height, picture.width)
        self._call(
            "dgiqa_nv12", _Nv12(picture.luma, picture.chroma, *picture.strides, *size, *coefficients, out), stream
        )

    def depth_input(
        self, image: Image, size: tuple[int, int], out: int, *, dtype: Any = np.float32, stream: int = 0
    ) -> None:
        """Write preprocess.depth_input of version 1 to `out`, dtype (f32 or f16) [3,*size]. f32 is within 4.5e-6."""
        scale = _three(1 / (255 * std) for std in IMAGENET_STD)
        shift = _three(mean / std for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True))
        self._call("dgiqa_depth_input", _DepthInput(_image(image), *size, scale, shift, out, _type(dtype)), stream)

    def reduce(
        self, image: Image, size: tuple[int, int], out: int, *, levels: int = 0, dtype: Any = np.uint8, stream: int = 0
    ) -> None:
        """Reduce by averaging over areas, as version 2 does if neither side grows. size: (height, width).

        out: uint8 [*size,3], the working image; or dtype (f32 or f16) [3,*size], the depth input, made from the f32
        `levels` [3,256], see `normalised_levels`.
        """
        kind = _U8 if np.dtype(dtype) == np.uint8 else _type(dtype)
        self._call("dgiqa_reduce", _Reduce(_image(image), *size, levels, out, kind), stream)

    def depth_range(self, depth: DepthMap, stream: int = 0) -> None:
        """Write the minimum and maximum of the depth image, and whether all of the map is finite, to its range."""
        self._call("dgiqa_depth_range", _depth(depth), stream)

    def tiles(
        self,
        image: Image,
        depth: DepthMap,
        short: tuple[int, int],
        windows: Int32,
        *,
        tile: int,
        levels: int,
        out: tuple[int, int],
        dtype: Any = np.float32,
        stream: int = 0,
    ) -> None:
        """preprocess.depth_image, resizing to `short` (height, width) and cut_tiles, in one pass.

        image, depth: either both have the image's size (version 1), or the depth has size `short` and the image, of any
        size, is resized bilinearly (version 2, after `reduce`).
        windows: int32 [n,2] on the host. levels: f32 [3,256], see `normalised_levels`. out: rgb and depth tiles,
        dtype [n,3,tile,tile]. `depth_range` must have filled the range on the same stream.
        """
        corners = np.ascontiguousarray(windows, np.int32)
        params = _Tiles(
            _image(image), _depth(depth), *short, tile, len(corners), corners.ctypes.data, levels, *out, _type(dtype)
        )
        self._call("dgiqa_tiles", params, stream)

    def _call(self, name: str, params: ctypes.Structure, stream: int) -> None:
        status = getattr(self._library, name)(ctypes.addressof(params), stream)
        if status:
            raise BackendError(f"{name} failed: {_STATUS.get(status, f'status {status}')}")


def is_on_gpu(source: object) -> bool:
    """Whether a picture is on a device: an array of any library, or an Nv12."""
    if isinstance(source, str | Path | bytes | bytearray | memoryview | np.ndarray):
        return False
    return isinstance(source, Nv12) or cuda.is_device_array(source)


def find() -> Path:
    """Path of the library. Raises BackendError, which says how to build it, if there is none."""
    if named := os.environ.get("DGIQA_KERNELS"):
        if not Path(named).is_file():
            raise BackendError(f"DGIQA_KERNELS is {named}, which is not a file; build it: {_BUILD}")
        return Path(named)
    if installed := importlib.util.find_spec(WHEEL):
        return _of_wheel(Path(str(installed.origin)).parent)
    places = [Path(__file__).parent / LIBRARY, Path(sys.prefix, "lib", LIBRARY)]
    for place in places:
        if place.is_file():
            return place
    where = " or ".join(str(place.parent) for place in places)
    raise BackendError(f"no {LIBRARY} in {where}, and no wheel dgiqa-rt-kernels; build it: {_BUILD}")


def _of_wheel(folder: Path) -> Path:
    """The wheel's library. BackendError unless its hash is the recorded one."""
    try:
        record = json.loads((folder / "library.json").read_text(encoding="utf-8"))
        path, wanted = folder / str(record["file"]), record["sha256"]
        same = sha256_of(path) == wanted
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BackendError(f"{folder} is damaged ({error}); pip install --force-reinstall dgiqa-rt-kernels") from error
    if not same:
        raise BackendError(f"{path} is not the packed library; pip install --force-reinstall dgiqa-rt-kernels")
    return path


def normalised_levels() -> Float32:
    """Network input for each uint8 level, per channel: f32 [3,256]."""
    steps = np.arange(256) / 255
    return np.stack([(steps - mean) / std for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)]).astype("f4")


def is_finite(range_words: NDArray[np.uint32]) -> bool:
    """Whether the depth map behind a filled range had only finite values."""
    return not range_words[2]


def _struct(*fields: tuple[Any, str]) -> Any:
    """A struct of the header as a ctypes class. fields: (type, names of one or more fields of it), in order."""
    listed = [(name, kind) for kind, names in fields for name in names.split()]
    return type("Params", (ctypes.Structure,), {"_fields_": listed})


_Image = _struct((c_void_p, "data"), (c_int64, "row_stride pixel_stride channel_stride"), (c_int32, "height width"))
_Nv12 = _struct(
    (c_void_p, "luma chroma"),
    (c_int64, "luma_stride chroma_stride"),
    (c_int32, "height width y_offset y_scale v_to_r v_to_g u_to_g u_to_b"),
    (c_void_p, "out"),
)
_DepthInput = _struct(
    (_Image, "image"), (c_int32, "height width"), (c_float * 3, "scale shift"), (c_void_p, "out"), (c_int32, "out_type")
)
_Reduce = _struct((_Image, "image"), (c_int32, "height width"), (c_void_p, "levels out"), (c_int32, "out_type"))
_Depth = _struct((c_void_p, "map"), (c_int32, "map_height map_width height width"), (c_void_p, "range"))
_Tiles = _struct(
    (_Image, "image"),
    (_Depth, "depth"),
    (c_int32, "short_height short_width tile count"),
    (c_void_p, "windows levels rgb_out depth_out"),
    (c_int32, "out_type"),
)


def _image(image: Image) -> Any:
    return _Image(image.pointer, *image.strides, image.height, image.width)


def _depth(depth: DepthMap) -> Any:
    return _Depth(depth.pointer, *depth.map_size, *depth.size, depth.range_pointer)


def _rgb_coefficients(matrix: int, full: bool) -> tuple[int, ...]:
    """The fields y_offset to u_to_b of dgiqa_nv12_params, as FFmpeg's integers. ValueError for an unknown matrix."""
    if matrix not in _YCBCR:
        raise ValueError(f"matrix is {matrix}, wanted one of {sorted(_YCBCR)}")
    red, blue, green_u, green_v = (value * 224 // 255 if full else value for value in _YCBCR[matrix])
    scale, offset = (1 << 16, 0) if full else ((255 << 16) // 219, 16 << 16)
    rounded = (
        (value * (1 << shift) + (1 << 15)) >> 16
        for value, shift in (*((offset, 9), (scale, 13), (red, 13), (-green_v, 13), (-green_u, 13), (blue, 13)),)
    )
    return tuple(min(value, 0x7FFF) for value in rounded)


def _three(values: Iterable[float]) -> ctypes.Array[c_float]:
    return (c_float * 3)(*values)


def _type(dtype: Any) -> int:
    if (code := _FLOAT_TYPES.get(np.dtype(dtype))) is None:
        raise ValueError(f"the kernels write float32 or float16, not {np.dtype(dtype)}")
    return code
