"""Reads rows as they are stored, also with values that do not belong in their columns.

SQLite accepts a value of any type in any column, and bytes that are not UTF-8 in texts. A server has instants that
Python cannot represent: ``infinity``, years outside 1 to 9999. SQL finds the few rows with such values, and Python
reads only those.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.schema.queries import count_rows, quote_name, rows
from agentdb.schema.tables import Table


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


def read_sqlite(
    connection: BaseDatabaseWrapper,
    sql: str,
    text_factory: Callable[[bytes], object] = decoded,
) -> Generator[tuple[Any, ...]]:
    """Yield the rows of a query, a text that is not UTF-8 as ``NotUtf8``.

    Bypasses Django, whose converters trust a column's declared type and cannot read everything.
    """
    raw = connection.connection
    before, raw.text_factory = raw.text_factory, text_factory
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
    connection.connection.create_function("agentdb_is_plain", 1, _is_plain)
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


# SQL of a server: a native timestamp in SQLite's format.
AS_SQLITE_TEXT = (
    "replace(to_char({} AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US'), '.000000', '')"
)


@dataclass(frozen=True)
class Misspelt:
    """Timestamps of a column that another program wrote in its own format."""

    table: str
    column: str
    rows: int
    example: str


def is_in_python(column: str) -> str:
    """SQL of a server: Python can represent the instant, which infinity, BC and years above 9999 are not."""
    # With the zone: a limit without one would be read in the session's zone, which moves it by hours.
    return (
        f"{column} >= '0001-01-01 00:00:00+00' AND {column} < '10000-01-01 00:00:00+00'"
    )


def sorts_outside(column: str) -> str:
    """SQL of SQLite: the text sorts before year 1 or after year 9999."""
    # Two comparisons with OR, because SQLite looks each up in an index; for NOT with AND it would read every row. The
    # hyphen keeps '0001-' a text: a datetime column has NUMERIC affinity, which makes a number of '0001', and every
    # text sorts after every number.
    return f"{column} < '0001-' OR {column} > '9999-12-31 23:59:59.999999'"


def is_in_calendar(column: str) -> str:
    """SQL: the text, which begins as ``YYYY-MM-DD HH``, names a day from year 1 on and an hour below 24."""
    return (
        f"{column} >= '0001-' AND substr({column}, 12, 2) < '24'"
        # Days that every month has skip the slower calendar check.
        f" AND (substr({column}, 9, 2) BETWEEN '01' AND '28'"
        f" OR strftime('%Y-%m-%d', substr({column}, 1, 10), '+0 days') = substr({column}, 1, 10))"
    )


def is_spelt_as_agentdb_does(column: str) -> str:
    """SQL: the value is ``YYYY-MM-DD HH:MM:SS``, with six digits of a second behind it unless those are zeros."""
    # strftime() reads other spellings too: only what it writes back letter by letter is in this one. It lets '24:00'
    # and the 30th of February pass, hence the calendar.
    return (
        f"typeof({column}) = 'text' AND strftime('%Y-%m-%d %H:%M:%S', substr({column}, 1, 19))"
        f" = substr({column}, 1, 19) AND {is_in_calendar(column)} AND (length(CAST({column} AS BLOB)) = 19"
        f" OR length(CAST({column} AS BLOB)) = 26 AND substr({column}, 20) GLOB '.{'[0-9]' * 6}'"
        f" AND substr({column}, 21) <> '000000')"
    )


def misspelt_timestamps(
    connection: BaseDatabaseWrapper, tables: Mapping[str, Table]
) -> list[Misspelt]:
    """Read the native timestamps of these tables, and return the columns with values that sort and compare wrongly."""
    if connection.vendor != "sqlite":
        return []
    found = []
    for name, table in tables.items():
        columns = [column.name for column in table.columns if column.type == "datetime"]
        for column in columns if table.kind == "table" else ():
            quoted = quote_name(column)
            [(number, example)] = read_sqlite(
                connection,
                f"SELECT count(*), min({quoted}) FROM {quote_name(table.name)}"
                f" WHERE ({is_spelt_as_agentdb_does(quoted)}) IS NOT TRUE AND {quoted} IS NOT NULL",
                text_factory=_with_escapes,
            )
            if number:
                found.append(Misspelt(name, column, number, str(example)))
    return found


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
    """Return whether the role may read the table, and all of its rows."""
    if connection.vendor == "sqlite":
        return True
    named = [table]
    sql = "SELECT has_table_privilege(quote_ident(%s), 'SELECT')"
    if connection.vendor == "postgresql":
        # A policy hides rows, or fails: it may ask for a setting that only the operator's program makes.
        named.append(table)
        sql += " AND NOT row_security_active(quote_ident(%s))"
    return rows(connection, sql, named) == [(True,)]


def readable_rows(connection: BaseDatabaseWrapper, table: str) -> int:
    """Return the number of rows; 0 if the role may not read them all."""
    return count_rows(connection, table) if may_read(connection, table) else 0


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
        connection.connection.create_function("agentdb_is_text", 1, _is_text)
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
    return _with_escapes(bytes.fromhex(value or ""))


def _with_escapes(text: bytes) -> str:
    return text.decode(errors="backslashreplace")
