"""Time stages and calls in milliseconds. Calls are interleaved, so that other load on the machine affects all alike.

Machines differ and are shared, so a time by itself says little: compare within one run, pair by pair (`Spread` of the
ratios), and take times as valid for their machine only.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

Call = Callable[[], object]
Clock = Callable[[Call], float]  # runs a call, returns its milliseconds


@dataclass(frozen=True)
class Spread:
    """Median, tenth and ninetieth percentile (of few samples: almost the smallest and the largest)."""

    p10: float
    median: float
    p90: float

    def as_dict(self) -> dict[str, float]:
        """The percentiles rounded to four significant digits: nothing we time repeats better than that."""
        return {name: float(f"{getattr(self, name):.4g}") for name in ("p10", "median", "p90")}


def ms_since(started: float) -> float:
    """Milliseconds since `started`, a time of `time.perf_counter`."""
    return (time.perf_counter() - started) * 1e3


class StageClock:
    """Wall time of each stage, in milliseconds. A stage of a stopped run raises CancelledError."""

    def __init__(self, stop: threading.Event | None) -> None:
        self.ms: dict[str, float] = {}
        self._stop = stop

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        if self.stopped():
            raise CancelledError
        started = time.perf_counter()
        yield
        self.ms[stage] = self.ms.get(stage, 0.0) + ms_since(started)

    def stopped(self) -> bool:
        """Whether the run is to stop."""
        return self._stop is not None and self._stop.is_set()


def wall_ms(call: Call) -> float:
    """Wall time of one call, ms."""
    started = time.perf_counter()
    call()
    return ms_since(started)


def spread(samples: Sequence[float]) -> Spread:
    """Median, p10 and p90 of one or more samples, linear between neighbours."""
    if not samples:
        raise ValueError("got no samples; wanted at least one")
    return Spread(*np.percentile(samples, (10, 50, 90)).tolist())


def interleaved(
    calls: Mapping[str, Call],
    *,
    pairs: int = 20,
    warmup: int = 2,
    clock: Clock = wall_ms,
    seconds: float | None = None,
) -> dict[str, list[float]]:
    """Time the calls in turn, A, B, A, B, ...: ms of each call in each round, {name: [rounds]}.

    pairs: rounds that count. warmup: rounds before them that do not. seconds: begin no further round after this long
    (at least one counts), to bound the wait for slow calls; None = all rounds.
    """
    if not calls or pairs < 1 or warmup < 0:
        raise ValueError(f"got {len(calls)} calls, pairs={pairs}, warmup={warmup}; wanted >= 1, >= 1 and >= 0")
    started = time.perf_counter()
    for _ in range(warmup):
        for call in calls.values():
            call()
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for done in range(pairs):
        if done and seconds is not None and time.perf_counter() - started > seconds:
            break
        for name, call in calls.items():
            samples[name].append(clock(call))
    return samples


def ratios(baseline: Sequence[float], samples: Sequence[float]) -> Spread:
    """Spread of baseline / sample, round by round: 2.0 = twice as fast as the baseline in the same round.

    A time shorter than the clock's tick counts as a nanosecond.
    """
    return spread([max(a, 1e-6) / max(b, 1e-6) for a, b in zip(baseline, samples, strict=True)])
