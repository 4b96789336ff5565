"""`verify` passes on what a bundle was released with and fails on anything else, NaN included."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dgiqa import spec
from dgiqa.bundle import Bundle, load_bundle, write_bundle
from dgiqa.errors import BundleError
from dgiqa.full_reference import FullReference
from dgiqa.parity import TOLERANCE, ParityRow, beside, compare, golden_files, verify_bundle
from dgiqa.scorer import Scorer

ROW = ParityRow("golden/01.png", "grid", 0.5, 0.5, 0.0, 0.0)


def test_a_bundle_verifies_on_the_machine_that_made_it(tiny_bundle: Bundle) -> None:
    report = verify_bundle(tiny_bundle, Scorer(tiny_bundle, threads=1, batch=3))
    assert report.passed
    assert report.tolerance == TOLERANCE
    assert report.max_difference <= 1e-6
    assert report.share == report.max_difference / TOLERANCE
    assert [row.file for row in report.rows] == [f"golden/{i:02d}.png" for i in (1, 2, 3, 4)]
    assert (report.bundle, report.backend[:15]) == (tiny_bundle.id, "onnxruntime-cpu")
    json.dumps(report.as_dict(), allow_nan=False)


def test_each_image_is_scored_with_its_own_tiling(tiny_bundle: Bundle, tmp_path: Path) -> None:
    image = (tiny_bundle.path / "golden/01.png").read_bytes()
    official = Scorer(tiny_bundle, tiling="official:5:7")
    files = {name: tiny_bundle.file(name) for name in (spec.DEPTH_FILE, spec.QUALITY_FILE)}
    files |= golden_files([image], official.score)
    labels = {"name": "b", "title": "b", "licence": "x", "source": "y"}
    bundle = write_bundle(tmp_path / "b", files=files, preprocess=tiny_bundle.preprocess, **labels)
    report = verify_bundle(bundle, Scorer(bundle, tiling="grid"))
    assert report.passed
    assert report.rows[0].tiling == "official:5:7"


@pytest.mark.parametrize("weights", ["quality", "depth"])
def test_another_network_fails(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, weights: str) -> None:
    scorer = Scorer(tiny_bundle)
    session = getattr(scorer._alone.networks, weights)
    run = session.run
    noise = np.float32(1 + 2e-3)
    monkeypatch.setattr(
        session,
        "run",
        lambda feeds: run({name: x * np.where(x > 0, noise, 1).astype("f4") for name, x in feeds.items()}),
    )
    report = verify_bundle(tiny_bundle, scorer, tolerance=1e-6)
    assert not report.passed
    assert report.share > 1


@pytest.mark.parametrize("bad", [2e-4, math.nan, math.inf])
@pytest.mark.parametrize("field", ["difference", "tile_difference"])
def test_one_wrong_number_fails_the_report(bad: float, field: str) -> None:
    for rows in ([replace(ROW, **{field: bad}), ROW], [ROW, replace(ROW, **{field: bad})]):
        report = compare("b@0", "engine", rows, 1e-4)
        assert not report.passed
        json.dumps(report.as_dict(), allow_nan=False)
    assert compare("b@0", "engine", [ROW], 1e-4).passed


def test_nothing_to_compare_is_no_pass(tmp_path: Path) -> None:
    assert not compare("b@0", "engine", [], 1e-4).passed


def test_a_zero_tolerance_wants_equality() -> None:
    assert compare("b@0", "engine", [ROW], 0.0).share == 0
    assert compare("b@0", "engine", [replace(ROW, difference=1e-9)], 0.0).share == math.inf
    assert not compare("b@0", "engine", [replace(ROW, difference=1e-9)], 0.0).passed


def test_a_golden_line_with_other_tiles_fails(tiny_bundle: Bundle, tmp_path: Path) -> None:
    image = (tiny_bundle.path / "golden/01.png").read_bytes()
    files = {name: tiny_bundle.file(name) for name in (spec.DEPTH_FILE, spec.QUALITY_FILE)}
    files |= golden_files([image], Scorer(tiny_bundle).score)
    record = json.loads(files["golden.jsonl"])
    record["tile_scores"].pop()
    files["golden.jsonl"] = json.dumps(record).encode()
    labels = {"name": "b", "title": "b", "licence": "x", "source": "y"}
    bundle = write_bundle(tmp_path / "b", files=files, preprocess=tiny_bundle.preprocess, **labels)
    assert not verify_bundle(bundle, Scorer(bundle)).passed


def test_a_full_reference_score_is_verified_as_well(telling_bundle: Bundle, tmp_path: Path) -> None:
    image = (telling_bundle.path / "golden/01.png").read_bytes()
    head = FullReference((0.1,) * 8, 1.0)
    common = {"preprocess": telling_bundle.preprocess, "meaning": telling_bundle.meaning, "features": 8}
    common |= {"name": "b", "title": "b", "licence": "x", "source": "y", "full_reference": head}
    networks = {name: telling_bundle.file(name) for name in (spec.DEPTH_FILE, spec.QUALITY_FILE)}

    def released(near: float | None) -> Bundle:
        files = networks | golden_files([image], Scorer(telling_bundle).score, near=lambda data: near)
        return write_bundle(tmp_path / "b", files=files, **common, overwrite=True)

    with Scorer(released(None)) as scorer:
        near = scorer.compare(*beside(image)).full_reference
        assert verify_bundle(scorer.bundle, scorer).passed
    assert near is not None
    assert abs(near - 0.731) > 1e-3, "the pictures differ"
    for moved, passes in ((0.0, True), (2e-4, False)):
        with Scorer(bundle := released(near + moved)) as scorer:
            report = verify_bundle(bundle, scorer)
        assert report.passed == passes
        assert report.max_difference == pytest.approx(moved, abs=1e-6)


def test_a_scorer_of_another_bundle_is_refused(tiny_bundle: Bundle) -> None:
    other = replace(load_bundle(tiny_bundle.path), id="other@000000000000")
    with pytest.raises(ValueError, match=r"runs tiny@.*wanted one that runs other@"):
        verify_bundle(other, Scorer(tiny_bundle))


def test_a_bundle_without_golden_images_says_so(tiny_graphs: dict[str, bytes], tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b", name="b", title="b", files=tiny_graphs, licence="x", source="y")
    with pytest.raises(BundleError, match=r"has no golden\.jsonl to compare with"):
        verify_bundle(bundle, Scorer(bundle))
