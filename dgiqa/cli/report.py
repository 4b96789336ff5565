"""`dgiqa-rt report` and `watch`: scored rows in; a page, a comparison, or alarms out."""

import json
import sys
from collections.abc import Iterator
from typing import Any

import typer

from dgiqa.cli import options
from dgiqa.cli.common import GATE_FAILED, app, argument, opened, option, print_json, say, stdout
from dgiqa.errors import DgiqaError


@app.command()
def report(  # noqa: PLR0917 - the command line's options
    scores: str = argument(..., "SCORES", "A file that `score -o` wrote, or a folder that `scan` wrote."),
    against: str | None = option(None, "SCORES", "Earlier scores: show how scores moved, and of which images."),
    by: str | None = option(None, "COLUMN", "With --against: the column that names an image's source."),
    time: str | None = option(None, "COLUMN", "With --against: the column that orders images in time."),
    output: str = option("report.html", "--output -o FILE.html", "The page."),
    json_: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Draw scores as one page that needs no network: histogram, percentiles, worst and best images, failures.

    With --json the shift against earlier scores is printed instead. Its size is Cliff's delta, from -1 to 1: how much
    likelier a new image scores above an old one than below. The p values say whether chance explains it. --by adds the
    shift of each source, --time the moment it began.

    \b
    Examples:
      dgiqa-rt report scores.parquet -o report.html
      dgiqa-rt report november/ --against october/ --by camera --time taken
    """
    from dgiqa.batch.drift import drift, population
    from dgiqa.batch.summary import page
    from dgiqa.report.read import read_rows

    options.refuse(json_ and against is None, "it prints a comparison; name the other scores by --against", "--json")
    alone = (by or time) and against is None
    options.refuse(alone, "--by and --time need a comparison; name the other scores by --against")
    options.check_files([scores, against], {"--output FILE.html": output})
    found = population(read_rows(scores), by, time)
    before = None if against is None else population(read_rows(against), by)
    if json_ and before is not None:
        print_json(drift(before, found))
        return
    text = page(found, name=scores, before=before)
    file = opened(output)
    file.write(text)
    file.commit()
    if not quiet:
        say(f"written to {output}", prefix="")


@app.command()
def watch(
    scores: str = argument(..., "SCORES", 'A file or folder of scores, or "-": JSON lines as they come.'),
    against: str = option(..., "SCORES", "Scores from when all was well, 100 or more."),
    one_in: int = option(10_000, "N", "Average number of scores between two false alarms.", min=100),
    stop: bool = option(False, "--stop", "Stop at the first alarm."),
    json_: options.Json = False,
) -> None:
    """Say when the quality of a stream has moved: the exit code is 4 then.

    Two cumulative sums (CUSUM) find shifts of half a standard deviation soonest, down or up. Chance raises an alarm
    once in 10,000 scores if these are independent; take one frame of a scene, not all. Failures are skipped; not to
    get a single score is an error.

    \b
    Examples:
      dgiqa-rt score inbox/ -f jsonl | dgiqa-rt watch - --against october.jsonl
      dgiqa-rt watch november/ --against october/ --stop
    """
    from dgiqa.batch.drift import Monitor, population
    from dgiqa.report.read import read_rows

    monitor, alarms, score = Monitor(population(read_rows(against)).scores, one_in), 0, None
    for row in (row for row in _rows(scores) if row["score"] is not None):
        score = row["score"]
        if alarm := monitor.add(score, row.get("key") or row["path"]):
            alarms += 1
            which = "lower" if alarm.lower else "higher"
            text = f"scores have been {which} since {alarm.since}: mean {alarm.mean:.4f} over {alarm.count} images"
            print(json.dumps(alarm.as_dict()) if json_ else text, file=stdout(), flush=True)
            if stop:
                break
    if score is None:
        raise DgiqaError(f"{'standard input' if scores == '-' else scores} holds no score, so nothing was watched")
    if alarms:
        raise typer.Exit(GATE_FAILED)


def _rows(scores: str) -> Iterator[dict[str, Any]]:
    from dgiqa.report.read import read_rows

    if scores != "-":
        yield from read_rows(scores)
        return
    for line in sys.stdin:
        try:
            row = json.loads(line)
            row["score"], row["path"]
        except (ValueError, KeyError, TypeError) as error:
            raise DgiqaError(f"got {line[:60]!r}, wanted rows as `score -f jsonl` writes them") from error
        yield row
