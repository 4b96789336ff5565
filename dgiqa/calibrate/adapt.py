"""A new last layer for own labels: features of pictures and labels become weights, and weights a network file.

    features f32 [tiles,C] per picture, labels ─► logistic regression, near the shipped layer ─► quality.onnx

The shipped score is sigmoid(w . f + b). The new one is sigmoid(scale (w . f + b) + offset + change . f), where `change`
is penalised. Cross-validation decides how much: few labels change little except scale and offset. scipy finds the
minimum, `onnx` reads and writes the file, and nothing needs torch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dgiqa import metrics
from dgiqa.calibrate.fit import cross_validated
from dgiqa.dtypes import Float32, Float64, Index
from dgiqa.errors import BundleError
from dgiqa.last_layer import last_layer

# Weight of the penalty on the standardised changes, per label; infinite: scale and offset only.
STRENGTHS = (math.inf, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
CLEAR_GAIN = 0.995  # of the RMSE with only scale and offset: a change has to come below it


@dataclass(frozen=True, eq=False)
class Seen:
    """The network's outputs for one picture. scores: f32 [tiles]; features: f32 [tiles,C]."""

    scores: Float32
    features: Float32


@dataclass(frozen=True, eq=False)
class Layer:
    """score = sigmoid(weight . features + bias). weight: f64 [C]. strength: of the penalty it was fitted with."""

    weight: Float64
    bias: float
    strength: float = math.inf

    def score(self, seen: Seen) -> float:
        """A picture's score in [0, 1]: the mean over its tiles."""
        return float(self.tile_scores(seen).mean())

    def tile_scores(self, seen: Seen) -> Float64:
        """The scores of a picture's tiles, f64 [tiles]."""
        return _sigmoid(seen.features @ self.weight + self.bias)


def fit_layer(pictures: Sequence[Seen], labels: Float64, shipped: Layer) -> Layer:
    """The layer for labels f64 [n] in [0, 1], with the penalty that is best in cross-validation."""
    features = np.array([seen.features.mean(0, dtype=np.float64) for seen in pictures])

    def predicted(train: Index, test: Index) -> Float64:  # [pictures, strengths]
        layers = _fitted(features[train], labels[train], shipped, STRENGTHS)
        return np.stack([_sigmoid(features[test] @ layer.weight + layer.bias) for layer in layers], 1)

    found = cross_validated(labels, predicted)
    errors = {strength: metrics.rmse(found[:, n], labels) for n, strength in enumerate(STRENGTHS)}
    best = min(errors, key=lambda s: errors[s])
    if errors[best] > CLEAR_GAIN * errors[math.inf]:
        best = math.inf
    return _fitted(features, labels, shipped, (best,))[0]


def adapted_out_of_fold(pictures: Sequence[Seen], labels: Float64, shipped: Layer) -> Float64:
    """Scores of every picture by a layer that was fitted, with its strength, to the others: f64 [n]."""

    def predict(train: Index, test: Index) -> Float64:
        layer = fit_layer([pictures[i] for i in train], labels[train], shipped)
        return np.array([layer.score(pictures[i]) for i in test])

    return cross_validated(labels, predict)


def shipped_layer(path: str | Path) -> Layer:
    """The last layer of a quality.onnx. Raises BundleError unless its score is sigmoid(w . features + b)."""
    import onnx
    from onnx import numpy_helper

    weight, bias = map(numpy_helper.to_array, last_layer(onnx.load(str(path)).graph, path))
    return Layer(weight.astype(np.float64).reshape(-1), float(bias.item()))


def with_layer(path: str | Path, layer: Layer) -> bytes:
    """quality.onnx with its last layer changed: the contents of the new file.

    Raises BundleError unless its score is sigmoid(w . features + b).
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(path))
    weight, bias = last_layer(model.graph, path)
    for tensor, values in ((weight, layer.weight), (bias, np.array([layer.bias]))):
        before, name = numpy_helper.to_array(tensor), tensor.name
        if before.size != values.size:
            raise BundleError(f"{path}: {name} has {before.size} values, wanted {values.size}; export it again")
        tensor.CopyFrom(numpy_helper.from_array(values.astype(before.dtype).reshape(before.shape), name))
    return bytes(model.SerializeToString())


def _fitted(features: Float64, labels: Float64, shipped: Layer, strengths: Sequence[float]) -> list[Layer]:
    """The layers of logistic regression for labels f64 [n] in [0, 1] and features f64 [n,C], one per penalty strength.

    The strength does not apply to scale and offset.
    """
    logits = features @ shipped.weight + shipped.bias
    mean, deviation = features.mean(0), features.std(0)
    deviation = np.where(deviation > 1e-6 * (1e-12 + np.abs(mean)), deviation, np.inf)  # a constant one says nothing
    standard = (features - mean) / deviation
    # The penalty is the same in all directions, so only those in which pictures differ are needed: fewer than pictures.
    directions = np.linalg.svd(standard, full_matrices=False)[2]
    x = np.concatenate([logits[:, None], np.ones((len(logits), 1)), standard @ directions.T], 1)
    layers = []
    for strength in strengths:
        free = x.shape[1] if math.isfinite(strength) else 2
        scale, offset, *moved = _minimum(x[:, :free], labels, strength)
        change = np.array(moved) @ directions[: free - 2] / deviation
        layers.append(
            Layer(scale * shipped.weight + change, float(scale * shipped.bias + offset - change @ mean), strength)
        )
    return layers


def _minimum(x: Float64, labels: Float64, strength: float) -> Float64:
    """The minimum of the penalised loss, f64 [2+k]. x: f64 [n,2+k]: logits, ones, directions."""
    from scipy.optimize import minimize

    # Scale and offset are penalised, too, lightly: labels that separate perfectly would send them to infinity.
    penalty = len(labels) * np.array([1e-3, 1e-6, *[strength] * (x.shape[1] - 2)])
    start = np.array([1.0, 0.0, *[0.0] * (x.shape[1] - 2)])

    def loss(at: Float64) -> tuple[float, Float64]:  # and its gradient
        logit, away = x @ at, at - start
        value = (np.logaddexp(0, logit) - labels * logit).sum() + (penalty * away**2).sum() / 2
        return float(value), x.T @ (_sigmoid(logit) - labels) + penalty * away

    def hessian(at: Float64) -> Float64:
        p = _sigmoid(x @ at)
        return (x * (p * (1 - p))[:, None]).T @ x + np.diag(penalty)

    found = minimize(loss, start, jac=True, hess=hessian, method="trust-exact", options={"gtol": 1e-6 * len(labels)})
    return np.asarray(found.x)


def _sigmoid(x: Float64) -> Float64:
    return 1 / (1 + np.exp(-np.clip(x, -60, 60)))
