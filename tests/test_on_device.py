"""An image on a device is scored there as on the host. Here the device is host memory and the kernels are emulated."""

from __future__ import annotations

import ctypes
import gc
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any
from unittest import mock
from weakref import WeakKeyDictionary

import gpu_fakes
import numpy as np
import pytest
from gpu_fakes import FakeDriver
from numpy.typing import NDArray

from dgiqa import Scorer, pipeline, spec
from dgiqa import on_device as on_device_room
from dgiqa.bundle import Bundle
from dgiqa.errors import BackendError, DgiqaError, ImageError
from dgiqa.on_device import DeviceScorer, device_image
from dgiqa.runtime import cuda
from dgiqa.runtime.cuda import DeviceArray
from dgiqa.runtime.kernels import Kernels, Nv12
from dgiqa.runtime.session import Session
from dgiqa.score import Failure, Score
from dgiqa.video.reuse import Reuse

STREAM = 77  # stands for a caller's
# Depth levels may move by one where floats round differently, in 0.1 % of pixels; the emulated kernels share the rest.
BUDGET = 1e-4


def view(array: DeviceArray) -> NDArray[Any]:
    """What lies at a pointer of this "device"."""
    raw = (ctypes.c_byte * array.nbytes).from_address(array.pointer)
    return np.frombuffer(raw, array.dtype).reshape(array.shape)


class HostLane(cuda.Lane):
    """A stream and memory of a device that is host memory; it counts what crosses over, and whom it followed."""

    def __init__(self, handle: int = 5, keep: int = 4) -> None:
        self.handle, self.at = handle, 0
        self._keep, self._record, self._kept, self.graphs = keep, False, OrderedDict(), WeakKeyDictionary()
        self.current = nullcontext  # type: ignore[assignment]
        self.allocations, self.uploads, self.downloads = 0, [], []  # type: ignore[var-annotated]
        self.followed: list[Any] = []
        self.waits, self.closed = 0, False

    def take(self, source: Any) -> DeviceArray:
        return cuda.view_of(source)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        self.allocations += 1
        array = np.full(shape, 0xA5, np.uint8) if dtype == np.uint8 else np.full(shape, np.nan, dtype)
        return DeviceArray(array.ctypes.data, shape, array.dtype, None, array)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        ctypes.memmove(target, source, nbytes)

    def put(self, target: DeviceArray, source: NDArray[Any]) -> None:
        self.uploads.append(source.nbytes)
        ctypes.memmove(target.pointer, source.ctypes.data, source.nbytes)

    def numpy(self, array: DeviceArray) -> NDArray[Any]:
        self.downloads.append(array.nbytes)
        return view(array).copy()

    def follow(self, stream: Any) -> None:
        self.followed.append(stream)

    def sync(self) -> None:
        self.waits += 1

    def close(self) -> None:
        self._kept.clear()
        self.closed = True


class Bound:
    """A host session between arrays of the "device"."""

    def __init__(self, network: HostNetwork, feeds: Any, outputs: Any, lane: Any) -> None:
        self.network, self.feeds, self.lane = network, dict(feeds), lane
        found = network.run({name: np.zeros(feed.shape, feed.dtype) for name, feed in feeds.items()})
        fresh = {name: lane.empty(a.shape, np.float32) for name, a in found.items() if name not in (outputs or {})}
        self.arrays = {**feeds, **fresh, **(outputs or {})}

    def put(self) -> None:
        self.network.runs.append(next(iter(self.feeds.values())).shape[0])
        for name, array in self.network.run({name: view(feed) for name, feed in self.feeds.items()}).items():
            view(self.arrays[name])[...] = array

    def __del__(self) -> None:
        self.network.open.remove(id(self))


