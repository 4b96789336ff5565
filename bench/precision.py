"""Measure how far scores move in every precision and backend here: 200 distorted photographs against fp32.

    python bench/precision.py [--networks small full glintiqa] [--images 200] [--json FILE]

The photographs are scikit-image's and scikit-learn's, under all types and levels of `recipes.small.distortions`, with
fixed seeds, and are scored from pixels on through both networks. `builder.quantize` makes the files. The small bundle's
reference is its fp32 ONNX file on ONNX Runtime, since its PyTorch weights are not shipped (its manifest says how far
the file is from PyTorch). `full` and `glintiqa` are networks of the published sizes (untrained.py) with PyTorch as the
reference: an hour each on two cores. Rows of networks that are not measured stay in the file. Scores are kept in --work
one by one, and a stopped run goes on; after a change to the code, use --fresh.
"""

import hashlib
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgiqa import metrics, spec
from dgiqa.builder.calibrate import score_tiles
from dgiqa.bundle import Bundle, load_bundle
from dgiqa.errors import BackendError
from dgiqa.machine import usable_cores
from dgiqa.parity import BUDGETS
from dgiqa.runtime.backends import ONNXRUNTIME, OPENVINO, backends
from dgiqa.runtime.session import open_session
from dgiqa.store import sha256_of

sys.path.append(str(Path(__file__).parent.parent))  # for recipes/
import untrained
from page import precision_table
from stamp import command_line, environment_stamp, machine_line, read_json, write_json

from recipes.small.distortions import LEVELS, TYPES, distort

NETWORKS = ("small", "full", "glintiqa")
RESULTS = Path(__file__).parent / "results" / "precision.json"
CASES = (
    *((ONNXRUNTIME, precision) for precision in ("fp32", "fp16", "int8")),
    *((OPENVINO, precision) for precision in ("fp32", "bf16", "fp16", "int8")),
)
SIDE = 512  # longest side of a photograph, pixels
MIN_SROCC = 0.995
MAX_SIZE = {"fp16": 0.51, "int8": 0.30}  # of the fp32 files

Picture = NDArray[np.uint8]
Score = Callable[[Picture], float]


def pictures(count: int, start: int = 0) -> Iterator[Picture]:
    """Distorted photographs number `start` to `count`, uint8 [H,W,3] RGB: type, level and photograph all change."""
    photographs = originals()
    for number in range(start, count):
        kind, level = TYPES[number % len(TYPES)], 1 + number // len(TYPES) % LEVELS
        yield distort(photographs[number % len(photographs)], kind, level, seed=number)


def scores(opened: Callable[[], Score], count: int, file: Path) -> NDArray[np.float64]:
    """Scores f64 [count] of `pictures`; those in `file` are not computed again.

    opened: returns the scoring function; it is not called if nothing is missing.
    """
    known: list[float] = read_json(file) or []
    if len(known) < count:
        score = opened()
    for picture in pictures(count, start=len(known)):
        known.append(score(picture))
        write_json(file, known)
    return np.array(known[:count])


def engine_scores(
    bundle: Bundle, files: dict[str, Path], engine: tuple[str, str], count: int, o: Namespace
) -> NDArray[np.float64]:
    """Scores f64 [count] of `pictures` through a backend in a precision, from pixels on; kept in o.work."""
    backend, precision = engine

    def opened() -> Score:
        networks = {file: open_session(path, backend, precision=precision) for file, path in files.items()}
        mapped, p = bundle.meaning.mapped, bundle.preprocess
        return lambda picture: float(mapped(score_tiles(picture, networks, p)).mean(dtype=np.float64))

    return scores(opened, count, o.work / f"{_digest(files)}-{_engine(backend)}-{precision}.json")


def compared(reference: NDArray[np.float64], got: NDArray[np.float64]) -> dict[str, float]:
    """Largest and mean |difference|, SROCC (NaN if the reference is constant)."""
    difference = np.abs(reference - got)
    return {
        "max_difference": float(difference.max()),
        "mean_difference": float(difference.mean()),
        "srocc": float(metrics.srocc(reference.tolist(), got.tolist())),
    }


