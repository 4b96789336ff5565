"""Sets on a Ray cluster of several nodes: the same rows as here, whatever is killed."""

from __future__ import annotations

import io
import json
import os
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import run_here
from numpy.typing import NDArray
from waiting import PATIENCE_S, until

from dgiqa.batch.on_ray import _ShardScorer, _share, scan_on_ray
from dgiqa.batch.scan import MARKER, Done, Job
from dgiqa.bundle import Bundle
from dgiqa.errors import DgiqaError
from dgiqa.report.read import read_rows

LITTLE = {"object_store_memory": 100 << 20, "include_dashboard": False}
SHARDS, EACH = 12, 30


def job_of(out: Path, bundle: Bundle, **scorer: Any) -> Job:
    return Job(str(out), {"bundle": str(bundle.path)} | scorer, {"bundle": bundle.id})


def test_an_actor_has_a_gpu_or_a_group_of_cores(tiny_bundle: Bundle, tmp_path: Path) -> None:
    def nodes(*resources: dict[str, float]) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": found} for found in resources]

    on_cores, on_gpus = job_of(tmp_path, tiny_bundle), job_of(tmp_path, tiny_bundle, backend="tensorrt")
    assert _share(nodes({"CPU": 16.0}, {"CPU": 6.0}), on_cores, None) == (5, 4, {"num_cpus": 4})
    assert _share(nodes({"CPU": 16.0}, {"CPU": 2.0}), on_cores, None) == (9, 2, {"num_cpus": 2})
    assert _share(nodes({"CPU": 16.0}, {}), on_cores, 8) == (2, 8, {"num_cpus": 8})
    assert _share(nodes({"CPU": 16.0, "GPU": 2.0}, {"CPU": 8.0}), on_gpus, None) == (2, 4, {"num_gpus": 1})
    for none in (nodes(), nodes({"CPU": 0.0}), [{"Alive": False, "Resources": {"CPU": 4.0}}]):
        with pytest.raises(DgiqaError, match="has a core"):
            _share(none, on_cores, None)
    with pytest.raises(DgiqaError, match="what an actor needs"):
        _share(nodes({"CPU": 16.0}), on_gpus, None)


def test_an_actor_tells_a_shard_that_is_missing(tiny_bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    actor = _ShardScorer(job_of(tmp_path, tiny_bundle), 1)
    done = Done(**json.loads(actor({"shard": str(tmp_path / "gone.tar")})["done"]))
    assert (done.rows, done.error) == (1, "no such file or folder")
    assert not [name for name in os.listdir(tmp_path) if name.endswith(MARKER)]


@pytest.fixture(scope="module")
def shards(
    tmp_path_factory: pytest.TempPathFactory, photos: dict[str, NDArray[np.uint8]], encode: Callable[..., bytes]
) -> list[str]:
    folder = tmp_path_factory.mktemp("set")
    small = np.ascontiguousarray(photos["coffee"][::4, ::4])
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:03}.tar", "w") as archive:
            for number in range(EACH):
                data = encode(np.roll(small, 3 * (shard * EACH + number), 1)) if (shard, number) != (2, 5) else b"no"
                info = tarfile.TarInfo(f"é/{shard}-{number}.png")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return [str(folder / f"{shard:03}.tar") for shard in range(SHARDS)]


def facts(out: Path) -> list[tuple[Any, ...]]:
    return sorted((row["path"], row["key"], row["score"], row["error"]) for row in read_rows(str(out)))


# No row is written while as many shards are done as the name of a file in the folder says; its content is where.
HOLDS = """
import os, sys, time
from pathlib import Path
def held():
    for hold in Path({folder!r}).glob("[0-9]*"):
        try:
            if sum(name.endswith({marker!r}) for name in os.listdir(hold.read_text())) >= int(hold.name):
                return True
        except FileNotFoundError:  # it has just been let go
            pass
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "dgiqa.batch.scan":
            sys.meta_path.remove(self)
            from dgiqa.report import files
            write = files.write_parquet
            def waits(row):
                while held():
                    time.sleep(0.01)
                return row
            files.write_parquet = lambda rows, *rest: write(map(waits, rows), *rest)
sys.meta_path.insert(0, Finder())
"""


@pytest.fixture(scope="module")
def holds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("holds")


@pytest.fixture(scope="module")
def cluster(holds: Path) -> Iterator[Any]:
    """A head that scores nothing, and three nodes of one core each."""
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # of a machine that runs other things beside the tests
        patch.setenv("RAY_raylet_start_wait_time_s", str(PATIENCE_S))
        (holds / "sitecustomize.py").write_text(HOLDS.format(folder=str(holds), marker=MARKER))
        patch.setenv("PYTHONPATH", str(holds), prepend=os.pathsep)
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **LITTLE})
        made.nodes = [made.add_node(num_cpus=1, **LITTLE) for _ in range(3)]
        ray.init(made.address, log_to_driver=False, logging_level="ERROR")
        yield made
        ray.shutdown()
        made.shutdown()


@pytest.mark.slow
def test_a_killed_worker_and_a_killed_node_lose_nothing(
    tmp_path: Path, shards: list[str], tiny_bundle: Bundle, cluster: Any, holds: Path
) -> None:
    """Both are in the middle of a shard."""
    psutil = pytest.importorskip("psutil")
    whole = tmp_path / "whole"
    run_here("scan", *shards, "--out", whole, "--bundle", tiny_bundle.path)
    out, killed = tmp_path / "out", list[str]()
    out.mkdir()
    for count in (2, 5):
        (holds / str(count)).write_text(str(out))

    def worker() -> Any:
        processes = psutil.process_iter(["cmdline"])
        return next((p for p in processes if any("ShardScorer" in word for word in p.info["cmdline"] or [])), None)

    def kill() -> None:
        def done(count: int) -> None:
            until(lambda: sum(name.endswith(MARKER) for name in os.listdir(out)) >= count)

        done(2)
        until(worker).kill()
        killed.append("worker")
        (holds / "2").unlink()
        done(5)
        cluster.remove_node(cluster.nodes.pop(), allow_graceful=False)
        killed.append("node")
        (holds / "5").unlink()

    killer = threading.Thread(target=kill)
    killer.start()
    found = list(scan_on_ray(shards, job_of(out, tiny_bundle), threads=1))
    killer.join()
    assert killed == ["worker", "node"]
    assert sorted(done.shard for done in found) == shards
    assert sum(done.rows for done in found) == SHARDS * EACH
    assert facts(out) == facts(whole)
    assert len(facts(out)) == SHARDS * EACH
    assert not [name for name in os.listdir(out) if "partial" in name]


@pytest.mark.slow
def test_the_command_goes_on_and_a_bundle_of_another_kind_is_refused(
    tmp_path: Path, shards: list[str], tiny_bundle: Bundle, cluster: Any
) -> None:
    command = ("scan", "--out", tmp_path, "--bundle", tiny_bundle.path, "--ray", "auto")
    first = run_here(*command, *shards[:2])
    assert first.returncode == 0, first.stderr
    again = run_here(*command, *shards[:3], "--resume")
    assert again.returncode == 3
    assert b"3/3" in again.stderr
    other = Job(str(tmp_path), {"bundle": str(tiny_bundle.path)}, {"bundle": "other:0123"})
    with pytest.raises(DgiqaError, match="wanted other:0123"):
        list(scan_on_ray(shards[3:4], other, threads=1))
