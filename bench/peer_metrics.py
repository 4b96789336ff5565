"""Other no-reference metrics, each in a process of its own environment, timed on the files that it is given.

    MANIQA, HyperIQA, TOPIQ-NR, MUSIQ, CNNIQA   the networks of IQA-PyTorch 0.1.16 with random weights: timing only
    BRISQUE, NIQE, PIQE                         as classic_metrics.py has them: their real scores

This file is both sides: imported, it makes the environments; run with --serve NAME, it is the program inside.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import types
import venv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import classic_metrics
from subjects import serve

IQA_PYTORCH = "pyiqa==0.1.16"
# Of its thirty dependencies those that these five networks import. One torch for all: ours, so that times compare.
SUPPORT = ("torch", "torchvision", "timm", "einops", "numpy", "scipy", "pandas", "requests", "tqdm", "pyyaml", "addict")
OTHERS = ("opencv-python-headless", "scikit-image")
NETWORKS: dict[str, tuple[str, str, dict[str, Any]]] = {  # module, class, how it is made without a download
    "MANIQA": ("maniqa_arch", "MANIQA", {"pretrained": False}),
    "HyperIQA": ("hypernet_arch", "HyperNet", {"pretrained": False}),
    "TOPIQ-NR": ("topiq_arch", "CFANet", {"pretrained": False, "backbone_pretrain": False, "use_ref": False}),
    "MUSIQ": ("musiq_arch", "MUSIQ", {"pretrained": False}),
    "CNNIQA": ("cnniqa_arch", "CNNIQA", {"pretrained": None}),
}
SLOW = ("MANIQA",)  # a warm-up would cost more than it is worth


def timed(paths: list[str], score: Callable[[bytes], float]) -> dict[str, Any]:
    """Score files one after the other, reading included: mean ms per image, and the scores."""
    started = time.perf_counter()
    scores = [score(Path(path).read_bytes()) for path in paths]
    return {"ms": (time.perf_counter() - started) * 1e3 / len(paths), "scores": scores}


def iqa_environment(work: Path) -> Path:
    """Make the environment of IQA-PyTorch under `work`, unless it is there; returns its python."""
    folder = work / "iqa-pytorch"
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    wanted = json.dumps([IQA_PYTORCH, _torch(), *SUPPORT, *OTHERS])
    complete = folder / "installed.json"
    if complete.is_file() and complete.read_text() == wanted:
        return python
    venv.create(folder, clear=True, with_pip=True)
    constraints = folder / "constraints.txt"
    constraints.write_text(f"{_torch()}\n")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "--constraint", str(constraints), *SUPPORT, *OTHERS])
    _run([*pip, "--no-deps", IQA_PYTORCH])
    complete.write_text(wanted)
    return python


def classic_environment(work: Path) -> Path:
    """The environment of the classic metrics under `work`; returns its python."""
    return classic_metrics.environment(work / "classic")


RANDOM_WEIGHTS = "random weights, timing only"
METRICS: Mapping[str, tuple[Callable[[Path], Path], str]] = {
    **dict.fromkeys(NETWORKS, (iqa_environment, RANDOM_WEIGHTS)),
    **{name: (classic_environment, package) for name, package in classic_metrics.PEERS.items()},
}


def _torch() -> str:
    """The torch that runs here, without the label of its build."""
    from importlib.metadata import version

    return f"torch=={version('torch').partition('+')[0]}"


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:4])} ... failed: {(done.stderr or done.stdout)[-2000:]}")


# ---- inside an environment ----


def metric(name: str) -> Callable[[bytes], float]:
    """A function of an encoded image's bytes. Raises whatever building the metric raises."""
    return _classic(name) if name in classic_metrics.PEERS else _network(name)


def _classic(name: str) -> Callable[[bytes], float]:
    score = getattr(classic_metrics, f"_{name.lower()}")()
    return lambda data: float(score(_rgb(data)))


def _network(name: str) -> Callable[[bytes], float]:
    torch: Any = _import_torch()
    module, kind, options = NETWORKS[name]
    _without_downloads()
    network = getattr(__import__(f"pyiqa.archs.{module}", fromlist=[kind]), kind)(**options).eval()

    def score(data: bytes) -> float:
        image = torch.from_numpy(_rgb(data)).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            return float(network(image).mean())

    return score


def _import_torch() -> Any:
    """torch, with torchvision's two C++ ops declared where its wheel, built for CUDA, cannot load them."""
    import torch

    try:
        import torchvision  # type: ignore[import-not-found]  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torch._dgiqa_declared = library  # type: ignore[attr-defined] # it lives as long as torch does
    return torch


def _without_downloads() -> None:
    """timm makes every backbone with random weights; the face detector that TOPIQ's file imports is never used."""
    import timm

    create = timm.create_model

    def without_weights(*arguments: Any, **options: Any) -> Any:
        return create(*arguments, **{**options, "pretrained": False})

    timm.create_model = without_weights
    for missing in ("facexlib", "facexlib.utils", "facexlib.utils.face_restoration_helper"):
        sys.modules[missing] = types.ModuleType(missing)
    sys.modules["facexlib.utils.face_restoration_helper"].FaceRestoreHelper = None  # type: ignore[attr-defined]


def _rgb(data: bytes) -> Any:
    import cv2
    import numpy as np

    return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def _prepare() -> tuple[dict[str, Any], dict[str, Any]]:
    score = metric(sys.argv[-1])
    return {"score": lambda paths: timed(paths, score)}, {"backend": sys.argv[-1]}


if __name__ == "__main__":
    serve(_prepare)
