"""The one scheduler: items prepared ahead in threads, tiles of neighbours packed together, results in order.

    more ──► Task ──► (threads: prepare) ──► arrange ──► take ──► Batches.start ──► (threads: cut tiles, run) ──► finish

Images (`score_many`), frames of videos and pushed frames (`video.scoring`) all run through `schedule`. The thread that
iterates the results takes tiles and settles batches, so a Work changes in that thread only; the batches' own threads
read pixels and return numbers. Memory is bounded: at most `ahead` items are being prepared, and those that wait for
their tiles make up a few batches.
"""

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from dgiqa.errors import BackendError, ImageError
from dgiqa.forward import Networks, Stages
from dgiqa.image.sources import Source, name_of
from dgiqa.machine import preparing_threads
from dgiqa.score import Failure, Score
from dgiqa.sources.inputs import Input
from dgiqa.work import Part, PartScores, Work, enter, take

JOIN_S = 2.0  # how long the end waits for items that are still being prepared
T = TypeVar("T")
R = TypeVar("R")


class Task(ABC, Generic[R]):
    """One item on its way through `schedule`. works: those whose windows it needs, known once it is arranged."""

    works: Sequence[Work] = ()
    prepared: Future[Any]

    @abstractmethod
    def prepare(self, stop: threading.Event) -> Any:
        """In a worker's thread: do everything up to the tiles. Give up once stop is set."""

    @abstractmethod
    def arrange(self) -> None:
        """In the scheduler's thread, in order, once `prepared` is done: decide on `works`."""

    @abstractmethod
    def fail(self, error: Exception) -> None:
        """A batch with windows of this task failed. Raise, or leave `works` empty."""

    @abstractmethod
    def finish(self) -> R:
        """Return the result. All works are complete by then."""


def schedule(
    networks: Networks,
    more: Callable[[bool], Task[R] | None],
    *,
    batch: int | None = None,
    workers: int,
    ahead: int | None = None,
    bell: threading.Event | None = None,
    ordered: bool = True,
) -> Generator[R]:
    """Yield results of tasks, in order. Closing ends the threads after their current stage and waits JOIN_S at most.

    more: gives the next task. more(True) may wait for it, and None is the end; None from more(False) means "not yet",
    and `bell` is rung when there is one. workers: threads that prepare. ahead: most tasks in preparation, by default
    2 * workers. ordered: False gives results as they come, so that none waits behind a larger image.
    """
    batch, ahead, bell = batch or networks.batch, ahead or 2 * workers, bell or threading.Event()
    most = (networks.parallel + 1) * batch  # so that failures do not pile up behind incomplete items
    coming, running = list[Task[R]](), list[Task[R]]()  # being prepared; arranged, without a result yet
    stop, process = threading.Event(), os.getpid()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="dgiqa")

    def ring(_: object = None) -> None:
        bell.set()  # something came, was prepared, ran or made room: look again

    try:
        with Batches(networks, ring) as batches:
            while True:
                bell.clear()
                if os.getpid() != process:
                    raise BackendError(f"these results belong to process {process}, not to its fork; take them there")
                while len(coming) < ahead and (task := more(not (coming or running))) is not None:
                    task.prepared = pool.submit(task.prepare, stop)
                    task.prepared.add_done_callback(ring)
                    coming.append(task)
                if not coming and not running:
                    return
                while (
                    waiting(running) < batch
                    and len(running) < most
                    and (task := _first(coming, lambda t: t.prepared.done(), ordered))
                ):
                    running.append(task)
                    task.arrange()
                # Batches are full as long as more is known to come. After that a live stream must not wait for tiles,
                # and the last ones are shared out among the runs, or all but one would be idle.
                idle = not coming
                size = share(waiting(running), batch, networks.parallel) if idle else batch
                # A failure must not wait behind a few tiles either, so such a batch runs before it is full. Unordered
                # results are waited for one by one, so no run is idle then while there are tiles.
                while (
                    len(batches.running) < batches.most
                    and (left := waiting(running))
                    and (
                        (idle or left >= batch or _behind(running) >= batch)
                        or (not ordered and len(batches.running) < networks.parallel)
                    )
                ):
                    batches.start(take(_works(running), size))
                    ring()
                for parts, error in batches.settle():
                    failed = {id(part.work) for part in parts if error}
                    for task in running:
                        if error and any(id(work) in failed for work in task.works):
                            task.fail(error)
                    ring()
                while task := _first(running, lambda t: all(work.complete for work in t.works), ordered):
                    result, task = task.finish(), None  # or its pixels would be held while results are yielded
                    yield result
                    ring()
                bell.wait()
    finally:
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
        if not wait([task.prepared for task in coming if not task.prepared.cancelled()], timeout=JOIN_S).not_done:
            pool.shutdown(wait=True)


def score_many(
    stages: Stages | Callable[[], Stages],
    sources: Iterable[Source | tuple[str, Source] | Input | Failure],
    *,
    on_error: Literal["row", "raise"] = "row",
    workers: int | None = None,
    batch: int | None = None,
) -> Iterator[Score | Failure]:
    """`scorer.Scorer.score_many` over opened stages, or a function that opens them when the first result is wanted."""
    if on_error not in ("row", "raise"):
        raise ValueError(f'on_error is {on_error!r}, wanted "row" or "raise"')
    workers = checked_workers(workers, batch)
    one = isinstance(sources, str | Path | bytes | bytearray) or hasattr(sources, "read")
    if one or (isinstance(sources, np.ndarray) and sources.ndim < 4):
        raise ValueError(f"got one {type(sources).__name__}, wanted several images; score() takes one")

    def results() -> Iterator[Score | Failure]:
        opened = stages if isinstance(stages, Stages) else stages()
        broken: list[Exception] = []
        images = (ImageTask(opened, item, on_error == "raise") for item in _until_error(sources, broken))
        found = schedule(opened.networks, lambda _: next(images, None), batch=batch, workers=workers)
        with closing(found):
            for result in found:
                if isinstance(result, Failure) and result.exception:
                    raise result.exception
                yield result
        if broken:
            raise broken[0]

    return results()


