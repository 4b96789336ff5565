"""A bundle becomes its model card: figures, plots, failure cases and plain words.

    python bench/model_card.py [--bundle small] [--out docs] [--work DIR] [--without-depth-car WEIGHTS] [--quick]
    python bench/model_card.py --text-only

writes docs/model-card.md, docs/model-card.png, docs/failures.jpg and bench/results/model-card.json. The pictures are
photographs that no training run has seen, distorted with every type at every level. Their labels come from
full-reference metrics, as in training; metrics that take no part in the labels are a second opinion; BRISQUE, NIQE and
PIQE score the same distorted pictures. What does not depend on the model is kept in the work folder, under the hash of
the very pixels it belongs to, so that the card of the next model costs little more than its scoring. The last command
writes model-card.md again from the JSON that is there: after a change of its words, nothing needs measuring.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dgiqa.bundle import user_cache
from dgiqa.metrics import logistic_mapped, overlap, plcc, ranks, srocc
from dgiqa.store import replacing

sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parent.parent))  # for recipes/
from classic_metrics import PEERS, peer_scores
from distortion_sheet import motorcycle
from stamp import environment_stamp

from recipes.small.distortions import KADID_TYPES, LEVELS, TYPES, distort

Float = NDArray[np.float64]
Image = NDArray[np.uint8]

SHORT_SIDE = 384  # pixels; smaller pictures stay as they are
FIRST_SEED = 900_000  # of the distortions: picture i uses FIRST_SEED + i
QUICK_KINDS = ("gaussian_blur", "jpeg", "haze")
SEPARATED = ("haze", "low_light", "lens_flare")  # stand for the paper's natural sets (section 5.2)
FAILURES = 12  # shown, at most two of one type
OURS, WITHOUT_DEPTH = "this model", "without Depth-CAR"
ORDER_KEYS = ("kadid_types_neighbours_in_order", "kadid_types_levels_in_order")
SMALL_GAIN = 0.02  # SROCC; seven pictures do not tell less apart
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Picture:
    """A photograph uint8 [H,W,3] and, where it was measured, its depth f32 [H,W] in [0,1], larger = nearer."""

    name: str
    rgb: Image
    depth: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Model:
    """What the card is about. score: images uint8 [n,H,W,3] -> f64 [n], higher = better.

    depth: picture uint8 [H,W,3] -> relative inverse depth f32 [H,W], or None to leave that part out.
    """

    id: str
    score: Callable[[Image], Float]
    depth: Callable[[Image], NDArray[np.float32]] | None = None


@dataclass(frozen=True)
class Evaluation:
    """P pictures, K distortion types; along the last axis of 6 stand the pristine picture and levels 1..5.

    labels: pseudo-MOS [P,K,6] in [0,1], pristine = 1. measured: full-reference values by metric, each [P,K,5].
    scores: by model, each [P,K,6], higher = better; the pristine picture's own score is repeated for every type.
    """

    pictures: tuple[Picture, ...]
    kinds: tuple[str, ...]
    labels: Float
    measured: dict[str, Float]
    scores: dict[str, Float]


@dataclass(frozen=True)
class Gate:
    """A promise and what was measured. value None: not measured, which keeps no promise."""

    measure: str
    target: str
    value: float | None
    met: bool


# ---- pictures and measurements ----


def unseen_pictures(quick: bool = False) -> list[Picture]:
    """The evaluation photographs of scikit-image and scikit-learn; one small one when quick."""
    from skimage import data
    from sklearn.datasets import load_sample_image

    if quick:
        return [Picture("astronaut", _shrink(data.astronaut(), 176))]
    functions = (data.astronaut, data.chelsea, data.coffee, data.rocket)
    from_skimage = [Picture(function.__name__, _shrink(function())) for function in functions]
    from_sklearn = [Picture(name, _shrink(load_sample_image(f"{name}.jpg"))) for name in ("china", "flower")]
    return [*from_skimage, Picture("motorcycle", *motorcycle(SHORT_SIDE)), *from_sklearn]


def _shrink(rgb: Image, short_side: int = SHORT_SIDE) -> Image:
    scale = short_side / min(rgb.shape[:2])
    if scale >= 1:  # an enlarged picture would be a blurred one that counts as pristine
        return np.ascontiguousarray(rgb)
    return np.asarray(cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)


def distorted_pictures(picture: Picture, kinds: Sequence[str], seed: int) -> Image:
    """The picture, then its levels 1..5 of each kind: uint8 [1 + 5 * kinds,H,W,3]."""
    worse = [distort(picture.rgb, kind, level, seed, picture.depth) for kind in kinds for level in range(1, LEVELS + 1)]
    return np.stack([picture.rgb, *worse])


def full_reference_values(images: Image) -> Float:
    """The label metrics, then the check metrics, of images[1:] against images[0]: f64 [n - 1,K], higher = better."""
    from recipes.small.labels import CHECK_METRICS, METRICS, full_reference

    steps = [images[i : i + LEVELS] for i in range(1, len(images), LEVELS)]
    return np.concatenate([full_reference(images[0], step, (*METRICS, *CHECK_METRICS)) for step in steps])


def kept(file: Path, compute: Callable[[], Mapping[str, Float]]) -> dict[str, Float]:
    """What the .npz file holds; computed and written first if it is not there."""
    if not file.exists():
        with replacing(file) as partial, partial.open("wb") as stream:
            np.savez(stream, **compute())  # type: ignore[arg-type]
    with np.load(file, allow_pickle=False) as stored:
        return dict(stored)


def measured_values(images: Image, name: str, work: Path) -> Float:
    """`full_reference_values`, kept under the hash of the images."""
    file = work / f"measured-{name}-{_digest(images)}.npz"
    return kept(file, lambda: {"values": full_reference_values(images)})["values"]


def _digest(images: Image) -> str:
    return hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()[:12]


def build_evaluation(
    pictures: Sequence[Picture],
    kinds: Sequence[str],
    models: Mapping[str, Callable[[Image], Float]],
    work: Path,
    peers: bool = True,
) -> Evaluation:
    """Distort, measure and score every picture; the peers' scores are kept in the work folder as well."""
    from recipes.small.labels import CHECK_METRICS, METRICS

    measured, scored = [], []
    for i, picture in enumerate(pictures):
        images = distorted_pictures(picture, kinds, FIRST_SEED + i)
        print(f"{picture.name}: {len(images)} pictures", file=sys.stderr, flush=True)
        measured.append(measured_values(images, picture.name, work).reshape(len(kinds), LEVELS, -1))
        scores = {name: score(images) for name, score in models.items()}
        scored.append(scores | (_peer_values(images, picture.name, work) if peers else {}))
    values = np.stack(measured)  # [P,K,5,M]
    return Evaluation(
        pictures=tuple(pictures),
        kinds=tuple(kinds),
        labels=pseudo_mos(values[..., : len(METRICS)]),
        measured={name: values[..., m] for m, name in enumerate((*METRICS, *CHECK_METRICS))},
        scores={name: np.stack([_as_grid(scores[name]) for scores in scored]) for name in scored[0]},
    )


