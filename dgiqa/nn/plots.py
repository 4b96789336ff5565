"""Draw the paper's figures: densities (2), curves (6 and 11), features in a plane (14), Grad-CAM (13, 15 and 16).

Files are PNG; no figure shows a picture from a data set.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dgiqa.dtypes import Array, Float32, Floating
from dgiqa.extras import load
from dgiqa.store import replacing

MARKERS = "o^sD"  # one per set in a plane
PERPLEXITY = 30  # t-SNE's, at most


def embedded(features: Floating) -> Float32:
    """Place features f [n,C], each standardised, in a plane by t-SNE: f32 [n,2], the same every time."""
    manifold = load("sklearn.manifold", "t-SNE", "scikit-learn", "train")
    standard = (features - features.mean(0)) / np.maximum(features.std(0), 1e-6)
    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    return np.asarray(
        manifold.TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(standard), np.float32
    )


def draw_embedding(sets: Sequence[tuple[str, Array, Array]], path: Path) -> None:
    """Draw sets (name, places f [n,2], scores f [n]) in one plane: a marker for each set, colour for the score."""
    figure, axes = _figure(5)
    ends = [float(end(np.concatenate([scores for _, _, scores in sets]))) for end in (np.min, np.max)]
    for marker, (name, places, scores) in zip(MARKERS, sets, strict=False):
        drawn = axes.scatter(
            *places.T, c=scores, s=14, marker=marker, cmap="viridis", vmin=ends[0], vmax=ends[1], label=name
        )
    axes.set(xticks=[], yticks=[])
    figure.colorbar(drawn, label="people's opinion")
    if len(sets) > 1:
        legend = figure.legend(loc="outside lower center", ncols=len(sets), frameon=False)
        for handle in legend.legend_handles:
            handle.set(array=None, color="grey")  # only the marker shows the set; colour is a score
    _save(figure, path)


def draw_curves(
    values: Sequence[float],
    curves: Mapping[str, Sequence[Sequence[float]]],
    path: Path,
    what: str,
    levels: Mapping[str, float],
) -> None:
    """Draw the mean of each curve at each value, and the deviation over its repetitions. what: the values' axis label.

    levels: dashed lines across; the first has the first curve's colour, and so on.
    """
    figure, axes = _figure()
    for name, repeated in curves.items():
        means, spread = ([float(of(each)) for each in repeated] for of in (np.mean, np.std))
        axes.errorbar(values, means, yerr=spread, marker="o", capsize=3, label=name)
    for number, (name, level) in enumerate(levels.items()):
        axes.axhline(level, color=f"C{number}", linestyle="--", linewidth=1, label=name)
    axes.set(xlabel=what, ylabel="correlation with people's opinion", xticks=values)
    axes.legend()
    _save(figure, path)


def draw_results(results: Sequence[Any], path: Path) -> None:
    """Draw the SROCC of `evaluate.Result`s as bars, and the paper's as marks."""
    figure, axes = _figure(2 + 0.5 * len(results))
    means = [result.summary()["mean"]["srocc"] for result in results]
    spread = [np.std([row["srocc"] for row in result.rows]) for result in results]
    axes.barh(range(len(results)), means, xerr=spread, color="C0", label="here, mean and deviation over seeds")
    paper = [(result.paper[0], i) for i, result in enumerate(results) if result.paper]
    if paper:
        axes.plot(*zip(*paper, strict=True), "k|", markersize=20, markeredgewidth=2, label="paper")
    lowest = min(0.0, *(mean - 1.1 * deviation for mean, deviation in zip(means, spread, strict=True)))
    axes.set(xlabel="SROCC", xlim=(lowest, 1), yticks=range(len(results)))
    axes.set_yticklabels([result.name for result in results])
    axes.invert_yaxis()  # in the order of the table
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    _save(figure, path)


def draw_separation(separation: Any, path: Path) -> None:
    """Draw both kinds of scores of an `evaluate.Separation` as histograms, with the Gaussians of the overlap."""
    figure, axes = _figure()
    span = np.linspace(0, 1, 4001)  # all scores may be within a hundredth
    ends = (*separation.good, *separation.degraded)
    bins = np.linspace(min(ends), max(*ends, min(ends) + 1e-3), 21)  # as `histogram_overlap` counts
    for scores, label, colour in ((separation.good, "good", "C0"), (separation.degraded, "degraded", "C3")):
        deviation = max(float(scores.std()), 1e-3)
        density = np.exp(-(((span - scores.mean()) / deviation) ** 2) / 2) / (deviation * math.sqrt(2 * math.pi))
        axes.hist(scores, bins=bins, density=True, alpha=0.3, color=colour)
        axes.plot(span, density, color=colour, label=f"{label}, n = {len(scores)}")
    axes.set(xlabel="score", ylabel="density", xlim=(0, 1))
    axes.set_title(f"{separation.name}: overlap {100 * separation.overlap:.1f} %")
    axes.legend()
    _save(figure, path)


def grad_cam(network: Any, *tiles: Tensor) -> Float32:
    """Grad-CAM (arXiv 1610.02391) of the maps that a DGIQA or GlintIQA averages: f32 [N,h,w], before its ReLU.

    tiles: the network's inputs, f32 [N,3,S,S] each. The gradient is taken of the score before its sigmoid.
    """
    seen: list[Tensor] = []
    pooled = network.pool

    def pool(maps: Tensor) -> Tensor:
        maps.retain_grad()
        seen.append(maps)
        return pooled(maps)

    network.pool = pool
    try:
        features = network.features(*(each.requires_grad_() for each in tiles))
    finally:
        del network.pool
    last = network.fc if hasattr(network, "fc") else network.quality_head
    last(features).sum().backward()
    maps, gradient = seen[0], seen[0].grad
    assert gradient is not None
    if maps.ndim == 3:  # tokens [N,T,C]
        side = round(maps.shape[1] ** 0.5)
        return np.asarray((maps * gradient).sum(2).unflatten(1, (side, side)).detach())
    return np.asarray((gradient.mean((2, 3), keepdim=True) * maps).sum(1).detach())


def _figure(inches: float = 4) -> tuple[Any, Any]:
    figure = load("matplotlib.figure", "a plot", "matplotlib", "train").Figure(
        figsize=(7, inches), layout="constrained"
    )
    return figure, figure.subplots()


def _save(figure: Any, path: Path) -> None:
    with replacing(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
