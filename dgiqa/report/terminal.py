"""Rows for people, drawn by rich: a table, line by line, and a progress line that makes way for it.

This module is imported once something is drawn: a run that writes JSON lines does without rich.
"""

import math
import os
import time
from collections.abc import Container, Sequence
from typing import Any, TextIO

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.control import Control
from rich.segment import ControlType
from rich.table import Table
from rich.text import Text

from dgiqa.report.rows import Kind, Row, Tally, is_terminal, printable, remarks

BAR_CELLS = 10
NAME_CELLS = 16  # to which a name is shortened before its faults go to the next line
ENDLESS = 10_000  # columns where no terminal ends a line
# What a row shows in addition to its score, in how many cells, and what it is about.
HEADINGS = {
    "image": ("size", 11, "image"),
    "frame": ("scene", 5, "video"),
    "pair": ("drop  full_reference", 23, "pair"),
    "video": ("frames", 11, "video"),
}


class TableWriter:
    """Score, standard error, a bar, the image's size, the frame's scene or what the pair lost, and the name.

    A row with a time, of a frame or a pair of them, begins with it.

    Scores that fail the gate are red, and say "fail". The name has no column, so no width needs to be guessed; faults
    and note follow, for which it is shortened. A narrow terminal goes without the bar, then without the size or scene,
    and has what follows on a line of its own.
    """

    def __init__(self, stream: TextIO, kind: Kind = "image") -> None:
        self.stream, self.console = stream, console_for(stream)
        self.kind, self.timed = kind, kind == "frame"
        self.unicode = can_encode(stream, "×±…━╸")
        self.begun = False

    def write(self, row: Row) -> None:
        if not self.begun:
            self.timed |= row.get("time_s") is not None
            self._header()
            self.begun = True
        if row["score"] is None:
            self._error(row)
        else:
            self._score(row)
        self.stream.flush()

    def finish(self, summary: dict[str, Any]) -> None:
        self.stream.flush()

    def _header(self) -> None:
        about, _, name = HEADINGS[self.kind]
        cells = ("seconds", "score", "±" if self.unicode else "+-", about, name)
        self._print(cells, ("dim",) * 5, Text(" " * BAR_CELLS))

    def _score(self, row: Row) -> None:
        failed = row["verdict"] == "fail"
        time_s = f"{row['time_s']:.2f}" if self.timed else ""
        error = "" if row["std_error"] is None else f"{row['std_error']:.4f}"
        cells = (time_s, f"{row['score']:.4f}", error, self._about(row), self._shown(row["path"]))
        styles = ("", "red" if failed else "bold", "dim", "", "")
        bar = _bar(self.console, row["score"], BAR_CELLS, "red" if failed else "cyan")
        self._print(cells, styles, bar, self._shown(remarks(row)), "fail" if failed else "")

    def _about(self, row: Row) -> str:
        if self.kind == "image":
            return f"{row['width']}{'×' if self.unicode else 'x'}{row['height']}"
        if self.kind == "pair":
            near = "-" if row["full_reference"] is None else f"{row['full_reference']:.4f}"
            return f"{row['drop']:+.4f}  {near:>14}"
        return str(row[HEADINGS[self.kind][0]])

    def _print(self, cells: Sequence[str], styles: Sequence[str], bar: Text, said: str = "", verdict: str = "") -> None:
        """Print one line of the table. said: faults and note."""
        (time_s, score, error, about, name), width, cell = cells, self.console.width, HEADINGS[self.kind][1]
        wide = width - max(0, cell - 11)
        line = Text.assemble(
            (f"{time_s:>9}  " if self.timed else "", styles[0]),
            (f"{score:>6}  ", styles[1]),
            (f"{error:<6}  ", styles[2]),
            *((bar, "  ") if wide >= 64 else ()),
            (f"{about:>{cell}}  " if wide >= 44 else "", styles[3]),
        )
        told = Text.assemble(("  " + verdict if verdict else "", "red"), ("  " + said if said else "", "dim"))
        room = width - line.cell_len - told.cell_len
        beside = room >= min(cell_len(name), NAME_CELLS)
        line.append(shortened(name, room if beside else width - line.cell_len, self.unicode), styles[4])
        line.append(told if beside else Text.assemble("\n", told))
        self.console.print(line, no_wrap=True, overflow="ignore", crop=False)

    def _error(self, row: Row) -> None:
        # Never shortened: the advice is at its end.
        time_s = f"{row['time_s']:9.2f}  " if self.timed else ""
        path, error = self._shown(row["path"]), self._shown(row["error"])
        named = "" if error.startswith(path) else f"{path}: "
        self.console.print(Text.assemble(time_s, (" error", "red"), f"  {named}", (error, "red")), soft_wrap=True)

    def _shown(self, text: str) -> str:
        text = printable(text)
        return text if can_encode(self.stream, text) else text.encode("ascii", "backslashreplace").decode()


