"""Facts about this machine: cores, memory, CPU flags, GPUs, and the packages that pip installed.

The only import that can fail is NVIDIA's nvidia-ml-py, and no process is started.
"""

import importlib
import importlib.metadata
import math
import os
import platform
import queue
import re
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from dgiqa.errors import BackendError
from dgiqa.extras import load

# Extensions of x86 that change how engines compute.
INSTRUCTIONS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
MOST_SIDE_BY_SIDE = 16  # threads that prepare images, and simultaneous runs: each holds memory
DRIVER_SECONDS = 5  # a hung driver must not hang the doctor
# Wheels that install the same folder: the one installed last wins, and removing one breaks the other.
RIVALS = {
    "onnxruntime": re.compile(r"(ort-nightly|onnxruntime)(-(gpu|directml|openvino|rocm|migraphx|qnn|silicon))?"),
    "cv2": re.compile(r"opencv(-contrib)?-python(-headless)?"),
}


def usable_cores() -> int:
    """The number of cores this process may use, by its affinity mask and the container's CPU quota, if there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup v2 here, or a quota of "max"
        return cores


def preparing_threads(cores: int | None = None) -> int:
    """The number of threads that prepare images while the networks run: one per core (by default all), at most 16."""
    return min(MOST_SIDE_BY_SIDE, usable_cores() if cores is None else cores)


def memory_mb() -> int | None:
    """Memory in MB that this process may use: the machine's, or its control group's limit. None if unknown."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    with suppress(OSError, ValueError):  # no cgroup v2 here, or a limit of "max"
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return total // 2**20


def cpu_name() -> str:
    """The processor's name and its INSTRUCTIONS, which decide how int8 and bf16 round and how fast they are. Virtual
    machines give one name ("Intel(R) Xeon(R) Processor", "AMD EPYC") to processors with and without them."""
    name = cpuinfo("model name") or platform.processor() or platform.machine()
    return f"{name} ({', '.join(found)})" if (found := cpu_instructions()) else name


def cpu_instructions() -> list[str]:
    """The INSTRUCTIONS that this processor has; none if that is unknown."""
    flags = cpuinfo("flags").split()
    return [name for name in INSTRUCTIONS if name in flags]


def lacks_vnni() -> bool:
    """Whether this is known to be an x86 processor without VNNI, the instructions that add products of int8."""
    found = cpu_instructions()
    return bool(found) and not any("vnni" in name for name in found)


def gpu_present() -> bool:
    """Whether an NVIDIA driver answers here, judged by its device files; nothing is loaded or started."""
    return any(Path(p).exists() for p in ("/dev/nvidiactl", "/dev/dxg", r"C:\Windows\System32\nvcuda.dll"))


def nvidia_gpus() -> list[dict[str, str]]:
    """NVIDIA GPUs as {name, driver, memory}, from the driver. [] if there are none or it does not answer in time."""

    with suppress(BackendError):
        return [{key: each[key] for key in ("name", "driver", "memory")} for each in _from_driver()]
    return []


def gpu(device: int = 0) -> tuple[str, str]:
    """Name and compute capability ("9.0") of a GPU by CUDA's ordinal. NVIDIA's driver numbers GPUs differently.

    CUDA numbers the GPUs in CUDA_VISIBLE_DEVICES, in its order; without that variable the fastest comes first, unless
    CUDA_DEVICE_ORDER is PCI_BUS_ID. Raises BackendError if the two numberings may differ, or there is no such GPU.
    """
    found = _from_driver()
    index = {each[key]: (each["name"], each["capability"]) for each in found for key in ("number", "uuid")}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    listed = list(map(str, range(len(found)))) if visible is None else [part.strip() for part in visible.split(",")]
    named = [next((at for key, at in index.items() if key.startswith(part)), None) for part in listed if part]
    if device >= len(named) or (kind := named[device]) is None:
        raise BackendError(f"there is no GPU {device} among CUDA_VISIBLE_DEVICES={visible!r} and {sorted(index)}")
    by_uuid = visible is not None and all(part.startswith("GPU-") for part in listed)
    if len(set(index.values())) > 1 and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID" and not by_uuid:
        raise BackendError(
            "CUDA and NVIDIA's driver may count the GPUs here, which are of several kinds, differently; "
            "set CUDA_DEVICE_ORDER=PCI_BUS_ID"
        )
    return kind


def _from_driver() -> list[dict[str, str]]:
    """NVML's facts about each GPU, read in a thread, so that a driver that hangs costs at most DRIVER_SECONDS."""
    nvml = load("pynvml", "asking the NVIDIA driver", "nvidia-ml-py", "nvml")
    answer: queue.SimpleQueue[list[dict[str, str]] | Exception] = queue.SimpleQueue()

    def described(number: int) -> dict[str, str]:
        handle, memory = nvml.nvmlDeviceGetHandleByIndex(number), "unknown"
        with suppress(Exception):  # GPUs that share the host's memory report none
            memory = f"{nvml.nvmlDeviceGetMemoryInfo(handle).total >> 20} MiB"
        return {
            "number": str(number),
            "uuid": nvml.nvmlDeviceGetUUID(handle),
            "name": nvml.nvmlDeviceGetName(handle),
            "capability": "{}.{}".format(*nvml.nvmlDeviceGetCudaComputeCapability(handle)),
            "driver": nvml.nvmlSystemGetDriverVersion(),
            "memory": memory,
        }

    def run() -> None:
        try:
            nvml.nvmlInit()
            answer.put([described(number) for number in range(nvml.nvmlDeviceGetCount())])
        except Exception as error:
            answer.put(error)

    threading.Thread(target=run, name="nvml", daemon=True).start()
    try:
        got: list[dict[str, str]] | Exception | str = answer.get(timeout=DRIVER_SECONDS)
    except queue.Empty:
        got = f"no answer in {DRIVER_SECONDS} s"
    if isinstance(got, list):
        return got
    raise BackendError(f"the NVIDIA driver does not name the GPU ({got}); install or restart it")


def installed_wheels() -> dict[str, str]:
    """Name (lower case, dashes) -> version of every package that pip installed here."""
    wheels = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]  # None for a damaged installation
        if name:
            wheels[re.sub(r"[-_.]+", "-", name).lower()] = distribution.version
    return wheels


def rival_wheels(folder: str, wheels: Iterable[str]) -> list[str]:
    """The wheels among these that install this folder, sorted; more than one is a clash."""
    return sorted(name for name in wheels if RIVALS[folder].fullmatch(name))


def onnxruntime_wheels() -> dict[str, str]:
    """Installed wheels that install the folder `onnxruntime`, name -> version; more than one is a clash."""
    wheels = installed_wheels()
    return {name: wheels[name] for name in rival_wheels("onnxruntime", wheels)}


def cpuinfo(field: str) -> str:
    """A field of Linux's /proc/cpuinfo for the first processor; empty if it is missing."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(field)), "")
