"""Change an fp32 ONNX graph to compute in fp16, int8 or fp8, the last two with explicit Q/DQ, and count its types.

Precision is written into the graph, so every engine that reads the file computes the same thing: types are consistent
at every node, as a strongly typed TensorRT network requires, and inputs and outputs stay float32.

    to_int8     x ─► QuantizeLinear ─► DequantizeLinear ─┐
                                int8 weight ─► DequantizeLinear ─► Conv / ConvTranspose / MatMul / Gemm ─► float
    to_fp8      the same with float8 E4M3, which NVIDIA's GPUs multiply as fast as int8 from compute capability 8.9 on
    to_half     float32 ─► Cast ─► everything in float16 ─► Cast ─► float32
    store_half  float16 weight ─► Cast ─► a layer that computes in float32: half the bytes, folded when it is loaded

Models are taken and returned as onnx.ModelProto; the argument is not changed.
"""

import copy
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dgiqa import spec
from dgiqa.dtypes import Array, Float32, UInt8
from dgiqa.errors import EngineError, ParityError
from dgiqa.extras import load

onnx = load("onnx", "changing a graph's precision", "onnx", "build")  # everything here needs it
kinds, numpy_helper = onnx.TensorProto, onnx.numpy_helper

WEIGHTED = ("Conv", "ConvTranspose", "MatMul", "Gemm")  # the layers that hold the weights and do the arithmetic
# Operands that the operator requires in float32, by position.
_FLOAT32_OPERANDS = {"Resize": (1, 2)}
_HALF_MAX = float(np.finfo(np.float16).max)
_HALF_TINY = 2.0**-24  # the smallest float16 above zero
_SMALLEST_SCALE = 2.0**-20  # float16's steps are 6 % of a scale here
_STORED_FROM = 256  # elements; for fewer, the Cast node takes more bytes than float16 saves
LEVELS = 127  # -127..127: symmetric, so that zero point 0 means the same for weights and activations
FP8_LARGEST = 448  # E4M3's, which has no infinity; QuantizeLinear clips to it
# Weights on CPUs use 7 bits. Without VNNI (AMD before Zen 4, Intel before Cascade Lake) int8 kernels of OpenVINO and
# ONNX Runtime add two products, activation as uint8 times weight, in 16 bits and clip the sum: 2 * 255 * 64 fits,
# 2 * 255 * 127 does not.
CPU_WEIGHT_LEVELS = 64


def weighted_layers(model: Any) -> dict[str, int]:
    """Layers with a constant weight of two or more dimensions: {node name: number of weights}, in graph order.

    Products of two activations (attention) have none. Raises EngineError for a node without a name.
    """
    sizes = {i.name: int(np.prod(i.dims)) for i in model.graph.initializer if len(i.dims) >= 2}
    layers = {n.name: sizes[n.input[1]] for n in model.graph.node if n.op_type in WEIGHTED and n.input[1] in sizes}
    if "" in layers:
        raise EngineError("the graph has layers without names, wanted a name for each; load it with load_model")
    return layers


def load_model(path: Path) -> Any:
    """Read an ONNX file, with constants as initializers and every node named. Raises EngineError."""
    try:
        model = onnx.load(str(path))
    except Exception as error:  # protobuf's and onnx's exceptions share no base
        raise EngineError(f"{path} cannot be read as ONNX ({error}); export or copy it again") from error
    if any(
        a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for n in model.graph.node for a in n.attribute
    ):
        raise EngineError(f"{path} has If or Loop with nested graphs, wanted a flat graph; simplify it with onnxsim")
    _hoist_constants(model)
    taken: Counter[str] = Counter()
    for node in model.graph.node:
        name = node.name or f"{node.op_type}_{node.output[0]}"
        node.name = f"{name}_{taken[name]}" if taken[name] else name
        taken[name] += 1
    return model


