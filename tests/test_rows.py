"""Rows -> table, JSON lines, CSV, JSON, and the file they end up in."""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import json
import math
import os
import subprocess
import sys
import time
import unicodedata
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from command import run_here
from rich.text import Text

from dgiqa.errors import BackendError, DgiqaError
from dgiqa.report.files import OutputFile, Report, format_of, left_behind, writer_for
from dgiqa.report.read import read_rows
from dgiqa.report.rows import (
    COLUMNS,
    DETAIL_COLUMNS,
    FRAME_COLUMNS,
    SCHEMA_VERSION,
    Row,
    Summary,
    error_row,
    gate_sentence,
    plural,
    printable,
    seconds_since,
    to_json,
)
from dgiqa.report.terminal import ProgressLine, TableWriter, console_for, print_table, shortened
from dgiqa.score import Score

NOT_UTF8 = os.fsdecode(b"caf\xe9.jpg")
AS_WRITTEN = {NOT_UTF8: "caf\\xe9.jpg", "=1+1.jpg": "./=1+1.jpg"}  # in CSV; the first in JSON as well
HOSTILE = ["a,b.jpg", 'q"uote.jpg', "two\nlines.jpg", "esc\x1b[31m.jpg", "snow ☃.jpg", NOT_UTF8, "=1+1.jpg"]


def make_score(value: float = 0.5, source: str = "a.jpg", std_error: float | None = 0.01) -> Score:
    windows = np.array([[0, 0], [0, 144], [0, 288]], np.int32)
    return Score(
        value=value,
        std_error=std_error,
        tile_scores=np.full(3, value, np.float32),
        windows=windows,
        tile=224,
        width=640,
        height=480,
        working_width=512,
        working_height=384,
        tiling="grid",
        timings_ms={"decode": 1.0, "depth": 2.5},
        bundle="test@0123456789ab",
        backend="onnxruntime-cpu 1.0",
        source=source,
    )


def written(name: str, rows: list[Row], **options: Any) -> str:
    stream = io.StringIO()
    summary = Summary()
    writer = writer_for(name, stream, **options)
    for row in rows:
        writer.write(row)
        summary.add(row)
    writer.finish(summary.as_dict(complete=True))
    return stream.getvalue()


def test_every_row_has_the_same_columns_in_the_same_order() -> None:
    assert tuple(make_score().as_row()) == COLUMNS
    assert tuple(error_row("a.jpg", "why")) == COLUMNS
    assert tuple(make_score().as_row(details=True)) == COLUMNS + DETAIL_COLUMNS
    assert tuple(error_row("a.jpg", "why", details=True)) == COLUMNS + DETAIL_COLUMNS


@pytest.mark.parametrize("std_error", [None, math.nan])
def test_an_unknown_standard_error_is_null(std_error: float | None) -> None:
    row = make_score(std_error=std_error).as_row()
    assert (row["status"], row["std_error"]) == ("ok", None)


def test_scores_have_six_decimals() -> None:
    row = make_score(0.123456789, std_error=0.0123456789).as_row()
    assert (row["score"], row["std_error"]) == (0.123457, 0.012346)


def test_what_is_below_the_threshold_is_counted() -> None:
    summary = Summary()
    for verdict in ("pass", "fail", None, "fail", "fail"):
        summary.add(make_score().as_row() | {"verdict": verdict})
    assert (summary.below, summary.as_dict(complete=True)["below"]) == (3, 3)


def test_details_are_in_pixels_of_the_image_and_milliseconds() -> None:
    row = make_score().as_row(details=True)
    assert row["windows"][1] == [0, 180, 280, 280]  # 144 and 224 pixels of 384, in an image of 480
    assert row["ms"] == sum(row["timings_ms"].values()) == 3.5
    assert row["tiles"] == len(row["tile_scores"]) == len(row["windows"]) == 3


