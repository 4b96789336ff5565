"""Memory, streams and graphs of an NVIDIA GPU, as resources that are released when they are closed. Needs cuda-python.

Everything happens in the CUDA context that is current in the calling thread (PyCUDA's, PyTorch's, ...); where none is,
in the device's primary one, which libraries share. Arrays of other libraries are read in place: whatever offers
`__cuda_array_interface__` or DLPack becomes a DeviceArray, which offers the former in turn.

Not yet run on a GPU: checked against a driver made for tests, which runs the work of a stream as late as it may.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgiqa.errors import BackendError

INSTALL = 'pip install "dgiqa-rt[tensorrt]"'
_LEGACY_STREAM = 1  # the default stream where 0 would say "none given": in DLPack and the CUDA array interface
_DLPACK_CODES = {0: "i", 1: "u", 2: "f"}
_DLPACK_CUDA, _DLPACK_MANAGED = 2, 13


class Context:
    """A CUDA context: the caller's where one is current, else the primary one of `device`.

    `with context.current():` makes it the thread's own meanwhile. A primary context is kept until nothing refers to
    this object any more: buffers do. Raises BackendError without a GPU or cuda-python.
    """

    _primary: Any = None

    def __init__(self, device: int = 0) -> None:
        _call("cuInit", 0)
        self.handle = _call("cuCtxGetCurrent")
        if not int(self.handle):
            ordinal = _call("cuDeviceGet", device)
            self.handle = _call("cuDevicePrimaryCtxRetain", ordinal)
            self._primary = ordinal
        with self.current():
            self._device = _call("cuCtxGetDevice")

    @property
    def device(self) -> int:
        """The ordinal of the device, as DLPack counts."""
        return int(self._device)

    @property
    def gpu(self) -> str:
        """The device's name, e.g. "NVIDIA H200"."""
        return bytes(_call("cuDeviceGetName", 256, self._device)).split(b"\0")[0].decode()  # then come blanks

    @property
    def compute_capability(self) -> str:
        """E.g. "9.0"."""
        names = _driver().CUdevice_attribute
        major = names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
        minor = names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR
        return ".".join(str(_call("cuDeviceGetAttribute", name, self._device)) for name in (major, minor))

    @contextmanager
    def current(self) -> Iterator[None]:
        _call("cuCtxPushCurrent", self.handle)
        try:
            yield
        finally:
            _call("cuCtxPopCurrent")

    def __del__(self) -> None:
        if self._primary is not None and not sys.is_finalizing():
            with suppress(BackendError):
                _call("cuDevicePrimaryCtxRelease", self._primary)


class _Resource:
    """Something of the driver's that is released once: by close(), at the end of a with block, or with the object."""

    def __init__(self, context: Context, handle: Any, release: str) -> None:
        self.context, self.handle, self._release = context, handle, release

    def close(self) -> None:
        handle, self.handle = self.handle, None
        if handle is not None:
            with self.context.current():
                _call(self._release, handle)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "handle", None) is not None and not sys.is_finalizing():
            with suppress(BackendError):  # the caller may have destroyed the context, and all that was in it
                self.close()


class DeviceBuffer(_Resource):
    """`nbytes` of device memory at `pointer`, aligned to 256 bytes at least."""

    def __init__(self, context: Context, nbytes: int) -> None:
        with context.current():
            super().__init__(context, _call("cuMemAlloc", max(nbytes, 1)), "cuMemFree")
        self.nbytes, self.pointer = nbytes, int(self.handle)


class PinnedBuffer(_Resource):
    """`nbytes` of page-locked host memory, which copies can read and write while the program goes on."""

    def __init__(self, context: Context, nbytes: int) -> None:
        with context.current():
            super().__init__(context, _call("cuMemAllocHost", max(nbytes, 1)), "cuMemFreeHost")
        self.nbytes, self.pointer = nbytes, int(self.handle)

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """A view of the first bytes. It must not outlive the buffer."""
        assert math.prod(shape) * dtype.itemsize <= self.nbytes
        raw: Any = (ctypes.c_byte * self.nbytes).from_address(self.pointer)
        return np.ndarray(shape, dtype, buffer=raw)


class Event(_Resource):
    """A point in a stream that other streams and the host can wait for."""

    def __init__(self, context: Context) -> None:
        with context.current():
            flag = int(_driver().CUevent_flags.CU_EVENT_DISABLE_TIMING)
            super().__init__(context, _call("cuEventCreate", flag), "cuEventDestroy")

    def record(self, stream: int) -> None:
        _call("cuEventRecord", self.handle, stream)

    def wait(self) -> None:
        """Block until what was recorded last is done; at once if nothing was."""
        _call("cuEventSynchronize", self.handle)


