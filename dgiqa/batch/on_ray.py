"""Shards -> the files of `scan`, made by a Ray cluster: Ray Data starts actors, feeds them, and replaces them.

An actor holds one open Scorer and scores whole shards. A shard whose actor or machine dies is given to another one;
scoring it twice gives the same file.
"""

import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from dgiqa.batch.scan import ATTEMPTS, Done, Job, score_shard
from dgiqa.errors import DgiqaError
from dgiqa.extras import load
from dgiqa.scorer import Scorer

HERE = "local"
ON_GPUS = ("onnxruntime-cuda", "tensorrt", "tensorrt-rtx")
CORES = 4  # of an actor, by default


def scan_on_ray(
    shards: list[str], job: Job, *, address: str = HERE, actors: int | None = None, threads: int | None = None
) -> Iterator[Done]:
    """Score shards and write their files, each yielded when it is done.

    address: of the cluster ("auto", "ray://host:10001"); "local" starts one on this machine. actors: how many at most,
    by default one per GPU of the cluster if the backend runs on GPUs, else one per `threads` cores. `job.out` and the
    shards have to be reachable under their names from every machine, as a bucket or a shared folder is, and this
    package has to be installed there.
    A run that Ray gives up is started again with the remaining shards. Raises DgiqaError if ATTEMPTS runs in a row
    finish no shard, and BackendError without Ray.
    """
    load("ray.data", "--ray", "ray", "ray")
    import ray.data

    begun = not ray.is_initialized()
    if begun:
        where: dict[str, Any] = {"include_dashboard": False} if address == HERE else {"address": address}
        ray.init(**where, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")  # no other way to limit attempts
    left, failures = dict.fromkeys(shards), 0
    try:
        while left:
            try:
                for done in _run(list(left), job, actors, threads):
                    del left[done.shard]
                    failures = 0
                    yield done
            except ray.exceptions.RayError as error:  # noqa: PERF203 - a machine that is gone costs all retries
                failures += 1
                if failures == ATTEMPTS:
                    why = " ".join(str(error).split())[-500:]
                    raise DgiqaError(f"Ray gave up {ATTEMPTS} times in a row ({why}); --resume goes on") from error
    finally:
        if begun:
            ray.shutdown()


def _run(shards: list[str], job: Job, actors: int | None, threads: int | None) -> Iterator[Done]:
    """One run of Ray Data over the machines that the cluster has now."""
    import ray.data

    most, cores, needed = _share(ray.nodes(), job, threads)
    found = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards)).map(
        _ShardScorer,
        fn_constructor_args=(job, cores),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(actors or most, most, len(shards))),
        max_restarts=-1,
        max_task_retries=ATTEMPTS,
        **needed,
    )
    for row in found.iter_rows():
        yield Done(**json.loads(row["done"]))


class _ShardScorer:
    """The actor: one Scorer, opened where it runs."""

    def __init__(self, job: Job, threads: int) -> None:
        self._job = job
        self._scorer = Scorer(**job.scorer | {"threads": threads})
        if self._scorer.bundle.id != job.settings["bundle"]:
            raise DgiqaError(f"this machine has {self._scorer.bundle.id}, wanted {job.settings['bundle']}")

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        return {"done": json.dumps(asdict(score_shard(self._scorer, row["shard"], self._job)))}


def _share(nodes: list[dict[str, Any]], job: Job, threads: int | None) -> tuple[int, int, dict[str, float]]:
    """How many actors the cluster has room for, the threads of each, and the resources that each asks for."""
    having = [node["Resources"] for node in nodes if node["Alive"] and node["Resources"].get("CPU")]
    if not having:
        raise DgiqaError("no machine of the Ray cluster has a core to give")
    cores = threads or max(1, min(CORES, *(int(node["CPU"]) for node in having)))
    if job.scorer.get("backend") in ON_GPUS:
        room, needed = sum(int(node.get("GPU", 0)) for node in having), {"num_gpus": 1.0}
    else:
        room, needed = sum(int(node["CPU"] // cores) for node in having), {"num_cpus": float(cores)}
    if not room:
        raise DgiqaError(f"no machine of the Ray cluster has what an actor needs: {needed}")
    return room, cores, needed
