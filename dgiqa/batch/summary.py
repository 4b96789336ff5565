"""Scored rows -> one offline HTML page; two sets of them -> how the population moved."""

from __future__ import annotations

import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgiqa.batch.choose import MEMBER
from dgiqa.errors import DgiqaError
from dgiqa.extras import load
from dgiqa.image import decode
from dgiqa.report.files import OutputFile
from dgiqa.report.html import data_uri, render
from dgiqa.report.page import thumbnail
from dgiqa.report.rows import Row, remarks

BINS, SHOWN, CAUSES = 40, 24, 20
WIDTH, HEIGHT = 960, 200
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)


Settings = tuple[str, str, str]  # a score's bundle, backend and tiling


@dataclass
class Population:
    """Scores of a set, its extremes and why others have none. scores: f64 [n], in the order of the rows.

    settings: what each score was made with.
    """

    scores: NDArray[np.float64]
    names: list[str]
    worst: list[Row]
    best: list[Row]
    failures: Counter[str] = field(default_factory=Counter)
    settings: list[Settings] = field(default_factory=list)


class Gathering:
    """Rows, one by one -> their Population."""

    def __init__(self) -> None:
        self._scores: list[float] = []
        self._names: list[str] = []
        self._settings: list[Settings] = []
        self._known: dict[Settings, Settings] = {}
        self._failures = Counter[str]()
        self._worst: list[Row] = []
        self._best: list[Row] = []

    def add(self, row: Row) -> None:
        if row["score"] is None:
            self._failures[_cause(row["error"])] += 1
            return
        self._scores.append(row["score"])
        self._names.append(row.get("key") or row["path"])
        settings = (row.get("bundle") or "", row.get("backend") or "", row.get("tiling") or "")
        self._settings.append(self._known.setdefault(settings, settings))
        self._worst.append(row)
        self._best.append(row)
        if len(self._worst) > 20 * SHOWN:
            self._trim()

    def done(self) -> Population:
        """Raises DgiqaError without any row."""
        if not self._scores and not self._failures:
            raise DgiqaError("got no rows; wanted a file that `score -o` or a folder that `scan` wrote")
        self._trim()
        scores = np.array(self._scores, np.float64)
        return Population(scores, self._names, self._worst, self._best, self._failures, self._settings)

    def _trim(self) -> None:
        self._worst = sorted(self._worst, key=lambda kept: kept["score"])[:SHOWN]
        self._best = sorted(self._best, key=lambda kept: -kept["score"])[:SHOWN]


def population(rows: Iterable[Row]) -> Population:
    """Gather what a page shows. Raises DgiqaError without any row."""
    gathering = Gathering()
    for row in rows:
        gathering.add(row)
    return gathering.done()


class PageWriter:
    """A writer of rows that draws them as a page at the end. name: of the set."""

    def __init__(self, file: OutputFile, name: str) -> None:
        self._file, self._name, self._gathering = file, name, Gathering()

    def write(self, row: Row) -> None:
        self._gathering.add(row)

    def finish(self, summary: dict[str, Any]) -> None:
        self._file.write(page(self._gathering.done(), name=self._name))


def by_settings(rows: Population) -> list[dict[str, Any]]:
    """What each of several settings gave, the most used first, and how it differs from that one on the same images.

    near: mean and largest absolute difference over the images of both, None without any. Settings that hardly differ,
    such as two backends, show as such.
    """
    found: dict[Settings, dict[str, float]] = {}
    for settings, name, score in zip(rows.settings, rows.names, rows.scores.tolist(), strict=True):
        found.setdefault(settings, {})[name] = score
    order = sorted(found, key=lambda settings: -len(found[settings]))
    first = found[order[0]] if order else {}
    table = []
    for settings in order:
        scores = found[settings]
        apart = np.abs([score - first[name] for name, score in scores.items() if name in first])
        near = (float(apart.mean()), float(apart.max())) if len(apart) and settings != order[0] else None
        mean = float(np.mean(list(scores.values())))
        table.append({"settings": settings, "images": len(scores), "mean": mean, "in_both": len(apart), "near": near})
    return table


