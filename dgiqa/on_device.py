"""Score images on a GPU without leaving it: only the tile scores are copied to the host.

    image u8 [H,W,3] ──► kept copy ──► depth input ──► depth network ──► minimum and maximum depth
                              └──► (working image) ──────► tiles ◄──┘ ──► quality network ──► scores, one copy

Version 1 of the preprocessing cuts tiles from the image itself, resizing as it goes. Version 2 averages areas, many of
which neighbouring tiles would share, so it makes the working image first.

Images wait for one of two lanes. A free lane takes the oldest image, and with it others of its size, as many as the
depth network takes at once. All their work after the copy is one CUDA graph, recorded when a size comes for the second
time, in memory that is kept per size. The kernels are in `runtime.kernels`; `preprocess` defines what they compute.
Not yet run on a GPU: checked with the emulated kernels, and networks on the CPU.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from dgiqa import preprocess, spec
from dgiqa.dtypes import Float32, UInt8
from dgiqa.errors import BackendError, DgiqaError, ImageError
from dgiqa.image import MAX_PIXELS
from dgiqa.runtime import cuda
from dgiqa.runtime.cuda import DeviceArray, Lane
from dgiqa.runtime.kernels import RANGE_WORDS, DepthMap, Image, Kernels, Nv12, is_finite, normalised_levels
from dgiqa.timing import ms_since
from dgiqa.work import Work

LANES = 2  # one is prepared while the other runs
SIZES = 4  # image sizes whose memory each lane keeps
_RANGE_BYTES = 16  # of one image's range, stored before the scores, so that one copy brings both
_WANTED = "wanted uint8 [H,W,3] RGB, [H,W] or [H,W,1] on the device"


class Bound(Protocol):
    """Arrays at fixed addresses, by name, and the network between them."""

    arrays: dict[str, DeviceArray]

    def put(self) -> None: ...


class Network(Protocol):
    """A session that reads and writes arrays on the device, such as TrtSession or OrtSession."""

    def bind(self, feeds: Mapping[str, Any], outputs: Mapping[str, Any] | None, lane: Lane) -> Bound: ...


@dataclass(eq=False)
class _Request:
    """An image that waits for a lane. source: keeps its memory alive. after: the streams that must be done with it."""

    image: Image | Nv12
    source: Any
    after: list[Any]
    tiling: str
    batch: int
    found: Future[Work] = field(default_factory=Future)
    started: float = field(default_factory=time.perf_counter)

    @property
    def like(self) -> tuple[Any, ...]:
        """A key: requests with equal keys can run together."""
        return self.image.height, self.image.width, self.tiling, self.batch


class DeviceScorer:
    """A bundle's two networks with the kernels between them, all on one device. Safe from several threads.

    depth, quality: sessions that take device arrays. lanes: each keeps the memory for the latest image sizes. together:
    at most this many waiting images of one size share a run of the depth network. home: the context that images must be
    in, if it is known.
    """

    def __init__(
        self,
        depth: Network,
        quality: Network,
        p: spec.Preprocess,
        *,
        kernels: Kernels,
        lanes: Sequence[Lane],
        together: int = 1,
        home: cuda.Context | None = None,
    ) -> None:
        self._home = home
        self._networks, self._p, self._kernels = (depth, quality), p, kernels
        self._together, self._lanes = together, list(lanes)
        self._free: queue.SimpleQueue[Lane] = queue.SimpleQueue()
        self._waiting: deque[_Request] = deque()
        self._turn = threading.Lock()
        with self._lanes[0].current():
            self._levels = self._lanes[0].empty((3, 256), np.float32)
            self._lanes[0].put(self._levels, normalised_levels())
        for lane in self._lanes:
            self._free.put(lane)

    def score(
        self, source: Any, tiling: str = "grid", *, batch: int = 8, stream: Any = None, max_pixels: int = MAX_PIXELS
    ) -> Work:
        """Score uint8 [H,W,3] or a decoder's NV12, after the work on the caller's stream, and wait for the scores.

        source: has __cuda_array_interface__ (any strides) or DLPack, or is a kernels.Nv12. tiling: as in Scorer.
        batch: most tiles per run of the quality network. The image may change once this returns or raises.
        The result's working image and depth image have the right shapes, but no pixels.
        Raises ImageError for another shape or dtype, DgiqaError if the depth is not finite, BackendError if something
        on the device fails.
        """
        image, after = self._placed(source, stream)
        if image.height * image.width > max_pixels:
            raise ImageError(
                f"{image.width} x {image.height}, limit {max_pixels:,} pixels; raise max_pixels (--max-pixels)"
            )
        preprocess.check_size(image.height, image.width, self._p)
        preprocess.check_tiling(tiling, self._p.tile)  # before it waits
        asked = _Request(image, source, after, tiling, batch)
        with self._turn:
            self._waiting.append(asked)
        lane = self._free.get()
        try:
            # Every caller takes the oldest requests, even if its own is not among them, so that none is left behind.
            self._run(lane, self._take())
        finally:
            self._free.put(lane)
        return asked.found.result()

    def to_host(self, source: Any, stream: Any = None) -> UInt8:
        """Copy an image that `score` takes to the host: uint8 [H,W,3] RGB. Raises as `score` does."""
        image, after = self._placed(source, stream)
        lane = self._free.get()
        try:
            with lane.current():
                for each in after:
                    lane.follow(each)
                rgb = lane.empty((image.height, image.width, 3), np.uint8)
                _place(image, rgb.pointer, lane, self._kernels)
                return lane.numpy(rgb)
        finally:
            self._free.put(lane)

    def close(self) -> None:
        """Release the memory. The sessions stay open: they are the caller's."""
        if not self._lanes:
            return
        for _ in self._lanes:
            self._free.get()
        for lane in self._lanes:
            with lane.current():
                lane.close()
        self._lanes = []

    def _placed(self, source: Any, stream: Any) -> tuple[Image | Nv12, list[Any]]:
        """An image on this GPU, and the streams that must be done with it."""
        image, producer = device_image(source, stream)
        if self._home is not None:
            try:
                self._home.check_home(image.luma if isinstance(image, Nv12) else image.pointer)
            except ValueError as error:
                raise ImageError(str(error)) from error
        return image, [s for s in (stream, producer) if s is not None]

    def _take(self) -> list[_Request]:
        """The oldest request and those like it, a power of two of them, to keep the number of different plans small."""
        with self._turn:
            if not self._waiting:
                return []
            like = [request for request in self._waiting if request.like == self._waiting[0].like]
            count = 1 << (min(len(like), self._together).bit_length() - 1)
            for request in like[:count]:
                self._waiting.remove(request)
            return like[:count]

    def _run(self, lane: Lane, requests: list[_Request]) -> None:
        if not requests:
            return
        try:
            with lane.current():
                try:
                    self._answer(lane, requests)
                finally:
                    lane.sync()  # whatever happened, nothing may still read the images
        except Exception as error:
            for request in requests:
                if not request.found.done():
                    request.found.set_exception(error)

    def _answer(self, lane: Lane, requests: list[_Request]) -> None:
        like, count = requests[0], len(requests)
        plan: _Plan = lane.recent((*like.like, count), lambda: _Plan(self, lane, like, count))
        for i, request in enumerate(requests):
            for stream in request.after:
                lane.follow(stream)
            _place(request.image, plan.at(plan.pixels, i), lane, self._kernels)
        plan.run()
        plan.answer(requests)


