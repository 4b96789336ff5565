"""Time the CUDA kernels against their floors and the best honest baselines, and preprocessing on the CPU.

    python bench/kernels.py [--torch-op build/libdgiqa_torch.so] [--tiles 1 20] [--page docs/kernels.md] [--skip-cpu]
                            [--minutes 8] [--seconds 5] [--max-autotune] [--only WORD]

On a GPU every subject is captured 20 times in a CUDA graph on inputs of more than three times the L2 cache, warmed up
and timed up to 200 times in turn with the others; the kernels' library is found as dgiqa.runtime.kernels says. The
floor is the bytes over the copy bandwidth measured in the same run. Without a GPU the table has only floors. The CPU's
time for the same work is measured on any machine.

Cheap rows come first, each is written as soon as it is done, and none begins after --minutes, so that ten minutes on a
GPU leave complete rows. 640 tiles and torch.compile's search only run on request.
"""

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import roofline
from markdown import figures, table
from roofline import H200, Machine, Op
from stamp import command_line, environment_stamp, read_json, write_json

RESULTS = Path(__file__).parent / "results" / "kernels.json"
PAGE = Path(__file__).parent.parent / "docs" / "kernels.md"
SIZES = {"1024 x 768": (768, 1024), "1920 x 1080": (1080, 1920), "4000 x 3000": (3000, 4000)}
OURS = "ours"
WARM_UP, PAIRS, LAUNCHES = 10, 200, 20
SECONDS, MINUTES = 5.0, 8.0  # for the rounds of a row; after the latter no row begins
TILES = (1, 20)
FLUSH = 3  # inputs are this many times as large as the L2 cache

TEXT = """# Kernels: floors and measurements

{note}

    python bench/kernels.py --torch-op build/libdgiqa_torch.so

Commit {commit}, {date}. Every commit tests the kernels' results on emulated warps and blocks; this page is only about time.

## Kernels

Microseconds per call, float16 (images: uint8 to float32), cold cache, median [p10, p90]. Floor: bytes over copy bandwidth, or arithmetic over peak, whichever is longer. Times ours: the time of the best other, divided by ours.

"SDPA, windows folded" gets tokens in window order, as the exported networks keep them, and one mask for all images: it moves as many bytes as ours. The other SDPA works on maps in image order: it separates the windows and joins them again, which takes two thirds of its time. So our kernel is a demonstrator until a GPU shows that it is faster than the first: `python bench/graph.py --only attention` compares whole networks.

{kernels}
"""  # noqa: E501
MEASURED = "Measured on {name}: {ceilings}, both measured in the same run."
FLOORS = (
    "**No GPU has run these kernels, and no time on this page is a GPU's.** The floors are for an {name}: "
    "{ceilings}. Run the command below on a GPU to fill the table."
)
CPU = """
## Preprocessing on the CPU

Measured: milliseconds per image outside both networks and decoding, median, {cores} cores of {cpu}. Device path: the CPU's remaining work, without the driver's, when `Scorer.score` gets an image on a GPU.

{table}
"""  # noqa: E501
HEAD = "kernel | tiles | megabytes | floor | ours | before | best other | times ours"
CELLS = "{case} | {tiles} | {megabytes:.4g} | {floor_us:.4g} | {ours} | {before} | {other} | {times}"

Call = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """One row of the table. ops: of our kernels. make: makes the subjects on a GPU."""

    name: str
    tiles: int
    ops: list[Op]
    make: Callable[[Any, int], dict[str, Call]]
    clock: str = "graph"

    def row(self, machine: Machine) -> dict[str, Any]:
        """The row's facts that are known without measuring."""
        floor = sum(machine.floor_us(op, self.tiles) for op in self.ops)
        return {
            "case": self.name,
            "tiles": self.tiles,
            "bytes": sum(op.bytes(self.tiles) for op in self.ops),
            "floor_us": _rounded(floor),
            "measured_us": None,
        }


def cases(tiles: Sequence[int]) -> Iterator[Case]:
    """Attention per stage and number of tiles, preprocessing per image size."""
    from dgiqa import preprocess
    from dgiqa.spec import Preprocess

    for n in tiles:
        for stage in (1, 2, 3, 4):
            name = f"window attention, stage {stage}"
            yield Case(name, n, [roofline.window_attention(stage)], partial(_window_attention, stage, n))
        yield Case("Depth-CAR attention", n, [roofline.depth_car_attention()], partial(_depth_car, n))
    p = Preprocess()
    for name, size in SIZES.items():
        short = preprocess.working_size(*size, p)
        cut = len(preprocess.windows_for("grid", *short, p.tile))
        ops = roofline.preprocess_kernels(*size, preprocess.depth_size(*size, p), short, cut)
        yield Case(f"preprocessing {name}", 1, ops, partial(_preprocess, size))


def _window_attention(stage: int, tiles: int, gpu: Any, sets: int) -> dict[str, Call]:
    """Attention of the shifted half of the blocks, the harder case, if the stage has one."""
    options = {"device": "cuda", "dtype": gpu.half, "sets": sets, "mode": gpu.mode}
    return gpu.subjects.window_attention_calls(stage, tiles, stage < 4, **options)