class ImageTask(Task["Score | Failure"]):
    """One image of `score_many` or of an inbox. keep: whether a failure keeps its exception, to be raised."""

    def __init__(self, stages: Stages, item: Source | tuple[str, Source] | Input | Failure, keep: bool) -> None:
        self.stages, self.item, self.keep = stages, item, keep

    def prepare(self, stop: threading.Event) -> Work | Failure:
        item, self.item = self.item, ""  # an array is released as soon as it has a working image
        if isinstance(item, Failure):
            return item
        if isinstance(item, Input):
            name = item.name if item.key is None else item.key
            if item.error:
                return self._failure(name, ImageError(item.error))
            item = name, item.source
        name = "<tuple>"
        try:
            name, source = _named(item)
            return self.stages.prepare(source, name, stop=stop, look=True)
        except Exception as error:  # whatever one file does to a decoder, the other images go on
            return self._failure(name, error)

    def arrange(self) -> None:
        work = self.prepared.result()
        self.works = () if isinstance(work, Failure) else (work,)

    def fail(self, error: Exception) -> None:
        raise error

    def finish(self) -> Score | Failure:
        work: Work | Failure = self.prepared.result()
        if isinstance(work, Failure):
            return work
        try:
            return self.stages.finish(work)
        except BackendError as error:
            return self._failure(work.source, error)

    def _failure(self, name: str, error: Exception) -> Failure:
        return Failure(name, type(error).__name__, str(error) or repr(error), error if self.keep else None)


def checked_workers(workers: int | None, batch: int | None) -> int:
    """The number of threads that prepare: `workers`, or as many as suit the cores. Raises ValueError below 1."""
    workers = preparing_threads() if workers is None else workers
    if workers < 1 or (batch is not None and batch < 1):
        raise ValueError(f"workers and batch must be at least 1, got {workers} and {batch}")
    return workers


class Batches(AbstractContextManager["Batches"]):
    """Batches on their way through the quality network, `networks.parallel` of them at a time and one being cut.

    A context manager; leaving it waits for the runs in progress.
    """

    def __init__(self, networks: Networks, ring: Callable[[object], None]) -> None:
        self.networks, self._ring = networks, ring
        self.most = networks.parallel + 1  # cutting 4 tiles takes 0.8 ms, their run 31: one more feeds all
        self.running: dict[Future[list[PartScores]], list[Part]] = {}  # started and not settled
        self._pool = ThreadPoolExecutor(self.most, thread_name_prefix="dgiqa-batch")

    def start(self, parts: list[Part]) -> None:
        """Run a batch of `take`n tiles; `ring` is called when it is done."""
        future = self._pool.submit(self.networks.score, parts)
        self.running[future] = parts
        future.add_done_callback(self._ring)

    def settle(self) -> Iterator[tuple[list[Part], Exception | None]]:
        """Enter the scores of finished batches into their images; yield the parts of each and its error or None."""
        for future in [future for future in self.running if future.done()]:
            parts, error = self.running.pop(future), future.exception()
            if not isinstance(error, Exception | None):
                raise error
            for part, found in zip(parts, () if error else future.result(), strict=not error):
                enter(part, found)
            yield parts, error

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def waiting(tasks: Iterable[Task[Any]]) -> int:
    """Windows of these tasks that no batch has taken."""
    return sum(work.left for work in _works(tasks))


def share(tiles: int, batch: int, parallel: int) -> int:
    """Tiles per batch when no more are coming: the rest is shared out among the parallel runs."""
    return max(1, min(batch, -(-tiles // parallel)))


def _until_error(items: Iterable[T], broken: list[Exception]) -> Iterator[T]:
    """The items up to the iterable's own exception, which is kept for later."""
    try:
        yield from items
    except Exception as error:
        broken.append(error)


def _works(running: Iterable[Task[Any]]) -> Iterator[Work]:
    return (work for task in running for work in task.works)


def _behind(running: Sequence[Task[Any]]) -> int:
    """How many tasks there are from the first one on that has tiles waiting."""
    first = next((i for i, task in enumerate(running) if waiting([task])), len(running))
    return len(running) - first


def _first(tasks: list[Task[R]], ready: Callable[[Task[R]], bool], ordered: bool) -> Task[R] | None:
    """Take out the first task that is ready; if they are ordered, only the head can be."""
    at = next((at for at, task in enumerate(tasks[:1] if ordered else tasks) if ready(task)), None)
    return None if at is None else tasks.pop(at)


def _named(item: Any) -> tuple[str, Source]:
    """The (name, source) of an item of `score_many`."""
    if not isinstance(item, tuple):
        return name_of(item), item
    if len(item) != 2 or not isinstance(item[0], str):
        raise ImageError(f"got a tuple of {len(item)}, wanted an image or a pair (name, image)")
    return item
