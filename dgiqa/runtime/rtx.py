"""TensorRT for RTX runs an ONNX file on an NVIDIA RTX GPU: compiled when it is opened, in seconds, without TensorRT.

NVIDIA ships it as a plugin of ONNX Runtime (onnxruntime-ep-nv-tensorrt-rtx-cu13), which loads it into its CPU wheel. It
serves GPUs of compute capability 8.6, 8.9, 12.0 and later: GeForce RTX 30, 40 and 50, RTX A and RTX PRO, A10, L4, L40,
GB10. It refuses those of data centres (A100, H100, H200, B200): they have TensorRT.

The library itself is loaded and asked in the tests, and NVIDIA's builder of this generation compiles every shipped
network on a CPU; not yet run on a GPU.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgiqa import machine
from dgiqa.errors import BackendError, BundleError
from dgiqa.extras import load
from dgiqa.runtime import cuda
from dgiqa.runtime.backends import INSTALL, RTX, serves_rtx
from dgiqa.runtime.ort import _DTYPES, NO_GRAPH, Opened, _import_onnxruntime, _options
from dgiqa.store import private, sha256_of, user_cache

OLDEST = (1, 24)  # onnxruntime that takes the plugin
GPU, NVIDIA = "gpu", 0x10DE  # a kind of ONNX Runtime's devices, and a vendor in PCI's list
_GRAPHS = 8  # shapes that have a captured graph; further ones run without


class RtxSession(Opened):
    """TensorRT for RTX on one GPU.

    source: an ONNX file, fp32 or fp16. device: the GPU's ordinal, of those that the plugin serves. graphs: capture a
    CUDA graph for each of the first shapes and replay it; runs then take turns. Arrays on the GPU go through `bind`,
    which copies them there, on the GPU, into arrays of ONNX Runtime's. cache: keep the kernels that are
    compiled at run time in the user's cache, by the file's contents, so that the next process starts sooner.
    Raises BackendError if the plugin is missing, too old, or serves no GPU here; BundleError if the file is no model.
    """

    def __init__(
        self, source: str | Path, *, device: int | None = None, graphs: bool = False, cache: bool = True
    ) -> None:
        path = Path(source)
        if not path.is_file():
            raise BundleError(f"{path} is missing; wanted an ONNX file")
        ort = _import_onnxruntime()
        self.device = 0 if device is None else device
        options = _options(ort, machine.usable_cores())
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")  # asked for this, or an error
        settings = {"enable_cuda_graph": str(int(graphs))}
        if cache:
            settings["nv_runtime_cache_path"] = str(private(user_cache() / RTX / sha256_of(path)))
        options.add_provider_for_devices([gpus()[self.device]], settings)
        super().__init__(ort, path, options)
        self.backend = f"{RTX} {plugin_version()}"
        self._turn, self._graphs = threading.Lock(), graphs
        self._captured: dict[Any, _Placed] = {}

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Every output by name. ValueError for wrong names, dtypes or shapes, BackendError if the engine fails."""
        shapes = self._checked(feeds)
        try:
            if self._graphs and (shapes in self._captured or len(self._captured) < _GRAPHS):
                with self._turn:
                    if shapes not in self._captured:
                        self._captured[shapes] = self._placed(dict(shapes), len(self._captured) + 1)
                    return self._captured[shapes].run(feeds)
            options = self._ort.RunOptions()
            if self._graphs:
                options.add_run_config_entry(*NO_GRAPH)
            return dict(zip(self.outputs, self._session.run(None, dict(feeds), options), strict=True))
        except Exception as error:
            raise BackendError(f"{self.backend} failed on inputs of shape {dict(shapes)}: {error}") from error

    def bind(self, feeds: Mapping[str, Any], outputs: Mapping[str, Any] | None, lane: cuda.Lane) -> RtxBound:
        """The network between fixed arrays on the GPU. An output that is not given gets a fresh array.

        lane: whose work comes before a run. ValueError as in run, BackendError without cuda-python.
        """
        arrays = {name: cuda.as_device_array(feed, lane.handle) for name, feed in feeds.items()}
        placed = self._placed(dict(self._checked(arrays, cuda.DeviceArray)), None)
        for name in self.outputs:
            given = (outputs or {}).get(name)
            value = placed.values[name]
            made = lane.empty(tuple(value.shape()), placed.dtypes[name]) if given is None else given
            arrays[name] = cuda.as_device_array(made)
            if (arrays[name].shape, arrays[name].dtype) != (tuple(value.shape()), placed.dtypes[name]):
                raise ValueError(f"output {name!r} is {arrays[name].shape}, wanted {tuple(value.shape())}")
        return RtxBound(self, placed, lane, arrays)

    def _checked(self, feeds: Mapping[str, Any], kind: Any = np.ndarray) -> tuple[tuple[str, Any], ...]:
        self.check(feeds, kind)
        return tuple(sorted((name, array.shape) for name, array in feeds.items()))

    def _placed(self, shapes: Mapping[str, tuple[int, ...]], graph: int | None) -> _Placed:
        """Arrays of ONNX Runtime's on the GPU for these shapes. graph: the number of the graph that they get."""
        sizes = self.sizes(shapes)
        nodes = [*self._specs.values(), *self._session.get_outputs()]
        dtypes = {node.name: np.dtype(_DTYPES[node.type]) for node in nodes}
        made, place = self._ort.OrtValue.ortvalue_from_shape_and_type, (GPU, self.device, NVIDIA)
        sized = {node.name: [d if isinstance(d, int) else sizes[d] for d in node.shape] for node in nodes}
        values = {name: made(shape, dtypes[name].type, *place) for name, shape in sized.items()}
        binding, options = self._session.io_binding(), self._ort.RunOptions()
        for name in self.inputs:
            binding.bind_ortvalue_input(name, values[name])
        for name in self.outputs:
            binding.bind_ortvalue_output(name, values[name])
        if self._graphs:
            options.add_run_config_entry(*NO_GRAPH if graph is None else (NO_GRAPH[0], str(graph)))
        return _Placed(values, dtypes, binding, lambda: self._session.run_with_iobinding(binding, options))


