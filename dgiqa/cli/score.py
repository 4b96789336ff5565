"""`dgiqa-rt score`: images in, a row per image out."""

from __future__ import annotations

import itertools
import os
import sys
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dgiqa.cli import options
from dgiqa.cli.common import app, argument, data_stream, fill, leave, opened, option, say, show_progress
from dgiqa.cli.options import share, whole

if TYPE_CHECKING:
    from dgiqa.report.files import Report
    from dgiqa.report.rows import Summary
    from dgiqa.scorer import Scorer
    from dgiqa.sources import Input, Reading


@app.command()
@options.joined()
def score(
    paths: list[str] | None = argument(
        None,
        "PATH",
        "Images, folders, globs, tar shards ('{000..199}.tar'), zips, tables, addresses, or - for one image "
        "on standard input.",
    ),
    from_file: str | None = option(None, "LIST", "Also score the paths in this file, one per line; - reads stdin."),
    null: bool = option(False, "--null -0", "Names in LIST and names printed by --dry-run end in NUL."),
    *,
    reading: Any,
    limit: int | None = whole(None, "Stop after N inputs."),
    dry_run: bool = option(False, "--dry-run -n", "List what would be scored; score nothing."),
    opening: dict[str, Any],
    workers: options.Workers = None,
    output: options.Output = None,
    sidecar: str | None = option(
        None, "beside|DIR", "Write a JSON file for each image, next to it or in DIR, in the same subfolders."
    ),
    html: str | None = option(None, "FILE.html", "Draw the scores as a page that needs no network."),
    sort: bool = option(False, "--sort", "Show the best first, once all are scored."),
    top: str | None = option(None, "N|P%", "Show only the N best, the best first."),
    resume: bool = option(
        False, "--resume", "With -o: keep FILE's rows with a score, and score all other images, failed ones again."
    ),
    format_: options.Format = None,
    json_: bool = option(False, "--json", "Same as --format json: one document."),
    details: bool = option(False, "--details", "Add each tile's score and window, and the time of each stage."),
    fail_under: float | None = share(None, "Exit with code 4 if any image scores below X."),
    preset: options.Preset = None,
    quiet: options.Quiet = False,
    no_progress: options.NoProgress = False,
) -> None:
    """Score images: a table on a terminal, JSON lines when piped.

    The score is in [0, 1], and higher is better. std_error says how much the picture's tiles differ. An input that
    cannot be scored becomes a row with its error, and the run continues.

    \b
    Examples:
      dgiqa-rt score photo.jpg
      dgiqa-rt score -r photos/ -o scores.csv --resume
      dgiqa-rt score 'shots/*.png' --fail-under 0.5
      dgiqa-rt score incoming/ --preset upload --html report.html
      dgiqa-rt score photos/ --top 10
      curl -s https://example.org/a.jpg | dgiqa-rt score -
      find . -name '*.jpg' -print0 | dgiqa-rt score --from-file - -0
      dgiqa-rt score 'set/{000..199}.tar' -o scores.parquet
      dgiqa-rt score products.csv --column image_url --key sku --remote
    """
    from dgiqa.batch.resume import Earlier
    from dgiqa.report.files import Report
    from dgiqa.report.rows import Summary, gate_sentence

    _check(paths or [], from_file, output, html=html, sidecar=sidecar, resume=resume)
    if from_file is None:
        options.check_columns(paths or [], reading)
    both = json_ and format_ not in (None, "json")
    options.refuse(both, f"--json and --format {format_} contradict each other", "--format")
    format_ = "json" if json_ else format_
    _check_order(sort, top, alone=output is not None and format_ is None)
    inputs: Iterator[Input] = itertools.islice(_inputs(paths or [], from_file, null, reading), limit)
    if dry_run:
        failed = _list(inputs, "\0" if null else "\n")
        _say_left_out(reading.left_out)
        leave(None, failed=failed)

    from dgiqa.batch.scan import rows_of
    from dgiqa.scorer import Scorer
    from dgiqa.sources import counted

    opening["bundle"], fail_under = options.gated(opening["bundle"], fail_under, preset, "--fail-under")
    earlier = Earlier(output) if output and resume else None
    new = output is not None and not os.path.exists(output)
    with Report() as report:
        # Open the output before anything slow: it may not be writable.
        options.write_rows(report, output, format_, details=details, ordered=(sort, top))
        _write_beside(report, sidecar, html, ", ".join(paths or [str(from_file)]), fail_under)
        # A list from a pipe is not read ahead: its images would wait.
        inputs, total = (inputs, None) if from_file == "-" else counted(inputs)
        show_progress(report, hidden=quiet or no_progress)
        if total == 1 and opening["parallel"] == "auto":
            opening["parallel"] = 1
        scorer = Scorer(**opening, gate=fail_under)
        report.needed = fail_under is not None
        origin = scorer.origin
        run = origin | {"preprocess_version": scorer.bundle.preprocess.version, "precision": scorer.precision}
        # The summary's clock starts here, after loading.
        report.summary = summary = Summary(total, run=run)
        if earlier:
            for row in earlier.rows(origin, scorer.gate, details):
                summary.kept += 1
                report.add(row)
            inputs = earlier.rest(inputs)
        if earlier or new:
            report.grow()
        stop = fill(report, rows_of(scorer, inputs, workers, details=details))
    if earlier:
        earlier.forget()
    if not quiet:
        _say_summary(summary, scorer, output if report.complete or summary.scored + summary.failed else None)
        _say_left_out(reading.left_out)
    if fail_under is not None and summary.scored and (summary.below or not quiet):
        say(gate_sentence(summary.below, summary.scored, "image", fail_under), prefix="")
    leave(stop, below=summary.below, failed=summary.failed)


