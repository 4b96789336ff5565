"""Decode an image file's bytes, or an array, to upright RGB, uint8 [H,W,3]: the pixels a browser shows, or an error.

    bytes ──► open_image (first bytes, header, limits) ──► Opened.decode ──► Decoded (rgb, notes)

Nothing here keeps or changes global state, so every function may run in several threads at once.
"""

import io
import re
import struct
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from importlib import import_module
from typing import Any, cast

import cv2
import numpy as np
from PIL import Image

from dgiqa.dtypes import Array, UInt8
from dgiqa.errors import ImageError
from dgiqa.extras import install
from dgiqa.image import colours, jp2, jpeg, png, pnm, tiff, zeros
from dgiqa.image.arrays import AS_STORED, BAND, check_levels, rgb_of, to_uint8, upright
from dgiqa.image.arrays import as_rgb as as_rgb
from dgiqa.image.kinds import HEAD, RAW, identify
from dgiqa.image.raw import BYTES_PER_PIXEL, NOTE, RawError, open_raw

Stop = Callable[[], bool]

MAX_PIXELS = 200_000_000  # today's largest phone sensor; more is refused before decoding
MAX_MEMORY = 13 << 26  # bytes (832 MiB) that decoding one picture may take, its file included

LAID = "transparent parts laid over white"
_ORIENTATION = 0x0112
_HAS_ALPHA = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
# Bytes per pixel, measured: of Pillow's image by its mode, and of a format's decoder in addition to it
_OF_MODE = {"1": 1, "L": 1, "P": 1, "I;16": 6, "I;16B": 6, "I;16L": 6, "I;16N": 6, "I": 14, "F": 14}
_OF_DECODER = {"WEBP": 12, "AVIF": 8, "HEIC": 8, "JPEG2000": 16, "TIFF": 4, "GIF": 4}
_OF_BAND = 32  # of all copies made of one band


