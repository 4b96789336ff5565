"""Scores and failures -> rows -> a table, JSON lines, CSV or one JSON document, as they come; files appear whole.

A row is a dict with the keys of `COLUMNS`, always all of them and in that order (and those of `DETAIL_COLUMNS` when
details are asked for). Writers take a text stream and flush every row. JSON and CSV are UTF-8 whatever the locale.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import sys
import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TextIO, TypeVar

if TYPE_CHECKING:
    from dgiqa.forward import Score

SCHEMA_VERSION = 1  # raised when a column changes its meaning or goes away; new columns may be added at the end
COLUMNS = (
    *("path", "score", "std_error", "width", "height", "tiles", "tiling", "status", "error"),
    *("bundle", "backend", "ms", "schema_version"),
)
DETAIL_COLUMNS = ("tile_scores", "windows", "timings_ms")
FORMATS = ("table", "jsonl", "csv", "json")
FILE_FORMATS = {".csv": "csv", ".jsonl": "jsonl", ".json": "json"}

Row = dict[str, Any]
R = TypeVar("R", bound="Report")

BAR_CELLS = 10
EIGHTHS = " ▏▎▍▌▋▊▉█"
RED, GREEN, YELLOW, CYAN = "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[36m"
DIM, BOLD, RESET = "\x1b[2m", "\x1b[1m", "\x1b[0m"
ERASE_LINE = "\r\x1b[2K"


def score_row(score: Score, *, details: bool = False) -> Row:
    """One scored image as a row. Scores are rounded to 6 decimals, times to 0.01 ms.

    tiles: how many; tiling: by which rule. Details: tile_scores [n]; windows [n][4], each tile's y, x, height and width
    in pixels of the image; timings_ms by stage, whose sum is ms.
    """
    origin = {"bundle": score.bundle, "backend": score.backend, "tiling": score.tiles}
    row = _row(
        path=score.source,
        score=_rounded(score.value, 6),
        std_error=None if score.std_error is None else _rounded(score.std_error, 6),
        width=score.width,
        height=score.height,
        tiles=len(score.tile_scores),
        status="ok",
        ms=_rounded(sum(score.timings_ms.values()), 2),
        **origin,
    )
    if details:
        row["tile_scores"] = [_rounded(value, 6) for value in score.tile_scores.tolist()]
        row["windows"] = score.windows_original.round(1).tolist()
        row["timings_ms"] = {stage: _rounded(ms, 2) for stage, ms in score.timings_ms.items()}
    return row


def error_row(
    name: str, message: str, *, bundle: str = "", backend: str = "", tiling: str = "", details: bool = False
) -> Row:
    """One input that could not be scored, as a row: status "error", the message, and no score."""
    row = _row(path=name, status="error", error=message, bundle=bundle, backend=backend, tiling=tiling)
    if details:
        row.update(dict.fromkeys(DETAIL_COLUMNS))
    return row


@dataclass
class Summary:
    """What a run amounts to, kept up row by row in constant memory. Lowest and highest are None without a score."""

    scored: int = 0
    failed: int = 0
    total: float = 0.0
    lowest: float | None = None
    highest: float | None = None
    lowest_path: str = ""
    started: float = field(default_factory=time.perf_counter)

    def add(self, row: Row) -> None:
        """Count one row."""
        score = row["score"]
        if score is None:
            self.failed += 1
            return
        self.scored += 1
        self.total += score
        if self.lowest is None or score < self.lowest:
            self.lowest, self.lowest_path = score, row["path"]
        self.highest = score if self.highest is None else max(self.highest, score)

    @property
    def mean(self) -> float | None:
        """Mean score; None without one."""
        return self.total / self.scored if self.scored else None

    @property
    def seconds(self) -> float:
        """Time since the summary was begun."""
        return time.perf_counter() - self.started

    def as_dict(self, *, complete: bool) -> dict[str, Any]:
        """The summary of a JSON document. complete: False when the run ended before its inputs did."""
        return {
            "complete": complete,
            "scored": self.scored,
            "failed": self.failed,
            "mean": None if self.mean is None else _rounded(self.mean, 6),
            "lowest": self.lowest,
            "lowest_path": self.lowest_path or None,
            "highest": self.highest,
            "seconds": _rounded(self.seconds, 3),
            "images_per_second": _rounded(self.scored / self.seconds, 3),
        }


class Tally(Protocol):
    """What rows amount to, and how many there are with and without a score: a Summary, of images or of videos."""

    @property
    def scored(self) -> int: ...
    @property
    def failed(self) -> int: ...
    def add(self, row: Row) -> None: ...
    def as_dict(self, *, complete: bool) -> dict[str, Any]: ...


class Writer(Protocol):
    """Turns rows into text. `finish` is called once, after the last row, also when that came early."""

    def write(self, row: Row) -> None:
        """Write and flush one row."""

    def finish(self, summary: dict[str, Any]) -> None:
        """Write what comes after the last row."""


def writer_for(name: str, stream: TextIO, *, details: bool = False, fail_under: float | None = None) -> Writer:
    """The writer of a format in `FORMATS`, on a text stream. fail_under: the table shows scores below it in red."""
    if name == "table":
        return TableWriter(stream, fail_under=fail_under)
    if name == "csv":
        return CsvWriter(stream, COLUMNS + DETAIL_COLUMNS if details else COLUMNS)
    return JsonLinesWriter(stream) if name == "jsonl" else JsonWriter(stream)


def format_of(path: str) -> str:
    """The format a file name asks for. Raises ValueError naming the three suffixes there are."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in FILE_FORMATS:
        raise ValueError(f"{path!r} ends in {suffix or 'no suffix'}; end it in .csv, .jsonl or .json")
    return FILE_FORMATS[suffix]


