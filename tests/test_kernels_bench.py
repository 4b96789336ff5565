"""A bench's subjects compute the same, its rows come in time, and the page is honest."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "bench"))
torch = pytest.importorskip("torch")

import kernel_subjects  # noqa: E402
import kernels as bench  # noqa: E402
import roofline  # noqa: E402
from roofline import H200, Op  # noqa: E402

from dgiqa.runtime.kernels import Kernels  # noqa: E402
from dgiqa.spec import IMAGENET_STD  # noqa: E402
from dgiqa.timing import interleaved  # noqa: E402


def test_a_floor_is_the_slower_of_bytes_and_arithmetic() -> None:
    moved, computed = Op(1e9, 0, 4.3e9, 0), Op(790e9, 0, 1, 0)
    assert H200.floor_us(moved) == pytest.approx(1000)
    assert H200.floor_us(computed, tiles=2) == pytest.approx(2000)


@pytest.mark.parametrize(("stage", "shifted"), [(3, True), (3, False), (4, False)])
def test_window_attention_subjects_agree(stage: int, shifted: bool) -> None:
    calls = kernel_subjects.window_attention_calls(stage, 2, shifted, device="cpu", dtype=torch.float32, sets=2)
    calls.pop("SDPA, mask precomputed, compiled")  # the eager one, compiled
    for _ in range(3):  # the inputs' first, second and first again
        results = {name: call() for name, call in calls.items()}
        shift = 3 if shifted else 0  # the folded subject's tokens are in the order of the shifted windows
        folded, ours = results.pop("SDPA, windows folded"), results["ours"]
        ordered = kernel_subjects.by_window(torch.roll(ours, (-shift, -shift), (1, 2)))
        torch.testing.assert_close(folded, ordered, atol=2e-5, rtol=1e-4)
        for name, result in results.items():
            torch.testing.assert_close(result, results["ours"], atol=2e-5, rtol=1e-4, msg=name)


def test_the_kernel_is_compared_with_attention_that_moves_no_windows() -> None:
    for stage in (1, 2, 3, 4):
        ours, folded = (roofline.window_attention(stage, folded=way).bytes(640) for way in (False, True))
        assert ours <= folded < 1.01 * ours


def test_depth_car_subjects_agree() -> None:
    results = {n: call() for n, call in kernel_subjects.depth_car_calls(2, device="cpu", dtype=torch.float32).items()}
    for name, result in results.items():
        torch.testing.assert_close(result, results["ours"], atol=1e-5, rtol=1e-4, msg=name)


def test_preprocessing_subjects_agree_to_a_level(kernels: Kernels) -> None:
    calls = kernel_subjects.preprocess_calls(400, 600, device="cpu", kernels=kernels)
    ours, theirs = calls["ours"](), calls["torch operations"]()
    level = 1 / (255 * min(IMAGENET_STD))
    for mine, other, within in zip(ours, theirs, (0.02, 1.01 * level, 2.01 * level), strict=True):
        assert mine.shape == other.shape
        assert (mine - other).abs().max() <= within
        assert mine.std() > 0.1


def floors() -> dict[str, Any]:
    return {
        "environment": {"commit": "0123456789ab", "date": "2026-01-01", "cores": 2, "cpu": "a CPU"},
        "status": "no GPU has run any of these kernels",
        "machine": {"name": H200.name, "flops": H200.flops, "bytes_per_second": H200.bandwidth},
        "rows": [case.row(H200) for case in bench.cases([20])],
        "cpu_ms_per_image": None,
    }


def as_if_measured(record: dict[str, Any]) -> dict[str, Any]:
    for row in record["rows"]:
        row["measured_us"] = {n: {"p10": us, "median": us, "p90": us} for n, us in (("ours", 20.0), ("SDPA", 30.0))}
    return record | {"status": "measured"}


def table_rows(page: str) -> list[str]:
    kernels = page.partition("## Kernels")[2].split("##", maxsplit=1)[0]
    return [line for line in kernels.splitlines() if line.startswith("| ")][2:]


def test_a_page_without_a_gpu_has_floors_alone() -> None:
    record = floors()
    page = bench.page(record)
    assert "**No GPU has run these kernels" in page
    rows = table_rows(page)
    assert len(rows) == len(record["rows"])
    assert all(row.endswith("| - | - | - | - |") for row in rows)
    assert "| window attention, stage 1 | 20 | 48.18 | 11.21 |" in rows[0]


def test_what_was_measured_stands_beside_its_floor() -> None:
    page = bench.page(as_if_measured(floors()))
    assert table_rows(page)[0].endswith("| 11.21 | 20 [20, 20] | - | SDPA: 30 | 1.50 |")
    assert "No GPU" not in page


def test_the_version_before_stands_beside_each_figure_of_the_same_gpu() -> None:
    old, new = as_if_measured(floors()), as_if_measured(floors())
    bench.add_before(new, None)
    assert "before_us" not in new["rows"][0]
    bench.add_before(new, old | {"machine": old["machine"] | {"name": "another GPU"}})
    assert "before_us" not in new["rows"][0]
    old["rows"][0]["measured_us"]["ours"]["median"] = 123.0
    bench.add_before(new, old)
    assert new["rows"][0]["before_us"] == 123.0
    assert "| 123 |" in table_rows(bench.page(new))[0]


def test_the_committed_page_is_the_committed_record() -> None:
    record = json.loads(bench.RESULTS.read_text())
    assert bench.PAGE.read_text(encoding="utf-8") == bench.page(record)
    measured = record["status"] == "measured"
    assert all((row["measured_us"] is not None) == measured for row in record["rows"])


def test_a_measured_row_holds_microseconds_and_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "PAIRS", 20)
    asked = []

    def make(gpu: Any, sets: int) -> dict[str, Any]:
        asked.append(sets)
        return {"slow": lambda: 3.0, "ours": lambda: 1.0}

    ops, row = [Op(reads=1000)], {}
    bench.measure(bench.Case("sleep", 2, ops, make, clock="own"), row, None, l2_bytes=10_000)
    assert asked == [15]  # three times the cache, in sets of 2000 bytes
    assert (row["measured_us"]["ours"]["median"], row["measured_us"]["slow"]["median"]) == (1000, 3000)
    assert row["times_ours"]["slow"] == 3


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A GPU of which each of six subjects takes ten times its floor, by a clock that is put forward; rows in order."""
    now, measured = [0.0], []

    def measure(case: Any, row: dict[str, Any], gpu: Any, l2_bytes: int, seconds: float) -> None:
        round_s = 6e-6 * bench.LAUNCHES * (10 * row["floor_us"] + 20)
        rounds = bench.WARM_UP + min(bench.PAIRS, 1 + seconds / round_s)
        now[0] += 3 + rounds * round_s  # 3: torch.compile's
        measured.append(f"{case.name} {case.tiles}")
        row["measured_us"] = {"ours": {"p10": 1.0, "median": 1.0, "p90": 1.0}}

    monkeypatch.setattr(bench, "measure", measure)
    monkeypatch.setattr(bench, "measured_machine", lambda: (H200, 60 << 20))
    monkeypatch.setattr(bench.time, "monotonic", lambda: now[0])
    measured.append(now)  # type: ignore[arg-type]
    return measured


