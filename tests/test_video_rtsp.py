"""RTSP from a real server on the loopback interface: rows and times, breaking off, stalls, Ctrl-C, several cameras."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gstreamer
import pytest
from video_clips import level, numbered, write
from waiting import PATIENCE_S

from dgiqa.bundle import Bundle
from dgiqa.forward import Networks
from dgiqa.scorer import Scorer
from dgiqa.video import Reading, VideoRun
from dgiqa.video.frames import Video
from dgiqa.video.sampling import Sampling

Row = dict[str, Any]


class Server:
    """tests/rtsp_server.py, which can be ended, begun again on the same port, and told to hold its pictures back."""

    def __init__(self, *files: Path) -> None:
        self.files = files
        self.port = 0
        self.begin()

    def begin(self) -> None:
        command = gstreamer.server_command(self.port, *self.files)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        self.process = subprocess.Popen(command, **pipes)  # type: ignore[call-overload]
        word, port = self.process.stdout.readline().split()
        assert word == "ready"
        self.port = int(port)

    def tell(self, word: str) -> None:
        self.process.stdin.write(word + "\n")
        assert self.process.stdout.readline().strip() == word

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    def address(self, name: str = "camera") -> str:
        return f"rtsp://127.0.0.1:{self.port}/{name}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(write(tmp_path / "file.mkv", numbered(75), options={"bf": "0"}))
    yield made
    made.end()


@pytest.fixture(scope="module")
def scorer(tiny_bundle: Bundle) -> Iterator[Scorer]:
    with Scorer(tiny_bundle, threads=1) as made:
        yield made


Read = Callable[..., list[Row]]


@pytest.fixture
def read(scorer: Scorer) -> Read:
    """read(addresses, sampling, until=..., reading options) -> rows; `until` sees those so far and may end the run."""

    def rows_of(
        addresses: list[str], wanted: Sampling, *, until: Callable[[list[Row]], bool] | None = None, **options: Any
    ) -> list[Row]:
        reading = Reading(**{"timeout_s": 5.0, "waits_s": (0.3,), "attempts": 20} | options)
        rows: list[Row] = []
        run = VideoRun(scorer.stages, addresses, wanted, reading=reading)
        results = run.rows()
        for row in results:
            rows.append(row | {"dropped": run.dropped})
            if until and until(rows):
                results.close()  # type: ignore[attr-defined]
                break
        return rows

    return rows_of


def good(rows: list[Row]) -> list[Row]:
    return [r for r in rows if r["status"] == "ok"]


def errors(rows: list[Row]) -> list[str]:
    return [r["error"] for r in rows if r["status"] == "error"]


def test_a_camera_is_sampled_by_its_own_clock(server: Server, read: Read) -> None:
    rows = read([server.address()], Sampling(every=0.4, end=1.7))
    wanted = [(round(0.4 * i, 3), 10 * i, "ok") for i in range(5)]
    assert [(r["time_s"], r["frame"], r["status"]) for r in rows] == wanted
    assert {(r["width"], r["height"]) for r in rows} == {(320, 240)}


def test_start_end_and_count_are_those_of_the_connection(server: Server, read: Read) -> None:
    assert [r["time_s"] for r in read([server.address()], Sampling(every=0.4, start=0.8, end=1.3))] == [0.8, 1.2]
    assert [r["time_s"] for r in read([server.address()], Sampling(count=3, end=1.2))] == [0, 0.4, 0.8]
    endless = read([server.address()], Sampling(count=3))
    assert len(endless) == 1
    assert "sample by time, or give an end" in endless[0]["error"]


def test_a_server_without_tcp_is_read_over_udp(server: Server, read: Read) -> None:
    rows = read([server.address("udp")], Sampling(every=0.4, end=0.9))
    assert [(r["time_s"], r["status"]) for r in rows] == [(0, "ok"), (0.4, "ok"), (0.8, "ok")]


def test_a_stream_of_known_length_is_read_once(server: Server, read: Read) -> None:
    with Video(server.address("file")) as video:
        assert not video.opened.live
        assert video.opened.duration_s == pytest.approx(3, abs=0.05)
        found = list(video.frames(Sampling(every=0)))
    assert [(round(f.time_s, 3), f.number, f.error) for f in found] == [(i / 25, i, "") for i in range(75)]
    assert all(f.rgb is not None and abs(level(f.rgb) - f.number) <= 3 for f in found)
    rows = read([server.address("file")], Sampling(every=1))
    assert [(r["time_s"], r["status"]) for r in rows] == [(0, "ok"), (1, "ok"), (2, "ok")]


def test_frames_that_come_too_fast_are_dropped_and_counted(
    server: Server, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Networks.score
    monkeypatch.setattr(Networks, "score", lambda *a: (time.sleep(0.3), original(*a))[1])
    rows = read([server.address()], Sampling(every=0, end=2))
    assert not errors(rows)
    assert rows[-1]["dropped"] > 10
    assert rows[-1]["frame"] + 1 == pytest.approx(rows[-1]["dropped"] + len(rows), abs=4)  # the end of the queue


def test_a_server_that_goes_away_and_comes_back_is_a_gap_with_its_reason(server: Server, read: Read) -> None:
    state: dict[str, int] = {}

    def until(rows: list[Row]) -> bool:
        if len(good(rows)) == 3 and not state:
            state["broke"] = len(rows)
            server.end()
        if sum("refused" in e for e in errors(rows)) == 2 and "back" not in state:
            state["back"] = len(rows)
            server.begin()
        return "back" in state and len(good(rows[state["back"] :])) >= 3

    rows = read([server.address()], Sampling(every=0.2), until=until)
    assert errors(rows)[0] == "the source ended; trying again in 0.3 s"
    assert all("check the address and its server; trying again" in e for e in errors(rows)[1:])
    times, scenes = [r["time_s"] for r in rows], [r["scene"] for r in good(rows)]
    assert times == sorted(times)
    assert (scenes[0], scenes[-1]) == (0, 1)
    assert good(rows)[-1]["frame"] > good(rows)[0]["frame"]


def test_a_stall_is_a_row_and_the_connection_is_made_anew(server: Server, read: Read) -> None:
    stalled: list[float] = []

    def until(rows: list[Row]) -> bool:
        if len(good(rows)) == 3 and not stalled:
            stalled.append(time.monotonic())
            server.tell("stall")
        if any("stalled" in error for error in errors(rows)) and len(stalled) == 1:
            stalled.append(time.monotonic())
            server.tell("go")
        return len(stalled) == 2 and rows[-1]["status"] == "ok"

    rows = read([server.address()], Sampling(every=0.2), until=until, timeout_s=1.5)
    assert any("nothing arrived for 1.5 s; the source has stalled; trying again" in error for error in errors(rows))
    assert stalled[1] - stalled[0] > 1
    assert good(rows)[-1]["scene"] == 1


def test_a_server_that_is_silent_from_the_beginning_has_stalled(server: Server, read: Read) -> None:
    server.tell("stall")
    rows = read([server.address()], Sampling(every=0.2), timeout_s=1.0, attempts=2)
    assert len(rows) == 2
    assert "nothing arrived for 1 s; the source has stalled; trying again" in rows[0]["error"]
    assert "given up after 2 attempts in a row" in rows[1]["error"]


def test_a_camera_that_is_not_there_yet_is_tried_again_and_the_other_goes_on(server: Server, read: Read) -> None:
    missing = server.address("missing")
    rows = read([missing, server.address()], Sampling(every=0.4, end=0.9), attempts=2)
    assert [r["status"] for r in rows if r["path"] != missing] == ["ok"] * 3
    assert ["404" in e for e in errors(rows)] == [True, True]
    assert errors(rows)[1].endswith("given up after 2 attempts in a row")


def test_trying_again_would_not_give_sound_a_picture(server: Server, read: Read) -> None:
    rows = read([server.address("sound")], Sampling(every=1))
    assert errors(rows) == [f"{server.address('sound')} has no video in it, only audio; name a file with pictures"]


@pytest.mark.parametrize("state", ["sending", "stalled"])
def test_ctrl_c_ends_the_run_at_once_and_keeps_its_rows(
    server: Server, bundle_dir: Path, tmp_path: Path, state: str
) -> None:
    output = tmp_path / "rows.csv"
    options = ["--fps", "5", "--timeout", "30", "-o", str(output), "-f", "jsonl", "--bundle", str(bundle_dir)]
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH")]))
    addresses = [server.address(), server.address("udp"), server.address("slow")]
    with subprocess.Popen(
        [sys.executable, "-m", "dgiqa", "video", *addresses, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,  # communicate() would miss what readline() had read ahead
        env=os.environ | {"PYTHONPATH": path},
    ) as process:
        assert process.stdout
        assert process.stderr
        first = [json.loads(process.stdout.readline()) for _ in range(3)]
        if state == "stalled":
            server.tell("stall")
            time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        later, said = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, b"the rows written so far are kept" in said) == (130, True)
    with output.open(newline="") as file:
        kept = [float(r["score"]) for r in csv.DictReader(file)]
    assert kept == [r["score"] for r in first] + [json.loads(line)["score"] for line in later.splitlines()]
