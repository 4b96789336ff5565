"""A build gives the precision that was asked for, proved, or nothing at all."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from command import run_here
from typer.testing import CliRunner
from waiting import PATIENCE_S

from dgiqa import forward, machine, preprocess, spec
from dgiqa.builder import quantize
from dgiqa.builder.build import BATCH, SLOW_INT8, build, check_buckets, depth_buckets
from dgiqa.builder.plan import PlanOptions
from dgiqa.bundle import Bundle, load_bundle, load_golden
from dgiqa.cli import app
from dgiqa.errors import BackendError, EngineError, ParityError
from dgiqa.image import decode
from dgiqa.parity import BUDGETS
from dgiqa.runtime import backends as room_of_names
from dgiqa.runtime import engines, trt
from dgiqa.runtime.backends import PLAIN_INT8, backends, choose
from dgiqa.scorer import Scorer

pytest.importorskip("onnx")
CPU = ("onnxruntime", "openvino")
ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a budget that the tiny bundle's three layers can meet in int8."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(BUDGETS, "int8", 5e-2)


def need(backend: str) -> None:
    if backend not in backends():
        pytest.skip(f"{backend} is not installed")


@pytest.mark.parametrize("backend", CPU)
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_built_engine_is_of_its_precision_within_budget_and_scores(
    tiny_bundle: Bundle, photos: dict[str, Any], backend: str, precision: str
) -> None:
    need(backend)
    lines: list[str] = []
    made = build(tiny_bundle, backend=backend, precision=precision, progress=lines.append)
    proof = made.certificate
    assert proof["passed"]
    assert 0 < proof["max_difference"] <= BUDGETS[precision] == proof["tolerance"]
    assert proof["share"] == proof["max_difference"] / proof["tolerance"]
    assert proof["images"] == 4
    assert all(counts.get(precision) for counts in proof["types"].values())
    assert proof["types"].keys() == set(engines.NETWORKS)
    assert proof["backend"].endswith(precision)
    assert lines[-1] == "scoring the golden images"
    json.loads((made.path / engines.RECORD).read_text())
    scores = [Scorer(tiny_bundle, backend=backend, precision=p).score(photos["coffee"]) for p in ("fp32", precision)]
    assert scores[1].backend.endswith(f" {precision}")
    assert scores[0].value != scores[1].value
    assert scores[0].value == pytest.approx(scores[1].value, abs=BUDGETS[precision])


@pytest.mark.slow
def test_the_default_bundle_builds_in_half_precision_at_half_the_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For every engine on CPUs, of one search: it does not depend on the engine."""
    search, kept = quantize.quantize_bundle, tmp_path / "kept"

    def once(bundle: Bundle, precision: str, out: Path, **options: Any) -> quantize.Quantized:
        if not made:
            made.append(search(bundle, precision, kept, **options))
        shutil.copytree(kept, out, dirs_exist_ok=True)
        return quantize.Quantized({name: out / path.name for name, path in made[0].files.items()}, made[0].report)

    made = list[quantize.Quantized]()
    monkeypatch.setattr(quantize, "quantize_bundle", once)
    for backend in (name for name in CPU if name in backends()):
        engine = build(backend=backend)
        assert engine.certificate["max_difference"] <= BUDGETS["fp16"]
        assert engine.certificate["share_of_fp32_bytes"] <= 0.51
        assert engine.bytes == engine.certificate["bytes"]
    assert len(made) == 1


