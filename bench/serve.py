"""Measure what serving costs compared with `score_many`, and what a server does under four times its capacity.

    python bench/serve.py [--queue N] [--bundle small] [--requests 10000]      rows as they come; -o FILE keeps them

The server is a separate process; clients are threads here and share its cores. Every request is a new connection.

    throughput  images/s with as many clients as the queue has places, and through `score_many`, in turn
    cpu         CPU time per image, in both: it hardly depends on the machine's other load
    unloaded    one request after the other: ms
    overload    requests at four times that throughput, whatever the answers are: answers, and ms of those accepted
    leak        resident memory after each thousand of --requests
"""

import http.client
import json
import re
import sys
import tempfile
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from stamp import ROOT, command_line, environment_stamp

from dgiqa.scorer import Scorer

PICTURES = [path.read_bytes() for path in sorted((ROOT / "examples").glob("*.jpg"))]
OVERLOAD = 4
CLIENTS = 200  # the most that wait for answers at once under overload
Answer = tuple[int, float]  # status (0: none came), ms


@contextmanager
def served(*options: str) -> Iterator[tuple[psutil.Popen, int]]:
    """A server in its own process, once it is ready, and its port."""
    command = [sys.executable, "-m", "dgiqa", "serve", "--port", "0", *options]
    with tempfile.NamedTemporaryFile("r") as log, open(log.name, "w") as said:
        process, text = psutil.Popen(command, stderr=said, cwd=ROOT), ""
        try:
            while " ready: " not in text:
                text += log.read()
                assert process.poll() is None, text
                time.sleep(0.05)
            yield process, int(re.findall(r"running on http://[\d.]+:(\d+)", text)[0])
        finally:
            process.kill()


def ask(port: int, number: int) -> Answer:
    """Send one POST /score on a new connection."""
    started, status = time.perf_counter(), 0
    connection = http.client.HTTPConnection("127.0.0.1", port)
    try:
        connection.request("POST", "/score", picture(number), {"Connection": "close"})
        answer = connection.getresponse()
        status = answer.status if answer.read().endswith(b"}") else 0
    except (OSError, http.client.HTTPException):
        pass
    finally:
        connection.close()
    return status, (time.perf_counter() - started) * 1e3


def closed_loop(port: int, clients: int, count: int) -> list[Answer]:
    """Send `count` requests from clients that each wait for their answer."""
    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(lambda number: ask(port, number), range(count)))


def open_loop(port: int, rate: float, seconds: float) -> list[Answer]:
    """Send requests at a rate, whether answers come or not."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        started, sent = time.perf_counter(), []
        for number in range(int(rate * seconds)):
            time.sleep(max(0.0, started + number / rate - time.perf_counter()))
            sent.append(pool.submit(ask, port, number))
        return [answer.result() for answer in sent]


def picture(number: int) -> bytes:
    return PICTURES[number % len(PICTURES)]


def percentiles(answers: Sequence[Answer]) -> list[float]:
    """Median and 99th percentile of those accepted, ms."""
    return np.percentile([ms for status, ms in answers if status == 200] or [np.nan], [50, 99]).round(1).tolist()


def cpu_s(process: psutil.Process) -> float:
    return sum(process.cpu_times()[:2])


def measured(options: Namespace, tell: Callable[..., None]) -> None:
    shared, here = ["--bundle", options.bundle, "--queue", str(options.queue)], psutil.Process()
    with served(*shared) as (server, port), Scorer(options.bundle) as scorer:
        ways: dict[str, tuple[psutil.Process, Callable[[int], int]]] = {  # CPU time's process; scores n images
            "score_many": (here, lambda count: len(list(scorer.score_many(map(picture, range(count)))))),
            "served": (server, lambda count: sum(a[0] == 200 for a in closed_loop(port, options.queue, count))),
        }
        rates, cpu = {name: list[float]() for name in ways}, dict.fromkeys(ways, 0.0)
        for turn in range(options.rounds + 1):
            for name, (process, score) in ways.items():
                started, spent = time.perf_counter(), cpu_s(process)
                done = score(options.images if turn else 20)
                if turn:  # the first warms up
                    rates[name].append(done / (time.perf_counter() - started))
                    cpu[name] += (cpu_s(process) - spent) * 1e3 / (options.rounds * options.images)
        ratio = float(np.median(np.divide(rates["served"], rates["score_many"])))
        throughput, bare = (float(np.median(rates[name])) for name in ("served", "score_many"))
        tell("throughput", images_per_s=throughput, score_many=bare, ratio=ratio, wanted=0.9)
        bare = cpu["score_many"]
        tell("cpu", ms=cpu["served"], score_many_ms=bare, ratio=bare / cpu["served"])
        p50, alone = percentiles(closed_loop(port, 1, options.images))
        tell("unloaded", p50_ms=p50, p99_ms=alone)
        answers = open_loop(port, OVERLOAD * throughput, options.seconds)
        (p50, p99), statuses = percentiles(answers), Counter(status for status, _ in answers)
        accepted = statuses[200] / options.seconds
        tell("overload", answers=dict(statuses), p50_ms=p50, p99_ms=p99, images_per_s=accepted)
        tell("overload", p99_ratio=p99 / alone, wanted=3.0)
        for done in range(0, options.requests, 1000):
            closed_loop(port, options.queue, 1000)
            tell("leak", requests=done + 1000, resident_mb=server.memory_info().rss / 2**20)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--bundle", default="small")
    parser.add_argument("--queue", type=int, default=2)
    parser.add_argument("--images", type=int, default=100, help="of each round of throughput, and of the unloaded run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15.0, help="of overload")
    parser.add_argument("--requests", type=int, default=10_000, help="of the search for leaks")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()

    def tell(measure: str, **figures: Any) -> None:
        row = {"measure": measure} | {k: round(v, 3) if isinstance(v, float) else v for k, v in figures.items()}
        print(json.dumps(row), flush=True)
        if options.output:
            with options.output.open("a") as file:
                file.write(json.dumps(row) + "\n")

    tell("machine", **environment_stamp(), queue=options.queue)
    measured(options, tell)


if __name__ == "__main__":
    main()
