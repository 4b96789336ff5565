"""Thousands of damaged pictures of every format: no crash, no hang, and a row for each, in order."""

from __future__ import annotations

import io
import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest
from damage import damaged
from PIL import Image, features
from waiting import PATIENCE_S

from dgiqa.bundle import Bundle

COUNT = 3200


def seeds() -> dict[str, bytes]:
    """Small pictures as encoders write them: name with suffix -> file."""
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)
    rgb = np.stack(np.broadcast_arrays(ramp[None, :], ramp[:48, None], np.uint8(128)), -1)
    colour = Image.fromarray(rgb)
    grey16 = Image.fromarray(rgb[..., 0].astype(np.uint16) * 257)
    pictures: dict[str, tuple[Image.Image, dict[str, object]]] = {
        "plain.jpg": (colour, {}),
        "progressive.jpg": (colour, {"progressive": True, "quality": 40}),
        "cmyk.jpg": (colour.convert("CMYK"), {}),
        "plain.png": (colour, {}),
        "palette.png": (colour.quantize(16), {}),
        "grey16.png": (grey16, {}),
        "alpha.png": (colour.convert("RGBA"), {}),
        "plain.webp": (colour, {}),
        "lossless.webp": (colour.convert("RGBA"), {"lossless": True}),
        "plain.bmp": (colour, {}),
        "plain.gif": (colour, {}),
        "frames.gif": (colour, {"save_all": True, "append_images": [colour.rotate(90)]}),
        "plain.tif": (colour, {}),
        "lzw.tif": (colour, {"compression": "tiff_lzw"}),
        "jpeg.tif": (colour, {"compression": "jpeg"}),
        "deflate.tif": (grey16, {"compression": "tiff_adobe_deflate"}),
        "plain.ppm": (colour, {}),
        "plain.jp2": (colour, {}),
        "plain.avif": (colour, {}),
    }
    lacking = {suffix for suffix, module in ((".jp2", "jpg_2000"), (".avif", "avif")) if not features.check(module)}
    return {
        name: encoded(picture, name, **options)
        for name, (picture, options) in pictures.items()
        if Path(name).suffix not in lacking
    }


def encoded(picture: Image.Image, name: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, Image.registered_extensions()[Path(name).suffix], **options)
    return stream.getvalue()


def lines(process: subprocess.Popen[bytes]) -> Iterator[bytes]:
    """What a process writes, line by line; it fails where none comes for PATIENCE_S."""
    assert process.stdout
    left = b""
    while True:
        ready = select.select([process.stdout], [], [], PATIENCE_S)[0]
        assert ready, f"no row for {PATIENCE_S} s"
        if not (piece := os.read(process.stdout.fileno(), 1 << 16)):
            return
        *whole, left = (left + piece).split(b"\n")
        yield from whole


@pytest.mark.long
def test_every_damaged_picture_has_its_row(tiny_bundle: Bundle, tmp_path: Path) -> None:
    random, files = Random(11), seeds()
    names = []
    for number in range(COUNT):
        name, whole = list(files.items())[number % len(files)]
        path = tmp_path / f"{number:05}-{name}"
        path.write_bytes(damaged(whole, random) if random.random() < 0.9 else whole[: random.randrange(len(whole))])
        names.append(str(path))
    (tmp_path / "list.txt").write_text("\n".join(names))
    command = [sys.executable, "-m", "dgiqa", "score", "--bundle", str(tiny_bundle.path), "-f", "jsonl", "-q"]
    with (
        (tmp_path / "errors").open("wb") as errors,
        subprocess.Popen(
            [*command, "--from-file", str(tmp_path / "list.txt")], stdout=subprocess.PIPE, stderr=errors, bufsize=0
        ) as process,
    ):
        try:
            rows = [json.loads(line) for line in lines(process)]
            process.wait(PATIENCE_S)
        finally:
            process.kill()
    noise = (tmp_path / "errors").read_bytes()
    assert process.returncode == 3, noise[-2000:]
    assert [row["path"] for row in rows] == names
    assert all(0 <= row["score"] <= 1 if row["status"] == "ok" else row["error"] for row in rows)
    assert b"Traceback" not in noise


@pytest.mark.parametrize("name", seeds())
def test_the_pictures_that_are_damaged_are_whole_before(name: str, tiny_bundle: Bundle) -> None:
    from dgiqa.scorer import Scorer

    with Scorer(tiny_bundle, threads=1) as scorer:
        assert 0 <= scorer.score(seeds()[name]).value <= 1
