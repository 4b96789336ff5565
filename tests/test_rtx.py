"""TensorRT for RTX: which GPUs it takes, what its sessions ask of ONNX Runtime, and how far NVIDIA's own library goes.

The stand-in is ONNX Runtime on the CPU under the plugin's name. What the plugin compiles is compiled in
test_trt_builder.py, whose builder is the same library. DGIQA_TRT_BUILDER: see there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_on_device import HostLane

from dgiqa import machine
from dgiqa.bundle import Bundle, load_bundle
from dgiqa.errors import BackendError
from dgiqa.runtime import backends, rtx
from dgiqa.runtime.session import identity, open_session

ort = pytest.importorskip("onnxruntime")
ROOT = Path(__file__).resolve().parent.parent
FOLDER = os.environ.get("DGIQA_TRT_BUILDER", "")


class Options(SimpleNamespace):
    """SessionOptions of the CPU, which note what they are asked for."""

    def __init__(self) -> None:
        super().__init__(real=ort.SessionOptions(), entries={}, devices=[], settings={})

    def add_session_config_entry(self, name: str, value: str) -> None:
        self.entries[name] = value

    def add_provider_for_devices(self, devices: list[Any], settings: dict[str, str]) -> None:
        self.devices, self.settings = devices, settings


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SimpleNamespace]:
    """A machine with an RTX 4090 and the plugin, which takes its GPU. devices: what ONNX Runtime lists."""
    asked = SimpleNamespace(registered=[], devices=[SimpleNamespace(ep_name="NvRtx")], gpu=("RTX 4090", "8.9"), made=[])
    module = ModuleType("onnxruntime_ep_nv_tensorrt_rtx")
    module.__dict__.update(__version__="0.5.0", get_ep_name=lambda: "NvRtx", get_library_path=lambda: "/x/librtx.so")
    module.__spec__ = SimpleNamespace()  # type: ignore[assignment] # find_spec looks for it
    monkeypatch.setitem(sys.modules, module.__name__, module)

    def opened(path: str, options: Options) -> Any:
        asked.made.append(options)
        return ort.InferenceSession(path, providers=["CPUExecutionProvider"])

    runtime = SimpleNamespace(
        __version__="1.32.0",
        SessionOptions=Options,
        GraphOptimizationLevel=ort.GraphOptimizationLevel,
        InferenceSession=opened,
        OrtValue=ort.OrtValue,
        RunOptions=ort.RunOptions,
        register_execution_provider_library=lambda *names: asked.registered.append(names),
        get_ep_devices=lambda: [SimpleNamespace(ep_name="CPUExecutionProvider"), *asked.devices],
    )
    monkeypatch.setattr(rtx, "_import_onnxruntime", lambda: runtime)
    monkeypatch.setattr(rtx, "GPU", "cpu")
    monkeypatch.setattr(rtx, "NVIDIA", -1)
    monkeypatch.setattr(machine, "gpu", lambda device=0: asked.gpu)
    monkeypatch.setattr(machine, "gpu_present", lambda: True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    forget()
    yield asked
    forget()


def forget() -> None:
    rtx.gpus.cache_clear()
    backends._not_rtx.cache_clear()


@pytest.mark.parametrize("capability", ["8.6", "8.9", "12.0", "12.1"])
def test_gpus_of_rtx_are_served(capability: str) -> None:
    assert backends.serves_rtx("a GPU", capability) == ""


@pytest.mark.parametrize("capability", ["7.5", "8.0", "8.7", "9.0", "10.0", "11.0"])
def test_other_gpus_are_refused_with_the_reason(plugin: SimpleNamespace, capability: str) -> None:
    plugin.gpu = ("NVIDIA H200", capability)
    with pytest.raises(BackendError) as refused:
        backends.choose("tensorrt-rtx")
    assert str(refused.value) == (
        "backend 'tensorrt-rtx' is not for this machine: tensorrt-rtx serves compute capability 8.6, 8.9, 12.0 and "
        f"later (RTX), and NVIDIA H200 has {capability}; choose --backend tensorrt or onnxruntime-cuda"
    )
    assert "tensorrt-rtx" not in backends.backends()


def test_without_a_gpu_or_the_plugin_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    if "onnxruntime_ep_nv_tensorrt_rtx" not in sys.modules:
        with pytest.raises(BackendError, match=r'which is not installed; pip install "dgiqa-rt\[rtx\]"'):
            backends.choose("tensorrt-rtx")
    monkeypatch.setitem(backends._MODULE, "tensorrt-rtx", "json")
    monkeypatch.setattr(machine, "gpu_present", lambda: False)
    with pytest.raises(BackendError, match=r"needs an NVIDIA GPU and its driver.*run it on a machine with one"):
        backends.choose("tensorrt-rtx")


def test_precisions_that_gain_nothing_are_refused(plugin: SimpleNamespace) -> None:
    with pytest.raises(BackendError, match=r"tensorrt-rtx keeps weights in int8.*choose fp16"):
        backends.choose("tensorrt-rtx", "int8")
    with pytest.raises(BackendError, match="tensorrt-rtx has no fp8"):
        backends.choose("tensorrt-rtx", "fp8")
    assert backends.choose("tensorrt-rtx", "fp16") == "tensorrt-rtx"


def feeds(bundle: Bundle, tiles: int) -> dict[str, Any]:
    rng = np.random.default_rng(tiles)
    shape = (tiles, 3, bundle.preprocess.tile, bundle.preprocess.tile)
    return {name: rng.standard_normal(shape, np.float32) for name in ("rgb", "depth")}


def test_a_session_asks_for_this_plugin_alone_and_keeps_what_it_compiles(
    tiny_bundle: Bundle, plugin: SimpleNamespace
) -> None:
    path = tiny_bundle.file("quality.onnx")
    session = open_session(path, "tensorrt-rtx", precision="fp16")
    assert session.backend == "tensorrt-rtx 0.5.0"
    assert plugin.registered == [("NvRtx", "/x/librtx.so")]
    (options,) = plugin.made
    assert options.devices == plugin.devices[:1]
    assert options.entries["session.disable_cpu_ep_fallback"] == "1"
    assert options.settings["enable_cuda_graph"] == "0"
    assert Path(options.settings["nv_runtime_cache_path"]).is_dir()
    here = feeds(tiny_bundle, 3)
    wanted = open_session(path, "onnxruntime").run(here)
    for name, array in session.run(here).items():
        np.testing.assert_array_equal(array, wanted[name])
    open_session(path, "tensorrt-rtx")
    assert len(plugin.registered) == 1  # once per process
    with pytest.raises(ValueError, match="got inputs"):
        session.run({})
    found = identity("tensorrt-rtx")
    assert found == {"engine": "tensorrt-rtx", "version": "0.5.0", "device": "RTX 4090", "compute_capability": "8.9"}


@pytest.mark.parametrize("graphs", [False, True])
def test_arrays_on_the_gpu_are_bound_and_stay_there(
    tiny_bundle: Bundle, plugin: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, graphs: bool
) -> None:
    """With graphs, each set of addresses has a graph of its own, and runs from the host, which have none, use none."""
    pytest.importorskip("onnxruntime", minversion="1.24", reason="its arrays lie on a GPU of a vendor from 1.24 on")
    path = tiny_bundle.file("quality.onnx")
    session, plain, lane = (
        rtx.RtxSession(path, graphs=graphs, cache=False),
        open_session(path, "onnxruntime"),
        HostLane(),
    )
    numbered: list[tuple[str, str]] = []

    class RunOptions(ort.RunOptions):  # type: ignore[misc, unused-ignore]
        def add_run_config_entry(self, name: str, value: str) -> None:
            numbered.append((name, value))

    monkeypatch.setattr(rtx._import_onnxruntime(), "RunOptions", RunOptions)
    here = feeds(tiny_bundle, 2)
    placed = {name: lane.empty(array.shape, array.dtype) for name, array in here.items()}
    own = {"score": lane.empty((2,), np.float32)}
    bound, other = session.bind(placed, own, lane), session.bind(placed, None, lane)  # type: ignore[arg-type]
    for turn in range(3):
        for name, array in here.items():
            lane.put(placed[name], array + turn)
        bound.put()
        other.put()
        wanted = plain.run({name: array + turn for name, array in here.items()})
        np.testing.assert_array_equal(lane.numpy(own["score"]), wanted["score"])
        for name, array in wanted.items():
            np.testing.assert_array_equal(lane.numpy(other.arrays[name]), array)
    assert lane.waits == 2 * 2 * 3  # before each run, and for its outputs
    session.run(here)
    assert plugin.made[0].settings == {"enable_cuda_graph": str(int(graphs))}
    assert numbered == ([("gpu_graph_id", number) for number in ("1", "2", "-1")] if graphs else [])
    with pytest.raises(ValueError, match=r"output 'score' is float32 \(3,\), wanted tensor\(float\) \(2,\)"):
        session.bind(placed, {"score": lane.empty((3,), np.float32)}, lane)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got inputs"):
        session.bind({}, None, lane)  # type: ignore[arg-type]


def test_a_plugin_that_does_not_load_or_takes_no_gpu_is_explained(
    tiny_bundle: Bundle, plugin: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin.devices = []
    with pytest.raises(BackendError, match=r"does not take RTX 4090; choose --backend onnxruntime-cuda"):
        rtx.RtxSession(tiny_bundle.file("quality.onnx"))
    plugin.gpu = ("NVIDIA H200", "9.0")
    with pytest.raises(BackendError, match=r"and NVIDIA H200 has 9\.0"):
        rtx.RtxSession(tiny_bundle.file("quality.onnx"))
    runtime = rtx._import_onnxruntime()
    monkeypatch.setattr(runtime, "__version__", "1.23.2")
    with pytest.raises(BackendError, match=r"got onnxruntime 1\.23\.2, and tensorrt-rtx needs 1\.24 or newer"):
        rtx.gpus()


def driver_without_devices(plugin: Path, folder: Path) -> None:
    """Stand-ins for the libraries of NVIDIA's driver: each function that the plugin needs says that there is no GPU."""
    command = ["nm", "-D", "--undefined-only", str(plugin)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = [line.split()[-1] for line in listed.splitlines()]
    for library, start in (("libcuda.so.1", "cu"), ("libnvidia-ml.so.1", "nvml")):
        needed = [name for name in names if name.startswith(start) and "@" not in name]
        source = "".join(f"int {name}(void) {{ return 100; }}\n" for name in needed)  # CUDA_ERROR_NO_DEVICE
        gcc = ["gcc", "-shared", "-fPIC", "-x", "c", "-", f"-Wl,-soname,{library}", "-o", str(folder / library)]
        subprocess.run(gcc, input=source, text=True, check=True)


def linked(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy(source, target)


@pytest.mark.skipif(not FOLDER, reason="set DGIQA_TRT_BUILDER, see tests/test_trt_builder.py")
def test_nvidias_own_library_is_loaded_and_says_that_there_is_no_gpu(tmp_path: Path) -> None:
    """The real plugin in the real onnxruntime, above a driver without devices."""
    folder = Path(FOLDER).resolve() / "site" / "onnxruntime_ep_nv_tensorrt_rtx"
    library = folder / "libonnxruntime_providers_nv_tensorrt_rtx.so"
    driver_without_devices(library, tmp_path)
    shutil.copytree(folder, tmp_path / folder.name, copy_function=linked)  # importing it makes links in its folder
    program = "from dgiqa.runtime.rtx import RtxSession; import sys; RtxSession(sys.argv[1])"
    quality = load_bundle("small").file("quality.onnx")
    paths = {
        "PYTHONPATH": f"{tmp_path}:{ROOT}:{os.environ.get('PYTHONPATH', '')}",
        "LD_LIBRARY_PATH": f"{tmp_path}:{tmp_path / folder.name}",
    }
    child = subprocess.run(
        [sys.executable, "-c", program, str(quality)],
        env={**os.environ, **paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "BackendError: tensorrt-rtx sees no NVIDIA GPU" in child.stderr, child.stderr[-2000:]
