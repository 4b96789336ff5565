"""Memory, streams and graphs of an NVIDIA GPU by cuda.core, and arrays of other libraries read where they lie.

Everything happens in the CUDA context that is current in the calling thread (PyCUDA's, PyTorch's, ...); where none is,
in the device's primary one, which libraries share. Whatever offers `__cuda_array_interface__` or DLPack becomes a
DeviceArray, which offers the former in turn. Memory comes from the driver's pools, in the order of a stream.

Not yet run on a GPU: checked against a stand-in for cuda.core that runs the work of a stream as late as it may, and
with the real cuda.core on a stand-in for the driver.
"""

from __future__ import annotations

import ctypes
import gc
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
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
        with _explained():
            here = _core().Device()  # the current context's device, else the first
            wanted = here if device is None else _core().Device(device)
            held = _driver("cuCtxGetCurrent")
            wanted.set_current()  # cuda.core keeps the primary context from here on
            theirs = held != _bindings().CUcontext(0) and here.device_id == wanted.device_id
            primary = _driver("cuCtxGetCurrent")
            self.handle = held if theirs else primary
            self.primary: bool = self.handle == primary
            _driver("cuCtxSetCurrent", held)
            self.device: int = wanted.device_id
            self.gpu: str = wanted.name
            self.compute_capability = ".".join(map(str, wanted.compute_capability))

    @contextmanager
    def current(self) -> Iterator[None]:
        _driver("cuCtxPushCurrent", self.handle)
        try:
            yield
        finally:
            _driver("cuCtxPopCurrent")

    def stream(self) -> Any:
        """A cuda.core Stream of its own, which does not wait for the legacy default stream."""
        with _explained(), self.current():
            device = _core().Device(self.device)
            device.set_current()  # asked for once per thread; it puts the primary context in the place of ours
            _driver("cuCtxSetCurrent", self.handle)
            return device.create_stream()

    def allocate(self, nbytes: int, stream: Any) -> Any:
        """A Buffer of device memory, there from this point of the stream on; it goes back to its pool when dropped."""
        with _explained(), self.current():
            return _core().Device(self.device).memory_resource.allocate(max(nbytes, 1), stream=stream)

    def pinned(self, nbytes: int) -> NDArray[np.uint8]:
        """Page-locked host memory, which copies can read and write while the program goes on."""
        with _explained(), self.current():
            buffer = _core().LegacyPinnedMemoryResource().allocate(max(nbytes, 1))
        raw: Any = (ctypes.c_uint8 * nbytes).from_address(int(buffer.handle))
        raw.kept = buffer  # by `raw`, which numpy keeps
        return np.ndarray((nbytes,), np.uint8, raw)


