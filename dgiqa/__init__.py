"""Depth-guided no-reference image quality: one image in, one score with its evidence out.

    from dgiqa import Scorer
    print(Scorer("small").score("photo.jpg").value)  # 0 worst … 1 best

Importing the package loads nothing; each name below is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from dgiqa._version import __version__

if TYPE_CHECKING:
    from dgiqa.bundle import Bundle, list_bundles, load_bundle
    from dgiqa.compare import Comparison
    from dgiqa.errors import (
        BackendError,
        BundleError,
        DgiqaError,
        EngineError,
        ImageError,
        ParityError,
        WeightsError,
    )
    from dgiqa.explain import Explanation
    from dgiqa.score import Failure, Score
    from dgiqa.scorer import Scorer

__all__ = [
    "BackendError",
    "Bundle",
    "BundleError",
    "Comparison",
    "DgiqaError",
    "EngineError",
    "Explanation",
    "Failure",
    "ImageError",
    "ParityError",
    "Score",
    "Scorer",
    "WeightsError",
    "__version__",
    "list_bundles",
    "load_bundle",
]

_HOMES = {
    "dgiqa.bundle": ("Bundle", "list_bundles", "load_bundle"),
    "dgiqa.compare": ("Comparison",),
    "dgiqa.errors": (
        *("BackendError", "BundleError", "DgiqaError", "EngineError", "ImageError", "ParityError", "WeightsError"),
    ),
    "dgiqa.explain": ("Explanation",),
    "dgiqa.score": ("Failure", "Score"),
    "dgiqa.scorer": ("Scorer",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'dgiqa' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
