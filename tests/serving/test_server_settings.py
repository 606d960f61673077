"""Settings that an operator gave a PostgreSQL database or role: they change no answer and no stored value."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

import agentdb
from agentdb.serving.opening import copy_database
from tests.helpers.baseline_runs import baselinedb
from tests.helpers.factories import execute
from tests.helpers.legacy_databases import manage, opened, rows

Load = Callable[[str], str]
Make = Callable[[], str]

SETTINGS = [
    "DateStyle = 'German, DMY'",
    "DateStyle = 'SQL, MDY'",
    "TimeZone = 'America/New_York'",
    "client_encoding = 'LATIN1'",
    "standard_conforming_strings = off",
    "default_transaction_isolation = 'serializable'",
    "default_transaction_deferrable = on",
    "transform_null_equals = on",
]


def give(url: str, setting: str) -> None:
    execute(
        url, f"DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET {setting.replace(chr(39), chr(39) * 2)}',"
        " current_database()); END $$",
    )  # fmt: skip


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_answers_are_the_same(make_postgres_database: Make, setting: str) -> None:
    url = make_postgres_database()
    give(url, setting)

    with agentdb.connect(url, migrate=True) as db:
        agent = db.upsert_agent('ä€ \\x\' "q"', "/p\\1")
        assert abs(agent.created_at - datetime.now(UTC)) < timedelta(minutes=1)
        assert db.get_agent(agent.name) == agent
        db.insert_session("s1", "ä", "sb")
        newer = db.insert_session("s2", "ä", "sb")
        assert [session.id for session in db.list_sessions(before=newer)] == ["s1"]
        db.insert_sandbox("sb", "ä", "/w")
        db.update_sandbox_state("sb", "waiting")
        assert db.get_idle_sandboxes(datetime(2020, 1, 1, tzinfo=UTC)) == []
        assert [
            sandbox.id
            for sandbox in db.get_idle_sandboxes(datetime(2100, 1, 1, tzinfo=UTC))
        ] == ["sb"]
        assert db.run_transaction(lambda inside: inside.list_agents()) == [agent]
        assert db.health().ok


@pytest.mark.parametrize("engine", ["postgresql"])
@pytest.mark.parametrize(
    "setting", ["DateStyle = 'German, DMY'", "TimeZone = 'America/New_York'"]
)
def test_an_adoption_and_the_way_back_write_what_they_always_write(
    load_legacy: Load, engine: str, setting: str
) -> None:
    texts = "SELECT id, created_at, last_active_at FROM sessions ORDER BY 1"
    [plain, other] = load_legacy("era-b-small"), load_legacy("era-b-small")
    give(other, setting)

    found = []
    for url in (plain, other):
        assert baselinedb(url).code == 0
        with opened(url) as connection:
            manage(connection, "migrate", "agentdb", "0001", verbosity=0)
            found.append(rows(connection, texts))

    assert found[0] == found[1] and "T" in found[0][0][1]


@pytest.mark.parametrize(
    "setting", ["DateStyle = 'German, DMY'", "TimeZone = 'America/New_York'"]
)
def test_a_copy_has_the_same_instants(
    make_postgres_database: Make, setting: str
) -> None:
    source, target = make_postgres_database(), make_postgres_database()
    give(source, setting)
    give(target, setting)
    with agentdb.connect(source, migrate=True) as db:
        session = db.insert_session("s", "a", "sb")

    copy_database(source, target)

    with agentdb.connect(target) as db:
        assert db.get_session("s") == session
