"""ONNX Runtime on a GPU: what is asked of it, and what is refused. On a machine without one, against a stand-in."""

from __future__ import annotations

import ctypes
import itertools
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dgiqa import machine, spec
from dgiqa.bundle import Bundle, load_bundle
from dgiqa.errors import BackendError
from dgiqa.runtime.cuda import DeviceArray, view_of
from dgiqa.runtime.ort import OrtSession

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class StandIn:
    """As much of onnxruntime-gpu as the session uses; y = 2 x. What was asked of it is in `asked`."""

    __version__ = "1.31.1"
    GraphOptimizationLevel = SimpleNamespace(ORT_ENABLE_ALL=99)

    def __init__(self, *, available: tuple[str, ...] = (CUDA, CPU), granted: tuple[str, ...] = (CUDA, CPU)) -> None:
        self.asked: dict[str, Any] = {"preloaded": 0, "graphs": [], "devices": set()}
        self.available, self.granted = available, granted

        class SessionOptions:
            def add_session_config_entry(self, name: str, value: str) -> None: ...

        class RunOptions:
            def __init__(self) -> None:
                self.entries: dict[str, str] = {}

            def add_run_config_entry(self, name: str, value: str) -> None:
                self.entries[name] = value

        self.SessionOptions, self.RunOptions = SessionOptions, RunOptions

    def get_available_providers(self) -> list[str]:
        return list(self.available)

    def preload_dlls(self) -> None:
        print("a search path")
        self.asked["preloaded"] += 1

    def InferenceSession(self, model: Any, options: Any, *, providers: list[Any], **more: Any) -> StandInSession:  # noqa: N802
        self.asked["providers"] = providers
        return StandInSession(self)


class StandInSession:
    def __init__(self, host: StandIn) -> None:
        self.host = host

    def get_providers(self) -> list[str]:
        return list(self.host.granted)

    def get_inputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="x", type="tensor(float)", shape=["batch", 2])]

    def get_outputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="y", type="tensor(float)", shape=["batch", 2])]

    def io_binding(self) -> StandInBinding:
        return StandInBinding(self.host)

    def run(self, names: None, feeds: dict[str, np.ndarray], run_options: Any = None) -> list[np.ndarray]:
        self.host.asked["graphs"].append(run_options and run_options.entries.get("gpu_graph_id"))
        return [2 * feeds["x"]]

    def run_with_iobinding(self, iobinding: StandInBinding, run_options: Any = None) -> None:
        self.host.asked["graphs"].append(run_options and run_options.entries.get("gpu_graph_id"))
        iobinding.execute()


class StandInBinding:
    """Arrays "on the GPU" are at the addresses they are said to be at."""

    def __init__(self, host: StandIn) -> None:
        self.host, self.write = host, lambda result: None
        self.read: Any = None

    def bind_input(  # noqa: PLR0917 - as onnxruntime's
        self, name: str, device_type: str, device_id: int, element_type: Any, shape: list[int], buffer_ptr: int
    ) -> None:
        assert (name, device_type, element_type) == ("x", "cuda", np.float32)
        self.host.asked["devices"].add(device_id)
        self.read = lambda: at(buffer_ptr, shape)

    def bind_output(  # noqa: PLR0917 - as onnxruntime's
        self,
        name: str,
        device_type: str = "cpu",
        device_id: int = 0,
        element_type: Any = None,
        shape: list[int] | None = None,
        buffer_ptr: int | None = None,
    ) -> None:
        assert (name, device_type) == ("y", "cuda")
        self.host.asked["devices"].add(device_id)
        if buffer_ptr is not None:
            assert shape is not None
            self.write = lambda result: at(buffer_ptr, shape).__setitem__(..., result)

    def execute(self) -> None:
        self.write(2 * self.read())


def at(address: int, shape: list[int]) -> np.ndarray:
    raw = (ctypes.c_float * int(np.prod(shape))).from_address(address)
    return np.frombuffer(raw, np.float32).reshape(shape)


class OnGpu:
    """An array in GPU memory, as other libraries show theirs."""

    def __init__(self, shape: tuple[int, ...], typestr: str = "<f4", strides: tuple[int, ...] | None = None) -> None:
        self.shape, self.memory = shape, np.ones(shape, typestr)
        data = (self.memory.ctypes.data, False)
        face = {"shape": shape, "typestr": typestr, "data": data, "strides": strides, "version": 3}
        self.__cuda_array_interface__ = face


def opened(monkeypatch: pytest.MonkeyPatch, host: StandIn, **options: Any) -> OrtSession:
    monkeypatch.setitem(sys.modules, "onnxruntime", host)
    return OrtSession(b"model", device="cuda", **options)


