"""What the logger says of reconnects, retries, silence and slow calls; and what it never says."""

from __future__ import annotations

import logging
import re
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from agentdb import ConflictError, DjangoDb, connect
from tests.helpers.moments import WhenItWaits, wait_until
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

    def good_bye_has_come() -> bool:
        db.list_agents()
        return bool(said.messages)

    wait_until(good_bye_has_come)
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

    def release() -> None:
        time.sleep(0.3)
        other.rollback()

    try:
        with connect(f"sqlite:///{path}?slow_call_seconds=0.2") as db:
            db.list_agents()
            began = time.monotonic()
            with WhenItWaits(db.alias, release):
                db.upsert_agent("secret-name", "/secret-path")
            at_most = time.monotonic() - began
            place = db.health().place
    finally:
        other.close()

    # On a slow machine others may be slow as well.
    [record] = [each for each in said.records if "INSERT" in each.getMessage()]
    assert (record.name, record.levelname) == ("agentdb", "WARNING")
    told = re.match(r"(.+) took ([0-9.]+) ", record.getMessage())
    assert told is not None
    assert told[1] == place
    assert 0.3 <= float(told[2]) <= at_most + 0.001  # it is rounded
    assert 'INSERT INTO "agents"' in record.getMessage()
    assert "secret" not in said.text


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
