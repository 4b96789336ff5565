"""Memory, streams and graphs of an NVIDIA GPU by cuda.core, and arrays of other libraries read where they lie.

Everything happens in the CUDA context that is current in the calling thread (PyCUDA's, PyTorch's, ...); where none is,
in the device's primary one, which libraries share. Whatever offers `__cuda_array_interface__` or DLPack becomes a
DeviceArray, which offers the former in turn. Memory comes from the driver's pools, in the order of a stream.

Not yet run on a GPU: checked against a stand-in for cuda.core that runs the work of a stream as late as it may, and
with the real cuda.core on a stand-in for the driver.
"""

from __future__ import annotations

import gc
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from dgiqa.errors import BackendError
from dgiqa.extras import install

ALIGNMENT = 256  # bytes: what TensorRT asks of the address of every input and output
_LEGACY_STREAM = 1  # the default stream where 0 would say "none given": in DLPack and the CUDA array interface
_DLPACK_CUDA, _DLPACK_MANAGED = 2, 13


class Context:
    """A CUDA context: the caller's where one of the device is current, else the device's primary one.

    device: its ordinal among those that CUDA shows, by default the current one, else the first.
    `with context.current():` makes it the thread's own meanwhile. Raises BackendError without a GPU or cuda-python.
    """

    def __init__(self, device: int | None = None) -> None:
        with explained():
            here = _core().Device()  # the current context's device, else the first
            wanted = here if device is None else _core().Device(device)
            held = driver("cuCtxGetCurrent")
            wanted.set_current()  # cuda.core keeps the primary context from here on
            theirs = held != _bindings().CUcontext(0) and here.device_id == wanted.device_id
            primary = driver("cuCtxGetCurrent")
            self.handle = held if theirs else primary
            self.primary: bool = self.handle == primary
            driver("cuCtxSetCurrent", held)
            self.device: int = wanted.device_id
            self.gpu: str = wanted.name
            self.compute_capability = ".".join(map(str, wanted.compute_capability))

    @contextmanager
    def current(self) -> Iterator[None]:
        driver("cuCtxPushCurrent", self.handle)
        try:
            yield
        finally:
            driver("cuCtxPopCurrent")


class Lane:
    """A stream that does not wait for the legacy default stream, and memory that whatever is put there computes in.

    `at` is where that memory lies: it moves when something needs more than anything before. What puts or copies needs
    `with lane.current():` around it.
    """

    def __init__(self, context: Context) -> None:
        with explained(), context.current():
            device = _core().Device(context.device)
            device.set_current()  # asked for once per thread; it puts the primary context in the place of ours
            driver("cuCtxSetCurrent", context.handle)
            self.stream, self._pool = device.create_stream(), device.memory_resource
        self.context, self.handle, self.at = context, stream_handle(self.stream), 0
        self._scratch: Any = None

    def current(self) -> AbstractContextManager[None]:
        """The lane's context, as the thread's own meanwhile."""
        return self.context.current()

    def scratch(self, nbytes: int) -> None:
        """Let at least so many bytes be at `at`, in the order of the stream."""
        if self._scratch is None or self._scratch.size < nbytes:
            old, self._scratch = self._scratch, self._allocate(nbytes)
            self.at = int(self._scratch.handle)
            if old is not None:
                old.close(self.stream)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        """Fresh device memory, there from this point of the stream on; it goes back to its pool with the array."""
        buffer = self._allocate(math.prod(shape) * np.dtype(dtype).itemsize)
        return DeviceArray(int(buffer.handle), shape, np.dtype(dtype), self.handle, buffer)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Between any two addresses. With the host's, the driver stages it: it is read, or there, on return."""
        if nbytes:
            buffer = _core().Buffer
            with explained():
                buffer.from_handle(source, nbytes).copy_to(buffer.from_handle(target, nbytes), stream=self.stream)

    def put(self, target: DeviceArray, source: NDArray[Any] | DeviceArray) -> None:
        """Copy an array of the host or the device, of the same shape and dtype, into one of the device."""
        if isinstance(source, np.ndarray):
            source = np.ascontiguousarray(source)
            self.copy(target.pointer, source.ctypes.data, source.nbytes)
        else:
            self.copy(target.pointer, source.pointer, source.nbytes)

    def numpy(self, array: DeviceArray) -> NDArray[Any]:
        """A copy on the host, once everything before is done."""
        host = np.empty(array.shape, array.dtype)
        self.copy(host.ctypes.data, array.pointer, array.nbytes)
        self.sync()
        return host

    def follow(self, stream: Any) -> None:
        """What is put here from now on starts after what is on that stream (a handle, or anything with one)."""
        if stream_handle(stream) != self.handle:
            with explained():
                self.stream.wait(stream_of(stream))

    def sync(self) -> None:
        """Block until everything here is done. Other threads go on meanwhile."""
        with explained():
            self.stream.sync()

    def close(self) -> None:
        """Release stream and memory, once everything here is done."""
        self.sync()
        if self._scratch is not None:
            self._scratch.close(self.stream)
            self._scratch = None
        self.stream.close()

    def _allocate(self, nbytes: int) -> Any:
        with explained(), self.context.current():
            return self._pool.allocate(max(nbytes, 1), stream=self.stream)


