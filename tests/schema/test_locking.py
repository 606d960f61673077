from __future__ import annotations

import io
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.schema.migration_lock import migration_lock
from tests.helpers.legacy_databases import manage, opened, rows, sqlite_path

ROOT = Path(__file__).parents[2]

# Of this database, because tests beside this one use others of the same server.
ADVISORY_LOCKS = """
SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database
WHERE locktype = 'advisory' AND datname = current_database()
"""

# Takes the lock, says so, and holds it until its standard input ends.
HOLDER = """
import sys
from agentdb.serving.opening import configure
alias = configure(sys.argv[1])
from django.db import connections
from agentdb.schema.migration_lock import migration_lock
with migration_lock(connections[alias]):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(url: str) -> subprocess.Popen[str]:
    environment = {
        name: value
        for name, value in os.environ.items()
        if name != "DJANGO_SETTINGS_MODULE"
    }
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, url],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def assert_waits(held_url: str, url: str) -> None:
    """The lock of the second database is not free until a process gives that of the first one back."""
    with hold(held_url) as holder, opened(url) as connection:
        waits: list[str] = []

        def waiting() -> None:
            waits.append("waiting")
            assert holder.stdin is not None
            holder.stdin.close()

        with migration_lock(connection, waiting):
            assert waits == ["waiting"]


def test_the_lock_keeps_another_process_waiting_until_it_is_given_back(empty_url: str):
    assert_waits(empty_url, empty_url)


@pytest.mark.parametrize("engine", ["sqlite"])
def test_a_link_to_a_file_leads_to_its_lock(
    empty_url: str, engine: str, tmp_path: Path
):
    link = tmp_path / "elsewhere" / "link.sqlite3"
    link.parent.mkdir()
    link.symlink_to(sqlite_path(empty_url))
    assert_waits(empty_url, f"sqlite:///{link}")


def test_the_lock_of_a_killed_process_is_free(empty_url: str):
    with hold(empty_url) as holder, opened(empty_url) as connection:
        holder.kill()
        holder.wait()
        with migration_lock(connection):
            pass


def test_a_nested_lock_of_the_same_thread_does_not_wait_for_itself(empty_url: str):
    waits: list[str] = []
    with opened(empty_url) as connection:
        with (
            migration_lock(connection),
            migration_lock(connection, lambda: waits.append("waiting")),
        ):
            pass
        with migration_lock(connection, lambda: waits.append("waiting")):
            pass
    assert waits == []


def test_a_lock_is_free_before_the_server_notices_that_its_connection_is_closed(
    make_postgres_database: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    unnoticed: list[BaseDatabaseWrapper] = []
    with (
        opened(url := make_postgres_database()) as connection,
        psycopg.connect(url) as other,
    ):
        with monkeypatch.context() as patched:
            patched.setattr(
                BaseDatabaseWrapper, "close", lambda self: unnoticed.append(self)
            )
            with migration_lock(connection):
                held = other.execute(ADVISORY_LOCKS).fetchone()
        left = other.execute(ADVISORY_LOCKS).fetchone()
        for each in unnoticed:
            each.close()
    assert (held, left, len(unnoticed)) == ((1,), (0,), 1)


def test_another_thread_waits(empty_url: str):
    waits: list[str] = []
    free = threading.Event()

    def other() -> None:
        with opened(empty_url) as connection:

            def waiting() -> None:
                waits.append("waiting")
                free.set()

            with migration_lock(connection, waiting):
                waits.append("taken")

    with opened(empty_url) as connection:
        thread = threading.Thread(target=other)
        with migration_lock(connection):
            thread.start()
            assert free.wait(240)
            assert waits == ["waiting"]
        thread.join(240)
    assert waits == ["waiting", "taken"]


def test_migrate_says_that_it_waits(empty_url: str):
    said = "Another process is migrating this database; waiting for it.\n"
    with hold(empty_url) as holder, opened(empty_url) as connection:

        class Out(io.StringIO):
            def write(self, text: str) -> int:
                if text == said:
                    assert holder.stdin is not None
                    holder.stdin.close()
                return super().write(text)

        out = Out()
        call_command(
            "migrate",
            "agentdb",
            database=connection.alias,
            stdout=io.StringIO(),
            stderr=out,
        )

    assert said in out.getvalue()


@pytest.mark.parametrize("engine", ["sqlite"])
@pytest.mark.parametrize("target", [[], ["0001"]], ids=["newest", "0001"])
def test_migrate_waits_for_a_transaction_in_a_file_without_a_log(
    empty_url: str, engine: str, target: list[str]
):
    """As when several processes migrate a new file at once. SQLite does not wait when it gives the file a log."""
    with closing(
        sqlite3.connect(
            sqlite_path(empty_url), isolation_level=None, check_same_thread=False
        )
    ) as other:
        other.execute("BEGIN IMMEDIATE")
        with (
            opened(f"{empty_url}?timeout=0.1") as connection,
            pytest.raises(CommandError, match="is locked by another process"),
        ):
            manage(connection, "migrate", "agentdb", *target)
        late = threading.Timer(0.5, other.rollback)
        late.start()
        with opened(empty_url) as connection:
            manage(connection, "migrate", "agentdb", *target)
            assert rows(connection, "SELECT count(*) FROM agents") == [(0,)]
        late.join()


@pytest.mark.parametrize("option", ["--plan", "--check"])
def test_a_migrate_that_only_looks_does_not_wait(
    empty_url: str, option: str, engine: str
):
    if engine == "sqlite":
        Path(empty_url.removeprefix("sqlite:///")).touch()  # it makes none itself
    with hold(empty_url) as holder, opened(empty_url) as connection:
        assert holder.stdin is not None
        late = threading.Timer(600, holder.stdin.close)
        late.start()
        with suppress(SystemExit):  # something is to be done
            manage(connection, "migrate", "agentdb", option)
        assert late.is_alive()
        late.cancel()
        holder.stdin.close()


def test_the_lock_leaves_nothing_behind(empty_url: str, tmp_path: Path, engine: str):
    with opened(empty_url) as connection:
        with migration_lock(connection):
            files = {path.name for path in tmp_path.iterdir()}
        assert {name for name in files if "lock" in name} == set()
        if engine == "postgresql":
            assert rows(connection, ADVISORY_LOCKS) == [(0,)]


@pytest.mark.parametrize("engine", ["postgresql"])
def test_the_lock_holds_though_the_server_limits_idle_transactions_and_waits(
    empty_url: str, engine: str
):
    with opened(empty_url) as connection:
        name = connection.settings_dict["NAME"]
        for limit in (
            "lock_timeout",
            "statement_timeout",
            "idle_in_transaction_session_timeout",
        ):
            role = f"ALTER ROLE CURRENT_USER IN DATABASE {name}"
            rows(connection, f"{role} SET {limit} = '100ms'")
    with hold(empty_url) as holder, opened(empty_url) as connection:
        assert holder.stdin is not None
        late = threading.Timer(0.5, holder.stdin.close)
        with migration_lock(connection, late.start):
            pass


@pytest.mark.parametrize("engine", ["postgresql"])
def test_migrate_waits_longer_than_the_server_lets_a_session_be_idle(
    empty_url: str, engine: str
):
    with opened(empty_url) as connection:
        name = connection.settings_dict["NAME"]
        role = f"ALTER ROLE CURRENT_USER IN DATABASE {name}"
        rows(connection, f"{role} SET idle_session_timeout = '100ms'")
    with hold(empty_url) as holder, opened(empty_url) as connection:
        assert holder.stdin is not None
        connection.settings_dict["CONN_HEALTH_CHECKS"] = False  # Django's default
        late = threading.Timer(1, holder.stdin.close)

        class Told(io.StringIO):
            def write(self, text: str) -> int:
                if "waiting for it" in text:
                    late.start()
                return super().write(text)

        manage(connection, "migrate", "agentdb", stderr=Told())
        assert late.finished.is_set()


@pytest.mark.parametrize("engine", ["postgresql"])
def test_the_lock_needs_no_second_connection_of_a_hosts_pool(
    empty_url: str, engine: str
):
    with opened(empty_url) as connection:
        connection.close()
        connection.settings_dict["CONN_MAX_AGE"] = 0
        connection.settings_dict["OPTIONS"]["pool"] = {
            "min_size": 1,
            "max_size": 1,
            "timeout": 30,
        }
        try:
            assert rows(connection, "SELECT 1") == [
                (1,)
            ]  # the pool's connection is taken
            with migration_lock(connection):
                assert rows(connection, ADVISORY_LOCKS) == [(1,)]
        finally:
            connection.close()
            connection.close_pool()  # type: ignore[attr-defined]


@pytest.mark.parametrize("engine", ["postgresql"])
@pytest.mark.parametrize("is_taken", [False, True])
def test_without_a_second_connection_the_lock_is_the_sessions_and_is_given_back(
    empty_url: str, engine: str, is_taken: bool, monkeypatch: pytest.MonkeyPatch
):
    waits: list[str] = []
    with (
        opened(empty_url) as connection,
        psycopg.connect(empty_url, autocommit=True) as other,
    ):
        second = connection.copy()
        second.settings_dict["NAME"] = "agentdb_no_such_database"
        monkeypatch.setattr(connection, "copy", lambda: second)
        if is_taken:  # as a process of another version would, which knows this number
            key = int.from_bytes(b"agentdb", "big")
            other.execute("SELECT pg_advisory_lock(%s)", [key])
            with connection.cursor() as cursor:
                cursor.execute("SET lock_timeout = '100ms'")

        def waiting() -> None:
            waits.append("waiting")
            release = "SELECT pg_advisory_unlock_all()"
            threading.Timer(0.5, other.execute, [release]).start()

        with migration_lock(connection, waiting):
            held = other.execute(ADVISORY_LOCKS).fetchone()
        left = other.execute(ADVISORY_LOCKS).fetchone()

    assert (waits, held, left) == (["waiting"] * is_taken, (1,), (0,))


def test_a_database_in_memory_needs_no_lock():
    with opened("sqlite://:memory:") as connection, migration_lock(connection):
        assert rows(connection, "SELECT 1") == [(1,)]