def pseudo_mos(values: Float) -> Float:
    """Metric values [P,K,5,M], higher = better -> labels [P,K,6] in [0,1], as in training but ranked on this set."""
    from recipes.small.labels import fit_scale, order_levels

    count, kinds = values.shape[:2]
    cells = np.tile(np.arange(kinds * LEVELS), count)
    flat = values.reshape(-1, values.shape[-1])
    labels = order_levels(fit_scale(flat, cells)(flat).reshape(count, kinds, LEVELS))
    return np.concatenate([np.ones((count, kinds, 1)), labels], axis=-1)


def _peer_values(images: Image, name: str, work: Path) -> dict[str, Float]:
    versions = hashlib.sha256(repr(sorted(PEERS.items())).encode()).hexdigest()[:6]
    file = work / f"peers-{name}-{_digest(images)}-{versions}.npz"
    return {peer: -values for peer, values in kept(file, lambda: peer_scores(images, work)).items()}


def _as_grid(scores: Float) -> Float:  # [1 + 5 * K] -> [K,6]
    levels = scores[1:].reshape(-1, LEVELS)
    return np.column_stack([np.full(len(levels), scores[0]), levels])


# ---- models ----


def open_bundle(name: str) -> Model:
    """A bundle, run as users run it."""
    import dgiqa
    from dgiqa.preprocess import depth_input
    from dgiqa.runtime.session import open_session
    from dgiqa.spec import DEPTH_FILE, DEPTH_INPUT, DEPTH_OUTPUT

    scorer = dgiqa.Scorer(name)
    session = open_session(scorer.bundle.file(DEPTH_FILE))

    def depth(rgb: Image) -> NDArray[np.float32]:
        near = session.run({DEPTH_INPUT: depth_input(rgb, scorer.bundle.preprocess)})[DEPTH_OUTPUT][0]
        return np.asarray(cv2.resize(near, rgb.shape[1::-1], interpolation=cv2.INTER_LINEAR), np.float32)

    def score(images: Image) -> Float:
        return np.array([result.value for result in scorer.score_many(images, on_error="raise")])  # type: ignore[union-attr]

    return Model(scorer.bundle.id, score, depth)


