"""Addresses: HTTP from a local server, stalls, connections that break off, reconnecting, newest frame wins."""

from __future__ import annotations

import functools
import http.server
import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from video_clips import numbered, write
from waiting import PATIENCE_S, SLACKS, until

from dgiqa.bundle import Bundle
from dgiqa.errors import BackendError, ImageError
from dgiqa.forward import Networks
from dgiqa.scorer import Scorer
from dgiqa.video import JOIN_S, Reading, VideoRun
from dgiqa.video.frames import Frame
from dgiqa.video.live import follow
from dgiqa.video.sampling import Sampling
from dgiqa.video.source import RefusedError


@pytest.fixture(scope="module")
def scorer(tiny_bundle: Bundle) -> Iterator[Scorer]:
    with Scorer(tiny_bundle, threads=1) as made:
        yield made


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; "stall" in a path stops in the middle, "cut" closes there, "silent" never begins."""

    release = threading.Event()

    def do_GET(self) -> None:
        stall, cut = "stall" in self.path, "cut" in self.path
        if "private" in self.path:
            self.send_error(401)
            return
        if "silent" in self.path:
            self.release.wait(PATIENCE_S)
            return
        if not (stall or cut):
            super().do_GET()
            return
        data = Path(self.translate_path(self.path)).read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", "video/mp2t")
        if stall:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        self.wfile.flush()
        if stall:
            self.release.wait(PATIENCE_S)

    def log_message(self, *arguments: object) -> None:
        """Nothing on standard error."""


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    Quiet.release.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    Quiet.release.set()
    server.shutdown()
    server.server_close()
    thread.join()


def noisy(path: Path, count: int = 75) -> Path:
    """A transport stream large enough that half of it is many frames."""
    pictures = np.random.default_rng(0).integers(0, 255, (count, 64, 96, 3), dtype=np.uint8)
    return write(path, pictures, kind="mpegts", options={"bf": "0"})


def test_a_file_is_scored_over_http(scorer: Scorer, address: str, tmp_path: Path) -> None:
    write(tmp_path / "clip.mp4", numbered(50))
    rows = list(scorer.score_video(f"{address}/clip.mp4", every=0.5))
    assert [(r["time_s"], r["status"]) for r in rows] == [(t, "ok") for t in (0, 0.52, 1.0, 1.52)]


def test_an_mp4_that_the_server_gives_only_whole_says_what_to_do(scorer: Scorer, address: str, tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 255, (75, 96, 128, 3), dtype=np.uint8)
    write(tmp_path / "clip.mp4", pictures)
    (row,) = scorer.score_video(f"{address}/clip.mp4", every=0.5)
    assert "from a server without range requests needs its index first" in row["error"]


def test_hls_is_read_by_its_playlist(scorer: Scorer, address: str, tmp_path: Path) -> None:
    noisy(tmp_path / "part.ts", 50)
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\npart.ts\n#EXT-X-ENDLIST\n")
    rows = list(scorer.score_video(f"{address}/list.m3u8", every=0.5))
    assert [r["status"] for r in rows] == ["ok"] * 4


def test_a_missing_page_is_a_row_with_the_servers_answer(scorer: Scorer, address: str) -> None:
    rows = list(scorer.score_video(f"{address}/none.mp4", live=False))
    assert len(rows) == 1
    assert "404" in rows[0]["error"]


def test_a_password_that_is_wanted_is_not_guessed_again_and_again(scorer: Scorer, address: str) -> None:
    rows = list(VideoRun(scorer.stages, [f"{address}/private.ts"], reading=Reading(live=True)).rows())
    assert len(rows) == 1
    assert "USER:PASSWORD@HOST" in rows[0]["error"]


def test_what_an_address_does_not_give_is_told_from_what_it_is_not(
    scorer: Scorer, address: str, tmp_path: Path
) -> None:
    (tmp_path / "page.mp4").write_bytes(b"<html>no video</html>" * 100)
    reading = Reading(live=False, timeout_s=0.5)
    sources = [f"{address}/page.mp4", f"{address}/silent.mp4", "http://127.0.0.1:1/a.mp4"]
    page, silent, closed = (
        next(r["error"] for r in VideoRun(scorer.stages, [s], reading=reading).rows()) for s in sources
    )
    assert page.endswith("it is not a video, or it is damaged")
    assert silent.endswith("nothing arrived for 0.5 s; the source has stalled")
    assert "Connection refused" in closed
    assert closed.endswith("check the address and its server")


@pytest.mark.parametrize("live", [False, True])
def test_a_stall_is_an_error_row_not_a_hang(scorer: Scorer, address: str, tmp_path: Path, live: bool) -> None:
    noisy(tmp_path / "stall.ts")
    for slack in SLACKS:
        reading = Reading(timeout_s=0.7 * slack, live=live, attempts=1)
        rows = list(VideoRun(scorer.stages, [f"{address}/stall.ts"], Sampling(every=0.2), reading=reading).rows())
        if sum(r["status"] == "ok" for r in rows) >= 3:
            break
    assert len(rows) > 3
    assert "stalled" in rows[-1]["error"]
    assert rows[-1]["time_s"] >= rows[-2]["time_s"]


def test_a_live_source_is_opened_again_and_time_and_scenes_go_on(scorer: Scorer, address: str, tmp_path: Path) -> None:
    noisy(tmp_path / "cut.ts")
    reading = Reading(live=True, timeout_s=PATIENCE_S, waits_s=(0.05,), attempts=3)
    rows = []
    run = VideoRun(scorer.stages, [f"{address}/cut.ts"], Sampling(every=0.2), reading=reading)
    results = run.rows()
    for row in results:
        rows.append(row)
        if sum(r["status"] == "error" for r in rows) == 2:
            results.close()  # type: ignore[attr-defined]
            break
    errors = [r for r in rows if r["status"] == "error"]
    assert all("trying again in 0.05 s" in r["error"] for r in errors)
    scored = [r for r in rows if r["status"] == "ok"]
    assert len({r["scene"] for r in scored}) >= 2
    assert [r["time_s"] for r in scored] == sorted(r["time_s"] for r in scored)


class Flaky:
    """Stands for frames.Video: fails as often as told, then gives frames."""

    def __init__(self, failures: int, live: bool = True, *, count: int = 3, damaged: tuple[int, ...] = ()) -> None:
        self.left = failures
        self.count = count
        self.damaged = damaged
        self.attempts: list[float] = []
        self.opened = SimpleNamespace(live=live)

    def __call__(self) -> Any:
        self.attempts.append(time.monotonic())
        if self.left:
            self.left -= 1
            raise ImageError("no route to the camera")
        return self

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing is held."""

    def frames(self, wanted: Sampling, stop: threading.Event) -> Iterator[Frame]:
        self.wanted = wanted
        for i in range(self.count):
            yield Frame("camera", 100 + i, i, scene=0, error="damaged" if i in self.damaged else "")


