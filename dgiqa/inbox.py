"""Images that are handed in one at a time, from any thread or event loop -> futures of their scores, by one pass.

    submit() (any thread) -> queue -> pipeline.schedule (a thread) -> Future[Score]

Neighbours share batches as in `Scorer.score_many`. The queue has no bound: a server for strangers checks `pending`
first.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import partial
from typing import Any

from dgiqa.forward import Stages
from dgiqa.image.sources import Source, name_of
from dgiqa.pipeline import ImageTask, checked_workers, schedule
from dgiqa.score import Failure, Score

_CLOSED = "the scorer was closed; make another one"


class Inbox:
    """A running pass. stages: opens the networks, called in the pass's thread. workers: as in `Scorer.score_many`."""

    def __init__(self, stages: Callable[[], Stages], *, workers: int | None = None) -> None:
        self._stages, self._workers = stages, checked_workers(workers, None)
        self._queue: queue.SimpleQueue[_Asked | None] = queue.SimpleQueue()
        self._bell = threading.Event()  # something was handed in
        self._futures: set[Future[Score]] = set()
        self._lock = threading.Lock()
        self._ended: BaseException | None = None
        self._last = False
        self._thread = threading.Thread(target=self._run, name="dgiqa-inbox", daemon=True)
        self._thread.start()

    @property
    def pending(self) -> int:
        """Images that were handed in and have no result yet."""
        return len(self._futures)

    @property
    def alive(self) -> bool:
        """Whether images are still taken."""
        return self._ended is None

    def submit(self, source: Source, *, name: str | None = None, tiling: str | None = None) -> Future[Score]:
        """The future of an image's score, or of the exception that `Scorer.score` would raise for it.

        An array must not change before it is done. A future that is cancelled while its image waits costs nothing.
        Raises ValueError after `close`, or whatever ended the pass.
        """
        asked = _Asked(source, name_of(source) if name is None else name, tiling)
        with self._lock:
            if self._ended is not None:
                raise self._ended
            self._futures.add(asked.future)
            self._queue.put(asked)
        self._bell.set()
        asked.future.add_done_callback(self._futures.discard)
        return asked.future

    def close(self) -> None:
        """Take no more images, and return when all that were handed in have their results."""
        with self._lock:
            self._ended = self._ended or ValueError(_CLOSED)
            self._queue.put(None)
        self._bell.set()
        self._thread.join()

    def _run(self) -> None:
        error: BaseException = ValueError(_CLOSED)
        try:
            stages = self._stages()
            more = partial(self._more, stages)
            for _ in schedule(stages.networks, more, ordered=False, workers=self._workers, bell=self._bell):
                pass
        except BaseException as broken:  # it is raised where results are waited for
            error = broken
        with self._lock:
            self._ended = error
        for future in list(self._futures):
            with suppress(InvalidStateError):  # it was cancelled, or is done
                future.set_exception(error)

    def _more(self, stages: Stages, wait: bool) -> "_Asked | None":
        while not self._last:
            try:
                asked = self._queue.get(block=wait)
            except queue.Empty:
                return None
            self._last = asked is None
            if asked is not None and asked.future.set_running_or_notify_cancel():
                try:
                    asked.stages = stages.tiled(asked.tiling)
                except ValueError as error:  # this image's own; the pass goes on
                    asked.future.set_exception(error)
                else:
                    return asked
        return None


class _Asked(ImageTask):
    """One image, and the future of its score."""

    def __init__(self, source: Any, name: str, tiling: str | None) -> None:
        self.item, self.tiling, self.keep = (name, source), tiling, True
        self.future: Future[Score] = Future()

    def fail(self, error: Exception) -> None:
        self.works = ()
        self.future.set_exception(error)

    def finish(self) -> Score | Failure:
        found = super().finish()
        if isinstance(found, Score):
            self.future.set_result(found)
        elif not self.future.done():  # by `fail`
            self.future.set_exception(found.exception)
        return found
