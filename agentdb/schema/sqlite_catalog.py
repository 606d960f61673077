"""The tables of a SQLite file, from its pragmas and from the statements in sqlite_master.

Pragmas give columns and defaults. Constraints with their names, collations, ON CONFLICT and generated expressions are
only in the CREATE statements, which SQLite stores verbatim.
"""

from __future__ import annotations

from collections.abc import Callable

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
from agentdb.schema.tables import Column, Table


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
    return Table(
        name=name,
        columns=tuple(
            _column(connection, text, *row) for row in rows(connection, pragma)
        ),
        primary_key=next((key for key in text.keys if not key.is_constraint), None),
        uniques=tuple(key for key in text.keys if key.is_constraint),
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


def _column(
    connection: BaseDatabaseWrapper,
    text: TableText,
    _number: int,
    stored_as: str,
    type_: str,
    not_null: int,
    default: str | None,
    *_more: int,
) -> Column:
    name = folded(stored_as)
    # A table that was made from a query has no definitions.
    written = text.columns.get(name, ColumnText(0, 0))
    return Column(
        name,
        column_type(connection, type_),
        not not_null,
        column_default(default),
        written.collation,
        written.generated,
        written.conflict,
    )
