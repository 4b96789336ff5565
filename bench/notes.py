"""How often pictures of a folder get a note: on photographs that are the false ones, on screenshots the right ones.

    python bench/notes.py FOLDER [FOLDER ...] [--list NAMES.csv] [--count 1000] [--skip 0]

--list takes the names in the first column of a CSV, of the first folder. Prints the share of every kind per folder, and
the time that measuring takes.
"""

from __future__ import annotations

import argparse
import collections
import csv
import time
from pathlib import Path

import numpy as np

from dgiqa.attributes import kind_of, measure
from dgiqa.image import decode

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--list", type=Path, help="CSV with names in its first column")
    parser.add_argument("--count", type=int, default=1000, help="pictures per folder, drawn at random")
    parser.add_argument("--skip", type=int, default=0, help="leave out that many of the first folder first")
    options = parser.parse_args()
    for number, folder in enumerate(options.folders):
        paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
        if options.list and number == 0:
            with options.list.open(newline="") as stream:
                paths = [folder / row[0] for row in csv.reader(stream) if row and (folder / row[0]).is_file()]
        order = np.random.default_rng(1).permutation(len(paths))[0 if number else options.skip :][: options.count]
        report(folder, [paths[i] for i in order])


def report(folder: Path, paths: list[Path]) -> None:
    kinds: collections.Counter[str] = collections.Counter()
    spent = []
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
