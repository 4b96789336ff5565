"""Options that several commands take: declared once, with their help, and checked once."""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from dgiqa.cli import common
from dgiqa.cli.common import option
from dgiqa.errors import ImageError

if TYPE_CHECKING:
    from dgiqa import bundle as bundles
    from dgiqa.report.files import Report
    from dgiqa.report.rows import Kind
    from dgiqa.sources.inputs import Reading


def whole(default: int | None, told: str) -> Any:
    """An option for a whole number from 1 on."""
    return option(default, "N", told, min=1)


def share(default: float | None, told: str, shown: str = "X") -> Any:
    """An option for a number from 0 to 1."""
    return option(default, shown, told, min=0.0, max=1.0)


Bundle = Annotated[str, option(..., "NAME|DIR", "The model: a name that `models` lists, or a folder.")]
Backend = Annotated[common.Backend, option(..., "", "What runs the networks. A missing one is an error.")]
Precision = Annotated[
    common.Precision, option(..., "", "The networks' number format. All but fp32 need an engine from `build`.")
]
Engine = Annotated[Path | None, option(..., "DIR", "An engine's folder, instead of looking in the cache.")]
Device = Annotated[int | None, option(..., "N", "The GPU's number in CUDA.  [default: the first]", min=0)]
Workers = Annotated[int | None, whole(..., "Threads that prepare images.  [default: usable cores, at most 16]")]
Preset = Annotated[
    str | None,
    option(
        ...,
        "NAME",
        "The model's threshold: upload, archive, curation, or own after `calibrate`. Exit with code 4 below it.",
    ),
]
Format = Annotated[
    common.Format | None,
    option(..., "--format -f", "Rows on standard output.  [default: table on a terminal, else jsonl; none with -o]"),
]
Json = Annotated[bool, option(..., "--json", "One JSON document.")]
Quiet = Annotated[bool, option(..., "--quiet -q", "No progress and no summary, only errors and missed thresholds.")]
NoProgress = Annotated[bool, option(..., "--no-progress", "No progress line.")]
Output = Annotated[
    str | None, option(..., "--output -o FILE", "Write rows to FILE: .csv, .jsonl, .json, .parquet or .sqlite.")
]
Recursive = Annotated[bool, option(..., "--recursive -r", "Look in subfolders of folders, too.")]
Overwrite = Annotated[bool, option(..., "--overwrite", "Replace a model of that name.")]
Bundles = Annotated[Path | None, option(..., "DIR", "Folder of bundles.  [default: this user's cache]")]


def _opening(
    *,
    bundle: Bundle = "small",
    tiling: str = option(
        "grid",
        "TILING",
        "grid covers the whole image and repeats exactly; official:20[:SEED] draws the authors' random "
        "crops as albumentations 1.4.21 and later do; official-1.3:20 etc. do as older ones: "
        "see explanation/preprocessing in the docs.",
    ),
    backend: Backend = "auto",
    precision: Precision = "fp32",
    build: bool = option(False, "--build", "Build the engine first if it is missing or stale."),
    engine: Engine = None,
    device: Device = None,
    graphs: bool | None = option(
        None, "--graphs/--no-graphs", "Let the GPU record CUDA graphs.  [default: with tensorrt]"
    ),
    batch: int | None = whole(None, "Tiles per run of the quality network.  [default: 8, or 4 with parallel runs]"),
    threads: int | None = whole(None, "Threads that the networks use.  [default: usable cores]"),
    parallel: int | None = whole(
        None,
        "How many runs of a network are in progress at a time; they share the threads.  "
        "[default: 1 for one image, a GPU or large networks, else one per thread]",
    ),
    max_pixels: int | None = whole(None, "Refuse larger pictures.  [default: 200000000]"),
    max_memory: int | None = option(
        None, "MIB", "Refuse pictures that need more memory.  [default: 832, or no limit with --max-pixels]", min=1
    ),
    decode_timeout_s: float = option(
        60.0, "--decode-timeout S", "Give up an image that takes longer to decode.", min=0.1
    ),
) -> None:
    """Options that become Scorer's arguments."""


