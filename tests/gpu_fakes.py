# ruff: noqa: N802 - the functions are named as the driver names them
"""A cuda.core and a TensorRT in host memory, which do the work of streams as late as they may, in any order they may.

What is put on a stream runs when somebody waits for it, mixed at random with the work of other streams, so that a
missing wait gives wrong results. Every access is checked against the allocations that are alive at that moment, and all
resources are counted. test_trt_builder holds the names and arguments of what stands in here to the real packages'.

The engine computes score = mean(rgb) + 2 mean(depth) per tile, through the memory it was given to compute in.
"""

from __future__ import annotations

import ctypes
import json
import random
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dgiqa.runtime.trt import logger

PRIMARY = 7  # the handle of the primary context
TILE = (3, 4, 4)
SCRATCH = 4096  # bytes the engine computes in


class Status(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_INVALID_HANDLE = 400
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900


class RefusedError(Exception):
    def __init__(self, status: Status) -> None:
        self.status = status


class Queue:
    """A stream: `work[:done]` has run. recording: what is put on it while it is being captured. home: its context."""

    def __init__(self, home: int = PRIMARY) -> None:
        self.home = home
        self.work: list[Callable[[], None] | Wait] = []
        self.done = 0
        self.recording: list[Callable[[], None] | Wait] | None = None

    def pending(self) -> bool:
        return self.done < len(self.work)

    def blocked_by(self) -> Queue | None:
        head = self.work[self.done] if self.done < len(self.work) else None
        return head.queue if isinstance(head, Wait) and head.queue.done < head.upto else None

    def step(self) -> None:
        work, self.work[self.done] = self.work[self.done], _ran
        self.done += 1
        work()


@dataclass(frozen=True)
class Wait:
    """Something on a stream that is passed once `queue` has done its first `upto` things."""

    queue: Queue
    upto: int

    def __call__(self) -> None:
        assert self.queue.done >= self.upto


def _ran() -> None:
    raise AssertionError("this has run before")


class FakeDriver:
    def __init__(self, total: int = 1 << 26) -> None:
        self.total = total
        self.blocks: dict[str, dict[int, tuple[Any, int, int]]] = {"cuMemAlloc": {}, "cuMemAllocHost": {}}
        self.queues = {handle: Queue() for handle in (0, 1, 2)}
        self.home, self.ordinal = PRIMARY, 0  # the context and the GPU that memory says it is of
        self.direct = False  # whether copies from and to the host's memory wait for nobody, as where both share it
        self.graphs: dict[int, list[Callable[[], None] | Wait]] = {}
        self.launched: dict[int, tuple[Queue, int]] = {}  # graph -> where its last run ends
        self.calls: Counter[str] = Counter()
        self.next = 1000
        self.random = random.Random(0)
        self.lock = threading.RLock()
        self.thread = threading.local()
        self.CUcontext = int
        self.CUpointer_attribute = SimpleNamespace(
            CU_POINTER_ATTRIBUTE_CONTEXT=1, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL=9
        )
        self.destroyed: list[tuple[str, int | None]] = []  # TensorRT's objects, and the context they were destroyed in
        self.faults: list[str] = []
        for name in [name for name in dir(self) if name.startswith("_cu")]:
            setattr(self, name[1:], self._guarded(name[1:], getattr(self, name)))

    def alive(self) -> dict[str, int]:
        """How many of each resource exist once all streams are done. The primary context is cuda.core's to keep."""
        for queue in list(self.queues.values()):
            self.finish(queue, len(queue.work))
        assert self.faults == []
        return {
            "device": len(self.blocks["cuMemAlloc"]),
            "pinned": len(self.blocks["cuMemAllocHost"]),
            "streams": len(self.queues) - 3,
            "graphs": len(self.graphs),
        }

    def contexts(self) -> list[int]:
        """The calling thread's stack of contexts."""
        if not hasattr(self.thread, "contexts"):
            self.thread.contexts = []
        return self.thread.contexts

    def gone(self, what: str) -> None:
        """An object of TensorRT's is being destroyed."""
        self.destroyed.append((what, self.contexts()[-1] if self.contexts() else None))

    def put(self, stream: Any, work: Callable[[], None] | Wait) -> None:
        queue = self._queue(stream)
        (queue.work if queue.recording is None else queue.recording).append(work)

    def finish(self, queue: Queue, upto: int) -> None:
        """Run a queue to a point, what it waits for before, and now and then a step of any other one that can go on."""
        while queue.done < upto:
            chosen = queue
            if self.random.random() < 0.3:
                chosen = self.random.choice([q for q in self.queues.values() if q.done < len(q.work)])
            while (other := chosen.blocked_by()) is not None:
                chosen = other
            chosen.step()

    def check(self, kind: str, address: int, nbytes: int) -> None:
        inside = any(
            start <= address and address + nbytes <= start + size for _, start, size in self.blocks[kind].values()
        )
        assert inside, f"{nbytes} bytes at {address:#x} are not of a block that is alive"

    def on_device(self, address: int, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.check("cuMemAlloc", address, nbytes)
        return np.ndarray(shape, dtype, (ctypes.c_byte * nbytes).from_address(address))

    def _guarded(self, name: str, function: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
        def call(*arguments: Any) -> tuple[Any, ...]:
            try:
                value = self.do(name, *arguments)
            except RefusedError as refused:
                return (refused.status,)
            values = value if isinstance(value, tuple) else () if value is None else (value,)
            return (Status.CUDA_SUCCESS, *values)

        return call

    def do(self, name: str, *arguments: Any) -> Any:
        """A call of the driver: its result, or RefusedError."""
        with self.lock:
            self.calls[name] += 1
            if not self.contexts() and name not in CONTEXT_FREE:
                raise RefusedError(Status.CUDA_ERROR_INVALID_CONTEXT)
            return getattr(self, f"_{name}")(*arguments)

    def _queue(self, stream: Any) -> Queue:
        if stream is None or int(stream) not in self.queues:
            raise RefusedError(Status.CUDA_ERROR_INVALID_HANDLE)
        return self.queues[int(stream)]

    def _handle(self) -> int:
        self.next += 1
        return self.next

    def _allocate(self, kind: str, nbytes: int) -> int:
        if sum(size for _, _, size in self.blocks[kind].values()) + nbytes > self.total:
            raise RefusedError(Status.CUDA_ERROR_OUT_OF_MEMORY)
        raw = ctypes.create_string_buffer(b"\xcd" * (nbytes + 256), nbytes + 256)
        address = -(-ctypes.addressof(raw) // 256) * 256
        self.blocks[kind][address] = (raw, address, nbytes)
        return address

    def _free(self, kind: str, address: int) -> None:
        if self.blocks[kind].pop(int(address), None) is None:
            raise RefusedError(Status.CUDA_ERROR_INVALID_VALUE)

    def _cuDriverGetVersion(self) -> int:
        return 13000

    def _cuCtxGetCurrent(self) -> int:
        return self.contexts()[-1] if self.contexts() else 0

    def _cuCtxSetCurrent(self, context: int) -> None:
        if self.contexts():
            self.contexts().pop()
        if context:
            self.contexts().append(context)

    def _cuCtxPushCurrent(self, context: int) -> None:
        self.contexts().append(context)

    def _cuCtxPopCurrent(self) -> int:
        return self.contexts().pop()

    def _cuMemGetInfo(self) -> tuple[int, int]:
        used = sum(size for _, _, size in self.blocks["cuMemAlloc"].values())
        return self.total - used, self.total

    def _cuPointerGetAttribute(self, attribute: int, address: int) -> int:
        if not any(start <= address < start + size for _, start, size in self.blocks["cuMemAlloc"].values()):
            raise RefusedError(Status.CUDA_ERROR_INVALID_VALUE)
        return self.home if attribute == 1 else self.ordinal

    def _cuMemAllocFromPoolAsync(self, nbytes: int, stream: int) -> int:
        return self._allocate("cuMemAlloc", nbytes)

    def _cuMemFreeAsync(self, address: int, stream: int) -> None:
        queue = self.queues.get(stream)
        if queue is None:  # gone in the same collection of garbage
            self._free("cuMemAlloc", address)
            return
        if queue.recording is not None:
            self.faults.append("memory was freed on a stream that is being recorded")
        queue.work.append(lambda: self._free("cuMemAlloc", address))

    def _cuMemAllocHost(self, nbytes: int) -> int:
        return self._allocate("cuMemAllocHost", nbytes)

    def _cuMemFreeHost(self, address: int) -> None:
        for queue in list(self.queues.values()):  # as the real one does
            self.finish(queue, len(queue.work))
        self._free("cuMemAllocHost", address)

    def _cuMemcpyAsync(self, target: int, source: int, nbytes: int, stream: int) -> None:
        def kind(address: int) -> str | None:  # by where it lies when it is asked for, as unified addressing does
            for name, blocks in self.blocks.items():
                if any(start <= address < start + size for _, start, size in blocks.values()):
                    return name
            return None

        kinds = kind(target), kind(source)

        def work() -> None:
            for name, address in zip(kinds, (target, source), strict=True):
                if name:
                    self.check(name, address, nbytes)
            ctypes.memmove(target, source, nbytes)

        if (
            None in kinds and not self.direct
        ):  # pageable memory: the copy is staged, and the call returns when it is done
            queue = self._queue(stream)
            self.finish(queue, len(queue.work))
            work()
        else:
            self.put(stream, work)

    def _cuStreamCreate(self) -> int:
        handle = self._handle()
        self.queues[handle] = Queue(self.contexts()[-1])
        return handle

    def _cuStreamDestroy(self, stream: int) -> None:
        queue = self._queue(stream)
        self.finish(queue, len(queue.work))
        del self.queues[stream]

    def _cuStreamSynchronize(self, stream: int) -> None:
        queue = self._queue(stream)
        if queue.recording is not None:
            raise RefusedError(Status.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)
        self.finish(queue, len(queue.work))

    def _cuStreamWaitStream(self, stream: int, other: int) -> None:
        queue = self._queue(other)
        self.put(stream, Wait(queue, len(queue.work)))

    def _cuStreamBeginCapture(self, stream: int) -> None:
        self._queue(stream).recording = []

    def _cuStreamEndCapture(self, stream: int) -> int:
        queue, handle = self._queue(stream), self._handle()
        assert queue.recording is not None
        self.graphs[handle], queue.recording = queue.recording, None
        return handle

    def _cuGraphInstantiate(self, graph: int) -> int:
        handle = self._handle()
        self.graphs[handle] = list(self.graphs[graph])
        return handle

    def _cuGraphLaunch(self, graph: int, stream: int) -> None:
        for work in self.graphs[graph]:
            self.put(stream, work)
        self.launched[graph] = self._queue(stream), len(self._queue(stream).work)

    def _cuGraphDestroy(self, graph: int) -> None:
        queue, upto = self.launched.pop(graph, (Queue(), 0))
        if queue.done < upto:
            self.faults.append("a graph was destroyed while it was running")
        del self.graphs[graph]


CONTEXT_FREE = {
    *(
        "cuDriverGetVersion",
        "cuCtxGetCurrent",
        "cuCtxSetCurrent",
        "cuCtxPushCurrent",
        "cuMemFreeAsync",
        "cuMemFreeHost",
    ),
    *("cuStreamDestroy", "cuGraphDestroy"),
}


class FakeCUDAError(Exception):
    """Not a RuntimeError, and under no public name, as cuda.core's."""


def fake_core(driver: FakeDriver) -> ModuleType:
    """The module `cuda.core`, as far as dgiqa.runtime.cuda uses it."""

    def do(name: str, *arguments: Any) -> Any:
        try:
            return driver.do(name, *arguments)
        except RefusedError as refused:
            raise FakeCUDAError(f"{refused.status.name}: this indicates what it says") from None

    class Handle:
        """A stream of the driver's: destroyed with the last that refers to it, which buffers do."""

        def __init__(self, at: int) -> None:
            self.at = at

        def __del__(self) -> None:
            if not sys.is_finalizing():
                do("cuStreamDestroy", self.at)

    class Stream:
        def __init__(self, handle: int, owned: bool = True) -> None:
            self._at, self._handle, self._owned = handle, Handle(handle) if owned else None, owned

        @staticmethod
        def from_handle(handle: int) -> Stream:
            return Stream(0 if handle == 1 else handle, owned=False)  # two names of the default stream

        def __cuda_stream__(self) -> tuple[int, int]:
            return 0, self._at

        def sync(self) -> None:
            do("cuStreamSynchronize", self._at if self._handle or not self._owned else None)

        def wait(self, event_or_stream: Stream) -> None:
            do("cuStreamWaitStream", self._at, event_or_stream._at)

        def create_graph_builder(self) -> GraphBuilder:
            return GraphBuilder(self)

        def close(self) -> None:
            self._handle = None

    class Buffer:
        def __init__(self, handle: int, size: int, free: Callable[[int, int], None] | None, stream: Any) -> None:
            self.handle, self.size, self._free, self._on = handle, size, free, stream
            self._kept = stream and stream._handle

        @staticmethod
        def from_handle(ptr: int, size: int, mr: Any = None, owner: Any = None, *, stream: Any = None) -> Buffer:
            return Buffer(ptr, size, None, None)

        def copy_to(self, dst: Buffer, *, stream: Stream, options: Any = None) -> Buffer:
            assert dst.size == self.size
            do("cuMemcpyAsync", dst.handle, self.handle, self.size, stream._at)
            return dst

        def close(self, stream: Stream | None = None) -> None:
            free, self._free = self._free, None
            if free:
                on = self._on if stream is None else stream
                free(self.handle, on._at if on else 0)

        def __del__(self) -> None:
            if not sys.is_finalizing():
                self.close()

    class Pool:
        def allocate(self, size: int, *, stream: Stream) -> Buffer:
            address = do("cuMemAllocFromPoolAsync", size, stream._at)
            return Buffer(address, size, lambda at, on: do("cuMemFreeAsync", at, on), stream)

    class LegacyPinnedMemoryResource:
        def allocate(self, size: int, *, stream: Stream | None = None) -> Buffer:
            return Buffer(do("cuMemAllocHost", size), size, lambda at, on: do("cuMemFreeHost", at), None)

    class Device:
        def __new__(cls, device_id: int | None = None) -> Device:
            if device_id not in (None, 0):
                raise ValueError(f"device_id must be within [0, 1), got {device_id}")
            if not hasattr(driver.thread, "device"):
                driver.thread.device = object.__new__(cls)
                driver.thread.device.used = False
            return driver.thread.device

        device_id, name, compute_capability, memory_resource = 0, "Imagined H200", (9, 0), Pool()

        def set_current(self) -> None:
            self.used = True
            do("cuCtxSetCurrent", PRIMARY)

        def create_stream(self) -> Stream:
            if not self.used:
                raise FakeCUDAError("Device 0 is not yet initialized, perhaps you forgot to call .set_current() first?")
            return Stream(do("cuStreamCreate"))

    class GraphBuilder:
        def __init__(self, stream: Stream) -> None:
            self._stream, self._building, self._graph = stream, False, 0

        def begin_building(self, mode: str = "relaxed") -> GraphBuilder:
            assert mode == "thread_local"
            assert not driver.queues[self._stream._at].pending(), "recorded while the same stream was running"
            do("cuStreamBeginCapture", self._stream._at)
            self._building = True
            return self

        def end_building(self) -> GraphBuilder:
            self._building = False
            self._graph = do("cuStreamEndCapture", self._stream._at)
            return self

        def complete(self) -> Graph:
            return Graph(do("cuGraphInstantiate", self._graph))

        def close(self) -> None:
            if self._building:
                self.end_building()
            graph, self._graph = self._graph, 0
            if graph:
                do("cuGraphDestroy", graph)

    class Graph:
        def __init__(self, handle: int) -> None:
            self._at = handle

        def launch(self, stream: Stream) -> None:
            do("cuGraphLaunch", self._at, stream._at)

        def close(self) -> None:
            handle, self._at = self._at, 0
            if handle:
                do("cuGraphDestroy", handle)

        def __del__(self) -> None:
            if not sys.is_finalizing():
                self.close()

    class Exported:
        """What NumPy takes a capsule from: before version 2 it asks the type for its methods, not the object."""

        def __init__(self, capsule: Callable[..., Any]) -> None:
            self.capsule = capsule

        def __dlpack__(self, **how: Any) -> Any:
            return self.capsule(**how)

        def __dlpack_device__(self) -> tuple[int, int]:
            return 1, 0

    class StridedMemoryView:
        """Reads the DLPack capsules of host arrays that say they are a device's."""

        @classmethod
        def from_dlpack(cls, obj: Any, stream_ptr: int | None = None) -> Any:
            if stream_ptr is None:
                raise BufferError("stream=None is ambiguous with view()")
            array = np.from_dlpack(Exported(lambda **_: obj.__dlpack__(stream=stream_ptr)))
            counts = tuple(stride // array.itemsize for stride in array.strides)
            strides = None if array.flags.c_contiguous else counts
            return SimpleNamespace(
                ptr=array.ctypes.data, shape=array.shape, strides=strides, dtype=array.dtype, kept=array
            )

    module = ModuleType("cuda.core")
    classes = (Stream, Buffer, LegacyPinnedMemoryResource, Device, GraphBuilder, Graph)
    vars(module).update(
        {each.__name__: each for each in classes}, utils=SimpleNamespace(StridedMemoryView=StridedMemoryView)
    )
    return module


class FakeExecution:
    """An execution context. version counts its changes: a graph holds only for the one it was recorded with."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.shapes, self.addresses = engine, {}, {}
        self.scratch, self.profile = (0, 0), 0
        self.nvtx_verbosity = "detailed"
        self.version, self.ran = 0, -1

    def update_device_memory_size_for_shapes(self) -> int:
        assert self.shapes.keys() == {"rgb", "depth"}, "all shapes come first"
        return SCRATCH * self.shapes["rgb"][0]

    def set_device_memory(self, memory: int, size: int) -> None:
        self.version += self.scratch != (memory, size)
        self.scratch = (memory, size)

    def __del__(self) -> None:
        self.engine.driver.gone("execution")

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.version += self.shapes.get(name) != shape
        self.shapes[name] = shape
        low, _, high = self.engine.get_tensor_profile_shape(name, self.profile)
        return all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True))

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self.shapes["rgb"][0],) if name == "score" else self.shapes[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address % 256 == 0, "TensorRT asks for 256 bytes"
        self.version += self.addresses.get(name) != address
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        driver, version = self.engine.driver, self.version
        if self.engine.broken:
            self.engine.logger.log("ERROR", "the engine is broken")
            return False
        shapes, addresses, (scratch, size) = dict(self.shapes), dict(self.addresses), self.scratch
        assert size >= SCRATCH * shapes["rgb"][0]
        assert self.nvtx_verbosity == "none", "each layer would be marked"
        recording = driver.queues[int(stream)].recording is not None
        if recording and self.engine.uncapturable:
            self.engine.logger.log("ERROR", "operation not permitted when stream is capturing")
            return False
        assert self.ran == version or not recording, "recorded before it ran once with these shapes"
        self.ran = version

        alive = weakref.ref(self)

        def first() -> None:
            assert alive() is not None, "the execution context was dropped while it was running"
            assert not recording or alive().version == version, "a graph outlived a change of its execution context"
            rgb = driver.on_device(addresses["rgb"], shapes["rgb"])
            driver.on_device(scratch, rgb.shape[:1])[:] = rgb.mean(axis=(1, 2, 3))

        def second() -> None:
            depth = driver.on_device(addresses["depth"], shapes["depth"])
            partial = driver.on_device(scratch, depth.shape[:1])
            driver.on_device(addresses["score"], depth.shape[:1])[:] = partial + 2 * depth.mean(axis=(1, 2, 3))

        with driver.lock:
            driver.put(stream, first)
            driver.put(stream, second)
        return True


class FakeEngine:
    def __init__(self, driver: FakeDriver, logger: Any, about: dict[str, Any]) -> None:
        self.driver, self.logger = driver, logger
        self.device_memory_size_v2 = SCRATCH
        self.names = ["rgb", "depth", "score"]
        self.batches = about.get("profiles", [about["batch"]])  # (smallest, largest) of each
        self.num_optimization_profiles = len(self.batches) * (about["batch"][0] != about["batch"][1])
        self.num_io_tensors = len(self.names)
        self.low = dict.fromkeys(("rgb", "depth"), (about["batch"][0], *TILE))
        self.high = dict.fromkeys(("rgb", "depth"), (about["batch"][1], *TILE))
        self.broken, self.uncapturable = about.get("broken", False), about.get("uncapturable", False)
        self.type = about.get("type", "FLOAT")
        self.layers = about.get("layers", [])

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=self.type)

    def get_tensor_mode(self, name: str) -> str:
        return "out" if name == "score" else "in"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        fixed = name != "score" and self.low[name] == self.high[name]
        return self.low[name] if fixed else (-1, *TILE) if name != "score" else (-1,)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        low, high = self.batches[profile]
        return [(n, *TILE) for n in (low, low, high)]

    def create_execution_context(self, strategy: str) -> FakeExecution:
        assert strategy == "user managed"
        return FakeExecution(self)

    def create_engine_inspector(self) -> Any:
        return FakeInspector(self)

    def __del__(self) -> None:
        self.driver.gone("engine")


class FakeInspector:
    """As TensorRT: without an execution context whose shapes are all set, dynamic engines show no types."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine, self.execution_context = engine, None

    def get_engine_information(self, format: str) -> str:
        context, dynamic = self.execution_context, self._engine.low != self._engine.high
        known = not dynamic or (context is not None and context.shapes.keys() == self._engine.low.keys())
        layers = json.loads(json.dumps(self._engine.layers))
        for layer in layers if not known else ():
            for tensor in (*layer.get("Inputs", ()), *layer.get("Outputs", ())) if isinstance(layer, dict) else ():
                tensor["Format/Datatype"] = "N/A due to dynamic shapes"
        return json.dumps({"Layers": layers})


def fake_tensorrt(driver: FakeDriver, version: str = "11.4.0.106") -> ModuleType:
    """The module `tensorrt`, as far as running goes: plans are what write_plan writes."""

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO = "INTERNAL_ERROR", "ERROR", "WARNING", "INFO"
        Severity = str

    class Runtime:
        known: Any = None  # the first logger, which alone is told anything

        def __init__(self, logger: Any) -> None:
            Runtime.known = Runtime.known or logger
            self.logger, self.engine_host_code_allowed = Runtime.known, False

        def deserialize_cuda_engine(self, data: bytes) -> FakeEngine | None:
            assert driver.contexts(), "an engine is loaded into a context"
            try:
                about = json.loads(data)
            except ValueError:
                self.logger.log("ERROR", "the magic tag does not match")
                return None
            allowed = self.engine_host_code_allowed or not about.get("version_compatible")
            return FakeEngine(driver, self.logger, about) if allowed else None

    class IProgressMonitor:
        pass

    def nptype(trt_type: Any) -> type:
        if trt_type.name != "FLOAT":
            raise TypeError("Could not resolve TensorRT datatype to an equivalent numpy datatype.")
        return np.float32

    module = ModuleType("tensorrt")
    vars(module).update(
        __version__=version,
        ILogger=ILogger,
        IProgressMonitor=IProgressMonitor,
        Runtime=Runtime,
        LayerInformationFormat=SimpleNamespace(JSON="json"),
        TensorIOMode=SimpleNamespace(INPUT="in"),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
        ProfilingVerbosity=SimpleNamespace(NONE="none", DETAILED="detailed"),
        nptype=nptype,
    )
    return module


def pinned(lane: Any, array: np.ndarray) -> np.ndarray:
    """A copy of an array in page-locked memory, which is read when the stream comes to it; kept as long as the copy."""
    with lane.current():
        buffer = sys.modules["cuda.core"].LegacyPinnedMemoryResource().allocate(array.nbytes)
    raw: Any = (ctypes.c_uint8 * array.nbytes).from_address(buffer.handle)
    raw.kept = buffer
    copied = np.ndarray(array.shape, array.dtype, raw)
    copied[...] = array
    return copied


def write_plan(path: Path, **about: Any) -> Path:
    """A plan for the fake TensorRT. about: batch (smallest, largest), profiles, broken, layers, ... of FakeEngine."""
    path.write_text(json.dumps({"batch": (1, 8), **about}))
    return path


def install(monkeypatch: pytest.MonkeyPatch, driver: FakeDriver) -> FakeDriver:
    """`from cuda.bindings import driver` and `import tensorrt` give the fakes for one test."""
    package, bindings, core = ModuleType("cuda"), ModuleType("cuda.bindings"), fake_core(driver)
    package.bindings, package.core = bindings, core  # type: ignore[attr-defined]
    for module in (package, bindings, core):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", driver)
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(driver))
    logger.cache_clear()
    return driver
