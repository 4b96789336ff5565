"""Plant faults one at a time in the attention kernel; each must make its test fail.

    python engines/tests/mutate.py [--first N] [--compiler g++]

Exits with 1 if a fault goes unnoticed, or if the text that it changes is no longer there.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ENGINES = Path(__file__).resolve().parent.parent
BODY, PLAN = "attention_body.h", "attention_plan.h"
CPU_S, HOUR_S = 120, 3600  # the test takes two seconds of CPU time
# (file, original text, text with the fault), the most instructive first
FAULTS = (
    (BODY, "y -= y >= a.height ? a.height : 0", "y -= y > a.height ? a.height : 0"),
    (BODY, "s[6][1] = s[6][3] = kNever", "s[6][1] = kNever"),
    (BODY, "window_column(query) >= 4", "window_column(query) >= 3"),
    (BODY, "kMasked / a.scale", "kMasked"),
    (BODY, "static_cast<const uint16_t*>(a.pad_v)", "static_cast<const uint16_t*>(a.pad_k)"),
    (BODY, "high = fmaxf(high, warp.shuffle_xor(high, 2));", ""),
    (BODY, "kMasked = -100.f", "kMasked = -4.f"),
    (BODY, "0x0000040810204081ull", "0x0000000810204081ull"),
    (BODY, "s[6][0] = t == 0 ? s[6][0] : kNever", "s[6][0] = s[6][0]"),
    (BODY, "at.seam_y = SHIFT && at.window_y == down - 1", "at.seam_y = SHIFT && at.window_y == down - 2"),
    (BODY, "b[2 * k + 1]);", "b[2 * k]);"),
    (BODY, "Warp::reciprocal(sums[0])", "Warp::reciprocal(sums[0] * 1.001f)"),
    (BODY, "o[3][half + 1] * by", "o[3][half] * by"),
    (BODY, "CHANNELS ? k + CHANNELS", "CHANNELS ? k"),
    (BODY, "m < kGroups - 1 ? g + 8 * m : 48", "m < kGroups - 1 ? g + 8 * m : 49"),
    (BODY, "if (!last) low = fmaxf", "if (last) low = fmaxf"),
    (BODY, "size_t(at.head * kRowTiles + tile)", "size_t(at.head * kRowTiles)"),
    (BODY, "(!last || real) && (!PAD || upper_token >= 0)", "(!last || real) && (!PAD || upper_token > 0)"),
    (BODY, "const int64_t image = at.image", "const int32_t image = int32_t(at.image * 2) / 2 % 2 * 0"),
    (BODY, "image * a.k_stride.batch", "int32_t(image * a.k_stride.batch)"),
    (BODY, "at.window_x = window % across", "at.window_x = window % down"),
    (BODY, "kLog2E = 1.4426950408889634f", "kLog2E = 1.4446950408889634f"),
    (BODY, "last ? 0u : Warp::pack(", "last ? 0u : Warp::pack(0 *"),
    (PLAN, "if (misaligned(pointer)) return DGIQA_MISALIGNED", "if (misaligned(a.q)) return DGIQA_MISALIGNED"),
    (PLAN, "if (warps > limit)", "if (tiles > limit)"),
    (PLAN, "a.height < 3 ||", ""),
    (PLAN, "a.batch == 0", "false"),
)


def is_caught(file: str, old: str, new: str, compiler: str) -> bool:
    """Whether the test fails, or computes without end, with this fault in a copy of the sources."""
    text = (ENGINES / file).read_text(encoding="utf-8")
    if old not in text:
        raise SystemExit(f"{file} no longer says {old!r}; bring FAULTS up to date")
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        (at / file).write_text(text.replace(old, new, 1), encoding="utf-8")
        for name in {BODY, PLAN, "attention.cu", "attention_reference.cpp"} - {file}:
            (at / name).write_bytes((ENGINES / name).read_bytes())
        (at / "kernel.cpp").write_text('#include "attention.cu"\n')
        sources = ["kernel.cpp", "attention_reference.cpp", str(ENGINES / "tests" / "test_attention.cpp")]
        command = [compiler, "-std=c++17", "-O1", "-w", f"-I{at}", f"-I{ENGINES}", *sources, "-o", "test"]
        subprocess.run(command, cwd=at, check=True)
        return not passes(at / "test")


def passes(test: Path, cpu_s: int = CPU_S) -> bool:
    """Whether a program ends with 0 within so much processor time, which a busy machine does not use up.

    RuntimeError if it neither ends nor computes: then nobody knows.
    """

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))

    try:
        done = subprocess.run([str(test)], capture_output=True, timeout=HOUR_S, check=False, preexec_fn=limited)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{test} neither ended nor used {cpu_s} s of the processor within an hour") from error
    return done.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=len(FAULTS), help="plant only the first so many")
    parser.add_argument("--compiler", default="g++")
    options = parser.parse_args()
    missed = 0
    for file, old, new in FAULTS[: options.first]:
        caught = is_caught(file, old, new, options.compiler)
        missed += not caught
        print("caught" if caught else "MISSED", f"{file}: {old}  ->  {new}", flush=True)
    print(f"{min(options.first, len(FAULTS)) - missed} caught, {missed} missed")
    sys.exit(missed != 0)


if __name__ == "__main__":
    main()
