"""Time from process start to the first row: `dgiqa-rt score` on one JPEG, against the imports of its peers."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pictures import photograph
from timer import compare

PEERS = "import torch, timm"
# As in a program that uses them, with timm through the import that also works with a CPU build of torch.
IMPORT_PEERS = "from dgiqa.nn.backbones import import_timm; import_timm()"


def startup(bundle: str, runs: int = 7, peers: bool = True) -> dict[str, Any]:
    """Wall ms and peak resident MB of whole processes, taken in turn; ratios are against the import (peers=True)."""
    peaks: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder, "photo.jpg")
        photo.write_bytes(photograph(0))
        ours = [sys.executable, "-m", "dgiqa", "score", "--bundle", bundle, str(photo)]
        commands = {"dgiqa-rt score photo.jpg": ours}
        if peers and find_spec("torch") and find_spec("timm"):
            commands = {PEERS: [sys.executable, "-c", IMPORT_PEERS], **commands}
        calls = {name: partial(_run, name, command, peaks) for name, command in commands.items()}
        results = compare(calls, pairs=runs, warmup=1)
    return {"rows": [result.as_dict() | {"peak_mb": round(peaks[result.name], 1)} for result in results]}


def _run(name: str, command: list[str], peaks: dict[str, float]) -> None:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}")
    peaks[name] = max(peaks.get(name, 0.0), usage.ru_maxrss / 1024)
