"""Measure video on this machine: memory over length, our share of the time, the gain of reuse and how it moves scores.

    python bench/video.py [--only memory overhead reuse localised]     ->  bench/results/video.jsonl

Clips are made from photographs; `--bundle` names another model for reuse, which saves more of larger networks. Ratios
compare runs that take turns in this process; memory is measured of the command in its own process. A part that was
measured on this machine, with these versions and this code, is not measured again.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from timer import parsed, parser

from dgiqa import Scorer, forward, preprocess, spec
from dgiqa.forward import Networks
from dgiqa.machine import usable_cores
from dgiqa.timing import Call, interleaved, ratios
from dgiqa.video import Summary, VideoRun
from dgiqa.video.frames import Frame, Video
from dgiqa.video.reuse import Reuse
from dgiqa.video.sampling import Sampling

UInt8 = NDArray[np.uint8]
RATE = 25
NOISE = (0.0, 2.0, 5.0)  # standard deviation of sensor noise, levels
# Run the command, then print the most memory it had, in kB. Not getrusage, which starts with the parent's.
OWN_PEAK = """
from dgiqa.cli import main
try:
    main()
except SystemExit as leave:
    assert not leave.code, leave.code
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


def memory(folder: Path) -> dict[str, float]:
    """Peak memory of the command on 30 s and on 10 min of 1080p, a frame every 5 s, MB."""
    half_minute = write(folder / "30s.mp4", still(photograph("rocket", 1920, 1080), 30 * RATE, 1.0, every=5))
    long = repeated(half_minute, folder / "10min.mp4", 20)
    figures = {}
    for name, path in (("30 s", half_minute), ("10 min", long)):
        options = ["--every", "5s", "-q", "-o", str(folder / "rows.csv")]
        command = [sys.executable, "-c", OWN_PEAK, "video", str(path), *options]
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        figures[f"peak_mb {name}"] = int(done.stdout) / 1024
        figures[f"seconds {name}"] = time.perf_counter() - started
    return figures | {"ratio": figures["peak_mb 10 min"] / figures["peak_mb 30 s"]}


def overhead(folder: Path) -> dict[str, dict[str, float]]:
    """Our pipeline against decoding and the networks alone, and against a plain loop of `score`, by size of frame."""
    sizes = {"1080p": (1920, 1080), "720p": (1280, 720)}
    return {name: overhead_at(folder / f"{name}.mp4", *size) for name, size in sizes.items()}


def overhead_at(path: Path, width: int, height: int, rounds: int = 5) -> dict[str, float]:
    """Time four ways over the same frames, in turns.

    bare: decode, convert to RGB, then the two networks on ready-made inputs, one after the other with all threads and
    nothing else. So resizing, tiling and the depth image count as overhead, too. side: the same, but frames share the
    cores as ours do, with a thread for each run. loop: decode and `Scorer.score`, one frame after the other.
    """
    write(path, still(photograph("coffee", width, height), 8 * RATE, 1.0))
    sampling = Sampling(every=0.2)  # 40 frames: filling and draining the pipeline once are a small part
    with Scorer("small") as scorer:
        frames = partial(frames_of, path, sampling)
        inputs = [network_inputs(scorer, frame.rgb) for frame in frames() if frame.rgb is not None]
        alone = forward.open_stages(scorer.bundle, threads=usable_cores()).networks

        def side() -> None:
            together = scorer.stages.networks
            with ThreadPoolExecutor(together.parallel) as pool:
                list(pool.map(partial(networks_alone, together), inputs))
            deque(frames(), 0)

        def ours() -> None:
            assert len(list(VideoRun(scorer.stages, [path], sampling).rows())) == len(inputs)

        calls: dict[str, Call] = {
            "bare": lambda: (deque(frames(), 0), [networks_alone(alone, frame) for frame in inputs]),
            **{"side": side, "loop": lambda: [scorer.score(frame.rgb) for frame in frames()], "ours": ours},
        }
        ms = interleaved(calls, pairs=rounds, warmup=1)
    per_frame = {f"{name}_ms_per_frame": median(times) / len(inputs) for name, times in ms.items()}
    return per_frame | {f"over_{name}": ratios(ms["ours"], ms[name]).median - 1 for name in ("bare", "side", "loop")}


