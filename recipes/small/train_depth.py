"""Rendered scenes become the small depth network's checkpoint.

    python -m recipes.small.train_depth --textures DIR --out F --minutes 30
    python -m recipes.small.train_depth --textures DIR --out F --minutes 20 --resume F --height 256 --first-seed 100000

The second command goes on with new scenes in the size at which the network is used, which take twice the time.

Scenes with exact inverse depth are rendered once into a work folder. The network sees them flipped, recoloured,
distorted and with the detail of photographs, because at run time it sees degraded pictures of a finer world. The
loss is invariant to scale and shift of inverse depth, with a gradient term at several scales (after Ranftl et al. 2020,
"Towards robust monocular depth estimation").
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dgiqa.errors import DgiqaError, WeightsError
from dgiqa.nn.checkpoints import load_small_depth
from dgiqa.nn.commands import PROGRESS_SECONDS, exit_code, watched
from dgiqa.nn.datasets import read_rgb
from dgiqa.nn.depth import SMALL_PREPROCESS, STRIDE, SmallDepth, save_small_depth
from dgiqa.nn.train import device_of
from dgiqa.nn.weights import read_state
from dgiqa.preprocess import depth_input
from dgiqa.spec import IMAGENET_MEAN, IMAGENET_STD
from dgiqa.store import replacing
from recipes.small import scenes
from recipes.small.distortions import distort

DepthFunction = Callable[[NDArray[np.uint8]], NDArray[np.float32]]  # rgb [H,W,3] -> relative inverse depth [H,W]

# Types that change what a depth network can see and cost little; types with a similar effect are left out.
DISTORTIONS = (
    "gaussian_blur",
    "motion_blur",
    "jpeg",
    "white_noise",
    "white_noise_color",
    "impulse_noise",
    "brighten",
    "darken",
    "pixelate",
    "quantization",
    "contrast_change",
    "color_saturation_1",
    "haze",
    "low_light",
)
CHUNK = 50  # scenes a file
SAVE_SECONDS = 120
HELD_OUT_SEED = 900_000  # first seed of the scenes that are never trained on


def render_scenes(
    folder: str | Path,
    textures: str | Path,
    count: int,
    *,
    first_seed: int = 0,
    height: int = 192,
    width: int = 256,
    workers: int = 2,
) -> list[Path]:
    """Render `count` scenes into npz files of 50 under `folder` and return their paths; files that exist are kept.

    A file holds rgb uint8 [50,H,W,3] and inverse_depth f16 [50,H,W].
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    seeds = range(first_seed, first_seed + count, CHUNK)
    paths = [folder / f"{height}x{width}-{seed:06d}.npz" for seed in seeds]
    jobs = [
        (path, str(textures), seed, height, width) for seed, path in zip(seeds, paths, strict=True) if not path.exists()
    ]
    with multiprocessing.get_context("spawn").Pool(max(1, min(workers, len(jobs))), _leave_interrupts) as pool:
        for done, path in enumerate(pool.imap(_render_chunk, jobs), 1):
            print(f"rendered {path.name} ({done}/{len(jobs)})", flush=True)
    return paths


