"""The reference network is the paper's: its sizes, the published names, and what its attention means."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from dgiqa.nn.network import DGIQA, FULL, SMALL, CrossAttention, softened  # noqa: E402
from dgiqa.nn.train import build_network  # noqa: E402

# Names and shapes of the published checkpoints (the paper's layout); {i} and {j} run over stages and blocks.
SWIN_BLOCK = {
    "norm1.weight": "c",
    "norm1.bias": "c",
    "attn.relative_position_bias_table": "169,h",
    "attn.qkv.weight": "3c,c",
    "attn.qkv.bias": "3c",
    "attn.proj.weight": "c,c",
    "attn.proj.bias": "c",
    "norm2.weight": "c",
    "norm2.bias": "c",
    "mlp.fc1.weight": "4c,c",
    "mlp.fc1.bias": "4c",
    "mlp.fc2.weight": "c,4c",
    "mlp.fc2.bias": "c",
}
ATTENTION = {
    "in_proj_weight": (2880, 960),
    "in_proj_bias": (2880,),
    "out_proj.weight": (960, 960),
    "out_proj.bias": (960,),
}


@pytest.fixture(scope="module")
def full() -> DGIQA:
    torch.manual_seed(0)
    return DGIQA(FULL).eval()


@pytest.fixture(scope="module")
def small() -> DGIQA:
    torch.manual_seed(0)
    return DGIQA(SMALL).eval()


def tiles(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 3, 224, 224, generator=torch.Generator().manual_seed(seed))


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_full_network_has_the_papers_size(full: DGIQA) -> None:
    assert parameters(full) == 102_878_829


@pytest.mark.parametrize(("switch", "millions"), [("tcb", 127.55), ("depth_car", 49.51), ("dilated", 84.59)])
def test_ablations_have_the_sizes_of_table_4(switch: str, millions: float) -> None:
    with torch.device("meta"):
        model = DGIQA(replace(FULL, **{switch: False}))
    assert parameters(model) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize("switch", ["tcb", "depth_car", "dilated"])
def test_ablations_score(switch: str) -> None:
    with torch.no_grad():
        scores = build_network("small", without=switch).eval()(tiles(2), tiles(2, 1))
    assert scores.shape == (2,)


def test_state_dict_has_the_published_layout(full: DGIQA) -> None:
    got = {name: tuple(value.shape) for name, value in full.state_dict().items()}
    assert got == dict(published_layout())


def test_scores_are_between_0_and_1_one_per_tile(full: DGIQA) -> None:
    with torch.no_grad():
        scores = full(20 * tiles(2), 20 * tiles(2, 1))
    assert scores.shape == (2,)
    assert scores.dtype == torch.float32
    assert ((scores >= 0) & (scores <= 1)).all()


def test_evaluation_is_deterministic_and_tiles_do_not_see_each_other(small: DGIQA) -> None:
    rgb, depth = tiles(3), tiles(3, 1)
    with torch.no_grad():
        together, again = small(rgb, depth), small(rgb, depth)
        alone = torch.cat([small(rgb[i : i + 1], depth[i : i + 1]) for i in range(3)])
    assert torch.equal(together, again)
    assert torch.allclose(together, alone, atol=1e-6)


def test_every_parameter_learns() -> None:
    torch.manual_seed(0)
    model = DGIQA(SMALL).eval()
    for parameter in model.parameters():  # residual branches start closed, at a weight of 0; open them
        if not parameter.any():
            torch.nn.init.constant_(parameter, 0.1)
    model(tiles(2), tiles(2, 1)).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_rgb_and_depth_have_networks_of_their_own(small: DGIQA) -> None:
    rgb, depth = tiles(1), tiles(1, 1)
    with torch.no_grad():
        assert not torch.allclose(small(rgb, depth), small(depth, rgb), atol=1e-7)


def test_cross_attention_asks_with_depth_and_answers_with_rgb() -> None:
    torch.manual_seed(0)
    block = CrossAttention(24, 4, 0.1).eval()
    torch.nn.init.normal_(block.multihead_attn.in_proj_bias)
    depth, rgb = torch.randn(2, 49, 3, 24)
    with torch.no_grad():
        assert torch.allclose(block(depth, rgb), cross_attention_by_hand(block, depth, rgb), atol=1e-5)


def test_the_network_passes_depth_as_the_query(small: DGIQA) -> None:
    seen = {}
    hook = small.depth_guided_cross_attention.register_forward_pre_hook(
        lambda _, inputs: seen.update(depth=inputs[0], rgb=inputs[1])
    )
    with torch.no_grad():
        small(tiles(1), tiles(1, 1))
        first = dict(seen)
        small(tiles(1), tiles(1, 2))
    hook.remove()
    assert torch.equal(first["rgb"], seen["rgb"])
    assert not torch.equal(first["depth"], seen["depth"])


def cross_attention_by_hand(block: CrossAttention, depth: torch.Tensor, rgb: torch.Tensor) -> torch.Tensor:
    """The paper's formula with plain matrix products, one tile and one head at a time; [T,N,C] in and out."""
    attention = block.multihead_attn
    wq, wk, wv = attention.in_proj_weight.chunk(3)
    bq, bk, bv = attention.in_proj_bias.chunk(3)
    out = torch.empty_like(depth)
    for n in range(depth.shape[1]):
        q, k, v = depth[:, n] @ wq.T + bq, rgb[:, n] @ wk.T + bk, rgb[:, n] @ wv.T + bv
        heads = [
            (qh @ kh.T / qh.shape[1] ** 0.5).softmax(-1) @ vh
            for qh, kh, vh in zip(*(x.split(6, dim=1) for x in (q, k, v)), strict=True)
        ]
        out[:, n] = torch.cat(heads, 1) @ attention.out_proj.weight.T + attention.out_proj.bias
    x = block.norm1(depth + out)
    return block.norm2(x + block.fc(x))


