"""`dgiqa-rt video`: what it prints, the files it writes, and its exit codes."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import run_here
from video_clips import UInt8, numbered, swaying, write
from waiting import PATIENCE_S, until

from dgiqa.cli.common import ENVIRONMENT, RUNTIME_ERROR
from dgiqa.report.read import read_rows
from dgiqa.report.rows import FRAME_COLUMNS, columns

Run = Callable[..., subprocess.CompletedProcess[bytes]]
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    own_cache = str(tmp_path_factory.mktemp("cache"))
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": own_cache}


@pytest.fixture(scope="module")
def run(environment: dict[str, str], bundle_dir: Path) -> Run:
    def call(*arguments: Any, stdin: Any = None) -> subprocess.CompletedProcess[bytes]:
        arguments = ("video", *arguments, "--bundle", bundle_dir)
        if stdin is None:
            return run_here(*arguments, env=environment)
        command = [sys.executable, "-m", "dgiqa", *map(str, arguments)]
        return subprocess.run(
            command, input=stdin, capture_output=True, timeout=PATIENCE_S, env=environment, check=False
        )

    return call


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, photos: dict[str, UInt8]) -> Path:
    """Four seconds, dim from 2 s to 3 s."""

    def dim(frame: UInt8, time_s: float) -> UInt8:
        return frame // 3 if 2 <= time_s < 3 else frame

    return write(tmp_path_factory.mktemp("clips") / "clip.mkv", swaying(photos["coffee"], 100, change=dim))


@pytest.fixture(scope="module")
def rows(run: Run, clip: Path) -> list[dict[str, Any]]:
    done = run(clip, "--every", "0.25s")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_piped_output_is_json_lines_and_the_summary_goes_to_stderr(run: Run, clip: Path) -> None:
    done = run(clip, "--fps", "2")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [tuple(row) for row in rows] == [FRAME_COLUMNS] * 8
    assert b"worst interval" in done.stderr
    assert b"8 frames scored" in done.stderr
    assert run(clip, "--fps", "2", "--quiet").stderr == b""
    failed = run(clip, "--frames", "1", "--gate", "1", "--quiet", "--format", "table")
    assert (failed.returncode, failed.stdout.rstrip().endswith(b"  fail")) == (4, True)
    assert failed.stderr.endswith(b"1 of 1 video is below 1\n")


def test_every_file_is_written_in_one_run(run: Run, clip: Path, tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    pytest.importorskip("matplotlib")
    files = {name: tmp_path / f"out.{name}" for name in ("csv", "png", "html", "srt", "ffmeta")}
    sinks = ["--plot", files["png"], "--html", files["html"], "--srt", files["srt"], "--ffmetadata", files["ffmeta"]]
    done = run(clip, "--every", "0.25s", "-o", files["csv"], *sinks)
    assert (done.returncode, done.stdout) == (0, b""), done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f.name for f in files.values())
    with files["csv"].open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [float(r["score"]) for r in table] == [r["score"] for r in rows]
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    assert files["srt"].read_text().count("-->") == files["ffmeta"].read_text().count("[CHAPTER]") == 16


def test_json_has_the_pooled_figures(run: Run, clip: Path, rows: list[dict[str, Any]]) -> None:
    document = json.loads(run(clip, "--every", "0.25s", "--format", "json").stdout)
    figures = document["summary"]["videos"][str(clip)]
    scores = [r["score"] for r in rows]
    assert figures["mean"] == pytest.approx(sum(scores) / 16, abs=1e-6)
    assert figures["harmonic_mean"] == pytest.approx(16 / sum(1 / s for s in scores), abs=1e-6)
    assert (figures["min"], figures["max"]) == (min(scores), max(scores))
    assert figures["end_s"] == pytest.approx(4, abs=0.05)
    assert document["summary"]["complete"]


def test_parquet_has_typed_columns_and_the_summary(
    run: Run, clip: Path, tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert run(clip, "--every", "0.25s", "-o", tmp_path / "out.parquet").returncode == 0
    table = parquet.read_table(tmp_path / "out.parquet")
    assert tuple(table.column_names) == FRAME_COLUMNS
    assert str(table.schema.field("score").type) == "double"
    assert table.column("score").to_pylist() == [r["score"] for r in rows]
    metadata = parquet.read_metadata(tmp_path / "out.parquet").metadata
    assert json.loads(metadata[b"dgiqa"])["videos"][str(clip)]["scored"] == 16


def test_a_video_is_one_row_that_filter_and_report_read(
    run: Run, clip: Path, tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    (tmp_path / "no.mp4").write_bytes(b"no video")
    for suffix in ("csv", "parquet", "sqlite"):
        path = tmp_path / f"a.{suffix}"
        done = run(clip, tmp_path / "no.mp4", "--every", "0.25s", "--per-video", "--gate", "0.01", "-o", path)
        assert done.returncode == 3, done.stderr
        video, broken = read_rows(str(path))
        assert tuple(video) == columns("video")
        scores = [row["score"] for row in rows]
        assert video["score"] == pytest.approx(sum(scores) / 16, abs=1e-6)
        assert (video["frames"], video["lowest"], video["highest"]) == (16, min(scores), max(scores))
        assert (video["verdict"], video["bundle"]) == ("pass", rows[0]["bundle"])
        assert (broken["path"], broken["status"], broken["score"]) == (str(tmp_path / "no.mp4"), "error", None)
        assert broken["error"]
        assert run_here("filter", path, "--worst", "1").stdout.decode().strip() == str(clip)
    shown = run(clip, "--every", "0.25s", "--per-video", "--format", "table").stdout.decode()
    assert [line.split()[0] for line in shown.splitlines()] == ["score", f"{video['score']:.4f}"]


def test_the_gate_fails_on_the_mean_and_on_an_interval(run: Run, clip: Path, rows: list[dict[str, Any]]) -> None:
    scores = [r["score"] for r in rows]
    mean = sum(scores) / len(scores)
    windows = [sum(scores[i : i + 4]) / 4 for i in range(13)]
    between = (min(windows) + mean) / 2
    assert min(windows) < between < mean
    assert run(clip, "--every", "0.25s", "--gate", between).returncode == 0
    failed = run(clip, "--every", "0.25s", "--gate", between, "--gate-interval", 1)
    assert failed.returncode == 4
    assert b"is below" in failed.stderr
    assert run(clip, "--every", "0.25s", "--gate", min(1.0, mean + 0.01)).returncode == 4


def test_a_failed_gate_wins_over_a_failed_input(run: Run, clip: Path, tmp_path: Path) -> None:
    assert run(clip, tmp_path / "missing.mp4").returncode == 3
    assert run(clip, tmp_path / "missing.mp4", "--gate", "1").returncode == 4


def test_a_container_and_raw_frames_come_from_standard_input(run: Run, clip: Path, rows: list[dict[str, Any]]) -> None:
    done = run("-", "--every", "0.25s", stdin=clip.read_bytes())
    assert [json.loads(line)["score"] for line in done.stdout.splitlines()] == [r["score"] for r in rows]
    raw = b"".join(f.tobytes() for f in numbered(20, 96, 64))
    done = run("-", "--raw", "96x64@25", "--frames", "all", stdin=raw)
    assert [json.loads(line)["frame"] for line in done.stdout.splitlines()] == list(range(20))


def test_a_pipe_that_brings_nothing_is_empty(run: Run) -> None:
    done = run("-", stdin=b"")
    assert done.returncode == 3
    assert "it is empty (0 bytes)" in json.loads(done.stdout)["error"]


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg program")
def test_an_ffmpeg_pipe_is_scored_as_its_file(run: Run, clip: Path, rows: list[dict[str, Any]]) -> None:
    command = ["ffmpeg", "-v", "error", "-i", str(clip), "-f", "rawvideo", "-pix_fmt", "yuv420p", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    done = run("-", "--raw", "160x120@25:yuv420p", "--every", "0.25s", stdin=raw)
    assert [json.loads(line)["score"] for line in done.stdout.splitlines()] == pytest.approx(
        [r["score"] for r in rows], abs=1e-5
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--every", "soon"], "is not a time"),
        (["--every", "1s", "--fps", "2"], "give only one of --every and --fps"),
        (["--end", "3", "--duration", "2"], "give only one of --end and --duration"),
        (["--start", "5", "--end", "3"], "not a stretch of time"),
        (["--frames", "0"], "--frames: got 0 frames, wanted at least 1"),
        (["--scenes", "0"], "--scenes: got 0 frames of each scene, wanted 1 to 32"),
        (["--reuse-depth", "--drift", "-1"], "drift above 0, got 16 and -1"),
        (["--frames", "some"], "neither a number nor all"),
        (["--raw", "64x64"], "does not describe raw frames"),
        (["--gate-interval", "2"], "together with --fail-under"),
        (["-o", "rows.xml"], "end it in .csv, .jsonl, .json, .parquet or .sqlite"),
        (["--tiling", "many"], "allowed are"),
        (["--fps", "0"], "above 0"),
        (["--live", "--frames", "2"], "is a file, which would be read again and again"),
        (["--gate", "0.5", "--gate-interval", "nan"], "give seconds above 0"),
        (["--plot", "curve.pdf"], "end it in .png"),
        (["--html", "page.txt"], "end it in .html"),
        (["--html", "same.html", "--srt", "./same.html"], "./same.html is --html as well; name another file"),
    ],
)
def test_wrong_usage_is_exit_2_with_the_reason(run: Run, clip: Path, arguments: list[str], says: str) -> None:
    done = run(clip, *arguments)
    assert done.returncode == 2
    assert says in " ".join(done.stderr.decode().replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--decoder", "nvdec"], ENVIRONMENT, "take no arrays on a GPU"),
        (["--graphs"], RUNTIME_ERROR, "runs on the CPU; leave them out"),
    ],
)
def test_what_needs_a_gpu_says_so(run: Run, clip: Path, arguments: list[str], code: int, says: str) -> None:
    done = run(clip, *arguments)
    assert (done.returncode, done.stdout) == (code, b"")
    assert says in " ".join(done.stderr.decode().split())


def test_a_video_is_not_written_over(run: Run, tmp_path: Path) -> None:
    clip = write(tmp_path / "clip.mkv", numbered(3))
    before = clip.read_bytes()
    (tmp_path / "link.srt").symlink_to(clip)
    done = run(clip, "--srt", tmp_path / "link.srt")
    assert done.returncode == 2
    assert b"the input as well" in done.stderr
    assert clip.read_bytes() == before


def test_an_unwritable_file_is_said_before_anything_is_scored(run: Run, clip: Path, tmp_path: Path) -> None:
    done = run(clip, "--html", tmp_path / "no" / "report.html", "-o", tmp_path / "rows.csv")
    assert done.returncode == 1
    assert b"nothing was scored" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_keeps_what_was_written(environment: dict[str, str], bundle_dir: Path, tmp_path: Path) -> None:
    """A pipe that stays open: the run waits for more frames when the signal comes."""
    output, report = tmp_path / "rows.csv", tmp_path / "report.html"
    options = ["--raw", "96x64@25", "--frames", "all", "-o", str(output), "--html", str(report), "-f", "jsonl"]
    command = [sys.executable, "-m", "dgiqa", "video", "-", *options, "--bundle", str(bundle_dir)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    assert process.stdin
    assert process.stdout
    for frame in numbered(5, 96, 64):
        process.stdin.write(frame.tobytes())
    process.stdin.flush()
    seen = [json.loads(process.stdout.readline())["frame"] for _ in range(5)]
    process.send_signal(signal.SIGINT)
    process.wait(timeout=PATIENCE_S)
    assert process.stderr
    assert b"the rows written so far are kept" in process.stderr.read()
    assert process.returncode == 130
    assert seen == list(range(5))
    with output.open(newline="") as file:
        assert [int(r["frame"]) for r in csv.DictReader(file)] == seen
    assert "the run ended early" in report.read_text()
    for stream in (process.stdin, process.stdout, process.stderr):
        stream.close()


def unread(pipe: Any) -> int:
    """Bytes in a pipe that nobody has taken yet."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_ctrl_c_before_the_first_row_claims_no_file(
    environment: dict[str, str], bundle_dir: Path, tmp_path: Path
) -> None:
    """And one from before stays as it was."""
    output = tmp_path / "rows.csv"
    output.write_text("earlier\n")
    options = ["--raw", "96x64@25", "-o", str(output), "--bundle", str(bundle_dir)]
    command = [sys.executable, "-m", "dgiqa", "video", "-", *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdin
        process.stdin.write(b"a part of a frame")
        process.stdin.flush()
        until(lambda: unread(process.stdin) == 0)  # it is in the middle of its run
        process.send_signal(signal.SIGINT)
        assert process.stderr
        said = process.stderr.read()
        assert process.wait(timeout=PATIENCE_S) == 130
    assert b"0 frames scored" in said
    assert b"written to" not in said
    assert output.read_text() == "earlier\n"


def test_reuse_is_off_unless_asked_for_and_its_drift_is_said(run: Run, clip: Path) -> None:
    assert b"reused" not in run(clip, "--frames", "30").stderr
    done = run(clip, "--frames", "all", "--reuse-tiles", "--audit", "5")
    assert b"mean |drift|" in done.stderr
    assert any(json.loads(line)["reused"] for line in done.stdout.splitlines())


def test_videos_are_scored_on_an_engine_that_is_built_or_named(
    run: Run, environment: dict[str, str], clip: Path
) -> None:
    pytest.importorskip("onnx")
    built = run(clip, "--frames", "2", "--backend", "onnxruntime", "--precision", "fp16", "--build")
    assert b"scoring the golden images" in built.stderr
    (record,) = Path(environment["XDG_CACHE_HOME"]).rglob("engine.json")
    named = run(clip, "--frames", "2", "--engine", record.parent)
    for done in (built, named):
        assert done.returncode == 0, done.stderr
        assert [json.loads(line)["backend"].split()[-1] for line in done.stdout.splitlines()] == ["fp16"] * 2
    missing = run(clip, "--engine", record.parent.parent)
    assert (missing.returncode, missing.stdout) == (1, b"")


def test_frames_over_the_limit_are_refused_in_one_row(run: Run, clip: Path) -> None:
    done = run(clip, "--frames", "2", "--max-pixels", "1000")
    assert done.returncode != 0
    (row,) = map(json.loads, done.stdout.splitlines())
    assert "limit 1,000 pixels" in row["error"]


def test_scenes_and_frame_counts_are_taken_as_asked(run: Run, clip: Path) -> None:
    assert len(run(clip, "--frames", "5").stdout.splitlines()) == 5
    done = [json.loads(line) for line in run(clip, "--scenes", "2").stdout.splitlines()]
    assert [r["scene"] for r in done] == sorted(r["scene"] for r in done)
    assert len(done) % 2 == 0


def test_folders_globs_and_lists_give_their_videos(run: Run, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "set" / "deep").mkdir(parents=True)
    for name in ("b10.mkv", "b9.mkv", "deep/c.MKV", "broken.mkv"):
        (tmp_path / "set" / name).write_bytes(clip.read_bytes() if name != "broken.mkv" else b"no video")
    (tmp_path / "set" / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text(f"{tmp_path}/set/b9.mkv\n\n{tmp_path}/gone.mkv\n")

    def names(*arguments: Any) -> list[str]:
        summary = json.loads(run(*arguments, "--frames", 1, "-f", "json").stdout)["summary"]
        return [os.path.relpath(name, tmp_path) for name in summary["videos"]]

    assert names(tmp_path / "set") == ["set/b9.mkv", "set/b10.mkv", "set/broken.mkv"]
    assert names("-r", tmp_path / "set") == ["set/b9.mkv", "set/b10.mkv", "set/broken.mkv", "set/deep/c.MKV"]
    assert names(tmp_path / "set" / "b{9,10}.mkv") == ["set/b9.mkv", "set/b10.mkv"]
    assert names(tmp_path / "set" / "b?*.mkv") == ["set/b9.mkv", "set/b10.mkv", "set/broken.mkv"]
    assert names("--from-file", tmp_path / "list.txt") == ["set/b9.mkv", "gone.mkv"]
    (tmp_path / "list.txt").write_text(f"{tmp_path}/set/b9.mkv\r\n", encoding="utf-16")  # as PowerShell does
    assert names("--from-file", tmp_path / "list.txt") == ["set/b9.mkv"]
    nothing = run(tmp_path / "empty", tmp_path / "no*.mkv", "-f", "jsonl")
    assert nothing.returncode == 3
    assert [json.loads(line)["status"] for line in nothing.stdout.splitlines()] == ["error", "error"]
    assert run().returncode == 2
