"""A Scorer and the processes around it: forks, pickles, closed streams, signals at odd moments."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from waiting import PATIENCE_S

import dgiqa
from dgiqa import pipeline
from dgiqa.bundle import Bundle
from dgiqa.image import sources
from dgiqa.score import Failure, Score
from dgiqa.scorer import Scorer

ROOT = Path(dgiqa.__file__).parent.parent
FORK = """
import os, sys
from dgiqa import Scorer
scorer = Scorer(sys.argv[1], backend=sys.argv[2], threads=2)
score = scorer.score(sys.argv[3]).value
child = os.fork()
if not child:
    try:
        scorer.score(sys.argv[3])
    except Exception as error:
        print(type(error).__name__, error, flush=True)
    scorer.close()
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert scorer.score(sys.argv[3]).value == score
"""


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_fork_is_refused_in_one_line_and_ends(tiny_bundle: Bundle, photo: Path, backend: str) -> None:
    pytest.importorskip(backend)
    command = [sys.executable, "-c", FORK, str(tiny_bundle.path), backend, str(photo)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("BackendError this Scorer was opened in process")
    assert "open one after the fork" in done.stdout
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_results_that_a_fork_goes_on_taking_are_refused(tiny_bundle: Bundle, photo: Path) -> None:
    code = """
import os, sys
from dgiqa import Scorer
results = Scorer(sys.argv[1], threads=1).score_many([sys.argv[2]] * 50)
next(results)
child = os.fork()
try:
    count = len(list(results))
except Exception as error:
    print(type(error).__name__, error, flush=True)
    sys.exit(7)
assert child and count == 49 and os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""
    command = [sys.executable, "-c", code, str(tiny_bundle.path), str(photo)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("BackendError these results belong to process")


def test_results_that_are_closed_early_wait_for_nothing(
    tiny_bundle: Bundle, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited, wait = list[Any](), pipeline.wait

    def watched(futures: Any, timeout: float) -> Any:
        waited.append(wait(futures, PATIENCE_S))
        return waited[-1]

    monkeypatch.setattr(pipeline, "wait", watched)
    with Scorer(tiny_bundle, threads=1) as scorer:
        results = scorer.score_many([photo] * 100, workers=2)
        next(results)
        results.close()  # type: ignore[attr-defined]
    (of_the_end,) = waited
    assert not of_the_end.not_done, "what was cancelled is not waited for, and what is being prepared ends by itself"


def test_a_scorer_is_pickled_by_what_it_was_opened_with(tiny_bundle: Bundle, photo: Path) -> None:
    scorer = Scorer(tiny_bundle, tiling="official:2", threads=1, gate=0.5)
    copy = pickle.loads(pickle.dumps(scorer))
    with scorer, copy:
        assert (copy.tiling, copy.gate) == ("official:2", 0.5)
        assert copy.score(photo).value == scorer.score(photo).value


def test_an_image_that_is_given_up_says_so_in_other_processes_too() -> None:
    error = pickle.loads(pickle.dumps(sources.GivenUpError("not decoded within 60 s", Future())))
    assert (type(error).__name__, str(error)) == ("ImageError", "not decoded within 60 s")


def test_failures_among_the_images_are_handed_on_in_their_places(tiny_bundle: Bundle, photo: Path) -> None:
    given = Failure("gone.jpg", "ImageError", "no such file")
    with Scorer(tiny_bundle, threads=1) as scorer:
        results = list(scorer.score_many([given, photo, ("a", "b", "c"), given]))
    assert [type(result) for result in results] == [Failure, Score, Failure, Failure]
    assert results[0] is given is results[3]


def test_a_decoder_that_does_not_listen_is_not_waited_for(
    tiny_bundle: Bundle, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, ended, read = threading.Event(), list[str](), sources._read_file
    monkeypatch.setattr("dgiqa.pipeline.JOIN_S", 0.1)

    def slow(path: str | Path) -> bytes:
        if "slow" in str(path):
            release.wait(PATIENCE_S)
            ended.append(str(path))
        return read(path)

    monkeypatch.setattr(sources, "_read_file", slow)

    def paths() -> Iterator[Path]:
        yield photo
        yield from itertools.repeat(photo.with_name("slow.png"), 3)

    with Scorer(tiny_bundle, threads=1) as scorer:
        results = scorer.score_many(paths(), workers=2, batch=1)  # more would wait for tiles of the slow ones
        next(results)
        results.close()  # type: ignore[attr-defined]
        assert not ended
        release.set()


def test_with_standard_error_closed_the_data_stays_alone(tiny_bundle: Bundle, photo: Path) -> None:
    command = f'"{sys.executable}" -m dgiqa score "{photo}" --bundle "{tiny_bundle.path}" 2>&-'
    done = subprocess.run(command, shell=True, capture_output=True, env=environment(), timeout=PATIENCE_S, check=True)
    assert [json.loads(line)["status"] for line in done.stdout.splitlines()] == ["ok"]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_a_closed_terminal_keeps_the_rows_and_a_kill_leaves_them_where_the_next_run_says(
    tiny_bundle: Bundle, photo: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out.csv"
    command = [sys.executable, "-m", "dgiqa", "score", "--from-file", "-", "-o", target, "-f", "jsonl"]
    command += ["--bundle", tiny_bundle.path]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    for number, code in ((signal.SIGHUP, 129), (signal.SIGKILL, -9)):
        with subprocess.Popen(command, env=environment(), bufsize=0, **pipes) as process:
            assert process.stdin
            assert process.stdout
            process.stdin.write(f"{photo}\n".encode() * 20)
            process.stdout.readline()
            process.send_signal(number)
            process.communicate(timeout=PATIENCE_S)
        assert process.returncode == code
    assert len(target.read_text().splitlines()) >= 2
    (partial,) = tmp_path.glob("out.partial-*.csv")
    assert len(partial.read_text().splitlines()) >= 2
    again = [sys.executable, "-m", "dgiqa", "score", photo, "-o", target, "--bundle", tiny_bundle.path]
    said = subprocess.run(
        again, capture_output=True, text=True, env=environment(), timeout=PATIENCE_S, check=True
    ).stderr
    assert str(partial) in said
    assert partial.exists()


def test_an_interrupt_while_the_command_line_is_imported_shows_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    command = [sys.executable, "-m", "dgiqa", "models"]
    env = os.environ | {"PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, env=env, timeout=PATIENCE_S, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"")