def test_the_provider_is_asked_for_exactly(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    host = StandIn()
    session = opened(monkeypatch, host)
    assert session.backend == "onnxruntime-cuda 1.31.1"
    (name, settings), fallback = host.asked["providers"]
    assert (name, fallback) == (CUDA, CPU)
    assert (settings["use_tf32"], settings["enable_cuda_graph"]) == ("0", "0")
    assert settings["cudnn_conv_algo_search"] == "HEURISTIC"
    assert host.asked["preloaded"] == 1
    assert capsys.readouterr().out == ""


def test_arrays_of_the_host_are_run_and_those_of_the_gpu_are_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    session, lane = opened(monkeypatch, StandIn()), HostLane()
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    np.testing.assert_array_equal(session.run({"x": x})["y"], 2 * x)
    with pytest.raises(ValueError, match=r"input 'x' is OnGpu, wanted an array of float32"):
        session.run({"x": OnGpu((3, 2))})  # type: ignore[dict-item]
    for wrong, message in (
        (OnGpu((3, 2), "<f8"), "'x' is float64"),
        (OnGpu((3, 5)), r"shape \[3, 5\], wanted \['batch', 2\]"),
    ):
        with pytest.raises(ValueError, match=message):
            session.bind({"x": wrong}, None, lane)  # type: ignore[arg-type]


class HostLane:
    """A lane of a "GPU" that is host memory. waits: how often it was waited for."""

    def __init__(self, primary: bool = True) -> None:
        self.handle, self.waits, self.context = 7, 0, SimpleNamespace(primary=primary)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        memory = np.full(shape, np.nan, dtype)
        return DeviceArray(memory.ctypes.data, shape, memory.dtype, None, memory)

    def take(self, source: Any) -> DeviceArray:
        return view_of(source)

    def sync(self) -> None:
        self.waits += 1


def test_runs_on_host_arrays_record_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has other addresses, and a replayed graph would read those of the first."""
    host = StandIn()
    session = opened(monkeypatch, host, cuda_graph=True)
    for _ in range(3):
        session.run({"x": np.zeros((3, 2), np.float32)})
    assert host.asked["graphs"] == ["-1"] * 3


@pytest.mark.parametrize("graph", [False, True])
def test_bound_arrays_stay_on_the_gpu(monkeypatch: pytest.MonkeyPatch, graph: bool) -> None:
    host, lane = StandIn(), HostLane()
    session = opened(monkeypatch, host, cuda_graph=graph, gpu=1)
    assert host.asked["providers"][0][1]["device_id"] == "1"
    assert host.asked["providers"][0][1]["enable_cuda_graph"] == str(int(graph))
    x, own = OnGpu((3, 2)), lane.empty((3, 2), np.float32)
    bound, other = session.bind({"x": x}, {"y": own}, lane), session.bind({"x": x}, None, lane)  # type: ignore[arg-type]
    for value in (1, 5):
        x.memory[...] = value
        bound.put()
        other.put()
        np.testing.assert_array_equal(own.owner, np.full((3, 2), 2 * value))
        np.testing.assert_array_equal(other.arrays["y"].owner, own.owner)  # sized by the name of its dimension
    assert (host.asked["devices"], lane.waits) == ({1}, 4)
    assert host.asked["graphs"] == (["1", "2"] * 2 if graph else [None] * 4)  # one graph for each set of addresses


def test_arrays_are_bound_only_where_onnxruntime_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    session = opened(monkeypatch, StandIn())
    with pytest.raises(BackendError, match="computes in the GPU's primary context"):
        session.bind({"x": OnGpu((3, 2))}, None, HostLane(primary=False))  # type: ignore[arg-type]


def test_the_real_onnxruntime_takes_what_is_bound(tiny_bundle: Bundle) -> None:
    """Its CPU stands in for its GPU: the same calls, with pointers, shapes and run options."""
    session, lane = OrtSession(tiny_bundle.file(spec.QUALITY_FILE)), HostLane()
    with pytest.raises(BackendError, match="has no arrays on a GPU; choose --backend onnxruntime-cuda"):
        session.bind({}, None, lane)  # type: ignore[arg-type]
    tile = tiny_bundle.preprocess.tile
    rng = np.random.default_rng(0)
    feeds = {name: lane.empty((4, 3, tile, tile), np.float32) for name in session.inputs}
    session.__dict__.update(_kind="cpu ", graphs=itertools.count(1))
    session.place = lambda bind, name, array: bind(  # type: ignore[method-assign]
        name, "cpu", 0, array.dtype.type, list(array.shape), array.pointer
    )
    bound = session.bind(feeds, None, lane)  # type: ignore[arg-type]
    session.__dict__.update(_kind="cpu")
    for _ in range(2):
        for array in feeds.values():
            array.owner[...] = rng.standard_normal(array.shape)
        bound.put()
        wanted = session.run({name: array.owner for name, array in feeds.items()})
        for name in session.outputs:
            np.testing.assert_array_equal(bound.arrays[name].owner, wanted[name])


def test_a_silent_fall_back_to_the_cpu_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match=r"asked onnxruntime for CUDAExecutionProvider, got \['CPU.*doctor"):
        opened(monkeypatch, StandIn(granted=(CPU,)))


def test_two_wheels_in_one_folder_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    both = {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.30.0", "numpy": "2"}
    monkeypatch.setattr(machine, "installed_wheels", lambda: both)
    clash = r"onnxruntime 1\.31\.1 and onnxruntime-gpu 1\.30\.0 install the same folder"
    with pytest.raises(BackendError, match=rf"has no CUDA provider \({clash}.*pip uninstall"):
        opened(monkeypatch, StandIn(available=(CPU,)))
    with pytest.raises(BackendError, match=clash):
        opened(monkeypatch, StandIn(granted=(CPU,)))


def test_the_cpu_takes_no_gpu_arguments() -> None:
    with pytest.raises(ValueError, match="cuda_graph needs device=\"cuda\", got 'cpu'"):
        OrtSession(b"model", cuda_graph=True)


def test_a_real_gpu_scores_like_the_cpu(need_gpu: Any) -> None:
    need_gpu("onnxruntime-cuda")
    bundle: Bundle = load_bundle("small")
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal((8, 3, 224, 224)).astype(np.float32) for name in ("rgb", "depth")}
    path = bundle.file(spec.QUALITY_FILE)
    wanted = OrtSession(path).run(feeds)["score"]
    got = OrtSession(path, device="cuda").run(feeds)["score"]
    np.testing.assert_allclose(got, wanted, atol=1e-4)
