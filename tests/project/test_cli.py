"""The console script. Each test runs it as a process, because Django can be configured once in each."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

import agentdb

ROOT = Path(__file__).resolve().parents[2]


# As -m agentdb; tests lowers what django-cockroachdb asks of a real CockroachDB, if there is one.
AGENTDB = """
import runpy, tests
runpy.run_module("agentdb", run_name="__main__", alter_sys=True)
"""


def run(
    folder: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    inherited = {
        k: v
        for k, v in os.environ.items()
        if k not in ("DATABASE_URL", "DJANGO_SETTINGS_MODULE")
    }
    return subprocess.run(
        [sys.executable, "-c", AGENTDB, *arguments],
        cwd=folder,
        env={**inherited, "PYTHONPATH": str(ROOT), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def cli(tmp_path):
    """A function that runs ``agentdb`` in an empty folder and returns the finished process."""
    return partial(run, tmp_path)


@pytest.fixture(scope="module")
def overview(tmp_path_factory):
    """The finished process of ``agentdb`` without arguments, and its folder."""
    folder = tmp_path_factory.mktemp("overview")
    return run(folder), folder


def versions(url: str) -> int:
    with agentdb.connect(url) as db:
        return db.upsert_agent("a", "/a").version


def test_without_arguments_it_lists_its_own_commands_with_their_help_first(overview):
    finished, _ = overview

    lines = finished.stdout.splitlines()
    own = [line.split()[0] for line in lines[2 : lines.index("", 2)]]
    assert finished.returncode == 0
    assert lines[0] == "agentdb [--url URL] COMMAND …"
    assert {"baselinedb", "migrate", "verifydb"} <= set(own)
    assert own == sorted(own)
    assert all(len(line.split()) > 3 for line in lines[2 : lines.index("", 2)])
    assert lines[-2].endswith("; without both it is sqlite:///agentdb.sqlite3.")


@pytest.mark.parametrize("arguments", ["help", "--help", "-h", "-q", "-q help"])
def test_help_is_the_same_list(cli, arguments, overview):
    assert cli(*arguments.split()).stdout == overview[0].stdout


def test_the_list_creates_no_database(overview):
    assert list(overview[1].iterdir()) == []


def test_version_names_agentdb_django_and_python(cli):
    import django

    finished = cli("--version")

    python = ".".join(map(str, sys.version_info[:3]))
    assert finished.stdout.startswith("agentdb ")
    assert finished.stdout.endswith(
        f" (Django {django.__version__}, Python {python})\n"
    )


def test_without_a_url_the_database_is_a_file_in_the_working_directory(cli, tmp_path):
    finished = cli("migrate")

    assert finished.returncode == 0, finished.stderr
    assert versions(f"sqlite:///{tmp_path}/agentdb.sqlite3") == 1


def test_database_url_names_the_database(cli, empty_url):
    finished = cli("migrate", DATABASE_URL=empty_url)

    assert finished.returncode == 0, finished.stderr
    assert versions(empty_url) == 1


@pytest.mark.parametrize("place", ["before", "after", "joined"])
def test_url_option_is_taken_anywhere_and_goes_before_the_environment(
    cli, empty_url, place
):
    arguments = {
        "before": ("--url", empty_url, "migrate"),
        "after": ("migrate", "--url", empty_url),
        "joined": ("migrate", f"--url={empty_url}"),
    }[place]

    finished = cli(*arguments, DATABASE_URL="sqlite:////does/not/exist.db")

    assert finished.returncode == 0, finished.stderr
    assert versions(empty_url) == 1


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        (["--url"], "error: argument --url: expected one argument\n"),
        (["--url", ""], "The database URL is empty. Is a variable not set?\n"),
        (["--url="], "The database URL is empty. Is a variable not set?\n"),
    ],
)
def test_url_option_without_a_value_is_refused(cli, tmp_path, option, sentence):
    finished = cli("migrate", *option)

    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr.endswith(sentence)
    assert list(tmp_path.iterdir()) == []


def test_a_url_of_another_engine_is_refused(cli):
    finished = cli("--url", "mysql://localhost/agents", "migrate")

    assert finished.returncode == 2
    assert finished.stderr == (
        "The database URL begins with 'mysql'; supported are sqlite://, postgres://, postgresql://, cockroach://, "
        "cockroachdb://.\n"
    )


def test_djangos_commands_work(cli, url):
    finished = cli("--url", url, "inspectdb", "api_keys")

    assert finished.returncode == 0, finished.stderr
    assert "class ApiKeys(models.Model):" in finished.stdout


def test_help_of_one_command_is_its_own(cli):
    finished = cli("help", "verifydb")

    assert finished.stdout.startswith("usage: agentdb verifydb ")
    assert "--json" in finished.stdout


def test_an_unknown_command_ends_with_an_error(cli):
    finished = cli("nonsense")

    assert finished.returncode == 1
    assert (
        finished.stderr
        == "Unknown command: 'nonsense'\nType 'agentdb help' for usage.\n"
    )


def test_a_refusing_database_gives_one_sentence_and_no_traceback(cli, tmp_path):
    (tmp_path / "text.db").write_text("not a database " * 100)

    finished = cli("--url", "sqlite:///text.db", "sqlmigrate", "agentdb", "0001")

    assert finished.returncode == 2
    assert finished.stderr.splitlines() == [
        "agentdb sqlmigrate: the database refused: file is not a database",
    ]
    checked = cli("--url", "sqlite:///text.db", "showmigrations")
    assert checked.returncode == 2
    assert checked.stderr.startswith(f"'{tmp_path}/text.db' is not a SQLite database")


def test_traceback_option_shows_where_the_database_refused(cli, tmp_path):
    url = "postgresql://ann@127.0.0.1:1/agents"

    finished = cli("--url", url, "showmigrations", "--traceback")

    assert finished.returncode == 1
    assert finished.stderr.splitlines()[1] == "Traceback (most recent call last):"


def test_a_password_is_in_no_message(cli):
    finished = cli(
        "--url", "postgresql://ann:geheim@127.0.0.1:1/agents", "showmigrations"
    )

    assert finished.returncode == 2
    assert "\nagentdb showmigrations: the database refused: " in finished.stderr
    assert "geheim" not in finished.stdout + finished.stderr


@pytest.fixture
def host(tmp_path):
    """A Django project in the working directory, with agentdb among its apps."""
    (tmp_path / "host.py").write_text(
        "INSTALLED_APPS = ['agentdb']\n"
        "DATABASES = {'default': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': 'host.db'}}\n"
        "USE_TZ = True\n"
    )
    return "host"


def test_a_projects_settings_are_used_where_they_are_named(cli, host, tmp_path):
    finished = cli("migrate", DJANGO_SETTINGS_MODULE=host)

    assert finished.returncode == 0, finished.stderr
    assert versions(f"sqlite:///{tmp_path}/host.db") == 1


def test_the_settings_option_names_a_project_too(cli, host, tmp_path):
    finished = cli("migrate", "--settings", host)

    assert finished.returncode == 0, finished.stderr
    assert versions(f"sqlite:///{tmp_path}/host.db") == 1
    # Also to Django's commands that read a database, which agentdb looks at first unless it is a project's.
    shown = cli("showmigrations", "agentdb", f"--settings={host}")
    assert shown.returncode == 0, shown.stderr
    assert "[X] 0001_initial" in shown.stdout


def test_a_project_may_be_where_the_pythonpath_option_says(cli, host, tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (tmp_path / "host.py").rename(folder / "host.py")

    finished = cli("migrate", "--pythonpath", str(folder), DJANGO_SETTINGS_MODULE=host)

    assert finished.returncode == 0, finished.stderr
    assert versions(f"sqlite:///{tmp_path}/host.db") == 1


@pytest.mark.parametrize("url", ["sqlite:///a.db", ""])
@pytest.mark.parametrize("is_option", [False, True], ids=["variable", "option"])
def test_a_url_beside_a_projects_settings_is_refused(cli, host, url, is_option):
    finished = (
        cli("--url", url, "migrate", "--settings", host)
        if is_option
        else cli("--url", url, "migrate", DJANGO_SETTINGS_MODULE=host)
    )

    assert finished.returncode == 2
    assert finished.stderr == (
        "Both --url and the Django settings 'host' say which database is meant. "
        "Leave out --url, or unset DJANGO_SETTINGS_MODULE.\n"
    )


def test_settings_that_cannot_be_imported_are_named(cli):
    finished = cli("check", DJANGO_SETTINGS_MODULE="nowhere.settings")

    assert finished.returncode == 2
    assert finished.stderr == (
        "Django cannot be set up: No module named 'nowhere'. Correct that, or DJANGO_SETTINGS_MODULE if it is set, and "
        "start the process again.\n"
    )


def test_settings_without_agentdb_are_refused(cli, tmp_path):
    (tmp_path / "other.py").write_text("INSTALLED_APPS = []\n")

    finished = cli("migrate", DJANGO_SETTINGS_MODULE="other")

    assert finished.returncode == 2
    assert finished.stderr == (
        'Django is configured without agentdb. Add "agentdb" to INSTALLED_APPS.\n'
    )


def test_a_reader_that_has_seen_enough_gets_no_traceback(tmp_path):
    finished = subprocess.run(
        ["sh", "-c", f"{shlex.quote(sys.executable)} -u -m agentdb | true"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert finished.stderr == ""


@pytest.mark.parametrize(
    "command",
    [
        "apikey list",
        "check",
        "inspectdb",
        "runadmin",
        "showmigrations",
        "migrate --plan",
        "dbshell -- .tables",
        "shell -c 1",
    ],
)
def test_a_command_that_only_looks_makes_no_file(tmp_path, command):
    missing = tmp_path / "misspelt.sqlite3"
    # Of a database that was moved away. SQLite deletes it if it creates the file.
    log = tmp_path / "misspelt.sqlite3-wal"
    log.write_bytes(b"what was stored last")

    finished = subprocess.run(
        [
            sys.executable,
            "-m",
            "agentdb",
            "--url",
            f"sqlite:///{missing}",
            *command.split(),
        ],
        capture_output=True,
        text=True,
        env={
            name: value
            for name, value in os.environ.items()
            if name != "DJANGO_SETTINGS_MODULE"
        },
    )

    assert finished.returncode in (1, 2)
    assert f"The database file '{missing}' does not exist." in finished.stderr
    assert list(tmp_path.iterdir()) == [log]


@pytest.mark.parametrize("is_there", [False, True])
def test_sqlmigrate_needs_no_file_and_leaves_the_log_of_one_that_was_moved(
    cli, tmp_path, is_there
):
    log = tmp_path / "moved.sqlite3-wal"
    log.write_bytes(b"what was stored last")
    if is_there:
        (tmp_path / "moved.sqlite3").touch()
    before = set(tmp_path.iterdir())

    finished = cli("--url", "sqlite:///moved.sqlite3", "sqlmigrate", "agentdb", "0001")

    assert finished.returncode == 0, finished.stderr
    assert 'CREATE TABLE "sessions"' in finished.stdout
    assert set(tmp_path.iterdir()) == before


def test_a_command_that_only_looks_leaves_the_log_beside_an_empty_file(cli, tmp_path):
    log = tmp_path / "empty.sqlite3-wal"
    log.write_bytes(b"what was stored last")
    (tmp_path / "empty.sqlite3").touch()

    finished = cli("--url", "sqlite:///empty.sqlite3", "dbshell", "--", ".tables")

    assert finished.returncode == 2
    assert finished.stderr.startswith(f"There is a file '{log}', which belongs to")
    assert log.exists()


@pytest.mark.parametrize("name", ["flush", "testserver", "loaddata"])
def test_commands_of_django_that_empty_a_database_or_are_of_no_use_are_not_offered(
    cli, name
):
    finished = cli(name, "--help")

    assert finished.returncode == 1
    assert finished.stderr.startswith(f"Unknown command: {name!r}")
    assert finished.stderr.endswith("\nType 'agentdb help' for usage.\n")


def test_the_help_of_a_command_names_the_url(cli):
    assert "--url URL" in cli("migrate", "--help").stdout


@pytest.mark.parametrize(
    "command",
    ["verifydb", "apikey list", "showmigrations", "inspectdb", "migrate",
     "prune --older-than 9d", "backup {folder}/b.sqlite3", "health", "overview", "baselinedb"],
)  # fmt: skip
def test_each_command_says_first_which_database_it_is(
    cli, tmp_path: Path, command: str
):
    url = f"sqlite:///{tmp_path}/state.sqlite3"
    cli("--url", url, "migrate")

    result = cli("--url", url, *command.format(folder=tmp_path).split())

    first = (result.stderr + result.stdout).splitlines()[0]
    assert f"{tmp_path}/state.sqlite3" in first, first
    if command not in ("health", "overview", "baselinedb"):  # whose answer that is
        quiet = cli("--url", url, "-q", *command.format(folder=tmp_path / "..").split())
        assert f"{tmp_path}/state.sqlite3" not in quiet.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["ba"], ["backup", "baselinedb"]),
        (["f"], []),  # Django's flush is not offered
        (["verifydb", "--j"], ["--json"]),
    ],
)
def test_a_shell_completes_commands_and_options(
    tmp_path: Path, words: list[str], expected: list[str]
):
    assert completed(tmp_path, words) == expected
    assert list(tmp_path.iterdir()) == []


def test_in_a_project_a_shell_completes_the_commands_that_run_there(tmp_path: Path):
    offered = completed(
        tmp_path, ["flu"], DJANGO_SETTINGS_MODULE="settings.test", PYTHONPATH=str(ROOT)
    )

    assert offered == ["flush"]


def completed(folder: Path, words: list[str], **environment: str) -> list[str]:
    [function] = re.findall(
        r"^_agentdb\(\) .*$", (ROOT / "docs" / "commands.md").read_text(), re.MULTILINE
    )
    line = " ".join(f"'{word}'" for word in ["agentdb", *words])
    script = f'{function}\nCOMP_WORDS=({line})\nCOMP_CWORD={len(words)}\n_agentdb\necho "${{COMPREPLY[@]}}"\n'
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name != "DJANGO_SETTINGS_MODULE"
    }
    inherited["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{inherited['PATH']}"
    finished = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return finished.stdout.split()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may enter every folder")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["migrate"], "the folder '{folder}' cannot be written to"),
        (["inspectdb"], "The database file '{file}' cannot be read: permission denied"),
        (["restore", "{file}"], "'{file}' cannot be read: permission denied"),
        (["copydb", "{other}", "{url}"], "the folder '{folder}' cannot be written to"),
    ],
)
def test_a_file_in_a_folder_that_may_not_be_entered_is_a_sentence_and_not_a_traceback(
    cli, tmp_path, arguments, sentence
):
    folder, other = tmp_path / "locked", tmp_path / "other.sqlite3"
    folder.mkdir()
    file = folder / "one.sqlite3"
    for each in (file, other):
        agentdb.connect(f"sqlite:///{each}", migrate=True).close()
    url = f"sqlite:///{other if arguments[0] == 'restore' else file}"
    names = {"file": file, "folder": folder, "other": f"sqlite:///{other}", "url": url}
    given = [argument.format(**names) for argument in arguments]
    folder.chmod(0o000)

    finished = cli(*given, DATABASE_URL=url)

    folder.chmod(0o700)
    assert sentence.format(**names) in finished.stderr
    assert "Traceback" not in finished.stderr
    assert finished.returncode in (1, 2)
