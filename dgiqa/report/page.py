"""Rows of videos -> a timeline picture, an offline HTML page, subtitles and chapters that say the score over time.

Each is a sink: `add(row, picture)` as frames come, `write(summary)` once at the end into a file opened beforehand.
Memory is bounded: a curve is thinned when it grows long (the lower of two neighbours stays), and of pictures only
a few small thumbnails are kept.
"""

from __future__ import annotations

import base64
import html
import io
import math
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dgiqa._version import __version__
from dgiqa.report.files import OutputFile
from dgiqa.report.rows import Row, readable

MAX_PIXELS = 60_000  # of a picture's height: PNG libraries and matplotlib end at 65,535
MAX_POINTS = 4000  # of a curve, per video
MAX_TABLE = 500  # rows of the page's table: the lowest of each stretch when there are more
THUMBS = 6  # worst and best frames shown, each
THUMB_WIDTH = 320  # pixels
CANDIDATES = 4 * THUMBS  # of them in memory
APART_S = 2.0  # at least between two of them: neighbours look alike
WIDTH, HEIGHT, LEFT, RIGHT, BOTTOM, TOP = 960, 260, 44, 28, 28, 10  # of a curve in the page
CLOCK_S = 120.0  # from here on an axis counts minutes
CLOCK_STEPS_S = (15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400)
COLOURS = ("#2878b5", "#c5562c", "#3a8a4d", "#8a5aa8", "#a88718", "#4c8f9c")

UInt8 = NDArray[np.uint8]


@dataclass
class Point:
    """One scored frame of a curve; of a thinned one the lower of its neighbours."""

    time_s: float
    score: float
    std_error: float
    scene: int
    frame: int | None
    reused: str


@dataclass
class Curve:
    """The scores of one video over time, thinned to at most MAX_POINTS, and where its scenes begin."""

    points: list[Point] = field(default_factory=list)
    scenes: list[float] = field(default_factory=list)
    errors: list[tuple[float, str]] = field(default_factory=list)
    failed: int = 0
    _scene: int | None = None
    _stride: int = 1
    _group: list[Point] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """One row, in order of time."""
        if row["score"] is None:
            self.failed += 1
            if len(self.errors) < MAX_TABLE:
                self.errors.append((row["time_s"], row["error"]))
            return
        if self._scene is not None and row["scene"] != self._scene and len(self.scenes) < MAX_POINTS:
            self.scenes.append(row["time_s"])
        self._scene = row["scene"]
        self._group.append(
            Point(row["time_s"], row["score"], row["std_error"] or 0.0, row["scene"], row["frame"], row["reused"])
        )
        if len(self._group) == self._stride:
            self._keep()

    def all_points(self) -> list[Point]:
        """The points, those of an unfinished group included."""
        if self._group:
            self._keep()
        return self.points

    def _keep(self) -> None:
        self.points.append(_lowest(self._group))
        self._group = []
        if len(self.points) >= MAX_POINTS:
            self.points = [_lowest(self.points[i : i + 2]) for i in range(0, len(self.points), 2)]
            self._stride *= 2


class _Curves:
    """What the picture and the page have in common."""

    def __init__(self, path: str, gate: float | None = None) -> None:
        self.file = OutputFile(path)
        self.gate = gate
        self.curves: dict[str, Curve] = {}

    def add(self, row: Row, picture: UInt8 | None) -> None:
        """One frame."""
        self.curves.setdefault(row["path"], Curve()).add(row)

    def _in_order(self, summary: dict[str, Any]) -> dict[str, Curve]:
        """The videos as they were named, not as their first rows came."""
        names = list(summary["videos"])
        return dict(sorted(self.curves.items(), key=lambda item: names.index(item[0]) if item[0] in names else 0))

    def _legend(self) -> str:
        """What lines and areas mean, of those that are there."""
        parts = ["shaded: ± standard error"]
        if any(c.scenes for c in self.curves.values()):
            parts.append("dotted: scene cuts")
        if self.gate is not None:
            parts.append(f"dashed: the gate, {self.gate:g}")
        if any(c.errors for c in self.curves.values()):
            parts.append("red: could not be scored")
        return "; ".join(parts)


