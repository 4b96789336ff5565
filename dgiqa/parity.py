"""Scores on this machine, compared with those a bundle was released with, become a verdict.

The golden images travel in the bundle; their scores were computed when it was made. Any engine, machine or version
that reproduces them runs the same model.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dgiqa.bundle import GOLDEN, Bundle, Golden, load_golden

if TYPE_CHECKING:
    from dgiqa.scorer import Score, Scorer

# Of one score in [0, 1], fp32. Engines differ by 1e-6 themselves; a depth value that falls on the other side of a uint8
# step is what the rest is for.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class ParityRow:
    """One golden image. difference: of the image's score; tile_difference: the largest of its tiles' scores."""

    file: str
    tiles: str
    expected: float
    got: float
    difference: float
    tile_difference: float


@dataclass(frozen=True)
class ParityReport:
    """What `verify_bundle` found. max_difference: over images and tiles. share: max_difference / tolerance."""

    bundle: str
    backend: str
    tolerance: float
    max_difference: float
    share: float
    passed: bool
    rows: tuple[ParityRow, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON: a difference that is NaN or infinite becomes None."""
        record = asdict(self) | {"rows": [_json_safe(asdict(row)) for row in self.rows]}
        return _json_safe(record)


def verify_bundle(bundle: Bundle, scorer: Scorer, tolerance: float = TOLERANCE) -> ParityReport:
    """Score the bundle's golden images with `scorer` and compare: within `tolerance`, every image and every tile.

    Raises BundleError if the bundle has no golden images, ValueError if the scorer runs another bundle.
    """
    if scorer.bundle.id != bundle.id:
        raise ValueError(f"the scorer runs {scorer.bundle.id}, wanted one that runs {bundle.id}: Scorer(bundle)")
    return compare(bundle.id, scorer.backend, [_row(bundle, g, scorer) for g in load_golden(bundle)], tolerance)


def compare(bundle: str, backend: str, rows: Iterable[ParityRow], tolerance: float) -> ParityReport:
    """The verdict over rows. A difference that is NaN fails, as does having no row at all."""
    rows = tuple(rows)
    differences = [d for row in rows for d in (row.difference, row.tile_difference)]
    passed = bool(rows) and all(d <= tolerance for d in differences)  # NaN <= x is false
    worst = math.nan if any(map(math.isnan, differences)) else max(differences, default=math.nan)
    share = worst / tolerance if tolerance > 0 else math.inf if worst else 0.0
    return ParityReport(bundle, backend, tolerance, worst, share, passed, rows)


def golden_files(images: Iterable[bytes], score: Callable[[bytes], Score], suffix: str = ".png") -> dict[str, bytes]:
    """The files that make a bundle verifiable, ready for `bundle.write_bundle`: golden/01.png … and golden.jsonl.

    images: encoded images. score: what defines the truth; the reference pipeline, or the scorer that was compared
    with it.
    """
    files, lines = {}, []
    for number, data in enumerate(images, 1):
        name, result = f"golden/{number:02d}{suffix}", score(data)
        files[name] = data
        record = {
            "file": name,
            "sha256": hashlib.sha256(data).hexdigest(),
            "tiles": result.tiles,
            "score": result.value,
            "tile_scores": result.tile_scores.tolist(),
        }
        lines.append(json.dumps(record, allow_nan=False) + "\n")
    return {**files, GOLDEN: "".join(lines).encode()}


def _row(bundle: Bundle, golden: Golden, scorer: Scorer) -> ParityRow:
    got = scorer.score(bundle.path / golden.file, tiles=golden.tiles)
    pairs = list(zip(got.tile_scores.tolist(), golden.tile_scores, strict=False))
    tile_difference = max((abs(a - b) for a, b in pairs), default=math.nan)
    if len(got.tile_scores) != len(golden.tile_scores):  # another tiling is another model, whatever the mean says
        tile_difference = math.inf
    return ParityRow(golden.file, golden.tiles, golden.score, got.value, abs(got.value - golden.score), tile_difference)


def _json_safe(record: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
