"""The tables of a server's current schema, from PostgreSQL's catalog, which CockroachDB has too.

The number of queries does not depend on the number of tables. The ``pg_get_...`` functions render what needs the
server's grammar: types, defaults, the keys of an index.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.schema.queries import rows
from agentdb.schema.sqltext import (
    canonical,
    column_default,
    column_type,
    parse_create_index,
)
from agentdb.schema.tables import Check, Column, ForeignKey, Key, Table

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
            WHERE r.ev_class = c.oid AND r.rulename <> '_RETURN' ORDER BY 1)
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = current_schema() AND c.relkind IN ('r', 'p', 'f', 'v', 'm')
    ORDER BY c.relname
"""
# Dropped columns stay in the catalog, and the system's have numbers below 1. The expression of a generated column is
# stored as its default. A collation is told only if it is not the type's own. PostgreSQL 18 lists NOT NULL among the
# constraints, and one that was added NOT VALID sets the column's flag although older rows may be NULL.
_COLUMNS = """
    SELECT a.attrelid, a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod),
           NOT a.attnotnull OR n.oid IS NOT NULL,
           CASE WHEN coalesce(a.attgenerated::text, '') = '' THEN pg_catalog.pg_get_expr(d.adbin, d.adrelid) END,
           CASE WHEN a.attcollation <> t.typcollation THEN o.collname END,
           CASE WHEN a.attidentity::text <> '' THEN 'identity'
                WHEN a.attgenerated::text <> '' THEN pg_catalog.pg_get_expr(d.adbin, d.adrelid) END
    FROM pg_catalog.pg_attribute a
    JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
    LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    LEFT JOIN pg_catalog.pg_collation o ON o.oid = a.attcollation
    LEFT JOIN pg_catalog.pg_constraint n
        ON n.conrelid = a.attrelid AND n.contype = 'n' AND NOT n.convalidated AND n.conkey[1] = a.attnum
    WHERE a.attrelid = ANY(%s::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
    ORDER BY a.attrelid, a.attnum
"""
# Columns are kept as an array of numbers, in the order of the constraint, which a plain join would lose.
_FOREIGN_KEYS = """
    SELECT k.conrelid, k.conname,
           ARRAY(SELECT a.attname FROM pg_catalog.unnest(k.conkey) WITH ORDINALITY AS u(number, place)
                 JOIN pg_catalog.pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.number ORDER BY u.place),
           f.relname,
           ARRAY(SELECT a.attname FROM pg_catalog.unnest(k.confkey) WITH ORDINALITY AS u(number, place)
                 JOIN pg_catalog.pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = u.number ORDER BY u.place)
    FROM pg_catalog.pg_constraint k
    JOIN pg_catalog.pg_class f ON f.oid = k.confrelid
    WHERE k.conrelid = ANY(%s::oid[]) AND k.contype = 'f'
    ORDER BY k.conrelid, k.conname
"""
_CHECKS = """
    SELECT k.conrelid, k.conname, pg_catalog.pg_get_constraintdef(k.oid),
           CASE k.contype::text WHEN 'c' THEN 'check' ELSE 'exclusion' END
    FROM pg_catalog.pg_constraint k
    WHERE k.conrelid = ANY(%s::oid[]) AND k.contype IN ('c', 'x')
    ORDER BY k.conrelid, k.conname
"""
# Indexes, each with the constraint that it serves: a primary key, a UNIQUE or an exclusion. (A foreign key has an index
# in the same column of the catalog, which is the target's.) To CockroachDB a unique index over columns is a constraint.
_KEYS = """
    SELECT i.indrelid,
           CASE WHEN k.contype = 'p' THEN 'primary key' WHEN k.contype = 'u' OR {unique} THEN 'unique constraint' END,
           ARRAY(SELECT a.attname FROM pg_catalog.unnest(k.conkey) WITH ORDINALITY AS u(number, place)
                 JOIN pg_catalog.pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.number ORDER BY u.place),
           coalesce(k.condeferrable, false), pg_catalog.pg_get_indexdef(i.indexrelid), {usable}
    FROM pg_catalog.pg_index i
    JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
    LEFT JOIN pg_catalog.pg_constraint k ON k.conindid = i.indexrelid AND k.contype IN ('p', 'u', 'x')
    WHERE i.indrelid = ANY(%s::oid[]) AND (k.contype IS NULL OR k.contype <> 'x')
    ORDER BY i.indrelid, c.relname
"""
# While PostgreSQL builds an index concurrently, it is first ready (written to) and then valid (read). A build that was
# stopped leaves it without the last flag, or without both. CockroachDB calls an index ready only while it is built.
_BY_VENDOR = {
    "postgresql": {"usable": "i.indisvalid AND i.indisready", "unique": "false"},
    "cockroachdb": {
        "usable": "i.indisvalid",
        "unique": "(i.indisunique AND i.indpred IS NULL AND i.indexprs IS NULL)",
    },
}


def read(
    connection: BaseDatabaseWrapper, is_wanted: Callable[[str, bool], bool]
) -> dict[str, Table]:
    """Return the tables, and the views, whose name ``is_wanted``."""
    found = rows(connection, _RELATIONS)
    wanted = {row[0]: row for row in found if is_wanted(row[1], row[2] in "vm")}
    by_table = partial(_by_table, connection, list(wanted))
    columns = by_table(_COLUMNS)
    foreign_keys = by_table(_FOREIGN_KEYS)
    checks = by_table(_CHECKS)
    keys = by_table(_KEYS.format_map(_BY_VENDOR[connection.vendor]))
    tables = {}
    for oid, name, kind, options, triggers, rules in wanted.values():
        tables[name] = Table(
            name=name,
            columns=tuple(_column(connection, row) for row in columns[oid]),
            foreign_keys=tuple(
                ForeignKey(name, tuple(own), target, tuple(others))
                for name, own, target, others in foreign_keys[oid]
            ),
            checks=tuple(_check(*row) for row in checks[oid]),
            kind=_KINDS[kind],
            options=tuple(options),
            triggers=tuple(triggers),
            rules=tuple(rules),
        ).with_keys([_key(*row) for row in keys[oid]])
    return tables


def _by_table(
    connection: BaseDatabaseWrapper, tables: list[int], query: str
) -> Mapping[int, list[list[Any]]]:
    found = defaultdict(list)
    for table, *row in rows(connection, query, [tables]):
        found[table].append(row)
    return found


def _column(connection: BaseDatabaseWrapper, row: list[Any]) -> Column:
    name, type_, nullable, default, collation, generated = row
    return Column(
        name,
        column_type(connection, type_),
        nullable,
        column_default(default),
        collation,
        generated and canonical(generated),
    )


def _key(
    kind: Any,
    columns: list[str],
    deferrable: bool,
    definition: str,
    valid: bool,
) -> Key:
    index = replace(parse_create_index(definition), valid=valid)
    if kind is None:
        return index
    options = ("deferrable", *index.options) if deferrable else index.options
    names = tuple(columns) or index.columns
    return replace(index, kind=kind, columns=names, options=options)


def _check(name: str, definition: str, kind: Any) -> Check:
    # NO INHERIT and NOT VALID do not change which new rows the check refuses.
    definition = re.sub(r"^CHECK |( NO INHERIT)?( NOT VALID)?$", "", definition)
    return Check(name, canonical(definition), kind)
