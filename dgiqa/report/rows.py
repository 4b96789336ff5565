"""Rows of scores, failures, frames and pairs: one table of columns, from which every format and docs/rows.md come.

A row is a dict with the columns of its kind, always all of them and in this order.
"""

import json
import math
import re
import time
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TextIO

from dgiqa.meaning import words

SCHEMA_VERSION = 1  # raised when a column changes its meaning or goes away; new columns may be added at the end

Kind = Literal["image", "frame", "pair", "video"]
Row = dict[str, Any]
KINDS: tuple[Kind, ...] = ("image", "frame", "pair", "video")


@dataclass(frozen=True)
class Column:
    """One column. type: "string", "float64", "int64", or "list" (of strings; a text with commas in CSV) or "json"
    (a JSON document in CSV and Parquet). of: the kinds of rows that have it; details: only with --details."""

    name: str
    type: str
    meaning: str
    of: tuple[Kind, ...] = KINDS
    details: bool = False


_ESCAPES = {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), 0x2028, 0x2029)}
_ESCAPED = re.compile(f"[{''.join(map(chr, _ESCAPES))}]")

FRAME: tuple[Kind, ...] = ("frame",)
IMAGE: tuple[Kind, ...] = ("image",)
PAIR: tuple[Kind, ...] = ("pair",)
VIDEO: tuple[Kind, ...] = ("video",)
ALONE: tuple[Kind, ...] = ("image", "frame", "video")
SCHEMA = (
    Column(
        "path", "string", "The input as it was named; of a folder, the folder as it was named and the path below it."
    ),
    Column("time_s", "float64", "The frame's time in seconds; null for pairs of images.", ("frame", "pair")),
    Column("frame", "int64", "The frame's number in the video, from 0.", FRAME),
    Column("scene", "int64", "The scene that the frame is in, counted from 0.", FRAME),
    Column("score", "float64", "How good the picture looks, from 0 to 1; for a video the mean; null with an error."),
    Column("std_error", "float64", "Standard error of the score over the tiles; null for a single tile."),
    Column("width", "int64", "Width in pixels, as decoded and turned upright."),
    Column("height", "int64", "Height in pixels."),
    Column("tiles", "int64", "How many tiles the score is the mean of."),
    Column("tiling", "string", 'How the tiles were laid out: "grid" or "official:COUNT[:SEED]".'),
    Column("reused", "string", 'Taken over from an earlier frame: "", "depth" or "depth+tiles".', FRAME),
    Column("tiles_reused", "int64", "Tiles whose score was taken over from an earlier frame.", FRAME),
    Column("drift", "float64", "How much the reuse would have added to the score, if that was checked.", FRAME),
    Column("status", "string", '"ok" or "error".'),
    Column("error", "string", "Why there is no score, and what to do; empty with a score."),
    Column("bundle", "string", "The model, with the beginning of its hash."),
    Column("backend", "string", "What ran the networks, with its version."),
    Column("ms", "float64", "Milliseconds spent on this row, waiting left out."),
    Column("schema_version", "int64", f"{SCHEMA_VERSION}; raised when a column changes its meaning or goes away."),
    Column("verdict", "string", '"pass" or "fail" against --fail-under or the preset; null without either.'),
    Column("reasons", "list", "The faults that the model sees, the clearest first; null if it names no faults.", ALONE),
    Column("note", "string", "What to know about this picture and its score; null if there is nothing."),
    Column("key", "string", "A sample's key in a shard, or a row's by --key, byte for byte; null for files.", IMAGE),
    Column("tile_scores", "json", "The score of each tile.", IMAGE, True),
    Column("windows", "json", "y, x, height and width of each tile in pixels of the image.", IMAGE, True),
    Column("timings_ms", "json", "Milliseconds of each stage; their sum is ms.", IMAGE, True),
    Column("reason_probabilities", "json", "How likely each fault is; null if the model names no faults.", IMAGE, True),
    Column("attributes", "json", "Measured attributes: sharpness, noise, light, colour, blocks.", IMAGE, True),
    Column("reference", "string", "The picture that it was compared with.", PAIR),
    Column("reference_score", "float64", "How good the reference looks, from 0 to 1.", PAIR),
    Column("drop", "float64", "The reference's score less the picture's: what was lost.", PAIR),
    Column("drop_error", "float64", "Standard error of the drop over pairs of tiles; null for a single one.", PAIR),
    Column(
        "full_reference",
        "float64",
        "How close both look, from 0 to 0.982 for equal pictures; null for pictures on a GPU.",
        PAIR,
    ),
    Column("frames", "int64", "How many frames were scored.", VIDEO),
    Column("failed_frames", "int64", "How many could not be scored.", VIDEO),
    Column("harmonic_mean", "float64", "Harmonic mean over the frames: bad ones weigh more.", VIDEO),
    Column("p5", "float64", "The score that 5% of the frames are below.", VIDEO),
    Column("lowest", "float64", "The lowest score.", VIDEO),
    Column("lowest_s", "float64", "The time of the lowest score, in seconds.", VIDEO),
    Column("highest", "float64", "The highest score.", VIDEO),
    Column("worst_mean", "float64", "Mean of the worst interval.", VIDEO),
    Column("worst_start_s", "float64", "Where the worst interval begins, in seconds.", VIDEO),
    Column("worst_end_s", "float64", "Where it ends, in seconds.", VIDEO),
)


