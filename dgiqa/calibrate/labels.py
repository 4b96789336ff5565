"""A table of images and opinions about them becomes labels in [0, 1], 1 = best.

The first row may name the columns (`image` and `score`, or the first two). A label is a number or a word (good, bad,
yes, no, ...). Several rows of one image are several people's opinions; their mean counts.
"""

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dgiqa.dtypes import Float64
from dgiqa.errors import DgiqaError

GOOD = {"good", "yes", "y", "true", "pass", "ok", "keep", "accept"}
BAD = {"bad", "no", "n", "false", "fail", "reject", "drop"}
IMAGE_COLUMNS = ("image", "path", "file", "filename", "name", "image name")
SCORE_COLUMNS = ("score", "mos", "label", "rating", "quality", "good")
SCALES = ((0.0, 1.0), (1.0, 5.0), (0.0, 10.0), (0.0, 100.0))  # tried in this order where no range is given


class LabelError(DgiqaError):
    """A table of labels cannot be read as one."""


@dataclass(frozen=True)
class Labels:
    """images: as the table names them, each once. values: f64 [n] in [0, 1], 1 = best.

    range: what 0 and 1 are on the table's own scale. binary: whether every label is good or bad.
    """

    images: tuple[str, ...]
    values: Float64
    range: tuple[float, float]
    binary: bool

    def own(self, value: float) -> float:
        """A value in [0, 1] on the table's own scale."""
        return self.range[0] + value * (self.range[1] - self.range[0])


def read_labels(path: str | Path, scale: tuple[float, float] | None = None, *, lower_is_better: bool = False) -> Labels:
    """Read a CSV file (or one with tabs or semicolons).

    scale: the lowest and highest possible label; None takes the first of SCALES that holds them all.
    Raises LabelError, which names the row, for any other table.
    """
    rows = list(_rows(Path(path)))
    if not rows:
        raise LabelError(f"{path} has no labels; wanted rows of image,score or image,good|bad")
    numbers = np.array([number for _, number, _ in rows])
    binary = all(word for *_, word in rows) or (scale is None and set(numbers) <= {0.0, 1.0})
    least, most = numbers.min(), numbers.max()
    found = [(0.0, 1.0)] if binary else [scale] if scale else [s for s in SCALES if s[0] <= least and most <= s[1]]
    there = f"{path} has labels from {least:g} to {most:g}"
    if not found:
        raise LabelError(f"{there}, on no usual scale; give --range LOWEST HIGHEST")
    low, high = found[0]
    if any(word for *_, word in rows) and not binary:
        raise LabelError(f"{path} mixes words and numbers; use one or the other")
    if least < low or most > high:
        raise LabelError(f"{there}, outside of {low:g}..{high:g}")
    opinions: dict[str, list[float]] = {}
    for image, number, _ in rows:
        opinions.setdefault(image, []).append((number - low) / (high - low))
    values = np.array([np.mean(each) for each in opinions.values()])
    if np.ptp(values) == 0:
        raise LabelError(f"{path} has one label for all images, {numbers[0]:g}; there is nothing to learn from")
    if lower_is_better:
        values, low, high = 1 - values, high, low
    return Labels(tuple(opinions), values, (low, high), bool(binary))


def _rows(path: Path) -> Iterator[tuple[str, float, bool]]:
    """(image, number, whether it was a word) of every row below the names of the columns."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise LabelError(f"{path} cannot be read as a table ({error}); wanted a CSV file in UTF-8") from error
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    table = [(number, row) for number, row in enumerate(csv.reader(text.splitlines(), delimiter=delimiter), 1) if row]
    image_at, score_at, named = _columns(table[0][1] if table else [])
    for number, row in table[named:]:
        if not any(cell.strip() for cell in row):
            continue
        if len(row) <= max(image_at, score_at):
            raise LabelError(f"{path}, row {number}: got {len(row)} cells, wanted an image and a label")
        value, word = _label(row[score_at])
        if not row[image_at].strip() or not math.isfinite(value):
            raise LabelError(f"{path}, row {number}: {row[score_at]!r} is not a label; wanted a number, good or bad")
        yield row[image_at].strip(), value, word


def _columns(first: list[str]) -> tuple[int, int, int]:
    """The columns of images and of labels, and how many rows name the columns (0 or 1)."""
    names = [cell.strip().lower() for cell in first]
    image = next((names.index(name) for name in IMAGE_COLUMNS if name in names), None)
    score = next((names.index(name) for name in SCORE_COLUMNS if name in names), None)
    if image is not None and score is not None and image != score:
        return image, score, 1
    named = len(first) > 1 and math.isnan(_label(first[1])[0])
    return 0, 1, int(named)


def _label(cell: str) -> tuple[float, bool]:
    """(number, whether it was a word); the number is NaN for neither."""
    word = cell.strip().lower()
    if word in GOOD | BAD:
        return float(word in GOOD), True
    try:
        return float(word), False
    except ValueError:
        return math.nan, False