class HostNetwork:
    """A host session that binds as TrtSession does. runs: how many items each run took."""

    def __init__(self, session: Session) -> None:
        self.session, self.backend, self.device = session, "tensorrt (a stand-in)", 0
        self.open: set[int] = set()
        self.runs: list[int] = []

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """One item at a time: the depth network of the tests takes no more."""
        count = len(next(iter(feeds.values())))
        each = [self.session.run({name: feed[i : i + 1] for name, feed in feeds.items()}) for i in range(count)]
        return {name: np.concatenate([found[name] for found in each]) for name in each[0]}

    def bind(self, feeds: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray] | None, lane: Any) -> Bound:
        bound = Bound(self, feeds, outputs, lane)
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
    lane: HostLane
    depth: HostNetwork
    quality: HostNetwork


def networks_of(host: Scorer) -> tuple[Any, Any]:
    networks = host.stages.networks
    return networks.depth, networks.quality


def on_device(host: Scorer, kernels: Kernels, *, sizes: int = 4, **options: Any) -> Device:
    assert host._alone is not None
    networks = host._alone.networks
    lane, depth, quality = HostLane(keep=sizes), HostNetwork(networks.depth), HostNetwork(networks.quality)
    options = {"lanes": [lane], **options}
    scorer = DeviceScorer(depth, quality, host.bundle.preprocess, kernels=kernels, **options)
    return Device(scorer, lane, depth, quality)


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
        assert (found.height, found.width) == (wanted.height, wanted.width)
        assert found.rgb.shape == (wanted.working_height, wanted.working_width)


def test_the_shipped_model_scores_the_same(kernels: Kernels, photos: dict[str, NDArray[np.uint8]]) -> None:
    with Scorer("small", backend="onnxruntime") as host:
        wanted = host.score(photos["coffee"])
        found = on_device(host, kernels).scorer.score(DeviceImage(photos["coffee"]))
    share = np.abs(found.tile_scores - wanted.tile_scores).max() / BUDGET
    print(f"{100 * share:.1f} % of the budget")
    assert share <= 1


def test_only_the_scores_come_to_the_host(device: Device, photos: dict[str, NDArray[np.uint8]]) -> None:
    before = len(device.lane.uploads)  # the table of levels, once
    found = device.scorer.score(DeviceImage(photos["rocket"]), "official:10", batch=4)
    columns = 1 + sum(rows.shape[1] for rows in found.extra.values())
    assert device.lane.downloads == [16 + 4 * columns * len(found.windows)]
    assert len(device.lane.uploads) == before == 1


def test_the_second_image_of_a_size_allocates_nothing(device: Device, photos: dict[str, NDArray[np.uint8]]) -> None:
    image = photos["chelsea"]
    first = device.scorer.score(DeviceImage(image)).tile_scores
    allocations = device.lane.allocations
    other = device.scorer.score(DeviceImage(np.ascontiguousarray(image[::-1]))).tile_scores
    again = device.scorer.score(DeviceImage(image)).tile_scores
    assert device.lane.allocations == allocations
    np.testing.assert_array_equal(again, first)
    assert not np.array_equal(other, first)


def test_memory_of_sizes_long_unused_is_let_go(host: Scorer, kernels: Kernels) -> None:
    device = on_device(host, kernels, sizes=2)
    for width in (100, 110, 120, 130):
        device.scorer.score(DeviceImage(np.zeros((90, width, 3), np.uint8)))
        assert len(device.depth.open) <= 2
    device.scorer.close()
    assert not device.depth.open | device.quality.open
    assert device.lane.closed


def test_the_callers_stream_and_the_producers_are_waited_for(
    device: Device, photos: dict[str, NDArray[np.uint8]]
) -> None:
    device.scorer.score(DeviceImage(photos["astronaut"]), stream=STREAM)
    device.scorer.score(DeviceImage(photos["astronaut"], stream=9))
    device.scorer.score(DeviceImage(photos["astronaut"], stream=9), stream=STREAM)
    assert device.lane.followed == [STREAM, 9, STREAM, 9]


