"""Stored values that Python cannot hold: times out of its calendar, text that is not UTF-8. Finds and names them."""

from __future__ import annotations

from typing import Any, TypeGuard

from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.translation import gettext


class Unreadable(str):
    """What is stored in place of a value that cannot be read; empty if the table lacks the column."""

    is_missing: bool

    def __new__(cls, stored: str, *, is_missing: bool = False) -> Unreadable:
        made = super().__new__(cls, stored)
        made.is_missing = is_missing
        return made


def is_unreadable(value: Any) -> TypeGuard[Unreadable]:
    """Whether the value of a row is an ``Unreadable``, which takes the place of any type."""
    return isinstance(value, Unreadable)


# The instants of each table, one that an index orders first, and the texts.
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


def unreadable_rows(connection: BaseDatabaseWrapper, limit: int, *, thorough: bool = False) -> list[str]:
    """A sentence for each. Times are looked for at both ends of an index, where nearly all of them sort; ``thorough``
    reads each row.
    """
    found: list[str] = []
    with connection.cursor() as cursor:
        for table, columns in _INSTANTS.items():
            for column in columns if thorough else columns[:1]:
                where = _odd_instants(connection, column, thorough=thorough)
                found += _shown_rows(connection, cursor, table, column, where, limit)
        if thorough and connection.vendor == "sqlite":
            connection.connection.create_function("agentdb_is_text", 1, _is_text, deterministic=True)
            for table, columns in _TEXTS.items():
                for column in columns:
                    where = f"{column} IS NOT NULL AND NOT agentdb_is_text(CAST({column} AS BLOB))"
                    found += _shown_rows(connection, cursor, table, column, where, limit)
    return found[:limit]


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _odd_instants(connection: BaseDatabaseWrapper, column: str, *, thorough: bool) -> str:
    if connection.vendor != "sqlite":
        return f"{column} >= '9999-12-31' OR {column} < '0001-01-02'"
    where = f"{column} >= '9999-12-31 23' OR {column} < '0001'"
    if thorough:
        where += f" OR typeof({column}) <> 'text' OR datetime({column}) IS NULL"
    return where


def _shown_rows(
    connection: BaseDatabaseWrapper, cursor: Any, table: str, column: str, where: str, limit: int
) -> list[str]:
    if connection.vendor == "sqlite":
        # As hexadecimal text, because bytes that are no UTF-8 could not be fetched as text.
        shown = f"hex(CAST(id AS BLOB)), hex(CAST({column} AS BLOB))"
        cursor.execute(f"SELECT {shown} FROM {table} WHERE {where} LIMIT {limit}")
        rows = [[bytes.fromhex(each or "").decode(errors="backslashreplace") for each in row] for row in cursor]
    else:
        cursor.execute(f"SELECT id, CAST({column} AS text) FROM {table} WHERE {where} LIMIT {limit}")
        rows = [[str(each) for each in row] for row in cursor]
    return [unreadable_sentence(table, id, column, value) for id, value in rows]


def unreadable_sentence(table: str, id: str, column: str, value: str) -> str:
    sentence = gettext("Row %(id)s of %(table)s has %(column)s = %(value)s.")
    return sentence % {"id": repr(id), "table": table, "column": column, "value": repr(value[:60])}
