"""Sets by shards: whole or not at all, once each, whatever ends a run and whoever scores."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import run_here
from numpy.typing import NDArray
from waiting import PATIENCE_S, until

import dgiqa
from dgiqa.batch import scan
from dgiqa.batch.scan import MARKER, Job, output_name, part_of, score_shard
from dgiqa.report.files import write_parquet
from dgiqa.report.read import read_rows
from dgiqa.scorer import Scorer
from dgiqa.sources import Input

pytest.importorskip("pyarrow")
EACH = 12


@pytest.fixture(scope="module")
def shards(
    tmp_path_factory: pytest.TempPathFactory, photos: dict[str, NDArray[np.uint8]], encode: Callable[..., bytes]
) -> Path:
    """Six tar shards of EACH images with their keys; one of them cannot be read."""
    folder = tmp_path_factory.mktemp("set")
    small = np.ascontiguousarray(photos["coffee"][::4, ::4])
    for shard in range(6):
        with tarfile.open(folder / f"{shard:03}.tar", "w") as archive:
            for number in range(EACH):
                data = encode(np.roll(small, 3 * (shard * EACH + number), 1))
                data = b"no image" if (shard, number) == (2, 5) else data
                for suffix, content in ((".png", data), (".json", b"{}")):
                    info = tarfile.TarInfo(f"é/{shard}.{number}"[:3] + f"-{number:02}{suffix}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, shards: Path, bundle_dir: Path) -> list[tuple[Any, ...]]:
    """(key, path, score, error) of an uninterrupted run."""
    out = tmp_path_factory.mktemp("whole")
    assert run_here("scan", f"{shards}/{{000..005}}.tar", "--out", out, "--bundle", bundle_dir).returncode == 3
    return facts(out)


def facts(out: Path) -> list[tuple[Any, ...]]:
    return sorted((row["path"], row["key"], row["score"], row["error"]) for row in read_rows(str(out)))


def test_every_shard_is_a_parquet_file_beside_its_marker(
    tmp_path: Path, shards: Path, bundle_dir: Path, whole: list[tuple[Any, ...]]
) -> None:
    import pyarrow.parquet

    done = run_here("scan", shards / "*.tar", "--out", tmp_path, "--bundle", bundle_dir)
    assert done.returncode == 3
    assert b"3/6" in done.stderr
    assert facts(tmp_path) == whole
    assert len(whole) == 6 * EACH
    assert sum(score is None for _, _, score, _ in whole) == 1
    name = output_name(str(shards / "002.tar"))
    assert sorted(os.listdir(tmp_path)) == sorted(
        output_name(str(shards / f"{n:03}.tar")) + end for n in range(6) for end in (".parquet", MARKER)
    )
    marker = json.loads((tmp_path / (name + MARKER)).read_text())
    assert (marker["rows"], marker["failed"], marker["left_out"]) == (EACH, 1, {".json": EACH})
    about = json.loads(pyarrow.parquet.read_metadata(tmp_path / f"{name}.parquet").metadata[b"dgiqa"])
    assert about["run"] == marker["settings"]
    assert about["run"]["preprocess_version"] == 1


def test_it_goes_on_after_what_is_done_and_says_when_it_may_not(tmp_path: Path, shards: Path, bundle_dir: Path) -> None:
    command = ("scan", f"{shards}/{{000..001}}.tar", "--out", tmp_path, "--bundle", bundle_dir)
    assert run_here(*command).returncode == 0
    first = output_name(str(shards / "000.tar"))
    before = (tmp_path / f"{first}.parquet").stat().st_mtime_ns
    (tmp_path / (output_name(str(shards / "001.tar")) + MARKER)).unlink()
    (tmp_path / f"{output_name(str(shards / '001.tar'))}.partial-0123abcd.jsonl").write_text("{}")
    again = run_here(*command)
    assert again.returncode == 1
    assert b"--resume goes on" in again.stderr
    other = run_here(*command, "--resume", "--tiling", "official:2")
    assert other.returncode == 1
    assert b"tiling was grid, now official:2; scores would not compare" in other.stderr
    resumed = run_here(*command, "--resume")
    assert resumed.returncode == 0
    assert b"1 of 2 shards are done" in resumed.stderr
    assert (tmp_path / f"{first}.parquet").stat().st_mtime_ns == before
    assert len(facts(tmp_path)) == 2 * EACH
    assert len(os.listdir(tmp_path)) == 4


@pytest.mark.parametrize("lacking", ["missing", "cut", "empty"])
def test_a_shard_that_is_missing_or_ends_early_is_not_done(
    tmp_path: Path, shards: Path, bundle_dir: Path, lacking: str
) -> None:
    late, out = tmp_path / "late.tar", tmp_path / "out"
    whole = (shards / "001.tar").read_bytes()
    if lacking != "missing":
        late.write_bytes(whole[: len(whole) // 2] if lacking == "cut" else b"")
    command = ("scan", shards / "000.tar", late, "--out", out, "--bundle", bundle_dir, "--resume")
    for _ in range(2):
        done = run_here(*command, "--quiet")
        assert done.returncode == 3
        assert f"error: {late}: ".encode() in done.stderr
        assert [row["path"] for row in read_rows(str(out)) if row["error"]] == [str(late)]
        assert not (out / (output_name(str(late)) + MARKER)).exists()
    assert (len(facts(out)) > EACH + 1) == (lacking == "cut")  # its rows so far are kept
    late.write_bytes(whole)
    assert run_here(*command).returncode == 0
    assert len(facts(out)) == 2 * EACH
    assert b"2 of 2 shards are done, 0 rows scored in this run" in run_here(*command).stderr


def test_a_folder_with_a_part_that_cannot_be_read_is_not_done(
    tmp_path: Path, bundle_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "set" / "closed").mkdir(parents=True)
    part = Input(str(tmp_path / "set" / "closed"), error="the folder cannot be read: Permission denied")
    monkeypatch.setattr(scan, "expand", lambda *_: iter([part, Input("bad.jpg", error="no image")]))
    done = run_here("scan", tmp_path / "set", "--out", tmp_path / "out", "--bundle", bundle_dir)
    assert f"{part.name}: {part.error}; it is not done".encode() in done.stderr
    assert not [name for name in os.listdir(tmp_path / "out") if name.endswith(MARKER)]


def test_processes_and_buckets_tell_a_missing_shard_too(tmp_path: Path, shards: Path, bundle_dir: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    command = ("scan", tmp_path / "gone.tar", "--bundle", bundle_dir)
    done = run_here(*command, "--out", "memory://without")
    assert done.returncode == 3
    assert b"gone.tar: no such file" in done.stderr
    assert [name.rpartition(".")[2] for name in fsspec.filesystem("memory").find("/without")] == ["parquet"]
    (tmp_path / "file").write_text("")
    refused = run_here(*command, "--out", tmp_path / "file")
    assert (refused.returncode, b"is a file; wanted a folder" in refused.stderr) == (1, True)


def test_machines_share_a_set_by_their_numbers(
    tmp_path: Path, shards: Path, bundle_dir: Path, whole: list[tuple[Any, ...]]
) -> None:
    for part in range(4):
        run_here("scan", shards / "*.tar", "--out", tmp_path, "--bundle", bundle_dir, "--shard", f"{part}/4")
    assert facts(tmp_path) == whole
    assert part_of("3/8") == (3, 8)
    for wrong in ("8/8", "1", "-1/2", "a/b", "0/0"):
        with pytest.raises(ValueError, match="wanted I/N"):
            part_of(wrong)


def test_shards_of_one_name_do_not_meet(tmp_path: Path) -> None:
    names = {output_name(name) for name in ("a/0.tar", "b/0.tar", "s3://x/0.tar", "s3://y/0.tar", "a/0.zip")}
    assert len(names) == 5
    assert all(name.startswith("0-") for name in names)


def test_a_table_and_a_folder_are_shards_too(tmp_path: Path, shards: Path, bundle_dir: Path, photos, encode) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").write_bytes(encode(photos["coffee"][::4, ::4]))
    (tmp_path / "t.csv").write_text("id,file\n007,set/a.png\n")
    sources = (tmp_path / "set", tmp_path / "t.csv")
    command = ("scan", *sources, "--out", tmp_path / "o", "--column", "file", "--key", "id", "--bundle", bundle_dir)
    assert run_here(*command).returncode == 0
    assert {row["key"] for row in read_rows(str(tmp_path / "o"))} == {None, "007"}


def test_results_go_into_a_bucket_and_are_found_there(tmp_path: Path, shards: Path, bundle_dir: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    command = ("scan", shards / "000.tar", "--out", "memory://scores", "--bundle", bundle_dir)
    assert run_here(*command).returncode == 0
    names = sorted(os.path.basename(name) for name in fsspec.filesystem("memory").find("/scores"))
    assert names == sorted(output_name(str(shards / "000.tar")) + end for end in (".parquet", MARKER))
    assert b"1 of 1 shards are done" in run_here(*command, "--resume").stderr


# The first process to write a row says which it is, and goes no further.
STANDS = """
import os, sys
class Finder:
    def find_spec(self, name, path, target=None):
        if name == "dgiqa.batch.scan":
            from dgiqa.report import files
            write = files.write_parquet
            def stands(row):
                try:
                    file = os.open({path!r}, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
                except FileExistsError:
                    return row
                os.write(file, str(os.getpid()).encode())
                import time; time.sleep(600)
            files.write_parquet = lambda rows, *rest: write(map(stands, rows), *rest)
            sys.meta_path.remove(self)
sys.meta_path.insert(0, Finder())
"""


def start(*arguments: object, path: Path | None = None) -> subprocess.Popen[bytes]:
    """path: a folder whose modules come first."""
    given = [str(path)] * (path is not None)
    paths = [*given, str(Path(dgiqa.__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "dgiqa", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, start_new_session=True)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_kills_at_random_moments_lose_and_double_nothing(
    tmp_path: Path, shards: Path, bundle_dir: Path, whole: list[tuple[Any, ...]], workers: int
) -> None:
    command = ("scan", shards / "*.tar", "--out", tmp_path, "--bundle", bundle_dir, "--resume", "--workers", workers)
    moments = random.Random(workers)
    for _ in range(10):
        process = start(*command)
        time.sleep(moments.uniform(0.1, 2.5))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert start(*command).wait(PATIENCE_S) == 3 or facts(tmp_path) == whole  # 0 where the broken row was done before
    assert facts(tmp_path) == whole


@pytest.mark.skipif(sys.platform == "win32", reason="needs locks of files")
def test_two_runs_with_one_output_do_not_take_each_others_files(
    tmp_path: Path, shards: Path, bundle_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second scores a shard that the first is in the middle of."""
    job = Job(str(tmp_path), {"bundle": str(bundle_dir)}, {})
    shard, once = str(shards / "000.tar"), threading.Event()

    def meanwhile(row: Any) -> Any:
        if not once.is_set():
            once.set()
            with Scorer(bundle_dir, threads=1) as other:
                score_shard(other, shard, job)
        return row

    monkeypatch.setattr(scan, "write_parquet", lambda rows, *rest: write_parquet(map(meanwhile, rows), *rest))
    with Scorer(bundle_dir, threads=1) as scorer:
        assert score_shard(scorer, shard, job).rows == EACH
    assert len(facts(tmp_path)) == EACH
    assert sorted(os.listdir(tmp_path)) == [output_name(shard) + suffix for suffix in (MARKER, ".parquet")]


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_nothing(
    tmp_path: Path, shards: Path, bundle_dir: Path, whole: list[tuple[Any, ...]]
) -> None:
    """It stands in the middle of a shard until it is killed, and the other has done a shard by then."""
    stands, out = tmp_path / "stands", tmp_path / "out"
    out.mkdir()
    (tmp_path / "sitecustomize.py").write_text(STANDS.format(path=str(stands)))
    process = start("scan", shards / "*.tar", "--out", out, "--bundle", bundle_dir, "--workers", 2, path=tmp_path)
    until(lambda: stands.exists() and stands.read_text())
    until(lambda: any(name.endswith(MARKER) for name in os.listdir(out)))
    os.kill(int(stands.read_text()), signal.SIGKILL)
    _, told = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 3, told
    assert facts(out) == whole


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a disk that is full")
def test_a_full_disk_leaves_no_marker(
    tmp_path: Path, shards: Path, bundle_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("scan", f"{shards}/{{000..001}}.tar", "--out", tmp_path, "--bundle", bundle_dir)
    count = 0

    def full(row: Any) -> Any:
        nonlocal count
        count += 1
        if count > EACH + 4:
            raise OSError(28, "No space left on device", "scores")
        return row

    monkeypatch.setattr(scan, "write_parquet", lambda rows, *rest: write_parquet(map(full, rows), *rest))
    ended = run_here(*command)
    assert ended.returncode == 1
    assert b"No space left" in ended.stderr
    monkeypatch.undo()
    assert len([name for name in os.listdir(tmp_path) if name.endswith(MARKER)]) == 1
    assert run_here(*command, "--resume").returncode == 0
    assert len({row["path"] for row in read_rows(str(tmp_path))}) == len(facts(tmp_path)) == 2 * EACH
