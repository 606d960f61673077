"""Rows for the console, also from a table that has drifted or stores a value that Python cannot represent.

Every row is returned. A value that cannot be read becomes an ``Unreadable``, and a problem says why.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import (
    DateTimeField,
    F,
    Field,
    Func,
    IntegerField,
    Model,
    QuerySet,
    TextField,
)
from django.db.models.sql.compiler import SQLCompiler
from django.utils.dateparse import parse_datetime
from django.utils.translation import gettext

from agentdb.console.display import instant
from agentdb.console.questions import Problem, Unanswered, logger, place_of, question
from agentdb.console.unreadable import Unreadable, is_unreadable, unreadable_sentence
from agentdb.schema import read_tables

_NAMED = 3  # unreadable values named in one sentence


class _Stored(Func):
    """A column as the server's text, which every connection can read."""

    template = "CAST(%(expressions)s AS text)"
    output_field = TextField()

    def as_sqlite(
        self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **extra: Any
    ) -> Any:
        # In hex, because bytes that are not UTF-8 cannot be fetched as text.
        return self.as_sql(
            compiler,
            connection,
            template="CASE WHEN %(expressions)s IS NULL THEN NULL ELSE hex(CAST(%(expressions)s AS BLOB)) END",
            **extra,
        )


def read(rows: QuerySet[Any], problems: list[Problem]) -> list[Any]:
    """Return the rows. If a value or column cannot be read, append a problem that names it.

    Raises ``Unanswered`` if no row can be read, for example if the table is missing.
    """
    connection = connections[rows.db]
    # The usual way first: nearly all rows can be read, and read_stored parses each value in Python.
    try:
        with question(connection):
            found = list(rows)
    except Unanswered as error:
        if not (error.is_unreadable or error.is_mismatch):
            raise
        # Only after errors about values and columns: a server that is away cannot tell its columns either.
        missing = missing_columns(connection, rows.model)
        # The table is missing, or complete.
        if missing is None or not (missing or error.is_unreadable):
            raise
        found = list(read_stored(rows, missing))
        problems.append(_problem(connection, rows.model, found, missing, str(error)))
    else:
        if not _mark_nulls(rows.model, found):
            return found
        problems.append(_problem(connection, rows.model, found, [], ""))
    logger.warning("%s %s", problems[-1].sentence, problems[-1].said)
    return found


def _mark_nulls(model: type[Model], rows: Sequence[Any]) -> bool:
    """Replace each NULL in a column that the models declare NOT NULL by an ``Unreadable``."""
    found = False
    for field in model._meta.concrete_fields:
        for row in rows if not field.null else ():
            if getattr(row, field.attname) is None:
                setattr(row, field.attname, Unreadable("NULL"))
                found = True
    return found


def read_stored(
    rows: QuerySet[Any], missing: Sequence[str] = (), chunk_size: int | None = None
) -> Iterator[Any]:
    """Return the rows, each value parsed here, so that an unreadable one becomes an ``Unreadable`` and breaks no other.

    ``missing`` names the columns that the table lacks. ``chunk_size`` is the number of rows fetched at a time.
    """
    connection = connections[rows.db]
    fields = rows.model._meta.concrete_fields
    there = [field.attname for field in fields if field.attname not in missing]
    # Only columns that exist: a SELECT with a missing one fails as a whole.
    stored = rows.values_list(*(_Stored(F(name)) for name in there))
    for values in (
        stored if chunk_size is None else stored.iterator(chunk_size=chunk_size)
    ):
        texts = dict(zip(there, values, strict=True))
        row = rows.model(
            **{
                field.attname: _parsed(connection, field, texts[field.attname])
                if field.attname in texts
                else Unreadable("", is_missing=True)
                for field in fields
            }
        )
        # Else Django takes the row for a new one that no database has.
        row._state.adding, row._state.db = False, rows.db
        yield row


def _parsed(
    connection: BaseDatabaseWrapper, field: Field[Any, Any], text: str | None
) -> Any:
    if text is None:
        return None if field.null else Unreadable("NULL")
    if connection.vendor == "sqlite":
        raw = bytes.fromhex(text)
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            return Unreadable(raw.decode(errors="backslashreplace"))
    try:
        if isinstance(field, DateTimeField):
            at = parse_datetime(text)
            return Unreadable(text) if at is None else instant(at)
        return int(text) if isinstance(field, IntegerField) else text
    except (ValueError, OverflowError):
        return Unreadable(text)


def missing_columns(
    connection: BaseDatabaseWrapper, model: type[Model]
) -> list[str] | None:
    """Return the columns of the model that its table lacks; None without the table."""
    table = read_tables(connection, [model._meta.db_table]).get(model._meta.db_table)
    if table is None:
        return None
    return [
        field.attname
        for field in model._meta.concrete_fields
        if table.column(field.attname) is None
    ]


def _problem(
    connection: BaseDatabaseWrapper,
    model: type[Model],
    rows: list[Any],
    missing: list[str],
    said: str,
) -> Problem:
    table = model._meta.db_table
    said = " ".join(said.split())
    if missing:
        columns = ", ".join(f"{table}.{name}" for name in missing)
        return Problem(
            gettext("The table lacks a column: %s.") % columns, "agentdb verifydb", said
        )
    values = [
        unreadable_sentence(table, row.pk, field.attname, value)
        for row in rows
        for field in model._meta.concrete_fields
        if is_unreadable(value := getattr(row, field.attname))
    ]
    more = (
        [gettext("There are %d more.") % (len(values) - _NAMED)]
        if len(values) > _NAMED
        else []
    )
    sentence = gettext("A row of %(place)s holds a value that cannot be read.")
    place = sentence % {"place": place_of(connection)}
    return Problem(" ".join([place, *values[:_NAMED], *more]), "", said)
