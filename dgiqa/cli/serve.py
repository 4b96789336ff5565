"""`dgiqa-rt serve`, the model as an HTTP server, and `triton-repo`, the model for a Triton server."""

import contextlib
import os
from typing import Annotated, Any

from dgiqa.cli import options
from dgiqa.cli.common import Stopped, app, argument, option, say
from dgiqa.cli.options import share, whole
from dgiqa.extras import needs

Preset = Annotated[
    str | None, option(..., "NAME", "Instead of --gate: the model's threshold: upload, archive, curation.")
]
Gate = Annotated[float | None, share(..., "The verdict is pass for scores of X or more.")]


@app.command()
@options.joined(reading=["private_network", "max_bytes", "timeout"])
def serve(  # noqa: PLR0917 - the command line's options
    host: str = option(
        "127.0.0.1", "ADDRESS", "The address to listen on; 0.0.0.0 means every address of this machine."
    ),
    port: int = option(8000, "N", "The port; 0 takes a free one.", min=0, max=65535),
    queue: int | None = whole(
        None, "Images waiting or being scored; further requests get status 429.  [default: 1 per usable core]"
    ),
    max_body: int = option(64, "MIB", "Answer requests with larger bodies with 413.", min=1),
    request_timeout: float = option(
        30.0, "S", "Seconds for a body to arrive (else 408), and for its score (else 504).", min=0.1
    ),
    remote: bool = option(False, "--remote", "Fetch http and https addresses that clients send."),
    *,
    reading: Any,
    opening: dict[str, Any],
    gate: Gate = None,
    preset: Preset = None,
) -> None:
    """Serve scores over HTTP: with a page to drop a picture on, and the Open Inference Protocol.

    GET /docs on the server lists its requests. With the variable DGIQA_SERVE_TOKEN set, clients send it as a bearer
    token. On SIGTERM the server answers the requests it has accepted, then ends.

    \b
    Examples:
      dgiqa-rt serve
      dgiqa-rt serve --host 0.0.0.0 --preset upload --max-pixels 50000000
      curl --data-binary @photo.jpg localhost:8000/score
    """
    from dgiqa.scorer import Scorer

    try:
        from dgiqa.serve.app import create_app
        from dgiqa.serve.intake import Limits
        from dgiqa.serve.run import listen, run
    except ModuleNotFoundError as error:
        raise ImportError(needs("serving", error.name or "fastapi", "serve")) from error

    network = reading.network if remote else None
    opening["bundle"], gate = options.gated(opening["bundle"], gate, preset, "--gate")
    if opening["parallel"] == "auto":  # a single picture gets all threads
        opening["parallel"] = None
    listening = listen(host, port)  # before the model is loaded
    with options.usage("--tiling"):
        scorer = Scorer(**opening, gate=gate)
    waiting = {"queue": queue} if queue else {}
    limits = Limits(**waiting, body=max_body << 20, timeout_s=request_timeout)
    with listening, scorer, contextlib.suppress(Stopped):  # raised by our handler, after the server handled the signal
        run(create_app(scorer, limits, network=network, token=os.environ.get("DGIQA_SERVE_TOKEN") or None), listening)


@app.command("triton-repo")
def triton_repo(  # noqa: PLR0917 - the command line's options
    out: str = argument(..., "OUT", "The folder to make."),
    bundle: options.Bundle = "small",
    backend: options.Backend = "onnxruntime",
    precision: options.Precision = "fp32",
    engine: options.Engine = None,
    gpu: bool = option(False, "--gpu", "Run the networks on a GPU; plans always do."),
    instances: int = whole(2, "Images prepared at a time."),
    gate: Gate = None,
    preset: Preset = None,
) -> None:
    """Write a model repository for Triton Inference Server: encoded images in, scores and rows out.

    fp32 takes the model's own files. With another precision, --backend tensorrt or --engine it takes an engine from
    `build`. A plan only runs on the kind of machine that built it. The server's Python needs dgiqa-rt.

    \b
    Examples:
      dgiqa-rt triton-repo models/
      dgiqa-rt triton-repo models/ --backend tensorrt --precision fp16
    """
    from dgiqa.bundle import load_bundle
    from dgiqa.runtime import engines
    from dgiqa.serve.triton import write_repository

    model, gate = options.gated(bundle, gate, preset, "--gate")
    opened = load_bundle(model) if isinstance(model, str) else model
    built = None
    if engine is not None:
        built = engines.load(engine, opened)
    elif precision != "fp32" or backend == "tensorrt":
        built = engines.find(opened, backend, precision)
    on_gpu = gpu or (built is not None and built.backend == "tensorrt")
    written = write_repository(out, opened, engine=built, gpu=on_gpu, instances=instances, gate=gate)
    say(f"{opened.id} written to {written}; tritonserver --model-repository {written}")
