"""The cached SQL is what Django would send today, and its conversions are Django's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from django.db import connections, models
from django.db.models import DateTimeField, QuerySet, Value

import agentdb
from agentdb import DjangoDb
from agentdb.expressions import Parameter, text
from agentdb.expressions import instant as named_instant
from agentdb.models import Agent, ApiKey, Sandbox, Session
from agentdb.serving import queries
from agentdb.serving.compiled import (
    LIMIT,
    ROWS_A_BATCH,
    Delete,
    Insert,
    Query,
    Scope,
    Select,
    SelectCount,
    Statement,
    Together,
    Update,
)
from tests.helpers.factories import instant, make_agent, make_session
from tests.serving.test_query_plans import CALLS

NOW = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)

# What each parameter is while both sides are compared.
VALUES: dict[str, Any] = {
    "id": "an id", "tenant_id": "a tenant", "name": "a name", "path": "a path", "agent": "an agent",
    "agent_name": "an agent", "sandbox_id": "a sandbox", "session_id": "a session", "runner_id": "a runner",
    "status": "active", "state": "cold", "workspace_dir": "a folder", "key_hash": "a hash", "bare_hash": "another",
    "now": NOW, "created_at": NOW + timedelta(seconds=1), "older_than": NOW + timedelta(seconds=2), "limit": 7,
    "label": "a label", "version": 1,
    "ended_before": NOW + timedelta(seconds=3), "session_ids": "[]", "ids": "[]", "only_if": "a condition",
    "value0": "a status", "value1": "another status", "silent_for": timedelta(minutes=1),
}  # fmt: skip


@pytest.fixture
def plain_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the ORM find values in the place of parameters, as it has them in any other query."""

    def as_sql(self: Parameter, compiler: Any, connection: Any) -> Any:
        value, field = VALUES[self.value], self.output_field
        if isinstance(value, timedelta) and connection.vendor == "sqlite":
            value, field = NOW - value, DateTimeField()
        return Value(value, field).as_sql(compiler, connection)

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return NOW

    monkeypatch.setattr(Parameter, "as_sql", as_sql)
    monkeypatch.setattr("agentdb.serving.compiled.datetime", Clock)


def _compiled(db: DjangoDb) -> dict[Query, Statement]:
    """What every method of Db sends, in every form."""
    for _, call in CALLS.values():
        call(db)
    db.count_sandboxes()
    db.mark_all_sandboxes_cold()
    db.prune_sessions(instant(), 1)
    return db._statements


def test_every_query_of_the_adapter_is_compared_here(sqlite_db: DjangoDb) -> None:
    make_session(sqlite_db)
    sqlite_db.update_session_status("s1", "ended")
    sqlite_db.prune_sessions(
        instant(10**9), 1
    )  # goes on to the sandboxes of what it has found
    compiled = _compiled(sqlite_db)

    for name, value in vars(queries).items():
        for query in value.values() if isinstance(value, dict) else [value]:
            if isinstance(query, Select | SelectCount | Update | Delete | Insert):
                assert query in compiled, name


class _Seen(Exception):
    pass


def _what_the_orm_sends(alias: str, run: Callable[[], object]) -> tuple[str, list[Any]]:
    """Return the first statement and its parameters, and send it to no database."""
    seen: list[tuple[str, list[Any]]] = []

    def look(
        execute: object, sql: str, params: Any, many: bool, context: object
    ) -> None:
        if sql.startswith("BEGIN"):
            return
        seen.append((sql, list(params or [])))
        raise _Seen

    with connections[alias].execute_wrapper(look), pytest.raises(_Seen):
        run()
    return seen[0]


def _by_the_orm(alias: str, query: Any, built: Any) -> Callable[[], object]:
    if isinstance(query, Insert):
        instance = built
        manager = type(instance)._default_manager.using(alias)
        if not query.unique:
            return lambda: instance.save(using=alias, force_insert=True)
        return lambda: manager.bulk_create(
            [instance],
            update_conflicts=True,
            unique_fields=list(query.unique),
            update_fields=list(query.replace),
        )
    queryset: QuerySet[Any] = built.using(alias)
    if isinstance(query, SelectCount):
        return queryset.count
    if isinstance(query, Update):
        return lambda: queryset.update(**query.values)
    if isinstance(query, Delete):
        return queryset.delete
    return lambda: list(queryset)


