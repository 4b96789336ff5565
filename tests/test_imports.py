"""Who may know whom: scoring never loads torch, the root never needs dgiqa.nn, and arrows point one way."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dgiqa
from dgiqa.bundle import Bundle

ROOT = Path(dgiqa.__file__).parent
MODULES = {  # all but dgiqa/nn: "scorer", "backends.ort", "quantize" -> file
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
    if path.relative_to(ROOT).parts[0] != "nn"
}
TRAINING = {"torch", "timm", "torchvision", "safetensors", "onnxscript", "onnxsim"}
BASE = {"errors", "spec", "_version"}
# Modules of dgiqa that each room may import, wherever the import stands (annotations aside).
ALLOWED = {
    "_version": set(),
    "spec": set(),
    "errors": set(),
    "store": set(),
    "metrics": set(),
    "image": BASE,
    "resize": set(),
    "preprocess": BASE | {"resize"},
    "backends.wheels": set(),
    "sessions": BASE | {"backends.ort", "backends.ov", "backends.trt"},
    "backends.ort": BASE | {"sessions", "backends.wheels"},
    "backends.ov": BASE | {"sessions", "cache", "bundle"},
    "cache": BASE | {"sessions", "bundle", "onnx_file", "store"},
    "engine": BASE
    | {"sessions", "bundle", "cache", "parity", "quantize.precision", "quantize", "backends.ov", "backends.trt"},
    "onnx_file": BASE,
    "meaning": BASE,
    "attributes": set(),
    "bundle": BASE | {"onnx_file", "meaning"},
    "batches": BASE | {"preprocess", "sessions"},
    "scorer": BASE
    | {"batches", "image", "preprocess", "sessions", "bundle", "cache", "engine", "backends.cuda", "backends.gpu"}
    | {"video", "video.pipeline", "video.sampling", "video.stream"},
    "parity": BASE | {"bundle", "image", "scorer", "metrics"},
    "quantize.precision": BASE,
    "quantize.calibrate": BASE
    | {"image", "preprocess", "bundle", "inputs", "backends.ort", "parity", "quantize.precision"},
    "quantize.modelopt": BASE | {"quantize.calibrate", "backends.ort", "quantize.precision"},
    "quantize": BASE
    | {"bundle", "quantize.calibrate", "quantize.modelopt", "backends.ort", "parity", "quantize.precision"},
    "backends.native": BASE,
    "backends.gpu": BASE | {"preprocess", "backends.cuda", "backends.native"},
    "backends.cuda": BASE,
    "backends.plan": BASE | {"backends.cuda", "store"},
    "backends.trt": BASE | {"backends.cuda", "backends.plan"},
    "timing": set(),
    "speed": BASE | {"bundle", "inputs", "parity", "scorer", "sessions", "timing"},
    "inputs": BASE,
    "outputs": BASE,
    "video.sampling": BASE,
    "video.pooling": BASE,
    "video.colour": BASE | {"video.sampling"},
    "video.decoding": BASE | {"video.colour", "video.sampling"},
    "video.frames": BASE | {"video.sampling", "video.colour", "video.decoding", "video.nvdec"},
    "video.nvdec": BASE | {"video.decoding", "video.colour"},
    "video.live": BASE | {"video.frames", "video.sampling"},
    "video.reuse": BASE | {"video.frames", "video.sampling"},
    "video.pipeline": BASE | {"batches", "video.frames", "video.reuse", "scorer", "sessions"},
    "video.stream": BASE | {"image", "video.frames", "video.pipeline", "video.sampling"},
    "video": BASE
    | {
        "video.frames",
        "video.live",
        "video.pipeline",
        "video.pooling",
        "video.reuse",
        "video.sampling",
        "scorer",
    },
    "video.outputs": BASE | {"outputs", "video"},
    "video.report": BASE | {"outputs"},
}


def imports(path: Path) -> Iterator[tuple[str, bool, bool]]:
    """Every absolute import in a file, as (dotted name, at module level?, for annotations only?)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        assert not getattr(node, "level", 0), f"{path.name}:{node.lineno} imports relatively"
        above = list(_above(node, parents))
        inside = any(isinstance(a, ast.FunctionDef | ast.AsyncFunctionDef) for a in above)
        typing = any(isinstance(a, ast.If) and ast.unparse(a.test) == "TYPE_CHECKING" for a in above)
        prefix = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
        for alias in node.names:
            yield prefix + alias.name, not inside, typing


