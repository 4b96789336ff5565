"""Read IQA datasets from disk as records (path, score in 0..1, reference), and records as training samples.

Eight public sets and any folder with a CSV. Nothing is downloaded, moved or renamed. Case in file names does not
matter, since the sets' own lists disagree with their files about it. If a part is missing, the error names it, where it
was looked for, the files found there, and where to get it.
"""

import csv
import functools
import hashlib
import io
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import cv2
import numpy as np

from dgiqa.bundle import load_bundle
from dgiqa.dtypes import Array, Float64, UInt8
from dgiqa.errors import DgiqaError, ImageError
from dgiqa.extras import load
from dgiqa.forward import depth_map
from dgiqa.image import decode
from dgiqa.nn.commands import watched
from dgiqa.preprocess import stretched, working_image, working_size
from dgiqa.runtime.session import Session, open_session
from dgiqa.spec import DEPTH_FILE, Preprocess
from dgiqa.store import replacing, sha256_of

TRAIN_SHARE = 0.8  # "usual practice" of the paper's section 4.2
TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = {"train": TRAIN, "training": TRAIN, "val": VALIDATION, "validation": VALIDATION, "test": TEST}

SOURCES = {
    "live": "https://live.ece.utexas.edu/research/quality",
    "csiq": "https://s2.smu.edu/~eclarson/csiq.html",
    "tid2013": "https://www.ponomarenko.info/tid2013.htm",
    "kadid10k": "https://database.mmsp-kn.de/kadid-10k-database.html",
    "clive": "https://live.ece.utexas.edu/research/ChallengeDB",
    "koniq10k": "https://database.mmsp-kn.de/koniq-10k-database.html",
    "flive": "https://github.com/baidut/PaQ-2-PiQ",
    "biq2021": "https://github.com/nisarahmedrana/BIQ2021",
}
ALIASES = {
    "biq": "biq2021",
    "kadid": "kadid10k",
    "koniq": "koniq10k",
    "livechallenge": "clive",
    "livec": "clive",
    "livefb": "flive",
}
LIVE_FOLDERS = (("jp2k", 227), ("jpeg", 233), ("wn", 174), ("gblur", 174), ("fastfading", 174))  # order of the labels
LIVE_RANGE = (-3.0, 112.0)  # realigned DMOS are in -2.64..111.77
CLIVE_TRAINING_IMAGES = 7  # shown to the raters first, for practice; their scores are not used
CSIQ_TYPES = {  # the workbook's name of a distortion -> the files' name
    "noise": "AWGN",
    "blur": "BLUR",
    "contrast": "contrast",
    "fnoise": "fnoise",
    "jpeg": "JPEG",
    "jpeg 2000": "jpeg2000",
}


class Sample(NamedTuple):
    """One labelled picture, ready to be cropped.

    rgb: uint8 [H,W,3]; depth: uint8 [H,W], same H and W, larger = nearer; score: in [0, 1], higher = better.
    """

    rgb: UInt8
    depth: UInt8
    score: float


@dataclass(frozen=True)
class Record:
    """One labelled file.

    name: unique in its dataset, wherever that is stored; path: the file; score: in [0, 1], higher = better;
    reference: name of the pristine picture it was made from, None for pictures without one;
    split: the official one ("train", "validation", "test").
    """

    name: str
    path: Path
    score: float
    reference: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class IQADataset:
    """Labelled files of one set. Their scores are (label - worst) / (best - worst), clipped to 0..1."""

    name: str
    records: tuple[Record, ...]
    worst: float
    best: float

    def part(self, split: str) -> "IQADataset":
        """The records of an official split."""
        return replace(self, records=tuple(r for r in self.records if r.split == split))

    @property
    def scores(self) -> Float64:  # [n]
        return np.array([r.score for r in self.records])


def load_dataset(name: str, root: str | Path) -> IQADataset:
    """Load a dataset by name, one of `LOADERS` (ignoring case and punctuation). DgiqaError if parts are missing."""
    key = "".join(c for c in name.lower() if c.isalnum())
    key = ALIASES.get(key, key)
    if key not in LOADERS:
        raise ValueError(f"no dataset is called {name!r}; there are {', '.join(LOADERS)}")
    root = Path(root)
    if not root.is_dir() and key != "csv":
        where = f"; get {key} from {SOURCES[key]}" if key in SOURCES else ""
        raise DgiqaError(f"{key} was looked for in {root}, which is not a folder{where}")
    return LOADERS[key](root)


