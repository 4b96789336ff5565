"""Bytes of an image file, or an array -> upright RGB, uint8 [H,W,3]: the pixels that a browser shows, or an error.

    bytes ──► open_image (first bytes, header, limits) ──► Opened.decode ──► Decoded (rgb, notes)

Nothing here keeps or changes global state, so every function may run in several threads at once.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dgiqa.errors import ImageError
from dgiqa.extras import install
from dgiqa.image import colours, jpeg, png, pnm, tiff, zeros
from dgiqa.image.arrays import BAND, as_rgb, check_levels, over_white, rgb_of, upright
from dgiqa.image.kinds import HEAD, RAW, identify
from dgiqa.image.raw import BYTES_PER_PIXEL, NOTE, RawError, open_raw

__all__ = [
    "HEAD",
    "MAX_MEMORY",
    "MAX_PIXELS",
    "Decoded",
    "Opened",
    "as_rgb",
    "decode",
    "identify",
    "of_pillow",
    "open_image",
]

UInt8 = NDArray[np.uint8]
Stop = Callable[[], bool]

MAX_PIXELS = 200_000_000  # refused before decoding: today's largest phone sensor
MAX_MEMORY = 13 << 26  # bytes (832 MiB) that one picture may take while it is decoded, its file included

_ORIENTATION = 0x0112
_HAS_ALPHA = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
# Bytes per pixel: of Pillow's image by its mode, and of what a format's decoder holds beside it. Measured.
_OF_MODE = {"1": 1, "L": 1, "P": 1, "I;16": 6, "I;16B": 6, "I;16L": 6, "I;16N": 6, "I": 14, "F": 14}
_OF_DECODER = {"WEBP": 12, "AVIF": 8, "HEIC": 8, "JPEG2000": 16, "TIFF": 4, "GIF": 4}
_OF_BAND = 32  # of the copies that one band goes through


@dataclass(frozen=True, eq=False)
class Decoded:
    """rgb: uint8 [H,W,3], upright; may be read-only. notes: what a reader of its score should know, or nothing."""

    rgb: UInt8
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Opened:
    """An image of which the header was read, and no pixel.

    kind: its format, "" if it came as pixels. width, height: as stored, before it is turned upright. memory: bytes that
    decoding takes at most, about.
    """

    kind: str
    width: int
    height: int
    memory: int
    _data: bytes
    _read: Callable[[Stop | None], Decoded]

    def decode(self, stop: Stop | None = None) -> Decoded:
        """The pixels. stop: asked now and then; once it is true, concurrent.futures.CancelledError is raised.

        Raises ImageError if the file is damaged or truncated, or has pixels whose look is not defined.
        """
        try:
            return self._read(stop)
        except ImageError as error:
            if not self.kind:
                raise
            raise ImageError(f"{self.kind}: {error}") from error
        except CancelledError:
            raise
        except Exception as error:  # decoders raise many types on damaged data
            raise ImageError(
                f"truncated or damaged {self.kind}, {len(self._data)} bytes ({type(error).__name__}: {error}); "
                "fetch or save it again"
            ) from error


def open_image(data: bytes, max_pixels: int = MAX_PIXELS, max_memory: int | None = None) -> Opened:
    """Read an image file's header.

    JPEG, PNG, WebP, BMP, GIF, TIFF, PPM, JPEG 2000, AVIF, HEIC where pillow-heif is installed, and raw photographs of
    cameras where rawpy is.
    max_memory: bytes; by default MAX_MEMORY, or whatever it takes where `max_pixels` was raised.
    Raises ImageError for anything else: empty, unknown, with a header that cannot be read, or over a limit. Pillow's
    own limit, which holds for the whole process, does not count.
    """
    kind, plugin = identify(bytes(data[:HEAD]))
    try:
        opened = (_open_raw if plugin == RAW else _OPEN.get(kind, _open_with_pillow))(kind, plugin, data)
    except ImageError:
        raise
    except Exception as error:  # struct.error, IndexError, ...: of damaged headers
        raise _unreadable(kind, data, error) from error
    pixels = opened.width * opened.height
    if pixels > max_pixels:
        raise ImageError(
            f"{kind} of {opened.width} x {opened.height} = {pixels:,} pixels, limit {max_pixels:,}; "
            "shrink it, or raise max_pixels if you trust its source"
        )
    limit = max_memory or (MAX_MEMORY if max_pixels <= MAX_PIXELS else opened.memory)
    if opened.memory > limit:
        raise ImageError(
            f"{kind} of {opened.width} x {opened.height} takes about {opened.memory >> 20:,} MiB to decode, limit "
            f"{limit >> 20:,}; shrink it, or raise max_memory if you trust its source"
        )
    return opened


def decode(data: bytes, max_pixels: int = MAX_PIXELS, max_memory: int | None = None) -> UInt8:
    """Decode an image file's bytes into upright RGB, uint8 [H,W,3]. Limits and errors as `open_image`.

    The first frame, or the first page that is no reduced copy. EXIF's orientation is applied, transparency is laid over
    white, 16-bit files keep their high byte, HDR is tone-mapped, colour profiles are converted to sRGB. Photographs in
    sRGB give the very pixels of `cv2.imread`, which the authors used. The array may be read-only.
    A process that sets Pillow's ImageFile.LOAD_TRUNCATED_IMAGES gets some truncated files filled with grey.
    """
    return open_image(data, max_pixels, max_memory).decode().rgb


def of_pillow(image: Image.Image, max_pixels: int = MAX_PIXELS) -> Decoded:
    """The pixels of a Pillow image, as those of its file. Raises ImageError if they cannot be had."""
    if image.width * image.height > max_pixels:
        raise ImageError(
            f"got {image.width} x {image.height} pixels, limit {max_pixels:,}; shrink it, or raise max_pixels"
        )
    if not image.width or not image.height:
        raise ImageError(f"got an empty image of {image.width} x {image.height}, wanted at least one pixel")
    try:
        image.load()
        return _finish(image, image.format or "", _orientation(image))
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(
            f"the image cannot be read ({type(error).__name__}: {error}); fetch or save it again"
        ) from error


# ---- formats: each gives an Opened


def _open_with_pillow(kind: str, plugin: str, data: bytes) -> Opened:
    image = _pillow(kind, plugin, data)

    return Opened(kind, *image.size, _memory(image, kind, data), data, lambda stop: _loaded(image, kind, stop))


def _open_jpeg(kind: str, plugin: str, data: bytes) -> Opened:
    try:
        scans = jpeg.inspect(data)  # before Pillow, which takes its time over padding and metadata
    except ImageError as error:
        raise ImageError(f"JPEG: {error}") from error
    image = _pillow(kind, plugin, data)
    whole = data if scans.ended else data.rstrip(b"\xff") + jpeg.END
    direct = scans.plain and scans.components != 4  # ink is Pillow's to convert
    pixels = image.width * image.height
    memory = 6 * pixels if image.info.get("progressive") else 0

    def read(stop: Stop | None) -> Decoded:
        if scans.ended:
            return decoded(stop)
        try:
            if scans.complete and not whole.endswith(bytes(4) + jpeg.END):
                found = decoded(stop)
                return Decoded(found.rgb, (*found.notes, "its end marker is missing, its pixels are all there"))
        except ImageError as error:
            raise ImageError(f"truncated, {len(data)} bytes; fetch or save it again") from error
        raise ImageError(f"truncated, {len(data)} bytes; fetch or save it again")

    def decoded(stop: Stop | None) -> Decoded:
        if direct:
            return _finish_levels(jpeg.pixels(whole, scans.components), image)
        if scans.plain:
            jpeg.pixels(whole, scans.components, eighth=True)
        return _loaded(image if scans.ended else _pillow(kind, plugin, whole), kind, stop)

    if direct:
        copied = _is_turned(image) or scans.components == 1 or image.info.get("icc_profile")
        memory += len(data) + pixels * (scans.components + (3 if copied else 0)) + _OF_BAND * min(pixels, BAND)
    else:
        memory += _memory(image, kind, data)
    return Opened(kind, *image.size, memory, data, read)


def _open_png(kind: str, plugin: str, data: bytes) -> Opened:
    meant = png.colours(data)  # before Pillow, which takes each chunk in Python
    image = _pillow(kind, plugin, data)

    def read(stop: Stop | None) -> Decoded:
        png.check_sums(data)
        convert, note, hdr = colours.conversion(meant)
        if convert and (hdr or data[24] == 16):  # bits per channel
            png.check_rows(data)
            return _converted(_all_bits(data), convert, note, _orientation(image))
        return _loaded(image, kind, stop, meant=meant, check=lambda: _check_last_rows(image, data))

    memory = _memory(image, kind, data)
    return Opened(kind, *image.size, memory + (20 * image.width * image.height if meant else 0), data, read)


def _check_last_rows(image: Image.Image, data: bytes) -> None:
    """Rows that a stream lacks are zero; in an interlaced picture that is every other row."""
    last = np.asarray(image.crop((0, max(0, image.height - 2), image.width, image.height)))
    if not all(row.any() for row in last):
        png.check_rows(data)


def _open_ppm(kind: str, plugin: str, data: bytes) -> Opened:
    header = pnm.header(data)
    each = (9 if header.number in (3, 6) else 6) + (40 if header.number < 4 else 0)
    memory = len(data) + header.width * header.height * (each + (6 if header.white > 255 else 0))
    return Opened(
        kind, header.width, header.height, memory, data, lambda stop: _finish_array(pnm.pixels(data, header), 1)
    )


def _open_tiff(kind: str, plugin: str, data: bytes) -> Opened:
    try:
        page = tiff.page_of(data)
    except RawError as found:
        return _open_raw(found.kind, plugin, data)
    except ImageError as error:
        raise ImageError(f"TIFF: {error}") from error
    notes = (f"page {page.number + 1}: those before it are reduced copies or masks",) if page.number else ()
    if page.opencv or _over_pillows_limit(page.width * page.height):
        memory = len(data) + page.width * page.height * (page.channels * -(-page.bits // 8) * 2 + 3)

        def read_array(stop: Stop | None) -> Decoded:
            tiff.check_pieces(data, page)
            found = _finish_array(tiff.read(data, page), 1)
            return Decoded(found.rgb, notes)

        return Opened(kind, page.width, page.height, memory, data, read_array)
    try:
        image = _pillow(kind, plugin, data)
    except ImageError as error:
        if "unknown pixel mode" not in str(error) or page.number:
            raise
        fix = "save as grey or RGB with 8 or 16 bits per channel"
        raise ImageError(f"TIFF: pixels of {page.pixels}, which Pillow does not read; {fix}") from error

    def read(stop: Stop | None) -> Decoded:
        tiff.check_pieces(data, page)
        image.seek(page.number)
        image.load()  # newer Pillows turn it upright, and say so by its size
        turned = image.size != (page.width, page.height) or not image.getexif().get(_ORIENTATION)
        found = _finish(image, kind, 1 if turned else page.orientation)
        image.close()
        return Decoded(found.rgb, found.notes + notes)

    image.seek(page.number)
    return Opened(kind, page.width, page.height, _memory(image, kind, data), data, read)


def _open_jp2(kind: str, plugin: str, data: bytes) -> Opened:
    image = _pillow(kind, plugin, data)

    def read(stop: Stop | None) -> Decoded:
        zeros.check_jp2(data)
        # Pillow holds Python's lock while it decodes: for ten seconds no thread would go on, and no signal be heard
        levels = _plain_jp2(data) if zeros.is_plain_jp2(data) else None
        return _loaded(image, kind, stop) if levels is None else _finish_levels(levels, image)

    return Opened(kind, *image.size, _memory(image, kind, data), data, read)


def _plain_jp2(data: bytes) -> UInt8 | None:
    """Grey [H,W,1] or colour [H,W,3] by OpenCV, None where it does not read the file."""
    try:
        levels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if levels is None or levels.dtype != np.uint8:
        return None
    return np.asarray(levels[..., None] if levels.ndim == 2 else cv2.cvtColor(levels, cv2.COLOR_BGR2RGB))


def _open_webp(kind: str, plugin: str, data: bytes) -> Opened:
    size = _webp_size(data)
    if not _over_pillows_limit(size[0] * size[1]):
        image = _pillow(kind, plugin, data)

        def read_pillow(stop: Stop | None) -> Decoded:
            zeros.check_webp(data, image.width * image.height)
            return _loaded(image, kind, stop)

        return Opened(kind, *image.size, _memory(image, kind, data), data, read_pillow)

    def read(stop: Stop | None) -> Decoded:
        zeros.check_webp(data, size[0] * size[1])
        levels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if levels is None:
            raise ImageError(f"truncated or damaged, {len(data)} bytes; fetch or save it again")
        return _finish_array(levels[..., [2, 1, 0, 3][: levels.shape[2]]], 1)

    return Opened(kind, *size, len(data) + 15 * size[0] * size[1], data, read)


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height by the first chunk; (0, 0) where Pillow is to say what is wrong with it."""
    kind, body = data[12:16], data[20:30]
    if len(body) < 10:
        return 0, 0
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF


