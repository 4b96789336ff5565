"""The names, types and shapes that a network's inputs must have, whichever engine runs it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Input(NamedTuple):
    """An input. dtype: None if numpy has no such type. shape: sizes, and names or None for axes of any size."""

    dtype: np.dtype[Any] | None
    shape: tuple[int | str | None, ...]


def check(inputs: Mapping[str, Input], feeds: Mapping[str, Any], kind: Any = np.ndarray) -> None:
    """ValueError unless these are arrays of this kind with the inputs' names, types and sizes."""
    if feeds.keys() != inputs.keys():
        raise ValueError(f"got inputs {sorted(feeds)}, wanted {sorted(inputs)}")
    for name, array in feeds.items():
        dtype, shape = inputs[name]
        if not isinstance(array, kind) or dtype is None or array.dtype != dtype:
            got = array.dtype if isinstance(array, kind) else type(array).__name__
            raise ValueError(f"input {name!r} is {got}, wanted an array of {dtype}")
        wrong = [want for want, have in zip(shape, array.shape, strict=False) if isinstance(want, int) and want != have]
        if wrong or len(array.shape) != len(shape):
            raise ValueError(f"input {name!r} has shape {list(array.shape)}, wanted {list(shape)}")
