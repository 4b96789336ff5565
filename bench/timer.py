"""One timer for every bench: time callables as Results, and keep these as JSON lines that a later run reuses.

    results = compare({"eager": eager, "ours": ours}, pairs=20)      # eager, ours, eager, ours, ...
    results[1].ratio.median                                          # pair by pair: 2.0 = twice as fast as eager

    ledger = Ledger(Path("bench/results/pipeline.jsonl"), fresh=options.fresh)
    ledger.case({"bundle": "small", "batch": 8}, lambda: {...})      # measured once per machine, versions and code

`clock="own"`: the call returns its own milliseconds, as a subject in another process does (subjects.py).
On a GPU: `clock="cuda"` times with CUDA events, `clock="graph"` captures the call `launches` times in one CUDA graph
and times its replay, so that neither launch overhead nor the host's noise counts. Let the call take its inputs in turn
(itertools.cycle over sets of more than three times the L2 cache), or time a warm cache and report it.
"""

import argparse
import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from stamp import command_line, environment_stamp, identity

from dgiqa.machine import usable_cores
from dgiqa.timing import Call, Clock, Spread, interleaved, ratios, spread, wall_ms

RESULTS = Path(__file__).parent / "results"
Turns = tuple[list["Result"], dict[str, list[dict[str, Any]]]]
ClockName = Literal["wall", "own", "cuda", "graph"]


@dataclass(frozen=True)
class Result:
    """Times of one call. ms: per call. ratio: baseline's time / this one's, pair by pair; above 1 = faster.

    samples: rounds that count. threads: as given by the caller; None for subjects that have their own.
    facts: any other facts about it.
    """

    name: str
    ms: Spread
    samples: int
    baseline: str
    ratio: Spread
    clock: str
    threads: int | None
    facts: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        times = {"name": self.name, "ms": self.ms.as_dict(), "samples": self.samples, "baseline": self.baseline}
        threads = {} if self.threads is None else {"threads": self.threads}
        return times | {"ratio": self.ratio.as_dict(), "clock": self.clock} | threads | self.facts


def compare(
    calls: Mapping[str, Call],
    *,
    pairs: int = 20,
    warmup: int = 2,
    baseline: str | None = None,
    clock: ClockName = "wall",
    launches: int = 20,
    seconds: float | None = None,
    threads: int | None = None,
    facts: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Result]:
    """Time calls in turn, A, B, A, B, ... Return one Result per call, in the given order.

    baseline: the name that ratios refer to, by default the first. seconds: begin no further round after this
    long. launches: calls per sample on a GPU. threads: recorded; usable cores unless calls time themselves. facts: per
    name, recorded.
    Raises ValueError for a baseline that is no call, RuntimeError for a CUDA clock without CUDA.
    """
    baseline = next(iter(calls)) if baseline is None else baseline
    if baseline not in calls:
        raise ValueError(f"baseline {baseline!r} is none of {', '.join(calls)}")
    prepared, timed = _prepare(calls, clock, launches)
    samples = interleaved(prepared, pairs=pairs, warmup=warmup, clock=timed, seconds=seconds)
    return [
        Result(
            name=name,
            ms=spread(times),
            samples=len(times),
            baseline=baseline,
            ratio=ratios(samples[baseline], times),
            clock=clock,
            threads=threads or (None if clock == "own" else usable_cores()),
            facts=dict((facts or {}).get(name, {})),
        )
        for name, times in samples.items()
    ]


def in_turn(asks: Mapping[str, Callable[[], dict[str, Any]]], *, warmup: int = 1, **options: Any) -> Turns:
    """Ask subjects in turn; each reports its own "ms". Return the times as `compare` does, and the answers."""
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in asks}

    def ask(name: str) -> float:
        answers[name].append(asks[name]())
        return float(answers[name][-1]["ms"])

    results = compare({name: partial(ask, name) for name in asks}, warmup=warmup, clock="own", **options)
    return results, {name: found[warmup:] for name, found in answers.items()}