def layer_types(source: Path | Any) -> Counter[str]:
    """The number of weighted layers that compute in each type: Counter of "int8", "fp8", "fp16", "bf16", "fp32".

    source: an ONNX file or model. int8 and fp8 mean that activation and weight both come out of DequantizeLinear of
    that type with zero point 0. Raises EngineError if a layer's types do not agree or cannot be inferred.
    """
    model = load_model(source) if isinstance(source, Path) else source
    types, makers = tensor_types(model), {o: n for n in model.graph.node for o in n.output}
    matrices = {i.name for i in model.graph.initializer if len(i.dims) >= 2}
    zeros = {i.name for i in model.graph.initializer if len(i.dims) < 2 and not any(numpy_helper.to_array(i).tobytes())}
    return Counter(
        _layer_type(node, types, makers, zeros)
        for node in model.graph.node
        if node.op_type in WEIGHTED and _root(node.input[1], makers) in matrices
    )


def mostly(precision: str, layers: Mapping[str, int]) -> bool:
    """Whether layers (`layer_types`) compute mostly in `precision`, and none in a type that it rules out.

    fp32: all. fp16: half of the layers or more in fp16, none in eight bits. int8: half or more in int8. fp8: a third or
    more, since depthwise and narrow layers have no fp8 kernels. The other layers were left out because they moved
    scores too far. Raises ValueError for another precision.
    """
    count, whole = layers.get(precision, 0), sum(layers.values())
    half, third = 2 * count >= whole > 0, 3 * count >= whole > 0
    eight = any(layers.get(kind) for kind in spec.EIGHT_BITS)
    ok = {"fp32": half and set(layers) == {"fp32"}, "fp16": half and not eight, "int8": half, "fp8": third}
    if precision not in ok:
        raise ValueError(f"got precision {precision!r}, wanted one of {', '.join(ok)}")
    return ok[precision]


def check_precision(source: Path, precision: str) -> Counter[str]:
    """`layer_types`, or ParityError unless they are `mostly` of this precision."""
    found = layer_types(source)
    if not mostly(precision, found):
        held = ", ".join(f"{n} in {kind}" for kind, n in found.most_common()) or "no layers with weights"
        fix = f"make it with export/quantize.py --{precision}" if precision != "fp32" else "export it again"
        raise ParityError(f"{source} was to compute in {precision}, but has {held}; {fix}")
    return found


def to_int8(
    model: Any,
    largest: Mapping[str, float],
    layers: Collection[str],
    *,
    weight_levels: int = CPU_WEIGHT_LEVELS,
    residuals: bool = False,
) -> Any:
    """Quantise the inputs and weights of `layers` (names) with explicit Q/DQ; biases and everything else stay float32.

    largest: for each tensor to quantise, the magnitude that becomes LEVELS. These are the layers' inputs and, with
    `residuals`, those of `residual_inputs`. Activations: one scale per tensor. Weights: one scale per output channel,
    stored as int8 from -weight_levels to weight_levels; LEVELS only for engines that add products exactly. All zero
    points are 0. Scales are float16 numbers, so that `to_half` changes no stored weight's meaning.
    residuals: also quantise the tensor added to a layer's result. TensorRT then runs convolution, addition and the next
    layer's quantisation as one kernel; otherwise the convolution writes floats, which another kernel quantises.
    Raises EngineError for a name that is no weighted layer.
    """
    return _to_eight_bits(model, largest, layers, _Int8(weight_levels), residuals)


def to_fp8(model: Any, largest: Mapping[str, float], layers: Collection[str], *, residuals: bool = True) -> Any:
    """Quantise as `to_int8` does, but in float8 E4M3: the largest magnitude becomes FP8_LARGEST."""
    return _to_eight_bits(model, largest, layers, _Fp8(), residuals)


def residual_inputs(model: Any) -> dict[str, tuple[str, int]]:
    """Convolutions whose result only an addition reads: {layer: (the Add's name, the index of the other operand)}.

    If an Add has two such operands, the later convolution; the other is the shortcut. Adding a constant does not count.
    """
    layers, makers = weighted_layers(model), {o: n for n in model.graph.node for o in n.output}
    constants = {i.name for i in model.graph.initializer}
    readers = Counter(name for node in model.graph.node for name in node.input)
    places = {node.name: place for place, node in enumerate(model.graph.node)}
    found = {}
    for node in model.graph.node:
        if node.op_type != "Add" or node.input[0] == node.input[1] or not constants.isdisjoint(node.input):
            continue
        made = [(makers.get(name), index) for index, name in enumerate(node.input) if readers[name] == 1]
        ends = [
            (places[m.name], m.name, i) for m, i in made if m is not None and m.op_type == "Conv" and m.name in layers
        ]
        if ends:
            _, layer, index = max(ends)
            found[layer] = (node.name, 1 - index)
    return found


