"""Window attention in ONNX: one node, ai.dgiqa DgiqaWindowAttention, that a function in the file defines.

    with_attention_op(network) ─► exporter, translation ─► nodes ─► with_function ─► a file that any ONNX runtime runs

A host without a kernel runs the function's standard operators; one with a kernel takes the node as a whole. TensorRT's
parser expands every function it finds, so `builder.plan` leaves out the functions that a plugin implements.
"""

import re
from typing import Any

import torch

import dgiqa.nn.attention  # noqa: F401 (declares torch.ops.dgiqa)
from dgiqa import spec

OP = "DgiqaWindowAttention"
DOMAIN_VERSION = 1

# `dgiqa.nn.attention.window_attention` in standard operators, for any size and any float type. Rolling, padding and
# their reverse are gathers with computed indices, so that one body serves every shift.
# A line with {a|b} stands for two lines, one about rows (a) and one about columns (b).
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
    {height|width}_1 = Shape <start = {1|2}, end = {2|3}> (qkv)
    {height|width} = Squeeze ({height|width}_1, first)
    {height|width}_6 = Add ({height|width}, six)
    {down|across} = Div ({height|width}_6, seven)
    padded_{height|width} = Mul ({down|across}, seven)
    {down|across}_1 = Reshape ({down|across}, rest)

    {y|x} = Range (zero, padded_{height|width}, one)
    {y|x}_shifted = Add ({y|x}, shift_)
    {y|x}_source = Mod ({y|x}_shifted, {height|width})
    {y|x}_inside = Less ({y|x}, {height|width})
    y_axes = Constant <value_ints = [1, 2]> ()
    x_axes = Constant <value_ints = [1]> ()
    {y|x}_inside_2 = Unsqueeze ({y|x}_inside, {y|x}_axes)
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

    {y|x}_last = Sub (padded_{height|width}, seven)
    {y|x}_seam = Sub (padded_{height|width}, shift_)
    {y|x}_in_last = GreaterOrEqual ({y|x}, {y|x}_last)
    {y|x}_past = GreaterOrEqual ({y|x}, {y|x}_seam)
    {y|x}_last_n = CastLike ({y|x}_in_last, zero)
    {y|x}_past_n = CastLike ({y|x}_past, zero)
    {y|x}_region = Add ({y|x}_last_n, {y|x}_past_n)
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
    padded_{height|width}_1 = Reshape (padded_{height|width}, rest)
    map_shape = Concat <axis = 0> (batch, padded_height_1, padded_width_1, rest)
    out_map = Reshape (by_row, map_shape)
    {y|x}_all = Range (zero, {height|width}, one)
    {y|x}_back = Sub ({height|width}, shift_)
    {y|x}_unshifted = Add ({y|x}_all, {y|x}_back)
    {y|x}_from = Mod ({y|x}_unshifted, {height|width})
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
    model.functions.append(onnx.parser.parse_function(_body()))
    if not any(entry.domain == spec.ONNX_DOMAIN for entry in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(spec.ONNX_DOMAIN, DOMAIN_VERSION))
    return model


def _body() -> str:
    """BODY in ONNX's own syntax."""
    both = ([re.sub(r"\{(\w+)\|(\w+)\}", which, line) for which in (r"\1", r"\2")] for line in BODY.splitlines())
    return "\n".join(line for two in both for line in dict.fromkeys(two))  # of equal lines one


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
