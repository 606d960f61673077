"""Changing a table of a SQLite file by rebuilding it, and keeping what is not ours as it was written."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

from agentdb.adoption.steps import is_superseded, no_column
from agentdb.schema import Table, expected_table, read_tables
from agentdb.schema.queries import quote_name, rows, run
from agentdb.schema.sqltext import parse_create_table, tokenize, without_checks


def fields_of(model: type[models.Model]) -> dict[str, models.Field[Any, Any]]:
    """The model's fields by column."""
    return {str(field.column): field for field in model._meta.local_fields}


class _Written(NamedTuple):
    """A SQLite table's statement, its columns in lower case, and the operator's with whether each is generated."""

    name: str
    sql: str
    columns: frozenset[str]
    extra: dict[str, int]


def rebuild(
    schema_editor: BaseDatabaseSchemaEditor,
    model: type[models.Model],
    sources: Mapping[str, str],
) -> None:
    """SQLite's documented rebuild: create the new table, copy, drop the old one, rename, recreate the rest."""
    connection = schema_editor.connection
    table = model._meta.db_table
    # Everything is read before the first change, because DROP TABLE takes indexes and triggers with it.
    old = _written_table(connection, model)
    definitions = _definitions(schema_editor, model, old)
    copied = _copied(model, old, sources)
    rest = _rest(connection, expected_table(connection, model), old.name)
    # Not a random name: SQLite's errors contain it, and --check and the adoption must say the same.
    new_name = f"agentdb_new_{table}"
    run(connection, f"CREATE TABLE {quote_name(new_name)} ({', '.join(definitions)})")
    run(
        connection,
        f"INSERT INTO {quote_name(new_name)} ({', '.join(map(quote_name, copied))})"
        f" SELECT {', '.join(copied.values())} FROM {quote_name(old.name)}",
    )
    # Dropped before the rename, as SQLite's manual says: if the old table were renamed instead, references in views,
    # triggers and foreign keys of other tables would follow it.
    run(connection, f"DROP TABLE {quote_name(old.name)}")
    rename(connection, new_name, table)
    # After the rows: an index that is built at once is written in order, one that grows with each row at random places.
    for index in model._meta.indexes:
        schema_editor.add_index(model, index)
    for sql in rest:
        run(connection, sql)


def _written_table(
    connection: BaseDatabaseWrapper, model: type[models.Model]
) -> _Written:
    [(name, sql)] = rows(
        connection,
        "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND lower(name) = lower(%s)",
        [model._meta.db_table],
    )
    ours, columns, extra = fields_of(model), set(), {}
    for _, column, *_, hidden in rows(
        connection, f"PRAGMA table_xinfo({quote_name(name)})"
    ):
        columns.add(column.lower())
        if column.lower() not in ours:
            extra[column] = hidden
    return _Written(name, sql, frozenset(columns), extra)


def _definitions(
    schema_editor: BaseDatabaseSchemaEditor, model: type[models.Model], old: _Written
) -> list[str]:
    """Return the definitions of the new CREATE TABLE: our columns and constraints, and the operator's own."""
    ours = fields_of(model)
    extra = old.extra
    # A check that reads one of ours was made for its old form. One that reads a generated column may do so through it.
    guarded = {*ours, *(name.lower() for name, hidden in extra.items() if hidden)}
    # Verbatim, because the pragmas do not tell a column's collation, checks, generated expression or conflict clause.
    columns, constraints = written_definitions(old.sql)
    definitions = [
        f"{quote_name(column)} {schema_editor.column_sql(model, ours[column])[0]}"
        for column in ours
    ]
    definitions += [without_checks(columns[name.lower()], guarded) for name in extra]
    definitions += [
        str(constraint.constraint_sql(model, schema_editor))
        for constraint in model._meta.constraints
    ]
    about = {name.lower() for name in extra}
    kept = [
        without_checks(text, guarded) for text, words in constraints if words & about
    ]
    return definitions + [text for text in kept if text]


def _copied(
    model: type[models.Model], old: _Written, sources: Mapping[str, str]
) -> dict[str, str]:
    """Return the columns that get a value from the old row, with its expression."""
    copied: dict[str, str] = {}
    for column, model_field in fields_of(model).items():
        if column in sources:
            copied[column] = sources[column]
        elif column in old.columns:
            copied[column] = quote_name(column)
        elif not (model_field.null or model_field.has_db_default()):
            raise no_column(model._meta.db_table, column)
    for name, hidden in old.extra.items():
        if not hidden:
            copied[name] = quote_name(name)
    # An operator's full-text index or own table may refer to rows by rowid.
    if rowid := rowid_name(old.sql, old.columns):
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


def rowid_name(sql: str, columns: Collection[str]) -> str | None:
    """Return a name for the rowid of a table made by ``sql``; None if it has none, or columns have all its names."""
    if "without rowid" in parse_create_table(sql).options:
        return None
    names = ("rowid", "_rowid_", "oid")
    return next((name for name in names if name not in columns), None)


def written_definitions(
    sql: str,
) -> tuple[dict[str, str], list[tuple[str, frozenset[str]]]]:
    """Return the definitions in a CREATE TABLE verbatim: columns by lower-case name, and the table's constraints, each
    with its lower-case words."""
    parsed = parse_create_table(sql)
    columns = {name.lower(): text for name, text in parsed.definitions.items()}
    return columns, [(text, _words(text)) for text in parsed.constraints]


def _words(sql: str) -> frozenset[str]:
    # Strings too: SQLite takes 'a' for a column's name where only a name can stand.
    return frozenset(token.identifier.lower() for token in tokenize(sql))


def _rest(connection: BaseDatabaseWrapper, wanted: Table, table: str) -> list[str]:
    """Return the statements that recreate the table's additional indexes and its triggers."""
    live = read_tables(connection, [wanted.name])[wanted.name]
    ours = {key.name for key in live.keys if is_superseded(key, wanted)}
    found = rows(
        connection,
        "SELECT type, lower(name), sql FROM sqlite_master WHERE lower(tbl_name) = lower(%s) AND sql IS NOT NULL"
        " AND type IN ('index', 'trigger') ORDER BY type, name",
        [table],
    )
    return [sql for kind, name, sql in found if kind == "trigger" or name not in ours]
