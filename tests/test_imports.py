"""Who may know whom: scoring never loads torch, the root never needs dgiqa.nn, and arrows point one way."""

from __future__ import annotations

import ast
import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import PATIENCE_S

import dgiqa
from dgiqa.bundle import Bundle

ROOT = Path(dgiqa.__file__).parent
ALL_MODULES = {  # "scorer", "runtime.ort", "video" -> file
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
FACES = {"__init__", "__main__"}  # of the package: they hand names on
MODULES = {name: path for name, path in ALL_MODULES.items() if name.split(".")[0] != "nn"}
TRAINING = {"torch", "timm", "torchvision", "safetensors", "onnxscript", "onnxsim"}
# The rooms of dgiqa from the ground up. A module knows those in lower rooms and its own; a package counts as one room.
FLOORS = [
    ["_version", "dtypes", "errors", "extras", "hdr", "spec", "timing", "metrics", "store", "resize"],
    ["attributes", "bars", "meaning"],
    ["full_reference", "machine", "image", "preprocess", "onnx_file"],
    ["bundle", "sources", "report"],
    ["runtime", "score", "work"],
    ["on_device"],
    ["forward", "last_layer"],
    ["compare", "explain"],
    ["parity", "pipeline"],
    ["builder", "inbox"],
    ["video"],
    ["scorer"],
    ["nn", "speed", "doctor", "calibrate", "batch", "serve"],
    ["cli"],
]
ROOM_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


@functools.cache
def imports(path: Path) -> list[tuple[str, bool, bool]]:
    """Every absolute import in a file, as (dotted name, at module level?, for annotations only?)."""
    return list(_imports(path))


def _imports(path: Path) -> Iterator[tuple[str, bool, bool]]:
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


@functools.cache
def arrows() -> dict[str, set[str]]:
    """Module of dgiqa -> the modules it imports, wherever the import stands, for annotations alone, too."""
    known = {
        room: {found for name, _, _ in imports(path) for found in [module_of(name)] if found}
        for room, path in ALL_MODULES.items()
    }
    return {room: found - {room} for room, found in known.items() if room not in FACES}


def floor(module: str) -> int:
    return ROOM_OF[module.split(".", maxsplit=1)[0]]


def test_every_module_has_a_room() -> None:
    rooms = {module.split(".")[0] for module in arrows()}
    assert rooms <= ROOM_OF.keys(), f"give {sorted(rooms - ROOM_OF.keys())} a floor above all that they import"


def test_imports_run_downwards() -> None:
    upward = {(room, known) for room, found in arrows().items() for known in found if floor(known) > floor(room)}
    assert not upward, "these run upwards; hand over what they take instead"


def test_nothing_runs_in_a_circle() -> None:
    assert circles(arrows()) == set()


def circles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """Sets of modules each of which reaches all the others of its set."""
    reached = {start: _reachable(graph, start) for start in graph}
    loops = {frozenset(b for b in reached[a] if a in reached.get(b, ())) for a in graph if a in reached[a]}
    return {loop for loop in loops if loop}


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        if (module := waiting.pop()) not in found:
            found.add(module)
            waiting += graph.get(module, ())
    return found


def test_circles_of_any_length_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": {"d"}, "f": {"a"}}
    assert circles(graph) == {frozenset("abc"), frozenset("de")}


def module_of(name: str) -> str:
    """The module that a dotted name lies in: "dgiqa.runtime.ort.OrtSession" -> "runtime.ort"; "" outside of dgiqa."""
    parts = name.split(".")[1:] if name.startswith("dgiqa.") else []
    dotted = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
    return next((module for module in dotted if module in ALL_MODULES), "")


def test_only_rooms_of_engines_import_one() -> None:
    engines = {"onnxruntime", "openvino", "tensorrt"}
    users = {room for room, path in MODULES.items() for name, _, _ in imports(path) if name.split(".")[0] in engines}
    assert users <= {"runtime.ort", "runtime.ov", "runtime.trt", "builder.plan", "builder.quantize"}


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
        timeout=PATIENCE_S,
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
