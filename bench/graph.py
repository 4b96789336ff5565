"""Each network's export twin against the network exported as written: same weights, same session, run in turn.

python bench/graph.py --out bench/results/graph.json
python bench/graph.py --only small --quick
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from timer import Ledger, compare, parsed, parser

from dgiqa import spec
from dgiqa.sessions import backends, open_session

SIZES = {  # what one run is fed: tiles, or height and width of a depth input
    "small": (1, 8),
    "full": (1, 8),
    "vits": ((518, 518), (518, 686)),
}
CPU = ("onnxruntime", "openvino")


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--only", nargs="+", choices=tuple(SIZES), default=tuple(SIZES), help="networks to measure")
    options = parsed(made, "graph.json")
    ledger = Ledger(options.out, fresh=options.fresh)
    with tempfile.TemporaryDirectory() as scratch:
        for network in options.only:
            files: dict[str, Path] = {}
            for backend in [name for name in backends() if name in CPU]:
                for size in SIZES[network][: 1 if options.quick else None]:
                    case = {"network": network, "backend": backend, "size": size}
                    pairs = 3 if options.quick else 20
                    line = ledger.case(case, lambda c=case, f=files, n=pairs: measured(c, f, Path(scratch), n))
                    print(f"{network:8}{backend:14}{size!s:14}{line['ratio']['median']:6.2f}x  {line['nodes']} nodes")
    return 0


def measured(case: dict[str, Any], files: dict[str, Path], scratch: Path, pairs: int) -> dict[str, Any]:
    """Times of both graphs, ms, the reference's over the twin's pair by pair, and how far their outputs are apart."""
    if not files:
        files.update(exported(case["network"], scratch))
    feeds = inputs(case["size"])
    sessions = {name: open_session(path, case["backend"]) for name, path in files.items()}
    outputs = [next(iter(session.run(feeds).values())) for session in sessions.values()]
    calls = {name: lambda s=session: s.run(feeds) for name, session in sessions.items()}
    reference, twin = compare(calls, pairs=pairs, seconds=60)
    return {
        "reference_ms": reference.ms.as_dict(),
        "twin_ms": twin.ms.as_dict(),
        "ratio": twin.ratio.as_dict(),
        "difference": float(np.abs(outputs[0] - outputs[1]).max()),
        "nodes": nodes(files),
    }


def exported(network: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """("reference", file), ("twin", file): untrained, no zeros left in the weights that a tool could drop."""
    import torch

    from dgiqa.nn.depth_anything import DepthAnything
    from dgiqa.nn.network import DGIQA, FULL, SMALL
    from dgiqa.nn.onnx_export import export_depth, export_quality, untrained

    torch.manual_seed(0)
    depth = network.startswith("vit")
    model = untrained(DepthAnything(network) if depth else DGIQA(SMALL if network == "small" else FULL))
    for name, twin in (("reference", False), ("twin", True)):
        path = folder / f"{network}-{name}.onnx"
        (export_depth if depth else export_quality)(model, path, twin=twin)
        yield name, path


def inputs(size: int | tuple[int, int]) -> dict[str, np.ndarray]:
    """Random tiles, or a random depth input of (height, width)."""
    rng = np.random.default_rng(0)
    if isinstance(size, int):
        shape = (size, 3, spec.TILE, spec.TILE)
        return {name: rng.standard_normal(shape, np.float32) for name in (spec.QUALITY_RGB, spec.QUALITY_DEPTH)}
    return {spec.DEPTH_INPUT: rng.standard_normal((1, 3, *size), np.float32)}


def nodes(files: dict[str, Path]) -> dict[str, int]:
    import onnx

    return {name: len(onnx.load(path).graph.node) for name, path in files.items()}


if __name__ == "__main__":
    sys.exit(main())
