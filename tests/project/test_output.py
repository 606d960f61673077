"""Output that cannot be written, and options that every command takes. Each test runs real processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import agentdb
from tests.helpers.legacy_databases import FOLDER

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {
    "apikey list": ["apikey", "list"],
    "apikey issue": ["apikey", "issue", "--tenant", "t", "--label", "l"],
    "backup": ["backup", "backup.sqlite3"],
    "baselinedb": ["baselinedb"],
    "health": ["health"],
    "migrate": ["migrate"],
    "overview": ["overview"],
    "prune": ["prune", "--older-than", "30d"],
    "verifydb": ["verifydb"],
    "copydb": ["copydb", "sqlite:///agentdb.sqlite3", "sqlite:///copy.sqlite3"],
    "inspectdb": ["inspectdb"],
    "showmigrations": ["showmigrations"],
    "check": ["check"],
}


def environment() -> dict[str, str]:
    """Return this process's without what names a database."""
    inherited = {
        k: v
        for k, v in os.environ.items()
        if k not in ("DATABASE_URL", "DJANGO_SETTINGS_MODULE")
    }
    return {**inherited, "PYTHONPATH": str(ROOT)}


def shell(
    folder: Path, script: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which ``$agentdb`` is the command."""
    return subprocess.run(
        [
            "bash",
            "-o",
            "pipefail",
            "-c",
            f'agentdb="{sys.executable} -m agentdb"; {script}',
        ],
        cwd=folder,
        env={**environment(), **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def migrated(tmp_path: Path) -> Path:
    """A folder with a migrated ``agentdb.sqlite3``."""
    agentdb.connect(f"sqlite:///{tmp_path}/agentdb.sqlite3", migrate=True).close()
    return tmp_path


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A folder whose ``agentdb.sqlite3`` is an old server's."""
    shutil.copy(FOLDER / "sqlite" / "era-b-small.db", tmp_path / "agentdb.sqlite3")
    return tmp_path


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_every_option_of_agentdb(
    migrated: Path, command: str, before: bool
):
    words = COMMANDS[command]
    line = (
        ["-q", *words] if before else [*words, "--quiet", "--no-color", "--traceback"]
    )

    finished = shell(migrated, "$agentdb " + " ".join(line))

    assert finished.returncode == 0, finished.stderr


def keys(folder: Path) -> int:
    with agentdb.connect(f"sqlite:///{folder}/agentdb.sqlite3") as db:
        return len(db.list_api_keys_by_tenant("t"))


@pytest.mark.parametrize("lost", ["> /dev/full", ">&-", "| true"])
def test_a_key_that_could_not_be_printed_is_revoked(migrated: Path, lost: str):
    finished = shell(migrated, f"$agentdb apikey issue --tenant t --label l {lost}")

    assert finished.returncode == 2
    assert (
        "The key could not be printed, so it was revoked. Nobody has seen it."
        in finished.stderr
    )
    assert keys(migrated) == 0


@pytest.mark.parametrize("lost", ["> /dev/full", ">&-", "| true"])
def test_an_adoption_whose_output_is_lost_is_done_and_says_so(old: Path, lost: str):
    finished = shell(old, f"$agentdb baselinedb --no-backup {lost}")

    assert finished.returncode == 0, finished.stderr
    assert "The output could not be written: " in finished.stderr
    assert "Traceback" not in finished.stderr
    assert shell(old, "$agentdb verifydb").returncode == 0


def test_a_result_that_could_not_be_written_is_a_failure(migrated: Path):
    finished = shell(migrated, "$agentdb health --json > /dev/full")

    assert finished.returncode == 2
    assert (
        finished.stderr == "The output could not be written: No space left on device.\n"
    )


@pytest.mark.parametrize("words", ["", "version", "migrate --help", "showmigrations"])
def test_an_answer_that_could_not_be_written_leaves_a_sentence_and_no_traceback(
    migrated: Path, words: str
):
    finished = shell(migrated, f"$agentdb {words} > /dev/full")

    assert finished.returncode == 1
    assert finished.stderr.endswith("agentdb: [Errno 28] No space left on device\n")
    assert "Traceback" not in finished.stderr


def test_django_s_commands_and_help_do_without_standard_output(migrated: Path):
    for words in ("", "-q", "version", "showmigrations -q", "check -q"):
        finished = shell(migrated, f"$agentdb {words} >&-")

        assert (finished.returncode, finished.stderr) == (0, ""), words


@pytest.mark.parametrize(
    "program", ["$agentdb", f"{sys.executable} {ROOT / 'manage.py'}"]
)
def test_commands_that_read_standard_input_do_without_it(migrated: Path, program: str):
    url = f"sqlite:///{migrated}/agentdb.sqlite3"
    with agentdb.connect(url) as db:
        db.upsert_agent("a", "/a")

    found = shell(migrated, f"{program} apikey find <&-", DATABASE_URL=url)
    dropped = shell(migrated, f"{program} migrate agentdb zero <&-", DATABASE_URL=url)

    assert found.returncode == 1
    assert found.stderr.endswith("No API key is stored that this one opens.\n")
    assert dropped.returncode == 1
    assert "Nothing was changed." in dropped.stderr


def test_a_key_that_is_no_text_is_a_key_that_opens_nothing(migrated: Path):
    found = shell(
        migrated,
        r"printf '\xff\n' | $agentdb apikey find",
        PYTHONIOENCODING="utf-8:strict",
    )

    assert found.returncode == 1
    assert found.stderr.endswith("No API key is stored that this one opens.\n")


def test_the_end_of_input_at_the_prompt_for_a_key_is_no_key(migrated: Path):
    terminal, its_end = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "agentdb", "apikey", "find"],
        cwd=migrated,
        env=environment(),
        stdin=its_end,
        stderr=subprocess.PIPE,
        start_new_session=True,  # so that the prompt is not in the terminal of the tests
    ) as finding:
        os.close(its_end)
        assert finding.stderr is not None
        said = b""
        while not said.endswith(b"API key: ") and finding.poll() is None:
            said += finding.stderr.read(1)
        os.write(terminal, b"\x04")
        said = finding.stderr.read()
    os.close(terminal)

    assert finding.returncode == 1
    assert said.endswith(b"No API key is stored that this one opens.\n")


