"""`dgiqa-rt filter`: scored rows in; keys, rows, files or new shards of the chosen ones out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from dgiqa.cli import options
from dgiqa.cli.common import app, argument, data_stream, leave, option, say
from dgiqa.cli.options import share

if TYPE_CHECKING:
    from dgiqa.report.rows import Row


@app.command("filter")
def filter_(  # noqa: PLR0917 - the command line's options
    scores: list[str] = argument(..., "SCORES", "Files that `score -o` wrote, or folders that `scan` wrote."),
    least: float | None = share(None, "Keep scores of X or more.", "--min X"),
    most: float | None = share(None, "Keep scores of X or less.", "--max X"),
    top: str | None = option(None, "N|P%", "Keep the N best, or the best P % of all."),
    worst: str | None = option(None, "N|P%", "Keep the N worst, or the worst P %."),
    sort: bool = option(False, "--sort", "Put the best first (with --worst the worst)."),
    output: str | None = option(None, "--output -o FILE", "Write the rows: .csv, .jsonl, .parquet, ..."),
    link: str | None = option(None, "FOLDER", "Link the files into a folder."),
    copy: str | None = option(None, "FOLDER", "Copy the files into a folder."),
    move: str | None = option(None, "FOLDER", "Move the files into a folder."),
    shards: str | None = option(None, "FOLDER", "Write new tar shards with all files of the samples."),
    null: bool = option(False, "--null -0", "End printed names in NUL."),
    dry_run: bool = option(False, "--dry-run -n", "Say what would be done; do nothing."),
    quiet: options.Quiet = False,
) -> None:
    """Choose among scored images. The files of scores stay as they are.

    Without another output the chosen images' keys are printed, or their paths if they have none. Rows without a
    score are never chosen.

    \b
    Examples:
      dgiqa-rt filter scores.parquet --min 0.5 > keep.txt
      dgiqa-rt filter scores.csv --worst 100 --copy worst/ --dry-run
      dgiqa-rt filter results/ --top 30% --shards good/
    """
    from dgiqa.batch.choose import Choice
    from dgiqa.report.read import read_rows
    from dgiqa.report.rows import plural

    places = {"--link": link, "--copy": copy, "--move": move, "--shards": shards, "--output": output}
    used = options.only(places)
    with options.usage("--top" if top else "--worst"):
        choice = Choice(-math.inf if least is None else least, math.inf if most is None else most, top, worst)

    def rows() -> Iterator[Row]:
        return itertools.chain.from_iterable(map(read_rows, scores))

    count = itertools.count()
    numbers = set(choice.of(row for row, _ in zip(rows(), count, strict=False)))
    total = next(count)
    chosen: Iterable[Row] = (row for number, row in enumerate(rows()) if number in numbers)
    if sort:
        chosen = sorted(chosen, key=lambda row: row["score"] if worst else -row["score"])
    failures = list(_act(chosen, used, places.get(used) or "", end="\0" if null else "\n", dry_run=dry_run))
    for line in failures:
        say(line, prefix="error: ")
    if not quiet:
        say(f"{len(numbers)} of {plural(total, 'row')} chosen" + ("; nothing was done" if dry_run else ""), prefix="")
    leave(None, failed=failures)


def _act(rows: Iterable[Row], deed: str, place: str, *, end: str, dry_run: bool) -> Iterator[str]:
    """Carry out the choice, or say what would be done. Yields a message for each failure."""
    from dgiqa.batch.choose import carry, write_shards

    stream = data_stream()
    tell = (lambda line: stream.write(line + "\n")) if dry_run else None
    if deed in ("--link", "--copy", "--move"):
        yield from carry(rows, place, deed[2:], tell)
    elif deed == "--shards":
        yield from write_shards(rows, place, tell)
    elif deed == "--output" and not dry_run:
        _write(rows, place)
    else:
        for row in rows:
            stream.write((row.get("key") or row["path"]) + end)


def _write(rows: Iterable[Row], path: str) -> None:
    """The rows as `score -o` would have written them."""
    from dgiqa.report.files import Report
    from dgiqa.report.rows import DETAIL_COLUMNS

    options.check_suffix(path)
    following = iter(rows)
    first = next(following, None)
    details = first is not None and set(DETAIL_COLUMNS) <= first.keys()
    with Report() as report:
        options.write_rows(report, path, None, details=details)
        for row in itertools.chain([] if first is None else [first], following):
            report.add(row)
        report.complete = True
