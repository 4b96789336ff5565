"""A scorer with one setting in its own process, and the requests that benches make to it.

with start("small", default(), tiling="official:20") as subject:
    subject.ask("score", paths=["a.jpg"])                # {"ms": of one image, "scores", "stages" of the last, ...}
    subject.ask("stream", paths=[...], lengths=[10, 100])  # through score_many, round and round
"""

import io
import time
from dataclasses import asdict
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from subjects import Served, Subject, main_or_subject, own_command, peak_mb, resident_mb, timed

from dgiqa import spec
from dgiqa.bundle import load_bundle
from dgiqa.machine import preparing_threads, usable_cores
from dgiqa.report.files import writer_for
from dgiqa.score import Score
from dgiqa.speed import Setting


def default(threads: int | None = None) -> Setting:
    """A bundle's default setting, with all cores or this many threads."""
    threads = threads or usable_cores()
    return Setting("auto", threads=threads, workers=preparing_threads(threads))


def command(bundle: str, setting: Setting, tiling: str = "grid") -> list[str]:
    return own_command(__file__, {"bundle": bundle, "tiling": tiling, "setting": asdict(setting)})


def start(bundle: str, setting: Setting, tiling: str = "grid") -> Subject:
    return Subject(command(bundle, setting, tiling))


def subject(options: dict[str, Any]) -> Served:
    """In its process: the scorer, and the requests that it answers."""
    setting = Setting(**options["setting"])
    scorer = setting.open(load_bundle(options["bundle"]), options["tiling"])

    def score(paths: list[str], tiling: str | None = None) -> dict[str, Any]:
        last: list[Score] = []

        def value(data: bytes) -> float:
            last[:] = [scorer.score(data, tiling=tiling)]
            return last[0].value

        found = timed(paths, value)
        started = time.perf_counter()
        writer_for("jsonl", io.StringIO()).write(last[0].as_row())
        stages = last[0].timings_ms | {"output": (time.perf_counter() - started) * 1e3}
        return found | {"stages": stages, "peak_mb": round(peak_mb(), 1)}

    def stream(paths: list[str], lengths: list[int]) -> dict[str, Any]:
        pictures = [Path(path).read_bytes() for path in paths]
        rows, scores, started = list[dict[str, Any]](), list[float](), time.perf_counter()
        last, since = 0, started
        endless = islice(cycle(pictures), lengths[-1])
        for done, found in enumerate(scorer.score_many(endless, on_error="raise", workers=setting.workers), 1):
            scores.append(found.value)  # type: ignore[union-attr] # errors are raised
            if done in lengths:
                ms, last, since = (time.perf_counter() - since) * 1e3 / (done - last), done, time.perf_counter()
                rows.append({"images": done, "ms_per_image": round(ms, 4), "resident_mb": round(resident_mb(), 1)})
        ms = (time.perf_counter() - started) * 1e3 / lengths[-1]
        return {"ms": ms, "scores": scores[: len(paths)], "rows": rows}

    def batch(count: int) -> dict[str, Any]:
        tile = scorer.bundle.preprocess.tile
        feeds = dict.fromkeys((spec.QUALITY_RGB, spec.QUALITY_DEPTH), np.zeros((count, 3, tile, tile), np.float32))
        started = time.perf_counter()
        scorer._alone.networks.quality.run(feeds)
        return {"ms": (time.perf_counter() - started) * 1e3 / count, "resident_mb": round(resident_mb(), 1)}

    def memory() -> dict[str, Any]:
        return {"peak_mb": round(peak_mb(), 1)}

    return {"score": score, "stream": stream, "batch": batch, "memory": memory}, {"backend": scorer.backend}


if __name__ == "__main__":
    main_or_subject(lambda: None, subject)
