"""Django queries compiled to SQL once, and executed as cached SQL.

A query is written over the models with stand-ins for its parameters::

    by_id = Select(lambda p: Session.objects.filter(id=p.text("id")))

Compiling it on a connection runs Django's own compiler, finds each stand-in among the compiled parameters, and keeps
the SQL, the positions of the parameters by name, and the fields' conversions. Django itself caches nothing between two
calls of ``.get()``, and spends most of the time on building the same SQL again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Protocol, TypeVar

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Count, DateTimeField, Field, Model, QuerySet
from django.db.models.constants import OnConflict
from django.db.models.expressions import Combinable
from django.db.models.sql import DeleteQuery, InsertQuery, UpdateQuery
from django.db.models.sql import Query as SqlQuery
from django.db.models.sql.compiler import SQLCompiler

from agentdb.expressions import ServerAgo, ServerNow, ServerPast

Row = tuple[Any, ...]
Converter = Callable[[Any], Any]
# The name of a value, or a constant, and its conversion.
Slot = tuple[str | None, Any, Converter | None]

# A caller's value cannot be mistaken for a stand-in: the text is a Unicode noncharacter, and the instant is
# compared only while a query is compiled.
_TEXT_MARK = "\ufdd0"
_INSTANT_YEAR = 1901
_INTEGER_BASE = 987_654_000
ROWS_A_BATCH = 50_000


class Parameters:
    """Provides stand-in values while a query is written, and remembers their names."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.instants: dict[datetime, str] = {}
        self.lengths: dict[timedelta, str] = {}
        self.limits: dict[int, str] = {}
        self.clock: set[str] = set()  # instants that a server takes from its own clock
        self.of_tenant = False

    def rows(self, model: type[Model]) -> Any:
        """Return all rows of the model, or those of the parameter ``tenant_id`` in a query for one tenant."""
        return self.tenant(model) if self.of_tenant else model._default_manager.all()

    def tenant(self, model: type[Model]) -> Any:
        """Return the rows of the model whose tenant is the parameter ``tenant_id``."""
        manager: Any = model._default_manager
        return manager.of_tenant(self.text("tenant_id"))

    def text(self, name: str) -> str:
        """Return the stand-in for a text parameter."""
        value = f"{_TEXT_MARK}{name}{_TEXT_MARK}"
        self.texts[value] = name
        return value

    def instant(self, name: str) -> datetime:
        """Return the stand-in for an aware ``datetime`` parameter."""
        for value, known in self.instants.items():
            if known == name:
                return value
        value = datetime(
            _INSTANT_YEAR, 1, 1, microsecond=len(self.instants) + 1, tzinfo=UTC
        )
        self.instants[value] = name
        return value

    def now(self) -> ServerNow:
        """Return the current time: the server's, or on SQLite the parameter ``now``."""
        self.clock.add("now")
        return ServerNow(self.instant("now"))

    def past(self, name: str, seconds: float) -> ServerPast:
        """Return the current time minus some seconds: by the server's clock, or on SQLite the parameter."""
        self.clock.add(name)
        return ServerPast(self.instant(name), seconds)

    def ago(self, name: str, length: str) -> ServerAgo:
        """Return the current time minus the parameter ``length``, a ``timedelta``; on SQLite the parameter ``name``."""
        self.clock.add(name)
        stand_in = timedelta(days=_INTEGER_BASE, microseconds=len(self.lengths))
        self.lengths[stand_in] = length
        return ServerAgo(self.instant(name), stand_in)

    def limit(self, name: str) -> int:
        """Return the stand-in for the upper bound of a slice, which Django writes into the SQL itself."""
        value = _INTEGER_BASE + len(self.limits)
        self.limits[value] = name
        return value


@dataclass(frozen=True, slots=True, eq=False)
class Statement:
    """SQL in the driver's placeholder style, and how to convert named values to parameters and rows to values."""

    sql: str
    slots: tuple[Slot, ...]
    converters: tuple[tuple[int, Converter], ...]
    table: str
    writes: bool
    instants: tuple[int, ...] = ()  # columns that a server returns as datetimes
    batch: int | None = (
        None  # changes at most this many rows; the statement is repeated until it changes fewer
    )
    row: tuple[
        tuple[str | None, Any], ...
    ] = ()  # an inserted row: the names of its values, or constants

    def bind(self, values: Mapping[str, Any]) -> list[Any]:
        """Return the driver's parameters for the named values."""
        return [
            constant
            if name is None
            else values[name]
            if convert is None
            else convert(values[name])
            for name, constant, convert in self.slots
        ]

    def given(self, values: Mapping[str, Any]) -> list[Any]:
        """Return the inserted row from the caller's own values."""
        return [
            constant if name is None else values[name] for name, constant in self.row
        ]

    def convert(self, row: Row) -> Row | list[Any]:
        """Return the row with the fields' conversions applied."""
        if not self.converters:
            return row
        values = list(row)
        for index, converter in self.converters:
            values[index] = converter(values[index])
        return values


