"""Pushed pictures -> rows to pull, from any threads: scoring inside a caller's capture loop.

    push() (any thread) -> Channel -> FrameScorer (a thread) -> rows -> pull() (any thread)

Memory is bounded: a full channel, also of waiting rows, makes `push` wait, or drops the oldest frame.
"""

import math
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from dgiqa.dtypes import UInt8
from dgiqa.errors import ImageError
from dgiqa.image.arrays import as_rgb
from dgiqa.runtime.kernels import is_on_gpu
from dgiqa.video.channel import Channel
from dgiqa.video.frames import Frame
from dgiqa.video.sampling import SceneCuts, thumbnail
from dgiqa.video.scoring import FrameScorer


class FrameStream(AbstractContextManager["FrameStream"]):
    """Push frames, pull rows, from any threads. Made by `Scorer.stream`; a context manager.

    live: a full queue drops its oldest frame instead of making `push` wait. capacity: frames and rows waiting.
    """

    def __init__(self, scorer: FrameScorer, *, live: bool, capacity: int) -> None:
        self.live = live
        self._scorer = scorer
        self._rows = Channel(capacity)
        self._lock = threading.Lock()
        self._cuts: dict[str, SceneCuts] = {}
        self._count: dict[str, int] = {}
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="dgiqa-stream", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Frames dropped so far because newer ones came."""
        return self._scorer.channel.dropped

    def push(self, image: Any, time_s: float, *, source: str = "stream", timeout: float | None = None) -> bool:
        """Hand in one picture, which is copied. False if there was no room in `timeout` seconds, or after `finish`.

        image: an array as `Scorer.score` takes, or anything with `__dlpack__` in the CPU's memory, [H,W,3]. One on a
        GPU is not copied: it must not change until its row has come, and gets no scene of its own; a stream with reuse
        copies it to the host, where frames are compared. time_s: seconds, reported in its row. source: frames of one
        source are compared with each other, for scenes and reuse.
        Raises ImageError for anything but a picture, and the error that ended the scoring, if any.
        """
        self._raise()
        if is_on_gpu(image) and self._scorer.reuse:
            image = self._scorer.stages.networks.on_gpu().to_host(image)
        rgb, thumb = (image, None) if is_on_gpu(image) else _copied(image)
        with self._lock:
            number = self._count.get(source, 0)
            self._count[source] = number + 1
            scene = 0 if thumb is None else self._cuts.setdefault(source, SceneCuts()).scene_of(thumb)
        frame = Frame(source, float(time_s), number, rgb, thumb, scene)
        return self._scorer.channel.put(frame, newest_wins=self.live, timeout=timeout)

    def pull(self, timeout: float | None = None) -> dict[str, Any] | None:
        """The next row, in the order of the pushes; None after the last one, or when none came in `timeout` seconds."""
        row: dict[str, Any] | None = self._rows.get(timeout=math.inf if timeout is None else timeout)
        if row is None:
            self._raise()
        return row

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Rows until `finish` was called and all frames are done."""
        return iter(self.pull, None)

    def finish(self) -> None:
        """Declare that no more frames will be pushed."""
        self._scorer.channel.finish()

    def close(self) -> None:
        """End at once; rows not pulled are lost."""
        self._rows.finish()
        self.finish()
        self._thread.join()
        while self._rows.get(wait=False) is not None:
            pass

    def __exit__(self, *error: object) -> None:
        self.close()

    def _work(self) -> None:
        results = self._scorer.results()
        try:
            for result in results:
                if not self._rows.put(result.as_row(self._scorer.stages)):
                    break
        except BaseException as error:  # raised to the callers that pull
            self._error = error
        finally:
            results.close()
            self._rows.finish()
            self._scorer.channel.finish()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error


def _copied(image: Any) -> tuple[UInt8, UInt8]:
    """A picture in the CPU's memory as RGB of our own, and its thumbnail."""
    rgb = as_rgb(_from_dlpack(image))
    rgb = rgb.copy() if np.may_share_memory(rgb, image) or not isinstance(image, np.ndarray) else rgb
    return rgb, thumbnail(rgb)


def _from_dlpack(image: Any) -> Any:
    """An array of another library, without a copy, if it is in the CPU's memory."""
    if isinstance(image, np.ndarray) or not hasattr(image, "__dlpack__"):
        return image
    device = image.__dlpack_device__()[0]
    if int(device) != 1:  # kDLCPU
        raise ImageError(f"the frame is on DLPack device {int(device)}, wanted 1, the CPU; copy it there first")
    return np.from_dlpack(image)
