"""Rows -> curve, page, plot, subtitles and chapters: whole, bounded, safe to open, and understood by other programs."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jinja2
import numpy as np
import pytest

from dgiqa.report import page, plot
from dgiqa.report.curve import MAX_POINTS, Curve
from dgiqa.report.html import render
from dgiqa.report.page import HtmlReport
from dgiqa.report.plot import TimelinePlot
from dgiqa.report.rows import FRAME_COLUMNS
from dgiqa.report.subtitles import Chapters, Subtitles

SUMMARY: dict[str, Any] = {
    "complete": True,
    "videos": {},
    "reused": 0,
    "audits": 0,
    "mean_drift": None,
    "dropped": 0,
}
PICTURE = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)


def row(time_s: float, score: float | None, path: str = "a.mp4", scene: int = 0, error: str = "") -> dict[str, Any]:
    made: dict[str, Any] = dict.fromkeys(FRAME_COLUMNS) | {
        "path": path,
        "time_s": time_s,
        "score": score,
        "error": error,
    }
    return made | {
        "std_error": None if score is None else 0.01,
        "scene": scene,
        "frame": round(time_s * 25),
        "reused": "",
        "bundle": "small@0",
        "backend": "onnxruntime",
    }


def written(sink: Any, rows: list[dict[str, Any]], summary: dict[str, Any] = SUMMARY) -> Path:
    for item in rows:
        sink.write(item)
        if isinstance(sink, HtmlReport):
            sink.look(item, PICTURE if item["score"] is not None else None)
    sink.finish(summary)
    sink.file.commit()
    return Path(sink.file.path)


class Page(HTMLParser):
    """What a browser would fetch, and whether tags close."""

    VOID = ("meta", "img", "link", "br", "path", "circle", "polygon", "polyline")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_fetches_nothing(tmp_path: Path) -> None:
    rows = [row(i / 2, 0.5 + 0.3 * np.sin(i / 5), scene=i // 20) for i in range(60)]
    figures = {
        "mean": 0.5,
        "worst_interval": {"start_s": 1.0, "end_s": 3.0, "mean": 0.2},
        "video": "h264 1x1",
        "notes": ["interlaced"],
    }
    text = written(
        HtmlReport(str(tmp_path / "r.html"), 0.4), rows, SUMMARY | {"videos": {"a.mp4": figures}}
    ).read_text()
    page = Page(text)
    assert page.open == []
    assert page.sources
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources)
    assert not re.search(r"https?://|@import|url\(|<script|<link", text)
    assert "prefers-color-scheme: dark" in text
    assert "interlaced" in text
    assert "worst interval, 1–3 s" in text
    assert text.count('class="scene"') == 2
    assert text.count('class="gate"') == 1
    assert text.count("<tr>") == 61


def test_the_curve_goes_through_its_points(tmp_path: Path) -> None:
    text = written(
        HtmlReport(str(tmp_path / "r.html")), [row(t, s) for t, s in ((0, 1.0), (1, 0.0), (2, 0.5))]
    ).read_text()
    svg = ElementTree.fromstring(text[text.index("<svg") : text.index("</svg>") + 6])
    line = next(e for e in svg.iter() if e.tag.endswith("polyline"))
    points = [tuple(map(float, p.split(","))) for p in line.attrib["points"].split()]
    top, bottom = page.TOP, page.HEIGHT - page.BOTTOM
    assert [y for _, y in points] == pytest.approx([top, bottom, (top + bottom) / 2])
    left, right = page.LEFT, page.WIDTH - page.RIGHT
    assert [x for x, _ in points] == pytest.approx([left, (left + right) / 2, right])
    grid = [element.attrib["d"] for element in svg.iter() if element.attrib.get("class") == "grid"]
    levels = [bottom - share * (bottom - top) for share in (0, 0.25, 0.5, 0.75, 1)]
    assert grid == [f"M{left} {level:.1f}H{right}" for level in levels]


def test_the_worst_and_best_frames_are_shown_with_their_pictures(tmp_path: Path) -> None:
    scores = np.random.default_rng(1).permutation(np.linspace(0.1, 0.9, 50))
    rows = [row(2.0 * i, float(s)) for i, s in enumerate(scores)]
    text = written(HtmlReport(str(tmp_path / "r.html")), rows).read_text()
    shown = [float(s) for s in re.findall(r"<b>(\d\.\d{4})</b> at", text)]
    ordered = np.round(np.sort(scores), 4)
    assert shown == pytest.approx([*ordered[:6], *ordered[:-7:-1]])
    data = base64.b64decode(re.findall(r"base64,([^\"]+)", text)[0])
    assert data.startswith(b"\xff\xd8")


def test_thumbnails_are_not_all_of_the_same_moment(tmp_path: Path) -> None:
    """Three dips of many frames each: the lowest of each comes first."""
    rows = [row(i / 25, 0.9 - 0.1 * (i // 300) * (1 - abs(i % 300 - 150) / 150)) for i in range(900)]
    text = written(HtmlReport(str(tmp_path / "r.html")), rows).read_text()
    worst = [float(t) for t in re.findall(r"</b> at ([\d.]+) s", text)][:6]
    assert worst[0] == 30
    assert all(abs(a - b) >= page.APART_S for i, a in enumerate(worst) for b in worst[:i])
    assert min(abs(t - 18) for t in worst) == 0


def test_videos_come_as_they_were_named_and_say_why_they_failed(tmp_path: Path) -> None:
    rows = [row(0, 0.5, "b.mp4"), row(0, None, "c.mp4", error="gone"), row(0, 0.4, "a.mp4"), row(1, 0.4, "b.mp4")]
    summary = SUMMARY | {"videos": {name: {"scored": 1} for name in ("a.mp4", "b.mp4", "c.mp4")}}
    text = written(HtmlReport(str(tmp_path / "r.html")), rows, summary).read_text()
    assert re.findall(r"<h2>(.\.mp4)</h2>", text) == ["a.mp4", "b.mp4", "c.mp4"]
    assert text.count("<svg") == 2
    assert '<p class="failed">gone</p>' in text


def test_one_frame_is_a_point_on_an_axis_of_a_second(tmp_path: Path) -> None:
    figures = {"scored": 1, "worst_interval": {"start_s": 3.0, "end_s": 3.0, "mean": 0.5}}
    summary = SUMMARY | {"videos": {"a.mp4": figures}}
    text = written(HtmlReport(str(tmp_path / "r.html")), [row(3, 0.5)], summary).read_text()
    assert re.findall(r">([\d.]+) s</text>", text) == ["3", "3.2", "3.4", "3.6", "3.8", "4"]
    assert "1 frame scored" in text
    assert "worst interval," not in text
    assert 'class="worst"' not in text


def test_an_error_at_the_end_is_on_the_axis_and_in_its_place_in_the_table(tmp_path: Path) -> None:
    rows = [row(0, 0.5), row(1, None, error="lost"), row(2, 0.5), row(4, None, error="truncated")]
    summary = SUMMARY | {"videos": {"a.mp4": {"worst_interval": {"start_s": 0.0, "end_s": 2.0, "mean": 0.5}}}}
    text = written(HtmlReport(str(tmp_path / "r.html")), rows, summary).read_text()
    marks = [float(x) for x in re.findall(r'class="error" d="M([\d.]+)', text)]
    right = page.WIDTH - page.RIGHT
    assert marks == pytest.approx([page.LEFT + (right - page.LEFT) / 4, right], abs=0.1)
    assert re.findall(r"<tr><td>([\d.]+)</td>", text) == ["0.000", "1.000", "2.000", "4.000"]
    assert "red: could not be scored" in text
    (width,) = re.findall(r'class="worst" x="44.0" y="10" width="([\d.]+)"', text)
    assert float(width) == pytest.approx((right - page.LEFT) / 2, abs=0.1)


@pytest.mark.parametrize(
    ("last", "labels"),
    [
        (100, ["0 s", "20 s", "40 s", "60 s", "80 s", "100 s"]),
        (600, ["0:00", "2:00", "4:00", "6:00", "8:00", "10:00"]),
        (7200, ["0:00:00", "0:15:00", "0:30:00"]),
        (400_000, ["0:00:00", "24:00:00"]),
    ],
)
def test_long_videos_have_an_axis_of_minutes_and_hours(tmp_path: Path, last: float, labels: list[str]) -> None:
    text = written(HtmlReport(str(tmp_path / "r.html")), [row(0, 0.5), row(last, 0.5)]).read_text()
    assert re.findall(r'"middle">([^<]+)<', text)[: len(labels)] == labels


def test_names_and_errors_are_escaped(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>&.mp4"
    rows = [row(0, 0.5, name), row(1, None, name, error="<b>damaged</b>")]
    text = written(HtmlReport(str(tmp_path / "r.html")), rows).read_text()
    assert "<script" not in text
    assert "<b>damaged" not in text
    assert "&lt;b&gt;damaged" in text


def test_a_name_that_is_not_utf_8_is_shown_with_its_bytes(tmp_path: Path) -> None:
    text = written(HtmlReport(str(tmp_path / "r.html")), [row(0, 0.5, "caf\udce9.mp4")]).read_text(encoding="utf-8")
    assert "caf\\xe9.mp4" in text


def test_verdicts_reasons_and_notes_are_in_sentence_gallery_and_table(tmp_path: Path) -> None:
    bad = row(0, 0.2) | {"verdict": "fail", "reasons": ["blur", "noise"], "note": "black bars left out"}
    summary = SUMMARY | {"videos": {"a.mp4": {"scored": 2, "verdict": "fail"}, "b.mp4": {"scored": 0, "verdict": None}}}
    text = written(HtmlReport(str(tmp_path / "r.html"), 0.4), [bad, row(5, 0.5) | {"verdict": "pass"}], summary)
    page = text.read_text()
    assert "1 of 1 video is below 0.4." in page
    assert '<h2>a.mp4 <span class="badge fail">fail</span></h2>' in page
    assert '<span class="badge pass">pass</span>' in page
    assert page.count("blurred, noisy; black bars left out") == 3  # among the worst, the best, and in the table


def test_a_template_that_misses_a_value_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match="videos"):
        render("video.html", title="t", sentence="", legend="", worst=[], best=[], made_by="", summary={})


def test_a_video_without_a_score_still_makes_a_page(tmp_path: Path) -> None:
    text = written(HtmlReport(str(tmp_path / "r.html")), [row(0, None, error="no video")]).read_text()
    assert "0 frames scored, 1 failed" in text
    assert '<p class="failed">no video</p>' in text
    assert "<svg" not in text
    assert "–</b>" not in text


def test_a_long_curve_is_thinned_and_its_dips_stay() -> None:
    curve = Curve()
    for i in range(50_000):
        curve.add(row(i / 25, 0.1 if i == 31_234 else 0.8))
    points = curve.all_points()
    assert len(points) <= MAX_POINTS
    assert min(p.score for p in points) == 0.1
    assert next(p for p in points if p.score == 0.1).time_s == 31_234 / 25
    assert points[-1].time_s > 49_900 / 25


@pytest.mark.slow
def test_the_page_of_a_long_video_stays_small(tmp_path: Path) -> None:
    rows = [row(i / 25, 0.5 + 0.4 * np.sin(i / 99)) for i in range(9_000)]
    path = written(HtmlReport(str(tmp_path / "r.html")), rows)
    assert path.stat().st_size < 1_500_000
    assert path.read_text().count("<tr>") <= page.MAX_TABLE + 2


def test_the_plot_is_a_picture_with_a_panel_per_video(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    import cv2

    rows = [row(i / 2, 0.5, name) for i in range(20) for name in ("a.mp4", "b.mp4")] + [row(3, None, error="x")]
    one = cv2.imread(str(written(TimelinePlot(str(tmp_path / "1.png")), rows[::2])))
    two = cv2.imread(str(written(TimelinePlot(str(tmp_path / "2.png"), 0.4), rows)))
    assert one is not None
    assert two is not None
    assert two.shape[0] > 1.5 * one.shape[0]


def test_the_plot_of_very_many_videos_is_still_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    import cv2

    monkeypatch.setattr(plot, "MAX_PIXELS", 600)
    rows = [row(0, None, f"{i}.mp4", error="gone") for i in range(10)]
    picture = cv2.imread(str(written(TimelinePlot(str(tmp_path / "p.png")), rows)))
    assert picture is not None
    assert 500 < picture.shape[0] <= 600


def test_subtitles_last_until_the_next_frame(tmp_path: Path) -> None:
    rows = [row(0, 0.5), row(0.52, 0.25), row(3661.001, None, error="lost\n\npacket")]
    text = written(Subtitles(str(tmp_path / "s.srt")), rows).read_text()
    blocks = text.strip().split("\n\n")
    assert blocks[0] == "1\n00:00:00,000 --> 00:00:00,520\nscore 0.500 ± 0.010"
    assert blocks[1].splitlines()[1] == "00:00:00,520 --> 01:01:01,001"
    assert blocks[2].splitlines()[2] == "no score: lost packet"
    ends = SUMMARY | {"videos": {"a.mp4": {"end_s": 3661.5}}}
    text = written(Subtitles(str(tmp_path / "s.srt")), rows, ends).read_text()
    assert "01:01:01,001 --> 01:01:01,500" in text, "with the video"
    assert len(blocks) == 3


def test_chapters_and_subtitles_are_read_by_ffmpeg(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    rows = [row(i / 2, 0.1 * i) for i in range(1, 6)]
    with av.open(str(written(Chapters(str(tmp_path / "c.ffmeta")), rows)), format="ffmetadata") as container:
        chapters = container.chapters()
        assert "small@0" in container.metadata["comment"]
    assert [c["start"] * float(c["time_base"]) for c in chapters] == [0.5, 1.0, 1.5, 2.0, 2.5]
    assert [c["end"] * float(c["time_base"]) for c in chapters] == [1.0, 1.5, 2.0, 2.5, 3.0]
    assert chapters[2]["metadata"]["title"] == "score 0.300 ± 0.010"
    with av.open(str(written(Subtitles(str(tmp_path / "s.srt")), rows))) as container:
        packets = [p for p in container.demux() if p.size]
    assert [float(p.pts * p.time_base) for p in packets] == [0.5, 1.0, 1.5, 2.0, 2.5]
    assert bytes(packets[0]).decode() == "score 0.100 ± 0.010"


def test_characters_with_a_meaning_in_metadata_files_are_escaped(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    rows = [row(0, None, error="a=b; #c \\d")]
    with av.open(str(written(Chapters(str(tmp_path / "c.ffmeta")), rows)), format="ffmetadata") as container:
        assert container.chapters()[0]["metadata"]["title"] == "no score: a=b; #c \\d"


def test_subtitles_describe_one_video(tmp_path: Path) -> None:
    sink = Subtitles(str(tmp_path / "s.srt"))
    sink.write(row(0, 0.5))
    with pytest.raises(ValueError, match="one video"):
        sink.write(row(0, 0.5, "b.mp4"))
    sink.file.discard()
    assert list(tmp_path.iterdir()) == []
