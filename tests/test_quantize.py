"""fp32 ONNX -> fp16 and int8 files: they hold what they say, score within budget, or are not written."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections import Counter
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dgiqa import spec
from dgiqa.builder.calibrate import (
    MAX_IMAGES,
    Errors,
    _Watched,
    make_probe,
    measure,
    photographs,
    score_tiles,
)
from dgiqa.bundle import Bundle, load_bundle, load_golden
from dgiqa.errors import BackendError, BundleError, EngineError, ImageError, ParityError
from dgiqa.full_reference import FullReference
from dgiqa.parity import BUDGETS
from dgiqa.store import sha256_of

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
ml_dtypes = pytest.importorskip("ml_dtypes")

from dgiqa.builder import quantize as quantize_module  # noqa: E402
from dgiqa.builder.precision import (  # noqa: E402
    CPU_WEIGHT_LEVELS,
    FP8_LARGEST,
    LEVELS,
    check_precision,
    fp8_codes,
    layer_types,
    layers_with_kernels,
    like_half,
    load_model,
    residual_inputs,
    store_half,
    tensor_types,
    to_fp8,
    to_half,
    to_int8,
    weighted_layers,
    with_outputs,
)
from dgiqa.builder.quantize import NOTICEABLE, Group, Part, Quantized, quantize_bundle, sensitivity_table  # noqa: E402
from dgiqa.runtime.engines import NETWORKS as FILES  # noqa: E402
from dgiqa.runtime.ort import OrtSession  # noqa: E402
from dgiqa.runtime.session import open_session  # noqa: E402

FLOAT, FLOAT16, INT8 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.INT8
E4M3 = onnx.TensorProto.FLOAT8E4M3FN


def graph(nodes: list[Any], constants: dict[str, Any], inputs: dict[str, Any], outputs: dict[str, Any]) -> Any:
    ends = [
        [onnx.helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in side.items()]
        for side in (inputs, outputs)
    ]
    tensors = [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", *ends, tensors),
        opset_imports=[onnx.helper.make_opsetid("", spec.OPSET)],
        ir_version=9,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


ORT_RELEASE = tuple(int(part) for part in metadata.version("onnxruntime").split(".")[:2])


def run(model: Any, **feeds: NDArray[Any]) -> NDArray[Any]:
    return next(iter(OrtSession(model.SerializeToString()).run(feeds).values()))


def node(op: str, inputs: list[str], output: str, **attributes: Any) -> Any:
    return onnx.helper.make_node(op, inputs, [output], name=f"{op}_{output}", **attributes)


@pytest.fixture
def layers_model() -> Any:
    """One layer of each kind that holds weights, and a product of two activations that holds none."""
    rng = np.random.default_rng(0)
    nodes = [
        node("Conv", ["x", "conv_w", "conv_b"], "a", pads=[1, 1, 1, 1]),
        node("Relu", ["a"], "r"),
        node("ConvTranspose", ["r", "up_w"], "b", strides=[2, 2]),
        node("ReduceMean", ["b", "hw"], "c", keepdims=0),
        node("Gemm", ["c", "gemm_w", "gemm_b"], "d", transB=1),
        node("MatMul", ["d", "mat_w"], "e"),
        node("Transpose", ["e"], "t"),
        node("MatMul", ["e", "t"], "y"),
    ]
    shapes = {"conv_w": (8, 3, 3, 3), "conv_b": (8,), "up_w": (8, 6, 2, 2), "gemm_w": (5, 6), "gemm_b": (5,)}
    constants: dict[str, Any] = {name: rng.standard_normal(s).astype("f") for name, s in shapes.items()}
    # Channels of very different size: a scale for each keeps them apart, one for all would not
    constants["mat_w"] = (rng.standard_normal((5, 4)) * [1, 0.1, 0.01, 1e-3]).astype("f")
    constants["hw"] = np.array([2, 3])
    return graph(nodes, constants, {"x": ["n", 3, 8, 8]}, {"y": ["n", "n"]})


@pytest.fixture
def x() -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype("f")


def ranges(model: Any, x: NDArray[np.float32]) -> dict[str, float]:
    names = [n.input[0] for n in model.graph.node if n.name in weighted_layers(model)]
    values = {"x": x} | OrtSession(with_outputs(model, names).SerializeToString()).run({"x": x})
    return {name: float(np.abs(values[name]).max()) for name in names}


# the graph


def test_int8_layers_have_int8_operands_with_zero_point_0_and_a_scale_per_output_channel(
    layers_model: Any, x: NDArray[np.float32]
) -> None:
    model = to_int8(layers_model, ranges(layers_model, x), weighted_layers(layers_model))
    assert layer_types(model) == Counter(int8=4)
    values = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    pairs = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) == 4 + 8
    for pair in pairs:
        assert values[pair.input[2]].dtype == np.int8
        assert not values[pair.input[2]].any()
    weights = {n.input[0]: (values[n.input[0]], values[n.input[1]]) for n in pairs if n.input[0] in values}
    channels = {name: (w.shape, w.dtype, s.size) for name, (w, s) in weights.items()}
    assert sorted(channels.values()) == [
        ((5, 4), np.int8, 4),
        ((5, 6), np.int8, 5),
        ((8, 3, 3, 3), np.int8, 8),
        ((8, 6, 2, 2), np.int8, 6),
    ]
    assert all(np.abs(w.astype(int)).max() == CPU_WEIGHT_LEVELS for w, _ in weights.values())
    assert values["conv_b"].dtype == np.float32  # no quantised bias


def test_int8_computes_what_fp32_does_up_to_its_steps(layers_model: Any, x: NDArray[np.float32]) -> None:
    expected = run(layers_model, x=x)
    model = to_int8(layers_model, ranges(layers_model, x), weighted_layers(layers_model), weight_levels=LEVELS)
    # Before 1.30 onnxruntime computed int8 among float16 layers wrongly (1.20 to 1.28 by 10 %); a build refuses that.
    mixed = (to_half(model), store_half(to_half(model))) if ORT_RELEASE >= (1, 30) else ()
    for candidate in (model, store_half(model), *mixed):
        assert np.abs(run(candidate, x=x) - expected).max() < 0.03 * np.abs(expected).max()


def largest_layer(op: str) -> Any:
    """One layer whose weights are all the largest there are."""
    shape, ends = {
        "MatMul": ((64, 64), ([1, 64], [1, 64])),
        "Conv": ((64, 64, 3, 3), ([1, 64, 3, 3], [1, 64, 1, 1])),
    }[op]
    return graph([node(op, ["x", "w"], "y")], {"w": np.ones(shape, "f")}, {"x": ends[0]}, {"y": ends[1]})


def opened(backend: str, model: Any, folder: Path) -> Any:
    if backend == "openvino":
        pytest.importorskip("openvino")
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return open_session(path, backend, precision="int8")


# float8


def test_numbers_are_rounded_to_e4m3_as_onnxruntime_rounds_them() -> None:
    numbers = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype("f8")
    assert numbers[-1] == FP8_LARGEST
    between = (numbers[1:] + numbers[:-1]) / 2
    values = np.concatenate([numbers, between, between * 1.001, between * 0.999, [449, 1000]]).astype("f")
    values = np.concatenate([values, -values])
    constants = {"scale": np.float32(1)}
    model = graph(
        [node("Cast", ["x"], "q", to=E4M3), node("Cast", ["q"], "y", to=FLOAT)], constants, {"x": ["n"]}, {"y": ["n"]}
    )
    codes = fp8_codes(values)
    decoded = np.where(codes & 0x80, -1, 1) * numbers[codes & 0x7F]
    np.testing.assert_array_equal(decoded, run(model, x=values))


COMPUTES_FP8 = tuple(map(int, ort.__version__.split(".")[:2])) >= (1, 32)
computes_fp8 = pytest.mark.skipif(not COMPUTES_FP8, reason="needs onnxruntime 1.32, which computes fp8")


@computes_fp8
def test_fp8_layers_have_e4m3_operands_and_onnxruntime_computes_them(layers_model: Any, x: NDArray[np.float32]) -> None:
    layers = [name for name in weighted_layers(layers_model) if not name.startswith("ConvTranspose")]
    model = to_fp8(layers_model, ranges(layers_model, x), layers)
    assert layer_types(model) == Counter(fp8=3, fp32=1)
    stored = [i for i in model.graph.initializer if i.data_type == E4M3 and len(i.dims) >= 2]
    assert len(stored) == 3
    assert all(max(byte & 0x7F for byte in i.raw_data) == 126 for i in stored)  # each channel uses the whole range
    wanted = run(layers_model, x=x)
    for typed in (model, to_half(model)):
        assert np.abs(run(typed, x=x) - wanted).max() < 0.15 * np.abs(wanted).max()  # three bits of mantissa
    assert layer_types(to_half(model)) == Counter(fp8=3, fp16=1)
    broken = to_fp8(layers_model, {name: top / 8 for name, top in ranges(layers_model, x).items()}, layers)
    assert np.abs(run(broken, x=x) - wanted).max() > 0.3 * np.abs(wanted).max()


@pytest.mark.skipif(COMPUTES_FP8, reason="of onnxruntime before 1.32")
def test_an_onnxruntime_that_takes_fp8_for_int8_is_too_old(layers_model: Any, x: NDArray[np.float32]) -> None:
    with pytest.raises(BackendError, match=r"needs a newer onnxruntime than .* pip install -U onnxruntime"):
        run(to_fp8(layers_model, ranges(layers_model, x), weighted_layers(layers_model)), x=x)


@computes_fp8
@pytest.mark.parametrize("activation", ["Clip", "Relu"])
def test_onnxruntime_takes_fp8_behind_an_activation(activation: str) -> None:
    """It would look whether the quantisation clips as much, and fail on the type."""
    bounds = ["low", "high"] if activation == "Clip" else []
    constants = {"w": np.ones((4, 3), "f"), "v": np.ones((3, 2), "f"), "low": np.float32(0), "high": np.float32(6)}
    nodes = [node("MatMul", ["x", "w"], "a"), node(activation, ["a", *bounds], "b"), node("MatMul", ["b", "v"], "y")]
    used = {name: constants[name] for name in ("w", "v", *bounds)}
    model = graph(nodes, used, {"x": ["n", 4]}, {"y": ["n", 2]})
    made = to_fp8(model, {"x": 1.0, "b": 6.0}, weighted_layers(model))
    np.testing.assert_allclose(run(made, x=np.ones((1, 4), "f")), [[12, 12]], rtol=0.05)


def test_layers_without_eight_bit_kernels_are_known() -> None:
    shapes = {"wide": (32, 32, 3, 3), "depthwise": (32, 1, 3, 3), "first": (32, 3, 3, 3), "narrow": (12, 3, 1, 1)}
    shapes |= {"sixteen": (16, 16, 1, 1), "large": (32, 32, 32, 32)}
    nodes, names = [], ["x"]
    for name in shapes:
        nodes.append(node("Conv", [names[-1], name], f"{name}_out"))
        names.append(f"{name}_out")
    nodes += [node("MatMul", [names[-1], "square"], "m"), node("MatMul", ["m", "column"], "y")]
    constants = {name: np.ones(shape, "f") for name, shape in shapes.items()}
    constants |= {"square": np.ones((32, 16), "f"), "column": np.ones((16, 1), "f")}
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", [], [], [onnx.numpy_helper.from_array(a, n) for n, a in constants.items()])
    )
    assert layers_with_kernels(model, "fp8") == ["Conv_wide_out", "MatMul_m"]
    assert layers_with_kernels(model, "int8") == [f"Conv_{n}_out" for n in shapes if n != "narrow"] + ["MatMul_m"]


# residual additions


@pytest.fixture
def residual_model() -> Any:
    """x -> convolution a -> relu -> convolution b, and a on top; then a convolution that shrinks both."""
    rng = np.random.default_rng(0)
    nodes = [
        node("Conv", ["x", "w1"], "a", pads=[1, 1, 1, 1]),
        node("Relu", ["a"], "r"),
        node("Conv", ["r", "w2"], "b", pads=[1, 1, 1, 1]),
        node("Add", ["b", "r"], "s"),
        node("Add", ["s", "offset"], "t"),
        node("Conv", ["t", "w3"], "c"),
        node("Conv", ["t", "w4"], "d"),
        node("Add", ["c", "d"], "y"),
    ]
    shapes = {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "w3": (8, 8, 1, 1), "w4": (8, 8, 1, 1), "offset": (8, 1, 1)}
    constants = {name: rng.standard_normal(shape).astype("f") for name, shape in shapes.items()}
    return graph(nodes, constants, {"x": ["n", 3, 8, 8]}, {"y": ["n", 8, 8, 8]})


def test_what_is_added_to_a_convolution_is_quantised_and_its_own_result_is_not(
    residual_model: Any, x: NDArray[np.float32]
) -> None:
    assert residual_inputs(residual_model) == {"Conv_b": ("Add_s", 1), "Conv_d": ("Add_y", 0)}
    names = ["x", "a", "r", "b", "t", "c", "d"]
    values = {"x": x} | OrtSession(with_outputs(residual_model, names).SerializeToString()).run({"x": x})
    largest = {name: float(np.abs(values[name]).max()) for name in names}
    model = to_int8(residual_model, largest, weighted_layers(residual_model), residuals=True)
    makers = {o: n for n in model.graph.node for o in n.output}
    kinds = {
        n.name: [makers[name].op_type if name in makers else "" for name in n.input]
        for n in model.graph.node
        if n.op_type == "Add"
    }
    assert kinds == {
        "Add_s": ["Conv", "DequantizeLinear"],
        "Add_t": ["Add", ""],
        "Add_y": ["DequantizeLinear", "Conv"],
    }
    assert layer_types(model) == Counter(int8=4)
    wanted, got = run(residual_model, x=x), run(model, x=x)
    assert np.abs(got - wanted).max() < 0.05 * np.abs(wanted).max()
    quantisers = [n.input[0] for n in model.graph.node if n.op_type == "QuantizeLinear"]
    assert sorted(quantisers) == ["c", "r", "t", "x"]  # r once for both of its readers
    some = to_int8(residual_model, largest, ["Conv_a", "Conv_b"], residuals=True)
    assert "c" not in [n.input[0] for n in some.graph.node if n.op_type == "QuantizeLinear"]  # Conv_d stays float
    plain = to_int8(residual_model, largest, weighted_layers(residual_model))
    assert "c" not in [n.input[0] for n in plain.graph.node if n.op_type == "QuantizeLinear"]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("op", ["MatMul", "Conv"])
def test_no_processor_clips_the_sums_of_int8_layers(backend: str, op: str, tmp_path: Path) -> None:
    """Without VNNI products are added two by two in 16 bits: with weights up to 127, 99 % of this sum is lost."""
    assert 2 * 255 * CPU_WEIGHT_LEVELS < 2**15  # what shows on a processor with VNNI, too
    model = to_int8(largest_layer(op), {"x": 1.0}, [f"{op}_y"])
    x = np.ones([d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim], "f")
    (got,) = opened(backend, model, tmp_path).run({"x": x}).values()
    np.testing.assert_allclose(got, 64 if op == "MatMul" else 576, rtol=2e-3)  # scales are float16 numbers


def dequantised_weights(model: Any) -> list[NDArray[np.float32]]:
    """What the int8 weights of a model mean, in the order of its layers."""
    constants = {i.name for i in model.graph.initializer}
    names = [n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in constants]
    feeds = {i.name: np.zeros((1, 3, 8, 8), "f") for i in model.graph.input}
    results = OrtSession(with_outputs(model, names).SerializeToString()).run(feeds)
    return [results[name] for name in names]


def test_a_lost_scale_moves_the_result(layers_model: Any, x: NDArray[np.float32]) -> None:
    expected = run(layers_model, x=x)
    model = to_int8(layers_model, ranges(layers_model, x), weighted_layers(layers_model))
    scale = next(i for i in model.graph.initializer if i.name.startswith("gemm_w") and i.name.endswith("_scale"))
    scale.CopyFrom(onnx.numpy_helper.from_array(np.ones(5, np.float32), scale.name))
    assert np.abs(run(model, x=x) - expected).max() > 0.3 * np.abs(expected).max()


def test_only_the_layers_named_are_quantised(layers_model: Any, x: NDArray[np.float32]) -> None:
    model = to_int8(layers_model, ranges(layers_model, x), ["Conv_a"])
    assert layer_types(model) == Counter(int8=1, fp32=3)
    with pytest.raises(EngineError, match="Relu_r"):
        to_int8(layers_model, ranges(layers_model, x), ["Relu_r"])


def test_fp16_keeps_its_ends_float32_and_everything_between_float16(layers_model: Any, x: NDArray[np.float32]) -> None:
    model = to_half(layers_model)
    types = tensor_types(model)
    assert layer_types(model) == Counter(fp16=4)
    assert (types["x"], types["y"]) == (FLOAT, FLOAT)
    assert {types[o] for n in model.graph.node for o in n.output if n.op_type != "Cast"} == {FLOAT16}
    np.testing.assert_allclose(run(model, x=x), run(layers_model, x=x), rtol=1e-2, atol=1e-2)


def test_nodes_kept_in_float32_are_joined_by_casts(layers_model: Any, x: NDArray[np.float32]) -> None:
    model = to_half(layers_model, keep=["Gemm_d"])
    assert layer_types(model) == Counter(fp16=3, fp32=1)
    np.testing.assert_allclose(run(model, x=x), run(layers_model, x=x), rtol=1e-2, atol=1e-2)


def test_float16_is_imitated_to_the_bit() -> None:
    values = np.random.default_rng(0).standard_normal(10_000).astype("f") * np.logspace(-9, 4, 10_000, dtype="f")
    model = like_half(graph([node("Relu", ["x"], "y")], {}, {"x": ["n"]}, {"y": ["n"]}))
    np.testing.assert_array_equal(run(model, x=values), np.maximum(values, 0).astype(np.float16).astype("f"))
    assert np.isfinite(run(model, x=np.array([65504, -65504, 70000, -70000], "f"))).tolist() == [
        True,
        True,
        False,
        True,
    ]


def test_the_imitation_survives_what_onnxruntime_fuses(layers_model: Any, x: NDArray[np.float32]) -> None:
    imitated, exact = run(like_half(layers_model), x=x), run(layers_model, x=x)
    np.testing.assert_array_equal(imitated, imitated.astype(np.float16).astype("f"))
    assert not np.array_equal(exact, exact.astype(np.float16).astype("f"))
    np.testing.assert_allclose(imitated, exact, rtol=1e-2, atol=1e-2)


def test_every_result_on_the_way_is_rounded_in_the_imitation(x: NDArray[np.float32]) -> None:
    nodes = [node("Mul", ["x", "third"], "a"), node("Mul", ["a", "seven"], "b"), node("Sub", ["b", "x"], "y")]
    constants = {"third": np.float32(1 / 3), "seven": np.float32(7)}
    chain = graph(nodes, constants, {"x": ["n", 3, 8, 8]}, {"y": ["n", 3, 8, 8]})
    half = x.astype(np.float16)
    wanted = half * np.float16(1 / 3) * np.float16(7) - half
    np.testing.assert_array_equal(run(like_half(chain), x=x), wanted.astype("f"))


def test_coordinates_stay_float32_where_float16_could_not_count() -> None:
    nodes = [
        node("Shape", ["x"], "shape", start=1, end=2),
        node("Squeeze", ["shape"], "length"),
        node("Cast", ["length"], "end", to=FLOAT),
        node("Range", ["zero", "end", "one"], "positions"),
        node("Div", ["positions", "end"], "relative"),
        node("Mul", ["x", "relative"], "y"),
    ]
    constants = {"zero": np.float32(0), "one": np.float32(1)}
    model = graph(nodes, constants, {"x": [1, "w"]}, {"y": [1, "w"]})
    half = to_half(model)
    assert tensor_types(half)["positions"] == FLOAT
    ones = np.ones((1, 4096), np.float32)
    assert np.abs(run(half, x=ones) - run(model, x=ones)).max() <= 2.0**-11


def test_resize_keeps_its_scales_float32(x: NDArray[np.float32]) -> None:
    nodes = [node("Resize", ["x", "", "scales"], "y", mode="linear")]
    model = graph(nodes, {"scales": np.array([1, 1, 2, 2], np.float32)}, {"x": [2, 3, 8, 8]}, {"y": [2, 3, 16, 16]})
    np.testing.assert_allclose(run(to_half(model), x=x), run(model, x=x), atol=5e-3)


def test_a_result_that_is_used_inside_keeps_its_name_and_type() -> None:
    nodes = [node("Add", ["x", "x"], "y"), node("Mul", ["y", "x"], "z")]
    model = graph(nodes, {}, {"x": [3]}, {"y": [3], "z": [3]})
    got = OrtSession(to_half(model).SerializeToString()).run({"x": np.array([1, 2, 3], "f")})
    assert [got[name].tolist() for name in ("y", "z")] == [[2, 4, 6], [2, 8, 18]]


def test_constants_outside_float16_stay_finite_and_do_not_vanish() -> None:
    values = np.array([1e9, -1e9, 1e-12, -1e-12, -np.inf, 0], np.float32)
    model = to_half(graph([node("Add", ["x", "c"], "y")], {"c": values}, {"x": [6]}, {"y": [6]}))
    stored = onnx.numpy_helper.to_array(model.graph.initializer[0]).astype(np.float64)
    assert stored.tolist() == [65504, -65504, 2.0**-24, -(2.0**-24), -np.inf, 0]


def test_functions_with_their_own_constants_are_called_in_float32() -> None:
    body = [
        onnx.helper.make_node("Constant", [], ["c"], value=onnx.numpy_helper.from_array(np.float32(2), "c")),
        onnx.helper.make_node("Mul", ["a", "c"], ["b"]),
    ]
    opsets = [onnx.helper.make_opsetid("", spec.OPSET)]
    function = onnx.helper.make_function(spec.ONNX_DOMAIN, "Twice", ["a"], ["b"], body, opsets)
    call = onnx.helper.make_node("Twice", ["h"], ["t"], name="twice", domain=spec.ONNX_DOMAIN)
    nodes = [node("Relu", ["x"], "h"), call, node("Relu", ["t"], "y")]
    model = graph([nodes[0], nodes[2]], {}, {"x": [2], "t": [2]}, {"y": [2]})
    model.graph.node.insert(1, call)
    del model.graph.input[1]
    model.functions.append(function)
    model.opset_import.append(onnx.helper.make_opsetid(spec.ONNX_DOMAIN, 1))
    half = to_half(model)
    assert tensor_types(half)["t"] == FLOAT
    assert run(half, x=np.array([-1, 3], "f")).tolist() == [0, 6]


def test_stored_constants_take_half_the_bytes_and_compute_in_float32(layers_model: Any) -> None:
    big = graph(
        [node("MatMul", ["x", "w"], "y")],
        {"w": np.random.default_rng(0).standard_normal((64, 64)).astype("f")},
        {"x": ["n", 64]},
        {"y": ["n", 64]},
    )
    stored = store_half(big)
    assert stored.ByteSize() < 0.55 * big.ByteSize()
    assert layer_types(stored) == Counter(fp32=1)
    x = np.ones((1, 64), "f")
    np.testing.assert_allclose(run(stored, x=x), run(big, x=x), atol=0.02)


def test_changing_a_model_leaves_the_one_given_alone(layers_model: Any, x: NDArray[np.float32]) -> None:
    before = layers_model.SerializeToString(deterministic=True)
    largest = ranges(layers_model, x)
    for change in (to_half, store_half, lambda m: to_int8(m, largest, weighted_layers(m))):
        change(layers_model)
        assert layers_model.SerializeToString(deterministic=True) == before


# planted faults


def test_a_mixed_type_is_refused(layers_model: Any, tmp_path: Path) -> None:
    model = to_half(layers_model)
    bias = next(i for i in model.graph.initializer if i.name == "gemm_b_half")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.zeros(5, np.float32), bias.name))
    path = tmp_path / "mixed.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(EngineError, match="types"):
        check_precision(path, "fp16")


def test_a_file_is_refused_when_it_has_not_the_precision_asked_for(
    layers_model: Any, x: NDArray[np.float32], tmp_path: Path
) -> None:
    models = {
        "fp32": layers_model,
        "fp16": to_half(layers_model),
        "int8": to_int8(layers_model, ranges(layers_model, x), weighted_layers(layers_model)),
    }
    for made, model in models.items():
        path = tmp_path / f"{made}.onnx"
        path.write_bytes(model.SerializeToString())
        for asked in models:
            if asked == made:
                assert check_precision(path, asked)[asked] == 4
            else:
                with pytest.raises(ParityError, match=f"compute in {asked}"):
                    check_precision(path, asked)
    with pytest.raises(ValueError, match="bf16"):
        check_precision(path, "bf16")


def test_a_zero_point_that_is_not_0_is_not_counted_as_int8(layers_model: Any, x: NDArray[np.float32]) -> None:
    model = to_int8(layers_model, ranges(layers_model, x), weighted_layers(layers_model))
    zero = next(i for i in model.graph.initializer if i.name.startswith("gemm_w") and i.name.endswith("_zero"))
    zero.CopyFrom(onnx.numpy_helper.from_array(np.full(5, 3, np.int8), zero.name))
    assert layer_types(model) == Counter(int8=3, fp32=1)


def test_nested_graphs_are_refused(tmp_path: Path) -> None:
    branch = onnx.helper.make_graph(
        [node("Identity", ["x"], "b")], "branch", [], [onnx.helper.make_tensor_value_info("b", FLOAT, [1])]
    )
    choice = node("If", ["c"], "y", then_branch=branch, else_branch=branch)
    model = graph([choice], {"c": np.array(True)}, {"x": [1]}, {"y": [1]})
    (tmp_path / "if.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(EngineError, match="nested"):
        load_model(tmp_path / "if.onnx")


def test_a_file_that_is_no_model_and_a_missing_onnx_are_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], script: Callable[[str], ModuleType], without_onnx: None
) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no model")
    with pytest.raises(EngineError, match="cannot be read as ONNX"):
        load_model(tmp_path / "x.onnx")
    with pytest.raises(BackendError, match=r"dgiqa-rt\[build\]"):
        importlib.import_module("dgiqa.builder.precision")
    assert script("export/quantize.py").main(["--fp16", "--out", str(tmp_path)]) == 1
    assert "dgiqa-rt[build]" in capsys.readouterr().err


# calibration


def test_the_largest_magnitude_of_all_photographs_counts(layers_model: Any, photos: dict[str, Any]) -> None:
    watched = _Watched(layers_model, [layers_model.graph.input[0].name])
    name = layers_model.graph.input[0].name
    shape = [d.dim_value or 1 for d in layers_model.graph.input[0].type.tensor_type.shape.dim]
    for value in (0.5, -3.0, 1.0):
        watched.run({name: np.full(shape, value, np.float32)})
    assert watched.largest == {name: 3.0}
    with pytest.raises(ImageError, match="NaN or infinity"):
        watched.run({name: np.full(shape, np.nan, np.float32)})


def test_calibration_looks_at_what_the_networks_are_fed(tiny_bundle: Bundle, photos: dict[str, Any]) -> None:
    models = {file: load_model(tiny_bundle.file(file)) for file in FILES}
    tensors = {spec.DEPTH_FILE: [spec.DEPTH_INPUT], spec.QUALITY_FILE: ["both", "mean"]}
    found = measure([photos["coffee"]], models, tensors, tiny_bundle.preprocess, lambda _: None)
    from dgiqa.preprocess import depth_input

    image = depth_input(photos["coffee"], tiny_bundle.preprocess)
    assert found[spec.DEPTH_FILE][spec.DEPTH_INPUT] == pytest.approx(float(np.abs(image).max()))
    assert found[spec.QUALITY_FILE]["mean"] > 0


def test_folders_are_searched_to_the_bottom_and_bad_files_left_out(
    tiny_bundle: Bundle, photos: dict[str, Any], encode: Callable[..., bytes], tmp_path: Path
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "1.png").write_bytes(encode(photos["coffee"][:64, :64]))
    (tmp_path / "a" / "b" / "2.jpg").write_bytes(b"broken")
    (tmp_path / "a" / "b" / "3.png").write_bytes(encode(photos["chelsea"][:64, :64]))
    said: list[str] = []
    read, described = photographs(tiny_bundle, [tmp_path], said.append)
    images = list(read())
    assert np.array_equal(images[0], photos["coffee"][:64, :64])
    assert [image.shape for image in images] == [(64, 64, 3)] * 2
    assert "3 images" in described
    assert any("2.jpg" in line for line in said)


def test_no_more_images_are_taken_than_count(tiny_bundle: Bundle, tmp_path: Path) -> None:
    for number in range(MAX_IMAGES + 5):
        (tmp_path / f"{number}.png").touch()
    assert f"{MAX_IMAGES} images" in photographs(tiny_bundle, [tmp_path], lambda _: None)[1]


def test_a_folder_without_images_or_that_is_missing_is_an_error(tiny_bundle: Bundle, tmp_path: Path) -> None:
    for wrong in ([tmp_path], [tmp_path / "missing"], []):
        with pytest.raises(ValueError, match="no image for calibration"):
            quantize_bundle(tiny_bundle, "int8", tmp_path / "out", calibration=wrong)
    assert not (tmp_path / "out").exists()


def test_without_a_folder_the_golden_images_serve_and_the_report_says_so(tiny_bundle: Bundle) -> None:
    read, described = photographs(tiny_bundle, None, lambda _: None)
    assert "golden" in described
    assert "weaker" in described
    assert len(list(read())) > 2 * len(load_golden(tiny_bundle))


# whole bundles


@pytest.fixture(scope="module")
def small() -> Bundle:
    return load_bundle("small")


@pytest.fixture(scope="module")
def made(small: Bundle, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Quantized]:
    """The small bundle in fp16 and int8."""
    root = tmp_path_factory.mktemp("quantized")
    before = {file: sha256_of(small.file(file)) for file in FILES}
    results = {precision: quantized_on_golden(small, precision, root / precision) for precision in ("fp16", "int8")}
    assert {file: sha256_of(small.file(file)) for file in FILES} == before
    return results


def quantized_on_golden(small: Bundle, precision: str, out: Path, **options: Any) -> Quantized:
    """By a search that looks only at the golden images, to keep it short."""
    from dgiqa.image import decode

    files = sorted((small.path / "golden").glob("*.png"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantize_module, "probe_photographs", lambda *_: (decode(file.read_bytes()) for file in files))
        return quantize_bundle(small, precision, out, calibration=files, **options)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_golden_images_score_within_the_budget(small: Bundle, made: dict[str, Quantized], precision: str) -> None:
    from dgiqa.image import decode

    networks = {file: OrtSession(path) for file, path in made[precision].files.items()}
    for golden in load_golden(small):
        rgb = decode((small.path / golden.file).read_bytes())
        assert abs(score_tiles(rgb, networks, small.preprocess).mean() - golden.score) <= BUDGETS[precision]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_files_are_small_and_of_the_precision_asked_for(made: dict[str, Quantized], precision: str) -> None:
    for file, path in made[precision].files.items():
        found = check_precision(path, precision)
        facts = made[precision].report["files"][file]
        assert facts["layers"] == dict(found)
        assert facts["bytes"] == path.stat().st_size
        assert facts["size_ratio"] <= {"fp16": 0.51, "int8": 0.30}[precision]
        model = load_model(path)
        assert {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)} == {FLOAT}
    json.dumps(made[precision].report, allow_nan=False)


@pytest.mark.slow
def test_the_search_left_out_what_costs_most_and_prints_its_table(made: dict[str, Quantized]) -> None:
    report = made["int8"].report
    assert report["error"]["max"] <= 0.5 * BUDGETS["int8"]
    assert 1 <= len(report["left_out"]) <= 24  # Lite0 is deep and narrow
    costs = [part["alone"] for part in report["parts"]]
    assert costs == sorted(costs, reverse=True)
    assert report["parts"][0]["left_out"]
    assert report["parts"][0]["name"][:40] in sensitivity_table(report)


@pytest.mark.slow
def test_layers_that_cost_little_are_tried_in_groups(small: Bundle, made: dict[str, Quantized]) -> None:
    parts = made["int8"].report["parts"]
    layers = sum(len(weighted_layers(load_model(small.file(file)))) for file in FILES)
    assert sum(part["layers"] for part in parts) <= layers  # each layer stands in one group, unless it changes nothing
    assert len(parts) < layers / 2
    assert all(part["layers"] == 1 for part in parts if part["left_out"])
    assert parts[0]["alone"] > 10 * parts[-1]["alone"]


@pytest.mark.slow
def test_fp8_and_int8_for_gpus_score_within_the_budget(small: Bundle, tmp_path: Path) -> None:
    """Q/DQ as TensorRT fuses it, in both types."""
    for precision in ("int8", "fp8"):
        made = quantized_on_golden(small, precision, tmp_path / precision, rest="fp16")
        assert made.report["error"]["max"] <= BUDGETS[precision]
        for path in made.files.values():
            assert check_precision(path, precision)[precision] > 10
            model = load_model(path)
            adds = [n for n in model.graph.node if n.op_type == "Add"]
            assert any("dequantized" in name for n in adds for name in n.input)


@pytest.mark.slow
def test_int8_with_an_fp16_rest_scores_alike(small: Bundle, made: dict[str, Quantized], photos: dict[str, Any]) -> None:
    expected = {file: OrtSession(path) for file, path in made["int8"].files.items()}
    halves = {f: OrtSession(to_half(load_model(p)).SerializeToString()) for f, p in made["int8"].files.items()}
    a, b = (score_tiles(photos["rocket"], networks, small.preprocess) for networks in (expected, halves))
    assert np.abs(a - b).max() < 0.01


class Costs:
    """A Probe of networks that are the sets of changed parts' names: each costs what it is said to, in squares."""

    def __init__(self, costs: dict[str, float], depth: frozenset[str] = frozenset()) -> None:
        self.costs, self.depth, self.trials = costs, depth, list[frozenset[str]]()

    def few(self) -> Costs:
        return self

    def seen_by(self, depth: frozenset[str]) -> Costs:
        return Costs(self.costs, depth)

    def errors(self, changed: dict[str, frozenset[str]]) -> Errors:
        (nodes,) = changed.values()
        self.trials.append(nodes)
        error = np.array([sum(self.costs.get(name, 1e-6) ** 2 for name in nodes | self.depth) ** 0.5])
        return Errors(error, error)


