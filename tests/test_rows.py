"""Rows -> table, JSON lines, CSV, JSON, and the file they end up in."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dgiqa.forward import Score
from dgiqa.report.rows import (
    COLUMNS,
    DETAIL_COLUMNS,
    AtomicFile,
    ProgressLine,
    Report,
    Row,
    Summary,
    draw_bar,
    error_row,
    format_of,
    printable,
    score_row,
    shortened,
    to_json,
    writer_for,
)

NOT_UTF8 = os.fsdecode(b"caf\xe9.jpg")
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
        tiles="grid",
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
    assert tuple(score_row(make_score())) == COLUMNS
    assert tuple(error_row("a.jpg", "why")) == COLUMNS
    assert tuple(score_row(make_score(), details=True)) == COLUMNS + DETAIL_COLUMNS
    assert tuple(error_row("a.jpg", "why", details=True)) == COLUMNS + DETAIL_COLUMNS


@pytest.mark.parametrize("std_error", [None, math.nan])
def test_an_unknown_standard_error_is_null(std_error: float | None) -> None:
    row = score_row(make_score(std_error=std_error))
    assert (row["status"], row["std_error"]) == ("ok", None)


def test_details_are_in_pixels_of_the_image_and_milliseconds() -> None:
    row = score_row(make_score(), details=True)
    assert row["windows"][1] == [0, 180, 280, 280]  # 144 and 224 pixels of 384, in an image of 480
    assert row["ms"] == sum(row["timings_ms"].values()) == 3.5
    assert row["tiles"] == len(row["tile_scores"]) == len(row["windows"]) == 3


@pytest.mark.parametrize("details", [False, True])
def test_json_lines_csv_and_json_hold_the_same_rows(details: bool) -> None:
    rows = [score_row(make_score(source=name), details=details) for name in HOSTILE]
    rows.append(error_row("bad.jpg", 'not an image: "x"\n', details=details))
    lines = [json.loads(line) for line in written("jsonl", rows).splitlines()]
    document = json.loads(written("json", rows))
    cells = list(csv.DictReader(io.StringIO(written("csv", rows, details=details), newline="")))
    assert lines == document["rows"] == rows
    for row, cell in zip(rows, cells, strict=True):
        assert cell["path"] == row["path"]
        assert cell["error"] == row["error"]
        assert cell["score"] == ("" if row["score"] is None else str(row["score"]))
        if details and row["windows"]:
            assert json.loads(cell["windows"]) == row["windows"]


def test_the_json_document_says_what_the_run_amounts_to() -> None:
    rows = [score_row(make_score(v, f"{v}.jpg")) for v in (0.5, 0.25, 0.75)] + [error_row("x", "why")]
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
        "a": None, "b": [None, 1.5], "c": {"d": [None]}, "name": NOT_UTF8, "snow": "☃"
    }  # fmt: skip
    assert "☃" in to_json("☃")


def test_rows_are_flushed_one_by_one(tmp_path: Path) -> None:
    for name in ("jsonl", "csv", "json", "table"):
        with open(tmp_path / name, "w") as stream:
            writer_for(name, stream).write(score_row(make_score(source="first.jpg")))
            assert "first.jpg" in (tmp_path / name).read_text()


def test_the_table_shows_score_size_and_name_without_escape_codes_in_a_file() -> None:
    header, good, bad = written("table", [score_row(make_score(0.625)), error_row("b", "why")]).splitlines()
    assert header.split() == ["score", "±", "size", "image"]
    assert good.startswith("0.6250  0.0100  ██████▎")
    assert good.endswith("640×480  a.jpg")
    assert bad == " error  b: why"


def test_the_table_is_ascii_where_the_encoding_is() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    writer = writer_for("table", stream)
    for name in HOSTILE:
        writer.write(score_row(make_score(source=name)))
    text = raw.getvalue().decode("ascii")
    assert "#####-----" in text
    assert "640x480" in text
    assert "snow \\u2603.jpg" in text


def test_no_file_name_can_move_the_cursor() -> None:
    for name in HOSTILE:
        (_, line) = written("table", [score_row(make_score(source=name))]).splitlines()
        assert line.isprintable()
    assert printable("a\x1b]0;title\x07\n\u202eb") == "a\\x1b]0;title\\x07\\n\\u202eb"


def test_bars_are_as_long_as_the_score() -> None:
    assert draw_bar(0.0, True) == " " * 10
    assert draw_bar(1.0, True) == "█" * 10
    assert draw_bar(0.55, True) == "█" * 5 + "▌" + " " * 4
    assert draw_bar(0.5, False) == "#####-----"
    assert {len(draw_bar(i / 1000, True)) for i in range(1001)} == {10}
    assert draw_bar(7.0, True) == draw_bar(1.0, True)


def test_long_names_keep_their_end_and_fit() -> None:
    assert shortened("photos/2026/cat.jpg", 12) == "…026/cat.jpg"
    assert shortened("cat.jpg", 12) == "cat.jpg"
    for text in ("写真/猫の写真.jpg" * 3, "x" * 100):
        short = shortened(text, 20)
        cells = sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in short)
        assert 18 <= cells <= 20
        assert text.endswith(short[1:])


def test_the_file_name_decides_the_format() -> None:
    assert [format_of(f"a/b.{suffix}") for suffix in ("csv", "jsonl", "JSON")] == ["csv", "jsonl", "json"]
    for path in ("scores.xlsx", "scores", "csv"):
        with pytest.raises(ValueError, match=r"\.csv, \.jsonl or \.json"):
            format_of(path)


def test_a_file_appears_only_when_whole_and_leaves_nothing_behind(tmp_path: Path) -> None:
    target = tmp_path / "a.csv"
    target.write_text("old")
    file = AtomicFile(str(target))
    file.stream.write("new")
    file.stream.flush()
    assert target.read_text() == "old"
    file.commit()
    assert target.read_text() == "new"
    discarded = AtomicFile(str(target))
    discarded.stream.write("half")
    discarded.discard()
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.csv"]


def test_a_file_gets_the_usual_permissions_and_links_stay_links(tmp_path: Path) -> None:
    (tmp_path / "link.csv").symlink_to("real.csv")
    AtomicFile(str(tmp_path / "link.csv")).commit()
    usual = tmp_path / "usual"
    usual.touch()
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").stat().st_mode == usual.stat().st_mode


def test_a_file_that_cannot_be_written_is_known_at_once(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "plain").touch()
    for path in ("folder.csv", "missing/a.csv", "plain/a.csv"):
        with pytest.raises(OSError):
            AtomicFile(str(tmp_path / path))
    assert sorted(os.listdir(tmp_path)) == ["folder.csv", "plain"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_permissions_are_respected(tmp_path: Path) -> None:
    (tmp_path / "kept.csv").touch(mode=0o444)
    (tmp_path / "locked").mkdir(mode=0o555)
    for path in ("kept.csv", "locked/a.csv"):
        with pytest.raises(PermissionError):
            AtomicFile(str(tmp_path / path))


def report_to(path: Path) -> Report:
    report = Report()
    file = report.own(AtomicFile(str(path)))
    report.write_to(writer_for("json", file.stream), file)
    return report


def test_a_report_that_breaks_off_keeps_its_rows_in_a_valid_document(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    report = report_to(target)
    with contextlib.suppress(RuntimeError), report:
        report.add(score_row(make_score()))
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


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("full", [0, 1])
def test_a_disk_that_is_full_in_the_end_leaves_the_old_file_and_takes_no_other_along(tmp_path: Path, full: int) -> None:
    targets = [tmp_path / "a.json", tmp_path / "b.json"]
    for target in targets:
        target.write_text("old")
    report = Report()
    files = [report.own(AtomicFile(str(target))) for target in targets]
    for file in files:
        report.write_to(writer_for("json", file.stream), file)
    report.add(score_row(make_score()))
    with open("/dev/full", "wb") as device:
        os.dup2(device.fileno(), files[full].stream.fileno())
    with pytest.raises(OSError, match="No space left"), report:
        report.complete = True
    assert targets[full].read_text() == "old"
    assert len(json.loads(targets[1 - full].read_text())["rows"]) == 1
    assert sorted(os.listdir(tmp_path)) == ["a.json", "b.json"]


def test_the_progress_line_stays_on_one_line_and_goes_away() -> None:
    stream = io.StringIO()
    line, summary = ProgressLine(stream, total=40), Summary()
    line.show(summary, force=True)
    for i in range(10):
        summary.add(score_row(make_score()) if i else error_row("b", "why"))
        line.show(summary, force=True)
    line.hide()
    text = stream.getvalue()
    assert "\n" not in text
    assert "10/40" in text
    assert "1 failed" in text
    assert text.endswith("\r\x1b[2K")
