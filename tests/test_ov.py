"""OpenVINO runs the same files to the same numbers, in the precision asked for, from any thread, and tells nobody."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from waiting import PATIENCE_S

from dgiqa import spec
from dgiqa.bundle import Bundle, load_bundle
from dgiqa.errors import BackendError, BundleError
from dgiqa.runtime.ort import OrtSession
from dgiqa.runtime.session import open_session
from dgiqa.scorer import Scorer
from dgiqa.store import sha256_of, user_cache

pytest.importorskip("openvino")
from dgiqa.runtime import ov
from dgiqa.runtime.ov import OvSession, cpu_precisions


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def small() -> Bundle:
    return load_bundle("small")


def feeds(count: int, side: int = spec.TILE) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(count)
    return {name: rng.standard_normal((count, 3, side, side)).astype(np.float32) for name in ("rgb", "depth")}


@pytest.fixture(autouse=True)
def nothing_filled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every smaller batch gets the network for any shape at once, unless a test is about filling."""
    if "filled" not in request.node.name:
        monkeypatch.setattr(ov, "_FILLED", 0)


def test_a_few_last_batches_are_filled_up_and_compile_nothing(tiny_bundle: Bundle) -> None:
    session, reference = OvSession(tiny_bundle.file("quality.onnx")), OrtSession(tiny_bundle.file("quality.onnx"))
    generator = np.random.default_rng(0)
    for count in (8, 8, 4, 1, 8, 4):
        rgb, depth = generator.random((2, count, 3, 64, 64), np.float32)
        got, want = (s.run({"rgb": rgb, "depth": depth})["score"] for s in (session, reference))
        assert got.shape == (count,)
        np.testing.assert_allclose(got, want, atol=1e-5)
        assert [shapes and shapes[0][0] for shapes in session._networks] == [8]
    for _ in range(ov._FILLED):
        session.run({"rgb": rgb, "depth": depth})
    assert None in session._networks, "batches that keep coming get the network for any shape"


def test_fp32_gives_the_numbers_of_onnx_runtime(small: Bundle) -> None:
    sessions = [kind(small.file(spec.QUALITY_FILE), threads=1) for kind in (OvSession, OrtSession)]
    assert sessions[0].backend.startswith("openvino-cpu 20")
    assert (sessions[0].inputs, sessions[0].outputs) == (sessions[1].inputs, sessions[1].outputs)
    for count in (1, 3):
        ours, reference = (session.run(feeds(count))[spec.QUALITY_OUTPUT] for session in sessions)
        assert ours.shape == (count,)
        np.testing.assert_allclose(ours, reference, atol=2e-6)


def test_the_precision_asked_for_is_what_is_compiled(small: Bundle) -> None:
    for precision in ("fp32", "bf16"):
        if precision in cpu_precisions():
            session = OvSession(small.file(spec.QUALITY_FILE), precision=precision, threads=1, cache=False)
            assert set(session.layer_precisions()) == {precision}
            assert session.layer_precisions().total() > 50


def test_a_precision_that_was_not_granted_is_an_error(small: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ov._HINTS, "fp32", "f16")  # is asked for, and something else is set: any processor has f32
    monkeypatch.setattr(ov, "_settings", lambda *arguments: {"INFERENCE_PRECISION_HINT": "f32"})
    with pytest.raises(BackendError, match="asked openvino for f16, got f32"):
        OvSession(small.file(spec.QUALITY_FILE)).run(feeds(1))


def test_bf16_on_a_processor_without_it_is_refused(small: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ov, "cpu_precisions", lambda: ["fp32", "fp16", "int8"])
    with pytest.raises(BackendError, match="no bf16 instructions; choose --precision fp32 or int8"):
        OvSession(small.file(spec.DEPTH_FILE), precision="bf16")


FIRST_RUNS = """
import sys, threading
import numpy as np
from dgiqa.runtime.ov import OvSession
session, start = OvSession(sys.argv[1], threads=1, streams=4), threading.Barrier(8)
def first():
    start.wait()
    session.run({"image": np.zeros((1, 3, 64, 64), np.float32)})
threads = [threading.Thread(target=first, daemon=True) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


def test_the_first_runs_may_come_from_many_threads(small: Bundle) -> None:
    """OpenVINO's Python part deadlocks when two threads ask it for a type for the first time in a process."""
    for _ in range(3):
        subprocess.run([sys.executable, "-c", FIRST_RUNS, small.file(spec.DEPTH_FILE)], check=True, timeout=PATIENCE_S)