def layers_with_kernels(model: Any, kind: str) -> list[str]:
    """Names of the weighted layers that TensorRT has eight-bit kernels for; the others gain nothing from Q/DQ.

    kind: "int8" or "fp8". Convolutions in int8: 16 channels or more in and out, or a multiple of 8 on one side. In fp8:
    more than 16, and filters below 32. Matrix products: 16 rows and columns or more. Transposed convolutions: only in
    int8. The rules are those of NVIDIA's ModelOpt.
    """
    shapes = {i.name: tuple(i.dims) for i in model.graph.initializer}
    layers = weighted_layers(model)
    nodes = [node for node in model.graph.node if node.name in layers]
    return [node.name for node in nodes if _has_kernel(node.op_type, shapes[node.input[1]], kind)]


def to_half(model: Any, keep: Collection[str] = ()) -> Any:
    """Compute in float16 between float32 inputs and outputs; nodes named in `keep` stay float32.

    Nodes that do not depend on the inputs' values (shapes, coordinates, position grids) stay float32, too: they are
    cheap, and float16 cannot count past 2048. Constants outside float16's range are moved to its ends. Functions of
    other domains are called in float16 unless their bodies hold float32 constants.
    Raises EngineError if types cannot be inferred.
    """
    return _halved(model, keep)[0]


def _halved(model: Any, keep: Collection[str]) -> tuple[Any, set[str]]:
    """`to_half`'s model, and the names of its float16 tensors."""
    result, graph = _copy(model)
    types, single = tensor_types(model), kinds.FLOAT
    half = {name for name, kind in types.items() if kind == kinds.FLOAT16}
    halves = _nodes_for_half(model, keep)
    constants = {i.name: i for i in model.graph.initializer if i.data_type == single}
    nodes: list[Any] = []
    outputs = {o.name for o in graph.output}
    casts: dict[tuple[str, bool], str] = {}

    def typed(name: str, as_half: bool) -> str:
        """The tensor's name in float16 or float32: its own, a converted constant's, or a Cast's, which is made once."""
        if types.get(name) != single or (name in half) == as_half:
            return name
        if (name, as_half) not in casts:
            casts[name, as_half] = other = f"{name}_{'half' if as_half else 'float'}"
            if name in constants:
                graph.initializer.append(_half_tensor(constants[name], other))
            else:
                nodes.append(_cast(name, other, as_half))
        return casts[name, as_half]

    for original in model.graph.node:
        node, as_half = copy.deepcopy(original), original.name in halves
        singles = _FLOAT32_OPERANDS.get(node.op_type, ())
        for index, name in enumerate(original.input):
            node.input[index] = typed(name, as_half and index not in singles)
        if as_half:
            _retarget_cast(node, single, kinds.FLOAT16)
            for index, name in enumerate(original.output):
                if types.get(name) == single and name in outputs:  # the model's outputs keep their names and float32
                    casts[name, True] = node.output[index] = f"{name}_half"
                elif types.get(name) == single:
                    half.add(name)
        nodes.append(node)
        nodes += [_cast(a, b, False) for a, b in zip(node.output, original.output, strict=True) if a != b]
    return _with_nodes(result, nodes), half | {name for (_, as_half), name in casts.items() if as_half}


