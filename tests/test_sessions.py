"""A session runs exactly the file and the backend that was asked for, or says why not."""

from __future__ import annotations

import builtins
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from dgiqa import sessions, spec
from dgiqa.errors import BackendError, BundleError
from dgiqa.sessions import OrtSession, backends, open_session, usable_cores

ort = pytest.importorskip("onnxruntime")
helper = pytest.importorskip("onnx.helper")


def affine(opset: int = spec.OPSET, ir_version: int = 9, kind: str = "Add", domain: str = "") -> bytes:
    """y = x + x, x f32 [n,2]."""
    ends = [helper.make_tensor_value_info(name, 1, ["n", 2]) for name in "xy"]
    graph = helper.make_graph([helper.make_node(kind, ["x", "x"], ["y"], domain=domain)], "g", ends[:1], ends[1:])
    opsets = [helper.make_opsetid(d, opset) for d in {"", domain}]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)
    return model.SerializeToString()


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
    assert backends() == ["onnxruntime"]


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, r"got inputs \[\], wanted \['x'\]"),
        ({"x": np.zeros((1, 2), np.float32), "z": np.zeros(1)}, r"got inputs \['x', 'z'\]"),
        ({"x": np.zeros((1, 2))}, r"'x' is float64, wanted tensor\(float\)"),
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
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find_spec(name))
    assert backends() == []
    with pytest.raises(BackendError, match=r'pip install "dgiqa-rt\[cpu\]"'):
        open_session("m.onnx")


def test_a_folder_left_by_another_wheel_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    with pytest.raises(BackendError, match=r"without its library; .*--force-reinstall"):
        OrtSession(affine())


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 8), ("150000 100000", 2), ("10000 100000", 1), ("", 8)])
def test_threads_follow_affinity_and_the_containers_quota(
    monkeypatch: pytest.MonkeyPatch, quota: str, cores: int
) -> None:
    monkeypatch.setattr(sessions.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(sessions.Path, "read_text", lambda self, encoding: quota)
    assert usable_cores() == cores