def _depth_car(tiles: int, gpu: Any, sets: int) -> dict[str, Call]:
    return gpu.subjects.depth_car_calls(tiles, device="cuda", dtype=gpu.half, sets=sets)


def _preprocess(size: tuple[int, int], gpu: Any, sets: int) -> dict[str, Call]:
    return gpu.subjects.preprocess_calls(*size, device="cuda", kernels=gpu.kernels, sets=sets)


def cheap_first(found: Iterable[Case], machine: Machine) -> list[Case]:
    """The cases in order of their floors."""
    return sorted(found, key=lambda case: case.row(machine)["floor_us"])


def measure(case: Case, row: dict[str, Any], gpu: Any, l2_bytes: int, seconds: float = SECONDS) -> None:
    """Measure, and fill in {subject: {p10, median, p90}} in microseconds, and ratios against ours."""
    from timer import compare

    per_set = sum(op.reads for op in case.ops) * case.tiles
    calls = case.make(gpu, math.ceil(FLUSH * l2_bytes / per_set) if per_set else 1)
    options: Any = {"clock": case.clock, "launches": LAUNCHES, "seconds": seconds}
    results = compare(calls, pairs=PAIRS, warmup=WARM_UP, baseline=OURS, **options)
    row["measured_us"] = {r.name: {key: _rounded(1e3 * ms) for key, ms in r.ms.as_dict().items()} for r in results}
    row["times_ours"] = {r.name: _rounded(1 / r.ratio.median) for r in results if r.name != OURS}


def measured_machine() -> tuple[Machine, int]:
    """This GPU's ceilings, by one large copy and one large multiplication, and its L2 cache in bytes."""
    import torch
    from timer import compare

    properties = torch.cuda.get_device_properties(0)
    a, b = (torch.randint(0, 256, (1 << 30,), dtype=torch.uint8, device="cuda") for _ in range(2))
    x = torch.randn(8192, 8192, dtype=torch.float16, device="cuda")
    copy, multiply = compare({"copy": lambda: b.copy_(a), "multiply": lambda: x @ x}, pairs=20, clock="cuda")
    bandwidth = 2 * a.numel() / (copy.ms.median * 1e-3)
    flops = 2 * 8192**3 / (multiply.ms.median * 1e-3)
    hertz = 1e3 * getattr(properties, "clock_rate", 1_755_000)  # older versions of torch lack it
    instructions = properties.multi_processor_count * 4 * 32 * hertz
    return Machine(properties.name, flops, bandwidth, instructions), properties.L2_cache_size


def cpu_milliseconds(pairs: int = 7) -> dict[str, dict[str, float]]:
    """CPU time for preparing one image, outside both networks and decoding: ms per step, by size.

    "device path": the remaining work when the image is scored on a device, without the driver's own.
    """
    return {name: _cpu_milliseconds(*size, pairs) for name, size in SIZES.items()}


def _cpu_milliseconds(height: int, width: int, pairs: int) -> dict[str, float]:
    import numpy as np
    from kernel_subjects import device_path_call
    from timer import compare

    from dgiqa import preprocess
    from dgiqa.spec import Preprocess

    p, rng = Preprocess(), np.random.default_rng(0)
    rgb = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    depth = rng.random((1, *preprocess.depth_size(height, width, p)), dtype=np.float32)
    near = preprocess.depth_image(depth, height, width, p)
    windows = preprocess.windows_for("grid", *preprocess.working_size(height, width, p), p.tile)
    steps: dict[str, Call] = {
        "depth input": lambda: preprocess.depth_input(rgb, p),
        "depth image": lambda: preprocess.depth_image(depth, height, width, p),
        "resize and tiles": lambda: preprocess.cut_tiles(preprocess.working_image(rgb, p), near, windows, p.tile),
    }
    found = {r.name: _rounded(r.ms.median) for r in compare(steps, pairs=pairs)}
    (device,) = compare({"device path": device_path_call(height, width)}, pairs=100, warmup=10)
    return found | {"sum": _rounded(sum(found.values())), device.name: _rounded(device.ms.median)}


def record(
    tiles: Sequence[int] | None,
    gpu: Any,
    cpu: bool,
    *,
    keep: Callable[[dict[str, Any]], None] = lambda found: None,
    minutes: float = MINUTES,
    seconds: float = SECONDS,
    only: str = "",
) -> dict[str, Any]:
    """All results, ready for JSON. keep: called with them after each row. gpu: from `_gpu`; None: only floors."""
    begun = time.monotonic()
    machine, l2_bytes = measured_machine() if gpu else (H200, 0)
    wanted = [case for case in cases(tiles or TILES) if only in case.name]
    found = {
        "environment": environment_stamp(),
        "status": "measured" if gpu else "no GPU has run any of these kernels",
        "machine": {"name": machine.name, "flops": machine.flops, "bytes_per_second": machine.bandwidth},
        "rows": [],
        "cpu_ms_per_image": None if gpu or not cpu else cpu_milliseconds(),
        "left_out": [],
    }
    for case in cheap_first(wanted, machine) if gpu else wanted:
        if gpu and time.monotonic() - begun > 60 * minutes:
            found["left_out"].append(f"{case.name}, {case.tiles} tiles: not begun within {minutes:g} minutes")
            continue
        row = case.row(machine)
        if gpu:
            try:
                measure(case, row, gpu, l2_bytes, seconds)
            except Exception as error:  # the other rows go on
                found["left_out"].append(f"{case.name}, {case.tiles} tiles: {type(error).__name__}: {error}")
                keep(found)
                continue
        found["rows"].append(row)
        keep(found)
        print(_line(row), flush=True)
    if gpu and cpu:
        found["cpu_ms_per_image"] = cpu_milliseconds()
    keep(found)
    return found