def test_reasons_are_told_by_name_in_files_and_in_words_on_a_terminal() -> None:
    told = replace(make_score(), reasons={"blur": 0.9, "noise": 0.61234, "dark": 0.1}, faults=("blur", "noise"))
    row = told.as_row(details=True)
    assert row["reasons"] == ["blur", "noise"]
    assert row["reason_probabilities"] == {"blur": 0.9, "noise": 0.6123, "dark": 0.1}
    assert make_score().as_row(details=True)["reason_probabilities"] is None
    assert "a.jpg  blurred, noisy" in written("table", [row])
    assert "a.jpg  blurred, noisy; greyscale" in written("table", [row | {"note": "greyscale"}])


def test_json_is_one_line_for_every_reader_and_says_the_rest_as_it_is() -> None:
    ends = "\x7f\x80\x85\x9f\u2028\u2029"
    text = to_json({"path": f"a{ends}\xa0\u2027\u202a"})
    assert not any(end in text for end in ends)
    assert "\xa0\u2027\u202a" in text
    assert json.loads(text) == {"path": f"a{ends}\xa0\u2027\u202a"}


def test_time_since_a_start_is_what_has_passed() -> None:
    begun = time.perf_counter()
    found = seconds_since(begun - 5)
    assert 5 <= found <= 5 + time.perf_counter() - begun
    assert seconds_since(time.perf_counter() + 5) > 0


@pytest.mark.parametrize("details", [False, True])
def test_json_lines_csv_and_json_hold_the_same_rows(details: bool) -> None:
    rows = [make_score(source=name).as_row(details=details) for name in HOSTILE]
    rows.append(error_row("bad.jpg", 'not an image: "x"\n', details=details))
    lines = [json.loads(line) for line in written("jsonl", rows).splitlines()]
    document = json.loads(written("json", rows))
    cells = list(csv.DictReader(io.StringIO(written("csv", rows, details=details), newline="")))
    assert [line | {"path": row["path"]} for line, row in zip(lines, rows, strict=True)] == rows
    assert json.loads(to_json(rows)) == document["rows"]
    for row, cell in zip(rows, cells, strict=True):
        assert cell["path"] == AS_WRITTEN.get(row["path"], row["path"])
        assert cell["error"] == row["error"]
        assert cell["score"] == ("" if row["score"] is None else str(row["score"]))
        if details and row["windows"]:
            assert json.loads(cell["windows"]) == row["windows"]


def test_the_json_document_says_what_the_run_amounts_to() -> None:
    rows = [make_score(v, f"{v}.jpg").as_row() for v in (0.5, 0.25, 0.75)] + [error_row("x", "why")]
    summary = json.loads(written("json", rows))["summary"]
    assert summary["complete"] is True
    assert (summary["scored"], summary["failed"]) == (3, 1)
    assert (summary["mean"], summary["lowest"], summary["highest"]) == (0.5, 0.25, 0.75)
    assert summary["lowest_path"] == "0.25.jpg"


def test_documents_without_rows_are_valid() -> None:
    document = json.loads(written("json", []))
    assert document["rows"] == []
    assert document["summary"]["mean"] is None
    assert written("csv", []).split(",")[0] == "path"
    assert written("jsonl", []) == ""


def test_json_has_neither_nan_nor_invalid_utf8() -> None:
    text = to_json({"a": math.nan, "b": [math.inf, 1.5], "c": {"d": (-math.inf,)}, "name": NOT_UTF8, "snow": "☃"})
    assert json.loads(text.encode().decode()) == {
        "a": None, "b": [None, 1.5], "c": {"d": [None]}, "name": "caf\\xe9.jpg", "snow": "☃"
    }  # fmt: skip
    assert "☃" in to_json("☃")


def test_rows_are_flushed_one_by_one(tmp_path: Path) -> None:
    for name in ("jsonl", "csv", "json", "table"):
        with open(tmp_path / name, "w") as stream:
            writer_for(name, stream).write(make_score(source="first.jpg").as_row())
            assert "first.jpg" in (tmp_path / name).read_text()


