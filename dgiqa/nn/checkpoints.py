"""Weight files become networks, and networks become weight files.

    authors' .pth ──(tensors only, no code)──┐
                                             ├─► names as this package has them ─► network in eval mode
    our .safetensors ────────────────────────┘                                          │
              ▲────────────────────────── save_weights ◄────────────────────────────────┘

No pickle is ever executed: a file that holds anything but tensors is refused.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dgiqa.errors import WeightsError
from dgiqa.nn.depth_anything import ENCODERS, DepthAnything, DepthAnythingConfig
from dgiqa.nn.network import DGIQA, FULL, DGIQAConfig
from dgiqa.store import replacing

MAX_BYTES = 8 * 2**30  # six times the largest published file, 1.3 GB
WRAPPERS = ("state_dict", "model", "model_state_dict", "params")  # where training scripts put the weights
SHOWN = 4  # keys named in a message; the rest are counted

# Files that are often saved under a checkpoint's name, by first bytes.
_FOREIGN = (
    (rb"version https://git-lfs", "a Git LFS pointer; fetch the file itself with: git lfs pull"),
    (
        rb"\s*<(!doctype|html)",
        "a web page; the download probably asked for a login or a confirmation, open it in a browser",
    ),
    (rb"\s*\{", "JSON text"),
)


def load_dgiqa(path: str | Path, config: DGIQAConfig | None = None) -> DGIQA:
    """Load DGIQA weights, the authors' .pth or this package's safetensors, into a network in eval mode.

    config: sizes of the network; None takes those saved in the file, else the paper's.
    Stages of a Swin may be named as any timm since 0.9 names them, or as the original Swin does; a wrapper around the
    weights, "module." prefixes and stored constants (attention masks, position indices) are accepted.
    Raises WeightsError that names what is missing, unexpected or of another shape.
    """
    tensors, metadata = read_tensors(path)
    model = DGIQA(config or _saved_config(metadata, DGIQAConfig) or FULL)
    return _filled(model, tensors, path, "DGIQA")


def load_depth_anything(path: str | Path) -> DepthAnything:
    """Load Depth Anything V1 weights, the authors' .pth or this package's safetensors; sizes are found from the shapes.

    The V2 checkpoints have the same keys and shapes but mean another network (it reads other blocks), so a file named
    "v2" is refused. Raises WeightsError.
    """
    tensors, metadata = read_tensors(path)
    if re.search(r"(^|[^a-z0-9])v2([^a-z0-9]|$)", Path(path).name.lower()):
        raise WeightsError(
            f"{path} is named as Depth Anything V2, whose keys are the same but whose network is not; use a V1 file"
        )
    config = _saved_config(metadata, DepthAnythingConfig) or _encoder_of(tensors, path)
    return _filled(DepthAnything(config), tensors, path, "Depth Anything")


def load_weights(path: str | Path) -> nn.Module:
    """Load whichever of this package's networks a file holds, in eval mode: DGIQA, DepthAnything or SmallDepth.

    Raises WeightsError when it is none of them.
    """
    from dgiqa.nn.small_depth import load_small_depth

    loaders: dict[str, Any] = {
        "DGIQA": load_dgiqa,
        "Depth Anything": load_depth_anything,
        "small depth": load_small_depth,
    }
    tensors, _ = read_tensors(path)
    kind = looks_like(tensors)
    if kind not in loaders:
        raise WeightsError(f"{path} looks like {kind}; wanted one of {', '.join(loaders)}")
    return loaders[kind](str(path))


def save_weights(module: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a network's weights, its `config` (as JSON) and further metadata to a safetensors file, all or nothing."""
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    config: Any = getattr(module, "config", None)
    saved = {} if config is None else {"config": json.dumps(dataclasses.asdict(config))}
    with replacing(path) as partial:
        save_file(tensors, str(partial), metadata={**saved, **(metadata or {})})


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a .pth or .safetensors file: its tensors by name, without wrappers and prefixes, and its metadata.

    Only tensors are read, never code. Raises WeightsError for a file that is missing, too large, cut short, not a
    checkpoint, or that holds other things, NaN or infinity.
    """
    path = Path(path)
    head = _checked_head(path)
    is_safetensors = head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size
    content, metadata = _read_safetensors(path) if is_safetensors else (_read_pickle(path, head), {})
    tensors = {_without_prefix(name): value for name, value in _unwrapped(content, path).items()}
    spoiled = [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if spoiled:
        raise WeightsError(
            f"{path} holds NaN or infinity in {_some(spoiled)}; its training diverged, or the file is damaged"
        )
    return tensors, metadata


def looks_like(keys: Iterable[str]) -> str:
    """What a list of tensor names most looks like, in words for a message."""
    names = set(keys)
    signs = (
        ("depth_head.", "Depth Anything"),
        ("tcb1.", "DGIQA"),
        ("dilated_stack.", "DGIQA"),
        ("stages.", "small depth"),
        ("layers.0.blocks.", "a bare Swin backbone"),
        ("cls_token", "a bare vision transformer"),
        ("optimizer", "the state of a training run"),
    )
    return next((what for sign, what in signs if any(name.startswith(sign) for name in names)), "something else")


def _checked_head(path: Path) -> bytes:
    """The first bytes of a file that exists, is not too large and may be a checkpoint."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(64)
    except OSError as error:
        raise WeightsError(
            f"{path} cannot be read ({error.strerror}); give the path of a .pth or .safetensors file"
        ) from error
    if size > MAX_BYTES:
        raise WeightsError(
            f"{path} has {size:,} bytes, limit {MAX_BYTES:,}; the largest published weights are a sixth of that"
        )
    for pattern, what in _FOREIGN:
        if re.match(pattern, head, re.IGNORECASE):
            raise WeightsError(f"{path} is not a checkpoint but {what}")
    if not head:
        raise WeightsError(f"{path} is empty; fetch it again")
    return head


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise WeightsError(f"{path} is a damaged or cut short safetensors file ({error}); fetch it again") from error


