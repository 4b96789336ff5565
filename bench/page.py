"""bench/results/*.jsonl become docs/performance.md and its plots: every figure with the machine that it came from.

    python bench/page.py [--results bench/results] [--docs docs]

Nothing is measured here. A part that was not measured is left out, and the page says so.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import engines_page
import plots
from markdown import last_cases, number, table
from stamp import machine_line
from timer import RESULTS, lines

BENCHES = ("peers", "pipeline", "scale", "engines")
TRIED = "tried.json"
Line = dict[str, Any]
Results = dict[str, list[Line]]


def main() -> None:
    options = _options()
    results, machines = load(options.results)
    if not any(results.values()):
        sys.exit(f"{options.results} holds no results; run bench/pipeline.py, bench/peers.py and bench/scale.py first")
    options.docs.mkdir(parents=True, exist_ok=True)
    drawn = plots.draw(results, options.docs)
    precisions, since = engines_page.record(options.results), versions(options.results)
    text = page(results, machines, drawn, tried(options.results), precisions, since=since)
    (options.docs / "performance.md").write_text(text, encoding="utf-8")
    print(options.docs / "performance.md", *(options.docs / name for name in drawn), sep="\n")


def load(folder: Path) -> tuple[Results, list[str]]:
    """(the last line of every case, by bench; the machines that those lines came from, one line each).

    "machine" in a line is the number of its machine, from 1 on.
    """
    results: Results = {}
    machines: dict[str, int] = {}
    for bench in BENCHES:
        results[bench] = []
        for line, stamp in last_cases(lines(folder / f"{bench}.jsonl")):
            machine = machines.setdefault(machine_line(stamp), len(machines) + 1)
            results[bench].append(line | {"machine": machine})
    return results, list(machines)


def versions(folder: Path) -> str:
    """How the default model's time has changed since the rows of this page, as `bench/versions.py` measured it."""
    path = folder / "versions.json"
    if not path.is_file():
        return ""
    found = json.loads(path.read_text(encoding="utf-8"))
    sizes = ", ".join(f"{ratio:.2f} at {size}" for size, ratio in found["ratio"].items())
    return (
        f"**Times of `small` are of its first version** (up to commit {found['other']}). The one that ships takes "
        f"{found['mean_ratio']:.2f} times as long per image on one thread of ONNX Runtime in fp32: {sizes} "
        "(`bench/versions.py`). The full-size networks are the same."
    )


