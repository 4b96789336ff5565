"""Photographs become what a lower precision must answer to: the sizes of a network's values, and its fp32 scores.

    photographs ─► preprocess ─► fp32 networks ─┬─► Histogram of every tensor that is to be quantised ─► threshold
                                                └─► Probe: scores, which a changed network is compared with

The real preprocessing feeds the networks, so they see what they will see. One photograph is held at a time, and a
tensor's histogram has a fixed size, whatever the number of photographs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dgiqa import forward, preprocess, spec
from dgiqa.bundle import Bundle, load_golden
from dgiqa.errors import BundleError, ImageError
from dgiqa.image import decode
from dgiqa.parity import DISTORTIONS
from dgiqa.runtime.ort import OrtSession
from dgiqa.sources import expand

UInt8 = NDArray[np.uint8]
Progress = Callable[[str], None]
Distort = Callable[[UInt8], UInt8]
Networks = Mapping[str, Any]  # spec.DEPTH_FILE and spec.QUALITY_FILE -> session

MAX_IMAGES = 500  # for calibration; more cost time and move thresholds no further
# Best first: on 200 distorted photographs the small bundle's scores moved by up to 0.011 with minmax and 0.025 with
# percentile, the same four layers left out: strong distortions are rare, so percentile clips
# the values that they cause.
CALIBRATORS = ("minmax", "percentile", "entropy")
PERCENTILE = 99.999  # of a tensor's magnitudes that are not clipped
BINS = 2048  # of a histogram; twice TensorRT's, because the range is a power of two and may be half empty
_SAMPLE = 1 << 17  # values of one tensor of one image that are counted; its maximum is exact
_LEVELS = 128  # of int8 without its sign


class Histogram:
    """Magnitudes of a tensor over many runs, counted in BINS equal bins from 0 to a power of two that only grows."""

    def __init__(self) -> None:
        self.largest = 0.0
        self._top = 0.0
        self._counts = np.zeros(BINS)

    def add(self, values: NDArray[np.floating[Any]]) -> None:
        """Count an array of any shape, or an even sample of a large one."""
        magnitudes = np.abs(values).ravel()
        largest = float(magnitudes.max(initial=0))
        if not math.isfinite(largest):
            raise ImageError("a network gave NaN or infinity for this photograph; leave it out of the calibration")
        self.largest = max(self.largest, largest)
        while largest > self._top:
            self._grow(largest)
        sample = magnitudes[:: max(1, magnitudes.size // _SAMPLE)]
        self._counts += np.histogram(sample, BINS, (0, self._top or 1))[0]

    def threshold(self, calibrator: str) -> float:
        """The magnitude that is to become the largest int8 level; larger ones are clipped. Always above 0.

        calibrator: "minmax" clips nothing, "percentile" all beyond PERCENTILE of the values, "entropy" what keeps the
        Kullback-Leibler divergence between the values before and after lowest (Migacz 2017).
        """
        if calibrator not in CALIBRATORS:
            raise ValueError(f"unknown calibrator {calibrator!r}; choose one of: {', '.join(CALIBRATORS)}")
        if self.largest == 0:
            return 1.0
        width = self._top / BINS
        if calibrator == "percentile":
            cumulative = self._counts.cumsum() / self._counts.sum()
            return min(self.largest, (int(np.searchsorted(cumulative, PERCENTILE / 100)) + 1) * width)
        return self.largest if calibrator == "minmax" else min(self.largest, _least_divergent(self._counts) * width)

    def _grow(self, largest: float) -> None:
        """Double the range, neighbours merged; the first value chooses it."""
        if self._top == 0:
            self._top = 2.0 ** math.ceil(math.log2(largest))
            return
        self._counts = np.concatenate([self._counts.reshape(-1, 2).sum(1), np.zeros(BINS // 2)])
        self._top *= 2


@dataclass(frozen=True)
class Errors:
    """By how much scores in [0, 1] moved: f64 [images] and f64 [tiles], new - old. NaN counts as infinite."""

    images: NDArray[np.float64]
    tiles: NDArray[np.float64]

    @property
    def worst(self) -> float:
        """The largest |difference| of an image's score."""
        return _finite(np.abs(self.images).max())

    @property
    def rms(self) -> float:
        """Root mean square over tiles: steadier than the worst image for telling layers apart."""
        return _finite(np.sqrt(np.mean(self.tiles**2)))


@dataclass(frozen=True)
class _Picture:
    image: NDArray[np.float32]  # [1,3,h,w], the depth network's input
    rgb: UInt8  # [H,W,3], the working image
    depth: UInt8  # [H,W], what the depth network made of it
    size: tuple[int, int]  # height, width of the photograph
    windows: NDArray[np.int32]  # [n,2]
    scores: NDArray[np.float32]  # [n], of the fp32 networks


