"""What bench/engines.py and bench/precision.py wrote becomes the page's tables of engines and of precisions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markdown import table

Line = dict[str, Any]

FULL, GLINTIQA = "untrained-full", "untrained-glintiqa"
SHORT = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


def record(folder: Path) -> Line | None:
    """What bench/precision.py wrote into the folder of results; None if it was not run."""
    path = folder / "precision.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def engines(cases: Sequence[Line]) -> str:
    """Every case in a row, every engine in a column, as Markdown; "" if nothing was measured."""
    if not cases:
        return ""
    baseline = cases[0]["results"][0]["baseline"]
    names = list(dict.fromkeys(row["name"] for line in cases for row in line["results"] if row["name"] != baseline))
    rows = []
    for line in sorted(cases, key=_order):
        case, found = line["case"], {row["name"]: row for row in line["results"]}
        what = case.get("input") or ("1 tile" if case["batch"] == 1 else f"{case['batch']} tiles")
        cells = [f"{found[baseline]['ms']['median']:.0f} ms", *(_cell(found.get(name)) for name in names)]
        rows.append((f"{case['network']}, {case['size']}", f"{what} [{line['machine']}]", *cells))
    return (
        "Each network alone (weights of a fixed seed), each engine in a process of its own, all in turn, two sizes: "
        "those published (`full`) and those of the default bundle (`small`). Ratio of the times, round by round; in "
        "brackets the largest difference from PyTorch, of a tile's score or of the depth's range.\n\n"
        + table(("network", "input", baseline, *names), rows)
    )


def precisions(accuracy: Line | None) -> str:
    """How far scores move in each precision and engine, as Markdown; "" if nothing was measured."""
    if accuracy is None:
        return ""
    return f"{_said_of(accuracy)}\n\n{precision_table(accuracy['rows'])}"


def precision_table(rows: Sequence[Line]) -> str:
    """Of the rows of bench/precision.py."""
    head = ("networks", "engine", "precision", "largest difference", "mean", "SROCC", "of the bytes")
    made = []
    for row in rows:
        differences = f"{row['max_difference']:.1e}", f"{row['mean_difference']:.1e}", f"{row['srocc']:.4f}"
        engine, met = SHORT.get(row["backend"], row["backend"]), "yes" if row["met"] else "**no**"
        names = row["bundle"].removeprefix("untrained-"), engine, row["precision"]
        made.append((*names, *differences, f"{row['size_ratio']:.2f}", met))
    return table((*head, "within its budget"), made)


def _said_of(accuracy: Line) -> str:
    """What was scored, and what it was compared with."""
    first = {row["bundle"]: row for row in accuracy["rows"]}
    small = first["small"]
    parts = [
        f"{small['images']} distorted photographs, {accuracy['side']} pixels along the longer side, from pixels to "
        "score through both networks. `small` is compared with its own fp32 file on ONNX Runtime; its scores of these "
        f"photographs have a standard deviation of {small['spread']:.2f}."
    ]
    for name, what in ((FULL, "the published sizes"), (GLINTIQA, "GlintIQA as published, which has no depth network,")):
        if row := first.get(name):
            parts.append(
                f"`{name.removeprefix('untrained-')}`, {what} with weights of a fixed seed, is compared with eager "
                f"PyTorch in fp32 on {row['images']} photographs; standard deviation {row['spread']:.3f}."
            )
    machines = {row["machine"]: "" for row in accuracy["rows"]}
    for name, row in first.items():
        machines[row["machine"]] += (", " if machines[row["machine"]] else "") + f"`{name.removeprefix('untrained-')}`"
    return " ".join([*parts, *(f"{names} on {machine}." for machine, names in machines.items())])


def _cell(row: Line | None) -> str:
    return "" if row is None else f"{row['ratio']['median']:.2f}x ({row['max_difference']:.0e})"


def _order(line: Line) -> tuple[str, str, int, str]:
    """Full before small, depth last, small batches first."""
    case = line["case"]
    return case["size"], {"quality": "a"}.get(case["network"], "b"), case.get("batch", 0), case.get("input", "")
