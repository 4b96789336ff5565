"""The preprocessing kernels compiled for the CPU: the same source as on a GPU, on host memory."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dgiqa.runtime.kernels import Image, Kernels

ENGINES = Path(__file__).parent.parent / "engines"


def compile_library(source: Path, path: Path) -> Path:
    """Compile a .cu file of ours, or any C++ file, without CUDA."""
    compiler = shutil.which("c++") or pytest.skip("needs a C++ compiler to emulate the kernels")
    flags = ["-x", "c++", "-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-shared", f"-I{ENGINES}"]
    subprocess.run([compiler, *flags, str(source), "-o", str(path)], check=True)
    return path


def emulated_kernels(folder: Path) -> Kernels:
    """Pointers are numpy's."""
    return Kernels(compile_library(ENGINES / "preprocess.cu", folder / "libdgiqa_emulated.so"))


def image_of(array: NDArray[Any]) -> Image:
    """A numpy image [H,W,3] of any strides as the kernels read it."""
    y, x, c = array.strides
    return Image(array.ctypes.data, array.shape[0], array.shape[1], (y, x, c))


def poisoned(shape: tuple[int, ...], dtype: Any = np.float32) -> NDArray[Any]:
    """An output in which a value that was not written is NaN."""
    return np.full(shape, np.nan, dtype)
