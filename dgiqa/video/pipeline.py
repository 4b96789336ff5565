"""Frames of one or many sources -> results: preparation, depth and quality overlap, tiles of neighbours share batches.

    sources (threads) -> Channel -> prepare, depth (threads) -> quality, batch by batch (threads) -> results

Nothing grows: a channel holds a few frames, the pipeline a few more. A full channel makes a file's reader wait; of a
live source it drops the oldest frame and counts it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from dgiqa import spec
from dgiqa.errors import BackendError, DgiqaError, ImageError
from dgiqa.forward import Stages, Work, check_tiling, take
from dgiqa.machine import preparing_threads
from dgiqa.pipeline import Batches, share, waiting
from dgiqa.video.frames import Frame
from dgiqa.video.reuse import DepthKeeper, Drift, Plan, Reuse, TileKeeper

UInt8 = NDArray[np.uint8]

CAPACITY = 4  # frames in a channel: a 4K frame is 25 MB


@dataclass(eq=False)
class Result:
    """One frame's outcome. score is None with an error; std_error also with a single tile.

    reused: "" (all computed), "depth" or "depth+tiles". tiles: how many; tiles_reused: of them, taken over.
    drift: score with reuse minus score without, where both were computed; then `score` is the one without.
    reasons: as in Score. picture: the working image, uint8 [h,w,3]. frame: without its pixels. ms: time in
    preparation and networks.
    """

    frame: Frame
    score: float | None = None
    std_error: float | None = None
    error: str = ""
    reused: str = ""
    tiles: int = 0
    tiles_reused: int = 0
    drift: float | None = None
    width: int | None = None
    height: int | None = None
    ms: float | None = None
    reasons: dict[str, float] = field(default_factory=dict)
    picture: UInt8 | None = field(default=None, repr=False)


class Channel:
    """A bounded queue between threads, for any number of producers."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1 frame, got {capacity}")
        self.capacity = capacity
        self.dropped = 0
        self._frames: deque[Frame] = deque()
        self._changed = threading.Condition()
        self._open = True

    def put(self, frame: Frame, *, newest_wins: bool = False, timeout: float | None = None) -> bool:
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
            return True

    def get(self, *, wait: bool = True) -> Frame | None:
        """The next frame; None when there is none yet (without waiting) or ever again."""
        with self._changed:
            if wait:
                # Woken now and then, so that a signal's handler gets its turn on every platform
                while not self._frames and self._open:
                    self._changed.wait(0.5)
            if not self._frames:
                return None
            frame = self._frames.popleft()
            self._changed.notify_all()
            return frame

    def finish(self) -> None:
        """No more frames come; those inside are still handed out."""
        with self._changed:
            self._open = False
            self._changed.notify_all()

    def _drop_oldest(self, source: str) -> None:
        """Drop the source's own oldest frame: a busy camera must not push out a quiet one."""
        own = next((f for f in self._frames if f.source == source and not f.error), None)
        victim = own or next((f for f in self._frames if not f.error), self._frames[0])
        self._frames.remove(victim)
        self.dropped += 1


@dataclass(eq=False)
class _Job:
    """One frame on its way. work: tiles to compute; shadow: the same with reuse, when that is being checked."""

    frame: Frame
    future: Future[_Prepared] | None = None
    plan: Plan = "fresh"
    work: Work | None = None
    shadow: Work | None = None
    todo: NDArray[np.bool_] | None = None  # which tiles of the frame `work` (or of an audit, `shadow`) computes
    error: str = ""

    @property
    def works(self) -> list[Work]:
        return [w for w in (self.shadow, self.work) if w is not None]


@dataclass(eq=False)
class _Prepared:
    work: Work
    old_depth: UInt8 | None = None  # of an audit: what would have been reused
    reused: bool = False


@dataclass(eq=False)
class _Source:
    """What is remembered of one source while its frames pass."""

    keeper: DepthKeeper | None
    tiles: TileKeeper
    anchor: Future[_Prepared] | None = None


