"""Measures the default model: every figure of its card, each on pictures that it never saw.

    python -m recipes.small.measures --bundle runs/small/bundle --biq BIQ2021 --clean FOLDER --large FOLDER \\
        --out bench/results/model-card.json

First come people's opinions of photographs. The other figures start from clean photographs (`--clean`; CID22's
validation part and Kodak's, say), distort and save them as users do, and score the files. `--only NAME` runs one part.
"""

from __future__ import annotations

import argparse
import functools
import io
import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dgiqa.metrics import krocc, plcc, srocc
from dgiqa.nn.datasets import TEST, load_dataset, read_rgb
from dgiqa.scorer import Scorer
from dgiqa.spec import QUALITY_FILE
from dgiqa.video.frames import Video
from dgiqa.video.sampling import Sampling
from dgiqa.video.source import Reading
from recipes.small import chains, encoding
from recipes.small.distortions import KADID_TYPES, distort

Bytes = NDArray[np.uint8]
Float = NDArray[np.float64]
GOOD, FAIR = 0.7, 0.5  # mean opinions, 0..1, for these words in card and presets
ENCODINGS: dict[str, Callable[[Bytes], Bytes]] = {
    "PNG": lambda a: a,
    "JPEG 95": lambda a: encoding.save(a, "jpeg", 95),
    "JPEG 85": lambda a: encoding.save(a, "jpeg", 85),
    "JPEG 70": lambda a: encoding.save(a, "jpeg", 70),
    "WebP 80": lambda a: encoding.save(a, "webp", 80),
    "AVIF 60": lambda a: encoding.save(a, "avif", 60),
    "H.264 crf 23": lambda a: encoding.save(a, "h264", 23),
}
BAD = (
    "gaussian_blur",
    "lens_blur",
    "motion_blur",
    "white_noise",
    "grain",
    "jpeg",
    "low_light",
    "darken",
    "contrast_change",
    "pixelate",
    "denoise",
    "haze",
)


CLIP = (480, 640)  # rows and columns of the frames that several decoders open
DECODED = {
    "libx264": {"crf": "23"},
    "libx265": {"crf": "24", "x265-params": "log-level=none"},
    "libvpx-vp9": {"crf": "32", "b": "0", "cpu-used": "8"},
    "mpeg2video": {"q": "4"},
}


class Judge:
    """Scores of arrays, uint8 [H,W,3] each, or files, in order: f64 [n]."""

    def __init__(self, bundle: str) -> None:
        self.scorer = Scorer(bundle, threads=1)

    def __call__(self, pictures: Iterable[Any]) -> Float:
        return np.array([s.value for s in self.full(pictures)])

    def full(self, pictures: Iterable[Any]) -> list[Any]:
        return list(self.scorer.score_many(pictures, on_error="raise"))


def opinions(judge: Judge, rows: Sequence[tuple[Path, float]]) -> dict[str, Any]:
    """Correlations with people's mean opinion, with 95 % bootstrap intervals, and the shares that pass thresholds."""
    scored = judge.full(path for path, _ in rows)
    found = np.array([s.value for s in scored])
    wanted = np.array([mos for _, mos in rows])
    rng = np.random.default_rng(0)
    result: dict[str, Any] = {"pictures": len(rows)}
    drawn = [rng.integers(0, len(rows), len(rows)) for _ in range(300)]
    for name, measure in (("srocc", srocc), ("plcc", lambda a, b: float(np.corrcoef(a, b)[0, 1])), ("krocc", krocc)):
        interval = np.percentile(
            [measure(found[i], wanted[i]) for i in drawn[: 300 if name != "krocc" else 30]], (2.5, 97.5)
        )
        result[name] = {"value": measure(found, wanted), "interval": interval.tolist()}
    result["plcc_fitted"] = plcc(found, wanted)
    result["rmse"] = float(np.sqrt(np.mean((found - wanted) ** 2)))
    error = np.abs(found - wanted)
    result["interval_80"] = float(np.quantile(error, 0.8))
    bands = {"good": wanted >= GOOD, "fair": (wanted >= FAIR) & (wanted < GOOD), "bad": wanted < FAIR}
    kinds = [kinds_of(path, s.attributes) for (path, _), s in zip(rows, scored, strict=True)]
    for name in ("black and white", "night", "shallow focus"):
        bands[f"good, {name}"] = bands["good"] & np.array([name in kind for kind in kinds])
    result["passes"] = {name: {"pictures": int(b.sum()), "curve": pass_curve(found[b])} for name, b in bands.items()}
    edges = np.linspace(0, 1, 21)
    result["joint"] = np.histogram2d(wanted, found, (edges, edges))[0].astype(int).tolist()
    return result


