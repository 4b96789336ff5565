"""Identify a file by its first bytes: one of the supported formats, or something else that can be named."""

import re
from importlib.util import find_spec

from dgiqa.errors import ImageError

HEAD = 4096  # bytes to look at

RAW = "raw"  # instead of a Pillow plugin
# (format, Pillow plugin, pattern). Anything else never reaches a parser.
FORMATS = (
    # Cameras' raw photographs, which LibRaw develops. They come first, as some have TIFF's signature.
    ("CR2", RAW, rb"II\*\0....CR"),
    ("CR3", RAW, rb"....ftypcrx"),
    ("RAF", RAW, rb"FUJIFILMCCD-RAW"),
    ("ORF", RAW, rb"IIR[OS]|MMOR"),
    ("RW2", RAW, rb"IIU\0"),
    ("X3F", RAW, rb"FOVb"),
    ("MRW", RAW, rb"\0MRM"),
    ("JPEG", "JpegImagePlugin", rb"\xff\xd8\xff(?!\xf7)"),  # except JPEG-LS
    ("PNG", "PngImagePlugin", rb"\x89PNG\r\n\x1a\n"),
    ("WEBP", "WebPImagePlugin", rb"RIFF....WEBP"),
    ("BMP", "BmpImagePlugin", rb"BM"),
    ("GIF", "GifImagePlugin", rb"GIF8[79]a"),
    ("TIFF", "TiffImagePlugin", rb"II[*+]\0|MM\0[*+]"),
    ("PPM", "", rb"P[1-6][\s#]"),
    ("JPEG2000", "Jpeg2KImagePlugin", rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n"),
    ("AVIF", "AvifImagePlugin", rb"....ftyp(avi[fs]|m(if|sf)1.{4,64}avi[fs])"),
    ("HEIC", "", rb"....ftyp(hei[cmsx]|hev[cmsx]|m(if|sf)1.{4,64}he(i|v)[cmsx])"),
)
_VIDEO = "a video ({}): use dgiqa-rt video"
_CONVERT = "{}; convert it to PNG or JPEG"
_SVG = rb"(\xef\xbb\xbf)?\s*((<\?xml|<!--|<!DOCTYPE svg)[^>]{0,999}>\s*){0,9}<svg"
# Files often found under an image's name or address: (its kind and what to do, pattern).
_FOREIGN = (
    (_CONVERT.format("a JPEG-LS image"), rb"\xff\xd8\xff\xf7"),
    (_CONVERT.format("a JPEG XL image"), rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n"),
    (_CONVERT.format("a JPEG XR image"), rb"II\xbc"),
    (_CONVERT.format("a Photoshop document (PSD)"), rb"8BPS"),
    (_CONVERT.format("a GIMP image (XCF)"), rb"gimp xcf"),
    ("an OpenEXR image, whose light has no white level; tone-map it to PNG or JPEG", rb"v/1\x01"),
    ("a Radiance HDR image, whose light has no white level; tone-map it to PNG or JPEG", rb"#\?(RADIANCE|RGBE)"),
    ("a float image (PFM) without a white level; tone-map it to PNG or JPEG", rb"P[Ff]\s"),
    (_CONVERT.format("a PAM image"), rb"P7\s"),
    (_CONVERT.format("an icon (ICO)"), rb"\0\0[\1\2]\0[^\0]"),
    (_CONVERT.format("an icon (ICNS)"), rb"icns"),
    (_CONVERT.format("a DirectDraw texture (DDS)"), rb"DDS "),
    (_CONVERT.format("a KTX texture"), rb"\xabKTX "),
    (_CONVERT.format("a QOI image"), rb"qoif"),
    (_CONVERT.format("a BPG image"), rb"BPG\xfb"),
    (_CONVERT.format("a FLIF image"), rb"FLIF"),
    (_CONVERT.format("a PCX image"), rb"\x0a[\0-\5]\x01[\1\2\4\x08]"),
    (_CONVERT.format("an SGI image"), rb"\x01\xda[\0\1][\1\2]"),
    (_CONVERT.format("a Sun raster image"), rb"\x59\xa6\x6a\x95"),
    (_CONVERT.format("a DjVu document"), rb"AT&TFORM"),
    (_CONVERT.format("an MNG or JNG image"), rb"[\x8a\x8b][MJ]NG\r\n"),
    (_CONVERT.format("an XPM or XBM image"), rb"/\* XPM \*/|#define \w+_width"),
    (_CONVERT.format("a JBIG2 image"), rb"\x97JB2\r\n"),
    (_CONVERT.format("a Blizzard texture (BLP)"), rb"BLP[12]"),
    (_CONVERT.format("a CorelDRAW document"), rb"RIFF....CDR"),
    (_CONVERT.format("a Targa image (TGA), it seems"), rb".\0[\2\3\x0a\x0b]\0{5}.{8}[\x08\x10\x18\x20][\0\x08\x20(]"),
    (_CONVERT.format("a Windows metafile"), rb"\xd7\xcd\xc6\x9a|\x01\0\0\0.{36} EMF"),
    (_CONVERT.format("a FITS image"), rb"SIMPLE  ="),
    (_CONVERT.format("a DICOM image"), rb".{128}DICM"),
    ("a NumPy array: load it with numpy.load and score the array", rb"\x93NUMPY"),
    (_CONVERT.format("a HEIF image of another kind"), rb"....ftyp(mi[fa]1|msf1|heif|j2ki|vvic|evbi)"),
    (_VIDEO.format("MP4 or QuickTime"), rb"....(ftyp|moov|mdat|wide|free|skip|pnot)"),
    (_VIDEO.format("Matroska or WebM"), rb"\x1a\x45\xdf\xa3"),
    (_VIDEO.format("AVI"), rb"RIFF....AVI "),
    (_VIDEO.format("Flash"), rb"FLV\x01"),
    (_VIDEO.format("Ogg"), rb"OggS"),
    (_VIDEO.format("Windows Media"), rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),
    (_VIDEO.format("MPEG"), rb"\0\0\x01[\xba\xb3]|G.{187}G.{187}G|....G.{191}G"),
    (_VIDEO.format("YUV4MPEG"), rb"YUV4MPEG2"),
    ("a sound recording", rb"RIFF....WAVE|ID3|fLaC|\xff[\xfb\xf3\xf2]"),
    ("a PDF document; convert its page to PNG", rb"%PDF"),
    ("a PostScript document; convert its page to PNG", rb"%!PS|\xc5\xd0\xd3\xc6"),
    ("an SVG drawing; render it to PNG", _SVG),
    ("a web page, not an image", rb"\s*<(!doctype html|html|head|body)"),
    ("an archive; unpack it", rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!|\xfd7zXZ|BZh[1-9]|\x28\xb5\x2f\xfd"),
    ("a Git LFS pointer; git lfs pull fetches the file", rb"version https://git-lfs"),
    ("an image in base64; decode it first", rb"data:image/|/9j/[\w+/]{20}|iVBORw0KGgo[\w+/]{20}"),
    ("JSON text, perhaps a server's error", rb"\s*[{\[]\s*[\"{\[]"),
    ("a whole HTTP response; leave its header out", rb"HTTP/\d"),
)  # fmt: skip


def identify(head: bytes) -> tuple[str, str]:
    """(format, Pillow plugin or RAW) from a file's first HEAD bytes. ImageError says what other data look like."""
    if not head:
        raise ImageError("empty file: 0 bytes; fetch it again")
    for kind, plugin, pattern in FORMATS:
        if re.match(pattern, head, re.DOTALL):
            return kind, plugin
    for name, pattern in _FOREIGN:
        if re.match(pattern, head, re.DOTALL | re.IGNORECASE):
            raise ImageError(f"this is {name}")
    if not head.strip(b"\0"):
        raise ImageError(f"not an image: its first {len(head)} bytes are zero; the copy broke off, fetch it again")
    lacking = {RAW} if find_spec("pillow_heif") else {RAW, "HEIC"}
    known = ", ".join(kind for kind, plugin, _ in FORMATS if not lacking & {kind, plugin})
    raise ImageError(f"not an image: starts with {head[:16]!r}; readable are {known}")
