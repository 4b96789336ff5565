"""Files of rows in any of our formats, or a folder of them that `scan` wrote -> rows again."""

import csv
import json
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any

from dgiqa.errors import DgiqaError
from dgiqa.extras import load
from dgiqa.report.files import FORMULA, ROW_GROUP
from dgiqa.report.rows import SCHEMA, Row
from dgiqa.sources.inputs import is_address, told

_TYPES = {column.name: column.type for column in SCHEMA}
_NEEDED = {"path", "score", "status"}


def read_rows(path: str) -> Iterator[Row]:
    """The rows of a .parquet, .jsonl, .json, .csv or .sqlite file, or of the Parquet files of a folder, by name.

    Either may be in a bucket. Raises DgiqaError for a file without rows of ours.
    """
    if is_address(path):
        yield from _of_bucket(path)
    elif os.path.isdir(path):
        for name in _parquet_files(path, os.listdir(path)):
            yield from _checked(os.path.join(path, name))
    else:
        yield from _checked(path)


def _parquet_files(folder: str, names: Iterable[str]) -> list[str]:
    found = sorted(name for name in names if name.endswith(".parquet") and ".partial-" not in name)
    if not found:
        raise DgiqaError(f"{folder} holds no .parquet files; name a file that `score -o` or a folder that `scan` wrote")
    return found


def _of_bucket(address: str) -> Iterator[Row]:
    """Fetch and read one file after the other."""
    from dgiqa.sources import remote

    if address.partition("://")[0].lower() not in remote.BUCKETS:
        raise DgiqaError(f"{address} is not a bucket; download it, or name one of {', '.join(remote.BUCKETS)}")
    system, path = remote.bucket(address.rstrip("/"))
    try:
        names = [path] if system.isfile(path) else _parquet_files(address, system.find(path))
        with tempfile.TemporaryDirectory() as folder:
            for name in names:
                here = os.path.join(folder, os.path.basename(name))
                system.get_file(name, here)
                yield from _checked(here)
                os.unlink(here)
    except (DgiqaError, ImportError):
        raise
    except Exception as error:  # each library raises its own
        raise DgiqaError(f"{address} cannot be read ({told(error)}); check who may read it") from error


def _checked(path: str, **options: bool) -> Iterator[Row]:
    suffix = os.path.splitext(path)[1].lower()
    if not os.path.exists(path):
        raise DgiqaError(f"{path}: no such file or folder; wanted what `score -o` or `scan` wrote")
    if suffix not in _READERS:
        raise DgiqaError(f"{path} ends in {suffix or 'no suffix'}; wanted {', '.join(_READERS)}")
    try:
        for number, row in enumerate(_READERS[suffix](path, **options)):
            if not number and not row.keys() >= _NEEDED:
                missing = ", ".join(sorted(_NEEDED - row.keys()))
                raise DgiqaError(f"{path} has no column {missing}; wanted rows that `score -o` or `scan` wrote")
            yield row
    except (DgiqaError, OSError, ImportError):
        raise
    except Exception as error:  # pyarrow's, sqlite's and json's
        raise DgiqaError(f"{path} cannot be read ({type(error).__name__}: {error}); write it again") from error


def rows_so_far(path: str, *, whole: bool = True) -> Iterator[Row]:
    """Read a file that may break off, because its run was stopped: the rows before that place.

    Raises DgiqaError if not even the first row of a non-empty file can be read; with whole=False it never does, since
    a kill may have cut the file off while it was made.
    """
    read = not whole
    try:
        for row in _checked(path, **({"torn": True} if path.lower().endswith(".csv") else {})):
            read = True
            yield row
    except DgiqaError:
        if not read and os.path.getsize(path):
            raise


def _parquet(path: str) -> Iterator[Row]:
    parquet = load("pyarrow.parquet", "Parquet", "pyarrow", "table", kind=ImportError)
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=ROW_GROUP):
            yield from map(_unpacked, batch.to_pylist())


def _json(path: str) -> Iterator[Row]:
    with open(path, encoding="utf-8") as stream:
        yield from map(json.loads, stream) if path.lower().endswith(".jsonl") else json.load(stream)["rows"]


def _csv(path: str, torn: bool = False) -> Iterator[Row]:
    """The rows of a CSV. torn: leave out a last line without an end."""
    if not torn and not os.path.getsize(path):
        raise DgiqaError(f"{path} is empty, without the names of its columns; write it again")
    with open(path, encoding="utf-8", newline="") as stream:
        for row in csv.DictReader((line for line in stream if line.endswith("\n") or not torn), strict=True):
            if None in row or None in row.values():
                raise ValueError("a line that breaks off")
            yield {name: _cell(name, text) for name, text in row.items()}


def _cell(name: str, text: str) -> Any:
    """A cell as it was before it was made safe for spreadsheets."""
    if not text:
        return "" if name == "error" else None
    if kind := _PARSED.get(_TYPES.get(name, "string")):
        return kind(text)
    return text[1:] if text.startswith("'") and text[1:].startswith((*FORMULA, "'")) else text


def _sqlite(path: str) -> Iterator[Row]:
    with closing(sqlite3.connect(f"file:{os.path.abspath(path)}?mode=ro", uri=True)) as database:
        found = database.execute("SELECT * FROM scores ORDER BY rowid")
        names = [column[0] for column in found.description]
        for values in found:
            yield _unpacked(dict(zip(names, values, strict=True)))


def _unpacked(row: Row) -> Row:
    """The row with the JSON documents in its cells parsed."""
    return {
        name: json.loads(value) if isinstance(value, str) and _TYPES.get(name) in ("json", "list") else value
        for name, value in row.items()
    }


_PARSED: dict[str, Callable[[str], Any]] = {
    "float64": float,
    "int64": int,
    "list": lambda text: text.split(", "),
    "json": json.loads,
}
_READERS: dict[str, Callable[..., Iterator[Row]]] = {
    ".parquet": _parquet,
    ".jsonl": _json,
    ".json": _json,
    ".csv": _csv,
    ".sqlite": _sqlite,
}
