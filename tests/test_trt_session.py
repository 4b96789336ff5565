"""A plan runs from any thread and stream, on host and device arrays, replays graphs, and leaks nothing.

Against the driver and the engine of gpu_fakes: they do the work of streams late and mixed, and notice memory that is
gone.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import gpu_fakes
import numpy as np
import pytest
from gpu_fakes import TILE, FakeDriver, write_plan
from waiting import PATIENCE_S, until

from dgiqa.builder import plan as room
from dgiqa.builder.plan import build_plan, monitor_of
from dgiqa.errors import BackendError, EngineError
from dgiqa.runtime import cuda
from dgiqa.runtime import trt as room_of_plans
from dgiqa.runtime.trt import KEPT, TrtSession, identity, logger

NOTHING = dict.fromkeys(("device", "pinned", "streams", "graphs"), 0)
PRIMARY = gpu_fakes.PRIMARY


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    return gpu_fakes.install(monkeypatch, FakeDriver())


def opened(plan: Path, **options: Any) -> Any:
    return contextlib.closing(TrtSession(plan, **options))


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return write_plan(tmp_path / "quality.plan")


@pytest.fixture
def session(driver: FakeDriver, plan: Path) -> Iterator[TrtSession]:
    with opened(plan) as session:
        yield session


def feeds(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {name: generator.random((n, *TILE), dtype=np.float32) for name in ("rgb", "depth")}


def wanted(arrays: dict[str, np.ndarray]) -> np.ndarray:
    return arrays["rgb"].mean(axis=(1, 2, 3)) + 2 * arrays["depth"].mean(axis=(1, 2, 3))


def on_device(arrays: dict[str, np.ndarray], producer: cuda.Lane, offset: int = 0) -> dict[str, Any]:
    """The arrays of another library on the device, still being written by its stream."""
    placed = {}
    for name, array in arrays.items():
        pinned = gpu_fakes.pinned(producer, array)
        buffer = producer.empty((array.nbytes + offset,), np.uint8)
        with producer.current():
            producer.copy(buffer.pointer + offset, pinned.ctypes.data, array.nbytes)
        view = cuda.DeviceArray(buffer.pointer + offset, array.shape, array.dtype, producer.handle)
        placed[name] = SimpleNamespace(
            __cuda_array_interface__=view.__cuda_array_interface__, keep=(pinned, buffer), pointer=view.pointer
        )
    return placed


@pytest.fixture
def producer(driver: FakeDriver) -> cuda.Lane:
    """Another library's stream, with memory of its own."""
    return cuda.Lane(cuda.Context())


def outputs_for(n: int, lane: cuda.Lane) -> dict[str, cuda.DeviceArray]:
    return {"score": lane.empty((n,), np.float32)}


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
    with opened(write_plan(tmp_path / "fixed.plan", batch=(4, 4))) as session:
        np.testing.assert_allclose(session.run(feeds(4))["score"], wanted(feeds(4)), rtol=1e-5)
        with pytest.raises(ValueError, match=r"'rgb' has shape \[3, 3, 4, 4\], wanted \[4, 3, 4, 4\]"):
            session.run(feeds(3))


def test_a_plan_for_other_versions_brings_its_own_runtime(driver: FakeDriver, tmp_path: Path) -> None:
    with opened(write_plan(tmp_path / "p", version_compatible=True)) as session:
        np.testing.assert_allclose(session.run(feeds(2))["score"], wanted(feeds(2)), rtol=1e-5)


