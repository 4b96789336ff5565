"""How far scores move in every precision and backend that is here: 200 distorted photographs against fp32.

    python bench/precision.py [--images 200] [--calib DIR] [--full] [--compare] [--json bench/results/precision.json]

Photographs of scikit-image and scikit-learn under all types and levels of `dgiqa.nn.distortions`, seeds fixed. Files
are made by `dgiqa.quantize`, here. The small bundle's reference is its fp32 ONNX file on ONNX Runtime, since its
PyTorch weights are not shipped (its manifest says how far the file is from PyTorch). --full adds networks of the
published sizes (untrained, fixed seed) with PyTorch as the reference: minutes per image on two cores. --compare adds
other ways to make int8 files of the small bundle. Scores are kept in --work, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgiqa import metrics, spec
from dgiqa.bundle import Bundle, load_bundle, sha256_of, user_cache
from dgiqa.errors import BackendError, DgiqaError
from dgiqa.nn.distortions import LEVELS, TYPES, distort
from dgiqa.parity import BUDGETS
from dgiqa.quantize import FILES, METHODS, quantize_bundle
from dgiqa.quantize.calibrate import CALIBRATORS, score_tiles
from dgiqa.sessions import ONNXRUNTIME, OPENVINO, backends, open_session

sys.path.insert(0, str(Path(__file__).parent))
from stamp import environment_stamp

RESULTS = Path(__file__).parent / "results" / "precision.json"
CASES = (
    *((ONNXRUNTIME, precision) for precision in ("fp32", "fp16", "int8")),
    *((OPENVINO, precision) for precision in ("fp32", "bf16", "fp16", "int8")),
)
SIDE = 512  # longest side of a photograph, pixels
MIN_SROCC = 0.995
SEED = 0  # of the full-size networks' weights

Picture = NDArray[np.uint8]


def pictures(count: int) -> Iterator[Picture]:
    """`count` distorted photographs, uint8 [H,W,3] RGB: type, level and photograph all change from one to the next."""
    originals = _originals()
    for number in range(count):
        kind, level = TYPES[number % len(TYPES)], 1 + number // len(TYPES) % LEVELS
        yield distort(originals[number % len(originals)], kind, level, seed=number)


def scores(networks: dict[str, Any], p: spec.Preprocess, count: int, kept: Path) -> NDArray[np.float64]:
    """Scores f64 [count] of `pictures`, those that `kept` holds already not computed again."""
    known: list[float] = json.loads(kept.read_text()) if kept.is_file() else []
    for number, picture in enumerate(pictures(count)):
        if number >= len(known):
            known.append(float(score_tiles(picture, networks, p).mean(dtype=np.float64)))
            kept.write_text(json.dumps(known))
    return np.array(known[:count])


def compared(reference: NDArray[np.float64], got: NDArray[np.float64]) -> dict[str, float]:
    """Largest and mean |difference|, SROCC (NaN where the reference is constant)."""
    difference = np.abs(reference - got)
    return {
        "max_difference": float(difference.max()),
        "mean_difference": float(difference.mean()),
        "srocc": float(metrics.srocc(reference.tolist(), got.tolist())),
    }


def measure(
    bundle: Bundle, reference: Callable[[], NDArray[np.float64]], o: argparse.Namespace
) -> list[dict[str, Any]]:
    """One row per backend and precision: differences from the reference, size ratio, whether the targets are met."""
    expected, rows = reference(), []
    for backend, precision in CASES:
        if backend not in backends():
            print(f"{backend} {precision}: not installed", flush=True)
            continue
        made = precision if precision in ("fp16", "int8") else "fp32"
        files = _files(bundle, made, o)
        try:
            networks = {f: open_session(path, backend, precision=precision) for f, path in files.items()}
        except BackendError as error:
            print(f"{backend} {precision}: {error}", flush=True)
            continue
        kept = o.work / f"{_digest(files)}-{networks[spec.DEPTH_FILE].backend.replace(' ', '-')}-{precision}.json"
        row = compared(expected, scores(networks, bundle.preprocess, o.images, kept))
        row |= {"size_ratio": _size(files) / _size(_files(bundle, "fp32", o))}
        trained = bundle.name == "small"
        met = row["max_difference"] <= BUDGETS[precision] and (not trained or row["srocc"] >= MIN_SROCC)
        rows.append({"bundle": bundle.name, "backend": backend, "precision": precision, **row, "met": bool(met)})
        print(_line(rows[-1]), flush=True)
    return rows


def compare_methods(bundle: Bundle, expected: NDArray[np.float64], o: argparse.Namespace) -> list[dict[str, Any]]:
    """Other ways to int8: every layer quantised and the search off, so that the calibration alone decides."""
    rows = []
    for method in METHODS:
        for calibrator in CALIBRATORS:
            out = o.work / f"{bundle.id}-{method}-{calibrator}"
            try:
                quantize_bundle(
                    bundle, "int8", out, calibration=o.calib, method=method, calibrator=calibrator, budget=np.inf
                )
            except (DgiqaError, ValueError) as error:
                print(f"{method} {calibrator}: {error}", flush=True)
                continue
            rows.append({"method": method, "calibrator": calibrator} | _on_onnxruntime(bundle, out, expected, o))
            print(rows[-1], flush=True)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    head = "| bundle | backend | precision | max abs. difference | mean | SROCC | size | target met |"
    return "\n".join([head, "|---|---|---|---|---|---|---|---|", *map(_line, rows)])


def full_bundle(work: Path) -> Bundle:
    """Networks of the published sizes with fixed-seed weights, exported once."""
    target = work / f"full-seed{SEED}"
    if not target.exists():
        from dgiqa.nn.bundling import build_bundle

        quality, depth = _full_networks()
        text = {"title": "untrained, for measuring", "licence": "Apache-2.0", "source": "random weights"}
        build_bundle(target, quality=quality, depth=depth, preprocess=spec.Preprocess(), name="full", **text)
    return load_bundle(target)


def torch_scores(p: spec.Preprocess, count: int, kept: Path) -> NDArray[np.float64]:
    """The full-size networks in eager PyTorch, through the reference pipeline: f64 [count]."""
    from dgiqa.nn.reference import score_reference

    known: list[float] = json.loads(kept.read_text()) if kept.is_file() else []
    quality, depth = _full_networks()
    for number, picture in enumerate(pictures(count)):
        if number >= len(known):
            known.append(float(score_reference(picture, depth, quality, p, "grid")[0]))
            kept.write_text(json.dumps(known))
    return np.array(known[:count])


def _full_networks() -> tuple[Any, Any]:
    import torch

    from dgiqa.nn.depth_anything import DepthAnything
    from dgiqa.nn.network import DGIQA

    torch.manual_seed(SEED)
    return DGIQA().eval(), DepthAnything("vits").eval()


def _originals() -> list[Picture]:
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


def _files(bundle: Bundle, precision: str, o: argparse.Namespace) -> dict[str, Path]:
    """The bundle's own files, or those quantised for a CPU, made once."""
    if precision == "fp32":
        return {file: bundle.file(file) for file in FILES}
    out = o.work / f"{bundle.id}-{precision}"
    if not (out / "report.json").is_file():
        made = quantize_bundle(bundle, precision, out, calibration=o.calib, progress=print)
        (out / "report.json").write_text(json.dumps(made.report))
    return {file: out / file for file in FILES}


