from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import psycopg
import pytest
from django.core.management import CommandError, call_command

from agentdb import (
    AsyncDb,
    Db,
    DjangoDb,
    InvalidInputError,
    SandboxState,
    SessionStatus,
)
from agentdb.inputs import age
from agentdb.management.output import ProgressLine
from agentdb.moving import prune
from agentdb.testing import MemoryDb
from tests.helpers.factories import execute
from tests.helpers.legacy_databases import opened


class Run(NamedTuple):
    code: int
    out: str
    err: str


def run_prune(url: str, *arguments: str) -> Run:
    out, err = io.StringIO(), io.StringIO()
    with opened(url) as connection:
        try:
            call_command(
                "prune",
                *arguments,
                database=connection.alias,
                stdout=out,
                stderr=err,
                no_color=True,
            )
        except CommandError as error:
            return Run(error.returncode, out.getvalue(), f"{err.getvalue()}{error}")
        except SystemExit as error:
            return Run(int(str(error.code)), out.getvalue(), err.getvalue())
    return Run(0, out.getvalue(), err.getvalue())


def fill(
    db: Db,
    url: str,
    *,
    per_status: int = 1,
    days_ago: int = 40,
    tenant_id: str = "default",
) -> None:
    for status in SessionStatus:
        for number in range(per_status):
            id = f"{tenant_id}-{status}-{number}"
            db.insert_session(id, "a", f"sb-{id}", tenant_id)
            db.update_session_status(id, status)
            db.insert_sandbox(f"sb-{id}", "a", "/w", id, tenant_id)
            db.update_sandbox_state(f"sb-{id}", SandboxState.COLD)
    ago = (
        f"datetime('now', '-{days_ago} days')"
        if url.startswith("sqlite")
        else f"now() - interval '{days_ago} days'"
    )
    execute(
        url,
        f"UPDATE sessions SET last_active_at = {ago} WHERE tenant_id = '{tenant_id}'",
    )


def left(url: str) -> list[str]:
    return [row[0] for row in execute(url, "SELECT id FROM sessions ORDER BY id")]