def test_a_shell_does_without_standard_input(migrated: Path):
    typed = shell(migrated, "$agentdb shell <&-")

    assert "Traceback" not in typed.stderr
    assert typed.returncode == 0


def test_an_overview_of_a_file_that_is_not_there_says_so_once(tmp_path: Path):
    finished = shell(tmp_path, "$agentdb overview")

    assert (finished.returncode, finished.stderr) == (2, "")
    assert finished.stdout.count("does not exist") == 1


def test_an_error_without_standard_error_has_its_exit_code(tmp_path: Path):
    assert shell(tmp_path, "$agentdb showmigrations 2>&-").returncode == 2


def test_a_program_that_a_command_becomes_has_a_standard_output(tmp_path: Path):
    become = (
        "import os, sys; from agentdb.management.output import occupy_closed_descriptors; occupy_closed_descriptors(); "
        "os.execl(sys.executable, 'python', '-c', 'import sys; sys.exit(sys.stdout is None)')"
    )

    finished = shell(tmp_path, f'{sys.executable} -c "{become}" >&-')

    assert (finished.returncode, finished.stderr) == (0, "")


def test_quiet_without_a_command_is_the_help(tmp_path: Path):
    quiet, help = shell(tmp_path, "$agentdb -q"), shell(tmp_path, "$agentdb")

    assert quiet.returncode == 0
    assert (quiet.stdout, quiet.stderr) == (help.stdout, help.stderr)


def test_standard_error_that_is_closed_stops_nothing(old: Path):
    finished = shell(old, "$agentdb baselinedb --no-backup 2>&-")

    assert finished.returncode == 0
    assert "Adopted: " in finished.stdout


def test_descriptors_that_are_closed_are_not_given_to_the_database(migrated: Path):
    """SQLite takes the lowest free descriptor, and what is printed to standard output would go into the file."""
    assert shell(migrated, "$agentdb migrate <&- >&- 2>&-").returncode == 0

    assert shell(migrated, "$agentdb verifydb").returncode == 0


@pytest.mark.parametrize(
    "words", ["--help", "migrate --help", "baselinedb --check", "copydb --help"]
)
def test_a_terminal_that_is_not_utf_8_shows_escapes(old: Path, words: str):
    finished = shell(old, f"$agentdb {words}", PYTHONIOENCODING="ascii")

    assert "Traceback" not in finished.stderr
    assert finished.returncode in (0, 1)
    assert finished.stdout.isascii()
