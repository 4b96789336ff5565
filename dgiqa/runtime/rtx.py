"""TensorRT for RTX runs an ONNX file on an NVIDIA RTX GPU: compiled when it is opened, in seconds, without TensorRT.

NVIDIA ships it as a plugin of ONNX Runtime (onnxruntime-ep-nv-tensorrt-rtx-cu13), which loads it into its CPU wheel. It
serves GPUs of compute capability 8.6, 8.9, 12.0 and later: GeForce RTX 30, 40 and 50, RTX A and RTX PRO, A10, L4, L40,
GB10. It refuses those of data centres (A100, H100, H200, B200): they have TensorRT.

The library itself is loaded and asked in the tests, and NVIDIA's builder of this generation compiles every shipped
network on a CPU; not yet run on a GPU.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgiqa import machine
from dgiqa.errors import BackendError, BundleError
from dgiqa.runtime.backends import INSTALL, RTX, serves_rtx
from dgiqa.runtime.ort import _DTYPES, _check_input, _explain, _import_onnxruntime, _options
from dgiqa.store import private, sha256_of, user_cache

OLDEST = (1, 24)  # onnxruntime that takes the plugin
GPU, NVIDIA = "gpu", 0x10DE  # a kind of ONNX Runtime's devices, and a vendor in PCI's list
_GRAPHS = 8  # shapes that have a captured graph; further ones run without


class RtxSession:
    """TensorRT for RTX on one GPU.

    source: an ONNX file, fp32 or fp16. device: the GPU's ordinal, of those that the plugin serves. graphs: capture a
    CUDA graph for each of the first shapes and replay it; runs then take turns. cache: keep the kernels that are
    compiled at run time in the user's cache, by the file's contents, so that the next process starts sooner.
    Raises BackendError if the plugin is missing, too old, or serves no GPU here; BundleError if the file is no model.
    """

    backend: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __init__(
        self, source: str | Path, *, device: int | None = None, graphs: bool = False, cache: bool = True
    ) -> None:
        path = Path(source)
        if not path.is_file():
            raise BundleError(f"{path} is missing; wanted an ONNX file")
        self._ort = ort = _import_onnxruntime()
        self._device = 0 if device is None else device
        options = _options(ort, machine.usable_cores())
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")  # asked for this, or an error
        settings = {"enable_cuda_graph": str(int(graphs))}
        if cache:
            settings["nv_runtime_cache_path"] = str(private(user_cache() / RTX / sha256_of(path)))
        options.add_provider_for_devices([gpus()[self._device]], settings)
        try:
            self._session = ort.InferenceSession(str(path), options)
        except Exception as error:  # onnxruntime's exception classes share no public base
            raise _explain(str(path), ort.__version__, error) from error
        self.backend = f"{RTX} {plugin_version()}"
        self._specs = {node.name: node for node in self._session.get_inputs()}
        self.inputs = tuple(self._specs)
        self.outputs = tuple(node.name for node in self._session.get_outputs())
        self._turn, self._graphs = threading.Lock(), graphs
        self._captured: dict[Any, tuple[Any, Any, dict[str, Any]]] = {}

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Every output by name. ValueError for wrong names, dtypes or shapes, BackendError if the engine fails."""
        if feeds.keys() != self._specs.keys():
            raise ValueError(f"got inputs {sorted(feeds)}, wanted {sorted(self._specs)}")
        for name, array in feeds.items():
            _check_input(self._specs[name], array, on_gpu=False)
        shapes = tuple(sorted((name, array.shape) for name, array in feeds.items()))
        try:
            if self._graphs and (shapes in self._captured or len(self._captured) < _GRAPHS):
                with self._turn:
                    return self._replay(shapes, feeds)
            return dict(zip(self.outputs, self._session.run(None, dict(feeds)), strict=True))
        except Exception as error:
            raise BackendError(f"{self.backend} failed on inputs of shape {dict(shapes)}: {error}") from error

    def _replay(self, shapes: Any, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Through arrays that stay where they are; the plugin captures the first runs of a graph's number."""
        if shapes not in self._captured:
            self._captured[shapes] = self._placed(feeds)
        binding, options, inputs = self._captured[shapes]
        for name, array in feeds.items():
            inputs[name].update_inplace(np.ascontiguousarray(array))
        self._session.run_with_iobinding(binding, options)
        return dict(zip(self.outputs, binding.copy_outputs_to_cpu(), strict=True))

    def _placed(self, feeds: Mapping[str, NDArray[Any]]) -> tuple[Any, Any, dict[str, Any]]:
        place = (GPU, self._device, NVIDIA)
        made = self._ort.OrtValue
        inputs = {n: made.ortvalue_from_numpy(np.ascontiguousarray(a), *place) for n, a in feeds.items()}
        sizes: dict[str, int] = {}
        for name, array in feeds.items():
            sizes |= {d: n for d, n in zip(self._specs[name].shape, array.shape, strict=True) if isinstance(d, str)}
        binding, options = self._session.io_binding(), self._ort.RunOptions()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for node in self._session.get_outputs():
            shape = [size if isinstance(size, int) else sizes[size] for size in node.shape]
            binding.bind_ortvalue_output(
                node.name, made.ortvalue_from_shape_and_type(shape, _DTYPES[node.type], *place)
            )
        options.add_run_config_entry("gpu_graph_id", str(len(self._captured) + 1))
        return binding, options, inputs


@cache
def gpus() -> list[Any]:
    """The GPUs that the plugin serves, as ONNX Runtime's devices; loads it into this process.

    Raises BackendError that says why there is none.
    """
    ort, plugin = _import_onnxruntime(), _import_plugin()
    if not hasattr(ort, "register_execution_provider_library") or _version(ort.__version__) < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        raise BackendError(f"got onnxruntime {ort.__version__}, and {RTX} needs {wanted} or newer; {INSTALL[RTX]}")
    name = plugin.get_ep_name()
    try:
        ort.register_execution_provider_library(name, plugin.get_library_path())
    except Exception as error:
        text = " ".join(str(error).split())
        raise BackendError(f"{RTX} does not load ({text}); it needs NVIDIA's driver for CUDA 13") from error
    found = [device for device in ort.get_ep_devices() if device.ep_name == name]
    if not found:
        raise BackendError(_not_served())
    return found


def identity(device: int | None = None) -> dict[str, str]:
    """What is compiled here is bound to these: version (of the plugin), gpu (name), compute_capability."""
    name, capability = machine.gpu(device or 0)
    return {"version": plugin_version(), "gpu": name, "compute_capability": capability}


def plugin_version() -> str:
    return str(_import_plugin().__version__)


def _not_served() -> str:
    """Why the plugin takes no GPU of this machine."""
    try:
        name, capability = machine.gpu()
    except BackendError:
        return f"{RTX} sees no NVIDIA GPU; run it on a machine with a GeForce RTX 30 or newer"
    return serves_rtx(name, capability) or f"{RTX} does not take {name}; choose --backend onnxruntime-cuda"


def _import_plugin() -> Any:
    try:
        import onnxruntime_ep_nv_tensorrt_rtx as plugin
    except ImportError as error:
        raise BackendError(f"{RTX} cannot be imported ({error}); {INSTALL[RTX]}") from error
    return plugin


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])
