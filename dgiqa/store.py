"""A file is written whole or not at all, and a folder is this user's own or is not believed."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

_OPEN = stat.S_IWGRP | stat.S_IWOTH


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Where to write instead of `path`: a name beside it that takes its place when the block ends.

    After an exception nothing is left, and what stood at `path` still does.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def ours(folder: Path) -> bool:
    """Whether nobody but this user (or root) can have put anything into the folder, or changed what is in it."""
    if not hasattr(os, "getuid"):  # Windows: the user's profile is private by its access list
        return True
    reachable = folder.lstat().st_mode & (stat.S_IXGRP | stat.S_IXOTH)
    inside = filter(None, map(_state, folder.iterdir()))
    return closed(folder) and all(_is_mine(state) and not (reachable and state.st_mode & _OPEN) for state in inside)


def closed(folder: Path) -> bool:
    """Whether nobody else can put anything into the folder."""
    state = folder.lstat()
    return not hasattr(os, "getuid") or (_is_mine(state) and not state.st_mode & _OPEN)


def _is_mine(state: os.stat_result) -> bool:
    return state.st_uid in (os.getuid(), 0) and not stat.S_ISLNK(state.st_mode)


def _state(path: Path) -> os.stat_result | None:
    with contextlib.suppress(FileNotFoundError):  # other processes build and remove beside us
        return path.lstat()
    return None
