"""Turn a bundle's fp32 networks into fp16, int8 or fp8 ONNX files whose scores stay within a budget, or write none.

    fp32 ONNX ─► calibrate ─► Q/DQ everywhere ──────► over budget? leave out what costs most ─► the rest's type ─► files
    fp32 ONNX ─► fp16 everywhere ──────────────────► over budget? fp32 islands ──────────────────────────────► files

Both are one search: change everything and measure scores. While they are further from fp32 than allowed, halve the
group of layers whose change costs most by itself; a group of one layer is left out. That takes a few dozen trials,
while one trial per layer takes an hour on a full-size network. Inputs and outputs stay float32. Nothing here needs
torch.
"""

import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from dgiqa import spec
from dgiqa.builder import precision as graphs
from dgiqa.builder.calibrate import Probe, make_probe, measure, photographs, probe_photographs
from dgiqa.bundle import Bundle, load_bundle
from dgiqa.errors import ParityError
from dgiqa.parity import BUDGETS
from dgiqa.runtime.ort import OrtSession
from dgiqa.store import scratch_in

Progress = Callable[[str], None]
Models = dict[str, Any]  # file name -> onnx.ModelProto
Convert = Callable[[str, frozenset[str]], Any]  # (file, names of the parts to change) -> onnx.ModelProto

MAX_INT8_SIZE = 0.30  # of the fp32 file; an fp16 file may grow, as at least half of its layers are fp16
# The search aims at this share of the budget: it sees a dozen photographs, and users have others. On 200 distorted
# ones the small bundle's largest int8 difference was 4.2 times the one that the search ended with.
SEARCH_SHARE = 0.2
NOTICEABLE = 0.25  # share of the search's target; squared, a sixteenth, as the errors of layers add up in squares


@dataclass
class Part:
    """A unit that is left in float as a whole: one layer with weights, or in fp16 all other nodes of one operator type.

    left_out: whether it stays in float; extra_bytes: how much larger that makes the file.
    """

    file: str
    name: str
    nodes: frozenset[str]
    extra_bytes: int
    left_out: bool = False


@dataclass
class Group:
    """Neighbouring parts of one file that are changed together.

    alone: rms score error over tiles if nothing else is changed. worst_after: the largest |score difference| of an
    image once this group (then of one part) and those before it were left out.
    """

    parts: Sequence[Part]
    alone: float
    worst_after: float | None = None

    @property
    def row(self) -> dict[str, Any]:
        """The group's row in the sensitivity table, for JSON: costs are None if scores were not finite."""
        first, last = self.parts[0], self.parts[-1]
        alone, after = (cost if math.isfinite(cost or 0) else None for cost in (self.alone, self.worst_after))
        return {
            "file": first.file,
            "name": first.name if first is last else f"{first.name} to {last.name}",
            "layers": len(self.parts),
            "alone": alone,
            "left_out": first.left_out,
            "worst_after": after,
        }


@dataclass(frozen=True)
class Quantized:
    """files: {spec.DEPTH_FILE, spec.QUALITY_FILE -> path}. report: how they were made and how far scores move, as JSON.

    report: "precision", "rest", "calibration" (a description of the images), "budget", "error" ("max", "mean" and
    "images" of the photographs tried), "parts" (the sensitivity table as `Group.row`s, most costly first; empty if all
    could be changed), "left_out", and in "files", per file, "layers" (precision -> count), "bytes", "size_ratio".
    """

    files: dict[str, Path]
    report: dict[str, Any] = field(default_factory=dict)