def test_shapes_run_in_the_first_profile_that_takes_them(driver: FakeDriver, tmp_path: Path) -> None:
    with opened(write_plan(tmp_path / "p", profiles=[(1, 2), (4, 8)])) as session:
        assert session.most_at_once == 8
        for n in (2, 8, 4, 1):
            np.testing.assert_allclose(session.run(feeds(n))["score"], wanted(feeds(n)), rtol=1e-5)
        between = r"plan takes 'rgb' \(1, .*\) to \(2, .*, or 'rgb' \(4, .*\) to \(8, .*build one for it"
        with pytest.raises(ValueError, match=between):
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
        ({"rgb": np.zeros((2, *TILE))}, "'rgb' is float64, wanted an array of float32"),
        (
            {"rgb": np.zeros((9, *TILE), np.float32)},
            r"'rgb': \(9, 3, 4, 4\), .*plan takes 'rgb' \(1, .* to \(8, .*build",
        ),
        ({"rgb": np.zeros((0, *TILE), np.float32)}, r"'rgb': \(0, 3, 4, 4\), .*; this plan takes"),
        ({"rgb": np.zeros((2, 3, 4), np.float32)}, r"'rgb' has shape \[2, 3, 4\], wanted \[None, 3, 4, 4\]"),
        ({"rgb": [[1.0]]}, "'rgb' is list, wanted an array of float32"),
    ],
)
def test_wrong_inputs_say_what_was_got_and_wanted(session: TrtSession, change: dict[str, Any], message: str) -> None:
    arrays = {name: array for name, array in {**feeds(2), **change}.items() if array is not None}
    with pytest.raises(ValueError, match=message):
        session.run(arrays)
    good = feeds(2)
    np.testing.assert_allclose(session.run(good)["score"], wanted(good), rtol=1e-5)  # it goes on


def test_a_graph_is_recorded_for_the_second_run_and_replayed(session: TrtSession, driver: FakeDriver) -> None:
    launched = []
    for seed in range(4):
        arrays = feeds(4, seed)
        np.testing.assert_allclose(session.run(arrays)["score"], wanted(arrays), rtol=1e-5)
        launched.append((driver.calls["cuStreamBeginCapture"], driver.calls["cuGraphLaunch"]))
    assert launched == [(0, 0), (1, 1), (1, 2), (1, 3)]


def test_a_network_that_cannot_be_recorded_runs_plainly(driver: FakeDriver, tmp_path: Path) -> None:
    """Loops, shapes that depend on data and streamed weights cannot: they ran once, and go on so."""
    with opened(write_plan(tmp_path / "p", uncapturable=True)) as session:
        for seed in range(5):
            arrays = feeds(2, seed)
            np.testing.assert_allclose(session.run(arrays)["score"], wanted(arrays), rtol=1e-5)
    assert (driver.calls["cuStreamBeginCapture"], driver.calls["cuGraphLaunch"]) == (1, 0)


def test_shapes_that_do_not_repeat_are_never_recorded_and_what_is_kept_is_bounded(
    driver: FakeDriver, plan: Path
) -> None:
    with opened(plan) as session:
        for n in range(1, 9):
            session.run(feeds(n))
        assert driver.calls["cuStreamBeginCapture"] == 0
        for n in (1, 2, 3, 4, 5, 1, 2, 3, 3):
            for seed in range(3):
                arrays = feeds(n, seed)
                np.testing.assert_allclose(session.run(arrays)["score"], wanted(arrays), rtol=1e-5)
            assert driver.alive()["graphs"] <= 2 * KEPT  # recorded, and instantiated
        assert driver.calls["cuGraphLaunch"] > 0
    with opened(plan, graphs=False) as session:
        before = driver.calls["cuStreamBeginCapture"]
        for _ in range(4):
            session.run(feeds(1))
        assert driver.calls["cuStreamBeginCapture"] == before


def test_all_shapes_of_a_stream_compute_in_one_memory_of_the_size_they_need(
    driver: FakeDriver, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room_of_plans, "STREAMS", 1)
    with opened(plan) as session:
        for n in (1, 2, 1, 4, 1, 2, 2, 4, 4, 8, 8, 1, 1):
            arrays = feeds(n, seed=n)
            np.testing.assert_allclose(session.run(arrays)["score"], wanted(arrays), rtol=1e-5)
            sizes = sorted(size for _, _, size in driver.blocks["cuMemAlloc"].values())
            assert sum(size >= gpu_fakes.SCRATCH for size in sizes) <= 2  # one that was too small goes with its stream
        driver.alive()
        scratch = [s for _, _, s in driver.blocks["cuMemAlloc"].values() if s >= gpu_fakes.SCRATCH]
        assert scratch == [8 * gpu_fakes.SCRATCH]


