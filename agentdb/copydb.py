"""Moving the four tables from one database to another, on the same engine or a different one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

from django.apps import apps
from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Model

from agentdb import migration_record
from agentdb.adoption.contents import row_checksum
from agentdb.channels import open_channel
from agentdb.compiled import Select, Statement
from agentdb.errors import AgentDbError, InvalidInputError, SchemaMismatchError, SchemaOutOfDateError
from agentdb.inspection import inspecting, translated_errors
from agentdb.schema import APP_LABEL, compare, expected_tables, read_tables

_ROWS_AT_ONCE = 5_000
_SHOWN = 20

Progress = Callable[[str, int], None]  # table, rows done


@dataclass(frozen=True)
class TableSummary:
    """What a table holds: equal for equal rows, on every engine and in any order."""

    rows: int
    checksum: int


Summary = dict[str, TableSummary]


def copy(source: str, target: str, progress: Progress = lambda table, rows: None) -> Summary:
    """Copy the tables of the alias ``source`` to the alias ``target``, in one transaction; return what was copied.

    The target is migrated first if it has none of the tables. The source is read as of one moment and not changed.
    Raises ``InvalidInputError`` for a target with rows and for values the target's engine cannot hold,
    ``SchemaOutOfDateError`` and ``SchemaMismatchError`` where either side is not what the models say.
    """
    with inspecting(source) as reading:
        _check_schema(reading, connections[source])
        writing = connections[target]
        with translated_errors(writing):
            if not set(expected_tables(writing, apps)) & set(writing.introspection.table_names()):
                migration_record.migrate(target)
            _check_schema(writing, writing)
            with transaction.atomic(using=target):
                return _copy_tables(reading, writing, progress)


def summarise(alias: str, progress: Progress = lambda table, rows: None) -> Summary:
    """Return what the tables of the alias hold."""
    with inspecting(alias) as connection:
        _check_schema(connection, connections[alias])
        return {model._meta.db_table: _summary(connection, model, progress) for model in _models()}


def differences(source: Summary, target: Summary) -> list[str]:
    """Return a sentence for each table whose rows are not the same on both sides."""
    return [
        f"Table {name!r} differs: {summary.rows:,} rows in the source, {target[name].rows:,} in the target"
        + ("." if summary.rows != target[name].rows else ", with different values.")
        for name, summary in source.items()
        if summary != target[name]
    ]


def has_rows(alias: str) -> bool:
    """Whether any of the tables is there and has a row."""
    with inspecting(alias) as connection:
        there = set(connection.introspection.table_names())
        return any(_has_rows(connection, model) for model in _models() if model._meta.db_table in there)


def _copy_tables(reading: BaseDatabaseWrapper, writing: BaseDatabaseWrapper, progress: Progress) -> Summary:
    filled = [model._meta.db_table for model in _models() if _has_rows(writing, model)]
    if filled:
        raise InvalidInputError(
            f"The target has rows already, in {', '.join(filled)}. Copy into a new database; nothing was changed."
        )
    copied = {}
    for model in _models():
        table = model._meta.db_table
        rows = _checked(_rows(reading, model), model, writing)
        count = checksum = 0
        while batch := list(islice(rows, _ROWS_AT_ONCE)):
            _insert(writing, model, batch)
            count += len(batch)
            checksum += sum(map(_checksum, batch))
            progress(table, count)
        copied[table] = TableSummary(count, checksum % 2**128)
        # What was written is read back before it is committed: a copy that differs is worse than none.
        if _summary(writing, model) != copied[table]:
            raise AgentDbError(f"The target does not hold what was written to {table!r}. Nothing was copied.")
    return copied


def _models() -> Iterator[type[Model]]:
    return apps.get_app_config(APP_LABEL).get_models()


def _check_schema(connection: BaseDatabaseWrapper, named: BaseDatabaseWrapper) -> None:
    """Refuse a database that is not as the models say; ``named`` is the connection to name in the message."""
    place = open_channel(named).describe()
    if pending := migration_record.pending_migrations(connection):
        raise SchemaOutOfDateError(
            f"{place} lacks the migrations {', '.join(pending)}. Run 'agentdb baselinedb' on a database of the old "
            "server, 'agentdb migrate' on any other.",
            pending=tuple(pending),
        )
    drift = [
        difference.message
        for difference in compare(expected_tables(connection, apps), read_tables(connection))
        if difference.severity == "drift"
    ]
    if drift:
        raise SchemaMismatchError(f"{place} is not what the models say: {drift[0]} Run 'agentdb verifydb'.")


def _has_rows(connection: BaseDatabaseWrapper, model: type[Model]) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT 1 FROM {connection.ops.quote_name(model._meta.db_table)} LIMIT 1")
        return cursor.fetchone() is not None


def _rows(connection: BaseDatabaseWrapper, model: type[Model]) -> Iterator[Sequence[Any]]:
    """Yield all rows of the model, columns in the model's order, without holding them all."""
    statement: Statement = Select(lambda p: model._default_manager.all()).compile(connection)
    with closing(connection.chunked_cursor()) as cursor:
        cursor.execute(statement.sql)
        while rows := cursor.fetchmany(_ROWS_AT_ONCE):
            try:
                yield from map(statement.convert, rows)
            except ValueError as error:
                raise SchemaMismatchError(
                    f"Table {model._meta.db_table!r} holds a timestamp that is none: {error}."
                ) from error


def _checked(
    rows: Iterator[Sequence[Any]], model: type[Model], writing: BaseDatabaseWrapper
) -> Iterator[Sequence[Any]]:
    """Yield the rows, unless one has what the target's engine cannot hold; then read on to name them all."""
    if writing.vendor == "sqlite":
        yield from rows
        return
    columns = [field.column for field in model._meta.concrete_fields]
    bad: list[str] = []
    total = 0
    for row in rows:
        for column, value in zip(columns, row, strict=True):
            if isinstance(value, str) and "\0" in value:
                total += 1
                if len(bad) < _SHOWN:
                    bad.append(f"{model._meta.db_table} {row[0]!r} {column} {value[:60]!r}")
        if not total:
            yield row
    if total:
        raise InvalidInputError(
            f"{total:,} values have a NUL character, which PostgreSQL cannot store; nothing was copied: "
            f"{'; '.join(bad)}{'; …' if total > len(bad) else ''}."
        )


def _insert(connection: BaseDatabaseWrapper, model: type[Model], rows: list[Sequence[Any]]) -> None:
    fields = model._meta.concrete_fields
    quote = connection.ops.quote_name
    table, columns = quote(model._meta.db_table), ", ".join(quote(str(field.column)) for field in fields)
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            adapt = connection.ops.adapt_datetimefield_value
            cursor.executemany(
                f"INSERT INTO {table} ({columns}) VALUES ({', '.join(['%s'] * len(fields))})",
                [[adapt(value) if isinstance(value, datetime) else value for value in row] for row in rows],
            )
            return
        with cursor.copy(f"COPY {table} ({columns}) FROM STDIN") as copying:
            for row in rows:
                copying.write_row(row)


def _summary(
    connection: BaseDatabaseWrapper, model: type[Model], progress: Progress = lambda table, rows: None
) -> TableSummary:
    count = checksum = 0
    for row in _rows(connection, model):
        count += 1
        checksum += _checksum(row)
        if not count % _ROWS_AT_ONCE:
            progress(model._meta.db_table, count)
    return TableSummary(count, checksum % 2**128)


def _checksum(row: Sequence[Any]) -> int:
    return row_checksum([value.isoformat() if isinstance(value, datetime) else value for value in row])
