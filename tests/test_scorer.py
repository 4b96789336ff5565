"""One image gives one score with its evidence; many give the same scores in order, lazily, in bounded memory."""

from __future__ import annotations

import gc
import io
import itertools
import json
import math
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from waiting import PATIENCE_S

from dgiqa import forward, pipeline, preprocess, spec
from dgiqa.bundle import Bundle, write_bundle
from dgiqa.errors import BackendError, BundleError, ImageError
from dgiqa.forward import STAGES
from dgiqa.image import sources
from dgiqa.score import Failure, Score
from dgiqa.scorer import Scorer

pytest.importorskip("onnxruntime")
Photos = dict[str, NDArray[np.uint8]]


@pytest.fixture(scope="module")
def tiny(tiny_bundle: Bundle) -> Scorer:
    return Scorer(tiny_bundle, threads=1)


@pytest.fixture(scope="module")
def crops(photos: Photos) -> list[NDArray[np.uint8]]:
    """Twelve small images with 2 to 18 tiles each."""
    sizes = ((80, 80), (60, 200), (150, 90), (50, 400))
    return [photo[50 : 50 + h, 20 : 20 + w] for photo in list(photos.values())[:3] for h, w in sizes]


def values(results: Any) -> list[float]:
    return [result.value for result in results]


def test_a_score_is_what_its_parts_make(tiny: Scorer, tiny_bundle: Bundle, photos: Photos) -> None:
    """Every step called by hand, from the array to the mean."""
    image, p = photos["coffee"], tiny_bundle.preprocess
    score = tiny.score(image)
    near = tiny._alone.networks.depth.run({spec.DEPTH_INPUT: preprocess.depth_input(image, p)})[spec.DEPTH_OUTPUT]
    near, small = preprocess.depth_image(near, *image.shape[:2], p), preprocess.working_image(image, p)
    windows = preprocess.grid_windows(*near.shape, p.tile)
    rgb, depth = preprocess.cut_tiles(small, near, windows, p.tile)
    expected = tiny._alone.networks.quality.run({spec.QUALITY_RGB: rgb, spec.QUALITY_DEPTH: depth})[spec.QUALITY_OUTPUT]
    np.testing.assert_allclose(score.tile_scores, expected, atol=1e-6)
    np.testing.assert_array_equal(score.windows, windows)
    assert np.ptp(expected) > 1e-3  # the tiles do differ, or order would not be tested
    assert score.value == pytest.approx(expected.mean(), abs=1e-6)
    assert score.std_error == pytest.approx(expected.std(ddof=1) / math.sqrt(len(expected)), rel=1e-4)
    feeds = forward.tiles(small, near, "official:11", p)  # more than a batch
    several = [tiny._alone.networks.quality.run(each)[spec.QUALITY_OUTPUT] for each in feeds]
    np.testing.assert_allclose(np.concatenate(several), tiny.score(image, tiling="official:11").tile_scores, atol=1e-6)


def test_every_kind_of_source_gives_the_same_score(
    tiny: Scorer, photos: Photos, encode: Callable[..., bytes], tmp_path: Path
) -> None:
    image = photos["chelsea"][:120, :160]
    data = encode(image)
    path = tmp_path / "a b.png"
    path.write_bytes(data)
    sources = [image, data, bytearray(data), memoryview(data), str(path), path, io.BytesIO(data)]
    with path.open("rb") as stream:
        scores = [tiny.score(s) for s in [*sources, stream]]
    names = ["<array>", *["<bytes>"] * 3, str(path), str(path), "<stream>", str(path)]
    assert [s.source for s in scores] == names
    assert len({s.value for s in scores}) == 1
    assert tiny.score(data, name="upload 7").source == "upload 7"


