"""Count how often pictures in a folder get a note: on photographs notes are wrong, on screenshots they are right.

    python bench/notes.py FOLDER [FOLDER ...] [--count 1000]

Prints the share of every kind per folder, and the time that measuring takes.
"""

import collections
import time
from pathlib import Path

import numpy as np
from stamp import command_line

from dgiqa.attributes import kind_of, measure
from dgiqa.image import decode

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--count", type=int, default=1000, help="pictures per folder, drawn at random")
    options = parser.parse_args()
    for folder in options.folders:
        paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
        report(folder, [paths[i] for i in np.random.default_rng(1).permutation(len(paths))[: options.count]])


def report(folder: Path, paths: list[Path]) -> None:
    kinds, spent = collections.Counter[str](), list[float]()
    for path in paths:
        rgb = decode(path.read_bytes())
        started = time.perf_counter()
        kinds[kind_of(measure(rgb)) or "no note"] += 1
        spent.append(time.perf_counter() - started)
    print(f"{folder}: {len(paths)} pictures, median {np.median(spent) * 1e3:.1f} ms each")
    for kind, count in kinds.most_common():
        print(f"  {count / len(paths):7.2%}  {kind}")


if __name__ == "__main__":
    main()
