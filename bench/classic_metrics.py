"""Pictures become the scores of the classic no-reference metrics BRISQUE, NIQE and PIQE, lower = better in all three.

The peers come from published packages whose parameters lie inside their wheels: nothing is downloaded but the wheels.

    BRISQUE (Mittal 2012, trained on human opinion: LIVE)    brisque 0.2.0
    NIQE (Mittal 2013, fitted to pristine photographs)       scikit-video 1.1.11
    PIQE (Venkatanath 2015, no training)                     pypiqe 1.2

They want an old numpy, so they live in a virtual environment of their own; images go in as one .npy file and scores
come out as JSON. This file is both sides: imported, it makes the environment and calls it; run, it is the program
inside.

    python bench/classic_metrics.py images.npy scores.json      (inside that environment)
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PEERS = {"BRISQUE": "brisque 0.2.0", "NIQE": "scikit-video 1.1.11", "PIQE": "pypiqe 1.2"}
# numpy 2.4 no longer turns brisque's one-element arrays into numbers.
SUPPORT = (
    "numpy==1.26.4",
    "scipy==1.11.4",
    "scikit-image==0.22.0",
    "pillow==10.4.0",
    "opencv-python-headless==4.10.0.84",
    "libsvm-official==3.37.0",
    "requests",
)
# Without their dependencies: pypiqe asks for the OpenCV that needs a display library.
PACKAGES = tuple(package.replace(" ", "==") for package in PEERS.values())


def peer_scores(images: NDArray[np.uint8], folder: Path) -> dict[str, NDArray[np.float64]]:
    """Score images, uint8 [n,H,W,3] RGB: {"BRISQUE": f64 [n], ...}, lower = better, NaN where a metric gave up.

    folder: where the environment (`peers/`) is made once and files are exchanged. Raises RuntimeError with the last
    lines of what pip or a peer said.
    """
    python = environment(folder / "peers")
    with tempfile.TemporaryDirectory(dir=folder) as exchange:
        given, answered = Path(exchange, "images.npy"), Path(exchange, "scores.json")
        np.save(given, images)
        _run([str(python), "-W", "ignore", __file__, str(given), str(answered)])
        return {name: np.asarray(values, np.float64) for name, values in json.loads(answered.read_text()).items()}


def environment(folder: Path) -> Path:
    """Make a virtual environment with the peers, unless it is there; returns its python."""
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    complete = folder / "installed.json"
    wanted = json.dumps([*SUPPORT, *PACKAGES])
    if complete.is_file() and complete.read_text() == wanted:
        return python
    venv.create(folder, clear=True, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, *SUPPORT])
    _run([*pip, "--no-deps", *PACKAGES])
    complete.write_text(wanted)
    return python


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:4])} ... failed: {(done.stderr or done.stdout)[-2000:]}")


# ---- inside the environment ----


def score_all(images: NDArray[np.uint8]) -> dict[str, list[float]]:
    """All three metrics of uint8 [n,H,W,3] RGB."""
    metrics = {"BRISQUE": _brisque(), "NIQE": _niqe(), "PIQE": _piqe()}
    return {name: [_or_nan(metric, image) for image in images] for name, metric in metrics.items()}


def _or_nan(metric: Any, image: NDArray[np.uint8]) -> float:
    try:
        return float(np.squeeze(metric(image)))
    except (ArithmeticError, ValueError, np.linalg.LinAlgError):  # flat pictures have no statistics to fit
        return float("nan")


def _brisque() -> Any:
    from brisque import BRISQUE  # type: ignore[import-not-found]

    return BRISQUE(url=False).score


def _piqe() -> Any:
    from pypiqe import piqe  # type: ignore[import-not-found]

    return lambda image: piqe(np.ascontiguousarray(image[..., ::-1]))[0]  # it takes BGR


def _niqe() -> Any:
    """scikit-video's NIQE on 8-bit luma. It was written for numpy and scipy of 2018, whose names are put back here."""
    import scipy.misc
    from PIL import Image

    def imresize(array: NDArray[np.float32], scale: float, interp: str, mode: str) -> NDArray[np.float32]:
        size = (int(array.shape[1] * scale), int(array.shape[0] * scale))
        resized = Image.fromarray(array, mode=mode).resize(size, Image.Resampling[interp.upper()])
        return np.asarray(resized, np.float32)

    scipy.misc.imresize = imresize
    numpy: Any = np
    numpy.int, numpy.float = int, float
    from skvideo.measure import niqe  # type: ignore[import-not-found]

    return lambda image: niqe(np.asarray(Image.fromarray(image).convert("L")))


def main() -> None:
    given, answered = map(Path, sys.argv[1:3])
    answered.write_text(json.dumps(score_all(np.load(given, allow_pickle=False))))


if __name__ == "__main__":
    main()
