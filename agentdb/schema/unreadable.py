"""Finds values that Python cannot represent: ``infinity``, years outside 1 to 9999, bytes that are not UTF-8."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.schema.queries import rows
from agentdb.schema.rows import decoded
from agentdb.schema.spelling import (
    is_in_calendar,
    is_in_python,
    is_spelt_as_agentdb_does,
    sorts_outside,
)
from agentdb.schema.sqltext import quote_name
from agentdb.schema.tables import Table

# The timestamps of each table, the indexed one first, and the texts.
_INSTANTS = {
    "sessions": ("created_at", "last_active_at"),
    "sandboxes": ("last_used_at", "created_at"),
    "agents": ("created_at", "updated_at"),
    "api_keys": ("created_at",),
}
_TEXTS = {
    "sessions": ("tenant_id", "agent_name", "sandbox_id", "status", "runner_id"),
    "sandboxes": ("tenant_id", "session_id", "agent_name", "state", "workspace_dir"),
    "agents": ("tenant_id", "name", "path"),
    "api_keys": ("tenant_id", "label"),
}
_SHOWN_CHARACTERS = 60


class UnreadableValue(NamedTuple):
    """The place of the value, and its text."""

    table: str
    id: str
    column: str
    value: str

    def __str__(self) -> str:
        return f"row {self.id!r} of {self.table} has {self.column} = {self.value!r}"


def may_read(connection: BaseDatabaseWrapper, table: str) -> bool:
    """Return whether the role may read the table."""
    if connection.vendor == "sqlite":
        return True
    sql = "SELECT has_table_privilege(quote_ident(%s), 'SELECT')"
    return rows(connection, sql, [table]) == [(True,)]


def unreadable_timestamps(
    connection: BaseDatabaseWrapper, tables: Iterable[Table]
) -> Iterator[UnreadableValue]:
    """Yield all native timestamps of these tables on a server that Python cannot represent, in the order of the ids."""
    if connection.vendor == "sqlite":
        return
    for table in tables:
        # Another program's table of that name may have no id; a view reads rows that are not its own.
        if table.kind != "table" or table.column("id") is None:
            continue
        if not may_read(connection, table.name):
            continue
        for column in table.columns:
            if column.type != "timestamp with time zone":
                continue
            # Not all at once: every row may have one.
            with connection.chunked_cursor() as cursor:
                where = f"NOT ({is_in_python(quote_name(column.name))}) ORDER BY id"
                yield from _values(cursor, table.name, column.name, where)


def unreadable_values(
    connection: BaseDatabaseWrapper,
    limit: int,
    *,
    tables: tuple[str, ...] = tuple(_INSTANTS),
    thorough: bool,
) -> Iterator[UnreadableValue]:
    """Yield up to ``limit`` of each column. Times are searched at both ends of an index, where nearly all of them
    sort; ``thorough`` reads every row.
    """
    is_sqlite = connection.vendor == "sqlite"
    with connection.cursor() as cursor:
        for table in tables:
            for column in _INSTANTS[table] if thorough else _INSTANTS[table][:1]:
                where = f"NOT ({is_in_python(column)})"
                if is_sqlite:
                    where = _odd_text(column, thorough=thorough)
                yield from _values(cursor, table, column, f"{where} LIMIT {limit}")
        # Only SQLite stores bytes that are not UTF-8 as text.
        if not thorough or not is_sqlite:
            return
        connection.connection.create_function(
            "agentdb_is_text", 1, _is_text, deterministic=True
        )
        for table in tables:
            for column in _TEXTS[table]:
                where = f"{column} IS NOT NULL AND NOT agentdb_is_text(CAST({column} AS BLOB))"
                yield from _values(cursor, table, column, f"{where} LIMIT {limit}")


def misspelt_recently(
    connection: BaseDatabaseWrapper, newest: int
) -> Iterator[UnreadableValue]:
    """Yield one timestamp of each column that another program spelt, among the ``newest`` rows of a SQLite table.

    An old server spells the present with a T, which sorts after agentdb's space: its rows are the newest of the day.
    """
    if connection.vendor != "sqlite":
        return
    with connection.cursor() as cursor:
        for table, columns in _INSTANTS.items():
            rows = f"SELECT id FROM {table} ORDER BY {columns[0]} DESC LIMIT {newest}"
            for column in columns:
                where = f"id IN ({rows}) AND ({is_spelt_as_agentdb_does(column)}) IS NOT TRUE"
                if column == columns[0]:  # where unreadable_values() finds those
                    where += f" AND NOT ({sorts_outside(column)})"
                where += " LIMIT 1"
                yield from _values(cursor, table, column, where)


def _is_text(value: bytes) -> bool:
    return isinstance(decoded(value), str)


def _odd_text(column: str, *, thorough: bool) -> str:
    outside = sorts_outside(column)
    if not thorough:
        return outside
    # Python reads more spellings than agentdb's, and so does datetime(). But that takes a number for a Julian day and
    # the 30th of February for the 2nd of March, and rounds the last millisecond of 9999 up to NULL.
    return (
        f"({is_spelt_as_agentdb_does(column)}) IS NOT TRUE AND ({outside} OR typeof({column}) <> 'text'"
        f" OR datetime({column}) IS NULL OR NOT ({is_in_calendar(column)}))"
    )


def _values(
    cursor: Any, table: str, column: str, where: str
) -> Iterator[UnreadableValue]:
    quoted = quote_name(column)
    if cursor.db.vendor == "sqlite":
        # In hex, because bytes that are not UTF-8 cannot be fetched as text.
        stored = f"hex(CAST(id AS BLOB)), hex(CAST({quoted} AS BLOB))"
    else:
        stored = f"CAST(id AS text), CAST({quoted} AS text)"
    cursor.execute(f"SELECT {stored} FROM {quote_name(table)} WHERE {where}")
    for row in cursor:
        id_, value = map(_from_hex, row) if cursor.db.vendor == "sqlite" else row
        yield UnreadableValue(table, id_, column, value[:_SHOWN_CHARACTERS])


def _from_hex(value: str | None) -> str:
    return bytes.fromhex(value or "").decode(errors="backslashreplace")
