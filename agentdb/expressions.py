"""SQL expressions that Django does not have, each the same on every engine."""

from __future__ import annotations

from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import (
    DateTimeField,
    DurationField,
    F,
    Func,
    QuerySet,
    Subquery,
    TextField,
    Value,
)
from django.db.models.functions import Now
from django.db.models.lookups import Exact
from django.db.models.sql.compiler import SQLCompiler


class OtherOnSqlite(Func):
    """A function that has another template on SQLite."""

    on_sqlite: str

    def as_sqlite(
        self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **extra: Any
    ) -> Any:
        return self.as_sql(compiler, connection, template=self.on_sqlite, **extra)


class UtcNow(OtherOnSqlite, Now):
    """The current instant, as the default of a column.

    SQLite stores text, so two spellings of one instant would compare unequal. Django writes ``str(datetime)``: six
    digits of a second, or none when they are all zero. Django's own ``Now()`` writes three; this writes what Django
    writes.
    """

    on_sqlite = "replace(strftime('%%%%Y-%%%%m-%%%%d %%%%H:%%%%M:%%%%f000', 'now'), '.000000', '')"


class Parameter(Value):
    """A value that a compiled statement is given by its name at each execution.

    Django's compiler hands every parameter of an expression on as it is, so this object itself marks the place.
    """

    def as_sql(self, compiler: SQLCompiler, connection: BaseDatabaseWrapper) -> Any:
        return "%s", (self,)


def text(name: str) -> Parameter:
    """Return a text of that name."""
    return Parameter(name, TextField())


def instant(name: str) -> Parameter:
    """Return an aware ``datetime`` of that name."""
    return Parameter(name, DateTimeField())


class ServerNow(Now):
    """The current time by the server's clock at the start of the statement; SQLite gets the parameter ``now``.

    On CockroachDB Django's ``Now()`` is the start of the transaction.
    """

    given = instant("now")

    def as_sqlite(
        self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **extra: Any
    ) -> Any:
        return compiler.compile(self.given)

    as_cockroachdb = Now.as_postgresql


class ServerAgo(ServerNow):
    """The current time by the server's clock minus the parameter ``length``, a ``timedelta``.

    SQLite has only the parameter, which a compiled statement replaces by that time.
    """

    def __init__(self, length: str) -> None:
        super().__init__()
        self.given = Parameter(length, DurationField())

    def as_postgresql(
        self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **extra: Any
    ) -> Any:
        now, _ = super().as_postgresql(compiler, connection, **extra)
        length, params = compiler.compile(self.given)
        return f"({now} - {length}::interval)", params

    as_cockroachdb = as_postgresql


class UnsyncedCommit(Func):
    """Return ``off``, and make the current transaction commit without waiting for the disk.

    https://www.postgresql.org/docs/current/wal-async-commit.html: after a crash of the server the last commits may
    be missing, but nothing is inconsistent.
    """

    template = "set_config('synchronous_commit', 'off', true)"
    arity = 0
    output_field = TextField()


class CodePointOrder(OtherOnSqlite):
    """A text column in code-point order, whatever the collation of the database.

    PostgreSQL sorts by the database's locale unless told otherwise; SQLite and CockroachDB compare bytes already.
    """

    template = '%(expressions)s COLLATE "C"'
    on_sqlite = "%(expressions)s"
    arity = 1
    output_field = TextField()
    as_cockroachdb = OtherOnSqlite.as_sqlite


class Unindexed(Func):
    """A text column that is compared in the rows that another condition finds, and not looked up in an index."""

    template = "(%(expressions)s || '')"
    arity = 1
    output_field = TextField()


class IsRow(Exact):
    """``id = (subquery)`` for a subquery that finds at most one row.

    CockroachDB reads the whole table for that, but one row by its key for IN. PostgreSQL keeps the equals sign: it
    may run a subquery behind IN once for each row, and lock another row each time.
    """

    def as_cockroachdb(
        self, compiler: SQLCompiler, connection: BaseDatabaseWrapper
    ) -> Any:
        column, column_params = self.process_lhs(compiler, connection)
        key, key_params = self.process_rhs(compiler, connection)
        # Keeps Django from replacing the subquery by the expression inside it.
        rows = (
            key
            if isinstance(self.rhs, Subquery)
            else f"(WITH x AS MATERIALIZED (SELECT {key} AS id) SELECT id FROM x)"
        )
        return f"{column} IN {rows}", (*column_params, *key_params)


class Locked(Subquery):
    """A subquery that locks its rows. On PostgreSQL it skips rows that other transactions have locked.

    On CockroachDB it waits for them. There SKIP LOCKED also skips rows that a committed transaction wrote, such as
    the caller's last one, until the server has resolved its intents; a claim would find nothing, or the wrong row.
    SQLite has one writer at a time.

    ``select_for_update()`` cannot be compiled outside a transaction, which one statement does not need.
    """

    _TEMPLATES = {
        "postgresql": "(%(subquery)s FOR UPDATE SKIP LOCKED)",
        "cockroachdb": "(%(subquery)s FOR UPDATE)",
    }

    def as_sql(
        self,
        compiler: SQLCompiler,
        connection: BaseDatabaseWrapper,
        template: str | None = None,
        **extra: Any,
    ) -> Any:
        template = self._TEMPLATES.get(connection.vendor)
        return super().as_sql(compiler, connection, template=template, **extra)


class LockedInOrder(Subquery):
    """A subquery, for PostgreSQL, that waits for the locks of its rows in the subquery's order.

    An UPDATE locks rows in the order in which its plan happens to find them. Two that change the same rows may wait for
    each other; the server notices that after ``deadlock_timeout``, one second, and one of them fails.
    """

    template = "(%(subquery)s FOR NO KEY UPDATE)"


class _OneOf(Exact):
    """Whether a column is one of several values, looked up in the column's index.

    A lookup, and not a function: since 6.1, Django compares a function's result with 1 on SQLite, which then reads the
    whole table instead of the index.
    """

    templates: dict[str, str]

    def as_sql(self, compiler: SQLCompiler, connection: BaseDatabaseWrapper) -> Any:
        column, params = compiler.compile(self.lhs)
        values, more = compiler.compile(self.rhs)
        template = self.templates[connection.vendor]
        return template.format(column=column, values=values), (*params, *more)


class OneOfRows(_OneOf):
    """Whether a column is one of a subquery's values.

    PostgreSQL collects the values in an array, so that it does not read the whole table, as it may for
    ``IN (SELECT …)`` before the first ANALYZE.
    """

    templates = {
        "postgresql": "{column} = ANY(ARRAY{values})",
        "cockroachdb": "{column} IN {values}",
        "sqlite": "{column} IN {values}",
    }

    def __init__(self, column: str, values: QuerySet[Any] | Subquery) -> None:
        rows = values if isinstance(values, Subquery) else Subquery(values)
        super().__init__(F(column), rows)


class OneOfTexts(_OneOf):
    """The same for the texts of a JSON array, the parameter of that name: a list of any length in one parameter."""

    templates = {
        "postgresql": "{column} = ANY(ARRAY(SELECT jsonb_array_elements_text({values}::jsonb)))",
        "cockroachdb": "{column} IN (SELECT jsonb_array_elements_text({values}::jsonb))",
        "sqlite": "{column} IN (SELECT value FROM json_each({values}))",
    }

    def __init__(self, column: str, array: str) -> None:
        super().__init__(F(column), text(array))
