"""Reads and inserts the rows of a table as texts, so that equal rows are equal on every engine."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import closing
from functools import partial
from itertools import islice
from typing import Any

import psycopg
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import DateTimeField, Model

from agentdb.errors import AgentDbError
from agentdb.schema.inspection import translated_errors
from agentdb.schema.queries import quote_name
from agentdb.schema.rows import AS_SQLITE_TEXT, read_sqlite, shown

# A few megabytes: so much that a COMMIT for each costs little, and so little that memory stays constant.
ROWS_A_CHUNK = 10_000
Row = tuple[Any, ...]  # a text or None for each column, the id first
Chunk = list[Row]

# Bytes that are not UTF-8, which only a SQLite file can have, become lone surrogates.
_decoded = partial(str, encoding="utf-8", errors="surrogateescape")


def read_chunks(
    connection: BaseDatabaseWrapper, model: type[Model]
) -> Generator[Chunk]:
    """Yield all rows in code-point order of the id, in constant memory.

    To be closed by whoever may stop before the end, also at an error: until then a server's connection is busy with its
    COPY, and waits without end before it does anything else.
    """
    # In the order of the index on the id, so that a copy resumes where it stopped, and two tables can be compared side
    # by side.
    columns = [_as_text(connection, field) for field in model._meta.concrete_fields]
    table = quote_name(model._meta.db_table)
    id_ = 'id COLLATE "C"' if connection.vendor == "postgresql" else "id"
    sql = f"SELECT {', '.join(columns)} FROM {table} ORDER BY {id_}"
    connection.ensure_connection()
    # An error is this database's, and not that of the one into which the rows are copied. An inspecting connection has
    # a URI for its name.
    named = connections[connection.alias]
    with translated_errors(named), closing(_read(connection, sql)) as rows:
        while chunk := list(islice(rows, ROWS_A_CHUNK)):
            yield chunk


def _read(connection: BaseDatabaseWrapper, sql: str) -> Generator[Row]:
    if connection.vendor == "sqlite":
        yield from read_sqlite(connection, sql, text_factory=_decoded)
        return
    raw = connection.connection
    # If the loop ends early, COPY is cancelled; the savepoint saves the snapshot.
    with (
        connection.wrap_database_errors,
        raw.transaction(),
        raw.cursor().copy(f"COPY ({sql}) TO STDOUT") as copying,
    ):
        yield from copying.rows()


def _as_text(connection: BaseDatabaseWrapper, field: Any) -> str:
    quoted = quote_name(str(field.column))
    if connection.vendor == "sqlite":
        return f"CAST({quoted} AS TEXT)"
    # COPY makes texts of all other types.
    if isinstance(field, DateTimeField):
        return AS_SQLITE_TEXT.format(quoted)
    return quoted


def insert(connection: BaseDatabaseWrapper, model: type[Model], chunk: Chunk) -> None:
    """Insert the rows. What the target refuses becomes an ``AgentDbError``."""
    table = model._meta.db_table
    # By name: an adopted table has its columns in another order.
    columns = [quote_name(str(field.column)) for field in model._meta.concrete_fields]
    into = f"{quote_name(table)} ({', '.join(columns)})"
    try:
        _send(connection, into, chunk)
    except (sqlite3.Error, psycopg.Error) as error:
        reason = str(error).partition("\n")[0]
        raise AgentDbError(
            f"Table {table!r}: the target refused a row from id {shown(chunk[0][0])} on: {reason}."
        ) from error


def _send(connection: BaseDatabaseWrapper, into: str, chunk: Chunk) -> None:
    """Insert the rows with a single statement; a server may refuse a row as late as at the end of it."""
    if connection.vendor == "sqlite":
        placeholders = ", ".join("?" * len(chunk[0]))
        connection.connection.executemany(
            f"INSERT INTO {into} VALUES ({placeholders})", chunk
        )
        return
    # The texts of instants that are sent have no offset: Django's sessions are in UTC, or were refused.
    with (
        connection.cursor() as cursor,
        cursor.copy(f"COPY {into} FROM STDIN") as copying,
    ):
        for row in chunk:
            copying.write_row(row)
