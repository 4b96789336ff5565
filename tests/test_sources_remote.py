"""Addresses: off unless asked for, never into private networks unless allowed, and within limits of every kind."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import socket
import socketserver
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from command import run_here
from numpy.typing import NDArray
from waiting import PATIENCE_S, SLACKS

from dgiqa.errors import ImageError
from dgiqa.sources import Input, Reading, expand
from dgiqa.sources.inputs import Network
from dgiqa.sources.remote import connected, fetch, is_public, opened

LOCAL = Network(private=True, timeout_s=PATIENCE_S)


class Site(http.server.BaseHTTPRequestHandler):
    """/bytes/N gives N bytes, /to/ADDRESS leads there, /loop to itself, /slow drips, /short breaks off."""

    seen: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.seen.append(self.path)
        kind, _, rest = self.path[1:].partition("/")
        if kind in ("to", "loop"):
            self.send_response(302)
            self.send_header("Location", rest if kind == "to" else "/loop")
            self.end_headers()
            return
        self.send_response(404 if kind == "gone" else 200)
        if kind == "short":
            self.send_header("Content-Length", "100")
        self.end_headers()
        with contextlib.suppress(OSError):
            if kind == "slow":  # without an end
                for _ in range(20 * PATIENCE_S):  # or until nobody listens
                    self.wfile.write(b"x")
                    time.sleep(0.05)
            self.wfile.write(self.server.files.get(self.path, b"i" * int(rest or 5) if kind == "bytes" else b"ok"))  # type: ignore[attr-defined]

    def log_message(self, *arguments: Any) -> None:
        pass


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    files: dict[str, bytes]


@pytest.fixture
def site() -> Iterator[tuple[str, dict[str, bytes]]]:
    server = Server(("127.0.0.1", 0), Site)
    server.files = {}
    Site.seen.clear()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", server.files
    server.shutdown()
    server.server_close()


def test_addresses_are_off_unless_asked_for(site: tuple[str, dict[str, bytes]], tmp_path: Path) -> None:
    address = f"{site[0]}/a.jpg"
    (tmp_path / "t.csv").write_text(f"image\n{address}\n")
    (tmp_path / "list.txt").write_text(f"{address}\n")
    for items in (
        expand([address]),
        expand([f"{address}.tar"]),
        expand([str(tmp_path / "t.csv")], reading=Reading(column="image")),
    ):
        (item,) = items
        assert "--remote turns them on" in item.error
    assert Site.seen == []


def test_an_address_is_fetched_when_it_is_read(site: tuple[str, dict[str, bytes]]) -> None:
    (item,) = expand([f"{site[0]}/bytes/7"], reading=Reading(network=LOCAL))
    assert Site.seen == []
    assert item.source.read() == b"i" * 7
    assert (item.source.tell(), item.source.seek(0), item.source.read(2)) == (7, 0, b"ii")
    assert Site.seen == ["/bytes/7"]


@pytest.mark.parametrize(
    ("path", "network", "words"),
    [
        ("/bytes/101", {"max_bytes": 100}, "limit|more than 100"),
        ("/loop", {}, "more than 5 redirects"),
        ("/to/file:///etc/passwd", {}, "wanted http or https"),
        ("/slow", {"timeout_s": 0.3}, "did not arrive within 0.3 s"),
        ("/short", {}, "broke off, 98 bytes"),
        ("/gone", {}, "answered 404"),
    ],
)
def test_limits(site: tuple[str, dict[str, bytes]], path: str, network: dict[str, Any], words: str) -> None:
    with pytest.raises(ImageError, match=words):
        fetch(site[0] + path, Network(**{"private": True, "timeout_s": PATIENCE_S, **network}))


def test_redirects_are_followed_and_checked_again(site: tuple[str, dict[str, bytes]]) -> None:
    assert fetch(f"{site[0]}/to/{site[0]}/bytes/3", LOCAL) == b"iii"


def test_private_addresses_are_refused_by_name_by_number_and_behind_redirects(
    site: tuple[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = site[0].rpartition(":")[2]
    for host in ("127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1", "0.0.0.0"):
        with pytest.raises(ImageError, match=r"not a public address|cannot be fetched"):
            fetch(f"http://{host}:{port}/bytes/1", Network(timeout_s=1))
    assert Site.seen == []


def test_a_name_is_resolved_once_and_what_was_resolved_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that answers with a public address first and with a private one from then on."""
    asked: list[str] = []
    went: list[Any] = []

    def rebinding(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        address = "93.184.215.14" if len(asked) == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: went.append(address))
    connected("rebind.example", 80, Network()).close()
    assert (asked, went) == (["rebind.example"], [("93.184.215.14", 80)])
    with pytest.raises(ImageError, match=r"leads to 127\.0\.0\.1, which is not a public address"):
        connected("rebind.example", 80, Network())
    assert len(went) == 1


