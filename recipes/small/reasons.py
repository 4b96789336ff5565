"""The reasons of a made picture: the name of every distortion type's fault, and from which level on it counts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from recipes.small.scale import HUMAN

Bytes = NDArray[np.uint8]
REASONS = (
    "blur",
    "noise",
    "compression",
    "dark",
    "bright",
    "low contrast",
    "colour",
    "low resolution",
    "sharpened",
    "blocks",
)
WHY = {
    "gaussian_blur": "blur",
    "lens_blur": "blur",
    "motion_blur": "blur",
    "depth_motion_blur": "blur",
    "depth_defocus": "blur",
    "denoise": "blur",
    "color_diffusion": "colour",
    "color_shift": "colour",
    "color_quantization": "colour",
    "color_saturation_1": "colour",
    "color_saturation_2": "colour",
    "quantization": "colour",
    "jpeg2000": "compression",
    "jpeg": "compression",
    "codec": "compression",
    "white_noise": "noise",
    "white_noise_color": "noise",
    "impulse_noise": "noise",
    "multiplicative_noise": "noise",
    "grain": "noise",
    "brighten": "bright",
    "darken": "dark",
    "low_light": "dark",
    "contrast_change": "low contrast",
    "haze": "low contrast",
    "lens_flare": "low contrast",
    "pixelate": "low resolution",
    "small": "low resolution",
    "high_sharpen": "sharpened",
    "non_eccentricity_patch": "blocks",
    "color_block": "blocks",
}


def certain(share: float) -> float:
    """How certain a reason is if its distortion leaves `share` of the quality: 1 below 0.8, 0 above 0.93, else 0.5."""
    return 1.0 if share < 0.8 else 0.0 if share > 0.93 else 0.5


def human_share(kind: str, level: int) -> float:
    like = {"grain": "white_noise_color", "small": "pixelate"}.get(kind, kind)
    return HUMAN[like][level - 1]


def reasons_of(kind: str, level: int, before: Bytes, after: Bytes) -> dict[str, float]:
    """The reasons of a picture after one distortion: name -> how certain it is."""
    sure = certain(human_share(kind, level))
    if kind == "mean_shift":
        return {"bright" if after.mean() > before.mean() else "dark": sure}
    result = {WHY[kind]: sure} if kind in WHY else {}
    if kind == "low_light" and level >= 4:
        result["noise"] = 0.5
    return result


def as_list(reasons: Mapping[str, float]) -> list[float]:
    """How certain each of REASONS is, in order; 0 for a missing one."""
    return [reasons.get(name, 0.0) for name in REASONS]
