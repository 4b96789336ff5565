"""Scored rows -> the chosen ones, and what becomes of their images."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from command import run_here

from dgiqa.batch.choose import Choice
from dgiqa.errors import DgiqaError
from dgiqa.report.files import SPOOLED, OutputFile, Report, format_of, writer_for
from dgiqa.report.read import read_rows
from dgiqa.report.rows import Row, error_row, row_of

KEYS = ["=1+1", "'quoted", "-x", "é ☃", 'a,b\n"c"', "\u2028", "007", "x" * 300, None, "@"]


def rows_with(scores: list[float | None], **columns: Any) -> list[Row]:
    return [
        error_row(f"p{i}.jpg", "no", key=KEYS[i % len(KEYS)], bundle="b", backend="o", tiling="grid")
        if score is None
        else row_of("image", path=f"p{i}.jpg", score=score, key=KEYS[i % len(KEYS)], **columns)
        for i, score in enumerate(scores)
    ]


def written(path: Path, rows: list[Row], *, details: bool = False) -> Path:
    kind = format_of(str(path))
    with Report() as report:
        file = OutputFile(str(path), spooled=kind in SPOOLED)
        report.write_to(writer_for(kind, file, details=details), file)
        for row in rows:
            report.add(row)
        report.complete = True
    return path


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "json", "csv", "sqlite"])
def test_every_format_gives_the_rows_back_to_the_last_byte(tmp_path: Path, suffix: str) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    rows = rows_with([0.5] * 9 + [None], reasons=["blur", "noise"], width=3, note="=hm")
    for row in rows:
        row |= {"tile_scores": [0.25, 0.5], "windows": None, "timings_ms": {"decode": 1.5}}
        row |= {"reason_probabilities": None, "attributes": None}
    path = written(tmp_path / f"s.{suffix}", rows, details=True)
    assert list(read_rows(str(path))) == rows
    again = written(tmp_path / f"t.{suffix}", list(read_rows(str(path))), details=True)
    assert list(read_rows(str(again))) == rows


def test_what_holds_no_rows_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    (tmp_path / "b.jsonl").write_text("{broken")
    (tmp_path / "c.txt").touch()
    for name, words in {
        "a.csv": "no column path, score",
        "b.jsonl": "cannot be read",
        "c.txt": r"ends in \.txt",
    }.items():
        with pytest.raises(DgiqaError, match=words):
            list(read_rows(str(tmp_path / name)))
    with pytest.raises(DgiqaError, match=r"holds no \.parquet"):
        list(read_rows(str(tmp_path)))


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        (Choice(least=0.5), [0, 3, 4]),
        (Choice(most=0.5), [1, 3]),
        (Choice(top="2"), [0, 4]),
        (Choice(worst="2"), [1, 3]),
        (Choice(top="25%"), [0]),
        (Choice(top="26%"), [0, 4]),
        (Choice(top="100%"), [0, 1, 3, 4]),
        (Choice(least=0.5, worst="1"), [3]),
    ],
)
def test_choices(choice: Choice, wanted: list[int]) -> None:
    assert choice.of(rows_with([0.9, 0.1, None, 0.5, 0.9])) == wanted


@pytest.mark.parametrize(
    "wrong",
    [
        {"top": "x"},
        {"top": "-1"},
        {"top": "0"},
        {"top": "1", "worst": "1"},
        {"worst": "5 %"},
        {"worst": "0%"},
        {"top": "150%"},
    ],
)
def test_wrong_choices(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="wanted"):
        Choice(**wrong)


def test_keys_are_printed_or_paths_where_there_are_none(tmp_path: Path) -> None:
    scores = written(tmp_path / "s.csv", rows_with([0.1 * i for i in range(10)]))
    done = run_here("filter", scores, "--min", 0.45, "-0", "--sort")
    assert done.returncode == 0
    assert done.stdout.decode().split("\0") == ["@", "p8.jpg", "x" * 300, "007", "\u2028", ""]
    assert done.stderr == b"5 of 10 rows chosen\n"


def test_choices_that_no_score_can_meet_are_wrong_usage(tmp_path: Path) -> None:
    scores = written(tmp_path / "s.jsonl", rows_with([0.9]))
    for option, value in (("--min", 5), ("--max", -1), ("--top", 0), ("--worst", "150%")):
        done = run_here("filter", scores, option, value)
        assert (done.returncode, option.encode() in done.stderr) == (2, True)
    gone = run_here("filter", tmp_path / "november/")
    assert (gone.returncode, b"november: no such file or folder" in gone.stderr) == (1, True)


def test_rows_go_into_any_format(tmp_path: Path) -> None:
    scores = written(tmp_path / "s.jsonl", rows_with([0.9, None, 0.1]))
    assert run_here("filter", scores, "--top", 1, "-o", tmp_path / "t.csv", "-q").returncode == 0
    assert [row["path"] for row in read_rows(str(tmp_path / "t.csv"))] == ["p0.jpg"]
    assert run_here("filter", scores, "--min", 0.5, "-o", tmp_path / "t.txt").returncode == 2


@pytest.mark.parametrize("deed", ["link", "copy", "move"])
def test_files_are_carried_below_a_folder_and_never_over_others(tmp_path: Path, deed: str) -> None:
    rows = []
    for number, name in enumerate(("a/1.jpg", "b/1.jpg", os.fsdecode(b"a/caf\xe9.jpg"), "a/bad.jpg")):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name, errors="surrogateescape")
        rows.append(row_of("image", path=str(path), score=0.1 if "bad" in name else 0.5 + number / 10))
    rows.append(row_of("image", path=str(tmp_path / "set/a/gone.jpg"), score=0.9))
    scores = written(tmp_path / "s.jsonl", rows)
    out = tmp_path / "out"
    shown = run_here("filter", scores, "--min", 0.5, f"--{deed}", out, "--dry-run")
    assert shown.returncode == 3
    assert f"{deed} {tmp_path}/set/a/1.jpg -> {out}/a/1.jpg".encode() in shown.stdout
    assert not out.exists()
    done = run_here("filter", scores, "--min", 0.5, f"--{deed}", out)
    assert done.returncode == 3
    assert "gone.jpg: no such file" in done.stderr.decode()
    found = sorted(os.path.relpath(path, out) for path in out.rglob("*") if not path.is_dir())
    assert found == sorted(["a/1.jpg", "b/1.jpg", os.fsdecode(b"a/caf\xe9.jpg")])
    assert (out / "b/1.jpg").read_text() == "b/1.jpg"
    assert (tmp_path / "set/a/1.jpg").exists() == (deed != "move")
    if deed == "copy":
        again = run_here("filter", scores, "--min", 0.5, "--copy", out)
        assert "is there already" in again.stderr.decode()


def test_new_shards_hold_whole_samples(tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    with wds.TarWriter(str(tmp_path / "00.tar")) as writer:
        for number in range(4):
            writer.write({"__key__": f"d/{number}", "jpg": b"image", "json": {"n": number}})
    paths = [f"{tmp_path}/00.tar/d/{number}.jpg" for number in range(4)]
    rows = [row_of("image", path=path, score=number / 10, key=f"d/{number}") for number, path in enumerate(paths)]
    scores = written(tmp_path / "s.jsonl", rows)
    assert run_here("filter", scores, "--top", "50%", "--shards", tmp_path / "good", "-q").returncode == 0
    samples = list(wds.WebDataset(str(tmp_path / "good" / "00.tar"), shardshuffle=False))
    assert [(sample["__key__"], sample["jpg"], sample["json"]) for sample in samples] == [
        *(("d/2", b"image", b'{"n": 2}'), ("d/3", b"image", b'{"n": 3}'))
    ]
    assert os.listdir(tmp_path / "good") == ["00.tar"]
    again = run_here("filter", scores, "--top", 1, "--shards", tmp_path / "good")
    assert "is there already" in again.stderr.decode()


def test_samples_whose_names_are_not_utf8_are_found_and_those_that_are_gone_are_said(tmp_path: Path) -> None:
    name = b"s/\xff\xfe.1.jpg"
    with tarfile.open(tmp_path / "00.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo(os.fsdecode(name)))
    shard = tmp_path / "00.tar"
    rows = [
        row_of("image", path=f"{shard}/{os.fsdecode(name)}", score=0.5),
        row_of("image", path=f"{shard}/g.jpg", score=1),
    ]
    done = run_here("filter", written(tmp_path / "r.jsonl", rows), "--min", 0, "--shards", tmp_path / "good")
    assert done.returncode == 3
    assert b"1 samples are not in it any more, 'g'" in done.stderr
    with tarfile.open(tmp_path / "good" / "00.tar") as archive:
        assert [os.fsencode(found) for found in archive.getnames()] == [name]


def test_a_shard_that_cannot_be_read_leaves_nothing(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for name in ("1.jpg", "2.jpg"):
            info = tarfile.TarInfo(name)
            info.size = 5
            archive.addfile(info, io.BytesIO(b"image"))
    (tmp_path / "s.tar").write_bytes((tmp_path / "s.tar").read_bytes()[:1538])
    rows = [row_of("image", path=f"{tmp_path}/s.tar/{n}.jpg", score=0.5) for n in (1, 2)]
    scores = written(tmp_path / "s.jsonl", [*rows, row_of("image", path="loose.jpg", score=0.5)])
    done = run_here("filter", scores, "--min", 0, "--shards", tmp_path / "out")
    assert done.returncode == 3
    assert "loose.jpg: no member of a tar shard" in done.stderr.decode()
    assert os.listdir(tmp_path / "out") == []


def test_two_outputs_exclude_each_other(tmp_path: Path) -> None:
    done = run_here("filter", "s.csv", "--copy", "a", "--move", "b")
    assert done.returncode == 2
    assert b"give only one of" in done.stderr
