"""What every command shares: the application, exit codes, options, signals, and where output goes."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import traceback
from enum import Enum
from typing import TYPE_CHECKING, Any, TextIO

import typer
from typer.core import TyperGroup

from dgiqa.errors import BackendError, DgiqaError, ParityError

if TYPE_CHECKING:
    from dgiqa.outputs import ProgressLine

PROGRAM = "dgiqa-rt"
OK, RUNTIME_ERROR, USAGE, INPUTS_FAILED, GATE_FAILED, ENVIRONMENT = range(6)

EXIT_CODES = """\b
Exit codes:
  0    every input was scored
  1    runtime error: no such bundle, output cannot be written, ...
  2    wrong usage
  3    some inputs could not be scored (missing, not an image, a folder
       without images); each is a row with status "error"
  4    a score is below --fail-under or --gate, or verify or build is over
       its tolerance; 4 wins over 3, so that tolerating 3 never hides it
  5    this machine cannot do it: ONNX Runtime or a backend is missing
  130  interrupted (143: terminated); rows written so far are kept
"""

FIRST = ("score", "video", "verify", "bench", "models", "doctor")  # in --help; the others follow


class UsualFirst(TyperGroup):
    """Commands in the order of use."""

    def list_commands(self, ctx: Any) -> list[str]:
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))


app = typer.Typer(
    cls=UsualFirst,
    name=PROGRAM,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EXIT_CODES,
    help="Scores how good photographs look, in [0, 1], higher is better; no reference image is needed.",
)


class Backend(str, Enum):
    """What runs the networks."""

    auto = "auto"
    onnxruntime = "onnxruntime"
    openvino = "openvino"
    onnxruntime_cuda = "onnxruntime-cuda"
    tensorrt = "tensorrt"


class Precision(str, Enum):
    """What the networks compute in."""

    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"
    bf16 = "bf16"


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


def stdout() -> TextIO:
    """Standard output for the eye: what its encoding lacks is escaped, never an error."""
    if sys.stdout is None:  # closed by the caller
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - lives as long as the process
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    return sys.stdout


def data_stream() -> TextIO:
    """Standard output for programs: UTF-8 whatever the locale; names that are not UTF-8 keep their bytes."""
    stream = stdout()
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(encoding="utf-8", errors="surrogateescape", newline="\n")
    return stream


def say(message: str, prefix: str = f"{PROGRAM}: ") -> None:
    """One line on standard error; a closed one is no reason to fail."""
    from dgiqa.outputs import printable

    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(prefix + printable(message), file=sys.stderr, flush=True)


def progress_line(total: int | None, unwanted: bool) -> ProgressLine | None:
    from dgiqa.outputs import ProgressLine, is_terminal

    if unwanted or sys.stderr is None or not is_terminal(sys.stderr) or os.environ.get("TERM") == "dumb":
        return None
    return ProgressLine(sys.stderr, total)


def explain(error: Exception) -> int:
    """Put an error into one line, and give its exit code."""
    if os.environ.get("DGIQA_DEBUG") == "1":
        traceback.print_exception(error)
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.split(".")[0] == "onnxruntime":
        error = BackendError('ONNX Runtime is not installed; pip install "dgiqa-rt[cpu]" (or [gpu])')
    expected = isinstance(error, DgiqaError | OSError | ValueError)
    kind = "" if expected else f"{type(error).__name__}: "
    hint = "" if expected else " (DGIQA_DEBUG=1 shows where)"
    text = error.strerror if isinstance(error, OSError) and error.strerror and not error.filename else str(error)
    say(f"{kind}{text}{hint}", prefix="error: ")
    if isinstance(error, ParityError):
        return GATE_FAILED
    return ENVIRONMENT if isinstance(error, BackendError | ImportError) else RUNTIME_ERROR
