"""The server, over real connections: what it answers, what it refuses, and that nothing makes it fall over."""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import contextlib
import http.client
import io
import itertools
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from command import run_here
from holding import held
from PIL import Image
from waiting import PATIENCE_S, SLACKS, until

import dgiqa
from dgiqa.bundle import Bundle
from dgiqa.report.rows import COLUMNS, columns
from dgiqa.scorer import Scorer
from dgiqa.sources.inputs import Network

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")

from dgiqa.serve import envelope, intake  # noqa: E402
from dgiqa.serve import run as running  # noqa: E402
from dgiqa.serve.app import create_app  # noqa: E402
from dgiqa.serve.intake import Limits  # noqa: E402
from dgiqa.serve.metrics import Metrics  # noqa: E402

ROOT = Path(dgiqa.__file__).parent.parent
BODY = 1 << 20


class Server:
    """A server in a thread. ask() -> (status, headers, body)."""

    def __init__(self, scorer: Scorer, limits: Limits, *, warm: bool = True, **options: Any) -> None:
        self.scorer = scorer
        app = create_app(scorer, limits, **options)
        config = uvicorn.Config(app, "127.0.0.1", 0, http=running.Prompt, ws="none", log_config=None)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        until(lambda: self.server.started)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        if warm:
            until(lambda: self.ask("GET", "/v2/health/ready")[0] == 200)

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        """(status, JSON document) of a POST; header names with _ for -."""
        status, _, answer = self.ask("POST", path, body, {k.replace("_", "-"): v for k, v in headers.items()})
        return status, json.loads(answer)

    def raw(self, data: bytes, *, end: bool = False) -> bytes:
        """What comes back on a connection of its own for these very bytes. end: say that no more will come."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S) as connection:
            answer = b""
            with contextlib.suppress(ConnectionError):  # of a server that answered before it had everything
                connection.sendall(data)
                if end:
                    connection.shutdown(socket.SHUT_WR)
                while piece := connection.recv(1 << 16):
                    answer += piece
            return answer

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture(scope="module")
def scorer(tiny_bundle: Bundle) -> Iterator[Scorer]:
    with Scorer(tiny_bundle, threads=2, max_pixels=1_000_000) as scorer:
        yield scorer


@pytest.fixture(scope="module")
def server(scorer: Scorer) -> Iterator[Server]:
    server = Server(scorer, Limits(8, body=BODY, images=4, timeout_s=PATIENCE_S))
    yield server
    server.close()


@pytest.fixture(scope="module")
def hasty(scorer: Scorer) -> Iterator[Server]:
    server = Server(scorer, Limits(8, body=BODY, timeout_s=0.3))
    yield server
    server.close()


@pytest.fixture(scope="module")
def photo() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def form(*files: tuple[str, bytes], boundary: str = "b") -> tuple[bytes, dict[str, str]]:
    parts = b"".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="f"; filename="{name}"\r\n\r\n'.encode() + data + b"\r\n"
        for name, data in files
    )
    return parts + f"--{boundary}--\r\n".encode(), {"Content_Type": f"multipart/form-data; boundary={boundary}"}


# ---- what it answers ----


def test_bytes_forms_and_json_give_the_row_that_the_scorer_gives(server: Server, photo: bytes) -> None:
    wanted = server.scorer.score(photo, name="a.png").as_row()
    body, headers = form(("a.png", photo))
    document = json.dumps({"name": "a.png", "data": base64.b64encode(photo).decode()})
    for status, row in (
        server.post("/score?name=a.png", photo),
        server.post("/score", body, **headers),
        server.post("/score", document, Content_Type="application/json"),
    ):
        assert status == 200
        assert tuple(row) == COLUMNS
        assert row | {"ms": 0} == wanted | {"ms": 0}


def test_verdicts_and_details_are_asked_for_in_the_address(server: Server, photo: bytes) -> None:
    assert [server.post(f"/score?gate={gate}", photo)[1]["verdict"] for gate in (0, 1)] == ["pass", "fail"]
    assert tuple(server.post("/score?details=true", photo)[1]) == columns("image", details=True)
    assert "presett" in server.post("/score?presett=upload", photo)[1]["error"]
    wrong = ("gate=2", "gate=nan", "preset=none", "gate=0.5&preset=upload", "details=perhaps", "presett=upload")
    for query in wrong:
        status, answer = server.post(f"/score?{query}", photo)
        assert status == 400
        assert answer["error"]
    assert server.post("/score?gate=5", photo)[1]["error"].startswith("gate: got '5'; ")


def test_a_batch_has_a_row_per_image_in_order_and_a_summary(server: Server, photo: bytes) -> None:
    body, headers = form(("a", photo), ("b", b"no image"), ("c", photo))
    status, answer = server.post("/score/batch?gate=0", body, **headers)
    assert status == 200
    assert [(row["path"], row["status"], row["verdict"]) for row in answer["rows"]] == [
        ("a", "ok", "pass"),
        ("b", "error", None),
        ("c", "ok", "pass"),
    ]
    assert (answer["summary"]["scored"], answer["summary"]["failed"]) == (2, 1)


def test_the_interface_describes_itself_without_other_hosts(server: Server) -> None:
    for path in ("/", "/docs"):
        status, headers, body = server.ask("GET", path)
        assert status == 200
        assert not re.search(rb"(src|href)=.?(https?:)?//", body)
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
    assert b"POST /score/batch" in body
    assert all(f"<th>{code}</th>".encode() in body for code in (400, 401, 403, 408, 413, 415, 422, 429, 503, 504))
    document = json.loads(server.ask("GET", "/openapi.json")[2])
    assert {"/score", "/score/batch", "/v2/models/{name}/infer", "/metrics"} <= set(document["paths"])
    row = document["paths"]["/score"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert tuple(row["properties"]) == columns("image", details=True)


def test_request_ids_are_echoed_made_and_logged(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "dgiqa.serve"):
        assert server.ask("GET", "/v2", None, {"X-Request-ID": "abc-1"})[1]["x-request-id"] == "abc-1"
        made = server.ask("GET", "/v2", None, {"X-Request-ID": "a b\x01" + "x" * 200})[1]["x-request-id"]
        server.raw(b"GET /v2/%0aid=forged HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert re.fullmatch("[0-9a-f]{32}", made)
    assert "id=abc-1 method=GET path='/v2' status=200 outcome='ok'" in caplog.text
    assert made in caplog.text
    assert "\nid=forged" not in caplog.text


def test_outcomes_are_counted_by_cause(server: Server, photo: bytes) -> None:
    server.post("/score", photo)
    server.post("/score", b"no image")
    server.post("/score", bytes(BODY + 1))
    text = server.ask("GET", "/metrics")[2].decode()
    for line in (
        r'dgiqa_requests_total\{outcome="ok",route="/score"\}',
        r'dgiqa_requests_total\{outcome="no image",route="/score"\}',
        r'dgiqa_requests_total\{outcome="too large",route="/score"\}',
        r'dgiqa_images_total\{outcome="ImageError"\}',
        r'dgiqa_request_seconds_bucket\{le="0.1",route="/score"\}',
        r'dgiqa_batch_tiles_bucket\{le="8.0"\}',
        r"dgiqa_score_count",
        r"dgiqa_pending_images",
    ):
        assert re.search(rf"^{line} \d", text, re.MULTILINE), line


def test_a_token_is_wanted_everywhere_but_for_probes_and_the_page(scorer: Scorer, photo: bytes) -> None:
    server = Server(scorer, Limits(4), token="secret-é")
    try:
        assert [server.ask("GET", path)[0] for path in ("/", "/v2/health/live", "/metrics", "/docs")] == [
            200,
            200,
            401,
            401,
        ]
        for sent in ("", "Bearer wrong", "secret", "Basic x"):
            status, answer = server.post("/score", photo, Authorization=sent)
            assert status == 401
            assert ("the token is wrong" in answer["error"]) == (sent == "Bearer wrong")
        right = "Bearer secret-é".encode().decode("latin-1")
        assert server.ask("POST", "/score", photo, {"Authorization": right})[0] == 200
    finally:
        server.close()


# ---- addresses ----


@pytest.fixture
def elsewhere(photo: bytes) -> Iterator[str]:
    """An http server on this machine that has the photo."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(photo)

        def log_message(self, *_: Any) -> None:
            pass

    other = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{other.server_port}/a.png"
    other.shutdown()


