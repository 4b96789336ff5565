"""The names of the backends, what each needs, and which of them suits a machine and a file."""

import importlib.util
from functools import cache
from pathlib import Path

from dgiqa import machine, spec
from dgiqa.errors import BackendError
from dgiqa.extras import install

ONNXRUNTIME, OPENVINO, CUDA, TENSORRT = "onnxruntime", "openvino", "onnxruntime-cuda", "tensorrt"
RTX = "tensorrt-rtx"
BACKENDS = (ONNXRUNTIME, OPENVINO, CUDA, TENSORRT, RTX)
# Precisions that only one backend takes, and pairs of backend and precision that gain nothing.
_ALONE = {"bf16": OPENVINO, "fp8": TENSORRT}
_NOTHING_GAINED = {
    (CUDA, "int8"): "runs each Q/DQ by itself and multiplies floats between them, slower than fp16",
    (RTX, "int8"): "keeps weights in int8 and multiplies floats, no faster than fp16",
}
_PREFERRED = (TENSORRT, RTX, CUDA, OPENVINO, ONNXRUNTIME)
_MODULE = {ONNXRUNTIME: "onnxruntime", OPENVINO: "openvino", CUDA: "onnxruntime", TENSORRT: "tensorrt"}
_MODULE[RTX] = "onnxruntime_ep_nv_tensorrt_rtx"
INSTALL = {
    ONNXRUNTIME: install("cpu"),
    OPENVINO: install("openvino"),
    CUDA: f"pip uninstall -y onnxruntime && {install('gpu')}",
    TENSORRT: install("tensorrt"),
    RTX: install("rtx"),
}
_NO_GPU = "needs an NVIDIA GPU and its driver, and none answers on this machine"
# int8 against fp32 in OpenVINO, CPU time on a Zen 3 (AVX2): the small bundle's networks run 1.5 times as fast, the
# full-size quality network at batch 8 0.9 times. On a Xeon with AMX the latter ran 3 times as fast.
PLAIN_INT8 = "this processor lacks VNNI, so int8 is 1 to 1.5 times as fast as fp32 here; dgiqa-rt bench measures it"
# From this size on "auto" prefers OpenVINO in fp32. Measured on two cores against ONNX Runtime 1.31: the full-size
# quality network at batch 8 runs 1.48x as fast, Depth Anything ViT-S at 518x686 1.26x. Whole images through the small
# bundle (CPU time of one thread) run 1.18x as fast if all have one size; in random sizes 0.67x over the first ten and
# 0.98x after that. A process that scores one image takes 0.8 s of CPU instead of 0.4 s.
OPENVINO_FROM_BYTES = 32 << 20


def backends() -> list[str]:
    """The backends that this machine can run, fastest first. Does not import them."""
    return [name for name in _PREFERRED if not _lacking(name)]


def offering(precision: str) -> list[str]:
    """Those that offer this precision."""
    return [name for name in backends() if not refusal(name, precision)]


def choose(backend: str = "auto", precision: str = "fp32", path: str | Path | None = None) -> str:
    """The backend that `backend` means for this precision and file, checked to be installed.

    "auto" takes a GPU's backend if one can run. On a CPU it takes OpenVINO for reduced precision and for fp32
    networks of at least OPENVINO_FROM_BYTES, else ONNX Runtime. It never takes TensorRT, which runs only engines, for a
    bundle's own fp32 files.
    """
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"unknown backend {backend!r}; choose auto or one of: {', '.join(BACKENDS)}")
    if precision not in spec.PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; choose one of: {', '.join(spec.PRECISIONS)}")
    if backend != "auto" and (why := refusal(backend, precision)):
        raise BackendError(why)
    if backend != "auto":
        if lacking := _lacking(backend):
            fix = "run it on a machine with one" if lacking == _NO_GPU else INSTALL[backend]
            why = f"backend {backend!r} {lacking}"
            raise BackendError(why if "choose --backend" in why else f"{why}; {fix}")
        return backend
    able = offering(precision)
    if precision == "fp32":
        able = [name for name in able if name != TENSORRT]
        small = path is not None and Path(path).is_file() and Path(path).stat().st_size < OPENVINO_FROM_BYTES
        if small and ONNXRUNTIME in able and able[0] == OPENVINO:
            return ONNXRUNTIME
    if not able:
        wanted = (_ALONE[precision],) if precision in _ALONE else (ONNXRUNTIME, OPENVINO)
        fixes = " or ".join(INSTALL[name] for name in wanted)
        raise BackendError(f"backend 'auto' needs {' or '.join(wanted)}, which is not installed; {fixes}")
    return able[0]


def refusal(backend: str, precision: str) -> str:
    """Why a backend is not offered in a precision, and what to choose instead; empty if it is offered."""
    if precision in _ALONE and backend != _ALONE[precision]:
        return f"{backend} has no {precision}; choose --backend {_ALONE[precision]}, or fp16"
    if why := _NOTHING_GAINED.get((backend, precision)):
        return f"{backend} {why}; choose fp16"
    return ""


def serves_rtx(gpu: str, capability: str) -> str:
    """Why TensorRT for RTX does not take a GPU of this compute capability ("8.6"), or an empty string."""
    number = tuple(int(part) for part in capability.split("."))
    if number in ((8, 6), (8, 9)) or number >= (12, 0):
        return ""
    why = f"{RTX} serves compute capability 8.6, 8.9, 12.0 and later (RTX), and {gpu} has {capability}"
    return f"{why}; choose --backend tensorrt or onnxruntime-cuda"


def parallel_runs(path: Path, backend: str, threads: int) -> int:
    """How many simultaneous runs of a network score the most images a second with these threads, at most 16.

    One per thread for a small network on the CPU: its layers are too short to share among threads. Two in TensorRT,
    else 1.
    """
    if backend == TENSORRT:
        return 2  # on separate streams: one copies its input while the other runs
    on_cpu = backend in (ONNXRUNTIME, OPENVINO)
    small = path.is_file() and path.stat().st_size < OPENVINO_FROM_BYTES
    return min(machine.MOST_SIDE_BY_SIDE, threads) if on_cpu and small else 1


def _lacking(backend: str) -> str:
    """Why a backend cannot run here, or an empty string."""
    lean = backend == TENSORRT and importlib.util.find_spec("tensorrt_lean") is not None
    if importlib.util.find_spec(_MODULE[backend]) is None and not lean:
        return f"needs {_MODULE[backend]}, which is not installed"
    if backend in (CUDA, TENSORRT, RTX) and not machine.gpu_present():
        return _NO_GPU
    if backend == RTX and (why := _not_rtx()):
        return f"is not for this machine: {why}"
    # Checked last, because it reads the metadata of every wheel
    if backend == CUDA and not any(name.endswith(("-gpu", "nightly")) for name in machine.onnxruntime_wheels()):
        return "needs onnxruntime-gpu, and only a CPU build of onnxruntime is installed"
    return ""


@cache
def _not_rtx() -> str:
    try:
        return serves_rtx(*machine.gpu())
    except BackendError as error:
        return str(error)
