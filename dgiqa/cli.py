"""`dgiqa-rt`: arguments in; data on standard output, everything else on standard error, and an exit code.

Parse, call, print: what happens in between lives in the other files. Nothing heavy is imported before a command needs
it, so that `--help` is quick.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import os
import signal
import sys
import traceback
from collections import deque
from collections.abc import Generator, Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from dgiqa._version import __version__
from dgiqa.errors import BackendError, DgiqaError

if TYPE_CHECKING:
    from dgiqa.bundle import BundleSummary
    from dgiqa.doctor import Check
    from dgiqa.inputs import Input
    from dgiqa.outputs import ProgressLine, Report, Row, Summary
    from dgiqa.parity import ParityReport
    from dgiqa.scorer import Scorer

PROGRAM = "dgiqa-rt"
OK, RUNTIME_ERROR, USAGE, INPUTS_FAILED, GATE_FAILED, ENVIRONMENT = range(6)

EXIT_CODES = """\b
Exit codes:
  0    every input was scored
  1    runtime error: no such bundle, output cannot be written, ...
  2    wrong usage
  3    some inputs could not be scored (missing, not an image, a folder
       without images); each is a row with status "error"
  4    a score is below --fail-under, or verify is over its tolerance;
       4 wins over 3, so that tolerating 3 never hides a failed gate
  5    this machine cannot do it: ONNX Runtime or a backend is missing
  130  interrupted (143: terminated); rows written so far are kept
"""

app = typer.Typer(
    name=PROGRAM,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EXIT_CODES,
    help="Scores how good photographs look, in [0, 1], higher is better; no reference image is needed.",
)
models_app = typer.Typer(rich_markup_mode=None, help="The models (bundles) that can be used by name.")
app.add_typer(models_app, name="models")


class Format(str, Enum):
    """How rows are written to standard output."""

    table = "table"
    jsonl = "jsonl"
    csv = "csv"
    json = "json"


class Backend(str, Enum):
    """What runs the networks."""

    auto = "auto"
    onnxruntime = "onnxruntime"


class Stopped(BaseException):
    """SIGINT or SIGTERM arrived. Not a KeyboardInterrupt, which the argument parser would catch and answer itself."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number
        self.word = "interrupted" if number == signal.SIGINT else "terminated"


