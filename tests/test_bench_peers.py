"""The peers bench: what a comparison says of peers that run, that cannot run, and that give other scores."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from waiting import PATIENCE_S

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import peer_metrics
import peers
import pictures
from peers import Entry

PEER = """
import sys
sys.path.insert(0, {bench!r})
from subjects import serve
ms, score = map(float, sys.argv[1:])
serve(lambda: ({{"score": lambda paths: {{"ms": ms, "scores": [score for _ in paths]}}}}, {{}}))
"""


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / "photo.jpg"
    path.write_bytes(pictures.photograph(1, (160, 120)))
    return str(path)


def peer(name: str, ms: float, score: float, **options: object) -> Entry:
    code = PEER.format(bench=str(Path(peers.__file__).parent))
    return Entry(name, (sys.executable, "-c", code, str(ms), str(score)), **options)  # type: ignore[arg-type]


def test_scoring_files_is_timed_for_each(photo: str) -> None:
    found = peer_metrics.timed([photo, photo], len)
    assert found["ms"] > 0
    assert found["scores"] == [Path(photo).stat().st_size] * 2


def test_the_first_is_the_baseline(photo: str) -> None:
    entries = [peer("slow", 100, 0.5), peer("faster", 10, 0.53, note="a note")]
    slow, fast = peers.measure_group(entries, [photo], pairs=3, seconds=PATIENCE_S)["rows"]
    assert (slow["name"], slow["ratio"]["median"]) == ("slow", 1.0)
    assert fast["ratio"]["median"] == 10
    assert fast["note"] == "a note"


def test_one_that_cannot_run_says_why_and_the_others_go_on(photo: str) -> None:
    broken = Entry("broken", (sys.executable, "-c", "import no_such_package"))
    rows = peers.measure_group([peer("works", 1, 0.5), broken], [photo], pairs=2, seconds=PATIENCE_S)["rows"]
    by_name = {row["name"]: row for row in rows}
    assert "No module named 'no_such_package'" in by_name["broken"]["unavailable"]
    assert by_name["works"]["samples"] == 2


def test_a_bundle_is_a_subject_like_any_other(bundle_dir: Path, photo: str) -> None:
    entries = [peers.of_bundle(request, str(bundle_dir), request) for request in ("score", "stream")]
    assert entries[0].command == entries[1].command  # so one process serves both
    one, many = peers.measure_group(entries, [photo] * 3, pairs=2, seconds=10)["rows"]
    assert one["ms"]["median"] > 0
    assert many["ms"]["median"] > 0


@pytest.mark.slow
def test_a_quick_comparison_with_pytorch(photo: str) -> None:
    pytest.importorskip("torch")
    rows = peers.measure_group(peers.authors("vits", quick=True), [photo], pairs=1, seconds=10)["rows"]
    assert [row["name"] for row in rows] == ["authors' pipeline, vits", peers.SMALL, peers.STREAM]
    assert rows[1]["ratio"]["median"] > 1


def test_a_classic_metric_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peer_metrics._CLASSIC, "NIQE", lambda: lambda image: np.float64(image.mean()))
    score = peer_metrics.metric("NIQE")
    bright, dark = (score(pictures.photograph(n, (64, 48))) for n in (0, 18))
    assert bright > dark


def test_every_metric_has_its_environment_and_says_what_it_is() -> None:
    assert set(peer_metrics.METRICS) >= {"MANIQA", "HyperIQA", "TOPIQ-NR", "MUSIQ", "CNNIQA", "BRISQUE", "NIQE", "PIQE"}
    assert {note for _, note in peer_metrics.METRICS.values()} >= {peer_metrics.RANDOM_WEIGHTS, "brisque 0.2.0"}
