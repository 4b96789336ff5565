"""The last layer of a quality network's ONNX file: score = sigmoid(w . features + b), features = mean(maps S [C,h,w]).

The gradient of the logit with respect to the maps is w / (h w) everywhere. So w . S is their Grad-CAM (Selvaraju et
al., arXiv 1610.02391) exactly, up to that factor and before its ReLU, and its mean plus b is the logit. More features
may follow these means (`DGIQAConfig.statistics`); their share of the logit has no position. The `onnx` package reads
the file; nothing needs torch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dgiqa import spec
from dgiqa.dtypes import Float32
from dgiqa.errors import BundleError
from dgiqa.extras import load
from dgiqa.runtime.ort import OrtSession


class CamSession:
    """A quality network that also shows where in a tile its logit comes from. Runs on ONNX Runtime.

    Raises BundleError unless its score is sigmoid(w . features + b) of averaged maps, BackendError without onnx.
    """

    def __init__(self, path: Path) -> None:
        onnx = load("onnx", "Grad-CAM", "onnx", "build")
        model = onnx.load(str(path))
        weight, bias = map(onnx.numpy_helper.to_array, last_layer(model.graph, path))
        self._maps = _averaged(model.graph, path)
        self._weight, self._bias = weight.reshape(-1).astype(np.float32), np.float32(bias.item())
        model.graph.output.append(onnx.helper.make_tensor_value_info(self._maps, onnx.TensorProto.FLOAT, None))
        self._session = OrtSession(model.SerializeToString())

    def logits(self, feeds: Mapping[str, Float32]) -> Float32:
        """Run on tiles. Return f32 [n,h,w], the logit of each position; their mean is the tile's logit."""
        found = self._session.run(feeds)
        maps, features = found[self._maps], found[spec.QUALITY_FEATURES]
        mapped = maps.shape[1]
        places = np.einsum("nchw,c->nhw", maps, self._weight[:mapped])
        rest = features[:, mapped:] @ self._weight[mapped:] + self._bias
        return np.asarray(places + rest[:, None, None], np.float32)


def last_layer(graph: Any, path: str | Path) -> tuple[Any, Any]:
    """The graph's weight and bias between the features and the score. BundleError if it is not one linear layer."""
    makers = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    bias, sigmoid = "", False
    node = makers.get(spec.QUALITY_OUTPUT)
    expected = ("Sigmoid", "Reshape", "Squeeze", "Flatten", "Add")
    while node is not None and node.op_type in expected:
        sigmoid |= node.op_type == "Sigmoid"
        if node.op_type == "Add":
            bias = next((name for name in node.input if name in constants), "")
        node = makers.get(next(name for name in node.input if name not in constants))
    if sigmoid and node is not None and node.op_type in ("Gemm", "MatMul") and node.input[1] in constants:
        bias = node.input[2] if node.op_type == "Gemm" and len(node.input) > 2 else bias
        users = sum(list(other.input).count(node.input[1]) for other in graph.node)
        if bias in constants and users == 1:
            return constants[node.input[1]], constants[bias]
    raise BundleError(f"{path}: its score is not one linear layer of its features; export it again")


def _averaged(graph: Any, path: str | Path) -> str:
    """Name of the maps [n,C,h,w] whose means are the features, or the first of them. BundleError if there are none."""
    makers = {name: node for node in graph.node for name in node.output}
    node = makers.get(spec.QUALITY_FEATURES)
    while node is not None and node.op_type in ("Reshape", "Squeeze", "Flatten", "Concat"):
        node = makers.get(node.input[0])
    if node is None or node.op_type not in ("ReduceMean", "GlobalAveragePool"):
        raise BundleError(f"{path}: its features are not means of maps, which Grad-CAM needs; export it again")
    return str(node.input[0])
