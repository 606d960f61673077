"""What every engine refuses, with the same words and before any SQL; and what the drivers say in agentdb's terms."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from enum import StrEnum
from typing import Any

import pytest
from django.db import connections

import agentdb
from agentdb import Db, DjangoDb, InvalidInputError, SchemaMismatchError
from agentdb.testing.conformance.refusals import (
    METHODS,
    refused_arguments,
)
from tests.helpers.factories import (
    execute,
    instant,
    make_agent,
    make_api_key,
    make_sandbox,
    make_session,
    set_column,
)


@contextmanager
def no_sql(db: DjangoDb) -> Iterator[None]:
    def refuse(*args: object) -> None:
        pytest.fail(f"SQL ran: {args[1]}")

    with connections[db.alias].execute_wrapper(refuse):
        yield


@pytest.mark.parametrize("method", METHODS)
def test_what_no_engine_can_store_is_refused_before_any_sql(
    db: DjangoDb, method: str
) -> None:
    with no_sql(db):
        for arguments, _ in refused_arguments(method):
            with pytest.raises(InvalidInputError):
                getattr(db, method)(**arguments)


def test_sql_that_runs_is_noticed_by_the_test_above(db: DjangoDb) -> None:
    with no_sql(db), pytest.raises(pytest.fail.Exception):
        db.get_session("s1")


def test_input_is_refused_before_anybody_asks_whether_the_db_is_open() -> None:
    db = agentdb.connect("sqlite://:memory:", migrate=True)
    db.close()

    for method in METHODS:
        for arguments, _ in refused_arguments(method):
            with pytest.raises(InvalidInputError):
                getattr(db, method)(**arguments)

    def generator(db: Db) -> Iterator[None]:
        yield

    async def asynchronous_generator(db: Db) -> AsyncIterator[None]:
        yield

    async def coroutine(db: Db) -> None:
        pass

    for function in (generator, asynchronous_generator, coroutine):
        with pytest.raises(InvalidInputError) as refused:
            db.run_transaction(function)
        assert (
            str(refused.value)
            == "run_transaction() takes a plain function, not a coroutine or generator, which would run after its end."
        )


@pytest.mark.parametrize("longest", ["x" * 512, "é" * 256, "😀" * 128])
def test_identifiers_of_512_bytes_are_stored_and_found_in_every_place(
    db: DjangoDb, longest: str
) -> None:
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
    a, b, c = (
        "".join(chr(characters.randrange(0x10000, 0x20000)) for _ in range(128))
        for _ in range(3)
    )

    assert db.insert_session(a, b, "sb1", c) == db.get_session(a)
    assert db.update_session_runner(a, b)


def test_texts_may_be_long_empty_and_of_any_character(db: DjangoDb) -> None:
    path = (
        "".join(map(chr, [*range(1, 0x300), 0xFDD0, 0xFFFE, 0x10FFFF]))
        + "%s ?'\"\\"
        + "x" * 100_000
    )

    assert db.upsert_agent("a", path).path == path
    assert db.list_agents()[0].path == path
    assert db.insert_sandbox("sb1", "a", "").workspace_dir == ""


@pytest.mark.parametrize(
    "value",
    [
        "%s",
        "?",
        "'; DROP TABLE agents; --",
        "\\",
        "$1",
        "a b\n\t",
        "\ufdd0id\ufdd0",
        " ",
    ],
)
def test_identifiers_that_look_like_something_else_are_only_text(
    db: DjangoDb, value: str
) -> None:
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

    monkeypatch.setattr("agentdb.serving.compiled.datetime", Clock)

    agent, session, sandbox, key = (
        make_agent(db),
        make_session(db),
        make_sandbox(db),
        make_api_key(db),
    )

    assert agent == db.get_agent(agent.name)
    assert session == db.get_session(session.id)
    assert sandbox == db.get_sandbox(sandbox.id)
    assert key == db.get_api_key_by_hash(key.key_hash)
    if engine == "sqlite":  # a server has its own clock
        assert {record.created_at for record in (agent, session, sandbox, key)} == {
            Clock.now()
        }
    assert db.get_idle_sandboxes(Clock.now()) == []


def test_instants_sort_by_time_however_many_digits_they_need(
    db: DjangoDb, url: str
) -> None:
    fractions = [0, 0.000001, 0.00001, 0.1, 0.123, 0.5, 0.999999, 1]
    for number, seconds in enumerate(fractions):
        make_sandbox(db, f"sb{number}")
        set_column(
            url,
            "sandboxes",
            f"sb{number}",
            state="waiting",
            last_used_at=instant(seconds),
        )

    for number, seconds in enumerate(fractions):
        assert [s.id for s in db.get_idle_sandboxes(instant(seconds))] == [
            f"sb{n}" for n in range(number)
        ]


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
        {
            "sqlite": "no such column: api_keys.label",
            "postgresql": "column api_keys.label does not exist",
            "cockroachdb": 'column "api_keys.label" does not exist',
        },
    ),
    "missing column, insert": (
        {"both": ["ALTER TABLE api_keys RENAME COLUMN label TO title"]},
        make_api_key,
        {
            "sqlite": "table api_keys has no column named label",
            "postgresql": 'column "label" of relation "api_keys" does not exist',
            "cockroachdb": 'column "label" does not exist',
        },
    ),
    "missing unique constraint": (
        {
            "sqlite": ["CREATE TABLE a AS SELECT * FROM agents", "DROP TABLE agents", "ALTER TABLE a RENAME TO agents"],
            "postgresql": ["ALTER TABLE agents DROP CONSTRAINT idx_agents_tenant_name"],
            "cockroachdb": ["DROP INDEX idx_agents_tenant_name CASCADE"],
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
            "cockroachdb": 'null value in column "owner" violates not-null constraint',
        },
    ),
    "column of another type": (
        {
            "sqlite": ["DROP TABLE sandboxes", "CREATE TABLE sandboxes (id INTEGER PRIMARY KEY, tenant_id TEXT, "
                       "session_id TEXT, agent_name TEXT, state TEXT, workspace_dir TEXT, created_at DATETIME, "
                       "last_used_at DATETIME)"],
            "postgresql": ["ALTER TABLE sandboxes ALTER COLUMN workspace_dir TYPE integer USING 1"],
            "cockroachdb": ["ALTER TABLE sandboxes DROP COLUMN workspace_dir",
                            "ALTER TABLE sandboxes ADD COLUMN workspace_dir int NOT NULL DEFAULT 1"],
        },
        make_sandbox,
        {
            "sqlite": "datatype mismatch",
            "postgresql": 'invalid input syntax for type integer: "/tmp/sb1"',
            "cockroachdb": 'error in argument for $6: could not parse "/tmp/sb1" as type int: '
                           'strconv.ParseInt: parsing "/tmp/sb1": invalid syntax',
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISMATCHES)
def test_tables_that_do_not_fit_are_a_schema_mismatch(
    db: DjangoDb, url: str, engine: str, case: str
) -> None:
    changes, call, reasons = MISMATCHES[case]
    spoken = "postgresql" if engine == "cockroachdb" else engine
    own = changes.get(engine, changes.get(spoken, []))
    for sql in [*changes.get("both", []), *own]:
        execute(url, sql)

    with pytest.raises(SchemaMismatchError) as raised:
        call(db)

    assert str(raised.value) == (
        f"{db.describe()} does not have the tables agentdb works on: "
        f"{reasons.get(engine, reasons[spoken])}. Run 'agentdb verifydb'."
    )
    assert raised.value.__cause__ is not None
    with pytest.raises(SchemaMismatchError):
        db.run_transaction(lambda db: call(db))
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


def test_an_error_of_the_server_quotes_no_row(
    postgres_db: tuple[DjangoDb, str],
) -> None:
    db, url = postgres_db
    execute(url, "ALTER TABLE api_keys ADD CONSTRAINT short CHECK (length(label) < 3)")

    with pytest.raises(SchemaMismatchError) as raised:
        make_api_key(db, key_hash="0123abcd", label="long label")

    assert "0123abcd" not in str(raised.value)
    assert 'violates check constraint "short".' in str(raised.value)


# -- records


def test_records_are_immutable_and_compare_by_value(db: DjangoDb) -> None:
    for record in (
        make_agent(db),
        make_session(db),
        make_sandbox(db),
        make_api_key(db),
    ):
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


_RECORDS = (
    agentdb.AgentRecord,
    agentdb.SessionRecord,
    agentdb.SandboxRecord,
    agentdb.ApiKeyRecord,
)


def test_enums_are_those_of_the_contract() -> None:
    assert (
        " ".join(agentdb.SessionStatus) == "starting active paused ended error stopped"
    )
    assert " ".join(agentdb.SandboxState) == "cold warming warm waiting running"


def test_errors_are_below_one_base() -> None:
    from agentdb import errors

    names = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and name.endswith("Error")
    }

    assert names == {
        "AgentDbError", "OutcomeUnknownError", "InvalidInputError", "DuplicateKeyError", "ConflictError",
        "SchemaOutOfDateError",
        "SchemaMismatchError", "DatabaseUnavailableError", "DatabaseClosedError",
    }  # fmt: skip
    assert all(issubclass(getattr(errors, name), errors.AgentDbError) for name in names)
    assert issubclass(errors.InvalidInputError, ValueError)
    assert all(getattr(agentdb, name) is getattr(errors, name) for name in names)


@pytest.fixture
def sqlite_db(tmp_path: Any) -> Iterator[tuple[DjangoDb, str]]:
    url = f"sqlite:///{tmp_path}/one.sqlite3"
    with agentdb.connect(url, migrate=True) as db:
        yield db, url


@pytest.fixture
def postgres_db(
    make_postgres_database: Callable[..., str],
) -> Iterator[tuple[DjangoDb, str]]:
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
