"""Uploads below a threshold are answered with 422 and the reasons: `uvicorn fastapi_gate:app`.

pip install "dgiqa-rt[cpu]" fastapi python-multipart uvicorn
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request, UploadFile

from dgiqa import ImageError, Score, Scorer


@asynccontextmanager
async def opened(app: FastAPI) -> AsyncIterator[None]:
    """One scorer for the whole process: images of concurrent requests share batches."""
    with Scorer(os.environ.get("DGIQA_BUNDLE", "small"), gate=float(os.environ.get("DGIQA_GATE", "0.4"))) as scorer:
        app.state.scorer = scorer
        yield


async def good_image(request: Request, file: UploadFile) -> Score:
    """The score of an uploaded image that passes."""
    try:
        score = await request.app.state.scorer.ascore(await file.read(), name=file.filename)
    except ImageError as error:
        raise HTTPException(422, str(error)) from error
    if score.verdict == "fail":
        raise HTTPException(422, {"score": round(score.value, 4), "reasons": list(score.faults)})
    return score


app = FastAPI(lifespan=opened)


@app.post("/photos")
async def upload(score: Annotated[Score, Depends(good_image)]) -> dict[str, object]:
    return {"stored": score.source, "score": round(score.value, 4)}
