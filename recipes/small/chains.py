"""Photographs become groups of worse and worse pictures, like those of cameras, phones and sites, with labels.

    python -m recipes.small.chains --root BIQ2021 --opinions data/opinions --depth depth.onnx --out data/chains
    python -m recipes.small.chains --pictures CLEAN --depth depth.onnx --out data/chains         (without BIQ2021)

One group is one photograph four times, from ordinary to bad. Finally every picture, the first one too, is saved by an
ordinary encoder at random quality (`encoding.ordinary`), so that the score cannot depend on how a picture was stored.
Each picture gets a label and reasons.

    single    one of thirty distortion types at three of its levels
    mixture   up to three distortions in the order in which cameras cause them, one more in every picture
    codec     one codec at four falling qualities
    small     the picture shrunk and enlarged again by random kernels, further each time
    night     less and less light, with the sensor's noise
    grey      black and white, which is no fault, then a mixture
    steps     one codec at four qualities from invisible to poor, with no other save after it (`--steps`)
    nothing   a covered lens or a blank wall, with a sensor's noise: there is nothing to see, so all four are bad
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dgiqa.nn.datasets import TRAIN, load_dataset, read_rgb
from recipes.small import encoding, working
from recipes.small.distortions import TYPES, distort
from recipes.small.labels import full_reference
from recipes.small.learn import VALIDATION
from recipes.small.reasons import as_list, certain, human_share, reasons_of
from recipes.small.scale import HUMAN, Scale, fit, label

Bytes = NDArray[np.uint8]
SIZE = 4  # pictures of a group
COMPARED = 384  # pixels, side of the squares that full-reference metrics compare
KINDS = ("single", "mixture", "codec", "small", "night", "grey", "nothing")
SHARES = (0.42, 0.22, 0.14, 0.06, 0.05, 0.07, 0.04)
STEPS = {"hevc": (12, 20, 28, 36), "avif": (85, 65, 45, 25), "h264": (12, 20, 28, 36)}
FIRST = (
    "gaussian_blur",
    "lens_blur",
    "motion_blur",
    "depth_defocus",
    "haze",
    "darken",
    "low_light",
    "contrast_change",
    "lens_flare",
)
SECOND = ("white_noise", "multiplicative_noise", "white_noise_color", "grain")
THIRD = ("denoise", "high_sharpen", "small", "pixelate", "color_saturation_2", "brighten")
# The share of quality left of JPEG at KADID's five levels by the metrics, and by people.
RECODED = ((0.16, 0.22, 0.34, 0.63, 0.7, 0.8, 1.0), (0.03, 0.1, 0.26, 0.79, 0.91, 0.96, 1.0))
NIGHT = (0.35, 0.15, 0.06, 0.025)


class Made:
    """One picture of a group: its pixels, the share of quality left (None: to be measured by metrics), and reasons.

    reference: the picture that this and the following ones are compared with, if it is not the photograph. cell: the
    type and level of a single distortion. mixed: whether `share` is its worst part's share, which metrics may lower.
    """

    def __init__(self, rgb: Bytes, share: float | None, reasons: dict[str, float]) -> None:
        self.rgb, self.share, self.reasons = rgb, share, reasons
        self.reference: Bytes | None = None
        self.cell: tuple[str, int] | None = None
        self.mixed = False


def grain(rgb: Bytes, level: int, rng: np.random.Generator) -> Bytes:
    """Add noise like a camera's: per pixel or clustered, grey or coloured, possibly stronger in bright parts."""
    deviation = (2, 5, 10, 18, 30)[level - 1] * float(rng.uniform(0.8, 1.2))
    noise = rng.standard_normal(rgb.shape if rng.random() < 0.6 else (*rgb.shape[:2], 1), np.float32)
    if rng.random() < 0.5:
        blurred = cv2.GaussianBlur(noise, (0, 0), float(rng.uniform(0.5, 1.3)))
        noise = (blurred / blurred.std()).reshape(*noise.shape)
    light = np.sqrt(rgb.astype(np.float32) / 255 + 0.1) if rng.random() < 0.5 else np.float32(1)
    return np.clip(rgb + deviation * noise * light, 0, 255).astype(np.uint8)


