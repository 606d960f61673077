"""Exceptions from nowhere: a signal handler raises at any moment, as Ctrl-C and task queues' time limits do.

Set AGENTDB_INTERRUPT_SECONDS for longer runs.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest
from django.db import connections, transaction

import agentdb
from agentdb import AgentDbError, Db, DjangoDb
from agentdb.serving import forking
from tests.helpers.factories import execute
from tests.helpers.moments import WhenItWaits, wait_until

_SECONDS = float(os.environ.get("AGENTDB_INTERRUPT_SECONDS", "2"))


class Interrupt(Exception):
    pass


def interrupt(*_: object) -> None:
    raise Interrupt


@pytest.fixture(autouse=True)
def _handler() -> object:
    before = signal.signal(signal.SIGALRM, interrupt)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def is_waiting(url: str) -> bool:
    """Whether somebody waits for a lock in this database; the server may be shared with tests that run meanwhile."""
    waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    return bool(execute(url, waiting))


@contextmanager
def interrupted_while_it_waits_for_a_lock(url: str) -> Iterator[None]:
    """Interrupt the body once it waits for a lock on the server."""

    def watch() -> None:
        wait_until(lambda: is_waiting(url))
        os.kill(os.getpid(), signal.SIGALRM)

    thread = threading.Thread(target=watch)
    thread.start()
    with pytest.raises(Interrupt):
        yield
    thread.join()


def test_interrupted_wait_for_the_write_lock_leaves_no_transaction(
    tmp_path: Path,
) -> None:
    path = tmp_path / "agentdb.sqlite3"
    with agentdb.connect(f"sqlite:///{path}", migrate=True) as db:
        other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        db.list_sessions()

        def interrupt_and_release() -> None:
            os.kill(os.getpid(), signal.SIGALRM)
            other.execute("COMMIT")

        # Python's handler is called when SQLite has returned, with the lock.
        with (
            pytest.raises(Interrupt),
            WhenItWaits(db.alias, interrupt_and_release),
        ):
            db.run_transaction(lambda tx: tx.insert_session("never", "a", "sb"))
        other_sees = db.insert_session("s1", "a", "sb")

        assert other.execute("SELECT id FROM sessions").fetchall() == [(other_sees.id,)]
        other.close()


def test_interrupted_begin_of_a_host_leaves_no_transaction_for_agentdbs_calls(
    tmp_path: Path,
) -> None:
    path = tmp_path / "agentdb.sqlite3"
    with agentdb.connect(f"sqlite:///{path}", migrate=True) as db:
        connections[db.alias].connection.execute(
            "BEGIN IMMEDIATE"
        )  # what an interrupted atomic() leaves

        db.insert_session("s1", "a", "sb")

        with sqlite3.connect(path) as other:
            assert other.execute("SELECT id FROM sessions").fetchall() == [("s1",)]
        other.close()


def test_interrupted_statement_on_postgresql_is_cancelled_and_the_next_call_works(
    make_migrated: Callable[[], str],
) -> None:
    url = make_migrated()
    with agentdb.connect(url) as db, psycopg.connect(url) as other:
        db.insert_session("s1", "a", "sb")
        other.execute("UPDATE sessions SET agent_name = 'b'")
        with interrupted_while_it_waits_for_a_lock(url):
            db.touch_session("s1")

        # The host's own query too, on the connection that Django has then.
        with connections[db.alias].cursor() as cursor:
            cursor.execute("SELECT 1")
        assert db.get_session("s1") is not None
        wait_until(lambda: not is_waiting(url))


def test_interrupted_health_leaves_django_a_connection_that_works(
    make_migrated: Callable[[], str],
) -> None:
    url = make_migrated()
    with agentdb.connect(url) as db, psycopg.connect(url) as other:
        other.execute("LOCK TABLE django_migrations")
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(Interrupt):
            db.health()

        with connections[db.alias].cursor() as cursor:
            cursor.execute("SELECT 1")
            assert cursor.fetchone() == (1,)


def test_interrupted_statement_that_the_function_swallows_ends_the_transaction(
    make_migrated: Callable[[], str],
) -> None:
    url = make_migrated()

    def work(tx: Db) -> None:
        with interrupted_while_it_waits_for_a_lock(url):
            tx.touch_session("s1")
        with pytest.raises(AgentDbError) as raised:
            tx.insert_session("s2", "a", "sb")
        assert (
            str(raised.value)
            == "The transaction has already failed; it can only be rolled back."
        )

    with agentdb.connect(url) as db, psycopg.connect(url) as other:
        db.insert_session("s1", "a", "sb")
        other.execute("UPDATE sessions SET agent_name = 'b'")
        with pytest.raises(AgentDbError, match="nothing of it is stored"):
            db.run_transaction(work)

        assert [session.id for session in db.list_sessions()] == ["s1"]


@pytest.fixture
def make_migrated(request: pytest.FixtureRequest) -> Callable[[], str]:
    make = request.getfixturevalue("make_postgres_database")
    return lambda: make(template=request.getfixturevalue("_migrated_postgres"))


@pytest.fixture
def _interrupts_in_finalizers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a signal handler raises in a finalizer Python can only report; anything else is reported as ever."""
    report = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        # The driver warns of a connection that was interrupted while it was made, and that nobody has got.
        if not isinstance(unraisable.exc_value, Interrupt | ResourceWarning):
            report(unraisable)

    monkeypatch.setattr(sys, "unraisablehook", hook)
    yield
    gc.collect()  # here, and not in a test that comes later


