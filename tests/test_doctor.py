"""The doctor's findings, on this machine and on sick ones."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from nvml_fake import nvml

from dgiqa import doctor, machine
from dgiqa.bundle import Bundle
from dgiqa.doctor import FAIL, OK, WARN, Check
from dgiqa.errors import BackendError
from dgiqa.extras import EXTRAS, install
from dgiqa.runtime.backends import PLAIN_INT8


def test_a_healthy_machine_has_every_check_once_and_a_document(tiny_bundle: Bundle) -> None:
    checks = doctor.examine(str(tiny_bundle.path))
    assert doctor.healthy(checks), [check for check in checks if check.status == FAIL]
    assert len({check.name for check in checks}) == len(checks)
    assert {"python", "machine", "numpy", "cv2", "PIL", "onnxruntime", "providers", "gpu", "bundle", "score"} <= {
        check.name for check in checks
    }
    document = json.loads(json.dumps(doctor.report(checks), allow_nan=False))
    assert document["healthy"] is True
    assert [check["name"] for check in document["checks"]] == [check.name for check in checks]


def test_a_missing_bundle_fails_with_advice_and_no_exception(tmp_path: Path) -> None:
    checks = {check.name: check for check in doctor.examine(str(tmp_path / "nowhere"))}
    assert checks["bundle"].status == checks["score"].status == FAIL
    assert not doctor.healthy(checks.values())
    assert checks["bundle"].fix == "is the name misspelt? dgiqa-rt models lists the models"
    assert checks["score"].fix == doctor.AFTERWARDS
    (tmp_path / "empty").mkdir()
    assert (
        "replace the folder" in {check.name: check for check in doctor.examine(str(tmp_path / "empty"))}["bundle"].fix
    )
    assert all(check.fix for check in checks.values() if check.status != OK)


def test_the_first_failure_is_not_advised_to_look_above(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_score", lambda _: 1 / 0)
    (failed,) = (check for check in doctor.examine(str(tiny_bundle.path)) if check.status == FAIL)
    assert (failed.name, "DGIQA_DEBUG=1" in failed.fix) == ("score", True)


def test_warnings_do_not_make_a_machine_unhealthy() -> None:
    assert doctor.healthy([Check("a", OK, ""), Check("b", WARN, "")])
    assert not doctor.healthy([Check("a", OK, ""), Check("b", FAIL, "")])


def test_wheels_that_overwrite_each_other_are_found() -> None:
    wheels = ["onnxruntime", "onnxruntime-gpu", "onnxruntime-extensions", "opencv-python", "numpy"]
    assert machine.rival_wheels("onnxruntime", wheels) == ["onnxruntime", "onnxruntime-gpu"]
    assert machine.rival_wheels("cv2", wheels) == ["opencv-python"]


def test_a_clash_of_both_onnxruntime_wheels_is_explained(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    both = {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.1"}
    monkeypatch.setattr(machine, "installed_wheels", lambda: both)
    check = {check.name: check for check in doctor.examine(str(tiny_bundle.path))}["onnxruntime wheels"]
    assert check.status == WARN
    assert "onnxruntime 1.31.1, onnxruntime-gpu 1.31.1" in check.found
    assert check.fix.startswith("pip uninstall -y onnxruntime onnxruntime-gpu && pip install")


def test_an_idle_gpu_is_a_warning(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = {"name": "NVIDIA H200", "driver": "580.1", "memory": "143771 MiB"}
    monkeypatch.setattr(machine, "nvidia_gpus", lambda: [gpu])
    checks = {check.name: check for check in doctor.examine(str(tiny_bundle.path))}
    assert "NVIDIA H200, driver 580.1" in checks["gpu"].found
    if "CUDAExecutionProvider" not in checks["providers"].data:
        assert checks["providers"].status == WARN
        assert "[gpu]" in checks["providers"].fix


def test_gpus_are_named_by_their_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = (("NVIDIA A10", (8, 6)), ("NVIDIA L4", (8, 9)))
    monkeypatch.setitem(sys.modules, "pynvml", nvml(*gpus))
    assert machine.nvidia_gpus() == [
        {"name": "NVIDIA A10", "driver": "580.1", "memory": "23034 MiB"},
        {"name": "NVIDIA L4", "driver": "580.1", "memory": "23034 MiB"},
    ]


@pytest.mark.parametrize("hangs", [False, True])
def test_a_broken_driver_means_no_gpu_and_no_waiting(hangs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = threading.Event()
    driver = nvml(says="Driver/library version mismatch", waits=answers.wait if hangs else None)
    monkeypatch.setattr(machine, "DRIVER_SECONDS", 0.1)
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    assert machine.nvidia_gpus() == []
    with pytest.raises(BackendError, match="the NVIDIA driver does not name the GPU"):
        machine.gpu()
    answers.set()


def test_without_nvidia_ml_py_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert machine.nvidia_gpus() == []
    with pytest.raises(BackendError, match=r'needs nvidia-ml-py .*; pip install "dgiqa-rt\[nvml\]"'):
        machine.gpu()


def test_every_extra_is_one_of_the_packages() -> None:
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    section = text.split("[project.optional-dependencies]")[1].split("[project.scripts]")[0]
    declared = set(re.findall(r"^(\w+) = \[", section, re.M))
    assert declared == EXTRAS | {"docs", "test", "dev"}
    assert install("cpu", "torch") == 'pip install "dgiqa-rt[cpu,torch]"'
    with pytest.raises(AssertionError):
        install("cpus")


def test_a_module_that_is_missing_or_broken_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_wheel.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    broken, missing = doctor._module("broken_wheel", "broken-wheel"), doctor._module("no_such_module", "no-such")
    assert (broken.status, missing.status) == (FAIL, FAIL)
    assert "libGL.so.1" in broken.found
    assert broken.fix == "pip install --force-reinstall broken-wheel"
    assert missing.fix == "pip install no-such"


def test_this_process_has_some_memory() -> None:
    memory = machine.memory_mb()
    assert memory is None or memory > 100


def test_looking_for_torch_does_not_import_it(tiny_bundle: Bundle) -> None:
    look = f"from dgiqa.doctor import examine; examine({str(tiny_bundle.path)!r})"
    code = f"import sys; {look}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


GPU = [{"name": "NVIDIA H200", "driver": "580.1", "memory": "143771 MiB"}]


@pytest.mark.parametrize(
    ("wheels", "gpus", "status", "words"),
    [
        ({}, [], OK, "not installed; it needs an NVIDIA GPU"),
        ({}, GPU, OK, "not installed"),
        ({"tensorrt": "11.4.0.106"}, [], WARN, "no NVIDIA GPU to run on"),
        ({"tensorrt-cu13": "11.4.0.106", "tensorrt-cu13-libs": "11.4.0.106"}, GPU, OK, "tensorrt-cu13 11.4.0.106"),
        ({"tensorrt": "10.3.0"}, GPU, WARN, "wanted 10.12 or newer"),
    ],
)
def test_tensorrt_is_judged_by_its_version_and_the_gpu(wheels: dict, gpus: list, status: str, words: str) -> None:
    check = doctor._tensorrt(gpus, wheels)
    assert check.status == status
    assert words in check.found
    assert bool(check.fix) is bool((gpus and status != OK) or status == WARN or (gpus and not wheels))


def test_tensorrt_without_cuda_python_is_a_warning_and_pycuda_is_seen() -> None:
    assert doctor._device_memory(GPU, {"tensorrt": "11.4"}).status == WARN
    assert doctor._device_memory(GPU, {"tensorrt": "11.4", "cuda-python": "13.5"}).status == OK
    assert "pycuda 2026.1" in doctor._device_memory([], {"pycuda": "2026.1"}).found


def test_openvino_is_advised_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.platform, "machine", lambda: "x86_64")
    check = doctor._openvino({})
    assert (check.status, check.fix) == (OK, 'pip install "dgiqa-rt[openvino]"')
    monkeypatch.setattr(doctor.platform, "machine", lambda: "aarch64")
    assert doctor._openvino({}).fix == ""


@pytest.mark.parametrize(("instructions", "told"), [(["avx2"], True), (["avx2", "avx_vnni"], False), ([], False)])
def test_what_int8_gains_is_told_where_the_processor_lacks_vnni(
    monkeypatch: pytest.MonkeyPatch, instructions: list[str], told: bool
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr(machine, "cpu_instructions", lambda: instructions)
    check = doctor._openvino({"openvino": "2026.4.1"})
    assert (PLAIN_INT8 in check.found) is told
    assert check.data["instructions"] == instructions


def test_a_driver_that_does_not_answer_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpu_present", lambda: True)
    check = doctor._gpu([])
    assert check.status == WARN
    assert "NVIDIA driver" in check.fix or "nvml" in check.fix


def test_a_machine_with_openvino_alone_is_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    find = doctor.importlib.util.find_spec
    for there, status in ((True, WARN), (False, FAIL)):
        monkeypatch.setattr(
            doctor.importlib.util,
            "find_spec",
            lambda name, there=there: {"onnxruntime": None, "openvino": there or None}.get(name, find(name)),
        )
        assert doctor._onnxruntime().status == status


def test_video_is_tried_with_the_version_that_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    av = pytest.importorskip("av", reason="video needs PyAV")
    check = doctor._video()
    assert (check.status, check.data) == (OK, {"av": av.__version__})
    assert f"PyAV {av.__version__}" in check.found

    def refused(*_: object, **__: object) -> None:
        raise TypeError("open() got an unexpected keyword argument")

    monkeypatch.setattr(av, "open", refused)
    broken = doctor._video()
    assert broken.status == WARN
    assert "unexpected keyword" in broken.found
    assert "dgiqa-rt[video]" in broken.fix
