"""Tar shards and zip archives -> inputs, read as a stream, never unpacked: a member's name is no path."""

import bz2
import gzip
import importlib
import io
import itertools
import lzma
import os
import re
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from typing import IO, Any, BinaryIO

from dgiqa.errors import ImageError
from dgiqa.image.kinds import HEAD, identify
from dgiqa.sources.inputs import PHOTO_SUFFIXES, Input, Reading, suffix_of, told

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
ZIP_SUFFIXES = (".zip",)
MAX_MEMBER = 1 << 30  # bytes of one picture in memory
_BLOCK = 512
# Headers whose data tarfile reads into memory, and how many bytes of it are allowed
_NAMES = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_LONGEST_NAME = 1 << 20
_AFTER, _PIECE = 64 << 20, 1 << 20  # bytes that may follow a tar's end, and how many are read at a time
_PATIENCE = 100  # empty reads in a row
_UTF8 = 0x800
_KEY = re.compile(r"((?:.*/|)[^./]+)[.][^/]*", re.DOTALL)  # as webdataset splits names


def is_shard(name: str) -> bool:
    """Whether a name has a suffix of tar or zip archives."""
    return name.lower().endswith(TAR_SUFFIXES + ZIP_SUFFIXES)


def members(name: str, stream: BinaryIO, reading: Reading) -> Iterator[Input]:
    """The images of an archive, in its order; a part that cannot be read is an input with an error.

    name: the archive's, whose suffix decides its kind. stream: the archive, open in binary; a zip needs one that can
    seek. Keys are webdataset's in a tar ("a/0001" for "a/0001.jpg"), and the members' names in a zip.
    """
    counts, item = Counter[str](), None
    read = _of_zip if name.lower().endswith(ZIP_SUFFIXES) else _of_tar
    for item in read(name, stream, counts):
        yield item
    reading.left_out.update(counts)
    if item is None:
        yield Input(name, error=f"an archive without images, {sum(counts.values())} other files in it")


def sample_key(member: str) -> str:
    """The key that webdataset gives a member of a shard: everything before the first dot of its last part."""
    found = _KEY.fullmatch(member)
    return found[1] if found else member


def _of_tar(name: str, stream: BinaryIO, counts: Counter[str]) -> Iterator[Input]:
    try:
        plain: Any = _Ending(_decompressed(stream))
        with tarfile.open(fileobj=plain, mode="r|", tarinfo=_Header, encoding="utf-8") as archive:
            for member in archive:
                if member.isdir():
                    continue
                if suffix_of(member.name) not in PHOTO_SUFFIXES:
                    counts[suffix_of(member.name)] += 1
                    continue
                yield _of_member(name, archive, member)
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep every header it saw
        _drain(plain)
    except Exception as error:  # tarfile, zlib, lzma, a connection: each raises its own
        yield Input(name, error=f"cannot be read from here on ({told(error)}); copy or write the archive again")


class _Ending:
    """A stream that ends: tarfile goes on asking for as many bytes as a header claims there are."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._empty = stream, 0

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._stream.read(size)
        self._empty = 0 if data else self._empty + 1
        if self._empty > _PATIENCE:
            raise EOFError("it breaks off within a file")
        return data


class _Header(tarfile.TarInfo):
    """A header that is an error if it cannot be read or breaks off; tarfile takes both for the archive's end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Any:
        return cls._checked(super().frombuf, buf, encoding, errors)

    @classmethod
    def _frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str, **more: Any) -> Any:
        """The method that newer Pythons call instead."""
        read: Any = getattr(super(), "_frombuf")  # noqa: B009
        return cls._checked(read, buf, encoding, errors, **more)

    @staticmethod
    def _checked(read: Any, buf: bytes | bytearray, *how: str, **more: Any) -> Any:
        try:
            found = read(buf, *how, **more)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            told = "it breaks off: a tar ends in zero bytes" if len(buf) < _BLOCK else f"a damaged header, {error}"
            raise tarfile.ReadError(told) from error
        if found.size < 0 or (found.type in _NAMES and found.size > _LONGEST_NAME):
            raise tarfile.ReadError(f"a header that claims {found.size} bytes")
        return found


