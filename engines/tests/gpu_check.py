"""Check the kernels on a GPU, which an emulator cannot, through the torch op, and write a JSON file.

    cmake -S . -B build -DTORCH_PYTHON=$(which python) && cmake --build build -j 2
    python engines/tests/gpu_check.py build --out gpu.json

Parity with float64 at every Swin stage and batch and on odd maps, between guard bands; Depth-CAR's cross-attention, the
whole network; bit-identical repeats, CUDA graphs, other streams; compute-sanitizer where it is installed. Made to take
under ten minutes. The file is written after every check: what was found stays when time runs out.
Exits with 1 where a check fails, with 5 where there is no GPU or no library.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

STAGES = ((56, 3), (28, 6), (14, 12), (7, 24))  # map side, heads of Swin-T on 224 pixels
BATCHES = (1, 2, 20, 64)
ODD = ((15, 29, 3), (10, 17, 6), (8, 7, 1), (23, 9, 5))  # height, width, heads
REPEATS = 50
SANITIZER_SECONDS = 60  # of each tool
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=Path, help="the folder that CMake built in")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    options = parser.parse_args()
    torch = start(options.build)
    kernels = ctypes.CDLL(str(options.build / "libdgiqa_kernels.so"))
    checks = {
        "window": windows(torch, kernels),
        "cross": (cross(torch, n) for n in BATCHES),
        "network": (network(torch) for _ in range(1)),
        "behaviour": behaviour(torch),
        "compute-sanitizer": sanitized(options.build),
    }
    report = run(checks, about(torch), options.out)
    print(f"{len(report['checks'])} checks, {report['failed']} failed, {report['seconds']} s -> {options.out}")
    sys.exit(report["failed"] > 0)


def run(checks: dict[str, Iterator[Row]], head: Row, out: Path) -> Row:
    """Run all checks. Return the report, which is written to `out` after each."""
    begun, report = time.monotonic(), {**head, "complete": False, "seconds": 0.0, "failed": 0, "checks": []}
    for row in itertools.chain.from_iterable(guarded(name, rows) for name, rows in checks.items()):
        print("ok    " if row["ok"] else "FAILED", json.dumps(row), flush=True)
        report["checks"].append(row)
        report |= {"seconds": round(time.monotonic() - begun, 1), "failed": report["failed"] + (not row["ok"])}
        write(report, out)
    report["complete"] = True
    write(report, out)
    return report


def guarded(name: str, rows: Iterator[Row]) -> Iterator[Row]:
    """The rows; an exception ends them with a row of its own, and the other checks go on."""
    try:
        yield from rows
    except Exception as error:
        yield {"check": name, "error": f"{type(error).__name__}: {error}", "ok": False}


def write(report: Row, out: Path) -> None:
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, out)


def about(torch: Any) -> Row:
    """The figures' origin: GPU, driver, versions, commit."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
    from stamp import environment_stamp

    return {
        "gpu": torch.cuda.get_device_name(),
        "capability": ".".join(map(str, torch.cuda.get_device_capability())),
        "cuda": torch.version.cuda,
        "environment": environment_stamp(),
    }


def start(build: Path) -> Any:
    """torch with the kernels loaded; exits with a reason if that fails."""
    import torch

    if not torch.cuda.is_available():
        give_up("no GPU that torch can use; the emulated build is tested by ctest")
    library = build / "libdgiqa_torch.so"
    if not (library.exists() and (build / "libdgiqa_kernels.so").exists()):
        give_up(f"{build} lacks libdgiqa_kernels.so or {library.name}; build with -DTORCH_PYTHON={sys.executable}")
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from dgiqa.nn import attention

    attention.load_kernels(library)
    torch.backends.cuda.matmul.allow_tf32 = False
    return torch


def give_up(why: str) -> None:
    print(f"gpu_check: {why}", file=sys.stderr)
    sys.exit(5)


def windows(torch: Any, kernels: ctypes.CDLL) -> Iterator[Row]:
    """Every stage, batch and shift of Swin-T, and maps that are no multiples of 7."""
    shapes = [(b, side, side, heads) for (side, heads), b in itertools.product(STAGES, BATCHES)]
    for shape in shapes + [(2, *odd) for odd in ODD]:
        for shift in (0, 3) if shape[1] != 7 else (0,):
            yield window(torch, kernels, shape, shift)


