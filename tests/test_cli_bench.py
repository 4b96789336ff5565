"""`dgiqa-rt bench`: a table, advice that can be pasted, and missing engines are named with what builds them."""

from __future__ import annotations

import json
import math
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dgiqa import speed
from dgiqa.bundle import Bundle
from dgiqa.cli import app
from dgiqa.errors import BackendError, EngineError, ImageError
from dgiqa.scorer import Scorer
from dgiqa.speed import Row, Setting
from dgiqa.timing import Spread


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["bench", *arguments, "--seconds", "0.1"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def row(ms: float, rate: float, drift: float, **options: int) -> Row:
    return Row(Setting("onnxruntime", **options), Spread(ms, ms, ms), rate, drift)


def test_the_table_and_the_advice(bundle_dir: Path) -> None:
    text = run("--bundle", str(bundle_dir), "--backend", "onnxruntime")
    assert re.search(r"^backend +precision +batch +threads +parallel +ms per image", text, re.MULTILINE)
    assert re.search(r"^onnxruntime +fp32 +auto +\d+ +auto +[\d.]+ +[\d.]+ +[\d.]+ +0\.0e\+00$", text, re.MULTILINE)
    advice = re.findall(r"for (latency|throughput):\n  (.*)", text)
    assert [purpose for purpose, _ in advice] == ["latency", "throughput"]


def test_the_advice_can_be_pasted(bundle_dir: Path, tmp_path: Path) -> None:
    document = json.loads(run("--bundle", str(bundle_dir), "--backend", "onnxruntime", "--json"))
    assert Setting("onnxruntime", parallel=3).command("small").endswith(" --parallel 3 photos/")
    for purpose in ("latency", "throughput"):
        program, command, *options, folder = shlex.split(document["recommended"][purpose]["command"])
        assert (program, command, folder) == ("dgiqa-rt", "score", "photos/")
        (tmp_path / "photo.jpg").write_bytes(b"")
        done = CliRunner().invoke(app, [command, *options, str(tmp_path), "--dry-run"])
        assert done.exit_code == 0, done.output


def test_json_holds_every_row_and_what_they_are_compared_with(bundle_dir: Path) -> None:
    document = json.loads(run("--bundle", str(bundle_dir), "--json", "--quiet"))
    assert document["schema_version"] == 1
    assert document["reference"] == "onnxruntime fp32"
    assert document["images"] == 4  # the golden images
    for each in document["rows"]:
        assert each["images_per_second"] > 0
        assert each["drift"] < 1e-4
    changed = {(r["backend"], r["precision"], r["batch"], r["threads"], r["parallel"]) for r in document["rows"]}
    assert len(changed) == len(document["rows"]) >= 3


def test_own_images_are_measured(bundle_dir: Path, tmp_path: Path) -> None:
    photos = str(next(iter((bundle_dir / "golden").glob("*.png"))))
    document = json.loads(run(photos, "--bundle", str(bundle_dir), "--backend", "onnxruntime", "--json"))
    assert document["images"] == 1
    with pytest.raises(Exception, match=r"none\.jpg: no such file"):
        CliRunner().invoke(app, ["bench", str(bundle_dir / "none.jpg")], catch_exceptions=False)
    (tmp_path / "notes.txt").write_text("no picture at all")
    with pytest.raises(ImageError, match=re.escape(f"{tmp_path / 'notes.txt'}: not an image")):
        CliRunner().invoke(app, ["bench", photos, str(tmp_path / "notes.txt")], catch_exceptions=False)


def test_a_missing_engine_is_named_with_what_builds_it(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Setting.open

    def without_int8(setting: Setting, bundle: Bundle) -> Scorer:
        if setting.precision == "int8":
            raise EngineError("no int8 engine; dgiqa-rt build --int8")
        if setting.precision != "fp32":
            raise BackendError("not here")
        return opened(setting, bundle)

    monkeypatch.setattr(Setting, "open", without_int8)
    found, missing = speed.candidates(tiny_bundle, ["onnxruntime"])
    assert [(s.backend, s.precision) for s in found] == [("onnxruntime", "fp32")]
    assert [(m.precision, m.fix) for m in missing] == [("int8", "no int8 engine; dgiqa-rt build --int8")]


def test_nothing_that_can_run_is_an_error(tiny_bundle: Bundle) -> None:
    with pytest.raises(BackendError, match="nothing here can run tiny@"):
        speed.survey(tiny_bundle, [b""], backends=[])


def test_only_what_keeps_to_the_drift_is_recommended() -> None:
    exact, quick, wrong = row(20, 50, 0.0), row(10, 110, 0.015), row(5, 200, 0.03)
    assert speed.fastest([exact, quick, wrong], 0.02) is quick
    assert speed.fastest([exact, quick, wrong], 0.001, "latency") is exact
    assert speed.fastest([wrong, row(1, 1000, math.nan)], 0.02) is None


def test_between_equals_the_first_is_kept() -> None:
    usual, luckier, faster = row(10.2, 98, 0), row(10.1, 100, 0, batch=32), row(9, 120, 0, threads=2)
    assert speed.fastest([usual, luckier], 0.02) is usual
    assert speed.fastest([usual, luckier, faster], 0.02, "latency") is faster


def test_drift_is_the_largest_difference_from_the_reference(tiny_bundle: Bundle) -> None:
    images = speed.photographs(tiny_bundle)
    setting = Setting("onnxruntime", threads=1)
    reference = speed.reference_scores(tiny_bundle, setting, images)
    assert speed.measure(tiny_bundle, [setting], images, reference, 0.1)[0].drift == 0
    shifted = [reference[0] + 0.25, *reference[1:]]
    assert speed.measure(tiny_bundle, [setting], images, shifted, 0.1)[0].drift == pytest.approx(0.25)
