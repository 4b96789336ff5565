"""`dgiqa-rt models`, `verify`, `import-weights` and `doctor`: bundles, and the machine they run on."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dgiqa.cli import options
from dgiqa.cli.common import (
    ENVIRONMENT,
    OK,
    UsualFirst,
    app,
    argument,
    data_stream,
    leave,
    option,
    print_json,
    say,
    show,
    stdout,
)
from dgiqa.extras import load

if TYPE_CHECKING:
    from dgiqa.bundle import BundleSummary
    from dgiqa.parity import ParityReport, Reference, Sweep
    from dgiqa.scorer import Scorer


models_app = typer.Typer(cls=UsualFirst, rich_markup_mode=None, help="The models (bundles) that can be used by name.")
app.add_typer(models_app, name="models")


@models_app.callback(invoke_without_command=True)
def models(context: typer.Context, json_: options.Json = False) -> None:
    """List the models that can be used by name: size, licences, figures."""
    if context.invoked_subcommand:
        return
    from dgiqa.bundle import list_bundles

    facts = [_bundle_facts(summary) for summary in list_bundles()]
    if json_:
        print_json({"models": facts})
        return
    if not facts:
        say("no model is installed; give a bundle's folder to --bundle")
    for fact in facts:
        _print_bundle(fact)


def _bundle_facts(summary: BundleSummary) -> dict[str, Any]:
    """What `models` says about one bundle. Files are not hashed; `verify` and every use of the bundle do that."""
    from dgiqa.bundle import MANIFEST

    facts = {"name": summary.name, "id": summary.id, "title": summary.title, "bytes": summary.bytes}
    facts |= {"path": str(summary.path), "problem": summary.problem}
    if summary.problem:
        return facts
    manifest = json.loads((summary.path / MANIFEST).read_text(encoding="utf-8"))
    return facts | {
        "licences": {name: entry.get("licence", "unknown") for name, entry in manifest["files"].items()},
        "presets": manifest.get("presets", {}),
        "figures": manifest.get("model_card", {}),
        "parity": manifest.get("parity", {}),
    }


def _print_bundle(facts: dict[str, Any]) -> None:
    from dgiqa.report.rows import printable, to_json

    show((printable(facts["name"]), "bold"), f"  {facts['id']}  {facts['bytes'] / 1e6:.1f} MB")
    if facts["problem"]:
        show((f"  cannot be used: {printable(facts['problem'])}", "red"))
        return
    by_licence: dict[str, list[str]] = {}
    for file, licence in facts["licences"].items():
        by_licence.setdefault(str(licence), []).append(file)
    lines = [facts["title"]]
    for licence, files in by_licence.items():
        more = f" and {len(files) - 3} more" if len(files) > 3 else ""
        lines.append(f"{licence}: {', '.join(files[:3])}{more}")
    if facts["presets"]:
        presets = {name: max(f"{value:.2f}", f"{value:.3g}", key=len) for name, value in facts["presets"].items()}
        lines.append("presets: " + ", ".join(f"{name} {value}" for name, value in presets.items()))
    for name, value in facts["figures"].items():
        calibrated = isinstance(value, dict) and {"labels", "method", "before", "after"} <= value.keys()
        said = value if isinstance(value, str) else _calibrated(value) if calibrated else to_json(value)
        lines.append(f"{name}: {said}")
    for line in (*lines, facts["path"]):
        show(f"  {printable(line)}")


def _calibrated(card: dict[str, Any]) -> str:
    """What `calibrate` found, in a sentence."""
    how = "last layer fitted again" if card["method"] == "adapt" else "scores mapped"
    before, after = (card[when].get("srocc") for when in ("before", "after"))
    moved = "" if None in (before, after) else f", SROCC {before:.3f} before and {after:.3f} after"
    chosen = f", threshold {card['threshold']['threshold']:.3f}" if card.get("threshold") else ""
    return f"{how} to {card['labels']} labels{moved}{chosen}"


@models_app.command("path")
def models_path(name: str = argument(..., "NAME|DIR", "A name of `models`, or a folder.")) -> None:
    """Verify a model's files and print their folder."""
    from dgiqa.bundle import load_bundle

    print(load_bundle(name).path, file=data_stream())


