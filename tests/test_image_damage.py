"""Files that lost data, or would take for ever: errors, never a picture that was filled in."""

from __future__ import annotations

import io
import os
import re
import struct
import threading
import time
import zlib
from concurrent.futures import CancelledError
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import cv2
import made_pictures
import numpy as np
import pytest
from made_pictures import encode
from PIL import Image, features
from skimage import data
from waiting import PATIENCE_S, until

from dgiqa.bundle import Bundle
from dgiqa.errors import ImageError
from dgiqa.image import Decoded, Opened, decode, jp2, jpeg, of_pillow, open_image
from dgiqa.image.sources import Room, decode_within, open_source
from dgiqa.score import Failure, Score
from dgiqa.scorer import Scorer

AVIF = pytest.param("AVIF", marks=pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF"))


def photo(size: tuple[int, int] = (288, 192)) -> Image.Image:
    return made_pictures.photo().crop((0, 0, *size))


# ---- JPEG


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("first", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("length", [512, 4096, None])
def test_zero_bytes_in_place_of_data_are_an_error(
    first: float, length: int | None, progressive: bool, optimize: bool
) -> None:
    file = bytearray(encode(photo(), quality=90, progressive=progressive, optimize=optimize))
    start = int(len(file) * first)
    end = len(file) if length is None else min(start + length, len(file) - 2)
    file[start:end] = bytes(end - start)
    with pytest.raises(ImageError, match=r"JPEG: (damaged|truncated)"):
        decode(bytes(file))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
def test_other_bytes_in_place_of_data_are_an_error(options: dict[str, Any], mode: str) -> None:
    """But for those, one in ten, after which a decoder happens to be where it would have been."""
    file = encode(photo((512, 512)).convert(mode), quality=90, **options)
    random, found = np.random.default_rng(0), []
    for share in np.linspace(0.3, 0.8, 10):
        at = int(len(file) * share)
        noise = random.integers(0, 255, 700, np.uint8).tobytes()
        others = (noise, b"\x37" * 700, file[at // 2 :][:700], b"\xff\x51" * 9)
        found += [error_of(file[:at] + other + file[at + len(other) :]) for other in others]
    assert sum(not text for text in found) < 0.2 * 40
    for text in filter(None, found):
        assert re.match(r"JPEG: (damaged: .*; fetch or copy|truncated, |.*cannot be read)", text)


def error_of(file: bytes) -> str:
    try:
        decode(file)
    except ImageError as error:
        return str(error)
    return ""


def test_more_data_than_the_picture_has_are_an_error() -> None:
    file = encode(photo())
    with pytest.raises(ImageError, match=r"damaged: .*extraneous bytes"):
        decode(file[:-2] + b"\x41" * 300 + file[-2:])


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_flat_pictures_are_zero_bytes_too_and_are_scored(mode: str, optimize: bool, progressive: bool) -> None:
    flat = np.full((700, 900), 200, np.uint8)
    square = flat.copy()
    square[300:340, 300:400] = np.random.default_rng(0).integers(0, 256, (40, 100))
    for levels in (flat, square):
        image = Image.fromarray(levels).convert(mode)
        file = encode(image, optimize=optimize, progressive=progressive)
        assert decode(file).shape == (700, 900, 3)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_lacks_only_its_end_marker_is_scored_and_said(progressive: bool) -> None:
    file = encode(photo(), progressive=progressive)
    found = open_image(file[:-2]).decode()
    np.testing.assert_array_equal(found.rgb, decode(file))
    assert found.notes == ("its end marker is missing, its pixels are all there",)
    for tail in (b"\xff", b"\xff" * 5000):
        np.testing.assert_array_equal(decode(file[:-2] + tail), found.rgb)
    for lost in (6, 30, 1000):
        with pytest.raises(ImageError, match="JPEG: truncated"):
            decode(file[:-lost])
    assert not open_image(file + bytes(5000)).decode().notes  # a file that was made larger beforehand


def test_a_progressive_jpeg_without_its_last_scans_is_truncated() -> None:
    file = encode(photo(), progressive=True)
    assert jpeg.inspect(file).complete
    with pytest.raises(ImageError, match="truncated"):
        decode(file[: file.rfind(b"\xff\xda")])


def test_too_many_scans_are_refused_before_they_are_decoded() -> None:
    file = encode(photo(), progressive=True)
    last = file.rfind(b"\xff\xda")
    many = file[:last] + file[last:-2] * 600 + jpeg.END
    with pytest.raises(ImageError, match="more than 500 scans"):
        decode(many)


def test_many_scans_of_a_large_picture_are_refused() -> None:
    file = encode(photo(), progressive=True)
    size = file.index(b"\xff\xc2") + 5
    with pytest.raises(ImageError, match=r"2 scans of 60000 x 50000 pixels, too much work"):
        jpeg.inspect(file[:size] + struct.pack(">HH", 50000, 60000) + file[size + 4 :])


def test_padding_and_metadata_without_end_are_refused() -> None:
    file = encode(photo())
    with pytest.raises(ImageError, match=r"JPEG: .* bytes of padding between two markers"):
        decode(file[:2] + b"\xff" * 100_000 + file[2:])
    segment = b"\xff\xe1\xff\xffExif\0\0" + bytes(65527)
    with pytest.raises(ImageError, match=r"more than .* bytes before the picture"):
        open_image(file[:2] + segment * 600 + file[2:])  # Pillow would take ten seconds to open it


# ---- PNG and others


def png(width: int, height: int, rows: int, *, interlaced: int = 0) -> bytes:
    """Every checksum is right, and `rows` rows are there."""
    raw = b"".join(b"\0" + bytes([90]) * (3 * width) for _ in range(rows))
    chunks = (
        b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, interlaced),
        b"IDAT" + zlib.compress(raw),
        b"IEND",
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks
    )


def test_a_png_whose_stream_ends_early_is_truncated() -> None:
    assert decode(png(40, 30, 30)).shape == (30, 40, 3)
    for rows in (0, 15, 29):
        with pytest.raises(ImageError, match=r"PNG: truncated: its pixels end after|truncated or damaged PNG"):
            decode(png(40, 30, rows))


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (40, 30)])
def test_black_pngs_are_whole(size: tuple[int, int]) -> None:
    for mode in ("1", "L", "P", "RGB", "RGBA", "I;16"):
        assert decode(encode(Image.new(mode, size), "PNG")).shape == (size[1], size[0], 3)


def test_comments_cost_a_pnm_no_time() -> None:
    """As little as others: a quadratic reader takes a thousand times longer for these."""

    def seconds(count: int) -> float:
        comments = b"# a comment, and another one\n" * count
        started = time.perf_counter()
        with pytest.raises(ImageError, match="header cannot be read"):
            decode(b"P6\n" + comments + b"2 2\n255\n" + bytes(12))
        assert decode(b"P3\n2 2\n255\n" + comments + b"1 2 3 4 5 6 7 8 9 10 11 12\n").shape == (2, 2, 3)
        return time.perf_counter() - started

    assert any(seconds(100_000) < 300 * seconds(3_000) for _ in range(20))


@pytest.mark.parametrize("kind", ["WEBP", AVIF])
@pytest.mark.parametrize("quality", [50, 95])
def test_zero_bytes_in_webp_and_avif_are_an_error(kind: str, quality: int) -> None:
    file = bytearray(encode(photo((512, 512)), kind, quality=quality))
    assert decode(bytes(file)).shape == (512, 512, 3)
    for first in (0.4, 0.6):
        start = int(len(file) * first)
        with pytest.raises(ImageError, match=f"{kind}: damaged: zero bytes from"):
            decode(bytes(file[:start] + bytes(512) + file[start + 512 :]))


@pytest.mark.parametrize("kind", ["WEBP", AVIF])
def test_flat_pictures_in_webp_and_avif_are_scored(kind: str) -> None:
    for colour in ("white", "black"):
        exif = Image.Exif()
        exif[0x010E] = "\0" * 900 + "x"
        assert decode(encode(Image.new("RGB", (900, 700), colour), kind, exif=exif)).shape == (700, 900, 3)


@pytest.mark.parametrize("part", ["alpha", "levels"])
def test_a_graphic_in_lossless_webp_is_scored(part: str) -> None:
    rows, columns = np.mgrid[:200, :300]
    disc = Image.fromarray(np.where((columns - 150) ** 2 + (rows - 100) ** 2 < 4400, 255, 0).astype(np.uint8))
    image = Image.new("RGB", disc.size, "navy") if part == "alpha" else disc.convert("RGB")
    if part == "alpha":
        image.putalpha(disc)
    file = encode(image, "WEBP", lossless=True, quality=30, method=0)
    assert bytes(64) in file  # rows of one level, a zero bit for each pixel
    assert decode(file)[100, 0].tolist() == ([255] * 3 if part == "alpha" else [0] * 3)


# ---- limits


def test_what_takes_too_much_memory_is_refused_by_its_header() -> None:
    file = encode(Image.new("1", (9000, 9000)), "PNG")
    with pytest.raises(ImageError, match=r"PNG of 9000 x 9000 takes about \d+ MiB to decode, limit 100; shrink"):
        open_image(file, max_memory=100 << 20)
    opened = open_image(file)
    assert opened.memory < 400 << 20


def test_a_large_picture_is_converted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(np.dstack([data.astronaut(), data.astronaut()[..., 0]]))
    whole = decode(encode(image, "PNG"))
    monkeypatch.setattr("dgiqa.image.arrays.BAND", 10_000)
    np.testing.assert_array_equal(decode(encode(image, "PNG")), whole)


def test_room_is_shared_and_what_is_larger_goes_alone() -> None:
    room, order = Room(100), []

    def take(name: str, amount: int) -> None:
        with room.hold(amount):
            order.append(name)

    with room.hold(60):
        waiting = [threading.Thread(target=take, args=a) for a in (("large", 500), ("half", 50))]
        for thread in waiting:
            thread.start()
        with room.hold(40):
            order.append("small")
        assert order == ["small"]
    for thread in waiting:
        thread.join(PATIENCE_S)
    assert sorted(order) == ["half", "large", "small"]
    with room.hold(60), pytest.raises(CancelledError), room.hold(60, lambda: True):
        pass


def test_what_decodes_too_long_is_given_up_and_its_memory_held_until_it_ends(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends, whole = threading.Event(), jpeg.pixels

    def pixels(data: bytes, components: int, **options: Any) -> Any:
        if len(data) > 20_000:
            ends.wait(PATIENCE_S)  # as a decoder in C does, which heeds nothing
        return whole(data, components, **options)

    monkeypatch.setattr(jpeg, "pixels", pixels)
    (tmp_path / "slow.jpg").write_bytes(encode(photo(), "JPEG", quality=95))
    with Scorer(tiny_bundle, threads=1, decode_timeout_s=0.2) as scorer:
        slow, good = scorer.score_many([tmp_path / "slow.jpg", np.asarray(photo())])  # pixels need no decoder
        assert isinstance(slow, Failure)
        assert slow.message.startswith("JPEG: not decoded within 0.2 s; save it again")
        assert isinstance(good, Score)
        assert scorer.stages.room._taken > 0
        ends.set()
        until(lambda: not scorer.stages.room._taken)
    with pytest.raises(ValueError, match="decode_timeout_s must be above 0"):
        Scorer(tiny_bundle, decode_timeout_s=0)


def test_a_run_that_is_stopped_does_not_wait_for_a_decoder() -> None:
    ends = threading.Event()
    opened = Opened(
        "JPEG", 1, 1, 0, b"", lambda stop: Decoded(np.zeros((1, 1, 3), np.uint8), (str(ends.wait(PATIENCE_S)),))
    )
    with pytest.raises(CancelledError):
        decode_within(opened, PATIENCE_S, lambda: True)
    ends.set()


def test_decoding_stops_when_it_is_told_to() -> None:
    file = encode(Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 800, 3), np.uint8)), "PNG")
    with pytest.raises(CancelledError):
        open_image(file).decode(lambda: True)