def _on_onnxruntime(bundle: Bundle, out: Path, expected: NDArray[np.float64], o: argparse.Namespace) -> dict[str, Any]:
    files = {file: out / file for file in FILES}
    networks = {f: open_session(path, ONNXRUNTIME) for f, path in files.items()}
    kept = o.work / f"{_digest(files)}-compare.json"
    return compared(expected, scores(networks, bundle.preprocess, o.images, kept)) | {"bytes": _size(files)}


def _digest(files: dict[str, Path]) -> str:
    return hashlib.sha256("".join(sha256_of(path) for path in files.values()).encode()).hexdigest()[:12]


def _size(files: dict[str, Path]) -> int:
    return sum(path.stat().st_size for path in files.values())


def _line(row: dict[str, Any]) -> str:
    figures = (
        f"{row['max_difference']:.1e} | {row['mean_difference']:.1e} | {row['srocc']:.4f} | {row['size_ratio']:.3f}"
    )
    met = "yes" if row["met"] else "no"
    return f"| {row['bundle']} | {row['backend']} | {row['precision']} | {figures} | {met} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200, help="how many distorted photographs")
    parser.add_argument("--calib", type=Path, nargs="+", help="folder to calibrate on (default: golden images)")
    parser.add_argument("--full", action="store_true", help="also networks of the published sizes, untrained")
    parser.add_argument("--compare", action="store_true", help="also other methods and calibrators for int8")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the figures go")
    parser.add_argument(
        "--work", type=Path, default=user_cache() / "bench-precision", help="files and scores kept here"
    )
    o = parser.parse_args()
    if o.calib:
        o.work = o.work / hashlib.sha256(str(o.calib).encode()).hexdigest()[:8]
    o.work.mkdir(parents=True, exist_ok=True)
    small = load_bundle("small")
    fp32 = {f: open_session(path, ONNXRUNTIME) for f, path in _files(small, "fp32", o).items()}
    expected = scores(fp32, small.preprocess, o.images, o.work / f"{small.id}-expected.json")
    rows = measure(small, lambda: expected, o)
    record: dict[str, Any] = {"environment": environment_stamp(), "images": o.images, "side": SIDE}
    record |= {
        "calibration": [str(path) for path in o.calib or []] or "golden images",
        "reference_small": "onnxruntime fp32",
    }
    if o.compare:
        record["methods"] = compare_methods(small, expected, o)
    if o.full:
        full = full_bundle(o.work)
        rows += measure(full, lambda: torch_scores(full.preprocess, o.images, o.work / f"{full.id}-torch.json"), o)
        record["reference_full"] = "PyTorch fp32, untrained weights of fixed seed"
    o.json.parent.mkdir(parents=True, exist_ok=True)
    o.json.write_text(json.dumps(record | {"rows": rows}, indent=2) + "\n")
    print(f"\n{table(rows)}")


if __name__ == "__main__":
    main()