@dataclass(frozen=True)
class Probe:
    """A few photographs with the scores that the fp32 networks give them."""

    pictures: tuple[_Picture, ...]
    networks: Networks
    p: spec.Preprocess

    def errors(self, changed: Networks) -> Errors:
        """How far scores move when these sessions replace the networks of the same names."""
        seen = self.seen_by(changed[spec.DEPTH_FILE]) if spec.DEPTH_FILE in changed else self
        quality = changed.get(spec.QUALITY_FILE, self.networks[spec.QUALITY_FILE])
        moved = [
            forward.tile_scores(quality, picture.rgb, picture.depth, picture.windows, self.p.tile) - picture.scores
            for picture in seen.pictures
        ]
        images = np.array([tiles.mean(dtype=np.float64) for tiles in moved])
        return Errors(images, np.concatenate(moved).astype(np.float64))

    def seen_by(self, depth: Any) -> Probe:
        """The same photographs with the depth maps of this session; wanted scores are NaN where one is not finite."""

        def seen(picture: _Picture) -> _Picture:
            made = depth.run({spec.DEPTH_INPUT: picture.image})[spec.DEPTH_OUTPUT]
            if not np.isfinite(made).all():
                return replace(picture, scores=np.full_like(picture.scores, np.nan))
            return replace(picture, depth=preprocess.depth_image(made, *picture.size, self.p))

        return replace(self, pictures=tuple(map(seen, self.pictures)))

    def few(self) -> Probe:
        """The first and last tile of every third photograph: enough to rank layers by, and quick.

        Every other photograph is distorted, and so is every other one of these.
        """
        chosen = []
        for picture in self.pictures[::3]:
            ends = np.unique([0, len(picture.windows) - 1])
            chosen.append(replace(picture, windows=picture.windows[ends], scores=picture.scores[ends]))
        return replace(self, pictures=tuple(chosen))


def make_probe(photographs: Iterable[UInt8], networks: Networks, p: spec.Preprocess) -> Probe:
    """Score photographs, uint8 [H,W,3] RGB, with the fp32 networks. Raises ValueError if there is none."""
    pictures = tuple(_picture(rgb, networks, p) for rgb in photographs)
    if not pictures:
        raise ValueError("got no photograph to measure scores on, wanted at least one that can be read")
    return Probe(pictures, networks, p)


def score_tiles(rgb: UInt8, networks: Networks, p: spec.Preprocess) -> NDArray[np.float32]:
    """Scores f32 [n] of a photograph's grid tiles, uint8 [H,W,3] RGB; their mean is the photograph's score."""
    return _picture(rgb, networks, p).scores


def network_feeds(
    rgb: UInt8, networks: Networks, p: spec.Preprocess
) -> Iterator[tuple[str, dict[str, NDArray[np.float32]]]]:
    """What each network is fed for a photograph, as (file, inputs): the depth network's image, then the grid tiles."""
    seen: list[tuple[str, dict[str, NDArray[np.float32]]]] = []
    _picture(rgb, {file: _Recorded(file, network, seen) for file, network in networks.items()}, p)
    yield from seen


def measure(
    photographs: Iterable[UInt8],
    models: Mapping[str, Any],
    tensors: Mapping[str, Sequence[str]],
    p: spec.Preprocess,
    progress: Progress,
) -> dict[str, dict[str, Histogram]]:
    """Run fp32 models on photographs, uint8 [H,W,3] RGB: {file: {tensor: its Histogram}}.

    models: {spec.DEPTH_FILE, spec.QUALITY_FILE -> onnx.ModelProto}. tensors: what to look at in each.
    """
    watched = {file: _Watched(model, tensors[file]) for file, model in models.items()}
    count = 0
    for count, rgb in enumerate(photographs, 1):
        _picture(rgb, watched, p)
        if count % 50 == 0:
            progress(f"calibrated on {count} photographs")
    if not count:
        raise ValueError("got no photograph to calibrate on, wanted at least one")
    return {file: network.histograms for file, network in watched.items()}


def photographs(
    bundle: Bundle, calibration: Sequence[Path] | None, progress: Progress
) -> tuple[Callable[[], Iterator[UInt8]], str]:
    """(a function that reads the photographs one by one, uint8 [H,W,3] RGB; what they are).

    calibration: image files and folders, which are searched to the bottom; the first MAX_IMAGES count, and every other
    one is distorted, since pictures that are to be judged may be bad. None: the bundle's golden images and distortions
    of them, which are few and similar. One that cannot be read is left out and named. Raises ValueError if a path is
    missing or there is no image, BundleError if there are no golden images.
    """
    distortions = tuple(_distortions().values())
    if calibration is None:
        files = [bundle.path / golden.file for golden in load_golden(bundle)]
        note = f"{len(files)} golden images and {len(distortions) - 1} distortions of each: weaker than a folder"
        return lambda: (distort(rgb) for rgb in _read(files, progress) for distort in distortions), note
    found = [item for _, item in zip(range(MAX_IMAGES), expand(map(str, calibration), recursive=True), strict=False)]
    named = ", ".join(map(str, calibration)) or "an empty list"
    wrong = next((f"{item.name}: {item.error}" for item in found if item.error), "")
    if wrong or not found:
        fix = "give files or a folder of photographs like those you will score, 500 if you have them"
        raise ValueError(f"no image for calibration in {named} ({wrong or 'nothing found'}); {fix}")
    files = [Path(str(item.source)) for item in found]
    note = f"{len(found)} images of {named}, every other one distorted"
    return lambda: _every_other_distorted(_read(files, progress), distortions), note


