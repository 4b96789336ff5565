"""Compare a full-reference score and classical metrics with human-tuned metrics, on pictures that it never saw.

    pip install piq ssimulacra2 cvvdp imageio-ffmpeg
    python bench/full_reference.py --pictures UNSEEN --bundle BUNDLE --out bench/results/full-reference

The pairs are groups of `recipes.full_reference.pairs`, from other pictures and seeds. SSIMULACRA 2 was fitted to
people's opinions of compressed pictures, and the score learnt from it; ColorVideoVDP and VMAF were fitted to other
opinions, and nothing here learnt from them. Metrics' values are kept in metrics.csv; a stopped run goes on after its
last row.

With `--people`, pictures of CID22's validation part are stored in 16 ways; people said 13,485 times which of two is
closer to the original (mucped23: github.com/google-research/google-research, Apache-2.0). `pip install pyjpegli`

With `--large`, large pictures are stored in 13 ways, and the score at their own size and at the model's working size is
compared with Butteraugli (`apt install libjxl-devtools`), from which nothing here learnt.
"""

import csv
import functools
import io
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from stamp import ROOT, command_line, write_json

sys.path.append(str(ROOT))  # for recipes/
from dgiqa import Scorer
from dgiqa.bundle import load_bundle
from dgiqa.errors import ParityError
from dgiqa.full_reference import likeness
from dgiqa.metrics import srocc
from dgiqa.nn.backbones import import_timm
from dgiqa.nn.datasets import read_rgb
from dgiqa.preprocess import working_image
from dgiqa.spec import Preprocess
from recipes.full_reference import pairs
from recipes.small import encoding

Bytes = NDArray[np.uint8]
Say = Callable[[Bytes, Bytes], Sequence[float]]  # (reference, picture) uint8 [H,W,3] -> each metric's value
PIQ = {"SSIM": "ssim", "MS-SSIM": "multi_scale_ssim", "FSIM": "fsim", "VSI": "vsi"}
UNSEEN = ("ColorVideoVDP", "VMAF")  # human-tuned, and not used for learning
SEEN = "SSIMULACRA 2"
ELO = {  # of JPEG by (encoder, quality, chroma)
    **{("libjpeg-turbo", q, 420): elo for q, elo in ((55, 1418), (60, 1523), (65, 1573), (70, 1685), (75, 1757))},
    **{("libjpeg-turbo", q, 422): elo for q, elo in ((80, 1990), (85, 2151))},
    **{("libjpeg-turbo", q, 444): elo for q, elo in ((90, 2393), (95, 2608))},
    **{("jpegli", q, 420): elo for q, elo in ((65, 1601), (70, 1692), (75, 1824), (80, 1981), (85, 2135), (90, 2297))},
    ("jpegli", 95, 420): 2482,
}
LARGE = [  # ways of spoiling a large picture, and how much
    *(("jpeg", quality) for quality in (5, 12, 25, 50, 75, 90)),
    *(("webp", 10), ("webp", 50), ("avif", 20), ("avif", 50), ("blur", 1), ("noise", 6), ("half", 2)),
]
ROW = ("group", "what", "much")


def psnr(reference: Bytes, rgb: Bytes) -> float:
    return float(-10 * np.log10(max(1e-10, np.mean((reference / 255.0 - rgb / 255.0) ** 2))))


def of_piq(name: str, reference: Bytes, rgb: Bytes) -> float:
    import_timm()  # piq imports torchvision, which may need its ops declared
    import piq

    x, y = (torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255 for image in (rgb, reference))
    return float(getattr(piq, PIQ[name])(x, y, data_range=1.0))


@functools.cache
def _cvvdp() -> Any:
    import_timm()
    import pycvvdp

    return pycvvdp.cvvdp(display_name="standard_4k", device=torch.device("cpu"))


def color_video_vdp(reference: Bytes, rgb: Bytes) -> float:
    return float(_cvvdp().predict(rgb, reference, dim_order="HWC")[0])


def of_program(line: str, figure: str, *images: Bytes) -> float:
    """A program's output for images, whose files replace {0} and {1} in its command line."""
    with tempfile.TemporaryDirectory() as folder:
        files = [f"{folder}/{number}.ppm" for number in range(len(images))]
        for file, image in zip(files, images, strict=True):
            Image.fromarray(image).save(file)
        words = [word.format(*files) for word in line.split()]
        said = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True).stdout
    return float(re.findall(rf"{figure}: ([\d.]+)", said)[0])


