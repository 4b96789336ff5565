"""Compare scores on this machine with those that a bundle was released with, and give a verdict.

The bundle contains golden images and their scores, computed when it was made. Any engine, machine or version that
reproduces these scores runs the same model.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import cv2
import numpy as np

from dgiqa import metrics
from dgiqa.bundle import GOLDEN, Bundle, Golden, golden_lines, load_golden
from dgiqa.compare import compare as compare_pictures
from dgiqa.dtypes import UInt8
from dgiqa.errors import ParityError
from dgiqa.image import decode
from dgiqa.score import Score

# How far a score in [0, 1] may move. In fp32, engines differ by only 1e-6; the rest allows for a depth value that falls
# on the other side of a uint8 step. Reduced precision must meet its budget on whole images only: tiles err two to three
# times as much as their mean (small bundle, int8: 2.3e-2 and 0.9e-2).
BUDGETS = {"fp32": 1e-4, "fp16": 2e-3, "int8": 2e-2, "fp8": 2e-2, "bf16": 2e-2}
TOLERANCE = BUDGETS["fp32"]


@dataclass(frozen=True)
class ParityRow:
    """One golden image. difference: of the image's score, or of its full-reference score if that differs more.

    tile_difference: the largest of its tiles' scores. reasons_difference: the largest of its reasons' probabilities.
    Both are infinite if the numbers of tiles or reasons differ.
    """

    file: str
    tiling: str
    expected: float
    got: float
    difference: float
    tile_difference: float
    reasons_difference: float = 0.0


@dataclass(frozen=True)
class ParityReport:
    """The result of `verify_bundle`. max_difference, over images, and in fp32 over tiles and reasons, too, decides.

    mean_difference: over images. max_tile_difference: over tiles. max_reasons_difference: over reasons.
    share: max_difference / tolerance.
    """

    bundle: str
    backend: str
    tolerance: float
    max_difference: float
    share: float
    passed: bool
    rows: tuple[ParityRow, ...]
    mean_difference: float
    max_tile_difference: float
    max_reasons_difference: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON: a difference that is NaN or infinite becomes None."""
        return {name: _json_safe(value) for name, value in asdict(self).items()}


class Candidate(Protocol):
    """The side to judge: an open bundle, as `forward.Stages` or a Scorer."""

    @property
    def bundle(self) -> Bundle: ...

    @property
    def backend(self) -> str: ...

    @property
    def precision(self) -> str: ...

    def score(self, source: Any, /, *, tiling: str | None = None) -> Score: ...


class Reference(Protocol):
    """The side to compare engines with: another Scorer, or PyTorch (`dgiqa.nn.reference.TorchScorer`)."""

    @property
    def backend(self) -> str: ...

    def score(self, source: UInt8, /) -> Any:
        """Score uint8 [H,W,3] RGB. Return an object whose `value` is the score."""


@dataclass(frozen=True)
class SweepRow:
    """One distorted golden image, scored by the reference (expected) and by the engine (got)."""

    file: str
    distortion: str
    expected: float
    got: float
    difference: float


