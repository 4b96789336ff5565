"""One line of JSON on stdin -> one file compiled by dgiqa.builder.plan.build_plan -> one line of JSON on stdout.

Runs in the environment that environment.py makes; {"onnx", "plan", "shapes", "plugins", "timing_cache", "options",
"interrupt_s"} goes in, {"layers", "precisions", "bytes", "seconds", "messages"} or {"error", "kind"} comes out.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

from dgiqa.builder.plan import PlanOptions, build_plan
from dgiqa.errors import DgiqaError


class Interrupted(BaseException):
    """A signal came."""


def interrupt(number: int, frame: object) -> None:
    raise Interrupted("interrupted")


def main() -> None:
    task: dict[str, Any] = json.loads(sys.stdin.readline())
    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, task.get("interrupt_s", 0))
    messages: list[str] = []
    asked = task.get("shapes", {})
    profiles = [
        {name: tuple(map(tuple, triple)) for name, triple in each.items()}
        for each in (asked if isinstance(asked, list) else [asked])
    ]
    begun = time.monotonic()
    try:
        types = build_plan(
            Path(task["onnx"]),
            Path(task["plan"]),
            shapes=profiles,
            plugins=[Path(library) for library in task.get("plugins", [])],
            timing_cache=Path(task["timing_cache"]) if task.get("timing_cache") else None,
            options=PlanOptions(**task.get("options", {})),
            progress=messages.append,
        )
    except (DgiqaError, Interrupted) as error:
        print(json.dumps({"error": str(error), "kind": type(error).__name__}))
    else:
        size = Path(task["plan"]).stat().st_size
        found = {"layers": types.total(), "precisions": types, "bytes": size, "seconds": time.monotonic() - begun}
        print(json.dumps({**found, "messages": messages}))


if __name__ == "__main__":
    main()
