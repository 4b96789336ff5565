"""Frames of one or many sources -> results, through the one scheduler, with or without reuse between frames.

sources (threads) -> Channel -> pipeline.schedule -> results
"""

import threading
from collections.abc import Generator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

import numpy as np

from dgiqa import spec
from dgiqa.dtypes import Bool, Float32, UInt8
from dgiqa.errors import BackendError, DgiqaError, ImageError
from dgiqa.forward import Stages
from dgiqa.pipeline import Task, checked_workers, schedule
from dgiqa.report.rows import Row, rounded, row_of
from dgiqa.runtime.kernels import is_on_gpu
from dgiqa.score import Score
from dgiqa.video.channel import Channel
from dgiqa.video.frames import Frame
from dgiqa.video.reuse import DepthKeeper, Drift, Plan, Reuse, TileKeeper
from dgiqa.work import Work

_OF_SCORE = ("score", "std_error", "ms", "tiles", "width", "height", "verdict", "reasons")  # columns of an image's row


@dataclass(eq=False)
class Result:
    """One frame's outcome. score: None with an error. frame: without its pixels.

    reused: "" (all computed), "depth" or "depth+tiles". tiles_reused: how many tiles were taken over.
    drift: score with reuse minus score without, where both were computed; then `score` is the one without.
    picture: the working image, uint8 [h,w,3].
    """

    frame: Frame
    score: Score | None = None
    error: str = ""
    reused: str = ""
    tiles_reused: int = 0
    drift: float | None = None
    picture: UInt8 | None = field(default=None, repr=False)

    def as_row(self, stages: Stages) -> Row:
        """A row of the command line's files. Scores are rounded to 6 decimals, times to milliseconds (ms: 0.01)."""
        frame = self.frame
        row = row_of(
            "frame",
            path=frame.source,
            time_s=round(frame.time_s, 3),
            frame=frame.number,
            scene=frame.scene,
            reused=self.reused,
            status="error" if self.score is None else "ok",
            error=self.error,
            note=frame.note or None,
            **stages.origin,
        )
        if self.score is None:
            return row
        found = self.score.as_row()
        row |= {"drift": rounded(self.drift, 6), "tiles_reused": self.tiles_reused}
        return row | {name: found[name] for name in _OF_SCORE}


class FrameScorer:
    """Runs the networks over a channel's frames.

    tiling, batch: as in Scorer. workers: threads that prepare. reuse: None computes everything.
    """

    def __init__(
        self,
        stages: Stages,
        channel: Channel,
        *,
        tiling: str | None = None,
        batch: int | None = None,
        workers: int | None = None,
        reuse: Reuse | None = None,
    ) -> None:
        self.stages, self.channel, self.reuse, self.drift = stages.tiled(tiling), channel, reuse, Drift()
        self.batch, self.workers = batch, checked_workers(workers, batch)
        self._keepers: dict[str, DepthKeeper] = {}

    def results(self) -> Generator[Result]:
        """A result per frame, in the order of arrival, until the channel is finished. Closing it ends the threads."""
        ahead = self.workers + 1  # a frame may be 25 MB
        bell, workers = self.channel.bell, self.workers
        return schedule(self.stages.networks, self._next, batch=self.batch, workers=workers, ahead=ahead, bell=bell)

    def keeper(self, name: str) -> DepthKeeper | None:
        """The state of a source for its next frames; None without reuse."""
        if self.reuse and name not in self._keepers:
            self._keepers[name] = DepthKeeper(self.reuse, self.drift)
        return self._keepers.get(name)

    def forget(self, name: str) -> None:
        """Forget a source, so that its next frame is computed in full: scores of an earlier one are missing."""
        self._keepers.pop(name, None)

    def _next(self, wait: bool) -> "_Job | None":
        frame = self.channel.get(wait=wait)
        return None if frame is None else _Job(self, frame)


