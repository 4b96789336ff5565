"""Wraps every request: an id, the token, the count and the log, and an answer whatever happens inside.

An answer waits until the request's body is read off the connection, even if it is not used. A client that still sends
when the connection is closed gets a reset instead of the answer: at four times the load, one 429 in a thousand.
"""

import hmac
import logging
import re
import time
import uuid

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dgiqa.serve.metrics import Metrics

LOG = logging.getLogger("dgiqa.serve")
PROBES = ("/v2/health/live", "/v2/health/ready")
OPEN = ("/", *PROBES)  # without a token: the page asks for it
LINGER_S, LINGER_BYTES = 2.0, 8 << 20  # how much of an unwanted body is read
_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
SAFETY = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Envelope:
    """ASGI middleware around the application. token: None if no token is needed."""

    def __init__(self, app: ASGIApp, metrics: Metrics, token: str | None) -> None:
        self.app, self.metrics, self.token = app, metrics, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0
        headers = Headers(scope=scope)
        identity = headers.get("x-request-id", "")
        identity = identity if _ID.fullmatch(identity) else uuid.uuid4().hex
        body = _Body(receive, wanted="expect" not in headers)  # such a client waits to be told before it sends

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                await body.discard()
                status = message["status"]
                message.setdefault("headers", [])
                MutableHeaders(scope=message).update({"X-Request-ID": identity} | SAFETY)
            await send(message)

        given, wanted = headers.get("authorization", ""), f"Bearer {self.token}"
        # Compared in a time that does not depend on how much of it is right.
        known = self.token is None or hmac.compare_digest(given.encode("latin-1"), wanted.encode())
        try:
            if scope["path"] not in OPEN and not known:
                scope["cause"] = "unauthorized"
                sent = given.lower().startswith("bearer ")
                error = {"error": "the token is wrong" if sent else "wanted the header Authorization: Bearer TOKEN"}
                await JSONResponse(error, 401, {"WWW-Authenticate": "Bearer"})(scope, body.receive, sending)
            else:
                await self.app(scope, body.receive, sending)
        except Exception:
            LOG.exception("id=%s", identity)
            scope["cause"] = "failed"
            if not status:
                error = {"error": f"the server failed; its log has request {identity}"}
                await JSONResponse(error, 500)(scope, body.receive, sending)
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "other")
            outcome = scope.get("cause") or ("ok" if 200 <= status < 300 else "not ready")
            self.metrics.requests.labels(route, outcome).inc()
            self.metrics.seconds.labels(route).observe(seconds)
            told = (identity, scope["method"], scope["path"], status, outcome, seconds * 1e3)
            level = logging.DEBUG if scope["path"] in PROBES else logging.INFO
            LOG.log(level, "id=%s method=%s path=%r status=%d outcome=%r ms=%.1f", *told)


class _Body:
    """A client's request body. wanted: whether more of it comes."""

    def __init__(self, receive: Receive, *, wanted: bool) -> None:
        self._receive, self.wanted = receive, wanted

    async def receive(self) -> Message:
        message = await self._receive()
        self.wanted = message["type"] == "http.request" and message.get("more_body", False)
        return message

    async def discard(self) -> None:
        """Read the rest, within bounds, and drop it."""
        most = LINGER_BYTES
        with anyio.move_on_after(LINGER_S):
            while self.wanted and most > 0:
                most -= len((await self.receive()).get("body", b""))
        self.wanted = False