def like_half(model: Any, keep: Collection[str] = ()) -> Any:
    """A float32 model that rounds constants and every node's results as `to_half`'s model does on float16 hardware.

    For measuring: a CPU without float16 arithmetic runs a float16 file in float32 from end to end, without the
    roundings and overflows between nodes.
    """
    result, half = _halved(model, keep)
    nodes: list[Any] = []
    for constant in result.graph.initializer:
        if constant.data_type == kinds.FLOAT16:
            exact = numpy_helper.to_array(constant).astype(np.float32)
            constant.CopyFrom(numpy_helper.from_array(exact, constant.name))
    for node in map(copy.deepcopy, result.graph.node):
        nodes.append(node)
        _retarget_cast(node, kinds.FLOAT16, kinds.FLOAT)
        for index, name in enumerate(node.output):
            if name in half:
                node.name, node.output[index] = f"{node.name}_exact", f"{name}_exact"
                # round to float16 and back to float32; ONNX Runtime keeps lossy Casts
                nodes += [_cast(f"{name}_exact", f"{name}_rounded", True), _cast(f"{name}_rounded", name, False)]
    return _with_nodes(result, nodes)


def store_half(model: Any, keep: Collection[str] = ()) -> Any:
    """Store large float32 constants as float16 with a Cast behind them: half the bytes, the same types downstream.

    keep: nodes whose constants stay float32.
    """
    result, graph = _copy(model)
    nodes: list[Any] = []
    exact = {name for node in model.graph.node if node.name in keep for name in node.input}
    for constant in model.graph.initializer:
        large = constant.data_type == kinds.FLOAT and np.prod(constant.dims) >= _STORED_FROM
        if large and constant.name not in exact:
            graph.initializer.remove(constant)
            graph.initializer.append(_half_tensor(constant, f"{constant.name}_stored"))
            nodes.append(_cast(f"{constant.name}_stored", constant.name, False))
    return _with_nodes(result, nodes + [copy.deepcopy(n) for n in model.graph.node])


def with_outputs(model: Any, tensors: Collection[str]) -> Any:
    """The model with these inner tensors, all float32, as further outputs."""
    result = copy.deepcopy(model)
    ends = {v.name for v in (*result.graph.input, *result.graph.output)}
    for name in dict.fromkeys(tensors):
        if name not in ends:
            result.graph.output.append(onnx.helper.make_tensor_value_info(name, kinds.FLOAT, None))
    return result


def tensor_types(model: Any) -> dict[str, int]:
    """ONNX element type of every tensor. Raises EngineError if one cannot be inferred or two do not agree."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except Exception as error:
        raise EngineError(f"the graph's types do not agree ({error}); export it again") from error
    graph = inferred.graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
    types |= {i.name: i.data_type for i in graph.initializer}
    missing = [o for n in graph.node for o in n.output if o and not types.get(o)]
    if missing:
        raise EngineError(f"no type can be inferred for {', '.join(missing[:3])}; export the graph again")
    return types


# counting


def _layer_type(node: Any, types: Mapping[str, int], makers: Mapping[str, Any], zeros: Collection[str]) -> str:
    names = {kinds.FLOAT: "fp32", kinds.FLOAT16: "fp16", kinds.BFLOAT16: "bf16"}
    operands = [types[name] for name in node.input if name]
    if len(set(operands)) != 1 or operands[0] not in names:
        got = ", ".join(kinds.DataType.Name(kind) for kind in operands)
        raise EngineError(f"{node.op_type} {node.name} mixes types ({got}), wanted one float type; quantise it again")
    eight = {_eight_bits(makers.get(name), types, zeros) for name in node.input[:2]}
    return eight.pop() or names[operands[0]] if len(eight) == 1 else names[operands[0]]


def _eight_bits(maker: Any, types: Mapping[str, int], zeros: Collection[str]) -> str:
    """The eight-bit type that a symmetric DequantizeLinear made a tensor from, or an empty string.

    A missing zero point does not count: it means a uint8 zero.
    """
    if maker is None or maker.op_type != "DequantizeLinear" or len(maker.input) < 3 or maker.input[2] not in zeros:
        return ""
    return {kinds.INT8: "int8", kinds.FLOAT8E4M3FN: "fp8"}.get(types[maker.input[0]], "")


def _root(name: str, makers: Mapping[str, Any]) -> str:
    """The constant or activation behind Casts and Q/DQ."""
    while (maker := makers.get(name)) is not None and maker.op_type in ("Cast", "DequantizeLinear", "QuantizeLinear"):
        name = maker.input[0]
    return name


# changing


def _nodes_for_half(model: Any, keep: Collection[str]) -> set[str]:
    """Names of the nodes that depend on the inputs' values, except those in `keep` and calls fixed in float32."""
    fixed = {(f.domain, f.name) for f in model.functions if _fixed_in_single(f)}
    values = {i.name for i in model.graph.input}
    chosen = set()
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" or not values.isdisjoint(node.input):
            chosen.add(node.name)
            if node.op_type not in ("Shape", "Size"):
                values.update(node.output)
    return {n.name for n in model.graph.node if n.name in chosen and (n.domain, n.op_type) not in fixed} - set(keep)


