"""Score a picture that a PyCUDA program already holds on the GPU: in place, on its stream, in its context.

    python examples/pycuda_guest.py examples/coffee.jpg [--backend tensorrt --precision fp16]

Nothing comes back to the host but the scores. Needs an NVIDIA GPU, pycuda, and `dgiqa-rt build` for the backend.
Not yet run on a GPU.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from pycuda import driver, gpuarray

from dgiqa import Score, Scorer


def score_in_place(scorer: Scorer, picture: np.ndarray) -> Score:
    """uint8 RGB [H,W,3] -> its score. What stands for the program that has the picture on the GPU anyway."""
    stream = driver.Stream()
    on_gpu = gpuarray.to_gpu_async(np.ascontiguousarray(picture), stream=stream)
    # The scorer's work follows the upload on the same stream: nothing to wait for in between.
    return scorer.score(on_gpu, stream=stream)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--bundle", default="small")
    parser.add_argument("--backend", default="tensorrt", choices=("tensorrt", "onnxruntime-cuda"))
    parser.add_argument("--precision", default="fp16")
    options = parser.parse_args(arguments)
    picture = np.asarray(Image.open(options.picture).convert("RGB"))

    driver.init()
    context = driver.Device(0).retain_primary_context()
    context.push()  # a Scorer opened now lives in this context
    try:
        with Scorer(options.bundle, backend=options.backend, precision=options.precision) as scorer:
            print(score_in_place(scorer, picture))
    finally:
        context.pop()


if __name__ == "__main__":
    main()
