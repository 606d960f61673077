"""The tables of a server's current schema, from PostgreSQL's catalog, which CockroachDB has too.

The number of queries does not depend on the number of tables. The ``pg_get_...`` functions render what needs the
server's grammar: types, defaults, the keys of an index.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.schema.queries import rows, run
from agentdb.schema.sqltext import (
    canonical,
    column_default,
    column_type,
    normal_index,
    parse_create_index,
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

_KINDS = {
    "r": "table",
    "p": "partitioned table",
    "f": "foreign table",
    "v": "view",
    "m": "materialized view",
}

# Of the schema in which CREATE TABLE would create a table. Tables in later ones of the search_path are another's. A
# view is a rule called _RETURN, and the server's own triggers check foreign keys.
_RELATIONS = """
    SELECT c.oid, c.relname, c.relkind::text,
        array_remove(ARRAY[CASE c.relpersistence::text WHEN 'u' THEN 'unlogged' END,
            CASE WHEN c.relrowsecurity THEN 'row security' END], NULL),
        ARRAY(SELECT t.tgname FROM pg_catalog.pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal ORDER BY 1),
        ARRAY(SELECT r.rulename FROM pg_catalog.pg_rewrite r
            WHERE r.ev_class = c.oid AND r.rulename <> '_RETURN' ORDER BY 1),
        (SELECT setting FROM pg_catalog.pg_settings WHERE name = 'quote_all_identifiers') = 'on'
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = current_schema() AND c.relkind IN ('r', 'p', 'f', 'v', 'm')
    ORDER BY c.relname
