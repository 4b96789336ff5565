"""A bundle and some photographs -> how fast each way of running it is here, what it costs in drift, and which to take.

    every (backend, precision) that can run here, interleaved     ->  the fastest within the drift allowed
    that one with other threads and batches, interleaved again    ->  one setting for latency, one for throughput

Latency is one image after the other through `Scorer.score`; throughput is all of them through `Scorer.score_many`,
decoding included. Drift is the largest difference of a score from the fp32 reference's on the same photographs.
"""

import itertools
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2

from dgiqa import spec
from dgiqa.bundle import Bundle, load_golden
from dgiqa.errors import BackendError, EngineError, ImageError
from dgiqa.image.sources import open_source
from dgiqa.machine import preparing_threads, usable_cores
from dgiqa.parity import BUDGETS
from dgiqa.report.rows import plural
from dgiqa.runtime import backends as runtime
from dgiqa.score import Failure
from dgiqa.scorer import Scorer
from dgiqa.sources import expand
from dgiqa.timing import Spread, interleaved, spread

MAX_DRIFT = max(BUDGETS.values())  # of a score: the error budget of an engine of the most reduced precision
MAX_IMAGES = 32
SECONDS = 90.0  # for the timings; opening the networks comes on top
PHOTOGRAPHS = 8
SIZE = (1024, 768)  # of the stand-in photographs, width x height
BATCHES = (1, 8, 32)
SAME = 0.03  # times that differ by less count as equal: the first row is kept


@dataclass(frozen=True)
class Setting:
    """One way of running a bundle. threads: of the networks. workers: threads that decode and prepare images.

    batch: tiles per run, parallel: runs that share the threads; None leaves them to `Scorer`.
    """

    backend: str
    precision: str = "fp32"
    batch: int | None = None
    threads: int = 1
    workers: int = 1
    parallel: int | None = None

    def open(self, bundle: Bundle, tiling: str = "grid") -> Scorer:
        """A Scorer with this setting. Raises BackendError or EngineError if that is not possible here."""
        options = {name: value for name, value in vars(self).items() if name != "workers"}
        return Scorer(bundle, tiling=tiling, **options)

    def command(self, bundle: str) -> str:
        """The command that scores a folder with this setting, ready to paste."""
        engine = f"--backend {self.backend} --precision {self.precision}"
        sizes = "" if self.batch is None else f"--batch {self.batch} "
        sizes += f"--threads {self.threads} --workers {self.workers}"
        sizes += "" if self.parallel is None else f" --parallel {self.parallel}"
        return f"dgiqa-rt score --bundle {shlex.quote(bundle)} {engine} {sizes} photos/"


@dataclass(frozen=True)
class Row:
    """Measurements of one setting. ms: for one image by itself. drift: largest |score - reference score|."""

    setting: Setting
    ms: Spread
    images_per_second: float
    drift: float

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        speed = {"images_per_second": float(f"{self.images_per_second:.4g}"), "drift": float(f"{self.drift:.3g}")}
        return asdict(self.setting) | {"ms": self.ms.as_dict()} | speed


@dataclass(frozen=True)
class Missing:
    """An engine that is not built yet. fix: the error's message, which says how to build it."""

    backend: str
    precision: str
    fix: str


@dataclass(frozen=True)
class Survey:
    """Every row measured, what is missing, and the rows recommended; None where nothing keeps to max_drift."""

    bundle: str
    reference: str
    images: int
    max_drift: float
    rows: tuple[Row, ...]
    missing: tuple[Missing, ...]
    latency: Row | None
    throughput: Row | None

    def as_dict(self, name: str) -> dict[str, Any]:
        """Ready for JSON. name: what the recommended commands call the bundle."""
        advice = {"latency": self.latency, "throughput": self.throughput}
        best = {p: row and row.as_dict() | {"command": row.setting.command(name)} for p, row in advice.items()}
        plain = {name: getattr(self, name) for name in ("bundle", "reference", "images", "max_drift")}
        return plain | {
            "rows": [row.as_dict() for row in self.rows],
            "missing": [asdict(item) for item in self.missing],
            "recommended": best,
        }


def survey(
    bundle: Bundle,
    images: Sequence[bytes],
    *,
    backends: Iterable[str] | None = None,
    max_drift: float = MAX_DRIFT,
    seconds: float = SECONDS,
    progress: Callable[[str], None] = lambda line: None,
) -> Survey:
    """Measure `bundle` on encoded images in every way that runs here (or with `backends` only).

    seconds: about how long the timings take. All networks of a group are in memory at once. Raises BackendError if
    nothing can run, ImageError if one of the images cannot be scored.
    """
    settings, missing = candidates(bundle, runtime.backends() if backends is None else backends)
    if not settings:
        raise BackendError(f"nothing here can run {bundle.id}: " + "; ".join(item.fix for item in missing))
    progress(f"comparing {plural(len(settings), 'engine')} on {plural(len(images), 'image')}")
    reference = reference_scores(bundle, settings[0], images)
    first = measure(bundle, settings, images, reference, seconds * 0.6)
    best = fastest(first, max_drift)
    rows = list(first)
    if best is not None:
        progress(f"trying threads and batches on {best.setting.backend} {best.setting.precision}")
        again = measure(bundle, variations(best.setting), images, reference, seconds * 0.4)
        rows = again + [row for row in first if row.setting != best.setting]
    label = f"{settings[0].backend} {settings[0].precision}"
    best_for = {purpose: fastest(rows, max_drift, purpose) for purpose in ("latency", "throughput")}
    return Survey(bundle.id, label, len(images), max_drift, tuple(rows), tuple(missing), **best_for)


