"""Changes a live table of any old shape to exactly the model's, and keeps what is not ours.

The schema editor's own methods start from the model a table was made from. These start from the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import chain
from time import monotonic, sleep
from typing import Any

from django.apps import apps
from django.db import ProgrammingError, models, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

from agentdb.adoption.dependents import rebuilt_objects, without_dependents
from agentdb.adoption.obstacles import refusing
from agentdb.adoption.shapes import FRESH, STALE
from agentdb.adoption.sqlite_rebuild import rebuild
from agentdb.adoption.steps import (
    ASPECTS,
    Step,
    columns_sql,
    declaration,
    index_sql,
    key_sql,
)
from agentdb.errors import SchemaMismatchError
from agentdb.faults import exists_already
from agentdb.schema import APP_LABEL, Column, Table, expected_table, read_tables
from agentdb.schema.queries import quote_name, rows, run

Say = Callable[[str], None]  # each statement, before it is run


class LegacyUnique(models.UniqueConstraint):
    """A unique constraint as the old server made it: on PostgreSQL a unique index without a constraint."""

    def constraint_sql(self, model: Any, schema_editor: Any) -> Any:
        if schema_editor.connection.vendor == "sqlite":
            return super().constraint_sql(model, schema_editor)
        # Not in CREATE TABLE, which knows no unique index: the schema editor runs these behind it.
        statement = self.create_sql(model, schema_editor)
        schema_editor.deferred_sql.append(statement)
        return None

    def create_sql(self, model: Any, schema_editor: Any) -> Any:
        name = quote_name(self.name)
        table = quote_name(model._meta.db_table)
        return f"CREATE UNIQUE INDEX {name} ON {table} {columns_sql(self.fields)}"


def create_table(
    schema_editor: BaseDatabaseSchemaEditor, model: type[models.Model]
) -> None:
    """Create the model's table. Unlike ``create_model``, without text_pattern_ops indexes, which no query uses."""
    sql, params = schema_editor.table_sql(model)
    # A nullable key, like the old server's on SQLite: PostgreSQL makes it NOT NULL unless NULL is explicit.
    schema_editor.execute(
        sql.replace("text NULL PRIMARY KEY", "text PRIMARY KEY"), params or None
    )
    for index in model._meta.indexes:
        schema_editor.add_index(model, index)


def conform_table(
    schema_editor: BaseDatabaseSchemaEditor,
    model: type[models.Model],
    sources: Mapping[str, str],
    progress: Say = lambda sql: None,
) -> None:
    """Change the live table to the model's, or create it; additional columns, indexes, triggers and views stay.

    ``sources`` gives, for columns that are new or converted, an SQL expression over the old row. The caller holds the
    transaction. On CockroachDB there is none: each step stays, and ``progress`` is told it. Raises
    ``SchemaMismatchError`` if a column is missing that no source or default fills, and ``AdoptionRefusedError`` if what
    was built around the table does not let it change.
    """
    connection = schema_editor.connection
    table = model._meta.db_table
    refused = f"Table {table!r} cannot be converted:"
    if connection.vendor == "cockroachdb":
        _conform_model_online(connection, model, sources, progress)
    elif not read_tables(connection, [table]):
        create_table(schema_editor, model)
    elif connection.vendor == "sqlite":
        with refusing(refused):
            rebuild(schema_editor, model, sources)
    else:
        suspects = partial(rebuilt_objects, connection, table, sources)
        # Rolled back before the suspects are looked for.
        with refusing(refused, suspects=suspects), transaction.atomic(connection.alias):
            _conform_on_postgresql(
                connection, expected_table(connection, model), sources
            )


def _conform_on_postgresql(
    connection: BaseDatabaseWrapper, wanted: Table, sources: Mapping[str, str]
) -> None:
    for aspect in ASPECTS:
        # Read again for each aspect, because the one before has changed the table. The statements of one aspect are for
        # the table as it was before the first of them, so one reading is enough for all.
        live = read_tables(connection, [wanted.name])[wanted.name]
        for sql in aspect(_PostgreSql(connection, live, wanted, sources)):
            run(connection, sql)
    # Replicate by the primary key if the index that did it is gone: the key's, which was another one. The flag on the
    # table stays without its index, and then a published table refuses UPDATE and DELETE.
    for (sql,) in rows(connection, _LOST_REPLICA_IDENTITY, [wanted.name]):
        run(connection, sql)
    # A column that changed its type has no statistics, and the planner would guess until autovacuum runs.
    run(connection, f"ANALYZE {quote_name(wanted.name)}")


_LOST_REPLICA_IDENTITY = """
    SELECT format('ALTER TABLE %%I REPLICA IDENTITY USING INDEX %%s', relname, indexrelid::regclass)
    FROM pg_class c JOIN pg_index ON indrelid = c.oid AND indisprimary
    WHERE c.oid = to_regclass(quote_ident(%s)) AND relreplident = 'i'
        AND NOT EXISTS (SELECT FROM pg_index WHERE indrelid = c.oid AND indisreplident)
"""


