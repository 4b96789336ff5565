"""Window attention in ONNX: one node, ai.dgiqa DgiqaWindowAttention, that a function in the file defines.

    with_attention_op(network) ─► exporter, translation ─► nodes ─► with_function ─► a file that any ONNX runtime runs

A host without a kernel runs the function's standard operators; one with a kernel takes the node as a whole. TensorRT's
parser expands every function it finds, so `builder.plan` leaves out the functions that a plugin implements.
"""

from typing import Any

import torch

import dgiqa.nn.attention  # noqa: F401 (declares torch.ops.dgiqa)
from dgiqa import spec

OP = "DgiqaWindowAttention"
DOMAIN_VERSION = 1

# `dgiqa.nn.attention.window_attention` in standard operators, for any size and any float type. Rolling, padding and
# their reverse are gathers with computed indices, so that one body serves every shift.
BODY = """
<domain: "ai.dgiqa", opset_import: ["": 20]>
DgiqaWindowAttention <heads, shift, scale> (qkv, bias, qkv_bias) => (out)
{
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    six = Constant <value_int = 6> ()
    seven = Constant <value_int = 7> ()
    heads_ = Constant <value_int: int = @heads> ()
    shift_ = Constant <value_int: int = @shift> ()
    scale_f = Constant <value_float: float = @scale> ()
    scale_ = CastLike (scale_f, qkv)
    masked_f = Constant <value_float = -100.0> ()
    masked = CastLike (masked_f, qkv)
    open_f = Constant <value_float = 0.0> ()
    open = CastLike (open_f, qkv)
    first = Constant <value_ints = [0]> ()
    second = Constant <value_ints = [1]> ()
    w7 = Constant <value_ints = [7]> ()
    w49 = Constant <value_ints = [49]> ()
    w56 = Constant <value_ints = [56]> ()
    w64 = Constant <value_ints = [64]> ()
    three = Constant <value_ints = [3]> ()
    rest = Constant <value_ints = [-1]> ()
    heads_1 = Reshape (heads_, rest)

    batch = Shape <start = 0, end = 1> (qkv)
    height_1 = Shape <start = 1, end = 2> (qkv)
    width_1 = Shape <start = 2, end = 3> (qkv)
    height = Squeeze (height_1, first)
    width = Squeeze (width_1, first)
    height_6 = Add (height, six)
    width_6 = Add (width, six)
    down = Div (height_6, seven)
    across = Div (width_6, seven)
    padded_height = Mul (down, seven)
    padded_width = Mul (across, seven)
    down_1 = Reshape (down, rest)
    across_1 = Reshape (across, rest)

    y = Range (zero, padded_height, one)
    x = Range (zero, padded_width, one)
    y_shifted = Add (y, shift_)
    x_shifted = Add (x, shift_)
    y_source = Mod (y_shifted, height)
    x_source = Mod (x_shifted, width)
    y_inside = Less (y, height)
    x_inside = Less (x, width)
    y_axes = Constant <value_ints = [1, 2]> ()
    x_axes = Constant <value_ints = [1]> ()
    y_inside_2 = Unsqueeze (y_inside, y_axes)
    x_inside_2 = Unsqueeze (x_inside, x_axes)
    inside = And (y_inside_2, x_inside_2)
    rolled_y = Gather <axis = 1> (qkv, y_source)
    rolled = Gather <axis = 2> (rolled_y, x_source)
    padding = CastLike (qkv_bias, qkv)
    padded = Where (inside, rolled, padding)

    cut = Concat <axis = 0> (batch, down_1, w7, across_1, w7, rest)
    cut_map = Reshape (padded, cut)
    windows_map = Transpose <perm = [0, 1, 3, 2, 4, 5]> (cut_map)
    windows_1 = Mul (down_1, across_1)
    token_shape = Concat <axis = 0> (batch, windows_1, w49, three, heads_1, rest)
    tokens = Reshape (windows_map, token_shape)
    by_head = Transpose <perm = [3, 0, 1, 4, 2, 5]> (tokens)
    q3, k3, v3 = Split <axis = 0, num_outputs = 3> (by_head)
    q = Squeeze (q3, first)
    k = Squeeze (k3, first)
    v = Squeeze (v3, first)

    bias_shape = Constant <value_ints = [0, 4, 7, 8, 4, 2, 2]> ()
    bias_lanes = Reshape (bias, bias_shape)
    bias_rows = Transpose <perm = [0, 1, 5, 3, 2, 4, 6]> (bias_lanes)
    bias_square = Concat <axis = 0> (heads_1, w64, w56)
    bias_padded = Reshape (bias_rows, bias_square)
    bias_from = Constant <value_ints = [0, 0]> ()
    bias_to = Constant <value_ints = [49, 49]> ()
    bias_axes = Constant <value_ints = [1, 2]> ()
    bias_real = Slice (bias_padded, bias_from, bias_to, bias_axes)
    bias_typed = CastLike (bias_real, qkv)
    bias_scaled = Mul (bias_typed, scale_)

    y_last = Sub (padded_height, seven)
    x_last = Sub (padded_width, seven)
    y_seam = Sub (padded_height, shift_)
    x_seam = Sub (padded_width, shift_)
    y_in_last = GreaterOrEqual (y, y_last)
    x_in_last = GreaterOrEqual (x, x_last)
    y_past = GreaterOrEqual (y, y_seam)
    x_past = GreaterOrEqual (x, x_seam)
    y_last_n = CastLike (y_in_last, zero)
    x_last_n = CastLike (x_in_last, zero)
    y_past_n = CastLike (y_past, zero)
    x_past_n = CastLike (x_past, zero)
    y_region = Add (y_last_n, y_past_n)
    x_region = Add (x_last_n, x_past_n)
    three_0 = Constant <value_int = 3> ()
    y_region_3 = Mul (y_region, three_0)
    y_region_2 = Unsqueeze (y_region_3, x_axes)
    region = Add (y_region_2, x_region)
    region_cut = Concat <axis = 0> (down_1, w7, across_1, w7)
    region_map = Reshape (region, region_cut)
    region_windows = Transpose <perm = [0, 2, 1, 3]> (region_map)
    region_shape = Concat <axis = 0> (windows_1, second, w49)
    region_keys = Reshape (region_windows, region_shape)
    region_queries = Transpose <perm = [0, 2, 1]> (region_keys)
    same = Equal (region_queries, region_keys)
    mask = Where (same, open, masked)
    mask_heads = Unsqueeze (mask, x_axes)
    added = Add (mask_heads, bias_scaled)

    q_scaled = Mul (q, scale_)
    keys = Transpose <perm = [0, 1, 2, 4, 3]> (k)
    products = MatMul (q_scaled, keys)
    logits = Add (products, added)
    probabilities = Softmax <axis = -1> (logits)
    attended = MatMul (probabilities, v)

    by_token = Transpose <perm = [0, 1, 3, 2, 4]> (attended)
    window_shape = Concat <axis = 0> (batch, down_1, across_1, w7, w7, rest)
    by_window = Reshape (by_token, window_shape)
    by_row = Transpose <perm = [0, 1, 3, 2, 4, 5]> (by_window)
    padded_height_1 = Reshape (padded_height, rest)
    padded_width_1 = Reshape (padded_width, rest)
    map_shape = Concat <axis = 0> (batch, padded_height_1, padded_width_1, rest)
    out_map = Reshape (by_row, map_shape)
    y_all = Range (zero, height, one)
    x_all = Range (zero, width, one)
    y_back = Sub (height, shift_)
    x_back = Sub (width, shift_)
    y_unshifted = Add (y_all, y_back)
    x_unshifted = Add (x_all, x_back)
    y_from = Mod (y_unshifted, height)
    x_from = Mod (x_unshifted, width)
    out_y = Gather <axis = 1> (out_map, y_from)
    out = Gather <axis = 2> (out_y, x_from)
}
"""


