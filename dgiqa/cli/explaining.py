"""`dgiqa-rt explain`: a picture in, a map of its quality out, as a picture, a page or numbers."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dgiqa.cli import options
from dgiqa.cli.common import app, print_json, say, stdout

if TYPE_CHECKING:
    from dgiqa.explain import Explanation

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title>
<style>body{{font:16px/1.5 sans-serif;max-width:96rem;margin:2rem auto;padding:0 1rem}}img{{max-width:100%}}</style>
<h1>{name}</h1><img alt="the picture, and its quality: dark is low" src="data:image/png;base64,{png}">
<p>{said}</p><p>Model: {bundle}</p></html>
"""


@app.command()
@options.joined(["bundle", "backend", "precision", "threads"])
def explain(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="An image file.")],
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="Draw the map into FILE: .png or .html.")
    ] = None,
    *,
    opening: dict[str, Any],
    json_: options.Json = False,
) -> None:
    """Say where a picture is bad: a map of its quality, the lowest tiles, and whether near or far things are worse.

    The map compares parts of one picture with each other. Its values are not the picture's score.

    \b
    Examples:
      dgiqa-rt explain photo.jpg -o photo.map.png
      dgiqa-rt explain photo.jpg -o photo.html
    """
    from dgiqa.report.terminal import printable
    from dgiqa.scorer import Scorer

    suffix = Path(output).suffix.lower() if output else ".png"
    if suffix not in (".png", ".html"):
        raise typer.BadParameter(f"{output!r} ends in neither .png nor .html", param_hint="--output")
    with Scorer(**opening) as scorer:
        found = scorer.explain(image)
    if output:
        _write(found, Path(output), suffix)
        say(f"written to {output}")
    if json_:
        print_json(found.as_dict())
        return
    side = " x ".join(f"{length:.0f}" for length in found.side)
    lines = [f"{printable(found.source)}: map from {found.map.min():.3f} to {found.map.max():.3f}, tiles of {side}"]
    lines += [f"  lowest at y {y}, x {x}: {score:.4f}" for y, x, score in found.lowest]
    lines += [f"  {found.near_and_far}"] if found.near_and_far else []
    print(*lines, sep="\n", file=stdout())


def _write(found: Explanation, path: Path, suffix: str) -> None:
    from PIL import Image

    from dgiqa.store import replacing

    stream = io.BytesIO()
    Image.fromarray(found.drawn()).save(stream, "PNG")
    png = stream.getvalue()
    if suffix == ".html":
        said = "; ".join(filter(None, (f"lowest tile {found.lowest[0][2]:.4f}", found.near_and_far)))
        named = {"name": html.escape(found.source), "bundle": html.escape(found.bundle), "said": html.escape(said)}
        png = PAGE.format(png=base64.b64encode(png).decode(), **named).encode()
    with replacing(path) as partial:
        partial.write_bytes(png)
