"""Rows for the console, also from a table that has drifted or stores a value that Python cannot represent.

Every row is returned. A value that cannot be read becomes an ``Unreadable``, and a problem says why.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeGuard

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import (
    DateTimeField,
    F,
    Field,
    IntegerField,
    Model,
    QuerySet,
    TextField,
)
from django.utils.text import capfirst
from django.utils.translation import gettext

from agentdb.console.display import readable
from agentdb.console.questions import (
    Problem,
    Unanswered,
    holds_unreadable,
    logger,
    question,
)
from agentdb.expressions import OtherOnSqlite
from agentdb.faults import Fault, classify
from agentdb.schema import read_tables
from agentdb.schema.rows import UnreadableValue

_NAMED = 3  # unreadable values named in one sentence
_SHOWN_CHARACTERS = 60  # of each


class Unreadable(str):
    """The stored text of a value that cannot be read."""


class Missing(Unreadable):
    """Stands for the value of a column that the table lacks."""


def is_unreadable(value: Any) -> TypeGuard[Unreadable]:
    """Return whether a value is an ``Unreadable``, which can stand for a value of any type."""
    return isinstance(value, Unreadable)


class _Stored(OtherOnSqlite):
    """A column as the server's text, which every connection can read.

    A driver that converts a value fails with the whole row. Text always arrives, and ``_parsed`` converts it.
    """

    template = "CAST(%(expressions)s AS text)"
    # In hex, because bytes that are not UTF-8 cannot be fetched as text.
    on_sqlite = "CASE WHEN %(expressions)s IS NULL THEN NULL ELSE hex(CAST(%(expressions)s AS BLOB)) END"
    output_field = TextField()


def read(rows: QuerySet[Any], problems: list[Problem]) -> list[Any]:
    """Return the rows. If a value or column cannot be read, append a problem that names it.

    What could not be read is an ``Unreadable``, whatever the type of the field, and so are NULLs where the models
    have none.

    Raises ``Unanswered`` if no row can be read, for example if the table is missing.
    """
    connection = connections[rows.db]
    try:
        with question(connection):
            found = list(read_stored(rows))
        problem = _unreadable(connection, found)
    except Unanswered as error:
        # Only after such errors: a server that is away cannot tell its columns either.
        if classify(error.cause) is not Fault.MISMATCH:
            raise
        missing = missing_columns(connection, rows.model)
        if not missing:
            raise
        # The failed query was rolled back to its savepoint, so that another may follow in a host's transaction.
        found = list(read_stored(rows, missing))
        table = rows.model._meta.db_table
        columns = [f"{table}.{name}" for name in missing]
        sentence = gettext("The table lacks a column: %s.")
        problem = Problem(
            sentence % ", ".join(columns),
            "agentdb verifydb",
            " ".join(str(error).split()),
        )
    if problem is not None:
        logger.warning("%s %s", problem.sentence, problem.said)
        problems.append(problem)
    return found


def read_stored(
    rows: QuerySet[Any], missing: Sequence[str] = (), chunk_size: int | None = None
) -> Iterator[Any]:
    """Return the rows, each value parsed here, so that an unreadable one becomes an ``Unreadable`` and breaks no other.

    ``missing`` names the columns that the table lacks. ``chunk_size`` is the number of rows fetched at a time.
    """
    connection = connections[rows.db]
    fields = rows.model._meta.concrete_fields
    # Only columns that exist: a SELECT with a missing one fails as a whole.
    there = [field for field in fields if field.attname not in missing]
    columns = [_Stored(F(field.attname)) for field in there]
    stored: Any = rows.values_list(*columns)
    if chunk_size is not None:
        stored = stored.iterator(chunk_size=chunk_size)
    for texts in stored:
        values: dict[str, Any] = {}
        for name in missing:
            values[name] = Missing()
        for field, text in zip(there, texts, strict=True):
            values[field.attname] = _parsed(connection, field, text)
        row = rows.model(**values)
        # Else Django takes the row for a new one that no database has.
        row._state.adding = False
        row._state.db = rows.db
        yield row


def _parsed(
    connection: BaseDatabaseWrapper,
    field: Field[Any, Any],
    text: str | None,
) -> Any:
    """Return the value of the field, whose text came from ``_Stored``, or an ``Unreadable``."""
    if text is None:
        return None if field.null else Unreadable("NULL")
    if connection.vendor == "sqlite":
        raw = bytes.fromhex(text)
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            return Unreadable(raw.decode(errors="backslashreplace"))
    if isinstance(field, DateTimeField):
        return readable(text) or Unreadable(text)
    if not isinstance(field, IntegerField):
        return text
    try:
        return int(text)
    except ValueError:
        return Unreadable(text)


def missing_columns(
    connection: BaseDatabaseWrapper, model: type[Model]
) -> list[str] | None:
    """Return the columns of the model that its table lacks; None without the table.

    Reads the catalog, so it is asked only after a query has failed, or before a long one.
    """
    table = read_tables(connection, [model._meta.db_table]).get(model._meta.db_table)
    if table is None:
        return None
    return [
        field.attname
        for field in model._meta.concrete_fields
        if table.column(field.attname) is None
    ]


def _unreadable(connection: BaseDatabaseWrapper, rows: Sequence[Any]) -> Problem | None:
    """Return the problem that names the first ``_NAMED`` values that could not be read, if there are any.

    The rows themselves show all of them.
    """
    values = []
    for row in rows:
        for name, value in vars(row).items():
            if is_unreadable(value):
                shown = value[:_SHOWN_CHARACTERS]
                place = UnreadableValue(row._meta.db_table, row.pk, name, shown)
                values.append(f"{capfirst(str(place))}.")
    if not values:
        return None
    sentences = [holds_unreadable(connection), *values[:_NAMED]]
    if len(values) > _NAMED:
        more = gettext("There are %d more.")
        sentences.append(more % (len(values) - _NAMED))
    return Problem(" ".join(sentences))
