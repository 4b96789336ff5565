"""Time per image of this checkout's default model against another checkout's, in turn, one thread, ONNX Runtime.

    python bench/versions.py OTHER_CHECKOUT [--rounds 3] [--picture FILE] [--out bench/results/versions.json]

Processor time of whole scores of one photograph as JPEG in five sizes: decoding, depth, tiles and quality. Every
process scores each size eight times; a ratio is that of the medians over all rounds. Prints and writes JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from stamp import environment_stamp

ROOT = Path(__file__).parent.parent
SIZES = ((512, 512), (1024, 768), (1500, 1000), (1920, 1080), (4000, 3000))
INSIDE = """
import json, sys, time
import cv2, numpy as np
from dgiqa import Scorer
picture, scorer, found = cv2.imread(sys.argv[1]), Scorer("small", threads=1), {}
for width, height in json.loads(sys.argv[2]):
    shrinks = picture.shape[1] >= width and picture.shape[0] >= height
    sized = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    data, times = cv2.imencode(".jpg", sized)[1].tobytes(), []
    for _ in range(9):
        started = time.process_time()
        scorer.score(data)
        times.append(time.process_time() - started)
    found[f"{width}x{height}"] = 1e3 * float(np.median(times[1:]))
print(json.dumps(found))
"""


def times(checkout: Path, picture: Path) -> dict[str, float]:
    """Milliseconds of processor time per image and size, in a process that imports `checkout`'s dgiqa."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", INSIDE, str(picture), json.dumps(SIZES)]
    done = subprocess.run(command, env=environment, cwd=checkout, capture_output=True, text=True, check=True)
    return {name: float(ms) for name, ms in json.loads(done.stdout).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="folder of the other checkout")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--picture", type=Path, default=ROOT / "examples/coffee.jpg")
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/versions.json")
    o = parser.parse_args()
    other, picture = o.other.resolve(), o.picture.resolve()
    rounds = [(times(other, picture), times(ROOT, picture)) for _ in range(o.rounds)]
    medians = [{name: float(np.median([r[i][name] for r in rounds])) for name in rounds[0][0]} for i in (0, 1)]
    ratios = {name: medians[1][name] / medians[0][name] for name in medians[0]}
    head = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=other, capture_output=True, text=True, check=True
    )
    result = {
        "other": head.stdout.strip(),
        "ms": dict(zip(("other", "this"), medians, strict=True)),
        "ratio": ratios,
        "mean_ratio": float(np.mean(list(ratios.values()))),
        "stamp": environment_stamp(),
    }
    o.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
