"""What the documentation says is so: commands run or at least parse, links lead somewhere, the site builds.

A block of commands runs in a folder with a few pictures and clips. `<!-- not run: REASON -->` above a block has it
parsed only: the command and its options must exist. `<!-- exit 4 -->` says how the commands of a block end.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import cv2
import numpy as np
import pytest
import typer
from command import run_here

from dgiqa.cli import app

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    *(ROOT / name / "README.md" for name in ("examples", "engines")),
    *sorted(DOCS.rglob("*.md")),
]
RUN = [ROOT / "README.md", *sorted((DOCS / "tutorial").glob("*.md")), *sorted((DOCS / "how-to").glob("*.md"))]
BLOCK = re.compile(
    r"(?P<marks>(?:^<!-- [^\n]* -->\n)*)^```(?P<language>\w+)[^\n]*\n(?P<body>.*?)^```$", re.M | re.DOTALL
)
# Programs that a page may use without saying where they come from.
TOOLS = {
    "git",
    "cd",
    "source",
    "find",
    "sort",
    "split",
    "curl",
    "ffmpeg",
    "docker",
    "while",
    "do",
    "done",
    "echo",
    "tritonserver",
}
MODULES = {"venv"}


@dataclass(frozen=True)
class Block:
    """Commands or code of a page. marks: the comments above it."""

    page: Path
    line: int
    language: str
    body: str
    marks: str

    @property
    def run(self) -> bool:
        return "not run:" not in self.marks

    @property
    def exit_code(self) -> int:
        found = re.search(r"exit (\d+)", self.marks)
        return int(found[1]) if found else 0

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    found = []
    for page in RUN:
        text = page.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            line = text[: match.start()].count("\n") + 1
            found.append(Block(page, line, match["language"], match["body"], match["marks"]))
    return [block for block in found if block.language in languages]


def commands(body: str) -> Iterator[list[str]]:
    """Every simple command of a console block or a workflow, as words."""
    for line in body.splitlines():
        if not (found := re.match(r"(?:\$|- run:) (.*)", line)):
            continue
        words: list[str] = []
        text = re.sub(r"<this repository>", "REPOSITORY", found[1])
        lexer = shlex.shlex(text, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        for word in [*lexer, ";"]:
            if set(word) <= set("|&;") and word:
                if words:
                    yield words
                words = []
            else:
                words.append(word)


def test_commands_are_taken_apart() -> None:
    text = "$ pip install x && a -o 'b c'   # why\n$ find . | dgiqa-rt score - > out || echo no\n"
    assert [" ".join(words) for words in commands(text)] == [
        *("pip install x", "a -o b c", "find .", "dgiqa-rt score - > out", "echo no")
    ]


def dgiqa_rt(words: list[str]) -> None:
    """Fail unless the command, its options and their choices exist."""
    root: Any = typer.main.get_command(app)
    command, words = root, [word for word in words if word not in ("-h", "--help")]
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    assert command is not root, f"no such command: {words}"
    words = words[: words.index(">")] if ">" in words else words
    context = command.context_class(command, info_name="x")
    assert not getattr(command, "commands", {}) or command.invoke_without_command, f"no such command: {words}"
    values, _, _ = command.make_parser(context).parse_args(args=list(words))
    for parameter in command.params:
        given = values.get(parameter.name)
        if given is not None and getattr(parameter, "param_type_name", "") == "option":
            choices = _choices(parameter)
            assert not choices or given in choices, f"{parameter.name} is none of {choices}"


def _choices(parameter: Any) -> tuple[Any, ...]:
    kind = getattr(getattr(parameter, "type_descriptor", None), "annotation", None)
    return get_args(kind) if get_origin(kind) is Literal else ()


def parsed(words: list[str]) -> None:
    """Fail unless what a command names is there."""
    program, rest = words[0], words[1:]
    if program == "dgiqa-rt":
        dgiqa_rt(rest)
    elif program == "pip":
        assert rest[0] in ("install", "uninstall", "wheel")
        for extras in re.findall(r"\.\[([a-z,]+)\]", " ".join(rest)):
            assert set(extras.split(",")) <= set(extras_of_the_project())
    elif program == "python" and rest[0] == "-m":
        name = rest[1]
        file = ROOT / (name.replace(".", "/") + ".py")
        assert name in MODULES or file.is_file(), f"no module {name}"
        if file.is_file():
            _options_are_named(file, rest[2:])
    elif program == "python":
        assert (ROOT / rest[0]).is_file()
        _options_are_named(ROOT / rest[0], rest[1:])
    else:
        assert program in TOOLS, f"{program} is none of {sorted(TOOLS)}"


def _options_are_named(file: Path, words: list[str]) -> None:
    """Options of programs whose parser would need PyTorch: named in the file, one beside it or one that it imports."""
    imported = re.findall(r"^from ((?:dgiqa|recipes)[\w.]+) import", file.read_text(), re.MULTILINE)
    others = (ROOT / (name.replace(".", "/") + ".py") for name in imported)
    files = {file, *file.parent.glob("*.py"), *(other for other in others if other.is_file())}
    text = "".join(path.read_text() for path in files)
    for option in (word for word in words if word.startswith("--")):
        assert f'"{option}"' in text or f"{option[2:].replace('-', '_')}:" in text, f"{file.name} has no {option}"


def extras_of_the_project() -> list[str]:
    return re.findall(r"^([a-z]+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)


@pytest.mark.parametrize("block", blocks("console", "yaml"), ids=str)
def test_every_command_of_the_pages_exists(block: Block) -> None:
    found = list(commands(block.body))
    assert found or block.language == "yaml"
    for words in found:
        parsed(words)


@pytest.mark.parametrize("words", ["frobnicate", "score --sharp", "build --backend cuda", "cache mv x"])
def test_commands_that_do_not_exist_are_found(words: str) -> None:
    with pytest.raises(Exception, match=r"frobnicate|sharp|cuda|mv"):
        dgiqa_rt(words.split())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages name: pictures, clips, lists."""
    folder = tmp_path_factory.mktemp("pages")
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("*.py", "*.sh"))
    shutil.copy(ROOT / "README.md", folder)
    coffee = cv2.imread(str(ROOT / "examples" / "coffee.jpg"))
    small = cv2.resize(coffee, (320, 240))
    for name in ("photos", "incoming"):
        (folder / name).mkdir()
        cv2.imwrite(str(folder / name / "a.jpg"), small)
        cv2.imwrite(str(folder / name / "b.jpg"), np.full((240, 320, 3), 3, np.uint8))
    cv2.imwrite(str(folder / "photo.jpg"), small)
    with contextlib.suppress(ImportError):
        _clips(folder, small[..., ::-1])
    (folder / "products.csv").write_text("sku,file\n1,photos/a.jpg\n2,photos/b.jpg\n")
    _pairs(folder, small)
    with contextlib.suppress(ImportError):
        _table(folder)
    (folder / "shards").mkdir()
    for name in ("00000.tar", "00001.tar"):
        with tarfile.open(folder / "shards" / name, "w") as shard:
            shard.add(folder / "photo.jpg", "photo.jpg")
    return folder


