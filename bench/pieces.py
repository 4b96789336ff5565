"""Time the small pieces around the networks, each against one fixed operation of numpy in the same run.

    python bench/pieces.py            prints the ratios
    python bench/pieces.py --save     writes them to bench/results/pieces.json, which the tests use as limits

A ratio carries over to other machines, a time does not. The reference is a running sum: dependent additions on one
core, which do not depend on caches and vector units; OpenCV is limited to one thread meanwhile. It is repeated until it
takes about as long as the piece, so that a busy machine interrupts both equally often.
"""

import io
from collections.abc import Iterable, Mapping

import cv2
import numpy as np
from pictures import SIZE, photograph
from stamp import command_line, environment_stamp, read_json, write_json
from timer import RESULTS

from dgiqa import preprocess
from dgiqa.image import decode
from dgiqa.report.files import writer_for
from dgiqa.score import Score
from dgiqa.spec import Preprocess
from dgiqa.timing import Call, interleaved

BASELINE = RESULTS / "pieces.json"
NUMBERS = 1_000_000  # in the running sum: about 2 ms
ROWS = 200  # written at a time


def reference(times: float) -> tuple[Call, float]:
    """The reference operation, repeated at least this many times (and once), and the number of repetitions."""
    numbers, whole = np.linspace(0, 1, NUMBERS), max(1, round(times))
    return lambda: [np.cumsum(numbers) for _ in range(whole)], whole


def pieces() -> dict[str, Call]:
    """Name -> the piece on a 1024x768 photograph, with the preprocessing of the small bundle."""
    data = photograph(0)
    p = Preprocess(depth_lower_bound=256, depth_multiple=32)
    rgb = decode(data)
    depth = np.random.default_rng(0).random((1, 256, 352), np.float32)
    small = preprocess.working_image(rgb, p)
    near = np.ascontiguousarray(small[..., 0])
    windows = preprocess.grid_windows(*near.shape, p.tile)
    return {
        "decode": lambda: decode(data),
        "depth_input": lambda: preprocess.depth_input(rgb, p),
        "depth_image": lambda: preprocess.depth_image(depth, SIZE[1], SIZE[0], p),
        "resize": lambda: preprocess.working_image(rgb, p),
        "windows": lambda: [preprocess.windows_for(t, 384, 512, p.tile) for t in ("grid", "official:20")],
        "cut_tiles": lambda: preprocess.cut_tiles(small, near, windows, p.tile),
        "jsonl": _writing("jsonl"),
        "table": _writing("table"),
    }


def ratios(calls: dict[str, Call], rounds: int = 8, expected: Mapping[str, float] | None = None) -> dict[str, float]:
    """Shortest time of each call / shortest time of the reference, so that other load on the machine does not count.

    expected: ratios that are about right.
    """
    threads, found = cv2.getNumThreads(), {}
    cv2.setNumThreads(1)
    try:
        for name, call in calls.items():
            known, times = reference((expected or {}).get(name, 1))
            samples = interleaved({"reference": known, "piece": call}, pairs=rounds, warmup=2)
            found[name] = min(samples["piece"]) / min(samples["reference"]) * times
    finally:
        cv2.setNumThreads(threads)
    return found


def slower(measured: dict[str, float], allowed: dict[str, float], times: float) -> list[str]:
    """The pieces that take more than `times` their limit, in words."""
    return [
        f"{name} takes {ratio:.2f} of the reference, {ratio / allowed[name]:.1f} times its baseline {allowed[name]:.2f}"
        for name, ratio in measured.items()
        if ratio > times * allowed[name]
    ]


def baseline() -> dict[str, float]:
    """The saved ratios."""
    return dict(read_json(BASELINE)["ratios"])


def _writing(kind: str) -> Call:
    """Write ROWS rows in one format into memory."""
    rows = [score.as_row() for score in _scores(ROWS)]

    def write() -> None:
        writer = writer_for(kind, io.StringIO())
        for row in rows:
            writer.write(row)
        writer.finish({"scored": ROWS})

    return write


def _scores(count: int) -> Iterable[Score]:
    tile_scores = np.linspace(0.2, 0.8, 6, dtype=np.float32)
    for number in range(count):
        yield Score(
            value=0.5,
            std_error=0.01,
            tile_scores=tile_scores,
            windows=np.zeros((6, 2), np.int32),
            tile=224,
            width=1024,
            height=768,
            working_width=512,
            working_height=384,
            tiling="grid",
            timings_ms={"decode": 1.0, "quality": 2.0},
            bundle="small@0",
            backend="onnxruntime-cpu",
            source=f"photos/{number:04}.jpg",
        )


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--save", action="store_true", help="make this run the baseline")
    options = parser.parse_args()
    measured = ratios(pieces(), rounds=60, expected=baseline())
    for name, ratio in measured.items():
        print(f"{name:12} {ratio:8.3f}")
    if options.save:
        rounded = {name: float(f"{ratio:.3g}") for name, ratio in measured.items()}
        write_json(BASELINE, {"environment": environment_stamp(), "ratios": rounded})


if __name__ == "__main__":
    main()