@dataclass(frozen=True)
class Sweep:
    """The result of `sweep` over `images` pictures. share: max_difference / tolerance.

    srocc: between the engine's and the reference's scores; NaN if either side's are constant or not finite.
    worst: the rows that differ most, worst first.
    """

    reference: str
    backend: str
    tolerance: float
    images: int
    max_difference: float
    mean_difference: float
    srocc: float
    share: float
    passed: bool
    worst: tuple[SweepRow, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON: NaN and infinite become None."""
        return {name: _json_safe(value) for name, value in asdict(self).items()}


def verify_bundle(bundle: Bundle, scorer: Candidate, tolerance: float | None = None) -> ParityReport:
    """Score the bundle's golden images with `scorer` and compare: every image must be within `tolerance`.

    tolerance: by default BUDGETS of the scorer's precision. In fp32 every tile must be within it as well. In reduced
    precision tiles err more than their mean, and are only reported.
    Raises BundleError if the bundle has no golden images, ValueError if the scorer runs another bundle.
    """
    if scorer.bundle.id != bundle.id:
        raise ValueError(f"the scorer runs {scorer.bundle.id}, wanted one that runs {bundle.id}: Scorer(bundle)")
    tolerance = BUDGETS[scorer.precision] if tolerance is None else tolerance
    rows = [_row(bundle, golden, scorer) for golden in load_golden(bundle)]
    return compare(bundle.id, scorer.backend, rows, tolerance, tiles=scorer.precision == "fp32")


def compare(
    bundle: str, backend: str, rows: Iterable[ParityRow], tolerance: float, *, tiles: bool = True
) -> ParityReport:
    """The verdict on rows. It fails if a difference is NaN, if the tiling differs, or if there are no rows.

    tiles: whether tiles and reasons decide, too.
    """
    rows = tuple(rows)
    images, of_tiles = [row.difference for row in rows], [row.tile_difference for row in rows]
    of_reasons = [row.reasons_difference for row in rows]
    # an infinite difference means another tiling or a lost output, so another model, whatever the mean is
    deciding = images + [d for d in of_tiles + of_reasons if tiles or not math.isfinite(d)]
    return ParityReport(
        bundle=bundle,
        backend=backend,
        **_verdict(deciding, tolerance),
        rows=rows,
        mean_difference=sum(images) / len(images) if images else math.nan,
        max_tile_difference=_worst(of_tiles),
        max_reasons_difference=_worst(of_reasons),
    )


def sweep(
    scorer: Candidate, reference: Reference, tolerance: float | None = None, worst: int = 5, *, quick: bool = False
) -> Sweep:
    """Score the golden images under DISTORTIONS with both sides, and compare image by image.

    tolerance: by default BUDGETS of the scorer's precision. worst: the number of rows to keep. quick: no distortions.
    Raises BundleError if the bundle has no golden images.
    """
    tolerance = BUDGETS[scorer.precision] if tolerance is None else tolerance
    rows = []
    for golden in load_golden(scorer.bundle):
        rgb = decode((scorer.bundle.path / golden.file).read_bytes())
        for distortion, distort in list(DISTORTIONS.items())[: 1 if quick else None]:
            image = distort(rgb)
            expected, got = (which.score(image).value for which in (reference, scorer))
            rows.append(SweepRow(golden.file, distortion, expected, got, abs(got - expected)))
    differences = [row.difference for row in rows]
    scores = [[row.expected for row in rows], [row.got for row in rows]]
    comparable = all(len(set(side)) > 1 and all(map(math.isfinite, side)) for side in scores)
    return Sweep(
        reference=reference.backend,
        backend=scorer.backend,
        **_verdict(differences, tolerance),
        images=len(rows),
        mean_difference=sum(differences) / len(rows),
        srocc=metrics.srocc(*scores) if comparable else math.nan,
        worst=tuple(sorted(rows, key=_badness, reverse=True)[:worst]),
    )


def certify(bundle: Bundle, scorer: Candidate) -> dict[str, Any]:
    """Score the golden images. Return the certificate to keep with an engine; ParityError if it is over budget."""
    report = verify_bundle(bundle, scorer)
    if not report.passed:
        worst = max(report.rows, key=_badness)
        found = f"scores differ by up to {report.max_difference:.1e} ({worst.file}), allowed is {report.tolerance:g}"
        raise ParityError(f"{report.backend}: {found}; choose another precision or calibration")
    record = {key: value for key, value in report.as_dict().items() if key != "rows"}
    return record | {"images": len(report.rows)}


def golden_files(
    images: Iterable[bytes],
    score: Callable[[bytes], Score],
    *,
    near: Callable[[bytes], float | None] = lambda data: None,
) -> dict[str, bytes]:
    """The files that make a bundle verifiable, ready for `bundle.write_bundle`: golden/01.png … and golden.jsonl.

    images: encoded images. score: gives the true scores; the reference pipeline, or a scorer that was compared with it.
    near: gives the full-reference score of the pair that `beside` makes of an image, if the bundle compares pictures.
    """
    files, golden = {}, []
    for number, data in enumerate(images, 1):
        name, result = f"golden/{number:02d}.png", score(data)
        files[name], digest = data, hashlib.sha256(data).hexdigest()
        scores, reasons = tuple(result.tile_scores.tolist()), tuple(result.reasons.values())
        golden.append(Golden(name, digest, result.tiling, result.value, scores, reasons, near(data)))
    return {**files, GOLDEN: golden_lines(golden)}


def beside(data: bytes) -> tuple[UInt8, UInt8]:
    """A golden image's bytes as (a worse picture, the image itself), uint8 [H,W,3], for a full-reference score."""
    rgb = decode(data)
    return DISTORTIONS["noise 10"](rgb), rgb


def _row(bundle: Bundle, golden: Golden, scorer: Candidate) -> ParityRow:
    got = scorer.score(bundle.path / golden.file, tiling=golden.tiling)
    apart = [abs(got.value - golden.score)]
    if golden.full_reference is not None:
        pair = beside((bundle.path / golden.file).read_bytes())
        stages: Any = getattr(scorer, "stages", scorer)
        near = compare_pictures(stages, *pair, tiling=golden.tiling).full_reference
        apart.append(math.nan if near is None else abs(near - golden.full_reference))
    return ParityRow(
        golden.file,
        golden.tiling,
        golden.score,
        got.value,
        _worst(apart),
        _apart(got.tile_scores.tolist(), golden.tile_scores),
        _apart(list(got.reasons.values()), golden.reasons) if golden.reasons else 0.0,
    )


def _apart(got: Sequence[float], wanted: Sequence[float]) -> float:
    """The largest difference; infinite if the numbers of scores differ, since that is another model."""
    return _worst([abs(a - b) for a, b in zip(got, wanted, strict=True)]) if len(got) == len(wanted) else math.inf


def _badness(row: ParityRow | SweepRow) -> tuple[bool, float]:
    """A key to sort by, with NaN as the worst."""
    return math.isnan(row.difference), row.difference


def _blurred(rgb: UInt8, sigma: float) -> UInt8:
    return np.asarray(cv2.GaussianBlur(rgb, (0, 0), sigma), np.uint8)


def _noisy(rgb: UInt8, sigma: float) -> UInt8:
    noise = np.random.default_rng(0).normal(0, sigma, rgb.shape)  # the same on every machine
    return np.asarray(np.clip(np.rint(rgb + noise), 0, 255), np.uint8)


def _compressed(rgb: UInt8, quality: int) -> UInt8:
    encoded = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.ascontiguousarray(np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR), np.uint8)[..., ::-1])