def test_old_finished_sessions_go_with_their_cold_sandboxes(
    db: DjangoDb, url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(prune, "_BATCH", 2)
    fill(db, url, per_status=3)
    fill(db, url, tenant_id="young", days_ago=1)

    dry = run_prune(url, "--older-than", "30d", "--dry-run")
    assert (dry.code, dry.out) == (0, "9 would be deleted. Nothing was changed.\n")
    assert len(left(url)) == 24

    run = run_prune(url, "--older-than", "30d")

    assert (run.code, run.out) == (0, "Deleted 9 sessions.\n")
    assert run.err.startswith(f"{db.describe()}: sessions that ended before ")
    gone = ("ended", "stopped", "error")
    assert not [
        id for id in left(url) if id.startswith("default-") and id.split("-")[1] in gone
    ]
    assert len(left(url)) == 15 == len(execute(url, "SELECT id FROM sandboxes"))
    assert run_prune(url, "--older-than", "30d").out == "Deleted 0 sessions.\n"


def test_only_one_tenants_sessions_go(db: DjangoDb, url: str):
    fill(db, url)
    fill(db, url, tenant_id="acme")

    run = run_prune(url, "--older-than", "4w", "--tenant", "acme")

    assert run.out == "Deleted 3 sessions.\n"
    assert ", tenant 'acme': sessions that ended" in run.err
    assert len([id for id in left(url) if id.startswith("default-")]) == len(
        SessionStatus
    )


@pytest.mark.parametrize("engine", ["sqlite"])
@pytest.mark.parametrize(
    "text", ["", "30", "d", "-1d", "0d", "1.5h", "30 d", "1y", "999999w"]
)
def test_what_is_no_age_is_refused_by_name(url: str, text: str):
    run = run_prune(url, f"--older-than={text}")

    assert run.code == 2
    said = f"--older-than {text!r} is not an age. Write a whole number and a unit: 90m, 12h, 30d or 8w."
    assert run.err == f"{said} Nothing was deleted."


@pytest.mark.parametrize("engine", ["sqlite"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90m", timedelta(minutes=90)),
        ("12h", timedelta(hours=12)),
        ("30d", timedelta(days=30)),
        ("8w", timedelta(weeks=8)),
    ],
)
def test_an_age_has_a_unit(text: str, expected: timedelta, engine: str):
    assert age(text) == expected


def test_an_unmigrated_database_says_what_to_run(empty_url: str):
    if empty_url.startswith("sqlite"):
        execute(empty_url, "CREATE TABLE other (x int)")

    run = run_prune(empty_url, "--older-than", "1d")

    assert run.code == 2
    assert "Run 'agentdb migrate'" in run.err


def test_a_stop_in_between_keeps_what_is_done_and_says_so(
    db: DjangoDb, url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(prune, "_BATCH", 2)
    fill(db, url, per_status=2)
    real = DjangoDb.prune_sessions
    calls = iter([real, real])

    def stop_at_the_third(self: DjangoDb, *arguments: object, **named: object) -> int:
        try:
            return next(calls)(self, *arguments, **named)  # type: ignore[arg-type]
        except StopIteration:
            raise KeyboardInterrupt from None

    reported: list[tuple[object, ...]] = []
    monkeypatch.setattr(
        ProgressLine, "__call__", lambda _, *step: reported.append(step)
    )
    monkeypatch.setattr(DjangoDb, "prune_sessions", stop_at_the_third)
    run = run_prune(url, "--older-than", "1d")

    assert run.code == 130
    assert (
        "Interrupted. 4 were deleted before; the same command goes on from there.\n"
        in run.err
    )
    assert reported == [("sessions", 2, 6), ("sessions", 4, 6)]
    monkeypatch.undo()
    assert run_prune(url, "--older-than", "1d").out == "Deleted 2 sessions.\n"


@pytest.mark.parametrize("engine", ["postgresql"])
def test_a_row_that_another_holds_ends_it_after_a_while(
    db: DjangoDb,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    make_postgres_database: Callable[..., str],
):
    monkeypatch.setattr(prune, "_LOCK_TIMEOUT_SECONDS", 1)
    fill(db, url)
    with psycopg.connect(url) as other:
        other.execute("SELECT * FROM sessions FOR UPDATE")

        run = run_prune(url, "--older-than", "1d")

    assert run.code == 2
    assert "locked" in run.err
    assert "Nothing was deleted." in run.err


# -- rows of other tables that name the sessions

MESSAGES = "CREATE TABLE messages (id integer PRIMARY KEY, session_id text NOT NULL, content text)"


def fill_messages(url: str, table: str = "messages") -> None:
    """Three messages of each session, and one that names none."""
    for number, (id,) in enumerate(execute(url, "SELECT id FROM sessions ORDER BY id")):
        for one in range(3):
            execute(
                url, f"INSERT INTO {table} VALUES (?, ?, 'hello')", number * 3 + one, id
            )
    execute(url, f"INSERT INTO {table} VALUES (9999, 'nobody', 'hello')")


def sessions_of(url: str, table: str) -> list[str]:
    return [
        row[0]
        for row in execute(url, f"SELECT DISTINCT session_id FROM {table} ORDER BY 1")
    ]


def test_rows_of_other_tables_that_stay_are_said(db: DjangoDb, url: str):
    fill(db, url)
    execute(url, MESSAGES)
    execute(url, "CREATE TABLE usage (session_id text PRIMARY KEY, tokens integer)")
    execute(url, "CREATE TABLE empty_one (session_id text)")
    execute(url, "CREATE TABLE unrelated (session text)")
    fill_messages(url)
    execute(url, "INSERT INTO usage VALUES ('default-ended-0', 7)")

    dry = run_prune(url, "--older-than", "30d", "--dry-run")
    run = run_prune(url, "--older-than", "30d")

    assert dry.out == (
        "3 would be deleted. Nothing was changed.\n"
        "Rows of 'messages' that name these sessions: 9. They stay; --also messages deletes them.\n"
        "Rows of 'usage' that name these sessions: 1. They stay; --also usage deletes them.\n"
    )
    assert run.out == (
        "Deleted 3 sessions.\n"
        "Rows of 'messages' that name these sessions: 9. They stay; --also messages deletes them.\n"
        "Rows of 'usage' that name these sessions: 1. They stay; --also usage deletes them.\n"
    )
    assert len(execute(url, "SELECT id FROM messages")) == 19


def test_rows_of_the_tables_that_are_named_go_with_the_sessions(
    db: DjangoDb, url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(prune, "_BATCH", 2)
    fill(db, url)
    fill(db, url, tenant_id="acme")
    for table in ("messages", '"odd ""name"'):
        execute(url, MESSAGES.replace("messages", table))
        fill_messages(url, table)

    arguments = (
        "--older-than",
        "30d",
        "--tenant",
        "acme",
        "--also",
        "messages",
        "--also",
        'odd "name',
    )
    dry = run_prune(url, *arguments, "--dry-run")
    run = run_prune(url, *arguments)

    assert dry.out == (
        "3 would be deleted. Nothing was changed.\n"
        "Rows of 'messages' that name these sessions: 9. They go with them.\n"
        "Rows of 'odd \"name' that name these sessions: 9. They go with them.\n"
    )
    assert run.out == (
        "Deleted 3 sessions.\n"
        "Rows of 'messages' that name these sessions: 9. They go with them.\n"
        "Rows of 'odd \"name' that name these sessions: 9. They go with them.\n"
    )
    assert (
        sessions_of(url, "messages")
        == sorted([*left(url), "nobody"])
        == sessions_of(url, '"odd ""name"')
    )


def test_the_call_deletes_the_rows_of_other_tables_or_nothing(db: DjangoDb, url: str):
    fill(db, url)
    execute(url, MESSAGES)
    fill_messages(url)
    later = datetime.now(UTC)

    def undone(tx: Db) -> None:
        assert tx.prune_sessions(later, 10, also=["messages"]) == 3
        raise KeyError

    with pytest.raises(KeyError):
        db.run_transaction(undone)
    assert (len(left(url)), len(execute(url, "SELECT id FROM messages"))) == (6, 19)

    assert db.for_tenant("other").prune_sessions(later, 10, also=("messages",)) == 0
    assert db.for_tenant("default").prune_sessions(later, 2, also=("messages",)) == 2
    assert asyncio.run(AsyncDb(db).prune_sessions(later, 10, also=["messages"])) == 1
    assert sessions_of(url, "messages") == sorted([*left(url), "nobody"])


@pytest.mark.parametrize(
    ("also", "message"),
    [
        (["nowhere"], "No table 'nowhere' has a column 'session_id'."),
        (["unrelated"], "No table 'unrelated' has a column 'session_id'."),
    ],
)
def test_what_is_no_table_with_sessions_is_refused(
    db: DjangoDb, url: str, also: list[str], message: str
):
    execute(url, "CREATE TABLE unrelated (session text)")
    fill(db, url)

    for each in (db, db.for_tenant("default"), MemoryDb()):
        with pytest.raises(InvalidInputError) as raised:
            each.prune_sessions(datetime.now(UTC), 10, also=also)
        assert str(raised.value) == message
    assert len(left(url)) == 6
    run = run_prune(url, "--older-than", "30d", "--dry-run", "--also", also[0])
    assert (run.code, run.out) == (2, "")
    assert run.err.endswith(f"{message} Nothing was deleted.")


def test_a_session_id_that_is_not_text_is_refused(db: DjangoDb, url: str):
    execute(url, "CREATE TABLE messages (session_id integer)")

    with pytest.raises(InvalidInputError) as raised:
        db.prune_sessions(datetime.now(UTC), 10, also=["messages"])

    type_ = "bigint" if db.health().engine == "cockroachdb" else "integer"
    assert str(raised.value) == (
        f"The column 'session_id' of 'messages' is of the type {type_}, but the ids of sessions are text."
    )
    assert run_prune(url, "--older-than", "30d").out == "Deleted 0 sessions.\n"
