"""What every kind of source gives, an Input per image, and how sources are read."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

# The suffixes that a folder is searched for. A file that is named itself is taken whatever its suffix.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".avif"),
    *(".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm"),
)
# Photographs that not every installation reads. Folders give them too, so that each becomes a row that says so.
OTHER_PHOTO_SUFFIXES = (
    *(".heic", ".heif", ".hif", ".jxl", ".psd", ".exr", ".hdr", ".ico", ".tga", ".jxr", ".jpx", ".jpf"),
    *(".dng", ".nef", ".nrw", ".cr2", ".cr3", ".crw", ".arw", ".srf", ".sr2", ".raf", ".orf", ".rw2", ".raw", ".rwl"),
    *(".pef", ".srw", ".x3f", ".3fr", ".fff", ".iiq", ".erf", ".mef", ".mos", ".mrw", ".kdc", ".dcr", ".gpr"),
)
VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mts", ".m2ts", ".3gp", ".wmv", ".mpg", ".mpeg")
PHOTO_SUFFIXES = frozenset(IMAGE_SUFFIXES + OTHER_PHOTO_SUFFIXES)

_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")
_RANGE = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")


@dataclass(frozen=True)
class Input:
    """One image to score, or one argument that gives none.

    name: as the user knows it: the path or address as given, the path below the folder as given, "-",
    "shard.tar/member" or "table.csv[row]".
    source: a path, bytes, or anything else in `image.sources.Source`. None when there is an error.
    error: why there is nothing to score; empty otherwise.
    key: the image's name within its source: a sample's key in a shard, a row's in a table. None for files.
    """

    name: str
    source: Any = None
    error: str = ""
    key: str | None = None


@dataclass(frozen=True)
class Network:
    """What may be fetched from addresses, and how much of it.

    private: also from this machine and its local networks. max_bytes, timeout_s: limits for one image, from the
    request to the last byte. redirects: most redirects that are followed.
    """

    private: bool = False
    max_bytes: int = 256 << 20
    timeout_s: float = 30.0
    redirects: int = 5


@dataclass(frozen=True)
class Reading:
    """How arguments are read. recursive: folders with their subfolders.

    column, key: in tables, the columns with the images (paths, addresses, bytes) and with their keys.
    network: None, the default, turns addresses off.
    left_out: counts the files in folders and archives that are no images, by suffix.
    """

    recursive: bool = False
    column: str | None = None
    key: str | None = None
    network: Network | None = None
    left_out: Counter[str] = field(default_factory=Counter, compare=False)


def is_address(text: str) -> bool:
    """Whether a text begins like "https://" or "s3://"."""
    return _ADDRESS.match(text) is not None


def suffix_of(name: str) -> str:
    """The suffix in lower case, with its dot; "" without one."""
    return os.path.splitext(name)[1].lower()


def braces(text: str) -> Iterator[str]:
    """Every text that "{000..199}" or "{a,b}" in it stands for, in order; the text itself without braces.

    Numbers are padded with zeros to the length of the first.
    """
    found = _RANGE.search(text)
    if found is None:
        yield text
        return
    first, last, listed = found.groups()
    if first is None:
        values: Iterator[str] = iter(listed.split(","))
    else:
        step = 1 if int(last) >= int(first) else -1
        values = (str(n).zfill(len(first)) for n in range(int(first), int(last) + step, step))
    for value in values:
        for rest in braces(text[found.end() :]):
            yield text[: found.start()] + value + rest


def told(error: Exception) -> str:
    """An error of another library in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