def columns(kind: Kind, *, details: bool = False) -> tuple[str, ...]:
    """The names of a row's columns, in order."""
    return tuple(c.name for c in SCHEMA if kind in c.of and (details or not c.details))


COLUMNS = columns("image")
DETAIL_COLUMNS = tuple(c.name for c in SCHEMA if c.details)
FRAME_COLUMNS = columns("frame")


def row_of(kind: Kind, **values: Any) -> Row:
    """A row of the kind with these values; columns that are not named are null."""
    row = dict.fromkeys(columns(kind)) | {"status": "ok", "error": "", "schema_version": SCHEMA_VERSION}
    return row | values


def rounded(value: float | None, digits: int) -> float | None:
    """The rounded value; None instead of NaN and infinity, which JSON does not have."""
    return None if value is None or not math.isfinite(value) else round(float(value), digits)


def error_row(name: str, message: str, *, details: bool = False, key: str | None = None, **origin: str) -> Row:
    """One input that could not be scored, as a row: status "error", the message, and no score.

    origin: the bundle, backend and tiling that it was to be scored with, "" where unknown.
    """
    unknown = {"bundle": "", "backend": "", "tiling": ""}
    row = row_of("image", path=name, status="error", error=message, key=key) | unknown | origin
    return row | dict.fromkeys(DETAIL_COLUMNS) if details else row


class Tally(Protocol):
    """Sums over rows: a Summary, of images or of videos."""

    @property
    def scored(self) -> int: ...
    @property
    def failed(self) -> int: ...
    def add(self, row: Row) -> None: ...
    def as_dict(self, *, complete: bool) -> dict[str, Any]: ...
    def progress(self) -> tuple[float | None, list[str]]:
        """The share that is done, None if unknown, and the texts of the progress line."""


