"""Every block of the README and the docs runs as it stands, in order, twice, in an empty directory, with the wheel."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.core.management import get_commands

from agentdb import Db, errors

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]
}
BLOCK = re.compile(
    r"(?:<!-- not run: (.*?) -->\n)?```(python|console)\n(.*?)```", re.DOTALL
)
FILE = re.compile(r"# (\w+\.py)\b")


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """The blocks that run, without those that say why they do not, and what ``make`` does in a checkout."""
    for reason, language, code in BLOCK.findall(text):
        if not reason and "$ make " not in code:
            yield language, code


RUN = {name: list(blocks(text)) for name, text in DOCUMENTS.items()}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with the wheel and what it needs."""
    folder = tmp_path_factory.mktemp("wheel")
    wheel = [
        sys.executable,
        "-m",
        "hatchling",
        "build",
        "--target",
        "wheel",
        "--directory",
        str(folder),
    ]
    subprocess.run(wheel, cwd=ROOT, check=True, capture_output=True)
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True
    )
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(folder / "venv"),
        "install",
        "--quiet",
    ]
    subprocess.run(
        [*install, *map(str, folder.glob("*.whl"))], check=True, capture_output=True
    )
    return folder / "venv/bin/python"


@pytest.mark.parametrize("name", [name for name, found in RUN.items() if found])
def test_every_block_runs_as_it_stands_twice(
    name: str, python: Path, tmp_path: Path
) -> None:
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("DATABASE_URL", "DJANGO_SETTINGS_MODULE", "PYTHONPATH")
    }
    environment["PATH"] = f"{python.parent}{os.pathsep}{environment['PATH']}"
    for _ in range(2):
        shell_variables = dict(environment)
        for language, code in RUN[name]:
            if language == "console":
                run_console(code, tmp_path, shell_variables)
            elif (file := FILE.match(code)) is not None:
                (tmp_path / file[1]).write_text(code)
                run([str(python), file[1]], tmp_path, shell_variables)
            else:
                run([str(python), "-c", code], tmp_path, shell_variables)


def run_console(block: str, folder: Path, environment: dict[str, str]) -> None:
    """Run the lines after a ``$``; what stands below one is what it prints, with ``…`` for what may differ."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, _, expected = part.partition("\n")
        if (variable := re.match(r"export (\w+)=(.*)", command)) is not None:
            environment[variable[1]] = variable[2]
            continue
        printed = run(["bash", "-c", command], folder, environment)
        if expected.strip():
            pattern = ".*".join(map(re.escape, expected.strip().split("…")))
            assert re.fullmatch(pattern, printed.strip(), re.DOTALL), (
                f"{command} printed:\n{printed}"
            )


def run(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        text=True,
        stdout=-1,
        stderr=-2,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_blocks_say_what_they_are() -> None:
    """A block without a language would be run by nobody; a shell's is indented or plain text."""
    for name, text in DOCUMENTS.items():
        fences = re.findall(r"^```(\w*)$", text, re.MULTILINE)[::2]
        assert set(fences) <= {
            "python",
            "console",
            "json",
            "mermaid",
            "yaml",
            "dockerfile",
            "",
        }, name


PART = re.compile(
    r"<!-- not run: part of (examples/\S+) -->\n```\w+\n(.*?)```", re.DOTALL
)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_parts_of_examples_are_shown_as_they_are_and_the_whole_is_linked(
    name: str,
) -> None:
    for example, code in PART.findall(DOCUMENTS[name]):
        assert code in (ROOT / example).read_text(), example
        folder = Path(example).parent.as_posix()
        assert {f"(../{example})", f"(../{folder})"} & set(
            re.findall(r"\(\.\./[\w./]+\)", DOCUMENTS[name])
        ), f"{name} does not link {example}"


@pytest.mark.parametrize(
    ("page", "example"),
    [
        ("how-to.md", "fastapi_app.py"),
        ("how-to.md", "reaper.py"),
        ("how-to.md", "test_own_code.py"),
        ("how-to.md", "test_own_db.py"),
        ("fleet.md", "fleet.py"),
        ("own-tables.md", "conversations/models.py"),
        ("own-tables.md", "conversations/store.py"),
        ("own-tables.md", "own_tables_async.py"),
        ("containers.md", "compose/Dockerfile"),
        ("containers.md", "compose/compose.yaml"),
    ],
)
def test_the_pages_show_these_examples(page: str, example: str) -> None:
    assert f"examples/{example}" in dict(PART.findall(DOCUMENTS[f"docs/{page}"]))


def test_the_containers_run_commands_that_there_are() -> None:
    run = re.findall(
        r"(?:command|test): agentdb (\w+)$",
        DOCUMENTS["docs/containers.md"],
        re.MULTILINE,
    )

    assert sorted(set(run)) == ["health", "migrate"]
    assert set(run) <= {
        name for name, app in get_commands().items() if app == "agentdb"
    }


def test_the_concepts_name_every_method_of_the_interface() -> None:
    methods = [
        name
        for name, _ in inspect.getmembers(Db, inspect.isfunction)
        if not name.startswith("_")
    ]

    assert [
        name for name in methods if f"`{name}`" not in DOCUMENTS["docs/concepts.md"]
    ] == []


def test_the_page_about_outcomes_names_every_error() -> None:
    names = [
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and value.__module__ == errors.__name__
    ]

    assert [
        name
        for name in names
        if name != "AgentDbError" and f"`{name}`" not in DOCUMENTS["docs/outcomes.md"]
    ] == []


def test_the_commands_are_all_named() -> None:
    commands = [name for name, app in get_commands().items() if app == "agentdb"]

    assert [
        name for name in commands if f"`{name}" not in DOCUMENTS["docs/commands.md"]
    ] == []


def test_the_system_checks_are_all_named() -> None:
    source = "".join(path.read_text() for path in (ROOT / "agentdb").rglob("*.py"))
    found = sorted(set(re.findall(r"agentdb\.[EW]\d{3}", source)))

    assert [
        check for check in found if f"`{check}`" not in DOCUMENTS["docs/commands.md"]
    ] == []


def test_the_url_options_are_all_named() -> None:
    source = (ROOT / "agentdb/conf.py").read_text()
    known = re.search(r"known are ([\w, ]+)", source.replace('"\n            "', ""))
    assert known is not None

    assert [
        option
        for option in re.split(", | and ", known[1])
        if f"`{option}=" not in DOCUMENTS["docs/connecting.md"]
    ] == []


def test_the_readme_names_no_target_that_make_lacks() -> None:
    targets = set(
        re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    )

    assert (
        set(re.findall(r"(?<![\w-])make ([a-z]+)(?=[`\n ])", DOCUMENTS["README.md"]))
        - {"them"}
        <= targets
    )


@pytest.mark.parametrize(
    "name", [*DOCUMENTS, "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
)
def test_links_between_documents_lead_somewhere(name: str) -> None:
    document = ROOT / name
    links = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text())

    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("name", [*DOCUMENTS, "CONTRIBUTING.md"])
def test_files_of_the_repository_that_are_named_exist(name: str) -> None:
    named = re.findall(
        r"(?<![\w/.])(?:tests|agentdb|benchmarks|examples)/[\w/.]+\.py\b",
        (ROOT / name).read_text(),
    )

    assert [file for file in named if not (ROOT / file).exists()] == []


def test_every_page_is_in_the_sites_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()

    assert [
        page.name
        for page in ROOT.glob("docs/*.md")
        if f": {page.name}\n" not in navigation
    ] == []