def _open_heif(kind: str, plugin: str, data: bytes) -> Opened:
    """AVIF, and HEIC by pillow-heif."""
    image = _heic(data) if kind == "HEIC" else _pillow(kind, plugin, data)
    meant = _nclx(data)

    def read(stop: Stop | None) -> Decoded:
        zeros.check_heif(data)
        convert, note, hdr = colours.conversion(meant)
        if image.info.get("icc_profile") and not hdr:
            return _loaded(image, kind, stop)
        if convert and hdr:
            levels, orientation = (_all_bits(data), _orientation(image)) if kind == "AVIF" else (_deep_heic(data), 1)
            return _converted(levels, convert, note, orientation)
        return _loaded(image, kind, stop, meant=meant)

    return Opened(kind, *image.size, _memory(image, kind, data), data, read)


def _open_raw(kind: str, plugin: str, data: bytes) -> Opened:
    """By LibRaw, which cannot be stopped while it works."""
    width, height, develop = open_raw(kind, data)
    memory = len(data) + BYTES_PER_PIXEL * width * height
    return Opened(kind, width, height, memory, data, lambda stop: Decoded(develop(), (NOTE,)))


def _heic(data: bytes) -> Image.Image:
    try:
        plugin = import_module("pillow_heif.as_plugin")
    except ImportError as error:
        raise ImageError(f"this is a HEIC photograph; {install('heic')} to read it, or convert it to JPEG") from error
    return _header("HEIC", plugin.HeifImageFile, data)


