"""NVIDIA's own builder takes every network we ship, through our build function, in the types that the file names.

The builder is TensorRT-RTX on a CPU (trt_builder/environment.py). DGIQA_TRT_BUILDER names a folder for it: 350 MB from
PyPI are put there unless they are there, and what goes wrong then is a failure. Without it all of this skips.
DGIQA_TRT_PLUGIN names the built TensorRT plugin.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dgiqa import spec
from dgiqa.bundle import load_bundle

HERE = Path(__file__).resolve().parent / "trt_builder"
ROOT = HERE.parent.parent
CHECKED = ("builder/plan", "runtime/trt", "runtime/cuda")  # the modules that call TensorRT and the driver
FOLDER = os.environ.get("DGIQA_TRT_BUILDER", "")
PLUGIN = os.environ.get("DGIQA_TRT_PLUGIN", "")
PRECISIONS = ("fp32", "fp16", "int8", "fp8")
TILES = [[n, 3, spec.TILE, spec.TILE] for n in (1, 8, 32)]
SHAPES = {
    spec.DEPTH_FILE: {spec.DEPTH_INPUT: [[1, 3, h, w] for h, w in ((192, 192), (192, 256), (384, 384))]},
    spec.QUALITY_FILE: {spec.QUALITY_RGB: TILES, spec.QUALITY_DEPTH: TILES},
}

pytestmark = pytest.mark.skipif(not FOLDER, reason="set DGIQA_TRT_BUILDER to a folder for 350 MB of NVIDIA's packages")
onnx = pytest.importorskip("onnx")
helper = pytest.importorskip("onnx.helper")

Compile = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def builder() -> Path:
    sys.path.insert(0, str(HERE))
    import environment

    environment.prepare(Path(FOLDER))
    return Path(FOLDER)


@pytest.fixture
def compile(builder: Path, tmp_path: Path) -> Compile:
    """compile(file or model, shapes, ...) -> what trt_builder/compile.py says; the plan is tmp_path / "plan"."""
    from environment import variables

    def run(model: Any, shapes: Any, **more: Any) -> dict[str, Any]:
        if not isinstance(model, Path):
            onnx.save(model, tmp_path / "model.onnx")
            model = tmp_path / "model.onnx"
        task = {"onnx": str(model), "plan": str(tmp_path / "plan"), "shapes": shapes, **more}
        command = [sys.executable, str(HERE / "compile.py")]
        child = subprocess.run(
            command, input=json.dumps(task), env=variables(builder), capture_output=True, text=True, check=False
        )
        assert child.returncode == 0, child.stderr[-2000:]
        return dict(json.loads(child.stdout.splitlines()[-1]))

    return run


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """The default bundle's networks: precision -> file name -> path.

    No budget, so every layer is changed: more than what is shipped, and no search for layers to leave out.
    """
    from dgiqa.builder.quantize import quantize_bundle

    bundle = load_bundle("small")
    files = {"fp32": {name: bundle.path / name for name in SHAPES}}
    pictures = sorted((bundle.path / "golden").glob("*.png"))[:2]
    for precision in PRECISIONS[1:]:
        out = tmp_path_factory.mktemp(precision)
        made = quantize_bundle(bundle, precision, out, calibration=pictures, rest="fp16", budget=1.0)
        files[precision] = dict(made.files)
    return files


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", sorted(SHAPES))
def test_every_shipped_network_compiles_in_the_types_it_names(
    shipped: dict[str, dict[str, Path]], compile: Compile, tmp_path: Path, name: str, precision: str
) -> None:
    path = shipped[precision][name]
    built = compile(path, SHAPES[name])
    assert "error" not in built, built["error"]
    assert built["bytes"] == (tmp_path / "plan").stat().st_size > 10_000
    assert built["messages"][:2] == [f"reading {path.name}", f"compiling {built['layers']} layers"]
    layers = {key: built["precisions"].get(key, 0) for key in PRECISIONS}
    if precision == "fp32":
        assert layers["fp32"] > 50
        assert layers["fp16"] == layers["int8"] == 0
    elif precision == "fp16":
        assert layers["fp16"] > 50
        assert layers["int8"] == layers["fp8"] == 0
    else:
        quantized = sum(node.op_type == "QuantizeLinear" for node in onnx.load(path).graph.node)
        assert layers[precision] >= quantized > 5


@pytest.mark.slow
def test_the_full_size_network_compiles_in_fp16(full_quality_export: Any, compile: Compile) -> None:
    from dgiqa.builder.precision import load_model, to_half

    built = compile(to_half(load_model(full_quality_export.path)), SHAPES[spec.QUALITY_FILE])
    assert "error" not in built, built["error"]
    assert built["precisions"]["fp16"] > 500
    assert built["bytes"] < 0.6 * full_quality_export.size_bytes


@pytest.mark.slow
def test_folded_window_attention_compiles_with_one_addend_a_block(compile: Compile, tmp_path: Path) -> None:
    """A Swin of eight blocks, four of them shifted in each of two branches."""
    torch = pytest.importorskip("torch")
    sys.path.insert(0, str(ROOT / "bench"))
    import graph as bench

    from dgiqa.builder.precision import load_model, to_half
    from dgiqa.nn.network import DGIQA
    from dgiqa.nn.onnx_export import export_quality

    torch.manual_seed(0)
    network = DGIQA(bench.narrow()).eval()
    layers = {}
    for way in ("standard", "folded"):
        exported = export_quality(network, tmp_path / f"{way}.onnx", attention=way)  # type: ignore[arg-type]
        built = compile(to_half(load_model(exported.path)), SHAPES[spec.QUALITY_FILE])
        assert "error" not in built, built["error"]
        layers[way] = built["layers"]
    assert layers["folded"] < layers["standard"]


def graph(nodes: list[Any], inputs: dict[str, tuple[int, list[Any]]], output: tuple[int, list[Any]]) -> Any:
    """A model; types are onnx's numbers (1: float32, 10: float16)."""
    ends = [helper.make_tensor_value_info(name, *about) for name, about in inputs.items()]
    body = helper.make_graph(nodes, "g", ends, [helper.make_tensor_value_info("y", *output)])
    opsets = [helper.make_opsetid("", spec.OPSET), helper.make_opsetid(spec.ONNX_DOMAIN, 1)]
    return helper.make_model(body, opset_imports=opsets, ir_version=9)


