"""Waiting for others: for an event, never for a time. A machine ten times slower passes all the same."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
PATIENCE_S = 600  # what a hang reaches and no slow machine does
SLACKS = (1, 10, 100)  # times as long, for whoever must be given a time and may have been starved meanwhile


def until(found: Callable[[], T]) -> T:
    """What `found` returns once it is true, asked again and again."""
    end = time.monotonic() + PATIENCE_S
    while not (value := found()):
        assert time.monotonic() < end, f"it did not come within {PATIENCE_S} s"
        time.sleep(0.01)
    return value