def pass_curve(scores: Float) -> list[float]:
    """The share of scores f [n] that are at least 0.00, 0.01, ..., 1.00."""
    return [round(float((scores >= t).mean()), 4) for t in np.linspace(0, 1, 101).round(2)] if len(scores) else []


def kinds_of(path: Path, attributes: Any) -> set[str]:
    """The kinds of a photograph, by measured rules: grey, dark on the whole, sharp only in a small part."""
    light = cv2.cvtColor(read_rgb(path), cv2.COLOR_RGB2GRAY).astype(np.float32)
    detail = cv2.resize(np.abs(cv2.Laplacian(light, cv2.CV_32F)), (16, 16), interpolation=cv2.INTER_AREA)
    rules = {
        "black and white": attributes.greyscale,
        "night": attributes.brightness < 0.2,
        "shallow focus": np.median(detail) < 3 and np.percentile(detail, 97) > 12,
    }
    return {name for name, holds in rules.items() if holds}


def saves(judge: Judge, clean: Sequence[Bytes]) -> dict[str, Any]:
    """For level 5 of each bad type in each encoding: AUC against clean pictures in it, and the shift from PNG."""
    base = {name: judge(save(a) for a in clean) for name, save in ENCODINGS.items()}
    clean_scores = {name: _summary(v) | {"scores": v.round(4).tolist()} for name, v in base.items()}
    result: dict[str, Any] = {"clean": clean_scores}
    for kind in BAD:
        bad = [chains.apply(a, kind, 5, n) for n, a in enumerate(clean)]
        found = {name: judge(save(a) for a in bad) for name, save in ENCODINGS.items()}
        result[kind] = {
            name: {
                "auc": auc(base[name], found[name]),
                "shift": float(np.median(found[name] - found["PNG"])),
                "mean": float(found[name].mean()),
                "scores": found[name].round(4).tolist(),
            }
            for name in ENCODINGS
        }
    return result


def auc(good: Float, bad: Float) -> float:
    """How often a good picture scores above a bad one."""
    return float(((good[:, None] > bad) + 0.5 * (good[:, None] == bad)).mean())


def additions(judge: Judge, clean: Sequence[Bytes]) -> dict[str, Any]:
    """How much a further blur, noise, darkness or compression raises the score of clean and of distorted pictures."""
    result, rng = {}, np.random.default_rng(5)
    bases = [
        *clean,
        *(chains.apply(a, BAD[rng.integers(len(BAD))], int(rng.integers(2, 6)), n) for n, a in enumerate(clean)),
    ]
    before = judge(encoding.save(b, "jpeg", 90) for b in bases)
    more: dict[str, Callable[[Bytes, int], Bytes]] = {
        "blur": lambda a, n: chains.apply(a, "gaussian_blur", 1 + n % 5, n),
        "noise": lambda a, n: chains.apply(a, "grain", 1 + n % 5, n),
        "darkness": lambda a, n: chains.apply(a, "low_light", 1 + n % 5, n),
        "compression": lambda a, n: encoding.save(a, "jpeg", (60, 40, 25, 12, 6)[n % 5]),
        "dither": lambda a, n: np.clip(
            a.astype(np.int16) + np.random.default_rng(n).integers(-1, 2, a.shape), 0, 255
        ).astype(np.uint8),
    }
    for name, change in more.items():
        rise = judge(encoding.save(change(b, n), "jpeg", 90) for n, b in enumerate(bases)) - before
        result[name] = {
            "median": float(np.median(rise)),
            "p95": float(np.percentile(rise, 95)),
            "max": float(rise.max()),
        }
    return result


