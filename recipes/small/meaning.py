"""The meaning of the default model's scores: thresholds of its reasons, presets, and the interval around a score.

    python -m recipes.small.meaning --bundle runs/small/bundle --biq BIQ2021 --clean FOLDER --out meaning.json

Nothing here uses the pictures that the card is measured on. The opinions come from the training part that `learn` keeps
out of training, and the reasons are tried on chains of other clean photographs (`--clean`; CID22's training part, say).

    thresholds   per reason: the one of the highest F1 among those at which at least half of the named faults are real
    presets      upload     98 % of the photographs that people called good pass; or fewer, down to 95 %, while more
                            than one in twenty unusable pictures would pass as well
                 archive    95 % of the photographs that pass were called fair or better
                 curation   90 % of the photographs that pass were called good
    interval     half the width around a score that holds 80 % of the opinions

"Good" is a mean opinion of 0.7 or more, "fair" one of 0.5 or more. "Unusable" are distortions at level 5 that leave
less than 0.3 of the quality for people (KADID-10k); a darkened or paler picture is not. `bundle --meaning` puts the
result into the manifest.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dgiqa.nn.datasets import TRAIN, load_dataset
from recipes.small import chains, encoding, measures
from recipes.small.distortions import LEVELS
from recipes.small.learn import VALIDATION
from recipes.small.measures import FAIR, GOOD, Judge
from recipes.small.reasons import REASONS, human_share

Float = NDArray[np.float64]
KEPT, AT_LEAST = 0.98, 0.95  # share of good photographs that passes `upload`
LET_IN = 0.05  # share of unusable pictures that should pass at most
LEFT = 0.3  # share of the quality below which a picture is unusable
PURE = {"archive": (FAIR, 0.95), "curation": (GOOD, 0.9)}  # least opinion, and its share of what passes
FEWEST = 20  # passing pictures that a share is computed from
INSIDE = 0.8
RIGHT = 0.5  # least precision of a reason
SEED = 20  # of the chains; the card uses another


def opinions_kept(root: Path) -> list[tuple[Path, float]]:
    """BIQ2021's photographs and opinions that neither training nor the card uses."""
    records = load_dataset("biq2021", root).part(TRAIN).records
    kept = np.random.default_rng(7).permutation(len(records))[:VALIDATION]
    return [(records[i].path, records[i].score) for i in kept]


def presets_of(found: Float, wanted: Float, beyond_use: Float) -> dict[str, float]:
    """Scores from which a picture passes; see the top of the file. Two decimals, rising from `upload` to `curation`.

    found, wanted: scores and opinions f [n] of photographs. beyond_use: scores f [m] of unusable pictures. If no
    threshold reaches a share, it is the highest one that was tried.
    """
    good = found[wanted >= GOOD]
    low, high = (np.floor(100 * np.quantile(good, 1 - share)) / 100 for share in (KEPT, AT_LEAST))
    steps = [t for t in np.arange(low, high, 0.01).round(2) if (beyond_use >= t).mean() <= LET_IN]
    lowest = float(steps[0] if steps else high)
    result = {"upload": lowest}
    for name, (least, share) in PURE.items():
        lowest = max(lowest, _purest(found, wanted >= least, share))
        result[name] = lowest
    return result


def _purest(found: Float, right: NDArray[np.bool_], share: float) -> float:
    """The lowest threshold, two decimals, from which on `share` of the passing pictures is right at each threshold."""
    steps = [t for t in np.arange(0, 1, 0.01).round(2) if (found >= t).sum() >= FEWEST]
    short = [t for t in steps if right[found >= t].mean() < share]
    return float(steps[0] if not short else min(round(short[-1] + 0.01, 2), steps[-1]))


def evidence(found: Float, wanted: Float, presets: dict[str, float]) -> dict[str, Any]:
    """Each preset's effect on the photographs it was chosen on: shares that pass, by opinion, and shares of these."""
    bands = {"good": wanted >= GOOD, "fair": (wanted >= FAIR) & (wanted < GOOD), "bad": wanted < FAIR}
    return {
        name: {
            "passes": {band: float((found[which] >= limit).mean()) for band, which in bands.items() if which.any()},
            "of_passed": {band: float(which[found >= limit].mean()) for band, which in bands.items()},
        }
        for name, limit in presets.items()
        if (found >= limit).any()
    }


def thresholds_of(judge: Judge, clean: Sequence[measures.Bytes], rounds: int) -> dict[str, float]:
    """The threshold of the best F1 for each reason, on chains of clean photographs, saved as users save them."""
    found, truth = measures.reason_pictures(clean, SEED, rounds)
    scored = judge.full(found)
    probability = {name: np.array([s.reasons[name] for s in scored]) for name in scored[0].reasons}
    return {name: round(best_f1(p, truth[:, REASONS.index(name)]), 3) for name, p in probability.items()}


def best_f1(probability: Float, truth: Float) -> float:
    """The threshold of the highest F1 whose precision is RIGHT or more, halfway between two of f [n].

    If there is none, it is 1, so that the reason is never named. A truth of 0.5 does not count.
    """
    sure = truth != 0.5
    order = np.argsort(-probability[sure], kind="stable")
    p, hit = probability[sure][order], truth[sure][order] == 1
    told = np.arange(1, len(hit) + 1)
    f1 = np.where(np.cumsum(hit) >= RIGHT * told, 2 * np.cumsum(hit) / (told + hit.sum()), 0)
    f1[:-1][p[:-1] == p[1:]] = 0  # there is no threshold between equal values
    last = int(np.argmax(f1))
    return float((p[last] + (p[last + 1] if last + 1 < len(p) else 0.0)) / 2) if f1[last] > 0 else 1.0


def scores_of_the_worst(judge: Judge, clean: Sequence[measures.Bytes]) -> dict[str, Float]:
    """Scores of each bad type at level 5, saved as JPEG 85."""
    return {
        kind: judge(encoding.save(chains.apply(a, kind, 5, n), "jpeg", 85) for n, a in enumerate(clean))
        for kind in measures.BAD
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m recipes.small.meaning", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--biq", type=Path, required=True, help="folder of BIQ2021")
    parser.add_argument("--clean", type=Path, required=True, help="clean photographs, not those of the card")
    parser.add_argument("--most", type=int, default=30, help="number of clean photographs to use  [%(default)s]")
    parser.add_argument("--rounds", type=int, default=6, help="chains of each  [%(default)s]")
    parser.add_argument("--out", type=Path, required=True)
    o = parser.parse_args(arguments)
    cv2.setNumThreads(1)
    judge, clean = Judge(o.bundle), measures.read(o.clean, o.most)
    rows = opinions_kept(o.biq)
    found, wanted = judge(path for path, _ in rows), np.array([mos for _, mos in rows])
    worst = scores_of_the_worst(judge, clean[: max(1, o.most // 2)])
    presets = presets_of(
        found, wanted, np.concatenate([worst[kind] for kind in worst if human_share(kind, LEVELS) < LEFT])
    )
    meaning = {
        "thresholds": thresholds_of(judge, clean, o.rounds),
        "presets": presets,
        "interval": round(float(np.quantile(np.abs(found - wanted), INSIDE)), 3),
        "evidence": {
            "bundle": judge.scorer.bundle.id,
            "opinions": len(rows),
            "presets": evidence(found, wanted, presets),
            "level 5 that passes": {
                kind: {name: float((scores >= limit).mean()) for name, limit in presets.items()}
                for kind, scores in worst.items()
            },
        },
    }
    o.out.write_text(measures.as_json(meaning))
    print(measures.as_json(meaning))
    return 0


if __name__ == "__main__":
    sys.exit(main())
