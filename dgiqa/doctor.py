"""Checks of this machine: what is installed, what it can run, and how to get what is missing.

Every check is independent and catches its own errors: a doctor that crashes on a sick machine is of no use. torch is
looked for but never imported. Nothing is changed, and nothing is downloaded.
"""

import importlib
import importlib.util
import io
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from dgiqa import machine
from dgiqa._version import __version__
from dgiqa.errors import BundleError
from dgiqa.extras import install

OK, WARN, FAIL = "ok", "warn", "fail"
MODULES = {"numpy": "numpy", "cv2": "opencv-python-headless", "PIL": "pillow", "simplejpeg": "simplejpeg"}
AFTERWARDS = "fix the first failure above, then run this again"
MINIMUM_MEMORY_MB = 1024  # the small model needs 400 MB for one photograph


@dataclass(frozen=True)
class Check:
    """One finding. status: "ok", "warn" (works, but you may want to know) or "fail" (scoring cannot work here).

    data holds the same facts as `found` for programs; fix says what to do, and is empty where there is nothing to do.
    """

    name: str
    status: str
    found: str
    fix: str = ""
    data: Any = None


def examine(bundle: str = "small") -> list[Check]:
    """All checks in reading order. The last two load the bundle and score one synthetic image with it."""
    wheels, gpus, python = machine.installed_wheels(), machine.nvidia_gpus(), platform.python_version()
    checks: dict[str, Callable[[], Check]] = {
        "python": partial(Check, "python", OK, f"{python} ({sys.executable})", data=python),
        "machine": _machine,
        "memory": _memory,
        **{module: partial(_module, module, wheel) for module, wheel in MODULES.items()},
        "cv2 wheels": partial(_rivals, "cv2", wheels, f"pip install {MODULES['cv2']}"),
        "onnxruntime": _onnxruntime,
        "onnxruntime wheels": partial(_rivals, "onnxruntime", wheels, f"{install('cpu')}  (NVIDIA: {install('gpu')})"),
        "openvino": partial(_openvino, wheels),
        "providers": partial(_providers, gpus),
        "gpu": partial(_gpu, gpus),
        "tensorrt": partial(_tensorrt, gpus, wheels),
        "device memory": partial(_device_memory, gpus, wheels),
        "engines": _engines,
        "video": _video,
        "optional": _extras,
        "bundle": partial(_bundle, bundle),
        "score": partial(_score, bundle),
    }
    found = [_guarded(name, check) for name, check in checks.items()]
    first = next((i for i, check in enumerate(found) if check.status == FAIL), None)
    if first is not None and found[first].fix == AFTERWARDS:
        found[first] = replace(found[first], fix="DGIQA_DEBUG=1 dgiqa-rt score IMAGE shows more; please report it")
    return found


def report(checks: list[Check]) -> dict[str, Any]:
    """The checks as one document for programs. healthy: scoring works here."""
    return {
        "schema_version": 1,
        "version": __version__,
        "healthy": healthy(checks),
        "checks": [asdict(check) for check in checks],
    }


def healthy(checks: Iterable[Check]) -> bool:
    """Whether nothing failed; warnings do not count."""
    return all(check.status != FAIL for check in checks)


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:  # any error is the finding
        return Check(name, FAIL, f"{type(error).__name__}: {error}", AFTERWARDS)


def _machine() -> Check:
    cores = machine.usable_cores()
    found = f"{platform.system()} {platform.machine()}, {cores} of {os.cpu_count()} cores usable"
    return Check("machine", OK, found, data={"platform": platform.platform(), "cores": cores})


def _memory() -> Check:
    usable = machine.memory_mb()
    if usable is None:
        return Check("memory", WARN, "unknown", "nothing, if images are scored below")
    if usable < MINIMUM_MEMORY_MB:
        fix = f"give it {MINIMUM_MEMORY_MB} MB, or keep --max-pixels low"
        return Check("memory", WARN, f"{usable} MB", fix, usable)
    return Check("memory", OK, f"{usable / 1024:.1f} GB", data=usable)


def _module(module: str, wheel: str, install: str = "") -> Check:
    """Whether a module imports; a wheel for another machine or a missing system library shows here."""
    install = install or f"pip install {wheel}"
    if importlib.util.find_spec(module) is None:
        return Check(module, FAIL, "not installed", install)
    try:
        version = str(importlib.import_module(module).__version__)
    except Exception as error:
        return Check(module, FAIL, f"does not import: {error}", install.replace("install", "install --force-reinstall"))
    return Check(module, OK, version, data=version)