def load_live(root: Path) -> IQADataset:
    """LIVE release 2: 779 distorted pictures of 29 references. DMOS, lower is better, -3..112 (realigned).

    jp2k/, jpeg/, wn/, gblur/, fastfading/ with img1.bmp.., dmos_realigned.mat (dmos_new, orgs) or the release's own
    dmos.mat (dmos, orgs), refnames_all.mat. The 203 copies of the references (orgs = 1) are left out.
    """
    realigned = (root / "dmos_realigned.mat").exists()
    labels = root / ("dmos_realigned.mat" if realigned else "dmos.mat")
    dmos, copies = (np.ravel(a) for a in _matlab("live", labels, "dmos_new" if realigned else "dmos", "orgs"))
    references = _strings(*_matlab("live", root / "refnames_all.mat", "refnames_all"))
    names = [f"{folder}/img{i}.bmp" for folder, count in LIVE_FOLDERS for i in range(1, count + 1)]
    if not len(dmos) == len(copies) == len(references) == len(names):
        raise DgiqaError(
            f"live: {len(dmos)} scores, {len(copies)} copy marks and {len(references)} reference names in {root}; "
            f"wanted {len(names)} each; get the label files again from {SOURCES['live']}"
        )
    kept = [i for i in range(len(names)) if not copies[i]]
    rows = [_Row(names[i], float(dmos[i]), references[i].lower()) for i in kept]
    return _dataset("live", root, rows, worst=LIVE_RANGE[1], best=LIVE_RANGE[0])


def load_csiq(root: Path) -> IQADataset:
    """CSIQ: 866 distorted pictures of 30 references. DMOS, lower is better, 0..1.

    dst_imgs/<type>/1600.AWGN.1.png.. or all in dst_imgs_all/ or dst_imgs/; csiq_label.txt ("name dmos" lines) or
    the release's csiq.DMOS.xlsx, for which openpyxl must be installed.
    """
    text, workbook = root / "csiq_label.txt", root / "csiq.DMOS.xlsx"
    if text.exists():
        labels = [(name, _number(text, mos)) for name, mos in _pairs(text)]
    elif workbook.exists():
        labels = _csiq_workbook(workbook)
    else:
        raise _missing("csiq", f"{text.name} or {workbook.name}", root)
    folder = _first_folder("csiq", root, ("dst_imgs_all", "all_dis_imgs", "dst_imgs"))
    flat = any(path.suffix.lower() == ".png" for path in folder.iterdir())
    rows = []
    for name, dmos in labels:
        reference, *more = name.split(".")
        if not more:
            raise DgiqaError(f"{text} lists {name!r}; wanted names such as 1600.AWGN.1.png, as released")
        kind = more[0]
        rows.append(_Row(name if flat else f"{kind}/{name}", dmos, reference.lower()))
    return _dataset("csiq", folder, rows, worst=1, best=0)


def load_tid2013(root: Path) -> IQADataset:
    """TID2013: 3000 distorted pictures of 25 references. MOS, higher is better, nominally 0..9.

    distorted_images/iRR_TT_L.bmp in any mixture of case; mos_with_names.txt ("mos name" lines).
    """
    labels = _file("tid2013", root, "mos_with_names.txt")
    rows = [_Row(name, _number(labels, mos), name[:3].lower()) for mos, name in _pairs(labels)]
    return _dataset("tid2013", _first_folder("tid2013", root, ("distorted_images",)), rows, worst=0, best=9)


def load_kadid10k(root: Path) -> IQADataset:
    """KADID-10k: 10125 distorted pictures of 81 references. The column is called dmos, but higher is better, 1..5.

    images/I01_01_01.png.. (or distorted_images/); dmos.csv: dist_img, ref_img, dmos.
    """
    labels = _file("kadid10k", root, "dmos.csv")
    rows = [
        _Row(row["dist_img"], _number(labels, row["dmos"]), row["ref_img"].lower())
        for row in _table(labels, ("dist_img", "ref_img", "dmos"))
    ]
    folder = _first_folder("kadid10k", root, ("images", "distorted_images"))
    return _dataset("kadid10k", folder, rows, worst=1, best=5)


