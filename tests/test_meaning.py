"""What a manifest says about scores: read strictly, written back the same, and told in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dgiqa import spec
from dgiqa.bundle import Bundle, load_bundle, write_bundle
from dgiqa.errors import BundleError
from dgiqa.meaning import WORDS, Meaning, Reason, parse_meaning, verdict, words
from dgiqa.scorer import Scorer

FULL = Meaning(
    reasons=(Reason("blur", 0.5), Reason("noise", 0.3)),
    presets={"upload": 0.4, "own": 0.6},
    kind="mos",
    interval=0.12,
    range=(1.0, 5.0),
    knots=((0.0, 0.1), (0.5, 0.2), (1.0, 0.9)),
)


@pytest.mark.parametrize("meaning", [Meaning(), FULL])
def test_it_survives_the_manifest(meaning: Meaning, tmp_path: Path) -> None:
    assert parse_meaning(json.loads(json.dumps(meaning.as_manifest()))) == meaning
    files = dict.fromkeys((spec.DEPTH_FILE, spec.QUALITY_FILE), b"\x08\x09")  # a format number: ONNX, and nothing in it
    labels = {"name": "b", "title": "b", "licence": "CC0-1.0", "source": "tests"}
    assert write_bundle(tmp_path / "b", files=files, meaning=meaning, **labels).meaning == meaning


@pytest.mark.parametrize(
    "record",
    [
        {"reasons": {"blur": 0.5}},
        {"reasons": [{"name": "blur"}]},
        {"reasons": [{"name": "blur", "threshold": 0.5}, {"name": "blur", "threshold": 0.4}]},
        {"reasons": [{"name": "blur\n", "threshold": 0.5}]},
        {"presets": {"upload": 1.2}},
        {"presets": {"upload": "0.5"}},
        {"presets": {"upload": 10**400}},
        {"presets": [0.5]},
        {"scale": {"interval": float("nan")}},
        {"scale": {"range": [5, 5]}},
        {"scale": {"range": [1]}},
        {"calibration": {"knots": [[0, 0.1], [0.5, 0.1], [1, 0.9]]}},
        {"calibration": {"knots": [[0, 0.5], [1, 0.4]]}},
        {"calibration": {"knots": [[0, 0.1], [0.5, 0.2], [0.5, 0.3], [1, 0.9]]}},
        {"calibration": {"knots": [[0.1, 0.1], [1, 0.9]]}},
        {"calibration": {"knots": [[0, 0.1]]}},
        {"calibration": {"knots": [[0, True], [1, 1]]}},
    ],
)
def test_what_is_malformed_is_refused(record: dict[str, Any], telling_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="malformed"):
        parse_meaning(record)
    manifest = json.loads((telling_bundle.path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | record))
    with pytest.raises(BundleError, match=r"malformed|not valid JSON"):
        load_bundle(tmp_path)


def test_reasons_are_told_from_their_thresholds_on_the_clearest_first() -> None:
    assert FULL.told({"blur": 0.6, "noise": 0.9}) == ["noise", "blur"]
    assert FULL.told({"blur": 0.5, "noise": 0.2}) == ["blur"]
    assert FULL.told({}) == []
    assert words(["blur", "noise"]) == "blurred, noisy"
    assert words(["something newer"]) == "something newer"
    assert set(WORDS) == set(spec.REASONS)


def test_a_verdict_needs_a_threshold() -> None:
    assert [verdict(0.5, t) for t in (None, 0.5, 0.51)] == [None, "pass", "fail"]
    assert FULL.preset("own") == 0.6
    with pytest.raises(ValueError, match="upload, own"):
        FULL.preset("archive")
    with pytest.raises(ValueError, match="none"):
        Meaning().preset("upload")


def test_the_map_rises_and_keeps_what_it_has_no_knots_for() -> None:
    scores = np.linspace(0, 1, 101).astype(np.float32)
    assert Meaning().mapped(scores) is scores
    mapped = FULL.mapped(scores)
    assert mapped.dtype == np.float32
    assert (np.diff(mapped) > 0).all()
    assert np.allclose(mapped[[0, 50, 100]], [0.1, 0.2, 0.9])
    assert np.isnan(FULL.mapped(np.array([np.nan], np.float32))).all()


def test_networks_with_more_outputs_are_scored(telling_bundle: Bundle) -> None:
    outputs = telling_bundle.manifest["tensors"][spec.QUALITY_FILE]["outputs"]
    assert outputs[spec.QUALITY_REASONS]["shape"] == ["n", 3]
    assert outputs[spec.QUALITY_FEATURES]["shape"] == ["n", 8]
    with Scorer(telling_bundle) as scorer:
        assert 0 < scorer.score(telling_bundle.path / "golden/01.png").value < 1
