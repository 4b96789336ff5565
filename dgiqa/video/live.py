"""A source that may stall or go away -> its frames, with an error in the place of each interruption.

Files are read once. A live address is opened again after it broke off, waiting longer each time, and time and scenes
go on from there.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from dgiqa.errors import ImageError
from dgiqa.video.frames import Frame, Video
from dgiqa.video.sampling import Sampling

WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # before each further attempt; the last one repeats
ATTEMPTS = 10  # in a row without a single frame, then the source is given up


def follow(
    opened: Callable[[], Video],
    name: str,
    wanted: Sampling,
    stop: threading.Event,
    *,
    live: bool | None = None,
    attempts: int = ATTEMPTS,
    waits_s: tuple[float, ...] = WAITS_S,
) -> Iterator[Frame]:
    """Frames of one source until it ends, `stop` is set, or a live one failed `attempts` times in a row.

    opened: opens the source. live: whether to open it again after it ended; None asks the source. A source that cannot
    be opened is a Frame with an error; BackendError is raised, for no source could be opened then.
    """
    joined = _Joined(name)
    failures, again = 0, bool(live)
    while True:
        reason = ""
        try:
            with opened() as video:
                again = video.live if live is None else live
                if not again:
                    yield from video.frames(wanted, stop)
                    return
                for frame in joined.next(video.frames(replace(wanted, start=0.0, end=math.inf), stop)):
                    if frame.time_s > wanted.end:
                        return
                    reason, failures = frame.error, failures if frame.error else 0
                    if not frame.error:
                        yield frame
        except ImageError as error:
            reason = str(error)
            if not again:
                yield joined.error(reason)
                return
        if stop.is_set():
            return
        failures += 1
        wait_s = waits_s[min(failures, len(waits_s)) - 1]
        given_up = failures >= attempts
        what = f"given up after {failures} attempts in a row" if given_up else f"trying again in {wait_s:g} s"
        yield joined.error(f"{reason or 'the source ended'}; {what}")
        if given_up or stop.wait(wait_s):
            return


class _Joined:
    """The time, the frame numbers and the scenes of one source over several connections. Time 0 is its first frame."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.began: float | None = None
        self.last_s = 0.0
        self.number = 0
        self.scene = -1

    def next(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        """One connection's frames: a stream's clock starts anywhere, ours goes on as time did."""
        first_s, first_scene = None, self.scene + 1
        for frame in frames:
            if first_s is None:
                first_s = frame.time_s
                offset = 0.0 if self.began is None else max(time.monotonic() - self.began, self.last_s)
                self.began = time.monotonic() if self.began is None else self.began
                first_number = self.number
            number = None if frame.number is None else first_number + frame.number
            moved = replace(
                frame, time_s=frame.time_s - first_s + offset, number=number, scene=frame.scene + first_scene
            )
            self.last_s, self.scene = max(self.last_s, moved.time_s), moved.scene
            self.number = self.number if number is None else number + 1
            yield moved

    def error(self, text: str) -> Frame:
        """An interruption, at the time it was noticed."""
        now_s = 0.0 if self.began is None else time.monotonic() - self.began
        return Frame(self.name, max(now_s, self.last_s), None, scene=max(self.scene, 0), error=text)
