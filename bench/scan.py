"""Run `scan` on sets from end to end: its cost in addition to scoring, and the gain from a second process.

python bench/scan.py [--quick] [--fresh] [--images 100000]        ->  bench/results/scan.jsonl

throughput  tar shards in, Parquet out, against the bare loop over the same pictures in memory, shard by shard in turn:
            images/s, resident memory after each shard, keys compared byte for byte, one in ten of them not ASCII. With
            networks of a few operators, which cost next to nothing, so that other costs show; and fewer images with
            `small`
workers     one and two processes of one thread each, ours (`--workers`) and Ray's (`--ray local`), with `small`:
            images/s after each has done a shard, so without the start; how many cores were idle meanwhile
"""

import io
import itertools
import os
import statistics
import tarfile
import tempfile
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from pictures import photograph
from scale import tiny_bundle
from subjects import Served, Subject, main_or_subject, own_command, resident_mb
from timer import parsed, parser

from dgiqa.batch.scan import Job, output_name, score_shard
from dgiqa.bundle import load_bundle
from dgiqa.report.read import read_rows
from dgiqa.scorer import Scorer

SHARD = 5000
PICTURES = 200  # different ones; each is 64 x 64


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--images", type=int, help="[default: 100,000, quick 400]")
    options = parsed(made, "scan.jsonl", {"images": 100_000}, {"images": 400})
    for bundle, count in {"tiny": options.images, "small": 20 if options.quick else 1000}.items():
        key = {"axis": "throughput", "bundle": bundle, "images": count}
        print(options.ledger.case(key, partial(throughput, bundle, count)), flush=True)
    shards = 4 if options.quick else 10
    print(options.ledger.case({"axis": "workers", "shards": shards}, partial(workers, shards)), flush=True)


def throughput(bundle: str, count: int) -> dict[str, Any]:
    """The bare loop and `scan` over one shard each, in turn, in one process."""
    with tempfile.TemporaryDirectory() as folder:
        name = str(tiny_bundle(Path(folder, "tiny"))) if bundle == "tiny" else bundle
        with Subject(own_command(__file__, {"bundle": name, "folder": folder})) as subject:
            subject.ask("shard", images=min(count, SHARD) // 4, number=-1)  # warm
            starts = range(0, count, SHARD)
            rows = [subject.ask("shard", images=min(SHARD, count - start), number=start) for start in starts]
    bare, scanned = (sum(row[key] for row in rows) for key in ("bare_s", "scan_s"))
    resident = [row["resident_mb"] for row in rows]
    return {
        "bare_per_s": round(count / bare, 1),
        "scan_per_s": round(count / scanned, 1),
        "ratio": round(statistics.median(row["bare_s"] / row["scan_s"] for row in rows), 4),
        "cpu_ratio": round(statistics.median(row["cpu_ratio"] for row in rows), 4),  # hardly depends on others
        "resident_mb": [resident[0], resident[len(resident) // 2], resident[-1]],
        "keys_equal": all(row["keys_equal"] for row in rows),
    }


def workers(shards: int) -> dict[str, Any]:
    """Images a second of one worker and of two, and the machine's other load."""
    from dgiqa.batch.on_ray import scan_on_ray
    from dgiqa.batch.scan import scan

    os.environ |= {"RAY_worker_niceness": "0"}  # by default Ray runs its workers at low priority
    pictures = [photograph(n, (384, 384)) for n in range(20)]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        names = [str(_shard(Path(folder, f"{n}.tar"), len(pictures), 100 * n, pictures)) for n in range(shards)]
        bundle = load_bundle("small")
        for kind, count in itertools.product(("processes", "ray"), (1, 2)):
            out = Path(folder, f"{kind}{count}")
            out.mkdir()
            arguments = {"bundle": str(bundle.path), "threads": 1, "parallel": 1}
            job = Job(str(out), arguments, {"bundle": bundle.id})
            ours = kind == "processes"
            run = scan(names, job, workers=count) if ours else scan_on_ray(names, job, actors=count, threads=1)
            rows, started, spent = 0, 0.0, psutil.cpu_times()
            for number, done in enumerate(run, 1):
                rows += done.rows if started else 0
                if number == count:
                    started, spent = time.perf_counter(), psutil.cpu_times()
            seconds, idle = time.perf_counter() - started, psutil.cpu_times().idle - spent.idle
            found[f"{kind}_{count}_per_s"] = round(rows / seconds, 2)
            found[f"{kind}_{count}_idle_cores"] = round(idle / seconds, 2)
            found[f"{kind}_{count}_ratio"] = round(found[f"{kind}_{count}_per_s"] / found[f"{kind}_1_per_s"], 3)
    return found


def _encoded(number: int) -> bytes:
    return photograph(number % PICTURES, (64, 64))


def _shard(path: Path, count: int, start: int, pictures: list[bytes] | None = None) -> Path:
    pictures = pictures or [_encoded(n) for n in range(min(count, PICTURES))]
    with tarfile.open(path, "w") as archive:
        for number in range(count):
            data = pictures[number % len(pictures)]
            info = tarfile.TarInfo(f"{_key(start, number)}.jpg")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def _key(start: int, number: int) -> str:
    return f"{'e' if number % 10 else 'é'}/{start + number:09}"


# ---- in the subject's process ----


def subject(options: dict[str, Any]) -> Served:
    scorer = Scorer(options["bundle"], threads=1, parallel=1)
    pictures = [_encoded(n) for n in range(PICTURES)]
    out = os.path.join(options["folder"], "out")
    os.makedirs(out)
    job = Job(out, {}, {"bundle": scorer.bundle.id})

    def shard(images: int, number: int) -> dict[str, Any]:
        path = _shard(Path(options["folder"], f"{number}.tar"), images, number)
        started, spent = time.perf_counter(), time.process_time()
        for _ in scorer.score_many(pictures[n % PICTURES] for n in range(images)):
            pass
        between, spent_between = time.perf_counter(), time.process_time()
        done = score_shard(scorer, str(path), job)
        scan_s, spent_scan = time.perf_counter() - between, time.process_time() - spent_between
        assert asdict(done)["scored"] == images, done
        keys = (row["key"] for row in read_rows(os.path.join(out, f"{output_name(str(path))}.parquet")))
        equal = all(key == _key(number, n) for n, key in enumerate(keys))
        path.unlink()
        times = {"bare_s": between - started, "scan_s": scan_s, "cpu_ratio": (spent_between - spent) / spent_scan}
        return times | {"keys_equal": equal, "resident_mb": round(resident_mb(), 1)}

    return {"shard": shard}, {}


if __name__ == "__main__":
    main_or_subject(main, subject)
