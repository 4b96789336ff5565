"""Run a program under test in its own process: one JSON line in, one JSON line out.

Every subject has its own memory, threads and, if needed, environment, and still they can be timed in turn: a subject
that is not asked sleeps. This file imports only Python's own library, so that any environment can run it.

    with Subject([python, "bench/peer_metrics.py", "--serve", "NIQE"]) as subject:
        subject.ask("score", paths=["a.jpg"])      # {"ms": ..., "scores": [...]}
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

# Name of a request -> function of its arguments; facts to say when ready
Served = tuple[Mapping[str, Callable[..., Mapping[str, Any]]], Mapping[str, Any]]


class SubjectError(RuntimeError):
    """The program could not start, ended early, or answered with an error. The message is its own last line."""


class Subject:
    """A running subject. ready: its facts once it was ready; start_s: how long that took, process start included.

    environment: variables added to this process's own. Raises SubjectError if it does not get ready.
    """

    def __init__(self, command: list[str], environment: Mapping[str, str] | None = None) -> None:
        started = time.perf_counter()
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - a pipe that nobody empties would stop it
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env=os.environ | dict(environment or {}),
        )
        try:
            self.ready = self._answer()
        except SubjectError:
            self.close()
            raise
        self.start_s = time.perf_counter() - started

    def ask(self, request: str, **arguments: Any) -> dict[str, Any]:
        """Send one request and wait for the answer. Raises SubjectError with the subject's own message."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"request": request, "arguments": arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise SubjectError(self._last_words()) from error
        return self._answer()

    def close(self) -> None:
        """End it: it exits when its standard input is closed."""
        self._process.communicate()
        self._said.close()

    def __enter__(self) -> "Subject":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SubjectError(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise SubjectError(answer["error"])
        return answer

    def _last_words(self) -> str:
        self._process.communicate()
        self._said.seek(0)
        lines = [line.strip() for line in self._said if line.strip()]
        return lines[-1] if lines else f"ended with status {self._process.returncode} and said nothing"


def own_command(file: str, options: Mapping[str, Any]) -> list[str]:
    """The command of a subject in the same file as its bench; `main_or_subject` gives it these options."""
    return [sys.executable, file, "--serve", json.dumps(options)]


def main_or_subject(main: Callable[[], None], subject: Callable[[dict[str, Any]], Served]) -> None:
    """Run a bench, or, in a process of `own_command`, its subject."""
    if "--serve" in sys.argv:
        serve(lambda: subject(json.loads(sys.argv[-1])))
    else:
        main()


def serve(prepare: Callable[[], Served]) -> None:
    """The subject's side: get ready, then answer requests until standard input ends.

    prepare: returns (name of a request -> function of its arguments, facts to report when ready). Everything that it or
    a library prints goes to standard error. An exception becomes the answer; in `prepare` it ends the process.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(record: Mapping[str, Any]) -> None:
        answers.write(json.dumps(record) + "\n")
        answers.flush()

    try:
        handlers, facts = prepare()
    except Exception as error:
        answer({"error": _in_one_line(error)})
        return
    answer(facts)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer(handlers[request["request"]](**request["arguments"]))
        except Exception as error:
            answer({"error": _in_one_line(error)})


def timed(paths: list[str], score: Callable[[bytes], float]) -> dict[str, Any]:
    """Score files one after the other, reading included: mean ms per image, and the scores."""
    started = time.perf_counter()
    scores = []
    for path in paths:
        with open(path, "rb") as file:
            scores.append(score(file.read()))
    return {"ms": (time.perf_counter() - started) * 1e3 / len(paths), "scores": scores}


def peak_mb() -> float:
    """The largest resident memory this process has had, MB, without its parent's. Needs /proc."""
    with open("/proc/self/status", encoding="ascii") as status:
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024


def resident_mb() -> float:
    """Resident memory of this process now, MB. Needs /proc."""
    with open("/proc/self/statm", encoding="ascii") as status:
        return int(status.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _in_one_line(error: Exception) -> str:
    traceback.print_exception(error, file=sys.stderr)
    return f"{type(error).__name__}: {error}".splitlines()[0]