def probe_photographs(bundle: Bundle, calibration: Callable[[], Iterator[UInt8]]) -> Iterator[UInt8]:
    """Every golden image as it is and under one distortion each; without golden images, the first for calibration."""
    try:
        golden = load_golden(bundle)
    except BundleError:
        yield from (rgb for _, rgb in zip(range(12), calibration(), strict=False))
        return
    distort = list(_distortions().values())[1:]
    for number, rgb in enumerate(_read([bundle.path / g.file for g in golden], lambda _: None)):
        yield rgb
        yield distort[number % len(distort)](rgb)


@dataclass(frozen=True)
class _Recorded:
    """A network that notes what it is fed."""

    file: str
    network: Any
    seen: list[tuple[str, dict[str, NDArray[np.float32]]]]

    def run(self, feeds: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[Any]]:
        self.seen.append((self.file, dict(feeds)))
        return dict(self.network.run(feeds))


class _Watched:
    """A network that fills histograms of inner tensors whenever it runs."""

    def __init__(self, model: Any, tensors: Sequence[str]) -> None:
        from dgiqa.builder.precision import with_outputs

        self.histograms = {name: Histogram() for name in tensors}
        self._session = OrtSession(with_outputs(model, tensors).SerializeToString())

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        results = self._session.run(feeds)
        for name, histogram in self.histograms.items():
            histogram.add(results[name] if name in results else feeds[name])
        return results


def _picture(rgb: UInt8, networks: Networks, p: spec.Preprocess) -> _Picture:
    fed: list[tuple[str, dict[str, NDArray[np.float32]]]] = []
    depth = forward.depth_image(rgb, _Recorded(spec.DEPTH_FILE, networks[spec.DEPTH_FILE], fed), p)
    working = preprocess.working_image(rgb, p)
    windows = preprocess.grid_windows(depth.shape[0], depth.shape[1], p.tile)
    scores = forward.tile_scores(networks[spec.QUALITY_FILE], working, depth, windows, p.tile)
    return _Picture(fed[0][1][spec.DEPTH_INPUT], working, depth, (rgb.shape[0], rgb.shape[1]), windows, scores)


def _distortions() -> dict[str, Distort]:
    """Those of the parity sweep, the unchanged image first, and one that makes values larger than photographs do."""
    return {**DISTORTIONS, "sharp": _sharpened}


def _sharpened(rgb: UInt8) -> UInt8:
    blurred = np.asarray(cv2.GaussianBlur(rgb, (0, 0), 1.5), np.float32)
    return np.clip(rgb + 4 * (rgb - blurred), 0, 255).astype(np.uint8)


def _every_other_distorted(images: Iterable[UInt8], distortions: Sequence[Distort]) -> Iterator[UInt8]:
    for number, rgb in enumerate(images):
        yield distortions[1 + number // 2 % (len(distortions) - 1)](rgb) if number % 2 else rgb


def _read(files: Iterable[Path], progress: Progress) -> Iterator[UInt8]:
    for path in files:
        if (rgb := _try_read(path, progress)) is not None:
            yield rgb


def _try_read(path: Path, progress: Progress) -> UInt8 | None:
    try:
        return decode(path.read_bytes())
    except (ImageError, OSError) as error:
        progress(f"left out of the calibration: {path} ({error})")
        return None


def _least_divergent(counts: NDArray[np.float64]) -> int:
    """How many bins to keep so that clipping the rest and merging to int8 levels loses the least information."""
    used = int(np.flatnonzero(counts)[-1]) + 1
    candidates = range(min(_LEVELS, used), used + 1, max(1, used // 256))
    return min(candidates, key=lambda kept: _divergence(counts, kept))


def _divergence(counts: NDArray[np.float64], kept: int) -> float:
    """Kullback-Leibler divergence of the first `kept` bins, the rest in the last one, from their int8 version."""
    inside = counts[:kept]
    clipped = inside.copy()
    clipped[-1] += counts[kept:].sum()
    level = np.arange(kept) * _LEVELS // kept
    filled = np.bincount(level, inside > 0, _LEVELS)
    spread = np.where(inside > 0, (np.bincount(level, inside, _LEVELS) / np.maximum(filled, 1))[level], 0)
    before, after = clipped / clipped.sum(), spread / max(spread.sum(), 1)
    seen = before > 0
    return float(np.sum(before[seen] * np.log(before[seen] / np.maximum(after[seen], 1e-12))))


def _finite(value: float) -> float:
    return float(value) if math.isfinite(value) else math.inf
