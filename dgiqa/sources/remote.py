"""Addresses -> images: http(s) over a connection to the IP address that was checked, buckets by fsspec.

fsspec's own http follows redirects and resolves names by itself, so that a name could lead to a public machine when it
is checked and to a private one when it is fetched. Here a name is resolved once, and the connection uses that result.
"""

import contextlib
import http.client
import importlib
import io
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from dgiqa._version import __version__
from dgiqa.errors import ImageError
from dgiqa.extras import needs
from dgiqa.sources.inputs import Network, told

# Scheme -> (what fsspec calls it, the package that reads it)
BUCKETS = {
    "s3": ("s3", "s3fs"),
    "gs": ("gs", "gcsfs"),
    "gcs": ("gs", "gcsfs"),
    "az": ("az", "adlfs"),
    "abfs": ("abfs", "adlfs"),
    "hf": ("hf", "huggingface_hub"),
    "memory": ("memory", "fsspec"),
}
_EXTRAS = {"s3fs": "s3", "gcsfs": "gs", "adlfs": "az", "huggingface_hub": "hf", "fsspec": "hf"}
_PIECE = 1 << 16
_SLOWEST = 1024  # bytes a second of a whole archive or table, over the time spent waiting for it
_SAFE = "%/:=&?~#+!$,;'@()*[]"  # not quoted in an address, which may be quoted already
_LATE = "did not arrive within {:g} s; --timeout allows more"
_OFF = "is an address, and addresses are off; --remote turns them on"


class Fetched(io.BytesIO):
    """An image at an address. It is fetched when it is first read, in the thread that reads it."""

    def __init__(self, address: str, network: Network) -> None:
        super().__init__()
        self.name = address
        self._network: Network | None = network

    def read(self, size: int | None = -1, /) -> bytes:
        if self._network is not None:
            self.write(fetch(self.name, self._network))
            self.seek(0)
            self._network = None
        return super().read(size)


def fetch(address: str, network: Network) -> bytes:
    """The bytes at an address, at most `network.max_bytes` of them. Raises ImageError for anything that goes wrong."""
    with opened(address, network, deadline=True) as stream:
        data, until = bytearray(), time.monotonic() + network.timeout_s
        while piece := stream.read(_PIECE):
            data += piece
            if time.monotonic() > until:
                raise ImageError(_LATE.format(network.timeout_s))
            if len(data) > network.max_bytes:
                raise ImageError(
                    f"more than {network.max_bytes} bytes; wanted one image, --max-bytes allows larger ones"
                )
    return bytes(data)


@contextlib.contextmanager
def opened(address: str, network: Network | None, *, deadline: bool = False) -> Iterator[Any]:
    """A binary stream of the file at an address; from a bucket it can seek.

    deadline: all of it, and not only each piece, has to arrive within `network.timeout_s`. Raises ImageError.
    """
    scheme = allowed(address, network)
    assert network is not None
    if scheme in ("http", "https"):
        with _Request(address, network, whole=deadline) as response:
            yield io.BufferedReader(response)
        return
    try:
        system, path = bucket(address)
        size = system.size(path)
        if deadline and size is not None and size > network.max_bytes:
            raise ImageError(f"{size} bytes, limit {network.max_bytes}; --max-bytes allows larger ones")
        stream = system.open(path, "rb")
    except ImageError:
        raise
    except Exception as error:  # each library raises its own
        raise ImageError(f"cannot be fetched ({told(error)}); check the address and who may read it") from error
    with stream:
        yield stream


def allowed(address: str, network: Network | None) -> str:
    """The scheme of an address that may be fetched. Raises ImageError for any other."""
    scheme = address.partition("://")[0].lower()
    if scheme not in ("http", "https", *BUCKETS):
        raise ImageError(f"{scheme}:// is not fetched; wanted http, https, s3, gs, az or hf")
    if network is None:
        raise ImageError(_OFF)
    return scheme


def bucket(address: str) -> tuple[Any, str]:
    """(fsspec's file system, the path in it). Raises ImageError, which names the package, if that is missing."""
    scheme, _, rest = address.partition("://")
    protocol, package = BUCKETS[scheme.lower()]
    try:
        fsspec = importlib.import_module("fsspec")
        importlib.import_module(package)
    except ImportError as error:
        raise ImageError(needs(f"{scheme}://", package, _EXTRAS[package])) from error
    return fsspec.filesystem(protocol), rest if protocol != "memory" else f"/{rest}"


def matching(address: str, network: Network | None) -> list[str]:
    """The addresses of the files of a pattern or folder in a bucket; none if the address is a file."""
    scheme = allowed(address, network)
    if scheme in ("http", "https"):
        return []
    system, path = bucket(address)
    try:
        if any(mark in path for mark in "*?["):
            found = system.glob(path)
        elif address.endswith("/") or system.isdir(path):
            found = system.find(path)
        else:
            return []
    except Exception as error:
        raise ImageError(f"cannot be listed ({told(error)}); check the address and who may read it") from error
    return [f"{scheme}://{name.lstrip('/')}" for name in found]


