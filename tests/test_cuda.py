"""Device memory is released once and in time, streams are waited for, arrays of others are read where they lie."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from types import SimpleNamespace
from typing import Any

import gpu_fakes
import numpy as np
import pytest
from gpu_fakes import PRIMARY, FakeDriver

from dgiqa.errors import BackendError
from dgiqa.runtime import cuda

NOTHING = dict.fromkeys(("device", "pinned", "streams", "events", "graphs", "primary"), 0)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    return gpu_fakes.install(monkeypatch, FakeDriver())


def upload(context: cuda.Context, array: np.ndarray, stream: int) -> tuple[cuda.DeviceArray, cuda.PinnedBuffer]:
    pinned = cuda.PinnedBuffer(context, array.nbytes)
    pinned.array(array.shape, array.dtype)[:] = array
    target = cuda.empty(context, array.shape, array.dtype, stream)
    cuda.copy_in(target.pointer, pinned, array.nbytes, stream)
    return target, pinned


class Foreign:
    """An array of another library: __cuda_array_interface__ as given."""

    def __init__(self, **interface: Any) -> None:
        self.__cuda_array_interface__ = {"version": 3, "typestr": "<f4", "data": (4096, False), **interface}


class Exporter:
    """A DLPack producer that holds host memory and says that it is a device's."""

    def __init__(self, array: np.ndarray, device: int = 2) -> None:
        self.array, self.device, self.asked, self.deleted = array, device, [], 0
        self.views: list[Any] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device, 0

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        self.asked.append(stream)
        return self.array.__dlpack__()


def test_the_primary_context_is_used_where_none_is_current_and_given_back_with_the_last_buffer(
    driver: FakeDriver,
) -> None:
    context = cuda.Context()
    assert (context.handle, driver.primary, driver.contexts()) == (PRIMARY, 1, [])
    assert (context.gpu, context.compute_capability, context.device) == ("Imagined H200", "9.0", 0)
    array = cuda.empty(context, (3,), np.float32)
    del context
    gc.collect()
    assert driver.primary == 1
    del array
    gc.collect()
    assert driver.alive() == NOTHING


def test_the_callers_context_is_used_and_left_as_it_was(driver: FakeDriver) -> None:
    driver.contexts().append(99)
    context = cuda.Context()
    with cuda.DeviceBuffer(context, 8):
        assert driver.contexts() == [99]
    assert (context.handle, driver.primary) == (99, 0)
    elsewhere: list[list[int]] = []
    with context.current():
        thread = threading.Thread(target=lambda: elsewhere.append(list(driver.contexts())))
        thread.start()
        thread.join()
    assert (elsewhere, driver.contexts()) == ([[]], [99])


@pytest.mark.parametrize("release", ["close", "with", "drop"])
def test_resources_are_released_exactly_once(driver: FakeDriver, release: str) -> None:
    context = cuda.Context()
    kinds = (lambda c: cuda.DeviceBuffer(c, 16), lambda c: cuda.PinnedBuffer(c, 16), cuda.Stream, cuda.Event)
    for make in kinds:
        resource = make(context)
        assert sum(driver.alive().values()) == 2
        if release == "close":
            resource.close()
            resource.close()
        elif release == "with":
            with resource:
                pass
        del resource
        gc.collect()
        assert driver.alive() == {**NOTHING, "primary": 1}


def test_copies_wait_for_the_stream_and_come_back_whole(driver: FakeDriver) -> None:
    context = cuda.Context()
    data = np.arange(600, dtype=np.float32).reshape(20, 30)
    with cuda.Stream(context) as stream, context.current():
        source, pinned = upload(context, data, int(stream))
        copy = cuda.empty(context, source.shape, source.dtype, int(stream))
        cuda.copy_within(copy.pointer, source.pointer, source.nbytes, int(stream))
        with cuda.PinnedBuffer(context, data.nbytes) as back:
            cuda.copy_out(back, copy.pointer, copy.nbytes, int(stream))
            assert not np.array_equal(back.array(data.shape, data.dtype), data)  # nothing has run yet
            cuda.synchronize(int(stream))
            np.testing.assert_array_equal(back.array(data.shape, data.dtype), data)
        pinned.close()
    np.testing.assert_array_equal(cuda.DeviceArray(**{**vars(copy), "stream": None}).numpy(), data)