def test_threads_may_run_it_at_once(tiny_bundle: Bundle) -> None:
    session = OvSession(tiny_bundle.file(spec.QUALITY_FILE), threads=2, streams=2)
    cases = [feeds(1 + i % 3, 64) for i in range(24)]
    expected = [OrtSession(tiny_bundle.file(spec.QUALITY_FILE)).run(case)["score"] for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for got, wanted in zip(pool.map(session.run, cases), expected, strict=True):
            np.testing.assert_allclose(got["score"], wanted, atol=1e-6)


def test_many_shapes_from_many_threads_leave_a_request_per_thread_at_most(tiny_bundle: Bundle) -> None:
    session = OvSession(tiny_bundle.file(spec.DEPTH_FILE), threads=1, cache=False)
    images = [np.full((1, 3, 64, 32 * i), i, np.float32) for i in range(2, 9)]
    wanted = [OrtSession(tiny_bundle.file(spec.DEPTH_FILE)).run({"image": image})["depth"] for image in images]

    def check(number: int) -> None:
        got = session.run({"image": images[number % len(images)]})["depth"]
        np.testing.assert_allclose(got, wanted[number % len(images)], rtol=1e-5, atol=1e-4)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(check, range(700)))
    assert len(session._networks) <= 1 + ov._FIXED
    assert all(1 <= len(network.idle) <= 8 for network in session._networks.values())


