"""How fast each engine runs each network on this CPU, as ratios against eager PyTorch fp32 in the same run.

    python bench/engines.py [--only full/quality] [--batches 1 8 20] [--seconds 60] [--skip-int8] [--work DIR]

Two sizes of both networks: the published ones ("full": DGIQA and Depth Anything ViT-S) and those of the default bundle
("small"), with untrained weights of a fixed seed, exported and quantised here; what a network has learned does not
change how long it takes. All engines of a case take turns, so that whatever else the machine does hits all of them.
Scores of photographs say how far each engine is from PyTorch. int8 files have every layer in int8: an engine that has
to leave some out to meet its budget is a little slower. Figures are added to the JSON lines file case by case, and a
run that was stopped goes on; beside it stands the table that they make.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgiqa import preprocess, spec
from dgiqa.backends.ort import OrtSession
from dgiqa.backends.ov import OvSession, cpu_precisions
from dgiqa.bundle import MANIFEST, Bundle, load_bundle, user_cache, write_bundle
from dgiqa.quantize import quantize_bundle
from dgiqa.sessions import usable_cores

sys.path.insert(0, str(Path(__file__).parent))
from timer import Ledger, compare, lines, parsed, parser

SEED = 0
NETWORKS = {"quality": spec.QUALITY_FILE, "depth": spec.DEPTH_FILE}
DEPTH_SIZES = {"full": ((518, 518), (518, 686)), "small": ((256, 256), (256, 352))}
CALIBRATION = Path(__file__).parent.parent / "examples"
BASELINE = "torch eager fp32"

Feeds = dict[str, NDArray[np.float32]]
Run = Callable[[Feeds], NDArray[Any]]


def prepared(size: str, work: Path, int8: bool) -> Bundle:
    """The bundle of one size in work/<size>/fp32 and, if wanted, int8 files in work/<size>/int8; made if missing."""
    fp32, quantised = work / size / "fp32", work / size / "int8"
    if not (fp32 / MANIFEST).is_file():
        _exported(size, fp32)
    bundle = load_bundle(fp32)
    if int8 and not (quantised / spec.QUALITY_FILE).is_file():
        # a budget that everything meets: no layer is left out, and no hours are spent on finding which
        quantize_bundle(bundle, "int8", quantised, calibration=[CALIBRATION], budget=1.0, progress=_say)
    return bundle


def engines(bundle: Bundle, file: str, eager: Run) -> dict[str, Run]:
    """Name -> something that runs the network of this file, the baseline first."""
    fp32, int8 = bundle.file(file), bundle.path.parent / "int8" / file
    sessions: dict[str, Any] = {"onnxruntime fp32": OrtSession(fp32), "openvino fp32": OvSession(fp32)}
    if "bf16" in cpu_precisions():
        sessions["openvino bf16"] = OvSession(fp32, precision="bf16")
    if int8.is_file():
        sessions["onnxruntime int8"] = OrtSession(int8)
        sessions["openvino int8"] = OvSession(int8, precision="int8")
    runs = {name: lambda feeds, s=session: s.run(feeds)[s.outputs[0]] for name, session in sessions.items()}
    return {BASELINE: eager, **runs}


def eager(size: str, network: str) -> Run:
    """The network in PyTorch: feeds -> its output."""
    import torch

    torch.set_num_threads(usable_cores())
    model = _modules(size)[network]

    def run(feeds: Feeds) -> NDArray[Any]:
        with torch.inference_mode():
            return np.asarray(model(*(torch.from_numpy(array) for array in feeds.values())))

    return run


def cases(size: str, network: str, batches: list[int], p: spec.Preprocess) -> Iterator[tuple[dict[str, Any], Feeds]]:
    """(what the case is, inputs): real tiles in batches, or photographs at the depth network's sizes."""
    if network == "depth":
        for height, width in DEPTH_SIZES[size]:
            image = preprocess.depth_input(_resized(_photographs()[0], height, width), p)
            yield {"size": size, "network": network, "input": f"{height}x{width}"}, {spec.DEPTH_INPUT: image}
        return
    rgb, depth = _tiles(p)
    for batch in batches:
        chosen = np.arange(batch) % len(rgb)
        yield (
            {"size": size, "network": network, "batch": batch},
            {spec.QUALITY_RGB: rgb[chosen], spec.QUALITY_DEPTH: depth[chosen]},
        )


def measured(runs: dict[str, Run], feeds: Feeds, options: Namespace) -> dict[str, Any]:
    """Times in turn, and how far each engine's output is from the baseline's."""
    wanted = runs[BASELINE](feeds)
    scale = 1.0 if spec.QUALITY_RGB in feeds else float(np.ptp(wanted))  # depth has no unit: parts of its range
    facts = {}
    for name, run in runs.items():
        off = np.abs(run(feeds) - wanted) / scale
        facts[name] = {"max_difference": float(off.max()), "mean_difference": float(off.mean())}
    calls = {name: lambda run=run: run(feeds) for name, run in runs.items()}
    results = compare(calls, pairs=3 if options.quick else 40, warmup=1, seconds=options.seconds, facts=facts)
    for result in results:
        print(f"  {result}", flush=True)
    return {"results": [result.as_dict() for result in results]}


