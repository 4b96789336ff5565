"""The native sources: they build without a GPU, kernels agree with their definition, and planted faults show."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from waiting import PATIENCE_S

ROOT = Path(__file__).resolve().parent.parent
ENGINES = ROOT / "engines"
CMAKE, COMPILER = shutil.which("cmake"), shutil.which("c++")
NVCC = os.environ.get("CUDACXX") or shutil.which("nvcc")

sys.path.append(str(ENGINES / "tests"))

pytestmark = [
    pytest.mark.skipif(not ENGINES.is_dir(), reason="the native sources are not part of the wheel"),
    pytest.mark.skipif(not (CMAKE and COMPILER), reason="building them takes cmake and a C++ compiler"),
]


def build(folder: Path, *options: str, targets: Sequence[str] = ("all",)) -> str:
    """Configure and build in a folder; returns what CMake said while configuring."""
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    configure = [str(CMAKE), "-S", str(ROOT), "-B", str(folder), f"-DTORCH_PYTHON={sys.executable}", *options]
    said = subprocess.run(configure, capture_output=True, text=True, check=False, env=environment)
    assert said.returncode == 0, said.stdout + said.stderr
    made = subprocess.run(
        [str(CMAKE), "--build", str(folder), "--parallel", "2", "--target", *targets],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert made.returncode == 0, (made.stdout + made.stderr)[-4000:]
    return said.stdout


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build without CUDA: libdgiqa_emulated.so and the C++ tests."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("emulated")
    quick = "-DCMAKE_CXX_FLAGS_RELEASE=-O1"  # half of the compiler's time, and the tests take as long
    said = build(folder, "-DDGIQA_CUDA=OFF", quick, targets=("dgiqa_emulated", "test_attention", "test_preprocess"))
    assert "skipped: CUDA kernels (DGIQA_CUDA=OFF)" in said
    assert "skipped: TensorRT plugin (set TENSORRT_INCLUDE_DIR" in said
    return folder


def ctest(folder: Path) -> None:
    done = subprocess.run(
        ["ctest", "--test-dir", str(folder), "--output-on-failure"],
        capture_output=True,
        text=True,
        check=False,
        env={"DGIQA_SEED": "1", **os.environ},  # by themselves they draw other numbers every time
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "100% tests passed" in done.stdout


def test_the_c_tests_pass(emulated: Path) -> None:
    ctest(emulated)


@pytest.mark.slow
def test_they_pass_under_the_sanitizers(tmp_path: Path) -> None:
    build(tmp_path, "-DDGIQA_CUDA=OFF", "-DDGIQA_SANITIZE=ON")
    ctest(tmp_path)


@pytest.mark.slow
def test_planted_faults_are_noticed() -> None:
    done = subprocess.run(
        [sys.executable, str(ENGINES / "tests" / "mutate.py"), "--first", "4", "--compiler", str(COMPILER)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 caught, 0 missed" in done.stdout


@pytest.mark.slow
def test_a_fault_that_no_test_notices_is_reported() -> None:
    import mutate

    harmless = (mutate.BODY, "kMasked = -100.f", "kMasked = -100.0f")
    assert not mutate.is_caught(*harmless, str(COMPILER))
    with pytest.raises(SystemExit, match="no longer says"):
        mutate.is_caught(mutate.BODY, "no such text", "", str(COMPILER))
    for file, old, _ in mutate.FAULTS:
        assert old in (ENGINES / file).read_text(encoding="utf-8"), old


@pytest.mark.slow
def test_a_fault_is_not_caught_by_a_machine_that_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mutate

    verdicts = {}
    for name, script in {"ends": "exit 0", "fails": "exit 3", "computes": "while :; do :; done"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
        verdicts[name] = mutate.passes(tmp_path / name, cpu_s=1)
    assert verdicts == {"ends": True, "fails": False, "computes": False}
    (tmp_path / "ends").write_text("#!/bin/sh\nsleep 60\n")
    monkeypatch.setattr(mutate, "HOUR_S", 0.1)
    with pytest.raises(RuntimeError, match="neither ended nor used"):
        mutate.passes(tmp_path / "ends")


def call(shape: tuple[int, int, int, int], seed: int = 0) -> tuple[Any, ...]:
    """Half-precision inputs for (height, width, heads, shift): qkv, the bias [heads,49,49], qkv_bias."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    height, width, heads, _ = shape

    def random(*size: int) -> Any:
        return torch.randn(*size, generator=generator).half()

    return random(2, height, width, 96 * heads), random(heads, 49, 49), random(96 * heads)


