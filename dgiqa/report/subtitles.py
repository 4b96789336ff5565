"""Rows of a video -> subtitles and chapters that show the score of each frame until the next one."""

from collections.abc import Callable
from functools import partial
from typing import Any

from dgiqa.report.files import OutputFile
from dgiqa.report.rows import Row


class _Spans:
    """A text per row, valid until the next row of the same video. text: makes it of (its number, row, end in s)."""

    def __init__(self, path: str, *, text: Callable[[int, Row, float], str]) -> None:
        self.file, self._text = OutputFile(path), text
        self._count, self._step_s = 0, 1.0
        self._open: Row | None = None

    def write(self, row: Row) -> None:
        """Take one frame, and write the one before it."""
        if self._open is not None:
            if row["path"] != self._open["path"]:
                raise ValueError("subtitles and chapters describe one video; score them one at a time")
            self._step_s = max(row["time_s"] - self._open["time_s"], 1e-3)
            self.finish()
        self._open = row

    def finish(self, summary: dict[str, Any] | None = None) -> None:
        """Write the last frame, until the video's end where the summary knows it."""
        if self._open is not None:
            self._count += 1
            end_s = self._open["time_s"] + self._step_s
            known = (summary or {}).get("videos", {}).get(self._open["path"], {}).get("end_s")
            self.file.write(self._text(self._count, self._open, min(end_s, known or end_s)))
        self._open = None


def _subtitle(number: int, row: Row, end_s: float) -> str:
    times = f"{_stamp(row['time_s'])} --> {_stamp(max(end_s, row['time_s'] + 1e-3))}"
    return f"{number}\n{times}\n{_words(row)}\n\n"


def _chapter(number: int, row: Row, end_s: float) -> str:
    head = f";FFMETADATA1\ncomment=scores by dgiqa-rt, {_escaped(row['bundle'])}\n" if number == 1 else ""
    start_ms = round(row["time_s"] * 1000)
    end_ms = max(round(end_s * 1000), start_ms + 1)
    title = _escaped(_words(row))
    return f"{head}[CHAPTER]\nTIMEBASE=1/1000\nSTART={start_ms}\nEND={end_ms}\ntitle={title}\n"


# SubRip (.srt): the score of each frame until the next one.
Subtitles = partial(_Spans, text=_subtitle)
# FFmpeg's metadata file: a chapter per frame, its title the score; ffmpeg -i in.mp4 -i FILE -map_metadata 1 ...
Chapters = partial(_Spans, text=_chapter)


def _stamp(time_s: float) -> str:
    milliseconds = round(time_s * 1000)
    seconds, ms = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02},{ms:03}"


def _words(row: Row) -> str:
    if row["score"] is None:
        return "no score: " + " ".join(row["error"].split())
    spread = "" if row["std_error"] is None else f" ± {row['std_error']:.3f}"
    return f"score {row['score']:.3f}{spread}"


def _escaped(text: str) -> str:
    """Escape =, ;, #, \\ and line ends, which have a meaning in FFmpeg's metadata files."""
    return "".join("\\" + c if c in "=;#\\\n" else c for c in text)
