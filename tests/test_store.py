"""A file is replaced whole or not at all."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from dgiqa.store import replacing


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
    both_are_inside = threading.Barrier(2, timeout=30)
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