def add_before(new: dict[str, Any], old: dict[str, Any] | None) -> None:
    """Add to each figure of ours that of the previous run, if it was measured on the same GPU."""
    if old is None or old["status"] != "measured" or old["machine"]["name"] != new["machine"]["name"]:
        return
    known = {(row["case"], row["tiles"]): row["measured_us"][OURS]["median"] for row in old["rows"]}
    for row in new["rows"]:
        row["before_us"] = known.get((row["case"], row["tiles"]))


def _gpu(torch_op: Path | None, mode: str = "default") -> Any:
    """The libraries that cases need on a GPU, loaded once; None without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    if torch_op is None:
        sys.exit("on a GPU, name the built torch op: --torch-op build/libdgiqa_torch.so")
    import kernel_subjects

    from dgiqa.nn.attention import load_kernels
    from dgiqa.runtime.kernels import Kernels

    load_kernels(torch_op)
    return SimpleNamespace(subjects=kernel_subjects, half=torch.float16, kernels=Kernels(), mode=mode)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _line(row: dict[str, Any]) -> str:
    ours = f"  ours {row['measured_us'][OURS]['median']:9.4g} us" if row["measured_us"] else ""
    return f"{row['case']:28} {row['tiles']:5} tiles  floor {row['floor_us']:9.4g} us{ours}"


def page(record: dict[str, Any]) -> str:
    """Markdown."""
    machine, stamp = record["machine"], record["environment"]
    ceilings = f"{machine['flops'] / 1e12:.0f} TFLOP/s in float16, {machine['bytes_per_second'] / 1e12:.1f} TB/s copied"
    note = (MEASURED if record["status"] == "measured" else FLOORS).format(name=machine["name"], ceilings=ceilings)
    about = {"note": note, "commit": stamp["commit"][:10], "date": stamp["date"][:10]}
    text = TEXT.format(**about, kernels=figures(HEAD, CELLS, [_told(row) for row in record["rows"]]))
    if spent := record["cpu_ms_per_image"]:
        steps = list(next(iter(spent.values())))
        rows = [(name, *(f"{row[step]:.3g}" for step in steps)) for name, row in spent.items()]
        text += CPU.format(table=table(("image", *steps), rows), **stamp)
    return text


def _told(row: dict[str, Any]) -> dict[str, Any]:
    """A row with the texts of its cells; "-" for a time that was not measured."""
    times = row["measured_us"] or {}
    others = {name: t["median"] for name, t in times.items() if name != OURS}
    best = min(others, key=lambda name: others[name], default="")
    return row | {
        "tiles": "-" if row["case"].startswith("preprocessing") else row["tiles"],
        "megabytes": row["bytes"] / 1e6,
        "ours": "{median:.4g} [{p10:.4g}, {p90:.4g}]".format(**times[OURS]) if times else "-",
        "before": "-" if row.get("before_us") is None else f"{row['before_us']:.4g}",
        "other": f"{best}: {others[best]:.4g}" if best else "-",
        "times": f"{others[best] / times[OURS]['median']:.2f}" if best else "-",
    }


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE, help="Markdown")
    parser.add_argument("--tiles", type=int, nargs="+", help=f"{TILES} by default")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="on a GPU no row begins later than this")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="on a GPU no round of a row begins later")
    parser.add_argument("--max-autotune", action="store_true", help="let torch.compile search: minutes per row")
    parser.add_argument("--only", default="", metavar="WORD", help="rows whose names hold it")
    parser.add_argument("--torch-op", type=Path, help="the built libdgiqa_torch.so; needed on a GPU")
    parser.add_argument("--skip-cpu", action="store_true", help="leave out preprocessing on the CPU")
    options = parser.parse_args()
    old = read_json(options.json)

    keep = partial(write_json, options.json)
    gpu = _gpu(options.torch_op, "max-autotune" if options.max_autotune else "default")
    limits = {"minutes": options.minutes, "seconds": options.seconds, "only": options.only}
    new = record(options.tiles, gpu, not options.skip_cpu, keep=keep, **limits)
    if options.skip_cpu and old:
        new["cpu_ms_per_image"] = old["cpu_ms_per_image"]
    add_before(new, old)
    keep(new)
    options.page.write_text(page(new), encoding="utf-8")


if __name__ == "__main__":
    main()
