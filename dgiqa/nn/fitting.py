"""Load tensors with any spelling of their names into a network of the saved sizes, if they fit it."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dgiqa.errors import WeightsError
from dgiqa.nn.systems import SYSTEMS
from dgiqa.nn.weights import few

N = TypeVar("N", bound=nn.Module)

LARGEST_SIZE = 4096  # in a saved configuration: channels, blocks, pixels; the largest published size is 1024
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.]{1,100}")
_SOURCES = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}  # of timm


def looks_like(keys: Iterable[str]) -> str:
    """The kind of file that a list of tensor names looks like, in words for a message."""
    names = set(keys)
    signs = (
        ("depth_head.", "Depth Anything"),
        ("neck.fusion_stage.", "Depth Anything"),
        ("fc_reference.", "DGIQA-FR"),
        *((sign, system.title) for system in SYSTEMS.values() for sign in system.signs),
        ("tcb1.", "DGIQA"),
        ("dilated_stack.", "DGIQA"),
        ("stages.", "small depth"),
        ("layers.0.blocks.", "a bare Swin backbone"),
        ("cls_token", "a bare vision transformer"),
        ("optimizer", "the state of a training run"),
    )
    return next((what for sign, what in signs if any(name.startswith(sign) for name in names)), "something else")


def network_of(make: Callable[[], N], tensors: Mapping[str, Tensor], path: str | Path, what: str) -> N:
    """The network of make() with these tensors, in eval mode. what: the network's name, in words.

    Its sizes may come from the file, so nothing is allocated until they fit the tensors. Raises WeightsError.
    """
    try:
        with torch.device("meta"):
            outline = make()
    except Exception as error:  # networks raise many types for senseless sizes
        raise WeightsError(
            f"{path} comes with sizes that make no {what} network ({error}); give or save others"
        ) from error
    fitting = _check_fit(outline, tensors, path, what)
    network = make()
    ours = {_canonical(name): name for name in network.state_dict()}
    network.load_state_dict({ours[name]: value for name, value in fitting.items()}, strict=False)
    return network.eval()


def saved_config(metadata: Mapping[str, str], kind: Any) -> Any:
    """The configuration saved with the weights, or None if there is none or it is another network's.

    Fields that only other versions of the network have are ignored if they are off.
    WeightsError if it holds more than sizes: timm also takes names of files, and of models on a hub.
    """
    odd: list[str] = []

    def checked(value: Any, name: str = "") -> Any:
        """The value, with JSON's lists turned back into tuples."""
        if isinstance(value, dict):
            return {key: checked(held, key) for key, held in value.items()}
        if isinstance(value, list):
            return tuple(checked(held, name) for held in value)
        if name in _SOURCES or not _is_size(value):
            odd.append(f"{name}={value!r}")
        return value

    try:
        saved = json.loads(metadata["config"])
        saved = {name: value for name, value in saved.items() if value or name in kind.__dataclass_fields__}
        config = kind(**checked(saved))
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return None
    if odd:
        raise WeightsError(f"a network was saved with {few(odd)}, which are neither sizes nor names; save it again")
    return config


def _check_fit(model: Any, tensors: Mapping[str, Tensor], path: str | Path, what: str) -> dict[str, Tensor]:
    """The tensors by canonical name, if they are the network's; otherwise WeightsError, which names the misfits."""
    theirs = {name: value for name, value in _renamed(tensors).items() if not _is_constant(name)}
    wanted = {_canonical(name): tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in theirs.items()}
    problems = {
        # The counter of batch normalisation is not used at inference; the oldest checkpoints have none.
        "missing": [name for name in wanted if name not in given and not name.endswith("num_batches_tracked")],
        "unexpected": [name for name in given if name not in wanted],
        "of another shape": [
            f"{n} is {given[n]}, wanted {wanted[n]}" for n in wanted if n in given and given[n] != wanted[n]
        ],
    }
    if any(problems.values()):
        found = "; ".join(f"{len(keys)} {problem}: {few(keys)}" for problem, keys in problems.items() if keys)
        seen = looks_like(tensors)
        if seen != what:
            raise WeightsError(f"{path} is not {what}, it looks like {seen} ({found})")
        raise WeightsError(f"{path} does not fit this {what} network ({found}); was it made with other sizes?")
    return theirs


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by canonical name; a downsampling stored at a Swin stage's end moves to the start of the next stage."""
    renamed = {_canonical(name): value for name, value in tensors.items()}
    if not any(re.match(r"(depth_)?backbone\.layers_0\.downsample\.", name) for name in renamed):
        return renamed
    pattern = re.compile(r"^((?:depth_)?backbone\.layers_)(\d)(\.downsample\.)")
    return {pattern.sub(lambda m: f"{m[1]}{int(m[2]) + 1}{m[3]}", name): value for name, value in renamed.items()}


def _canonical(name: str) -> str:
    """One name for timm's three spellings: `backbone.layers.0.`, `backbone.layers_0.`, `backbone.model.layers.0.`."""
    name = re.sub(r"^((?:depth_)?backbone\.)model\.", r"\1", name)
    return re.sub(r"^((?:depth_)?backbone\.layers)[._](\d)", r"\1_\2", name)


def _is_constant(name: str) -> bool:
    """Whether older timm stored this and the network makes it itself, or it is in the classifier, which is left out."""
    return name.endswith((".attn_mask", ".relative_position_index")) or bool(
        re.match(r"(depth_)?backbone\.(norm|head)\.", name)
    )


def _is_size(value: Any) -> bool:
    """Whether a value is a switch, a number that a network may have, or a plain name."""
    if isinstance(value, str):
        return _PLAIN_NAME.fullmatch(value) is not None
    return value is None or (isinstance(value, int | float) and abs(value) <= LARGEST_SIZE)
