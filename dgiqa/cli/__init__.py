"""`dgiqa-rt`: arguments in; data on standard output, everything else on standard error, and an exit code.

A command parses, calls the rest of the package, and prints. There is one file per group of commands, imported when one
of them is called, and nothing heavy is imported before a command needs it: every command's options take 4 ms.
"""

import importlib
import os
import sys
import threading
from typing import Any

import typer

from dgiqa._version import __version__
from dgiqa.cli import common
from dgiqa.cli.common import OK, PROGRAM, RUNTIME_ERROR, SIGNALS, Stopped, explain, option, say

FILES = {  # command -> the file of this folder that adds it to the application
    **{"score": "score", "video": "video", "scan": "scan", "filter": "filter", "bench": "bench"},
    **dict.fromkeys(("models", "doctor", "verify", "import-weights"), "bundles"),
    **{"calibrate": "calibrate", "compare": "compare", "build": "engines", "cache": "engines", "explain": "explaining"},
    **dict.fromkeys(("report", "watch"), "report"),
    **dict.fromkeys(("serve", "triton-repo"), "serve"),
}


def application(command: str = "") -> typer.Typer:
    """The application with this command, or with all of them if there is no such command."""
    for file in [FILES[command]] if command in FILES else dict.fromkeys(FILES.values()):
        importlib.import_module(f"dgiqa.cli.{file}")
    return common.app


def __getattr__(name: str) -> Any:
    if name == "app":
        return application()
    raise AttributeError(name)


def main() -> None:
    """Run `dgiqa-rt` on sys.argv. Errors become one line on standard error and an exit code, never a traceback.

    DGIQA_DEBUG=1 shows the traceback.
    """
    _fill_closed_streams()
    SIGNALS.catch()
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # whichever command imports ONNX Runtime, see runtime/ort.py
    os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")  # its warnings, which an error row repeats
    told = False
    try:
        application(sys.argv[1] if len(sys.argv) > 1 else "")(prog_name=PROGRAM)
    except Stopped as stop:
        say(stop.word)
        code = stop.exit_code
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else OK if leave.code is None else RUNTIME_ERROR
    except Exception as error:
        code, told = explain(error), True
    else:
        code = OK
    code = _flush_stdout(code, told=told)
    if code > 128 and threading.active_count() > 1:  # a decoder that does not stop: do not wait for it
        os._exit(code)
    sys.exit(code)


def _fill_closed_streams() -> None:
    """Open standard input, output and error on the null device where the caller closed them.

    Otherwise the next file that is opened gets the number, and libraries write their warnings into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # noqa: PERF203
            os.open(os.devnull, os.O_RDWR)


def _version(wanted: bool) -> None:
    if wanted:
        print(PROGRAM, __version__)
        raise typer.Exit


@common.app.callback()
def _root(
    version: bool = option(False, "--version -V", "Show the version and exit.", callback=_version, is_eager=True),
) -> None:
    pass


def _flush_stdout(code: int, *, told: bool) -> int:
    """Flush standard output; if that fails, point it at the null device, or Python complains. Returns the exit code.

    told: an error was reported already. It may be the same one: text that a full disk refused stays in the buffer.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        pass
    except OSError as error:
        code = code if told else explain(error)
    else:
        return code
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code