def shrink(rgb: Bytes, factor: float, rng: np.random.Generator) -> Bytes:
    """Shrink by `factor` and enlarge again, with kernels that programs use."""
    down = (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)[rng.integers(4)]
    up = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)[rng.integers(4)]
    height, width = rgb.shape[:2]
    small = cv2.resize(rgb, (max(8, round(width * factor)), max(8, round(height * factor))), interpolation=down)
    return np.asarray(cv2.resize(small, (width, height), interpolation=up))


def apply(rgb: Bytes, kind: str, level: int, seed: int) -> Bytes:
    rng = np.random.default_rng([seed, 5])
    if kind == "grain":
        return grain(rgb, level, rng)
    if kind == "small":
        return shrink(rgb, (0.75, 0.5, 0.35, 0.22, 0.13)[level - 1], rng)
    return distort(rgb, kind, level, seed)


def group(kind: str, rgb: Bytes, rng: np.random.Generator, types: Sequence[str] = TYPES) -> list[Made]:
    """SIZE pictures from one photograph, none better than the one before it. See the top of this file.

    types: the distortion types that "single" draws from.
    """
    seed = int(rng.integers(2**31))
    if kind == "single":
        return _single(rgb, rng, seed, types)
    return {
        "mixture": _mixture,
        "codec": _codec,
        "steps": _steps,
        "small": _small,
        "night": _night,
        "grey": _grey,
        "nothing": _nothing,
    }[kind](rgb, rng, seed)


def _single(rgb: Bytes, rng: np.random.Generator, seed: int, types: Sequence[str]) -> list[Made]:
    kind = types[int(rng.integers(len(types)))]
    made = [Made(rgb, 1.0, {})]
    for level in sorted(rng.choice(5, SIZE - 1, replace=False) + 1):
        after = apply(rgb, kind, int(level), seed)
        one = Made(after, None, reasons_of(kind, int(level), rgb, after))
        one.cell = (kind, int(level))
        made.append(one)
    return made


def _mixture(rgb: Bytes, rng: np.random.Generator, seed: int) -> list[Made]:
    steps = [
        FIRST[rng.integers(len(FIRST))],
        SECOND[rng.integers(len(SECOND))],
        (*THIRD, "jpeg")[rng.integers(len(THIRD) + 1)],
    ]
    made, share = [Made(rgb, 1.0, {})], 1.0
    for step in steps:
        level = int(rng.choice(5, p=(0.25, 0.25, 0.2, 0.15, 0.15)) + 1)
        before = made[-1]
        after = apply(before.rgb, step, level, seed)
        reasons = dict(before.reasons)
        for name, sure in reasons_of(step, level, before.rgb, after).items():
            reasons[name] = max(sure, reasons.get(name, 0.0))
        if step == "denoise":
            reasons["noise"] = 0.5
        share = min(share, human_share(step, level)) * (0.97 if share < 1 else 1.0)
        one = Made(after, share, reasons)
        one.mixed = True
        made.append(one)
    return made


def _codec(rgb: Bytes, rng: np.random.Generator, seed: int) -> list[Made]:
    codec = list(encoding.SERIES)[rng.choice(6, p=(0.2, 0.15, 0.15, 0.05, 0.25, 0.2))]
    made = []
    for quality, sure in zip(encoding.SERIES[codec], (0.0, 0.5, 1.0, 1.0), strict=True):
        spread = rng.uniform(0.85, 1.15) if codec not in encoding.VIDEO else rng.uniform(0.94, 1.04)
        made.append(
            Made(encoding.save(rgb, codec, max(1, quality * spread)), None, {"codec": 0.0, "compression": sure})
        )
    return made


def _steps(rgb: Bytes, rng: np.random.Generator, seed: int) -> list[Made]:
    codec = list(STEPS)[rng.choice(3, p=(0.42, 0.42, 0.16))]
    shift = float(rng.uniform(-3, 3)) * (1 if codec in encoding.VIDEO else 2)
    return [Made(encoding.save(rgb, codec, q + shift), None, {"codec": 0.0, "compression": 0.0}) for q in STEPS[codec]]


def _small(rgb: Bytes, rng: np.random.Generator, seed: int) -> list[Made]:
    made = [Made(rgb, 1.0, {})]
    for factor in (0.6, 0.35, 0.18):
        sure = 0.5 if factor > 0.5 else 1.0
        made.append(
            Made(
                shrink(rgb, factor * float(rng.uniform(0.85, 1.15)), np.random.default_rng(seed)),
                None,
                {"low resolution": sure},
            )
        )
    return made


