"""Memory, streams and graphs of an NVIDIA GPU through cuda.core, and arrays of other libraries without a copy.

Everything happens in the CUDA context that is current in the calling thread (PyCUDA's, PyTorch's, ...), by default the
device's primary one, which libraries share. Any object with `__cuda_array_interface__` or DLPack becomes a DeviceArray,
which has the former. Memory comes from the driver's pools, in stream order.

Not yet run on a GPU: checked against a stand-in for cuda.core that runs the work of a stream as late as it may, and
with the real cuda.core on a stand-in for the driver.
"""

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

from dgiqa.dtypes import Array
from dgiqa.errors import BackendError
from dgiqa.extras import load

_LEGACY_STREAM = 1  # the default stream in DLPack and the CUDA array interface, where 0 would mean "none given"
_DLPACK_DEVICES = (2, 13)  # memory of a GPU, and managed memory


class Context:
    """A CUDA context: the caller's if the current one is on the device, else the device's primary one.

    device: the GPU's ordinal among those that CUDA shows, by default the current one, else the first.
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
        """Make this the thread's current context inside the `with` block."""
        driver("cuCtxPushCurrent", self.handle)
        try:
            yield
        finally:
            driver("cuCtxPopCurrent")

    def check_home(self, pointer: int) -> None:
        """ValueError if the memory is the host's, another device's or another context's. Pools have no context."""
        names = _core("bindings.driver").CUpointer_attribute
        try:
            device = driver("cuPointerGetAttribute", names.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, pointer)
            home = driver("cuPointerGetAttribute", names.CU_POINTER_ATTRIBUTE_CONTEXT, pointer)
        except BackendError as error:
            raise ValueError(f"{pointer:#x} is not CUDA memory ({error}); pass host data as a numpy array") from error
        if device != self.device:
            raise ValueError(f"the array is on GPU {device}, the networks on GPU {self.device}; copy it there first")
        if home not in (self.handle, _core("bindings.driver").CUcontext(0)):
            raise ValueError("the array is of another CUDA context than the networks; open them in the array's")


