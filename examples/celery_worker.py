"""Images scored by Celery workers, each with one scorer: `celery -A celery_worker worker`.

pip install "dgiqa-rt[cpu]" celery
"""

from __future__ import annotations

import functools
import os
from typing import Any

from celery import Celery

from dgiqa import ImageError, Scorer

app = Celery("quality", broker=os.environ.get("BROKER", "redis://localhost"), backend=os.environ.get("RESULTS"))


@functools.cache
def scorer() -> Scorer:
    """Opened by the first task of a worker's process, and not before the fork."""
    return Scorer(os.environ.get("DGIQA_BUNDLE", "small"), threads=1)


@app.task(acks_late=True, reject_on_worker_lost=True)
def score(path: str) -> dict[str, Any]:
    """The row of one image; what cannot be scored is a result, too."""
    try:
        return scorer().score(path).as_row()
    except ImageError as error:
        return {"path": path, "score": None, "error": str(error)}
