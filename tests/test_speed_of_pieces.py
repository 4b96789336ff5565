"""The pieces around the networks keep their pace, as ratios to a fixed operation in the same run, never as times.

`pytest tests/test_speed_of_pieces.py --benchmark-enable` times them one by one.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import pieces

SLACK = 3.0  # a busy or another machine stays below it, a piece that got ten times slower does not
CALLS = pieces.pieces()


@pytest.mark.parametrize("name", CALLS)
def test_speed(benchmark, name: str) -> None:  # type: ignore[no-untyped-def] # pytest-benchmark is not typed
    benchmark(CALLS[name])


def test_no_piece_is_much_slower_than_its_baseline() -> None:
    late = dict(CALLS)
    for _ in range(20):  # whoever is late in one run must be so in twenty: others use this machine, too
        found = pieces.slower(pieces.ratios(late, 3, pieces.baseline()), pieces.baseline(), SLACK)
        late = {name: CALLS[name] for name in late if any(text.startswith(f"{name} ") for text in found)}
        if not late:
            return
    pytest.fail("; ".join(found))


def test_the_baseline_knows_every_piece() -> None:
    assert pieces.baseline().keys() == CALLS.keys()


def test_ten_times_slower_is_noticed() -> None:
    def slowed() -> None:
        for _ in range(10):
            CALLS["cut_tiles"]()

    allowed = pieces.baseline()
    measured = pieces.ratios({"cut_tiles": slowed}, expected={"cut_tiles": 10 * allowed["cut_tiles"]})
    (text,) = pieces.slower(measured, allowed, SLACK)
    assert text.startswith("cut_tiles takes")