class TimelinePlot(_Curves):
    """The scores over time as a PNG, one panel per video; needs matplotlib."""

    def __init__(self, path: str, gate: float | None = None) -> None:
        import_matplotlib()
        super().__init__(path, gate)

    def write(self, summary: dict[str, Any]) -> None:
        """Draw and write the PNG."""
        curves = self._in_order(summary)
        height = 2.6 * max(1, len(curves)) + 0.4
        figure = import_matplotlib().Figure(figsize=(10, height), layout="constrained")
        panels = figure.subplots(max(1, len(curves)), 1, squeeze=False)[:, 0]
        for panel, (name, curve) in zip(panels, curves.items(), strict=False):
            self._draw(panel, curve)
            panel.set(ylim=(0, 1), ylabel="score")
            panel.set_title(readable(name), parse_math=False)
        panels[-1].set_xlabel(f"seconds ({self._legend()})")
        data = io.BytesIO()
        figure.savefig(data, format="png", dpi=min(120, MAX_PIXELS / height))
        self.file.write(data.getvalue())

    def _draw(self, panel: Any, curve: Curve) -> None:
        points = curve.all_points()
        times, scores = [p.time_s for p in points], np.array([p.score for p in points])
        errors = np.array([p.std_error for p in points])
        first, last = _span(curve)
        panel.set_xlim(first - 0.01 * (last - first), last + 0.01 * (last - first))
        panel.fill_between(times, scores - errors, scores + errors, alpha=0.25, linewidth=0)
        panel.plot(times, scores, marker="." if len(points) < 200 else "", linewidth=1.2)
        for time_s in curve.scenes:
            panel.axvline(time_s, color="0.6", linewidth=0.7, linestyle=":")
        for time_s, _ in curve.errors:
            panel.axvline(time_s, color="tab:red", linewidth=0.7)
        if self.gate is not None:
            panel.axhline(self.gate, color="tab:red", linewidth=0.8, linestyle="--")
        if not points:
            panel.text(0.5, 0.5, "no frame could be scored", ha="center", transform=panel.transAxes)


class HtmlReport(_Curves):
    """A page without any external resource: curves, scene marks, worst and best frames, figures and table."""

    def __init__(self, path: str, gate: float | None = None) -> None:
        super().__init__(path, gate)
        self._worst = _Extremes(-1)
        self._best = _Extremes(+1)
        self._made_by = ""

    def add(self, row: Row, picture: UInt8 | None) -> None:
        """One frame; its thumbnail is made only if it is among the extremes so far."""
        super().add(row, picture)
        self._made_by = f"{row['bundle']}, {row['backend']}"
        if row["score"] is not None and picture is not None:
            self._worst.add(row, picture)
            self._best.add(row, picture)

    def write(self, summary: dict[str, Any]) -> None:
        """Write the page."""
        curves = self._in_order(summary)
        legend = f"{self._legend()}; tinted: the worst interval".capitalize()
        about = f"<p>Scores in [0, 1], higher is better; no reference was used. {legend}.</p>"
        parts = [_HEAD, about]
        for i, (name, curve) in enumerate(curves.items()):
            figures = summary["videos"].get(name, {})
            parts += [f"<h2>{html.escape(name)}</h2>", _figures(figures, curve)]
            parts.append(self._svg(curve, COLOURS[i % len(COLOURS)], figures.get("worst_interval")))
        parts += ["<h2>Worst frames</h2>", _gallery(self._worst, curves)]
        parts += ["<h2>Best frames</h2>", _gallery(self._best, curves)]
        parts += ["<h2>All frames</h2>", *(_table(name, c) for name, c in curves.items())]
        parts.append(_run_line(summary, self._made_by))
        self.file.write("\n".join(parts) + "\n</main></body></html>\n")

    def _svg(self, curve: Curve, colour: str, worst: dict[str, float] | None) -> str:
        points = curve.all_points()
        if not points:
            return ""
        first, last = _span(curve)
        plot_width, plot_height = WIDTH - LEFT - RIGHT, HEIGHT - BOTTOM - TOP

        def x(time_s: float) -> str:
            return f"{LEFT + (min(time_s, last) - first) / (last - first) * plot_width:.1f}"

        def y(score: float) -> str:
            return f"{TOP + (1 - min(max(score, 0.0), 1.0)) * plot_height:.1f}"

        lines = [f'<div class="plot"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="score over time">']
        if worst and first < worst["end_s"] < last + worst["start_s"] - first:  # not the whole
            width = float(x(worst["end_s"])) - float(x(worst["start_s"]))
            lines.append(
                f'<rect class="worst" x="{x(worst["start_s"])}" y="{TOP}" width="{width:.1f}" height="{plot_height}">'
                "<title>worst interval</title></rect>"
            )
        for level in (0, 0.25, 0.5, 0.75, 1):
            lines.append(f'<path class="grid" d="M{LEFT} {y(level)}H{WIDTH - RIGHT}"/>')
            lines.append(f'<text x="{LEFT - 6}" y="{y(level)}" text-anchor="end" dy="4">{level:g}</text>')
        lines += [
            f'<text x="{x(time_s)}" y="{HEIGHT - 8}" text-anchor="middle">{_clock(time_s, last)}</text>'
            for time_s in _round_times(first, last)
        ]
        lines += [f'<path class="scene" d="M{x(t)} {TOP}V{HEIGHT - BOTTOM}"/>' for t in curve.scenes]
        lines += [
            f'<path class="error" d="M{x(t)} {TOP}V{HEIGHT - BOTTOM}"><title>{html.escape(text)}</title></path>'
            for t, text in curve.errors
        ]
        if self.gate is not None:
            lines.append(f'<path class="gate" d="M{LEFT} {y(self.gate)}H{WIDTH - RIGHT}"/>')
        upper = " ".join(f"{x(p.time_s)},{y(p.score + p.std_error)}" for p in points)
        lower = " ".join(f"{x(p.time_s)},{y(p.score - p.std_error)}" for p in reversed(points))
        lines.append(f'<polygon points="{upper} {lower}" fill="{colour}" opacity="0.2"/>')
        line = " ".join(f"{x(p.time_s)},{y(p.score)}" for p in points)
        lines.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        if len(points) <= 300:
            lines += [
                f'<circle cx="{x(p.time_s)}" cy="{y(p.score)}" r="3" fill="{colour}"><title>{p.time_s:.2f} s: '
                f"{p.score:.4f}</title></circle>"
                for p in points
            ]
        return "\n".join([*lines, "</svg></div>"])


