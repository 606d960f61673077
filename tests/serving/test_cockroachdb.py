"""CockroachDB without a server: its Django backend runs against PostgreSQL, through a proxy that has its rules."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import django
import psycopg
import pytest
from django.core.management import CommandError
from django.db import connections

import agentdb
from agentdb.adoption.conforming import conform_online
from agentdb.schema import compare, expected_tables, read_tables
from tests.helpers.cockroach_proxy import RULES, Proxy, serving
from tests.helpers.legacy_databases import FOLDER, manage, opened, psql, rows
from tests.helpers.limits import set_call_timeout

BACKEND = (
    importlib.metadata.version("django-cockroachdb")
    if importlib.util.find_spec("django_cockroachdb")
    else "none"
)

pytestmark = pytest.mark.skipif(
    not BACKEND.startswith(".".join(map(str, django.VERSION[:2]))),
    reason=f"needs the django-cockroachdb of Django {django.VERSION[0]}.{django.VERSION[1]}, and has {BACKEND}",
)

Start = Callable[..., tuple[Proxy, str]]

# What CockroachDB has and PostgreSQL lacks, as far as the backend uses it.
_FUNCTIONS = """
    CREATE SEQUENCE rowids;
    CREATE FUNCTION unique_rowid() RETURNS bigint LANGUAGE sql AS 'SELECT nextval(''rowids'')';
    CREATE FUNCTION public.sha256(text) RETURNS text LANGUAGE sql IMMUTABLE
        AS 'SELECT encode(pg_catalog.sha256(convert_to($1, ''UTF8'')), ''hex'')';
"""


@pytest.fixture
def cockroachdb(make_postgres_database: Callable[[], str]) -> Iterator[Start]:
    """A function that starts a proxy in front of an empty database and returns it with the database's URL."""
    started = []

    def start(
        version: tuple[int, int] = (25, 4), legacy: str | None = None
    ) -> tuple[Proxy, str]:
        url = make_postgres_database()
        if legacy is not None:
            psql(url, "-f", str(FOLDER / "pg" / f"{legacy}.sql"))
        parts = urlsplit(url)
        folder = parse_qs(parts.query).get("host", [None])[0]
        target = (
            f"{folder}/.s.PGSQL.{parts.port or 5432}"
            if folder
            else (parts.hostname or "", parts.port or 5432)
        )
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(_FUNCTIONS)
        context = serving(Proxy(target, version))
        proxy = context.__enter__()
        started.append(context)
        credentials = parts.netloc.rpartition("@")[0]
        return proxy, f"cockroachdb://{credentials}@127.0.0.1:{proxy.port}{parts.path}"

    yield start
    for context in started:
        context.__exit__(None, None, None)


def _schema_changes(proxy: Proxy) -> list[str]:
    return [
        sql for sql in proxy.statements if sql.startswith(("CREATE", "ALTER", "DROP"))
    ]


@pytest.mark.parametrize("version", [(24, 1), (25, 4), (26, 1)])
def test_a_fresh_database_is_made_with_statements_that_every_version_allows(
    cockroachdb: Start, version: tuple[int, int]
) -> None:
    from django_cockroachdb.features import DatabaseFeatures

    if version < (oldest := DatabaseFeatures.minimum_database_version):
        pytest.skip(
            f"django-cockroachdb {BACKEND} needs CockroachDB {oldest[0]}.{oldest[1]}"
        )
    proxy, url = cockroachdb(version)

    agentdb.connect(url, migrate=True).close()

    assert proxy.refused == []
    tables = [
        sql
        for sql in _schema_changes(proxy)
        if sql.startswith("CREATE TABLE IF NOT EXISTS") and "tenant" in sql
    ]
    assert len(tables) == 4  # in their final shape: no column changes its type
    assert (
        sum(sql.count(", INDEX ") for sql in tables) == 20
    )  # each CREATE INDEX would be a job, and a slow range
    assert all(
        "timestamp with time zone" in sql and "now()::text" not in sql for sql in tables
    )
    with opened(url) as connection:
        found = compare(
            expected_tables(connection, django.apps.apps), read_tables(connection)
        )
        assert [
            difference.message for difference in found if difference.severity == "drift"
        ] == []


