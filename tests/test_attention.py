"""Attention in torch and ONNX: the definitions equal timm's and torch's, the ops equal the definitions."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dgiqa import spec

torch = pytest.importorskip("torch")

from dgiqa.nn import attention  # noqa: E402
from dgiqa.nn.backbones import import_timm  # noqa: E402
from dgiqa.nn.network import DGIQA, FULL, SMALL, CrossAttention  # noqa: E402

import_timm()
from timm.models.swin_transformer import SwinTransformerBlock  # noqa: E402

# height, width, heads, shift; head dimension 32. The last four are no multiples of 7.
SHAPES = ((14, 14, 3, 3), (14, 21, 6, 0), (7, 7, 24, 0), (15, 29, 3, 3), (10, 17, 3, 0), (23, 9, 2, 3), (8, 8, 1, 3))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def swin_block(height: int, width: int, heads: int, shift: int) -> Any:
    """A block whose bias, and whose keys of padded tokens, matter."""
    block = SwinTransformerBlock(
        32 * heads, (height, width), heads, head_dim=32, window_size=7, shift_size=shift
    ).eval()
    with torch.no_grad():
        block.attn.relative_position_bias_table.normal_(0, 1.5)
        block.attn.qkv.bias.normal_(0, 0.5)
        block.attn.qkv.weight.mul_(3)
    return block.requires_grad_(False)


def loud(network: Any) -> Any:
    """The network with biases that matter, untrained or not."""
    for module in network.modules():
        if hasattr(module, "relative_position_bias_table"):
            torch.nn.init.normal_(module.relative_position_bias_table)
    return network.eval().requires_grad_(False)


def relative(got: Any, wanted: Any) -> float:
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("shape", SHAPES)
def test_a_block_through_the_op_equals_timms(shape: tuple[int, int, int, int]) -> None:
    block = swin_block(*shape).double()
    x = torch.randn(2, *shape[:2], 32 * shape[2], dtype=torch.float64)
    assert block.shift_size == (shape[3], shape[3])
    assert relative(attention.FusedSwinBlock(block)(x), block(x)) < 1e-13


@pytest.mark.parametrize("size", [(14, 14), (21, 7), (7, 7), (28, 35)])
def test_the_seam_mask_is_timms(size: tuple[int, int]) -> None:
    block = SwinTransformerBlock(32, size, 1, window_size=7, shift_size=3, always_partition=True)
    assert torch.equal(attention.seam_mask(size[0] // 7, size[1] // 7, 3), block.attn_mask)
    assert not attention.seam_mask(size[0] // 7, size[1] // 7, 0).any()


def test_a_packed_bias_unpacks_to_itself_and_is_zero_elsewhere() -> None:
    bias = torch.randn(3, 49, 49, dtype=torch.float64)
    packed = attention.pack_bias(bias, 0.125)
    assert packed.shape == (3, 4, 7, 32, 4)
    assert torch.equal(attention.unpack_bias(packed, 0.125), bias)
    assert int((packed != 0).sum()) == bias.numel()
    # row 16 * 2 + 8 + 3, column 8 * 5 + 2 * 1 + 1 stand in tile 2, group 5, lane 4 * 3 + 1, element 2 + 1
    assert packed[1, 2, 5, 13, 3] == bias[1, 43, 43] * 8


@pytest.mark.parametrize("heads", [16, 4])  # of 60, padded to 64, and of 24, padded to 32
def test_padded_heads_equal_multihead_attention(heads: int) -> None:
    width = {16: 960, 4: 96}[heads]
    block = CrossAttention(width, heads, 0.1).double().eval().requires_grad_(False)
    torch.nn.init.normal_(block.multihead_attn.in_proj_bias)
    depth, rgb = torch.randn(2, 49, 3, width, dtype=torch.float64)
    fused = attention.with_attention_op(block)
    assert isinstance(fused.multihead_attn, attention.FusedCrossAttention)
    assert fused.multihead_attn.q.out_features % 32 == 0
    assert relative(fused(depth, rgb), block(depth, rgb)) < 1e-14


def test_the_whole_network_through_the_ops_is_the_same() -> None:
    narrow = {"embed_dim": 32, "num_heads": (1, 2, 4, 8)}  # heads of 32 in the windows, of 60 in Depth-CAR, as FULL has
    sizes = {"tcb_channels": (60, 60, 60, 60), "reduction": 4, "heads": 4, "dilated_channels": 16}
    network = loud(DGIQA(replace(FULL, backbone_options=narrow, **sizes))).double()
    fused = attention.with_attention_op(network)
    kinds = [type(m).__name__ for m in fused.modules()]
    assert (kinds.count("FusedSwinBlock"), kinds.count("FusedCrossAttention")) == (24, 2)
    assert not {"SwinTransformerBlock", "MultiheadAttention"} & set(kinds)
    assert "FusedSwinBlock" not in {type(m).__name__ for m in network.modules()}
    rgb, depth = torch.randn(2, 1, 3, 224, 224, dtype=torch.float64)
    assert relative(fused.features(rgb, depth), network.features(rgb, depth)) < 1e-12


def test_what_the_ops_cannot_express_is_refused() -> None:
    with pytest.raises(ValueError, match="no attention to fuse"):
        attention.with_attention_op(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="no attention to fuse"):
        attention.with_attention_op(DGIQA(SMALL), cross=False)
    with pytest.raises(ValueError, match=r"windows of \(4, 4\)"):
        attention.FusedSwinBlock(SwinTransformerBlock(32, (8, 8), 1, window_size=4))
    with pytest.raises(ValueError, match=r"shifted by \(0, 3\)"):
        attention.FusedSwinBlock(SwinTransformerBlock(32, (7, 14), 1, window_size=7, shift_size=3))
    with pytest.raises(ValueError, match="heads of 96"):
        attention.FusedCrossAttention(torch.nn.MultiheadAttention(96, 1))
    fused = attention.FusedCrossAttention(torch.nn.MultiheadAttention(64, 1))
    q, k = torch.randn(2, 49, 1, 64)
    with pytest.raises(ValueError, match="no weights"):
        fused(q, k, q)


def test_a_library_that_does_not_load_is_a_backend_error(tmp_path: Path) -> None:
    from dgiqa.errors import BackendError

    with pytest.raises(BackendError, match="cmake -S"):
        attention.load_kernels(tmp_path / "none.so")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_ops_pass_torchs_own_checks(dtype: Any) -> None:
    qkv, bias = torch.randn(2, 8, 14, 192).to(dtype), attention.pack_bias(torch.randn(2, 49, 49), 0.2).to(dtype)
    torch.library.opcheck(torch.ops.dgiqa.window_attention.default, (qkv, bias, torch.randn(192).to(dtype), 3, 0.2))
    q, kv = torch.randn(49, 2, 128).to(dtype), torch.randn(49, 2, 256).to(dtype)
    torch.library.opcheck(torch.ops.dgiqa.cross_attention.default, (q, kv, 2, 0.125))


# ONNX

Export = Callable[..., Any]


def exported(network: Any, example: tuple[Any, ...], *, op: bool) -> Any:
    """An ONNX model with a dynamic batch, inputs a, b, .. and output y."""
    from dgiqa.nn.attention_onnx import translation, with_function

    batch = torch.export.Dim("batch", min=1, max=64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            example,
            dynamo=True,
            verbose=False,
            opset_version=spec.OPSET,
            input_names=list("abc"[: len(example)]),
            output_names=["y"],
            dynamic_shapes=tuple({0: batch} for _ in example),
            custom_translation_table=translation() if op else None,
        )
    return with_function(program.model_proto) if op else program.model_proto


def run(model: Any, *feeds: Any) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {name: feed.numpy() for name, feed in zip("abc", feeds, strict=False)})
    return torch.from_numpy(np.asarray(y))


def nodes(model: Any) -> int:
    return sum(n.op_type == "DgiqaWindowAttention" and n.domain == spec.ONNX_DOMAIN for n in model.graph.node)


@pytest.fixture
def onnx() -> Any:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    return pytest.importorskip("onnx")


SLOW = [pytest.param(shape, marks=pytest.mark.slow) for shape in ((14, 14, 3, 3), (14, 7, 2, 0))]


@pytest.mark.parametrize("shape", [(10, 17, 1, 3), *SLOW])
def test_an_exported_block_runs_its_op_in_a_plain_onnx_runtime(onnx: Any, shape: tuple[int, int, int, int]) -> None:
    block, x = swin_block(*shape), torch.randn(3, *shape[:2], 32 * shape[2])
    model = exported(attention.FusedSwinBlock(block), (x[:2],), op=True)
    onnx.checker.check_model(model, full_check=True)
    assert nodes(model) == 1
    standard = exported(block, (x[:2],), op=False)
    assert nodes(standard) == 0
    assert float((run(model, x) - run(standard, x)).abs().max()) <= 1e-5


def test_the_functions_body_takes_the_type_of_its_inputs(onnx: Any) -> None:
    block, x = swin_block(8, 14, 2, 3).half(), torch.randn(2, 8, 14, 64).half()
    y = run(exported(attention.FusedSwinBlock(block), (x,), op=True), x)
    assert y.dtype == torch.float16
    exact = block.double()(x.double())
    assert relative(y, exact) <= 2 * relative(attention.FusedSwinBlock(block.half())(x), exact)


def test_stripping_leaves_a_node_for_a_host_that_has_a_kernel(onnx: Any, tmp_path: Path) -> None:
    from dgiqa.builder.plan import without_bodies
    from dgiqa.nn.attention_onnx import OP, with_function

    block = swin_block(7, 7, 1, 0)
    model = exported(attention.FusedSwinBlock(block), (torch.randn(2, 7, 7, 32),), op=True)
    onnx.save(model, tmp_path / "with.onnx")
    stripped = onnx.load_from_string(without_bodies(tmp_path / "with.onnx", frozenset([OP])))
    assert (len(stripped.functions), nodes(stripped)) == (0, 1)
    (node,) = (n for n in stripped.graph.node if n.domain == spec.ONNX_DOMAIN)
    values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert values == {"heads": 1, "shift": 0, "scale": pytest.approx(32**-0.5)}
    with pytest.raises(Exception, match="DgiqaWindowAttention"):
        run(stripped, torch.randn(1, 7, 7, 32))
    kept = onnx.load_from_string(without_bodies(tmp_path / "with.onnx", frozenset(["Another"])))
    assert len(kept.functions) == 1
    with pytest.raises(ValueError, match="no DgiqaWindowAttention node"):
        with_function(onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], [])))


@pytest.mark.slow
def test_the_whole_network_with_op_nodes_equals_the_network(onnx: Any) -> None:
    class Features(torch.nn.Module):  # the score of an untrained network hardly moves; its features do
        def __init__(self, network: Any) -> None:
            super().__init__()
            self.network = network

        def forward(self, rgb: Any, depth: Any) -> Any:
            return self.network.features(rgb, depth)

    network = loud(DGIQA(FULL))
    rgb, depth = torch.randn(2, 2, 3, 224, 224)
    model = exported(Features(attention.with_attention_op(network, cross=False)), (rgb, depth), op=True)
    assert nodes(model) == 24
    wanted = network.features(rgb, depth)
    assert float(wanted.std()) > 0.01
    assert float((run(model, rgb, depth) - wanted).abs().max()) <= 1e-5
