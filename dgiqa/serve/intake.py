"""Requests of strangers -> pairs (name, encoded image), or a RefusedError that says which limit or rule they broke."""

import asyncio
import base64
import binascii
import json
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import anyio
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from dgiqa.errors import ImageError
from dgiqa.machine import preparing_threads
from dgiqa.sources import remote
from dgiqa.sources.inputs import Network

MAX_JSON = 4 << 20  # bytes: parsing more would hold up all other requests
MAX_NAME = 1024
FETCHES = 16  # at a time: each has a thread
_PIECE = 1 << 16
Image = tuple[str, bytes]


@dataclass(frozen=True)
class Limits:
    """The limits of one request, and of all requests together.

    body: bytes of one request. received: bytes of all bodies that are coming in. images: of a batch. queue: images
    that wait or are being scored; more are refused for now. As many images as cores keep these busy, so a longer queue
    would only wait. timeout_s: for a body to arrive, and then for its answer.
    """

    queue: int = field(default_factory=preparing_threads)
    body: int = 64 << 20
    received: int = 512 << 20
    images: int = 64
    timeout_s: float = 30.0


class RefusedError(HTTPException):
    """An answer other than 200. cause: its name in the metrics."""

    def __init__(self, status: int, cause: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(status, message, headers)
        self.cause = cause


def malformed(message: str) -> RefusedError:
    """400: a request that cannot be answered."""
    return RefusedError(400, "malformed", message)


class Intake:
    """Reads bodies within limits. network: None if addresses are off."""

    def __init__(self, limits: Limits, network: Network | None) -> None:
        self.limits = limits
        self.network = network and replace(network, max_bytes=min(network.max_bytes, limits.body))
        self._held = self._fetching = 0  # bytes of bodies that are coming in; addresses

    async def images(self, request: Request) -> list[Image]:
        """The images of a request: a form's files, the entries of a JSON document, or else the body itself."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        data = await self.body(request)
        if kind == "multipart/form-data":
            found = await anyio.to_thread.run_sync(_form, request, data, self.limits)
        elif kind == "application/json":
            found = await self._all_listed(document(data))
        else:
            found = [(named(request.query_params.get("name", "<bytes>")), data)]
        if not all(data for _, data in found):
            raise malformed("an empty image; send an encoded image as the body or as a form's file")
        return found

    async def body(self, request: Request) -> bytes:
        """The whole body. Raises RefusedError for one that is too large, too slow, encoded, or breaks off."""
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise RefusedError(415, "malformed", "Content-Encoding is not taken; send the bytes as they are")
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > self.limits.body:
            raise self._too_large()
        data = bytearray()
        try:
            with anyio.fail_after(self.limits.timeout_s):
                async for piece in request.stream():
                    data += piece
                    self._held += len(piece)
                    if len(data) > self.limits.body:
                        raise self._too_large()
                    if self._held > self.limits.received:
                        raise busy("too many bodies are coming in")
        except TimeoutError:
            message = f"the body did not arrive within {self.limits.timeout_s:g} s"
            raise RefusedError(408, "too slow", message, {"Connection": "close"}) from None
        except ClientDisconnect:
            raise RefusedError(400, "broke off", "the body broke off") from None
        finally:
            self._held -= len(data)
        return bytes(data)

    def _too_large(self) -> RefusedError:
        message = f"a body of more than {self.limits.body} bytes; the server's --max-body allows larger ones"
        return RefusedError(413, "too large", message, {"Connection": "close"})

    async def _all_listed(self, listed: Any) -> list[Image]:
        """The images of {"images": [...]}, or of a document that is an entry itself, within the limits of one body."""
        entries, most = listed.get("images", [listed]) if isinstance(listed, dict) else listed, self.limits.images
        if not isinstance(entries, list) or not 0 < len(entries) <= most:
            raise malformed(f"wanted one image, or a list of 1 to {most}")
        if isinstance(listed, dict) and "images" in listed:
            _only(listed, ("images",))
        found, size = [], 0
        try:
            with anyio.fail_after(self.limits.timeout_s):
                for entry in entries:
                    found.append(await self._listed(entry))
                    size += len(found[-1][1])
                    if size > self.limits.body:
                        raise self._too_large()
        except TimeoutError:
            raise RefusedError(504, "timeout", f"not fetched within {self.limits.timeout_s:g} s") from None
        return found

    async def _listed(self, entry: Any) -> Image:
        if not isinstance(entry, dict) or len(entry.keys() & {"url", "data"}) != 1:
            raise malformed('wanted {"url": ADDRESS} or {"data": BASE64}, and "name" if you like')
        _only(entry, ("name", "url", "data"))
        if "data" in entry:
            return named(entry.get("name", "<bytes>")), from_base64(entry["data"])
        address = entry["url"]
        name = named(entry.get("name", address))
        if self.network is None:
            raise RefusedError(403, "forbidden", "addresses are off; the server's --remote turns them on")
        if not isinstance(address, str) or not address.lower().startswith(("http://", "https://")):
            raise RefusedError(
                403, "forbidden", "only http and https addresses are fetched; a bucket has the server's rights"
            )
        if self._fetching >= FETCHES:
            raise busy("too many addresses are being fetched")
        self._fetching += 1
        try:
            return name, await anyio.to_thread.run_sync(remote.fetch, address, self.network, abandon_on_cancel=True)
        except ImageError as error:
            raise RefusedError(422, "not fetched", f"{name}: {error}") from error
        finally:
            self._fetching -= 1


def busy(why: str) -> RefusedError:
    """429: nothing is wrong with the request."""
    return RefusedError(429, "busy", f"{why}; try again in a second", {"Retry-After": "1"})


def document(data: bytes) -> Any:
    """A JSON document. Raises RefusedError for anything else, and for a long one."""
    if len(data) > MAX_JSON:
        raise RefusedError(413, "too large", f"a JSON document of more than {MAX_JSON} bytes; send images in binary")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise malformed(f"no JSON document: {str(error)[:200]}") from error


def from_base64(text: Any) -> bytes:
    """The bytes of a base64 text."""
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise malformed("an image in JSON that is not base64") from error


def named(name: Any) -> str:
    """The client's name for its image: a label of its row, never a path."""
    if not isinstance(name, str) or len(name) > MAX_NAME:
        raise malformed(f"a name is a text of at most {MAX_NAME} characters")
    return name


def _only(given: Iterable[str], known: tuple[str, ...]) -> None:
    """Raise RefusedError for a name that would be ignored, such as "gate"."""
    if unknown := sorted(set(given) - set(known)):
        wanted = f"; wanted {', '.join(known)}" if known else ""
        raise malformed(f"unknown: {', '.join(unknown)[:80]}{wanted}; gate, preset and details go into the address")


def _form(request: Request, data: bytes, limits: Limits) -> list[Image]:
    """The files of a form. Runs in a thread and within a time limit: a hostile form takes long to read."""
    until, most = time.monotonic() + limits.timeout_s, limits.images

    async def pieces() -> AsyncIterator[bytes]:
        for begin in range(0, len(data), _PIECE):
            if time.monotonic() > until:
                raise RefusedError(408, "too slow", "a form that takes too long to read; send fewer line ends in it")
            yield data[begin : begin + _PIECE]

    async def files() -> list[Image]:
        parser = MultiPartParser(request.headers, pieces(), max_files=most, max_fields=most)  # type: ignore[arg-type]
        parser.spool_max_size = len(data) + 1  # nothing is written to disk
        form = await parser.parse()
        uploads = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if uploads:
            _only((name for name, value in form.multi_items() if not isinstance(value, UploadFile)), ())
        return [(named(upload.filename or "<bytes>"), await upload.read()) for upload in uploads]

    try:
        found = asyncio.run(files())
    except (MultiPartException, KeyError, ValueError) as error:
        message = getattr(error, "message", None) or str(error)
        raise malformed(f"no complete form: {message[:200]}") from error
    if not found:
        raise malformed("a form without a file; send one as -F image=@photo.jpg")
    return found
