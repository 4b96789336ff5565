"""The preprocessing kernels, emulated, give the network inputs that dgiqa.preprocess gives."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from emulated import ENGINES, compile_library, image_of, poisoned
from numpy.typing import NDArray

from dgiqa import preprocess
from dgiqa.errors import BackendError
from dgiqa.runtime.kernels import DepthMap, Image, Kernels, Nv12, is_finite, normalised_levels
from dgiqa.spec import IMAGENET_STD, Preprocess

FULL = Preprocess()
TINY = Preprocess(depth_lower_bound=64, depth_multiple=32, short_side=96, tile=64)
AREA = replace(TINY, version=2)
CUBIC_BUDGET = 4.5e-6  # derived in engines/preprocess_body.h
LEVEL = 1 / (255 * min(IMAGENET_STD))  # one uint8 level, normalised
# (height, width, depth map): odd, up, down, exactly half, one pixel, one row, as long and thin as is accepted
SHAPES = [
    (97, 131, (64, 96)),
    (50, 40, (96, 64)),
    (384, 500, (128, 160)),
    (192, 192, (64, 64)),
    (96, 96, (192, 192)),
    (1, 1, (64, 64)),
    (1, 9, (64, 576)),
    (9, 1, (576, 64)),
    (2, 60, (64, 1920)),
    (600, 25, (1536, 64)),
    (31, 33, (1, 1)),
]


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def depth_map(size: tuple[int, int], seed: int = 1) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).random(size) * 20 - 3).astype(np.float32)


def depth_input(
    kernels: Kernels, rgb: NDArray[np.uint8], p: Preprocess, dtype: type = np.float32
) -> NDArray[np.float32]:
    size = preprocess.depth_size(rgb.shape[0], rgb.shape[1], p)
    out = poisoned((1, 3, *size), dtype)
    if preprocess.reduces((rgb.shape[0], rgb.shape[1]), size, p):
        levels = normalised_levels()
        kernels.reduce(image_of(rgb), size, out.ctypes.data, levels=levels.ctypes.data, dtype=dtype)
        return out
    kernels.depth_input(image_of(rgb), size, out.ctypes.data, dtype=dtype)
    return out


def tiles(
    kernels: Kernels,
    rgb: NDArray[np.uint8],
    depth: NDArray[np.float32],
    p: Preprocess,
    windows: NDArray[np.int32],
    *,
    dtype: type = np.float32,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    found, levels = np.zeros(3, np.uint32), normalised_levels()
    height, width = rgb.shape[:2]
    short = preprocess.working_size(height, width, p)
    map_size = (depth.shape[0], depth.shape[1])
    size = (height, width) if p.version == 1 else short
    described = DepthMap(depth.ctypes.data, map_size, size, found.ctypes.data)
    if preprocess.reduces((height, width), short, p):
        working = np.full((*short, 3), 77, np.uint8)
        kernels.reduce(image_of(rgb), short, working.ctypes.data)
        rgb = working
    out = [poisoned((len(windows), 3, p.tile, p.tile), dtype) for _ in range(2)]
    kernels.depth_range(described)
    kernels.tiles(
        image_of(rgb),
        described,
        short,
        windows,
        tile=p.tile,
        levels=levels.ctypes.data,
        out=(out[0].ctypes.data, out[1].ctypes.data),
        dtype=dtype,
    )
    assert is_finite(found)
    return out[0], out[1]


def reference(
    rgb: NDArray[np.uint8], depth: NDArray[np.float32], p: Preprocess, windows: NDArray[np.int32], full: Any = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """As scoring on the CPU cuts them. full: the map at full size, where OpenCV is not to interpolate it."""
    map_or_full = depth if full is None else full
    near = preprocess.depth_image(map_or_full[None], *rgb.shape[:2], p)
    return preprocess.cut_tiles(preprocess.working_image(rgb, p), near, windows, p.tile)


def interpolated(depth: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Bilinear as Intel's part of OpenCV rounds it: a + (b - a) * f in one rounding, across, then down."""
    for axis, size in ((1, width), (0, height)):
        centre = (np.arange(size) + 0.5) * (1 / (size / depth.shape[axis])) - 0.5
        below = np.floor(centre)
        fraction = np.expand_dims((centre - below).astype(np.float32), 1 - axis).astype(np.float64)
        a, b = (np.take(depth, (below + i).astype(int).clip(0, depth.shape[axis] - 1), axis) for i in (0, 1))
        depth = ((b - a) * fraction + a).astype(np.float32)
    return depth


