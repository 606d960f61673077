"""``?touch_interval=`` and ``?touch_durability=``: what a touch writes, and when."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from django.db import connections

import agentdb
from agentdb import DjangoDb, InvalidInputError
from tests.helpers.factories import execute

KINDS = {
    "sessions": ("last_active_at", "touch_session"),
    "sandboxes": ("last_used_at", "touch_sandbox"),
}


@contextmanager
def opened(url: str, options: str) -> Iterator[DjangoDb]:
    with agentdb.connect(
        f"{url}{'&' if '?' in url else '?'}{options}", migrate=True
    ) as db:
        db.insert_session("s", "bot", "b")
        db.insert_sandbox("b", "bot", "/w")
        yield db


def stored(db: DjangoDb, table: str) -> datetime:
    record = db.get_session("s") if table == "sessions" else db.get_sandbox("b")
    assert record is not None
    return (
        record.last_active_at
        if isinstance(record, agentdb.SessionRecord)
        else record.last_used_at
    )


def set_back(db: DjangoDb, table: str, seconds: float) -> datetime:
    at = datetime.now(UTC) - timedelta(seconds=seconds)
    shown = (
        str(at.replace(tzinfo=None)) if connections[db.alias].vendor == "sqlite" else at
    )
    with connections[db.alias].cursor() as cursor:
        cursor.execute(f"UPDATE {table} SET {KINDS[table][0]} = %s", [shown])
    return at


def version(db: DjangoDb, table: str) -> object:
    """What changes when the row is written, whatever is written."""
    connection = connections[db.alias]
    if connection.vendor == "sqlite":
        connection.ensure_connection()
        return connection.connection.total_changes
    with connection.cursor() as cursor:
        written = (
            "crdb_internal_mvcc_timestamp"
            if connection.vendor == "cockroachdb"
            else "xmin::text, ctid::text"
        )
        cursor.execute(f"SELECT {written} FROM {table}")
        return cursor.fetchone()


@pytest.mark.parametrize("table", KINDS)
def test_a_touch_too_soon_after_another_writes_nothing_and_answers_all_the_same(
    empty_url: str, table: str
):
    with opened(empty_url, "touch_interval=3000") as db:
        touch = getattr(db, KINDS[table][1])
        id = "s" if table == "sessions" else "b"
        set_back(db, table, 2000)
        before, at = version(db, table), stored(db, table)

        assert touch(id) is True
        assert (version(db, table), stored(db, table)) == (before, at)
        assert touch("nobody") is False
        assert touch(id) is True

        set_back(db, table, 4000)
        assert touch(id) is True
        assert datetime.now(UTC) - stored(db, table) < timedelta(seconds=1000)


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize(
    ("other", "answer"),
    [
        ("UPDATE sessions SET runner_id = 'r2'", False),
        ("DELETE FROM sessions", False),
        ("UPDATE sessions SET last_active_at = '{at}'", True),
    ],
    ids=["claimed", "deleted", "touched"],
)
def test_a_touch_answers_as_another_call_left_the_row_between_its_look_and_its_update(
    empty_url: str, other: str, answer: bool, many: bool
):
    with opened(empty_url, "touch_interval=3000") as db:
        db.update_session_runner("s", "r1")
        set_back(db, "sessions", 4000)
        at = datetime.now(UTC) - timedelta(seconds=1000)
        others = [other.format(at=at)]

        def watch(run, sql, *arguments):
            if others and sql.startswith("UPDATE"):
                execute(empty_url, others.pop())
            return run(sql, *arguments)

        with connections[db.alias].execute_wrapper(watch):
            if many:
                touched = db.touch_sessions(["s"], runner_id="r1") == ["s"]
            else:
                touched = db.touch_session("s", runner_id="r1")

        assert touched is answer
        assert not others
        if answer:
            assert stored(db, "sessions") == at


@pytest.mark.parametrize("engine", ["postgresql"])
def test_joined_touches_leave_a_locked_row_to_a_touch_of_its_own(
    empty_url: str, engine: str
):
    with (
        opened(empty_url, "touch_interval=3000") as db,
        psycopg.connect(empty_url) as other,
    ):
        db.insert_session("t", "bot", "b")
        set_back(db, "sessions", 4000)
        other.execute("SELECT FROM sessions WHERE id = 's' FOR UPDATE")

        assert db._joins("touch_session")
        assert db._do_each("touch_session", ["s", "t"]) == {"t": True}


def test_a_tenants_view_and_a_transaction_keep_the_interval(empty_url: str):
    with opened(empty_url, "touch_interval=3000") as db:
        set_back(db, "sessions", 4000)
        assert db.for_tenant("other").touch_session("s") is False
        assert db.for_tenant("default").touch_session("s") is True
        fresh = stored(db, "sessions")
        assert db.run_transaction(lambda tx: tx.touch_session("s")) is True
        assert stored(db, "sessions") == fresh


def test_touches_of_many_at_once_keep_the_interval_and_answer_all_the_same(
    empty_url: str,
):
    with opened(empty_url, "touch_interval=3000") as db:
        db.insert_session("t", "bot", "b")
        db.update_session_runner("s", "r1")
        set_back(db, "sessions", 2000)
        before = stored(db, "sessions")

        assert db.touch_sessions(["t", "nobody", "s"]) == ["t", "s"]
        assert db.touch_sessions(["t", "s"], runner_id="r1") == ["s"]
        assert db.touch_session("t", runner_id="r1") is False
        assert db.touch_session("s", runner_id="r1") is True
        assert stored(db, "sessions") == before

        set_back(db, "sessions", 4000)
        db.touch_session("t")
        fresh = db.get_session("t")
        assert db.touch_sessions(["s", "t"]) == ["s", "t"]
        assert datetime.now(UTC) - stored(db, "sessions") < timedelta(seconds=1000)
        assert db.get_session("t") == fresh
        set_back(db, "sandboxes", 4000)
        assert db.touch_sandboxes(["b", "nobody"]) == ["b"]
        assert datetime.now(UTC) - stored(db, "sandboxes") < timedelta(seconds=1000)


def test_without_an_interval_each_touch_is_written(empty_url: str):
    with opened(empty_url, "slow_call_seconds=9") as db:
        before = version(db, "sessions")
        assert db.touch_session("s") is True
        assert version(db, "sessions") != before


def test_an_interval_of_none_is_no_interval(empty_url: str):
    """As a project's settings may have it."""
    with agentdb.connect(empty_url, migrate=True) as db:
        connections[db.alias].settings_dict["AGENTDB"]["touch_interval"] = None
        hosts = DjangoDb(db.alias)
        hosts.insert_session("s1", "a", "sb")

        assert hosts.touch_session("s1") is True


