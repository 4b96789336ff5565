"""Batches of tiles run side by side: the same scores in the same order, as many at a time as asked for, no more."""

from __future__ import annotations

import importlib.util
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner
from waiting import PATIENCE_S

from dgiqa import machine, spec
from dgiqa.bundle import Bundle
from dgiqa.cli import app
from dgiqa.errors import BackendError
from dgiqa.forward import BATCH, BATCH_SIDE_BY_SIDE, Networks, Stages
from dgiqa.pipeline import Batches, share
from dgiqa.runtime.backends import CUDA, ONNXRUNTIME, OPENVINO, OPENVINO_FROM_BYTES, TENSORRT, parallel_runs
from dgiqa.score import Failure, Score
from dgiqa.scorer import Scorer
from dgiqa.work import Work, take

pytest.importorskip("onnxruntime")
Photos = dict[str, NDArray[np.uint8]]


@pytest.fixture(scope="module")
def crops(photos: Photos) -> list[NDArray[np.uint8]]:
    """Twelve small images with 2 to 18 tiles each."""
    sizes = ((80, 80), (60, 200), (150, 90), (50, 400))
    return [photo[50 : 50 + h, 20 : 20 + w] for photo in list(photos.values())[:3] for h, w in sizes]


@pytest.fixture(scope="module")
def expected(tiny_bundle: Bundle, crops: list[NDArray[np.uint8]]) -> list[Score]:
    with Scorer(tiny_bundle, threads=1) as scorer:
        scores = [scorer.score(crop) for crop in crops]
    assert len({round(score.value, 4) for score in scores}) > 6  # so that a wrong order would show
    return scores


@pytest.mark.parametrize("parallel", [2, 3])
@pytest.mark.parametrize("batch", [1, 5, 64])
def test_side_by_side_is_the_same_in_the_same_order(
    tiny_bundle: Bundle, crops: list[NDArray[np.uint8]], expected: list[Score], parallel: int, batch: int
) -> None:
    with Scorer(tiny_bundle, threads=3, parallel=parallel, batch=batch) as scorer:
        for got, wanted in zip(scorer.score_many(crops * 3), expected * 3, strict=True):
            assert isinstance(got, Score)
            np.testing.assert_allclose(got.tile_scores, wanted.tile_scores, atol=1e-6)
            assert got.timings_ms.keys() == wanted.timings_ms.keys()