def _deep_heic(data: bytes) -> NDArray[Any]:
    heif = import_module("pillow_heif").open_heif(io.BytesIO(data), convert_hdr_to_8bit=False)
    return np.asarray(heif)


def _nclx(data: bytes) -> png.Colours | None:
    """What a HEIF container's colour box says: primaries, transfer and matrix as 16-bit numbers, then the range."""
    end = data.find(b"mdat")
    found = re.search(rb"colrnclx(.{7})", data[: end if end > 0 else len(data)], re.DOTALL)
    if found is None:
        return None
    primaries, transfer, matrix = struct.unpack(">3H", found[1][:6])
    return png.Colours(primaries, transfer, matrix, found[1][6] >> 7)


_OPEN: dict[str, Callable[[str, str, bytes], Opened]] = {
    "JPEG": _open_jpeg,
    "PNG": _open_png,
    "PPM": _open_ppm,
    "TIFF": _open_tiff,
    "WEBP": _open_webp,
    "JPEG2000": _open_jp2,
    "AVIF": _open_heif,
    "HEIC": _open_heif,
}


# ---- Pillow


class _Source(io.BytesIO):
    """A file that stops being read when it is told to."""

    stop: Stop | None = None

    def read(self, size: int | None = -1) -> bytes:
        if self.stop is not None and self.stop():
            raise CancelledError
        return super().read(size)