def test_wrong_graphs_are_refused_with_the_nodes_name_and_nothing_is_written(compile: Compile, tmp_path: Path) -> None:
    mixed = graph([helper.make_node("Add", ["a", "b"], ["y"], name="sum")], {"a": (10, [4]), "b": (1, [4])}, (1, [4]))
    refused = compile(mixed, {})
    assert refused["kind"] == "EngineError"
    assert "model.onnx" in refused["error"]
    assert "Half and Float" in refused["error"]
    unknown = graph([helper.make_node("NoSuchOp", ["a"], ["y"], name="odd")], {"a": (1, [4])}, (1, [4]))
    assert "'odd' (NoSuchOp)" in compile(unknown, {})["error"]
    missing = compile(tmp_path / "nowhere.onnx", {})
    assert "nowhere.onnx is missing" in missing["error"]
    (tmp_path / "torn.onnx").write_bytes(b"\x08\x09torn")
    assert compile(tmp_path / "torn.onnx", {})["kind"] == "EngineError"
    assert not list(tmp_path.glob("*plan*"))


def test_shapes_are_asked_for_and_checked(compile: Compile, tmp_path: Path) -> None:
    twice = graph([helper.make_node("Add", ["a", "a"], ["y"])], {"a": (1, ["n", 4])}, (1, ["n", 4]))
    assert "got shapes of [], wanted those of ['a']" in compile(twice, {})["error"]
    assert "got shapes of ['a', 'b']" in compile(twice, {"a": [[1, 4]] * 3, "b": [[1, 4]] * 3})["error"]
    assert compile(twice, {"a": [[2, 4], [1, 4], [8, 4]]})["kind"] == "EngineError"  # smallest above usual
    assert not (tmp_path / "plan").exists()
    assert compile(twice, {"a": [[1, 4], [2, 4], [8, 4]]})["bytes"] > 0


def test_lying_and_standing_pictures_have_a_profile_each(compile: Compile) -> None:
    """An axis of one size keeps it, whatever a profile asks for: a depth network need not take several pictures."""
    ends = {"a": (1, [1, "rows", "columns"])}
    twice = graph([helper.make_node("Add", ["a", "a"], ["y"])], ends, (1, [1, "rows", "columns"]))
    lying, standing = [[1, 4, 4], [1, 4, 6], [4, 4, 8]], [[1, 6, 4], [1, 6, 4], [4, 8, 4]]
    assert "error" not in compile(twice, [{"a": lying}, {"a": standing}])