def load_clive(root: Path) -> IQADataset:
    """LIVE in the Wild Challenge: 1162 pictures. MOS, higher is better, 0..100.

    Images/*.bmp, *.JPG (or Images/Images/); Data/AllImages_release.mat, Data/AllMOS_release.mat, whose first 7
    entries are the raters' training pictures and are left out.
    """
    names = _strings(*_matlab("clive", root / "Data" / "AllImages_release.mat", "AllImages_release"))
    (mos,) = (np.ravel(a) for a in _matlab("clive", root / "Data" / "AllMOS_release.mat", "AllMOS_release"))
    if len(names) != len(mos):
        raise DgiqaError(f"clive: {len(names)} names and {len(mos)} scores in {root / 'Data'}; wanted as many of both")
    rows = [_Row(name, float(m)) for name, m in zip(names, mos, strict=True)][CLIVE_TRAINING_IMAGES:]
    return _dataset("clive", _first_folder("clive", root, ("Images/Images", "Images")), rows, worst=0, best=100)


def load_koniq10k(root: Path) -> IQADataset:
    """KonIQ-10k: 10073 pictures. MOS_zscore, higher is better, 0..100.

    1024x768/*.jpg, else 512x384/; koniq10k_scores_and_distributions.csv (image_name, MOS_zscore). The official split
    is read from koniq10k_distributions_sets.csv (image_name, set, MOS on the same scale) if that is present.
    """
    scores, sets = root / "koniq10k_scores_and_distributions.csv", root / "koniq10k_distributions_sets.csv"
    official = {row["image_name"]: row for row in _table(sets, ("image_name", "MOS", "set"))} if sets.exists() else {}
    if scores.exists():
        labels = {row["image_name"]: row["MOS_zscore"] for row in _table(scores, ("image_name", "MOS_zscore"))}
    elif official:
        labels = {name: row["MOS"] for name, row in official.items()}
    else:
        raise _missing("koniq10k", f"{scores.name} or {sets.name}", root)
    _check_splits(sets, (row["set"] for row in official.values()))
    rows = [
        _Row(name, _number(scores, mos), split=SPLITS[official[name]["set"]] if name in official else None)
        for name, mos in labels.items()
    ]
    folder = _first_folder("koniq10k", root, ("1024x768", "512x384"))
    return _dataset("koniq10k", folder, rows, worst=0, best=100)


def load_flive(root: Path) -> IQADataset:
    """LIVE-FB (FLIVE, PaQ-2-PiQ): 39810 pictures. MOS, higher is better, 0..100 (most are near 72).

    database/{voc_emotic_ava,blur_dataset,EE371R}/; labels_image.csv (name, mos), in the root or in database/. The
    official split is read from the same folder if present: labels640.csv (name_image: test) and labels=640_padded.csv
    (name_image, is_valid: validation).
    """
    labels = root if (root / "labels_image.csv").exists() else root / "database"
    scores = _file("flive", labels, "labels_image.csv")
    rows = _table(scores, ("name", "mos"))
    test, other = labels / "labels640.csv", labels / "labels=640_padded.csv"
    split: dict[str, str] = {}
    if test.exists() and other.exists():
        split = {row["name"]: TRAIN for row in rows}
        wanted = _table(other, ("name_image", "is_valid"))
        split |= {row["name_image"]: VALIDATION for row in wanted if row["is_valid"].lower() in ("true", "1")}
        split |= {row["name_image"]: TEST for row in _table(test, ("name_image",))}
    kept = [_Row(row["name"], _number(scores, row["mos"]), split=split.get(row["name"])) for row in rows]
    return _dataset("flive", _first_folder("flive", root, ("database",)), kept, worst=0, best=100)


def load_biq2021(root: Path) -> IQADataset:
    """BIQ2021 (Ahmed and Asif, 2022): 12000 photographs of 512 x 512, 30 observers each. MOS, higher is better, 0..1.

    Images/*.jpg; the official split is in "Train (Images and MOS).csv" and "Test (Images and MOS).csv" (Image Name,
    MOS). There is no validation part: cut one from the training part. The set has no licence text.
    """
    rows = []
    for title, split in (("Train", TRAIN), ("Test", TEST)):
        labels = _file("biq2021", root, f"{title} (Images and MOS).csv")
        table = _table(labels, ("Image Name", "MOS"))
        rows += [_Row(row["Image Name"], _number(labels, row["MOS"]), split=split) for row in table]
    return _dataset("biq2021", _first_folder("biq2021", root, ("Images",)), rows, worst=0, best=1)


