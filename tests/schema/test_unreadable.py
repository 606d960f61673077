"""Values that Python cannot represent are found, and the ends of its calendar are not among them."""

from __future__ import annotations

import pytest

import agentdb
from agentdb.schema.rows import unreadable_values
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