class Query(Protocol):
    """Something that compiles to one statement."""

    def compile(self, connection: BaseDatabaseWrapper) -> Statement: ...


@dataclass(frozen=True, eq=False)
class Select:
    """The rows of one queryset or of several in turn, with the columns in the model's order."""

    build: Callable[[Parameters], QuerySet[Any] | list[QuerySet[Any]]]

    def compile(self, connection: BaseDatabaseWrapper) -> Statement:
        parameters = Parameters()
        built = self.build(parameters)
        if isinstance(built, list):
            return _compile_all(
                connection, parameters, [queryset.query for queryset in built]
            )
        return _compile(connection, parameters, built.query)


@dataclass(frozen=True, eq=False)
class SelectCount:
    """How many rows a queryset has, as one row of one column."""

    build: Callable[[Parameters], QuerySet[Any]]

    def compile(self, connection: BaseDatabaseWrapper) -> Statement:
        parameters = Parameters()
        query = self.build(parameters).query.clone()
        # What QuerySet.count() does, but that runs the query at once instead of compiling it.
        query.clear_ordering(force=True)
        query.default_cols = False
        query.add_annotation(Count("*"), alias="__count")
        return _compile(connection, parameters, query)


@dataclass(frozen=True, eq=False)
class Update:
    """``queryset.update(**values)``, which can return the changed rows or some of their columns.

    ``bulk``: may change any number of rows, and the conditions no longer match a changed row. CockroachDB changes
    some 3,000 rows a second, so there it runs as several statements that each fit into ``call_timeout``.
    """

    build: Callable[[Parameters], QuerySet[Any]]
    values: Callable[[Parameters], dict[str, Any]]
    returning: bool | tuple[str, ...] = False
    bulk: bool = False

    def compile(self, connection: BaseDatabaseWrapper) -> Statement:
        parameters = Parameters()
        query: UpdateQuery = self.build(parameters).query.chain(UpdateQuery)  # type: ignore[assignment]
        query.add_update_values(self.values(parameters))
        statement = _compile(connection, parameters, query, returning=self.returning)
        if self.bulk and connection.vendor == "cockroachdb":
            return replace(
                statement,
                sql=f"{statement.sql} LIMIT {ROWS_A_BATCH}",
                batch=ROWS_A_BATCH,
            )
        return statement


@dataclass(frozen=True, eq=False)
class Delete:
    """``queryset.delete()`` of a model without references, which can return the rows."""

    build: Callable[[Parameters], QuerySet[Any]]
    returning: bool = False

    def compile(self, connection: BaseDatabaseWrapper) -> Statement:
        parameters = Parameters()
        query = self.build(parameters).query.chain(DeleteQuery)
        return _compile(connection, parameters, query, returning=self.returning)


@dataclass(frozen=True, eq=False)
class Insert:
    """Insert one instance, and return its row unless all its values are known; with ``unique``, update an existing
    row.

    On a conflict over the ``unique`` columns the ``replace`` columns take the new values, and the ``change`` columns
    an expression over the old row, which ``bulk_create(update_conflicts=True)`` cannot express.
    """

    build: Callable[[Parameters], Model]
    unique: tuple[str, ...] = ()
    replace: tuple[str, ...] = ()
    change: Mapping[str, Combinable] | None = None
    returning: bool = True
    unless_taken: bool = False  # skip a row whose key is taken, instead of an error

    def compile(self, connection: BaseDatabaseWrapper) -> Statement:
        parameters = Parameters()
        instance = self.build(parameters)
        meta = type(instance)._meta
        fields = list(meta.concrete_fields)
        compiler = self._query(instance).get_compiler(connection=connection)
        by_server = [
            field
            for field in fields
            if isinstance(getattr(instance, field.attname), ServerNow)
            and connection.vendor != "sqlite"
        ]
        # Only the server's time is not known here, and one column returns it for all.
        returned = fields if self.returning else by_server[:1]
        if returned:
            compiler.returning_fields = returned
        [(sql, params)] = compiler.as_sql()
        if self.change:
            assignments, values = _assignments(connection, type(instance), self.change)
            sql = sql.replace(" DO UPDATE SET ", f" DO UPDATE SET {assignments}, ", 1)
            params = (*params, *values)
        columns = [field.get_col(meta.db_table) for field in returned]
        statement = _statement(connection, parameters, compiler, sql, params, columns)
        return replace(
            statement,
            row=tuple(_given(parameters, getattr(instance, f.attname)) for f in fields),
        )

    def _query(self, instance: Model) -> InsertQuery:
        meta = type(instance)._meta
        on_conflict = OnConflict.IGNORE if self.unless_taken else None
        if self.unique:
            on_conflict = OnConflict.UPDATE
        query = InsertQuery(
            type(instance),
            on_conflict=on_conflict,
            update_fields=[meta.get_field(name) for name in self.replace],
            unique_fields=[meta.get_field(name) for name in self.unique],
        )
        # Raw, because the preparation for save() would replace a stand-in.
        query.insert_values(list(meta.concrete_fields), [instance], raw=True)
        return query


