"""Tone-map HDR pictures with wide primaries to sRGB, uint8, by one fixed curve for images and video."""

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from dgiqa.dtypes import Array, Float32, UInt8

PQ, HLG = 16, 18  # transfer characteristics by their numbers in ITU-T H.273
HDR = {PQ: "HDR (PQ)", HLG: "HDR (HLG)"}
WHITE_NITS = 203.0  # luminance of SDR's white in HDR (BT.2408)
HLG_PEAK_NITS = 1000.0
KNEE = 0.6  # of SDR white: below it tones are kept, above it they are rolled off towards white
BT2020_TO_709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)


def tone_map(rgb: Array, transfer: int) -> UInt8:
    """Turn coded HDR, uint16 or uint8 [H,W,3] in BT.2020, into SDR, uint8 [H,W,3] in BT.709.

    transfer: PQ (SMPTE ST 2084) or HLG (BT.2100, for a 1000-nit screen). Codes become light, where 203 nits are 1,
    in BT.709's primaries, clipped below 0. If the brightest channel x is above KNEE, it becomes KNEE + (1 - KNEE)(1 -
    exp(-(x - KNEE)/(1 - KNEE))), and the others are scaled alike, which keeps the hue. Then follows sRGB's curve. No
    metadata is used, and equal code values always give equal pixels.
    """
    rgb = rgb if rgb.dtype == np.uint16 else rgb.astype(np.uint16) * 257
    light = _pq_light()[rgb] if transfer == PQ else _hlg_light(rgb)
    light = np.maximum(cv2.transform(light, BT2020_TO_709), 0)
    peak = light.max(axis=2, keepdims=True)
    rolled = KNEE + (1 - KNEE) * (1 - np.exp(-(np.maximum(peak, KNEE) - KNEE) / (1 - KNEE)))
    light *= np.where(peak > KNEE, rolled / np.maximum(peak, 1e-6), 1)
    return np.asarray(srgb_levels()[(light * 4095 + 0.5).astype(np.uint16)])


@lru_cache(1)
def _pq_light() -> Float32:
    """Light of every 16-bit PQ code, in units of WHITE_NITS: f32 [65536]."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    power = (np.arange(65536) / 65535) ** (1 / m2)
    return (10000 / WHITE_NITS * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)).astype(np.float32)


@lru_cache(1)
def _hlg_scene() -> Float32:
    """Scene light in [0, 1] of every 16-bit HLG code: f32 [65536]."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    code = np.arange(65536) / 65535
    return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12).astype(np.float32)


def _hlg_light(rgb: NDArray[np.uint16]) -> Float32:
    """The screen's light in units of WHITE_NITS: BT.2100's system gamma 1.2 on the luminance of the scene's light."""
    scene = _hlg_scene()[rgb]
    luminance = cv2.transform(scene, np.array([[0.2627, 0.6780, 0.0593]], np.float32))
    gain = np.maximum(luminance.reshape(*scene.shape[:2], 1), 1e-6) ** 0.2
    return np.asarray(scene * gain * np.float32(HLG_PEAK_NITS / WHITE_NITS), np.float32)


@lru_cache(1)
def srgb_levels() -> UInt8:
    """The sRGB level of light in 4096 steps, 0 to 1: uint8 [4096]. Steps are coarse only in the darkest ten levels."""
    light = np.arange(4096) / 4095
    curve = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(curve * 255), np.uint8)
