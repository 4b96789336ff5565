"""What a captured step is made of computes what the network computes; on a GPU, so does the graph."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

from cuda_graph import GraphedDGIQA, pad_heads, score_branches  # noqa: E402

from dgiqa.errors import BackendError  # noqa: E402
from dgiqa.nn.network import DGIQA, SMALL, CrossAttention, SelfAttention  # noqa: E402

needs_gpu = pytest.mark.usefixtures("gpu")


@pytest.fixture
def gpu(need_gpu: Callable[..., None]) -> None:
    need_gpu("torch")


@pytest.fixture(scope="module")
def network() -> DGIQA:
    torch.manual_seed(0)
    network = DGIQA(SMALL).eval()
    for module in network.modules():  # untrained running statistics are zeros and ones; scores would hardly differ
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return network


@pytest.fixture(scope="module")
def tiles() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 224, 224, generator=generator), torch.randn(2, 3, 224, 224, generator=generator)


@pytest.mark.parametrize(("width", "heads"), [(960, 16), (160, 4), (256, 4)])  # head dimensions 60, 40 and 64
@pytest.mark.parametrize("block", [CrossAttention, SelfAttention])
def test_padded_heads_are_exact(block: type[torch.nn.Module], width: int, heads: int) -> None:
    torch.manual_seed(2)
    plain = block(width, heads, 0.0).double().eval()
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    inputs = [torch.randn(49, 2, width, dtype=torch.float64) for _ in range(2 if block is CrossAttention else 1)]
    padded = pad_heads(plain)
    names = {type(module).__name__ for module in padded.modules()}
    assert "PaddedAttention" in names
    assert "MultiheadAttention" not in names
    with torch.inference_mode():
        difference = (padded(*inputs) - plain(*inputs)).abs().max()
    assert difference <= 1e-12


def test_padding_leaves_the_original_alone(network: DGIQA) -> None:
    pad_heads(network)
    assert isinstance(network.refinement_attention.multihead_attn_spatial, torch.nn.MultiheadAttention)


def test_nothing_to_pad_is_an_error() -> None:
    with pytest.raises(ValueError, match="no heads to pad"):
        pad_heads(torch.nn.Linear(2, 2))


def test_branches_in_any_order_give_the_models_scores(network: DGIQA, tiles: tuple[torch.Tensor, torch.Tensor]) -> None:
    ran = []

    def second_first(first, second):  # type: ignore[no-untyped-def]
        ran.append(True)
        theirs = second()
        return first(), theirs

    with torch.inference_mode():
        wanted = network(*tiles)
        assert torch.equal(score_branches(network, *tiles), wanted)
        assert torch.equal(score_branches(network, *tiles, second_first), wanted)
        torch.testing.assert_close(score_branches(pad_heads(network), *tiles), wanted, atol=1e-6, rtol=0)
    assert ran


def test_without_depth_car_there_is_one_branch(tiles: tuple[torch.Tensor, torch.Tensor]) -> None:
    from dataclasses import replace

    network = DGIQA(replace(SMALL, depth_car=False)).eval()
    with torch.inference_mode():
        assert torch.equal(score_branches(network, *tiles), network(*tiles))


def test_the_export_twin_splits_into_the_same_branches(
    network: DGIQA, tiles: tuple[torch.Tensor, torch.Tensor]
) -> None:
    from dgiqa.nn.deploy import export_twin

    with torch.inference_mode():
        scores = score_branches(export_twin(network), *tiles)
        torch.testing.assert_close(scores, network(*tiles), atol=1e-6, rtol=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so(network: DGIQA) -> None:
    with pytest.raises(BackendError, match="needs an NVIDIA GPU"):
        GraphedDGIQA(network, 2)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_graph_scores_as_the_network(
    network: DGIQA, tiles: tuple[torch.Tensor, torch.Tensor], dtype: torch.dtype
) -> None:
    with torch.inference_mode():
        wanted = network(*tiles)
    graphed = GraphedDGIQA(network, 2, dtype)
    for _ in range(3):
        scores = graphed(*(tile.cuda() for tile in tiles)).cpu()
        torch.testing.assert_close(scores, wanted, atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="captured for"):
        graphed(tiles[0][:1].cuda(), tiles[1][:1].cuda())
