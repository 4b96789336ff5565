"""A session runs exactly the file and the backend that was asked for, or says why not."""

from __future__ import annotations

import builtins
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from dgiqa import machine, spec
from dgiqa.bundle import Bundle
from dgiqa.errors import BackendError, BundleError
from dgiqa.machine import preparing_threads, usable_cores
from dgiqa.runtime.backends import BACKENDS, OPENVINO_FROM_BYTES, backends, choose
from dgiqa.runtime.ort import OrtSession
from dgiqa.runtime.session import identity, open_session

ort = pytest.importorskip("onnxruntime")
helper = pytest.importorskip("onnx.helper")
ROOT = Path(__file__).parent.parent


def affine(opset: int = spec.OPSET, ir_version: int = 9, kind: str = "Add", domain: str = "") -> bytes:
    """y = x + x, x f32 [n,2]."""
    ends = [helper.make_tensor_value_info(name, 1, ["n", 2]) for name in "xy"]
    graph = helper.make_graph([helper.make_node(kind, ["x", "x"], ["y"], domain=domain)], "g", ends[:1], ends[1:])
    opsets = [helper.make_opsetid(d, opset) for d in {"", domain}]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)
    return model.SerializeToString()


@pytest.mark.parametrize(("asked", "recorded"), [(None, True), (True, True), (False, False)])
def test_tensorrt_records_graphs_unless_it_may_not(
    monkeypatch: pytest.MonkeyPatch, asked: bool | None, recorded: bool
) -> None:
    from dgiqa.runtime import session as room
    from dgiqa.runtime import trt

    seen: list[bool] = []
    monkeypatch.setattr(room, "choose", lambda *asked: "tensorrt")
    monkeypatch.setattr(trt, "TrtSession", lambda path, *, graphs, **rest: seen.append(graphs) or affine)
    open_session("a.plan", "tensorrt", graphs=asked)
    assert seen == [recorded]


@pytest.fixture
def session() -> OrtSession:
    return OrtSession(affine(), threads=1)


def test_arrays_go_in_and_come_out_by_name(session: OrtSession) -> None:
    assert (session.inputs, session.outputs) == (("x",), ("y",))
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    result = session.run({"x": x[::-1]})  # not contiguous
    assert list(result) == ["y"]
    np.testing.assert_array_equal(result["y"], 2 * x[::-1])


def test_a_file_opens_like_its_bytes_and_auto_says_what_it_took(tmp_path) -> None:
    (tmp_path / "m.onnx").write_bytes(affine())
    for backend in ("auto", "onnxruntime"):
        session = open_session(tmp_path / "m.onnx", backend, threads=1)
        assert session.backend == f"onnxruntime-cpu {ort.__version__}"
    assert backends()[-1] == "onnxruntime"
    assert set(backends()) <= set(BACKENDS)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, r"got inputs \[\], wanted \['x'\]"),
        ({"x": np.zeros((1, 2), np.float32), "z": np.zeros(1)}, r"got inputs \['x', 'z'\]"),
        ({"x": np.zeros((1, 2))}, r"'x' is float64, wanted an array of float32"),
        ({"x": [[1.0, 2.0]]}, r"'x' is list"),
        ({"x": np.zeros((1, 3), np.float32)}, r"'x' has shape \[1, 3\], wanted \['n', 2\]"),
        ({"x": np.zeros(2, np.float32)}, r"'x' has shape \[2\]"),
    ],
)
def test_wrong_inputs_say_what_was_got_and_wanted(session: OrtSession, feeds: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        session.run(feeds)


def test_an_engine_failure_names_the_shapes(tiny_graphs: dict[str, bytes]) -> None:
    quality = OrtSession(tiny_graphs[spec.QUALITY_FILE], threads=1)
    rgb = np.zeros((2, 3, 64, 64), np.float32)
    with pytest.raises(BackendError, match=r"failed on inputs of shape .*\(2, 3, 64, 64\).*\(3, 3, 64, 64\)"):
        quality.run({"rgb": rgb, "depth": np.zeros((3, 3, 64, 64), np.float32)})


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: affine(opset=99), BackendError, r"newer onnxruntime than .* \((Current|Unsupported).*pip install -U"),
        (
            lambda: affine(ir_version=99),
            BackendError,
            r"newer onnxruntime than .* \((Current|Unsupported).*pip install -U",
        ),
        (lambda: b"not a model", BundleError, "cannot read the given bytes as a model"),
        (lambda: affine()[:-9], BundleError, "cannot read"),
        (lambda: affine(kind="NoSuchOp"), BundleError, "NoSuchOp"),
        (lambda: affine(kind="Fused", domain=spec.ONNX_DOMAIN), BundleError, "Fused"),
    ],
)
def test_a_file_that_cannot_be_opened_says_why(make: Callable[[], bytes], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        OrtSession(make(), threads=1)


def test_a_missing_file_and_senseless_arguments_are_refused(tmp_path) -> None:
    with pytest.raises(BundleError, match=r"nowhere\.onnx is missing"):
        OrtSession(tmp_path / "nowhere.onnx")
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        OrtSession(affine(), threads=0)
    with pytest.raises(ValueError, match=r"unknown backend 'tensorflow'; choose auto or one of: onnxruntime"):
        open_session(tmp_path / "m.onnx", "tensorflow")


def test_a_provider_that_was_not_asked_for_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort.InferenceSession, "get_providers", lambda self: ["OtherProvider", "CPUExecutionProvider"])
    with pytest.raises(BackendError, match=r"asked onnxruntime for CPUExecutionProvider, got .*OtherProvider"):
        OrtSession(affine(), threads=1)


