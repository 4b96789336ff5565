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

NOTHING = dict.fromkeys(("device", "pinned", "streams", "graphs"), 0)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    return gpu_fakes.install(monkeypatch, FakeDriver())


@pytest.fixture
def lane(driver: FakeDriver) -> cuda.Lane:
    return cuda.Lane(cuda.Context())


def filled(array: np.ndarray, lane: cuda.Lane) -> tuple[cuda.DeviceArray, np.ndarray]:
    """On the device, once the lane is done; and what it comes from."""
    pinned = gpu_fakes.pinned(lane, array)
    target = lane.empty(array.shape, array.dtype)
    with lane.current():
        lane.copy(target.pointer, pinned.ctypes.data, array.nbytes)
    return target, pinned


class Owner:
    """Whose work it is that a lane replays."""


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


def test_the_primary_context_is_used_where_none_is_current(driver: FakeDriver) -> None:
    context = cuda.Context()
    assert (context.handle, context.primary, driver.contexts()) == (PRIMARY, True, [])
    assert (context.gpu, context.compute_capability, context.device) == ("Imagined H200", "9.0", 0)


def test_the_callers_context_is_used_and_left_as_it_was(driver: FakeDriver) -> None:
    driver.contexts().append(99)
    context = cuda.Context()
    lane = cuda.Lane(context)
    lane.empty((8,), np.uint8)
    assert (context.handle, context.primary, driver.contexts()) == (99, False, [99])
    elsewhere: list[list[int]] = []
    with context.current():
        thread = threading.Thread(target=lambda: elsewhere.append(list(driver.contexts())))
        thread.start()
        thread.join()
    assert (elsewhere, driver.contexts()) == ([[]], [99])
    streams: list[Any] = []
    driver.contexts().clear()
    thread = threading.Thread(target=lambda: streams.append(cuda.Lane(context)))  # a thread that used no device yet
    thread.start()
    thread.join()
    assert len(streams) == 1
    assert {driver.queues[each.handle].home for each in (lane, *streams)} == {99}


def test_what_is_dropped_or_closed_goes_back(driver: FakeDriver) -> None:
    context = cuda.Context()
    lane = cuda.Lane(context)
    lane.scratch(4096)
    array = lane.empty((16,), np.uint8)
    assert driver.alive() == {**NOTHING, "device": 2, "streams": 1}
    del array
    assert driver.alive() == {**NOTHING, "device": 1, "streams": 1}
    with lane.current():
        lane.close()
    assert driver.alive() == NOTHING


def test_copies_wait_for_the_stream_and_come_back_whole(driver: FakeDriver, lane: cuda.Lane) -> None:
    data = np.arange(600, dtype=np.float32).reshape(20, 30)
    source, pinned = filled(data, lane)
    copied = lane.empty(source.shape, source.dtype)
    with lane.current():
        lane.copy(copied.pointer, source.pointer, source.nbytes)
        pinned[...] = 0.5  # what was put on the stream has not run
        np.testing.assert_array_equal(lane.numpy(copied), np.full_like(data, 0.5))
        lane.put(source, data[:, ::-1])  # gaps are closed on the way
        lane.copy(copied.pointer, source.pointer, source.nbytes)
        np.testing.assert_array_equal(lane.numpy(copied), data[:, ::-1])


def test_a_copy_on_the_host_is_there_also_where_the_driver_stages_nothing(driver: FakeDriver, lane: cuda.Lane) -> None:
    source, _pinned = filled(np.arange(600, dtype=np.float32), lane)
    driver.direct = True
    with lane.current():
        np.testing.assert_array_equal(lane.numpy(source), np.arange(600))


