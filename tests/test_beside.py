"""What `score` writes beside its rows: a file per image, a page, the best alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command import run_here
from numpy.typing import NDArray

from dgiqa.batch.drift import population
from dgiqa.batch.summary import by_settings
from dgiqa.bundle import load_bundle
from dgiqa.report.read import read_rows
from dgiqa.report.rows import row_of
from dgiqa.report.sidecar import SUFFIX, SidecarWriter


@pytest.fixture
def place(tmp_path: Path, photos: dict[str, NDArray[np.uint8]], encode: Callable[..., bytes]) -> Path:
    """Three pictures of several scores and a file that is none, in folders."""
    small = np.ascontiguousarray(photos["coffee"][::4, ::4])
    for number, name in enumerate(("a.png", "in/b.png", "in/deep/c.png")):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(encode(small // (number + 1)))
    (tmp_path / "set" / "d.png").write_bytes(b"no image")
    return tmp_path


def test_an_image_has_its_row_beside_it_or_at_its_place_in_a_folder(place: Path, bundle_dir: Path) -> None:
    command = ("score", "-r", "set", "--bundle", bundle_dir, "-f", "jsonl", "--sidecar")
    done = run_here(*command, "beside", cwd=place)
    assert done.returncode == 3
    rows = {row["path"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert len(rows) == 4
    for path, row in rows.items():
        assert json.loads((place / f"{path}{SUFFIX}").read_text()) == row
    run_here(*command, "rows", cwd=place)
    again = run_here(*command, "rows", cwd=place)  # they are replaced
    assert sorted(p.relative_to(place / "rows") for p in (place / "rows").rglob("*.json")) == [
        Path(f"{path}{SUFFIX}") for path in sorted(rows)
    ]
    assert again.returncode == 3
    assert run_here("score", "set", "--bundle", bundle_dir, cwd=place).stderr.count(b"2 .json") == 1


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("a/b.jpg", "a/b.jpg"),
        ("../../x.jpg", "x.jpg"),
        ("s.tar/../../etc/passwd", "s.tar/etc/passwd"),
        ("https://e.org/a.jpg?x=1", "https_/e.org/a.jpg?x=1"),
        ("..", "_"),
        ("-", "-"),
    ],
)
def test_no_name_leaves_the_folder_of_sidecars(tmp_path: Path, name: str, place: str) -> None:
    SidecarWriter(str(tmp_path / "out")).write(row_of("image", path=name))
    assert [p.relative_to(tmp_path / "out") for p in tmp_path.rglob("*") if p.is_file()] == [Path(place + SUFFIX)]
    SidecarWriter("beside").write(row_of("image", path=name))


def test_the_best_are_shown_first_or_alone(place: Path, bundle_dir: Path) -> None:
    command = ("score", "-r", "set", "--bundle", bundle_dir, "-f", "jsonl")
    sorted_ = [json.loads(line)["score"] for line in run_here(*command, "--sort", cwd=place).stdout.splitlines()]
    assert sorted_[-1] is None
    assert sorted_[:3] == sorted(sorted_[:3], reverse=True)
    for top, count in (("2", 2), ("34%", 2), ("9", 3)):
        shown = run_here(*command, "--top", top, "-o", "all.csv", cwd=place).stdout.splitlines()
        assert [json.loads(line)["score"] for line in shown] == sorted_[:count]
        assert len(list(read_rows(str(place / "all.csv")))) == 4
    assert run_here("score", "set", "--sort", "-o", "all.csv", cwd=place).returncode == 2
    assert run_here("score", "set", "--top", "few", cwd=place).returncode == 2


def test_a_page_is_drawn_at_the_end(place: Path, bundle_dir: Path) -> None:
    done = run_here(
        "score", "-r", "set", "--bundle", bundle_dir, "--html", "r.html", "-q", "--fail-under", 0, cwd=place
    )
    assert done.returncode == 3
    page = (place / "r.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 3  # each once, among the worst or the best
    assert "not an image" in page
    assert re.search(r"0 of \d images are below 0\.", page)
    assert load_bundle(bundle_dir).id + ", " in page


def test_settings_that_are_mixed_in_one_file_are_told_apart(tmp_path: Path) -> None:
    rows = [
        row_of("image", path=f"{n}.jpg", score=n / 10 + (backend == "b") * 0.001, bundle="small", backend=backend)
        for backend, count in (("b", 5), ("a", 9))
        for n in range(count)
    ]
    table = by_settings(population(rows))
    assert [(row["settings"][1], row["images"], row["in_both"]) for row in table] == [("a", 9, 9), ("b", 5, 5)]
    assert table[1]["near"] == pytest.approx((0.001, 0.001))
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for several in (True, False):
        run_here("report", path, "-o", tmp_path / "r.html")
        assert ("Several settings" in (tmp_path / "r.html").read_text()) == several
        path.write_text("".join(json.dumps(row | {"backend": "a"}) + "\n" for row in rows))
