"""The examples of video run as they stand, where their tools are installed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import gstreamer
import pytest
from video_clips import UInt8, swaying, write
from waiting import PATIENCE_S

from dgiqa.scorer import Scorer

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, photos: dict[str, UInt8]) -> Path:
    return write(tmp_path_factory.mktemp("clips") / "clip.mp4", swaying(photos["coffee"], 40))


def attempt(command: list[str], *paths: Path) -> subprocess.CompletedProcess[str]:
    environment = gstreamer.environment([ROOT, *paths])
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, env=environment, check=False)


def run(command: list[str], *paths: Path) -> str:
    done = attempt(command, *paths)
    assert done.returncode == 0, done.stderr
    return done.stdout


def scores(text: str) -> list[tuple[float, float]]:
    return [(float(a), float(b)) for a, b in re.findall(r"([\d.]+) s +([\d.]+)", text)]


def example(name: str, *arguments: str) -> list[tuple[float, float]]:
    return scores(run([sys.executable, str(ROOT / "examples" / name), *arguments]))


def test_pyav(clip: Path, bundle_dir: Path) -> None:
    found = example("video_pyav.py", str(clip), str(bundle_dir))
    assert [t for t, _ in found] == [0, 0.52, 1.0, 1.52]
    with Scorer(bundle_dir, threads=1) as scorer:
        rows = list(scorer.score_video(clip, every=0.5))
    assert [s for _, s in found] == pytest.approx([r["score"] for r in rows], abs=0.01)


def test_opencv(clip: Path, bundle_dir: Path) -> None:
    found = example("video_opencv.py", str(clip), str(bundle_dir))
    assert len(found) == 40
    with Scorer(bundle_dir, threads=1) as scorer:
        rows = list(scorer.score_video(clip, every=0))
    assert [s for _, s in found] == pytest.approx([r["score"] for r in rows], abs=0.01)


@pytest.fixture
def bindings(tmp_path: Path) -> Path:
    """A folder with GStreamer's Python bindings, for the Python that runs the tests."""
    folder = gstreamer.bindings_only(tmp_path)
    elements = "decodebin matroskademux jpegdec videoconvert appsink videotestsrc"
    gstreamer.need(sys.executable, "Gst GstApp GstVideo", elements, gstreamer.environment([folder]))
    return folder


def test_gstreamer(bindings: Path, photos: dict[str, UInt8], bundle_dir: Path, tmp_path: Path) -> None:
    frames = swaying(photos["coffee"], 40, width=162)  # rows of 486 bytes are padded
    clip = write(tmp_path / "clip.mkv", frames, codec="mjpeg", layout="yuvj420p")
    command = [sys.executable, str(ROOT / "examples" / "video_gstreamer.py")]
    found = scores(run([*command, f"filesrc location={clip} ! decodebin", str(bundle_dir)], bindings))
    assert len(found) == 40
    assert found[-1][0] == pytest.approx(39 / 25, abs=0.01)
    with Scorer(bundle_dir, threads=1) as scorer:
        rows = list(scorer.score_video(clip, every=0))
    assert [s for _, s in found] == pytest.approx([r["score"] for r in rows], abs=0.02)


def test_gstreamer_says_what_failed_and_ends(bindings: Path, bundle_dir: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "video_gstreamer.py")]
    done = attempt([*command, f"filesrc location={tmp_path / 'none'} ! decodebin", str(bundle_dir)], bindings)
    assert (done.returncode, done.stdout) == (1, "")
    assert "not found" in done.stderr


def test_gstreamer_drops_frames_of_a_camera_instead_of_holding_it_up(bindings: Path, bundle_dir: Path) -> None:
    camera = "videotestsrc is-live=true num-buffers=600 ! video/x-raw,width=96,height=96,framerate=600/1"
    command = [sys.executable, str(ROOT / "examples" / "video_gstreamer.py"), camera, str(bundle_dir)]
    found = scores(run(command, bindings))
    assert 4 <= len(found) < 600
    assert found[-1][0] == pytest.approx(599 / 600, abs=0.02)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg program")
def test_ffmpeg_pipe(clip: Path, bundle_dir: Path) -> None:
    text = run(["sh", str(ROOT / "examples" / "video_ffmpeg_pipe.sh"), str(clip), "--bundle", str(bundle_dir)])
    rows = [json.loads(line) for line in text.splitlines()]
    assert [r["time_s"] for r in rows] == [0, 0.5, 1.0]
    assert all((r["width"], r["height"], r["status"]) == (640, 360, "ok") for r in rows)
