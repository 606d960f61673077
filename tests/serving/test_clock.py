"""Time is the server's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from agentdb import DjangoDb
from agentdb.serving import compiled
from tests.helpers.factories import (
    execute,
    make_agent,
    make_api_key,
    make_sandbox,
    make_session,
)


class WrongClock(datetime):
    """A machine whose clock is years behind."""

    @classmethod
    def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
        return datetime(2001, 2, 3, tzinfo=UTC)


@pytest.fixture
def wrong_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "datetime", WrongClock)


@pytest.mark.usefixtures("wrong_clock")
def test_time_is_the_servers_where_there_is_one(
    db: DjangoDb, url: str, engine: str
) -> None:
    rows: list[Any] = [
        make_agent(db),
        make_session(db),
        make_sandbox(db),
        make_api_key(db),
    ]
    found = [
        db.get_agent("support-bot"),
        db.get_session("s1"),
        db.get_sandbox("sb1"),
        db.get_api_key_by_hash("hash-1"),
    ]

    assert rows == found
    for row in rows:
        if engine == "sqlite":
            assert row.created_at == WrongClock.now()
        else:
            [(now,)] = execute(url, "SELECT now()")
            assert timedelta(0) <= now - row.created_at < timedelta(minutes=5)
    assert rows[1].last_active_at == rows[1].created_at
    assert rows[2].last_used_at == rows[2].created_at


def test_each_statement_of_a_transaction_has_its_own_time(db: DjangoDb) -> None:
    first, second = db.run_transaction(
        lambda inside: (make_session(inside, "a"), make_session(inside, "b"))
    )

    assert first.created_at < second.created_at
