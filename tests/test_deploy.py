"""Reference networks vs their export twins in float64: the same numbers to rounding, from copies of the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

from dgiqa.nn import depth_anything  # noqa: E402
from dgiqa.nn.deploy import export_twin  # noqa: E402
from dgiqa.nn.deploy_depth import TwinDepthAnything  # noqa: E402
from dgiqa.nn.deploy_dgiqa import CellBridge, MapBridge, TokenAttention, TokenBridge, TwinDGIQA, cell_order  # noqa: E402
from dgiqa.nn.deploy_layers import with_pooled_shortcuts  # noqa: E402
from dgiqa.nn.deploy_swin import WindowOrderSwin, is_foldable_swin, window_order  # noqa: E402
from dgiqa.nn.depth import SmallDepth  # noqa: E402
from dgiqa.nn.depth_anything import DepthAnything, DepthAnythingConfig  # noqa: E402
from dgiqa.nn.depth_anything import resize_position_embedding as resize  # noqa: E402
from dgiqa.nn.network import DGIQA, FULL, SMALL, TCB, CrossAttention, SelfAttention  # noqa: E402

EXACT = 1e-12  # relative, in float64
NARROW_SWIN = dataclasses.replace(
    FULL,
    backbone_options={"embed_dim": 16, "depths": (2, 2, 3, 2), "num_heads": (1, 2, 4, 8)},
    tcb_channels=(16, 16, 16, 32),
    heads=4,
    dilated_channels=32,
)
TINY_DEPTH = DepthAnythingConfig(width=24, blocks=5, heads=3, features=16, channels=(8, 8, 16, 16))


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def stirred(network: nn.Module) -> nn.Module:
    """In float64 and eval mode, with every weight, bias, bias table and running statistic a random number."""
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif value.is_floating_point() and value.ndim < 2:
            value.normal_(0.3 if name.endswith("weight") else 0, 0.3)
        elif "relative_position_bias_table" in name or not value.any():
            value.normal_(0, 0.5) if value.is_floating_point() else None
    return network.double().eval()


def difference(got: Tensor, wanted: Tensor) -> float:
    """Largest difference as a part of the largest number; the numbers must not all be the same."""
    assert got.shape == wanted.shape
    assert wanted.std() > 1e-6 * wanted.abs().max()
    return float((got - wanted).abs().max() / wanted.abs().max())


def images(n: int = 2, size: int = 224) -> tuple[Tensor, Tensor]:
    rgb, depth = torch.randn(2, n, 3, size, size, dtype=torch.float64)
    return rgb, depth


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        NARROW_SWIN,
        dataclasses.replace(NARROW_SWIN, depth_car=False),
        dataclasses.replace(NARROW_SWIN, dilated=False),
        dataclasses.replace(SMALL, depth_car=False, dilated=False, image_size=96),
        dataclasses.replace(SMALL, statistics=True, soften=0.05),
    ],
    ids=["small", "swin", "no depth-car", "no dilated", "96 pixels", "statistics, softened"],
)
def test_dgiqa_twin_is_the_network(config: object) -> None:
    network = stirred(DGIQA(config))  # type: ignore[arg-type]
    rgb, depth = images(size=network.config.image_size)
    wanted = network.features(rgb, depth)
    for attention in (None, "standard"):
        twin = export_twin(network, attention)  # type: ignore[arg-type]
        assert isinstance(twin, TwinDGIQA)
        assert difference(twin.features(rgb, depth), wanted) < EXACT
        assert twin(rgb, depth).shape == (2,)


@pytest.mark.parametrize("head", [{"reasons": 3}, {"statistics": True}], ids=lambda head: next(iter(head)))
def test_a_swin_whose_whole_maps_are_read_has_no_twin(head: dict[str, int]) -> None:
    assert type(export_twin(DGIQA(dataclasses.replace(NARROW_SWIN, **head)))) is DGIQA


@pytest.mark.slow
def test_the_papers_network_has_an_exact_twin() -> None:
    network = stirred(DGIQA(FULL))
    rgb, depth = images(1)
    assert difference(export_twin(network).features(rgb, depth), network.features(rgb, depth)) < EXACT


def test_scores_are_the_networks() -> None:
    network = stirred(DGIQA(SMALL)).float()
    network.fc.weight.mul_(0.05)
    rgb, depth = (x.float() for x in images(3))
    assert (export_twin(network)(rgb, depth) - network(rgb, depth)).abs().max() < 1e-6


def test_a_twin_has_weights_of_its_own() -> None:
    network = stirred(DGIQA(SMALL)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    twin = export_twin(network)
    rgb, depth = images(1)
    scores = twin.features(rgb, depth)
    assert network.training
    assert not twin.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    for parameter in network.parameters():
        parameter.zero_()
    assert torch.equal(twin.features(rgb, depth), scores)


def test_networks_without_a_twin_are_exported_themselves() -> None:
    assert isinstance(export_twin(SmallDepth()), SmallDepth)
    without = dataclasses.replace(SMALL, tcb=False, depth_backbone=None, depth_backbone_options={})
    assert isinstance(export_twin(DGIQA(without)), DGIQA)
    with pytest.raises(ValueError, match="standard, folded, op"):
        export_twin(SmallDepth(), "fused")  # type: ignore[arg-type]


# Swin in window order


def test_tokens_come_at_the_positions_asked_for() -> None:
    network = stirred(DGIQA(NARROW_SWIN))
    image, _ = images()
    wanted = [torch.randperm(side * side)[:20] for side in (56, 28, 14, 7)]
    got = WindowOrderSwin(network.backbone, wanted)(image)
    for tokens, reference, places in zip(got, network.backbone(image), wanted, strict=True):
        assert difference(tokens, reference.flatten(1, 2)[:, places]) < EXACT


def test_window_order_is_roll_and_partition() -> None:
    order = window_order(4, 6, (2, 3), (1, 1)).reshape(4, 2, 3)  # windows, rows, columns
    assert order[0].tolist() == [[7, 8, 9], [13, 14, 15]]
    assert order[3].tolist() == [[22, 23, 18], [4, 5, 0]]
    assert order.flatten().sort().values.tolist() == list(range(24))


def test_swins_that_pad_keep_their_own_order() -> None:
    assert is_foldable_swin(DGIQA(NARROW_SWIN).backbone)
    assert not is_foldable_swin(DGIQA(dataclasses.replace(NARROW_SWIN, image_size=256)).backbone)
    assert not is_foldable_swin(DGIQA(SMALL).backbone)


# Bridges


@pytest.mark.parametrize("ratio", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", [MapBridge, TokenBridge, CellBridge])
def test_bridges_are_tcb_and_bilinear_resizing(kind: type[nn.Module], ratio: int) -> None:
    if kind is CellBridge and ratio < 4:
        pytest.skip("cells of 4 x 4 pixels or more")
    cells = 5
    bridge = stirred(TCB(6, 8, 2, 0.1))
    x = torch.randn(3, 6, cells * ratio, cells * ratio, dtype=torch.float64)
    wanted = torch.nn.functional.interpolate(bridge(x), (cells, cells), mode="bilinear", align_corners=False)
    if kind is MapBridge:
        assert difference(MapBridge(bridge, cells, ratio)(x), wanted) < EXACT
        return
    tokens = x.flatten(2).mT
    if kind is TokenBridge:
        got = TokenBridge(bridge, cells, ratio)(tokens)
    else:
        got = CellBridge(bridge)(tokens[:, cell_order(cells, ratio)])
    assert difference(got.mT.unflatten(2, (cells, cells)), wanted) < EXACT


@pytest.mark.parametrize("block", [CrossAttention, SelfAttention])
def test_depth_car_is_the_same_batch_first(block: type[nn.Module]) -> None:
    reference = stirred(block(20, 4, 0.1))
    query, other = torch.randn(2, 3, 49, 20, dtype=torch.float64)
    other = query if block is SelfAttention else other
    got, wanted = TokenAttention(reference)(query, other), reference(query.transpose(0, 1), other.transpose(0, 1))
    assert difference(got, wanted.transpose(0, 1)) < EXACT


@pytest.mark.parametrize("size", [8, 7])
def test_pooled_shortcuts_are_one_convolution(size: int) -> None:
    shortcut = nn.Sequential(nn.AvgPool2d(2, 2), nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5))
    stirred(shortcut)
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    wanted = shortcut(x)
    folded = with_pooled_shortcuts(nn.Sequential(shortcut))
    assert not any(isinstance(module, nn.AvgPool2d) for module in folded.modules())
    assert difference(folded(x), wanted) < EXACT
    uneven = nn.Sequential(nn.Sequential(nn.AvgPool2d(2, 2, ceil_mode=True), nn.Conv2d(3, 5, 1)))
    assert isinstance(with_pooled_shortcuts(uneven)[0][0], nn.AvgPool2d)


# Depth


@pytest.mark.parametrize("size", [(14, 42), (70, 56), (518, 28)])
def test_depth_twin_is_the_network(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    float32_only = lambda e, *n: resize(e.float(), *n).double()  # noqa: E731 - both networks call the same one
    monkeypatch.setattr(depth_anything, "resize_position_embedding", float32_only)
    network = stirred(DepthAnything(TINY_DEPTH))
    network.depth_head.scratch["output_conv2"][2].bias.fill_(5)  # no depth at zero, where all networks agree
    twin = export_twin(network)
    assert isinstance(twin, TwinDepthAnything)
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    assert difference(twin(image), network(image)) < EXACT


# The operator


def test_attention_op_keeps_one_node_per_block() -> None:
    options = {"embed_dim": 32, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8)}  # heads of 32, as kernels want them
    network = stirred(DGIQA(dataclasses.replace(NARROW_SWIN, backbone_options=options)))
    twin = export_twin(network, "op")
    assert isinstance(twin, TwinDGIQA)
    assert sum(type(module).__name__ == "FusedSwinBlock" for module in twin.modules()) == 16
    rgb, depth = images(1)
    assert difference(twin.features(rgb, depth), network.features(rgb, depth)) < EXACT
    with pytest.raises(ValueError, match="Swin"):
        export_twin(DGIQA(SMALL), "op")


# Folded windows


def test_folded_windows_are_the_network_and_add_one_constant() -> None:
    network = stirred(DGIQA(NARROW_SWIN))
    twin = export_twin(network, "folded")
    rgb, depth = images()
    assert difference(twin.features(rgb, depth), network.features(rgb, depth)) < EXACT
    stages = twin.branches[0].backbone.stages
    assert all(stage.mask is None for stage in stages)
    shifted = stages[0].blocks[1].attention
    assert shifted.windows == 64
    assert shifted.bias.shape == (1, 64 * shifted.heads, 49, 49)
    assert stages[0].blocks[0].attention.bias.shape == (1, shifted.heads, 49, 49)
    assert all(stage.mask is None for stage in export_twin(network).branches[0].backbone.stages)  # the default
    plain = export_twin(network, "standard").branches[0].backbone.stages
    assert plain[0].mask is not None
    with pytest.raises(ValueError, match="nothing to fold"):
        export_twin(DGIQA(SMALL), "folded")


def test_folded_windows_are_what_fused_attention_takes() -> None:
    """torch's SDPA, and ONNX's Attention, which broadcasts one mask over the batch."""
    onnxruntime = pytest.importorskip("onnxruntime")
    helper = pytest.importorskip("onnx.helper")
    block = export_twin(stirred(DGIQA(NARROW_SWIN)), "folded").branches[0].backbone.stages[2].blocks[1].attention
    x = torch.randn(3 * 196, block.proj.in_features, dtype=torch.float64)
    q, k, v = (block._by_head(p(x)) for p in block.projections)  # the scale is in q
    wanted = (q @ k.mT + block.bias).softmax(-1) @ v
    fused = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=block.bias, scale=1.0)
    assert difference(fused, wanted) < EXACT
    feeds = {name: t.float().numpy() for name, t in zip("qkvm", (q, k, v, block.bias), strict=True)}
    node = helper.make_node("Attention", list("qkvm"), ["y"], scale=1.0)
    ends = [helper.make_tensor_value_info(name, 1, array.shape) for name, array in feeds.items()]
    graph = helper.make_graph([node], "g", ends, [helper.make_tensor_value_info("y", 1, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, feeds)
    assert difference(torch.from_numpy(got).double(), wanted) < 1e-5
