"""The user's cache on disk: a file appears whole or not at all, and a folder is used only if it is this user's own."""

import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from dgiqa.errors import EngineError

_OPEN = stat.S_IWGRP | stat.S_IWOTH


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path in the same folder to write to instead of `path`; it replaces `path` when the block ends.

    After an exception nothing new is left, and `path` is as it was.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        if error.filename in (partial, str(partial)):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def scratch_in(folder: Path, name: str) -> Iterator[Path]:
    """A new folder inside `folder` (created if missing), so on its file system; deleted at the end unless moved."""
    folder.mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=folder))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def take_place(folder: Path, target: Path) -> None:
    """Rename a folder to `target`. An existing target is moved aside first, and moved back if the renaming fails."""
    if not target.exists():
        folder.rename(target)
        return
    with scratch_in(target.parent, target.name) as aside:
        old = target.rename(aside / "old")
        try:
            folder.rename(target)
        except OSError:
            old.rename(target)
            raise


def ours(folder: Path) -> bool:
    """Whether only this user (or root) can have put anything into the folder or changed its contents."""
    if not hasattr(os, "getuid"):  # Windows: the user's profile is private by its access list
        return True
    reachable = folder.lstat().st_mode & (stat.S_IXGRP | stat.S_IXOTH)
    inside = filter(None, map(_state, folder.iterdir()))
    return closed(folder) and all(_is_mine(state) and not (reachable and state.st_mode & _OPEN) for state in inside)


def closed(folder: Path) -> bool:
    """Whether only this user (or root) can put anything into the folder."""
    state = folder.lstat()
    return not hasattr(os, "getuid") or (_is_mine(state) and not state.st_mode & _OPEN)


def _is_mine(state: os.stat_result) -> bool:
    return state.st_uid in (os.getuid(), 0) and not stat.S_ISLNK(state.st_mode)


def _state(path: Path) -> os.stat_result | None:
    with contextlib.suppress(FileNotFoundError):  # other processes build and remove files meanwhile
        return path.lstat()
    return None


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's contents, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def user_cache() -> Path:
    """This package's cache directory by the platform's convention. It need not exist.

    Without a home (a container's user without a passwd entry) it is a folder of this user's in the temporary directory.
    """
    from platformdirs import user_cache_path

    with contextlib.suppress(RuntimeError):  # platformdirs from 4.5 on raises it without a home
        folder = user_cache_path("dgiqa-rt", appauthor=False, opinion=False)
        if folder.is_absolute():
            return folder
    return Path(tempfile.gettempdir()) / f"dgiqa-rt-{os.getuid()}"


def private(folder: Path) -> Path:
    """Create a folder that only this user can write to, if it is missing. EngineError if others could have written."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not ours(folder):
        raise EngineError(f"{folder} belongs to or can be written by others, so nothing in it is loaded; chmod 700 it")
    return folder


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time work on this path; others wait. The lock ends with its process, however that ends."""
    from filelock import FileLock

    private(path.parent)
    with FileLock(path.parent / f".{path.name}.lock"):
        yield


def discard(path: Path) -> None:
    """Remove a file or a whole folder; of a link, only the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