class Ledger:
    """A JSON lines file of measured cases, from which an interrupted run goes on.

    A case counts as measured if its key was recorded under the same machine, versions and code (`stamp.identity`).
    Each line holds "case" (the key), "stamp" (the id of its stamp line) and the figures. Every line is written whole as
    soon as it is known. fresh: discard the whole file.
    """

    def __init__(self, path: Path, *, fresh: bool = False) -> None:
        self.path = path
        self.stamp = environment_stamp()
        self._id = identity(self.stamp)
        path.parent.mkdir(parents=True, exist_ok=True)
        if fresh:
            path.unlink(missing_ok=True)
        known = list(lines(path))
        if known and not path.read_bytes().endswith(b"\n"):  # cut off: the next line must not continue it
            self._write("\n")
        self._stamped = any(line.get("stamp_id") == self._id for line in known)
        self._cases = {_key(line["case"]): line for line in known if line.get("stamp") == self._id}

    def case(self, key: Mapping[str, Any], figures: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The line of this case: from the file if it was measured before, else by calling `figures`."""
        if (found := self._cases.get(_key(key))) is not None:
            return found
        line = {"case": dict(key), "stamp": self._id, **figures()}
        if not self._stamped:
            self._append({"stamp_id": self._id, **self.stamp})
            self._stamped = True
        self._append(line)
        self._cases[_key(key)] = line
        return line

    def _append(self, line: Mapping[str, Any]) -> None:
        self._write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")

    def _write(self, text: str) -> None:
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a ledger, without a last one that was cut off."""
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            yield json.loads(text)


def show(title: str, line: Mapping[str, Any]) -> None:
    """Print a case's rows: their names and numbers, and of spreads the medians."""
    print(title)
    for row in line["rows"]:
        print("  " + "  ".join(_shown(row)), flush=True)


def _shown(row: Mapping[str, Any]) -> Iterator[str]:
    for name, value in row.items():
        if isinstance(value, Mapping) and "median" not in value:
            yield from _shown(value)
        elif name in ("bundle", "backend", "precision", "unavailable") or (name == "name" and value[0] != "{"):
            yield str(value)
        elif isinstance(value, int | float | Mapping):
            yield f"{name} {value['median'] if isinstance(value, Mapping) else value:.4g}"


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the options of every bench: --out, --fresh, --quick."""
    made = command_line(doc)
    made.add_argument("--out", type=Path, help="JSON lines file  [default: in bench/results, or data/quick]")
    made.add_argument("--fresh", action="store_true", help="measure again, even cases in that file")
    made.add_argument("--quick", action="store_true", help="a few small cases, to see that it works")
    return made


def parsed(
    made: argparse.ArgumentParser, results: str, default: Mapping[str, Any] = {}, quick: Mapping[str, Any] = {}
) -> argparse.Namespace:
    """The options and their `ledger`; quick figures never end up among those that pages are made of.

    default, quick: values of options that were not given, without and with --quick.
    """
    options = made.parse_args()
    for name, value in (quick if options.quick else default).items():
        setattr(options, name, value if getattr(options, name) is None else getattr(options, name))
    options.out = options.out or (Path("data/quick") if options.quick else RESULTS) / results
    options.ledger = Ledger(options.out, fresh=options.fresh)
    return options


def _key(case: Mapping[str, Any]) -> str:
    return json.dumps(case, sort_keys=True)


def _prepare(calls: Mapping[str, Call], clock: ClockName, launches: int) -> tuple[dict[str, Call], Clock]:
    if clock in ("wall", "own"):
        return dict(calls), wall_ms if clock == "wall" else lambda call: float(call())  # type: ignore[arg-type]
    if clock not in ("cuda", "graph"):
        raise ValueError(f"unknown clock {clock!r}; choose wall, own, cuda or graph")
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError(f"clock {clock!r} needs a GPU that torch can use; use clock='wall'")
    repeated = {name: lambda call=call: [call() for _ in range(launches)] for name, call in calls.items()}
    made = {name: _captured(calls[name], call) if clock == "graph" else call for name, call in repeated.items()}
    return made, lambda call: _event_ms(call) / launches


def _event_ms(call: Call) -> float:
    """GPU time of one call on the current stream, by events around it, ms."""
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def _captured(call: Call, repeated: Call) -> Call:
    """Capture all of `repeated` in one CUDA graph. Return a function that replays it."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # lazy initialisation must happen before the capture, and not on the default stream
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        repeated()
    return graph.replay
