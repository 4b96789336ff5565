"""What pip installed here, and which of it gets in each other's way. Imports nothing that could be broken."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable

# Wheels that install the same folder: the one installed last wins, and removing one breaks the other.
RIVALS = {
    "onnxruntime": re.compile(r"(ort-nightly|onnxruntime)(-(gpu|directml|openvino|rocm|migraphx|qnn|silicon))?"),
    "cv2": re.compile(r"opencv(-contrib)?-python(-headless)?"),
}


def installed_wheels() -> dict[str, str]:
    """Name (lower case, dashes) -> version of everything pip installed here."""
    wheels = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]  # None for a damaged installation
        if name:
            wheels[re.sub(r"[-_.]+", "-", name).lower()] = distribution.version
    return wheels


def rival_wheels(folder: str, wheels: Iterable[str]) -> list[str]:
    """Those of the wheels that install this folder, sorted; more than one is a clash."""
    return sorted(name for name in wheels if RIVALS[folder].fullmatch(name))
