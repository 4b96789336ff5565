"""PyTorch vs ONNX Runtime: both networks, whole scores, and an export that is wrong leaves nothing behind."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
for requirement in ("onnxscript", "onnxsim", "skimage"):
    pytest.importorskip(requirement)

from dgiqa import preprocess, spec  # noqa: E402
from dgiqa.bundle import load_bundle, load_golden  # noqa: E402
from dgiqa.cli import app  # noqa: E402
from dgiqa.errors import BundleError, WeightsError  # noqa: E402
from dgiqa.meaning import Meaning, Reason  # noqa: E402
from dgiqa.nn import bundling, onnx_export, reference  # noqa: E402
from dgiqa.nn.depth import SMALL_PREPROCESS, SmallDepth, save_small_depth  # noqa: E402
from dgiqa.nn.depth_anything import DepthAnything, DepthAnythingConfig  # noqa: E402
from dgiqa.nn.network import DGIQA, FULL, SMALL, DGIQAConfig  # noqa: E402
from dgiqa.nn.onnx_export import Export, ExportError, export_depth, export_quality  # noqa: E402
from dgiqa.nn.weights import save_weights  # noqa: E402
from dgiqa.parity import DISTORTIONS, verify_bundle  # noqa: E402
from dgiqa.runtime.ort import OrtSession  # noqa: E402
from dgiqa.scorer import Scorer  # noqa: E402
from dgiqa.spec import Preprocess  # noqa: E402

Script = Callable[[str], ModuleType]
TINY_DEPTH = DepthAnythingConfig(width=24, blocks=4, heads=3, features=16, channels=(8, 8, 16, 16))
TINY_SIZES = Preprocess(depth_lower_bound=112)
# Narrow where the default model is wide, and every part of the architecture present.
TINY_QUALITY = DGIQAConfig(
    backbone="resnet10t",
    backbone_options={"channels": (8, 8, 16, 16), "stem_type": "deep", "stem_width": 8},
    tcb_channels=(4, 4, 8, 8),
    reduction=2,
    heads=2,
    dilated_channels=8,
)


def lively(model: DGIQA) -> DGIQA:
    """Untrained scores hardly differ; a steep last layer spreads them, so that a wrong graph shows."""
    with torch.no_grad():
        model.fc.weight.mul_(40)
    return model.eval()


@pytest.fixture
def quality(narrow_quality: DGIQA) -> DGIQA:
    return narrow_quality


@pytest.fixture(scope="module")
def depth() -> DepthAnything:
    torch.manual_seed(0)
    return DepthAnything(TINY_DEPTH).eval()


@pytest.fixture
def quality_file(narrow_quality_export: Export) -> Export:
    return narrow_quality_export


@pytest.fixture(scope="module")
def depth_file(depth: DepthAnything, tmp_path_factory: pytest.TempPathFactory) -> Export:
    return export_depth(depth, tmp_path_factory.mktemp("depth") / "depth.onnx", preprocess=TINY_SIZES)


@pytest.mark.parametrize("batch", [1, 2, 5, 8])
def test_quality_scores_are_pytorchs(batch: int, quality: DGIQA, quality_file: Export) -> None:
    rgb, depth = onnx_export._tiles_of(onnx_export.photographs(), Preprocess())
    rgb, depth = rgb[-batch:], depth[-batch:]
    with torch.no_grad():
        expected = quality(rgb, depth).numpy()
    feeds = {spec.QUALITY_RGB: rgb.numpy(), spec.QUALITY_DEPTH: depth.numpy()}
    got = OrtSession(quality_file.path).run(feeds)[spec.QUALITY_OUTPUT]
    assert got.shape == (batch,)
    assert np.abs(got - expected).max() < 1e-5
    assert batch == 1 or np.ptp(expected) > 1e-3


@pytest.mark.slow
def test_scores_of_the_default_sizes_are_pytorchs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = lively(DGIQA(dataclasses.replace(SMALL, reasons=3)))
    test_quality_scores_are_pytorchs(5, network, export_quality(network, tmp_path / "q.onnx"))


@pytest.mark.parametrize("size", [(14, 14), (14, 42), (518, 518), (112, 154), (154, 112), (532, 98)])
def test_depth_is_pytorchs_at_every_size(size: tuple[int, int], depth: DepthAnything, depth_file: Export) -> None:
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = depth(image).numpy()
    got = OrtSession(depth_file.path).run({spec.DEPTH_INPUT: image.numpy()})[spec.DEPTH_OUTPUT]
    assert got.shape == (2, *size)
    assert np.abs(got - expected).max() / np.ptp(expected) < onnx_export.DEPTH_TOLERANCE


def test_tensors_have_the_contracts_names_and_shapes(quality_file: Export, depth_file: Export) -> None:
    tile = ["batch", 3, spec.TILE, spec.TILE]
    assert shapes(quality_file.path) == {
        spec.QUALITY_RGB: tile,
        spec.QUALITY_DEPTH: tile,
        spec.QUALITY_OUTPUT: ["batch"],
        spec.QUALITY_REASONS: ["batch", 3],
        spec.QUALITY_FEATURES: ["batch", TINY_QUALITY.dilated_channels],
    }
    sides = ["14*rows", "14*columns"]
    assert shapes(depth_file.path) == {spec.DEPTH_INPUT: ["batch", 3, *sides], spec.DEPTH_OUTPUT: ["batch", *sides]}
    assert [o.version for o in onnx.load(quality_file.path).opset_import if not o.domain] == [spec.OPSET]


def test_exports_are_one_file_each_without_traces_of_this_machine(quality_file: Export, depth_file: Export) -> None:
    for export in (quality_file, depth_file):
        assert [p.name for p in export.path.parent.iterdir()] == [export.path.name]
        contents = export.path.read_bytes()
        assert len(contents) == export.size_bytes
        for trace in (b"site-packages", b"stack_trace", str(Path(onnx_export.__file__).parent).encode()):
            assert trace not in contents


def test_the_report_counts_what_was_kept(quality_file: Export, depth_file: Export) -> None:
    for export in (quality_file, depth_file):
        assert export.nodes == len(onnx.load(export.path).graph.node)
        assert export.difference == max(export.differences.values()) <= export.tolerance
        assert 0 <= export.share <= 1
    assert {"batch 1", "batch 3", "batch 8"} == quality_file.differences.keys()
    assert len(depth_file.differences) >= 4


def test_exporting_leaves_the_model_as_it_was() -> None:
    model = DGIQA(TINY_QUALITY).double().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with onnx_export._frozen(model) as network:
        assert not network.training
        assert next(network.parameters()).dtype == torch.float32
        network.fc.weight.zero_()
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("twin", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_reasons_and_features_are_outputs_beside_the_score(
    twin: bool, quality: DGIQA, quality_file: Export, tmp_path: Path
) -> None:
    network = quality
    path = quality_file.path if twin else export_quality(network, tmp_path / "q.onnx", twin=False).path
    rgb, depth = (x[:2] for x in onnx_export._tiles_of(onnx_export.photographs(), Preprocess()))
    got = OrtSession(path).run({spec.QUALITY_RGB: rgb.numpy(), spec.QUALITY_DEPTH: depth.numpy()})
    with torch.no_grad():
        features, faults = network.features_and_faults(rgb, depth)
        wanted = {
            spec.QUALITY_OUTPUT: network(rgb, depth),
            spec.QUALITY_REASONS: torch.sigmoid(faults),
            spec.QUALITY_FEATURES: features,
        }
    assert list(got) == list(wanted)
    for name, values in wanted.items():
        assert np.allclose(got[name], values.numpy(), atol=1e-5, rtol=1e-4), name
    logits = got[spec.QUALITY_FEATURES] @ network.fc.weight[0].detach().numpy() + network.fc.bias.item()
    assert np.allclose(1 / (1 + np.exp(-logits)), got[spec.QUALITY_OUTPUT], atol=1e-5)


@pytest.mark.slow
def test_a_bundle_of_a_network_with_reasons_tells_pytorchs(depth: DepthAnything, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = lively(DGIQA(dataclasses.replace(TINY_QUALITY, reasons=2)))
    meaning = Meaning(reasons=(Reason("blur"), Reason("noise")), presets={"upload": 0.4})
    arguments = {"quality": network, "depth": depth, "preprocess": TINY_SIZES, "name": "b", "title": "b"}
    labels = {"licence": "CC0-1.0", "source": "tests"}
    with pytest.raises(ValueError, match="has 2 reasons, and 0 are named"):
        bundling.build_bundle(tmp_path / "b", **arguments, **labels)
    bundle = bundling.build_bundle(tmp_path / "b", **arguments, **labels, meaning=meaning)
    outputs = bundle.manifest["tensors"][spec.QUALITY_FILE]["outputs"]
    assert [outputs[name]["shape"][1] for name in (spec.QUALITY_REASONS, spec.QUALITY_FEATURES)] == [2, 8]
    golden = load_golden(bundle)[0]
    with Scorer(bundle) as scorer:
        score = scorer.score(bundle.path / golden.file)
    assert list(score.reasons.values()) == pytest.approx(golden.reasons, abs=1e-5)
    save_weights(network, tmp_path / "q.safetensors")
    save_weights(depth, tmp_path / "d.safetensors")
    reference.open_reference(bundle, tmp_path / "q.safetensors", tmp_path / "d.safetensors")


@pytest.mark.parametrize("head", ["fc_reasons", "features"])
def test_wrong_reasons_or_features_are_not_written(
    head: str, quality: DGIQA, quality_file: Export, tmp_path: Path
) -> None:
    sabotaged = copy.deepcopy(quality)
    with torch.no_grad():
        if head == "features":  # scaled, and the last layers made up for it
            sabotaged.dilated_stack[-2].weight.mul_(2)
            sabotaged.dilated_stack[-2].bias.mul_(2)
            sabotaged.fc.weight.div_(2)
        else:
            sabotaged.fc_reasons[-1].bias.add_(0.1)
    rgb, depth = onnx_export._tiles_of(onnx_export.photographs(), Preprocess())
    cases = {"batch 3": {spec.QUALITY_RGB: rgb[:3], spec.QUALITY_DEPTH: depth[:3]}}
    budget = (onnx_export.SCORE_TOLERANCE, "score")
    whole = onnx_export._with_all_outputs(sabotaged)[0]
    with torch.no_grad(), pytest.raises(ExportError, match="batch 3"):
        onnx_export._write_checked(whole, [(onnx.load(quality_file.path), False)], tmp_path / "q.onnx", cases, budget)


@pytest.mark.parametrize("sabotage", ["bias", "weight", "nan"])
def test_a_graph_that_computes_something_else_is_not_written(
    sabotage: str, quality: DGIQA, quality_file: Export, tmp_path: Path
) -> None:
    graph = onnx.load(quality_file.path)
    name = "fc.weight" if sabotage == "weight" else "fc.bias"
    (tensor,) = [t for t in graph.graph.initializer if t.name == name]
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.flat[0] += {"bias": 0.01, "weight": 0.1, "nan": np.nan}[sabotage]
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))
    target = tmp_path / "q.onnx"
    target.write_bytes(b"the file before")
    rgb, depth = onnx_export._tiles_of(onnx_export.photographs(), Preprocess())
    cases = {"batch 3": {spec.QUALITY_RGB: rgb[:3], spec.QUALITY_DEPTH: depth[:3]}}
    budget = (onnx_export.SCORE_TOLERANCE, "score")
    with torch.no_grad(), pytest.raises(ExportError, match="batch 3"):
        onnx_export._write_checked(onnx_export._with_all_outputs(quality)[0], [(graph, False)], target, cases, budget)
    assert [p.name for p in tmp_path.iterdir()] == ["q.onnx"]
    assert target.read_bytes() == b"the file before"


def test_a_depth_network_that_says_nothing_is_refused() -> None:
    flat = np.zeros((1, 14, 14), np.float32)
    with pytest.raises(ExportError, match="constant"):
        onnx_export._difference(spec.DEPTH_OUTPUT, flat, flat)


@pytest.mark.slow
def test_a_fixed_size_is_fixed(depth: DepthAnything, tmp_path: Path) -> None:
    export = export_depth(depth, tmp_path / "new" / "d.onnx", preprocess=TINY_SIZES, size=(112, 154))
    assert shapes(export.path)[spec.DEPTH_INPUT] == ["batch", 3, 112, 154]


def test_photographs_come_from_a_folder(tmp_path: Path, photos: dict[str, NDArray[np.uint8]]) -> None:
    with pytest.raises(ExportError, match="no photographs"):
        onnx_export.photographs(tmp_path)
    (tmp_path / "a.png").write_bytes(bundling._png(photos["coffee"]))
    assert np.array_equal(onnx_export.photographs(tmp_path)[0], photos["coffee"])


# The reference pipeline and what answers to it


@pytest.mark.parametrize("name", ["astronaut", "coffee"])
@pytest.mark.parametrize(
    "p",
    [
        Preprocess(),
        Preprocess(depth_lower_bound=256, depth_multiple=32),
        Preprocess(version=2, depth_lower_bound=256, depth_multiple=32),
        Preprocess(version=2, depth_lower_bound=768),
    ],
    ids=["paper", "32", "area", "area-enlarged"],
)
def test_preprocessing_answers_to_the_reference(name: str, p: Preprocess, photos: dict[str, NDArray[np.uint8]]) -> None:
    rgb = photos[name]
    image = preprocess.depth_input(rgb, p)
    assert np.abs(image - reference.depth_input(rgb, p).numpy()).max() < 1e-6
    raw = image.mean(1)
    size = rgb.shape[:2] if p.version == 1 else preprocess.working_size(*rgb.shape[:2], p)
    depth = preprocess.stretched(raw, *size)
    expected = reference.depth_image(torch.from_numpy(raw), *rgb.shape[:2], p)
    steps = np.abs(depth.astype(int) - expected)
    assert steps.max() <= 1  # truncation: a value on a step's edge may fall to either side
    assert (steps > 0).mean() < 1e-3
    for tiles in ("grid", "official:20", "official:7:5"):
        small_rgb, small_depth = preprocess.working_image(rgb, p), preprocess.depth_image(raw, *rgb.shape[:2], p)
        windows = preprocess.windows_for(tiles, *small_depth.shape, p.tile)
        got = preprocess.cut_tiles(small_rgb, small_depth, windows, p.tile)
        for ours, theirs in zip(got, reference.network_tiles(rgb, depth, p, tiles), strict=True):
            assert np.abs(ours - theirs.numpy()).max() < 1e-6


def test_reference_takes_windows_and_refuses_other_tilings(
    quality: DGIQA, depth: DepthAnything, photos: dict[str, NDArray[np.uint8]]
) -> None:
    scorer = reference.TorchScorer(depth, quality, TINY_SIZES)
    rgb, windows = photos["coffee"], np.array([[0, 0], [160, 7]])
    score = scorer.score(rgb, windows)
    with torch.no_grad():
        near = reference.depth_image(depth(reference.depth_input(rgb, TINY_SIZES)), *rgb.shape[:2], TINY_SIZES)
        wanted = quality(*reference.network_tiles(rgb, near, TINY_SIZES, windows)).numpy()
    np.testing.assert_allclose(score.tile_scores, wanted, atol=1e-6)
    assert wanted.shape == (2,)
    assert score.value == pytest.approx(score.tile_scores.mean(), abs=1e-6)
    with pytest.raises(ValueError, match="official:COUNT"):
        scorer.score(photos["astronaut"], "random")


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A bundle that the command made, and the weights it was made from: quality, depth."""
    folder = tmp_path_factory.mktemp("imported")
    torch.manual_seed(0)
    files = folder / "q.safetensors", folder / "d.safetensors"
    save_weights(lively(DGIQA(TINY_QUALITY)), files[0])
    save_weights(DepthAnything(TINY_DEPTH).eval(), files[1])
    done = import_weights(*files, folder / "out")
    assert done.exit_code == 0, done.output
    assert str(folder / "out" / "mine") in done.output
    assert [path.name for path in (folder / "out").iterdir()] == ["mine"]
    return folder / "out" / "mine", *files


