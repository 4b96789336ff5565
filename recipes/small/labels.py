"""A distorted picture and its original become numbers: full-reference metrics, none of them learned.

The metrics are MDSI (Nafchi 2016) and HaarPSI (Reisenhofer 2018), both from the `piq` package. `scale` turns them into
shares of people's opinions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

Float = npt.NDArray[np.float64]

METRICS = ("mdsi", "haarpsi")


def full_reference(
    reference: npt.NDArray[np.uint8], distorted: npt.NDArray[np.uint8], metrics: Sequence[str] = METRICS
) -> Float:
    """Score distorted [n,H,W,3] against reference [H,W,3], both uint8 RGB: float [n,len(metrics)], higher = better.

    Raises ValueError when the shapes disagree or a metric is unknown.
    """
    if distorted.shape[1:] != reference.shape:
        raise ValueError(f"got {distorted.shape} against {reference.shape}; wanted equal sizes")
    x, y = _to_tensor(distorted), _to_tensor(reference[None]).expand(len(distorted), -1, -1, -1)
    with torch.inference_mode():
        return np.stack([_measure(name, x, y).double().numpy() for name in metrics], 1)


def _to_tensor(images: npt.NDArray[np.uint8]) -> torch.Tensor:  # uint8 [n,H,W,3] -> f32 [n,3,H,W] in [0, 1]
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def _measure(name: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # f32 [n,3,H,W] each -> [n]
    from dgiqa.nn.backbones import import_timm

    import_timm()  # piq imports torchvision, which may need its ops declared
    import piq

    measures: dict[str, Callable[..., torch.Tensor]] = {
        "mdsi": lambda *images, **options: -piq.mdsi(*images, **options),
        "haarpsi": piq.haarpsi,
    }
    if name not in measures:
        raise ValueError(f"got metric {name!r}; wanted one of {tuple(measures)}")
    return measures[name](x, y, reduction="none", data_range=1.0)
