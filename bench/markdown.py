"""Figures become Markdown: tables, numbers of three digits, and the last line of every case with its machine."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    body = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in body)


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def last_cases(lines: Iterable[Mapping[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The last line of every case of a ledger, and its stamp."""
    cases, stamps = {}, {}
    for line in lines:
        if "stamp_id" in line:
            stamps[line["stamp_id"]] = dict(line)
        else:
            cases[json.dumps(line["case"], sort_keys=True)] = dict(line)
    return [(line, stamps[line["stamp"]]) for line in cases.values()]
