"""Whatever happened to a video: a frame or an error for each, no crash, and nothing that goes on for ever."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import pytest
from damage import damaged
from video_clips import av, numbered, write
from waiting import PATIENCE_S

from dgiqa.errors import DgiqaError
from dgiqa.video.frames import Video
from dgiqa.video.sampling import Sampling

VIDEOS = 300
KINDS: dict[str, dict[str, Any]] = {
    "h264.mp4": {},
    "h264.mkv": {},
    "h264.ts": {},
    "h265.mkv": {"codec": "libx265", "options": {"x265-params": "log-level=none"}},
    "mpeg4.avi": {"codec": "mpeg4"},
    "mjpeg.avi": {"codec": "mjpeg", "layout": "yuvj420p"},
    "mpeg2.mpg": {"codec": "mpeg2video"},
}


def changed(whole: bytes, random: Random) -> bytes:
    """Damage here and there, many wrong bytes, or only the beginning."""
    kind = random.random()
    if kind < 0.2:
        return whole[: random.randrange(1, len(whole))]
    if kind < 0.7:
        return damaged(whole, random)
    out = bytearray(whole)
    for _ in range(20):
        out[random.randrange(len(out))] = random.randrange(256)
    return bytes(out)


def outcome(path: Path) -> str:
    """What decoding all of it comes to: "" is as wanted."""
    try:
        with Video(path) as video:
            rows = list(video.frames(Sampling(every=0)))
    except DgiqaError as error:
        return "" if "\n" not in str(error) and str(error) else f"an error in other than one line: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if not rows:
        return "neither frame nor error"
    unclear = [row for row in rows if (row.rgb is None) != bool(row.error)]
    return f"{len(unclear)} rows that are not either a frame or an error" if unclear else ""


def decode_each(pipe: Connection) -> None:
    """Runs in a process of its own, which may crash or hang: the outcome of each path that comes.

    With PyAV's logging on, a decoding thread that complains waits for Python's lock, which who ends it may hold.
    """
    av.logging.set_level(av.logging.PANIC)  # which is without a word, but for errors, that go to Python's logging
    logging.disable()
    while True:
        pipe.send(outcome(pipe.recv()))


class Decoder:
    """decode_each in another process: another one after each crash or hang."""

    def __init__(self) -> None:
        self.process: Any = None

    def __call__(self, path: Path) -> str:
        if not self.process:
            self._start()
        try:
            self.pipe.send(path)
            if self.pipe.poll(PATIENCE_S):
                return str(self.pipe.recv())
            problem = f"nothing after {PATIENCE_S} s"
        except (EOFError, ConnectionError):
            self.process.join()
            problem = f"a crash, exit code {self.process.exitcode}"
        self.close()
        return problem

    def close(self) -> None:
        if self.process:
            self.process.kill()
            self.process.join()
            self.pipe.close()
        self.process = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=decode_each, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()


@pytest.fixture
def decoder() -> Iterator[Callable[[Path], str]]:
    decode = Decoder()
    yield decode
    decode.close()


@pytest.mark.long
def test_damaged_videos_give_frames_or_errors(tmp_path: Path, decoder: Callable[[Path], str]) -> None:
    whole = {kind: write(tmp_path / kind, numbered(12), **options).read_bytes() for kind, options in KINDS.items()}
    wrong = {}
    for seed in range(VIDEOS):
        kind = list(KINDS)[seed % len(KINDS)]
        path = tmp_path / f"{seed}-{kind}"
        path.write_bytes(changed(whole[kind], Random(seed)))
        if problem := decoder(path):
            wrong[path.name] = problem
        path.unlink()
    assert not wrong
