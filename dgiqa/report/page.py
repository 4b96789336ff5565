"""Rows of videos -> an offline HTML page: curves over time, the worst and best frames, figures and a table.

Memory is bounded: curves are thinned, and only a few small thumbnails of pictures are kept. Positions are computed
here; the design is in `templates/video.html`.
"""

import math
from collections.abc import Iterator
from typing import Any

import cv2

from dgiqa.dtypes import UInt8
from dgiqa.meaning import words
from dgiqa.report.curve import Curve, Curves, lowest, span
from dgiqa.report.html import data_uri, render
from dgiqa.report.rows import Row, clock, gate_sentence, plural

MAX_TABLE = 500  # rows of the page's table: the lowest of each stretch when there are more
MAX_DOTS = 300  # most points of a curve that get a mark with their value
THUMBS = 6  # worst and best frames shown, each
THUMB_WIDTH = 320  # pixels
CANDIDATES = 4 * THUMBS  # of them in memory
APART_S = 2.0  # at least between two of them: neighbours look alike
WIDTH, HEIGHT, LEFT, RIGHT, BOTTOM, TOP = 960, 260, 44, 28, 28, 10  # of a curve in the page
COLOURS = 6  # of curves, in templates/base.html
CLOCK_S = 120.0  # from here on an axis counts minutes
CLOCK_STEPS_S = (15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400)
FIGURES = {"mean": "mean", "harmonic mean": "harmonic_mean", "5th percentile": "p5", "lowest": "min", "highest": "max"}


class HtmlReport(Curves):
    """A page without any external resource."""

    def __init__(self, path: str, gate: float | None = None) -> None:
        super().__init__(path, gate)
        self._worst = _Extremes(-1)
        self._best = _Extremes(+1)
        self._made_by = ""

    def write(self, row: Row) -> None:
        super().write(row)
        self._made_by = f"{row['bundle']}, {row['backend']}"

    def look(self, row: Row, picture: UInt8 | None) -> None:
        """A frame's picture, uint8 [h,w,3]; its thumbnail is made only if it is among the extremes so far."""
        if row["score"] is not None and picture is not None:
            self._worst.add(row, picture)
            self._best.add(row, picture)

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the page."""
        curves = self.in_order(summary)
        several = len(curves) > 1
        judged = [figures["verdict"] for figures in summary["videos"].values() if figures.get("verdict")]
        below = gate_sentence(judged.count("fail"), len(judged), "video", self.gate) if judged and self.gate else ""
        page = render(
            "video.html",
            title="Video quality over time",
            sentence=below,
            legend=f"{self.legend()}; tinted: the worst interval".capitalize(),
            videos=[
                self._video(name, curve, summary["videos"].get(name, {}), f"--c{i % COLOURS}")
                for i, (name, curve) in enumerate(curves.items())
            ],
            worst=list(self._worst.shown(several)),
            best=list(self._best.shown(several)),
            made_by=self._made_by,
            summary=summary,
        )
        self.file.write(page)

    def _video(self, name: str, curve: Curve, figures: dict[str, Any], colour: str) -> dict[str, Any]:
        """The template's values for one video."""
        points = curve.all_points()
        group = math.ceil(len(points) / MAX_TABLE) or 1
        told = [lowest(points[i : i + group]) for i in range(0, len(points), group)]
        shown: list[tuple[float, Any]] = [(p.time_s, p) for p in told]
        shown += [(time_s, {"error": text}) for time_s, text in curve.errors]
        return {
            "name": name,
            "verdict": figures.get("verdict"),
            "about": _about(figures, curve),
            "error": curve.errors[0][1] if curve.errors else "",
            "figures": list(_figures(figures)),
            "plot": _plot(curve, colour, self.gate, figures.get("worst_interval")) if points else None,
            "thinned": f" (the lowest of every {group} points)" if group > 1 or curve.thinned else "",
            "rows": sorted(shown, key=lambda row: row[0]),
        }