class Pipeline:
    """Runs the networks over a channel's frames.

    tiles, batch: as in Scorer. workers: threads that prepare. reuse: None computes everything.
    """

    def __init__(
        self,
        stages: Stages,
        channel: Channel,
        *,
        tiles: str | None = None,
        batch: int | None = None,
        workers: int | None = None,
        reuse: Reuse | None = None,
    ) -> None:
        self.stages = stages
        self.channel = channel
        self.tiling = tiles or stages.tiling
        check_tiling(self.tiling, stages.p.tile)  # ValueError before work
        self.workers = workers or preparing_threads()
        if self.workers < 1 or (batch is not None and batch < 1):
            raise ValueError(f"batch and workers must be at least 1, got {batch} and {self.workers}")
        self.reuse = reuse
        self.drift = Drift()
        self._networks = stages.networks
        self.batch = batch or self._networks.batch
        self._sources: dict[str, _Source] = {}
        self._stop = threading.Event()

    def results(self) -> Iterator[Result]:
        """A result per frame, in the order of arrival, until the channel is finished. Closing it ends the threads."""
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="dgiqa-frame")
        pending: deque[_Job] = deque()
        running: deque[_Job] = deque()
        try:
            with Batches(self._networks) as batches:
                while True:
                    self._admit(pool, pending, idle=not running)
                    if not pending and not running:
                        return
                    if pending:
                        running.append(self._prepared(pending.popleft()))
                    self._run(batches, running, flush=not pending)
                    while running and all(work.complete for work in running[0].works):
                        yield self._finished(running.popleft())
        finally:
            self._stop.set()
            pool.shutdown(wait=True, cancel_futures=True)

    def _admit(self, pool: ThreadPoolExecutor, pending: deque[_Job], *, idle: bool) -> None:
        """Start on further frames; wait for one only if there is nothing else to do."""
        while len(pending) <= self.workers:
            frame = self.channel.get(wait=idle and not pending)
            if frame is None:
                return
            pending.append(self._started(pool, frame))

    def _started(self, pool: ThreadPoolExecutor, frame: Frame) -> _Job:
        if frame.rgb is None:
            return _Job(frame, error=frame.error or "no picture")
        source = self._source(frame.source)
        plan = source.keeper.plan(frame) if source.keeper else "fresh"
        old = source.anchor if plan != "fresh" else None
        job = _Job(replace(frame, rgb=None), plan=plan)
        job.future = pool.submit(self._prepare, frame, plan, old)
        if plan != "reuse":
            source.anchor = job.future
        return job

    def _source(self, name: str) -> _Source:
        if name not in self._sources:
            keeper = DepthKeeper(self.reuse, self.drift) if self.reuse else None
            self._sources[name] = _Source(keeper, TileKeeper())
        return self._sources[name]

    def _prepare(self, frame: Frame, plan: Plan, old: Future[_Prepared] | None) -> _Prepared:
        """In a worker. The frame whose depth is taken over was submitted before, so waiting for it cannot lock up."""
        assert frame.rgb is not None
        height, width = frame.rgb.shape[:2]
        if height * width > self.stages.max_pixels:
            raise ImageError(
                f"a frame of {width} x {height}, limit {self.stages.max_pixels:,} pixels; raise max_pixels"
            )
        old_depth = old.result().work.depth if old is not None and old.exception() is None else None
        reused = plan == "reuse" and old_depth is not None
        near = old_depth if reused else None
        work = self.stages.prepare(frame.rgb, frame.source, self.tiling, stop=self._stop, near=near)
        return _Prepared(work, old_depth, reused)

    def _prepared(self, job: _Job) -> _Job:
        """Wait for a job's preparation, and leave out the tiles whose scores are taken over."""
        if job.future is None:
            return job
        try:
            prepared = job.future.result()
        except CancelledError:
            raise
        except Exception as error:  # whatever one frame does, the others go on
            job.error = str(error) or type(error).__name__
            return job
        job.work = prepared.work
        if job.plan == "reuse" and not prepared.reused:
            job.plan = "fresh"
        if self.reuse:
            self._share(job, prepared, self._source(job.frame.source).tiles)
        return job

    def _share(self, job: _Job, prepared: _Prepared, tiles: TileKeeper) -> None:
        """Decide which tiles are computed. All of a fresh frame; of an audit all, and beside them what reuse would."""
        work, every = prepared.work, np.ones(len(prepared.work.windows), bool)
        kept = self.reuse is not None and self.reuse.tiles and job.plan != "fresh"
        side = self.stages.p.tile
        job.todo = ~tiles.unchanged(work.rgb, work.windows, side) if kept else every
        if job.plan == "audit" and prepared.old_depth is not None:
            job.shadow = _part(replace(work, depth=prepared.old_depth, timings_ms={"tiles": 0.0}), job.todo)
        elif job.plan == "reuse":
            job.work = _part(work, job.todo)
        if self.reuse is not None and self.reuse.tiles:
            tiles.keep(work.rgb, work.windows, side, job.todo if job.plan == "reuse" else every)

    def _run(self, batches: Batches, running: deque[_Job], *, flush: bool) -> None:
        """Start full batches. flush: no further frame is being prepared, so start what is left, and wait for one."""
        works = [work for job in running for work in job.works]
        last = share(waiting(works), self.batch, self._networks.parallel)
        while (tiles := waiting(works)) >= self.batch or (tiles and flush):
            batches.start(take(works, last if flush else self.batch))
            self._settle(batches, running, wait=batches.full)
        self._settle(batches, running, wait=flush)

    def _settle(self, batches: Batches, running: deque[_Job], *, wait: bool) -> None:
        """Enter the scores of the oldest batch; if it failed, its frames have."""
        parts, error = batches.settle(wait=wait) or ((), None)
        if error is None:
            return
        if not isinstance(error, DgiqaError):
            raise error
        for job in running:
            if any(part.work in job.works for part in parts):
                job.error, job.work, job.shadow = str(error), None, None
                self._sources.pop(job.frame.source, None)  # its tile scores did not come

    def _finished(self, job: _Job) -> Result:
        """The scores of a job whose tiles are done, its own and those taken over."""
        if job.work is None:
            return Result(job.frame, error=job.error)
        source = self._source(job.frame.source)
        scores, shadow = self._merged(job, source.tiles)
        try:
            score, std_error = self.stages.pooled(scores)
        except BackendError as error:
            return Result(job.frame, error=str(error))
        work = job.work
        result = Result(
            job.frame,
            score=score,
            std_error=std_error,
            tiles=len(scores),
            width=work.width,
            height=work.height,
            ms=sum(work.timings_ms.values()),
            picture=work.rgb,
        )
        result.reasons = self.stages.reasons(self._merged_reasons(job, source.tiles))
        if job.plan == "reuse" and job.todo is not None:
            result.tiles_reused = int((~job.todo).sum())
            result.reused = "depth+tiles" if result.tiles_reused else "depth"
        if shadow is not None and source.keeper and np.isfinite(shadow).all():
            result.drift = float(shadow.mean(dtype=np.float64)) - score
            source.keeper.audited(result.drift)
        return result

    def _merged(self, job: _Job, tiles: TileKeeper) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """All tile scores of a frame, f32 [n], and for an audit those that reuse would have given."""
        assert job.work is not None
        if job.todo is None:
            return job.work.tile_scores, None
        shadow = _over(tiles.scores, job.shadow.tile_scores, job.todo) if job.shadow is not None else None
        own = job.todo if job.plan == "reuse" else np.ones(len(job.todo), bool)
        tiles.scores = _over(tiles.scores, job.work.tile_scores, own)
        return tiles.scores, shadow

    def _merged_reasons(self, job: _Job, tiles: TileKeeper) -> dict[str, NDArray[np.float32]]:
        """The network's reasons for all tiles of a frame, f32 [n,K], where it gives them."""
        assert job.work is not None
        found = job.work.extra.get(spec.QUALITY_REASONS)
        if job.todo is not None and job.plan == "reuse":
            found = tiles.reasons if found is None else _over(tiles.reasons, found, job.todo)
        tiles.reasons = found
        return {} if found is None else {spec.QUALITY_REASONS: found}


def feed(channel: Channel, frames: Iterable[Frame], *, newest_wins: Callable[[], bool], stop: threading.Event) -> None:
    """Put a source's frames into a channel until they end or nobody wants them."""
    for frame in frames:
        if stop.is_set() or not channel.put(frame, newest_wins=newest_wins()):
            return


def _part(work: Work, which: NDArray[np.bool_]) -> Work:
    """The same image with only some of its windows to compute."""
    count = int(which.sum())
    return replace(work, windows=work.windows[which], tile_scores=np.full(count, np.nan, np.float32), extra={})


def _over(known: NDArray[np.float32] | None, new: NDArray[np.float32], which: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Known rows, one per tile, with new ones in the places `which`."""
    if known is None or len(known) != len(which) or which.all():
        merged = np.full((len(which), *new.shape[1:]), np.nan, np.float32)
    else:
        merged = known.copy()
    merged[which] = new
    return merged
