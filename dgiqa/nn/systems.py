"""Quality networks that see a picture alone: one description of each, which loading, training and import go by.

A network's class says what it takes and how that is made: `inputs`, `preprocess`, `config.image_size`; `freeze()`, if
it has one, stops layers from learning. What is here says how a file of it is told and read, and how it is trained. A
further network is its own module, its tests, and one line: SYSTEMS["name"] = System(...).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from dgiqa.spec import QUALITY_DEPTH, QUALITY_RGB


@dataclass(frozen=True)
class System:
    """title: what its class is called. make: a network with first weights. load: weights from a file, in eval mode.

    signs: beginnings of tensor names that no other network's file has. training: fields of TrainConfig by its name.
    """

    title: str
    make: Callable[[], nn.Module]
    load: Callable[[str | Path], nn.Module]
    signs: tuple[str, ...]
    training: Mapping[str, Any] = field(default_factory=dict)


SYSTEMS: dict[str, System] = {}  # by the name that `--network` takes


def system_of(network: nn.Module) -> System | None:
    """The description of a network, by its class's name; None for those that take a depth image."""
    return next((system for system in SYSTEMS.values() if system.title == type(network).__name__), None)


def takes(network: nn.Module) -> tuple[str, ...]:
    """Names of a quality network's inputs, in the order of its arguments."""
    return getattr(network, "inputs", (QUALITY_RGB, QUALITY_DEPTH))
