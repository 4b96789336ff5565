"""Reasons, notes, verdicts and features reach the score, alone, in batches and in video; older bundles have none."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dgiqa import preprocess, spec
from dgiqa.bundle import GOLDEN, Bundle, write_bundle
from dgiqa.forward import BARS_NOTE
from dgiqa.meaning import Meaning, Reason
from dgiqa.parity import verify_bundle
from dgiqa.runtime.ort import OrtSession
from dgiqa.score import Score
from dgiqa.scorer import Scorer

Photos = dict[str, NDArray[np.uint8]]


def outputs(bundle: Bundle, rgb: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """What the networks themselves say of a picture's grid tiles."""
    p = bundle.preprocess
    depth = OrtSession(bundle.file(spec.DEPTH_FILE)).run({spec.DEPTH_INPUT: preprocess.depth_input(rgb, p)})
    near = preprocess.depth_image(depth[spec.DEPTH_OUTPUT], *rgb.shape[:2], p)
    windows = preprocess.windows_for("grid", *near.shape, p.tile)
    tiles = preprocess.cut_tiles(preprocess.working_image(rgb, p), near, windows, p.tile)
    feeds = dict(zip((spec.QUALITY_RGB, spec.QUALITY_DEPTH), tiles, strict=True))
    return OrtSession(bundle.file(spec.QUALITY_FILE)).run(feeds)


def same(a: Score, b: Score) -> bool:
    told = a.reasons.keys() == b.reasons.keys() and all(abs(a.reasons[k] - b.reasons[k]) < 1e-5 for k in a.reasons)
    return told and (a.faults, a.verdict, a.note, a.attributes) == (b.faults, b.verdict, b.note, b.attributes)


