"""ONNX Runtime on a GPU: what is asked of it, and what is refused. On a machine without one, against a stand-in."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dgiqa import machine, spec
from dgiqa.bundle import Bundle, load_bundle
from dgiqa.errors import BackendError
from dgiqa.runtime.ort import OrtSession

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class StandIn:
    """As much of onnxruntime-gpu as the session uses; y = 2 x. What was asked of it is in `asked`."""

    __version__ = "1.31.1"
    GraphOptimizationLevel = SimpleNamespace(ORT_ENABLE_ALL=99)

    def __init__(self, *, available: tuple[str, ...] = (CUDA, CPU), granted: tuple[str, ...] = (CUDA, CPU)) -> None:
        self.asked: dict[str, Any] = {"overrides": {}, "preloaded": 0, "captured": 0, "copies": 0, "in_place": []}
        self.available, self.granted = available, granted
        stand_in = self

        class SessionOptions:
            def add_session_config_entry(self, name: str, value: str) -> None: ...

            def add_free_dimension_override_by_name(self, name: str, size: int) -> None:
                stand_in.asked["overrides"][name] = size

        class OrtValue:
            def __init__(self, array: np.ndarray) -> None:
                self.array = array

            @classmethod
            def ortvalue_from_numpy(cls, array: np.ndarray, device: str, index: int) -> OrtValue:
                assert (device, index) == ("cuda", 0)
                return cls(array.copy())

            @classmethod
            def ortvalue_from_shape_and_type(cls, shape: list[int], kind: Any, device: str, index: int) -> OrtValue:
                assert all(isinstance(size, int) for size in shape)
                return cls(np.full(shape, np.nan, kind))

            def update_inplace(self, array: np.ndarray) -> None:
                self.array[...] = array

        self.SessionOptions, self.OrtValue = SessionOptions, OrtValue

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
        self.graph: StandInBinding | None = None

    def get_providers(self) -> list[str]:
        return list(self.host.granted)

    def _node(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(name=name, type="tensor(float)", shape=[self.host.asked["overrides"].get("n", "n"), 2])

    def get_inputs(self) -> list[SimpleNamespace]:
        return [self._node("x")]

    def get_outputs(self) -> list[SimpleNamespace]:
        return [self._node("y")]

    def io_binding(self) -> StandInBinding:
        return StandInBinding(self.host)

    def run_with_iobinding(self, binding: StandInBinding) -> None:
        if self.host.asked["providers"][0][1]["enable_cuda_graph"] == "1":
            if self.graph is None:
                self.graph = binding
                self.host.asked["captured"] += 1
            assert self.graph is binding, "a captured graph reads the arrays it was captured with"
        binding.execute()


class StandInBinding:
    def __init__(self, host: StandIn) -> None:
        self.host, self.output = host, None
        self.read: Any = None

    def bind_cpu_input(self, name: str, array: np.ndarray) -> None:
        assert array.flags.c_contiguous
        self.host.asked["copies"] += 1
        self.read = lambda: array

    def bind_input(self, name: str, device: str, index: int, kind: Any, shape: list[int], pointer: int) -> None:  # noqa: PLR0917
        assert (name, device, index, kind) == ("x", "cuda", 0, np.float32)
        self.host.asked["in_place"].append((pointer, shape))
        self.read = lambda: np.ones(shape, np.float32)

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        self.read = lambda: value.array

    def bind_ortvalue_output(self, name: str, value: Any) -> None:
        self.output = value

    def bind_output(self, name: str, device: str) -> None:
        assert (name, device) == ("y", "cuda")

    def execute(self) -> None:
        self.result = 2 * self.read()
        if self.output is not None:
            self.output.array[...] = self.result

    def copy_outputs_to_cpu(self) -> list[np.ndarray]:
        return [self.result.copy()]


class OnGpu:
    """An array in GPU memory, as other libraries show theirs."""

    def __init__(self, shape: tuple[int, ...], typestr: str = "<f4", strides: tuple[int, ...] | None = None) -> None:
        self.shape = shape
        face = {"shape": shape, "typestr": typestr, "data": (0x7F00, False), "strides": strides, "version": 3}
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
    opened(monkeypatch, host, tf32=True)
    assert host.asked["providers"][0][1]["use_tf32"] == "1"


def test_arrays_go_through_an_io_binding(monkeypatch: pytest.MonkeyPatch) -> None:
    host = StandIn()
    session = opened(monkeypatch, host)
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    np.testing.assert_array_equal(session.run({"x": x[::-1]})["y"], 2 * x[::-1])
    assert host.asked["copies"] == 1


def test_an_array_on_the_gpu_is_read_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    host = StandIn()
    session = opened(monkeypatch, host)
    np.testing.assert_array_equal(session.run({"x": OnGpu((3, 2))})["y"], np.full((3, 2), 2))
    assert host.asked["in_place"] == [(0x7F00, [3, 2])]
    assert host.asked["copies"] == 0
    for wrong, message in (
        (OnGpu((3, 2), "<f8"), "'x' is float64"),
        (OnGpu((3, 5)), r"shape \[3, 5\], wanted \['n', 2\]"),
        (OnGpu((3, 2), strides=(4, 12)), "not C-contiguous"),
    ):
        with pytest.raises(ValueError, match=message):
            session.run({"x": wrong})


def test_a_graph_is_captured_once_and_replayed_on_new_data(monkeypatch: pytest.MonkeyPatch) -> None:
    host = StandIn()
    session = opened(monkeypatch, host, cuda_graph={"n": 3})
    assert host.asked["overrides"] == {"n": 3}
    for value in (1, 5, -2):
        x = np.full((3, 2), value, np.float32)
        np.testing.assert_array_equal(session.run({"x": x})["y"], 2 * x)
    assert host.asked["captured"] == 1
    with pytest.raises(ValueError, match=r"shape \[4, 2\], wanted \[3, 2\]"):
        session.run({"x": np.zeros((4, 2), np.float32)})
    with pytest.raises(BackendError, match="a captured graph reads its own arrays"):
        session.run({"x": OnGpu((3, 2))})


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
        OrtSession(b"model", cuda_graph={"n": 1})


def test_a_real_gpu_scores_like_the_cpu(need_gpu: Any) -> None:
    need_gpu("onnxruntime-cuda")
    bundle: Bundle = load_bundle("small")
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal((8, 3, 224, 224)).astype(np.float32) for name in ("rgb", "depth")}
    path = bundle.file(spec.QUALITY_FILE)
    wanted = OrtSession(path).run(feeds)["score"]
    for graph in (None, {"n": 8}):
        got = OrtSession(path, device="cuda", cuda_graph=graph).run(feeds)["score"]
        np.testing.assert_allclose(got, wanted, atol=1e-4)
