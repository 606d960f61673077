"""Django queries compiled to SQL once, and executed as cached SQL.

A query is written over the models with stand-ins for its parameters::

    by_id = Select(lambda p: Session.objects.filter(id=p.text("id")))

Compiling it on a connection runs Django's own compiler, finds each stand-in among the compiled parameters, and keeps
the SQL, the positions of the parameters by name, and which columns have instants. Django itself caches nothing between
two calls of ``.get()``, and spends most of the time on building the same SQL again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Protocol

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Count, DateTimeField, Model, QuerySet
from django.db.models.constants import OnConflict
from django.db.models.expressions import Combinable
from django.db.models.sql import DeleteQuery, InsertQuery, UpdateQuery
from django.db.models.sql import Query as SqlQuery
from django.db.models.sql.compiler import SQLCompiler

from agentdb.expressions import ServerAgo, ServerNow

Row = tuple[Any, ...]
# The name of a value, or None for a constant; the stand-in, or the constant; the conversion.
Slot = tuple[str | None, Any, Callable[[Any], Any] | None]

# A caller's value cannot be mistaken for a stand-in: the text is a Unicode noncharacter, and instants and lengths
# are compared only while a query is compiled.
_TEXT_MARK = "\ufdd0"
_INTEGER_BASE = 987_654_000
ROWS_A_BATCH = 50_000


class Parameters:
    """Hands out stand-ins for parameters while a query is written, and finds them again in the compiled one."""

    def __init__(self, vendor: str = "postgresql") -> None:
        self.vendor = vendor  # Django's name of the engine that the query is for
        self.has_server = vendor != "sqlite"  # with a clock of its own
        self.of_tenant = False
        self.limits: dict[str, int] = {}
        self._instants: dict[str, datetime] = {}
        # The name behind each stand-in, in the form in which it leaves Django's compiler.
        self._names: dict[object, str] = {}
        self._required: set[str] = set()

    def rows(self, model: type[Model]) -> Any:
        """Return all rows of the model, or those of the parameter ``tenant_id`` in a query for one tenant."""
        if self.of_tenant:
            return self.tenant(model)
        return model._default_manager.all()

    def tenant(self, model: type[Model]) -> Any:
        """Return the rows of the model whose tenant is the parameter ``tenant_id``."""
        manager: Any = model._default_manager
        return manager.of_tenant(self.text("tenant_id"))

    def text(self, name: str) -> str:
        """Return the stand-in for a text parameter."""
        value = f"{_TEXT_MARK}{name}{_TEXT_MARK}"
        self._names[value] = name
        self._required.add(name)
        return value

    def instant(self, name: str) -> datetime:
        """Return the stand-in for an aware ``datetime`` parameter."""
        new = datetime.fromtimestamp(len(self._instants), UTC)
        value = self._instants.setdefault(name, new)
        compiled: object = value
        if not self.has_server:
            compiled = _instant_to_sqlite(value)
        self._names[compiled] = name
        self._required.add(name)
        return value

    def now(self) -> ServerNow:
        """Return the current time: the server's, or on SQLite the parameter ``now``."""
        return ServerNow(self._here("now"))

    def ago(self, name: str, length: str) -> ServerAgo:
        """Return the current time minus the parameter ``length``, a ``timedelta``; on SQLite the parameter ``name``.

        So a caller gives both; a statement has only one of them.
        """
        stand_in = timedelta(len(self._names))
        self._names[stand_in] = length
        if self.has_server:
            self._required.add(length)
        here = self._here(name)
        return ServerAgo(here, stand_in)

    def limit(self, name: str) -> int:
        """Return the stand-in for the upper bound of a slice, which Django writes into the SQL itself."""
        self._required.add(name)
        new = _INTEGER_BASE + len(self.limits)
        return self.limits.setdefault(name, new)

    def _here(self, name: str) -> datetime:
        """Return the stand-in for an instant that is given only to a database without a clock of its own."""
        here = self.instant(name)
        if self.has_server:
            # The SQL has the server's own clock in its place.
            self._required.discard(name)
        return here

    # -- in the compiled query

    def name(self, value: object) -> str | None:
        """Return the name behind a stand-in, or None for a constant."""
        # Compared by value: Django adapts, copies and reorders parameters, but passes each value on.
        if not isinstance(value, str | datetime | timedelta):
            return None  # a list has no hash
        return self._names.get(value)

    def slot(self, value: object) -> Slot:
        """Return what a statement has in the place of this value."""
        name = self.name(value)
        convert = None
        if name in self._instants and not self.has_server:
            convert = _instant_to_sqlite
        return name, value, convert

    def without_place(self, slots: list[Slot]) -> list[str]:
        """Return the names that must be in the statement and are not."""
        placed = {name for name, _, _ in slots}
        return sorted(self._required - placed)


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
    has_now: bool  # the parameter "now"; a server has its own clock
    # Changes at most this many rows; the statement is repeated until it changes fewer.
    batch: int | None = None
    # An inserted row: the names of its values, or None, and constants.
    row: tuple[tuple[str | None, Any], ...] = ()

    def bind(self, values: Mapping[str, Any]) -> list[Any]:
        """Return the driver's parameters for the named values; raises ``KeyError`` if one is missing."""
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
        """Return the row with aware ``datetime`` values.

        Raises ``ValueError``, ``AttributeError`` or ``OverflowError`` for a value that is not a timestamp.
        """
        if not self.has_text_instants:
            return row
        values = list(row)
        for index in self.instants:
            values[index] = _instant_from_sqlite(values[index])
        return values