def _read_pickle(path: Path, head: bytes) -> Any:
    """What torch.save wrote, if it is made of tensors and plain containers only."""
    if not head.startswith((b"PK\3\4", b"\x80")):
        raise WeightsError(
            f"{path} is not a checkpoint: it starts with {head[:16]!r}; wanted a .pth or .safetensors file"
        )
    try:
        if zipfile.is_zipfile(path):
            _check_unpacked_size(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        culprit = re.search(r"GLOBAL ([\w.]+)", str(error))
        named = f"({culprit[1]}) " if culprit else ""
        raise WeightsError(
            f"{path} holds Python objects {named}beside tensors, or is damaged; loading it could run code, so it is "
            "refused. Ask its author for the state dict alone, or for safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = str(error).split(". ")[0].splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path} is damaged or cut short ({reason}); fetch it again") from error


def _check_unpacked_size(path: Path) -> None:
    """Refuse an archive that is small on disk and huge in memory."""
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > MAX_BYTES:
        raise WeightsError(f"{path} unpacks to {size:,} bytes, limit {MAX_BYTES:,}")


def _unwrapped(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict inside what a training script saved."""
    if isinstance(content, Mapping):
        for wrapper in WRAPPERS:
            if isinstance(content.get(wrapper), Mapping):
                return _unwrapped(content[wrapper], path)
        if content and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
            return dict(content)
        others = [
            f"{name} ({type(value).__name__})" for name, value in content.items() if not isinstance(value, Tensor)
        ]
        raise WeightsError(
            f"{path} is no state dict: it holds {_some(others) or 'nothing'}; save model.state_dict() alone"
        )
    raise WeightsError(f"{path} holds a {type(content).__name__}; wanted a state dict of names and tensors")


def _without_prefix(name: str) -> str:
    """Drop what DataParallel and torch.compile put before every name."""
    return re.sub(r"^(module\.|_orig_mod\.)+", "", name)


def _filled(model: Any, tensors: Mapping[str, Tensor], path: str | Path, what: str) -> Any:
    """The network with these tensors in it, in eval mode."""
    ours = {_canonical(name): name for name in model.state_dict()}
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
        found = "; ".join(f"{len(keys)} {problem}: {_some(keys)}" for problem, keys in problems.items() if keys)
        seen = looks_like(tensors)
        if seen != what:
            raise WeightsError(f"{path} is not {what}, it looks like {seen} ({found})")
        raise WeightsError(f"{path} does not fit this {what} network ({found}); was it made with other sizes?")
    model.load_state_dict({ours[name]: value for name, value in theirs.items()}, strict=False)
    return model.eval()


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Canonical names; a downsampling stored at a Swin stage's end moves to the start of the next stage."""
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
    """What older timm stored and the network makes itself, and the classifier that `features_only` leaves out."""
    return name.endswith((".attn_mask", ".relative_position_index")) or bool(
        re.match(r"(depth_)?backbone\.(norm|head)\.", name)
    )


def _encoder_of(tensors: Mapping[str, Tensor], path: str | Path) -> str:
    token = tensors.get("pretrained.cls_token")
    widths = {config.width: name for name, config in ENCODERS.items()}
    if token is None:
        raise WeightsError(
            f"{path} is not Depth Anything, it looks like {looks_like(tensors)} (pretrained.cls_token is missing)"
        )
    if token.shape[-1] not in widths:
        known = ", ".join(f"{name} ({width})" for width, name in widths.items())
        raise WeightsError(f"{path} has an encoder {token.shape[-1]} wide; known are {known}")
    return widths[token.shape[-1]]


def _saved_config(metadata: Mapping[str, str], kind: Any) -> Any:
    """The configuration that was saved beside the weights, or None if there is none or it is another network's."""
    try:
        return kind(**_with_tuples(json.loads(metadata["config"])))
    except (KeyError, TypeError, ValueError):
        return None


def _with_tuples(value: Any) -> Any:
    """JSON has only lists; configurations have only tuples."""
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(_with_tuples(item) for item in value) if isinstance(value, list) else value


def _some(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
