"""Who places Q/DQ better for TensorRT: the kernels that NVIDIA's builder makes of int8 files of ours and of ModelOpt's.

    python bench/placement.py --builder FOLDER [--json FILE]

FOLDER: tests/trt_builder/environment.py makes it. No GPU is needed: TensorRT-RTX compiles on a CPU, and its log lists
every kernel. Every layer that can be int8 is; what counts is how many kernels quantise, and how many do nothing else,
for what fuses costs no pass over memory. ModelOpt is the extra `modelopt`.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
KERNEL = re.compile(r"Name: (\S+), LayerType: (\w+), Inputs: (.*?), Outputs: ")
# Of names such as __myl_MulCastAddMaxMinMulMinMaxRounCast_myl0_8, which list what a kernel does; rounding is quantising
ALONE = re.compile(r"__myl_(Mul|Min|Max|Roun|Cast|Repl|Conc|Tran|Resh)+_myl\w+")


def kernels(log: str) -> dict[str, int]:
    """What TensorRT's log lists: kernels, products and convolutions on int8, kernels that quantise, that only do so."""
    found = KERNEL.findall(log)
    quantise = [name for name, kind, _ in found if kind == "kgen" and "Roun" in name]
    return {
        "kernels": len(found),
        "int8": sum(kind != "kgen" and "Datatype: Int8" in inputs for _, kind, inputs in found),
        "quantise": len(quantise),
        "quantise_alone": sum(bool(ALONE.fullmatch(name)) for name in quantise),
    }


def compiled(path: str) -> None:
    """In the builder's environment: compile a file, its log to standard output."""
    import tensorrt as trt

    class Log(trt.ILogger):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            print(msg)

    builder = trt.Builder(log := Log())
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(path):
        raise SystemExit(f"TensorRT cannot take {path}")
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    for tensor in map(network.get_input, range(network.num_inputs)):
        shape = tuple(tensor.shape)
        sizes = ((192, 192), (192, 256), (384, 384)) if tensor.name == "image" else (shape[2:],) * 3
        asked = [
            (n, 3, *size) for n, size in zip((1, 8, 32) if tensor.name != "image" else (1, 1, 4), sizes, strict=True)
        ]
        fixed = [trt.Dims([a if f == -1 else f for a, f in zip(each, shape, strict=True)]) for each in asked]
        profile.set_shape(tensor.name, *fixed)
    config.add_optimization_profile(profile)
    if builder.build_serialized_network(network, config) is None:
        raise SystemExit(f"TensorRT did not compile {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--builder", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests" / "trt_builder"))
    from environment import variables

    from dgiqa.builder.quantize import METHODS, quantize_bundle
    from dgiqa.bundle import load_bundle

    bundle, rows = load_bundle("small"), []
    pictures = sorted((bundle.path / "golden").glob("*.png"))[:2]
    with tempfile.TemporaryDirectory() as folder:
        for method in METHODS:
            out = Path(folder, method)
            made = quantize_bundle(bundle, "int8", out, calibration=pictures, rest="fp16", method=method, budget=1.0)
            for name, path in made.files.items():
                command = [sys.executable, __file__, "compile", str(path)]
                log = subprocess.run(
                    command, env=variables(options.builder), capture_output=True, text=True, check=True
                ).stdout
                rows.append({"method": method, "network": name, **kernels(log)})
                print(json.dumps(rows[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"bundle": bundle.id, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    compiled(sys.argv[2]) if sys.argv[1:2] == ["compile"] else main()
