"""The examples of video run as they stand, where their tools are installed."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from video_clips import UInt8, swaying, write

from dgiqa.scorer import Scorer

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, photos: dict[str, UInt8]) -> Path:
    return write(tmp_path_factory.mktemp("clips") / "clip.mp4", swaying(photos["coffee"], 40))


def run(command: list[str]) -> str:
    path = os.pathsep.join([str(ROOT), str(Path(sys.executable).parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {
        "PYTHONPATH": path,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
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


def test_gstreamer(clip: Path, bundle_dir: Path) -> None:
    if importlib.util.find_spec("gi") is None:
        pytest.skip("needs GStreamer's Python bindings (Debian: python3-gi, gir1.2-gst-plugins-base-1.0)")
    found = example("video_gstreamer.py", f"filesrc location={clip} ! decodebin", str(bundle_dir))
    assert len(found) == 40
    assert found[-1][0] == pytest.approx(39 / 25, abs=0.01)
    with Scorer(bundle_dir, threads=1) as scorer:
        rows = list(scorer.score_video(clip, every=0))
    assert [s for _, s in found] == pytest.approx([r["score"] for r in rows], abs=0.02)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg program")
def test_ffmpeg_pipe(clip: Path, bundle_dir: Path) -> None:
    text = run(["sh", str(ROOT / "examples" / "video_ffmpeg_pipe.sh"), str(clip), "--bundle", str(bundle_dir)])
    rows = [json.loads(line) for line in text.splitlines()]
    assert [r["time_s"] for r in rows] == [0, 0.5, 1.0]
    assert all((r["width"], r["height"], r["status"]) == (640, 360, "ok") for r in rows)