class Lane:
    """A stream, and memory that whatever is put there computes in, one after the other.

    `at` is where that memory lies: it moves when something needs more than anything before. What puts or copies needs
    `with lane.current():` around it.
    """

    def __init__(self, context: Context) -> None:
        self.context, self.stream = context, context.stream()
        self.handle = stream_handle(self.stream)
        self.at, self._pinned = 0, np.empty(0, np.uint8)
        self._scratch: Any = None

    def current(self) -> AbstractContextManager[None]:
        """The lane's context, as the thread's own meanwhile."""
        return self.context.current()

    def scratch(self, nbytes: int) -> int:
        """The address of at least so many bytes."""
        if self._scratch is None or self._scratch.size < nbytes:
            old, self._scratch = self._scratch, self.context.allocate(nbytes, self.stream)
            self.at = int(self._scratch.handle)
            if old is not None:
                old.close(self.stream)
        return self.at

    def empty(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        return empty(self.context, shape, dtype, self.stream)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        copy(target, source, nbytes, self.stream)

    def upload(self, target: int, array: NDArray[Any]) -> None:
        """Returns once the copy is done: one page-locked buffer serves all."""
        staged = self._staging(array.nbytes).view(array.dtype).reshape(array.shape)
        staged[...] = array
        self.copy(target, staged.ctypes.data, array.nbytes)
        self.sync()

    def download(self, source: int, nbytes: int) -> NDArray[np.uint8]:
        """A copy of device memory, once everything before is done."""
        staged = self._staging(nbytes)
        self.copy(staged.ctypes.data, source, nbytes)
        self.sync()
        return staged.copy()

    def follow(self, stream: Any) -> None:
        """What is put here from now on starts after what is on that stream (a handle, or anything with one)."""
        if stream_handle(stream) != self.handle:
            with _explained():
                self.stream.wait(stream_of(stream))

    def sync(self) -> None:
        """Block until everything here is done. Other threads go on meanwhile."""
        with _explained():
            self.stream.sync()

    def close(self) -> None:
        """Release stream and memory, once everything here is done."""
        self.sync()
        if self._scratch is not None:
            self._scratch.close(self.stream)
        self._scratch, self._pinned = None, np.empty(0, np.uint8)
        self.stream.close()

    def _staging(self, nbytes: int) -> NDArray[np.uint8]:
        if self._pinned.nbytes < nbytes:
            self._pinned = self.context.pinned(nbytes)
        return self._pinned[:nbytes]


class Replay:
    """Work that is put on a lane again and again: plainly at first, then recorded, and from then on replayed.

    What cannot be recorded (networks with loops, or shapes that depend on data) is put there plainly ever after.
    lane: a Lane, or what stands in for one.
    """

    def __init__(self, lane: Any, work: Callable[[], None], *, record: bool = True) -> None:
        self._lane, self._work, self._may = lane, work, record
        self._graph: Any = None
        self._at = -1  # where the lane's memory was, when it was put there or recorded last

    def __call__(self) -> None:
        if self._at != self._lane.at:
            self.close()
        elif self._graph is None and self._may:
            self._graph = self._record()
            self._may = self._graph is not None
        if self._graph is not None:
            with _explained():
                self._graph.launch(self._lane.stream)
        else:
            self._work()
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

    def _record(self) -> Any:
        self._lane.sync()  # once: what is being recorded may not be running
        builder = self._lane.stream.create_graph_builder()
        collects = gc.isenabled()
        gc.disable()  # what is freed meanwhile on this stream would be recorded, or refuse the recording
        try:
            builder.begin_building("thread_local")  # other threads may allocate
            self._work()
            return builder.end_building().complete()
        except Exception:  # the plain run that follows raises what is wrong beyond recording
            with suppress(Exception):
                builder.end_building()  # or what was recorded so far is kept for good
            return None
        finally:
            builder.close()
            if collects:
                gc.enable()


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

    def numpy(self) -> NDArray[Any]:
        """A copy on the host, once the producer is done. It needs a context of the device that is current."""
        host = np.empty(self.shape, self.dtype)
        stream = stream_of(self.stream or 0)
        copy(host.ctypes.data, _contiguous(self).pointer, self.nbytes, stream)
        stream.sync()
        return host


def empty(context: Context, shape: tuple[int, ...], dtype: Any, stream: Any) -> DeviceArray:
    """Fresh device memory, in the order of the stream, released with the array."""
    buffer = context.allocate(math.prod(shape) * np.dtype(dtype).itemsize, stream)
    return DeviceArray(int(buffer.handle), shape, np.dtype(dtype), stream_handle(stream), buffer)


def copy(target: int, source: int, nbytes: int, stream: Any) -> None:
    """Between any two addresses, the device's or page-locked ones of the host."""
    if nbytes:
        buffer = _core().Buffer
        with _explained():
            buffer.from_handle(source, nbytes).copy_to(buffer.from_handle(target, nbytes), stream=stream)


def is_device_array(source: Any) -> bool:
    """Whether view_of would take it: NumPy arrays and other host memory are not."""
    if isinstance(source, DeviceArray) or hasattr(source, "__cuda_array_interface__"):
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
        with _explained():
            view = _core().utils.StridedMemoryView.from_dlpack(source, stream_ptr=producer)
        shape, dtype, pointer = view.shape, view.dtype, view.ptr
        strides = view.strides and [dtype.itemsize * count for count in view.strides]
        source = view
    else:
        kind = f"{type(source).__module__}.{type(source).__qualname__}"
        raise TypeError(f"got {kind}, wanted an array on a CUDA device (__cuda_array_interface__ or DLPack)")
    packed = strides is None or _is_contiguous(shape, strides, dtype.itemsize)
    return DeviceArray(pointer, shape, dtype, producer, source, None if packed else tuple(strides))


def as_device_array(source: Any, stream: Any = None) -> DeviceArray:
    """As view_of; ValueError if it is not C-contiguous."""
    return _contiguous(view_of(source, stream))


def check_home(array: DeviceArray, context: Context) -> None:
    """ValueError if the array's memory is the host's, or of another device or context. Memory pools have no context."""
    names = _bindings().CUpointer_attribute
    try:
        device = _driver("cuPointerGetAttribute", names.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, array.pointer)
        home = _driver("cuPointerGetAttribute", names.CU_POINTER_ATTRIBUTE_CONTEXT, array.pointer)
    except BackendError as error:
        raise ValueError(f"{array.pointer:#x} is no CUDA memory ({error}); pass host data as a numpy array") from error
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


def free_memory() -> int:
    """Bytes of the device's memory that nobody holds."""
    with Context().current():
        return int(_driver("cuMemGetInfo")[0])


def driver_version() -> str:
    """The CUDA version the driver serves, e.g. "13.0"."""
    version = int(_driver("cuDriverGetVersion"))
    return f"{version // 1000}.{version % 1000 // 10}"


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    """strides: in bytes; of an axis of length one they say nothing."""
    step = itemsize
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length != 1 and stride != step:
            return False
        step *= length
    return True


def _contiguous(array: DeviceArray) -> DeviceArray:
    if array.strides is not None:
        got = f"shape {array.shape} with strides of {array.strides} bytes"
        raise ValueError(f"got {got}, wanted C-contiguous data; copy it first")
    return array


def _core() -> Any:
    try:
        import cuda.core
    except ImportError as error:
        raise BackendError(f"cuda-python cannot be imported ({error}); {install('tensorrt')}") from error
    if not hasattr(cuda.core, "Device"):  # before 1.0 it was all experimental
        raise BackendError(
            f"got cuda-core {getattr(cuda.core, '__version__', '')}, wanted 1.0 or newer; {install('tensorrt')}"
        )
    return cuda.core


def _bindings() -> Any:
    from cuda.bindings import driver

    return driver


def _driver(name: str, *arguments: Any) -> Any:
    """What a function of the driver that cuda.core lacks returns beside its status: nothing, one value or several."""
    status, *values = getattr(_bindings(), name)(*arguments)
    if int(status):
        raise BackendError(f"{name} failed: {getattr(status, 'name', status)}")
    return values[0] if len(values) == 1 else (tuple(values) or None)


@contextmanager
def _explained() -> Iterator[None]:
    """What cuda.core raises, as a BackendError: its exceptions have no public name."""
    try:
        yield
    except (BackendError, TypeError):
        raise
    except Exception as error:
        if "libcuda" in str(error) or "DynamicLib" in type(error).__name__:
            raise BackendError(
                f"the NVIDIA driver cannot be loaded ({error}); install it, or use another backend"
            ) from error
        raise BackendError(f"CUDA failed: {' '.join(str(error).split())}") from error