def test_without_onnxruntime_the_error_is_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec, real_import = importlib.util.find_spec, builtins.__import__

    def import_(name: str, *args: Any, **kwargs: Any) -> ModuleType:
        if name == "onnxruntime":
            raise ModuleNotFoundError("No module named 'onnxruntime'")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", import_)
    with pytest.raises(BackendError, match=r'pip install "dgiqa-rt\[cpu\]"'):
        OrtSession(affine())
    gone = ("onnxruntime", "openvino", "tensorrt")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in gone else find_spec(name))
    assert backends() == []
    with pytest.raises(BackendError, match=r'pip install "dgiqa-rt\[cpu\]" or pip install "dgiqa-rt\[openvino\]"'):
        open_session("m.onnx")


def test_a_folder_left_by_another_wheel_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    with pytest.raises(BackendError, match=r"without its library; .*--force-reinstall"):
        OrtSession(affine())


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 8), ("150000 100000", 2), ("10000 100000", 1), ("", 8)])
def test_threads_follow_affinity_and_the_containers_quota(
    monkeypatch: pytest.MonkeyPatch, quota: str, cores: int
) -> None:
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(machine.Path, "read_text", lambda self, encoding: quota)
    assert usable_cores() == cores
    assert preparing_threads() == min(cores, 16)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """installed("openvino", ..., gpu=True): pretend that these backends' modules are there, and a GPU."""

    def pretend(*modules: str, gpu: bool = False, wheels: tuple[str, ...] = ("onnxruntime",)) -> None:
        find = importlib.util.find_spec
        engines = {"onnxruntime", "openvino", "tensorrt"}
        there = find("sys")
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name: (there if name in modules else None) if name in engines else find(name),
        )
        monkeypatch.setattr(machine, "gpu_present", lambda: gpu)
        monkeypatch.setattr(machine, "installed_wheels", lambda: dict.fromkeys(wheels, "1.31.1"))

    return pretend


