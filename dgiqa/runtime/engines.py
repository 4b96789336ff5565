"""Engines on this machine's disk: kept under a key of everything they depend on, found again, listed, removed.

    <user cache>/engines/small-int8-openvino-0f3a…/   depth.onnx quality.onnx (or .plan), engine.json
    <user cache>/openvino/<sha256>/                   OpenVINO's compiled form of the file with that hash

engine.json holds the key, the parity certificate, the files' hashes, and a hash of itself: users edit files, and disks
damage them. Plans are plain files, so other tools can load them. Bundles travel; engines do not: an engine is loaded
only from this user's own cache, or from a path the user names.
"""

import contextlib
import hashlib
import json
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from dgiqa import spec
from dgiqa.bundle import MAX_TEXT_BYTES, Bundle, search_path
from dgiqa.errors import BundleError, EngineError
from dgiqa.onnx_file import check_stands_alone
from dgiqa.runtime.backends import RTX, TENSORRT, choose, offering
from dgiqa.runtime.session import identity
from dgiqa.store import closed, discard, locked, ours, private, scratch_in, sha256_of, take_place, user_cache

RECORD = "engine.json"
FORMAT = 2  # raised whenever an older reader would misread a record
NETWORKS = (spec.DEPTH_FILE, spec.QUALITY_FILE)  # files a bundle may have; some bundles lack the first


@dataclass(frozen=True)
class Engine:
    """A built engine. path: its directory. key: everything it depends on, see `engine_key`.

    files: network ("depth.onnx", "quality.onnx") -> the file that runs in its place; empty if the bundle's own
    files run. certificate: how its scores compare with the bundle's. created: ISO 8601. hashes: file -> sha256.
    """

    path: Path
    key: dict[str, Any]
    files: dict[str, Path]
    certificate: dict[str, Any]
    created: str = ""
    hashes: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def backend(self) -> str:
        return str(self.key["engine"])

    @property
    def precision(self) -> str:
        return str(self.key["precision"])

    @property
    def plugins(self) -> list[Path]:
        """Libraries that its plans need: the engine's own copies."""
        return [self.path / name for name in self.key["plugins"]]

    @property
    def bytes(self) -> int:
        """Total size of its networks' files."""
        return sum(path.stat().st_size for path in self.files.values())


def engine_key(
    bundle: Bundle,
    backend: str,
    precision: str,
    *,
    profile: Mapping[str, Any] | None = None,
    plugins: Sequence[Path] = (),
    device: int | None = None,
) -> dict[str, Any]:
    """Everything an engine depends on: networks, engine and its version, device, precision, quantizer, shapes, plugins.

    backend: one of backends.BACKENDS, never "auto". device: GPU ordinal. Raises BackendError without that backend.
    """
    return {
        "bundle": bundle.name,
        "onnx": {network.file: bundle.manifest["files"][network.file]["sha256"] for network in bundle.networks},
        **identity(backend, device),
        "precision": precision,
        **({"quantizer": spec.QUANTIZER_VERSION} if precision in spec.QUANTIZED else {}),
        "profile": dict(profile or {}),
        "plugins": {path.name: sha256_of(path) for path in plugins},
    }


def engines_folder() -> Path:
    """This user's folder of engines. It need not exist."""
    return user_cache() / "engines"


def find(bundle: Bundle, backend: str, precision: str, device: int | None = None) -> Engine:
    """The newest engine of this bundle that fits this machine, whatever shapes it was built for.

    "auto" takes the first backend that has one, in the order of `choose`.

    Raises EngineError if there is none, or only stale ones; it names what they were built for, what this machine has,
    and the build command. Raises BackendError if the backend is missing.
    """
    if backend == "auto":
        for name in offering(precision):
            with contextlib.suppress(EngineError):
                return find(bundle, name, precision, device)
    backend = choose(backend, precision)
    here = engine_key(bundle, backend, precision, device=device)
    built = [e for e in list_engines() if all(e.key[k] == here[k] for k in ("bundle", "engine", "precision"))]
    fitting = [e for e in built if not _differences(e.key, here)]
    if fitting:
        return load(max(fitting, key=lambda engine: engine.created).path, bundle, device)
    fix = build_command(bundle, backend, precision)
    if not built:
        raise EngineError(f"no {precision} engine of {bundle.id} for {backend} is built on this machine; {fix}")
    newest = max(built, key=lambda engine: engine.created)
    raise EngineError(f"{newest.name} is stale: {_two_sides(newest.key, here)}; build it again: {fix}")


