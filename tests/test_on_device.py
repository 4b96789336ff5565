"""An image on a device is scored there as on the host. Here the device is host memory and the kernels are emulated."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import gpu_fakes
import numpy as np
import pytest
from gpu_fakes import FakeDriver
from numpy.typing import NDArray

from dgiqa import Scorer, spec
from dgiqa import on_device as on_device_room
from dgiqa.bundle import Bundle
from dgiqa.errors import BackendError, DgiqaError, ImageError
from dgiqa.on_device import CudaMemory, DeviceScorer, ThroughHost, device_image
from dgiqa.runtime import cuda
from dgiqa.runtime.cuda import DeviceArray
from dgiqa.runtime.kernels import Kernels
from dgiqa.runtime.session import Session

STREAM = 77  # stands for a caller's
# Depth levels may move by one where floats round differently, in 0.1 % of pixels; the emulated kernels share the rest.
BUDGET = 1e-4


def view(array: DeviceArray) -> NDArray[Any]:
    """What lies at a pointer of this "device"."""
    raw = (ctypes.c_byte * array.nbytes).from_address(array.pointer)
    return np.frombuffer(raw, array.dtype).reshape(array.shape)


class HostMemory:
    """A device that is host memory; it counts what crosses over, and remembers the streams it was used on."""

    stream = 5

    def __init__(self) -> None:
        self.allocations, self.uploads, self.downloads = 0, [], []  # type: ignore[var-annotated]
        self.streams: set[int] = set()
        self.followed: list[tuple[int, int]] = []
        self.closed = False

    def current(self) -> AbstractContextManager[None]:
        return nullcontext()

    def empty(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        self.allocations += 1
        array = np.full(shape, 0xA5, np.uint8) if dtype == np.uint8 else np.full(shape, np.nan, dtype)
        return DeviceArray(array.ctypes.data, shape, array.dtype, None, array)

    def copy(self, target: int, source: int, nbytes: int, stream: int) -> None:
        self.streams.add(stream)
        ctypes.memmove(target, source, nbytes)

    def upload(self, target: int, array: NDArray[Any], stream: int) -> None:
        self.uploads.append(array.nbytes)
        ctypes.memmove(target, array.ctypes.data, array.nbytes)

    def download(self, source: int, nbytes: int, stream: int) -> NDArray[np.uint8]:
        self.streams.add(stream)
        self.downloads.append(nbytes)
        return np.frombuffer(ctypes.string_at(source, nbytes), np.uint8).copy()

    def follow(self, stream: int, producer: int) -> None:
        self.followed.append((stream, producer))

    def close(self) -> None:
        self.closed = True


@dataclass
class Bound:
    """A host session between arrays of the "device"."""

    session: Session
    feeds: Mapping[str, DeviceArray]
    outputs: Mapping[str, DeviceArray]
    streams: set[int]
    open: set[int]

    def enqueue(self, stream: int) -> None:
        assert id(self) in self.open, "enqueued after it was closed"
        self.streams.add(stream)
        for name, array in self.session.run({name: view(feed) for name, feed in self.feeds.items()}).items():
            if name in self.outputs:  # pooled features are an output that nobody asked for here
                view(self.outputs[name])[...] = array

    def close(self) -> None:
        self.open.remove(id(self))


class HostNetwork:
    """A host session that binds as TrtSession does."""

    def __init__(self, session: Session) -> None:
        self.session, self.backend = session, "tensorrt (a stand-in)"
        self.streams: set[int] = set()
        self.open: set[int] = set()

    def bind(self, feeds: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray]) -> Bound:
        bound = Bound(self.session, feeds, outputs, self.streams, self.open)
        self.open.add(id(bound))
        return bound


class DeviceImage:
    """What PyCUDA, CuPy and PyTorch offer, over a numpy array."""

    def __init__(self, array: NDArray[Any], stream: int | None = None) -> None:
        self.array, contiguous = array, array.flags.c_contiguous
        self.__cuda_array_interface__ = {
            "version": 3,
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (array.ctypes.data, False),
            "strides": None if contiguous else array.strides,
            "stream": stream,
        }


@dataclass
class Device:
    scorer: DeviceScorer
    memory: HostMemory
    depth: HostNetwork
    quality: HostNetwork


def networks_of(host: Scorer) -> tuple[Any, Any]:
    networks = host.stages.networks
    return networks.depth, networks.quality


def on_device(host: Scorer, kernels: Kernels, **options: Any) -> Device:
    assert host._alone is not None
    memory, depth, quality = (
        HostMemory(),
        HostNetwork(host._alone.networks.depth),
        HostNetwork(host._alone.networks.quality),
    )
    scorer = DeviceScorer(depth, quality, host.bundle.preprocess, kernels=kernels, memory=memory, **options)
    return Device(scorer, memory, depth, quality)


@pytest.fixture(params=[1, 2])
def host(tiny_bundle: Bundle, request: pytest.FixtureRequest) -> Iterator[Scorer]:
    p = replace(tiny_bundle.preprocess, version=request.param)
    with Scorer(replace(tiny_bundle, preprocess=p), backend="onnxruntime") as scorer:
        yield scorer


@pytest.fixture
def device(host: Scorer, kernels: Kernels) -> Device:
    return on_device(host, kernels)


@pytest.mark.parametrize("tiling", ["grid", "official:11"])
def test_the_scores_are_those_of_the_host(
    host: Scorer, device: Device, photos: dict[str, NDArray[np.uint8]], tiling: str
) -> None:
    for name, photo in photos.items():
        wanted = host.score(photo, tiling=tiling)
        found = device.scorer.score(DeviceImage(photo), tiling, batch=4)
        np.testing.assert_allclose(found.tile_scores, wanted.tile_scores, atol=BUDGET, rtol=0, err_msg=name)
        np.testing.assert_array_equal(found.windows, wanted.windows)
        assert found.size == (wanted.height, wanted.width)
        assert found.working_size == (wanted.working_height, wanted.working_width)


def test_the_shipped_model_scores_the_same(kernels: Kernels, photos: dict[str, NDArray[np.uint8]]) -> None:
    with Scorer("small", backend="onnxruntime") as host:
        wanted = host.score(photos["coffee"])
        found = on_device(host, kernels).scorer.score(DeviceImage(photos["coffee"]))
    share = np.abs(found.tile_scores - wanted.tile_scores).max() / BUDGET
    print(f"{100 * share:.1f} % of the budget")
    assert share <= 1


def test_only_the_scores_come_to_the_host(device: Device, photos: dict[str, NDArray[np.uint8]]) -> None:
    before = len(device.memory.uploads)  # the table of levels, once
    found = device.scorer.score(DeviceImage(photos["rocket"]), "official:10", batch=4)
    assert device.memory.downloads == [16 + 4 * len(found.windows)]
    assert len(device.memory.uploads) == before == 1


def test_the_second_image_of_a_size_allocates_nothing(device: Device, photos: dict[str, NDArray[np.uint8]]) -> None:
    image = photos["chelsea"]
    first = device.scorer.score(DeviceImage(image)).tile_scores
    allocations = device.memory.allocations
    other = device.scorer.score(DeviceImage(np.ascontiguousarray(image[::-1]))).tile_scores
    again = device.scorer.score(DeviceImage(image)).tile_scores
    assert device.memory.allocations == allocations
    np.testing.assert_array_equal(again, first)
    assert not np.array_equal(other, first)


def test_memory_of_sizes_long_unused_is_let_go(host: Scorer, kernels: Kernels) -> None:
    device = on_device(host, kernels, sizes=2)
    for width in (100, 110, 120, 130):
        device.scorer.score(DeviceImage(np.zeros((90, width, 3), np.uint8)))
        assert len(device.depth.open) <= 2
    device.scorer.close()
    assert not device.depth.open | device.quality.open
    assert device.memory.closed


def test_everything_is_put_on_the_callers_stream(device: Device, photos: dict[str, NDArray[np.uint8]]) -> None:
    device.scorer.score(DeviceImage(photos["astronaut"]), stream=STREAM)
    assert device.memory.streams == device.depth.streams == device.quality.streams == {STREAM}
    assert device.memory.followed == []
    device.scorer.score(DeviceImage(photos["astronaut"], stream=9))
    assert device.memory.followed == [(HostMemory.stream, 9)], "the producer must be waited for"


@pytest.mark.parametrize("layout", ["pitched", "rgb of rgba", "bgr", "planes"])
def test_views_are_scored_in_place(device: Device, photos: dict[str, NDArray[np.uint8]], layout: str) -> None:
    rgb = photos["chelsea"]
    views = {
        "pitched": np.pad(rgb, ((0, 0), (0, 9), (0, 0)))[:, : rgb.shape[1]],
        "rgb of rgba": np.pad(rgb, ((0, 0), (0, 0), (0, 1)))[..., :3],
        "bgr": np.ascontiguousarray(rgb[..., ::-1])[..., ::-1],
        "planes": np.ascontiguousarray(rgb.transpose(2, 0, 1)).transpose(1, 2, 0),
    }
    found = device.scorer.score(DeviceImage(views[layout]))
    np.testing.assert_array_equal(found.tile_scores, device.scorer.score(DeviceImage(rgb)).tile_scores)


@pytest.mark.parametrize("shape", [(80, 90), (80, 90, 1)])
def test_grey_is_three_equal_channels(device: Device, shape: tuple[int, ...]) -> None:
    grey = np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)
    rgb = np.repeat(grey.reshape(80, 90, 1), 3, axis=2)
    found = [device.scorer.score(DeviceImage(image)).tile_scores for image in (grey, rgb)]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((9, 9, 3), np.float32), r"got float32 \[9, 9, 3\], wanted uint8"),
        (np.zeros((9, 9, 4), np.uint8), r"got uint8 \[9, 9, 4\].*take image\[\.\.\., :3\]"),
        (np.zeros((3, 9, 9), np.uint8), r"got uint8 \[3, 9, 9\]"),
        (np.zeros((0, 9, 3), np.uint8), r"got uint8 \[0, 9, 3\]"),
        (np.zeros((3, 4000, 3), np.uint8), "times as long as wide"),
    ],
)
def test_what_is_no_image_is_refused(device: Device, array: NDArray[Any], words: str) -> None:
    with pytest.raises(ImageError, match=words):
        device.scorer.score(DeviceImage(array))


def test_host_memory_is_no_device_image() -> None:
    with pytest.raises(ImageError, match="wanted an array on a CUDA device"):
        device_image(np.zeros((9, 9, 3), np.uint8))


def test_a_depth_that_is_not_finite_is_an_error(device: Device) -> None:
    class Broken:
        def bind(self, feeds: Any, outputs: Mapping[str, DeviceArray]) -> Any:
            outer = outputs

            class Bound:
                def enqueue(self, stream: int) -> None:
                    view(outer[spec.DEPTH_OUTPUT])[...] = np.nan

                def close(self) -> None: ...

            return Bound()

    scorer = device.scorer
    scorer._networks = (Broken(), scorer._networks[1])
    with pytest.raises(DgiqaError, match="returned NaN or infinity"):
        scorer.score(DeviceImage(np.zeros((90, 90, 3), np.uint8)))


def test_scorer_takes_the_device_path_by_itself(
    host: Scorer, kernels: Kernels, photos: dict[str, NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = on_device(host, kernels)
    monkeypatch.setattr(on_device_room, "open_device_scorer", lambda depth, quality, p: device.scorer)
    wanted, found = host.score(photos["coffee"]), host.score(DeviceImage(photos["coffee"]), stream=STREAM)
    assert found.value == pytest.approx(wanted.value, abs=BUDGET)
    assert (found.source, list(found.timings_ms)) == ("<device>", ["device"])
    assert (found.working_width, found.working_height) == (wanted.working_width, wanted.working_height)
    np.testing.assert_array_equal(found.windows_original, wanted.windows_original)
    assert device.memory.streams == {STREAM}
    host.close()
    assert device.memory.closed
    with pytest.raises(ValueError, match="was closed"):
        host.score(DeviceImage(photos["coffee"]))


def test_networks_on_the_cpu_refuse_an_image_on_a_gpu(host: Scorer) -> None:
    with pytest.raises(BackendError, match=r'networks in onnxruntime-cpu .* backend="tensorrt" or "onnxruntime-cuda"'):
        host.score(DeviceImage(np.zeros((90, 90, 3), np.uint8)))


def test_emulated_kernels_are_never_given_device_memory(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGIQA_KERNELS", str(kernels.path))
    network: Any = HostNetwork.__new__(HostNetwork)
    with pytest.raises(BackendError, match="emulates the kernels on a CPU"):
        on_device_room.open_device_scorer(network, network, spec.Preprocess())


def test_a_stream_without_a_device_image_is_a_mistake(host: Scorer) -> None:
    with pytest.raises(ValueError, match="not on a GPU"):
        host.score(np.zeros((90, 90, 3), np.uint8), stream=STREAM)


@pytest.mark.parametrize("which", ["tiny_bundle", "telling_bundle"])  # of one output, and of three
def test_a_session_that_answers_on_the_host_waits_and_puts_its_answer_back(
    which: str, request: pytest.FixtureRequest, kernels: Kernels
) -> None:
    class OnCuda:
        """As ONNX Runtime on CUDA: reads device arrays once they are complete, returns numpy arrays."""

        backend = "onnxruntime-cuda (a stand-in)"

        def __init__(self, session: Session) -> None:
            self.session = session

        def run(self, feeds: Mapping[str, DeviceArray]) -> dict[str, NDArray[Any]]:
            assert waited, "read before the stream was waited for"
            return self.session.run({name: view(feed) for name, feed in feeds.items()})

    waited: list[int] = []
    memory = HostMemory()
    with Scorer(request.getfixturevalue(which), backend="onnxruntime") as host:
        networks = [ThroughHost(OnCuda(session), memory, waited.append) for session in networks_of(host)]  # type: ignore[arg-type]
        scorer = DeviceScorer(*networks, host.bundle.preprocess, kernels=kernels, memory=memory)
        photo = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
        found = scorer.score(DeviceImage(photo), stream=STREAM)
        np.testing.assert_allclose(found.tile_scores, host.score(photo).tile_scores, atol=BUDGET, rtol=0)
    assert set(waited) == {STREAM}


class Late:
    """Kernels or a network whose work is put on the fake driver's stream, to run as late as it may."""

    def __init__(self, driver: FakeDriver, target: Any) -> None:
        self.driver, self.target, self.backend = driver, target, "tensorrt (a stand-in)"

    def depth_input(self, *arguments: Any, stream: int) -> None:
        self.driver.put(stream, lambda: self.target.depth_input(*arguments))

    def reduce(self, *arguments: Any, stream: int, **outputs: Any) -> None:
        self.driver.put(stream, lambda: self.target.reduce(*arguments, **outputs))

    def depth_range(self, depth: Any, stream: int) -> None:
        self.driver.put(stream, lambda: self.target.depth_range(depth))

    def tiles(self, image: Any, depth: Any, short: Any, windows: Any, *, stream: int, **outputs: Any) -> None:
        windows = windows.copy()  # read before the call returns, says the header
        self.driver.put(stream, lambda: self.target.tiles(image, depth, short, windows, **outputs))

    def bind(self, feeds: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray]) -> Any:
        bound = self.target.bind(feeds, outputs)
        return LateBinding(self.driver, bound)