def load_csv(path: Path, worst: float | None = None, best: float | None = None) -> IQADataset:
    """Load a CSV with columns image (relative to the CSV), score, and optionally reference and split.

    path: the CSV, or a folder with labels.csv in it. worst, best: the scores that become 0 and 1 (worst > best if lower
    is better); by default the smallest and the largest score in the file.
    """
    path = path / "labels.csv" if path.is_dir() else path
    if not path.exists():
        raise DgiqaError(f"{path}: no such file; wanted a CSV with the columns image and score")
    table = _table(path, ("image", "score"))
    scores = [_number(path, row["score"]) for row in table]
    worst, best = min(scores) if worst is None else worst, max(scores) if best is None else best
    if worst == best:
        raise DgiqaError(f"{path}: all {len(scores)} scores are {worst}; give worst and best, the ends of their scale")
    if not np.isfinite(best - worst):
        raise DgiqaError(f"{path}: scores from {worst} to {best} are too far apart for a number; correct them")
    _check_splits(path, (row["split"] for row in table if row.get("split")))
    rows = [
        _Row(row["image"], score, row.get("reference") or None, SPLITS.get(row.get("split") or ""))
        for row, score in zip(table, scores, strict=True)
    ]
    name = path.parent.name if path.stem == "labels" else path.stem
    return _dataset(name, path.parent, rows, worst=worst, best=best)


LOADERS: dict[str, Callable[[Path], IQADataset]] = {
    "live": load_live,
    "csiq": load_csiq,
    "tid2013": load_tid2013,
    "kadid10k": load_kadid10k,
    "clive": load_clive,
    "koniq10k": load_koniq10k,
    "flive": load_flive,
    "biq2021": load_biq2021,
    "csv": load_csv,
}


def random_split(dataset: IQADataset, seed: int, train_share: float = TRAIN_SHARE) -> tuple[IQADataset, IQADataset]:
    """Train and test parts that share no reference picture; a picture without a reference counts as its own.

    The split depends only on the names and the seed, not on the records' order: the references are sorted before they
    are shuffled. int(0.8 n) of them go to training, as in most published splits.
    """
    units = sorted({_unit(r) for r in dataset.records})
    if len(units) < 2:
        raise DgiqaError(f"{dataset.name} has {len(units)} reference pictures; a split needs two or more")
    shuffled = np.random.default_rng(seed).permutation(len(units))
    count = min(max(int(train_share * len(units)), 1), len(units) - 1)
    training = {units[i] for i in shuffled[:count]}
    parts = [tuple(r for r in dataset.records if (_unit(r) in training) == wanted) for wanted in (True, False)]
    return replace(dataset, records=parts[0]), replace(dataset, records=parts[1])


def official_split(dataset: IQADataset) -> tuple[IQADataset, IQADataset, IQADataset]:
    """Train, validation and test parts as published. Raises DgiqaError for a set without an official split."""
    parts = dataset.part(TRAIN), dataset.part(VALIDATION), dataset.part(TEST)
    if not (parts[0].records and parts[2].records):
        raise DgiqaError(f"{dataset.name} has no official split here; use random_split, or add its split file")
    return parts


@dataclass(frozen=True)
class DepthNetwork:
    """A function that makes depth images: uint8 [H,W,3] -> uint8 [H,W], larger = nearer. id: its name in the cache.

    p: how pictures are prepared. Depth images have the picture's size, or from version 2 of `p` on the working size.
    """

    id: str
    depth: Callable[[UInt8], UInt8]
    p: Preprocess = field(default_factory=Preprocess)


def bundle_depth(bundle: str = "small") -> DepthNetwork:
    """The depth network of a bundle, with the bundle's preprocessing.

    It is opened when it is first used, so that it can be pickled: loader processes are not forked everywhere.
    """
    loaded = load_bundle(bundle)
    path, p = loaded.file(DEPTH_FILE), loaded.preprocess
    digest = sha256_of(path)
    return DepthNetwork(f"{digest} {p}", functools.partial(_depth_image, path=path, digest=digest, p=p), p)


