"""Rows of a table as COPY's text format has them: what is hashed, sent to a server and received from one.

One format for all engines, so that equal rows are equal bytes, and a server's rows pass through Python unread.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

from django.db import DatabaseError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import DateTimeField, Model

from agentdb.errors import AgentDbError
from agentdb.schema.rows import decoded, shown
from agentdb.schema.spelling import AS_SQLITE_TEXT
from agentdb.schema.sqltext import quote_name

# A few hundred kilobytes: so much that Python's part is small, and so little that memory stays constant.
ROWS_A_CHUNK = 1_000
Chunk = bytes  # rows, a line each
Row = tuple[bytes | None, ...]

# Stands for NULL among the values of a SQLite file, because no UTF-8 text contains it.
_NULL = b"\xff"
_ESCAPES = {
    b"\\": b"\\\\",
    b"\b": b"\\b",
    b"\t": b"\\t",
    b"\n": b"\\n",
    b"\v": b"\\v",
    b"\f": b"\\f",
    b"\r": b"\\r",
}
# By what stands behind the backslash.
_UNESCAPES = {escape[1:]: plain for plain, escape in _ESCAPES.items()}
# What is looked for in a whole chunk. A tab or a line feed in a value shows in the count of them.
_ESCAPED = b"\\\b\v\f\r"


def read_chunks(
    connection: BaseDatabaseWrapper,
    model: type[Model],
    *,
    size: int = ROWS_A_CHUNK,
    after: str | None = None,
    limit: int | None = None,
) -> Iterator[Chunk]:
    """Yield all rows in code-point order of the id, or those after an id, in constant memory."""
    # In the order of the index on the id, so that a copy resumes after the last id, and two tables can be compared side
    # by side.
    columns = ", ".join(_column(connection, f) for f in model._meta.concrete_fields)
    id_ = 'id COLLATE "C"' if connection.vendor == "postgresql" else "id"
    sql = f"SELECT {columns} FROM {quote_name(model._meta.db_table)}"
    if after is not None:
        sql += f" WHERE {id_} > {'?' if connection.vendor == 'sqlite' else '%s'}"
    sql += f" ORDER BY {id_}"
    if limit is not None:
        sql += f" LIMIT {limit}"
    parameters = [] if after is None else [after]
    connection.ensure_connection()
    raw = connection.connection
    if connection.vendor == "sqlite":
        with connection.wrap_database_errors:
            cursor = raw.execute(sql, parameters)
            while rows := cursor.fetchmany(size):
                yield _encoded(rows)
        return
    # One message is one row. If the loop ends early, COPY is cancelled; the savepoint saves the snapshot.
    with (
        connection.wrap_database_errors,
        raw.transaction(),
        raw.cursor().copy(f"COPY ({sql}) TO STDOUT", parameters) as copying,
    ):
        lines = iter(copying)
        while chunk := b"".join(islice(lines, size)):
            yield chunk


def read_rows(connection: BaseDatabaseWrapper, model: type[Model]) -> Iterator[Row]:
    for chunk in read_chunks(connection, model):
        yield from map(_fields, chunk[:-1].split(b"\n"))


def row_id(row: Row) -> bytes:
    assert row[0] is not None  # a primary key
    return row[0]


def first_id(chunk: Chunk) -> bytes:
    return row_id(_fields(chunk[: chunk.index(b"\n")]))


def last_id(chunk: Chunk) -> bytes:
    return row_id(_fields(chunk[chunk.rfind(b"\n", 0, -1) + 1 : -1]))


def shown_value(value: bytes | None) -> str:
    return shown(None if value is None else decoded(value))


def _column(connection: BaseDatabaseWrapper, field: Any) -> str:
    quoted = quote_name(str(field.column))
    if connection.vendor == "sqlite":
        # As bytes, so that the driver converts nothing.
        blob = f"CAST({quoted} AS BLOB)"
        return f"coalesce({blob}, x'{_NULL.hex()}')" if field.null else blob
    if isinstance(field, DateTimeField):
        return AS_SQLITE_TEXT.format(quoted)
    return quoted


def _encoded(rows: Sequence[Sequence[bytes]]) -> Chunk:
    """Join the rows, and escape value by value only if the chunk has something to escape: nearly none has."""
    chunk = b"\n".join([b"\t".join(row) for row in rows]) + b"\n"
    tabs = len(rows) * (len(rows[0]) - 1)
    is_plain = len(chunk.translate(None, _ESCAPED)) == len(chunk)
    if not is_plain or chunk.count(b"\n") != len(rows) or chunk.count(b"\t") != tabs:
        escaped = [b"\t".join([_escaped(value) for value in row]) for row in rows]
        chunk = b"\n".join(escaped) + b"\n"
    return chunk.replace(_NULL, b"\\N")


def _escaped(value: bytes) -> bytes:
    return re.sub(rb"[\\\x08-\x0d]", lambda found: _ESCAPES[found[0]], value)


def _fields(line: bytes) -> Row:
    values = line.split(b"\t")
    if b"\\" not in line:
        return tuple(values)
    return tuple(map(_unescaped, values))


def _unescaped(value: bytes) -> bytes | None:
    if value == b"\\N":
        return None
    return re.sub(rb"\\(.)", lambda found: _UNESCAPES[found[1]], value)


@contextmanager
def inserting(
    connection: BaseDatabaseWrapper, model: type[Model]
) -> Iterator[Callable[[Chunk], None]]:
    """Yield a function that inserts the rows of a chunk. What the target refuses becomes an ``AgentDbError``."""
    name = model._meta.db_table
    # By name: an adopted table has its columns in another order.
    columns = [quote_name(str(field.column)) for field in model._meta.concrete_fields]
    into = f"{quote_name(name)} ({', '.join(columns)})"
    first = b""

    @contextmanager
    def refusal() -> Iterator[None]:
        try:
            with connection.wrap_database_errors:
                yield
        except DatabaseError as error:
            raise AgentDbError(
                f"Table {name!r}: the target refused a row from id {shown_value(first)} on: "
                f"{str(error).partition(chr(10))[0]}."
            ) from error

    def write(chunk: Chunk) -> None:
        nonlocal first
        first = first or first_id(chunk)
        with refusal():
            send(chunk)

    with ExitStack() as stack:
        send = stack.enter_context(_sender(connection, into, len(columns)))
        yield write
        # A server may refuse a row as late as at the end of its COPY.
        with refusal():
            stack.close()


@contextmanager
def _sender(
    connection: BaseDatabaseWrapper, into: str, columns: int
) -> Iterator[Callable[[Chunk], object]]:
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            sql = f"INSERT INTO {into} VALUES ({', '.join('?' * columns)})"
            raw = connection.connection
            yield lambda chunk: raw.executemany(
                sql, map(_texts, chunk[:-1].decode().split("\n"))
            )
            return
        # The texts of instants that are sent have no offset.
        cursor.execute("SET LOCAL TimeZone = 'UTC'")
        with cursor.copy(f"COPY {into} FROM STDIN") as copying:
            yield copying.write


def _texts(line: str) -> tuple[str | None, ...]:
    if "\\" not in line:
        return tuple(line.split("\t"))
    return tuple(
        None if value is None else value.decode() for value in _fields(line.encode())
    )