def test_reasons_are_the_networks_mean_over_tiles(telling_bundle: Bundle, photos: Photos) -> None:
    wanted = outputs(telling_bundle, photos["coffee"])
    with Scorer(telling_bundle, features=True, batch=4) as scorer:
        score = scorer.score(photos["coffee"])
    assert list(score.reasons) == ["blur", "noise", "dark"]
    np.testing.assert_allclose(list(score.reasons.values()), wanted[spec.QUALITY_REASONS].mean(0), atol=1e-5)
    np.testing.assert_allclose(score.tile_features, wanted[spec.QUALITY_FEATURES], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(score.features, wanted[spec.QUALITY_FEATURES].mean(0), rtol=1e-4, atol=1e-5)
    assert set(score.faults) == set(telling_bundle.meaning.told(score.reasons))
    record = json.loads(json.dumps(score.as_dict(), allow_nan=False))
    assert record["reasons"] == pytest.approx(score.reasons)
    assert len(record["features"]) == 8
    assert record["attributes"]["width"] == 600


def test_many_say_what_one_says(telling_bundle: Bundle, photos: Photos) -> None:
    with Scorer(telling_bundle, gate="archive") as scorer:
        alone = [scorer.score(photo) for photo in photos.values()]
        together = list(scorer.score_many(photos.values(), batch=3))
    assert all(isinstance(b, Score) and same(a, b) for a, b in zip(alone, together, strict=True))
    assert all(score.tile_features is None for score in alone)


def test_older_bundles_tell_no_reasons(tiny_bundle: Bundle, photos: Photos) -> None:
    with Scorer(tiny_bundle, features=True) as scorer:
        score = scorer.score(photos["coffee"])
    assert (score.reasons, score.faults, score.verdict, score.features) == ({}, (), None, None)


def test_the_verdict_follows_the_gate(telling_bundle: Bundle, photos: Photos) -> None:
    with Scorer(telling_bundle) as scorer:
        value = scorer.score(photos["coffee"]).value
    for gate, wanted in ((value - 1e-4, "pass"), (value + 1e-4, "fail")):
        with Scorer(telling_bundle, gate=gate) as scorer:
            assert scorer.score(photos["coffee"]).verdict == wanted
    with Scorer(telling_bundle, gate="curation") as scorer:
        assert scorer.gate == 0.7
    with pytest.raises(ValueError, match="upload, archive, curation"):
        Scorer(telling_bundle, gate="print")
    with pytest.raises(ValueError, match="wanted a score"):
        Scorer(telling_bundle, gate=1.5)


def test_a_note_says_what_is_no_photograph(tiny_bundle: Bundle, photos: Photos) -> None:
    with Scorer(tiny_bundle) as scorer:
        assert scorer.score(photos["coffee"]).note == ""
        assert "uniform" in scorer.score(np.full((100, 120, 3), 9, np.uint8)).note
        boxed = np.pad(photos["coffee"], ((60, 60), (0, 0), (0, 0)))
        assert scorer.score(boxed).note == BARS_NOTE


def test_the_map_moves_every_tile_and_the_mean_follows(tiny_bundle: Bundle, photos: Photos) -> None:
    knots = ((0.0, 0.1), (0.5, 0.2), (1.0, 0.9))
    mapped = replace(tiny_bundle, meaning=Meaning(knots=knots))
    with Scorer(tiny_bundle) as plain, Scorer(mapped) as scorer:
        before, after = plain.score(photos["coffee"]), scorer.score(photos["coffee"])
    wanted = np.interp(before.tile_scores, *np.array(knots).T)
    np.testing.assert_allclose(after.tile_scores, wanted, atol=1e-6)
    assert after.value == pytest.approx(wanted.mean(), abs=1e-6)
    assert abs(after.value - before.value) > 1e-3


def test_reasons_that_nobody_named_are_left_out(telling_bundle: Bundle, photos: Photos) -> None:
    with Scorer(replace(telling_bundle, meaning=Meaning(reasons=(Reason("blur"),)))) as scorer:
        assert scorer.score(photos["coffee"]).reasons == {}


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_quantised_files_keep_every_output(precision: str, telling_bundle: Bundle, tmp_path: Path) -> None:
    from dgiqa.builder.quantize import quantize_bundle

    made = quantize_bundle(telling_bundle, precision, tmp_path, budget=0.1)
    wanted = OrtSession(telling_bundle.file(spec.QUALITY_FILE)).outputs
    assert OrtSession(made.files[spec.QUALITY_FILE]).outputs == wanted


@pytest.mark.parametrize("backend", ["openvino"])
def test_other_engines_give_them_too(backend: str, telling_bundle: Bundle, photos: Photos) -> None:
    pytest.importorskip("openvino")
    with Scorer(telling_bundle, backend=backend) as scorer, Scorer(telling_bundle, backend="onnxruntime") as wanted:
        assert verify_bundle(telling_bundle, scorer).passed
        assert scorer.score(photos["coffee"]).reasons == pytest.approx(wanted.score(photos["coffee"]).reasons, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "passes"),
    [(lambda p: p, True), (lambda p: [p[0] + 0.01, *p[1:]], False), (lambda p: p[:-1], False)],
)
def test_verify_compares_reasons_too(
    change: Callable[[list[float]], list[float]], passes: bool, telling_bundle: Bundle, tmp_path: Path
) -> None:
    files: dict[str, Path | bytes] = {name: telling_bundle.path / name for name in telling_bundle.manifest["files"]}
    lines = [json.loads(line) for line in (telling_bundle.path / GOLDEN).read_text().splitlines()]
    assert all(len(line["reasons"]) == 3 for line in lines)
    changed = [line | {"reasons": change(line["reasons"])} for line in lines]
    files[GOLDEN] = "".join(json.dumps(line) + "\n" for line in changed).encode()
    p, meaning, labels = telling_bundle.preprocess, telling_bundle.meaning, {"licence": "CC0-1.0", "source": "tests"}
    made = write_bundle(tmp_path / "b", name="b", title="b", files=files, preprocess=p, meaning=meaning, **labels)
    with Scorer(made) as scorer:
        assert verify_bundle(made, scorer).passed is passes


def test_frames_tell_reasons_also_where_tiles_are_taken_over(
    telling_bundle: Bundle, photos: Photos, encode: Callable[..., bytes]
) -> None:
    from dgiqa.video.channel import Channel
    from dgiqa.video.frames import Frame
    from dgiqa.video.reuse import Reuse
    from dgiqa.video.scoring import FrameScorer

    still = np.ascontiguousarray(photos["coffee"][:192, :256])
    moved = still.copy()
    moved[:60, :60] = 255 - moved[:60, :60]
    thumb = np.zeros((36, 64), np.uint8)
    frames = [Frame("v", i / 10, i, rgb, thumb, 0) for i, rgb in enumerate([still, still, moved])]
    with Scorer(telling_bundle) as scorer:
        channel = Channel(8)
        for frame in frames:
            channel.put(frame)
        channel.finish()
        results = list(FrameScorer(scorer.stages, channel, reuse=Reuse(tiles=True)).results())
        alone = [scorer.score(frame.rgb).reasons for frame in frames]
    assert [r.reused for r in results][1] == "depth+tiles"
    told = [r.score.reasons for r in results if r.score is not None]
    assert told[1] == pytest.approx(told[0])
    assert told[0] == pytest.approx(alone[0], abs=1e-5)
    assert told[2] != told[1]
    assert all(not np.isnan(list(reasons.values())).any() for reasons in told)
