"""Runs the application on uvicorn until it is told to stop and has answered the requests that it accepted."""

import asyncio
import errno
import logging
import socket
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from dgiqa.errors import DgiqaError

CONNECTIONS = 1024  # more are answered 503
HEADERS_S = 10.0  # for a request's headers to arrive, after the connection or the request before it


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises DgiqaError for a port that is taken, and a wrong host."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise DgiqaError(
                f"port {port} of {host} is taken; choose another with --port (0 takes a free one)"
            ) from error
        why = str(error.strerror).partition(" (while")[0]  # Python repeats the address
        advice = "choose an address of this machine with --host, and a port that you may use with --port"
        raise DgiqaError(f"cannot listen on port {port} of {host} ({why}); {advice}") from error


def run(app: Any, listening: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT; then accept no more connections and answer every request that came."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    logging.getLogger("uvicorn.access").disabled = True  # the envelope's line says more
    options: dict[str, Any] = {"ws": "none", "log_config": None, "server_header": False}
    config = uvicorn.Config(app, http=Prompt, limit_concurrency=CONNECTIONS, **options)
    host, port = listening.getsockname()[:2]
    logging.info("running on http://%s:%d (Press CTRL+C to quit)", f"[{host}]" if ":" in host else host, port)
    uvicorn.Server(config).run([listening])


class Prompt(H11Protocol):
    """uvicorn's protocol, which by itself waits for headers as long as a client likes."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._late is not None:
            self._late.cancel()

    def _watch(self) -> None:
        """Close the connection in HEADERS_S unless its headers are complete by then."""
        waiting = self.conn.their_state is h11.IDLE
        if waiting and self._late is None:
            self._late = self.loop.call_later(HEADERS_S, self.transport.close)
        elif not waiting and self._late is not None:
            self._late.cancel()
            self._late = None
