"""Rows for the eye: a table as they come, and a progress line that makes way for it."""

from __future__ import annotations

import math
import os
import sys
import time
import unicodedata
from collections.abc import Callable
from typing import Any, TextIO

from dgiqa.report.rows import Kind, Row, Tally, remarks

BAR_CELLS = 10
EIGHTHS = " ▏▎▍▌▋▊▉█"
RED, GREEN, YELLOW, CYAN = "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[36m"
DIM, BOLD, RESET = "\x1b[2m", "\x1b[1m", "\x1b[0m"
ERASE_LINE = "\r\x1b[2K"


class TableWriter:
    """Score, standard error, a bar, the image's size or the frame's time and scene, and the name.

    What fails its gate is red. The name comes last, so no width is guessed ahead; its faults and note follow where
    there is room. A narrow terminal goes without the bar, then without the size or scene.
    """

    def __init__(self, stream: TextIO, kind: Kind = "image") -> None:
        self.stream = stream
        self.frames = kind == "frame"
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

    def _header(self) -> str:
        about, name = ("scene", "video") if self.frames else ("size", "image")
        error = f"{'±' if self.unicode else '+-':<6}"
        return self.paint(DIM, self._columns("seconds", " score", error, " " * BAR_CELLS, about) + name)

    def _columns(self, time_s: str, score: str, std_error: str, bar: str, about: str) -> str:
        """Everything left of the name."""
        time_s = f"{time_s:>9}  " if self.frames else ""
        bar = f"  {bar}" if self.width >= 64 else ""
        about = f"  {about:>{5 if self.frames else 11}}" if self.width >= 44 else ""
        return f"{time_s}{score}  {std_error}{bar}{about}  "

    def _score(self, row: Row) -> str:
        colour = RED if row["verdict"] == "fail" else ""
        about = str(row["scene"]) if self.frames else f"{row['width']}{'×' if self.unicode else 'x'}{row['height']}"
        time_s = f"{row['time_s']:.2f}" if self.frames else ""
        score = self.paint(colour or BOLD, f"{row['score']:.4f}")
        std_error = self.paint(DIM, " " * 6 if row["std_error"] is None else f"{row['std_error']:.4f}")
        bar = self.paint(colour or CYAN, draw_bar(row["score"], self.unicode))
        room = self.width - len(self._columns(time_s, " " * 6, " " * 6, " " * BAR_CELLS, about))
        name = shortened(self._shown(row["path"]), room, self.unicode)
        said = printable(remarks(row))
        faults = f"  {said}" if said else ""
        faults = faults if cells(name + faults) <= room else ""
        return self._columns(time_s, score, std_error, bar, about) + name + self.paint(DIM, faults)

    def _error(self, row: Row) -> str:
        # Never shortened: what to do about it stands at the end.
        time_s = f"{row['time_s']:9.2f}  " if self.frames else ""
        error = self.paint(RED, self._shown(row["error"]))
        return f"{time_s}{self.paint(RED, ' error')}  {self._shown(row['path'])}: {error}"

    def _shown(self, text: str) -> str:
        text = printable(text)
        return text if can_encode(self.stream, text) else text.encode("ascii", "backslashreplace").decode()


class ProgressLine:
    """One line on a terminal, redrawn in place: a bar where the total is known, and what the summary says of itself.

    Drawn by hand, without a thread: it has to make way for table rows on another stream of the same terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
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

    def _line(self, summary: Tally) -> str:
        share, parts = summary.progress()
        bar = "" if share is None else self.paint(CYAN, draw_bar(share, self.unicode, cells=20)) + "  "
        failed = "  " + self.paint(RED, f"{summary.failed} failed") if summary.failed else ""
        return bar + "  ".join(parts)[: terminal_width(self.stream) - 24] + failed


def printable(text: str) -> str:
    """Text safe for a terminal: control characters and what is not Unicode are escaped, so a file name cannot move the
    cursor or break the line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def cells(text: str) -> int:
    """Cells of a terminal that the text takes."""
    return sum(map(_cells_of, text))


def shortened(text: str, room: int, unicode: bool = True) -> str:
    """The end of the text in at most that many terminal cells (the end of a path tells more than its beginning)."""
    if cells(text) <= room:
        return text
    mark = "…" if unicode else "..."
    left, start = max(room, 8) - len(mark), len(text)
    while start and left >= _cells_of(text[start - 1]):
        start -= 1
        left -= _cells_of(text[start])
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
    return (lambda colour, text: f"{colour}{text}{RESET}" if text else "") if coloured else (lambda colour, text: text)


def is_terminal(stream: TextIO) -> bool:
    """Whether someone looks at the stream."""
    return not stream.closed and stream.isatty()


def terminal_width(stream: TextIO) -> int:
    """Columns of the terminal the stream is shown on; a very wide one where there is none."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return sys.maxsize


def _cells_of(character: str) -> int:
    wide = unicodedata.east_asian_width(character) in "WF"
    return 2 if wide else 0 if unicodedata.combining(character) else 1
