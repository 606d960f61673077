"""The tables of a SQLite file, from its pragmas and from the statements in sqlite_master.

Pragmas give columns and defaults. Constraints with their names, collations, ON CONFLICT and generated expressions are
only in the CREATE statements, which SQLite stores verbatim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.schema.queries import quote_name, rows
from agentdb.schema.sqltext import (
    ColumnText,
    TableText,
    column_default,
    column_type,
    folded,
    parse_create_index,
    parse_create_table,
)
from agentdb.schema.tables import Column, Key, Table


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
    found = rows(
        connection,
        "SELECT type, name, sql FROM main.sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite@_%'"
        " ESCAPE '@'",
    )
    return {
        folded(name): _read(connection, kind, name, sql)
        for kind, name, sql in found
        if is_wanted(folded(name), kind == "view")
    }


def _read(
    connection: BaseDatabaseWrapper, kind: str, stored_as: str, sql: str
) -> Table:
    name = folded(stored_as)
    if kind == "view":
        return Table(name, (), None, kind="view")
    # Its columns need its module, which may not be loaded here.
    if sql.startswith("CREATE VIRTUAL TABLE"):  # as SQLite stores it
        return Table(name, (), None, kind="virtual table")
    text = parse_create_table(sql)
    # Without a constraint's index, which has no statement.
    rest = rows(
        connection,
        "SELECT type, name, sql FROM main.sqlite_master WHERE lower(tbl_name) = %s AND sql IS NOT NULL ORDER BY name",
        [name],
    )
    # table_xinfo and not table_info, which leaves generated columns out.
    pragma = f"PRAGMA main.table_xinfo({quote_name(stored_as)})"
    stored = [_ColumnRow(*row) for row in rows(connection, pragma)]
    return Table(
        name=name,
        columns=_columns(connection, stored, text),
        primary_key=next((key for key in text.keys if not key.is_constraint), None),
        uniques=_uniques(text),
        indexes=tuple(
            parse_create_index(sql, fold_names=True)
            for kind, _, sql in rest
            if kind == "index"
        ),
        foreign_keys=tuple(text.foreign_keys),
        checks=tuple(text.checks),
        options=text.options,
        triggers=tuple(name for kind, name, _ in rest if kind == "trigger"),
    )


def _columns(
    connection: BaseDatabaseWrapper, stored: list[_ColumnRow], text: TableText
) -> tuple[Column, ...]:
    written = {column.name: column for column in text.columns}
    columns = []
    for row in stored:
        name = folded(row.name)
        # A table that was made from a query has no definitions.
        own = written.get(name, ColumnText(name, 0, 0))
        collation = (own.collation or "binary").upper()
        column = Column(
            name=name,
            type=column_type(connection, row.type),
            nullable=not row.not_null,
            default=column_default(row.default),
            collation=None if collation == "BINARY" else collation,
            generated=own.generated,
            conflict=own.conflict,
        )
        columns.append(column)
    return tuple(columns)


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
