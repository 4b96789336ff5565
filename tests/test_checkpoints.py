"""Weight files: the authors' names in every spelling load, anything else is refused with the reason, no code runs."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
from damage import damaged

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

from dgiqa.errors import WeightsError  # noqa: E402
from dgiqa.nn import weights  # noqa: E402
from dgiqa.nn.checkpoints import load_depth_anything, load_dgiqa, load_weights  # noqa: E402
from dgiqa.nn.depth_anything import DepthAnything, DepthAnythingConfig  # noqa: E402
from dgiqa.nn.depth_layouts import blocks_read  # noqa: E402
from dgiqa.nn.network import DGIQA, SMALL, DGIQAConfig  # noqa: E402
from dgiqa.nn.weights import read_tensors, save_weights  # noqa: E402

TINY_DEPTH = DepthAnythingConfig(width=24, blocks=4, heads=3, features=8, channels=(8, 8, 8, 8))
# A Swin with the stages of the paper's, narrow and with few blocks: the names are what matters here.
SWIN = DGIQAConfig(
    backbone_options={"embed_dim": 24, "depths": (2, 1, 1, 1), "num_heads": (1, 2, 3, 6)},
    tcb_channels=(8, 8, 8, 8),
    reduction=4,
    heads=4,
    dilated_channels=16,
)
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def swin() -> DGIQA:
    torch.manual_seed(0)
    return DGIQA(SWIN).eval()


@pytest.fixture(scope="module")
def depth() -> DepthAnything:
    torch.manual_seed(0)
    return DepthAnything(TINY_DEPTH).eval()


class Runs:
    """Pickled, this creates a file when it is loaded by a pickle that runs code."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.trace,)


def dotted_stages(state: State) -> State:
    return {name.replace("backbone.layers_", "backbone.layers."): value for name, value in state.items()}


def getter_stages(state: State) -> State:
    return {name.replace("backbone.", "backbone.model."): value for name, value in dotted_stages(state).items()}


def downsampling_at_the_end(state: State) -> State:
    """As the original Swin, and timm before 0.9, have it."""
    pattern = re.compile(r"layers_(\d)\.downsample")
    return {pattern.sub(lambda m: f"layers_{int(m[1]) - 1}.downsample", name): value for name, value in state.items()}


def stored_constants(state: State) -> State:
    blocks = [f"{net}.layers_0.blocks.1" for net in ("backbone", "depth_backbone")]
    masks = {f"{block}.attn_mask": torch.zeros(64, 49, 49) for block in blocks}
    indices = {f"{block}.attn.relative_position_index": torch.zeros(49, 49, dtype=torch.int64) for block in blocks}
    return {**state, **masks, **indices}


def data_parallel(state: State) -> State:
    return {f"module.{name}": value for name, value in state.items()}


@pytest.mark.parametrize(
    "rename", [dict, dotted_stages, getter_stages, downsampling_at_the_end, stored_constants, data_parallel]
)
def test_every_spelling_of_the_authors_names_loads(
    rename: Callable[[State], State], swin: DGIQA, tmp_path: Path
) -> None:
    torch.save(rename(swin.state_dict()), tmp_path / "dgiqa.pth")
    assert_same(load_dgiqa(tmp_path / "dgiqa.pth", SWIN), swin)


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_weights_are_found_inside_a_training_state(wrapper: str, swin: DGIQA, tmp_path: Path) -> None:
    state = {wrapper: data_parallel(swin.state_dict()), "epoch": 3, "optimizer": {"lr": 0.1}}
    torch.save(state, tmp_path / "last.pth")
    assert_same(load_dgiqa(tmp_path / "last.pth", SWIN), swin)


def test_old_style_pth_loads(swin: DGIQA, tmp_path: Path) -> None:
    torch.save(swin.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_same(load_dgiqa(tmp_path / "old.pth", SWIN), swin)


def test_half_precision_weights_become_float32(swin: DGIQA, tmp_path: Path) -> None:
    torch.save({name: value.half() for name, value in swin.state_dict().items()}, tmp_path / "half.pth")
    loaded = load_dgiqa(tmp_path / "half.pth", SWIN)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


@pytest.mark.parametrize("config", [SWIN, SMALL], ids=["swin", "small"])
def test_safetensors_bring_weights_and_sizes_back(config: DGIQAConfig, tmp_path: Path) -> None:
    model = DGIQA(config)
    save_weights(model, tmp_path / "w.safetensors", {"note": "x"})
    loaded = load_weights(tmp_path / "w.safetensors")
    assert isinstance(loaded, DGIQA)
    assert loaded.config == config
    assert not loaded.training
    assert_same(loaded, model)
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]
    assert read_tensors(tmp_path / "w.safetensors")[1]["note"] == "x"
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:300])
    with pytest.raises(WeightsError, match=r"cut\.safetensors is damaged or cut short"):
        read_tensors(tmp_path / "cut.safetensors")


