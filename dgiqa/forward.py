"""One image through the networks: rgb becomes a depth image, tiles of both, tile scores, and a Score.

    rgb u8 [H,W,3] ──► prepare ──► Work (working image, depth image, windows) ──► Networks.score ──► finish ──► Score

The pass is written here once. `Stages` is a bundle opened for it; `depth_map` and `tiles` are its steps
for callers with a network of their own.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dgiqa import bars, on_device, preprocess, spec
from dgiqa.attributes import SHORT_SIDE, measure, note_of
from dgiqa.bundle import Bundle
from dgiqa.dtypes import Float32, Int32, UInt8
from dgiqa.errors import BackendError, BundleError
from dgiqa.image import MAX_MEMORY, MAX_PIXELS, Opened
from dgiqa.image.sources import TIMEOUT_S, Room, Source, decode_within, name_of, open_source
from dgiqa.meaning import verdict
from dgiqa.on_device import DeviceScorer
from dgiqa.runtime.engines import Engine
from dgiqa.runtime.kernels import is_on_gpu
from dgiqa.runtime.session import Session, open_session
from dgiqa.score import Score, mean_and_error
from dgiqa.timing import StageClock, ms_since
from dgiqa.work import Part, PartScores, Work, enter, take

BARS_NOTE = "has black bars, which count in its score"
UNSEEN_NOTE = "bars and attributes are not measured on a GPU"
STAGES = ("decode", "depth_input", "depth", "depth_image", "tiles", "attributes", "quality")
# Tiles per run. Two cores (Zen 3), small quality network, ms per tile: 7.0 for one, 5.6 from 4 tiles on, flat to 32.
# Memory is not flat: two runs side by side hold 221 MB with 4 tiles each, 296 MB with 8.
BATCH, BATCH_SIDE_BY_SIDE = 8, 4


def depth_map(rgb: UInt8, network: Session, p: spec.Preprocess) -> Float32:
    """Depth of rgb [H,W,3] by the depth network: f32 [1,h,w]."""
    return network.run({spec.DEPTH_INPUT: preprocess.depth_input(rgb, p)})[spec.DEPTH_OUTPUT]


def tiles(
    rgb: UInt8, near: UInt8 | None, windows: str | Int32, p: spec.Preprocess, batch: int = BATCH
) -> Iterator[dict[str, Float32]]:
    """Inputs of the quality network for a working image [h,w,3] and its depth image [h,w], `batch` windows at a time.

    near: None where the network takes no depth. windows: a tiling's name, or int32 [n,2].
    Yields {spec.QUALITY_RGB, spec.QUALITY_DEPTH: f32 [<=batch,3,tile,tile]}, or only the former.
    """
    if isinstance(windows, str):
        windows = preprocess.windows_for(windows, rgb.shape[0], rgb.shape[1], p.tile)
    for start in range(0, len(windows), batch):
        part = windows[start : start + batch]
        yield _named(preprocess.cut_tiles(rgb, near, part, p.tile, normalisation=p.normalisation))


def _named(tiles: Sequence[Float32] | Float32) -> dict[str, Float32]:
    """Feeds of the quality network by name: tiles of the image and, where it takes them, of the depth image."""
    return dict(zip((spec.QUALITY_RGB, spec.QUALITY_DEPTH), tiles, strict=False))


class Networks:
    """A bundle's networks as sessions, and how many of their runs may be in progress at a time (`parallel`).

    depth: None where the quality network takes no depth. batch: most tiles per run of the quality network, by default
    a number that costs little memory and no time. mapped: the bundle's map of tile scores f32 [n], by default the
    identity. Hold `turn` around a run of either network.
    """

    def __init__(  # noqa: PLR0917 - the parts of an opened bundle
        self,
        depth: Session | None,
        quality: Session,
        parallel: int,
        p: spec.Preprocess,
        batch: int | None = None,
        mapped: Callable[[Float32], Float32] = lambda scores: scores,
    ) -> None:
        self.depth, self.quality, self.mapped = depth, quality, mapped
        self.parallel, self.p = parallel, p
        self.batch = batch or (BATCH if parallel == 1 else BATCH_SIDE_BY_SIDE)
        self.turn = threading.BoundedSemaphore(parallel)
        self.told: Callable[[int], None] = lambda tiles: None  # called after each run of the quality network
        self._spare: deque[Float32] = deque(maxlen=parallel + 1)
        self._opening = threading.Lock()
        self._on_gpu: DeviceScorer | None = None

    def score(self, parts: list[Part]) -> list[PartScores]:
        """Cut the parts' tiles and run the quality network once over all of them; one answer per part."""
        ends = np.cumsum([part.count for part in parts]).tolist()
        spans = [slice(end - part.count, end) for part, end in zip(parts, ends, strict=True)]
        total, started = ends[-1], time.perf_counter()
        memory = self._tile_memory(total)
        for part, span in zip(parts, spans, strict=True):
            work, windows = part.work, part.work.windows[part.begin : part.begin + part.count]
            into = tuple(memory[:, span])
            preprocess.cut_tiles(work.rgb, work.depth, windows, self.p.tile, into, normalisation=self.p.normalisation)
        cut_ms = ms_since(started) / total
        feeds = _named(memory[:, :total])
        with self.turn:
            started = time.perf_counter()
            found = dict(self.quality.run(feeds))
            run_ms = ms_since(started) / total
        self._spare.append(memory)
        self.told(total)
        scores = self.mapped(found.pop(spec.QUALITY_OUTPUT))
        return [
            PartScores(scores[span], cut_ms * n, run_ms * n, {name: each[span] for name, each in found.items()})
            for n, span in zip((part.count for part in parts), spans, strict=True)
        ]

    def on_gpu(self) -> DeviceScorer:
        """The scorer of pictures on a GPU with these networks. Raises BackendError as `open_device_scorer` does."""
        with self._opening:
            self._on_gpu = self._on_gpu or on_device.open_device_scorer(self.depth, self.quality, self.p)
            return self._on_gpu

    def close(self) -> None:
        """Release what the sessions hold: engines on a GPU have memory of their own."""
        with self._opening:
            if self._on_gpu is not None:
                self._on_gpu.close()
            self._on_gpu = None
        for session in filter(None, (self.depth, self.quality)):
            getattr(session, "close", lambda: None)()
        self._spare.clear()

    def _tile_memory(self, count: int) -> Float32:
        """Memory f32 [1 or 2,>=count,3,tile,tile], an earlier batch's if one is free: new pages are slow."""
        with suppress(IndexError):  # other threads have it all, or there was none
            memory = self._spare.pop()
            if memory.shape[1] >= count:
                return memory
        return np.empty((1 if self.depth is None else 2, count, 3, self.p.tile, self.p.tile), np.float32)


