"""Figures become the card: misses say no, and nothing is said of what was not measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recipes.small import card

ENCODINGS = ("PNG", "JPEG 85")


def cell(auc: float, shift: float, scores: list[float]) -> dict:
    return {"auc": auc, "shift": shift, "mean": float(np.mean(scores)), "scores": scores}


@pytest.fixture
def figures() -> dict:
    """A model that survives saving but for darkness, passes night photographs and lets a covered lens in."""
    curve = np.linspace(1, 0, 101).round(4).tolist()
    within = {"value": 0.871, "interval": [0.86, 0.88]}
    passes = {name: {"pictures": 100, "curve": curve} for name in ("good", "fair", "bad")}
    passes["good, night"] = {"pictures": 40, "curve": [1.0] * 101}
    passes["good, black and white"] = {"pictures": 0, "curve": []}
    opinions = {"pictures": 2000, "srocc": within, "plcc": within, "krocc": within, "rmse": 0.09, "interval_80": 0.11}
    clean = {e: {"mean": 0.8, "scores": [0.8, 0.8]} for e in ENCODINGS}
    darken = {"PNG": cell(0.7, 0.0, [0.6, 0.2]), "JPEG 85": cell(0.96, 0.01, [0.2, 0.2])}
    blur = {e: cell(1.0, 0.01, [0.1, 0.1]) for e in ENCODINGS}
    lens = {"mean": 0.5, "lowest": 0.1, "highest": 0.9, "scores": [0.1, 0.9]}
    return {
        "bundle": "small@0123456789ab",
        "presets": {"upload": 0.5, "archive": 0.6, "curation": 0.7},
        "opinions": opinions | {"passes": passes, "joint": np.eye(20, dtype=int).tolist()},
        "saves": {"clean": clean, "gaussian_blur": blur, "darken": darken},
        "special": {"covered lens or blank, with noise": lens},
        "video": {
            "h264": {
                "series": [12, 20],
                "mean": [0.8, 0.7],
                "falls": 0.97,
                "rises_by_more_than_0.01": 0.0,
                "in_focus_above": 1.0,
            }
        },
        "decoders": {"libx264": {"frames": 2, "furthest": 0.013}, "mpeg2video": {"frames": 2, "furthest": 0.021}},
        "environment": {"date": "2026-11-29", "clean": 2},
    }


def test_targets_say_no_where_they_are_missed(figures):
    found = {t.measure: t for t in card.targets(figures)}
    assert found["BIQ2021 test, SROCC"].met
    assert not found["level 5 in seven encodings: AUC >= 0.95"].met
    assert found["level 5 in seven encodings: AUC >= 0.95"].measured == "3 of 4, worst 0.70"
    assert found["level 5: median shift against PNG <= 0.05"].met
    assert found["night called good passes `upload`"].measured == "100 % of 40"
    assert not found["covered lens or blank, with noise passes `upload`"].met
    assert not found["one frame by any decoder, furthest apart"].met
    assert not any("black and white" in measure for measure in found)  # there was none


def test_the_card_speaks_of_people_first_and_of_nothing_that_was_not_measured(figures):
    text = card.card(figures, {}, {}, {}, {})
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings[0] == "## What people said"
    assert "## Sizes" not in headings
    assert "0.871 (0.86 to 0.88)" in text
    assert "**0.70** / +0.00" in text
    assert "| **no** |" in text
    assert max(len(line) for line in text.splitlines() if not line.startswith("|")) <= 120


def test_others_stand_beside_with_their_own_figures(figures):
    peer = {"pictures": 667, "srocc": 0.51, "interval": [0.48, 0.54], "plcc": 0.5, "krocc": 0.35}
    text = "\n".join(card.opinion_section(figures, {"image-quality-ai": peer, card.PREDECESSOR: peer}))
    assert "| image-quality-ai | 0.510 (0.48 to 0.54) | 0.50 | 0.35 |" in text
    assert "The other programs scored 667 of them" in text
    assert "the default model before this one" in text


def test_what_passes_is_counted_per_threshold_and_encoding(figures):
    lines = card.pass_tables(figures).splitlines()
    assert next(line for line in lines if line.startswith("| bad (")).split("|")[2].strip() == "70 %"
    darken = [line for line in lines if line.startswith("| darken")]
    assert darken[0].split("|")[2:5] == [" 0 to 50 % ", " 0 to 50 % ", " 0 to 50 % "]
    assert darken[1] == "| darken | 50 % | 0 % |"


def test_a_variant_stands_beside_target_by_target(figures):
    other = figures | {
        "bundle": "free@0",
        "opinions": figures["opinions"] | {"srocc": {"value": 0.5, "interval": [0, 1]}},
    }
    text = "\n".join(card.variants_section(figures, other))
    assert "| BIQ2021 test, SROCC | 0.871 | 0.500 |" in text


def test_one_command_writes_page_table_and_picture(figures, tmp_path: Path):
    results, docs = tmp_path / "results", tmp_path / "docs"
    (docs / "explanation").mkdir(parents=True), results.mkdir()
    page = docs / "explanation/bad-score.md"
    page.write_text("# Bad?\n\n<!-- table -->\nold\n<!-- /table -->\n\nThe end.\n")
    (results / "model-card.json").write_text(json.dumps(figures))
    assert card.main(["--results", str(results), "--docs", str(docs)]) == 0
    assert card.main(["--results", str(results), "--docs", str(docs)]) == 0  # again: nothing doubles
    assert page.read_text().count("| darken |") == 2
    assert "old" not in page.read_text()
    assert page.read_text().endswith("The end.\n")
    assert Image.open(docs / "model-card.png").width > 800
    assert (docs / "model-card.md").read_text().startswith("# Model card of `small@0123456789ab`")


def test_a_page_without_marks_is_refused():
    with pytest.raises(ValueError, match="has no marks"):
        card.between_marks("# Bad?", "table", "x")


def test_sheets_show_every_tenth_and_what_is_scored_most_wrongly():
    sheets = pytest.importorskip("recipes.small.sheets", exc_type=ImportError)
    rgb = np.zeros((40, 60, 3), np.uint8)

    def version(picture: str, kind: str, level: int, score: float) -> sheets.Version:
        return sheets.Version(picture, f"{kind} {level}".strip(), kind, level, rgb, score, "blurred")

    found = [version("a", "blur", 5, 0.9), version("b", "blur", 5, 0.8), version("c", "blur", 5, 0.7)]
    found += [version("a", "", 0, 0.3), version("b", "", 0, 0.95), version("d", "noise", 5, 0.1)]
    wrong = [(v.picture, v.score) for v, _ in sheets.failures(found, upload=0.5)]
    assert wrong == [("a", 0.3), ("a", 0.9), ("b", 0.8)]  # two of a type at most; what is right is none
    tenths = sheets.deciles(found)
    assert [len(row) for row in tenths] == [2, 1, 1, 0, 0, 0, 1, 0, 1, 0]
    page = sheets.sheet([("0.9-1.0", tenths[0]), ("0.8-0.9", [])])
    assert page.height == 2 * (sheets.CELL[1] + 38)


def test_depth_car_is_credited_only_where_every_seed_with_it_is_ahead():
    rows = [{"opinions": 0.82 + n / 100, "natural": 0.7 + n / 100, "kadid": 0.5} for n in range(3)]
    pictures = {"opinions": 2000, "natural": 200, "kadid": 1000}
    worse = [{**row, "natural": row["natural"] - 0.1} for row in rows]
    alike = "\n".join(card.depth_car_section({"with": rows, "without": rows, "pictures": pictures}))
    ahead = "\n".join(card.depth_car_section({"with": rows, "without": worse, "pictures": pictures}))
    assert "0.830 (0.820, 0.830, 0.840)" in alike
    assert "No difference is larger than the differences between seeds" in alike
    assert "above every seed without it for: haze" in ahead
    assert card.depth_car_section({}) == []
