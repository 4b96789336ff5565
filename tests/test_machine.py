"""Which GPU a number of CUDA's means, by what NVIDIA's driver lists."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
from nvml_fake import nvml

from dgiqa import machine
from dgiqa.errors import BackendError

T4, H200 = ("NVIDIA T4", (7, 5)), ("NVIDIA H200", (9, 0))
SAME, MIXED = (H200, H200), (T4, H200)
Gpus = tuple[tuple[str, tuple[int, int]], ...]
List = Callable[[Gpus], None]


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> List:
    """listed(gpus): what NVIDIA's driver answers from here on."""
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)
    uuids = ("GPU-aa11", "GPU-bb22")
    return lambda gpus: monkeypatch.setitem(sys.modules, "pynvml", nvml(*gpus, uuids=uuids))


@pytest.mark.parametrize(
    ("answer", "visible", "order", "device", "name"),
    [
        (SAME, None, None, 1, "NVIDIA H200"),
        (SAME, "1", None, 0, "NVIDIA H200"),
        (MIXED, None, "PCI_BUS_ID", 0, "NVIDIA T4"),
        (MIXED, "1,0", "PCI_BUS_ID", 0, "NVIDIA H200"),
        (MIXED, "GPU-bb22,GPU-aa11", None, 0, "NVIDIA H200"),
        (MIXED, "GPU-bb", None, 0, "NVIDIA H200"),
    ],
)
def test_a_gpu_is_named_as_cuda_counts(  # noqa: PLR0917 - one case
    listed: List,
    monkeypatch: pytest.MonkeyPatch,
    answer: Gpus,
    visible: str | None,
    order: str | None,
    device: int,
    name: str,
) -> None:
    listed(answer)
    for variable, value in (("CUDA_VISIBLE_DEVICES", visible), ("CUDA_DEVICE_ORDER", order)):
        if value is not None:
            monkeypatch.setenv(variable, value)
    assert machine.gpu(device)[0] == name


def test_no_gpu_is_named_wrongly(listed: List, monkeypatch: pytest.MonkeyPatch) -> None:
    listed(MIXED)
    with pytest.raises(BackendError, match="of several kinds, differently; set CUDA_DEVICE_ORDER=PCI_BUS_ID"):
        machine.gpu(0)  # CUDA puts the fastest first
    listed(SAME)
    with pytest.raises(BackendError, match="there is no GPU 2 among"):
        machine.gpu(2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with pytest.raises(BackendError, match="there is no GPU 1 among"):
        machine.gpu(1)
    listed(())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with pytest.raises(BackendError, match="there is no GPU 0 among"):
        machine.gpu(0)


def test_a_gpu_that_shares_the_hosts_memory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(handle: int) -> None:
        raise RuntimeError("Not Supported")

    driver = nvml(("NVIDIA GB10", (12, 1)))
    driver.nvmlDeviceGetMemoryInfo = refused
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    assert machine.gpu() == ("NVIDIA GB10", "12.1")
    assert machine.nvidia_gpus() == [{"name": "NVIDIA GB10", "driver": "580.1", "memory": "unknown"}]