class _PostgreSql(Step):
    def convert(self, expressions: Mapping[str, str]) -> Iterator[str]:
        # A default of the old type may have no cast to the new one, so it goes first.
        actions = [
            f"ALTER COLUMN {quote_name(column.name)} DROP DEFAULT, ALTER COLUMN {quote_name(column.name)}"
            f" TYPE {column.type} USING ({expressions[column.name]})"
            for column in self.wanted.columns
            if column.name in expressions
        ]
        if actions:
            with without_dependents(self.connection, self.live.name, expressions):
                # A single statement, so that the table is rewritten once. An UPDATE would fire the operator's triggers.
                yield f"{self.alter} {', '.join(actions)}"


# One statement at a time, because CockroachDB has no schema changes in transactions ----------------------------------

ROWS_AT_ONCE = 1_000


class _Job:
    """What the server may still be doing for a killed run: the same statement as ours.

    A schema change is a job of the cluster, which goes on without the connection that asked for it.
    """

    def __init__(self, statement: str) -> None:
        self.statement = statement
        self._gives_up = monotonic() + 60.0

    def goes_on(self) -> bool:
        """Wait a moment, and return whether it may not have ended yet."""
        sleep(0.2)
        return monotonic() < self._gives_up


def _conform_model_online(
    connection: BaseDatabaseWrapper,
    model: type[models.Model],
    sources: Mapping[str, str],
    progress: Say,
) -> None:
    """Bring the model's table to its shape, or create it."""
    table = expected_table(connection, model)
    latest = expected_table(connection, apps.get_model(APP_LABEL, model.__name__))
    new = _with_indexes_of(latest, table)
    conform_online(connection, table, sources, progress, new=new)


def _with_indexes_of(latest: Table, table: Table) -> Table:
    """The table with the indexes that later migrations add to it.

    Created with the table, they take no time. Added later, each is a job over all nodes that takes a second, and gets
    its own range, for which every write to the table then waits.
    """
    columns = {column.name for column in table.columns}
    indexes = {index.name: index for index in latest.indexes if index.names <= columns}
    indexes |= {index.name: index for index in table.indexes}
    return replace(table, indexes=tuple(indexes.values()))


def conform_online(
    connection: BaseDatabaseWrapper,
    wanted: Table,
    sources: Mapping[str, str] | None = None,
    progress: Say = lambda sql: None,
    *,
    new: Table | None = None,
) -> None:
    """Bring the live table to ``wanted``; columns that are not ours stay.

    ``sources`` gives, for a column that is new or of another type, an SQL expression over the old row. A table that
    is not there is created as ``new``. Raises ``SchemaMismatchError`` for a column that has neither a source nor a
    default, and for a step that changes nothing.
    """
    without_effect: set[str] = set()
    job: _Job | None = None
    next_statement = partial(
        _next_statement, connection, wanted, new or wanted, sources or {}
    )
    while statement := next_statement():
        if job and job.statement != statement:
            job = None  # the table shows its work
        if statement not in without_effect:
            progress(statement)
            job = _run(connection, statement, job, without_effect)
        # A schema change that comes up again as the next step would do so without end, unless the server is at it.
        elif job is None or not job.goes_on():
            raise SchemaMismatchError(
                f"The server ran this statement, and the table {wanted.name!r} is still not what it asks for: "
                f"{statement}."
            )


def _run(
    connection: BaseDatabaseWrapper,
    statement: str,
    job: _Job | None,
    without_effect: set[str],
) -> _Job | None:
    """Run the statement; return the job that keeps it from showing in the table, if there may be one."""
    try:
        if _changes_rows(connection, statement):
            return None
    except ProgrammingError as error:
        return _job_behind(error, statement, job)
    without_effect.add(statement)
    # IF NOT EXISTS succeeds at once for an index that the server still fills for a killed run.
    return _Job(statement) if statement.startswith("CREATE INDEX") else None


def _job_behind(error: ProgrammingError, statement: str, job: _Job | None) -> _Job:
    """Return the job that may have made the statement fail, having waited a moment; raise the error if there is none.

    The server may have ended the job after the table was read, so the first failure says little: it is tried again
    whatever it was. While the server adds a column, the column exists already, and no table shows it.
    """
    is_first = job is None
    job = job or _Job(statement)
    if job.goes_on() and (is_first or exists_already(error)):
        return job
    raise error


def _next_statement(
    connection: BaseDatabaseWrapper,
    wanted: Table,
    new: Table,
    sources: Mapping[str, str],
) -> str | None:
    # The table is read before each statement: another run, or the server after a kill, may have gone on with it. What
    # the generators would yield after the first one is not true any more once that has run.
    live = read_tables(connection, [wanted.name]).get(wanted.name)
    if live is None:
        return _create(new)
    step = _CockroachDb(connection, live, wanted, sources)
    return next(chain.from_iterable(aspect(step) for aspect in ASPECTS), None)