def test_auto_takes_what_suits_the_machine_and_the_file(installed: Callable[..., None], tmp_path) -> None:
    small, large = tmp_path / "small.onnx", tmp_path / "large.onnx"
    small.write_bytes(b"x")
    with large.open("wb") as stream:
        stream.truncate(OPENVINO_FROM_BYTES)
    installed("onnxruntime", "openvino")
    assert backends() == ["openvino", "onnxruntime"]
    assert [choose(path=path) for path in (small, large)] == ["onnxruntime", "openvino"]
    assert [choose(precision=p, path=small) for p in ("fp16", "int8", "bf16")] == ["openvino"] * 3
    installed("openvino")
    assert choose(path=small) == "openvino"
    installed("onnxruntime")
    assert choose(path=large) == "onnxruntime"
    installed("onnxruntime", "openvino", "tensorrt", gpu=True, wheels=("onnxruntime-gpu",))
    assert backends()[:2] == ["tensorrt", "onnxruntime-cuda"]
    assert choose(path=large) == "onnxruntime-cuda"  # a plan would have to be built first
    assert choose(precision="fp16") == "tensorrt"
    assert choose(precision="bf16") == "openvino"


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("openvino", r"needs openvino, which is not installed; pip install .*\[openvino\]"),
        ("tensorrt", r"needs tensorrt, which is not installed; pip install .*\[tensorrt\]"),
        ("onnxruntime-cuda", r"only a CPU build of onnxruntime is installed; pip uninstall -y onnxruntime && pip"),
    ],
)
def test_asked_for_a_backend_that_backend_or_an_error(
    installed: Callable[..., None], backend: str, message: str
) -> None:
    installed("onnxruntime", gpu=True)
    with pytest.raises(BackendError, match=message):
        open_session("m.onnx", backend)


def test_a_gpu_backend_without_a_gpu_says_so(installed: Callable[..., None]) -> None:
    installed("onnxruntime", "tensorrt", wheels=("onnxruntime-gpu",))
    for backend in ("tensorrt", "onnxruntime-cuda"):
        with pytest.raises(BackendError, match=r"and none answers on this machine; run it on a machine with one$"):
            choose(backend)


def test_bf16_and_unknown_precisions_are_refused_by_name() -> None:
    with pytest.raises(BackendError, match="onnxruntime has no bf16; choose --backend openvino"):
        choose("onnxruntime", "bf16")
    with pytest.raises(ValueError, match="unknown precision 'fp4'; choose one of: fp32, fp16, int8, fp8, bf16"):
        choose(precision="fp4")


def test_an_engine_belongs_to_a_version_and_a_device() -> None:
    here = identity("onnxruntime")
    assert here == {"engine": "onnxruntime", "version": ort.__version__, "device": machine.cpu_name()}
    assert here["device"]


def test_importing_onnx_runtime_tells_its_makers_nothing(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """From 1.29 on it writes an identifier of the machine and a queue of reports when it is imported."""
    quiet = ("CI", "GITHUB_ACTIONS", "TF_BUILD", "ORT_DISABLE_TELEMETRY")  # what silences it, too
    environment = {name: value for name, value in os.environ.items() if name not in quiet}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    open_one = "import sys; from dgiqa.runtime.ort import OrtSession; OrtSession(sys.argv[1])"
    for program in (("-c", open_one, tiny_bundle.file("quality.onnx")), ("-m", "dgiqa", "doctor")):
        subprocess.run([sys.executable, *map(str, program)], env=environment, check=True, capture_output=True)
        assert not [path for path in tmp_path.rglob("*") if "icrosoft" in path.name or "onnxruntime" in path.name]


@pytest.mark.parametrize(
    ("cpuinfo", "name", "lacking"),
    [
        ("model name\t: AMD EPYC\nflags\t\t: fpu avx avx2 vaes\n", "AMD EPYC (avx2)", True),
        ("flags : avx2 avx512f avx512_vnni\nmodel name : Xeon\n", "Xeon (avx2, avx512f, avx512_vnni)", False),
        ("flags : avx2 avx_vnni\nmodel name : Core\n", "Core (avx2, avx_vnni)", False),
        ("Features : fp asimd\n", "aarch64", False),
    ],
)
def test_processors_of_one_name_are_told_apart_by_their_instructions(
    monkeypatch: pytest.MonkeyPatch, cpuinfo: str, name: str, lacking: bool
) -> None:
    monkeypatch.setattr(machine.Path, "read_text", lambda *_, **__: cpuinfo)
    monkeypatch.setattr(machine.platform, "processor", lambda: "")
    monkeypatch.setattr(machine.platform, "machine", lambda: "aarch64")
    assert machine.cpu_name() == name
    assert machine.lacks_vnni() is lacking
