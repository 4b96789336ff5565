"""Packages from PyPI become a folder in which TensorRT's builder runs on a machine without a GPU, and its types.

    python tests/trt_builder/environment.py FOLDER

TensorRT-RTX is of the TensorRT 11 generation and compiles engines on a CPU. Its libraries and TensorRT's bindings meet
through stand_in.c, which gcc compiles here. The pairing is unofficial and for verification alone: nothing outside these
tests knows it, nothing of it is passed on.

    FOLDER/site       the packages, apart from the interpreter's own
    FOLDER/lib        the stand-in libraries, links to TensorRT-RTX
    FOLDER/cuda-V     cuda-python, the oldest and the newest we admit; FOLDER/driver-3 a stand-in for the driver below
    FOLDER/stubs/M    the types of TensorRT M (10.12, 10, 11) as the module `tensorrt`, for a type checker
    FOLDER/ort-V      the oldest onnxruntime we admit, for all and for TensorRT-RTX
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

BUILDER = ("onnxruntime-ep-nv-tensorrt-rtx-cu13==0.5.0", "tensorrt_cu13_bindings==11.4.0.106")
CUDA = {
    "12.9.4": ("cuda-bindings==12.9.4", "cuda-core==1.0.0", "cuda-pathfinder==1.9.0"),
    "13.5.0": ("cuda-bindings==13.5.0", "cuda-core==1.2.2", "cuda-pathfinder==1.9.0"),
}
ONNXRUNTIMES = ("1.20.0", "1.24.1")  # of the extras gpu, and rtx
STUBGEN = "pybind11-stubgen==3.0.0"
BINDINGS = {
    "10.12": "tensorrt_cu12_bindings==10.12.0.36",
    "10": "tensorrt_cu13_bindings==10.16.1.11",
    "11": "tensorrt_cu13_bindings==11.4.0.106",
}
LIBRARIES = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")
# What the generated types hold that no checker can read, or lack that the Python package around them has.
REPAIRS = (
    (r"\bin: ", "in_: "),  # a parameter named by a keyword
    (r"channel_axis: (int|typing.SupportsInt)\)", r"channel_axis: \1 = ...)"),  # after ones with a default
    (r"(class IHostMemory:\n)", r"\1    def __buffer__(self, flags: int) -> memoryview: ...\n"),  # see its description
    (r"\A", "__version__: str\n"),
    (r"\Z", "\ndef nptype(trt_type: DataType) -> type: ...\n"),
)
HERE = Path(__file__).resolve().parent


def prepare(folder: Path) -> None:
    """Make what is missing in the folder. Raises CalledProcessError where pip, gcc or the stub generator fails."""
    folder = folder.resolve()
    (folder / "stubs").mkdir(parents=True, exist_ok=True)
    _part(folder / "site", _site)
    _part(folder / "lib", lambda lib: _libraries(folder, lib))
    _part(folder / "driver-3", lambda driver: _compile(HERE / "libcuda.c", driver / "libcuda.so.1"))
    for version, packages in CUDA.items():
        _part(folder / f"cuda-{version}", partial(_install, packages))
    for version in ONNXRUNTIMES:
        _part(folder / f"ort-{version}", partial(_install, [f"onnxruntime=={version}"]))
    _part(folder / "stubgen", partial(_install, [STUBGEN]))
    for version, package in BINDINGS.items():
        _part(folder / f"bindings{version}", partial(_install, [package]))
        _part(folder / "stubs" / version, partial(_stubs, folder, version))


def _part(path: Path, make: Callable[[Path], None]) -> None:
    """A folder that is there whole or not at all, made if it is not."""
    if path.exists():
        return
    unfinished = path.with_name(f"{path.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    make(unfinished)
    unfinished.rename(path)


def variables(folder: Path) -> dict[str, str]:
    """The environment in which `import tensorrt` is the builder: for a child process, never for this one."""
    rtx = folder.resolve() / "site" / "onnxruntime_ep_nv_tensorrt_rtx"
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder.resolve() / "site"), str(HERE.parent.parent)]),
        "LD_LIBRARY_PATH": str(folder.resolve() / "lib"),
        "DGIQA_TEST_NVINFER": str(_one(rtx, "libtensorrt_rtx.so.*.*.*")),
        "DGIQA_TEST_NVONNXPARSER": str(_one(rtx, "libtensorrt_onnxparser_rtx.so.*.*.*")),
    }


def driver_variables(folder: Path, version: str) -> dict[str, str]:
    """The environment in which cuda-python finds the driver of libcuda.c: for a child process, as above."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder.resolve() / f"cuda-{version}"), str(HERE.parent.parent)]),
        "LD_LIBRARY_PATH": str(folder.resolve() / "driver-3"),
    }


def _install(packages: Sequence[str], target: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:"]
    subprocess.run([*command, "--target", str(target), *packages], check=True)


def _site(site: Path) -> None:
    _install(BUILDER, site)
    (site / "tensorrt.py").write_text(
        "import sys\n\nimport tensorrt_bindings\n\nsys.modules[__name__] = tensorrt_bindings\n"
    )


def _libraries(folder: Path, lib: Path) -> None:
    """The stand-ins under the names that the bindings of each major look for, and TensorRT-RTX as its parser does."""
    for major in ("10", "11"):
        for name in LIBRARIES:
            _compile(HERE / "stand_in.c", lib / f"{name}.so.{major}")
    rtx = _one(folder / "site" / "onnxruntime_ep_nv_tensorrt_rtx", "libtensorrt_rtx.so.*.*.*")
    for link in ("libtensorrt_rtx.so", "libtensorrt_rtx.so.1"):
        (lib / link).symlink_to(rtx)


def _compile(source: Path, library: Path) -> None:
    gcc = ["gcc", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", str(source), "-ldl"]
    subprocess.run([*gcc, f"-Wl,-soname,{library.name}", "-o", str(library)], check=True)


def _stubs(folder: Path, version: str, out: Path) -> None:
    """The bindings' types, as far as a strict checker can read them."""
    paths = [str(folder / f"bindings{version}"), str(folder / "stubgen")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "LD_LIBRARY_PATH": str(folder / "lib")}
    command = [sys.executable, "-m", "pybind11_stubgen", "tensorrt_bindings.tensorrt", "-o", str(out)]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    text = _one(out / "tensorrt_bindings", "tensorrt*").read_text()
    for pattern, replacement in REPAIRS:
        text, found = re.subn(pattern, replacement, text)
        if not found:
            raise ValueError(f"the types of TensorRT {version} hold no {pattern!r} any more; look at REPAIRS again")
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
