"""Rows of videos -> a table, JSON lines, CSV, JSON or Parquet, and a progress line with speed and time left."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, TextIO

from dgiqa.report.rows import (
    BOLD,
    CYAN,
    DIM,
    EIGHTHS,
    RED,
    CsvWriter,
    JsonLinesWriter,
    JsonWriter,
    ProgressLine,
    Report,
    Row,
    Writer,
    can_encode,
    draw_bar,
    painter,
    printable,
    shortened,
    terminal_width,
)
from dgiqa.video import VIDEO_COLUMNS, Summary

if TYPE_CHECKING:
    from dgiqa.report.page import Sink
    from dgiqa.video.pipeline import Result

FILE_FORMATS = {".csv": "csv", ".jsonl": "jsonl", ".json": "json", ".parquet": "parquet"}
ROW_GROUP = 1000  # rows of a Parquet file kept in memory before they are written


def format_of(path: str) -> str:
    """The format a file name asks for. Raises ValueError naming the suffixes there are."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in FILE_FORMATS:
        raise ValueError(f"{path!r} ends in {suffix or 'no suffix'}; end it in .jsonl, .csv, .json or .parquet")
    return FILE_FORMATS[suffix]


def writer_for(name: str, stream: TextIO, *, gate: float | None = None) -> Writer:
    """The writer of a format on a text stream; Parquet takes the binary stream below it."""
    if name == "table":
        return VideoTable(stream, gate)
    if name == "parquet":
        return ParquetWriter(stream)
    if name == "csv":
        return CsvWriter(stream, VIDEO_COLUMNS)
    return JsonLinesWriter(stream) if name == "jsonl" else JsonWriter(stream)


class ParquetWriter:
    """A typed column each, in row groups; the summary is in the file's metadata under "dgiqa". Needs pyarrow."""

    def __init__(self, stream: TextIO) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise ImportError(
                f"Parquet needs pyarrow ({error}); pip install pyarrow, or end the file in .csv"
            ) from error
        self._arrow = pyarrow
        self._schema = pyarrow.schema(
            [(name, getattr(pyarrow, _TYPES.get(name, "string"))()) for name in VIDEO_COLUMNS]
        )
        self._writer = pyarrow.parquet.ParquetWriter(stream.buffer, self._schema)
        self._rows: list[Row] = []

    def write(self, row: Row) -> None:
        """Keep one row; every ROW_GROUP of them are written."""
        self._rows.append(row)
        if len(self._rows) >= ROW_GROUP:
            self._flush()

    def finish(self, summary: dict[str, Any]) -> None:
        """Write what is left, and the end of the file."""
        from dgiqa.report.rows import to_json

        self._flush()
        self._writer.add_key_value_metadata({"dgiqa": to_json(summary)})
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(self._arrow.Table.from_pylist(self._rows, schema=self._schema))
            self._rows = []


_TYPES = dict.fromkeys(("time_s", "score", "std_error", "drift", "ms"), "float64")
_TYPES |= dict.fromkeys(("frame", "scene", "tiles", "tiles_reused", "width", "height", "schema_version"), "int64")


class VideoTable:
    """Rows for the eye: time, score, standard error, a bar, scene, and the name when there are several."""

    def __init__(self, stream: TextIO, gate: float | None = None) -> None:
        self.stream = stream
        self.gate = gate
        self.unicode = can_encode(stream, EIGHTHS + "±…")
        self.paint = painter(stream)
        self.begun = False

    def write(self, row: Row) -> None:
        """One line, and the header before the first."""
        if not self.begun:
            sign = "±" if self.unicode else "+-"
            head = f"{'seconds':>9}   score  {sign:<6}  {'':10}  scene  video"
            self.stream.write(self.paint(DIM, head) + "\n")
        self.begun = True
        self.stream.write(self._line(row).rstrip() + "\n")
        self.stream.flush()

    def finish(self, summary: dict[str, Any]) -> None:
        """Nothing comes after the last row."""
        self.stream.flush()

    def _line(self, row: Row) -> str:
        start = f"{row['time_s']:9.2f}  "
        name = printable(row["path"])
        name = name if can_encode(self.stream, name) else name.encode("ascii", "backslashreplace").decode()
        if row["score"] is None:  # never shortened: what to do about it stands at the end
            return f"{start}{self.paint(RED, ' error')}  {name}: {self.paint(RED, printable(row['error']))}"
        below = self.gate is not None and row["score"] < self.gate
        score = self.paint(RED if below else BOLD, f"{row['score']:.4f}")
        error = self.paint(DIM, " " * 6 if row["std_error"] is None else f"{row['std_error']:.4f}")
        bar = self.paint(RED if below else CYAN, draw_bar(row["score"], self.unicode))
        room = terminal_width(self.stream) - 46
        return f"{start}{score}  {error}  {bar}  {row['scene']:>5}  {shortened(name, room, self.unicode)}"


class PictureReport(Report):
    """Where the results of videos go: their rows to writers, and with the pictures to sinks."""

    def __init__(self) -> None:
        super().__init__()
        self.sinks: list[Sink] = []

    def draw_to(self, sink: Sink) -> None:
        """Give every row and its picture to a sink."""
        self.own(sink.file)
        self.sinks.append(sink)
        self.finish_with(sink.write, sink.file)

    def _write(self, result: tuple[Row, Result]) -> Row:
        row, frame = result
        super()._write(row)
        for sink in self.sinks:
            sink.add(row, frame.picture)
        return row


class VideoProgress(ProgressLine):
    """One line on a terminal: how far, frames per second, speed against playing time, time left."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream, None)
        self.started = time.perf_counter()

    def _line(self, summary: Summary) -> str:
        progress = summary.run.progress.values()
        if not summary.scored + summary.failed:
            return self.paint(DIM, "opening")
        elapsed = time.perf_counter() - self.started
        done = sum(p.done_s for p in progress)
        parts = [f"{summary.scored} frames", f"{summary.scored / elapsed:.1f} frames/s", f"{done / elapsed:.2f}x"]
        known = [p.length_s for p in progress if p.length_s is not None]
        bar = ""
        if len(known) == len(progress) and any(known):
            share = min(1.0, done / sum(known))
            bar = self.paint(CYAN, draw_bar(share, self.unicode, cells=20)) + "  "
            left = elapsed * (1 - share) / share if share else 0.0
            parts.insert(0, f"{done:.1f}/{sum(known):.1f} s")
            parts.append(f"{int(left // 60)}:{int(left % 60):02} left")
        if summary.run.dropped:
            parts.append(f"{summary.run.dropped} dropped")
        failed = "  " + self.paint(RED, f"{summary.failed} failed") if summary.failed else ""
        return bar + "  ".join(parts)[: terminal_width(self.stream) - 24] + failed
