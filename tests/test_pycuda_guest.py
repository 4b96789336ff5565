"""Arrays, streams and the context of a PyCUDA program are used as they are."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dgiqa import spec
from dgiqa.bundle import load_bundle
from dgiqa.runtime.ort import OrtSession

PICTURE = Path(__file__).parent.parent / "examples" / "coffee.jpg"


def test_the_example_scores_the_gpu_array_on_its_stream_inside_its_context(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], script: Callable[[str], ModuleType]
) -> None:
    seen: list[Any] = []
    context = SimpleNamespace(push=lambda: seen.append("push"), pop=lambda: seen.append("pop"))
    driver = ModuleType("pycuda.driver")
    vars(driver).update(
        init=lambda: seen.append("init"),
        Device=lambda ordinal: SimpleNamespace(retain_primary_context=lambda: context),
        Stream=lambda: "the stream",
    )
    package, arrays = ModuleType("pycuda"), ModuleType("pycuda.gpuarray")
    arrays.to_gpu_async = lambda array, stream: ("on the gpu", array.shape, array.dtype, stream)  # type: ignore[attr-defined]
    vars(package).update(driver=driver, gpuarray=arrays)
    for module in (package, driver, arrays):
        monkeypatch.setitem(sys.modules, module.__name__, module)

    class Scorer:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            seen.append((arguments, options))

        def __enter__(self) -> Scorer:
            return self

        def __exit__(self, *error: object) -> None:
            seen.append("closed")

        def score(self, image: Any, *, stream: Any) -> str:
            seen.append((image, stream))
            return "0.5"

    module = script("examples/pycuda_guest.py")
    monkeypatch.setattr(module, "Scorer", Scorer)
    module.main([str(PICTURE), "--precision", "fp16"])
    assert capsys.readouterr().out == "0.5\n"
    image = ("on the gpu", (384, 576, 3), np.dtype(np.uint8), "the stream")
    options = {"backend": "tensorrt", "precision": "fp16"}
    assert seen == ["init", "push", (("small",), options), (image, "the stream"), "closed", "pop"]


def test_gpu_arrays_are_scored_in_place_on_a_pycuda_stream_and_context(
    need_gpu: Callable[..., None], tmp_path: Path
) -> None:
    need_gpu("pycuda", "tensorrt", "cuda")
    from pycuda import driver, gpuarray

    from dgiqa.builder.plan import build_plan
    from dgiqa.runtime.cuda import Lane
    from dgiqa.runtime.trt import TrtSession

    bundle = load_bundle("small")
    tiles = tuple((n, 3, spec.TILE, spec.TILE) for n in (1, 4, 8))
    generator = np.random.default_rng(0)
    feeds = {
        name: generator.standard_normal(tiles[1], dtype=np.float32) for name in (spec.QUALITY_RGB, spec.QUALITY_DEPTH)
    }
    wanted = OrtSession(bundle.file(spec.QUALITY_FILE)).run(feeds)[spec.QUALITY_OUTPUT]
    driver.init()
    context = driver.Device(0).make_context()  # not the primary one
    try:
        build_plan(bundle.file(spec.QUALITY_FILE), tmp_path / "plan", shapes=[dict.fromkeys(feeds, tiles)])
        stream = driver.Stream()
        placed = {name: gpuarray.to_gpu_async(array, stream=stream) for name, array in feeds.items()}
        session = TrtSession(tmp_path / "plan")
        score, lane = gpuarray.empty(wanted.shape, np.float32), Lane(session.context)
        lane.follow(stream)
        bound = session.bind(placed, {spec.QUALITY_OUTPUT: score}, lane)
        for _ in range(4):  # plain, recorded, replayed
            bound.run()
            lane.sync()
            np.testing.assert_allclose(score.get(), wanted, atol=1e-4)
        del bound
        session.close()
        lane.close()
        del placed, stream, score  # before the context goes
    finally:
        context.pop()
        context.detach()
