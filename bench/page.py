"""Write bench/results/*.jsonl as docs/performance.md and its plots: every figure with the machine that it came from.

    python bench/page.py [--results bench/results] [--docs docs]

Nothing is measured here. A part that was not measured is left out, and the page says so.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import plots
from markdown import figures, last_cases, table, words
from stamp import command_line, machine_line, read_json
from timer import RESULTS, lines

from dgiqa.forward import STAGES

BENCHES = ("peers", "pipeline", "scale", "engines")
TRIED = "tried.json"
UNTRAINED = "untrained-"  # followed by the size: the names of bench/untrained.py's bundles
Line = dict[str, Any]
Results = dict[str, list[Line]]


class Part(NamedTuple):
    """The lines of a bench whose case has the value `case`: each becomes a table under `lead`.

    lead, head, cells: format strings as in `markdown.words`, the first two of the line, `cells` of each row; head and
    cells are divided by |.
    """

    bench: str
    case: str
    lead: str
    head: str
    cells: str


PEERS = (" | ms per image [p10, p90] | speed | rounds | ", "{name} | {ms} | {ratio:x} | {samples} | {notes}")
TILINGS = (" | ms per image [p10, p90] | speed", "{name} | {ms} | {ratio:x}")
SETTINGS = (
    " | one image, ms [p10, p90] | speed | {case[images]} images: images/s | speed | stream | largest drift | mean"
    " | SROCC | peak MB",
    "{label} | {one[ms]} | {one[ratio]:x} | {many[images_per_second]:.1f} | {many[ratio]:x} | "
    "{stream[images_per_second]:.1f} | {drift[largest]:.1e} | {drift[mean]:.1e} | {drift[srocc]:.4f} | {peak_mb:.0f}",
)
OUTPUT = (*STAGES, "output")
OF_STAGES = " | ".join(("", *OUTPUT)), " | ".join(("{label}", *(f"{{one[stages][{name}]:.1f}}" for name in OUTPUT)))
STARTUP = (" | ms [p10, p90] | time | peak MB", "`{name}` | {ms} | {ratio:1/x} | {peak_mb:.0f}")
SIZES = ("megapixels | ms [p10, p90] | peak MB", "{megapixels:g} | {ms} | {peak_mb:.0f}")
BATCHES = ("batch | ms per tile [p10, p90] | resident MB", "{batch} | {ms_per_tile} | {resident_mb:.0f}")
PROCESSES = (
    "processes | images/s together | speed | peak MB together",
    "{processes} | {images_per_second:.1f} | {ratio:x} | {peak_mb:.0f}",
)
IMAGES = (
    "bundle | images so far | ms per image since the line above | resident MB",
    "{bundle} | {images:,} | {ms_per_image:.2f} | {resident_mb:.0f}",
)
AUTHORS = "The authors' pipeline (full-size networks, eager PyTorch, 20 random crops), ViT-S depth, 1024x768 photos:"
LONG = "A long run (`tiny` has networks of a few operators, so that the pipeline's own cost shows):"
SECTIONS: dict[str, list[Part]] = {
    "Against other tools": [
        Part("peers", "authors-vits", AUTHORS, *PEERS),
        Part("peers", "authors-vitl", "The same with ViT-L depth, their default:", *PEERS),
        Part("peers", "metrics", "Other no-reference metrics, one photograph at a time:", *PEERS),
        Part("peers", "tilings", "Tilings, `small`, {case[images]} photographs:", *TILINGS),
    ],
    "Every way of running it": [Part("pipeline", "settings", "`{case[bundle]}`, {case[group]}:", *SETTINGS)],
    "Each engine on each network": [],
    "How far scores move": [],
    "Where the time goes": [Part("pipeline", "engines", "`{case[bundle]}`, ms of one image:", *OF_STAGES)],
    "From starting the process to the first score": [Part("pipeline", "startup", "Whole processes:", *STARTUP)],
    "How cost grows": [
        Part("scale", "sizes", "One image of growing size:", *SIZES),
        Part("scale", "tiles", "Tiles of one image:", "tiles | ms [p10, p90]", "{tiles} | {ms}"),
        Part("scale", "batches", "Tiles in one run of the quality network:", *BATCHES),
        Part("scale", "processes", "Processes side by side, which share the cores:", *PROCESSES),
        Part("scale", "images", LONG, *IMAGES),
    ],
}
PLOTS = {"Every way of running it": plots.PARETO, "Where the time goes": plots.STAGES, "How cost grows": plots.SCALE}
PRECISIONS = (
    "networks | engine | precision | largest difference | mean | SROCC | share of fp32's bytes | within its budget",
    "{networks} | {engine} | {precision} | {max_difference:.1e} | {mean_difference:.1e} | {srocc:.4f} | "
    "{size_ratio:.2f} | {verdict}",
)
SINCE = (
    "Next to other no-reference metrics, and where each engine runs each network, **`small` is its first version** (up "
    "to commit {other}). The shipped version takes {mean_ratio:.2f} times as long per image on one thread of ONNX "
    "Runtime in fp32: {sizes} (`bench/versions.py`)."
)
IN_TURN = "Compared subjects take turns (A, B, A, B, …) in one run; a ratio is the median of the rounds' ratios."
RERUN = """## Measure it yourself

    dgiqa-rt bench                 # how fast is it here, and with which options: two minutes, no PyTorch
    python bench/pipeline.py       # every way of running a bundle
    python bench/peers.py          # against PyTorch and other metrics; makes environments for them under data/peers
    python bench/scale.py          # how cost grows
    python bench/engines.py        # each engine on each network
    python bench/precision.py      # how far scores move in each precision; --networks full glintiqa: an hour each
    python bench/page.py           # this page