def _changes_rows(connection: BaseDatabaseWrapper, statement: str) -> bool:
    """Run the statement, an UPDATE, which takes a batch, until it finds no row; return whether it changed rows."""
    changed = False
    with connection.cursor() as cursor:
        while True:
            cursor.execute(statement)
            if not statement.startswith("UPDATE ") or cursor.rowcount == 0:
                return changed
            changed = True


def _create(wanted: Table) -> str:
    assert wanted.primary_key is not None  # every table of ours has one
    # The key and the indexes in the same statement: later each would be a job of its own, the key's over every row.
    parts = [
        *(f"{quote_name(one.name)} {declaration(one)}" for one in wanted.columns),
        key_sql("PRIMARY KEY", wanted.primary_key.name, wanted.primary_key.columns),
        *(key_sql("UNIQUE", unique.name, unique.columns) for unique in wanted.uniques),
        *(f"INDEX {quote_name(one.name)} {index_sql(one)}" for one in wanted.indexes),
    ]
    return f"CREATE TABLE IF NOT EXISTS {quote_name(wanted.name)} ({', '.join(parts)})"


class _CockroachDb(Step):
    is_atomic = False

    def convert(self, expressions: Mapping[str, str]) -> Iterator[str]:
        """Fill a new column in batches, and replace the old one by it.

        The old server may be writing at the same time. So the old column keeps its values until the filled one takes
        its name, and rows that changed since they were filled are filled again.
        """
        for column in self.wanted.columns:
            live = self.live.column(column.name)
            expression = expressions.get(column.name)
            if live is None or expression is None:
                continue
            # Only a source has values for rows without one: of a cast NULL stays NULL, and the filling would not end.
            if column.name in self.sources and live.type == column.type:
                name = quote_name(column.name)
                yield from self._fill(name, expression, f"{name} IS NULL")
            else:
                yield from self._exchange(column, expression)
        # The step after the rename drops the old column; if a kill comes between, the next run does, because the
        # table still shows it.
        for column in self.wanted.columns:
            if self.live.column(STALE + column.name) is not None:
                yield from self._drop_stale(STALE + column.name)

    def _exchange(self, wanted: Column, expression: str) -> Iterator[str]:
        fresh, name = quote_name(FRESH + wanted.name), quote_name(wanted.name)
        filling = self.live.column(FRESH + wanted.name)
        if filling is None:
            yield f"{self.alter} ADD COLUMN {fresh} {wanted.type}"
            return
        # Not IS NULL: the old server may change a row again after it was filled, and must not lose that change. A row
        # that it adds has NULL in the new column, and differs too.
        differs = f"{fresh} IS DISTINCT FROM {expression}"
        yield from self._fill(fresh, expression, differs)
        if filling.default != wanted.default:
            yield f"{self.alter} ALTER COLUMN {fresh} SET DEFAULT {wanted.default}"
        if filling.nullable and not wanted.nullable:
            yield f"{self.alter} ALTER COLUMN {fresh} SET NOT NULL"
        # One statement, so that the column is never missing; CockroachDB has that, PostgreSQL does not. Both columns
        # keep their values, so a kill here loses nothing.
        stale = quote_name(STALE + wanted.name)
        yield f"{self.alter} RENAME COLUMN {name} TO {stale}, RENAME COLUMN {fresh} TO {name}"

    def _fill(self, column: str, expression: str, missing: str) -> Iterator[str]:
        """Yield the UPDATE of a batch, if a row is left for which ``missing`` is true."""
        table = quote_name(self.live.name)
        if not rows(self.connection, f"SELECT 1 FROM {table} WHERE {missing} LIMIT 1"):
            return
        batch = missing
        if self.live.primary_key is not None:
            # Short transactions: a long one would be retried whenever the old server writes to one of its rows.
            key = columns_sql(self.live.primary_key.columns)[1:-1]
            batch = f"({key}) IN (SELECT {key} FROM {table} WHERE {missing} ORDER BY {key} LIMIT {ROWS_AT_ONCE})"
        yield f"UPDATE {table} SET {column} = {expression} WHERE {batch}"

    def _drop_stale(self, column: str) -> Iterator[str]:
        for index in self.live.indexes:
            if any(column in each for each in index.columns):
                yield f"DROP INDEX {quote_name(index.name)}"
        # While CockroachDB 23.1 drops a NOT NULL column, nobody can read its catalog: pg_constraint lists a check on a
        # column that has no name any more. So the column allows NULL first.
        live = self.live.column(column)
        if live is not None and not live.nullable:
            yield f"{self.alter} ALTER COLUMN {quote_name(column)} DROP NOT NULL"
        yield f"{self.alter} DROP COLUMN {quote_name(column)}"