def test_graphs_and_plain_runs_take_turns_without_disturbing_each_other(session: TrtSession) -> None:
    for step in range(40):
        arrays = feeds((1, 4, 4, 2, 7)[step % 5], seed=step)
        np.testing.assert_allclose(session.run(arrays)["score"], wanted(arrays), rtol=1e-5)


def test_arrays_on_the_device_are_read_there_once_their_stream_is_done(
    session: TrtSession, driver: FakeDriver, producer: cuda.Lane
) -> None:
    arrays, lane = feeds(3), cuda.Lane(session.context)
    bound = session.bind(on_device(arrays, producer), None, lane)
    with lane.current():
        bound.run()
        np.testing.assert_allclose(lane.numpy(bound.arrays["score"]), wanted(arrays), rtol=1e-5)
    with pytest.raises(TypeError, match=r"got numpy\.ndarray, wanted an array on a CUDA device"):
        session.bind({**on_device(arrays, producer), "depth": arrays["depth"]}, None, lane)
    with pytest.raises(ValueError, match=r"got inputs \['rgb'\], wanted \['depth', 'rgb'\]"):
        session.bind({"rgb": on_device(arrays, producer)["rgb"]}, None, lane)


def test_outputs_go_where_they_are_wanted_and_nobody_waits(
    session: TrtSession, driver: FakeDriver, producer: cuda.Lane
) -> None:
    placed = [on_device(feeds(2, seed), producer) for seed in range(6)]
    into = [outputs_for(2, producer) for _ in placed]
    bound = [session.bind(arrays, outputs, producer) for arrays, outputs in zip(placed, into, strict=True)]
    with producer.current():
        for _ in range(2):  # the second round is recorded
            for each in bound:
                each.run()
        allocated, waits = driver.calls["cuMemAllocFromPoolAsync"], driver.calls["cuStreamSynchronize"]
        for each, outputs in zip(bound, into, strict=True):
            each.run()
            assert each.arrays["score"] is outputs["score"]
        assert driver.calls["cuMemAllocFromPoolAsync"] == allocated
        assert driver.calls["cuStreamSynchronize"] == waits
        for seed, outputs in enumerate(into):
            np.testing.assert_allclose(producer.numpy(outputs["score"]), wanted(feeds(2, seed)), rtol=1e-5)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"score": (3,)}, r"'score' is float32 \(3,\), wanted float32 \(2,\)"),
        ({"scores": (2,)}, r"got arrays for \['scores'\], wanted outputs of \('score',\)"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(
    session: TrtSession, producer: cuda.Lane, outputs: dict[str, Any], message: str
) -> None:
    given = {name: producer.empty(shape, np.float32) for name, shape in outputs.items()}
    with pytest.raises(ValueError, match=message):
        session.bind(on_device(feeds(2), producer), given, producer)


def test_runs_on_several_streams_do_not_mix_even_when_nobody_waits(driver: FakeDriver, plan: Path) -> None:
    context = cuda.Context()
    lanes = [cuda.Lane(context) for _ in range(3)]
    with opened(plan) as session:
        results = []
        for step in range(30):
            arrays, lane = feeds(1 + step % 3, seed=step), lanes[step % 3]
            bound = session.bind(on_device(arrays, lane), outputs_for(1 + step % 3, lane), lane)
            with context.current():
                bound.run()
            session.run(arrays)
            results.append((bound, wanted(arrays)))
        for i, (bound, expected) in enumerate(results):
            with context.current():
                np.testing.assert_allclose(lanes[i % 3].numpy(bound.arrays["score"]), expected, rtol=1e-5)


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
        thread.join(timeout=PATIENCE_S)
    assert wrong == []


def test_ten_thousand_runs_leave_nothing_behind(driver: FakeDriver, plan: Path, producer: cuda.Lane) -> None:
    batches = [feeds(n) for n in (1, 2, 3, 4)]
    producer.scratch(gpu_fakes.SCRATCH)
    with opened(plan) as session:
        for step in range(100):
            session.run(batches[step % 4])
        settled = driver.alive()
        for step in range(2000):
            session.run(batches[step % 4])
            session.run(batches[0])
            if step % 5 == 0:
                session.bind(on_device(batches[0], producer), None, producer)
        assert driver.alive() == settled
    assert driver.calls["cuGraphLaunch"] > 1000


def test_closing_releases_everything_and_later_runs_say_so(driver: FakeDriver, plan: Path) -> None:
    session = TrtSession(plan)
    for _ in range(3):
        session.run(feeds(2))
    session.close()
    session.close()
    gc.collect()
    assert driver.alive() == NOTHING
    with pytest.raises(ValueError, match="the session is closed"):
        session.run(feeds(2))


@pytest.mark.parametrize("how", ["close", "drop"])
def test_tensorrts_objects_go_in_the_context_they_were_made_in_and_the_engine_last(
    driver: FakeDriver, plan: Path, how: str
) -> None:
    """Destroyed in another context, or in none, they free memory that is not theirs."""
    driver.contexts().append(99)
    driver.home = 99
    session = TrtSession(plan)
    session.run(feeds(2))
    session.run(feeds(3))
    driver.contexts().clear()
    if how == "close":
        session.close()
    else:
        del session
    gc.collect()
    assert driver.destroyed == [("execution", 99), ("execution", 99), ("engine", 99)]
    assert driver.contexts() == []


def test_a_session_lives_in_the_callers_context(driver: FakeDriver, plan: Path) -> None:
    driver.contexts().append(99)
    with opened(plan) as session:
        driver.contexts().clear()
        results: list[np.ndarray] = []
        thread = threading.Thread(target=lambda: results.append(session.run(feeds(2))["score"]))
        thread.start()
        thread.join()
    np.testing.assert_allclose(results[0], wanted(feeds(2)), rtol=1e-5)
    assert driver.contexts() == []


def test_arrays_of_another_context_or_gpu_are_refused(driver: FakeDriver, plan: Path, producer: cuda.Lane) -> None:
    placed = on_device(feeds(2), producer)  # the fake's memory is all of the primary context
    driver.contexts().append(99)
    with opened(plan) as session:
        lane = cuda.Lane(session.context)
        with pytest.raises(ValueError, match="another CUDA context than the networks"):
            session.bind(placed, None, lane)
        driver.ordinal = 1
        with pytest.raises(ValueError, match="the array is on GPU 1, the networks on GPU 0"):
            session.bind(placed, None, lane)
        driver.ordinal = 0
    driver.contexts().clear()


def test_an_engine_that_fails_says_what_tensorrt_said(driver: FakeDriver, session: TrtSession, tmp_path: Path) -> None:
    """Also beside another, whose logger alone TensorRT tells anything."""
    with opened(write_plan(tmp_path / "p", broken=True)) as broken:
        for _ in range(3):
            with pytest.raises(BackendError, match=r"tensorrt 11\.4\.0\.106 did not run: the engine is broken"):
                broken.run(feeds(1))


def test_too_little_memory_is_an_error_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, plan: Path) -> None:
    driver = gpu_fakes.install(monkeypatch, FakeDriver(total=5000))
    with opened(plan) as session, pytest.raises(BackendError, match="CUDA_ERROR_OUT_OF_MEMORY"):
        session.run(feeds(2))
    del session
    gc.collect()
    assert driver.alive() == NOTHING