@pytest.mark.usefixtures("_interrupts_in_finalizers")
def test_random_interrupts_lose_no_acknowledged_write_and_fail_no_quiet_call(
    url: str,
) -> None:
    randomness = random.Random(7)
    acknowledged: set[str] = set()
    failures: list[str] = []

    def both(name: str) -> Callable[[Db], None]:
        def work(tx: Db) -> None:
            tx.insert_session(name, "a", "sb")
            tx.touch_session(name)

        return work

    with agentdb.connect(url) as db:
        number = 0
        until = time.monotonic() + _SECONDS

        def write() -> None:
            """Until it is interrupted, or, as an interrupt in a finalizer goes no further, until the test ends.

            A function of its own: from Python 3.13 on an exception at the end of a loop may pass by the ``try`` around.
            """
            nonlocal number
            while time.monotonic() < until:
                number += 1
                if number % 3:
                    db.insert_session(f"s{number}", "a", "sb")
                else:
                    db.run_transaction(both(f"s{number}"))
                acknowledged.add(f"s{number}")

        while time.monotonic() < until or not acknowledged:
            if randomness.random() < 0.3:
                connections[db.alias].close()  # so that connecting is interrupted, too
            try:
                cut_off(write, randomness.uniform(0.00002, 0.004))
            except AgentDbError as error:  # the interrupt came out as something else
                # psycopg takes any exception in its reading of the number for a bad number.
                if "bad value for connect_timeout" not in str(error):
                    failures.append(f"interrupted: {error!r}")
            try:
                db.update_session_status(f"s{number - 1}", "active")
                quiet = db.insert_session(f"quiet{number}", "a", "sb")
                assert db.get_session(quiet.id) == quiet
                acknowledged.add(quiet.id)
                number += 1
            except AgentDbError as error:
                failures.append(f"quiet: {error!r}")

    with agentdb.connect(url) as fresh:
        stored = {session.id for session in fresh.list_sessions()}
    assert (failures, acknowledged - stored) == ([], set())


def cut_off(call: Callable[[], object], after_seconds: float) -> None:
    """Call, and interrupt that if it takes longer."""
    with suppress(Interrupt):
        try:
            signal.setitimer(signal.ITIMER_REAL, after_seconds)
            call()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


@pytest.mark.usefixtures("_interrupts_in_finalizers")
def test_a_close_that_is_interrupted_is_finished_by_the_next(url: str) -> None:
    randomness = random.Random(7)
    for _ in range(30):
        db = agentdb.connect(url)
        cut_off(db.close, randomness.uniform(0.00001, 0.0004))
        db.close()
        assert db._threads.open_connections() == 0
        with pytest.raises(agentdb.DatabaseClosedError):
            db.list_agents()