def test_one_stream_follows_another(driver: FakeDriver, lane: cuda.Lane) -> None:
    other, data = cuda.Lane(lane.context), np.arange(5, dtype=np.int64)
    source, _pinned = filled(data, lane)
    target = other.empty(data.shape, data.dtype)
    with lane.current():
        other.follow(lane.handle)
        other.copy(target.pointer, source.pointer, data.nbytes)
        np.testing.assert_array_equal(other.numpy(target), data)
        other.follow(other.stream)  # itself: nothing


def test_work_is_recorded_the_second_time_and_replayed(driver: FakeDriver, lane: cuda.Lane) -> None:
    source, pinned = filled(np.zeros(4, np.float32), lane)
    target = lane.empty((4,), np.float32)

    def work() -> None:
        lane.copy(source.pointer, pinned.ctypes.data, 16)
        lane.copy(target.pointer, source.pointer, 16)

    owner = Owner()
    with lane.current():
        for value in range(5):
            pinned[:] = value
            lane.replay(owner, work)
            np.testing.assert_array_equal(lane.numpy(target), np.full(4, value, np.float32))
        assert (driver.calls["cuStreamBeginCapture"], driver.calls["cuGraphLaunch"]) == (1, 4)
        lane.scratch(1 << 14)  # what computes in the lane's memory has to be recorded anew where that moves
        lane.replay(owner, work)
        lane.replay(owner, work)
        assert (driver.calls["cuStreamBeginCapture"], driver.calls["cuGraphLaunch"]) == (2, 5)
        lane.scratch(1 << 15)  # and what is running is waited for before it goes
        lane.replay(owner, work)
        lane.replay(owner, work)
        assert driver.alive()["graphs"] == 1
    del owner
    assert driver.alive()["graphs"] == 0


def test_a_lane_that_records_nothing_runs_plainly(driver: FakeDriver) -> None:
    lane, owner, ran = cuda.Lane(cuda.Context(), record=False), Owner(), []
    with lane.current():
        for _ in range(4):
            lane.replay(owner, lambda: ran.append(1))
    assert (len(ran), driver.calls["cuStreamBeginCapture"]) == (4, 0)


def test_what_came_last_is_kept_and_room_is_made_before_the_next(driver: FakeDriver) -> None:
    lane = cuda.Lane(cuda.Context(), keep=2)
    alive: list[int] = []

    def make() -> cuda.DeviceArray:
        alive.append(driver.alive()["device"])
        return lane.empty((8,), np.uint8)

    made = {key: id(lane.recent(key, make)) for key in "ab"}
    assert id(lane.recent("a", make)) == made["a"]
    lane.recent("c", make)  # b makes room for it
    assert id(lane.recent("a", make)) == made["a"]
    lane.recent("b", make)
    assert alive == [0, 1, 1, 1]
    with lane.current():
        lane.close()
    assert driver.alive() == NOTHING


def test_what_cannot_be_recorded_is_run_plainly(driver: FakeDriver, lane: cuda.Lane) -> None:
    ran = []

    def waits() -> None:  # which cannot be recorded
        lane.sync()
        ran.append(1)

    owner = Owner()
    with lane.current():
        for _ in range(3):
            lane.replay(owner, waits)
    assert (len(ran), driver.calls["cuStreamBeginCapture"], driver.alive()["graphs"]) == (3, 1, 0)

    def broken() -> None:
        raise BackendError("the engine is broken")

    for _ in range(3):
        with lane.current(), pytest.raises(BackendError, match="the engine is broken"):
            lane.replay(broken, broken)


def test_nothing_is_collected_while_work_is_recorded(driver: FakeDriver, lane: cuda.Lane) -> None:
    """Memory that garbage gives back meanwhile would be given back by every replay."""

    def work() -> None:
        cycle: list[Any] = [lane.empty((4,), np.float32)]
        cycle.append(cycle)
        del cycle
        seen.append(gc.isenabled())
        assert len([[] for _ in range(5000)]) == 5000

    seen: list[bool] = []
    owner = Owner()
    with lane.current():
        lane.replay(owner, work)
        lane.replay(owner, work)
    assert seen == [True, False]
    assert gc.isenabled()
    gc.collect()
    assert driver.faults == []


