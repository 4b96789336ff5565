"""Files whose numbers do not mean what they seem to: raw, deep, inverted, planar, transparent, HDR, with a profile."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from made_pictures import encode
from numpy.typing import NDArray
from PIL import Image, ImageCms, features

from dgiqa.errors import ImageError
from dgiqa.image import decode, identify, open_image
from dgiqa.image.kinds import _FOREIGN, FORMATS

needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")


def picture(height: int = 24, width: int = 40) -> NDArray[np.uint8]:
    y, x, c = np.ogrid[:height, :width, :3]
    return ((5 * x + 3 * y + 40 * c) % 256).astype(np.uint8)


def read(data: bytes) -> tuple[NDArray[np.uint8], str]:
    found = open_image(data).decode()
    return found.rgb, "; ".join(found.notes)


# ---- what a file is


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"\xff\x0a/\x07\x00\x12", "JPEG XL image; convert"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"8BPS\0\1", "Photoshop"),
        (b"v/1\x01\2\0", "OpenEXR.*white level"),
        (b"\0\0\1\0\1\0\x10\x10", "icon"),
        (b"\x01\xda\x01\x01\0\2", "SGI image; convert"),
        (b"\0\0\2\0\0\0\0\0\0\0\0\0\x10\0\x10\0\x18\0", r"a Targa image \(TGA\), it seems; convert"),
        (b"/* XPM */\n", "XPM or XBM"),
        (b"AT&TFORM", "DjVu document"),
        (b"\xff\xd8\xff\xf7\0\x11", "JPEG-LS image; convert"),
        (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41", r"a video \(MP4.*dgiqa-rt video"),
        (b"\0\0\0\x14ftypqt  \0\0\2\0", "a video"),
        (b"\x1a\x45\xdf\xa3\x01\0\0\0", r"a video \(Matroska or WebM"),
        (b"RIFF\0\0\0\0AVI LIST", r"a video \(AVI"),
        (b"\0\0\x01\xba\x44", r"a video \(MPEG"),
        ((b"G" + bytes(187)) * 4, r"a video \(MPEG"),
        (b"\x93NUMPY\1\0", "numpy.load"),
        (b"PK\x03\x04\x14", "archive"),
        (b"\x1f\x8b\x08\0", "archive"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        (b"data:image/png;base64,iVBORw0KGgo", "base64"),
        (b'{"error": "not found"}', "JSON"),
        (b"HTTP/1.1 200 OK\r\n", "HTTP response"),
        (bytes(4096), "first 4096 bytes are zero"),
    ],
)
def test_what_is_no_image_that_is_read_is_named(head: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        identify(head)


def test_no_pattern_takes_a_format_for_another() -> None:
    import re

    for _, pattern in (*_FOREIGN, *((kind, pattern) for kind, _, pattern in FORMATS)):
        re.compile(pattern)
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000"):
        assert identify(encode(Image.fromarray(picture()), kind))[0] == kind


def test_heic_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif.as_plugin", None)
    with pytest.raises(ImageError, match=r"HEIC photograph; pip install \"dgiqa-rt\[heic\]\""):
        decode(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")


def test_heic_is_read_where_its_library_is_installed() -> None:
    heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    y, x = np.indices((64, 96))
    smooth = np.stack([2 * x, 3 * y, x + y], axis=-1).astype(np.uint8)
    heif.from_pillow(Image.fromarray(smooth)).save(file, quality=-1)
    np.testing.assert_allclose(decode(file.getvalue()).astype(int), smooth, atol=6)


# ---- TIFF


class Tiff:
    """A TIFF of given tags, one strip per plane."""

    def __init__(self, order: str = "<") -> None:
        self.order, self.pages = order, []

    def page(self, planes: list[bytes], **tags: Any) -> Tiff:
        self.pages.append((planes, {int(k[1:]): v for k, v in tags.items()}))
        return self

    def bytes(self) -> bytes:
        o, out = self.order, b"II*\0" if self.order == "<" else b"MM\0*"
        body, at, ifds = b"", 8, []
        for planes, tags in self.pages:
            offsets = []
            for plane in planes:
                offsets.append(at + len(body))
                body += plane + bytes(len(plane) % 2)
            ifds.append(tags | {273: offsets, 279: [len(p) for p in planes]})
        first = at + len(body)
        for number, tags in enumerate(ifds):
            entries, extra = [], b""
            here = 8 + len(body)
            end = here + 2 + 12 * len(tags) + 4
            for tag, value in sorted(tags.items()):
                values = value if isinstance(value, list) else [value]
                packed = struct.pack(f"{o}{len(values)}I", *values)
                inline = packed if len(packed) == 4 else struct.pack(o + "I", end + len(extra))
                extra += b"" if len(packed) == 4 else packed
                entries.append(struct.pack(o + "HHI", tag, 4, len(values)) + inline)
            following = end + len(extra) if number + 1 < len(ifds) else 0
            body += struct.pack(o + "H", len(entries)) + b"".join(entries) + struct.pack(o + "I", following) + extra
        return out + struct.pack(o + "I", first) + body


def tags(image: NDArray[Any], bits: int, **more: Any) -> dict[str, Any]:
    samples = 1 if image.ndim == 2 else image.shape[2]
    basic = {"_256": image.shape[1], "_257": image.shape[0], "_258": [bits] * samples, "_259": 1, "_277": samples}
    return basic | {"_262": 2 if samples > 2 else 1, "_278": image.shape[0]} | more


def packed(levels: NDArray[np.integer], bits: int) -> bytes:
    """Rows of `bits` bits a sample, most significant first, padded to bytes."""
    shifts = np.arange(bits - 1, -1, -1)
    rows = levels.reshape(len(levels), -1)
    return np.packbits(((rows[..., None] >> shifts) & 1).astype(np.uint8).reshape(len(rows), -1), axis=1).tobytes()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_grey_tiffs_of_any_depth_show_their_picture(bits: int, white_is_zero: bool, order: str) -> None:
    grey = picture()[..., 0]
    levels = grey.astype(np.uint16) << (bits - 8)
    levels = levels + (grey >> (16 - bits))  # white becomes all ones
    stored = (1 << bits) - 1 - levels if white_is_zero else levels
    strip = stored.astype(order + "u2").tobytes() if bits == 16 else packed(stored, bits)
    data = Tiff(order).page([strip], **tags(grey, bits, _262=0 if white_is_zero else 1)).bytes()
    if bits == 14 and cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) is None:
        pytest.skip("this OpenCV does not read it")
    np.testing.assert_allclose(decode(data)[..., 0].astype(int), grey, atol=1)


@pytest.mark.parametrize("order", ["<", ">"])
def test_planes_of_sixteen_bits_show_their_picture(order: str) -> None:
    levels = picture().astype(np.uint16) * 257
    planes = [levels[..., c].astype(order + "u2").tobytes() for c in range(3)]
    data = Tiff(order).page(planes, **tags(levels, 16, _284=2)).bytes()
    np.testing.assert_allclose(decode(data).astype(int), picture(), atol=1)


def test_planes_of_eight_bits_show_their_picture() -> None:
    planes = [picture()[..., c].tobytes() for c in range(3)]
    np.testing.assert_array_equal(decode(Tiff().page(planes, **tags(picture(), 8, _284=2)).bytes()), picture())


def test_float_rgb_is_read_in_zero_to_one() -> None:
    levels = (picture() / np.float32(255)).astype(np.float32)
    data = Tiff().page([levels.tobytes()], **tags(levels, 32, _339=[3, 3, 3])).bytes()
    np.testing.assert_array_equal(decode(data), picture())
    data = Tiff().page([(levels * 3).tobytes()], **tags(levels, 32, _339=[3, 3, 3])).bytes()
    with pytest.raises(ImageError, match=r"TIFF: got floats from 0 to 3, wanted 0..1"):
        decode(data)


@pytest.mark.parametrize(
    ("bits", "sample_format", "message"),
    [
        (16, 2, "signed 16-bit samples; save as unsigned"),
        (8, 2, "signed 8-bit"),
        (16, 3, "float 16-bit"),
        (32, 1, "32-bit integer samples, whose white level is not known"),
    ],
)
def test_samples_without_a_white_are_named(bits: int, sample_format: int, message: str) -> None:
    data = Tiff().page([bytes(24 * 40 * bits // 8)], **tags(picture()[..., 0], bits, _339=sample_format)).bytes()
    with pytest.raises(ImageError, match=message):
        decode(data)


def test_a_reduced_first_page_is_passed_over() -> None:
    small, full = picture(6, 10), picture()
    pages = Tiff().page([small.tobytes()], **tags(small, 8, _254=1)).page([full.tobytes()], **tags(full, 8, _254=0))
    rgb, note = read(pages.bytes())
    np.testing.assert_array_equal(rgb, full)
    assert note.startswith("page 2")
    with pytest.raises(ImageError, match="only reduced copies"):
        decode(Tiff().page([small.tobytes()], **tags(small, 8, _254=1)).bytes())


@pytest.mark.parametrize(
    "raw",
    [{"_50706": 0x01040000}, {"_254": 1, "_330": 8}, {"_262": 32803, "_277": 1, "_258": 16}],
    ids=["dng", "nef", "cfa"],
)
def test_raw_photographs_are_named(raw: dict[str, int]) -> None:
    small = picture(6, 10)
    with pytest.raises(ImageError, match=r"raw photograph.*develop it to"):
        decode(Tiff().page([small.tobytes()], **(tags(small, 8) | raw)).bytes())


def test_a_palette_of_eight_bits_in_sixteen_is_not_black() -> None:
    levels, ramp = picture()[..., 0], np.arange(256)
    palette = np.concatenate([ramp, 255 - ramp, ramp // 2]).tolist()
    data = Tiff().page([levels.tobytes()], **tags(levels, 8, _262=3, _320=palette)).bytes()
    np.testing.assert_array_equal(decode(data), np.stack([levels, 255 - levels, levels // 2], -1))


def test_bits_in_reverse_are_not_taken_for_damage() -> None:
    levels, reverse = picture()[..., 0], bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
    piece = zlib.compress(levels.tobytes()).translate(reverse)
    data = Tiff().page([piece], **tags(levels, 8, _259=8, _266=2)).bytes()
    np.testing.assert_array_equal(decode(data)[..., 0], levels)


def test_float64_and_grey_with_multiplied_alpha_show_their_picture() -> None:
    levels = picture()[..., 0]
    data = Tiff().page([(levels / 255).tobytes()], **tags(levels, 64, _339=3)).bytes()
    np.testing.assert_array_equal(decode(data)[..., 0], levels)
    both = np.dstack([levels // 2, np.full_like(levels, 128)])
    data = Tiff().page([both.tobytes()], **tags(both, 8, _338=1)).bytes()
    if features.version("pil").startswith("10."):
        with pytest.raises(ImageError, match="2 channels of 8 bits, which Pillow does not read"):
            decode(data)
        return
    np.testing.assert_allclose(decode(data)[..., 0].astype(int), levels // 2 + 127, atol=1)


def test_a_compression_that_is_not_read_is_named() -> None:
    levels = picture()[..., 0]
    data = Tiff().page([b"x"], **tags(levels, 8, _259=34712)).bytes()
    with pytest.raises(ImageError, match="compressed as JPEG 2000, which is not read; save it with LZW, Deflate"):
        decode(data)
    with pytest.raises(ImageError, match="BigTIFF with the high byte first"):
        decode(b"MM\0+\0\x08\0\0" + bytes(100))


@pytest.mark.parametrize("kind", ["grey16", "float", "planes"])
def test_profiles_of_deep_tiffs_are_converted(kind: str) -> None:
    levels = picture() if kind != "grey16" else picture()[..., 0]
    profile = GREY_LIGHT if kind == "grey16" else ADOBE
    more = {"_34675": list(struct.unpack(f"<{len(profile) // 4}I", profile))}  # as LONGs; their bytes are what counts
    if kind == "float":
        data = Tiff().page([(levels / 255).astype("<f4").tobytes()], **tags(levels, 32, _339=3, **more)).bytes()
    elif kind == "planes":
        planes = [(levels[..., c].astype("<u2") * 257).tobytes() for c in range(3)]
        data = Tiff().page(planes, **tags(levels, 16, _284=2, **more)).bytes()
    else:
        data = Tiff().page([(levels.astype("<u2") * 257).tobytes()], **tags(levels, 16, **more)).bytes()
    at = data.index(struct.pack("<HHI", 34675, 4, len(profile) // 4))
    data = data[:at] + struct.pack("<HHI", 34675, 7, len(profile)) + data[at + 8 :]
    rgb, note = read(data)
    assert "to sRGB" in note
    wanted = decode(encode(Image.fromarray(levels), "PNG", icc_profile=profile))
    np.testing.assert_allclose(rgb.astype(int), wanted, atol=1)


@pytest.mark.parametrize("orientation", [3, 6])
def test_deep_tiffs_are_turned_upright_too(orientation: int) -> None:
    grey = picture()[..., 0]
    data = Tiff().page([packed(grey.astype(np.uint16) << 4, 12)], **tags(grey, 12, _274=orientation)).bytes()
    wanted = np.rot90(grey, 2 if orientation == 3 else -1)
    np.testing.assert_allclose(decode(data)[..., 0].astype(int), wanted, atol=1)


# ---- alpha


def bmp(alpha: int) -> bytes:
    """A BMP of 32 bits with a version-5 header, whose fourth byte is called alpha."""
    pixels = np.dstack([picture()[::-1, :, ::-1], np.full((24, 40), alpha, np.uint8)])
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 124, 40, 24, 1, 32, 3, pixels.nbytes, 0, 0, 0, 0)
    header += struct.pack("<4I", *masks) + b"BGRs"
    header += bytes(124 - len(header))
    return b"BM" + struct.pack("<IHHI", 138 + pixels.nbytes, 0, 0, 138) + header + pixels.tobytes()


def test_a_bmp_whose_alpha_is_zero_everywhere_is_opaque() -> None:
    rgb, note = read(bmp(0))
    np.testing.assert_array_equal(rgb, picture())
    assert "taken as opaque" in note
    np.testing.assert_array_equal(read(bmp(255))[0], picture())


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_nothing_to_see_is_said(kind: str) -> None:
    image = Image.fromarray(np.dstack([picture(), np.zeros((24, 40), np.uint8)]))
    rgb, note = read(encode(image, kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert (rgb == 255).all()
    assert note == "transparent everywhere: a white picture"


def test_transparent_parts_are_said_and_opaque_alpha_is_not() -> None:
    alpha = np.full((24, 40), 255, np.uint8)
    assert not read(encode(Image.fromarray(np.dstack([picture(), alpha])), "PNG"))[1]
    alpha[:3] = 100
    assert read(encode(Image.fromarray(np.dstack([picture(), alpha])), "PNG"))[1] == "transparent parts laid over white"


# ---- colours


def png(levels: NDArray[np.integer], cicp: tuple[int, ...]) -> bytes:
    """An RGB PNG of 8 or 16 bits with a cICP chunk."""
    data = cv2.imencode(".png", levels[..., ::-1])[1].tobytes()
    body = b"cICP" + bytes(cicp)
    return data[:33] + struct.pack(">I", 4) + body + struct.pack(">I", zlib.crc32(body)) + data[33:]


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_is_tone_mapped_as_in_video(transfer: int, name: str) -> None:
    from dgiqa.hdr import tone_map

    levels = picture().astype(np.uint16) * 257
    rgb, note = read(png(levels, (9, transfer, 0, 1)))
    np.testing.assert_array_equal(rgb, tone_map(levels, transfer))
    assert note == f"HDR ({name}) tone-mapped to SDR"
    np.testing.assert_array_equal(read(png(picture(), (9, transfer, 0, 1)))[0], tone_map(levels, transfer))


def test_hdr_in_other_primaries_is_refused() -> None:
    with pytest.raises(ImageError, match=r"HDR \(PQ\) with primaries number 1; convert it"):
        decode(png(picture(), (1, 16, 0, 1)))


def test_a_damaged_hdr_png_is_refused() -> None:
    data = png(picture().astype(np.uint16) * 257, (9, 16, 0, 1))
    with pytest.raises(ImageError, match="PNG"):
        decode(data[: len(data) // 2])


def test_wide_primaries_are_converted_and_srgb_is_not() -> None:
    assert (read(png(picture(), (1, 13, 0, 1)))[0] == picture()).all()
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 200
    rgb, note = read(png(red, (12, 13, 0, 1)))
    assert note == "converted from Display P3 to sRGB"
    assert rgb[0, 0, 0] > 215  # P3's red is more than sRGB has
    grey = np.full((4, 4, 3), 77, np.uint8)
    np.testing.assert_allclose(read(png(grey, (12, 13, 0, 1)))[0].astype(int), 77, atol=1)


def chunk(kind: bytes, *values: int) -> bytes:
    body = kind + struct.pack(f">{len(values)}I", *values)
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


def with_chunks(data: bytes, *chunks: bytes) -> bytes:
    return data[:33] + b"".join(chunks) + data[33:]


@pytest.mark.parametrize("bits", [2, 4, 16])
def test_a_grey_that_is_transparent_is_white_at_every_depth(bits: int) -> None:
    most = (1 << bits) - 1
    levels = (picture()[..., 0].astype(int) * most // 255).astype(np.uint16)
    stored = levels.astype(">u2").view(np.uint8).reshape(len(levels), -1) if bits == 16 else packed(levels, bits)
    rows = np.frombuffer(stored, np.uint8).reshape(len(levels), -1) if bits < 16 else stored
    key = int(levels[3, 5])
    parts = [struct.pack(">IIBBBBB", levels.shape[1], levels.shape[0], bits, 0, 0, 0, 0), struct.pack(">H", key)]
    parts.append(zlib.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes()))
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in zip((b"IHDR", b"tRNS", b"IDAT", b"IEND"), (*parts, b""), strict=True):
        data += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    rgb, note = read(data)
    shown = levels >> 8 if bits == 16 else levels * 255 // most
    np.testing.assert_array_equal(rgb[..., 0], np.where(levels == key, 255, shown))
    assert note == "transparent parts laid over white"


def test_a_deep_colour_that_is_transparent_is_told_from_one_with_the_same_high_bytes() -> None:
    levels = picture().astype(np.uint16) * 257
    levels[0], levels[1] = (0x1234, 0x5678, 0x9ABC), (0x1200, 0x5600, 0x9A00)
    data = cv2.imencode(".png", levels[..., ::-1])[1].tobytes()
    body = b"tRNS" + struct.pack(">3H", 0x1234, 0x5678, 0x9ABC)
    rgb, note = read(with_chunks(data, struct.pack(">I", 6) + body + struct.pack(">I", zlib.crc32(body))))
    assert (rgb[0] == 255).all()
    np.testing.assert_array_equal(rgb[1:], levels[1:] >> 8)
    assert note == "transparent parts laid over white"


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_around_the_first_picture_of_an_animation_there_is_nothing(kind: str) -> None:
    """Browsers show none of the background's colour that Pillow fills it with."""
    frames = [Image.new("RGB", (16, 12), colour) for colour in ((200, 10, 10), (10, 200, 10))]
    options = {"lossless": True} if kind == "WEBP" else {"background": 1}
    data = bytearray(encode(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    if kind == "GIF":
        data[6:10] = struct.pack("<HH", 32, 24)
    else:
        data[20] &= 0xEF  # it says that nothing is transparent
        data[24:30] = bytes((31, 0, 0, 23, 0, 0))
    rgb, note = read(bytes(data))
    np.testing.assert_allclose(rgb[:12, :16], np.broadcast_to((200, 10, 10), (12, 16, 3)), atol=3)
    assert (rgb[12:] == 255).all()
    assert (rgb[:, 16:] == 255).all()
    assert note == "transparent parts laid over white"


def test_an_animation_is_its_first_picture_not_what_stands_in_for_it() -> None:
    frames = [Image.new("RGB", (16, 12), colour) for colour in ((200, 10, 10), (10, 200, 10), (10, 10, 200))]
    data = encode(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=True)
    np.testing.assert_array_equal(decode(data), np.asarray(frames[1]))


def test_a_png_that_only_its_writer_understands_is_refused() -> None:
    data = encode(Image.fromarray(picture()), "PNG")
    with pytest.raises(ImageError, match="with a chunk b'CgBI', without which"):
        decode(with_chunks(data, chunk(b"CgBI", 1)))
    palette = bytearray(encode(Image.fromarray(picture()).quantize(8), "PNG"))
    at = palette.index(b"PLTE")
    palette[at : at + 4] = b"ptLe"
    with pytest.raises(ImageError, match="palette is missing"):
        decode(bytes(palette))


def test_a_gamma_beyond_reason_is_ignored() -> None:
    data = encode(Image.fromarray(picture()), "PNG")
    for gamma in (1, 0x7FFFFFFF):
        assert (decode(with_chunks(data, chunk(b"gAMA", gamma))) == picture()).all()


P3 = chunk(b"cHRM", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
SRGB_PRIMARIES = chunk(b"cHRM", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("gamma", [100_000, 55_555])
def test_a_pngs_gamma_is_that_of_a_browser(gamma: int, grey: bool, deep: bool) -> None:
    levels = picture()[..., 0] if grey else picture()
    data = encode(Image.fromarray(levels), "PNG")
    if deep:
        stored = levels if grey else levels[..., ::-1]
        data = cv2.imencode(".png", stored.astype(np.uint16) * 257)[1].tobytes()
    for more in ((), (SRGB_PRIMARIES,)):
        rgb, note = read(with_chunks(data, chunk(b"gAMA", gamma), *more))
        assert note == f"converted from gamma {100_000 / gamma:.3g} to sRGB"
        wanted = 255 * (levels / 255) ** (100_000 / gamma / 2.2)
        np.testing.assert_allclose(rgb.astype(int), wanted[..., None].repeat(3, 2) if grey else wanted, atol=1)


def test_the_usual_gamma_and_one_beside_a_profile_change_nothing() -> None:
    data = encode(Image.fromarray(picture()), "PNG")
    for chunks in (
        [chunk(b"gAMA", 45455)],
        [chunk(b"gAMA", 45455), SRGB_PRIMARIES],
        [chunk(b"gAMA", 0)],
        [P3],
        [struct.pack(">I", 1) + b"sRGB\0" + struct.pack(">I", zlib.crc32(b"sRGB\0")), chunk(b"gAMA", 100_000)],
    ):
        assert (read(with_chunks(data, *chunks))[0] == picture()).all()


def test_a_pngs_own_primaries_are_converted() -> None:
    levels = np.zeros((4, 4, 3), np.uint8)
    levels[..., 0] = 200
    red = encode(Image.fromarray(levels), "PNG")
    rgb, note = read(with_chunks(red, chunk(b"gAMA", 45455), P3))
    assert note == "converted from its own primaries and gamma 2.2 to sRGB"
    assert (
        abs(int(rgb[0, 0, 0]) - int(read(png(np.asarray(Image.open(io.BytesIO(red))), (12, 13, 0, 1)))[0][0, 0, 0])) < 3
    )
    line = chunk(b"cHRM", 31270, 32900, 30000, 30000, 30000, 30000, 30000, 30000)
    with pytest.raises(ImageError, match="primaries that span no colours"):
        read(with_chunks(red, chunk(b"gAMA", 45455), line))


@pytest.mark.parametrize("deep", [False, True])
def test_linear_light_is_converted_and_unknown_curves_are_refused(deep: bool) -> None:
    levels = picture().astype(np.uint16) * 257 if deep else picture()
    rgb, note = read(png(levels, (1, 8, 0, 1)))
    assert note == "converted from linear light to sRGB"
    light = picture() / 255
    wanted = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055) * 255
    np.testing.assert_allclose(rgb.astype(int), wanted, atol=1)
    assert read(png(levels, (1, 4, 0, 1)))[1] == "converted from gamma 2.2 to sRGB"
    with pytest.raises(ImageError, match="transfer number 9, which few programs show; convert it to sRGB"):
        read(png(levels, (1, 9, 0, 1)))


@needs_avif
def test_hdr_avif_is_tone_mapped_or_refused() -> None:
    data = bytearray(encode(Image.fromarray(picture(64, 96)), "AVIF"))
    at = data.find(b"colrnclx") + 8
    data[at : at + 6] = struct.pack(">3H", 9, 16, 9)
    try:
        assert "tone-mapped" in read(bytes(data))[1]
    except ImageError as error:
        assert "HDR (PQ)" in str(error)  # noqa: PT017 - either is right, by OpenCV's version


# White over a quarter of grey, 10 bits in PQ; its clean aperture is the lower left, 10 x 8 of 16 x 16 pixels
DEEP_AVIF = base64.b64decode(
    "AAAAIGZ0eXBhdmlmAAAAAGF2aWZtaWYxbWlhZk1BMUEAAAEbbWV0YQAAAAAAAAAoaGRscgAAAAAAAAAAcGljdAAAAAAAAAAAAAAAAGxpYmF2aWYA"
    "AAAADnBpdG0AAAAAAAEAAAAeaWxvYwAAAABEAAABAAEAAAABAAABQwAAABwAAAAoaWluZgAAAAAAAQAAABppbmZlAgAAAAABAABhdjAxQ29sb3IA"
    "AAAAk2lwcnAAAABzaXBjbwAAABRpc3BlAAAAAAAAABAAAAAQAAAAEHBpeGkAAAAAAwoKCgAAAAxhdjFDgSBAAAAAABNjb2xybmNseAAJABAACYAA"
    "AAAoY2xhcAAAAAoAAAABAAAACAAAAAH////9AAAAAQAAAAQAAAABAAAAGGlwbWEAAAAAAAAAAQABBQECgwSFAAAAJG1kYXQSAAoIOAz/2MJEAmQy"
    "DkSgAMMMMUB/uVQUZ0RJ"
)


@needs_avif
@pytest.mark.parametrize("hdr", [True, False])
def test_all_bits_of_an_avif_count_and_its_clean_aperture_alone_is_shown(hdr: bool) -> None:
    data = DEEP_AVIF if hdr else DEEP_AVIF.replace(struct.pack(">3H", 9, 16, 9), struct.pack(">3H", 1, 13, 6))
    try:
        rgb, _ = read(data)
    except ImageError as error:
        assert hdr and "not read by this OpenCV" in str(error)  # noqa: PT017, PT018
        return
    assert rgb.shape == (8, 10, 3)
    assert rgb[:, :8].max() < 60
    assert rgb[:, 8:].min() > 140


def matrix_profile(name: bytes, colorants: tuple[tuple[float, ...], ...], gamma: float) -> bytes:
    """A version-2 ICC profile of three colorants (in D50's XYZ) and one gamma."""
    fixed = [struct.pack(">4s4x3i", b"XYZ ", *(round(v * 65536) for v in xyz)) for xyz in colorants]
    curve = struct.pack(">4s4xIH2x", b"curv", 1, round(gamma * 256))
    text = struct.pack(">4s4xI", b"desc", len(name) + 1) + name + b"\0" + bytes(78)
    text += bytes(-len(text) % 4)
    white = struct.pack(">4s4x3i", b"XYZ ", 63190, 65536, 54061)
    copyright_ = b"text\0\0\0\0CC0\0"
    parts = [(b"desc", text), (b"cprt", copyright_), (b"wtpt", white)]
    parts += list(zip((b"rXYZ", b"gXYZ", b"bXYZ"), fixed, strict=True))
    parts += [(tag, curve) for tag in (b"rTRC", b"gTRC", b"bTRC")]
    at, table, body = 128 + 4 + 12 * len(parts), b"", b""
    for tag, data in parts:
        table += tag + struct.pack(">II", at + len(body), len(data))
        body += data
    size = at + len(body)
    header = struct.pack(">I4xI4s4s4s", size, 0x02100000, b"mntr", b"RGB ", b"XYZ ") + bytes(12) + b"acsp"
    header += bytes(68 - len(header)) + struct.pack(">3i", 63190, 65536, 54061)
    return header + bytes(128 - len(header)) + struct.pack(">I", len(parts)) + table + body


ADOBE = matrix_profile(
    b"Adobe RGB (1998)", ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)), 2.2
)
_CURVE = struct.pack(">4s4xIH2x", b"curv", 1, 256)
GREY_LIGHT = (  # linear light of grey
    struct.pack(">I4xI4s4s4s", 204, 0x02100000, b"mntr", b"GRAY", b"XYZ ").ljust(36, b"\0")
    + b"acsp".ljust(32, b"\0")
    + struct.pack(">3i", 63190, 65536, 54061).ljust(60, b"\0")
    + struct.pack(">I4sII4sII", 2, b"kTRC", 156, 16, b"wtpt", 172, 20)
    + _CURVE
    + struct.pack(">4s4x3i", b"XYZ ", 63190, 65536, 54061)
    + bytes(12)
)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_profile_of_srgb_changes_no_pixel(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    plain, with_profile = (
        encode(Image.fromarray(picture()), kind, **options, **o) for o in ({}, {"icc_profile": SRGB})
    )
    rgb, note = read(with_profile)
    np.testing.assert_array_equal(rgb, decode(plain))
    np.testing.assert_array_equal(rgb, cv2.imdecode(np.frombuffer(plain, np.uint8), cv2.IMREAD_COLOR)[..., ::-1])
    assert not note


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("alpha", [False, True])
def test_another_profile_is_converted_and_said(kind: str, alpha: bool) -> None:
    if alpha and kind == "JPEG":
        pytest.skip("has no alpha")
    colour = np.full((8, 8, 3), (60, 180, 60), np.uint8)
    image = Image.fromarray(np.dstack([colour, np.full((8, 8), 255, np.uint8)]) if alpha else colour)
    options = {"JPEG": {"quality": 100}, "WEBP": {"lossless": True}}.get(kind, {})
    rgb, note = read(encode(image, kind, icc_profile=ADOBE, **options))
    assert note == "converted from Adobe RGB (1998) to sRGB"
    assert rgb[0, 0, 0] < 10  # more green than sRGB has
    assert 170 < rgb[0, 0, 1] < 190


@needs_avif
def test_a_profile_beside_numbers_that_say_nothing_is_converted() -> None:
    colour = np.full((64, 64, 3), (60, 180, 60), np.uint8)
    data = encode(Image.fromarray(colour), "AVIF", quality=100, icc_profile=ADOBE)
    assert b"colrnclx" in data
    assert read(data)[1] == "converted from Adobe RGB (1998) to sRGB"


def test_profiles_that_cannot_be_used_are_ignored_and_said() -> None:
    for profile in (b"no profile", ADOBE[:200], SRGB[:150]):
        rgb, note = read(encode(Image.fromarray(picture()), "PNG", icc_profile=profile))
        np.testing.assert_array_equal(rgb, picture())
        assert "ignored" in note
    rgb, note = read(encode(Image.fromarray(picture()[..., 0]), "PNG", icc_profile=ADOBE))
    assert note == "its colour profile is for RGB and ignored"


# ---- orientation


def test_orientation_in_xmp_alone_is_not_applied() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = encode(Image.fromarray(picture()), "JPEG", xmp=xmp)
    assert decode(data).shape == picture().shape
    tagged = Image.Exif()
    tagged[0x0112] = 6
    assert decode(encode(Image.fromarray(picture()), "JPEG", xmp=xmp, exif=tagged)).shape == (40, 24, 3)


# ---- PNM


@pytest.mark.parametrize("number", range(1, 7))
@pytest.mark.parametrize("white", [1, 7, 255, 1000, 65535])
def test_every_pnm_is_as_pillow_reads_it(number: int, white: int) -> None:
    rng = np.random.default_rng(number)
    grey, shape = number in (2, 5), (5, 9) if number not in (3, 6) else (5, 9, 3)
    if number in (1, 4):
        white = 1
    levels = rng.integers(0, white + 1, shape)
    levels.flat[0] = white
    head = f"P{number}\n# a comment\n9 5\n" + ("" if number in (1, 4) else f"{white}\n")
    if number < 4:
        body = "\n".join(" ".join(map(str, row.ravel())) for row in levels).encode()
    elif number == 4:
        body = np.packbits(levels.astype(np.uint8), axis=1).tobytes()
    else:
        body = levels.astype(np.uint8 if white < 256 else ">u2").tobytes()
    data = head.encode() + body
    pillow = Image.open(io.BytesIO(data))
    wanted = np.asarray(pillow.convert("L") if number in (1, 4) else pillow)
    wanted = wanted >> 8 if wanted.dtype != np.uint8 else wanted
    wanted = wanted if wanted.ndim == 3 else np.repeat(wanted[..., None], 3, axis=2)
    if white > 255 and not grey:
        wanted = np.rint(levels * (65535 / white)).astype(int) >> 8  # Pillow makes 8 bits of it by rounding
    np.testing.assert_array_equal(decode(data), wanted)


@pytest.mark.parametrize(
    "data", [b"P6\n4 4\n255\n" + bytes(40), b"P3\n4 4\n255\n1 2 3", b"P1\n4 4\n1010", b"P4\n9 4\n" + bytes(3)]
)
def test_truncated_pnm_says_so(data: bytes) -> None:
    with pytest.raises(ImageError, match="PPM: truncated"):
        decode(data)


@pytest.mark.parametrize(
    "data", [b"P2\n2 2\n255\n1 2 3 999", b"P2\n2 2\n255\n1 2 3 x", b"P1\n2 2\n1 0 1 7", b"P2\n2 2\n9\n1 -2 3 4"]
)
def test_damaged_pnm_says_so(data: bytes) -> None:
    with pytest.raises(ImageError, match="PPM: damaged"):
        decode(data)


def test_a_copy_that_is_marked_in_the_old_way_is_passed_over() -> None:
    tifffile = pytest.importorskip("tifffile")
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(picture()[::4, ::4], photometric="rgb", extratags=[(255, "H", 1, 2, True)])
        writer.write(picture(), photometric="rgb")
    rgb, note = read(file.getvalue())
    assert np.array_equal(rgb, picture())
    assert note == "page 2: those before it are reduced copies or masks"


def test_a_thumbnail_that_nothing_marks_is_passed_over() -> None:
    page = Image.fromarray(picture(240, 400))
    thumbnail = page.resize((121, 73))
    rgb, note = read(encode(thumbnail, "TIFF", save_all=True, append_images=[page, page.resize((200, 120))]))
    assert np.array_equal(rgb, np.asarray(page))
    assert note == "page 2: those before it are reduced copies or masks"
    for other in (page.resize((400, 180)), page.resize((130, 78))):  # of another shape, and of nearly the same size
        rgb, note = read(encode(thumbnail, "TIFF", save_all=True, append_images=[other]))
        assert (rgb.shape, note) == ((73, 121, 3), "")


def test_tiff_pixels_that_pillow_does_not_know_are_named() -> None:
    tifffile = pytest.importorskip("tifffile")
    file = io.BytesIO()
    levels = np.dstack([picture()[..., :1].astype(np.uint16) * 257] * 2)
    tifffile.imwrite(file, levels, photometric="minisblack", extrasamples=["unassalpha"])
    with pytest.raises(ImageError, match="2 channels of 16 bits, which Pillow does not read; save as"):
        read(file.getvalue())
