"""A Scorer behind HTTP: images in, rows out; the Open Inference Protocol; a page to drop a picture on; metrics.

    request ──► Envelope ──► Intake (within limits) ──► Scorer.inbox (one pass for all requests) ──► rows

The pass is the one that `Scorer.score_many` runs: requests share batches as the images of a list do.
"""

import asyncio
import base64
import hashlib
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.responses import Response

from dgiqa._version import __version__
from dgiqa.errors import ImageError
from dgiqa.meaning import WORDS, verdict
from dgiqa.report.html import render
from dgiqa.report.rows import SCHEMA, Row, Summary, error_row, to_json
from dgiqa.score import Score
from dgiqa.scorer import Scorer
from dgiqa.serve import v2
from dgiqa.serve.envelope import LOG, Envelope
from dgiqa.serve.intake import Image, Intake, Limits, RefusedError, busy, malformed
from dgiqa.serve.metrics import Metrics
from dgiqa.sources.inputs import Network

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_LISTED = {"type": "object", "properties": {name: {"type": "string"} for name in ("name", "url", "data")}}
_TYPES = {"string": "string", "float64": "number", "int64": "integer", "list": "array", "json": "object"}
_ROW = {c.name: {"type": _TYPES[c.type], "description": c.meaning} for c in SCHEMA if "image" in c.of}
_ANSWER = {"description": "The row", "content": {"application/json": {"schema": {"properties": _ROW}}}}
Gate = Annotated[float | None, Query(ge=0, le=1, description="The score from which the verdict is pass.")]
Preset = Annotated[str | None, Query(description="Instead of gate: the name of a threshold of the model.")]
Details = Annotated[bool, Query(description="Add the tiles, the reasons' probabilities and the times.")]
Asked = tuple[list[Image], float | None, bool]  # the images, the score from which they pass, whether with details
_ASKED = ("name", "gate", "preset", "details")  # parameters of a request's address
_ERRORS = {
    400: "malformed",
    401: "the token is missing or wrong",
    403: "addresses are off",
    408: "the body did not arrive in time",
    413: "too large",
    415: "compressed",
    422: "no image in it, or one over the limits: the row says why",
    429: "the queue is full: try again after Retry-After seconds",
    503: "the model is not ready: try again after Retry-After seconds",
    504: "not scored in time",
}


def _openapi(json_schema: dict[str, Any], *binary: str) -> dict[str, Any]:
    content = dict.fromkeys(binary, _BINARY) | {"application/json": {"schema": json_schema}}
    return {"requestBody": {"required": True, "content": content}}