def test_openvino_computes_int8_in_int8(tiny_bundle: Bundle) -> None:
    need("openvino")
    made = build(tiny_bundle, backend="openvino", precision="int8")
    assert all(counts["int8"] for counts in made.certificate["layers"].values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_where_the_bundles_own_files_run_only_the_proof_is_kept(
    tiny_bundle: Bundle, without_onnx: None, precision: str
) -> None:
    need("openvino")
    from dgiqa.runtime.ov import cpu_precisions

    if precision not in cpu_precisions():
        pytest.skip(f"this processor has no {precision}")
    made = build(tiny_bundle, backend="openvino", precision=precision)
    assert made.files == {}
    assert [path.name for path in made.path.iterdir()] == [engines.RECORD]
    assert all(set(counts) == {precision} for counts in made.certificate["layers"].values())
    assert Scorer(tiny_bundle, backend="openvino", precision=precision).backend.endswith(precision)


def test_a_second_build_takes_what_is_there_and_force_builds_again(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    first = build(tiny_bundle, backend="onnxruntime")
    assert build(tiny_bundle, backend="onnxruntime", progress=lines.append).created == first.created
    assert lines == [f"{first.name} is there already; --force builds it again"]
    monkeypatch.setattr(
        sys.modules[build.__module__], "locked", lambda path: pytest.fail("the cache may be one that can only be read")
    )
    assert build(tiny_bundle, backend="onnxruntime").created == first.created
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(first.path.parent.parent.parent))
    assert build(tiny_bundle, backend="onnxruntime", force=True).created > first.created


def test_a_damaged_engine_is_an_error_and_built_again_when_asked(tiny_bundle: Bundle) -> None:
    first = build(tiny_bundle, backend="onnxruntime")
    for damage in (
        lambda: first.files[spec.DEPTH_FILE].write_bytes(first.files[spec.DEPTH_FILE].read_bytes()[:100]),
        lambda: (first.path / engines.RECORD).write_text('{"format": 2, "key": []}'),
    ):
        damage()
        with pytest.raises(EngineError, match=r"was altered; build it again: .* --force|no fp16 engine"):
            Scorer(tiny_bundle, backend="onnxruntime", precision="fp16")
        Scorer(tiny_bundle, backend="onnxruntime", precision="fp16", build=True).close()
        assert build(tiny_bundle, backend="onnxruntime").created > first.created
        assert engines.damaged() == {}


def test_the_scorer_builds_what_is_missing_only_when_asked(tiny_bundle: Bundle) -> None:
    with pytest.raises(EngineError, match="no fp16 engine"):
        Scorer(tiny_bundle, backend="onnxruntime", precision="fp16")
    assert engines.list_engines() == []
    assert Scorer(tiny_bundle, backend="onnxruntime", precision="fp16", build=True).precision == "fp16"
    assert Scorer(tiny_bundle, backend="onnxruntime", precision="fp16").precision == "fp16"
    assert len(engines.list_engines()) == 1


def test_other_calibration_images_are_another_engine(tiny_bundle: Bundle, tmp_path: Path) -> None:
    images = sorted((tiny_bundle.path / "golden").iterdir())
    made = [
        build(tiny_bundle, backend="onnxruntime", precision="int8", calibration=some) for some in (None, images[:2])
    ]
    assert made[0].path != made[1].path
    assert engines.find(tiny_bundle, "onnxruntime", "int8").path == made[1].path


def fake_quantiser(monkeypatch: pytest.MonkeyPatch, make: Callable[[Bundle, Path], None]) -> None:
    def quantise(bundle: Bundle, precision: str, out: Path, **options: Any) -> quantize.Quantized:
        make(bundle, out)
        return quantize.Quantized({name: out / name for name in engines.NETWORKS}, {})

    monkeypatch.setattr(quantize, "quantize_bundle", quantise)


def nothing_left() -> bool:
    folder = engines.engines_folder()
    return not folder.exists() or not [path for path in folder.iterdir() if path.is_dir()]


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_fp32_files_that_claim_another_precision_are_refused(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    fake_quantiser(monkeypatch, lambda b, out: [shutil.copy(b.file(n), out) for n in engines.NETWORKS])
    with pytest.raises(ParityError, match=rf"was to compute in {precision}, but has 1 in fp32.*nothing was kept"):
        build(tiny_bundle, backend="onnxruntime", precision=precision)
    assert nothing_left()


@pytest.mark.parametrize("backend", CPU)
def test_an_engine_over_budget_leaves_nothing(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    need(backend)
    real = quantize.quantize_bundle

    def sabotage(bundle: Bundle, out: Path) -> None:
        import onnx

        real(bundle, "fp16", out)
        model = onnx.load(out / spec.QUALITY_FILE)
        weight = max(model.graph.initializer, key=lambda w: len(w.raw_data) or len(w.int32_data))
        array = onnx.numpy_helper.to_array(weight).copy()
        array.reshape(-1)[0] += 3
        weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
        onnx.save(model, out / spec.QUALITY_FILE)

    fake_quantiser(monkeypatch, sabotage)
    with pytest.raises(
        ParityError, match=r"scores differ by up to .* allowed is 0\.002; choose another .*; nothing was kept"
    ):
        build(tiny_bundle, backend=backend)
    assert nothing_left()


def test_an_engine_that_computes_in_something_else_leaves_nothing(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("openvino")
    from dgiqa.runtime import ov

    monkeypatch.setitem(ov._HINTS, "bf16", "f32")  # as if the engine had ignored the wish
    with pytest.raises(ParityError, match=r"asked for bf16, and the engine of .* has \{'fp32': 1\}; nothing was kept"):
        build(tiny_bundle, backend="openvino", precision="bf16")
    assert nothing_left()


def test_depth_shapes_are_those_of_common_photographs() -> None:
    wanted = [(518, 518), (518, 686), (518, 924), (686, 518), (924, 518)]
    assert depth_buckets(spec.Preprocess()) == wanted
    assert depth_buckets(load_bundle("small").preprocess)[0] == (192, 192)


@pytest.mark.parametrize("batch", [(0, 8, 32), (8, 1, 32), (1, 8), (2, 8, 32), (1, 4, 4)])
def test_senseless_batches_are_refused(tiny_bundle: Bundle, batch: Any) -> None:
    with pytest.raises(ValueError, match="wanted fewest,usual,most tiles a run"):
        build(tiny_bundle, batch=batch)


@pytest.mark.parametrize("size", [(64, 100), (96, 96), (32, 64), (0, 64)])
def test_depth_shapes_that_no_image_has_are_refused(tiny_bundle: Bundle, size: Any) -> None:
    with pytest.raises(ValueError, match="one side is 64, the other a larger multiple of 32"):
        build(tiny_bundle, buckets=[size])


def test_a_lower_bound_that_is_no_multiple_gives_the_sizes_that_images_have() -> None:
    p = spec.Preprocess(depth_lower_bound=510, depth_multiple=14)
    buckets = depth_buckets(p)
    assert buckets[0] == preprocess.depth_size(300, 300, p) == (518, 518)
    assert preprocess.depth_size(1080, 1920, p) in buckets
    check_buckets([preprocess.depth_size(333, 1000, p)], p)
    with pytest.raises(ValueError, match="one side is 518"):
        check_buckets([(510, 518)], p)


def test_a_plan_built_by_default_takes_the_golden_images_and_as_many_tiles_as_a_scorer_runs() -> None:
    bundle = load_bundle("small")
    buckets, p = depth_buckets(bundle.preprocess), bundle.preprocess
    for golden in load_golden(bundle):
        rgb = decode((bundle.path / golden.file).read_bytes())
        size = preprocess.depth_size(*rgb.shape[:2], p)
        for side, sides in zip(size, zip(*buckets, strict=True), strict=True):
            assert min(sides) <= side <= max(sides)
    assert BATCH[1] >= forward.BATCH


def test_plugins_are_for_tensorrt_and_have_names_of_their_own(tiny_bundle: Bundle, tmp_path: Path) -> None:
    plugin = tmp_path / "p.so"
    plugin.write_bytes(b"code")
    with pytest.raises(ValueError, match="plugins serve TensorRT, and this is for onnxruntime"):
        build(tiny_bundle, backend="onnxruntime", plugins=[plugin])


def test_a_disk_that_refuses_is_an_error_that_names_the_place_and_leaves_nothing(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(bundle: Bundle, out: Path) -> None:
        (out / spec.DEPTH_FILE).write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    fake_quantiser(monkeypatch, full)
    with pytest.raises(EngineError, match=r"was not built in .*engines .*No space left.*nothing was kept; make room"):
        build(tiny_bundle, backend="onnxruntime")
    assert nothing_left()


# TensorRT, with stand-ins for what compiles and runs plans: what is asked of it, and what is kept


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stand-in for the room that builds and runs plans; a plan is the ONNX file it was made of."""
    from dgiqa.builder import plan
    from dgiqa.runtime import cuda, trt
    from dgiqa.runtime.ort import OrtSession

    types, layers = {"fp16": 5, "fp32": 1}, {"fp16": 5}
    asked = SimpleNamespace(profiles=[], plugins=[], options=[], devices=[], types=types, layers=layers)

    def build_plan(onnx: Path, plan: Path, *, shapes: list[Any], plugins: Sequence[Path], **rest: Any) -> Any:
        asked.profiles += shapes
        asked.options.append(rest["options"])
        asked.plugins += plugins
        shutil.copy(onnx, plan)
        return asked.types

    def context(device: int | None) -> Any:
        asked.devices.append(device)
        return SimpleNamespace(current=nullcontext)

    class Session(OrtSession):
        def __init__(self, plan: Path, *, plugins: Any = (), device: int | None = None, graphs: bool = True) -> None:
            asked.devices.append(device)
            super().__init__(Path(plan).read_bytes())

        def layer_precisions(self) -> dict[str, int]:
            return dict(asked.layers)

        def close(self) -> None: ...

    here = {"version": "11.4.0.106", "device": "NVIDIA Z1", "compute_capability": "9.0"}
    monkeypatch.setattr(plan, "build_plan", build_plan)
    monkeypatch.setattr(trt, "identity", lambda device: here)
    monkeypatch.setattr(cuda, "Context", context)
    monkeypatch.setattr(trt, "TrtSession", Session)
    monkeypatch.setattr(
        room_of_names, "_lacking", lambda backend: "" if backend in ("tensorrt", "onnxruntime") else "is not"
    )
    return asked


def test_plans_are_built_for_the_shapes_asked_for_and_found_again(
    tiny_bundle: Bundle, tensorrt: SimpleNamespace, tmp_path: Path, photos: dict[str, Any]
) -> None:
    plugin = tmp_path / "libplugin.so"
    plugin.write_bytes(b"code")
    with pytest.raises(ValueError, match="two plugins have one name"):
        build(tiny_bundle, backend="tensorrt", plugins=[plugin, plugin])
    made = build(tiny_bundle, backend="tensorrt", batch=(1, 4, 16), buckets=[(64, 192), (64, 96)], plugins=[plugin])
    assert sorted(path.name for path in made.path.iterdir()) == [
        "depth.plan",
        "engine.json",
        "libplugin.so",
        "quality.plan",
    ]
    lying, standing, tiles = tensorrt.profiles
    assert tiles["rgb"] == tiles["depth"] == ((1, 3, 64, 64), (4, 3, 64, 64), (16, 3, 64, 64))
    # 4:3 that lies is tuned for; a side that is always the short one stays it; several pictures go at once
    assert lying == {"image": ((1, 3, 64, 64), (1, 3, 64, 96), (4, 3, 64, 192))}
    assert standing == {"image": ((1, 3, 96, 64), (1, 3, 128, 64), (4, 3, 128, 64))}
    assert [path.name for path in tensorrt.plugins] == ["libplugin.so"] * 2
    key = made.key
    assert (key["version"], key["device"], key["compute_capability"]) == ("11.4.0.106", "NVIDIA Z1", "9.0")
    usual = [[64, 64], [64, 96], [64, 128], [96, 64], [128, 64]]
    assert key["profile"] == {"batch": [1, 4, 16], "images": 4, "depth": [*usual, [64, 192]]}
    scorer = Scorer(tiny_bundle, precision="fp16")  # auto takes TensorRT where it is
    assert scorer.backend.endswith("fp16")
    assert 0 < scorer.score(photos["coffee"]).value < 1
    assert made.plugins[0].read_bytes() == b"code"
    made.plugins[0].write_bytes(b"other code")
    with pytest.raises(EngineError, match=r"libplugin\.so is missing or was altered"):
        Scorer(tiny_bundle, precision="fp16")


def test_a_plan_that_was_built_for_more_is_loaded_where_it_runs(
    tiny_bundle: Bundle, tensorrt: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = trt.identity(None)

    def elsewhere(**changed: str) -> None:
        monkeypatch.setattr(trt, "identity", lambda device=None: here | changed)

    for options, fits, misfits in (
        (PlanOptions(), {}, {"version": "11.5.0"}),
        (PlanOptions(version_compatible=True), {"version": "11.5.0"}, {"version": "12.0"}),
        (PlanOptions(hardware="same"), {"device": "NVIDIA Z2"}, {"device": "NVIDIA Z2", "compute_capability": "12.0"}),
        (
            PlanOptions(hardware="ampere+"),
            {"device": "NVIDIA Z2", "compute_capability": "12.0"},
            {"device": "NVIDIA T4", "compute_capability": "7.5"},
        ),
    ):
        elsewhere()
        made = build(tiny_bundle, backend="tensorrt", plan=options)
        assert made.key["profile"].get("plan", {}) == options.chosen
        assert tensorrt.options[-1] == options
        elsewhere(**fits)
        assert engines.load(made.path, tiny_bundle).path == made.path
        elsewhere(**misfits)
        with pytest.raises(EngineError, match="is stale"):
            engines.load(made.path, tiny_bundle)
    with pytest.raises(ValueError, match="for TensorRT only, and this is for onnxruntime"):
        build(tiny_bundle, backend="onnxruntime", plan=PlanOptions(level=5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hardware": "turing"}, "hardware is 'turing'; choose one of: ampere+, same"),
        ({"level": 6}, "optimisation level is 6, wanted 0 to 5"),
        ({"exclude_lean_runtime": True}, "only a version-compatible plan has a lean runtime in it"),
    ],
)
def test_options_of_a_plan_that_mean_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        PlanOptions(**options)


def test_the_command_reaches_every_option_of_a_plan(
    tiny_bundle: Bundle, tensorrt: SimpleNamespace, script: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = PlanOptions(version_compatible=True, exclude_lean_runtime=True, hardware="ampere+", level=5)
    options = "--version-compatible --exclude-lean-runtime --hardware ampere+ --optimization-level 5"
    common = ["--fp16", "--backend", "tensorrt", "--bundle", str(tiny_bundle.path), *options.split()]
    assert CliRunner().invoke(app, ["build", *common]).exit_code == 0
    assert tensorrt.options[-1] == wanted
    made = CliRunner().invoke(app, ["build", "--fp16", "--exclude-lean-runtime"])
    assert made.exit_code == 2
    assert "only a version-compatible plan" in made.output


def test_the_lean_runtime_stands_in_where_tensorrt_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorrt"):
        pytest.skip("TensorRT is installed here")
    (tmp_path / "tensorrt_lean.py").write_text("__version__ = '11.4.0.106'\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(machine, "gpu_present", lambda: True)
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # put back afterwards
    monkeypatch.delitem(sys.modules, "tensorrt")
    assert "tensorrt" in backends()
    assert trt.import_tensorrt().__name__ == "tensorrt_lean"
    assert sys.modules["tensorrt"] is sys.modules["tensorrt_lean"]
    del sys.modules["tensorrt_lean"]


def test_a_plan_without_the_precision_leaves_nothing(tiny_bundle: Bundle, tensorrt: SimpleNamespace) -> None:
    tensorrt.layers = {"fp32": 6, "unknown": 90}
    with pytest.raises(ParityError, match=r"asked for fp16, and the engine of .* has \{'fp32': 6, .*nothing was kept"):
        build(tiny_bundle, backend="tensorrt")
    tensorrt.layers, tensorrt.types = {"fp16": 6}, {"fp32": 6}
    with pytest.raises(ParityError, match=r"asked for fp16, and the network of .* has \{'fp32': 6\}; nothing was kept"):
        build(tiny_bundle, backend="tensorrt")
    assert nothing_left()


def test_layers_that_hide_their_types_are_no_reason_to_refuse(tiny_bundle: Bundle, tensorrt: SimpleNamespace) -> None:
    tensorrt.layers = {"unknown": 120, "other": 3}
    made = build(tiny_bundle, backend="tensorrt")
    assert made.certificate["layers"]["depth.onnx"] == {"unknown": 120, "other": 3}


def test_the_gpu_asked_for_is_the_one_that_is_built_for_and_opened(
    tiny_bundle: Bundle, tensorrt: SimpleNamespace
) -> None:
    build(tiny_bundle, backend="tensorrt", device=1)
    assert set(tensorrt.devices) == {1}
    tensorrt.devices.clear()
    Scorer(tiny_bundle, precision="fp16", device=1).close()
    assert set(tensorrt.devices) == {1}
    with pytest.raises(ValueError, match="device 1 names a GPU, and onnxruntime runs on the CPU; leave it out"):
        Scorer(tiny_bundle, backend="onnxruntime", device=1)


def test_without_tensorrt_one_sentence_says_what_to_install_and_what_works_instead(tiny_bundle: Bundle) -> None:
    if "tensorrt" in backends():
        pytest.skip("TensorRT is installed here")
    with pytest.raises(BackendError, match=r'pip install "dgiqa-rt\[tensorrt\]".*, or --backend onnxruntime builds'):
        build(tiny_bundle, backend="tensorrt")


def test_a_precision_that_tensorrt_lacks_is_not_advised_for_onnxruntime(tiny_bundle: Bundle) -> None:
    with pytest.raises(BackendError, match=r"^tensorrt has no bf16; choose --backend openvino, or fp16$"):
        build(tiny_bundle, backend="tensorrt", precision="bf16")


def test_int8_is_not_offered_where_it_gains_nothing() -> None:
    with pytest.raises(BackendError, match=r"^onnxruntime-cuda runs each Q/DQ by itself.*; choose fp16$"):
        choose("onnxruntime-cuda", "int8")
    with pytest.raises(BackendError, match=r"^openvino has no fp8; choose --backend tensorrt, or fp16$"):
        choose("openvino", "fp8")


def test_fp8_is_refused_on_a_gpu_without_such_units(
    tiny_bundle: Bundle, tensorrt: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = trt.identity(None)
    monkeypatch.setattr(trt, "identity", lambda device=None: here | {"device": "A100", "compute_capability": "8.0"})
    with pytest.raises(BackendError, match=r"A100 has compute capability 8\.0, and fp8 needs 8\.9 or later"):
        build(tiny_bundle, backend="tensorrt", precision="fp8")
    assert nothing_left()
    monkeypatch.setattr(trt, "identity", lambda device=None: here | {"compute_capability": "12.0"})
    with pytest.raises(ParityError, match="can be fp8"):  # asked for, and this bundle's layers are too narrow
        build(tiny_bundle, backend="tensorrt", precision="fp8")


def test_a_graph_that_cannot_be_changed_is_no_matter_of_the_budget(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise EngineError("the graph's types do not agree")

    monkeypatch.setattr(quantize, "quantize_bundle", broken)
    with pytest.raises(EngineError, match="types do not agree") as caught:
        build(tiny_bundle, backend="onnxruntime")
    assert not isinstance(caught.value, ParityError)
    assert nothing_left()


@pytest.mark.parametrize(
    ("asked", "instructions", "told"),
    [
        (("onnxruntime", "int8"), ["avx2", "avx512_vnni"], SLOW_INT8),
        (("onnxruntime", "fp16"), ["avx2"], ""),
        (("openvino", "int8"), ["avx2"], PLAIN_INT8),
        (("openvino", "int8"), ["avx2", "avx512_vnni"], ""),
    ],
)
def test_int8_that_gains_little_is_told_before_it_is_built(
    tiny_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    asked: tuple[str, str],
    instructions: list[str],
    told: str,
) -> None:
    backend, precision = asked
    need(backend)
    monkeypatch.setattr(machine, "cpu_instructions", lambda: instructions)
    lines: list[str] = []
    build(tiny_bundle, backend=backend, precision=precision, progress=lines.append)
    assert [line for line in lines if line in (SLOW_INT8, PLAIN_INT8)] == ([told] if told else [])
    assert not told or lines[0] == told


def test_a_real_gpu_builds_and_scores(need_gpu: Callable[..., None]) -> None:
    need_gpu("tensorrt", "cuda")
    made = build("small", backend="tensorrt")
    assert made.certificate["passed"]
    score = Scorer("small", backend="tensorrt", precision="fp16").score(np.zeros((480, 640, 3), np.uint8))
    assert 0 <= score.value <= 1


# the commands


def command(*arguments: str | Path, program: Sequence[str] = ("-m", "dgiqa")) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, *program, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S, cwd=ROOT, check=False)


@pytest.mark.slow
def test_the_commands_build_list_use_and_remove(tiny_bundle: Bundle, tmp_path: Path) -> None:
    where = ("--bundle", tiny_bundle.path, "--backend", "onnxruntime")
    built = command("--fp16", *where, program=["export/build_engine.py"])
    assert built.returncode == 0, built.stderr
    folder = Path(built.stdout.strip())
    assert folder.parent == engines.engines_folder()
    assert "of the budget of 0.002, over 4 images" in built.stderr
    listed = json.loads(command("cache", "ls", "--json").stdout)["engines"]
    assert [entry["name"] for entry in listed] == [folder.name]
    assert listed[0]["share_of_budget"] < 1
    assert command("cache", "path", folder.name).stdout.strip() == str(folder)
    picture = tiny_bundle.path / "golden/01.png"
    scored = command("score", picture, *where, "--precision", "fp16", "--json")
    assert scored.returncode == 0, scored.stderr
    assert "fp16" in scored.stdout
    verified = command("verify", tiny_bundle.path, "--engine", folder, "--json")
    assert verified.returncode == 0, verified.stderr
    facts = json.loads(verified.stdout)
    assert facts["sweep"]["images"] == 36
    assert 0 < facts["sweep"]["max_difference"] <= facts["sweep"]["tolerance"] == 0.002
    assert command("verify", tiny_bundle.path, "--engine", folder, "--tolerance", "1e-9").returncode == 4
    assert command("cache", "rm", folder.name).returncode == 0
    missing = command("score", picture, *where, "--precision", "fp16")
    assert missing.returncode == 1
    assert "dgiqa-rt build --bundle" in missing.stderr
    assert command("score", picture, *where, "--precision", "fp16", "--build").returncode == 0


@pytest.mark.parametrize(
    "wrong",
    [
        *(("--batch", batch) for batch in ("8,1", "2,8,32", "1,2,4", "1,8,x")),
        *(("--workspace", size) for size in ("inf", "nan", "0", "1e30")),
        ("--depth", "518"),
        ("--timing-cache", str(ROOT)),
        ("--fp16", "--int8"),
    ],
)
def test_options_that_mean_nothing_are_wrong_usage(wrong: tuple[str, ...]) -> None:
    assert CliRunner().invoke(app, ["build", *wrong]).exit_code == 2


def test_exit_codes_tell_a_wrong_engine_from_a_missing_backend(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_here("build", "--fp16", "--int8").returncode == 2
    assert run_here("build", "--batch", "8,1").returncode == 2
    assert run_here("cache", "rm").returncode == 2
    if "tensorrt" not in backends():
        without = run_here("build", "--bundle", tiny_bundle.path, "--backend", "tensorrt")
        assert without.returncode == 5
        assert without.stderr.count(b"\n") == 1
    code = (
        "import sys, dgiqa.parity as p; p.BUDGETS['fp16'] = 1e-12\n"
        "from dgiqa.cli import main; sys.argv = ['dgiqa-rt', *sys.argv[1:]]; main()"
    )
    over = command("build", "--bundle", tiny_bundle.path, "--backend", "onnxruntime", program=("-c", code))
    assert over.returncode == 4, over.stderr
    assert nothing_left()