def test_the_table_shows_score_size_and_name_without_escape_codes_in_a_file() -> None:
    header, good, bad = written("table", [make_score(0.625).as_row(), error_row("b", "why")]).splitlines()
    assert header.split() == ["score", "±", "size", "image"]
    assert good.startswith("0.6250  0.0100  ━━━━━━ ")
    assert good.endswith("640×480  a.jpg")
    assert bad == " error  b: why"


def test_the_table_is_ascii_where_the_encoding_is() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    writer = writer_for("table", stream)
    for name in HOSTILE:
        writer.write(make_score(source=name).as_row())
    text = raw.getvalue().decode("ascii")
    assert "  -----  " in text
    assert "640x480" in text
    assert "snow \\u2603.jpg" in text


def test_no_file_name_can_move_the_cursor() -> None:
    for name in HOSTILE:
        (_, line) = written("table", [make_score(source=name).as_row()]).splitlines()
        assert line.isprintable()
    assert printable("a\x1b]0;title\x07\n\u202eb") == "a\\x1b]0;title\\x07\\n\\u202eb"


@pytest.mark.parametrize(("score", "bar"), [(0.0, ""), (1.0, "━" * 10), (0.55, "━━━━━╸"), (7.0, "━" * 10)])
def test_bars_are_as_long_as_the_score(score: float, bar: str) -> None:
    (_, line) = written("table", [make_score(score).as_row()]).splitlines()
    assert line[16:26].rstrip() == bar


