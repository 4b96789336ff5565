"""The code in Triton's Python backend: encoded images in, scores and rows out; the networks are Triton's models."""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dgiqa import spec
from dgiqa.bundle import read_manifest
from dgiqa.dtypes import Array
from dgiqa.errors import BackendError, ImageError
from dgiqa.forward import Stages, networks_of
from dgiqa.report.rows import Row, error_row
from dgiqa.serve import v2
from dgiqa.serve.triton import network_name


class TritonNetwork:
    """A model of the same server as a `runtime.session.Session`. Triton's scheduler batches concurrent requests."""

    backend = "triton"

    def __init__(self, backend: Any, model: str, network: spec.Network, further: tuple[str, ...]) -> None:
        self._triton, self._model = backend, model
        self.inputs, self.outputs = tuple(network.inputs), (*network.outputs, *further)
        self._flat = {name for name, shape in network.outputs.items() if len(shape) == 1}  # Triton knows no [n]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        triton = self._triton
        asked = triton.InferenceRequest(
            model_name=self._model,
            requested_output_names=list(self.outputs),
            inputs=[triton.Tensor(name, np.ascontiguousarray(array)) for name, array in feeds.items()],
            preferred_memory=triton.PreferredMemory(triton.TRITONSERVER_MEMORY_CPU, 0),
        )
        answer = asked.exec()
        if answer.has_error():
            raise BackendError(f"{self._model}: {answer.error().message()}")
        found = {name: triton.get_output_tensor_by_name(answer, name).as_numpy() for name in self.outputs}
        return {name: each.ravel() if name in self._flat else each for name, each in found.items()}


class TritonPythonModel:
    """The class that the Python backend looks for."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the pass. It first calls the networks for the first image, because Triton loads them in any order."""
        self._triton: Any = importlib.import_module("triton_python_backend_utils")
        parameters = json.loads(args["model_config"]).get("parameters", {})
        gate = parameters.get("gate", {}).get("string_value")
        bundle = read_manifest(Path(args["model_repository"]) / args["model_version"])
        reasons = (spec.QUALITY_REASONS,) if bundle.meaning.reasons else ()
        opened = {}
        for network in bundle.networks:
            name, further = network_name(bundle, network.file), reasons if network.file == spec.QUALITY_FILE else ()
            opened[network.file] = TritonNetwork(self._triton, name, network, further)
        networks = networks_of(bundle, opened)
        self.stages = Stages(bundle, networks, "triton", gate=None if gate is None else float(gate))

    def execute(self, requests: list[Any]) -> list[Any]:
        """An answer per request; an image without a score is NaN, and its row says why."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        triton = self._triton
        images = triton.get_input_tensor_by_name(request, v2.ENCODED).as_numpy().ravel()
        try:
            rows = [self._row(f"{v2.ENCODED}[{i}]", bytes(image)) for i, image in enumerate(images)]
        except BackendError as error:
            return triton.InferenceResponse(error=triton.TritonError(str(error)))
        columns = {output["name"]: _array(output["datatype"], v2.column(output["name"], rows)) for output in v2.OUTPUTS}
        return triton.InferenceResponse([triton.Tensor(name, values) for name, values in columns.items()])

    def _row(self, name: str, image: bytes) -> Row:
        try:
            return self.stages.score(image, name=name).as_row()
        except ImageError as error:
            return error_row(name, str(error), details=False, **self.stages.origin)


def _array(datatype: str, values: list[Any]) -> Array:
    """A column of the protocol as Triton takes it; None becomes NaN."""
    if datatype == "FP32":
        return np.array(values, np.float32)
    return np.array([text.encode() for text in values], np.object_)
