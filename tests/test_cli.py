"""`dgiqa-rt` as its users meet it: a process with arguments, streams, signals and an exit code.

Every run also checks that no traceback reaches standard error.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest
from command import run_here
from PIL import Image
from skimage import data
from waiting import PATIENCE_S

import dgiqa.spec
from dgiqa.bundle import Bundle, load_bundle, write_bundle
from dgiqa.cli import FILES
from dgiqa.doctor import OK, Check

COMMAND = [sys.executable, "-m", "dgiqa"]
PACKAGE_PARENT = str(Path(dgiqa.spec.__file__).parents[1])
NOT_UTF8 = os.fsdecode(b"caf\xe9.jpg")
DETAILS = ["tile_scores", "windows", "timings_ms", "reason_probabilities", "attributes"]
COLUMNS = [
    *("path", "score", "std_error", "width", "height", "tiles", "tiling", "status", "error"),
    *("bundle", "backend", "ms", "schema_version", "verdict", "reasons", "note", "key"),
]


def environment(**changes: str) -> dict[str, str]:
    paths = [PACKAGE_PARENT, *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | changes


def run(
    *arguments: object, stdin: bytes = b"", cwd: Path | None = None, **env: str
) -> subprocess.CompletedProcess[Any]:
    """In this process, unless the environment is one that only a new interpreter looks at."""
    if "PYTHONPATH" in env:
        command = [*COMMAND, *map(str, arguments)]
        done = subprocess.run(
            command, input=stdin, capture_output=True, cwd=cwd, env=environment(**env), timeout=PATIENCE_S, check=False
        )
    else:
        done = run_here(*arguments, stdin=stdin, cwd=cwd, env=env)
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done


def start(*arguments: object, **streams: Any) -> subprocess.Popen[bytes]:
    # Unbuffered: communicate() would miss what readline() had read ahead.
    return subprocess.Popen([*COMMAND, *map(str, arguments)], env=environment(), bufsize=0, **streams)


def rows_of(done: subprocess.CompletedProcess[Any]) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(list(row)[: len(COLUMNS)] == COLUMNS for row in rows)
    return rows


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that declares any size: one row of data, then the end."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(3 * min(width, 1000) + 1))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real photograph, 320 x 240."""
    path = tmp_path_factory.mktemp("photo") / "coffee.jpg"
    Image.fromarray(data.coffee()).resize((320, 240)).save(path, quality=90)
    return path


@pytest.fixture(scope="session")
def model(tiny_bundle: Bundle) -> list[str]:
    return ["--bundle", str(tiny_bundle.path)]


@pytest.fixture
def many(tmp_path: Path, photo: Path) -> Path:
    """A folder of three hundred photographs."""
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(300):
        os.link(photo, folder / f"{i}.jpg")
    return folder


