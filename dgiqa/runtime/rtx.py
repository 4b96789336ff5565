"""TensorRT for RTX runs an ONNX file on an NVIDIA RTX GPU. Opening the file compiles it in seconds, without TensorRT.

NVIDIA ships it as a plugin (onnxruntime-ep-nv-tensorrt-rtx-cu13), which ONNX Runtime's CPU wheel loads. It serves GPUs
of compute capability 8.6, 8.9, 12.0 and later: GeForce RTX 30, 40 and 50, RTX A and RTX PRO, A10, L4, L40, GB10. It
refuses data-centre GPUs (A100, H100, H200, B200), which have TensorRT.

Not yet run on a GPU: the tests load and query the library, and NVIDIA's builder of this generation compiles every
shipped network on a CPU.
"""

import itertools
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from dgiqa import machine
from dgiqa.errors import BackendError, BundleError
from dgiqa.extras import load
from dgiqa.runtime import cuda
from dgiqa.runtime.backends import INSTALL, RTX, serves_rtx
from dgiqa.runtime.ort import Opened, OrtBound, _import_onnxruntime, _options
from dgiqa.store import private, sha256_of, user_cache

OLDEST = (1, 24)  # the first onnxruntime that takes the plugin
GPU, NVIDIA = "gpu", 0x10DE  # a kind of ONNX Runtime's devices, and a vendor in PCI's list


class RtxSession(Opened):
    """TensorRT for RTX on one GPU.

    source: an ONNX file, fp32 or fp16. device: the GPU's ordinal among those that the plugin serves. `run` takes and
    returns numpy arrays. `bind` takes arrays on the GPU, copied on the GPU to and from ONNX Runtime's own. graphs:
    `bind` captures a CUDA graph once and replays it. cache: keep the kernels that are compiled at run time in the
    user's cache, by the file's contents, so that the next process starts sooner.
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
        self.graphs = itertools.count(1) if graphs else None

    def bind(self, feeds: Mapping[str, Any], outputs: Mapping[str, Any] | None, lane: cuda.Lane) -> "RtxBound":
        """The network between fixed arrays on the GPU. An output that is not given gets a new array.

        lane: a run waits for its work. ValueError as in run, BackendError without cuda-python.
        """
        arrays, binding = self.placed(feeds, outputs, lane), self._session.io_binding()
        made, place = self._ort.OrtValue.ortvalue_from_shape_and_type, (GPU, self.device, NVIDIA)
        values = {name: made(list(array.shape), array.dtype.type, *place) for name, array in arrays.items()}
        for name, value in values.items():
            (binding.bind_ortvalue_input if name in self.inputs else binding.bind_ortvalue_output)(name, value)
        return RtxBound(self, lane, arrays, binding, values)


class RtxBound(OrtBound):
    """An OrtBound that copies through ONNX Runtime's own arrays on the GPU. values: those arrays, by name."""

    def __init__(self, session: RtxSession, lane: cuda.Lane, arrays: Any, binding: Any, values: dict[str, Any]) -> None:
        super().__init__(session, lane, arrays, binding)
        self._values, self._inputs = values, session.inputs

    def put(self) -> None:
        """Run on ONNX Runtime's own stream: wait for the lane first, and return when the run is done."""
        for name in self._inputs:
            self._lane.copy(self._values[name].data_ptr(), self.arrays[name].pointer, self.arrays[name].nbytes)
        super().put()
        for name in self.arrays.keys() - self._inputs:
            self._lane.copy(self.arrays[name].pointer, self._values[name].data_ptr(), self.arrays[name].nbytes)
        self._lane.sync()  # ONNX Runtime's arrays may be freed with this object


@cache
def gpus() -> list[Any]:
    """The GPUs that the plugin serves, as ONNX Runtime's devices; loads it into this process.

    Raises BackendError, which says why, if there is none.
    """
    ort, plugin = _import_onnxruntime(), _import_plugin()
    version = tuple(map(int, ort.__version__.split(".")[:2]))
    if not hasattr(ort, "register_execution_provider_library") or version < OLDEST:
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
