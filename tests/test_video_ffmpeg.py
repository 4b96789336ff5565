"""FFmpeg's program is the reference: the same number of pictures, at the same times, that look the same."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from video_clips import RATE, UInt8, av, swaying, write
from waiting import PATIENCE_S

from dgiqa.video.frames import Video
from dgiqa.video.sampling import Sampling
from dgiqa.video.source import Reading


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

SIDES = (256, 120)  # DNxHR takes no less
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
    "h264.mov": {},
    "h264.avi": {"options": {"bf": "0"}},
    "h264.h264": {},
    "h264-10bit.mkv": {"layout": "yuv420p10le"},
    "hevc.mkv": {"codec": "libx265", "options": X265},
    "hevc.hevc": {"codec": "libx265", "options": X265},
    "av1.mp4": {"codec": "libsvtav1", "options": {"preset": "10"}},
    "av1.webm": {"codec": "libsvtav1", "options": {"preset": "10"}},
    "vp9.mp4": {"codec": "libvpx-vp9"},
    "mpeg1.mpg": {"codec": "mpeg1video", "options": {"q": "3"}},
    "mpeg2.m2v": {"codec": "mpeg2video", "kind": "mpeg2video", "options": {"bf": "0", "q": "3"}},
    "mpeg4.mp4": {"codec": "mpeg4"},
    "mpeg4.mkv": {"codec": "mpeg4", "options": {"bf": "2"}},
    "mjpeg.mkv": {"codec": "mjpeg", "layout": "yuvj420p"},
    "mjpeg.mov": {"codec": "mjpeg", "layout": "yuvj422p"},
    "ffv1.mkv": {"codec": "ffv1"},
    "ffv1-12bit.mkv": {"codec": "ffv1", "layout": "yuv444p12le"},
    "ffv1-grey.mkv": {"codec": "ffv1", "layout": "gray"},
    "png.mov": {"codec": "png", "layout": "rgb24"},
    "wmv2.wmv": {"codec": "wmv2"},
    "flv1.flv": {"codec": "flv"},
    "gif.gif": {"codec": "gif", "layout": "rgb8"},
    "apng.apng": {"codec": "apng", "layout": "rgb24"},
    "huffyuv.avi": {"codec": "huffyuv", "layout": "yuv422p"},
    "dnxhd.mov": {"codec": "dnxhd", "layout": "yuv422p", "options": {"profile": "dnxhr_sq", "b": "36M"}},
    "jpeg2000.mkv": {"codec": "jpeg2000", "layout": "yuv420p"},
    "raw.y4m": {"codec": "wrapped_avframe"},
    "raw.mov": {"codec": "rawvideo", "layout": "yuyv422"},
    "h264.3gp": {},
    "h264-422.mp4": {"layout": "yuv422p"},
    "h264-444.mp4": {"layout": "yuv444p"},
    "hevc.mov": {"codec": "libx265", "options": X265},
    "hevc-10bit.mp4": {"codec": "libx265", "options": X265, "layout": "yuv420p10le"},
    "h263.3gp": {"codec": "h263", "sides": (176, 144)},
    "vp8.mkv": {"codec": "libvpx"},
    "vp9.mkv": {"codec": "libvpx-vp9"},
    "vp9-odd.webm": {"codec": "libvpx-vp9", "sides": (161, 121)},
    "vp9-444.webm": {"codec": "libvpx-vp9", "layout": "yuv444p"},
    "av1.mkv": {"codec": "libsvtav1", "options": {"preset": "10"}},
    "theora.ogv": {"codec": "libtheora", "options": {"q": "9"}},
    "wmv1.wmv": {"codec": "wmv1"},
    "msmpeg4.avi": {"codec": "msmpeg4"},
    "mpeg4-b.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "mpeg2.mxf": {"codec": "mpeg2video", "options": {"bf": "2", "q": "3"}},
    "mpeg2-422.ts": {"codec": "mpeg2video", "layout": "yuv422p", "options": {"q": "3"}},
    "prores4444.mov": {"codec": "prores_ks", "layout": "yuv444p10le"},
    "ffv1-odd.mkv": {"codec": "ffv1", "sides": (161, 121)},
    "mjpeg-odd.mov": {"codec": "mjpeg", "layout": "yuvj420p", "sides": (161, 121)},
    "dv.avi": {"codec": "dvvideo", "layout": "yuv420p", "sides": (720, 576)},
    "vfr.mp4": {"times": [0.0, 0.04, 0.2, 0.24, 0.4, 0.44, 0.48, 1.0, 1.04, 1.2]},
    "vfr.mkv": {"times": [0.1 * i**1.3 for i in range(10)], "options": {"bf": "0"}},
}


def reference(path: Path, shape: tuple[int, ...]) -> tuple[list[float], UInt8]:
    """Times and pictures, uint8 [n,H,W,3], as the program gives them."""
    assert FFMPEG is not None
    flags = "bilinear+accurate_rnd+full_chroma_int"
    filters = f"showinfo,scale=flags={flags},format=rgb24"
    command = [FFMPEG, "-v", "info", "-i", str(path), "-an", "-vf", filters, "-fps_mode", "passthrough"]
    done = subprocess.run([*command, "-f", "rawvideo", "-"], capture_output=True, check=True, timeout=PATIENCE_S)
    times = [float(t) for t in re.findall(r"pts_time:\s*(-?[\d.]+)", done.stderr.decode("utf-8", "replace"))]
    return times, np.frombuffer(done.stdout, np.uint8).reshape(-1, *shape)


def compare(path: Path) -> None:
    with Video(path, Reading(bars="keep")) as video:
        found = list(video.frames(Sampling(every=0)))
    assert [f.error for f in found] == [""] * len(found)
    pictures = [f.rgb for f in found if f.rgb is not None]
    times, theirs = reference(path, pictures[0].shape)
    assert len(found) == len(theirs) == len(times)
    assert [f.time_s for f in found] == pytest.approx(times, abs=0.002)
    for mine, their in zip(pictures, theirs, strict=True):
        error = float(np.mean((mine.astype(float) - their) ** 2))
        assert 10 * np.log10(255**2 / max(error, 1e-9)) > 40


# A clip of each container and of each kind of codec; the others are the same in other pairs.
QUICK = {
    *("h264.mp4", "h264.mkv", "h264.ts", "h264.flv", "h264.avi", "h264.3gp", "h264.h264", "interlaced.ts"),
    *(
        "hevc.mp4",
        "hevc.ts",
        "hevc.hevc",
        "mpeg2.mpg",
        "mpeg2.m2v",
        "mpeg2.mxf",
        "mpeg4-b.avi",
        "mjpeg.mov",
        "vp8.webm",
    ),
    *("vp9-odd.webm", "av1.mp4", "ffv1.nut", "ffv1-12bit.mkv", "ffv1-grey.mkv", "prores.mov", "png.mov"),
    *("wmv2.wmv", "flv1.flv", "gif.gif", "apng.apng", "raw.y4m", "theora.ogv", "h264-444.mp4", "vfr.mp4", "vfr.mkv"),
}


def test_the_quick_clips_are_among_all() -> None:
    assert CLIPS.keys() > QUICK


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CLIPS])
def test_pictures_and_times_are_those_of_the_program(tmp_path: Path, photos: dict[str, UInt8], name: str) -> None:
    how = dict(CLIPS[name])
    if how.get("codec", "libx264") not in av.codecs_available:
        pytest.skip("this PyAV cannot write it")
    width, height = how.pop("sides", SIDES)
    count = len(how.get("times", range(30)))
    compare(write(tmp_path / name, swaying(photos["coffee"], count, width=width, height=height), gop=12, **how))


@pytest.mark.parametrize("matrix", ["bt470bg", "bt709", "bt2020nc"])
@pytest.mark.parametrize("scale", ["tv", "pc"])
def test_colours_are_read_by_their_tags_as_in_the_program(
    tmp_path: Path, photos: dict[str, UInt8], matrix: str, scale: str
) -> None:
    clip = write(
        tmp_path / "a.mp4", swaying(photos["coffee"], 6, width=SIDES[0], height=SIDES[1]), options={"crf": "8"}
    )
    assert FFMPEG is not None
    tags = ["-colorspace", matrix, "-color_range", scale]
    again = [FFMPEG, "-v", "error", "-i", str(clip), "-vf", f"setparams=colorspace={matrix}:range={scale}", *tags]
    subprocess.run([*again, "-c:v", "libx264", str(tmp_path / "b.mp4")], check=True, timeout=PATIENCE_S)
    compare(tmp_path / "b.mp4")


def test_an_edit_list_is_followed_as_in_the_program(tmp_path: Path, photos: dict[str, UInt8]) -> None:
    clip = write(tmp_path / "a.mp4", swaying(photos["coffee"], 40, width=SIDES[0], height=SIDES[1]), gop=12)
    assert FFMPEG is not None
    cut = [FFMPEG, "-v", "error", "-ss", "0.7", "-i", str(clip), "-c", "copy", str(tmp_path / "b.mp4")]
    subprocess.run(cut, check=True, timeout=PATIENCE_S)
    compare(tmp_path / "b.mp4")


def test_a_playlist_is_as_in_the_program(tmp_path: Path, photos: dict[str, UInt8]) -> None:
    def kept(container: Any, stream: Any) -> None:
        container.options.update({"hls_time": "0.4", "hls_list_size": "0"})

    compare(write(tmp_path / "list.m3u8", swaying(photos["coffee"], 30), kind="hls", prepare=kept))


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


def test_fields_of_different_times_are_as_in_the_program(tmp_path: Path, photos: dict[str, UInt8]) -> None:
    """Chroma is taken line by line, not field by field."""
    frames = list(swaying(photos["coffee"], 32, width=SIDES[0], height=SIDES[1]))
    woven = [first.copy() for first in frames[::2]]
    for frame, second in zip(woven, frames[8::2], strict=False):
        frame[1::2] = second[1::2]
    options = {"flags": "+ildct+ilme", "x264-params": "tff=1"}
    compare(write(tmp_path / "woven.ts", woven[:12], gop=6, options=options))


def test_tiff_in_quicktime_is_read_though_it_has_tags_that_ffmpeg_does_not_know(
    tmp_path: Path, photos: dict[str, UInt8]
) -> None:
    compare(write(tmp_path / "a.mov", swaying(photos["coffee"], 5), codec="tiff", layout="rgb24"))


@pytest.mark.parametrize("change", ["crop_left=16:crop_top=8:crop_right=6", "rotate=90:display_orientation=insert"])
def test_what_the_stream_crops_and_turns_is_as_in_the_program(
    tmp_path: Path, photos: dict[str, UInt8], change: str
) -> None:
    assert FFMPEG is not None
    plain = write(tmp_path / "plain.mp4", swaying(photos["coffee"], 12, width=SIDES[0], height=SIDES[1]), gop=12)
    path = tmp_path / "changed.mp4"
    command = [FFMPEG, "-v", "error", "-i", str(plain), "-c", "copy", "-bsf:v", f"h264_metadata={change}", str(path)]
    subprocess.run(command, check=True, timeout=PATIENCE_S)
    compare(path)