class _Plan:
    """The memory and the bound networks for `count` images of one size, tiling and batch, and the work between them."""

    def __init__(self, scorer: DeviceScorer, lane: Lane, like: _Request, count: int) -> None:
        p, (depth, quality) = scorer._p, scorer._networks
        self._kernels, self._lane, self._levels, self._p = scorer._kernels, lane, scorer._levels.pointer, p
        self.size = height, width = like.image.height, like.image.width
        self.short = preprocess.working_size(height, width, p)
        self.windows = preprocess.windows_for(like.tiling, *self.short, p.tile)
        self.count, self.depth_size = count, preprocess.depth_size(height, width, p)
        total = count * len(self.windows)
        self.batch = min(like.batch, total)
        self.pixels = lane.empty((count, height, width, 3), np.uint8)
        self.depth_in = lane.empty((count, 3, *self.depth_size), np.float32)
        self.depth = lane.empty((count, *self.depth_size), np.float32)
        self.rgb, self.near = (lane.empty((self.batch, 3, p.tile, p.tile), np.float32) for _ in range(2))
        reduced = self.size != self.short and preprocess.reduces(self.size, self.short, p)
        self.working = lane.empty((count, *self.short, 3), np.uint8) if reduced else None
        self._run_depth = depth.bind({spec.DEPTH_INPUT: self.depth_in}, {spec.DEPTH_OUTPUT: self.depth}, lane)
        parts = {self.batch, (total - 1) % self.batch + 1}  # full ones and the last
        feeds = {spec.QUALITY_RGB: self.rgb, spec.QUALITY_DEPTH: self.near}
        self._run_quality = {
            n: quality.bind({name: _first(array, n) for name, array in feeds.items()}, None, lane) for n in parts
        }
        outputs = self._run_quality[self.batch].arrays
        names = [n for n in outputs if n not in (spec.QUALITY_RGB, spec.QUALITY_DEPTH)]
        self._columns = {n: int(np.prod(outputs[n].shape[1:], dtype=np.int64)) for n in names}
        self._starts, nbytes = {}, _RANGE_BYTES * count
        for name, columns in self._columns.items():
            self._starts[name], nbytes = nbytes, nbytes + 4 * columns * total
        self._found = lane.empty((nbytes,), np.uint8)

    def place(self, i: int) -> int:
        """The address at which the work expects image i."""
        return self.at(self.pixels, i)

    def run(self) -> None:
        self._lane.replay(self, self._work)

    def answer(self, requests: list[_Request]) -> None:
        """Wait for the work, and give each request its scores, or its error."""
        data = self._lane.numpy(self._found)
        rows = {name: self._rows(data, name) for name in self._columns}
        scores = rows.pop(spec.QUALITY_OUTPUT)
        there = np.broadcast_to(np.uint8(0), self.short)  # in place of the working images, whose pixels stay on the GPU
        for i, request in enumerate(requests):
            words = data[_RANGE_BYTES * i :][: 4 * RANGE_WORDS].view(np.uint32)
            if not is_finite(words):
                request.found.set_exception(DgiqaError(preprocess.NOT_FINITE))
                continue
            ms, extra = {"device": ms_since(request.started)}, {name: each[i] for name, each in rows.items()}
            own, n = scores[i].reshape(-1), len(self.windows)
            work = Work("<device>", request.tiling, *self.size, there, there, self.windows, ms, own, n, n, extra=extra)
            request.found.set_result(work)

    def _work(self) -> None:
        """Enqueue everything from the kept copies to the kept scores; it is the same for every image."""
        for i in range(self.count):
            self._depth_input(i)
        self._run_depth.put()
        for i in range(self.count):
            self._kernels.depth_range(self._depth_map(i), self._lane.handle)
        tiles = [(i, first) for i in range(self.count) for first in range(len(self.windows))]
        for begin in range(0, len(tiles), self.batch):
            part = tiles[begin : begin + self.batch]
            for i in dict.fromkeys(image for image, _ in part):
                own = [k for k, (image, _) in enumerate(part) if image == i]
                self._cut(i, part[own[0]][1], len(own), own[0])
            self._run_quality[len(part)].put()
            for name, columns in self._columns.items():  # to their own place, before the next part overwrites them
                source = self._run_quality[len(part)].arrays[name].pointer
                start = self._found.pointer + self._starts[name] + 4 * columns * begin
                self._lane.copy(start, source, 4 * columns * len(part))

    def _depth_input(self, i: int) -> None:
        into, stream = self.at(self.depth_in, i), self._lane.handle
        if preprocess.reduces(self.size, self.depth_size, self._p):
            size, levels = self.depth_size, self._levels
            self._kernels.reduce(self._image(i), size, into, levels=levels, dtype=np.float32, stream=stream)
        else:
            self._kernels.depth_input(self._image(i), self.depth_size, into, stream=stream)
        if self.working is not None:
            self._kernels.reduce(self._image(i), self.short, self.at(self.working, i), stream=stream)

    def _cut(self, i: int, first: int, count: int, at: int) -> None:
        """Cut tiles `first` to `first + count` of an image into the batch, from position `at` on."""
        image = self._image(i)
        if self.working is not None:
            image = Image(self.at(self.working, i), *self.short, (3 * self.short[1], 3, 1))
        self._kernels.tiles(
            image,
            self._depth_map(i),
            self.short,
            self.windows[first : first + count],
            tile=self._p.tile,
            levels=self._levels,
            out=(self.at(self.rgb, at), self.at(self.near, at)),
            stream=self._lane.handle,
        )

    def _image(self, i: int) -> Image:
        return Image(self.at(self.pixels, i), *self.size, (3 * self.size[1], 3, 1))

    def _depth_map(self, i: int) -> DepthMap:
        size = self.size if self._p.version == 1 else self.short
        return DepthMap(self.at(self.depth, i), self.depth_size, size, self._found.pointer + _RANGE_BYTES * i)

    def _rows(self, data: UInt8, name: str) -> Float32:
        """An output for every tile of every image: f32 [count,n,columns]."""
        columns, n = self._columns[name], len(self.windows)
        values = data[self._starts[name] :][: 4 * self.count * n * columns].view(np.float32)
        return values.reshape(self.count, n, columns).copy()

    @staticmethod
    def at(array: DeviceArray, i: int) -> int:
        """The address of item i of an array."""
        return array.pointer + i * (array.nbytes // array.shape[0])


def open_device_scorer(depth: Any, quality: Any, p: spec.Preprocess) -> DeviceScorer:
    """A DeviceScorer for two open sessions of a backend that runs on a GPU.

    Raises BackendError for sessions on a CPU, without a GPU, cuda-python or the library of kernels.
    """
    if depth is None:
        raise BackendError("images on a GPU are scored by models with a depth network; copy the image to the host")
    _check_on_a_gpu(quality)
    kernels = Kernels()
    if kernels.emulated:
        raise BackendError(f"{kernels.path} emulates the kernels on a CPU; set DGIQA_KERNELS to a CUDA build of it")
    context = context_of(quality)
    record = all(getattr(each, name, True) for each in (depth, quality) for name in ("recordable", "graphs"))
    lanes = [Lane(context, keep=SIZES, record=record) for _ in range(LANES)]
    together = min(getattr(depth, "most_at_once", 1), 8)
    return DeviceScorer(depth, quality, p, kernels=kernels, lanes=lanes, together=together, home=context)


def context_of(session: Any) -> cuda.Context:
    """The CUDA context of a session's arrays. BackendError if it runs on a CPU."""
    _check_on_a_gpu(session)
    return getattr(session, "context", None) or cuda.Context(session.device)


def _check_on_a_gpu(session: Any) -> None:
    if not hasattr(session, "bind") or session.backend.startswith("onnxruntime-cpu"):
        raise BackendError(
            f"networks in {session.backend} take no arrays on a GPU; choose the backend tensorrt, "
            "tensorrt-rtx or onnxruntime-cuda, or leave pictures on the host"
        )


def device_image(source: Any, stream: Any = None) -> tuple[Image | Nv12, int | None]:
    """A uint8 image on a device as the kernels read it, and its producer's stream to wait for, if there is one.

    Views are read in place: pitched rows, the first three channels of RGBA, BGR as image[..., ::-1], planes as
    image.permute(1, 2, 0). Grey [H,W] and [H,W,1] are read three times. A kernels.Nv12 is returned unchanged.
    Raises ImageError for another shape or dtype.
    """
    if isinstance(source, Nv12):
        return source, None
    try:
        array = cuda.view_of(source, stream or 0)
    except TypeError as error:
        raise ImageError(str(error)) from error
    shape, dtype = array.shape, array.dtype
    if dtype != np.uint8 or len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3)) or 0 in shape:
        hint = "; take image[..., :3]" if len(shape) == 3 and shape[2] == 4 else ""
        raise ImageError(f"got {dtype} {list(shape)}, {_WANTED}{hint}")
    packed = (shape[1] * shape[2], shape[2], 1) if len(shape) == 3 else (shape[1], 1)
    strides, colour = array.strides or packed, len(shape) == 3 and shape[2] == 3
    return Image(array.pointer, shape[0], shape[1], (strides[0], strides[1], strides[2] if colour else 0)), array.stream


def _place(image: Image | Nv12, target: int, lane: Lane, kernels: Kernels) -> None:
    """Copy an image to an address, as contiguous RGB whatever its strides are."""
    row = 3 * image.width
    if isinstance(image, Nv12):
        kernels.nv12(image, target, stream=lane.handle)
    elif image.strides == (row, 3, 1):
        lane.copy(target, image.pointer, row * image.height)
    else:  # averages over areas of one pixel
        kernels.reduce(image, (image.height, image.width), target, stream=lane.handle)


def _first(array: DeviceArray, n: int) -> DeviceArray:
    """The first n of an array's items, in the same memory."""
    return DeviceArray(array.pointer, (n, *array.shape[1:]), array.dtype, None, array)