@dataclass(frozen=True, eq=False)
class Together:
    """Several queries as one statement on a server, with the last one's result; none sees the others' changes."""

    queries: tuple[Update | Delete, ...]

    def compile(self, connection: BaseDatabaseWrapper) -> Statement:
        *others, last = [query.compile(connection) for query in self.queries]
        # CockroachDB refuses a part of WITH that returns no columns.
        before = ", ".join(
            f"before_{number} AS ({other.sql} RETURNING 1)"
            for number, other in enumerate(others)
        )
        slots = tuple(slot for statement in (*others, last) for slot in statement.slots)
        return replace(last, sql=f"WITH {before} {last.sql}", slots=slots)


@cache
def together(*queries: Update | Delete) -> Together:
    """Combine the queries into one."""
    return Together(queries)


@cache
def unless_taken(query: Insert) -> Insert:
    """Return the insert that skips a row whose key is taken."""
    return replace(query, unless_taken=True)


def _given(parameters: Parameters, value: Any) -> tuple[str | None, Any]:
    if isinstance(value, ServerNow):
        return "now", None
    name = parameters.texts.get(value) or parameters.instants.get(value)
    return name, None if name else value


def _assignments(
    connection: BaseDatabaseWrapper,
    model: type[Model],
    change: Mapping[str, Combinable],
) -> tuple[str, tuple[Any, ...]]:
    query = UpdateQuery(model)
    query.add_update_values(dict(change))
    sql, params = query.get_compiler(connection=connection).as_sql()
    return sql.partition(" SET ")[2], tuple(params)


Q = TypeVar("Q", Select, SelectCount, Update, Delete)


@cache
def narrowed_to_tenant(query: Q) -> Q:
    """Return the query narrowed to the parameter ``tenant_id`` everywhere."""

    def build(parameters: Parameters) -> Any:
        parameters.of_tenant = True
        return query.build(parameters)

    return replace(query, build=build)


def _compile(
    connection: BaseDatabaseWrapper,
    parameters: Parameters,
    query: SqlQuery,
    *,
    returning: bool | tuple[str, ...] = False,
) -> Statement:
    compiler = query.get_compiler(connection=connection)
    sql, params = compiler.as_sql()
    # Only a Select has any.
    columns = [column for column, _, _ in compiler.select or ()]
    if returning:
        assert query.model is not None
        meta = query.model._meta
        fields = [
            field
            for field in meta.concrete_fields
            if isinstance(returning, bool) or field.attname in returning
        ]
        columns = [field.get_col(meta.db_table) for field in fields]
        sql += (
            f" RETURNING {', '.join(compiler.compile(column)[0] for column in columns)}"
        )
    return _statement(connection, parameters, compiler, sql, params, columns)


def _compile_all(
    connection: BaseDatabaseWrapper, parameters: Parameters, queries: list[SqlQuery]
) -> Statement:
    """Compile the queries as a union; Django's union() refuses parts with their own limit on SQLite."""
    compilers = [query.get_compiler(connection=connection) for query in queries]
    parts = [compiler.as_sql() for compiler in compilers]
    sql = " UNION ALL ".join(
        f"SELECT * FROM ({sql}) part_{number}" for number, (sql, _) in enumerate(parts)
    )
    params = [value for _, values in parts for value in values]
    columns = [column for column, _, _ in compilers[0].select]
    return _statement(connection, parameters, compilers[0], sql, params, columns)


