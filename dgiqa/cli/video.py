"""`dgiqa-rt video`: videos in, a row per scored frame out; pooled figures, a report, and a gate for encoders."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from dgiqa.cli import options
from dgiqa.cli.common import Format, app, argument, fill, leave, option, say, show_progress, writable
from dgiqa.cli.options import share, whole

if TYPE_CHECKING:
    from dgiqa.report.files import Report
    from dgiqa.report.rows import Row
    from dgiqa.video import Summary
    from dgiqa.video.sampling import Sampling


@app.command()
@options.joined([name for name in options.OPENING if name not in ("max_memory", "decode_timeout_s")])
def video(  # noqa: PLR0917 - the command line's options
    sources: list[str] | None = argument(
        None,
        "SOURCE",
        "Videos, folders and globs of them, http(s), HLS, RTSP or SRT addresses, or - for standard input.",
    ),
    recursive: options.Recursive = False,
    from_file: str | None = option(None, "LIST", "Also score the videos in this file, one per line."),
    every: str | None = option(None, "TIME", "Score one frame every TIME: 0.5s, 250ms, 1min.  [default: 1s]"),
    fps: float | None = option(None, "N", "Score N frames per second."),
    frames: str | None = option(None, "all|N", "Score all frames, or N spread evenly."),
    scenes: int | None = option(None, "N", "Score N frames of each scene."),
    start: str | None = option(None, "TIME", "Begin here: 90s or 00:01:30."),
    end: str | None = option(None, "TIME", "End here."),
    duration: str | None = option(None, "TIME", "End TIME after the start."),
    raw: str | None = option(None, "WxH@FPS[:FORMAT]", "Frames without a container, rgb24 or yuv420p: 1280x720@25."),
    live: bool | None = option(
        None, "--live/--no-live", "Take the newest frame, and reconnect.  [default: by the address]"
    ),
    timeout: float = option(10.0, "S", "Treat a source as stalled after S silent seconds.", min=0.1),
    attempts: int = whole(10, "Give up a live source after N failures."),
    deinterlace: bool = option(False, "--deinterlace", "Deinterlace frames marked as interlaced."),
    bars: Literal["crop", "keep"] = option("crop", "", "crop: score the picture without the black bars around it."),
    decoder: Literal["cpu", "nvdec"] = option("cpu", "", "nvdec: decode local files on the GPU, and score there."),
    reuse_depth: bool = option(False, "--reuse-depth", "Compute depth only when the picture has moved enough."),
    reuse_tiles: bool = option(False, "--reuse-tiles", "Score only tiles that changed; implies --reuse-depth."),
    audit: int = option(16, "K", "Compute every K-th reused frame in full, too, to report the drift.", min=1),
    drift: float = option(0.01, "X", "Reuse less when the drift is above X."),
    *,
    opening: dict[str, Any],
    workers: options.Workers = None,
    streams: int = whole(2, "Files decoded in parallel."),
    output: options.Output = None,
    per_video: bool = option(False, "--per-video", "Write one row per video, at the end, instead of one per frame."),
    format_: options.Format = None,
    plot: str | None = option(None, "FILE.png", "Draw the curve; needs matplotlib."),
    html: str | None = option(None, "FILE.html", "Write a page that needs no network."),
    srt: str | None = option(None, "FILE.srt", "Write the score as subtitles."),
    ffmetadata: str | None = option(None, "FILE", "Write the score as chapters in FFmpeg's metadata format."),
    fail_under: float | None = share(None, "Exit with code 4 if a video's mean is below X.", "--fail-under --gate X"),
    gate_interval: float | None = option(
        None, "S", "With --fail-under or --preset: exit with code 4, too, if the mean of any S seconds is below it."
    ),
    preset: options.Preset = None,
    against: str | None = option(None, "MASTER", "The video that it was encoded from: compare frame by frame."),
    max_drop: float | None = share(None, "With --against: exit with code 4 if the mean drop is over X."),
    quiet: options.Quiet = False,
    no_progress: options.NoProgress = False,
) -> None:
    """Score frames of videos over time: a table on a terminal, JSON lines when piped.

    A frame that cannot be decoded becomes a row with its error, and so does a source that breaks off. The run goes on.
    With --against, frames are compared with the master's frames at the same times, and rows are those of `compare`.

    \b
    Examples:
      dgiqa-rt video clip.mp4 --every 0.5s --html report.html
      dgiqa-rt video -r renditions/ --preset upload -o frames.parquet
      dgiqa-rt video -r clips/ --per-video -o clips.csv
      dgiqa-rt video encoded.mp4 --preset upload --gate-interval 2
      dgiqa-rt video encoded.mp4 --against master.mov --max-drop 0.05
      dgiqa-rt video rtsp://camera/1 rtsp://camera/2 --fps 1 -o cameras.jsonl
      ffmpeg -i in.mkv -f rawvideo -pix_fmt rgb24 - | dgiqa-rt video --raw 1280x720@25 -
    """
    from dgiqa.report.files import Report
    from dgiqa.report.rows import gate_sentence
    from dgiqa.scorer import Scorer
    from dgiqa.sources import entries, videos
    from dgiqa.video import Reading, Summary, VideoRun
    from dgiqa.video.pooling import INTERVAL_S
    from dgiqa.video.reuse import Reuse
    from dgiqa.video.source import Raw

    opening["bundle"], gate = options.gated(opening["bundle"], fail_under, preset, "--fail-under")
    times = {"--every": every, "--start": start, "--end": end, "--duration": duration}
    sampling = _sampling(fps, frames, scenes, times)
    wrong = gate_interval is not None and (gate is None or not 0 < gate_interval < math.inf)
    options.refuse(wrong, "give seconds above 0, together with --fail-under or --preset", "--gate-interval")
    listed = [] if from_file is None else entries(options.opened_list(from_file))
    named = [*(sources or []), *(os.fsdecode(entry) for entry in listed if entry.strip())]
    sources = list(videos(named, recursive=recursive))
    _check_sources(sources, live, bool(srt or ffmetadata), raw)
    drawn = {"--plot": plot, "--html": html, "--srt": srt, "--ffmetadata": ffmetadata}
    options.check_files([*sources, against, from_file], {"--output": output, **drawn})
    with options.usage("--raw"):
        raw_frames = None if raw is None else Raw.parse(raw)
    with options.usage("--drift"):
        reuse = Reuse(reuse_tiles, audit, drift) if reuse_depth or reuse_tiles else None
    alone = max_drop is not None and against is None
    options.refuse(alone, "name the master to compare with: --against MASTER", "--max-drop")
    if against is not None:
        scored = {"--raw": raw, "--live": live, "--reuse-depth": reuse, **drawn, "--fail-under": gate}
        scored |= {"--decoder": decoder != "cpu", "--per-video": per_video}
        options.refuse(len(sources) > 1, "one video is compared with its master; name one", "SOURCE")
        used = [name for name, value in scored.items() if value]
        options.refuse(used, f"{', '.join(used)} cannot be combined with it", "--against")
        _against(opening, sources[0], against, sampling, (output, format_), max_drop, quiet)
    with Report() as report:
        options.write_rows(report, output, format_, "video" if per_video else "frame")
        look = _open(report, gate, *drawn.values())
        scorer = Scorer(**opening, gate=gate)
        reading = Reading(
            raw=raw_frames,
            live=live,
            timeout_s=timeout,
            attempts=attempts,
            deinterlace=deinterlace,
            bars=bars,
            max_pixels=opening["max_pixels"],
            streams=streams,
            decoder=decoder,
        )
        run = VideoRun(scorer.stages, sources, sampling, reading=reading, reuse=reuse, workers=workers)
        report.summary = summary = Summary(
            run, gate_interval or INTERVAL_S, gate=gate, interval_gate=gate_interval is not None
        )
        show_progress(report, hidden=quiet or no_progress)
        report.needed = gate is not None
        stop = fill(report, run.rows(look))
    if not quiet:
        _say_summary(summary, scorer.backend, output if report.complete or summary.scored + summary.failed else None)
    verdicts = summary.verdicts
    for line in [] if stop else summary.failures():
        say(line, prefix="gate: ")
    if gate is not None and verdicts and not stop and ("fail" in verdicts or not quiet):
        say(gate_sentence(verdicts.count("fail"), len(verdicts), "video", gate), prefix="")
    leave(stop, below="fail" in verdicts, failed=summary.failed)


def _against(  # noqa: PLR0917 - the command's own arguments
    opening: dict[str, Any],
    encoded: str,
    master: str,
    sampling: Sampling,
    where: tuple[str | None, Format | None],
    max_drop: float | None,
    quiet: bool,
) -> NoReturn:
    """Compare the video with its master; end with rows, the mean drop with its interval, and the exit code."""
    from dgiqa.report import files
    from dgiqa.report.rows import plural
    from dgiqa.scorer import Scorer
    from dgiqa.video.against import Lost, align, compare_videos

    with files.Report() as report:
        options.write_rows(report, *where, "pair")
        scorer = Scorer(**opening)
        alignment = align(encoded, master)
        report.needed = True
        report.summary = lost = Lost()
        rows = compare_videos(scorer.stages, encoded, master, sampling, alignment=alignment)
        stop = fill(report, rows)
    mean, interval = lost.mean, lost.interval
    if not quiet and mean is not None:
        said = "" if interval is None else f", 95% interval {interval[0]:+.4f} to {interval[1]:+.4f}"
        if near := lost.full_reference:
            said += f"; full reference {sum(near) / len(near):.4f}"
        frames = plural(lost.scored, "frame")
        say(f"{encoded} is at {alignment} in {master}; {frames} lost {mean:.4f} on average{said}", prefix="")
    below = max_drop is not None and mean is not None and mean > max_drop
    if below and not stop:
        say(f"{encoded} loses more than {max_drop:g} on average", prefix="gate: ")
    leave(stop, below=below, failed=lost.failed or mean is None)


def _open(report: Report, gate: float | None, *paths: str | None) -> Callable[[Row, Any], None] | None:
    """Open the plot, page, subtitles and chapters before anything slow: they may not be writable.

    Returns the page's `look`, to be called with each row's picture, or None.
    """
    from dgiqa.report.page import HtmlReport
    from dgiqa.report.plot import TimelinePlot
    from dgiqa.report.subtitles import Chapters, Subtitles

    look = None
    makers: list[Any] = [partial(TimelinePlot, gate=gate), partial(HtmlReport, gate=gate), Subtitles, Chapters]
    for make, path in zip(makers, paths, strict=True):
        if path:
            drawn = writable(make, path)
            report.write_to(drawn, drawn.file)
            look = getattr(drawn, "look", look)
    return look


def _sampling(fps: float | None, frames: str | None, scenes: int | None, given: dict[str, str | None]) -> Sampling:
    """The Sampling that the options describe. given: the options that are times, by name."""
    from dgiqa.video.sampling import Sampling, seconds

    used = options.only({"--every": given["--every"], "--fps": fps, "--frames": frames, "--scenes": scenes})
    options.refuse(fps is not None and not fps > 0, f"got {fps}, wanted a number above 0", "--fps")
    options.only({name: given[name] for name in ("--end", "--duration")})
    unknown = frames is not None and frames != "all" and not frames.isdecimal()
    options.refuse(unknown, f"{frames!r} is neither a number nor all", "--frames")
    times = {}
    for name, text in given.items():
        with options.usage(name):
            times[name] = None if text is None else seconds(text)
    first, length = times["--start"] or 0.0, times["--duration"]
    last = times["--end"] if length is None else first + length
    with options.usage(used or "--start"):
        return Sampling(
            every=0.0 if frames == "all" else times["--every"] if fps is None else 1 / fps,
            count=int(frames) if frames and frames.isdecimal() else None,
            per_scene=scenes,
            start=first,
            end=math.inf if last is None else last,
        )


def _check_sources(sources: list[str], live: bool | None, one_only: bool, raw: str | None) -> None:
    """Raise usage errors about where videos come from."""
    options.refuse(not sources, "name a video, a folder, a glob, an address, or - for standard input", "SOURCE")
    if "-" in sources:
        options.check_stdin("SOURCE")
    options.refuse(len(set(sources)) < len(sources), "a source is named twice", "SOURCE")
    options.refuse(one_only and len(sources) > 1, "--srt and --ffmetadata describe one video; name one", "SOURCE")
    file = next(filter(os.path.isfile, sources), None) if live else None
    options.refuse(file, f"{file} is a file, which would be read again and again; leave --live out", "--live")
    options.refuse(raw and live, "a raw pipe cannot be opened again; leave --live out", "--live")


def _say_summary(summary: Summary, backend: str, output: str | None) -> None:
    """Print a line on standard error per video, and one about the run."""
    from dgiqa.report.rows import plural

    figures = summary.as_dict(complete=True)
    for name, pooled in figures["videos"].items():
        say("; ".join(_about(name, pooled)), prefix="")
    parts = [f"{plural(summary.scored, 'frame')} scored" + (f", {summary.failed} failed" if summary.failed else "")]
    if figures["reused"]:
        checked = f", {figures['audits']} checked"
        drift = "" if figures["mean_drift"] is None else f", mean |drift| {figures['mean_drift']:.4f}"
        parts.append(f"{figures['reused']} reused{checked}{drift}")
    if figures["dropped"]:
        parts.append(f"{figures['dropped']} live frames dropped")
    say("; ".join([*parts, backend, *([f"written to {output}"] if output else [])]), prefix="")


def _about(name: str, pooled: dict[str, Any]) -> Iterator[str]:
    from dgiqa.meaning import words

    yield f"{name}: {pooled['video'] or 'not opened'}"
    if pooled["scored"]:
        yield f"mean {pooled['mean']:.4f}, harmonic {pooled['harmonic_mean']:.4f}, 5th percentile {pooled['p5']:.4f}"
        worst = pooled["worst_interval"]
        yield f"lowest {pooled['min']:.4f} at {pooled['min_s']:g} s"
        yield f"worst interval {worst['start_s']:g} to {worst['end_s']:g} s, mean {worst['mean']:.4f}"
    if pooled["reasons"]:
        told = (f"{words([name])} in {share:.0%}" for name, share in pooled["reasons"].items())
        yield f"{', '.join(told)} of the frames"
    yield from pooled["notes"]
    if pooled["verdict"]:
        yield pooled["verdict"]
