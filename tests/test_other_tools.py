"""The examples of other people's tools do what they say: where a tool is not installed, its contract is kept."""

from __future__ import annotations

import importlib
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from command import run_here
from numpy.typing import NDArray

from dgiqa.bundle import Bundle
from dgiqa.scorer import Scorer

ROOT = Path(__file__).parent.parent
Example = Callable[[str], ModuleType]


@pytest.fixture(scope="module")
def pictures(photos: dict[str, NDArray[np.uint8]], encode: Callable[..., bytes]) -> list[bytes]:
    small = np.ascontiguousarray(photos["coffee"][::4, ::4])
    return [encode(small), encode(small // 3), b"no image", encode(255 - small)]


@pytest.fixture(scope="module")
def wanted(pictures: list[bytes], tiny_bundle: Bundle) -> list[float | None]:
    with Scorer(tiny_bundle) as scorer:
        return [getattr(result, "value", None) for result in scorer.score_many(pictures)]


def plain(values: Iterable[float | None]) -> list[float | None]:
    """None instead of NaN."""
    return [None if value is None or math.isnan(value) else value for value in values]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Example:
    """example("celery_worker") -> the module: imported as its tool would, which pickles what is in it by name."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module


@pytest.fixture
def table(example: Example) -> Iterator[ModuleType]:
    found = example("table_columns")
    yield found
    found.scorer.cache_clear()


def test_fastapi_refuses_uploads_below_the_gate(
    example: Example, pictures: list[bytes], wanted: list[Any], tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fastapi")
    pytest.importorskip("multipart")
    try:
        from fastapi.testclient import TestClient
    except RuntimeError as error:  # Starlette's client asks for httpx or httpx2, by its version
        pytest.skip(str(error))

    monkeypatch.setenv("DGIQA_BUNDLE", str(tiny_bundle.path))
    monkeypatch.setenv("DGIQA_GATE", str((wanted[0] + wanted[1]) / 2))
    with TestClient(example("fastapi_gate").app) as client:
        answers = [client.post("/photos", files={"file": ("a.png", data)}) for data in pictures[:3]]
    good, bad = (0, 1) if wanted[0] > wanted[1] else (1, 0)
    assert answers[good].json() == {"stored": "a.png", "score": round(wanted[good], 4)}
    assert (answers[bad].status_code, answers[bad].json()["detail"]["score"]) == (422, round(wanted[bad], 4))
    assert answers[2].status_code == 422
    assert "not an image" in answers[2].json()["detail"]


def test_a_celery_task_gives_rows(  # noqa: PLR0917 - fixtures
    example: Example, pictures: list[bytes], wanted: list[Any], tiny_bundle: Bundle, tmp_path: Path, monkeypatch: Any
) -> None:
    pytest.importorskip("celery")
    monkeypatch.setenv("DGIQA_BUNDLE", str(tiny_bundle.path))
    monkeypatch.setenv("BROKER", "memory://")
    worker = example("celery_worker")
    worker.app.conf.update(task_always_eager=True, task_eager_propagates=True)
    for number, data in enumerate(pictures):
        (tmp_path / f"{number}.png").write_bytes(data)
    rows = [worker.score.delay(str(tmp_path / f"{number}.png")).get() for number in range(4)]
    assert [row["score"] for row in rows] == [value and round(value, 6) for value in wanted]
    assert "not an image" in rows[2]["error"]


def test_an_rq_worker_gives_rows(  # noqa: PLR0917 - fixtures
    example: Example, pictures: list[bytes], wanted: list[Any], tiny_bundle: Bundle, tmp_path: Path, monkeypatch: Any
) -> None:
    rq, fakeredis = pytest.importorskip("rq"), pytest.importorskip("fakeredis")
    monkeypatch.setenv("DGIQA_BUNDLE", str(tiny_bundle.path))
    jobs, connection = example("rq_jobs"), fakeredis.FakeStrictRedis()
    queue = rq.Queue("quality", connection=connection)
    waiting = []
    for number, data in enumerate(pictures):
        (tmp_path / f"{number}.png").write_bytes(data)
        waiting.append(queue.enqueue("rq_jobs.score", str(tmp_path / f"{number}.png")))
    assert rq.SimpleWorker([queue], connection=connection).work(burst=True)
    rows = [job.return_value() for job in waiting]
    assert [row["score"] for row in rows] == [value and round(value, 6) for value in wanted]
    assert "not an image" in rows[2]["error"]
    assert jobs.scorer.cache_info().misses == 1


def test_pandas_and_polars_get_a_column(
    table: ModuleType, pictures: list[bytes], wanted: list[Any], tiny_bundle: Bundle
) -> None:
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    columns = {"id": list("abcde"), "image": [*pictures, None]}
    bundle = str(tiny_bundle.path)
    found = table.with_pandas(pandas.DataFrame(columns), bundle=bundle)["quality"]
    assert plain(found) == [*wanted, None]
    assert table.with_polars(polars.DataFrame(columns), bundle=bundle)["quality"].to_list() == [*wanted, None]


def test_datasets_map_keeps_the_images(
    table: ModuleType, pictures: list[bytes], wanted: list[Any], tiny_bundle: Bundle
) -> None:
    datasets = pytest.importorskip("datasets")
    cells = [{"bytes": data, "path": None} for data in pictures]
    dataset = datasets.Dataset.from_dict({"image": cells}, datasets.Features({"image": datasets.Image()}))
    found = table.with_datasets(dataset, bundle=str(tiny_bundle.path), batch_size=2)
    assert found["quality"][:] == wanted
    assert found[0]["image"].size == (150, 100)


def test_spark_gets_an_iterator_of_frames_for_one(
    table: ModuleType, pictures: list[bytes], wanted: list[Any], tiny_bundle: Bundle
) -> None:
    """What Spark calls: pandas frames in, as many frames out, of the declared columns, never all at once."""
    pandas = pytest.importorskip("pandas")
    taken = list[int]()

    def parts() -> Iterator[Any]:
        for number, data in enumerate(pictures):
            taken.append(number)
            yield pandas.DataFrame({"id": [str(number)], "image": [data]})

    found = table.map_in_pandas(parts(), bundle=str(tiny_bundle.path))
    assert next(found).columns.tolist() == ["id", "image", "quality"]
    assert taken == [0]
    rest = pandas.concat(found)["quality"].tolist()
    assert plain(rest) == wanted[1:]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java")
def test_spark_maps_in_pandas(
    table: ModuleType, pictures: list[bytes], wanted: list[Any], tiny_bundle: Bundle, tmp_path: Path
) -> None:
    pyspark = pytest.importorskip("pyspark.sql")
    bundle, script = str(tiny_bundle.path), str(ROOT / "examples")
    session = (
        pyspark.SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.executorEnv.PYTHONPATH", os.pathsep.join([script, str(ROOT)]))
        .getOrCreate()
    )
    try:
        frame = session.createDataFrame(list(enumerate(map(bytearray, pictures))), "id int, image binary")

        def mapped(parts: Any) -> Any:
            sys.path[:0] = [script, str(ROOT)]
            import table_columns

            return table_columns.map_in_pandas(parts, bundle)

        found = frame.repartition(2).mapInPandas(mapped, "id int, image binary, quality double").collect()
    finally:
        session.stop()
    assert dict(zip((row.id for row in found), plain(row.quality for row in found), strict=True)) == dict(
        enumerate(wanted)
    )


def test_dask_computes_partition_by_partition(
    table: ModuleType, pictures: list[bytes], wanted: list[Any], tiny_bundle: Bundle
) -> None:
    pandas, dask = pytest.importorskip("pandas"), pytest.importorskip("dask")
    frames = pytest.importorskip("dask.dataframe")
    with dask.config.set({"dataframe.convert-string": False}):
        frame = frames.from_pandas(pandas.DataFrame({"image": pictures}), npartitions=2)
        found = table.with_dask(frame, bundle=str(tiny_bundle.path)).compute(scheduler="synchronous")
    assert plain(found["quality"]) == wanted


class Sample(dict[str, Any]):
    """What the example uses of FiftyOne's samples."""

    def __init__(self, number: int, path: Path) -> None:
        super().__init__()
        self.id, self.filepath, self.saved = f"id{number}", str(path), 0

    def save(self) -> None:
        self.saved += 1


def test_fiftyone_gets_a_field(
    example: Example, pictures: list[bytes], wanted: list[Any], telling_bundle: Bundle, tmp_path: Path
) -> None:
    """FiftyOne brings a database server, so a stand-in has what the example uses of it."""
    samples = [Sample(number, tmp_path / f"{number}.png") for number in range(4)]
    for sample, data in zip(samples, pictures, strict=True):
        Path(sample.filepath).write_bytes(data)
    with Scorer(telling_bundle) as scorer:
        assert example("fiftyone_field").add_quality(samples, scorer, "q") == 1
        scores = [getattr(result, "value", None) for result in scorer.score_many(pictures)]
    assert [sample["q"] for sample in samples] == scores
    assert [sample.saved for sample in samples] == [1] * 4
    assert isinstance(samples[0]["q_reasons"], list)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(("gate", "code"), [("0", 0), ("1", 4)])
def test_the_action_gates_what_it_is_given(
    pictures: list[bytes], tiny_bundle: Bundle, tmp_path: Path, gate: str, code: int
) -> None:
    yaml = pytest.importorskip("yaml")
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    assert action["runs"]["using"] == "composite"
    step = action["runs"]["steps"][1]
    assert "${{" not in step["run"], "an expression in a script runs what it holds"
    names = {text[len("${{ inputs.") : -len(" }}")] for text in step["env"].values()}
    assert names == action["inputs"].keys()
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "$(touch oops) .png").write_bytes(pictures[0])
    (tmp_path / "b.png").write_bytes(pictures[1])
    (tmp_path / "dgiqa-rt").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m dgiqa "$@"\n')
    (tmp_path / "dgiqa-rt").chmod(0o755)
    given = {"PATHS": "deep\n\nb*.png\n", "PRESET": "upload", "FAIL_UNDER": gate, "REPORT": "q.html"}
    paths = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    environment = os.environ | given | paths | {"BUNDLE": str(tiny_bundle.path)}
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert done.stdout.count(".png") == 2
    assert "http" not in (tmp_path / "q.html").read_text().replace("http-equiv", "")
    assert not (tmp_path / "oops").exists()


def test_the_hook_gates_the_files_it_is_given(pictures: list[bytes], tiny_bundle: Bundle, tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    program, *arguments = hook["entry"].split()
    assert (program, hook["language"], hook["args"]) == ("dgiqa-rt", "python", ["--preset", "upload"])
    (tmp_path / "a.png").write_bytes(pictures[0])
    command = (*arguments, "--bundle", tiny_bundle.path, "--fail-under")
    assert run_here(*command, "0", tmp_path / "a.png").returncode == 0
    assert run_here(*command, "1", tmp_path / "a.png").returncode == 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRE_COMMIT_HOME", str(tmp_path / "cache"))
        clientlib = pytest.importorskip("pre_commit.clientlib")
        assert clientlib.load_manifest(str(ROOT / ".pre-commit-hooks.yaml"))[0]["id"] == "image-quality"


def test_every_example_is_named_on_the_page_of_examples() -> None:
    listed = (ROOT / "examples" / "README.md").read_text()
    assert [path.name for path in (ROOT / "examples").glob("*.py") if f"`{path.name}`" not in listed] == []