def open_without_depth(weights: Path, bundle: str) -> Callable[[Image], Float]:
    """The ablation's checkpoint through PyTorch, on the very tiles that the bundle's quality network sees."""
    import torch

    from dgiqa.bundle import load_bundle
    from dgiqa.nn.checkpoints import load_dgiqa
    from dgiqa.preprocess import cut_tiles, grid_windows, working_image

    network, p = load_dgiqa(weights), load_bundle(bundle).preprocess
    if network.config.depth_car:
        raise SystemExit(f"{weights} holds a network with Depth-CAR; wanted one trained with depth_car=False")

    def score_one(rgb: Image) -> float:
        resized = working_image(rgb, p)
        no_depth = np.zeros(resized.shape[:2], np.uint8)  # the network does not look at it
        windows = grid_windows(resized.shape[0], resized.shape[1], p.tile)
        tiles = cut_tiles(resized, no_depth, windows, p.tile)
        with torch.inference_mode():
            return float(network(*(torch.from_numpy(part) for part in tiles)).mean())

    return lambda images: np.array([score_one(rgb) for rgb in images])


# ---- figures ----


def in_order(scores: Float) -> tuple[float, float]:
    """Scores [...,n] of rising severity: shares of neighbours and of whole rows that fall. Ties don't."""
    falls = np.diff(scores, axis=-1) < 0
    return float(falls.mean()), float(falls.all(-1).mean())


def separation(scores: Float) -> dict[str, float] | None:
    """One type's scores [P,6]: overlap of pristine and degraded densities. None for one picture."""
    if len(scores) < 2 or not np.isfinite(scores).all():
        return None
    pristine = scores[:, 0]
    return {"all_levels": overlap(pristine, scores[:, 1:]), "levels_3_to_5": overlap(pristine, scores[:, 3:])}


def figures_of(scores: Float, test: Evaluation) -> dict[str, Any]:
    """Everything the card says about one model's scores [P,K,6]. Correlations leave the pristine pictures out."""
    valid = np.isfinite(scores[..., 1:])
    predicted, wanted = scores[..., 1:][valid], test.labels[..., 1:][valid]
    kinds = {kind: _type_figures(scores[:, k], test.labels[:, k]) for k, kind in enumerate(test.kinds)}
    kadid = [kinds[kind] for kind in test.kinds if kind in KADID_TYPES]
    return {
        "srocc": srocc(predicted, wanted),
        "plcc_logistic": plcc(logistic_mapped(predicted, wanted), wanted),
        "check_srocc": {name: srocc(predicted, test.measured[name][valid]) for name in test.measured},
        "unscored": int((~valid).sum()),
        "kadid_types": len(kadid),
        "kadid_types_neighbours_in_order": sum(kind["neighbours_in_order"] >= 0.9 for kind in kadid),
        "kadid_types_levels_in_order": sum(kind["levels_in_order"] >= 0.9 for kind in kadid),
        "overlap": {kind: separation(scores[:, test.kinds.index(kind)]) for kind in SEPARATED if kind in test.kinds},
        "types": kinds,
    }


def _type_figures(scores: Float, labels: Float) -> dict[str, float]:  # [P,6], [P,6]
    valid = np.isfinite(scores[:, 1:])
    neighbours, levels = in_order(scores[:, 1:])
    neighbours_pristine, levels_pristine = in_order(scores)
    return {
        "srocc": srocc(scores[:, 1:][valid], labels[:, 1:][valid]) if valid.sum() > 1 else float("nan"),
        "neighbours_in_order": neighbours,
        "levels_in_order": levels,
        "neighbours_in_order_with_pristine": neighbours_pristine,
        "levels_in_order_with_pristine": levels_pristine,
    }


def gates_of(figures: Mapping[str, Any], depth: tuple[float, float] | None) -> list[Gate]:
    """The promises, from {model: `figures_of`} and the depth network's (rank correlation, the trivial guess's)."""
    ours = figures[OURS]
    gates = [_at_least("SROCC against pseudo-MOS", 0.85, ours["srocc"])]
    if ours["kadid_types"] == len(KADID_TYPES):
        for key, what in (("neighbours", "neighbouring levels"), ("levels", "all five levels")):
            count = ours[f"kadid_types_{key}_in_order"]
            gates.append(_at_least(f"KADID types (of 25) with {what} in order >= 90 % of the time", 20, count))
    for peer in PEERS:
        lead = ours["srocc"] - figures[peer]["srocc"] if peer in figures else None
        gates.append(_at_least(f"SROCC ahead of {peer}", 0.15, lead))
    for kind, shares in ours["overlap"].items():
        value = shares and shares["all_levels"]
        met = value is not None and value <= 0.3
        gates.append(Gate(f"density overlap, {_words(kind)} against pristine", "<= 0.3", value, met))
    lead = depth[0] - depth[1] if depth else None
    gates.append(Gate('depth: rank correlation ahead of "lower is nearer"', "> 0", lead, lead is not None and lead > 0))
    return gates


def _at_least(measure: str, target: float, value: float | None) -> Gate:
    return Gate(measure, f">= {target}", value, value is not None and value >= target)