def published_layout() -> Iterator[tuple[str, tuple[int, ...]]]:
    for backbone in ("backbone", "depth_backbone"):
        yield from swin_tiny(backbone)
    channels = ((96, 64), (192, 128), (384, 256), (768, 512))
    for level, (a, b) in enumerate(channels, 1):
        for name in (f"tcb{level}", f"tcb{level}_depth"):
            yield from layer(f"{name}.conv1", (b, a, 1, 1))
            yield from layer(f"{name}.attention.0", (b // 16, b, 1, 1))
            yield from layer(f"{name}.attention.2", (b, b // 16, 1, 1))
            yield from layer(f"{name}.conv2", (b, b, 3, 3))
            yield from batch_norm(f"{name}.norm", b)
    for block, suffix in (("depth_guided_cross_attention", ""), ("refinement_attention", "_spatial")):
        for name, shape in ATTENTION.items():
            yield f"{block}.multihead_attn{suffix}.{name}", shape
        for norm in ("norm1", "norm2"):
            yield from layer(f"{block}.{norm}{suffix}", (960,))
        yield from layer(f"{block}.fc{suffix}.0", (3840, 960))
        yield from layer(f"{block}.fc{suffix}.2", (960, 3840))
    for index, width in ((0, 960), (3, 1024)):
        yield from layer(f"dilated_stack.{index}", (1024, width, 3, 3))
        yield from batch_norm(f"dilated_stack.{index + 1}", 1024)
    yield from layer("fc", (1, 1024))


def swin_tiny(prefix: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from layer(f"{prefix}.patch_embed.proj", (96, 3, 4, 4))
    yield from layer(f"{prefix}.patch_embed.norm", (96,))
    for stage, (width, heads, blocks) in enumerate(((96, 3, 2), (192, 6, 2), (384, 12, 6), (768, 24, 2))):
        if stage:
            yield from layer(f"{prefix}.layers_{stage}.downsample.norm", (2 * width,))
            yield f"{prefix}.layers_{stage}.downsample.reduction.weight", (width, 2 * width)
        sizes = {"c": width, "3c": 3 * width, "4c": 4 * width, "h": heads, "169": 169}
        for block in range(blocks):
            for name, shape in SWIN_BLOCK.items():
                yield f"{prefix}.layers_{stage}.blocks.{block}.{name}", tuple(sizes[s] for s in shape.split(","))


def layer(name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def batch_norm(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{part}", (width,)
    yield f"{name}.num_batches_tracked", ()


def test_a_softened_tile_is_what_opencv_smooths() -> None:
    tile = np.random.default_rng(0).normal(size=(20, 24, 3)).astype(np.float32)
    row = np.array((0.05, 0.9, 0.05), np.float32)
    wanted = cv2.sepFilter2D(tile, -1, row, row, borderType=cv2.BORDER_CONSTANT)
    found = softened(torch.from_numpy(tile).permute(2, 0, 1)[None], 0.05)[0].permute(1, 2, 0)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert softened(found, 0.0) is found