@pytest.mark.parametrize("shape", [(14, 14, 3, 3), (7, 14, 2, 0), (10, 17, 1, 3)])
def test_kernel_and_reference_answer_to_the_definition(emulated: Path, shape: tuple[int, int, int, int]) -> None:
    import torch
    from calls import arguments

    from dgiqa.nn import attention

    library = ctypes.CDLL(str(emulated / "libdgiqa_emulated.so"))
    qkv, bias, qkv_bias = call(shape)
    scale = 0.25  # exact, so that packing and unpacking the bias in float16 is exact, too
    packed = attention.pack_bias(bias, scale)
    exact = attention.window_attention(qkv.double(), bias.double(), qkv_bias.double(), shape[3], scale)
    out = torch.full(exact.shape, float("nan"), dtype=torch.float16)
    asked = arguments((qkv, packed, qkv_bias), out, shift=shape[3], scale=scale)
    reference = torch.empty_like(exact)
    pointer = ctypes.c_void_p(reference.data_ptr())
    assert library.dgiqa_window_attention_reference(ctypes.byref(asked), pointer, 0) == 0
    assert float((reference - exact).abs().max()) < 1e-12
    assert library.dgiqa_window_attention_reference(ctypes.byref(asked), pointer, 1) == 0
    budget = 2 * float((reference - exact).norm() / exact.norm())
    assert library.dgiqa_window_attention(ctypes.byref(asked), None) == 0
    assert float((out.double() - exact).norm() / exact.norm()) <= budget  # False for NaN


def test_both_languages_pack_a_bias_alike(emulated: Path) -> None:
    import torch

    from dgiqa.nn import attention

    library = ctypes.CDLL(str(emulated / "libdgiqa_emulated.so"))
    bias = torch.randn(5, 49, 49)
    packed = torch.full((5, 4, 7, 32, 4), float("nan"), dtype=torch.float16)
    scale = ctypes.c_float(32**-0.5)
    library.dgiqa_pack_bias(ctypes.c_void_p(bias.data_ptr()), 5, scale, ctypes.c_void_p(packed.data_ptr()))
    wanted = attention.pack_bias(bias, scale.value)
    assert torch.equal(packed == 0, wanted == 0)
    assert float((packed - wanted).abs().max()) <= 2**-10 * float(wanted.abs().max())


# What the child prints is checked here: a loaded library serves a process until its end, so it gets one of its own.
NATIVE = """
import json, sys, torch
from dgiqa.nn import attention
from dgiqa.nn.network import DGIQA, FULL

torch.manual_seed(0)
torch.set_num_threads(1)
said = {}

def relative(got, wanted):
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())

network = DGIQA(FULL).eval().requires_grad_(False)
for module in network.modules():
    if hasattr(module, "relative_position_bias_table"):
        torch.nn.init.normal_(module.relative_position_bias_table)
rgb, depth = torch.randn(2, 1, 3, 224, 224)
half = attention.with_attention_op(network).half()
exact, score = network.features(rgb, depth), network(rgb, depth)
said["defined"] = relative(half.features(rgb.half(), depth.half()), exact)

attention.load_kernels(sys.argv[1])
native = half.features(rgb.half(), depth.half())
said["native"] = relative(native, exact)
said["score"] = abs(float(torch.sigmoid(half.fc(native)) - score))

qkv, bias = torch.randn(1, 8, 14, 192).half(), attention.pack_bias(torch.randn(2, 49, 49), 0.2).half()
window, cross = torch.ops.dgiqa.window_attention, torch.ops.dgiqa.cross_attention
zeros = torch.zeros(192).half()
torch.library.opcheck(window.default, (qkv, bias, zeros, 3, 0.2))
wide = torch.randn(49, 2, 384).half()  # q, k and v of one projection: views that are not contiguous
q, kv = wide[..., :128], wide[..., 128:]
torch.library.opcheck(cross.default, (q, kv, 2, 0.125))
said["cross"] = relative(cross(q, kv, 2, 0.125), attention.cross_attention(q.double(), kv.double(), 2, 0.125))
said["empty"] = list(window(qkv[:0], bias, zeros, 3, 0.2).shape)

def refusal(call, *arguments):
    try:
        call(*arguments)
    except RuntimeError as error:
        return str(error)

said["float32"] = refusal(window, qkv.float(), bias, zeros, 3, 0.2)
said["shift"] = refusal(window, qkv, bias, zeros, 2, 0.2)
said["strided"] = refusal(window, qkv.transpose(1, 2), bias, zeros, 3, 0.2)
said["bias"] = refusal(window, qkv, bias[:, :3].contiguous(), zeros, 3, 0.2)
said["heads"] = refusal(cross, q, kv, 3, 0.125)
print(json.dumps(said))
"""


