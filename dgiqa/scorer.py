"""An image becomes a Score: decode, depth, tiles, quality, and the evidence beside the number.

`Scorer.score` takes one image. `Scorer.score_many` takes any number: threads decode and prepare the next images while
the networks run, tiles of neighbouring images share batches, and what is held in memory does not depend on how many
images there are. Both run the same two halves: `_prepare` (one image -> working image and windows) and
`Networks.score` (windows of one or several images -> tile scores).
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from dgiqa import bars, preprocess, spec
from dgiqa.attributes import SHORT_SIDE, Attributes, measure, note_of
from dgiqa.batches import Batches, Networks, Part, Work, enter, ms_since, share, take, waiting
from dgiqa.bundle import Bundle, load_bundle
from dgiqa.errors import BackendError, BundleError, EngineError, ImageError
from dgiqa.image import MAX_MEMORY, MAX_PIXELS, Opened
from dgiqa.image.sources import Room, Source, name_of, open_source
from dgiqa.machine import preparing_threads, usable_cores
from dgiqa.meaning import verdict
from dgiqa.runtime import engines
from dgiqa.runtime.backends import TENSORRT, choose, parallel_runs
from dgiqa.runtime.engines import Engine
from dgiqa.runtime.session import Session, open_session

if TYPE_CHECKING:
    from dgiqa.on_device import DeviceScorer
    from dgiqa.video.frames import VideoSource
    from dgiqa.video.reuse import Reuse
    from dgiqa.video.stream import FrameStream

STAGES = ("decode", "depth_input", "depth", "depth_image", "tiles", "attributes", "quality")

BARS_NOTE = "has black bars, which count in its score"

_TENSORS = {
    spec.DEPTH_FILE: ({spec.DEPTH_INPUT}, {spec.DEPTH_OUTPUT}),
    spec.QUALITY_FILE: ({spec.QUALITY_RGB, spec.QUALITY_DEPTH}, {spec.QUALITY_OUTPUT}),
}
_EXTRA = {spec.QUALITY_REASONS, spec.QUALITY_FEATURES}  # of newer quality networks
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class Score:
    """How good one image looks, and why we say so.

    value: mean of tile_scores, in [0, 1], higher is better.
    std_error: sample standard deviation of tile_scores / sqrt(n); None for a single tile, which has no spread.
    tile_scores: f32 [n]. windows: int32 [n,2], each tile's top-left (y, x) in pixels of the working image, which is
    the image resized to working_height x working_width; `windows_original` maps them back. tile: side of a window.
    width, height: of the image as decoded (after EXIF rotation), pixels. tiles: the tiling's name.
    timings_ms: wall time per stage (STAGES); a batch shared with other images counts by this image's part of its
    tiles, and time spent waiting for other images is left out. An image on a GPU has the one stage "device".
    bundle: the bundle's id. backend: what ran the networks. source: path, given name, "<bytes>", "<array>", ...
    reasons: probability of each kind of fault that the bundle knows, mean over the tiles; faults: those that reach
    their thresholds, the clearest first, see `meaning.words`. verdict: "pass" or "fail" where the scorer has a
    threshold. note: what was done to the file ("HDR (PQ) tone-mapped to SDR") and what the score does not cover ("looks
    like a screenshot ..."), or "". attributes: what was
    measured of the picture; None for one on a GPU. tile_features: f32 [n,C], where the scorer was asked for them.
    """

    value: float
    std_error: float | None
    tile_scores: NDArray[np.float32]
    windows: NDArray[np.int32]
    tile: int
    width: int
    height: int
    working_width: int
    working_height: int
    tiles: str
    timings_ms: dict[str, float]
    bundle: str
    backend: str
    source: str
    reasons: dict[str, float] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    verdict: str | None = None
    note: str = ""
    attributes: Attributes | None = None
    tile_features: NDArray[np.float32] | None = None

    @property
    def features(self) -> NDArray[np.float32] | None:
        """Mean over the tiles of what the network's last layer sees: f32 [C]."""
        return None if self.tile_features is None else self.tile_features.mean(0)

    @property
    def windows_original(self) -> NDArray[np.float64]:
        """The tiles as (y, x, height, width) in pixels of the image as decoded: f64 [n,4]."""
        scale = np.array([self.height / self.working_height, self.width / self.working_width])
        corners = self.windows * scale
        return np.concatenate([corners, np.broadcast_to(self.tile * scale, corners.shape)], axis=1)

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain numbers, strings, lists and dicts, ready for JSON."""
        record = {name: getattr(self, name) for name in self.__dataclass_fields__}
        record |= {"tile_scores": self.tile_scores.tolist(), "windows": self.windows.tolist()}
        record |= {"reasons": dict(self.reasons), "faults": list(self.faults), "timings_ms": dict(self.timings_ms)}
        record["attributes"] = self.attributes and self.attributes.as_dict()
        features = record.pop("tile_features")
        return record | {"features": None if features is None else features.mean(0).tolist()}

    def __float__(self) -> float:
        return self.value

    def __repr__(self) -> str:
        spread = "" if self.std_error is None else f" ± {self.std_error:.4f}"
        return f"Score({self.value:.4f}{spread}, {len(self.windows)} tiles, {self.source!r}, {self.bundle})"


@dataclass(frozen=True)
class Failure:
    """Why one image of many got no score. error: the exception's type name, for example "ImageError"."""

    source: str
    error: str
    message: str
    # Only until it is raised: its traceback holds the decoded image, and a list of failures would hold them all.
    exception: Exception | None = field(default=None, repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """The three strings, ready for JSON."""
        return {"source": self.source, "error": self.error, "message": self.message}


class Scorer:
    """The two networks of a bundle, ready to score. `score` may be called from several threads at once.

    bundle: a name ("small"), a directory, or a loaded Bundle. backend: "auto" or a name in `backends.BACKENDS`.
    precision: one of `spec.PRECISIONS`. fp32 runs the bundle's own files; anything else, and TensorRT, runs an engine
    that was built and proved on this machine (`dgiqa-rt build`). build: build it now if it is missing or stale, which
    takes minutes; a function is told each step. engine: the directory of an engine, instead of looking for one; it
    decides backend and precision.
    tiles: "grid" (covers every pixel) or "official:COUNT[:SEED]" (the authors' random crops).
    batch: most tiles per run of the quality network, by default 8, or 4 in each of several runs at a time.
    threads: of the networks, by default all usable cores.
    parallel: runs of a network at a time, which share the threads; "auto": what gives most images a second
    (`backends.parallel_runs`). By default `score` has all threads for one run, and `score_many` and videos do as
    "auto" would, with networks of their own that are opened when first needed.
    max_pixels: larger images are refused before they are decoded. max_memory: bytes that one image may take while it
    is prepared, by default `image.MAX_MEMORY` (1.5 GiB), or any where max_pixels was raised; images prepared at
    a time share as much.
    gate: the score from which an image passes, or the name of one of the bundle's presets; it decides `verdict`.
    features: keep what the last layer sees, of each tile, in the scores; where the bundle's network gives it.
    Raises BundleError, BackendError, EngineError if there is no such engine, or ValueError for arguments that mean
    nothing.
    """

    def __init__(
        self,
        bundle: str | Path | Bundle = "small",
        *,
        backend: str = "auto",
        precision: str = "fp32",
        build: bool | Callable[[str], None] = False,
        engine: str | Path | Engine | None = None,
        tiles: str = "grid",
        batch: int | None = None,
        threads: int | None = None,
        parallel: int | Literal["auto"] | None = None,
        max_pixels: int | None = None,
        max_memory: int | None = None,
        gate: float | str | None = None,
        features: bool = False,
    ) -> None:
        limits = (("max_pixels", max_pixels), ("max_memory", max_memory))
        for name, number in (("batch", batch), ("threads", threads), ("parallel", parallel), *limits):
            if isinstance(number, int) and number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        self.bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
        self.tiles = tiles
        self.max_pixels = MAX_PIXELS if max_pixels is None else max_pixels
        self.max_memory = max_memory
        self._room = Room(max_memory or MAX_MEMORY)
        check_tiling(tiles, self.bundle.preprocess.tile)
        self.gate = self.bundle.meaning.preset(gate) if isinstance(gate, str) else gate
        if self.gate is not None and not 0 <= self.gate <= 1:
            raise ValueError(f"gate is {gate}, wanted a score in 0..1 or the name of a preset")
        self._keep_features = features
        built = _engine(self.bundle, backend, precision, build, engine)
        if built:
            backend, precision = built.backend, built.precision
        threads = usable_cores() if threads is None else threads
        most = parallel_runs(_file(self.bundle, spec.QUALITY_FILE, built), choose(backend, precision), threads)
        opened = partial(_networks, self.bundle, backend, precision, built, threads, batch)
        self._alone: Networks | None = opened(most if parallel == "auto" else parallel or 1)
        self._together = self._alone if parallel or most == 1 else None
        self._open_together = partial(opened, most)
        self._opening = threading.Lock()
        self.precision = precision
        self.backend = _label(self._alone.quality, self._alone.depth, precision)
        self._device: DeviceScorer | None = None

    def score(
        self, source: Source | Any, *, name: str | None = None, tiles: str | None = None, stream: Any = None
    ) -> Score:
        """Score one image: a path, encoded bytes, an array (see `image.as_rgb`), a Pillow image or an open binary file.

        Or uint8 [H,W,3] on a GPU (PyTorch, CuPy, PyCUDA, ...; see `on_device.device_image`): scored there, on `stream`.
        name: what the score calls its source. tiles: instead of the scorer's own tiling.
        Raises ImageError if there is no image in it, BackendError if a network fails, ValueError for a wrong tiling.
        """
        tiles = self.tiles if tiles is None else tiles
        check_tiling(tiles, self._p.tile)
        if _is_on_device(source):
            return self._score_on_device(source, name or "<device>", tiles, stream)
        if stream is not None:
            raise ValueError("got a stream for an image that is not on a GPU; leave it out")
        networks = _alive(self._alone)
        work = self._prepare(source, name or name_of(source), tiles, networks, look=True)
        while parts := take([work], networks.batch):
            for part, found in zip(parts, networks.score(parts), strict=True):
                enter(part, found)
        return self._finish(work)

    def score_many(
        self,
        sources: Iterable[Source | tuple[str, Source]],
        *,
        on_error: Literal["row", "raise"] = "row",
        workers: int | None = None,
        batch: int | None = None,
    ) -> Iterator[Score | Failure]:
        """Score images lazily, in the order given; each is what `score` accepts, or a pair (name, source).

        At most 2 * workers + (parallel + 2) * batch images are taken from `sources` beyond those yielded, however many
        there are; it is iterated in the caller's thread. An image that cannot be scored is yielded as a Failure, or,
        with on_error="raise", its exception is raised in its place. An exception of `sources` itself is raised after
        the results so far. Closing the iterator, or an interrupt, ends the threads after the stage they are in. An
        array must not change before its result is yielded.
        workers: threads that decode and prepare, by default `machine.preparing_threads`. batch: as in Scorer.
        """
        if on_error not in ("row", "raise"):
            raise ValueError(f'on_error is {on_error!r}, wanted "row" or "raise"')
        workers = preparing_threads() if workers is None else workers
        if workers < 1 or (batch is not None and batch < 1):
            raise ValueError(f"workers and batch must be at least 1, got {workers} and {batch}")
        _alive(self._alone)
        if isinstance(sources, str | Path | bytes) or (isinstance(sources, np.ndarray) and sources.ndim < 4):
            raise ValueError(f"got one {type(sources).__name__}, wanted several images; score() takes one")
        return self._score_many(sources, on_error, workers, batch)

    def score_video(
        self,
        source: VideoSource,
        *,
        every: float | None = None,
        count: int | None = None,
        per_scene: int | None = None,
        start: float = 0.0,
        end: float = math.inf,
        reuse: Reuse | None = None,
        **reading: Any,
    ) -> Iterator[dict[str, Any]]:
        """Score frames of a video lazily: a row (`video.VIDEO_COLUMNS`) per frame, in order of time.

        source: a path, an http(s), HLS, RTSP, RTMP, SRT or UDP address, "-" (a container on standard input) or an open
        binary file. every: seconds between frames, by default 1; 0 scores all of them. Or count: that many over the
        whole; or per_scene: that many of each scene. start, end: seconds. reuse: let frames take over the depth image
        (and tile scores) of earlier ones, see `reuse.Reuse`. reading: the fields of `video.Reading`: raw, live,
        timeout_s, decoder, deinterlace.
        A frame that cannot be decoded is a row with an error, and so is a source that cannot be read (to its end).
        Raises ValueError for arguments that mean nothing, BackendError without PyAV. Closing the iterator ends it.
        """
        from dgiqa.video import Reading, VideoRun
        from dgiqa.video.sampling import Sampling

        _alive(self._alone)
        sampling = Sampling(every, count, per_scene, start, end)
        return VideoRun(self, [source], sampling, reading=Reading(**reading), reuse=reuse).rows()

    def stream(
        self, *, live: bool = False, capacity: int = 4, reuse: Reuse | None = None, **options: Any
    ) -> FrameStream:
        """A thread-safe stream: `push(image, time_s)` pictures from any thread, `pull()` rows in another.

        live: when `capacity` frames wait, a push drops the oldest of them instead of waiting. options: tiles, batch,
        workers, as in Scorer and score_many. Use it as a context manager; `finish()` ends it after what was pushed.
        """
        from dgiqa.video import frame_row
        from dgiqa.video.pipeline import Channel, Pipeline
        from dgiqa.video.stream import FrameStream

        _alive(self._alone)
        pipeline = Pipeline(self, Channel(capacity), reuse=reuse, **options)
        return FrameStream(pipeline, lambda result: frame_row(result, self), live=live, capacity=capacity)

    def close(self) -> None:
        """Release the networks' memory. The scorer cannot be used afterwards."""
        if self._device is not None:
            self._device.close()
        for networks in {self._alone, self._together} - {None}:
            networks.close()  # type: ignore[union-attr]
        self._alone = self._together = self._device = None

    def __enter__(self) -> Scorer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _p(self) -> spec.Preprocess:
        return self.bundle.preprocess

    def _score_many(
        self, sources: Iterable[Source | tuple[str, Source]], on_error: str, workers: int, batch: int | None
    ) -> Iterator[Score | Failure]:
        networks = self._networks_together()
        stop = threading.Event()
        broken: list[Exception] = []
        pool = ThreadPoolExecutor(workers, thread_name_prefix="dgiqa")
        try:
            keep = on_error == "raise"
            items = _until_error(sources, broken)
            prepared = _ordered_map(
                lambda item: self._try_prepare(item, networks, stop, keep), items, pool, 2 * workers
            )
            for result in self._pack(prepared, networks, batch or networks.batch, keep):
                if isinstance(result, Failure) and result.exception:
                    raise result.exception
                yield result
            if broken:
                raise broken[0]
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)

    def _prepare(
        self,
        source: Source,
        name: str,
        tiles: str,
        networks: Networks,
        *,
        stop: threading.Event | None = None,
        near: NDArray[np.uint8] | None = None,
        look: bool = False,
    ) -> Work:
        """First half: source -> working image, depth image and windows. Given up between stages once stop is set.

        look: measure the picture's attributes.
        near: the depth image to use, uint8 of the working size, instead of the depth network's.
        """
        clock = _Clock(stop)
        with clock("decode"):
            opened = open_source(source, self.max_pixels, self.max_memory)
        preprocess.check_size(opened.height, opened.width, self._p)
        with self._room.hold(opened.memory, clock.stopped):
            return self._prepare_opened(opened, name, tiles, networks, clock=clock, near=near, look=look)

    def _prepare_opened(
        self,
        opened: Opened,
        name: str,
        tiles: str,
        networks: Networks,
        *,
        clock: _Clock,
        near: NDArray[np.uint8] | None,
        look: bool,
    ) -> Work:
        with clock("decode"):
            decoded = opened.decode(clock.stopped)
        rgb, notes = decoded.rgb, decoded.notes
        height, width = rgb.shape[:2]
        image = None
        if near is None:
            with clock("depth_input"):
                image = preprocess.depth_input(rgb, self._p)
        with clock("tiles"):
            working = preprocess.working_image(rgb, self._p)
        attributes: Attributes | None = None
        if look:
            with clock("attributes"):
                attributes = measure(rgb, working if _is_reduced(self._p, rgb) else None)
                notes += (BARS_NOTE,) if any(bars.find(working)) else ()
        del decoded, rgb  # before the depth image, which may be as large
        if image is not None:
            near = self._depth_image(image, (height, width), networks, clock)
        assert near is not None
        with clock("tiles"):
            windows = preprocess.windows_for(tiles, near.shape[0], near.shape[1], self._p.tile)
        scores, ms = np.full(len(windows), np.nan, np.float32), {s: clock.ms[s] for s in STAGES if s in clock.ms}
        return Work(name, tiles, height, width, working, near, windows, ms, scores, attributes=attributes, notes=notes)

    def _depth_image(
        self, image: NDArray[np.float32], size: tuple[int, int], networks: Networks, clock: _Clock
    ) -> NDArray[np.uint8]:
        """The depth network's image of a picture of `size`, by its input: uint8 of the working size."""
        with networks.turn, clock("depth"):
            depth = networks.depth.run({spec.DEPTH_INPUT: image})[spec.DEPTH_OUTPUT]
        with clock("depth_image"):
            return preprocess.depth_image(depth, *size, self._p)

    def _score_on_device(self, source: Any, name: str, tiles: str, stream: Any) -> Score:
        from dgiqa import on_device

        networks = _alive(self._alone)
        with self._opening:
            if self._device is None:
                self._device = on_device.open_device_scorer(networks.depth, networks.quality, self._p)
            device = self._device
        with networks.turn:
            found = device.score(source, tiles, batch=networks.batch, stream=stream)
        there = np.broadcast_to(np.uint8(0), found.working_size)  # the working image's place; its pixels never came
        timings, n = {"device": found.ms}, len(found.windows)
        scores = networks.mapped(found.tile_scores)
        return self._finish(Work(name, tiles, *found.size, there, there, found.windows, timings, scores, n))

    def _networks_together(self) -> Networks:
        """What scores many images; opened when it is first needed."""
        _alive(self._alone)
        with self._opening:
            self._together = self._together or self._open_together()
            return self._together

    def _try_prepare(
        self, item: Source | tuple[str, Source], networks: Networks, stop: threading.Event, keep: bool
    ) -> Work | Failure:
        name = "<tuple>"
        try:
            name, source = _named(item)
            return self._prepare(source, name, self.tiles, networks, stop=stop, look=True)
        except Exception as error:  # whatever one file does to a decoder, the other images go on
            return _failure(name, error, keep)

    def _pack(
        self, prepared: Iterable[Future[Work | Failure]], networks: Networks, batch: int, keep: bool
    ) -> Iterator[Score | Failure]:
        """Run full batches of tiles, whichever images they come from; yield images in order as they complete."""
        queue: deque[Work | Failure] = deque()
        most = (networks.parallel + 1) * batch  # failures behind images that are not complete are not let pile up
        with Batches(networks) as batches:

            def settled(wait: bool) -> Iterator[Score | Failure]:
                _raise_what_failed(batches.settle(wait=wait))
                yield from self._completed(queue, keep)

            for coming in prepared:
                while batches.running and not coming.done():  # what is complete is handed out meanwhile
                    yield from settled(wait=True)
                queue.append(coming.result())
                # Nor are failures behind a few waiting tiles: the batch then runs as it is.
                while (tiles := waiting(queue)) >= batch or (tiles and _behind(queue) >= batch):
                    batches.start(take(queue, batch))
                    yield from settled(batches.full)
                yield from settled(len(queue) >= most)
            last = share(waiting(queue), batch, networks.parallel)
            while waiting(queue):
                batches.start(take(queue, last))
                yield from settled(batches.full)
            while queue:
                yield from settled(wait=True)

    def _completed(self, queue: deque[Work | Failure], keep: bool) -> Iterator[Score | Failure]:
        """Take what is done off the queue's head."""
        while queue and (isinstance(queue[0], Failure) or queue[0].complete):
            item = queue.popleft()
            yield item if isinstance(item, Failure) else self._try_finish(item, keep)

    def _finish(self, work: Work) -> Score:
        value, std_error = self._pooled(work.tile_scores)
        reasons = self._reasons(work.extra)
        return Score(
            value=value,
            std_error=std_error,
            tile_scores=work.tile_scores,
            windows=work.windows,
            tile=self._p.tile,
            width=work.width,
            height=work.height,
            working_width=work.depth.shape[1],
            working_height=work.depth.shape[0],
            tiles=work.tiles,
            timings_ms=work.timings_ms,
            bundle=self.bundle.id,
            backend=self.backend,
            source=work.source,
            reasons=reasons,
            faults=tuple(self.bundle.meaning.told(reasons)),
            verdict=verdict(value, self.gate),
            note=note_of(work.attributes, work.notes) if work.attributes else "; ".join(work.notes),
            attributes=work.attributes,
            tile_features=work.extra.get(spec.QUALITY_FEATURES) if self._keep_features else None,
        )

    def _reasons(self, extra: Mapping[str, NDArray[np.float32]]) -> dict[str, float]:
        """Name -> mean probability over the tiles; empty where the network gives none, or no name for its columns."""
        found, named = extra.get(spec.QUALITY_REASONS), self.bundle.meaning.reasons
        if found is None or found.shape[1] != len(named):
            return {}
        return {reason.name: float(p) for reason, p in zip(named, found.mean(0, dtype=np.float64), strict=True)}

    def _pooled(self, scores: NDArray[np.float32]) -> tuple[float, float | None]:
        """The mean of tile scores [n], and its standard error; a single tile has none."""
        if not np.isfinite(scores).all():
            fix = f"compare with dgiqa-rt verify {self.bundle.name}"
            raise BackendError(f"the quality network gave {scores.tolist()}, wanted finite scores; {fix}")
        n, mean = len(scores), float(scores.mean(dtype=np.float64))
        return mean, float(scores.std(ddof=1, dtype=np.float64)) / math.sqrt(n) if n > 1 else None

    def _try_finish(self, work: Work, keep: bool) -> Score | Failure:
        try:
            return self._finish(work)
        except BackendError as error:
            return _failure(work.source, error, keep)


def check_tiling(tiles: str, tile: int = spec.TILE) -> None:
    """Raises ValueError, with the tilings there are, unless that is one of them."""
    preprocess.windows_for(tiles, tile, tile, tile)


class _Clock:
    """Wall time of each stage, in milliseconds; the place where a stopped run gives up."""

    def __init__(self, stop: threading.Event | None) -> None:
        self.ms: dict[str, float] = {}
        self._stop = stop

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        if self.stopped():
            raise CancelledError
        started = time.perf_counter()
        yield
        self.ms[stage] = self.ms.get(stage, 0.0) + ms_since(started)

    def stopped(self) -> bool:
        return self._stop is not None and self._stop.is_set()


def _ordered_map(
    function: Callable[[T], R], items: Iterable[T], pool: ThreadPoolExecutor, ahead: int
) -> Iterator[Future[R]]:
    """map() on a pool: results to come, in order; at most `ahead` items are taken beyond the last one handed out."""
    pending: deque[Future[R]] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) >= ahead:
            yield pending.popleft()
    while pending:
        yield pending.popleft()


