"""Time exported graphs: each network's twin against the network as written, and window attention in three ways.

    python bench/graph.py [--only small ... attention] [--plugin build/libdgiqa_tensorrt.so]
    python bench/graph.py --quick                  a few cases, to see that it works; does not write the docs

Same weights, same engine, run in turn -> bench/results/graph.jsonl, and the tables in docs/graph.md. On OpenVINO the
twin is also run in a network for any shape, which a session uses for all shapes but the first. "attention" is the
full-size quality network:

    plain    bias and mask are added one after the other
    folded   shifted windows become heads, and one constant is added, as fused attention wants it; the default
    plugin   one operator for each attention, which our kernel implements

With TensorRT and a GPU, attention is timed in fp16 plans fed from the GPU's memory, by wall time. On all machines it is
timed in ONNX Runtime and OpenVINO, fp32, by CPU time of one thread. Exports and plans are kept under --work as long as
the code stays the same; an interrupted run goes on where it stopped.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from markdown import last_cases, number
from markdown import table as as_table
from stamp import identity, machine_line
from timer import compare, lines, parsed, parser

from dgiqa import spec
from dgiqa.runtime.backends import ONNXRUNTIME, OPENVINO, TENSORRT, backends
from dgiqa.runtime.session import Session, open_session

SIZES: dict[str, tuple[Any, ...]] = {  # inputs of one run: tiles, or height and width of a depth input
    "small": (1, 6, 8),
    "small depth": ((256, 352), (256, 256)),
    "full": (1, 6, 8),
    "vits": ((518, 686), (518, 518)),
    "attention": (1, 8, 20),
    "narrow": (1,),  # attention of a few layers, to see that it works
}
NAMES = {
    "small": "quality, small",
    "small depth": "depth, small",
    "full": "quality, full size",
    "vits": "Depth Anything ViT-S",
}
REFERENCE, TWIN, ANY = "as written", "twin", "twin, any shape"
PLAIN, FOLDED, PLUGIN = "plain", "folded", "plugin"
# Options of the exporter; the first is the baseline
WAYS: dict[str, dict[str, Any]] = {REFERENCE: {"twin": False}, TWIN: {}}
ATTENTION: dict[str, dict[str, Any]] = {
    PLAIN: {"attention": "standard"},
    FOLDED: {"attention": "folded"},
    PLUGIN: {"attention": "op"},
}
PAIRS = 20  # fewer than the runs after which an OpenVINO session compiles a second network of fixed shapes
ON_A_GPU = 200
DOCS = Path(__file__).parent.parent / "docs" / "graph.md"
Line = dict[str, Any]


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--only", nargs="+", choices=tuple(SIZES), default=[*NAMES, "attention"], help="what to measure")
    made.add_argument("--plugin", type=Path, help="the TensorRT plugin that CMake builds")
    made.add_argument("--seconds", type=float, default=45, help="that one case may take  [%(default)s]")
    made.add_argument("--work", type=Path, default=Path("data/graph"), help="where exports are kept  [%(default)s]")
    made.add_argument("--docs", type=Path, default=DOCS, help="the page that has the tables  [%(default)s]")
    options = parsed(made, "graph.jsonl")
    options.work /= identity(options.ledger.stamp)
    for network in options.only:
        ways = ways_of(network)
        wanted = (ONNXRUNTIME, OPENVINO) if network in NAMES else (TENSORRT, ONNXRUNTIME, OPENVINO)
        for backend in (name for name in wanted if name in backends()):
            named = [way for way in ways if way != PLUGIN or (backend == TENSORRT and options.plugin)]
            for size in SIZES[network][: 1 if options.quick else None]:
                case = {"network": network, "backend": backend, "size": size}
                case |= {"ways": named} if ways is ATTENTION else {}
                line = options.ledger.case(case, partial(measured, network, backend, size, named, options))
                print(*_cells(line), sep="  ", flush=True)
    if not options.quick:
        for name, made in tables(lines(options.out)).items():
            put_between(options.docs, *marks(name), made)
    return 0


def ways_of(network: str) -> dict[str, dict[str, Any]]:
    return WAYS if network in NAMES else ATTENTION


def measured(network: str, backend: str, size: Any, ways: Sequence[str], options: argparse.Namespace) -> Line:
    """Times of the graphs, ms, the first one's over theirs pair by pair, and relative differences from its outputs."""
    import onnx

    files = {way: exported(network, way, options.work) for way in ways}
    counts = {way: len(onnx.load(path).graph.node) for way, path in files.items()}
    feeds: Mapping[str, Any] = inputs(size)
    alone: dict[str, Any] = {} if network in NAMES else {"threads": 1}
    plugins = {PLUGIN: [options.plugin]}
    if backend == TENSORRT:
        import torch

        files = {way: _plan(path, plugins.get(way, [])) for way, path in files.items()}
        feeds = {name: torch.from_numpy(array).cuda() for name, array in feeds.items()}
    sessions: dict[str, Session] = {
        way: open_session(path, backend, plugins=plugins.get(way, []), **alone) for way, path in files.items()
    }
    if backend == OPENVINO and TWIN in files:
        sessions[ANY] = open_session(files[TWIN], backend)
        sessions[ANY].run(inputs(size + 1 if isinstance(size, int) else (size[0], size[1] + 224)))
    name = spec.QUALITY_FEATURES if alone else None
    first = {way: session.run(feeds) for way, session in sessions.items()}
    outputs = {way: np.asarray(found[name or next(iter(found))]) for way, found in first.items()}
    calls: dict[str, Any] = {way: partial(session.run, feeds) for way, session in sessions.items()}
    if cpu := bool(alone) and backend != TENSORRT:
        calls = {way: partial(cpu_ms, call) for way, call in calls.items()}
    pairs = 3 if options.quick else ON_A_GPU if backend == TENSORRT else PAIRS
    results = compare(calls, pairs=pairs, seconds=options.seconds, clock="own" if cpu else "wall")
    wanted = outputs[ways[0]]
    apart = {way: float(np.abs(got - wanted).max() / np.abs(wanted).max()) for way, got in outputs.items()}
    return {"rows": [result.as_dict() for result in results], "difference": apart, "nodes": counts}