@dataclass(frozen=True, eq=False)
class Stages(AbstractContextManager["Stages"]):
    """A bundle opened for the pass over one image; may be used from several threads at once.

    tiling: "grid" or "official:COUNT[:SEED]". max_pixels, max_memory, decode_timeout_s, copy_back: as in `Scorer`.
    room: the memory that images share while they are prepared. gate: the score from which an image passes. features:
    keep the last layer's input. backend: the name of what runs the networks.
    """

    bundle: Bundle
    networks: Networks
    backend: str
    precision: str = "fp32"
    tiling: str = "grid"
    max_pixels: int = MAX_PIXELS
    max_memory: int | None = None
    room: Room = field(default_factory=lambda: Room(MAX_MEMORY))
    decode_timeout_s: float = TIMEOUT_S
    gate: float | None = None
    features: bool = False
    copy_back: bool = False

    @property
    def p(self) -> spec.Preprocess:
        """The bundle's preprocessing."""
        return self.bundle.preprocess

    @property
    def origin(self) -> dict[str, str]:
        """What scores come from, by the columns of rows: bundle, backend and tiling."""
        return {"bundle": self.bundle.id, "backend": self.backend, "tiling": self.tiling}

    def tiled(self, tiling: str | None) -> "Stages":
        """The same stages with another tiling, or their own for None. Raises ValueError, which lists all."""
        if tiling is None or tiling == self.tiling:
            return self
        preprocess.check_tiling(tiling, self.p.tile)
        return replace(self, tiling=tiling)

    def score(self, source: Source, *, name: str | None = None, tiling: str | None = None) -> Score:
        """Score one image in this thread. Raises ImageError if there is none, BackendError if a network fails."""
        work = self.tiled(tiling).prepare(source, name or name_of(source), look=True)
        self.run([work])
        return self.finish(work)

    def run(self, works: list[Work]) -> None:
        """Run the quality network over all windows of these works, in batches."""
        while parts := take(works, self.networks.batch):
            for part, found in zip(parts, self.networks.score(parts), strict=True):
                enter(part, found)

    def prepare(
        self,
        source: Source,
        name: str,
        *,
        stop: threading.Event | None = None,
        near: UInt8 | None = None,
        look: bool = False,
        keep: bool = False,
        stream: Any = None,
    ) -> Work:
        """The first half: source -> working image, depth image and windows. A set `stop` ends it between stages.

        near: a depth image to use instead of the depth network's, uint8 of the working size. look: measure the
        picture's attributes and bars. keep: keep its pixels. A picture on a GPU comes back scored, after the work on
        `stream`; `near` and `keep` do not apply to it, and `look` does only with copy_back.
        """
        if is_on_gpu(source):
            scorer, batch = self.networks.on_gpu(), self.networks.batch
            work = scorer.score(source, self.tiling, batch=batch, stream=stream, max_pixels=self.max_pixels)
            work.source, work.tile_scores = name, self.networks.mapped(work.tile_scores)
            if look and self.copy_back:
                started, rgb = time.perf_counter(), scorer.to_host(source, stream)
                self._look(work, rgb, preprocess.working_image(rgb, self.p))
                work.timings_ms["attributes"] = ms_since(started)
            elif look:
                work.notes += (UNSEEN_NOTE,)
            return work
        clock = StageClock(stop)
        with clock("decode"):
            opened = open_source(source, self.max_pixels, self.max_memory)
        preprocess.check_size(opened.height, opened.width, self.p)
        with self.room.hold(opened.memory, clock.stopped):
            return self._prepare_opened(opened, name, clock=clock, near=near, look=look, keep=keep)

    def _prepare_opened(
        self, opened: Opened, name: str, *, clock: StageClock, near: UInt8 | None, look: bool, keep: bool
    ) -> Work:
        with clock("decode"):
            decoded = decode_within(opened, self.decode_timeout_s, clock.stopped)
        rgb, prepared, depth = decoded.rgb, None, self.networks.depth
        height, width = rgb.shape[:2]
        if near is None and depth is not None:
            with clock("depth_input"):
                prepared = preprocess.depth_input(rgb, self.p)
        with clock("tiles"):
            working = preprocess.working_image(rgb, self.p)
            windows = preprocess.windows_for(self.tiling, working.shape[0], working.shape[1], self.p.tile)
        scores = np.full(len(windows), np.nan, np.float32)
        work = Work(name, self.tiling, height, width, working, near, windows, clock.ms, scores, notes=decoded.notes)
        work.pixels = rgb if keep else None
        if look:
            with clock("attributes"):
                self._look(work, rgb, working)
        del decoded, rgb  # before the depth image, which may be as large
        if prepared is not None and depth is not None:
            with self.networks.turn, clock("depth"):
                seen = depth.run({spec.DEPTH_INPUT: prepared})[spec.DEPTH_OUTPUT]
            with clock("depth_image"):
                work.depth = preprocess.depth_image(seen, height, width, self.p)
        work.timings_ms = {stage: clock.ms[stage] for stage in STAGES if stage in clock.ms}
        return work

    def _look(self, work: Work, rgb: UInt8, working: UInt8) -> None:
        """Measure the attributes and bars of a picture from its pixels [H,W,3] and its working image."""
        p = self.p  # whether the working image is what `measure` would reduce the image to
        reduced = p.version >= 2 and p.short_side == SHORT_SIDE and min(rgb.shape[:2]) > SHORT_SIDE
        work.attributes = measure(rgb, working if reduced else None)
        if any(bars.find(working)):
            work.notes += (BARS_NOTE,)

    def finish(self, work: Work) -> Score:
        """The score of an image whose windows are all settled. Raises BackendError if one of them is not finite."""
        value, std_error = self.pooled(work.tile_scores)
        reasons = self.reasons(work.extra)
        return Score(
            value=value,
            std_error=std_error,
            tile_scores=work.tile_scores,
            windows=work.windows,
            tile=self.p.tile,
            width=work.width,
            height=work.height,
            working_width=work.rgb.shape[1],
            working_height=work.rgb.shape[0],
            tiling=work.tiling,
            timings_ms=work.timings_ms,
            bundle=self.bundle.id,
            backend=self.backend,
            source=work.source,
            reasons=reasons,
            faults=tuple(self.bundle.meaning.told(reasons)),
            verdict=verdict(value, self.gate),
            note=note_of(work.attributes, work.notes) if work.attributes else "; ".join(work.notes),
            attributes=work.attributes,
            tile_features=work.extra.get(spec.QUALITY_FEATURES) if self.features else None,
        )

    def reasons(self, extra: Mapping[str, Float32]) -> dict[str, float]:
        """Name -> mean probability over the tiles; empty where the network gives none, or no name for its columns."""
        found, named = extra.get(spec.QUALITY_REASONS), self.bundle.meaning.reasons
        if found is None or found.shape[1] != len(named):
            return {}
        return {reason.name: float(p) for reason, p in zip(named, found.mean(0, dtype=np.float64), strict=True)}

    def pooled(self, scores: Float32) -> tuple[float, float | None]:
        """The mean of tile scores [n], and its standard error; a single tile has none."""
        if not np.isfinite(scores).all():
            fix = f"compare with dgiqa-rt verify {self.bundle.name}"
            raise BackendError(f"the quality network gave {scores.tolist()}, wanted finite scores; {fix}")
        return mean_and_error(scores)

    def close(self) -> None:
        """Release the networks' memory."""
        self.networks.close()

    def __exit__(self, *error: object) -> None:
        self.close()


