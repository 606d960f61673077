"""What every engine refuses, with the same words and before any SQL; and what the drivers say in agentdb's terms."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from enum import StrEnum
from typing import Any

import pytest
from django.db import connections

import agentdb
from agentdb import Db, DjangoDb, InvalidInputError, SandboxRecord, SchemaMismatchError, SessionRecord
from tests.helpers.factories import execute, instant, make_agent, make_api_key, make_sandbox, make_session, set_column

RECORD = SessionRecord("s1", "default", "a", "sb1", "active", None, instant(), instant())

SANDBOX = SandboxRecord("sb1", "default", None, "a", "cold", "/", instant(), instant())

# One valid value for each argument of each method; the kind says what is refused in its place.
IDENTIFIER, OPTIONAL, TEXT = "identifier", "optional identifier", "text"
ARGUMENTS: dict[str, dict[str, tuple[str, str]]] = {
    "upsert_agent": {
        "name": (IDENTIFIER, "Agent name"),
        "path": (TEXT, "Agent path"),
        "tenant_id": (IDENTIFIER, "Tenant id"),
    },
    "get_agent": {"name": (IDENTIFIER, "Agent name"), "tenant_id": (IDENTIFIER, "Tenant id")},
    "list_agents": {"tenant_id": (IDENTIFIER, "Tenant id")},
    "delete_agent": {"name": (IDENTIFIER, "Agent name"), "tenant_id": (IDENTIFIER, "Tenant id")},
    "insert_session": {
        "id": (IDENTIFIER, "Session id"),
        "agent_name": (IDENTIFIER, "Agent name"),
        "sandbox_id": (IDENTIFIER, "Sandbox id"),
        "tenant_id": (IDENTIFIER, "Tenant id"),
    },
    "update_session_status": {
        "id": (IDENTIFIER, "Session id"),
        "status": ("status", "Session status"),
        "only_if": ("statuses", "only_if"),
    },
    "update_session_sandbox": {"id": (IDENTIFIER, "Session id"), "sandbox_id": (IDENTIFIER, "Sandbox id")},
    "update_session_runner": {
        "id": (IDENTIFIER, "Session id"),
        "runner_id": (OPTIONAL, "Runner id"),
        "only_if": (OPTIONAL, "only_if"),
    },
    "get_session": {"id": (IDENTIFIER, "Session id")},
    "list_sessions": {
        "tenant_id": (IDENTIFIER, "Tenant id"),
        "agent": (OPTIONAL, "Agent name"),
        "status": ("statuses", "status"),
        "runner_id": (OPTIONAL, "Runner id"),
        "limit": ("limit", "limit"),
        "before": ("record", "SessionRecord"),
    },
    "count_sessions": {
        "tenant_id": (IDENTIFIER, "Tenant id"),
        "agent": (OPTIONAL, "Agent name"),
        "status": ("statuses", "status"),
    },
    "claim_session": {
        "id": (IDENTIFIER, "Session id"),
        "runner_id": (IDENTIFIER, "Runner id"),
        "silent_for": ("length", "silent_for"),
    },
    "get_silent_sessions": {"older_than": ("instant", "older_than"), "limit": ("limit", "limit")},
    "list_sessions_by_runner": {"runner_id": (IDENTIFIER, "Runner id")},
    "touch_session": {"id": (IDENTIFIER, "Session id"), "runner_id": (OPTIONAL, "Runner id")},
    "touch_sessions": {"ids": ("ids", "Session id"), "runner_id": (OPTIONAL, "Runner id")},
    "delete_session": {"id": (IDENTIFIER, "Session id")},
    "insert_sandbox": {
        "id": (IDENTIFIER, "Sandbox id"),
        "agent_name": (IDENTIFIER, "Agent name"),
        "workspace_dir": (TEXT, "Workspace directory"),
        "session_id": (OPTIONAL, "Session id"),
        "tenant_id": (IDENTIFIER, "Tenant id"),
    },
    "update_sandbox_state": {
        "id": (IDENTIFIER, "Sandbox id"),
        "state": ("state", "Sandbox state"),
        "only_if": ("states", "only_if"),
    },
    "update_sandbox_session": {"id": (IDENTIFIER, "Sandbox id"), "session_id": (OPTIONAL, "Session id")},
    "touch_sandbox": {"id": (IDENTIFIER, "Sandbox id")},
    "get_sandbox": {"id": (IDENTIFIER, "Sandbox id")},
    "touch_sandboxes": {"ids": ("ids", "Sandbox id")},
    "list_sandboxes": {
        "tenant_id": (IDENTIFIER, "Tenant id"),
        "state": ("states", "state"),
        "agent": (OPTIONAL, "Agent name"),
        "session_id": (OPTIONAL, "Session id"),
        "limit": ("limit", "limit"),
        "before": ("sandbox record", "SandboxRecord"),
    },
    "list_sandboxes_by_runner": {"runner_id": (IDENTIFIER, "Runner id")},
    "count_sandboxes": {"state": ("states", "state")},
    "claim_warm_sandbox": {
        "agent_name": (IDENTIFIER, "Agent name"),
        "session_id": (IDENTIFIER, "Session id"),
        "tenant_id": (IDENTIFIER, "Tenant id"),
    },
    "get_best_eviction_candidate": {"unused_since": ("optional instant", "unused_since")},
    "claim_eviction_candidate": {"unused_since": ("optional instant", "unused_since")},
    "get_idle_sandboxes": {"older_than": ("instant", "older_than")},
    "get_cold_sandboxes": {"older_than": ("instant", "older_than")},
    "delete_sandbox": {"id": (IDENTIFIER, "Sandbox id")},
    "mark_all_sandboxes_cold": {},
    "mark_sandboxes_cold_by_runner": {"runner_id": (IDENTIFIER, "Runner id")},
    "bulk_pause_sessions_by_runner": {"runner_id": (IDENTIFIER, "Runner id")},
    "bulk_pause_active_sessions": {},
    "get_api_key_by_hash": {"key_hash": (IDENTIFIER, "Key hash")},
    "insert_api_key": {
        "id": (IDENTIFIER, "API key id"),
        "tenant_id": (IDENTIFIER, "Tenant id"),
        "key_hash": (IDENTIFIER, "Key hash"),
        "label": (TEXT, "Label"),
    },
    "list_api_keys_by_tenant": {"tenant_id": (IDENTIFIER, "Tenant id")},
    "delete_api_key": {"id": (IDENTIFIER, "API key id")},
    "issue_api_key": {"tenant_id": (IDENTIFIER, "Tenant id"), "label": (TEXT, "Label")},
    "for_tenant": {"tenant_id": (IDENTIFIER, "Tenant id")},
    "prune_sessions": {
        "ended_before": ("instant", "ended_before"),
        "limit": ("limit", "limit"),
        "also": ("tables", "also"),
    },
    "authenticate": {"plain": ("key", "An API key")},
}
VALID: dict[str, Any] = {
    IDENTIFIER: "x",
    OPTIONAL: "x",
    TEXT: "x",
    "status": "active",
    "state": "cold",
    "limit": 1,
    "statuses": ("active", "paused"),
    "states": ("cold", "warm"),
    "length": timedelta(minutes=1),
    "ids": ["x", "y"],
    "record": RECORD,
    "sandbox record": SANDBOX,
    "optional instant": instant(),
    "instant": instant(),
    "key": "agentdb_x",
    "tables": [],
}

_NOT_TEXT: list[tuple[object, str]] = [
    (5, "{what} must be a string, not int."),
    (b"x", "{what} must be a string, not bytes."),
    (["x"], "{what} must be a string, not list."),
    ("a\0b", "{what} 'a\\x00b' has a NUL character, which PostgreSQL cannot store."),
    ("a\ud800", "{what} 'a\\ud800' has a lone surrogate, which is no character."),
]
_NO_IDENTIFIER: list[tuple[object, str]] = [
    *_NOT_TEXT,
    ("", "{what} must not be empty."),
    ("x" * 513, "{what} has 513 bytes in UTF-8; the limit is 512."),
    ("é" * 257, "{what} has 514 bytes in UTF-8; the limit is 512."),
    ("😀" * 129, "{what} has 516 bytes in UTF-8; the limit is 512."),
]
_NONE: tuple[object, str] = (None, "{what} must be a string, not NoneType.")
_MAXIMUM = datetime.max.replace(tzinfo=timezone(timedelta(hours=-5)))
_STATUSES = "starting, active, paused, ended, error, stopped"
_STATES = "cold, warming, warm, waiting, running"
_NOT_SEVERAL: list[tuple[object, str]] = [
    (5, "{name} must be a collection of strings, not int."),
    (b"x", "{name} must be a collection of strings, not bytes."),
    ({"x": 1}, "{name} must be a collection of strings, not dict."),
    ((each for each in "x"), "{name} must be a collection of strings, not generator."),
    ([], "{name} must not be empty."),
    (set(), "{name} must not be empty."),
]


def _several(unknown: str, of: str) -> list[tuple[object, str]]:
    return [
        *((value, message.format(name="{what}")) for value, message in _NOT_SEVERAL),
        ("frozen", unknown),
        (["frozen"], unknown),
        ([None], f"{of} must be a string, not NoneType."),
        (["frozen"] * 101, "{what} has 101 items; the limit is 100."),
    ]


def _before(record: SessionRecord | SandboxRecord) -> list[tuple[object, str]]:
    return [
        ("s1", "before 's1' is not the cursor of a {what}."),
        ("", "before '' is not the cursor of a {what}."),
        (5, "before must be a {what} of the page before, or its cursor, not int."),
        (("s1", instant()), "before must be a {what} of the page before, or its cursor, not tuple."),
        (
            "2026-03-01T12:00:00,s1",
            "The instant of before 2026-03-01T12:00:00 has no time zone; pass an aware datetime.",
        ),
        ("2026-03-01T12:00:00Z", "The id of before must not be empty."),
        ("2026-03-01T12:00:00Z,", "The id of before must not be empty."),
        ("2026-03-01T12:00:00Z,a\0b", "The id of before 'a\\x00b' has a NUL character, which PostgreSQL cannot store."),
        (
            dataclasses.replace(record, created_at=datetime(2026, 1, 1)),
            "The instant of before 2026-01-01T00:00:00 has no time zone; pass an aware datetime.",
        ),
        (
            dataclasses.replace(record, created_at=_MAXIMUM),
            "The instant of before 9999-12-31T23:59:59.999999-05:00 is outside the years 1 to 9999 in UTC.",
        ),
        (dataclasses.replace(record, id=""), "The id of before must not be empty."),
    ]


REFUSED: dict[str, list[tuple[object, str]]] = {
    IDENTIFIER: [_NONE, *_NO_IDENTIFIER],
    OPTIONAL: _NO_IDENTIFIER,
    TEXT: [_NONE, *_NOT_TEXT],
    "status": [
        _NONE,
        (5, "{what} must be a string, not int."),
        ("Active", f"{{what}} 'Active' is not one of {_STATUSES}."),
        ("cold", f"{{what}} 'cold' is not one of {_STATUSES}."),
        ("", f"{{what}} '' is not one of {_STATUSES}."),
        ("a\ud800", f"{{what}} 'a\\ud800' is not one of {_STATUSES}."),
        (agentdb.SandboxState.WARM, f"{{what}} 'warm' is not one of {_STATUSES}."),
    ],
    "state": [
        _NONE,
        (["cold"], "{what} must be a string, not list."),
        ("active", f"{{what}} 'active' is not one of {_STATES}."),
        ("COLD", f"{{what}} 'COLD' is not one of {_STATES}."),
    ],
    "limit": [
        (0, "limit must be a whole number from 1 to 9223372036854775807, not 0."),
        (-1, "limit must be a whole number from 1 to 9223372036854775807, not -1."),
        (2**63, "limit must be a whole number from 1 to 9223372036854775807, not 9223372036854775808."),
        (True, "limit must be a whole number from 1 to 9223372036854775807, not True."),
        (1.0, "limit must be a whole number from 1 to 9223372036854775807, not 1.0."),
        ("1", "limit must be a whole number from 1 to 9223372036854775807, not '1'."),
    ],
    "statuses": _several(f"Session status 'frozen' is not one of {_STATUSES}.", "Session status"),
    "states": _several(f"Sandbox state 'frozen' is not one of {_STATES}.", "Sandbox state"),
    "ids": [
        *((value, message.format(name="ids")) for value, message in _NOT_SEVERAL),
        ("x", "ids must be a collection of strings, not str."),
        ([f"s{number}" for number in range(10_001)], "ids has 10001 items; the limit is 10000."),
        *(([value], message) for value, message in [_NONE, *_NO_IDENTIFIER]),
    ],
    "length": [
        (60, "{what} must be a timedelta, not int."),
        (instant(), "{what} must be a timedelta, not datetime."),
        (timedelta(microseconds=-1), "{what} must be from 0 to 36500 days, not -1 day, 23:59:59.999999."),
        (timedelta.max, "{what} must be from 0 to 36500 days, not 999999999 days, 23:59:59.999999."),
    ],
    "record": _before(RECORD),
    "sandbox record": _before(SANDBOX),
    "instant": [
        (None, "{what} must be a datetime, not NoneType."),
        ("2026-01-01", "{what} must be a datetime, not str."),
        (datetime(2026, 1, 1).date(), "{what} must be a datetime, not date."),
        (datetime(2026, 1, 1), "{what} 2026-01-01T00:00:00 has no time zone; pass an aware datetime."),
        (_MAXIMUM, "{what} 9999-12-31T23:59:59.999999-05:00 is outside the years 1 to 9999 in UTC."),
        (
            datetime.min.replace(tzinfo=timezone(timedelta(hours=5))),
            "{what} 0001-01-01T00:00:00+05:00 is outside the years 1 to 9999 in UTC.",
        ),
    ],
    "tables": [
        ("messages", "also must be a list of names of tables, not str."),
        ({"messages"}, "also must be a list of names of tables, not set."),
        ([""], "Table name in also must not be empty."),
        ([5], "Table name in also must be a string, not int."),
        (["messages", "sessions"], "also names 'sessions', which is one of agentdb's own tables."),
    ],
    "key": [(None, "{what} must be a string, not NoneType."), (b"x", "{what} must be a string, not bytes.")],
}
REFUSED["optional instant"] = REFUSED["instant"][1:]


def _public_methods(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")}


def test_every_argument_of_every_method_is_covered_here() -> None:
    methods = _public_methods(Db) - {"run_transaction", "close", "health"}

    assert set(ARGUMENTS) == methods
    for name in methods:
        assert list(ARGUMENTS[name]) == list(inspect.signature(getattr(Db, name)).parameters)[1:]


@contextmanager
def no_sql(db: DjangoDb) -> Iterator[None]:
    def refuse(*args: object) -> None:
        pytest.fail(f"SQL ran: {args[1]}")

    with connections[db.alias].execute_wrapper(refuse):
        yield


@pytest.mark.parametrize("method", [name for name, arguments in ARGUMENTS.items() if arguments])
def test_what_no_engine_can_store_is_refused_in_the_same_words_before_any_sql(db: DjangoDb, method: str) -> None:
    valid = {name: VALID[kind] for name, (kind, _) in ARGUMENTS[method].items()}

    with no_sql(db):
        for name, (kind, what) in ARGUMENTS[method].items():
            for value, message in REFUSED[kind]:
                with pytest.raises(InvalidInputError) as raised:
                    getattr(db, method)(**valid | {name: value})
                assert str(raised.value) == message.format(what=what), (name, value)
                assert isinstance(raised.value, ValueError)


def test_sql_that_runs_is_noticed_by_the_test_above(db: DjangoDb) -> None:
    with no_sql(db), pytest.raises(pytest.fail.Exception):
        db.get_session("s1")


@pytest.mark.parametrize("longest", ["x" * 512, "é" * 256, "😀" * 128])
def test_identifiers_of_512_bytes_are_stored_and_found_in_every_place(db: DjangoDb, longest: str) -> None:
    # All different in the first bytes, so that no index entry can be compressed away, and all of full length.
    a, b, c, d = (longest[:-1] + last * len(longest[-1].encode()) for last in "abcd")

    agent = db.upsert_agent(a, "/", b)
    session = db.insert_session(a, b, c, d)
    db.update_session_runner(a, b)
    sandbox = db.insert_sandbox(a, b, "/", c, d)
    key = db.insert_api_key(a, b, c, "")

    assert db.get_agent(a, b) == agent
    assert [found.id for found in db.list_sessions(d, b)] == [session.id]
    assert [found.id for found in db.list_sessions_by_runner(b)] == [session.id]
    assert db.get_sandbox(a) == sandbox
    assert db.get_api_key_by_hash(c) == key


def test_identifiers_that_compress_badly_fit_the_index_of_four(db: DjangoDb) -> None:
    import random

    characters = random.Random(1)
    a, b, c = ("".join(chr(characters.randrange(0x10000, 0x20000)) for _ in range(128)) for _ in range(3))

    assert db.insert_session(a, b, "sb1", c) == db.get_session(a)
    assert db.update_session_runner(a, b)


def test_texts_may_be_long_empty_and_of_any_character(db: DjangoDb) -> None:
    path = "".join(map(chr, [*range(1, 0x300), 0xFDD0, 0xFFFE, 0x10FFFF])) + "%s ?'\"\\" + "x" * 100_000

    assert db.upsert_agent("a", path).path == path
    assert db.list_agents()[0].path == path
    assert db.insert_sandbox("sb1", "a", "").workspace_dir == ""


@pytest.mark.parametrize("value", ["%s", "?", "'; DROP TABLE agents; --", "\\", "$1", "a b\n\t", "\ufdd0id\ufdd0", " "])
def test_identifiers_that_look_like_something_else_are_only_text(db: DjangoDb, value: str) -> None:
    agent = db.upsert_agent(value, value, value)
    session = db.insert_session(value, value, value, value)

    assert db.get_agent(value, value) == agent
    assert db.list_sessions(value, value) == [session]
    assert db.get_session(value) == session
    assert db.delete_agent(value, value)


def test_strings_of_other_types_are_stored_by_their_value(db: DjangoDb) -> None:
    class Name(StrEnum):
        BOT = "bot"

    class Loud(str):
        def __str__(self) -> str:
            return self.upper() + "!"

    agent = db.upsert_agent(Name.BOT, Loud("/srv"))
    session = db.insert_session(Loud("s1"), Name.BOT, Name.BOT)

    assert (agent.name, agent.path) == ("bot", "/srv")
    assert db.get_agent("bot") == db.get_agent(Name.BOT) == agent
    assert db.get_session("s1") == session
    assert type(session.id) is str


@pytest.mark.parametrize("microsecond", [0, 1, 1000, 100_000, 123_456, 999_999])
def test_what_is_inserted_is_what_is_read_whatever_the_microsecond(
    db: DjangoDb, engine: str, monkeypatch: pytest.MonkeyPatch, microsecond: int
) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return instant().replace(microsecond=microsecond)

    monkeypatch.setattr("agentdb.serving.adapter.datetime", Clock)

    agent, session, sandbox, key = make_agent(db), make_session(db), make_sandbox(db), make_api_key(db)

    assert agent == db.get_agent(agent.name)
    assert session == db.get_session(session.id)
    assert sandbox == db.get_sandbox(sandbox.id)
    assert key == db.get_api_key_by_hash(key.key_hash)
    if engine == "sqlite":  # a server has its own clock
        assert {record.created_at for record in (agent, session, sandbox, key)} == {Clock.now()}
    assert db.get_idle_sandboxes(Clock.now()) == []


def test_instants_sort_by_time_however_many_digits_they_need(db: DjangoDb, url: str) -> None:
    fractions = [0, 0.000001, 0.00001, 0.1, 0.123, 0.5, 0.999999, 1]
    for number, seconds in enumerate(fractions):
        make_sandbox(db, f"sb{number}")
        set_column(url, "sandboxes", f"sb{number}", state="waiting", last_used_at=instant(seconds))

    for number, seconds in enumerate(fractions):
        assert [s.id for s in db.get_idle_sandboxes(instant(seconds))] == [f"sb{n}" for n in range(number)]


# -- tables that are not what the migrations make

MISMATCHES: dict[str, tuple[dict[str, list[str]], Callable[[DjangoDb], object], dict[str, str]]] = {
    "missing table, read": (
        {"both": ["DROP TABLE sessions"]},
        lambda db: db.get_session("s1"),
        {"sqlite": "no such table: sessions", "postgresql": 'relation "sessions" does not exist'},
    ),
    "missing table, write": (
        {"both": ["DROP TABLE sessions"]},
        lambda db: db.touch_session("s1"),
        {"sqlite": "no such table: sessions", "postgresql": 'relation "sessions" does not exist'},
    ),
    "missing table, transaction": (
        {"both": ["DROP TABLE agents"]},
        lambda db: db.delete_agent("a"),
        {"sqlite": "no such table: agents", "postgresql": 'relation "agents" does not exist'},
    ),
    "missing column, read": (
        {"both": ["ALTER TABLE api_keys RENAME COLUMN label TO title"]},
        lambda db: db.list_api_keys_by_tenant("acme"),
        {"sqlite": "no such column: api_keys.label", "postgresql": "column api_keys.label does not exist"},
    ),
    "missing column, insert": (
        {"both": ["ALTER TABLE api_keys RENAME COLUMN label TO title"]},
        make_api_key,
        {
            "sqlite": "table api_keys has no column named label",
            "postgresql": 'column "label" of relation "api_keys" does not exist',
        },
    ),
    "missing unique constraint": (
        {
            "sqlite": ["CREATE TABLE a AS SELECT * FROM agents", "DROP TABLE agents", "ALTER TABLE a RENAME TO agents"],
            "postgresql": ["ALTER TABLE agents DROP CONSTRAINT idx_agents_tenant_name"],
        },
        make_agent,
        {
            "sqlite": "ON CONFLICT clause does not match any PRIMARY KEY or UNIQUE constraint",
            "postgresql": "there is no unique or exclusion constraint matching the ON CONFLICT specification",
        },
    ),
    "column that an insert must fill": (
        {
            "sqlite": [
                "DROP TABLE api_keys",
                "CREATE TABLE api_keys (id TEXT PRIMARY KEY, tenant_id TEXT, key_hash TEXT, label TEXT, "
                "created_at DATETIME, owner TEXT NOT NULL)",
            ],
            "postgresql": ["ALTER TABLE api_keys ADD COLUMN owner text NOT NULL"],
        },
        make_api_key,
        {
            "sqlite": "NOT NULL constraint failed: api_keys.owner",
            "postgresql": 'null value in column "owner" of relation "api_keys" violates not-null constraint',
        },
    ),
    "column of another type": (
        {
            "sqlite": ["DROP TABLE sandboxes", "CREATE TABLE sandboxes (id INTEGER PRIMARY KEY, tenant_id TEXT, "
                       "session_id TEXT, agent_name TEXT, state TEXT, workspace_dir TEXT, created_at DATETIME, "
                       "last_used_at DATETIME)"],
            "postgresql": ["ALTER TABLE sandboxes ALTER COLUMN workspace_dir TYPE integer USING 1"],
        },
        make_sandbox,
        {"sqlite": "datatype mismatch", "postgresql": 'invalid input syntax for type integer: "/tmp/sb1"'},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISMATCHES)
def test_tables_that_do_not_fit_are_a_schema_mismatch(db: DjangoDb, url: str, engine: str, case: str) -> None:
    changes, call, reasons = MISMATCHES[case]
    spoken = "sqlite" if engine == "sqlite" else "postgresql"
    for sql in [*changes.get("both", []), *changes.get(spoken, [])]:
        execute(url, sql)

    with pytest.raises(SchemaMismatchError) as raised:
        call(db)

    assert str(raised.value) == (
        f"{db.describe()} does not have the tables agentdb works on: {reasons[spoken]}. Run 'agentdb verifydb'."
    )
    assert raised.value.__cause__ is not None
    with pytest.raises(SchemaMismatchError):
        db.run_transaction(lambda db: call(db))  # type: ignore[arg-type]
    assert db.list_sessions("t") == [] if "sessions" not in str(changes) else True


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        ("1700000000", "1700000000"),
        ("'yesterday'", "yesterday"),
        ("x'ff'", r"\xff"),
    ],
)
def test_a_stored_value_that_is_no_instant_is_named_on_sqlite(
    sqlite_db: tuple[DjangoDb, str], stored: str, shown: str
) -> None:
    db, url = sqlite_db
    make_session(db)
    execute(url, f"UPDATE sessions SET created_at = {stored}")

    _reads_fail(db, shown)


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        ("infinity", "infinity"),
        ("0044-03-15 BC", "0044-03-15 00:00:00+00 BC"),
    ],
)
def test_a_stored_value_that_python_cannot_hold_is_named_on_postgresql(
    postgres_db: tuple[DjangoDb, str], stored: str, shown: str
) -> None:
    db, url = postgres_db
    make_session(db)
    execute(url, f"UPDATE sessions SET created_at = '{stored}'")

    _reads_fail(db, shown)


def _reads_fail(db: DjangoDb, value: str) -> None:
    for read in (lambda: db.get_session("s1"), lambda: db.list_sessions()):
        with pytest.raises(SchemaMismatchError) as raised:
            read()
        assert str(raised.value) == (
            f"{db.describe()} holds a value that cannot be read: row 's1' of sessions has created_at = {value!r}. "
            "Correct it; 'agentdb verifydb' finds others."
        )
    assert db.touch_session("s1") is True


def test_an_error_of_the_server_quotes_no_row(postgres_db: tuple[DjangoDb, str]) -> None:
    db, url = postgres_db
    execute(url, "ALTER TABLE api_keys ADD CONSTRAINT short CHECK (length(label) < 3)")

    with pytest.raises(SchemaMismatchError) as raised:
        make_api_key(db, key_hash="0123abcd", label="long label")

    assert "0123abcd" not in str(raised.value)
    assert 'violates check constraint "short".' in str(raised.value)


# -- records


def test_records_are_immutable_and_compare_by_value(db: DjangoDb) -> None:
    for record in (make_agent(db), make_session(db), make_sandbox(db), make_api_key(db)):
        for field in dataclasses.fields(record):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(record, field.name, "other")
        assert dataclasses.replace(record) == record
        assert hash(dataclasses.replace(record)) == hash(record)
        assert dataclasses.replace(record, id="other") != record


def test_records_have_the_fields_of_the_contract_in_order() -> None:
    assert {kind.__name__: [field.name for field in dataclasses.fields(kind)] for kind in _RECORDS} == {
        "AgentRecord": ["id", "tenant_id", "name", "version", "path", "created_at", "updated_at"],
        "SessionRecord": [
            "id", "tenant_id", "agent_name", "sandbox_id", "status", "runner_id", "created_at", "last_active_at",
        ],
        "SandboxRecord": [
            "id", "tenant_id", "session_id", "agent_name", "state", "workspace_dir", "created_at", "last_used_at",
        ],
        "ApiKeyRecord": ["id", "tenant_id", "key_hash", "label", "created_at"],
    }  # fmt: skip


_RECORDS = (agentdb.AgentRecord, agentdb.SessionRecord, agentdb.SandboxRecord, agentdb.ApiKeyRecord)


def test_enums_are_those_of_the_contract() -> None:
    assert [str(status) for status in agentdb.SessionStatus] == _STATUSES.split(", ")
    assert [str(state) for state in agentdb.SandboxState] == _STATES.split(", ")


def test_errors_are_below_one_base() -> None:
    from agentdb import errors

    names = {name for name, value in vars(errors).items() if isinstance(value, type) and name.endswith("Error")}

    assert names == {
        "AgentDbError", "OutcomeUnknownError", "InvalidInputError", "DuplicateKeyError", "ConflictError",
        "SchemaOutOfDateError",
        "SchemaMismatchError", "DatabaseUnavailableError", "DatabaseClosedError",
    }  # fmt: skip
    assert all(issubclass(getattr(errors, name), errors.AgentDbError) for name in names)
    assert issubclass(errors.InvalidInputError, ValueError)
    assert all(getattr(agentdb, name) is getattr(errors, name) for name in names)


# -- tenants


def test_two_tenants_with_the_same_names_see_and_change_only_their_own(db: DjangoDb) -> None:
    tenants = ("acme", "other", "default")
    made = {}
    for tenant in tenants:
        made[tenant] = (
            make_agent(db, path=f"/{tenant}", tenant_id=tenant),
            make_session(db, f"{tenant}-s", tenant_id=tenant),
            make_sandbox(db, f"{tenant}-sb", tenant_id=tenant),
            make_api_key(db, f"{tenant}-k", tenant, f"{tenant}-hash"),
        )

    for tenant in tenants:
        agent, session, _, key = made[tenant]
        assert db.get_agent("support-bot", tenant) == agent
        assert db.list_agents(tenant) == [agent]
        assert db.list_sessions(tenant) == [session]
        assert db.list_sessions(tenant, "support-bot") == [session]
        assert db.list_sessions(tenant, limit=10) == [session]
        assert db.list_api_keys_by_tenant(tenant) == [key]
    db.upsert_agent("support-bot", "/new", "acme")
    db.delete_agent("support-bot", "acme")
    for tenant in ("other", "default"):
        agent, session, sandbox, key = made[tenant]
        assert db.list_agents(tenant) == [agent]
        assert db.list_sessions(tenant) == [session]
        assert db.get_sandbox(sandbox.id) == sandbox
        assert db.list_api_keys_by_tenant(tenant) == [key]
    assert db.list_sessions("acme") == []
    assert [*db.list_agents("ACME"), *db.list_sessions("acm"), *db.list_api_keys_by_tenant("acme ")] == []


@pytest.fixture
def sqlite_db(tmp_path: Any) -> Iterator[tuple[DjangoDb, str]]:
    url = f"sqlite:///{tmp_path}/one.sqlite3"
    with agentdb.connect(url, migrate=True) as db:
        yield db, url


@pytest.fixture
def postgres_db(make_postgres_database: Callable[..., str]) -> Iterator[tuple[DjangoDb, str]]:
    url = make_postgres_database()
    with agentdb.connect(url, migrate=True) as db:
        yield db, url


class _Spelt(datetime):
    """A datetime of another library, which writes itself in its own way."""

    def __str__(self) -> str:
        return "zzz"

    def isoformat(self, *_: Any, **__: Any) -> str:
        return "zzz"

    def astimezone(self, tz: Any = None) -> Any:
        return _Spelt(1, 1, 1, tzinfo=tz)


def test_a_datetime_of_another_class_means_the_instant_it_is(db: Db) -> None:
    db.insert_sandbox("sb", "a", "/w")
    db.update_sandbox_state("sb", "waiting")
    before = _Spelt(2020, 1, 1, tzinfo=timezone(timedelta(hours=2)))
    after = _Spelt(2100, 1, 1, tzinfo=timezone(timedelta(hours=2)))

    assert db.get_idle_sandboxes(before) == []
    assert [sandbox.id for sandbox in db.get_idle_sandboxes(after)] == ["sb"]