def test_arrays_are_bound_once_and_run_where_others_run(
    session: TrtSession, driver: FakeDriver, producer: cuda.Lane
) -> None:
    arrays = feeds(2)
    placed = on_device(arrays, producer)
    own = outputs_for(2, producer)
    bound, other = session.bind(placed, own, producer), session.bind(placed, None, producer)
    with producer.current():
        for _ in range(4):  # plain, then recorded, turn by turn, in the lane's one memory
            bound.run()
            other.run()
            np.testing.assert_allclose(producer.numpy(own["score"]), wanted(arrays), rtol=1e-5)
            np.testing.assert_allclose(producer.numpy(other.arrays["score"]), wanted(arrays), rtol=1e-5)
            session.run(feeds(3))  # leaves the bindings alone
        with pytest.raises(ValueError, match="'rgb' is at an address that is not a multiple of 256"):
            session.bind(on_device(arrays, producer, offset=8), None, producer)
    assert driver.alive()["graphs"] == 2 + 1  # the last of the session's own runs
    with producer.current():
        bound.run()
        other.run()
    del bound, other  # which wait for what runs, wherever they are dropped
    assert driver.destroyed == [("execution", PRIMARY)] * 3
    assert driver.alive()["graphs"] == 1
    late = session.bind(placed, None, producer)
    with producer.current():
        producer.close()
    del late  # after its lane
    assert driver.destroyed == [("execution", PRIMARY)] * 4