def test_a_fresh_database_that_stays_at_0001_has_the_old_server_s_tables(
    cockroachdb: Start,
) -> None:
    _, url = cockroachdb()
    with opened(url) as connection:
        manage(connection, "migrate", "agentdb", "0001", verbosity=0)

        rows(connection, "INSERT INTO agents (id, name, path) VALUES ('a', 'a', '/')")
        [(created_at,)] = rows(connection, "SELECT created_at FROM agents")
        assert isinstance(created_at, str)
        manage(connection, "migrate", "agentdb", verbosity=0)
        manage(connection, "verifydb")
    with agentdb.connect(url) as db:
        assert [agent.id for agent in db.list_agents()] == ["a"]


def test_a_migration_goes_on_wherever_it_was_stopped(cockroachdb: Start) -> None:
    """Each run is allowed one schema change more than the one before it: every place to stop is tried once."""
    proxy, url = cockroachdb()
    done: set[str] = set()

    def allow_one(sql: str) -> str | None:
        if not sql.startswith(("CREATE", "ALTER", "DROP")) or sql in done:
            return None
        if not allowed:
            return "XX000"
        allowed.clear()
        done.add(sql)
        return None

    proxy.fail = allow_one
    stops = 0
    while True:
        allowed = [True]
        try:
            agentdb.connect(url, migrate=True).close()
        except agentdb.AgentDbError:
            stops += 1
            assert stops < 40
        else:
            break

    assert (
        stops == len(done) - 1 == 18
    )  # the lock, the record of migrations, four tables, 13 indexes that are there
    with opened(url) as connection:
        found = compare(
            expected_tables(connection, django.apps.apps), read_tables(connection)
        )
        assert [
            difference.message for difference in found if difference.severity == "drift"
        ] == []


@pytest.mark.parametrize("stem", ["era-a", "era-b", "era-d", "crash-a-to-b-nofk-k21"])
def test_an_old_server_s_database_is_adopted_step_by_step(
    cockroachdb: Start, stem: str
) -> None:
    proxy, url = cockroachdb(legacy=stem)
    with opened(url) as connection:
        before = rows(connection, "SELECT id FROM sessions ORDER BY id")

        manage(connection, "baselinedb")

        assert proxy.refused == []
        assert rows(connection, "SELECT id FROM sessions ORDER BY id") == before
        assert "Nothing to do" in manage(connection, "baselinedb")
        manage(connection, "verifydb")


def test_an_adoption_goes_on_wherever_it_was_stopped(cockroachdb: Start) -> None:
    """Each run is allowed a few schema changes more; AGENTDB_TEST_STOPS=1 stops at every single one."""
    proxy, url = cockroachdb(legacy="crash-a-to-b-nofk-k21")
    step = int(os.environ.get("AGENTDB_TEST_STOPS", "6"))
    done: set[str] = set()

    def allow_some(sql: str) -> str | None:
        if not sql.startswith(("CREATE", "ALTER", "DROP", "UPDATE")) or sql in done:
            return None
        if not allowed:
            return "XX000"
        allowed.pop()
        done.add(sql)
        return None

    proxy.fail = allow_some
    with opened(url) as connection:
        before = rows(connection, "SELECT id FROM sessions ORDER BY id")
        stops = 0
        while True:
            allowed = [True] * step
            try:
                manage(connection, "baselinedb")
            except CommandError as error:
                stops += 1
                assert str(error).endswith(
                    "Steps that were done stay; run the command again to go on."
                )
                assert stops < 80
            else:
                break

        assert stops >= 5
        assert rows(connection, "SELECT id FROM sessions ORDER BY id") == before
        manage(connection, "verifydb")


def test_an_unusable_value_beside_a_column_that_is_native_is_named(
    cockroachdb: Start,
) -> None:
    _, url = cockroachdb(legacy="era-b")
    with opened(url) as connection:
        for statement in (
            "ALTER TABLE sessions ADD COLUMN native timestamptz NOT NULL DEFAULT now()",
            "ALTER TABLE sessions DROP COLUMN created_at",
            "ALTER TABLE sessions RENAME COLUMN native TO created_at",
            "UPDATE sessions SET last_active_at = 'yesterday'",
        ):
            rows(connection, statement)

        with pytest.raises(CommandError, match="'yesterday'"):
            manage(connection, "baselinedb")


