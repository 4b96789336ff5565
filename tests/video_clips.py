"""Clips for the tests of video: written with PyAV, frame by frame, with known contents."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

av = pytest.importorskip("av", reason="video needs PyAV")

RATE = 25
UInt8 = NDArray[np.uint8]


def write(
    path: Any,
    frames: Iterable[UInt8],
    *,
    codec: str = "libx264",
    layout: str = "yuv420p",
    kind: str | None = None,
    times: Sequence[float] | None = None,
    gop: int = 10,
    options: dict[str, str] | None = None,
    prepare: Callable[[Any, Any], None] | None = None,
    mark: Callable[[Any], None] | None = None,
) -> Path:
    """Encode frames uint8 [H,W,3], at `times` seconds or RATE. prepare(container, stream), mark(frame): hooks."""
    base = Fraction(1, 1000) if times else Fraction(1, RATE)
    with av.open(str(path) if isinstance(path, Path) else path, "w", format=kind) as container:
        stream = None
        for i, picture in enumerate(frames):
            if stream is None:
                stream = container.add_stream(codec, rate=RATE, options=options or {})
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = layout
                stream.codec_context.gop_size = gop
                stream.codec_context.time_base = base
                stream.codec_context.thread_count = 1  # the same clip on any machine, and no frame waits for a core
                if prepare:
                    prepare(container, stream)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=layout, threads=1)
            frame.pts, frame.time_base = round(times[i] * 1000) if times else i, base
            if mark:
                mark(frame)
            container.mux(stream.encode(frame))
        if stream is not None:
            container.mux(stream.encode())
    return path


def numbered(count: int, width: int = 96, height: int = 64) -> Iterator[UInt8]:
    """Frames whose grey level says their number: 40 + number % 180, with a bright corner at the top left."""
    for i in range(count):
        frame = np.full((height, width, 3), 40 + i % 180, np.uint8)
        frame[: height // 4, : width // 4] = 235
        yield frame


def level(rgb: UInt8) -> int:
    """The number that `numbered` wrote into a frame, give or take the codec."""
    return round(float(np.median(rgb))) - 40


def swaying(
    photo: UInt8,
    count: int,
    *,
    width: int = 160,
    height: int = 120,
    change: Callable[[UInt8, float], UInt8] | None = None,
) -> Iterator[UInt8]:
    """A hand-held view of a photograph. change(frame, seconds): what happens to it over time."""
    still = cv2.resize(photo, (width + 24, height + 24), interpolation=cv2.INTER_AREA)
    for i in range(count):
        x, y = round(12 + 8 * np.sin(i / 20)), round(12 + 5 * np.cos(i / 26))
        frame = np.ascontiguousarray(still[y : y + height, x : x + width])
        yield frame if change is None else change(frame, i / RATE)


def blurred(first_s: float, last_s: float, sigma: float = 3.0) -> Callable[[UInt8, float], UInt8]:
    """A `change` that blurs a stretch of time."""
    return lambda f, s: np.asarray(cv2.GaussianBlur(f, (0, 0), sigma), np.uint8) if first_s <= s < last_s else f


def damage(path: Path, share: float, *, size: int = 400) -> None:
    """Overwrite bytes in the middle of the packet that lies at this share of the file's packets."""
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size and p.pos is not None]
    position, length = packets[int(share * len(packets))]
    with open(path, "r+b") as file:
        file.seek(position + min(12, length // 4))
        file.write(b"\xff" * max(4, min(size, length - 16)))


def truncate(path: Path, share: float) -> None:
    """Keep only the first part of a file."""
    os.truncate(path, int(os.path.getsize(path) * share))