class Signals:
    """The process's handlers of SIGINT and SIGTERM: the first signal raises Stopped, a second one ends us at once."""

    def __init__(self) -> None:
        self.holding = False
        self.held: int | None = None

    def catch(self) -> None:
        """Install the handlers. Signals that are ignored (nohup, background jobs) stay ignored."""
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                signal.signal(number, self._arrived)

    def hold(self) -> None:
        """From here on a signal waits: what is being written must not be torn."""
        self.holding = True

    def release(self) -> None:
        """Raise Stopped if a signal has been waiting, and from here on as soon as one arrives."""
        self.holding = False
        if self.held is not None:
            raise Stopped(self.held)

    def _arrived(self, number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        self.held = number
        if not self.holding:
            raise Stopped(number)


SIGNALS = Signals()


def main() -> None:
    """Run `dgiqa-rt` on sys.argv. Errors become one line on standard error and an exit code, never a traceback.

    DGIQA_DEBUG=1 shows the traceback.
    """
    SIGNALS.catch()
    try:
        app(prog_name=PROGRAM)
    except Stopped as stop:
        _say(stop.word)
        code = stop.exit_code
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else OK if leave.code is None else RUNTIME_ERROR
    except Exception as error:
        code = _explain(error)
    else:
        code = OK
    sys.exit(_flush_stdout(code))


def _version(wanted: bool) -> None:
    if wanted:
        print(PROGRAM, __version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    pass


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
        report.line = _progress_line(total, quiet or no_progress)
        scorer = _scorer(
            bundle, backend=backend.value, tiles=tiles, batch=batch, threads=threads, max_pixels=max_pixels
        )
        report.start()
        stop = _fill(report, _rows(scorer, inputs, workers, details))
    if not quiet:
        _say_summary(report.summary, scorer, output)
    if stop:
        _say(f"{stop.word}; the rows written so far are kept")
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
    return "table" if _stdout().isatty() else "jsonl"


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
    stream, failed = _data_stream(), False
    for item in inputs:
        if item.error:
            failed = True
            _say(f"{item.name}: {item.error}")
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
        stream = _stdout() if shown == "table" else _data_stream()
        writers.append(writer_for(shown, stream, details=details, fail_under=fail_under))
    with Report(writers, file) as report:
        yield report


def _progress_line(total: int | None, unwanted: bool) -> ProgressLine | None:
    from dgiqa.outputs import ProgressLine, is_terminal

    if unwanted or sys.stderr is None or not is_terminal(sys.stderr) or os.environ.get("TERM") == "dumb":
        return None
    return ProgressLine(sys.stderr, total)


def _scorer(
    bundle: str, *, backend: str, tiles: str, batch: int | None, threads: int | None, max_pixels: int | None
) -> Scorer:
    from dgiqa.scorer import BATCH, Scorer

    return Scorer(bundle, backend=backend, tiles=tiles, batch=batch or BATCH, threads=threads, max_pixels=max_pixels)


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
    _say("; ".join(parts), prefix="")


@models_app.callback(invoke_without_command=True)
def models(
    context: typer.Context, json_: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False
) -> None:
    """List the models that can be used by name: size, licences, figures."""
    if context.invoked_subcommand:
        return
    from dgiqa.bundle import list_bundles
    from dgiqa.outputs import to_json

    facts = [_bundle_facts(summary) for summary in list_bundles()]
    if json_:
        print(to_json({"schema_version": 1, "models": facts}), file=_data_stream())
        return
    if not facts:
        _say("no model is installed; give a bundle's folder to --bundle")
    for fact in facts:
        _print_bundle(fact)


def _bundle_facts(summary: BundleSummary) -> dict[str, Any]:
    """What `models` knows about one bundle. Files are not hashed; `verify` and every use of the bundle do that."""
    from dgiqa.bundle import MANIFEST

    facts = {"name": summary.name, "id": summary.id, "title": summary.title, "bytes": summary.bytes}
    facts |= {"path": str(summary.path), "problem": summary.problem}
    if summary.problem:
        return facts
    manifest = json.loads((summary.path / MANIFEST).read_text(encoding="utf-8"))
    licences = {name: entry.get("licence", "unknown") for name, entry in manifest["files"].items()}
    return facts | {
        "licences": licences,
        "figures": manifest.get("model_card", {}),
        "parity": manifest.get("parity", {}),
    }


def _print_bundle(facts: dict[str, Any]) -> None:
    from dgiqa.outputs import BOLD, RED, painter, printable, to_json

    stream = _stdout()
    paint = painter(stream)
    print(f"{paint(BOLD, printable(facts['name']))}  {facts['id']}  {facts['bytes'] / 1e6:.1f} MB", file=stream)
    if facts["problem"]:
        print(paint(RED, f"  cannot be used: {printable(facts['problem'])}"), file=stream)
        return
    by_licence: dict[str, list[str]] = {}
    for file, licence in facts["licences"].items():
        by_licence.setdefault(str(licence), []).append(file)
    lines = [facts["title"], *(f"{licence}: {_few(files)}" for licence, files in by_licence.items())]
    lines += [
        f"{name}: {value if isinstance(value, str) else to_json(value)}" for name, value in facts["figures"].items()
    ]
    print(*(f"  {printable(line)}" for line in [*lines, facts["path"]]), sep="\n", file=stream)


def _few(files: list[str]) -> str:
    return ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")


@models_app.command("path")
def models_path(
    name: Annotated[str, typer.Argument(metavar="NAME|DIR", help="A name of `models`, or a folder.")],
) -> None:
    """Print the folder of a model, its files verified."""
    from dgiqa.bundle import load_bundle

    print(load_bundle(name).path, file=_data_stream())


@app.command()
def doctor(
    bundle: Annotated[str, typer.Option(metavar="NAME|DIR", help="The model to try.")] = "small",
    json_: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Say what works on this machine, and what to do about the rest.

    Exit code 5 when scoring cannot work on this machine.
    """
    from dgiqa.doctor import examine, healthy, report
    from dgiqa.outputs import to_json

    checks = examine(bundle)
    if json_:
        print(to_json(report(checks)), file=_data_stream())
    else:
        _print_checks(checks)
    raise typer.Exit(OK if healthy(checks) else ENVIRONMENT)


def _print_checks(checks: list[Check]) -> None:
    from dgiqa.doctor import healthy
    from dgiqa.outputs import GREEN, RED, YELLOW, painter, printable

    stream = _stdout()
    paint = painter(stream)
    colours = {"ok": GREEN, "warn": YELLOW, "fail": RED}
    width = max(len(check.name) for check in checks)
    for check in checks:
        print(
            f"{paint(colours[check.status], f'{check.status:<4}')}  {check.name:<{width}}  {printable(check.found)}",
            file=stream,
        )
        if check.fix:
            print(f"{'':<{width + 8}}-> {check.fix}", file=stream)
    verdict = "this machine can score images" if healthy(checks) else "this machine cannot score images yet"
    print(f"\n{verdict}", file=stream)


@app.command()
def verify(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="A name of `models`, or a folder.")],
    tolerance: Annotated[
        float | None, typer.Option(min=0.0, metavar="X", help="Largest difference allowed.  [default: 0.0001]")
    ] = None,
    backend: Annotated[Backend, typer.Option(help="What runs the networks: that or an error.")] = Backend.auto,
    json_: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Compare this machine's scores with those a model was released with.

    The images travel with the model. Exit code 4 when one of them, or one tile, differs by more than the tolerance.
    """
    from dgiqa.bundle import load_bundle
    from dgiqa.outputs import to_json
    from dgiqa.parity import TOLERANCE, verify_bundle
    from dgiqa.scorer import Scorer

    loaded = load_bundle(bundle)
    report = verify_bundle(loaded, Scorer(loaded, backend=backend.value), TOLERANCE if tolerance is None else tolerance)
    if json_:
        print(to_json({"schema_version": 1, **report.as_dict()}), file=_data_stream())
    else:
        _print_parity(report)
    raise typer.Exit(OK if report.passed else GATE_FAILED)


@app.command("import-weights")
def import_weights(
    *,
    quality: Annotated[Path, typer.Option(metavar="FILE", help="DGIQA weights, .pth or .safetensors.")],
    depth: Annotated[Path, typer.Option(metavar="FILE", help="Depth Anything V1 weights (ViT-S, B or L).")],
    name: Annotated[str, typer.Option(metavar="NAME", help="What --bundle will call it.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of bundles.  [default: this user's cache]")
    ] = None,
    title: Annotated[str | None, typer.Option(metavar="TEXT", help="One line that says what it is.")] = None,
    licence: Annotated[str | None, typer.Option(metavar="TEXT", help="Licence of the DGIQA weights.")] = None,
    photos: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Photographs to compare on.  [default: scikit-image's]")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle of that name.")] = False,
) -> None:
    """Turn the authors' checkpoints into a model that can be used by name.

    Both networks are exported to ONNX and compared with PyTorch, and so are whole scores; nothing is written when they
    differ by more than their budget. Needs pip install "dgiqa-rt[export]"; takes a few minutes.
    """
    from dgiqa.bundle import user_cache

    try:
        from dgiqa.nn import bundling
    except ImportError as error:
        raise BackendError(f'importing weights needs {error.name}; pip install "dgiqa-rt[cpu,export]"') from error

    _say(f"importing {quality} and {depth}; this takes a few minutes")
    bundle = bundling.import_weights(
        quality,
        depth,
        (out or user_cache() / "bundles") / name,
        name=name,
        title=title,
        licence=licence,
        photos=photos,
        overwrite=overwrite,
    )
    parity = bundle.manifest["parity"]["score"]
    _say(f"largest difference from PyTorch: {parity['max_difference']:.1e} of a score, allowed {parity['tolerance']:g}")
    print(bundle.path, file=_data_stream())


def _print_parity(report: ParityReport) -> None:
    from dgiqa.outputs import GREEN, RED, painter, printable

    stream = _stdout()
    paint = painter(stream)
    print("  here    wanted  difference  worst tile  image", file=stream)
    for row in report.rows:
        within = row.difference <= report.tolerance and row.tile_difference <= report.tolerance
        differences = paint(GREEN if within else RED, f"{row.difference:10.1e}  {row.tile_difference:10.1e}")
        print(f"{row.got:.4f}    {row.expected:.4f}  {differences}  {printable(row.file)}, {row.tiles}", file=stream)
    verdict = paint(GREEN, "the same model") if report.passed else paint(RED, "NOT the same scores")
    used = f"{report.max_difference:.1e}, {report.share:.0%} of the tolerance of {report.tolerance:g}"
    print(f"\n{verdict}: largest difference {used}; {report.bundle} on {report.backend}", file=stream)


def _stdout() -> TextIO:
    """Standard output for the eye: what its encoding lacks is escaped, never an error."""
    if sys.stdout is None:  # closed by the caller
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - lives as long as the process
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    return sys.stdout


def _data_stream() -> TextIO:
    """Standard output for programs: UTF-8 whatever the locale; names that are not UTF-8 keep their bytes."""
    stream = _stdout()
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(encoding="utf-8", errors="surrogateescape", newline="\n")
    return stream


def _say(message: str, prefix: str = f"{PROGRAM}: ") -> None:
    """One line on standard error; a closed one is no reason to fail."""
    from dgiqa.outputs import printable

    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(prefix + printable(message), file=sys.stderr, flush=True)


def _explain(error: Exception) -> int:
    """Put an error into one line, and give its exit code."""
    if os.environ.get("DGIQA_DEBUG") == "1":
        traceback.print_exception(error)
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.split(".")[0] == "onnxruntime":
        error = BackendError('ONNX Runtime is not installed; pip install "dgiqa-rt[cpu]" (or [gpu])')
    expected = isinstance(error, DgiqaError | OSError | ValueError)
    kind = "" if expected else f"{type(error).__name__}: "
    hint = "" if expected else " (DGIQA_DEBUG=1 shows where)"
    text = error.strerror if isinstance(error, OSError) and error.strerror and not error.filename else str(error)
    _say(f"{kind}{text}{hint}", prefix="error: ")
    return ENVIRONMENT if isinstance(error, BackendError | ImportError) else RUNTIME_ERROR


def _flush_stdout(code: int) -> int:
    """Write out what is left. If that fails, standard output leads nowhere, or Python would complain at its end."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        pass
    except OSError as error:
        code = _explain(error)
    else:
        return code
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code
