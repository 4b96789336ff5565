"""Groups of pictures that metrics measured teach a network to say how close a picture looks to its reference.

    python -m recipes.full_reference.learn --weights small.safetensors --pairs data/pairs --out weights.safetensors

The network stays as it is and gets `fc_compared`, which projects the maps of its RGB half; the sum of how far two
pictures' projections lie apart becomes the score (`dgiqa.nn.network.closeness`). The maps of two tiles of every
picture are computed once and kept in `<pairs>/maps.npy`; then learning takes minutes on one core.

What is learnt, for a third of it, is what people said of the same type and level in KADID-10k, and for the rest what
SSIMULACRA 2 says of the picture, on the same scale: that of people's opinions of JPEG and JPEG 2000 in KADID-10k. Of
codecs, small pictures and mixtures only the metric speaks.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from torch import Tensor

from dgiqa.errors import WeightsError
from dgiqa.metrics import srocc
from dgiqa.nn.backbones import feature_maps
from dgiqa.nn.checkpoints import load_dgiqa
from dgiqa.nn.network import DGIQA, closeness, comparable
from dgiqa.nn.weights import save_weights
from recipes.full_reference.pairs import WORSE
from recipes.small.learn import SEEN, Pictures, Place, to_input
from recipes.small.scale import HUMAN
from recipes.small.working import SIDE

Float = NDArray[np.float64]
CHANNELS = 16  # of each map's projection
TILES = (0, SIDE - SEEN)  # corners y = x of the tiles that are looked at
HELD_OUT = 10  # one group of so many is never learnt from
HUMAN_SHARE = 0.3


def labels(what: NDArray[np.str_], level: Float, measured: Float) -> Float:
    """Share of quality that is left of each picture, 0..1, from what was done to it and SSIMULACRA 2 [n]."""
    cells = {(kind, n): (what == kind) & (level == n) for kind in HUMAN for n in range(1, 6)}
    anchors = [(np.median(measured[cells[cell]]), HUMAN[cell[0]][cell[1] - 1]) for cell in cells if cell[0] in CODECS]
    at, share = np.array(sorted(anchor for anchor in anchors if not np.isnan(anchor[0]))).T
    found = np.interp(measured, [-150, *at, 90], [0.02, *isotonic_regression(share).x, 1])
    result = found.copy()
    for (kind, n), cell in cells.items():
        if cell.any():
            human = HUMAN[kind][n - 1] + found[cell] - found[cell].mean()
            result[cell] = HUMAN_SHARE * human + (1 - HUMAN_SHARE) * found[cell]
    return np.clip(result, 0.02, 1)


CODECS = ("jpeg", "jpeg2000")


def stored_maps(network: DGIQA, folder: Path) -> tuple[Any, list[tuple[int, ...]]]:
    """The RGB half's maps of all pictures' tiles, f16 [n,tiles,numbers] on disk, and the shape [C,H,W] of each map."""
    pictures = Pictures(folder)
    count, file, kept = len(pictures.labels["source"]), folder / "maps.npy", None
    with torch.inference_mode():
        shapes = [tuple(m.shape[1:]) for m in feature_maps(network.backbone, torch.zeros(1, 3, 224, 224))]
    if file.exists():
        return np.load(file, mmap_mode="r"), shapes
    numbers = sum(math.prod(shape) for shape in shapes)
    kept = np.lib.format.open_memmap(f"{file}.partial", "w+", np.float16, (count, len(TILES), numbers))
    for start in range(0, count, 8):
        some = range(start, min(start + 8, count))
        crops = [pictures.crop(i, Place(at, at, SEEN)) for i in some for at in TILES]
        with torch.inference_mode():
            maps = feature_maps(network.backbone, to_input(*map(np.stack, zip(*crops, strict=True)))[0])
        kept[start : start + len(some)] = (
            torch.cat([m.flatten(1) for m in maps], 1).half().view(len(some), len(TILES), -1)
        )
        if start % 400 == 0:
            print(f"maps of {start} of {count} pictures", flush=True)
    kept.flush()
    Path(f"{file}.partial").rename(file)
    return np.load(file, mmap_mode="r"), shapes


def scores(network: DGIQA, kept: Any, shapes: Sequence[tuple[int, ...]], groups: Sequence[int]) -> Tensor:
    """Full-reference scores f32 [groups*WORSE] of whole groups."""
    size = 1 + WORSE
    numbers = np.concatenate([kept[g * size : (g + 1) * size] for g in groups])
    parts = torch.from_numpy(numbers).float().flatten(0, 1).split([math.prod(shape) for shape in shapes], 1)
    maps = [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]
    seen = comparable(network.fc_compared, maps).view(len(groups), size, len(TILES), -1)
    return closeness(seen[:, 1:], seen[:, :1], len(shapes) * network.config.compared).mean(2).flatten()


def learn(
    network: DGIQA, kept: Any, shapes: Sequence[tuple[int, ...]], wanted: Float, *, epochs: int, seed: int = 0
) -> None:
    """Fit `fc_compared` alone. wanted: labels of all pictures that are no reference, in order."""
    rng, target = np.random.default_rng(seed), torch.tensor(wanted, dtype=torch.float32).view(-1, WORSE)
    held = [g for g in range(len(target)) if g % HELD_OUT == 0]
    training = np.array([g for g in range(len(target)) if g % HELD_OUT])
    optimiser = torch.optim.AdamW(network.fc_compared.parameters(), lr=3e-3, weight_decay=1e-3)
    steps = epochs * (len(training) // 4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, steps, pct_start=0.1)
    for epoch in range(epochs):
        order = rng.permutation(training)
        for groups in order[: len(order) // 4 * 4].reshape(-1, 4):
            found, label = scores(network, kept, shapes, groups.tolist()), target[groups].flatten()
            loss = F.mse_loss(found, label) + 0.05 * (1 - torch.corrcoef(torch.stack([found, label]))[0, 1])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        if epoch % 4 == 3 or epoch == epochs - 1:
            with torch.inference_mode():
                now = torch.cat([scores(network, kept, shapes, [g]) for g in held]).numpy()
            true = target[held].flatten().numpy()
            print(
                epoch + 1,
                f"SROCC {srocc(now, true):.4f}, RMSE {np.sqrt(np.mean((now - true) ** 2)):.4f}",
                flush=True,
            )


def with_comparison(network: DGIQA, tensors: Mapping[str, Tensor], channels: int = 0) -> DGIQA:
    """The network with the projections that are among `tensors`, or with untrained ones of so many channels.

    Raises WeightsError if the other tensors are not the network's: projections belong to the maps they were learnt on.
    """
    head = {name: tensor for name, tensor in tensors.items() if name.startswith("fc_compared.")}
    channels = channels or len(head["fc_compared.0.signal.bias"])
    made = DGIQA(dataclasses.replace(network.config, compared=channels))
    rest = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("fc_compared.")}
    if others := [name for name in rest if name in tensors and not torch.equal(rest[name], tensors[name])]:
        raise WeightsError(f"projections of a network with another {others[0]}; run recipes.full_reference.learn again")
    made.load_state_dict({**made.state_dict(), **rest, **head})
    return made.eval()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m recipes.full_reference.learn",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--weights", type=Path, required=True, help="of a trained DGIQA, such as recipes/small/weights")
    parser.add_argument("--pairs", type=Path, required=True, help="what recipes.full_reference.pairs wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--channels", type=int, default=CHANNELS)
    parser.add_argument("--seed", type=int, default=0)
    o = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(o.seed)
    network = with_comparison(load_dgiqa(o.weights), {}, o.channels)
    kept, shapes = stored_maps(network, o.pairs)
    found: Mapping[str, Any] = dict(np.load(o.pairs / "labels.npz"))
    worse = found["what"] != "none"
    wanted = labels(found["what"][worse], found["much"][worse], found["ssimulacra2"][worse])
    learn(network, kept, shapes, wanted, epochs=o.epochs, seed=o.seed)
    save_weights(network, o.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
