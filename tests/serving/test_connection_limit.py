"""How many connections a Db has open, and for how long: counted by the server."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from django.db import connections

import agentdb
from agentdb import DatabaseUnavailableError, Db, DjangoDb, InvalidInputError
from agentdb.conf import database_from_url
from agentdb.serving.connections import threads
from agentdb.serving.connections.base import Slot
from agentdb.serving.connections.postgresql import PostgresConnection
from agentdb.serving.connections.threads import ConnectionLimit
from tests.helpers.limits import set_call_timeout
from tests.helpers.locks import watched
from tests.project.test_import import run_python

OTHERS = "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'agentdb'"


@pytest.fixture
def url(make_postgres_database: Callable[..., str], _migrated_postgres: str) -> str:
    return make_postgres_database(template=_migrated_postgres)


@pytest.fixture
def watcher(url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def with_options(url: str, **options: object) -> str:
    return (
        url
        + ("&" if "?" in url else "?")
        + "&".join(f"{name}={value}" for name, value in options.items())
    )


def count(watcher: psycopg.Connection) -> int:
    row = watcher.execute(f"SELECT count(*) {OTHERS}").fetchone()
    assert row is not None
    return int(row[0])


def touch(id: str, inside: Db) -> bool:
    return inside.touch_session(id)


def wait_for(what: Callable[[], bool]) -> None:
    ends = time.monotonic() + 120
    while not what():
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_many_threads_share_as_many_connections_as_may_be(
    url: str, watcher: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A server needs a moment to notice that a connection was closed, so this is counted here.
    changes: list[int] = []
    made, close = PostgresConnection.__init__, PostgresConnection.close

    def count_made(connection: PostgresConnection, *args: Any) -> None:
        made(connection, *args)
        changes.append(1)

    def count_closed(connection: PostgresConnection) -> None:
        changes.append(-1)
        close(connection)

    monkeypatch.setattr(PostgresConnection, "__init__", count_made)
    monkeypatch.setattr(PostgresConnection, "close", count_closed)
    kind, unlocked = watched(ConnectionLimit, "_lock", shared=("_slots", "_opening"))
    monkeypatch.setattr("agentdb.serving.connections.threads.ConnectionLimit", kind)
    all_have_begun = threading.Barrier(12, timeout=120)

    def work(number: int) -> None:
        all_have_begun.wait()
        for turn in range(5):
            session = db.insert_session(f"{number}-{turn}", "a", "sb")
            db.run_transaction(partial(touch, session.id))

    with agentdb.connect(with_options(url, max_connections=3)) as db:
        with ThreadPoolExecutor(12) as pool:
            list(pool.map(work, range(12)))
            # What is open after each change, until the threads end, which closes theirs.
            numbers = list(accumulate(changes))
        assert numbers[-1] >= 2
        assert max(numbers) <= 3
        wait_for(lambda: count(watcher) <= 3)
        assert len(db.list_sessions()) == 60
        assert db.health().connections <= 3
    assert unlocked == []


def test_the_connection_that_was_idle_longest_makes_room(
    url: str, watcher: psycopg.Connection
) -> None:
    def pids() -> list[int]:
        rows = watcher.execute(f"SELECT pid {OTHERS} ORDER BY backend_start")
        return [pid for (pid,) in rows]

    with (
        agentdb.connect(with_options(url, max_connections=2)) as db,
        ThreadPoolExecutor(1) as busy,
        ThreadPoolExecutor(1) as idle,
        ThreadPoolExecutor(1) as new,
    ):
        busy.submit(db.list_agents).result()
        idle.submit(db.list_agents).result()
        wait_for(lambda: count(watcher) == 2)  # without that of this thread
        of_busy, of_idle = pids()
        busy.submit(db.list_agents).result()
        new.submit(db.list_agents).result()
        wait_for(lambda: of_idle not in pids())
        assert of_busy in pids()


def test_a_call_that_finds_no_connection_says_so_in_the_end(
    url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, waits, leave = (threading.Event() for _ in range(3))
    take = ConnectionLimit._take

    def noted(limit: ConnectionLimit, slot: Slot, waited: float) -> bool:
        if not (taken := take(limit, slot, waited)):
            waits.set()
        return taken

    def hold(inside: Db) -> None:
        inside.list_agents()
        entered.set()
        leave.wait(120)

    monkeypatch.setattr(ConnectionLimit, "_take", noted)
    with agentdb.connect(with_options(url, max_connections=1)) as db:
        with ThreadPoolExecutor(2) as pool:
            holding = pool.submit(db.run_transaction, hold)
            assert entered.wait(120)
            set_call_timeout(db, 1)
            with pytest.raises(DatabaseUnavailableError) as raised:
                pool.submit(db.list_agents).result()
            assert str(raised.value) == (
                f"{db.describe()}: all of max_connections=1 are in use, and none became free within 1 seconds. Raise "
                "it, or let fewer threads call at once."
            )
            set_call_timeout(db, 60)
            waits.clear()
            with caplog.at_level(logging.INFO, logger="agentdb"):
                waiting = pool.submit(db.list_agents)
                assert waits.wait(120)
                time.sleep(0.2)  # a shorter wait is not worth a line
                leave.set()
                assert waiting.result() == []
            holding.result()
        assert any(
            "seconds for one of max_connections=1." in record.getMessage()
            for record in caplog.records
        )


def test_a_thread_that_never_pauses_gives_its_connection_to_one_that_waits(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Slot, "close_if_idle", lambda slot: False)
    found: list[object] = []
    with agentdb.connect(with_options(url, max_connections=1, call_timeout=20)) as db:
        waiting = threading.Thread(target=lambda: found.append(db.list_agents()))
        waiting.start()
        while waiting.is_alive():
            db.list_agents()
    assert found == [[]]


def test_threads_get_room_in_the_order_in_which_they_came(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    took: list[Slot] = []
    take = ConnectionLimit._take

    def noted(limit: ConnectionLimit, slot: Slot, waited: float) -> bool:
        took.append(slot)
        return take(limit, slot, waited)

    with agentdb.connect(with_options(url, max_connections=1)) as db:
        room: Any = db._threads._room

        def hold(inside: Db) -> None:
            inside.list_agents()
            monkeypatch.setattr(ConnectionLimit, "_take", noted)
            pool.submit(db.list_agents)
            wait_for(lambda: took != [])
            pool.submit(db.list_agents)
            wait_for(lambda: len(room.__self__._line) == 2)
            tries = len(took)
            wait_for(lambda: len(took) > tries + 5)
            assert len(set(took)) == 1

        with ThreadPoolExecutor(2) as pool:
            db.run_transaction(hold)


def test_a_thread_that_is_interrupted_in_line_leaves_it_while_its_exception_is_kept(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            raise KeyboardInterrupt

    with agentdb.connect(with_options(url, max_connections=1)) as db:

        def hold(inside: Db) -> None:
            inside.list_agents()
            with monkeypatch.context() as patched:
                patched.setattr(
                    threads, "threading", SimpleNamespace(Event=Interrupted)
                )
                interrupted.append(pool.submit(db.list_agents).exception(60))

        interrupted: list[object] = []
        with ThreadPoolExecutor(1) as pool:
            db.run_transaction(hold)
            assert isinstance(interrupted[0], KeyboardInterrupt)
            assert pool.submit(db.list_agents).result(60) == []


def backend(db: DjangoDb) -> int:
    return int(connections[db.alias].connection.info.backend_pid)


def test_an_idle_connection_is_closed_and_another_one_opened(
    url: str, watcher: psycopg.Connection
) -> None:
    with agentdb.connect(with_options(url, idle_seconds=0.3)) as db:
        db.list_agents()
        first = backend(db)
        wait_for(lambda: count(watcher) == 0)
        assert db.list_agents() == []
        assert backend(db) != first

        def idle(inside: Db) -> None:
            inside.list_agents()
            time.sleep(1.2)
            assert inside.list_agents() == []  # in a transaction it stays

        db.run_transaction(idle)


def test_a_server_without_a_connection_left_says_what_to_set(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS agentdb_one")
        connection.execute(
            "CREATE ROLE agentdb_one LOGIN CONNECTION LIMIT 1 PASSWORD 'x'"
        )
    try:
        limited = url.replace("//postgres:", "//agentdb_one:").replace(
            "//postgres@", "//agentdb_one@"
        )
        assert limited != url
        with (
            psycopg.connect(limited),
            pytest.raises(DatabaseUnavailableError) as raised,
        ):
            agentdb.connect(limited, timeout_seconds=0)
        assert str(raised.value).endswith(
            'too many connections for role "agentdb_one". Each thread that calls keeps a connection: let fewer call, '
            "cap them with ?max_connections= in the URL, or raise the server's limit."
        )
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("DROP ROLE agentdb_one")


def test_a_child_has_the_limit_to_itself(url: str, tmp_path: object) -> None:
    code = f"""
