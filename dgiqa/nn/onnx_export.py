"""Export a PyTorch network to one ONNX file, which is kept only if it computes the same on real photographs.

    network ─► its export twin ─► dynamo export ─► stripped of local paths ─► ONNX Runtime ─┐
       └──────────────────────────────────────────────────────────────────────────────────┴─► compare ─► rename

A network without a twin is exported itself, and simplified by onnxsim if that does not add nodes. The bytes that are
kept are exactly those that were checked; a file that differs too much is deleted.
"""

import contextlib
import copy
import logging
import types
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgiqa import spec
from dgiqa.dtypes import Array, UInt8
from dgiqa.errors import DgiqaError, WeightsError
from dgiqa.nn import attention_onnx
from dgiqa.nn.checkpoints import load_dgiqa, load_weights
from dgiqa.nn.deploy import Attention, export_twin
from dgiqa.nn.depth import SmallDepth
from dgiqa.nn.depth_anything import ENCODERS, DepthAnything
from dgiqa.nn.network import DGIQA, FULL, SMALL
from dgiqa.nn.reference import decode, depth_input, network_tiles
from dgiqa.nn.systems import takes
from dgiqa.runtime.ort import OrtSession
from dgiqa.spec import Preprocess
from dgiqa.store import replacing

SCORE_TOLERANCE = 1e-4  # of a score in 0..1: a hundredth of the second decimal, the last that readers compare
DEPTH_TOLERANCE = 1e-3  # of one image's depth range: a quarter of a step of the uint8 depth image
BATCHES = (1, 3, 8)  # tiles: a single one, an odd number, a full batch
MAX_BYTES = 2**31 - 1  # protobuf's limit; every network here stays below it, so weights stay in the file
MAX_CELLS = 512  # cells (patches of `depth_multiple` pixels) along one side of the depth network's input
PHOTOGRAPHS = {  # in scikit-image's wheel, with their licences
    "astronaut": "public domain (NASA)",
    "coffee": "CC0 (Rachel Michetti)",
    "chelsea": "CC0 (Stéfan van der Walt)",
    "rocket": "CC0 (SpaceX)",
}

Feeds = Mapping[str, Tensor]
N = TypeVar("N", bound=nn.Module)


class ExportError(DgiqaError):
    """A network could not be exported, or the exported file does not compute what the network computes."""


@dataclass(frozen=True)
class Export:
    """A written file, and how far it is from PyTorch.

    simplified: whether onnxsim's graph was kept. differences: largest difference for each input that was tried.
    unit: the quantity that differences are relative to. tolerance: the largest difference allowed.
    """

    path: Path
    nodes: int
    size_bytes: int
    simplified: bool
    differences: dict[str, float]
    tolerance: float
    unit: str

    @property
    def difference(self) -> float:
        return max(self.differences.values())

    @property
    def share(self) -> float:
        """The share of the tolerance that is used, 0..1."""
        return self.difference / self.tolerance


def export_quality(
    model: nn.Module,
    path: str | Path,
    *,
    tile: int = spec.TILE,
    photos: Sequence[UInt8] | None = None,
    attention: Attention | None = None,
    twin: bool = True,
) -> Export:
    """Write a quality network, f32 [n,3,tile,tile] of rgb and depth -> f32 [n], to an ONNX file with a dynamic batch.

    A network with other inputs names them in `inputs`; its `preprocess` says how they are made.
    A DGIQA's file also has its features f32 [n,C] and, with a head for them, its reasons f32 [n,K] as outputs.
    photos: uint8 [H,W,3] RGB to compare with PyTorch on; by default scikit-image's. The model is not changed.
    attention: as in `dgiqa.nn.deploy.export_twin`; "op" writes one operator with its function.
    twin: False exports the network itself, for comparison.
    Raises ExportError if scores, reasons, or features relative to the largest one, differ by more than
    SCORE_TOLERANCE; then nothing is written.
    """
    p = replace(getattr(model, "preprocess", Preprocess()), tile=tile)
    fed = dict(zip(takes(model), _tiles_of(photos or photographs(), p, takes(model)), strict=True))
    cases = {f"batch {n}": {name: tiles[:n] for name, tiles in fed.items()} for n in BATCHES}
    batch = torch.export.Dim("batch", min=1, max=4096)
    with _frozen(model) as network:
        # A network that keeps its maps is exported itself: the twin averages them.
        exported = _exported(network, attention, twin and getattr(network.config, "difference", "signed") == "signed")
        whole, names = _with_all_outputs(exported)
        graph = _graph(whole, cases["batch 3"], names, ({0: batch},) * len(fed), attention=attention)
        candidates, whole = _candidates(graph, exported is network), _with_all_outputs(network)[0]
        return _write_checked(whole, candidates, Path(path), cases, (SCORE_TOLERANCE, "score"))


