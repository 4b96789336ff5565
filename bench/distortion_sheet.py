"""Turns one picture into a contact sheet: thirty rows of distortions, columns for the original and the five levels.

    python bench/distortion_sheet.py docs/distortions.jpg [--image FILE] [--depth FILE]

The default picture is scikit-image's motorcycle (Middlebury 2014), because it comes with a measured depth map. A depth
file is a grey picture, bright = near; a picture without one gets a ground plane, the bottom being the nearest part.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

sys.path.append(str(Path(__file__).parent.parent))  # for recipes/
from recipes.small.distortions import KADID_TYPES, LEVELS, TYPES, distort

LABEL_WIDTH = 150  # pixels
TITLE_HEIGHT = 24
GAP = 4
INK, PAPER = (30, 30, 30), (255, 255, 255)


def contact_sheet(image: NDArray[np.uint8], depth: NDArray[np.float32] | None, seed: int, cell: int) -> Image.Image:
    """Lay out all distortions of `image` (uint8 [H,W,3]) at `cell` pixels width each; every cell is labelled."""
    cell_height = round(image.shape[0] * cell / image.shape[1])
    columns, rows = LEVELS + 1, len(TYPES)
    size = (LABEL_WIDTH + columns * (cell + GAP), TITLE_HEIGHT + rows * (cell_height + GAP))
    sheet = Image.new("RGB", size, PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    titles = ["original", *(f"level {level}" for level in range(1, LEVELS + 1))]
    for column, title in enumerate(titles):
        draw.text((LABEL_WIDTH + column * (cell + GAP), 4), title, INK, font)
    for row, kind in enumerate(TYPES):
        top = TITLE_HEIGHT + row * (cell_height + GAP)
        origin = "KADID-10k" if kind in KADID_TYPES else "nature"
        draw.text((6, top + 4), f"{row + 1:02d} {origin}\n{kind.replace('_', ' ')}", INK, font)
        pictures = [image, *(distort(image, kind, level, seed, depth) for level in range(1, LEVELS + 1))]
        for column, picture in enumerate(pictures):
            shown = Image.fromarray(picture).resize((cell, cell_height), Image.Resampling.LANCZOS)
            sheet.paste(shown, (LABEL_WIDTH + column * (cell + GAP), top))
    return sheet


def motorcycle(short_side: int) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
    """scikit-image's stereo motorcycle: the left picture, uint8 [H,W,3], and its disparity as depth, f32 [H,W]."""
    import cv2
    from skimage.data import stereo_motorcycle

    picture, _, disparity = stereo_motorcycle()
    holes = ~np.isfinite(disparity)
    low, high = disparity[~holes].min(), disparity[~holes].max()
    grey = np.where(holes, 0, 255 * (disparity - low) / (high - low)).astype(np.uint8)
    filled = cv2.inpaint(grey, holes.astype(np.uint8), 5, cv2.INPAINT_TELEA)
    image = shrink(Image.fromarray(picture), short_side)
    return image, grey_depth(Image.fromarray(filled), image.shape)


def shrink(picture: Image.Image, short_side: int) -> NDArray[np.uint8]:
    """Bring the shortest side to `short_side` pixels; uint8 [H,W,3] RGB."""
    scale = short_side / min(picture.size)
    return np.asarray(picture.convert("RGB").resize((round(picture.width * scale), round(picture.height * scale))))


def grey_depth(picture: Image.Image, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Turn a grey picture, bright = near, into f32 [H,W] in [0,1] of an image's shape."""
    return np.asarray(picture.convert("L").resize((shape[1], shape[0])), np.float32) / np.float32(255)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw all distortions of one picture at all levels.")
    parser.add_argument("output", type=Path, help="PNG or JPEG to write")
    parser.add_argument("--image", type=Path, help="picture to distort (default: scikit-image's motorcycle)")
    parser.add_argument("--depth", type=Path, help="grey depth picture, bright = near")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--short-side", type=int, default=256, help="of the picture that is distorted, pixels")
    parser.add_argument("--cell", type=int, default=156, help="width of one cell, pixels")
    parser.add_argument("--quality", type=int, default=42, help="of a JPEG output")
    arguments = parser.parse_args()
    if arguments.image is None:
        image, depth = motorcycle(arguments.short_side)
    else:
        image, depth = shrink(Image.open(arguments.image), arguments.short_side), None
    if arguments.depth is not None:
        depth = grey_depth(Image.open(arguments.depth), image.shape)
    sheet = contact_sheet(image, depth, arguments.seed, arguments.cell)
    sheet.save(arguments.output, quality=arguments.quality, optimize=True, progressive=True)
    print(f"{arguments.output}: {sheet.width} x {sheet.height}, {arguments.output.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
