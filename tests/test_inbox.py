"""Images handed in one at a time: the same scores as one by one, on an event loop that never stands still."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from holding import held
from numpy.typing import NDArray
from waiting import PATIENCE_S, SLACKS, until

import dgiqa
from dgiqa.bundle import Bundle
from dgiqa.errors import BackendError, ImageError
from dgiqa.forward import Stages
from dgiqa.inbox import Inbox
from dgiqa.scorer import Scorer

ROOT = Path(dgiqa.__file__).parent.parent


@pytest.fixture
def scorer(tiny_bundle: Bundle) -> Iterator[Scorer]:
    with Scorer(tiny_bundle, threads=2) as scorer:
        yield scorer


def pictures(count: int) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (70 + 9 * i, 100, 3), dtype=np.uint8) for i in range(count)]


def test_concurrent_calls_give_the_scores_of_single_ones(scorer: Scorer) -> None:
    async def all_of_them() -> list[float]:
        return [found.value for found in await asyncio.gather(*(scorer.ascore(each) for each in pictures(12)))]

    assert asyncio.run(all_of_them()) == pytest.approx([scorer.score(each).value for each in pictures(12)], abs=1e-6)
    assert asyncio.run(scorer.ascore(pictures(1)[0], name="a", tiling="official:3")).tiles == 3


def test_concurrent_calls_share_batches(scorer: Scorer) -> None:
    async def all_of_them(seconds: float) -> None:
        with held(scorer):
            waiting = [asyncio.create_task(scorer.ascore(each)) for each in pictures(8)]
            await asyncio.sleep(seconds)  # they are prepared
        await asyncio.gather(*waiting)

    for slack in SLACKS:
        runs: list[int] = []
        scorer.stages.networks.told = runs.append
        asyncio.run(all_of_them(0.1 * slack))
        if max(runs) == scorer.stages.networks.batch:
            break
    assert len(runs) < sum(runs)
    assert max(runs) == scorer.stages.networks.batch


def test_the_loop_goes_on_while_images_are_scored(scorer: Scorer) -> None:
    async def ticks_meanwhile() -> int:
        waiting, ticks = asyncio.create_task(scorer.ascore(pictures(1)[0])), 0
        while not waiting.done():
            ticks += 1
            if ticks == 50:
                threading.Thread(target=gate.release).start()
            await asyncio.sleep(0.001)
        return ticks

    gate = scorer.stages.networks.turn
    for _ in range(scorer.stages.networks.parallel):
        gate.acquire()
    try:
        assert asyncio.run(ticks_meanwhile()) >= 50
    finally:
        for _ in range(scorer.stages.networks.parallel - 1):
            gate.release()


def test_an_image_is_prepared_while_the_networks_run_and_waits_for_no_slower_one(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run goes on, and one image cannot be prepared, until the third one has its score."""
    done, running, prepare = threading.Event(), threading.Event(), Stages.prepare
    quality = scorer.stages.networks.quality
    run = quality.run

    def slow(self: Stages, source: Any, *arguments: Any, **options: Any) -> Any:
        assert len(source) != 123 or done.wait(PATIENCE_S)
        return prepare(self, source, *arguments, **options)

    def first_waits(feeds: Any) -> Any:
        if not running.is_set():
            running.set()
            assert done.wait(PATIENCE_S)
        return run(feeds)

    monkeypatch.setattr(Stages, "prepare", slow)
    monkeypatch.setattr(quality, "run", first_waits)
    futures = [scorer.inbox.submit(np.zeros((60, 60, 3), np.uint8))]
    assert running.wait(PATIENCE_S)
    futures += [scorer.inbox.submit(np.zeros((rows, 60, 3), np.uint8)) for rows in (123, 60)]
    assert futures.pop().result(PATIENCE_S).tiles
    done.set()
    assert all(future.result(PATIENCE_S).tiles for future in futures)