def import_weights(quality: Path, depth: Path, out: Path) -> Any:
    where = ["--name", "mine", "--out", str(out), "--licence", "Apache-2.0"]
    return CliRunner().invoke(app, ["import-weights", "--quality", str(quality), "--depth", str(depth), *where])


@pytest.mark.slow
def test_own_weights_become_a_bundle_with_the_small_depth_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    quality, depth = tmp_path / "q.safetensors", tmp_path / "d.safetensors"
    save_weights(lively(DGIQA(dataclasses.replace(TINY_QUALITY, reasons=3))), quality)
    save_small_depth(SmallDepth().eval(), str(depth))
    bundle = bundling.import_weights(quality, depth, tmp_path / "mine", name="mine")
    assert bundle.preprocess == SMALL_PREPROCESS
    assert [reason.name for reason in bundle.meaning.reasons] == ["blur", "noise", "compression"]
    with pytest.raises(WeightsError, match="holds DGIQA, wanted a depth network"):
        bundling.import_weights(quality, quality, tmp_path / "other", name="other")


def verify(bundle: Path, *options: object) -> Any:
    return CliRunner().invoke(app, ["verify", str(bundle), *map(str, options)])


@pytest.mark.slow
def test_verify_scores_the_distorted_images_in_pytorch_when_given_the_weights(
    imported: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, quality, depth = imported
    assert json.loads(verify(bundle, "--json").stdout)["sweep"] is None  # ONNX Runtime in fp32 is its own reference
    weights = "--quality", quality, "--depth", depth
    done = verify(bundle, *weights, "--json")
    assert done.exit_code == 0, done.output
    swept = json.loads(done.stdout)["sweep"]
    assert swept["reference"] == f"PyTorch {torch.__version__}"
    assert swept["images"] == 4 * len(DISTORTIONS)
    assert 0 < swept["max_difference"] < 1e-4
    assert swept["srocc"] > 0.99
    run = OrtSession.run
    shifted = lambda self, feeds: {k: v + 2e-3 for k, v in run(self, feeds).items()}  # noqa: E731
    monkeypatch.setattr(OrtSession, "run", shifted)
    done = verify(bundle, *weights, "--quick")
    assert done.exit_code == 4
    assert "OVER its budget" in done.stdout
    assert f"onnxruntime-cpu {ort.__version__} fp32 against PyTorch {torch.__version__}" in done.stdout


@pytest.mark.slow
def test_verify_refuses_weights_that_the_model_was_not_made_from(
    imported: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    bundle, quality, depth = imported
    torch.manual_seed(1)
    save_weights(lively(DGIQA(TINY_QUALITY)), tmp_path / "other.safetensors")
    done = verify(bundle, "--quality", tmp_path / "other.safetensors", "--depth", depth)
    assert isinstance(done.exception, WeightsError)
    assert "give the files that it was made from" in str(done.exception)
    done = verify(bundle, "--quality", depth, "--depth", quality)
    assert isinstance(done.exception, WeightsError)
    assert "do not run as the networks of mine@" in str(done.exception)
    done = verify(Path("small"), "--quality", quality, "--depth", depth)  # whose depth inputs are no multiples of 14
    assert isinstance(done.exception, WeightsError)
    assert "do not run as the networks of small@" in str(done.exception)
    done = verify(bundle, "--quality", quality)
    assert done.exit_code == 2
    assert "go together" in done.output
    done = verify(bundle, "--quality", quality, "--depth", depth, "--quick")
    assert done.exit_code == 0
    assert "worst of 4 images" in done.output


@pytest.mark.slow
def test_imported_weights_score_as_the_reference(
    imported: tuple[Path, Path, Path], photos: dict[str, NDArray[np.uint8]]
) -> None:
    path, *weights = imported
    torch.manual_seed(0)
    quality, depth = lively(DGIQA(TINY_QUALITY)), DepthAnything(TINY_DEPTH).eval()
    bundle = load_bundle(path)
    parity = bundle.manifest["parity"]
    assert parity.keys() == {spec.DEPTH_FILE, spec.QUALITY_FILE, "score"}
    assert parity["score"]["images"] == 4
    assert bundle.manifest["files"][spec.QUALITY_FILE]["licence"] == "Apache-2.0"
    assert bundle.manifest["files"]["golden/01.png"]["licence"].startswith("public domain")
    with Scorer(bundle) as scorer:
        for tiles in ("grid", "official:20"):
            wanted = reference.TorchScorer(depth, quality).score(photos["coffee"], tiles)
            score = scorer.score(photos["coffee"], tiling=tiles)
            assert abs(score.value - wanted.value) < 1e-4
            assert np.abs(score.tile_scores - wanted.tile_scores).max() < 1e-4
    again = import_weights(*weights, path.parent).exception
    assert isinstance(again, BundleError)
    assert "exists" in str(again)


@pytest.mark.slow
def test_to_onnx_prints_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str], script: Script) -> None:
    save_weights(DepthAnything(TINY_DEPTH), tmp_path / "d.safetensors")
    arguments = ["--depth", str(tmp_path / "d.safetensors"), "--out", str(tmp_path / "out")]
    assert script("export/to_onnx.py").main(arguments) == 0
    assert "depth.onnx" in capsys.readouterr().out
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["depth.onnx"]