class Query(Protocol):
    """Something that compiles to one statement."""

    def compile(self, connection: BaseDatabaseWrapper) -> Statement: ...


@dataclass(eq=False)
class Select:
    """The rows of one queryset or of several in turn, with the columns in the model's order."""

    build: Callable[[Parameters], QuerySet[Any] | list[QuerySet[Any]]]

    def compile(self, connection: BaseDatabaseWrapper) -> Statement:
        parameters = _parameters(connection)
        built = self.build(parameters)
        if isinstance(built, list):
            parts = [queryset.query for queryset in built]
            return _compile_all(connection, parameters, parts)
        return _compile(connection, parameters, built.query)


@dataclass(eq=False)
class SelectCount:
    """How many rows a queryset has, as one row of one column."""

    build: Callable[[Parameters], QuerySet[Any]]

    def compile(self, connection: BaseDatabaseWrapper) -> Statement:
        parameters = _parameters(connection)
        rows = self.build(parameters)
        query = rows.query.clone()
        # What QuerySet.count() does, but that runs the query at once instead of compiling it.
        query.clear_ordering(force=True)
        query.default_cols = False
        query.add_annotation(Count("*"), alias="__count")
        return _compile(connection, parameters, query)


@dataclass(eq=False)
class Update:
    """``queryset.update(**values)``, which can return the changed rows or some of their columns.

    ``bulk``: may change any number of rows, and the conditions no longer match a changed row. CockroachDB changes
    some 3,000 rows a second, so there it runs as several statements that each fit into ``call_timeout``.
    """

    build: Callable[[Parameters], QuerySet[Any]]
    values: Callable[[Parameters], dict[str, Any]]
    returning: bool | tuple[str, ...] = False  # all columns, or the names of some
    bulk: bool = False

    def compile(self, connection: BaseDatabaseWrapper) -> Statement:
        parameters = _parameters(connection)
        rows = self.build(parameters)
        # What QuerySet.update() does, but that runs the query at once instead of compiling it.
        query: UpdateQuery = rows.query.chain(UpdateQuery)  # type: ignore[assignment]
        values = self.values(parameters)
        query.add_update_values(values)
        statement = _compile(connection, parameters, query, returning=self.returning)
        if self.bulk and connection.vendor == "cockroachdb":
            # CockroachDB's own clause; PostgreSQL has none for UPDATE.
            return replace(
                statement,
                sql=f"{statement.sql} LIMIT {ROWS_A_BATCH}",
                batch=ROWS_A_BATCH,
            )
        return statement


@dataclass(eq=False)
class Delete:
    """``queryset.delete()`` of a model without references, which can return the rows."""

    build: Callable[[Parameters], QuerySet[Any]]
    returning: bool = False

    def compile(self, connection: BaseDatabaseWrapper) -> Statement:
        parameters = _parameters(connection)
        rows = self.build(parameters)
        query = rows.query.chain(DeleteQuery)
        return _compile(connection, parameters, query, returning=self.returning)


