"""What all commands share: the application, exit codes, signals, and where output goes."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TextIO, TypeVar, get_args

import typer
from typer.core import TyperGroup

from dgiqa.errors import BackendError, DgiqaError, ParityError
from dgiqa.extras import install

if TYPE_CHECKING:
    from dgiqa.report.files import OutputFile, Report
    from dgiqa.report.rows import Row

PROGRAM = "dgiqa-rt"
OK, RUNTIME_ERROR, USAGE, INPUTS_FAILED, GATE_FAILED, ENVIRONMENT = range(6)

EXIT_CODES = """\b
Exit codes:
  0    every input was scored
  1    runtime error: no such bundle, output cannot be written, the one
       picture of explain or the videos of --against cannot be read, ...
  2    wrong usage
  3    some inputs could not be scored (missing, not an image, a folder
       without images); each is a row with status "error". Also: filter could
       not copy, link or move a file
  4    a score is below --fail-under or the preset, a drop is over --max-drop,
       watch saw the scores move, or verify or build is over its tolerance;
       4 wins over 3, so that tolerating 3 never hides it
  5    this machine cannot do it: ONNX Runtime or a backend is missing
  130  interrupted (143: terminated, 129: the terminal closed); the rows
       written so far are kept
"""

T = TypeVar("T")
FIRST = ("score", "video", "scan", "filter", "verify", "bench", "models", "doctor")  # in --help; the others follow


class UsualFirst(TyperGroup):
    """Commands in the order of use, each with its first clause as summary, and with the exit codes."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for command in self.commands.values():
            command.short_help = re.split(r"[.:](?:\s|$)", command.help or "", maxsplit=1)[0]
            command.epilog = EXIT_CODES
            arguments: list[Any] = command.params
            for each in arguments:
                if each.param_type_name == "argument":  # its name says enough; typer adds <list[str]>
                    each.display_type_rich = lambda ctx: None

    def list_commands(self, ctx: Any) -> list[str]:
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = _worded(error)
            raise


def _worded(error: typer.BadParameter) -> str:
    """What a value was and what was wanted, for values that typer itself refuses."""
    wanted = getattr(error.param, "type_descriptor", None)
    if wanted is None or not error.message:
        return error.message
    info = wanted.parameter_info
    refused: list[Any] = getattr(error.__cause__, "errors", list)()  # pydantic's
    if info.exists:
        return f"{error.message.rstrip('.')}; wanted a {'file' if info.file_okay else 'folder'} that can be read"
    kind = next(iter(get_args(wanted.annotation)), wanted.annotation)
    if not refused or not (wanted.choices or kind in (int, float)):
        return error.message
    limits = {"from": info.min, "to": info.max} if None not in (info.min, info.max) else {"of at least": info.min}
    said = "".join(f" {word} {limit:g}" for word, limit in limits.items() if limit is not None)
    number = f"a {'whole ' * (kind is int)}number{said}"
    asked = f"one of: {', '.join(map(str, wanted.choices))}" if wanted.choices else number
    return f"got {refused[0]['input']}, wanted {asked}"


app = typer.Typer(
    cls=UsualFirst,
    name=PROGRAM,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EXIT_CODES,
    help="Score how good photographs look, in [0, 1], higher is better. No reference image is needed.",
)


def option(default: Any, shown: str, told: str, **limits: Any) -> Any:
    """An option as --help shows it. shown: its names, unless they are the parameter's, and its value: "-o FILE"."""
    words = shown.split()
    names = [word for word in words if word.startswith("-")]
    return typer.Option(default, *names, metavar=" ".join(words[len(names) :]) or None, help=told, **limits)


def argument(default: Any, shown: str, told: str) -> Any:
    """An argument as --help shows it."""
    return typer.Argument(default, metavar=shown or None, help=told)