def test_attempts_are_spaced_out_and_limited() -> None:
    camera = Flaky(100)
    found = list(
        follow(
            camera, "camera", Sampling(), threading.Event(), Reading(live=True, attempts=4, waits_s=(0.02, 0.05, 0.1))
        )
    )
    assert len(camera.attempts) == 4
    gaps = [b - a for a, b in zip(camera.attempts, camera.attempts[1:], strict=False)]
    assert all(gap >= wait for gap, wait in zip(gaps, (0.02, 0.05, 0.1), strict=True))
    assert "trying again in 0.02 s" in found[0].error
    assert found[-1].error == "no route to the camera; given up after 4 attempts in a row"


def test_a_frame_ends_the_row_of_failures_and_time_starts_at_zero() -> None:
    camera = Flaky(2)
    frames = follow(camera, "camera", Sampling(), threading.Event(), Reading(live=True, attempts=3, waits_s=(0.01,)))
    found = [next(frames) for _ in range(9)]
    assert [bool(f.error) for f in found] == [True, True, False, False, False, True, False, False, False]
    assert [f.time_s for f in found[2:5]] == [0, 1, 2]
    assert [f.number for f in found if not f.error] == [0, 1, 2, 3, 4, 5]
    assert [f.scene for f in found if not f.error] == [0, 0, 0, 1, 1, 1]


def test_a_file_that_cannot_be_opened_is_not_tried_again() -> None:
    missing = Flaky(5, live=False)
    found = list(follow(missing, "a.mp4", Sampling(), threading.Event()))
    assert [f.error for f in found] == ["no route to the camera"]


def test_a_camera_that_is_not_there_yet_is_tried_again() -> None:
    camera = Flaky(2)
    frames = follow(camera, "camera", Sampling(), threading.Event(), Reading(waits_s=(0.01,)), True)
    assert [bool(next(frames).error) for _ in range(5)] == [True, True, False, False, False]