def export_depth(
    model: nn.Module,
    path: str | Path,
    *,
    preprocess: Preprocess | None = None,
    size: tuple[int, int] | None = None,
    photos: Sequence[UInt8] | None = None,
    twin: bool = True,
) -> Export:
    """Write a depth network, f32 [n,3,h,w] -> f32 [n,h,w], to an ONNX file with dynamic batch, height and width.

    preprocess: defines the sizes to compare at, and the multiple of h and w; by default the network's. size: a fixed
    (h, w) instead.
    photos, twin: as in `export_quality`. The model is not changed.
    Raises ExportError if depths differ by more than DEPTH_TOLERANCE of their range; then nothing is written.
    """
    p: Preprocess = preprocess or getattr(model, "preprocess", None) or Preprocess()
    cases = _depth_cases(photos or photographs(), p, size)
    batch = torch.export.Dim("batch", min=1, max=256)
    rows, columns = (torch.export.Dim(name, min=1, max=MAX_CELLS) for name in ("rows", "columns"))
    cell = p.depth_multiple
    dynamic = {0: batch} if size else {0: batch, 2: cell * rows, 3: cell * columns}
    with _frozen(model) as network:
        exported = _exported(network, None, twin)
        graph = _graph(exported, cases["batch 2"], [spec.DEPTH_OUTPUT], (dynamic,))
        candidates = _candidates(graph, exported is network)
        return _write_checked(network, candidates, Path(path), cases, (DEPTH_TOLERANCE, "depth range"))


def export_networks(
    out: str | Path,
    quality: str | None,
    depth: str | None,
    config: str = "full",
    photos: str | Path | None = None,
    *,
    attention: Attention | None = None,
) -> list[Export]:
    """Export networks named as on a command line to quality.onnx and depth.onnx in the directory `out`.

    quality: a weight file, or "random:SEED" for untrained weights with the sizes of `config` ("full" or "small").
    depth: a weight file, or "vits", "vitb", "vitl", "small" for untrained weights. None leaves a network out.
    photos: a folder, see `photographs`. attention: as in `export_quality`.
    Raises WeightsError, ExportError, ValueError for a seed that is no number.
    """
    pictures, out, written = photographs(photos), Path(out), []
    if quality is not None:
        dgiqa = _quality_named(quality, config)
        tile = dgiqa.config.image_size
        written.append(export_quality(dgiqa, out / spec.QUALITY_FILE, tile=tile, photos=pictures, attention=attention))
    if depth is not None:
        written.append(export_depth(_depth_named(depth), out / spec.DEPTH_FILE, photos=pictures))
    return written


def photographs(folder: str | Path | None = None, limit: int = 8) -> list[UInt8]:
    """Photographs to compare on, uint8 [H,W,3] RGB: a folder's first `limit`, or scikit-image's.

    Raises ExportError if there are none.
    """
    if folder is not None:
        paths = sorted(
            p for p in Path(folder).glob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp", ".bmp")
        )
        if not paths:
            raise ExportError(f"{folder} holds no photographs (.jpg, .png, .webp, .bmp)")
        return [decode(path.read_bytes()) for path in paths[:limit]]
    try:
        from skimage import data
    except ImportError as error:
        raise ExportError("no photographs to compare on; pip install scikit-image, or name a folder of some") from error
    return [getattr(data, name)() for name in list(PHOTOGRAPHS)[:limit]]


def untrained(network: N) -> N:
    """Fill the parameters that were initialised with zeros with small random numbers; changed in place and returned.

    Tools drop additions of zeros, so a graph with zero biases would run faster than a trained network's ever can.
    """
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    return network


