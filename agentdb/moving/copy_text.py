"""Rows of a table as COPY's text format has them: what is hashed, sent to a server and received from one.

One format for all engines, so that equal rows are equal bytes, and a server's rows pass through Python unread.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Generator, Iterable, Iterator
from itertools import chain, islice
from typing import Any

import psycopg
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import DateTimeField, Model

from agentdb.errors import AgentDbError
from agentdb.schema.queries import quote_name
from agentdb.schema.rows import AS_SQLITE_TEXT, read_sqlite, shown

# A few hundred kilobytes: so much that Python's part is small, and so little that memory stays constant.
ROWS_A_CHUNK = 1_000
Chunk = bytes  # rows, a line each
Row = tuple[str | None, ...]

# What ends a value and a row of a SQLite file, and NULL: bytes that no UTF-8 text contains.
_VALUE_END = b"\xfd"
_ROW_END = b"\xfe"
_NULL = b"\xff"
_ENDS = bytes.maketrans(_VALUE_END + _ROW_END, b"\t\n")

_TO_ESCAPE = re.compile(rb"[\\\x08-\x0d]")
_ESCAPES = {
    b"\\": b"\\\\",
    b"\b": b"\\b",
    b"\t": b"\\t",
    b"\n": b"\\n",
    b"\v": b"\\v",
    b"\f": b"\\f",
    b"\r": b"\\r",
}
_PLAIN = {escape.decode(): plain.decode() for plain, escape in _ESCAPES.items()}


def read_chunks(
    connection: BaseDatabaseWrapper,
    model: type[Model],
    *,
    after: str | None = None,
    limit: int | None = None,
) -> Generator[Chunk]:
    """Yield all rows in code-point order of the id, or those after an id, in constant memory.

    To be closed by whoever may stop before the end, also at an error: until then a server's connection is busy with its
    COPY, and waits without end before it does anything else.
    """
    # In the order of the index on the id, so that a copy resumes after the last id, and two tables can be compared side
    # by side.
    fields = model._meta.concrete_fields
    columns = ", ".join(_column(connection, field) for field in fields)
    table = quote_name(model._meta.db_table)
    id_ = 'id COLLATE "C"' if connection.vendor == "postgresql" else "id"
    # The driver's own: these statements do not pass through Django's cursors.
    placeholder = "?" if connection.vendor == "sqlite" else "%s"
    sql = f"SELECT {columns} FROM {table}"
    if after is not None:
        sql += f" WHERE {id_} > {placeholder}"
    sql += f" ORDER BY {id_}"
    if limit is not None:
        sql += f" LIMIT {limit}"
    parameters = [] if after is None else [after]
    connection.ensure_connection()
    if connection.vendor == "sqlite":
        stored = read_sqlite(connection, sql, parameters)
        while rows := list(islice(stored, ROWS_A_CHUNK)):
            yield _encoded(rows)
        return
    raw = connection.connection
    # One message is one row. If the loop ends early, COPY is cancelled; the savepoint saves the snapshot.
    with (
        connection.wrap_database_errors,
        raw.transaction(),
        raw.cursor().copy(f"COPY ({sql}) TO STDOUT", parameters) as copying,
    ):
        lines = iter(copying)
        while chunk := b"".join(islice(lines, ROWS_A_CHUNK)):
            yield chunk


def _column(connection: BaseDatabaseWrapper, field: Any) -> str:
    """Return the SQL for a column's value as it is in COPY's text, or as bytes that ``_encoded`` makes it of."""
    quoted = quote_name(str(field.column))
    if connection.vendor == "sqlite":
        # As bytes, so that the driver converts nothing.
        blob = f"CAST({quoted} AS BLOB)"
        if field.null:
            return f"coalesce({blob}, x'{_NULL.hex()}')"
        return blob
    if isinstance(field, DateTimeField):
        return AS_SQLITE_TEXT.format(quoted)
    return quoted


def _encoded(rows: list[tuple[bytes, ...]]) -> Chunk:
    """Escape the values of all rows at once.

    The ends between them become tabs and line feeds only afterwards, because in a value those are escaped.
    """
    chunk = b"".join([_VALUE_END.join(row) + _ROW_END for row in rows])
    chunk = _TO_ESCAPE.sub(lambda found: _ESCAPES[found[0]], chunk)
    chunk = chunk.translate(_ENDS)
    return chunk.replace(_NULL, b"\\N")


def rows_of(chunk: Chunk) -> Iterator[Row]:
    """Yield the rows as texts. Bytes that are not UTF-8, which only a SQLite file can have, become lone surrogates."""
    without_last_end = chunk[:-1]
    text = without_last_end.decode(errors="surrogateescape")
    return map(_values, text.split("\n"))


def _values(line: str) -> Row:
    """Return the values of a line, unescaped; None for NULL."""
    values = line.split("\t")
    # Nearly all lines have no escape, and looking for one in the whole line is faster than in each value.
    if "\\" not in line:
        return tuple(values)
    return tuple(map(_unescaped, values))


def _unescaped(value: str) -> str | None:
    if value == "\\N":
        return None
    # NULL within a value is the byte that stands for it, in a text of a SQLite file that is not UTF-8.
    return re.sub(r"\\.", lambda found: _PLAIN.get(found[0], "\udcff"), value)


def row_id(row: Row) -> str:
    assert row[0] is not None  # a primary key
    return row[0]


def last_id(chunk: Chunk) -> str:
    """Return the id of the last row, without reading the others."""
    # The end of the line before it; -1 if it is the only one, so that it begins at 0.
    end_before = chunk.rfind(b"\n", 0, -1)
    last_line = chunk[end_before + 1 :]
    [row] = rows_of(last_line)
    return row_id(row)


def fills_chunks(rows: int) -> bool:
    """Return whether so many rows are whole chunks, so that a row behind them begins another one."""
    return rows % ROWS_A_CHUNK == 0


def insert(
    connection: BaseDatabaseWrapper,
    model: type[Model],
    chunks: Iterator[Chunk],
) -> None:
    """Insert the rows of one chunk at least, each chunk as it comes: a server works on it while the next is read.

    What the target refuses becomes an ``AgentDbError``.
    """
    table = model._meta.db_table
    # By name: an adopted table has its columns in another order.
    columns = [quote_name(str(field.column)) for field in model._meta.concrete_fields]
    into = f"{quote_name(table)} ({', '.join(columns)})"
    first = next(chunks)
    try:
        _send(connection, into, len(columns), chain([first], chunks))
    # The driver's own errors. If the source fails while its rows are read here, the error is Django's already.
    except (sqlite3.Error, psycopg.Error) as error:
        first_row = next(rows_of(first))
        first_id = shown(row_id(first_row))
        reason = str(error).partition("\n")[0]
        raise AgentDbError(
            f"Table {table!r}: the target refused a row from id {first_id} on: {reason}."
        ) from error


def _send(
    connection: BaseDatabaseWrapper,
    into: str,
    columns: int,
    chunks: Iterable[Chunk],
) -> None:
    """Insert the rows with a single statement.

    A server may refuse a row as late as at the end of its COPY.
    """
    if connection.vendor == "sqlite":
        placeholders = ", ".join("?" * columns)
        connection.connection.executemany(
            f"INSERT INTO {into} VALUES ({placeholders})",
            chain.from_iterable(map(rows_of, chunks)),
        )
        return
    # The texts of instants that are sent have no offset: Django's sessions are in UTC, or were refused.
    with (
        connection.cursor() as cursor,
        cursor.copy(f"COPY {into} FROM STDIN") as copying,
    ):
        for chunk in chunks:
            copying.write(chunk)