class Replay:
    """Work that is put on a lane again and again: plainly at first, then recorded, and from then on replayed.

    What cannot be recorded (networks with loops, or shapes that depend on data) is put there plainly ever after.
    lane: a Lane, or what stands in for one. Each call is given the work, which must be the same.
    """

    def __init__(self, lane: Any, *, record: bool = True) -> None:
        self._lane, self._may = lane, record
        self._graph: Any = None
        self._at = -1  # where the lane's memory was, when it was put there or recorded last

    def __call__(self, work: Callable[[], None]) -> None:
        if self._at != self._lane.at:
            self.close()
        elif self._graph is None and self._may:
            self._graph = self._record(work)
            self._may = self._graph is not None
        if self._graph is not None:
            with explained():
                self._graph.launch(self._lane.stream)
        else:
            work()
            self._at = self._lane.at

    @property
    def recorded(self) -> bool:
        """Whether there is a graph."""
        return self._graph is not None

    def close(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            self._lane.sync()
            graph.close()

    def _record(self, work: Callable[[], None]) -> Any:
        self._lane.sync()  # once: what is being recorded may not be running
        builder = self._lane.stream.create_graph_builder()
        collects = gc.isenabled()
        gc.disable()  # what is freed meanwhile on this stream would be recorded, or refuse the recording
        try:
            builder.begin_building("thread_local")  # other threads may allocate
            work()
            return builder.end_building().complete()
        except Exception:  # the plain run that follows raises what is wrong beyond recording
            with suppress(Exception):
                builder.end_building()  # or what was recorded so far is kept for good
            return None
        finally:
            builder.close()
            if collects:
                gc.enable()


class Recent(OrderedDict[Any, Any]):
    """What was asked for last, by key, at most `most` of it; what goes is closed."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def get_or_make(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self:
            self.close(self._most - 1)  # first, so that its memory is there for the new one
            self[key] = make()
        self.move_to_end(key)
        return self[key]

    def close(self, keep: int = 0) -> None:
        while len(self) > keep:
            self.popitem(last=False)[1].close()


@dataclass(frozen=True)
class DeviceArray:
    """An array on a device. stream: its producer's handle, to be waited for, or None; owner: keeps it alive.

    strides: in bytes, None for C-contiguous.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stream: int | None = None
    owner: Any = None
    strides: tuple[int, ...] | None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, False),
            "strides": self.strides,
            "stream": None if self.stream is None else self.stream or _LEGACY_STREAM,
        }


def is_device_array(source: Any) -> bool:
    """Whether view_of would take it: NumPy arrays and other host memory are not."""
    if hasattr(source, "__cuda_array_interface__"):
        return True
    device = getattr(source, "__dlpack_device__", None)
    return device is not None and int(device()[0]) in (_DLPACK_CUDA, _DLPACK_MANAGED)


def view_of(source: Any, stream: Any = None) -> DeviceArray:
    """An array of PyCUDA, CuPy, PyTorch, NVDEC, ... where it is on the device, with its strides; nothing is copied.

    source: offers __cuda_array_interface__ or DLPack. stream: a producer that speaks DLPack makes it wait, by default
    the legacy default stream, and it is the result's. Otherwise that is the producer's stream, if it names one.
    Raises TypeError for something that is not on a CUDA device.
    """
    if isinstance(source, DeviceArray):
        return source
    interface = getattr(source, "__cuda_array_interface__", None)
    # Before version 3 the array interface says nothing of the stream, and DLPack, which does, is the better offer.
    if interface is not None and (interface.get("version", 0) >= 3 or not hasattr(source, "__dlpack__")):
        shape, dtype, strides = tuple(interface["shape"]), np.dtype(interface["typestr"]), interface.get("strides")
        pointer, producer = int(interface["data"][0]), interface.get("stream")
    elif is_device_array(source):
        producer = _LEGACY_STREAM if stream is None else stream_handle(stream) or _LEGACY_STREAM
        with explained():
            source = _core().utils.StridedMemoryView.from_dlpack(source, stream_ptr=producer)
        shape, dtype, pointer = source.shape, source.dtype, source.ptr
        strides = source.strides and [dtype.itemsize * count for count in source.strides]
    else:
        kind = f"{type(source).__module__}.{type(source).__qualname__}"
        raise TypeError(f"got {kind}, wanted an array on a CUDA device (__cuda_array_interface__ or DLPack)")
    # numpy knows what strides say nothing (those of single rows); what lies there is not read
    packed = strides is None or as_strided(np.empty(0, dtype), shape, strides).flags.c_contiguous
    return DeviceArray(pointer, shape, dtype, producer, source, None if packed else tuple(strides))


