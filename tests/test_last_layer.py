"""Grad-CAM from an ONNX file without torch: torch's own gradients, tiles' logits, and files that have none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dgiqa import spec
from dgiqa.bundle import Bundle
from dgiqa.errors import BundleError
from dgiqa.last_layer import CamSession

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")


@pytest.mark.parametrize("statistics", [False, True])
def test_places_are_grad_cam_by_torchs_gradients_and_average_to_the_logit(tmp_path: Path, statistics: bool) -> None:
    torch = pytest.importorskip("torch")
    from dgiqa.nn.network import DGIQA, DGIQAConfig
    from dgiqa.nn.onnx_export import export_quality
    from dgiqa.nn.plots import grad_cam

    torch.manual_seed(0)
    options = {"channels": (8, 8, 16, 16), "stem_type": "deep", "stem_width": 8}
    sizes = DGIQAConfig("resnet10t", options, tcb_channels=(4, 4, 8, 8), reduction=2, heads=2, dilated_channels=8)
    network = DGIQA(replace(sizes, statistics=statistics)).eval()
    with torch.no_grad():
        network.fc.weight[:, : sizes.dilated_channels].mul_(40)
    cam = CamSession(export_quality(network, tmp_path / "quality.onnx").path)
    rgb, depth = torch.randn(2, 2, 3, 224, 224)
    places = cam.logits({spec.QUALITY_RGB: rgb.numpy(), spec.QUALITY_DEPTH: depth.numpy()})
    wanted = grad_cam(network, rgb, depth)  # the gradient is of the mean: a 49th of the weights
    with torch.no_grad():
        rest = network(rgb, depth).logit().numpy() - 49 * wanted.mean((1, 2))  # what no place of the stack decides
        assert statistics or rest == pytest.approx(network.fc.bias.item(), abs=1e-3)
        np.testing.assert_allclose(places, 49 * wanted + rest[:, None, None], rtol=1e-3, atol=1e-3)


def test_networks_whose_gradient_is_no_constant_are_refused(rgb_bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="its features are no means of maps"):
        CamSession(rgb_bundle.file(spec.QUALITY_FILE))


def test_torch_shows_places_of_a_head_that_is_not_linear() -> None:
    torch = pytest.importorskip("torch")
    from dgiqa.nn.glintiqa import GlintIQA, GlintIQAConfig
    from dgiqa.nn.plots import grad_cam

    torch.manual_seed(0)
    sizes = GlintIQAConfig(12, 3, reads=(1, 2, 3, 4), frozen_blocks=1, stem=4, stages=(1, 2, 1), image_size=64)
    network = GlintIQA(sizes).eval()
    rgb = torch.randn(2, 3, 64, 64)
    features = network.features(rgb).detach().requires_grad_()
    network.score(features).sum().backward()
    places = grad_cam(network, rgb)
    assert places.shape == (2, 4, 4)
    np.testing.assert_allclose(places.sum((1, 2)), (features * features.grad).sum(1).detach(), rtol=1e-4)