def quantize_bundle(
    bundle: Bundle | str | Path,
    precision: str,
    out: str | Path,
    *,
    calibration: Sequence[Path] | None = None,
    rest: str = "fp32",
    budget: float | None = None,
    progress: Progress = lambda line: None,
) -> Quantized:
    """Write a bundle's networks in another precision, each under its own name, into the folder `out`.

    precision: "fp16", or "int8" or "fp8" with explicit Q/DQ: weights per channel, activations per tensor, zero points
    0, no quantised bias. fp8 is float8 E4M3, for NVIDIA's GPUs of compute capability 8.9 and later.
    rest: the type of an int8 file's other layers, "fp32" for CPUs (large constants are still stored as fp16) or "fp16"
    for GPUs; in an fp8 file it is fp16. Files for CPUs use CPU_WEIGHT_LEVELS, so that they give the same scores on
    every processor. Those for GPUs use LEVELS, and Q/DQ where TensorRT fuses it: only on layers with kernels, and on
    the tensors added to convolutions' results.
    calibration: image files and folders, see `calibrate.photographs`. budget: largest |score difference| of an image,
    parity.BUDGETS by default.
    The bundle is not changed, and `out` gets all files or none.
    Raises ParityError if the budget cannot be met within MAX_INT8_SIZE and with most layers changed, EngineError if a
    graph cannot be changed, BackendError if a package is missing, ValueError for invalid arguments, BundleError.
    """
    bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
    budget = BUDGETS.get(precision, 0.0) if budget is None else budget
    rest = "fp16" if precision == "fp8" else rest
    for name, got, wanted in (("precision", precision, spec.QUANTIZED), ("rest", rest, ("fp32", "fp16"))):
        if got not in wanted:
            raise ValueError(f"{name} is {got!r}; choose one of: {', '.join(wanted)}")
    names = [network.file for network in bundle.networks]
    models = {file: graphs.load_model(bundle.file(file)) for file in names}
    pictures, described = photographs(bundle, calibration, progress)
    fp32 = {file: OrtSession(bundle.file(file)) for file in names}
    tried = probe_photographs(bundle, pictures)
    probe = make_probe(tried, fp32, bundle.preprocess, bundle.meaning.mapped, bundle.full_reference)
    if precision == "fp16":
        parts, room = _layers_and_operator_types(models), dict.fromkeys(names, 0)
        convert, write = (_to_half_of(models, change) for change in (graphs.like_half, graphs.to_half))
    else:
        progress(f"calibrating on {described}")
        inputs = {file: _quantised_tensors(model) for file, model in models.items()}
        largest = measure(pictures(), models, inputs, bundle.preprocess, progress)
        parts = _layers(models, precision if rest == "fp16" else None)
        # Search with CPU_WEIGHT_LEVELS for GPUs, too: this CPU would otherwise clip sums and so blame the layers.
        levels = (graphs.CPU_WEIGHT_LEVELS, graphs.CPU_WEIGHT_LEVELS if rest == "fp32" else graphs.LEVELS)
        convert, write = (_to_eight_bits_of(models, largest, precision, rest, n) for n in levels)
        room = _room(models, parts, convert)
    groups, worst = _search(parts, convert, probe, target=SEARCH_SHARE * budget, room=room, progress=progress)
    made = {file: write(file, _changed_nodes(parts, file)) for file in names}
    if precision in spec.EIGHT_BITS and rest == "fp16":
        made = {file: graphs.to_half(model) for file, model in made.items()}
    # Constants of parts that stay fp32 for accuracy must not be rounded here. int8's own steps are far larger.
    islands = [part.nodes for part in parts if part.left_out and precision == "fp16"]
    made = {file: graphs.store_half(model, frozenset().union(*islands)) for file, model in made.items()}
    with scratch_in(Path(out), "quantize") as folder:
        for file, model in made.items():
            (folder / file).write_bytes(model.SerializeToString())
        report = _report(groups, folder, bundle, probe, precision=precision, worst=worst, budget=budget)
        for path in folder.iterdir():
            os.replace(path, Path(out, path.name))
    report |= {
        "precision": precision,
        "rest": rest if precision in spec.EIGHT_BITS else "fp16",
        "calibration": described,
    }
    return Quantized({file: Path(out) / file for file in names}, report)


def sensitivity_table(report: Mapping[str, Any], rows: int = 20) -> str:
    """The report's parts as text, most costly first: the cost of each alone, and the error once it is left out."""
    lines = [f"{'file':<14}{'layers':>6}  {'which':<41}{'alone, rms':>11}{'  left out':<10}{'worst image then':>17}"]
    for part in report["parts"][:rows]:
        alone = "not finite" if part["alone"] is None else f"{part['alone']:.1e}"
        then = "" if part["worst_after"] is None else f"{part['worst_after']:.1e}"
        left = "  yes" if part["left_out"] else ""
        name = f"{part['file']:<14}{part['layers']:>6}  {part['name'][:40]:<41}"
        lines.append(f"{name}{alone:>11}{left:<10}{then:>17}".rstrip())
    return "\n".join(lines)


