"""Changing a table of a SQLite file by rebuilding it, and keeping what is not ours as it was written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

from agentdb.adoption.steps import is_superseded, no_column
from agentdb.schema import Column, expected_table
from agentdb.schema.queries import quote_name, rows, run
from agentdb.schema.sqltext import (
    TableText,
    parse_create_index,
    parse_create_table,
    tokenize,
    without_checks,
)


def fields_of(model: type[models.Model]) -> dict[str, models.Field[Any, Any]]:
    """The model's fields by column."""
    return {str(field.column): field for field in model._meta.local_fields}


# As written, because the pragmas do not tell a column's collation, checks, generated expression or conflict clause.
_WRITTEN = """
    SELECT type, sql FROM sqlite_master
    WHERE lower(tbl_name) = %s AND type IN ('table', 'index', 'trigger') AND sql IS NOT NULL
    ORDER BY type = 'table' DESC, type, name
"""


def rebuild(
    schema_editor: BaseDatabaseSchemaEditor,
    model: type[models.Model],
    sources: Mapping[str, str],
) -> None:
    """SQLite's documented rebuild: create the new table, copy, drop the old one, rename, recreate the rest."""
    connection = schema_editor.connection
    table = model._meta.db_table
    # Everything is read before the first change, because DROP TABLE takes indexes and triggers with it.
    [(_, created), *attached] = rows(connection, _WRITTEN, [table])
    old = parse_create_table(created)
    definitions = _definitions(schema_editor, model, old)
    copied = _copied(model, old, sources)
    # Not a random name: SQLite's errors contain it, and --check and the adoption must say the same.
    new_name = f"agentdb_new_{table}"
    run(connection, f"CREATE TABLE {quote_name(new_name)} ({', '.join(definitions)})")
    run(
        connection,
        f"INSERT INTO {quote_name(new_name)} ({', '.join(map(quote_name, copied))})"
        f" SELECT {', '.join(copied.values())} FROM {quote_name(table)}",
    )
    # Dropped before the rename, as SQLite's manual says: if the old table were renamed instead, references in views,
    # triggers and foreign keys of other tables would follow it.
    run(connection, f"DROP TABLE {quote_name(table)}")
    rename(connection, new_name, table)
    # After the rows: an index that is built at once is written in order, one that grows with each row at random places.
    for index in model._meta.indexes:
        schema_editor.add_index(model, index)
    wanted = expected_table(connection, model)
    for kind, sql in attached:
        key = parse_create_index(sql, fold_names=True) if kind == "index" else None
        if key is None or not is_superseded(key, wanted):
            run(connection, sql)


def _extra(model: type[models.Model], old: TableText) -> list[Column]:
    """The operator's own columns."""
    ours = fields_of(model)
    return [column for column in old.columns if column.name not in ours]


def _definitions(
    schema_editor: BaseDatabaseSchemaEditor, model: type[models.Model], old: TableText
) -> list[str]:
    """Return the definitions of the new CREATE TABLE: our columns and constraints, and the operator's own."""
    ours, extra = fields_of(model), _extra(model, old)
    # A check that reads one of ours was made for its old form. One that reads a generated column may do so through it.
    guarded = {*ours, *(column.name.lower() for column in extra if column.generated)}
    definitions = [
        f"{quote_name(column)} {schema_editor.column_sql(model, ours[column])[0]}"
        for column in ours
    ]
    definitions += [
        without_checks(old.definitions[column.name], guarded) for column in extra
    ]
    definitions += [
        str(constraint.constraint_sql(model, schema_editor))
        for constraint in model._meta.constraints
    ]
    about = {column.name.lower() for column in extra}
    kept = [
        without_checks(text, guarded)
        for text in old.constraints
        if _words(text) & about
    ]
    return definitions + [text for text in kept if text]


def _words(sql: str) -> frozenset[str]:
    # Strings too: SQLite takes 'a' for a column's name where only a name can stand.
    return frozenset(token.identifier.lower() for token in tokenize(sql))


def _copied(
    model: type[models.Model], old: TableText, sources: Mapping[str, str]
) -> dict[str, str]:
    """Return the columns that get a value from the old row, with its expression."""
    copied: dict[str, str] = {}
    for column, model_field in fields_of(model).items():
        if column in sources:
            copied[column] = sources[column]
        elif column in old.definitions:
            copied[column] = quote_name(column)
        elif not (model_field.null or model_field.has_db_default()):
            raise no_column(model._meta.db_table, column)
    for extra in _extra(model, old):
        if not extra.generated:
            copied[extra.name] = quote_name(extra.name)
    # An operator's full-text index or own table may refer to rows by rowid.
    if rowid := _rowid_name(old):
        copied[rowid] = rowid
    return copied


def rename(connection: BaseDatabaseWrapper, name: str, table: str) -> None:
    """Rename a table, whatever names it."""
    # Without the legacy mode the rename fails on any view or trigger that names the table, which is missing now.
    run(connection, "PRAGMA legacy_alter_table = ON")
    try:
        run(
            connection,
            f"ALTER TABLE {quote_name(name)} RENAME TO {quote_name(table)}",
        )
    finally:
        run(connection, "PRAGMA legacy_alter_table = OFF")


def _rowid_name(table: TableText) -> str | None:
    """Return a name for the table's rowid; None if it has none, or columns have all its names."""
    if "without rowid" in table.options:
        return None
    names = ("rowid", "_rowid_", "oid")
    return next((name for name in names if name not in table.definitions), None)