def test_cached_statements_are_what_the_orm_sends(
    db: DjangoDb, engine: str, request: pytest.FixtureRequest
) -> None:
    make_session(db)
    compiled = list(_compiled(db).items())
    request.getfixturevalue("plain_values")
    for query, statement in compiled:
        if not isinstance(query, Together):
            _compare(db.alias, engine, query, statement)


def _compare(alias: str, engine: str, query: Any, statement: Statement) -> None:
    built = _built(alias, query)
    parts = [
        _what_the_orm_sends(alias, _by_the_orm(alias, query, part))
        for part in _as_list(built)
    ]
    sql, params = parts[0]
    if len(parts) > 1:
        sql = " UNION ALL ".join(
            f"SELECT * FROM ({part}) part_{number}"
            for number, (part, _) in enumerate(parts)
        )
        params = [value for _, values in parts for value in values]
    compiled, returning, columns = statement.sql.partition(" RETURNING ")
    if isinstance(query, Insert):
        # Django returns the columns that the database fills; here it is every column, or none where all are given.
        sql = sql.partition(" RETURNING ")[0]
        if not query.unique:
            target = "" if query.model is ApiKey else "(id) "
            sql += f" ON CONFLICT {target}DO NOTHING"
        model = type(built)
        # Only the server knows its time; one column says it for all.
        by_server = (
            [f for f in model._meta.concrete_fields if f.name == "created_at"]
            if engine != "sqlite"
            else []
        )
        wanted = model._meta.concrete_fields if query.unique else by_server
        assert bool(returning) is bool(wanted)
        assert columns == ", ".join(
            f'"{model._meta.db_table}"."{f.column}"' for f in wanted
        )
        # The increment is what bulk_create() cannot say.
        if query.unique:
            compiled, comma, _ = compiled.partition(
                ', "version" = agents."version" + 1'
            )
            assert comma
    else:
        assert bool(returning) is bool(getattr(query, "returning", False))
    limits = [slot[0] == "limit" for slot in statement.slots]
    bound = [
        value
        for value, limit in zip(statement.bind(VALUES), limits, strict=True)
        if not limit
    ]
    sql = sql.replace(f"LIMIT {LIMIT}", "LIMIT %s")
    if engine == "cockroachdb" and getattr(query, "bulk", False):
        sql += f" LIMIT {ROWS_A_BATCH}"
    assert compiled == (sql.replace("%s", "?") if engine == "sqlite" else sql)
    assert [_comparable(value) for value in bound] == [
        _comparable(value) for value in params
    ]


def _built(alias: str, query: Any) -> Any:
    """Return the querysets that the ORM runs, or the instance that it inserts."""
    if not isinstance(query, Insert):
        return query.build(Scope(connections[alias]))
    return query.model(**query.row())


def _as_list(built: Any) -> list[Any]:
    return built if isinstance(built, list) else [built]


def _comparable(value: object) -> object:
    return value.obj if hasattr(value, "obj") else value


def test_what_the_orm_sends_is_compared_and_not_only_looked_at(db: DjangoDb) -> None:
    statement = queries.GET_SESSION.compile(Scope(connections[db.alias]))

    sql, _ = _what_the_orm_sends(
        db.alias, lambda: list(Session.objects.using(db.alias).filter(agent_name="x"))
    )

    assert statement.sql != sql.replace("%s", "?")


# -- records against the ORM's own instances


def test_records_equal_the_instances_of_the_orm(db: DjangoDb) -> None:
    agent, session = make_agent(db), make_session(db)

    for record, model in ((agent, Agent), (session, Session)):
        instance = model._default_manager.using(db.alias).get(id=record.id)
        assert {field: getattr(record, field) for field in record.__slots__} == {
            field.attname: getattr(instance, field.attname)
            for field in model._meta.concrete_fields
        }


# -- instants

