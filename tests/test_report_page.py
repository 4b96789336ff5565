"""Scored rows -> a page, and what two sets of them differ by."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command import run_here

from dgiqa.batch.summary import drift, population
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
