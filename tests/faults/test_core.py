"""Moments at which a connection or a transaction once said something that was not true."""

from __future__ import annotations

import os
import re
import socket
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connections, transaction

import agentdb
from agentdb import (
    AgentDbError,
    DatabaseClosedError,
    DatabaseUnavailableError,
    Db,
    OutcomeUnknownError,
    SchemaMismatchError,
    SchemaOutOfDateError,
)
from agentdb.serving import forking
from agentdb.serving.connections import postgresql
from agentdb.serving.opening import temporary_alias
from tests.helpers.factories import execute
from tests.helpers.limits import set_call_timeout
from tests.helpers.moments import WhenItWaits
from tests.helpers.servers import FAST, Server


class Interrupt(BaseException):
    """As a signal handler raises."""


@pytest.fixture
def migrated(
    make_postgres_database: Callable[..., str], _migrated_postgres: str
) -> str:
    return make_postgres_database(template=_migrated_postgres)


def stored(url: str) -> set[str]:
    with agentdb.connect(url) as db:
        return {session.id for session in db.list_sessions()}


# -- connecting that is cut off


@pytest.mark.parametrize(
    ("step", "after"),
    [
        ("get_new_connection", False),
        ("set_autocommit", False),
        ("set_autocommit", True),
        ("_set_autocommit", False),
        ("_set_autocommit", True),
        ("init_connection_state", False),
        ("init_connection_state", True),
        ("ensure_connection", True),
    ],
)
def test_an_exception_between_two_steps_of_connecting_costs_no_acknowledged_write(
    url: str, step: str, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with agentdb.connect(url) as db:
        wrapper: Any = connections[db.alias]
        usual = getattr(wrapper, step)
        wrapper.close()

        def interrupted(*args: Any, **options: Any) -> Any:
            result = usual(*args, **options) if after else None
            raise Interrupt(result)

        monkeypatch.setattr(wrapper, step, interrupted)
        with pytest.raises(Interrupt):
            db.insert_session("cut off", "a", "sb")
        monkeypatch.undo()

        made = [db.insert_session(f"s{number}", "a", "sb") for number in range(3)]
        assert [session.created_at.utcoffset() for session in made] == [
            made[0].created_at.utcoffset()
        ] * 3
        db.run_transaction(lambda tx: tx.insert_session("s3", "a", "sb"))
        assert stored(url) == {"s0", "s1", "s2", "s3"}


def open_half_way(wrapper: Any, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open the connection for a query that is interrupted at the step of Django's ``connect()``."""

    def interrupted(*args: Any) -> None:
        raise Interrupt

    wrapper.close()
    monkeypatch.setattr(wrapper, step, interrupted)
    with pytest.raises(Interrupt), wrapper.cursor():
        pass
    monkeypatch.undo()


@pytest.mark.parametrize("step", ["set_autocommit", "init_connection_state"])
def test_a_connection_that_own_models_opened_half_way_is_not_used(
    url: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with agentdb.connect(url) as db:
        wrapper: Any = connections[db.alias]
        open_half_way(wrapper, step, monkeypatch)
        half = wrapper.connection

        session = db.insert_session("s1", "a", "sb")
        assert half is not None and wrapper.connection is not half
        assert stored(url) == {session.id}


@pytest.mark.parametrize("step", ["set_autocommit", "init_connection_state"])
def test_a_hosts_connection_that_was_opened_half_way_costs_no_acknowledged_write(
    url: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with temporary_alias(url) as alias, agentdb.DjangoDb(alias) as db:
        wrapper: Any = connections[alias]
        wrapper.ensure_connection()
        open_half_way(wrapper, step, monkeypatch)

        sessions = [db.insert_session(f"s{number}", "a", "sb") for number in range(2)]
        assert db.list_sessions() == sessions[::-1]
        assert sessions[0].created_at.utcoffset() == timedelta(0)
        assert stored(url) == {"s0", "s1"}


def test_a_hosts_connection_that_the_driver_has_closed_is_no_good_health(
    url: str,
) -> None:
    with temporary_alias(url) as alias, agentdb.DjangoDb(alias) as db:
        wrapper = connections[alias]
        wrapper.set_autocommit(False)  # so it is the host's to open another
        assert wrapper.connection is not None
        wrapper.connection.close()

        health = db.health()

        assert not health.ok
        assert re.search("closed|autocommit off", health.reason)


def test_a_server_that_is_too_old_is_refused_by_connect(
    migrated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with agentdb.connect(migrated) as db:
        features = type(connections[db.alias].features)
    monkeypatch.setattr(features, "minimum_database_version", (99,))
    with pytest.raises(
        DatabaseUnavailableError,
        match=r"is unavailable: PostgreSQL 99 or later is required \(found",
    ):
        agentdb.connect(migrated)


# -- files


def test_a_file_that_is_moved_during_a_transaction_is_no_success(
    tmp_path: Path,
) -> None:
    path = tmp_path / "agents.db"
    with agentdb.connect(f"sqlite:///{path}", migrate=True) as db:

        def work(tx: Db) -> None:
            tx.insert_session("s1", "a", "sb")
            path.rename(tmp_path / "moved.db")

        with pytest.raises(
            DatabaseUnavailableError, match="was removed or moved while it was open"
        ) as raised:
            db.run_transaction(work)

        assert not isinstance(raised.value, OutcomeUnknownError)
        (tmp_path / "moved.db").rename(path)
        assert db.list_sessions() == []


def test_a_file_that_is_moved_while_a_write_waits_for_its_lock_is_no_success(
    tmp_path: Path,
) -> None:
    path = tmp_path / "agents.db"
    with agentdb.connect(f"sqlite:///{path}", migrate=True) as db:
        db.insert_session("s1", "a", "sb")
        other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")

        def move() -> None:
            path.rename(tmp_path / "moved.db")
            other.execute("COMMIT")

        with (
            pytest.raises(
                OutcomeUnknownError,
                match="The last write went into the file that was open",
            ),
            WhenItWaits(db.alias, move),
        ):
            db.insert_session("s2", "a", "sb")
        other.close()


def test_an_index_of_the_log_that_is_removed_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "agents.db"
    with agentdb.connect(f"sqlite:///{path}", migrate=True) as db:
        db.insert_session("s1", "a", "sb")
        os.remove(f"{path}-shm")

        with pytest.raises(
            DatabaseUnavailableError,
            match="The write-ahead log .*-wal', or its index, was removed",
        ):
            db.insert_session("s2", "a", "sb")


def test_a_missing_file_is_not_made_by_a_connection_that_opens_again(
    tmp_path: Path,
) -> None:
    path = tmp_path / "agents.db"
    with agentdb.connect(f"sqlite:///{path}", migrate=True) as db:
        connections[db.alias].close()
        os.remove(path)
        with pytest.raises(
            DatabaseUnavailableError, match="was removed or moved while it was open"
        ):
            db.list_agents()
    assert not path.exists()


# -- the schema changes


def test_migrations_that_are_reversed_under_an_open_db_are_noticed(
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path / 'agents.db'}"
    with agentdb.connect(url, migrate=True) as db:
        db.insert_session("s1", "a", "sb")
        with closing(
            sqlite3.connect(tmp_path / "agents.db", isolation_level=None)
        ) as other:
            other.execute(
                "DELETE FROM django_migrations WHERE app = 'agentdb' AND name <> '0001_initial'"
            )
            other.execute(
                "ALTER TABLE sessions RENAME COLUMN sandbox_id TO sandbox_id2"
            )
            other.execute(
                "ALTER TABLE sessions RENAME COLUMN sandbox_id2 TO sandbox_id"
            )

        with pytest.raises(
            SchemaOutOfDateError, match="lacks the migrations 0002_native_timestamps"
        ):
            db.run_transaction(lambda tx: tx.touch_session("s1"))


def test_text_in_a_column_of_timestamps_is_no_record(migrated: str) -> None:
    with agentdb.connect(migrated) as db:
        db.insert_session("s1", "a", "sb")
        execute(migrated, "ALTER TABLE sessions ALTER created_at DROP DEFAULT")
        execute(
            migrated,
            "ALTER TABLE sessions ALTER created_at TYPE text USING created_at::text",
        )

        for read in (lambda: db.get_session("s1"), db.list_sessions):
            with pytest.raises(SchemaMismatchError):
                read()
        assert db.health().ok is False


def test_tables_that_are_gone_are_no_good_health(url: str) -> None:
    with agentdb.connect(url) as db:
        execute(url, "DROP TABLE sandboxes")

        reason = "lacks the tables sandboxes, though their migrations are recorded. Run 'agentdb verifydb'."
        assert (db.health().ok, db.health().reason) == (
            False,
            f"{db.describe()} {reason}",
        )
        with pytest.raises(SchemaMismatchError) as raised:
            agentdb.connect(url)
        assert str(raised.value).endswith(f" {reason}")


def test_a_record_in_another_schema_of_the_search_path_is_no_good_health(
    migrated: str,
) -> None:
    url = migrated
    execute(url, "CREATE SCHEMA old")
    for table in ("agents", "sessions", "sandboxes", "api_keys"):
        execute(url, f"CREATE TABLE old.{table} (id text PRIMARY KEY, created_at text)")
    separator = "&" if "?" in url else "?"

    with pytest.raises(
        SchemaOutOfDateError,
        match="more than one schema. The tables are in schema 'old'",
    ):
        agentdb.connect(f"{url}{separator}options=-csearch_path%3Dold,public")


# -- transactions


def test_a_thread_that_the_function_starts_may_not_use_the_transaction(
    url: str,
) -> None:
    errors: list[BaseException] = []

    def work(tx: Db) -> None:
        def outside() -> None:
            try:
                tx.insert_session("outside", "a", "sb")
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=outside)
        thread.start()
        thread.join()
        tx.insert_session("inside", "a", "sb")

    with agentdb.connect(url) as db:
        db.run_transaction(work)
        assert [type(error) for error in errors] == [AgentDbError]
        assert str(errors[0]).startswith(
            "A transaction belongs to the thread that runs it, and this call comes from"
        )
        assert [session.id for session in db.list_sessions()] == ["inside"]


def test_a_transaction_cannot_be_used_after_its_end_and_the_db_around_it_joins(
    url: str,
) -> None:
    kept: list[Db] = []
    with agentdb.connect(url) as db:

        def work(tx: Db) -> None:
            kept.append(tx)
            db.insert_session("joined", "a", "sb")
            raise Interrupt

        with pytest.raises(Interrupt):
            db.run_transaction(work)
        assert db.list_sessions() == []
        with pytest.raises(
            DatabaseClosedError,
            match=r"The transaction has ended. Call the Db that ran it.",
        ):
            kept[0].list_sessions()


# -- a server that goes silent


def test_hosts_that_answer_nothing_are_tried_within_one_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        shares: list[float] = []
        usual = postgresql._until

        def noted(waits: Any, ends: float) -> Any:
            shares.append(ends - time.monotonic())
            return usual(waits, ends)

        monkeypatch.setattr(postgresql, "_until", noted)
        hosts = ",".join([f"127.0.0.1:{port}"] * 3)
        with pytest.raises(DatabaseUnavailableError, match="timeout expired"):
            agentdb.connect(
                f"postgresql://{hosts}/a?call_timeout=1", timeout_seconds=0.9
            )
    assert len(shares) >= 3
    assert all(share <= 0.5 for share in shares)


def test_a_commit_without_its_standby_is_of_unknown_outcome(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # This server can be reached, and answers when it is told to cancel, however slow it is.
    monkeypatch.setattr(postgresql, "_CANCEL_SECONDS", 60)
    monkeypatch.setattr(postgresql, "_ANSWER_SECONDS", 60)
    with Server() as server:
        server.init()
        server.start(
            **FAST, synchronous_standby_names="nobody", synchronous_commit="local"
        )
        with agentdb.connect(server.url, migrate=True) as db:
            execute(server.url, "ALTER DATABASE postgres SET synchronous_commit = 'on'")
            connections[db.alias].close()
            db.list_sessions()
            set_call_timeout(db, 1)

            with pytest.raises(
                OutcomeUnknownError,
                match="its synchronous standby did not say that it has",
            ):
                db.insert_session("s1", "a", "sb")
            with pytest.raises(
                OutcomeUnknownError,
                match="its synchronous standby did not say that it has",
            ):
                db.run_transaction(lambda tx: tx.insert_session("s2", "a", "sb"))
            # Of what the program itself commits, the next call says nothing: it was not that call's.
            with connections[db.alias].cursor() as cursor:
                cursor.execute("UPDATE sessions SET runner_id = 'r'")
            set_call_timeout(db, 60)
            assert {session.id for session in db.list_sessions()} == {"s1", "s2"}


# -- forks


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_beside_open_transactions_waits_once_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    with agentdb.connect(f"sqlite:///{tmp_path / 'a.db'}", migrate=True) as db:
        go_on, entered = threading.Event(), threading.Semaphore(0)

        def hold() -> None:
            with transaction.atomic(using=db.alias, savepoint=False):
                entered.release()
                go_on.wait(60)

        def begun() -> None:
            slot = db._threads.slot()
            slot.ready()
            vars(slot.wrapper)["transaction_mode"] = None  # BEGIN takes no lock then
            with slot.lock:
                hold()

        threads = [threading.Thread(target=begun) for _ in range(5)]
        for thread in threads:
            thread.start()
        for _ in threads:
            entered.acquire()
        usual = forking._hold

        def timed(slot: Any, statements_until: float, until: float) -> bool:
            waits.append(until)
            return usual(slot, statements_until, until)

        monkeypatch.setattr(forking, "_hold", timed)
        if (child := os.fork()) == 0:
            os._exit(0)
        os.waitpid(child, 0)
        go_on.set()
        for thread in threads:
            thread.join()
    assert len(waits) >= 5
    assert len(set(waits)) == 1
