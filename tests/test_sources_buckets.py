"""Buckets of other people's servers: shards are read from and scores written to Moto's S3, and gone on with there."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import run_here
from numpy.typing import NDArray

from dgiqa.batch.scan import MARKER, output_name
from dgiqa.report.read import read_rows

pytest.importorskip("s3fs")
pytest.importorskip("pyarrow")
moto = pytest.importorskip("moto.server")
EACH = 3


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """An S3 of this machine, with two buckets."""
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_DEFAULT_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (keys | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}).items():
            patch.setenv(name, value)
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        system = s3fs.S3FileSystem()
        for name in ("set", "scores"):
            system.mkdir(name)
        yield system
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_a_set_of_shards_is_scored_from_bucket_to_bucket(
    s3: Any, tmp_path: Path, photos: dict[str, NDArray[np.uint8]], encode: Callable[..., bytes], bundle_dir: Path
) -> None:
    small = np.ascontiguousarray(photos["coffee"][::4, ::4])
    for shard in range(4):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for number in range(EACH):
                data = encode(np.roll(small, 7 * (shard * EACH + number), 1)) if (shard, number) != (1, 1) else b"no"
                info = tarfile.TarInfo(f"é/{shard}-{number}.png")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        s3.pipe_file(f"set/{shard:03}.tar", stream.getvalue())
        (tmp_path / f"{shard:03}.tar").write_bytes(stream.getvalue())
    command = ("scan", "s3://set/{000..003}.tar", "--remote", "--out", "s3://scores/run", "--bundle", bundle_dir)
    done = run_here(*command)
    assert done.returncode == 3, done.stderr
    names = [output_name(f"s3://set/{shard:03}.tar") for shard in range(4)]
    assert sorted(os.path.basename(path) for path in s3.find("scores/run")) == sorted(
        name + suffix for name in names for suffix in (".parquet", MARKER)
    )
    s3.get("scores/run/", str(tmp_path / "fetched"), recursive=True)
    run_here("scan", tmp_path / "*.tar", "--out", tmp_path / "here", "--bundle", bundle_dir)
    assert facts(tmp_path / "fetched") == facts(tmp_path / "here")
    s3.rm_file(f"scores/run/{names[2]}{MARKER}")
    again = run_here(*command, "--resume")
    assert b"3 of 4 shards are done" in again.stderr
    assert b"4 of 4 shards done, 3 rows now" in again.stderr
    globbed = run_here("score", "s3://set/00[01].tar", "--remote", "--bundle", bundle_dir, "-f", "jsonl")
    assert globbed.stdout.count(b'"status": "ok"') == 2 * EACH - 1


def test_a_bucket_that_is_not_there_is_a_row(s3: Any, bundle_dir: Path) -> None:
    done = run_here("score", "s3://no-such/a.jpg", "--remote", "--bundle", bundle_dir, "-f", "jsonl")
    assert done.returncode == 3
    assert b"cannot be" in done.stdout


def facts(folder: Path) -> list[tuple[Any, ...]]:
    return sorted((row["key"], row["score"], os.path.basename(row["error"])) for row in read_rows(str(folder)))