class _Extremes:
    """Frames with the lowest (sign -1) or the highest scores (+1), APART_S apart, and their thumbnails.

    More are kept than shown: a frame that is more extreme than its neighbours takes the places of all of them.
    """

    def __init__(self, sign: int) -> None:
        self.sign = sign
        self.kept: list[tuple[Row, bytes]] = []

    def add(self, row: Row, picture: UInt8) -> None:
        """Keep a frame if it is one of them so far: more extreme than all near it, and than one of the others."""
        near = [r for r, _ in self.kept if r["path"] == row["path"] and abs(r["time_s"] - row["time_s"]) < APART_S]
        rivals = near or ([r for r, _ in self.kept] if len(self.kept) == CANDIDATES else [])
        if rivals and self._of(row) <= (max if near else min)(map(self._of, rivals)):
            return
        self.kept = [(r, data) for r, data in self.kept if r not in near] + [(row, _jpeg(picture))]
        self.kept = sorted(self.kept, key=lambda item: -self._of(item[0]))[:CANDIDATES]

    def _of(self, row: Row) -> float:
        return float(self.sign * row["score"])


class _Spans:
    """A text per row, valid until the next row of the same video."""

    def __init__(self, path: str) -> None:
        self.file = OutputFile(path)
        self.count = 0
        self._open: Row | None = None
        self._step_s = 1.0

    def add(self, row: Row, picture: UInt8 | None) -> None:
        """One frame; the one before it is written."""
        if self._open is not None:
            if row["path"] != self._open["path"]:
                raise ValueError("subtitles and chapters describe one video; score them one at a time")
            self._step_s = max(row["time_s"] - self._open["time_s"], 1e-3)
            self._emit(self._open, row["time_s"])
        self._open = row

    def write(self, summary: dict[str, Any]) -> None:
        """The last one; the others are written."""
        if self._open is not None:
            self._emit(self._open, self._open["time_s"] + self._step_s)
        self._open = None

    def _emit(self, row: Row, end_s: float) -> None:
        raise NotImplementedError


class Subtitles(_Spans):
    """SubRip (.srt): the score of each frame until the next one."""

    def _emit(self, row: Row, end_s: float) -> None:
        self.count += 1
        times = f"{_stamp(row['time_s'])} --> {_stamp(max(end_s, row['time_s'] + 1e-3))}"
        self.file.write(f"{self.count}\n{times}\n{_words(row)}\n\n")


