"""The four tables and what stands on them once more, without rows, in PostgreSQL's temporary schema.

There every name hides the real one, so that an adoption runs on the copies as it would on the tables, which it neither
locks nor writes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from django.db import DatabaseError, OperationalError, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.adoption.dependents import (
    Dependents,
    Query,
    Run,
    cannot_be_made_again,
    column_numbers,
    make_again,
    read_dependents,
)
from agentdb.adoption.obstacles import OLD_COLUMNS
from agentdb.errors import SchemaMismatchError
from agentdb.schema.migration_lock import LIMIT_LOCK_WAITS
from agentdb.schema.sqltext import quote_name

_FINAL_TYPES = {"timestamp": "timestamp with time zone", "integer": "integer"}


@dataclass(frozen=True, slots=True)
class _Definition:
    """An index or a constraint; ``table`` as SQL spells it on the search path."""

    title: str
    table: str
    sql: str
    is_in_doubt: bool  # reads a column that changes its type


@contextmanager
def temporary_copy(connection: BaseDatabaseWrapper, changing: Mapping[str, Collection[str]]) -> Iterator[None]:
    """The copies are there, and afterwards nothing of all that happened is. ``changing`` has every table of ours.

    ``SchemaMismatchError`` names what could not be made again once the columns have their new types.
    """
    was_open = connection.connection is not None
    try:
        with transaction.atomic(using=connection.alias):
            try:
                _copy(connection, changing)
                yield
            finally:
                transaction.set_rollback(True, using=connection.alias)
    finally:
        if not was_open:
            connection.close()


def may_copy(connection: BaseDatabaseWrapper) -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT has_database_privilege(current_database(), 'TEMPORARY')")
        return bool(cursor.fetchone()[0])


def _copy(connection: BaseDatabaseWrapper, changing: Mapping[str, Collection[str]]) -> None:
    def query(sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        with connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            return list(cursor.fetchall())

    def run(sql: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(sql, None)

    run(LIMIT_LOCK_WAITS)
    version = connection.pg_version  # type: ignore[attr-defined]
    columns = column_numbers(query, changing)
    sources = {(schema, name) for schema, name in query(_REFERRING, [list(columns), list(columns)])}
    found = read_dependents(query, columns, server_version=version)
    relations = [dependent.relation for dependent in found.found]
    others = {(schema, name) for schema, name, kind in relations if kind != "v"} | sources
    [(path,)] = query("SELECT current_schemas(false)", [])
    own = path[0]
    # With all of their schemas on the path, definitions name them without a schema, and so find the copies.
    schemas = {schema for schema, _ in sources} | {schema for schema, *_ in relations}
    path += sorted(schemas - set(path))
    _search(run, path)
    dependents = read_dependents(query, columns, server_version=version)
    definitions = _definitions(query, columns)
    _search(run, ["pg_temp", *path])
    for table in changing:
        _try_with_final_types(query, run, own, table, changing[table], definitions)
    parts = "INCLUDING DEFAULTS INCLUDING GENERATED INCLUDING IDENTITY INCLUDING STATISTICS INCLUDING STORAGE"
    for table in changing:
        run(f"CREATE TABLE {quote_name(table)} (LIKE {quote_name(own)}.{quote_name(table)} {parts})")
    for schema, name in sorted(others - {(own, table) for table in changing}):
        _if_possible(run, f"CREATE TABLE {quote_name(name)} (LIKE {quote_name(schema)}.{quote_name(name)})")
    for definition in definitions:
        _if_possible(run, definition.sql)
    # A view of the same name as a table or another view cannot be beside it.
    hidden = [one for one in dependents.found if one.relation[0] != own and _is_hidden(query, one.relation, path)]
    visible = tuple(one for one in dependents.found if one not in hidden)
    make_again(query, run, Dependents(visible), with_owners=False)


def _is_hidden(query: Query, relation: tuple[str, str, str], path: Sequence[str]) -> bool:
    """Whether a relation of the same name is found before it."""
    schema, name, _ = relation
    [(first,)] = query(
        "SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.relname = %s AND n.nspname = ANY(%s) ORDER BY array_position(%s, n.nspname::text) LIMIT 1",
        [name, list(path), list(path)],
    )
    return bool(first != schema)


def _search(run: Run, path: Sequence[str]) -> None:
    run(f"SET LOCAL search_path = {', '.join(map(quote_name, path))}")


@contextmanager
def _savepoint(run: Run) -> Iterator[None]:
    run("SAVEPOINT agentdb_copy")
    try:
        yield
    except DatabaseError:
        run("ROLLBACK TO SAVEPOINT agentdb_copy")
        raise
    finally:
        run("RELEASE SAVEPOINT agentdb_copy")


def _if_possible(run: Run, sql: str) -> None:
    """What cannot be copied, for want of a right to it, is not rehearsed."""
    try:
        with _savepoint(run):
            run(sql)
    except OperationalError:
        raise
    except DatabaseError:
        pass


# Tables with a foreign key to ours.
_REFERRING = """
    SELECT DISTINCT n.nspname, c.relname FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE k.contype = 'f' AND k.confrelid = ANY(%s::oid[]) AND k.conrelid <> ALL(%s::oid[])
