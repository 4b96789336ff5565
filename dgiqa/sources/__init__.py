"""Arguments (files, folders, globs, lists, tables, archives, addresses) -> a lazy stream of images.

    arguments ──► expand ──┬─► files, folders, globs, standard input
                           ├─► shards   (tar, zip)          ┐
                           ├─► tables   (CSV, Parquet, ...) ├─ also behind addresses
                           └─► remote   (https, s3, ...)    ┘

No image file is opened or decoded here. Names are held in memory, images of archives and tables only while they are
being scored. An argument that gives no image is an item with an error, so that it becomes a row of the result and does
not end the run.
"""

import codecs
import contextlib
import glob
import itertools
import json
import os
import re
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

from dgiqa.errors import ImageError
from dgiqa.sources import shards, tables
from dgiqa.sources.inputs import PHOTO_SUFFIXES, VIDEO_SUFFIXES, braces, is_address, suffix_of
from dgiqa.sources.inputs import Input as Input
from dgiqa.sources.inputs import Reading as Reading
from dgiqa.sources.tables import images as images

STDIN = "-"
MAX_STDIN_BYTES = 1 << 30  # an endless stream must not fill the memory
BURST, BURST_BYTES = 64, 1 << 20  # images of an archive or a table that are read at a time
COUNT_AHEAD = 10_000  # names looked at before the first image is scored, to know how many there are


def expand(arguments: Iterable[str], reading: Reading | None = None) -> Iterator[Input]:
    """Files, folders, globs, archives, tables, addresses and "-" -> one `Input` per image, in the order given.

    A path that exists is taken as it is, even if it looks like a glob. "{000..199}" and "{a,b}" stand for several. A
    glob gives the files it matches, naturally sorted, never folders. Hidden files are left out of folders and globs.
    Standard input is read when its turn comes.
    """
    reading = reading or Reading()
    for argument in arguments:
        if argument == STDIN:
            yield from _standard_input()
            continue
        for name in named(argument, reading):
            yield from [name] if isinstance(name, Input) else _argument(name, reading)


def named(argument: str, reading: Reading) -> Iterator[str | Input]:
    """The files, folders and addresses of an argument, braces and wildcards resolved; Inputs are errors."""
    if not is_address(argument) and os.path.lexists(argument):
        yield argument
        return
    for name in braces(argument):
        if is_address(name):
            yield from _listed_bucket(name, reading)
        elif not os.path.lexists(name) and glob.has_magic(name):
            yield from _glob(name)
        else:
            yield name


def listed(stream: BinaryIO, name: str, reading: Reading | None = None, *, null: bool = False) -> Iterator[Input]:
    """A list of paths and addresses (one per line, or NUL-separated) -> one `Input` per image, as the list is read.

    stream: the list, open in binary: names are bytes on Linux, and need not be text.
    name: the list's name, for the error when it names no image.
    Paths are taken literally, "-" and globs included; a folder, an archive or a table gives its images. Blank lines are
    skipped. A byte order mark is dropped, and a list in UTF-16, as PowerShell writes it, or in UTF-32 is read as such.
    """
    reading, entry = reading or Reading(), None
    for entry in entries(stream, b"\0" if null else b"\n"):
        yield from _argument(os.fsdecode(entry), reading)
    if entry is None:
        yield Input(name, error="the list names no image")


def videos(arguments: Iterable[str], *, recursive: bool = False) -> Iterator[str]:
    """The videos of a folder (naturally sorted), of a glob or of braces, or the argument itself, for each argument.

    A folder or glob without any is returned as it is, so that it becomes a row with its error.
    """
    for argument in arguments:
        for name in named(argument, Reading()) if not is_address(argument) else [argument]:
            if isinstance(name, Input):
                yield name.name
            elif os.path.isdir(name):
                inside = f"{glob.escape(name)}/{'**/' * recursive}*"
                found = [path for path in glob.iglob(inside, recursive=True) if suffix_of(path) in VIDEO_SUFFIXES]
                yield from sorted(found, key=natural_key) or [name]
            else:
                yield name


