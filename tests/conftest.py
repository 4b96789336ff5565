"""Bundles any test may use, built once per run: one of tiny graphs, one of untrained networks; and photographs."""

from __future__ import annotations

import dataclasses
import gc
import importlib.util
import io
import json
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dgiqa import spec
from dgiqa.bundle import Bundle, load_bundle, write_bundle
from dgiqa.machine import gpu_present
from dgiqa.meaning import Meaning, Reason
from dgiqa.parity import golden_files
from dgiqa.runtime.backends import BACKENDS, backends
from dgiqa.runtime.kernels import Kernels
from dgiqa.scorer import Scorer

gc.set_threshold(20_000, 20, 20)  # Python looks for cycles so often that it takes a fourteenth of all time
ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))  # for recipes/, which no wheel holds; an installed dgiqa stands before it
PREPROCESS = spec.Preprocess(depth_lower_bound=64, depth_multiple=32, short_side=96, tile=64)
LABELS = {"licence": "Apache-2.0", "source": "made by the tests"}


# Where torch is not installed, the tests of training are left out, and the header says so.
_TRAINING = re.compile(r"^(import|from) (torch|dgiqa\.nn|recipes)\b", re.MULTILINE)
_WITHOUT_TORCH = importlib.util.find_spec("torch") is None
collect_ignore = [
    str(path.relative_to(Path(__file__).parent))
    for path in sorted(Path(__file__).parent.rglob("test_*.py"))
    if _WITHOUT_TORCH
    and _TRAINING.search(text := path.read_text(encoding="utf-8"))
    and 'importorskip("torch")' not in text
]


def pytest_report_header() -> str:
    return f"left out, for want of torch: {', '.join(collect_ignore)}" if collect_ignore else ""


def pytest_configure() -> None:
    """Started in the background, the tests themselves may ignore signals, and what they start would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_finish() -> None:
    """Threads that wait for a busy core spin: beside other processes, small networks take three times as long."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--gpu", action="store_true", help="what needs a GPU or TensorRT fails where it cannot run")


@pytest.fixture(autouse=True)
def the_same_numbers() -> None:
    """What a test draws without a seed of its own does not depend on the tests before it."""
    if torch := sys.modules.get("torch"):
        torch.default_generator.manual_seed(7)  # torch.manual_seed takes as long as many tests: it looks for devices


@pytest.fixture(scope="module", autouse=True)
def what_is_there_is_not_looked_through_again() -> None:
    """Hundreds of thousands of objects of what was imported cost half a second in each test that collects garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def need_gpu(request: pytest.FixtureRequest) -> Callable[..., None]:
    """need_gpu("tensorrt", "cuda", ...): skip without an NVIDIA GPU or one of these backends or modules, naming it.

    With --gpu, fail instead.
    """

    def need(*modules: str) -> None:
        missing = [name for name in modules if not _is_here(name)]
        lacking = ["an NVIDIA GPU"] * (not gpu_present()) + missing
        if lacking:
            reason = f"needs {' and '.join(lacking)}"
            pytest.fail(reason) if request.config.getoption("--gpu") else pytest.skip(reason)

    return need


def _is_here(name: str) -> bool:
    if name in BACKENDS:
        return name in backends()
    found = importlib.util.find_spec(name) is not None
    if name == "torch" and found:  # one without CUDA is of no use to these tests
        import torch

        return bool(torch.cuda.is_available())
    return found


@pytest.fixture(scope="session")
def script() -> Callable[[str], ModuleType]:
    """script("export/to_onnx.py") -> a file that is in no package, as a module; it imports its neighbours."""

    def load(path: str) -> ModuleType:
        sys.path.append(str((ROOT / path).parent))
        found = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
        assert found is not None
        assert found.loader is not None
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def without_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process without the onnx package, which nothing has imported yet."""
    monkeypatch.setitem(sys.modules, "onnx", None)
    for name in ("precision", "quantize"):
        monkeypatch.delitem(sys.modules, f"dgiqa.builder.{name}", raising=False)
        monkeypatch.delattr(f"dgiqa.builder.{name}", raising=False)  # what the package keeps of what was imported


