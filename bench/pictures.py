"""Make the JPEG photographs that the benches score from `examples/`: of any size, the same on every machine.

They are crops of real photographs under blur, noise, darkness and compression of several strengths, so that scores
spread and a rank correlation means something.
"""

from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

EXAMPLES = Path(__file__).parent.parent / "examples"
ORIGINALS = ("astronaut", "chelsea", "coffee")
SIZE = (1024, 768)  # width x height


def photographs(count: int, size: tuple[int, int] = SIZE) -> list[bytes]:
    """`count` different JPEGs of width x height `size`."""
    return [photograph(number, size) for number in range(count)]


def saved(folder: Path, count: int, size: tuple[int, int] = SIZE) -> list[str]:
    """Save the same photographs in a new folder. Return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:03}.jpg" for number in range(count)]
    for path, data in zip(paths, photographs(count, size), strict=True):
        path.write_bytes(data)
    return [str(path) for path in paths]


def photograph(number: int, size: tuple[int, int] = SIZE) -> bytes:
    """The JPEG with this number: a crop of an original, resized to `size`, then spoilt in one of five ways."""
    rng = np.random.default_rng(number)
    original = _original(ORIGINALS[number % len(ORIGINALS)])
    picture = cv2.resize(_crop(original, size[0] / size[1], rng), size, interpolation=cv2.INTER_CUBIC)
    spoilt, quality = _spoil(np.asarray(picture), number, rng)
    return bytes(cv2.imencode(".jpg", spoilt, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes())


@cache
def _original(name: str) -> NDArray[np.uint8]:
    picture = cv2.imread(str(EXAMPLES / f"{name}.jpg"), cv2.IMREAD_COLOR)
    if picture is None:
        raise FileNotFoundError(f"{EXAMPLES / name}.jpg cannot be read; run this from a checkout of the repository")
    return np.asarray(picture, np.uint8)


def _crop(picture: NDArray[np.uint8], aspect: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A random window with this aspect, 80 to 100 % of the largest possible."""
    height, width = picture.shape[:2]
    share = rng.uniform(0.8, 1.0)
    w = max(1, int(min(width, height * aspect) * share))
    h = max(1, min(height, int(w / aspect)))
    y, x = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
    return picture[y : y + h, x : x + w]


def _spoil(picture: NDArray[np.uint8], number: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], int]:
    """(the picture with a fault of some strength, JPEG quality)."""
    strength = 1 + number // 5 % 4
    match number % 5:
        case 0:
            return picture, 92
        case 1:
            return np.asarray(cv2.GaussianBlur(picture, None, 1.5 * strength), np.uint8), 92
        case 2:
            noise = rng.normal(0, 8 * strength, picture.shape)
            return np.clip(picture + noise, 0, 255).astype(np.uint8), 92
        case 3:
            return (picture * (1 - 0.2 * strength)).astype(np.uint8), 92
        case _:
            return picture, max(5, 40 - 10 * strength)
