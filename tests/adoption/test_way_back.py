"""Before the way back: other connections are counted and named, and a SQLite file is backed up."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing

import psycopg
import pytest
from django.core.management import CommandError

import agentdb
from agentdb.adoption import way_back
from agentdb.errors import InvalidInputError
from agentdb.schema.migration_record import migration_names
from tests.helpers.baseline_runs import baselinedb, snapshot
from tests.helpers.legacy_databases import manage, opened, rows, sqlite_path

Load = Callable[[str], str]

_HOLD = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT * FROM agents').fetchall(); input()"


def go_back(url: str, **options: object) -> str:
    with opened(url) as connection:
        manage(connection, "migrate", "agentdb", "0001", **options)
        [(created_at,)] = rows(connection, "SELECT min(created_at) FROM agents")
        return str(created_at)


@pytest.fixture
def adopted(load_legacy: Load) -> str:
    url = load_legacy("era-b-small")
    assert baselinedb(url, "--no-backup").code == 0
    return url


def test_an_open_db_is_named_and_nothing_is_changed(adopted: str, engine: str):
    with agentdb.connect(adopted) as db:
        db.list_agents()
        before = snapshot(adopted)
        with pytest.raises(CommandError) as refused:
            go_back(adopted)

        one = r"process \d+ of the .*"
        if engine == "sqlite":
            one = f"process {os.getpid()}: .*"
        assert re.match(
            rf"Other connections are open \(\d+\):(\n  {one})+\nA running agentdb ",
            str(refused.value),
        )
        assert "or go back all the same with --force." in str(refused.value)
        assert snapshot(adopted) == before
        assert go_back(adopted, force=True).endswith("Z")


def test_without_other_connections_it_goes_back_at_once(adopted: str):
    assert go_back(adopted).endswith("Z")


@pytest.mark.parametrize("engine", ["postgresql"])
def test_a_session_is_named_by_its_program_and_role(adopted: str, engine: str):
    with psycopg.connect(adopted, application_name="billing") as other:
        [(pid, role)] = other.execute(
            "SELECT pg_backend_pid(), current_user"
        ).fetchall()
        place = "local" if other.info.host.startswith("/") else other.info.host
        with pytest.raises(CommandError) as refused:
            go_back(adopted)

    assert (
        f"Other connections are open (1):\n  process {pid} of the server: billing, role {role}, from {place}\n"
        "A running agentdb would lose or corrupt what it writes after the way back. Nothing was changed."
        in str(refused.value)
    )


@pytest.mark.parametrize("engine", ["postgresql"])
@pytest.mark.parametrize(("number", "more"), [(10, []), (11, ["  and 1 more"])])
def test_ten_sessions_are_named_and_the_others_counted(
    adopted: str,
    engine: str,
    number: int,
    more: list[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(way_back, "_SECONDS_BETWEEN_LOOKS", 0)
    with ExitStack() as stack, opened(adopted) as connection:
        for _ in range(number):
            stack.enter_context(psycopg.connect(adopted))
        with pytest.raises(InvalidInputError) as refused:
            way_back.refuse_others(connection)

    lines = str(refused.value).splitlines()
    assert lines[0] == f"Other connections are open ({number}):"
    assert all(line.startswith("  process ") for line in lines[1:11])
    assert lines[11:-1] == more


@pytest.mark.parametrize("engine", ["sqlite"])
@pytest.mark.skipif(
    sys.platform != "linux",
    reason="only Linux lists the processes that have a file open",
)
def test_another_process_is_named_by_its_command(adopted: str, engine: str):
    command = [sys.executable, "-c", _HOLD, str(sqlite_path(adopted))]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        while f" {other.pid}:" not in (message := _refusal(adopted)):
            assert other.poll() is None
        other.communicate(b"\n")

    assert f"\n  process {other.pid}: {sys.executable} -c import sqlite3" in message


def _refusal(url: str) -> str:
    with opened(url) as connection:
        try:
            manage(connection, "migrate", "agentdb", "0001", no_backup=True)
        except CommandError as error:
            return str(error)
        manage(connection, "migrate", "agentdb")
    return ""


@pytest.mark.parametrize("engine", ["sqlite"])
def test_the_file_is_backed_up_first(adopted: str, engine: str):
    path = sqlite_path(adopted)

    go_back(adopted)

    [backup] = path.parent.glob(f"{path.name}.backup-*")
    with closing(sqlite3.connect(backup)) as copy:
        assert copy.execute(
            "SELECT max(name) FROM django_migrations WHERE app = 'agentdb'"
        ).fetchall() == [(migration_names()[-1],)]


@pytest.mark.parametrize("engine", ["sqlite"])
def test_no_backup_leaves_it_out(adopted: str, engine: str):
    go_back(adopted, no_backup=True)

    assert list(sqlite_path(adopted).parent.glob("*.backup-*")) == []


def test_the_way_to_0002_asks_nobody(adopted: str):
    with agentdb.connect(adopted) as db, opened(adopted) as connection:
        db.list_agents()
        manage(connection, "migrate", "agentdb", "0002")
