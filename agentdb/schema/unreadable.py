"""Finds values that Python cannot represent: ``infinity``, years outside 1 to 9999, bytes that are not UTF-8."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.schema.rows import decoded

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


def unreadable_values(
    connection: BaseDatabaseWrapper,
    limit: int,
    *,
    tables: tuple[str, ...] = tuple(_INSTANTS),
    thorough: bool = False,
) -> Iterator[UnreadableValue]:
    """Yield up to ``limit`` of each column. Times are searched at both ends of an index, where nearly all of them
    sort; ``thorough`` reads every row.
    """
    with connection.cursor() as cursor:
        for table in tables:
            for column in _INSTANTS[table] if thorough else _INSTANTS[table][:1]:
                where = _odd_instants(connection, column, thorough=thorough)
                yield from _values(connection, cursor, table, column, where, limit)
        if not thorough or connection.vendor != "sqlite":
            return
        connection.connection.create_function(
            "agentdb_is_text", 1, _is_text, deterministic=True
        )
        for table in tables:
            for column in _TEXTS[table]:
                where = f"{column} IS NOT NULL AND NOT agentdb_is_text(CAST({column} AS BLOB))"
                yield from _values(connection, cursor, table, column, where, limit)


def _is_text(value: bytes) -> bool:
    return isinstance(decoded(value), str)


def _odd_instants(
    connection: BaseDatabaseWrapper, column: str, *, thorough: bool
) -> str:
    if connection.vendor != "sqlite":
        return f"{column} >= '9999-12-31' OR {column} < '0001-01-02'"
    where = f"{column} >= '9999-12-31 23' OR {column} < '0001'"
    if thorough:
        where += f" OR typeof({column}) <> 'text' OR datetime({column}) IS NULL"
    return where


def _values(
    connection: BaseDatabaseWrapper,
    cursor: Any,
    table: str,
    column: str,
    where: str,
    limit: int,
) -> list[UnreadableValue]:
    if connection.vendor == "sqlite":
        # In hex, because bytes that are not UTF-8 cannot be fetched as text.
        shown = f"hex(CAST(id AS BLOB)), hex(CAST({column} AS BLOB))"
        cursor.execute(f"SELECT {shown} FROM {table} WHERE {where} LIMIT {limit}")
        rows = [
            [
                bytes.fromhex(each or "").decode(errors="backslashreplace")
                for each in row
            ]
            for row in cursor
        ]
    else:
        cursor.execute(
            f"SELECT id, CAST({column} AS text) FROM {table} WHERE {where} LIMIT {limit}"
        )
        rows = [[str(each) for each in row] for row in cursor]
    return [
        UnreadableValue(table, id, column, value[:_SHOWN_CHARACTERS])
        for id, value in rows
    ]
