"""Many images through the pass: prepared ahead in threads, tiles of neighbours packed together, results in order.

    items ──► (threads: prepare) ──► Work ──► take ──► Batches.start ──► (threads: cut tiles, run) ──► settle ──► Score

Which thread does what: whoever takes tiles also settles batches, so a Work changes in that thread only; the batches'
own threads read pixels and return numbers.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

import numpy as np

from dgiqa.errors import BackendError, ImageError
from dgiqa.forward import Failure, Networks, Part, PartScores, Score, Stages, Work, enter, take
from dgiqa.image.sources import Source, name_of
from dgiqa.machine import preparing_threads

JOIN_S = 2.0  # at the end, images that are still being decoded are not waited for longer
T = TypeVar("T")
R = TypeVar("R")


def score_many(
    stages: Stages | Callable[[], Stages],
    sources: Iterable[Source | tuple[str, Source] | Failure],
    *,
    on_error: Literal["row", "raise"] = "row",
    workers: int | None = None,
    batch: int | None = None,
) -> Iterator[Score | Failure]:
    """`scorer.Scorer.score_many` over opened stages, or a function that opens them when the first result is wanted."""
    if on_error not in ("row", "raise"):
        raise ValueError(f'on_error is {on_error!r}, wanted "row" or "raise"')
    workers = preparing_threads() if workers is None else workers
    if workers < 1 or (batch is not None and batch < 1):
        raise ValueError(f"workers and batch must be at least 1, got {workers} and {batch}")
    one = isinstance(sources, str | Path | bytes | bytearray) or hasattr(sources, "read")
    if one or (isinstance(sources, np.ndarray) and sources.ndim < 4):
        raise ValueError(f"got one {type(sources).__name__}, wanted several images; score() takes one")
    return _score_many(stages, sources, on_error == "raise", workers, batch)


def _score_many(
    stages: Stages | Callable[[], Stages],
    sources: Iterable[Source | tuple[str, Source] | Failure],
    keep: bool,
    workers: int,
    batch: int | None,
) -> Iterator[Score | Failure]:
    opened = stages if isinstance(stages, Stages) else stages()
    stop = threading.Event()
    broken: list[Exception] = []
    running: deque[Future[Work | Failure]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="dgiqa")
    try:
        items = _until_error(sources, broken)
        prepared = _ordered_map(lambda item: _try_prepare(opened, item, stop, keep), items, pool, 2 * workers, running)
        for result in _pack(opened, prepared, batch or opened.networks.batch, keep):
            if isinstance(result, Failure) and result.exception:
                raise result.exception
            yield result
        if broken:
            raise broken[0]
    finally:
        stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
        if not wait(running, timeout=JOIN_S).not_done:
            pool.shutdown(wait=True)


def _try_prepare(
    stages: Stages, item: Source | tuple[str, Source] | Failure, stop: threading.Event, keep: bool
) -> Work | Failure:
    if isinstance(item, Failure):
        return item
    name = "<tuple>"
    try:
        name, source = _named(item)
        return stages.prepare(source, name, stages.tiling, stop=stop, look=True)
    except Exception as error:  # whatever one file does to a decoder, the other images go on
        return _failure(name, error, keep)


def _pack(
    stages: Stages, prepared: Iterable[Future[Work | Failure]], batch: int, keep: bool
) -> Iterator[Score | Failure]:
    """Run full batches of tiles, whichever images they come from; yield images in order as they complete."""
    networks, queue = stages.networks, deque[Work | Failure]()
    most = (networks.parallel + 1) * batch  # failures behind images that are not complete are not let pile up
    with Batches(networks) as batches:

        def settled(wait: bool) -> Iterator[Score | Failure]:
            _raise_what_failed(batches.settle(wait=wait))
            yield from _completed(stages, queue, keep)

        for coming in prepared:
            while batches.running and not coming.done():  # what is complete is handed out meanwhile
                yield from settled(wait=True)
            queue.append(coming.result())
            # A failure must not wait behind a few tiles either, so such a batch runs before it is full.
            while (tiles := waiting(queue)) >= batch or (tiles and _behind(queue) >= batch):
                batches.start(take(queue, batch))
                yield from settled(batches.full)
            yield from settled(len(queue) >= most)
        last = share(waiting(queue), batch, networks.parallel)
        while waiting(queue):
            batches.start(take(queue, last))
            yield from settled(batches.full)
        while queue:
            yield from settled(wait=True)


def _completed(stages: Stages, queue: deque[Work | Failure], keep: bool) -> Iterator[Score | Failure]:
    """Take what is done off the queue's head."""
    while queue and (isinstance(queue[0], Failure) or queue[0].complete):
        item = queue.popleft()
        yield item if isinstance(item, Failure) else _try_finish(stages, item, keep)


