"""Own labels become a bundle whose scores are on the labels' scale, with a threshold, and with figures about both.

    images, labels ─► scores and features per tile ─┬─► a map of scores          ─┐
                                                    └─► (adapt) a new last layer ─┴─► bundle, verified

The bundle holds copies of the networks: it can be moved, `verify` accepts it, and engines are built from it as from
any other.
"""

import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dgiqa import metrics, spec
from dgiqa.bundle import GOLDEN, Bundle, golden_lines, load_golden, write_bundle
from dgiqa.calibrate import fit
from dgiqa.calibrate.adapt import Layer, Seen, adapted_out_of_fold, fit_layer, shipped_layer, with_layer
from dgiqa.calibrate.labels import LabelError, Labels
from dgiqa.dtypes import Bool, Float32, Float64
from dgiqa.errors import ParityError
from dgiqa.meaning import Meaning
from dgiqa.parity import verify_bundle
from dgiqa.report.rows import rounded
from dgiqa.score import Failure
from dgiqa.scorer import Scorer

FEWEST = 20  # labels; with fewer, intervals are too wide to be of use
PRESET = "own"
HALF_WIDTHS = (0.05, 0.03, 0.02)  # of SROCC's interval; the report says how many labels each of them takes


@dataclass(frozen=True, eq=False)
class Study:
    """Labels, a bundle's outputs for their pictures, and the pictures that could not be scored."""

    labels: Labels
    pictures: tuple[Seen, ...]
    failures: tuple[Failure, ...] = ()

    @property
    def scores(self) -> Float64:
        """Scores of the pictures as the networks give them: f64 [n]."""
        return np.array([seen.scores.mean(dtype=np.float64) for seen in self.pictures])


@dataclass(frozen=True, eq=False)
class Calibration:
    """A fit. knots: of the map, or empty; layer: the last layer, or None. predicted: out of fold, f64 [n].

    good: which pictures count as good, bool [n]. chosen: the threshold that was asked for, or None.
    """

    study: Study
    knots: fit.Knots
    layer: Layer | None
    predicted: Float64
    good: Bool
    points: Sequence[fit.Point] = field(default_factory=tuple)
    chosen: fit.Point | None = None

    def report(self) -> dict[str, Any]:
        """Figures as plain values, ready for JSON; "after" is of pictures that were left out of the fit."""
        labels, before = self.study.labels, self.study.scores
        interval = low, high = fit.srocc_interval(self.predicted, labels.values)
        return {
            "labels": len(labels.values),
            "failed": len(self.study.failures),
            "binary": labels.binary,
            "range": list(labels.range),
            "method": "adapt" if self.layer else "map",
            "before": _figures(before, labels.values),
            "after": _figures(self.predicted, labels.values),
            "srocc_interval": [rounded(low, 4), rounded(high, 4)],
            "confidence": fit.CONFIDENCE,
            "labels_for_half_width": {str(w): fit.labels_needed(len(labels.values), interval, w) for w in HALF_WIDTHS},
            "interval": None if labels.binary else rounded(fit.spread(self.predicted, labels.values), 4),
            "good": int(self.good.sum()),
            "threshold": self.chosen.as_dict() if self.chosen else None,
            "curve": [point.as_dict() for point in self.points],
            "strength": self.layer.strength if self.layer and math.isfinite(self.layer.strength) else None,
        }


def look(scorer: Scorer, labels: Labels, folder: str | Path) -> Iterator[Seen | Failure]:
    """Score the labelled pictures with a scorer that has features=True and a bundle without a map."""
    for result in scorer.score_many((image, Path(folder, image)) for image in labels.images):
        if isinstance(result, Failure):
            yield result
        else:
            features = result.tile_features
            yield Seen(
                result.tile_scores, np.empty((len(result.windows), 0), np.float32) if features is None else features
            )


