"""A plan runs from any thread and stream, on host and device arrays, replays graphs, and leaks nothing.

Against the driver and the engine of gpu_fakes: they do the work of streams late and mixed, and notice memory that is
gone.
"""

from __future__ import annotations

import gc
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gpu_fakes
import numpy as np
import pytest
from gpu_fakes import TILE, FakeDriver, write_plan

from dgiqa.builder import plan as room
from dgiqa.builder.plan import Progress, build_plan
from dgiqa.errors import BackendError, EngineError
from dgiqa.runtime import cuda
from dgiqa.runtime.plans import Log, identity, layer_precisions
from dgiqa.runtime.trt import TrtSession

NOTHING = dict.fromkeys(("device", "pinned", "streams", "events", "graphs", "primary"), 0)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    return gpu_fakes.install(monkeypatch, FakeDriver())


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return write_plan(tmp_path / "quality.plan")


@pytest.fixture
def session(driver: FakeDriver, plan: Path) -> Iterator[TrtSession]:
    with TrtSession(plan) as session:
        yield session


def feeds(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {name: generator.random((n, *TILE), dtype=np.float32) for name in ("rgb", "depth")}


def wanted(arrays: dict[str, np.ndarray]) -> np.ndarray:
    return arrays["rgb"].mean(axis=(1, 2, 3)) + 2 * arrays["depth"].mean(axis=(1, 2, 3))


def on_device(arrays: dict[str, np.ndarray], stream: cuda.Stream, offset: int = 0) -> dict[str, Any]:
    """The arrays of another library on the device, still being written by its stream."""
    context, placed = stream.context, {}
    for name, array in arrays.items():
        pinned = cuda.PinnedBuffer(context, array.nbytes)
        pinned.array(array.shape, array.dtype)[:] = array
        buffer = cuda.DeviceBuffer(context, array.nbytes + offset)
        with context.current():
            cuda.copy_in(buffer.pointer + offset, pinned, array.nbytes, int(stream))
        view = cuda.DeviceArray(buffer.pointer + offset, array.shape, array.dtype, int(stream))
        placed[name] = SimpleNamespace(
            __cuda_array_interface__=view.__cuda_array_interface__, keep=(pinned, buffer), pointer=view.pointer
        )
    return placed


def test_arrays_go_in_and_come_out_by_name(session: TrtSession) -> None:
    assert (session.inputs, session.outputs) == (("rgb", "depth"), ("score",))
    assert session.backend == "tensorrt 11.4.0.106"
    for n in (1, 8, 3):
        arrays = feeds(n, seed=n)
        result = session.run(arrays)
        assert list(result) == ["score"]
        np.testing.assert_allclose(result["score"], wanted(arrays), rtol=1e-5)
    flipped = {name: array[:, ::-1] for name, array in feeds(2).items()}  # not contiguous
    np.testing.assert_allclose(session.run(flipped)["score"], wanted(flipped), rtol=1e-5)


def test_a_plan_of_one_shape_needs_no_profile(driver: FakeDriver, tmp_path: Path) -> None:
    with TrtSession(write_plan(tmp_path / "fixed.plan", batch=(4, 4))) as session:
        np.testing.assert_allclose(session.run(feeds(4))["score"], wanted(feeds(4)), rtol=1e-5)
        with pytest.raises(ValueError, match=r"shape \(3, 3, 4, 4\), this plan takes \(4, .*\) to \(4,"):
            session.run(feeds(3))


def test_results_stay_what_they_were_when_the_session_goes_on(session: TrtSession) -> None:
    first, second = feeds(2, seed=1), feeds(2, seed=2)
    result = session.run(first)["score"]
    session.run(second)
    np.testing.assert_allclose(result, wanted(first), rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rgb": None}, r"got inputs \['depth'\], wanted \['depth', 'rgb'\]"),
        ({"mask": np.zeros(1)}, r"got inputs \['depth', 'mask', 'rgb'\]"),
        ({"rgb": np.zeros((2, *TILE))}, "'rgb' is float64, wanted float32"),
        ({"rgb": np.zeros((9, *TILE), np.float32)}, r"shape \(9, 3, 4, 4\), this plan takes \(1, .*\) to \(8, .*build"),
        ({"rgb": np.zeros((0, *TILE), np.float32)}, r"shape \(0, 3, 4, 4\), this plan takes"),
        ({"rgb": np.zeros((2, 3, 4), np.float32)}, r"shape \(2, 3, 4\), this plan takes"),
        ({"rgb": [[1.0]]}, "'rgb' is list, wanted a numpy array or an array on the device"),
    ],
)
def test_wrong_inputs_say_what_was_got_and_wanted(session: TrtSession, change: dict[str, Any], message: str) -> None:
    arrays = {name: array for name, array in {**feeds(2), **change}.items() if array is not None}
    with pytest.raises(ValueError, match=message):
        session.run(arrays)
    good = feeds(2)
    np.testing.assert_allclose(session.run(good)["score"], wanted(good), rtol=1e-5)  # it goes on


