"""What serving costs beside `score_many`, and what a server does with four times the load that it can bear.

    python bench/serve.py [--queue N] [--bundle small] [--requests 10000]      rows as they come; -o FILE keeps them

The server is a process of its own; clients are coroutines here and share its cores. Every request is a new connection.

    throughput  images/s with as many clients as the queue has places, and through `score_many`, in turn
    cpu         the processor's time for an image, in both: it hardly depends on what else the machine does
    unloaded    one request after the other: ms
    overload    requests at four times that throughput, whatever comes back: answers, and ms of those accepted
    leak        resident memory after each thousand of --requests
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from stamp import environment_stamp

from dgiqa.scorer import Scorer

ROOT = Path(__file__).parent.parent
PICTURES = [path.read_bytes() for path in sorted((ROOT / "examples").glob("*.jpg"))]
OVERLOAD = 4
Answer = tuple[int, float]  # status (0: none came, -1: no connection), ms


class Served:
    """A server in a process, and its log."""

    def __init__(self, *options: str) -> None:
        command = [sys.executable, "-m", "dgiqa", "serve", "--port", "0", *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        self.log: list[str] = []
        self.ready = threading.Event()
        self.port = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self.ready.wait(120), self.log

    def _read(self) -> None:
        for line in self.process.stderr or ():
            self.log.append(line)
            if found := re.search(r"running on http://[\d.]+:(\d+)", line):
                self.port = int(found[1])
            if " ready: " in line:
                self.ready.set()

    def resident_mb(self) -> float:
        return psutil.Process(self.process.pid).memory_info().rss / 2**20

    def cpu_s(self) -> float:
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(120)
        self._reader.join()
        return code


@contextmanager
def served(*options: str) -> Iterator[Served]:
    server = Served(*options)
    try:
        yield server
    finally:
        server.process.kill()


async def ask(port: int, body: bytes) -> Answer:
    """One POST /score on a connection of its own."""
    started, status = time.perf_counter(), -1
    head = f"POST /score HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n"
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        status = 0
        try:
            writer.write(f"{head}Connection: close\r\n\r\n".encode() + body)
            answer = await reader.read()
            status = int(answer.split(b" ", 2)[1]) if answer.endswith(b"}") else 0
        finally:
            writer.close()
    except OSError:
        pass
    return status, (time.perf_counter() - started) * 1e3


async def closed_loop(clients: int, count: int, asked: Callable[[int], Awaitable[Answer]]) -> list[Answer]:
    """`count` requests by clients that each wait for their answer."""
    numbers = iter(range(count))

    async def client() -> list[Answer]:
        return [await asked(number) for number in numbers]

    return list(itertools.chain(*await asyncio.gather(*(client() for _ in range(clients)))))


async def open_loop(rate: float, seconds: float, asked: Callable[[int], Awaitable[Answer]]) -> list[Answer]:
    """Requests at a rate, whether answers come or not."""
    started, tasks = time.perf_counter(), []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, started + number / rate - time.perf_counter()))
        tasks.append(asyncio.create_task(asked(number)))
    return list(await asyncio.gather(*tasks))


def picture(number: int) -> bytes:
    return PICTURES[number % len(PICTURES)]


def p(answers: list[Answer], share: float) -> float:
    times = [ms for status, ms in answers if status == 200]
    return round(float(np.percentile(times, share)), 1) if times else float("nan")


def rate(count: int, started: float) -> float:
    return count / (time.perf_counter() - started)


def measured(options: argparse.Namespace, tell: Callable[..., None]) -> None:
    shared = ["--bundle", options.bundle, "--queue", str(options.queue)]
    with served(*shared) as server, Scorer(options.bundle) as scorer:

        def asked(number: int) -> Awaitable[Answer]:
            return ask(server.port, picture(number))

        list(scorer.score_many(map(picture, range(20))))
        asyncio.run(closed_loop(options.queue, 20, asked))
        bare, over, bare_cpu, over_cpu = [], [], 0.0, 0.0
        for _ in range(options.rounds):
            started, cpu = time.perf_counter(), time.process_time()
            list(scorer.score_many(map(picture, range(options.images))))
            bare.append(rate(options.images, started))
            bare_cpu += time.process_time() - cpu
            started, cpu = time.perf_counter(), server.cpu_s()
            answers = asyncio.run(closed_loop(options.queue, options.images, asked))
            over.append(rate(sum(status == 200 for status, _ in answers), started))
            over_cpu += server.cpu_s() - cpu
        ratio = float(np.median(np.divide(over, bare)))
        throughput = float(np.median(over))
        tell("throughput", images_per_s=throughput, score_many=float(np.median(bare)), ratio=ratio, wanted=0.9)
        per_image = 1e3 / (options.rounds * options.images)
        tell("cpu", ms=over_cpu * per_image, score_many_ms=bare_cpu * per_image, ratio=bare_cpu / over_cpu)

        alone = asyncio.run(closed_loop(1, options.images, asked))
        tell("unloaded", p50_ms=p(alone, 50), p99_ms=p(alone, 99))

        answers = asyncio.run(open_loop(OVERLOAD * throughput, options.seconds, asked))
        statuses = Counter(status for status, _ in answers)
        times = p(answers, 50), p(answers, 99)
        accepted = statuses[200] / options.seconds
        tell("overload", answers=dict(statuses), p50_ms=times[0], p99_ms=times[1], images_per_s=accepted)
        tell("overload", p99_ratio=times[1] / p(alone, 99), wanted=3.0)

        for done in range(0, options.requests, 1000):
            asyncio.run(closed_loop(options.queue, 1000, asked))
            tell("leak", requests=done + 1000, resident_mb=server.resident_mb())
        server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