@pytest.mark.parametrize(
    "arguments", [["score", "PHOTO"], ["verify"], ["doctor"], ["models"], ["cache", "ls"]], ids=str
)
def test_commands_run_as_a_process_and_leave_nothing_on_standard_error_that_python_writes(
    arguments: list[str], photo: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    named = [str(photo) if word == "PHOTO" else word for word in arguments]
    model = ["--bundle", str(tiny_bundle.path)] if named[0] in ("score", "doctor") else []
    model = [str(tiny_bundle.path)] if named[0] == "verify" else model
    with start(*named, *model, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        out, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors
    assert out or named[0] == "cache"
    assert b"Warning" not in errors
    assert b"Traceback" not in errors


def test_good_bad_and_hostile_inputs_each_give_a_row_in_order(tmp_path: Path, photo: Path, model: list[str]) -> None:
    jpeg = photo.read_bytes()
    good = ["a b.jpg", "line\nbreak.jpg", "snow ☃.jpg", "no-suffix", NOT_UTF8]
    for name in good:
        (tmp_path / name).write_bytes(jpeg)
    hostile = {
        "empty.jpg": b"",
        "text.jpg": b"Dear sir or madam,\n",
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "head.jpg": jpeg[:20],
        "bomb.png": png_header(60_000, 60_000),
        "thin.png": png_header(60_000, 1),
        "noise.jpg": b"\xff\xd8\xff" + os.urandom(2000),
    }
    for name, content in hostile.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    names = ["missing.jpg", good[0], *hostile, *good[1:], "folder", "*.webp", good[0]]
    if os.path.exists("/proc/self/mem"):
        names.insert(1, "/proc/self/mem")  # a file that not even root can read from its beginning
    done = run("score", *model, *names, cwd=tmp_path)
    rows = rows_of(done)
    assert done.returncode == 3
    for row in rows:
        row["path"] = NOT_UTF8 if row["path"] == "caf\\xe9.jpg" else row["path"]
    assert [row["path"] for row in rows] == names
    for row in rows:
        if row["path"] in good:
            assert (row["status"], row["error"], row["width"], row["height"]) == ("ok", "", 320, 240)
            assert 0 <= row["score"] <= 1
        else:
            assert row["status"] == "error", row
            assert row["error"]
            assert row["score"] is None
    errors = {row["path"]: row["error"] for row in rows}
    assert "60000 x 60000" in errors["bomb.png"]
    assert "not an image" in errors["text.jpg"]
    assert f"{len(good) + 1} scored, {len(names) - len(good) - 1} failed" in done.stderr.decode()


def test_all_formats_say_the_same_and_data_is_alone_on_stdout(tmp_path: Path, photo: Path, model: list[str]) -> None:
    outputs = {}
    for shown, target in (("csv", "a.json"), ("json", "b.csv"), ("jsonl", "c.jsonl")):
        done = run("score", *model, photo, "-f", shown, "-o", tmp_path / target, "--details")
        assert done.returncode == 0
        assert b"1 scored" in done.stderr
        outputs[shown], outputs[target] = done.stdout.decode(), (tmp_path / target).read_text()
    lines = [json.loads(outputs[name]) for name in ("jsonl", "c.jsonl")]
    documents = [json.loads(outputs[name]) for name in ("json", "a.json")]
    cells = [next(csv.DictReader(io.StringIO(outputs[name]))) for name in ("csv", "b.csv")]
    row = lines[0]
    assert list(row) == [*COLUMNS, *DETAILS] == list(cells[0])
    assert row["attributes"]["sharpness"] > 0
    assert len(row["tile_scores"]) == len(row["windows"]) == row["tiles"] > 0
    assert {line["score"] for line in lines} == {row["score"]}
    assert {document["rows"][0]["score"] for document in documents} == {row["score"]}
    assert {float(cell["score"]) for cell in cells} == {row["score"]}
    assert documents[0]["schema_version"] == 1
    assert documents[0]["summary"]["complete"] is True
    assert sorted(os.listdir(tmp_path)) == ["a.json", "b.csv", "c.jsonl"]


def test_an_image_scores_the_same_from_a_file_from_stdin_and_from_a_list(
    tmp_path: Path, photo: Path, model: list[str]
) -> None:
    listing = tmp_path / "list.txt"
    listing.write_text(f"{photo}\n")
    (named,) = rows_of(run("score", *model, photo, "--from-file", listing, "--limit", 1, "-q"))
    piped, listed = rows_of(run("score", *model, "-", "--from-file", listing, stdin=photo.read_bytes()))
    assert (piped["path"], listed["path"]) == ("-", str(photo))
    assert piped["score"] == listed["score"] == named["score"]


def test_dry_run_lists_folders_globs_and_lists_without_loading_a_model(tmp_path: Path) -> None:
    for name in ("b/10.jpg", "b/9.jpg", "a.jpg", "c d.png", "x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def listed(*arguments: str, stdin: bytes = b"") -> tuple[list[str], int]:
        done = run("score", "--dry-run", "--bundle", "no-such-bundle", *arguments, stdin=stdin, cwd=tmp_path)
        return done.stdout.decode().replace("\0", "\n").splitlines(), done.returncode

    assert listed(".") == (["./a.jpg", "./c d.png"], 0)
    assert listed("-r", ".") == (["./a.jpg", "./c d.png", "./b/9.jpg", "./b/10.jpg"], 0)
    assert listed("b/*.jpg", "*.txt", "gone.jpg") == (["b/9.jpg", "b/10.jpg", "x.txt"], 3)
    assert listed("--from-file", "-", "-0", stdin=b"c d.png\0a.jpg\0") == (["c d.png", "a.jpg"], 0)
    assert listed("a.jpg", "--from-file", "-", "--limit", "2", stdin=b"c d.png\na.jpg\n") == (["a.jpg", "c d.png"], 0)


def test_files_of_a_folder_that_are_no_images_are_counted(tmp_path: Path, photo: Path, model: list[str]) -> None:
    for name in ("a.mp4", "b.tar", "c.tar", "README"):
        (tmp_path / name).touch()
    os.link(photo, tmp_path / "photo.jpg")
    for more in ([], ["--dry-run"]):
        done = run("score", *model, tmp_path, *more)
        assert done.returncode == 0
        said = done.stderr.decode()
        assert "left out: 4 files (2 .tar, " in said
        assert "; dgiqa-rt video scores videos; name archives to score what they hold" in said
    (tmp_path / "a.mp4").unlink()
    assert "dgiqa-rt video" not in run("score", *model, tmp_path).stderr.decode()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["score"], "name a file"),
        (["score", "a.jpg", "--no-such-flag"], "--no-such-flag"),
        (["score", "a.jpg", "-o", "scores.xlsx"], ".csv, .jsonl, .json, .parquet or .sqlite"),
        (["score", "a.jpg", "--tiling", "random"], "official:20"),
        (["compare", "a.jpg", "b.jpg", "--tiling", "random"], "official:20"),
        (["scan", "a.tar", "--out", "scores", "--tiling", "random"], "official:20"),
        (["score", "a.jpg", "--backend", "tpu"], "onnxruntime"),
        (["score", "a.jpg", "--fail-under", "1.5"], "'--fail-under': got 1.5, wanted a number from 0 to 1"),
        (["score", "a.jpg", "--fail-under", "nix"], "got nix, wanted a number from 0 to 1"),
        (["score", "a.jpg", "--limit", "1.5"], "got 1.5, wanted a whole number of at least 1"),
        (["score", "a.jpg", "--format", "xml"], "got xml, wanted one of: table, jsonl, csv, json"),
        (["video", "a.mp4", "--fps", "0"], "got 0.0, wanted a number above 0"),
        (["calibrate", "a.csv", "--range", "1", "nix"], "got nix, wanted a number"),
        (["build", "--int8", "--calib", "no-such"], "does not exist; wanted a folder that can be read"),
        (["build", "--plugin", "/"], "is a directory; wanted a file that can be read"),
        (["score", "a.jpg", "--html", "x.txt"], "--html: 'x.txt' is written as HTML; end it in .html"),
        (["report", "s.csv", "-o", "x.txt"], "'x.txt' is written as HTML; end it in .html"),
        (["score", "a.jpg", "--sidecar", __file__], "is a file; wanted a folder, or beside"),
        (["score", "a.jpg", "--preset", "upload", "--fail-under", "0.5"], "give --preset or --fail-under, not both"),
        (["score", "a.jpg", "--json", "--format", "csv"], "--json"),
        (["score", "-", "--from-file", "-"], "once"),
        (["score", "--from-file", "no-such-list"], "no-such-list"),
        (["build", "--fp16", "--int8"], "one precision"),
        (["build", "--int8", "--calib", "no-such-folder"], "no-such-folder"),
        (["build", "--fp32", "--calib", "."], "give --int8, --fp8 or --fp16"),
        (["build", "--plugin", "no-such-file"], "no-such-file"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_wrong_usage_is_explained_with_exit_code_2(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == b""
    assert words in " ".join(done.stderr.decode().split())
    assert os.listdir(tmp_path) == []


def test_an_output_that_cannot_be_written_is_told_before_anything_is_scored(tmp_path: Path, photo: Path) -> None:
    done = run("score", "--bundle", "no-such-bundle", photo, "-o", tmp_path / "missing" / "a.csv", "-f", "jsonl")
    assert done.returncode == 1
    assert done.stdout == b""
    assert b"error: cannot write" in done.stderr
    assert b"no-such-bundle" not in done.stderr


def test_a_bundle_that_is_not_there_is_one_line_and_leaves_no_file(tmp_path: Path, photo: Path) -> None:
    (tmp_path / "a.csv").write_text("old")
    done = run("score", "--bundle", "no-such-bundle", photo, "-o", tmp_path / "a.csv")
    assert done.returncode == 1
    assert done.stderr.decode().startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert (tmp_path / "a.csv").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.csv"]


def test_the_gate_fails_with_4_even_when_inputs_failed_too(tmp_path: Path, photo: Path, model: list[str]) -> None:
    (tmp_path / "bad.jpg").touch()
    assert run("score", *model, photo, "--fail-under", "0").returncode == 0
    failed = run("score", *model, photo, tmp_path / "bad.jpg", "--fail-under", "1", "--quiet", "-f", "table")
    assert failed.returncode == 4
    assert b"coffee.jpg  fail" in failed.stdout
    assert failed.stderr == b"1 of 1 image is below 1\n"


def test_a_missing_onnxruntime_is_an_environment_problem(tmp_path: Path, photo: Path, model: list[str]) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ModuleNotFoundError('No module named x', name='onnxruntime')")
    paths = os.pathsep.join([str(tmp_path), PACKAGE_PARENT])
    done = run("score", *model, photo, PYTHONPATH=paths)
    assert done.returncode == 5
    assert b"dgiqa-rt[cpu]" in done.stderr
    sick = run("doctor", *model, "--json", PYTHONPATH=paths)
    assert sick.returncode == 5
    assert json.loads(sick.stdout)["healthy"] is False


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_keeps_its_rows(
    tmp_path: Path, photo: Path, model: list[str], number: signal.Signals, code: int
) -> None:
    target = tmp_path / "a.json"
    arguments = ["score", *model, "--from-file", "-", "-o", target, "-f", "jsonl"]
    with start(*arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdin.write(f"{photo}\n".encode() * 40)
        process.stdin.flush()
        first = json.loads(process.stdout.readline())
        process.send_signal(number)
        lines, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code
    assert b"Traceback" not in errors
    assert b"kept" in errors
    document = json.loads(target.read_text())
    assert document["summary"]["complete"] is False
    assert document["rows"] == [first, *map(json.loads, lines.splitlines())]
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_reader_that_leaves_ends_the_run_quietly(many: Path, model: list[str]) -> None:
    with start("score", *model, many, "-q", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        json.loads(process.stdout.readline())
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(PATIENCE_S) == 0
    assert errors == b""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_is_an_error_and_no_traceback(photo: Path, model: list[str], unbuffered: str) -> None:
    # Fails in the run, and when Python ends
    for arguments, where in ((["score", *model, str(photo)], b"standard output: "), (["--version"], b"")):
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                [*COMMAND, *arguments],
                stdout=full,
                stderr=subprocess.PIPE,
                env=environment(PYTHONUNBUFFERED=unbuffered),
                check=False,
            )
        assert done.returncode == 1
        assert done.stderr.startswith(b"error: " + where + b"No space left")
        assert len(done.stderr.splitlines()) == 1


def on_a_terminal(*arguments: object, width: int = 100, **env: str) -> tuple[str, int]:
    """What a person sees, and the exit code: standard output and error are the same terminal."""
    parent, child = pty.openpty()
    subprocess.run(["stty", "cols", str(width), "rows", "40"], stdin=child, check=True)
    environ = environment(TERM="xterm-256color", **env)
    environ.pop("COLUMNS", None)  # else it decides, not the terminal
    with subprocess.Popen([*COMMAND, *map(str, arguments)], stdout=child, stderr=child, env=environ) as process:
        os.close(child)
        text = b"".join(read_terminal(parent))
    os.close(parent)
    return text.decode(), process.returncode


def read_terminal(descriptor: int) -> Iterator[bytes]:
    with contextlib.suppress(OSError):  # how Linux says that the other side is closed
        while select.select([descriptor], [], [], PATIENCE_S)[0]:
            yield os.read(descriptor, 4096)


def visible_lines(text: str) -> list[str]:
    """What is left on the screen: of each line, what was written after it was last erased."""
    return [line.split("\x1b[2K")[-1].strip("\r") for line in text.split("\n")]


def test_a_terminal_shows_a_table_and_a_progress_line_that_goes_away(
    tmp_path: Path, photo: Path, model: list[str]
) -> None:
    (tmp_path / "bad.jpg").touch()
    text, code = on_a_terminal("score", *model, photo, tmp_path / "bad.jpg", photo, width=70, NO_COLOR="1")
    header, first, bad, second, summary, last = visible_lines(text)
    assert code == 3
    assert header.split() == ["score", "±", "size", "image"]
    assert first == second
    assert first.endswith("coffee.jpg")
    assert len(first) <= 70
    assert bad.startswith(" error")
    assert "2 scored, 1 failed" in summary
    assert last == ""
    assert "1/3" in text
    assert "\x1b[3" not in text


def test_a_terminal_without_progress_has_colours_only(photo: Path, model: list[str]) -> None:
    text, _ = on_a_terminal("score", *model, photo, "--no-progress", "--fail-under", "1")
    assert "\x1b[31m" in text
    assert "\x1b[2K" not in text


def test_models_are_listed_and_found(tmp_path: Path, tiny_bundle: Bundle) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "manifest.json").write_text("{}")
    search = {"DGIQA_BUNDLES": f"{tiny_bundle.path.parent}{os.pathsep}{tmp_path}", "XDG_CACHE_HOME": str(tmp_path)}
    models = {model["name"]: model for model in json.loads(run("models", "--json", **search).stdout)["models"]}
    assert models["tiny"]["id"] == tiny_bundle.id
    assert models["tiny"]["path"] == str(tiny_bundle.path)
    assert set(models["tiny"]["licences"].values()) == {"Apache-2.0"}
    assert models["broken"]["problem"]
    shown = run("models", **search).stdout.decode()
    assert f"tiny  {tiny_bundle.id}" in shown
    assert f"presets: upload {load_bundle('small').meaning.presets['upload']:.2f}" in shown
    assert "cannot be used" in shown
    assert run("models", "path", "tiny", **search).stdout.decode() == f"{tiny_bundle.path}\n"
    assert run("models", "path", "no-such-bundle", **search).returncode == 1


def test_verify_compares_with_the_golden_scores(tmp_path: Path, tiny_bundle: Bundle) -> None:
    same = run("verify", tiny_bundle.path)
    assert same.returncode == 0
    assert "the same model" in same.stdout.decode()
    files = {name: tiny_bundle.file(name) for name in tiny_bundle.manifest["files"]}
    golden = [json.loads(line) for line in files["golden.jsonl"].read_text().splitlines()]
    golden[1]["score"] += 0.01
    altered = write_bundle(
        tmp_path / "altered",
        name="altered",
        title="one golden score is wrong",
        files=files | {"golden.jsonl": "\n".join(map(json.dumps, golden)).encode()},
        preprocess=tiny_bundle.preprocess,
        licence="Apache-2.0",
        source="made by the tests",
    )
    other = run("verify", altered.path, "--json")
    assert other.returncode == 4
    report = json.loads(other.stdout)
    assert report["passed"] is False
    assert report["max_difference"] == pytest.approx(0.01, abs=1e-4)
    assert run("verify", altered.path, "--tolerance", "0.02").returncode == 0
    altered.file("quality.onnx").write_bytes(b"something else")
    assert run("verify", altered.path).returncode == 1


def test_doctor_reads_well_and_says_so(model: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    done = run("doctor", *model)
    assert done.returncode == 0
    assert done.stdout.decode().rstrip().endswith("this machine can score images")
    absent = [Check("openvino", OK, "not installed; it is for x86 processors"), Check("numpy", OK, "2.0")]
    monkeypatch.setattr("dgiqa.doctor.examine", lambda bundle: absent)
    lines = run("doctor").stdout.decode().splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["-", "ok"]


def test_errors_show_where_they_come_from_when_asked(photo: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "score", "--bundle", "no-such-bundle", str(photo)],
        capture_output=True,
        env=environment(DGIQA_DEBUG="1"),
        check=False,
    )
    assert done.returncode == 1
    assert b"Traceback" in done.stderr


def test_each_command_is_in_the_file_that_is_imported_for_it() -> None:
    from typer.main import get_command

    from dgiqa.cli import FILES, application

    commands: Any = get_command(application())
    assert set(commands.commands) == set(FILES)
    program = "import sys; from dgiqa.cli import application, FILES; application(sys.argv[1]); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program, "scan"], capture_output=True, text=True, check=True)
    assert {name for name in FILES.values() if f"dgiqa.cli.{name}" in done.stdout.split()} == {"scan"}


def test_no_flag_is_on_unless_it_is_given() -> None:
    """Fetching from addresses, say."""
    from typer.main import get_command

    from dgiqa.cli import application

    def flags(command: Any) -> Iterator[Any]:
        yield from (parameter for parameter in command.params if getattr(parameter, "is_flag", False))
        for each in getattr(command, "commands", {}).values():
            yield from flags(each)

    found = list(flags(get_command(application())))
    assert "--remote" in {name for flag in found for name in flag.opts}
    assert [flag.opts for flag in found if flag.default not in (False, None)] == []


def test_help_has_whole_summaries_the_exit_codes_and_no_names_of_types() -> None:
    listed = run("--help").stdout.decode().partition("Commands:")[2].partition("Exit codes:")[0]
    assert "..." not in listed
    assert len(listed.split("\n\n")[0].strip().splitlines()) == len(FILES)
    for command in FILES:
        text = run(command, "--help").stdout.decode()
        assert "Exit codes:" in text, command
        assert not re.search(r"<(str|path|int|float|list)\b", text), command


def test_help_and_version_are_quick_because_they_import_nothing_heavy() -> None:
    heavy = {"numpy", "cv2", "PIL", "scipy", "onnx", "onnxruntime", "openvino", "torch", "av", "pyarrow", "rich"}
    for arguments in (["--version"], ["score", "--help"], ["video", "--help"], ["--help"]):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "dgiqa", *arguments],
            capture_output=True,
            text=True,
            env=environment(),
            check=True,
        )
        imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
        assert "typer" in imported
        assert not imported & heavy
    assert "Exit codes" in done.stdout


def test_help_costs_little_more_than_the_libraries_that_draw_it() -> None:
    """0.2 s where they take 0.14; in turn, so that a busy machine slows both."""

    def cpu_s(*command: str) -> float:
        before = os.times()
        subprocess.run([sys.executable, *command], capture_output=True, env=environment(), check=True)
        after = os.times()
        return sum(after[2:4]) - sum(before[2:4])  # of children: user's and system's

    ours, theirs = list[float](), list[float]()
    for _ in range(20):
        theirs.append(cpu_s("-c", "import typer, typer.rich_utils, rich.table, rich.markdown, importlib.metadata"))
        ours.append(cpu_s("-m", "dgiqa", "--help"))
        if len(ours) > 2 and min(ours) <= 2.5 * min(theirs):
            return
    pytest.fail(f"--help takes {min(ours):.2f} s of the processor, the libraries {min(theirs):.2f} s")


def test_import_weights_refuses_what_is_no_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "weights.pth").write_text("<html>not found</html>")
    weights = tmp_path / "weights.pth"
    done = run("import-weights", "--quality", weights, "--depth", weights, "--name", "mine", "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "weights.pth is not a checkpoint" in done.stderr.decode()
    assert "Traceback" not in done.stderr.decode()
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(cv2.__version__ < "5", reason="older ones print, whatever they are told")
def test_opencvs_complaints_are_not_printed_beside_an_error_row(tiny_bundle: Bundle, tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(data.astronaut()[:96, :128]).save(stream, "JPEG2000")
    (tmp_path / "cut.jp2").write_bytes(stream.getvalue()[:3000])
    path = os.pathsep.join([PACKAGE_PARENT, *filter(None, [os.environ.get("PYTHONPATH")])])
    done = run("score", "--bundle", tiny_bundle.path, tmp_path / "cut.jp2", "-q", PYTHONPATH=path)
    assert b"JPEG2000" in done.stdout
    assert b"OpenCV" not in done.stderr


def test_what_is_read_is_not_written_over(photo: Path, model: list[str], tmp_path: Path) -> None:
    names = tmp_path / "names.csv"
    names.write_text(f"{photo}\n")
    (tmp_path / "link.csv").symlink_to(names)
    page = tmp_path / "page.html"
    drawn = tmp_path / "a.png"
    drawn.write_bytes(photo.read_bytes())
    for arguments in (
        ["score", *model, "--from-file", names, "-o", tmp_path / "link.csv"],
        ["score", *model, names, "-o", names],
        ["score", *model, photo, "--html", page, "-o", tmp_path / "b.csv", "--from-file", page],
        ["explain", *model, drawn, "-o", drawn],
        ["report", page, "-o", page],
    ):
        page.write_text("kept")
        done = run(*arguments)
        assert done.returncode == 2
        assert b"the input as well; name another file" in b" ".join(done.stderr.split())
        assert (names.read_text(), page.read_text()) == (f"{photo}\n", "kept")
    assert drawn.read_bytes() == photo.read_bytes()


def test_an_image_in_the_place_of_a_list_is_named(photo: Path, model: list[str]) -> None:
    done = run("score", *model, "--from-file", photo)
    assert done.returncode == 2
    assert b"image, not a list of names" in done.stderr


def test_a_table_of_nothing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    done = run("filter", tmp_path / "a.csv")
    assert done.returncode == 1
    assert b"is empty, without the names of its columns" in done.stderr
