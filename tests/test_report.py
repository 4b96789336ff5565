"""Rows -> curve, page, plot, subtitles and chapters: whole, bounded, safe to open, and understood by other programs."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from dgiqa.video import VIDEO_COLUMNS, report
from dgiqa.video.report import Chapters, Curve, HtmlReport, Subtitles, TimelinePlot

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
    made: dict[str, Any] = dict.fromkeys(VIDEO_COLUMNS) | {
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
    }


def written(sink: Any, rows: list[dict[str, Any]], summary: dict[str, Any] = SUMMARY) -> Path:
    for item in rows:
        sink.add(item, PICTURE if item["score"] is not None else None)
    sink.write(summary)
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
    top, bottom = report.TOP, report.HEIGHT - report.BOTTOM
    assert [y for _, y in points] == pytest.approx([top, bottom, (top + bottom) / 2])
    assert points[1][0] == pytest.approx((points[0][0] + points[2][0]) / 2)


def test_the_worst_and_best_frames_are_shown_with_their_pictures(tmp_path: Path) -> None:
    scores = np.random.default_rng(1).permutation(np.linspace(0.1, 0.9, 50))
    text = written(HtmlReport(str(tmp_path / "r.html")), [row(i, float(s)) for i, s in enumerate(scores)]).read_text()
    shown = [float(s) for s in re.findall(r"<b>(\d\.\d{4})</b> at", text)]
    ordered = np.round(np.sort(scores), 4)
    assert shown == pytest.approx([*ordered[:6], *ordered[:-7:-1]])
    data = base64.b64decode(re.findall(r"base64,([^\"]+)", text)[0])
    assert data.startswith(b"\xff\xd8")


def test_names_and_errors_are_escaped(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>&.mp4"
    rows = [row(0, 0.5, name), row(1, None, name, error="<b>damaged</b>")]
    text = written(HtmlReport(str(tmp_path / "r.html")), rows).read_text()
    assert "<script" not in text
    assert "<b>damaged" not in text
    assert "&lt;b&gt;damaged" in text


def test_a_video_without_a_score_still_makes_a_page(tmp_path: Path) -> None:
    text = written(HtmlReport(str(tmp_path / "r.html")), [row(0, None, error="no video")]).read_text()
    assert "No frame could be scored" in text
    assert "no video" in text


def test_a_long_curve_is_thinned_and_its_dips_stay() -> None:
    curve = Curve()
    for i in range(50_000):
        curve.add(row(i / 25, 0.1 if i == 31_234 else 0.8))
    points = curve.all_points()
    assert len(points) <= report.MAX_POINTS
    assert min(p.score for p in points) == 0.1
    assert next(p for p in points if p.score == 0.1).time_s == 31_234 / 25
    assert points[-1].time_s > 49_900 / 25


def test_the_page_of_a_long_video_stays_small(tmp_path: Path) -> None:
    rows = [row(i / 25, 0.5 + 0.4 * np.sin(i / 99)) for i in range(9_000)]
    path = written(HtmlReport(str(tmp_path / "r.html")), rows)
    assert path.stat().st_size < 1_500_000
    assert path.read_text().count("<tr>") <= report.MAX_TABLE + 2


def test_the_plot_is_a_picture_with_a_panel_per_video(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    import cv2

    rows = [row(i / 2, 0.5, name) for i in range(20) for name in ("a.mp4", "b.mp4")] + [row(3, None, error="x")]
    one = cv2.imread(str(written(TimelinePlot(str(tmp_path / "1.png")), rows[::2])))
    two = cv2.imread(str(written(TimelinePlot(str(tmp_path / "2.png"), 0.4), rows)))
    assert one is not None
    assert two is not None
    assert two.shape[0] > 1.5 * one.shape[0]


def test_subtitles_last_until_the_next_frame(tmp_path: Path) -> None:
    rows = [row(0, 0.5), row(0.52, 0.25), row(3661.001, None, error="lost\n\npacket")]
    text = written(Subtitles(str(tmp_path / "s.srt")), rows).read_text()
    blocks = text.strip().split("\n\n")
    assert blocks[0] == "1\n00:00:00,000 --> 00:00:00,520\nscore 0.500 ± 0.010"
    assert blocks[1].splitlines()[1] == "00:00:00,520 --> 01:01:01,001"
    assert blocks[2].splitlines()[2] == "no score: lost packet"
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
    sink.add(row(0, 0.5), None)
    with pytest.raises(ValueError, match="one video"):
        sink.add(row(0, 0.5, "b.mp4"), None)
    sink.file.discard()
    assert list(tmp_path.iterdir()) == []