@dataclass(frozen=True, eq=False)
class Decoded:
    """rgb: uint8 [H,W,3], upright; may be read-only. notes: remarks for a reader of its score, or none."""

    rgb: UInt8
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Opened:
    """An image whose header was read, but none of its pixels.

    kind: its format, "" if it came as pixels. width, height: as stored, before it is turned upright. memory: about the
    most bytes that decoding takes.
    """

    kind: str
    width: int
    height: int
    memory: int
    _data: bytes
    _read: Callable[[Stop | None], Decoded]

    def decode(self, stop: Stop | None = None) -> Decoded:
        """Decode the pixels. stop: called now and then; once it is true, concurrent.futures.CancelledError is raised.

        Raises ImageError if the file is damaged or truncated, or if its pixels have no defined appearance.
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
            what = f"truncated or damaged {self.kind}, {len(self._data)} bytes" if self.kind else "it cannot be read"
            raise ImageError(f"{what} ({type(error).__name__}: {error}); fetch or save it again") from error


def open_image(data: bytes, max_pixels: int = MAX_PIXELS, max_memory: int | None = None) -> Opened:
    """Read an image file's header.

    Formats: JPEG, PNG, WebP, BMP, GIF, TIFF, PPM, JPEG 2000, AVIF, HEIC if pillow-heif is installed, and cameras' raw
    photographs if rawpy is.
    max_memory: bytes; by default MAX_MEMORY, or no limit if `max_pixels` was raised.
    Raises ImageError if the file is empty, of another format, or over a limit, or if its header cannot be read.
    Pillow's own limit, which holds for the whole process, does not count.
    """
    kind, plugin = identify(bytes(data[:HEAD]))
    try:
        opened = (_open_raw if plugin == RAW else _OPEN.get(kind, _open_with_pillow))(kind, plugin, data)
    except ImageError:
        raise
    except Exception as error:  # SyntaxError, struct.error, OSError, ...: plugins raise many types on damaged headers
        what = f"its header cannot be read, {len(data)} bytes ({type(error).__name__}: {error})"
        fix = "fetch it again, or convert it to PNG or JPEG"
        raise ImageError(f"starts like {kind}, but {what}; {fix}") from error
    pixels = opened.width * opened.height
    if pixels > max_pixels:
        raise ImageError(
            f"{kind} of {opened.width} x {opened.height} = {pixels:,} pixels, limit {max_pixels:,}; "
            "shrink it, or raise max_pixels (--max-pixels) if you trust its source"
        )
    limit = max_memory or (MAX_MEMORY if max_pixels <= MAX_PIXELS else opened.memory)
    if opened.memory > limit:
        raise ImageError(
            f"{kind} of {opened.width} x {opened.height} takes about {opened.memory >> 20:,} MiB to decode, limit "
            f"{limit >> 20:,}; shrink it, or raise max_memory (--max-memory) if you trust its source"
        )
    return opened


def decode(data: bytes, max_pixels: int = MAX_PIXELS, max_memory: int | None = None) -> UInt8:
    """Decode an image file's bytes into upright RGB, uint8 [H,W,3]. Limits and errors as `open_image`.

    It takes the first frame, or the first page that is no reduced copy. EXIF's orientation is applied, transparency is
    laid over white, 16-bit files keep their high byte, HDR is tone-mapped, colour profiles are converted to sRGB.
    Photographs in sRGB give exactly the pixels of `cv2.imread`, which the authors used. The array may be read-only.
    A process that sets Pillow's ImageFile.LOAD_TRUNCATED_IMAGES gets some truncated files filled with grey.
    """
    return open_image(data, max_pixels, max_memory).decode().rgb


def of_pillow(image: Image.Image, max_pixels: int = MAX_PIXELS) -> Decoded:
    """The pixels of a Pillow image, equal to its file's. Raises ImageError if it is empty, and Pillow's own errors."""
    if image.width * image.height > max_pixels:
        raise ImageError(
            f"got {image.width} x {image.height} pixels, limit {max_pixels:,}; "
            "shrink it, or raise max_pixels (--max-pixels)"
        )
    if not image.width or not image.height:
        raise ImageError(f"got an empty image of {image.width} x {image.height}, wanted at least one pixel")
    image.load()
    return _finish(image, image.format or "", _orientation(image))


# ---- formats: each gives an Opened


def _open_with_pillow(kind: str, plugin: str, data: bytes) -> Opened:
    return _opened(_pillow(kind, plugin, data), kind, data)


def _opened(
    image: Image.Image, kind: str, data: bytes, read: Callable[[Stop | None], Decoded] | None = None, more: int = 0
) -> Opened:
    """more: bytes that decoding takes in addition to Pillow's."""
    memory = _memory(image, kind, data) + more
    return Opened(kind, *image.size, memory, data, read or (lambda stop: _loaded(image, kind, stop)))


def _open_jpeg(kind: str, plugin: str, data: bytes) -> Opened:
    try:
        scans = jpeg.inspect(data)  # before Pillow, which is slow with padding and metadata
    except ImageError as error:
        raise ImageError(f"JPEG: {error}") from error
    image = _pillow(kind, plugin, data)
    whole = data if scans.ended else data.rstrip(b"\xff") + jpeg.END
    direct = scans.plain and scans.components != 4  # Pillow converts ink
    pixels = image.width * image.height
    memory = 6 * pixels if image.info.get("progressive") else 0

    def read(stop: Stop | None) -> Decoded:
        if scans.ended:
            found = decoded(stop)
            return found if scans.complete else Decoded(found.rgb, (*found.notes, "not all of its scans are there"))
        try:
            if scans.plain and scans.complete and not whole.endswith(bytes(4) + jpeg.END):
                found = decoded(stop)
                return Decoded(found.rgb, (*found.notes, "its end marker is missing, its pixels are all there"))
        except ImageError as error:
            raise ImageError(f"truncated, {len(data)} bytes; fetch or save it again") from error
        raise ImageError(f"truncated, {len(data)} bytes; fetch or save it again")

    def decoded(stop: Stop | None) -> Decoded:
        if direct:
            levels = jpeg.pixels(whole, scans.components)
            return _finish_array(levels, _orientation(image), image.info.get("icc_profile"))
        if scans.plain:
            jpeg.pixels(whole, scans.components, eighth=True)
        return _loaded(image if scans.ended else _pillow(kind, plugin, whole), kind, stop)

    if direct:
        copied = _orientation(image) in AS_STORED or scans.components == 1 or image.info.get("icc_profile")
        memory += len(data) + pixels * (scans.components + (3 if copied else 0)) + _OF_BAND * min(pixels, BAND)
    else:
        memory += _memory(image, kind, data)
    return Opened(kind, *image.size, memory, data, read)