"""
# Dropped columns stay in the catalog, and the system's have numbers below 1. A collation is told only if it is not the
# type's own.
_COLUMNS = """
    SELECT a.attrelid, a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), a.attnotnull,
           pg_catalog.pg_get_expr(d.adbin, d.adrelid), a.attidentity::text, a.attgenerated::text,
           CASE WHEN a.attcollation <> t.typcollation THEN o.collname END
    FROM pg_catalog.pg_attribute a
    JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
    LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    LEFT JOIN pg_catalog.pg_collation o ON o.oid = a.attcollation
    WHERE a.attrelid = ANY(%s::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
    ORDER BY a.attrelid, a.attnum
"""
# Columns are kept as an array of numbers, in the order of the constraint, which a plain join would lose. All kinds are
# read: which of them matter depends on the version, as NOT NULL is among them from PostgreSQL 18 on.
_CONSTRAINTS = """
    SELECT k.conrelid, k.conname, k.contype::text, k.condeferrable, k.convalidated, k.conindid,
           ARRAY(SELECT a.attname FROM pg_catalog.unnest(k.conkey) WITH ORDINALITY AS u(number, place)
                 JOIN pg_catalog.pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.number ORDER BY u.place),
           f.relname,
           ARRAY(SELECT a.attname FROM pg_catalog.unnest(k.confkey) WITH ORDINALITY AS u(number, place)
                 JOIN pg_catalog.pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = u.number ORDER BY u.place),
           pg_catalog.pg_get_constraintdef(k.oid)
    FROM pg_catalog.pg_constraint k
    LEFT JOIN pg_catalog.pg_class f ON f.oid = k.confrelid
    WHERE k.conrelid = ANY(%s::oid[])
    ORDER BY k.conrelid, k.conname
"""
_INDEXES = """
    SELECT i.indrelid, i.indexrelid, pg_catalog.pg_get_indexdef(i.indexrelid), {usable}
    FROM pg_catalog.pg_index i
    JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
    WHERE i.indrelid = ANY(%s::oid[])
    ORDER BY i.indrelid, c.relname
"""
# While PostgreSQL builds an index concurrently, it is first ready (written to) and then valid (read). A build that was
# stopped leaves it without the last flag, or without both. CockroachDB calls an index ready only while it is built.
_USABLE = {"postgresql": "i.indisvalid AND i.indisready", "cockroachdb": "i.indisvalid"}


class _ColumnRow(NamedTuple):
    name: str
    type: str
    not_null: bool
    default: str | None
    identity: str
    generated: str
    collation: str | None


class _ConstraintRow(NamedTuple):
    name: str
    kind: str
    deferrable: bool
    validated: bool
    index_oid: int  # of a primary key, a UNIQUE or an exclusion constraint
    columns: list[str]
    target: str
    target_columns: list[str]
    definition: str

    @property
    def options(self) -> tuple[str, ...]:
        deferrable = ("deferrable",) if self.deferrable else ()
        return deferrable if self.validated else (*deferrable, "not valid")


@dataclass(frozen=True)
class _Parts:
    """The parts of a table: its constraints, and its indexes by oid."""

    constraints: list[_ConstraintRow]
    indexes: Mapping[int, Index]

    def of_kind(self, kinds: str) -> list[_ConstraintRow]:
        return [each for each in self.constraints if each.kind in kinds]

    def key_options(self, constraint: _ConstraintRow) -> tuple[str, ...]:
        """The options of a key that are not the default, its index's among them."""
        index = self.indexes[constraint.index_oid]
        options = [*constraint.options, *index.options]
        if not index.valid:
            options.append("invalid")
        if index.include:
            options.append(f"include ({', '.join(index.include)})")
        return tuple(options)


def read(
    connection: BaseDatabaseWrapper, is_wanted: Callable[[str, bool], bool]
) -> dict[str, Table]:
    """Return the tables, and the views, whose name ``is_wanted``."""
    found = rows(connection, _RELATIONS)
    tables = {
        oid: Table(
            name,
            (),
            None,
            kind=_KINDS[kind],
            options=tuple(options),
            triggers=tuple(triggers),
            rules=tuple(rules),
        )
        for oid, name, kind, options, triggers, rules, _ in found
        if is_wanted(name, kind in "vm")
    }
    by_table = partial(_by_table, connection, tables)
    with _plain_names(connection, any(is_quoting for *_, is_quoting in found)):
        columns = by_table(_COLUMNS)
        constraints = by_table(_CONSTRAINTS)
        indexes = by_table(_INDEXES.format(usable=_USABLE[connection.vendor]))
    found_tables = {}
    for oid, table in tables.items():
        parts = _Parts(
            [_ConstraintRow(*row) for row in constraints[oid]],
            {
                index: replace(
                    normal_index(connection, parse_create_index(definition)),
                    valid=valid,
                )
                for index, definition, valid in indexes[oid]
            },
        )
        own = [_ColumnRow(*row) for row in columns[oid]]
        found_tables[table.name] = _with_parts(connection, table, own, parts)
    return found_tables


@contextmanager
def _plain_names(connection: BaseDatabaseWrapper, is_quoting: bool) -> Iterator[None]:
    """Make the server omit unnecessary quotes, even if the role's settings ask for them."""
    if not is_quoting:
        yield
        return
    # format_type() and pg_get_expr() quote then too, so that every type and default would differ from the models'.
    run(connection, "SET quote_all_identifiers = off")
    try:
        yield
    finally:
        run(connection, "SET quote_all_identifiers = on")


def _by_table(
    connection: BaseDatabaseWrapper, tables: Collection[int], query: str
) -> Mapping[int, list[list[Any]]]:
    found = defaultdict(list)
    for table, *row in rows(connection, query, [list(tables)]):
        found[table].append(row)
    return found


def _with_parts(
    connection: BaseDatabaseWrapper,
    table: Table,
    columns: list[_ColumnRow],
    parts: _Parts,
) -> Table:
    # PostgreSQL 18 lists NOT NULL among the constraints, and one that was added NOT VALID sets the column's flag
    # although older rows may be NULL. Below 18 there is only the flag.
    unproven = {
        column
        for each in parts.of_kind("n")
        if not each.validated
        for column in each.columns
    }
    return replace(
        table,
        columns=tuple(_column(connection, row, unproven) for row in columns),
        primary_key=_primary_key(parts),
        uniques=tuple(
            Unique(each.name, tuple(each.columns), parts.key_options(each))
            for each in parts.of_kind("u")
        ),
        indexes=_indexes(parts),
        foreign_keys=tuple(
            ForeignKey(
                each.name,
                tuple(each.columns),
                each.target,
                tuple(each.target_columns),
            )
            for each in parts.of_kind("f")
        ),
        checks=tuple(map(_check, parts.of_kind("cx"))),
    )


def _column(
    connection: BaseDatabaseWrapper, row: _ColumnRow, unproven: set[str]
) -> Column:
    # The catalog stores a generated column's expression as its default.
    is_generated = bool(row.generated)
    generated = canonical(row.default or "") if is_generated else None
    return Column(
        name=row.name,
        type=column_type(connection, row.type),
        nullable=not row.not_null or row.name in unproven,
        default=None if is_generated else column_default(row.default),
        collation=row.collation,
        generated="identity" if row.identity else generated,
    )


def _primary_key(parts: _Parts) -> PrimaryKey | None:
    for each in parts.of_kind("p"):
        return PrimaryKey(each.name, tuple(each.columns), parts.key_options(each))
    return None


def _indexes(parts: _Parts) -> tuple[Index, ...]:
    """Return the indexes without a constraint."""
    indexes = dict(parts.indexes)
    # A foreign key has an index in the same column of the catalog, which is the target's.
    for constraint in parts.of_kind("pux"):
        indexes.pop(constraint.index_oid, None)
    return tuple(indexes.values())


def _check(constraint: _ConstraintRow) -> Check:
    # NO INHERIT and NOT VALID do not change which new rows the check refuses.
    definition = re.sub(
        r"^CHECK |( NO INHERIT)?( NOT VALID)?$", "", constraint.definition
    )
    expression = canonical(definition)
    if constraint.kind == "x":
        return Check(constraint.name, expression, "exclusion")
    return Check(constraint.name, expression)
