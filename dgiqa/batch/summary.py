"""Scored rows -> one offline HTML page; two sets of them -> how the population moved."""

import os
import tarfile
from typing import Any

import numpy as np

from dgiqa.batch.choose import MEMBER
from dgiqa.batch.drift import SHOWN, Population, Settings, drift
from dgiqa.image import decode
from dgiqa.report.files import OutputFile
from dgiqa.report.html import data_uri, render
from dgiqa.report.page import thumbnail
from dgiqa.report.rows import Row, gate_sentence

BINS, CAUSES = 40, 20
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)


class PageWriter:
    """A writer of rows that draws them as a page at the end. name: of the set. gate: the score to reach."""

    def __init__(self, file: OutputFile, name: str, gate: float | None = None) -> None:
        self._file, self._name, self._gate, self._rows = file, name, gate, Population()
        self.write = self._rows.add

    def finish(self, summary: dict[str, Any]) -> None:
        sentence = ""
        if self._gate is not None and summary["scored"]:
            sentence = gate_sentence(summary["below"], summary["scored"], "image", self._gate)
        self._file.write(page(self._rows, name=self._name, sentence=sentence))


def by_settings(rows: Population) -> list[dict[str, Any]]:
    """The scores by settings, the most used first, and how they differ from the first's on the same images.

    near: mean and largest absolute difference over the images of both, None without any. It shows whether settings
    hardly differ, as two backends do.
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


def page(rows: Population, *, name: str, before: Population | None = None, sentence: str = "") -> str:
    """The page as text. Pictures are shown where their files can still be read. sentence: how many are below a gate."""
    figures = [(f"{len(rows.scores):,}", "scored"), (f"{sum(rows.failures.values()):,}", "failed")]
    if len(rows.scores):
        figures.append((f"{rows.scores.mean():.4f}", "mean"))
        values = np.percentile(rows.scores, PERCENTILES)
        figures += [
            (f"{value:.4f}", f"{p}{'st' if p == 1 else 'th'} percentile")
            for p, value in zip(PERCENTILES, values, strict=True)
        ]
    settings = by_settings(rows)
    worst, best = ([_picture(row) for row in extreme] for extreme in rows.extremes())
    return render(
        "set.html",
        title=f"Quality of {name}",
        figures=figures,
        counts=np.histogram(rows.scores, BINS, (0, 1))[0].tolist(),
        worst=worst,
        best=best,
        settings=settings if len(settings) > 1 else [],
        made_by=", ".join(filter(None, settings[0]["settings"])) if len(settings) == 1 else "",
        sentence=sentence,
        failures=rows.failures.most_common(CAUSES),
        drift=None if before is None else drift(before, rows),
        shown=SHOWN,
    )


def _picture(row: Row) -> tuple[str, str, Row]:
    try:
        source = data_uri(thumbnail(decode(_bytes(row["path"]))))
    except Exception:  # moved, at an address, in a lost archive: its score is still of interest
        source = "data:,"
    return source, row["path"], row


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