def _until_error(items: Iterable[T], broken: list[Exception]) -> Iterator[T]:
    """The items up to the iterable's own failure, which is kept for later."""
    try:
        yield from items
    except Exception as error:
        broken.append(error)


def _behind(queue: Sequence[Work | Failure]) -> int:
    """How many images stand in the queue from the first on that has tiles waiting."""
    first = next((i for i, item in enumerate(queue) if isinstance(item, Work) and item.left), len(queue))
    return len(queue) - first


def _raise_what_failed(batch: tuple[list[Part], Exception | None] | None) -> None:
    if batch is not None and batch[1] is not None:
        raise batch[1]


def _engine(
    bundle: Bundle,
    backend: str,
    precision: str,
    build: bool | Callable[[str], None],
    engine: str | Path | Engine | None,
) -> Engine | None:
    """The engine to run, or None where the bundle's own files run."""
    if isinstance(engine, Engine):
        return engine
    if engine is not None:
        return engines.load(engine, bundle)
    if choose(backend, precision) != TENSORRT and precision == "fp32":
        return None
    try:
        return engines.find(bundle, backend, precision)
    except EngineError:
        if not build:
            raise
    from dgiqa.builder.build import build as build_engine

    told = build if callable(build) else lambda line: None
    return build_engine(bundle, backend=backend, precision=precision, progress=told)