@pytest.mark.usefixtures("_interrupts_in_finalizers")
def test_interrupts_in_the_hooks_of_a_fork_leave_no_lock(url: str) -> None:
    """Called as Python does, which ignores what they raise. A real fork has the hooks of ``logging`` as well."""
    randomness = random.Random(7)
    with agentdb.connect(url) as db:
        for number in range(30):
            cut_off(forking.before, randomness.uniform(0.00001, 0.0004))
            forking.after_in_parent()
            thread = threading.Thread(
                target=db.insert_session, args=(f"s{number}", "a", "sb")
            )
            thread.start()
            thread.join()
        assert len(db.list_sessions()) == 30


@pytest.mark.usefixtures("_interrupts_in_finalizers")
def test_interrupts_cost_a_database_in_memory_nothing() -> None:
    randomness = random.Random(7)
    with agentdb.connect("sqlite://:memory:", migrate=True) as db:
        db.insert_session("s1", "a", "sb")

        def touch() -> None:
            until = time.monotonic() + 1
            while time.monotonic() < until:
                db.run_transaction(lambda tx: tx.touch_session("s1"))

        for _ in range(200):
            cut_off(touch, randomness.uniform(0.00002, 0.0005))
            assert db.touch_session("s1") is True


def test_transaction_that_swallowed_an_error_of_the_hosts_own_statement_is_no_success(
    db: DjangoDb,
) -> None:
    def work(tx: Db) -> str:
        tx.insert_session("s1", "a", "sb")
        with suppress(Exception), transaction.atomic(using=db.alias, savepoint=False):
            connections[db.alias].cursor().execute("SELECT * FROM missing")
        return "stored"

    with pytest.raises(AgentDbError, match="nothing of it is stored"):
        db.run_transaction(work)

    assert db.get_session("s1") is None


def test_what_failed_in_an_inner_transaction_is_not_blamed_for_a_later_error(
    db: DjangoDb,
) -> None:
    def work(tx: Db) -> None:
        def fail(inner: object = None) -> None:
            connections[db.alias].cursor().execute("SELECT * FROM missing")

        with pytest.raises(AgentDbError, match="missing"):
            tx.run_transaction(fail)
        with suppress(Exception), transaction.atomic(using=db.alias, savepoint=False):
            fail()

    with pytest.raises(AgentDbError, match="nothing of it is stored"):
        db.run_transaction(work)


def test_raw_error_that_postgresql_answers_with_rollback_at_commit_is_no_success(
    make_migrated: Callable[[], str],
) -> None:
    def work(tx: Db) -> str:
        tx.insert_session("s1", "a", "sb")
        with suppress(Exception):
            connections[db.alias].cursor().execute("SELECT * FROM missing")
        return "stored"

    with agentdb.connect(make_migrated()) as db:
        with pytest.raises(AgentDbError, match="nothing of it is stored"):
            db.run_transaction(work)

        assert db.get_session("s1") is None


def test_swallowed_error_of_ours_inside_a_hosts_transaction_is_no_success(
    db: DjangoDb,
) -> None:
    def work(tx: Db) -> str:
        tx.insert_session("s1", "a", "sb")
        with connections[db.alias].cursor() as cursor:
            cursor.execute("DROP TABLE api_keys")
        with suppress(AgentDbError):
            tx.get_api_key_by_hash("h")
        return "stored"

    with pytest.raises(AgentDbError), transaction.atomic(using=db.alias):
        db.run_transaction(work)

    assert db.get_session("s1") is None


def test_read_modify_write_of_many_threads_loses_no_update(url: str) -> None:
    with agentdb.connect(url) as db:
        db.upsert_agent("counter", "0")

        def add(tx: Db) -> None:
            agent = tx.get_agent("counter")
            assert agent is not None
            tx.upsert_agent("counter", str(int(agent.path) + 1))

        def many() -> None:
            for _ in range(10):
                db.run_transaction(add)

        threads = [threading.Thread(target=many) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        agent = db.get_agent("counter")
        assert agent is not None
        assert (agent.path, agent.version) == ("40", 41)
