"""Archives -> images with their original keys; what breaks off, bombs or lies is an error row."""

from __future__ import annotations

import io
import json
import os
import random
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from command import run_here

from dgiqa import sources
from dgiqa.sources import Input, Reading, expand, shards
from dgiqa.sources.inputs import braces
from dgiqa.sources.shards import members, sample_key

IMAGE = b"\xff\xd8\xff, the beginning of a JPEG"
KEYS = ["00000", "a/b.c/0001", "é ☃", "-=+@", "x" * 150, "tab\tkey"]


def tar(path: Path, names: list[str], data: bytes = IMAGE, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def found(path: Path) -> list[Input]:
    return list(expand([str(path)]))


def test_images_are_read_a_few_at_a_time_and_large_ones_one_by_one(tmp_path: Path, monkeypatch: Any) -> None:
    names, taken = [f"{n}.jpg" for n in range(100)], 0
    whole = shards._image

    def counting(*arguments: Any) -> Input:
        nonlocal taken
        taken += 1
        return whole(*arguments)

    monkeypatch.setattr(shards, "_image", counting)
    for data, most in ((IMAGE, sources.BURST), (IMAGE + bytes(1 << 20), 1)):
        taken, path = 0, tar(tmp_path / "s.tar", names, data)
        for number, item in enumerate(expand([str(path)]), 1):
            assert item.key == str(number - 1)
            assert taken - number < most
        assert taken == 100


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_tar_gives_its_images_and_counts_the_rest(tmp_path: Path, mode: str) -> None:
    path = tar(tmp_path / "s.tar", ["1.jpg", "1.json", "2.PNG", "2.txt", "3.cls"], mode=mode)
    left_out: Counter[str] = Counter()
    items = list(expand([str(path)], Reading(left_out=left_out)))
    assert [(item.name, item.key, item.source) for item in items] == [
        (f"{path}/1.jpg", "1", IMAGE),
        (f"{path}/2.PNG", "2", IMAGE),
    ]
    assert left_out == {".json": 1, ".txt": 1, ".cls": 1}


def test_keys_are_those_that_webdataset_wrote(tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    with wds.TarWriter(str(tmp_path / "s.tar")) as writer:
        for key in KEYS:
            writer.write({"__key__": key, "jpg": IMAGE, "json": b"{}"})
    assert [item.key for item in found(tmp_path / "s.tar")] == KEYS
    read = wds.WebDataset(str(tmp_path / "s.tar"), shardshuffle=False)
    assert [sample["__key__"] for sample in read] == KEYS


def test_several_images_of_a_sample_share_its_key(tmp_path: Path) -> None:
    items = found(tar(tmp_path / "s.tar", ["d.x/7.left.jpg", "d.x/7.right.jpg"]))
    assert [item.key for item in items] == ["d.x/7", "d.x/7"]
    assert sample_key(".hidden") == ".hidden"


def test_braces_stand_for_shards_in_order(tmp_path: Path) -> None:
    assert list(braces("s{008..011}-{a,b}.tar"))[:3] == ["s008-a.tar", "s008-b.tar", "s009-a.tar"]
    assert list(braces("{2..0}")) == ["2", "1", "0"]
    assert next(braces("{0..99999999999999}")) == "0"
    for number in range(9, 12):
        tar(tmp_path / f"{number:03}.tar", [f"{number}.jpg"])
    items = list(expand([str(tmp_path / "{009..012}.tar")]))
    assert [item.key for item in items] == ["9", "10", "11", None]
    assert items[-1].error == "no such file or folder"
    (tmp_path / "{1..2}.jpg").touch()
    assert [item.error for item in found(tmp_path / "{1..2}.jpg")] == [""]


def test_shards_that_a_glob_or_a_list_names_are_opened(tmp_path: Path) -> None:
    tar(tmp_path / "10.tar", ["b.jpg"])
    tar(tmp_path / "9.tar", ["a.jpg"])
    assert [item.key for item in expand([str(tmp_path / "*.tar")])] == ["a", "b"]


@pytest.mark.parametrize("cut", [514, 1024, 1536])
def test_a_tar_that_breaks_off_is_an_error_after_what_it_gave(tmp_path: Path, cut: int) -> None:
    """512 bytes of header and 512 of content for each; 1024 is the seam between two of them."""
    path = tar(tmp_path / "s.tar", ["1.jpg", "2.jpg"])
    path.write_bytes(path.read_bytes()[:cut])
    *whole, last = found(path)
    assert [item.key for item in whole] == (["1"] if cut >= 1024 else [])
    assert last.name == str(path)
    assert last.error


def test_a_compressed_tar_that_breaks_off_is_an_error(tmp_path: Path) -> None:
    path = tar(tmp_path / "s.tar.gz", ["1.jpg", "2.jpg"], mode="w:gz")
    path.write_bytes(path.read_bytes()[:-20])
    assert found(path)[-1].error


def test_what_is_no_archive_or_holds_no_image_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "no.tar").write_bytes(b"not a tar" * 100)
    (tmp_path / "no.zip").write_bytes(b"not a zip" * 100)
    tar(tmp_path / "none.tar", ["readme.txt"])
    for name, words in {
        "no.tar": "cannot be read",
        "no.zip": "cannot be read",
        "none.tar": "without images, 1",
    }.items():
        (item,) = found(tmp_path / name)
        assert words in item.error


def test_names_that_climb_out_are_only_names(tmp_path: Path) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    (item,) = found(tar(inside / "s.tar", ["../../evil.jpg"]))
    assert (item.key, item.source) == ("../../evil", IMAGE)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["in", "s.tar"]


def test_large_members_are_refused_and_the_next_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MAX_MEMBER", 100)
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for name, data in {"big.jpg": bytes(1000), "small.jpg": IMAGE, "empty.jpg": b""}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    big, small, empty = found(tmp_path / "s.tar")
    assert "1000 bytes" in big.error
    assert small.source == IMAGE
    assert "empty" in empty.error
    with zipfile.ZipFile(tmp_path / "s.zip", "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("bomb.jpg", IMAGE + bytes(100_000))
        zipped.writestr("small.jpg", IMAGE)
    bomb, small = found(tmp_path / "s.zip")
    assert "more than 100 bytes" in bomb.error
    assert small.source == IMAGE


def test_a_zip_gives_its_images_by_name_and_a_damaged_one_is_a_row(tmp_path: Path) -> None:
    path = tmp_path / "s.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.mkdir("d") if hasattr(archive, "mkdir") else None
        for name in ("d/é.1.jpg", "b.png", "notes.txt"):
            archive.writestr(name, IMAGE + name.encode())
    data = bytearray(path.read_bytes())
    data[data.index(b"JPEGb.png", 40) + len("JPEG")] ^= 255  # its content, so that its checksum is wrong
    path.write_bytes(data)
    good, bad = found(path)
    assert (good.key, good.source, good.name) == ("d/é.1.jpg", IMAGE + "d/é.1.jpg".encode(), f"{path}/d/é.1.jpg")
    assert "CRC" in bad.error


def test_links_and_devices_are_rows_and_nothing_outside_is_read(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(IMAGE)
    kinds = {"sym": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "pipe": tarfile.FIFOTYPE, "device": tarfile.BLKTYPE}
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for name, kind in kinds.items():
            info = tarfile.TarInfo(f"{name}.jpg")
            info.type, info.linkname = kind, str(tmp_path / "secret.jpg")
            archive.addfile(info)
        folder = tarfile.TarInfo("folder.jpg")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    items = found(tmp_path / "s.tar")
    assert [item.key for item in items] == list(kinds)
    assert all("not followed" in item.error and item.source is None for item in items)


@pytest.mark.parametrize("at", [0, 1024, 2048])
def test_a_damaged_header_ends_an_archive_with_an_error_and_not_as_if_it_were_whole(tmp_path: Path, at: int) -> None:
    path = tar(tmp_path / "s.tar", ["1.jpg", "2.jpg", "3.jpg"])
    data = bytearray(path.read_bytes())
    data[at + 3] ^= 1
    path.write_bytes(data)
    *whole, last = found(path)
    assert [item.key for item in whole] == ["1", "2", "3"][: at // 1024]
    assert "damaged header" in last.error or "cannot be read" in last.error


@pytest.mark.parametrize("size", [-512, 1 << 40])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_lies_about_its_size_is_an_error(tmp_path: Path, size: int, kind: bytes) -> None:
    info = tarfile.TarInfo("1.jpg")
    info.size, info.type = size, kind
    header = info.tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "s.tar").write_bytes(header + IMAGE.ljust(512, b"\0") + bytes(1024))
    assert all(item.error for item in found(tmp_path / "s.tar"))


def test_an_archive_that_goes_on_for_ever_after_its_end_is_left(tmp_path: Path) -> None:
    class Endless(io.BytesIO):
        taken = 0

        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size) or bytes(size or 0)
            self.taken += len(data)
            return data

    whole = tar(tmp_path / "s.tar", ["1.jpg"]).read_bytes()
    stream = Endless(whole)
    stream.peek = lambda n: whole[:n]  # type: ignore[attr-defined]
    first, last = members("s.tar", stream, Reading())
    assert (first.key, "after its end" in last.error) == ("1", True)
    assert stream.taken < 80 << 20


def test_names_in_a_zip_keep_their_bytes(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        for name in ("AAAA.jpg", "BBBB.jpg", "../../up.jpg", "é.jpg", "same.jpg"):
            archive.writestr(name, IMAGE)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("same.jpg", IMAGE + b"2")
    data = (tmp_path / "s.zip").read_bytes()
    data = data.replace(b"AAAA", b"\xffA\xfe\x80").replace(b"BBBB", "éß".encode())
    (tmp_path / "s.zip").write_bytes(data)
    items = found(tmp_path / "s.zip")
    assert [os.fsencode(str(item.key)) for item in items] == [
        *(b"\xffA\xfe\x80.jpg", "éß.jpg".encode(), b"../../up.jpg", "é.jpg".encode(), b"same.jpg", b"same.jpg")
    ]
    assert [item.source for item in items] == [IMAGE] * 5 + [IMAGE + b"2"]


def test_bombs_are_left_at_their_first_bytes_and_overlapping_members_at_once(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "s.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.jpg", bytes(1 << 24))
        archive.writestr("nested.jpg", b"PK\x03\x04" + bytes(1 << 20))
        archive.writestr("good.jpg", IMAGE)
    zeros, nested, good = found(tmp_path / "s.zip")
    assert "are zero" in zeros.error
    assert "an archive" in nested.error
    assert good.source == IMAGE
    data = bytearray((tmp_path / "s.zip").read_bytes())
    second = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
    data[second + 42 : second + 46] = bytes(4)  # it, too, is where the first one is
    (tmp_path / "s.zip").write_bytes(data)
    (item,) = found(tmp_path / "s.zip")
    assert "overlap" in item.error


def test_zstd_is_read_or_names_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tar(tmp_path / "s.tar", ["1.jpg", "2.jpg"])
    zstandard = pytest.importorskip("zstandard")
    packed = zstandard.ZstdCompressor().compress(path.read_bytes())
    (tmp_path / "s.tar.zst").write_bytes(packed)
    assert [item.key for item in found(tmp_path / "s.tar.zst")] == ["1", "2"]
    (tmp_path / "s.tar.zst").write_bytes(packed[:-9])
    assert found(tmp_path / "s.tar.zst")[-1].error
    monkeypatch.setitem(sys.modules, "zstandard", None)
    assert "pip install zstandard" in found(tmp_path / "s.tar.zst")[0].error


def damaged(data: bytes, generator: random.Random) -> bytes:
    """Cut, flipped, doubled or filled at a random place."""
    copy, at = bytearray(data), generator.randrange(len(data))
    length = generator.choice([1, 4, 512])
    match generator.randrange(5):
        case 0:
            return data[:at]
        case 1:
            copy[at] ^= 1 << generator.randrange(8)
        case 2:
            copy[at : at + length] = generator.randbytes(length)
        case 3:
            copy[at:at] = copy[at : at + length]
        case 4:
            copy[at : at + length] = bytes([generator.choice([0, 255])]) * length
    return bytes(copy)


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.xz", "zip"])
def test_damaged_archives_end_and_give_rows(tmp_path: Path, suffix: str) -> None:
    generator = random.Random(suffix)
    path = tmp_path / f"s.{suffix}"
    names = [f"{n}.jpg" for n in range(4)] + ["n" * 200 + ".png"]
    if suffix == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in names:
                archive.writestr(name, IMAGE)
    else:
        tar(path, names, mode=f"w:{suffix.partition('.')[2]}")
    whole = path.read_bytes()
    for _ in range(150):
        path.write_bytes(damaged(whole, generator))
        items = found(path)
        assert items
        assert all(bool(item.error) != (item.source is not None) for item in items)
        good = sum(item.source == IMAGE for item in items)
        assert good >= len(names) - 1 or any(item.error for item in items), "images are missing, and nothing says so"


def test_headers_of_a_long_tar_are_not_kept(tmp_path: Path) -> None:
    path = tar(tmp_path / "s.tar", [f"{n}.jpg" for n in range(50)])
    with path.open("rb") as stream:
        for _ in members(str(path), stream, Reading()):
            pass
    with tarfile.open(path, "r|*") as archive:  # the attribute that is cleared exists in this Python
        assert isinstance(archive.members, list)


def test_scores_of_shards_carry_their_keys(tmp_path: Path, bundle_dir: Path, photos, encode) -> None:  # type: ignore[no-untyped-def]
    image = encode(photos["coffee"][::4, ::4])
    path = tar(tmp_path / "s.tar", ["a/1.png", "a/2.png"], image)
    tar(tmp_path / "t.tar", ["a/3.png"], b"not an image")
    done = run_here("score", path, tmp_path / "t.tar", "--bundle", bundle_dir, "-f", "jsonl")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 3
    assert [(row["key"], row["status"]) for row in rows] == [("a/1", "ok"), ("a/2", "ok"), ("a/3", "error")]
    assert rows[0]["path"] == f"{path}/a/1.png"
