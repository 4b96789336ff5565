"""Two sets of scores -> whether, by how much and when quality moved; a stream of scores -> alarms.

    baseline ─► resampled a million times ─► the limit that chance passes once in ONE_IN scores
    scores ─► standardised by the baseline ─► two cumulative sums (CUSUM) ─► over the limit? ─► alarm, and since when

CUSUM is Page's (Biometrika 41, 1954), in the tabular form of Montgomery, Introduction to Statistical Quality Control,
chapter 9. Its limit comes from the baseline's own distribution, since scores are not normal.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dgiqa.dtypes import Float64
from dgiqa.errors import DgiqaError
from dgiqa.extras import load
from dgiqa.report.rows import Row

SHOWN = 24  # of the worst rows, and of the best
ONE_IN = 10_000  # scores between two false alarms, on average
SHIFT = 0.5  # standard deviations: the shift that is found soonest
FEWEST = 100  # scores of a baseline
RESAMPLED = 1_000_000
OUTSIDE = 0.01  # quantile of the baseline: new scores below it are examples of the change

# A side's cumulative sum, and, of the scores since it was 0, the sum, the number, and the place of the first one.
_NOTHING: tuple[float, float, int, Any] = (0.0, 0.0, 0, None)
Settings = tuple[str, str, str]  # a score's bundle, backend and tiling


class Population:
    """The scores of a set, its extremes, and why images failed. Add all rows before you read anything.

    source, time: the columns that say where and when an image was made. names, settings (bundle, backend and tiling)
    and, if their columns were given, sources and times: one per score, in the order of the rows. failures: how many
    images have no score, by cause.
    """

    def __init__(self, source: str | None = None, time: str | None = None) -> None:
        self.names: list[str] = []
        self.settings: list[Settings] = []
        self.sources: list[Any] = []
        self.times: list[Any] = []
        self.failures = Counter[str]()
        self._columns = [(column, values) for column, values in ((source, self.sources), (time, self.times)) if column]
        self._scores: list[float] = []
        self._known: dict[Settings, Settings] = {}
        self._worst: list[Row] = []
        self._best: list[Row] = []

    def add(self, row: Row) -> None:
        """Add a row. Raises DgiqaError if it lacks the column `source` or `time`."""
        if row["score"] is None:
            message = (row.get("error") or "no reason given").split("; ", maxsplit=1)[0]
            self.failures[re.sub(r"\d+", "N", message)[:120]] += 1  # the part that several share
            return
        for column, values in self._columns:
            if column not in row:
                raise DgiqaError(f"there is no column {column!r}; the rows have {', '.join(row)}")
            values.append(row[column])
        self._scores.append(row["score"])
        self.names.append(row.get("key") or row["path"])
        settings = (row.get("bundle") or "", row.get("backend") or "", row.get("tiling") or "")
        self.settings.append(self._known.setdefault(settings, settings))
        self._worst.append(row)
        self._best.append(row)
        if len(self._worst) > 20 * SHOWN:
            self._trim()

    @cached_property
    def scores(self) -> Float64:
        """f64 [n], in the order of the rows."""
        return np.array(self._scores, np.float64)

    def extremes(self) -> tuple[list[Row], list[Row]]:
        """The worst rows and the best, SHOWN each at most. No row is in both."""
        self._trim()
        shown = min(SHOWN, (len(self._scores) + 1) // 2)
        return self._worst[:shown], self._best[: len(self._scores) - shown]

    def _trim(self) -> None:
        self._worst = sorted(self._worst, key=lambda kept: kept["score"])[:SHOWN]
        self._best = sorted(self._best, key=lambda kept: -kept["score"])[:SHOWN]


def population(rows: Iterable[Row], source: str | None = None, time: str | None = None) -> Population:
    """The Population of all rows of a set. Raises DgiqaError without rows, or without these columns."""
    found = Population(source, time)
    for row in rows:
        found.add(row)
    if not found.names and not found.failures:
        raise DgiqaError("got no rows; wanted a file that `score -o` or a folder that `scan` wrote")
    return found


@dataclass(frozen=True)
class Alarm:
    """Scores of a stream moved. at, since: the places of the score that raised the alarm, and of the first that moved.

    lower: whether they fell; mean, count: of the scores since then.
    """

    at: Any
    since: Any
    lower: bool
    mean: float
    count: int

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"at": self.at, "since": self.since, "lower": self.lower, "mean": self.mean}


class Monitor:
    """Alarms when the mean of a stream has moved from the baseline's, f64 [n], either way.

    one_in: scores between two false alarms on average, if scores are independent; frames of a video are not.
    Raises DgiqaError for a baseline that is too small or constant.
    """

    def __init__(self, baseline: Float64, one_in: int = ONE_IN) -> None:
        if len(baseline) < FEWEST or not np.ptp(baseline):
            raise DgiqaError(f"got {len(baseline)} scores as the baseline, wanted {FEWEST} or more that differ")
        self._mean, self._deviation, self._slack = float(baseline.mean()), float(baseline.std()), SHIFT / 2
        draws = np.random.default_rng(0).choice((baseline - self._mean) / self._deviation, RESAMPLED)
        self._limits = tuple(_limit(sign * draws - self._slack, 2 * one_in) for sign in (-1, 1))
        self._seen, self._sums = 0, [_NOTHING] * 2

    def add(self, score: float, place: Any = None) -> Alarm | None:
        """Take the next score; an alarm resets both sums. place: the score's, by default its number from 1."""
        self._seen += 1
        place = self._seen if place is None else place
        for side, sign in enumerate((-1, 1)):
            total, summed, count, since = self._sums[side]
            total += sign * (score - self._mean) / self._deviation - self._slack
            longer = (total, summed + score, count + 1, since if count else place)
            self._sums[side] = longer if total > 0 else _NOTHING
        for side, limit in enumerate(self._limits):
            total, summed, count, since = self._sums[side]
            if total > limit:
                self._sums = [_NOTHING] * 2
                return Alarm(place, since, side == 0, summed / count, count)
        return None


