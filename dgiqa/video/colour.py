"""Decoded video frames (PyAV) -> upright RGB as a screen would show it: range, matrix, HDR, rotation, interlacing.

Bounds: an ordinary 8-bit frame passes through FFmpeg's scaler with accurate rounding and full chroma interpolation,
within 1 level of the equations of BT.601 / BT.709 / BT.2020. Nothing is guessed where the stream says it: matrix and
range are read from every frame. Where it says nothing: BT.709 from 720 lines on, else BT.601; limited range.
Non-square pixels are not stretched.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dgiqa.errors import ImageError
from dgiqa.video.sampling import THUMB

if TYPE_CHECKING:
    import av

UInt8 = NDArray[np.uint8]
Turn = tuple[int, int, int, int]

# Numbers of ITU-T H.273, which FFmpeg uses
PQ, HLG = 16, 18  # transfer characteristics
MATRICES = {1: "itu709", 4: "fcc", 5: "itu601", 6: "smpte170m", 7: "smpte240m", 9: "bt2020"}
UNSPECIFIED, RGB = 2, 0
NAMED = {
    8: "YCgCo",
    10: "BT.2020 constant luminance",
    11: "YDzDx",
    12: "chromaticity-derived",
    13: "chromaticity-derived",
}
NAMED |= {14: "ICtCp", 15: "IPT-C2 (Dolby Vision)", 16: "YCgCo-Re", 17: "YCgCo-Ro"}
LIMITED, FULL = 1, 2

WHITE_NITS = 203.0  # what SDR's white becomes in HDR (BT.2408)
HLG_PEAK_NITS = 1000.0
KNEE = 0.6  # of SDR white: below it tones are kept, above it they are rolled off towards white
BT2020_TO_709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)


def to_rgb(frame: av.VideoFrame, *, deinterlace: bool = False, turn: Turn | None = None) -> UInt8:
    """A decoded frame as upright RGB, uint8 [H,W,3].

    turn: how to turn it upright, as `turn_of` gives it. deinterlace: spatially, with FFmpeg's estdif, if the
    frame is marked as interlaced. HDR (PQ, HLG) is tone-mapped by
    `tone_map`. Raises ImageError for colours without a defined way to RGB.
    """
    if deinterlace and frame.interlaced_frame:
        frame = _deinterlaced(frame)
    if frame.color_trc in (PQ, HLG):
        rgb = tone_map(_reformat(frame, "rgb48le"), "PQ" if frame.color_trc == PQ else "HLG")
    else:
        rgb = _reformat(frame, "rgb24")
    return _turned(rgb, turn)


def luma_thumbnail(frame: av.VideoFrame) -> UInt8:
    """The frame's luma, averaged over areas to uint8 [36,64]; not turned upright. A tenth of the time of `to_rgb`."""
    small = frame.reformat(width=THUMB[0], height=THUMB[1], format="gray", interpolation="AREA")
    return np.asarray(small.to_ndarray(), np.uint8)


class Planes:
    """Turns planes without a container into frames whose chroma samples lie where video codecs put them: left.

    Without it FFmpeg takes them to lie in the middle, as in JPEG, and colours at edges move by up to 20 levels.
    """

    def __init__(self, width: int, height: int) -> None:
        import av

        self._graph = graph = av.filter.Graph()
        self._ticks = Fraction(1, 1000)
        source = graph.add_buffer(width=width, height=height, format=av.VideoFormat("yuv420p"), time_base=self._ticks)
        sited, sink = graph.add("setparams", "chroma_location=left"), graph.add("buffersink")
        source.link_to(sited)
        sited.link_to(sink)
        graph.configure()

    def frame(self, planes: UInt8) -> av.VideoFrame:
        """Planes uint8 [H*3/2,W] (Y, then U, then V) as a yuv420p frame."""
        import av

        frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        frame.pts, frame.time_base = 0, self._ticks
        self._graph.push(frame)
        result = self._graph.pull()
        assert isinstance(result, av.VideoFrame)
        return result


def notes(frame: av.VideoFrame, *, deinterlace: bool = False) -> str:
    """What a reader of the score should know about the picture, or nothing."""
    parts = []
    if frame.interlaced_frame:
        parts.append("interlaced, deinterlaced by estdif" if deinterlace else "interlaced")
    if frame.color_trc in (PQ, HLG):
        parts.append(f"HDR ({'PQ' if frame.color_trc == PQ else 'HLG'}) tone-mapped to SDR")
    return "; ".join(parts)