def _onnxruntime() -> Check:
    """Without it OpenVINO can score; everything else needs it."""
    check = _module("onnxruntime", "", install("cpu"))
    spare = check.status == FAIL and importlib.util.find_spec("openvino") is not None
    return replace(check, status=WARN, found=f"{check.found}; OpenVINO scores") if spare else check


def _rivals(folder: str, wheels: dict[str, str], fix: str) -> Check:
    rivals = machine.rival_wheels(folder, wheels)
    found = ", ".join(f"{name} {wheels[name]}" for name in rivals) or "none"
    name = f"{folder} wheels"
    if len(rivals) > 1:
        clash = f"{found}: both install the folder {folder}, and the last one installed wins"
        return Check(name, WARN, clash, f"pip uninstall -y {' '.join(rivals)} && {fix}", rivals)
    return Check(name, OK, found, data=rivals)


def _providers(gpus: list[dict[str, str]]) -> Check:
    try:
        providers = list(importlib.import_module("onnxruntime").get_available_providers())
    except Exception as error:
        status = WARN if importlib.util.find_spec("openvino") else FAIL
        return Check("providers", status, f"none: {error}", install("cpu"))
    found = ", ".join(name.removesuffix("ExecutionProvider") for name in providers)
    if gpus and "CUDAExecutionProvider" not in providers:
        fix = f"to use the GPU: pip uninstall -y onnxruntime && {install('gpu')}"
        return Check("providers", WARN, f"{found}; the NVIDIA GPU stays idle", fix, providers)
    return Check("providers", OK, found, data=providers)


def _gpu(gpus: list[dict[str, str]]) -> Check:
    found = "; ".join(f"{gpu['name']}, driver {gpu['driver']}, {gpu['memory']}" for gpu in gpus)
    if not gpus and machine.gpu_present():
        fix = "install or restart the NVIDIA driver, or give the container its libraries"
        if importlib.util.find_spec("pynvml") is None:
            fix = install("nvml")
        return Check("gpu", WARN, "an NVIDIA driver's device files, but nothing that names the GPU", fix, gpus)
    return Check("gpu", OK, found or "no NVIDIA GPU found; the CPU scores", data=gpus)


def _openvino(wheels: dict[str, str]) -> Check:
    """On x86 it runs large networks faster, and int8 and bf16 much faster where there are instructions for them."""
    from dgiqa.runtime.backends import INSTALL, OPENVINO, PLAIN_INT8

    version = wheels.get("openvino")
    if version is None:
        if platform.machine().lower() not in ("x86_64", "amd64"):
            return Check("openvino", OK, "not installed; it is for x86 processors")
        found = "not installed; it runs the same files faster on x86: large networks 1.3x in fp32, int8 and bf16 2-3x"
        return Check("openvino", OK, found, INSTALL[OPENVINO])
    from dgiqa.runtime.ov import cpu_precisions

    precisions = cpu_precisions()
    note = f"; {PLAIN_INT8}" if machine.lacks_vnni() else ""
    data = {"version": version, "runs": precisions, "instructions": machine.cpu_instructions()}
    return Check("openvino", OK, f"{version}, {', '.join(precisions)}{note}", data=data)


def _tensorrt(gpus: list[dict[str, str]], wheels: dict[str, str]) -> Check:
    """Whether plans can be built and run. Importing it takes seconds and a GPU, so only the wheels are checked."""
    from dgiqa.runtime.backends import INSTALL, TENSORRT

    found = {name: version for name, version in wheels.items() if re.fullmatch(r"tensorrt(-cu1\d)?", name)}
    if not found:
        fix = f"to build engines for the GPU: {INSTALL[TENSORRT]}" if gpus else ""
        return Check("tensorrt", OK, "not installed" + ("" if gpus else "; it needs an NVIDIA GPU"), fix, None)
    named = ", ".join(f"{name} {version}" for name, version in found.items())
    if not gpus:
        return Check("tensorrt", WARN, f"{named}, and no NVIDIA GPU to run on", "use it on a machine with one", found)
    version = max(tuple(int(part) for part in re.findall(r"\d+", text)[:2]) for text in found.values())
    if version < (10, 12):
        return Check("tensorrt", WARN, f"{named}; wanted 10.12 or newer", "pip install -U tensorrt", found)
    return Check("tensorrt", OK, named, data=found)