def test_a_graph_is_recorded_for_the_second_run_and_replayed_from_the_third(
    session: TrtSession, driver: FakeDriver
) -> None:
    launched = []
    for seed in range(4):
        arrays = feeds(4, seed)
        np.testing.assert_allclose(session.run(arrays)["score"], wanted(arrays), rtol=1e-5)
        launched.append((driver.calls["cuStreamBeginCapture"], driver.calls["cuGraphLaunch"]))
    assert launched == [(0, 0), (1, 0), (1, 1), (1, 2)]


def test_shapes_that_do_not_repeat_are_never_recorded_and_graphs_are_bounded(driver: FakeDriver, plan: Path) -> None:
    with TrtSession(plan, graphs=2) as session:
        for n in range(1, 9):
            session.run(feeds(n))
        assert driver.calls["cuStreamBeginCapture"] == 0
        for n in (1, 2, 3, 1, 2, 3, 1, 2, 3, 3):
            for seed in range(3):
                arrays = feeds(n, seed)
                np.testing.assert_allclose(session.run(arrays)["score"], wanted(arrays), rtol=1e-5)
            assert driver.alive()["graphs"] <= 2
        assert driver.calls["cuGraphLaunch"] > 0
    with TrtSession(plan, graphs=0) as session:
        before = driver.calls["cuStreamBeginCapture"]
        for _ in range(4):
            session.run(feeds(1))
        assert driver.calls["cuStreamBeginCapture"] == before


def test_graphs_and_plain_runs_take_turns_without_disturbing_each_other(session: TrtSession) -> None:
    for step in range(40):
        arrays = feeds((1, 4, 4, 2, 7)[step % 5], seed=step)
        np.testing.assert_allclose(session.run(arrays)["score"], wanted(arrays), rtol=1e-5)


def test_arrays_on_the_device_are_read_in_place_once_their_stream_is_done(
    session: TrtSession, driver: FakeDriver
) -> None:
    arrays = feeds(3)
    with cuda.Stream(cuda.Context()) as producer:
        uploads = driver.calls["cuMemcpyHtoDAsync"] + 2
        result = session.run(on_device(arrays, producer))
        np.testing.assert_allclose(result["score"], wanted(arrays), rtol=1e-5)
        assert driver.calls["cuMemcpyHtoDAsync"] == uploads  # the producer's two, none of ours
        mixed = {**arrays, "depth": on_device(arrays, producer)["depth"]}
        np.testing.assert_allclose(session.run(mixed)["score"], wanted(arrays), rtol=1e-5)


def test_an_address_that_tensorrt_cannot_take_is_copied_on_the_device(session: TrtSession, driver: FakeDriver) -> None:
    arrays = feeds(2)
    with cuda.Stream(cuda.Context()) as producer:
        result = session.run(on_device(arrays, producer, offset=4))
        np.testing.assert_allclose(result["score"], wanted(arrays), rtol=1e-5)
    assert driver.calls["cuMemcpyDtoDAsync"] == 2


def test_the_callers_stream_is_used_and_the_result_stays_on_the_device(session: TrtSession, driver: FakeDriver) -> None:
    with cuda.Stream(cuda.Context()) as stream:
        waits = driver.calls["cuStreamSynchronize"]
        results = []
        for seed in range(5):
            arrays = feeds(2, seed)
            placed = on_device(arrays, stream)
            score = session.run(placed, stream=SimpleNamespace(handle=int(stream)), device=True)["score"]
            results.append((score, wanted(arrays), placed))
        assert driver.calls["cuStreamSynchronize"] == waits  # nobody waited
        for score, expected, _ in results:
            assert score.__cuda_array_interface__["stream"] == int(stream)
            np.testing.assert_allclose(score.numpy(), expected, rtol=1e-5)