def candidates(bundle: Bundle, backends: Iterable[str]) -> tuple[list[Setting], list[Missing]]:
    """The (backend, precision) pairs that open here, ONNX Runtime in fp32 first; and the engines yet to be built."""
    found, missing = [], []
    cores = usable_cores()
    ordered = sorted(backends, key=lambda name: name != runtime.ONNXRUNTIME)
    for precision, backend in itertools.product(spec.PRECISIONS, ordered):
        setting = Setting(backend, precision, threads=cores, workers=preparing_threads(cores))
        try:
            setting.open(bundle).close()
        except EngineError as error:
            missing.append(Missing(backend, precision, str(error)))
        except BackendError:  # this backend does not offer that precision, or cannot run this file
            continue
        else:
            found.append(setting)
    return found, missing


def variations(setting: Setting) -> list[Setting]:
    """This setting, then the same engine with other thread counts, batches, and one run at a time: one change each."""
    cores = usable_cores()
    threads = [replace(setting, threads=n) for n in sorted({1, max(1, cores // 2), cores})]
    batches = [replace(setting, batch=n) for n in BATCHES]
    one_run = [replace(setting, parallel=1)] if cores > 1 else []
    return list(dict.fromkeys([setting, *threads, *batches, *one_run]))


def reference_scores(bundle: Bundle, setting: Setting, images: Sequence[bytes]) -> list[float]:
    """The scores to compare with: one image after the other."""
    with setting.open(bundle) as scorer:
        return [scorer.score(image).value for image in images]


def measure(
    bundle: Bundle, settings: Sequence[Setting], images: Sequence[bytes], reference: Sequence[float], seconds: float
) -> list[Row]:
    """One row per setting; latency and throughput are timed in turn over all of them, round by round."""
    scores: dict[Setting, list[float]] = {}

    def score_next(scorer: Scorer, turn: Iterator[bytes]) -> None:  # all score the same image in one round
        scorer.score(next(turn))

    def score_all(setting: Setting, scorer: Scorer) -> None:
        scores[setting] = stream(scorer, images, setting.workers)

    with ExitStack() as stack:
        scorers = {s: stack.enter_context(s.open(bundle)) for s in settings}
        one_by_one = {str(s): partial(score_next, scorer, itertools.cycle(images)) for s, scorer in scorers.items()}
        alone = interleaved(one_by_one, pairs=4 * len(images), warmup=1, seconds=seconds / 2)
        together = {str(s): partial(score_all, s, scorer) for s, scorer in scorers.items()}
        many = interleaved(together, pairs=5, warmup=0, seconds=seconds / 2)
    return [
        Row(
            setting=s,
            ms=spread(alone[str(s)]),
            images_per_second=len(images) * 1e3 / spread(many[str(s)]).median,
            drift=max(abs(a - b) for a, b in zip(scores[s], reference, strict=True)),
        )
        for s in settings
    ]


def stream(scorer: Scorer, images: Iterable[bytes], workers: int) -> list[float]:
    """Scores of many images, in order. Raises what scoring one of them raised."""
    results = scorer.score_many(images, on_error="raise", workers=workers)
    return [score.value for score in results if not isinstance(score, Failure)]


def fastest(rows: Sequence[Row], max_drift: float, purpose: str = "throughput") -> Row | None:
    """The fastest row for "latency" or "throughput" among those that keep to max_drift; of equals, the first."""
    steady = [row for row in rows if row.drift <= max_drift]  # False for NaN
    costs = [row.ms.median if purpose == "latency" else 1 / row.images_per_second for row in steady]
    return next((row for row, cost in zip(steady, costs, strict=True) if cost <= min(costs) * (1 + SAME)), None)


def read(paths: Iterable[str]) -> list[bytes]:
    """Encoded images from files. Raises ImageError for a file without one, and for 0 or over MAX_IMAGES files."""
    files = list(expand(paths))
    for item in files:
        if item.error:
            raise ImageError(f"{item.name}: {item.error}")
    if not 0 < len(files) <= MAX_IMAGES:
        raise ImageError(f"got {len(files)} images to measure with, wanted 1 to {MAX_IMAGES}; name a few files")
    for item in files:
        try:
            open_source(item.source)
        except ImageError as error:  # noqa: PERF203
            raise ImageError(str(Failure(item.name, "ImageError", str(error)))) from error
    return [item.source if isinstance(item.source, bytes) else Path(str(item.source)).read_bytes() for item in files]


def photographs(bundle: Bundle) -> list[bytes]:
    """JPEGs of SIZE to measure with: the bundle's golden images, resized. Raises BundleError if it has none."""
    files = [bundle.path / golden.file for golden in load_golden(bundle)]
    pictures = [cv2.imread(str(path), cv2.IMREAD_COLOR) for path in files[:PHOTOGRAPHS]]
    resized = [cv2.resize(p, SIZE, interpolation=cv2.INTER_CUBIC) for p in pictures if p is not None]
    return [cv2.imencode(".jpg", picture)[1].tobytes() for picture in resized]