def _statement(
    connection: BaseDatabaseWrapper,
    parameters: Parameters,
    compiler: SQLCompiler,
    sql: str,
    params: tuple[Any, ...] | list[Any],
    columns: list[Any],
) -> Statement:
    slots = _slots(connection, parameters, params)
    for value, name in parameters.limits.items():
        while (
            place := sql.find(f"LIMIT {value}")
        ) >= 0:  # a union has one in each part
            # Django writes a limit into the SQL as a number. It becomes a parameter at the place that the
            # placeholders before it give, and is replaced one by one, so that the count stays right.
            slots.insert(sql.count("%s", 0, place), (name, None, None))
            sql = sql.replace(f"LIMIT {value}", "LIMIT %s", 1)
    # A stand-in that Django's compiler has changed, cast or optimised away would otherwise be sent as it is, and the
    # query would silently find nothing.
    missing = _asked(connection, parameters) - {name for name, _, _ in slots}
    if missing:
        raise ValueError(
            f"The query has no place for its parameters {sorted(missing)}: {sql}"
        )
    if connection.vendor == "sqlite":
        # SQLite's placeholders. Django has doubled each percent sign that is not one.
        sql = sql.replace("%s", "?").replace("%%", "%")
    assert compiler.query.model is not None
    table = compiler.query.model._meta.db_table
    read = enumerate(columns) if connection.vendor != "sqlite" else ()
    returned = tuple(
        index
        for index, column in read
        if isinstance(column.output_field, DateTimeField)
    )
    converters = _converters(connection, compiler, columns)
    writes = isinstance(compiler.query, InsertQuery | UpdateQuery | DeleteQuery)
    return Statement(sql, tuple(slots), converters, table, writes, returned)


def _slots(
    connection: BaseDatabaseWrapper, parameters: Parameters, params: Iterable[Any]
) -> list[Slot]:
    """Return for each parameter the name behind its stand-in, or its constant."""
    adapt = connection.ops.adapt_datetimefield_value
    # Compared by value: Django adapts, copies and reorders parameters, but passes each value on.
    names: dict[Any, str] = {**parameters.texts, **parameters.lengths}
    names.update((adapt(value), name) for value, name in parameters.instants.items())
    instants = (
        set(parameters.instants.values()) if connection.vendor == "sqlite" else set()
    )
    slots: list[Slot] = []
    for value in params:
        name = (
            names.get(value) if isinstance(value, str | datetime | timedelta) else None
        )
        slots.append(
            (
                name,
                None if name else value,
                _instant_to_sqlite if name in instants else None,
            )
        )
    return slots


def _asked(connection: BaseDatabaseWrapper, parameters: Parameters) -> set[str]:
    """Return the names that the statement must contain."""
    asked = {
        *parameters.texts.values(),
        *parameters.instants.values(),
        *parameters.limits.values(),
    }
    if connection.vendor == "sqlite":
        return asked
    # The server has its own clock.
    return (asked - parameters.clock) | {*parameters.lengths.values()}


def _converters(
    connection: BaseDatabaseWrapper, compiler: SQLCompiler, columns: list[Any]
) -> tuple[tuple[int, Converter], ...]:
    return tuple(
        (index, _converter(connection, functions, column))
        for index, (functions, column) in compiler.get_converters(columns).items()
    )


def _converter(
    connection: BaseDatabaseWrapper, functions: list[Any], column: Any
) -> Converter:
    field: Field[Any, Any] = column.output_field
    if connection.vendor == "sqlite" and isinstance(field, DateTimeField):
        return _instant_from_sqlite

    def convert(value: Any) -> Any:
        for function in functions:
            value = function(value, column, connection)
        return value

    return convert


# Django's own conversions between SQLite's text and an aware datetime, without settings and regular expressions.
# The tests compare the two.


def _instant_to_sqlite(value: datetime) -> str:
    return str(value.astimezone(UTC).replace(tzinfo=None))


def _instant_from_sqlite(value: Any) -> Any:
    if type(value) is str:
        try:
            # Parse as UTC in one step: replacing the time zone afterwards takes twice as long as parsing.
            return datetime.fromisoformat(value + "+00:00")
        except ValueError:
            pass  # a form that agentdb does not write
    # A connection of a host project may have parsed the column already (detect_types).
    instant = datetime.fromisoformat(value) if isinstance(value, str) else value
    if instant is None:
        return None
    return (
        instant.replace(tzinfo=UTC)
        if instant.tzinfo is None
        else instant.astimezone(UTC)
    )