@dataclass(frozen=True)
class DeviceArray:
    """An array on a device. stream: the handle of its producer's stream, to wait for, or None. owner: keeps it alive.

    strides: in bytes, None if C-contiguous.
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


class Lane:
    """A stream that does not wait for the legacy default stream, with its scratch memory, kept objects and graphs.

    keep: how many objects `recent` keeps. record: whether `replay` records graphs. `at` is the address of the scratch
    memory that all work on the lane shares; it changes when some work needs more than any before it. Calls that enqueue
    or copy need `with lane.current():` around them.
    """

    def __init__(self, context: Context, *, keep: int = 0, record: bool = True) -> None:
        with explained(), context.current():
            device = _core().Device(context.device)
            device.set_current()  # cuda.core wants it once per thread; it replaces our context by the primary one
            driver("cuCtxSetCurrent", context.handle)
            self.stream, self._pool = device.create_stream(), device.memory_resource
        self.context, self.current, self.handle = context, context.current, stream_handle(self.stream)
        self.at = 0
        self._scratch: DeviceArray | None = None
        self._keep, self._record, self._kept = keep, record, OrderedDict[Any, Any]()
        self.graphs: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # by owner; False if it cannot be recorded

    def scratch(self, nbytes: int) -> None:
        """Make at least this many bytes available at `at`, in stream order."""
        if self._scratch is None or self._scratch.nbytes < nbytes:
            self._scratch = self.empty((nbytes,), np.uint8)
            self.at = self._scratch.pointer
            if self.graphs:
                self.sync()  # a recorded graph may be running
                self.graphs.clear()

    def recent(self, key: Any, make: Callable[[], Any]) -> Any:
        """The object kept for this key, if it is among the last `keep` keys, else a new one from `make`."""
        if key not in self._kept:
            while len(self._kept) >= self._keep:  # before `make`, so that the new one can have its memory
                self._kept.popitem(last=False)
            self._kept[key] = make()
        self._kept.move_to_end(key)
        return self._kept[key]

    def replay(self, owner: Any, work: Callable[[], None]) -> None:
        """Enqueue an owner's work, always the same: run it the first time, record it the second, then replay it.

        Work that cannot be recorded (networks with loops, or shapes that depend on data) is run each time.
        A recording is dropped with its owner, and when the scratch memory moves.
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
        """The graph of this work; False if it cannot be recorded."""
        self.sync()  # once: the work must not be running while it is recorded
        builder, collects = self.stream.create_graph_builder(), gc.isenabled()
        gc.disable()  # memory freed on this stream meanwhile would become part of the recording or make it fail
        try:
            builder.begin_building("thread_local")  # other threads may allocate
            work()
            return builder.end_building().complete()
        except Exception:  # the plain run that follows raises any error that is not about recording
            with suppress(Exception):
                builder.end_building()  # otherwise the part recorded so far is never freed
            return False
        finally:
            builder.close()
            if collects:
                gc.enable()

    def empty(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        """New device memory, valid from this point of the stream on; it returns to its pool with the array."""
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        with explained(), self.current():
            buffer = self._pool.allocate(max(nbytes, 1), stream=self.stream)
        return DeviceArray(int(buffer.handle), shape, np.dtype(dtype), self.handle, buffer)

    def take(self, source: Any) -> DeviceArray:
        """An array of another library, not copied; the stream waits for its producer.

        Raises TypeError if it is on no CUDA device, ValueError if it is not C-contiguous or not of this context.
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
        """Copy between any two addresses. Host memory, which the driver stages, has been read or written on return."""
        buffer = _core().Buffer
        with explained():
            buffer.from_handle(source, nbytes).copy_to(buffer.from_handle(target, nbytes), stream=self.stream)

    def put(self, target: DeviceArray, source: Array) -> None:
        """Copy an array of the host into one of the device, of the same shape and dtype."""
        source = np.ascontiguousarray(source)
        self.copy(target.pointer, source.ctypes.data, source.nbytes)

    def numpy(self, array: DeviceArray) -> Array:
        """A copy on the host, once everything before is done."""
        host = np.empty(array.shape, array.dtype)
        self.copy(host.ctypes.data, array.pointer, array.nbytes)
        self.sync()
        return host

    def follow(self, stream: Any) -> None:
        """Let later work here start after the work on that stream (a handle, or an object with one)."""
        if (handle := stream_handle(stream)) != self.handle:
            with explained():
                self.stream.wait(_core().Stream.from_handle(handle))

    def sync(self) -> None:
        """Block until everything here is done. Other threads keep running."""
        with explained():
            self.stream.sync()

    def close(self) -> None:
        """Release stream and memory, once everything here is done."""
        self.sync()
        self._kept.clear()
        self.graphs.clear()
        self._scratch = None
        self.stream.close()


def is_device_array(source: Any) -> bool:
    """Whether view_of takes it. It does not take NumPy arrays and other host memory."""
    on = getattr(source, "__dlpack_device__", lambda: (0, 0))
    return hasattr(source, "__cuda_array_interface__") or int(on()[0]) in _DLPACK_DEVICES


def view_of(source: Any, stream: Any = 0) -> DeviceArray:
    """An array of PyCUDA, CuPy, PyTorch, NVDEC, ... on the device, with its strides; nothing is copied.

    source: has __cuda_array_interface__ or DLPack. stream: a DLPack producer makes this stream wait, and it becomes the
    result's stream. Otherwise the result has the producer's stream, if the producer names one.
    Raises TypeError for an object that is not on a CUDA device.
    """
    if isinstance(source, DeviceArray):
        return source
    interface = getattr(source, "__cuda_array_interface__", None)
    # Before version 3 the array interface does not name the stream; DLPack does, so prefer it.
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
    # numpy knows which strides do not matter (those of axes of length 1); the memory is not read
    packed = strides is None or as_strided(np.empty(0, dtype), shape, strides).flags.c_contiguous
    return DeviceArray(pointer, shape, dtype, producer, source, None if packed else tuple(strides))


def stream_handle(source: Any) -> int:
    """The handle of a stream: an int, or cuda.core's, PyCUDA's, PyTorch's or CuPy's. TypeError for anything else."""
    handle = source
    if protocol := getattr(source, "__cuda_stream__", None):
        handle = (protocol() if callable(protocol) else protocol)[1]
    for name in ("cuda_stream", "ptr", "handle", "value"):  # "value" is ctypes'
        handle = getattr(handle, name, handle)
    if not isinstance(handle, int):
        raise TypeError(f"got {type(source).__qualname__}, wanted a CUDA stream or its handle")
    return handle


def driver(name: str, *arguments: Any) -> Any:
    """Call a driver function that cuda.core lacks. Return None, one value or a tuple; BackendError if it fails."""
    status, *values = getattr(_core("bindings.driver"), name)(*arguments)
    if int(status):
        raise BackendError(f"{name} failed: {getattr(status, 'name', status)}")
    return values[0] if len(values) == 1 else (tuple(values) or None)


@contextmanager
def explained() -> Iterator[None]:
    """Turn the exceptions of cuda.core, which have no public name, into BackendError."""
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
    return load(f"cuda.{name}", "work on a GPU", "cuda-python", "cuda")
