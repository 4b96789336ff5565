"""A video beside its master: the offset is found, frames are paired by time, and the drop decides."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("av", reason="video needs PyAV")

from command import run_here
from video_clips import numbered, swaying, write

from dgiqa.bundle import Bundle
from dgiqa.scorer import Scorer
from dgiqa.video.against import Alignment, Lost, align, compare_videos, offset_of
from dgiqa.video.sampling import Sampling


def thumbs(times: list[float], first: int = 0) -> list[tuple[float, np.ndarray]]:
    return [(time, np.full((36, 64), 5 * (first + i), np.uint8)) for i, time in enumerate(times)]


@pytest.mark.parametrize("lag", [0.0, 0.4, -0.8, 1.96])
def test_an_offset_is_found_to_half_a_frame(lag: float) -> None:
    encoded = thumbs([i / 25 for i in range(40)])
    master = thumbs([i / 25 + lag for i in range(40)])
    assert offset_of(encoded, master, 0.04) == pytest.approx(lag, abs=0.02)


def test_still_pictures_tell_no_offset() -> None:
    still = [(i / 25, np.full((36, 64), 90, np.uint8)) for i in range(40)]
    assert offset_of(still, still, 0.04) == 0
    assert offset_of(still, still, 0.04, near=0.3) == 0.3
    assert offset_of([], still, 0.04) == 0


def test_another_frame_rate_is_paired_by_time() -> None:
    encoded = thumbs([i / 12.5 for i in range(20)])
    master = [(i / 25 + 0.2, np.full((36, 64), round(2.5 * i), np.uint8)) for i in range(60)]
    assert offset_of(encoded, master, 0.08) == pytest.approx(0.2, abs=0.04)


def test_drift_is_added_to_later_frames() -> None:
    found = Alignment(0.5, 0.001)
    assert found.master_s(100) == pytest.approx(100.6)
    assert str(found) == "+0.500 s, drifting by +1.0 ms a second"


def test_the_mean_drop_has_an_interval_over_frames() -> None:
    lost = Lost()
    for drop in (0.1, 0.2, 0.3):
        lost.add({"drop": drop, "full_reference": None})
    lost.add({"drop": None, "full_reference": None})
    assert (lost.scored, lost.failed) == (3, 1)
    assert lost.interval == pytest.approx((0.2 - 1.96 * 0.1 / 3**0.5, 0.2 + 1.96 * 0.1 / 3**0.5))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A master of 3 s, and an encode that begins half a second later."""
    root = tmp_path_factory.mktemp("clips")
    frames = list(numbered(75, 128, 96))
    write(root / "master.mp4", frames, options={"crf": "4"})
    write(root / "encoded.mp4", frames[12:], options={"crf": "4"})
    return root


def test_frames_are_those_of_the_same_moment(clips: Path, tiny_bundle: Bundle) -> None:
    encoded, master = clips / "encoded.mp4", clips / "master.mp4"
    found = align(encoded, master)
    assert found.offset_s == pytest.approx(0.48, abs=0.021)
    with Scorer(tiny_bundle) as scorer:
        rows = list(compare_videos(scorer.stages, encoded, master, Sampling(every=0.5)))
        wrong = list(compare_videos(scorer.stages, encoded, master, Sampling(every=0.5), alignment=Alignment(0.0)))
    assert [row["time_s"] for row in rows] == [0, 0.52, 1, 1.52, 2]
    assert all(abs(row["drop"]) < 0.01 for row in rows)
    assert np.mean([abs(row["drop"]) for row in wrong]) > 2 * np.mean([abs(row["drop"]) for row in rows])


def test_what_the_master_does_not_have_is_an_error_row(clips: Path, tiny_bundle: Bundle) -> None:
    late = Alignment(2.5)
    with Scorer(tiny_bundle) as scorer:
        rows = list(compare_videos(scorer.stages, clips / "encoded.mp4", clips / "master.mp4", alignment=late))
    assert [row["status"] for row in rows] == ["ok", "error", "error"]
    assert "it has no frame there" in rows[1]["error"]


def test_the_command_says_the_drop_and_gates(tmp_path: Path, photos: dict, bundle_dir: Path) -> None:
    frames = list(swaying(photos["coffee"], 50))
    write(tmp_path / "master.mp4", frames, options={"crf": "4"})
    small = [cv2.resize(frame // 2, (80, 60), interpolation=cv2.INTER_AREA) for frame in frames]
    write(tmp_path / "small.mp4", small)
    pair = [tmp_path / "small.mp4", "--against", tmp_path / "master.mp4", "--bundle", bundle_dir]
    done = run_here("video", *pair, "--every", "0.5s", "--format", "table", "-o", tmp_path / "r.jsonl")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    heading, *lines = (line.split() for line in done.stdout.decode().splitlines())
    assert heading[0] == "seconds"
    assert [line[0] for line in lines] == [f"{row['time_s']:.2f}" for row in rows]
    assert len(rows) == 4
    assert "master's size" in rows[0]["note"]
    assert b"95% interval" in done.stderr
    mean = float(np.mean([row["drop"] for row in rows]))
    order = pair if mean > 0 else [pair[2], "--against", pair[0], "--bundle", bundle_dir]
    gated = run_here("video", *order, "--every", "0.5s", "--max-drop", str(abs(mean) / 4), "--quiet")
    assert gated.returncode == 4, gated.stderr
    assert b"loses more than" in gated.stderr


def test_options_that_do_not_go_together_are_usage_errors(bundle_dir: Path) -> None:
    for arguments, message in (
        (["a.mp4", "--max-drop", "0.1"], b"--against MASTER"),
        (["a.mp4", "b.mp4", "--against", "c.mp4"], b"name one"),
        (["a.mp4", "--against", "c.mp4", "--fail-under", "0.5"], b"cannot be combined"),
    ):
        done = run_here("video", *arguments)
        assert done.returncode == 2
        assert message in b" ".join(done.stderr.split())
