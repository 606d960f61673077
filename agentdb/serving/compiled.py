"""Django queries compiled to SQL once, and executed as cached SQL.

A query is written over the models, with named parameters in the place of values::

    by_id = Select(lambda scope: scope.rows(Session).filter(id=text("id")))

Compiling it on a connection runs Django's own compiler, and keeps the SQL, the positions of the parameters by name,
and which columns have instants. Django itself caches nothing between two calls of ``.get()``, and spends most of the
time on building the same SQL again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Count, DateTimeField, DurationField, Model, Q
from django.db.models.constants import OnConflict
from django.db.models.sql import DeleteQuery, InsertQuery, UpdateQuery
from django.db.models.sql.compiler import SQLCompiler

from agentdb.expressions import Parameter, ServerNow, text

Row = tuple[Any, ...]
# The name of a value, or None for a constant; the constant; the conversion.
Slot = tuple[str | None, Any, Callable[[Any], Any] | None]

# The upper bound of a slice in a query whose parameter ``limit`` says how many rows. Django writes it into the SQL.
LIMIT = 987_654_321
ROWS_A_BATCH = 50_000


class Scope:
    """What a query is compiled for: a connection, and all rows or only those of the parameter ``tenant_id``."""

    def __init__(
        self, connection: BaseDatabaseWrapper, *, of_tenant: bool = False
    ) -> None:
        self.connection = connection
        self.vendor = connection.vendor  # Django's name of the engine
        self._of_tenant = of_tenant

    def rows(self, model: type[Model]) -> Any:
        """Return the rows of the model."""
        if self._of_tenant:
            return self.tenant(model)
        return model._default_manager.all()

    def tenant(self, model: type[Model]) -> Any:
        """Return the rows of the model whose tenant is the parameter ``tenant_id``."""
        manager: Any = model._default_manager
        return manager.of_tenant(text("tenant_id"))


@dataclass
class Statement:
    """SQL in the driver's placeholder style, and how to convert named values to parameters and rows to values."""

    sql: str
    slots: tuple[Slot, ...]
    table: str
    writes: bool
    # The columns with instants; SQLite returns them as text.
    instants: tuple[int, ...]
    has_text_instants: bool
    # Changes at most this many rows; the statement is repeated until it changes fewer.
    batch: int | None = None

    def __post_init__(self) -> None:
        # A server has its own clock.
        self.has_now = any(name == "now" for name, _, _ in self.slots)

    def bind(self, values: dict[str, Any]) -> list[Any]:
        """Return the driver's parameters for the named values, to which SQLite's current time is added.

        Raises ``KeyError`` if one is missing.
        """
        if self.has_now:
            values["now"] = datetime.now(UTC)
        return [
            constant
            if name is None
            else values[name]
            if convert is None
            else convert(values[name])
            for name, constant, convert in self.slots
        ]

    def convert(self, row: Row) -> list[Any]:
        """Return SQLite's row with aware ``datetime`` values.

        Raises ``ValueError``, ``AttributeError`` or ``OverflowError`` for a value that is not a timestamp.
        """
        values = list(row)
        for index in self.instants:
            values[index] = _instant_from_sqlite(values[index])
        return values


@dataclass(eq=False)
class _Built:
    """A query that is a function of its scope."""

    build: Callable[[Scope], Any]
    returning = ""  # a column of the changed rows, or "*"; Django has RETURNING for inserts only

    def compile(self, scope: Scope) -> Statement:
        built = self.build(scope)
        # Several querysets are read in turn. Django's own union() refuses parts with their own limit on SQLite.
        querysets = built if isinstance(built, list) else [built]
        parts: list[str] = []
        params: list[Any] = []
        compilers: list[SQLCompiler] = []
        for number, queryset in enumerate(querysets):
            query = self.made(queryset.query)
            compiler = query.get_compiler(connection=scope.connection)
            sql, values = compiler.as_sql()
            if len(querysets) > 1:
                sql = f"SELECT * FROM ({sql}) part_{number}"
            parts.append(sql)
            params.extend(values)
            compilers.append(compiler)
        returned = [
            field
            for field in querysets[0].model._meta.concrete_fields
            if self.returning in ("*", field.attname)
        ]
        # The columns of a union are those of its first part.
        return _statement(compilers[0], " UNION ALL ".join(parts), params, returned)

    def made(self, query: Any) -> Any:
        """Return what is sent for Django's query of the rows."""
        return query


