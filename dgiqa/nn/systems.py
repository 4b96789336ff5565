"""Quality networks that take only a picture: a description of each, for loading, training and import.

A network's class defines its inputs and how they are made: `inputs`, `preprocess`, `config.image_size`; `freeze()`, if
it has one, stops layers from learning. The description says how its files are recognised and read, and how it is
trained. To add a network, write its module and tests, and one line: SYSTEMS["name"] = System(...).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from dgiqa.spec import QUALITY_DEPTH, QUALITY_RGB


@dataclass(frozen=True)
class System:
    """title: the name of its class. make: makes an untrained network. load: loads one from a file, in eval mode.

    signs: beginnings of tensor names that no other network's file has. training: TrainConfig's fields by name.
    """

    title: str
    make: Callable[[], nn.Module]
    load: Callable[[str | Path], nn.Module]
    signs: tuple[str, ...]
    training: Mapping[str, Any] = field(default_factory=dict)


SYSTEMS: dict[str, System] = {}  # by the name that `--network` takes


def system_of(network: nn.Module) -> System | None:
    """The description of a network, by its class's name; None for networks that take a depth image."""
    return next((system for system in SYSTEMS.values() if system.title == type(network).__name__), None)


def takes(network: nn.Module) -> tuple[str, ...]:
    """Names of a quality network's inputs, in the order of its arguments."""
    return getattr(network, "inputs", (QUALITY_RGB, QUALITY_DEPTH))
