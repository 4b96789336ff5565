"""`dgiqa-rt explain`: a picture in; a map of its quality out, as a picture, a page or numbers."""

from pathlib import Path
from typing import Any

from dgiqa.cli import options
from dgiqa.cli.common import app, argument, option, print_json, say, stdout
from dgiqa.errors import ImageError


@app.command()
@options.joined(["bundle", "backend", "precision", "threads"])
def explain(
    image: str = argument(..., "IMAGE", "An image file."),
    output: str | None = option(None, "--output -o FILE", "Draw the map into FILE: .png or .html."),
    *,
    gradcam: bool = option(False, "--gradcam", "Add Grad-CAM of the last maps, with and without depth; needs onnx."),
    opening: dict[str, Any],
    json_: options.Json = False,
) -> None:
    """Say where a picture is bad: a map of its quality, the tiles that decide, and whether near or far is worse.

    The map compares parts of one picture with each other. Its values are not the picture's score.

    \b
    Examples:
      dgiqa-rt explain photo.jpg -o photo.map.png
      dgiqa-rt explain photo.jpg -o photo.html
      dgiqa-rt explain photo.jpg --gradcam -o photo.html
    """
    from dgiqa.report.html import data_uri, render
    from dgiqa.report.rows import printable
    from dgiqa.score import Failure
    from dgiqa.scorer import Scorer
    from dgiqa.store import replacing

    suffix = Path(output).suffix.lower() if output else ".png"
    options.refuse(suffix not in (".png", ".html"), f"{output!r} ends in neither .png nor .html", "--output")
    options.check_files([image], {"--output": output})
    unseen = gradcam and not (output or json_)
    options.refuse(unseen, "it is drawn into a file or printed as JSON; give -o FILE or --json", "--gradcam")
    with Scorer(**opening) as scorer:
        try:
            found = scorer.explain(image, cam=gradcam)
        except ImageError as error:
            raise ImageError(str(Failure(image, "ImageError", str(error)))) from error
    if output:
        if suffix == ".html":
            panels = {name: data_uri(_encoded(panel, ".jpg")) for name, panel in found.panels().items()}
            data = render("explanation.html", title=found.source, found=found, panels=panels).encode()
        else:
            data = _encoded(found.drawn(), ".png")
        with replacing(output) as partial:
            partial.write_bytes(data)
        say(f"written to {output}", prefix="")
    if json_:
        print_json(found.as_dict())
        return
    side = " x ".join(f"{length:.0f}" for length in found.side)
    lines = [f"{printable(found.source)}: {found.score:.4f}"]
    lines += [f"  {found.note}"] if found.note else []
    lines += [f"  map from {found.map.min():.3f} to {found.map.max():.3f}, means over overlapping tiles of {side}"]
    lines += [f"  lowest tile at x {tile.x}, y {tile.y}: {tile.score:.4f}" for tile in found.lowest]
    most, higher = found.deciding[0], f"{found.deciding[0].pull:.4f}"
    if float(higher) > 0:
        lines += [
            f"  the tile at x {most.x}, y {most.y} lowers the score most ({most.score:.4f}); "
            f"without it the score would be {higher} higher"
        ]
    lines += [f"  {found.near_and_far}"] if found.near_and_far else []
    print(*lines, sep="\n", file=stdout())


def _encoded(drawing: Any, suffix: str) -> bytes:
    """uint8 [H,W,3] RGB as the bytes of an image file."""
    import cv2

    return cv2.imencode(suffix, drawing[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