@pytest.fixture(scope="session")
def photos() -> dict[str, NDArray[np.uint8]]:
    """Photographs of several shapes, uint8 [H,W,3]."""
    data = pytest.importorskip("skimage.data")
    names = ("astronaut", "coffee", "chelsea", "rocket")
    return {name: np.asarray(getattr(data, name)()) for name in names}


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """encode(array, "PNG", ...) -> an encoded image."""

    def to_bytes(array: NDArray[np.uint8], kind: str = "PNG", **options: int) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(array).save(stream, kind, **options)
        return stream.getvalue()

    return to_bytes


@pytest.fixture(scope="session")
def tiny_graphs() -> dict[str, bytes]:
    """Two graphs of a few operators, with the contract's names: every pixel and depth value moves the score."""
    return {spec.DEPTH_FILE: _depth_graph(), spec.QUALITY_FILE: _quality_graph(PREPROCESS.tile)}


@pytest.fixture(scope="session")
def tiny_bundle(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_graphs: dict[str, bytes],
    photos: dict[str, NDArray[np.uint8]],
    encode: Callable[..., bytes],
) -> Bundle:
    """A complete bundle, golden images included, that loads and scores in milliseconds. Never write into it."""
    return _with_golden(tmp_path_factory, "tiny", tiny_graphs, (photos, encode), preprocess=PREPROCESS)


@pytest.fixture(scope="session")
def telling_bundle(
    tmp_path_factory: pytest.TempPathFactory, photos: dict[str, NDArray[np.uint8]], encode: Callable[..., bytes]
) -> Bundle:
    """As the tiny one, with reasons, features, presets and a scale as well. Never write into it."""
    graphs = {spec.DEPTH_FILE: _depth_graph(), spec.QUALITY_FILE: _quality_graph(PREPROCESS.tile, extra=True)}
    meaning = Meaning(
        reasons=(Reason("blur", 0.5), Reason("noise", 0.4), Reason("dark", 0.6)),
        presets={"upload": 0.3, "archive": 0.5, "curation": 0.7},
        kind="mos",
        interval=0.1,
    )
    common: dict[str, Any] = {"preprocess": PREPROCESS, "meaning": meaning, "features": 8}
    return _with_golden(tmp_path_factory, "telling", graphs, (photos, encode), **common)


@pytest.fixture(scope="session")
def rgb_bundle(
    tmp_path_factory: pytest.TempPathFactory, photos: dict[str, NDArray[np.uint8]], encode: Callable[..., bytes]
) -> Bundle:
    """As the tiny one, of a network that sees the image alone, as it is, and scores on a scale of 1 to 5."""
    preprocess = spec.Preprocess(1, 0, 1, short_side=0, tile=64, normalisation="half")
    graphs = {spec.QUALITY_FILE: _quality_graph(preprocess.tile, near=False)}
    common: dict[str, Any] = {"preprocess": preprocess, "meaning": Meaning(range=(-1.0, 3.0), raw=True)}
    return _with_golden(tmp_path_factory, "rgb", graphs, (photos, encode), **common)


def _with_golden(
    tmp_path_factory: pytest.TempPathFactory, name: str, graphs: dict[str, bytes], pictures: Any, **common: Any
) -> Bundle:
    """A bundle of these graphs that holds its own scores of the photographs, a quarter of their size."""
    pytest.importorskip("onnxruntime")
    root, (photos, encode) = tmp_path_factory.mktemp(name), pictures
    common |= LABELS
    draft = write_bundle(root / "draft", name=name, title="draft", files=graphs, **common)
    with Scorer(draft) as scorer:
        golden = golden_files([encode(photo[::4, ::4]) for photo in photos.values()], scorer.score)
    return write_bundle(root / name, name=name, title="for tests", files={**graphs, **golden}, **common)