_ZONES = [
    UTC,
    timezone(timedelta(hours=5, minutes=30)),
    timezone(timedelta(hours=-11, seconds=-7)),
]
INSTANTS = [
    instant.astimezone(zone) if 1 < instant.year < 9999 else instant
    for instant in [
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(1, 1, 1, microsecond=1, tzinfo=UTC),
        datetime(999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        datetime(1901, 1, 1, microsecond=1, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        datetime(2024, 2, 29, 12, 30, 15, tzinfo=UTC),
        datetime(2026, 3, 1, 12, 0, 0, 100000, tzinfo=UTC),
        datetime(2026, 3, 1, 12, 0, 0, 1000, tzinfo=UTC),
        datetime(2026, 3, 29, 1, 30, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    ]
    for zone in _ZONES
]


@pytest.fixture
def sqlite_db() -> Iterator[DjangoDb]:
    with agentdb.connect("sqlite://:memory:", migrate=True) as db:
        yield db


def test_instants_are_written_and_read_as_django_does_on_sqlite(
    sqlite_db: DjangoDb,
) -> None:
    connection = connections[sqlite_db.alias]
    statement = Select(
        lambda _: Session.objects.filter(created_at=named_instant("at"))
    ).compile(Scope(connection))
    field = Session._meta.get_field("created_at")
    column = field.get_col("sessions")
    djangos = connection.ops.get_db_converters(column) + field.get_db_converters(
        connection
    )

    for value in INSTANTS:
        written = statement.bind({"at": value})
        assert written == [connection.ops.adapt_datetimefield_value(value)]
        expected: Any = written[0]
        for convert in djangos:
            expected = convert(expected, column, connection)
        read = statement.convert((*"abcdef", written[0], None))[6]
        assert read == expected == value
        assert read.tzinfo is UTC
        assert (read.microsecond, read.utcoffset()) == (
            expected.microsecond,
            timedelta(0),
        )


def test_null_and_what_the_connection_has_parsed_already_pass_on_sqlite(
    sqlite_db: DjangoDb,
) -> None:
    statement = queries.GET_SESSION.compile(Scope(connections[sqlite_db.alias]))

    row = statement.convert((*"abcdef", None, datetime(2026, 1, 1)))

    assert row[6:] == [None, datetime(2026, 1, 1, tzinfo=UTC)]


def test_instants_go_to_the_database_and_back(db: DjangoDb, url: str) -> None:
    make_session(db)
    insert = Update(
        lambda _: Session.objects.filter(id=text("id")),
        {"created_at": named_instant("at")},
    )
    db_alias = connections[db.alias]
    update = insert.compile(Scope(db_alias))

    for value in INSTANTS:
        connection = db._threads.slot().ready()
        assert (
            connection.execute(
                update.sql, update.bind({"id": "s1", "at": value})
            ).rowcount
            == 1
        )
        session = db.get_session("s1")
        assert session is not None
        assert session.created_at == value
        assert session.created_at.utcoffset() == timedelta(0)
        assert Session.objects.using(db.alias).get().created_at == value


# -- the module by itself


def test_parameters_are_bound_by_name_and_repeated_ones_alike(
    sqlite_db: DjangoDb,
) -> None:
    statement = Select(
        lambda _: Session.objects.filter(
            agent_name=text("a"), sandbox_id=text("b")
        ).exclude(runner_id=text("a"))
    ).compile(Scope(connections[sqlite_db.alias]))

    assert statement.bind({"b": "B", "a": "A"}) == ["A", "B", "A"]


def test_a_constant_stays_in_its_place(sqlite_db: DjangoDb) -> None:
    statement = Select(
        lambda _: Session.objects.filter(
            status="active", agent_name=text("a"), tenant_id="default"
        )
    ).compile(Scope(connections[sqlite_db.alias]))

    assert sorted(statement.bind({"a": "A"})) == ["A", "active", "default"]


def test_a_missing_parameter_is_an_error(sqlite_db: DjangoDb) -> None:
    statement = queries.GET_AGENT.compile(Scope(connections[sqlite_db.alias]))

    with pytest.raises(KeyError, match="tenant_id"):
        statement.bind({"name": "a"})


@pytest.mark.parametrize("model", [Agent, Session, Sandbox, ApiKey])
def test_django_converts_no_column_but_instants(
    db: DjangoDb, model: type[models.Model]
) -> None:
    connection = connections[db.alias]
    converted = [
        field
        for field in model._meta.concrete_fields
        if field.get_db_converters(connection)
        or connection.ops.get_db_converters(field.get_col(model._meta.db_table))
    ]

    assert all(isinstance(field, models.DateTimeField) for field in converted)


def test_count_ignores_the_order(sqlite_db: DjangoDb) -> None:
    count = SelectCount(lambda _: Sandbox.objects.order_by("id"))

    statement = count.compile(Scope(connections[sqlite_db.alias]))

    assert statement.sql == 'SELECT COUNT(*) AS "__count" FROM "sandboxes"'


def test_percent_signs_in_the_sql_reach_sqlite_once(sqlite_db: DjangoDb) -> None:
    statement = Select(
        lambda _: Session.objects.extra(where=["sandbox_id LIKE 'a%%'"])
    ).compile(Scope(connections[sqlite_db.alias]))

    assert "LIKE 'a%'" in statement.sql
