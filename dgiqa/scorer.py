"""The public face: a bundle's networks opened once, for images, lists of images, videos and pushed frames.

`Scorer.score` takes one image. `Scorer.score_many` takes any number: threads decode and prepare the next images while
the networks run, tiles of neighbouring images share batches, and memory use does not grow with the number of images.
The pass over one image is `forward.Stages`; the scheduler around it is `pipeline`.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dgiqa import pipeline, spec
from dgiqa.bundle import Bundle, load_bundle
from dgiqa.errors import BackendError, EngineError
from dgiqa.forward import BATCH, Stages, file_of, open_stages
from dgiqa.image import MAX_MEMORY, MAX_PIXELS
from dgiqa.image.sources import TIMEOUT_S, Room, Source, name_of
from dgiqa.inbox import Inbox
from dgiqa.machine import usable_cores
from dgiqa.preprocess import check_tiling
from dgiqa.runtime import engines
from dgiqa.runtime.backends import TENSORRT, choose, parallel_runs
from dgiqa.runtime.engines import Engine
from dgiqa.runtime.kernels import is_on_gpu
from dgiqa.score import Failure, Score
from dgiqa.sources.inputs import Input

if TYPE_CHECKING:
    from dgiqa.compare import Comparison
    from dgiqa.explain import Explanation
    from dgiqa.video.reuse import Reuse
    from dgiqa.video.source import VideoSource
    from dgiqa.video.stream import FrameStream


class Scorer(AbstractContextManager["Scorer"]):
    """The two networks of a bundle, ready to score. `score` may be called from several threads at once.

    A Scorer can be pickled; unpickling opens it again. A fork of the process must open its own.

    bundle: a name ("small"), a directory, or a loaded Bundle. backend: "auto" or a name in `backends.BACKENDS`.
    precision: one of `spec.PRECISIONS`. fp32 runs the bundle's own files; anything else, and TensorRT, runs an engine
    that was built and proved on this machine (`dgiqa-rt build`). build: build it now if it is missing or stale, which
    takes minutes; a function gets a line about each step. engine: the directory of an engine, instead of looking for
    one; it decides backend and precision.
    tiling: "grid" (covers every pixel) or "official:COUNT[:SEED]" (the authors' random crops).
    batch: most tiles per run of the quality network, by default 8, or 4 in each of several runs at a time.
    threads: for the networks, by default all usable cores.
    parallel: concurrent runs of a network, which share the threads; "auto" takes the number that scores most images a
    second (`backends.parallel_runs`). By default `score` gives all threads to one run, and `score_many` and videos run
    as with "auto", on networks of their own that open when first needed.
    max_pixels: larger images are refused before they are decoded. max_memory: bytes that one image may take while it
    is prepared, by default `image.MAX_MEMORY` (832 MiB), or any where max_pixels was raised; images prepared at
    a time share as much. decode_timeout_s: an image that takes longer to decode is given up.
    gate: the score from which an image passes, or the name of one of the bundle's presets; it decides `verdict`.
    features: keep the last layer's input for each tile in the scores, where the bundle's network provides it.
    device: the GPU's ordinal as CUDA counts, by default the current context's, else the first.
    graphs: whether the GPU records CUDA graphs, by default only with TensorRT. copy_back: copy each picture on a GPU to
    the host, to measure its attributes and bars, too.
    Raises BundleError, BackendError, EngineError if there is no such engine, or ValueError for invalid arguments.
    """

    def __init__(
        self,
        bundle: str | Path | Bundle = "small",
        *,
        backend: str = "auto",
        precision: str = "fp32",
        build: bool | Callable[[str], None] = False,
        engine: str | Path | Engine | None = None,
        tiling: str = "grid",
        batch: int | None = None,
        threads: int | None = None,
        parallel: int | Literal["auto"] | None = None,
        max_pixels: int | None = None,
        max_memory: int | None = None,
        decode_timeout_s: float = TIMEOUT_S,
        gate: float | str | None = None,
        features: bool = False,
        device: int | None = None,
        graphs: bool | None = None,
        copy_back: bool = False,
    ) -> None:
        self._opened_with = dict(locals())  # what a pickle holds; an engine is built by then
        for name in ("self", "bundle", "build"):
            del self._opened_with[name]
        self._process = os.getpid()
        for name in ("batch", "threads", "parallel", "max_pixels", "max_memory"):
            number = self._opened_with[name]
            if isinstance(number, int) and number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        if not decode_timeout_s > 0:
            raise ValueError(f"decode_timeout_s must be above 0, got {decode_timeout_s}")
        self.bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
        self.max_pixels = MAX_PIXELS if max_pixels is None else max_pixels
        check_tiling(tiling, self.bundle.preprocess.tile)
        self.gate = self.bundle.meaning.preset(gate) if isinstance(gate, str) else gate
        if self.gate is not None and not 0 <= self.gate <= 1:
            raise ValueError(f"gate is {gate}, wanted a score in 0..1 or the name of a preset")
        built = _engine(self.bundle, backend, precision, build, engine=engine, device=device)
        if built:
            backend, precision = built.backend, built.precision
        threads = usable_cores() if threads is None else threads
        chosen = choose(backend, precision)
        most = parallel_runs(file_of(self.bundle, spec.QUALITY_FILE, built), chosen, threads)
        taken = self._opened_with | {
            **{"backend": backend, "precision": precision, "engine": built, "threads": threads, "gate": self.gate},
            "batch": batch or (BATCH if chosen == TENSORRT else None),  # memory is plentiful there
            **{"max_pixels": self.max_pixels, "room": Room(max_memory or MAX_MEMORY)},
        }
        # A closure over self would keep this scorer alive until the next collection.
        opened: Callable[..., Stages] = partial(open_stages, self.bundle, **taken)
        shared = parallel == "auto" or (parallel is None and chosen == TENSORRT)  # runs there share no threads
        self._alone: Stages | None = opened(parallel=most if shared else parallel or 1)
        self._together = self._alone if parallel or shared or most == 1 else None
        self._open_together = partial(opened, parallel=most)
        self._opening = threading.Lock()
        self._inbox: Inbox | None = None
        self.precision, self.backend = precision, self._alone.backend

    @property
    def tiling(self) -> str:
        """How tiles are laid out, unless a call has its own tiling."""
        return str(self._opened_with["tiling"])

    @property
    def origin(self) -> dict[str, str]:
        """What scores come from, by the columns of rows: bundle, backend and tiling."""
        return self._usable().origin

    def score(
        self, source: Source | Any, *, name: str | None = None, tiling: str | None = None, stream: Any = None
    ) -> Score:
        """Score one image: a path, encoded bytes, an array (see `image.as_rgb`), a Pillow image or an open binary file.

        An array uint8 [H,W,3] on a GPU (PyTorch, CuPy, PyCUDA, ...; see `on_device.device_image`) is scored there, on
        `stream`. name: the score's `source`. tiling: replaces the scorer's own.
        Raises ImageError if the source holds no image, BackendError if a network fails, ValueError for a wrong tiling.
        """
        stages = self._usable().tiled(tiling)
        if is_on_gpu(source):
            return stages.finish(stages.prepare(source, name or name_of(source), look=True, stream=stream))
        if stream is not None:
            raise ValueError("got a stream for an image that is not on a GPU; leave it out")
        return stages.score(source, name=name)

    async def ascore(self, source: Source, *, name: str | None = None, tiling: str | None = None) -> Score:
        """Score one image, as `score` does, without blocking the event loop; concurrent calls share batches.

        A call that is cancelled while its image waits costs nothing; later, its result is thrown away.
        """
        from asyncio import wrap_future

        if tiling is not None:
            check_tiling(tiling, self.bundle.preprocess.tile)
        return await wrap_future(self.inbox.submit(source, name=name, tiling=tiling))

    @property
    def inbox(self) -> Inbox:
        """The running pass that scores the images of `ascore`. It opens at first use and closes with this scorer."""
        self._usable()
        with self._opening:
            self._inbox = self._inbox or Inbox(lambda: self.stages)
            return self._inbox

    def compare(self, source: Source, reference: Source, **options: Any) -> Comparison:
        """Compare an image with its reference, both as `score` takes them on the host: scores, drop, full reference.

        options: name, reference_name, tiling, as in `score`. Raises ImageError if either is not an image or their
        sizes differ, BackendError if a network fails, ValueError for a wrong tiling.
        """
        from dgiqa.compare import compare

        return compare(self._usable(), source, reference, **options)

    def explain(self, source: Source, *, name: str | None = None, cam: bool = False) -> Explanation:
        """A map of an image's quality, its lowest tiles, the tiles that decide, and whether near or far is worse.

        cam: add Grad-CAM of the last maps, with and without depth, by ONNX Runtime from the bundle's fp32 file.
        Raises as `score` does; with `cam` also BundleError where the last layer is not linear, and BackendError without
        onnx.
        """
        from dgiqa.explain import explain
        from dgiqa.last_layer import CamSession

        stages = self._usable()
        session = CamSession(self.bundle.file(spec.QUALITY_FILE)) if cam else None
        return explain(stages, source, name=name, cam=session)

    @property
    def stages(self) -> Stages:
        """The networks that score many images and frames, ready for `pipeline.score_many` and `video.VideoRun`.

        They open at first use and close with this scorer.
        """
        self._usable()
        with self._opening:
            self._together = self._together or self._open_together()
            return self._together

    def score_many(
        self,
        sources: Iterable[Source | tuple[str, Source] | Input | Failure],
        *,
        on_error: Literal["row", "raise"] = "row",
        workers: int | None = None,
        batch: int | None = None,
    ) -> Iterator[Score | Failure]:
        """Score images lazily, in the order given.

        Each image is anything that `score` accepts, a pair (name, source), or an Input from `dgiqa.sources.images(
        table, column, key)` or `expand`. A Failure among them is yielded in its place.
        At most 2 * workers + (parallel + 2) * batch images are taken from `sources` beyond those yielded, however many
        there are; it is iterated in the caller's thread. An image that cannot be scored is yielded as a Failure, or,
        with on_error="raise", its exception is raised in its place. An exception of `sources` itself is raised after
        the results so far. Closing the iterator, or an interrupt, ends the threads after their current stage and waits
        two seconds at most. An array must not change before its result is yielded.
        workers: threads that decode and prepare, by default `machine.preparing_threads`. batch: as in Scorer.
        """
        self._usable()
        return pipeline.score_many(lambda: self.stages, sources, on_error=on_error, workers=workers, batch=batch)

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
        """Score frames of a video lazily: a row (`report.rows.FRAME_COLUMNS`) per frame, in order of time.

        A frame that cannot be decoded is a row with an error, and so is a source that cannot be read (to its end).
        source: a path, an http(s), HLS, RTSP, RTMP, SRT or UDP address, "-" (a container on standard input) or an open
        binary file. every: seconds between frames, by default 1; 0 scores all of them. count: instead, frames over the
        whole video. per_scene: instead, frames of each scene. start, end: seconds. reuse: let frames take over the
        depth image (and tile scores) of earlier ones, see `reuse.Reuse`. reading: the fields of `video.Reading`: raw,
        live, timeout_s, deinterlace, bars, max_pixels.
        Raises ValueError for invalid arguments, BackendError without PyAV. Closing the iterator ends the run.
        """
        from dgiqa.video import Reading, VideoRun
        from dgiqa.video.sampling import Sampling

        known = Reading.__dataclass_fields__.keys()
        if unknown := ", ".join(sorted(reading.keys() - known)):
            raise ValueError(f"score_video does not take {unknown}; of how a video is read it takes {', '.join(known)}")
        sampling = Sampling(every, count, per_scene, start, end)
        return VideoRun(self.stages, [source], sampling, reading=Reading(**reading), reuse=reuse).rows()

    def stream(
        self, *, live: bool = False, capacity: int = 4, reuse: Reuse | None = None, **options: Any
    ) -> FrameStream:
        """A thread-safe stream: `push(image, time_s)` pictures from any thread, `pull()` rows in another.

        Use it as a context manager; `finish()` ends it after the last push. live: when `capacity` frames wait, a push
        drops the oldest of them instead of waiting. options: tiling, batch, workers, as in Scorer and score_many.
        """
        from dgiqa.video.channel import Channel
        from dgiqa.video.scoring import FrameScorer
        from dgiqa.video.stream import FrameStream

        frames = FrameScorer(self.stages, Channel(capacity), reuse=reuse, **options)
        return FrameStream(frames, live=live, capacity=capacity)

    def close(self) -> None:
        """Release the networks' memory once all images of `ascore` are done. The scorer cannot be used afterwards."""
        if self._process != os.getpid():  # a fork must not close what its parent opened
            return
        if self._inbox is not None:
            self._inbox.close()
        for stages in {self._alone, self._together} - {None}:
            stages.close()  # type: ignore[union-attr]
        self._alone = self._together = None

    def __reduce__(self) -> tuple[Callable[[], Scorer], tuple[()]]:
        """Pickle the arguments: another process opens its own networks of the same bundle."""
        return partial(Scorer, self.bundle, **self._opened_with), ()

    def __exit__(self, *error: object) -> None:
        self.close()

    def _usable(self) -> Stages:
        """The networks. Raises ValueError after `close`, and BackendError in a fork, which lacks their threads."""
        if self._process != os.getpid():
            raise BackendError(
                f"this Scorer was opened in process {self._process} and cannot be used in its fork {os.getpid()}; "
                "open one after the fork, or start processes by spawn"
            )
        if self._alone is None:
            raise ValueError("this Scorer was closed; make another one")
        return self._alone


def _engine(
    bundle: Bundle,
    backend: str,
    precision: str,
    build: bool | Callable[[str], None],
    *,
    engine: str | Path | Engine | None,
    device: int | None,
) -> Engine | None:
    """The engine to run, or None where the bundle's own files run."""
    if isinstance(engine, Engine):
        return engine
    if engine is not None:
        return engines.load(engine, bundle, device)
    if choose(backend, precision) != TENSORRT and precision == "fp32":
        return None
    try:
        return engines.find(bundle, backend, precision, device)
    except EngineError:
        if not build:
            raise
    from dgiqa.builder.build import build as build_engine

    told = build if callable(build) else lambda line: None
    return build_engine(bundle, backend=backend, precision=precision, device=device, progress=told)
