"""Rows of videos -> a curve of each, in memory that does not grow with its length.

A long curve is thinned: of two neighbours the lower one stays, so that no dip is lost.
"""

from dataclasses import dataclass, field
from typing import Any

from dgiqa.report.files import OutputFile
from dgiqa.report.rows import Row, remarks

MAX_POINTS = 4000  # of a curve, per video
MAX_ERRORS = 500  # of a curve whose messages are kept


@dataclass
class Point:
    """One scored frame of a curve; of a thinned one the lower of its neighbours."""

    time_s: float
    score: float
    std_error: float
    scene: int
    frame: int | None
    reused: str
    verdict: str | None = None
    remarks: str = ""


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
        """Add one row. Rows come in order of time."""
        if row["score"] is None:
            self.failed += 1
            if len(self.errors) < MAX_ERRORS:
                self.errors.append((row["time_s"], row["error"]))
            return
        if self._scene is not None and row["scene"] != self._scene and len(self.scenes) < MAX_POINTS:
            self.scenes.append(row["time_s"])
        self._scene = row["scene"]
        kept = {name: row[name] for name in ("time_s", "score", "scene", "frame", "reused", "verdict")}
        self._group.append(Point(**kept, std_error=row["std_error"] or 0.0, remarks=remarks(row)))
        if len(self._group) == self._stride:
            self._keep()

    def all_points(self) -> list[Point]:
        """The points, those of an unfinished group included."""
        if self._group:
            self._keep()
        return self.points

    @property
    def thinned(self) -> bool:
        """Whether a point stands for more than one frame."""
        return self._stride > 1

    def _keep(self) -> None:
        self.points.append(lowest(self._group))
        self._group = []
        if len(self.points) >= MAX_POINTS:
            self.points = [lowest(self.points[i : i + 2]) for i in range(0, len(self.points), 2)]
            self._stride *= 2


class Curves:
    """A writer of frames that keeps the curve of each video: the common part of plot and page."""

    def __init__(self, path: str, gate: float | None = None) -> None:
        self.file = OutputFile(path)
        self.gate = gate
        self.curves: dict[str, Curve] = {}

    def write(self, row: Row) -> None:
        self.curves.setdefault(row["path"], Curve()).add(row)

    def in_order(self, summary: dict[str, Any]) -> dict[str, Curve]:
        """The curves in the order in which the videos were named."""
        names = list(summary["videos"])
        return dict(sorted(self.curves.items(), key=lambda item: names.index(item[0]) if item[0] in names else 0))

    def legend(self) -> str:
        """The meaning of the lines and areas that are present."""
        parts = ["shaded: ± standard error"]
        if any(c.scenes for c in self.curves.values()):
            parts.append("dotted: scene cuts")
        if self.gate is not None:
            parts.append(f"dashed: the gate, {self.gate:g}")
        if any(c.errors for c in self.curves.values()):
            parts.append("red: could not be scored")
        return "; ".join(parts)


def lowest(points: list[Point]) -> Point:
    """The point that stands for all of them."""
    return min(points, key=lambda p: p.score)


def span(curve: Curve) -> tuple[float, float]:
    """The first and the last second of a curve, its errors included, at least a second apart."""
    times = [p.time_s for p in curve.all_points()] + [t for t, _ in curve.errors]
    first, last = min(times, default=0.0), max(times, default=0.0)
    return first, last if last > first else first + 1.0