def _fixed_in_single(function: Any) -> bool:
    """Whether a function's body computes with its own float32 constants, apart from those that only CastLike reads."""
    constants = {
        name
        for node in function.node
        if node.op_type == "Constant" and any(map(_is_single, node.attribute))
        for name in node.output
    }
    return any(name in constants for node in function.node if node.op_type != "CastLike" for name in node.input)


def _is_single(constant: Any) -> bool:
    """Whether this attribute of a Constant holds float32 values."""
    if constant.name == "value":
        return bool(constant.t.data_type == kinds.FLOAT)
    return constant.name in ("value_float", "value_floats")


@dataclass(frozen=True)
class _Int8:
    """weight_levels: the level that a weight's largest magnitude becomes."""

    weight_levels: int
    top = LEVELS

    def tensor(self, levels: Array, name: str) -> Any:
        whole = np.clip(np.rint(levels), -self.weight_levels, self.weight_levels).astype(np.int8)
        return numpy_helper.from_array(whole, name)


class _Fp8:
    top = weight_levels = FP8_LARGEST

    def tensor(self, levels: Array, name: str) -> Any:
        codes = fp8_codes(levels)
        return onnx.TensorProto(name=name, data_type=kinds.FLOAT8E4M3FN, dims=codes.shape, raw_data=codes.tobytes())


def fp8_codes(values: Float32) -> UInt8:
    """The nearest float8 E4M3 numbers, as bytes: ties go to even, and larger values become FP8_LARGEST."""
    e4m3 = load("ml_dtypes", "quantising to fp8", "ml_dtypes", "build").float8_e4m3fn
    codes: UInt8 = np.clip(values, -FP8_LARGEST, FP8_LARGEST).astype(e4m3).view(np.uint8)
    return codes


def _to_eight_bits(
    model: Any, largest: Mapping[str, float], layers: Collection[str], kind: _Int8 | _Fp8, residuals: bool
) -> Any:
    if unknown := set(layers) - weighted_layers(model).keys():
        raise EngineError(f"{sorted(unknown)} are not layers with weights; choose from weighted_layers(model)")
    result, graph = _copy(model)
    weights = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    shortcuts = {add: index for layer, (add, index) in residual_inputs(model).items() if residuals and layer in layers}
    nodes: list[Any] = []
    replaced: dict[str, str] = {}
    for node in map(copy.deepcopy, model.graph.node):
        operands = range(2) if node.name in layers else [shortcuts[node.name]] if node.name in shortcuts else []
        for index in operands:
            name, is_weight = node.input[index], index == 1 and node.name in layers
            axis = _channel_axis(node, weights[name].ndim) if is_weight else None
            key = name if axis is None else f"{name}_axis{axis}"
            if key not in replaced:
                values = np.array(largest[name]) if axis is None else weights[name]
                made, constants = _dequantised(name, key, values, axis, kind)
                nodes += made
                graph.initializer.extend(constants)
                replaced[key] = made[-1].output[0]
            node.input[index] = replaced[key]
        nodes.append(node)
    return _with_nodes(result, nodes)


def _has_kernel(op_type: str, shape: tuple[int, ...], kind: str) -> bool:
    narrow, channels = min(shape[:2]), shape[:2]
    if op_type == "ConvTranspose":
        return kind == "int8"
    if op_type != "Conv":
        return min(shape[-2:]) >= 16
    if kind == "fp8":
        return narrow > 16 and max(shape[2:]) < 32
    return narrow >= 16 or any(count % 8 == 0 for count in channels)


