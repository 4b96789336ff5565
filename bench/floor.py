"""What this machine could do at best: its matrix-product rate and memory bandwidth, and the networks' FLOPs and bytes.

A stage cannot be faster than max(FLOPs / rate, bytes / bandwidth). Rates are measured here and now, with the engines'
own matrix products, so that the floor is one that software reaches and not one from a data sheet.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from pictures import photograph
from timer import measure

from dgiqa import preprocess, spec
from dgiqa.bundle import Bundle
from dgiqa.errors import DgiqaError
from dgiqa.image import decode
from dgiqa.machine import usable_cores
from dgiqa.runtime.backends import backends
from dgiqa.runtime.session import open_session

SIDE = 2048  # of the square matrices: 17 GFLOP a product
COPY_BYTES = 1 << 28  # far more than any cache
RATED = ("fp32", "bf16")  # what a graph of one MatMul can be run in without quantising it
COUNTED = ("Conv", "ConvTranspose", "MatMul", "Gemm")


def machine_peaks() -> dict[str, Any]:
    """GFLOP/s of a square matrix product per backend and precision, and GB/s of copying (read plus written)."""
    return {"gflops": dict(_product_rates()), "copy_gb_per_s": round(_copy_rate(), 2)}


def network_flops(bundle: Bundle) -> dict[str, Any]:
    """Per network: FLOPs of matrix products and convolutions, bytes of weights, inputs and outputs, and the shapes.

    The depth network for a 1024x768 photograph, the quality network for one tile; both in fp32 as the bundle has them.
    """
    p = bundle.preprocess
    image = preprocess.depth_input(decode(photograph(0)), p)
    tile = np.zeros((1, 3, p.tile, p.tile), np.float32)
    depth = graph_flops(bundle.file(spec.DEPTH_FILE), {spec.DEPTH_INPUT: image})
    quality = graph_flops(bundle.file(spec.QUALITY_FILE), {spec.QUALITY_RGB: tile, spec.QUALITY_DEPTH: tile})
    return {"depth": depth, "quality": quality}


def graph_flops(path: Path, feeds: dict[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
    """FLOPs (a multiplication and an addition are two) of one run, from the shapes that the run really has."""
    import onnx
    from onnx.inliner import inline_local_functions

    model = inline_local_functions(onnx.load(path))
    graph = model.graph
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    nodes = [node for node in graph.node if node.op_type in COUNTED]
    if any(node.op_type == "Einsum" for node in graph.node):
        raise DgiqaError(f"{path.name} has Einsum nodes, whose FLOPs are not counted; export it without them")
    shapes = weights | _run_shapes(model, {name for node in nodes for name in (*node.input[:2], *node.output)}, feeds)
    moved = sum(array.nbytes for array in feeds.values()) + sum(math.prod(dims) * 4 for dims in weights.values())
    return {
        "gflop": round(sum(_flops(node, shapes) for node in nodes) / 1e9, 4),
        "mb": round(moved / 1e6, 3),
        "nodes": len(graph.node),
        "shapes": {name: list(array.shape) for name, array in feeds.items()},
    }


def _flops(node: Any, shapes: dict[str, tuple[int, ...]]) -> int:
    first, second, result = (shapes[name] for name in (node.input[0], node.input[1], node.output[0]))
    if node.op_type == "Conv":
        return 2 * math.prod(result) * math.prod(second[1:])
    if node.op_type == "ConvTranspose":
        return 2 * math.prod(first) * math.prod(second[1:])
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return 2 * math.prod(result) * first[0 if transposed else -1]


def _run_shapes(model: Any, wanted: set[str], feeds: dict[str, np.ndarray[Any, Any]]) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors named, seen by making each an output of the graph."""
    import onnxruntime as ort
    from onnx import helper

    inside = sorted({name for node in model.graph.node for name in node.output} & wanted)
    known = {output.name for output in model.graph.output}
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in inside if name not in known)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = session.run(inside, feeds)
    return {name: value.shape for name, value in zip(inside, values, strict=True)} | {
        name: array.shape for name, array in feeds.items()
    }


def _product_rates() -> Iterator[tuple[str, float]]:
    """("backend precision", GFLOP/s) of every pair that can run a matrix product here."""
    a = np.random.default_rng(0).standard_normal((SIDE, SIDE), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "product.onnx")
        path.write_bytes(_product(a))
        for backend in backends():
            for precision in RATED:
                try:
                    session = open_session(path, backend, precision=precision)
                except DgiqaError:
                    continue
                result = measure(lambda session=session: session.run({"a": a}), repeats=7)
                yield f"{backend} {precision}", round(2 * SIDE**3 / result.ms.median / 1e6, 1)


def _product(weights: np.ndarray[Any, Any]) -> bytes:
    """ONNX: b = a @ weights."""
    from onnx import TensorProto, helper, numpy_helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [SIDE, SIDE]) for name in ("a", "b")]
    node = helper.make_node("MatMul", ["a", "w"], ["b"])
    graph = helper.make_graph([node], "product", ends[:1], ends[1:], [numpy_helper.from_array(weights, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", spec.OPSET)], ir_version=9)
    return bytes(model.SerializeToString())


def _copy_rate() -> float:
    """GB/s over all cores, bytes read and bytes written both counted."""
    source, target = (np.ones(COPY_BYTES // 8) for _ in range(2))
    cores = usable_cores()
    parts = [slice(i * len(source) // cores, (i + 1) * len(source) // cores) for i in range(cores)]
    with ThreadPoolExecutor(cores) as pool:
        result = measure(lambda: list(pool.map(lambda part: np.copyto(target[part], source[part]), parts)), repeats=7)
    return 2 * COPY_BYTES / result.ms.median / 1e6