def test_a_step_of_a_killed_run_that_ends_meanwhile_is_not_an_error(
    cockroachdb: Start,
) -> None:
    """The server goes on with a statement whose client is gone; then another run's finds the column there."""
    proxy, url = cockroachdb(legacy="era-b-small")
    added: list[str] = []

    def is_there_already(sql: str) -> str | None:
        if "ADD COLUMN" not in sql:
            return None
        added.append(sql)
        return "42701"

    proxy.fail_after = is_there_already
    with opened(url) as connection:
        manage(connection, "baselinedb")
        manage(connection, "verifydb")

    assert len(added) == len(set(added)) == 7


def test_a_date_style_that_cockroachdb_does_not_read_is_named(
    cockroachdb: Start,
) -> None:
    _, url = cockroachdb(legacy="era-b")
    with opened(url) as connection:
        text = "19.02.2026 21:58:16 CET"
        rows(connection, f"UPDATE sessions SET created_at = '{text}'")

        with pytest.raises(
            CommandError,
            match=f"'{text}' is not a timestamp that CockroachDB can read",
        ):
            manage(connection, "baselinedb")


def test_every_row_survives_the_way_back_and_forth(cockroachdb: Start) -> None:
    proxy, url = cockroachdb()
    with agentdb.connect(url, migrate=True) as db:
        before = [db.insert_session(f"s{number}", "a", "b") for number in range(3)]
        agent = db.upsert_agent("a", "/a")

    with opened(url) as connection:
        manage(connection, "migrate", "agentdb", "0001", verbosity=0, force=True)
        texts = rows(connection, "SELECT created_at FROM sessions ORDER BY id")
        manage(connection, "migrate", "agentdb", verbosity=0)

    assert all(text.endswith("Z") and text[10] == "T" for (text,) in texts)
    assert proxy.refused == []
    with agentdb.connect(url) as db:
        after = sorted(db.list_sessions(), key=lambda session: session.id)
        assert [session.id for session in after] == [session.id for session in before]
        # The old server's text has milliseconds.
        pairs = zip(before, after, strict=True)
        assert all(
            old.created_at - new.created_at < timedelta(milliseconds=1)
            for old, new in pairs
        )
        found = db.get_agent("a")
        assert found is not None
        assert (
            replace(found, created_at=agent.created_at, updated_at=agent.updated_at)
            == agent
        )


def test_the_methods_send_only_what_the_rules_allow(cockroachdb: Start) -> None:
    proxy, url = cockroachdb()
    with agentdb.connect(url, migrate=True) as db:
        db.upsert_agent("a", "/1")
        assert db.upsert_agent("a", "/2").version == 2
        session = db.insert_session("s", "a", "sb")
        db.insert_sandbox("sb", "a", "/w", "s")
        assert db.update_session_status("s", "active")
        assert db.update_session_runner("s", "r")
        assert db.list_sessions("default", "a", limit=1, before=None)[0].id == "s"
        assert db.list_sessions(before=session) == []
        assert [found.id for found in db.list_sessions_by_runner("r")] == ["s"]
        assert db.bulk_pause_sessions_by_runner("r") == 1
        assert db.update_sandbox_state("sb", "waiting")
        assert db.get_best_eviction_candidate().id == "sb"
        assert [
            idle.id
            for idle in db.get_idle_sandboxes(datetime.now(UTC) + timedelta(hours=1))
        ] == ["sb"]
        assert db.mark_all_sandboxes_cold() == 1
        plain, key = db.issue_api_key("t", "label")
        assert db.authenticate(plain) == key
        assert db.run_transaction(lambda db: db.delete_agent("a"))

    assert proxy.refused == []


def test_a_claim_right_after_an_own_write_finds_the_sandbox(cockroachdb: Start) -> None:
    """There SKIP LOCKED passes over rows whose transaction has just committed."""
    _, url = cockroachdb()
    with agentdb.connect(url, migrate=True) as db:
        db.insert_sandbox("sb", "a", "/w")
        assert db.update_sandbox_state("sb", "cold")
        claimed = db.claim_eviction_candidate()
        assert claimed is not None and claimed.id == "sb"
        db.insert_sandbox("warm", "a", "/w")
        assert db.update_sandbox_state("warm", "warm")
        claimed = db.claim_warm_sandbox("a", "s")
        assert claimed is not None and claimed.id == "warm"