def test_a_few_tiles_do_not_wait_for_an_image_that_is_long_in_preparation(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, prepare = threading.Event(), Stages.prepare

    def slow(self: Stages, source: Any, *arguments: Any, **options: Any) -> Any:
        assert len(source) != 123 or done.wait(PATIENCE_S)
        return prepare(self, source, *arguments, **options)

    monkeypatch.setattr(Stages, "prepare", slow)
    large = scorer.inbox.submit(np.zeros((123, 60, 3), np.uint8))
    small = scorer.inbox.submit(np.zeros((60, 60, 3), np.uint8), tiling="official:1")
    assert small.result(PATIENCE_S).tiles == 1 < scorer.stages.networks.batch
    done.set()
    assert large.result(PATIENCE_S).tiles


def test_one_bad_image_is_its_own_error_and_the_others_go_on(scorer: Scorer) -> None:
    async def mixed() -> list[Any]:
        sources = [pictures(1)[0], b"no image", "gone.jpg", pictures(1)[0]]
        return await asyncio.gather(*map(scorer.ascore, sources), return_exceptions=True)

    first, bytes_, gone, last = asyncio.run(mixed())
    assert first.value == last.value
    assert isinstance(bytes_, ImageError)
    assert isinstance(gone, ImageError)
    with pytest.raises(ValueError, match="official"):
        asyncio.run(scorer.ascore(pictures(1)[0], tiling="none"))
    with pytest.raises(ValueError, match="tiling"):
        scorer.inbox.submit(pictures(1)[0], tiling="none").result(PATIENCE_S)
    assert scorer.inbox.submit(pictures(1)[0]).result(PATIENCE_S).tiles


def test_a_batch_that_fails_is_the_error_of_its_images_and_not_of_the_next(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = scorer.stages.networks
    whole = networks.score

    def once(parts: Any) -> Any:
        monkeypatch.setattr(networks, "score", whole)
        raise BackendError("out of memory")

    monkeypatch.setattr(networks, "score", once)
    with pytest.raises(BackendError, match="out of memory"):
        asyncio.run(scorer.ascore(pictures(1)[0]))
    assert asyncio.run(scorer.ascore(pictures(1)[0])).value == pytest.approx(
        scorer.score(pictures(1)[0]).value, abs=1e-6
    )


def test_a_cancelled_image_that_waits_is_never_prepared(scorer: Scorer) -> None:
    inbox = Inbox(lambda: scorer.stages, workers=1)
    with held(scorer):
        futures = [inbox.submit(each) for each in pictures(12)]
        until(futures[0].running)
        assert futures[-1].cancel()
        assert not futures[0].cancel()
    assert [future.result(PATIENCE_S).tiles > 0 for future in futures[:-1]] == [True] * 11
    assert inbox.pending == 0
    inbox.close()


def test_closing_waits_for_what_was_handed_in_and_takes_no_more(tiny_bundle: Bundle) -> None:
    scorer = Scorer(tiny_bundle, threads=1)
    inbox = scorer.inbox
    futures = [inbox.submit(each) for each in pictures(6)]
    scorer.close()
    assert all(future.done() and future.exception() is None for future in futures)
    with pytest.raises(ValueError, match="closed"):
        inbox.submit(pictures(1)[0])
    with pytest.raises(ValueError, match="closed"):
        asyncio.run(scorer.ascore(pictures(1)[0]))


def test_networks_that_do_not_open_are_everybodys_error() -> None:
    handed_in = threading.Event()

    def opens() -> Any:
        handed_in.wait(PATIENCE_S)
        raise BackendError("no such device")

    inbox = Inbox(opens)
    waiting = inbox.submit(b"x")
    handed_in.set()
    with pytest.raises(BackendError, match="no such device"):
        waiting.result(PATIENCE_S)
    assert not inbox.alive
    with pytest.raises(BackendError, match="no such device"):
        inbox.submit(b"x")
    inbox.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_is_refused_and_ends(tiny_bundle: Bundle) -> None:
    program = """
import asyncio, os, sys, numpy
from dgiqa import Scorer
scorer = Scorer(sys.argv[1], threads=1)
picture = numpy.zeros((90, 90, 3), numpy.uint8)
asyncio.run(scorer.ascore(picture))
child = os.fork()
if not child:
    try:
        asyncio.run(scorer.ascore(picture))
    except Exception as error:
        print(type(error).__name__, error, flush=True)
    scorer.close()
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
asyncio.run(scorer.ascore(picture))
"""
    place = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", program, str(tiny_bundle.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, env=place, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("BackendError this Scorer was opened in process")