def counted(inputs: Iterable[Input], ahead: int = COUNT_AHEAD) -> tuple[Iterator[Input], int | None]:
    """The same stream, and how many inputs it has, or None when there are more than `ahead`.

    It is also None if looking ahead would hold images, and not only names, in memory.
    """
    stream = iter(inputs)
    first: list[Input] = []
    for item in itertools.islice(stream, ahead + 1):
        first.append(item)
        if item.name != STDIN and isinstance(item.source, bytes):
            return itertools.chain(first, stream), None
    return itertools.chain(first, stream), len(first) if len(first) <= ahead else None


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sort key that puts frame2 before frame10. Text and numbers alternate, so that keys always compare."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if i % 2 else part.casefold() for i, part in enumerate(parts)], name


def _argument(name: str, reading: Reading) -> Iterator[Input]:
    """One file, folder or address, without wildcards."""
    several = tables.is_table(name) or shards.is_shard(name)
    if is_address(name):
        yield from _inside(name, reading) if several else [tables.addressed(name, reading)]
    elif os.path.isdir(name):
        yield from _folder(name, reading)
    else:
        file = _file(name)
        yield from _inside(name, reading) if several and not file.error else [file]


def _inside(name: str, reading: Reading) -> Iterator[Input]:
    """The images of an archive or of a table, on disk or behind an address."""
    try:
        with _opened(name, reading) as stream:
            read = tables.rows if tables.is_table(name) else shards.members
            yield from _in_bursts(read(name, stream, reading))
    except ImageError as error:
        yield Input(name, error=str(error))
    except OSError as error:
        yield Input(name, error=f"cannot be read: {error.strerror or error}")


def _opened(name: str, reading: Reading) -> contextlib.AbstractContextManager[Any]:
    if is_address(name):
        from dgiqa.sources import remote  # http and ssl take a twentieth of the start

        return remote.opened(name, reading.network)
    if not stat.S_ISREG(os.stat(name).st_mode):
        raise ImageError("not a regular file; wanted an archive or a table")
    return open(name, "rb")


def _in_bursts(inputs: Iterator[Input]) -> Iterator[Input]:
    """The same inputs, but a few small images are read at a time: switching between reading and scoring takes time.

    Thumbnails in a tar, with networks of a few operators on two busy cores: 1.49 ms of CPU an image instead of 1.59;
    from memory it is 1.46.
    """
    burst, held = list[Input](), 0
    for item in inputs:
        burst.append(item)
        held += len(item.source) if isinstance(item.source, bytes) else 0
        if held >= BURST_BYTES or len(burst) == BURST:
            yield from burst
            burst, held = [], 0
    yield from burst


def _listed_bucket(address: str, reading: Reading) -> Iterator[str | Input]:
    """The addresses of the files of a pattern or folder in a bucket; from a folder only those that hold images."""
    from dgiqa.sources import remote

    try:
        found = remote.matching(address, reading.network)
    except ImageError as error:
        yield Input(address, error=str(error))
        return
    if not found:
        yield address
    whole = any(mark in address for mark in "*?[")
    yield from (
        name
        for name in sorted(found, key=natural_key)
        if whole or suffix_of(name) in PHOTO_SUFFIXES or shards.is_shard(name)
    )


def _file(path: str) -> Input:
    if not path:
        return Input(path, error="an empty path; give a file, a folder, a glob or - for standard input")
    if "\0" in path:
        advice = "separate a NUL-separated list with --null, and save one in UTF-16 as UTF-8"
        return Input(path, error=f"a path cannot hold a NUL character; {advice}")
    try:
        if stat.S_ISLNK(os.lstat(path).st_mode) and not os.path.exists(path):
            return Input(path, error=f"a link to {os.readlink(path)}, which cannot be reached")
    except (FileNotFoundError, NotADirectoryError):
        return Input(path, error="no such file or folder")
    except OSError as error:  # a folder that may not be entered, a network drive that is gone, a name too long
        return Input(path, error=f"cannot be reached: {error.strerror or error}")
    return Input(path, source=path)