def _loaded(
    image: Any,
    kind: str,
    stop: Stop | None,
    *,
    meant: png.Colours | png.Gamma | None = None,
    check: Callable[[], None] | None = None,
) -> Decoded:
    """Load a file's image, check what was loaded, and give its memory back."""
    if isinstance(image.fp, _Source):
        image.fp.stop = stop
    try:
        image.load()
        if check:
            check()
        return _finish(image, kind, _orientation(image), meant)
    finally:
        image.close()


def _pillow(kind: str, plugin: str, data: bytes) -> Image.Image:
    """Read the header only.

    The plugin is called directly, not through Image.open: that one enforces Pillow's process-wide pixel limit, which
    could only be changed for every other user of Pillow in this process, too.
    """
    try:
        import_module(f"PIL.{plugin}")
        factory = Image.OPEN[kind][0]
    except (ImportError, KeyError) as error:
        raise ImageError(f"this Pillow was built without {kind}; install a newer one, or convert the file") from error
    return _header(kind, lambda file: factory(file, ""), data)


def _header(kind: str, factory: Callable[[io.BytesIO], Image.Image], data: bytes) -> Image.Image:
    try:
        return factory(_Source(data))
    except Exception as error:  # SyntaxError, struct.error, OSError, ...: plugins raise many types on damaged headers
        raise _unreadable(kind, data, error) from error