def test_one_stream_follows_another_through_an_event(driver: FakeDriver) -> None:
    context = cuda.Context()
    data = np.arange(5, dtype=np.int64)
    with context.current(), cuda.Stream(context) as first, cuda.Stream(context) as second:
        source, pinned = upload(context, data, int(first))
        target = cuda.empty(context, data.shape, data.dtype, int(second))
        with cuda.Event(context) as event:
            event.record(int(first))
            cuda.follow(int(second), event)
            cuda.copy_within(target.pointer, source.pointer, data.nbytes, int(second))
            np.testing.assert_array_equal(target.numpy(), data)
        pinned.close()


def test_a_graph_replays_what_was_recorded_and_frees_it(driver: FakeDriver) -> None:
    context = cuda.Context()
    with context.current(), cuda.Stream(context) as stream:
        source, pinned = upload(context, np.zeros(4, np.float32), int(stream))
        target = cuda.empty(context, (4,), np.float32, int(stream))

        def enqueue() -> None:
            cuda.copy_in(source.pointer, pinned, 16, int(stream))
            cuda.copy_within(target.pointer, source.pointer, 16, int(stream))

        with cuda.Graph(stream, enqueue) as graph:
            for value in (1, 2):
                pinned.array((4,), np.dtype(np.float32))[:] = value
                graph.launch(int(stream))
                np.testing.assert_array_equal(target.numpy(), np.full(4, value, np.float32))
        pinned.close()
    assert driver.alive()["graphs"] == 0


def test_a_failing_recording_ends_it_and_leaves_nothing(driver: FakeDriver) -> None:
    context = cuda.Context()
    with cuda.Stream(context) as stream, context.current():
        with pytest.raises(RuntimeError, match="refused"):
            cuda.Graph(stream, lambda: (_ for _ in ()).throw(RuntimeError("refused")))
        assert driver.alive()["graphs"] == 0
        cuda.synchronize(int(stream))  # no longer recording


def test_a_refusal_of_the_driver_is_an_error_that_names_the_call(driver: FakeDriver) -> None:
    context = cuda.Context()
    with pytest.raises(BackendError, match="cuMemAlloc failed: CUDA_ERROR_OUT_OF_MEMORY"):
        cuda.DeviceBuffer(context, 1 << 40)
    with pytest.raises(BackendError, match="cuDeviceGet failed"):
        cuda.Context(device=3)
    assert driver.alive() == {**NOTHING, "primary": 1}


def test_without_cuda_python_or_a_driver_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda", None)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(BackendError, match=r'pip install "dgiqa-rt\[tensorrt\]"'):
        cuda.Context()
    gpu_fakes.install(monkeypatch, FakeDriver()).cuInit = lambda flags: _no_library()
    with pytest.raises(BackendError, match="the NVIDIA driver cannot be loaded"):
        cuda.Context()


def _no_library() -> None:
    raise RuntimeError("libcuda.so.1: cannot open shared object file")


def test_arrays_of_others_are_read_in_place() -> None:
    foreign = Foreign(shape=(2, 3), strides=None, stream=5)
    array = cuda.as_device_array(foreign)
    assert (array.pointer, array.shape, array.dtype, array.stream) == (4096, (2, 3), np.dtype(np.float32), 5)
    assert array.owner is foreign
    assert cuda.as_device_array(array) is array
    assert array.__cuda_array_interface__ == {
        **foreign.__cuda_array_interface__,
        "strides": None,
    }
    contiguous = Foreign(shape=(2, 1, 3), strides=(12, 999, 4))  # of a single row a stride says nothing
    assert cuda.as_device_array(contiguous).shape == (2, 1, 3)
    assert cuda.as_device_array(Foreign(shape=(1,), typestr="<f2")).dtype == np.float16
    default = cuda.DeviceArray(4096, (1,), np.dtype(np.float32), stream=0)
    assert default.__cuda_array_interface__["stream"] == 1  # the interface does not allow 0


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (Foreign(shape=(2, 3), strides=(4, 8)), ValueError, r"shape \(2, 3\) with strides \(1, 2\), wanted C-contig"),
        (np.zeros(3), TypeError, r"got numpy\.ndarray, wanted an array on a CUDA device"),
        (object(), TypeError, "got builtins.object"),
        (Exporter(np.zeros((4, 4), np.float32)[:, ::2]), ValueError, "wanted C-contiguous"),
        (Exporter(np.zeros(2, np.complex64)), TypeError, "wanted integers or IEEE floats"),
    ],
)
def test_what_cannot_be_read_in_place_is_refused(source: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        cuda.as_device_array(source)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8, np.int64])
def test_dlpack_is_read_with_the_stream_it_will_be_used_on(dtype: type) -> None:
    data = np.arange(24).reshape(2, 3, 4).astype(dtype)
    source = Exporter(data[1:])
    array = cuda.as_device_array(source, stream=8)
    assert (array.shape, array.dtype, source.asked) == ((1, 3, 4), data.dtype, [8])
    assert array.pointer == data[1:].ctypes.data
    cuda.as_device_array(source, stream=0)
    cuda.as_device_array(source)
    assert source.asked == [8, 1, None]  # DLPack calls the default stream 1


