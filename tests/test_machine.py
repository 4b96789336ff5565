"""Which GPU a number of CUDA's means, by what nvidia-smi lists."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dgiqa import machine
from dgiqa.errors import BackendError

SAME = "0, GPU-aa11, NVIDIA H200, 9.0\n1, GPU-bb22, NVIDIA H200, 9.0\n"
MIXED = "0, GPU-aa11, NVIDIA T4, 7.5\n1, GPU-bb22, NVIDIA H200, 9.0\n"


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What nvidia-smi answers."""
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\ncat {tmp_path}/answer\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "answer"


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
    listed: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    visible: str | None,
    order: str | None,
    device: int,
    name: str,
) -> None:
    listed.write_text(answer)
    for variable, value in (("CUDA_VISIBLE_DEVICES", visible), ("CUDA_DEVICE_ORDER", order)):
        if value is not None:
            monkeypatch.setenv(variable, value)
    assert machine.gpu(device)[0] == name


def test_no_gpu_is_named_wrongly(listed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed.write_text(MIXED)
    with pytest.raises(BackendError, match="of several kinds, differently; set CUDA_DEVICE_ORDER=PCI_BUS_ID"):
        machine.gpu(0)  # CUDA puts the fastest first
    listed.write_text(SAME)
    with pytest.raises(BackendError, match="there is no GPU 2 among"):
        machine.gpu(2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with pytest.raises(BackendError, match="there is no GPU 1 among"):
        machine.gpu(1)
    listed.write_text("No devices were found\n")
    with pytest.raises(BackendError, match="nvidia-smi does not name the GPU"):
        machine.gpu(0)
