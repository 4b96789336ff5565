"""What a bundle says about its scores, read from the manifest: reasons, presets, the scale, and a map onto another.

    "reasons":     [{"name": "blur", "threshold": 0.5}, ...]       columns of the output `reasons`, in order
    "presets":     {"upload": 0.45, ...}                           scores from which a picture passes
    "scale":       {"kind": "mos", "interval": 0.1, "range": [0, 1], "raw": false}
    "calibration": {"knots": [[0, 0.02], ..., [1, 0.97]]}          tile score -> tile score, strictly increasing

All four are optional: older bundles have none of them.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dgiqa.dtypes import Float32, Float64

MAX_KNOTS = 256
# The words for a reader; a reason without an entry is shown by its name.
WORDS = {
    "blur": "blurred",
    "noise": "noisy",
    "compression": "compressed",
    "dark": "too dark",
    "bright": "too bright",
    "low contrast": "low contrast",
    "colour": "wrong colours",
    "low resolution": "low resolution",
    "sharpened": "oversharpened",
    "blocks": "blocky",
}


@dataclass(frozen=True)
class Reason:
    """One kind of fault. It counts when its mean probability over the tiles is `threshold` or more."""

    name: str
    threshold: float = 0.5


@dataclass(frozen=True)
class Meaning:
    """The meaning of a bundle's scores: reasons, presets, scale and map.

    reasons: in the order of the columns. presets: name -> score from which a picture passes, in [0, 1].
    kind: the kind of scale ("mos": mean opinions of people), or "". interval: half the width, in the score's unit, of
    the interval that holds 80 % of mean opinions or labels; None where it is not known. range: 0 and 1 on the labels'
    own scale, where the best may be the lowest. raw: the network gives scores on that scale instead of 0..1; those
    beyond its ends count as the ends. knots: (x, y) of the map that every tile's score goes through; without any, the
    score stays as it is.
    """

    reasons: tuple[Reason, ...] = ()
    presets: Mapping[str, float] = field(default_factory=dict)
    kind: str = ""
    interval: float | None = None
    range: tuple[float, float] = (0.0, 1.0)
    knots: tuple[tuple[float, float], ...] = ()
    raw: bool = False

    def mapped(self, scores: Float32) -> Float32:
        """Tile scores f32 [n] of the network -> tile scores f32 [n] on the bundle's scale."""
        if self.raw:
            low, high = self.range
            scores = np.clip((scores - np.float32(low)) / np.float32(high - low), 0, 1)
        if not self.knots:
            return scores
        x, y = np.array(self.knots).T
        return np.asarray(np.interp(scores, x, y), np.float32)  # NaN stays NaN

    def unmapped(self, scores: ArrayLike) -> Float64:
        """Scores on the bundle's scale -> scores before the map, f64; where the map is flat, one of its values."""
        x, y = np.array(self.knots or ((0, 0), (1, 1)), np.float64).T
        return np.asarray(np.interp(np.asarray(scores, np.float64), y, x))

    def preset(self, name: str) -> float:
        """The threshold of a preset. Raises ValueError, which names the presets, for an unknown one."""
        if name not in self.presets:
            there = f"it has: {', '.join(self.presets)}" if self.presets else "it has none; give the threshold itself"
            raise ValueError(f"this model has no preset {name!r}; {there}")
        return self.presets[name]

    def told(self, probabilities: Mapping[str, float]) -> list[str]:
        """Names of the reasons that reach their thresholds, the one furthest above first."""
        margins = {r.name: probabilities[r.name] - r.threshold for r in self.reasons if r.name in probabilities}
        return sorted((name for name, margin in margins.items() if margin >= 0), key=lambda name: -margins[name])

    def as_manifest(self) -> dict[str, Any]:
        """The manifest's keys; empty ones are left out."""
        scale: dict[str, Any] = {"kind": self.kind} if self.kind else {}
        scale |= {} if self.interval is None else {"interval": self.interval}
        scale |= {} if self.range == (0.0, 1.0) else {"range": list(self.range)}
        scale |= {"raw": True} if self.raw else {}
        record = {
            "reasons": [{"name": r.name, "threshold": r.threshold} for r in self.reasons],
            "presets": dict(self.presets),
            "scale": scale,
            "calibration": {"knots": [list(knot) for knot in self.knots]} if self.knots else {},
        }
        return {key: value for key, value in record.items() if value}


def words(reasons: Sequence[str]) -> str:
    """Reasons in words for a reader: "blurred, noisy"."""
    return ", ".join(WORDS.get(name, name) for name in reasons)


def verdict(score: float, threshold: float | None) -> str | None:
    """ "pass" for a score of at least the threshold, else "fail"; None without a threshold."""
    if threshold is None:
        return None
    return "pass" if score >= threshold else "fail"


def parse_meaning(manifest: Mapping[str, Any]) -> Meaning:
    """The Meaning in a manifest. Raises ValueError for a malformed one."""
    try:
        scale, reasons = _object(manifest, "scale"), manifest.get("reasons", [])
        alone = isinstance(reasons, list) and len({r["name"] for r in reasons}) == len(reasons)
        require(alone, f"got {reasons!r:.200}, wanted a list of different names as reasons")
        interval, raw = scale.get("interval"), scale.get("raw", False)
        low, high = map(number, scale.get("range", (0, 1)))
        require(low != high, f"got {low:g} twice, wanted two different ends of a range")
        require(isinstance(raw, bool), f"got {raw!r:.40}, wanted true or false as raw")
        return Meaning(
            reasons=tuple(Reason(_name(r["name"]), _unit(r["threshold"])) for r in reasons),
            presets={_name(name): _unit(value) for name, value in _object(manifest, "presets").items()},
            kind=str(scale.get("kind", "")),
            interval=None if interval is None else _unit(interval),
            range=(low, high),
            raw=raw,
            knots=_knots(_object(manifest, "calibration").get("knots", ())),
        )
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the manifest's reasons, presets, scale or calibration are malformed ({error!r})") from error


def require(right: object, otherwise: str) -> None:
    """Raise ValueError(otherwise) unless `right` holds."""
    if not right:
        raise ValueError(otherwise)


def number(value: Any) -> float:
    """A finite number of a manifest. Raises ValueError."""
    right = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    require(right, f"{value!r:.40} is not a number")
    return float(value)


def _object(manifest: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = manifest.get(key, {})
    require(isinstance(value, dict), f"got {value!r:.40}, wanted an object as {key}")
    return dict(value)


def _name(value: Any) -> str:
    right = isinstance(value, str) and 0 < len(value) <= 64 and value.isprintable()
    require(right, f"got {value!r:.80}, wanted a name")
    return str(value)


def _unit(value: Any) -> float:
    require(0 <= number(value) <= 1, f"got {value!r}, wanted a number in 0..1")
    return float(value)


def _knots(value: Any) -> tuple[tuple[float, float], ...]:
    knots = tuple((_unit(x), _unit(y)) for x, y in value)
    rising = all(a < c and b < d for (a, b), (c, d) in itertools.pairwise(knots))
    right = not knots or (2 <= len(knots) <= MAX_KNOTS and rising and knots[0][0] == 0 and knots[-1][0] == 1)
    require(right, f"a map has 2..{MAX_KNOTS} knots that rise strictly, from score 0 to 1, got {knots[:4]}")
    return knots