class JsonLinesWriter:
    """One JSON object per line."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, row: Row) -> None:
        self.stream.write(to_json(row) + "\n")
        self.stream.flush()

    def finish(self, summary: dict[str, Any]) -> None:
        self.stream.flush()


class JsonWriter:
    """One document {schema_version, rows, summary}, written row by row; it is valid once finished."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.before = f'{{"schema_version": {SCHEMA_VERSION}, "rows": [\n'

    def write(self, row: Row) -> None:
        self.stream.write(self.before + to_json(row))
        self.before = ",\n"
        self.stream.flush()

    def finish(self, summary: dict[str, Any]) -> None:
        opening = self.before if self.before.startswith("{") else "\n"
        self.stream.write(f'{opening}], "summary": {to_json(summary)}}}\n')
        self.stream.flush()


class CsvWriter:
    """A header, then one line per row; None is an empty cell, a list or dict is a cell of JSON."""

    def __init__(self, stream: TextIO, columns: tuple[str, ...] = COLUMNS) -> None:
        self.stream = stream
        self.columns = columns
        self.csv = csv.writer(stream, lineterminator="\n")
        self.begun = False

    def write(self, row: Row) -> None:
        self._begin()
        self.csv.writerow([to_json(v) if isinstance(v, list | dict) else v for v in map(row.get, self.columns)])
        self.stream.flush()

    def finish(self, summary: dict[str, Any]) -> None:
        self._begin()
        self.stream.flush()

    def _begin(self) -> None:
        if not self.begun:
            self.csv.writerow(self.columns)
        self.begun = True


class TableWriter:
    """Rows for the eye: score, standard error, a bar, size, name. The name comes last, so no width is guessed ahead."""

    def __init__(self, stream: TextIO, *, fail_under: float | None = None) -> None:
        self.stream = stream
        self.fail_under = fail_under
        self.unicode = can_encode(stream, EIGHTHS + "×±…")
        self.paint = painter(stream)
        self.width = terminal_width(stream)
        self.begun = False

    def write(self, row: Row) -> None:
        lines = [] if self.begun else [self._header()]
        self.begun = True
        lines.append(self._error(row) if row["score"] is None else self._score(row))
        self.stream.write("".join(f"{line.rstrip()}\n" for line in lines))
        self.stream.flush()

    def finish(self, summary: dict[str, Any]) -> None:
        self.stream.flush()

    def _columns(self, score: str, std_error: str, bar: str, size: str) -> str:
        """The columns left of the name. A narrow terminal goes without the bar, then without the size."""
        bar = f"  {bar}" if self.width >= 64 else ""
        size = f"  {size:>11}" if self.width >= 44 else ""
        return f"{score}  {std_error}{bar}{size}  "

    def _header(self) -> str:
        sign = "±" if self.unicode else "+-"
        return self.paint(DIM, self._columns(" score", f"{sign:<6}", " " * BAR_CELLS, "size") + "image")

    def _score(self, row: Row) -> str:
        below = self.fail_under is not None and row["score"] < self.fail_under
        size = f"{row['width']}{'×' if self.unicode else 'x'}{row['height']}"
        score = self.paint(RED if below else BOLD, f"{row['score']:.4f}")
        std_error = self.paint(DIM, " " * 6 if row["std_error"] is None else f"{row['std_error']:.4f}")
        bar = self.paint(RED if below else CYAN, draw_bar(row["score"], self.unicode))
        used = len(self._columns(" " * 6, " " * 6, " " * BAR_CELLS, size))
        return self._columns(score, std_error, bar, size) + shortened(self._name(row), self.width - used, self.unicode)

    def _error(self, row: Row) -> str:
        # Never shortened: what to do about it stands at the end.
        return f"{self.paint(RED, ' error')}  {self._name(row)}: {self.paint(RED, printable(row['error']))}"

    def _name(self, row: Row) -> str:
        name = printable(row["path"])
        return name if can_encode(self.stream, name) else name.encode("ascii", "backslashreplace").decode()


