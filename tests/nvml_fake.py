"""pynvml, the driver's module, on a machine with the GPUs of our choice."""

from __future__ import annotations

import time
from types import SimpleNamespace


def nvml(
    *gpus: tuple[str, tuple[int, int]], uuids: tuple[str, ...] = (), seconds: float = 0, says: str = ""
) -> SimpleNamespace:
    """gpus: (name, compute capability) each, of 23 GB. seconds: how long the driver takes. says: its error."""

    def init() -> None:
        time.sleep(seconds)
        if says:
            raise RuntimeError(says)

    return SimpleNamespace(
        nvmlInit=init,
        nvmlSystemGetDriverVersion=lambda: "580.1",
        nvmlDeviceGetCount=lambda: len(gpus),
        nvmlDeviceGetHandleByIndex=lambda number: range(len(gpus))[number],
        nvmlDeviceGetName=lambda number: gpus[number][0],
        nvmlDeviceGetUUID=lambda number: uuids[number],
        nvmlDeviceGetMemoryInfo=lambda number: SimpleNamespace(total=23034 << 20),
        nvmlDeviceGetCudaComputeCapability=lambda number: gpus[number][1],
    )
