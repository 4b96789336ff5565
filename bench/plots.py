"""Draw the benches' results: speed against drift, stages, and how cost grows."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

PARETO, STAGES, SCALE = "performance-pareto.png", "performance-stages.png", "performance-scale.png"
NO_DRIFT = 1e-8  # where a drift of zero is drawn on a logarithmic axis
Line = dict[str, Any]


def draw(results: Mapping[str, Sequence[Line]], folder: Path) -> list[str]:
    """Draw a picture for each kind of results. Return the names of those written into `folder`."""
    import matplotlib
    from matplotlib import pyplot

    matplotlib.use("Agg")
    wanted: dict[str, tuple[Callable[[Any, Any], None], Any]] = {
        PARETO: (_pareto, [line for line in results["pipeline"] if line["case"].get("part") == "settings"]),
        STAGES: (_stages, [line for line in results["pipeline"] if line["case"].get("group") == "engines"]),
        SCALE: (_scale, {line["case"]["axis"]: line["rows"] for line in results["scale"]}),
    }
    wanted = {name: (work, data) for name, (work, data) in wanted.items() if data}
    for name, (work, data) in wanted.items():
        figure = pyplot.figure(figsize=(9, 5))
        work(figure, data)
        figure.tight_layout()
        figure.savefig(folder / name, dpi=90)
        pyplot.close(figure)
    return list(wanted)


def label(setting: Mapping[str, Any]) -> str:
    """A setting in a few words."""
    sizes = f"batch {setting['batch'] or 'auto'}, {setting['threads']} threads, {setting['workers']} workers"
    sizes += f", {setting['parallel']} at a time" if setting.get("parallel") else ""
    return f"{setting['backend']} {setting['precision']}, {sizes}"


def _pareto(figure: Any, groups: Sequence[Line]) -> None:
    """Draw every setting as a point, and join those that no other beats in both respects."""
    axis = figure.add_subplot()
    points = {}
    for row in (row for line in groups for row in line["rows"]):
        points[label(row["setting"])] = (
            max(row["drift"]["largest"], NO_DRIFT),
            row["many"]["images_per_second"],
            f"{row['setting']['backend']} {row['setting']['precision']}",
        )
    for engine in dict.fromkeys(point[2] for point in points.values()):
        members = [point for point in points.values() if point[2] == engine]
        axis.scatter([p[0] for p in members], [p[1] for p in members], label=engine)
    best = front([point[:2] for point in points.values()])
    axis.plot([p[0] for p in best], [p[1] for p in best], color="grey", linewidth=1, zorder=0)
    axis.set(xscale="log", xlabel="largest |score - fp32 score|", ylabel="images per second")
    axis.grid(alpha=0.3)
    axis.legend()


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (drift, speed) points for which no other has both less drift and more speed, by rising drift."""
    kept: list[tuple[float, float]] = []
    for drift, speed in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or speed > kept[-1][1]:
            kept.append((drift, speed))
    return kept


def _stages(figure: Any, groups: Sequence[Line]) -> None:
    """Draw one bar per engine, with one colour per stage."""
    axis = figure.add_subplot()
    rows = [row for line in groups for row in line["rows"]]
    names = [f"{row['setting']['backend']} {row['setting']['precision']}" for row in rows]
    left = [0.0] * len(rows)
    for stage in rows[0]["one"]["stages"]:
        widths = [row["one"]["stages"][stage]["median"] for row in rows]
        axis.barh(range(len(rows)), widths, left=left, label=stage)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axis.set_yticks(range(len(rows)), names)
    axis.invert_yaxis()
    axis.set_xlabel("ms of one 1024x768 JPEG")
    axis.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.12))


def _scale(figure: Any, axes: Mapping[str, Sequence[Line]]) -> None:
    """Draw one panel per measured axis, two for long runs."""
    figure.set_size_inches(12, 7)
    panels: list[tuple[str, str, str, Callable[[Line], tuple[float, float]], str]] = [
        ("sizes", "megapixels", "ms per image", lambda r: (r["megapixels"], r["ms"]["median"]), "log"),
        ("tiles", "tiles", "ms per image", lambda r: (r["tiles"], r["ms"]["median"]), "linear"),
        ("batches", "batch", "ms per tile", lambda r: (r["batch"], r["ms_per_tile"]["median"]), "log"),
        ("processes", "processes", "images per second", lambda r: (r["processes"], r["images_per_second"]), "linear"),
        ("images", "images", "ms per image", lambda r: (r["images"], r["ms_per_image"]), "log"),
        ("images", "images", "resident MB", lambda r: (r["images"], r["resident_mb"]), "log"),
    ]
    for place, (name, x, y, point, scale) in enumerate(panels, 1):
        if name not in axes:
            continue
        axis = figure.add_subplot(2, 3, place)
        for bundle in dict.fromkeys(row.get("bundle", "") for row in axes[name]):
            points = [point(row) for row in axes[name] if row.get("bundle", "") == bundle]
            axis.plot([p[0] for p in points], [p[1] for p in points], marker="o", label=bundle)
        axis.set(xlabel=x, ylabel=y, xscale=scale)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        if name == "images":
            axis.legend()