@dataclass
class LateBinding:
    driver: FakeDriver
    bound: Bound

    def enqueue(self, stream: int) -> None:
        self.driver.put(stream, lambda: self.bound.enqueue(stream))

    def close(self) -> None:
        self.bound.close()


def test_on_streams_that_run_as_late_as_they_may(
    host: Scorer, kernels: Kernels, photos: dict[str, NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The room for device memory itself, on a driver that notices a missing wait and memory that is gone."""
    driver = gpu_fakes.install(monkeypatch, FakeDriver())
    before, memory = driver.alive(), CudaMemory()
    networks = [Late(driver, HostNetwork(session)) for session in networks_of(host) if session]
    late: Any = Late(driver, kernels)
    scorer = DeviceScorer(*networks, host.bundle.preprocess, kernels=late, memory=memory, sizes=1)
    context = cuda.Context()
    producer = cuda.Stream(context)
    for photo in (photos["chelsea"], photos["coffee"], photos["chelsea"][::-1]):
        wanted = host.score(photo, tiling="official:7").tile_scores
        pixels = np.ascontiguousarray(photo)
        with context.current():
            pinned = cuda.PinnedBuffer(context, pixels.nbytes)
            pinned.array(pixels.shape, pixels.dtype)[...] = pixels
            image = cuda.empty(context, pixels.shape, np.uint8, int(producer))
            cuda.copy_in(image.pointer, pinned, pixels.nbytes, int(producer))  # not waited for here
        found = scorer.score(image, "official:7", batch=3)
        np.testing.assert_allclose(found.tile_scores, wanted, atol=BUDGET, rtol=0)
    scorer.close()
    del scorer, memory, networks, late, image, pinned, producer, context
    gc.collect()
    assert driver.alive() == before
