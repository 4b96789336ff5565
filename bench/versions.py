"""Time this checkout against another, per image and stage, in turn, with one thread of ONNX Runtime.

    python bench/versions.py OTHER_CHECKOUT [--bundle small] [--rounds 3] [--picture FILE] [--out FILE]

Each checkout has a process, which scores one photograph as JPEG in five sizes. Ratios are of medians: of CPU time by
size, and of wall time by stage, over all sizes. By default each checkout uses its own model; a bundle's folder is used
for both. Prints and writes JSON.
"""

import argparse
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

from subjects import Served, Subject, main_or_subject, own_command

ROOT = Path(__file__).parent.parent
SIZES = ((512, 512), (1024, 768), (1500, 1000), (1920, 1080), (4000, 3000))
REPEATS = 8  # of a size in a round


def subject(options: dict[str, Any]) -> Served:
    """In its own process: the checkout's Scorer, which gives one score after the other."""
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
    from stamp import environment_stamp, write_json  # not above: a subject imports the package of its own checkout
    from timer import in_turn

    asked = {"bundle": o.bundle, "picture": str(o.picture.resolve())}
    folders = {"other": o.other.resolve(), "this": ROOT}
    ms: dict[str, dict[str, float]] = {name: {} for name in folders}
    stages: dict[str, dict[str, float]] = {name: defaultdict(float) for name in folders}
    with ExitStack() as stack:
        lines = {name: own_command(__file__, asked | {"checkout": str(folder)}) for name, folder in folders.items()}
        sides = {name: stack.enter_context(Subject(line, {"OMP_NUM_THREADS": "1"})) for name, line in lines.items()}
        for width, height in SIZES:
            asks = {name: partial(side.ask, "score", width=width, height=height) for name, side in sides.items()}
            results, answers = in_turn(asks, pairs=o.rounds * REPEATS)
            for result in results:
                ms[result.name][f"{width}x{height}"] = result.ms.median
                for stage in answers[result.name][0]["stages"]:
                    stages[result.name][stage] += median(a["stages"][stage] for a in answers[result.name])
    ratios = {size: ms["this"][size] / ms["other"][size] for size in ms["this"]}
    commit = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=o.other, text=True).strip()
    result = {"other": commit, "ms": ms, "ratio": ratios, "mean_ratio": mean(ratios.values())}
    result["stamp"] = environment_stamp()
    result["stages"] = {stage: stages["this"][stage] / other for stage, other in stages["other"].items() if other}
    write_json(o.out, result)
    print(o.out.read_text())


if __name__ == "__main__":
    main_or_subject(main, subject)
