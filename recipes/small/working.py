"""Pictures as the quality network sees them: a folder of working images, their depth images and labels.

    rgb.npy u8 [n,S,S,3]   depth.npy u8 [n,D,D]   labels.npz: one array [n] or [n,k] per name

All pictures are square crops, so that training reads them from memory maps without decoding. They are larger than
scoring's working image, so that a tile is reduced once, as in scoring. A tile that is reduced twice is softer than any
in scoring, and a network that learned from such tiles had SROCC 0.834 instead of 0.846 on 600 photographs.
The depth images come from the shipped depth network, at the size of its input in scoring.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from dgiqa.nn.depth import SMALL_PREPROCESS

SIDE = 512  # of a stored picture, pixels: as large as BIQ2021's photographs
DEPTH_SIDE = SMALL_PREPROCESS.depth_lower_bound  # of the depth network's input, and of a stored depth image
MEAN = np.array((0.485, 0.456, 0.406), np.float32)
STD = np.array((0.229, 0.224, 0.225), np.float32)

Bytes = NDArray[np.uint8]


class Depth:
    """The depth network of a bundle: picture u8 [S,S,3] -> depth image u8 [D,D]."""

    def __init__(self, file: Path, threads: int = 1) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def __call__(self, rgb: Bytes) -> Bytes:
        small = reduce(rgb, DEPTH_SIDE, DEPTH_SIDE).astype(np.float32) / 255
        image = np.ascontiguousarray(((small - MEAN) / STD).transpose(2, 0, 1)[None])
        depth = self._session.run(None, {"image": image})[0][0]
        low, high = float(depth.min()), float(depth.max())
        return np.asarray((depth - low) / (high - low + 1e-8) * 255).astype(np.uint8)


def reduce(rgb: Bytes, height: int, width: int) -> Bytes:
    """Preprocessing version 2's resize: by area where both sides shrink, else bilinear."""
    shrinks = height <= rgb.shape[0] and width <= rgb.shape[1]
    return np.asarray(cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR))


def square(rgb: Bytes, across: float = 0.5, size: int = SIDE) -> Bytes:
    """The square part of a picture, `across` (0..1) the way along its longer side: u8 [size,size,3]."""
    height, width = rgb.shape[:2]
    side = min(height, width)
    y, x = round((height - side) * across), round((width - side) * across)
    return reduce(np.ascontiguousarray(rgb[y : y + side, x : x + side]), size, size)


def create(folder: Path, count: int) -> tuple[Any, Any]:
    """Memory maps of `count` pictures to fill: rgb u8 [n,S,S,3], depth u8 [n,D,D]."""
    folder.mkdir(parents=True, exist_ok=True)
    rgb = np.lib.format.open_memmap(folder / "rgb.npy", "w+", np.uint8, (count, SIDE, SIDE, 3))
    depth = np.lib.format.open_memmap(folder / "depth.npy", "w+", np.uint8, (count, DEPTH_SIDE, DEPTH_SIDE))
    return rgb, depth


def save_labels(folder: Path, labels: Mapping[str, NDArray[Any]]) -> None:
    arrays: dict[str, Any] = dict(labels)
    np.savez(folder / "labels.npz", **arrays)


def load(folder: Path, mode: Literal["r", "r+"] = "r") -> tuple[Any, Any, dict[str, NDArray[Any]]]:
    """(rgb, depth, labels) of a folder; the pictures stay on disk until they are read."""
    labels = dict(np.load(folder / "labels.npz", allow_pickle=False))
    return np.load(folder / "rgb.npy", mmap_mode=mode), np.load(folder / "depth.npy", mmap_mode=mode), labels
