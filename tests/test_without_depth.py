"""A model without a depth network goes everywhere that others go: bundle, both CPU backends, parity, build, video."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dgiqa import preprocess, spec
from dgiqa.bundle import MANIFEST, Bundle, load_bundle, write_bundle
from dgiqa.errors import BackendError, BundleError, ImageError
from dgiqa.on_device import open_device_scorer
from dgiqa.parity import sweep, verify_bundle
from dgiqa.runtime.backends import OPENVINO, backends
from dgiqa.runtime.ort import OrtSession
from dgiqa.score import Failure, Score
from dgiqa.scorer import Scorer

pytest.importorskip("onnxruntime")
Photos = dict[str, NDArray[np.uint8]]


def test_its_manifest_says_what_the_network_takes(rgb_bundle: Bundle) -> None:
    assert [network.file for network in rgb_bundle.networks] == [spec.QUALITY_FILE]
    tensors = rgb_bundle.manifest["tensors"]
    assert tensors.keys() == {spec.QUALITY_FILE}
    assert tensors[spec.QUALITY_FILE]["inputs"] == {"rgb": {"dtype": "float32", "shape": ["n", 3, 64, 64]}}
    assert rgb_bundle.manifest["preprocess"]["normalisation"] == "half"
    assert rgb_bundle.manifest["scale"] == {"range": [-1.0, 3.0], "raw": True}
    assert rgb_bundle.preprocess.short_side == 0


def test_bundles_with_a_depth_network_are_written_as_before(tiny_bundle: Bundle) -> None:
    assert "normalisation" not in tiny_bundle.manifest["preprocess"]
    assert [network.file for network in tiny_bundle.networks] == [spec.DEPTH_FILE, spec.QUALITY_FILE]
    assert tiny_bundle.manifest["tensors"].keys() == {spec.DEPTH_FILE, spec.QUALITY_FILE}


def test_the_score_is_the_networks_own_on_tiles_of_the_image_as_it_is(rgb_bundle: Bundle, photos: Photos) -> None:
    photo = photos["coffee"]
    with Scorer(rgb_bundle, backend="onnxruntime") as scorer:
        score = scorer.score(photo, tiling="official:9")
    windows = preprocess.official_windows(*photo.shape[:2], 64, 9)
    tiles = np.stack([photo[y : y + 64, x : x + 64] for y, x in windows]).transpose(0, 3, 1, 2) / 127.5 - 1
    raw = OrtSession(rgb_bundle.file(spec.QUALITY_FILE)).run({"rgb": tiles.astype(np.float32)})["score"]
    np.testing.assert_allclose(score.tile_scores, (raw + 1) / 4, atol=1e-6)
    assert (score.working_height, score.working_width) == photo.shape[:2]
    assert not {"depth_input", "depth", "depth_image"} & score.timings_ms.keys()


def test_both_backends_and_many_images_give_the_golden_scores(rgb_bundle: Bundle, photos: Photos) -> None:
    with Scorer(rgb_bundle, backend="onnxruntime") as reference:
        assert verify_bundle(rgb_bundle, reference).passed
        alone = [reference.score(photo).value for photo in photos.values()]
        together = [score.value for score in reference.score_many(list(photos.values()))]  # type: ignore[union-attr]
        np.testing.assert_allclose(together, alone, atol=1e-6)
        if OPENVINO in backends():
            with Scorer(rgb_bundle, backend="openvino") as other:
                assert verify_bundle(rgb_bundle, other).passed
                assert sweep(other, reference).passed


def test_an_image_smaller_than_a_tile_is_refused_and_the_others_go_on(rgb_bundle: Bundle, photos: Photos) -> None:
    small = photos["coffee"][:63, :200]
    with Scorer(rgb_bundle) as scorer:
        with pytest.raises(ImageError, match=r"200 x 63, and this model looks at tiles of 64 x 64"):
            scorer.score(small)
        kinds = [type(result) for result in scorer.score_many([small, photos["coffee"][:64, :64]])]
        assert kinds == [Failure, Score]


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_it_is_built_in_other_precisions(
    precision: str, rgb_bundle: Bundle, photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dgiqa.builder.build import build
    from dgiqa.runtime import engines

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    engine = build(rgb_bundle, backend="onnxruntime", precision=precision)
    assert engine.files.keys() == {spec.QUALITY_FILE}
    assert engines.load(engine.path, rgb_bundle).key["onnx"].keys() == {spec.QUALITY_FILE}
    with Scorer(rgb_bundle, engine=engine) as scorer, Scorer(rgb_bundle, backend="onnxruntime") as reference:
        assert abs(scorer.score(photos["rocket"]).value - reference.score(photos["rocket"]).value) < 2e-2


def test_frames_of_a_video_and_pushed_frames_are_scored(rgb_bundle: Bundle, photos: Photos) -> None:
    from dgiqa.video.reuse import Reuse

    photo = photos["coffee"]
    with Scorer(rgb_bundle) as scorer:
        wanted = scorer.score(photo).value
        for reuse in (None, Reuse(tiles=True)):
            with scorer.stream(reuse=reuse) as stream:
                for number in range(3):
                    stream.push(photo, time_s=number)
                stream.finish()
                rows = list(iter(stream.pull, None))
            assert [row["score"] for row in rows] == pytest.approx([wanted] * 3, abs=1e-5)


def test_what_does_not_fit_together_is_refused(tiny_bundle: Bundle, rgb_bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle.path, tmp_path / "b")
    manifest = json.loads((tmp_path / "b" / MANIFEST).read_text())
    del manifest["files"][spec.DEPTH_FILE]
    (tmp_path / "b" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="it has only depth_lower_bound"):
        load_bundle(tmp_path / "b")
    files = {spec.QUALITY_FILE: tiny_bundle.file(spec.QUALITY_FILE)}
    labels = {"name": "x", "title": "x", "licence": "none", "source": "tests"}
    mixed = write_bundle(tmp_path / "x", files=files, preprocess=rgb_bundle.preprocess, **labels)  # type: ignore[arg-type]
    with pytest.raises(BundleError, match=r"maps \['depth', 'rgb'\] -> \['score'\], wanted \['rgb'\]"):
        Scorer(mixed)
    with pytest.raises(BackendError, match="models with a depth network"):
        open_device_scorer(None, OrtSession(rgb_bundle.file(spec.QUALITY_FILE)), rgb_bundle.preprocess)


@pytest.mark.parametrize("wrong", ["imagenet1k", 3, None, ["half"]])
def test_another_normalisation_is_refused(wrong: object, rgb_bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(rgb_bundle.path, tmp_path / "b")
    manifest = json.loads((tmp_path / "b" / MANIFEST).read_text())
    manifest["preprocess"]["normalisation"] = wrong
    (tmp_path / "b" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="wanted imagenet or half"):
        load_bundle(tmp_path / "b")
