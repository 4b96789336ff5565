"""Scored rows -> the ones to keep, and their images in lists, links, copies, moves and new shards."""

import io
import math
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from dgiqa.errors import DgiqaError
from dgiqa.report.files import Writer
from dgiqa.report.rows import Row, readable
from dgiqa.sources.shards import TAR_SUFFIXES, sample_key
from dgiqa.store import replacing

MEMBER = re.compile(
    rf"(.*?(?:{'|'.join(map(re.escape, sorted(TAR_SUFFIXES, key=len, reverse=True)))}))/(.+)", re.DOTALL
)


@dataclass(frozen=True)
class Choice:
    """Which scored rows are kept: all within [least, most]; then the `top` best or `worst` worst of those.

    top, worst: a count from 1, or a share of the scored rows up to "100%", rounded up. Among equal scores, earlier rows
    win.
    """

    least: float = -math.inf
    most: float = math.inf
    top: str | None = None
    worst: str | None = None

    def __post_init__(self) -> None:
        if self.top is not None and self.worst is not None:
            raise ValueError("got a top and a worst; wanted one of them")
        for text in (self.top, self.worst):
            found = None if text is None else re.fullmatch(r"(\d+(?:\.\d+)?)%|(\d+)", text)
            if text is not None and not (found and (0 < float(found[1]) <= 100 if found[1] else int(found[2]))):
                raise ValueError(f"got {text!r}, wanted a count from 1 (100) or a share up to 100% (30%)")

    def of(self, rows: Iterable[Row]) -> list[int]:
        """The numbers of the kept rows, in their order. Rows without a score are never kept."""
        found = [(row["score"], number) for number, row in enumerate(rows) if row["score"] is not None]
        kept = [(score, number) for score, number in found if self.least <= score <= self.most]
        if (text := self.top or self.worst) is not None:
            count = math.ceil(float(text[:-1]) / 100 * len(found) - 1e-9) if text.endswith("%") else int(text)
            sign = -1 if self.top else 1
            kept = sorted(kept, key=lambda item: (sign * item[0], item[1]))[:count]
        return sorted(number for _, number in kept)


class ChosenWriter:
    """Gives a writer the rows of a choice, or all, at the end: the best first, those without a score last.

    All rows are held in memory.
    """

    def __init__(self, writer: Writer, top: str | None = None) -> None:
        self._writer, self._choice = writer, Choice(top=top)
        self._all = top is None
        self._rows: list[Row] = []

    def write(self, row: Row) -> None:
        self._rows.append(row)

    def finish(self, summary: dict[str, Any]) -> None:
        rows = self._rows if self._all else [self._rows[number] for number in self._choice.of(self._rows)]
        for row in sorted(rows, key=lambda row: -2.0 if row["score"] is None else row["score"], reverse=True):
            self._writer.write(row)
        self._writer.finish(summary)


def carry(rows: Iterable[Row], folder: str, deed: str, tell: Callable[[str], object] | None = None) -> Iterator[str]:
    """Link, copy or move the files of rows into a folder, in which they keep their relative places.

    deed: "link", "copy" or "move". Yields a message for each failure. A file that already exists in the folder stays as
    it is. tell: called with a line for each file; nothing else is done then.
    """
    paths = list(dict.fromkeys(os.path.abspath(_on_disk(row["path"])) for row in rows))
    top = os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""
    for path in paths:
        target = os.path.join(folder, os.path.relpath(path, top))
        try:
            if not os.path.isfile(path):
                raise FileNotFoundError("no such file; members of archives go into new shards with --shards")
            if os.path.lexists(target):
                raise FileExistsError(f"{target} is there already")
            if tell:
                tell(f"{deed} {path} -> {target}")
            else:
                os.makedirs(os.path.dirname(target), exist_ok=True)
                _DEEDS[deed](path, target)
        except OSError as error:
            yield f"{path}: {error.strerror or error}"


def write_shards(rows: Iterable[Row], folder: str, tell: Callable[[str], object] | None = None) -> Iterator[str]:
    """Write new tar shards with all files of the rows' samples, under the names of the old shards.

    Yields a message for each failure. A shard appears whole or not at all. tell: as in `carry`.
    """
    wanted: dict[str, set[str]] = {}
    for row in rows:
        if found := MEMBER.fullmatch(row["path"]):
            wanted.setdefault(found[1], set()).add(sample_key(found[2]))
        else:
            yield f"{row['path']}: no member of a tar shard; wanted rows of shards"
    names = [os.path.basename(path) for path in wanted]
    if twice := {name for name in names if names.count(name) > 1}:
        raise DgiqaError(f"several shards are called {', '.join(sorted(twice))}; filter each set into its own folder")
    for path, keys in wanted.items():
        target = os.path.join(folder, re.sub(r"\.(tgz|tbz2|txz|tar\.\w+)$", ".tar", os.path.basename(path)))
        try:
            if os.path.lexists(target):
                raise FileExistsError(f"{target} is there already")
            if tell:
                tell(f"{len(keys)} samples of {path} -> {target}")
                continue
            os.makedirs(folder, exist_ok=True)
            if missing := keys - _write_shard(path, keys, target):
                yield f"{path}: {len(missing)} samples are not in it any more, {min(missing)!r} for one"
        except (OSError, tarfile.TarError, EOFError) as error:
            yield f"{path}: {getattr(error, 'strerror', None) or error}"


def _write_shard(path: str, keys: set[str], target: str) -> set[str]:
    """Copy the samples and return the keys found. As in rows, bytes of keys that are not UTF-8 are \\xNN."""
    found = set[str]()
    with replacing(target) as partial, tarfile.open(path, "r:*") as old, tarfile.open(partial, "w") as new:
        for member in old:
            key = readable(sample_key(member.name))
            if member.isfile() and key in keys:
                found.add(key)
                content = old.extractfile(member)
                new.addfile(member, io.BytesIO(content.read()) if content else None)
    return found


def _on_disk(path: str) -> str:
    """The file's name on disk: rows write bytes that are not UTF-8 as \\xNN."""
    if os.path.lexists(path):
        return path
    raw = re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes.fromhex(found[1].decode()), os.fsencode(path))
    return os.fsdecode(raw) if os.path.lexists(raw) else path


_DEEDS: dict[str, Callable[[str, str], object]] = {"link": os.symlink, "copy": shutil.copy2, "move": shutil.move}