def gather(labels: Labels, found: Iterable[Seen | Failure]) -> Study:
    """Put labels and answers together, without failed ones. Raises LabelError if too few are left."""
    answers = list(found)
    pictures = {i: answer for i, answer in enumerate(answers) if isinstance(answer, Seen)}
    kept, failures = list(pictures), tuple(answer for answer in answers if not isinstance(answer, Seen))
    if len(kept) < FEWEST:
        why = f"; the first that failed: {failures[0]}" if failures else ""
        raise LabelError(f"{len(kept)} labelled pictures could be scored, wanted {FEWEST} or more{why}")
    values = labels.values[kept]
    if np.ptp(values) == 0:
        raise LabelError("all pictures that could be scored have the same label; there is nothing to learn from")
    kept_labels = replace(labels, images=tuple(labels.images[i] for i in kept), values=values)
    return Study(kept_labels, tuple(pictures.values()), failures)


def calibrated(
    study: Study,
    *,
    adapt_from: Layer | None = None,
    good: float | None = None,
    precision: float | None = None,
    recall: float | None = None,
) -> Calibration:
    """Fit a map or, given the shipped last layer, a new one, and choose a threshold.

    good: from which label on, on the labels' own scale, a picture counts as good; by default the middle of the scale.
    precision, recall: choose a threshold that has it; without either, there is no threshold.
    Raises ValueError if no threshold has it, LabelError for labels that fall as scores rise.
    """
    labels = study.labels
    if metrics.srocc(study.scores, labels.values) < -0.2:
        raise LabelError("labels fall as scores rise; give --lower-is-better if the best pictures have the lowest ones")
    layer: Layer | None = None
    knots: fit.Knots = ()
    if adapt_from:
        layer = fit_layer(study.pictures, labels.values, adapt_from)
        predicted = adapted_out_of_fold(study.pictures, labels.values, adapt_from)
    else:
        tiles = [seen.scores for seen in study.pictures]
        knots, predicted = fit.fit_map(tiles, labels.values), fit.map_out_of_fold(tiles, labels.values)
    low, high = labels.range
    least = 0.5 if good is None else (good - low) / (high - low)
    is_good = labels.values >= least
    alike = "all" if is_good.all() else "" if is_good.any() else "none"
    wanted = precision is not None or recall is not None
    if alike and wanted:
        raise ValueError(f"{alike} of the pictures count as good from {labels.own(least):g} on; give another --good")
    points = [] if alike else fit.curve(predicted, is_good)
    chosen = fit.threshold_for(points, precision=precision, recall=recall) if wanted else None
    return Calibration(study, knots, layer, predicted, is_good, tuple(points), chosen)


def write_calibrated(
    base: Bundle, result: Calibration, target: str | Path, *, name: str, source: str, overwrite: bool = False
) -> Bundle:
    """Write the bundle: copies of the base's files, with the map in the manifest or the new last layer in quality.onnx.

    source: the labels' name, for the title. Raises BundleError as `write_bundle` does, ParityError if the new file does
    not compute its layer.
    """
    manifest = base.manifest
    files: dict[str, Path | bytes] = {file: base.path / file for file in manifest["files"]}
    if result.layer:
        files[spec.QUALITY_FILE] = with_layer(base.path / spec.QUALITY_FILE, result.layer)
    if GOLDEN in files:
        files[GOLDEN] = _golden(base, result)
    count = len(result.study.labels.values)
    how = "last layer adapted" if result.layer else "scores mapped"
    card = {k: v for k, v in result.report().items() if k != "curve"}
    features = manifest.get("tensors", {}).get(spec.QUALITY_FILE, {}).get("outputs", {}).get(spec.QUALITY_FEATURES)
    arguments: dict[str, Any] = {
        "name": name,
        "title": f"{manifest.get('title', base.name)}; {how} to {count} labels ({source})",
        "files": files,
        "licence": "",
        "source": "",
        "origins": {
            file: {key: entry[key] for key in ("licence", "source") if key in entry}
            for file, entry in manifest["files"].items()
        },
        "preprocess": base.preprocess,
        "meaning": _meaning(base.meaning, result),
        "full_reference": base.full_reference,  # of features, which no calibration changes
        "features": int(features["shape"][-1]) if features else 0,
        "versions": {key: value for key, value in manifest.get("versions", {}).items() if key != "dgiqa-rt"},
        "parity": {**manifest.get("parity", {}), "calibrated_from": base.id},
        "model_card": {**manifest.get("model_card", {}), "calibration": card},
        "opset": manifest.get("opset", spec.OPSET),
    }
    with tempfile.TemporaryDirectory() as scratch:
        _verify(write_bundle(Path(scratch, "draft"), **arguments))
    return write_bundle(target, **arguments, overwrite=overwrite)