def _standard_input() -> Iterator[Input]:
    data = sys.stdin.buffer.read(MAX_STDIN_BYTES + 1)
    if not data:
        yield Input(STDIN, error="standard input is empty; pipe one image into it")
    elif len(data) > MAX_STDIN_BYTES:
        yield Input(STDIN, error=f"standard input holds more than {MAX_STDIN_BYTES} bytes; pipe one image into it")
    else:
        yield Input(STDIN, source=data)


def _glob(pattern: str) -> Iterator[str | Input]:
    # include_hidden is off by default: neither * nor ** matches a leading dot.
    paths = [path for path in glob.iglob(pattern, recursive=True) if not os.path.isdir(path)]
    if not paths:
        plain = re.split(r"[*?\[]", pattern)[0].rpartition("/")[0] or ("/" if pattern.startswith("/") else ".")
        closed = os.path.isdir(plain) and not os.access(plain, os.R_OK | os.X_OK)
        reason = f"{plain} cannot be read: Permission denied" if closed else "no file matches this glob"
        yield Input(pattern, error=reason)
    yield from sorted(paths, key=natural_key)


def _folder(folder: str, reading: Reading) -> Iterator[Input]:
    item = None
    for item in _walk(folder, reading):
        yield item
    if item is None:
        advice = "" if reading.recursive else "; -r looks in its subfolders too"
        yield Input(folder, error=f"a folder without images{advice}")


def _walk(top: str, reading: Reading) -> Iterator[Input]:
    """Images directly in the folder, then those of its subfolders, each real folder once: links may form loops."""
    visited: set[tuple[int, int]] = set()
    folders = [top]
    while folders:
        folder = folders.pop()
        try:
            status = os.stat(folder)
            with os.scandir(folder) as scan:
                entries = sorted((e for e in scan if not e.name.startswith(".")), key=lambda e: natural_key(e.name))
        except OSError as error:
            yield Input(folder, error=f"the folder cannot be read: {error.strerror}")
            continue
        if (status.st_dev, status.st_ino) in visited:
            continue
        visited.add((status.st_dev, status.st_ino))
        for entry in entries:
            suffix = suffix_of(entry.name)
            if suffix in PHOTO_SUFFIXES:
                if _is(entry.is_file) or (entry.is_symlink() and not os.path.exists(entry.path)):
                    yield _file(entry.path)
                elif not _is(entry.is_dir):
                    reading.left_out["pipes or devices"] += 1
            elif _is(entry.is_file):
                reading.left_out[suffix] += 1
        if reading.recursive:
            folders += [entry.path for entry in reversed(entries) if _is(entry.is_dir)]


def _is(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except OSError:  # a link in a circle, or into a folder that cannot be entered
        return False


def entries(stream: BinaryIO, separator: bytes = b"\n") -> Iterator[bytes]:
    """Non-empty entries, each as soon as its separator arrives. Windows line ends are accepted."""
    first = stream.readline()
    marked = first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE))
    # Without a mark, NUL bytes show the encoding, unless they separate names.
    encoding = json.detect_encoding(first) if marked or separator == b"\n" else "utf-8"
    if not encoding.startswith("utf-8"):
        text = (first + stream.read()).decode(encoding, errors="replace")
        found: Iterable[bytes] = os.fsencode(text).split(separator)
    elif separator == b"\n":
        found = itertools.chain([first.removeprefix(codecs.BOM_UTF8)], stream)
    else:  # names only; readline knows no other separator
        found = (first.removeprefix(codecs.BOM_UTF8) + stream.read()).split(separator)
    for entry in found:
        trimmed = entry.rstrip(b"\r\n") if separator == b"\n" else entry
        if trimmed:
            yield trimmed