def test_a_refusal_is_an_error_that_says_what(driver: FakeDriver, lane: cuda.Lane) -> None:
    with pytest.raises(BackendError, match="CUDA failed: CUDA_ERROR_OUT_OF_MEMORY"):
        lane.empty((1 << 40,), np.uint8)
    with pytest.raises(BackendError, match=r"device_id must be within \[0, 1\), got 3"):
        cuda.Context(device=3)


def test_without_cuda_python_or_a_driver_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = gpu_fakes.install(monkeypatch, FakeDriver())
    monkeypatch.setattr(sys.modules["cuda.core"], "Device", _no_library)
    with pytest.raises(BackendError, match="the NVIDIA driver cannot be loaded"):
        cuda.Context()
    del driver
    for name in ("cuda", "cuda.core"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendError, match=r'pip install "dgiqa-rt\[cuda\]"'):
        cuda.Context()


def _no_library() -> None:
    raise RuntimeError("libcuda.so.1: cannot open shared object file")


def test_arrays_of_others_are_read_in_place() -> None:
    foreign = Foreign(shape=(2, 3), strides=None, stream=5)
    array = cuda.view_of(foreign)
    assert (array.pointer, array.shape, array.dtype, array.stream) == (4096, (2, 3), np.dtype(np.float32), 5)
    assert array.owner is foreign
    assert cuda.view_of(array) is array
    assert array.__cuda_array_interface__ == {
        **foreign.__cuda_array_interface__,
        "strides": None,
    }
    contiguous = Foreign(shape=(2, 1, 3), strides=(12, 999, 4))  # of a single row a stride says nothing
    assert (cuda.view_of(contiguous).shape, cuda.view_of(contiguous).strides) == ((2, 1, 3), None)
    assert cuda.view_of(Foreign(shape=(1,), typestr="<f2")).dtype == np.float16
    default = cuda.DeviceArray(4096, (1,), np.dtype(np.float32), stream=0)
    assert default.__cuda_array_interface__["stream"] == 1  # the interface does not allow 0


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (
            Foreign(shape=(2, 3), strides=(4, 8)),
            ValueError,
            r"shape \(2, 3\) with strides of \(4, 8\) bytes, wanted C-",
        ),
        (np.zeros(3), TypeError, r"got numpy\.ndarray, wanted an array on a CUDA device"),
        (object(), TypeError, "got builtins.object"),
        (Exporter(np.zeros((4, 4), np.float32)[:, ::2]), ValueError, "wanted C-contiguous"),
    ],
)
def test_what_cannot_be_read_in_place_is_refused(lane: cuda.Lane, source: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        lane.take(source)


def test_what_is_taken_is_waited_for(driver: FakeDriver, lane: cuda.Lane) -> None:
    producer, data = cuda.Lane(lane.context), np.arange(6, dtype=np.float32)
    source, _pinned = filled(data, producer)
    with lane.current():
        np.testing.assert_array_equal(lane.numpy(lane.take(source)), data)
        driver.ordinal = 1
        with pytest.raises(ValueError, match="the array is on GPU 1"):
            lane.take(source)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8, np.int64])
def test_dlpack_is_read_with_the_stream_it_will_be_used_on(driver: FakeDriver, dtype: type) -> None:
    data = np.arange(24).reshape(2, 3, 4).astype(dtype)
    source = Exporter(data[1:])
    array = cuda.view_of(source, stream=8)
    assert (array.shape, array.dtype, source.asked, array.stream) == ((1, 3, 4), data.dtype, [8], 8)
    assert array.pointer == data[1:].ctypes.data
    cuda.view_of(source, stream=0)
    assert cuda.view_of(source).stream == 1  # which is to be waited for
    assert source.asked == [8, 1, 1]  # DLPack calls the default stream 1


