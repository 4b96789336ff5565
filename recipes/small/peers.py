"""How other programs' scores agree with people's opinions, on BIQ2021's test photographs.

    python -m recipes.small.peers --python peers/bin/python --biq BIQ2021 --out bench/results/opinion-peers.json

`--python` is the interpreter of an environment with `pip install image-quality-ai==0.1.0 capturetrust==1.0.0`. `--every
N` scores only each N-th photograph. This file is both sides: run as a module, it asks; run by that interpreter, it
answers, and then it needs nothing else of this package.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PEERS = ("image-quality-ai", "capturetrust")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m recipes.small.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", type=Path, required=True, help="interpreter of the peers' environment")
    parser.add_argument("--biq", type=Path, required=True, help="folder of BIQ2021, whose test part is scored")
    parser.add_argument("--every", type=int, default=1, help="score each N-th photograph  [%(default)s]")
    parser.add_argument("--bundle", action="append", default=[], help="also score a bundle, such as an earlier one")
    parser.add_argument("--out", type=Path, required=True)
    o = parser.parse_args(arguments)
    from dgiqa.nn.datasets import TEST, load_dataset
    from recipes.small.measures import Judge, as_json

    records = load_dataset("biq2021", o.biq).part(TEST).records[:: o.every]
    paths, wanted = [str(r.path) for r in records], [r.score for r in records]
    stored = json.loads(o.out.read_text()) if o.out.exists() else {}
    for peer in PEERS:
        stored[peer] = correlations(ask(o.python, peer, paths), wanted)
        o.out.write_text(as_json(stored))
        print(peer, stored[peer], flush=True)
    for name in o.bundle:
        judge = Judge(name)
        stored[judge.scorer.bundle.id] = correlations(judge(paths), wanted)
        o.out.write_text(as_json(stored))
        print(judge.scorer.bundle.id, stored[judge.scorer.bundle.id], flush=True)
    return 0


def correlations(found: Any, wanted: Any) -> dict[str, Any]:
    """SROCC, PLCC and KROCC with mean opinions, f [n] each, and a 95 % bootstrap interval of the first."""
    import numpy as np

    from dgiqa.metrics import krocc, plcc, srocc

    x, y = np.asarray(found, float), np.asarray(wanted, float)
    rng = np.random.default_rng(0)
    draws = [srocc(x[i], y[i]) for i in (rng.integers(0, len(x), len(x)) for _ in range(300))]
    return {
        "pictures": len(x),
        "srocc": srocc(x, y),
        "interval": np.percentile(draws, (2.5, 97.5)).tolist(),
        "plcc": plcc(x, y),
        "krocc": krocc(x, y),
    }


def ask(python: Path, peer: str, paths: Sequence[str]) -> list[float]:
    """A peer's score of every file. Raises RuntimeError, with the end of its error output, if it fails."""
    command = [str(python), __file__, peer]
    done = subprocess.run(command, input=json.dumps(paths), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{peer} failed: {done.stderr[-2000:]}")
    return [float(value) for value in json.loads(done.stdout.splitlines()[-1])]


# ---- inside the peers' environment ----


def answer(peer: str) -> None:
    paths = json.loads(sys.stdin.read())
    score = {"image-quality-ai": _image_quality_ai, "capturetrust": _capturetrust}[peer]()
    print(json.dumps([score(path) for path in paths]))


def _image_quality_ai() -> Callable[[str], float]:
    from image_quality_ai import assess  # type: ignore[import-not-found]

    return lambda path: float(assess(path).score)


def _capturetrust() -> Callable[[str], float]:
    import cv2
    from capturetrust import inspect_image  # type: ignore[import-not-found]

    cv2.setNumThreads(1)
    return lambda path: float(inspect_image(path).to_dict()["score"])


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1] in PEERS:
        answer(sys.argv[1])
    else:
        sys.exit(main())