def _open_png(kind: str, plugin: str, data: bytes) -> Opened:
    meant = png.colours(data)  # before Pillow, which handles each chunk in Python
    image = _pillow(kind, plugin, data)
    key, most = image.info.get("transparency"), (1 << data[24]) - 1  # by its bits per channel
    if isinstance(key, int) and key <= most in (3, 15):  # Pillow scales the levels, but not the transparent one
        image.info["transparency"] = key * (255 // most)
    deep_key = most > 255 and isinstance(key, tuple)  # Pillow compares only the high bytes

    def read(stop: Stop | None) -> Decoded:
        png.check_sums(data)
        convert, _, hdr = colours.conversion(meant)
        if deep_key or (convert and (hdr or most > 255)):
            png.check_rows(data)
            levels, orientation = _all_bits(data), _orientation(image)
            return _finish_array(levels, orientation, image.info.get("icc_profile"), meant)
        if image.info.get("default_image"):  # an animation with a separate still picture before its first frame
            image.seek(1)
        return _loaded(image, kind, stop, meant=meant, check=lambda: _check_last_rows(image, data))

    return _opened(image, kind, data, read, 20 * image.width * image.height if meant or deep_key else 0)


def _check_last_rows(image: Image.Image, data: bytes) -> None:
    """Check the stream if one of the last two rows is zero: missing rows are, every other one if interlaced."""
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
        return _open_raw(str(found), plugin, data)
    except ImageError as error:
        raise ImageError(f"TIFF: {error}") from error
    notes = (f"page {page.number + 1}: those before it are reduced copies or masks",) if page.number else ()
    if page.opencv or _over_pillows_limit(page.width * page.height):
        memory = len(data) + page.width * page.height * (page.channels * -(-page.bits // 8) * 2 + 3)

        def read_array(stop: Stop | None) -> Decoded:
            tiff.check_pieces(data, page)
            found = _finish_array(tiff.read(data, page), 1, page.profile)
            return Decoded(found.rgb, found.notes + notes)

        return Opened(kind, page.width, page.height, memory, data, read_array)
    try:
        image = _pillow(kind, plugin, data)
    except SyntaxError as error:
        if "unknown pixel mode" not in str(error) or page.number:
            raise
        fix = "save as grey or RGB with 8 or 16 bits per channel"
        what = f"{page.channels} channel{'' if page.channels == 1 else 's'} of {page.bits} bits"
        raise ImageError(f"TIFF: pixels of {what}, which Pillow does not read; {fix}") from error

    def read(stop: Stop | None) -> Decoded:
        tiff.check_pieces(data, page)
        image.seek(page.number)
        image.load()  # newer Pillows turn it upright, which shows in its size
        if page.palette:
            image.putpalette(page.palette, "RGB;L")
        turned = image.size != (page.width, page.height) or not image.getexif().get(_ORIENTATION)
        found = _finish(image, kind, 1 if turned else page.orientation)
        image.close()
        return Decoded(found.rgb, found.notes + notes)

    image.seek(page.number)
    return Opened(kind, page.width, page.height, _memory(image, kind, data), data, read)


def _open_jp2(kind: str, plugin: str, data: bytes) -> Opened:
    header, image = jp2.header(data), _pillow(kind, plugin, data)
    bits = max(header.bits)

    def read(stop: Stop | None) -> Decoded:
        lost = jp2.longest_zeros(data, header)
        found = decoded(stop)
        if lost is not None and not jp2.is_periodic(found.rgb):
            raise zeros.lost(lost)
        return found

    def decoded(stop: Stop | None) -> Decoded:
        # Pillow holds Python's lock while it decodes: for ten seconds no thread would run and no signal be handled.
        # It turns the brightest deep colours black.
        levels = _by_opencv(data, bits) if header.plain or (bits > 8 and not header.converted) else None
        if levels is not None:
            return _finish_array(levels, _orientation(image), image.info.get("icc_profile"))
        if bits > 8 and image.mode != "I;16":
            raise ImageError(f"{bits} bits per channel in an unusual layout; save it with 8 bits per channel")
        if bits >= 8 or header.palette:
            return _loaded(image, kind, stop)
        image.load()  # Pillow shifts the levels, so that white is not white
        table = [round((level >> 8 - bits) * 255 / ((1 << bits) - 1)) for level in range(256)]
        return _finish(image.point(table * len(image.getbands())), kind, _orientation(image))

    return _opened(image, kind, data, read)


def _open_gif(kind: str, plugin: str, data: bytes) -> Opened:
    image: Any = _pillow(kind, plugin, data)
    left, top, right, bottom = image.tile[0][1]
    if (left, top, right, bottom) == (0, 0, *image.size):
        return _opened(image, kind, data)

    def read(stop: Stop | None) -> Decoded:
        found = _loaded(image, kind, stop)
        rgb = np.full_like(found.rgb, 255)  # white around its first frame, where Pillow shows the background colour
        rgb[top:bottom, left:right] = found.rgb[top:bottom, left:right]
        return Decoded(rgb, (LAID,))

    return _opened(image, kind, data, read)


def _open_webp(kind: str, plugin: str, data: bytes) -> Opened:
    width, height = _webp_size(data)
    image = None
    if not _over_pillows_limit(width * height):
        # Around its first frame an animation is transparent, whether its flag says so or not
        animated = data[12:16] == b"VP8X" and data[20] & 2
        image = _pillow(kind, plugin, data[:20] + bytes([data[20] | 16]) + data[21:] if animated else data)

    def read(stop: Stop | None) -> Decoded:
        zeros.check_webp(data, width * height)
        if image is not None:
            return _loaded(image, kind, stop)
        levels = _by_opencv(data)
        if levels is None:
            raise ImageError(f"truncated or damaged, {len(data)} bytes; fetch or save it again")
        return _finish_array(levels, 1)

    if image is not None:
        return _opened(image, kind, data, read)
    return Opened(kind, width, height, len(data) + 15 * width * height, data, read)


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height from the first chunk; (0, 0) if it is too short, so that Pillow reports the error."""
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
    """Open AVIF, or HEIC through pillow-heif."""
    image = _heic(data) if kind == "HEIC" else _pillow(kind, plugin, data)
    head = data[: data.find(b"mdat") if b"mdat" in data else None]
    meant = _nclx(head)
    box = _clean_aperture(head, *image.size) if kind == "AVIF" else None

    def read(stop: Stop | None) -> Decoded:
        zeros.check_heif(data)
        convert, _, hdr = colours.conversion(meant)
        if image.info.get("icc_profile") and not hdr:
            return _loaded(image, kind, stop, box=box)
        if convert and hdr:
            left, top, right, bottom = box or (0, 0, *image.size)
            levels = _deep_heic(data) if kind == "HEIC" else _all_bits(data, _depth(head))[top:bottom, left:right]
            return _finish_array(levels, 1 if kind == "HEIC" else _orientation(image), meant=meant)
        return _loaded(image, kind, stop, meant=meant, box=box)

    return _opened(image, kind, data, read, 8 * image.width * image.height if _depth(head) > 8 else 0)


def _open_raw(kind: str, plugin: str, data: bytes) -> Opened:
    """Open through LibRaw, which cannot be stopped while it works."""
    width, height, develop = open_raw(kind, data)
    memory = len(data) + BYTES_PER_PIXEL * width * height
    return Opened(kind, width, height, memory, data, lambda stop: Decoded(develop(), (NOTE,)))


def _heic(data: bytes) -> Image.Image:
    try:
        plugin = import_module("pillow_heif.as_plugin")
    except ImportError as error:
        raise ImageError(f"this is a HEIC photograph; {install('heic')} to read it, or convert it to JPEG") from error
    return cast(Image.Image, plugin.HeifImageFile(_Source(data)))


def _deep_heic(data: bytes) -> Array:
    heif = import_module("pillow_heif").open_heif(io.BytesIO(data), convert_hdr_to_8bit=False)
    return np.asarray(heif)


def _nclx(head: bytes) -> png.Colours | None:
    """The numbers in a HEIF container's colour box: primaries, transfer and matrix with 16 bits, then the range."""
    found = re.search(rb"colrnclx(.{7})", head, re.DOTALL)
    if found is None:
        return None
    primaries, transfer, matrix, last = struct.unpack(">3HB", found[1])
    return png.Colours(primaries, transfer, matrix, last >> 7)


def _depth(head: bytes) -> int:
    """Bits per channel of an AVIF file."""
    found = re.search(rb"av1C..(.)", head, re.DOTALL)
    flags = found[1][0] if found else 0
    return 8 + (2 if flags & 0x40 else 0) + (2 if flags & 0x20 else 0)


def _clean_aperture(head: bytes, width: int, height: int) -> tuple[int, int, int, int] | None:
    """The part of an AVIF file's pixels that is the picture: left, top, right, bottom. None if it is all of them."""
    found = re.search(rb"\0\0\0\x28clap(.{32})", head, re.DOTALL)
    w, wd, h, hd, x, xd, y, yd = struct.unpack(">4IiIiI", found[1]) if found else (0,) * 8
    if not (wd and hd and xd and yd):
        return None
    left, top = (width - w / wd) / 2 + x / xd, (height - h / hd) / 2 + y / yd
    box = tuple(map(round, (left, top, left + w / wd, top + h / hd)))
    return box if 0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height else None  # libavif's rule


_OPEN: dict[str, Callable[[str, str, bytes], Opened]] = {
    "JPEG": _open_jpeg,
    "PNG": _open_png,
    "PPM": _open_ppm,
    "TIFF": _open_tiff,
    "GIF": _open_gif,
    "WEBP": _open_webp,
    "JPEG2000": _open_jp2,
    "AVIF": _open_heif,
    "HEIC": _open_heif,
}


# ---- Pillow


class _Source(io.BytesIO):
    """A file that raises CancelledError when it is read once `stop` is true."""

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
    box: tuple[int, int, int, int] | None = None,
) -> Decoded:
    """Load a file's image, check it, convert it and release its memory. box: the part of it that is the picture."""
    if isinstance(image.fp, _Source):
        image.fp.stop = stop
    try:
        image.load()
        if check:
            check()
        return _finish(image.crop(box) if box else image, kind, _orientation(image), meant)
    finally:
        image.close()


def _pillow(kind: str, plugin: str, data: bytes) -> Image.Image:
    """Read only the header.

    The plugin is called directly, not through Image.open, which enforces Pillow's process-wide pixel limit; changing
    that would change it for every other user of Pillow in this process, too.
    """
    try:
        import_module(f"PIL.{plugin}")
        factory = Image.OPEN[kind][0]
    except (ImportError, KeyError) as error:
        raise ImageError(f"this Pillow was built without {kind}; install a newer one, or convert the file") from error
    return factory(_Source(data), "")


def _over_pillows_limit(pixels: int) -> bool:
    """Whether a plugin would enforce the process-wide limit; OpenCV then reads the file."""
    return Image.MAX_IMAGE_PIXELS is not None and pixels > 2 * Image.MAX_IMAGE_PIXELS


def _memory(image: Image.Image, kind: str, data: bytes) -> int:
    each = _OF_MODE.get(image.mode, 4) + 3 + _OF_DECODER.get(kind, 0)
    pixels = image.width * image.height
    return len(data) + each * pixels + _OF_BAND * min(pixels, BAND)


def _orientation(image: Image.Image) -> int:
    """The orientation in EXIF only: Pillow's own getexif also reads XMP, which no other program does."""
    tags = Image.Exif()
    try:
        if data := image.info.get("exif"):
            tags.load(data)
        elif not {"xmp", "XML:com.adobe.xmp"} & image.info.keys():
            tags = image.getexif()
        return int(tags.get(_ORIENTATION, 1))
    except Exception:  # damaged metadata must not cost the picture
        return 1


# ---- pixels


def _finish(image: Image.Image, kind: str, orientation: int, meant: png.Colours | png.Gamma | None = None) -> Decoded:
    """Convert a loaded Pillow image of any mode. meant: its colours, if the file gives them other than by a profile."""
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        levels = np.asarray(image)  # I: 16-bit PGM and, in older Pillows, PNG
        levels = levels.astype(np.uint16) if image.mode == "I" else levels
        key = image.info.get("transparency")
        hidden = levels == key if isinstance(key, int) else np.False_
        levels = np.where(hidden, np.uint16(65535), levels) if hidden.any() else levels
        found = _finish_array(levels, orientation, None if meant else image.info.get("icc_profile"))
        return Decoded(found.rgb, found.notes + ((LAID,) if hidden.any() else ()))
    alpha = "transparency" in image.info or image.mode in _HAS_ALPHA
    notes = []
    if kind == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        alpha, notes = False, ["its alpha is zero everywhere and taken as opaque, as viewers do"]
    grey = image.mode in ("L", "LA", "La")
    base = "L" if grey else "CMYK" if image.mode == "CMYK" and not alpha else "RGB"
    convert, note, _ = colours.conversion(meant, image.info.get("icc_profile"), base)
    notes += [note] if note else []
    mode = "RGBA" if alpha else "RGB" if base == "CMYK" and not convert else base
    least, most = [], []  # every band's alpha

    def rows_of(top: int, bottom: int) -> UInt8:
        band = image if bottom - top == image.height else image.crop((0, top, image.width, bottom))
        band = band.convert("LA") if band.mode == "La" else band  # the only mode that Pillow converts it to
        band = band if band.mode == mode else band.convert(mode)
        if convert and not (meant or alpha):
            return convert(band)
        levels = np.asarray(band)
        if alpha:
            least.append(levels[..., 3].min())
            most.append(levels[..., 3].max())
        if convert and alpha:
            colour = convert(levels[..., 0] if grey and not meant else levels[..., :3])
            levels = np.dstack([colour, levels[..., 3]])
        elif convert:
            levels = convert(rgb_of(levels))
        return rgb_of(levels)

    try:
        rgb = upright((image.height, image.width), orientation, rows_of)
    except ValueError as error:  # CIE Lab, for one
        raise ImageError(f"{image.mode} pixels have no defined way to RGB; save as RGB") from error
    if alpha and min(least) < 255:
        notes.append(LAID if max(most) else "transparent everywhere: a white picture")
    return Decoded(rgb, tuple(notes))


def _finish_array(
    levels: Array, orientation: int, profile: bytes | None = None, meant: png.Colours | png.Gamma | None = None
) -> Decoded:
    """Convert levels [H,W], [H,W,1], [H,W,3] or [H,W,4] of a type that `as_rgb` takes, in these colours."""
    grey, alpha = levels.ndim == 2 or levels.shape[2] == 1, levels.shape[2:] == (4,)
    convert, note, _ = colours.conversion(meant, profile, "L" if grey else "RGB")
    if not (meant and convert):
        check_levels(levels)
    notes: tuple[str, ...] = (note,) if note else ()
    if alpha and levels[..., 3].min() < levels[..., 3].max():
        notes += (LAID,)
    if levels.dtype == np.uint8 and levels.shape[2:] == (3,) and not convert and orientation not in AS_STORED:
        return Decoded(levels, notes)

    def rows_of(top: int, bottom: int) -> UInt8:
        part = levels[top:bottom]
        if not convert:
            return rgb_of(part)
        own = part[..., :3] if not grey else np.dstack([part] * 3) if meant else part
        colour = convert(np.ascontiguousarray(own))
        return rgb_of(np.dstack([colour, to_uint8(part[..., 3])]) if alpha else colour)

    return Decoded(upright((levels.shape[0], levels.shape[1]), orientation, rows_of), notes)


def _all_bits(data: bytes, depth: int = 16) -> Array:
    """All bits of a PNG or AVIF file, as `_by_opencv` gives them. Raises ImageError if it fails."""
    levels = _by_opencv(data, depth)
    if levels is None:
        raise ImageError("deep or HDR, damaged or not read by this OpenCV; convert it to an SDR image in sRGB")
    return levels


def _by_opencv(data: bytes, depth: int = 16) -> Array | None:
    """All bits, which Pillow does not give: uint8 or uint16 [H,W], [H,W,3] or [H,W,4] in RGB order; None if it fails.

    depth: bits of the stored values, which OpenCV does not scale; they are scaled to 16 bits here.
    """
    try:
        levels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if levels is None or levels.dtype not in (np.uint8, np.uint16):
        return None
    if levels.ndim == 3 and levels.shape[2] >= 3:
        levels = cv2.cvtColor(levels, cv2.COLOR_BGR2RGB if levels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)
    if levels.dtype == np.uint16:
        levels <<= 16 - depth
    return np.asarray(levels)
