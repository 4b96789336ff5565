"""Reference pages are generated from the code when the site is built, so they cannot say anything else than the code.

A page holds `<!-- generated: NAME -->`; a function of PARTS writes the Markdown that takes its place. MkDocs calls
`on_page_markdown` (see `hooks` in mkdocs.yml).
"""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

MARK = re.compile(r"<!-- generated: ([a-z ]+) -->")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with every mark replaced."""
    return MARK.sub(lambda mark: PARTS[mark[1]](), markdown)


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; what would be Markdown in cells is escaped outside of code, line ends become spaces."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    text = " ".join(str(value).split())
    return re.sub(r"(`[^`]*`)|([|\[\]<*])", lambda found: found[1] or f"\\{found[2]}", text)


# ---- command line ----


def command_line() -> str:
    """Every command with its text, arguments and options."""
    return "\n\n".join(_command(path, command) for path, command in commands())


def commands() -> Iterator[tuple[str, Any]]:
    """("dgiqa-rt score", its command), for every command and every command of a group."""
    import typer

    from dgiqa.cli import app

    def below(path: str, command: Any) -> Iterator[tuple[str, Any]]:
        inner = getattr(command, "commands", {})
        if not inner or command.invoke_without_command:
            yield path, command
        for name in command.list_commands(None) if inner else ():
            yield from below(f"{path} {name}", inner[name])

    root: Any = typer.main.get_command(app)
    for name in root.list_commands(None):
        yield from below(f"dgiqa-rt {name}", root.commands[name])


def _command(path: str, command: Any) -> str:
    text, _, examples = textwrap.dedent(command.help or "").replace("\b\n", "\n").partition("\nExamples:\n")
    context = command.context_class(command, info_name=path)
    records = filter(None, (parameter.get_help_record(context) for parameter in command.params))
    parts = [f"## {path}", text.strip()]
    if examples.strip():
        lines = "\n".join("$ " + line.strip() for line in examples.strip().splitlines())
        parts.append(f"```console\n{lines}\n```")
    rows = [(f"`{name}`", told) for name, told in records]
    parts.append(table(("Argument or option", "Meaning"), rows))
    return "\n\n".join(part for part in parts if part)


# ---- rows ----


def rows() -> str:
    """Every column of a row, which docs/rows.md holds itself: it is read beside the code, too."""
    from dgiqa.report.rows import KINDS, SCHEMA, Column

    words = {"string": "text", "float64": "number", "int64": "integer", "list": "list of texts", "json": "JSON"}

    def whose(column: Column) -> str:
        named = "all" if column.of == KINDS else " and ".join(f"{kind}s" for kind in column.of)
        return f"{named}, with --details" if column.details else named

    cells = [(f"`{c.name}`", words[c.type], whose(c), c.meaning) for c in SCHEMA]
    return table(("column", "type", "rows of", "meaning"), cells)


# ---- exit codes, budgets, manifest ----


def exit_codes() -> str:
    """The table in every command's help."""
    from dgiqa.cli.common import EXIT_CODES

    found = re.findall(r"^  (\d+) +(.*(?:\n {7}.*)*)", EXIT_CODES, re.MULTILINE)
    return table(("Code", "Meaning"), [(f"`{code}`", text) for code, text in found])


def budgets() -> str:
    """How far one score may move, by precision."""
    from dgiqa.parity import BUDGETS

    rows = [(f"`{name}`", f"{limit:g}") for name, limit in BUDGETS.items()]
    return table(("Precision", "A score may differ by"), rows)


def preprocessing() -> str:
    """The record `preprocess` of a manifest: the authors' values, and those of the shipped model."""
    from dgiqa.bundle import SIZES, load_bundle
    from dgiqa.spec import NORMALISATIONS, PREPROCESS_VERSIONS, Preprocess

    shipped = load_bundle("small").preprocess
    allowed = {name: f"{low} to {high}" for name, (low, high) in SIZES.items()}
    allowed["normalisation"] = ", ".join(NORMALISATIONS)
    allowed["version"] = ", ".join(map(str, PREPROCESS_VERSIONS))
    names = [field.name for field in dataclasses.fields(Preprocess)]
    rows = [(f"`{name}`", getattr(Preprocess(), name), getattr(shipped, name), allowed[name]) for name in names]
    return table(("Key", "Authors' recipe", "`small`", "Allowed"), rows)


def presets() -> str:
    """Thresholds of the shipped model."""
    from dgiqa.bundle import load_bundle

    found = load_bundle("small").meaning.presets
    if not found:
        return "This version of `small` has no presets. Give the threshold itself."
    return table(("Preset", "Passes from"), [(f"`{name}`", f"{score:g}") for name, score in found.items()])


PARTS: dict[str, Callable[[], str]] = {
    "command line": command_line,
    "exit codes": exit_codes,
    "budgets": budgets,
    "preprocessing": preprocessing,
    "presets": presets,
}