class Stream(_Resource):
    """A stream of our own, which does not wait for the legacy default stream. `int(stream)` is its handle."""

    def __init__(self, context: Context) -> None:
        with context.current():
            flag = int(_driver().CUstream_flags.CU_STREAM_NON_BLOCKING)
            super().__init__(context, _call("cuStreamCreate", flag), "cuStreamDestroy")

    def __int__(self) -> int:
        return int(self.handle)


class Graph(_Resource):
    """What `enqueue` puts on `stream`, recorded instead of run, to be launched as one. Kernels' arguments are fixed."""

    def __init__(self, stream: Stream, enqueue: Callable[[], None]) -> None:
        with stream.context.current():
            graph = _capture(stream, enqueue)
            try:
                super().__init__(stream.context, _call("cuGraphInstantiate", graph, 0), "cuGraphExecDestroy")
            finally:
                _call("cuGraphDestroy", graph)

    def launch(self, stream: int) -> None:
        _call("cuGraphLaunch", self.handle, stream)


@dataclass(frozen=True)
class DeviceArray:
    """A C-contiguous array on a device. stream: its producer's, to be waited for, or None; owner: keeps it alive."""

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stream: int | None = None
    owner: Any = None

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
            "strides": None,
            "stream": None if self.stream is None else self.stream or _LEGACY_STREAM,
        }

    def numpy(self) -> NDArray[Any]:
        """A copy on the host, once the producer is done."""
        host = np.empty(self.shape, self.dtype)
        with self.owner.context.current() if isinstance(self.owner, DeviceBuffer) else nullcontext():
            if self.stream is not None:
                synchronize(self.stream)
            _call("cuMemcpyDtoH", host.ctypes.data, self.pointer, self.nbytes)
        return host


def empty(context: Context, shape: tuple[int, ...], dtype: Any, stream: int | None = None) -> DeviceArray:
    """Fresh device memory, released with the array."""
    buffer = DeviceBuffer(context, math.prod(shape) * np.dtype(dtype).itemsize)
    return DeviceArray(buffer.pointer, shape, np.dtype(dtype), stream, buffer)


def is_device_array(source: Any) -> bool:
    """Whether as_device_array would take it: NumPy arrays and other host memory are not."""
    if isinstance(source, DeviceArray) or hasattr(source, "__cuda_array_interface__"):
        return True
    device = getattr(source, "__dlpack_device__", None)
    return device is not None and int(device()[0]) in (_DLPACK_CUDA, _DLPACK_MANAGED)


def as_device_array(source: Any, stream: int | None = None) -> DeviceArray:
    """An array of PyCUDA, CuPy, PyTorch, NVDEC, ... where it is on the device; nothing is copied.

    source: offers __cuda_array_interface__ or DLPack. stream: where it will be used; a producer that speaks DLPack
    makes it wait. Otherwise the producer's stream, if it names one, is the result's. Raises TypeError for something
    that is not on a CUDA device, ValueError if it is not C-contiguous.
    """
    if isinstance(source, DeviceArray):
        return source
    interface = getattr(source, "__cuda_array_interface__", None)
    # Before version 3 the array interface says nothing of the stream, and DLPack, which does, is the better offer.
    if interface is not None and (interface.get("version", 0) >= 3 or not hasattr(source, "__dlpack__")):
        return _from_interface(interface, source)
    if is_device_array(source):
        return _from_dlpack(source, stream)
    kind = f"{type(source).__module__}.{type(source).__qualname__}"
    raise TypeError(f"got {kind}, wanted an array on a CUDA device (__cuda_array_interface__ or DLPack)")


def stream_handle(source: Any) -> int:
    """The handle of a stream: an int, or PyCUDA's, cuda.core's, PyTorch's, CuPy's or our Stream.

    Raises TypeError for anything else.
    """
    if isinstance(source, int | Stream):
        return int(source)
    if protocol := getattr(source, "__cuda_stream__", None):
        return int((protocol() if callable(protocol) else protocol)[1])
    for name in ("cuda_stream", "ptr", "handle"):
        handle = getattr(source, name, None)
        handle = getattr(handle, "value", handle)  # ctypes
        if handle is not None:
            return int(handle)
    raise TypeError(f"got {type(source).__qualname__}, wanted a CUDA stream or its handle")


def check_home(array: DeviceArray, context: Context) -> None:
    """ValueError if the array's memory is the host's or of another context. Memory pools have none."""
    attribute = _driver().CUpointer_attribute.CU_POINTER_ATTRIBUTE_CONTEXT
    try:
        home = _call("cuPointerGetAttribute", attribute, array.pointer)
    except BackendError as error:
        raise ValueError(f"{array.pointer:#x} is no CUDA memory ({error}); pass host data as a numpy array") from error
    if int(home) and int(home) != int(context.handle):
        raise ValueError("the array is of another CUDA context than the session; open the session in the array's")