class _Request(io.RawIOBase):
    """One GET with its redirects: a context manager that gives a stream.

    A timer closes the connection when the time is over, because a server that sends a byte now and then never makes a
    socket time out. whole: the time limit is for all of it, not for each piece.
    """

    def __init__(self, address: str, network: Network, *, whole: bool) -> None:
        super().__init__()
        self._network, self._whole = network, whole
        self._late = threading.Event()
        self._socket: socket.socket | None = None
        self._timer = threading.Timer(network.timeout_s, self._expire)
        self._timer.daemon = True
        self._waited_s, self._got = 0.0, 0
        self._response = self._open(address)
        self._left = self._response.length  # None where the server named no length

    def __exit__(self, *error: object) -> None:
        self._timer.cancel()
        self._response.close()
        if self._socket:
            self._socket.close()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        if self._left == 0:
            return 0
        begun = time.monotonic()
        try:  # not readinto, which waits until the buffer is full
            piece = self._response.read1(len(buffer))
        except (OSError, http.client.HTTPException) as error:
            raise self._failed(error) from error
        count = len(piece)
        buffer[:count] = piece
        self._waited_s, self._got = self._waited_s + time.monotonic() - begun, self._got + count
        self._left = None if self._left is None else self._left - count
        slow = self._waited_s > self._network.timeout_s and self._got < _SLOWEST * self._waited_s
        if slow and not self._whole:
            raise ImageError(f"comes too slowly, {self._got} bytes in {self._waited_s:.1f} s; fetch it first")
        if self._late.is_set():
            raise self._failed(TimeoutError())
        if not count and len(buffer) and self._left:
            raise ImageError(f"broke off, {self._left} bytes are missing; fetch it again")
        return count

    def _open(self, address: str) -> http.client.HTTPResponse:
        self._timer.start()
        try:
            for _ in range(self._network.redirects + 1):
                response = self._get(address)
                target = response.getheader("Location")
                if response.status not in (301, 302, 303, 307, 308) or not target:
                    break
                response.close()
                address = urljoin(address, target)
            else:
                raise ImageError(f"more than {self._network.redirects} redirects; give the address they lead to")
            if response.status != 200:
                raise ImageError(f"the server answered {response.status} {response.reason}; wanted 200")
            length = response.length
            if self._whole and length is not None and length > self._network.max_bytes:
                raise ImageError(f"{length} bytes, limit {self._network.max_bytes}; --max-bytes allows larger ones")
        except Exception as error:
            self._timer.cancel()
            if isinstance(error, OSError | http.client.HTTPException | ValueError):
                raise self._failed(error) from error
            raise
        if not self._whole:
            self._timer.cancel()
        return response

    def _get(self, address: str) -> http.client.HTTPResponse:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ImageError(f"leads to {address[:100]!r}, which is not fetched; wanted http or https")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname, parts.port or kind.default_port)
        self._socket = connected(connection.host, connection.port, self._network)
        if parts.scheme == "https":
            self._socket = ssl.create_default_context().wrap_socket(self._socket, server_hostname=parts.hostname)
        connection.sock = self._socket
        path = quote(parts.path or "/", safe=_SAFE) + (f"?{quote(parts.query, safe=_SAFE)}" if parts.query else "")
        headers = {"Accept": "image/*, */*;q=0.5", "User-Agent": f"dgiqa-rt/{__version__}", "Connection": "close"}
        connection.request("GET", path, headers=headers)
        return connection.getresponse()

    def _expire(self) -> None:
        self._late.set()
        if self._socket:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def _failed(self, error: Exception) -> ImageError:
        if self._late.is_set() or isinstance(error, TimeoutError):
            return ImageError(_LATE.format(self._network.timeout_s))
        return ImageError(f"cannot be fetched ({told(error)}); check the address")


def connected(host: str, port: int, network: Network) -> socket.socket:
    """A connection to a host, whose name is resolved once and whose IP address was checked.

    Raises ImageError if all of its addresses are private and that is not allowed, OSError if none answers.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    reachable = [entry for entry in found if network.private or is_public(str(entry[4][0]))]
    if not reachable:
        there = ", ".join(sorted({str(entry[4][0]) for entry in found})) or "nothing"
        raise ImageError(f"{host} leads to {there}, which is not a public address; --private-network allows it")
    failure: OSError = OSError(f"{host} does not answer")
    for family, kind, protocol, _, address in reachable:
        made = socket.socket(family, kind, protocol)
        made.settimeout(network.timeout_s)
        try:
            made.connect(address)
        except OSError as error:
            made.close()
            failure = error
        else:
            return made
    raise failure


def is_public(address: str) -> bool:
    """Whether an IP address, and any IPv4 address wrapped in it, belongs to the public internet."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        number = int(ip)
        wrapped = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        if number >> 32 in (0x64_FF9B << 64, 0):  # NAT64, and the old "IPv4-compatible" addresses
            wrapped.append(ipaddress.IPv4Address(number & 0xFFFF_FFFF))
        if not all(inner.is_global for inner in wrapped if inner is not None):
            return False
        if ip.ipv4_mapped is not None:
            return True
    return ip.is_global and not ip.is_multicast
