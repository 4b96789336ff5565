"""Window attention of the full-size quality network three ways, whole networks timed in turn.

    python bench/attention.py [--plugin build/libdgiqa_tensorrt.so]   ->  bench/results/attention.jsonl, docs/graph.md
    python bench/attention.py --quick --size narrow      a small network, to see that it works

    plain    bias and mask are added one after the other
    folded   shifted windows become heads, and one constant is added: what fused attention takes, and the default
    plugin   one operator for each attention, served by our kernel

Where TensorRT and a GPU are: fp16 plans of all three, fed from its memory, by the clock. There and elsewhere: plain and
folded in ONNX Runtime and OpenVINO, fp32, CPU time of one thread. Exports and plans are kept under --work as long as
the code stays the same; an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from graph import DOCS, inputs, markdown, nodes, put_between
from markdown import number
from stamp import identity
from timer import Ledger, compare, lines, parsed, parser

from dgiqa import spec
from dgiqa.runtime.backends import ONNXRUNTIME, OPENVINO, TENSORRT, backends
from dgiqa.runtime.session import Session, open_session

WAYS = {"plain": "standard", "folded": "folded", "plugin": "op"}  # as in dgiqa.nn.deploy
PLAIN, FOLDED, PLUGIN = WAYS
TILES = (1, 8, 20)
PAIRS = {TENSORRT: 200}  # elsewhere 20: fewer than the runs after which an OpenVINO session compiles a second network
BEGIN, END = "<!-- bench/attention.py: begin -->\n", "<!-- bench/attention.py: end -->\n"
Line = dict[str, Any]


def main() -> int:
    options = _options()
    ledger = Ledger(options.out, fresh=options.fresh)
    work = options.work / identity(ledger.stamp)
    for backend in [name for name in (TENSORRT, ONNXRUNTIME, OPENVINO) if name in backends()]:
        ways = [PLAIN, FOLDED, *([PLUGIN] if backend == TENSORRT and options.plugin else [])]
        files = networks(ways, backend, work, options.plugin, options.size)
        for tiles in options.tiles[: 1 if options.quick else None]:
            case = {"backend": backend, "tiles": tiles, "ways": ways}
            pairs = 3 if options.quick else PAIRS.get(backend, 20)
            line = ledger.case(
                case,
                partial(measured, files, backend, tiles, pairs=pairs, seconds=options.seconds, plugin=options.plugin),
            )
            print(*_cells(line), sep="  ", flush=True)
    if not options.quick:
        put_between(options.docs, BEGIN, END, table(lines(options.out)))
    return 0


def measured(
    files: Mapping[str, Path], backend: str, tiles: int, *, pairs: int, seconds: float, plugin: Path | None = None
) -> Line:
    """Times of one run, ms; how many times as fast as plain, pair by pair; and how far features are."""
    feeds: Mapping[str, Any] = inputs(tiles)
    sessions: dict[str, Session] = {
        way: open_session(path, backend, threads=1, plugins=[plugin] if way == PLUGIN and plugin else [])
        for way, path in files.items()
    }
    if backend == TENSORRT:
        import torch

        feeds = {name: torch.from_numpy(array).cuda() for name, array in feeds.items()}
    features = {way: np.asarray(session.run(feeds)[spec.QUALITY_FEATURES]) for way, session in sessions.items()}
    calls = {way: partial(session.run, feeds) for way, session in sessions.items()}
    if backend != TENSORRT:
        calls = {way: partial(cpu_ms, call) for way, call in calls.items()}
    clock: Any = "wall" if backend == TENSORRT else "own"
    results = compare(calls, pairs=pairs, warmup=2, seconds=seconds, baseline=PLAIN, clock=clock)
    return {
        "rows": [result.as_dict() for result in results],
        "difference": {way: _apart(array, features[PLAIN]) for way, array in features.items()},
    }


def _apart(got: Any, wanted: Any) -> float:
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def cpu_ms(call: Any) -> float:
    """Milliseconds of this process's CPU that a call takes: steady on a machine that does other things, too."""
    started = time.process_time()
    call()
    return 1e3 * (time.process_time() - started)


def networks(ways: Iterable[str], backend: str, folder: Path, plugin: Path | None, size: str) -> dict[str, Path]:
    """Way -> what the backend opens: an fp32 ONNX file, or an fp16 plan. Untrained, with no zeros to leave out."""
    made = {}
    for way in ways:
        onnx = folder / f"{size}-{way}.onnx"
        if not onnx.is_file():
            _export(onnx, WAYS[way], size)
        made[way] = onnx if backend != TENSORRT else _plan(onnx, [plugin] if way == PLUGIN and plugin else [])
        print(f"{way}: {onnx.name}, {nodes(onnx)} nodes", flush=True)
    return made


def _export(path: Path, attention: Any, size: str) -> None:
    import torch

    from dgiqa.nn.network import DGIQA, FULL
    from dgiqa.nn.onnx_export import export_quality, untrained

    torch.manual_seed(0)
    export_quality(untrained(DGIQA(FULL if size == "full" else _narrow())), path, attention=attention)


def _narrow() -> Any:
    """A Swin of a few layers, to see that this works."""
    import dataclasses

    from dgiqa.nn.network import FULL

    swin = {"embed_dim": 32, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8)}
    return dataclasses.replace(FULL, backbone_options=swin, tcb_channels=(16, 16, 16, 32), heads=4, dilated_channels=32)


def _plan(onnx: Path, plugins: list[Path]) -> Path:
    from dgiqa.builder.plan import build_plan
    from dgiqa.builder.precision import load_model, to_half

    plan, half = onnx.with_suffix(".plan"), onnx.with_suffix(".fp16.onnx")
    if not plan.is_file():
        half.write_bytes(to_half(load_model(onnx)).SerializeToString())
        shape = tuple((n, 3, spec.TILE, spec.TILE) for n in (1, 8, max(TILES)))
        shapes = dict.fromkeys((spec.QUALITY_RGB, spec.QUALITY_DEPTH), shape)
        build_plan(half, plan, shapes=[shapes], plugins=plugins, progress=print)  # type: ignore[list-item]
    return plan


def table(measurements: Iterable[Mapping[str, Any]]) -> str:
    """As Markdown: the last line of every case, with the machines that they came from."""
    return markdown(("engine", "one run", "plain, ms", FOLDED, PLUGIN, "features apart"), _cells, measurements)


def _cells(line: Mapping[str, Any]) -> list[str]:
    case, rows = line["case"], {row["name"]: row for row in line["rows"]}
    ratios = [f"{rows[way]['ratio']['median']:.2f}x" if way in rows else "" for way in (FOLDED, PLUGIN)]
    plain = number(rows[PLAIN]["ms"]["median"])
    return [case["backend"], f"{case['tiles']} tiles", plain, *ratios, f"{max(line['difference'].values()):.1e}"]


def _options() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--plugin", type=Path, help="the TensorRT plugin that CMake builds")
    made.add_argument("--tiles", nargs="+", type=int, default=TILES, help="tiles in a run  [%(default)s]")
    made.add_argument("--seconds", type=float, default=45, help="that one case may take  [%(default)s]")
    made.add_argument("--size", choices=("full", "narrow"), default="full", help="narrow: to see that it works")
    made.add_argument("--work", type=Path, default=Path("data/attention"), help="where exports are kept  [%(default)s]")
    made.add_argument("--docs", type=Path, default=DOCS, help="the page that has the table  [%(default)s]")
    return parsed(made, "attention.jsonl")


if __name__ == "__main__":
    sys.exit(main())