def _reading(
    *,
    recursive: Recursive = False,
    column: str | None = option(
        None, "NAME", "In tables: the column with the images: paths, addresses, bytes or base64."
    ),
    key: str | None = option(None, "NAME", "In tables: the column with the images' names."),
    remote: bool = option(False, "--remote", "Fetch images from addresses (https, s3, gs, az, hf)."),
    private_network: bool = option(False, "--private-network", "Fetch from this machine and its local networks, too."),
    max_bytes: int = whole(268435456, "Refuse files from addresses with more bytes."),
    timeout: float = option(30.0, "S", "Seconds that fetching an image may take.", min=0.1),
) -> None:
    """Options that become a `sources.Reading`."""


OPENING = inspect.signature(_opening, eval_str=True).parameters
READING = inspect.signature(_reading, eval_str=True).parameters


def joined(
    opening: Iterable[str] = OPENING, reading: Iterable[str] = READING
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command these options in place of its parameters `opening` (Scorer's arguments) and `reading`."""
    groups = {
        "opening": ([OPENING[name] for name in opening], _arguments),
        "reading": ([READING[name] for name in reading], _how_to_read),
    }

    def taking(command: Callable[..., None]) -> Callable[..., None]:
        parameters: list[inspect.Parameter] = []
        own = inspect.signature(command, eval_str=True)
        for each in own.parameters.values():
            declared = groups[each.name][0] if each.name in groups else [each]
            parameters += [option.replace(kind=each.kind) for option in declared]

        def run(**values: Any) -> None:
            for group in own.parameters.keys() & groups.keys():
                declared, made = groups[group]
                values[group] = made({option.name: values.pop(option.name) for option in declared})
            command(**values)

        update_wrapper(run, command).__annotations__ = {p.name: p.annotation for p in parameters}
        run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        return run

    return taking


def _arguments(values: dict[str, Any]) -> dict[str, Any]:
    if "tiling" in values:
        from dgiqa.preprocess import check_tiling

        with usage("--tiling"):
            check_tiling(values["tiling"])
    if values.get("build"):
        values["build"] = common.say
    if "parallel" in values:
        values["parallel"] = values["parallel"] or "auto"
    if values.get("max_memory"):
        values["max_memory"] <<= 20  # from MiB
    return values


def _how_to_read(values: dict[str, Any]) -> Reading:
    from dgiqa.sources.inputs import Network, Reading

    network = Network(values["private_network"], values["max_bytes"], values["timeout"])
    allowed = network if values.get("remote", True) else None
    return Reading(values.get("recursive", False), values.get("column"), values.get("key"), allowed)


@contextlib.contextmanager
def usage(option: str) -> Iterator[None]:
    """Turn a ValueError inside into a usage error of that option."""
    try:
        yield
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


def refuse(wrong: object, message: str, option: str | None = None) -> None:
    """Raise a usage error of that option if something is wrong."""
    if wrong:
        raise typer.BadParameter(message, param_hint=option)


def only(options: Mapping[str, object]) -> str:
    """The one option that has a value, "" if none has. Two are a usage error."""
    given = [name for name, value in options.items() if value is not None]
    refuse(len(given) > 1, f"give only one of {' and '.join(given)}", given[-1] if given else None)
    return given[0] if given else ""


def gated(
    bundle: str, gate: float | None, preset: str | None, option: str
) -> tuple[str | bundles.Bundle, float | None]:
    """The model, loaded if a preset of it is asked for, and the threshold: the one given or the preset's.

    option: the option of `gate`, for the message where both are given.
    """
    if preset is None:
        return bundle, gate
    refuse(gate is not None, f"give --preset or {option}, not both", "--preset")
    from dgiqa.bundle import load_bundle

    loaded = load_bundle(bundle)
    with usage("--preset"):
        return loaded, loaded.meaning.preset(preset)


def check_suffix(output: str | None) -> str | None:
    """The format of the rows in this file. Call it before anything is read: an unknown suffix is a usage error."""
    from dgiqa.report.files import format_of

    with usage("--output"):
        return format_of(output) if output else None


def check_columns(paths: Iterable[str], reading: Reading) -> None:
    """Raise a usage error for --column or --key where no path is a table, or may stand for some."""
    from dgiqa.sources.inputs import PHOTO_SUFFIXES, suffix_of
    from dgiqa.sources.tables import is_table

    given = "--column" if reading.column else "--key" if reading.key else ""
    known = (path == "-" or os.path.exists(path) or suffix_of(path) in PHOTO_SUFFIXES for path in paths)
    unread = all(known) and not any(map(is_table, paths))
    refuse(given and unread, "only tables have columns, and no table is named", given)


def check_stdin(argument: str) -> None:
    """Raise a usage error of the argument that names standard input, if nothing can come from there."""
    unread = sys.stdin is None or sys.stdin.isatty()
    refuse(unread, "standard input (-) is closed or a terminal; pipe something into it", argument)


def opened_list(path: str, null: bool = False) -> BinaryIO:
    """Open the list of --from-file, to be read lazily. An image in its place is a usage error."""
    from dgiqa.image.kinds import HEAD, identify

    try:
        file = open(path, "rb")  # noqa: SIM115
    except OSError as error:
        raise typer.BadParameter(f"{path}: {error.strerror}", param_hint="--from-file") from error
    with contextlib.suppress(ImageError):
        kind, _ = identify(head := file.peek()[:HEAD])
        binary = b"\0" in head and not null  # else a list, whose first name begins with BM or P1
        refuse(binary, f"{path} is a {kind} image, not a list of names", "--from-file")
    return file


def check_files(sources: Iterable[str | None], files: Mapping[str, str | None]) -> None:
    """Raise a usage error if a file is written twice, or is an input too. files: output files by their options."""
    taken = {os.path.realpath(source): "the input" for source in sources if source}
    for name, path in files.items():
        if path is None or (os.path.exists(path) and not os.path.isfile(path)):  # a device may be written twice
            continue
        other = taken.setdefault(os.path.realpath(path), name)
        refuse(other is not name, f"{path} is {other} as well; name another file", name)
        suffix = {"--plot": ".png", "--html": ".html", "--output FILE.html": ".html"}.get(name, "")
        refuse(
            not path.lower().endswith(suffix), f"{path!r} is written as {suffix[1:].upper()}; end it in {suffix}", name
        )


def write_rows(
    report: Report,
    output: str | None,
    format_: common.Format | None,
    kind: Kind = "image",
    *,
    details: bool = False,
    ordered: tuple[bool, str | None] = (False, None),
) -> None:
    """Let a report write its rows into the file `output`, and show them on standard output in the format named.

    Without either it shows a table on a terminal, and JSON lines elsewhere.
    ordered: (whether to show the best first, how many of them to show at most).
    """
    from dgiqa.batch.choose import ChosenWriter
    from dgiqa.report.files import SPOOLED, Writer, writer_for

    def made(name: str, stream: Any) -> Writer:
        writer = writer_for(name, stream, kind, details=details)
        if kind != "video":
            return writer
        from dgiqa.video.pooling import VideoRows

        return VideoRows(writer)

    if output and (target := check_suffix(output)):
        file = common.opened(output, spooled=target in SPOOLED)
        report.write_to(made(target, file), file)
    if not (format_ or output):
        format_ = "table" if common.stdout().isatty() else "jsonl"
    if format_:
        stream = common.stdout() if format_ == "table" else common.data_stream()
        writer = made(format_, stream)
        report.write_to(ChosenWriter(writer, ordered[1]) if any(ordered) else writer)