def test_pictures_of_one_size_share_runs_of_the_networks(
    host: Scorer, kernels: Kernels, photos: dict[str, NDArray[np.uint8]]
) -> None:
    """Six wait while the first is scored; then four go together, and two."""
    pictures = [np.ascontiguousarray(np.roll(photos["chelsea"], 31 * i, axis=1)) for i in range(7)]
    wanted = [host.score(picture) for picture in pictures]
    device = on_device(host, kernels, together=4)
    lane = device.scorer._free.get()  # busy
    with ThreadPoolExecutor(7) as pool:
        found = [pool.submit(device.scorer.score, DeviceImage(picture), batch=5) for picture in pictures]
        while len(device.scorer._waiting) < 7:
            time.sleep(0.01)
        device.scorer._free.put(lane)
        scores = [future.result() for future in found]
    assert device.depth.runs == [4, 2, 1]
    tiles = [4 * len(wanted[0].windows), 2 * len(wanted[0].windows), len(wanted[0].windows)]
    assert len(device.quality.runs) == sum(-(-n // 5) for n in tiles)
    for score, expected in zip(scores, wanted, strict=True):
        np.testing.assert_allclose(score.tile_scores, expected.tile_scores, atol=BUDGET, rtol=0)


def test_one_bad_picture_does_not_spoil_its_neighbours(host: Scorer, kernels: Kernels) -> None:
    class Broken(Session):
        """A depth network that fails on a picture that is white."""

        def run(self, feeds: Any) -> Any:
            (image,), depth = feeds.values(), host.stages.networks.depth.run(feeds)
            return {name: np.where((image.mean((1, 2, 3)) > 2)[:, None, None], np.nan, d) for name, d in depth.items()}

    device = on_device(host, kernels, together=2)
    device.depth.session = Broken()
    pictures = [np.full((90, 120, 3), level, np.uint8) for level in (255, 90)]
    lane = device.scorer._free.get()
    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(device.scorer.score, DeviceImage(picture)) for picture in pictures]
        while len(device.scorer._waiting) < 2:
            time.sleep(0.01)
        device.scorer._free.put(lane)
    with pytest.raises(DgiqaError, match="returned NaN or infinity"):
        found[0].result()
    assert np.isfinite(found[1].result().tile_scores).all()


def test_a_decoders_picture_is_scored_where_it_lies(host: Scorer, device: Device) -> None:
    height, width = 96, 128
    rows = np.random.default_rng(0).integers(60, 180, (height * 3 // 2, width), dtype=np.uint8)
    at, rgb = rows.ctypes.data, np.empty((height, width, 3), np.uint8)
    picture = Nv12(at, at + height * width, height, width, (width, width), matrix=5, owner=rows)
    device.scorer._kernels.nv12(picture, rgb.ctypes.data)
    found = device.scorer.score(picture)
    np.testing.assert_allclose(found.tile_scores, host.score(rgb).tile_scores, atol=BUDGET, rtol=0)


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


@pytest.mark.parametrize("stream", [None, STREAM])
def test_a_strided_tensor_without_a_stream_makes_one_wait(
    device: Device, monkeypatch: pytest.MonkeyPatch, stream: int | None
) -> None:
    """PyTorch's interface names no stream: the tensor is asked to make one wait, which is waited for in turn."""
    gpu_fakes.install(monkeypatch, FakeDriver())
    asked: list[int] = []
    rgba = np.random.default_rng(0).integers(0, 256, (90, 120, 4), dtype=np.uint8)

    class Tensor(DeviceImage):
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

        def __dlpack__(self, *, stream: int) -> Any:
            asked.append(stream)
            return self.array.__dlpack__()

    tensor = Tensor(rgba[..., :3])
    del tensor.__cuda_array_interface__["stream"]
    tensor.__cuda_array_interface__["version"] = 2
    found = device.scorer.score(tensor, stream=stream)
    assert asked == [stream or 1]
    assert device.lane.followed[-1] == asked[0]
    wanted = device.scorer.score(DeviceImage(np.ascontiguousarray(rgba[..., :3])))
    np.testing.assert_array_equal(found.tile_scores, wanted.tile_scores)


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


def test_an_image_on_another_gpu_is_refused_before_it_ends_the_context(
    host: Scorer, kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = gpu_fakes.install(monkeypatch, FakeDriver())
    context = cuda.Context()
    device = on_device(host, kernels, home=context)
    with context.current():
        image = cuda.Lane(context).empty((90, 120, 3), np.uint8)
        driver.ordinal = 1
        with pytest.raises(ImageError, match="the array is on GPU 1, the networks on GPU 0; copy it there first"):
            device.scorer.score(image)
        with pytest.raises(ImageError, match="is not CUDA memory"):
            device.scorer.score(DeviceImage(np.zeros((90, 120, 3), np.uint8)))


def test_host_memory_is_no_device_image() -> None:
    with pytest.raises(ImageError, match="wanted an array on a CUDA device"):
        device_image(np.zeros((9, 9, 3), np.uint8))


@pytest.fixture
def scoring(host: Scorer, kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> Device:
    """A Scorer whose pictures on a GPU go to the stand-in."""
    device = on_device(host, kernels)
    monkeypatch.setattr(on_device_room, "open_device_scorer", lambda depth, quality, p: device.scorer)
    return device


def test_scorer_takes_the_device_path_by_itself(
    host: Scorer, scoring: Device, photos: dict[str, NDArray[np.uint8]]
) -> None:
    wanted, found = host.score(photos["coffee"]), host.score(DeviceImage(photos["coffee"]), stream=STREAM)
    assert found.value == pytest.approx(wanted.value, abs=BUDGET)
    assert (found.source, list(found.timings_ms)) == ("<device>", ["device"])
    assert (found.working_width, found.working_height) == (wanted.working_width, wanted.working_height)
    np.testing.assert_array_equal(found.windows_original, wanted.windows_original)
    assert scoring.lane.followed == [STREAM]
    host.close()
    assert scoring.lane.closed
    with pytest.raises(ValueError, match="was closed"):
        host.score(DeviceImage(photos["coffee"]))


def test_pictures_on_a_gpu_go_in_bulk_beside_others(
    host: Scorer, scoring: Device, photos: dict[str, NDArray[np.uint8]]
) -> None:
    photo, wrong = photos["chelsea"], DeviceImage(np.zeros((9, 9, 4), np.uint8))
    wanted = host.score(photo).value
    found = list(host.score_many([DeviceImage(photo), photo, ("named", DeviceImage(photo)), wrong, photo]))
    assert [f.source for f in found] == ["<device>", "<array>", "named", "<device>", "<array>"]
    assert isinstance(found[3], Failure)
    assert "take image[..., :3]" in found[3].message
    scores = [float(f.value) for f in found if isinstance(f, Score)]
    np.testing.assert_allclose(scores, wanted, atol=BUDGET, rtol=0)
    assert scoring.lane.downloads, "nothing was scored on the device"


def test_pictures_on_a_gpu_are_pushed_into_a_stream(
    host: Scorer, scoring: Device, photos: dict[str, NDArray[np.uint8]]
) -> None:
    photo, wanted = photos["chelsea"], host.score(photos["chelsea"]).value
    with host.stream() as stream:
        for i in range(3):
            stream.push(DeviceImage(photo), i / 25)
        stream.push(photo, 1.0)
        stream.finish()
        rows = list(stream)
    assert [row["status"] for row in rows] == ["ok"] * 4
    np.testing.assert_allclose([row["score"] for row in rows], wanted, atol=2 * BUDGET, rtol=0)
    assert [row["reused"] for row in rows] == [""] * 4
    assert len(scoring.lane.downloads) == 3


def test_what_is_taken_over_between_frames_is_compared_on_the_host(
    host: Scorer, scoring: Device, photos: dict[str, NDArray[np.uint8]]
) -> None:
    found = []
    for picture in (DeviceImage(photos["chelsea"]), photos["chelsea"]):
        with host.stream(reuse=Reuse(tiles=True)) as stream:
            for i in range(3):
                stream.push(picture, i / 25)
            stream.finish()
            found.append([{**row, "ms": 0} for row in stream])
    assert found[0] == found[1]
    assert [row["reused"] for row in found[0]] == ["", "depth+tiles", "depth+tiles"]


def test_attributes_and_bars_are_measured_where_the_picture_may_be_copied_back(
    host: Scorer, scoring: Device, photos: dict[str, NDArray[np.uint8]]
) -> None:
    framed = np.pad(photos["coffee"][::-1], ((60, 60), (0, 0), (0, 0)))
    wanted = host.score(framed)
    assert "has black bars" in wanted.note
    found = host.score(DeviceImage(framed))
    assert (found.attributes, found.note) == (None, "bars and attributes are not measured on a GPU")
    stages = replace(host.stages, copy_back=True)
    for found in pipeline.score_many(stages, [DeviceImage(framed), DeviceImage(framed[..., ::-1].copy()[..., ::-1])]):
        assert isinstance(found, Score)
        assert (found.attributes, found.note) == (wanted.attributes, wanted.note)


def test_networks_on_the_cpu_refuse_an_image_on_a_gpu(host: Scorer) -> None:
    with pytest.raises(
        BackendError, match=r"networks in onnxruntime-cpu .* choose the backend tensorrt, tensorrt-rtx or"
    ):
        host.score(DeviceImage(np.zeros((90, 90, 3), np.uint8)))


def test_emulated_kernels_are_never_given_device_memory(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGIQA_KERNELS", str(kernels.path))
    network: Any = HostNetwork(None)  # type: ignore[arg-type]
    with pytest.raises(BackendError, match="emulates the kernels on a CPU"):
        on_device_room.open_device_scorer(network, network, spec.Preprocess())


def test_a_stream_without_a_device_image_is_a_mistake(host: Scorer) -> None:
    with pytest.raises(ValueError, match="not on a GPU"):
        host.score(np.zeros((90, 90, 3), np.uint8), stream=STREAM)


def test_reasons_of_pictures_on_a_gpu_are_those_of_the_host(telling_bundle: Bundle, kernels: Kernels) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    with Scorer(telling_bundle, backend="onnxruntime") as host:
        wanted = host.score(photo)
        found = on_device(host, kernels).scorer.score(DeviceImage(photo), batch=3)
        reasons = host.stages.reasons(found.extra)
    assert reasons == pytest.approx(wanted.reasons, abs=10 * BUDGET)
    assert reasons


class Late:
    """Kernels or a network whose work is put on the fake driver's stream, to run as late as it may."""

    def __init__(self, driver: FakeDriver, target: Any) -> None:
        self.driver, self.target, self.backend = driver, target, "tensorrt (a stand-in)"

    def nv12(self, *arguments: Any, stream: int) -> None:
        self.driver.put(stream, lambda: self.target.nv12(*arguments))

    def depth_input(self, *arguments: Any, stream: int) -> None:
        self.driver.put(stream, lambda: self.target.depth_input(*arguments))

    def reduce(self, *arguments: Any, stream: int, **outputs: Any) -> None:
        self.driver.put(stream, lambda: self.target.reduce(*arguments, **outputs))

    def depth_range(self, depth: Any, stream: int) -> None:
        self.driver.put(stream, lambda: self.target.depth_range(depth))

    def tiles(self, image: Any, depth: Any, short: Any, windows: Any, *, stream: int, **outputs: Any) -> None:
        windows = windows.copy()  # read before the call returns, says the header
        self.driver.put(stream, lambda: self.target.tiles(image, depth, short, windows, **outputs))

    def bind(self, feeds: Mapping[str, DeviceArray], outputs: Any, lane: Any) -> Any:
        lane.scratch(1 << (12 + len(feeds)))  # the larger network moves the memory they share
        return LateBinding(self.driver, self.target.bind(feeds, outputs, lane))


@dataclass
class LateBinding:
    driver: FakeDriver
    bound: Bound

    @property
    def arrays(self) -> dict[str, DeviceArray]:
        return self.bound.arrays

    def put(self) -> None:
        self.driver.put(self.bound.lane.handle, self.bound.put)


@pytest.mark.parametrize(
    ("depth", "quality", "recorded"),
    [
        ({}, {}, True),
        ({"graphs": True}, {"graphs": True}, True),
        ({"graphs": False}, {"graphs": True}, False),
        ({}, {"recordable": False}, False),
    ],
)
def test_a_graph_is_recorded_where_both_networks_may_be_in_it(
    monkeypatch: pytest.MonkeyPatch, depth: dict[str, bool], quality: dict[str, bool], recorded: bool
) -> None:
    gpu_fakes.install(monkeypatch, FakeDriver())
    kernels, context = SimpleNamespace(emulated=False), cuda.Context()
    monkeypatch.setattr(on_device_room, "Kernels", lambda: kernels)
    sessions = [SimpleNamespace(backend="tensorrt", bind=None, context=context, **way) for way in (depth, quality)]
    scorer = on_device_room.open_device_scorer(*sessions, spec.Preprocess())
    assert {lane._record for lane in scorer._lanes} == {recorded}
    scorer.close()


def test_a_picture_whose_scoring_fails_is_read_no_more(
    host: Scorer, kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = gpu_fakes.install(monkeypatch, FakeDriver(total=1 << 28))
    context, late = cuda.Context(), Late(driver, kernels)
    networks = [Late(driver, HostNetwork(session)) for session in networks_of(host) if session]
    lane, producer = cuda.Lane(context, keep=1), cuda.Lane(context)
    scorer = DeviceScorer(*networks, host.bundle.preprocess, kernels=late, lanes=[lane])  # type: ignore[arg-type]
    monkeypatch.setattr(late, "depth_range", mock.Mock(side_effect=BackendError("the launch was refused")))
    with pytest.raises(BackendError, match="the launch was refused"):
        scorer.score(producer.empty((90, 120, 3), np.uint8))
    assert not driver.queues[lane.handle].pending()
    scorer.close()


def test_on_streams_that_run_as_late_as_they_may(
    host: Scorer, kernels: Kernels, photos: dict[str, NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lanes themselves, on a driver that notices a missing wait and memory that is gone. One graph per size."""
    driver = gpu_fakes.install(monkeypatch, FakeDriver(total=1 << 28))
    before, context = driver.alive(), cuda.Context()
    lanes = [cuda.Lane(context, keep=2) for _ in range(2)]
    networks = [Late(driver, HostNetwork(session)) for session in networks_of(host) if session]
    late: Any = Late(driver, kernels)
    scorer = DeviceScorer(*networks, host.bundle.preprocess, kernels=late, lanes=lanes, together=2)
    producer = cuda.Lane(context)
    turned = [photos["chelsea"], photos["chelsea"][::-1], photos["chelsea"][:, ::-1]]

    def score(photo: NDArray[np.uint8]) -> Any:
        pixels = np.ascontiguousarray(photo)
        pinned = gpu_fakes.pinned(producer, pixels)
        with context.current():
            image = producer.empty(pixels.shape, np.uint8)
            producer.copy(image.pointer, pinned.ctypes.data, pixels.nbytes)  # not waited for here
        found = scorer.score(image, "official:7", batch=3)
        del pinned  # which the copy read until then
        return found

    wanted = {id(photo): host.score(photo, tiling="official:7").tile_scores for photo in (*turned, photos["coffee"])}
    for photo in (*turned, *turned, photos["coffee"], *turned):
        np.testing.assert_allclose(score(photo).tile_scores, wanted[id(photo)], atol=BUDGET, rtol=0)
    assert driver.calls["cuGraphLaunch"] >= 2
    with ThreadPoolExecutor(6) as pool:  # both lanes, and pictures that go together
        found = list(pool.map(score, turned * 6))
    for photo, each in zip(turned * 6, found, strict=True):
        np.testing.assert_allclose(each.tile_scores, wanted[id(photo)], atol=BUDGET, rtol=0)
    scorer.close()
    with context.current():
        producer.close()
    del lanes, networks, late
    scorer = producer = context = None  # type: ignore[assignment]
    gc.collect()
    assert driver.alive() == before