def test_a_binding_is_part_of_a_graph_of_ones_own(session: TrtSession, producer: cuda.Lane) -> None:
    arrays = feeds(2)
    bound = session.bind(on_device(arrays, producer), None, producer)
    with producer.current():
        for n in (2, 3, 4, 4, 4):  # a larger network beside it moves the memory they share
            producer.replay(session, bound.put)
            np.testing.assert_allclose(producer.numpy(bound.arrays["score"]), wanted(arrays), rtol=1e-5)
            session.bind(on_device(feeds(n), producer), None, producer).run()


def test_a_plan_that_cannot_be_used_is_refused(driver: FakeDriver, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"nowhere\.plan is missing; build it"):
        TrtSession(tmp_path / "nowhere.plan")
    (tmp_path / "other.plan").write_bytes(b"of another version")
    with pytest.raises(EngineError, match=r"cannot load other\.plan \(the magic tag does not match\); build it again"):
        TrtSession(tmp_path / "other.plan")
    with pytest.raises(EngineError, match="'rgb' is of a type that numpy lacks"):
        TrtSession(write_plan(tmp_path / "bf16.plan", type="BF16"))
    gc.collect()
    assert driver.alive() == NOTHING


def test_identity_is_what_a_plan_is_bound_to(driver: FakeDriver) -> None:
    assert identity() == {"version": "11.4.0.106", "device": "Imagined H200", "compute_capability": "9.0"}


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
    path = write_plan(tmp_path / "p", layers=layers)  # of dynamic shapes
    with opened(path) as session:
        counts = session.layer_precisions()
    assert counts == Counter(fp16=2, int8=1, fp32=1, bf16=1, fp8=1, other=2)


# As TensorRT's inspector describes layers of an engine with a dynamic batch, where it is not told the shapes, and some
# layers even where it is: field for field what engines of others show.
HIDDEN = {
    "Name": "t",
    "Location": "Device",
    "Dimensions": [-1, 64, 56, 56],
    "Format/Datatype": "N/A due to dynamic shapes",
}
DYNAMIC = [
    {
        "Name": "node_Conv_292 + node_relu",
        "LayerType": "CaskConvolution",
        "Inputs": [HIDDEN],
        "Outputs": [HIDDEN],
        "ParameterType": "Convolution",
        "Weights": {"Type": "Half", "Count": 9408},
        "Bias": {"Type": "Half", "Count": 64},
        "TacticName": "sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc_nhwc_tilesize128x64x64",
    },
    {
        "Name": "node_Conv_301",
        "LayerType": "CaskGemmConvolution",
        "Inputs": [HIDDEN],
        "Outputs": [HIDDEN],
        "TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs_vect_c_32",
    },
    {
        "Name": "Reformatting CopyNode for Input Tensor 0 to node_Conv_301",
        "LayerType": "Reformat",
        "Inputs": [HIDDEN],
        "Outputs": [HIDDEN],
        "ParameterType": "Reformat",
        "Origin": "REFORMAT",
        "TacticValue": "0x00000000000003e8",
    },
]


def test_layers_are_read_from_weights_and_kernels_where_tensors_hide_their_types(
    driver: FakeDriver, tmp_path: Path
) -> None:
    with opened(write_plan(tmp_path / "p", layers=DYNAMIC)) as session:
        assert session.layer_precisions() == Counter(fp16=1, int8=1, unknown=1)
        assert driver.destroyed == [("execution", PRIMARY)]


