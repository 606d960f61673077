"""The tables of a SQLite file, from the statements in sqlite_master.

The pragmas lack the names of constraints, collations, ON CONFLICT and generated expressions. SQLite stores a statement
as it was written, and changes its text when a column is added, renamed or dropped.
"""

from __future__ import annotations

from collections.abc import Callable

from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.schema.queries import rows
from agentdb.schema.sqltext import folded, parse_create_index, parse_create_table
from agentdb.schema.tables import Table


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
        return Table(name, (), kind="view")
    # Its columns need its module, which may not be loaded here.
    if sql.startswith("CREATE VIRTUAL TABLE"):  # as SQLite stores it
        return Table(name, (), kind="virtual table")
    text = parse_create_table(sql)
    # Without a constraint's index, which has no statement.
    rest = rows(
        connection,
        "SELECT type, name, sql FROM main.sqlite_master WHERE lower(tbl_name) = %s AND sql IS NOT NULL ORDER BY name",
        [name],
    )
    indexes = [
        parse_create_index(sql, fold_names=True)
        for kind, _, sql in rest
        if kind == "index"
    ]
    return Table(
        name=name,
        columns=tuple(text.columns),
        foreign_keys=tuple(text.foreign_keys),
        checks=tuple(text.checks),
        options=text.options,
        triggers=tuple(name for kind, name, _ in rest if kind == "trigger"),
    ).with_keys([*text.keys, *indexes])