def test_addresses_are_off_then_public_only_and_never_a_bucket(server: Server, scorer: Scorer, elsewhere: str) -> None:
    def asked(of: Server, url: str) -> tuple[int, Any]:
        return of.post("/score", json.dumps({"url": url}), Content_Type="application/json")

    assert asked(server, elsewhere)[0] == 403
    limits = Limits(4, body=50_000)
    public, private = (Server(scorer, limits, network=Network(private=p)) for p in (False, True))
    try:
        status, answer = asked(public, elsewhere)
        assert status == 422
        assert "not a public address" in answer["error"]
        status, row = asked(private, elsewhere)
        assert (status, row["path"]) == (200, elsewhere)
        two = json.dumps({"images": [{"url": elsewhere}] * 2})
        assert private.post("/score/batch", two, Content_Type="application/json")[0] == 413  # together too large
        for url in ("s3://bucket/a.png", "memory://a", "file:///etc/passwd", "/etc/passwd"):
            assert asked(private, url)[0] == 403
    finally:
        public.close()
        private.close()


# ---- load ----


def test_a_full_queue_says_come_later_and_loses_nothing(server: Server, photo: bytes) -> None:
    with concurrent.futures.ThreadPoolExecutor(24) as threads:
        with held(server.scorer):
            answers = [threads.submit(server.ask, "POST", "/score", photo) for _ in range(24)]
            until(lambda: sum(answer.done() for answer in answers) >= 16)
            early = [answer.result() for answer in answers if answer.done()]
            assert {status for status, _, _ in early} == {429}
            assert all(int(headers["retry-after"]) >= 1 for _, headers, _ in early)
            assert server.post("/score", b"{", Content_Type="application/json")[0] == 429, "before the body is read"
        statuses = sorted(answer.result()[0] for answer in answers)
    assert statuses == [200] * 8 + [429] * 16


