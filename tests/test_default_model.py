"""The model that ships: small, labelled for what it is, and its score falls as pictures it never saw get worse."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
from sklearn.datasets import load_sample_image

from dgiqa import Scorer, load_bundle
from dgiqa.nn.network import DGIQA, SMALL
from recipes.small.distortions import LEVELS, distort

MEGABYTES = 20  # in fp32; half of it in fp16
# How often neighbouring levels (pristine, 1 .. 5) of four unseen photographs come out in order, with one pair of the 20
# to spare: measured 0.85, 0.95, 0.90 and 0.90.
IN_ORDER = {"gaussian_blur": 0.8, "white_noise": 0.9, "jpeg": 0.85, "low_light": 0.85}


# ru_maxrss of a child begins at its parent's size; VmHWM is the process's own.
SCORE_AND_TELL_PEAK = """
import sys
from dgiqa.cli import main
try:
    main()
finally:
    print(open("/proc/self/status").read(), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def photographs() -> list[np.ndarray]:
    pictures = [skimage.data.astronaut(), skimage.data.coffee(), load_sample_image("china.jpg")]
    pictures.append(skimage.data.rocket())
    return [_shrink(picture) for picture in pictures]


def _shrink(picture: np.ndarray) -> np.ndarray:
    scale = 384 / min(picture.shape[:2])
    size = (round(picture.shape[1] * scale), round(picture.shape[0] * scale))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


@pytest.fixture(scope="module")
def scorer():
    with Scorer("small") as opened:
        yield opened


@pytest.fixture(scope="module")
def pristine(scorer, photographs):
    return [scorer.score(picture).value for picture in photographs]


@pytest.mark.parametrize("kind", IN_ORDER)
def test_the_score_falls_as_an_unseen_photograph_gets_worse(kind, scorer, photographs, pristine):
    levels = range(1, LEVELS + 1)
    steps = [distort(picture, kind, level, n) for n, picture in enumerate(photographs) for level in levels]
    scores = np.array([row.value for row in scorer.score_many(steps, on_error="raise")]).reshape(len(photographs), -1)
    scores = np.column_stack([pristine, scores])
    pairs = [a > b for row in scores for a, b in itertools.pairwise(row)]
    print(f"{kind}: {np.mean(pairs):.2f} of neighbouring levels in order, first to last {scores[:, 0] - scores[:, -1]}")
    assert np.mean(pairs) >= IN_ORDER[kind]
    assert (scores[:, 0] - scores[:, -1]).mean() > 0.3


def saved(picture: np.ndarray, suffix: str, *options: int) -> bytes:
    """A picture uint8 [H,W,3] RGB as a file's bytes."""
    done, data = cv2.imencode(suffix, picture[..., ::-1], list(options))
    assert done
    return data.tobytes()


FILES = {
    "PNG": (".png",),
    "JPEG 85": (".jpg", cv2.IMWRITE_JPEG_QUALITY, 85),
    "JPEG 70": (".jpg", cv2.IMWRITE_JPEG_QUALITY, 70),
    "WebP 80": (".webp", cv2.IMWRITE_WEBP_QUALITY, 80),
}


def test_a_blurred_photograph_stays_bad_however_it_is_saved(scorer, photographs):
    blurred = [cv2.GaussianBlur(picture, (0, 0), 8) for picture in photographs]
    found = {name: [scorer.score(saved(picture, *file)).value for picture in blurred] for name, file in FILES.items()}
    clean = [scorer.score(saved(picture, *FILES["JPEG 70"])).value for picture in photographs]
    assert max(map(max, found.values())) < min(clean) - 0.1
    for name, scores in found.items():
        assert np.median(np.abs(np.subtract(scores, found["PNG"]))) < 0.05, name


def test_noise_and_dither_hide_no_fault(scorer, photographs):
    rng = np.random.default_rng(0)

    def noisy(picture: np.ndarray, deviation: float) -> np.ndarray:
        return np.clip(picture + rng.normal(0, deviation, picture.shape), 0, 255).round().astype(np.uint8)

    for picture in photographs:
        blurred = cv2.GaussianBlur(picture, (0, 0), 8)
        blocky = cv2.imdecode(
            np.frombuffer(saved(picture, ".jpg", cv2.IMWRITE_JPEG_QUALITY, 5), np.uint8), cv2.IMREAD_COLOR
        )[..., ::-1]
        for spoilt, deviation in ((blurred, 2), (blocky, 0.6)):
            assert scorer.score(noisy(spoilt, deviation)).value < scorer.score(spoilt).value + 0.05


def test_a_covered_lens_never_passes_and_black_and_white_loses_little(scorer, photographs):
    upload = scorer.bundle.meaning.presets["upload"]
    rng = np.random.default_rng(1)
    for level, deviation in itertools.product((2, 8, 20), (0, 2, 6)):
        dark = np.clip(rng.normal(level, deviation, (480, 640, 3)), 0, 255).astype(np.uint8)
        assert scorer.score(saved(dark, ".jpg")).value < upload, (level, deviation)
    for picture in photographs[:3]:  # the fourth is a rocket at night
        grey = np.repeat(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None], 3, 2)
        assert scorer.score(saved(grey, ".jpg")).value > scorer.score(saved(picture, ".jpg")).value - 0.2


def test_it_fits_in_the_wheel():
    entries = load_bundle("small").manifest["files"]
    assert entries["depth.onnx"]["bytes"] + entries["quality.onnx"]["bytes"] <= MEGABYTES * 1e6


def test_one_command_is_quick_and_small(tmp_path):
    photograph = tmp_path / "photograph.jpg"
    cv2.imwrite(str(photograph), cv2.resize(load_sample_image("china.jpg"), (1024, 768)))

    def of_a_process(code, *arguments):
        before = os.times()
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        after = os.times()
        return sum(after[2:4]) - sum(before[2:4]), done.stderr  # of children: user's and system's

    ours, libraries = [], []
    for _ in range(20):  # in turn, so that a busy machine slows both
        libraries.append(of_a_process("import numpy, cv2, PIL.Image, onnxruntime")[0])
        seconds, told = of_a_process(SCORE_AND_TELL_PEAK, "score", str(photograph))
        ours.append(seconds)
        assert int(told.split("VmHWM:")[1].split()[0]) / 1024 < 400
        if min(ours) < 6 * min(libraries):
            return
    pytest.fail(f"it takes {min(ours):.2f} s of the processor, the libraries {min(libraries):.2f} s")


def test_it_says_what_it_is():
    bundle = load_bundle("small")
    assert "not the paper's weights" in bundle.manifest["title"]
    assert all(entry["licence"] and entry["source"] for entry in bundle.manifest["files"].values())
    assert bundle.manifest["parity"]["score"]["max_difference"] <= 1e-4


def test_it_is_the_papers_architecture_with_small_numbers():
    model = DGIQA(SMALL)
    assert {name.split(".")[0] for name in model.state_dict()} >= {
        "backbone",
        "depth_backbone",
        "tcb1",
        "tcb4_depth",
        "depth_guided_cross_attention",
        "refinement_attention",
        "dilated_stack",
        "fc",
    }
    assert sum(p.numel() for p in model.parameters()) < 3.3e6


def test_the_examples_are_ranked_as_anyone_would(scorer):
    folder = Path(__file__).parent.parent / "examples"
    scores = {path.stem: scorer.score(path).value for path in folder.glob("*.jpg")}
    degraded = [name for name in scores if "-" in name]
    assert len(degraded) >= 5
    for name in degraded:
        assert scores[name] < scores[name.split("-")[0]], name