@dataclass(eq=False)
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
        """Return the statement, and in its ``row`` what it inserts, for a caller that knows all values itself."""
        parameters = _parameters(connection)
        instance = self.build(parameters)
        model = type(instance)
        query = self._query(instance)
        compiler = query.get_compiler(connection=connection)
        returned = self._returned(parameters, instance)
        if returned:
            compiler.returning_fields = returned
        # Django returns a list, as some inserts of several rows need a statement for each.
        [(sql, params)] = compiler.as_sql()
        if self.change:
            assignments, values = _assignments(connection, model, self.change)
            begin = " DO UPDATE SET "
            sql = sql.replace(begin, f"{begin}{assignments}, ", 1)
            # Last: the columns that Django assigns after them take EXCLUDED's values, and no parameter.
            params = (*params, *values)
        statement = _statement(
            parameters,
            compiler,
            sql,
            params,
            _columns(returned),
        )
        row = []
        for field in model._meta.concrete_fields:
            value = getattr(instance, field.attname)
            row.append(_given(parameters, value))
        return replace(statement, row=tuple(row))

    def _returned(self, parameters: Parameters, instance: Model) -> list[Any]:
        """Return the fields that the statement returns: all, the first one with the server's time, or none.

        Without ``returning`` the caller makes the record from its own values and that time.
        """
        fields = list(instance._meta.concrete_fields)
        if self.returning:
            return fields
        if not parameters.has_server:
            return []
        # Only the server's time is not known here, and one column returns it for all.
        for field in fields:
            value = getattr(instance, field.attname)
            if isinstance(value, ServerNow):
                return [field]
        return []

    def _query(self, instance: Model) -> InsertQuery:
        """Return Django's query for the row, with what it does on a conflict."""
        meta = type(instance)._meta
        on_conflict = None
        if self.unique:
            on_conflict = OnConflict.UPDATE
        elif self.unless_taken:
            on_conflict = OnConflict.IGNORE
        query = InsertQuery(
            type(instance),
            on_conflict=on_conflict,
            update_fields=[meta.get_field(name) for name in self.replace],
            unique_fields=[meta.get_field(name) for name in self.unique],
        )
        # Raw, because the preparation for save() would replace a stand-in.
        query.insert_values(list(meta.concrete_fields), [instance], raw=True)
        return query


@dataclass(eq=False)
class Together:
    """Several queries as one statement on a server, with the last one's result; none sees the others' changes.

    All but the last are parts of a WITH, which PostgreSQL runs whether or not somebody reads them. They read the same
    snapshot, so no two of them may change the same row.
    """

    queries: tuple[Update | Delete, ...]

    def compile(self, connection: BaseDatabaseWrapper) -> Statement:
        *others, last = [query.compile(connection) for query in self.queries]
        parts: list[str] = []
        slots: list[Slot] = []
        for number, other in enumerate(others):
            # CockroachDB refuses a part of WITH that returns no columns.
            parts.append(f"before_{number} AS ({other.sql} RETURNING 1)")
            slots.extend(other.slots)
        slots.extend(last.slots)
        before = ", ".join(parts)
        return replace(
            last,
            sql=f"WITH {before} {last.sql}",
            slots=tuple(slots),
        )


# With @cache these return the same object for the same query, so that an executor compiles it once.


@cache
def together(*queries: Update | Delete) -> Together:
    """Combine the queries into one."""
    return Together(queries)


@cache
def unless_taken(query: Insert) -> Insert:
    """Return the insert that skips a row whose key is taken."""
    return replace(query, unless_taken=True)


def _parameters(connection: BaseDatabaseWrapper) -> Parameters:
    return Parameters(connection.vendor)


def _given(parameters: Parameters, value: Any) -> tuple[str | None, Any]:
    """Return the name of an inserted value, or None, and the constant."""
    name = "now" if isinstance(value, ServerNow) else parameters.name(value)
    return name, value


def _assignments(
    connection: BaseDatabaseWrapper,
    model: type[Model],
    change: Mapping[str, Combinable],
) -> tuple[str, tuple[Any, ...]]:
    """Return the SQL of ``column = expression`` for each change, and its parameters."""
    # Django's compiler writes them as those of an UPDATE of the whole table, which is cut off.
    query = UpdateQuery(model)
    query.add_update_values(dict(change))
    compiler = query.get_compiler(connection=connection)
    sql, params = compiler.as_sql()
    _, _, assignments = sql.partition(" SET ")
    return assignments, tuple(params)