def test_a_bulk_call_changes_many_rows_batch_by_batch(
    cockroachdb: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentdb.serving.compiled.ROWS_A_BATCH", 2)
    proxy, url = cockroachdb()
    with agentdb.connect(url, migrate=True) as db:
        for number in range(5):
            db.insert_sandbox(f"sb{number}", "a", "/w")
            db.insert_session(f"s{number}", "a", "b")
            db.update_session_runner(f"s{number}", "r")
        assert db.mark_all_sandboxes_cold() == 5
        assert db.bulk_pause_sessions_by_runner("r") == 5
        assert db.bulk_pause_active_sessions() == 0

    assert proxy.refused == []


def test_processes_that_migrate_at_once_record_each_migration_once(
    cockroachdb: Start,
) -> None:
    _, url = cockroachdb()
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "agentdb", "--url", url, "migrate", "-v0"],
            env=_without_settings(),
        )
        for _ in range(4)
    ]

    assert [process.wait() for process in processes] == [0, 0, 0, 0]
    with opened(url) as connection:
        recorded = rows(
            connection,
            "SELECT name, count(*) FROM django_migrations WHERE app = 'agentdb' GROUP BY name",
        )
    assert {count for _, count in recorded} == {1}


def _without_settings() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name != "DJANGO_SETTINGS_MODULE"
    }


def test_single_calls_are_serializable_whatever_the_cluster_s_default_is(
    cockroachdb: Start,
) -> None:
    _, url = cockroachdb()  # its default is PostgreSQL's, READ COMMITTED
    with (
        agentdb.connect(url, migrate=True) as db,
        connections[db.alias].cursor() as cursor,
    ):
        cursor.execute("SHOW transaction_isolation")

        assert cursor.fetchall() == [("serializable",)]


def test_health_and_plans_name_the_server_s_own_version(cockroachdb: Start) -> None:
    _, url = cockroachdb((25, 4))
    with agentdb.connect(url, migrate=True) as db:
        assert db.health().server_version == "25.4.0"
    with opened(url) as connection:
        assert "CockroachDB 25.4.0," in manage(connection, "baselinedb")


def test_a_server_that_is_too_old_is_refused_with_one_sentence(
    cockroachdb: Start,
) -> None:
    _, url = cockroachdb((22, 2))

    with pytest.raises(
        agentdb.DatabaseUnavailableError,
        match=r"or later is required \(found 22\.2\.0\)\.$",
    ):
        agentdb.connect(url)


def test_a_schema_change_without_effect_is_not_repeated(cockroachdb: Start) -> None:
    proxy, url = cockroachdb()
    agentdb.connect(url, migrate=True).close()
    with opened(url) as connection:
        wanted = expected_tables(connection, django.apps.apps)["agents"]
        column = replace(wanted.columns[0], default="now():::unheard")
        wanted = replace(wanted, columns=(column, *wanted.columns[1:]))
        changes: list[str] = []

        def nothing(sql: str) -> str | None:
            if "SET DEFAULT" not in sql:
                return None
            changes.append(sql)
            # Fail, if it is repeated, instead of going on for ever.
            return "SELECT 1" if len(changes) < 9 else "SELECT 1 / 0"

        proxy.instead = nothing

        with pytest.raises(
            agentdb.SchemaMismatchError,
            match="is still not what it asks for: ALTER TABLE",
        ):
            conform_online(connection, wanted)


def test_the_methods_do_what_they_do_on_any_engine(cockroachdb: Start) -> None:
    """Their tests, as on a cluster that AGENTDB_TEST_COCKROACH_URL names."""
    proxy, url = cockroachdb()
    proxy.template = urlsplit(url).path[1:]
    environment = {
        **os.environ,
        "AGENTDB_TEST_COCKROACH_URL": url.replace(urlsplit(url).path, "/postgres"),
    }
    files = ("agents", "claims")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--engine=cockroachdb", "-p", "no:cacheprovider", "--no-cov",
         # The PostgreSQL behind the proxy finds deadlocks in what a cluster runs without; and how many callers share
         # the rows of one is nothing that it could say about a cluster.
         "-k", "not heartbeats and not 16_runners and not 1600_calls",
         *(f"tests/serving/test_{file}.py" for file in files)],
        capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[2],
    )  # fmt: skip

    assert done.returncode == 0, done.stdout
    assert re.search(r"^\d+ passed", done.stdout, re.MULTILINE) is not None
    assert proxy.refused == []


