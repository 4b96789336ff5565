"""Shards -> a Parquet file each, and a marker that says it is complete, so that a run can go on where it was stopped.

    shards ──► (those without a marker) ──► (processes: score a shard) ──► NAME.parquet, NAME.done.json

A shard is done or not: its file of rows appears in one step, and then its marker. An unfinished shard is scored again,
so no row is lost or doubled, however a run ended. A shard that is missing, breaks off or holds no image has no marker:
its file has the rows so far, and a row with the error.
"""

import hashlib
import json
import multiprocessing
import os
import re
import signal
import tempfile
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from dgiqa.batch.resume import changed
from dgiqa.errors import DgiqaError
from dgiqa.report.files import in_use, left_behind, whole_file, write_parquet
from dgiqa.report.rows import Row, Summary, columns, error_row
from dgiqa.score import Failure, Score
from dgiqa.scorer import Scorer
from dgiqa.sources import Input, Reading, expand, remote
from dgiqa.sources.inputs import is_address

MARKER = ".done.json"
ATTEMPTS = 3  # at a shard whose process dies


@dataclass(frozen=True)
class Job:
    """The work on every shard. scorer: the arguments of `Scorer`. settings: everything that changes scores."""

    out: str
    scorer: dict[str, Any]
    settings: dict[str, Any]
    reading: Reading = field(default_factory=Reading)
    details: bool = False


@dataclass(frozen=True)
class Done:
    """A shard that was scored; its marker holds the same. error: why it has no marker and is to be scored again."""

    shard: str
    rows: int
    scored: int
    failed: int
    seconds: float
    left_out: dict[str, int]
    error: str = ""


def part_of(text: str) -> tuple[int, int]:
    """ "3/8" -> (3, 8): the fourth of eight parts, as SLURM counts an array's tasks from 0. Raises ValueError."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not int(found[1]) < int(found[2]):
        raise ValueError(f"got {text!r}, wanted I/N with I from 0 to N-1, as in 0/8")
    return int(found[1]), int(found[2])


def output_name(shard: str) -> str:
    """The name of a shard's files: its own, and a few digits that distinguish it from one of that name elsewhere."""
    stem = re.sub(r"\.(tar(\.\w+)?|tgz|tbz2|txz|zip|csv|tsv|parquet|jsonl|ndjson)$", "", os.path.basename(shard))
    where = shard if is_address(shard) else os.path.abspath(shard)
    return f"{re.sub(r'[^A-Za-z0-9._-]', '_', stem)[:100]}-{hashlib.sha256(os.fsencode(where)).hexdigest()[:8]}"


def to_do(shards: Iterable[str], job: Job, *, resume: bool) -> tuple[list[str], int]:
    """The shards without a marker, and how many have one. Makes the folder.

    Raises DgiqaError if there are markers without `resume`, or markers of other settings.
    """
    found = list(dict.fromkeys(shards))
    if not is_address(job.out):
        if os.path.isfile(job.out):
            raise DgiqaError(f"{job.out} is a file; wanted a folder")
        os.makedirs(job.out, exist_ok=True)
    waiting = []
    for shard in found:
        marker = _read_marker(job, shard)
        if marker is None:
            waiting.append(shard)
        elif not resume:
            raise DgiqaError(f"{job.out} holds results of {shard}; --resume goes on after them, or name another folder")
        elif marker.get("settings") != job.settings:
            what = changed(marker.get("settings", {}), job.settings)
            raise DgiqaError(
                f"{shard}: {what}; scores would not compare, so give the same options or name another folder"
            )
    return waiting, len(found) - len(waiting)


