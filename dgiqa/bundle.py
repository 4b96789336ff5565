"""Read a directory with a manifest as a verified Bundle, and write networks and facts about them as such a directory.

    manifest.json   contract, preprocessing, versions, parity, model card; per file sha256, size, licence, source
    depth.onnx      missing if the quality network takes only the image
    quality.onnx
    golden.jsonl    one line per golden image: the score that every machine must give it
    golden/01.png   …

A bundle is the deployed unit: it travels, engines do not. Nothing in it is executed and nothing outside it is read.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any

from dgiqa import spec
from dgiqa._version import __version__
from dgiqa.errors import BundleError
from dgiqa.full_reference import FullReference, parse_full_reference
from dgiqa.meaning import Meaning, parse_meaning, require
from dgiqa.onnx_file import check_stands_alone
from dgiqa.preprocess import check_tiling
from dgiqa.spec import Preprocess
from dgiqa.store import ours, scratch_in, sha256_of, take_place, user_cache

MANIFEST = "manifest.json"
GOLDEN = "golden.jsonl"
MAX_TEXT_BYTES = 4 << 20  # manifest.json and golden.jsonl are read whole
MAX_FILE_BYTES = 4 << 30
# Allowed preprocessing sizes, in pixels. A picture becomes about short_side^2 x aspect pixels of network input.
SIZES = {"depth_lower_bound": (1, 2048), "depth_multiple": (1, 256), "short_side": (16, 2048), "tile": (16, 1024)}
MAY_BE_ZERO = ("depth_lower_bound", "short_side")  # for no depth network, and for no resizing
MAX_TILES_ACROSS = 16  # tiles across the short side
SHIPPED = Path(__file__).parent / "bundles"
SEARCH_VARIABLE = "DGIQA_BUNDLES"  # directories of bundles, separated as in PATH

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Bundle:
    """A bundle's directory, in which every listed file has the listed size and sha256.

    path: the directory. id: "<name>@<12 hex digits of the manifest's hash>", which changes with any file or field.
    meaning: reasons, presets and scale of its scores. full_reference: compares a picture with its reference, or None.
    """

    path: Path
    name: str
    id: str
    preprocess: Preprocess
    manifest: dict[str, Any]
    meaning: Meaning = field(default_factory=Meaning)
    full_reference: FullReference | None = None

    @property
    def networks(self) -> tuple[spec.Network, ...]:
        """Its networks, in the order in which an image passes through them."""
        return spec.networks(self.manifest["files"], self.preprocess.tile)

    def file(self, name: str) -> Path:
        """Path of a listed file. BundleError if the manifest does not list it."""
        if name not in self.manifest["files"]:
            raise BundleError(f"{self.id} lists no file {name!r}; it has: {', '.join(sorted(self.manifest['files']))}")
        return self.path / name


@dataclass(frozen=True)
class BundleSummary:
    """One row of `list_bundles`. bytes: total of the listed files. problem: why it cannot be used, or empty."""

    name: str
    title: str
    id: str
    path: Path
    bytes: int
    problem: str = ""


@dataclass(frozen=True)
class Golden:
    """The scores of one golden image. file: its path in the bundle. tiling: the one it was scored with.

    reasons: mean probability over the tiles, for each reason; empty if the network has none. full_reference: the score
    of the picture that `parity.beside` makes of it, compared with it; None if the bundle does not compare pictures.
    """

    file: str
    sha256: str
    tiling: str
    score: float
    tile_scores: tuple[float, ...]
    reasons: tuple[float, ...] = ()
    full_reference: float | None = None


def load_bundle(name_or_path: str | Path) -> Bundle:
    """Load a bundle by name ("small") or by directory, and verify versions, sizes, sha256 and that no path leaves it.

    Names are looked up among the shipped bundles, then in the directories of $DGIQA_BUNDLES, then in the user's cache
    directory, then in the current directory. A Path, or a string with a separator, is a directory. Raises BundleError.
    """
    with _reading(name_or_path):
        path = _locate(name_or_path)
        bundle = read_manifest(path)
    for name, entry in bundle.manifest["files"].items():
        with _reading(path / name):
            _verify_file(bundle, name, entry)
    return bundle


def list_bundles() -> list[BundleSummary]:
    """Every bundle that `load_bundle` finds by name, in its search order; files are not hashed."""
    found: dict[str, BundleSummary] = {}
    for directory in search_path():
        for manifest in sorted(directory.glob(f"*/{MANIFEST}")):
            found.setdefault(manifest.parent.name, _summarise(manifest.parent))
    return list(found.values())


def search_path() -> Iterator[Path]:
    """The folders in which bundles are looked up by name; the first match counts."""
    yield SHIPPED
    yield from (Path(os.path.expanduser(p)) for p in os.environ.get(SEARCH_VARIABLE, "").split(os.pathsep) if p)
    yield user_cache() / "bundles"  # last, as finding it imports a library


def load_golden(bundle: Bundle) -> list[Golden]:
    """The bundle's golden images with their scores. BundleError if it has none or a line is malformed."""
    if GOLDEN not in bundle.manifest["files"]:
        raise BundleError(f"{bundle.id} has no {GOLDEN} to compare with; rebuild it with golden images")
    with _reading(bundle.path / GOLDEN):
        lines = _read_text(bundle.path / GOLDEN).splitlines()
    golden = [_parse_golden(bundle, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not golden:
        raise BundleError(f"{bundle.id}: {GOLDEN} is empty; rebuild the bundle with golden images")
    return golden


def golden_lines(golden: Iterable[Golden]) -> bytes:
    """The contents of golden.jsonl, as `load_golden` reads them."""
    records = ({key: value for key, value in asdict(each).items() if value not in ((), None)} for each in golden)
    return "".join(json.dumps(record, allow_nan=False) + "\n" for record in records).encode()


def write_bundle(
    target: str | Path,
    *,
    name: str,
    title: str,
    files: Mapping[str, Path | bytes],
    licence: str,
    source: str,
    origins: Mapping[str, Mapping[str, str]] | None = None,
    preprocess: Preprocess | None = None,
    meaning: Meaning | None = None,
    full_reference: FullReference | None = None,
    features: int = 0,
    versions: Mapping[str, str] | None = None,
    parity: Mapping[str, Any] | None = None,
    model_card: Mapping[str, Any] | None = None,
    opset: int = spec.OPSET,
    created: str | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Write a bundle directory in one step: it appears complete and verified, or not at all.

    files: path in the bundle -> contents, or the file to copy; `quality.onnx` is required, and `depth.onnx` if the
    quality network takes a depth image.
    licence, source: of every file, unless `origins[file]` gives its own {"licence", "source"}.
    meaning: of the scores. full_reference: compares two pictures. features: the number of features that the quality
    network gives with each score; 0: none.
    created: ISO 8601 time, by default now. overwrite: replace an existing bundle (never another kind of directory).
    Raises BundleError if the target exists or the result is not valid, ValueError for a bad name or no quality.onnx.
    """
    target = Path(os.path.abspath(target))
    require(_NAME.fullmatch(name), f"a bundle's name has at most 64 letters, digits, '.', '_' or '-', got {name!r}")
    require(spec.QUALITY_FILE in files, f"a bundle needs {spec.QUALITY_FILE}, got {sorted(files)}")
    _check_target(target, overwrite)
    preprocess = preprocess or Preprocess()
    record, columns = asdict(preprocess), (len(meaning.reasons) if meaning else 0, features)
    if preprocess.normalisation == Preprocess.normalisation:
        del record["normalisation"]  # older versions do not know it
    manifest = {
        "bundle_version": spec.BUNDLE_VERSION,
        "name": name,
        "title": title,
        "created": created or datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "preprocess": record,
        "opset": opset,
        "versions": {"dgiqa-rt": __version__, **(versions or {})},
        "parity": dict(parity or {}),
        "model_card": dict(model_card or {}),
        "score": {"range": [0, 1], "higher_is_better": True},
        "tensors": _tensors(spec.networks(files, preprocess.tile), columns),
        **(meaning.as_manifest() if meaning else {}),
        **(full_reference.as_manifest() if full_reference else {}),
    }
    with scratch_in(target.parent, target.name) as folder:
        folder.chmod(0o755)  # its 0700 would make an installed bundle unreadable for other users
        origin = {"licence": licence, "source": source}
        manifest["files"] = {
            file: {**_store(folder, file, contents), **origin, **(origins or {}).get(file, {})}
            for file, contents in files.items()
        }
        text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
        for path in folder.rglob("*"):  # readable for all, writable for the user only, whatever the umask is
            path.chmod(0o755 if path.is_dir() else 0o644)
        load_bundle(folder)
        take_place(folder, target)
    return load_bundle(target)


# reading


@contextlib.contextmanager
def _reading(what: str | Path) -> Iterator[None]:
    """Turn the file system's errors about a path (rights, circular links, length, characters) into BundleError."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise BundleError(f"{what} cannot be read ({reason}); copy the bundle again, or name another") from error


def _locate(name_or_path: str | Path) -> Path:
    if isinstance(name_or_path, Path) or os.sep in name_or_path or "/" in name_or_path:
        return Path(name_or_path).expanduser()
    if _NAME.fullmatch(name_or_path):
        for directory in search_path():
            if os.path.isfile(directory / name_or_path / MANIFEST):
                return _believed(directory / name_or_path)
    if os.path.isfile(Path(name_or_path) / MANIFEST):
        return Path(name_or_path)
    if os.path.isdir(name_or_path):
        raise BundleError(f"{name_or_path} holds no {MANIFEST}; wanted a bundle's name or its directory")
    available = ", ".join(b.name for b in list_bundles()) or "none"
    raise BundleError(f"no bundle is named {name_or_path!r}; available: {available}; or give a bundle's directory")


def _believed(path: Path) -> Path:
    """The path of a bundle found by name. BundleError if it is in the user's cache and others could have written it."""
    in_cache = path.parent != SHIPPED and path.parent == user_cache() / "bundles"
    folders = (Path(folder) for folder, _, _ in os.walk(path.resolve()))
    if in_cache and not all(map(ours, folders)):
        fix = f"if you trust it, chmod -R go-w it, or name its directory: --bundle {path}"
        raise BundleError(f"{path}, or something in it, belongs to or can be written by others; {fix}")
    return path


def read_manifest(path: Path) -> Bundle:
    """Read a bundle's manifest and check it against what this version supports; the files are not looked at."""
    if not (path / MANIFEST).is_file():
        what = "is not a bundle: it has no manifest.json" if path.is_dir() else "is not a directory"
        raise BundleError(f"{path} {what}; wanted a bundle's name or its directory")
    if _leads_out(path, MANIFEST):
        raise BundleError(f"{path / MANIFEST} is a link that leaves the bundle; copy the bundle again")
    manifest, canonical = _parse_json(path / MANIFEST)
    _check_version(path, "bundle_version", manifest.get("bundle_version"), spec.BUNDLE_VERSION)
    record = manifest.get("preprocess")
    if isinstance(record, dict):
        _check_version(path, "preprocess version", record.get("version"), *spec.PREPROCESS_VERSIONS)
    try:
        name, preprocess = manifest.get("name"), _parse_preprocess(record)
        right = isinstance(name, str) and _NAME.fullmatch(name)
        require(right, f"name is {name!r:.80}, wanted letters, digits, '.', '_' or '-'")
        _check_form(manifest)
        meaning, full_reference = parse_meaning(manifest), parse_full_reference(manifest)
    except ValueError as error:
        raise BundleError(f"{path}: {error}; rebuild the bundle") from error
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    return Bundle(path, str(name), f"{name}@{digest[:12]}", preprocess, manifest, meaning, full_reference)


def _parse_json(path: Path) -> tuple[dict[str, Any], str]:
    """A manifest, and its canonical JSON, which does not depend on the file's layout."""
    try:
        manifest = json.loads(_read_text(path))
        canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"), allow_nan=False)
        json.dumps(manifest, ensure_ascii=False).encode()  # refuse half a surrogate pair: it cannot be printed
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not valid JSON ({error}); copy the bundle again") from error
    if not isinstance(manifest, dict):
        raise BundleError(f"{path} is a {type(manifest).__name__}, wanted an object; rebuild the bundle")
    return manifest, canonical


def _check_version(path: Path, what: str, got: Any, *wanted: int) -> None:
    if got in wanted and type(got) is int:
        return
    newer = isinstance(got, int) and got > max(wanted)
    fix = "pip install -U dgiqa-rt" if newer else "rebuild the bundle with this version"
    reads = " and ".join(map(str, wanted))
    raise BundleError(f"{path} has {what} {got!r:.40}, dgiqa-rt {__version__} reads {reads}; {fix}")


def _check_form(manifest: Mapping[str, Any]) -> None:
    """Raise ValueError unless a manifest has the entries that its readers rely on."""
    files, near = manifest.get("files", {}), manifest["preprocess"]["depth_lower_bound"]
    require(isinstance(files, dict) and spec.QUALITY_FILE in files, f"files must list {spec.QUALITY_FILE}")
    got = "depth_lower_bound" if near else spec.DEPTH_FILE
    wanted = f"{spec.DEPTH_FILE} with a depth_lower_bound, or neither"
    require((spec.DEPTH_FILE in files) == bool(near), f"it has only {got}, wanted {wanted}")
    for name, entry in files.items():
        sized = isinstance(entry, dict) and type(entry.get("bytes")) is int and isinstance(entry.get("sha256"), str)
        right = sized and 0 <= entry["bytes"] <= MAX_FILE_BYTES
        require(right, f"the entry of {name!r:.80} needs bytes and sha256")
    for key in ("versions", "parity", "model_card", "tensors"):
        found = manifest.get(key, {})
        require(isinstance(found, dict), f"{key} is {found!r:.40}, wanted an object")


def _parse_preprocess(record: Any) -> Preprocess:
    """A manifest's record, of a version that this one reads. Raises ValueError."""
    require(isinstance(record, dict), "the manifest has no preprocess record")
    record, wanted = {"normalisation": Preprocess.normalisation, **record}, {f.name for f in fields(Preprocess)}
    require(record.keys() == wanted, f"preprocess has {sorted(record)}, wanted {sorted(wanted)}")
    normalisation, known = record["normalisation"], list(spec.NORMALISATIONS)
    got = f"preprocess has normalisation {normalisation!r:.40}"
    require(normalisation in known, f"{got}, wanted {' or '.join(known)}")
    for key, (low, high) in SIZES.items():
        size = record[key]
        right = type(size) is int and (low <= size <= high or (size == 0 and key in MAY_BE_ZERO))
        require(right, f"preprocess.{key} is {size!r:.40}, wanted {low}..{high}")
    tile, short_side = record["tile"], record["short_side"]
    right = not short_side or tile <= short_side <= MAX_TILES_ACROSS * tile
    got = f"tile is {tile} and short_side {short_side}"
    require(right, f"{got}, wanted a short_side of 1 to {MAX_TILES_ACROSS} tiles")
    return Preprocess(**record)


def _verify_file(bundle: Bundle, name: str, entry: Mapping[str, Any]) -> None:
    path = _inside(bundle.path, name)
    if not path.is_file():
        raise BundleError(f"{path} is missing, {bundle.id} lists it; copy the bundle again")
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise BundleError(f"{path} has {size} bytes, {bundle.id} wants {entry['bytes']}; copy the bundle again")
    if (digest := sha256_of(path)) != entry["sha256"]:
        hashes = f"its sha256 is {digest}, {bundle.id} wants {entry['sha256']}"
        raise BundleError(f"{path} was altered: {hashes}; copy the bundle again")
    if path.suffix == ".onnx":
        check_stands_alone(path)


def _inside(root: Path, name: str) -> Path:
    """root/name. BundleError if it, or a link on the way, leads out of root."""
    pure = PurePosixPath(name)
    plain = name == str(pure) and not pure.is_absolute() and ".." not in pure.parts and not re.search(r"[\\:\0]", name)
    if not plain or name in (".", MANIFEST) or _leads_out(root, name):
        raise BundleError(f"{root}: file name {name!r} leaves the bundle or is not a plain path; rebuild the bundle")
    return root / name


def _leads_out(root: Path, name: str) -> bool:
    """Whether root/name, or a link on the way, leads out of root."""
    return root.resolve() not in (root / name).resolve().parents


def _read_text(path: Path) -> str:
    with path.open("rb") as stream:
        data = stream.read(MAX_TEXT_BYTES + 1)
    if len(data) > MAX_TEXT_BYTES:
        raise BundleError(f"{path} is larger than {MAX_TEXT_BYTES} bytes, so not a bundle's; copy the bundle again")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(f"{path} is not UTF-8 text ({error}); copy the bundle again") from error


def _parse_golden(bundle: Bundle, number: int, line: str) -> Golden:
    try:
        record = json.loads(line)
        tile_scores = tuple(float(s) for s in record["tile_scores"])
        reasons = tuple(float(p) for p in record.get("reasons", ()))
        tiling = record["tiling"] if "tiling" in record else record["tiles"]  # bundles made up to November 2026
        near = record.get("full_reference")
        near = None if near is None else float(near)
        golden = Golden(record["file"], record["sha256"], tiling, float(record["score"]), tile_scores, reasons, near)
        _check_golden(golden)
    except (ArithmeticError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{bundle.id}: {GOLDEN} line {number} is malformed ({error!r}); rebuild it") from error
    if bundle.manifest["files"].get(golden.file, {}).get("sha256") != golden.sha256:
        what = f"{GOLDEN} line {number} names {golden.file}, which the manifest lacks or has with other contents"
        raise BundleError(f"{bundle.id}: {what}; rebuild the bundle")
    return golden


def _check_golden(golden: Golden) -> None:
    """Raise ValueError for a golden line that cannot be scored or compared."""
    for name in ("file", "sha256", "tiling"):
        value = getattr(golden, name)
        require(isinstance(value, str), f"{name} is {value!r:.40}")
    scores = (golden.score, *golden.tile_scores, *golden.reasons, golden.full_reference or 0.0)
    require(all(map(math.isfinite, scores)), "a score is not finite")
    check_tiling(golden.tiling)


def _summarise(path: Path) -> BundleSummary:
    try:
        with _reading(path):
            bundle = read_manifest(_believed(path))
    except BundleError as error:
        return BundleSummary(path.name, "", "", path, 0, str(error))
    size = sum(entry["bytes"] for entry in bundle.manifest["files"].values())
    return BundleSummary(path.name, str(bundle.manifest.get("title", "")), bundle.id, path, size)


# writing


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.exists() and not target.is_symlink():
        return
    if not overwrite:
        raise BundleError(f"{target} exists; choose another place or ask to overwrite it")
    if target.is_symlink() or not (target / MANIFEST).is_file():
        raise BundleError(f"{target} is not a bundle, so it is not overwritten; choose another place")


def _tensors(networks: tuple[spec.Network, ...], counts: tuple[int, int]) -> dict[str, Any]:
    """The networks' inputs and outputs, for readers in other languages.

    counts: the numbers of reasons and of features; 0: there is no such output.
    """

    def described(shapes: Mapping[str, tuple[int | str, ...]]) -> dict[str, Any]:
        return {name: {"dtype": "float32", "shape": list(shape)} for name, shape in shapes.items()}

    found = {}
    for network in networks:
        further = {name: ("n", count) for name, count in zip(network.further, counts, strict=False) if count}
        outputs = described({**network.outputs, **further})
        found[network.file] = {"inputs": described(network.inputs), "outputs": outputs}
    return found


def _store(root: Path, name: str, contents: Path | bytes) -> dict[str, Any]:
    path = _inside(root, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(contents, bytes):
        path.write_bytes(contents)
    else:
        shutil.copyfile(contents, path)
    return {"sha256": sha256_of(path), "bytes": path.stat().st_size}
