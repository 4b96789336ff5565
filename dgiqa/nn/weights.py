"""Read a weight file as tensors by name, and write a network's tensors as a weight file. No code in a file runs.

.pth (tensors only) ──┐
.safetensors ─────────┴─► names without wrappers and prefixes -> finite tensors, metadata
"""

import dataclasses
import json
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dgiqa.errors import WeightsError
from dgiqa.store import replacing

MAX_BYTES = 8 * 2**30  # six times the largest published file, 1.3 GB
# Keys under which training scripts put the weights; the first one present counts, weights before moving averages.
WRAPPERS = ("state_dict", "model", "model_state_dict", "params", "net", "network", "weights", "params_ema", "ema")
IN_FOLDER = ("model.safetensors", "pytorch_model.bin")  # files that transformers' save_pretrained writes
SHOWN = 4  # names in a message; the rest are counted
LONGEST = 100  # letters of a name in a message

# Files often saved under a checkpoint's name, by their first bytes.
_FOREIGN = (
    (rb"version https://git-lfs", "a Git LFS pointer; fetch the file itself with: git lfs pull"),
    (
        rb"\s*<(!doctype|html)",
        "a web page; the download probably asked for a login or a confirmation, open it in a browser",
    ),
    (rb"\s*\{", "JSON text"),
)


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a .pth or .safetensors file: its tensors by name, without wrappers and prefixes, and its metadata.

    path: the file, or a folder as transformers saves one. Only tensors are read, never code.
    Raises WeightsError if the file is missing, too large, cut short or not a checkpoint, or if it holds other objects,
    NaN or infinity.
    """
    path = file_in(path)
    head = _checked_head(path)
    fits = int.from_bytes(head[:8], "little") < path.stat().st_size or path.suffix == ".safetensors"  # else cut short
    is_safetensors = head[8:9] == b"{" and fits
    content, metadata = _read_safetensors(path) if is_safetensors else (_read_pickle(path, head), {})
    tensors = _without_prefixes(_unwrapped(content, path))
    _check_tensors(tensors, path)
    return tensors, metadata


def read_state(path: str | Path) -> Any:
    """Read a file of torch.save, if it holds only tensors and plain containers. Raises WeightsError."""
    path = Path(path)
    return _read_pickle(path, _checked_head(path))


def save_weights(module: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a network's weights, its `config` (as JSON) and further metadata to a safetensors file, all or nothing."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    config: Any = getattr(module, "config", None)
    saved = {} if config is None else {"config": json.dumps(dataclasses.asdict(config))}
    with replacing(path) as partial:
        save_file(tensors, str(partial), metadata={**saved, **(metadata or {})})


def file_in(path: str | Path) -> Path:
    """The weight file itself, or the one in a folder that transformers saved. Raises WeightsError if it has none."""
    path = Path(path)
    if not path.is_dir():
        return path
    found = [path / name for name in IN_FOLDER if (path / name).is_file()]
    if not found:
        raise WeightsError(f"{path} cannot be read: a folder without {' or '.join(IN_FOLDER)}; name a weight file")
    return found[0]


def few(names: Sequence[Any]) -> str:
    """The first names of a list, shortened for a message: a file may hold any number, of any length."""
    shown = [name if len(name) <= LONGEST else f"{name[:LONGEST]}..." for name in map(str, names[:SHOWN])]
    more = len(names) - SHOWN
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def renamed(name: str, rules: Iterable[tuple[str, str]]) -> str:
    """Apply the first rule that fits, if any, to a name. rules: (pattern of a name's beginning, replacement)."""
    made = (re.subn(rf"^{pattern}", replacement, name) for pattern, replacement in rules)
    return next((new for new, count in made if count), name)


def _checked_head(path: Path) -> bytes:
    """The first bytes of a file that exists, is not too large and may be a checkpoint."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(64)
    except (OSError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise WeightsError(f"{path} cannot be read ({reason}); give the path of a .pth or .safetensors file") from error
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
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except Exception as error:  # its own error, and torch's for a type of number that this version lacks
        raise _damaged(path, error) from error


def _read_pickle(path: Path, head: bytes) -> Any:
    if not head.startswith((b"PK\3\4", b"\x80")):
        raise WeightsError(
            f"{path} is not a checkpoint: it starts with {head[:16]!r}; wanted a .pth or .safetensors file"
        )
    try:
        if head.startswith(b"PK") or zipfile.is_zipfile(path):
            _check_archive(path)
        with torch.serialization.safe_globals(_numpy_numbers()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except pickle.UnpicklingError as error:
        culprit = re.search(r"GLOBAL ([\w.]+)", str(error))
        named = f"({culprit[1]}) " if culprit else ""
        raise WeightsError(
            f"{path} holds Python objects {named}beyond tensors, or is damaged; loading it could run code, so it is "
            "refused. Ask its author for only the state dict, or for safetensors"
        ) from error
    except Exception as error:  # torch interprets the pickle itself, and a damaged one trips it anywhere
        raise _damaged(path, error) from error


def _numpy_numbers() -> list[Any]:
    """The types needed to unpickle NumPy numbers, under the names of NumPy 1 and 2. None of them runs code.

    Most training scripts save their best correlation with the weights, and SciPy gives it as a NumPy number.
    """
    scalar = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "?")]
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [*names, np.dtype, *kinds]


def _damaged(path: Path, error: Exception) -> WeightsError:
    reason = str(error).split(". ")[0].splitlines()[0][:200] if str(error).strip() else type(error).__name__
    return WeightsError(f"{path} is damaged or cut short ({reason}); fetch it again")


def _check_archive(path: Path) -> None:
    """Refuse an archive that is small on disk and huge in memory: torch.save compresses nothing and repeats nothing."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    size = sum(member.file_size for member in members)
    if size > path.stat().st_size or any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise WeightsError(f"{path} unpacks to {size:,} bytes, so torch.save did not write it; fetch it again")


def _unwrapped(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict inside the containers that a training script saved."""
    for _ in range(len(WRAPPERS)):  # a wrapper may hold another, or itself
        inner = [content[name] for name in WRAPPERS if isinstance(content, Mapping) and name in content]
        content = next((held for held in inner if isinstance(held, Mapping)), content)
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}; wanted a state dict of names and tensors")
    if content and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
        return dict(content)
    others = [
        f"{name!s:.80} ({type(value).__name__})"
        for name, value in content.items()
        if not (isinstance(name, str) and isinstance(value, Tensor))
    ]
    raise WeightsError(f"{path} is not a state dict: it holds {few(others) or 'nothing'}; save only model.state_dict()")


def _check_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """WeightsError unless all tensors are plain arrays of finite numbers, and not larger in memory than allowed."""
    odd = [name for name, value in tensors.items() if not _is_plain(value)]
    if odd:
        raise WeightsError(
            f"{path} holds tensors that are not plain arrays of numbers: {few(odd)}; save float32 weights"
        )
    size = sum(value.numel() * value.element_size() for value in tensors.values())
    if size > MAX_BYTES:
        raise WeightsError(f"{path} unpacks to {size:,} bytes, limit {MAX_BYTES:,}")
    spoiled = [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if spoiled:
        raise WeightsError(
            f"{path} holds NaN or infinity in {few(spoiled)}; its training diverged, or the file is damaged"
        )


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is strided, real, in this machine's memory, and stores every element separately."""
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided and tensor.device.type == "cpu"
    if not plain or tensor.is_quantized or tensor.is_complex():
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _without_prefixes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop the prefixes that DataParallel, torch.compile and wrappers around the network put before every name.

    Lightning and similar tools keep the network as an attribute, so that all names start with the attribute's name.
    """
    named = {re.sub(r"^(module\.|_orig_mod\.)+", "", name): value for name, value in tensors.items()}
    while (
        len(named) > 1 and len({name.partition(".")[0] for name in named}) == 1 and all("." in name for name in named)
    ):
        named = {name.partition(".")[2]: value for name, value in named.items()}
    return named