@app.command()
def doctor(
    bundle: str = option("small", "NAME|DIR", "The model to try."),
    json_: options.Json = False,
) -> None:
    """Say what works on this machine, and how to get the rest.

    Exit code 5 when scoring cannot work on this machine.
    """
    from dgiqa.doctor import examine, healthy, report
    from dgiqa.report.rows import printable

    checks = examine(bundle)
    well, width = healthy(checks), max(len(check.name) for check in checks)
    if json_:
        print_json(report(checks))
    else:
        colours = {"ok": "green", "warn": "yellow", "fail": "red"}
        for check in checks:
            absent = check.status == "ok" and "not installed" in check.found  # and nothing needs it
            show(
                (f"{'-' if absent else check.status:<4}", colours[check.status]),
                f"  {check.name:<{width}}  {printable(check.found)}",
            )
            if check.fix:
                show(f"{'':<{width + 8}}-> {check.fix}")
        show(f"\nthis machine {'can' if well else 'cannot'} score images{'' if well else ' yet'}")
    raise typer.Exit(OK if well else ENVIRONMENT)


DepthVersionOption = Annotated[
    Literal["v1", "v2"] | None,
    option(..., "--depth-version", "The version of the Depth Anything weights, if the file does not say."),
]


@app.command()
@options.joined(["backend", "precision", "build", "engine"])
def verify(
    bundle: str = argument(..., "BUNDLE", "A name of `models`, or a folder."),
    tolerance: float | None = option(
        None, "X", "Largest difference allowed.  [default: 0.0001 in fp32, 0.002 in fp16, else 0.02]", min=0.0
    ),
    *,
    opening: dict[str, Any],
    quality: Path | None = option(
        None, "FILE", "The model's quality weights, to compare with PyTorch on this machine."
    ),
    depth: Path | None = option(None, "FILE", "The model's depth weights, with --quality."),
    depth_version: DepthVersionOption = None,
    quick: bool = option(False, "--quick", "Golden images only, without distorting them."),
    json_: options.Json = False,
) -> None:
    """Compare this machine's scores with PyTorch's.

    The images and their scores come with the model, so PyTorch is not needed. Engines other than ONNX Runtime in fp32
    are also compared with it on blurred, noisy, compressed and dark copies of the images. With the weights that the
    model was made from (--quality, --depth), PyTorch scores these copies instead, or with --quick only the images. The
    exit code is 4 when a score differs by more than the tolerance; in fp32, also when a tile's score does.
    """
    from dgiqa.bundle import load_bundle
    from dgiqa.parity import verify_bundle
    from dgiqa.scorer import Scorer

    loaded = load_bundle(bundle)
    alone = (depth is None) == (quality is not None and len(loaded.networks) > 1)
    options.refuse(alone, "--quality and --depth go together, unless there is no depth network")
    torch: Reference | None = None
    if quality:
        reference = load("dgiqa.nn.reference", "comparing with PyTorch", "torch", "cpu", "torch")
        torch = reference.open_reference(loaded, quality, depth, depth_version)
    with Scorer(loaded, **opening) as scorer:
        report = verify_bundle(loaded, scorer, tolerance)
        swept = _swept(scorer, torch, tolerance, quick) if torch or not quick else None
    if json_:
        print_json({**report.as_dict(), "sweep": swept.as_dict() if swept else None})
    else:
        _print_compared(
            report,
            ("here", "wanted", "difference", "worst tile", "image"),
            [(r.got, r.expected, (r.difference, r.tile_difference), f"{r.file}, {r.tiling}") for r in report.rows],
            ("the same model", "NOT the same scores"),
            f"; {report.bundle} on {report.backend}",
        )
    if swept and not json_:
        print(file=stdout())
        figures = f"mean {swept.mean_difference:.1e}; SROCC {swept.srocc:.4f}"
        _print_compared(
            swept,
            ("here", "wanted", "difference", f"worst of {swept.images}{' distorted' * (not quick)} images"),
            [(r.got, r.expected, (r.difference,), f"{r.file}, {r.distortion}") for r in swept.worst],
            ("within its budget", "OVER its budget"),
            f", {figures}; {swept.backend} against {swept.reference}",
        )
    leave(None, below=not report.passed or (swept is not None and not swept.passed))