def frames_of(path: Path, sampling: Sampling) -> Iterator[Frame]:
    with Video(path) as video:
        yield from video.frames(sampling)


def networks_alone(networks: Networks, inputs: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Both networks on one frame's ready-made inputs."""
    networks.depth.run(inputs[0])
    networks.quality.run(inputs[1])


def reuse(folder: Path, bundle: str = "small", frames: int = 100, rounds: int = 2) -> dict[str, dict[str, float]]:
    """Frames per second with reuse over without, and how far that moves the scores, on a static camera, 720p.

    A photograph, a small square crossing it, sensor noise of three strengths. Every frame of the run with reuse is
    compared with the same frame of the run without.
    """
    figures = {}
    with Scorer(bundle) as scorer:
        for name in ("coffee", "rocket"):
            for noise in NOISE:
                path = write(folder / "still.mp4", still(photograph(name, 1280, 720), frames, noise))
                for label, setting in (("depth", Reuse()), ("depth+tiles", Reuse(tiles=True))):
                    figures[f"{name}, noise {noise:g}, {label}"] = compared(scorer, path, setting, rounds)
    best = {label: [f for k, f in figures.items() if k.endswith(f", {label}")] for label in ("depth", "depth+tiles")}
    for label, found in best.items():
        figures[f"median, {label}"] = {key: median(f[key] for f in found) for key in found[0]}
    return figures


def compared(scorer: Scorer, path: Path, setting: Reuse, rounds: int) -> dict[str, float]:
    """Time one setting of reuse against none, in turns."""

    def run(reuse: Reuse | None) -> tuple[float, list[dict[str, Any]], Summary]:
        made = VideoRun(scorer.stages, [path], Sampling(every=0), reuse=reuse)
        summary, rows = Summary(made), []
        started = time.perf_counter()
        for row in made.rows():
            rows.append(row)
            summary.add(row)
        return time.perf_counter() - started, rows, summary

    pairs = [(run(None), run(setting)) for _ in range(rounds)]
    (_, plain, _), (_, reused, summary) = pairs[-1]
    drift = np.abs([a["score"] - b["score"] for a, b in zip(reused, plain, strict=True)])
    return {
        "times_faster": median(a[0] / b[0] for a, b in pairs),
        "frames_per_second": median(len(reused) / b[0] for _, b in pairs),
        "mean_drift": float(drift.mean()),
        "largest_drift": float(drift.max()),
        "audited_mean_drift": summary.run.drift.mean or 0.0,
        "depth_reused": summary.reused / len(reused),
        "tiles_reused": sum(r["tiles_reused"] for r in reused) / sum(r["tiles"] for r in reused),
    }


def localised(folder: Path) -> dict[str, float]:
    """How far from the truth a blur from 2 s to 4 s is found, seconds, by sampling step, with and without reuse."""
    figures = {}
    picture = photograph("coffee", 640, 360)

    def frames() -> Iterator[UInt8]:
        for i, frame in enumerate(still(picture, 6 * RATE, 1.0)):
            yield np.asarray(cv2.GaussianBlur(frame, (0, 0), 4), np.uint8) if 2 <= i / RATE < 4 else frame

    path = write(folder / "blur.mp4", frames())
    with Scorer("small") as scorer:
        for step in (0.1, 0.25, 0.5):
            for label, setting in (("", None), (", reuse", Reuse(tiles=True))):
                rows = list(scorer.score_video(path, every=step, reuse=setting))
                found = dip([r["time_s"] for r in rows], [r["score"] for r in rows])
                figures[f"step {step:g} s{label}"] = max(abs(found[0] - 2), abs(found[1] + step - 4))
    return figures


def dip(times: list[float], scores: list[float]) -> tuple[float, float]:
    """First and last time below the middle between the highest and the lowest score."""
    middle = (max(scores) + min(scores)) / 2
    below = [t for t, s in zip(times, scores, strict=True) if s < middle]
    return below[0], below[-1]


def network_inputs(scorer: Scorer, rgb: UInt8) -> tuple[dict[str, Any], dict[str, Any]]:
    """The two networks' inputs for one frame."""
    stages = scorer.stages
    work = stages.tiled("grid").prepare(rgb, "frame")
    (feeds,) = forward.tiles(work.rgb, work.depth, work.windows, stages.p, batch=len(work.windows))
    return {spec.DEPTH_INPUT: preprocess.depth_input(rgb, stages.p)}, feeds


def photograph(name: str, width: int, height: int) -> UInt8:
    """A photograph of scikit-image, enlarged and cut to size: uint8 [height,width,3]."""
    import skimage.data

    picture = np.asarray(getattr(skimage.data, name)())
    scale = max(width / picture.shape[1], height / picture.shape[0])
    size = (max(width, round(picture.shape[1] * scale)), max(height, round(picture.shape[0] * scale)))
    return np.ascontiguousarray(cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC)[:height, :width])