class Select(_Built):
    """The rows of one queryset or of several in turn, with the columns in the model's order."""


class SelectCount(_Built):
    """How many rows a queryset has, as one row of one column."""

    def made(self, query: Any) -> Any:
        # What QuerySet.count() does, but that runs the query at once instead of compiling it.
        query.clear_ordering(force=True)
        query.default_cols = False
        query.add_annotation(Count("*"), alias="__count")
        return query


@dataclass(eq=False)
class Update(_Built):
    """``queryset.update(**values)``, which can return the changed rows or some of their columns.

    ``bulk``: may change any number of rows, and the conditions no longer match a changed row. CockroachDB changes
    some 3,000 rows a second, so there it runs as several statements that each fit into ``call_timeout``.
    """

    values: Mapping[str, object]
    returning: str = ""
    bulk: bool = False

    def made(self, query: Any) -> Any:
        # What QuerySet.update() does, but that runs the query at once instead of compiling it.
        update = query.chain(UpdateQuery)
        update.add_update_values(dict(self.values))
        return update

    def compile(self, scope: Scope) -> Statement:
        statement = super().compile(scope)
        if not self.bulk or scope.vendor != "cockroachdb":
            return statement
        # CockroachDB's own clause; PostgreSQL has none for UPDATE.
        sql = f"{statement.sql} LIMIT {ROWS_A_BATCH}"
        return replace(statement, sql=sql, batch=ROWS_A_BATCH)


@dataclass(eq=False)
class Delete(_Built):
    """``queryset.delete()`` of a model without references, which can return the rows."""

    returning: str = ""

    def made(self, query: Any) -> Any:
        return query.chain(DeleteQuery)


@dataclass(eq=False)
class Insert:
    """Insert a row: the current time in the columns with an instant, and a value of its name in each other.

    A row whose key is taken is skipped; with ``unique``, the columns of a key, the row that has the key gets the new
    values of the columns ``replace`` instead, and counts ``count_up`` up by one.
    """

    model: type[Model]
    unique: tuple[str, ...] = ()
    replace: tuple[str, ...] = ()
    count_up: str = ""

    def __post_init__(self) -> None:
        fields = self.model._meta.concrete_fields
        self.times = [
            field.attname for field in fields if isinstance(field, DateTimeField)
        ]
        self._keys = [field.attname for field in fields if field.unique]
        has_one = Q(*((key, text(key)) for key in self._keys), _connector=Q.OR)
        # How many rows have one of its keys, whosever they are.
        self.taken = SelectCount(
            lambda scope: self.model._default_manager.filter(has_one)
        )

    def row(self) -> dict[str, object]:
        """Return what is inserted into each column."""
        return {
            field.attname: ServerNow()
            if field.attname in self.times
            else Parameter(field.attname, field)
            for field in self.model._meta.concrete_fields
        }

    def compile(self, scope: Scope) -> Statement:
        meta, connection = self.model._meta, scope.connection
        fields = list(meta.concrete_fields)
        query = InsertQuery(
            self.model,
            on_conflict=OnConflict.UPDATE if self.unique else None,
            update_fields=[meta.get_field(name) for name in self.replace],
            unique_fields=[meta.get_field(name) for name in self.unique],
        )
        # Raw, because the preparation for save() would replace a parameter.
        query.insert_values(fields, [self.model(**self.row())], raw=True)
        compiler = query.get_compiler(connection=connection)
        # Django returns a list, as some inserts of several rows need a statement for each.
        [(sql, params)] = compiler.as_sql()
        returned: list[Any] = fields
        if self.unique:
            column = connection.ops.quote_name(self.count_up)
            # Django's update_conflicts cannot say this.
            sql = f"{sql}, {column} = {meta.db_table}.{column} + 1"
        else:
            # Not Django's ignore_conflicts, which on SQLite ignores more than a taken key. A single key is named: a
            # unique index of an operator's own then raises an error that names the index.
            target = f"({self._keys[0]}) " if len(self._keys) == 1 else ""
            sql += f" ON CONFLICT {target}DO NOTHING"
            # Only a server's time is not known to the caller, and one column says it for all.
            returned = []
            if scope.vendor != "sqlite":
                returned = [meta.get_field(self.times[0])]
        return _statement(compiler, sql, params, returned)