class _Job(Task[Result]):
    """One frame on its way. work: tiles to compute; shadow: the same with reuse, for an audit."""

    def __init__(self, scorer: FrameScorer, frame: Frame) -> None:
        self.scorer, self.stages = scorer, scorer.stages
        self.frame, self.error = replace(frame, rgb=None), frame.error
        self.work: Work | None = None
        self.shadow: Work | None = None
        self.todo: Bool | None = None  # tiles that `work` (for an audit, `shadow`) computes
        self.plan: Plan = "fresh"
        self._rgb, self.on_gpu = frame.rgb, is_on_gpu(frame.rgb)
        self._anchor: Future[Work | None] | None = None  # whose depth image is taken over
        self._old_depth: UInt8 | None = None  # that image; for an audit, the one that would have been taken over
        if frame.rgb is None:
            self.error = frame.error or "no picture"
            return
        keeper = self._keeper()
        if keeper is None:
            return
        self.plan = keeper.plan(frame)
        if self.plan != "fresh" and keeper.anchor:
            self._anchor = keeper.anchor.prepared
        if self.plan != "reuse":
            keeper.anchor = self

    def _keeper(self) -> DepthKeeper | None:
        """The source's; None for a picture on a GPU: frames that are compared with others are on the host already."""
        return None if self.on_gpu else self.scorer.keeper(self.frame.source)

    def prepare(self, stop: threading.Event) -> Work | None:
        """Prepare the frame. The one whose depth it takes over was started before, so waiting for it cannot lock up."""
        rgb, anchor, self._rgb, self._anchor = self._rgb, self._anchor, None, None
        if rgb is None:
            return None
        if self.on_gpu:
            return self.stages.prepare(rgb, self.frame.source)
        height, width = rgb.shape[:2]
        if height * width > self.stages.max_pixels:
            limit = f"limit {self.stages.max_pixels:,} pixels; raise max_pixels (--max-pixels)"
            raise ImageError(f"a frame of {width} x {height}, {limit}")
        if anchor is not None and anchor.exception() is None and (old := anchor.result()) is not None:
            self._old_depth = old.depth
        near = self._old_depth if self.plan == "reuse" else None
        return self.stages.prepare(rgb, self.frame.source, stop=stop, near=near)

    def arrange(self) -> None:
        """Leave out the tiles whose scores are taken over."""
        try:
            self.work = self.prepared.result()
        except Exception as error:  # whatever one frame does, the others go on
            self.error = str(error) or type(error).__name__
        if self.work is None:
            return
        if self.plan == "reuse" and self._old_depth is None:
            self.plan = "fresh"
        if keeper := self._keeper():
            self._share(self.work, keeper)
        self.works = [work for work in (self.shadow, self.work) if work is not None]

    def _share(self, work: Work, keeper: DepthKeeper) -> None:
        """Decide which tiles are computed: all of a fresh frame; for an audit all, and separately those of reuse."""
        side, tiles = self.stages.p.tile, keeper.tiles
        kept = keeper.reuse.tiles and self.plan != "fresh"
        every = np.ones(len(work.windows), bool)
        self.todo = ~tiles.unchanged(work.rgb, work.windows, side) if kept else every
        if self.plan == "audit" and self._old_depth is not None:
            self.shadow = _part(replace(work, depth=self._old_depth, timings_ms={"tiles": 0.0}), self.todo)
        elif self.plan == "reuse":
            self.work = _part(work, self.todo)
        if keeper.reuse.tiles:
            tiles.keep(work.rgb, work.windows, side, self.todo if self.plan == "reuse" else every)

    def fail(self, error: Exception) -> None:
        """Keep an engine's error as this frame's; the next frames may be fine."""
        if not isinstance(error, DgiqaError):
            raise error
        self.error, self.work, self.shadow, self.works = str(error), None, None, ()
        self.scorer.forget(self.frame.source)

    def finish(self) -> Result:
        """The result, from the frame's own tile scores and those taken over."""
        work = self.work
        if work is None:
            return Result(self.frame, error=self.error)
        keeper = self._keeper()
        shadow = self._complete(work, keeper.tiles) if keeper else None
        try:
            score = self.stages.finish(work)
        except BackendError as error:
            return Result(self.frame, error=str(error))
        result = Result(self.frame, score, picture=None if self.on_gpu else work.rgb)
        if self.plan == "reuse" and self.todo is not None:
            result.tiles_reused = int((~self.todo).sum())
            result.reused = "depth+tiles" if result.tiles_reused else "depth"
        if keeper and shadow is not None and np.isfinite(shadow).all():
            result.drift = float(shadow.mean(dtype=np.float64)) - score.value
            keeper.audited(result.drift)
        return result

    def _complete(self, work: Work, tiles: TileKeeper) -> Float32 | None:
        """Complete a frame's work with what is taken over. Returns an audit's scores f32 [n] with reuse."""
        assert self.todo is not None
        scores = tiles.known.get(spec.QUALITY_OUTPUT)
        shadow = None if self.shadow is None else _over(scores, self.shadow.tile_scores, self.todo)
        own = self.todo if self.plan == "reuse" else np.ones(len(self.todo), bool)
        known = tiles.known if self.plan == "reuse" else {}
        found = {spec.QUALITY_OUTPUT: work.tile_scores, **work.extra}
        tiles.known = known | {name: _over(known.get(name), rows, own) for name, rows in found.items()}
        work.extra = dict(tiles.known)
        work.tile_scores = work.extra.pop(spec.QUALITY_OUTPUT)
        return shadow


def _part(work: Work, which: Bool) -> Work:
    """The same image with only some of its windows to compute."""
    count = int(which.sum())
    return replace(work, windows=work.windows[which], tile_scores=np.full(count, np.nan, np.float32), extra={})


def _over(known: Float32 | None, new: Float32, which: Bool) -> Float32:
    """Known rows, one per tile, with new ones in the places `which`."""
    if known is None or len(known) != len(which) or which.all():
        merged = np.full((len(which), *new.shape[1:]), np.nan, np.float32)
    else:
        merged = known.copy()
    merged[which] = new
    return merged
