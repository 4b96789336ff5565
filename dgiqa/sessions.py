"""A network's file becomes a session: {name: array} -> {name: array}, whatever engine runs it.

Asked for a backend, you get that backend or a BackendError. "auto" takes what suits the machine and the file, and
`.backend` says what that was. The engines themselves are in `ort`, `ov` and `trt`, imported when one is opened.
"""

from __future__ import annotations

import importlib.util
import math
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from dgiqa import spec
from dgiqa.errors import BackendError

ONNXRUNTIME, OPENVINO, CUDA, TENSORRT = "onnxruntime", "openvino", "onnxruntime-cuda", "tensorrt"
BACKENDS = (ONNXRUNTIME, OPENVINO, CUDA, TENSORRT)
_PREFERRED = (TENSORRT, CUDA, OPENVINO, ONNXRUNTIME)
_MODULE = {ONNXRUNTIME: "onnxruntime", OPENVINO: "openvino", CUDA: "onnxruntime", TENSORRT: "tensorrt"}
INSTALL = {
    ONNXRUNTIME: 'pip install "dgiqa-rt[cpu]"',
    OPENVINO: 'pip install "dgiqa-rt[openvino]"',
    CUDA: 'pip uninstall -y onnxruntime && pip install "dgiqa-rt[gpu]"',
    TENSORRT: 'pip install "dgiqa-rt[tensorrt]"',
}
_NO_GPU = "needs an NVIDIA GPU and its driver, and none answers on this machine"
# Of x86, that engines compute differently with.
INSTRUCTIONS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
# int8 against fp32 in OpenVINO, CPU time on a Zen 3 (AVX2): the small bundle's networks 1.5 times as fast, the
# full-size quality network at batch 8 0.9; on a Xeon with AMX that ran 3 times as fast.
PLAIN_INT8 = "this processor lacks VNNI, so int8 is 1 to 1.5 times as fast as fp32 here; dgiqa-rt bench measures it"
# From this size on "auto" prefers OpenVINO in fp32. Two cores, against ONNX Runtime 1.31: the full-size quality network
# at batch 8 runs 1.48x as fast, Depth Anything ViT-S at 518x686 1.26x. Whole images through the small bundle (CPU time
# of one thread): 1.18x in one size over and over; in random sizes 0.67x over the first ten, 0.98x after that; and a
# process that scores one image takes 0.8 s of CPU instead of 0.4 s.
OPENVINO_FROM_BYTES = 32 << 20
MOST_SIDE_BY_SIDE = 16  # threads that prepare, and runs at a time: each of them holds memory


class Session(Protocol):
    """What every engine looks like from outside. `run` may be called from several threads."""

    backend: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]: ...


def backends() -> list[str]:
    """The backends that this machine can run, fastest first. Looks without importing them."""
    return [name for name in _PREFERRED if not _lacking(name)]


def open_session(
    path: str | Path,
    backend: str = "auto",
    *,
    precision: str = "fp32",
    threads: int | None = None,
    parallel: int = 1,
    plugins: Sequence[Path] = (),
) -> Session:
    """Open an ONNX file, or for "tensorrt" a plan, with `backend`: "auto" or one of BACKENDS.

    precision: one of spec.PRECISIONS. fp16 and int8 are in the file; bf16 is how OpenVINO runs an fp32 file.
    threads: on the CPU, by default all usable cores. parallel: calls of `run` that will go on at a time and share the
    threads. plugins: libraries that a plan needs.
    Raises ValueError for an unknown backend or precision, BackendError for one that is not installed or cannot run
    the file, BundleError if it is not a model.
    """
    chosen = choose(backend, precision, path)
    if chosen == TENSORRT:
        from dgiqa.backends.trt import TrtSession

        return TrtSession(Path(path), plugins=plugins)
    if chosen == OPENVINO:
        from dgiqa.backends.ov import OvSession

        return OvSession(path, precision=precision, threads=threads, streams=parallel)
    from dgiqa.backends.ort import OrtSession

    each = max(1, (usable_cores() if threads is None else threads) // parallel)
    return OrtSession(path, threads=each, device="cuda" if chosen == CUDA else "cpu")


def choose(backend: str = "auto", precision: str = "fp32", path: str | Path | None = None) -> str:
    """The backend that `backend` means for this precision and file, checked to be installed.

    "auto": a GPU's backend where there is a GPU; on a CPU OpenVINO for reduced precision and for fp32 networks of at
    least OPENVINO_FROM_BYTES, else ONNX Runtime. TensorRT runs engines only, so never a bundle's own fp32 files.
    """
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"unknown backend {backend!r}; choose auto or one of: {', '.join(BACKENDS)}")
    if precision not in spec.PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; choose one of: {', '.join(spec.PRECISIONS)}")
    if precision == "bf16" and backend not in ("auto", OPENVINO):
        raise BackendError(f"{backend} has no bf16; choose --backend openvino, or --precision fp16")
    if backend != "auto":
        if lacking := _lacking(backend):
            fix = "run it on a machine with one" if lacking == _NO_GPU else INSTALL[backend]
            raise BackendError(f"backend {backend!r} {lacking}; {fix}")
        return backend
    able = [name for name in backends() if name == OPENVINO or precision != "bf16"]
    if precision == "fp32":
        able = [name for name in able if name != TENSORRT]
        small = path is not None and Path(path).is_file() and Path(path).stat().st_size < OPENVINO_FROM_BYTES
        if small and ONNXRUNTIME in able and able[0] == OPENVINO:
            return ONNXRUNTIME
    if not able:
        wanted = (OPENVINO,) if precision == "bf16" else (ONNXRUNTIME, OPENVINO)
        fixes = " or ".join(INSTALL[name] for name in wanted)
        raise BackendError(f"backend 'auto' needs {' or '.join(wanted)}, which is not installed; {fixes}")
    return able[0]


