"""The executor by itself, over queries that no method of the interface has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple
from typing import Any

import pytest
from django.db import connections, transaction

import agentdb
from agentdb import (
    AgentDbError,
    ApiKeyRecord,
    DatabaseClosedError,
    DatabaseUnavailableError,
    Db,
    DjangoDb,
    DuplicateKeyError,
    InvalidInputError,
    SchemaMismatchError,
)
from agentdb.expressions import text
from agentdb.models import Agent, ApiKey
from agentdb.serving.compiled import Delete, Insert, Select, SelectCount, Update
from agentdb.serving.connections.threads import Threads
from agentdb.serving.opening import temporary_alias
from tests.conftest import ENGINE_NAMES
from tests.helpers.factories import execute, set_column

INSERT = Insert(ApiKey)
PUT = Insert(
    Agent,
    unique=("tenant_id", "name"),
    replace=("path",),
    count_up="version",
)
ALL = Select(lambda _: ApiKey.objects.order_by("id"))
ONE = Select(lambda _: ApiKey.objects.filter(id=text("id")))
HOW_MANY = SelectCount(lambda _: ApiKey.objects.all())
RENAME = Update(lambda _: ApiKey.objects.exclude(label="old"), {"label": "old"})
DELETE = Delete(lambda _: ApiKey.objects.filter(id=text("id")))


@pytest.fixture
def executor(db: DjangoDb) -> DjangoDb:
    return db


def columns(*values: Any) -> tuple[Any, ...]:
    return values


def insert(executor: DjangoDb, id: str) -> tuple[Any, ...]:
    record = executor._insert(
        ApiKeyRecord,
        INSERT,
        "The id {id!r} is taken.",
        id=id,
        tenant_id="acme",
        key_hash=id,
        label="new",
    )
    return astuple(record)


def test_statements_return_what_the_caller_makes_of_their_columns(
    executor: DjangoDb,
) -> None:
    row = insert(executor, "k1")

    assert row[:4] == ("k1", "acme", "k1", "new")
    assert executor._first(columns, ONE, id="k1") == row
    assert executor._first(columns, ONE, id="k2") is None
    assert executor._all(columns, ALL) == [row]
    for version in (1, 2):
        put = executor._one(
            columns,
            PUT,
            id="a1",
            tenant_id="acme",
            name="a1",
            path="/new",
            version=1,
        )
        assert put[:5] == ("a1", "acme", "a1", version, "/new")
    assert executor._one(int, HOW_MANY) == 1
    assert (executor._count(RENAME), executor._count(RENAME)) == (1, 0)
    assert (executor._count(DELETE, id="k1"), executor._count(DELETE, id="k1")) == (
        1,
        0,
    )


def test_a_taken_key_is_told_in_the_callers_words(executor: DjangoDb) -> None:
    insert(executor, "k1")

    with pytest.raises(DuplicateKeyError) as raised:
        insert(executor, "k1")

    assert str(raised.value) == "The id 'k1' is taken."


@pytest.mark.parametrize(
    "engine", ["sqlite"]
)  # a PostgreSQL column holds nothing but timestamps
def test_a_value_that_does_not_convert_is_a_mismatch(
    executor: DjangoDb, url: str
) -> None:
    insert(executor, "k1")
    set_column(url, "api_keys", "k1", created_at="soon")

    for read in (
        lambda: executor._first(columns, ONE, id="k1"),
        lambda: executor._all(columns, ALL),
    ):
        with pytest.raises(
            SchemaMismatchError, match="row 'k1' of api_keys has created_at = 'soon'"
        ):
            read()


def test_a_transaction_is_whole(executor: DjangoDb, url: str, engine: str) -> None:
    def work(_: DjangoDb) -> str:
        insert(executor, "k1")
        if engine != "cockroachdb":  # where it would wait for this transaction
            assert execute(url, "SELECT count(*) FROM api_keys") == [(0,)]
        return "done"

    def fail(_: DjangoDb) -> None:
        insert(executor, "k2")
        raise ZeroDivisionError

    assert executor._transaction(work) == "done"
    with pytest.raises(ZeroDivisionError):
        executor._transaction(fail)

    assert execute(url, "SELECT id FROM api_keys") == [("k1",)]


class Stop(BaseException):
    """As a signal handler raises."""


@pytest.mark.parametrize("inner", [False, True], ids=["outermost", "inner"])
def test_an_exception_from_nowhere_reaches_the_caller_also_where_undoing_fails(
    executor: DjangoDb, inner: bool
) -> None:
    def lose_the_connection(_: DjangoDb) -> None:
        insert(executor, "lost")
        executor._threads.slot().wrapper.connection.close()
        raise Stop

    with pytest.raises(Stop):
        executor._transaction(
            (lambda _: executor._transaction(lose_the_connection))
            if inner
            else lose_the_connection
        )

    insert(executor, "kept")
    assert [row[0] for row in executor._all(columns, ALL)] == ["kept"]


def test_a_second_exception_from_nowhere_while_the_first_is_undone_reaches_the_caller(
    executor: DjangoDb, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rollback() -> None:
        raise Stop("second")

    def work(_: DjangoDb) -> None:
        insert(executor, "lost")
        monkeypatch.setattr(
            executor._threads.slot().open_in_block(), "roll_back", rollback
        )
        raise Stop("first")

    with pytest.raises(
        Stop, match="second"
    ):  # and not what follows from it, as that autocommit cannot be changed now
        executor._transaction(work)

    monkeypatch.undo()
    insert(executor, "kept")
    assert [row[0] for row in executor._all(columns, ALL)] == ["kept"]


@pytest.mark.parametrize(
    "at", ["_savepoint", "_savepoint_rollback", "_savepoint_commit"]
)
def test_an_inner_transaction_that_may_not_be_undone_dooms_the_outer_one(
    executor: DjangoDb, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(sid: str) -> None:
        raise Stop("second")

    def inner(_: DjangoDb) -> None:
        insert(executor, "lost")
        if at == "_savepoint_rollback":
            raise Stop("first")

    def outer(_: DjangoDb) -> None:
        monkeypatch.setattr(executor._threads.slot().wrapper, at, stop)
        with pytest.raises(Stop, match="second"):
            executor._transaction(inner)
        monkeypatch.undo()

    with pytest.raises(
        AgentDbError, match="The transaction failed inside the function"
    ):
        executor._transaction(outer)

    assert executor._all(columns, ALL) == []


@pytest.mark.parametrize("engine", ["postgresql"])
def test_a_read_that_loses_its_connection_again_is_not_repeated_again(
    executor: DjangoDb, caplog: pytest.LogCaptureFixture
) -> None:
    insert(executor, "k1")
    ends_its_session = "(SELECT pg_terminate_backend(pg_backend_pid()))"
    query = Select(lambda p: ApiKey.objects.extra(where=[ends_its_session]))

    with caplog.at_level("INFO", "agentdb"), pytest.raises(DatabaseUnavailableError):
        executor._all(columns, query)

    assert len(caplog.records) == 1
    assert insert(executor, "k2")


def test_a_failure_dooms_the_transaction_and_not_the_next(
    executor: DjangoDb, url: str
) -> None:
    execute(url, "ALTER TABLE api_keys RENAME TO hidden")

    def work(_: DjangoDb) -> None:
        for _attempt in range(2):
            with pytest.raises(SchemaMismatchError):
                executor._count(RENAME)

    with pytest.raises(SchemaMismatchError):
        executor._transaction(work)

    execute(url, "ALTER TABLE hidden RENAME TO api_keys")
    executor._transaction(lambda _: insert(executor, "k1"))
    assert executor._one(int, HOW_MANY) == 1


def test_describe_names_the_place_before_and_after_close(
    executor: DjangoDb, engine: str
) -> None:
    place = executor.describe()
    executor.close()

    assert place.startswith(f"{ENGINE_NAMES[engine]} database ")
    assert executor.describe() == place
    calls: list[Callable[[], object]] = [
        lambda: executor._count(RENAME),
        lambda: executor._transaction(lambda _: None),
    ]
    for call in [*calls, executor._threads.ensure_connected]:
        with pytest.raises(DatabaseClosedError):
            call()


def test_an_unknown_alias_is_refused_with_the_known_ones(executor: DjangoDb) -> None:
    with pytest.raises(
        InvalidInputError, match=r"^Unknown database alias 'nowhere'; known are "
    ):
        Threads("nowhere")


def test_nothing_but_agentdbs_errors_leaves_the_executor(
    executor: DjangoDb, url: str
) -> None:
    execute(url, "DROP TABLE api_keys")

    calls: list[Callable[[], object]] = [
        lambda: insert(executor, "k1"),
        lambda: executor._one(int, HOW_MANY),
        lambda: executor._count(RENAME),
    ]
    for call in calls:
        with pytest.raises(AgentDbError):
            call()
        with pytest.raises(AgentDbError):
            executor._transaction(lambda _, call=call: call())  # type: ignore[misc]


def test_a_drivers_words_are_passed_on_without_the_password() -> None:
    with temporary_alias("postgresql://me:s3cret@nowhere.invalid/agents") as alias:
        engine = Threads(alias).engine

        assert engine.reason(
            Exception("bad  option s3cret in\n'password=s3cret'.")
        ) == ("bad option *** in 'password=***'")


def test_inside_a_transaction_nothing_is_asked_before_a_call(
    make_postgres_database: Callable[..., str], _migrated_postgres: str
) -> None:
    def refuse() -> bool:
        raise AssertionError("asked whether the connection has something to read")

    url = make_postgres_database(template=_migrated_postgres)
    with agentdb.connect(url) as db, transaction.atomic(using=db.alias):
        db.list_agents()
        connection: Any = db._threads.slot().open_in_block()
        usual, connection._is_readable = connection._is_readable, refuse
        assert db.list_agents() == []
        connection._is_readable = usual


def test_a_column_of_a_type_that_the_driver_does_not_know_is_read_as_text(
    make_postgres_database: Callable[..., str], _migrated_postgres: str
) -> None:
    url = make_postgres_database(template=_migrated_postgres)
    with agentdb.connect(url) as db:
        db.insert_api_key("k1", "acme", "hash-1", "cold")
        with connections[db.alias].cursor() as cursor:
            cursor.execute("CREATE TYPE temperature AS ENUM ('cold', 'hot')")
            cursor.execute(
                "ALTER TABLE api_keys ALTER label DROP DEFAULT, "
                "ALTER label TYPE temperature USING label::temperature"
            )

    with agentdb.connect(url) as db:
        [record] = db.list_api_keys_by_tenant("acme")
    assert record.label == "cold"


@pytest.mark.parametrize("how", ["the server", "this side"])
def test_after_a_connection_is_lost_in_a_transaction_each_call_says_what_was_said_first(
    make_postgres_database: Callable[..., str], _migrated_postgres: str, how: str
) -> None:
    url = make_postgres_database(template=_migrated_postgres)
    with agentdb.connect(url) as db, transaction.atomic(using=db.alias):
        db.list_agents()
        if how == "the server":
            execute(
                url,
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()",
            )
        else:
            db._threads.slot().discard()
        with pytest.raises(AgentDbError) as first:
            db.list_agents()
        with pytest.raises(AgentDbError) as second:
            db.list_agents()
        assert str(first.value) == str(second.value)


def test_an_inner_failure_that_cannot_be_undone_is_what_the_outer_transaction_reports(
    make_postgres_database: Callable[..., str], _migrated_postgres: str
) -> None:
    url = make_postgres_database(template=_migrated_postgres)

    def inner(tx: Db) -> None:
        try:
            tx.count_sandboxes()
        finally:
            # The savepoint is lost too, and with it the way back to it.
            execute(
                url,
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()",
            )

    def outer(tx: Db) -> None:
        for call in (lambda: tx.run_transaction(inner), tx.list_agents):
            with pytest.raises(SchemaMismatchError, match="sandboxes"):
                call()

    with agentdb.connect(url) as db:
        execute(url, "ALTER TABLE sandboxes RENAME TO hidden")
        with pytest.raises(SchemaMismatchError, match="sandboxes"):
            db.run_transaction(outer)
