# ruff: noqa: N802 - the functions are named as the driver names them
"""A CUDA driver and a TensorRT in host memory, which do the work of streams as late as they may, in any order they may.

The driver has the functions of cuda.bindings.driver that dgiqa.runtime.cuda calls. What is put on a stream runs when
somebody waits for it, mixed at random with the work of other streams, so that a missing wait gives wrong results. Every
access is checked against the allocations that are alive at that moment, and all resources are counted.

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
    """A stream: `work[:done]` has run. recording: what is put on it while it is being captured."""

    def __init__(self) -> None:
        self.work: list[Callable[[], None] | Wait] = []
        self.done = 0
        self.recording: list[Callable[[], None] | Wait] | None = None

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
        self.marks: dict[int, tuple[Queue, int] | None] = {}
        self.graphs: dict[int, list[Callable[[], None] | Wait]] = {}
        self.calls: Counter[str] = Counter()
        self.primary = 0
        self.next = 1000
        self.random = random.Random(0)
        self.lock = threading.RLock()
        self.thread = threading.local()
        self.CUdevice_attribute = SimpleNamespace(
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major", CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor"
        )
        self.CUevent_flags = SimpleNamespace(CU_EVENT_DISABLE_TIMING=2)
        self.CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
        self.CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)
        self.CUpointer_attribute = SimpleNamespace(CU_POINTER_ATTRIBUTE_CONTEXT=1)
        for name in [name for name in dir(self) if name.startswith("_cu")]:
            setattr(self, name[1:], self._guarded(name[1:], getattr(self, name)))

    def alive(self) -> dict[str, int]:
        """How many of each resource exist, and the references to the primary context."""
        return {
            "device": len(self.blocks["cuMemAlloc"]),
            "pinned": len(self.blocks["cuMemAllocHost"]),
            "streams": len(self.queues) - 3,
            "events": len(self.marks),
            "graphs": len(self.graphs),
            "primary": self.primary,
        }

    def contexts(self) -> list[int]:
        """The calling thread's stack of contexts."""
        if not hasattr(self.thread, "contexts"):
            self.thread.contexts = []
        return self.thread.contexts

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
            with self.lock:
                self.calls[name] += 1
                try:
                    if not self.contexts() and name not in CONTEXT_FREE:
                        raise RefusedError(Status.CUDA_ERROR_INVALID_CONTEXT)
                    value = function(*arguments)
                except RefusedError as refused:
                    return (refused.status,)
                values = value if isinstance(value, tuple) else () if value is None else (value,)
                return (Status.CUDA_SUCCESS, *values)

        return call

    def _queue(self, stream: Any) -> Queue:
        if int(stream) not in self.queues:
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
        for queue in list(self.queues.values()):  # as the real one does
            self.finish(queue, len(queue.work))
        if self.blocks[kind].pop(int(address), None) is None:
            raise RefusedError(Status.CUDA_ERROR_INVALID_VALUE)

    def _copy(self, target: int, source: int, nbytes: int, stream: Any, kinds: tuple[str, str]) -> None:
        def work() -> None:
            self.check(kinds[0], int(target), nbytes)
            self.check(kinds[1], int(source), nbytes)
            ctypes.memmove(int(target), int(source), nbytes)

        self.put(stream, work)

    def _cuInit(self, flags: int) -> None:
        assert flags == 0

    def _cuDriverGetVersion(self) -> int:
        return 13000

    def _cuDeviceGet(self, ordinal: int) -> int:
        if ordinal != 0:
            raise RefusedError(Status.CUDA_ERROR_INVALID_VALUE)
        return ordinal

    def _cuDeviceGetName(self, length: int, device: int) -> bytes:
        return b"Imagined H200\0".ljust(length)

    def _cuDeviceGetAttribute(self, attribute: str, device: int) -> int:
        return {"major": 9, "minor": 0}[attribute]

    def _cuCtxGetCurrent(self) -> int:
        return self.contexts()[-1] if self.contexts() else 0

    def _cuCtxGetDevice(self) -> int:
        return 0

    def _cuCtxPushCurrent(self, context: int) -> None:
        self.contexts().append(int(context))

    def _cuCtxPopCurrent(self) -> int:
        return self.contexts().pop()

    def _cuDevicePrimaryCtxRetain(self, device: int) -> int:
        self.primary += 1
        return PRIMARY

    def _cuDevicePrimaryCtxRelease(self, device: int) -> None:
        self.primary -= 1

    def _cuMemAlloc(self, nbytes: int) -> int:
        return self._allocate("cuMemAlloc", nbytes)

    def _cuMemFree(self, address: int) -> None:
        self._free("cuMemAlloc", address)

    def _cuMemAllocHost(self, nbytes: int) -> int:
        return self._allocate("cuMemAllocHost", nbytes)

    def _cuMemFreeHost(self, address: int) -> None:
        self._free("cuMemAllocHost", address)

    def _cuMemGetInfo(self) -> tuple[int, int]:
        used = sum(size for _, _, size in self.blocks["cuMemAlloc"].values())
        return self.total - used, self.total

    def _cuPointerGetAttribute(self, attribute: int, address: int) -> int:
        if not any(start <= address < start + size for _, start, size in self.blocks["cuMemAlloc"].values()):
            raise RefusedError(Status.CUDA_ERROR_INVALID_VALUE)
        return PRIMARY

    def _cuMemcpyHtoDAsync(self, target: int, source: int, nbytes: int, stream: Any) -> None:
        self._copy(target, source, nbytes, stream, ("cuMemAlloc", "cuMemAllocHost"))

    def _cuMemcpyDtoHAsync(self, target: int, source: int, nbytes: int, stream: Any) -> None:
        self._copy(target, source, nbytes, stream, ("cuMemAllocHost", "cuMemAlloc"))

    def _cuMemcpyDtoDAsync(self, target: int, source: int, nbytes: int, stream: Any) -> None:
        self._copy(target, source, nbytes, stream, ("cuMemAlloc", "cuMemAlloc"))

    def _cuMemcpyDtoH(self, target: int, source: int, nbytes: int) -> None:
        self.check("cuMemAlloc", int(source), nbytes)
        ctypes.memmove(int(target), int(source), nbytes)

    def _cuStreamCreate(self, flags: int) -> int:
        handle = self._handle()
        self.queues[handle] = Queue()
        return handle

    def _cuStreamDestroy(self, stream: int) -> None:
        queue = self._queue(stream)
        self.finish(queue, len(queue.work))
        del self.queues[int(stream)]

    def _cuStreamSynchronize(self, stream: Any) -> None:
        queue = self._queue(stream)
        if queue.recording is not None:
            raise RefusedError(Status.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)
        self.finish(queue, len(queue.work))

    def _cuStreamWaitEvent(self, stream: Any, event: int, flags: int) -> None:
        mark = self.marks[event]
        if mark is not None:
            self.put(stream, Wait(*mark))

    def _cuEventCreate(self, flags: int) -> int:
        handle = self._handle()
        self.marks[handle] = None
        return handle

    def _cuEventRecord(self, event: int, stream: Any) -> None:
        queue = self._queue(stream)
        self.marks[event] = (queue, len(queue.work))

    def _cuEventSynchronize(self, event: int) -> None:
        mark = self.marks[event]
        if mark is not None:
            self.finish(*mark)

    def _cuEventDestroy(self, event: int) -> None:
        del self.marks[event]

    def _cuStreamBeginCapture(self, stream: Any, mode: int) -> None:
        self._queue(stream).recording = []

    def _cuStreamEndCapture(self, stream: Any) -> int:
        queue, handle = self._queue(stream), self._handle()
        assert queue.recording is not None
        self.graphs[handle], queue.recording = queue.recording, None
        return handle

    def _cuGraphInstantiate(self, graph: int, flags: int) -> int:
        handle = self._handle()
        self.graphs[handle] = list(self.graphs[graph])
        return handle

    def _cuGraphLaunch(self, graph: int, stream: Any) -> None:
        for work in self.graphs[graph]:
            self.put(stream, work)

    def _cuGraphDestroy(self, graph: int) -> None:
        del self.graphs[graph]

    def _cuGraphExecDestroy(self, graph: int) -> None:
        del self.graphs[graph]


