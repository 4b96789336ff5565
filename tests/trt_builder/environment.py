"""Packages from PyPI become a folder in which TensorRT's builder runs on a machine without a GPU, and its types.

    python tests/trt_builder/environment.py FOLDER

TensorRT-RTX is of the TensorRT 11 generation and compiles engines on a CPU. Its libraries and TensorRT's bindings meet
through stand_in.c, which gcc compiles here. The pairing is unofficial and for verification alone: nothing outside these
tests knows it, nothing of it is passed on.

    FOLDER/site       the packages, apart from the interpreter's own
    FOLDER/lib        the stand-in libraries, links to TensorRT-RTX
    FOLDER/cuda       cuda-python, and FOLDER/driver a stand-in for the driver below it (libcuda.c)
    FOLDER/stubs/M    the types of TensorRT M (10, 11) as the module `tensorrt`, for a type checker
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

BUILDER = ("onnxruntime-ep-nv-tensorrt-rtx-cu13==0.5.0", "tensorrt_cu13_bindings==11.4.0.106")
DRIVER = ("cuda-bindings==13.5.0", "cuda-pathfinder==1.9.0")
STUBGEN = "pybind11-stubgen==3.0.0"
BINDINGS = {"10": "tensorrt_cu13_bindings==10.16.1.11", "11": "tensorrt_cu13_bindings==11.4.0.106"}
LIBRARIES = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")
# What the generated types hold that no checker can read, or lack that the Python package around them has.
REPAIRS = (
    (r"\bin: ", "in_: "),  # a parameter named by a keyword
    (r"channel_axis: typing.SupportsInt\)", "channel_axis: typing.SupportsInt = ...)"),  # after ones with a default
    (r"(class IHostMemory:\n)", r"\1    def __buffer__(self, flags: int) -> memoryview: ...\n"),  # see its description
    (r"\A", "__version__: str\n"),
)
HERE = Path(__file__).resolve().parent


def prepare(folder: Path) -> None:
    """Make what is missing in the folder. Raises CalledProcessError where pip, gcc or the stub generator fails."""
    folder = folder.resolve()
    if (folder / "complete").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _install(folder / "site", *BUILDER)
    (folder / "site" / "tensorrt.py").write_text(
        "import sys\n\nimport tensorrt_bindings\n\nsys.modules[__name__] = tensorrt_bindings\n"
    )
    _libraries(folder)
    _install(folder / "cuda", *DRIVER)
    (folder / "driver").mkdir()
    _compile(HERE / "libcuda.c", folder / "driver" / "libcuda.so.1")
    _install(folder / "stubgen", STUBGEN)
    for major, package in BINDINGS.items():
        _install(folder / f"bindings{major}", package)
        _stubs(folder, major)
    (folder / "complete").touch()


def variables(folder: Path) -> dict[str, str]:
    """The environment in which `import tensorrt` is the builder: for a child process, never for this one."""
    rtx = folder.resolve() / "site" / "onnxruntime_ep_nv_tensorrt_rtx"
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder.resolve() / "site"), str(HERE.parent.parent)]),
        "LD_LIBRARY_PATH": str(folder.resolve() / "lib"),
        "DGIQA_TEST_NVINFER": str(_one(rtx, "libtensorrt_rtx.so.*")),
        "DGIQA_TEST_NVONNXPARSER": str(_one(rtx, "libtensorrt_onnxparser_rtx.so.*")),
    }


def driver_variables(folder: Path) -> dict[str, str]:
    """The environment in which cuda-python finds the driver of libcuda.c: for a child process, as above."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder.resolve() / "cuda"), str(HERE.parent.parent)]),
        "LD_LIBRARY_PATH": str(folder.resolve() / "driver"),
    }


def _install(target: Path, *packages: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:"]
    subprocess.run([*command, "--target", str(target), *packages], check=True)


def _libraries(folder: Path) -> None:
    """The stand-ins under the names that the bindings of each major look for, and TensorRT-RTX as its parser does."""
    lib = folder / "lib"
    lib.mkdir()
    for major in BINDINGS:
        for name in LIBRARIES:
            _compile(HERE / "stand_in.c", lib / f"{name}.so.{major}")
    rtx = _one(folder / "site" / "onnxruntime_ep_nv_tensorrt_rtx", "libtensorrt_rtx.so.*")
    for link in ("libtensorrt_rtx.so", "libtensorrt_rtx.so.1"):
        (lib / link).symlink_to(rtx)


def _compile(source: Path, library: Path) -> None:
    gcc = ["gcc", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", str(source), "-ldl"]
    subprocess.run([*gcc, f"-Wl,-soname,{library.name}", "-o", str(library)], check=True)


def _stubs(folder: Path, major: str) -> None:
    """The bindings' types, as far as a strict checker can read them."""
    out = folder / "stubs" / major
    paths = [str(folder / f"bindings{major}"), str(folder / "stubgen")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "LD_LIBRARY_PATH": str(folder / "lib")}
    command = [sys.executable, "-m", "pybind11_stubgen", "tensorrt_bindings.tensorrt", "-o", str(out)]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    text = _one(out / "tensorrt_bindings", "tensorrt*").read_text()
    for pattern, replacement in REPAIRS:
        text, found = re.subn(pattern, replacement, text)
        if not found:
            raise ValueError(f"the types of TensorRT {major} hold no {pattern!r} any more; look at REPAIRS again")
    package = out / "tensorrt"
    package.mkdir()
    (package / "__init__.pyi").write_text(text)


def _one(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise FileNotFoundError(f"{folder} holds {[p.name for p in found]}, wanted one {pattern}; make it anew")
    return found[0]


if __name__ == "__main__":
    prepare(Path(sys.argv[1]))
