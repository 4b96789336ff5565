"""Measure how cost grows with image size, tiles, batch, parallel processes and the length of a run.

python bench/scale.py [--quick] [--fresh] [--all]        ->  bench/results/scale.jsonl

sizes      one image of 0.1 to 24 megapixels: ms per stage, and peak memory
tiles      1 to 32 tiles of one image: ms
batches    1 to 64 tiles in one run of the quality network: ms per tile, and resident memory
processes  1 to N of them, which share the cores: images/s of all together
images     a stream of JPEGs of five sizes: ms per image and resident memory after 10, 100, 1,000, ... of them; both
           must stay flat. Up to 1,000 photographs with the small bundle; 10,000 thumbnails (--all: 100,000) with
           networks of a few operators, which cost next to nothing, so that only this package's own cost remains
"""

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import scoring
from pictures import photograph, saved
from scoring import default
from timer import in_turn, parsed, parser, show

from dgiqa import spec
from dgiqa.bundle import load_bundle, write_bundle
from dgiqa.machine import usable_cores

MEGAPIXELS = (0.1, 0.3, 1, 3, 8, 12, 24)
TILES = (1, 2, 4, 8, 16, 32)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
LENGTHS = (10, 100, 1_000, 10_000, 100_000)
TINY = spec.Preprocess(depth_lower_bound=64, depth_multiple=32, short_side=96, tile=64)
SIZES = ((640, 480), (800, 600), (1024, 768), (720, 960), (1280, 720))  # width x height of the images of a stream
THUMBNAILS = tuple((width // 8, height // 8) for width, height in SIZES)  # decoding them costs next to nothing


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--bundle", default="small", help="name or folder of a bundle  [default: %(default)s]")
    made.add_argument("--all", action="store_true", help="100,000 images instead of 10,000")
    options = parsed(made, "scale.jsonl")
    longest = {"small": 1_000, "tiny": 100_000 if options.all else 10_000}
    if options.quick:
        longest = {"tiny": 100}
    axes: dict[str, Callable[[], dict[str, Any]]] = {
        "sizes": partial(sizes, options.bundle, MEGAPIXELS[:2] if options.quick else MEGAPIXELS),
        "tiles": partial(tiles, options.bundle, TILES[:2] if options.quick else TILES),
        "batches": partial(batches, options.bundle, BATCHES[:2] if options.quick else BATCHES),
        "processes": partial(processes, options.bundle, 4 if options.quick else 64),
        "images": partial(images, longest),
    }
    for axis, work in axes.items():
        key = {"axis": axis, "bundle": load_bundle(options.bundle).id, "quick": options.quick}
        show(axis, options.ledger.case(key | ({"longest": longest} if axis == "images" else {}), work))


def sizes(bundle: str, megapixels: Sequence[float]) -> dict[str, Any]:
    """One image of each size, taken in turn after one ascending pass that shows the memory of each."""
    with scoring.start(bundle, default()) as subject, tempfile.TemporaryDirectory() as folder:
        asks = {f"{n:g}": partial(subject.ask, "score", paths=[_picture(Path(folder), n)]) for n in megapixels}
        peaks = {name: ask()["peak_mb"] for name, ask in asks.items()}
        results, answers = in_turn(asks, pairs=7, warmup=0, seconds=30)
    stages = {name: {"stages": found[-1]["stages"]} for name, found in answers.items()}
    about = {name: {"megapixels": float(name), "peak_mb": peak} | stages[name] for name, peak in peaks.items()}
    return {"rows": [about[result.name] | result.as_dict() for result in results]}


def tiles(bundle: str, counts: Sequence[int]) -> dict[str, Any]:
    """One photograph of 1024x768 with a growing number of random crops."""
    with scoring.start(bundle, default()) as subject, tempfile.TemporaryDirectory() as folder:
        paths = [_picture(Path(folder), 1024 * 768 / 1e6)]
        asks = {str(n): partial(subject.ask, "score", paths=paths, tiling=f"official:{n}") for n in counts}
        results, _ = in_turn(asks, pairs=15, seconds=20)
    return {"rows": [{"tiles": int(r.name), **r.as_dict()} for r in results]}


def batches(bundle: str, counts: Sequence[int]) -> dict[str, Any]:
    """Runs of only the quality network; resident memory grows with the batch, so it is read in ascending order."""
    with scoring.start(bundle, default()) as subject:
        asks = {str(n): partial(subject.ask, "batch", count=n) for n in counts}
        resident = {name: ask()["resident_mb"] for name, ask in asks.items()}
        results, _ = in_turn(asks, pairs=15, warmup=0, seconds=20)
    rows = [{"batch": int(r.name), "resident_mb": resident[r.name], "ms_per_tile": r.ms.as_dict()} for r in results]
    return {"rows": rows}


def processes(bundle: str, images: int) -> dict[str, Any]:
    """1 to N processes with `cores / processes` threads each, at least one; each streams `images` photographs."""
    cores = usable_cores()
    counts = sorted({1, 2, cores // 2, cores, 2 * cores} - {0})
    with ExitStack() as stack:
        paths = _stream(Path(stack.enter_context(tempfile.TemporaryDirectory())), SIZES)
        start = lambda n: stack.enter_context(scoring.start(bundle, default(max(1, cores // n))))  # noqa: E731
        subjects = {n: [start(n) for _ in range(n)] for n in counts}

        def ask(n: int) -> dict[str, Any]:
            each = math.ceil(images / n)
            started = time.perf_counter()
            with ThreadPoolExecutor(n) as pool:
                list(pool.map(lambda subject: subject.ask("stream", paths=paths, lengths=[each]), subjects[n]))
            return {"ms": (time.perf_counter() - started) * 1e3 / (n * each)}

        results, _ = in_turn({str(n): partial(ask, n) for n in counts}, pairs=3, seconds=60)
        memory = {str(n): sum(each.ask("memory")["peak_mb"] for each in subjects[n]) for n in counts}
    rates = [{"processes": int(r.name), "images_per_second": 1e3 / r.ms.median} for r in results]
    return {"rows": [a | {"peak_mb": memory[r.name]} | r.as_dict() for a, r in zip(rates, results, strict=True)]}


def images(longest: Mapping[str, int]) -> dict[str, Any]:
    """Streams of small JPEGs: at each length, ms per image since the previous one, and resident memory."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, count in longest.items():
            bundle = str(tiny_bundle(Path(folder, "tiny"))) if name == "tiny" else name
            paths = _stream(Path(folder), THUMBNAILS if name == "tiny" else SIZES)
            with scoring.start(bundle, default()) as subject:
                answer = subject.ask("stream", paths=paths, lengths=[n for n in LENGTHS if n <= count])
            rows += [{"bundle": name, **row} for row in answer["rows"]]
    return {"rows": rows}


def tiny_bundle(folder: Path) -> Path:
    """A bundle whose networks are a few operators on tiles of 64 pixels, so that only the pipeline's cost remains."""
    from onnx.parser import parse_model

    head = '<ir_version: 9, opset_import: ["" : 20]>'
    side = TINY.tile
    depth = f"""{head} depth (float[1,3,h,w] image) => (float[1,h,w] depth) <int64[1] axes = {{1}}>
        {{ depth = ReduceMean<keepdims = 0>(image, axes) }}"""
    quality = f"""{head} quality (float[n,3,{side},{side}] rgb, float[n,3,{side},{side}] depth) => (float[n] score)
        <int64[3] axes = {{1, 2, 3}}>
        {{ product = Mul(rgb, depth)  mean = ReduceMean<keepdims = 0>(product, axes)  score = Sigmoid(mean) }}"""
    texts = {spec.DEPTH_FILE: depth, spec.QUALITY_FILE: quality}
    files = {file: parse_model(text).SerializeToString() for file, text in texts.items()}
    labels = {"licence": "Apache-2.0", "source": "a few operators, for timing"}
    write_bundle(folder, name="tiny", title="for timing", files=files, preprocess=TINY, **labels)
    return folder


def _picture(folder: Path, megapixels: float) -> str:
    """A 4:3 photograph of this size as a file."""
    width = round(math.sqrt(megapixels * 1e6 * 4 / 3))
    path = folder / f"{megapixels:g}.jpg"
    path.write_bytes(photograph(0, (width, round(width * 3 / 4))))
    return str(path)


def _stream(folder: Path, sizes: Sequence[tuple[int, int]]) -> list[str]:
    """Photographs of these sizes as files."""
    return [saved(folder / f"{width}x{height}", 1, (width, height))[0] for width, height in sizes]


if __name__ == "__main__":
    main()
