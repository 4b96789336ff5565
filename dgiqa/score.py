"""What comes out at the other end: a Score with its evidence, or a Failure with its reason."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dgiqa.attributes import Attributes
from dgiqa.dtypes import Float32, Float64, Floating, Int32
from dgiqa.report.rows import rounded, row_of


@dataclass(frozen=True, eq=False)
class Score:
    """How good one image looks, with the evidence.

    value: mean of tile_scores, in [0, 1], higher is better.
    std_error: sample standard deviation of tile_scores / sqrt(n); None for a single tile, which has no spread.
    tile_scores: f32 [n]. windows: int32 [n,2], each tile's top-left (y, x) in pixels of the working image, which is
    the image resized to working_height x working_width; `windows_original` maps them back. tile: side of a window.
    width, height: of the image as decoded (after EXIF rotation), pixels. tiling: how tiles were laid out; tiles: how
    many. timings_ms: wall time per stage (STAGES); a batch shared with other images counts by this image's share of its
    tiles, and time spent waiting for other images is left out. An image on a GPU has the one stage "device".
    bundle: the bundle's id. backend: what ran the networks. source: path, given name, "<bytes>", "<array>", ...
    reasons: probability of each kind of fault that the bundle knows, mean over the tiles; faults: those that reach
    their thresholds, the clearest first, see `meaning.words`. verdict: "pass" or "fail" where the scorer has a
    threshold. note: what was done to the file ("HDR (PQ) tone-mapped to SDR") and what the score does not cover ("looks
    like a screenshot ..."), or "". attributes: measured from the picture; None if it was not. tile_features:
    f32 [n,C], where the scorer was asked for them.
    """

    value: float
    std_error: float | None
    tile_scores: Float32
    windows: Int32
    tile: int
    width: int
    height: int
    working_width: int
    working_height: int
    tiling: str
    timings_ms: dict[str, float]
    bundle: str
    backend: str
    source: str
    reasons: dict[str, float] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    verdict: str | None = None
    note: str = ""
    attributes: Attributes | None = None
    tile_features: Float32 | None = None

    @property
    def tiles(self) -> int:
        """Number of tiles that the value is the mean of."""
        return len(self.tile_scores)

    @property
    def features(self) -> Float32 | None:
        """Mean over the tiles of the last layer's input: f32 [C]."""
        return None if self.tile_features is None else self.tile_features.mean(0)

    @property
    def windows_original(self) -> Float64:
        """The tiles as (y, x, height, width) in pixels of the image as decoded: f64 [n,4]."""
        scale = np.array([self.height / self.working_height, self.width / self.working_width])
        corners = self.windows * scale
        return np.concatenate([corners, np.broadcast_to(self.tile * scale, corners.shape)], axis=1)

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain numbers, strings, lists and dicts, ready for JSON. Files hold `as_row` instead."""
        record = {name: getattr(self, name) for name in self.__dataclass_fields__}
        record |= {"tile_scores": self.tile_scores.tolist(), "windows": self.windows.tolist()}
        record |= {"reasons": dict(self.reasons), "faults": list(self.faults), "timings_ms": dict(self.timings_ms)}
        record["attributes"] = self.attributes and self.attributes.as_dict()
        features = record.pop("tile_features")
        return record | {"features": None if features is None else features.mean(0).tolist()}

    def as_row(self, *, details: bool = False) -> dict[str, Any]:
        """The score as a row of the command line's files, see docs/rows.md. details: with tiles, windows and times.

        Scores are rounded to 6 decimals, times to 0.01 ms.
        """
        row = row_of(
            "image",
            path=self.source,
            score=rounded(self.value, 6),
            std_error=rounded(self.std_error, 6),
            width=self.width,
            height=self.height,
            tiles=self.tiles,
            tiling=self.tiling,
            bundle=self.bundle,
            backend=self.backend,
            ms=rounded(sum(self.timings_ms.values()), 2),
            verdict=self.verdict,
            reasons=list(self.faults) if self.reasons else None,
            note=self.note or None,
        )
        if details:
            row["tile_scores"] = [rounded(value, 6) for value in self.tile_scores.tolist()]
            row["windows"] = self.windows_original.round(1).tolist()
            row["timings_ms"] = {stage: rounded(ms, 2) for stage, ms in self.timings_ms.items()}
            row["reason_probabilities"] = {name: rounded(p, 4) for name, p in self.reasons.items()} or None
            row["attributes"] = self.attributes.as_dict() if self.attributes else None
        return row

    def __float__(self) -> float:
        return self.value

    def __repr__(self) -> str:
        spread = "" if self.std_error is None else f" ± {self.std_error:.4f}"
        return f"Score({self.value:.4f}{spread}, {len(self.windows)} tiles, {self.source!r}, {self.bundle})"


@dataclass(frozen=True)
class Failure:
    """Why one image of many got no score. error: the exception's type name, for example "ImageError"."""

    source: str
    error: str
    message: str
    # Kept only until it is raised: its traceback holds the decoded image, and a list of failures would hold them all.
    exception: Exception | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        """The message, with its source where that does not name it."""
        return self.message if self.source in self.message else f"{self.source}: {self.message}"

    def as_dict(self) -> dict[str, Any]:
        """The three strings, ready for JSON."""
        return {"source": self.source, "error": self.error, "message": self.message}


def mean_and_error(values: Floating) -> tuple[float, float | None]:
    """The mean of values [n] and its standard error, which is None for a single value."""
    n = len(values)
    mean = float(values.mean(dtype=np.float64))
    return mean, float(values.std(ddof=1, dtype=np.float64)) / math.sqrt(n) if n > 1 else None