def load(path: str | Path, bundle: Bundle, device: int | None = None) -> Engine:
    """The engine in a directory, its files verified, checked to be for this bundle, this machine and its versions.

    Raises EngineError, which names what it was built for and what this machine has.
    """
    engine = _read(Path(path))
    here = engine_key(bundle, engine.backend, engine.precision, device=device)
    fix = build_command(bundle, engine.backend, engine.precision)
    if _differences(engine.key, here):
        raise EngineError(f"{engine.path} is stale: {_two_sides(engine.key, here)}; build it again: {fix}")
    _verify(engine, fix)
    return engine


def list_engines() -> list[Engine]:
    """Every engine in this user's cache, by name, without damaged ones and ones that other users could have written."""
    return [found for _, found in _survey() if isinstance(found, Engine)]


def damaged() -> dict[str, str]:
    """Entries of the engines' folder that cannot be used: name -> why."""
    return {path.name: found for path, found in _survey() if isinstance(found, str)}


def folder_of(name: str) -> Path:
    """The directory of the engine of this name. Raises EngineError if there is none."""
    path = engines_folder() / name
    if name != path.name or name.startswith(".") or not path.is_dir():
        raise EngineError(f"no engine is named {name!r}; dgiqa-rt cache ls shows those there are")
    return path


def remove(name: str) -> Path:
    """Remove the engine of this name and return its former directory. Raises EngineError if there is none."""
    path = folder_of(name)
    with locked(path):
        for folder in (path, *_left_behind(path)):
            discard(folder)
    return path


def clear() -> int:
    """Remove all engines, damaged ones too, and the caches of OpenVINO and TensorRT for RTX. Return the bytes freed.

    Raises OSError if something cannot be removed.
    """
    freed = 0
    for folder in (engines_folder(), user_cache() / "openvino", user_cache() / RTX):
        freed += sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)
    return freed


def directory(key: Mapping[str, Any]) -> Path:
    """The folder of an engine with this key. It need not exist."""
    return engines_folder() / f"{key['bundle']}-{key['precision']}-{key['engine']}-{_digest(key)[:12]}"


@contextlib.contextmanager
def scratch(key: Mapping[str, Any]) -> Iterator[Path]:
    """A temporary directory next to an engine's place, on the same file system; removed unless `store` moved it.

    Call it with the engine's lock held: it first removes what a killed builder left behind.
    """
    target = directory(key)
    folder = private(target.parent)
    for left in _left_behind(target):
        discard(left)
    with scratch_in(folder, target.name) as path:
        yield path


def store(path: Path, key: Mapping[str, Any], files: Mapping[str, Path], certificate: Mapping[str, Any]) -> Engine:
    """Turn a scratch directory into the engine of this key, replacing an older one of the same key.

    files: network -> its file inside `path`. The key's plugins are in `path`, too; anything else there is deleted.
    Call it with the engine's lock held.
    """
    target = directory(key)
    kept = {RECORD, *key["plugins"], *(file.name for file in files.values())}
    record = {
        "format": FORMAT,
        "created": datetime.now(timezone.utc).isoformat(),
        "key": dict(key),
        "networks": {network: file.name for network, file in files.items()},
        "files": {file.name: {"sha256": sha256_of(file), "bytes": file.stat().st_size} for file in files.values()},
        "certificate": dict(certificate),
    }
    record["sha256"] = _digest(record)
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
    (path / RECORD).write_text(text + "\n", encoding="utf-8")
    for extra in (p for p in path.iterdir() if p.name not in kept):
        shutil.rmtree(extra) if extra.is_dir() else extra.unlink()
    take_place(path, target)
    return _read(target)


def build_command(bundle: Bundle, backend: str, precision: str) -> str:
    """The command that builds this engine."""
    known = bundle.path in [folder / bundle.name for folder in search_path()]
    named = bundle.name if known else shlex.quote(str(bundle.path))
    return f"dgiqa-rt build --bundle {named} --{precision} --backend {backend}"