def searched(
    costs: Costs, monkeypatch: pytest.MonkeyPatch, count: int = 128, room: int = 100
) -> tuple[list[str], list[Group], float]:
    """Names left out in the order that the search says, its groups, and the error it ended with; aims at 0.01."""
    monkeypatch.setattr(quantize_module, "_session", lambda convert, file, nodes: nodes)
    parts = [Part(file, f"{file}{i}", frozenset([f"{file}{i}"]), 1) for file in FILES for i in range(count // 2)]
    said: list[str] = []
    groups, worst = quantize_module._search(
        parts, lambda *_: None, costs, target=0.01, room=dict.fromkeys(FILES, room), progress=said.append
    )
    order = [line.split()[2] for line in said if line.startswith("left out")]
    assert {part.name for part in parts if part.left_out} <= set(order)
    return [name for name in order if any(p.left_out and p.name == name for p in parts)], groups, worst


D, Q = FILES


def test_the_search_finds_the_costly_layers_in_few_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = Costs({f"{D}3": 0.2, f"{Q}40": 0.5, f"{Q}41": np.inf, f"{D}63": 0.02})
    names, groups, worst = searched(costs, monkeypatch)
    assert names == [f"{Q}41", f"{Q}40", f"{D}3", f"{D}63"]
    assert worst < 0.001
    assert len(costs.trials) < 128 / 3
    assert [group.row["alone"] for group in groups[:4]] == [None, 0.5, 0.2, 0.02]
    assert sum(len(group.parts) for group in groups) == 128
    assert f"{Q}42 to {Q}43" in [group.row["name"] for group in groups]


def test_the_search_leaves_nothing_out_for_what_every_layer_costs_a_little(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = Costs({f"{file}{i}": 0.0024 for file in FILES for i in range(64)})
    names, groups, worst = searched(costs, monkeypatch)
    assert (names, worst) == ([], pytest.approx(0.0024 * 128**0.5))
    assert all(group.alone <= NOTICEABLE * 0.01 for group in groups)


def test_what_was_left_out_in_vain_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = iter([0.5, 0.3, 0.4, 0.2, 0.25, 0.3])  # all changed; then one left out after the other
    monkeypatch.setattr(quantize_module, "_error_of", lambda *_: lambda: next(errors))
    costs = Costs({f"{Q}{i}": 0.1 - 0.01 * i for i in range(5)})
    names, groups, worst = searched(costs, monkeypatch)
    assert (names, worst) == ([f"{Q}{i}" for i in range(3)], 0.2)
    assert [group.worst_after for group in groups[:6]] == [0.3, 0.4, 0.2, None, None, None]


def test_a_layer_that_does_not_fit_into_the_file_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    names, _, worst = searched(Costs({f"{Q}1": 0.5, f"{Q}2": 0.4, f"{D}1": 0.3}), monkeypatch, room=1)
    assert names == [f"{Q}1", f"{D}1"]
    assert worst == pytest.approx(0.4)


@pytest.fixture
def bad_layer_bundle(
    tiny_bundle: Bundle, photos: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Bundle:
    """The tiny bundle with a layer that int8 ruins: its input has one value a thousand times the others.

    It is calibrated and probed on the tests' photographs.
    """
    images = [photo[::4, ::4] for photo in photos.values()]
    monkeypatch.setattr(quantize_module, "photographs", lambda *_: (lambda: iter(images), "photographs"))
    monkeypatch.setattr(quantize_module, "probe_photographs", lambda *_: iter(images))
    folder = tmp_path / "bad"
    folder.mkdir()
    for file in FILES:
        (folder / file).write_bytes(tiny_bundle.file(file).read_bytes())
    model = onnx.load(str(folder / spec.QUALITY_FILE))
    tensors = {i.name: i for i in model.graph.initializer}
    weights = onnx.numpy_helper.to_array(tensors["mix"])
    spike = np.append(weights, np.zeros((1, 1), "f"), 0)
    tensors["mix"].CopyFrom(onnx.numpy_helper.from_array(spike, "mix"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.full((1, 1), 1000, "f"), "spike"))
    matmul = next(n for n in model.graph.node if "mix" in n.input)
    at = list(model.graph.node).index(matmul)
    extra = [
        node("ReduceMean", ["mean"], "level", keepdims=1),
        node("Mul", ["level", "zero"], "nothing"),
        node("Slice", ["nothing", "from", "to", "dim"], "one_column"),
        node("Add", ["one_column", "spike"], "high"),
        node("Concat", ["mean", "high"], "spiked", axis=1),
    ]
    extra[0].input.append("dim")
    for name, value in {"zero": np.float32(0), "from": [0], "to": [1], "dim": [1]}.items():
        array = value if isinstance(value, np.float32) else np.array(value)
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    matmul.input[0] = "spiked"
    for position, each in enumerate(extra):
        model.graph.node.insert(at + position, each)
    matmul.name = "Bad"
    (folder / spec.QUALITY_FILE).write_bytes(model.SerializeToString())
    manifest = dict(tiny_bundle.manifest)
    return dataclasses.replace(tiny_bundle, path=folder, manifest=manifest | {"files": dict(manifest["files"])})


def test_the_search_leaves_out_a_planted_bad_layer(
    bad_layer_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize_module, "MAX_INT8_SIZE", 2.0)  # nodes outweigh the weights of a graph this small
    report = quantize_bundle(bad_layer_bundle, "int8", tmp_path / "out", budget=0.1).report
    assert report["left_out"] == [f"{spec.QUALITY_FILE}: Bad"]
    assert report["parts"][0]["worst_after"] == pytest.approx(report["error"]["max"], abs=1e-3)


def test_nothing_is_written_when_the_size_leaves_no_room_for_the_budget(
    bad_layer_bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(ParityError, match="int8 moves scores by up to"):
        quantize_bundle(bad_layer_bundle, "int8", tmp_path / "out", budget=1e-6)
    assert not list((tmp_path / "out").iterdir())


def test_an_int8_file_whose_layers_mostly_stay_fp32_is_not_written(
    bad_layer_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize_module, "MAX_INT8_SIZE", 2.0)
    wanted = r"of 1 layers of depth\.onnx only 0 can be int8 within .* of score, .*calibrate on other photographs"
    with pytest.raises(ParityError, match=wanted):
        quantize_bundle(bad_layer_bundle, "int8", tmp_path / "out", budget=1e-3)
    assert not list((tmp_path / "out").iterdir())


def test_an_overflow_becomes_an_fp32_island(
    tiny_bundle: Bundle, photos: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mean * 1e6 / 1e6 is the mean in float32 and infinite in float16."""
    folder = tmp_path / "large"
    folder.mkdir()
    (folder / spec.DEPTH_FILE).write_bytes(tiny_bundle.file(spec.DEPTH_FILE).read_bytes())
    model = onnx.load(str(tiny_bundle.file(spec.QUALITY_FILE)))
    at, matmul = next((i, n) for i, n in enumerate(model.graph.node) if "mix" in n.input)
    matmul.input[0] = "back"
    model.graph.node.insert(at, node("Div", ["large", "million"], "back"))
    model.graph.node.insert(at, node("Mul", ["mean", "million"], "large"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(np.float32(1e6)), "million"))
    (folder / spec.QUALITY_FILE).write_bytes(model.SerializeToString())
    bundle = dataclasses.replace(tiny_bundle, path=folder)
    images = [photo[::4, ::4] for photo in photos.values()]
    monkeypatch.setattr(quantize_module, "photographs", lambda *_: (lambda: iter(images), "photographs"))
    monkeypatch.setattr(quantize_module, "probe_photographs", lambda *_: iter(images))
    made = quantize_bundle(bundle, "fp16", tmp_path / "out")
    assert set(made.report["left_out"]) == {f"{spec.QUALITY_FILE}: Mul", f"{spec.QUALITY_FILE}: Div"}
    assert [row["alone"] for row in made.report["parts"][:2]] == [None, None]
    json.dumps(made.report, allow_nan=False)
    assert layer_types(made.files[spec.QUALITY_FILE])["fp16"] == 2
    assert made.report["error"]["max"] <= BUDGETS["fp16"]


def test_weights_of_an_fp32_island_are_not_rounded(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = load_model(tiny_bundle.file(spec.QUALITY_FILE))
    convolution = next(n.name for n in original.graph.node if n.op_type == "Conv")

    def leave_out(parts: list[Part], *_: Any, **__: Any) -> tuple[list[Group], float]:
        for part in parts:
            part.left_out = (part.file, part.name) == (spec.QUALITY_FILE, convolution)
        return [], 0.0

    monkeypatch.setattr(quantize_module, "_search", leave_out)
    made = quantize_bundle(tiny_bundle, "fp16", tmp_path / "out")
    held = {i.name: onnx.numpy_helper.to_array(i) for i in load_model(made.files[spec.QUALITY_FILE]).graph.initializer}
    wanted = next(i for i in original.graph.initializer if i.name == "w")
    assert np.array_equal(held["w"], onnx.numpy_helper.to_array(wanted))


def test_wrong_arguments_name_the_choices(tiny_bundle: Bundle, tmp_path: Path) -> None:
    for wrong in ({"precision": "int4"}, {"rest": "bf16"}):
        arguments = {"precision": "int8", **wrong}
        with pytest.raises(ValueError, match="choose one of"):
            quantize_bundle(tiny_bundle, out=tmp_path / "out", **arguments)
    with pytest.raises(BundleError):
        quantize_bundle("no-such-bundle", "fp16", tmp_path / "out")


@pytest.mark.parametrize("rest", ["fp32", "fp16"])
def test_files_for_cpus_have_narrow_weights_and_those_for_gpus_all_levels(
    bad_layer_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rest: str
) -> None:
    monkeypatch.setattr(quantize_module.graphs, "layers_with_kernels", lambda model, _: list(weighted_layers(model)))
    made = quantize_bundle(bad_layer_bundle, "int8", tmp_path / "out", rest=rest, budget=np.inf)
    for path in made.files.values():
        tensors = [i for i in load_model(path).graph.initializer if i.data_type == INT8 and len(i.dims) >= 2]
        largest = [np.abs(onnx.numpy_helper.to_array(i).astype(int)).max() for i in tensors]
        assert largest
        assert max(largest) == {"fp32": CPU_WEIGHT_LEVELS, "fp16": LEVELS}[rest]


def test_errors_that_are_not_numbers_count_as_infinite(tiny_bundle: Bundle, photos: dict[str, Any]) -> None:
    class Broken:
        def run(self, feeds: dict[str, Any]) -> dict[str, Any]:
            return {spec.DEPTH_OUTPUT: np.full((1, 64, 64), np.nan, np.float32)}

    networks = {file: OrtSession(tiny_bundle.file(file)) for file in FILES}
    probe = make_probe([photos["coffee"][::4, ::4]], networks, tiny_bundle.preprocess, tiny_bundle.meaning.mapped)
    assert probe.errors({}).worst == 0
    errors = probe.errors({spec.DEPTH_FILE: Broken()})
    assert (errors.worst, errors.rms) == (np.inf, np.inf)


def test_errors_are_those_of_scores_on_the_bundles_scale(rgb_bundle: Bundle, photos: dict[str, Any]) -> None:
    """A network that scores from -1 to 3 and is 0.04 off moves scores by a hundredth."""

    class Off:
        def run(self, feeds: dict[str, Any]) -> dict[str, Any]:
            return {spec.QUALITY_OUTPUT: network.run(feeds)[spec.QUALITY_OUTPUT] + np.float32(0.04)}

    network = OrtSession(rgb_bundle.file(spec.QUALITY_FILE))
    networks = {spec.QUALITY_FILE: network}
    probe = make_probe([photos["coffee"][::4, ::4]], networks, rgb_bundle.preprocess, rgb_bundle.meaning.mapped)
    errors = probe.errors({spec.QUALITY_FILE: Off()})
    assert (errors.worst, errors.rms) == (pytest.approx(0.01, abs=1e-5), pytest.approx(0.01, abs=1e-5))


def test_what_compares_pictures_is_held_to_the_budget_as_well(telling_bundle: Bundle, tmp_path: Path) -> None:
    """A last layer that makes much of small differences of features, where the score of one picture moves little."""
    quantize_bundle(telling_bundle, "fp16", tmp_path / "alone")
    compares = dataclasses.replace(telling_bundle, full_reference=FullReference((40.0, -40.0) * 4, 0.0))
    with pytest.raises(ParityError, match=r"within 0.002 of score, .*choose fp32"):
        quantize_bundle(compares, "fp16", tmp_path / "beside")


def test_errors_of_every_second_picture_are_those_beside_the_one_before(
    telling_bundle: Bundle, photos: dict[str, Any]
) -> None:
    class Off:
        def run(self, feeds: dict[str, Any]) -> dict[str, Any]:
            found = quality.run(feeds)
            return found | {spec.QUALITY_FEATURES: found[spec.QUALITY_FEATURES] * np.float32(1.1)}

    networks = {file: OrtSession(telling_bundle.file(file)) for file in FILES}
    quality, head = networks[spec.QUALITY_FILE], FullReference((1.0,) * 8, 0.0)
    pictures = [photo[::4, ::4] // dark for photo in photos.values() for dark in (1, 2)]
    probe = make_probe(pictures, networks, telling_bundle.preprocess, telling_bundle.meaning.mapped, head)
    errors = probe.errors({spec.QUALITY_FILE: Off()})
    assert not errors.images[: len(pictures)].any(), "scores of one picture stay"
    wanted = [probe.pictures[i].wanted[spec.QUALITY_FEATURES] for i in (1, 0)]
    moved = head.score(*(np.float32(1.1) * each for each in wanted)) - head.score(*wanted)
    assert errors.images[len(pictures)] == pytest.approx(moved.mean(), abs=1e-6)
    assert len(errors.images) == 1.5 * len(pictures)
    assert abs(moved.mean()) > 1e-3
    assert len(probe.few().pictures) % 2 == 0


def test_no_picture_to_measure_on_is_said_so(tiny_bundle: Bundle) -> None:
    with pytest.raises(ValueError, match="got no photograph to measure scores on"):
        make_probe([], {}, tiny_bundle.preprocess, tiny_bundle.meaning.mapped)


# the command


def test_the_command_writes_both_files_and_says_how_far_they_are(
    tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], script: Callable[[str], ModuleType]
) -> None:
    command, out = script("export/quantize.py"), tmp_path / "out"
    assert command.main(["--fp16", "--bundle", str(tiny_bundle.path), "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    printed = capsys.readouterr().out
    assert "of the budget" in printed
    assert "2 fp16" in printed
    assert command.main(["--int8", "--calib", str(tmp_path / "missing"), "--out", str(out)]) == 1
    assert "no image for calibration" in capsys.readouterr().err


def test_the_command_refuses_what_means_nothing_in_fp16(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], script: Callable[[str], ModuleType]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        script("export/quantize.py").main(["--fp16", "--rest", "fp16", "--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert "--rest: of int8 files only" in capsys.readouterr().err
