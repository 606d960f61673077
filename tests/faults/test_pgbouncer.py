"""A real PgBouncer in front of PostgreSQL, in both modes that people run: many callers, few server connections."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial

import psycopg
import pytest

import agentdb
from tests.helpers.factories import make_session
from tests.helpers.poolers import PgBouncer, version
from tests.helpers.servers import FAST, Server, create_database, drop_databases

CALLERS = int(os.environ.get("AGENTDB_PGBOUNCER_CALLERS", "40"))
SERVER_CONNECTIONS = max(4, CALLERS // 20)
CALLS = 10
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """On a port of its own: the socket of the tests' other server may be out of the reach of PgBouncer's user."""
    version()
    with Server() as server:
        server.init()
        server.start(**FAST)
        yield server


@pytest.fixture
def bouncer(server: Server) -> Iterator[Callable[..., str]]:
    """Start one in front of a new database, and return the URL through it."""
    name = f"agents_{next(_numbers)}"
    create_database(server.url, name)
    with ExitStack() as started:

        def start(mode: str, *, migrate: bool = True, **settings: object) -> str:
            if migrate:
                agentdb.connect(server.database(name), migrate=True).close()
            bouncer = started.enter_context(
                PgBouncer(mode, **{"default_pool_size": SERVER_CONNECTIONS, **settings})
            )
            bouncer.start(server, name)
            return bouncer.url

        yield start
    drop_databases(server.url, [name])


def _activate(id: str, db: agentdb.Db) -> bool:
    return db.update_session_status(id, "active")


def many_callers(url: str) -> list[str]:
    """Let CALLERS threads insert and read at once, and return what went wrong."""
    wrong: list[str] = []
    with agentdb.connect(url) as db:

        def call(caller: int) -> None:
            try:
                for number in range(CALLS):
                    id = f"s{caller}-{number}"
                    make_session(db, id)
                    db.touch_session(id)
                    assert db.get_session(id) is not None
                    db.run_transaction(partial(_activate, id))
            except Exception as error:
                wrong.append(repr(error))

        threads = [
            threading.Thread(target=call, args=[caller]) for caller in range(CALLERS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if not wrong:
            active = [
                session
                for session in db.list_sessions(limit=2 * CALLERS * CALLS)
                if session.status == "active"
            ]
            assert len(active) == CALLERS * CALLS
    return wrong


def test_transaction_mode_with_prepare_off_serves_many_callers(
    bouncer: Callable[..., str],
) -> None:
    assert many_callers(bouncer("transaction") + "?prepare=off") == []


def test_transaction_mode_that_keeps_prepared_statements_needs_no_option(
    bouncer: Callable[..., str],
) -> None:
    if version() < (1, 21):
        pytest.skip(
            "needs PgBouncer 1.21: earlier ones do not keep prepared statements in transaction mode"
        )
    assert many_callers(bouncer("transaction", max_prepared_statements=100)) == []


def test_transaction_mode_that_loses_prepared_statements_works_and_says_what_to_add(
    bouncer: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    url = bouncer(
        "transaction",
        **({"max_prepared_statements": 0} if version() >= (1, 21) else {}),
    )

    assert many_callers(url) == []
    assert "Add prepare=off to the database URL." in caplog.text


@pytest.mark.parametrize("option", ["", "?prepare=off"])
def test_session_mode_serves_as_many_threads_as_it_has_connections(
    bouncer: Callable[..., str], option: str
) -> None:
    # Each thread keeps its connection, hence a server connection: there have to be as many.
    assert (
        many_callers(bouncer("session", default_pool_size=CALLERS + 1) + option) == []
    )


def test_migrations_run_through_transaction_mode(bouncer: Callable[..., str]) -> None:
    url = bouncer("transaction", migrate=False) + "?prepare=off"
    with agentdb.connect(url, migrate=True) as db:
        make_session(db)
        assert db.get_session("s1") is not None


def test_callers_go_on_after_the_server_behind_it_dropped_every_connection(
    bouncer: Callable[..., str], server: Server
) -> None:
    with agentdb.connect(bouncer("transaction") + "?prepare=off") as db:
        make_session(db)
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE application_name = 'agentdb'"
            )
        assert db.get_session("s1") is not None
        assert db.touch_session("s1")
