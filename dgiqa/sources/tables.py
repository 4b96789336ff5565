"""Tables -> inputs: CSV, JSON lines and Parquet files, and pandas, Polars, PyArrow and Hugging Face tables in Python.

A cell holds a path, an address, the bytes of an image, its base64, or, as Hugging Face stores images, a record of
"bytes" and "path".
"""

import base64
import binascii
import csv
import io
import json
import os
import re
from collections.abc import Iterator
from itertools import repeat
from typing import Any, BinaryIO

from dgiqa.errors import ImageError
from dgiqa.extras import needs
from dgiqa.sources.inputs import Input, Reading, is_address, suffix_of, told

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson")
_LONGEST_CELL = 1 << 28
_ROWS = 256  # of a Parquet file in memory at a time: each may hold an image
_BASE64 = re.compile(r"data:image/[\w.+-]+;base64,|(?=/9j/[\w+/]{20}|iVBORw0KGgo[\w+/]{20}|UklGR[\w+/]{20})")


class ColumnError(ValueError):
    """A column was not named, or is not there."""


def is_table(name: str) -> bool:
    """Whether a name has a suffix of tables."""
    return name.lower().endswith(TABLE_SUFFIXES)


def rows(name: str, stream: BinaryIO, reading: Reading) -> Iterator[Input]:
    """An input per row of a table's file, in its order; a part that cannot be read is an input with an error.

    name: the file's, whose suffix decides its kind. stream: the file, open in binary. A path is tried as it is, then
    relative to the table's folder.
    """
    try:
        found = 0
        for found, (value, key) in enumerate(_cells(name, stream, reading), 1):
            yield _input(value, key, f"{name}[{found - 1}]", os.path.dirname(name), reading)
        if not found:
            yield Input(name, error="a table without rows")
    except ImportError as error:
        yield Input(name, error=needs("Parquet", "pyarrow", "table", error=error))
    except ColumnError as error:
        yield Input(name, error=str(error))
    except Exception as error:  # pyarrow's, csv's and json's for damaged files
        yield Input(name, error=f"cannot be read from here on ({told(error)})")


def images(
    table: Any, column: str = "image", key: str | None = None, *, reading: Reading | None = None
) -> Iterator[Input]:
    """An input per row of a pandas, Polars or PyArrow table or a Hugging Face dataset, also a streamed one.

    column: the one with the images: paths, addresses, bytes, Pillow images, arrays, or records of bytes and path. key:
    the one with their names. Images of a dataset are not decoded by `datasets`, which would not turn them upright.
    Raises ValueError, which names the columns, for a missing one, and TypeError for anything but a table.
    """
    reading = reading or Reading()
    for number, (value, name) in enumerate(_pairs(table, column, key)):
        yield _input(value, name, f"[{number}]", "", reading)


def _pairs(table: Any, column: str, key: str | None) -> Iterator[tuple[Any, Any]]:
    if hasattr(table, "cast_column"):
        return _of_dataset(table, column, key)
    if hasattr(table, "to_batches") or hasattr(table, "read_next_batch"):
        return _of_arrow(table, column, key)
    if hasattr(table, "columns") and hasattr(table, "__getitem__"):
        _check_columns(list(table.columns), column, key)
        return _paired(table, column, key)
    raise TypeError(
        f"got {type(table).__name__}, wanted a pandas, Polars or PyArrow table or a datasets.Dataset; "
        "collect a lazy one first, and choose one split of a DatasetDict"
    )


def _of_dataset(dataset: Any, column: str, key: str | None) -> Iterator[tuple[Any, Any]]:
    names = list(dataset.features or dataset.column_names or [])
    if names:
        _check_columns(names, column, key)
    kind = type((dataset.features or {}).get(column)).__name__
    if kind == "Image":
        from datasets import Image

        dataset = dataset.cast_column(column, Image(decode=False))
    for row in dataset:
        yield row[column], row[key] if key else None


def _of_arrow(table: Any, column: str, key: str | None) -> Iterator[tuple[Any, Any]]:
    _check_columns(table.schema.names, column, key)
    for batch in table.to_batches(max_chunksize=_ROWS) if hasattr(table, "to_batches") else table:
        yield from _paired(batch, column, key)


