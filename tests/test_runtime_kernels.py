"""The kernels' library is found, checked and called; what is wrong with it is said, with the fix."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from emulated import ENGINES, compile_library, image_of

from dgiqa import preprocess
from dgiqa.errors import BackendError
from dgiqa.runtime import kernels as room
from dgiqa.runtime.kernels import DepthMap, Image, Kernels


def test_the_library_is_taken_from_the_environment(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGIQA_KERNELS", str(kernels.path))
    assert room.find() == kernels.path
    assert Kernels().emulated


def test_the_library_is_found_beside_the_package(
    kernels: Kernels, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("DGIQA_KERNELS", raising=False)
    monkeypatch.setattr(room, "__file__", str(tmp_path / "kernels.py"))
    os.link(kernels.path, tmp_path / room.LIBRARY)
    assert room.find() == tmp_path / room.LIBRARY


def test_a_missing_library_says_how_to_build_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DGIQA_KERNELS", raising=False)
    monkeypatch.setattr(room, "__file__", str(tmp_path / "kernels.py"))
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    with pytest.raises(BackendError, match=r"no libdgiqa_kernels\.so in .* build it: pip wheel \./engines"):
        room.find()
    monkeypatch.setenv("DGIQA_KERNELS", str(tmp_path / "nothing.so"))
    with pytest.raises(BackendError, match=r"nothing\.so, which is not a file; build it: pip wheel"):
        room.find()


def packed(library: Path, site: Path) -> Path:
    """The package as the wheel installs it."""
    folder = site / room.WHEEL
    folder.mkdir()
    (folder / "__init__.py").touch()
    os.link(library, folder / room.LIBRARY)
    digest = hashlib.sha256(library.read_bytes()).hexdigest()
    (folder / "library.json").write_text(json.dumps({"file": room.LIBRARY, "sha256": digest}))
    return folder


def test_the_library_of_the_wheel_is_taken_if_it_is_the_one_that_was_packed(
    kernels: Kernels, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("DGIQA_KERNELS", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    folder = packed(kernels.path, tmp_path)
    assert Kernels().path == folder / room.LIBRARY
    data = bytearray((folder / room.LIBRARY).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / room.LIBRARY).unlink()
    (folder / room.LIBRARY).write_bytes(data)
    with pytest.raises(BackendError, match="is not the packed library; pip install --force-reinstall"):
        room.find()
    (folder / "library.json").unlink()
    with pytest.raises(BackendError, match="is damaged"):
        room.find()


def test_the_wheels_tag_is_that_of_the_newest_symbol_and_other_libraries_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: Callable[[str], ModuleType]
) -> None:
    hooks = "hatchling.builders.hooks.plugin.interface"
    monkeypatch.setitem(sys.modules, hooks, SimpleNamespace(BuildHookInterface=object))  # type: ignore[arg-type]
    hook = script("engines/hatch_build.py")
    source = tmp_path / "some.cpp"
    source.write_text('#include <vector>\nextern "C" int some(int n) { return (int)std::vector<int>(n).size(); }\n')
    library = tmp_path / "some.so"
    command = ["g++", "-shared", "-fPIC", str(source), "-o", str(library)]
    other = compile_library(source, tmp_path / "libcudart.so.13")
    subprocess.run([*command, "-Wl,--no-as-needed", str(other)], check=True)
    with pytest.raises(ValueError, match=r"needs .*libcudart\.so\.13, wanted what manylinux allows"):
        hook.platform_tag(library)
    subprocess.run([*command, *hook.LINKED.split()], check=True)
    assert re.fullmatch(r"manylinux_2_\d\d_\w+", hook.platform_tag(library))


@pytest.mark.parametrize("content", [b"", b"not a library", b"\x7fELF"])
def test_a_file_that_is_no_library_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "some.so"
    path.write_bytes(content)
    with pytest.raises(BackendError, match=r"some\.so is not a library of kernels"):
        Kernels(path)


def test_another_library_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "other.cpp"
    source.write_text('extern "C" int something() { return 1; }\n')
    with pytest.raises(BackendError, match="is not a library of kernels"):
        Kernels(compile_library(source, tmp_path / "other.so"))


def test_a_library_of_another_version_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "newer.cpp"
    source.write_text('extern "C" int dgiqa_preprocess_abi() { return 999; }\n')
    with pytest.raises(BackendError, match=rf"speaks version 999, this package {room.ABI}; build it again"):
        Kernels(compile_library(source, tmp_path / "newer.so"))


def test_the_version_is_the_headers() -> None:
    header = (ENGINES / "preprocess.h").read_text(encoding="utf-8")
    assert re.findall(r"define DGIQA_PREPROCESS_ABI (\d+)", header) == [str(room.ABI)]


def test_the_structures_are_laid_out_as_in_c(tmp_path: Path) -> None:
    structures = {"dgiqa_image": "_Image", "dgiqa_depth_input_params": "_DepthInput", "dgiqa_depth": "_Depth"}
    structures |= {"dgiqa_reduce_params": "_Reduce", "dgiqa_tiles_params": "_Tiles", "dgiqa_nv12_params": "_Nv12"}
    source = tmp_path / "layout.cpp"
    lines = ['#include "preprocess.h"', "#include <cstddef>"]
    for c_name, name in structures.items():
        layout = getattr(room, name)
        lines.append(f"static_assert(sizeof({c_name}) == {room.ctypes.sizeof(layout)});")
        for field, *_ in layout._fields_:
            lines.append(f"static_assert(offsetof({c_name}, {field}) == {getattr(layout, field).offset});")
    source.write_text("\n".join(lines) + "\n")
    compile_library(source, tmp_path / "layout.so")


def test_levels_are_those_of_the_definition() -> None:
    rgb = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (256, 256, 3)).copy()
    tiles, near = preprocess.cut_tiles(rgb, np.ascontiguousarray(rgb[..., 0]), np.zeros((1, 2), np.int32), 256)
    np.testing.assert_array_equal(tiles[0, :, 0], room.normalised_levels())
    np.testing.assert_array_equal(near[0, :, 0], room.normalised_levels())


def test_what_the_kernels_refuse_is_an_error(kernels: Kernels) -> None:
    rgb, out = np.zeros((4, 4, 3), np.uint8), np.zeros((3, 8, 8), np.float32)
    with pytest.raises(BackendError, match="dgiqa_depth_input failed: an argument is out of range"):
        kernels.depth_input(image_of(rgb), (0, 8), out.ctypes.data)
    with pytest.raises(BackendError, match="dgiqa_depth_range failed"):
        kernels.depth_range(DepthMap(0, (4, 4), (4, 4), 0))
    with pytest.raises(BackendError, match="dgiqa_depth_input failed"):
        kernels.depth_input(Image(0, 4, 4, (12, 3, 1)), (8, 8), out.ctypes.data)
    with pytest.raises(ValueError, match="write float32 or float16, not float64"):
        kernels.depth_input(image_of(rgb), (8, 8), out.ctypes.data, dtype=np.float64)
