"""One line of JSON on stdin -> one file compiled by dgiqa.builder.plan.build_plan -> one line of JSON on stdout.

Runs in the environment that environment.py makes; {"onnx", "plan", "shapes", "plugins", "timing_cache", "options",
"interrupt_at"} goes in, {"layers", "precisions", "bytes", "steps", "messages"} or {"error", "kind"} comes out.
"""

from __future__ import annotations

import itertools
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dgiqa.builder import plan
from dgiqa.errors import DgiqaError


class Interrupted(BaseException):
    """A signal came."""


def interrupt(number: int, frame: object) -> None:
    raise Interrupted("interrupted")


def watched_steps(interrupt_at: int | None) -> Iterator[int]:
    """Count the steps that TensorRT tells, and send a signal a moment after one of them."""
    steps, monitor_of = itertools.count(), plan.monitor_of

    def watched(*arguments: Any) -> Any:
        monitor = monitor_of(*arguments)
        complete = type(monitor).step_complete

        def step(*told: Any) -> Any:
            if next(steps) == interrupt_at:
                signal.setitimer(signal.ITIMER_REAL, 1e-3)
            return complete(*told)

        type(monitor).step_complete = step
        return monitor

    plan.monitor_of = watched
    return steps


def main() -> None:
    task: dict[str, Any] = json.loads(sys.stdin.readline())
    signal.signal(signal.SIGALRM, interrupt)
    steps = watched_steps(task.get("interrupt_at"))
    messages: list[str] = []
    asked = task.get("shapes", {})
    profiles = [
        {name: tuple(map(tuple, triple)) for name, triple in each.items()}
        for each in (asked if isinstance(asked, list) else [asked])
    ]
    try:
        types = plan.build_plan(
            Path(task["onnx"]),
            Path(task["plan"]),
            shapes=profiles,
            plugins=[Path(library) for library in task.get("plugins", [])],
            timing_cache=Path(task["timing_cache"]) if task.get("timing_cache") else None,
            options=plan.PlanOptions(**task.get("options", {})),
            progress=messages.append,
        )
    except (DgiqaError, Interrupted) as error:
        print(json.dumps({"error": str(error), "kind": type(error).__name__}))
    else:
        size = Path(task["plan"]).stat().st_size
        found = {"layers": types.total(), "precisions": types, "bytes": size, "steps": next(steps)}
        print(json.dumps({**found, "messages": messages}))


if __name__ == "__main__":
    main()
