"""A picture and its reference become a Comparison: both scores, the drop, and a full-reference score.

Both go through the same pass with the same windows, so tiles are compared in pairs. The contents of a tile, such as
sky, drop out of the difference, so its standard error is much smaller than the scores'.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dgiqa import spec
from dgiqa.dtypes import Float32
from dgiqa.errors import BundleError, ImageError
from dgiqa.forward import Stages
from dgiqa.full_reference import likeness
from dgiqa.image.sources import Source, name_of
from dgiqa.report.rows import Row, columns, rounded, row_of
from dgiqa.score import Score, mean_and_error


@dataclass(frozen=True, eq=False)
class Comparison:
    """How good a picture looks compared with its reference.

    score, reference: each picture's own. drop: reference's value less the picture's, above 0 where quality was lost;
    drop_error: its standard error over the pairs of tiles, None for a single tile. tile_drops: f32 [n].
    full_reference: how close the picture looks to its reference, in [0, 1]. A model that has learned it gives it for
    each tile, too (tile_full_reference: f32 [n]). Otherwise it is `full_reference.likeness` of the pictures at their
    own size, None for pictures on a GPU.
    """

    score: Score
    reference: Score
    drop: float
    drop_error: float | None
    tile_drops: Float32
    full_reference: float | None = None
    tile_full_reference: Float32 | None = field(default=None, repr=False)

    def as_row(self, *, max_drop: float | None = None, fail_under: float | None = None) -> Row:
        """The comparison as a row of `dgiqa-rt compare`; see docs/rows.md.

        max_drop, fail_under: the limits of drop and full_reference that decide its verdict.
        """
        lost = max_drop is not None and self.drop > max_drop
        far = fail_under is not None and (self.full_reference or 0) < fail_under
        judged = max_drop is not None or fail_under is not None
        picture, reference = self.score.as_row(), self.reference.as_row()
        row = row_of("pair") | {name: picture[name] for name in picture.keys() & set(columns("pair"))}
        return row | {
            "ms": rounded(picture["ms"] + reference["ms"], 2),
            "verdict": ("fail" if lost or far else "pass") if judged else None,
            "reference": self.reference.source,
            "reference_score": reference["score"],
            "drop": rounded(self.drop, 6),
            "drop_error": rounded(self.drop_error, 6),
            "full_reference": rounded(self.full_reference, 6),
        }


def compare(
    stages: Stages,
    picture: Source,
    reference: Source,
    *,
    name: str | None = None,
    reference_name: str | None = None,
    tiling: str | None = None,
) -> Comparison:
    """Compare two pictures of the same size. Raises ImageError if their sizes differ, and as `Stages.score` does."""
    stages, named = stages.tiled(tiling), ((picture, name), (reference, reference_name))
    works = [stages.prepare(source, called or name_of(source), look=True, keep=True) for source, called in named]
    sizes = [f"{work.width} x {work.height}" for work in works]
    if sizes[0] != sizes[1]:
        raise ImageError(f"{works[0].source} is {sizes[0]}, its reference {sizes[1]}; resize one to the other's size")
    stages.run(works)
    scores = [stages.finish(work) for work in works]
    drops = scores[1].tile_scores - scores[0].tile_scores
    drop, error = mean_and_error(drops)
    near: dict[str, Any] = {}
    if (head := stages.bundle.full_reference) is not None:
        features = [work.extra.get(spec.QUALITY_FEATURES) for work in works]
        if features[0] is None or features[1] is None:
            raise BundleError(f"{stages.bundle.id} compares features, and its network gives none; export it again")
        tiles = head.score(features[0], features[1])
        near = {"full_reference": float(tiles.mean(dtype=np.float64)), "tile_full_reference": tiles}
    elif (own := works[0].pixels) is not None and (wanted := works[1].pixels) is not None:  # a GPU's never came
        near = {"full_reference": likeness(own, wanted)}
    return Comparison(scores[0], scores[1], drop, error, drops, **near)
