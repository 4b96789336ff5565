"""The extras of this package, and the command that installs them."""

import importlib
from typing import Any

from dgiqa.errors import BackendError

# The extras of pyproject.toml, which says what each is for, except those for developing the project itself.
EXTRAS = frozenset(
    (
        *("cpu", "gpu", "openvino", "tensorrt", "rtx", "cuda", "nvml", "pycuda", "build", "calibrate", "video", "heic"),
        *("raw", "table", "serve", "s3", "gs", "az", "hf", "ray", "torch", "export", "train"),
    )
)


def install(*extras: str) -> str:
    """The command that installs these extras: pip install "dgiqa-rt[cpu,torch]"."""
    assert EXTRAS.issuperset(extras), extras
    return f'pip install "dgiqa-rt[{",".join(extras)}]"'


def needs(what: str, package: str, *extras: str, error: ImportError | None = None) -> str:
    """An error's sentence: WHAT needs PACKAGE (why it cannot be imported); the command that installs it."""
    why = f" ({error})" if error else ""
    return f"{what} needs {package}{why}; {install(*extras)}"


def load(
    module: str, what: str, package: str, *extras: str, kind: type[Exception] = BackendError, instead: str = ""
) -> Any:
    """Import a module of an optional package. If that fails, raise `kind` with `needs`' sentence and `instead`."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise kind(needs(what, package, *extras, error=error) + (f", or {instead}" if instead else "")) from error