def _swept(scorer: Scorer, torch: Reference | None, tolerance: float | None, quick: bool) -> Sweep | None:
    """The sweep against PyTorch, else ONNX Runtime in fp32; None for the latter itself, and if it is not installed."""
    from dgiqa.parity import sweep
    from dgiqa.runtime.backends import ONNXRUNTIME, backends
    from dgiqa.scorer import Scorer

    if torch:
        return sweep(scorer, torch, tolerance, quick=quick)
    if ONNXRUNTIME not in backends():
        return None
    with Scorer(scorer.bundle, backend=ONNXRUNTIME) as reference:
        return None if reference.backend == scorer.backend else sweep(scorer, reference, tolerance)


@app.command("import-weights")
def import_weights(
    *,
    quality: Path = option(..., "FILE", "DGIQA or GlintIQA weights, .pth or .safetensors."),
    depth: Path | None = option(None, "FILE", "Depth Anything, or `small`'s network. GlintIQA has none."),
    name: str = option(..., "NAME", "The model's name for --bundle."),
    out: options.Bundles = None,
    title: str | None = option(None, "TEXT", "One line that describes it."),
    scale: str | None = option(
        None, "WORST:BEST", "GlintIQA: the worst and the best label it was trained on, such as 1:5."
    ),
    licence: str | None = option(None, "TEXT", "Licence of the quality weights."),
    photos: Path | None = option(None, "DIR", "Photographs for the comparison.  [default: scikit-image's]"),
    attention: Literal["standard", "folded", "op"] | None = option(  # dgiqa.nn.deploy.ATTENTIONS
        None,
        "",
        "How to export window attention: folded, with windows as heads, as TensorRT fuses it; standard; or "
        "op, one operator for build --plugin.  [default: folded, where there are windows]",
    ),
    depth_version: DepthVersionOption = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Turn checkpoints into a model that can be used by name: the authors' or your own.

    Both networks are exported to ONNX, and they and whole scores are compared with PyTorch. Nothing is written when a
    difference is over its budget. Needs pip install "dgiqa-rt[export]"; takes a few minutes.
    """
    from dgiqa.store import user_cache

    bundling = load("dgiqa.nn.bundling", "importing weights", "torch", "cpu", "export")
    say(f"importing {quality}{f' and {depth}' if depth else ''}; this takes a few minutes")
    bundle = bundling.import_weights(
        quality,
        depth,
        (out or user_cache() / "bundles") / name,
        name=name,
        title=title,
        licence=licence,
        photos=photos,
        attention=attention,
        depth_version=depth_version,
        scale=None if scale is None else _scale(scale),
        overwrite=overwrite,
    )
    parity = bundle.manifest["parity"]["score"]
    say(f"largest difference from PyTorch: {parity['max_difference']:.1e} of a score, allowed {parity['tolerance']:g}")
    print(bundle.path, file=data_stream())


def _scale(text: str) -> tuple[float, float]:
    try:
        worst, best = map(float, text.split(":"))
    except ValueError:
        worst = best = math.nan
    wrong = worst == best or not (math.isfinite(worst) and math.isfinite(best))
    options.refuse(wrong, f"{text!r}, wanted two different numbers such as 1:5", "--scale")
    return worst, best


def _print_compared(
    found: ParityReport | Sweep,
    header: tuple[str, ...],
    rows: list[tuple[float, float, tuple[float, ...], str]],
    verdicts: tuple[str, str],
    about: str,
) -> None:
    """Print a table of (score here, score wanted, differences, image), red over the tolerance, and the verdict."""
    from rich.text import Text

    from dgiqa.report.rows import printable
    from dgiqa.report.terminal import console_for, print_table

    lines: list[Sequence[str | Text]] = []
    for got, wanted, differences, name in rows:
        colour = "green" if max(differences) <= found.tolerance else "red"
        told = (Text(f"{difference:.1e}", colour) for difference in differences)
        lines.append((f"{got:.4f}", f"{wanted:.4f}", *told, printable(name)))
    print_table(console_for(stdout()), [header, *lines], numbers=range(2, len(header) - 1))
    verdict = (verdicts[0], "green") if found.passed else (verdicts[1], "red")
    used = f"{found.max_difference:.1e}, {found.share:.0%} of the tolerance of {found.tolerance:g}"
    show("\n", verdict, f": largest difference {used}{about}")
