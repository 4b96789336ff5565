"""Use ten minutes on a GPU: measure the most important things first, and lose nothing when time runs out.

    python bench/gpu_day.py pack FOLDER [--torch-python PYTHON] [--python 3.12]
                                                       here: a slim tree with kernels built for an H200, and packages
                                                       that machine images with torch lack
    python bench/gpu_day.py first [--out FOUND] [--minutes 8]    there: correctness, then times
    python bench/gpu_day.py second [--out FOUND] [--minutes 8]   there: ONNX Runtime and TensorRT, where installed

Each step is a separate process with a time limit; one that fails or hangs is ended, recorded in FOUND/day.jsonl as soon
as it is over, and the next begins. A step writes its findings itself, row by row, next to that file. The packed kernels
are built here, against a torch with CUDA (--torch-python: a Python that has one); if they do not load, they are built
there.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
BUILT = ROOT / "build"
NEEDED = ("dgiqa", "bench", "engines", "CMakeLists.txt", "pyproject.toml", "LICENSE", "README.md")
LIBRARIES = ("libdgiqa_kernels.so", "libdgiqa_torch.so", "launch_all")
CARRIED = ("platformdirs", "simplejpeg")  # packages dgiqa imports that a machine image with torch may lack
MANYLINUX = ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64")
MOST_MB = 60  # size of the packed folder
GRACE_S = 3.0  # between asking a step to end and ending it


class Step(NamedTuple):
    """A command and the seconds it may take. needed: if it fails, the rest is pointless."""

    name: str
    command: Sequence[str | Path]
    seconds: float
    needed: bool = False


def first(out: Path) -> list[Step]:
    """The kernels' correctness, then their times. Together their limits are 7 minutes."""
    python = sys.executable
    bench = [python, ROOT / "bench" / "kernels.py", "--torch-op", BUILT / "libdgiqa_torch.so"]
    bench += ["--skip-cpu", "--json", out / "kernels.json", "--page", out / "kernels.md"]
    return [
        Step("kernels are there", [python, __file__, "build"], 90, needed=True),
        Step("every kernel once", [BUILT / "launch_all"], 15),
        Step("device memory", check("device memory", out / "memory.json"), 15),
        Step("images in place", check("images in place", out / "images.json"), 30),
        Step("parity", [python, ROOT / "engines/tests/gpu_check.py", BUILT, "--out", out / "parity.json"], 120),
        Step("times", [*bench, "--tiles", "1", "8", "20", "64", "--seconds", "2"], 150),
    ]


def second(out: Path) -> list[Step]:
    """ONNX Runtime and TensorRT, if they are installed."""
    words = [f"{engine} {precision}" for engine in ("onnxruntime-cuda", "tensorrt") for precision in ("fp16", "fp32")]
    words = [*words[:2], "scores onnxruntime-cuda", *words[2:], "scores tensorrt"]
    paths = [out / f"{word.replace(' ', '-')}.json" for word in words]
    return [Step(word, check(word, path, "--calls", "1000"), 150) for word, path in zip(words, paths, strict=True)]


def check(word: str, path: Path, *more: str) -> list[str | Path]:
    return [sys.executable, ROOT / "bench" / "gpu_check.py", "--only", word, "--json", path, *more]


def run(steps: Sequence[Step], tell: Callable[[dict[str, Any]], None], minutes: float) -> bool:
    """Run each step in turn and report a row after each. Return whether all went well."""
    end, well = time.monotonic() + 60 * minutes, True
    for step in steps:
        left = end - time.monotonic()
        row = {"step": step.name, "ok": False, "error": f"not begun within {minutes:g} minutes"}
        if left > 1:
            row = {"step": step.name, **ended(step.command, min(step.seconds, left))}
        tell(row)
        well = well and row["ok"]
        if step.needed and not row["ok"]:
            return False
    return well


