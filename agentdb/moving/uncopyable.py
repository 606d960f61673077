"""Values of a source that its target cannot hold, found before a row is copied."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.apps import apps
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import DateTimeField, IntegerField

from agentdb.adoption.obstacles import (
    UnusableValue,
    UnusableValues,
    too_wide,
    unusable_reason,
)
from agentdb.adoption.timestamps import native_text
from agentdb.errors import InvalidInputError
from agentdb.schema import APP_LABEL, expected_tables
from agentdb.schema.rows import StoredColumn, is_usual_on_sqlite, read_sqlite, shown
from agentdb.schema.sqltext import quote_name
from agentdb.schema.unreadable import unreadable_timestamps


def refuse_uncopyable(
    reading: BaseDatabaseWrapper, writing: BaseDatabaseWrapper
) -> None:
    """Raise ``InvalidInputError`` with the first values that the target cannot store."""
    if reading.vendor == "sqlite":
        found = _unusable_on_sqlite(reading, writing.vendor)
    else:
        found = _unusable_on_a_server(reading)
    values = UnusableValues.of(found)
    if values.total:
        raise InvalidInputError(
            f"{values.described('copied', 'copied')}Fix them in the source, and run the command again."
        )


def _unusable_on_sqlite(
    connection: BaseDatabaseWrapper, target: str
) -> Iterator[UnusableValue]:
    """SQLite stores any type in any column, but nearly all rows are usual, which it can tell without Python."""
    for model in apps.get_app_config(APP_LABEL).get_models():
        table = model._meta.db_table
        columns = [
            StoredColumn(str(field.column), _kind(field))
            for field in model._meta.concrete_fields
        ]
        # The + takes the declared type away, by which a value would be converted on its way to here.
        values = ", ".join(f"+{column.sql}" for column in columns)
        usual = is_usual_on_sqlite(connection, columns)
        sql = f"SELECT {values} FROM {quote_name(table)} WHERE ({usual}) IS NOT TRUE"
        for row in read_sqlite(connection, sql):
            place = f"id {shown(row[0])}"
            for column, value in zip(columns, row, strict=True):
                reason = _reason(column.kind, value, target)
                if reason:
                    text = shown(value)
                    yield UnusableValue(table, place, column.name, text, reason)


def _kind(field: Any) -> str:
    if isinstance(field, DateTimeField):
        return "timestamp"
    if isinstance(field, IntegerField):
        return "integer"
    if field.null:
        return "text or null"
    return "text"


def _reason(kind: str, value: Any, target: str) -> str | None:
    """Return why the engine ``target`` cannot store the value, or a server's type has no room for it."""
    if reason := unusable_reason(kind, value):
        return reason
    if kind == "integer":
        return too_wide(value)
    if kind == "timestamp" and native_text(value) != value:
        return "is not in the spelling of a native timestamp; run 'agentdb baselinedb' on the source"
    if target != "sqlite" and "\0" in (value or ""):
        return "has a NUL character, which PostgreSQL cannot store"
    return None


def _unusable_on_a_server(connection: BaseDatabaseWrapper) -> Iterator[UnusableValue]:
    # A server's types leave one thing that no other engine, nor Python, can hold: 'infinity' and the years beyond 9999.
    tables = expected_tables(connection, apps).values()
    for found in unreadable_timestamps(connection, tables):
        yield UnusableValue(
            found.table,
            f"id {found.id!r}",
            found.column,
            repr(found.value),
            "is outside the years 1 to 9999",
        )
