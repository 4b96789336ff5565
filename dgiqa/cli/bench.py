"""`dgiqa-rt bench`: how fast this machine scores, and with which options."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dgiqa.cli import options
from dgiqa.cli.common import Backend, app, argument, option, print_json, say, show, stdout

if TYPE_CHECKING:
    from dgiqa.speed import Survey

COLUMNS = ("backend", "precision", "batch", "threads", "parallel", "ms per image", "p90", "images/s", "drift")


@app.command()
def bench(  # noqa: PLR0917 - the command line's options
    paths: list[str] | None = argument(
        None, "IMAGE", "Images to measure with; at most 32.  [default: the model's own]"
    ),
    bundle: options.Bundle = "small",
    backend: Backend = option("auto", "", "Measure this one only."),
    max_drift: float = option(0.02, "X", "Recommend no setting whose scores differ from fp32 by more.", min=0.0),
    seconds: float = option(90.0, "S", "How long to measure; opening the networks adds to it.", min=0.1),
    json_: options.Json = False,
    quiet: bool = option(False, "--quiet -q", "No progress, only the result."),
) -> None:
    """Say how fast this machine scores, and with which options.

    Every engine that runs here is measured in turn: its latency (one image at a time), its throughput (many at once)
    and its drift (how far scores are from fp32). Then it tries threads and batches of the fastest. Takes two minutes.

    \b
    Examples:
      dgiqa-rt bench
      dgiqa-rt bench photos/*.jpg --max-drift 0.002
      dgiqa-rt bench --bundle koniq --backend openvino --json
    """
    from dgiqa.bundle import load_bundle
    from dgiqa.speed import photographs, read, survey

    loaded = load_bundle(bundle)
    found = survey(
        loaded,
        read(paths) if paths else photographs(loaded),
        backends=None if backend == "auto" else [backend],
        max_drift=max_drift,
        seconds=seconds,
        progress=(lambda line: None) if quiet else say,
    )
    if json_:
        print_json(found.as_dict(bundle))
    else:
        _print(found, bundle)


def _print(found: Survey, bundle: str) -> None:
    """Print the table, the two recommendations, and the engines that could be built."""
    from dgiqa.report.rows import plural, printable
    from dgiqa.report.terminal import console_for, print_table

    show(f"{found.bundle} on {plural(found.images, 'image')}; drift against {found.reference}\n")
    lines: list[tuple[str, ...]] = [COLUMNS]
    for row in found.rows:
        s, mark = row.setting, "" if row.drift <= found.max_drift else " !"  # over the limit
        sizes = (s.backend, s.precision, str(s.batch or "auto"), str(s.threads), str(s.parallel or "auto"))
        times = (f"{row.ms.median:.1f}", f"{row.ms.p90:.1f}", f"{row.images_per_second:.1f}")
        lines.append((*sizes, *times, f"{row.drift:.1e}{mark}"))
    print_table(console_for(stdout()), lines, numbers=range(2, len(COLUMNS)))
    for purpose, best in (("latency", found.latency), ("throughput", found.throughput)):
        advice = best.setting.command(bundle) if best else f"nothing keeps to a drift of {found.max_drift:g}"
        show(f"\nfor {purpose}:\n  ", (printable(advice), "bold"))
    if found.missing:
        show("\nnot measured:")
    for item in found.missing:
        show("  ", (f"{item.backend} {item.precision}", "yellow"), f": {printable(item.fix)}")