def as_device_array(source: Any, stream: Any = None) -> DeviceArray:
    """As view_of; ValueError if it is not C-contiguous."""
    array = view_of(source, stream)
    if array.strides is not None:
        got = f"shape {array.shape} with strides of {array.strides} bytes"
        raise ValueError(f"got {got}, wanted C-contiguous data; copy it first")
    return array


def check_home(pointer: int, context: Context) -> None:
    """ValueError if memory is the host's, or of another device or context. Memory pools have no context."""
    names = _bindings().CUpointer_attribute
    try:
        device = driver("cuPointerGetAttribute", names.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, pointer)
        home = driver("cuPointerGetAttribute", names.CU_POINTER_ATTRIBUTE_CONTEXT, pointer)
    except BackendError as error:
        raise ValueError(f"{pointer:#x} is no CUDA memory ({error}); pass host data as a numpy array") from error
    if device != context.device:
        raise ValueError(f"the array is on GPU {device}, the networks on GPU {context.device}; copy it there first")
    if home not in (context.handle, _bindings().CUcontext(0)):
        raise ValueError("the array is of another CUDA context than the networks; open them in the array's")


def stream_handle(source: Any) -> int:
    """The handle of a stream: an int, or cuda.core's, PyCUDA's, PyTorch's or CuPy's. TypeError for anything else."""
    if isinstance(source, int):
        return source
    if protocol := getattr(source, "__cuda_stream__", None):
        return int((protocol() if callable(protocol) else protocol)[1])
    for name in ("cuda_stream", "ptr", "handle"):
        handle = getattr(source, name, None)
        handle = getattr(handle, "value", handle)  # ctypes
        if handle is not None:
            return int(handle)
    raise TypeError(f"got {type(source).__qualname__}, wanted a CUDA stream or its handle")


def stream_of(source: Any) -> Any:
    """A stream as cuda.core's; it does not keep the source alive."""
    core, handle = _core(), stream_handle(source)
    defaults = {0: core.LEGACY_DEFAULT_STREAM, 1: core.LEGACY_DEFAULT_STREAM, 2: core.PER_THREAD_DEFAULT_STREAM}
    return source if isinstance(source, core.Stream) else defaults.get(handle) or core.Stream.from_handle(handle)


def driver(name: str, *arguments: Any) -> Any:
    """What a function of the driver that cuda.core lacks returns beside its status: nothing, one value or several."""
    status, *values = getattr(_bindings(), name)(*arguments)
    if int(status):
        raise BackendError(f"{name} failed: {getattr(status, 'name', status)}")
    return values[0] if len(values) == 1 else (tuple(values) or None)


@contextmanager
def explained() -> Iterator[None]:
    """What cuda.core raises, as a BackendError: its exceptions have no public name."""
    try:
        yield
    except (BackendError, TypeError):
        raise
    except Exception as error:
        if "libcuda" in str(error) or "DynamicLib" in type(error).__name__:
            fix = "install it, or use another backend"
            raise BackendError(f"the NVIDIA driver cannot be loaded ({error}); {fix}") from error
        raise BackendError(f"CUDA failed: {' '.join(str(error).split())}") from error


def _core() -> Any:
    try:
        import cuda.core
    except ImportError as error:
        raise BackendError(f"cuda-python cannot be imported ({error}); {install('cuda')}") from error
    if not hasattr(cuda.core, "Device"):  # before 1.0 it was all experimental
        got = getattr(cuda.core, "__version__", "")
        raise BackendError(f"got cuda-core {got}, wanted 1.0 or newer; {install('cuda')}")
    return cuda.core


def _bindings() -> Any:
    from cuda.bindings import driver

    return driver