def test_the_same_place_on_the_device_is_replayed_too(session: TrtSession, driver: FakeDriver) -> None:
    arrays = feeds(2)
    with cuda.Stream(cuda.Context()) as stream:
        placed = on_device(arrays, stream)
        for _ in range(4):
            np.testing.assert_allclose(session.run(placed, stream=int(stream))["score"], wanted(arrays), rtol=1e-5)
    assert driver.calls["cuGraphLaunch"] == 2


def test_runs_on_several_streams_do_not_mix_even_when_nobody_waits(driver: FakeDriver, plan: Path) -> None:
    context = cuda.Context()
    streams = [cuda.Stream(context) for _ in range(3)]
    with TrtSession(plan, streams=2) as session:
        results = []
        for step in range(30):
            arrays, stream = feeds(1 + step % 3, seed=step), streams[step % 3]
            results.append((session.run(arrays, stream=stream, device=True)["score"], wanted(arrays)))
        for score, expected in results:
            np.testing.assert_allclose(score.numpy(), expected, rtol=1e-5)


def test_a_single_slot_serves_all_streams_in_order(driver: FakeDriver, plan: Path) -> None:
    context = cuda.Context()
    streams = [cuda.Stream(context) for _ in range(3)]
    with TrtSession(plan, streams=1, graphs=1) as session:
        results = []
        for step in range(30):
            arrays, stream = feeds(2, seed=step), streams[step % 3]
            placed = on_device(arrays, stream)
            results.append((session.run(placed, stream=stream, device=True)["score"], wanted(arrays), placed))
        for score, expected, _ in results:
            np.testing.assert_allclose(score.numpy(), expected, rtol=1e-5)