def test_a_score_tells_where_it_comes_from(tiny: Scorer, tiny_bundle: Bundle, photos: Photos) -> None:
    score = tiny.score(photos["coffee"][:331, :500])  # the two scales differ: 331 / 96 and 500 / 145
    assert (score.height, score.width, score.working_height, score.working_width) == (331, 500, 96, 145)
    assert (score.bundle, score.tiling, score.tile) == (tiny_bundle.id, "grid", 64)
    assert score.backend.startswith("onnxruntime-cpu ")
    assert tuple(score.timings_ms) == STAGES
    assert all(ms > 0 for ms in score.timings_ms.values())
    assert float(score) == score.value
    assert repr(score).startswith(f"Score({score.value:.4f} ± {score.std_error:.4f}, 6 tiles, '<array>', tiny@")
    original = score.windows_original
    np.testing.assert_allclose(original[0], [0, 0, 64 * 331 / 96, 64 * 500 / 145])
    np.testing.assert_allclose(original[-1, :2] + original[-1, 2:], [331, 500])
    record = json.loads(json.dumps(score.as_dict(), allow_nan=False))
    assert record["value"] == score.value
    assert record["windows"] == score.windows.tolist()
    assert record["timings_ms"].keys() == set(STAGES)


def test_one_tile_has_no_standard_error(tiny: Scorer, photos: Photos) -> None:
    score = tiny.score(photos["coffee"], tiling="official:1")
    assert (len(score.tile_scores), score.std_error, score.tiling) == (1, None, "official:1")
    assert json.loads(json.dumps(score.as_dict(), allow_nan=False))["std_error"] is None
    assert "±" not in repr(score)