@pytest.mark.parametrize("view", ["permuted", "rgb of rgba", "contiguous"])
def test_a_torch_tensor_is_waited_for_whatever_its_strides(driver: FakeDriver, view: str) -> None:
    """Its interface, of version 2, names no stream: only DLPack makes it wait. Field for field torch's own."""
    torch = pytest.importorskip("torch")
    tensor = torch.arange(5 * 7 * 4, dtype=torch.uint8).reshape(5, 7, 4)
    tensor = {"permuted": tensor.permute(2, 0, 1), "rgb of rgba": tensor[..., :3], "contiguous": tensor}[view]
    source = Exporter(tensor.numpy())
    source.__cuda_array_interface__ = torch_interface(tensor)
    assert source.__cuda_array_interface__["version"] == 2
    seen = cuda.view_of(source, stream=77)
    assert source.asked == [77]
    assert (seen.pointer, seen.shape) == (tensor.data_ptr(), tuple(tensor.shape))
    assert seen.strides == (None if view == "contiguous" else tuple(tensor.stride()))


def torch_interface(tensor: Any) -> dict[str, Any]:
    """What torch.Tensor.__cuda_array_interface__ gives for a tensor on a GPU, by the property's own code."""
    import torch

    class OnGpu:
        """The tensor, as far as the property asks: it refuses those on a CPU."""

        is_cuda, requires_grad = True, False
        is_sparse = property(lambda self: tensor.is_sparse)
        layout = property(lambda self: tensor.layout)

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__torch_function"):
                raise AttributeError(name)
            return getattr(tensor, name)

    found: dict[str, Any] = torch.Tensor.__cuda_array_interface__.fget(OnGpu())  # type: ignore[attr-defined]
    return found


def test_dlpack_memory_is_kept_as_long_as_the_array_and_released_after(driver: FakeDriver) -> None:
    data = np.arange(3, dtype=np.float32)
    before = sys.getrefcount(data)
    array = cuda.view_of(Exporter(data))
    gc.collect()
    assert sys.getrefcount(data) > before
    assert list((ctypes.c_float * 3).from_address(array.pointer)) == [0, 1, 2]
    del array
    gc.collect()
    assert sys.getrefcount(data) == before


def test_of_two_offers_the_one_that_knows_streams_is_taken(driver: FakeDriver) -> None:
    both = Exporter(np.zeros(2, np.float32))
    both.__cuda_array_interface__ = {"version": 2, "shape": (2,), "typestr": "<f4", "data": (64, False)}
    assert cuda.view_of(both, stream=3).pointer != 64
    both.__cuda_array_interface__["version"] = 3
    assert cuda.view_of(both, stream=3).pointer == 64
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


def test_memory_of_the_host_another_gpu_or_another_context_is_noticed(driver: FakeDriver) -> None:
    driver.contexts().append(99)
    own = cuda.Context()
    array = cuda.Lane(own).empty((2,), np.float32)
    with pytest.raises(ValueError, match="another CUDA context"):  # the fake's memory is all of the primary one
        own.check_home(array.pointer)
    driver.home = 0
    own.check_home(array.pointer)  # a memory pool's
    driver.ordinal = 1
    with pytest.raises(ValueError, match="the array is on GPU 1, the networks on GPU 0; copy it there first"):
        own.check_home(array.pointer)
    with pytest.raises(ValueError, match="is not CUDA memory"):
        own.check_home(12345)


def test_thousands_of_rounds_leave_nothing_behind(driver: FakeDriver, lane: cuda.Lane) -> None:
    pinned = gpu_fakes.pinned(lane, np.zeros(16, np.float32))
    with lane.current():
        for _ in range(2000):
            array = lane.empty((16,), np.float32)
            lane.copy(array.pointer, pinned.ctypes.data, array.nbytes)
        assert driver.alive() == {**NOTHING, "device": 1, "pinned": 1, "streams": 1}