@pytest.mark.parametrize("parallel", [1, 2, 3])
def test_as_many_runs_at_a_time_as_asked_for(
    tiny_bundle: Bundle, crops: list[NDArray[np.uint8]], parallel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both networks count: runs wait until so many are inside at once, and no more ever are."""
    scorer = Scorer(tiny_bundle, threads=3, parallel=parallel, batch=2)
    together, inside, most = threading.Event(), set(), []

    def watched(run: Callable[..., Any]) -> Callable[..., Any]:
        def call(feeds: Any) -> Any:
            inside.add(threading.get_ident())
            most.append(len(inside))
            if len(inside) == parallel:
                together.set()
            assert together.wait(PATIENCE_S)
            time.sleep(0.001)
            inside.discard(threading.get_ident())
            return run(feeds)

        return call

    networks = scorer.stages.networks
    works = [scorer.stages.prepare(crop, "x") for crop in crops]
    monkeypatch.setattr(networks.quality, "run", watched(networks.quality.run))
    bell = threading.Event()
    with Batches(networks, lambda _: bell.set()) as batches:
        while batches.running or any(work.left for work in works):
            while len(batches.running) < batches.most and any(work.left for work in works):
                batches.start(take(works, 2))
            assert len(batches.running) <= parallel + 1  # one more is being cut
            assert bell.wait(PATIENCE_S)
            bell.clear()
            assert not any(error for _, error in batches.settle())
    assert all(work.complete for work in works)
    assert max(most) == parallel
    monkeypatch.setattr(networks.depth, "run", watched(networks.depth.run))
    list(scorer.score_many(crops * 2, workers=4, batch=7))
    assert max(most) == parallel


def test_the_last_tiles_are_shared_out_among_the_runs(
    tiny_bundle: Bundle, photos: Photos, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer, sizes = Scorer(tiny_bundle, threads=2, parallel=2, batch=32), []
    run = scorer.stages.networks.quality.run
    watched = lambda feeds: (sizes.append(len(feeds[spec.QUALITY_RGB])), run(feeds))[1]  # noqa: E731
    monkeypatch.setattr(scorer.stages.networks.quality, "run", watched)
    (score,) = scorer.score_many([photos["coffee"]])
    assert isinstance(score, Score)
    assert sorted(sizes) == [len(score.windows) // 2] * 2
    assert (share(7, 32, 2), share(7, 2, 2), share(7, 32, 1), share(0, 32, 2)) == (4, 2, 7, 1)


@pytest.mark.parametrize(
    "case",
    [(None, 1, BATCH), (None, 2, BATCH_SIDE_BY_SIDE), (6, 1, 6), (6, 2, 6)],
    ids=["default", "default side by side", "asked", "asked side by side"],
)
def test_runs_side_by_side_take_fewer_tiles_each_unless_told_otherwise(
    tiny_bundle: Bundle, photos: Photos, monkeypatch: pytest.MonkeyPatch, case: tuple[int | None, int, int]
) -> None:
    (asked, parallel, most), sizes = case, list[int]()
    with Scorer(tiny_bundle, threads=2, parallel=parallel, tiling="official:9", batch=asked) as scorer:
        quality = scorer.stages.networks.quality
        run = quality.run
        monkeypatch.setattr(quality, "run", lambda f: (sizes.append(len(f[spec.QUALITY_RGB])), run(f))[1])

        def frames() -> None:
            with scorer.stream() as stream:
                for i in range(4):
                    stream.push(photos["coffee"], i / 4)
                stream.finish()
                assert len(list(stream)) == 4

        for work in (
            lambda: list(scorer.score_many([photos["coffee"]] * 4)),
            lambda: scorer.score(photos["coffee"]),
            frames,
        ):
            work()
            assert max(sizes) == most
            sizes.clear()


def test_many_images_have_networks_of_their_own_and_only_when_needed(tiny_bundle: Bundle, photos: Photos) -> None:
    scorer = Scorer(tiny_bundle, threads=2)
    scorer.score(photos["coffee"])
    assert scorer._together is None
    list(scorer.score_many([photos["coffee"]]))
    assert scorer._together is not None
    assert (scorer._alone.networks.parallel, scorer._together.networks.parallel) == (1, 2)
    for runs, one in (("auto", 2), (1, 1), (2, 2)):
        with Scorer(tiny_bundle, threads=2, parallel=runs) as other:  # type: ignore[arg-type]
            assert other.stages is other._alone
            assert other._alone.networks.parallel == one
    scorer.close()
    for use in (scorer.score, scorer.score_many):
        with pytest.raises(ValueError, match="was closed"):
            use(photos["coffee"])


@pytest.mark.parametrize("name", ["batch", "threads", "parallel"])
def test_numbers_below_one_are_refused(tiny_bundle: Bundle, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        Scorer(tiny_bundle, **{name: 0})


def test_small_networks_run_side_by_side_on_a_cpu_and_any_on_streams_of_tensorrt(tmp_path: Path) -> None:
    small, large = tmp_path / "small.onnx", tmp_path / "large.onnx"
    small.write_bytes(b"x")
    with large.open("wb") as file:
        file.truncate(OPENVINO_FROM_BYTES)
    assert [parallel_runs(small, backend, 6) for backend in (ONNXRUNTIME, OPENVINO, CUDA, TENSORRT)] == [6, 6, 1, 2]
    assert parallel_runs(large, OPENVINO, 6) == 1
    assert parallel_runs(small, ONNXRUNTIME, 96) == machine.MOST_SIDE_BY_SIDE


def test_threads_are_shared_out_among_the_runs(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from dgiqa.runtime import ort

    asked = []
    options = ort._options
    monkeypatch.setattr(ort, "_options", lambda module, threads: (asked.append(threads), options(module, threads))[1])
    for threads, parallel in ((4, 1), (4, 2), (3, 2), (1, 4)):
        Scorer(tiny_bundle, backend="onnxruntime", threads=threads, parallel=parallel)
    assert asked[::2] == asked[1::2] == [4, 2, 1, 1]


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs openvino")
def test_openvino_shares_its_threads_out_too(tiny_bundle: Bundle, photos: Photos) -> None:
    with Scorer(tiny_bundle, backend="openvino", threads=2, parallel=2) as scorer:
        got = [score.value for score in scorer.score_many([photos["coffee"]] * 3) if isinstance(score, Score)]
        compiled = next(iter(scorer._alone.networks.quality._networks.values())).compiled
        assert [int(compiled.get_property(name)) for name in ("NUM_STREAMS", "INFERENCE_NUM_THREADS")] == [2, 2]
    assert got == pytest.approx([Scorer(tiny_bundle, threads=1).score(photos["coffee"]).value] * 3, abs=1e-5)


def test_what_a_run_raises_comes_out_and_the_threads_end(
    tiny_bundle: Bundle, crops: list[NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = Scorer(tiny_bundle, threads=2)

    def broken(feeds: Any) -> Any:
        raise BackendError("the engine broke")

    monkeypatch.setattr(scorer.stages.networks.quality, "run", broken)
    with pytest.raises(BackendError, match="the engine broke"):
        list(scorer.score_many(crops))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("dgiqa")]


def test_what_is_complete_does_not_wait_for_the_next_image(
    tiny_bundle: Bundle, crops: list[NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second image is prepared only after the first one's score came out."""
    first_is_out, prepare = threading.Event(), Stages.prepare

    def slow(self: Stages, source: Any, *arguments: Any, **options: Any) -> Any:
        assert len(source) != 123 or first_is_out.wait(PATIENCE_S)  # or the second is a Failure
        return prepare(self, source, *arguments, **options)

    monkeypatch.setattr(Stages, "prepare", slow)
    results = Scorer(tiny_bundle, threads=2).score_many([crops[0], np.zeros((123, 123, 3), np.uint8)], batch=1)
    next(results)
    first_is_out.set()
    assert isinstance(next(results), Score)


def test_a_slow_run_does_not_let_failures_pile_up(
    tiny_bundle: Bundle, crops: list[NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = 0

    def mostly_bad() -> Iterator[Any]:
        nonlocal taken
        for i in itertools.count():
            taken += 1
            yield b"bad" if i % 50 else crops[i % len(crops)]

    scorer = Scorer(tiny_bundle, threads=2, parallel=2)
    run = scorer.stages.networks.quality.run
    monkeypatch.setattr(scorer.stages.networks.quality, "run", lambda feeds: (time.sleep(0.02), run(feeds))[1])
    results = scorer.score_many(mostly_bad(), workers=2, batch=8)
    for yielded in range(1, 121):
        assert isinstance(next(results), Score | Failure)
        assert taken - yielded <= 2 * 2 + (2 + 2) * 8
    results.close()


@pytest.mark.parametrize(
    ("arguments", "parallel"),
    [(["a.png"], 1), (["a.png", "b.png"], "auto"), (["."], "auto"), (["a.png", "b.png", "--parallel", "3"], 3)],
)
def test_the_command_runs_side_by_side_what_is_many(
    tiny_bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    parallel: object,
) -> None:
    asked = []

    class Recorded(Scorer):
        def __init__(self, *args: Any, **options: Any) -> None:
            asked.append(options["parallel"])
            super().__init__(*args, **options)

    for name in ("a.png", "b.png"):
        Image.new("RGB", (80, 80)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dgiqa.scorer.Scorer", Recorded)
    done = CliRunner().invoke(app, ["score", *arguments, "--bundle", str(tiny_bundle.path)])
    assert done.exit_code == 0, done.output
    assert asked == [parallel]


def test_take_takes_each_window_once(photos: Photos) -> None:
    def work(count: int) -> Work:
        windows, scores = np.zeros((count, 2), np.int32), np.full(count, np.nan, np.float32)
        return Work("x", "grid", 9, 9, photos["coffee"], photos["coffee"][..., 0], windows, {}, scores)

    works = [work(3), work(0), work(0), work(4)]
    batches = []
    while parts := take(works, 2):
        batches.append([(works.index(part.work), part.begin, part.count) for part in parts])
    assert batches == [[(0, 0, 2)], [(0, 2, 1), (3, 0, 1)], [(3, 1, 2)], [(3, 3, 1)]]
    assert not any(work.left for work in works)


def test_networks_give_back_what_they_hold(tiny_bundle: Bundle) -> None:
    closed = []

    class Held:
        def close(self) -> None:
            closed.append(self)

    networks = Networks(Held(), Held(), 2, spec.Preprocess(tile=64))  # type: ignore[arg-type]
    networks.close()
    assert closed == [networks.depth, networks.quality]
