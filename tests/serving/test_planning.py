"""Which plans PostgreSQL makes for agentdb's statements on connections that are agentdb's own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime

import psycopg
import pytest
from django.db import connections, transaction

import agentdb
from agentdb.serving import queries
from agentdb.serving.compiled import Scope
from agentdb.serving.opening import temporary_alias

_SETTINGS = ("enable_sort", "enable_incremental_sort", "jit")


def _settings(db: agentdb.DjangoDb) -> dict[str, str]:
    db.count_sandboxes()
    with connections[db.alias].cursor() as cursor:
        found = {}
        for name in _SETTINGS:
            cursor.execute(f"SHOW {name}")
            found[name] = cursor.fetchone()[0]
        return found


@pytest.fixture
def postgres(make_postgres_database, _migrated_postgres) -> str:
    return make_postgres_database(template=_migrated_postgres)


def test_lists_are_read_in_the_order_of_an_index(postgres):
    with agentdb.connect(postgres) as db:
        assert _settings(db) == dict.fromkeys(_SETTINGS, "off")


def test_a_connection_that_a_pooler_may_hand_on_keeps_its_settings(postgres):
    with agentdb.connect(
        f"{postgres}{'&' if '?' in postgres else '?'}prepare=off"
    ) as db:
        assert _settings(db)["enable_sort"] == "on"


def test_the_connections_of_a_host_keep_their_settings(postgres):
    with temporary_alias(postgres) as alias, agentdb.DjangoDb(alias) as db:
        assert _settings(db)["enable_sort"] == "on"


def test_a_transaction_of_own_models_in_a_new_thread_takes_no_setting_along(postgres):
    """Django opens the connection, and the set-up must not be in the transaction that it then begins."""

    def roll_back(db: agentdb.DjangoDb) -> tuple[str, dict[str, str]]:
        with suppress(ZeroDivisionError), transaction.atomic(db.alias):
            with connections[db.alias].cursor() as cursor:
                cursor.execute("SHOW transaction_isolation")
                isolation = cursor.fetchone()[0]
            db.count_sandboxes()
            raise ZeroDivisionError
        return isolation, _settings(db)

    url = f"{postgres}{'&' if '?' in postgres else '?'}isolation=serializable"
    with agentdb.connect(url) as db, ThreadPoolExecutor(1) as thread:
        isolation, settings = thread.submit(roll_back, db).result()

    assert isolation == "serializable"
    assert settings == dict.fromkeys(_SETTINGS, "off")


def test_idle_sandboxes_are_found_by_index_where_waiting_and_unused_ones_are_many(
    postgres,
):
    """Of 20,000 sandboxes 2,000 wait and 18,000 are old; by these numbers alone 1,800 would be both, and 3 are."""
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO sandboxes (id, agent_name, workspace_dir, state, last_used_at) "
            "SELECT i, 'a', '/w', CASE WHEN i % 10 = 0 OR i < 3 THEN 'waiting' ELSE 'running' END, "
            "timestamptz '2026-01-01Z' + CASE WHEN i % 10 = 0 AND i > 0 THEN interval '1 year' ELSE interval '0' END "
            "FROM generate_series(0, 19999) AS i"
        )
        connection.execute("VACUUM ANALYZE sandboxes")
    older_than = datetime(2026, 6, 1, tzinfo=UTC)

    with agentdb.connect(postgres) as db:
        assert [sandbox.id for sandbox in db.get_idle_sandboxes(older_than)] == [
            "0",
            "1",
            "2",
        ]

        wrapper = connections[db.alias]
        statement = queries.GET_IDLE_SANDBOXES.compile(Scope(wrapper))
        with wrapper.cursor() as cursor:
            cursor.execute(
                f"EXPLAIN (COSTS OFF) {statement.sql}",
                statement.bind({"older_than": older_than}),
            )
            plan = [line for (line,) in cursor.fetchall()]

    assert plan[0] == "Index Scan using idx_sandboxes_state_last_used on sandboxes"