def ended(command: Sequence[str | Path], seconds: float) -> dict[str, Any]:
    """Run a command: {"ok", "seconds", "tail"[, "error"]}. If it is late, it is ended with all that it started."""
    begun = time.monotonic()
    environment = {"DGIQA_KERNELS": str(BUILT / "libdgiqa_kernels.so"), **os.environ}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "site")])
    words = [str(word) for word in command]
    try:
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
        )
    except OSError as error:
        return {"ok": False, "seconds": 0.0, "error": str(error), "tail": ""}
    error = ""
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        error = f"ended after {seconds:.0f} s"
        said = _end(process)
    if process.returncode and not error:
        error = f"exit code {process.returncode}"
    found = {"ok": not error, "seconds": round(time.monotonic() - begun, 1), "tail": said[-1500:]}
    return found | ({"error": error} if error else {})


def _end(process: subprocess.Popen[str]) -> str:
    """Interrupt a process, so that it writes its findings, then kill it."""
    os.killpg(process.pid, signal.SIGINT)
    try:
        return process.communicate(timeout=GRACE_S)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()[0]


def build() -> int:
    """Build with CMake for the GPUs of this machine, unless the packed libraries load."""
    loads = "import ctypes, sys; [ctypes.CDLL(p) for p in sys.argv[1:]]"
    paths = [str(BUILT / name) for name in LIBRARIES[:2]]
    if subprocess.run([sys.executable, "-c", f"import torch; {loads}", *paths], check=False).returncode == 0:
        print(f"{BUILT} is there and loads")
        return 0
    return compile_into(BUILT, Path(sys.executable))


def compile_into(folder: Path, torch_python: Path) -> int:
    configure = ["cmake", "-S", ROOT, "-B", folder, "-DDGIQA_CUDA=ON", "-DDGIQA_ARCHITECTURES=90-real"]
    configure.append(f"-DTORCH_PYTHON={torch_python}")
    targets = ["dgiqa_kernels", "dgiqa_torch", "launch_all"]
    make = ["cmake", "--build", folder, "--parallel", str(os.cpu_count() or 2), "--target", *targets]
    done = [subprocess.run(list(map(str, command)), check=False).returncode for command in (configure, make)]
    return max(done)


def carry(folder: Path, python_version: str) -> int:
    """Add CARRIED, for x86-64 and a version of Python that need not be this one's."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", *CARRIED]
    command += ["--python-version", python_version, "--implementation", "cp", "--target", str(folder)]
    command += [word for tag in MANYLINUX for word in ("--platform", tag)]
    return subprocess.run(command, check=False).returncode


def pack(folder: Path, torch_python: Path, python_version: str) -> int:
    """Pack the tracked files that the commands need, the kernels and CARRIED into a new folder."""
    if folder.exists():
        print(f"{folder} is there already; name a new one", file=sys.stderr)
        return 1
    made = folder.with_name(f"{folder.name}.build")
    if compile_into(made, torch_python) or carry(folder / "site", python_version):
        return 1
    listed = subprocess.run(["git", "ls-files", "--", *NEEDED], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    (folder / "build").mkdir()
    for name in LIBRARIES:
        shutil.copy(made / name, folder / "build" / name)
    shutil.rmtree(made)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    print(f"{folder}: {size:.1f} MB")
    return 0 if size <= MOST_MB else 1


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("pack", "build", "first", "second"))
    parser.add_argument("folder", type=Path, nargs="?", help="of pack: where the tree is made")
    parser.add_argument("--torch-python", type=Path, default=Path(sys.executable), help="of pack: has torch with CUDA")
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    parser.add_argument("--python", default=here, metavar="X.Y", help="of pack: the version there")
    parser.add_argument("--out", type=Path, default=Path("found"))
    parser.add_argument("--minutes", type=float, default=8)
    options = parser.parse_args(arguments)
    if options.command == "build":
        return build()
    if options.command == "pack":
        if options.folder is None:
            parser.error("pack needs a folder")
        return pack(options.folder, options.torch_python, options.python)
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out.resolve() / "day.jsonl"

    def tell(row: dict[str, Any]) -> None:
        with log.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"command": options.command, **row}) + "\n")
        took = f"{row['seconds']} s" if "seconds" in row else ""
        print(f"{'ok    ' if row['ok'] else 'FAILED'} {row['step']} {took} {row.get('error', '')}", flush=True)

    steps = (first if options.command == "first" else second)(options.out.resolve())
    return 0 if run(steps, tell, options.minutes) else 1


if __name__ == "__main__":
    sys.exit(main())
