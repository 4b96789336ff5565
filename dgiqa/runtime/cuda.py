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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from dgiqa.errors import BackendError
from dgiqa.extras import load

_LEGACY_STREAM = 1  # the default stream where 0 would say "none given": in DLPack and the CUDA array interface
_DLPACK_DEVICES = (2, 13)  # memory of a GPU, and managed memory


class Context:
    """A CUDA context: the caller's where one of the device is current, else the device's primary one.

    device: its ordinal among those that CUDA shows, by default the current one, else the first.
    Raises BackendError without a GPU or cuda-python.
    """

    def __init__(self, device: int | None = None) -> None:
        with explained():
            here, wanted = _core().Device(), _core().Device(device)
            held = driver("cuCtxGetCurrent")
            wanted.set_current()  # cuda.core keeps the primary context from here on
            primary = driver("cuCtxGetCurrent")
            driver("cuCtxSetCurrent", held)
            theirs = held != _core("bindings.driver").CUcontext(0) and here.device_id == wanted.device_id
            self.handle = held if theirs else primary
            self.primary: bool = self.handle == primary
            self.device: int = wanted.device_id
            self.gpu: str = wanted.name
            self.compute_capability = ".".join(map(str, wanted.compute_capability))

    @contextmanager
    def current(self) -> Iterator[None]:
        """The thread's own meanwhile."""
        driver("cuCtxPushCurrent", self.handle)
        try:
            yield
        finally:
            driver("cuCtxPopCurrent")

    def check_home(self, pointer: int) -> None:
        """ValueError if memory is the host's, or of another device or context. Memory pools have no context."""
        names = _core("bindings.driver").CUpointer_attribute
        try:
            device = driver("cuPointerGetAttribute", names.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, pointer)
            home = driver("cuPointerGetAttribute", names.CU_POINTER_ATTRIBUTE_CONTEXT, pointer)
        except BackendError as error:
            raise ValueError(f"{pointer:#x} is no CUDA memory ({error}); pass host data as a numpy array") from error
        if device != self.device:
            raise ValueError(f"the array is on GPU {device}, the networks on GPU {self.device}; copy it there first")
        if home not in (self.handle, _core("bindings.driver").CUcontext(0)):
            raise ValueError("the array is of another CUDA context than the networks; open them in the array's")


