"""Run photographs through the fp32 networks, to calibrate a lower precision and to measure how far it moves scores.

    photographs ─► preprocess ─► fp32 networks ─┬─► largest magnitude of every tensor that is to be quantised
                                                └─► Probe: scores, which a changed network is compared with

The preprocessing is the one used for scoring, and one photograph is held at a time. Ranges are not clipped: on 200
distorted photographs the small bundle's scores then moved by up to 0.011, and by 0.025 with clipping at a percentile,
with the same four layers left out, since strong distortions show in the values that a percentile clips.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dgiqa import forward, preprocess, spec
from dgiqa.bundle import Bundle, load_golden
from dgiqa.dtypes import Array, Float32, Float64, Int32, UInt8
from dgiqa.errors import BundleError, ImageError
from dgiqa.full_reference import FullReference
from dgiqa.image import decode
from dgiqa.parity import DISTORTIONS
from dgiqa.runtime.ort import OrtSession
from dgiqa.sources import Reading, expand

Progress = Callable[[str], None]
Distort = Callable[[UInt8], UInt8]
Mapped = Callable[[Float32], Float32]
Outputs = dict[str, Float32]
Networks = Mapping[str, Any]  # spec.DEPTH_FILE, if there is one, and spec.QUALITY_FILE -> session

MAX_IMAGES = 500  # for calibration; more cost time and do not move the ranges


@dataclass(frozen=True)
class Errors:
    """How far scores in [0, 1] moved, new - old: f64 [images] and f64 [tiles]. NaN counts as infinite."""

    images: Float64
    tiles: Float64

    @property
    def worst(self) -> float:
        """The largest |difference| of an image's score."""
        return _finite(np.abs(self.images).max())

    @property
    def rms(self) -> float:
        """Root mean square over tiles: ranks layers more steadily than the worst image does."""
        return _finite(np.sqrt(np.mean(self.tiles**2)))


@dataclass(frozen=True)
class _Picture:
    image: Float32 | None  # [1,3,h,w], the depth network's input; None if there is no such network
    rgb: UInt8  # [H,W,3], the working image
    depth: UInt8 | None  # [H,W], its depth image
    size: tuple[int, int]  # height, width of the photograph
    windows: Int32  # [n,2]
    wanted: Outputs  # outputs of the fp32 quality network, f32 [n,...] each


@dataclass(frozen=True)
class Probe:
    """A few photographs with the scores that the fp32 networks give them.

    mapped: the bundle's mapping of tile scores f32 [n] to its scale; it is the mapped scores that may not move. head:
    compares every second photograph with the one before, of the same size; its scores may not move either. Its layer
    weighs differences of features, so it can amplify an error more than the layer that scores one picture.
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

    def seen_by(self, depth: Any) -> "Probe":
        """The same photographs with depth maps from this session; wanted scores are NaN if the map is not finite."""

        def seen(picture: _Picture) -> _Picture:
            made = depth.run({spec.DEPTH_INPUT: picture.image})[spec.DEPTH_OUTPUT]
            if not np.isfinite(made).all():
                return replace(picture, wanted={k: np.full_like(v, np.nan) for k, v in picture.wanted.items()})
            return replace(picture, depth=preprocess.depth_image(made, *picture.size, self.p))

        return replace(self, pictures=tuple(map(seen, self.pictures)))

    def few(self) -> "Probe":
        """The first and last tile of every third photograph: enough to rank layers, and quick.

        Every other photograph is distorted, here too. With a head it is every other pair of photographs.
        """
        chosen = []
        for number, picture in enumerate(self.pictures):
            ends = np.unique([0, len(picture.windows) - 1])
            if number % 3 == 0 if self.head is None else number % 4 < 2:
                wanted = {name: found[ends] for name, found in picture.wanted.items()}
                chosen.append(replace(picture, windows=picture.windows[ends], wanted=wanted))
        return replace(self, pictures=tuple(chosen))

    def _scores(self, outputs: Sequence[Outputs]) -> list[Float32]:
        """Tile scores f32 [n] of each photograph and then, if there is a head, of each pair."""
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
) -> "Probe":
    """Score photographs, uint8 [H,W,3] RGB, with the fp32 networks. Raises ValueError if there are none."""
    pictures = tuple(_picture(rgb, networks, p) for rgb in photographs)
    if not pictures:
        raise ValueError("got no photograph to measure scores on, wanted at least one that can be read")
    return Probe(pictures, networks, p, mapped, head)


def score_tiles(rgb: UInt8, networks: Networks, p: spec.Preprocess) -> Float32:
    """Scores f32 [n] of a photograph's grid tiles, uint8 [H,W,3] RGB; their mean is the photograph's score."""
    return _picture(rgb, networks, p).wanted[spec.QUALITY_OUTPUT]


def measure(
    photographs: Iterable[UInt8],
    models: Mapping[str, Any],
    tensors: Mapping[str, Sequence[str]],
    p: spec.Preprocess,
    progress: Progress,
) -> dict[str, dict[str, float]]:
    """Run fp32 models on photographs, uint8 [H,W,3] RGB. Return {file: {tensor: its largest magnitude, or 1 if 0}}.

    models: {spec.DEPTH_FILE, spec.QUALITY_FILE -> onnx.ModelProto}. tensors: names of those to watch in each file.
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
    """(a function that reads the photographs one by one, uint8 [H,W,3] RGB; their description).

    calibration: image files and folders, searched recursively; the first MAX_IMAGES are used, and every other one is
    distorted, since pictures to score may be bad. None: the bundle's golden images and distortions of them, which are
    few and similar. `progress` names each file that cannot be read and is left out. Raises ValueError if a path is
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
    turns = [distort for kind in _DISTORT[1:] for distort in (_DISTORT[0], kind)]  # as it is, then distorted
    return lambda: (distort(rgb) for rgb, distort in zip(_read(files, progress), itertools.cycle(turns))), note


def probe_photographs(bundle: Bundle, calibration: Callable[[], Iterator[UInt8]]) -> Iterator[UInt8]:
    """Every golden image, unchanged and then distorted, twice. Without golden images, the first ones for calibration.

    Each distorted picture follows its original, as `make_probe` wants it. With one distortion each, fp16 moved one of
    200 photographs by six times what the search saw; with two, by three and a half times.
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
    """A network that records the largest magnitudes of inner tensors whenever it runs."""

    def __init__(self, model: Any, tensors: Sequence[str]) -> None:
        from dgiqa.builder.precision import with_outputs

        self.largest = dict.fromkeys(tensors, 0.0)
        self._session = OrtSession(with_outputs(model, tensors).SerializeToString())

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
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


def _outputs(network: Any, rgb: UInt8, near: UInt8 | None, windows: Int32, p: spec.Preprocess) -> Outputs:
    """Scores of a working image's windows and, if the quality network has them, features."""
    runs = [network.run(feeds) for feeds in forward.tiles(rgb, near, windows, p)]
    names = [name for name in (spec.QUALITY_OUTPUT, spec.QUALITY_FEATURES) if name in runs[0]]
    return {name: np.concatenate([found[name] for found in runs]) for name in names}


def _sharpened(rgb: UInt8) -> UInt8:
    blurred = np.asarray(cv2.GaussianBlur(rgb, (0, 0), 1.5), np.float32)
    return np.clip(rgb + 4 * (rgb - blurred), 0, 255).astype(np.uint8)


# The parity sweep's, the unchanged image first, and one that gives larger values than photographs do
_DISTORT: tuple[Distort, ...] = (*DISTORTIONS.values(), _sharpened)


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
