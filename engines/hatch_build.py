"""Compile the kernels for the wheel, and name the oldest glibc that it runs with.

    engines/*.cu ─► CMake, nvcc ─► libdgiqa_kernels.so, CUDA's runtime in it ─► wheel, library.json

DGIQA_ARCHITECTURES: fewer architectures, as in CMAKE_CUDA_ARCHITECTURES. DGIQA_KERNELS_LIBRARY: a library built before.
CMAKE_ARGS: further options for CMake.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LIBRARY = "libdgiqa_kernels.so"
# Libraries that manylinux allows, none of CUDA's. C++'s runtime is not linked in, as it would need a newer glibc.
ALLOWED = re.compile(r"(libc|libm|libpthread|libdl|librt|libgcc_s|libstdc\+\+|ld-linux-.*)\.so\.\d+")
LINKED = "-Wl,--exclude-libs,ALL -Wl,--strip-all"


class Kernels(BuildHookInterface):  # type: ignore[misc]
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        named = os.environ.get("DGIQA_KERNELS_LIBRARY")
        library = Path(named).resolve() if named else compiled(root.parent, root / "build")
        record = root / "build" / "library.json"
        record.parent.mkdir(exist_ok=True)
        digest = hashlib.sha256(library.read_bytes()).hexdigest()
        record.write_text(json.dumps({"file": LIBRARY, "sha256": digest}) + "\n")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform_tag(library)}"
        build_data["force_include"] |= {
            str(library): f"dgiqa_rt_kernels/{LIBRARY}",
            str(record): "dgiqa_rt_kernels/library.json",
            str(root.parent / "LICENSE"): "dgiqa_rt_kernels/LICENSE",
        }


def compiled(project: Path, build: Path) -> Path:
    """Build the library for all architectures, and return its path."""
    options = [f"-DCMAKE_SHARED_LINKER_FLAGS={LINKED}", "-DDGIQA_CUDA=ON"]
    if architectures := os.environ.get("DGIQA_ARCHITECTURES"):
        options.append(f"-DDGIQA_ARCHITECTURES={architectures}")
    options += shlex.split(os.environ.get("CMAKE_ARGS", ""))
    subprocess.run(["cmake", "-S", str(project), "-B", str(build), *options], check=True)
    subprocess.run(["cmake", "--build", str(build), "--target", "dgiqa_kernels"], check=True)
    return build / LIBRARY


def platform_tag(library: Path) -> str:
    """manylinux_2_N_<machine> for the newest glibc symbol. ValueError if the library needs ones manylinux lacks."""
    command = ["readelf", "--wide", "--dynamic", "--version-info", str(library)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", told)
    if foreign := [name for name in needed if not ALLOWED.fullmatch(name)]:
        raise ValueError(f"{library} needs {', '.join(foreign)}, wanted what manylinux allows; link it statically")
    minor = max([17, *(int(number) for number in re.findall(r"Name: GLIBC_2\.(\d+)", told))])
    return f"manylinux_2_{minor}_{platform.machine()}"
