"""Photographs become what a lower precision must answer to: the sizes of a network's values, and its fp32 scores.

    photographs ─► preprocess ─► fp32 networks ─┬─► largest magnitude of every tensor that is to be quantised
                                                └─► Probe: scores, which a changed network is compared with

The real preprocessing feeds the networks, so they see what they will see. One photograph is held at a time. Nothing is
clipped: on 200 distorted photographs the small bundle's scores moved by up to 0.011 so, and by 0.025 with clipping at a
percentile, the same four layers left out, since strong distortions live in what a percentile clips.
"""

from __future__ import annotations

import itertools
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
from dgiqa.full_reference import FullReference
from dgiqa.image import decode
from dgiqa.parity import DISTORTIONS
from dgiqa.runtime.ort import OrtSession
from dgiqa.sources import Reading, expand

UInt8 = NDArray[np.uint8]
Progress = Callable[[str], None]
Distort = Callable[[UInt8], UInt8]
Mapped = Callable[[NDArray[np.float32]], NDArray[np.float32]]
Outputs = dict[str, NDArray[np.float32]]
Networks = Mapping[str, Any]  # spec.DEPTH_FILE, where there is one, and spec.QUALITY_FILE -> session

MAX_IMAGES = 500  # for calibration; more cost time and move thresholds no further


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
    image: NDArray[np.float32] | None  # [1,3,h,w], the depth network's input; None where there is no such network
    rgb: UInt8  # [H,W,3], the working image
    depth: UInt8 | None  # [H,W], what the depth network made of it
    size: tuple[int, int]  # height, width of the photograph
    windows: NDArray[np.int32]  # [n,2]
    wanted: Outputs  # of the fp32 quality network, f32 [n,...] each


@dataclass(frozen=True)
class Probe:
    """A few photographs with the scores that the fp32 networks give them.

    mapped: what the bundle makes of tile scores f32 [n], since its scores are what may not move. head: compares every
    second photograph with the one before, of the same size; its scores may not move either. A last layer that weighs
    differences of features can make more of an error than the one that scores a picture alone.
    """

    pictures: tuple[_Picture, ...]
    networks: Networks
    p: spec.Preprocess
    mapped: Mapped
    head: FullReference | None = None

    def errors(self, changed: Networks) -> Errors:
        """How far scores move when these sessions replace the networks of the same names."""
        seen = self.seen_by(changed[spec.DEPTH_FILE]) if spec.DEPTH_FILE in changed else self
        quality = changed.get(spec.QUALITY_FILE, self.networks[spec.QUALITY_FILE])
        wanted = [picture.wanted for picture in seen.pictures]
        got = [_outputs(quality, picture.rgb, picture.depth, picture.windows, self.p) for picture in seen.pictures]
        moved = [a - b for a, b in zip(self._scores(got), self._scores(wanted), strict=True)]
        images = np.array([tiles.mean(dtype=np.float64) for tiles in moved])
        return Errors(images, np.concatenate(moved).astype(np.float64))

    def seen_by(self, depth: Any) -> Probe:
        """The same photographs with the depth maps of this session; wanted scores are NaN where one is not finite."""

        def seen(picture: _Picture) -> _Picture:
            made = depth.run({spec.DEPTH_INPUT: picture.image})[spec.DEPTH_OUTPUT]
            if not np.isfinite(made).all():
                return replace(picture, wanted={k: np.full_like(v, np.nan) for k, v in picture.wanted.items()})
            return replace(picture, depth=preprocess.depth_image(made, *picture.size, self.p))

        return replace(self, pictures=tuple(map(seen, self.pictures)))

    def few(self) -> Probe:
        """The first and last tile of every third photograph: enough to rank layers by, and quick.

        Every other photograph is distorted, and so is every other one of these.
        """
        chosen = []
        for number, picture in enumerate(self.pictures):
            ends = np.unique([0, len(picture.windows) - 1])
            if number % 3 == 0 if self.head is None else number % 4 < 2:  # every other pair
                wanted = {name: found[ends] for name, found in picture.wanted.items()}
                chosen.append(replace(picture, windows=picture.windows[ends], wanted=wanted))
        return replace(self, pictures=tuple(chosen))

    def _scores(self, outputs: Sequence[Outputs]) -> list[NDArray[np.float32]]:
        """Of each photograph and, where they are compared, each pair: f32 [n] of its tiles."""
        scores = [self.mapped(found[spec.QUALITY_OUTPUT]) for found in outputs]
        if self.head is not None:
            features = [found[spec.QUALITY_FEATURES] for found in outputs]
            scores += map(self.head.score, features[1::2], features[::2])
        return scores


def make_probe(
    photographs: Iterable[UInt8],
    networks: Networks,
    p: spec.Preprocess,
    mapped: Mapped,
    head: FullReference | None = None,
) -> Probe:
    """Score photographs, uint8 [H,W,3] RGB, with the fp32 networks. Raises ValueError if there is none."""
    pictures = tuple(_picture(rgb, networks, p) for rgb in photographs)
    if not pictures:
        raise ValueError("got no photograph to measure scores on, wanted at least one that can be read")
    return Probe(pictures, networks, p, mapped, head)


def score_tiles(rgb: UInt8, networks: Networks, p: spec.Preprocess) -> NDArray[np.float32]:
    """Scores f32 [n] of a photograph's grid tiles, uint8 [H,W,3] RGB; their mean is the photograph's score."""
    return _picture(rgb, networks, p).wanted[spec.QUALITY_OUTPUT]


