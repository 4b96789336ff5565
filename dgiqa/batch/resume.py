"""Rows of runs that were stopped -> the rows to keep, and the inputs that are left to score.

Rows with an error are not kept: their images are tried again.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dgiqa.errors import DgiqaError
from dgiqa.meaning import verdict
from dgiqa.report.files import in_use, left_behind
from dgiqa.report.read import rows_so_far
from dgiqa.report.rows import DETAIL_COLUMNS, Row, readable
from dgiqa.sources import Input

_Name = tuple[str, str]


class Earlier:
    """The rows that earlier runs wrote into the file `path`, and into partial files if they were killed.

    The names of all images are held in memory.
    """

    def __init__(self, path: str) -> None:
        self.left = left_behind(path)
        there = os.path.isfile(path) and os.path.getsize(path)
        self._files = [*([path] if there else []), *self.left]
        self._taken: Counter[_Name] = Counter()
        for file in filter(in_use, self._files):
            raise DgiqaError(f"another run still writes {file}; let it end, or name another file")

    def rows(self, origin: dict[str, str], gate: float | None = None, details: bool = False) -> Iterator[Row]:
        """Every row with a score once, whichever of the files it is in, with its verdict by `gate`.

        origin: the values that rows must have, by column. Raises DgiqaError for rows that would not compare.
        """
        for path in self._files:
            here: Counter[_Name] = Counter()
            for row in rows_so_far(path, whole=path not in self.left):
                if row["score"] is None:
                    continue
                name = _name(row["path"], row.get("key"))
                here[name] += 1
                if here[name] > self._taken[name]:
                    _check(path, row, origin, details)
                    self._taken[name] += 1
                    yield row | {"verdict": verdict(row["score"], gate)}

    def rest(self, inputs: Iterable[Input]) -> Iterator[Input]:
        """The inputs that have no kept row, in their order; to be read after `rows`."""
        for item in inputs:
            name = _name(readable(item.name), None if item.key is None else readable(item.key))
            if self._taken[name]:
                self._taken[name] -= 1
            else:
                yield item

    def forget(self) -> None:
        """Remove the partial files: their rows are in the new file."""
        for path in self.left:
            os.unlink(path)


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The settings that differ: "tiling was grid, now official:5"; empty if all are the same."""
    return ", ".join(
        f"{name} was {before.get(name)}, now {value}" for name, value in now.items() if before.get(name) != value
    )


def _check(path: str, row: Row, origin: dict[str, str], details: bool) -> None:
    if what := changed(row, origin):
        raise DgiqaError(f"{path}: {what}; scores would not compare, so give the same options or name another file")
    if details and not row.keys() >= set(DETAIL_COLUMNS):
        raise DgiqaError(f"{path} was written without --details; leave it out or name another file")


def _name(path: str, key: str | None) -> _Name:
    """The name of a row's image. CSV has no empty key, and puts "./" before a path that a spreadsheet would compute."""
    return path.removeprefix("./"), key or ""