def _leave_interrupts() -> None:
    """Ignore Ctrl-C, which reaches every process of a terminal: the first process ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _render_chunk(job: tuple[Path, str, int, int, int]) -> Path:
    path, folder, first_seed, height, width = job
    cv2.setNumThreads(1)
    textures = scenes.load_textures(folder)
    pictures = [scenes.render(seed, textures, height, width) for seed in range(first_seed, first_seed + CHUNK)]
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(
            file,
            rgb=np.stack([p[0] for p in pictures]),
            inverse_depth=np.stack([p[1] for p in pictures]).astype(np.float16),
        )
    return path


@dataclass(frozen=True)
class TrainConfig:
    """How the depth network is trained. Either `minutes` or `steps` ends it; steps give the same weights every time."""

    minutes: float | None = None
    steps: int = 3000
    batch: int = 16
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    warmup: int = 60
    distorted: float = 0.2  # share of pictures that are degraded
    detailed: float = 0.75  # share of pictures that get a photograph's detail laid over them
    seed: int = 1
    workers: int = 1


class SceneDataset(Dataset):
    """The scenes of a folder, augmented again in each epoch: tensors rgb uint8 [H,W,3], inverse depth f32 [H,W]."""

    def __init__(
        self, folder: str | Path, epoch: int, config: TrainConfig, photographs: Sequence[NDArray[np.uint8]] = ()
    ) -> None:
        paths = sorted(Path(folder).glob("*.npz"))
        if not paths:
            raise ValueError(f"{folder} holds no rendered scenes; call render_scenes first")
        chunks = [np.load(path) for path in paths]
        self.rgb = np.concatenate([c["rgb"] for c in chunks])
        self.inverse_depth = np.concatenate([c["inverse_depth"] for c in chunks])
        self.epoch, self.config, self.photographs = epoch, config, photographs

    def __len__(self) -> int:
        return len(self.rgb)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([self.config.seed, self.epoch, index])
        rgb, depth = self.rgb[index], self.inverse_depth[index].astype(np.float32)
        if self.photographs and rng.random() < self.config.detailed:
            rgb = add_detail(rng, rgb, self.photographs[int(rng.integers(len(self.photographs)))])
        rgb, depth = augment(rng, rgb, depth, self.config.distorted)
        return torch.from_numpy(rgb), torch.from_numpy(depth)


def add_detail(rng: np.random.Generator, rgb: NDArray[np.uint8], photograph: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lay the fine detail of a piece of a photograph uint8 [h,w,3] over a picture uint8 [H,W,3].

    The detail is independent of depth. Rendered surfaces are smoother than real ones, and without it the network
    misjudges the fine texture of photographs.
    """
    height, width = rgb.shape[:2]
    scale = max(height / photograph.shape[0], width / photograph.shape[1], rng.uniform(0.35, 1))
    size = (max(width, round(photograph.shape[1] * scale)), max(height, round(photograph.shape[0] * scale)))
    picture = cv2.resize(photograph, size, interpolation=cv2.INTER_AREA)
    y, x = rng.integers(0, size[1] - height + 1), rng.integers(0, size[0] - width + 1)
    piece = picture[y : y + height, x : x + width].astype(np.float32)
    detail = piece - cv2.GaussianBlur(piece, (0, 0), float(np.exp(rng.uniform(0.3, 2.5))))
    return np.clip(rgb + detail * np.float32(rng.uniform(0.2, 1.4)), 0, 255).astype(np.uint8)


