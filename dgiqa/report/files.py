"""Rows -> CSV, JSON lines, JSON, Parquet and SQLite, in files that lose no row and appear only once they are whole.

Writers take a text stream or an OutputFile and hand over every row in one `write`.
"""

from __future__ import annotations

import contextlib
import csv
import glob
import io
import itertools
import json
import os
import secrets
import shutil
import sqlite3
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TextIO

from dgiqa.extras import load
from dgiqa.report.rows import SCHEMA, SCHEMA_VERSION, Kind, Row, Summary, Tally, columns, readable, to_json

if TYPE_CHECKING:
    from dgiqa.report.terminal import ProgressLine

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:
    fcntl = None

FILE_FORMATS = ("csv", "jsonl", "json", "parquet", "sqlite")  # and the suffixes of their files
SPOOLED = ("parquet", "sqlite")  # written as JSON lines first, which a killed run leaves readable
ROW_GROUP = 1000  # rows of a Parquet file in memory at a time
SHOW_S, SHOW_SHARE = 2.0, 0.02  # how often a spooled file shows the rows so far, at what share of the time
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a cell begins that spreadsheets compute


class Writer(Protocol):
    """Turns rows into text. `finish` is called once, after the last row, also when that came early."""

    def write(self, row: Row) -> None:
        """Write and flush one row."""

    def finish(self, summary: dict[str, Any]) -> None:
        """Write what follows the last row; by default nothing."""
        return


