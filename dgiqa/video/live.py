"""A source that may stall or go away -> its frames, with an error for each interruption.

Files are read once. A live address is opened again after it broke off, waiting longer each time, and time and scenes
go on from there.
"""

import math
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace

from dgiqa.errors import BackendError
from dgiqa.video.frames import Frame, Video
from dgiqa.video.sampling import ROUNDING_S, Sampling
from dgiqa.video.source import Reading, RefusedError


def follow(  # noqa: PLR0917 - a source and how it is read
    opened: Callable[[], Video],
    name: str,
    wanted: Sampling,
    stop: threading.Event,
    reading: Reading = Reading(),  # noqa: B008 - frozen
    likely_live: bool = False,
) -> Iterator[Frame]:
    """Frames of one source until it ends, `stop` is set, or a live one failed `reading.attempts` times in a row.

    opened: opens the source. likely_live: whether it is taken for live until it is open and says so itself. The first
    frame of a live one has time 0. A source that cannot be opened is a Frame with an error, but BackendError is raised,
    as no source could be opened then.
    """
    live, attempts, waits_s = reading.live, reading.attempts, reading.waits_s
    joined = _Joined(name)
    again = likely_live if live is None else live
    while not stop.is_set():
        try:
            with opened() as video:
                again = video.opened.live if live is None else live
                if not again:
                    yield from video.frames(wanted, stop)
                    return
                wanted = _by_time(wanted)
                now_on = replace(wanted, start=0.0, end=math.inf)  # its clock says nothing about ours
                reason = yield from _connection(joined.next(video.frames(now_on, stop)), wanted)
                if reason is None or stop.is_set():
                    return
        except BackendError:
            raise
        except Exception as error:  # the other sources go on
            reason = str(error) or type(error).__name__
            if not again or isinstance(error, RefusedError):
                yield joined.error(reason)
                return
        joined.failures += 1
        wait_s = waits_s[min(joined.failures, len(waits_s)) - 1]
        if given_up := joined.failures >= attempts:
            following = f"given up after {attempts} attempts in a row" if attempts > 1 else "given up"
        else:
            following = f"trying again in {wait_s:g} s"
        broken = joined.error(f"{reason}; {following}")
        yield broken
        if given_up or broken.time_s >= wanted.end or stop.wait(wait_s):
            return


def _connection(frames: Iterator[Frame], wanted: Sampling) -> Generator[Frame, None, str | None]:
    """One connection's frames from start to end. Returns why it ended, or None at the end asked for.

    An error is a row if anything comes after it; else it is the reason.
    """
    last: Frame | None = None
    for frame in frames:
        if last is not None:
            yield last
        last = frame if frame.error else None
        if frame.time_s > wanted.end:
            return None
        if not frame.error and frame.time_s + ROUNDING_S >= wanted.start:
            yield frame
    return last.error if last else "the source ended"


def _by_time(wanted: Sampling) -> Sampling:
    """A count spread over a stretch, as seconds between frames: the source may break off and begin again in it."""
    if wanted.count is None or math.isinf(wanted.end):
        return wanted
    step_s = (wanted.end - wanted.start) / wanted.count
    return Sampling(every=step_s, start=wanted.start, end=wanted.end - step_s / 2)


class _Joined:
    """The time, the frame numbers and the scenes of one source over several connections. Time 0 is its first frame."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.began: float | None = None
        self.last_s = 0.0
        self.number = 0
        self.scene = -1
        self.failures = 0  # in a row without a single frame

    def next(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        """One connection's frames: a stream's clock starts anywhere, ours goes on as time did."""
        first_s, first_scene = None, self.scene + 1
        for frame in frames:
            if first_s is None:
                first_s = frame.time_s
                offset = 0.0 if self.began is None else max(time.monotonic() - self.began, self.last_s)
                self.began = time.monotonic() if self.began is None else self.began
                first_number = self.number - (frame.number or 0)
            number = None if frame.number is None else first_number + frame.number
            time_s = frame.time_s - first_s + offset
            moved = replace(frame, time_s=time_s, number=number, scene=frame.scene + first_scene)
            self.last_s, self.scene = max(self.last_s, moved.time_s), moved.scene
            self.number = self.number if number is None else number + 1
            self.failures = self.failures if frame.error else 0
            yield moved

    def error(self, text: str) -> Frame:
        """An interruption, at the time it was noticed."""
        now_s = 0.0 if self.began is None else time.monotonic() - self.began
        return Frame(self.name, max(now_s, self.last_s), None, scene=max(self.scene, 0), error=text)