def _night(rgb: Bytes, rng: np.random.Generator, seed: int) -> list[Made]:
    linear, made = (rgb.astype(np.float32) / 255) ** 2.2, [Made(rgb, 1.0, {})]
    for exposure, share in zip(NIGHT[::1][1:], (0.55, 0.2, 0.06), strict=True):
        light = linear * exposure
        electrons = float(rng.uniform(150, 1500))
        noise = np.random.default_rng(seed).standard_normal(rgb.shape, np.float32) * np.sqrt(
            np.maximum(light, 0) / electrons + 0.002**2
        )
        dark = (np.clip(light + noise, 0, 1) ** (1 / 2.2) * 255).astype(np.uint8)
        made.append(Made(dark, share, {"dark": 1.0, "noise": 0.5 if share < 0.5 else 0.0}))
    return made


def _grey(rgb: Bytes, rng: np.random.Generator, seed: int) -> list[Made]:
    grey = np.repeat(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)[..., None], 3, 2)
    if rng.random() < 0.3:
        grey = np.clip(grey * np.array((1.0, 0.93, 0.8)), 0, 255).astype(np.uint8)
    made = _mixture(grey, rng, seed)
    made[0].reference = grey
    return [Made(rgb, 1.0, {}), *made[: SIZE - 1]]