def measure(
    photographs: Iterable[UInt8],
    models: Mapping[str, Any],
    tensors: Mapping[str, Sequence[str]],
    p: spec.Preprocess,
    progress: Progress,
) -> dict[str, dict[str, float]]:
    """Run fp32 models on photographs, uint8 [H,W,3] RGB: {file: {tensor: its largest magnitude}}, 1 for zeros.

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
    return {file: {name: top or 1.0 for name, top in network.largest.items()} for file, network in watched.items()}


def photographs(
    bundle: Bundle, calibration: Sequence[Path] | None, progress: Progress
) -> tuple[Callable[[], Iterator[UInt8]], str]:
    """(a function that reads the photographs one by one, uint8 [H,W,3] RGB; what they are).

    calibration: image files and folders, which are searched to the bottom; the first MAX_IMAGES count, and every other
    one is distorted, since pictures that are to be judged may be bad. None: the bundle's golden images and distortions
    of them, which are few and similar. One that cannot be read is left out and named. Raises ValueError if a path is
    missing or there is no image, BundleError if there are no golden images.
    """
    if calibration is None:
        files = [bundle.path / golden.file for golden in load_golden(bundle)]
        note = f"{len(files)} golden images and {len(_DISTORT) - 1} distortions of each: weaker than a folder"
        return lambda: (distort(rgb) for rgb in _read(files, progress) for distort in _DISTORT), note
    found = list(itertools.islice(expand(map(str, calibration), Reading(recursive=True)), MAX_IMAGES))
    named = ", ".join(map(str, calibration)) or "an empty list"
    wrong = next((f"{item.name}: {item.error}" for item in found if item.error), "")
    if wrong or not found:
        fix = "give files or a folder of photographs like those you will score, 500 if you have them"
        raise ValueError(f"no image for calibration in {named} ({wrong or 'nothing found'}); {fix}")
    files = [Path(str(item.source)) for item in found]
    note = f"{len(found)} images of {named}, every other one distorted"
    return lambda: _every_other_distorted(_read(files, progress)), note


def probe_photographs(bundle: Bundle, calibration: Callable[[], Iterator[UInt8]]) -> Iterator[UInt8]:
    """Every golden image as it is and under a distortion, twice; without golden images, the first for calibration.

    A picture and its distortion follow one another, as `make_probe` wants them. With one distortion each, fp16 moved
    one of 200 photographs by six times what the search saw; with two, by three and a half.
    """
    try:
        pictures = _read([bundle.path / golden.file for golden in load_golden(bundle)], lambda _: None)
    except BundleError:
        pictures = itertools.islice(calibration(), 0, 12, 2)  # every other one is distorted
    distort = _DISTORT[1:]
    for number, rgb in enumerate(pictures):
        for kind in (number, number + len(distort) // 2):
            yield rgb
            yield distort[kind % len(distort)](rgb)


class _Watched:
    """A network that keeps the largest magnitudes of inner tensors whenever it runs."""

    def __init__(self, model: Any, tensors: Sequence[str]) -> None:
        from dgiqa.builder.precision import with_outputs

        self.largest = dict.fromkeys(tensors, 0.0)
        self._session = OrtSession(with_outputs(model, tensors).SerializeToString())

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        results = self._session.run(feeds)
        for name, largest in self.largest.items():
            values = results[name] if name in results else feeds[name]
            top = float(np.abs(values).max(initial=0))
            if not math.isfinite(top):
                raise ImageError("a network gave NaN or infinity for this photograph; leave it out of the calibration")
            self.largest[name] = max(largest, top)
        return results


def _picture(rgb: UInt8, networks: Networks, p: spec.Preprocess) -> _Picture:
    (height, width), image, depth = rgb.shape[:2], None, None
    if (network := networks.get(spec.DEPTH_FILE)) is not None:
        image = preprocess.depth_input(rgb, p)
        depth = preprocess.depth_image(network.run({spec.DEPTH_INPUT: image})[spec.DEPTH_OUTPUT], height, width, p)
    working = preprocess.working_image(rgb, p)
    windows = preprocess.grid_windows(working.shape[0], working.shape[1], p.tile)
    wanted = _outputs(networks[spec.QUALITY_FILE], working, depth, windows, p)
    return _Picture(image, working, depth, (height, width), windows, wanted)


def _outputs(network: Any, rgb: UInt8, near: UInt8 | None, windows: NDArray[np.int32], p: spec.Preprocess) -> Outputs:
    """Scores of a working image's windows and, where the quality network gives them, features."""
    runs = [network.run(feeds) for feeds in forward.tiles(rgb, near, windows, p)]
    names = [name for name in (spec.QUALITY_OUTPUT, spec.QUALITY_FEATURES) if name in runs[0]]
    return {name: np.concatenate([found[name] for found in runs]) for name in names}


def _sharpened(rgb: UInt8) -> UInt8:
    blurred = np.asarray(cv2.GaussianBlur(rgb, (0, 0), 1.5), np.float32)
    return np.clip(rgb + 4 * (rgb - blurred), 0, 255).astype(np.uint8)


# Those of the parity sweep, the unchanged image first, and one that makes values larger than photographs do
_DISTORT: tuple[Distort, ...] = (*DISTORTIONS.values(), _sharpened)


def _every_other_distorted(images: Iterable[UInt8]) -> Iterator[UInt8]:
    for number, rgb in enumerate(images):
        yield _DISTORT[1 + number // 2 % (len(_DISTORT) - 1)](rgb) if number % 2 else rgb


def _read(files: Iterable[Path], progress: Progress) -> Iterator[UInt8]:
    for path in files:
        rgb = None
        try:
            rgb = decode(path.read_bytes())
        except (ImageError, OSError) as error:
            progress(f"left out of the calibration: {path} ({error})")
        if rgb is not None:
            yield rgb


def _finite(value: float) -> float:
    return float(value) if math.isfinite(value) else math.inf