def format_of(path: str) -> str:
    """The format a file name asks for. Raises ValueError for an unknown one, BackendError without pyarrow."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix[1:] not in FILE_FORMATS:
        raise ValueError(
            f"{path!r} ends in {suffix or 'no suffix'}; end it in .csv, .jsonl, .json, .parquet or .sqlite"
        )
    if suffix == ".parquet":
        _parquet_schema((), instead="end in .csv")
    return suffix[1:]


def writer_for(name: str, stream: TextIO | OutputFile, kind: Kind = "image", *, details: bool = False) -> Writer:
    """The writer of a format for rows of that kind. Parquet needs an OutputFile."""
    if name == "table":
        from dgiqa.report.terminal import TableWriter

        return TableWriter(stream, kind)  # type: ignore[arg-type]
    names = columns(kind, details=details)
    if name == "csv":
        return CsvWriter(stream, names)
    if name in SPOOLED:
        assert isinstance(stream, OutputFile)
        return SpooledWriter(stream, names, write_parquet if name == "parquet" else _write_sqlite)
    return JsonLinesWriter(stream) if name == "jsonl" else JsonWriter(stream)


class JsonLinesWriter(Writer):
    """One JSON object per line."""

    def __init__(self, stream: TextIO | OutputFile) -> None:
        self.stream = stream

    def write(self, row: Row) -> None:
        self.stream.write(to_json(row) + "\n")
        self.stream.flush()


class JsonWriter:
    """One document {schema_version, rows, summary}, written row by row; in a file it is valid after each of them."""

    def __init__(self, stream: TextIO | OutputFile) -> None:
        self.stream = stream
        self.before = f'{{"schema_version": {SCHEMA_VERSION}, "rows": [\n'

    def write(self, row: Row) -> None:
        text = self.before + to_json(row)
        if isinstance(self.stream, OutputFile) and self.stream.partial:
            self.stream.write(text, '\n], "summary": null}\n')
        else:
            self.stream.write(text)
        self.before = ",\n"
        self.stream.flush()

    def finish(self, summary: dict[str, Any]) -> None:
        opening = self.before if self.before.startswith("{") else "\n"
        self.stream.write(f'{opening}], "summary": {to_json(summary)}}}\n')
        self.stream.flush()


class CsvWriter:
    """A header, then one line per row; None is an empty cell."""

    def __init__(self, stream: TextIO | OutputFile, names: tuple[str, ...]) -> None:
        self.stream = stream
        self.names = names
        self.before = self._line(names)

    def write(self, row: Row) -> None:
        self.stream.write(self.before + self._line([_cell(name, row.get(name)) for name in self.names]))
        self.before = ""
        self.stream.flush()

    def finish(self, summary: dict[str, Any]) -> None:
        if self.before:
            self.stream.write(self.before)
        self.stream.flush()

    @staticmethod
    def _line(cells: Any) -> str:
        # With "\n" as its line end, csv before 3.11.9 and 3.12.3 leaves a bare carriage return without quotes.
        line = io.StringIO()
        csv.writer(line, lineterminator="\r\n").writerow(cells)
        return line.getvalue()[:-2] + "\n"


class SpooledWriter(JsonLinesWriter):
    """Rows for a file that can only be made as a whole. They are first JSON lines, which a killed run leaves readable.

    make: makes the file: `write_parquet`, or another of the same arguments.
    """

    def __init__(
        self, file: OutputFile, names: tuple[str, ...], make: Callable[[Iterable[Row], Any, Any, Any], None]
    ) -> None:
        super().__init__(file)
        self._file, self._names, self._make, self._show_at = file, names, make, 0.0

    def finish(self, summary: dict[str, Any], *, final: bool = True) -> None:
        """Make the file from the spooled rows. Unless this is final, they stay and more may follow."""
        if not self._file.partial:
            raise OSError(f"{self._file.name} is a pipe or a device, which Parquet cannot be written to; use .jsonl")
        begun = time.monotonic()
        with open(self._file.partial, encoding="utf-8") as lines, whole_file(self._file.name) as target:
            self._make(map(json.loads, lines), target, self._names, lambda: summary)
        ended = time.monotonic()
        self._show_at = ended + max(SHOW_S, (ended - begun) / SHOW_SHARE)
        if final:
            self._file.discard()

    def show(self, summary: Tally) -> None:
        """Make the file from the rows so far, if that is due; more may follow."""
        if self._file.grows and self._file.partial and time.monotonic() >= self._show_at:
            self.finish(summary.as_dict(complete=False), final=False)


def write_parquet(
    rows: Iterable[Row], target: Any, names: tuple[str, ...], summary: Callable[[], dict[str, Any]]
) -> None:
    """Write rows into groups of a Parquet file as they come, with typed columns; its metadata "dgiqa" is the summary.

    target: a binary file. summary: called once all rows are written. Needs pyarrow.
    """
    arrow, schema = _parquet_schema(names)
    documents = [c.name for c in SCHEMA if c.type == "json" and c.name in names]
    told = (row | {name: None if row[name] is None else to_json(row[name]) for name in documents} for row in rows)
    file = arrow.parquet.ParquetWriter(target, schema)
    try:
        while group := list(itertools.islice(told, ROW_GROUP)):
            try:
                table = arrow.Table.from_pylist(group, schema=schema)
            except UnicodeEncodeError:  # bytes of a name that are not UTF-8
                table = arrow.Table.from_pylist([json.loads(to_json(row)) for row in group], schema=schema)
            file.write_table(table)
        file.add_key_value_metadata({"dgiqa": to_json(summary())})
        file.close()
    finally:
        file.is_open = False  # else pyarrow writes on, into a file that is closed


def _write_sqlite(
    rows: Iterable[Row], target: Any, names: tuple[str, ...], summary: Callable[[], dict[str, Any]]
) -> None:
    """Write a table `scores` with the rows' columns, and the summary into a table `run`."""
    kinds = {"float64": "REAL", "int64": "INTEGER"}
    typed = ", ".join(f'"{column.name}" {kinds.get(column.type, "TEXT")}' for column in SCHEMA if column.name in names)
    cells = ([to_json(v) if isinstance(v, list | dict) else v for v in map(row.get, names)] for row in rows)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "scores.sqlite")
        with contextlib.closing(sqlite3.connect(path)) as database, database:
            database.execute(f"CREATE TABLE scores ({typed})")
            database.executemany(f"INSERT INTO scores VALUES ({', '.join('?' * len(names))})", cells)
            database.execute("CREATE TABLE run (summary TEXT)")
            database.execute("INSERT INTO run VALUES (?)", (to_json(summary()),))
        with open(path, "rb") as whole:
            shutil.copyfileobj(whole, target)


