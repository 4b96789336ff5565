"""The timer: what is interleaved, what a ratio means, and that a finished case is not measured again."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import stamp
import timer

from dgiqa import timing


def test_calls_take_turns_and_warm_up_is_not_counted() -> None:
    order: list[str] = []
    samples = timing.interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, pairs=3, warmup=1)
    assert order == ["a", "b"] * 4
    assert {name: len(times) for name, times in samples.items()} == {"a": 3, "b": 3}


def test_a_time_limit_ends_after_whole_rounds_and_one_is_always_counted() -> None:
    slow = {"a": lambda: time.sleep(0.01), "b": lambda: None}
    samples = timing.interleaved(slow, pairs=1000, warmup=0, seconds=0.05)
    assert 1 <= len(samples["a"]) == len(samples["b"]) < 20
    assert len(timing.interleaved(slow, pairs=5, warmup=1, seconds=0.0)["a"]) == 1


def test_a_spread_is_the_quantiles_of_the_samples() -> None:
    assert timing.spread([3.0]) == timing.Spread(3.0, 3.0, 3.0)
    assert timing.spread([4.0, 0.0, 2.0, 1.0, 3.0]) == timing.Spread(0.4, 2.0, 3.6)
    with pytest.raises(ValueError, match="no samples"):
        timing.spread([])


def test_a_ratio_is_taken_pair_by_pair_so_that_a_slow_spell_cancels() -> None:
    baseline, ours = [10.0, 10.0, 100.0, 10.0], [5.0, 5.0, 50.0, 5.0]  # the third round ran on a busy machine
    assert timing.ratios(baseline, ours) == timing.Spread(2.0, 2.0, 2.0)


def test_what_takes_less_than_a_tick_of_the_clock_divides_nothing_by_zero() -> None:
    assert timing.ratios([0.0, 0.0], [0.0, 0.0]).median == 1.0
    assert timing.ratios([0.0], [5.0]).median > 0


def test_a_faster_call_has_a_ratio_above_one() -> None:
    calls = {"slow": lambda: 8.0, "fast": lambda: 1.0}
    slow, fast = timer.compare(calls, pairs=5, clock="own", facts={"fast": {"batch": 8}}, threads=1)
    assert (slow.ratio.median, fast.ratio.median, fast.ms.median, fast.ms.p90) == (1, 8, 1, 1)
    record = json.loads(json.dumps(fast.as_dict()))
    assert (record["name"], record["baseline"], record["batch"], record["threads"]) == ("fast", "slow", 8, 1)


def test_the_baseline_must_be_one_of_the_calls() -> None:
    with pytest.raises(ValueError, match="baseline 'c' is none of a, b"):
        timer.compare({"a": lambda: None, "b": lambda: None}, baseline="c")
    with pytest.raises(ValueError, match="pairs=0"):
        timer.compare({"a": lambda: None}, pairs=0)


def test_one_call_is_measured_alone() -> None:
    (result,) = timer.compare({"nap": lambda: time.sleep(0.002)}, pairs=3)
    assert (result.name, result.samples, result.baseline) == ("nap", 3, "nap")
    assert result.ms.median >= 2


@pytest.mark.parametrize("clock", ["cuda", "graph"])
def test_a_gpu_clock_times_the_gpu_or_says_that_there_is_none(clock: timer.ClockName) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="needs a GPU"):
            timer.compare({"a": lambda: None}, clock=clock)
        return
    a = torch.rand(2048, 2048, device="cuda")
    one, four = timer.compare({"one": lambda: a @ a, "four": lambda: [a @ a for _ in range(4)]}, clock=clock)
    assert one.ratio.median / four.ratio.median == pytest.approx(4, rel=0.5)


def test_a_finished_case_is_read_and_not_measured_again(tmp_path: Path) -> None:
    path, runs = tmp_path / "results" / "bench.jsonl", []

    def figures() -> dict[str, float]:
        runs.append(1)
        return {"ms": 2.5}

    for fresh in (False, False, True):
        ledger = timer.Ledger(path, fresh=fresh)
        line = ledger.case({"batch": 8, "threads": 2}, figures)
        assert (line["ms"], line["case"]) == (2.5, {"batch": 8, "threads": 2})
        assert ledger.case({"threads": 2, "batch": 8}, figures) == line
    assert len(runs) == 2  # the first time, and when asked for fresh figures
    stamps = [line for line in timer.lines(path) if "stamp_id" in line]
    assert len(stamps) == 1
    assert {"cpu", "cores", "commit", "versions", "load"} <= stamps[0].keys()
    assert line["stamp"] == stamps[0]["stamp_id"]


def test_figures_of_other_code_are_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bench.jsonl"
    timer.Ledger(path).case({}, lambda: {"ms": 1})
    monkeypatch.setattr(stamp, "_code", lambda: "0123456789ab")
    assert timer.Ledger(path).case({}, lambda: {"ms": 2})["ms"] == 2
    assert len({line["stamp"] for line in timer.lines(path) if "case" in line}) == 2


def test_a_line_that_an_interrupt_cut_off_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "bench.jsonl"
    ledger = timer.Ledger(path)
    ledger.case({"n": 1}, lambda: {"ms": 1})
    ledger.case({"n": 2}, lambda: {"ms": 2})
    path.write_text(path.read_text()[:-8])
    again = timer.Ledger(path)
    assert again.case({"n": 1}, lambda: {"ms": 9})["ms"] == 1
    assert again.case({"n": 2}, lambda: {"ms": 9})["ms"] == 9
    assert [line["case"] for line in timer.lines(path) if "case" in line] == [{"n": 1}, {"n": 2}]


def test_the_identity_ignores_the_date_and_the_load() -> None:
    first = stamp.environment_stamp()
    later = {**first, "date": "2000-01-01", "load": 9.0, "commit": "another"}
    assert stamp.identity(first) == stamp.identity(later)
    assert stamp.identity(first) != stamp.identity({**first, "cpu": "another"})
    assert str(first["cores"]) in stamp.machine_line(first)
