"""`dgiqa-rt build` and `dgiqa-rt cache`: engines for this machine, built, listed and removed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from dgiqa import spec
from dgiqa.cli import options
from dgiqa.cli.common import UsualFirst, app, argument, data_stream, option, print_json, say, stdout

if TYPE_CHECKING:
    from dgiqa.runtime.engines import Engine


cache_app = typer.Typer(
    cls=UsualFirst, rich_markup_mode=None, no_args_is_help=True, help="The engines built on this machine."
)
app.add_typer(cache_app, name="cache")


@app.command()
def build(  # noqa: PLR0917 - the command line's options
    fp32: bool = option(False, "--fp32", "Full precision."),
    fp16: bool = option(False, "--fp16", "Half precision; the default."),
    int8: bool = option(False, "--int8", "Eight-bit integers, calibrated on images."),
    fp8: bool = option(False, "--fp8", "Eight-bit floats, calibrated on images: TensorRT, from capability 8.9 on."),
    bf16: bool = option(False, "--bf16", "OpenVINO on processors that have it."),
    bundle: options.Bundle = "small",
    backend: options.Backend = "auto",
    calib: Path | None = option(
        None,
        "DIR",
        "Calibrate int8 or fp8 on the images in this folder; 500 are enough.  [default: the model's]",
        exists=True,
        file_okay=False,
    ),
    batch: str = option("1,8,32", "MIN,OPT,MAX", "TensorRT: tiles per run: the fewest, the usual number, the most."),
    depth: list[str] | None = option(
        None, "HxW", "TensorRT: another size of depth input to accept; repeatable.  [default: for 1:1, 4:3 and 16:9]"
    ),
    workspace: float = option(4.0, "GB", "TensorRT: scratch memory.", min=0.1, max=1024),
    timing_cache: Path | None = option(
        None, "FILE", "TensorRT: a file of measured kernels, which is read and extended.", dir_okay=False
    ),
    plugin: list[Path] | None = option(
        None, "FILE", "TensorRT: a library that serves operators; repeatable.", exists=True, dir_okay=False
    ),
    device: options.Device = None,
    version_compatible: bool = option(False, "--version-compatible", "TensorRT: run with other minor versions, too."),
    exclude_lean_runtime: bool = option(
        False, "--exclude-lean-runtime", "With --version-compatible: leave out the runtime that tensorrt_lean brings."
    ),
    hardware: Literal["ampere+", "same"] | None = option(  # dgiqa.builder.plan.HARDWARE
        None, "", "TensorRT: run on every GPU from Ampere on, or of the same compute capability."
    ),
    level: int = option(3, "--optimization-level N", "TensorRT: effort to find kernels.", min=0, max=5),
    force: bool = option(False, "--force", "Build again, even if the engine is there."),
    json_: options.Json = False,
) -> None:
    """Build an engine of a model for this machine, and prove it.

    The precision is written into the network's graph and read back from the built engine. Then the model's golden
    images are scored. A score may differ by 0.0001 in fp32, 0.002 in fp16, 0.02 in int8, fp8 and bf16. A build that
    misses its precision or this budget is deleted, and the exit code is 4.

    \b
    Examples:
      dgiqa-rt build
      dgiqa-rt build --int8 --calib photos/ --backend openvino
      dgiqa-rt build --fp16 --backend tensorrt --batch 1,8,32
      dgiqa-rt score photo.jpg --precision int8
    """
    from dgiqa.builder.build import build as build_engine
    from dgiqa.builder.plan import PlanOptions

    asked = {"fp32": fp32, "fp16": fp16, "int8": int8, "fp8": fp8, "bf16": bf16}
    names = [name for name, wanted in asked.items() if wanted] or ["fp16"]
    options.refuse(len(names) > 1, "an engine has one precision", " ".join(f"--{name}" for name in names))
    precision = names[0]
    wrong = calib and precision not in spec.QUANTIZED
    options.refuse(wrong, f"{precision} runs the model's own files; give --int8, --fp8 or --fp16", "--calib")
    with options.usage("--exclude-lean-runtime"):
        plan = PlanOptions(version_compatible, exclude_lean_runtime, hardware or "", level)
    engine = build_engine(
        bundle,
        backend=backend,
        precision=precision,
        batch=_batch(batch),
        buckets=[_size(text) for text in depth or []],
        workspace=int(workspace * 2**30),
        timing_cache=timing_cache,
        plugins=plugin or [],
        plan=plan,
        calibration=[calib] if calib else None,
        device=device,
        force=force,
        progress=say,
    )
    if json_:
        print_json({**_facts(engine), "certificate": engine.certificate})
        return
    found = engine.certificate
    for kind, words in (("types", "weighted layers in the file"), ("layers", "layers in the engine")):
        for network, counts in found[kind].items():
            say(f"{network}: {words}: {', '.join(f'{n} {name}' for name, n in sorted(counts.items()))}")
    say(f"{found['bytes'] / 1e6:.1f} MB, {found['share_of_fp32_bytes']:.2f} of the fp32 files")
    say(_parity(engine))
    print(engine.path, file=data_stream())


@cache_app.command("ls")
def list_(json_: options.Json = False) -> None:
    """List the engines built on this machine."""
    from dgiqa.report.rows import printable
    from dgiqa.runtime.engines import damaged, list_engines

    engines, broken = list_engines(), damaged()
    if json_:
        print_json({"engines": [_facts(engine) for engine in engines], "damaged": broken})
        return
    if not engines and not broken:
        say("no engine is built on this machine; dgiqa-rt build makes one")
    for engine in engines:
        belongs = f"{engine.key['engine']} {engine.key['version']} on {engine.key['device']}"
        print(f"{engine.name}  {engine.bytes / 1e6:.1f} MB  {engine.created[:19]}", file=stdout())
        print(f"  {printable(belongs)}; {_parity(engine)}", file=stdout())
    for name, why in broken.items():
        print(f"{printable(name)}  not used: {printable(why)}", file=stdout())


@cache_app.command("rm")
def remove(
    names: list[str] | None = argument(None, "ENGINE", "Names that `cache ls` shows."),
    all_: bool = option(False, "--all", "All engines, and files compiled for them; bundles stay."),
) -> None:
    """Remove engines."""
    from dgiqa.runtime import engines

    options.refuse(bool(names) == all_, "name engines, or give --all", "ENGINE")
    for name in names or []:
        say(f"removed {engines.remove(name)}")
    if all_:
        say(f"removed all engines, {engines.clear() / 1e6:.1f} MB")


@cache_app.command("path")
def path(name: str | None = argument(None, "ENGINE", "A name that `cache ls` shows.")) -> None:
    """Print the folder of all engines, or of one."""
    from dgiqa.runtime.engines import engines_folder, folder_of

    print(folder_of(name) if name else engines_folder(), file=data_stream())


def _batch(text: str) -> tuple[int, int, int]:
    try:
        low, usual, high = (int(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}, wanted three numbers such as 1,8,32", param_hint="--batch") from error
    from dgiqa.builder.build import check_batch

    with options.usage("--batch"):
        check_batch((low, usual, high))
    return low, usual, high


def _size(text: str) -> tuple[int, int]:
    if not (found := re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)):
        raise typer.BadParameter(f"{text!r}, wanted height x width such as 518x1204", param_hint="--depth")
    return int(found[1]), int(found[2])


def _facts(engine: Engine) -> dict[str, Any]:
    plain = {name: getattr(engine, name) for name in ("name", "bytes", "created", "key")}
    return plain | {
        "path": str(engine.path),
        "max_difference": engine.certificate.get("max_difference"),
        "share_of_budget": engine.certificate.get("share"),
    }


def _parity(engine: Engine) -> str:
    """ "int8: scores within 3.1e-03, 15% of the budget of 0.02, over 7 images"."""
    from dgiqa.report.rows import plural

    found = engine.certificate
    used = f"{found['share']:.0%} of the budget of {found['tolerance']:g}, over {plural(found['images'], 'image')}"
    return f"{engine.precision}: scores within {found['max_difference']:.1e}, {used}"
