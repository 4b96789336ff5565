"""Files of rows that go on: what a killed run left stands where it was named, no image is scored twice or left out."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import run_here
from numpy.typing import NDArray
from waiting import PATIENCE_S

import dgiqa
from dgiqa.batch.resume import Earlier
from dgiqa.report import files
from dgiqa.report.files import OutputFile, Report, left_behind, writer_for
from dgiqa.report.read import read_rows, rows_so_far
from dgiqa.report.rows import row_of
from dgiqa.sources import Input

pytest.importorskip("pyarrow")
SUFFIXES = ("csv", "jsonl", "json", "parquet", "sqlite")
COUNT = 8


@pytest.fixture(scope="module")
def pictures(
    tmp_path_factory: pytest.TempPathFactory, photos: dict[str, NDArray[np.uint8]], encode: Callable[..., bytes]
) -> Path:
    """COUNT small images, of which one is none."""
    folder = tmp_path_factory.mktemp("pictures")
    small = np.ascontiguousarray(photos["coffee"][::4, ::4])
    for number in range(COUNT):
        data = encode(np.roll(small, 5 * number, 1)) if number != 7 else b"no image"
        (folder / f"{'=' * (number == 3)}{number}.png").write_bytes(data)
    return folder


def facts(path: Path) -> list[tuple[Any, ...]]:
    """All of the rows but their times, in no order."""
    return sorted(
        (str({name: value for name, value in row.items() if name != "ms"}), row["path"]) for row in read_rows(str(path))
    )


def times(path: Path) -> list[float]:
    """Of the images that have a score, in the order of the rows."""
    return [row["ms"] for row in read_rows(str(path)) if row["score"] is not None]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_of_a_new_file_are_under_its_name_while_the_run_goes_on(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "SHOW_S", 0.0)
    monkeypatch.setattr(files, "SHOW_SHARE", 1e9)
    path = tmp_path / f"a.{suffix}"
    with Report() as report:
        file = OutputFile(str(path), spooled=suffix in files.SPOOLED)
        report.write_to(writer_for(suffix, file), file)
        report.grow()
        assert not path.exists()
        for number in range(3):
            report.add(row_of("image", path=f"{number}.jpg", score=0.5))
            assert [row["path"] for row in read_rows(str(path))] == [f"{n}.jpg" for n in range(number + 1)]
        report.complete = True
    assert len(list(read_rows(str(path)))) == 3
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.skipif(sys.platform == "win32", reason="needs locks of files")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_it_does_not_go_on_with_what_another_run_still_writes(
    tmp_path: Path, pictures: Path, bundle_dir: Path, suffix: str
) -> None:
    path = tmp_path / f"a.{suffix}"
    with Report() as report:
        file = OutputFile(str(path), spooled=suffix in files.SPOOLED)
        report.write_to(writer_for(suffix, file), file)
        report.grow()
        report.add(row_of("image", path="0.jpg", score=0.5))
        done = run_here("score", pictures, "-o", path, "--resume", "--bundle", bundle_dir)
        assert done.returncode == 1
        assert b"another run still writes" in done.stderr
        report.add(row_of("image", path="1.jpg", score=0.5))
        report.complete = True
    assert len(list(read_rows(str(path)))) == 2


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kept", [3, COUNT])
def test_it_scores_what_the_file_has_not(
    tmp_path: Path, pictures: Path, bundle_dir: Path, suffix: str, kept: int
) -> None:
    whole, part = tmp_path / f"whole.{suffix}", tmp_path / f"part.{suffix}"
    (tmp_path / "set").symlink_to(pictures)
    assert run_here("score", "set", "-o", whole, "--bundle", bundle_dir, cwd=tmp_path).returncode == 3
    names = [row["path"] for row in read_rows(str(whole))]
    run_here("score", *names[:kept], "-o", part, "--bundle", bundle_dir, cwd=tmp_path)
    before = {row["path"]: row["ms"] for row in read_rows(str(part)) if row["score"] is not None}
    done = run_here("score", "set", "-o", part, "--bundle", bundle_dir, "--resume", cwd=tmp_path)
    assert done.returncode == 3
    assert facts(part) == facts(whole)
    assert len(facts(part)) == COUNT
    assert all(row["ms"] == before[row["path"]] for row in read_rows(str(part)) if row["path"] in before)


def test_rows_that_were_left_behind_are_taken_and_their_files_go(
    tmp_path: Path, pictures: Path, bundle_dir: Path
) -> None:
    whole, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    run_here("score", pictures, "-o", whole, "--bundle", bundle_dir)
    lines = whole.read_bytes().splitlines(keepends=True)
    part.write_bytes(b"".join(lines[:5]))
    (tmp_path / "part.partial-00000000.jsonl").write_bytes(b"".join(lines[2:7]) + lines[7][:40])
    (tmp_path / "part.partial-11111111.jsonl").write_bytes(b"")
    (tmp_path / "part.partial-22222222.jsonl").write_bytes(b'{"path": "a')
    run_here("score", pictures, "-o", part, "--bundle", bundle_dir, "--resume")
    assert facts(part) == facts(whole)
    assert left_behind(str(part)) == []


@pytest.mark.parametrize("suffix", ["parquet", "sqlite"])
def test_a_kill_while_a_file_is_made_of_its_rows_costs_nothing(
    tmp_path: Path, pictures: Path, bundle_dir: Path, suffix: str
) -> None:
    whole, part = tmp_path / f"whole.{suffix}", tmp_path / f"part.{suffix}"
    run_here("score", pictures, "-o", whole, "--bundle", bundle_dir)
    spooled = "".join(f"{json.dumps(row)}\n" for row in read_rows(str(whole)))
    made = tmp_path / f"part.partial-00000000.{suffix}"
    for data, lines in ((whole.read_bytes()[:1000], spooled), (whole.read_bytes(), "")):
        part.unlink(missing_ok=True)
        made.write_bytes(data)
        (tmp_path / "part.partial-11111111.jsonl").write_text(lines)
        done = run_here("score", pictures, "-o", part, "--bundle", bundle_dir, "--resume")
        assert done.returncode == 3, done.stderr
        assert times(part) == times(whole)
        assert left_behind(str(part)) == []


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_file_may_break_off_anywhere(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    file = OutputFile(str(path))
    writer = writer_for(suffix, file)
    for number in range(3):
        writer.write(row_of("image", path=f"{number}.jpg", score=0.5, key=f'=a,\r\n"{number}'))
    file.commit()
    data = path.read_bytes()
    last = data.rindex(b"\n2.jpg") + 1 if suffix == "csv" else data.rindex(b'{"path"')
    whole = len(data) - (suffix == "jsonl")  # its last line may lack its end
    for end in range(last, len(data) + 1):
        path.write_bytes(data[:end])
        rows = [row["path"] for row in rows_so_far(str(path))]
        assert rows == [f"{n}.jpg" for n in range(2 + (end >= whole))], end


def test_it_refuses_what_would_not_compare_and_what_is_no_file_of_rows(
    tmp_path: Path, pictures: Path, bundle_dir: Path
) -> None:
    path = tmp_path / "a.csv"
    command = ("score", pictures / "1.png", "-o", path, "--bundle", bundle_dir, "--resume")
    run_here(*command)
    held = path.read_bytes()
    for option, words in {"--tiling=official:2": b"would not compare", "--details": b"without --details"}.items():
        done = run_here(*command, option)
        assert (done.returncode, path.read_bytes()) == (1, held)
        assert words in done.stderr
    path.write_text("name,price\ntea,3\n")
    done = run_here(*command)
    assert (done.returncode, path.read_text()) == (1, "name,price\ntea,3\n")
    assert run_here("score", pictures, "--resume").returncode == 2


def test_images_that_failed_are_tried_again_and_the_others_are_kept(
    tmp_path: Path, pictures: Path, bundle_dir: Path
) -> None:
    late, path = tmp_path / "late.png", tmp_path / "a.csv"
    late.write_bytes(b"not yet")
    command = ("score", pictures / "0.png", late, "-o", path, "--bundle", bundle_dir, "--resume")
    assert run_here(*command).returncode == 3
    shutil.copy(pictures / "1.png", late)
    again = run_here(*command)
    assert again.returncode == 0
    assert b"1 scored now, 1 kept" in again.stderr
    assert [row["status"] for row in read_rows(str(path))] == ["ok", "ok"]
    done = run_here(*command, "--format", "json")
    assert b"0 scored now, 2 kept" in done.stderr
    assert b"images/s" not in done.stderr
    assert json.loads(done.stdout)["summary"]["images_per_second"] == 0


def test_verdicts_are_those_of_the_threshold_now(tmp_path: Path, pictures: Path, bundle_dir: Path) -> None:
    command = ("score", pictures / "1.png", "-o", tmp_path / "a.csv", "--bundle", bundle_dir)
    run_here(*command)
    assert run_here(*command, "--resume", "--fail-under", "1").returncode == 4
    assert [row["verdict"] for row in read_rows(str(tmp_path / "a.csv"))] == ["fail"]


def test_one_image_named_twice_has_two_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(row_of("image", path="./a.jpg", score=0.5)) + "\n")
    earlier = Earlier(str(tmp_path / "a.jsonl"))
    assert len(list(earlier.rows({}))) == 1
    left = list(earlier.rest([Input("a.jpg", "a.jpg"), Input("a.jpg", "a.jpg"), Input("t[0]", b"", key="a.jpg")]))
    assert [(item.name, item.key) for item in left] == [("a.jpg", None), ("t[0]", "a.jpg")]


def start(*arguments: object) -> subprocess.Popen[bytes]:
    paths = [str(Path(dgiqa.__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "dgiqa", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_kills_lose_and_double_nothing(tmp_path: Path, pictures: Path, bundle_dir: Path, suffix: str) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for copy in range(60):
        for picture in pictures.iterdir():
            shutil.copy(picture, many / f"{copy}-{picture.name}")
    whole, path = tmp_path / f"whole.{suffix}", tmp_path / f"a.{suffix}"
    run_here("score", many, "-o", whole, "--bundle", bundle_dir, "--threads", 1)
    command = ("score", many, "-o", path, "--bundle", bundle_dir, "--threads", 1, "--resume")
    moments = random.Random(suffix)
    kills = 0
    while kills < 3:
        process = start(*command)
        time.sleep(moments.uniform(0.5, 3))
        process.send_signal(signal.SIGKILL)
        kills += 1
        if process.wait() != -signal.SIGKILL:
            break
    assert start(*command).wait(PATIENCE_S) == 3
    assert facts(path) == facts(whole)
    assert left_behind(str(path)) == []