class Lane:
    """A stream that does not wait for the legacy default stream, and what is put there again and again.

    keep: how many things `recent` keeps. record: whether `replay` records graphs. `at` is where the memory lies that
    whatever is put there computes in; it moves when something needs more than anything before. What puts or copies
    needs `with lane.current():` around it.
    """

    def __init__(self, context: Context, *, keep: int = 0, record: bool = True) -> None:
        with explained(), context.current():
            device = _core().Device(context.device)
            device.set_current()  # asked for once per thread; it puts the primary context in the place of ours
            driver("cuCtxSetCurrent", context.handle)
            self.stream, self._pool = device.create_stream(), device.memory_resource
        self.context, self.current, self.handle = context, context.current, stream_handle(self.stream)
        self.at = 0
        self._scratch: DeviceArray | None = None
        self._keep, self._record, self._kept = keep, record, OrderedDict[Any, Any]()
        self.graphs: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # by owner; False where none is possible

    def scratch(self, nbytes: int) -> None:
        """Let at least so many bytes be at `at`, in the order of the stream."""
        if self._scratch is None or self._scratch.nbytes < nbytes:
            self._scratch = self.empty((nbytes,), np.uint8)
            self.at = self._scratch.pointer
            if self.graphs:
                self.sync()  # what is recorded may be running
                self.graphs.clear()

    def recent(self, key: Any, make: Callable[[], Any]) -> Any:
        """What was made for a key that is one of the last `keep`, or is made now."""
        if key not in self._kept:
            while len(self._kept) >= self._keep:  # first, so that its memory is there for the new one
                self._kept.popitem(last=False)
            self._kept[key] = make()
        self._kept.move_to_end(key)
        return self._kept[key]

    def replay(self, owner: Any, work: Callable[[], None]) -> None:
        """Put an owner's work here, always the same: plainly at first, then recorded, and from then on replayed.

        What cannot be recorded (networks with loops, or shapes that depend on data) is put here plainly ever after.
        What was recorded goes with its owner, and where the memory moves.
        """
        graph: Any = self.graphs.get(owner, False) if self._record else False
        if graph is None:
            graph = self.graphs[owner] = self._recorded(work)
        if graph:
            with explained():
                graph.launch(self.stream)
        else:
            work()
            self.graphs.setdefault(owner)

    def _recorded(self, work: Callable[[], None]) -> Any:
        """Its graph; False where that is impossible."""
        self.sync()  # once: what is being recorded may not be running
        builder, collects = self.stream.create_graph_builder(), gc.isenabled()
        gc.disable()  # what is freed meanwhile on this stream would be recorded, or refuse the recording
        try:
            builder.begin_building("thread_local")  # other threads may allocate
            work()
            return builder.end_building().complete()
        except Exception:  # the plain run that follows raises what is wrong beyond recording
            with suppress(Exception):
                builder.end_building()  # or what was recorded so far is kept for good
            return False
        finally:
            builder.close()
            if collects:
                gc.enable()

    def empty(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        """Fresh device memory, there from this point of the stream on; it goes back to its pool with the array."""
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        with explained(), self.current():
            buffer = self._pool.allocate(max(nbytes, 1), stream=self.stream)
        return DeviceArray(int(buffer.handle), shape, np.dtype(dtype), self.handle, buffer)

    def take(self, source: Any) -> DeviceArray:
        """An array of another library where it is, once its producer is done.

        Raises TypeError for what is on no CUDA device, ValueError where it is not C-contiguous or not of this context.
        """
        array = view_of(source, self.stream)
        if array.strides is not None:
            got = f"shape {array.shape} with strides of {array.strides} bytes"
            raise ValueError(f"got {got}, wanted C-contiguous data; copy it first")
        self.context.check_home(array.pointer)
        if array.stream is not None:
            self.follow(array.stream)
        return array

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Between any two addresses. With the host's, the driver stages it: it is read, or there, on return."""
        buffer = _core().Buffer
        with explained():
            buffer.from_handle(source, nbytes).copy_to(buffer.from_handle(target, nbytes), stream=self.stream)

    def put(self, target: DeviceArray, source: NDArray[Any]) -> None:
        """Copy an array of the host into one of the device, of the same shape and dtype."""
        source = np.ascontiguousarray(source)
        self.copy(target.pointer, source.ctypes.data, source.nbytes)

    def numpy(self, array: DeviceArray) -> NDArray[Any]:
        """A copy on the host, once everything before is done."""
        host = np.empty(array.shape, array.dtype)
        self.copy(host.ctypes.data, array.pointer, array.nbytes)
        self.sync()
        return host

    def follow(self, stream: Any) -> None:
        """What is put here from now on starts after what is on that stream (a handle, or anything with one)."""
        if (handle := stream_handle(stream)) != self.handle:
            with explained():
                self.stream.wait(_core().Stream.from_handle(handle))

    def sync(self) -> None:
        """Block until everything here is done. Other threads go on meanwhile."""
        with explained():
            self.stream.sync()

    def close(self) -> None:
        """Release stream and memory, once everything here is done."""
        self.sync()
        self._kept.clear()
        self.graphs.clear()
        self._scratch = None
        self.stream.close()


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
        stream = None if self.stream is None else self.stream or _LEGACY_STREAM
        about = {"version": 3, "shape": self.shape, "typestr": self.dtype.str, "strides": self.strides}
        return about | {"data": (self.pointer, False), "stream": stream}


def is_device_array(source: Any) -> bool:
    """Whether view_of would take it: NumPy arrays and other host memory are not."""
    on = getattr(source, "__dlpack_device__", lambda: (0, 0))
    return hasattr(source, "__cuda_array_interface__") or int(on()[0]) in _DLPACK_DEVICES


def view_of(source: Any, stream: Any = 0) -> DeviceArray:
    """An array of PyCUDA, CuPy, PyTorch, NVDEC, ... where it is on the device, with its strides; nothing is copied.

    source: offers __cuda_array_interface__ or DLPack. stream: a producer that speaks DLPack makes it wait, and it is
    the result's. Otherwise that is the producer's stream, if it names one.
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
        producer = stream_handle(stream) or _LEGACY_STREAM
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


def stream_handle(source: Any) -> int:
    """The handle of a stream: an int, or cuda.core's, PyCUDA's, PyTorch's or CuPy's. TypeError for anything else."""
    handle = source
    if protocol := getattr(source, "__cuda_stream__", None):
        handle = (protocol() if callable(protocol) else protocol)[1]
    for name in ("cuda_stream", "ptr", "handle", "value"):  # the last of ctypes
        handle = getattr(handle, name, handle)
    if not isinstance(handle, int):
        raise TypeError(f"got {type(source).__qualname__}, wanted a CUDA stream or its handle")
    return handle


def driver(name: str, *arguments: Any) -> Any:
    """What a function of the driver that cuda.core lacks returns beside its status: nothing, one value or several."""
    status, *values = getattr(_core("bindings.driver"), name)(*arguments)
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


def _core(name: str = "core") -> Any:
    return load(f"cuda.{name}", "what lies on a GPU", "cuda-python", "cuda")