# the search


def _search(
    parts: Sequence[Part], convert: Convert, probe: Probe, *, target: float, room: dict[str, int], progress: Progress
) -> tuple[list[Group], float]:
    """Mark parts as left out, always from the costliest group, until no image's score moves by more than `target`.

    A group costs about as much as its costliest part or more, so cheap groups are never searched. Once no group costs
    NOTICEABLE of the target by itself, the parts left out after the scores moved least are put back.
    room: bytes that each file may grow by; a part that does not fit is skipped.
    Returns the final groups of parts, most costly first, and how far scores move in the end.
    """
    error = _error_of(parts, convert, probe)
    now = all_changed = error()
    progress(f"all changed: scores move by up to {now:.1e}, wanted at most {target:.1e}")
    if now <= target:
        return [], now
    few, trials = probe.few(), itertools.count(1)

    def tried(some: Sequence[Part]) -> Group:
        file = some[0].file
        if (number := next(trials)) % 10 == 0:
            progress(f"tried {number} groups of layers alone")
        return Group(some, few.errors({file: _session(convert, file, _changed_nodes(some, file))}).rms)

    files = dict.fromkeys(part.file for part in parts)
    open_groups = [tried([part for part in parts if part.file == file]) for file in files]
    done: list[Group] = []  # of one part each
    while now > target and open_groups:
        costly = max(open_groups, key=lambda g: g.alone)
        if costly.alone <= NOTICEABLE * target:
            break
        open_groups.remove(costly)
        if (half := len(costly.parts) // 2) > 0:
            open_groups += tried(costly.parts[:half]), tried(costly.parts[half:])
            continue
        (part,) = costly.parts
        done.append(costly)
        if part.extra_bytes <= room[part.file]:
            room[part.file] -= part.extra_bytes
            part.left_out = True
            costly.worst_after = now = error()
            progress(f"left out {part.name} of {part.file} ({costly.alone:.1e} alone): scores move by up to {now:.1e}")
    left_out = [group for group in done if group.worst_after is not None]
    worst = [all_changed, *(group.worst_after for group in done if group.worst_after is not None)]
    in_vain = left_out[worst.index(min(worst)) :]
    for group in in_vain:
        group.parts[0].left_out, group.worst_after = False, None
    if in_vain:
        progress(f"the last {len(in_vain)} changed nothing for the better and are not left out")
    return sorted([g for g in done + open_groups if g.alone], key=lambda g: -g.alone), min(worst)


def _error_of(parts: Sequence[Part], convert: Convert, probe: Probe) -> Callable[[], float]:
    """A function that returns the worst image's error with all parts changed but those that are left out by then."""

    @lru_cache(maxsize=1)  # depth maps take most of the time
    def seen_by(depth: frozenset[str]) -> Probe:
        return probe.seen_by(_session(convert, spec.DEPTH_FILE, depth))

    def error() -> float:
        seen, quality = probe, _changed_nodes(parts, spec.QUALITY_FILE)
        if any(part.file == spec.DEPTH_FILE for part in parts):
            seen = seen_by(_changed_nodes(parts, spec.DEPTH_FILE))
        return seen.errors({spec.QUALITY_FILE: _session(convert, spec.QUALITY_FILE, quality)}).worst

    return error


def _session(convert: Convert, file: str, nodes: frozenset[str]) -> OrtSession:
    """A network with these nodes changed."""
    return OrtSession(convert(file, nodes).SerializeToString())


def _changed_nodes(parts: Sequence[Part], file: str) -> frozenset[str]:
    return frozenset().union(*(part.nodes for part in parts if part.file == file and not part.left_out))


def _room(models: Models, parts: Sequence[Part], convert: Convert) -> dict[str, int]:
    """The bytes that each file may still grow by once all its parts are changed."""
    room = {}
    for file, model in models.items():
        smallest = graphs.store_half(convert(file, _changed_nodes(parts, file))).ByteSize()
        room[file] = int(MAX_INT8_SIZE * model.ByteSize()) - smallest
    return room


# what is changed


def _layers(models: Models, on_gpu: str | None) -> list[Part]:
    """Each layer with weights; a weight left out takes two bytes, not one. on_gpu: only layers with kernels for it."""
    parts = []
    for file, model in models.items():
        layers = graphs.weighted_layers(model)
        chosen = graphs.layers_with_kernels(model, on_gpu) if on_gpu else layers
        parts += [Part(file, name, frozenset((name,)), layers[name]) for name in chosen]
    return parts


def _layers_and_operator_types(models: Models) -> list[Part]:
    """Each layer with weights, and all nodes of each other operator type."""
    kinds: dict[tuple[str, str], set[str]] = {}
    for file, model in models.items():
        layers = graphs.weighted_layers(model)
        for node in model.graph.node:
            kind = node.name if node.name in layers else node.op_type
            kinds.setdefault((file, kind), set()).add(node.name)
    return [Part(file, kind, frozenset(names), 0) for (file, kind), names in kinds.items()]


def _quantised_tensors(model: Any) -> list[str]:
    """Tensors to quantise in addition to weights: inputs of layers with weights, and tensors added to their results."""
    layers, shortcuts = graphs.weighted_layers(model), dict(graphs.residual_inputs(model).values())
    inputs = [node.input[0] for node in model.graph.node if node.name in layers]
    return list(dict.fromkeys(inputs + [n.input[shortcuts[n.name]] for n in model.graph.node if n.name in shortcuts]))


def _to_eight_bits_of(
    models: Models, largest: Mapping[str, Mapping[str, float]], precision: str, rest: str, weight_levels: int
) -> Convert:
    if precision == "fp8":
        return lambda file, layers: graphs.to_fp8(models[file], largest[file], layers)
    return lambda file, layers: graphs.to_int8(
        models[file], largest[file], layers, weight_levels=weight_levels, residuals=rest == "fp16"
    )


def _to_half_of(models: Models, change: Callable[..., Any]) -> Convert:
    names = {file: {node.name for node in model.graph.node} for file, model in models.items()}
    return lambda file, nodes: change(models[file], keep=names[file] - nodes)


# the end


def _report(
    groups: Sequence[Group], folder: Path, bundle: Bundle, probe: Probe, *, precision: str, worst: float, budget: float
) -> dict[str, Any]:
    """The types and sizes of the files in `folder` and how far they are from fp32; ParityError if they miss the target.

    worst: the largest |score difference| at the end of the search, including roundings that happen only on GPUs.
    """
    names = [network.file for network in bundle.networks]
    errors = probe.errors({file: OrtSession(folder / file) for file in names})
    fix = "calibrate on other photographs, or choose fp16" if precision in spec.EIGHT_BITS else "choose fp32"
    if not max(errors.worst, worst) <= budget:
        found = f"moves scores by up to {max(errors.worst, worst):.1e}, allowed is {budget:g}"
        raise ParityError(f"{precision} {found}, and no more can be left out; {fix}")
    files = {}
    for file in names:
        size, full = (folder / file).stat().st_size, bundle.file(file).stat().st_size
        layers = graphs.layer_types(folder / file)
        if not graphs.mostly(precision, layers):
            found = f"of {layers.total()} layers of {file} only {layers[precision]} can be {precision}"
            share = "a third" if precision == "fp8" else "half"
            raise ParityError(f"{found} within {budget:g} of score, wanted {share} or more; {fix}")
        files[file] = {"layers": dict(layers), "bytes": size, "size_ratio": round(size / full, 4)}
    table = [group.row for group in groups]
    error = {"max": max(errors.worst, worst), "mean": float(abs(errors.images).mean()), "images": len(probe.pictures)}
    left_out = [f"{row['file']}: {row['name']}" for row in table if row["left_out"]]
    return {"budget": budget, "error": error, "parts": table, "left_out": left_out, "files": files}
