"""RGB -> depth network input -> depth image -> resized image: what each step promises."""

from __future__ import annotations

import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import cv2
import numpy as np
import pytest
from made_pictures import encode, pattern, photo
from PIL import Image
from skimage import data

from dgiqa import preprocess as pp
from dgiqa import resize, spec
from dgiqa.errors import DgiqaError, ImageError
from dgiqa.image import decode
from dgiqa.spec import Preprocess

PAPER = Preprocess()
SMALL = Preprocess(depth_lower_bound=256, depth_multiple=32)
AREA = Preprocess(version=2, depth_lower_bound=256, depth_multiple=32)


# ---- depth_input -----------------------------------------------------------------------------------------------------


def authors_depth_input(rgb: np.ndarray, height: int, width: int) -> np.ndarray:
    """Depth Anything's transform in float64: /255, cubic, normalise, channels first, float32 at the end."""
    image = cv2.resize(rgb / 255.0, (width, height), interpolation=cv2.INTER_CUBIC)
    return ((image - spec.IMAGENET_MEAN) / spec.IMAGENET_STD).transpose(2, 0, 1)[None].astype(np.float32)


@pytest.mark.parametrize(
    ("height", "width", "p", "wanted"),
    [
        (768, 1024, PAPER, (518, 686)),
        (1024, 768, PAPER, (686, 518)),
        (1080, 1920, PAPER, (518, 924)),
        (500, 500, PAPER, (518, 518)),
        (1, 1, PAPER, (518, 518)),
        (10, 30, PAPER, (518, 1554)),
        (768, 1024, SMALL, (256, 352)),
        (256, 272, SMALL, (256, 256)),  # 8.5 multiples: ties go to even
        (256, 304, SMALL, (256, 320)),  # 9.5
        (10, 300, SMALL, (256, 7680)),
        (100, 100, Preprocess(depth_lower_bound=250, depth_multiple=28), (252, 252)),
        (100, 100, Preprocess(depth_lower_bound=260, depth_multiple=28), (280, 280)),  # 252 would be below the bound
    ],
)
def test_depth_input_sizes(height: int, width: int, p: Preprocess, wanted: tuple[int, int]) -> None:
    result = pp.depth_input(np.zeros((height, width, 3), np.uint8), p)
    assert result.shape == (1, 3, *wanted)
    assert result.dtype == np.float32
    assert result.flags.c_contiguous


@pytest.mark.parametrize("p", [PAPER, SMALL], ids=["paper", "small"])
@pytest.mark.parametrize("size", [(768, 1024), (333, 250), (45, 61), (1001, 1500), (16, 17)])
def test_depth_input_equals_the_authors_float64(size: tuple[int, int], p: Preprocess) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)  # the hardest case for weights
    result = pp.depth_input(noise, p)
    wanted = authors_depth_input(noise, *result.shape[2:])
    np.testing.assert_allclose(result, wanted, atol=1e-6, rtol=0)


def test_depth_input_does_not_copy_a_large_image_to_float() -> None:
    rgb = np.zeros((1500, 2000, 3), np.uint8)  # 9 MB; 72 MB in float64
    tracemalloc.start()
    pp.depth_input(rgb, SMALL)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6


@pytest.mark.parametrize(("p", "limit"), [(PAPER, 7.8), (SMALL, 32)])
def test_long_thin_images_are_refused_before_memory_is_taken(p: Preprocess, limit: float) -> None:
    with pytest.raises(ImageError, match=rf"10000 x 10 is 1000.0 times as long as wide, limit {limit:.1f}"):
        pp.depth_input(np.zeros((10, 10000, 3), np.uint8), p)
    pp.check_size(100, int(limit * 100), p)
    pp.check_size(int(limit * 100), 100, p)
    with pytest.raises(ImageError, match="crop it"):
        pp.check_size(100, int(limit * 100) + 10, p)
    with pytest.raises(ImageError, match="at least one pixel"):
        pp.check_size(0, 10, p)