@dataclass(eq=False)
class Together:
    """Two queries as one statement on a server, with the last one's result; neither sees the other's changes.

    The first is a part of a WITH, which PostgreSQL runs whether or not somebody reads it. They read the same snapshot,
    so they must not change the same row.
    """

    first: Delete
    last: Delete

    def compile(self, scope: Scope) -> Statement:
        first = self.first.compile(scope)
        last = self.last.compile(scope)
        return replace(
            last,
            # CockroachDB refuses a part of WITH that returns no columns.
            sql=f"WITH earlier AS ({first.sql} RETURNING 1) {last.sql}",
            slots=(*first.slots, *last.slots),
        )


Query: TypeAlias = _Built | Insert | Together  # what compiles to one statement


def _statement(
    compiler: SQLCompiler,
    sql: str,
    params: Iterable[Any],
    returned: list[Any],
) -> Statement:
    """Return the statement of Django's SQL and parameters, which returns these fields of the rows that it changes."""
    has_server = compiler.connection.vendor != "sqlite"
    columns = [column for column, _, _ in compiler.select or ()]
    if returned:
        columns = [field.get_col(field.model._meta.db_table) for field in returned]
        names = [compiler.compile(column)[0] for column in columns]
        sql = f"{sql} RETURNING {', '.join(names)}"
    slots = [_slot(value, has_server=has_server) for value in params]
    sql = _with_limits(sql, slots)
    if not has_server:
        # SQLite's placeholders. Django has doubled each percent sign that is not one.
        sql = sql.replace("%s", "?").replace("%%", "%")
    query = compiler.query
    instants = [
        index
        for index, column in enumerate(columns)
        if isinstance(column.output_field, DateTimeField)
    ]
    return Statement(
        sql,
        tuple(slots),
        table=query.get_meta().db_table,
        writes=isinstance(query, InsertQuery | UpdateQuery | DeleteQuery),
        instants=tuple(instants),
        has_text_instants=bool(instants) and not has_server,
    )


def _with_limits(sql: str, slots: list[Slot]) -> str:
    """Return the SQL with a placeholder for each limit, which gets a slot."""
    # Django writes a limit into the SQL as a number; a union has one in each part. It becomes a parameter at the place
    # that the placeholders before it give, and is replaced one by one, so that the count stays right.
    limit = f"LIMIT {LIMIT}"
    while limit in sql:
        before, _, after = sql.partition(limit)
        slots.insert(before.count("%s"), ("limit", None, None))
        sql = f"{before}LIMIT %s{after}"
    return sql


def _slot(value: Any, *, has_server: bool) -> Slot:
    """Return what a statement has in the place of one of Django's parameters."""
    if not isinstance(value, Parameter):
        return None, value, None
    convert = None
    if not has_server:
        convert = _TO_SQLITE.get(type(value.output_field))
    return value.value, None, convert


# Django's own conversions between SQLite's text and an aware datetime, without settings and regular expressions.
# The tests compare the two.


def _instant_to_sqlite(value: datetime) -> str:
    """Return the text as Django stores it: in UTC, without an offset, so that texts compare as the instants do."""
    in_utc = value.astimezone(UTC)
    return str(in_utc.replace(tzinfo=None))


def _ago_to_sqlite(length: timedelta) -> str:
    """Return the text of the instant that long ago."""
    return _instant_to_sqlite(datetime.now(UTC) - length)


_TO_SQLITE: dict[type, Callable[[Any], str]] = {
    DateTimeField: _instant_to_sqlite,
    DurationField: _ago_to_sqlite,
}


def _instant_from_sqlite(value: Any) -> Any:
    """Return SQLite's text as an aware ``datetime``; raises ``ValueError`` for a text that is not a timestamp."""
    if type(value) is str:
        try:
            # Parse as UTC in one step: replacing the time zone afterwards takes twice as long as parsing.
            return datetime.fromisoformat(value + "+00:00")
        except ValueError:
            # A form that agentdb does not write.
            value = datetime.fromisoformat(value)
    # A connection of a host project may have parsed the column already (detect_types).
    if value is None:
        return None
    if value.tzinfo is None:
        return value.replace(tzinfo=UTC)
    return value.astimezone(UTC)
