"""Image files and arrays -> RGB: the pixels that everybody else shows, or an error that says what is wrong."""

from __future__ import annotations

import struct
import sys
import tracemalloc
import warnings
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from made_pictures import encode, pattern, photo
from PIL import Image, features

from dgiqa.errors import ImageError
from dgiqa.image import as_rgb, decode

AVIF = pytest.param("AVIF", marks=pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF"))
FORMATS = ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", AVIF]


def cv2_rgb(file: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


# ---- decode: photographs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea", "rocket"])
def test_jpeg_pixels_are_those_of_cv2_imread(name: str, subsampling: str, progressive: bool) -> None:
    image = photo(name).crop((0, 0, 301, 203))
    file = encode(image, "JPEG", quality=80, subsampling=subsampling, progressive=progressive)
    np.testing.assert_array_equal(decode(file), cv2_rgb(file))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_are_those_of_cv2_imread_in_other_formats(kind: str, mode: str) -> None:
    file = encode(photo().convert(mode), kind)
    np.testing.assert_array_equal(decode(file), cv2_rgb(file))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_return_what_was_saved(kind: str) -> None:
    pixels = pattern(33, 47)
    np.testing.assert_array_equal(decode(encode(Image.fromarray(pixels), kind)), pixels)


UPRIGHT = {  # what EXIF says a viewer does to the stored rows and columns
    1: lambda s: s,
    2: lambda s: s[:, ::-1],
    3: lambda s: s[::-1, ::-1],
    4: lambda s: s[::-1],
    5: lambda s: s.swapaxes(0, 1),
    6: lambda s: np.rot90(s, -1),
    7: lambda s: s[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    stored = pattern(20, 31)
    file = encode(Image.fromarray(stored), kind, exif=exif(orientation))
    np.testing.assert_array_equal(decode(file), UPRIGHT[orientation](stored))


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_rotated_jpeg_is_that_of_cv2_imread(orientation: int) -> None:
    file = encode(photo().crop((0, 0, 120, 80)), "JPEG", exif=exif(orientation))
    np.testing.assert_array_equal(decode(file), cv2_rgb(file))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_cost_the_picture() -> None:
    image = photo()
    file = encode(image, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    np.testing.assert_array_equal(decode(file), decode(encode(image, "JPEG")))


# ---- decode: other kinds of pixels -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_transparency_is_laid_over_white(kind: str) -> None:
    rgba = np.dstack([pattern(16, 16), np.repeat(np.arange(16, dtype=np.uint8)[None] * 17, 16, axis=0)])
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    alpha = rgba[..., 3:] / 255
    np.testing.assert_allclose(
        decode(encode(Image.fromarray(rgba), kind, **options)),
        rgba[..., :3] * alpha + 255 * (1 - alpha),
        atol=0.5 + 1e-9,
    )


def test_opaque_alpha_changes_nothing() -> None:
    pixels = pattern(16, 16)
    np.testing.assert_array_equal(decode(encode(Image.fromarray(pixels).convert("RGBA"), "PNG")), pixels)


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_transparent_colour_of_png_and_gif_becomes_white(mode: str) -> None:
    image = Image.new("RGB", (8, 4), (255, 0, 0))
    image.paste((0, 0, 255), (0, 0, 4, 4))
    image = image.quantize(4) if mode == "P" else image.convert(mode)
    file = encode(image, "PNG", transparency=image.getpixel((0, 0)))
    pixels = decode(file)
    assert (pixels[:, :4] == 255).all()
    assert (pixels[:, 4:] != 255).any(axis=-1).all()


def test_palette_images_get_their_colours() -> None:
    image = photo().quantize(64)
    for kind in ("PNG", "GIF", "BMP", "TIFF"):
        np.testing.assert_array_equal(decode(encode(image, kind)), np.asarray(image.convert("RGB")))


def test_one_bit_images_are_black_and_white() -> None:
    bits = np.arange(64).reshape(8, 8) % 3 == 0
    for kind in ("PNG", "TIFF"):
        pixels = decode(encode(Image.fromarray(bits), kind))
        np.testing.assert_array_equal(pixels, np.repeat(bits[..., None] * 255, 3, axis=2))


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_within_one_level_of_cv2_imread(kind: str) -> None:
    image = photo().convert("CMYK")
    file = encode(image, kind)
    wanted = cv2_rgb(file) if kind == "JPEG" else np.asarray(photo())
    np.testing.assert_allclose(decode(file), wanted, atol=1)


@pytest.mark.parametrize("extension", [".png", ".tif", ".pgm"])
def test_sixteen_bit_grey_keeps_its_high_byte(extension: str) -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    file = cv2.imencode(extension, levels)[1].tobytes()
    np.testing.assert_array_equal(decode(file), np.repeat((levels >> 8)[..., None], 3, axis=2))


def test_big_endian_sixteen_bit_tiff_is_not_byte_swapped() -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    file = encode(Image.frombytes("I;16B", (256, 256), levels.astype(">u2").tobytes()), "TIFF")
    np.testing.assert_array_equal(decode(file)[..., 0], levels >> 8)


def test_sixteen_bit_colour_png_equals_cv2_imread() -> None:
    levels = (np.arange(65536 * 3, dtype=np.uint32) * 7919 % 65536).astype(np.uint16).reshape(256, 256, 3)
    file = cv2.imencode(".png", levels)[1].tobytes()
    np.testing.assert_array_equal(decode(file), levels[..., ::-1] >> 8)
    np.testing.assert_array_equal(decode(file), cv2_rgb(file))


def test_float_tiff_is_read_in_zero_to_one_and_refused_beyond() -> None:
    ramp = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    pixels = decode(encode(Image.fromarray(ramp), "TIFF"))
    np.testing.assert_array_equal(pixels[..., 0].ravel(), np.arange(256))
    with pytest.raises(ImageError, match=r"TIFF: got floats from 0 to 4, wanted 0..1"):
        decode(encode(Image.fromarray(ramp * 4), "TIFF"))


def test_integer_tiff_with_unknown_white_is_refused() -> None:
    with pytest.raises(ImageError, match="signed 32-bit samples"):
        decode(encode(Image.fromarray(np.arange(256, dtype=np.int32).reshape(16, 16)), "TIFF"))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_the_first_of_several_frames_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (16, 12), colour) for colour in ((200, 10, 10), (10, 200, 10), (10, 10, 200))]
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels = decode(encode(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert pixels.shape == (12, 16, 3)
    np.testing.assert_allclose(pixels.reshape(-1, 3), [(200, 10, 10)] * 192, atol=3)  # GIF palettes round


# ---- decode: hostile input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (b"", "empty file"),
        (b"hello world, I am not a picture", "not an image: starts with b'hello world"),
        (b"\0" * 100, "its first 100 bytes are zero; the copy broke off"),
        (b"<!DOCTYPE html><html>404</html>", "this is a web page, not an image"),
        (b"%PDF-1.7 ...", "a PDF document"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC photograph"),
        (b'<?xml version="1.0"?>\n<svg xmlns="x"/>', "an SVG drawing"),
        (b"\xff\xd8\xff", "starts like JPEG, but its header cannot be read"),
        (b"BM", "starts like BMP"),
        (b"P6\n0 0\n255\n", "starts like PPM, but its header"),
    ],
)
def test_what_is_no_image_is_named(file: bytes, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif.as_plugin", None)
    with pytest.raises(ImageError, match=message):
        decode(file)


@pytest.mark.parametrize("share", [0.5, 0.95])
@pytest.mark.parametrize("kind", FORMATS)
def test_truncated_files_are_refused_never_filled_in(kind: str, share: float) -> None:
    file = encode(photo(), kind)
    assert decode(file).shape == (512, 512, 3)
    with pytest.raises(ImageError, match=kind):
        decode(file[: int(len(file) * share)])


def test_truncated_progressive_jpeg_says_so() -> None:
    file = encode(photo(), "JPEG", progressive=True)
    with pytest.raises(ImageError, match=rf"JPEG: truncated, {len(file) // 2} bytes"):
        decode(file[: len(file) // 2])


@pytest.mark.parametrize("kind", ["ICO", "TGA", "PCX", "SGI", "PDF", "EPS", "ICNS"])
def test_rare_formats_never_reach_a_parser(kind: str) -> None:
    with pytest.raises(ImageError, match=r"readable are JPEG, PNG, WEBP|this is an? .*; convert"):
        decode(encode(photo().resize((32, 32)), kind))


@pytest.mark.parametrize("installed", [True, False])
def test_heic_is_readable_only_with_its_reader(monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    monkeypatch.setattr("dgiqa.image.kinds.find_spec", lambda name: object() if installed else None)
    with pytest.raises(ImageError, match="readable are JPEG") as caught:
        decode(b"nothing of the kind")
    assert ("HEIC" in str(caught.value)) == installed


def png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = b"IDAT" + zlib.compress(b"\0" * 64)
    parts = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (chunk, pixels))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    tracemalloc.start()
    with pytest.raises(ImageError, match=r"PNG of 60000 x 50000 = 3,000,000,000 pixels, limit 200,000,000; .*max_pix"):
        decode(png_header(60000, 50000))
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


def test_empty_png_is_refused() -> None:
    with pytest.raises(ImageError, match="PNG"):
        decode(png_header(0, 10))


def test_max_pixels_is_the_only_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    file = encode(photo(), "JPEG")
    with pytest.raises(ImageError, match=r"262,144 pixels, limit 262,143; .*--max-pixels"):
        decode(file, max_pixels=262_143)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # another user of Pillow in this process
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(file, max_pixels=262_144).shape == (512, 512, 3)
    assert Image.MAX_IMAGE_PIXELS == 1000


@pytest.mark.parametrize("kind", FORMATS)
def test_random_damage_gives_pixels_or_an_image_error(kind: str) -> None:
    file = encode(photo().resize((40, 24)), kind)
    rng = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about odd metadata
        for _ in range(60):
            bad = bytearray(file)
            for position in rng.integers(0, min(len(bad), 400), 3):
                bad[position] = rng.integers(256)
            try:
                pixels = decode(bytes(bad), max_pixels=10**6)
            except ImageError:
                continue
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 3


# ---- as_rgb ----------------------------------------------------------------------------------------------------------


def test_rgb_arrays_are_returned_themselves() -> None:
    pixels = pattern(5, 7)
    assert as_rgb(pixels) is pixels


def test_a_flipped_view_is_made_contiguous() -> None:
    result = as_rgb(pattern(5, 7)[..., ::-1])
    assert result.flags.c_contiguous
    np.testing.assert_array_equal(result, pattern(5, 7)[..., ::-1])


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1)])
def test_grey_arrays_get_three_equal_channels(shape: tuple[int, ...]) -> None:
    grey = pattern(5, 7)[..., 0]
    np.testing.assert_array_equal(as_rgb(grey.reshape(shape)), np.stack([grey] * 3, axis=-1))


def test_every_level_survives_every_number_type() -> None:
    levels = np.arange(256)
    wanted = np.repeat(levels[:, None, None], 3, axis=2).reshape(1, 256, 3)
    for scaled in (
        levels.astype(np.uint8),
        (levels * 257).astype(np.uint16),
        (levels * 257).astype(">u2"),
        (levels / 255).astype(np.float32),
        (levels / 255).astype(np.float16),
        levels / 255,
    ):
        np.testing.assert_array_equal(as_rgb(scaled[None]), wanted)


def test_alpha_over_white_is_exact_for_every_pair() -> None:
    value, alpha = np.meshgrid(np.arange(256), np.arange(256))
    rgba = np.stack([value, value, value, alpha], axis=-1).astype(np.uint8)
    wanted = np.rint((value * alpha + 255 * (255 - alpha)) / 255)
    np.testing.assert_array_equal(as_rgb(rgba)[..., 1], wanted)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 40, 60), np.uint8), r"shape \(3, 40, 60\).*transpose\(1, 2, 0\)"),
        (np.zeros((2, 40, 60, 3), np.uint8), "one image at a time"),
        (np.zeros((40, 60, 2), np.uint8), r"shape \(40, 60, 2\), wanted \[H,W\]"),
        (np.zeros(40, np.uint8), r"shape \(40,\)"),
        (np.zeros((0, 60, 3), np.uint8), "empty array"),
        (np.zeros((4, 6, 3), np.int64), "got int64 values.*astype"),
        (np.zeros((4, 6), bool), "got bool values"),
        (np.full((4, 6), "a"), "got <U1 values"),
        (np.full((4, 6, 3), 128.0), "floats from 128 to 128, wanted 0..1"),
        (np.full((4, 6, 3), np.nan), "floats from nan"),
        (np.full((4, 6, 3), np.inf), "floats from inf"),
        (np.full((4, 6, 3), -0.1), "floats from -0.1"),
        ([[1, 2], [3, 4]], "got list, wanted a numpy array"),
        (Image.new("RGB", (4, 4)), "got Image, wanted a numpy array"),
    ],
)
def test_unusable_arrays_say_got_and_wanted(array: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        as_rgb(array)
