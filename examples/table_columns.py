"""A column of scores for pandas, Polars, Hugging Face datasets, Spark and Dask.

pip install "dgiqa-rt[cpu,table]", and whichever of them you use
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

from dgiqa import Scorer
from dgiqa.sources import images

BUNDLE = "small"


@functools.cache
def scorer(bundle: str = BUNDLE) -> Scorer:
    """One for each process."""
    return Scorer(bundle)


def scores(table: Any, column: str = "image", bundle: str = BUNDLE) -> list[float | None]:
    """A score for each row of a pandas, Polars or PyArrow table or a dataset; None where there is no image."""
    return [getattr(result, "value", None) for result in scorer(bundle).score_many(inputs(table, column))]


def inputs(table: Any, column: str) -> Iterator[tuple[str, Any]]:
    """(name, image) of each row; a cell that holds none is given as no bytes, which is an error of its own."""
    for item in images(table, column):
        yield item.name, b"" if item.source is None else item.source


def with_pandas(table: Any, **options: str) -> Any:
    return table.assign(quality=scores(table, **options))


def with_polars(table: Any, **options: str) -> Any:
    import polars

    return table.with_columns(polars.Series("quality", scores(table, **options), dtype=polars.Float64))


def with_datasets(dataset: Any, bundle: str = BUNDLE, batch_size: int = 64) -> Any:
    """`datasets.map` in batches; images are left encoded, so that they are decoded once, upright."""
    from datasets import Image

    def add(batch: dict[str, list[Any]]) -> dict[str, list[float | None]]:
        given = ((str(n), cell["bytes"] or cell["path"]) for n, cell in enumerate(batch["image"]))
        return {"quality": [getattr(result, "value", None) for result in scorer(bundle).score_many(given)]}

    encoded = dataset.cast_column("image", Image(decode=False))
    return encoded.map(add, batched=True, batch_size=batch_size).cast_column("image", dataset.features["image"])


def map_in_pandas(parts: Iterable[Any], bundle: str = BUNDLE) -> Iterator[Any]:
    """For Spark: `frame.mapInPandas(map_in_pandas, "id string, image binary, quality double")`.

    Each executor opens one scorer; Spark gives a part again where an executor is lost.
    """
    for part in parts:
        yield with_pandas(part, bundle=bundle)


def with_dask(frame: Any, bundle: str = BUNDLE) -> Any:
    """A Dask DataFrame with the column, computed partition by partition."""
    meta = {**dict(frame.dtypes), "quality": "float64"}
    return frame.map_partitions(with_pandas, bundle=bundle, meta=meta)
