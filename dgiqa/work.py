"""An image between the two halves of its pass: prepared, its windows taken by batch after batch, scores entered."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from dgiqa.attributes import Attributes
from dgiqa.dtypes import Float32, Int32, UInt8


@dataclass(eq=False)
class Work:
    """One image between the two halves of its pass. Its tiles are cut from the working image when their batch runs: as
    floats they take 1.2 MB each, and neither look-ahead nor a thousand windows should cost that."""

    source: str
    tiling: str
    height: int
    width: int
    rgb: UInt8  # [h,w,3] working image
    depth: UInt8 | None  # [h,w]; None where the quality network takes no depth
    windows: Int32  # [n,2]
    timings_ms: dict[str, float]
    tile_scores: Float32  # [n], those of settled batches
    taken: int = 0  # windows that are in a batch, the first ones
    settled: int = 0  # windows whose score is known
    attributes: Attributes | None = None
    notes: tuple[str, ...] = ()  # what else to know about the picture
    extra: dict[str, Float32] = field(default_factory=dict)  # further outputs of the network, [n,columns]
    pixels: UInt8 | None = None  # [height,width,3] as decoded, where they were to be kept

    @property
    def left(self) -> int:
        """Windows that no batch has taken."""
        return len(self.windows) - self.taken

    @property
    def complete(self) -> bool:
        return self.settled == len(self.windows)


@dataclass(frozen=True, eq=False)
class Part:
    """`count` windows of one image, from number `begin` on."""

    work: Work
    begin: int
    count: int


@dataclass(frozen=True, eq=False)
class PartScores:
    """Scores of one Part from one run. scores: f32 [count]. The times are this part's own, ms.

    extra: further outputs of the network by name, f32 [count,columns].
    """

    scores: Float32
    cut_ms: float
    run_ms: float
    extra: dict[str, Float32] = field(default_factory=dict)


def enter(part: Part, found: PartScores) -> None:
    """Put a part's scores and times into its image."""
    work = part.work
    work.tile_scores[part.begin : part.begin + part.count] = found.scores
    for name, values in found.extra.items():
        rows = work.extra.setdefault(name, np.full((len(work.windows), values.shape[1]), np.nan, np.float32))
        rows[part.begin : part.begin + part.count] = values
    work.settled += part.count
    for stage, ms in (("tiles", found.cut_ms), ("quality", found.run_ms)):
        work.timings_ms[stage] = work.timings_ms.get(stage, 0.0) + ms


def take(works: Iterable[Work], batch: int) -> list[Part]:
    """The first `batch` windows of these works that no batch has taken yet; now this one has."""
    parts = []
    for work in works:
        if count := min(work.left, batch):
            parts.append(Part(work, work.taken, count))
            work.taken += count
            batch -= count
    return parts