def _above(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> Iterator[ast.AST]:
    while node in parents:
        node = parents[node]
        yield node


def test_the_walk_sees_every_form_of_import(tmp_path: Path) -> None:
    path = tmp_path / "m.py"
    path.write_text(
        "import torch.nn as n\nfrom dgiqa import nn\nif TYPE_CHECKING:\n    import timm\n"
        "try:\n    import a\nexcept ImportError:\n    pass\ndef f():\n    from dgiqa.nn import train\n"
    )
    assert set(imports(path)) == {
        ("torch.nn", True, False),
        ("dgiqa.nn", True, False),
        ("timm", True, True),
        ("a", True, False),
        ("dgiqa.nn.train", False, False),
    }


@pytest.mark.parametrize("room", MODULES)
def test_the_root_never_imports_training_packages(room: str) -> None:
    found = {name for name, _, _ in imports(MODULES[room]) if name.split(".")[0] in TRAINING}
    assert not found, f"{room} imports {sorted(found)}; that belongs into dgiqa/nn"


@pytest.mark.parametrize("room", MODULES)
def test_the_root_reaches_into_nn_only_inside_functions(room: str) -> None:
    found = {n for n, at_top, typing in imports(MODULES[room]) if n.startswith("dgiqa.nn") and at_top and not typing}
    assert not found, f"{room} imports {sorted(found)} at module level"


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_each_room_knows_only_the_rooms_it_may(room: str) -> None:
    found = {known for name, _, typing in imports(MODULES[room]) if not typing for known in [room_of(name)] if known}
    assert found <= ALLOWED[room], f"{room} imports {sorted(found - ALLOWED[room])}"


def room_of(name: str) -> str:
    """The room that a dotted name lies in: "dgiqa.backends.ort.OrtSession" -> "backends.ort"; "" outside of dgiqa."""
    parts = name.split(".")[1:] if name.startswith("dgiqa.") else []
    dotted = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
    return next((room for room in dotted if room in MODULES or room == "nn"), "")


def test_only_rooms_of_engines_import_one() -> None:
    engines = {"onnxruntime", "openvino", "tensorrt"}
    users = {room for room, path in MODULES.items() for name, _, _ in imports(path) if name.split(".")[0] in engines}
    assert users <= {"backends.ort", "backends.ov", "backends.trt", "backends.plan", "quantize"}


def clean(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter in which importing torch or timm raises."""
    guard = (
        "import sys\n"
        "class Guard:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {TRAINING!r}: raise AssertionError('imported ' + name)\n"
        "sys.meta_path.insert(0, Guard())\n"
    )
    path = os.pathsep.join(filter(None, [str(ROOT.parent), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-c", guard + code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": path},
        check=False,
    )


def test_the_guard_notices_an_import_of_torch() -> None:
    done = clean("import torch")
    assert done.returncode != 0
    assert "imported torch" in done.stderr


def test_a_fresh_process_scores_without_torch(tiny_bundle: Bundle) -> None:
    code = (
        "import numpy as np\n"
        "from dgiqa import Scorer\n"
        "image = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)\n"
        "scorer = Scorer(sys.argv[1])\n"
        "scores = [scorer.score(image), *scorer.score_many([image] * 3)]\n"
        "assert all(0 < s.value < 1 for s in scores)\n"
        f"loaded = {TRAINING!r} & {{name.split('.')[0] for name in sys.modules}}\n"
        "assert not loaded and 'dgiqa.nn' not in sys.modules, loaded\n"
        "print('scored', len(scores))\n"
    )
    done = clean(code, str(tiny_bundle.path))
    assert (done.returncode, done.stdout) == (0, "scored 4\n"), done.stderr


def test_importing_the_package_loads_nothing() -> None:
    done = clean(
        "import dgiqa; print(sorted(n for n in sys.modules if n.split('.')[0] in ('dgiqa', 'numpy', 'cv2', 'PIL')))"
    )
    assert done.stdout == "['dgiqa', 'dgiqa._version']\n", done.stderr


def test_every_public_name_is_there_and_the_list_is_sorted() -> None:
    assert dgiqa.__all__ == sorted(dgiqa.__all__)
    for name in dgiqa.__all__:
        assert getattr(dgiqa, name) is not None
    assert set(dgiqa.__all__) <= set(dir(dgiqa))
    with pytest.raises(AttributeError, match="no attribute 'Scoer'"):
        _ = dgiqa.Scoer