def vmaf(reference: Bytes, rgb: Bytes) -> float:
    import imageio_ffmpeg

    as_video = "[0]format=yuv444p[p];[1]format=yuv444p[r];[p][r]libvmaf"
    line = f"{imageio_ffmpeg.get_ffmpeg_exe()} -i {{0}} -i {{1}} -lavfi {as_video} -f null -"
    return of_program(line, "VMAF score", rgb, reference)


def butteraugli(reference: Bytes, rgb: Bytes) -> float:
    return -of_program("butteraugli_main {0} {1}", "3-norm", reference, rgb)


METRICS: dict[str, Callable[[Bytes, Bytes], float]] = {
    **{"PSNR": psnr, **{name: functools.partial(of_piq, name) for name in PIQ}},
    **{SEEN: pairs.ssimulacra2, "VMAF": vmaf, "ColorVideoVDP": color_video_vdp},
}
MODEL = ("full_reference", "1 - drop")


def by_metrics(reference: Bytes, rgb: Bytes) -> list[float]:
    return [metric(reference, rgb) for metric in METRICS.values()]


def by_model(scorer: Scorer, reference: Bytes, rgb: Bytes) -> list[float]:
    found = scorer.compare(rgb, reference)
    return [found.full_reference or 0.0, 1 - found.drop]


def measure(made: tuple[Sequence[Path], int, int], names: Sequence[str], said: Say, file: Path) -> list[dict[str, str]]:
    """Rows for all pairs of (paths, groups, seed), kept in `file`: group, distortion, its strength, and metrics."""
    paths, groups, seed = made
    rows = list(csv.DictReader(file.open(newline=""))) if file.exists() else []
    done = len(rows) // pairs.WORSE
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [*ROW, *names])
        writer.writeheader()
        writer.writerows(rows[: done * pairs.WORSE])
        for number in range(done, groups):
            (reference, _, _), *made = pairs.group(paths, seed, number)
            for rgb, what, much in made:
                found = {name: f"{value:.7g}" for name, value in zip(names, said(reference, rgb), strict=True)}
                writer.writerow(dict(zip(ROW, (number, what, round(much, 3)), strict=True)) | found)
            stream.flush()
    return list(csv.DictReader(file.open(newline="")))


def table(rows: Sequence[Mapping[str, str]]) -> dict[str, dict[str, float]]:
    """Every column's rank correlation with the human-tuned metrics, over all pairs."""
    values = {name: np.array([float(row[name]) for row in rows]) for name in rows[0] if name not in ROW}
    return {name: {b: round(srocc(v, values[b]), 4) for b in (*UNSEEN, SEEN)} for name, v in values.items()}


def stored(rgb: Bytes, encoder: str, quality: int, chroma: int) -> Bytes:
    """The picture as JPEG."""
    if encoder == "jpegli":
        import pyjpegli

        data = pyjpegli.encode(rgb.tobytes(), rgb.shape[1], rgb.shape[0], quality)
    else:
        file = io.BytesIO()
        Image.fromarray(rgb).save(file, "JPEG", quality=quality, subsampling={444: 0, 422: 1, 420: 2}[chroma])
        data = file.getvalue()
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def beside_people(paths: Sequence[Path], scorer: Scorer) -> dict[str, float]:
    """Rank correlation of each metric's mean over the pictures with the Elo of the ways in which they are stored."""
    originals, means = [read_rgb(path) for path in paths], []
    for way in ELO:
        kept = [(rgb, stored(rgb, *way)) for rgb in originals]
        means.append(np.mean([[*by_metrics(*pair), *by_model(scorer, *pair)] for pair in kept], axis=0))
    elo = np.array(list(ELO.values()), float)
    return {name: round(srocc(v, elo), 4) for name, v in zip((*METRICS, *MODEL), np.array(means).T, strict=True)}