@pytest.mark.slow
def test_a_signal_ends_a_build_wherever_it_comes_and_nothing_is_written(compile: Compile, tmp_path: Path) -> None:
    """TensorRT calls back for every line of its log and every step, and swallows what is raised there."""
    path, plan = load_bundle("small").path / spec.QUALITY_FILE, tmp_path / "plan"
    steps = compile(path, SHAPES[spec.QUALITY_FILE])["steps"]
    plan.unlink()
    for part in (0.1, 0.3, 0.6):
        stopped = compile(path, SHAPES[spec.QUALITY_FILE], interrupt_at=int(part * steps))
        assert stopped == {"error": "interrupted", "kind": "Interrupted"}
        assert not list(tmp_path.iterdir())


def test_measured_kernels_are_kept_between_builds_and_a_torn_cache_starts_afresh(
    compile: Compile, tmp_path: Path
) -> None:
    twice = graph([helper.make_node("Add", ["a", "a"], ["y"])], {"a": (1, [4])}, (1, [4]))
    cache = tmp_path / "timing.cache"
    for content in (None, b"torn"):
        if content:
            cache.write_bytes(content)
        assert "error" not in compile(twice, {}, timing_cache=str(cache))
        assert cache.stat().st_size > 20
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "plan", "timing.cache"]


@pytest.mark.parametrize(
    "options",
    [
        {"level": 0},
        {"level": 5},
        {"hardware": "ampere+"},
        {"hardware": "same"},
        {"version_compatible": True},
        {"version_compatible": True, "exclude_lean_runtime": True},
    ],
    ids=str,
)
def test_plans_for_more_versions_and_gpus_compile_or_the_builder_says_why(
    compile: Compile, tmp_path: Path, options: dict[str, Any]
) -> None:
    twice = graph([helper.make_node("Add", ["a", "a"], ["y"])], {"a": (1, [4])}, (1, [4]))
    built = compile(twice, {}, options=options)
    if options == {"version_compatible": True}:  # its runtime would go into the plan, and TensorRT-RTX has none
        assert "libnvinfer_lean" in built["error"]
        return
    assert "error" not in built, built["error"]
    assert built["bytes"] == (tmp_path / "plan").stat().st_size > 0


def attention() -> Any:
    """One window attention node, fp16, with the body it carries for engines without a kernel."""
    from dgiqa.nn.attention_onnx import OP, with_function

    heads, channels = 3, 96
    generator = np.random.default_rng(0)
    constants = {
        "bias": generator.standard_normal((heads, 4, 7, 32, 4)).astype(np.float16),
        "qkv_bias": generator.standard_normal(3 * channels).astype(np.float16),
    }
    node = helper.make_node(
        OP, ["qkv", *constants], ["y"], name="window", domain=spec.ONNX_DOMAIN, heads=heads, shift=3, scale=0.176
    )
    model = graph([node], {"qkv": (10, ["n", 14, 14, 3 * channels])}, (10, ["n", 14, 14, channels]))
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    return with_function(model)


def test_the_attention_node_compiles_from_its_own_body(compile: Compile) -> None:
    pytest.importorskip("torch")
    built = compile(attention(), {"qkv": [[n, 14, 14, 288] for n in (1, 8, 32)]})
    assert "error" not in built, built["error"]
    assert built["layers"] > 20