def _paired(columns: Any, column: str, key: str | None) -> Iterator[tuple[Any, Any]]:
    return zip(columns[column], columns[key] if key else repeat(None), strict=False)


def _cells(name: str, stream: BinaryIO, reading: Reading) -> Iterator[tuple[Any, Any]]:
    kind = suffix_of(name)
    if kind == ".parquet":
        return _of_parquet(stream, reading)
    table = kind in (".csv", ".tsv")  # whose cells keep their line ends
    text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="" if table else "\n")
    return _of_csv(text, "\t" if kind == ".tsv" else ",", reading) if table else _of_json_lines(text, reading)


def _of_parquet(stream: BinaryIO, reading: Reading) -> Iterator[tuple[Any, Any]]:
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(stream)
    column = _check_columns(file.schema_arrow.names, reading.column, reading.key)
    wanted = [column, *([reading.key] if reading.key else [])]
    for batch in file.iter_batches(batch_size=_ROWS, columns=list(dict.fromkeys(wanted))):
        yield from _paired(batch, column, reading.key)


def _of_csv(text: io.TextIOWrapper, delimiter: str, reading: Reading) -> Iterator[tuple[Any, Any]]:
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CELL))  # process-wide; 128 KiB are no image
    table = csv.DictReader(text, delimiter=delimiter)
    column = _check_columns(list(table.fieldnames or []), reading.column, reading.key)
    for row in table:
        yield row[column], row[reading.key] if reading.key else None


def _of_json_lines(text: io.TextIOWrapper, reading: Reading) -> Iterator[tuple[Any, Any]]:
    checked = False
    for line in filter(str.strip, text):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"got {line.strip()[:40]!r}, wanted an object")
        except ValueError as error:
            yield error, None
            continue
        if not checked:
            _check_columns(list(row), reading.column, reading.key)
            checked = True
        yield row.get(reading.column), row.get(reading.key) if reading.key else None


def _check_columns(names: list[str], column: str | None, key: str | None) -> str:
    there = ", ".join(map(str, names[:20])) or "none"
    if column is None:
        raise ColumnError(f"a table; name the column of its images with --column; it has: {there}")
    for wanted in (column, *([key] if key is not None else [])):
        if wanted not in names:
            raise ColumnError(f"no column {wanted!r}; it has: {there}")
    return column


def _input(value: Any, key: Any, place: str, folder: str, reading: Reading) -> Input:
    """A cell and its row's key as an input. place: the name of an image that has none itself."""
    if isinstance(value, Exception):
        return Input(place, error=f"not a line of JSON ({told(value)})")
    value, key = (cell.as_py() if hasattr(cell, "as_py") else cell for cell in (value, key))
    name = None if key is None else os.fsdecode(key) if isinstance(key, str | bytes) else str(key)
    if isinstance(value, dict):  # of Hugging Face
        content, path = value.get("bytes"), value.get("path")
        value, place = (content, str(path or place)) if content is not None else (path, place)
    if value is None or isinstance(value, float) or (isinstance(value, str) and not value):  # pandas' NaN
        return Input(place, error="the cell is empty; wanted a path, an address or the bytes of an image", key=name)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        return Input(place, source=bytes(value) if isinstance(value, bytearray | memoryview) else value, key=name)
    if encoded := _BASE64.match(value):
        try:
            return Input(place, source=base64.b64decode(value[encoded.end() :], validate=True), key=name)
        except binascii.Error as error:
            return Input(place, error=f"base64 that cannot be read ({error})", key=name)
    return _named(value, folder, name, reading)


def _named(value: str, folder: str, key: str | None, reading: Reading) -> Input:
    if is_address(value):
        return addressed(value, reading, key)
    if "\0" in value:
        return Input(value, error="a path cannot hold a NUL character", key=key)
    for path in (value, os.path.join(folder, value)):
        if os.path.lexists(path):
            return Input(value, source=path, key=key)
    return Input(value, error="no such file", key=key)


def addressed(address: str, reading: Reading, key: str | None = None) -> Input:
    """An Input that fetches an address when its turn comes, or whose error says why not."""
    from dgiqa.sources.remote import Fetched, allowed

    try:
        allowed(address, reading.network)
    except ImageError as error:
        return Input(address, error=str(error), key=key)
    assert reading.network is not None
    return Input(address, source=Fetched(address, reading.network), key=key)
