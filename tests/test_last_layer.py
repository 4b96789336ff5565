"""Grad-CAM from an ONNX file without torch: torch's own gradients, tiles' logits, and files that have none."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dgiqa import spec
from dgiqa.bundle import Bundle, load_bundle
from dgiqa.errors import BundleError
from dgiqa.last_layer import CamSession
from dgiqa.runtime.ort import OrtSession

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")


def assert_grad_cam(network: Any, path: Path) -> None:
    """Places of the file are torch's Grad-CAM of the network, and average to its logit."""
    import torch

    from dgiqa.nn.plots import grad_cam

    network = copy.deepcopy(network)
    rgb, depth = torch.randn(2, 2, 3, 224, 224)
    places = CamSession(path).logits({spec.QUALITY_RGB: rgb.numpy(), spec.QUALITY_DEPTH: depth.numpy()})
    wanted = grad_cam(network, rgb, depth)  # the gradient is of the mean: a 49th of the weights
    with torch.no_grad():
        rest = network(rgb, depth).logit().numpy() - 49 * wanted.mean((1, 2))  # what no place of the stack decides
        assert network.config.statistics or rest == pytest.approx(network.fc.bias.item(), abs=1e-3)
        np.testing.assert_allclose(places, 49 * wanted + rest[:, None, None], rtol=1e-3, atol=1e-3)


def test_places_are_grad_cam_by_torchs_gradients_and_average_to_the_logit(request: pytest.FixtureRequest) -> None:
    pytest.importorskip("torch")
    export = request.getfixturevalue("narrow_quality_export")
    assert_grad_cam(request.getfixturevalue("narrow_quality"), export.path)


@pytest.mark.slow
def test_features_behind_the_means_have_no_place(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from dgiqa.nn.network import with_statistics
    from dgiqa.nn.onnx_export import export_quality

    network = with_statistics(request.getfixturevalue("narrow_quality"))
    network.fc.weight.data[:, network.config.dilated_channels :].normal_(std=0.1)
    assert_grad_cam(network, export_quality(network, tmp_path / "quality.onnx").path)


def test_places_of_the_model_that_ships_average_to_its_logits() -> None:
    path = load_bundle("small").file(spec.QUALITY_FILE)
    generator = np.random.default_rng(0)
    feeds = {name: generator.standard_normal((2, 3, 224, 224), np.float32) for name in ("rgb", "depth")}
    score = OrtSession(path).run(feeds)[spec.QUALITY_OUTPUT]
    places = CamSession(path).logits(feeds)
    np.testing.assert_allclose(places.mean((1, 2)), np.log(score / (1 - score)), atol=1e-3)


def test_networks_whose_gradient_is_no_constant_are_refused(rgb_bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="its features are not means of maps"):
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
