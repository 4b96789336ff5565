"""Depth Anything: the published layout, every image size, and the pieces that are easy to get wrong."""

from __future__ import annotations

import dataclasses
import re

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402, N812

from dgiqa.nn.depth_anything import (  # noqa: E402
    ENCODERS,
    DepthAnything,
    DepthAnythingConfig,
    resize_position_embedding,
)

TINY = DepthAnythingConfig(width=24, blocks=6, heads=3, features=16, channels=(8, 12, 16, 20))


@pytest.fixture(scope="module")
def tiny() -> DepthAnything:
    torch.manual_seed(0)
    return DepthAnything(TINY).eval()


@pytest.mark.parametrize(("encoder", "parameters"), [("vits", 24_785_089), ("vitb", 97_470_785), ("vitl", 335_315_649)])
def test_encoders_have_the_published_sizes(encoder: str, parameters: int) -> None:
    with torch.device("meta"):
        model = DepthAnything(encoder)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("encoder", list(ENCODERS))
def test_state_dict_has_the_published_layout(encoder: str) -> None:
    with torch.device("meta"):
        names = DepthAnything(encoder).state_dict().keys()
    block = "norm1 attn.qkv attn.proj ls1.gamma norm2 mlp.fc1 mlp.fc2 ls2.gamma"
    unit = "resConfUnit1.conv1 resConfUnit1.conv2 resConfUnit2.conv1 resConfUnit2.conv2 out_conv"
    head = [f"projects.{i}" for i in range(4)] + [f"resize_layers.{i}" for i in (0, 1, 3)]
    head += [f"scratch.layer{i}_rn" for i in range(1, 5)]
    head += [f"scratch.refinenet{i}.{name}" for i in range(1, 5) for name in unit.split()]
    head += ["scratch.output_conv1", "scratch.output_conv2.0", "scratch.output_conv2.2"]
    expected = {f"pretrained.{name}" for name in ("cls_token", "pos_embed", "mask_token", "patch_embed.proj", "norm")}
    expected |= {f"pretrained.blocks.{i}.{n}" for i in range(ENCODERS[encoder].blocks) for n in block.split()}
    expected |= {f"depth_head.{name}" for name in head}
    assert {re.sub(r"\.(weight|bias)$", "", name) for name in names} == expected
    assert [name for name in names if re.search(r"layer\d_rn\.bias", name)] == []


@pytest.mark.parametrize("grid", [(1, 2), (2, 1), (19, 19), (36, 37), (37, 49), (49, 37), (28, 66), (74, 40)])
def test_position_embedding_is_bicubic_with_the_published_offset(grid: tuple[int, int]) -> None:
    embedding = torch.randn(1, 1 + 37 * 37, 8, generator=torch.Generator().manual_seed(0))
    truth, naive = bicubic(embedding.double(), grid), bicubic(embedding, grid)
    got = resize_position_embedding(embedding, *grid)
    assert torch.equal(got[:, :1], embedding[:, :1])
    # Twice the error that torch's own interpolation makes in float32; 1e-5 at the embedding's real scale of 0.1.
    assert (got[:, 1:] - truth).abs().max() <= 2 * (naive - truth).abs().max()
    assert 0.1 * (got[:, 1:] - naive).abs().max() < 1e-5


def bicubic(embedding: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """The patch tokens resized as the published code does it."""
    square = embedding[:, 1:].reshape(1, 37, 37, 8).permute(0, 3, 1, 2)
    scale = tuple((n + 0.1) / 37 for n in grid)
    return F.interpolate(square, scale_factor=scale, mode="bicubic").permute(0, 2, 3, 1).reshape(1, -1, 8)


def test_position_embedding_of_the_native_grid_is_untouched() -> None:
    embedding = torch.randn(1, 1 + 37 * 37, 8)
    assert torch.equal(resize_position_embedding(embedding, 37, 37), embedding)


@pytest.mark.parametrize("size", [(14, 14), (28, 70), (70, 28), (98, 84)])
def test_depth_has_the_images_size_and_is_never_negative(tiny: DepthAnything, size: tuple[int, int]) -> None:
    with torch.no_grad():
        depth = tiny(3 * torch.randn(2, 3, *size))
    assert depth.shape == (2, *size)
    assert depth.min() >= 0
    assert depth.std() > 0


@pytest.mark.parametrize("size", [(15, 14), (14, 27)])
def test_sizes_that_are_no_multiples_of_14_are_refused(tiny: DepthAnything, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="multiples of 14"):
        tiny(torch.zeros(1, 3, *size))


def test_images_of_a_batch_do_not_see_each_other(tiny: DepthAnything) -> None:
    images = torch.randn(2, 3, 42, 56)
    with torch.no_grad():
        assert torch.allclose(tiny(images)[1:], tiny(images[1:]), atol=1e-6)


@pytest.mark.parametrize("reads", [(), (0, 2, 3, 5)], ids=["v1", "others"])
def test_the_head_reads_the_blocks_that_the_sizes_name(reads: tuple[int, ...], tiny: DepthAnything) -> None:
    model = DepthAnything(dataclasses.replace(TINY, reads=reads)).eval()
    model.load_state_dict(tiny.state_dict())
    image = torch.randn(1, 3, 42, 56)
    with torch.no_grad():
        wanted = F.relu(model.depth_head(model.pretrained(image, reads or (2, 3, 4, 5)))).squeeze(1)
        assert torch.equal(model(image), wanted)
        assert torch.equal(model(image), tiny(image)) == (not reads)


def test_the_head_reads_blocks_normalised(tiny: DepthAnything) -> None:
    outputs: list[torch.Tensor] = []
    hooks = [block.register_forward_hook(lambda *call: outputs.append(call[2])) for block in tiny.pretrained.blocks]
    with torch.no_grad():
        maps = tiny.pretrained(torch.randn(1, 3, 42, 56), (2, 3, 4, 5))
        wanted = [tiny.pretrained.norm(x)[:, 1:].transpose(1, 2).reshape(1, 24, 3, 4) for x in outputs[2:]]
    for hook in hooks:
        hook.remove()
    assert len(maps) == 4
    assert all(torch.equal(got, want) for got, want in zip(maps, wanted, strict=True))


def test_attention_is_softmax_of_scaled_products(tiny: DepthAnything) -> None:
    attention = tiny.pretrained.blocks[0].attn
    x = torch.randn(2, 5, 24)
    with torch.no_grad():
        q, k, v = attention.qkv(x).chunk(3, -1)
        heads = [
            (qh @ kh.mT / 8**0.5).softmax(-1) @ vh
            for qh, kh, vh in zip(*(t.split(8, -1) for t in (q, k, v)), strict=True)
        ]
        assert torch.allclose(attention(x), attention.proj(torch.cat(heads, -1)), atol=1e-6)


def test_unknown_encoder_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="vits, vitb, vitl"):
        DepthAnything("vitg")