@pytest.mark.parametrize("work", ["single", "transaction"])
def test_an_ambiguous_result_is_an_unknown_outcome(
    cockroachdb: Start, work: str
) -> None:
    proxy, url = cockroachdb()
    with agentdb.connect(url, migrate=True) as db:
        ends = "INSERT INTO" if work == "single" else "COMMIT"
        proxy.fail_after = lambda sql: "40003" if sql.startswith(ends) else None
        with pytest.raises(agentdb.OutcomeUnknownError, match="result is ambiguous"):
            if work == "single":
                db.insert_session("s", "a", "b")
            else:
                db.run_transaction(lambda tx: tx.insert_session("s", "a", "b"))
        proxy.fail_after = lambda sql: None

        assert (
            db.get_session("s") is not None
        )  # as it may be: the proxy ran what it gave no answer to


def test_a_transaction_that_must_restart_is_run_again(cockroachdb: Start) -> None:
    proxy, url = cockroachdb()
    with agentdb.connect(url, migrate=True) as db:
        failures = ["COMMIT", "INSERT INTO"]

        def fail_once(sql: str) -> str | None:
            if failures and sql.startswith(failures[-1]):
                failures.pop()
                return "40001"
            return None

        proxy.fail = fail_once
        db.insert_session("single", "a", "b")
        db.run_transaction(lambda db: db.insert_session("s", "a", "b"))

        assert failures == []
        assert {session.id for session in db.list_sessions()} == {"single", "s"}


def test_a_reader_waits_for_the_transaction_that_wrote_what_it_reads(
    cockroachdb: Start,
) -> None:
    proxy, url = cockroachdb()
    waits = threading.Event()
    proxy.waits = lambda sql: waits.set()
    with (
        agentdb.connect(url, migrate=True) as db,
        agentdb.connect(url) as other,
        ThreadPoolExecutor(1) as pool,
    ):

        def insert(inside: agentdb.Db) -> Future[list[agentdb.SessionRecord]]:
            inside.insert_session("s", "a", "b")
            read = pool.submit(other.list_sessions)
            assert waits.wait(120)
            assert not read.done()
            return read

        read = db.run_transaction(insert)

        assert [session.id for session in read.result()] == ["s"]


def test_call_timeout_ends_waiting_for_one_s_own_transaction(
    cockroachdb: Start,
) -> None:
    _, url = cockroachdb()
    with (
        agentdb.connect(url, migrate=True) as db,
        agentdb.connect(url) as other,
    ):

        def insert(inside: agentdb.Db) -> None:
            inside.insert_session("s", "a", "b")
            set_call_timeout(other, 1)
            with pytest.raises(
                agentdb.DatabaseUnavailableError, match="no answer within call_timeout"
            ):
                other.list_sessions()
            set_call_timeout(other, 60)

        db.run_transaction(insert)

        assert [session.id for session in other.list_sessions()] == ["s"]


def test_the_rules_refuse_what_cockroachdb_refuses(cockroachdb: Start) -> None:
    """The proxy is a test's instrument: a rule that matches nothing would prove nothing."""
    proxy, url = cockroachdb((25, 4))
    bad = (
        "LOCK TABLE t",
        "CREATE INDEX i ON t (a text_pattern_ops)",
        "ALTER TABLE t ALTER COLUMN a TYPE text",
        "CREATE TEMPORARY TABLE t (a int)",
        "SET CONSTRAINTS ALL IMMEDIATE",
        "WITH gone AS (DELETE FROM t WHERE (a = 1)) SELECT 1",
        "SELECT isfinite(now())",
        "SELECT 1 FROM t WHERE t.id = (SELECT id FROM t LIMIT 1)",
    )
    with opened(url) as connection:
        for sql in bad:
            with pytest.raises(django.db.Error, match="unimplemented"):
                rows(connection, sql)

    assert [sql for _, sql in proxy.refused] == list(bad)
    assert all(rule.source for rule in RULES)