def copy_in(target: int, host: PinnedBuffer, nbytes: int, stream: int) -> None:
    _call("cuMemcpyHtoDAsync", target, host.pointer, nbytes, stream)


def copy_out(host: PinnedBuffer, source: int, nbytes: int, stream: int) -> None:
    _call("cuMemcpyDtoHAsync", host.pointer, source, nbytes, stream)


def copy_within(target: int, source: int, nbytes: int, stream: int) -> None:
    _call("cuMemcpyDtoDAsync", target, source, nbytes, stream)


def synchronize(stream: int) -> None:
    """Block until everything on the stream is done."""
    _call("cuStreamSynchronize", stream)


def follow(stream: int, event: Event) -> None:
    """What is put on the stream from now on starts after the event."""
    _call("cuStreamWaitEvent", stream, event.handle, 0)


def free_memory() -> int:
    """Bytes of the device's memory that nobody holds."""
    with Context().current():
        return int(_call("cuMemGetInfo")[0])


def driver_version() -> str:
    """The CUDA version the driver serves, e.g. "13.0"."""
    version = int(_call("cuDriverGetVersion"))
    return f"{version // 1000}.{version % 1000 // 10}"


def _capture(stream: Stream, enqueue: Callable[[], None]) -> Any:
    # thread-local: other threads may allocate meanwhile
    mode = _driver().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    _call("cuStreamBeginCapture", stream.handle, mode)
    try:
        enqueue()
    except BaseException:
        _end_capture_quietly(stream)
        raise
    return _call("cuStreamEndCapture", stream.handle)


def _end_capture_quietly(stream: Stream) -> None:
    try:
        graph = _call("cuStreamEndCapture", stream.handle)
    except BackendError:  # the capture was invalid, which is why the caller failed
        return
    _call("cuGraphDestroy", graph)


def _from_interface(interface: dict[str, Any], source: Any) -> DeviceArray:
    dtype = np.dtype(interface["typestr"])
    shape, strides = tuple(interface["shape"]), interface.get("strides")
    _check_contiguous(shape, None if strides is None else tuple(s // dtype.itemsize for s in strides))
    stream = interface.get("stream")
    return DeviceArray(int(interface["data"][0]), shape, dtype, stream, source)


class _Tensor(ctypes.Structure):
    """DLTensor of dlpack.h, the first member of DLManagedTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


def _from_dlpack(source: Any, stream: int | None) -> DeviceArray:
    capsule = source.__dlpack__(stream=(stream or _LEGACY_STREAM) if stream is not None else None)
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    tensor = _Tensor.from_address(get(capsule, b"dltensor"))
    if tensor.code not in _DLPACK_CODES or tensor.lanes != 1:
        raise TypeError(f"got DLPack type {tensor.code} of {tensor.bits} bits, wanted integers or IEEE floats")
    dtype = np.dtype(f"{_DLPACK_CODES[tensor.code]}{tensor.bits // 8}")
    shape = tuple(tensor.shape[: tensor.ndim])
    _check_contiguous(shape, tuple(tensor.strides[: tensor.ndim]) if tensor.strides else None)
    # The capsule stays as it is: whoever drops it last has the producer's memory released.
    return DeviceArray((tensor.data or 0) + tensor.byte_offset, shape, dtype, None, capsule)


def _check_contiguous(shape: tuple[int, ...], strides: tuple[int, ...] | None) -> None:
    """strides: in elements; of an axis of length one they say nothing."""
    step = 1
    for length, stride in zip(reversed(shape), reversed(strides or ()), strict=False):
        if length != 1 and stride != step:
            raise ValueError(f"got shape {shape} with strides {strides}, wanted C-contiguous data; copy it first")
        step *= length


def _driver() -> Any:
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise BackendError(f"cuda-python cannot be imported ({error}); {INSTALL}") from error
    return driver


def _call(name: str, *arguments: Any) -> Any:
    """What the driver's function returns beside its status: nothing, one value or several."""
    driver = _driver()
    try:
        status, *values = getattr(driver, name)(*arguments)
    except RuntimeError as error:  # no libcuda here: the bindings look for it on the first call
        raise BackendError(
            f"the NVIDIA driver cannot be loaded ({error}); install it, or use another backend"
        ) from error
    if int(status):
        raise BackendError(f"{name} failed: {getattr(status, 'name', status)}")
    return values[0] if len(values) == 1 else (tuple(values) or None)