def identity(backend: str) -> dict[str, str]:
    """What an engine belongs to: {"engine": name, "version": in full, "device": its name[, "compute_capability"]}.

    Raises BackendError if the backend is not there.
    """
    choose(backend)
    if backend == TENSORRT:
        from dgiqa.backends import trt

        found = trt.identity()
        capability = found["compute_capability"]
        return _identity(backend, found["tensorrt"], found["gpu"]) | {"compute_capability": capability}
    if backend == CUDA:
        from dgiqa.backends.ort import onnxruntime_version

        name, capability = _first_gpu()
        return _identity(backend, onnxruntime_version(), name) | {"compute_capability": capability}
    if backend == OPENVINO:
        return _identity(backend, metadata.version("openvino"), cpu_name())
    from dgiqa.backends.ort import onnxruntime_version

    return _identity(backend, onnxruntime_version(), cpu_name())


def usable_cores() -> int:
    """Cores this process may use: its affinity mask, and the container's CPU quota where there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup v2 here, or a quota of "max"
        return cores


def preparing_threads(cores: int | None = None) -> int:
    """Threads that decode and prepare images beside the networks: one per core (default: all usable), at most 16."""
    return min(MOST_SIDE_BY_SIDE, usable_cores() if cores is None else cores)


def parallel_runs(path: Path, backend: str, threads: int) -> int:
    """How many runs of a network at a time score most images a second with these threads, at most 16.

    One per thread where a small network runs on the CPU: its layers are too short to be shared out. Else 1.
    """
    on_cpu = backend in (ONNXRUNTIME, OPENVINO)
    small = path.is_file() and path.stat().st_size < OPENVINO_FROM_BYTES
    return min(MOST_SIDE_BY_SIDE, threads) if on_cpu and small else 1


def cpu_name() -> str:
    """The processor's own name and its INSTRUCTIONS: they decide how int8 and bf16 round and what they gain, and
    virtual machines give one name ("Intel(R) Xeon(R) Processor", "AMD EPYC") to processors with and without them."""
    name = _cpuinfo("model name") or platform.processor() or platform.machine()
    return f"{name} ({', '.join(found)})" if (found := cpu_instructions()) else name


def cpu_instructions() -> list[str]:
    """Which of INSTRUCTIONS this processor has; none where that cannot be told."""
    flags = _cpuinfo("flags").split()
    return [name for name in INSTRUCTIONS if name in flags]


def lacks_vnni() -> bool:
    """Whether this is known to be an x86 processor that cannot add products of int8 at once."""
    found = cpu_instructions()
    return bool(found) and not any("vnni" in name for name in found)


def gpu_present() -> bool:
    """Whether an NVIDIA driver answers here, judged by its device files; nothing is loaded or started."""
    return any(Path(p).exists() for p in ("/dev/nvidiactl", "/dev/dxg", r"C:\Windows\System32\nvcuda.dll"))


def _cpuinfo(field: str) -> str:
    """What Linux says of the first processor; empty where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(field)), "")


def _lacking(backend: str) -> str:
    """Why a backend cannot run here, or an empty string."""
    if importlib.util.find_spec(_MODULE[backend]) is None:
        return f"needs {_MODULE[backend]}, which is not installed"
    if backend in (CUDA, TENSORRT) and not gpu_present():
        return _NO_GPU
    if backend == CUDA and not _has_cuda_wheel():  # last: it reads the metadata of every wheel
        return "needs onnxruntime-gpu, and only a CPU build of onnxruntime is installed"
    return ""


def _has_cuda_wheel() -> bool:
    from dgiqa.backends.ort import onnxruntime_wheels

    return any(name.endswith(("-gpu", "nightly")) for name in onnxruntime_wheels())


def _first_gpu() -> tuple[str, str]:
    """Name and compute capability of GPU 0, by nvidia-smi."""
    import subprocess

    query = ["nvidia-smi", "--id=0", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
        name, capability = answer.strip().rsplit(", ", 1)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise BackendError(f"nvidia-smi does not name the GPU ({error}); install the NVIDIA driver's tools") from error
    return name, capability


def _identity(backend: str, version: str, device: str) -> dict[str, str]:
    return {"engine": backend, "version": version, "device": device}
