"""Tiles of several images share runs of the quality network, and several runs go on at a time.

    Work (an image between preparation and score) ──► take ──► Batches.start ──► (threads: cut tiles, run) ──► settle

Which thread does what: whoever takes tiles also settles batches, so a Work changes in that thread only; the batches'
own threads read pixels and return numbers.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from dgiqa import preprocess, spec
from dgiqa.attributes import Attributes
from dgiqa.runtime.session import Session

# Tiles per run. Two cores (Zen 3), small quality network, ms per tile: 7.0 alone, 5.6 from 4 tiles on, flat to 32.
# Memory is not flat: two runs side by side hold 221 MB with 4 tiles each, 296 MB with 8.
BATCH, BATCH_SIDE_BY_SIDE = 8, 4


@dataclass(eq=False)
class Work:
    """One image between its two halves. Tiles are cut from the working image when their batch runs: as floats they
    take 1.2 MB each, and neither look-ahead nor a thousand windows should cost that."""

    source: str
    tiles: str
    height: int
    width: int
    rgb: NDArray[np.uint8]  # [h,w,3] working image
    depth: NDArray[np.uint8]  # [h,w]
    windows: NDArray[np.int32]  # [n,2]
    timings_ms: dict[str, float]
    tile_scores: NDArray[np.float32]  # [n], those of settled batches
    taken: int = 0  # windows that are in a batch, the first ones
    settled: int = 0  # windows whose score is known
    attributes: Attributes | None = None
    notes: tuple[str, ...] = ()  # what to know besides: about the file, and bars
    extra: dict[str, NDArray[np.float32]] = field(default_factory=dict)  # further outputs of the network, [n,columns]

    @property
    def left(self) -> int:
        """Windows that no batch has taken."""
        return len(self.windows) - self.taken

    @property
    def complete(self) -> bool:
        return self.settled == len(self.windows)


@dataclass(frozen=True, eq=False)
class Part:
    """`count` windows of one image, from number `begin` on."""

    work: Work
    begin: int
    count: int


@dataclass(frozen=True, eq=False)
class PartScores:
    """What a run said of one Part. scores: f32 [count]. The times are this part's own, ms.

    extra: further outputs of the network by name, f32 [count,columns].
    """

    scores: NDArray[np.float32]
    cut_ms: float
    run_ms: float
    extra: dict[str, NDArray[np.float32]] = field(default_factory=dict)


class Networks:
    """A bundle's two networks as sessions, and how many runs of them may go on at a time (`parallel`).

    batch: most tiles per run of the quality network, by default what costs little memory and no time. mapped: what
    the bundle does with tile scores f32 [n], nothing by default. Hold `turn` around a run of either.
    """

    def __init__(  # noqa: PLR0917 - what a bundle is opened as
        self,
        depth: Session,
        quality: Session,
        parallel: int,
        tile: int,
        batch: int | None = None,
        mapped: Callable[[NDArray[np.float32]], NDArray[np.float32]] = lambda scores: scores,
    ) -> None:
        self.depth, self.quality, self.mapped = depth, quality, mapped
        self.parallel, self.tile = parallel, tile
        self.batch = batch or (BATCH if parallel == 1 else BATCH_SIDE_BY_SIDE)
        self.turn = threading.BoundedSemaphore(parallel)
        self._spare: deque[NDArray[np.float32]] = deque(maxlen=parallel + 1)

    def score(self, parts: list[Part]) -> list[PartScores]:
        """Cut the parts' tiles and run the quality network once over all of them; one answer per part."""
        total = sum(part.count for part in parts)
        memory = self._tile_memory(total)
        cut_ms = self._cut(parts, memory)
        feeds = {spec.QUALITY_RGB: memory[0, :total], spec.QUALITY_DEPTH: memory[1, :total]}
        with self.turn:
            started = time.perf_counter()
            found = dict(self.quality.run(feeds))
            ms_per_tile = ms_since(started) / total
        self._spare.append(memory)
        scores = self.mapped(found.pop(spec.QUALITY_OUTPUT))
        ends = np.cumsum([part.count for part in parts])
        spans = [slice(end - part.count, end) for part, end in zip(parts, ends, strict=True)]
        return [
            PartScores(scores[span], ms, ms_per_tile * part.count, {name: each[span] for name, each in found.items()})
            for part, span, ms in zip(parts, spans, cut_ms, strict=True)
        ]

    def close(self) -> None:
        """Release what the sessions hold: engines on a GPU have memory of their own."""
        for session in (self.depth, self.quality):
            getattr(session, "close", lambda: None)()
        self._spare.clear()

    def _cut(self, parts: list[Part], memory: NDArray[np.float32]) -> list[float]:
        """Put the parts' tiles into memory [2,>=n,3,tile,tile]: rgb, depth. Returns each part's ms."""
        begin, each = 0, []
        for part in parts:
            started = time.perf_counter()
            into, work = memory[:, begin : begin + part.count], part.work
            windows = work.windows[part.begin : part.begin + part.count]
            preprocess.cut_tiles(work.rgb, work.depth, windows, self.tile, out=(into[0], into[1]))
            each.append(ms_since(started))
            begin += part.count
        return each

    def _tile_memory(self, count: int) -> NDArray[np.float32]:
        """f32 [2,>=count,3,tile,tile], of an earlier batch if one is free: new pages take longer than the tiles."""
        with suppress(IndexError):  # other threads have them, or there was none
            memory = self._spare.pop()
            if memory.shape[1] >= count:
                return memory
        return np.empty((2, count, 3, self.tile, self.tile), np.float32)


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


def enter(part: Part, found: PartScores) -> None:
    """Put a part's scores and times into its image."""
    work = part.work
    work.tile_scores[part.begin : part.begin + part.count] = found.scores
    for name, values in found.extra.items():
        rows = work.extra.setdefault(name, np.full((len(work.windows), values.shape[1]), np.nan, np.float32))
        rows[part.begin : part.begin + part.count] = values
    work.settled += part.count
    for stage, ms in (("tiles", found.cut_ms), ("quality", found.run_ms)):
        work.timings_ms[stage] = work.timings_ms.get(stage, 0.0) + ms


def take(works: Iterable[object], batch: int) -> list[Part]:
    """The first `batch` windows of the works among these that no batch has taken yet; now this one has."""
    parts = []
    for work in works:
        if isinstance(work, Work) and (count := min(work.left, batch)):
            parts.append(Part(work, work.taken, count))
            work.taken += count
            batch -= count
    return parts


def waiting(works: Iterable[object]) -> int:
    """Windows of the works among these that no batch has taken."""
    return sum(work.left for work in works if isinstance(work, Work))


def share(tiles: int, batch: int, parallel: int) -> int:
    """Tiles per batch when no more are coming: what is left is shared out among the runs that could go on."""
    return max(1, min(batch, -(-tiles // parallel)))


def ms_since(started: float) -> float:
    """Milliseconds since a time of `time.perf_counter`."""
    return (time.perf_counter() - started) * 1e3