def unseen(judge: Judge, clean: Sequence[Bytes]) -> dict[str, Any]:
    """How far invisible changes move the score."""
    rng = np.random.default_rng(6)
    bases = [*clean, *(chains.apply(a, BAD[n % len(BAD)], 3, n) for n, a in enumerate(clean))]
    before = judge(bases)
    changes: dict[str, Callable[[Bytes], Bytes]] = {
        "dither": lambda a: np.clip(a.astype(np.int16) + rng.integers(-1, 2, a.shape), 0, 255).astype(np.uint8),
        "JPEG 95": lambda a: encoding.save(a, "jpeg", 95),
        "WebP 95": lambda a: encoding.save(a, "webp", 95),
        "crop of 2 pixels": lambda a: np.ascontiguousarray(a[2:-2, 2:-2]),
        "resize 97 %": lambda a: cv2.resize(a, None, fx=0.97, fy=0.97, interpolation=cv2.INTER_AREA),
        "mirror": lambda a: np.ascontiguousarray(a[:, ::-1]),
        "4:2:0": lambda a: encoding.save(a, "jpeg", 100),
    }
    result, everything = {}, []
    for name, change in changes.items():
        moved = np.abs(judge(change(b) for b in bases) - before)
        everything.append(moved)
        result[name] = {"mean": float(moved.mean()), "p95": float(np.percentile(moved, 95))}
    whole = np.concatenate(everything)
    return result | {"all": {"mean": float(whole.mean()), "p95": float(np.percentile(whole, 95))}}


def sizes(judge: Judge, large: Sequence[Bytes]) -> dict[str, Any]:
    """The range of one picture's score over sizes, reduced by area as programs do."""
    found = np.array([judge(_reduced(a, side) for a in large) for side in (3000, 1500, 1024, 768, 512, 384)])
    spread = found.max(0) - found.min(0)
    return {
        "pictures": len(large),
        "mean_by_short_side": dict(
            zip(("full", "1500", "1024", "768", "512", "384"), found.mean(1).tolist(), strict=True)
        ),
        "range": {"median": float(np.median(spread)), "max": float(spread.max())},
    }