def test_weights_of_another_network_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], script: Script
) -> None:
    save_weights(DepthAnything(TINY_DEPTH), tmp_path / "d.safetensors")
    arguments = ["--quality", str(tmp_path / "d.safetensors"), "--out", str(tmp_path / "out")]
    assert script("export/to_onnx.py").main(arguments) == 1
    assert "looks like Depth Anything" in capsys.readouterr().err
    arguments += ["--depth", str(tmp_path / "absent.pth"), "--name", "x"]
    refused = CliRunner().invoke(app, ["import-weights", *arguments]).exception
    assert isinstance(refused, WeightsError)
    assert "looks like a depth network" in str(refused)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_twin_is_exported_unless_asked_otherwise(tmp_path: Path, depth: DepthAnything, depth_file: Export) -> None:
    plain = export_depth(depth, tmp_path / "d.onnx", preprocess=TINY_SIZES, twin=False)
    assert depth_file.nodes < 0.9 * plain.nodes
    assert not depth_file.simplified


@pytest.mark.slow
def test_window_attention_stays_one_operator_where_asked(tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = {"embed_dim": 32, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8)}
    sizes = dataclasses.replace(TINY_QUALITY, backbone=FULL.backbone, backbone_options=options, dilated_channels=16)
    network = lively(onnx_export.untrained(DGIQA(sizes)))
    standard = export_quality(network, tmp_path / "standard.onnx", attention="standard")
    fused = export_quality(network, tmp_path / "op.onnx", attention="op")
    graph = onnx.load(fused.path)
    assert sum(node.domain == spec.ONNX_DOMAIN for node in graph.graph.node) == 16
    assert [function.domain for function in graph.functions] == [spec.ONNX_DOMAIN]
    assert not onnx.load(standard.path).functions
    assert fused.nodes < standard.nodes
    folded = export_quality(network, tmp_path / "folded.onnx")  # the default, compared with PyTorch in there
    added = [node.op_type for node in onnx.load(folded.path).graph.node].count("Add")
    assert [node.op_type for node in onnx.load(standard.path).graph.node].count("Add") == added + 6  # the masks
    assert "Tile" not in {node.op_type for node in onnx.load(folded.path).graph.node}