def _unreadable(kind: str, data: bytes, error: Exception) -> ImageError:
    return ImageError(
        f"starts like {kind}, but its header cannot be read, {len(data)} bytes ({type(error).__name__}: {error})"
    )


def _over_pillows_limit(pixels: int) -> bool:
    """Whether a plugin would ask the process-wide limit; OpenCV then reads the file."""
    return Image.MAX_IMAGE_PIXELS is not None and pixels > 2 * Image.MAX_IMAGE_PIXELS


def _memory(image: Image.Image, kind: str, data: bytes) -> int:
    each = _OF_MODE.get(image.mode, 4) + 3 + _OF_DECODER.get(kind, 0)
    pixels = image.width * image.height
    return len(data) + each * pixels + _OF_BAND * min(pixels, BAND)


def _orientation(image: Image.Image) -> int:
    """EXIF's alone: Pillow's own getexif also asks XMP, which nobody else does."""
    tags = Image.Exif()
    try:
        if data := image.info.get("exif"):
            tags.load(data)
        elif not {"xmp", "XML:com.adobe.xmp"} & image.info.keys():
            tags = image.getexif()
        return int(tags.get(_ORIENTATION, 1))
    except Exception:  # damaged metadata must not cost the picture
        return 1


def _is_turned(image: Image.Image) -> bool:
    return _orientation(image) not in (0, 1)


# ---- pixels