def open_stages(
    bundle: Bundle,
    *,
    backend: str = "auto",
    precision: str = "fp32",
    engine: Engine | None = None,
    threads: int | None = None,
    parallel: int = 1,
    batch: int | None = None,
    device: int | None = None,
    graphs: bool | None = None,
    **settings: Any,
) -> Stages:
    """Open a bundle's networks. engine: its files run where it has them, and it decides backend and precision.

    threads, parallel, batch, device, graphs: as in `scorer.Scorer`. settings: further fields of Stages.
    Raises BundleError for networks with other tensors than the contract's, BackendError if one cannot run here.
    """
    if engine:
        backend, precision = engine.backend, engine.precision
    options: dict[str, Any] = {"threads": threads, "parallel": parallel, "device": device, "graphs": graphs}
    opened = {
        network.file: _open(bundle, network, backend, precision, engine, **options) for network in bundle.networks
    }
    networks = networks_of(bundle, opened, parallel, batch)
    depth, quality = networks.depth, networks.quality
    other = "" if depth is None or depth.backend == quality.backend else f" (depth: {depth.backend})"
    # The backend's name in a score, such as "openvino-cpu 2026.4.1 int8"
    return Stages(bundle, networks, f"{quality.backend} {precision}{other}", precision, **settings)


def networks_of(bundle: Bundle, opened: Mapping[str, Session], parallel: int = 1, batch: int | None = None) -> Networks:
    """The bundle's networks from their sessions by file name, with the bundle's normalisation and map of scores."""
    depth, quality = opened.get(spec.DEPTH_FILE), opened[spec.QUALITY_FILE]
    return Networks(depth, quality, parallel, bundle.preprocess, batch, bundle.meaning.mapped)


def file_of(bundle: Bundle, file: str, engine: Engine | None) -> Path:
    """The file to open for one of the bundle's networks: the engine's file where it has one, else the bundle's own."""
    return (engine.files.get(file) if engine else None) or bundle.file(file)


def _open(
    bundle: Bundle, network: spec.Network, backend: str, precision: str, engine: Engine | None, **options: Any
) -> Session:
    """Open one network of the bundle. Raises BundleError unless it has the contract's tensors."""
    path, plugins = file_of(bundle, network.file, engine), engine.plugins if engine else ()
    session = open_session(path, backend, precision=precision, plugins=plugins, **options)
    inputs, outputs = set(network.inputs), set(network.outputs)
    if set(session.inputs) != inputs or not outputs <= set(session.outputs) <= outputs | set(network.further):
        maps = [f"{sorted(i)} -> {sorted(o)}" for i, o in ((session.inputs, session.outputs), (inputs, outputs))]
        raise BundleError(f"{bundle.id}: {network.file} maps {maps[0]}, wanted {maps[1]}; export it again")
    return session
