"""`dgiqa-rt score`: images in, a row per image out."""

from __future__ import annotations

import itertools
import math
import sys
from collections import deque
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from dgiqa.cli import options
from dgiqa.cli.common import (
    EXIT_CODES,
    GATE_FAILED,
    INPUTS_FAILED,
    OK,
    Backend,
    Format,
    Precision,
    app,
    data_stream,
    fill,
    say,
    stdout,
    watched,
    writable,
)

if TYPE_CHECKING:
    from dgiqa.report.rows import Report, Row, Summary
    from dgiqa.scorer import Scorer
    from dgiqa.sources import Input


@app.command(epilog=EXIT_CODES)
def score(  # noqa: PLR0917 - the command line's options
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATH", help="Image files, folders, globs, or - for one image on standard input."),
    ] = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Look in subfolders of folders, too.")] = False,
    from_file: Annotated[
        str | None, typer.Option(metavar="LIST", help="Also score the paths in this file, one per line; - reads stdin.")
    ] = None,
    null: Annotated[
        bool, typer.Option("--null", "-0", help="LIST, and what --dry-run prints, is NUL-separated.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Stop after N inputs.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="List what would be scored; score nothing.")] = False,
    bundle: options.Bundle = "small",
    tiles: options.Tiles = "grid",
    backend: options.Backend = Backend.auto,
    precision: options.Precision = Precision.fp32,
    build: options.Build = False,
    engine: options.Engine = None,
    batch: options.Batch = None,
    threads: options.Threads = None,
    parallel: options.Parallel = None,
    workers: options.Workers = None,
    max_pixels: options.MaxPixels = None,
    max_memory: options.MaxMemory = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write rows to FILE: .csv, .jsonl or .json decides how."),
    ] = None,
    format_: options.Format = None,
    json_: Annotated[bool, typer.Option("--json", help="The same as --format json: one document.")] = False,
    details: Annotated[
        bool, typer.Option("--details", help="Add each tile's score and window, and the time of each stage.")
    ] = False,
    fail_under: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, metavar="X", help="Exit with 4 if any image scores below X."),
    ] = None,
    preset: options.Preset = None,
    quiet: options.Quiet = False,
    no_progress: options.NoProgress = False,
) -> None:
    """Score images: a table on a terminal, JSON lines when piped.

    The score is in [0, 1], higher is better; std_error is its standard error over the tiles. An input that cannot be
    scored is a row with its error, and the run goes on.

    \b
    Examples:
      dgiqa-rt score photo.jpg
      dgiqa-rt score -r photos/ -o scores.csv
      dgiqa-rt score 'shots/*.png' --fail-under 0.4
      dgiqa-rt score incoming/ --preset upload
      curl -s https://example.org/a.jpg | dgiqa-rt score -
      find . -name '*.jpg' -print0 | dgiqa-rt score --from-file - -0
    """
    from dgiqa.report.rows import ProgressLine, Report, Summary, format_of

    _check_sources(paths, from_file)
    with options.usage("--output"):
        target = format_of(output) if output else None
    shown = options.shown_format(_wanted_format(format_, json_), output)
    inputs = _inputs(paths or [], from_file, null, recursive)
    if limit is not None:
        inputs = itertools.islice(inputs, limit)
    if dry_run:
        raise typer.Exit(_list(inputs, "\0" if null else "\n"))

    from dgiqa.forward import check_tiling
    from dgiqa.scorer import Scorer

    with options.usage("--tiles"):
        check_tiling(tiles)
    model, fail_under = options.gated(bundle, fail_under, preset, "--fail-under")
    with Report() as report:
        _open(report, output, target, shown, details, fail_under)  # before anything slow: it may not be writable
        inputs, total = _counted(inputs, live=from_file == "-")
        if watched() and not (quiet or no_progress):
            report.line = ProgressLine(sys.stderr, total)
        scorer = Scorer(
            model,
            backend=backend.value,
            precision=precision.value,
            build=build and say,
            engine=engine,
            tiles=tiles,
            batch=batch,
            threads=threads,
            parallel=parallel or (1 if total == 1 else "auto"),
            max_pixels=max_pixels,
            gate=fail_under,
            max_memory=None if max_memory is None else max_memory << 20,
        )
        report.summary = summary = Summary()  # its clock starts here: what came before was loading
        stop = fill(report, _rows(scorer, inputs, workers, details))
    if not quiet:
        written = output if report.complete or summary.scored + summary.failed else None
        _say_summary(summary, scorer, written)
    if stop:
        raise stop
    raise typer.Exit(_verdict(summary, fail_under))


