"""GlintIQA: the published sizes and names, what is easily got wrong, its training's frozen parts, and its export."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from dgiqa.errors import WeightsError  # noqa: E402
from dgiqa.nn.checkpoints import load_dgiqa, load_glintiqa, load_weights  # noqa: E402
from dgiqa.nn.glintiqa import ChannelAttention, GlintIQA, GlintIQAConfig  # noqa: E402
from dgiqa.nn.weights import save_weights  # noqa: E402

TINY = GlintIQAConfig(width=12, heads=3, reads=(1, 2, 3, 4), frozen_blocks=1, stem=4, stages=(1, 2, 1), image_size=64)
RENAMES = [
    (r"vgfe\.backbone\.", "transformer."),
    (r"clfe\.backbone\.", "cnn."),
    (r"clfe\.patch_embed", "patch_embed"),
    (r"local_cwsa\.", "att_cnn."),
    (r"local_projection\.", "proj."),
    (r"cwsa(\d)\.", r"fusion\1."),
    (r"siem(\d)\.conv\.", r"conv\1."),
    (r"quality_head\.layers\.", "out."),
]


@pytest.fixture(scope="module")
def tiny() -> GlintIQA:
    torch.manual_seed(0)
    return GlintIQA(TINY).eval()


def test_it_has_the_published_number_of_parameters_and_those_that_learn() -> None:
    with torch.device("meta"):
        model = GlintIQA()
    unused = 3_934_696  # the last two blocks, the last norm and the classifier of the transformer
    assert sum(p.numel() for p in model.parameters()) == 45_136_573 - unused
    assert sum(p.numel() for p in model.freeze().parameters() if p.requires_grad) == 30_589_333
    assert sum(p.numel() for p in model.local_cwsa.parameters()) == 116_228
    assert sum(p.numel() for p in model.quality_head.parameters()) == 148_225


def as_published(model: GlintIQA) -> dict[str, Tensor]:
    """With the layers that the authors' network has beside those that are used, as DataParallel names them."""
    state = dict(model.state_dict())
    last = {n: v for n, v in state.items() if n.startswith("vgfe.backbone.blocks.4.")}
    state |= {
        name.replace("blocks.4.", f"blocks.{number}."): value for name, value in last.items() for number in (5, 6)
    }
    extra = ("norm.weight", "norm.bias", "head.weight", "head.bias")
    state |= {f"vgfe.backbone.{name}": torch.zeros(3) for name in extra}
    return {f"module.{name}": value for name, value in state.items()}


@pytest.mark.parametrize("before", [False, True], ids=["now", "before the refactoring"])
def test_checkpoints_of_the_authors_load(before: bool, tiny: GlintIQA, tmp_path: Path) -> None:
    state = as_published(tiny)
    for old, new in RENAMES if before else []:
        state = {re.sub(rf"^module\.{old}", f"module.{new}", name): value for name, value in state.items()}
    torch.save({"epoch": 7, "state_dict": state, "best_srocc": np.float64(0.9)}, tmp_path / "model_best.pth")
    loaded = load_glintiqa(tmp_path / "model_best.pth", TINY)
    assert not loaded.training
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), tiny.state_dict().values(), strict=True))


def test_own_weights_bring_their_sizes_and_other_networks_are_told(tiny: GlintIQA, tmp_path: Path) -> None:
    save_weights(tiny, tmp_path / "g.safetensors")
    loaded = load_weights(tmp_path / "g.safetensors")
    assert isinstance(loaded, GlintIQA)
    assert loaded.config == TINY
    with pytest.raises(WeightsError, match="is not DGIQA, it looks like GlintIQA"):
        load_dgiqa(tmp_path / "g.safetensors")
    torch.save({n: v for n, v in tiny.state_dict().items() if not n.startswith("cwsa3")}, tmp_path / "part.pth")
    with pytest.raises(WeightsError, match=r"missing: cwsa3\.c_q\.weight"):
        load_glintiqa(tmp_path / "part.pth", TINY)


def test_channel_attention_reads_the_transposed_memory_as_if_it_were_not() -> None:
    torch.manual_seed(0)
    layer, x = ChannelAttention(5, 0.5).eval(), torch.randn(2, 3, 5)
    with torch.no_grad():
        q, k, v = (linear(x) for linear in (layer.c_q, layer.c_k, layer.c_v))
        q, k = (t / t.pow(2).sum(-1, keepdim=True).sqrt() for t in (q, k))
        attended = ((q @ k.transpose(1, 2)) / 5**0.5).softmax(-1) @ v  # [2,3,5]
        scrambled = torch.from_numpy(np.stack([np.ravel(a.T).reshape(3, 5) for a in attended.numpy()]))
        assert torch.allclose(layer(x), x + layer.norm(scrambled), atol=1e-6)
        assert not torch.allclose(layer(x), x + layer.norm(attended), atol=1e-2)


def test_the_four_blocks_that_are_read_all_count(tiny: GlintIQA) -> None:
    rgb = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        maps = tiny.vgfe["backbone"](rgb)
        assert [m.shape for m in maps] == [(2, 16, 12)] * 4
        assert tiny(rgb).shape == (2,)
        assert torch.allclose(tiny(rgb)[1:], tiny(rgb[1:]), atol=1e-6)
        assert torch.equal(tiny.score(tiny.features(rgb)), tiny(rgb))


@pytest.mark.slow
def test_it_becomes_a_bundle_without_depth_that_scores_as_pytorch(tiny: GlintIQA, tmp_path: Path) -> None:
    from dgiqa.nn.bundling import import_weights
    from dgiqa.nn.reference import TorchScorer
    from dgiqa.scorer import Scorer

    skimage = pytest.importorskip("skimage.data")
    save_weights(tiny, tmp_path / "g.safetensors")
    bundle = import_weights(tmp_path / "g.safetensors", None, tmp_path / "g", name="g", scale=(5.0, -1.0))
    assert [network.file for network in bundle.networks] == ["quality.onnx"]
    assert bundle.preprocess.tile == 64
    photo = skimage.coffee()
    with Scorer(bundle) as scorer:
        score = scorer.score(photo, tiling="official:5")
    raw = TorchScorer(None, tiny, bundle.preprocess).score(photo, "official:5").value
    assert abs((score.value * (-1 - 5) + 5) - raw) < 1e-4