def translation() -> dict[Any, Any]:
    """The `custom_translation_table` for `torch.onnx.export` that turns dgiqa::window_attention into the node."""
    from onnxscript import values

    op = values.Op(values.Opset(spec.ONNX_DOMAIN, DOMAIN_VERSION), OP, _schema())

    def node(qkv: Any, bias: Any, qkv_bias: Any, shift: int, scale: float) -> Any:
        return op(qkv, bias, qkv_bias, heads=int(bias.shape[0]), shift=shift, scale=scale)

    return {torch.ops.dgiqa.window_attention.default: node}


def with_function(model: Any) -> Any:
    """Add the function of its DgiqaWindowAttention nodes to a ModelProto; changed in place and returned.

    Raises ValueError if there is no such node, which means that the network was exported without the op.
    """
    import onnx

    if not any(node.op_type == OP and node.domain == spec.ONNX_DOMAIN for node in model.graph.node):
        raise ValueError(f"the graph has no {OP} node; export with_attention_op(network, cross=False)")
    del model.functions[:]
    model.functions.append(onnx.parser.parse_function(BODY))
    if not any(entry.domain == spec.ONNX_DOMAIN for entry in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(spec.ONNX_DOMAIN, DOMAIN_VERSION))
    return model


def _schema() -> Any:
    """The op's signature, as an ONNX schema."""
    from onnx.defs import OpSchema

    inputs = [OpSchema.FormalParameter(name, "T") for name in ("qkv", "bias", "qkv_bias")]
    kinds = {"heads": OpSchema.AttrType.INT, "shift": OpSchema.AttrType.INT, "scale": OpSchema.AttrType.FLOAT}
    return OpSchema(
        OP,
        spec.ONNX_DOMAIN,
        DOMAIN_VERSION,
        inputs=inputs,
        outputs=[OpSchema.FormalParameter("out", "T")],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)", "tensor(double)"], "")],
        attributes=[OpSchema.Attribute(name, kind, "") for name, kind in kinds.items()],
    )