class OutputFile:
    """A file that appears under its name when it is whole; until then its rows are in a partial file next to it.

    A file that `grows` has its name from the first row on; if its rows are spooled, it is made from them again and
    again. The partial file is called `NAME.partial-XXXXXXXX.EXT`, so that the rows of a killed run are easy to find;
    `left_behind` lists those of earlier runs. A pipe or a device is written to directly. Each `write` is complete or,
    on a full disk, undone. Raises OSError before any work is done if the file could not be written in the end (no such
    folder, no permission, a folder of that name).
    """

    def __init__(self, path: str, *, spooled: bool = False) -> None:
        self.name = path
        self.partial = ""
        self.grows = False
        self._spooled = spooled
        self._size, self._tail = 0, b""  # the bytes that stay; the text that the next write replaces
        try:
            self._old: os.stat_result | None = os.stat(path)
        except FileNotFoundError:
            self._old = None
        if self._old and stat.S_ISDIR(self._old.st_mode):
            raise IsADirectoryError(f"{path} is a folder")
        if self._old and not stat.S_ISREG(self._old.st_mode):
            self._raw = open(path, "wb", buffering=0)  # noqa: SIM115
            return
        self.path = os.path.realpath(path)  # a link keeps pointing at the file
        if self._old and not os.access(self.path, os.W_OK):
            raise PermissionError(f"{path} may not be written")
        self.partial = _partial(self.path, secrets.token_hex(4), ".jsonl" if spooled else None)
        self._raw = self._create(self.partial)

    def write(self, text: str | bytes, tail: str = "") -> None:
        """Write all of it, or raise and leave the file as it was. tail: text that closes it until the next write."""
        data, end = text.encode() if isinstance(text, str) else text, tail.encode()
        if self._tail:
            self._raw.seek(self._size)
        try:
            self._put(data + end)
        except OSError as error:
            if self.partial:
                self._raw.truncate(self._size)
                self._raw.seek(self._size)
                self._put(self._tail)
            raise OSError(error.errno, error.strerror, self.name) from error
        self._size, self._tail = self._size + len(data), end
        if self.grows and not self._spooled and self.partial and self.partial != self.path:
            os.replace(self.partial, self.path)
            self.partial = self.path

    def _put(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._raw.write(rest) :]

    def flush(self) -> None:
        """Do nothing: every `write` is written at once."""

    def commit(self) -> None:
        """Give the file its name, in one step, with the mode and owner that the file of that name had."""
        if self.partial:
            os.fsync(self._raw.fileno())
            self._raw.close()
            os.replace(self.partial, self.path)
            self.partial = ""
        self._raw.close()

    def keep(self) -> str:
        """Leave the rows in the partial file, which cannot get its name. Returns its path, or "" without rows."""
        if not self._size:
            return ""
        partial, self.partial = self.partial, ""
        self._raw.close()
        return partial

    def discard(self) -> None:
        """Remove the partial file; an earlier file of that name, or a committed one, stays as it is."""
        self._raw.close()
        if self.partial and self.partial != self.path:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.partial)
            self.partial = ""

    def _create(self, path: str) -> io.FileIO:
        """Create a new file; never open an existing one. A restrictive mode applies from the start."""
        mode = stat.S_IMODE(self._old.st_mode) if self._old else 0o666
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
        descriptor = os.open(path, flags, mode)
        if self._old and hasattr(os, "fchown"):
            with contextlib.suppress(PermissionError):
                os.fchown(descriptor, self._old.st_uid, self._old.st_gid)
            os.fchmod(descriptor, mode)
        if fcntl:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return io.FileIO(descriptor, "w")


@contextlib.contextmanager
def whole_file(path: str) -> Iterator[BinaryIO]:
    """A binary stream into an OutputFile, for contents written at once. An OSError inside names the file."""
    file = OutputFile(path)
    try:
        stream = io.BufferedWriter(file._raw)  # which writes all of its data, or raises
        yield stream
        stream.flush()
        file.commit()
    except OSError as error:
        error.filename = error.filename or path
        raise
    finally:
        file.discard()