def test_the_plugin_is_loaded_and_serves_the_attention_node(compile: Compile, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    shapes = {"qkv": [[n, 14, 14, 288] for n in (1, 8, 32)]}
    (tmp_path / "no_plugin.so").write_bytes(b"no library")
    refused = compile(attention(), shapes, plugins=[str(tmp_path / "no_plugin.so")])
    assert "no_plugin.so is not a plugin library" in refused["error"]
    if not PLUGIN:
        pytest.skip("set DGIQA_TRT_PLUGIN to the TensorRT plugin that CMake builds")
    built = compile(attention(), shapes, plugins=[PLUGIN])
    assert "error" not in built, built["error"]
    assert built["layers"] < 10  # the node and its constants, not its body
    assert built["precisions"] == {"fp16": built["layers"]}


@pytest.mark.slow
@pytest.mark.skipif(not PLUGIN, reason="set DGIQA_TRT_PLUGIN to the TensorRT plugin that CMake builds")
def test_the_full_size_network_compiles_with_attention_nodes_by_plugin_and_by_body(
    compile: Compile, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    from dgiqa.builder.precision import load_model, to_half
    from dgiqa.nn.network import DGIQA, FULL
    from dgiqa.nn.onnx_export import export_quality

    torch.manual_seed(0)
    exported = export_quality(DGIQA(FULL).eval(), tmp_path / "attention.onnx", attention="op")
    model = to_half(load_model(exported.path))
    nodes = sum(node.domain == spec.ONNX_DOMAIN for node in model.graph.node)
    assert nodes == 24  # two Swin-T
    by_body = compile(model, SHAPES[spec.QUALITY_FILE])
    assert "error" not in by_body, by_body["error"]
    by_plugin = compile(model, SHAPES[spec.QUALITY_FILE], plugins=[PLUGIN])
    assert "error" not in by_plugin, by_plugin["error"]
    assert by_plugin["layers"] < by_body["layers"] / 3


def type_check(builder: Path, major: str, folder: Path, *paths: Path) -> subprocess.CompletedProcess[str]:
    """mypy --strict with the types of one TensorRT."""
    config = folder / "mypy.ini"
    quiet = "".join(f"[mypy-{name}.*]\nignore_missing_imports = true\n" for name in ("cuda", "onnx"))
    config.write_text(f"[mypy]\nstrict = true\n[mypy-tensorrt.*]\nignore_errors = true\n{quiet}")
    command = [sys.executable, "-m", "mypy", "--config-file", str(config), "--follow-imports", "silent"]
    environment = {**os.environ, "MYPYPATH": str((builder / "stubs" / major).resolve())}
    return subprocess.run(
        [*command, "--cache-dir", str(folder / major), *map(str, paths)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("version", ["10.12", "10", "11"])
def test_what_is_called_exists_in_every_tensorrt_with_these_types(builder: Path, tmp_path: Path, version: str) -> None:
    pytest.importorskip("mypy")
    checked = type_check(builder, version, tmp_path, *(ROOT / "dgiqa" / f"{name}.py" for name in CHECKED))
    assert checked.returncode == 0, checked.stdout
    removed = tmp_path / "removed.py"
    removed.write_text("import tensorrt as trt\n\nflag: trt.BuilderFlag = trt.BuilderFlag.FP16\n")
    planted = type_check(builder, version, tmp_path, removed)
    if version == "11":
        assert '"type[BuilderFlag]" has no attribute "FP16"' in planted.stdout
    else:
        assert planted.returncode == 0, planted.stdout


@pytest.mark.parametrize("version", ["12.9.4", "13.5.0"])
def test_the_real_cuda_core_takes_every_call_and_we_read_its_answers(builder: Path, version: str) -> None:
    """The oldest and the newest that we admit, on a driver in host memory."""
    from environment import driver_variables

    command = [sys.executable, str(HERE / "bindings.py")]
    environment = driver_variables(builder, version)
    child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr[-2000:]
    found = json.loads(child.stdout)
    assert found.pop("error").startswith("CUDA failed: CUDA_ERROR_OUT_OF_MEMORY")
    assert found == {
        "gpu": "Stand-in 0",
        "capability": "9.0",
        "device": 0,
        "primary": True,
        "driver": 13000,
        "replayed": [True, True, True],
        "recorded": True,
        "moved": [True, True, True],
        "not_recorded": True,
        "views": [[16, -4], [4, 6, 2], [18, 3, 1], True],
        "free": 1 << 30,
        "alive": 0,
    }


def test_onnxruntime_old_and_new_takes_what_is_bound(builder: Path) -> None:
    """Names and order of the arguments with which arrays are bound and run, read from the packages' own sources."""
    import onnxruntime
    from environment import ONNXRUNTIMES

    wanted = {
        "bind_cpu_input": ["self", "name", "arr_on_cpu"],
        "bind_input": ["self", "name", "device_type", "device_id", "element_type", "shape", "buffer_ptr"],
        "bind_output": ["self", "name", "device_type", "device_id", "element_type", "shape", "buffer_ptr"],
        "copy_outputs_to_cpu": ["self"],
        "run_with_iobinding": ["self", "iobinding", "run_options"],
    }
    old = [builder / f"ort-{version}" / "onnxruntime" for version in ONNXRUNTIMES]
    for package in (*old, Path(onnxruntime.__file__).parent):
        tree = ast.parse((package / "capi" / "onnxruntime_inference_collection.py").read_text())
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in wanted]
        assert {f.name: [a.arg for a in f.args.args] for f in functions} == wanted, package


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "file", "chosen"), [("1.20.0", "test_ort_cuda.py", "real_onnxruntime"), ("1.24.1", "test_rtx.py", "")]
)
def test_the_oldest_onnxruntimes_pass_the_tests_of_what_calls_them(
    builder: Path, version: str, file: str, chosen: str
) -> None:
    """The newest is this environment's own."""
    paths = os.pathsep.join([str(builder.resolve() / f"ort-{version}"), str(ROOT)])
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:xdist", str(ROOT / "tests" / file), "-k", chosen]
    environment = {**os.environ, "PYTHONPATH": paths}
    child = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stdout[-3000:]
    assert "skipped" not in child.stdout.splitlines()[-1]