An interrupted run goes on where it stopped; `--fresh` measures again, `--quick` only shows that it works."""


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results  [default: %(default)s]")
    parser.add_argument("--docs", type=Path, default=RESULTS.parent.parent / "docs", help="where the page goes")
    options = parser.parse_args()
    results, machines = load(options.results)
    if not any(results.values()):
        sys.exit(f"{options.results} holds no results; run bench/pipeline.py, bench/peers.py and bench/scale.py first")
    options.docs.mkdir(parents=True, exist_ok=True)
    drawn = plots.draw(results, options.docs)
    (options.docs / "performance.md").write_text(page(options.results, results, machines, drawn), encoding="utf-8")
    print(options.docs / "performance.md", *(options.docs / name for name in drawn), sep="\n")


def load(folder: Path) -> tuple[Results, list[str]]:
    """(the last line of every case, by bench; the machines that these lines came from, one line each).

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


def page(folder: Path, results: Results, machines: Sequence[str], drawn: Sequence[str]) -> str:
    """The whole page as Markdown."""
    made = {
        "Each engine on each network": engines(results["engines"]),
        "How far scores move": precisions(read_json(folder / "precision.json")),
    }
    no_gpu = " Times differ on other machines; ratios differ less. Nothing on this page was run on a GPU."
    parts = [
        "# Performance\n\nWritten by `python bench/page.py`. Every measured figure comes from `bench/results/`; "
        "the experiments at the end were noted by hand.\n",
        "Numbers in brackets name the machine:\n\n" + "\n".join(f"{i}. {m}" for i, m in enumerate(machines, 1)),
        IN_TURN + (no_gpu if not any("NVIDIA" in machine for machine in machines) else ""),
        versions(folder),
    ]
    for title, members in SECTIONS.items():
        body = made.get(title) or "\n\n".join(text for part in members for text in tables(part, results))
        picture = f"\n\n![{title}]({PLOTS[title]})" if PLOTS.get(title) in drawn else ""
        parts.append(f"## {title}\n\n{body}{picture}" if body else f"## {title}\n\nNot measured yet.")
    if attempts := read_json(folder / TRIED):
        head, cells = "what | predicted | measured | ", "{what} | {predicted} | {measured} | {verdict}"
        parts.append(f"## Experiments\n\n{figures(head, cells, attempts)}")
    return "\n\n".join(part.strip() for part in (*parts, RERUN) if part) + "\n"


def versions(folder: Path) -> str:
    """How the default model's time has changed since the rows of this page, as `bench/versions.py` measured it."""
    if not (found := read_json(folder / "versions.json")):
        return ""
    sizes = ", ".join(f"{ratio:.2f} at {size}" for size, ratio in found["ratio"].items())
    return words(SINCE, found | {"sizes": sizes})


