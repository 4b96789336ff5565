"""Decoded video frames (PyAV) -> upright RGB as a screen would show it: range, matrix, HDR, rotation, interlacing.

Bounds: an ordinary 8-bit frame passes through FFmpeg's scaler with accurate rounding and full chroma interpolation,
within 1 level of the equations of BT.601 / BT.709 / BT.2020. Matrix and range are read from every frame. Where the
stream lacks them, they are assumed: BT.709 from 720 lines on, else BT.601; limited range.
Non-square pixels are not stretched.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from dgiqa.dtypes import Array, UInt8
from dgiqa.errors import ImageError
from dgiqa.hdr import HDR, tone_map
from dgiqa.image.arrays import over_white
from dgiqa.video.sampling import THUMB

if TYPE_CHECKING:
    import av

Turn = tuple[int, int, int, int]

# Numbers of ITU-T H.273, which FFmpeg uses
MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}  # -> swscale's numbers; PyAV names the last from version 18 on
UNSPECIFIED, RGB = 2, 0
NAMED = {8: "YCgCo", 10: "BT.2020 constant luminance", 11: "YDzDx", 12: "chromaticity-derived"}
NAMED |= {13: NAMED[12], 14: "ICtCp", 15: "IPT-C2 (Dolby Vision)", 16: "YCgCo-Re", 17: "YCgCo-Ro"}
LIMITED, FULL = 1, 2

# Flags of FFmpeg's scaler, by number: PyAV names the last two from version 18 on
BILINEAR, FULL_CHR_H_INT, ACCURATE_RND = 0x2, 0x2000, 0x40000


def to_rgb(frame: av.VideoFrame, *, deinterlace: bool = False, turn: Turn | None = None) -> UInt8:
    """A decoded frame as upright RGB, uint8 [H,W,3].

    turn: how to turn it upright, as `turn_of` gives it. deinterlace: spatially, with FFmpeg's estdif, if the
    frame is marked as interlaced. HDR (PQ, HLG) is tone-mapped by `tone_map`. Transparent pixels are laid over white,
    as in images. Raises ImageError for colours without a defined way to RGB.
    """
    if frame.interlaced_frame:  # FFmpeg's newer scaler takes its chroma field by field; its program does not
        frame = _filtered(frame, *(("estdif", "mode=frame") if deinterlace else ("setfield", "prog")))
    if frame.color_trc in HDR:
        rgb = tone_map(_reformat(frame, "rgb48le"), frame.color_trc)
    else:
        alpha = frame.format.name == "pal8" or any(c.is_alpha for c in frame.format.components)
        rgb = over_white(_reformat(frame, "rgba")) if alpha else _reformat(frame, "rgb24")
    return _turned(rgb, turn)


def luma_thumbnail(frame: av.VideoFrame) -> UInt8:
    """The frame's luma, averaged over areas to uint8 [36,64]; not turned upright. A tenth of the time of `to_rgb`."""
    small = frame.reformat(width=THUMB[0], height=THUMB[1], format="gray", interpolation="AREA", threads=1)
    return np.asarray(small.to_ndarray(), np.uint8)


def of_planes(planes: UInt8) -> av.VideoFrame:
    """Planes uint8 [H*3/2,W] (Y, then U, then V) as a frame whose chroma samples are on the left, as video codecs do.

    Otherwise FFmpeg assumes that they are in the middle, as in JPEG, and colours at edges change by up to 20 levels.
    """
    import av

    frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
    frame.pts, frame.time_base = 0, Fraction(1, 1000)
    return _filtered(frame, "setparams", "chroma_location=left")


def notes(frame: av.VideoFrame, *, deinterlace: bool = False) -> str:
    """Remarks on the picture for a reader of the score, or ""."""
    parts = []
    if frame.interlaced_frame:
        parts.append("interlaced, deinterlaced by estdif" if deinterlace else "interlaced")
    if frame.color_trc in HDR:
        parts.append(f"{HDR[frame.color_trc]} tone-mapped to SDR")
    return "; ".join(parts)


def turn_of(frame: av.VideoFrame) -> Turn | None:
    """The display matrix's 2x2 part (a, b, c, d): x' = ax + cy, y' = bx + dy; None when the frame has none.

    Do not call it for every frame: PyAV's side data and their frame hold each other, so the frame lives until Python
    collects cycles. At 1080p that was 3 MB per frame, for hundreds of frames.
    """
    try:
        side_data: Any = frame.side_data
        data = bytes(side_data.get("DISPLAYMATRIX") or b"")
    except ValueError:  # of a kind that PyAV has no name for, such as EXIF of a JPEG
        data = b""
    if len(data) < 36:
        return None
    a, b, _, c, d = np.frombuffer(data, np.int32)[:5].tolist()
    return (a, b, c, d)


def matrix_number(colorspace: int, height: int) -> int:
    """swscale's number for a YCbCr matrix of H.273. Raises ImageError for matrices that it would get wrong."""
    if colorspace in (UNSPECIFIED, 3):
        return MATRICES[1 if height >= 720 else 5]
    if colorspace in MATRICES:
        return MATRICES[colorspace]
    name = NAMED.get(colorspace, f"number {colorspace}")
    raise ImageError(
        f"the video's colour matrix is {name}, which has no simple conversion to RGB; convert it to BT.709 first"
    )


def _reformat(frame: av.VideoFrame, layout: str) -> Array:
    options: dict[str, Any] = {"format": layout, "interpolation": BILINEAR | ACCURATE_RND | FULL_CHR_H_INT}
    if frame.format.is_rgb or frame.format.name.startswith(("gray", "pal8", "mono")):
        return np.asarray(frame.to_ndarray(**options))
    options["src_colorspace"] = matrix_number(frame.colorspace, frame.height)
    # yuvj formats are full range by their name; a range in the frame says so for the others
    full = frame.color_range == FULL or frame.format.name.startswith("yuvj")
    options["src_color_range"] = FULL if full else LIMITED
    options["dst_color_range"] = FULL
    return np.asarray(frame.to_ndarray(**options))


def _turned(rgb: UInt8, turn: Turn | None) -> UInt8:
    """The nearest of the eight orientations that a display matrix can mean."""
    if turn is None:
        return rgb
    a, b, c, d = turn
    if abs(b) > abs(a):  # x and y change places
        rgb = rgb.transpose(1, 0, 2)
        a, d = c, b
    if a < 0:
        rgb = rgb[:, ::-1]
    if d < 0:
        rgb = rgb[::-1]
    return np.ascontiguousarray(rgb)


def _filtered(frame: av.VideoFrame, name: str, options: str) -> av.VideoFrame:
    """One frame through a filter that needs no neighbours: sampled frames have none."""
    import av

    graph = av.filter.Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
    filter_ = graph.add(name, options)
    source.link_to(filter_)
    filter_.link_to(graph.add("buffersink"))
    graph.configure()
    graph.push(frame)
    graph.push(None)
    result = graph.pull()
    assert isinstance(result, av.VideoFrame)
    for kept in ("colorspace", "color_range", "color_trc", "color_primaries"):
        setattr(result, kept, getattr(frame, kept))
    return result