def _check(
    paths: list[str],
    from_file: str | None,
    output: str | None,
    *,
    html: str | None,
    sidecar: str | None,
    resume: bool,
) -> None:
    """Raise usage errors about where images come from and where rows go."""
    stdin_uses = paths.count("-") + (from_file == "-")
    options.refuse(not paths and from_file is None, "name a file, a folder, a glob, or - for standard input", "PATHS")
    options.refuse(stdin_uses > 1, "standard input (-) can be read only once", "PATHS")
    if stdin_uses:
        options.check_stdin("PATHS")
    options.check_files([*paths, from_file], {"--output": output, "--html": html})
    options.check_suffix(output)
    wrong = sidecar and os.path.exists(sidecar) and not os.path.isdir(sidecar)
    options.refuse(wrong, f"{sidecar} is a file; wanted a folder, or beside", "--sidecar")
    options.refuse(resume and not output, "name the file to go on with: -o FILE", "--resume")


def _check_order(sort: bool, top: str | None, alone: bool) -> None:
    """Raise usage errors about the order in which rows are shown. alone: rows go only into a file."""
    from dgiqa.batch.choose import Choice

    with options.usage("--top"):
        Choice(top=top)
    advice = "give --format too, or let `dgiqa-rt filter FILE --sort -o SORTED` write a sorted file"
    wrong = alone and (sort or top)
    options.refuse(wrong, f"it orders the rows shown, and -o alone shows none; {advice}", "--sort")


def _write_beside(report: Report, sidecar: str | None, html: str | None, name: str, gate: float | None) -> None:
    """Open the sidecars and the page, which are written in addition to the rows."""
    from dgiqa.batch.summary import PageWriter
    from dgiqa.report.sidecar import SidecarWriter

    if sidecar:
        report.write_to(SidecarWriter(sidecar), shown=False)
    if html:
        file = opened(html)
        report.write_to(PageWriter(file, name, gate), file)


def _inputs(paths: list[str], from_file: str | None, null: bool, reading: Reading) -> Iterator[Input]:
    from dgiqa.sources import expand, listed

    found = expand(paths, reading)
    if from_file is None:
        return found
    stream = sys.stdin.buffer if from_file == "-" else options.opened_list(from_file, null)
    return itertools.chain(found, listed(stream, from_file, reading, null=null))


def _list(inputs: Iterator[Input], end: str) -> bool:
    """--dry-run: print names on standard output, failures on standard error. Returns whether any would fail."""
    from dgiqa.report.rows import printable

    stream, failed = data_stream(), False
    shown = printable if stream.isatty() else str  # a name must not move the cursor
    for item in inputs:
        if item.error:
            failed = True
            say(f"{item.name}: {item.error}")
        else:
            stream.write(shown(item.name) + end)
    return failed


def _say_left_out(left_out: Counter[str]) -> None:
    """Print one line about files in folders and archives that are no images, judged by their names."""
    from dgiqa.report.rows import plural
    from dgiqa.sources.inputs import VIDEO_SUFFIXES

    if not left_out:
        return
    kinds = ", ".join(f"{n} {suffix or 'without a suffix'}" for suffix, n in left_out.most_common())
    advice = "; dgiqa-rt video scores videos" if any(suffix in VIDEO_SUFFIXES for suffix in left_out) else ""
    advice += "; name archives to score what they hold" if {".tar", ".zip"} & left_out.keys() else ""
    total = sum(left_out.values())
    say(f"left out: {plural(total, 'file')} ({kinds}){advice}", prefix="")


def _say_summary(summary: Summary, scorer: Scorer, output: str | None) -> None:
    """Print one line on standard error about the whole run."""
    scored = summary.scored - summary.kept
    now = f" now, {summary.kept} kept" if summary.kept else ""
    parts = [f"{scored} scored{now}" + (f", {summary.failed} failed" if summary.failed else "")]
    if summary.scored:
        parts.append(f"mean {summary.mean:.4f}, lowest {summary.lowest:.4f}, highest {summary.highest:.4f}")
    if scored:
        parts.append(f"{scored / summary.seconds:.1f} images/s")
    parts.append(f"{scorer.bundle.name} on {scorer.backend}")
    if output:
        parts.append(f"written to {output}")
    say("; ".join(parts), prefix="")