@dataclass(frozen=True)
class _Placed:
    """Inputs and outputs that ONNX Runtime holds on the GPU, by name, and the network between them."""

    values: dict[str, Any]
    dtypes: dict[str, np.dtype[Any]]
    binding: Any
    compute: Callable[[], None]

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Through arrays that stay where they are; the plugin captures the first runs of a graph's number."""
        for name, array in feeds.items():
            self.values[name].update_inplace(np.ascontiguousarray(array))
        self.compute()
        outputs = [name for name in self.values if name not in feeds]
        return dict(zip(outputs, self.binding.copy_outputs_to_cpu(), strict=True))


class RtxBound:
    """Inputs and outputs at fixed places on the GPU, by name, and the network between them. Made by RtxSession.bind."""

    def __init__(
        self, session: RtxSession, placed: _Placed, lane: cuda.Lane, arrays: dict[str, cuda.DeviceArray]
    ) -> None:
        self.arrays, self._session, self._placed, self._lane = arrays, session, placed, lane

    def put(self) -> None:
        """Run, on ONNX Runtime's own stream: after what is on the lane; the outputs are there once the lane is."""
        for name in self._session.inputs:
            self._lane.copy(self._placed.values[name].data_ptr(), self.arrays[name].pointer, self.arrays[name].nbytes)
        self._lane.sync()
        try:
            self._placed.compute()
        except Exception as error:
            raise BackendError(f"{self._session.backend} failed: {error}") from error
        for name in self._session.outputs:
            self._lane.copy(self.arrays[name].pointer, self._placed.values[name].data_ptr(), self.arrays[name].nbytes)

    def close(self) -> None:
        self._lane.sync()
        self.arrays = {}


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
    return load("onnxruntime_ep_nv_tensorrt_rtx", RTX, "onnxruntime-ep-nv-tensorrt-rtx-cu13", "rtx")


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])