class ProgressLine:
    """One line on a terminal, redrawn in place: a bar when the total is known, and count, failures, speed, time left.

    Drawn by hand, without a thread: it has to make way for table rows on another stream of the same terminal.
    """

    def __init__(self, stream: TextIO, total: int | None) -> None:
        self.stream = stream
        self.total = total
        self.unicode = can_encode(stream, EIGHTHS)
        self.paint = painter(stream)
        self.drawn_at = -math.inf

    def show(self, summary: Tally, *, force: bool = False) -> None:
        """Draw the line, ten times a second at most unless forced."""
        now = time.perf_counter()
        if force or now - self.drawn_at > 0.1:
            self.drawn_at = now
            self.stream.write(ERASE_LINE + self._line(summary))
            self.stream.flush()

    def hide(self) -> None:
        """Take the line away, before anything else is written to the terminal."""
        if self.drawn_at > -math.inf:
            self.stream.write(ERASE_LINE)
            self.stream.flush()

    def _line(self, summary: Any) -> str:
        done = summary.scored + summary.failed
        if not done:
            return self.paint(DIM, "loading the model")
        speed = done / summary.seconds
        parts = [f"{done}/{self.total}" if self.total else f"{done} images", f"{speed:.1f} images/s"]
        if self.total:
            parts.append(f"{_clock((self.total - done) / speed)} left")
        bar = self.paint(CYAN, draw_bar(done / self.total, self.unicode, cells=20)) + "  " if self.total else ""
        failed = "  " + self.paint(RED, f"{summary.failed} failed") if summary.failed else ""
        return bar + "  ".join(parts)[: terminal_width(self.stream) - 24] + failed


class Report:
    """Where the rows of one run go: writers, some of them to files, a progress line, and the summary.

    A context manager, entered before its files are opened. However the run ends, the rows written so far are kept:
    documents are closed, and files get their names, each on its own, so that one that fails takes no other along and
    leaves nothing behind. A run that breaks off before its first row writes nothing and leaves older files alone.
    """

    def __init__(self) -> None:
        self.writers: list[Writer] = []
        self.line: ProgressLine | None = None
        self.summary: Tally = Summary()
        self.complete = False
        self._endings = contextlib.ExitStack()

    def __enter__(self: R) -> R:
        return self

    def own(self, file: AtomicFile) -> AtomicFile:
        """Discard the file in the end unless something was written to it in full."""
        self._endings.callback(file.discard)
        return file

    def write_to(self, writer: Writer, file: AtomicFile | None = None) -> None:
        """Give every row to a writer; file: the one it writes to."""
        self.writers.append(writer)
        self.finish_with(writer.finish, file)

    def finish_with(self, finish: Callable[[dict[str, Any]], None], file: AtomicFile | None = None) -> None:
        """After the last row call finish(summary), then give the file its name."""
        self._endings.callback(self._finish, finish, file)

    def add(self, result: Any) -> None:
        """Write one result (a row) everywhere and flush it."""
        if self.line:
            self.line.hide()
        self.summary.add(self._write(result))
        if self.line:
            self.line.show(self.summary)

    def __exit__(self, *error: object) -> None:
        if self.line:
            self.line.hide()
        self._endings.close()

    def _write(self, result: Any) -> Row:
        row: Row = result
        for writer in self.writers:
            writer.write(row)
        return row

    def _finish(self, finish: Callable[[dict[str, Any]], None], file: AtomicFile | None) -> None:
        if self.complete or self.summary.scored + self.summary.failed:
            with contextlib.suppress(BrokenPipeError):  # nobody reads standard output now; the files still count
                finish(self.summary.as_dict(complete=self.complete))
            if file:
                file.commit()