@cache
def narrowed_to_tenant(query: Any) -> Any:
    """Return the query narrowed to the parameter ``tenant_id`` everywhere; an insert has it as a value."""
    if isinstance(query, Together):
        parts = [narrowed_to_tenant(each) for each in query.queries]
        return Together(tuple(parts))

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
    """Compile one of Django's queries; ``returning``: all columns of the changed rows, or these.

    Django itself has RETURNING for inserts only.
    """
    compiler = query.get_compiler(connection=connection)
    sql, params = compiler.as_sql()
    # Only a Select has any.
    columns = [column for column, _, _ in compiler.select or ()]
    if returning:
        assert query.model is not None
        fields = list(query.model._meta.concrete_fields)
        if not isinstance(returning, bool):
            fields = [field for field in fields if field.attname in returning]
        columns = _columns(fields)
        names: list[str] = []
        for column in columns:
            name, _ = compiler.compile(column)
            names.append(name)
        sql = f"{sql} RETURNING {', '.join(names)}"
    return _statement(parameters, compiler, sql, params, columns)


def _columns(fields: list[Any]) -> list[Any]:
    """Return the expressions that read these fields of a model from its own table."""
    columns = []
    for field in fields:
        table = field.model._meta.db_table
        columns.append(field.get_col(table))
    return columns


def _compile_all(
    connection: BaseDatabaseWrapper,
    parameters: Parameters,
    queries: list[SqlQuery],
) -> Statement:
    """Compile the queries as a union; Django's union() refuses parts with their own limit on SQLite."""
    parts: list[str] = []
    params: list[Any] = []
    compilers = [query.get_compiler(connection=connection) for query in queries]
    for number, compiler in enumerate(compilers):
        sql, values = compiler.as_sql()
        parts.append(f"SELECT * FROM ({sql}) part_{number}")
        params.extend(values)
    first = compilers[0]  # the columns of a union are those of its first part
    columns = [column for column, _, _ in first.select]
    return _statement(
        parameters,
        first,
        " UNION ALL ".join(parts),
        params,
        columns,
    )


def _statement(
    parameters: Parameters,
    compiler: SQLCompiler,
    sql: str,
    params: Iterable[Any],
    columns: list[Any],
) -> Statement:
    """Put names in the place of the stand-ins among Django's SQL and parameters; ``columns`` are what comes back.

    Raises ``ValueError`` if a parameter has no place.
    """
    slots = [parameters.slot(value) for value in params]
    for name, value in parameters.limits.items():
        # Django writes a limit into the SQL as a number; a union has one in each part. It becomes a parameter at the
        # place that the placeholders before it give, and is replaced one by one, so that the count stays right.
        limit = f"LIMIT {value}"
        while (place := sql.find(limit)) >= 0:
            before = sql.count("%s", 0, place)
            slots.insert(before, (name, None, None))
            sql = sql.replace(limit, "LIMIT %s", 1)
    # A stand-in that Django's compiler has changed, cast or optimised away would otherwise be sent as it is, and the
    # query would silently find nothing.
    missing = parameters.without_place(slots)
    if missing:
        raise ValueError(f"The query has no place for its parameters {missing}: {sql}")
    if not parameters.has_server:
        # SQLite's placeholders. Django has doubled each percent sign that is not one.
        sql = sql.replace("%s", "?").replace("%%", "%")
    query = compiler.query
    assert query.model is not None
    instants = [
        index
        for index, column in enumerate(columns)
        if isinstance(column.output_field, DateTimeField)
    ]
    names = [name for name, _, _ in slots]
    return Statement(
        sql,
        tuple(slots),
        table=query.model._meta.db_table,
        writes=isinstance(query, InsertQuery | UpdateQuery | DeleteQuery),
        instants=tuple(instants),
        has_text_instants=bool(instants) and not parameters.has_server,
        has_now="now" in names,
    )


# Django's own conversions between SQLite's text and an aware datetime, without settings and regular expressions.
# The tests compare the two.


def _instant_to_sqlite(value: datetime) -> str:
    """Return the text as Django stores it: in UTC, without an offset, so that texts compare as the instants do."""
    in_utc = value.astimezone(UTC)
    return str(in_utc.replace(tzinfo=None))


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
