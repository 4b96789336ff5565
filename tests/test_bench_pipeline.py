"""The pipeline bench: what it measures on the tiny bundle, and what its figures mean."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import pictures
import pipeline
import scoring
import timer
from subjects import Subject, SubjectError

from dgiqa.bundle import Bundle
from dgiqa.forward import STAGES
from dgiqa.image import decode
from dgiqa.scorer import Scorer
from dgiqa.speed import Setting


def test_the_photographs_are_the_same_every_time_and_differ_from_each_other() -> None:
    first, second = pictures.photographs(6, (160, 120)), pictures.photographs(6, (160, 120))
    assert first == second
    assert len(set(first)) == 6
    assert all(decode(data).shape == (120, 160, 3) for data in first)


def test_a_subject_scores_with_the_tiling_it_was_asked_for(tiny_bundle: Bundle) -> None:
    asked = {"bundle": str(tiny_bundle.path), "tiling": "official:3", "setting": asdict(Setting("auto", threads=1))}
    opened: list[Scorer] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Setting, "open", lambda *a, o=Setting.open: opened.append(o(*a)) or opened[-1])
        scoring.subject(asked)
    with opened[0] as scorer:
        assert scorer.tiling == "official:3"
        assert scorer.score(pictures.photographs(1, (160, 120))[0]).tiling == "official:3"
        with pytest.raises(AttributeError):  # instead of doing nothing
            scorer.tiling = "grid"  # type: ignore[misc]


@pytest.mark.slow
def test_a_quick_run_writes_every_part_and_a_second_one_measures_nothing(
    bundle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pipeline.jsonl"
    arguments = ["pipeline.py", "--quick", "--seconds", "0.1", "--bundle", str(bundle_dir), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    pipeline.main()
    written = out.read_text()
    cases = {line["case"]["part"]: line for line in timer.lines(out) if "case" in line}
    assert cases.keys() == {"startup", "reference", "settings"}
    assert cases["startup"]["rows"][0]["ms"]["median"] > 50
    for line in (line for line in timer.lines(out) if line.get("case", {}).get("part") == "settings"):
        for row in line["rows"]:
            assert set(row["one"]["stages"]) == {*STAGES, "output"}
            assert row["many"]["images_per_second"] > 0
            assert row["drift"]["largest"] < 1e-4
            assert row["peak_mb"] > 30
    engines = next(line for line in timer.lines(out) if line.get("case", {}).get("group") == "engines")
    assert len(engines["rows"][0]["stream"]["resident_mb"]) == 8
    pipeline.main()
    assert out.read_text() == written
    assert "engines" in capsys.readouterr().out


def test_drift_sees_a_moved_score_and_a_changed_order() -> None:
    reference = [0.1, 0.2, 0.3, 0.4]
    assert pipeline.drift(reference, reference) == {"largest": 0.0, "mean": 0.0, "srocc": 1.0}
    moved = pipeline.drift([0.1, 0.2, 0.3, 0.44], reference)
    assert moved["largest"] == pytest.approx(0.04)
    assert moved["mean"] == pytest.approx(0.01)
    assert pipeline.drift(reference[::-1], reference)["srocc"] == -1


@pytest.mark.slow
def test_startup_measures_a_process_and_notices_one_that_fails(bundle_dir: Path) -> None:
    row = pipeline.startup(str(bundle_dir), 1, False)["rows"][0]
    assert row["ms"]["median"] > 50
    assert row["peak_mb"] > 20
    with pytest.raises(RuntimeError, match="ended with status"):
        pipeline.startup(str(bundle_dir / "nowhere"), 1, False)


ECHO = """
import sys
sys.path.insert(0, {bench!r})
from subjects import serve
def prepare():
    print("a library that talks")
    if sys.argv[-1] == "broken":
        raise ImportError("no such package")
    return {{"double": lambda x: {{"value": 2 * x}}, "die": lambda: sys.exit(3)}}, {{"backend": "echo"}}
serve(prepare)
"""


def echo(*arguments: str) -> list[str]:
    return [sys.executable, "-c", ECHO.format(bench=str(Path(pipeline.__file__).parent)), *arguments]


def test_a_subject_answers_errors_are_told_and_it_can_go_on() -> None:
    with Subject(echo()) as subject:
        assert subject.ready == {"backend": "echo"}
        assert subject.ask("double", x=21) == {"value": 42}
        with pytest.raises(SubjectError, match="KeyError: 'treble'"):
            subject.ask("treble")
        assert subject.ask("double", x=[1]) == {"value": [1, 1]}
        with pytest.raises(SubjectError):
            subject.ask("die")


def test_a_subject_that_cannot_start_says_why() -> None:
    with pytest.raises(SubjectError, match="ImportError: no such package"):
        Subject(echo("broken"))
    with pytest.raises(SubjectError, match="SyntaxError"):
        Subject([sys.executable, "-c", "def"])


def test_a_setting_travels_as_json() -> None:
    setting = Setting("openvino", "bf16", 8, 2, 2)
    assert Setting(**json.loads(json.dumps(setting.__dict__))) == setting
