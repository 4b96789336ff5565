"""A file is replaced whole or not at all; the cache is this user's, and one process at a time has a lock."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from waiting import PATIENCE_S

import dgiqa
from dgiqa.errors import EngineError
from dgiqa.store import locked, ours, replacing, user_cache


def test_the_file_takes_its_place_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("existing", [True, False])
def test_after_an_exception_everything_is_as_it_was(tmp_path: Path, existing: bool) -> None:
    path = tmp_path / "a.txt"
    if existing:
        path.write_text("old")

    def break_off() -> None:
        with replacing(str(path)) as partial:
            partial.write_text("ne")
            raise ValueError("halfway")

    with pytest.raises(ValueError, match="halfway"):
        break_off()
    assert [(p, p.read_text()) for p in tmp_path.iterdir()] == [(path, "old")] * existing


def test_what_cannot_take_its_place_is_not_left_over(tmp_path: Path) -> None:
    folder = tmp_path / "a.txt"
    folder.mkdir()
    with pytest.raises(OSError, match=r"a\.txt"), replacing(folder) as partial:
        partial.write_text("new")
    assert list(tmp_path.iterdir()) == [folder]


def test_threads_that_write_one_file_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    both_are_inside = threading.Barrier(2, timeout=PATIENCE_S)
    names: list[Path] = []

    def write(letter: str) -> None:
        with replacing(path) as partial, partial.open("w") as file:
            names.append(partial)
            both_are_inside.wait()
            file.write(letter * 100_000)
            both_are_inside.wait()

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(names)) == 2
    assert path.read_text() in {"a" * 100_000, "b" * 100_000}
    assert list(tmp_path.iterdir()) == [path]


def test_the_cache_is_where_platforms_keep_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert sys.platform == "win32" or user_cache() == tmp_path / "dgiqa-rt"


HOLD = """
import sys, time
from pathlib import Path
from dgiqa.store import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)  # until it is killed
"""


def test_a_lock_ends_with_its_process_and_one_process_has_it_at_a_time(tmp_path: Path) -> None:
    target, entered = tmp_path / "cache" / "engine", threading.Event()

    def enter() -> None:
        with locked(target):
            entered.set()

    path = os.pathsep.join(filter(None, [str(Path(dgiqa.__file__).parent.parent), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path}
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(target)], stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        waiting = threading.Thread(target=enter)
        waiting.start()
        assert not entered.wait(0.2)
        process.kill()
        assert entered.wait(PATIENCE_S)
        waiting.join()


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="POSIX permissions")
@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root gives files away")
def test_a_folder_with_a_file_of_somebody_else_is_not_ours(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o700)
    (folder / "file").write_text("x")
    assert ours(folder)
    os.chown(folder / "file", 12345, 12345)
    assert not ours(folder)


def test_nothing_is_locked_in_a_folder_that_others_write_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(EngineError, match="chmod 700"), locked(tmp_path / "engine"):
        pass


def test_an_error_of_writing_names_the_file_that_was_asked_for(tmp_path: Path) -> None:
    target = tmp_path / "gone" / "map.png"
    with pytest.raises(FileNotFoundError) as found, replacing(target) as partial:
        partial.write_bytes(b"")
    assert found.value.filename == str(target)