def test_what_a_gpu_of_ten_minutes_is_asked_by_default_takes_less(on_a_gpu: list[Any]) -> None:
    now = on_a_gpu.pop()
    found = bench.record(None, object(), cpu=False)
    assert found["left_out"] == []
    assert now[0] < 480
    assert on_a_gpu[-1] == "preprocessing 4000 x 3000 1"  # the dearest last


def test_every_row_is_written_as_it_comes_and_no_row_begins_too_late(on_a_gpu: list[Any]) -> None:
    on_a_gpu.pop()
    kept: list[list[str]] = []
    found = bench.record(
        [20, 640], object(), cpu=False, minutes=1, keep=lambda so_far: kept.append([r["case"] for r in so_far["rows"]])
    )
    assert [len(rows) for rows in kept] == [*range(1, len(found["rows"]) + 1), len(found["rows"])]
    assert found["left_out"][-1] == "window attention, stage 1, 640 tiles: not begun within 1 minutes"


def test_a_row_that_fails_is_told_and_the_others_go_on(on_a_gpu: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    measure = bench.measure

    def fails(case: Any, *rest: Any) -> None:
        if "stage 2" in case.name:
            raise RuntimeError("CUDA error: out of memory")
        measure(case, *rest)

    monkeypatch.setattr(bench, "measure", fails)
    found = bench.record([20], object(), cpu=False, only="window")
    assert [row["case"][-1] for row in found["rows"]] == ["4", "3", "1"]
    assert found["left_out"] == ["window attention, stage 2, 20 tiles: RuntimeError: CUDA error: out of memory"]


def test_scoring_on_a_device_leaves_the_cpu_little_to_do() -> None:
    call = kernel_subjects.device_path_call(3000, 4000)
    numbers = np.linspace(0, 1, 1_000_000)
    busy = lambda: np.cumsum(numbers)  # noqa: E731 - 2 ms, where the call takes 0.05
    assert any(
        min(times["call"]) < min(times["busy"]) / 2
        for times in (interleaved({"call": call, "busy": busy}, pairs=20) for _ in range(20))
    )


def test_without_a_gpu_measuring_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    case = next(bench.cases([20]))
    subject = {"ours": lambda: None}
    with pytest.raises(RuntimeError, match="needs a GPU"):
        bench.measure(bench.Case(case.name, 20, case.ops, lambda gpu, sets: subject), {}, None, 1 << 20)