def test_of_several_addresses_only_public_ones_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    went: list[Any] = []
    both = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 80)) for ip in ("10.0.0.1", "93.184.215.14")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: went.append(address[0]))
    connected("both.example", 80, Network()).close()
    assert went == ["93.184.215.14"]


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "10.1.2.3",
            "192.168.0.1",
            "172.16.0.1",
            "169.254.169.254",
            "0.0.0.0",
            "100.64.0.1",
            "224.0.0.1",
        ),
        *("::1", "::", "fe80::1%eth0", "fc00::1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "2002:7f00:1::"),
        *("64:ff9b::7f00:1", "::7f00:1", "ff02::1", "2001:db8::1"),
    ],
)
def test_private_addresses_in_every_dress(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f:cb07::1", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)


def test_other_schemes_are_refused() -> None:
    for address in ("file:///etc/passwd", "ftp://host/a.jpg", "sftp://host/a.jpg"):
        (item,) = expand([address], reading=Reading(network=LOCAL))
        assert "is not fetched; wanted http" in item.error


def test_a_bucket_gives_files_patterns_folders_and_shards(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    bucket = fsspec.filesystem("memory")
    shard = tmp_path / "s.tar"
    with tarfile.open(shard, "w") as archive:
        (tmp_path / "k.jpg").write_bytes(b"image")
        archive.add(tmp_path / "k.jpg", "a/k.jpg")
    bucket.pipe({"/set/10.jpg": b"ten", "/set/9.jpg": b"nine", "/set/x.txt": b"", "/set/s.tar": shard.read_bytes()})
    bucket.pipe("/set/t.csv", b"image,id\nmemory://set/9.jpg,nine\n")

    def found(*arguments: str, **options: Any) -> list[Input]:
        return list(expand(arguments, reading=Reading(network=Network(), **options)))

    assert [item.name for item in found("memory://set/*.jpg")] == ["memory://set/9.jpg", "memory://set/10.jpg"]
    assert [item.key or item.name for item in found("memory://set/")] == [
        *("memory://set/9.jpg", "memory://set/10.jpg", "a/k")
    ]
    assert [item.source.read() for item in found("memory://set/{9,10}.jpg")] == [b"nine", b"ten"]
    (item,) = found("memory://set/t.csv", column="image", key="id")
    assert (item.key, item.source.read()) == ("nine", b"nine")
    with pytest.raises(ImageError, match="limit 2"):
        fetch("memory://set/9.jpg", Network(max_bytes=2))
    with pytest.raises(ImageError, match="cannot be fetched"):
        fetch("memory://set/gone.jpg", Network())


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ImageError, match=r"gs:// needs gcsfs; pip install \"dgiqa-rt\[gs\]\""):
        fetch("gs://bucket/a.jpg", Network())


def test_a_stream_without_an_end_that_only_drips_is_left(site: tuple[str, dict[str, bytes]]) -> None:
    told = ""
    for slack in SLACKS:
        if "too slowly" not in told:  # nothing came at all
            with (
                pytest.raises(ImageError) as found,
                opened(site[0] + "/slow", replace(LOCAL, timeout_s=0.3 * slack)) as s,
            ):
                s.read()
            told = str(found.value)
    assert "comes too slowly" in told


def test_images_of_a_server_and_of_its_shards_and_tables_are_scored(
    tmp_path: Path,
    site: tuple[str, dict[str, bytes]],
    bundle_dir: Path,
    photos: dict[str, NDArray[np.uint8]],
    encode: Callable[..., bytes],
) -> None:
    address, files = site
    picture = encode(photos["coffee"][::4, ::4])
    (tmp_path / "k.png").write_bytes(picture)
    with tarfile.open(tmp_path / "s.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "k.png", "a/k.png")
    files["/a%20b.png?x=1"] = picture
    files["/s.tar.gz"] = (tmp_path / "s.tar.gz").read_bytes()
    files["/t.csv"] = f"id,image\n\u00e9,{address}/a%20b.png?x=1\n".encode()
    sources = [f"{address}/a%20b.png?x=1", f"{address}/s.tar.gz", f"{address}/t.csv", f"{address}/gone/x"]
    done = run_here(
        *("score", *sources, "--remote", "--private-network", "--column", "image", "--key", "id"),
        *("--bundle", bundle_dir, "-f", "jsonl"),
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["key"], row["status"]) for row in rows] == [
        *((None, "ok"), ("a/k", "ok"), ("\u00e9", "ok"), (None, "error"))
    ]
    assert len({row["score"] for row in rows[:3]}) == 1
    off = run_here("score", *sources[:1], "--private-network", "--bundle", bundle_dir, "-f", "jsonl")
    assert "--remote turns them on" in json.loads(off.stdout)["error"]
    refused = run_here("score", *sources[:1], "--remote", "--bundle", bundle_dir, "-f", "jsonl")
    assert "not a public address" in json.loads(refused.stdout)["error"]


def test_s3_is_read_through_s3fs(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {"URL": f"http://{host}:{port}"}.items():
            monkeypatch.setenv(f"AWS_ENDPOINT_{name}", value)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        import s3fs

        system = s3fs.S3FileSystem()
        system.mkdir("shots")
        system.pipe("shots/é 1.jpg", b"image")
        reading = Reading(network=Network())
        items = list(expand(["s3://shots/*.jpg"], reading=reading))
        assert [(item.name, item.source.read()) for item in items] == [("s3://shots/é 1.jpg", b"image")]
        assert os.environ["AWS_ENDPOINT_URL"]
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("address", "port"),
    [("http://a.test/b.jpg", 80), ("https://a.test/b.jpg", 443), ("https://a.test:8443/b.jpg", 8443)],
)
def test_an_address_without_a_port_has_that_of_its_scheme(
    address: str, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def nobody(host: str, port: int, network: Network) -> Any:
        asked.append((host, port))
        raise OSError("nobody is there")

    monkeypatch.setattr("dgiqa.sources.remote.connected", nobody)
    with pytest.raises(ImageError, match="nobody is there"):
        fetch(address, LOCAL)
    assert asked == [("a.test", port)]