class Service:
    """The scorer, its limits and its metrics. ready: whether it is warm and not shutting down."""

    def __init__(self, scorer: Scorer, limits: Limits, network: Network | None) -> None:
        self.scorer, self.limits, self.ready = scorer, limits, False
        self.intake = Intake(limits, network)
        about = {"version": __version__, "bundle": scorer.bundle.id, "backend": scorer.backend}
        self.metrics = Metrics(lambda: scorer.inbox.pending, **about)
        self.origin = scorer.origin

    @asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        """The application's lifespan. It warms up at first, and answers that it is not ready meanwhile."""
        warming = asyncio.create_task(self._warm_up())
        yield
        self.ready = False
        warming.cancel()

    async def _warm_up(self) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
        try:
            await self.scorer.ascore(noise)
        except Exception:
            LOG.exception("the first picture could not be scored, so this server will never be ready")
            return
        self.scorer.stages.networks.told = self.metrics.tiles.observe
        self.ready = True
        LOG.info("ready: %s on %s", self.scorer.bundle.id, self.scorer.backend)

    def admit(self) -> None:
        """Raise RefusedError if no more images are accepted now."""
        if not self.ready:
            raise RefusedError(503, "not ready", "the model is not ready", {"Retry-After": "1"})
        if self.scorer.inbox.pending >= self.limits.queue:
            raise busy("the queue is full")

    async def rows(
        self, images: Sequence[tuple[str, Any]], threshold: float | None = None, details: bool = False
    ) -> list[Row]:
        """A row per image, in order. Raises RefusedError if the queue is full or time is up."""
        self.admit()
        waiting = [asyncio.wrap_future(self.scorer.inbox.submit(source, name=name)) for name, source in images]
        _, late = await asyncio.wait(waiting, timeout=self.limits.timeout_s)
        for future in late:
            future.cancel()
        if late:
            raise RefusedError(504, "timeout", f"not scored within {self.limits.timeout_s:g} s")
        threshold = self.scorer.gate if threshold is None else threshold
        return [self._row(name, each, threshold, details) for (name, _), each in zip(images, waiting, strict=True)]

    def _row(self, name: str, found: asyncio.Future[Score], threshold: float | None, details: bool) -> Row:
        if (error := found.exception()) is None:
            score = found.result()
            self.metrics.images.labels("scored").inc()
            self.metrics.scores.observe(score.value)
            return replace(score, verdict=verdict(score.value, threshold)).as_row(details=details)
        self.metrics.images.labels(type(error).__name__).inc()
        if not isinstance(error, ImageError):
            LOG.error("%r was not scored", name, exc_info=error)
        return error_row(name, str(error) or repr(error), details=details, **self.origin)

    async def asked(
        self, request: Request, gate: Gate = None, preset: Preset = None, details: Details = False
    ) -> Asked:
        """A request's images, the score from which they pass (None: the scorer's own), whether with details."""
        if gate is not None and preset is not None:
            raise malformed("give gate or preset, not both")
        if unknown := sorted(request.query_params.keys() - _ASKED):
            raise malformed(f"unknown in the address: {', '.join(unknown)[:80]}; wanted {', '.join(_ASKED)}")
        try:
            gate = self.scorer.bundle.meaning.preset(preset) if preset is not None else gate
        except ValueError as error:
            raise malformed(str(error)) from error
        self.admit()  # before the body is read, too
        return await self.intake.images(request), gate, details


def create_app(
    scorer: Scorer, limits: Limits | None = None, *, network: Network | None = None, token: str | None = None
) -> FastAPI:
    """The application, for any ASGI server. The caller closes the scorer.

    network: what may be fetched from addresses; None means nothing. token: the bearer token that clients must send.
    """
    service = Service(scorer, limits or Limits(), network)
    about = "Scores how good photographs look, from 0 to 1. Every answer other than 200 has an error that says why."
    options: dict[str, Any] = {"docs_url": None, "redoc_url": None, "lifespan": service.running}
    app = FastAPI(title="dgiqa-rt", version=__version__, description=about, **options)
    app.add_middleware(Envelope, metrics=service.metrics, token=token)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _refused)
    _add_scoring(app, service)
    _add_protocol(app, service)
    _add_pages(app, service)
    return app


def _add_scoring(app: FastAPI, service: Service) -> None:
    responses: dict[int | str, dict[str, Any]] = {code: {"description": text} for code, text in _ERRORS.items()}
    responses[200] = _ANSWER
    body, given = _openapi(_LISTED, "image/*", "multipart/form-data"), Depends(service.asked)

    @app.post("/score", openapi_extra=body, responses=responses, response_class=Response)
    async def score(
        request: Request, asked: Asked = given, name: str = Query("<bytes>", description="The image's name in the row.")
    ) -> Response:
        """Score one image: its bytes as the body, a form's file, or JSON: {"data": BASE64} or {"url": ADDRESS}."""
        images, threshold, details = asked
        if len(images) != 1:
            raise malformed(f"{len(images)} images; POST /score/batch takes several")
        (row,) = await service.rows(images, threshold, details)
        if row["status"] == "ok":
            return _json(row)
        request.scope["cause"] = "no image"
        return _json(row, 422)

    responses = responses | {200: {"description": "rows, in the order of the images, and their summary"}}
    listed = {"type": "object", "properties": {"images": {"type": "array", "items": _LISTED}}}

    body = _openapi(listed, "multipart/form-data")

    @app.post("/score/batch", openapi_extra=body, responses=responses, response_class=Response)
    async def score_batch(asked: Asked = given) -> Response:
        """Score several images: a form's files, or JSON with "images". A file without an image gives an error row."""
        summary, rows = Summary(), await service.rows(*asked)
        for row in rows:
            summary.add(row)
        return _json({"schema_version": 1, "rows": rows, "summary": summary.as_dict(complete=True)})


