"""OpenVINO runs an ONNX file on an x86 CPU, in the precision that was asked for and no other.

Its own default is bf16 on processors with AMX, which moves scores by up to 1e-2: so the precision is set for every
network and read back. A network for fixed shapes runs faster than one for any shape (docs/graph.md) and takes as long
to compile, so the first shapes get their own. A smaller batch, such as an image's last, is padded to fit it a few
times. The network for any shape is compiled when such batches keep coming, or other shapes come, and kept in the
user's cache, by the file's contents. A file damaged there still runs, and moved scores by up to 0.017. So it is used
only if its hash is the recorded one and its outputs agree with an earlier network's.
In int8 OpenVINO computes networks for any shape wrongly (2026.4: a depth map moves by up to 60 % of its range), and a
large transformer in bf16 kills the process there. So in these precisions every size gets its own network.
"""

import contextlib
import shutil
import sys
import threading
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dgiqa.dtypes import Array
from dgiqa.errors import BackendError, BundleError, EngineError
from dgiqa.machine import usable_cores
from dgiqa.runtime.backends import INSTALL, OPENVINO
from dgiqa.runtime.inputs import Input, check
from dgiqa.store import discard, locked, private, replacing, sha256_of, user_cache

_HASH = ".sha256"  # next to the file that OpenVINO compiled
_HINTS = {"fp32": "f32", "fp16": "f32", "int8": "f32", "bf16": "bf16"}  # for the layers that the file leaves in float
_MATRIX_LAYERS = ("Convolution", "FullyConnected", "MatMul", "Deconvolution")
_SIZES = 8  # networks for fixed shapes, if none may serve any shape; the least recently used one is dropped
_AGREEMENT = 0.05  # mean difference of two networks from one file, relative to the mean |output|; bf16: up to 0.002
_FIXED = 2  # networks for fixed shapes in one session: each packs its own copy of the weights
_PAYS_AFTER = 32  # runs of other shapes: by then their own network would have repaid the time to compile it
# Runs of a smaller batch that are padded before a network for any shape is worth compiling: for 20 tiles of the paper's
# network in batches of 8, that network took 15 s and 1.1 GB, in every process.
_FILLED = 4
_NAMES = {"f32": "fp32", "f16": "fp16", "i8": "int8", "u8": "int8"}


_Shapes = tuple[tuple[int, ...], ...]  # one per input, in the order of `inputs`


@dataclass
class _Network:
    """A compiled network. idle: requests not in use; as many exist as threads have called at once."""

    compiled: Any
    idle: deque[Any] = field(default_factory=deque)

    def infer(self, arrays: list[Array]) -> list[Array]:
        """Run on inputs in the file's order. Return the outputs in the file's order; the caller owns them."""
        try:
            request = self.idle.pop()
        except IndexError:
            request = self.compiled.create_infer_request()
        try:
            results = request.infer(arrays, share_inputs=True)
            return [results[i] for i in range(len(results))]
        finally:
            self.idle.append(request)


