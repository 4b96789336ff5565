"""Tables on disk and in Python -> images with their keys, made by the libraries that people make them with."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import run_here
from numpy.typing import NDArray
from PIL import Image

from dgiqa import Failure, Score, Scorer
from dgiqa.bundle import Bundle
from dgiqa.sources import Input, Reading, expand, images

KEYS = ["00042", "=1+1", "é ☃", "two\nlines", "trailing ", "nul-free\x1f", "a,b\"c'"]


@pytest.fixture(scope="module")
def picture(photos: dict[str, NDArray[np.uint8]], encode: Callable[..., bytes]) -> bytes:
    return encode(photos["coffee"][::4, ::4])


def rows(path: Path, column: str | None = "image", key: str | None = "id") -> list[Input]:
    return list(expand([str(path)], reading=Reading(column=column, key=key)))


def test_csv_keeps_keys_and_finds_paths_beside_itself(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    with (tmp_path / "t.csv").open("w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "image"])
        writer.writerows([key, "a.jpg"] for key in KEYS)
        writer.writerows([["x", "gone.jpg"], ["y", ""], ["z"]])
    items = rows(tmp_path / "t.csv")
    assert [item.key for item in items] == [*KEYS, "x", "y", "z"]
    assert {item.source for item in items[: len(KEYS)]} == {str(tmp_path / "a.jpg")}
    assert [item.error[:14] for item in items[-3:]] == ["no such file", "the cell is em", "the cell is em"]
    assert items[-1].name == f"{tmp_path}/t.csv[9]"


def test_tsv_and_json_lines_with_base64_and_a_bad_line(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("id\timage\n1\tdata:image/png;base64,aW1hZ2U=\n")
    assert [(item.key, item.source) for item in rows(tmp_path / "t.tsv")] == [("1", b"image")]
    jpeg = b"\xff\xd8\xff\xe0" + bytes(40)
    lines = [json.dumps({"id": key, "image": base64.b64encode(jpeg).decode()}) for key in [*KEYS, "\u2028\x85"]]
    (tmp_path / "t.jsonl").write_text("\n".join(["", *lines, "{broken", "[1]", '{"id": 1}']), encoding="utf-8")
    items = rows(tmp_path / "t.jsonl")
    assert [item.key for item in items] == [*KEYS, "\u2028\x85", None, None, "1"]
    assert {item.source for item in items[:8]} == {jpeg}
    assert all(item.error for item in items[8:])


def test_parquet_holds_bytes_paths_or_records_as_hugging_face_writes_them(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pa.table(
        {
            "id": pa.array([7, None, 9]),
            "image": [b"one", None, b"three"],
            "record": [{"bytes": b"x", "path": "x.png"}, {"bytes": None, "path": "gone.png"}, None],
        }
    )
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    plain = rows(tmp_path / "t.parquet")
    assert [(item.key, item.source) for item in plain] == [("7", b"one"), (None, None), ("9", b"three")]
    records = rows(tmp_path / "t.parquet", "record")
    assert (records[0].name, records[0].source) == ("x.png", b"x")
    assert [bool(item.error) for item in records] == [False, True, True]


@pytest.mark.parametrize(("column", "key"), [(None, None), ("pic", None), ("image", "sku")])
def test_a_column_that_is_not_there_is_told_with_those_that_are(
    tmp_path: Path, column: str | None, key: str | None
) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "t.csv").write_text("id,image\n1,a.jpg\n")
    (tmp_path / "t.jsonl").write_text('{"id": 1, "image": "a.jpg"}\n')
    parquet.write_table(pa.table({"id": [1], "image": ["a.jpg"]}), tmp_path / "t.parquet")
    for suffix in ("csv", "jsonl", "parquet"):
        (item,) = rows(tmp_path / f"t.{suffix}", column, key)
        assert item.error.endswith("it has: id, image")
        assert item.error.startswith(("a table; ", "no column "))
        assert (column or "--column") in item.error or str(key) in item.error


def test_tables_that_are_damaged_or_empty_are_errors(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "no.parquet").write_bytes(b"PAR1" + bytes(100))
    (tmp_path / "none.csv").write_text("id,image\n")
    (tmp_path / "zero.csv").write_text("")
    for name in ("no.parquet", "none.csv", "zero.csv"):
        (item,) = rows(tmp_path / name)
        assert item.error


def test_tables_in_python_give_the_scores_of_their_images(tiny_bundle: Bundle, picture: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture)
    cells = [picture, str(tmp_path / "a.png"), None]
    ids = ["one", "two", "three"]
    with Scorer(tiny_bundle) as scorer:
        wanted = scorer.score(picture).value
        for name, table in tables(ids, cells).items():
            good, other, bad = scorer.score_many(images(table, "image", "id"))
            assert isinstance(good, Score), name
            assert isinstance(other, Score), name
            assert isinstance(bad, Failure), name
            assert (good.value, other.value) == (wanted, wanted), name
            assert [good.source, other.source, bad.source] == ids, name
            with pytest.raises(ValueError, match="image"):
                list(images(table, "pic"))


def tables(ids: list[str], cells: list[Any]) -> dict[str, Any]:
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    pa = pytest.importorskip("pyarrow")
    records = [cell if cell is None else {"bytes": cell, "path": None} for cell in cells[:1]]
    records += [{"bytes": None, "path": cells[1]}, None]
    return {
        "pandas": pandas.DataFrame({"id": ids, "image": cells}),
        "polars": polars.DataFrame({"id": ids, "image": pa.array([cells[0]] * 2 + [None])}),
        "pyarrow": pa.table({"id": ids, "image": pa.array(records)}),
    }


@pytest.mark.slow  # importing datasets imports torch and more
def test_a_dataset_gives_its_files_and_not_what_it_decodes(
    tiny_bundle: Bundle, photos: dict[str, NDArray[np.uint8]], tmp_path: Path
) -> None:
    """`datasets` decodes a photograph as it lies; its tag says that it stands."""
    datasets = pytest.importorskip("datasets")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photos["coffee"][::4, ::4]).save(tmp_path / "turned.jpg", exif=exif)
    rows = {"id": [1, 2], "image": [str(tmp_path / "turned.jpg")] * 2}
    dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    with Scorer(tiny_bundle) as scorer:
        wanted = scorer.score(tmp_path / "turned.jpg")
        for source in (dataset, dataset.to_iterable_dataset()):
            found = list(scorer.score_many(images(source, "image", "id")))
            assert [(s.source, s.value, s.height) for s in found] == [  # type: ignore[union-attr]
                (name, wanted.value, wanted.height) for name in "12"
            ]


@pytest.mark.parametrize("command", [("score",), ("scan", "--out", "out")], ids=str)
@pytest.mark.parametrize("option", ["--column", "--key"])
def test_columns_without_a_table_are_wrong_usage(tmp_path: Path, command: tuple[str, ...], option: str) -> None:
    (tmp_path / "set").mkdir()
    for path in ("set", "set/*.jpg"):
        done = run_here(*command, path, option, "a", cwd=tmp_path)
        assert (done.returncode, b"only tables have columns" in done.stderr) == (2, True)
    assert b"only tables" not in run_here(*command, "set/*", option, "a", "--bundle", "none", cwd=tmp_path).stderr


def test_pillow_images_and_arrays_in_a_column_are_scored(
    tiny_bundle: Bundle, photos: dict[str, NDArray[np.uint8]]
) -> None:
    pandas = pytest.importorskip("pandas")
    array = np.ascontiguousarray(photos["coffee"][::4, ::4])
    frame = pandas.DataFrame({"image": [Image.fromarray(array), array]})
    with Scorer(tiny_bundle) as scorer:
        first, second = scorer.score_many(images(frame))
        assert first.value == second.value == scorer.score(array).value  # type: ignore[union-attr]


def test_what_is_no_table_is_said() -> None:
    with pytest.raises(TypeError, match="got dict, wanted a pandas"):
        next(images({"train": []}))


def test_a_table_on_the_command_line_keeps_its_keys(tmp_path: Path, bundle_dir: Path, picture: bytes) -> None:
    (tmp_path / "a.png").write_bytes(picture)
    (tmp_path / "t.csv").write_text("sku,file\n007,a.png\n008,no.png\n")
    done = run_here("score", tmp_path / "t.csv", "--column", "file", "--key", "sku", "--bundle", bundle_dir, "--json")
    found = json.load(io.BytesIO(done.stdout))["rows"]
    assert done.returncode == 3
    assert [(row["key"], row["path"], row["status"]) for row in found] == [
        ("007", "a.png", "ok"),
        ("008", "no.png", "error"),
    ]