def spoilt(rgb: Bytes, what: str, much: float) -> Bytes:
    """A large picture, spoilt in one of LARGE's ways."""
    if what == "blur":
        return np.asarray(cv2.GaussianBlur(rgb, (0, 0), much), np.uint8)
    if what == "noise":
        return np.clip(rgb + np.random.default_rng(0).normal(size=rgb.shape) * much, 0, 255).astype(np.uint8)
    if what == "half":
        size = rgb.shape[1], rgb.shape[0]
        half = cv2.resize(rgb, (size[0] // 2, size[1] // 2), interpolation=cv2.INTER_AREA)
        return np.asarray(cv2.resize(half, size, interpolation=cv2.INTER_CUBIC), np.uint8)
    return encoding.save(rgb, what, much)


def at_own_size(paths: Sequence[Path], p: Preprocess) -> dict[str, float]:
    """Rank correlations of large pictures' scores with Butteraugli, at their own size and at the working size."""
    rows = []
    for path in paths:
        rgb = read_rgb(path)
        for way in LARGE:
            made = spoilt(rgb, *way)
            sizes = (made, rgb), (working_image(made, p), working_image(rgb, p))
            rows.append([butteraugli(rgb, made), *(likeness(*pair) for pair in sizes)])
    metric, own, working = np.array(rows).T
    return {"pairs": len(rows), "own size": srocc(own, metric), "working size": srocc(working, metric)}


def parity(paths: Sequence[Path], groups: int, seed: int, bundle: str) -> dict[str, float | str]:
    """The most that full-reference scores move in every precision and backend here, or why it was not measured."""
    made = [pairs.group(paths, seed, number) for number in range(groups)]

    def of(**options: Any) -> NDArray[np.float64]:
        with Scorer(bundle, build=True, **options) as scorer:
            return np.array([scorer.compare(rgb, g[0][0]).full_reference for g in made for rgb, _, _ in g])

    def moved(backend: str, precision: str) -> float | str:
        try:
            return round(float(np.abs(of(backend=backend, precision=precision) - reference).max()), 6)
        except ParityError as error:  # the build refuses an engine that is over its budget
            return str(error)

    reference = of(backend="onnxruntime")
    cases = [(b, p) for b in ("onnxruntime", "openvino") for p in ("fp32", "fp16", "int8")]
    return {f"{b} {p}": moved(b, p) for b, p in cases[1:]}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_line(__doc__)
    parser.add_argument("--pictures", type=Path, required=True, nargs="+")
    parser.add_argument("--bundle", default="small")
    parser.add_argument("--people", type=Path, nargs="*", default=[], help="pictures of CID22's validation part")
    parser.add_argument("--large", type=Path, nargs="*", default=[], help="large pictures")
    parser.add_argument("--parity", type=int, default=0, help="groups whose scores are compared in every precision")
    parser.add_argument("--groups", type=int, default=146)
    parser.add_argument("--seed", type=int, default=777)
    parser.add_argument("--out", type=Path, required=True)
    o = parser.parse_args(arguments)
    torch.set_num_threads(1)
    o.out.mkdir(parents=True, exist_ok=True)
    paths = [p for given in o.pictures for p in pairs.photographs(given)]
    made = (paths, o.groups, o.seed)
    rows = measure(made, list(METRICS), by_metrics, o.out / "metrics.csv")
    with Scorer(o.bundle) as scorer, tempfile.TemporaryDirectory() as scratch:
        own = measure(made, MODEL, functools.partial(by_model, scorer), Path(scratch, "model.csv"))
        same = [scorer.compare(str(path), str(path)).full_reference or 0.0 for path in paths[:20]]
        people = beside_people(o.people, scorer) if o.people else {}
    found = {"pairs": len(rows), "srocc": table([a | b for a, b in zip(rows, own, strict=True)])}
    found |= {"bundle": o.bundle, "identical": [round(min(same), 4), round(max(same), 4)], "people": people}
    found["large"] = at_own_size(o.large, load_bundle(o.bundle).preprocess) if o.large else {}
    found["parity"] = parity(paths, o.parity, o.seed, o.bundle) if o.parity else {}
    write_json(o.out / "table.json", found)
    print(f"{len(rows)} pairs; identical pictures {found['identical']}")
    for name, row in found["srocc"].items():
        print(f"{name:16s}", *(f"{label} {value:.3f}  " for label, value in row.items()), people.get(name, ""))
    print(*(f"{name} {value}  " for part in ("large", "parity") for name, value in found[part].items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