def turn_of(frame: av.VideoFrame) -> Turn | None:
    """The display matrix's 2x2 part (a, b, c, d): x' = ax + cy, y' = bx + dy; None when the frame has none.

    Not for every frame: PyAV's side data and their frame hold each other, so that a frame asked for them lives until
    Python looks for cycles. At 1080p that was 3 MB per frame, hundreds of frames long.
    """
    side_data: Any = frame.side_data
    data = next((bytes(s) for s in side_data if s.type.name == "DISPLAYMATRIX"), b"")
    if len(data) < 36:
        return None
    a, b, _, c, d = np.frombuffer(data, np.int32)[:5].tolist()
    return (a, b, c, d)


def tone_map(rgb: NDArray[np.uint16], transfer: str) -> UInt8:
    """HDR as coded, uint16 [H,W,3] in BT.2020 -> SDR, uint8 [H,W,3] in BT.709.

    transfer "PQ" (SMPTE ST 2084) or "HLG" (BT.2100, for a 1000-nit screen). To light, 203 nits becoming 1; primaries
    to BT.709, clipped; a brightest channel x above KNEE is rolled off to KNEE + (1 - KNEE)(1 - exp(-(x - KNEE)/(1 -
    KNEE))), the others in proportion, so that hues stay; then sRGB's curve. One fixed curve: no metadata is used, and
    equal code values always give equal pixels.
    """
    light = _pq_light()[rgb] if transfer == "PQ" else _hlg_light(rgb)
    light = np.maximum(cv2.transform(light, BT2020_TO_709), 0)
    peak = light.max(axis=2, keepdims=True)
    rolled = KNEE + (1 - KNEE) * (1 - np.exp(-(np.maximum(peak, KNEE) - KNEE) / (1 - KNEE)))
    light *= np.where(peak > KNEE, rolled / np.maximum(peak, 1e-6), 1)
    return np.asarray(_srgb_levels()[(light * 4095 + 0.5).astype(np.uint16)])


def matrix_name(colorspace: int, height: int) -> str:
    """swscale's name of a YCbCr matrix by its H.273 number. Raises ImageError for those it would get wrong."""
    if colorspace in (UNSPECIFIED, 3):
        return "itu709" if height >= 720 else "itu601"
    if colorspace in MATRICES:
        return MATRICES[colorspace]
    name = NAMED.get(colorspace, f"number {colorspace}")
    raise ImageError(f"the video's colour matrix is {name}, which has no simple way to RGB; convert it to BT.709 first")


def _reformat(frame: av.VideoFrame, layout: str) -> NDArray[Any]:
    from av.video.reformatter import Interpolation

    how = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
    options: dict[str, Any] = {"format": layout, "interpolation": int(how)}
    if frame.format.is_rgb or frame.format.name.startswith(("gray", "pal8", "mono")):
        return np.asarray(frame.to_ndarray(**options))
    options["src_colorspace"] = matrix_name(frame.colorspace, frame.height)
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


def _deinterlaced(frame: av.VideoFrame) -> av.VideoFrame:
    """One frame through estdif, which needs no neighbours: sampled frames have none."""
    import av

    graph = av.filter.Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
    deinterlacer = graph.add("estdif", "mode=frame")
    source.link_to(deinterlacer)
    deinterlacer.link_to(graph.add("buffersink"))
    graph.configure()
    graph.push(frame)
    graph.push(None)
    result = graph.pull()
    assert isinstance(result, av.VideoFrame)
    for name in ("colorspace", "color_range", "color_trc", "color_primaries"):
        setattr(result, name, getattr(frame, name))
    return result


@lru_cache(1)
def _pq_light() -> NDArray[np.float32]:
    """Light of every 16-bit PQ code, in units of WHITE_NITS: f32 [65536]."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    power = (np.arange(65536) / 65535) ** (1 / m2)
    return (10000 / WHITE_NITS * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)).astype(np.float32)


@lru_cache(1)
def _hlg_scene() -> NDArray[np.float32]:
    """Scene light in [0, 1] of every 16-bit HLG code: f32 [65536]."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    code = np.arange(65536) / 65535
    return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12).astype(np.float32)


def _hlg_light(rgb: NDArray[np.uint16]) -> NDArray[np.float32]:
    """BT.2100's system gamma 1.2 on luminance turns scene light into that of the screen, in units of WHITE_NITS."""
    scene = _hlg_scene()[rgb]
    luminance = cv2.transform(scene, np.array([[0.2627, 0.6780, 0.0593]], np.float32))
    gain = np.maximum(luminance.reshape(*scene.shape[:2], 1), 1e-6) ** 0.2
    return np.asarray(scene * gain * np.float32(HLG_PEAK_NITS / WHITE_NITS), np.float32)


@lru_cache(1)
def _srgb_levels() -> UInt8:
    """sRGB level of light in 4096 steps, 0 to 1: uint8 [4096]. Steps are coarse only in the darkest ten levels."""
    light = np.arange(4096) / 4095
    curve = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(curve * 255), np.uint8)
