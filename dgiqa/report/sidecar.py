"""Rows -> a JSON file for each image, next to it or in a separate folder."""

import os
import re

from dgiqa.report.files import Writer
from dgiqa.report.rows import Row, to_json
from dgiqa.store import replacing

BESIDE = "beside"
SUFFIX = ".dgiqa.json"  # cameras' and clouds' own sidecars are called photo.jpg.json


class SidecarWriter(Writer):
    """Writes each row to `photo.jpg.dgiqa.json` for `photo.jpg`, which appears whole and replaces an older one.

    where: "beside" (next to the image), or a folder that repeats the images' places below the current one. An image
    that is no file on this disk, such as a member of an archive, gets one only in a folder.
    """

    def __init__(self, where: str) -> None:
        self._folder = None if where == BESIDE else where

    def write(self, row: Row) -> None:
        path = self._path(row["path"])
        if path is None:
            return
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with replacing(path) as partial:
            partial.write_text(to_json(row) + "\n", encoding="utf-8")

    def _path(self, name: str) -> str | None:
        if self._folder is None:
            return name + SUFFIX if os.path.isfile(name) else None
        below = os.path.relpath(name) if os.path.isabs(name) else name
        parts = [re.sub(r"[:\0]", "_", part) for part in re.split(r"[/\\]", below) if part not in ("", ".", "..")]
        return os.path.join(self._folder, *parts[:-1], (parts or ["_"])[-1] + SUFFIX)
