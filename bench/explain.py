"""Check whether `explain` finds planted faults: blur in a quarter of the picture, and blur of near or far parts.

    python bench/explain.py [--pictures DIR] [--count 100] [--json bench/results/explain.json]

A quarter (upper left and so on, in turn) is blurred: the lowest tile must be in it, and the mean of its tiles must be
below every other quarter's. Then the parts nearer than the median depth are blurred, or the farther ones, with soft
edges: `near_and_far` must say which. Depth is the model's own; scikit-image's motorcycle has measured disparity, so
there the truth is blurred. Pictures: a folder's, or scikit-image's and scikit-learn's photographs.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import precision
from numpy.typing import NDArray
from stamp import command_line, environment_stamp, write_json

from dgiqa import forward, preprocess
from dgiqa.explain import Explanation
from dgiqa.image import decode
from dgiqa.scorer import Scorer
from dgiqa.sources import Reading, expand

RESULTS = Path(__file__).parent / "results" / "explain.json"
SIGMAS = (3.0, 6.0)  # pixels of a picture of about 512
QUARTERS = ("upper left", "upper right", "lower left", "lower right")

Picture = NDArray[np.uint8]


def planted(rgb: Picture, quarter: int, sigma: float) -> tuple[Picture, tuple[slice, slice]]:
    """The picture with one of QUARTERS blurred, and that quarter's slices."""
    height, width = (side // 2 for side in rgb.shape[:2])
    y, x = quarter // 2 * height, quarter % 2 * width
    place = slice(y, y + height), slice(x, x + width)
    blurred = rgb.copy()
    blurred[place] = cv2.GaussianBlur(rgb, (0, 0), sigma)[place]
    return blurred, place


def blurred_where(rgb: Picture, where: NDArray[np.bool_], sigma: float) -> Picture:
    """The picture blurred where the mask is true, with edges as soft as the blur."""
    share = cv2.GaussianBlur(where.astype(np.float32), (0, 0), sigma)[..., None]
    return np.asarray(np.rint(rgb * (1 - share) + cv2.GaussianBlur(rgb, (0, 0), sigma) * share), np.uint8)


def found_quarter(found: Explanation, place: tuple[slice, slice]) -> dict[str, bool]:
    """Whether the lowest tile's middle is in the quarter, and whether its tiles are the lowest on average."""
    middles = found.windows + np.array(found.side) / 2
    inside = np.all([(middles[:, i] >= p.start) & (middles[:, i] < p.stop) for i, p in enumerate(place)], 0)
    height, width = (p.stop - p.start for p in place)
    quarters = (middles[:, 0] >= height) * 2 + (middles[:, 1] >= width)
    means = [found.tile_scores[quarters == quarter].mean() for quarter in range(4)]
    mine = int(quarters[inside][0])
    lowest = np.flatnonzero((found.windows == (found.lowest[0].y, found.lowest[0].x)).all(1))[0]
    return {"lowest tile": bool(inside[lowest]), "mean of tiles": int(np.argmin(means)) == mine}


def planted_blur(scorer: Scorer, pictures: list[Picture], sigma: float) -> dict[str, Any]:
    hits = [
        found_quarter(scorer.explain(changed), place)
        for number, rgb in enumerate(pictures)
        for changed, place in [planted(rgb, number % 4, sigma)]
    ]
    return {"cases": len(hits)} | {name: sum(hit[name] for hit in hits) for name in hits[0]}


def near_or_far(scorer: Scorer, rgb: Picture, depth: NDArray[Any], sigma: float) -> list[bool]:
    """Whether `near_and_far` says near if the near parts were blurred, and far if the far parts were."""
    middle = np.median(depth)
    said = [scorer.explain(blurred_where(rgb, where, sigma)).near_and_far for where in (depth > middle, depth < middle)]
    return [said[0].startswith("what is near"), said[1].startswith("what is far")]


def own_depth(scorer: Scorer, rgb: Picture) -> Picture:
    """The depth image that the model's depth network gives, uint8 [H,W]."""
    stages = scorer.stages
    assert stages.networks.depth is not None
    near = forward.depth_map(rgb, stages.networks.depth, stages.p)
    return cv2.resize(preprocess.depth_image(near, *rgb.shape[:2], stages.p), rgb.shape[1::-1])


def motorcycle() -> tuple[Picture, NDArray[np.float32]]:
    """scikit-image's stereo picture at half its size, and its disparity, which is larger for nearer things."""
    import skimage.data

    left, _, disparity = skimage.data.stereo_motorcycle()
    known = np.where(np.isfinite(disparity), disparity, np.nanmin(disparity[np.isfinite(disparity)]))
    size = left.shape[1] // 2, left.shape[0] // 2
    return cv2.resize(left, size, interpolation=cv2.INTER_AREA), cv2.resize(known.astype(np.float32), size)


def pictures_of(folder: Path | None, count: int) -> Iterator[Picture]:
    """`count` pictures; the packages' photographs are repeated mirrored and turned."""
    if folder is None:
        turned = (np.rot90(np.flip(p, 1) if i % 2 else p, i // 2) for i in range(8) for p in precision.originals())
        yield from map(np.ascontiguousarray, itertools.islice(turned, count))
    else:
        for item in itertools.islice(expand([str(folder)], Reading(recursive=True)), count):
            yield decode(Path(str(item.source)).read_bytes())


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--pictures", type=Path, help="a folder of good photographs of about 512 pixels")
    parser.add_argument("--count", type=int, default=100, help="how many")
    parser.add_argument("--bundle", default="small", help="the bundle that explains")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the figures go")
    o = parser.parse_args()
    pictures = list(pictures_of(o.pictures, o.count))
    record: dict[str, Any] = {"environment": environment_stamp(), "bundle": o.bundle, "pictures": len(pictures)}
    record["from"] = o.pictures.name if o.pictures else "scikit-image and scikit-learn"
    with Scorer(o.bundle) as scorer:
        for sigma in SIGMAS:
            record[f"quarter, sigma {sigma:g}"] = found = planted_blur(scorer, pictures, sigma)
            print(f"a quarter blurred, sigma {sigma:g}: {found}", flush=True)
            said = [near_or_far(scorer, rgb, own_depth(scorer, rgb), sigma) for rgb in pictures]
            near, far = (sum(hits) for hits in zip(*said, strict=True))
            record[f"near and far, sigma {sigma:g}"] = {"cases": len(pictures), "near": near, "far": far}
            print(f"near blurred, and said so: {near}; far: {far}, of {len(pictures)} each", flush=True)
            record[f"motorcycle, sigma {sigma:g}"] = near_or_far(scorer, *motorcycle(), sigma)
            print(f"motorcycle, measured depth: {record[f'motorcycle, sigma {sigma:g}']}", flush=True)
    write_json(o.json, record)


if __name__ == "__main__":
    main()
