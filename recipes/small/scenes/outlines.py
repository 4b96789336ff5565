"""A seed becomes an outline f32 [h,w], solid above 0.5, along which flat upright sheets are cut."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from recipes.small.scenes.geometry import Array
from recipes.small.scenes.textures import Random, noise


def _blob(rng: Random) -> Array:
    """A leafy lump: a circle whose radius wobbles, frayed by noise."""
    y, x = np.mgrid[-1:1:256j, -1:1:256j].astype(np.float32)
    angle = np.arctan2(y, x)
    radius = 0.72 + sum(rng.normal(0, 0.09) * np.cos(k * angle + rng.uniform(0, 6)) for k in range(1, 6))
    fray = rng.uniform(0, 0.5) * (noise(rng, (256, 256), 1.3) - 0.5)
    return np.clip((radius - np.hypot(x, y) + fray) * 12 + 0.5, 0, 1).astype(np.float32)


def _tree(rng: Random) -> Array:
    """A trunk, boughs and a frayed crown with holes."""
    canvas = np.zeros((320, 224), np.float32)
    y, x = np.mgrid[0:320, 0:224].astype(np.float32)
    crown = np.zeros_like(canvas)
    for _ in range(int(rng.integers(3, 8))):
        cx, cy, r = rng.uniform(60, 164), rng.uniform(60, 170), rng.uniform(30, 60)
        crown = np.maximum(crown, 1 - np.hypot(x - cx, y - cy) / r)
    leaves = (crown + (noise(rng, canvas.shape, 1.0) - 0.5) * rng.uniform(0.5, 1.3)) * 6
    canvas[crown > 0] = np.clip(leaves[crown > 0], 0, 1)
    cv2.line(canvas, (112, 319), (112 + int(rng.integers(-12, 13)), 110), 1.0, int(rng.integers(6, 20)), cv2.LINE_AA)
    for _ in range(4):
        end = (int(rng.integers(50, 175)), int(rng.integers(60, 150)))
        cv2.line(canvas, (112, int(rng.integers(170, 230))), end, 1.0, int(rng.integers(2, 7)), cv2.LINE_AA)
    return canvas


def _person(rng: Random) -> Array:
    """Head, body, arms and legs in some pose."""
    canvas = np.zeros((320, 144), np.float32)
    cv2.ellipse(canvas, (72, 34), (20, 28), 0, 0, 360, 1.0, -1, cv2.LINE_AA)
    body = np.array(
        [[72 - 34, 72], [72 + 34, 72], [72 + int(rng.integers(18, 32)), 190], [72 - int(rng.integers(18, 32)), 190]]
    )
    cv2.fillPoly(canvas, [body], 1.0, cv2.LINE_AA)
    cv2.line(canvas, (72, 50), (72, 80), 1.0, 18)
    for side in (-1, 1):
        foot = (72 + side * int(rng.integers(8, 44)), 312)
        cv2.line(canvas, (72 + side * 14, 180), foot, 1.0, 22, cv2.LINE_AA)
        hand = (72 + side * int(rng.integers(30, 62)), int(rng.integers(60, 210)))
        elbow = (72 + side * int(rng.integers(40, 60)), 130)
        cv2.line(canvas, (72 + side * 28, 80), elbow, 1.0, 14, cv2.LINE_AA)
        cv2.line(canvas, elbow, hand, 1.0, 13, cv2.LINE_AA)
    return canvas


def _fence(rng: Random) -> Array:
    """Pales and rails."""
    canvas = np.zeros((192, 448), np.float32)
    step, wide = int(rng.integers(18, 60)), float(rng.uniform(0.15, 0.6))
    for left in range(4, 448 - step, step):
        canvas[int(rng.integers(0, 10)) :, left : left + max(4, int(step * wide))] = 1
    for _ in range(int(rng.integers(1, 4))):
        top = int(rng.integers(10, 170))
        canvas[top : top + int(rng.integers(5, 16))] = 1
    return canvas


def _frame(rng: Random) -> Array:
    """Wheels, tubes and struts: the thin see-through structures of bicycles, chairs and machines."""
    canvas = np.zeros((256, 384), np.float32)
    hubs = [(int(rng.integers(65, 130)), 186), (int(rng.integers(255, 320)), 186)]
    thick = int(rng.integers(4, 12))
    for hub in hubs:
        radius = int(rng.integers(45, 62))
        cv2.circle(canvas, hub, radius, 1.0, thick, cv2.LINE_AA)
        for angle in np.arange(0, np.pi, np.pi / int(rng.integers(3, 9))):
            reach = (np.array([np.cos(angle), np.sin(angle)]) * radius).astype(int)
            cv2.line(
                canvas,
                (hub[0] - reach[0], hub[1] - reach[1]),
                (hub[0] + reach[0], hub[1] + reach[1]),
                1.0,
                3,
                cv2.LINE_AA,
            )
    knots = [*hubs, *((int(x), int(y)) for x, y in rng.integers((60, 20), (330, 170), (6, 2)))]
    for _ in range(int(rng.integers(7, 14))):
        a, b = rng.choice(len(knots), 2, replace=False)
        cv2.line(canvas, knots[a], knots[b], 1.0, int(rng.integers(4, 16)), cv2.LINE_AA)
    lump = np.array(knots[2:6]) + rng.integers(-15, 16, (4, 2))
    cv2.fillPoly(canvas, [cv2.convexHull(lump.astype(np.int32))], 1.0, cv2.LINE_AA)
    return canvas


def _grass(rng: Random) -> Array:
    """A tuft of bent blades."""
    canvas = np.zeros((224, 288), np.float32)
    for _ in range(int(rng.integers(15, 60))):
        foot, tip = rng.uniform(60, 230), rng.uniform(20, 268)
        s = np.linspace(0, 1, 9)
        blade = np.stack([foot + (tip - foot) * s**2, 223 - s * rng.uniform(70, 210)], 1).astype(np.int32)
        cv2.polylines(canvas, [blade], False, 1.0, int(rng.integers(3, 9)), cv2.LINE_AA)
    return canvas


def wheel(rng: Random) -> Array:
    """A tyre, a rim, spokes and a hub."""
    canvas = np.zeros((256, 256), np.float32)
    radius = 108
    tyre = int(rng.integers(12, 40))
    cv2.circle(canvas, (128, 128), radius + 6 - tyre // 2, 1.0, tyre, cv2.LINE_AA)
    cv2.circle(canvas, (128, 128), int(rng.integers(8, 40)), 1.0, -1, cv2.LINE_AA)
    for angle in np.arange(0, 2 * np.pi, 2 * np.pi / int(rng.integers(3, 24))):
        tip = (128 + int(radius * np.cos(angle)), 128 + int(radius * np.sin(angle)))
        cv2.line(canvas, (128, 128), tip, 1.0, int(rng.integers(2, 9)), cv2.LINE_AA)
    return canvas


OUTLINES: tuple[Callable[[Random], Array], ...] = (_blob, _tree, _person, _fence, _frame, _grass)