def _quality_named(name: str, config: str) -> DGIQA:
    if not name.startswith("random:"):
        return load_dgiqa(name)
    torch.manual_seed(int(name.removeprefix("random:")))
    return untrained(DGIQA(SMALL if config == "small" else FULL))


def _depth_named(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name in ENCODERS or name == "small":
        return untrained(DepthAnything(name) if name in ENCODERS else SmallDepth())
    network = load_weights(name)
    if isinstance(network, DGIQA):
        raise WeightsError(f"{name} looks like DGIQA; wanted the weights of a depth network")
    return network


def _tiles_of(
    photos: Sequence[UInt8], p: Preprocess, inputs: tuple[str, ...] = (spec.QUALITY_RGB, spec.QUALITY_DEPTH)
) -> tuple[Tensor, ...]:
    """At least max(BATCHES) tiles of each input, photograph by photograph; brightness stands in for depth."""
    made = []
    for photo in photos:
        near = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY) if spec.QUALITY_DEPTH in inputs else None
        made.append(network_tiles(photo, near, p, "official:8"))
    return tuple(torch.stack(tiles, 1).flatten(0, 1) for tiles in zip(*made, strict=True))


def _depth_cases(photos: Sequence[UInt8], p: Preprocess, size: tuple[int, int] | None) -> dict[str, dict[str, Tensor]]:
    """Depth inputs of two photographs and a portrait, and a batch of two small ones."""
    upright = np.ascontiguousarray(photos[-1].transpose(1, 0, 2))
    images = [depth_input(photo, p) for photo in (*photos[:2], upright)]
    if size:
        images = [F.interpolate(image, size, mode="bilinear") for image in images]
    cases = {f"{image.shape[2]}x{image.shape[3]}": image for image in images}
    cell = p.depth_multiple
    small = images if size else [F.interpolate(image, (4 * cell, 6 * cell), mode="bilinear") for image in images]
    cases["batch 2"] = torch.cat(small[:2])
    return {label: {spec.DEPTH_INPUT: image} for label, image in cases.items()}


@contextlib.contextmanager
def _frozen(model: nn.Module) -> Iterator[nn.Module]:
    """A copy on the CPU, in float32 and eval mode; gradients and the exporter's messages are off in the block."""
    network = copy.deepcopy(model).cpu().float().eval()
    level = logging.root.manager.disable
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield network
        finally:
            logging.disable(level)


def _exported(network: nn.Module, attention: Attention | None, twin: bool) -> nn.Module:
    """The module to export in place of the network: its twin, or the network itself if it has none."""
    made = export_twin(network, attention) if twin or attention else network
    return network if type(made) is type(network) and attention != "op" else made


def _with_all_outputs(network: nn.Module) -> tuple[nn.Module, list[str]]:
    """The network with all its outputs, and their names; a network other than DGIQA has only the score.

    The outputs are score f32 [n], reasons f32 [n,K] if it has them, and features f32 [n,C]. It is a copy with another
    `forward`, not a wrapper, so that weights keep their names in the file.
    """
    if not isinstance(network, DGIQA):
        return network, [spec.QUALITY_OUTPUT]
    whole = copy.copy(network)
    whole.forward = types.MethodType(_all_outputs, whole)  # type: ignore[method-assign]
    reasons = [spec.QUALITY_REASONS] if network.config.reasons else []
    return whole, [spec.QUALITY_OUTPUT, *reasons, spec.QUALITY_FEATURES]


def _all_outputs(network: DGIQA, rgb: Tensor, depth: Tensor) -> tuple[Tensor, ...]:
    features, faults = network.features_and_faults(rgb, depth)
    reasons = () if faults is None else (torch.sigmoid(faults),)
    return (network.score(features), *reasons, features)