def _of_member(name: str, archive: tarfile.TarFile, member: tarfile.TarInfo) -> Input:
    shown, key = f"{name}/{member.name}", sample_key(member.name)
    if not member.isfile():
        what = f"a link to {member.linkname}" if member.issym() or member.islnk() else "a device or a pipe"
        return Input(shown, error=f"{what}, which is not followed; write the image itself into the archive", key=key)
    if member.size > MAX_MEMBER:
        return Input(shown, error=f"{member.size} bytes, wanted an image of at most {MAX_MEMBER}", key=key)
    content = archive.extractfile(member)
    assert content is not None
    return _image(shown, key, content, member.size)


def _of_zip(name: str, stream: BinaryIO, counts: Counter[str]) -> Iterator[Input]:
    try:
        archive = zipfile.ZipFile(stream)
    except Exception as error:
        yield Input(name, error=f"cannot be read ({told(error)}); a zip from an address has to be downloaded first")
        return
    with archive:
        places = sorted((member.header_offset, member.compress_size) for member in archive.infolist())
        if any(at + size > following for (at, size), (following, _) in itertools.pairwise(places)):
            yield Input(name, error="its members overlap, as in a zip bomb; write the archive again")
            return
        for member in archive.infolist():
            if member.is_dir():
                continue
            inside = member.orig_filename  # without the UTF-8 flag, zipfile takes its bytes for code page 437
            if not member.flag_bits & _UTF8:
                inside = os.fsdecode(inside.encode("cp437"))
            if suffix_of(inside) not in PHOTO_SUFFIXES:
                counts[suffix_of(inside)] += 1
                continue
            yield _of_zip_member(f"{name}/{inside}", inside, archive, member)


def _of_zip_member(shown: str, key: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Input:
    try:
        with archive.open(member) as content:
            return _image(shown, key, content)
    except Exception as error:  # any compression's own; a wrong password, a wrong header
        return Input(shown, error=f"cannot be read ({told(error)}); write the archive again", key=key)


def _image(shown: str, key: str, content: IO[bytes], size: int | None = None) -> Input:
    """A member as an Input, read whole only if it begins like an image. Raises EOFError if bytes are missing."""
    data = content.read(HEAD)
    try:
        identify(data)
    except ImageError as error:
        return Input(shown, error=str(error), key=key)
    data += content.read(MAX_MEMBER + 1 - len(data))
    if len(data) > MAX_MEMBER:
        return Input(shown, error=f"more than {MAX_MEMBER} bytes; wanted one image", key=key)
    if size is not None and len(data) < size:
        raise EOFError("the archive ends within a file")
    return Input(shown, source=data, key=key)


def _decompressed(stream: BinaryIO) -> Any:
    """The stream, decompressed. tarfile's own decompression takes a stream that breaks off for whole."""
    buffered = stream if hasattr(stream, "peek") else io.BufferedReader(stream)  # type: ignore[type-var]
    head = buffered.peek(6)
    for magic, opening in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ", lzma.open)):
        if head.startswith(magic):
            return opening(buffered)  # type: ignore[operator]
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        try:
            zstandard = importlib.import_module("zstandard")
        except ImportError as error:
            raise ImageError("zstd needs zstandard; pip install zstandard, or compress with gzip") from error
        return zstandard.ZstdDecompressor().stream_reader(buffered, read_across_frames=True)
    return buffered


def _drain(stream: Any) -> None:
    """Read what follows a tar's end. Raises the decompressor's error for a compressed one that breaks off there."""
    for _ in range(_AFTER // _PIECE):
        if not stream.read(_PIECE):
            return
    raise tarfile.ReadError(f"more than {_AFTER} bytes after its end")
