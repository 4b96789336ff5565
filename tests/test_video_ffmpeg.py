"""FFmpeg's program is the reference: the same number of pictures, at the same times, that look the same."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from video_clips import RATE, UInt8, swaying, write

from dgiqa.video.frames import Video
from dgiqa.video.sampling import Sampling


def program() -> str | None:
    """The ffmpeg of the machine, or the one that imageio-ffmpeg brings."""
    if found := shutil.which("ffmpeg"):
        return found
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError):
        return None


FFMPEG = program()
pytestmark = pytest.mark.skipif(FFMPEG is None, reason="needs the ffmpeg program")

X265 = {"x265-params": "log-level=none:open-gop=1"}
CLIPS: dict[str, dict[str, Any]] = {
    "h264.mp4": {},
    "h264.mkv": {},
    "h264.ts": {},
    "h264.flv": {},
    "interlaced.ts": {"options": {"flags": "+ildct+ilme", "x264-params": "tff=1"}},
    "hevc.mp4": {"codec": "libx265", "options": X265},
    "hevc.ts": {"codec": "libx265", "options": X265},
    "mpeg2.ts": {"codec": "mpeg2video", "options": {"bf": "2", "q": "3"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": {"bf": "2", "q": "3"}},
    "mpeg4.avi": {"codec": "mpeg4"},
    "mjpeg.avi": {"codec": "mjpeg", "layout": "yuvj420p"},
    "vp8.webm": {"codec": "libvpx"},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "ffv1.nut": {"codec": "ffv1"},
    "ffv1-10bit.mkv": {"codec": "ffv1", "layout": "yuv422p10le"},
    "prores.mov": {"codec": "prores_ks", "layout": "yuv422p10le"},
}


def reference(path: Path, shape: tuple[int, ...]) -> tuple[list[float], UInt8]:
    """Times and pictures, uint8 [n,H,W,3], as the program gives them."""
    assert FFMPEG is not None
    flags = "bilinear+accurate_rnd+full_chroma_int"
    filters = f"showinfo,scale=flags={flags},format=rgb24"
    command = [FFMPEG, "-v", "info", "-i", str(path), "-an", "-vf", filters, "-fps_mode", "passthrough"]
    done = subprocess.run([*command, "-f", "rawvideo", "-"], capture_output=True, check=True, timeout=60)
    times = [float(t) for t in re.findall(r"pts_time:\s*(-?[\d.]+)", done.stderr.decode("utf-8", "replace"))]
    return times, np.frombuffer(done.stdout, np.uint8).reshape(-1, *shape)


def compare(path: Path) -> None:
    with Video(path, bars="keep") as video:
        found = list(video.frames(Sampling(every=0)))
    assert [f.error for f in found] == [""] * len(found)
    pictures = [f.rgb for f in found if f.rgb is not None]
    times, theirs = reference(path, pictures[0].shape)
    assert len(found) == len(theirs) == len(times)
    assert [f.time_s for f in found] == pytest.approx(times, abs=0.002)
    for mine, their in zip(pictures, theirs, strict=True):
        error = float(np.mean((mine.astype(float) - their) ** 2))
        assert 10 * np.log10(255**2 / max(error, 1e-9)) > 40


@pytest.mark.parametrize("name", CLIPS)
def test_pictures_and_times_are_those_of_the_program(tmp_path: Path, photos: dict[str, UInt8], name: str) -> None:
    how = dict(CLIPS[name])
    compare(write(tmp_path / name, swaying(photos["coffee"], 30), gop=12, **how))


@pytest.mark.parametrize("begins_s", [(0.0, 0.0), (0.0, 300.0), (300.0, 100.0)])
def test_time_goes_on_as_in_the_program(tmp_path: Path, photos: dict[str, UInt8], begins_s: tuple[float, ...]) -> None:
    joined = tmp_path / "joined.ts"
    data = b""
    for begin in begins_s:

        def later(frame: Any, begin: float = begin) -> None:
            frame.pts += round(begin * RATE)

        part = write(tmp_path / "part.ts", swaying(photos["rocket"], 30), mark=later, options={"bf": "0"})
        data += part.read_bytes()
    joined.write_bytes(data)
    compare(joined)