def test_a_result_is_the_callers_own(tiny_bundle: Bundle) -> None:
    session = OvSession(tiny_bundle.file(spec.QUALITY_FILE), threads=1)
    first = session.run(feeds(1, 64))["score"]
    kept = first.copy()
    session.run({name: -array for name, array in feeds(1, 64).items()})
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rgb": np.zeros((1, 3, 64, 64), np.float32)}, r"got inputs \['rgb'\], wanted \['depth', 'rgb'\]"),
        (feeds(1, 64) | {"rgb": np.zeros((1, 3, 64, 64))}, "'rgb' is float64, wanted an array of float32"),
        (feeds(2, 64) | {"rgb": np.zeros((1, 3, 64, 64), np.float32)}, r"different sizes, \{'rgb': 1, 'depth': 2\}"),
        (feeds(1, 64) | {"rgb": np.zeros((1, 4, 64, 64), np.float32)}, r"'rgb' has shape \[1, 4, 64, 64\], wanted"),
    ],
)
def test_wrong_inputs_say_what_was_got_and_wanted(tiny_bundle: Bundle, wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OvSession(tiny_bundle.file(spec.QUALITY_FILE), threads=1).run(wrong)


def test_an_engine_failure_names_the_shapes(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    session = OvSession(tiny_bundle.file(spec.QUALITY_FILE), threads=1)

    class Failing:
        def infer(self, feeds: object, share_inputs: bool) -> None:
            raise RuntimeError("Exception from src/a.cpp:1:\nout of memory\n\n")

    session.run(feeds(2, 64))
    session._networks[((2, 3, 64, 64),) * 2].idle.append(Failing())
    with pytest.raises(
        BackendError, match=r"openvino-cpu .* failed on inputs of shape .*\(2, 3, 64, 64\).*: out of mem"
    ):
        session.run(feeds(2, 64))


def test_what_is_no_model_or_senseless_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"not a model")
    with pytest.raises(BundleError, match=r"cannot read .*m\.onnx as a model"):
        OvSession(tmp_path / "m.onnx")
    with pytest.raises(BundleError, match=r"nowhere\.onnx is missing"):
        OvSession(tmp_path / "nowhere.onnx")
    with pytest.raises(ValueError, match="threads and streams must be at least 1, got 1 and 0"):
        OvSession(tmp_path / "m.onnx", threads=1, streams=0)


def test_what_was_compiled_is_found_again_by_contents(tiny_bundle: Bundle, small: Bundle, tmp_path: Path) -> None:
    """Another model under the same path, of the same time, must not be taken for the first."""
    path = tmp_path / "m.onnx"
    path.write_bytes(tiny_bundle.file(spec.QUALITY_FILE).read_bytes())
    before = path.stat()
    assert OvSession(path, threads=1).run(feeds(1, 64))["score"].shape == (1,)
    assert not list((user_cache() / "openvino").rglob("*.blob"))  # a network of one shape is not kept
    assert not from_cache(path)
    assert len(list((user_cache() / "openvino").rglob("*.blob"))) == 1
    assert from_cache(path)
    path.write_bytes(small.file(spec.QUALITY_FILE).read_bytes())
    import os

    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    session = OvSession(path, threads=1)
    assert [session.run(feeds(count))["score"].shape for count in (1, 2)] == [(1,), (2,)]


def from_cache(path: Path) -> bool:
    """Whether the network for any shape was there."""
    session = OvSession(path, threads=1)
    for count in (1, 2):
        session.run(feeds(count, 64))
    return bool(session._networks[None].compiled.get_property("LOADED_FROM_CACHE"))


@pytest.mark.parametrize("damage", ["a page of zeros", "cut short", "no hash", "another hash"])
def test_what_was_compiled_is_believed_only_with_the_hash_it_was_written_with(tiny_bundle: Bundle, damage: str) -> None:
    path = tiny_bundle.file(spec.QUALITY_FILE)
    assert not from_cache(path)
    (blob,) = (user_cache() / "openvino").rglob("*.blob")
    beside = blob.with_suffix(".sha256")
    assert beside.read_text() == sha256_of(blob)
    assert from_cache(path)
    whole = blob.read_bytes()
    if damage == "a page of zeros":
        blob.write_bytes(whole[:-4096] + bytes(4096))
    elif damage == "cut short":
        blob.write_bytes(whole[:-100])
    elif damage == "no hash":
        beside.unlink()
    else:
        beside.write_text("0" * 64)
    assert not from_cache(path)  # it was compiled again
    (blob,) = (user_cache() / "openvino").rglob("*.blob")
    assert beside.read_text() == sha256_of(blob)
    assert from_cache(path)


def test_a_cache_whose_lock_cannot_be_had_is_done_without(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(ov, "locked", refused)
    assert not from_cache(tiny_bundle.file(spec.QUALITY_FILE))
    assert not list((user_cache() / "openvino").rglob("*.blob"))


def test_a_file_that_is_replaced_does_not_change_a_session(tiny_bundle: Bundle, small: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(small.file(spec.QUALITY_FILE).read_bytes())
    session = OvSession(path, threads=1)
    path.write_bytes(tiny_bundle.file(spec.QUALITY_FILE).read_bytes())
    wanted = OvSession(small.file(spec.QUALITY_FILE), threads=1)
    for count in (1, 2):
        got = [made.run(feeds(count))[spec.QUALITY_OUTPUT] for made in (session, wanted)]
        np.testing.assert_allclose(got[0], got[1], atol=2e-6)


def test_the_first_shapes_and_those_that_come_often_get_networks_of_their_own(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ov, "_PAYS_AFTER", 3)
    path = tiny_bundle.file(spec.QUALITY_FILE)
    session, reference = OvSession(path, threads=1), OrtSession(path)

    def networks_after(*counts: int) -> set[int | None]:
        for count in counts:
            got, wanted = (made.run(feeds(count, 64))["score"] for made in (session, reference))
            np.testing.assert_allclose(got, wanted, atol=1e-6)
        return {shapes and shapes[0][0] for shapes in session._networks}

    assert networks_after(2, 2, 2, 2, 2) == {2}
    assert networks_after(1, 3, 1, 1) == {2, None}
    assert networks_after(1) == {2, None, 1}
    assert networks_after(3, 3, 3, 3, 4) == {2, None, 1}  # no more than two, for their memory
    assert all(network.idle for network in session._networks.values())


def test_int8_pictures_of_every_size_get_a_network_of_their_own(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO's int8 network for any size gives wrong depth."""
    monkeypatch.setattr(ov, "_SIZES", 2)
    path = tiny_bundle.file(spec.DEPTH_FILE)
    session, reference = OvSession(path, precision="int8", threads=1), OrtSession(path)
    rng = np.random.default_rng(0)
    for width in (64, 96, 64, 128):
        image = {"image": rng.standard_normal((1, 3, 64, width)).astype(np.float32)}
        np.testing.assert_allclose(session.run(image)["depth"], reference.run(image)["depth"], rtol=1e-4, atol=1e-5)
    assert [shapes and shapes[0][3] for shapes in session._networks] == [64, 128]  # 96 was not used for longest


def test_bf16_pictures_of_every_size_get_a_network_of_their_own() -> None:
    """OpenVINO's bf16 network for any size ends the process with a large transformer."""
    if "bf16" not in ov.cpu_precisions():
        pytest.skip("this processor has no bf16 instructions")
    session = OvSession(load_bundle("small").file("depth.onnx"), precision="bf16", threads=1)
    for width in (256, 320):
        session.run({"image": np.zeros((1, 3, 256, width), np.float32)})
    assert [shapes and shapes[0][3] for shapes in session._networks] == [256, 320]


@pytest.mark.parametrize("always", [False, True], ids=["cached", "always"])
def test_a_network_for_any_shape_that_strays_from_the_first_is_not_believed(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, always: bool
) -> None:
    compiled = OvSession._compiled

    def damaged(session, shapes, folder=None):
        network = compiled(session, shapes, folder)
        if folder or (always and shapes is None):
            network.infer = lambda arrays: [np.full(len(arrays[0]), 0.378, np.float32)]
        return network

    monkeypatch.setattr(OvSession, "_compiled", damaged)
    path = tiny_bundle.file(spec.QUALITY_FILE)
    session, reference = OvSession(path, threads=1), OrtSession(path)
    session.run(feeds(1, 64))
    if always:
        with pytest.raises(BackendError, match=r"gives other numbers .* when it takes any shape"):
            session.run(feeds(2, 64))
    else:
        got, wanted = (made.run(feeds(2, 64))["score"] for made in (session, reference))
        np.testing.assert_allclose(got, wanted, atol=1e-6)
        assert not list((user_cache() / "openvino").rglob("*.blob"))


def test_shapes_are_counted_only_while_a_network_of_their_own_may_still_come(tiny_bundle: Bundle) -> None:
    session = OvSession(tiny_bundle.file(spec.DEPTH_FILE), threads=1, cache=False)
    often = [width for width in (64, 96, 128) for _ in range(ov._PAYS_AFTER + 1)]
    for width in (*often, *range(200, 240)):
        session.run({"image": np.zeros((1, 3, 64, width), np.float32)})
    assert len(session._networks) == 1 + ov._FIXED
    assert len(session._runs) == 2


def test_a_comparison_that_cannot_run_is_the_sessions_error(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = OvSession(tiny_bundle.file(spec.QUALITY_FILE), threads=1, cache=False)
    session.run(feeds(2, 64))

    class Failing:
        def infer(self, feeds: object, share_inputs: bool) -> None:
            raise RuntimeError("Exception from src/a.cpp:1:\nout of memory\n\n")

    session._networks[((2, 3, 64, 64),) * 2].idle.append(Failing())
    with pytest.raises(BackendError, match=r"failed on inputs of shape .*\(2, 3, 64, 64\).*: out of memory"):
        session.run(feeds(3, 64))


def test_a_cache_that_others_could_write_to_is_not_used(tiny_bundle: Bundle, tmp_path: Path) -> None:
    path = tiny_bundle.file(spec.QUALITY_FILE)
    assert not from_cache(path)
    (folder,) = (user_cache() / "openvino").iterdir()
    folder.chmod(0o777)
    assert not from_cache(path)


SIGNAL_AFTER_A_SESSION = """
import os, signal, sys, threading
import numpy as np
from dgiqa.runtime.ov import OvSession
held = [OvSession(sys.argv[1], threads=1)]
held[0].run({"image": np.zeros((1, 3, 64, 64), np.float32)})
thread = threading.Thread(target=held.clear)
thread.start()
thread.join()
signal.signal(signal.SIGTERM, lambda *_: print("heard"))
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_signal_is_heard_after_another_thread_let_a_session_go(small: Bundle) -> None:
    command = [sys.executable, "-c", SIGNAL_AFTER_A_SESSION, small.file(spec.DEPTH_FILE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr


def test_open_session_passes_the_precision_on(small: Bundle) -> None:
    if "bf16" not in cpu_precisions():
        pytest.skip("this processor has no bf16 instructions")
    session = open_session(small.file(spec.QUALITY_FILE), "auto", precision="bf16", threads=1)
    assert isinstance(session, OvSession)
    assert set(session.layer_precisions()) == {"bf16"}


def test_a_scorer_on_openvino_scores_alike_and_says_so(tiny_bundle: Bundle, photos: dict[str, np.ndarray]) -> None:
    scores = [Scorer(tiny_bundle, backend=backend).score(photos["coffee"]) for backend in ("openvino", "onnxruntime")]
    assert scores[0].backend.startswith("openvino-cpu ")
    assert scores[0].backend.endswith(" fp32")
    assert scores[0].value == pytest.approx(scores[1].value, abs=1e-5)


def test_importing_it_tells_its_makers_nothing() -> None:
    """Its package sends an event when it is imported, unless its telemetry is not there."""
    code = (
        "import sys; from dgiqa.runtime.ov import _import_openvino; ov = _import_openvino()\n"
        "print(any(name.startswith('openvino_telemetry.') for name in sys.modules), ov.Core().available_devices)\n"
        "import openvino_telemetry"  # and others can still have it
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False ['CPU']\n"