def windows_of(rgb: NDArray[np.uint8], p: Preprocess, tiling: str = "grid") -> NDArray[np.int32]:
    return preprocess.windows_for(tiling, *preprocess.working_size(rgb.shape[0], rgb.shape[1], p), p.tile)


@pytest.mark.parametrize(("height", "width", "map_size"), SHAPES)
def test_the_depth_input_is_within_its_derived_budget(
    kernels: Kernels, height: int, width: int, map_size: tuple[int, int]
) -> None:
    rgb = picture(height, width)
    error = np.abs(depth_input(kernels, rgb, TINY) - preprocess.depth_input(rgb, TINY)).max()
    print(f"{100 * error / CUBIC_BUDGET:.0f} % of the budget")
    assert error <= CUBIC_BUDGET


@pytest.mark.parametrize(("height", "width"), [*((h, w) for h, w, _ in SHAPES), (768, 1024), (96, 500), (97, 97)])
def test_areas_are_opencvs_bit_for_bit(kernels: Kernels, height: int, width: int) -> None:
    rgb = picture(height, width)
    wanted = preprocess.depth_input(rgb, AREA)
    reduced = preprocess.reduces((height, width), preprocess.depth_size(height, width, AREA), AREA)
    assert np.abs(depth_input(kernels, rgb, AREA) - wanted).max() <= (0 if reduced else CUBIC_BUDGET)
    for h, w in ((height, width), (-(-height // 2), width), (-(-height // 3), -(-width // 7)), (1, 1)):
        out = np.full((h, w, 3), 77, np.uint8)
        kernels.reduce(image_of(rgb), (h, w), out.ctypes.data)
        np.testing.assert_array_equal(out, cv2.resize(rgb, (w, h), interpolation=cv2.INTER_AREA))


@pytest.mark.parametrize("factor", range(1, 101))
def test_areas_of_whole_pixels_are_rounded_as_opencv_rounds_them(kernels: Kernels, factor: int) -> None:
    rgb, out = picture(factor, 9 * factor), np.zeros((1, 9, 3), np.uint8)
    kernels.reduce(image_of(rgb), (1, 9), out.ctypes.data)
    np.testing.assert_array_equal(out, cv2.resize(rgb, (9, 1), interpolation=cv2.INTER_AREA))


@pytest.mark.parametrize(("height", "width", "map_size"), SHAPES)
def test_tiles_of_version_2_are_equal_bit_for_bit(
    kernels: Kernels, height: int, width: int, map_size: tuple[int, int]
) -> None:
    rgb, depth = picture(height, width), depth_map(map_size)
    windows = windows_of(rgb, AREA)
    full = interpolated(depth, *preprocess.working_size(height, width, AREA))
    theirs = reference(rgb, depth, AREA, windows, full=full)
    for mine, wanted in zip(tiles(kernels, rgb, depth, AREA, windows), theirs, strict=True):
        np.testing.assert_array_equal(mine, wanted)


@pytest.mark.parametrize(("height", "width", "map_size"), SHAPES)
def test_tiles_are_equal_bit_for_bit(kernels: Kernels, height: int, width: int, map_size: tuple[int, int]) -> None:
    rgb, depth = picture(height, width), depth_map(map_size)
    windows = windows_of(rgb, TINY)
    theirs = reference(rgb, depth, TINY, windows, full=interpolated(depth, height, width))
    for mine, wanted in zip(tiles(kernels, rgb, depth, TINY, windows), theirs, strict=True):
        np.testing.assert_array_equal(mine, wanted)


@pytest.mark.parametrize("intel", [True, False])
def test_with_any_opencv_depth_levels_differ_by_one_at_most_and_seldom(
    kernels: Kernels, photos: dict[str, NDArray[np.uint8]], intel: bool, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(partial(cv2.ipp.setUseIPP, cv2.ipp.useIPP()))
    cv2.ipp.setUseIPP(intel)
    for name, rgb in photos.items():
        depth = depth_map((128, 192))
        windows = windows_of(rgb, FULL)
        ours, theirs = tiles(kernels, rgb, depth, FULL, windows), reference(rgb, depth, FULL, windows)
        np.testing.assert_array_equal(ours[0], theirs[0], err_msg=name)
        difference = np.abs(ours[1] - theirs[1])
        assert difference.max() <= 1.001 * LEVEL, name
        assert (difference > 0).mean() < 0.005, name


def test_the_authors_sizes_and_crops(kernels: Kernels) -> None:
    rgb = picture(1080, 1920)
    depth = depth_map(preprocess.depth_size(1080, 1920, FULL))
    windows = windows_of(rgb, FULL, "official:3")
    ours = tiles(kernels, rgb, depth, FULL, windows)
    theirs = reference(rgb, depth, FULL, windows, full=interpolated(depth, 1080, 1920))
    np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_array_equal(ours[1], theirs[1])


def test_more_windows_than_one_launch_takes(kernels: Kernels) -> None:
    rgb, depth = picture(130, 150), depth_map((64, 96))
    windows = windows_of(rgb, TINY, "official:130")
    np.testing.assert_array_equal(tiles(kernels, rgb, depth, TINY, windows)[0], reference(rgb, depth, TINY, windows)[0])


def test_a_constant_depth_is_black(kernels: Kernels) -> None:
    rgb = picture(100, 120)
    windows = windows_of(rgb, TINY)
    near = tiles(kernels, rgb, np.full((64, 96), 3.7, np.float32), TINY, windows)[1]
    np.testing.assert_array_equal(near, np.broadcast_to(normalised_levels()[:, :1, None], near.shape))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_broken_depth_map_is_noticed_even_where_no_pixel_reads_it(kernels: Kernels, bad: float) -> None:
    depth, found = depth_map((64, 96)), np.zeros(3, np.uint32)
    for place in ((0, 0), (63, 95), (31, 47)):
        broken = depth.copy()
        broken[place] = bad
        kernels.depth_range(DepthMap(broken.ctypes.data, (64, 96), (3, 2), found.ctypes.data))
        assert not is_finite(found)


@pytest.mark.parametrize("layout", ["pitched", "rgba", "bgr", "planes", "flipped"])
def test_any_strides_are_read_in_place(kernels: Kernels, layout: str) -> None:
    rgb, depth = picture(61, 83), depth_map((64, 96))
    views = {
        "pitched": np.pad(rgb, ((0, 3), (0, 7), (0, 0)), mode="reflect")[:61, :83],
        "rgba": np.concatenate([rgb, picture(61, 83, seed=5)[..., :1]], axis=2)[..., :3],
        "bgr": np.ascontiguousarray(rgb[..., ::-1])[..., ::-1],
        "planes": np.ascontiguousarray(rgb.transpose(2, 0, 1)).transpose(1, 2, 0),
        "flipped": np.ascontiguousarray(rgb[::-1])[::-1],
    }
    view = views[layout]
    assert view.strides != rgb.strides
    windows = windows_of(rgb, TINY)
    np.testing.assert_array_equal(depth_input(kernels, view, TINY), depth_input(kernels, rgb, TINY))
    np.testing.assert_array_equal(
        tiles(kernels, view, depth, TINY, windows)[0], tiles(kernels, rgb, depth, TINY, windows)[0]
    )


def test_float16_outputs_are_the_float32_ones_rounded(kernels: Kernels) -> None:
    rgb, depth = picture(70, 90), depth_map((64, 96))
    windows = windows_of(rgb, TINY)
    np.testing.assert_array_equal(
        depth_input(kernels, rgb, TINY, np.float16), depth_input(kernels, rgb, TINY).astype(np.float16)
    )
    for half, single in zip(
        tiles(kernels, rgb, depth, TINY, windows, dtype=np.float16),
        tiles(kernels, rgb, depth, TINY, windows),
        strict=True,
    ):
        np.testing.assert_array_equal(half, single.astype(np.float16))


def test_the_kernels_hold_to_an_independent_reference_in_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """engines/tests/test_preprocess.cpp: fences around outputs, rows 2^31 bytes apart, refused arguments."""
    monkeypatch.setenv("DGIQA_SEED", "1")
    source = tmp_path / "all.cpp"
    source.write_text(f'#include "{ENGINES}/preprocess.cu"\n#include "{ENGINES}/tests/test_preprocess.cpp"\n')
    assert ctypes.CDLL(str(compile_library(source, tmp_path / "all.so"))).main() == 0


class GpuRun:
    """The three kernels of the CUDA library on one image, and their results as tensors on the GPU."""

    def __init__(self, rgb: NDArray[np.uint8], depth: NDArray[np.float32], p: Preprocess) -> None:
        import torch

        self.kernels = Kernels()  # a GPU without the library is an error that says how to build it
        assert not self.kernels.emulated
        self.size, self.tile = (rgb.shape[0], rgb.shape[1]), p.tile
        self.depth_size = preprocess.depth_size(*self.size, p)
        self.short, self.windows = preprocess.working_size(*self.size, p), windows_of(rgb, p)
        self.image, self.map, self.levels = (torch.from_numpy(x).cuda() for x in (rgb, depth, normalised_levels()))
        self.p, self.working = p, torch.zeros((*self.short, 3), dtype=torch.uint8, device="cuda")
        self.depth_in = torch.full((3, *self.depth_size), torch.nan, device="cuda")
        shape = (len(self.windows), 3, p.tile, p.tile)
        self.rgb, self.near = (torch.full(shape, torch.nan, device="cuda") for _ in range(2))
        self.range = torch.zeros(3, dtype=torch.int32, device="cuda")
        torch.cuda.synchronize()

    @property
    def results(self) -> list[Any]:
        return [self.depth_in, self.range, self.rgb, self.near]

    def enqueue(self, stream: int) -> None:
        source = Image(self.image.data_ptr(), *self.size, (3 * self.size[1], 3, 1))
        map_size, into = (self.map.shape[0], self.map.shape[1]), self.depth_in.data_ptr()
        size = self.size if self.p.version == 1 else self.short
        depth, levels = DepthMap(self.map.data_ptr(), map_size, size, self.range.data_ptr()), self.levels.data_ptr()
        if preprocess.reduces(self.size, self.depth_size, self.p):
            self.kernels.reduce(source, self.depth_size, into, levels=levels, dtype=np.float32, stream=stream)
        else:
            self.kernels.depth_input(source, self.depth_size, into, stream=stream)
        if preprocess.reduces(self.size, self.short, self.p):
            self.kernels.reduce(source, self.short, self.working.data_ptr(), stream=stream)
            source = Image(self.working.data_ptr(), *self.short, (3 * self.short[1], 3, 1))
        self.kernels.depth_range(depth, stream)
        self.kernels.tiles(
            source,
            depth,
            self.short,
            self.windows,
            tile=self.tile,
            levels=self.levels.data_ptr(),
            out=(self.rgb.data_ptr(), self.near.data_ptr()),
            stream=stream,
        )


@pytest.mark.parametrize("p", [TINY, AREA], ids=["bilinear", "area"])
@pytest.mark.parametrize("shape", [*SHAPES, (1080, 1920, (518, 924))])
def test_the_gpu_gives_what_the_emulation_gives(
    need_gpu: Callable[..., None], kernels: Kernels, shape: tuple[int, int, tuple[int, int]], p: Preprocess
) -> None:
    need_gpu("torch")
    height, width, map_size = shape
    rgb, depth = picture(height, width), depth_map(map_size)
    gpu = GpuRun(rgb, depth, p)
    torch = pytest.importorskip("torch")
    stream = torch.cuda.Stream()
    gpu.enqueue(stream.cuda_stream)
    stream.synchronize()
    first = [tensor.cpu().numpy().copy() for tensor in gpu.results]
    wanted = tiles(kernels, rgb, depth, p, windows_of(rgb, p))
    assert np.abs(first[0] - preprocess.depth_input(rgb, p)[0]).max() <= CUBIC_BUDGET
    np.testing.assert_array_equal(first[2], wanted[0])
    np.testing.assert_array_equal(first[3], wanted[1])
    for _ in range(20):  # a result that moves is a race
        gpu.enqueue(stream.cuda_stream)
        stream.synchronize()
        for tensor, once in zip(gpu.results, first, strict=True):
            np.testing.assert_array_equal(tensor.cpu().numpy(), once)


def test_the_launches_can_be_captured(need_gpu: Callable[..., None]) -> None:
    need_gpu("torch")
    gpu = GpuRun(picture(300, 400), depth_map((96, 128)), TINY)
    torch = pytest.importorskip("torch")
    gpu.enqueue(0)
    torch.cuda.synchronize()
    wanted = [tensor.clone() for tensor in gpu.results]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gpu.enqueue(torch.cuda.current_stream().cuda_stream)
    for tensor in gpu.results:
        tensor.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(tensor, value) for tensor, value in zip(gpu.results, wanted, strict=True))


@pytest.mark.parametrize(("matrix", "colorspace"), [(1, 1), (5, 6), (9, 9)])
@pytest.mark.parametrize("full", [False, True])
def test_a_decoders_picture_becomes_the_rgb_of_the_video_path(
    kernels: Kernels, matrix: int, colorspace: int, full: bool
) -> None:
    """Bit for bit, against FFmpeg's scaler as `video.colour` calls it, from rows with gaps between them."""
    av = pytest.importorskip("av")
    from dgiqa.video import colour

    height, width, pitch = 46, 62, 96
    rng = np.random.default_rng(matrix)
    rows = rng.integers(64, 193, (height * 3 // 2, width), dtype=np.uint8)  # neighbours that jump, within the gamut
    rows[:height] = rng.integers(16, 236, (height, width))
    chroma = rows[height:].reshape(height // 2, width // 2, 2)
    planes = np.concatenate([rows[:height].ravel(), chroma[..., 0].ravel(), chroma[..., 1].ravel()])
    frame = colour.of_planes(planes.reshape(height * 3 // 2, width))
    assert isinstance(frame, av.VideoFrame)
    frame.colorspace, frame.color_range = colorspace, colour.FULL if full else colour.LIMITED
    assert colour.matrix_number(frame.colorspace, height) == matrix
    memory = np.full((height * 3 // 2, pitch), 99, np.uint8)
    memory[:, :width] = rows
    at, out = memory.ctypes.data, np.zeros((height, width, 3), np.uint8)
    picture = Nv12(at, at + height * pitch, height, width, (pitch, pitch), matrix, full)
    kernels.nv12(picture, out.ctypes.data)
    np.testing.assert_array_equal(out, colour.to_rgb(frame))


def test_a_picture_that_is_no_nv12_is_refused(kernels: Kernels) -> None:
    out = np.zeros((4, 4, 3), np.uint8).ctypes.data
    for wrong in (Nv12(out, out, 3, 4, (4, 4), 1), Nv12(out, out, 4, 3, (4, 4), 1), Nv12(0, out, 4, 4, (4, 4), 1)):
        with pytest.raises(BackendError, match="out of range"):
            kernels.nv12(wrong, out)
    with pytest.raises(ValueError, match=r"matrix is 8, wanted one of \[1, 4, 5, 7, 9\]"):
        kernels.nv12(Nv12(out, out, 4, 4, (4, 4), 8), out)