def tables(part: Part, results: Results) -> Iterator[str]:
    """Every line of a part, as Markdown."""
    for line in (line for line in results[part.bench] if part.case in line["case"].values()):
        made = figures(words(part.head, line), part.cells, [told(row) for row in line["rows"]])
        yield f"{words(part.lead, line)} [{line['machine']}]\n\n{made}"
        said = "- {0}: mean |difference| {mean:.4f}, largest {largest:.4f}, SROCC {srocc:.3f}"
        compared = {name: value for name, value in line.items() if isinstance(value, dict) and "srocc" in value}
        if compared:
            yield "\n".join(said.format(name, **value) for name, value in compared.items())


def told(row: Line) -> Line:
    """A row with the texts of its cells."""
    if "unavailable" in row:
        return {"name": row["name"], "ms": "not measured", "notes": f"{row['note']}; {row['unavailable']}".strip("; ")}
    label = {"label": plots.label(row["setting"])} if "setting" in row else {}
    return row | {"notes": row.get("note", "")} | label


def engines(cases: Sequence[Line]) -> str:
    """Every case in a row, every engine in a column, as Markdown; "" if nothing was measured."""
    if not cases:
        return ""
    baseline = cases[0]["results"][0]["baseline"]
    names = list(dict.fromkeys(row["name"] for line in cases for row in line["results"] if row["name"] != baseline))
    rows = []
    by = lambda case: (case["size"], case["network"] == "depth", case.get("batch", 0), case.get("input", ""))  # noqa: E731
    for line in sorted(cases, key=lambda line: by(line["case"])):  # full first, depth last, small batches first
        case, found = line["case"], {row["name"]: row for row in line["results"]}
        what = case.get("input") or ("1 tile" if case["batch"] == 1 else f"{case['batch']} tiles")
        cells = [words("{ratio:x} ({max_difference:.0e})", found[name]) if name in found else "" for name in names]
        first = f"{found[baseline]['ms']['median']:.0f} ms"
        rows.append((f"{case['network']}, {case['size']}", f"{what} [{line['machine']}]", first, *cells))
    return (
        "Each network by itself (weights of a fixed seed), each engine in its own process, all in turn, in two sizes: "
        "the published ones (`full`) and those of the default bundle (`small`). Cells are ratios of times, round by "
        "round; in brackets is the largest difference from PyTorch, of a tile's score or relative to the depth's range."
        "\n\n" + table(("network", "input", baseline, *names), rows)
    )


def precisions(accuracy: Line | None) -> str:
    """How far scores move in each precision and engine, as Markdown; "" if nothing was measured."""
    if accuracy is None:
        return ""
    first = {row["bundle"]: row for row in accuracy["rows"]}
    said = [
        "{small[images]} distorted photographs, {side} pixels along the longer side, are scored from pixels on through "
        "both networks. `small` is compared with its own fp32 file on ONNX Runtime; its scores of these photographs "
        "have a standard deviation of {small[spread]:.2f}."
    ]
    whats = {"full": "which has the published sizes", "glintiqa": "GlintIQA as published, without a depth network"}
    for name, what in whats.items():
        if f"{UNTRAINED}{name}" in first:
            said.append(
                f"`{name}`, {what} and with weights of a fixed seed, is compared with eager PyTorch in fp32 on "
                f"{{{UNTRAINED}{name}[images]}} photographs; its scores' standard deviation is "
                f"{{{UNTRAINED}{name}[spread]:.3f}}."
            )
    on: dict[str, list[str]] = {row["machine"]: [] for row in accuracy["rows"]}
    for name, row in first.items():
        on[row["machine"]].append(f"`{name.removeprefix(UNTRAINED)}`")
    told = [words(text, first | accuracy) for text in said] + [f"{', '.join(n)} ran on {m}." for m, n in on.items()]
    return f"{' '.join(told)}\n\n{precision_table(accuracy['rows'])}"


def precision_table(rows: Sequence[Line]) -> str:
    """The rows of bench/precision.py as a table."""
    engine = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
    more = [
        row
        | {"networks": row["bundle"].removeprefix(UNTRAINED), "engine": engine.get(row["backend"], row["backend"])}
        | {"verdict": "yes" if row["met"] else "**no**"}
        for row in rows
    ]
    return figures(*PRECISIONS, more)


if __name__ == "__main__":
    main()
