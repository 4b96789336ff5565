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
MODULES = sorted(p.stem for p in ROOT.glob("*.py"))
TRAINING = {"torch", "timm", "torchvision", "safetensors", "onnxscript", "onnxsim"}
BASE = {"errors", "spec", "_version"}
# Modules of dgiqa that each room may import, wherever the import stands (annotations aside).
ALLOWED = {
    "_version": set(),
    "spec": set(),
    "errors": set(),
    "metrics": set(),
    "preprocess": BASE,
    "sessions": BASE,
    "bundle": BASE,
    "scorer": BASE | {"preprocess", "sessions", "bundle"},
    "parity": BASE | {"bundle", "scorer"},
    "inputs": BASE,
    "outputs": BASE,
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


@pytest.mark.parametrize("module", MODULES)
def test_the_root_never_imports_training_packages(module: str) -> None:
    found = {name for name, _, _ in imports(ROOT / f"{module}.py") if name.split(".")[0] in TRAINING}
    assert not found, f"dgiqa/{module}.py imports {sorted(found)}; that belongs into dgiqa/nn"


@pytest.mark.parametrize("module", MODULES)
def test_the_root_reaches_into_nn_only_inside_functions(module: str) -> None:
    found = {
        n for n, at_top, typing in imports(ROOT / f"{module}.py") if n.startswith("dgiqa.nn") and at_top and not typing
    }
    assert not found, f"dgiqa/{module}.py imports {sorted(found)} at module level"


@pytest.mark.parametrize("module", sorted(ALLOWED.keys() & set(MODULES)))
def test_each_room_knows_only_the_rooms_it_may(module: str) -> None:
    known = set(MODULES) | {"nn"}
    found = set()
    for name, _, typing in imports(ROOT / f"{module}.py"):
        parts = name.split(".")
        if parts[0] == "dgiqa" and len(parts) > 1 and parts[1] in known and not typing:
            found.add(parts[1])
    assert found <= ALLOWED[module], f"dgiqa/{module}.py imports {sorted(found - ALLOWED[module])}"


def test_only_the_session_room_imports_an_engine() -> None:
    engines = {"onnxruntime", "openvino", "tensorrt"}
    users = {m for m in MODULES for name, _, _ in imports(ROOT / f"{m}.py") if name.split(".")[0] in engines}
    assert users <= {"sessions"}


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