# ---- what an image is given as


def test_a_pillow_image_is_as_its_file() -> None:
    tags = Image.Exif()
    tags[0x0112] = 6
    file = encode(photo(), exif=tags)
    with Image.open(io.BytesIO(file)) as image:
        np.testing.assert_array_equal(open_source(image).decode().rgb, decode(file))
    np.testing.assert_array_equal(of_pillow(photo()).rgb, np.asarray(photo()))
    with pytest.raises(ImageError, match=r"got 288 x 192 pixels, limit 10"):
        of_pillow(photo(), max_pixels=10)


def test_streams_of_all_kinds_are_read_and_what_breaks_them_is_an_image_error(tmp_path: Path) -> None:
    file = encode(photo())
    want = decode(file)

    class Stream:
        """read() alone, in pieces."""

        def __init__(self, most: int, kind: type = bytes) -> None:
            self.inside, self.most, self.kind = io.BytesIO(file), most, kind

        def read(self, size: int = -1) -> Any:
            return self.kind(self.inside.read(min(size, self.most)))

    path = tmp_path / "a.png"
    path.write_bytes(file)
    entry = next(os.scandir(tmp_path))
    later = io.BytesIO(b"mail" + file)
    later.seek(4)
    for source in (Stream(7), Stream(1 << 20, bytearray), memoryview(file), entry, later):
        np.testing.assert_array_equal(open_source(cast("Any", source)).decode().rgb, want)

    class Broken:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def read(self, size: int = -1) -> bytes:
            raise self.error

    for error in (OSError("net gone"), ValueError("net gone"), RuntimeError("net gone")):
        with pytest.raises(ImageError, match="the stream cannot be read: net gone"):
            open_source(cast("Any", Broken(error)))
    with path.open(encoding="latin-1") as text, pytest.raises(ImageError, match=r"got str, wanted .* binary mode"):
        open_source(cast("Any", text))


