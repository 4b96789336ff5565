"""What scoring costs on this machine: start-up and memory of one command, memory over a thousand images, time ratios.

    python bench/footprint.py [--json bench/results/footprint.json] [--images 1000] [--skip-full]

Times are medians of whole runs, and ratios are taken within this run against a named baseline, because machines differ.
The full-size comparison runs untrained networks of the published sizes (20 random crops, Depth Anything ViT-S) in eager
PyTorch: the arithmetic, and so the time, is that of trained ones.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import cv2
import numpy as np

from dgiqa import Scorer

sys.path.insert(0, str(Path(__file__).parent))
from stamp import environment_stamp

SIZES = ((640, 480), (800, 600), (1024, 768), (720, 960), (1280, 720))  # width x height of the stream's images


def process_cost(command: list[str], runs: int) -> tuple[float, float]:
    """Median wall time in seconds and largest resident memory in MB of a command, after one warm-up."""
    seconds, peaks = [], []
    for _ in range(runs + 1):
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds.append(time.perf_counter() - started)
        peaks.append(usage.ru_maxrss / 1024)
        if status:
            sys.exit(f"{command} failed with status {status}")
    return median(seconds[1:]), max(peaks[1:])


def stream_memory(images: int) -> dict[str, float]:
    """Resident memory in MB after the 100th and the last image of a stream of mixed sizes, and images per second."""
    resident: dict[str, float] = {}
    encoded = [_jpeg(*size) for size in SIZES]
    started = time.perf_counter()
    with Scorer("small") as scorer:
        for done, _ in enumerate(scorer.score_many(encoded[i % len(encoded)] for i in range(images)), 1):
            if done == min(100, images):
                resident["rss_mb_at_100"] = _resident_mb()
    resident["rss_mb_at_end"] = _resident_mb()
    resident["images_per_second"] = images / (time.perf_counter() - started)
    return resident


def time_ratio(rounds: int) -> dict[str, float]:
    """Seconds per 1024x768 image of the full-size PyTorch pipeline and of the small bundle, interleaved."""
    import torch

    from dgiqa.nn.depth_anything import DepthAnything
    from dgiqa.nn.network import DGIQA
    from dgiqa.nn.reference import score_reference
    from dgiqa.spec import Preprocess

    torch.manual_seed(0)
    quality, depth = DGIQA().eval(), DepthAnything("vits").eval()
    data = _jpeg(1024, 768)
    rgb = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    full, small = [], []
    with Scorer("small") as scorer:
        for _ in range(rounds + 1):
            full.append(_seconds(lambda: score_reference(rgb, depth, quality, Preprocess(), "official:20")))
            small.append(median(_seconds(lambda: scorer.score(data)) for _ in range(5)))
    ratios = [a / b for a, b in zip(full[1:], small[1:], strict=True)]
    return {"full_size_pytorch_s": median(full[1:]), "small_s": median(small[1:]), "times_faster": median(ratios)}


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _jpeg(width: int, height: int) -> bytes:
    """A picture with detail at every scale, the same on every machine."""
    rng = np.random.default_rng(width * height)
    picture = np.zeros((height, width, 3), np.float32)
    for octave in range(2, 9):
        noise = rng.normal(0, 1, (2**octave, 2**octave, 3)).astype(np.float32)
        picture += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) * 2.0**-octave
    picture = (picture - picture.min()) / (picture.max() - picture.min()) * 255
    return cv2.imencode(".jpg", picture.astype(np.uint8))[1].tobytes()


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def measurements(images: int, runs: int, full: bool) -> Iterator[tuple[str, dict[str, float]]]:
    """Name and figures of each part, as soon as it is measured."""
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder, "photo.jpg")
        photo.write_bytes(_jpeg(1024, 768))
        seconds, peak = process_cost([sys.executable, "-m", "dgiqa", "score", str(photo)], runs)
    figures = {"wall_s": seconds, "peak_rss_mb": peak}
    if full:
        figures["import_torch_timm_s"] = process_cost([sys.executable, "-c", IMPORT_PEERS], runs)[0]
        figures["share_of_import_torch_timm"] = seconds / figures["import_torch_timm_s"]
    yield "one 1024x768 JPEG, whole process", figures
    stream = stream_memory(images)
    yield f"{images} images through score_many", stream
    if full:
        yield "one 1024x768 image, warm: full-size PyTorch, ViT-S depth, 20 crops, against small", time_ratio(3)


# As a program that uses them would: timm through the import that also works beside a CPU build of torch.
IMPORT_PEERS = "from dgiqa.nn.backbones import import_timm; import_timm()"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures here, with machine, versions and commit")
    parser.add_argument("--images", type=int, default=1000, help="length of the stream")
    parser.add_argument("--runs", type=int, default=7, help="counted runs of each process")
    parser.add_argument("--skip-full", action="store_true", help="leave out what needs torch")
    options = parser.parse_args()
    record: dict[str, object] = {"environment": environment_stamp()}
    for name, figures in measurements(options.images, options.runs, not options.skip_full):
        record[name] = figures
        print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in figures.items()), flush=True)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