def _nothing(rgb: Bytes, rng: np.random.Generator, seed: int) -> list[Made]:
    level = float(rng.choice((rng.uniform(0, 25), rng.uniform(25, 230))))
    made = []
    for deviation in (0, 1, 3, 8):
        plain = np.full(rgb.shape, level, np.float32) + rng.uniform(-4, 4, 3).astype(np.float32)
        if rng.random() < 0.5:
            plain += np.linspace(-1, 1, rgb.shape[1], dtype=np.float32)[None, :, None] * float(rng.uniform(0, 10))
        noisy = grain(np.clip(plain, 0, 255).astype(np.uint8), 1 + min(3, deviation // 2), rng) if deviation else plain
        made.append(
            Made(
                np.clip(noisy, 0, 255).astype(np.uint8),
                0.0,
                {"dark": 1.0 if level < 25 else 0.0, "noise": 0.5 if deviation else 0.0},
            )
        )
    return made


def judge(made: list[Made], reference: Bytes, scale: Scale) -> list[float]:
    """The share of quality left of every picture before it is saved, never rising within the group."""
    shares, worst = [], 1.0
    for one in made:
        if one.reference is not None:
            reference = compared(one.reference)
        share = one.share if one.share is not None and not one.mixed else _measured(one, reference, scale)
        if "codec" in one.reasons:
            one.reasons["compression"] = certain(share)
        worst = min(worst, float(np.clip(share, 0, 1)))
        shares.append(worst)
    return shares


def compared(rgb: Bytes) -> Bytes:
    """The part of a picture that full-reference metrics compare, at the size to which they are scaled."""
    return working.square(rgb, size=COMPARED)


def _measured(one: Made, reference: Bytes, scale: Scale) -> float:
    """The share of quality left of a picture, by full-reference metrics."""
    values = full_reference(reference, compared(one.rgb)[None])
    found = float(scale(values)[0])
    if one.cell:
        return scale.single(*one.cell, values[0])
    if one.share is not None:
        return min(one.share, found + 0.1)
    return float(np.interp(found, *RECODED)) if "codec" in one.reasons else found


def fit_scale(pictures: Sequence[Bytes], rng: np.random.Generator) -> Scale:
    values, kinds = [], []
    for number, rgb in enumerate(pictures):
        reference = compared(rgb)
        for kind in HUMAN:
            levels = rng.choice(5, 3, replace=False) + 1 if number % 2 else (1, 3, 5)
            for level in levels:
                values.append(full_reference(reference, compared(distort(rgb, kind, int(level), number))[None])[0])
                kinds.append((kind, int(level)))
        for _ in range(6):
            values.append(full_reference(reference, compared(encoding.save(rgb, "jpeg", 95))[None])[0])
            kinds.append(("none", 0))
    return fit(np.array(values), kinds)


def scale_beside(out: Path, sources: Sequence[tuple[Path, float]]) -> Scale:
    """The scale that `out` shares with its sibling folders; the first of them fits it to its best photographs."""
    file = out.parent / "scale.json"
    if not file.exists():
        best = sorted(sources, key=lambda source: -source[1])[:400]
        some = np.random.default_rng(3).permutation(len(best))[:14]
        fit_scale([read_rgb(best[i][0]) for i in some], np.random.default_rng(4)).save(file)
    return Scale.load(file)


def judged_photographs(root: Path, opinions: Path) -> list[tuple[Path, float]]:
    """Training photographs that people find at least passable, with their opinion; none of `learn`'s validation."""
    labels = working.load(opinions)[2]
    kept = np.random.default_rng(7).permutation(len(labels["mos"]))[VALIDATION:]
    paths = {record.name: record.path for record in load_dataset("biq2021", root).part(TRAIN).records}
    found = [(paths[str(labels["name"][i])], float(labels["mos"][i])) for i in kept]
    return [(path, opinion) for path, opinion in found if opinion > 0.4]


def clean_photographs(folder: Path, worth: float) -> list[tuple[Path, float]]:
    """Every picture of a folder, with `worth` as its opinion."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".png", ".jpg", ".webp"))
    return [(path, worth) for path in files]


def shares_with(singles: float) -> tuple[float, ...]:
    """The share of groups of every kind, where `singles` is the share of those with one distortion type."""
    return (singles, *(share * (1 - singles) / (1 - SHARES[0]) for share in SHARES[1:]))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m recipes.small.chains", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, help="folder of BIQ2021")
    parser.add_argument("--opinions", type=Path, help="working pictures of its opinions")
    parser.add_argument("--pictures", type=Path, help="instead of both: a folder of clean photographs")
    parser.add_argument("--worth", type=float, default=0.8, help="their assumed opinion; default: 0.8")
    parser.add_argument("--depth", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--groups", type=int, default=3200)
    parser.add_argument("--singles", type=float, default=SHARES[0], help="share of groups with one distortion type")
    parser.add_argument("--types", nargs="+", choices=TYPES, default=TYPES, help="types to draw from; default: all")
    parser.add_argument("--steps", action="store_true", help="only groups of one codec in small steps")
    parser.add_argument("--seed", type=int, default=0)
    o = parser.parse_args(arguments)
    if (o.root and o.opinions and not o.pictures) == (o.pictures is not None):
        parser.error("give --root and --opinions, or --pictures")
    cv2.setNumThreads(1)
    import torch

    torch.set_num_threads(1)
    sources = judged_photographs(o.root, o.opinions) if o.root else clean_photographs(o.pictures, o.worth)
    chosen = [
        sources[i % len(sources)]
        for i in np.random.default_rng([o.seed, 1]).permutation(max(o.groups, len(sources)))[: o.groups]
    ]

    o.out.mkdir(parents=True, exist_ok=True)
    scale, network, shares_of_kinds = scale_beside(o.out, sources), working.Depth(o.depth), shares_with(o.singles)
    done = 0
    found: dict[str, list[object]] = {"label": [], "reasons": [], "source": [], "kind": []}
    if (o.out / "labels.npz").exists():  # of a stopped run: go on after its last complete hundred
        rgb, depth, earlier = working.load(o.out, "r+")
        found = {name: list(earlier[name]) for name in found}
        done = len(found["label"]) // SIZE
    else:
        rgb, depth = working.create(o.out, SIZE * len(chosen))
    started = time.time()
    for number, (path, worth) in list(enumerate(chosen))[done:]:
        rng = np.random.default_rng([o.seed, 2, number])
        kind = "steps" if o.steps else KINDS[rng.choice(len(KINDS), p=shares_of_kinds)]
        source = read_rgb(path)
        made = group(kind, source, rng, o.types)
        stored = [working.square(one.rgb if o.steps else encoding.ordinary(one.rgb, rng)) for one in made]
        shares = judge(made, compared(source), scale)
        for n, (one, picture, share) in enumerate(zip(made, stored, shares, strict=True)):
            at = SIZE * number + n
            rgb[at], depth[at] = picture, network(picture)
            found["label"].append(0.06 + 0.04 * rng.random() if kind == "nothing" else label(worth, share))
            found["reasons"].append(as_list(one.reasons))
            found["source"].append(number)
            found["kind"].append(kind)
        if number % 100 == 99:
            working.save_labels(
                o.out,
                {
                    name: np.array(value, np.float32 if name in ("label", "reasons") else None)
                    for name, value in found.items()
                },
            )
            print(number, f"{time.time() - started:.0f} s", flush=True)
    working.save_labels(
        o.out,
        {name: np.array(value, np.float32 if name in ("label", "reasons") else None) for name, value in found.items()},
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
