"""Tar shards and zip archives -> inputs, read as they come and never unpacked: a member's name is only a name."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

from dgiqa.sources.inputs import PHOTO_SUFFIXES, Input, suffix_of

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
ZIP_SUFFIXES = (".zip",)
MAX_MEMBER = 1 << 30  # bytes of one picture in memory
_BLOCK = 512
_KEY = re.compile(r"((?:.*/|)[^./]+)[.][^/]*", re.DOTALL)  # as webdataset takes names apart


def is_shard(name: str) -> bool:
    """Whether a name is one of a tar or zip archive."""
    return name.lower().endswith(TAR_SUFFIXES + ZIP_SUFFIXES)


def members(name: str, stream: BinaryIO, left_out: Counter[str] | None = None) -> Iterator[Input]:
    """The images of an archive, in its order; what cannot be read of it is an input with an error.

    name: the archive's, which decides its kind. stream: it, open in binary; zip needs one that can seek.
    left_out: counts members that are no images, by suffix. Keys are those of webdataset in a tar ("a/0001" of
    "a/0001.jpg"), and the members' names in a zip.
    """
    counts: Counter[str] = Counter()
    found = False
    read = _of_zip if name.lower().endswith(ZIP_SUFFIXES) else _of_tar
    for item in read(name, stream, counts):
        found = True
        yield item
    if left_out is not None:
        left_out += counts
    if not found:
        yield Input(name, error=f"an archive without images, {sum(counts.values())} other files in it")


def sample_key(member: str) -> str:
    """The key that webdataset gives a member of a shard: all before the first dot of its last part."""
    found = _KEY.fullmatch(member)
    return found[1] if found else member


def _of_tar(name: str, stream: BinaryIO, counts: Counter[str]) -> Iterator[Input]:
    try:
        watched = _Tail(_decompressed(stream))
        with tarfile.open(fileobj=watched, mode="r|") as archive:  # type: ignore[call-overload] # it reads, and no more is asked of it
            for member in archive:
                if not member.isfile():
                    continue
                if suffix_of(member.name) not in PHOTO_SUFFIXES:
                    counts[suffix_of(member.name)] += 1
                    continue
                yield _of_member(name, archive, member)
                archive.members.clear()  # it would keep every header it saw
        if any(watched.last_block()):
            yield Input(
                name, error="breaks off: a tar ends in zero bytes, and this one does not; copy or write it again"
            )
    except Exception as error:  # tarfile, zlib, lzma, a connection: each has its own
        yield Input(name, error=f"cannot be read on from here ({_told(error)}); copy or write the archive again")


def _of_member(name: str, archive: tarfile.TarFile, member: tarfile.TarInfo) -> Input:
    shown, key = f"{name}/{member.name}", sample_key(member.name)
    if member.size > MAX_MEMBER:
        return Input(shown, error=f"{member.size} bytes, wanted an image of at most {MAX_MEMBER}", key=key)
    content = archive.extractfile(member)
    assert content is not None
    data = content.read()
    if len(data) < member.size:
        raise EOFError("the archive ends within a file")
    return Input(shown, source=data, key=key) if data else Input(shown, error="empty file: 0 bytes", key=key)


def _of_zip(name: str, stream: BinaryIO, counts: Counter[str]) -> Iterator[Input]:
    try:
        archive = zipfile.ZipFile(stream)
    except Exception as error:
        yield Input(name, error=f"cannot be read ({_told(error)}); a zip from an address has to be downloaded first")
        return
    with archive:
        for member in archive.infolist():
            if member.is_dir():
                continue
            if suffix_of(member.filename) not in PHOTO_SUFFIXES:
                counts[suffix_of(member.filename)] += 1
                continue
            yield _of_zip_member(name, archive, member)


def _of_zip_member(name: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Input:
    shown, key = f"{name}/{member.filename}", member.filename
    try:
        with archive.open(member) as content:
            data = content.read(MAX_MEMBER + 1)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, NotImplementedError) as error:
        return Input(shown, error=f"cannot be read ({_told(error)}); write the archive again", key=key)
    if len(data) > MAX_MEMBER:
        return Input(shown, error=f"more than {MAX_MEMBER} bytes; wanted one image", key=key)
    return Input(shown, source=data, key=key) if data else Input(shown, error="empty file: 0 bytes", key=key)


def _decompressed(stream: BinaryIO) -> Any:
    """The stream, or what it holds: tarfile's own way through compressed ones takes those that break off for whole."""
    buffered = stream if hasattr(stream, "peek") else io.BufferedReader(stream)  # type: ignore[type-var]
    head = buffered.peek(6)
    for magic, opening in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ", lzma.open)):
        if head.startswith(magic):
            return opening(buffered)  # type: ignore[operator]
    return buffered


class _Tail:
    """A stream that remembers its last block: tarfile takes a file that breaks off between members for a whole one."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._last = b""

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._stream.read(size)
        self._last = (self._last + data)[-_BLOCK:] if len(data) < _BLOCK else data[-_BLOCK:]
        return data

    def last_block(self) -> bytes:
        """The last bytes of all of it."""
        while self.read(1 << 20):
            pass
        return self._last


def _told(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
