"""Write figures as Markdown tables, whose cells are format strings, from the last line of every case."""

import json
from collections.abc import Iterable, Mapping, Sequence
from string import Formatter
from typing import Any


class _Figures(Formatter):
    """`{ms}` of a spread is "median [p10, p90]", `{ms:.1f}` its median, `{ratio:x}` "2.50x", `{ratio:1/x}` "0.40x".

    A value that is missing or None is left out.
    """

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        try:
            return super().get_field(field_name, args, kwargs)
        except (KeyError, TypeError):
            return None, field_name

    def format_field(self, value: Any, format_spec: str) -> str:
        if value is None:
            return ""
        if isinstance(value, Mapping):
            if not format_spec:
                return "{} [{}, {}]".format(*(number(value[name]) for name in ("median", "p10", "p90")))
            value = value["median"]
        if format_spec in ("x", "1/x"):
            return f"{value if format_spec == 'x' else 1 / value:.2f}x"
        return number(value) if format_spec == "n" else str(super().format_field(value, format_spec))


def words(text: str, figures: Mapping[str, Any]) -> str:
    """Fill a format string with these figures; formats as in `_Figures`."""
    return _Figures().vformat(text, (), figures)


def figures(head: str, cells: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """A table with a line for each row. head, cells: divided by |. Columns without any figure are left out."""
    body = [[words(cell, row) for cell in cells.split(" | ")] for row in rows]
    kept = [n for n, name in enumerate(head.split(" | ")) if not name or any(line[n] for line in body)]
    return table([head.split(" | ")[n] for n in kept], ([line[n] for n in kept] for line in body))


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