@pytest.mark.slow
def test_the_native_op_serves_a_whole_network(emulated: Path) -> None:
    build(emulated, "-DDGIQA_CUDA=OFF")  # the rest of it
    done = subprocess.run(
        [sys.executable, "-c", NATIVE, str(emulated / "libdgiqa_torch.so")],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["native"] != said["defined"]  # something else computed it
    assert said["native"] <= 2 * said["defined"] < 0.02
    assert said["score"] <= 1e-3
    assert said["cross"] <= 2**-11
    assert said["empty"] == [0, 8, 14, 64]
    assert "qkv is not float16" in said["float32"]
    assert "a size, scale, shift or pointer" in said["shift"]
    assert "qkv is not contiguous" in said["strided"]
    assert "pack_bias" in said["bias"]
    assert "128 channels for 3 heads" in said["heads"]


@pytest.mark.slow
@pytest.mark.skipif(not NVCC, reason="no nvcc on PATH or in CUDACXX")
def test_nvcc_compiles_the_same_sources(tmp_path: Path) -> None:
    from calls import Arguments, Stride

    said = build(tmp_path, "-DDGIQA_CUDA=ON", "-DDGIQA_ARCHITECTURES=90-real", targets=["dgiqa_kernels"])
    assert "for 90-real" in said
    library = ctypes.CDLL(str(tmp_path / "libdgiqa_kernels.so"))
    library.dgiqa_status_text.restype = ctypes.c_char_p
    asked = Arguments()
    assert library.dgiqa_window_attention(ctypes.byref(asked), None) == 1
    assert b"missing or impossible" in library.dgiqa_status_text(1)
    if Path("/dev/nvidia0").exists():
        return  # gpu_check.py launches it
    memory = np.zeros(1 << 16, np.uint16)
    at = (memory.ctypes.data + 15) & ~15
    rows = Stride(49 * 96, 96)
    asked = Arguments(at, at + 64, at + 128, at, rows, rows, rows, rows, at, 0, 0, 1, 7, 7, 1, 32, 0, 0, 1.0)
    assert library.dgiqa_window_attention(ctypes.byref(asked), None) == 4
    assert b"CUDA runtime refused" in library.dgiqa_status_text(4)


@pytest.mark.skipif(not (Path("/proc").is_dir() and not Path("/dev/nvidia0").exists()), reason="this machine has a GPU")
def test_the_gpu_script_says_why_it_cannot_run(
    tmp_path: Path, script: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    gpu_check = script("engines/tests/gpu_check.py")
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", str(tmp_path), "--out", str(tmp_path / "gpu.json")])
    with pytest.raises(SystemExit, match="5"):
        gpu_check.main()
    assert "no GPU" in capsys.readouterr().err
    assert not (tmp_path / "gpu.json").exists()


@pytest.mark.slow
@pytest.mark.skipif(not NVCC, reason="no nvcc on PATH or in CUDACXX")
def test_the_torch_op_finds_torchs_stream_on_a_gpu(tmp_path: Path) -> None:
    """Linked as against a torch with CUDA: the name of its stream getter must be bound, and never be null."""
    torch = pytest.importorskip("torch")
    python = torch_with_cuda(tmp_path / "fake", Path(torch.__file__).parent)
    options = ("-DDGIQA_CUDA=ON", "-DDGIQA_ARCHITECTURES=90-real", f"-DTORCH_PYTHON={python}")
    build(tmp_path / "build", *options, targets=["dgiqa_torch"])
    library = tmp_path / "build" / "libdgiqa_torch.so"
    shown = subprocess.run(["readelf", "-d", "--dyn-syms", "-W", library], capture_output=True, text=True, check=True)
    lines = shown.stdout.splitlines()
    assert any("NEEDED" in line and "libtorch_cuda.so" in line for line in lines)
    getter = next(line.split() for line in lines if line.endswith("aoti_torch_get_current_cuda_stream"))
    assert getter[4:7] == ["GLOBAL", "DEFAULT", "UND"], "a weak name that nothing binds is called at address 0"
    assert any(line.endswith("aoti_torch_create_device_guard") for line in lines), "launched on whatever is current"
    loading = f"import torch, ctypes; ctypes.CDLL({str(tmp_path / 'fake/torch/lib/libtorch_cuda.so')!r});"
    loading += f"torch.ops.load_library({str(library)!r})"
    declared = "from dgiqa.nn import attention;"
    environment = {**os.environ, "LD_BIND_NOW": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", declared + loading], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]


def torch_with_cuda(folder: Path, real: Path) -> Path:
    """A Python whose torch is the real one and has a libtorch_cuda.so with the names that only one with CUDA has."""
    package, library = folder / "torch", folder / "torch" / "lib"
    library.mkdir(parents=True)
    (package / "__init__.py").write_text("__version__ = (2, 13)\n")
    (package / "include").symlink_to(real / "include")
    for path in (real / "lib").glob("lib*.so*"):
        (library / path.name).symlink_to(path)
    names = ("create_device_guard", "delete_device_guard", "device_guard_set_index", "get_current_cuda_stream")
    source = "".join(f"int aoti_torch_{name}(void) {{ return 0; }}\n" for name in names)
    (library / "libtorch_cuda.so").unlink(missing_ok=True)
    flags = ["-x", "c", "-", "-shared", "-fPIC", "-Wl,-soname,libtorch_cuda.so", "-o", library / "libtorch_cuda.so"]
    subprocess.run(["cc", *flags], input=source, text=True, check=True)
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return python


def test_a_failed_launch_leaves_no_error_for_the_next_one() -> None:
    """cudaPeekAtLastError shows the error and keeps it, and no other library can take it out of our static runtime."""
    sources = [path for path in ENGINES.rglob("*") if path.suffix in (".cu", ".cpp", ".h")]
    assert [path.name for path in sources if "cudaPeekAtLastError()" in path.read_text()] == []
    assert all("cudaGetLastError()" in (ENGINES / name).read_text() for name in ("attention.cu", "preprocess.cu"))


@pytest.mark.skipif(not NVCC, reason="no nvcc on PATH or in CUDACXX")
def test_every_gpu_since_a_t4_gets_code(tmp_path: Path) -> None:
    """Orin and Thor run no code for other chips of their generation; what is not listed compiles the oldest."""
    tried = [
        f"-DCMAKE_{language}_{what}=1" for language in ("CXX", "CUDA") for what in ("COMPILER_WORKS", "ABI_COMPILED")
    ]
    configure = [str(CMAKE), "-S", str(ROOT), "-B", str(tmp_path), "-DDGIQA_CUDA=ON", "-DTORCH_PYTHON=", *tried]
    said = subprocess.run(configure, capture_output=True, text=True, check=True).stdout
    listed = next(line for line in said.splitlines() if "CUDA kernels:" in line).split(" for ")[1].split(";")
    thor = {"101-real", "110-real"}
    assert {"80-real", "86-real", "87-real", "89-real", "90-real", "80-virtual"} <= set(listed)
    assert thor & set(listed)
    flags = "".join(path.read_text() for path in tmp_path.rglob("dgiqa_cuda_preprocess.dir/flags.make"))
    known = subprocess.run([str(NVCC), "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    assert "sm_75" in flags or "sm_75" not in known


@pytest.mark.parametrize(("program", "ok"), [("exit 0", True), ("exit 3", False), ("exec sleep 999", False)])
def test_a_sanitizer_that_does_not_end_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: Callable[[str], Any], program: str, ok: bool
) -> None:
    gpu_check = script("engines/tests/gpu_check.py")
    for name, body in (("compute-sanitizer", 'shift 4; exec "$@"'), ("launch_all", program)):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(gpu_check, "SANITIZER_SECONDS", 0.05 if "sleep" in program else PATIENCE_S, raising=False)
    rows = list(gpu_check.sanitized(tmp_path))
    assert [row["tool"] for row in rows] == ["none", *gpu_check.SANITIZERS]
    assert {row["ok"] for row in rows} == {ok}
