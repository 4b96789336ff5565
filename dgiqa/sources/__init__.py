"""What the command line names (files, folders, globs, lists, standard input) -> an ordered, lazy stream of images.

No file is opened or decoded here: nothing but names, and one image from standard input, is held in memory. An argument
that gives no image is an item with an error, so that it becomes a row of the result instead of the end of the run.
"""

from __future__ import annotations

import codecs
import glob
import itertools
import json
import os
import re
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

STDIN = "-"
# What a folder is searched for. A file named on its own is taken whatever its suffix.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".avif"),
    *(".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm"),
)
# Photographs that no decoder here reads: found in folders too, so that each is a row that says what it is.
OTHER_PHOTO_SUFFIXES = (
    *(".heic", ".heif", ".hif", ".jxl", ".psd", ".exr", ".hdr", ".ico", ".tga", ".jxr", ".jpx", ".jpf"),
    *(".dng", ".nef", ".nrw", ".cr2", ".cr3", ".crw", ".arw", ".srf", ".sr2", ".raf", ".orf", ".rw2", ".raw", ".rwl"),
    *(".pef", ".srw", ".x3f", ".3fr", ".fff", ".iiq", ".erf", ".mef", ".mos", ".mrw", ".kdc", ".dcr", ".gpr"),
)
VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mts", ".m2ts", ".3gp", ".wmv", ".mpg", ".mpeg")
MAX_STDIN_BYTES = 1 << 30  # an endless stream must not fill the memory
COUNT_AHEAD = 10_000  # names looked at before the first image is scored, to know how many there are


@dataclass(frozen=True)
class Input:
    """One image to score, or one argument that gives none.

    name: as the user knows it: the path as given, the path below the folder as given, or "-".
    source: a path, or the bytes that standard input held. None when there is an error.
    error: why there is nothing to score; empty otherwise.
    """

    name: str
    source: str | bytes | None = None
    error: str = ""


def expand(
    arguments: Iterable[str], *, recursive: bool = False, left_out: Counter[str] | None = None
) -> Iterator[Input]:
    """Files, folders, globs and "-" -> one `Input` per image: in the order given, naturally sorted inside each.

    A path that exists is taken as it is, even if it looks like a glob. A glob gives the files it matches, never
    folders. Hidden files are left out of folders and globs. Standard input is read when its turn comes.
    left_out: counts the files of folders that are no images by their suffixes, which are its keys.
    """
    for argument in arguments:
        if argument == STDIN:
            yield from _standard_input()
        elif os.path.isdir(argument):
            yield from _folder(argument, recursive, left_out)
        elif not os.path.lexists(argument) and glob.has_magic(argument):
            yield from _glob(argument)
        else:
            yield _file(argument)


def listed(
    stream: BinaryIO,
    name: str,
    *,
    null: bool = False,
    recursive: bool = False,
    left_out: Counter[str] | None = None,
) -> Iterator[Input]:
    """A list of paths (one per line, or NUL-separated) -> one `Input` per image, as the list is read.

    stream: the list, open in binary: names are bytes on Linux, and need not be text.
    name: what the list is called, for the error when it names nothing.
    Paths are taken literally, "-" and globs included; a folder gives its images. Blank lines are skipped.
    A byte order mark is dropped, and a list in UTF-16, as PowerShell writes it, or in UTF-32 is read as such.
    left_out: as in `expand`.
    """
    entry = None
    for entry in _entries(stream, b"\0" if null else b"\n"):
        path = os.fsdecode(entry)
        if os.path.isdir(path):
            yield from _folder(path, recursive, left_out)
        else:
            yield _file(path)
    if entry is None:
        yield Input(name, error="the list names no image")


def counted(inputs: Iterable[Input], ahead: int = COUNT_AHEAD) -> tuple[Iterator[Input], int | None]:
    """The same stream, and how many inputs it has, or None when there are more than `ahead`."""
    stream = iter(inputs)
    first = list(itertools.islice(stream, ahead + 1))
    return itertools.chain(first, stream), len(first) if len(first) <= ahead else None


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sort key that puts frame2 before frame10. Text and numbers alternate, so that keys always compare."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if i % 2 else part.casefold() for i, part in enumerate(parts)], name


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


def _glob(pattern: str) -> Iterator[Input]:
    # include_hidden is off by default: neither * nor ** matches a leading dot.
    paths = [path for path in glob.iglob(pattern, recursive=True) if not os.path.isdir(path)]
    if not paths:
        yield Input(pattern, error="no file matches this glob")
    yield from map(_file, sorted(paths, key=natural_key))


def _folder(folder: str, recursive: bool, left_out: Counter[str] | None) -> Iterator[Input]:
    found, others = False, Counter[str]()
    for item in _walk(folder, recursive, others):
        found = True
        yield item
    if left_out is not None:
        left_out += others
    if not found:
        advice = "" if recursive else "; -r looks in its subfolders too"
        yield Input(folder, error=f"a folder without images{advice}")


def _walk(top: str, recursive: bool, others: Counter[str]) -> Iterator[Input]:
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
            suffix = os.path.splitext(entry.name)[1].lower()
            if suffix in IMAGE_SUFFIXES + OTHER_PHOTO_SUFFIXES:
                if _is(entry.is_file) or _is_broken_link(entry):
                    yield _file(entry.path)
            elif _is(entry.is_file):
                others[suffix] += 1
        if recursive:
            folders += [entry.path for entry in reversed(entries) if _is(entry.is_dir)]


def _is(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except OSError:  # a link in a circle, or into a folder that cannot be entered
        return False


def _is_broken_link(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)


def _entries(stream: BinaryIO, separator: bytes) -> Iterator[bytes]:
    """Non-empty entries, each as soon as its separator arrives. Windows line ends are accepted."""
    first = stream.readline()
    marked = first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE))
    # Without a mark NUL bytes tell, unless they are what separates names
    encoding = json.detect_encoding(first) if marked or separator == b"\n" else "utf-8"
    if not encoding.startswith("utf-8"):
        text = (first + stream.read()).decode(encoding, errors="replace")
        entries: Iterable[bytes] = os.fsencode(text).split(separator)
    elif separator == b"\n":
        entries = itertools.chain([first.removeprefix(codecs.BOM_UTF8)], stream)
    else:  # names only; readline knows no other separator
        entries = (first.removeprefix(codecs.BOM_UTF8) + stream.read()).split(separator)
    for entry in entries:
        trimmed = entry.rstrip(b"\r\n") if separator == b"\n" else entry
        if trimmed:
            yield trimmed