# ---- stretched -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(768, 1024), (518, 686), (300, 451), (100, 133), (61, 45), (1, 1), (1500, 2000)])
def test_depth_image_equals_torch_within_rare_single_levels(size: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    grey = cv2.resize(data.camera(), (686, 518)).astype(np.float32)
    depth = (grey + cv2.GaussianBlur(grey, (0, 0), 3))[None] / 37
    full = torch.nn.functional.interpolate(torch.from_numpy(depth)[None], size, mode="bilinear", align_corners=False)
    full = full[0, 0].numpy()
    wanted = ((full - full.min()) / (full.max() - full.min() + 1e-8) * 255).astype(np.uint8)
    result = pp.stretched(depth, *size)
    assert result.dtype == np.uint8
    steps = np.abs(result.astype(int) - wanted)
    assert steps.max() <= 1
    assert (steps > 0).mean() < 1e-3


def test_depth_image_truncates_and_spans_0_to_255() -> None:
    depth = np.array([[[0.0, 0.999 / 255, 1.001 / 255, 254.999 / 255, 1.0]]], np.float32)
    np.testing.assert_array_equal(pp.stretched(depth, 1, 5), [[0, 0, 1, 254, 255]])


def test_depth_image_leaves_its_input_alone() -> None:
    depth = np.random.default_rng(0).random((1, 8, 9), np.float32)
    before = depth.copy()
    pp.stretched(depth, 8, 9)
    np.testing.assert_array_equal(depth, before)


@pytest.mark.filterwarnings("error")  # 0 / 0
@pytest.mark.parametrize("value", [0.0, 3.5, -7.0])
def test_constant_depth_gives_zeros(value: float) -> None:
    assert not pp.stretched(np.full((1, 20, 30), value, np.float32), 50, 70).any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_depth_is_an_error(value: float) -> None:
    depth = np.ones((1, 20, 30), np.float32)
    depth[0, 7, 9] = value
    with pytest.raises(DgiqaError, match="NaN or infinity"):
        pp.stretched(depth, 10, 10)  # so small that the bad pixel may not be sampled


# ---- working_image ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((768, 1024), (384, 512)),
        ((1024, 768), (512, 384)),
        ((500, 500), (384, 384)),
        ((1080, 1920), (384, 683)),
        ((720, 1280), (384, 683)),
        ((768, 1025), (384, 512)),  # 512.5: ties go to even
        ((768, 1027), (384, 514)),  # 513.5
        ((1027, 768), (514, 384)),
        ((1920, 1080), (683, 384)),
        ((427, 640), (384, 576)),
        ((10, 10), (384, 384)),
        ((1, 1), (384, 384)),
        ((100, 3200), (384, 12288)),
    ],
)
def test_resized_sizes(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    assert pp.working_image(np.zeros((*size, 3), np.uint8), Preprocess()).shape == (*wanted, 3)
    assert pp.working_image(np.zeros(size, np.uint8), Preprocess()).shape == wanted


def test_resizing_is_bilinear_without_antialiasing() -> None:
    rgb = data.coffee()
    wanted = cv2.resize(rgb, (576, 384), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(pp.working_image(rgb, Preprocess()), wanted)


def test_an_image_of_the_right_size_is_not_touched() -> None:
    image = pattern(384, 512)
    assert pp.working_image(image, Preprocess()) is image


def test_resizing_refuses_long_thin_images() -> None:
    with pytest.raises(ImageError, match=r"1 x 33 is 33.0 times as long as wide, limit 32.0; crop it"):
        pp.working_image(np.zeros((33, 1), np.uint8), Preprocess())


# ---- version 2 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(768, 1024), (1000, 385), (384, 700), (385, 385), (641, 12000)])
def test_version_2_reduces_by_area(size: tuple[int, int]) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    h, w = pp.working_size(*size, AREA)
    wanted = cv2.resize(rgb, (w, h), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(pp.working_image(rgb, AREA), wanted)
    h, w = pp.depth_size(*size, AREA)
    small = cv2.resize(rgb, (w, h), interpolation=cv2.INTER_AREA) / 255
    wanted = ((small - spec.IMAGENET_MEAN) / spec.IMAGENET_STD).transpose(2, 0, 1)
    np.testing.assert_allclose(pp.depth_input(rgb, AREA)[0], wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(100, 150), (383, 500), (1, 1)])
def test_version_2_enlarges_as_version_1(size: tuple[int, int]) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    np.testing.assert_array_equal(pp.working_image(rgb, AREA), pp.working_image(rgb, SMALL))


@pytest.mark.parametrize("size", [(200, 250), (260, 310)])  # of 310, 320 are made: that side grows
def test_where_one_side_grows_the_depth_input_of_version_2_is_cubic(size: tuple[int, int]) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    np.testing.assert_array_equal(pp.depth_input(rgb, AREA), pp.depth_input(rgb, SMALL))


def test_version_2_makes_the_depth_image_at_the_working_size() -> None:
    depth = np.random.default_rng(0).random((1, 64, 96), np.float32)
    np.testing.assert_array_equal(pp.depth_image(depth, 3000, 4000, AREA), pp.stretched(depth, 384, 512))
    full = pp.stretched(depth, 768, 1024)
    np.testing.assert_array_equal(pp.depth_image(depth, 768, 1024, SMALL), pp.working_image(full, Preprocess()))


def test_the_working_size_itself_is_left_alone() -> None:
    rgb = pattern(384, 512)
    assert pp.working_image(rgb, AREA) is rgb
    assert pp.working_image(rgb, SMALL) is rgb


def test_a_pictures_size_matters_less_in_version_2() -> None:
    """Aliasing is why: what one pixel in ten shows of a fine pattern is another pattern."""
    large = np.asarray(photo().resize((1024, 1024), Image.Resampling.BICUBIC))
    large = np.tile(large, (2, 2, 1))
    sizes = [large, *(cv2.resize(large, (s, s), interpolation=cv2.INTER_AREA) for s in (1536, 1024, 768, 512))]
    spread = {}
    for p in (SMALL, AREA):
        images = np.stack([pp.working_image(rgb, p).astype(float) for rgb in sizes])
        spread[p.version] = (images.max(axis=0) - images.min(axis=0)).mean()
    assert spread[2] < 0.5 * spread[1]


# ---- the chain -------------------------------------------------------------------------------------------------------


def chain(file: bytes, p: Preprocess = SMALL) -> list[np.ndarray]:
    rgb = decode(file)
    image = pp.depth_input(rgb, p)
    resized, depth = pp.working_image(rgb, p), pp.depth_image(image[:, 1], *rgb.shape[:2], p)
    return [rgb, image, depth, resized, *pp.cut_tiles(resized, depth, pp.windows_for("grid", *depth.shape, 224), 224)]


def test_threads_do_not_disturb_each_other_and_leave_no_trace() -> None:
    files = [encode(photo(name), kind) for name in ("coffee", "chelsea") for kind in ("JPEG", "PNG")]
    wanted = [chain(file) for file in files]
    settings = (cv2.getNumThreads(), Image.MAX_IMAGE_PIXELS, list(warnings.filters))
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(chain, files * 3))
    assert settings == (cv2.getNumThreads(), Image.MAX_IMAGE_PIXELS, list(warnings.filters))
    for got, expected in zip(results, wanted * 3, strict=True):
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_array_equal(a, b)


def fingerprint(array: np.ndarray) -> list[float]:
    """Mean, standard deviation, and a projection that moves when pixels or channels trade places."""
    flat = array.astype(np.float64).ravel()
    return [flat.mean(), flat.std(), flat @ np.cos(np.arange(flat.size) * 0.7) / flat.size**0.5]


# Recorded with OpenCV 5.0; 4.8 gives the same. The depth image may have a few levels of 2.4e5 off by one elsewhere.
GOLDEN = {
    1: {
        "depth_input": [0.2230772585, 1.1183025079, 0.1571349817],
        "depth_image": [130.037165111, 30.186417197, -30.016476492],
        "resized": [127.176978977, 48.995373714, -14.663547118],
        "tiles": [0.2222330323, 0.8542169303, 0.0276984035],
        "depth_tiles": [0.2718518645, 0.5270279675, -0.2892621540],
    },
    2: {
        "depth_input": [0.2232042779, 0.6477093614, 0.2297674338],
        "depth_image": [132.5979242562, 27.0130489915, -33.4633456935],
        "resized": [127.3053009892, 47.2530594385, -13.2854163156],
        "tiles": [0.2244405090, 0.8242371230, -0.0022666682],
        "depth_tiles": [0.3163610005, 0.4697056305, 0.7327731004],
    },
}


@pytest.mark.parametrize("version", spec.PREPROCESS_VERSIONS)
def test_same_bytes_give_the_network_inputs_of_their_preprocess_version(version: int) -> None:
    """If this fails on purpose, add to spec.PREPROCESS_VERSIONS and record the new numbers beside the old ones."""
    p = replace(SMALL, version=version)
    _, image, depth, resized, tiles, depth_tiles = chain(encode(Image.fromarray(pattern(413, 590)), "PNG"), p)
    arrays = {
        "depth_input": image,
        "depth_image": depth,
        "resized": resized,
        "tiles": tiles,
        "depth_tiles": depth_tiles,
    }
    for name, array in arrays.items():
        tolerance = 1e-4 * array.std() if "depth_" in name and name != "depth_input" else 1e-6 * array.std()
        np.testing.assert_allclose(fingerprint(array), GOLDEN[version][name], rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("size", [(1501, 2003), (1100, 300), (2400, 1800), (300, 5000)])
def test_the_cubic_resize_is_opencvs_in_float64(size: tuple[int, int]) -> None:
    """Its products round the four taps of a pixel in another order; a line that is left out would cost levels."""
    rgb = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    shrunk = ((256, 352), (size[0] // 4, 64), (size[0] // 4 + 1, 64), (size[0] // 9, 97), (size[0] - 1, 50), (1, 20))
    for height, width in (*shrunk, (size[0], 60), (size[0] + 3, 60)):
        whole = cv2.resize(rgb.astype(np.float64), (width, height), interpolation=cv2.INTER_CUBIC)
        np.testing.assert_allclose(resize.resize_cubic(rgb, height, width), whole, rtol=0, atol=1e-11)


@pytest.mark.parametrize("source", [2, 3, 5, 97, 1080, 4001, 60_000])
def test_the_bands_of_a_cubic_resize_hold_opencvs_weights(source: int) -> None:
    for target in {1, 2, source // 2, source // 3, source // 9, source - 1} & set(range(1, 2000)):
        rows, starts, weights = resize._cubic_bands(source, target)
        line = np.random.default_rng(0).random(source)
        span = weights.shape[2]
        parts = [w @ line[rows[s : s + span]] for s, w in zip(starts, weights, strict=True)]
        wanted = cv2.resize(line[:, None], (1, target), interpolation=cv2.INTER_CUBIC)[:, 0]
        np.testing.assert_allclose(np.concatenate(parts)[:target], wanted, rtol=0, atol=1e-14)


def test_tiles_are_put_where_they_are_wanted_and_nowhere_else() -> None:
    rgb = pattern(96, 130)
    depth = np.ascontiguousarray(rgb[..., 1])
    windows = pp.windows_for("grid", *depth.shape, 64)
    wanted = pp.cut_tiles(rgb, depth, windows, 64)
    memory = np.full((2, len(windows) + 2, 3, 64, 64), np.nan, np.float32)
    into = memory[0, 1:-1], memory[1, 1:-1]
    assert pp.cut_tiles(rgb, depth, windows, 64, out=into) is into
    for array, tiles in zip(memory, wanted, strict=True):
        np.testing.assert_array_equal(array[1:-1], tiles)
        assert np.isnan(array[[0, -1]]).all()


@pytest.mark.parametrize(
    "wrong", [np.empty((1, 3, 64, 64), "f4"), np.empty((6, 3, 64, 64)), np.empty((6, 3, 64, 128), "f4")[..., ::2]]
)
def test_memory_that_does_not_fit_the_tiles_is_refused(wrong: np.ndarray) -> None:
    rgb = pattern(96, 130)
    depth = np.ascontiguousarray(rgb[..., 1])
    windows = pp.windows_for("grid", *depth.shape, 64)
    assert len(windows) == 6
    with pytest.raises(ValueError, match="wanted two C-contiguous float32 arrays"):
        pp.cut_tiles(rgb, depth, windows, 64, out=(wrong, wrong))