@pytest.mark.parametrize("engine", ["postgresql"])
def test_relaxed_touches_alone_commit_without_waiting_for_the_disk(
    empty_url: str, engine: str
):
    """PostgreSQL's log of what it was told at the end of each statement."""
    with opened(empty_url, "touch_durability=relaxed") as db:
        connection = connections[db.alias]
        with connection.cursor() as cursor:
            cursor.execute("CREATE TABLE seen (what text, mode text)")
            cursor.execute(
                "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                " INSERT INTO seen VALUES (TG_ARGV[0] || ' ' || NEW.status, current_setting('synchronous_commit'));"
                " RETURN NULL; END $$"
            )
            cursor.execute(
                "CREATE CONSTRAINT TRIGGER at_commit AFTER UPDATE ON sessions DEFERRABLE INITIALLY DEFERRED"
                " FOR EACH ROW EXECUTE FUNCTION note('commit')"
            )
        set_back(db, "sessions", 4000)
        db.touch_session("s")
        db.update_session_status("s", "active")
        db.run_transaction(
            lambda tx: (tx.touch_session("s"), tx.update_session_status("s", "paused"))
        )
        db.touch_sessions(["s"])
        with connection.cursor() as cursor:
            cursor.execute("SELECT what, mode FROM seen")
            seen = cursor.fetchall()
            cursor.execute("SHOW synchronous_commit")
            after = cursor.fetchone()

    assert seen[:2] == [("commit starting", "on"), ("commit starting", "off")]
    assert {mode for _, mode in seen[2:-1]} == {"on"}
    assert seen[-1] == ("commit paused", "off")
    assert after == ("on",)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "sqlite:///x.db?touch_interval=0",
            "The URL option touch_interval=0 is not a number of seconds above 0.",
        ),
        (
            "postgresql://h/d?touch_interval=soon",
            "The URL option touch_interval='soon' is not a number of seconds above 0.",
        ),
        (
            "postgresql://h/d?touch_durability=none",
            "The URL option touch_durability='none' is not one of full, relaxed.",
        ),
        (
            "cockroachdb://h/d?touch_durability=relaxed",
            "The URL option touch_durability is for PostgreSQL; CockroachDB commits fully.",
        ),
        (
            "sqlite:///x.db?touch_durability=relaxed",
            "Unknown SQLite URL option 'touch_durability'; known are journal, slow_call_seconds, synchronous, timeout "
            "and touch_interval.",
        ),
    ],
)
def test_options_that_make_no_sense_are_named(url: str, message: str):
    with pytest.raises(InvalidInputError) as refusal:
        agentdb.connect(url)
    assert str(refusal.value) == message


def test_relaxed_touches_survive_the_end_of_the_connection(empty_url: str):
    if not empty_url.startswith("postgresql"):
        pytest.skip("an option of PostgreSQL")
    with opened(empty_url, "touch_durability=relaxed") as db:
        set_back(db, "sessions", 4000)
        assert db.touch_session("s") is True
        assert db.touch_session("nobody") is False
    with psycopg.connect(empty_url) as connection:
        [(age,)] = connection.execute(
            "SELECT now() - last_active_at FROM sessions"
        ).fetchall()
    assert age < timedelta(seconds=2000)