class Terminal(io.StringIO):
    """A terminal that shows colours."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("width", [24, 40, 50, 70, 120])
def test_lines_fit_the_terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    writer = TableWriter(stream)
    for name in ("a.jpg", "写真/猫の写真.jpg" * 9, "x" * 300):
        writer.write(make_score(source=name).as_row() | {"reasons": ["blur"], "note": "greyscale"})
    lines = stream.getvalue().splitlines()
    assert all(cells(line) <= width for line in lines)
    assert stream.getvalue().count("  blurred; greyscale\n") == 3  # on a line of its own, where there is no room
    assert len(lines) == {120: 4, 70: 6}.get(width, 7)
    assert sum(".jpg" in line for line in lines) == 2
    assert ("━" in stream.getvalue()) == (width >= 64)
    assert ("640×480" in stream.getvalue()) == (width >= 44)
    assert "\x1b" not in stream.getvalue()


def test_a_row_that_fails_says_so_without_colours() -> None:
    rows = [make_score().as_row() | {"verdict": verdict, "reasons": ["blur"]} for verdict in ("fail", "pass")]
    (_, low, high) = written("table", rows).splitlines()
    assert low.endswith("a.jpg  fail  blurred")
    assert high.endswith("a.jpg  blurred")


def test_an_error_names_its_file_once() -> None:
    told = written("table", [error_row("a.jpg", "a.jpg is 3 x 2, its reference 4 x 2"), error_row("b.jpg", "empty")])
    assert told.splitlines()[1:] == [" error  a.jpg is 3 x 2, its reference 4 x 2", " error  b.jpg: empty"]


def test_numbers_and_nouns_agree() -> None:
    assert [plural(number, "frame") for number in (0, 1, 2)] == ["0 frames", "1 frame", "2 frames"]


def test_tables_are_aligned_and_whole_on_narrow_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    stream = Terminal()
    print_table(console_for(stream), [("name", "score"), ("a" * 30, "1.5"), ("b", Text("10.25"))], numbers=[1])
    lines = Text.from_ansi(stream.getvalue()).plain.splitlines()
    assert lines == ["name" + " " * 28 + "score", "a" * 30 + "    1.5", "b" + " " * 31 + "10.25"]


def test_colours_are_for_terminals_without_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    row = make_score().as_row() | {"verdict": "fail"}
    for term, no_color, coloured in (("xterm", "", True), ("xterm", "1", False), ("dumb", "", False)):
        monkeypatch.setenv("TERM", term)
        monkeypatch.setenv("NO_COLOR", no_color)
        stream = Terminal()
        TableWriter(stream).write(row)
        assert ("\x1b[31m" in stream.getvalue()) == coloured
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" not in written("table", [row])


def cells(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def test_long_names_keep_their_end_and_fit() -> None:
    assert shortened("photos/2026/cat.jpg", 12) == "…026/cat.jpg"
    assert shortened("cat.jpg", 12) == "cat.jpg"
    for text in ("写真/猫の写真.jpg" * 3, "x" * 100):
        short = shortened(text, 20)
        assert 18 <= cells(short) <= 20
        assert text.endswith(short[1:])


def test_the_file_name_decides_the_format() -> None:
    assert [format_of(f"a/b.{suffix}") for suffix in ("csv", "jsonl", "JSON", "parquet")] == [
        "csv",
        "jsonl",
        "json",
        "parquet",
    ]
    for path in ("scores.xlsx", "scores", "csv"):
        with pytest.raises(ValueError, match=r"\.csv, \.jsonl, \.json, \.parquet or \.sqlite"):
            format_of(path)


def test_a_file_appears_only_when_whole_and_leaves_nothing_behind(tmp_path: Path) -> None:
    target = tmp_path / "a.csv"
    target.write_text("old")
    file = OutputFile(str(target))
    file.write("new")
    assert target.read_text() == "old"
    file.commit()
    assert target.read_text() == "new"
    discarded = OutputFile(str(target))
    discarded.write("half")
    discarded.discard()
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.csv"]


def test_rows_of_a_killed_run_are_beside_the_file_and_are_named(tmp_path: Path) -> None:
    target = tmp_path / "a[1].csv"
    file = OutputFile(str(target))
    file.write("path\nx.jpg\n")
    (partial,) = left_behind(str(target))
    assert os.path.basename(partial).startswith("a[1].partial-")
    assert partial.endswith(".csv")
    assert Path(partial).read_text() == "path\nx.jpg\n"
    file.commit()
    assert left_behind(str(target)) == []


def test_a_file_gets_the_usual_permissions_and_links_stay_links(tmp_path: Path) -> None:
    (tmp_path / "link.csv").symlink_to("real.csv")
    OutputFile(str(tmp_path / "link.csv")).commit()
    usual = tmp_path / "usual"
    usual.touch()
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").stat().st_mode == usual.stat().st_mode


@pytest.mark.parametrize("mode", [0o600, 0o664])
def test_a_file_that_is_replaced_keeps_its_mode_and_is_never_wider_meanwhile(tmp_path: Path, mode: int) -> None:
    target = tmp_path / "a.csv"
    target.touch()
    target.chmod(mode)
    file = OutputFile(str(target))
    assert os.stat(file.partial).st_mode & 0o777 == mode
    file.commit()
    assert target.stat().st_mode & 0o777 == mode


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_that_is_replaced_keeps_its_owner(tmp_path: Path) -> None:
    target = tmp_path / "a.csv"
    target.touch()
    os.chown(target, 12345, 23456)
    OutputFile(str(target)).commit()
    assert (target.stat().st_uid, target.stat().st_gid) == (12345, 23456)


def test_no_name_of_a_partial_file_can_be_guessed_and_no_planted_link_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = set()
    for _ in range(5):
        file = OutputFile(str(tmp_path / "a.csv"))
        names.add(file.partial)
        file.discard()
    assert len(names) == 5
    monkeypatch.setattr("secrets.token_hex", lambda n: "guessed")
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "a.partial-guessed.csv").symlink_to(tmp_path / "victim")
    with pytest.raises(FileExistsError):
        OutputFile(str(tmp_path / "a.csv"))
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_pipe_is_written_into_and_stays_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    reader = os.open(tmp_path / "pipe.jsonl", os.O_RDONLY | os.O_NONBLOCK)
    with Report() as report:
        file = OutputFile(str(tmp_path / "pipe.jsonl"))
        report.write_to(writer_for("jsonl", file), file)
        report.add(make_score().as_row())
        assert json.loads(os.read(reader, 4096))["path"] == "a.jpg"
        report.complete = True
    os.close(reader)
    assert (tmp_path / "pipe.jsonl").is_fifo()
    assert os.listdir(tmp_path) == ["pipe.jsonl"]


def test_a_device_is_written_into_and_stays_one() -> None:
    file = OutputFile(os.devnull)
    file.write("rows")
    file.commit()
    file.discard()
    assert Path(os.devnull).is_char_device()


def test_a_file_that_cannot_be_written_is_known_at_once(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "plain").touch()
    for path in ("folder.csv", "missing/a.csv", "plain/a.csv"):
        with pytest.raises(OSError):
            OutputFile(str(tmp_path / path))
    assert sorted(os.listdir(tmp_path)) == ["folder.csv", "plain"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_permissions_are_respected(tmp_path: Path) -> None:
    (tmp_path / "kept.csv").touch(mode=0o444)
    (tmp_path / "locked").mkdir(mode=0o555)
    for path in ("kept.csv", "locked/a.csv"):
        with pytest.raises(PermissionError):
            OutputFile(str(tmp_path / path))


def report_to(*paths: Path, details: bool = False) -> Report:
    report = Report()
    for path in paths:
        name = format_of(str(path))
        file = OutputFile(str(path), spooled=name == "parquet")
        report.write_to(writer_for(name, file, details=details), file)
    return report


def test_a_report_that_breaks_off_keeps_its_rows_in_a_valid_document(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    with contextlib.suppress(RuntimeError), report_to(target) as report:
        report.add(make_score().as_row())
        raise RuntimeError
    document = json.loads(target.read_text())
    assert [row["path"] for row in document["rows"]] == ["a.jpg"]
    assert document["summary"]["complete"] is False
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_report_that_breaks_off_before_its_first_row_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    target.write_text("old")
    with pytest.raises(RuntimeError), report_to(target):
        raise RuntimeError
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


class FullAfter:
    """What a disk does to a file that may hold `room` bytes: it takes a part of what does not fit."""

    def __init__(self, raw: io.FileIO, room: int) -> None:
        self.raw, self.room = raw, room

    def write(self, data: memoryview) -> int:
        fits = min(len(data), self.room - self.raw.tell())
        if not fits:
            raise OSError(28, "No space left on device")
        return self.raw.write(data[:fits])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_disk_that_is_full_at_a_row_keeps_the_rows_before_it(tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"a.{suffix}"
    target.write_text("old")
    report = report_to(target)
    file: Any = report.writers[0].__dict__.get("stream") or report.writers[0].__dict__["_file"]
    file._raw = FullAfter(file._raw, 1000)
    with pytest.raises(OSError, match="No space left"), report:  # noqa: PT012
        for i in range(100):
            report.add(make_score(source=f"{i}.jpg").as_row())
    rows = report.summary.scored
    assert 0 < rows < 100
    if suffix == "parquet":
        names = pytest.importorskip("pyarrow.parquet").read_table(target).column("path").to_pylist()
    elif suffix == "csv":
        names = [row["path"] for row in csv.DictReader(target.open(newline=""))]
    else:
        names = [json.loads(line)["path"] for line in target.read_text().splitlines()]
    assert names == [f"{i}.jpg" for i in range(rows)]
    assert os.listdir(tmp_path) == [target.name]


def test_a_document_that_cannot_be_closed_says_where_its_rows_are_and_takes_no_other_along(tmp_path: Path) -> None:
    targets = [tmp_path / "a.json", tmp_path / "b.json"]
    for target in targets:
        target.write_text("old")
    report = report_to(*targets)
    with pytest.raises(OSError, match=r"No space left.*its rows are in .*a\.partial-.*\.json"), report:  # noqa: PT012
        report.add(make_score().as_row())
        stream: Any = report.writers[0].__dict__["stream"]
        stream._raw = FullAfter(stream._raw, stream._raw.tell())
        report.complete = True
    assert targets[0].read_text() == "old"
    assert len(json.loads(targets[1].read_text())["rows"]) == 1
    (partial,) = left_behind(str(targets[0]))
    assert '"a.jpg"' in Path(partial).read_text()


class Gone(io.StringIO):
    """Standard output whose reader has left after some rows."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows

    def write(self, text: str) -> int:
        self.rows -= 1
        if self.rows < 0:
            raise BrokenPipeError
        return super().write(text)