class Chapters(_Spans):
    """FFmpeg's metadata file: a chapter per frame, its title the score; ffmpeg -i in.mp4 -i FILE -map_metadata 1 ..."""

    def _emit(self, row: Row, end_s: float) -> None:
        if not self.count:
            self.file.write(f";FFMETADATA1\ncomment=scores by dgiqa-rt, {_escaped(row['bundle'])}\n")
        self.count += 1
        start_ms = round(row["time_s"] * 1000)
        end_ms = max(round(end_s * 1000), start_ms + 1)
        title = _escaped(_words(row))
        self.file.write(f"[CHAPTER]\nTIMEBASE=1/1000\nSTART={start_ms}\nEND={end_ms}\ntitle={title}\n")


def import_matplotlib() -> Any:
    """matplotlib.figure, which needs no display; ImportError that says how to get it."""
    try:
        import matplotlib.figure
    except ImportError as error:
        raise ImportError(f"a plot needs matplotlib ({error}); pip install matplotlib, or use --html") from error
    return matplotlib.figure


def _lowest(points: list[Point]) -> Point:
    return min(points, key=lambda p: p.score)


def _jpeg(picture: UInt8) -> bytes:
    height = max(1, round(picture.shape[0] * THUMB_WIDTH / picture.shape[1]))
    small = cv2.resize(picture, (THUMB_WIDTH, height), interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()


def _span(curve: Curve) -> tuple[float, float]:
    """The first and the last second of a curve, its errors included; a second where it is a single moment."""
    times = [p.time_s for p in curve.all_points()] + [t for t, _ in curve.errors]
    first, last = min(times, default=0.0), max(times, default=0.0)
    return first, last if last > first else first + 1.0


def _figures(figures: dict[str, Any], curve: Curve) -> str:
    """What a video is and its pooled figures; of one without a score, why."""
    scored = figures.get("scored", 0)
    counts = f"{scored} frame{'s' * (scored != 1)} scored" + (f", {curve.failed} failed" if curve.failed else "")
    about = "; ".join(
        html.escape(text) for text in [figures.get("video", ""), *figures.get("notes", []), counts] if text
    )
    if not curve.all_points():
        return f'<p>{about}</p><p class="failed">{html.escape(curve.errors[0][1])}</p>'
    worst = figures.get("worst_interval")
    shown = {name: figures.get(key) for name, key in _SHOWN.items()}
    items = [
        f"<div><b>{'–' if value is None else format(value, '.4f')}</b>{name}</div>" for name, value in shown.items()
    ]
    if worst and worst["end_s"] > worst["start_s"]:
        stretch = f"{_short(worst['start_s'])}–{_short(worst['end_s'])} s"
        items.append(f"<div><b>{worst['mean']:.4f}</b>worst interval, {stretch}</div>")
    return f'<p>{about}</p><div class="figures">{"".join(items)}</div>'


_SHOWN = {"mean": "mean", "harmonic mean": "harmonic_mean", "5th percentile": "p5", "lowest": "min", "highest": "max"}


def _short(time_s: float) -> str:
    return f"{round(time_s, 2):g}"


def _gallery(extremes: _Extremes, curves: dict[str, Curve]) -> str:
    cells = []
    for row, data in extremes.kept[:THUMBS]:
        source = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
        name = f" · {html.escape(str(row['path']))}" if len(curves) > 1 else ""
        caption = f"<b>{row['score']:.4f}</b> at {row['time_s']:.2f} s{name}"
        cells.append(f'<figure><img src="{source}" alt="frame"><figcaption>{caption}</figcaption></figure>')
    return f'<div class="gallery">{"".join(cells) or "none"}</div>'


def _table(name: str, curve: Curve) -> str:
    points = curve.all_points()
    group = math.ceil(len(points) / MAX_TABLE) or 1
    shown = [_lowest(points[i : i + group]) for i in range(0, len(points), group)]
    said = f" (the lowest of every {group} points)" if group > 1 or curve._stride > 1 else ""
    rows = [(p.time_s, _point_row(p)) for p in shown] + [(t, _error_row(t, text)) for t, text in curve.errors]
    body = "".join(text for _, text in sorted(rows, key=lambda item: item[0]))
    head = "<tr><th>seconds</th><th>frame</th><th>score</th><th>± s.e.</th><th>scene</th><th>reused</th></tr>"
    return f"<details><summary>{html.escape(name)}{said}</summary><table>{head}{body}</table></details>"


def _point_row(p: Point) -> str:
    frame = "" if p.frame is None else p.frame
    cells = (f"{p.time_s:.3f}", frame, f"{p.score:.4f}", f"{p.std_error:.4f}", p.scene, p.reused)
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _error_row(time_s: float, text: str) -> str:
    return f'<tr><td>{time_s:.3f}</td><td class="failed" colspan="5">{html.escape(text)}</td></tr>'


def _run_line(summary: dict[str, Any], made_by: str) -> str:
    parts = [made_by] if summary["complete"] else [made_by, "the run ended early"]
    if summary["reused"]:
        drift = "" if summary["mean_drift"] is None else f", mean |drift| {summary['mean_drift']:.4f}"
        parts.append(f"{summary['reused']} frames reused depth, {summary['audits']} checked{drift}")
    if summary["dropped"]:
        parts.append(f"{summary['dropped']} live frames dropped")
    return f"<p>dgiqa-rt {__version__}: {html.escape('; '.join(parts))}</p>"


def _round_times(first: float, last: float) -> list[float]:
    """About eight round numbers between two times; from two minutes on round as clocks are."""
    rough = (last - first) / 8
    power = 10.0 ** math.floor(math.log10(rough))
    steps = [s * power for s in (1, 2, 5, 10)]
    if last >= CLOCK_S:
        steps = [s for s in CLOCK_STEPS_S if s >= rough] or steps
    step = next(s for s in steps if s >= rough)
    return [round(i * step, 6) for i in range(math.ceil(first / step), math.floor(last / step) + 1)]


def _clock(time_s: float, last: float) -> str:
    """A time on the axis: seconds, minutes and seconds, or hours as well."""
    if last < CLOCK_S:
        return f"{time_s:g} s"
    minutes, seconds = divmod(round(time_s), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}" if last >= 3600 else f"{minutes}:{seconds:02}"


def _stamp(time_s: float) -> str:
    milliseconds = round(time_s * 1000)
    seconds, ms = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02},{ms:03}"