def in_use(path: str) -> bool:
    """Whether an OutputFile of some process still writes to this file; False where that is not known."""
    if not fcntl:  # Windows, which keeps others from removing it
        return False
    try:
        with open(path, "rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    return False


def left_behind(path: str) -> list[str]:
    """Partial files for `path` of runs that were killed or still go on (`in_use`)."""
    path = os.path.realpath(path)
    stem, suffix = os.path.splitext(path)
    found = {_partial(path, "*", end, glob.escape(stem)) for end in (suffix, ".jsonl")}
    return sorted(name for pattern in found for name in glob.glob(pattern))


class Report(contextlib.AbstractContextManager["Report"]):
    """Where the results of one run go: writers, a progress line, and the summary.

    A context manager, entered before its files are opened. However the run ends, the rows written so far are kept:
    documents are closed and files get their names. If that fails for one file, the others get theirs all the same.
    A run that breaks off before its first row writes nothing and leaves older files alone.
    """

    def __init__(self) -> None:
        self.writers: list[Writer] = []
        self.line: ProgressLine | None = None
        self.summary: Tally = Summary()
        self.complete = False
        self.unread = False  # the reader of standard output has left; files still get their rows
        self.needed = False  # the verdict is wanted even if the rows are not read
        self._shown: Writer | None = None  # to standard output
        self._files: list[OutputFile] = []
        self._endings = contextlib.ExitStack()

    def write_to(self, writer: Writer, file: OutputFile | None = None, *, shown: bool = True) -> None:
        """Give every row to a writer. file: the one it writes to, None for standard output.

        shown: without a file, whether it writes to standard output, whose reader may leave.
        """
        self.writers.append(writer)
        if file:
            self._files.append(file)
            self._endings.callback(file.discard)
        elif shown:
            self._shown = writer
        self._endings.callback(self._finish, writer, file)

    def grow(self) -> None:
        """From here on files have their names while rows are added, and replace earlier files."""
        for file in self._files:
            file.grows = True

    def add(self, row: Row) -> None:
        """Write one row everywhere.

        Raises BrokenPipeError once standard output is the only output and its reader has left.
        """
        if self.line:
            self.line.hide()
        for writer in self.writers:
            self._tell(writer, writer.write, row)
        self.summary.add(row)
        for writer in self.writers:
            if isinstance(writer, SpooledWriter):
                writer.show(self.summary)
        if self.line:
            self.line.show(self.summary)
        if self.unread and not self.needed and len(self.writers) == 1:
            raise BrokenPipeError

    def __exit__(self, *error: object) -> None:
        if self.line:
            self.line.hide()
        self._endings.close()

    def _tell(self, writer: Writer, function: Callable[[Any], None], value: Any) -> None:
        if self.unread and writer is self._shown:
            return
        try:
            function(value)
        except BrokenPipeError:
            if writer is not self._shown:
                raise
            self.unread = True

    def _finish(self, writer: Writer, file: OutputFile | None) -> None:
        if not (self.complete or self.summary.scored + self.summary.failed):
            return
        try:
            self._tell(writer, writer.finish, self.summary.as_dict(complete=self.complete))
            if file:
                file.commit()
        except OSError as error:
            if file and (kept := file.keep()):
                why = f"{error.strerror or error}: {file.name} could not be completed"
                raise OSError(f"{why}; its rows are in {kept}") from error
            raise


def _parquet_schema(names: tuple[str, ...], instead: str = "") -> tuple[Any, Any]:
    """(pyarrow, the types of these columns). Raises BackendError without pyarrow, which names an alternative."""
    load("pyarrow.parquet", "Parquet", "pyarrow", "table", instead=instead)
    import pyarrow

    text = pyarrow.string()
    types = {"list": pyarrow.list_(text), "json": text, "string": text}
    columns = [(c.name, types.get(c.type) or getattr(pyarrow, c.type)()) for c in SCHEMA if c.name in names]
    return pyarrow, pyarrow.schema(columns)


def _cell(name: str, value: Any) -> Any:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = ", ".join(value)
    if isinstance(value, list | dict):
        return to_json(value)
    if not isinstance(value, str):
        return value
    text = readable(value)
    if text.startswith(FORMULA) and text != "-":  # "-" is standard input
        return f"./{text}" if name == "path" else f"'{text}"
    if name == "key" and text.startswith("'"):  # so that taking one off restores the key
        return f"'{text}"
    return text


def _partial(path: str, mark: str, suffix: str | None = None, stem: str | None = None) -> str:
    own_stem, own_suffix = os.path.splitext(path)
    return f"{stem or own_stem}.partial-{mark}{own_suffix if suffix is None else suffix}"
