"""A bounded queue: of frames from the threads that read sources to the one that scores, and of rows from there.

A full channel makes a file's reader wait; for a live source it drops the oldest frame and counts it.
"""

import math
import threading
import time
from collections import deque
from typing import Any

CAPACITY = 4  # frames in a channel: a 4K frame is 25 MB


class Channel:
    """A bounded queue between threads, for any number of producers. Only Frames can be put with `newest_wins`."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1 frame, got {capacity}")
        self.capacity = capacity
        self.dropped = 0
        self.bell = threading.Event()  # rung by every frame and by the end, so that the scheduler looks again
        self._frames: deque[Any] = deque()
        self._changed = threading.Condition()
        self._open = True

    def put(self, frame: Any, *, newest_wins: bool = False, timeout: float | None = None) -> bool:
        """Add a frame: wait for room, or drop the oldest one of the same source. False if closed or out of time."""
        with self._changed:
            if newest_wins and len(self._frames) >= self.capacity and not frame.error:
                self._drop_oldest(frame.source)
            elif not self._changed.wait_for(lambda: len(self._frames) < self.capacity or not self._open, timeout):
                return False
            if not self._open:
                return False
            self._frames.append(frame)
            self._changed.notify_all()
            self.bell.set()
            return True

    def get(self, *, wait: bool = True, timeout: float = math.inf) -> Any:
        """The next frame, or None: none has come (without waiting, or in `timeout` seconds), or none will."""
        end = time.monotonic() + timeout
        with self._changed:
            # It wakes now and then, so that a signal's handler gets its turn on every platform.
            while wait and not self._frames and self._open and (left := end - time.monotonic()) > 0:
                self._changed.wait(min(0.5, left))
            if not self._frames:
                return None
            frame = self._frames.popleft()
            self._changed.notify_all()
            return frame

    def finish(self) -> None:
        """Take no more frames; those inside are still handed out."""
        with self._changed:
            self._open = False
            self._changed.notify_all()
            self.bell.set()

    def _drop_oldest(self, source: str) -> None:
        """Drop the source's own oldest frame: a busy camera must not push out a quiet one."""
        own = next((f for f in self._frames if f.source == source and not f.error), None)
        victim = own or next((f for f in self._frames if not f.error), self._frames[0])
        self._frames.remove(victim)
        self.dropped += 1