def test_tiles_run_in_chunks_of_the_batch(tiny_bundle: Bundle, photos: Photos, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = Scorer(tiny_bundle, batch=4, threads=1)
    runs = record_batches(tiny, monkeypatch)
    score = tiny.score(photos["coffee"], tiling="official:11")
    assert runs == [4, 4, 3]
    assert len(score.tile_scores) == 11
    assert score.value == pytest.approx(
        Scorer(tiny_bundle).score(photos["coffee"], tiling="official:11").value, abs=1e-6
    )


def record_batches(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    sizes: list[int] = []
    run = scorer._alone.networks.quality.run
    monkeypatch.setattr(
        scorer._alone.networks.quality, "run", lambda feeds: (sizes.append(len(feeds[spec.QUALITY_RGB])), run(feeds))[1]
    )
    return sizes


@pytest.mark.parametrize("batch", [1, 3, 8, 64])
@pytest.mark.parametrize("workers", [1, 3])
def test_many_equal_one_by_one_in_order(tiny: Scorer, crops: list[NDArray[np.uint8]], batch: int, workers: int) -> None:
    one_by_one = [tiny.score(crop) for crop in crops]
    many = list(tiny.score_many(crops, batch=batch, workers=workers))
    assert len({round(v, 4) for v in values(one_by_one)}) > 6  # so that a wrong order would show
    for a, b in zip(one_by_one, many, strict=True):
        np.testing.assert_allclose(b.tile_scores, a.tile_scores, atol=1e-6)
        assert b.value == pytest.approx(a.value, abs=1e-6)
        assert (b.width, b.height, len(b.windows)) == (a.width, a.height, len(a.windows))


def test_tiles_of_different_images_share_full_batches(
    tiny: Scorer, crops: list[NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = record_batches(tiny, monkeypatch)
    results = list(tiny.score_many(crops, batch=5))
    tiles = sum(len(r.windows) for r in results)
    # The last one may overtake the one before it: two threads cut tiles, and take turns with the network.
    assert sorted(runs, reverse=True) == [5] * (tiles // 5) + [tiles % 5] * (tiles % 5 > 0)
    assert all(tuple(r.timings_ms) == STAGES for r in results)


def test_one_bad_image_is_one_failure_in_its_place(
    tiny: Scorer, crops: list[NDArray[np.uint8]], tmp_path: Path
) -> None:
    sources: list[Any] = [crops[0], b"no image", ("named", crops[1]), tmp_path / "gone.jpg", ("x", 5), crops[2], b""]
    results = list(tiny.score_many(sources))
    assert [type(r) for r in results] == [Score, Failure, Score, Failure, Failure, Score, Failure]
    assert results[2].source == "named"
    assert (results[1].source, results[1].error) == ("<bytes>", "ImageError")
    assert "No such file" in results[3].message
    assert results[4].source == "x"
    assert all(r.exception is None for r in results if isinstance(r, Failure))  # its traceback would hold the image
    assert results[3].as_dict() == {
        "source": str(tmp_path / "gone.jpg"),
        "error": "ImageError",
        "message": results[3].message,
    }


def test_an_unforeseen_exception_is_a_failure_too(
    tiny: Scorer, crops: list[NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_image(*arguments: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(sources, "open_image", open_image)
    failure, score = tiny.score_many([b"x", crops[0]])
    assert (failure.error, failure.message) == ("MemoryError", "MemoryError()")
    assert score.value > 0


def test_raise_raises_in_place_after_the_results_before(tiny: Scorer, crops: list[NDArray[np.uint8]]) -> None:
    results = tiny.score_many([crops[0], b"no image", crops[1]], on_error="raise")
    assert next(results).value > 0
    with pytest.raises(ImageError, match="not an image"):
        next(results)


def test_the_iterables_own_exception_comes_after_its_results(tiny: Scorer, crops: list[NDArray[np.uint8]]) -> None:
    def sources() -> Iterator[NDArray[np.uint8]]:
        yield from crops[:5]
        raise ConnectionError("the source broke")

    results = tiny.score_many(sources())
    assert values(itertools.islice(results, 5)) == values(tiny.score_many(crops[:5]))
    with pytest.raises(ConnectionError, match="the source broke"):
        next(results)


@pytest.mark.parametrize("kind", ["good", "bad", "mixed"])
def test_an_endless_iterable_is_read_a_bounded_way_ahead(
    tiny: Scorer, crops: list[NDArray[np.uint8]], kind: str
) -> None:
    taken = 0

    def endless() -> Iterator[Any]:
        nonlocal taken
        for i in itertools.count():
            taken += 1
            good = kind == "good" or (kind == "mixed" and i % 100 == 0)
            yield crops[i % len(crops)] if good else b"bad"

    results = tiny.score_many(endless(), workers=2, batch=8)
    assert taken == 0
    for yielded in range(1, 121):
        next(results)
        assert taken - yielded <= 2 * 2 + (1 + 2) * 8
    results.close()


def test_an_iterable_is_read_in_the_callers_thread(tiny: Scorer, crops: list[NDArray[np.uint8]]) -> None:
    threads = set()

    def sources() -> Iterator[NDArray[np.uint8]]:
        for crop in crops:
            threads.add(threading.get_ident())
            yield crop

    list(tiny.score_many(sources()))
    assert threads == {threading.get_ident()}


def scoring_threads() -> int:
    return sum(t.name.startswith("dgiqa") for t in threading.enumerate())


@pytest.mark.parametrize("how", ["close", "exception", "exhausted", "interrupt"])
def test_no_thread_outlives_the_iterator(tiny: Scorer, crops: list[NDArray[np.uint8]], how: str) -> None:
    def sources() -> Iterator[NDArray[np.uint8]]:
        for i in range(10) if how == "exhausted" else itertools.count():
            if i == 20 and how == "interrupt":
                raise KeyboardInterrupt
            yield crops[i % len(crops)]

    results = tiny.score_many(sources(), workers=2)
    next(results)
    assert scoring_threads() > 0
    if how == "close":
        results.close()
    elif how == "exception":
        with pytest.raises(RuntimeError):
            results.throw(RuntimeError("the consumer broke"))
    elif how == "interrupt":
        with pytest.raises(KeyboardInterrupt):
            list(results)
    else:
        list(results)
    assert scoring_threads() == 0


def test_closing_waits_for_a_stage_not_for_the_whole_image(
    tiny: Scorer, crops: list[NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, reached_depth = threading.Event(), []
    slow = threading.Event()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, *args: Any, **kwargs: Any) -> None:
            if self._thread_name_prefix == "dgiqa":  # that prepares
                slow.set()  # the stage that runs ends only now
            super().shutdown(*args, **kwargs)

    def depth_input(rgb: NDArray[np.uint8], p: spec.Preprocess) -> NDArray[np.float32]:
        if len(rgb) == 123:
            entered.set()
            slow.wait(PATIENCE_S)
        return np.zeros((1, 3, 64, 64), np.float32)

    run = tiny._alone.networks.depth.run
    monkeypatch.setattr(pipeline, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(preprocess, "depth_input", depth_input)
    monkeypatch.setattr(tiny._alone.networks.depth, "run", lambda feeds: (reached_depth.append(1), run(feeds))[1])
    results = tiny.score_many([crops[0], *[np.zeros((123, 123, 3), np.uint8)] * 50], workers=2, batch=1)
    next(results)
    entered.wait(PATIENCE_S)
    before = len(reached_depth)
    results.close()
    assert len(reached_depth) == before


def test_a_scorer_goes_with_its_last_name_and_not_with_a_collection(
    tiny_bundle: Bundle, crops: list[NDArray[np.uint8]]
) -> None:
    gc.disable()
    try:
        scorer = Scorer(tiny_bundle, threads=1)
        scorer.score(crops[0])
        list(scorer.score_many(crops[:3]))
        seen = weakref.ref(scorer)
        del scorer
        assert seen() is None
    finally:
        gc.enable()


def test_scores_are_right_from_several_threads(tiny: Scorer, crops: list[NDArray[np.uint8]]) -> None:
    expected = values(tiny.score(crop) for crop in crops)
    with ThreadPoolExecutor(4) as pool:
        got = values(pool.map(tiny.score, crops * 3))
    np.testing.assert_allclose(got, expected * 3, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: d / "gone.png", r"gone\.png cannot be read: No such file"),
        (lambda d: d, "is a folder; wanted an image file"),
        (lambda d: "/dev/null", "is not a regular file"),
        (lambda d: "nul\0", "embedded null"),
        (lambda d: io.StringIO("text"), "got str, wanted a path, bytes"),
        (lambda d: 3.5, "got float, wanted a path, bytes"),
        (lambda d: None, "got NoneType"),
    ],
)
def test_a_source_that_holds_no_bytes_says_why(
    tiny: Scorer, tmp_path: Path, make: Callable[[Path], Any], message: str
) -> None:
    with pytest.raises(ImageError, match=message):
        tiny.score(make(tmp_path))


def test_a_pipe_is_refused_instead_of_waited_for(tiny: Scorer, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError, match="not a regular file"):
        tiny.score(tmp_path / "pipe")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_says_so(tiny: Scorer, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"x")
    (tmp_path / "secret.png").chmod(0)
    with pytest.raises(ImageError, match="Permission denied"):
        tiny.score(tmp_path / "secret.png")


def test_what_is_too_large_is_refused_unread(
    tiny: Scorer, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encode: Callable[..., bytes]
) -> None:
    monkeypatch.setattr(sources, "MAX_BYTES", 100)
    large = b"BM" + bytes(5000)
    (tmp_path / "big").write_bytes(large)
    for source in (tmp_path / "big", large, io.BytesIO(large)):
        with pytest.raises(ImageError, match="100"):
            tiny.score(source)
    monkeypatch.undo()
    with pytest.raises(ImageError, match="pixel"):
        Scorer(tiny_bundle, max_pixels=99).score(encode(np.zeros((10, 10, 3), np.uint8)))


def test_arguments_that_mean_nothing_are_refused_at_once(tiny: Scorer, tiny_bundle: Bundle) -> None:
    with pytest.raises(ValueError, match="official"):
        Scorer(tiny_bundle, tiling="gird")
    with pytest.raises(ValueError, match="official"):
        tiny.score(np.zeros((99, 99, 3), np.uint8), tiling="")
    with pytest.raises(ValueError, match="batch must be at least 1"):
        Scorer(tiny_bundle, batch=0)
    with pytest.raises(ValueError, match="unknown backend"):
        Scorer(tiny_bundle, backend="cuda")
    with pytest.raises(ValueError, match="on_error"):
        tiny.score_many([], on_error="ignore")
    with pytest.raises(ValueError, match="at least 1, got 0"):
        tiny.score_many([], workers=0)
    assert list(tiny.score_many([])) == []


def test_a_closed_scorer_says_so(tiny_bundle: Bundle) -> None:
    with Scorer(tiny_bundle) as one:
        one.score(np.zeros((99, 99, 3), np.uint8))
    for use in (one.score, one.score_many, lambda _: one.stages):
        with pytest.raises(ValueError, match="was closed"):
            use(np.zeros((99, 99, 3), np.uint8))


def test_a_network_with_other_tensors_is_refused(tiny_graphs: dict[str, bytes], tmp_path: Path) -> None:
    swapped = {spec.DEPTH_FILE: tiny_graphs[spec.QUALITY_FILE], spec.QUALITY_FILE: tiny_graphs[spec.DEPTH_FILE]}
    bundle = write_bundle(tmp_path / "b", name="b", title="b", files=swapped, licence="x", source="y")
    with pytest.raises(BundleError, match=r"depth\.onnx maps \['depth', 'rgb'\] -> \['score'\], wanted \['image'\]"):
        Scorer(bundle)


def test_a_score_that_is_no_number_is_an_error_not_a_score(
    tiny_bundle: Bundle, crops: list[NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Scorer(replace(tiny_bundle), parallel=1)
    poison = {spec.QUALITY_OUTPUT: np.array([0.5, np.nan], np.float32)}
    monkeypatch.setattr(broken._alone.networks.quality, "run", lambda feeds: poison)
    monkeypatch.setattr(preprocess, "windows_for", lambda *a: np.zeros((2, 2), np.int32))
    with pytest.raises(BackendError, match="wanted finite scores"):
        broken.score(crops[0])
    assert [f.error for f in broken.score_many(crops[:2], batch=2)] == ["BackendError"] * 2


@pytest.mark.slow
def test_untrained_networks_score_alike_alone_and_in_batches(network_bundle: Bundle, photos: Photos) -> None:
    """The real architecture, exported: what batching changes in the last bits stays below 1e-6."""
    network = Scorer(network_bundle, threads=1)
    images = [photo[:300, :420] for photo in photos.values()]
    one_by_one = [network.score(image) for image in images]
    for batch in (3, 16):
        for a, b in zip(one_by_one, network.score_many(images, batch=batch), strict=True):
            np.testing.assert_allclose(b.tile_scores, a.tile_scores, atol=1e-6)
    assert all(0 < v < 1 for v in values(one_by_one))


@pytest.mark.slow
def test_memory_stays_level_over_a_thousand_images(tiny: Scorer, photos: Photos, encode: Callable[..., bytes]) -> None:
    """Resident memory after image 1,000 is within 10 % of that after image 100, with five sizes in turn."""
    psutil = pytest.importorskip("psutil")
    photo = photos["coffee"]
    files = [encode(photo[:h, :w], "JPEG") for h, w in ((400, 600), (240, 320), (300, 200), (128, 512), (380, 380))]
    resident = {}
    for number, result in enumerate(tiny.score_many(itertools.islice(itertools.cycle(files), 1000)), 1):
        assert isinstance(result, Score)
        if number in (100, 1000):
            resident[number] = psutil.Process().memory_info().rss
    assert resident[1000] < 1.1 * resident[100]


def test_one_image_where_several_are_wanted_is_refused(tiny: Scorer, crops: list[NDArray[np.uint8]]) -> None:
    for one in ("a.jpg", Path("a.jpg"), b"bytes", crops[0]):
        with pytest.raises(ValueError, match=r"got one .*, wanted several images"):
            tiny.score_many(one)  # type: ignore[arg-type]
    failure, score = tiny.score_many([("name", crops[0], "extra"), ("b", crops[1])])  # type: ignore[list-item]
    assert (failure.source, failure.error) == ("<tuple>", "ImageError")
    assert "wanted an image or a pair" in failure.message
    assert score.source == "b"
    assert [s.value for s in tiny.score_many(np.stack([crops[0], crops[0]]))] == [tiny.score(crops[0]).value] * 2


def test_long_thin_images_are_refused_before_they_are_decoded(tiny: Scorer) -> None:
    file = io.BytesIO()
    Image.new("1", (1, 40_000)).save(file, "PNG")
    broken = file.getvalue()[:60]
    with pytest.raises(ImageError, match=r"40000\.0 times as long as wide"):
        tiny.score(broken)


def test_what_was_done_to_a_file_is_in_its_score(tiny: Scorer) -> None:
    file = io.BytesIO()
    Image.new("RGBA", (99, 99), (9, 9, 9, 0)).save(file, "PNG")
    assert tiny.score(file.getvalue()).note.startswith("transparent everywhere: a white picture")