class OvSession:
    """OpenVINO on the CPU.

    source: an ONNX file. precision: one of spec.PRECISIONS; fp16 and int8 are in the file, and its float layers run in
    fp32; bf16 runs an fp32 file in bf16. threads: by default all usable cores. streams: how many runs share the
    threads; 1 gives the shortest run, more give more runs a second to callers from several threads.
    cache: keep the network compiled for any shape in the user's cache directory, and load it from there.
    Raises BackendError if OpenVINO is missing or the processor lacks the precision, BundleError if the file is not a
    model.
    """

    backend: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __init__(
        self,
        source: str | Path,
        *,
        precision: str = "fp32",
        threads: int | None = None,
        streams: int = 1,
        cache: bool = True,
    ) -> None:
        threads = usable_cores() if threads is None else threads
        if threads < 1 or streams < 1:
            raise ValueError(f"threads and streams must be at least 1, got {threads} and {streams}")
        path = Path(source)
        if not path.is_file():
            raise BundleError(f"{path} is missing; wanted an ONNX file")
        ov = _import_openvino()
        self.backend = f"openvino-cpu {ov.__version__.split('-')[0]}"  # "2026.4.1-22982-e213a147257-releases/2026/4"
        self._hint = _HINTS[precision]
        if self._hint == "bf16" and "bf16" not in cpu_precisions():
            raise BackendError("this processor has no bf16 instructions; choose --precision fp32 or int8")
        self._settings = _settings(self._hint, threads, streams)
        self._core, self._path, self._read = _core(), path, _written(path) if cache else None
        try:
            self._model = self._core.read_model(path)
        except Exception as error:
            raise self._unreadable(error) from error
        self._specs = {_name(port): _input(port) for port in self._model.inputs}
        self.inputs, self.outputs = tuple(self._specs), tuple(_name(port) for port in self._model.outputs)
        of_any_size = any(length is None for wanted in self._specs.values() for length in wanted.shape[1:])
        self._each_its_own = precision in ("int8", "bf16") and of_any_size
        self._compiling = threading.Lock()
        self._networks: dict[_Shapes | None, _Network] = {}  # by shapes of the inputs; None: any shape
        self._runs: Counter[_Shapes] = Counter()

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Every output by name. ValueError for wrong names, dtypes or shapes, BackendError if the engine fails or would
        not run in the precision asked for."""
        check(self._specs, feeds)
        _check_batch(self._specs, feeds)
        shapes = tuple(feeds[name].shape for name in self.inputs)
        arrays = [np.ascontiguousarray(feeds[name]) for name in self.inputs]
        if larger := self._larger(shapes):
            filled = {name: _filled(array, to[0]) for name, array, to in zip(self.inputs, arrays, larger, strict=True)}
            return {name: result[: shapes[0][0]] for name, result in self.run(filled).items()}
        network = self._network(shapes, arrays)
        try:
            results = network.infer(arrays)
        except Exception as error:
            raise self._failed(shapes, error) from error
        return dict(zip(self.outputs, results, strict=True))

    def layer_precisions(self) -> Counter[str]:
        """The number of convolutions and matrix products that run in each precision, read from the compiled network."""
        found: Counter[str] = Counter()
        with self._compiling:
            network = next(iter(self._networks.values()), None) or self._compiled(None)
        for layer in network.compiled.get_runtime_model().get_ops():
            facts = layer.get_rt_info()
            if "layerType" in facts and facts["layerType"].astype(str) in _MATRIX_LAYERS:
                precision = facts["runtimePrecision"].astype(str)
                found[_NAMES.get(precision, precision)] += 1
        return found

    def _network(self, shapes: _Shapes, arrays: list[Array]) -> _Network:
        """The network for inputs of these shapes, such as these arrays."""
        with self._compiling:
            if (own := self._networks.pop(shapes, None)) is not None:
                self._networks[shapes] = own  # the most recently used one comes last
                return own
            if self._each_its_own:
                if len(self._networks) == _SIZES:
                    del self._networks[next(iter(self._networks))]
                return self._compiled(shapes)
            if len(self._networks) <= _FIXED:  # else no more are compiled
                self._runs[shapes] += 1
                if self._runs[shapes] > _PAYS_AFTER or not self._networks:
                    return self._compiled(shapes)
            return self._networks.get(None) or self._general(arrays)

    def _larger(self, shapes: _Shapes) -> _Shapes | None:
        """Shapes of a network that can run these if padded, for the first few runs; None if they need one that fits."""
        if any(wanted.shape[0] is not None for wanted in self._specs.values()):
            return None
        with self._compiling:
            if shapes in self._networks or None in self._networks or self._runs[shapes] >= _FILLED:
                return None
            fit = [
                made
                for made in self._networks
                if made and all(s[0] < m[0] and s[1:] == m[1:] for s, m in zip(shapes, made, strict=True))
            ]
            if fit:
                self._runs[shapes] += 1
            return min(fit, default=None)

    def _general(self, arrays: list[Array]) -> _Network:
        """The network for any shape: the cached one if it agrees with one for fixed shapes, else a new one."""
        folder = None
        if self._read and self._read == _written(self._path):
            folder = compiled_folder(sha256_of(self._path))
        made = self._kept(folder) if folder else self._compiled(None)
        if folder and self._strays(made, arrays):
            shutil.rmtree(folder, ignore_errors=True)
            made = self._compiled(None)
        if self._strays(made, arrays):
            del self._networks[None]
            text = f"{self.backend} gives other numbers for {self._path.name} when it takes any shape"
            raise BackendError(f"{text} than when it takes one; choose --backend onnxruntime")
        return made

    def _kept(self, folder: Path) -> _Network:
        """The network for any shape, loaded from the cache or stored in it; not cached if its folder is unusable."""
        with contextlib.suppress(OSError, EngineError), proved(folder):
            return self._compiled(None, folder)
        return self._compiled(None)

    def _strays(self, network: _Network, arrays: list[Array]) -> bool:
        """Whether it disagrees with a network for fixed shapes, on these arrays cut or repeated to fit."""
        shapes, fixed = next((shapes, made) for shapes, made in self._networks.items() if shapes)
        trial = [np.resize(array, shape) for array, shape in zip(arrays, shapes, strict=True)]
        try:
            pairs = list(zip(network.infer(trial), fixed.infer(trial), strict=True))
        except Exception as error:
            raise self._failed(shapes, error) from error
        # "Not at most" instead of "more than", so that NaN strays too.
        return not all(np.abs(got - want).mean() <= _AGREEMENT * np.abs(want).mean() for got, want in pairs)

    def _compiled(self, shapes: _Shapes | None, folder: Path | None = None) -> _Network:
        """Compile for these shapes, or for any. folder: where OpenVINO stores and finds what it compiled for any."""
        model, settings = self._model if shapes is None else self._reshaped(shapes), self._settings
        if folder:  # OpenVINO recognises a file by its path and time; a folder per contents makes that safe
            model, settings = self._path, settings | {"CACHE_DIR": str(folder)}
        try:
            compiled = self._core.compile_model(model, "CPU", settings)
        except Exception as error:
            raise self._unreadable(error) from error
        got = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if got != self._hint:
            raise BackendError(f"asked openvino for {self._hint}, got {got}; choose another --precision or --backend")
        made = self._networks[shapes] = _Network(compiled)
        return made

    def _reshaped(self, shapes: _Shapes) -> Any:
        """A copy of the model for these shapes; it shares the weights."""
        model = self._model.clone()
        try:
            model.reshape(dict(zip(model.inputs, map(list, shapes), strict=True)))
        except Exception as error:
            raise self._failed(shapes, error) from error
        return model

    def _failed(self, shapes: _Shapes, error: Exception) -> BackendError:
        named = dict(zip(self.inputs, shapes, strict=True))
        return BackendError(f"{self.backend} failed on inputs of shape {named}: {_short(error)}")

    def _unreadable(self, error: Exception) -> BundleError:
        text = f"{self.backend} cannot read {self._path} as a model ({_short(error)}); copy or rebuild the bundle"
        return BundleError(text)


def _filled(array: Array, count: int) -> Array:
    """The array [n,...] with its last item repeated until there are `count`."""
    return np.concatenate([array, np.repeat(array[-1:], count - len(array), axis=0)])


def cpu_precisions() -> list[str]:
    """The precisions that this processor runs with OpenVINO; bf16 only if it has the instructions."""
    offered = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ["fp32", "fp16", "int8", *(["bf16"] if "BF16" in offered else [])]


_IMPORTING = threading.Lock()
_CORES: list[Any] = []


def _core() -> Any:
    """The process's only Core, which is never freed.

    Its CPU part gives the thread that creates it a stack for signals, and frees that stack when it is freed, in
    whatever thread that happens: the next signal then killed the process (2025.0 to 2026.4).
    """
    ov = _import_openvino()
    with _IMPORTING:
        if not _CORES:
            _CORES.append(ov.Core())
        return _CORES[0]


def _import_openvino() -> Any:
    """openvino, without its telemetry: importing it would report to Intel unless the user opted out."""
    try:
        with _IMPORTING:
            silenced = sys.modules.setdefault("openvino_telemetry", None) is None  # type: ignore[arg-type]
            try:
                import openvino
            finally:
                if silenced:
                    del sys.modules["openvino_telemetry"]
    except ImportError as error:
        raise BackendError(f"openvino cannot be imported ({error}); {INSTALL[OPENVINO]}") from error
    return openvino


def _settings(hint: str, threads: int, streams: int) -> dict[str, Any]:
    return {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": streams}


def _written(path: Path) -> tuple[int, int, int] | None:
    """The file's inode, size and time, which change when another file replaces it; None if it is gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _name(port: Any) -> str:
    """An input's or output's name in the file. The port's own names include those of tensors merged with it."""
    return str(port.get_node().get_friendly_name()).split("/sink_port_", 1)[0]