def window(torch: Any, kernels: ctypes.CDLL, shape: tuple[int, int, int, int], shift: int) -> Row:
    """One launch between guard bands against float64, with twice the error of float16 torch as its budget."""
    from calls import arguments

    from dgiqa.nn import attention

    qkv, bias, qkv_bias, scale = window_inputs(torch, *shape)
    memory, out = guarded_like(torch, qkv[..., : qkv.shape[-1] // 3])
    asked = arguments((qkv, bias, qkv_bias), out, shift=shift, scale=scale)
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    status = kernels.dgiqa_window_attention(ctypes.byref(asked), stream)
    guards = int(torch.isnan(memory).sum()) == memory.numel() - out.numel()
    some = slice(0, min(shape[0], 4))  # float64 on a few images keeps this short
    plain = attention.unpack_bias(bias.double(), scale)
    exact = attention.window_attention(qkv[some].double(), plain, qkv_bias.double(), shift, scale)
    rough = attention.window_attention(qkv[some], plain.half(), qkv_bias, shift, scale)
    error, budget = relative(out[some], exact), 2 * relative(rough, exact)
    ok = status == 0 and guards and error <= budget
    return {"check": "window", "shape": shape, "shift": shift, "error": error, "budget": budget, "ok": ok}


def cross(torch: Any, batch: int) -> Row:
    from dgiqa.nn import attention

    q, kv = (torch.randn(49, batch, c, device="cuda").half() for c in (1024, 2048))
    exact = attention.cross_attention(q.double(), kv.double(), 16, 60**-0.5)
    rough = attention.cross_attention(q, kv, 16, 60**-0.5)
    error = relative(torch.ops.dgiqa.cross_attention(q, kv, 16, 60**-0.5), exact)
    budget = 2 * relative(rough, exact)
    return {"check": "cross", "batch": batch, "error": error, "budget": budget, "ok": error <= budget}


def network(torch: Any) -> Row:
    """The whole DGIQA in float16 through the ops: scores against float32."""
    from dgiqa.nn.attention import with_attention_op
    from dgiqa.nn.network import DGIQA, FULL

    torch.manual_seed(0)
    plain = DGIQA(FULL).cuda().eval().requires_grad_(False)
    rgb, depth = torch.randn(2, 20, 3, 224, 224, device="cuda")
    fused = with_attention_op(plain).half()
    difference = float((fused(rgb.half(), depth.half()) - plain(rgb, depth)).abs().max())
    return {"check": "network", "batch": 20, "score_difference": difference, "ok": difference <= 1e-3}


def behaviour(torch: Any) -> Iterator[Row]:
    """Checks that must hold for any numbers."""
    op = torch.ops.dgiqa.window_attention
    for (side, heads), batch in itertools.product(STAGES, (1, 20)):
        qkv, bias, qkv_bias, scale = window_inputs(torch, batch, side, side, heads)
        shift = 3 if side > 7 else 0

        def call(x: Any, rest: tuple[Any, ...] = (bias, qkv_bias, shift, scale)) -> Any:
            return op(x, *rest)

        first = call(qkv)
        same = all(torch.equal(call(qkv), first) for _ in range(REPEATS))
        yield {"check": "repeats", "side": side, "batch": batch, "repeats": REPEATS, "ok": same}
        yield {"check": "stream", "side": side, "batch": batch, "ok": torch.equal(on_stream(torch, call, qkv), first)}
        yield {"check": "graph", "side": side, "batch": batch, "ok": in_graph(torch, call, qkv)}


def on_stream(torch: Any, call: Callable[[Any], Any], qkv: Any) -> Any:
    """The op's result where its input is still being written when it is enqueued, on a stream of its own."""
    stream, late = torch.cuda.Stream(), torch.full_like(qkv, float("nan"))
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        late.copy_(qkv)
        out = call(late)
    stream.synchronize()
    return out


def in_graph(torch: Any, call: Callable[[Any], Any], qkv: Any) -> bool:
    """Whether a captured launch gives the same as a plain one, on other inputs than it was captured with."""
    x, graph = qkv.clone(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call(x)
    x.copy_(qkv.flip(0, 1))
    graph.replay()
    return torch.equal(out, call(qkv.flip(0, 1).contiguous()))


def sanitized(build: Path) -> Iterator[Row]:
    """Every kernel once under each tool, from a program without Python, which takes them seconds instead of minutes."""
    tool, program = shutil.which("compute-sanitizer"), build / "launch_all"
    if not tool:
        yield {"check": "compute-sanitizer", "skipped": "not installed", "ok": True}
        return
    for kind in ("", *SANITIZERS):
        row = {"check": "compute-sanitizer", "tool": kind or "none"}
        under = [tool, "--tool", kind, "--error-exitcode", "9"] if kind else []
        try:
            done = subprocess.run(
                [*under, str(program)], capture_output=True, text=True, timeout=SANITIZER_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            yield row | {"error": f"took over {SANITIZER_SECONDS} s", "ok": False}
            continue
        tail = "" if done.returncode == 0 else (done.stdout + done.stderr)[-500:]
        yield row | {"tail": tail, "ok": done.returncode == 0}


def window_inputs(torch: Any, batch: int, height: int, width: int, heads: int) -> tuple[Any, Any, Any, float]:
    """Fresh random qkv, packed bias and qkv_bias in float16 on the GPU, and the scale of heads of 32."""
    from dgiqa.nn import attention

    scale = 32**-0.5
    bias = attention.pack_bias(torch.randn(heads, 49, 49, device="cuda"), scale).half()
    qkv = torch.randn(batch, height, width, 96 * heads, device="cuda").half()
    return qkv, bias, torch.randn(96 * heads, device="cuda").half(), scale


def guarded_like(torch: Any, x: Any, guard: int = 4096) -> tuple[Any, Any]:
    """(NaN-filled memory, a view of its middle shaped like x)."""
    memory = torch.full((x.numel() + 2 * guard,), float("nan"), dtype=x.dtype, device=x.device)
    return memory, memory[guard : guard + x.numel()].view(x.shape)


def relative(got: Any, wanted: Any) -> float:
    return float((got.double() - wanted).norm() / wanted.norm())


if __name__ == "__main__":
    main()
