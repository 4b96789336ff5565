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
from dgiqa.batch.drift import compared
from dgiqa.errors import DgiqaError
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

    settings: what each score was made with. sources, times: of each score, where columns for them were named.
    """

    scores: NDArray[np.float64]
    names: list[str]
    worst: list[Row]
    best: list[Row]
    failures: Counter[str] = field(default_factory=Counter)
    settings: list[Settings] = field(default_factory=list)
    sources: list[Any] = field(default_factory=list)
    times: list[Any] = field(default_factory=list)


class Gathering:
    """Rows, one by one -> their Population. source, time: columns that say where and when an image was made."""

    def __init__(self, source: str | None = None, time: str | None = None) -> None:
        self._further: dict[str, tuple[str | None, list[Any]]] = {"sources": (source, []), "times": (time, [])}
        self._scores: list[float] = []
        self._names: list[str] = []
        self._settings: list[Settings] = []
        self._known: dict[Settings, Settings] = {}
        self._failures = Counter[str]()
        self._worst: list[Row] = []
        self._best: list[Row] = []

    def add(self, row: Row) -> None:
        if row["score"] is None:
            self._failures[_cause(row.get("error") or "no reason given")] += 1
            return
        for column, values in self._further.values():
            if column is not None and column not in row:
                raise DgiqaError(f"there is no column {column!r}; the rows have {', '.join(row)}")
            if column is not None:
                values.append(row[column])
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
        shown = min(SHOWN, (len(self._scores) + 1) // 2)  # no image is among the worst and the best
        worst, best = self._worst[:shown], self._best[: len(self._scores) - shown]
        scores = np.array(self._scores, np.float64)
        further = {name: values for name, (_, values) in self._further.items()}
        return Population(scores, self._names, worst, best, self._failures, self._settings, **further)

    def _trim(self) -> None:
        self._worst = sorted(self._worst, key=lambda kept: kept["score"])[:SHOWN]
        self._best = sorted(self._best, key=lambda kept: -kept["score"])[:SHOWN]


def population(rows: Iterable[Row], source: str | None = None, time: str | None = None) -> Population:
    """Gather what a page shows. source, time: as in Gathering. Raises DgiqaError without any row, or these columns."""
    gathering = Gathering(source, time)
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
    moved = None if before is None else compared(before, rows)
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
        shown=SHOWN,
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
