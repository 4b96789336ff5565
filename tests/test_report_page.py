"""Scored rows -> a page, and what two sets of them differ by."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from command import run_here

from dgiqa.batch.drift import Monitor, changes, drift, population
from dgiqa.errors import DgiqaError
from dgiqa.report.rows import Row, error_row, row_of, to_json


def rows(scores: list[float], start: int = 0) -> list[Row]:
    return [row_of("image", path=f"<b>{i}.jpg", score=score, key=f"k{i}") for i, score in enumerate(scores, start)]


def write(path: Path, found: list[Row]) -> Path:
    path.write_text("".join(to_json(row) + "\n" for row in found))
    return path


def test_a_page_shows_figures_pictures_and_failures_and_fetches_nothing(
    tmp_path: Path,
    photos,
    encode,  # type: ignore[no-untyped-def]
) -> None:
    (tmp_path / "a.png").write_bytes(encode(photos["coffee"][::4, ::4]))
    failed = [error_row(f"x{i}", f"truncated PNG, {i}7 bytes; fetch it again") for i in range(3)]
    found = [*rows([0.1 + i / 1000 for i in range(600)]), *failed]
    found.append(row_of("image", path=str(tmp_path / "a.png"), score=0.99))
    done = run_here("report", write(tmp_path / "s.jsonl", found), "-o", tmp_path / "r.html")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "r.html").read_text()
    assert ">601<" in page
    assert "<td>3</td>" in page
    assert page.count("data:image/jpeg;base64,") == 1
    assert "<b>0.jpg" not in page
    assert "&lt;b&gt;0.jpg" in page
    assert "http" not in page.replace("http-equiv", "")


def test_a_table_of_three_columns_is_enough(tmp_path: Path) -> None:
    """Joined and reduced by other tools, it has lost the notes and the reasons of failures."""
    (tmp_path / "t.csv").write_text("path,score,status\na.jpg,0.5,ok\nb.jpg,,error\n")
    done = run_here("report", tmp_path / "t.csv", "-o", tmp_path / "r.html")
    assert done.returncode == 0, done.stderr
    assert "no reason given" in (tmp_path / "r.html").read_text()


def test_a_shift_is_told_with_its_size_and_the_images_that_moved() -> None:
    generator = np.random.default_rng(0)
    old = generator.uniform(0.3, 0.6, 400).tolist()
    same = drift(population(rows(old)), population(rows(old)))
    assert (same["ks"], same["moved"], same["in_both"]) == (0, [], 400)
    assert abs(same["cliffs_delta"]) < 1e-9
    new = [score + 0.1 for score in old]
    new[7] = 0.0
    moved = drift(population(rows(old)), population(rows(new)))
    assert moved["ks_p"] < 1e-6
    assert 0.3 < moved["cliffs_delta"] < 0.9
    assert moved["moved"][0][0] == "k7"
    apart = drift(population(rows([0.1] * 9)), population(rows([0.9] * 9, start=100)))
    assert (apart["cliffs_delta"], apart["in_both"]) == (1.0, 0)


def test_a_comparison_is_printed_or_drawn(tmp_path: Path) -> None:
    old, new = write(tmp_path / "o.jsonl", rows([0.2, 0.4])), write(tmp_path / "n.jsonl", rows([0.2, 0.8]))
    printed = run_here("report", new, "--against", old, "--json")
    assert json.loads(printed.stdout)["moved"] == [["k1", 0.4, 0.8]]
    assert run_here("report", new, "--against", old, "-o", tmp_path / "r.html").returncode == 0
    assert "Cliff" in (tmp_path / "r.html").read_text()
    assert run_here("report", new, "--json").returncode == 2
    empty = run_here("report", write(tmp_path / "e.jsonl", []), "-o", tmp_path / "e.html")
    assert empty.returncode == 1
    assert not (tmp_path / "e.html").exists()


@pytest.mark.parametrize("wrong", ["gone.jsonl", "x.txt"])
def test_what_cannot_be_read_is_one_line(tmp_path: Path, wrong: str) -> None:
    done = run_here("report", tmp_path / wrong)
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1


def skewed(count: int, seed: int) -> np.ndarray:
    """Scores as of good photographs: most near 0.75, a tail of bad ones."""
    return np.random.default_rng(seed).beta(6, 2, count)


def test_chance_raises_as_many_alarms_as_it_may() -> None:
    monitor = Monitor(skewed(2000, 0), one_in=2000)
    alarms = sum(monitor.add(score) is not None for score in np.random.default_rng(1).choice(skewed(2000, 0), 60_000))
    assert 15 <= alarms <= 50  # 30 wanted


@pytest.mark.parametrize(("shift", "within"), [(-0.5, 120), (-1.0, 40), (1.0, 40)])
def test_a_planted_shift_is_found_soon_and_its_beginning_named(shift: float, within: int) -> None:
    base = skewed(2000, 0)
    delays, begun = [], []
    for seed in range(3):
        monitor = Monitor(base)
        stream = np.random.default_rng(seed).choice(base, 600)
        stream[200:] += shift * base.std()
        alarm = next(found for score in stream if (found := monitor.add(score)))
        assert alarm.lower == (shift < 0)
        delays.append(alarm.at - 200)
        begun.append(abs(alarm.since - 201))
    assert np.median(delays) <= within
    assert np.median(begun) <= 20


def test_times_and_sources_say_when_and_where() -> None:
    before = [row | {"camera": "ab"[i % 2], "taken": ""} for i, row in enumerate(rows(skewed(800, 0).tolist()))]
    later = skewed(800, 1)
    later[401::2] -= 0.2  # camera b, from the middle on
    after = [
        row | {"camera": "ab"[i % 2], "taken": f"2026-11-{i:04}"} for i, row in enumerate(rows(later.tolist(), 900))
    ]
    found = drift(population(before, "camera"), population(after[::-1], "camera", "taken"))
    assert [row["source"] for row in found["sources"]] == ["b", "a"]
    assert found["sources"][0]["ks_p"] < 1e-6 < found["sources"][1]["ks_p"]
    (change, *_) = found["changes"]
    assert change["lower"]
    assert "2026-11-0380" <= change["since"] <= "2026-11-0440"
    assert change["since"] < change["at"]
    assert found["outside"][0][1] == pytest.approx(later.min())
    with pytest.raises(DgiqaError, match="no column 'lens'"):
        population(before, "lens")
    assert changes(Monitor(skewed(800, 0)), [(i, s) for i, s in enumerate(skewed(300, 2).tolist())]) == []


def test_a_stream_is_watched_and_leaves_with_4(tmp_path: Path) -> None:
    base = write(tmp_path / "base.jsonl", rows(skewed(400, 0).tolist()))
    bad = [*skewed(50, 1).tolist(), *(skewed(200, 2) - 0.3).tolist()]
    lines = "".join(to_json(row) + "\n" for row in [error_row("x", "gone"), *rows(bad)])
    done = run_here("watch", "-", "--against", base, "--stop", "--json", stdin=lines.encode())
    assert done.returncode == 4, done.stderr
    (alarm,) = map(json.loads, done.stdout.splitlines())
    assert alarm["lower"]
    assert 45 <= int(alarm["since"].removeprefix("k")) <= 55
    assert run_here("watch", base, "--against", base).returncode == 0
    few = write(tmp_path / "few.jsonl", rows([0.1, 0.2]))
    assert b"wanted 100 or more" in run_here("watch", base, "--against", few).stderr
    assert run_here("watch", "-", "--against", base, stdin=b"no rows\n").returncode == 1
    told = run_here("watch", "-", "--against", base, stdin=lines.encode()).stdout.decode().splitlines()[0]
    assert re.match(r"scores have been lower since k\d+: mean 0\.\d{4} over \d+ images$", told)


@pytest.mark.parametrize("rows_in", ["", to_json(error_row("x", "gone")) + "\n"])
def test_watching_nothing_is_an_error(tmp_path: Path, rows_in: str) -> None:
    base = write(tmp_path / "base.jsonl", rows(skewed(400, 0).tolist()))
    done = run_here("watch", "-", "--against", base, stdin=rows_in.encode())
    assert (done.returncode, b"standard input holds no score" in done.stderr) == (1, True)


def test_the_page_says_where_and_when(tmp_path: Path) -> None:
    def lines(scores: np.ndarray) -> list[Row]:
        return [row | {"camera": "<i>", "taken": i} for i, row in enumerate(rows(scores.tolist()))]

    old, new = (
        write(tmp_path / "o.jsonl", lines(skewed(200, 0))),
        write(tmp_path / "n.jsonl", lines(skewed(200, 1) - 0.3)),
    )
    done = run_here("report", new, "--against", old, "--by", "camera", "--time", "taken", "-o", tmp_path / "r.html")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "r.html").read_text()
    assert "&lt;i&gt;" in page
    assert "scores are lower" in page
    assert "Lower than 99 % of the earlier set" in page
    assert ">p value<" in page
    assert ">1st percentile<" in page
    assert ">5th percentile<" in page
    assert "<th>Kolmogorov-Smirnov's p value" in page
    assert run_here("report", new, "--by", "camera").returncode == 2