def augment(
    rng: np.random.Generator, rgb: NDArray[np.uint8], depth: NDArray[np.float32], distorted: float
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Mirror, recolour and, with probability `distorted`, degrade a picture uint8 [H,W,3]; depth f32 [H,W] follows."""
    if rng.random() < 0.5:
        rgb, depth = rgb[:, ::-1], depth[:, ::-1]
    unit = rgb.astype(np.float32) / 255
    unit = unit[..., rng.permutation(3)] if rng.random() < 0.2 else unit
    if rng.random() < 0.12:
        unit = np.repeat(unit.mean(2, keepdims=True), 3, 2)
    unit = unit ** np.float32(np.exp(rng.normal(0, 0.25))) * rng.normal(1, 0.08, 3).astype(np.float32)
    mean = unit.mean()
    rgb = np.clip(((unit - mean) * rng.uniform(0.6, 1.25) + mean) * 255, 0, 255).astype(np.uint8)
    if rng.random() < distorted:
        kind, level = str(rng.choice(DISTORTIONS)), int(rng.integers(1, 6))
        rgb = distort(rgb, kind, level, int(rng.integers(1 << 30)), np.ascontiguousarray(depth))
    return np.ascontiguousarray(rgb), np.ascontiguousarray(depth)


def depth_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Scale- and shift-invariant loss of inverse depths f32 [n,h,w]: a scalar.

    Both are standardised per image; the mean absolute difference has weight 1, its gradients at four scales weight 0.1
    (after Ranftl et al. 2020, equation 11). With the usual 0.5, wrong edges cost as much as missing ones, and the
    output stays blurred for long: 0.546 against 0.567 rank correlation on held-out scenes after 250 small steps.
    Standardising the prediction, instead of fitting it to the target by least squares, brought another 0.007.
    """
    residual = (_standard(predicted) - _standard(target)).reshape(predicted.shape)
    return residual.abs().mean() + 0.1 * sum(_gradient(residual[:, :: 1 << k, :: 1 << k]) for k in range(4))


def _standard(depth: Tensor) -> Tensor:
    """f32 [n,h,w] -> f32 [n,h*w] with mean 0 and deviation 1 in each image."""
    centred = depth.flatten(1) - depth.flatten(1).mean(1, keepdim=True)
    return centred * centred.square().mean(1, keepdim=True).clamp_min(1e-8).rsqrt()


def _gradient(residual: Tensor) -> Tensor:
    return residual.diff(dim=1).abs().mean() + residual.diff(dim=2).abs().mean()


def train(
    folder: str | Path,
    out: str | Path | None,
    config: TrainConfig,
    model: SmallDepth | None = None,
    photographs: Sequence[NDArray[np.uint8]] = (),
) -> SmallDepth:
    """Train a network, or train `model` further, on the scenes of `folder`; returns it in eval mode.

    photographs: uint8 [h,w,3] RGB, whose detail is laid over the scenes; without any, the scenes stay as they are.

    The weights at `out` are rewritten every two minutes and at the end. So is OUT.state.pt, from which the same call
    goes on after a kill; it is removed when the training ends. Raises DgiqaError if that file belongs to another run,
    and if the loss is not a number.
    """
    torch.manual_seed(config.seed)
    device = device_of("auto")
    fast = fast_precision(device) == "bf16"
    model = (model or SmallDepth()).train()
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    state = Path(f"{out}.state.pt") if out else None
    facts = {**dataclasses.asdict(config), "scenes": str(folder)}
    first, seconds, running = _restore(state, facts, model, optimizer) if state and state.exists() else (0, 0.0, 0.0)
    saved = shown = time.monotonic()
    start = saved - seconds
    for step, (rgb, depth) in enumerate(_batches(folder, config, photographs, first), first):
        elapsed = (time.monotonic() - start) / 60
        progress = elapsed / config.minutes if config.minutes else step / config.steps
        if progress >= 1:
            break
        rate = config.learning_rate * min(1, (step + 1) / config.warmup) * (0.5 + 0.5 * math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = rate
        image = normalise(rgb.to(device)).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=fast):
            predicted = model(image)
        loss = depth_loss(predicted.float(), depth.to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        running = 0.98 * running + 0.02 * loss.item() if step else loss.item()
        if not math.isfinite(running):
            raise DgiqaError(f"the loss of step {step} is not finite; what {out} held stays; lower --learning-rate")
        if not step or time.monotonic() - shown > PROGRESS_SECONDS:
            shown = time.monotonic()
            print(f"step {step}  {elapsed:.1f} min  loss {running:.4f}  rate {rate:.2e}", flush=True)
        if state and time.monotonic() - saved > SAVE_SECONDS:
            _save(state, facts, (step + 1, time.monotonic() - start, running), model, optimizer)
            save_small_depth(model, str(out))
            print(f"saved {out}", flush=True)
            saved = time.monotonic()
    model.cpu().eval()
    if state:
        save_small_depth(model, str(out))
        state.unlink(missing_ok=True)
    return model


def fast_precision(device: torch.device) -> str:
    """ "bf16" if the hardware computes in it, else "fp32", which is then three times as fast."""
    if device.type == "cuda":
        return "bf16"
    has: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16" if has.get("amx_bf16") or has.get("avx512_bf16") else "fp32"


def _save(
    state: Path, facts: dict[str, Any], place: tuple[int, float, float], model: nn.Module, optimizer: Any
) -> None:
    held = {"facts": facts, "place": place, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    with replacing(state) as partial:
        torch.save(held, partial)


def _restore(state: Path, facts: dict[str, Any], model: nn.Module, optimizer: Any) -> tuple[int, float, float]:
    """Steps done, seconds they took, running loss; network and optimizer as they were."""
    try:
        held = read_state(state)
        differing = [
            f"{k} was {held['facts'].get(k)!r}, now {facts[k]!r}" for k in facts if held["facts"].get(k) != facts[k]
        ]
    except (WeightsError, KeyError, TypeError, AttributeError) as error:
        raise DgiqaError(f"{state} is damaged ({type(error).__name__}); remove it to start again") from error
    if differing:
        told = "; ".join(differing)
        raise DgiqaError(f"{state} belongs to another run: {told}; use the same values, or remove it to start again")
    model.load_state_dict(held["model"])
    optimizer.load_state_dict(held["optimizer"])
    step, seconds, running = held["place"]
    print(f"going on from step {step}, {seconds / 60:.1f} min", flush=True)
    return step, seconds, running


def normalise(rgb: Tensor) -> Tensor:
    """uint8 [n,h,w,3] -> ImageNet-normalised f32 [n,3,h,w]."""
    mean, std = (torch.tensor(v, device=rgb.device) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return ((rgb.float() / 255 - mean) / std).permute(0, 3, 1, 2)


def _batches(
    folder: str | Path, config: TrainConfig, photographs: Sequence[NDArray[np.uint8]], first: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches from step `first` on, rgb uint8 [b,h,w,3] and depth f32 [b,h,w], each cut to its own size.

    A batch depends only on the scenes, the config and its step, so there is nothing to restore.
    """
    dataset = SceneDataset(folder, 0, config, photographs)
    per_epoch = len(dataset) // config.batch
    if not per_epoch:
        raise DgiqaError(f"{folder} holds {len(dataset)} scenes, a batch takes {config.batch}; render more")
    step = first
    while True:
        dataset.epoch, within = divmod(step, per_epoch)
        order = np.random.default_rng([config.seed, dataset.epoch]).permutation(len(dataset))
        rest = order[within * config.batch : per_epoch * config.batch].tolist()
        for rgb, depth in DataLoader(dataset, config.batch, sampler=rest, num_workers=config.workers):
            yield _cut_batch(np.random.default_rng([config.seed, step]), rgb, depth)
            step += 1


def _cut_batch(rng: np.random.Generator, rgb: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
    """A window of random size and place, sides multiples of 32, so that no frame size is learnt by heart."""
    high, wide = depth.shape[1:]
    h, w = (int(rng.integers(max(1, n // 32 * 2 // 3), n // 32 + 1)) * 32 for n in (high, wide))
    if rng.random() < 0.5:
        h, w = high // 32 * 32, wide // 32 * 32
    y, x = int(rng.integers(0, high - h + 1)), int(rng.integers(0, wide - w + 1))
    return rgb[:, y : y + h, x : x + w], depth[:, y : y + h, x : x + w]


# --- Evaluation -------------------------------------------------------------------------------------------------------


def predictor(model: SmallDepth) -> DepthFunction:
    """The network as a function of a picture: uint8 [H,W,3] -> f32 [H,W], through the preprocessing of the pipeline."""
    model.eval()
    device = next(model.parameters()).device

    def predict(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.no_grad():
            depth = model(torch.from_numpy(depth_input(rgb, SMALL_PREPROCESS)).to(device))[0].cpu().numpy()
        return cv2.resize(depth, rgb.shape[1::-1], interpolation=cv2.INTER_LINEAR)

    return predict


def stereo_pairs(folder: Path | None = None) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.float32]]]:
    """Name -> left picture u8 [H,W,3] of a real pair and its true disparity f32 [H,W], nan where unknown.

    Middlebury's motorcycle comes with scikit-image. folder: more pairs, NAME_left.png and NAME_gt.png (pixels, 0 is
    unknown).
    """
    from skimage.data import stereo_motorcycle

    left, _, disparity = stereo_motorcycle()
    found = {"motorcycle": (np.ascontiguousarray(left), np.where(np.isfinite(disparity), disparity, np.nan))}
    for path in sorted(folder.glob("*_left.png")) if folder else ():
        name = path.name.removesuffix("_left.png")
        truth = np.asarray(Image.open(path.with_name(f"{name}_gt.png")), np.float32)
        found[name] = (read_rgb(path), np.where(truth > 0, truth, np.nan))
    return found


def stereo_check(predict: DepthFunction, folder: Path | None = None) -> dict[str, tuple[float, float]]:
    """Name -> rank correlation with the true disparity of the pair: (predict's, "lower is nearer"'s)."""
    found = {}
    for name, (left, disparity) in stereo_pairs(folder).items():
        known = np.isfinite(disparity)
        rows = np.broadcast_to(np.arange(left.shape[0])[:, None], disparity.shape)
        ours, trivial = (_rank_correlation(guess[known], disparity[known]) for guess in (predict(left), rows))
        found[name] = ours, trivial
    return found


def scene_check(predict: DepthFunction, textures: str | Path, count: int = 50) -> tuple[float, float]:
    """Mean rank correlation with the exact inverse depth of held-out scenes: (predict's, "lower is nearer"'s)."""
    photographs = scenes.load_textures(textures)
    pairs = []
    for seed in watched(range(HELD_OUT_SEED, HELD_OUT_SEED + count), count, "held-out scenes"):
        rgb, inverse_depth = scenes.render(seed, photographs, 256, 352)
        rows = np.broadcast_to(np.arange(256)[:, None], inverse_depth.shape)
        pairs.append([_rank_correlation(guess, inverse_depth) for guess in (predict(rgb), rows)])
    ours, trivial = np.mean(pairs, 0)
    return float(ours), float(trivial)


def _rank_correlation(a: NDArray, b: NDArray) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(np.ravel(a), np.ravel(b)).statistic)


def main(arguments: Sequence[str] | None = None) -> int:
    """Render, train, save, report."""
    parser = argparse.ArgumentParser(
        "python -m recipes.small.train_depth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--textures", type=Path, required=True, help="folder of photographs that cover the scenes' surfaces"
    )
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write (safetensors)")
    parser.add_argument(
        "--resume", type=Path, help="start from these weights (a killed run needs no option: the same command goes on)"
    )
    parser.add_argument("--minutes", type=float, help="train for this long instead of --steps")
    parser.add_argument("--steps", type=int, default=TrainConfig.steps)
    parser.add_argument("--learning-rate", type=float, default=TrainConfig.learning_rate)
    parser.add_argument("--scenes", type=int, default=2500, help="scenes to render before training")
    parser.add_argument("--first-seed", type=int, default=0, help="seed of the first scene")
    parser.add_argument("--height", type=int, default=192, help="height of the scenes in pixels; they are 4:3")
    parser.add_argument("--work", type=Path, help="folder for rendered scenes (default: OUT with the suffix .scenes)")
    parser.add_argument("--workers", type=int, default=2, help="rendering processes")
    parser.add_argument("--threads", type=int, default=1, help="torch threads; more only pay on idle cores")
    parser.add_argument("--seed", type=int, default=TrainConfig.seed)
    options = parser.parse_args(arguments)
    return exit_code(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    work = (options.work or options.out.with_suffix(".scenes")) / str(options.height)
    width = math.ceil(options.height * 4 / 3 / STRIDE) * STRIDE
    size = {"first_seed": options.first_seed, "height": options.height, "width": width}
    render_scenes(work, options.textures, options.scenes, workers=options.workers, **size)
    config = TrainConfig(
        minutes=options.minutes, steps=options.steps, seed=options.seed, learning_rate=options.learning_rate
    )
    start = load_small_depth(str(options.resume)) if options.resume else None
    model = train(work, options.out, config, start, scenes.load_textures(options.textures))
    for name, values in stereo_check(predictor(model)).items():
        print("{}: rank correlation {:.3f}, lower-is-nearer {:.3f}".format(name, *values))
    print("held-out scenes {:.3f}, lower-is-nearer {:.3f}".format(*scene_check(predictor(model), options.textures)))


if __name__ == "__main__":
    sys.exit(main())
