"""An image on a GPU becomes tile scores there; only the scores are copied to the host.

    image u8 [H,W,3] ──► depth input ──► depth network ──► least and greatest depth
            └──► (working image) ───────► tiles ◄──┘ ──► quality network ──► scores, one copy to the host

Version 1 of the preprocessing cuts tiles from the image itself, resizing as it goes. Version 2 averages areas, of which
neighbouring tiles would share too many, so it makes the working image first.

Everything is put on one stream, in memory that is kept per image size, so that nothing is allocated from the second
image of a size on. The kernels are `native`'s, `preprocess` is what they mean. Checked with the emulated kernels and
networks on the CPU; not yet run on a GPU.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dgiqa import preprocess, spec
from dgiqa.errors import BackendError, DgiqaError, ImageError
from dgiqa.runtime import cuda
from dgiqa.runtime.cuda import DeviceArray
from dgiqa.runtime.kernels import RANGE_WORDS, DepthMap, Image, Kernels, is_finite, normalised_levels

_SCORES_AT = 16  # bytes: where the scores start behind the range, so that one copy brings both
_WANTED = "wanted uint8 [H,W,3] RGB, [H,W] or [H,W,1] on the device"


class Binding(Protocol):
    """Arrays at fixed places, and the network between them."""

    def enqueue(self, stream: int) -> None: ...

    def close(self) -> None: ...


class Network(Protocol):
    """A session that reads and writes arrays on the device, as TrtSession does."""

    def bind(self, feeds: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray]) -> Binding: ...


class Memory(Protocol):
    """A device's memory. Pointers are the device's, streams are handles; copies are in the stream's order."""

    stream: int  # its own, for callers that have none

    def current(self) -> AbstractContextManager[None]: ...

    def empty(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray: ...

    def copy(self, target: int, source: int, nbytes: int, stream: int) -> None: ...

    def upload(self, target: int, array: NDArray[Any], stream: int) -> None: ...

    def download(self, source: int, nbytes: int, stream: int) -> NDArray[np.uint8]: ...

    def follow(self, stream: int, producer: int) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class DeviceScores:
    """Scores of one image on the device: f32 [n], int32 [n,2] windows, sizes as (height, width), wall time."""

    tile_scores: NDArray[np.float32]
    windows: NDArray[np.int32]
    size: tuple[int, int]
    working_size: tuple[int, int]
    ms: float


class DeviceScorer:
    """A bundle's two networks with the kernels between them, all on one device.

    depth, quality: sessions that take device arrays. sizes: image sizes whose memory is kept, least recently used
    first out; one of 8 tiles takes some 25 MB. Safe from several threads, which take turns.
    """

    def __init__(
        self,
        depth: Network,
        quality: Network,
        p: spec.Preprocess,
        *,
        kernels: Kernels,
        memory: Memory,
        sizes: int = 4,
    ) -> None:
        self._networks, self._p, self._kernels, self._memory = (depth, quality), p, kernels, memory
        self._sizes = sizes
        self._plans: OrderedDict[tuple[int, int, int, int], _Plan] = OrderedDict()
        self._turn = threading.Lock()
        with memory.current():
            self._levels = memory.empty((3, 256), np.float32)
            memory.upload(self._levels.pointer, normalised_levels(), memory.stream)

    def score(self, source: Any, tiling: str = "grid", *, batch: int = 8, stream: Any = None) -> DeviceScores:
        """Score uint8 [H,W,3] in place, on the caller's stream, and wait for the scores.

        source: offers __cuda_array_interface__ (any strides) or DLPack (contiguous). tiling: as in Scorer. batch: most
        tiles per run of the quality network. Raises ImageError for another shape or dtype, DgiqaError if the depth is
        not finite, BackendError if something on the device fails.
        """
        started = time.perf_counter()
        with self._turn, self._memory.current():
            handle = self._memory.stream if stream is None else cuda.stream_handle(stream)
            image, producer = device_image(source, handle)
            if producer is not None and producer != handle:
                self._memory.follow(handle, producer)
            size = (image.height, image.width)
            short = preprocess.working_size(*size, self._p)
            windows = preprocess.windows_for(tiling, *short, self._p.tile)
            plan = self._plan(size, len(windows), batch)
            self._enqueue(plan, image, short, windows, handle)
            scores = plan.result(handle)
        return DeviceScores(scores, windows, size, short, (time.perf_counter() - started) * 1e3)

    def close(self) -> None:
        """Release the memory. The sessions stay open: they are the caller's."""
        with self._turn, self._memory.current():
            while self._plans:
                self._plans.popitem()[1].close()
        self._memory.close()

    def _plan(self, size: tuple[int, int], count: int, batch: int) -> _Plan:
        key = (*size, count, batch)
        if key not in self._plans:
            while len(self._plans) >= self._sizes:
                self._plans.popitem(last=False)[1].close()
            self._plans[key] = _Plan(self._networks, self._memory, self._p, size, count=count, batch=batch)
        self._plans.move_to_end(key)
        return self._plans[key]

    def _enqueue(
        self, plan: _Plan, image: Image, short: tuple[int, int], windows: NDArray[np.int32], stream: int
    ) -> None:
        kernels, tile = self._kernels, self._p.tile
        size, levels = (image.height, image.width), self._levels.pointer
        if preprocess.reduces(size, plan.depth_size, self._p):
            into = plan.depth_in.pointer
            kernels.reduce(image, plan.depth_size, into, levels=levels, dtype=np.float32, stream=stream)
        else:
            kernels.depth_input(image, plan.depth_size, plan.depth_in.pointer, stream=stream)
        plan.run_depth.enqueue(stream)
        if plan.working is not None:
            kernels.reduce(image, short, plan.working.pointer, stream=stream)
            image = Image(plan.working.pointer, *short, (3 * short[1], 3, 1))
        depth_size = size if self._p.version == 1 else short
        depth = DepthMap(plan.depth.pointer, plan.depth_size, depth_size, plan.results.pointer)
        kernels.depth_range(depth, stream)
        outputs = (plan.rgb.pointer, plan.near.pointer)
        for first in range(0, len(windows), plan.batch):
            part = windows[first : first + plan.batch]
            kernels.tiles(image, depth, short, part, tile=tile, levels=levels, out=outputs, stream=stream)
            plan.run_quality[len(part)].enqueue(stream)
            plan.keep(first, len(part), stream)


class _Plan:
    """The memory and the bound networks for one image size, number of tiles and batch."""

    def __init__(
        self,
        networks: tuple[Network, Network],
        memory: Memory,
        p: spec.Preprocess,
        size: tuple[int, int],
        *,
        count: int,
        batch: int,
    ) -> None:
        depth, quality = networks
        self.depth_size = h, w = preprocess.depth_size(*size, p)
        self.count, self.batch, self._memory = count, min(batch, count), memory
        self.depth_in, self.depth = memory.empty((1, 3, h, w), np.float32), memory.empty((1, h, w), np.float32)
        self.rgb, self.near = (memory.empty((self.batch, 3, p.tile, p.tile), np.float32) for _ in range(2))
        short = preprocess.working_size(*size, p)
        reduced = size != short and preprocess.reduces(size, short, p)
        self.working = memory.empty((*short, 3), np.uint8) if reduced else None
        self.scores = memory.empty((self.batch,), np.float32)
        self.results = memory.empty((_SCORES_AT + 4 * count,), np.uint8)
        self.run_depth = depth.bind({spec.DEPTH_INPUT: self.depth_in}, {spec.DEPTH_OUTPUT: self.depth})
        parts = {self.batch, (count - 1) % self.batch + 1}  # full ones and the last
        self.run_quality = {n: self._bind_quality(quality, n) for n in parts}

    def keep(self, first: int, count: int, stream: int) -> None:
        """Put a part's scores beside the others, before the next part overwrites them."""
        target = self.results.pointer + _SCORES_AT + 4 * first
        self._memory.copy(target, self.scores.pointer, 4 * count, stream)

    def result(self, stream: int) -> NDArray[np.float32]:
        """Wait; the scores, f32 [n]."""
        data = self._memory.download(self.results.pointer, self.results.nbytes, stream)
        if not is_finite(data[: 4 * RANGE_WORDS].view(np.uint32)):
            raise DgiqaError(
                "the depth network returned NaN or infinity; check its file and precision: dgiqa-rt verify"
            )
        return data[_SCORES_AT:].view(np.float32).copy()

    def close(self) -> None:
        for binding in (self.run_depth, *self.run_quality.values()):
            binding.close()

    def _bind_quality(self, quality: Network, n: int) -> Binding:
        feeds = {spec.QUALITY_RGB: _first(self.rgb, n), spec.QUALITY_DEPTH: _first(self.near, n)}
        return quality.bind(feeds, {spec.QUALITY_OUTPUT: _first(self.scores, n)})


class CudaMemory:
    """Memory of the GPU whose context is current in the calling thread, else of the first one."""

    def __init__(self) -> None:
        self._context = cuda.Context()
        self._own, self._ready = cuda.Stream(self._context), cuda.Event(self._context)
        self._pinned = cuda.PinnedBuffer(self._context, 1)
        self.stream = int(self._own)

    def current(self) -> AbstractContextManager[None]:
        return self._context.current()

    def empty(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        return cuda.empty(self._context, shape, dtype)

    def copy(self, target: int, source: int, nbytes: int, stream: int) -> None:
        cuda.copy_within(target, source, nbytes, stream)

    def upload(self, target: int, array: NDArray[Any], stream: int) -> None:
        """Returns once the copy is done: one page-locked buffer serves all."""
        pinned = self._staging(array.nbytes)
        pinned.array(array.shape, array.dtype)[...] = array
        cuda.copy_in(target, pinned, array.nbytes, stream)
        cuda.synchronize(stream)

    def download(self, source: int, nbytes: int, stream: int) -> NDArray[np.uint8]:
        pinned = self._staging(nbytes)
        cuda.copy_out(pinned, source, nbytes, stream)
        cuda.synchronize(stream)
        return pinned.array((nbytes,), np.dtype(np.uint8)).copy()

    def follow(self, stream: int, producer: int) -> None:
        self._ready.record(producer)
        cuda.follow(stream, self._ready)

    def close(self) -> None:
        for resource in (self._pinned, self._ready, self._own):
            resource.close()

    def _staging(self, nbytes: int) -> cuda.PinnedBuffer:
        if self._pinned.nbytes < nbytes:
            self._pinned.close()
            self._pinned = cuda.PinnedBuffer(self._context, nbytes)
        return self._pinned


class ThroughHost:
    """A session that reads device arrays but returns numpy ones (ONNX Runtime on CUDA), made to look like a Network.

    Its outputs are put back on the device: for a depth map of 518 x 686 some 3 MB over the bus in all.
    """

    def __init__(self, session: Any, memory: Memory, wait: Callable[[int], None]) -> None:
        self._session, self._memory, self._wait = session, memory, wait

    def bind(self, feeds: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray]) -> Binding:
        return _HostBinding(self._session, self._memory, self._wait, dict(feeds), dict(outputs))


@dataclass
class _HostBinding:
    session: Any
    memory: Memory
    wait: Callable[[int], None]
    feeds: dict[str, DeviceArray]
    outputs: dict[str, DeviceArray]

    def enqueue(self, stream: int) -> None:
        self.wait(stream)  # the session runs on a stream of its own
        found = self.session.run(self.feeds)
        for name, target in self.outputs.items():
            array = found[name]
            if array.shape != target.shape:
                raise BackendError(f"{self.session.backend} returned {name!r} {array.shape}, wanted {target.shape}")
            self.memory.upload(target.pointer, np.ascontiguousarray(array, np.float32), stream)

    def close(self) -> None:
        self.feeds, self.outputs = {}, {}


def open_device_scorer(depth: Any, quality: Any, p: spec.Preprocess) -> DeviceScorer:
    """A DeviceScorer for two open sessions ("tensorrt" or "onnxruntime-cuda").

    Raises BackendError for sessions on a CPU, without a GPU, cuda-python or the library of kernels.
    """
    for session in (depth, quality):
        if not hasattr(session, "bind") and not session.backend.startswith("onnxruntime-cuda"):
            raise BackendError(
                f"got an image on a GPU and networks in {session.backend}; open the Scorer with "
                'backend="tensorrt" or "onnxruntime-cuda", or copy the image to the host'
            )
    kernels = Kernels()
    if kernels.emulated:
        raise BackendError(f"{kernels.path} emulates the kernels on a CPU; set DGIQA_KERNELS to a CUDA build of it")
    memory = CudaMemory()
    networks = [s if hasattr(s, "bind") else ThroughHost(s, memory, cuda.synchronize) for s in (depth, quality)]
    return DeviceScorer(networks[0], networks[1], p, kernels=kernels, memory=memory)


def device_image(source: Any, stream: int | None = None) -> tuple[Image, int | None]:
    """A uint8 image on a device as the kernels read it, and the stream of its producer where that must be waited for.

    Views are read in place through __cuda_array_interface__: pitched rows, the first three channels of RGBA, BGR as
    image[..., ::-1], planes as image.permute(1, 2, 0). Grey [H,W] and [H,W,1] are read three times. DLPack must be
    contiguous. Raises ImageError for another shape or dtype, or a layout that cannot be read.
    """
    interface = getattr(source, "__cuda_array_interface__", None)
    if interface is not None and interface.get("strides") is not None:
        shape, dtype = tuple(interface["shape"]), np.dtype(interface["typestr"])
        strides, pointer = tuple(interface["strides"]), int(interface["data"][0])
        producer = interface.get("stream")
    else:
        try:
            array = cuda.as_device_array(source, stream)
        except (TypeError, ValueError) as error:
            raise ImageError(str(error)) from error
        shape, dtype, pointer, producer = array.shape, array.dtype, array.pointer, array.stream
        strides = tuple(dtype.itemsize * math.prod(shape[i + 1 :]) for i in range(len(shape)))
    if dtype != np.uint8 or len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3)) or 0 in shape:
        hint = "; take image[..., :3]" if len(shape) == 3 and shape[2] == 4 else ""
        raise ImageError(f"got {dtype} {list(shape)}, {_WANTED}{hint}")
    colour = len(shape) == 3 and shape[2] == 3
    return Image(pointer, shape[0], shape[1], (strides[0], strides[1], strides[2] if colour else 0)), producer


def _first(array: DeviceArray, n: int) -> DeviceArray:
    """The first n of an array's items, in the same memory."""
    return DeviceArray(array.pointer, (n, *array.shape[1:]), array.dtype, None, array)