CONTEXT_FREE = {
    *("cuInit", "cuDriverGetVersion", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute", "cuCtxGetCurrent"),
    *("cuCtxPushCurrent", "cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRelease"),
}


class FakeExecution:
    """An execution context. version counts its changes: a graph holds only for the one it was recorded with."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.shapes, self.addresses = engine, {}, {}
        self.scratch = (0, 0)
        self.version, self.ran = 0, -1

    def set_device_memory(self, address: int, nbytes: int) -> None:
        self.scratch = (address, nbytes)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.version += self.shapes.get(name) != shape
        self.shapes[name] = shape
        return all(a <= n <= b for a, n, b in zip(self.engine.low[name], shape, self.engine.high[name], strict=True))

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
        assert size >= SCRATCH
        recording = driver.queues[int(stream)].recording is not None
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
        self.num_io_tensors = len(self.names)
        self.low = dict.fromkeys(("rgb", "depth"), (about["batch"][0], *TILE))
        self.high = dict.fromkeys(("rgb", "depth"), (about["batch"][1], *TILE))
        self.broken = about.get("broken", False)
        self.type = about.get("type", "FLOAT")
        self.layers = about.get("layers", [])

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=self.type)

    def get_tensor_location(self, name: str) -> str:
        return "device"

    def get_tensor_mode(self, name: str) -> str:
        return "out" if name == "score" else "in"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        fixed = name != "score" and self.low[name] == self.high[name]
        return self.low[name] if fixed else (-1, *TILE) if name != "score" else (-1,)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        assert -1 in self.get_tensor_shape(name), "an engine of fixed shapes has no profile"
        return [self.low[name], self.low[name], self.high[name]]

    def create_execution_context(self, strategy: str) -> FakeExecution:
        assert strategy == "user managed"
        return FakeExecution(self)

    def create_engine_inspector(self) -> Any:
        return SimpleNamespace(get_engine_information=lambda layout: json.dumps({"Layers": self.layers}))


def fake_tensorrt(driver: FakeDriver, version: str = "11.4.0.106") -> ModuleType:
    """The module `tensorrt`, as far as running goes: plans are what write_plan writes."""

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO = "INTERNAL_ERROR", "ERROR", "WARNING", "INFO"
        Severity = str

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, data: bytes) -> FakeEngine | None:
            assert driver.contexts(), "an engine is loaded into a context"
            try:
                return FakeEngine(driver, self.logger, json.loads(data))
            except ValueError:
                self.logger.log("ERROR", "the magic tag does not match")
                return None

    module = ModuleType("tensorrt")
    vars(module).update(
        __version__=version,
        ILogger=ILogger,
        Runtime=Runtime,
        LayerInformationFormat=SimpleNamespace(JSON="json"),
        TensorIOMode=SimpleNamespace(INPUT="in"),
        TensorLocation=SimpleNamespace(DEVICE="device"),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
    )
    return module


def write_plan(path: Path, **about: Any) -> Path:
    """A plan for the fake TensorRT. about: batch (smallest, largest), broken, type, layers."""
    path.write_text(json.dumps({"batch": (1, 8), **about}))
    return path


def install(monkeypatch: pytest.MonkeyPatch, driver: FakeDriver) -> FakeDriver:
    """`from cuda.bindings import driver` and `import tensorrt` give the fakes for one test."""
    bindings = ModuleType("cuda.bindings")
    bindings.driver = driver  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(driver))
    return driver