def _add_protocol(app: FastAPI, service: Service) -> None:
    bundle, metadata = service.scorer.bundle, {"inputs": v2.INPUTS, "outputs": v2.OUTPUTS}
    described = {"name": bundle.name, "versions": ["1"], "platform": "dgiqa-rt", **metadata}

    async def known(name: str, version: str = "1") -> None:
        if (name, version) != (bundle.name, "1"):
            raise RefusedError(404, "not found", f"there is model {bundle.name!r}, version 1")

    @app.get("/v2")
    async def server() -> dict[str, Any]:
        """The server's name, version and extensions."""
        return v2.SERVER

    @app.get("/v2/health/live")
    async def live() -> Response:
        """Whether the server is worth waiting for: 503 if the networks failed."""
        return Response(status_code=200 if service.scorer.inbox.alive else 503)

    @app.get("/v2/health/ready")
    async def ready() -> Response:
        """Whether the server scores: 503 until a first picture is scored, and while it shuts down."""
        return Response(status_code=200 if service.ready and service.scorer.inbox.alive else 503)

    models = APIRouter(dependencies=[Depends(known)])

    @models.get("")
    async def model() -> dict[str, Any]:
        """The model's tensors."""
        return described

    @models.get("/ready")
    async def model_ready() -> Response:
        """The same as /v2/health/ready."""
        return await ready()

    @models.post("/infer")
    async def infer(request: Request) -> Response:
        """Scores of encoded images (IMAGE, BYTES) or of pixels (PIXELS, UINT8, or FP32 from 0 to 1)."""
        service.admit()
        body = await service.intake.body(request)
        asked, images = await asyncio.to_thread(v2.parsed, request.headers, body, service.limits.images)
        del body
        headers, content = v2.answer(asked, bundle.name, await service.rows(images))
        return Response(content, headers=headers)

    for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        app.include_router(models, prefix=path)


def _add_pages(app: FastAPI, service: Service) -> None:
    meaning = service.scorer.bundle.meaning
    presets, gate = dict(meaning.presets), service.scorer.gate
    drop = _page("serve.html", title="How good does it look?", words=WORDS, presets=presets, gate=gate)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return drop

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return _page("api.html", title="dgiqa-rt over HTTP", api=app.openapi())

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """The metrics, for Prometheus."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _page(template: str, **values: Any) -> Response:
    """A page that may fetch only from this server and run only its own scripts."""
    text = render(template, **values)
    scripts, styles = (_hashes(text, tag) for tag in ("script", "style"))
    policy = f"default-src 'none'; script-src {scripts}; style-src {styles}; img-src blob: data:; "
    policy += "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    return Response(text, media_type="text/html", headers={"Content-Security-Policy": policy})


def _hashes(page: str, tag: str) -> str:
    """The hashes by which a policy allows a page's own scripts or styles."""
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in found)
    return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(to_json(content), status, headers, "application/json")


async def _refused(request: Request, error: Exception) -> Response:
    """Answer {"error": ...} for anything that ends a request early."""
    if isinstance(error, HTTPException):
        usual = "not found" if error.status_code == 404 else "malformed"
        request.scope["cause"] = getattr(error, "cause", usual)
        told, headers, place = error.detail, dict(error.headers or {}), request.url.path[:80]
        if not isinstance(error, RefusedError) and error.status_code == 404:
            told = f"there is no {place} here; GET /docs lists the addresses"
        elif error.status_code == 405:
            told = f"{place} does not take {request.method}; it takes {headers.get('Allow', 'other methods')}"
        return _json({"error": told}, error.status_code, headers)
    assert isinstance(error, RequestValidationError)
    request.scope["cause"] = "malformed"
    told = "; ".join(f"{each['loc'][-1]}: got {each['input']!r:.80}; {each['msg']}" for each in error.errors())
    return _json({"error": told}, 400)
