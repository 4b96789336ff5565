"""A bundle -> a model repository of Triton: its networks, and a model that takes encoded images and returns scores.

    OUT/NAME/           Python backend: image -> windows -> the two below -> score; see triton_model
    OUT/NAME_depth/     ONNX Runtime or TensorRT
    OUT/NAME_quality/   the same, with tiles of many requests in one batch

Triton's kind "ensemble" would not do: an image has any number of tiles, and an ensemble has no step that cuts them into
batches. The Python model does that through Triton's scheduler (business logic scripting), so its batches are dynamic.
"""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from dgiqa import spec
from dgiqa.bundle import MANIFEST, Bundle
from dgiqa.errors import EngineError
from dgiqa.forward import file_of
from dgiqa.runtime.engines import Engine
from dgiqa.serve import v2
from dgiqa.store import scratch_in

BATCH = 32  # most tiles in a run; plans are built for so many by default
DELAY_US = 2000  # that a tile waits for others
MODEL_PY = """# The pass over one image, in Triton's Python backend.
from dgiqa.serve.triton_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
"""
_TYPES = {"FP32": "TYPE_FP32", "BYTES": "TYPE_STRING"}


def write_repository(
    out: str | Path,
    bundle: Bundle,
    *,
    engine: Engine | None = None,
    gpu: bool = False,
    instances: int = 2,
    gate: float | None = None,
) -> Path:
    """Write a bundle's repository to a new folder, and return that.

    engine: use its files instead of the bundle's own: TensorRT runs a plan, ONNX Runtime anything else. gpu: run the
    networks on a GPU. instances: images at a time. gate: the score from which an image passes.
    Raises EngineError for an engine that Triton cannot run, OSError if the folder cannot be written.
    """
    out = Path(out)
    if out.exists():
        raise FileExistsError(f"{out} is there already; name a new folder, or delete it")
    if engine is not None and engine.plugins:
        raise EngineError(f"{engine.name} needs a plugin, which Triton would have to load; build it without kernels")
    with scratch_in(out.absolute().parent, out.name) as made:
        for network in bundle.networks:
            folder = made / network_name(bundle, network.file)
            source = file_of(bundle, network.file, engine)
            plan = engine is not None and engine.backend == "tensorrt"
            _write(folder, _network_config(bundle, network, plan=plan, gpu=gpu))
            shutil.copyfile(source, folder / "1" / ("model.plan" if plan else "model.onnx"))
        top = made / bundle.name
        _write(top, _top_config(bundle, instances, gate))
        (top / "1" / "model.py").write_text(MODEL_PY, encoding="utf-8")
        shutil.copyfile(bundle.path / MANIFEST, top / "1" / MANIFEST)
        made.chmod(0o755)  # other users' servers read it
        made.rename(out)
    return out


def network_name(bundle: Bundle, file: str) -> str:
    """The name in the repository of one of a bundle's networks: small_depth for depth.onnx."""
    return f"{bundle.name}_{Path(file).stem}"


def _top_config(bundle: Bundle, instances: int, gate: float | None) -> list[str]:
    gates = [] if gate is None else [f'parameters {{ key: "gate" value {{ string_value: "{gate!r}" }} }}']
    tensors = [(tensor["name"], _TYPES[tensor["datatype"]], (-1,)) for tensor in (v2.INPUTS[0], *v2.OUTPUTS)]
    return [
        f'name: "{bundle.name}"',
        'backend: "python"',
        "max_batch_size: 0",
        _tensors("input", tensors[:1]),
        _tensors("output", tensors[1:]),
        f"instance_group [ {{ kind: KIND_CPU count: {instances} }} ]",
        *gates,
    ]


def _network_config(bundle: Bundle, network: spec.Network, *, plan: bool, gpu: bool) -> list[str]:
    """A network's configuration. Depth inputs differ in size, so they are run one at a time; tiles are batched."""
    batched = network.file == spec.QUALITY_FILE
    outputs = {name: list(shape) for name, shape in network.outputs.items()}
    told = bundle.manifest["tensors"][network.file]["outputs"]
    outputs |= {name: told[name]["shape"] for name in network.further if name in told}
    sizes = dict(zip("hw", _warm_size(bundle), strict=True))
    batching = f"dynamic_batching {{ preferred_batch_size: {[8, BATCH]} max_queue_delay_microseconds: {DELAY_US} }}"
    warm = {name: [sizes.get(str(n), n) for n in _dims(shape, batched)] for name, shape in network.inputs.items()}
    return [
        f'name: "{network_name(bundle, network.file)}"',
        'platform: "tensorrt_plan"' if plan else 'backend: "onnxruntime"',
        *([] if plan else ['default_model_filename: "model.onnx"']),
        f"max_batch_size: {BATCH if batched else 0}",
        _tensors("input", [(n, "TYPE_FP32", _dims(s, batched)) for n, s in network.inputs.items()]),
        _tensors("output", [(n, "TYPE_FP32", _dims(s, batched)) for n, s in outputs.items()]),
        *[batching] * batched,
        f"instance_group [ {{ kind: {'KIND_GPU' if gpu else 'KIND_CPU'} count: 1 }} ]",
        _warm_up(warm, 8 if batched else 0),
    ]


def _dims(shape: Iterable[int | str], batched: bool) -> list[int | str]:
    """A shape, without the batch if Triton counts that separately; free lengths stay letters."""
    return list(shape)[1 if batched else 0 :]


def _warm_size(bundle: Bundle) -> tuple[int, int]:
    """Height and width of the depth input of 4:3 pictures."""
    p = bundle.preprocess
    short = -(-p.depth_lower_bound // p.depth_multiple) * p.depth_multiple
    return short, round(short * 4 / 3 / p.depth_multiple) * p.depth_multiple


def _tensors(role: str, tensors: Iterable[tuple[str, str, Iterable[int | str]]]) -> str:
    lines = []
    for name, kind, dims in tensors:
        known = [n if isinstance(n, int) else -1 for n in dims]
        shape = f"dims: {known}" if known else "dims: [ 1 ] reshape { shape: [ ] }"
        lines.append(f'  {{ name: "{name}" data_type: {kind} {shape} }}')
    return f"{role} [\n" + ",\n".join(lines) + "\n]"


def _warm_up(shapes: Mapping[str, Iterable[int | str]], batch: int) -> str:
    inputs = "".join(
        f'\n  inputs {{ key: "{name}" value {{ data_type: TYPE_FP32 dims: {list(dims)} random_data: true }} }}'
        for name, dims in shapes.items()
    )
    return f'model_warmup {{\n  name: "one run"\n  batch_size: {batch}{inputs}\n}}'


def _write(folder: Path, config: list[str]) -> None:
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text("\n".join([*config, ""]), encoding="utf-8")