def drift(before: Population, after: Population) -> dict[str, Any]:
    """How the scores moved: the two-sample Kolmogorov-Smirnov test, Mann-Whitney's, and Cliff's delta in [-1, 1].

    Cliff's delta: how much likelier an image of `after` scores above one of `before` than below. moved: images of both
    (by key, else path) as (name, before, after), the largest changes first. Raises DgiqaError without scores, and
    ImportError without scipy.
    """
    if not len(before.scores) or not len(after.scores):
        raise DgiqaError("got a set without scores; wanted at least one scored image in each")
    stats = load("scipy.stats", "comparing", "scipy", "calibrate", kind=ImportError)
    ks = stats.ks_2samp(before.scores, after.scores)
    ranks = stats.mannwhitneyu(after.scores, before.scores)
    pairs = len(before.scores) * len(after.scores)
    old = dict(zip(before.names, before.scores.tolist(), strict=True))
    both = [(name, old[name], new) for name, new in zip(after.names, after.scores.tolist(), strict=True) if name in old]
    return {
        "mean_before": float(before.scores.mean()),
        "mean_after": float(after.scores.mean()),
        "ks": float(ks.statistic),
        "ks_p": float(ks.pvalue),
        "cliffs_delta": float(2 * ranks.statistic / pairs - 1),
        "mann_whitney_p": float(ranks.pvalue),
        "in_both": len(both),
        "moved": sorted((pair for pair in both if pair[1] != pair[2]), key=lambda pair: -abs(pair[2] - pair[1])),
    }


def page(rows: Population, *, name: str, before: Population | None = None) -> str:
    """The page as text. Pictures are shown where their files can still be read."""
    counts = np.histogram(rows.scores, BINS, (0, 1))[0]
    most = max(1, int(counts.max(initial=0)))
    bars = [
        {
            "x": f"{i * WIDTH / BINS:.1f}",
            "y": f"{HEIGHT * (1 - n / most):.1f}",
            "height": f"{HEIGHT * n / most:.1f}",
            "title": f"{i / BINS:.3f} to {(i + 1) / BINS:.3f}: {n}",
        }
        for i, n in enumerate(counts.tolist())
    ]
    figures = [(f"{len(rows.scores):,}", "scored"), (f"{sum(rows.failures.values()):,}", "failed")]
    if len(rows.scores):
        figures.append((f"{rows.scores.mean():.4f}", "mean"))
        values = np.percentile(rows.scores, PERCENTILES)
        figures += [(f"{value:.4f}", f"{p} % below") for p, value in zip(PERCENTILES, values, strict=True)]
    moved = None if before is None else drift(before, rows)
    settings = by_settings(rows)
    return render(
        "set.html",
        title=f"Quality of {name}",
        figures=figures,
        bars=bars,
        bar_width=f"{WIDTH / BINS - 2:.1f}",
        width=WIDTH,
        height=HEIGHT,
        worst=[_picture(row) for row in rows.worst],
        best=[_picture(row) for row in rows.best],
        settings=settings if len(settings) > 1 else [],
        failures=rows.failures.most_common(CAUSES),
        drift=moved,
        moved=[] if moved is None else moved["moved"][:SHOWN],
    )


def _cause(error: str) -> str:
    """What failures have in common: the message without its numbers and names."""
    return re.sub(r"\d+", "N", error.split("; ", maxsplit=1)[0])[:120]


def _picture(row: Row) -> dict[str, Any]:
    about = {"score": row["score"], "where": row["path"], "verdict": row.get("verdict"), "remarks": remarks(row)}
    try:
        return about | {"source": data_uri(thumbnail(decode(_bytes(row["path"]))))}
    except Exception:  # moved away, behind an address, in an archive that is gone: its score is still of interest
        return about | {"source": "data:,"}


def _bytes(path: str) -> bytes:
    if os.path.isfile(path):
        with open(path, "rb") as stream:
            return stream.read()
    found = MEMBER.fullmatch(path)
    if found is None:
        raise FileNotFoundError(path)
    with tarfile.open(found[1]) as archive:
        content = archive.extractfile(found[2])
        assert content is not None
        return content.read()