def cpu_ms(call: Any) -> float:
    """CPU milliseconds of a call in this process, which other load on the machine hardly changes."""
    started = time.process_time()
    call()
    return 1e3 * (time.process_time() - started)


def exported(network: str, way: str, folder: Path) -> Path:
    """The exported file of an untrained network, without zeros in its weights that a tool could drop."""
    path = folder / f"{network}-{way}.onnx".replace(" ", "-")
    if not path.is_file():
        import torch

        from dgiqa.nn.depth import SMALL_PREPROCESS, SmallDepth
        from dgiqa.nn.depth_anything import ENCODERS, DepthAnything
        from dgiqa.nn.network import DGIQA, FULL, SMALL
        from dgiqa.nn.onnx_export import export_depth, export_quality, untrained

        torch.manual_seed(0)
        how = ways_of(network)[way]
        if network in ENCODERS:
            export_depth(untrained(DepthAnything(network)), path, **how)
        elif network == "small depth":
            export_depth(untrained(SmallDepth()), path, preprocess=SMALL_PREPROCESS, **how)
        else:
            config = SMALL if network == "small" else narrow() if network == "narrow" else FULL
            export_quality(untrained(DGIQA(config)), path, **how)
    return path


def narrow() -> Any:
    """A Swin of a few layers."""
    from dgiqa.nn.network import FULL

    swin = {"embed_dim": 32, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8)}
    return dataclasses.replace(FULL, backbone_options=swin, tcb_channels=(16, 16, 16, 32), heads=4, dilated_channels=32)


def _plan(onnx: Path, plugins: list[Path]) -> Path:
    from dgiqa.builder.plan import build_plan
    from dgiqa.builder.precision import load_model, to_half

    plan, half = onnx.with_suffix(".plan"), onnx.with_suffix(".fp16.onnx")
    if not plan.is_file():
        half.write_bytes(to_half(load_model(onnx)).SerializeToString())
        shape = tuple((n, 3, spec.TILE, spec.TILE) for n in SIZES["attention"])
        shapes = dict.fromkeys((spec.QUALITY_RGB, spec.QUALITY_DEPTH), shape)
        build_plan(half, plan, shapes=[shapes], plugins=plugins, progress=print)  # type: ignore[list-item]
    return plan


def inputs(size: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Random tiles, or a random depth input of (height, width)."""
    rng = np.random.default_rng(0)
    if isinstance(size, int):
        shape = (size, 3, spec.TILE, spec.TILE)
        return {name: rng.standard_normal(shape, np.float32) for name in (spec.QUALITY_RGB, spec.QUALITY_DEPTH)}
    return {spec.DEPTH_INPUT: rng.standard_normal((1, 3, *size), np.float32)}


def tables(measurements: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The tables of twins and of attention in Markdown, from the last line of every case, with their machines."""
    cases, made = last_cases(measurements), {}
    for name, head, members in (
        ("twins", ("network", "one run", "engine", "as written, ms", TWIN, ANY, "nodes"), NAMES),
        ("attention", ("engine", "one run", "plain, ms", FOLDED, PLUGIN, "features apart"), ("attention",)),
    ):
        own = [(line, stamp) for line, stamp in cases if line["case"]["network"] in members]
        machines = dict.fromkeys(machine_line(stamp) for _, stamp in own)
        rows = as_table(head, [_cells(line) for line, _ in own])
        made[name] = rows + "\n\n" + "".join(f"- {machine}\n" for machine in machines)
    return made


def marks(name: str) -> tuple[str, str]:
    """The marks around a table on the page."""
    return f"<!-- bench/graph.py, {name}: begin -->\n", f"<!-- bench/graph.py, {name}: end -->\n"


def put_between(path: Path, begin: str, end: str, made: str) -> None:
    """Replace the text of a page between two marks. Raises ValueError if it has no such marks."""
    text = path.read_text(encoding="utf-8")
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"{path} has no place for the table; wanted the lines {begin.strip()} and {end.strip()}")
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    path.write_text(f"{before}{begin}\n{made}\n{end}{after}", encoding="utf-8")


def _cells(line: Mapping[str, Any]) -> list[str]:
    case, rows = line["case"], {row["name"]: row for row in line["rows"]}
    size = f"{case['size']} tiles" if isinstance(case["size"], int) else "x".join(map(str, case["size"]))
    twins = case["network"] in NAMES
    first, *others = (REFERENCE, TWIN, ANY) if twins else (PLAIN, FOLDED, PLUGIN)
    times = [number(rows[first]["ms"]["median"])]
    times += [f"{rows[name]['ratio']['median']:.2f}x" if name in rows else "" for name in others]
    if twins:
        count = " to ".join(f"{line['nodes'][name]:,}" for name in (REFERENCE, TWIN))
        return [NAMES[case["network"]], size, case["backend"], *times, count]
    return [case["backend"], size, *times, f"{max(line['difference'].values()):.1e}"]


if __name__ == "__main__":
    sys.exit(main())
