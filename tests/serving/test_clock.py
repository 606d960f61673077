"""Time is the server's, and never runs backwards."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from agentdb import DjangoDb
from agentdb.serving import adapter
from tests.helpers.factories import (
    execute,
    instant,
    make_agent,
    make_api_key,
    make_sandbox,
    make_session,
    set_column,
)

LATER = instant(10**9)


class WrongClock(datetime):
    """A machine whose clock is years behind."""

    @classmethod
    def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
        return datetime(2001, 2, 3, tzinfo=UTC)


@pytest.fixture
def wrong_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "datetime", WrongClock)


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


@pytest.mark.parametrize(
    "method",
    [
        "update_session_status",
        "update_session_sandbox",
        "update_session_runner",
        "touch_session",
    ],
)
def test_a_sessions_last_sign_of_life_never_moves_backwards(
    db: DjangoDb, url: str, method: str
) -> None:
    arguments = {"touch_session": [], "update_session_status": ["active"]}.get(
        method, ["x"]
    )
    make_session(db)
    set_column(url, "sessions", "s1", last_active_at=LATER)

    assert getattr(db, method)("s1", *arguments) is True
    assert db.get_session("s1").last_active_at == LATER

    set_column(url, "sessions", "s1", last_active_at=instant())
    assert getattr(db, method)("s1", *arguments) is True
    assert db.get_session("s1").last_active_at > instant()


def test_pausing_never_moves_it_backwards_either(db: DjangoDb, url: str) -> None:
    for number in range(2):
        make_session(db, f"s{number}")
        set_column(
            url,
            "sessions",
            f"s{number}",
            last_active_at=[LATER, instant()][number],
            runner_id="r",
        )

    assert db.bulk_pause_sessions_by_runner("r") == 2

    assert db.get_session("s0").last_active_at == LATER
    assert db.get_session("s1").last_active_at > instant()


def test_a_sandboxs_last_use_never_moves_backwards(db: DjangoDb, url: str) -> None:
    make_sandbox(db)
    set_column(url, "sandboxes", "sb1", last_used_at=LATER)

    assert db.touch_sandbox("sb1") is True
    assert db.get_sandbox("sb1").last_used_at == LATER
