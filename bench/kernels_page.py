"""The record of bench/kernels.py becomes a page and a roofline plot. Figures no GPU has confirmed say so."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from markdown import table

OURS = "ours"
LEVELS = {
    "EAGER": "eager, timm's default attention",
    "SDPA": "SDPA, eager",
    "COMPILED": "torch.compile, SDPA, mask computed once",
    "ATTENTION": "the same around our window attention",
    "NORM": "and LayerNorm inside the next multiplication, residuals in the one before",
    "MLP": "and an MLP in one kernel",
    "BLOCK": "and a Swin block in one kernel",
    "PRUNED": "and pixels and taps skipped that nothing reads",
}
PREDICTION = (
    "Predictions give everyone 80 % of the ceilings and 2 us for each launch that waits for another; what libraries "
    "waste on 49 tokens is not in them, nor what a cache saves."
)
FAIR = (
    '"SDPA, windows folded" gets tokens in window order, as the exported networks keep them, and one mask for all '
    "images: it moves the bytes that ours moves. The other SDPA works on maps in image order and moves the windows "
    "apart and back, which takes two thirds of its time. So our kernel is a demonstrator until a GPU shows that it "
    "gains against the first: `python bench/attention.py` compares whole networks."
)
BAND_TILES = 20  # marked in the plot apart from the largest number


def page(record: dict[str, Any]) -> str:
    """Markdown."""
    return "\n".join([*_head(record), *_kernels(record), *_network(record), *_cpu(record)]) + "\n"


def plot(record: dict[str, Any], path: Path) -> None:
    """Arithmetic intensity against FLOP/s: ceilings, each kernel at its time, the network's other parts."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    machine = record["machine"]
    figure, axes = plt.subplots(figsize=(8, 4.6), dpi=110)
    ridge = machine["flops"] / machine["bytes_per_second"]
    x = [1, ridge, 4000]
    axes.loglog(x, [min(machine["flops"], i * machine["bytes_per_second"]) / 1e12 for i in x], color="#444", lw=1.5)
    largest = max(row["tiles"] for row in record["rows"])
    for row in record["rows"]:
        if row["flops"] and row["tiles"] in (BAND_TILES, largest):
            _point(axes, row, filled=row["tiles"] == largest)
    for group in record["groups"]:
        point = (group["flops"] / group["bytes"], group["flops"] / group["floor_us"] / 1e6)
        axes.plot(*point, "x", color="#777", ms=6)
        axes.annotate(group["name"], point, xytext=(4, -9), textcoords="offset points", fontsize=7, color="#555")
    axes.set_xlabel("FLOP per byte of memory")
    axes.set_ylabel("TFLOP/s")
    done = "measured" if record["status"] == "measured" else "PREDICTED, not measured"
    axes.set_title(f"{machine['name']}: {done} (filled: {largest} tiles, hollow: {BAND_TILES})", fontsize=10)
    axes.set_ylim(3)
    axes.grid(alpha=0.25, which="both")
    axes.legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def _point(axes: Any, row: dict[str, Any], filled: bool) -> None:
    colours = {"window attention, stage 1": "C0", "window attention, stage 2": "C1", "window attention, stage 3": "C2"}
    colours |= {"window attention, stage 4": "C3", "Depth-CAR attention": "C4", "whole network": "C5"}
    colour = colours[row["case"]]
    face = colour if filled else "none"
    label = row["case"] if filled else None
    rate = row["flops"] / _ours_us(row) / 1e6
    axes.plot([row["flops"] / row["bytes"]], [rate], "o", ms=8, mfc=face, mec=colour, label=label, ls="none")


def _head(record: dict[str, Any]) -> list[str]:
    machine, stamp = record["machine"], record["environment"]
    ceilings = f"{machine['flops'] / 1e12:.0f} TFLOP/s in float16, {machine['bytes_per_second'] / 1e12:.1f} TB/s copied"
    if record["status"] == "measured":
        note = f"Measured on {machine['name']}: {ceilings}, both measured in the same run."
    else:
        note = (
            "**Nothing on this page about GPUs has been measured: no GPU has run these kernels.** Every time marked "
            f"*predicted* comes from the model in `bench/roofline.py` with the ceilings of an {machine['name']}: "
            f"{ceilings}. Run the command below on a GPU and the same page is filled with measurements."
        )
    return [
        "# Kernels: floors, predictions, measurements",
        "",
        note,
        "",
        "    python bench/kernels.py --torch-op build/libdgiqa_torch.so",
        "",
        f"Commit {stamp['commit'][:10]}, {stamp['date'][:10]}. What the kernels compute is tested on every commit, "
        "on emulated warps and blocks; this page is about time only.",
        "",
    ]


