"""Videos in, a row per scored frame out, and a summary of the run.

    sources -> (a thread each: open, decode, sample) -> Channel -> FrameScorer -> rows

A row is a dict with the columns `report.rows.FRAME_COLUMNS`, always all of them and in that order. `score_video` of a
Scorer gives the rows of one video. `VideoRun` gives those of many, with the pictures, and reports its progress.
"""

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from dgiqa.forward import Stages
from dgiqa.meaning import verdict
from dgiqa.report.rows import Row, clock, rounded, seconds_since
from dgiqa.video.channel import CAPACITY, Channel
from dgiqa.video.frames import Video
from dgiqa.video.live import follow
from dgiqa.video.pooling import INTERVAL_S, Pooled
from dgiqa.video.reuse import Reuse
from dgiqa.video.sampling import Sampling
from dgiqa.video.scoring import FrameScorer, Result
from dgiqa.video.source import MAX_PIXELS, VideoSource, is_live, name_of
from dgiqa.video.source import Reading as Reading

JOIN_S = 2.0  # at the end, readers that are blocked in the network get this long, all together


@dataclass
class Progress:
    """How far one source is. length_s: seconds of it to score, None if unknown."""

    length_s: float | None = None
    done_s: float = 0.0
    live: bool = False
    ended: bool = False
    info: str = ""
    notes: set[str] = field(default_factory=set)


class VideoRun:
    """One run over any number of videos, whose frames share batches.

    stages: the opened networks, see `Scorer.stages`. sources: what `frames.Video` opens, or pairs (name, source).
    sampling, reading, reuse: what to score and how. batch, workers: as in Scorer.
    Raises ValueError for invalid arguments, before anything is opened.
    """

    def __init__(
        self,
        stages: Stages,
        sources: Sequence[VideoSource | tuple[str, VideoSource]],
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
        *,
        reading: Reading = Reading(),  # noqa: B008
        reuse: Reuse | None = None,
        batch: int | None = None,
        workers: int | None = None,
    ) -> None:
        self.stages = stages
        self.sampling = sampling
        self.reading = replace(reading, max_pixels=reading.max_pixels or min(stages.max_pixels, MAX_PIXELS))
        pairs = [s if isinstance(s, tuple) else (name_of(s), s) for s in sources]
        self.progress = {name: Progress() for name, _ in pairs}
        if len(self.progress) < len(pairs):
            raise ValueError("a source is named twice; give pairs (name, source) with different names")
        live_ones = [s for _, s in pairs if reading.live or is_live(s)]
        self._threads_wanted = min(len(pairs), max(reading.streams, len(live_ones)))
        # Live sources first: a file can wait.
        self._waiting = deque(sorted(pairs, key=lambda pair: pair[1] not in live_ones))
        self._channel = Channel(max(CAPACITY, len(pairs) if live_ones else 0))
        self._scorer = FrameScorer(stages, self._channel, batch=batch, workers=workers, reuse=reuse)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._readers = 0
        self._failure: BaseException | None = None
        self.drift = self._scorer.drift

    @property
    def dropped(self) -> int:
        """Frames of live sources that newer ones replaced before they were scored."""
        return self._channel.dropped

    def rows(self, look: Callable[[Row, Any], None] | None = None) -> Generator[Row]:
        """A row per frame, in order for each source; several interleave.

        look: first called with each row and its picture, uint8 [h,w,3], None with an error.
        """
        threads = [threading.Thread(target=self._read, daemon=True) for _ in range(self._threads_wanted)]
        self._readers = len(threads)
        try:
            for thread in threads:
                thread.start()
            with closing(self._scorer.results()) as results:
                for result in results:
                    self._count(result)
                    row = result.as_row(self.stages)
                    if look:
                        look(row, result.picture)
                    yield row
            if self._failure is not None:
                raise self._failure
        finally:
            self._stop.set()
            self._channel.finish()
            patience = time.monotonic() + JOIN_S
            for thread in threads:
                thread.join(max(0.0, patience - time.monotonic()))

    def _read(self) -> None:
        """A reader thread: one source after the other."""
        try:
            while not self._stop.is_set():
                with self._lock:
                    if not self._waiting:
                        return
                    name, source = self._waiting.popleft()
                self._read_one(name, source)
        except BaseException as error:  # a missing decoder, or our mistake: raised to the caller
            self._failure = error
            self._stop.set()
        finally:
            with self._lock:
                self._readers -= 1
                if not self._readers or self._failure:
                    self._channel.finish()

    def _read_one(self, name: str, source: VideoSource) -> None:
        progress = self.progress[name]

        def opened() -> Video:
            video = self._video(source, name)
            self._describe(progress, video)
            return video

        for frame in follow(opened, name, self.sampling, self._stop, self.reading, is_live(source)):
            if self._stop.is_set() or not self._channel.put(frame, newest_wins=progress.live):
                break
        progress.ended = True

    def _video(self, source: VideoSource, name: str) -> Video:
        if self.reading.decoder == "cpu":
            return Video(source, self.reading, name=name)
        from dgiqa.on_device import context_of
        from dgiqa.video.nvdec import NvdecVideo

        context, on_host = context_of(self.stages.networks.quality), self._scorer.reuse is not None
        return NvdecVideo(source, self.reading, context=context, name=name, on_host=on_host)

    def _describe(self, progress: Progress, video: Video) -> None:
        progress.live = video.opened.live if self.reading.live is None else self.reading.live
        opened = video.opened
        end_s = min(self.sampling.end, math.inf if opened.duration_s is None else opened.duration_s)
        progress.length_s = None if math.isinf(end_s) else max(0.0, end_s - self.sampling.start)
        rate = f" at {opened.rate:.3g} fps" if opened.rate else ""
        progress.info = f"{opened.codec} {opened.width}x{opened.height}{rate}"

    def _count(self, result: Result) -> None:
        progress = self.progress[result.frame.source]
        progress.done_s = max(progress.done_s, result.frame.time_s - self.sampling.start)
        if result.frame.note:
            progress.notes.add(result.frame.note)