def agreement(test: Evaluation) -> tuple[list[str], Float]:
    """SROCC of every pair among pseudo-MOS, full-reference metrics and models: names, [n,n]."""
    columns = {"pseudo-MOS": test.labels[..., 1:], **test.measured}
    columns |= {name: scores[..., 1:] for name, scores in test.scores.items()}
    valid = np.all([np.isfinite(column) for column in columns.values()], axis=0)
    lists = [column[valid] for column in columns.values()]
    return list(columns), np.array([[srocc(a, b) for b in lists] for a in lists])


def rank_errors(test: Evaluation) -> Float:
    """[P,K,5]: share of the distorted pictures that our score ranks below this one, minus the label's share."""
    scores, labels = test.scores[OURS][..., 1:], test.labels[..., 1:]
    return ((ranks(scores.ravel()) - ranks(labels.ravel())) / labels.size).reshape(labels.shape)


def failures_of(test: Evaluation) -> list[tuple[int, int, int]]:
    """Indices (picture, type, level 1..5) of the largest rank errors, at most two of one type."""
    errors = rank_errors(test)
    chosen: list[tuple[int, int, int]] = []
    for flat in np.argsort(-np.abs(errors), axis=None):
        p, k, level = (int(i) for i in np.unravel_index(flat, errors.shape))
        if sum(other == k for _, other, _ in chosen) < 2:
            chosen.append((p, k, level + 1))
    return chosen[:FAILURES]


# ---- pictures of the card ----