def details(judge: Judge, large: Sequence[Bytes]) -> dict[str, Any]:
    """Mean scores of large pictures with faults of the size of a pixel: of the whole picture, and of its middle."""
    rng = np.random.default_rng(6)
    faults: dict[str, Callable[[Bytes], Bytes]] = {
        "none": lambda a: a,
        "blur, sigma 1": lambda a: cv2.GaussianBlur(a, (0, 0), 1),
        "blur, sigma 2": lambda a: cv2.GaussianBlur(a, (0, 0), 2),
        "blur, sigma 4": lambda a: cv2.GaussianBlur(a, (0, 0), 4),
        "enlarged 4 times": lambda a: cv2.resize(
            _reduced(a, min(a.shape[:2]) // 4), a.shape[1::-1], interpolation=cv2.INTER_CUBIC
        ),
        "noise, deviation 10": lambda a: np.clip(a + rng.normal(0, 10, a.shape), 0, 255).astype(np.uint8),
        "JPEG 10": lambda a: encoding.save(a, "jpeg", 10),
        "HEVC crf 38": lambda a: encoding.save(a, "hevc", 38),
    }
    rows: dict[str, dict[str, float]] = {}
    for name, fault in faults.items():
        spoilt = [np.ascontiguousarray(fault(a)) for a in large]
        rows[name] = {"whole": float(judge(spoilt).mean()), "square": float(judge(map(_middle, spoilt)).mean())}
    short_side, seen_at = min(min(a.shape[:2]) for a in large), judge.scorer.bundle.preprocess.short_side
    return {"pictures": len(large), "short_side": short_side, "seen_at": seen_at, "rows": rows}


def _middle(a: Bytes, side: int = 512) -> Bytes:
    y, x = (max(0, (length - side) // 2) for length in a.shape[:2])
    return np.ascontiguousarray(a[y : y + side, x : x + side])


def _reduced(a: Bytes, side: int) -> Bytes:
    scale = side / min(a.shape[:2])
    return a if scale >= 1 else np.asarray(cv2.resize(a, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))


def video(judge: Judge, clean: Sequence[Bytes]) -> dict[str, Any]:
    """How often the score falls with a step of the quantiser, and is higher in focus than out of focus."""
    result: dict[str, Any] = {}
    steps = (12, 20, 28, 36, 44)
    for codec, series in (("h264", steps), ("hevc", steps), ("avif", (85, 65, 45, 25, 8))):
        found = np.array([judge(encoding.save(a, codec, q) for a in clean) for q in series])
        falls = found[:-1] > found[1:]
        soft = np.array([judge(encoding.save(cv2.GaussianBlur(a, (0, 0), 5), codec, q) for a in clean) for q in series])
        result[codec] = {
            "series": list(series),
            "mean": found.mean(1).tolist(),
            "falls": float(falls.mean()),
            "rises_by_more_than_0.01": float((found[1:] - found[:-1] > 0.01).mean()),
            "in_focus_above": float((found > soft).mean()),
        }
    return result


def decoders(judge: Judge, clean: Sequence[Bytes]) -> dict[str, Any]:
    """The largest difference of a frame's scores between decoding by this package, FFmpeg and OpenCV, by codec."""
    import imageio_ffmpeg

    result = {}
    for encoder, options in DECODED.items():
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "clip.mkv"
            _write_clip(file, clean, encoder, options)
            with Video(file, Reading(bars="keep")) as opened:
                ours = [f.rgb for f in opened.frames(Sampling(every=0))]
            command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(file), "-fps_mode", "passthrough"]
            raw = subprocess.run(
                [*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True, check=True
            )
            program = np.frombuffer(raw.stdout, np.uint8).reshape(-1, *CLIP, 3)
            reader = cv2.VideoCapture(str(file))
            opencv = [reader.read()[1][..., ::-1] for _ in clean]
        scores = np.array([judge(np.ascontiguousarray(a) for a in frames) for frames in (ours, program, opencv)])
        result[encoder] = {"frames": len(clean), "furthest": float(np.ptp(scores, axis=0).max())}
    return result


def _write_clip(file: Path, pictures: Sequence[Bytes], encoder: str, options: dict[str, str]) -> None:
    """Write every picture as one frame of CLIP pixels, in the colours that the header names."""
    import av

    with av.open(str(file), "w") as container:
        stream = container.add_stream(encoder, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = *CLIP, "yuv420p"
        for number, rgb in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(cv2.resize(rgb, CLIP[::-1], interpolation=cv2.INTER_AREA), "rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def special(judge: Judge, clean: Sequence[Bytes]) -> dict[str, Any]:
    rng = np.random.default_rng(8)
    grey = [np.repeat(cv2.cvtColor(a, cv2.COLOR_RGB2GRAY)[..., None], 3, 2) for a in clean]
    caps = [
        np.clip(rng.normal(level, noise, (600, 800, 3)), 0, 255).astype(np.uint8)
        for level in (2, 6, 12, 20, 120, 230)
        for noise in (0, 1, 2, 4, 8, 14)
    ]
    dark = [chains.apply(a, "low_light", 5, n) for n, a in enumerate(clean)]
    noisy = [np.clip((a * 0.02) + rng.normal(0, 4, a.shape), 0, 255).astype(np.uint8) for a in clean]
    return {
        name: _summary(v := judge(encoding.save(a, "jpeg", 90) for a in pictures)) | {"scores": v.round(4).tolist()}
        for name, pictures in (
            ("clean", clean),
            ("black and white", grey),
            ("covered lens or blank, with noise", caps),
            ("2 % light with noise", noisy),
            ("low light 5", dark),
        )
    }


def series(judge: Judge, clean: Sequence[Bytes], scale_file: Path | None) -> dict[str, Any]:
    """KADID's types at five levels: how often neighbouring levels are in order, and SROCC with people's mean opinion.

    scale_file: of `chains`; adds SROCC with the labels that `chains` would give each of these pictures.
    """
    result, everything, human, labels = {}, [], [], []
    from recipes.small.labels import full_reference
    from recipes.small.scale import HUMAN, Scale

    scale = Scale.load(scale_file) if scale_file else None
    squares = [chains.compared(a) for a in clean]
    for kind in KADID_TYPES:
        versions = [[distort(a, kind, level, n) for n, a in enumerate(clean)] for level in range(1, 6)]
        found = np.array([judge(pictures) for pictures in versions])
        if scale:
            for level, pictures in enumerate(versions, 1):
                for square, picture in zip(squares, pictures, strict=True):
                    labels.append(scale.single(kind, level, full_reference(square, chains.compared(picture)[None])[0]))
        wanted = np.array(HUMAN[kind])
        order = (found[:-1] > found[1:]) if wanted[0] > wanted[-1] else (found[:-1] < found[1:])
        result[kind] = {"in_order": float(order.mean()), "mean": found.mean(1).tolist()}
        everything.append(found.ravel())
        human.append(np.repeat(wanted, len(clean)))
    return {
        "types": result,
        "types_in_order": sum(r["in_order"] >= 0.9 for r in result.values()),
        "srocc_kadid_means": srocc(np.concatenate(everything), np.concatenate(human)),
        "srocc_labels": srocc(np.concatenate(everything), np.array(labels)) if scale else None,
    }


def depth(judge: Judge, pairs: Path | None) -> dict[str, dict[str, float]]:
    """Rank correlation of the depth network, and of "lower is nearer", with the true disparity of real pairs."""
    from dgiqa.preprocess import depth_input
    from dgiqa.runtime.session import open_session
    from dgiqa.spec import DEPTH_FILE, DEPTH_INPUT, DEPTH_OUTPUT
    from recipes.small.train_depth import stereo_check

    bundle = judge.scorer.bundle
    session = open_session(bundle.file(DEPTH_FILE))

    def predict(rgb: Bytes) -> Any:
        near = session.run({DEPTH_INPUT: depth_input(rgb, bundle.preprocess)})[DEPTH_OUTPUT][0]
        return cv2.resize(near, rgb.shape[1::-1], interpolation=cv2.INTER_LINEAR)

    return {
        name: {"ours": ours, "lower is nearer": guess} for name, (ours, guess) in stereo_check(predict, pairs).items()
    }


def reason_pictures(clean: Sequence[Bytes], seed: int, rounds: int = 20) -> tuple[list[Bytes], Float]:
    """Chains of clean pictures, saved as users save them, and their reasons f [n,K]: 1 is present, 0.5 undecided."""
    rng = np.random.default_rng(seed)
    groups = (
        chains.group(chains.KINDS[rng.choice(len(chains.KINDS), p=chains.SHARES)], a, rng)
        for _ in range(rounds)
        for a in clean
    )
    return saved_chains(groups, rng)


def saved_chains(groups: Iterable[list[chains.Made]], rng: np.random.Generator) -> tuple[list[Bytes], Float]:
    """Pictures of groups in order, saved as users save them, and their reasons f [n,K]."""
    from recipes.small.reasons import as_list

    found, wanted = [], []
    for one in itertools.chain.from_iterable(groups):
        found.append(encoding.ordinary(one.rgb, rng))
        wanted.append(as_list(one.reasons))
    return found, np.array(wanted)


def reasons(judge: Judge, clean: Sequence[Bytes]) -> dict[str, Any]:
    """Mean average precision of the reasons on chains of unseen pictures; recall and precision at their thresholds."""
    from recipes.small.reasons import REASONS

    found, truth = reason_pictures(clean, 9)
    scored = judge.full(found)
    names = list(scored[0].reasons)
    if not names:
        return {}
    truth = truth[:, [REASONS.index(name) for name in names]]
    probability = np.array([[s.reasons[name] for name in names] for s in scored])
    told = np.array([[name in s.faults for name in names] for s in scored])
    there = (truth == 1).any(0)  # few pictures may lack one
    each = {name: average_precision(probability[:, k], truth[:, k]) for k, name in enumerate(names) if there[k]}
    return {
        "pictures": len(found),
        "average_precision": each,
        "mean": float(np.mean(list(each.values()))),
        "at_threshold": {name: _found_and_right(told[:, k], truth[:, k]) for k, name in enumerate(names)},
    }


def _found_and_right(told: NDArray[np.bool_], truth: Float) -> dict[str, float]:
    """The share of faults that are named (recall), and the share of named faults that are real (precision)."""
    hits = float((told & (truth == 1)).sum())
    there, said = float((truth == 1).sum()), float((told & (truth != 0.5)).sum())
    return {"recall": hits / there if there else 1.0, "precision": hits / said if said else 1.0}


def average_precision(score: NDArray[Any], truth: NDArray[Any]) -> float:
    sure = truth != 0.5
    order = np.argsort(-score[sure], kind="stable")
    hit = truth[sure][order] == 1
    return float((np.cumsum(hit) / np.arange(1, len(hit) + 1))[hit].mean()) if hit.any() else 1.0


def _summary(values: Float) -> dict[str, float]:
    return {
        "mean": float(values.mean()),
        "lowest": float(values.min()),
        "highest": float(values.max()),
        "p10": float(np.percentile(values, 10)),
        "p90": float(np.percentile(values, 90)),
    }


def read(folder: Path, most: int) -> list[Bytes]:
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".png", ".jpg", ".webp"))
    return [
        np.asarray(Image.open(io.BytesIO(p.read_bytes())).convert("RGB"))
        for p in files[:: max(1, len(files) // most)][:most]
    ]


def as_json(value: Any) -> str:
    """JSON with a line for every key, and lists of numbers on one line."""
    return re.sub(r"\[[^][{}\"]*\]", lambda found: " ".join(found[0].split()), json.dumps(value, indent=1)) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m recipes.small.measures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--biq", type=Path, help="folder of BIQ2021, whose test part is scored")
    parser.add_argument("--clean", type=Path, required=True)
    parser.add_argument("--large", type=Path)
    parser.add_argument("--stereo", type=Path, help="folder of real pairs: NAME_left.png, NAME_gt.png (disparity)")
    parser.add_argument("--scale", type=Path, help="scale.json of the chains, for the labels of single distortions")
    parser.add_argument("--most", type=int, default=30, help="clean pictures to use")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--out", type=Path, required=True)
    o = parser.parse_args(arguments)
    cv2.setNumThreads(1)
    judge, clean = Judge(o.bundle), read(o.clean, o.most)
    parts: dict[str, Callable[[], Any]] = {}
    if o.biq:
        rows = [(r.path, r.score) for r in load_dataset("biq2021", o.biq).part(TEST).records]
        parts["opinions"] = lambda: opinions(judge, rows)
    parts |= {
        f.__name__: functools.partial(f, judge, clean)
        for f in (special, unseen, additions, video, decoders, saves, reasons)
    }
    parts["series"] = lambda: series(judge, clean, o.scale)
    parts["depth"] = lambda: depth(judge, o.stereo)
    if o.large:
        parts["sizes"] = lambda: sizes(judge, read(o.large, 20))
        parts["details"] = lambda: details(judge, read(o.large, 10))
    weights = judge.scorer.bundle.manifest["files"][QUALITY_FILE]["sha256"]
    stored = json.loads(o.out.read_text()) if o.out.exists() else {}
    if stored.get("weights") != weights:  # another model's figures; presets and names may change without it
        stored = {"weights": weights}
    for name in o.only or parts:
        stored[name] = parts[name]()
        stored["bundle"] = judge.scorer.bundle.id
        stored["presets"] = dict(judge.scorer.bundle.meaning.presets)
        stored["environment"] = {"date": datetime.now(timezone.utc).isoformat(timespec="minutes"), "clean": len(clean)}
        o.out.write_text(as_json(stored))
        print(name, json.dumps(stored[name])[:3000], flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
