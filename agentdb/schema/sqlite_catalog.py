"""The tables of a SQLite file, from its pragmas and from the statements in sqlite_master.

Pragmas give columns and defaults. Constraints with their names, collations, ON CONFLICT and generated expressions are
only in the CREATE statements, which SQLite stores verbatim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.schema.queries import quote_name, rows
from agentdb.schema.sqltext import (
    TableText,
    column_default,
    column_type,
    folded,
    literal,
    parse_create_index,
    parse_create_table,
    tokenize,
)
from agentdb.schema.tables import Column, Key, Table


class _Object(NamedTuple):
    """A row of sqlite_master."""

    kind: str
    name: str
    table: str
    sql: str | None  # None for a constraint's index


class _ColumnRow(NamedTuple):
    """A row of ``PRAGMA table_xinfo``."""

    number: int
    name: str
    type: str
    not_null: int
    default: str | None
    key: int  # the position in the primary key, from 1; 0 if none
    hidden: int


def read(
    connection: BaseDatabaseWrapper, is_wanted: Callable[[str, bool], bool]
) -> dict[str, Table]:
    """Return the tables, and the views, whose name ``is_wanted``."""
    # Of main alone: a program's temporary or attached tables may have the same names.
    master = "SELECT type, name, tbl_name, sql FROM main.sqlite_master"
    objects = [_Object(*row) for row in rows(connection, master)]
    unlisted = _shadow_tables(connection)
    tables = {}
    for found in objects:
        name = folded(found.name)
        if found.kind not in ("table", "view") or name.startswith("sqlite_"):
            continue
        if name not in unlisted and is_wanted(name, found.kind == "view"):
            tables[name] = _read(connection, found, objects)
    return tables


def _shadow_tables(connection: BaseDatabaseWrapper) -> set[str]:
    """Return the tables that store a virtual table's data: ``notes_fts_content`` of ``notes_fts``."""
    shadows = set()
    # SQLite below 3.37 knows no such pragma and returns no row; there they pass for ordinary tables.
    for _, name, kind, *_ in rows(connection, "PRAGMA main.table_list"):
        if kind == "shadow":
            shadows.add(folded(name))
    return shadows


def _read(
    connection: BaseDatabaseWrapper, found: _Object, objects: list[_Object]
) -> Table:
    name = folded(found.name)
    if found.kind == "view":
        return Table(name, (), None, kind="view")
    sql = found.sql or ""
    # Its columns need its module, which may not be loaded here.
    if sql.startswith("CREATE VIRTUAL TABLE"):  # as SQLite stores it
        return Table(name, (), None, kind="virtual table")
    text = parse_create_table(sql)
    of_table = [each for each in objects if folded(each.table) == name]
    # table_xinfo and not table_info, which leaves generated columns out.
    pragma = f"PRAGMA main.table_xinfo({quote_name(found.name)})"
    stored = [_ColumnRow(*row) for row in rows(connection, pragma)]
    columns = _columns(connection, stored, text)
    return Table(
        name=name,
        columns=columns,
        primary_key=next((key for key in text.keys if not key.is_constraint), None),
        uniques=_uniques(text),
        indexes=_indexes(of_table),
        foreign_keys=tuple(text.foreign_keys),
        checks=tuple(text.checks),
        options=text.options,
        triggers=tuple(each.name for each in of_table if each.kind == "trigger"),
    )


def _columns(
    connection: BaseDatabaseWrapper, stored: list[_ColumnRow], text: TableText
) -> tuple[Column, ...]:
    written = {column.name: column for column in text.columns}
    columns = []
    for row in stored:
        column = Column(
            name=folded(row.name),
            type=column_type(connection, row.type),
            nullable=not row.not_null,
            default=_default(row.default),
        )
        if own := written.get(column.name):
            collation = (own.collation or "BINARY").upper()
            column = replace(
                column,
                collation=None if collation == "BINARY" else collation,
                generated=own.generated,
                conflict=own.conflict,
            )
        columns.append(column)
    return tuple(columns)


def _default(default: str | None) -> str | None:
    """Return the canonical form of a default as ``table_xinfo`` shows it."""
    tokens = tokenize(default or "")
    # SQLite reads a quoted name in a default as a string.
    if len(tokens) == 1 and tokens[0].kind == "name":
        return literal(tokens[0].identifier)
    return column_default(default)


def _uniques(text: TableText) -> tuple[Key, ...]:
    """Return the UNIQUE constraints that SQLite has an index for: each once, and none that the primary key implies."""
    known = {key.columns for key in text.keys if not key.is_constraint}
    uniques = {
        (key.columns, key.options): key
        # The first one written stands for all.
        for key in reversed(text.keys)
        if key.columns not in known
    }
    return tuple(unique for _, unique in sorted(uniques.items()))


def _indexes(of_table: list[_Object]) -> tuple[Key, ...]:
    indexes = [
        parse_create_index(each.sql, fold_names=True)
        for each in of_table
        if each.kind == "index" and each.sql
    ]
    return tuple(sorted(indexes, key=lambda index: index.name))
