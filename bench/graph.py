"""Each network's export twin against the network exported as written: same weights, same engine, run in turn.

    python bench/graph.py [--only small ...]       ->  bench/results/graph.jsonl, and the table in docs/graph.md
    python bench/graph.py --quick                  a few cases, to see that it works; the docs stay as they are

On OpenVINO the twin is also run by the network that takes any shape, which a session uses for all shapes but the first.
Exports are kept under --work as long as the code stays the same; an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from markdown import last_cases, number
from markdown import table as as_table
from stamp import identity, machine_line
from timer import Ledger, compare, lines, parsed, parser

from dgiqa import spec
from dgiqa.runtime.backends import ONNXRUNTIME, OPENVINO, backends
from dgiqa.runtime.session import Session, open_session

SIZES: dict[str, tuple[Any, ...]] = {  # what one run is fed: tiles, or height and width of a depth input
    "small": (1, 6, 8),
    "small depth": ((256, 352), (256, 256)),
    "full": (1, 6, 8),
    "vits": ((518, 686), (518, 518)),
}
NAMES = {
    "small": "quality, small",
    "small depth": "depth, small",
    "full": "quality, full size",
    "vits": "Depth Anything ViT-S",
}
CPU = (ONNXRUNTIME, OPENVINO)
REFERENCE, TWIN, ANY = "as written", "twin", "twin, any shape"
PAIRS = 20  # fewer than the runs after which an OpenVINO session compiles a second network of fixed shapes
DOCS = Path(__file__).parent.parent / "docs" / "graph.md"
BEGIN, END = "<!-- bench/graph.py: begin -->\n", "<!-- bench/graph.py: end -->\n"
Line = dict[str, Any]


def main() -> int:
    options = _options()
    ledger = Ledger(options.out, fresh=options.fresh)
    work = options.work / identity(ledger.stamp)
    for network in options.only:
        for backend in [name for name in CPU if name in backends()]:
            for size in SIZES[network][: 1 if options.quick else None]:
                case = {"network": network, "backend": backend, "size": size}
                line = ledger.case(case, partial(measured, **case, folder=work, pairs=3 if options.quick else PAIRS))
                print(*_cells(line), sep="  ", flush=True)
    if not options.quick:
        write_table(options.docs, lines(options.out))
    return 0


def measured(network: str, backend: str, size: Any, folder: Path, pairs: int) -> Line:
    """Times of both graphs, ms, and the reference's over theirs pair by pair; how far their outputs are apart."""
    files = exported(network, folder)
    feeds = inputs(size)
    sessions: dict[str, Session] = {name: open_session(path, backend) for name, path in files.items()}
    if backend == OPENVINO:
        sessions[ANY] = open_session(files[TWIN], backend)
        sessions[ANY].run(inputs(size + 1 if isinstance(size, int) else (size[0], size[1] + 224)))
    outputs = {name: next(iter(session.run(feeds).values())) for name, session in sessions.items()}
    calls = {name: partial(session.run, feeds) for name, session in sessions.items()}
    results = compare(calls, pairs=pairs, seconds=45)
    return {
        "rows": [result.as_dict() for result in results],
        "difference": float(np.abs(outputs[TWIN] - outputs[REFERENCE]).max()),
        "nodes": {name: nodes(path) for name, path in files.items()},
    }


def exported(network: str, folder: Path) -> dict[str, Path]:
    """Both files, untrained: no zeros are left in the weights that a tool could drop."""
    files = {name: folder / f"{network.replace(' ', '-')}-{name.replace(' ', '-')}.onnx" for name in (REFERENCE, TWIN)}
    for name, path in files.items():
        if not path.is_file():
            _export(network, path, twin=name == TWIN)
    return files


def _export(network: str, path: Path, twin: bool) -> None:
    import torch

    from dgiqa.nn.depth import SMALL_PREPROCESS, SmallDepth
    from dgiqa.nn.depth_anything import ENCODERS, DepthAnything
    from dgiqa.nn.network import DGIQA, FULL, SMALL
    from dgiqa.nn.onnx_export import export_depth, export_quality, untrained

    torch.manual_seed(0)
    if network in ENCODERS:
        export_depth(untrained(DepthAnything(network)), path, twin=twin)
    elif network == "small depth":
        export_depth(untrained(SmallDepth()), path, preprocess=SMALL_PREPROCESS, twin=twin)
    else:
        export_quality(untrained(DGIQA(SMALL if network == "small" else FULL)), path, twin=twin)


def inputs(size: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Random tiles, or a random depth input of (height, width)."""
    rng = np.random.default_rng(0)
    if isinstance(size, int):
        shape = (size, 3, spec.TILE, spec.TILE)
        return {name: rng.standard_normal(shape, np.float32) for name in (spec.QUALITY_RGB, spec.QUALITY_DEPTH)}
    return {spec.DEPTH_INPUT: rng.standard_normal((1, 3, *size), np.float32)}


def nodes(path: Path) -> int:
    import onnx

    return len(onnx.load(path).graph.node)


def table(measurements: Iterable[Mapping[str, Any]]) -> str:
    """The last line of every case as Markdown, with the machines that they came from."""
    head = ("network", "one run", "engine", "as written, ms", TWIN, ANY, "nodes")
    return markdown(head, _cells, measurements)


def markdown(
    head: Sequence[str], cells: Callable[[Mapping[str, Any]], list[str]], measurements: Iterable[Mapping[str, Any]]
) -> str:
    """A table of the last line of every case, and below it the machines that they came from."""
    cases = last_cases(measurements)
    machines = dict.fromkeys(machine_line(stamp) for _, stamp in cases)
    return as_table(head, [cells(line) for line, _ in cases]) + "\n\n" + "".join(f"- {m}\n" for m in machines)


def write_table(path: Path, measurements: Iterable[Mapping[str, Any]]) -> None:
    """Put the table between the page's marks. Raises ValueError if it has none."""
    put_between(path, BEGIN, END, table(measurements))


def put_between(path: Path, begin: str, end: str, made: str) -> None:
    """Replace what a page has between two marks. Raises ValueError if it has none."""
    text = path.read_text(encoding="utf-8")
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"{path} has no place for the table; wanted the lines {begin.strip()} and {end.strip()}")
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    path.write_text(f"{before}{begin}\n{made}\n{end}{after}", encoding="utf-8")


def _cells(line: Mapping[str, Any]) -> list[str]:
    case, rows = line["case"], {row["name"]: row for row in line["rows"]}
    size = f"{case['size']} tiles" if isinstance(case["size"], int) else "x".join(map(str, case["size"]))
    ratios = [f"{rows[name]['ratio']['median']:.2f}x" if name in rows else "" for name in (TWIN, ANY)]
    count = " to ".join(f"{line['nodes'][name]:,}" for name in (REFERENCE, TWIN))
    return [NAMES[case["network"]], size, case["backend"], number(rows[REFERENCE]["ms"]["median"]), *ratios, count]


def _options() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--only", nargs="+", choices=tuple(SIZES), default=tuple(SIZES), help="networks to measure")
    made.add_argument("--work", type=Path, default=Path("data/graph"), help="where exports are kept  [%(default)s]")
    made.add_argument("--docs", type=Path, default=DOCS, help="the page that has the table  [%(default)s]")
    return parsed(made, "graph.jsonl")


if __name__ == "__main__":
    sys.exit(main())
