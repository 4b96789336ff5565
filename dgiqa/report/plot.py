"""Curves of videos -> a picture of the scores over time. Needs matplotlib."""

import io
from typing import Any

import numpy as np

from dgiqa.extras import load
from dgiqa.report.curve import Curves, span
from dgiqa.report.rows import readable

MAX_PIXELS = 60_000  # of a picture's height: PNG libraries and matplotlib end at 65,535


class TimelinePlot(Curves):
    """The scores over time as a PNG, one panel per video; needs matplotlib."""

    def __init__(self, path: str, gate: float | None = None) -> None:
        self._matplotlib = load("matplotlib.figure", "a plot", "matplotlib", "video", instead="use --html")
        super().__init__(path, gate)

    def finish(self, summary: dict[str, Any]) -> None:
        """Draw and write the PNG."""
        curves = self.in_order(summary)
        height = 2.6 * max(1, len(curves)) + 0.4
        figure = self._matplotlib.Figure(figsize=(10, height), layout="constrained")
        panels = figure.subplots(max(1, len(curves)), 1, squeeze=False)[:, 0]
        for panel, (name, curve) in zip(panels, curves.items(), strict=False):
            panel.set(ylim=(0, 1), ylabel="score")
            panel.set_title(readable(name), parse_math=False)
            points, (first, last) = curve.all_points(), span(curve)
            times, scores = [p.time_s for p in points], np.array([p.score for p in points])
            errors = np.array([p.std_error for p in points])
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
        panels[-1].set_xlabel(f"seconds ({self.legend()})")
        data = io.BytesIO()
        figure.savefig(data, format="png", dpi=min(120, MAX_PIXELS / height))
        self.file.write(data.getvalue())
