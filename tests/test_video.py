"""Videos -> rows: what happens over time is found, files and streams share batches, reuse is honest, nothing grows."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from video_clips import RATE, UInt8, blurred, damage, numbered, swaying, write
from waiting import PATIENCE_S, until

from dgiqa import preprocess
from dgiqa.bundle import Bundle
from dgiqa.cli.video import _about as about
from dgiqa.errors import BackendError, ImageError
from dgiqa.forward import Networks
from dgiqa.report.rows import FRAME_COLUMNS
from dgiqa.scorer import Scorer
from dgiqa.video import Progress, Reading, Row, Summary, VideoRun
from dgiqa.video.channel import Channel
from dgiqa.video.frames import Frame
from dgiqa.video.pooling import Pooled
from dgiqa.video.reuse import DepthKeeper, Drift, Reuse
from dgiqa.video.sampling import Sampling, thumbnail
from dgiqa.video.source import Raw
from dgiqa.work import Part, PartScores


@pytest.fixture(scope="module")
def scorer(tiny_bundle: Bundle) -> Iterator[Scorer]:
    with Scorer(tiny_bundle, threads=1) as made:
        yield made


@pytest.fixture(scope="module")
def dimmed(tmp_path_factory: pytest.TempPathFactory, photos: dict[str, UInt8]) -> Path:
    """Six seconds of a photograph, dim from 2 s to 4 s: what untrained networks notice, too."""
    path = tmp_path_factory.mktemp("clips") / "dimmed.mp4"

    def dim(frame: UInt8, time_s: float) -> UInt8:
        return frame // 3 if 2 <= time_s < 4 else frame

    return write(path, swaying(photos["coffee"], 6 * RATE, width=192, height=128, change=dim))


def run(scorer: Scorer, *sources: Any, **options: Any) -> tuple[list[Row], Summary]:
    sampling = options.pop("sampling", Sampling(every=0))
    made = VideoRun(scorer.stages, sources, sampling, **options)
    summary = Summary(made)
    rows = list(made.rows())
    for row in rows:
        summary.add(row)
    return rows, summary


def planted(rows: list[Row], first_s: float, last_s: float) -> tuple[float, float]:
    """Where the scores leave those of the first second for good, and where they come back: seconds."""
    times = np.array([r["time_s"] for r in rows])
    scores = np.array([r["score"] for r in rows])
    usual = np.median(scores[(times < first_s) | (times >= last_s)])
    inside = np.median(scores[(times >= first_s) & (times < last_s)])
    changed = times[np.abs(scores - usual) > np.abs(inside - usual) / 2]
    return float(changed.min()), float(changed.max())


@pytest.mark.parametrize("every", [0.2, 0.5])
@pytest.mark.parametrize("reuse", [None, Reuse(), Reuse(tiles=True)])
def test_a_planted_degradation_is_found_within_one_sampling_step(
    scorer: Scorer, dimmed: Path, every: float, reuse: Reuse | None
) -> None:
    rows = list(scorer.score_video(dimmed, every=every, reuse=reuse))
    first_s, last_s = planted(rows, 2, 4)
    assert abs(first_s - 2) <= every
    assert abs(last_s + every - 4) <= every


def test_the_default_model_shows_a_blur_as_a_dip(photos: dict[str, UInt8], tmp_path: Path) -> None:
    path = write(tmp_path / "dip.mp4", swaying(photos["coffee"], 100, width=320, height=240, change=blurred(1, 2, 4)))
    with Scorer("small", threads=1) as small:
        rows, summary = run(small, path, sampling=Sampling(every=0.25))
    scores = {r["time_s"]: r["score"] for r in rows}
    inside = [s for t, s in scores.items() if 1 <= t < 2]
    outside = [s for t, s in scores.items() if not 0.9 <= t < 2.1]
    assert max(inside) < min(outside)
    assert np.mean(inside) < np.mean(outside) - 0.1
    worst = summary.pooled[str(path)].worst
    assert worst is not None
    assert worst.start_s < 2
    assert worst.end_s > 1


def test_rows_have_the_columns_in_order_and_the_scores_of_single_images(scorer: Scorer, dimmed: Path) -> None:
    from dgiqa.video.frames import Video

    rows = list(scorer.score_video(dimmed, every=1))
    assert all(tuple(row) == FRAME_COLUMNS for row in rows)
    with Video(dimmed) as video:
        for row, frame in zip(rows, video.frames(Sampling(every=1)), strict=True):
            alone = scorer.score(frame.rgb)  # type: ignore[arg-type]
            assert row["score"] == pytest.approx(alone.value, abs=2e-6)
            assert row["std_error"] == pytest.approx(alone.std_error, abs=2e-6)
            assert (row["tiles"], row["width"], row["height"]) == (len(alone.windows), 192, 128)


def test_a_damaged_frame_is_an_error_row_between_scored_ones(
    scorer: Scorer, tmp_path: Path, photos: dict[str, UInt8]
) -> None:
    path = write(tmp_path / "damaged.avi", swaying(photos["coffee"], 50), codec="mpeg4")
    damage(path, 0.5)
    rows, summary = run(scorer, path)
    assert [r["frame"] for r in rows if r["status"] == "error"] == [25]
    assert rows[25]["score"] is None
    assert (summary.scored, summary.failed) == (49, 1)


def test_a_source_that_cannot_be_opened_is_a_row_and_the_others_go_on(
    scorer: Scorer, dimmed: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    rows, _ = run(scorer, bad, dimmed, tmp_path / "missing.mp4", sampling=Sampling(every=2))
    by_path = {
        str(p): [r["status"] for r in rows if r["path"] == str(p)] for p in (bad, dimmed, tmp_path / "missing.mp4")
    }
    assert list(by_path.values()) == [["error"], ["ok"] * 3, ["error"]]


def test_several_videos_share_batches_and_each_keeps_its_order(
    scorer: Scorer, tmp_path: Path, photos: dict[str, UInt8], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write(tmp_path / f"{n}.mp4", swaying(photos[n], 20, width=96, height=96)) for n in ("coffee", "rocket")]
    alone = [[r["score"] for r in run(scorer, p)[0]] for p in paths]
    batches = []
    original = Networks.score

    def watched(self: Networks, parts: list[Part]) -> list[PartScores]:
        batches.append({part.work.source for part in parts})
        return original(self, parts)

    monkeypatch.setattr(Networks, "score", watched)
    rows, _ = run(scorer, *paths, batch=12)
    assert any(len(batch) == 2 for batch in batches)
    for path, scores in zip(paths, alone, strict=True):
        found = [r for r in rows if r["path"] == str(path)]
        assert [r["frame"] for r in found] == list(range(20))
        assert [r["score"] for r in found] == pytest.approx(scores, abs=1e-5)


def test_a_slow_consumer_does_not_grow_a_queue(scorer: Scorer, tmp_path: Path) -> None:
    path = write(tmp_path / "long.mkv", numbered(200, 64, 64), codec="ffv1")
    made = VideoRun(scorer.stages, [path], Sampling(every=0))
    rows = made.rows()
    next(rows)
    channel = made._channel
    until(lambda: len(channel._frames) == channel.capacity)
    decoded = made.progress[str(path)]
    assert not decoded.ended  # the reader waits
    rows.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("dgiqa")]


def test_a_channel_waits_for_files_and_drops_the_oldest_of_a_live_source() -> None:
    channel = Channel(2)
    for i in range(5):
        assert channel.put(Frame("camera", i, i), newest_wins=True)
    assert channel.dropped == 3
    assert [channel.get(wait=False).time_s for _ in range(2)] == [3, 4]
    assert channel.put(Frame("file", 0, 0))
    assert channel.put(Frame("file", 1, 1))
    assert not channel.put(Frame("file", 2, 2), timeout=0.05)
    channel.finish()
    assert not channel.put(Frame("file", 2, 2))
    assert [f.time_s if (f := channel.get()) else None for _ in range(3)] == [0, 1, None]


def test_a_channel_of_one_frame_is_the_smallest() -> None:
    assert Channel(1).put(Frame("file", 0, 0))
    with pytest.raises(ValueError, match="at least 1 frame, got 0"):
        Channel(0)


def test_what_an_engine_refuses_is_its_frames_error_and_a_mistake_of_ours_is_raised(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    quality, picture = scorer.stages.networks.quality, next(numbered(1, 96, 96))

    def rows(error: Exception) -> list[dict[str, Any]]:
        def run(feeds: Any) -> Any:
            raise error

        monkeypatch.setattr(quality, "run", run)
        with scorer.stream() as stream:
            stream.push(picture, 0.0)
            stream.finish()
            return list(stream)

    (row,) = rows(BackendError("the engine broke"))
    assert (row["status"], row["error"], row["score"]) == ("error", "the engine broke", None)
    with pytest.raises(RuntimeError, match="a mistake"):
        rows(RuntimeError("a mistake"))
    assert not [t for t in threading.enumerate() if t.name.startswith("dgiqa")]


def test_a_busy_camera_does_not_push_out_a_quiet_one() -> None:
    channel = Channel(3)
    channel.put(Frame("quiet", 0, 0), newest_wins=True)
    for i in range(9):
        channel.put(Frame("busy", i, i), newest_wins=True)
    assert [channel.get(wait=False).source for _ in range(3)] == ["quiet", "busy", "busy"]


def still(photo: UInt8, count: int, noise: float, seed: int = 0) -> Iterator[UInt8]:
    """A fixed camera: a photograph, a small square crossing it, sensor noise."""
    base, generator = cv2.resize(photo, (192, 128)), np.random.default_rng(seed)
    for i in range(count):
        frame = base.copy()
        frame[90:100, 10 + i : 20 + i] = (220, 60, 40)
        yield np.clip(frame + generator.normal(0, noise, (*frame.shape[:2], 1)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("tiles", [False, True])
def test_reuse_saves_work_says_so_and_audits_itself(
    scorer: Scorer, tmp_path: Path, photos: dict[str, UInt8], monkeypatch: pytest.MonkeyPatch, tiles: bool
) -> None:
    path = write(tmp_path / "still.mp4", still(photos["rocket"], 60, 1.0))
    plain, _ = run(scorer, path)
    depths = []
    original = preprocess.depth_image
    monkeypatch.setattr(preprocess, "depth_image", lambda *a, **k: (depths.append(1), original(*a, **k))[1])
    rows, summary = run(scorer, path, reuse=Reuse(tiles=tiles, audit=8))
    assert len(depths) < 15
    assert {r["reused"] for r in rows} - {"depth"} == ({"", "depth+tiles"} if tiles else {""})
    assert sum(bool(r["reused"]) for r in rows) > 45
    assert all(r["reused"] == "" for r in rows if r["drift"] is not None)
    drifts = [r["drift"] for r in rows if r["drift"] is not None]
    assert len(drifts) == summary.run.drift.audits == 7
    fresh = {r["frame"]: r["score"] for r in plain}
    # A row without reuse is the very score that a run without reuse gives
    assert all(r["score"] == pytest.approx(fresh[r["frame"]], abs=2e-6) for r in rows if not r["reused"])
    assert np.mean([abs(r["score"] - fresh[r["frame"]]) for r in rows]) < 0.02
    assert (sum(r["tiles_reused"] for r in rows) > 0) == tiles


def test_an_audits_drift_is_the_difference_to_the_reused_score(
    scorer: Scorer, tmp_path: Path, photos: dict[str, UInt8]
) -> None:
    """The frame that an audit computes both ways would, without the audit, have got score + drift."""
    path = write(tmp_path / "still.mp4", still(photos["rocket"], 10, 2.0))
    for tiles in (False, True):
        audited, _ = run(scorer, path, reuse=Reuse(tiles=tiles, audit=5))
        unaudited, _ = run(scorer, path, reuse=Reuse(tiles=tiles, audit=1000))
        assert audited[5]["drift"] is not None
        assert audited[5]["score"] + audited[5]["drift"] == pytest.approx(unaudited[5]["score"], abs=3e-6)


def test_depth_is_computed_anew_at_cuts_and_after_motion(
    scorer: Scorer, tmp_path: Path, photos: dict[str, UInt8]
) -> None:
    views = [np.ascontiguousarray(photos[n][:128, :192]) for n in ("astronaut", "coffee")]
    path = write(tmp_path / "cut.mp4", [views[0]] * 10 + [views[1]] * 10 + [np.roll(views[1], 60, axis=1)] * 5)
    rows, _ = run(scorer, path, reuse=Reuse(audit=1000))
    assert [r["frame"] for r in rows if not r["reused"]] == [0, 10, 20]


def test_a_large_drift_tightens_the_interval_and_clean_audits_relax_it() -> None:
    keeper = DepthKeeper(Reuse(audit=4, drift=0.01), Drift())
    keeper.audited(0.05)
    assert keeper.limit == 32
    for _ in range(8):
        keeper.audited(-0.02)
    assert keeper.limit == 1
    picture = np.full((64, 96, 3), 90, np.uint8)
    plans = [keeper.plan(Frame("a", i, i, picture, thumbnail(picture))) for i in range(8)]
    assert plans == ["fresh", "reuse", "fresh", "reuse", "fresh", "reuse", "fresh", "audit"]
    for _ in range(4):
        keeper.audited(0.001)
    assert keeper.limit == 2
    assert keeper.drift.mean == pytest.approx((0.05 + 8 * 0.02 + 4 * 0.001) / 13)


def test_a_slow_change_is_not_slept_through(tmp_path: Path, photos: dict[str, UInt8]) -> None:
    """Noise that grows a little every frame is compared with what was scored, not with the frame before."""
    base, grain = cv2.resize(photos["coffee"], (192, 128)), np.random.default_rng(0).standard_normal((128, 192, 3))
    frames = [np.clip(base + grain * i * 1.5, 0, 255).astype(np.uint8) for i in range(20)]
    path = write(tmp_path / "slow.mkv", frames, codec="ffv1")
    with Scorer("small", threads=1) as small:
        plain, _ = run(small, path)
        rows, _ = run(small, path, reuse=Reuse(tiles=True, audit=1000))
    span = abs(plain[-1]["score"] - plain[0]["score"])
    assert span > 0.05
    assert sum(r["tiles_reused"] for r in rows) > 0
    assert max(abs(a["score"] - b["score"]) for a, b in zip(rows, plain, strict=True)) < 0.3 * span


def test_pooled_figures_are_those_of_their_definitions() -> None:
    generator = np.random.default_rng(0)
    scores = generator.uniform(0.2, 0.9, 500)
    scores[200:220] -= 0.15
    pooled = Pooled(interval_s=1.0)
    for i, score in enumerate(scores):
        pooled.add(i / 10, float(score))
    pooled.add(50.0, None)
    assert pooled.mean == pytest.approx(scores.mean())
    assert pooled.harmonic_mean == pytest.approx(500 / (1 / scores).sum())
    assert pooled.percentile(0.05) == pytest.approx(np.sort(scores)[24], abs=1e-4)
    assert (pooled.low, pooled.high, pooled.failed) == (scores.min(), scores.max(), 1)
    means = [scores[i : i + 10].mean() for i in range(491)]
    assert pooled.worst is not None
    assert pooled.worst.mean == pytest.approx(min(means))
    assert pooled.worst.start_s == pytest.approx(int(np.argmin(means)) / 10)


def test_a_clip_shorter_than_an_interval_is_one() -> None:
    pooled = Pooled(interval_s=10)
    assert pooled.worst is None
    for i in range(4):
        pooled.add(i * 0.5, 0.5)
    assert pooled.worst is not None
    assert (pooled.worst.start_s, pooled.worst.end_s, pooled.worst.mean) == (0, 2.0, 0.5)
    assert all(v is None or math.isfinite(v) for v in pooled.as_dict().values() if not isinstance(v, dict))


def test_frames_are_pushed_and_rows_pulled_from_different_threads(scorer: Scorer, photos: dict[str, UInt8]) -> None:
    frames = list(swaying(photos["coffee"], 24))
    with scorer.stream() as stream:

        def push(name: str) -> None:
            for i, frame in enumerate(frames):
                assert stream.push(frame, i / RATE, source=name)

        threads = [threading.Thread(target=push, args=(name,)) for name in ("left", "right")]
        for thread in threads:
            thread.start()
        rows = [stream.pull(timeout=PATIENCE_S) for _ in range(48)]
        for thread in threads:
            thread.join()
        stream.finish()
        assert stream.pull(timeout=PATIENCE_S) is None
    for name in ("left", "right"):
        own = [r for r in rows if r is not None and r["path"] == name]
        assert [r["time_s"] for r in own] == [round(i / RATE, 3) for i in range(24)]
        assert own[3]["score"] == pytest.approx(scorer.score(frames[3]).value, abs=2e-6)


def test_rows_of_a_stream_have_its_own_tiling(scorer: Scorer, photos: dict[str, UInt8]) -> None:
    frame = photos["coffee"]
    with scorer.stream(tiling="official:2") as stream:
        stream.push(frame, 0.0)
        stream.finish()
        (row,) = stream
    assert (row["tiling"], row["tiles"]) == ("official:2", 2)
    assert row["score"] == pytest.approx(scorer.score(frame, tiling="official:2").value, abs=2e-6)
    with pytest.raises(ValueError, match="official:COUNT"):
        scorer.stream(tiling="many")


def test_a_stream_takes_dlpack_arrays_and_copies_what_it_takes(scorer: Scorer) -> None:
    class Foreign:
        """An array of another library."""

        def __init__(self, array: UInt8) -> None:
            self.array = array

        def __dlpack__(self, **options: Any) -> Any:
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self) -> tuple[int, int]:
            return (1, 0)

    class OnGpu(Foreign):
        def __dlpack_device__(self) -> tuple[int, int]:
            return (2, 0)

    image = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    wanted = scorer.score(image.copy()).value
    with scorer.stream() as stream:
        for picture in (Foreign(image), image):
            stream.push(picture, 0.0)
        image[:] = 0  # a capture that uses its buffer again
        stream.finish()
        assert [row["score"] for row in stream] == pytest.approx([wanted] * 2, abs=2e-6)
    with scorer.stream() as stream:
        stream.push(OnGpu(image), 0.0)
        stream.finish()
        (row,) = stream
    assert row["status"] == "error"
    assert "take no arrays on a GPU" in row["error"]


def test_a_full_stream_waits_or_drops_as_it_was_told(scorer: Scorer) -> None:
    image = np.zeros((96, 128, 3), np.uint8)
    with scorer.stream(capacity=2) as stream:
        taken = 0
        while stream.push(image, taken, timeout=0.3):
            taken += 1
            assert taken < 60  # nobody pulls
        assert stream.dropped == 0
    assert stream.pull(timeout=0) is None, "rows that nobody pulled are lost with the stream"
    with scorer.stream(capacity=2, live=True) as stream:
        for i in range(60):
            assert stream.push(image, float(i))
        stream.finish()
        times = [row["time_s"] for row in stream]
        assert stream.dropped + len(times) == 60
        assert times == sorted(times)
        assert times[-1] == 59


def test_what_is_no_picture_is_refused_at_the_push_and_a_closed_stream_takes_nothing(scorer: Scorer) -> None:
    with scorer.stream() as stream:
        with pytest.raises(ImageError, match="channels come last"):
            stream.push(np.zeros((3, 96, 128), np.uint8), 0.0)
        stream.finish()
        assert not stream.push(np.zeros((96, 128, 3), np.uint8), 0.0)
        assert stream.pull(timeout=PATIENCE_S) is None


def test_a_pipe_of_raw_frames_is_scored(scorer: Scorer, photos: dict[str, UInt8]) -> None:
    import io

    frames = list(swaying(photos["coffee"], 6))
    data = io.BytesIO(b"".join(f.tobytes() for f in frames))
    rows = list(scorer.score_video(data, every=0, raw=Raw(160, 120, 25)))
    assert [r["score"] for r in rows] == pytest.approx([scorer.score(f).value for f in frames], abs=2e-6)


def test_arguments_that_mean_nothing_are_refused_before_anything_is_opened(scorer: Scorer) -> None:
    with pytest.raises(ValueError, match="named twice"):
        VideoRun(scorer.stages, ["a.mp4", "a.mp4"])
    cases: list[dict[str, Any]] = [{"streams": 0}, {"timeout_s": "10"}, {"attempts": 0}]
    for wrong in cases:
        ((name, value),) = wrong.items()
        with pytest.raises(ValueError, match=f"^{name} is {value!r}, wanted"):
            Reading(**wrong)
    with pytest.raises(ValueError):
        scorer.score_video("a.mp4", every=1, count=3)
    with pytest.raises(ValueError, match="does not take foo"):
        scorer.score_video("a.mp4", foo=1)
    for name in ("every", "count", "per_scene", "start", "end"):
        text: dict[str, Any] = {name: "0.5s"}
        with pytest.raises(ValueError, match=f"{name} is '0.5s', wanted a number"):
            scorer.score_video("a.mp4", **text)
    with pytest.raises(ValueError):
        Reuse(audit=0)


def test_frames_larger_than_allowed_are_error_rows(tiny_bundle: Bundle, dimmed: Path) -> None:
    with Scorer(tiny_bundle, threads=1, max_pixels=1000) as strict:
        rows = list(strict.score_video(dimmed, every=2))
    assert {r["status"] for r in rows} == {"error"}
    assert "192 x 128, limit 1,000 pixels" in rows[0]["error"]
    with Scorer(tiny_bundle, threads=1) as scorer:
        (row,) = VideoRun(scorer.stages, [dimmed], reading=Reading(max_pixels=1000)).rows()
    assert "192 x 128, limit 1,000 pixels" in row["error"]


def test_memory_does_not_grow_with_the_length(scorer: Scorer, tmp_path: Path) -> None:
    psutil = pytest.importorskip("psutil")
    path = write(tmp_path / "long.mkv", numbered(300, 320, 240))
    process, seen = psutil.Process(), dict[int, float]()
    for row in scorer.score_video(path, every=0):
        seen[row["frame"]] = process.memory_info().rss / 2**20
    held_mb = 150 * 320 * 240 * 3 / 2**20  # what the second half of the frames would take
    assert max(seen.values()) - max(seen[i] for i in range(150)) < held_mb / 4


def test_the_decoder_is_not_needed_for_raw_rgb_frames(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    import sys

    monkeypatch.setitem(sys.modules, "av", None)
    data = io.BytesIO(np.zeros((2, 96, 128, 3), np.uint8).tobytes())
    assert len(list(scorer.score_video(data, every=0, raw=Raw(128, 96, 25)))) == 2


def test_without_pyav_the_error_says_what_to_install(
    scorer: Scorer, dimmed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    from dgiqa.errors import BackendError

    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(BackendError, match=r"dgiqa-rt\[video\]"):
        list(scorer.score_video(dimmed))


def test_a_video_has_a_verdict_and_the_shares_of_its_reasons() -> None:
    names = ("good.mp4", "dips.mp4", "gone.mp4")
    drift = SimpleNamespace(mean=None, largest=0.0, audits=0, tightened=0)
    progress = {name: Progress(length_s=4.0, info="h264 64x48", notes={"black bars left out"}) for name in names}
    run = SimpleNamespace(progress=progress, sampling=Sampling(start=1.0), drift=drift, dropped=0)
    for interval_gate, expected in ((False, ["pass", "pass", None]), (True, ["pass", "fail", None])):
        summary = Summary(run, 1.0, gate=0.5, interval_gate=interval_gate)  # type: ignore[arg-type]
        for second in range(8):
            low = second in (3, 4)
            row: Row = {"time_s": second / 2, "reused": "", "reasons": ["blur"] if low else []}
            summary.add(row | {"path": "good.mp4", "score": 0.8})
            summary.add(row | {"path": "dips.mp4", "score": 0.2 if low else 0.8})
        summary.add({"path": "gone.mp4", "time_s": 0.0, "score": None, "reused": "", "reasons": None})
        videos = summary.as_dict(complete=True)["videos"]
        assert [videos[name]["verdict"] for name in names] == expected
        assert videos["dips.mp4"]["end_s"] == 5.0
        assert videos["dips.mp4"]["reasons"] == {"blur": 0.25}
        assert len(summary.failures()) == expected.count("fail")
        assert summary.verdicts == [verdict for verdict in expected if verdict]
        said = "; ".join(about("dips.mp4", videos["dips.mp4"]))
        assert said.endswith(f"blurred in 25% of the frames; black bars left out; {expected[1]}")
