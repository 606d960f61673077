"""What tables a database has: SQLite from its pragmas and sqlite_master, PostgreSQL from its catalog. Reads only."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import quote as percent_encoded

from django.apps import apps
from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.schema.sqltext import (
    IndexText,
    TableText,
    canonical,
    parse_create_index,
    parse_create_table,
    quote_name,
    quoted,
    tokenize,
)
from agentdb.schema.tables import (
    Check,
    Column,
    ForeignKey,
    Index,
    IndexPart,
    PrimaryKey,
    Table,
    Unique,
)

# Where the engine puts NULLs when an index does not say, by whether the key is descending.
_USUAL_NULLS = {
    "sqlite": {False: "first", True: "last"},
    "postgresql": {False: "last", True: "first"},
}
# Empty, and only on CockroachDB: what processes that migrate exclude each other with.
LOCK_TABLE = "agentdb_migrating"
_USUAL_COLLATIONS = {"sqlite": "BINARY", "postgresql": "default"}


def read_tables(
    connection: BaseDatabaseWrapper, names: Collection[str] | None = None
) -> dict[str, Table]:
    """Return the tables of the current schema by name; only those in ``names``, if given. Reads no row of them.

    Names of SQLite, which knows no difference, are in lower case. A view is listed only where it has the name of one
    of agentdb's tables, or is asked for.
    """
    read = _read_sqlite if connection.vendor == "sqlite" else _read_postgresql
    views = {
        model._meta.db_table for model in apps.get_app_config("agentdb").get_models()
    }
    tables = read(
        connection,
        None if names is None else set(names),
        views if names is None else set(names),
    )
    if connection.vendor == "cockroachdb":
        return {
            name: _with_unique_indexes_as_constraints(table)
            for name, table in tables.items()
        }
    return tables


def _with_unique_indexes_as_constraints(table: Table) -> Table:
    """The table as CockroachDB understands it: there a unique index over columns is a unique constraint."""
    uniques = {unique.name: unique for unique in table.uniques}
    indexes = []
    for index in table.indexes:
        columns = tuple(part.expression for part in index.parts)
        if (
            index.unique
            and index.condition is None
            and all(table.column(column) for column in columns)
        ):
            uniques.setdefault(index.name, Unique(index.name, columns))
        else:
            indexes.append(index)
    return replace(table, uniques=tuple(uniques.values()), indexes=tuple(indexes))


def _dialect(connection: BaseDatabaseWrapper) -> str:
    return "sqlite" if connection.vendor == "sqlite" else "postgresql"


def column_type(connection: BaseDatabaseWrapper, declared: str) -> str:
    name = re.sub(r"\s+", " ", declared).strip().lower()
    if connection.vendor == "cockroachdb":
        return {
            "integer": "bigint",
            "int8": "bigint",
            "string": "text",
            "timestamptz": "timestamp with time zone",
        }.get(name, name)
    return name


def column_default(sql: str | None) -> str | None:
    text = None if sql is None else canonical(sql)
    return None if text == "NULL" else text


def literal(value: object) -> str:
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return str(value)


def index_from(
    connection: BaseDatabaseWrapper, text: IndexText, *, valid: bool = True
) -> Index:
    dialect = _dialect(connection)
    parts = []
    for key in text.keys:
        usual = _USUAL_NULLS[dialect][key.descending]
        collation = (
            None if key.collation == _USUAL_COLLATIONS[dialect] else key.collation
        )
        nulls: Any = None if key.nulls == usual else key.nulls
        parts.append(
            IndexPart(
                key.expression, key.descending, collation, nulls, key.operator_class
            )
        )
    return Index(
        name=_folded(text.name) if dialect == "sqlite" else text.name,
        parts=tuple(parts),
        unique=text.unique,
        condition=text.condition,
        include=text.include,
        method=text.method or "btree",
        valid=valid,
        options=("nulls not distinct",) if text.nulls_not_distinct else (),
    )


# --------------------------------------------------------------------------------------------------- what SQLite has


def _folded(name: str) -> str:
    return name.translate(_LOWER)


_LOWER = str.maketrans(
    {chr(code): chr(code).lower() for code in range(ord("A"), ord("Z") + 1)}
)


def _read_sqlite(
    connection: BaseDatabaseWrapper, names: set[str] | None, views: set[str]
) -> dict[str, Table]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT type, name, tbl_name, sql FROM main.sqlite_master")
        objects = [
            (kind, name, _folded(owner), sql or "")
            for kind, name, owner, sql in cursor.fetchall()
        ]
        triggers = defaultdict(list)
        index_texts = {name: sql for kind, name, _, sql in objects if kind == "index"}
        for kind, name, owner, _ in objects:
            if kind == "trigger":
                triggers[owner].append(name)
        tables = {}
        shadows = _shadow_tables(cursor)
        for kind, name, _, sql in objects:
            key = _folded(name)
            wanted = (
                key in views
                if kind == "view"
                else kind == "table" and (names is None or key in names)
            )
            if not wanted or key.startswith("sqlite_") or key in shadows:
                continue
            if kind == "view":
                tables[key] = Table(key, (), None, kind="view")
            elif _is_virtual(sql):
                tables[key] = Table(key, (), None, kind="virtual table")
            else:
                tables[key] = _read_sqlite_table(
                    connection, cursor, name, sql, index_texts, tuple(triggers[key])
                )
    return tables


def _is_virtual(sql: str) -> bool:
    return [token.word for token in tokenize(sql[:100])[1:2]] == ["VIRTUAL"]


def _shadow_tables(cursor: Any) -> set[str]:
    """The tables in which a virtual table keeps its own data: ``notes_fts_content`` of ``notes_fts``."""
    cursor.execute(
        "PRAGMA main.table_list"
    )  # nothing before SQLite 3.37, where they pass for ordinary tables
    return {_folded(row[1]) for row in cursor.fetchall() if row[2] == "shadow"}


def _read_sqlite_table(
    connection: BaseDatabaseWrapper,
    cursor: Any,
    name: str,
    sql: str,
    index_texts: Mapping[str, str],
    triggers: tuple[str, ...],
) -> Table:
    text = parse_create_table(sql)
    written = {_folded(column.name): column for column in text.columns}
    columns = []
    keys: dict[int, str] = {}
    cursor.execute(f"PRAGMA main.table_xinfo({quote_name(name)})")
    for _, column, declared, not_null, default, key, _ in cursor.fetchall():
        column = _folded(column)
        own = written.get(column)
        if key:
            keys[key] = column
        columns.append(
            Column(
                name=column,
                type=column_type(connection, declared),
                nullable=not not_null,
                default=_sqlite_default(default),
                collation=None
                if own is None or _is_binary(own.collation)
                else own.collation,
                generated=own.generated if own else None,
                conflict=own.conflict if own else None,
            )
        )
    uniques, indexes = [], []
    cursor.execute(f"PRAGMA main.index_list({quote_name(name)})")
    for _, index, _, origin, _ in cursor.fetchall():
        if origin == "c":
            indexes.append(
                index_from(
                    connection, parse_create_index(index_texts[index], fold_names=True)
                )
            )
        elif origin == "u":
            cursor.execute(f"PRAGMA main.index_xinfo({quote_name(index)})")
            uniques.append(
                _sqlite_unique(
                    [row for row in cursor.fetchall() if row[5]], columns, text
                )
            )
    written_key = next(
        (
            constraint
            for constraint in text.constraints
            if constraint.kind == "primary key"
        ),
        None,
    )
    return Table(
        name=_folded(name),
        columns=tuple(columns),
        primary_key=PrimaryKey(
            written_key.name if written_key else None,
            tuple(keys[position] for position in sorted(keys)),
            (f"on conflict {written_key.conflict}",)
            if written_key and written_key.conflict
            else (),
        )
        if keys
        else None,
        uniques=tuple(
            sorted(uniques, key=lambda unique: (unique.columns, unique.name or ""))
        ),
        indexes=tuple(sorted(indexes, key=lambda index: index.name)),
        foreign_keys=tuple(
            ForeignKey(
                constraint.name,
                tuple(map(_folded, constraint.columns)),
                _folded(constraint.target_table),
                tuple(map(_folded, constraint.target_columns)),
            )
            for constraint in text.constraints
            if constraint.kind == "foreign key"
        ),
        checks=tuple(
            Check(constraint.name, constraint.expression)
            for constraint in text.constraints
            if constraint.kind == "check"
        ),
        options=text.options,
        triggers=triggers,
    )


def _is_binary(collation: str | None) -> bool:
    return collation is None or collation.upper() == "BINARY"


def _sqlite_default(default: str | None) -> str | None:
    if default is None:
        return None
    tokens = tokenize(default)
    # In a default SQLite takes a quoted name for a string.
    if len(tokens) == 1 and tokens[0].kind == "name":
        return literal(tokens[0].identifier)
    return column_default(default)


def _sqlite_unique(keys: list[Any], columns: list[Column], text: TableText) -> Unique:
    names = tuple(_folded(row[2]) for row in keys)
    collations = {column.name: column.collation or "BINARY" for column in columns}
    options = []
    written = [
        constraint for constraint in text.constraints if constraint.kind == "unique"
    ]
    constraint = next(
        (one for one in written if tuple(map(_folded, one.columns)) == names), None
    )
    if constraint and constraint.conflict:
        options.append(f"on conflict {constraint.conflict}")
    options += [
        f"collate {row[4].lower()}"
        for row in keys
        if collations[_folded(row[2])].upper() != row[4].upper()
    ]
    return Unique(constraint.name if constraint else None, names, tuple(options))


# ----------------------------------------------------------------------------------------------- what PostgreSQL has

_KINDS = {
    "r": "table",
    "p": "partitioned table",
    "f": "foreign table",
    "v": "view",
    "m": "materialized view",
}

_RELATIONS = """
    SELECT c.oid, c.relname, c.relkind, c.relpersistence, c.relrowsecurity,
        (SELECT setting FROM pg_catalog.pg_settings WHERE name = 'quote_all_identifiers') = 'on'
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = current_schema() AND c.relkind IN ('r', 'p', 'f', 'v', 'm')
    ORDER BY c.relname