def measure(bundle: Bundle, expected: NDArray[np.float64], o: Namespace) -> list[dict[str, Any]]:
    """One row per backend and precision: differences from the reference, size ratio, whether the targets are met.

    expected: the reference's scores, for as many `pictures` as are to be scored; "spread" is their standard deviation,
    to compare differences with.
    """
    rows, calibration = [], o.calib if bundle.name == "small" else None
    full_size = _size(untrained.files(bundle, "fp32", o.work))
    for backend, precision in CASES:
        files = untrained.files(bundle, precision, o.work, calibration)
        try:
            row = compared(expected, engine_scores(bundle, files, (backend, precision), len(expected), o))
        except BackendError as error:  # not installed, or not on this processor
            print(f"{backend} {precision}: {error}", flush=True)
            continue
        row |= {"size_ratio": _size(files) / full_size}
        met = row["max_difference"] <= BUDGETS[precision] and row["size_ratio"] <= MAX_SIZE.get(precision, 1)
        met = met and (bundle.name != "small" or row["srocc"] >= MIN_SROCC)
        names = {"bundle": bundle.name, "backend": backend, "precision": precision}
        spread = {"images": len(expected), "spread": float(expected.std())}
        rows.append(names | row | spread | {"met": bool(met)})
        print(rows[-1], flush=True)
    return rows


def torch_score(size: str, bundle: Bundle) -> Score:
    """The networks of untrained.py in eager PyTorch, through the reference pipeline."""
    import torch

    from dgiqa.nn.reference import TorchScorer

    torch.set_num_threads(usable_cores())
    networks = untrained.modules(size)
    depth, quality = networks.get(spec.DEPTH_FILE), networks[spec.QUALITY_FILE]
    scorer = TorchScorer(depth, quality, bundle.preprocess, bundle.meaning.mapped)
    return lambda picture: float(scorer.score(picture).value)


def originals() -> list[Picture]:
    """Colour photographs with SIDE pixels along their longer side."""
    import cv2
    import skimage.data
    from sklearn.datasets import load_sample_image

    found = [getattr(skimage.data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")]
    found += [skimage.data.stereo_motorcycle()[0], *map(load_sample_image, ("china.jpg", "flower.jpg"))]
    photographs = []
    for photograph in found:
        scale = SIDE / max(photograph.shape[:2])
        height, width = (round(side * scale) for side in photograph.shape[:2])
        resized = cv2.resize(photograph, (width, height), interpolation=cv2.INTER_AREA)
        photographs.append(np.ascontiguousarray(resized, np.uint8))
    return photographs


def _engine(backend: str) -> str:
    """Name and version, as scores of another release are not the same."""
    return f"{backend}-{metadata.version(backend)}" if backend in backends() else backend


def _digest(files: dict[str, Path]) -> str:
    return hashlib.sha256("".join(sha256_of(path) for path in files.values()).encode()).hexdigest()[:12]


def _size(files: dict[str, Path]) -> int:
    return sum(path.stat().st_size for path in files.values())


def reference(name: str, o: Namespace) -> tuple[Bundle, NDArray[np.float64]]:
    """A bundle, and the scores of the `pictures` to compare its own with."""
    if name == "small":
        bundle = load_bundle(name)
        files = untrained.files(bundle, "fp32", o.work)
        return bundle, engine_scores(bundle, files, (ONNXRUNTIME, "fp32"), o.images, o)
    bundle = untrained.bundle(name, o.work)
    file = o.work / f"{bundle.id}-torch-{metadata.version('torch')}.json"
    return bundle, scores(partial(torch_score, name, bundle), o.images, file)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--images", type=int, default=200, help="how many distorted photographs")
    parser.add_argument("--calib", type=Path, nargs="+", help="what to calibrate `small` on (default: golden images)")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["small"], help="which, see above")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the figures go")
    parser.add_argument("--work", type=Path, default=untrained.WORK, help="files and scores kept here")
    parser.add_argument("--fresh", action="store_true", help="forget the scores that are kept")
    o = parser.parse_args()
    o.work.mkdir(parents=True, exist_ok=True)
    for file in o.work.glob("*.json") if o.fresh else ():
        file.unlink()
    record: dict[str, Any] = read_json(o.json) or {"rows": []}
    environment = environment_stamp()
    record |= {"environment": environment, "side": SIDE}
    record["calibration"] = [str(path) for path in o.calib or []] or "golden images"
    for name in o.networks:
        bundle, expected = reference(name, o)
        where = {"commit": environment["commit"], "machine": machine_line(environment)}
        rows = [row | where for row in measure(bundle, expected, o)]
        record["rows"] = [row for row in record["rows"] if row["bundle"] != bundle.name] + rows
    write_json(o.json, record)
    print(f"\n{precision_table(record['rows'])}")


if __name__ == "__main__":
    main()