def test_a_stream_that_was_read_is_rewound() -> None:
    stream = io.BytesIO(encode(photo()))
    first = open_source(stream).decode().rgb
    np.testing.assert_array_equal(open_source(stream).decode().rgb, first)
    with pytest.raises(ImageError, match="empty file"):
        open_source(io.BytesIO())

    class Once(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            return b""

        def tell(self) -> int:
            raise OSError("a pipe")

    with pytest.raises(ImageError, match="at its end and cannot be rewound"):
        open_source(Once())  # type: ignore[arg-type]


def test_the_first_bytes_are_looked_at_before_the_others_are_read(tmp_path: Path) -> None:
    class Endless(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            assert size < 10_000, "read on"
            return b"\x1a\x45\xdf\xa3" + bytes(size - 4)

    with pytest.raises(ImageError, match="a video"):
        open_source(Endless())  # type: ignore[arg-type]
    with (tmp_path / "sparse.jpg").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(ImageError, match="bytes are zero"):
        open_source(tmp_path / "sparse.jpg")


@pytest.mark.parametrize("share", [0.75, 0.9, 0.97])
def test_zero_bytes_at_the_end_of_a_png_are_an_error(share: float) -> None:
    data = encode(photo(), "PNG")
    cut = int(len(data) * share)
    with pytest.raises(ImageError, match=r"PNG: (damaged|truncated)|damaged PNG"):
        decode(data[:cut] + bytes(len(data) - cut))


@pytest.mark.parametrize("compression", ["tiff_deflate", "jpeg"])
@pytest.mark.parametrize("start", [0.4, 0.6])
def test_zero_bytes_in_a_compressed_tiff_are_an_error(compression: str, start: float) -> None:
    data = bytearray(encode(photo(), "TIFF", compression=compression))
    at = int(len(data) * start)
    data[at : at + len(data) // 50] = bytes(len(data) // 50)
    with pytest.raises(ImageError, match="damaged"):
        decode(bytes(data))


def test_tiles_of_a_tiff_are_read_and_zeros_in_them_are_an_error() -> None:
    tifffile = pytest.importorskip("tifffile")
    file, pixels = io.BytesIO(), np.asarray(photo())
    tifffile.imwrite(file, pixels, tile=(64, 64), compression="zlib", photometric="rgb")
    data = bytearray(file.getvalue())
    np.testing.assert_array_equal(decode(bytes(data)), pixels)
    middle = len(data) // 2
    data[middle : middle + 3000] = bytes(3000)
    with pytest.raises(ImageError, match="damaged"):
        decode(bytes(data))


@pytest.mark.parametrize("compression", ["tiff_deflate", "jpeg"])
def test_other_bytes_in_a_compressed_tiff_are_an_error(compression: str) -> None:
    data = encode(photo(), "TIFF", compression=compression)
    at = len(data) // 2
    with pytest.raises(ImageError, match="damaged"):
        decode(data[:at] + b"\x37" * 64 + data[at + 64 :])


@pytest.mark.parametrize("compression", ["tiff_deflate", "jpeg", "tiff_lzw", "raw"])
@pytest.mark.parametrize("level", [0, 255])
def test_flat_tiffs_are_scored(compression: str, level: int) -> None:
    flat = Image.new("L", (1200, 900), level)
    flat.paste(photo().convert("L"), (400, 300))
    assert abs(decode(encode(flat, "TIFF", compression=compression))[0, 0].astype(int) - level).max() <= 1


@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize(("start", "end"), [(0.4, 0.45), (0.3, 0.6), (0.6, 0.62), (0.97, 1.0)])
def test_zero_bytes_in_jpeg_2000_are_an_error(lossless: bool, start: float, end: float) -> None:
    rates = {} if lossless else {"quality_mode": "rates", "quality_layers": [10]}
    data = bytearray(encode(photo(), "JPEG2000", **rates))
    first, last = int(len(data) * start), int(len(data) * end)
    data[first:last] = bytes(last - first)
    with pytest.raises(ImageError, match="damaged"):
        decode(bytes(data))


@pytest.mark.parametrize("options", [{}, {"irreversible": True}, {"tile_size": (256, 256)}, {"quality_layers": [80]}])
@pytest.mark.parametrize("level", [0, 128, 255])
def test_flat_pictures_in_jpeg_2000_are_scored(options: dict[str, Any], level: int) -> None:
    flat = Image.new("RGB", (1200, 900), (level, level, level))
    for picture in (flat, flat.copy()):
        assert decode(encode(picture, "JPEG2000", **options)).shape == (900, 1200, 3)
        picture.paste(photo(), (400, 300))
    small = {"precinct_size": (128, 128), "codeblock_size": (32, 32), "num_resolutions": 1}
    assert decode(encode(flat, "JPEG2000", **options, **small)).shape == (900, 1200, 3)


def test_how_long_zeros_may_be_in_jpeg_2000_follows_from_its_coding() -> None:
    """5 levels, blocks of 64 x 64 pixels, no precincts: 6 packets and 4,096 bits of empty blocks for each channel."""
    coding = bytes.fromhex("ff52 000c 00 00 0001 00 05 04 04 00 01")
    header = cast(jp2.Header, SimpleNamespace(width=4096, height=4096, bits=(8, 8, 8)))
    assert jp2._flat(coding, header) == 3 * (6 + 4096 // 8)
    assert jp2._flat(coding[:13], header) == 0


@pytest.mark.parametrize("kind", [AVIF, "JPEG2000", "WEBP", "PNG", "JPEG", "TIFF", "GIF"])
def test_zero_bytes_behind_the_picture_are_no_damage(kind: str) -> None:
    data = encode(photo(), kind)
    assert np.array_equal(decode(data + bytes(5000)), decode(data))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "YCbCr"])
@pytest.mark.parametrize("options", [{}, {"no_jp2": True}, {"irreversible": True}])
def test_jpeg_2000_is_as_pillow_reads_it_and_damage_is_an_error(mode: str, options: dict[str, Any]) -> None:
    data = encode(photo().convert(mode), "JPEG2000", **options)
    theirs = Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(decode(data), np.asarray(theirs.convert("RGB")))
    for share in (0.3, 0.7, 0.95):
        with pytest.raises(ImageError, match=r"truncated or damaged JPEG2000|JPEG2000: damaged"):
            decode(data[: int(share * len(data))])


def jp2_of(levels: np.ndarray[Any, Any], bits: int) -> bytes:
    """A lossless JPEG 2000 file of fewer than 8 bits: Pillow writes 8, whose middle is moved to that of `bits`."""
    moved = (levels.astype(np.int16) + 128 - (1 << bits - 1)).astype(np.uint8)
    out = bytearray(encode(Image.fromarray(moved), "JPEG2000", mct=0))
    at, count = out.index(b"\xff\x4f\xff\x51") + 40, 1 if levels.ndim == 2 else 3
    out[at + 2 : at + 2 + 3 * count : 3] = bytes([bits - 1] * count)
    return bytes(out)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("colour", [False, True])
def test_few_bits_of_jpeg_2000_reach_white(bits: int, colour: bool) -> None:
    most = (1 << bits) - 1
    levels = np.asarray(photo((64, 48)) if colour else photo((64, 48)).convert("L")) >> 8 - bits
    shown = decode(jp2_of(levels, bits))
    wanted = np.rint(levels * 255.0 / most)
    np.testing.assert_array_equal(shown, wanted if colour else np.dstack([wanted] * 3))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_brightest_of_deep_jpeg_2000_is_white(channels: int) -> None:
    levels = np.linspace(0, 65535, 64 * 48 * channels).astype(np.uint16).reshape(48, 64, channels)
    levels[0, :, :] = 65535
    data = cv2.imencode(".jp2", levels)[1].tobytes()
    shown = decode(data)
    assert (shown[0] == 255).all()
    if channels == 3:
        np.testing.assert_array_equal(shown, levels[..., ::-1] >> 8)


def test_jpeg_2000_whose_colours_pillow_misplaces_is_refused() -> None:
    data = bytearray(encode(photo((63, 48)), "JPEG2000"))
    at = data.index(b"\xff\x4f\xff\x51") + 40 + 2 + 3 + 1
    data[at] = 2  # pixels from one sample of the second component to the next
    with pytest.raises(ImageError, match="fewer samples, in a picture or tiles of odd width"):
        open_image(bytes(data))


@pytest.mark.parametrize(
    ("box", "message"),
    [
        (struct.pack(">I4sH9H", 28, b"cdef", 3, 0, 0, 3, 1, 0, 2, 2, 0, 1), "neither colours in order nor plain alpha"),
        (struct.pack(">I4sH3H", 16, b"cdef", 1, 3, 2, 0), "neither colours in order nor plain alpha"),  # multiplied
        (struct.pack(">I4sH3H", 16, b"cdef", 1, 3, 65535, 65535), "neither colours in order nor plain alpha"),
        (struct.pack(">I4s6H", 20, b"cmap", 0, 0x102, 0, 0x101, 0, 0x100), "whose columns are not red, green and blue"),
        (struct.pack(">I4s3BI", 15, b"colr", 1, 0, 0, 14), "space number 14"),  # CIE Lab
        (struct.pack(">I4sH9H", 28, b"cdef", 3, 0, 0, 1, 1, 0, 2, 2, 0, 3), ""),
        (struct.pack(">I4s6H", 20, b"cmap", 0, 0x100, 0, 0x101, 0, 0x102), ""),
    ],
)
def test_jpeg_2000_whose_channels_mean_something_else_is_refused(box: bytes, message: str) -> None:
    data = encode(photo((64, 48)), "JPEG2000")
    at = data.index(b"colr") - 4
    if not message:
        jp2.header(data[:at] + box + data[at:])
        return
    with pytest.raises(ImageError, match=message):
        jp2.header(data[:at] + box + data[at:])


@pytest.mark.parametrize("lossless", [True, False])
def test_a_periodic_drawing_in_jpeg_2000_is_scored_and_its_damage_is_not(lossless: bool) -> None:
    stripes = np.zeros((512, 512), np.uint8)
    stripes[np.arange(512) // 4 % 2 == 1] = 255
    options: dict[str, Any] = {} if lossless else {"irreversible": True, "quality_mode": "dB", "quality_layers": [40]}
    data = encode(Image.fromarray(stripes), "JPEG2000", **options)
    assert jp2.longest_zeros(data, jp2.header(data)) is not None
    np.testing.assert_allclose(decode(data)[..., 0].astype(int), stripes, atol=0 if lossless else 16)
    photograph = bytearray(encode(photo((512, 512)), "JPEG2000", **options))
    photograph[len(photograph) // 2 : len(photograph) // 2 + 600] = bytes(600)
    with pytest.raises(ImageError, match="zero bytes"):
        decode(bytes(photograph))


def jpeg_with(factors: tuple[int, int, int], data: bytes) -> bytes:
    """A JPEG whose frame says other sampling factors, as 0x21 for 2 x 1."""
    out, at = bytearray(data), data.index(b"\xff\xc0")
    for component, factor in enumerate(factors):
        out[at + 11 + 3 * component] = factor
    return bytes(out)


def test_a_sampling_that_is_seldom_is_read_by_pillow() -> None:
    # 2 x 1 blocks of luma and of the second chroma component, 1 x 1 of the first: eight MCUs of five blocks
    grey = Image.new("RGB", (128, 8), (120, 120, 120))
    data = jpeg_with((0x21, 0x11, 0x21), encode(grey, "JPEG", subsampling="4:4:4"))
    assert not jpeg.inspect(data).plain
    assert jpeg.inspect(jpeg_with((0x21, 0x11, 0x11), data)).plain
    assert open_image(data).decode().rgb.shape == (8, 128, 3)


def arithmetic(data: bytes) -> bytes:
    """A JPEG that says it is coded arithmetically."""
    return data.replace(b"\xff\xc0", b"\xff\xc9", 1)


def test_arithmetic_jpegs_are_looked_through_for_lost_data_too() -> None:
    whole = arithmetic(encode(photo(), "JPEG", quality=90))
    assert not jpeg.inspect(whole).plain
    with pytest.raises(ImageError, match="truncated"):
        decode(whole[:-2000])
    at = len(whole) // 2
    with pytest.raises(ImageError, match="zero bytes"):
        decode(whole[:at] + bytes(200) + whole[at + 200 :])


def test_a_progressive_jpeg_that_ends_after_some_scans_says_so() -> None:
    data = encode(photo(), "JPEG", progressive=True, quality=80)
    scans = [found.start() for found in re.finditer(b"\xff\xc4", data)]
    shown = open_image(data[: scans[-1]] + jpeg.END).decode()
    assert shown.notes == ("not all of its scans are there",)