def _limit(steps: Float64, one_in: int) -> float:
    """The limit that the cumulative sum of steps, never below 0, exceeds once in `one_in` of them."""
    walked = np.cumsum(steps)
    sums = walked - np.minimum(np.minimum.accumulate(walked), 0)
    peaks = np.sort(np.maximum.reduceat(sums, np.flatnonzero(sums == 0))) if (sums == 0).any() else sums
    return float(peaks[-min(len(peaks), max(1, len(steps) // one_in))])


def drift(before: Population, after: Population) -> dict[str, Any]:
    """How the scores moved: the two-sample Kolmogorov-Smirnov test, Mann-Whitney's, and Cliff's delta in [-1, 1].

    Cliff's delta: how much likelier an image of `after` scores above one of `before` than below. moved: images of both
    (by key, else path) as (name, before, after), the largest changes first. outside: (name, score) of images of `after`
    below the OUTSIDE quantile of `before`, the lowest first. sources: `by_source`, if both sets name their sources.
    changes: when `after` moved, if it has times; None if the baseline is too small to say.
    Raises DgiqaError without scores, BackendError without scipy.
    """
    if not len(before.scores) or not len(after.scores):
        raise DgiqaError("got a set without scores; wanted at least one scored image in each")
    old = dict(zip(before.names, before.scores.tolist(), strict=True))
    new = list(zip(after.names, after.scores.tolist(), strict=True))
    both = [(name, old[name], score) for name, score in new if name in old]
    low = float(np.quantile(before.scores, OUTSIDE))
    found: dict[str, Any] = {
        **_tests(before.scores, after.scores),
        "in_both": len(both),
        "moved": sorted((pair for pair in both if pair[1] != pair[2]), key=lambda pair: -abs(pair[2] - pair[1])),
        "outside": sorted(((name, score) for name, score in new if score < low), key=lambda pair: pair[1]),
    }
    if before.sources and after.sources:
        found["sources"] = by_source(before, after)
    if after.times:
        enough = len(before.scores) >= FEWEST and np.ptp(before.scores) > 0
        timed = zip(after.times, after.scores.tolist(), strict=True)
        found["changes"] = changes(Monitor(before.scores), timed) if enough else None
    return found


def by_source(before: Population, after: Population) -> list[dict[str, Any]]:
    """`drift`'s tests for each source of both sets, the largest effect first; ks_p is corrected for their number."""
    found = []
    for source in sorted(set(before.sources) & set(after.sources)):
        sides = [each.scores[np.array(each.sources) == source] for each in (before, after)]
        found.append({"source": source, "before": len(sides[0]), "after": len(sides[1])} | _tests(*sides))
    adjusted = load("scipy.stats", "comparing", "scipy", "calibrate").false_discovery_control
    for row, p in zip(found, adjusted([row["ks_p"] for row in found]) if found else [], strict=True):
        row["ks_p"] = float(p)
    return sorted(found, key=lambda row: -abs(row["cliffs_delta"]))


def changes(monitor: Monitor, rows: Iterable[tuple[Any, float]]) -> list[dict[str, Any]]:
    """When scores moved: alarms over (time, score) in order of time; at and since are the times."""
    ordered = sorted(rows, key=lambda row: row[0])
    return [alarm.as_dict() for time, score in ordered if (alarm := monitor.add(score, time))]


def _tests(before: Float64, after: Float64) -> dict[str, float]:
    stats = load("scipy.stats", "comparing", "scipy", "calibrate")
    ks, ranks = stats.ks_2samp(before, after), stats.mannwhitneyu(after, before)
    return {
        "mean_before": float(before.mean()),
        "mean_after": float(after.mean()),
        "ks": float(ks.statistic),
        "ks_p": float(ks.pvalue),
        "cliffs_delta": float(2 * ranks.statistic / (len(before) * len(after)) - 1),
        "mann_whitney_p": float(ranks.pvalue),
    }
