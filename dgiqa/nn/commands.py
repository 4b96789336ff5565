"""Shared by the training commands: exit codes, one line per error, and a line of progress now and then."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from dgiqa.errors import DgiqaError

PROGRESS_SECONDS = 30.0  # between two lines

T = TypeVar("T")


def exit_code(command: Callable[[], object]) -> int:
    """Run a command. Return 0, 1 after printing an error that the caller can fix, or 130 when interrupted."""
    try:
        command()
    except (DgiqaError, ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130
    return 0


def watched(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Yield the items, and print to stderr every half minute how many of the total have been taken."""
    shown = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - shown > PROGRESS_SECONDS:
            shown = time.monotonic()
            print(f"{what}: {done}/{total}", file=sys.stderr, flush=True)
        yield item