def _pairs(folder: Path, picture: Any) -> None:
    """Originals, and what saving made of them."""
    for original, saved in (("original.png", "small.jpg"), ("originals/a.png", "encoded/a.jpg")):
        for name, quality in ((original, []), (saved, [cv2.IMWRITE_JPEG_QUALITY, 30])):
            (folder / name).parent.mkdir(exist_ok=True)
            cv2.imwrite(str(folder / name), picture, quality)
    (folder / "pairs.csv").write_text("image,reference\nsmall.jpg,original.png\n")


def _table(folder: Path) -> None:
    import pyarrow.parquet

    columns = {"id": ["x"], "image": [(folder / "photo.jpg").read_bytes()]}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "train.parquet")


def _clips(folder: Path, rgb: Any) -> None:
    import av

    for name in ("clip.mp4", "encoded.mp4", "master.mov"):
        with av.open(str(folder / name), "w") as out:
            stream = out.add_stream("mpeg4", rate=5)
            stream.height, stream.width, stream.pix_fmt = rgb.shape[0], rgb.shape[1], "yuv420p"
            for shift in range(6):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.roll(rgb, shift, 1)), format="rgb24")
                out.mux(stream.encode(frame))
            out.mux(stream.encode())


@pytest.mark.slow
@pytest.mark.parametrize("block", [b for b in blocks("console") if b.run], ids=str)
def test_commands_of_the_pages_run(block: Block, place: Path) -> None:
    listing = b"\0".join(str(path.relative_to(place)).encode() for path in sorted((place / "photos").glob("*.jpg")))
    own_cache = {"XDG_CACHE_HOME": str(place / "cache")}
    for words in commands(block.body):
        if words[0] != "dgiqa-rt" or words[1:] == ["doctor"]:
            continue
        if words[1] == "video":
            pytest.importorskip("av")
        if any(word.endswith(".parquet") for word in words):
            pytest.importorskip("pyarrow")
        stdin = (place / "photo.jpg").read_bytes() if words[-1] == "-" else listing
        if "--raw" in words:  # frames come through a pipe, so by a process of its own
            path = os.pathsep.join(filter(None, [str(ROOT), os.getenv("PYTHONPATH")]))
            end = subprocess.run(
                [sys.executable, "-m", "dgiqa", *words[1:]],
                input=bytes(2 * 1280 * 720 * 3),
                cwd=place,
                env=os.environ | own_cache | {"PYTHONPATH": path},
                capture_output=True,
                check=False,
            )
        else:
            end = run_here(*words[1:], stdin=stdin, cwd=place, env=own_cache)
        allowed = {block.exit_code} | ({4} if {"--preset", "--fail-under", "--max-drop"} & set(words) else set())
        assert end.returncode in allowed, f"{' '.join(words)} ended with {end.returncode}: {end.stderr.decode()}"