def _check_sources(paths: list[str] | None, from_file: str | None) -> None:
    """Usage errors of where images come from."""
    stdin_uses = (paths or []).count("-") + (from_file == "-")
    if not paths and from_file is None:
        raise typer.BadParameter("name a file, a folder, a glob, or - for standard input", param_hint="PATHS")
    if stdin_uses > 1:
        raise typer.BadParameter("standard input (-) can be read once only", param_hint="PATHS")
    if stdin_uses:
        options.check_stdin("PATHS")


def _wanted_format(format_: Format | None, json_: bool) -> Format | None:
    if json_ and format_ and format_ is not Format.json:
        raise typer.BadParameter(f"--json and --format {format_.value} contradict each other", param_hint="--format")
    return Format.json if json_ else format_


def _inputs(paths: list[str], from_file: str | None, null: bool, recursive: bool) -> Iterator[Input]:
    from dgiqa.sources import expand, listed

    if from_file is None:
        return expand(paths, recursive=recursive)
    try:
        stream = sys.stdin.buffer if from_file == "-" else open(from_file, "rb")  # noqa: SIM115 - read lazily
    except OSError as error:
        raise typer.BadParameter(f"{from_file}: {error.strerror}", param_hint="--from-file") from error
    return itertools.chain(
        expand(paths, recursive=recursive), listed(stream, from_file, null=null, recursive=recursive)
    )


def _counted(inputs: Iterator[Input], live: bool) -> tuple[Iterator[Input], int | None]:
    """The inputs, and how many there are where that is cheap. A live list is not read ahead: its images would wait."""
    from dgiqa.sources import counted

    return (inputs, None) if live else counted(inputs)


def _list(inputs: Iterator[Input], end: str) -> int:
    """--dry-run: names on standard output, what would fail on standard error."""
    stream, failed = data_stream(), False
    for item in inputs:
        if item.error:
            failed = True
            say(f"{item.name}: {item.error}")
        else:
            stream.write(item.name + end)
    return INPUTS_FAILED if failed else OK


def _open(  # noqa: PLR0917 - the options it joins
    report: Report, output: str | None, target: str | None, shown: str | None, details: bool, fail_under: float | None
) -> None:
    from dgiqa.report.rows import AtomicFile, writer_for

    if output and target:
        file = report.own(writable(AtomicFile, output))
        report.write_to(writer_for(target, file.stream, details=details), file)
    if shown:
        stream = stdout() if shown == "table" else data_stream()
        report.write_to(writer_for(shown, stream, details=details, fail_under=fail_under))


def _rows(scorer: Scorer, inputs: Iterator[Input], workers: int | None, details: bool) -> Generator[Row]:
    """A row per input, in the order of the inputs: those without an image are put back in between the scored ones."""
    from dgiqa.forward import Score
    from dgiqa.report.rows import error_row, score_row

    waiting: deque[tuple[int, Input]] = deque()  # (how many images come before it, the input that gives none)
    origin = {"bundle": scorer.bundle.id, "backend": scorer.backend, "tiling": scorer.tiles}

    def images() -> Iterator[tuple[str, str | bytes]]:
        taken = 0
        for item in inputs:
            if item.source is None:
                waiting.append((taken, item))
            else:
                taken += 1
                yield item.name, item.source

    def without_image(before: float) -> Iterator[Row]:
        while waiting and waiting[0][0] <= before:
            item = waiting.popleft()[1]
            yield error_row(item.name, item.error, details=details, **origin)

    for done, result in enumerate(scorer.score_many(images(), workers=workers)):
        yield from without_image(done)
        if isinstance(result, Score):
            yield score_row(result, details=details)
        else:
            yield error_row(result.source, result.message, details=details, **origin)
    yield from without_image(math.inf)


def _verdict(summary: Summary, fail_under: float | None) -> int:
    if fail_under is not None and summary.lowest is not None and summary.lowest < fail_under:
        return GATE_FAILED
    return INPUTS_FAILED if summary.failed else OK


def _say_summary(summary: Summary, scorer: Scorer, output: str | None) -> None:
    """One line on standard error about the whole run."""
    parts = [f"{summary.scored} scored" + (f", {summary.failed} failed" if summary.failed else "")]
    if summary.scored:
        parts.append(f"mean {summary.mean:.4f}, lowest {summary.lowest:.4f}, highest {summary.highest:.4f}")
        parts.append(f"{summary.scored / summary.seconds:.1f} images/s")
    parts.append(f"{scorer.bundle.name} on {scorer.backend}")
    if output:
        parts.append(f"written to {output}")
    say("; ".join(parts), prefix="")
