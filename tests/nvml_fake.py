"""pynvml, the driver's module, on a machine with the GPUs of our choice."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace


def nvml(
    *gpus: tuple[str, tuple[int, int]],
    uuids: tuple[str, ...] = (),
    waits: Callable[[], object] | None = None,
    says: str = "",
) -> SimpleNamespace:
    """gpus: (name, compute capability) each, of 23 GB. waits: what the driver waits for. says: its error."""

    def init() -> None:
        if waits:
            waits()
        if says:
            raise RuntimeError(says)

    return SimpleNamespace(
        nvmlInit=init,
        nvmlSystemGetDriverVersion=lambda: "580.1",
        nvmlDeviceGetCount=lambda: len(gpus),
        nvmlDeviceGetHandleByIndex=lambda number: range(len(gpus))[number],
        nvmlDeviceGetName=lambda number: gpus[number][0],
        nvmlDeviceGetUUID=lambda number: uuids[number] if uuids else f"GPU-{number}",
        nvmlDeviceGetMemoryInfo=lambda number: SimpleNamespace(total=23034 << 20),
        nvmlDeviceGetCudaComputeCapability=lambda number: gpus[number][1],
    )
