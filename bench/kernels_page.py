"""Write the record of bench/kernels.py as a page."""

from __future__ import annotations

from typing import Any

from markdown import figures, table

OURS = "ours"
PAGE = """# Kernels: floors and measurements

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


def page(record: dict[str, Any]) -> str:
    """Markdown."""
    machine, stamp = record["machine"], record["environment"]
    ceilings = f"{machine['flops'] / 1e12:.0f} TFLOP/s in float16, {machine['bytes_per_second'] / 1e12:.1f} TB/s copied"
    note = (MEASURED if record["status"] == "measured" else FLOORS).format(name=machine["name"], ceilings=ceilings)
    about = {"note": note, "commit": stamp["commit"][:10], "date": stamp["date"][:10]}
    text = PAGE.format(**about, kernels=figures(HEAD, CELLS, [_told(row) for row in record["rows"]]))
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
