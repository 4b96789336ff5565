"""Arguments -> the ordered, lazy stream of images. Nothing here is an image: sources never opens one."""

from __future__ import annotations

import inspect
import io
import itertools
import os
import sys
from collections import Counter
from pathlib import Path

import pytest

from dgiqa import sources
from dgiqa.sources import Input, Reading, counted, expand, listed, natural_key


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names(root: Path, items: list[Input]) -> list[str]:
    return [os.path.relpath(item.name, root) for item in items if not item.error]


def test_a_folder_gives_its_images_in_natural_order_without_hidden_ones(tmp_path: Path) -> None:
    touch(tmp_path, "img10.jpg", "img2.JPG", "img1.png", "notes.txt", ".hidden.jpg", "._img1.png", "sub/deep.webp")
    assert names(tmp_path, list(expand([str(tmp_path)]))) == ["img1.png", "img2.JPG", "img10.jpg"]


def test_recursion_goes_folder_by_folder_and_leaves_out_hidden_folders(tmp_path: Path) -> None:
    touch(tmp_path, "z.jpg", "b/2.jpg", "b/10.jpg", "b/c/x.jpg", "a/y.jpg", ".git/no.jpg")
    found = names(tmp_path, list(expand([str(tmp_path)], Reading(recursive=True))))
    assert found == ["z.jpg", "a/y.jpg", "b/2.jpg", "b/10.jpg", "b/c/x.jpg"]


def test_recursion_survives_loops_of_links_and_visits_each_folder_once(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.jpg")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    assert names(tmp_path, list(expand([str(tmp_path)], Reading(recursive=True)))) == ["a/x.jpg"]


def test_folders_may_be_nested_deeper_than_python_calls(tmp_path: Path) -> None:
    deepest = tmp_path.joinpath(*"d" * 200)
    touch(deepest, "x.jpg")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 100)
    try:
        found = list(expand([str(tmp_path)], Reading(recursive=True)))
    finally:
        sys.setrecursionlimit(limit)
    assert [item.source for item in found] == [str(deepest / "x.jpg")]


def test_links_to_files_are_followed_and_a_broken_one_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "real.jpg")
    (tmp_path / "good.jpg").symlink_to("real.jpg")
    (tmp_path / "lost.jpg").symlink_to("gone.jpg")
    good, lost, real = expand([str(tmp_path)])
    assert (good.error, real.error) == ("", "")
    assert lost.source is None
    assert "gone.jpg" in lost.error


def test_special_files_in_a_folder_are_left_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")  # opening it would wait for ever
    touch(tmp_path, "x.jpg")
    left_out = Counter[str]()
    assert names(tmp_path, list(expand([str(tmp_path)], Reading(left_out=left_out)))) == ["x.jpg"]
    assert left_out == {"pipes or devices": 1}


def test_a_file_named_on_its_own_is_taken_whatever_its_name(tmp_path: Path) -> None:
    odd = ["frame", ".hidden.jpg", "a b.jpg", "line\nbreak.jpg", "snow ☃.jpg", "img[1].jpg", "-dash.jpg"]
    touch(tmp_path, *odd)
    items = list(expand(str(tmp_path / name) for name in odd))
    assert [item.error for item in items] == [""] * len(odd)
    assert [item.source for item in items] == [str(tmp_path / name) for name in odd]


def test_a_name_that_is_not_utf8_comes_through(tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.jpg")
    Path(os.fsdecode(path)).touch()
    (item,) = expand([str(tmp_path)])
    assert os.fsencode(str(item.source)) == path


def test_globs_are_expanded_sorted_and_give_files_only(tmp_path: Path) -> None:
    touch(tmp_path, "b10.jpg", "b9.jpg", "sub/b.jpg", ".b.jpg", "folder.jpg/x.png")
    assert names(tmp_path, list(expand([str(tmp_path / "*.jpg")]))) == ["b9.jpg", "b10.jpg"]
    assert names(tmp_path, list(expand([str(tmp_path / "**/*.jpg")]))) == ["b9.jpg", "b10.jpg", "sub/b.jpg"]


def test_arguments_keep_their_order_and_may_repeat(tmp_path: Path) -> None:
    touch(tmp_path, "b.jpg", "a.jpg")
    arguments = [str(tmp_path / "b.jpg"), str(tmp_path), str(tmp_path / "b.jpg")]
    assert names(tmp_path, list(expand(arguments))) == ["b.jpg", "a.jpg", "b.jpg", "b.jpg"]


def test_every_argument_without_an_image_is_one_error(tmp_path: Path) -> None:
    touch(tmp_path, "empty/readme.txt", "nested/deep/x.jpg")
    arguments = [tmp_path / "missing.jpg", tmp_path / "empty", tmp_path / "nested", tmp_path / "*.png"]
    items = list(expand([*map(str, arguments), ""]))
    assert [item.name for item in items] == [*map(str, arguments), ""]
    assert all(item.source is None for item in items)
    wanted = ["no such file", "without images", "-r looks in its subfolders", "no file matches", "empty path"]
    for item, words in zip(items, wanted, strict=True):
        assert words in item.error


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "locked/x.jpg", "open.jpg")
    (tmp_path / "locked").chmod(0)
    items = list(expand([str(tmp_path)], Reading(recursive=True)))
    (tmp_path / "locked").chmod(0o700)
    assert [bool(item.error) for item in items] == [False, True]
    assert "cannot be read" in items[1].error