def _finish(image: Image.Image, kind: str, orientation: int, meant: png.Colours | png.Gamma | None = None) -> Decoded:
    """A loaded Pillow image of any mode. meant: its colours, where the file says them apart from a profile."""
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        levels = np.asarray(image)  # I: 16-bit PGM and, in older Pillows, PNG
        return _finish_array(levels.astype(np.uint16) if image.mode == "I" else levels, orientation)
    alpha = "transparency" in image.info or image.mode in _HAS_ALPHA
    notes = []
    if kind == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        alpha, notes = False, ["its alpha is zero everywhere and taken as opaque, as viewers do"]
    base = image.mode if image.mode in ("L", "CMYK") and not alpha else "RGB"
    convert, note = colours.from_profile(image.info.get("icc_profile"), base) if meant is None else (None, "")
    widen, wide_note, _ = colours.conversion(meant)
    notes += [text for text in (note, wide_note) if text]
    least, most = [], []  # alpha, of every band

    def rows_of(top: int, bottom: int) -> UInt8:
        band = image if bottom - top == image.height else image.crop((0, top, image.width, bottom))
        if not alpha:
            return rgb_of(widened(coloured(band)))
        rgba = band.convert("RGBA")
        levels = np.array(rgba)
        least.append(levels[..., 3].min())
        most.append(levels[..., 3].max())
        if convert or widen:
            levels[..., :3] = widened(coloured(rgba))
        return np.ascontiguousarray(over_white(levels))

    def coloured(band: Image.Image) -> UInt8:
        if convert:
            return np.asarray(convert(band if band.mode == base else band.convert(base)))
        return np.asarray(band if band.mode in ("L", "RGB") else band.convert("RGB"))

    def widened(levels: UInt8) -> UInt8:
        return widen(rgb_of(levels)) if widen else levels

    try:
        rgb = upright((image.height, image.width), orientation, rows_of)
    except ValueError as error:  # CIE Lab, for one
        raise ImageError(f"{image.mode} pixels have no defined way to RGB; save as RGB") from error
    if alpha and min(least) < 255:
        notes.append("transparent parts laid over white" if max(most) else "transparent everywhere: a white picture")
    return Decoded(rgb, tuple(notes))


def _finish_levels(levels: UInt8, image: Image.Image) -> Decoded:
    """Grey [H,W,1] or colour [H,W,3] of a file of which Pillow read the header: its profile and its orientation."""
    grey, orientation = levels.shape[2] == 1, _orientation(image)
    convert, note = colours.from_profile(image.info.get("icc_profile"), "L" if grey else "RGB")
    if not (grey or convert or _is_turned(image)):
        return Decoded(levels, (note,) if note else ())

    def rows_of(top: int, bottom: int) -> UInt8:
        band = levels[top:bottom]
        return rgb_of(np.asarray(convert(Image.fromarray(band[..., 0] if grey else band))) if convert else band)

    return Decoded(upright(levels.shape[:2], orientation, rows_of), (note,) if note else ())


def _finish_array(levels: NDArray[Any], orientation: int) -> Decoded:
    """Levels [H,W], [H,W,1], [H,W,3] or [H,W,4] of a type that `as_rgb` takes."""
    check_levels(levels)
    size = (levels.shape[0], levels.shape[1])
    return Decoded(upright(size, orientation, lambda top, bottom: rgb_of(levels[top:bottom])))


def _all_bits(data: bytes) -> NDArray[Any]:
    """PNG and AVIF by OpenCV, which alone gives all of their bits: [H,W], [H,W,3] or [H,W,4] in RGB order."""
    levels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if levels is None:
        raise ImageError("deep or HDR, damaged or not read by this OpenCV; convert it to an SDR image in sRGB")
    if levels.ndim == 3 and levels.shape[2] >= 3:
        levels = levels[..., [2, 1, 0, 3][: levels.shape[2]]]
    return np.asarray(levels)


def _converted(levels: NDArray[Any], convert: colours.ToSrgb, note: str, orientation: int) -> Decoded:
    """Levels of 8 or 16 bits, [H,W], [H,W,3] or [H,W,4], to sRGB."""

    def rows_of(top: int, bottom: int) -> UInt8:
        part = levels[top:bottom]
        rgb = convert(np.ascontiguousarray(np.dstack([part] * 3) if part.ndim == 2 else part[..., :3]))
        if part.ndim == 2 or part.shape[-1] < 4:
            return rgb
        alpha = part[..., 3] if part.dtype == np.uint8 else (part[..., 3] >> 8).astype(np.uint8)
        return over_white(np.dstack([rgb, alpha]))

    rgb = upright((levels.shape[0], levels.shape[1]), orientation, rows_of)
    return Decoded(np.ascontiguousarray(rgb), (note,))