def plain(base: Bundle) -> Bundle:
    """The bundle without a map of its own, so that its scores are its networks'."""
    return replace(base, meaning=replace(base.meaning, knots=()))


def _verify(draft: Bundle) -> None:
    """Raise ParityError unless the runtime gives the golden pictures the draft's own scores."""
    if GOLDEN not in draft.manifest["files"]:
        return
    with Scorer(draft, backend="onnxruntime") as scorer:
        report = verify_bundle(draft, scorer)
    if not report.passed:
        off = f"{report.max_difference:.1e}, allowed is {report.tolerance:g}"
        raise ParityError(f"the calibrated files differ from the fit by {off}; nothing was written")


def layer_of(base: Bundle, study: Study) -> Layer:
    """The last layer behind the base's score. Raises LabelError if its network does not give its features."""
    if not study.pictures[0].features.shape[1]:
        raise LabelError(
            "this model's network does not give its features, so its last layer cannot be fitted; leave --adapt out"
        )
    return shipped_layer(base.file(spec.QUALITY_FILE))


def _meaning(base: Meaning, result: Calibration) -> Meaning:
    """The base's reasons, its presets moved by a map (none with a layer), the labels' scale, and the preset `own`."""
    labels = result.study.labels
    moved = Meaning(knots=result.knots)
    # Presets are on the base's own scale: through its map backwards (none: as they are), then through the new one.
    presets = {k: float(moved.mapped(base.unmapped(v).astype(np.float32))) for k, v in base.presets.items()}
    if result.layer:
        presets = {}
    if result.chosen:
        presets[PRESET] = result.chosen.threshold
    return Meaning(
        reasons=base.reasons,
        presets=presets,
        kind="good or bad" if labels.binary else "own labels",
        interval=None if labels.binary else min(1.0, fit.spread(result.predicted, labels.values)),
        range=labels.range,
        knots=result.knots,
    )


def _golden(base: Bundle, result: Calibration) -> bytes:
    """golden.jsonl with the new scores of the same pictures."""
    released = (base.meaning.unmapped(golden.tile_scores).astype(np.float32) for golden in load_golden(base))
    # A map is applied to the scores that the base was released with, so that the chain to PyTorch holds.
    moved = Meaning(knots=result.knots)
    tile_scores = _adapted_golden(base, result.layer) if result.layer else map(moved.mapped, released)
    return golden_lines(
        replace(golden, score=float(scores.mean(dtype=np.float64)), tile_scores=tuple(scores.tolist()))
        for golden, scores in zip(load_golden(base), tile_scores, strict=True)
    )


def _adapted_golden(base: Bundle, layer: Layer) -> Iterator[Float32]:
    """The layer's scores of the golden pictures, computed in float64, which the new file must reproduce."""
    with Scorer(plain(base), backend="onnxruntime", features=True) as scorer:
        for golden in load_golden(base):
            found = scorer.score(base.path / golden.file, tiling=golden.tiling)
            off = np.abs(found.tile_scores - base.meaning.unmapped(golden.tile_scores)).max()
            if not off <= 1e-4:
                raise ParityError(f"{base.id} does not score {golden.file} as it was released; run dgiqa-rt verify")
            assert found.tile_features is not None  # the layer came from them
            yield layer.tile_scores(Seen(found.tile_scores, found.tile_features)).astype(np.float32)


def _figures(scores: Float64, labels: Float64) -> dict[str, float | None]:
    figures = (metrics.srocc, metrics.plcc, metrics.rmse)
    return {figure.__name__: rounded(figure(scores, labels), 4) for figure in figures}