def _dequantised(
    name: str, key: str, values: Array, axis: int | None, kind: _Int8 | _Fp8
) -> tuple[list[Any], list[Any]]:
    """Nodes and constants that take tensor `name` to eight bits and back; the last output is the result.

    axis None: an activation whose largest magnitude is `values`. Otherwise a weight, quantised here along `axis`.
    """
    others = tuple(i for i in range(values.ndim) if i != axis)
    peaks = np.abs(values).astype(np.float64) if axis is None else np.abs(values).max(others, keepdims=True)
    scales = _half_scales(peaks / (kind.top if axis is None else kind.weight_levels))
    shape = () if axis is None else (-1,)
    scale, zero, stored, result = (f"{key}_{part}" for part in ("scale", "zero", "stored", "dequantized"))
    constants = [
        numpy_helper.from_array(scales.reshape(shape), scale),
        kind.tensor(np.zeros(scales.size).reshape(shape), zero),
    ]
    nodes = []
    if axis is None:
        nodes.append(onnx.helper.make_node("QuantizeLinear", [name, scale, zero], [stored], name=f"{key}_quantize"))
    else:
        constants.append(kind.tensor(values / scales, stored))
    channel = {} if axis is None else {"axis": axis}
    inputs = [stored, scale, zero]
    nodes.append(onnx.helper.make_node("DequantizeLinear", inputs, [result], name=f"{key}_dequantize", **channel))
    return nodes, constants


def _half_scales(scales: Array) -> Float32:
    """Scales rounded up to float16 numbers, as float32: rounding down would clip the largest value."""
    scales = np.maximum(scales, _SMALLEST_SCALE)
    halves = scales.astype(np.float16)
    return np.where(halves < scales, np.nextafter(halves, np.float16(np.inf)), halves).astype(np.float32)


def _channel_axis(node: Any, rank: int) -> int:
    """The axis of a layer's weight that holds its output channels."""
    if node.op_type == "Conv" or (node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute)):
        return 0
    return 1 if node.op_type == "ConvTranspose" else rank - 1


def _hoist_constants(model: Any) -> None:
    """Turn Constant nodes that hold a tensor into initializers."""
    for node in [n for n in model.graph.node if n.op_type == "Constant" and n.attribute[0].name == "value"]:
        tensor = model.graph.initializer.add()
        tensor.CopyFrom(node.attribute[0].t)
        tensor.name = node.output[0]
        model.graph.node.remove(node)


def _half_tensor(constant: Any, name: str) -> Any:
    """A float32 initializer in float16: no finite value becomes infinite, and no other value becomes 0."""
    values = numpy_helper.to_array(constant)
    halves = np.where(np.isinf(values), values, np.clip(values, -_HALF_MAX, _HALF_MAX))
    halves = np.where((values != 0) & (np.abs(values) < _HALF_TINY), np.copysign(_HALF_TINY, values), halves)
    return numpy_helper.from_array(halves.astype(np.float16), name)


def _cast(source: str, target: str, to_half: bool) -> Any:
    kind = kinds.FLOAT16 if to_half else kinds.FLOAT
    return onnx.helper.make_node("Cast", [source], [target], name=f"{target}_cast", to=kind)


def _retarget_cast(node: Any, kind: int, other: int) -> None:
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == kind:
            attribute.i = other


def _copy(model: Any) -> tuple[Any, Any]:
    """(copy, its graph), without the recorded types of inner tensors, which are going to change."""
    result = copy.deepcopy(model)
    del result.graph.value_info[:]
    return result, result.graph


def _with_nodes(model: Any, nodes: Sequence[Any]) -> Any:
    """The model with these nodes, and only the initializers that they use."""
    graph = model.graph
    used = {name for node in nodes for name in node.input} | {o.name for o in graph.output}
    del graph.node[:]
    graph.node.extend(nodes)
    unused = [i for i in graph.initializer if i.name not in used]
    for initializer in unused:
        graph.initializer.remove(initializer)
    return model