"""
_COLUMNS = """
    SELECT a.attrelid, a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), a.attnotnull,
           pg_catalog.pg_get_expr(d.adbin, d.adrelid), a.attidentity, a.attgenerated,
           CASE WHEN a.attcollation <> t.typcollation THEN o.collname END
    FROM pg_catalog.pg_attribute a
    JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
    LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    LEFT JOIN pg_catalog.pg_collation o ON o.oid = a.attcollation
    WHERE a.attrelid = ANY(%s::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
    ORDER BY a.attrelid, a.attnum
"""
_CONSTRAINTS = """
    SELECT k.conrelid, k.conname, k.contype, k.condeferrable, k.convalidated, k.conindid,
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
    SELECT i.indrelid, i.indexrelid, c.relname, pg_catalog.pg_get_indexdef(i.indexrelid), {usable}
    FROM pg_catalog.pg_index i
    JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
    WHERE i.indrelid = ANY(%s::oid[])
    ORDER BY i.indrelid, c.relname
"""
# CockroachDB calls an index ready only while it is being built.
_USABLE = {"postgresql": "i.indisvalid AND i.indisready", "cockroachdb": "i.indisvalid"}
_TRIGGERS = """
    SELECT t.tgrelid, t.tgname FROM pg_catalog.pg_trigger t WHERE t.tgrelid = ANY(%s::oid[]) AND NOT t.tgisinternal
    ORDER BY t.tgrelid, t.tgname
"""
_RULES = """
    SELECT r.ev_class, r.rulename FROM pg_catalog.pg_rewrite r
    WHERE r.ev_class = ANY(%s::oid[]) AND r.rulename <> '_RETURN' ORDER BY r.ev_class, r.rulename
"""


# The first relation of each name on the search path, for the names that agentdb uses without a schema.
_VISIBLE = """
    SELECT c.relname, n.nspname
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relname = ANY(%s) AND c.relkind IN ('r', 'p') AND pg_catalog.pg_table_is_visible(c.oid)
        AND n.nspname = ANY(current_schemas(false))
    ORDER BY c.relname
"""
_RECORD = "django_migrations"


def tables_elsewhere(
    connection: BaseDatabaseWrapper, names: Collection[str]
) -> str | None:
    """What to do if the search_path finds the tables, or the record of migrations, outside the current schema.

    PostgreSQL looks a table up in every schema of the path, and creates one in the current schema only. Without this
    check, agentdb would read the record of one schema and the tables of another.
    """
    if connection.vendor != "postgresql":
        return None
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_schema(), quote_ident(current_user)")
        current, role = cursor.fetchone()
        cursor.execute(_VISIBLE, [[*names, _RECORD]])
        schemas = dict(cursor.fetchall())
    record = schemas.pop(_RECORD, current)
    number = Counter(schemas.values())
    # Another program may well have a table of its own called sessions; three of the four are agentdb's.
    home = (
        current
        if number[current]
        else next((name for name in number if number[name] >= 3), current)
    )
    if home == record == current:
        return None
    if home != current:
        what = (
            f"The tables are in schema {home!r}, and new ones would be created in "
            f"{current!r}, which comes before it in"
        )
    else:
        tables = "The tables are" if number[current] else "New tables would be created"
        what = f"{tables} in schema {home!r}, but the record of migrations ({_RECORD}) is in {record!r}, further down"
    return (
        f"{what} the search_path. Run 'ALTER ROLE {role} SET search_path = {quoted(home)}', or add "
        f"options=-csearch_path%3D{percent_encoded(quoted(home), safe='')} to the database URL."
    )


@contextmanager
def _plain_names(cursor: Any, is_quoting: bool) -> Iterator[None]:
    """Have the server spell names and types without quotes where none are needed, whatever the role's settings say."""
    if not is_quoting:
        yield
        return
    cursor.execute("SET quote_all_identifiers = off")
    try:
        yield
    finally:
        cursor.execute("SET quote_all_identifiers = on")


def _read_postgresql(
    connection: BaseDatabaseWrapper, names: set[str] | None, views: set[str]
) -> dict[str, Table]:
    with connection.cursor() as cursor:
        cursor.execute(_RELATIONS)
        found = cursor.fetchall()
        relations = {
            oid: (name, _KINDS[_text(kind)], _text(persistence), row_security)
            for oid, name, kind, persistence, row_security, _ in found
            if (
                name in views
                if _text(kind) in "vm"
                else name in names
                if names is not None
                else name != LOCK_TABLE
            )
        }
        oids = list(relations)

        def by_table(query: str) -> dict[int, list[Any]]:
            rows = defaultdict(list)
            cursor.execute(query, [oids])
            for owner, *row in cursor.fetchall():
                rows[owner].append(row)
            return rows

        with _plain_names(cursor, bool(found and found[0][-1])):
            columns, constraints = by_table(_COLUMNS), by_table(_CONSTRAINTS)
            indexes = by_table(_INDEXES.format(usable=_USABLE[connection.vendor]))
        triggers, rules = by_table(_TRIGGERS), by_table(_RULES)
    return {
        name: _postgresql_table(
            connection,
            Table(
                name,
                (),
                None,
                kind=kind,
                options=(("unlogged",) if persistence == "u" else ())
                + (("row security",) if row_security else ()),
                triggers=tuple(trigger for (trigger,) in triggers[oid]),
                rules=tuple(rule for (rule,) in rules[oid]),
            ),
            columns[oid],
            constraints[oid],
            indexes[oid],
        )
        for oid, (name, kind, persistence, row_security) in relations.items()
    }


def _text(value: str | bytes) -> str:
    return (
        value.decode() if isinstance(value, bytes) else value
    )  # the catalog's "char" type


def _postgresql_table(
    connection: BaseDatabaseWrapper,
    table: Table,
    columns: list[Any],
    constraints: list[Any],
    indexes: list[Any],
) -> Table:
    index_texts = {
        oid: (parse_create_index(definition), valid)
        for oid, _, definition, valid in indexes
    }
    primary_key = None
    uniques, foreign_keys, checks = [], [], []
    owned, unproven = set(), set()
    for (
        name,
        kind,
        deferrable,
        validated,
        index,
        own,
        target,
        target_columns,
        definition,
    ) in constraints:
        kind, own = _text(kind), tuple(own)
        options = (("deferrable",) if deferrable else ()) + (
            () if validated else ("not valid",)
        )
        if kind in "pux":
            owned.add(index)
        if kind == "p":
            primary_key = PrimaryKey(
                name, own, options + _index_options(*index_texts[index])
            )
        elif kind == "u":
            uniques.append(
                Unique(name, own, options + _index_options(*index_texts[index]))
            )
        elif kind == "f":
            foreign_keys.append(ForeignKey(name, own, target, tuple(target_columns)))
        elif (
            kind == "n"
        ):  # PostgreSQL 18 lists NOT NULL here; below it is only a flag of the column
            unproven |= set() if validated else set(own)
        elif kind in "cx":
            expression = canonical(
                re.sub(r"^CHECK |( NO INHERIT)?( NOT VALID)?$", "", definition)
            )
            checks.append(
                Check(name, expression, "exclusion" if kind == "x" else "check")
            )
    return replace(
        table,
        columns=tuple(
            Column(
                name=name,
                type=column_type(connection, declared),
                nullable=not not_null or name in unproven,
                default=None if _text(generated) else column_default(default),
                collation=collation,
                generated=_generated(_text(identity), _text(generated), default),
            )
            for name, declared, not_null, default, identity, generated, collation in columns
        ),
        primary_key=primary_key,
        uniques=tuple(uniques),
        indexes=tuple(
            replace(index_from(connection, text, valid=valid), name=name)
            for oid, name, _, _ in indexes
            if oid not in owned
            for text, valid in (index_texts[oid],)
        ),
        foreign_keys=tuple(foreign_keys),
        checks=tuple(checks),
    )


def _index_options(text: IndexText, valid: bool) -> tuple[str, ...]:
    """What a key's index is, beyond an ordinary one."""
    return (
        *(("nulls not distinct",) if text.nulls_not_distinct else ()),
        *(() if valid else ("invalid",)),
        *((f"include ({', '.join(text.include)})",) if text.include else ()),
    )


def _generated(identity: str, generated: str, expression: str | None) -> str | None:
    if identity:
        return "identity"
    return canonical(expression or "") if generated else None
