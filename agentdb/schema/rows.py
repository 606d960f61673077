"""Reads rows as they are stored, also with values that do not belong in their columns.

SQLite accepts a value of any type in any column, and bytes that are not UTF-8 in texts. SQL finds the few rows with
such values, and Python reads only those.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.schema.queries import rows
from agentdb.schema.spelling import is_in_calendar, is_spelt_as_agentdb_does
from agentdb.schema.sqltext import quote_name


@dataclass(frozen=True)
class StoredColumn:
    name: str
    kind: str  # text, text or null, integer, timestamp
    type: str = ""
    is_native: bool = True  # a timestamp of the models' type

    @property
    def sql(self) -> str:
        return quote_name(self.name)

    @property
    def is_to_convert(self) -> bool:
        return self.kind == "timestamp" and not self.is_native


@dataclass(frozen=True, slots=True)
class NotUtf8:
    """Bytes that are stored as text."""

    value: bytes


def decoded(value: bytes) -> str | NotUtf8:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return NotUtf8(value)


def shown(value: object) -> str:
    """Format the value for messages."""
    if value is None:
        return "NULL"
    return repr(value.value if isinstance(value, NotUtf8) else value)


def count_rows(connection: BaseDatabaseWrapper, table: str) -> int:
    [(number,)] = rows(connection, f"SELECT count(*) FROM {quote_name(table)}")
    return int(number)


def read_sqlite(connection: BaseDatabaseWrapper, sql: str) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a query, a text that is not UTF-8 as ``NotUtf8``.

    Bypasses Django, whose converters trust a column's declared type and cannot read everything.
    """
    raw = connection.connection
    before, raw.text_factory = raw.text_factory, decoded
    try:
        with connection.wrap_database_errors:
            yield from raw.execute(sql)
    finally:
        raw.text_factory = before


def is_usual_on_sqlite(
    connection: BaseDatabaseWrapper, columns: Iterable[StoredColumn]
) -> str:
    """Return an SQL condition: all values of the row are usual. It may be unknown instead of false."""
    connection.ensure_connection()
    connection.connection.create_function(
        "agentdb_is_plain", 1, _is_plain, deterministic=True
    )
    conditions = [f"({_is_usual(column)})" for column in columns]
    # One call of Python for all texts of a row, because each call takes longer than SQLite takes for the whole row.
    texts = [
        f"coalesce({column.sql}, '')"
        for column in columns
        if column.kind.startswith("text")
    ]
    if texts:
        joined = " || '|' || ".join(texts)
        conditions.append(f"agentdb_is_plain(CAST({joined} AS BLOB))")
    return " AND ".join(conditions)


def _is_plain(value: bytes) -> bool:
    """Return whether it is UTF-8 without U+0000."""
    text = decoded(value)
    return isinstance(text, str) and "\0" not in text


def _is_usual(column: StoredColumn) -> str:
    sql = column.sql
    if column.is_to_convert:
        # A text that comes back unchanged is in the format; the modifier makes SQLite check the calendar too.
        server = f"CASE WHEN length({sql}) = 24 THEN '%Y-%m-%dT%H:%M:%fZ' ELSE '%Y-%m-%d %H:%M:%S' END"
        back = f"strftime({server}, {sql}) = {sql} COLLATE BINARY"
        return f"typeof({sql}) = 'text' AND {back} AND {is_in_calendar(sql)}"
    if column.kind == "timestamp":
        return is_spelt_as_agentdb_does(sql)
    if column.kind == "integer":
        return f"typeof({sql}) = 'integer' AND {sql} BETWEEN {-(2**31)} AND {2**31 - 1}"
    null = f"{sql} IS NULL OR " if column.kind == "text or null" else ""
    return f"{null}typeof({sql}) = 'text'"
