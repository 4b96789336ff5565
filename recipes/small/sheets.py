"""Photographs that may be shown, and worse versions of them, become the pictures of the card and of the page on scores.

    python -m recipes.small.sheets --bundle small [--kodak FOLDER] [--out bench/results/pictures.json] [--docs docs]

writes docs/explanation/deciles.jpg (pictures that score 0.0 to 0.1, 0.1 to 0.2, ...), docs/failures.jpg (pictures with
the worst scores) and a table of the latter for `recipes.small.card`. The photographs are scikit-image's and
scikit-learn's, and Kodak's (`--kodak`), which Eastman Kodak released for unrestricted use.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dgiqa.meaning import words
from recipes.small import chains, encoding, measures
from recipes.small.card import ROOT
from recipes.small.card import words as type_words
from recipes.small.measures import as_json

Bytes = NDArray[np.uint8]
CREDITS = (
    "Photographs: scikit-image's astronaut (NASA, public domain), chelsea (Stéfan van der Walt, CC0), coffee (Rachel "
    "Michetti, CC0) and rocket (SpaceX, CC0); scikit-learn's china (danielbuechele) and flower (vultilion), both CC "
    "BY 2.0"
)
KODAK = "; kodim01 to kodim24 of the Kodak Lossless True Color Image Suite (Eastman Kodak Company, unrestricted use)"
KINDS = (*measures.BAD, "impulse_noise", "jitter", "color_shift", "color_saturation_1", "brighten", "color_block")
MIXTURES = (("gaussian_blur", "jpeg"), ("low_light", "grain"))
LEVELS = (2, 3, 4, 5)
CELL = (180, 135)  # of a sheet, pixels
COLUMNS = 8
FAILURES = 16
PAPER, INK = (255, 255, 255), (30, 30, 30)


@dataclass(frozen=True)
class Version:
    """One picture of a sheet. level: 0 for the photograph as it is."""

    picture: str
    what: str
    kind: str
    level: int
    rgb: Bytes
    score: float
    told: str


def photographs(kodak: Path | None) -> dict[str, Bytes]:
    """Photographs that may be shown, uint8 [H,W,3], by name."""
    from skimage import data
    from sklearn.datasets import load_sample_image

    found = {f.__name__: f() for f in (data.astronaut, data.chelsea, data.coffee, data.rocket)}
    found |= {name: load_sample_image(f"{name}.jpg") for name in ("china", "flower")}
    if kodak:
        files = sorted(kodak.glob("*.png"), key=lambda path: int("".join(filter(str.isdigit, path.stem))))
        found |= {f"kodim{n:02}": np.asarray(Image.open(f).convert("RGB")) for n, f in enumerate(files, 1)}
    return {name: np.ascontiguousarray(rgb) for name, rgb in found.items()}


def versions(judge: measures.Judge, shown: dict[str, Bytes], each: int) -> list[Version]:
    """Every photograph as it is and in `each` random worse versions, as JPEG 90, scored."""
    rng, made = np.random.default_rng(0), []
    for n, (name, rgb) in enumerate(shown.items()):
        made.append((name, "as it is", "", 0, rgb))
        made.append((name, "black and white", "", 0, np.repeat(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)[..., None], 3, 2)))
        cells = [(kind, level) for kind in KINDS for level in LEVELS]
        for first, second in MIXTURES:
            worst = chains.apply(chains.apply(rgb, first, 5, n), second, 5, n)
            made.append((name, f"{type_words(first)}, {type_words(second)}", first + second, 5, worst))
        for index in rng.choice(len(cells), min(each, len(cells)), replace=False):
            kind, level = cells[index]
            made.append((name, f"{type_words(kind)}, level {level}", kind, level, chains.apply(rgb, kind, level, n)))
    saved = [encoding.save(rgb, "jpeg", 90) for *_, rgb in made]
    scored = judge.full(saved)
    return [Version(*made[i][:4], saved[i], scored[i].value, words(scored[i].faults[:3])) for i in range(len(made))]


def failures(found: Sequence[Version], upload: float) -> list[tuple[Version, str]]:
    """Level 5 versions that score highest, at most two of a type, and untouched photographs that score lowest."""
    high = sorted((v for v in found if v.level == 5 and v.score >= upload), key=lambda v: -v.score)
    low = sorted((v for v in found if v.level == 0 and v.score < upload), key=lambda v: v.score)
    chosen = [(v, "the worst level, and it passes") for v in at_most(high, 2)]
    return [*[(v, "no fault was added, and it fails") for v in at_most(low, 4)][: FAILURES // 2], *chosen][:FAILURES]


def at_most(versions: Sequence[Version], count: int) -> list[Version]:
    """The first `count` of each type."""
    kept: list[Version] = []
    for v in versions:
        if sum((k.kind or k.what) == (v.kind or v.what) for k in kept) < count:
            kept.append(v)
    return kept


def deciles(found: Sequence[Version]) -> list[list[Version]]:
    """Ten rows, the best first: at most COLUMNS versions in each tenth of the scale, each of another photograph."""
    rng, rows = np.random.default_rng(1), []
    for tenth in reversed(range(10)):
        inside = [v for v in found if tenth / 10 <= v.score < (tenth + 1) / 10 or (tenth == 9 and v.score >= 1)]
        row: list[Version] = []
        for i in rng.permutation(len(inside)):
            v = inside[i]
            if all(v.picture != r.picture and (v.kind != r.kind or not v.kind) for r in row):
                row.append(v)
        rows.append(sorted(row[:COLUMNS], key=lambda v: -v.score))
    return rows


def sheet(rows: Sequence[tuple[str, Sequence[Version]]]) -> Image.Image:
    """Rows of versions, one below the other, each with its score, distortion and the faults that the model names."""
    width, height = CELL[0] + 8, CELL[1] + 38
    left = 64 if any(title for title, _ in rows) else 4
    columns = max((len(row) for _, row in rows), default=1)
    page = Image.new("RGB", (left + columns * width, max(1, len(rows)) * height), PAPER)
    draw, small, large = ImageDraw.Draw(page), ImageFont.load_default(11), ImageFont.load_default(15)
    for y, (title, row) in enumerate(rows):
        draw.text((6, y * height + 50), title, INK, large)
        if not row:
            draw.text((left + 4, y * height + 50), "none of the versions", INK, small)
        for x, v in enumerate(row):
            corner = (left + x * width, y * height + 4)
            page.paste(_fitted(v.rgb), corner)
            draw.text((corner[0], corner[1] + CELL[1] + 1), f"{v.score:.2f}  {v.what}"[:36], INK, small)
            draw.text((corner[0], corner[1] + CELL[1] + 15), v.told[:34], (120, 120, 120), small)
    return page


def _fitted(rgb: Bytes) -> Image.Image:
    """A version, cut to a cell's shape and reduced to its size."""
    aspect, (h, w) = CELL[0] / CELL[1], rgb.shape[:2]
    ch, cw = (h, round(h * aspect)) if w / h > aspect else (round(w / aspect), w)
    y, x = (h - ch) // 2, (w - cw) // 2
    return Image.fromarray(rgb[y : y + ch, x : x + cw]).resize(CELL, Image.Resampling.BOX)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m recipes.small.sheets", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", default="small")
    parser.add_argument("--kodak", type=Path, help="folder of Kodak's 24 photographs")
    parser.add_argument("--each", type=int, default=40, help="worse versions of each photograph  [%(default)s]")
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/pictures.json")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    o = parser.parse_args(arguments)
    cv2.setNumThreads(1)
    judge, shown = measures.Judge(o.bundle), photographs(o.kodak)
    found = versions(judge, shown, o.each)
    upload = judge.scorer.bundle.meaning.presets.get("upload", 0.5)
    wrong = failures(found, upload)
    rows = [("", [v for v, _ in wrong[i : i + COLUMNS]]) for i in range(0, len(wrong), COLUMNS)]
    sheet(rows).save(o.docs / "failures.jpg", quality=85)
    names = [f"{tenth / 10:.1f}-{tenth / 10 + 0.1:.1f}" for tenth in reversed(range(10))]
    tenths = [(name, row) for name, row in zip(names, deciles(found), strict=True)]
    sheet(tenths).save(o.docs / "explanation/deciles.jpg", quality=82)
    o.out.write_text(as_json(summary(judge.scorer.bundle.id, found, wrong, len(shown), upload)))
    return 0


def summary(
    bundle: str, found: Sequence[Version], wrong: Sequence[tuple[Version, str]], photos: int, upload: float
) -> Any:
    worst = [v for v in found if v.level == 5]
    return {
        "bundle": bundle,
        "tried": len(found),
        "photographs": photos,
        "upload": upload,
        "worst_level": len(worst),
        "worst_level_passes": sum(v.score >= upload for v in worst),
        "untouched_fails": sum(v.score < upload for v in found if v.level == 0),
        "failures": [
            {"picture": v.picture, "what": v.what, "score": v.score, "told": v.told, "fault": fault}
            for v, fault in wrong
        ],
        "credits": CREDITS + KODAK * any("kodim" in v.picture for v in found) + ".",
    }


if __name__ == "__main__":
    sys.exit(main())