class _Extremes:
    """Frames with the lowest (sign -1) or the highest scores (+1), APART_S apart, and their thumbnails.

    More are kept than shown: a frame that is more extreme than its neighbours takes the places of all of them.
    """

    def __init__(self, sign: int) -> None:
        self.sign = sign
        self.kept: list[tuple[Row, bytes]] = []

    def add(self, row: Row, picture: UInt8) -> None:
        """Keep a frame if it is more extreme than all kept frames near it or, without any, than the least extreme."""
        near = [r for r, _ in self.kept if r["path"] == row["path"] and abs(r["time_s"] - row["time_s"]) < APART_S]
        rivals = near or ([r for r, _ in self.kept] if len(self.kept) == CANDIDATES else [])
        if rivals and self._of(row) <= (max if near else min)(map(self._of, rivals)):
            return
        self.kept = [(r, data) for r, data in self.kept if r not in near] + [(row, thumbnail(picture))]
        self.kept = sorted(self.kept, key=lambda item: -self._of(item[0]))[:CANDIDATES]

    def shown(self, several: bool) -> Iterator[tuple[str, str, Row]]:
        """The pictures of the template's gallery. several: whether to name the video."""
        for row, data in self.kept[:THUMBS]:
            where = f"at {row['time_s']:.2f} s" + (f" · {row['path']}" if several else "")
            yield data_uri(data), where, row

    def _of(self, row: Row) -> float:
        return float(self.sign * row["score"])


def thumbnail(picture: UInt8) -> bytes:
    height = max(1, round(picture.shape[0] * THUMB_WIDTH / picture.shape[1]))
    small = cv2.resize(picture, (THUMB_WIDTH, height), interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()


def _about(figures: dict[str, Any], curve: Curve) -> str:
    scored = figures.get("scored", 0)
    counts = f"{plural(scored, 'frame')} scored" + (f", {curve.failed} failed" if curve.failed else "")
    reasons = [f"{words([name])} in {share:.0%} of the frames" for name, share in figures.get("reasons", {}).items()]
    return "; ".join(text for text in (figures.get("video", ""), *reasons, *figures.get("notes", []), counts) if text)


def _figures(figures: dict[str, Any]) -> Iterator[tuple[str | None, str]]:
    """The pooled scores of a video as text, each with its name."""
    for name, key in FIGURES.items():
        value = figures.get(key)
        yield None if value is None else f"{value:.4f}", name
    worst = figures.get("worst_interval")
    if worst and worst["end_s"] > worst["start_s"]:
        start, end = (f"{round(worst[side], 2):g}" for side in ("start_s", "end_s"))
        yield f"{worst['mean']:.4f}", f"worst interval, {start}–{end} s"


def _plot(curve: Curve, colour: str, gate: float | None, worst: dict[str, float] | None) -> dict[str, Any]:
    """What the template draws, with x and y, which place times and scores in the drawing, as text."""
    points, (first, last) = curve.all_points(), span(curve)

    def x(time_s: float) -> str:
        return f"{LEFT + (min(time_s, last) - first) / (last - first) * (WIDTH - LEFT - RIGHT):.1f}"

    def y(score: float) -> str:
        return f"{TOP + (1 - min(max(score, 0.0), 1.0)) * (HEIGHT - BOTTOM - TOP):.1f}"

    apart = worst and first < worst["end_s"] < last + worst["start_s"] - first  # not the whole
    labels = [f"{time_s:g} s" if last < CLOCK_S else clock(time_s, last) for time_s in _round_times(first, last)]
    return {
        "box": (WIDTH, HEIGHT, LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM),
        "x": x,
        "y": y,
        "curve": curve,
        "points": points,
        "colour": colour,
        "times": list(zip(labels, _round_times(first, last), strict=True)),
        "gate": gate,
        "worst": worst if apart else None,
        "dotted": len(points) <= MAX_DOTS,
    }


def _round_times(first: float, last: float) -> list[float]:
    """About eight round numbers between two times; from two minutes on, round in minutes or hours."""
    rough = (last - first) / 8
    power = 10.0 ** math.floor(math.log10(rough))
    steps = [s * power for s in (1, 2, 5, 10)]
    if last >= CLOCK_S:
        steps = [s for s in CLOCK_STEPS_S if s >= rough] or steps
    step = next(s for s in steps if s >= rough)
    return [round(i * step, 6) for i in range(math.ceil(first / step), math.floor(last / step) + 1)]
