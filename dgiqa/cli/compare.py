"""`dgiqa-rt compare`: pictures and their references in, a row per pair out."""

from __future__ import annotations

import csv
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgiqa.cli import options
from dgiqa.cli.common import app, argument, fill, leave, say
from dgiqa.cli.options import share

if TYPE_CHECKING:
    from dgiqa.report.rows import Row
    from dgiqa.scorer import Scorer

Pair = tuple[str, str, str]  # picture, reference, and the pair's error or ""


@app.command()
@options.joined(["bundle", "tiling", "backend", "precision", "build", "engine", "batch", "threads"])
def compare(
    picture: str = argument(..., "IMAGE", "A picture, a folder of pictures, or a CSV of pairs."),
    reference: str | None = argument(None, "REFERENCE", "The original: a picture, or a folder with the same names."),
    *,
    opening: dict[str, Any],
    output: options.Output = None,
    format_: options.Format = None,
    recursive: options.Recursive = False,
    max_drop: float | None = share(None, "Exit with code 4 if any picture loses more than X."),
    fail_under: float | None = share(None, "Exit with code 4 if full_reference is below X for any picture."),
    quiet: options.Quiet = False,
) -> None:
    """Compare pictures with their references: both scores, and the quality lost.

    drop is the reference's score less the picture's. drop_error is its standard error, smaller than either score's
    because tiles are paired. full_reference says how close the two look, from 0 to 0.982 for equal pictures. Two
    folders are matched by names without suffixes, with -r in subfolders, too. A CSV has the columns image and
    reference, with paths relative to the CSV.

    \b
    Examples:
      dgiqa-rt compare small.jpg original.png
      dgiqa-rt compare encoded/ originals/ -o drops.csv --max-drop 0.05
      dgiqa-rt compare encoded/ originals/ -o drops.csv --fail-under 0.9
      dgiqa-rt compare pairs.csv
    """
    from dgiqa.report.files import Report
    from dgiqa.report.rows import Summary, plural
    from dgiqa.scorer import Scorer

    options.check_suffix(output)
    with options.usage("IMAGE"):
        pairs = list(_pairs(picture, reference, recursive))
    with Report() as report:
        options.write_rows(report, output, format_, "pair")
        scorer = Scorer(**opening)
        gates = {"max_drop": max_drop, "fail_under": fail_under}
        limits = {"lost more than": max_drop, "look less close than": fail_under}
        limited = " or ".join(f"{what} {limit:g}" for what, limit in limits.items() if limit is not None)
        report.needed = bool(limited)
        report.summary = summary = Summary(len(pairs))
        drops: list[float] = []
        stop = fill(report, _rows(scorer, pairs, gates, drops))
    if not quiet:
        failed = f", {summary.failed} failed" if summary.failed else ""
        mean = f"; mean drop {sum(drops) / len(drops):+.4f}" if drops else ""
        say(f"{len(drops)} compared{failed}{mean}" + (f"; written to {output}" if output else ""), prefix="")
    if limited and summary.scored and (summary.below or not quiet):
        say(f"{summary.below} of {plural(summary.scored, 'picture')} {limited}", prefix="")
    leave(stop, below=summary.below, failed=summary.failed)


def _pairs(picture: str, reference: str | None, recursive: bool) -> Iterator[Pair]:
    """Pairs of file names. Raises ValueError for arguments that name none."""
    path = Path(picture)
    if reference is None:
        if path.suffix.lower() != ".csv":
            raise ValueError(f"{picture} has no REFERENCE; name one, or give a CSV of pairs")
        yield from _listed(path)
    elif path.is_dir() != Path(reference).is_dir():
        gone = next((name for name in (picture, reference) if not os.path.exists(name)), None)
        options.refuse(gone, f"{gone}: no such file or folder", "REFERENCE" if gone == reference else "IMAGE")
        raise ValueError(f"got {picture} and {reference}, wanted two pictures or two folders")
    elif path.is_dir():
        yield from _matched(picture, reference, recursive)
    else:
        yield picture, reference, ""


def _listed(table: Path) -> Iterator[Pair]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if not {"image", "reference"} <= set(rows.fieldnames or ()):
                got = ", ".join(rows.fieldnames or ()) or "none, as it is empty"
                raise ValueError(f"{table} has the columns {got}; wanted image and reference")
            found = [(row["image"] or "", row["reference"] or "") for row in rows]
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{table} cannot be read: {error}") from error
    if not found:
        raise ValueError(f"{table} lists no pair")
    for number, pair in enumerate(found, 1):
        image, original = (str(table.parent / name) if name else "" for name in pair)
        wrong = "" if all(pair) else "the CSV row lacks the image or the reference"
        yield image or f"{table}, pair {number}", original, wrong


def _matched(pictures: str, references: str, recursive: bool) -> Iterator[Pair]:
    """Pictures of one folder with those in the other that have the same name, or the same without the suffix."""
    from dgiqa.sources import Reading, expand

    beside = list(expand([references], Reading(recursive)))
    itself = beside[0].name == references  # a row about the folder itself is an error
    options.refuse(itself, f"{references}: {beside[0].error}", "REFERENCE")
    originals = {os.path.relpath(item.name, references): item.name for item in beside}
    stems: dict[str, list[str]] = {}
    for name, path in originals.items():
        stems.setdefault(os.path.splitext(name)[0], []).append(path)
    for item in expand([pictures], Reading(recursive)):
        name = os.path.relpath(item.name, pictures)
        stem = os.path.splitext(name)[0]
        alike = stems.get(stem, [])
        if item.error:
            yield item.name, "", item.error
        elif name in originals or len(alike) == 1:
            yield item.name, originals.get(name) or alike[0], ""
        else:
            what = f"{len(alike)} pictures are called {stem}" if alike else f"no picture is called {stem}"
            yield item.name, "", f"{what} in {references}; name the pair in a CSV"


def _rows(scorer: Scorer, pairs: list[Pair], gates: dict[str, float | None], drops: list[float]) -> Generator[Row]:
    """A row per pair; what each lost is added to `drops`."""
    from dgiqa.errors import DgiqaError
    from dgiqa.report.rows import row_of

    for picture, reference, wrong in pairs:
        try:
            if wrong:
                raise DgiqaError(wrong)
            row = scorer.compare(picture, reference).as_row(**gates)
            drops.append(row["drop"])
        except (DgiqaError, OSError) as error:
            failed = {"status": "error", "error": str(error)} | scorer.origin
            row = row_of("pair", path=picture, reference=reference or None, **failed)
        yield row