"""

_CONSTRAINTS = """
    SELECT k.conname, k.contype::text, k.conrelid, k.conrelid::regclass::text, pg_get_constraintdef(k.oid, true),
        k.conkey
    FROM pg_constraint k
    WHERE k.conrelid = ANY(%s::oid[]) AND k.contype IN ('p', 'u', 'x', 'c')
        OR k.contype = 'f' AND k.confrelid = ANY(%s::oid[]) AND k.conparentid = 0
    ORDER BY k.contype = 'f', k.conrelid, k.conname
"""

_INDEXES = """
    SELECT c.relname, i.indrelid, i.indrelid::regclass::text, pg_get_indexdef(i.indexrelid, 0, true),
        ARRAY(SELECT refobjsubid FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = i.indexrelid
            AND refclassid = 'pg_class'::regclass AND refobjid = i.indrelid)
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    WHERE i.indrelid = ANY(%s::oid[])
        AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = i.indexrelid AND contype IN ('p', 'u', 'x'))
    ORDER BY c.relname
"""


# The others came with the copied table, under names of their own.
_STATISTICS = """
    SELECT stxname, stxrelid::regclass::text, pg_get_statisticsobjdef(oid) FROM pg_statistic_ext
    WHERE stxrelid = ANY(%s::oid[]) AND stxexprs IS NOT NULL ORDER BY stxname
"""


def _definitions(query: Query, columns: Mapping[int, Collection[int]]) -> list[_Definition]:
    """The indexes and constraints of our tables, and the foreign keys to them."""
    oids = list(columns)
    found = [
        _Definition(f"Index {name!r} of table {table!r}", table, sql, bool(set(numbers) & set(columns[oid])))
        for name, oid, table, sql, numbers in query(_INDEXES, [oids])
    ]
    found += [
        _Definition(f"Statistics {name!r} of table {table!r}", table, sql, True)
        for name, table, sql in query(_STATISTICS, [oids])
    ]
    words = {"x": "Exclusion constraint", "c": "Check"}
    for name, kind, oid, table, definition, numbers in query(_CONSTRAINTS, [oids, oids]):
        in_doubt = kind in words and bool(set(numbers or ()) & set(columns[oid]))
        sql = f"ALTER TABLE {table} ADD CONSTRAINT {quote_name(name)} {definition}"
        title = f"{words.get(kind, 'Constraint')} {name!r} of table {table!r}"
        found.append(_Definition(title, table, sql, in_doubt))
    return found


def _try_with_final_types(
    query: Query,
    run: Run,
    schema: str,
    table: str,
    changing: Collection[str],
    definitions: Collection[_Definition],
) -> None:
    """The server makes indexes and constraints again by itself, and says of none which one it fails of."""
    doubtful = [one for one in definitions if one.is_in_doubt and one.table == table]
    if not doubtful:
        return
    [(names,)] = query(
        "SELECT array_agg(attname::text ORDER BY attnum) FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0"
        " AND NOT attisdropped",
        [f"{quote_name(schema)}.{quote_name(table)}"],
    )
    types = {column: _FINAL_TYPES.get(OLD_COLUMNS[table][column], "text") for column in changing}
    parts = [f"NULL::{types[name]} AS {quote_name(name)}" if name in types else quote_name(name) for name in names]
    run(
        f"CREATE TABLE {quote_name(table)} AS SELECT {', '.join(parts)} FROM {quote_name(schema)}.{quote_name(table)}"
        " WITH NO DATA"
    )
    for definition in doubtful:
        try:
            with _savepoint(run):
                run(definition.sql)
        except OperationalError:
            raise
        except DatabaseError as error:
            raise SchemaMismatchError(cannot_be_made_again(definition.title, error)) from error
    run(f"DROP TABLE {quote_name(table)}")