class AtomicFile:
    """A text file that appears under its name only when it is whole: a hidden file beside it, renamed by `commit`.

    Raises OSError when the file could not be written in the end (no such folder, no permission, a folder of that name),
    so that this is known before the work begins.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.realpath(path)  # a link keeps pointing at the file
        if os.path.isdir(self.path):
            raise IsADirectoryError(f"{path} is a folder")
        if os.path.exists(self.path) and not os.access(self.path, os.W_OK):
            raise PermissionError(f"{path} may not be written")
        folder, name = os.path.split(self.path)
        self.partial = os.path.join(folder, f".{name}.{os.getpid()}.partial")
        # surrogateescape: file names that are not UTF-8 keep their bytes in CSV; JSON escapes them.
        self.stream = open(self.partial, "w", encoding="utf-8", errors="surrogateescape", newline="")  # noqa: SIM115

    def commit(self) -> None:
        """Give the file its name, in one step."""
        self.stream.flush()
        os.fsync(self.stream.fileno())
        self.stream.close()
        os.replace(self.partial, self.path)

    def discard(self) -> None:
        """Remove what was written; a file of that name from before, or a committed one, stays as it is."""
        with contextlib.suppress(OSError):  # what cannot be flushed to a full disk goes anyway
            self.stream.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.partial)


def to_json(value: Any) -> str:
    """JSON on one line. NaN and infinity become null, which JSON has; non-UTF-8 file names are escaped."""
    value = _finite(value)
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False)
    return text


def printable(text: str) -> str:
    """Text safe for a terminal: control characters and what is not Unicode are escaped, so a file name cannot move the
    cursor or break the line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shortened(text: str, cells: int, unicode: bool = True) -> str:
    """The end of the text in at most that many terminal cells (the end of a path tells more than its beginning)."""
    widths = [2 if unicodedata.east_asian_width(c) in "WF" else 0 if unicodedata.combining(c) else 1 for c in text]
    if sum(widths) <= cells:
        return text
    mark = "…" if unicode else "..."
    room, start = max(cells, 8) - len(mark), len(text)
    while start and room >= widths[start - 1]:
        start -= 1
        room -= widths[start]
    return mark + text[start:]


def draw_bar(share: float, unicode: bool, cells: int = BAR_CELLS) -> str:
    """A bar of that many cells, filled to `share` in [0, 1], in eighths of a cell where Unicode can be shown."""
    share = min(max(share, 0.0), 1.0)
    if not unicode:
        return ("#" * round(share * cells)).ljust(cells, "-")
    full, eighths = divmod(round(share * cells * 8), 8)
    return ("█" * full + (EIGHTHS[eighths] if eighths else "")).ljust(cells)


def can_encode(stream: TextIO, text: str) -> bool:
    """Whether the stream's encoding has these characters."""
    try:
        text.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def painter(stream: TextIO) -> Callable[[str, str], str]:
    """paint(colour, text): coloured on a terminal that shows colours, plain elsewhere and when NO_COLOR is set."""
    coloured = is_terminal(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return (lambda colour, text: f"{colour}{text}{RESET}") if coloured else (lambda colour, text: text)


def is_terminal(stream: TextIO) -> bool:
    """Whether someone looks at the stream."""
    return not stream.closed and stream.isatty()


def terminal_width(stream: TextIO) -> int:
    """Columns of the terminal the stream is shown on; a very wide one where there is none."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return sys.maxsize


def _row(**values: Any) -> Row:
    row = dict.fromkeys(COLUMNS) | {"error": "", "schema_version": SCHEMA_VERSION} | values
    return {column: row[column] for column in COLUMNS}


def _rounded(value: float, digits: int) -> float | None:
    return round(float(value), digits) if math.isfinite(value) else None


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