@pytest.mark.parametrize(("headers", "read"), [([], 4), ([(b"expect", b"100-continue")], 0)])
def test_a_refusal_waits_until_the_body_is_off_the_connection(headers: list[tuple[bytes, bytes]], read: int) -> None:
    done: list[str] = []

    async def receive() -> dict[str, Any]:
        done.append("read")
        return {"type": "http.request", "body": b"x", "more_body": len(done) < 4}

    async def send(message: Any) -> None:
        done.append(message["type"])

    from starlette.responses import JSONResponse

    async def refuses(scope: Any, receive: Any, send: Any) -> None:
        await JSONResponse({"error": "the queue is full"}, 429)(scope, receive, send)

    scope = {"type": "http", "method": "POST", "path": "/score", "headers": headers}
    app = envelope.Envelope(refuses, Metrics(lambda: 0, version="", bundle="", backend=""), None)
    asyncio.run(app(scope, receive, send))
    assert done == ["read"] * read + ["http.response.start", "http.response.body"]


def test_what_is_not_scored_in_time_is_504(server: Server, photo: bytes) -> None:
    status = 408
    for slack in SLACKS:
        if status == 408:  # not even the body came in time
            hasty = Server(server.scorer, Limits(8, body=BODY, timeout_s=0.3 * slack))
            with held(server.scorer):
                status = hasty.post("/score", photo)[0]
            hasty.close()
    assert status == 504
    assert server.post("/score", photo)[0] == 200


