"""Values that Python cannot represent are found, and the ends of its calendar are not among them."""

from __future__ import annotations

import pytest

import agentdb
from agentdb.schema.rows import misspelt_recently, unreadable_values
from tests.helpers.factories import set_column
from tests.helpers.legacy_databases import opened

# Readable values at the ends of the calendar, and others beyond them or outside of it.
ENDS = {
    "sqlite": ("0001-01-01 00:00:00", "9999-12-31 23:59:59.999999"),
    "postgresql": ("0001-01-01 00:00:00+00", "9999-12-31 23:59:59.999999+00"),
}
BEYOND = {
    "sqlite": ("0000-12-31 00:00:00", "9999-12-31 24:00:00"),
    "postgresql": ("0001-12-31 23:59:59.999999+00 BC", "10000-01-01 00:00:00+00"),
}
ENDS["cockroachdb"], BEYOND["cockroachdb"] = ENDS["postgresql"], BEYOND["postgresql"]


@pytest.fixture
def session_id(db: agentdb.DjangoDb) -> str:
    db.upsert_agent("bot", "/bot")
    return db.insert_session("s", "bot", "box").id


def found(url: str, *, thorough: bool) -> list[str]:
    with opened(url) as connection:
        values = unreadable_values(connection, 20, thorough=thorough)
        return [str(value) for value in values]


@pytest.mark.parametrize("thorough", [False, True])
def test_the_ends_of_the_calendar_can_be_read(
    url: str, db: agentdb.DjangoDb, session_id: str, engine: str, thorough: bool
):
    for stored in ENDS[engine]:
        set_column(url, "sessions", session_id, created_at=stored)

        assert db.get_session(session_id) is not None
        assert found(url, thorough=thorough) == []


@pytest.mark.parametrize("thorough", [False, True])
def test_what_is_beyond_the_calendar_is_found(
    url: str, session_id: str, engine: str, thorough: bool
):
    for stored in BEYOND[engine]:
        set_column(url, "sessions", session_id, created_at=stored)

        assert found(url, thorough=thorough) == [
            f"row 's' of sessions has created_at = {stored!r}"
        ]


@pytest.mark.parametrize("engine", ["sqlite"])
def test_a_day_that_its_month_does_not_have_is_found(
    url: str, db: agentdb.DjangoDb, session_id: str
):
    set_column(url, "sessions", session_id, created_at="2026-02-30 10:00:00")

    with pytest.raises(agentdb.AgentDbError, match="2026-02-30"):
        db.get_session(session_id)
    assert found(url, thorough=True) == [
        "row 's' of sessions has created_at = '2026-02-30 10:00:00'"
    ]


@pytest.mark.parametrize("engine", ["sqlite"])
@pytest.mark.parametrize(
    ("column", "stored", "is_told"),
    [
        ("created_at", "2026-02-19 20:53:16", False),
        ("created_at", "2026-02-19T20:53:16.123Z", True),
        ("created_at", "0000-12-31 00:00:00", False),  # unreadable_values() tells it
        ("last_active_at", "2026-02-19T20:53:16.123Z", True),
        ("last_active_at", "0000-12-31 00:00:00", True),
    ],
)
def test_another_programs_spelling_is_found_in_the_newest_rows_alone(
    url: str,
    db: agentdb.DjangoDb,
    session_id: str,
    column: str,
    stored: str,
    is_told: bool,
):
    set_column(url, "sessions", session_id, **{column: stored})

    with opened(url) as connection:
        newest = [str(value) for value in misspelt_recently(connection, 1)]
        set_column(url, "sessions", session_id, created_at="1999-01-01 00:00:00")
        db.insert_session("newer", "bot", "box")
        older = list(misspelt_recently(connection, 1))

    line = f"row 's' of sessions has {column} = {stored!r}"
    assert (newest, older) == ([line] if is_told else [], [])