def test_a_graph_is_dropped_only_when_it_has_run(driver: FakeDriver, plan: Path) -> None:
    context = cuda.Context()
    with TrtSession(plan, streams=1, graphs=1) as session, cuda.Stream(context) as stream:
        placed = [on_device(feeds(2, seed), stream) for seed in range(4)]
        results = [session.run(placed[step // 4], stream=stream, device=True)["score"] for step in range(16)]
        for step, score in enumerate(results):
            np.testing.assert_allclose(score.numpy(), wanted(feeds(2, step // 4)), rtol=1e-5)


def test_threads_share_a_session(session: TrtSession) -> None:
    wrong: list[Any] = []

    def work(seed: int) -> None:
        for step in range(40):
            arrays = feeds(1 + (seed + step) % 8, seed=100 * seed + step)
            if not np.allclose(session.run(arrays)["score"], wanted(arrays), rtol=1e-5):
                wrong.append((seed, step))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert wrong == []


def test_ten_thousand_runs_leave_nothing_behind(driver: FakeDriver, plan: Path) -> None:
    batches = [feeds(n) for n in (1, 2, 3, 4, 5, 6, 7, 8)]
    with TrtSession(plan) as session:
        for step in range(500):
            session.run(batches[step % 8])
        settled = driver.alive()
        for step in range(10_000):
            session.run(batches[step % 8 if step % 3 else 0], device=step % 5 == 0)
        assert driver.alive() == settled
    assert driver.calls["cuGraphLaunch"] > 1000
    del session
    gc.collect()
    assert driver.alive() == NOTHING


def test_closing_releases_everything_and_later_runs_say_so(driver: FakeDriver, plan: Path) -> None:
    session = TrtSession(plan)
    score = session.run(feeds(2), device=True)["score"]
    session.close()
    session.close()
    assert driver.alive() == {**NOTHING, "device": 1, "primary": 1}  # the result is the caller's
    np.testing.assert_allclose(
        cuda.DeviceArray(score.pointer, score.shape, score.dtype, owner=score.owner).numpy(),
        wanted(feeds(2)),
        rtol=1e-5,
    )
    with pytest.raises(ValueError, match="the session is closed"):
        session.run(feeds(2))


def test_a_session_lives_in_the_callers_context(driver: FakeDriver, plan: Path) -> None:
    driver.contexts().append(gpu_fakes.PRIMARY)
    with TrtSession(plan) as session:
        driver.contexts().clear()
        results: list[np.ndarray] = []
        thread = threading.Thread(target=lambda: results.append(session.run(feeds(2))["score"]))
        thread.start()
        thread.join()
    np.testing.assert_allclose(results[0], wanted(feeds(2)), rtol=1e-5)
    assert (driver.primary, driver.contexts()) == (0, [])


def test_arrays_of_another_context_are_refused(driver: FakeDriver, plan: Path) -> None:
    with cuda.Stream(cuda.Context()) as stream:
        placed = on_device(feeds(2), stream)  # the fake's memory is all of the primary context
        driver.contexts().append(99)
        with TrtSession(plan) as session, pytest.raises(ValueError, match="another CUDA context than the session"):
            session.run(placed)
        driver.contexts().clear()


def test_an_engine_that_fails_says_what_tensorrt_said(driver: FakeDriver, tmp_path: Path) -> None:
    with TrtSession(write_plan(tmp_path / "p", broken=True)) as session:
        for _ in range(3):
            with pytest.raises(BackendError, match=r"tensorrt 11\.4\.0\.106 did not run: the engine is broken"):
                session.run(feeds(1))


def test_too_little_memory_is_an_error_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, plan: Path, tmp_path: Path
) -> None:
    driver = gpu_fakes.install(monkeypatch, FakeDriver(total=5000))
    with TrtSession(plan) as session, pytest.raises(BackendError, match="CUDA_ERROR_OUT_OF_MEMORY"):
        session.run(feeds(1))
    del session
    gc.collect()
    assert driver.alive() == NOTHING


def test_a_binding_is_enqueued_and_recorded_by_its_owner(session: TrtSession) -> None:
    arrays = feeds(2)
    context = cuda.Context()
    with cuda.Stream(context) as stream, context.current():
        placed = on_device(arrays, stream)
        binding = session.bind(placed)
        binding.enqueue(stream)
        cuda.synchronize(int(stream))
        score = binding.arrays["score"]
        np.testing.assert_allclose(score.numpy(), wanted(arrays), rtol=1e-5)
        with cuda.Graph(stream, lambda: binding.enqueue(stream)) as graph:
            session.run(feeds(3))  # leaves the binding alone
            graph.launch(int(stream))
            cuda.synchronize(int(stream))
        np.testing.assert_allclose(score.numpy(), wanted(arrays), rtol=1e-5)
        own = cuda.empty(context, (2,), np.float32)
        with_own = session.bind(placed, {"score": own})
        with_own.enqueue(stream)
        cuda.synchronize(int(stream))
        np.testing.assert_allclose(own.numpy(), wanted(arrays), rtol=1e-5)
        with pytest.raises(ValueError, match=r"output 'score' has shape \(3,\), wanted \(2,\)"):
            session.bind(placed, {"score": cuda.empty(context, (3,), np.float32)})
        assert session.bind(placed, {}).arrays["score"].shape == (
            2,
        )  # nobody asked for it, so it gets a place of its own
        with pytest.raises(ValueError, match=r"\['rgb', 'depth'\] lie at addresses that are no multiples of 256"):
            session.bind(on_device(arrays, stream, offset=8))
        binding.close()
        with_own.close()


def test_a_plan_that_cannot_be_used_is_refused(driver: FakeDriver, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"nowhere\.plan is missing; build it"):
        TrtSession(tmp_path / "nowhere.plan")
    (tmp_path / "other.plan").write_bytes(b"of another version")
    with pytest.raises(EngineError, match=r"cannot load other\.plan \(the magic tag does not match\); build it again"):
        TrtSession(tmp_path / "other.plan")
    with pytest.raises(EngineError, match="'rgb' is a BF16 that numpy lacks"):
        TrtSession(write_plan(tmp_path / "bf16.plan", type="BF16"))
    with pytest.raises(ValueError, match="got 0 streams"):
        TrtSession(tmp_path / "other.plan", streams=0)
    gc.collect()
    assert driver.alive() == NOTHING


def test_identity_is_what_a_plan_is_bound_to(driver: FakeDriver) -> None:
    assert identity() == {"tensorrt": "11.4.0.106", "gpu": "Imagined H200", "compute_capability": "9.0"}


def test_a_missing_or_old_tensorrt_is_told_apart(monkeypatch: pytest.MonkeyPatch, plan: Path) -> None:
    driver = gpu_fakes.install(monkeypatch, FakeDriver())
    monkeypatch.setitem(sys.modules, "tensorrt", gpu_fakes.fake_tensorrt(driver, "10.9.0.34"))
    with pytest.raises(BackendError, match=r"got TensorRT 10\.9\.0\.34, wanted 10\.12 or newer"):
        TrtSession(plan)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendError, match=r'pip install "dgiqa-rt\[tensorrt\]", or take --backend onnxruntime'):
        identity()


def layer(**sides: list[str]) -> dict[str, Any]:
    return {
        "Name": "layer",
        "LayerType": "Conv",
        **{side: [{"Name": "t", "Format/Datatype": word} for word in words] for side, words in sides.items()},
    }


def test_a_layer_counts_under_the_narrowest_type_it_touches(driver: FakeDriver, tmp_path: Path) -> None:
    layers = [
        layer(Inputs=["Half"], Outputs=["Half"]),
        layer(Inputs=["Row major linear FP16 format"], Outputs=["Float"]),
        layer(Inputs=["Int8 NC/32HW32"], Outputs=["Half"]),
        layer(Inputs=["Float"], Outputs=["Row major linear FP32"]),
        layer(Inputs=["BFloat16"], Outputs=["Float"]),
        layer(Inputs=["FP8"], Outputs=["Half"]),
        layer(Inputs=["Int64"], Outputs=["Bool"]),
        layer(),
    ]
    path = write_plan(tmp_path / "p", layers=layers)
    with cuda.Context().current():
        counts = layer_precisions(path)
    assert counts == Counter(fp16=2, int8=1, fp32=1, bf16=1, fp8=1, other=2)
    names = write_plan(tmp_path / "names", layers=["conv1", "conv2"])
    with cuda.Context().current(), pytest.raises(EngineError, match="without details of its layers"):
        layer_precisions(names)


def test_a_place_for_measured_kernels_is_checked_before_a_build(driver: FakeDriver, plan: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="is a folder, wanted a file for measured kernels"):
        build_plan(plan, tmp_path / "made.plan", shapes={}, timing_cache=tmp_path)


def test_progress_is_told_now_and_then_and_its_errors_stop_the_build() -> None:
    told: list[str] = []
    progress = Progress(told.append, interval=0)
    progress.start("building", 2)
    progress.start("timing", 10)
    assert progress.step("timing", 0)
    progress.finish("timing")
    assert progress.step("building", 1)
    assert told == ["building 0/2 > timing 1/10", "building 2/2"]
    rare = Progress(told.append, interval=60)
    rare.start("building", 2)
    assert rare.step("building", 0)
    assert len(told) == 2

    def interrupt(message: str) -> None:
        raise KeyboardInterrupt

    stopped = Progress(interrupt, interval=0)
    stopped.start("building", 2)
    assert not stopped.step("building", 0)
    assert isinstance(stopped.error, KeyboardInterrupt)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="signals of POSIX")
def test_a_signal_stops_a_build_at_its_next_step(
    driver: FakeDriver, plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = []

    def compiles(onnx: Path, plan: Path, steps: Progress, **options: Any) -> None:
        while steps.step("timing", 0):  # what TensorRT asks between two kernels
            time.sleep(0.01)
        ended.append(steps.error)

    class StoppedError(BaseException):
        pass

    def arrived(number: int, frame: object) -> None:
        raise StoppedError

    monkeypatch.setattr(room, "_compile", compiles)
    before = signal.signal(signal.SIGALRM, arrived)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(StoppedError):
            build_plan(plan, tmp_path / "made.plan", shapes={})
    finally:
        signal.signal(signal.SIGALRM, before)
    assert [type(error) for error in ended] == [StoppedError], "the build went on"


def test_the_log_keeps_the_last_lines() -> None:
    log = Log()
    assert log.text() == "it gave no reason"
    for line in range(20):
        log.add(f"line  {line}\n")
    assert log.text().startswith("line 12 | line 13")