@pytest.fixture(scope="session")
def bundle_dir(tiny_bundle: Bundle) -> Path:
    """Where the tiny bundle is, for tests that name it on a command line."""
    return tiny_bundle.path


@pytest.fixture(scope="session")
def network_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The default architecture with untrained weights and a few-layer depth network, both exported. Takes 15 s."""
    torch = pytest.importorskip("torch")
    from dgiqa.nn.network import DGIQA, SMALL

    def make(root: Path) -> None:
        torch.manual_seed(0)
        tiles = torch.zeros(2, 3, spec.TILE, spec.TILE)
        _export(
            DGIQA(SMALL).eval(),
            {spec.QUALITY_RGB: tiles, spec.QUALITY_DEPTH: tiles},
            spec.QUALITY_OUTPUT,
            root / spec.QUALITY_FILE,
            {spec.QUALITY_RGB: {0: "n"}, spec.QUALITY_DEPTH: {0: "n"}},
        )
        _export(
            _depth_network().eval(),
            {spec.DEPTH_INPUT: torch.zeros(1, 3, 64, 96)},
            spec.DEPTH_OUTPUT,
            root / spec.DEPTH_FILE,
            {spec.DEPTH_INPUT: {2: "h", 3: "w"}},
        )
        files = {name: root / name for name in (spec.DEPTH_FILE, spec.QUALITY_FILE)}
        preprocess = spec.Preprocess(depth_lower_bound=192, depth_multiple=32)
        write_bundle(root / "network", name="network", title="untrained", files=files, preprocess=preprocess, **LABELS)

    return load_bundle(_once(tmp_path_factory, "networks", make) / "network")


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    """The preprocessing kernels, compiled for the CPU."""
    from emulated import emulated_kernels

    return emulated_kernels(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="session")
def narrow_quality() -> Any:
    """A DGIQA of few channels with every part of the architecture. Never change it.

    Untrained scores hardly differ; a steep last layer spreads them, so that a wrong graph shows.
    """
    torch = pytest.importorskip("torch")
    from dgiqa.nn.network import DGIQA, DGIQAConfig

    torch.manual_seed(0)
    options = {"channels": (8, 8, 16, 16), "stem_type": "deep", "stem_width": 8}
    sizes: dict[str, Any] = {"tcb_channels": (4, 4, 8, 8), "reduction": 2, "heads": 2, "dilated_channels": 8}
    network = DGIQA(DGIQAConfig("resnet10t", options, reasons=3, **sizes)).eval()
    with torch.no_grad():
        network.fc.weight.mul_(40)
    return network


@pytest.fixture(scope="session")
def narrow_quality_export(narrow_quality: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """It as export_quality leaves it (an Export)."""
    from dgiqa.nn.onnx_export import export_quality

    return export_quality(narrow_quality, tmp_path_factory.mktemp("narrow") / spec.QUALITY_FILE)


@pytest.fixture(scope="session")
def full_quality_export(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The full-size quality network with untrained weights, as export_quality leaves it (an Export). Takes a minute."""
    torch = pytest.importorskip("torch")
    from dgiqa.nn.network import DGIQA, FULL
    from dgiqa.nn.onnx_export import Export, export_quality

    def make(root: Path) -> None:
        torch.manual_seed(0)
        model = DGIQA(FULL)
        with torch.no_grad():
            model.fc.weight.mul_(40)  # untrained scores hardly differ; a steep last layer spreads them
        export = export_quality(model.eval(), root / spec.QUALITY_FILE)
        (root / "export.json").write_text(json.dumps(dataclasses.asdict(export), default=str))

    root = _once(tmp_path_factory, "full", make)
    facts = json.loads((root / "export.json").read_text())
    return Export(**facts | {"path": root / spec.QUALITY_FILE})  # it was moved after it was written