import os
import agentdb
db = agentdb.connect({with_options(url, max_connections=1)!r})
db.list_agents()
if (child := os.fork()) == 0:
    os._exit(len(db.list_agents()))
print(os.waitpid(child, 0)[1], db.list_agents())
"""
    assert run_python(code, tmp_path) == "0 []\n"  # type: ignore[arg-type]


def test_a_child_does_not_wait_behind_the_parents_threads(
    url: str, tmp_path: object
) -> None:
    code = f"""
import os, threading, time
import agentdb
db = agentdb.connect({with_options(url, max_connections=1)!r})
child = 0
def fork(inside):
    global child
    inside.list_agents()
    waiting.start()
    while not db._threads._room.__self__._line:
        time.sleep(0.01)
    child = os.fork()
waiting = threading.Thread(target=db.list_agents)
try:
    db.run_transaction(fork)
except agentdb.AgentDbError:
    os._exit(len(db.list_agents()))
print(os.waitpid(child, 0)[1])
waiting.join()
"""
    assert run_python(code, tmp_path) == "0\n"  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "100001"])
def test_max_connections_must_be_a_whole_number(value: str) -> None:
    with pytest.raises(InvalidInputError) as raised:
        database_from_url(f"postgresql://h/agents?max_connections={value}")
    assert str(raised.value).startswith("The URL option max_connections=")
    assert str(raised.value).endswith(" is not a whole number from 1 to 100000.")