def test_depth_weights_round_trip(depth: DepthAnything, tmp_path: Path) -> None:
    save_weights(depth, tmp_path / "d.safetensors")
    loaded = load_weights(tmp_path / "d.safetensors")
    assert isinstance(loaded, DepthAnything)
    assert loaded.config == TINY_DEPTH
    assert_same(loaded, depth)


def test_small_depth_weights_round_trip(tmp_path: Path) -> None:
    from dgiqa.nn.depth import SmallDepth, save_small_depth

    model = SmallDepth()
    save_small_depth(model, str(tmp_path / "s.safetensors"))
    assert_same(load_weights(tmp_path / "s.safetensors"), model)


def test_encoder_is_found_from_the_shapes(tmp_path: Path) -> None:
    model = DepthAnything("vits")
    torch.save(model.state_dict(), tmp_path / "depth_anything_vits14.pth")
    assert_same(load_depth_anything(tmp_path / "depth_anything_vits14.pth"), model)


V1_NAMES = ["depth_anything_vits14.pth", "depth-anything-v1-small.pth"]
V2_NAMES = ["depth_anything_v2_vits.pth", "vits_v2.pth", "depthanythingv2_vits.pth", "DAv2-small.pth", "da2_small.pth"]


@pytest.fixture(scope="module")
def vits() -> State:
    """Depth Anything ViT-S of few numbers: 239 tensors of the published names and shapes in 1 % of the memory."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in DepthAnything("vits").state_dict().items()}
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", [*V1_NAMES, *V2_NAMES])
def test_v1_and_v2_of_depth_anything_are_told_by_names_that_agree(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    assert blocks_read(tmp_path / name, 12, None) == (() if name in V1_NAMES else (2, 5, 8, 11))
    assert blocks_read(tmp_path / name, 12, "v2") == (2, 5, 8, 11), "what the user says counts"
    assert blocks_read(tmp_path / name, 24, "v2") == (4, 11, 17, 23)
    assert blocks_read(tmp_path / name, 12, "v1") == ()


@pytest.mark.parametrize(
    ("saved", "renamed", "message"),
    [
        ("depth_anything_v2_vits.pth", "depth_anything_vits14.pth", "both V1 and V2"),
        ("last.pth", "depth.pth", "does not say whether"),
        ("vits.pth", "vits.pth", "does not say whether"),
    ],
)
def test_a_depth_network_in_doubt_is_refused_and_the_option_is_named(
    saved: str, renamed: str, message: str, tmp_path: Path
) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / saved)
    (tmp_path / saved).rename(tmp_path / renamed)
    with pytest.raises(WeightsError, match=message) as error:
        blocks_read(tmp_path / renamed, 12, None)
    assert "--depth-version v1 or --depth-version v2" in str(error.value)
    with pytest.raises(ValueError, match="wanted one of v1, v2"):
        blocks_read(tmp_path / renamed, 12, "v3")


def test_v2_weights_load_as_v2_and_keep_it_when_saved(vits: State, tmp_path: Path) -> None:
    torch.save(vits, tmp_path / "depth_anything_v2_vits.pth")
    loaded = load_weights(tmp_path / "depth_anything_v2_vits.pth")
    assert isinstance(loaded, DepthAnything)
    assert loaded.config.reads == (2, 5, 8, 11)
    save_weights(loaded, tmp_path / "mine.safetensors")
    again = load_weights(tmp_path / "mine.safetensors")
    assert isinstance(again, DepthAnything)
    assert again.config == loaded.config


def as_transformers(state: State) -> State:
    """What transformers' conversion makes of the authors' names: each fused projection becomes three."""
    made = {}
    rules = [
        (r"pretrained\.patch_embed\.proj\.", "backbone.embeddings.patch_embeddings.projection."),
        (r"pretrained\.pos_embed", "backbone.embeddings.position_embeddings"),
        (r"pretrained\.(cls_token|mask_token)", r"backbone.embeddings.\1"),
        (r"pretrained\.norm\.", "backbone.layernorm."),
        (r"pretrained\.blocks\.", "backbone.encoder.layer."),
        (r"\.attn\.proj\.", ".attention.output.dense."),
        (r"\.ls([12])\.gamma", r".layer_scale\1.lambda1"),
        (r"depth_head\.projects\.(\d)\.", r"neck.reassemble_stage.layers.\1.projection."),
        (r"depth_head\.resize_layers\.(\d)\.", r"neck.reassemble_stage.layers.\1.resize."),
        (r"depth_head\.scratch\.layer(\d)_rn\.", lambda m: f"neck.convs.{int(m[1]) - 1}."),
        (r"depth_head\.scratch\.refinenet(\d)\.", lambda m: f"neck.fusion_stage.layers.{4 - int(m[1])}."),
        (r"\.resConfUnit([12])\.conv([12])\.", r".residual_layer\1.convolution\2."),
        (r"\.out_conv\.", ".projection."),
        (r"depth_head\.scratch\.output_conv1\.", "head.conv1."),
        (r"depth_head\.scratch\.output_conv2\.0\.", "head.conv2."),
        (r"depth_head\.scratch\.output_conv2\.2\.", "head.conv3."),
    ]
    for name, value in state.items():
        renamed = functools.reduce(lambda n, rule: re.sub(*rule, n), rules, name)
        if ".attn.qkv." in renamed:
            for part, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                made[renamed.replace(".attn.qkv.", f".attention.attention.{part}.")] = third
        else:
            made[renamed] = value
    return made


@pytest.mark.parametrize("stages", [(9, 10, 11, 12), (3, 6, 9, 12)], ids=["v1", "v2"])
def test_a_folder_of_transformers_tells_by_its_configuration(
    stages: tuple[int, ...], vits: State, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    state = {name: torch.rand(value.shape) if value.ndim == 1 else value for name, value in vits.items()}
    named = {name: value.contiguous() for name, value in as_transformers(state).items()}
    assert "backbone.encoder.layer.11.attention.attention.query.bias" in named
    safetensors_torch.save_file(named, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="--depth-version"):
        load_weights(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"backbone_config": {"out_indices": stages}}))
    loaded = load_weights(tmp_path)
    assert isinstance(loaded, DepthAnything)
    assert (loaded.config.reads or (8, 9, 10, 11)) == tuple(stage - 1 for stage in stages)
    found = loaded.state_dict()
    assert all(torch.equal(found[name], value) for name, value in state.items())


def test_a_folder_without_weights_says_which_files_are_looked_for(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"a folder without model\.safetensors or pytorch_model\.bin"):
        load_weights(tmp_path)


@pytest.mark.parametrize("wrapper", ["net", "ema", "params_ema", "network", "weights"])
@pytest.mark.parametrize("prefix", ["model.", "module.net.", ""])
def test_other_wrappers_and_prefixes_of_training_scripts(
    wrapper: str, prefix: str, swin: DGIQA, tmp_path: Path
) -> None:
    state = {name: value for name, value in swin.state_dict().items() if value.ndim == 1}
    torch.save({wrapper: {f"{prefix}{name}": value for name, value in state.items()}, "epoch": 7}, tmp_path / "a.ckpt")
    read, _ = read_tensors(tmp_path / "a.ckpt")
    assert list(read) == list(state)
    assert all(torch.equal(read[name], value) for name, value in state.items())


def test_numpy_numbers_beside_the_weights_are_read(swin: DGIQA, tmp_path: Path) -> None:
    best = {"best_srocc": np.float64(0.9), "step": np.int64(3), "loss": np.float32(0.1)}
    torch.save({"state_dict": swin.state_dict(), **best}, tmp_path / "best.pth")
    assert_same(load_dgiqa(tmp_path / "best.pth", SWIN), swin)


def test_missing_and_unexpected_keys_are_named_and_counted(swin: DGIQA, tmp_path: Path) -> None:
    state = dict(swin.state_dict())
    removed = [name for name in state if name.startswith("tcb3.")]
    for name in removed:
        del state[name]
    torch.save({**state, "extra.weight": torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(WeightsError) as error:
        load_dgiqa(tmp_path / "x.pth", SWIN)
    message = str(error.value)
    counted = [name for name in removed if not name.endswith("num_batches_tracked")]
    assert f"{len(counted)} missing: {', '.join(counted[:4])} and {len(counted) - 4} more" in message
    assert "1 unexpected: extra.weight" in message


def test_another_shape_is_named(swin: DGIQA, tmp_path: Path) -> None:
    torch.save({**swin.state_dict(), "fc.weight": torch.zeros(2, 16)}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"1 of another shape: fc.weight is \(2, 16\), wanted \(1, 16\)"):
        load_dgiqa(tmp_path / "x.pth", SWIN)


def test_the_other_network_is_recognised(swin: DGIQA, depth: DepthAnything, tmp_path: Path) -> None:
    save_weights(swin, tmp_path / "q.safetensors")
    save_weights(depth, tmp_path / "d.safetensors")
    with pytest.raises(WeightsError, match="is not DGIQA, it looks like Depth Anything"):
        load_dgiqa(tmp_path / "d.safetensors", SWIN)
    with pytest.raises(WeightsError, match="is not Depth Anything, it looks like DGIQA"):
        load_depth_anything(tmp_path / "q.safetensors")


@pytest.mark.parametrize("wrapped", [True, False])
def test_hostile_pickle_is_refused_and_not_run(wrapped: bool, swin: DGIQA, tmp_path: Path) -> None:
    path, trace = tmp_path / "hostile.pth", tmp_path / "ran"
    if wrapped:
        torch.save({**swin.state_dict(), "payload": Runs(trace)}, path)
    else:
        path.write_bytes(pickle.dumps(Runs(trace)))
    with pytest.raises(WeightsError, match="could run code"):
        load_dgiqa(path, SWIN)
    assert not trace.exists()
    if not wrapped:  # the trap itself works
        pickle.loads(path.read_bytes())
        assert trace.exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"some notes about weights", "not a checkpoint: it starts with"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b'{"weights": 1}', "JSON text"),
        (b"PK\3\4" + bytes(100), "damaged or cut short"),
    ],
)
def test_what_is_no_checkpoint_is_said_to_be_none(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=re.escape(reason)):
        load_dgiqa(tmp_path / "x.pth", SWIN)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_file_cut_short_is_said_to_be(suffix: str, depth: DepthAnything, tmp_path: Path) -> None:
    path = tmp_path / f"x.{suffix}"
    if suffix == "pth":
        torch.save(depth.state_dict(), path)
    else:
        save_weights(depth, path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(WeightsError, match="damaged or cut short"):
        load_depth_anything(path)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 1}, {}, {"state_dict": {"lr": 0.1}}])
def test_a_pickle_without_weights_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="state dict"):
        load_dgiqa(tmp_path / "x.pth", SWIN)


def test_nan_weights_are_refused(depth: DepthAnything, tmp_path: Path) -> None:
    state = depth.state_dict()
    torch.save({**state, "pretrained.norm.bias": state["pretrained.norm.bias"] * torch.nan}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="NaN or infinity in pretrained"):
        load_depth_anything(tmp_path / "x.pth")


def test_files_beyond_the_limit_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "MAX_BYTES", 1000)
    (tmp_path / "large.pth").write_bytes(bytes(1001))
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(100_000))
    for name, reason in (("large.pth", "has 1,001 bytes"), ("bomb.pth", "unpacks to 100,000 bytes, so")):
        with pytest.raises(WeightsError, match=reason):
            load_dgiqa(tmp_path / name)


@pytest.mark.parametrize("path", ["absent.pth", "."])
def test_a_path_that_is_no_file_says_so(path: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be read"):
        load_dgiqa(tmp_path / path)


def test_saved_sizes_are_plain_json(depth: DepthAnything, tmp_path: Path) -> None:
    save_weights(depth, tmp_path / "d.safetensors")
    _, metadata = read_tensors(tmp_path / "d.safetensors")
    assert json.loads(metadata["config"])["width"] == 24


def assert_same(loaded: torch.nn.Module, original: torch.nn.Module) -> None:
    assert not loaded.training
    left, right = loaded.state_dict(), original.state_dict()
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def selfish() -> dict[str, object]:
    """A training state that is said to be inside itself."""
    state: dict[str, object] = {}
    state["state_dict"] = state
    return state


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda: {"w": torch.zeros(1).expand(200_000, 200_000)}, "not plain arrays of numbers: w"),
        (lambda: {"w": torch.zeros(2, 2).to_sparse()}, "not plain arrays of numbers: w"),
        (lambda: {"w": torch.zeros(2, dtype=torch.complex64)}, "not plain arrays of numbers: w"),
        (lambda: {"w": torch.zeros(2, device="meta")}, "not plain arrays of numbers: w"),
        (
            lambda: {"w": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)},
            "not plain arrays of numbers: w",
        ),
        (selfish, "is not a state dict"),
        (lambda: {"x" * 10_000: 1}, r"holds x{80} \(int\)"),
    ],
    ids=["stride 0", "sparse", "complex", "meta", "quantised", "itself", "a long name"],
)
def test_tensors_that_are_not_what_a_network_holds_are_refused(
    content: Callable[[], object], reason: str, tmp_path: Path
) -> None:
    torch.save(content(), tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=reason):
        load_dgiqa(tmp_path / "x.pth", SWIN)


def test_tensors_that_share_their_storage_are_read(tmp_path: Path) -> None:
    tied = torch.arange(6.0)
    torch.save({"a": tied[:3], "b": tied.reshape(2, 3).T}, tmp_path / "x.pth")
    assert read_tensors(tmp_path / "x.pth")[0]["b"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_a_compressed_archive_is_refused_unread(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10_000_000))
    assert (tmp_path / "bomb.pth").stat().st_size < 20_000
    with pytest.raises(WeightsError, match=r"unpacks to 10,000,000 bytes, so torch\.save did not write it"):
        read_tensors(tmp_path / "bomb.pth")


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ({"heads": 0}, "heads is 0, wanted a divisor of the width 24"),
        ({"heads": 5}, "heads is 5, wanted a divisor of the width 24"),
        ({"reads": [0, 1, 2, 9]}, "wanted four of 4 blocks, or none"),
        ({"width": 3999, "blocks": 500}, "does not fit"),
        ({"width": 10**9}, r"was saved with width=1000000000, which are neither sizes"),
        ({"channels": []}, "sizes that make no Depth Anything network"),
    ],
)
def test_sizes_that_a_file_claims_allocate_nothing(
    sizes: dict[str, int], reason: str, depth: DepthAnything, tmp_path: Path
) -> None:
    claimed = {**dataclasses.asdict(TINY_DEPTH), **sizes}
    save_weights(depth, tmp_path / "d.safetensors", {"config": json.dumps(claimed)})
    with pytest.raises(WeightsError, match=reason):
        load_depth_anything(tmp_path / "d.safetensors")


@pytest.mark.parametrize(
    "claimed",
    [
        {"backbone": "hf-hub:somebody/model"},
        {"backbone": "local-dir:/tmp/model"},
        {"backbone_options": {"checkpoint_path": "weights.pth"}},
        {"backbone_options": {"pretrained": True}},
    ],
)
def test_a_file_cannot_name_other_files_or_a_hub(claimed: dict[str, object], tmp_path: Path) -> None:
    config = json.dumps({**dataclasses.asdict(SMALL), **claimed})
    save_weights(DGIQA(SMALL), tmp_path / "q.safetensors", {"config": config})
    with pytest.raises(WeightsError, match="which are neither sizes nor names"):
        load_dgiqa(tmp_path / "q.safetensors")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_damaged_file_is_a_weights_error_whatever_is_damaged(kind: str, tmp_path: Path) -> None:
    """Bytes changed, cut, doubled or zeroed at random; each file is small, so that the damage meets its structure."""
    path = tmp_path / "x"
    state = {"tcb1.a": torch.arange(6.0).reshape(2, 3), "fc.weight": torch.ones(2), "n": torch.tensor(3)}
    if kind == "safetensors":
        safetensors_torch.save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    whole, random = path.read_bytes(), Random(7)
    for _ in range(150):
        path.write_bytes(damaged(whole, random))
        with contextlib.suppress(WeightsError):  # anything else fails the test
            read_tensors(path)