def test_a_reader_that_leaves_takes_no_row_from_a_file(tmp_path: Path) -> None:
    report = report_to(tmp_path / "a.csv")
    with report:
        report.write_to(writer_for("jsonl", Gone(2)))
        for i in range(10):
            report.add(make_score(source=f"{i}.jpg").as_row())
        report.complete = True
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 11


def test_a_reader_that_leaves_ends_a_run_that_nobody_else_needs() -> None:
    for needed in (False, True):
        report = Report()
        report.needed = needed  # a gate's verdict must not rest on what was read
        report.write_to(writer_for("jsonl", Gone(1)))
        report.add(make_score().as_row())
        with contextlib.nullcontext() if needed else pytest.raises(BrokenPipeError):
            report.add(make_score().as_row())


def test_parquet_has_typed_columns_in_groups_and_the_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("dgiqa.report.files.ROW_GROUP", 2)
    rows = [make_score(source=name).as_row(details=True) for name in HOSTILE]
    rows += [error_row("bad.jpg", "why", details=True), rows[0] | {"reasons": ["blur", "noise"], "verdict": "fail"}]
    with report_to(tmp_path / "a.parquet", details=True) as report:
        (spool,) = left_behind(str(tmp_path / "a.parquet"))
        for row in rows:
            report.add(row)
        assert len(Path(spool).read_text().splitlines()) == len(rows)  # readable if the run were killed here
        report.complete = True
    table = parquet.read_table(tmp_path / "a.parquet")
    assert tuple(table.column_names) == COLUMNS + DETAIL_COLUMNS
    assert table.column("reasons").to_pylist()[-1] == ["blur", "noise"]
    assert table.column("score").to_pylist() == [row["score"] for row in rows]
    assert json.loads(table.column("windows").to_pylist()[0]) == rows[0]["windows"]
    metadata = parquet.read_metadata(tmp_path / "a.parquet")
    assert metadata.num_row_groups > 2
    assert json.loads(metadata.metadata[b"dgiqa"])["scored"] == len(rows) - 1
    assert os.listdir(tmp_path) == ["a.parquet"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_parquet_that_a_disk_takes_in_part_only_is_an_error(tmp_path: Path) -> None:
    """The kernel takes what fits and says how much that was; only what comes next is an error."""
    program = """
import os, resource, signal, sys
from dgiqa.report.files import whole_file, write_parquet
from dgiqa.report.rows import COLUMNS, error_row
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

def write(path):
    with whole_file(path) as target:
        write_parquet([error_row("a\\udce9.jpg", "no image")], target, COLUMNS, dict)

write("whole.parquet")
for less in (1, 4, 300):
    limit = os.path.getsize("whole.parquet") - less
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        write("part.parquet")
    except OSError as error:
        print(less, error.strerror)
"""
    pytest.importorskip("pyarrow")
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{less} File too large" for less in (1, 4, 300)]
    (row,) = read_rows(str(tmp_path / "whole.parquet"))
    assert row["path"] == r"a\xe9.jpg"
    assert os.listdir(tmp_path) == ["whole.parquet"]


@pytest.mark.parametrize("name", ["car\rret.jpg", "new\nline.jpg", "both\r\n.jpg", "\u2028\u0085.jpg", NOT_UTF8])
def test_every_name_is_one_row_for_strict_readers(tmp_path: Path, name: str) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow.csv
    import pyarrow.json

    with report_to(tmp_path / "a.csv", tmp_path / "a.jsonl") as report:
        report.add(make_score(source=name).as_row())
        report.complete = True
    lines = (tmp_path / "a.jsonl").read_bytes().decode().splitlines()
    assert len(lines) == 1
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        assert [len(cells) for cells in csv.reader(file)] == [len(COLUMNS)] * 2
    options = pyarrow.csv.ParseOptions(newlines_in_values=True)
    assert pyarrow.csv.read_csv(tmp_path / "a.csv", parse_options=options).num_rows == 1
    assert pyarrow.json.read_json(tmp_path / "a.jsonl").column("path").to_pylist() == [AS_WRITTEN.get(name, name)]


@pytest.mark.parametrize("text", ["=cmd|x", "+1", "-1.jpg", "@SUM(A1)", "\tx", "\rx"])
def test_no_cell_begins_as_a_formula_does(text: str) -> None:
    rows = [error_row(text, text), error_row("-", "of standard input")]
    first, second = csv.DictReader(io.StringIO(written("csv", rows), newline=""))
    assert (first["path"], first["error"], second["path"]) == (f"./{text}", f"'{text}", "-")


def test_a_key_in_quotation_marks_comes_back_and_a_path_is_left_as_it_is(tmp_path: Path) -> None:
    with report_to(tmp_path / "a.csv") as report:
        report.add(make_score(source="'a.jpg").as_row() | {"key": "'=k"})
        report.complete = True
    with (tmp_path / "a.csv").open(newline="") as file:
        (cells,) = csv.DictReader(file)
    assert (cells["path"], cells["key"]) == ("'a.jpg", "''=k")
    (row,) = read_rows(str(tmp_path / "a.csv"))
    assert (row["path"], row["key"]) == ("'a.jpg", "'=k")


def test_the_page_about_rows_is_the_one_that_the_schema_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    docs = Path(__file__).parent.parent / "docs"
    monkeypatch.syspath_prepend(str(docs))
    generate: Any = importlib.import_module("generate")
    page = (docs / "rows.md").read_text(encoding="utf-8")
    assert generate.rows() in page, "put the table that `generate.rows()` gives into docs/rows.md"
    assert f"This is version {SCHEMA_VERSION} of the schema" in page
    assert set(FRAME_COLUMNS) > {"time_s", "verdict", "reasons", "note", "tiling"}


def test_a_score_gives_the_row_that_files_have() -> None:
    score = make_score()
    assert (score.tiles, score.tiling) == (3, "grid") == (score.as_row()["tiles"], score.as_row()["tiling"])


def test_the_gate_is_one_sentence() -> None:
    assert gate_sentence(3, 20, "image", 0.4) == "3 of 20 images are below 0.4"
    assert gate_sentence(1, 1, "video", 0.45) == "1 of 1 video is below 0.45"
    assert gate_sentence(0, 1, "video", 0.45) == "0 of 1 video is below 0.45"
    assert gate_sentence(0, 2, "image", 0.5) == "0 of 2 images are below 0.5"


def test_a_clock_that_stands_still_divides_nothing_by_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgiqa.report.rows.time", SimpleNamespace(perf_counter=lambda: 5.0))
    summary = Summary(40, started=5.0)
    summary.add(make_score().as_row())
    assert summary.progress()[0] == 1 / 40
    assert summary.as_dict(complete=True)["images_per_second"] > 0


def test_the_progress_line_stays_on_one_line_and_goes_away() -> None:
    stream = io.StringIO()
    line, summary = ProgressLine(stream), Summary(40)
    line.show(summary, force=True)
    for i in range(10):
        summary.add(make_score().as_row() if i else error_row("b", "why"))
        line.show(summary, force=True)
    line.hide()
    text = stream.getvalue()
    assert "\n" not in text
    assert "━" in text
    assert "10/40" in text
    assert "1 failed" in text
    assert text.endswith("\r\x1b[2K")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        BackendError, match=r'^Parquet needs pyarrow .*; pip install "dgiqa-rt\[table\]", or end in .csv'
    ):
        format_of("a.parquet")
    done = run_here("score", "none.jpg", "-o", tmp_path / "a.parquet")
    assert (done.returncode, os.listdir(tmp_path)) == (5, [])


def test_a_csv_whose_quotes_do_not_end_is_no_table_of_ours(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('path,score\n"a" b.jpg,0.5\n')
    with pytest.raises(DgiqaError, match=r"a\.csv"):
        list(read_rows(str(tmp_path / "a.csv")))