def test_a_place_for_measured_kernels_is_checked_before_a_build(driver: FakeDriver, plan: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="is a folder, wanted a file for measured kernels"):
        build_plan(plan, tmp_path / "made.plan", shapes=[{}], timing_cache=tmp_path)


def test_progress_is_told_now_and_then_and_its_errors_stop_the_build(driver: FakeDriver) -> None:
    told: list[str] = []
    progress = monitor_of(told.append, interval=0)
    progress.phase_start("building", "", 2)
    progress.phase_start("timing", "building", 10)
    assert progress.step_complete("timing", 0)
    progress.phase_finish("timing")
    assert progress.step_complete("building", 1)
    assert told == ["timing 1/10", "building 2/2"]
    rare = monitor_of(told.append, interval=60)
    rare.phase_start("building", "", 2)
    assert rare.step_complete("building", 0)
    assert len(told) == 2

    def interrupt(message: str) -> None:
        raise KeyboardInterrupt

    stopped = monitor_of(interrupt, interval=0)
    stopped.phase_start("building", "", 2)
    assert not stopped.step_complete("building", 0)
    assert isinstance(stopped.error, KeyboardInterrupt)


def test_what_whoever_is_told_raises_ends_the_build_and_is_raised(
    driver: FakeDriver, plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder, told = mock.MagicMock(), mock.Mock(side_effect=[None, None, BrokenPipeError("nobody listens")])
    builder.create_network.return_value.configure_mock(num_inputs=0, num_layers=7)

    def compiles(network: Any, config: Any) -> None:
        config.progress_monitor.told -= 60  # seconds ago
        assert not config.progress_monitor.step_complete("timing", 0)

    builder.build_serialized_network = compiles
    flags = SimpleNamespace(STRONGLY_TYPED=1)
    made = {"Builder": lambda log: builder, "NetworkDefinitionCreationFlag": flags}
    for name in ("OnnxParser", "BuilderFlag", "HardwareCompatibilityLevel", "MemoryPoolType"):
        made[name] = mock.MagicMock()
    for name, value in made.items():
        monkeypatch.setattr(sys.modules["tensorrt"], name, value, raising=False)
    with pytest.raises(BrokenPipeError, match="nobody listens"):
        build_plan(plan, tmp_path / "made.plan", shapes=[{}], progress=told)
    assert [call.args[0] for call in told.call_args_list] == [
        "reading quality.plan",
        "compiling 7 layers",
        "timing 1/?",
    ]
    assert not (tmp_path / "made.plan").exists()


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="signals of POSIX")
def test_a_signal_stops_a_build_at_its_next_step(
    driver: FakeDriver, plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = []

    def builds(log: Any) -> None:  # in a thread of its own
        os.kill(os.getpid(), signal.SIGALRM)
        while monitor.step_complete("timing", 0):  # what TensorRT asks between two kernels
            time.sleep(0.01)
        ended.append(monitor.error)
        raise EngineError("nothing was compiled")

    class StoppedError(BaseException):
        pass

    def arrived(number: int, frame: object) -> None:
        raise StoppedError

    monitor = monitor_of(lambda message: None)
    monkeypatch.setattr(room, "monitor_of", lambda progress: monitor)
    monkeypatch.setattr(sys.modules["tensorrt"], "Builder", builds, raising=False)
    before = signal.signal(signal.SIGALRM, arrived)
    try:
        with pytest.raises(StoppedError):
            build_plan(plan, tmp_path / "made.plan", shapes=[{}])
    finally:
        signal.signal(signal.SIGALRM, before)
    until(lambda: ended)
    assert [type(error) for error in ended] == [StoppedError], "the build went on"


def test_the_log_keeps_the_last_lines(driver: FakeDriver) -> None:
    log = logger()
    assert log.text() == "it gave no reason"
    log.log("INFO", "is left out")
    for line in range(20):
        log.log("WARNING", f"line  {line}\n")
    assert log.text().startswith("line 12 | line 13")