def test_what_trying_again_cannot_help_is_tried_once() -> None:
    def opened() -> Any:
        raise RefusedError("only sound")

    found = list(follow(opened, "camera", Sampling(), threading.Event(), Reading(live=True, waits_s=(0.01,))))
    assert [f.error for f in found] == ["only sound"]


@pytest.mark.parametrize(
    ("wanted", "times"),
    [
        (Sampling(every=1, start=1, end=4), [1, 2, 3, 4]),
        (Sampling(count=2, end=5), [0, 1, 2, 3]),  # the stand-in does not sample: up to the middle of the last step
        (Sampling(every=1, start=2.0005, end=2.5), [2]),  # containers round
    ],
)
def test_a_stretch_is_one_of_our_clock(wanted: Sampling, times: list[float]) -> None:
    camera = Flaky(0, count=9)
    found = list(follow(camera, "camera", wanted, threading.Event(), Reading(live=True, waits_s=(0.01,))))
    assert [f.time_s for f in found] == times
    assert (camera.wanted.start, camera.wanted.end) == (0, math.inf)
    assert camera.wanted.count is None


def test_a_stretch_ends_though_the_camera_went_away() -> None:
    camera = Flaky(0)
    found = list(
        follow(camera, "camera", Sampling(every=1, end=2.05), threading.Event(), Reading(live=True, waits_s=(0.1,)))
    )
    assert [(f.time_s, bool(f.error)) for f in found][:3] == [(0, False), (1, False), (2, False)]
    assert len(camera.attempts) <= 3


def test_a_damaged_frame_of_a_camera_is_a_row_and_the_last_error_is_the_reason() -> None:
    camera = Flaky(0, count=5, damaged=(1, 4))
    frames = follow(camera, "camera", Sampling(), threading.Event(), Reading(live=True, waits_s=(0.01,)))
    found = [next(frames) for _ in range(5)]
    assert [f.error for f in found] == ["", "damaged", "", "", "damaged; trying again in 0.01 s"]


def test_waiting_ends_at_once_when_nobody_wants_more() -> None:
    stop = threading.Event()
    frames = follow(Flaky(100), "camera", Sampling(), stop, Reading(live=True, waits_s=(PATIENCE_S,)))
    assert next(frames).error
    stop.set()
    started = time.monotonic()
    assert list(frames) == []
    assert time.monotonic() - started < PATIENCE_S / 2


def test_readers_that_hang_in_the_network_hold_up_the_end_only_once(
    scorer: Scorer, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "clip.mp4", numbered(50))
    hanging = [f"{address}/silent{i}.mp4" for i in range(3)]
    reading = Reading(timeout_s=PATIENCE_S, streams=4)
    rows = VideoRun(scorer.stages, [*hanging, tmp_path / "clip.mp4"], Sampling(every=0.5), reading=reading).rows()
    next(rows)
    waits, now, join = list[float](), [0.0], threading.Thread.join

    def hangs(thread: threading.Thread, timeout: float | None = None) -> None:
        if getattr(getattr(thread, "_target", None), "__name__", "") != "_read":
            join(thread, timeout)
        elif timeout:
            waits.append(timeout)
            now[0] += timeout

    monkeypatch.setattr(threading.Thread, "join", hangs)
    monkeypatch.setattr("dgiqa.video.time", SimpleNamespace(monotonic=lambda: now[0]))
    rows.close()  # type: ignore[attr-defined]
    assert waits == [JOIN_S]


def test_a_missing_decoder_is_no_row(scorer: Scorer, tmp_path: Path) -> None:
    def broken() -> Any:
        raise BackendError("no decoder")

    with pytest.raises(BackendError, match="no decoder"):
        list(follow(broken, "camera", Sampling(), threading.Event(), Reading(live=True)))


def test_a_live_source_faster_than_the_scorer_loses_old_frames_and_counts_them(
    scorer: Scorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "camera.mkv", numbered(120, 96, 96))
    original = Networks.score
    run = VideoRun(scorer.stages, [path], Sampling(every=0), reading=Reading(live=True, attempts=1))
    monkeypatch.setattr(Networks, "score", lambda *a: (until(lambda: run.dropped > 20), original(*a))[1])
    rows = [r for r in run.rows() if r["status"] == "ok"]
    assert run.dropped > 20
    assert run.dropped + len(rows) == 120
    assert rows[-1]["frame"] == 119