def _survey() -> Iterator[tuple[Path, Engine | str]]:
    """Everything in the engines' folder, by name: an engine with an intact record, or why it cannot be loaded."""
    root = engines_folder()
    open_to_others = f"{root} can be written by others; chmod 700 it" if root.is_dir() and not closed(root) else ""
    for path in sorted(root.glob("[!.]*")):
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            yield path, open_to_others or _found(path)


def _found(path: Path) -> Engine | str:
    if not ours(path):
        return f"{path}, or something in it, belongs to or can be written by others; remove it"
    try:
        return _read(path)
    except EngineError as error:
        return str(error)


def _read(path: Path) -> Engine:
    """The engine in this directory, its files not verified. EngineError unless its record is as `store` wrote it."""
    try:
        with (path / RECORD).open("rb") as stream:
            record = json.loads(stream.read(MAX_TEXT_BYTES).decode("utf-8"))
        if (version := record["format"]) != FORMAT:
            raise EngineError(f"{path} has format {version!r}, this version reads {FORMAT}; build it again")
        if record["sha256"] != _digest(record):
            raise ValueError(f"its {RECORD} was altered")
        files = {network: path / name for network, name in record["networks"].items()}
        hashes = {name: entry["sha256"] for name, entry in record["files"].items()} | record["key"]["plugins"]
        names = [*record["networks"].values(), *hashes]
        if odd := [name for name in names if Path(name).name != name or name == ".."]:  # may be forged
            raise ValueError(f"its files {odd} are elsewhere")
        return Engine(path, record["key"], files, record["certificate"], record["created"], hashes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise EngineError(f"{path} is not an engine ({error}); wanted a directory that dgiqa-rt build made") from error


def _digest(record: Mapping[str, Any]) -> str:
    """The hash of everything else in a record."""
    said = {name: value for name, value in record.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _verify(engine: Engine, fix: str) -> None:
    """Raise EngineError unless the files are those that were built. fix: the build command."""
    for name, digest in engine.hashes.items():
        if not (engine.path / name).is_file() or sha256_of(engine.path / name) != digest:
            raise EngineError(f"{engine.path / name} is missing or was altered; build it again: {fix} --force")
    try:
        for path in engine.files.values() if engine.backend != TENSORRT else ():
            check_stands_alone(path)
    except BundleError as error:
        raise EngineError(f"{error}; or build it again: {fix} --force") from error


def _differences(built: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """The parts of a key that forbid loading it. Shapes and plugins are the builder's choice, not the machine's."""
    parts = ("onnx", "engine", "version", "device", "compute_capability", "quantizer")
    return [k for k in parts if built.get(k) != here.get(k) and k not in _made_for_more(built, here)]


def _made_for_more(built: Mapping[str, Any], here: Mapping[str, Any]) -> set[str]:
    """The parts that may differ, because the plan was built to run with other versions or on other GPUs."""
    plan, free = built["profile"].get("plan", {}), set()
    if plan.get("version_compatible") and built["version"].split(".")[0] == here["version"].split(".")[0]:
        free.add("version")
    if plan.get("hardware") == "same":
        free.add("device")
    if plan.get("hardware") == "ampere+" and int(here.get("compute_capability", "0").split(".")[0]) >= 8:
        free |= {"device", "compute_capability"}
    return free


def _two_sides(built: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """ "built for ...; here is ...", limited to the parts that differ."""
    parts = [k for k in _differences(built, here) if k != "onnx"]
    sides = [", ".join(f"{k} {key.get(k, 'none')}" for k in parts) for key in (built, here)]
    if "onnx" in _differences(built, here):
        names = [f"networks {key['onnx'][spec.QUALITY_FILE][:12]}" for key in (built, here)]
        sides = [", ".join(filter(None, pair)) for pair in zip(sides, names, strict=True)]
    return f"built for {sides[0]}; here is {sides[1]}"


def _left_behind(target: Path) -> list[Path]:
    """The folders that unfinished builds of an engine left next to its place."""
    return [path for path in target.parent.glob(f".{target.name}.*") if path.suffix != ".lock"]
