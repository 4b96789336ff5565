"""`dgiqa-rt score`: images in, a row per image out."""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
from collections import deque
from collections.abc import Generator, Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dgiqa.cli.common import (
    EXIT_CODES,
    GATE_FAILED,
    INPUTS_FAILED,
    OK,
    SIGNALS,
    Backend,
    Precision,
    Stopped,
    app,
    data_stream,
    progress_line,
    say,
    stdout,
)
from dgiqa.errors import DgiqaError

if TYPE_CHECKING:
    from dgiqa.inputs import Input
    from dgiqa.outputs import Report, Row, Summary
    from dgiqa.scorer import Scorer


class Format(str, Enum):
    """How rows are written to standard output."""

    table = "table"
    jsonl = "jsonl"
    csv = "csv"
    json = "json"


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
    bundle: Annotated[str, typer.Option(metavar="NAME|DIR", help="Model: a name of `models`, or a folder.")] = "small",
    tiles: Annotated[
        str,
        typer.Option(
            metavar="TILING",
            help="grid covers every pixel and repeats exactly; official:20[:SEED] draws the authors' random crops.",
        ),
    ] = "grid",
    backend: Annotated[Backend, typer.Option(help="What runs the networks: that or an error.")] = Backend.auto,
    precision: Annotated[
        Precision, typer.Option(help="What they compute in; all but fp32 need an engine that `build` made.")
    ] = Precision.fp32,
    build: Annotated[bool, typer.Option("--build", help="Build that engine first if it is missing or stale.")] = False,
    engine: Annotated[
        Path | None, typer.Option(metavar="DIR", help="An engine's folder, instead of looking in the cache.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Tiles per run of the quality network.  [default: 8]")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Threads of the networks.  [default: usable cores]")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Threads that prepare images.  [default: usable cores, at most 4]"),
    ] = None,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Refuse larger images.  [default: 200000000]")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write rows to FILE: .csv, .jsonl or .json decides how."),
    ] = None,
    format_: Annotated[
        Format | None,
        typer.Option(
            "--format", "-f", help="Rows on standard output.  [default: table on a terminal, else jsonl; none with -o]"
        ),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="The same as --format json: one document.")] = False,
    details: Annotated[
        bool, typer.Option("--details", help="Add each tile's score and window, and the time of each stage.")
    ] = False,
    fail_under: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, metavar="X", help="Exit with 4 if any image scores below X."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary, only errors.")] = False,
    no_progress: Annotated[bool, typer.Option("--no-progress", help="No progress line.")] = False,
) -> None:
    """Score images: a table on a terminal, JSON lines when piped.

    The score is in [0, 1], higher is better; std_error is its standard error over the tiles. An input that cannot be
    scored is a row with its error, and the run goes on.

    \b
    Examples:
      dgiqa-rt score photo.jpg
      dgiqa-rt score -r photos/ -o scores.csv
      dgiqa-rt score 'shots/*.png' --fail-under 0.4
      curl -s https://example.org/a.jpg | dgiqa-rt score -
      find . -name '*.jpg' -print0 | dgiqa-rt score --from-file - -0
    """
    _check_sources(paths, from_file)
    target = _file_format(output)
    shown = _shown_format(format_, json_, output)
    inputs = _inputs(paths or [], from_file, null, recursive)
    if limit is not None:
        inputs = itertools.islice(inputs, limit)
    if dry_run:
        raise typer.Exit(_list(inputs, "\0" if null else "\n"))
    _check_tiling(tiles)
    with _report(output, target, shown, details, fail_under) as report:  # before anything slow: it may not be writable
        inputs, total = _counted(inputs, live=from_file == "-")
        report.line = progress_line(total, quiet or no_progress)
        scorer = _scorer(
            bundle,
            backend=backend.value,
            precision=precision.value,
            build=build and say,
            engine=engine,
            tiles=tiles,
            batch=batch,
            threads=threads,
            max_pixels=max_pixels,
        )
        report.start()
        stop = _fill(report, _rows(scorer, inputs, workers, details))
    if not quiet:
        _say_summary(report.summary, scorer, output)
    if stop:
        say(f"{stop.word}; the rows written so far are kept")
        raise typer.Exit(stop.exit_code)
    raise typer.Exit(_verdict(report.summary, fail_under))


def _check_sources(paths: list[str] | None, from_file: str | None) -> None:
    """Usage errors of where images come from."""
    stdin_uses = (paths or []).count("-") + (from_file == "-")
    if not paths and from_file is None:
        raise typer.BadParameter("name a file, a folder, a glob, or - for standard input", param_hint="PATHS")
    if stdin_uses > 1:
        raise typer.BadParameter("standard input (-) can be read once only", param_hint="PATHS")
    if stdin_uses and (sys.stdin is None or sys.stdin.isatty()):
        raise typer.BadParameter(
            "standard input (-) is closed or a terminal; pipe something into it", param_hint="PATHS"
        )


def _file_format(output: str | None) -> str | None:
    from dgiqa.outputs import format_of

    try:
        return format_of(output) if output else None
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--output") from error


def _shown_format(wanted: Format | None, json_: bool, output: str | None) -> str | None:
    """What standard output gets; None when the rows go to a file only."""
    if json_ and wanted and wanted is not Format.json:
        raise typer.BadParameter(f"--json and --format {wanted.value} contradict each other", param_hint="--format")
    if json_:
        return "json"
    if wanted:
        return wanted.value
    if output:
        return None
    return "table" if stdout().isatty() else "jsonl"


def _check_tiling(tiles: str) -> None:
    from dgiqa.preprocess import windows_for

    try:
        windows_for(tiles, 224, 224, 224)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--tiles") from error


def _inputs(paths: list[str], from_file: str | None, null: bool, recursive: bool) -> Iterator[Input]:
    from dgiqa.inputs import expand, listed

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
    from dgiqa.inputs import counted

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


@contextlib.contextmanager
def _report(
    output: str | None, target: str | None, shown: str | None, details: bool, fail_under: float | None
) -> Iterator[Report]:
    from dgiqa.outputs import AtomicFile, Report, writer_for

    file = None
    try:
        file = AtomicFile(output) if output else None
    except OSError as error:
        raise DgiqaError(f"cannot write {output}: {error.strerror or error}; nothing was scored") from error
    writers = [writer_for(target, file.stream, details=details)] if file and target else []
    if shown:
        stream = stdout() if shown == "table" else data_stream()
        writers.append(writer_for(shown, stream, details=details, fail_under=fail_under))
    with Report(writers, file) as report:
        yield report


def _scorer(bundle: str, *, batch: int | None, **options: Any) -> Scorer:
    from dgiqa.scorer import BATCH, Scorer

    return Scorer(bundle, batch=batch or BATCH, **options)


def _rows(scorer: Scorer, inputs: Iterator[Input], workers: int | None, details: bool) -> Generator[Row]:
    """A row per input, in the order of the inputs: those without an image are put back in between the scored ones."""
    from dgiqa.outputs import error_row, score_row
    from dgiqa.scorer import Score

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


def _fill(report: Report, rows: Generator[Row]) -> Stopped | None:
    """Write every row. Returns the signal that ended it early, if one did."""
    try:
        with contextlib.closing(rows):  # or its threads would go on
            for row in rows:
                SIGNALS.hold()
                report.add(row)
                SIGNALS.release()
        report.complete = True
    except Stopped as stop:
        return stop
    except BrokenPipeError:
        pass  # whoever read standard output has seen enough
    finally:
        SIGNALS.hold()  # what is left, closing the documents, is quick
    return None


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