def _kernels(record: dict[str, Any]) -> list[str]:
    measured = record["status"] == "measured"
    kind = "measured, median [p10, p90]" if measured else "predicted"
    lines = [
        "## Kernels",
        "",
        f"Microseconds per call, float16 (images: uint8 to float32), cold cache; {kind}. Floor: bytes over copy "
        "bandwidth, or arithmetic over peak. Times ours: how much longer the best other takes.",
        *([] if measured else [PREDICTION]),
        FAIR,
        "",
    ]
    head = ("kernel", "tiles", "floor", "ours", "before", "best other", "times ours")
    return [*lines, table(head, map(_row, record["rows"])), ""]


def _row(row: dict[str, Any]) -> list[str]:
    times = {name: t["median"] for name, t in row["measured_us"].items()} if row["measured_us"] else row["predicted_us"]
    others = {name: us for name, us in times.items() if name != OURS}
    best = min(others, key=lambda name: others[name]) if others else None
    before = row.get("before_us")
    spread = (
        f" [{row['measured_us'][OURS]['p10']:.4g}, {row['measured_us'][OURS]['p90']:.4g}]" if row["measured_us"] else ""
    )
    return [
        row["case"],
        "-" if row["case"].startswith("preprocessing") else f"{row['tiles']}",
        f"{row['floor_us']:.4g}",
        f"{times[OURS]:.4g}{spread}" + ("" if row["measured_us"] else " *predicted*"),
        "-" if before is None else f"{before:.4g}",
        "-" if best is None else f"{best}: {others[best]:.4g}" + ("" if row["measured_us"] else " *predicted*"),
        "-" if best is None else f"{others[best] / times[OURS]:.2f}",
    ]


def _network(record: dict[str, Any]) -> list[str]:
    counts = list(record["levels"][0]["floor_ms"])
    groups = list(dict.fromkeys(name for level in record["levels"] for name in level["share_at_most_tiles"]))
    lines = [
        "![roofline](kernels.png)",
        "",
        "Crosses: parts of the whole network at their floors, whatever runs them.",
        "",
        "## The whole network, and what the next fusion would bring",
        "",
        "Floor in milliseconds: the sum of every operation's own floor (model). A dependent launch in a CUDA graph",
        "takes 2 to 4 us more; the two backbones run side by side in `bench/cuda_graph.py`.",
        "",
    ]
    floors, shares = [], []
    for level in record["levels"]:
        name, share = LEVELS[level["level"]], level["share_at_most_tiles"]
        floors.append((name, str(level["launches"]), *(f"{level['floor_ms'][n]:.4g}" for n in counts)))
        shares.append((name, *(f"{100 * share.get(group, 0):.0f}" for group in groups)))
    lines.append(table(("fused", "launches", *(f"tiles: {n}" for n in counts)), floors))
    lines += ["", f"Share of that floor at {counts[-1]} tiles, per cent:", "", table(("", *groups), shares)]
    return [*lines, ""]


def _cpu(record: dict[str, Any]) -> list[str]:
    spent = record["cpu_ms_per_image"]
    if not spent:
        return []
    stamp, steps = record["environment"], list(next(iter(spent.values())))
    gpu = {row["case"]: row for row in record["rows"]}
    lines = [
        "## What the CPU spends on preprocessing",
        "",
        f"Measured: milliseconds per image outside both networks and decoding, median, {stamp['cores']} cores of "
        f"{stamp['cpu']}. Device path: what is left for the CPU when `Scorer.score` is given an image on a GPU, "
        "without the driver's part. The last column is the three kernels on the GPU.",
        "",
    ]
    rows = []
    for name, row in spent.items():
        kernels = gpu[f"preprocessing {name}"]
        mark = "" if kernels["measured_us"] else " *predicted*"
        rows.append((name, *(f"{row[step]:.3g}" for step in steps), f"{_ours_us(kernels) / 1e3:.2g}{mark}"))
    return [*lines, table(("image", *steps, "GPU"), rows)]


def _ours_us(row: dict[str, Any]) -> float:
    return row["measured_us"][OURS]["median"] if row["measured_us"] else row["predicted_us"][OURS]
