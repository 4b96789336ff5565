"""The record of bench/kernels.py becomes a page."""

from __future__ import annotations

from typing import Any

from markdown import table

OURS = "ours"
FAIR = (
    '"SDPA, windows folded" gets tokens in window order, as the exported networks keep them, and one mask for all '
    "images: it moves the bytes that ours moves. The other SDPA works on maps in image order and moves the windows "
    "apart and back, which takes two thirds of its time. So our kernel is a demonstrator until a GPU shows that it "
    "gains against the first: `python bench/graph.py --only attention` compares whole networks."
)


def page(record: dict[str, Any]) -> str:
    """Markdown."""
    machine, stamp, measured = record["machine"], record["environment"], record["status"] == "measured"
    ceilings = f"{machine['flops'] / 1e12:.0f} TFLOP/s in float16, {machine['bytes_per_second'] / 1e12:.1f} TB/s copied"
    note = (
        f"Measured on {machine['name']}: {ceilings}, both measured in the same run."
        if measured
        else "**No GPU has run these kernels, and no time on this page is a GPU's.** The floors are those of an "
        f"{machine['name']}: {ceilings}. Run the command below on a GPU, and the table is filled."
    )
    head = [
        "# Kernels: floors and measurements",
        "",
        note,
        "",
        "    python bench/kernels.py --torch-op build/libdgiqa_torch.so",
        "",
        f"Commit {stamp['commit'][:10]}, {stamp['date'][:10]}. What the kernels compute is tested on every commit, "
        "on emulated warps and blocks; this page is about time only.",
        "",
    ]
    return "\n".join([*head, *_kernels(record), *_cpu(record)]) + "\n"


def _kernels(record: dict[str, Any]) -> list[str]:
    lines = [
        "## Kernels",
        "",
        "Microseconds per call, float16 (images: uint8 to float32), cold cache, median [p10, p90]. Floor: bytes over "
        "copy bandwidth, or arithmetic over peak. Times ours: how much longer the best other takes.",
        "",
        FAIR,
        "",
    ]
    head = ("kernel", "tiles", "megabytes", "floor", "ours", "before", "best other", "times ours")
    return [*lines, table(head, map(_row, record["rows"])), ""]


def _row(row: dict[str, Any]) -> list[str]:
    times = row["measured_us"] or {}
    others = {name: t["median"] for name, t in times.items() if name != OURS}
    best = min(others, key=lambda name: others[name], default="")
    tiles = "-" if row["case"].startswith("preprocessing") else f"{row['tiles']}"
    moved, floor = (f"{row['bytes'] / 1e6:.4g}", f"{row['floor_us']:.4g}") if row["bytes"] else ("-", "-")
    ours = "{median:.4g} [{p10:.4g}, {p90:.4g}]".format(**times[OURS]) if times else "-"
    before = "-" if row.get("before_us") is None else f"{row['before_us']:.4g}"
    other = [f"{best}: {others[best]:.4g}", f"{others[best] / times[OURS]['median']:.2f}"] if best else ["-", "-"]
    return [row["case"], tiles, moved, floor, ours, before, *other]


def _cpu(record: dict[str, Any]) -> list[str]:
    spent = record["cpu_ms_per_image"]
    if not spent:
        return []
    stamp, steps = record["environment"], list(next(iter(spent.values())))
    return [
        "## What the CPU spends on preprocessing",
        "",
        f"Measured: milliseconds per image outside both networks and decoding, median, {stamp['cores']} cores of "
        f"{stamp['cpu']}. Device path: what is left for the CPU when `Scorer.score` is given an image on a GPU, "
        "without the driver's part.",
        "",
        table(("image", *steps), [(name, *(f"{row[step]:.3g}" for step in steps)) for name, row in spent.items()]),
    ]