DISTORTIONS: dict[str, Callable[[UInt8], UInt8]] = {
    "none": lambda rgb: rgb,
    "blur 1.5": lambda rgb: _blurred(rgb, 1.5),
    "blur 4": lambda rgb: _blurred(rgb, 4),
    "noise 10": lambda rgb: _noisy(rgb, 10),
    "noise 40": lambda rgb: _noisy(rgb, 40),
    "jpeg 30": lambda rgb: _compressed(rgb, 30),
    "jpeg 8": lambda rgb: _compressed(rgb, 8),
    "dark 0.5": lambda rgb: np.rint(rgb * 0.5).astype(np.uint8),
    "dark 0.2": lambda rgb: np.rint(rgb * 0.2).astype(np.uint8),
}


def _worst(differences: Sequence[float]) -> float:
    return math.nan if any(map(math.isnan, differences)) else max(differences, default=math.nan)


def _verdict(differences: Sequence[float], tolerance: float) -> dict[str, Any]:
    worst = _worst(differences)
    return {
        "tolerance": tolerance,
        "max_difference": worst,
        "share": worst / tolerance if tolerance > 0 else math.inf if worst else 0.0,
        "passed": bool(differences) and all(d <= tolerance for d in differences),  # NaN <= x is false
    }


def _json_safe(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _json_safe(held) for name, held in value.items()}
    if isinstance(value, tuple):
        return [_json_safe(held) for held in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