def table(path: Path) -> str:
    """The newest figures of each case as a Markdown table: ratios against the baseline, and its time."""
    newest = {str(line["case"]): line for line in lines(path) if "case" in line}
    names = list(dict.fromkeys(result["name"] for line in newest.values() for result in line["results"][1:]))
    rows = [f"| network | input | {BASELINE} | {' | '.join(names)} |", "|---" * (len(names) + 3) + "|"]
    for line in newest.values():
        case, results = line["case"], {result["name"]: result for result in line["results"]}
        what = case.get("input") or f"batch {case['batch']}"
        cells = [f"{results[BASELINE]['ms']['median']:.0f} ms"]
        cells += [_cell(results[name]) if name in results else "" for name in names]
        rows.append(f"| {case['network']}, {case['size']} | {what} | {' | '.join(cells)} |")
    note = (
        "Ratio of the times, round by round; in brackets the largest difference from PyTorch, of a tile's score or of"
    )
    return "\n".join([*rows, "", f"{note} the depth's range.", ""])


def _cell(result: dict[str, Any]) -> str:
    return f"{result['ratio']['median']:.2f}x ({result['max_difference']:.0e})"


def _exported(size: str, target: Path) -> None:
    from dgiqa.nn.onnx_export import export_depth, export_quality

    _say(f"exporting the {size} networks")
    p, models = _preprocess(size), _modules(size)
    labels = {"licence": "Apache-2.0", "source": "bench/engines.py", "title": "untrained, to measure speed"}
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder, name) for name in NETWORKS.values()}
        export_quality(models["quality"], files[spec.QUALITY_FILE])
        export_depth(models["depth"], files[spec.DEPTH_FILE], preprocess=p)
        write_bundle(target, name=f"bench-{size}", files=files, preprocess=p, **labels)


def _modules(size: str) -> dict[str, Any]:
    """The networks of one size with the weights that SEED gives."""
    import torch

    from dgiqa.nn.depth_anything import DepthAnything
    from dgiqa.nn.network import DGIQA, FULL, SMALL
    from dgiqa.nn.small_depth import SmallDepth

    torch.manual_seed(SEED)
    small = size == "small"
    quality, depth = DGIQA(SMALL if small else FULL), SmallDepth() if small else DepthAnything("vits")
    return {"quality": quality.eval(), "depth": depth.eval()}


def _preprocess(size: str) -> spec.Preprocess:
    return load_bundle("small").preprocess if size == "small" else spec.Preprocess()


def _photographs() -> list[NDArray[np.uint8]]:
    names = ("astronaut.jpg", "chelsea.jpg", "coffee.jpg")
    return [preprocess.decode((CALIBRATION / name).read_bytes()) for name in names]


def _resized(rgb: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    import cv2

    return np.asarray(cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _tiles(p: spec.Preprocess) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Tiles of the photographs, with their own brightness in the place of depth: f32 [n,3,224,224] each."""
    pairs = []
    for photo in _photographs():
        rgb = preprocess.resize_short_side(photo, p.short_side)
        near = np.ascontiguousarray(rgb.max(axis=2))
        windows = preprocess.windows_for("grid", *near.shape, p.tile)
        pairs.append(preprocess.cut_tiles(rgb, near, windows, p.tile))
    return np.concatenate([rgb for rgb, _ in pairs]), np.concatenate([depth for _, depth in pairs])


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--only", nargs="+", metavar="SIZE/NETWORK", help="of full/quality full/depth small/quality ...")
    made.add_argument("--batches", nargs="+", type=int, default=[1, 8, 20], help="tiles a run of the quality network")
    made.add_argument("--seconds", type=float, default=60.0, help="about as long as a case takes")
    made.add_argument("--work", type=Path, default=user_cache() / "bench" / "engines", help="where networks are kept")
    made.add_argument("--skip-int8", action="store_true", help="quantising the full networks takes ten minutes")
    options = parsed(made, "engines.jsonl")
    os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))
    ledger = Ledger(options.out, fresh=options.fresh)
    wanted = options.only or ["small/quality"] if options.quick else options.only
    for subject in wanted or [f"{size}/{network}" for size in DEPTH_SIZES for network in NETWORKS]:
        size, network = subject.split("/")
        bundle = prepared(size, options.work, not options.skip_int8)
        runs: dict[str, Run] = {}
        for case, feeds in cases(size, network, options.batches, bundle.preprocess):
            print(case, flush=True)

            def figures(feeds: Feeds = feeds, runs: dict[str, Run] = runs) -> dict[str, Any]:
                runs |= runs or engines(bundle, NETWORKS[network], eager(size, network))  # noqa: B023 - called now
                return measured(runs, feeds, options)

            ledger.case(case, figures)
        runs.clear()
        gc.collect()  # one set of networks in memory at a time
    options.out.with_suffix(".md").write_text(table(options.out), encoding="utf-8")
    print(table(options.out))


if __name__ == "__main__":
    main()