def _try_finish(stages: Stages, work: Work, keep: bool) -> Score | Failure:
    try:
        return stages.finish(work)
    except BackendError as error:
        return _failure(work.source, error, keep)


class Batches:
    """Batches on their way through the quality network, `networks.parallel` of them at a time and one being cut.

    A context manager; leaving it waits for the runs that go on.
    """

    def __init__(self, networks: Networks) -> None:
        self.networks = networks
        self._most = networks.parallel + 1
        self._pool = ThreadPoolExecutor(self._most, thread_name_prefix="dgiqa-batch")
        self._running: deque[tuple[list[Part], Future[list[PartScores]]]] = deque()

    @property
    def running(self) -> int:
        """Batches that are on their way or done, and not settled."""
        return len(self._running)

    @property
    def full(self) -> bool:
        """Whether another batch would have to wait."""
        return len(self._running) >= self._most

    def start(self, parts: list[Part]) -> None:
        """Run a batch of `take`n tiles."""
        self._running.append((parts, self._pool.submit(self.networks.score, parts)))

    def settle(self, *, wait: bool = False) -> tuple[list[Part], Exception | None] | None:
        """Enter the scores of the oldest batch into its images, if it is done; wait: until it is.

        Returns its parts and what went wrong with it, if anything did; None if there is none.
        """
        if not self._running or not (wait or self._running[0][1].done()):
            return None
        parts, future = self._running.popleft()
        if (error := future.exception()) is not None:
            if not isinstance(error, Exception):
                raise error
            return parts, error
        for part, found in zip(parts, future.result(), strict=True):
            enter(part, found)
        return parts, None

    def __enter__(self) -> Batches:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def waiting(works: Iterable[object]) -> int:
    """Windows of the works among these that no batch has taken."""
    return sum(work.left for work in works if isinstance(work, Work))


def share(tiles: int, batch: int, parallel: int) -> int:
    """Tiles per batch when no more are coming: what is left is shared out among the runs that could go on."""
    return max(1, min(batch, -(-tiles // parallel)))


def _ordered_map(
    function: Callable[[T], R],
    items: Iterable[T],
    pool: ThreadPoolExecutor,
    ahead: int,
    pending: deque[Future[R]],
) -> Iterator[Future[R]]:
    """map() on a pool: results to come, in order; at most `ahead` items are taken beyond the last one handed out.

    pending: holds those that are not handed out, and the last one that was.
    """
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) >= ahead:
            yield pending[0]
            pending.popleft()
    while pending:
        yield pending[0]
        pending.popleft()


def _until_error(items: Iterable[T], broken: list[Exception]) -> Iterator[T]:
    """The items up to the iterable's own failure, which is kept for later."""
    try:
        yield from items
    except Exception as error:
        broken.append(error)


def _behind(queue: Sequence[Work | Failure]) -> int:
    """How many images stand in the queue from the first on that has tiles waiting."""
    first = next((i for i, item in enumerate(queue) if isinstance(item, Work) and item.left), len(queue))
    return len(queue) - first


def _raise_what_failed(batch: tuple[list[Part], Exception | None] | None) -> None:
    if batch is not None and batch[1] is not None:
        raise batch[1]


def _failure(name: str, error: Exception, keep: bool) -> Failure:
    return Failure(name, type(error).__name__, str(error) or repr(error), error if keep else None)


def _named(item: Any) -> tuple[str, Source]:
    """(name, source) of what score_many was given."""
    if not isinstance(item, tuple):
        return name_of(item), item
    if len(item) != 2 or not isinstance(item[0], str):
        raise ImageError(f"got a tuple of {len(item)}, wanted an image or a pair (name, image)")
    return item
