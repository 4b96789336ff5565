"""Ten minutes on a GPU, rehearsed: steps that fail, hang or end the process cost their own row and no more time."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from waiting import PATIENCE_S, until


@pytest.fixture(scope="module")
def day(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("bench/gpu_day.py")


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def after(begun: Callable[[], bool], communicate: Callable[..., Any]) -> Callable[..., Any]:
    """What waits for a process that hangs, begun when the process has come so far."""

    def waits(process: Any, *arguments: Any, **options: Any) -> Any:
        if options.get("timeout") == 0.25:
            until(begun)
        return communicate(process, *arguments, **options)

    return waits


def test_every_step_is_told_as_it_ends_and_one_that_hangs_is_ended(
    day: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = tmp_path / "half"
    hangs = f"""
import time
try:
    open({str(half)!r}, 'w').close()
    time.sleep({PATIENCE_S})
except KeyboardInterrupt:
    open({str(half)!r}, 'w').write('half')
    raise
"""
    steps = [
        day.Step("works", python("print('fine')"), PATIENCE_S),
        day.Step("fails", python("raise SystemExit('no GPU here')"), PATIENCE_S),
        day.Step("crashes", python("import os; os.abort()"), PATIENCE_S),
        day.Step("hangs", python(hangs), 0.25),
        day.Step("is not there", [str(tmp_path / "nothing")], PATIENCE_S),
        day.Step("works again", python("pass"), PATIENCE_S),
    ]
    rows: list[dict[str, Any]] = []
    monkeypatch.setattr(day, "GRACE_S", PATIENCE_S)
    monkeypatch.setattr(subprocess.Popen, "communicate", after(half.exists, subprocess.Popen.communicate))
    assert not day.run(steps, rows.append, minutes=PATIENCE_S)
    assert [row["step"] for row in rows if row["ok"]] == ["works", "works again"]
    assert rows[0]["tail"] == "fine\n"
    assert (rows[1]["error"], rows[1]["tail"]) == ("exit code 1", "no GPU here\n")
    assert rows[2]["error"] == "exit code -6"
    assert rows[3]["error"] == "ended after 0 s"
    assert half.read_text() == "half", "a step must be let write what it has"
    assert "No such file" in rows[4]["error"]


def test_the_whole_ends_in_time_and_a_step_that_all_need_ends_it(
    day: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[dict[str, Any]] = []
    now = [0.0]

    def late(command: object, seconds: float) -> dict[str, Any]:
        now[0] += seconds
        return {"ok": False, "error": f"ended after {seconds:.0f} s"}

    with monkeypatch.context() as patched:
        patched.setattr(day, "time", SimpleNamespace(monotonic=lambda: now[0]))
        patched.setattr(day, "ended", late)
        assert not day.run([day.Step(f"step {i}", [], 60) for i in range(3)], rows.append, minutes=1.5)
    assert [row["error"] for row in rows] == ["ended after 60 s", "ended after 30 s", "not begun within 1.5 minutes"]
    rows.clear()
    needed = day.Step("needed", python("raise SystemExit(3)"), PATIENCE_S, needed=True)
    assert not day.run([needed, day.Step("after", python("pass"), 20)], rows.append, minutes=PATIENCE_S)
    assert [row["step"] for row in rows] == ["needed"]


def test_the_limits_of_the_first_command_stay_within_nine_minutes(day: ModuleType, tmp_path: Path) -> None:
    """It may begin no step after eight; what is run exists."""
    steps = day.first(tmp_path)
    assert sum(step.seconds for step in steps) <= 9 * 60
    scripts = [
        Path(word) for step in (*steps, *day.second(tmp_path)) for word in step.command if str(word).endswith(".py")
    ]
    assert scripts
    assert all(path.is_file() for path in scripts)


def test_without_a_gpu_the_day_says_so_at_once(
    day: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = [step for step in day.first(tmp_path) if step.name == "device memory"]
    monkeypatch.setattr(day, "first", lambda out: memory)
    assert day.main(["first", "--out", str(tmp_path)]) == 1
    row = json.loads((tmp_path / "day.jsonl").read_text())
    assert (row["command"], row["step"], row["ok"]) == ("first", "device memory", False)
    assert "no NVIDIA GPU" in row["tail"]
    assert "no NVIDIA GPU" in json.loads((tmp_path / "memory.json").read_text())["steps"]["device memory"]["error"]


def test_what_is_carried_is_all_that_an_image_with_torch_lacks(day: ModuleType) -> None:
    """Such an image has numpy, OpenCV, Pillow and what is usually beside them; nothing can be fetched there."""
    project = (day.ROOT / "pyproject.toml").read_text()
    listed = re.search(r"^dependencies = \[(.*?)^\]", project, re.MULTILINE | re.DOTALL)
    assert listed
    there = {"filelock", "jinja2", "numpy", "opencv-python-headless", "pillow", "rich", "typer"}
    assert set(re.findall(r'^ *"([a-z0-9-]+)', listed[1], re.MULTILINE)) - there == set(day.CARRIED)