def scan(shards: list[str], job: Job, *, workers: int = 1) -> Iterator[Done]:
    """Score shards and write their files. workers: processes; a shard whose process dies is tried again.

    Raises DgiqaError for a shard whose process died ATTEMPTS times, after all others are done.
    """
    if workers == 1:
        with Scorer(**job.scorer) as scorer:
            for shard in shards:
                yield score_shard(scorer, shard, job)
        return
    attempts, waiting, lost = Counter[str](), deque(shards), list[str]()
    while waiting:
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _open, (job,))
        running: dict[str, Any] = {}  # shard -> its future
        try:
            while waiting or running:
                while waiting and len(running) < workers + 1:
                    shard = waiting.popleft()
                    running[shard] = None  # the pool may be broken by now
                    running[shard] = pool.submit(_score_here, shard)
                for future in wait(running.values(), return_when=FIRST_COMPLETED).done:
                    done: Done = future.result()
                    del running[done.shard]
                    yield done
        except BrokenProcessPool:
            for shard in running:  # it is not known which of them it was
                attempts[shard] += 1
                (lost if attempts[shard] >= ATTEMPTS else waiting).append(shard)
        finally:
            for process in multiprocessing.active_children():
                process.terminate()
            pool.shutdown(wait=True, cancel_futures=True)
    if lost:
        raise DgiqaError(f"the process died {ATTEMPTS} times at {', '.join(lost)}; score it by itself to see why")


def score_shard(scorer: Scorer, shard: str, job: Job) -> Done:
    """Score one shard into its Parquet file, then write its marker."""
    name = output_name(shard)
    if not is_address(job.out):
        for left in left_behind(os.path.join(job.out, f"{name}.parquet")):
            if not in_use(left):  # of a run that was killed; its rows are scored again
                os.unlink(left)
        return _score_shard(scorer, shard, job, os.path.join(job.out, name))
    with tempfile.TemporaryDirectory() as folder:
        done = _score_shard(scorer, shard, job, os.path.join(folder, name))
        system, path = remote.bucket(job.out.rstrip("/"))
        for suffix in (".parquet", *([] if done.error else [MARKER])):  # the marker last
            system.put_file(os.path.join(folder, name + suffix), f"{path}/{name}{suffix}")
    return done


def _score_shard(scorer: Scorer, shard: str, job: Job, stem: str) -> Done:
    reading, summary = replace(job.reading, left_out=Counter()), Summary(run=job.settings)
    errors = list[str]()  # of the shard itself, and of its folders

    def inputs() -> Iterator[Input]:
        for item in expand([shard], reading):
            if item.source is None and (item.name == shard or os.path.isdir(item.name)):
                errors.append(item.error if item.name == shard else f"{item.name}: {item.error}")
            yield item

    def rows() -> Iterator[Row]:
        for row in rows_of(scorer, inputs(), details=job.details):
            summary.add(row)
            yield row

    with whole_file(f"{stem}.parquet") as target:
        names = columns("image", details=job.details)
        write_parquet(rows(), target, names, partial(summary.as_dict, complete=True))
    counts = summary.scored + summary.failed, summary.scored, summary.failed
    done = Done(shard, *counts, round(summary.seconds, 3), dict(reading.left_out), "; ".join(errors))
    if done.error:
        return done
    with whole_file(f"{stem}{MARKER}") as stream:
        stream.write(json.dumps(asdict(done) | {"settings": job.settings}).encode())
    return done


def rows_of(
    scorer: Scorer, inputs: Iterable[Input], workers: int | None = None, *, details: bool = False
) -> Generator[Row]:
    """A row per input, in their order; those that give no image come with their errors."""
    keys: deque[str | None] = deque()  # of the inputs that are being scored; results come in their order

    def items() -> Iterator[tuple[str, Any] | Failure]:
        for item in inputs:
            keys.append(item.key)
            yield Failure(item.name, "ImageError", item.error) if item.source is None else (item.name, item.source)

    for result in scorer.score_many(items(), workers=workers):
        key = keys.popleft()
        if isinstance(result, Score):
            yield result.as_row(details=details) | {"key": key}
        else:
            yield error_row(result.source, result.message, details=details, key=key, **scorer.origin)


_opened: list[Any] = []  # in a worker's process: its scorer and its job


def _open(job: Job) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _opened[:] = [Scorer(**job.scorer), job]


def _score_here(shard: str) -> Done:
    return score_shard(_opened[0], shard, _opened[1])


def _read_marker(job: Job, shard: str) -> dict[str, Any] | None:
    name = output_name(shard)
    try:
        if is_address(job.out):
            system, path = remote.bucket(job.out.rstrip("/"))
            found = json.loads(system.cat_file(f"{path}/{name}{MARKER}"))
        else:
            if not os.path.exists(os.path.join(job.out, f"{name}.parquet")):
                return None
            found = json.loads(Path(job.out, name + MARKER).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None
