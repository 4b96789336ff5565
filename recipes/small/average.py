"""The weights of several runs that began at one place become their mean, and its last layer is fitted anew.

    python -m recipes.small.average --opinions data/opinions --chains data/chains --out mean.safetensors \\
        --weights runs/small/weights.safetensors runs/more/weights.safetensors

Wortsman et al., "Model soups", ICML 2022: the mean of runs that began at one place is better than each.

The last layer also reads statistics of the RGB half's maps (`DGIQAConfig.statistics`). With `--opinions` it is fitted
to photographs with opinions and to pictures of chains at once, held to the layer of before; 600 photographs that
nothing was fitted to choose how tightly.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from dgiqa.calibrate.adapt import Layer, Seen, fitted_layers
from dgiqa.metrics import rmse, srocc
from dgiqa.nn.commands import watched
from dgiqa.nn.network import DGIQA, with_statistics
from dgiqa.nn.weights import save_weights
from recipes.small.learn import Batches, Pictures, Settings, network_from, tile_outputs

STRENGTHS = (math.inf, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
PART = 100  # pictures that a process takes at once


@torch.no_grad()
def average(networks: Sequence[DGIQA]) -> DGIQA:
    """A network whose weights and batch statistics are the means of those of `networks`, which are of one shape."""
    first, *others = networks
    states = [network.state_dict() for network in others]
    for name, tensor in first.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.stack([tensor, *(state[name] for state in states)]).mean(0))
    return first


def gathered(weights: Path, folder: Path, indices: NDArray[np.int64], workers: int) -> NDArray[np.float32]:
    """Features f32 [n,4,C] of the four corner tiles of a folder's pictures, by the network of a file."""
    parts = np.array_split(indices, max(1, len(indices) // PART))
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        found = pool.map(_features, repeat(weights), repeat(folder), parts)
        return np.concatenate(list(watched(found, len(parts), f"hundred pictures of {folder.name}")))


def _features(weights: Path, folder: Path, indices: NDArray[np.int64]) -> NDArray[np.float32]:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    network = network_from(weights, "").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return tile_outputs(network, Pictures(folder), indices)[1]


def refitted(
    layer: Layer,
    features: NDArray[np.float32],
    labels: NDArray[np.float64],
    watched_features: NDArray[np.float32],
    watched_labels: NDArray[np.float64],
) -> Layer:
    """The layer for features f32 [n,4,C] and labels f64 [n], of the strength that is best on those that are watched."""
    means = features.mean(1, dtype=np.float64)
    best, least = layer, math.inf
    for fitted in fitted_layers(means, labels, layer, STRENGTHS):
        found = np.array([fitted.score(Seen(np.empty(0, np.float32), seen)) for seen in watched_features])
        error = rmse(found, watched_labels)
        print(f"strength {fitted.strength}: SROCC {srocc(found, watched_labels):.4f}, RMSE {error:.4f}", flush=True)
        if error < least:
            best, least = fitted, error
    return best


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m recipes.small.average", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, nargs="+", required=True)
    parser.add_argument("--opinions", type=Path)
    parser.add_argument("--chains", type=Path, nargs="*", default=[])
    parser.add_argument("--most", type=int, help="photographs with opinions; default: all that are trained on")
    parser.add_argument("--few", type=int, default=2000, help="pictures of each folder of chains; default: %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="processes that look at pictures; default: %(default)s")
    parser.add_argument("--out", type=Path, required=True)
    o = parser.parse_args(arguments)
    network = average([network_from(path, "") for path in o.weights])
    if o.opinions and not network.config.statistics:
        network = with_statistics(network)
    save_weights(network, o.out)
    if o.opinions:
        opinions = Pictures(o.opinions)
        batches = Batches(opinions, None, Settings())
        seen = gathered(o.out, o.opinions, batches.validation, o.workers)
        judged = batches.training[: o.most]
        features = [gathered(o.out, o.opinions, judged, o.workers)]
        labels = [opinions.labels["mos"][judged]]
        for folder in o.chains:
            chains = Pictures(folder)
            index = np.flatnonzero(~Batches(None, chains, Settings()).held_out)
            index = np.sort(np.random.default_rng(0).permutation(index)[: o.few])
            features.append(gathered(o.out, folder, index, o.workers))
            labels.append(chains.labels["label"][index])
        weight, bias = network.fc.weight, network.fc.bias
        layer = refitted(
            Layer(weight.detach().double().numpy()[0], float(bias.detach())),
            np.concatenate(features),
            np.concatenate(labels).astype(np.float64),
            seen,
            opinions.labels["mos"][batches.validation].astype(np.float64),
        )
        with torch.no_grad():
            weight.copy_(torch.from_numpy(layer.weight)[None])
            bias.fill_(layer.bias)
        save_weights(network, o.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