@pytest.mark.slow
@pytest.mark.parametrize("block", [b for b in blocks("python") if b.run], ids=str)
def test_python_of_the_pages_runs(block: Block, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    for name in ("before.csv", "after.csv"):
        (place / name).write_text("score\n0.7\n0.6\n")
    program = place / "program.py"
    program.write_text(f"paths = ['photo.jpg']\n{block.body}")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        runpy.run_path(str(program))
    assert out.getvalue() or "open(" in block.body


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_of_the_pages_is_python(block: Block) -> None:
    compile(block.body, str(block), "exec")


def slugs(text: str) -> set[str]:
    """Anchors that headings get, as MkDocs and code hosts make them."""
    heads = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", head.lower()).strip()) for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            assert target.startswith("https://"), target
            continue
        file, _, anchor = target.partition("#")
        to = (page.parent / file).resolve() if file else page
        assert to.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in slugs(to.read_text(encoding="utf-8")), f"{page.name} links to {target}"
        if page.is_relative_to(DOCS):
            assert to.is_relative_to(DOCS), f"{target} is not part of the site"


def test_the_readme_is_short_and_finished() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
    for page in PAGES:
        assert "TODO" not in page.read_text(encoding="utf-8"), page


def test_every_variable_that_the_code_reads_is_explained() -> None:
    text = "".join(path.read_text() for path in (ROOT / "dgiqa").rglob("*.py"))
    read = set(re.findall(r'environ(?:\.get\(|\.setdefault\(|\[)"(\w+)"|"(DGIQA_[A-Z]+)"', text))
    read = {name for pair in read for name in pair if name}
    page = (DOCS / "reference" / "environment.md").read_text()
    assert read - {"TERM"} <= set(re.findall(r"`(\w+)`", page))
    assert set(re.findall(r"^\| `(\w+)`", page, re.MULTILINE)) <= read


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(DOCS))
    import generate

    return generate


def test_reference_pages_come_from_the_code(generate: Any) -> None:
    marks = [mark for page in DOCS.rglob("*.md") for mark in generate.MARK.findall(page.read_text(encoding="utf-8"))]
    assert set(marks) == set(generate.PARTS)
    told = generate.on_page_markdown("<!-- generated: command line -->")
    for path, command in generate.commands():
        assert f"## {path}\n" in told
        for option in (name for p in command.params for name in p.opts if name.startswith("--")):
            assert option in told
    codes = [line.split("`")[1] for line in generate.exit_codes().splitlines()[2:]]
    assert codes == ["0", "1", "2", "3", "4", "5", "130"]


def test_names_in_docstrings_become_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("griffe")
    monkeypatch.syspath_prepend(str(DOCS))
    from docstrings import listed

    text = "Do it.\n\na: one. b, c: two, see a: d. Raises ValueError."
    wanted = "- **a**: one.\n\n- **b, c**: two, see a: d.\n\nRaises ValueError."
    assert listed(text, {"a", "b", "c"}).split("\n\n", 1)[1].strip() == wanted
    assert listed(text, set()) == text
    assert listed("Do it. a,\nb:\none.", {"a", "b"}).endswith("- **a, b**: one.")  # lines end where they may


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    monkeypatch.chdir(ROOT)
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True))
    assert "score_many" in (tmp_path / "reference" / "python" / "index.html").read_text()
    for page in tmp_path.rglob("*.html"):
        hosts = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(?:https?:)?//([^/"]+)', page.read_text())
        assert not hosts, f"{page.name} loads from {hosts}"
