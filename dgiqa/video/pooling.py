"""Scores over time -> the figures of a whole video, in memory that does not depend on its length."""

import math
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgiqa.report.files import Writer
from dgiqa.report.rows import Row, rounded, row_of

BINS = 10_000  # of the histogram that percentiles come from: exact to 1e-4
SMALLEST = 1e-6  # a single score of 0 would make the harmonic mean 0
INTERVAL_S = 2.0  # length of the worst interval, seconds


@dataclass(frozen=True)
class Interval:
    """A stretch of a video, seconds, and the mean score of the frames in it."""

    start_s: float
    end_s: float
    mean: float


@dataclass
class Pooled:
    """The scores of one video, added in order of time. Figures are None before the first score.

    interval_s: length of the intervals whose means are compared, seconds. A video shorter than that is one interval.
    """

    interval_s: float = INTERVAL_S
    scored: int = 0
    failed: int = 0
    low: float | None = None
    low_s: float | None = None
    high: float | None = None
    _total: float = 0.0
    _inverse: float = 0.0
    _bins: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS + 1, np.int64), repr=False)
    _window: deque[tuple[float, float]] = field(default_factory=deque, repr=False)
    _worst: Interval | None = None

    def add(self, time_s: float, score: float | None) -> None:
        """Add one row. A score of None is a frame that could not be scored."""
        if score is None:
            self.failed += 1
            return
        self.scored += 1
        self._total += score
        self._inverse += 1 / max(score, SMALLEST)
        self._bins[round(min(max(score, 0.0), 1.0) * BINS)] += 1
        if self.low is None or score < self.low:
            self.low, self.low_s = score, time_s
        self.high = score if self.high is None else max(self.high, score)
        # Each interval ends just before the frame that no longer fits into it.
        while self._window and time_s - self._window[0][0] >= self.interval_s - 1e-6:
            self._compare(self._window[0][0] + self.interval_s)
            self._window.popleft()
        self._window.append((time_s, score))

    def _compare(self, end_s: float) -> None:
        mean = math.fsum(score for _, score in self._window) / len(self._window)
        if self._worst is None or mean < self._worst.mean:
            self._worst = Interval(self._window[0][0], end_s, mean)

    @property
    def mean(self) -> float | None:
        """Mean score over frames."""
        return self._total / self.scored if self.scored else None

    @property
    def harmonic_mean(self) -> float | None:
        """Harmonic mean: bad frames weigh more. Lower scores count as SMALLEST."""
        return self.scored / self._inverse if self.scored else None

    def percentile(self, share: float) -> float | None:
        """The score that this share of frames, in [0, 1], does not exceed; to within 1 / (2 * BINS)."""
        if not self.scored:
            return None
        wanted = max(1, math.ceil(share * self.scored))
        level = int(np.searchsorted(np.cumsum(self._bins), wanted)) / BINS
        return float(min(max(level, self.low or 0.0), 1.0 if self.high is None else self.high))

    @property
    def worst(self) -> Interval | None:
        """The interval with the lowest mean: of those that are full, or of the whole when it is shorter than one."""
        if not self.scored:
            return None
        # The last frames are an interval, too, if they stand for about as many seconds.
        if self._worst is None or self._last_span() >= self.interval_s - 1e-6:
            self._compare(self._window[0][0] + max(self._last_span(), 0.0))
        return self._worst

    def _last_span(self) -> float:
        """Seconds that the frames of the open window stand for: each until the next, the last as long as the others."""
        times = [time_s for time_s, _ in self._window]
        step = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0
        return times[-1] - times[0] + step

    def as_dict(self) -> dict[str, Any]:
        """All figures, ready for JSON; scores rounded to 6 decimals, times to milliseconds."""
        worst = self.worst
        return {
            "scored": self.scored,
            "failed": self.failed,
            "mean": rounded(self.mean, 6),
            "harmonic_mean": rounded(self.harmonic_mean, 6),
            "p5": rounded(self.percentile(0.05), 4),
            "min": rounded(self.low, 6),
            "min_s": rounded(self.low_s, 3),
            "max": rounded(self.high, 6),
            "worst_interval": worst
            and {name: rounded(value, 6 if name == "mean" else 3) for name, value in asdict(worst).items()},
        }


class VideoRows:
    """A writer that takes frames and passes on a row per video at the end."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._origin: dict[str, Any] = {}
        self._errors: dict[str, str] = {}

    def write(self, row: Row) -> None:
        self._origin = {name: row[name] for name in ("bundle", "backend", "tiling")}
        if row["error"]:
            self._errors.setdefault(row["path"], row["error"])

    def finish(self, summary: dict[str, Any]) -> None:
        for path, found in summary["videos"].items():
            worst = found["worst_interval"] or {}
            failed = found["mean"] is None
            row = row_of(
                "video",
                path=path,
                score=found["mean"],
                status="error" if failed else "ok",
                error=self._errors.get(path, "no frame was scored") if failed else "",
                verdict=found["verdict"],
                reasons=list(found["reasons"]),
                note="; ".join(found["notes"]) or None,
                frames=found["scored"],
                failed_frames=found["failed"],
                **{name: found[name] for name in ("harmonic_mean", "p5")},
                **{"lowest": found["min"], "lowest_s": found["min_s"], "highest": found["max"]},
                **{f"worst_{name}": worst.get(name) for name in ("mean", "start_s", "end_s")},
                **self._origin,
            )
            self._writer.write(row)
        self._writer.finish(summary)
