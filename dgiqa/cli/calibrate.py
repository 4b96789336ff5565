"""`dgiqa-rt calibrate`: labelled pictures in, a bundle on the labels' scale out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from dgiqa.cli import options
from dgiqa.cli.common import app, argument, data_stream, option, print_json, say, stdout
from dgiqa.cli.options import share
from dgiqa.extras import load

if TYPE_CHECKING:
    from dgiqa.calibrate import Calibration

CURVE_SUFFIXES = (".json", ".png")


@app.command()
def calibrate(  # noqa: PLR0917 - the command line's options
    labels: Path = argument(..., "LABELS.csv", "Rows of image,score or image,good|bad (also 1|0, yes|no)."),
    images: Path | None = option(None, "DIR", "Where the images are.  [default: the folder of LABELS]"),
    bundle: options.Bundle = "small",
    name: str | None = option(None, "NAME", "The new model's name for --bundle.  [default: the model's name + -own]"),
    out: options.Bundles = None,
    adapt: bool = option(False, "--adapt", "Fit the network's last layer again, instead of only mapping its scores."),
    precision: float | None = share(None, "Threshold at which this share of the pictures that pass is good.", "P"),
    recall: float | None = share(None, "Threshold at which this share of the good pictures passes.", "R"),
    good: float | None = option(None, "X", "The lowest label of a good picture.  [default: the middle of the scale]"),
    scale: tuple[float, float] | None = option(
        None, "--range LOW HIGH", "The labels' scale.  [default: 0-1, 1-5, 0-10 or 0-100]"
    ),
    lower_is_better: bool = option(False, "--lower-is-better", "The best pictures have the lowest labels."),
    curve: Path | None = option(None, "FILE", "Write precision and recall at every threshold to a .json or .png file."),
    backend: options.Backend = "auto",
    overwrite: options.Overwrite = False,
    json_: options.Json = False,
) -> None:
    """Put scores on your labels' scale, and choose a threshold.

    The result is a new model, for --bundle NAME. Scores stay in [0, 1]: 0 and 1 are the ends of your scale, or, with
    labels good|bad, the score is how likely a picture is good. All figures come from pictures that were left out of
    each fit. With --recall or --precision, a threshold is chosen and kept as --preset own.
    Needs pip install "dgiqa-rt[calibrate]".

    \b
    Examples:
      dgiqa-rt calibrate labels.csv --recall 0.95
      dgiqa-rt calibrate labels.csv --images photos/ --adapt --name ours --recall 0.95
      dgiqa-rt score new/ --bundle ours --preset own
    """
    from dgiqa.bundle import load_bundle
    from dgiqa.calibrate import calibrated, gather, layer_of, look, plain, write_calibrated
    from dgiqa.calibrate.labels import read_labels
    from dgiqa.scorer import Scorer
    from dgiqa.store import user_cache

    both = precision is not None and recall is not None
    options.refuse(both, "give --precision or --recall, and not both", "--precision")
    unknown = curve and curve.suffix.lower() not in CURVE_SUFFIXES
    options.refuse(unknown, f"{curve} ends in neither .json nor .png", "--curve")
    load("scipy.optimize", "calibrating", "scipy", "calibrate")  # before pictures are scored
    if adapt:
        load("onnx", "--adapt", "onnx", "calibrate")
    table = read_labels(labels, scale, lower_is_better=lower_is_better)
    low, high = sorted(table.range)
    outside = good is not None and not low <= good <= high
    options.refuse(outside, f"got {good}, wanted a label of your scale, from {low:g} to {high:g}", "--good")
    base = load_bundle(bundle)
    name = name or f"{base.name}-own"
    target = (out or user_cache() / "bundles") / name
    taken = target.exists() and not overwrite
    options.refuse(taken, f"{target} exists; choose another name or give --overwrite", "--name")
    say(f"scoring {len(table.images)} labelled pictures")
    with Scorer(plain(base), backend=backend, features=True) as scorer:
        study = gather(table, look(scorer, table, images or labels.parent))
    for failure in study.failures:
        say(f"left out: {failure}")
    with options.usage("--precision, --recall"):
        shipped = layer_of(base, study) if adapt else None
        result = calibrated(study, adapt_from=shipped, good=good, precision=precision, recall=recall)
    made = write_calibrated(base, result, target, name=name, source=labels.name, overwrite=overwrite)
    if curve:
        _write_curve(result, curve)
    if json_:
        print_json({**result.report(), "bundle": made.id, "path": str(made.path)})
        return
    _print_report(result)
    print(made.path, file=data_stream())


def _print_report(result: Calibration) -> None:
    report, stream = result.report(), stdout()
    low, high = report["srocc_interval"]
    lines = [
        f"{report['labels']} labels" + (f", pictures left out: {report['failed']}" if report["failed"] else ""),
        "           SROCC    PLCC    RMSE",
    ]
    lines += [
        f"{when:<8}" + "".join(f"{_plain(report[when][figure]):>8}" for figure in ("srocc", "plcc", "rmse"))
        for when in ("before", "after")
    ]
    needed = ", ".join(f"{count} for ±{width}" for width, count in report["labels_for_half_width"].items())
    lines.append(f"SROCC after lies in {low:.3f}..{high:.3f} ({report['confidence']:.0%}); labels needed: {needed}")
    if report["interval"] is not None:
        lines.append(f"80% of labels lie within ±{report['interval']:.3f} of the score")
    if result.chosen:
        p, own = result.chosen, result.study.labels.own(result.chosen.threshold)
        where = "" if result.study.labels.range == (0, 1) else f" ({own:.3g} on your scale)"
        lines.append(f"threshold {p.threshold:.3f}{where}: precision {p.precision:.2f}, recall {p.recall:.2f}")
    else:
        lines.append("no threshold chosen; give --recall or --precision")
    print("\n".join(lines), file=stream)


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _write_curve(result: Calibration, path: Path) -> None:
    points = [point.as_dict() for point in result.points]
    if path.suffix.lower() == ".json":
        path.write_text(json.dumps({"schema_version": 1, "curve": points}, indent=1) + "\n", encoding="utf-8")
        return
    matplotlib = load("matplotlib.figure", "drawing the curve", "matplotlib", "video", instead="end --curve in .json")
    figure = matplotlib.Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="threshold", ylabel="share", xlim=(0, 1), ylim=(0, 1.02))
    for name in ("precision", "recall", "passed"):
        axes.step([p["threshold"] for p in points], [p[name] for p in points], where="pre", label=name)
    if result.chosen:
        axes.axvline(result.chosen.threshold, color="grey", linestyle=":", label="chosen")
    axes.legend()
    figure.savefig(path, dpi=120)
