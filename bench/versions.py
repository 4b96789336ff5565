"""Time per image and stage of this checkout against another's, in turn, one thread, ONNX Runtime.

    python bench/versions.py OTHER_CHECKOUT [--bundle small] [--rounds 3] [--picture FILE] [--out FILE]

Each checkout has a process, which scores one photograph as JPEG in five sizes. A ratio is that of the medians: of
processor time by size, and of wall time by stage, over all sizes. By default each checkout's own model is scored; a
bundle's folder is for both. Prints and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from subjects import Served, Subject, main_or_subject, own_command

ROOT = Path(__file__).parent.parent
SIZES = ((512, 512), (1024, 768), (1500, 1000), (1920, 1080), (4000, 3000))
REPEATS = 8  # of a size in a round


def subject(options: dict[str, Any]) -> Served:
    """In its own process: the checkout's Scorer, asked for one score after the other."""
    sys.path.insert(0, options["checkout"])
    import cv2

    from dgiqa import Scorer

    picture, scorer = cv2.imread(options["picture"]), Scorer(options["bundle"], threads=1)

    def score(width: int, height: int) -> dict[str, Any]:
        shrinks = picture.shape[1] >= width and picture.shape[0] >= height
        sized = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
        data = cv2.imencode(".jpg", sized)[1].tobytes()
        started = time.process_time()
        found = scorer.score(data)
        return {"ms": (time.process_time() - started) * 1e3, "stages": dict(found.timings_ms)}

    return {"score": score}, {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="folder of the other checkout")
    parser.add_argument("--bundle", default="small", help="name or folder of the model  [default: %(default)s]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--picture", type=Path, default=ROOT / "examples/coffee.jpg")
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/versions.json")
    o = parser.parse_args()
    from stamp import environment_stamp

    asked = {"bundle": o.bundle, "picture": str(o.picture.resolve())}
    folders = {"other": o.other.resolve(), "this": ROOT}
    found: dict[tuple[str, str, str], list[float]] = defaultdict(list)  # (checkout, size, stage or "ms") -> ms
    sides = {
        name: Subject(own_command(__file__, asked | {"checkout": str(folder)}), {"OMP_NUM_THREADS": "1"})
        for name, folder in folders.items()
    }
    for width, height in SIZES:
        for turn in range(1 + o.rounds * REPEATS):
            for name, side in sides.items():
                answer = side.ask("score", width=width, height=height)
                for what, ms in {"ms": answer["ms"], **answer["stages"]}.items():
                    found[name, f"{width}x{height}", what] += [ms] if turn else []  # the first warms up
    medians = {key: float(np.median(times)) for key, times in found.items()}
    ms = {name: {size: m for (n, size, what), m in medians.items() if (n, what) == (name, "ms")} for name in sides}
    ratios = {size: ms["this"][size] / ms["other"][size] for size in ms["this"]}
    stages = {
        what: sum(m for (n, _, w), m in medians.items() if (n, w) == ("this", what)) / other
        for what in dict.fromkeys(what for _, _, what in medians if what != "ms")
        if (other := sum(m for (n, _, w), m in medians.items() if (n, w) == ("other", what)))
    }
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=folders["other"], capture_output=True, text=True, check=True
    )
    result = {
        "other": commit.stdout.strip(),
        "ms": ms,
        "ratio": ratios,
        "mean_ratio": float(np.mean([*ratios.values()])),
    }
    result |= {"stages": stages, "stamp": environment_stamp()}
    o.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    for side in sides.values():
        side.close()


if __name__ == "__main__":
    main_or_subject(main, subject)