def still(picture: UInt8, count: int, noise: float, every: int = 1) -> Iterator[UInt8]:
    """Frames of a fixed camera: a square crosses the picture, and sensor noise changes every `every` frames."""
    height, width = picture.shape[:2]
    generator, side = np.random.default_rng(0), height // 12
    grain: Any = 0.0
    for i in range(count):
        frame = picture.astype(np.float32)
        x, y = round((width - side) * i / count), round(0.7 * height)
        frame[y : y + side, x : x + side] = (200, 60, 40)
        if noise and i % every == 0:
            grain = generator.standard_normal((height, width, 1), np.float32) * noise
        yield np.clip(frame + grain, 0, 255).astype(np.uint8)


def write(path: Path, frames: Iterator[UInt8]) -> Path:
    """Encode as H.264 at constant quality 23, a key frame every two seconds."""
    with av.open(str(path), "w") as container:
        stream: Any = None
        for i, picture in enumerate(frames):
            if stream is None:
                stream = container.add_stream("libx264", rate=RATE, options={"preset": "veryfast", "crf": "23"})
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt, stream.codec_context.gop_size = "yuv420p", 2 * RATE
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = i, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def repeated(source: Path, path: Path, times: int) -> Path:
    """Repeat the same packets this many times: a long clip without encoding it."""
    with av.open(str(path), "w") as output:
        stream, offset = None, 0
        for _ in range(times):
            with av.open(str(source)) as container:
                first = container.streams.video[0]
                stream = stream or output.add_stream_from_template(first)
                for packet in container.demux(first):
                    if packet.size and packet.pts is not None and packet.dts is not None:
                        packet.pts, packet.dts, packet.stream = packet.pts + offset, packet.dts + offset, stream
                        output.mux(packet)
                offset += int(first.duration or 0)
    return path


def main() -> None:
    parts: dict[str, Callable[..., Any]] = {each.__name__: each for each in (memory, overhead, reuse, localised)}
    made = parser(__doc__)
    made.add_argument("--only", nargs="+", choices=parts, default=[*parts], help="parts to measure")
    made.add_argument("--bundle", default="small", help="of the part `reuse`  [default: %(default)s]")
    options = parsed(made, "video.jsonl")
    for name in ["localised"] if options.quick else options.only:
        with tempfile.TemporaryDirectory() as folder:
            other = {"bundle": options.bundle} if name == "reuse" and options.bundle != "small" else {}
            line = options.ledger.case({"part": name} | other, partial(parts[name], Path(folder), **other))
        print(json.dumps(line, indent=2), flush=True)


if __name__ == "__main__":
    main()
