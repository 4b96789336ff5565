"""--preset takes the threshold from the model, for images and videos, and says what there is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from dgiqa.bundle import Bundle
from dgiqa.cli import app
from dgiqa.scorer import Scorer


@pytest.fixture
def photo(tmp_path: Path, photos: dict[str, NDArray[np.uint8]], encode: Callable[..., bytes]) -> Path:
    path = tmp_path / "photo.png"
    path.write_bytes(encode(photos["coffee"][::2, ::2]))
    return path


def code_of(*arguments: object) -> int:
    return CliRunner().invoke(app, list(map(str, arguments))).exit_code


def test_a_preset_is_the_models_threshold(photo: Path, telling_bundle: Bundle, tiny_bundle: Bundle) -> None:
    with Scorer(telling_bundle) as scorer:
        value = scorer.score(photo).value
    for name, threshold in telling_bundle.meaning.presets.items():
        wanted = 0 if value >= threshold else 4
        assert code_of("score", photo, "--bundle", telling_bundle.path, "--preset", name) == wanted
    run = CliRunner().invoke(app, ["score", str(photo), "--bundle", str(telling_bundle.path), "--preset", "print"])
    assert run.exit_code == 2
    assert "upload, archive, curation" in " ".join(run.output.split())
    run = CliRunner().invoke(app, ["score", str(photo), "--bundle", str(tiny_bundle.path), "--preset", "upload"])
    assert run.exit_code == 2
    assert "it has none" in " ".join(run.output.split())
    both = ("score", photo, "--bundle", telling_bundle.path, "--preset", "upload", "--fail-under", "0.5")
    assert code_of(*both) == 2


def test_a_preset_gates_videos(tmp_path: Path, telling_bundle: Bundle) -> None:
    pytest.importorskip("av")
    from dgiqa.video.source import Raw

    raw = tmp_path / "clip.rgb"
    raw.write_bytes(np.random.default_rng(0).integers(0, 256, (3, 96, 128, 3), dtype=np.uint8).tobytes())
    with Scorer(telling_bundle) as scorer:
        rows = list(scorer.score_video(raw, every=0, raw=Raw.parse("128x96@5")))
    mean = np.mean([row["score"] for row in rows])
    for name, threshold in telling_bundle.meaning.presets.items():
        wanted = 0 if mean >= threshold else 4
        arguments = ("video", raw, "--raw", "128x96@5", "--frames", "all", "--bundle", telling_bundle.path)
        assert code_of(*arguments, "--preset", name) == wanted
        assert code_of(*arguments, "--preset", name, "--gate", "0.5") == 2