def draw_failures(test: Evaluation, chosen: Sequence[tuple[int, int, int]], file: Path) -> None:
    """The failures, three lines of words under each."""
    from PIL import Image as Pillow
    from PIL import ImageDraw, ImageFont

    width, height, text, columns = 240, 180, 48, 4
    rows = -(-len(chosen) // columns)
    sheet = Pillow.new("RGB", (columns * (width + 8), rows * (height + text + 8)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for cell, (p, k, level) in enumerate(chosen):
        picture, x, y = test.pictures[p], cell % columns * (width + 8) + 4, cell // columns * (height + text + 8) + 4
        worse = distort(picture.rgb, test.kinds[k], level, FIRST_SEED + p, picture.depth)
        shown = Pillow.fromarray(worse)
        shown.thumbnail((width, height))
        sheet.paste(shown, (x, y))
        score, label = test.scores[OURS][p, k, level], test.labels[p, k, level]
        verdict = "scored too high" if rank_errors(test)[p, k, level - 1] > 0 else "scored too low"
        caption = f"{picture.name}, {_words(test.kinds[k])}, level {level}\nscore {score:.2f}, label {label:.2f}\n"
        caption += verdict
        draw.text((x, y + height + 2), caption, "black", font, spacing=2)
    sheet.save(file, quality=80, optimize=True, progressive=True)


def draw_plots(test: Evaluation, figures: Mapping[str, Any], file: Path) -> None:
    """Score against label, how the metrics agree, the types one by one, and the densities."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(14, 14), layout="constrained")
    grid = figure.add_gridspec(3, 6, height_ratios=(1.25, 1.5, 0.8))
    _plot_scatter(figure.add_subplot(grid[0, :3]), test, figures)
    _plot_agreement(figure.add_subplot(grid[0, 3:]), test)
    _plot_types(figure.add_subplot(grid[1, :]), figures[OURS]["types"])
    for i, kind in enumerate(kind for kind in SEPARATED if kind in test.kinds):
        scores = test.scores[OURS][:, test.kinds.index(kind)]
        _plot_densities(figure.add_subplot(grid[2, 2 * i : 2 * i + 2]), scores, kind)
    figure.savefig(file, dpi=80)
    plt.close(figure)


def _plot_scatter(axes: Any, test: Evaluation, figures: Mapping[str, Any]) -> None:
    for level in range(1, LEVELS + 1):
        labels, scores = (values[..., level].ravel() for values in (test.labels, test.scores[OURS]))
        axes.scatter(labels, scores, s=9, alpha=0.7, color=f"C{level - 1}", label=f"level {level}")
    title = f"{len(test.pictures)} unseen pictures, {len(test.kinds)} types: SROCC {figures[OURS]['srocc']:.3f}"
    axes.set(xlabel="pseudo-MOS", ylabel="score", title=title)
    axes.legend(markerscale=2, frameon=False)


def _plot_agreement(axes: Any, test: Evaluation) -> None:
    names, matrix = agreement(test)
    axes.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu")
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right")
    axes.set_yticks(range(len(names)), names)
    for (row, column), value in np.ndenumerate(matrix):
        ink = "white" if abs(value) > 0.6 else "black"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=ink)
    axes.set_title("How the metrics agree: SROCC of each pair")


def _plot_types(axes: Any, types: Mapping[str, Mapping[str, float]]) -> None:
    bars = (
        ("srocc", "SROCC within the type"),
        ("neighbours_in_order", "neighbouring levels in order"),
        ("levels_in_order", "all five levels in order"),
    )
    places = np.arange(len(types))
    for i, (key, label) in enumerate(bars):
        axes.bar(places + (i - 1) * 0.27, [figures[key] for figures in types.values()], 0.25, label=label)
    axes.axhline(0.9, color="grey", linewidth=0.8, linestyle="--")
    axes.set_xticks(places, [_words(kind) for kind in types], rotation=45, ha="right")
    axes.set(xlim=(-0.6, len(types) - 0.4), ylim=(0, 1.15), title="Type by type (dashed: 0.9)")
    axes.legend(loc="upper left", ncols=3, frameon=False)


def _plot_densities(axes: Any, scores: Float, kind: str) -> None:
    span = np.linspace(-0.05, 1.05, 400)
    for values, label in ((scores[:, 0], "pristine"), (scores[:, 1:], "degraded, levels 1-5")):
        deviation = max(float(values.std()), 0.01)  # a spike would hide the other density
        density = np.exp(-(((span - values.mean()) / deviation) ** 2) / 2) / (deviation * np.sqrt(2 * np.pi))
        axes.fill_between(span, density, alpha=0.4, label=label)
    shares = separation(scores)
    overlapped = f"overlap {shares['all_levels']:.0%}" if shares else "overlap not measured"
    axes.set(title=f"{_words(kind)}: {overlapped}", xlabel="score", yticks=[])
    axes.legend(frameon=False)


# ---- the card ----


def build_card(
    model: Model, without_depth: Callable[[Image], Float] | None, out: Path, results: Path, work: Path, *, quick: bool
) -> dict[str, Any]:
    """Measure everything, write the four files, return what the JSON holds. Quick: no peers, next to no pictures."""
    for folder in (out, results, work):
        folder.mkdir(parents=True, exist_ok=True)
    models = {OURS: model.score} | ({WITHOUT_DEPTH: without_depth} if without_depth else {})
    kinds = QUICK_KINDS if quick else TYPES
    test = build_evaluation(unseen_pictures(quick), kinds, models, work, peers=not quick)
    figures = {name: figures_of(scores, test) for name, scores in test.scores.items()}
    depth = _depth_check(model)
    record = {
        "bundle": model.id,
        "quick": quick,
        "pictures": [picture.name for picture in test.pictures],
        "types": len(test.kinds),
        "distorted_pictures": test.labels[..., 1:].size,
        "first_seed": FIRST_SEED,
        "gates": [asdict(gate) for gate in gates_of(figures, depth)],
        "figures": figures,
        "label_srocc": {name: srocc(test.labels[..., 1:], values) for name, values in test.measured.items()},
        "depth": {"rank_correlation": depth[0], "lower_is_nearer": depth[1]} if depth else None,
        "failures": _failure_rows(test),
        "type_bias": {kind: float(rank_errors(test)[:, k].mean()) for k, kind in enumerate(test.kinds)},
        "environment": {**environment_stamp(), "peers": PEERS},
    }
    draw_failures(test, failures_of(test), out / "failures.jpg")
    draw_plots(test, figures, out / "model-card.png")
    (results / "model-card.json").write_text(json.dumps(_finite(record), indent=1) + "\n")
    write_text(record, out)
    return record


def _depth_check(model: Model) -> tuple[float, float] | None:
    if model.depth is None:
        return None
    from recipes.small.train_depth import stereo_check

    return stereo_check(model.depth)


def _failure_rows(test: Evaluation) -> list[dict[str, Any]]:
    return [
        {
            "picture": test.pictures[p].name,
            "type": test.kinds[k],
            "level": level,
            "score": float(test.scores[OURS][p, k, level]),
            "label": float(test.labels[p, k, level]),
            "rank_error": float(rank_errors(test)[p, k, level - 1]),
        }
        for p, k, level in failures_of(test)
    ]


def _finite(value: Any) -> Any:
    """JSON knows no NaN: it becomes null."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def card_text(record: Mapping[str, Any]) -> str:
    """The card in Markdown."""
    sections = (_intro, _targets, _side_by_side, _types, _second_opinion, _densities, _depth, _failures, _origin)
    return "\n\n".join(section(record) for section in sections) + "\n"


def _intro(record: Mapping[str, Any]) -> str:
    warning = "\n\n**A quick run: it shows that the bench works and says nothing about the model.**"
    return f"""# Model card of `{record["bundle"]}`

Written by `python bench/model_card.py`; every number is also in
`bench/results/model-card.json`.{warning if record["quick"] else ""}

## What it is, and what it is not

The DGIQA architecture with small numbers and a small depth network, both trained by this project from random weights on
distorted photographs and rendered scenes.

- It is **not** the paper's model: not its weights, not its size, not its training data. The paper's tables do not
  apply.
- It was **not trained on human opinion**. Nobody looked at the training pictures and judged them. Its target is a
  pseudo-MOS: an ensemble of full-reference metrics (MDSI, HaarPSI, multi-scale GMSD, DSS) that compare a distorted
  picture with its original. Where these metrics disagree with people, so does the model.
- It was never compared with human scores: no such data set was at hand. High figures below mean "imitates the metrics
  without seeing the original", on distortions of the kinds it was trained with.
- It knows 30 synthetic distortions, one at a time. Real photographs mix several; composition, beauty, content, and the
  artefacts of generators and neural codecs are outside of what it learned.
- It takes a black-and-white photograph for one that lost its colour, and scores it low.
- Its score ranks pictures; 0.7 is not "70 % good", and small differences between unlike pictures mean little.

For the paper's accuracy, import the authors' weights. For size and speed see [what it costs](performance.md)."""


def _targets(record: Mapping[str, Any]) -> str:
    rows = [(gate["measure"], gate["target"], _number(gate["value"]), _verdict(gate)) for gate in record["gates"]]
    return f"""## Targets

{_table(("measure", "target", "measured", "met"), rows)}

"Levels in order 90 % of the time" can be read in two ways, and both stand above: of all pairs of neighbouring levels,
or of all pictures whose five levels fall without one exception. Where a single figure is quoted, it is the first; the
second is the harder one."""


def _verdict(gate: Mapping[str, Any]) -> str:
    if gate["value"] is None:
        return "not measured"
    return "yes" if gate["met"] else "**no**"


def _side_by_side(record: Mapping[str, Any]) -> str:
    rows = []
    for name, figures in record["figures"].items():
        order = " / ".join(str(figures[key]) for key in ORDER_KEYS)
        label = f"{name} ({PEERS[name]})" if name in PEERS else name
        correlations = (_number(figures["srocc"]), _number(figures["plcc_logistic"]))
        rows.append((label, *correlations, order, str(figures["unscored"])))
    missing = [name for name in (*PEERS, WITHOUT_DEPTH) if name not in record["figures"]]
    head = ("model", "SROCC", "PLCC after logistic", "KADID types in order: neighbours / all five", "no score")
    photographs, names = len(record["pictures"]), ", ".join(record["pictures"])
    kinds, pictures = record["types"], record["distorted_pictures"]
    pictures_text = f"""Photographs that no training run has seen: {photographs}, from scikit-image and scikit-learn
({names}), shortest side at most {SHORT_SIDE} pixels, each with {kinds} distortion types at five levels under unseen
seeds. That makes {pictures} pictures, the same for every row. The motorcycle has measured depth for the distortions
that follow depth, the others a ground plane. Successive models were compared on these same photographs, so their
figures lean to the bright side, and they are few: another {photographs} would give others. Pristine pictures are left
out of the correlations. A type counts as in order where that holds at least 90 % of the time. PLCC comes after a
fitted logistic, which may also fall: it does not show the direction, SROCC does."""
    return f"""## Against pseudo-MOS, side by side

{_wrapped(pictures_text)}

BRISQUE, NIQE and PIQE (lower = better, sign turned) are the packages' own code and parameters. BRISQUE's were trained
on human opinion (LIVE), and none of the three was made for colour errors, brightness or haze: this test is kinder to a
model that was trained on these very types.

{_table(head, rows)}

{f"Not measured: {', '.join(missing)}." if missing else "Nothing was left out."}{_worth_of_depth(record)}

![score against label, agreement of metrics, types, densities](model-card.png)"""


def _worth_of_depth(record: Mapping[str, Any]) -> str:
    """A paragraph on what the ablation says, or nothing where it was not measured."""
    figures = record["figures"]
    if WITHOUT_DEPTH not in figures:
        return ""
    ours, without = figures[OURS], figures[WITHOUT_DEPTH]
    neighbours, levels = (ours[key] - without[key] for key in ORDER_KEYS)
    points = [
        f"{_words(kind)} {100 * (shares['all_levels'] - without['overlap'][kind]['all_levels']):+.0f}"
        for kind, shares in ours["overlap"].items()
        if shares and without["overlap"][kind]
    ]
    gain = ours["srocc"] - without["srocc"]
    verdict = "That is hardly worth a second backbone and a depth network" if gain < SMALL_GAIN else "That is a gain"
    text = f"""Is depth earning its cost? With Depth-CAR, SROCC moves by {gain:+.3f}, types in order by
{neighbours:+d} / {levels:+d}, and the density overlap below (in points, less is better) by:
{", ".join(points) or "not measured"}. {verdict} on these pictures; few of their distortions follow depth, and nobody
judged them."""
    return "\n\n" + _wrapped(text)


def _types(record: Mapping[str, Any]) -> str:
    rows = [
        (
            _words(kind),
            _number(figures["srocc"]),
            f"{figures['neighbours_in_order']:.0%}",
            f"{figures['levels_in_order']:.0%}",
            f"{figures['neighbours_in_order_with_pristine']:.0%}",
            f"{figures['levels_in_order_with_pristine']:.0%}",
        )
        for kind, figures in record["figures"][OURS]["types"].items()
    ]
    head = ("type", "SROCC", "neighbours in order", "all five in order", "neighbours, pristine too", "all six in order")
    photographs = len(record["pictures"])
    return f"""## Type by type

In order means a strictly lower score at the next level. With {photographs} photographs, one of them out of order takes
{1 / photographs:.0%} off "all five in order", so 90 % in that column asks for every photograph.

{_table(head, rows)}"""


def _second_opinion(record: Mapping[str, Any]) -> str:
    checks = [name for name in ("fsim", "vsi", "ms_ssim") if name in record["label_srocc"]]
    rows = [("pseudo-MOS itself", *(_number(record["label_srocc"][name]) for name in checks))]
    for name, figures in record["figures"].items():
        rows.append((name, *(_number(figures["check_srocc"][name]) for name in checks)))
    return f"""## A second opinion

FSIM, VSI and MS-SSIM take no part in the labels. SROCC against each of them over all distorted pictures:

{_table(("model", *(name.upper().replace("_", "-") for name in checks)), rows)}"""


def _densities(record: Mapping[str, Any]) -> str:
    rows = [
        (name, *(_shares(shares) for shares in figures["overlap"].values()))
        for name, figures in record["figures"].items()
    ]
    kinds = [_words(kind) for kind in record["figures"][OURS]["overlap"]]
    return f"""## Density separation (paper, section 5.2)

Overlap of two Gaussians, one fitted to the scores of the {len(record["pictures"])} pristine pictures, one to those of
the degraded ones: all five levels / levels 3 to 5. 0 % is perfect separation. So few pristine scores make a rough
density. The paper measures this on photographs of real haze, low light and flare; these are simulated, and level 1 is
mild.

{_table(("model", *kinds), rows)}"""


def _shares(shares: Mapping[str, float] | None) -> str:
    return f"{shares['all_levels']:.0%} / {shares['levels_3_to_5']:.0%}" if shares else "not measured"


def _depth(record: Mapping[str, Any]) -> str:
    depth = record["depth"]
    if depth is None:
        return "## The depth network\n\nNot measured."
    ours, trivial = depth["rank_correlation"], depth["lower_is_nearer"]
    caution = f"""One picture, and not a blind test: it gave no gradient, but its correlation was printed every two
minutes of training and compared from one recipe to the next. Read {ours - trivial:+.3f} as:
{_depth_verdict(ours - trivial)}."""
    return f"""## The depth network

Rank correlation with the true disparity of one real stereo pair (Middlebury's motorcycle, from scikit-image):
**{ours:.3f}**, against {trivial:.3f} for the trivial guess that lower in the picture is nearer.

{_wrapped(caution)}"""


def _depth_verdict(lead: float) -> str:
    if lead < 0:
        return "worse than the guess"
    return "about as good as the guess" if lead < SMALL_GAIN else "better than the guess on this picture"


def _failures(record: Mapping[str, Any]) -> str:
    bias = sorted(record["type_bias"].items(), key=lambda item: item[1])
    low = ", ".join(f"{_words(kind)} ({value:+.2f})" for kind, value in bias[:4] if value < 0) or "no type"
    high = ", ".join(f"{_words(kind)} ({value:+.2f})" for kind, value in bias[:-5:-1] if value > 0) or "no type"
    rows = [
        (
            failure["picture"],
            _words(failure["type"]),
            str(failure["level"]),
            _number(failure["score"]),
            _number(failure["label"]),
            f"{failure['rank_error']:+.2f}",
        )
        for failure in record["failures"]
    ]
    head = ("picture", "type", "level", "score", "label", "rank error")
    types = record["figures"][OURS]["types"]
    unordered = _listed((kind, f["neighbours_in_order"], "{:.0%}") for kind, f in types.items())
    unlike = _listed(((kind, f["srocc"], "{:.2f}") for kind, f in types.items()), below=0.5)
    weak = f"""Neighbouring levels in order less than 90 % of the time: {unordered}. SROCC under 0.5 within a type,
which is what a user of that one distortion meets: {unlike}. Without a reference, nothing tells a bright scene from a
brightened one."""
    return f"""## Where it fails

{_wrapped(weak)}

Rank error: the share of all distorted pictures that the score ranks below this one, minus the share that the label
ranks below it. By the mean over a type, it is too kind to {high};
and too hard on {low}.

The largest errors, at most two of one type:

{_table(head, rows)}

![the pictures of this table](failures.jpg)"""


def _listed(figures: Iterable[tuple[str, float | None, str]], below: float = 0.9) -> str:
    """The types whose figure is below that, the worst first, or "no type"."""
    low = sorted((value, kind, form) for kind, value, form in figures if value is not None and value < below)
    return ", ".join(f"{_words(kind)} ({form.format(value)})" for value, kind, form in low) or "no type"


def _origin(record: Mapping[str, Any]) -> str:
    stamp = record["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in stamp["versions"].items() if version)
    return f"""## What it was trained on

No training picture is part of the bundle or of the repository.

- 143 photographs of Debian 12's packages, which `python -m recipes.small.photographs` gathers, under the licences that
  the packages' copyright files name:
  - 95 of `gcompris-qt-data` 3.1-2 (animals, monuments, a musician): public domain, CC-BY-SA, GFDL or GPL-3+ where the
    file names the picture, the package's GPL-3+ where it does not;
  - 12 of `mate-backgrounds` 1.26.0-1 and 9 of `plasma-workspace-wallpapers` 4:5.27.5-2: GPL-2+ (the latter's own
    metadata say LGPLv3);
  - 13 of `lomiri-wallpapers` 20.04.0-2, by Aitzol Berasategi, Trevor "Freespace", Jakub Mede (CC-BY-4.0), Sander
    Klootwijk, "Bolly", Peter Nerlich (CC-BY-SA-4.0), Lukas Baubkus (CC-BY-SA-3.0) and Clemens Engelhardt (CC0-1.0);
  - 9 sample pictures of `opencv-doc` 4.6.0: Apache-2.0 and BSD-3-Clause;
  - 5 of `palapeli-data` 4:22.12.3-1, by Eric Pouhier, Derek Jensen, the US Department of Agriculture, John Severns and
    B. Navez: GPL-2+.
- Crops that do not look pristine, being out of focus, empty or without colour, were left out: `recipes.small.synthesis`
  draws others.
- 26,609 pictures were made of them, the untouched ones counted; every tenth reference was kept for validation.
- Scenes with exact depth, rendered by `recipes.small.scenes` with textures cut from photographs of these packages: a
  twelfth of the pictures, and all that the depth network saw.
- Distortions by `recipes.small.distortions`, labels by `recipes.small.labels`.
- A model trained anew by the README's recipe will differ from this one: the scenes were made before the last changes of
  the renderer, and six epochs of the second stage passed before it had the types as a target, too.
- The row without Depth-CAR is this model's RGB half after the first and the last stage: it had no second one.

Measured on {stamp["date"]}: bundle `{record["bundle"]}`,
commit {stamp["commit"] or "unknown"},
{stamp["cpu"]}, {stamp["cores"]} cores, Python {stamp["python"]},
{versions}."""


def _wrapped(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 118, break_long_words=False, break_on_hyphens=False)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(value: float | None) -> str:
    if value is None or not np.isfinite(value):
        return "not measured"
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def _words(kind: str) -> str:
    return kind.replace("_", " ")


def write_text(record: Mapping[str, Any], out: Path) -> None:
    """The card beside its pictures."""
    with replacing(out / "model-card.md") as partial:
        partial.write_text(card_text(record), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure a bundle and write its model card.")
    parser.add_argument("--bundle", default="small", help="name or directory")
    parser.add_argument("--out", type=Path, help="folder of the card and its pictures (default: docs)")
    parser.add_argument("--results", type=Path, help="folder of model-card.json (default: bench/results)")
    parser.add_argument(
        "--work", type=Path, default=user_cache() / "model-card", help="folder of what later runs reuse"
    )
    parser.add_argument("--without-depth-car", type=Path, metavar="WEIGHTS", help="network trained without it")
    parser.add_argument("--quick", action="store_true", help="one picture, three types, no peers: does the bench work?")
    parser.add_argument("--text-only", action="store_true", help="write the card again from model-card.json, no more")
    options = parser.parse_args(arguments)
    # A quick run must not take the place of a real card.
    out, results = (options.work / "quick",) * 2 if options.quick else (Path("docs"), RESULTS)
    out, results = options.out or out, options.results or results
    if options.text_only:
        write_text(json.loads((results / "model-card.json").read_text()), out)
        return
    without = options.without_depth_car and open_without_depth(options.without_depth_car, options.bundle)
    record = build_card(open_bundle(options.bundle), without, out, results, options.work, quick=options.quick)
    for gate in record["gates"]:
        verdict = "met    " if gate["met"] else "NOT MET"
        print(f"{verdict}  {gate['measure']}: {_number(gate['value'])} ({gate['target']})")


if __name__ == "__main__":
    main()
