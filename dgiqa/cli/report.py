"""`dgiqa-rt report`: rows that were scored in, one offline page out; two sets compare."""

from __future__ import annotations

from typing import Annotated

import typer

from dgiqa.cli import options
from dgiqa.cli.common import EXIT_CODES, app, opened, print_json, say


@app.command(epilog=EXIT_CODES)
def report(
    scores: Annotated[str, typer.Argument(help="A file that `score -o` wrote, or a folder that `scan` wrote.")],
    against: Annotated[
        str | None, typer.Option(metavar="SCORES", help="Earlier scores: how the population moved, and which images.")
    ] = None,
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE.html", help="The page.")] = "report.html",
    json_: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Draw scores as one page that needs no network: histogram, percentiles, worst and best images, failures.

    With --json the shift against earlier scores is printed instead. Its size is Cliff's delta, from -1 to 1: how much
    likelier a new image scores above an old one than below. The p values say whether chance explains it.

    \b
    Examples:
      dgiqa-rt report scores.parquet -o report.html
      dgiqa-rt report november/ --against october/
    """
    from dgiqa.batch.summary import drift, page, population
    from dgiqa.report.read import read_rows

    if json_ and against is None:
        raise typer.BadParameter("it prints a comparison; name the other scores by --against", param_hint="--json")
    found = population(read_rows(scores))
    before = None if against is None else population(read_rows(against))
    if json_ and before is not None:
        print_json(drift(before, found))
        return
    text = page(found, name=scores, before=before)
    file = opened(output)
    file.write(text)
    file.commit()
    if not quiet:
        say(f"written to {output}", prefix="")