@functools.cache
def _opened(path: Path, digest: str) -> Session:
    return open_session(path)


def _depth_image(rgb: UInt8, path: Path, digest: str, p: Preprocess) -> UInt8:
    return stretched(depth_map(rgb, _opened(path, digest), p), *_depth_image_size(rgb, p))


def cached_rgb_and_depth(image: str | Path, network: DepthNetwork, cache_dir: str | Path) -> tuple[UInt8, UInt8]:
    """Decoded RGB uint8 [H,W,3] and depth image uint8 of a file; depth is computed once for each content and network.

    The depth image is kept as <cache_dir>/<sha256 of network and bytes>.png, written under a temporary name and
    renamed, so that a kill or another process leaves no half file.
    """
    data = _bytes(image)
    rgb = _decoded(image, data)
    path = _depth_path(data, network, Path(cache_dir))
    cached = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_GRAYSCALE) if path.exists() else None
    if cached is not None and cached.shape == _depth_image_size(rgb, network.p):
        return rgb, cached
    depth = network.depth(rgb)
    _write_png(path, depth)
    return rgb, depth


def working_pair(image: str | Path, network: DepthNetwork, cache_dir: str | Path) -> tuple[UInt8, UInt8]:
    """Working image uint8 [h,w,3] and depth image uint8 [h,w] of a file, as at inference."""
    rgb, depth = cached_rgb_and_depth(image, network, cache_dir)
    return working_image(rgb, network.p), working_image(depth, network.p)


@dataclass(frozen=True)
class Samples:
    """Labelled records as training reads them. read: makes a `Sample` of a record."""

    records: Sequence[Record]
    read: Callable[[Record], Sample]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        return self.read(self.records[index])


def with_depth(record: Record, network: DepthNetwork, cache_dir: str | Path) -> Sample:
    """Decode a record with its cached depth, and resize both as the network's bundle does.

    The paper crops "instead of resizing", but its inference resizes. Here training and inference see the same scale.
    """
    return Sample(*working_pair(record.path, network, cache_dir), record.score)


def plain(record: Record, ends: tuple[float, float], p: Preprocess) -> Sample:
    """A sample for networks without depth: the working image, an all-zero depth image, the label on its own scale.

    ends: the labels that became scores of 0 and of 1; labels beyond them count as the ends.
    """
    rgb, (worst, best) = working_image(read_rgb(record.path), p), ends
    return Sample(rgb, np.broadcast_to(np.uint8(0), rgb.shape[:2]), worst + record.score * (best - worst))


def fill_depth_cache(records: Sequence[Record], network: DepthNetwork, cache_dir: str | Path) -> int:
    """Compute the depth images that the cache lacks, so that loader processes only read. Return how many were made.

    Each is stored at once, so that a stopped run goes on where it was; progress goes to stderr. Raises ImageError at
    the end if pictures could not be read, so that a training that has started will not stop at one.
    """
    made, unreadable = 0, []
    for record in watched(records, len(records), "depth images"):
        try:
            data = _bytes(record.path)
            if not (path := _depth_path(data, network, Path(cache_dir))).exists():
                _write_png(path, network.depth(_decoded(record.path, data)))
                made += 1
        except ImageError as error:  # noqa: PERF203 - one bad picture must not hide the others
            unreadable.append(str(error))
    if made:
        print(f"depth images: {len(records)}, {made} of them new", file=sys.stderr, flush=True)
    if unreadable:
        raise ImageError(
            f"{len(unreadable)} of {len(records)} pictures cannot be read: {'; '.join(unreadable[:3])}"
            f"{'; ...' if len(unreadable) > 3 else ''}; get them again or take them out of the list"
        )
    return made


def _bytes(image: str | Path) -> bytes:
    try:
        return Path(image).read_bytes()
    except OSError as error:
        raise ImageError(f"{image}: {error.strerror or error}") from error


def read_rgb(image: str | Path) -> UInt8:
    """A picture file as RGB, uint8 [H,W,3]. Raises ImageError, which names the file, if it cannot be read."""
    return _decoded(image, _bytes(image))