def _device_memory(gpus: list[dict[str, str]], wheels: dict[str, str]) -> Check:
    """cuda-python moves data for TensorRT; PyCUDA's arrays and streams are taken as they are."""
    from dgiqa.runtime.backends import INSTALL, TENSORRT

    names = ("cuda-python", "cuda-bindings", "pycuda")
    found = {name: wheels[name] for name in names if name in wheels}
    named = ", ".join(f"{name} {version}" for name, version in found.items()) or "cuda-python not installed"
    if gpus and "tensorrt" in wheels and not found.keys() & {"cuda-python", "cuda-bindings"}:
        return Check("device memory", WARN, f"{named}; TensorRT engines need it", INSTALL[TENSORRT], found)
    return Check("device memory", OK, named, data=found)


def _engines() -> Check:
    from dgiqa.runtime.engines import list_engines

    names = [engine.name for engine in list_engines()]
    return Check("engines", OK, ", ".join(names) or "none built yet (dgiqa-rt build)", data=names)


def _video() -> Check:
    """Whether PyAV works, shown by decoding two frames that it encoded: its versions name things differently."""
    if importlib.util.find_spec("av") is None:
        return Check("video", OK, "not installed", data={"av": None})
    fix = install("video").replace("install", "install --upgrade")
    try:
        import av

        version = str(av.__version__)
        found = _decoded_clip()
    except Exception as error:
        return Check("video", WARN, f"PyAV does not work: {error or type(error).__name__}", fix)
    if found != [(0, ""), (1, "")]:
        return Check("video", WARN, f"PyAV {version} decodes a clip of two frames to {found}", fix, {"av": version})
    return Check("video", OK, f"PyAV {version}, a clip decoded", data={"av": version})


def _decoded_clip() -> list[tuple[int | None, str]]:
    """Number and error of each frame of a clip of two, made and read in memory."""
    import av
    import numpy as np

    from dgiqa.video.frames import Video
    from dgiqa.video.sampling import Sampling

    clip = io.BytesIO()
    with av.open(clip, "w", format="avi") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for level in (60, 180):
            picture = np.full((48, 64, 3), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="yuvj420p")))
        container.mux(stream.encode())
    clip.seek(0)
    with Video(clip, name="clip") as video:
        return [(frame.number, frame.error) for frame in video.frames(Sampling(every=0))]


def _extras() -> Check:
    """Packages that other commands can use. They are not imported: torch alone takes a second."""
    present = {name: importlib.util.find_spec(name) is not None for name in ("onnx", "torch")}
    found = ", ".join(f"{name} {'installed' if there else 'not installed'}" for name, there in present.items())
    return Check("optional", OK, found, data=present)


def _bundle(name: str) -> Check:
    from dgiqa.bundle import load_bundle

    try:
        bundle = load_bundle(name)
    except BundleError as error:
        listed = "dgiqa-rt models lists the models"
        fix = f"replace the folder; {listed}" if os.path.isdir(name) else f"is the name misspelt? {listed}"
        return Check("bundle", FAIL, str(error), fix)
    return Check("bundle", OK, f"{bundle.id}, every file verified", data={"id": bundle.id})


def _score(name: str) -> Check:
    import numpy as np

    from dgiqa.scorer import Scorer

    ramp = np.linspace(0, 255, 640, dtype=np.uint8)
    image = np.broadcast_to(ramp[None, :, None], (480, 640, 3)).copy()
    started = time.perf_counter()
    scorer = Scorer(name)
    loaded = time.perf_counter()
    score = scorer.score(image)
    load_ms, score_ms = (loaded - started) * 1e3, (time.perf_counter() - loaded) * 1e3
    if not 0 <= score.value <= 1:
        return Check("score", FAIL, f"{score.value}, outside [0, 1]", f"dgiqa-rt verify {name}")
    found = f"640 x 480 in {score_ms:.0f} ms after {load_ms:.0f} ms of loading, {score.backend}"
    return Check("score", OK, found, data={"score": score.value, "score_ms": score_ms, "load_ms": load_ms})