class ProgressLine:
    """One line on a terminal, redrawn in place: a bar if the total is known, and the summary's progress.

    Not rich's Live, which hides the cursor and takes over both streams: a killed run would leave the cursor hidden.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.console = stream, console_for(stream, terminal=True)
        self.drawn_at = -math.inf

    def show(self, summary: Tally, *, force: bool = False) -> None:
        """Draw the line, ten times a second at most unless forced."""
        now = time.perf_counter()
        if force or now - self.drawn_at > 0.1:
            self.hide()
            self.drawn_at = now
            self.console.print(self._line(summary), end="", no_wrap=True, overflow="crop")
            self.stream.flush()

    def hide(self) -> None:
        """Take the line away, before anything else is written to the terminal."""
        if self.drawn_at > -math.inf:
            self.console.control(Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2)))
            self.stream.flush()

    def _line(self, summary: Tally) -> Text:
        share, parts = summary.progress()
        cells = 20 if self.console.width >= 64 else BAR_CELLS
        bar = () if share is None else (_bar(self.console, share, cells, "cyan"), "  ")
        failed = (f"{summary.failed} failed  ", "red") if summary.failed else ""
        return Text.assemble(*bar, failed, "  ".join(parts))


def console_for(stream: TextIO, *, terminal: bool | None = None) -> Console:
    """rich's console for a stream: it shows text as it is, and colours only on a terminal and without NO_COLOR.

    terminal: whether the stream is one, if the caller knows. Elsewhere no line is cut.
    """
    terminal = is_terminal(stream) if terminal is None else terminal
    return Console(
        file=stream,
        force_terminal=terminal,
        force_jupyter=False,
        color_system="auto" if terminal and not os.environ.get("NO_COLOR") else None,
        width=None if terminal else ENDLESS,
        height=None if terminal else 25,  # or a TERM of "dumb" would set the width
        markup=False,
        emoji=False,
        highlight=False,
    )


def print_table(console: Console, rows: Sequence[Sequence[RenderableType]], numbers: Container[int] = ()) -> None:
    """A header and rows in aligned columns, two spaces apart. numbers: the columns that are aligned to the right.

    Nothing is cut: a narrower terminal wraps the lines.
    """
    table = Table.grid(padding=(0, 2, 0, 0))
    for i in range(len(rows[0])):
        table.add_column(no_wrap=True, justify="right" if i in numbers else "left")
    for row in rows:
        table.add_row(*row, style="bold" if row is rows[0] else None)
    console.width = ENDLESS
    console.print(table, crop=False)


def shortened(text: str, room: int, unicode: bool = True) -> str:
    """The end of the text in at most that many terminal cells (the end of a path says more than its beginning)."""
    if cell_len(text) <= room:
        return text
    mark = "…" if unicode else "..."
    left, start = max(room, 8) - len(mark), len(text)
    while start and left >= cell_len(text[start - 1]):
        start -= 1
        left -= cell_len(text[start])
    return mark + text[start:]


def can_encode(stream: TextIO, text: str) -> bool:
    """Whether the stream's encoding has these characters."""
    try:
        text.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _bar(console: Console, share: float, cells: int, colour: str) -> Text:
    """A share in [0, 1] to half a cell; the rest is dim, or blank without colours."""
    full, half = "━╸" if can_encode(console.file, "━╸") else "- "  # type: ignore[arg-type]
    halves = int(2 * cells * min(max(share, 0.0), 1.0))
    done = full * (halves // 2) + half * (halves % 2)
    left = (full if console.color_system else " ") * (cells - len(done))
    return Text.assemble((done, colour), (left, "dim"))
