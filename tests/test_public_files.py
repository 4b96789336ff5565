"""What surrounds the code says what is true: workflows, templates, the image, the citation and the promises."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

import dgiqa
from dgiqa.cli import app

yaml = pytest.importorskip("yaml")
tomllib = pytest.importorskip("tomllib")  # Python 3.11

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
FILES = [
    *sorted((ROOT / ".github").rglob("*.yml")),
    *(ROOT / name for name in (".pre-commit-config.yaml", "CITATION.cff", "SECURITY.md", "Dockerfile")),
    *sorted((ROOT / ".ci").iterdir()),
]
# Programs that are there on a hosted runner, or that a command before them installs.
PROGRAMS = {"pip", "python", "python3", "bash", "docker", "gh", "set", "rm", "useradd", "uv", "pytest", "ruff", "mypy"}


def document(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def commands() -> list[tuple[str, str]]:
    """(file, command) of everything that workflows, hooks and the image run."""
    found = []
    for path in WORKFLOWS:
        for job in document(path)["jobs"].values():
            found += [(path.name, line) for step in job["steps"] for line in step.get("run", "").splitlines()]
    for hook in document(ROOT / ".pre-commit-config.yaml")["repos"][0]["hooks"]:
        found.append((".pre-commit-config.yaml", hook["entry"]))
    image = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
    for line in re.findall(r"^RUN (.*)$", image, re.MULTILINE):
        found += [("Dockerfile", part) for part in line.split("&&")]
    return [(name, command.strip()) for name, command in found if command.strip()]


@pytest.mark.parametrize(("file", "command"), commands(), ids=str)
def test_every_command_is_there(file: str, command: str) -> None:
    words = shlex.split(command)
    assert words[0] in PROGRAMS
    scripts = [word for word in words[1:] if word.startswith(".ci/") or word.endswith((".py", ".sh"))]
    assert all((ROOT / script).is_file() for script in scripts), f"{file} runs {scripts}"
    if "dgiqa-rt" in words and words[0] == "docker" and "run" in words:
        command = words[words.index("dgiqa-rt") + 1]
        assert command in {known.name or known.callback.__name__ for known in app.registered_commands if known.callback}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nobody_is_sent_to_a_registry_and_every_extra_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"\w+\.(org|com|io|dev)\b", text), "a host"
    for extras in re.findall(r"\.\[([a-z,]+)\]", text) + re.findall(r"\$1\[([a-z,]+)\]", text):
        assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])


def test_ci_tries_every_python_that_the_package_admits_and_both_ends_of_what_it_depends_on() -> None:
    matrix = document(ROOT / ".github/workflows/ci.yml")["jobs"]["versions"]["strategy"]["matrix"]
    prefix = "Programming Language :: Python :: 3."
    admitted = [c.removeprefix(prefix[:-2]) for c in PROJECT["classifiers"] if c.startswith(prefix)]
    assert matrix["python"] == admitted
    assert PROJECT["requires-python"] == f">={admitted[0]}"
    assert matrix["include"] == [{"python": admitted[0], "dependencies": "lowest-direct"}]
    script = (ROOT / ".ci/versions").read_text()
    assert f"for version in {' '.join(admitted)}; do" in script


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_read_only_and_ends(path: Path) -> None:
    workflow = document(path)
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 90
        assert all(re.search(r"@(v\d+|[0-9a-f]{40})$", step["uses"]) for step in job["steps"] if "uses" in step)


def test_the_citation_is_of_this_version_and_of_the_paper() -> None:
    citation = document(ROOT / "CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["license"] == PROJECT["license"]
    assert str(citation["version"]) == dgiqa.__version__
    (paper,) = citation["references"]
    assert paper["identifiers"][0]["value"] == "arXiv:2505.24002"
    assert [author["family-names"] for author in paper["authors"]] == ["Ramesh", "Liu", "Wang", "Islam"]


def test_what_security_promises_has_tests() -> None:
    named = re.findall(r"`(tests/[a-z_]+\.py)`", (ROOT / "SECURITY.md").read_text())
    assert len(named) >= 7
    assert all((ROOT / name).is_file() for name in named)


def test_the_image_gets_what_a_wheel_is_built_from() -> None:
    wanted = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"}
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = build["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert wanted == {*(f"{package}/**" for package in packages), "pyproject.toml", PROJECT["readme"], "LICENSE"}


def test_templates_ask_for_what_doctor_and_verify_print() -> None:
    form = document(ROOT / ".github/ISSUE_TEMPLATE/bug.yml")
    text = (ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text()
    assert {part["id"] for part in form["body"] if "id" in part} == {"seen", "machine", "verify"}
    assert "dgiqa-rt doctor" in text
    assert "CHANGELOG.md" in (ROOT / ".github/pull_request_template.md").read_text()