@dataclass
class Summary:
    """Sums over a run of images, kept up row by row in constant memory.

    total: how many there will be. kept: how many of the scored an earlier run scored. run: the settings of the scores,
    for files. lowest, highest: None without a score.
    """

    total: int | None = None
    scored: int = 0
    failed: int = 0
    below: int = 0
    sum: float = 0.0
    lowest: float | None = None
    highest: float | None = None
    lowest_path: str = ""
    started: float = field(default_factory=time.perf_counter)
    run: dict[str, Any] | None = None
    kept: int = 0

    def add(self, row: Row) -> None:
        """Count one row."""
        score = row["score"]
        if score is None:
            self.failed += 1
            return
        self.scored += 1
        self.below += row["verdict"] == "fail"
        self.sum += score
        if self.lowest is None or score < self.lowest:
            self.lowest, self.lowest_path = score, row["path"]
        self.highest = score if self.highest is None else max(self.highest, score)

    @property
    def mean(self) -> float | None:
        """Mean score; None without one."""
        return self.sum / self.scored if self.scored else None

    @property
    def seconds(self) -> float:
        """Seconds since the summary was created."""
        return seconds_since(self.started)

    def progress(self) -> tuple[float | None, list[str]]:
        done = self.scored + self.failed
        if done == self.kept:
            return None, ["loading the model"]
        speed = (done - self.kept) / self.seconds
        if not self.total:
            return None, [f"{done} images", f"{speed:.1f} images/s"]
        left = clock((self.total - done) / speed)
        return done / self.total, [f"{done}/{self.total}", f"{speed:.1f} images/s", f"{left} left"]

    def as_dict(self, *, complete: bool) -> dict[str, Any]:
        """The summary of a JSON document. complete: False when the run ended before its inputs did."""
        made = {} if self.run is None else {"run": self.run}
        return made | {
            "complete": complete,
            "scored": self.scored,
            "failed": self.failed,
            "below": self.below,
            "mean": rounded(self.mean, 6),
            "lowest": self.lowest,
            "lowest_path": self.lowest_path or None,
            "highest": self.highest,
            "seconds": rounded(self.seconds, 3),
            "images_per_second": rounded((self.scored - self.kept) / self.seconds, 3),
        }


def seconds_since(started: float) -> float:
    """Seconds since a `time.perf_counter`, never 0: some machines' clocks tick seldom."""
    return max(time.perf_counter() - started, 1e-9)


def remarks(row: Row) -> str:
    """A row's reasons in words and its note: "blurred, noisy; looks like a screenshot"; empty without any."""
    return "; ".join(filter(None, (words(row.get("reasons") or []), row.get("note") or "")))


def plural(number: int, noun: str) -> str:
    """ "1 frame", "2 frames"."""
    return f"{number} {noun}{'s' * (number != 1)}"


def gate_sentence(below: int, of: int, noun: str, gate: float) -> str:
    """ "3 of 20 images are below 0.4": the last line of a run with a threshold."""
    return f"{below} of {plural(of, noun)} {'is' if 1 in (below, of) else 'are'} below {gate:g}"


def clock(seconds: float, longest: float = 0.0) -> str:
    """ "2:05", or "1:00:00" if it, or the longest time next to it, is an hour or more."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours or longest >= 3600 else f"{minutes}:{seconds:02}"


def to_json(value: Any) -> str:
    """JSON on one line, valid UTF-8 for every reader.

    NaN and infinity become null. Bytes of file names that are not UTF-8 are written as \\xNN. Characters that some
    readers take for the end of a line (U+0085, U+2028, U+2029) and other control characters are escaped.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except ValueError:  # NaN, infinity, or bytes that are not UTF-8: rare, and looking for them takes time
        text = json.dumps(_strict(value), ensure_ascii=False, allow_nan=False)
    return text.translate(_ESCAPES) if _ESCAPED.search(text) else text


def readable(text: str) -> str:
    """Text that is valid UTF-8: bytes of a file name that are not become \\xNN."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return text


def is_terminal(stream: TextIO) -> bool:
    """Whether the stream is an open terminal."""
    return not stream.closed and stream.isatty()


def printable(text: str) -> str:
    """Text safe for a terminal: control characters and non-Unicode bytes are escaped, so a file name cannot move the
    cursor or break the line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _strict(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return readable(value)
    if isinstance(value, dict):
        return {readable(key): _strict(item) for key, item in value.items()}
    return [_strict(item) for item in value] if isinstance(value, list | tuple) else value