Backend = Literal["auto", "onnxruntime", "openvino", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx"]
Precision = Literal["fp32", "fp16", "int8", "fp8", "bf16"]
Format = Literal["table", "jsonl", "csv", "json"]  # of rows on standard output


_SIGNAL_WORDS: dict[int, str] = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
if hasattr(signal, "SIGHUP"):  # not on Windows
    _SIGNAL_WORDS[signal.SIGHUP] = "terminal closed"


class Stopped(BaseException):
    """A signal of _SIGNAL_WORDS arrived. Not a KeyboardInterrupt, which the argument parser would answer itself."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number
        self.word = _SIGNAL_WORDS.get(number, "terminated")


class Signals:
    """The process's handlers of _SIGNAL_WORDS: the first signal raises Stopped, a second one ends us at once."""

    def __init__(self) -> None:
        self.holding = False
        self.held: int | None = None

    def catch(self) -> None:
        """Install the handlers. Signals that are ignored (nohup, background jobs) stay ignored."""
        for number in _SIGNAL_WORDS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                signal.signal(number, self._arrived)

    def hold(self) -> None:
        """Make signals wait from here on, so that nothing is cut off while it is written."""
        self.holding = True

    def release(self) -> None:
        """Raise Stopped if a signal has been waiting, and from here on whenever one arrives."""
        self.holding = False
        if self.held is not None:
            raise Stopped(self.held)

    def _arrived(self, number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        self.held = number
        if not self.holding:
            raise Stopped(number)


SIGNALS = Signals()


def stdout() -> TextIO:
    """Standard output for people: characters that its encoding lacks are escaped, never an error."""
    if sys.stdout is None:  # closed by the caller
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - lives as long as the process
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    return sys.stdout


def show(*parts: str | tuple[str, str]) -> None:
    """Print one line for people on standard output, from texts and pairs (text, style)."""
    from rich.text import Text

    from dgiqa.report.terminal import console_for

    console_for(stdout()).print(Text.assemble(*parts), soft_wrap=True)


def data_stream() -> TextIO:
    """Standard output for programs: UTF-8 whatever the locale; a file name that is not UTF-8 keeps its bytes."""
    stream = stdout()
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(encoding="utf-8", errors="surrogateescape", newline="\n")
    return stream


def say(message: str, prefix: str = f"{PROGRAM}: ") -> None:
    """Print one line on standard error; do nothing if it is closed."""
    from dgiqa.report.rows import printable

    if sys.stderr is None:  # print would take standard output instead
        return
    with contextlib.suppress(OSError, ValueError):
        print(prefix + printable(message), file=sys.stderr, flush=True)


def print_json(facts: dict[str, Any]) -> None:
    """Print one JSON document on standard output."""
    from dgiqa.report.rows import to_json

    print(to_json({"schema_version": 1, **facts}), file=data_stream())


def show_progress(report: Report, *, hidden: bool) -> None:
    """Draw a progress line on standard error if that is a terminal, unless it is hidden."""
    from dgiqa.report.rows import is_terminal

    if not hidden and sys.stderr is not None and is_terminal(sys.stderr) and os.environ.get("TERM") != "dumb":
        from dgiqa.report.terminal import ProgressLine

        report.line = ProgressLine(sys.stderr)


def writable(open_: Callable[[str], T], path: str) -> T:
    """Return open_(path), called before anything is scored. An OSError becomes one that names the file."""
    try:
        return open_(path)
    except OSError as error:
        raise DgiqaError(f"cannot write {path}: {error.strerror or error}; nothing was scored") from error


def opened(path: str, *, spooled: bool = False) -> OutputFile:
    """Open the file that rows go to, and say so if a killed run left rows next to it."""
    from dgiqa.report.files import OutputFile, in_use, left_behind

    for partial in left_behind(path):
        say(f"rows of a run that {'still goes on' if in_use(partial) else 'was killed'} are in {partial}")
    return writable(lambda name: OutputFile(name, spooled=spooled), path)


def fill(report: Report, rows: Generator[Row]) -> Stopped | None:
    """Write every row. Return the signal that ended it early, if any, to be raised once all files are closed."""
    try:
        with contextlib.closing(rows):  # or its threads would go on
            for row in rows:
                SIGNALS.hold()
                report.add(row)
                SIGNALS.release()
        report.complete = True
    except Stopped as stop:
        stop.word += "; the rows written so far are kept"
        return stop
    except BrokenPipeError:
        if not report.unread:
            raise
        # Else the reader of standard output has seen enough.
    except OSError as error:
        error.filename = error.filename or "standard output"  # files name themselves
        raise
    finally:
        SIGNALS.hold()  # only closing the documents is left, which is quick
    return None


def leave(stop: Stopped | None, *, below: object = False, failed: object = False) -> NoReturn:
    """End a command by the signal that ended its run, or else with the exit code for its findings."""
    if stop:
        raise stop
    raise typer.Exit(GATE_FAILED if below else INPUTS_FAILED if failed else OK)


def explain(error: Exception) -> int:
    """Print an error as one line, and return its exit code."""
    if os.environ.get("DGIQA_DEBUG") == "1":
        traceback.print_exception(error)
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.split(".")[0] == "onnxruntime":
        error = BackendError(f"ONNX Runtime is not installed; {install('cpu')} (or [gpu])")
    expected = isinstance(error, DgiqaError | OSError | ValueError)
    kind = "" if expected else f"{type(error).__name__}: "
    hint = "" if expected else " (DGIQA_DEBUG=1 shows where)"
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    say(f"{kind}{text}{hint}", prefix="error: ")
    if isinstance(error, ParityError):
        return GATE_FAILED
    return ENVIRONMENT if isinstance(error, BackendError | ImportError) else RUNTIME_ERROR
