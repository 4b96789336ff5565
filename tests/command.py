"""`dgiqa-rt` in this process: its own main(), with other arguments, streams and environment.

A process of its own costs half a second and more; what needs one (signals, terminals, closed streams, the interpreter's
own options) starts one.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock


def run_here(
    *arguments: object, stdin: bytes | None = b"", cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """What `subprocess.run` would return for `dgiqa-rt ARGUMENTS`, its output captured."""
    from dgiqa.cli import main

    command = ["dgiqa-rt", *map(os.fspath, map(str, arguments))]
    with _streams(stdin or b"") as (out, err), _place(cwd), _own_signals(), mock.patch.dict(os.environ, env or {}):
        with mock.patch.object(sys, "argv", command):
            try:
                main()
                code: Any = 0
            except SystemExit as leave:
                code = leave.code
        sys.stderr.flush()
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _streams(stdin: bytes) -> Iterator[tuple[io.BytesIO, io.BytesIO]]:
    out, err = io.BytesIO(), io.BytesIO()
    wrapped = [io.TextIOWrapper(raw, encoding="utf-8", write_through=True) for raw in (io.BytesIO(stdin), out, err)]
    wrapped[2].reconfigure(errors="backslashreplace")  # as Python's own
    with mock.patch.multiple(sys, stdin=wrapped[0], stdout=wrapped[1], stderr=wrapped[2]):
        yield out, err
    for stream in wrapped:
        stream.detach()  # the buffers stay readable


@contextlib.contextmanager
def _place(cwd: Path | None) -> Iterator[None]:
    here = os.getcwd()
    os.chdir(cwd or here)
    try:
        yield
    finally:
        os.chdir(here)


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """The handlers that a command installs, and what it remembers of signals, end with it."""
    from dgiqa.cli.common import SIGNALS

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        SIGNALS.holding, SIGNALS.held = False, None
        for number, handler in before.items():
            signal.signal(number, handler)
