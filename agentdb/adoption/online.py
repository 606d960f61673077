"""Bringing tables to their shape one statement at a time, where a transaction cannot hold schema changes: CockroachDB.

Nothing is remembered between the statements: what is to do next follows from what the table is now. So a run that was
killed at any point is continued by the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from django.apps import apps as current_apps
from django.apps.registry import Apps
from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.adoption.conforming import LEFT_OVER_INDEXES
from agentdb.adoption.shapes import FRESH, STALE
from agentdb.errors import SchemaMismatchError
from agentdb.schema import Column, Index, Table, expected_tables, read_tables
from agentdb.schema.sqltext import quote_name

ROWS_AT_ONCE = 1_000

Progress = Callable[[str], None]  # each statement, before it is run


# The types a timestamp column has had: the old server's, and the native one.
TO_NATIVE = '"{}"::timestamptz'
TO_TEXT = """to_char("{}" AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')"""


def conform_models_online(
    connection: BaseDatabaseWrapper,
    apps: Apps,
    models_: Iterable[type[models.Model]],
    template: str,
    sources: Mapping[str, Mapping[str, str]] | None = None,
    progress: Progress = lambda sql: None,
) -> None:
    """Bring the tables of the models to their shape; ``template`` converts a timestamp column from the other type.

    ``sources`` has further columns' expressions, by table and column.
    """
    wanted = expected_tables(connection, apps)
    latest = expected_tables(connection, current_apps)
    for model in models_:
        table = wanted[model._meta.db_table]
        # What is not a timestamp has the same type in all releases.
        timestamps = {
            c.name: template.format(c.name)
            for c in table.columns
            if c.name.endswith("_at")
        }
        new = _with_indexes_of(latest.get(table.name), table)
        conform_online(
            connection,
            table,
            {**timestamps, **(sources or {}).get(table.name, {})},
            progress,
            new=new,
        )


def _with_indexes_of(latest: Table | None, table: Table) -> Table:
    """The table with the indexes that later migrations add to it.

    Made with the table, they take no time. Added to it, each is a job over all nodes that takes a second, and a range
    of its own, which a write to the table then waits for.
    """
    columns = {column.name for column in table.columns}
    indexes = {index.name: index for index in (latest.indexes if latest else ())}
    later = [
        index
        for index in indexes.values()
        if {part.expression for part in index.parts} <= columns
    ]
    return replace(
        table,
        indexes=tuple(
            {index.name: index for index in (*later, *table.indexes)}.values()
        ),
    )


def add_index_sql(table: str, index: Index) -> str:
    """The statement that adds the index, for a run that may have added it before it was killed."""
    return f"CREATE INDEX IF NOT EXISTS {quote_name(index.name)} ON {quote_name(table)} {_parts(index)}"


def _parts(index: Index) -> str:
    parts = [
        quote_name(part.expression) + (" DESC" if part.descending else "")
        for part in index.parts
    ]
    condition = f" WHERE {index.condition}" if index.condition else ""
    return f"({', '.join(parts)}){condition}"


def conform_online(
    connection: BaseDatabaseWrapper,
    wanted: Table,
    sources: Mapping[str, str] | None = None,
    progress: Progress = lambda sql: None,
    *,
    new: Table | None = None,
) -> None:
    """Bring the live table to ``wanted``; columns that are not ours stay.

    ``sources`` gives, for a column that is new or of another type, an SQL expression over the old row. A table that
    is not there is created as ``new``. Raises ``SchemaMismatchError`` for a column that has neither a source nor a
    default, and for a step that changes nothing.
    """
    without_effect: set[str] = set()
    while True:
        live = read_tables(connection, [wanted.name]).get(wanted.name)
        step = next(
            _steps(connection, wanted if live else new or wanted, live, sources or {}),
            None,
        )
        if step is None:
            return
        if step in without_effect:
            raise SchemaMismatchError(
                f"The server ran this statement, and the table {wanted.name!r} is still not what it asks for: {step}."
            )
        progress(step)
        if not _changes_rows(connection, step):
            without_effect.add(
                step
            )  # a schema change; should it be the next step again, it never ends


def _changes_rows(connection: BaseDatabaseWrapper, step: str) -> bool:
    """Run the statement, an UPDATE, which takes a batch, until it finds no row; return whether it changed rows."""
    changed = False
    with connection.cursor() as cursor:
        while True:
            cursor.execute(step)
            if not step.startswith("UPDATE ") or cursor.rowcount == 0:
                return changed
            changed = True


def _steps(
    connection: BaseDatabaseWrapper,
    wanted: Table,
    live: Table | None,
    sources: Mapping[str, str],
) -> Iterator[str]:
    """Yield what is left to do, in order; each step is a statement of its own."""
    quote = connection.ops.quote_name
    table = quote(wanted.name)
    if live is None:
        columns = [
            f"{quote(column.name)} {_declaration(column)}" for column in wanted.columns
        ]
        indexes = [
            f"INDEX {quote(index.name)} {_parts(index)}" for index in wanted.indexes
        ]
        yield f"CREATE TABLE IF NOT EXISTS {table} ({', '.join([*columns, *_keys(connection, wanted), *indexes])})"
        return
    for foreign_key in live.foreign_keys:
        if {column.name for column in wanted.columns} & set(foreign_key.columns):
            yield f"ALTER TABLE {table} DROP CONSTRAINT {quote(foreign_key.name or '')}"
    for column in wanted.columns:
        yield from _column_steps(connection, wanted, live, column, sources)
    primary_key = wanted.primary_key
    if primary_key and (
        live.primary_key is None or live.primary_key.columns != primary_key.columns
    ):
        drop = (
            f"DROP CONSTRAINT {quote(live.primary_key.name or '')}, "
            if live.primary_key
            else ""
        )
        # One statement for both: dropped alone, the table would have no key, which CockroachDB refuses.
        yield f"ALTER TABLE {table} {drop}ADD {_keys(connection, wanted)[0]}"
    uniques = {(unique.name, unique.columns) for unique in live.uniques}
    for unique, sql in zip(wanted.uniques, _keys(connection, wanted)[1:], strict=True):
        if (unique.name, unique.columns) not in uniques:
            yield f"ALTER TABLE {table} ADD {sql}"
    keys = {unique.columns: unique.name for unique in wanted.uniques}
    for unique in live.uniques:
        if unique.columns in keys and unique.name != keys[unique.columns]:
            # The same under the name of another release. A unique constraint is dropped as its index there.
            yield f"DROP INDEX {quote(unique.name or '')} CASCADE"
    for index in live.indexes:
        if index.name in LEFT_OVER_INDEXES and wanted.index(index.name) is None:
            yield f"DROP INDEX {quote(index.name)}"
    for index in wanted.indexes:
        found = live.index(index.name)
        if found is None:
            yield add_index_sql(wanted.name, index)
        elif _differs(found, index):
            yield f"DROP INDEX {quote(index.name)}"


def _column_steps(
    connection: BaseDatabaseWrapper,
    wanted: Table,
    live: Table,
    column: Column,
    sources: Mapping[str, str],
) -> Iterator[str]:
    quote = connection.ops.quote_name
    table, name, fresh = (
        quote(wanted.name),
        quote(column.name),
        quote(FRESH + column.name),
    )
    here, filling = live.column(column.name), live.column(FRESH + column.name)
    source = sources.get(column.name)
    if here is None and filling is not None:
        yield f"ALTER TABLE {table} RENAME COLUMN {fresh} TO {name}"
        return
    if here is None or here.type != column.type:
        if source is None and (
            here is not None or (column.default is None and not column.nullable)
        ):
            raise SchemaMismatchError(
                f"Column {wanted.name}.{column.name} "
                + (
                    "is missing."
                    if here is None
                    else f"has the type {here.type} and must have {column.type}."
                )
                + " Run 'agentdb baselinedb'."
            )
        if source is None:
            yield f"ALTER TABLE {table} ADD COLUMN {name} {_declaration(column)}"
            return
        if filling is None:
            yield f"ALTER TABLE {table} ADD COLUMN {fresh} {column.type}"
            return
        # Also rows that the old server has written to since they were filled.
        yield from _fill(
            connection,
            wanted,
            live,
            fresh,
            source,
            f"{fresh} IS DISTINCT FROM {source}" if here else "",
        )
        if filling.default != column.default:
            yield f"ALTER TABLE {table} ALTER COLUMN {fresh} SET DEFAULT {column.default}"
        if filling.nullable and not column.nullable:
            yield f"ALTER TABLE {table} ALTER COLUMN {fresh} SET NOT NULL"
        if here is not None:
            # One statement, so that the column is never missing; CockroachDB has that, PostgreSQL does not.
            stale = quote(STALE + column.name)
            yield f"ALTER TABLE {table} RENAME COLUMN {name} TO {stale}, RENAME COLUMN {fresh} TO {name}"
        return
    if live.column(STALE + column.name) is not None:
        for index in live.indexes:
            if any(STALE + column.name in part.expression for part in index.parts):
                yield f"DROP INDEX {quote(index.name)}"
        yield f"ALTER TABLE {table} DROP COLUMN {quote(STALE + column.name)}"
    if here.default != column.default:
        change = (
            "DROP DEFAULT"
            if column.default is None
            else f"SET DEFAULT {column.default}"
        )
        yield f"ALTER TABLE {table} ALTER COLUMN {name} {change}"
    if here.nullable and not column.nullable:
        if source is not None:
            yield from _fill(connection, wanted, live, name, source)
        yield f"ALTER TABLE {table} ALTER COLUMN {name} SET NOT NULL"
    elif column.nullable and not here.nullable:
        yield f"ALTER TABLE {table} ALTER COLUMN {name} DROP NOT NULL"


def _fill(
    connection: BaseDatabaseWrapper,
    wanted: Table,
    live: Table,
    column: str,
    source: str,
    unless: str = "",
) -> Iterator[str]:
    """Yield the UPDATE of a batch, if a row is left that has no value, or for which ``unless`` is true."""
    quote = connection.ops.quote_name
    table = quote(wanted.name)
    missing = unless or f"{column} IS NULL"
    key = ", ".join(
        quote(name) for name in (live.primary_key.columns if live.primary_key else ())
    )
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT 1 FROM {table} WHERE {missing} LIMIT 1")
        if cursor.fetchone() is None:
            return
    batch = (
        f"({key}) IN (SELECT {key} FROM {table} WHERE {missing} ORDER BY {key} LIMIT {ROWS_AT_ONCE})"
        if key
        else missing
    )
    yield f"UPDATE {table} SET {column} = {source} WHERE {batch}"


def _declaration(column: Column) -> str:
    default = f" DEFAULT {column.default}" if column.default is not None else ""
    return f"{column.type}{default}{'' if column.nullable else ' NOT NULL'}"


def _keys(connection: BaseDatabaseWrapper, wanted: Table) -> list[str]:
    """The primary key and the unique constraints, as a table's definition has them."""
    quote = connection.ops.quote_name

    def constraint(name: str | None, kind: str, columns: tuple[str, ...]) -> str:
        return (
            f"CONSTRAINT {quote(name or '')} {kind} ({', '.join(map(quote, columns))})"
        )

    assert wanted.primary_key is not None  # every table of ours has one
    return [
        constraint(wanted.primary_key.name, "PRIMARY KEY", wanted.primary_key.columns),
        *(
            constraint(unique.name, "UNIQUE", unique.columns)
            for unique in wanted.uniques
        ),
    ]


def _differs(live: Index, wanted: Index) -> bool:
    # CockroachDB writes out what PostgreSQL leaves unsaid (methods, operator classes, where NULLs go).
    def shape(index: Index) -> object:
        return (
            [(part.expression, part.descending) for part in index.parts],
            index.unique,
            index.condition,
        )

    return shape(live) != shape(wanted)
