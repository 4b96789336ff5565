"""The check for a machine with a GPU runs to its end whatever is missing or broken, and sees what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import gpu_fakes
import numpy as np
import pytest
from gpu_fakes import TILE, FakeDriver, write_plan
from test_on_device import Late

from dgiqa.bundle import Bundle
from dgiqa.errors import BackendError, DgiqaError, EngineError
from dgiqa.runtime.trt import TrtSession


@pytest.fixture(scope="module")
def check(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("bench/gpu_check.py")


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, check: ModuleType) -> FakeDriver:
    monkeypatch.setattr(check, "gpu_present", lambda: True)
    return gpu_fakes.install(monkeypatch, FakeDriver(total=1 << 28))


def test_without_a_gpu_every_step_says_so_and_the_exit_code_too(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(check, "gpu_present", lambda: False)
    assert check.main(["--json", str(tmp_path / "found.json")]) == 1
    record = json.loads((tmp_path / "found.json").read_text())
    assert record["ok"] is False
    assert list(record["steps"]) == [
        "device memory",
        "images in place",
        *(f"onnxruntime-cuda {p}" for p in ("fp32", "fp16", "int8")),
        "scores onnxruntime-cuda",
        *(f"tensorrt {p}" for p in ("fp32", "fp16", "int8")),
        "scores tensorrt",
    ]
    assert all("no NVIDIA GPU" in step["error"] for step in record["steps"].values())
    assert {"commit", "gpu", "versions"} <= record["environment"].keys()
    assert "onnx" in record["packages"]
    assert [p.name for p in tmp_path.iterdir()] == ["found.json"]
    assert check.main(["--json", str(tmp_path / "some.json"), "--only", "memory", "--only", "scores"]) == 1
    some = json.loads((tmp_path / "some.json").read_text())["steps"]
    assert list(some) == ["device memory", "scores onnxruntime-cuda", "scores tensorrt"]
    with pytest.raises(SystemExit):
        check.main(["--only", "nonsense"])


def test_what_was_found_is_kept_when_a_step_ends_the_process(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stopped(note: Any) -> None:
        note("half", "of it")
        raise KeyboardInterrupt

    steps = {"first": lambda note: note("a", 1), "second": stopped, "third": lambda note: note("b", 2)}
    monkeypatch.setattr(check, "steps_of", lambda room: steps)
    with pytest.raises(KeyboardInterrupt):
        check.main(["--json", str(tmp_path / "found.json")])
    record = json.loads((tmp_path / "found.json").read_text())
    assert record["ok"] is False
    assert record["steps"]["first"]["a"] == 1
    assert record["steps"]["second"]["error"].startswith("begun, and the process ended")
    assert record["steps"]["second"]["half"] == "of it"  # what it had found is kept
    assert record["steps"]["third"]["error"] == "not begun"


def test_no_step_begins_when_time_is_up(check: ModuleType) -> None:
    found = check.run_steps({"first": lambda note: note("a", 1)}, lambda found: None, minutes=-1)
    assert found["first"]["error"] == "not begun within -1 minutes; --only 'first' runs it"


def test_nothing_is_quantised_for_a_backend_that_is_not_there(check: ModuleType, driver: FakeDriver) -> None:
    room = SimpleNamespace(files=lambda precision: pytest.fail("made files before looking"))
    with pytest.raises(BackendError, match="onnxruntime-cuda"):
        check.onnxruntime_cuda(room, "int8", print)


def test_images_in_place_score_like_the_golden_ones_and_a_wrong_kernel_is_noticed(
    check: ModuleType, driver: FakeDriver, kernels: Any, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    room, found = SimpleNamespace(bundle=tiny_bundle), {}  # type: ignore[var-annotated]
    late: Any = Late(driver, kernels)
    late.path = kernels.path
    check.images_in_place(room, found.__setitem__, late)
    assert found["images"] == 4
    assert found["difference"] <= 1e-4
    monkeypatch.setattr(late, "depth_range", lambda depth, stream: None)  # stays as it was filled
    with pytest.raises((EngineError, DgiqaError)):
        check.images_in_place(room, found.__setitem__, late)
    monkeypatch.setenv("DGIQA_KERNELS", str(kernels.path))
    with pytest.raises(BackendError, match="emulates the kernels on a CPU"):
        check.images_in_place(room, found.__setitem__)


def test_a_step_that_fails_is_recorded_and_the_others_go_on(check: ModuleType) -> None:
    def fails(note: Any) -> None:
        note("before", 1)
        raise ZeroDivisionError("by nothing")

    steps = {"first": lambda note: note("a", 1), "second": fails, "third": lambda note: note("b", 2)}
    found = check.run_steps(steps, lambda found: None)
    assert [step["ok"] for step in found.values()] == [True, False, True]
    assert (found["first"]["a"], found["second"]["before"]) == (1, 1)
    assert found["second"]["error"] == "ZeroDivisionError: by nothing"
    assert "fails" in found["second"]["at"][0]


def test_the_kernels_check_goes_on_after_an_error_and_keeps_what_it_found(
    script: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    kernels_check, out = script("engines/tests/gpu_check.py"), tmp_path / "gpu.json"

    def fails() -> Any:
        yield {"check": "window", "ok": True}
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def looks() -> Any:
        so_far = json.loads(out.read_text())
        assert (so_far["complete"], [row["ok"] for row in so_far["checks"]]) == (False, [True, False])
        yield {"check": "cross", "ok": True}

    report = kernels_check.run({"window": fails(), "cross": looks()}, {"gpu": "Imagined"}, out)
    assert report == json.loads(out.read_text())
    assert (report["gpu"], report["complete"], report["failed"]) == ("Imagined", True, 1)
    assert "illegal memory access" in report["checks"][1]["error"]
    facts = SimpleNamespace(get_device_name=lambda: "Imagined", get_device_capability=lambda: (9, 0))
    head = kernels_check.about(SimpleNamespace(cuda=facts, version=SimpleNamespace(cuda="13.0")))
    assert head["capability"] == "9.0"
    assert {"commit", "gpu", "versions"} <= head["environment"].keys()


def test_device_memory_passes_on_a_driver_that_works(check: ModuleType, driver: FakeDriver) -> None:
    found: dict[str, Any] = {}
    check.device_memory(SimpleNamespace(calls=40), found.__setitem__)
    assert found == {"gpu": "Imagined H200", "driver": "13.0", "calls": 40, "lost_mb": 0.0}
    assert driver.calls["cuGraphLaunch"] == 3


def test_memory_that_is_not_given_back_is_noticed(
    check: ModuleType, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []
    monkeypatch.setattr(check, "_one_round", lambda lane, pinned: kept.append(lane.empty((1 << 18,), np.float32)))
    monkeypatch.setattr(check, "LEAK_MB", 10)
    with pytest.raises(BackendError, match="MB of device memory are gone after all calls, wanted at most 10"):
        check.device_memory(SimpleNamespace(calls=20), lambda key, value: None)


def test_arrays_on_the_device_must_score_as_on_the_host(
    check: ModuleType, driver: FakeDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(0)
    feeds = {name: generator.random((2, *TILE), dtype=np.float32) for name in ("rgb", "depth")}
    room = SimpleNamespace(feeds={"quality": feeds})
    with closing(TrtSession(write_plan(tmp_path / "plan"))) as session:
        assert check._bound(room, "quality", session) < 1e-6
        run = session.run

        def wrong(feeds: Any) -> dict[str, Any]:
            return {name: a + 1 for name, a in run(feeds).items()}

        monkeypatch.setattr(session, "run", wrong)
        with pytest.raises(EngineError, match="between bound arrays differs by 1"):
            check._bound(room, "quality", session)


def test_an_engine_outside_its_budget_or_precision_fails(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from dgiqa.bundle import load_bundle
    from dgiqa.runtime.ort import OrtSession

    room = check.Room(load_bundle("small"), tmp_path, 1, None)
    session = OrtSession(room.bundle.file("quality.onnx"))
    monkeypatch.setattr(check, "TIMED_RUNS", 1)
    assert room.compare("quality.onnx", session, "fp32")["difference"] == 0
    off = SimpleNamespace(backend="off", run=lambda feeds: {n: a + 0.5 for n, a in session.run(feeds).items()})
    with pytest.raises(EngineError, match=r"quality\.onnx in int8 differs by 5\.00e-01"):
        room.compare("quality.onnx", off, "int8")
    nan = SimpleNamespace(backend="nan", run=lambda feeds: {n: a * np.nan for n, a in session.run(feeds).items()})
    with pytest.raises(EngineError, match="differs by nan"):
        room.compare("quality.onnx", nan, "fp16")