def _graph(
    network: nn.Module,
    example: Feeds,
    outputs: Sequence[str],
    dynamic: tuple[Any, ...],
    *,
    attention: Attention | None = None,
) -> Any:
    """The network as an ONNX ModelProto, without traces of the machine it was made on."""
    translation: dict[Any, Any] = {torch.ops.aten.softplus.default: _softplus}
    if attention == "op":
        translation |= attention_onnx.translation()
    weights = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    if weights > MAX_BYTES:
        raise ExportError(f"the network has {weights:,} bytes of weights; one ONNX file holds at most {MAX_BYTES:,}")
    try:
        program = torch.onnx.export(
            network,
            tuple(example.values()),
            dynamo=True,
            verbose=False,
            opset_version=spec.OPSET,
            input_names=list(example),
            output_names=list(outputs),
            dynamic_shapes=dynamic,
            custom_translation_table=translation,
        )
    except Exception as error:  # the exporter has a family of exceptions per version
        raise ExportError(f"torch {torch.__version__} cannot export {type(network).__name__}: {error}") from error
    assert program is not None
    graph = _stripped(program.model_proto)
    return attention_onnx.with_function(graph) if attention == "op" else graph


def _softplus(x: Any, beta: float = 1.0, threshold: float = 20.0) -> Any:
    """One operator; the exporter's own translation adds torch's threshold, which changes nothing in float32."""
    from onnxscript import opset20

    assert beta == 1.0
    assert threshold >= 20.0
    return opset20.Softplus(x)


def _stripped(model: Any) -> Any:
    """Remove doc strings and metadata: the exporter writes stack traces with local paths there."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    return model


def _write_checked(
    network: nn.Module,
    graphs: Iterable[tuple[Any, bool]],
    path: Path,
    cases: Mapping[str, Feeds],
    budget: tuple[float, str],
) -> Export:
    """Write the first of (graph, simplified?) that agrees with the network in all cases to `path`; else ExportError."""
    tolerance, unit = budget
    expected = {label: _arrays(network(*feeds.values())) for label, feeds in cases.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    differences: dict[str, float] = {}
    with replacing(path) as partial:
        for candidate, simplified in graphs:
            partial.write_bytes(candidate.SerializeToString())
            session = OrtSession(partial)
            for label, feeds in cases.items():
                got = session.run({name: tensor.numpy() for name, tensor in feeds.items()})
                each = [_difference(name, e, got[name]) for e, name in zip(expected[label], got, strict=True)]
                differences[label] = float(np.max(each))  # NaN stays NaN
            if all(difference <= tolerance for difference in differences.values()):  # False for NaN
                size = partial.stat().st_size
                return Export(path, len(candidate.graph.node), size, simplified, differences, tolerance, unit)
        worst = max(differences, key=lambda label: -1 if differences[label] <= tolerance else differences[label])
        raise ExportError(
            f"{path.name} differs from PyTorch by {differences[worst]:.3g} of the {unit} ({worst}), "
            f"allowed {tolerance:g}; nothing was written. Try other versions of torch and onnxruntime"
        )


def _candidates(graph: Any, simplify: bool) -> Iterator[tuple[Any, bool]]:
    """(graph, simplified?), with `simplify` onnxsim's graph first unless it is larger: it can also split nodes.

    A twin's graph is not simplified: onnxsim's ran 2-3 % slower in ONNX Runtime and OpenVINO.
    """
    if simplify:
        import onnxsim

        simplified, agreed = onnxsim.simplify(graph)
        if agreed and len(simplified.graph.node) <= len(graph.graph.node):
            yield _stripped(simplified), True
    yield graph, False


def _arrays(outputs: Tensor | tuple[Tensor, ...]) -> list[Array]:
    return [output.numpy() for output in (outputs if isinstance(outputs, tuple) else (outputs,))]


def _difference(name: str, expected: Array, got: Array) -> float:
    """The largest difference in the output of this name, in the file's unit; for features, relative to the largest one.

    A depth map's is relative to its range, which min-max stretches to the whole uint8 scale.
    """
    largest = float(np.abs(expected - got).max())
    if name == spec.QUALITY_FEATURES:
        return largest / max(float(np.abs(expected).max()), 1e-30)
    if name != spec.DEPTH_OUTPUT:
        return largest
    depth_range = float(expected.max() - expected.min())
    if not depth_range > 0:
        raise ExportError("the depth network gives one constant for a photograph; there is nothing to compare")
    return largest / depth_range