def _networks(  # noqa: PLR0917 - from the constructor's arguments
    bundle: Bundle, backend: str, precision: str, engine: Engine | None, threads: int, batch: int | None, parallel: int
) -> Networks:
    files = (spec.DEPTH_FILE, spec.QUALITY_FILE)
    depth, quality = (_open(bundle, file, backend, precision, engine, threads, parallel) for file in files)
    return Networks(depth, quality, parallel, bundle.preprocess.tile, batch, bundle.meaning.mapped)


def _open(  # noqa: PLR0917 - one per network, from the constructor's arguments
    bundle: Bundle, file: str, backend: str, precision: str, engine: Engine | None, threads: int, parallel: int
) -> Session:
    """One network of the bundle, with the tensors that the contract promises."""
    path, plugins = _file(bundle, file, engine), engine.plugins if engine else ()
    session = open_session(path, backend, precision=precision, threads=threads, parallel=parallel, plugins=plugins)
    wanted = inputs, outputs = _TENSORS[file]
    if set(session.inputs) != inputs or not outputs <= set(session.outputs) <= outputs | _EXTRA:
        maps = [f"{sorted(i)} -> {sorted(o)}" for i, o in ((session.inputs, session.outputs), wanted)]
        raise BundleError(f"{bundle.id}: {file} maps {maps[0]}, wanted {maps[1]}; export it again")
    return session


