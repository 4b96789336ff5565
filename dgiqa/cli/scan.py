"""`dgiqa-rt scan`: shards in; a Parquet file and a marker for each out. It resumes where it was stopped."""

from typing import Any

from dgiqa.cli import options
from dgiqa.cli.common import app, argument, leave, option, say
from dgiqa.cli.options import whole


@app.command()
@options.joined(["bundle", "tiling", "backend", "precision", "threads", "max_pixels"])
def scan(
    shards: list[str] = argument(
        ..., "SHARDS", "Tar shards ('{000..199}.tar'), zips, tables and folders, also in buckets."
    ),
    out: str = option(..., "DIR", "Where each shard's Parquet file goes; may be a bucket."),
    resume: bool = option(False, "--resume", "Skip the shards that are done."),
    workers: int | None = whole(None, "Processes that score in parallel.  [default: 1; with --ray all that fit]"),
    shard: str | None = option(None, "I/N", "One machine's part: every N-th shard, starting with number I (0 to N-1)."),
    *,
    ray: str | None = option(None, "ADDRESS", "Score on a Ray cluster: its address, auto, or local for this machine."),
    reading: Any,
    opening: dict[str, Any],
    details: bool = option(False, "--details", "Add each tile's score, and more."),
    quiet: options.Quiet = False,
) -> None:
    """Score sets of shards: every shard becomes DIR/NAME.parquet, and DIR/NAME.done.json once that is complete.

    After a kill, a power cut or a full disk, the same command with --resume continues. Unfinished shards are scored
    again, so no row is lost or doubled. A shard that is missing or ends early is not done: --resume tries it again.

    \b
    Examples:
      dgiqa-rt scan 'set/{000..199}.tar' --out scores/ --workers 4
      dgiqa-rt scan 's3://set/{000..199}.tar' --remote --out s3://scores/ --resume
      dgiqa-rt scan 'set/*.tar' --out scores/ --shard $SLURM_ARRAY_TASK_ID/8
      dgiqa-rt scan 's3://set/*.tar' --remote --out s3://scores/ --ray auto --resume
    """
    from dgiqa.batch.scan import Job, part_of, to_do
    from dgiqa.batch.scan import scan as run
    from dgiqa.bundle import load_bundle
    from dgiqa.machine import usable_cores
    from dgiqa.report.rows import plural
    from dgiqa.sources import Input, named

    options.check_columns(shards, reading)
    index, parts = 0, 1
    if shard is not None:
        with options.usage("--shard"):
            index, parts = part_of(shard)
    names: list[str] = []
    failed = 0
    for each in shards:
        for name in named(each, reading):
            if isinstance(name, Input):
                failed += 1
                say(f"{name.name}: {name.error}", prefix="error: ")
            else:
                names.append(name)
    loaded = load_bundle(opening["bundle"])
    settings = {"bundle": loaded.id, "preprocess_version": loaded.preprocess.version, "details": details}
    settings |= {name: opening[name] for name in ("tiling", "backend", "precision")}
    threads = opening["threads"]
    cores = threads or max(1, usable_cores() // (workers or 1))
    opening |= {"bundle": str(loaded.path.resolve()), "threads": cores, "parallel": "auto"}
    job = Job(out, opening, settings, reading, details=details)
    waiting, before = to_do(names[index::parts], job, resume=resume)
    total, finished, rows = len(waiting) + before, before, 0
    if before and waiting and not quiet:
        say(f"{before} of {total} shards are done", prefix="")
    if ray is None:
        running = run(waiting, job, workers=workers or 1)
    else:
        from dgiqa.batch.on_ray import scan_on_ray

        running = scan_on_ray(waiting, job, address=ray, actors=workers, threads=threads)
    for done in running if waiting else ():
        finished, rows, failed = finished + (not done.error), rows + done.rows, failed + done.failed
        if done.error:
            say(f"{done.shard}: {done.error}; it is not done, and --resume tries it again", prefix="error: ")
        if not quiet:
            speed = f", {done.rows / done.seconds:.1f} images/s" if done.seconds else ""
            said = plural(done.rows, "row") + (f", {done.failed} failed" if done.failed else "") + speed
            say(f"{finished}/{total} {done.shard}: {said}", prefix="")
    if not quiet:
        say(f"{finished} of {total} shards are done, {plural(rows, 'row')} scored in this run, in {out}", prefix="")
    leave(None, failed=failed)
