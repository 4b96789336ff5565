"""Images scored by RQ workers, each with one scorer: `rq worker --worker-class rq.SimpleWorker quality`.

pip install "dgiqa-rt[cpu]" rq

    from redis import Redis
    from rq import Queue

    Queue("quality", connection=Redis()).enqueue("rq_jobs.score", "photo.jpg")

RQ's other workers fork for each job, which would open the model for each image.
"""

from __future__ import annotations

import functools
import os
from typing import Any

from dgiqa import ImageError, Scorer


@functools.cache
def scorer() -> Scorer:
    """Opened by a worker's first job."""
    return Scorer(os.environ.get("DGIQA_BUNDLE", "small"), threads=1)


def score(path: str) -> dict[str, Any]:
    """The row of one image; what cannot be scored is a result, too."""
    try:
        return scorer().score(path).as_row()
    except ImageError as error:
        return {"path": path, "score": None, "error": str(error)}