class Summary:
    """Sums over a run: pooled figures of each source, its verdict, reasons and notes; reuse and drops.

    gate: the mean from which a video passes. interval_gate: whether the mean of its worst interval must reach it, too.
    """

    def __init__(
        self, run: VideoRun, interval_s: float = INTERVAL_S, *, gate: float | None = None, interval_gate: bool = False
    ) -> None:
        self.run = run
        self.gate = gate
        self.interval_gate = interval_gate
        self.pooled = {name: Pooled(interval_s) for name in run.progress}
        self.reasons: dict[str, Counter[str]] = {name: Counter() for name in run.progress}
        self.reused = 0
        self.started = time.perf_counter()

    def add(self, row: Row) -> None:
        """Count one row."""
        self.pooled[row["path"]].add(row["time_s"], row["score"])
        self.reused += bool(row["reused"])
        self.reasons[row["path"]].update(row["reasons"] or [])

    @property
    def scored(self) -> int:
        """Frames with a score."""
        return sum(p.scored for p in self.pooled.values())

    @property
    def failed(self) -> int:
        """Rows without a score."""
        return sum(p.failed for p in self.pooled.values())

    def progress(self) -> tuple[float | None, list[str]]:
        """The share done; texts of it, frames per second, speed relative to playing time, and time left."""
        sources = self.run.progress.values()
        if not self.scored + self.failed:
            return None, ["opening"]
        elapsed = seconds_since(self.started)
        done = sum(p.done_s for p in sources)
        parts = [f"{self.scored} frames", f"{self.scored / elapsed:.1f} frames/s", f"{done / elapsed:.2f}x"]
        known = [p.length_s for p in sources if p.length_s is not None]
        share = None
        if len(known) == len(sources) and any(known):
            share = min(1.0, done / sum(known))
            left = elapsed * (1 - share) / share if share else 0.0
            parts = [f"{done:.1f}/{sum(known):.1f} s", *parts, f"{clock(left)} left"]
        return share, parts + ([f"{self.run.dropped} dropped"] if self.run.dropped else [])

    def verdict(self, name: str) -> str | None:
        """ "pass" or "fail" for a video; None without a gate, or without a score."""
        pooled = self.pooled[name]
        if pooled.mean is None or pooled.worst is None:
            return None
        return verdict(min(pooled.mean, pooled.worst.mean) if self.interval_gate else pooled.mean, self.gate)

    @property
    def verdicts(self) -> list[str]:
        """The verdicts of the videos that have one."""
        return [found for name in self.pooled if (found := self.verdict(name))]

    def failures(self) -> list[str]:
        """A text for each mean below the gate: a pooled mean, or with interval_gate the mean of an interval."""
        found = []
        for name, pooled in self.pooled.items():
            if self.verdict(name) != "fail" or pooled.mean is None or (worst := pooled.worst) is None:
                continue
            if verdict(pooled.mean, self.gate) == "fail":
                found.append(f"{name}: mean {pooled.mean:.4f} is below {self.gate:g}")
            if self.interval_gate and verdict(worst.mean, self.gate) == "fail":
                stretch = f"from {worst.start_s:.2f} to {worst.end_s:.2f} s"
                found.append(f"{name}: mean {worst.mean:.4f} {stretch} is below {self.gate:g}")
        return found

    def _about(self, name: str) -> dict[str, Any]:
        """The facts about a video in addition to its pooled scores. reasons: name -> share of its scored frames."""
        frames, length_s = self.pooled[name].scored, self.run.progress[name].length_s
        return {
            "video": self.run.progress[name].info,
            "end_s": None if length_s is None else round(self.run.sampling.start + length_s, 3),
            "verdict": self.verdict(name),
            "reasons": {reason: round(n / frames, 4) for reason, n in self.reasons[name].most_common()},
            "notes": sorted(self.run.progress[name].notes),
        }

    def as_dict(self, *, complete: bool) -> dict[str, Any]:
        """Ready for JSON. complete: False when the run ended before its sources did."""
        drift = self.run.drift
        return {
            "complete": complete,
            "videos": {name: pooled.as_dict() | self._about(name) for name, pooled in self.pooled.items()},
            "reused": self.reused,
            "audits": drift.audits,
            "mean_drift": rounded(drift.mean, 6),
            "largest_drift": rounded(drift.largest, 6) if drift.audits else None,
            "interval_tightened": drift.tightened,
            "dropped": self.run.dropped,
        }