def _decoded(image: str | Path, data: bytes) -> UInt8:
    """Decode a picture's RGB. Errors name the file, which the decoder does not know."""
    try:
        return decode(data)
    except ImageError as error:
        raise ImageError(f"{image}: {error}") from error


def _depth_image_size(rgb: UInt8, p: Preprocess) -> tuple[int, int]:
    """Size of the cached depth image. Version 1 resizes it later, as it resizes the picture."""
    height, width = rgb.shape[:2]
    return (height, width) if p.version == 1 else working_size(height, width, p)


def _depth_path(data: bytes, network: DepthNetwork, cache_dir: Path) -> Path:
    digest = hashlib.sha256(network.id.encode() + b"\n" + data).hexdigest()
    return cache_dir / f"{digest}.png"


def _write_png(path: Path, image: UInt8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_bytes(cv2.imencode(".png", image)[1].tobytes())


class _Row(NamedTuple):
    """A label as a loader reads it: name relative to the picture folder, score on the set's own scale."""

    name: str
    label: float
    reference: str | None = None
    split: str | None = None


def _dataset(name: str, folder: Path, rows: Sequence[_Row], *, worst: float, best: float) -> IQADataset:
    paths = find_pictures(name, folder, [row.name for row in rows])
    records = tuple(
        Record(row.name, path, float(np.clip((row.label - worst) / (best - worst), 0, 1)), row.reference, row.split)
        for row, path in zip(rows, paths, strict=True)
    )
    return IQADataset(name, records, worst, best)


def _unit(record: Record) -> str:
    return record.name if record.reference is None else record.reference


def find_pictures(name: str, folder: Path, wanted: Sequence[str]) -> list[Path]:
    """The files with these names (posix, relative), ignoring case. Raises one DgiqaError for all that are missing."""
    listing = functools.cache(functools.partial(_listing, folder))
    found = [listing(path.parent).get(_alike(path.name)) for path in map(PurePosixPath, wanted)]
    missing = [item for item, path in zip(wanted, found, strict=True) if path is None]
    if missing or not wanted:
        source = SOURCES.get(name)
        fix = f"unpack it again or get it from {source}" if source else "correct the list or add the files"
        raise DgiqaError(
            f"{name}: {len(wanted)} pictures wanted in {folder}, {len(wanted) - len(missing)} there; "
            f"missing {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}; {fix}"
        )
    return [path for path in found if path is not None]


def _listing(folder: Path, relative: PurePosixPath) -> dict[str, Path]:
    """Lower-case name -> file in a folder, whose own name is also matched without case; empty if it is missing."""
    for part in relative.parts:
        if not os.path.isdir(folder):  # Path.is_dir raises for a name that is too long
            return {}
        folder = next((p for p in sorted(folder.iterdir()) if _alike(p.name) == _alike(part)), folder / part)
    return {_alike(path.name): path for path in folder.iterdir()} if os.path.isdir(folder) else {}


def _alike(name: str) -> str:
    """A key that ignores case and how accents are encoded: archives from macOS store letter and accent separately."""
    return unicodedata.normalize("NFC", name).lower()


def _missing(name: str, what: str, where: Path) -> DgiqaError:
    there = sorted(path.name for path in where.iterdir())[:8] if where.is_dir() else None
    seen = "no such folder" if there is None else f"there is {', '.join(there) or 'nothing'}"
    return DgiqaError(
        f"{name}: {what} was looked for in {where}; {seen}; unpack it fully or get it from {SOURCES[name]}"
    )


def _file(name: str, folder: Path, wanted: str) -> Path:
    if not (folder / wanted).is_file():
        raise _missing(name, wanted, folder)
    return folder / wanted


def _first_folder(name: str, root: Path, wanted: Sequence[str]) -> Path:
    folders = [root / relative for relative in wanted if (root / relative).is_dir()]
    if not folders:
        raise _missing(name, " or ".join(f"{relative}/" for relative in wanted), root)
    return folders[0]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DgiqaError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from error
    except OSError as error:
        raise DgiqaError(f"{path} cannot be read ({error.strerror or error}); wanted a text file of labels") from error


def _pairs(path: Path) -> list[list[str]]:
    """The first two words of every line that is not empty."""
    lines = [line.split()[:2] for line in _text(path).splitlines() if line.strip()]
    short = next((line for line in lines if len(line) < 2), None)
    if short:
        raise DgiqaError(f"{path} has a line with only {short[0]!r}; wanted a name and a score on each")
    return lines


def _number(path: Path, text: str | None) -> float:
    """A score as a number. Raises DgiqaError, which names the file, unless it is finite."""
    try:
        value = float(text or "")
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise DgiqaError(f"{path} has the score {text!r}; wanted a finite number such as 3.5; correct that row")
    return value


def _check_splits(path: Path, found: Iterable[str]) -> None:
    unknown = sorted(set(found) - set(SPLITS))
    if unknown:
        raise DgiqaError(f"{path}: the split column holds {unknown}; it can hold {', '.join(SPLITS)}")


def _table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    reader = csv.DictReader(io.StringIO(_text(path), newline=""))
    try:
        rows = list(reader)
    except csv.Error as error:
        raise DgiqaError(f"{path} is not a CSV from line {reader.line_num + 1} on ({error}); save it again") from error
    missing = [column for column in columns if column not in (reader.fieldnames or ())]
    if missing or not rows:
        raise DgiqaError(
            f"{path} has the columns {', '.join(reader.fieldnames or ['none'])} and {len(rows)} rows; "
            f"wanted the columns {', '.join(columns)}"
        )
    if short := next((number for number, row in enumerate(rows, 1) if None in map(row.get, columns)), None):
        raise DgiqaError(f"{path}: row {short} ends before {', '.join(columns)}; correct it or take it out")
    return rows


def _matlab(name: str, path: Path, *keys: str) -> list[Array]:
    """The arrays with these names in a MATLAB file."""
    loadmat = load("scipy.io", f"{name}: reading {path.name}", "scipy", "train", kind=DgiqaError).loadmat
    file = _file(name, path.parent, path.name)
    try:
        held = loadmat(file)
        return [held[key] for key in keys]
    except Exception as error:  # scipy raises many types on damaged files, most of them its own
        raise DgiqaError(
            f"{name}: {path} is not a MATLAB file with {' and '.join(keys)} ({error}); get it from {SOURCES[name]}"
        ) from error


def _strings(cells: Array) -> list[str]:
    """A MATLAB cell array of strings, 1 x n or n x 1."""
    return [str(np.ravel(cell)[0]) for cell in np.ravel(cells)]


def _csiq_workbook(path: Path) -> list[tuple[str, float]]:
    """Rows of the sheet all_by_image: image, dst_type, dst_lev and dmos, below some decoration."""
    try:
        openpyxl: Any = import_module("openpyxl")
    except ImportError as error:
        raise DgiqaError(
            f"csiq: reading {path} needs openpyxl, which is not installed: pip install openpyxl, "
            "or put a csiq_label.txt with 'name dmos' lines next to it"
        ) from error
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        rows = list(book["all_by_image"].iter_rows(values_only=True)) if "all_by_image" in book else []
        book.close()
    except Exception as error:  # zip, XML and its own errors, a dozen kinds
        raise DgiqaError(f"csiq: {path} is not an Excel workbook ({error}); get it from {SOURCES['csiq']}") from error
    wanted = {"image", "dst_type", "dst_lev", "dmos"}
    start = next((i for i, row in enumerate(rows) if wanted <= set(row)), None)
    if start is None:
        raise DgiqaError(f"csiq: {path} has no sheet all_by_image with {', '.join(sorted(wanted))}; get it again")
    named = [dict(zip(rows[start], row, strict=False)) for row in rows[start + 1 :]]
    named = [row for row in named if row["image"] is not None]
    unknown = sorted({str(row["dst_type"]) for row in named} - set(CSIQ_TYPES))
    if unknown:
        raise DgiqaError(f"csiq: {path} has the distortions {unknown}; known are {', '.join(CSIQ_TYPES)}")
    return [
        (
            f"{_integer(row['image'])}.{CSIQ_TYPES[row['dst_type']]}.{_integer(row['dst_lev'])}.png",
            _number(path, str(row["dmos"])),
        )
        for row in named
    ]


def _integer(cell: Any) -> str:
    """A cell as text; the picture called 1600 is a number in the workbook."""
    return str(int(cell)) if isinstance(cell, float) else str(cell)