def test_dlpack_memory_is_kept_as_long_as_the_array_and_released_after() -> None:
    data = np.arange(3, dtype=np.float32)
    before = sys.getrefcount(data)
    array = cuda.as_device_array(Exporter(data))
    gc.collect()
    assert sys.getrefcount(data) == before + 1  # the capsule
    assert list((ctypes.c_float * 3).from_address(array.pointer)) == [0, 1, 2]
    del array
    gc.collect()
    assert sys.getrefcount(data) == before


def test_of_two_offers_the_one_that_knows_streams_is_taken() -> None:
    both = Exporter(np.zeros(2, np.float32))
    both.__cuda_array_interface__ = {"version": 2, "shape": (2,), "typestr": "<f4", "data": (64, False)}
    assert cuda.as_device_array(both, stream=3).pointer != 64
    both.__cuda_array_interface__["version"] = 3
    assert cuda.as_device_array(both, stream=3).pointer == 64
    assert both.asked == [3]
    assert not cuda.is_device_array(Exporter(np.zeros(2), device=1))  # DLPack of a CPU


@pytest.mark.parametrize(
    ("source", "handle"),
    [
        (17, 17),
        (SimpleNamespace(handle=18), 18),  # pycuda.driver.Stream
        (SimpleNamespace(cuda_stream=19), 19),  # torch.cuda.Stream
        (SimpleNamespace(ptr=20), 20),  # cupy.cuda.Stream
        (SimpleNamespace(__cuda_stream__=lambda: (0, 21)), 21),  # cuda.core
        (SimpleNamespace(handle=ctypes.c_void_p(22)), 22),  # numba
        (SimpleNamespace(cuda_stream=0), 0),  # torch's default stream
    ],
)
def test_streams_of_other_libraries_are_taken(source: Any, handle: int) -> None:
    assert cuda.stream_handle(source) == handle


@pytest.mark.parametrize("source", ["7", None, 1.5])
def test_what_is_no_stream_is_refused(source: Any) -> None:
    with pytest.raises(TypeError, match="wanted a CUDA stream or its handle"):
        cuda.stream_handle(source)


def test_memory_of_the_host_or_another_context_is_noticed(driver: FakeDriver) -> None:
    driver.contexts().append(99)
    own = cuda.Context()
    array = cuda.empty(own, (2,), np.float32)
    with pytest.raises(ValueError, match="another CUDA context"):  # the fake's memory is all of the primary one
        cuda.check_home(array, own)
    driver.contexts().clear()
    primary = cuda.Context()
    with primary.current():
        cuda.check_home(array, primary)
        with pytest.raises(ValueError, match="is no CUDA memory"):
            cuda.check_home(cuda.DeviceArray(12345, (1,), np.dtype(np.float32)), primary)


def test_ten_thousand_rounds_leave_nothing_behind(driver: FakeDriver) -> None:
    context = cuda.Context()
    with context.current(), cuda.Stream(context) as stream, cuda.PinnedBuffer(context, 64) as pinned:
        for _ in range(10_000):
            array = cuda.empty(context, (16,), np.float32, int(stream))
            cuda.copy_in(array.pointer, pinned, array.nbytes, int(stream))
        cuda.synchronize(int(stream))
        assert driver.alive() == {**NOTHING, "device": 1, "pinned": 1, "streams": 1, "primary": 1}
        del array
    del context, stream, pinned
    gc.collect()
    assert driver.alive() == NOTHING
    assert driver.calls["cuMemAlloc"] == 10_000