def test_standard_input_is_one_image_and_is_read_when_its_turn_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a.jpg")
    raw = io.BytesIO(b"bytes of an image")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(raw))
    stream = expand([str(tmp_path / "a.jpg"), "-", "-"])
    next(stream)
    assert raw.tell() == 0
    assert next(stream) == Input("-", source=b"bytes of an image")
    assert "empty" in next(stream).error


def test_an_endless_standard_input_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_STDIN_BYTES", 10)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(bytes(1000))))
    (item,) = expand(["-"])
    assert "more than 10 bytes" in item.error


@pytest.mark.parametrize(("separator", "null"), [(b"\n", False), (b"\r\n", False), (b"\0", True)])
def test_lists_are_literal_paths_by_line_or_nul(tmp_path: Path, separator: bytes, null: bool) -> None:
    touch(tmp_path, "a b.jpg", "*.jpg", "dir/1.jpg", "dir/2.jpg")
    entries = [os.fsencode(tmp_path / name) for name in ("a b.jpg", "*.jpg", "dir", "gone.jpg")]
    items = list(listed(io.BytesIO(separator.join([*entries, b""])), "list.txt", null=null))
    assert names(tmp_path, items) == ["a b.jpg", "*.jpg", "dir/1.jpg", "dir/2.jpg"]
    assert [item.error for item in items if item.error] == ["no such file or folder"]


def test_nul_separated_names_may_hold_line_breaks(tmp_path: Path) -> None:
    touch(tmp_path, "two\nlines.jpg")
    (item,) = listed(io.BytesIO(os.fsencode(tmp_path / "two\nlines.jpg") + b"\0"), "-", null=True)
    assert item.source == str(tmp_path / "two\nlines.jpg")


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\0\0"])
def test_a_list_that_names_nothing_is_an_error(content: bytes) -> None:
    (item,) = listed(io.BytesIO(content), "list.txt", null=b"\0" in content)
    assert item == Input("list.txt", error="the list names no image")


def test_a_nul_separated_list_read_by_line_says_what_to_do() -> None:
    (item,) = listed(io.BytesIO(b"a.jpg\0b.jpg\0"), "list.txt")
    assert "--null" in item.error


def test_lists_are_followed_as_they_grow(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as stream, os.fdopen(write_end, "wb") as growing:
        growing.write(os.fsencode(tmp_path / "a.jpg") + b"\n")
        growing.flush()
        assert next(listed(stream, "-")).source == str(tmp_path / "a.jpg")  # the list is still open


def test_counting_looks_ahead_only_so_far() -> None:
    five = [Input(str(i), source=str(i)) for i in range(5)]
    stream, total = counted(five, ahead=5)
    assert (list(stream), total) == (five, 5)
    endless = (Input(str(i), source=str(i)) for i in itertools.count())
    stream, total = counted(endless, ahead=5)
    assert total is None
    assert [item.name for item in itertools.islice(stream, 8)] == [str(i) for i in range(8)]


def test_natural_keys_always_compare() -> None:
    shuffled = ["b", "10", "a10b", "a9", "A1", "", "a9b", "9a", "a٣"]
    assert sorted(shuffled, key=natural_key) == ["", "9a", "10", "A1", "a9", "a9b", "a10b", "a٣", "b"]


def test_what_may_not_be_reached_is_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "lstat", forbidden)
    assert [item.error for item in expand(["private/a.jpg"])] == ["cannot be reached: Permission denied"]


def test_folders_give_photographs_that_cannot_be_read_and_count_the_rest(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.HEIC", "c.dng", "d.jxl", "e.txt", "f.TXT", "g.mp4", "no-suffix", "sub/h.txt", ".hidden")
    left_out: Counter[str] = Counter()
    found = list(expand([str(tmp_path)], Reading(left_out=left_out)))
    assert names(tmp_path, found) == ["a.jpg", "b.HEIC", "c.dng", "d.jxl"]
    assert left_out == {".txt": 2, ".mp4": 1, "": 1}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_byte_order_marks_and_utf16_are_understood(tmp_path: Path, encoding: str, end: str, marked: bool) -> None:
    touch(tmp_path, "snow ☃.jpg", "b.jpg")
    text = end.join([str(tmp_path / "snow ☃.jpg"), str(tmp_path / "b.jpg"), ""])
    text = "\ufeff" + text if marked and encoding[-2:] in ("le", "be") else text
    items = list(listed(io.BytesIO(text.encode(encoding)), "list.txt"))
    assert [item.error for item in items] == ["", ""]
    assert names(tmp_path, items) == ["snow ☃.jpg", "b.jpg"]


def test_names_that_end_in_nul_are_not_taken_for_utf16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "a", "b")
    assert [item.name for item in listed(io.BytesIO(b"a\0b\0"), "list.txt", null=True)] == ["a", "b"]


def test_a_glob_in_a_folder_that_cannot_be_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("a"))  # root may read everything
    (item,) = expand([str(tmp_path / "a" / "*.jpg")])
    assert item.error == f"{tmp_path / 'a'} cannot be read: Permission denied"
    (item,) = expand([str(tmp_path / "*.jpg")])
    assert item.error == "no file matches this glob"