def tried(folder: Path) -> list[Mapping[str, str]]:
    """What was tried to make it faster: [{"what", "predicted", "measured", "verdict"}], written by hand."""
    path = folder / TRIED
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def page(
    results: Results,
    machines: Sequence[str],
    drawn: Sequence[str],
    attempts: Sequence[Mapping[str, str]],
    accuracy: Line | None = None,
    *,
    since: str = "",
) -> str:
    """The whole page as Markdown. since: what `versions` says."""
    parts = [
        "# Performance\n\nWritten by `python bench/page.py`. Every measured figure comes from `bench/results/`; "
        "what was tried is noted by hand.\n",
        "Measured on, by the numbers in brackets:\n\n" + "\n".join(f"{i}. {m}" for i, m in enumerate(machines, 1)),
        "Every comparison is taken in turn (A, B, A, B, …) in one run; a ratio is the median of the rounds' ratios. "
        "Times of other machines differ; ratios differ less. Nothing on this page was run on a GPU.\n"
        if not any("NVIDIA" in machine for machine in machines)
        else "Every comparison is taken in turn (A, B, A, B, …) in one run; a ratio is the median of the rounds'.\n",
        since,
        *(section for section in _sections(results, drawn, accuracy) if section),
        _attempts(attempts),
        _rerun(),
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _sections(results: Results, drawn: Sequence[str], accuracy: Line | None) -> Iterator[str]:
    peers, pipeline, scale, engines = (results[bench] for bench in BENCHES)
    yield _section("Against what people would use", "\n\n".join(_peers(peers)))
    yield _section("Every way of running it", "\n\n".join(_engines(pipeline)), drawn, plots.PARETO)
    yield _section("Each engine on each network", engines_page.engines(engines))
    yield _section("How far scores move", engines_page.precisions(accuracy))
    yield _section("Where the time goes", "\n\n".join(_stages(pipeline)), drawn, plots.STAGES)
    yield _section("From starting the process to the first score", "\n\n".join(_startup(pipeline)))
    yield _section("How cost grows", "\n\n".join(_scale(scale)), drawn, plots.SCALE)


def _section(title: str, body: str, drawn: Sequence[str] = (), plot: str = "") -> str:
    picture = f"\n\n![{title}]({plot})" if plot in drawn else ""
    return f"## {title}\n\n{body}{picture}" if body else f"## {title}\n\nNot measured yet."


# ---- the sections ----


def _peers(peers: Sequence[Line]) -> Iterator[str]:
    titles = {
        "authors-vits": "The authors' pipeline (full-size networks, eager PyTorch, 20 random crops) with ViT-S depth, "
        "1024x768 photographs:",
        "authors-vitl": "The same with ViT-L depth, their default:",
        "networks": "The same full-size networks on the same tiles (grid). Their weights are random: drift compares "
        "engines, not models.",
        "compile": "torch.compile on the same networks; `first` is the call that compiles:",
        "metrics": "Other no-reference metrics, one photograph at a time:",
    }
    for group, title in titles.items():
        for line in _where(peers, part=group):
            yield f"{title} {_on(line)}\n\n{_peer_table(line['rows'])}"
    for line in _where(peers, part="tilings"):
        yield _tilings(line)


def _peer_table(rows: Sequence[Line]) -> str:
    made = []
    for row in rows:
        if "unavailable" in row:
            made.append((row["name"], "not measured", "", "", f"{row['note']}; {row['unavailable']}".strip("; ")))
            continue
        first = f"first {row['first_ms'] / 1e3:.1f} s" if row["name"] == "torch.compile" else ""
        drift = f"drift {row['drift']:.1e}" if "drift" in row else ""
        notes = "; ".join(note for note in (drift, first, row["note"]) if note)
        made.append((row["name"], _ms(row["ms"]), f"{row['ratio']['median']:.2f}x", str(row["samples"]), notes))
    return table(("", "ms per image [p10, p90]", "speed", "rounds", ""), made)


def _tilings(line: Line) -> str:
    rows = [(row["name"], _ms(row["ms"]), f"{row['ratio']['median']:.2f}x") for row in line["rows"]]
    said = [
        f"{name}: mean |difference| {value['mean']:.4f}, largest {value['largest']:.4f}, SROCC {value['srocc']:.3f}"
        for name, value in line.items()
        if isinstance(value, dict) and "srocc" in value
    ]
    head = f"Tilings, `small`, {line['case']['images']} photographs: {_on(line)}"
    return f"{head}\n\n{table(('', 'ms per image [p10, p90]', 'speed'), rows)}\n\n" + "\n".join(f"- {s}" for s in said)


def _engines(pipeline: Sequence[Line]) -> Iterator[str]:
    for line in _where(pipeline, part="settings"):
        rows = [
            (
                _label(row["setting"]),
                _ms(row["one"]["ms"]),
                f"{row['one']['ratio']['median']:.2f}x",
                f"{row['many']['images_per_second']:.1f}",
                f"{row['many']['ratio']['median']:.2f}x",
                f"{row['stream']['images_per_second']:.1f}" if "stream" in row else "",
                f"{row['drift']['largest']:.1e}",
                f"{row['drift']['mean']:.1e}",
                f"{row['drift']['srocc']:.4f}",
                f"{row['peak_mb']:.0f}",
            )
            for row in line["rows"]
        ]
        head = ("", "one image, ms [p10, p90]", "speed", f"{line['case']['images']} images: images/s", "speed")
        drift = ("stream", "largest drift", "mean", "SROCC", "peak MB")
        yield f"`{line['case']['bundle']}`, {line['case']['group']}: {_on(line)}\n\n{table((*head, *drift), rows)}"


def _stages(pipeline: Sequence[Line]) -> Iterator[str]:
    for line in _where(pipeline, part="settings", group="engines"):
        names = list(line["rows"][0]["one"]["stages"])
        cells = [[f"{row['one']['stages'][name]['median']:.1f}" for name in names] for row in line["rows"]]
        rows = [(_label(row["setting"]), *found) for row, found in zip(line["rows"], cells, strict=True)]
        yield f"`{line['case']['bundle']}`, ms of one image: {_on(line)}\n\n{table(('', *names), rows)}"


def _startup(pipeline: Sequence[Line]) -> Iterator[str]:
    for line in _where(pipeline, part="startup"):
        rows = [
            (f"`{r['name']}`", _ms(r["ms"]), f"{1 / r['ratio']['median']:.2f}x", f"{r['peak_mb']:.0f}")
            for r in line["rows"]
        ]
        yield table((f"whole process {_on(line)}", "ms [p10, p90]", "time", "peak MB"), rows)


def _scale(scale: Sequence[Line]) -> Iterator[str]:
    titles: dict[str, tuple[str, Callable[[Line], tuple[str, ...]], tuple[str, ...]]] = {
        "sizes": (
            "One image of growing size:",
            lambda r: (f"{r['megapixels']:g}", _ms(r["ms"]), f"{r['peak_mb']:.0f}"),
            ("megapixels", "ms [p10, p90]", "peak MB"),
        ),
        "tiles": ("Tiles of one image:", lambda r: (str(r["tiles"]), _ms(r["ms"])), ("tiles", "ms [p10, p90]")),
        "batches": (
            "Tiles in one run of the quality network:",
            lambda r: (str(r["batch"]), _ms(r["ms_per_tile"]), f"{r['resident_mb']:.0f}"),
            ("batch", "ms per tile [p10, p90]", "resident MB"),
        ),
        "processes": (
            "Processes side by side, the cores shared out among them:",
            lambda r: (
                str(r["processes"]),
                f"{r['images_per_second']:.1f}",
                f"{r['ratio']['median']:.2f}x",
                f"{r['peak_mb']:.0f}",
            ),
            ("processes", "images/s together", "speed", "peak MB together"),
        ),
        "images": (
            "A long run (`tiny`: networks of a few operators, so that the pipeline's own cost shows):",
            lambda r: (r["bundle"], f"{r['images']:,}", f"{r['ms_per_image']:.2f}", f"{r['resident_mb']:.0f}"),
            ("bundle", "after images", "ms per image since the last line", "resident MB"),
        ),
    }
    for axis, (title, cells, head) in titles.items():
        for line in _where(scale, axis=axis):
            yield f"{title} {_on(line)}\n\n{table(head, [cells(row) for row in line['rows']])}"


def _attempts(attempts: Sequence[Mapping[str, str]]) -> str:
    if not attempts:
        return ""
    rows = [tuple(attempt[name] for name in ("what", "predicted", "measured", "verdict")) for attempt in attempts]
    return "## What was tried\n\n" + table(("what", "predicted", "measured", ""), rows)


def _rerun() -> str:
    return """## Measure it yourself

    dgiqa-rt bench                 # how fast is it here, and with which options: two minutes, no PyTorch
    python bench/pipeline.py       # every way of running a bundle
    python bench/peers.py          # against PyTorch and other metrics; makes environments for them under data/peers
    python bench/scale.py          # how cost grows
    python bench/engines.py        # each engine on each network
    python bench/precision.py      # how far scores move in each precision; --networks full glintiqa: an hour each
    python bench/page.py           # this page

An interrupted run goes on where it was; `--fresh` measures again, `--quick` shows that it works."""


# ---- small things ----


def _where(found: Iterable[Line], **wanted: Any) -> list[Line]:
    return [line for line in found if all(line["case"].get(name) == value for name, value in wanted.items())]


def _on(line: Line) -> str:
    """The number of the machine that a line came from, as it stands in the list of them."""
    return f"[{line['machine']}]"


def _label(setting: Mapping[str, Any]) -> str:
    return plots.label(setting)


def _ms(spread: Mapping[str, float]) -> str:
    return f"{number(spread['median'])} [{number(spread['p10'])}, {number(spread['p90'])}]"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results  [default: %(default)s]")
    parser.add_argument("--docs", type=Path, default=RESULTS.parent.parent / "docs", help="where the page goes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
