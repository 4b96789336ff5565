"""The machine, versions and commit of a measured figure; a bench's command line and its JSON record."""

import argparse
import hashlib
import json
import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dgiqa import machine
from dgiqa.store import replacing

ROOT = Path(__file__).parent.parent
PACKAGES = (
    *("numpy", "opencv-python-headless", "pillow", "onnxruntime", "openvino", "tensorrt", "onnx"),
    *("torch", "timm", "piq", "scikit-image"),
)
# A figure is valid as long as these stay; the date, the load and the commit (of a README, say) may change.
IDENTITY = ("machine", "cpu", "cores", "python", "versions", "gpu", "code")


def environment_stamp() -> dict[str, Any]:
    """The stamp, ready for JSON. The commit is marked if the measured code differs from it; missing packages are null.

    cores: usable by this process. code: hash of the package's sources. load: the machine's 1-minute load average when
    the stamp was made, 0 = idle. threads: what OMP_NUM_THREADS asks for, null if nothing.
    """
    changed = _git("status", "--porcelain", "--", "dgiqa", "bench/*.py")
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD") + (" with changes" if changed else ""),
        "code": _code(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cpu": machine.cpuinfo("model name") or platform.processor(),
        "cpu_features": machine.cpu_instructions(),
        "cores": machine.usable_cores(),
        "memory_gb": round((machine.memory_mb() or 0) / 1024, 1) or None,
        "gpu": "; ".join(f"{gpu['name']}, driver {gpu['driver']}" for gpu in machine.nvidia_gpus()) or None,
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def command_line(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the bench's own docstring."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def write_json(path: Path, record: Any) -> None:
    """Write figures as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """The contents that `write_json` wrote to a file; None if there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def identity(stamp: dict[str, Any]) -> str:
    """Twelve hex digits that change with the machine, the versions and the measured code, and with nothing else."""
    facts = json.dumps({name: stamp[name] for name in IDENTITY}, sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()[:12]


def machine_line(stamp: dict[str, Any]) -> str:
    """One line for a page: "2 cores of Intel(R) Xeon(R) Processor, onnxruntime 1.31.1, commit 0123456789"."""
    runtimes = [f"{name} {stamp['versions'][name]}" for name in ("onnxruntime", "openvino", "torch")]
    known = [runtime for runtime in runtimes if not runtime.endswith("None")]
    features = ", ".join(name.upper().replace("_", "-") for name in stamp["cpu_features"] if name != "avx2")
    cpu = f"{stamp['cores']} cores of {stamp['cpu']}" + (f" ({features})" if features else "")
    parts = [cpu, stamp["gpu"], *known, f"commit {stamp['commit'][:10]}", stamp["date"][:10]]
    return ", ".join(part for part in parts if part)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # an unpacked release has no history
        return ""


def _code() -> str:
    digest = hashlib.sha256()
    for path in sorted((ROOT / "dgiqa").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