def _input(port: Any) -> Input:
    """An input's type and shape. Read once: OpenVINO deadlocks when two threads ask for the first time."""
    sizes = [None if length.is_dynamic else length.get_length() for length in port.partial_shape]
    return Input(np.dtype(port.element_type.to_dtype()), tuple(sizes))


def _check_batch(specs: Mapping[str, Input], feeds: Mapping[str, Array]) -> None:
    """ValueError unless the inputs have one batch size: OpenVINO would read past the end of the shorter one."""
    sizes = {name: feeds[name].shape[0] for name, wanted in specs.items() if wanted.shape[0] is None}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"got batches of different sizes, {sizes}; wanted the same in every input")


def _short(error: Exception) -> str:
    """The last sentence of OpenVINO's chain of exceptions."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [repr(error)])[-1]


def compiled_folder(digest: str) -> Path | None:
    """Folder for OpenVINO's compiled form of the file with this sha256. None if it cannot be written."""
    try:
        return private(user_cache() / "openvino" / digest[:32])
    except (OSError, EngineError):
        return None


@contextlib.contextmanager
def proved(folder: Path) -> Iterator[None]:
    """Guard a folder while OpenVINO reads or writes compiled files: let in one process at a time, delete files without
    their recorded hash first, and record the hash of each new file."""
    with locked(folder / "compiled"):
        believed = {}
        for blob in folder.glob("*.blob"):
            if _hash_beside(blob) == sha256_of(blob):
                believed[blob] = blob.stat().st_mtime_ns
            else:
                discard(blob)
        yield
        for blob in folder.glob("*.blob"):
            if believed.get(blob) != blob.stat().st_mtime_ns:
                with replacing(blob.with_suffix(_HASH)) as partial:
                    partial.write_text(sha256_of(blob), encoding="ascii")


def _hash_beside(blob: Path) -> str:
    """The hash recorded for a compiled file; empty if there is none."""
    try:
        return blob.with_suffix(_HASH).read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
