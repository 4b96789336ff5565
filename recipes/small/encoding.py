"""Saves a picture and opens it again, as cameras, phones, sites and video services do: u8 [H,W,3] -> the same shape.

Codecs: jpeg (4:2:0 or 4:4:4), webp, avif (AV1), jp2, and one frame of h264 or hevc. A quality is in the codec's own
terms: 1..100 for stills; CRF 0..51 for video, where higher is worse.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Bytes = NDArray[np.uint8]
# Four steps each, from hardly visible to unusable.
SERIES = {
    "jpeg": (80, 40, 15, 6),
    "webp": (75, 35, 10, 1),
    "avif": (60, 35, 18, 5),
    "jp2": (20, 60, 130, 260),
    "h264": (23, 32, 40, 48),
    "hevc": (24, 33, 41, 49),
}
STILLS, VIDEO = ("jpeg", "webp", "avif"), ("h264", "hevc")


def save(rgb: Bytes, codec: str, quality: float, full_chroma: bool = False) -> Bytes:
    """The picture after `codec` at `quality`. full_chroma: 4:4:4 instead of 4:2:0, for jpeg and avif."""
    if codec in VIDEO:
        return _through_video(rgb, "libx264" if codec == "h264" else "libx265", quality)
    options: dict[str, Callable[[], dict[str, Any]]] = {
        "jpeg": lambda: {"format": "JPEG", "quality": int(quality), "subsampling": 0 if full_chroma else 2},
        "webp": lambda: {"format": "WEBP", "quality": int(quality), "method": 2},
        "avif": lambda: {
            "format": "AVIF",
            "quality": int(quality),
            "speed": 9,
            "max_threads": 1,
            "subsampling": "4:4:4" if full_chroma else "4:2:0",
        },
        "jp2": lambda: {
            "format": "JPEG2000",
            "quality_mode": "rates",
            "quality_layers": [quality],
            "irreversible": True,
        },
    }
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, **options[codec]())
    return np.asarray(Image.open(file).convert("RGB"))


def ordinary(rgb: Bytes, rng: np.random.Generator) -> Bytes:
    """Save as most pictures are stored: lossless one time in five, else by one codec at an acceptable quality."""
    draw = rng.random()
    if draw < 0.2:
        return rgb
    if draw < 0.6:
        return save(rgb, "jpeg", int(rng.integers(68, 97)), full_chroma=rng.random() < 0.3)
    if draw < 0.75:
        return save(rgb, "webp", int(rng.integers(70, 96)))
    if draw < 0.85:
        return save(rgb, "avif", int(rng.integers(55, 90)), full_chroma=rng.random() < 0.3)
    return save(rgb, "h264" if draw < 0.95 else "hevc", int(rng.integers(17, 27)))


def _through_video(rgb: Bytes, encoder: str, crf: float) -> Bytes:
    import av

    height, width = rgb.shape[:2]
    rgb = np.pad(rgb, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")  # 4:2:0 wants even sides
    coder = av.CodecContext.create(encoder, "w")
    coder.height, coder.width = rgb.shape[:2]
    coder.pix_fmt, coder.time_base = "yuv420p", Fraction(1, 25)
    coder.options = {"crf": str(int(crf)), "preset": "veryfast"} | _quiet(encoder)
    frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
    frame.pts, frame.time_base = 0, Fraction(1, 25)
    packets = [*coder.encode(frame), *coder.encode(None)]
    decoder = av.CodecContext.create("h264" if encoder == "libx264" else "hevc", "r")
    frames = [frame for packet in [*packets, None] for frame in decoder.decode(packet)]
    return np.asarray(frames[0].to_ndarray(format="rgb24"))[:height, :width]


def _quiet(encoder: str) -> dict[str, str]:
    if encoder == "libx265":
        return {"x265-params": "log-level=none:pools=none:frame-threads=1:bframes=0"}
    return {"threads": "1", "bf": "0"}