def _once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that make(folder) filled: once, also where several processes run the tests. Never write into it."""
    from filelock import FileLock

    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with FileLock(root / f"{name}.lock"):
        if not (root / name).is_dir():
            scratch = Path(tempfile.mkdtemp(dir=root))
            make(scratch)
            scratch.rename(root / name)
    return root / name


def _depth_network():  # type: ignore[no-untyped-def] # -> nn.Module; torch is imported only where it is needed
    from torch import nn

    class Depth(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers = [m for a, b in ((3, 16), (16, 32)) for m in (nn.Conv2d(a, b, 3, 2, 1), nn.ReLU())]
            self.body = nn.Sequential(*layers, nn.Conv2d(32, 1, 3, 1, 1), nn.Upsample(scale_factor=4, mode="bilinear"))

        def forward(self, image):  # type: ignore[no-untyped-def] # [1,3,h,w] -> [1,h,w]
            return self.body(image)[:, 0]

    return Depth()


def _export(model, inputs, output: str, path: Path, dynamic) -> None:  # type: ignore[no-untyped-def]
    import torch

    torch.onnx.export(
        model,
        tuple(inputs.values()),
        path,
        dynamo=True,
        opset_version=spec.OPSET,
        input_names=list(inputs),
        output_names=[output],
        dynamic_shapes={name: dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for name, axes in dynamic.items()},
        external_data=False,
        verbose=False,
    )


def _depth_graph() -> bytes:
    """depth = a 5x5 convolution of the image, so that neighbouring pixels differ and no shape is fixed."""
    from onnx import helper, numpy_helper

    weights = np.random.default_rng(0).standard_normal((1, 3, 5, 5)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", [spec.DEPTH_INPUT, "w"], ["map"], pads=[2, 2, 2, 2]),
        helper.make_node("Squeeze", ["map", "axis"], [spec.DEPTH_OUTPUT]),
    ]
    constants = [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.array([1]), "axis")]
    inputs = {spec.DEPTH_INPUT: [1, 3, "h", "w"]}
    return _model(nodes, inputs, {spec.DEPTH_OUTPUT: [1, "h", "w"]}, constants)


def _quality_graph(tile: int, extra: bool = False, near: bool = True) -> bytes:
    """score = sigmoid of the mean of a rectified convolution of both images; extra: features and three reasons, too.

    near: False for one that sees the image alone.
    """
    from onnx import helper, numpy_helper

    generator = np.random.default_rng(1)
    names = (spec.QUALITY_RGB, spec.QUALITY_DEPTH)[: 2 if near else 1]
    weights = generator.standard_normal((8, 3 * len(names), 3, 3)).astype(np.float32)
    mix = generator.standard_normal((8, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Concat", list(names), ["both"], axis=1),
        helper.make_node("Conv", ["both", "w"], ["conv"], strides=[2, 2]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("ReduceMean", ["relu", "hw"], ["mean"], keepdims=0),
        helper.make_node("Gemm", ["mean", "mix", "shift"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["column"]),
        helper.make_node("Squeeze", ["column", "axis"], [spec.QUALITY_OUTPUT]),
    ]
    arrays = {"w": weights, "mix": mix, "shift": np.zeros(1, np.float32), "hw": np.array([2, 3]), "axis": np.array([1])}
    outputs: dict[str, list[Any]] = {spec.QUALITY_OUTPUT: ["n"]}
    if extra:
        nodes += [
            helper.make_node("Identity", ["mean"], [spec.QUALITY_FEATURES]),
            helper.make_node("MatMul", ["mean", "causes"], ["signs"]),
            helper.make_node("Sigmoid", ["signs"], [spec.QUALITY_REASONS]),
        ]
        arrays["causes"] = generator.standard_normal((8, 3)).astype(np.float32)
        outputs |= {spec.QUALITY_REASONS: ["n", 3], spec.QUALITY_FEATURES: ["n", 8]}
    inputs = {name: ["n", 3, tile, tile] for name in names}
    constants = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    return _model(nodes, inputs, outputs, constants)


def _model(nodes, inputs, outputs, constants) -> bytes:  # type: ignore[no-untyped-def]
    from onnx import TensorProto, checker, helper

    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in side.items()]
        for side in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, "tiny", *ends, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", spec.OPSET)], ir_version=9)
    checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())