def _words(row: Row) -> str:
    if row["score"] is None:
        return "no score: " + " ".join(row["error"].split())
    spread = "" if row["std_error"] is None else f" ± {row['std_error']:.3f}"
    return f"score {row['score']:.3f}{spread}"


def _escaped(text: str) -> str:
    """FFmpeg's metadata files give =, ;, # and \\ a meaning."""
    return "".join("\\" + c if c in "=;#\\\n" else c for c in text)


_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Video quality</title><style>
:root { color-scheme: light dark; --fg: #1c2024; --dim: #687076; --bg: #fff; --card: #f3f4f6; --line: #d7dbdf }
@media (prefers-color-scheme: dark) {
  :root { --fg: #e6e8ea; --dim: #9ba1a6; --bg: #15181a; --card: #202427; --line: #3a3f43 } }
body { margin: 0; background: var(--bg); color: var(--fg); font: 15px/1.45 system-ui, sans-serif }
main { max-width: 62rem; margin: 0 auto; padding: 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 1.6rem; overflow-wrap: anywhere }
p { color: var(--dim) } svg { width: 100%; height: auto } svg text { fill: var(--dim); font-size: 12px }
.grid { stroke: var(--line); fill: none } .scene { stroke: var(--dim); stroke-dasharray: 2 4 }
.error, .gate { stroke: #d14343 } .gate { stroke-dasharray: 6 4 }
.worst { fill: #d14343; opacity: .12 } .failed { color: #d14343 }
.plot { overflow-x: auto; margin-top: .8rem } .plot svg { min-width: 36rem; display: block }
.figures { display: flex; flex-wrap: wrap; gap: .7rem }
.figures div { background: var(--card); border-radius: 6px; padding: .4rem .8rem; color: var(--dim) }
.figures b { display: block; color: var(--fg); font-size: 1.15rem }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr)); gap: .7rem }
figure { margin: 0 } figcaption { overflow-wrap: anywhere }
img { width: 100%; aspect-ratio: 16 / 9; object-fit: contain; background: var(--card); border-radius: 4px }
details { overflow-x: auto } summary { cursor: pointer; overflow-wrap: anywhere }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .15rem .8rem; text-align: right; border-bottom: 1px solid var(--line) }
td.failed { text-align: left }
</style></head><body><main><h1>Video quality over time</h1>"""
