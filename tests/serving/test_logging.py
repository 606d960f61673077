"""What the logger says of reconnects, retries, silence and slow calls; and what it never says."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from agentdb import ConflictError, DjangoDb, connect
from tests.serving.test_transactions import _conflicts, postgres_db  # noqa: F401 (a fixture)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, logger="agentdb"):
        yield caplog


def test_a_connection_that_died_while_idle_is_named_when_another_is_opened(
    postgres_db: tuple[DjangoDb, str],  # noqa: F811
    said: pytest.LogCaptureFixture,
) -> None:
    db, url = postgres_db
    db.list_agents()
    with psycopg.connect(url, autocommit=True) as other:
        killed = other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ).fetchall()
    assert killed

    for _ in range(100):  # the good-bye may be on its way still
        db.list_agents()
        if said.messages:
            break

    (message,) = said.messages
    assert message in (
        f"{db.health().place} had dropped an idle connection; opening another.",
        f"{db.health().place}: trying again, because terminating connection due to administrator command.",
    )


def test_a_conflict_is_logged_with_its_reason_each_time(
    postgres_db: tuple[DjangoDb, str],  # noqa: F811
    said: pytest.LogCaptureFixture,
) -> None:
    db, url = postgres_db
    _conflicts(url, 2)

    db.run_transaction(
        lambda tx: tx.insert_session("secret-id", "secret-name", "sandbox")
    )

    assert len(said.messages) == 2
    for message in said.messages:
        assert message.startswith(f"{db.health().place}: trying again, because ")
        assert "secret" not in message


def test_a_slow_statement_is_logged_with_its_time_and_no_value(
    tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "x.db"
    connect(f"sqlite:///{path}", migrate=True).close()
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.4, other.rollback)
    timer.start()
    try:
        with connect(f"sqlite:///{path}?slow_call_seconds=0.2") as db:
            db.upsert_agent("secret-name", "/secret-path")
            place = db.health().place
    finally:
        timer.join()
        other.close()

    (record,) = said.records
    assert (record.name, record.levelname) == ("agentdb", "WARNING")
    assert record.getMessage().startswith(f"{place} took 0.")
    assert 'INSERT INTO "agents"' in record.getMessage()
    assert "secret" not in record.getMessage()


def test_nothing_is_logged_of_slow_statements_unless_asked(
    tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "x.db"
    connect(f"sqlite:///{path}", migrate=True).close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        with (
            connect(f"sqlite:///{path}?timeout=0.1") as db,
            pytest.raises(ConflictError),
        ):
            db.upsert_agent("a", "/a")
    finally:
        other.close()

    assert not [message for message in said.messages if " took " in message]