@pytest.mark.slow
def test_a_bundle_may_hold_the_attention_operator_and_scores_as_pytorch(tmp_path: Path, depth: DepthAnything) -> None:
    torch.manual_seed(0)
    options = {"embed_dim": 32, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8)}
    sizes = dataclasses.replace(TINY_QUALITY, backbone=FULL.backbone, backbone_options=options, dilated_channels=16)
    network = lively(onnx_export.untrained(DGIQA(sizes)))
    labels = {"licence": "CC0-1.0", "source": "tests", "name": "b", "title": "b"}
    preprocess = dataclasses.replace(TINY_SIZES, tile=sizes.image_size)
    bundle = bundling.build_bundle(
        tmp_path / "b", quality=network, depth=depth, preprocess=preprocess, attention="op", **labels
    )
    graph = onnx.load(bundle.file(spec.QUALITY_FILE))
    assert sum(node.domain == spec.ONNX_DOMAIN for node in graph.graph.node) == 16
    with Scorer(bundle, backend="onnxruntime") as scorer:
        assert verify_bundle(bundle, scorer).passed


def test_untrained_networks_have_no_zeros_for_tools_to_drop() -> None:
    network = onnx_export.untrained(DGIQA(TINY_QUALITY))
    assert all(parameter.any() for parameter in network.parameters())


@pytest.mark.slow
def test_full_quality_network_is_pytorchs(full_quality_export: Export) -> None:
    assert full_quality_export.difference < onnx_export.SCORE_TOLERANCE
    assert full_quality_export.size_bytes > 4 * 102_878_829


@pytest.mark.slow
def test_depth_anything_small_is_pytorchs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    export = export_depth(DepthAnything("vits"), tmp_path / "d.onnx")
    assert export.difference < onnx_export.DEPTH_TOLERANCE


def shapes(path: Path) -> dict[str, list[str | int]]:
    graph = onnx.load(path).graph
    ends = (*graph.input, *graph.output)
    return {e.name: [d.dim_param or d.dim_value for d in e.type.tensor_type.shape.dim] for e in ends}
