"""The tables of a SQLite file, from its pragmas and from the statements in sqlite_master.

Pragmas give columns, defaults and the columns of indexes. Names of constraints, checks, collations, ON CONFLICT and
generated expressions are only in the CREATE statements, which SQLite stores verbatim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.schema.normal_forms import (
    column_default,
    column_type,
    literal,
    normal_index,
)
from agentdb.schema.queries import rows
from agentdb.schema.sqltext import (
    TableText,
    folded,
    parse_create_index,
    parse_create_table,
    quote_name,
    tokenize,
)
from agentdb.schema.tables import (
    Check,
    Column,
    ForeignKey,
    Index,
    PrimaryKey,
    Table,
    Unique,
)


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
    # SQLite below 3.37 knows no such pragma and returns no row; there they pass for ordinary tables.
    listed = rows(connection, "PRAGMA main.table_list")
    return {folded(name) for _, name, kind, *_ in listed if kind == "shadow"}


def _read(
    connection: BaseDatabaseWrapper, found: _Object, objects: list[_Object]
) -> Table:
    name = folded(found.name)
    if found.kind == "view":
        return Table(name, (), None, kind="view")
    # Its columns need its module, which may not be loaded here.
    if [token.word for token in tokenize((found.sql or "")[:100])[1:2]] == ["VIRTUAL"]:
        return Table(name, (), None, kind="virtual table")
    text = parse_create_table(found.sql or "")
    of_table = [each for each in objects if folded(each.table) == name]
    # table_xinfo and not table_info, which leaves generated columns out.
    pragma = f"PRAGMA main.table_xinfo({quote_name(found.name)})"
    stored = [_ColumnRow(*row) for row in rows(connection, pragma)]
    columns = _columns(connection, stored, text)
    return Table(
        name=name,
        columns=columns,
        primary_key=_primary_key(stored, text),
        uniques=_uniques(connection, found.name, columns, text),
        indexes=_indexes(connection, of_table),
        foreign_keys=tuple(text.of_kind(ForeignKey)),
        checks=tuple(text.of_kind(Check)),
        options=text.options,
        triggers=tuple(each.name for each in of_table if each.kind == "trigger"),
    )


def _columns(
    connection: BaseDatabaseWrapper, stored: list[_ColumnRow], text: TableText
) -> tuple[Column, ...]:
    written = {folded(column.name): column for column in text.columns}
    columns = []
    for row in stored:
        column = Column(
            name=folded(row.name),
            type=column_type(connection, row.type),
            nullable=not row.not_null,
            default=_default(row.default),
        )
        if own := written.get(column.name):
            is_usual = (own.collation or "BINARY").upper() == "BINARY"
            column = replace(
                column,
                collation=None if is_usual else own.collation,
                generated=own.generated,
                conflict=own.conflict,
            )
        columns.append(column)
    return tuple(columns)


def _default(default: str | None) -> str | None:
    tokens = tokenize(default or "")
    # SQLite reads a quoted name in a default as a string.
    if len(tokens) == 1 and tokens[0].kind == "name":
        return literal(tokens[0].identifier)
    return column_default(default)


def _primary_key(stored: list[_ColumnRow], text: TableText) -> PrimaryKey | None:
    # In the order of the key, which need not be that of the columns.
    keys = sorted((row.key, folded(row.name)) for row in stored if row.key)
    if not keys:
        return None
    columns = tuple(name for _, name in keys)
    for written in text.of_kind(PrimaryKey):
        return replace(written, columns=columns)
    return PrimaryKey(None, columns)


def _uniques(
    connection: BaseDatabaseWrapper,
    table: str,
    columns: tuple[Column, ...],
    text: TableText,
) -> tuple[Unique, ...]:
    """The UNIQUE constraints, each of which has an index of the origin "u"."""
    listed = rows(connection, f"PRAGMA main.index_list({quote_name(table)})")
    uniques = []
    for name in [name for _, name, _, origin, _ in listed if origin == "u"]:
        parts = rows(connection, f"PRAGMA main.index_xinfo({quote_name(name)})")
        keys = [
            (folded(column), collation)
            for _, _, column, _, collation, is_key in parts
            if is_key  # the others are the rowid
        ]
        uniques.append(_unique(keys, columns, text))
    return tuple(
        sorted(uniques, key=lambda unique: (unique.columns, unique.name or ""))
    )


def _unique(
    keys: list[tuple[str, str]], columns: tuple[Column, ...], text: TableText
) -> Unique:
    names = tuple(name for name, _ in keys)
    usual = {column.name: (column.collation or "BINARY").upper() for column in columns}
    collations = tuple(
        f"collate {collation.lower()}"
        for name, collation in keys
        if collation.upper() != usual[name]
    )
    # SQLite names the index itself; the constraint's name is in the statement. Two constraints over the same columns
    # share an index, so that the first one written stands for both.
    for written in text.of_kind(Unique):
        if written.columns == names:
            return replace(written, options=written.options + collations)
    return Unique(None, names, collations)


def _indexes(
    connection: BaseDatabaseWrapper, of_table: list[_Object]
) -> tuple[Index, ...]:
    indexes = [
        normal_index(connection, parse_create_index(each.sql, fold_names=True))
        for each in of_table
        if each.kind == "index" and each.sql
    ]
    return tuple(sorted(indexes, key=lambda index: index.name))