def test_it_is_not_ready_before_a_first_picture_went_through(tiny_bundle: Bundle, photo: bytes) -> None:
    with Scorer(tiny_bundle, threads=1) as scorer:
        with held(scorer):
            server = Server(scorer, Limits(2), warm=False)
            assert [server.ask("GET", f"/v2/health/{word}")[0] for word in ("live", "ready")] == [200, 503]
            assert server.ask("POST", "/score", photo)[0] == 503
        until(lambda: server.ask("GET", "/v2/health/ready")[0] == 200)
        server.close()


def test_networks_that_fail_are_never_ready_and_soon_not_alive(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(scorer.inbox), "alive", property(lambda self: False))
    server = Server(scorer, Limits(2), warm=False)
    assert [server.ask("GET", f"/v2/health/{word}")[0] for word in ("live", "ready")] == [503, 503]
    server.close()


SERVE = [sys.executable, "-m", "dgiqa", "serve", "--port", "0"]


# Eight pictures behind the first one are not scored before a signal came.
UNTIL_A_SIGNAL = """
import sys, threading
import uvicorn
from dgiqa.cli import main
from dgiqa.forward import Networks
from dgiqa.inbox import Inbox
score, submit, exit, taken, told = Networks.score, Inbox.submit, uvicorn.Server.handle_exit, [], threading.Event()
def submitted(*arguments, **options):
    future = submit(*arguments, **options)
    taken.append(future)
    if len(taken) == 9: print("all are taken", file=sys.stderr, flush=True)
    return future
Inbox.submit = submitted
Networks.score = lambda *arguments: (len(taken) == 1 or told.wait(), score(*arguments))[1]
uvicorn.Server.handle_exit = lambda *arguments: (exit(*arguments), told.set())[0]
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGTERM")
def test_a_signal_loses_no_request_that_was_taken(tiny_bundle: Bundle) -> None:
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (500, 600, 3), dtype=np.uint8)).save(noise, "PNG")
    place = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", UNTIL_A_SIGNAL, "serve", "--port", "0", "--bundle", str(tiny_bundle.path)]
    command += ["--queue", "100", "--threads", "1", "--request-timeout", str(PATIENCE_S)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=place)
    assert process.stderr is not None
    log: list[str] = []

    def logged(text: str) -> str:
        for line in process.stderr or ():
            log.append(line)
            if text in line:
                return line
        pytest.fail("".join(log))

    port = int(logged("running on http").partition("127.0.0.1:")[2].split()[0])
    logged("ready: ")

    def asked(_: int) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        connection.request("POST", "/score", noise.getvalue())
        return connection.getresponse().status

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        answers = [threads.submit(asked, i) for i in range(8)]
        logged("all are taken")
        process.send_signal(signal.SIGTERM)
        log += process.stderr
        assert [answer.result() for answer in answers] == [200] * 8
    assert process.wait(PATIENCE_S) == 0
    assert sum("status=200 outcome='ok'" in line and "'/score'" in line for line in log) == 8


def test_a_port_that_is_taken_is_an_error_of_ours() -> None:
    with running.listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        done = run_here("serve", "--port", port)
        assert done.returncode == 1
        told = f"error: port {port} of 127.0.0.1 is taken; choose another with --port (0 takes a free one)\n"
        assert done.stderr.decode() == told
    done = run_here("serve", "--host", "192.0.2.1", "--port", 0)  # of a network for documentation
    assert done.returncode == 1
    assert b"cannot listen on port 0 of 192.0.2.1 (Cannot assign requested address); " in done.stderr


# ---- strangers ----


def bomb() -> bytes:
    """A PNG of a few kilobytes that says it has 900 megapixels."""
    stream = io.BytesIO()
    Image.new("1", (8, 8)).save(stream, "PNG")
    data = bytearray(stream.getvalue())
    data[16:24] = (30000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def test_bombs_and_what_is_no_image_are_422_and_say_why(server: Server, photo: bytes) -> None:
    for data, told in ((bomb(), "30000"), (b"GIF89a", ""), (b"\xff\xd8\xff", ""), (photo[:60], ""), (b"{}", "")):
        status, row = server.post("/score", data)
        assert (status, row["status"]) == (422, "error")
        assert told in row["error"]
    assert server.post("/score", b"")[0] == 400


def test_bodies_over_the_limit_are_refused_by_their_header_and_by_their_length(server: Server) -> None:
    announced = b"POST /score HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999999\r\n\r\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(envelope, "LINGER_S", 0.1)
        assert server.raw(announced).startswith(b"HTTP/1.1 413 ")
    endless = b"POST /score HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"40000\r\n" + bytes(0x40000) + b"\r\n"
    assert server.raw(endless + 5 * chunk + b"0\r\n\r\n").startswith(b"HTTP/1.1 413 ")
    assert server.post("/score", b"[" * (intake.MAX_JSON // 8), Content_Type="application/json")[0] == 400


def test_slow_bodies_and_slow_headers_are_let_go(hasty: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = b"POST /score HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc"
    assert hasty.raw(begun).startswith(b"HTTP/1.1 408 ")
    monkeypatch.setattr(running, "HEADERS_S", 0.2)
    assert hasty.raw(b"POST /score HTTP/1.1\r\nHost: a\r\nX-Slow: ") == b""
    assert hasty.raw(b"") == b""
    for slack in SLACKS:
        monkeypatch.setattr(running, "HEADERS_S", 0.2 * slack)
        if answer := hasty.raw(b"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\nGET /v2 HTTP/1.1\r\nX-Slow"):
            break
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_bodies_that_break_off_are_nobodys_trouble(server: Server, photo: bytes) -> None:
    head = b"POST /score HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\n"
    server.raw(head + photo[:100], end=True)
    assert server.post("/score", photo)[0] == 200


def test_forms_that_are_none_are_refused(server: Server, photo: bytes) -> None:
    whole, headers = form(("a", photo))
    several, _ = form(*[("a", photo)] * 5)
    cases = [
        (whole[:-40], headers),  # truncated
        (whole, {"Content_Type": "multipart/form-data"}),  # without a boundary
        (whole, {"Content_Type": "multipart/form-data; boundary=other"}),
        (b"", headers),
        (several, headers),  # more than one batch may have
        (form(("x" * 2000, photo))[0], headers),
        (b'--b\r\nContent-Disposition: form-data; name="f"\r\n\r\nno file\r\n--b--\r\n', headers),
    ]
    for body, kind in cases:
        for path in ("/score", "/score/batch"):
            status, answer = server.post(path, body, **kind)
            assert status == 400, body[:80]
            assert answer["error"]
    body, headers = form(("../../etc/passwd", photo))
    assert server.post("/score", body, **headers)[1]["path"] == "../../etc/passwd"  # a label, and nothing else


def test_names_that_would_be_ignored_are_refused(server: Server, photo: bytes) -> None:
    data = base64.b64encode(photo).decode()
    for document in ({"data": data, "nmae": "a"}, {"images": [{"data": data}], "gate": 0.5}):
        status, answer = server.post("/score", json.dumps(document), Content_Type="application/json")
        assert (status, "gate, preset and details go into the address" in answer["error"]) == (400, True)
    body, headers = form(("a", photo))
    field = b'--b\r\nContent-Disposition: form-data; name="gate"\r\n\r\n0.5\r\n'
    assert server.post("/score", body, **headers)[0] == 200
    status, answer = server.post("/score", field + body, **headers)
    assert (status, answer["error"]) == (400, "unknown: gate; gate, preset and details go into the address")


def test_a_form_made_to_be_slow_to_read_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\n'
    body = (head + b"\r\n-" * (BODY // 3))[: BODY - 1]
    looks = itertools.count(0, PATIENCE_S // 4)  # so long is every piece
    monkeypatch.setattr(intake, "time", SimpleNamespace(monotonic=lambda: next(looks)))
    status, answer = server.post("/score", body, Content_Type="multipart/form-data; boundary=b")
    assert (status, "takes too long to read" in answer["error"]) == (408, True)


def test_json_that_is_none_is_refused(server: Server) -> None:
    for body in (
        *("", "{", "null", "3", "[]", "{}", '{"data": 3}', '{"data": "*"}', '{"data": "", "url": ""}', '{"images": 3}'),
        *(
            "[" * 100_000,
            json.dumps({"images": [{}] * 5}),
            '{"data": "QQ==", "name": 3}',
            "1" * 10_000,
            "\ud800",
        ),
    ):
        status, answer = server.post(
            "/score/batch", body.encode("utf-8", "surrogatepass"), Content_Type="application/json"
        )
        assert status == 400, body[:40]
        assert answer["error"]
    huge = b'"' + b"x" * (BODY - 2) + b'"'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intake, "MAX_JSON", 1 << 16)
        assert server.post("/score", huge, Content_Type="application/json")[0] == 413


def test_what_else_http_may_bring(server: Server, photo: bytes) -> None:
    assert server.ask("POST", "/score", photo, {"Content-Encoding": "gzip"})[0] == 415
    status, _, answer = server.ask("GET", "/score")
    assert (status, json.loads(answer)["error"]) == (405, "/score does not take GET; it takes POST")
    status, _, answer = server.ask("GET", "/scores")
    assert (status, json.loads(answer)["error"]) == (404, "there is no /scores here; GET /docs lists the addresses")
    for path in ("/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/v2/models/..%2f..%2fetc", "/v2/models/x/infer"):
        assert server.ask("GET", path)[0] in {404, 405}
    assert server.raw(b"\x16\x03\x01\x02\x00" + bytes(200)).startswith(b"HTTP/1.1 400 ")
    assert server.raw(b"GET / HTTP/1.1\r\n" + b"X: " + b"a" * 200_000).startswith(b"HTTP/1.1 400 ")
    assert server.post("/score?name=" + "x" * 2000, photo)[0] == 400


def test_a_bounded_fuzz_gets_answers_and_never_a_failure(server: Server, photo: bytes) -> None:
    """Damaged requests of every kind: 2xx or 4xx, and the server is well afterwards."""
    rng = random.Random(0)
    whole, _ = form(("a", photo), ("b", b"x"))
    tensor = {
        "inputs": [{"name": "IMAGE", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(photo).decode()]}]
    }
    seeds: list[tuple[str, bytes, dict[str, str]]] = [
        ("/score", photo, {}),
        ("/score/batch", whole, {"Content-Type": "multipart/form-data; boundary=b"}),
        ("/score", json.dumps({"data": "QUJD"}).encode(), {"Content-Type": "application/json"}),
        ("/v2/models/tiny/infer", json.dumps(tensor).encode(), {"Inference-Header-Content-Length": "100"}),
        ("/v2/models/tiny/infer", json.dumps(tensor).encode(), {}),
    ]
    statuses = set()
    for _ in range(200):
        path, body, headers = rng.choice(seeds)
        damaged = bytearray(body)
        for _ in range(rng.randrange(1, 8)):
            at = rng.randrange(len(damaged))
            damaged[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
        statuses.add(server.ask("POST", path, bytes(damaged[: rng.randrange(1, 2 * len(damaged))]), headers)[0])
    assert statuses <= {200, 400, 413, 422}
    assert server.post("/score", photo)[0] == 200
    assert server.scorer.inbox.pending == 0