def _file(bundle: Bundle, file: str, engine: Engine | None) -> Path:
    """What to open for one of the bundle's networks."""
    return (engine.files.get(file) if engine else None) or bundle.file(file)


def _label(quality: Session, depth: Session, precision: str) -> str:
    """What runs the networks, for the score: "openvino-cpu 2026.4.1 int8"."""
    other = "" if depth.backend == quality.backend else f" (depth: {depth.backend})"
    return f"{quality.backend} {precision}{other}"


def _is_reduced(p: spec.Preprocess, rgb: NDArray[np.uint8]) -> bool:
    """Whether the working image is what `attributes.measure` would reduce the image to."""
    return p.version >= 2 and p.short_side == SHORT_SIDE and min(rgb.shape[:2]) > SHORT_SIDE


def _named(item: Any) -> tuple[str, Source]:
    """(name, source) of what score_many was given."""
    if not isinstance(item, tuple):
        return name_of(item), item
    if len(item) != 2 or not isinstance(item[0], str):
        raise ImageError(f"got a tuple of {len(item)}, wanted an image or a pair (name, image)")
    return item


def _alive(networks: Networks | None) -> Networks:
    if networks is None:
        raise ValueError("this Scorer was closed; make another one")
    return networks


def _failure(name: str, error: Exception, keep: bool) -> Failure:
    return Failure(name, type(error).__name__, str(error) or repr(error), error if keep else None)


def _is_on_device(source: object) -> bool:
    if isinstance(source, str | Path | bytes | bytearray | memoryview | np.ndarray):
        return False
    from dgiqa.runtime.cuda import is_device_array

    return is_device_array(source)
